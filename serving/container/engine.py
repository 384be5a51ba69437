"""The container engine, docker or podman, whichever works here; and the image that it runs."""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import importlib.metadata
import logging
import os
import re
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable

import msgspec

from contract.console.progress import show_progress
from contract.errors import ServableUnavailableError

SERVER_LABEL = "plumbline.server"
"""Label of an image; its value `embedded` says that Plumbline's own server is inside."""

MODEL_LABEL = "plumbline.model_name"
"""Label of an image that holds a version of this model."""

MODELCAR_LABEL = "plumbline.modelcar"
"""Label of an image that holds a version and no server."""

MODELS_FOLDER = "/models"
"""Where images hold models, as tensorflow/serving does."""

REPOSITORY = "tensorflow/serving"
FALLBACK_VERSION = "2.21.0"
"""Of TensorFlow Serving, where tensorflow-serving-api is not installed; see requirements.lock."""

PULL_TIMEOUT_S = 1800.0

PROGRAMS = ("docker", "podman")
WAY_OUT = "or serve without a container, with the same flags: python -m serving embedded"

_INFO_TIMEOUT_S = 60.0
_CALL_TIMEOUT_S = 120.0
_MACHINES = {"x86_64": "amd64", "aarch64": "arm64", "arm64": "arm64", "amd64": "amd64"}
_OFFLINE = re.compile(
    "no such host|connection refused|network is unreachable|i/o timeout|no route to host"
    "|temporary failure in name resolution|server misbehaving|x509|certificate"
    "|deadline exceeded|request canceled|EOF",
    re.IGNORECASE,
)
_NO_BUILD = re.compile("no matching manifest|no image found in .*for architecture", re.IGNORECASE)

_LAYER = re.compile("[0-9a-f]{6,64}")
_LAYER_IS_THERE = frozenset({"Pull complete", "Already exists"})

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, slots=True)
class ContainerEngine:
    """A container engine that answers.

    Attributes:
        program: What is run: `docker` or `podman`.
        is_podman: Also true where `docker` is podman under another name.
        rootless: Whether containers are run without root on this host.
        machine: Architecture of what it runs on, as it calls it; "" if it doesn't say.
    """

    program: str
    is_podman: bool = False
    rootless: bool = False
    machine: str = ""

    def call(
        self, *arguments: str, timeout_s: float = _CALL_TIMEOUT_S
    ) -> subprocess.CompletedProcess[str]:
        """Runs one of its commands to its end, out of reach of the terminal's Ctrl-C."""
        command = [self.program, *arguments]
        try:
            return subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=timeout_s,
                start_new_session=True,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise _make_stuck_error(command, timeout_s) from None
        except OSError as error:
            raise ServableUnavailableError(f"{self.program}: {error.strerror or error}") from None

    def follow(
        self, *arguments: str, on_line: Callable[[str], None], timeout_s: float
    ) -> subprocess.CompletedProcess[str]:
        """Runs one of its commands and tells every line as it is written; else as `call` does."""
        command = [self.program, *arguments]
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                start_new_session=True,
            )
        except OSError as error:
            raise ServableUnavailableError(f"{self.program}: {error.strerror or error}") from None
        assert process.stdout is not None
        limit = threading.Timer(timeout_s, _kill_group, (process.pid,))
        limit.daemon = True
        limit.start()
        lines = []
        try:
            with process.stdout as stream:
                for line in stream:
                    lines.append(line)
                    on_line(line.strip())
            process.wait()
        finally:
            is_late = not limit.is_alive()
            limit.cancel()
            if process.poll() is None:
                _kill_group(process.pid)
            process.wait()
        if is_late:
            raise _make_stuck_error(command, timeout_s)
        return subprocess.CompletedProcess(command, process.returncode, "", "".join(lines))


