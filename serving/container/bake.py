"""`python -m serving bake`: an image that holds one published version, for either server."""

from __future__ import annotations

import argparse
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
    MODELS_FOLDER,
    ContainerEngine,
    Image,
    ImageServer,
    find_engine,
    last_line,
    name_default_image,
    require_image,
)

EMBEDDED_IMAGE = "plumbline:embedded"
DIGEST_LETTERS = 12
BUILD_TIMEOUT_S = 1800.0

_NAME = re.compile(r"[A-Za-z0-9]+([._-]+[A-Za-z0-9]+)*")

_CONTAINERFILE = """\
FROM {base}
LABEL {model_label}={name} plumbline.version={version} plumbline.manifest={digest}
COPY --chmod=755 . {folder}/{name}/{version}/
ENV MODEL_NAME={name} MODEL_BASE_PATH={folder}
"""
"""Both images read these variables, so that the baked one needs no flags."""


def add_bake_arguments(parser: argparse.ArgumentParser) -> None:
    """What to bake, and onto what."""
    parser.add_argument(
        "--version_dir", type=Path, required=True, help="a version, or a base path for its newest"
    )
    parser.add_argument(
        "--server",
        choices=[server.value for server in ImageServer],
        default=ImageServer.EMBEDDED.value,
        help="which server the image is for (default %(default)s)",
    )
    parser.add_argument(
        "--image",
        default="",
        help=f"image to build on (default {EMBEDDED_IMAGE}, or {name_default_image()})",
    )
    parser.add_argument(
        "--repository", default="", help="name before the colon (default: the model's)"
    )
    parser.add_argument("--container_engine", choices=("docker", "podman"), default="")


def run_bake(arguments: argparse.Namespace) -> int:
    """Builds the image, prints its reference; returns the exit code."""
    version_dir = find_version_dir(arguments.version_dir)
    manifest = read_manifest(version_dir)
    check_files(version_dir, manifest)
    server = ImageServer(arguments.server)
    reference = name_image(manifest, server, repository=arguments.repository)
    try:
        engine = find_engine(arguments.container_engine)
        default = EMBEDDED_IMAGE if server is ImageServer.EMBEDDED else name_default_image()
        base = require_image(engine, arguments.image or default)
        if base.server is not server:
            raise ConfigError(
                f"--image={base.name}: holds {base.server.value}, and --server={server.value}"
            )
        _build(engine, base, reference, version_dir=version_dir, manifest=manifest)
    except ServableUnavailableError as error:
        remark(f"error: {error.message}")
        return ExitCode.UNREACHABLE
    say(reference)
    return ExitCode.DONE


def find_version_dir(path: Path) -> Path:
    """A version directory: `path` itself, or the newest below it."""
    if (path / layout.MANIFEST).exists() or layout.parse_version(path.name) is not None:
        return path
    try:
        versions = layout.find_versions(path)
    except OSError as error:
        raise ConfigError(f"--version_dir={path}: {error.strerror or error}") from None
    if not versions:
        raise ConfigError(f"--version_dir={path}: no version there; publish one first")
    return list(versions.values())[-1]


def name_image(manifest: Manifest, server: ImageServer, *, repository: str = "") -> str:
    """`<model name>:<version>-<start of the manifest's digest>`, and the server if not ours."""
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
    return f"{repository or manifest.model_name.lower()}:{tag}"


def _build(
    engine: ContainerEngine, base: Image, reference: str, *, version_dir: Path, manifest: Manifest
) -> None:
    text = _CONTAINERFILE.format(
        base=base.name,
        model_label=MODEL_LABEL,
        name=manifest.model_name,
        version=manifest.version,
        digest=manifest.digest,
        folder=MODELS_FOLDER,
    )
    with tempfile.TemporaryDirectory(prefix="plumbline-bake-") as folder:
        file = Path(folder, "Containerfile")
        file.write_text(text)
        done = engine.call(
            *("build", "--quiet", "--file", str(file), "--tag", reference),
            *(["--format=docker"] if engine.is_podman else []),  # OCI's has no health check
            str(version_dir.absolute()),
            timeout_s=BUILD_TIMEOUT_S,
        )
    if done.returncode != 0:
        raise ServableUnavailableError(f"{reference} was not built: {last_line(done.stderr)}")
