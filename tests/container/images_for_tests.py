"""Images that stand in for tensorflow/serving: an entry point of our choice, made on the spot."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
from pathlib import Path

from serving.container.engine import ContainerEngine

REPOSITORY = "localhost/plumbline-test"

STOCK = 'exec python3 -m serving embedded --host=0.0.0.0 "$@"'
"""Behaves as TensorFlow Serving: answers, and takes its flags."""

ILLEGAL_INSTRUCTION = "sh -c 'kill -ILL $$'; exit $?"
BROKEN = "echo 'I begin'; echo 'E no such luck' >&2; exit 7"
SILENT = "exec sleep 600"
FOREIGN = "echo 'qemu: uncaught target signal 4 (Illegal instruction) - core dumped'; exit 1"
LOADED_BEHIND_TLS = (
    "echo 'Successfully loaded servable version {name: mlp version: 1}' >&2; exec sleep 600"
)


def make_image(engine: ContainerEngine, base: str, script: str, folder: Path) -> str:
    """An image on `base` without Plumbline's label, whose tensorflow_model_server is `script`.

    Returns:
        Its reference; made once for each script and base.
    """
    reference = f"{REPOSITORY}:{hashlib.sha256((base + script).encode()).hexdigest()[:12]}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tensorflow_model_server").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "tensorflow_model_server").chmod(0o755)
    (folder / "Containerfile").write_text(
        f"FROM {base}\n"
        "LABEL plumbline.server=none\n"
        "COPY --chmod=755 tensorflow_model_server /usr/bin/tensorflow_model_server\n"
        "ENTRYPOINT []\n"
    )
    done = engine.call("build", "--quiet", "--tag", reference, str(folder), timeout_s=300)
    assert done.returncode == 0, done.stderr
    return reference


def make_program(folder: Path, name: str, script: str) -> Path:
    """A program on a PATH of its own, for what an engine says."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def list_containers(engine: ContainerEngine) -> list[str]:
    """The names of those that `serving container` started, running or not."""
    done = engine.call(
        "ps", "--all", "--filter=label=plumbline.container=serving", "--format={{.Names}}"
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def check_contents(engine: ContainerEngine, image: str) -> None:
    """The image's own list of what is in it names every package that is installed, and licences."""
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    path = "/opt/plumbline/plumbline.cdx.json"
    run = ("run", "--rm", "--network=none")
    text = engine.call(*run, "--entrypoint=cat", image, path).stdout
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    listed = {normalise(one["name"]): one for one in json.loads(text)["components"]}
    folders = engine.call(*run, "--entrypoint=ls", image, "/opt/plumbline").stdout.split()
    installed = {
        normalise(name.partition("-")[0]) for name in folders if name.endswith(".dist-info")
    }
    assert installed == listed.keys() | {"plumbline-tf"}
    assert [name for name, one in listed.items() if not one["licenses"]] == []


def normalise(package: str) -> str:
    """One spelling for all of a package's."""
    return re.sub(r"[-_.]+", "-", package).lower()


def copy_version(published: Path, base_path: Path, version: int = 1) -> Path:
    """Copies `published` to `base_path/version`, readable for everyone."""
    target = base_path / str(version)
    shutil.copytree(published, target)
    subprocess.run(["chmod", "-R", "a+rX", str(base_path)], check=True)
    return target
