# Installs what a server imports, at the versions of requirements.lock.
# Usage: install.sh FOLDER EXTRA[,EXTRA...] [PACKAGE...]: the base, the extras, and PACKAGEs.
set -eu
folder=$1 extras=$2
shift 2
python3 - "$extras" "$@" > wanted.txt <<'PYTHON'
import sys, tomllib
project = tomllib.load(open("pyproject.toml", "rb"))["project"]
extras, *more = sys.argv[1:]
wanted = [one for extra in extras.split(",") for one in project["optional-dependencies"][extra]]
print(*project["dependencies"], *wanted, *more, sep="\n")
PYTHON
python3 -m pip install --quiet --no-compile --only-binary :all: --target "$folder" \
  --constraint requirements.lock --requirement wanted.txt