def _kill_group(leader: int) -> None:
    """Ends a process and what it started, which would hold its pipe open."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGKILL)


def _make_stuck_error(command: list[str], timeout_s: float) -> ServableUnavailableError:
    return ServableUnavailableError(
        f"`{' '.join(command[:3])}` did not end within {timeout_s:g} s; is the container "
        "engine stuck?"
    )


def find_engine(program: str = "", *, way_out: str = f", {WAY_OUT}") -> ContainerEngine:
    """The first engine that answers `info`; being on PATH is not enough.

    `way_out` ends the advice: what else there is, for whoever cannot follow it.
    """
    reasons = []
    for name in [program] if program else PROGRAMS:
        found = _ask_for_info(name)
        if isinstance(found, ContainerEngine):
            return found
        reasons.append(f"{name}: {found}")
    raise ServableUnavailableError(
        f"no container engine works here ({'; '.join(reasons)}). "
        f"Install podman or docker and start it{way_out}"
    )


def _ask_for_info(program: str) -> ContainerEngine | str:
    """The engine, or why it does not work."""
    if shutil.which(program) is None:
        return "not installed"
    engine = ContainerEngine(program)
    try:
        done = engine.call("info", "--format", "{{json .}}", timeout_s=_INFO_TIMEOUT_S)
    except ServableUnavailableError as error:
        return error.message
    if done.returncode != 0:
        return last_line(done.stderr) or f"`{program} info` ended with {done.returncode}"
    try:
        info = msgspec.json.decode(done.stdout, type=_Info)
    except msgspec.DecodeError:
        return f"`{program} info` answered no JSON"
    if info.host is not None:  # `docker` may be podman's stand-in
        return ContainerEngine(program, True, info.host.security.rootless, info.host.arch)
    if info.server_errors:
        return info.server_errors[0]
    rootless = any("name=rootless" in option for option in info.security_options or ())
    return ContainerEngine(program, False, rootless, info.architecture)


class _Security(msgspec.Struct):
    rootless: bool = False


class _Host(msgspec.Struct):
    arch: str = ""
    security: _Security = msgspec.field(default_factory=_Security)


class _Info(msgspec.Struct, rename="pascal"):
    """What `info` answers: docker in its own fields, podman below `host`."""

    host: _Host | None = msgspec.field(name="host", default=None)
    architecture: str = ""
    security_options: list[str] | None = None
    server_errors: list[str] | None = None


def last_line(text: str) -> str:
    """What a container engine gives as its reason: its last error, or else the last line."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    # podman's own log (time=… level=…) comes before and after the error, and names no cause.
    lines = [line for line in lines if not line.startswith("time=")] or lines
    errors = [line for line in lines if line.lower().startswith("error")]
    chosen = (errors or lines or [""])[-1]
    return chosen.removeprefix("Error: ").removeprefix("ERROR: ")


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
        is_modelcar: Whether there is no server inside: KServe mounts it.
    """

    name: str
    server: ImageServer = ImageServer.TENSORFLOW_SERVING
    machine: str = ""
    model_name: str = ""
    is_modelcar: bool = False

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
            return _read_image(reference, done.stdout)
    return None


def require_image(engine: ContainerEngine, name: str, *, way_out: str = f", {WAY_OUT}") -> Image:
    """The image, pulled if it is not on this machine."""
    found = find_image(engine, name)
    if found is None:
        _pull(engine, _qualify(engine, name), way_out)
        found = find_image(engine, name)
    if found is None:
        raise ServableUnavailableError(f"{engine.program} pulled {name} and does not find it")
    _warn_of_emulation(engine, found)
    return found


def _pull(engine: ContainerEngine, reference: str, way_out: str) -> None:
    logger.info("image %s is not on this machine: pulling it", reference)
    layers: dict[str, bool] = {}
    with show_progress(f"pull {reference}", unit="", is_kept=False) as progress:

        def tell(line: str) -> None:
            layer, _, state = line.partition(": ")
            if _LAYER.fullmatch(layer) and state:  # docker's; podman writes sentences
                layers[layer] = layers.get(layer, False) or state in _LAYER_IS_THERE
                progress.expect(len(layers))
                progress.reach(sum(layers.values()))
                progress.note = f"{sum(layers.values())} of {len(layers)} layers"
            else:
                progress.note = line

        done = engine.follow("pull", reference, on_line=tell, timeout_s=PULL_TIMEOUT_S)
    if done.returncode == 0:
        return
    reason = last_line(done.stderr)
    if _NO_BUILD.search(done.stderr):
        advice = (
            f"There is no build of it for {engine.machine or 'this machine'}; build one{way_out}"
        )
    elif _OFFLINE.search(done.stderr):
        advice = (
            "Its registry cannot be reached: connect, copy the image "
            f"here (`{engine.program} save` there, `{engine.program} load` here){way_out}"
        )
    else:
        advice = f"Check the name, log in to its registry, name another with --image{way_out}"
    raise ServableUnavailableError(
        f"image {reference} is not on this machine and cannot be pulled: {reason}. {advice}"
    )


def _qualify(engine: ContainerEngine, name: str) -> str:
    """The name as docker would read it: podman knows no default registry."""
    first, slash, _ = name.partition("/")
    if not engine.is_podman or (slash and ("." in first or ":" in first or first == "localhost")):
        return name
    return f"docker.io/{name}" if slash else f"docker.io/library/{name}"


class _ImageConfig(msgspec.Struct, rename="pascal"):
    labels: dict[str, str] | None = None


class _ImageFacts(msgspec.Struct, rename="pascal"):
    """What `image inspect` answers."""

    architecture: str = ""
    config: _ImageConfig | None = None
    labels: dict[str, str] | None = None


def _read_image(reference: str, answer: str) -> Image:
    # podman answers a list in some releases.
    found = msgspec.json.decode(answer, type=list[_ImageFacts] | _ImageFacts)
    facts = found[0] if isinstance(found, list) else found
    labels = (facts.config and facts.config.labels) or facts.labels or {}
    embedded = labels.get(SERVER_LABEL) == ImageServer.EMBEDDED.value
    server = ImageServer.EMBEDDED if embedded else ImageServer.TENSORFLOW_SERVING
    return Image(
        reference,
        server,
        facts.architecture,
        labels.get(MODEL_LABEL, ""),
        is_modelcar=MODELCAR_LABEL in labels,
    )


def _warn_of_emulation(engine: ContainerEngine, image: Image) -> None:
    host, built = _MACHINES.get(engine.machine), _MACHINES.get(image.machine)
    if host and built and host != built:
        logger.warning(
            "image %s is built for %s and this machine is %s: it is emulated, slow, and may end "
            "with an illegal instruction; python -m serving embedded runs natively",
            image.name,
            image.machine,
            engine.machine,
        )
