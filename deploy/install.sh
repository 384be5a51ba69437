# Installs what a server imports, at the versions and with the hashes of requirements.lock, and
# lists it in FOLDER/plumbline.cdx.json, by the cyclonedx-bom of /opt/sbom.
# Usage: install.sh FOLDER EXTRA[,EXTRA...] [PACKAGE...]: the base, the extras, and PACKAGEs.
set -eu
folder=$1 extras=$2
shift 2
python3 locked.py $(printf -- '--extra %s ' $(echo "$extras" | tr , ' ')) "$@" > locked.txt
python3 -m pip install --quiet --no-compile --only-binary :all: --target "$folder" \
  --require-hashes --requirement locked.txt
python3 sbom.py "$folder" "$folder/plumbline.cdx.json" /opt/sbom
