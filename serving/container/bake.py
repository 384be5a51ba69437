"""`python -m serving bake`: an image that holds one published version, to serve or for KServe."""

from __future__ import annotations

import argparse
import logging
import re
import tempfile
from pathlib import Path

from contract import layout
from contract.console.exits import ExitCode
from contract.console.terminal import remark, say
from contract.errors import ConfigError, ManifestError, ServableUnavailableError
from contract.manifest import Manifest, check_files, read_manifest
from serving.container.engine import (
    MODEL_LABEL,
    MODELCAR_LABEL,
    MODELS_FOLDER,
    ContainerEngine,
    ImageServer,
    find_engine,
    last_line,
    name_default_image,
    require_image,
)

EMBEDDED_IMAGE = "plumbline:embedded"
MODELCAR_BASE = "busybox:1.37"
"""Has what KServe runs in a modelcar: `sh`, `ln`, `sleep`, `ls`."""

MODELCAR_SUFFIX = "-modelcar"
DIGEST_LETTERS = 12
BUILD_TIMEOUT_S = 1800.0
_OTHER_BASE = ", or name a base that is on this machine with --image"

_NAME = re.compile(r"[A-Za-z0-9]+([._-]+[A-Za-z0-9]+)*")

_CONTAINERFILE = """\
FROM {base}
LABEL {model_label}={name} plumbline.version={version} plumbline.manifest={digest}
COPY --chmod=755 . {folder}/{name}/{version}/
ENV MODEL_NAME={name} MODEL_BASE_PATH={folder}
"""
"""Both images read these variables, so that the baked one needs no flags."""

_MODELCAR_CONTAINERFILE = """\
FROM {base}
LABEL {modelcar_label}=true {model_label}={name} plumbline.version={version} \
      plumbline.manifest={digest}
COPY --chmod=755 . {folder}/{version}/
ENTRYPOINT []
USER {user}
"""
"""KServe mounts /models, which becomes the base path, and gives `sh` as arguments."""

_NOT_RUN = (125, 126)
"""Exit codes of `run` where the engine could not run the container; a missing `sh` is 127."""

MODELCAR_USER = "10001:10001"
"""Of the embedded server's image: only the same user may read a modelcar through /proc."""

_MODELCAR_CHECK = (
    '[ -d {folder} ] && [ "$(ls -A {folder})" ] && ln -sf /proc/$$/root{folder} /tmp/models '
    "&& [ -r /tmp/models/{version}/{manifest} ] && sleep 0"
)
"""What KServe runs in it: `ConfigureModelcarToContainer` of its pkg/utils/storage.go."""


logger = logging.getLogger(__name__)


def add_bake_arguments(parser: argparse.ArgumentParser) -> None:
    """What to bake, and onto what."""
    parser.add_argument(
        "--version_dir", type=Path, required=True, help="a version, or a base path for its newest"
    )
    parser.add_argument(
        "--server",
        choices=[server.value for server in ImageServer],
        default="",
        help=f"which server the image is for (default {ImageServer.EMBEDDED.value})",
    )
    parser.add_argument(
        "--modelcar",
        action="store_true",
        help="no server: an image that KServe mounts (storageUri: oci://…)",
    )
    parser.add_argument(
        "--image",
        default="",
        help=f"image to build on (default {EMBEDDED_IMAGE}, or {name_default_image()}; of a "
        f"modelcar {MODELCAR_BASE})",
    )
    parser.add_argument(
        "--repository", default="", help="name before the colon (default: the model's)"
    )
    parser.add_argument("--container_engine", choices=("docker", "podman"), default="")


