"""Which image to run: what its server honours, and how it gets onto this machine."""

from __future__ import annotations

import dataclasses
import enum
import importlib.metadata
import json
import logging
import re
from typing import Any

from contract.errors import ServableUnavailableError
from serving.container.engines import WAY_OUT, ContainerEngine, last_line

SERVER_LABEL = "plumbline.server"
"""Label of an image; its value `embedded` says that Plumbline's own server is inside."""

MODEL_LABEL = "plumbline.model_name"
"""Label of an image that holds a version of this model."""

MODELS_FOLDER = "/models"
"""Where images hold models, as tensorflow/serving does."""

REPOSITORY = "tensorflow/serving"
FALLBACK_VERSION = "2.21.0"
"""Of TensorFlow Serving, where tensorflow-serving-api is not installed; see requirements.lock."""

PULL_TIMEOUT_S = 1800.0

_MACHINES = {"x86_64": "amd64", "aarch64": "arm64", "arm64": "arm64", "amd64": "amd64"}
_OFFLINE = re.compile(
    "no such host|connection refused|network is unreachable|i/o timeout|no route to host"
    "|temporary failure in name resolution|server misbehaving|x509|certificate"
    "|deadline exceeded|request canceled|EOF",
    re.IGNORECASE,
)
_NO_BUILD = re.compile("no matching manifest|no image found in .*for architecture", re.IGNORECASE)

logger = logging.getLogger(__name__)


class ImageServer(enum.Enum):
    """The server inside an image."""

    TENSORFLOW_SERVING = "tensorflow_serving"
    EMBEDDED = "embedded"


@dataclasses.dataclass(frozen=True, slots=True)
class Image:
    """An image to run.

    Attributes:
        name: Its reference.
        server: What is inside.
        machine: The architecture it is built for; "" when unknown.
        model_name: The model that is baked in, or "".
    """

    name: str
    server: ImageServer = ImageServer.TENSORFLOW_SERVING
    machine: str = ""
    model_name: str = ""

    @property
    def model_flags(self) -> list[str]:
        """Flags that serve what is baked in."""
        if not self.model_name:
            return []
        base_path = f"{MODELS_FOLDER}/{self.model_name}"
        return [f"--model_name={self.model_name}", f"--model_base_path={base_path}"]


def name_default_image() -> str:
    """`tensorflow/serving`, of the version that the installed tensorflow-serving-api has."""
    try:
        version = importlib.metadata.version("tensorflow-serving-api")
    except importlib.metadata.PackageNotFoundError:
        version = FALLBACK_VERSION
    return f"{REPOSITORY}:{version}"


def find_image(engine: ContainerEngine, name: str) -> Image | None:
    """The image, if it is on this machine."""
    for reference in dict.fromkeys((name, _qualify(engine, name))):
        done = engine.call("image", "inspect", "--format", "{{json .}}", reference)
        if done.returncode == 0:
            return _read_image(reference, json.loads(done.stdout))
    return None


def require_image(engine: ContainerEngine, name: str) -> Image:
    """The image, pulled if it is not on this machine.

    Raises:
        ServableUnavailableError: It cannot be pulled: no network, no such image, no build for
            this machine.
    """
    found = find_image(engine, name)
    if found is None:
        _pull(engine, _qualify(engine, name))
        found = find_image(engine, name)
    if found is None:
        raise ServableUnavailableError(f"{engine.program} pulled {name} and does not find it")
    _warn_of_emulation(engine, found)
    return found


def _pull(engine: ContainerEngine, reference: str) -> None:
    logger.info("image %s is not on this machine: pulling it", reference)
    done = engine.call("pull", "--quiet", reference, timeout_s=PULL_TIMEOUT_S)
    if done.returncode == 0:
        return
    reason = last_line(done.stderr)
    if _NO_BUILD.search(done.stderr):
        advice = (
            f"There is no build of it for {engine.machine or 'this machine'}; build one, {WAY_OUT}"
        )
    elif _OFFLINE.search(done.stderr):
        advice = (
            "Its registry cannot be reached: connect, copy the image "
            f"here (`{engine.program} save` there, `{engine.program} load` here), {WAY_OUT}"
        )
    else:
        advice = f"Check the name, log in to its registry, name another with --image, {WAY_OUT}"
    raise ServableUnavailableError(
        f"image {reference} is not on this machine and cannot be pulled: {reason}. {advice}"
    )


def _qualify(engine: ContainerEngine, name: str) -> str:
    """The name as docker would read it: podman knows no default registry."""
    first, slash, _ = name.partition("/")
    if not engine.is_podman or (slash and ("." in first or ":" in first or first == "localhost")):
        return name
    return f"docker.io/{name}" if slash else f"docker.io/library/{name}"


def _read_image(reference: str, document: Any) -> Image:
    # podman answers a list in some releases.
    facts: dict[str, Any] = document[0] if isinstance(document, list) else document
    labels = (facts.get("Config") or {}).get("Labels") or facts.get("Labels") or {}
    embedded = labels.get(SERVER_LABEL) == ImageServer.EMBEDDED.value
    server = ImageServer.EMBEDDED if embedded else ImageServer.TENSORFLOW_SERVING
    return Image(
        reference, server, str(facts.get("Architecture", "")), str(labels.get(MODEL_LABEL, ""))
    )


def is_emulated(engine: ContainerEngine, image: Image) -> bool:
    """Whether the image is built for another architecture than the engine's machine."""
    host, built = _MACHINES.get(engine.machine, ""), _MACHINES.get(image.machine, "")
    return bool(host and built and host != built)


def _warn_of_emulation(engine: ContainerEngine, image: Image) -> None:
    if is_emulated(engine, image):
        logger.warning(
            "image %s is built for %s and this machine is %s: it is emulated, slow, and may end "
            "with an illegal instruction; python -m serving embedded runs natively",
            image.name,
            image.machine,
            engine.machine,
        )
