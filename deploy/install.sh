# Installs what a server imports, at the versions of requirements.lock.
# Usage: install.sh FOLDER serving [PACKAGE...]: the base, the extra [serving], and PACKAGEs.
set -eu
folder=$1 extra=$2
shift 2
python3 - "$extra" "$@" > wanted.txt <<'PYTHON'
import sys, tomllib
project = tomllib.load(open("pyproject.toml", "rb"))["project"]
extra, *more = sys.argv[1:]
print(*project["dependencies"], *project["optional-dependencies"][extra], *more, sep="\n")
PYTHON
python3 -m pip install --quiet --no-compile --only-binary :all: --target "$folder" \
  --constraint requirements.lock --requirement wanted.txt