def run_bake(arguments: argparse.Namespace) -> int:
    """Builds the image, prints its reference; returns the exit code."""
    version_dir = layout.find_version_dir(arguments.version_dir)
    manifest = read_manifest(version_dir)
    check_files(version_dir, manifest)
    if arguments.modelcar and arguments.server:
        raise ConfigError(
            f"--server={arguments.server}: a modelcar holds no server; leave out one of the two"
        )
    server = None if arguments.modelcar else ImageServer(arguments.server or ImageServer.EMBEDDED)
    reference = name_image(manifest, server, repository=arguments.repository)
    try:
        engine = find_engine(arguments.container_engine, way_out="")
        if server is None:
            base = require_image(engine, arguments.image or MODELCAR_BASE, way_out=_OTHER_BASE)
            text = describe_modelcar(base.name, manifest)
            _build(engine, text, reference, version_dir=version_dir)
            _check_modelcar(engine, reference, base=base.name, version=manifest.version)
            say(reference)
            return ExitCode.DONE
        default = EMBEDDED_IMAGE if server is ImageServer.EMBEDDED else name_default_image()
        base = require_image(engine, arguments.image or default, way_out=_OTHER_BASE)
        if base.server is not server:
            raise ConfigError(
                f"--image={base.name}: holds {base.server.value}, and --server={server.value}"
            )
        text = describe_image(base.name, manifest)
        _build(engine, text, reference, version_dir=version_dir, is_docker_format=True)
    except ServableUnavailableError as error:
        remark(f"error: {error.message}")
        return ExitCode.UNREACHABLE
    say(reference)
    return ExitCode.DONE


def name_image(manifest: Manifest, server: ImageServer | None, *, repository: str = "") -> str:
    """`<model name>:<version>-<start of the manifest's digest>`, and the server if not ours; a
    modelcar has none."""
    if not _NAME.fullmatch(manifest.model_name):
        raise ConfigError(
            f"model name {manifest.model_name!r}: an image wants letters, digits and single signs "
            "among . _ - between them"
        )
    if not manifest.version:
        raise ManifestError("a candidate has no version yet; publish it, then bake that")
    tag = f"{manifest.version}-{manifest.digest[:DIGEST_LETTERS]}"
    if server is ImageServer.TENSORFLOW_SERVING:
        tag += "-tensorflow-serving"
    if server is None:
        tag += MODELCAR_SUFFIX
    return f"{repository or manifest.model_name.lower()}:{tag}"


def describe_image(base: str, manifest: Manifest) -> str:
    """The Containerfile of an image with a server."""
    return _CONTAINERFILE.format(base=base, folder=MODELS_FOLDER, **_list_labels(manifest))


def describe_modelcar(base: str, manifest: Manifest) -> str:
    """The Containerfile of an image that KServe mounts."""
    return _MODELCAR_CONTAINERFILE.format(
        base=base,
        folder=MODELS_FOLDER,
        modelcar_label=MODELCAR_LABEL,
        user=MODELCAR_USER,
        **_list_labels(manifest),
    )


def _list_labels(manifest: Manifest) -> dict[str, str | int]:
    return {
        "model_label": MODEL_LABEL,
        "name": manifest.model_name,
        "version": manifest.version,
        "digest": manifest.digest,
    }


def _build(
    engine: ContainerEngine,
    text: str,
    reference: str,
    *,
    version_dir: Path,
    is_docker_format: bool = False,
) -> None:
    """Builds `text`, a Containerfile, on the version's files.

    OCI's format has no health check, which images with a server have.
    """
    with tempfile.TemporaryDirectory(prefix="plumbline-bake-") as folder:
        file = Path(folder, "Containerfile")
        file.write_text(text)
        done = engine.call(
            *("build", "--quiet", "--file", str(file), "--tag", reference),
            *(["--format=docker"] if engine.is_podman and is_docker_format else []),
            str(version_dir.absolute()),
            timeout_s=BUILD_TIMEOUT_S,
        )
    if done.returncode != 0:
        raise ServableUnavailableError(f"{reference} was not built: {last_line(done.stderr)}")


def _check_modelcar(engine: ContainerEngine, reference: str, *, base: str, version: int) -> None:
    """Runs in the image what KServe will."""
    check = _MODELCAR_CHECK.format(folder=MODELS_FOLDER, version=version, manifest=layout.MANIFEST)
    confined = ("--read-only", "--tmpfs=/tmp", "--cap-drop=ALL", "--network=none")
    done = engine.call("run", "--rm", *confined, reference, "sh", "-c", check)
    if done.returncode in _NOT_RUN:
        logger.warning("%s was not tried here: %s", reference, last_line(done.stderr))
    elif done.returncode != 0:
        raise ServableUnavailableError(
            f"{reference} was built, but KServe could not mount it: {last_line(done.stderr)}. "
            "KServe runs sh, ls, ln and sleep in it, and the image that it was built on "
            f"({base}) must have them, as {MODELCAR_BASE} does: --image"
        )
