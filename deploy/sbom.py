"""Writes what a folder of installed packages holds, with licences: an SBOM in CycloneDX's JSON.

    python3 sbom.py FOLDER FILE [TOOLS]

FOLDER is where pip installed to with --target, TOOLS where cyclonedx-bom is, if not beside this
Python. Run it where pyproject.toml lies. The same packages give the same bytes.
"""

import json
import os
import runpy
import sys
from pathlib import Path

READ = {
    "antlr4-python3-runtime": "BSD-3-Clause",
    "keras": "Apache-2.0",
    "namex": "Apache-2.0",
    "protobuf": "BSD-3-Clause",
    "ray": "Apache-2.0",
    "sigstore-models": "MIT",
}
"""Licences of packages whose metadata have none that a program understands, read by people."""


def list_installed(folder: str, file: str, tools: list[str]) -> None:
    """Runs cyclonedx-py on what a Python would find in the folder alone."""
    os.environ["PYTHONPATH"] = str(Path(folder).resolve())  # of the Python that it asks
    sys.path[:0] = tools
    sys.argv = [
        *("cyclonedx-py", "environment", "-S", sys.executable, "--pyproject", "pyproject.toml"),
        *("--output-reproducible", "--spec-version", "1.6", "--output-file", file),
    ]
    try:
        runpy.run_module("cyclonedx_py", run_name="__main__", alter_sys=True)
    except SystemExit as end:
        if end.code:
            raise


def add_licences(file: Path) -> None:
    """Puts in what people have read."""
    document = json.loads(file.read_text())
    for component in document["components"]:
        known = READ.get(component["name"].replace("_", "-").lower())
        if known and not component.get("licenses"):
            component["licenses"] = [{"license": {"id": known, "acknowledgement": "concluded"}}]
    file.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    folder, file, *tools = sys.argv[1:]
    list_installed(folder, file, tools)
    add_licences(Path(file))
