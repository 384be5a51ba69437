"""A server in a container: started, waited for, followed, stopped and removed.

Why it did not start, or ended, is said in the container engine's words, with what to do.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Self, TypeAlias

import msgspec

from contract.console.progress import WaitingLine
from contract.errors import (
    ConfigError,
    PlumblineError,
    ServableNotFoundError,
    ServableUnavailableError,
)
from contract.servable import VersionState
from contract.wire.plumbline_wire import status_pb2
from contract.wire.rpc import GET_MODEL_STATUS, call_unary
from serving.addresses import join_address
from serving.config.server import ServerConfig
from serving.container.engine import WAY_OUT, ContainerEngine, ImageServer, last_line
from serving.container.plan import ContainerPlan

POLL_INTERVAL_S = 0.1
LOOK_AFTER_S = 0.5
"""How often the container engine is asked whether the container still runs."""

_STOPPED = ("exited", "dead", "stopped")

AVAILABLE = VersionState.AVAILABLE.name
WAITING = "not up yet"

_CALL_TIMEOUT_S = 2.0
_HEALTH_CHECK = ("python3", "/usr/local/lib/plumbline/healthcheck.py")
_LOADED = re.compile(r"Successfully loaded servable version \{name: (.+?) version: \d+\}")

ILLEGAL_INSTRUCTION = 132  # 128 + SIGILL
SEGMENTATION_FAULT = 139
KILLED = 137
LOG_LINES = 20

_PORT_IN_USE = re.compile(r"address already in use|port is already allocated", re.IGNORECASE)
_NAME_IN_USE = re.compile(r"name .* is already in use", re.IGNORECASE)
_NO_PROGRAM = re.compile(
    r"tensorflow_model_server.*(no such file|not found)|executable file .*not found", re.IGNORECASE
)
_ILLEGAL = re.compile(
    r"illegal instruction|uncaught target signal (4|6|11)|compiled to use \S+ instructions",
    re.IGNORECASE,
)
_FOREIGN = re.compile(r"exec format error", re.IGNORECASE)
_OLD_CPU = (
    "Illegal instruction: this CPU lacks what the image's TensorFlow is built for (AVX), or the "
    "image is of another architecture and emulated, as on ARM machines; "
    f"run an image built for this machine with --image, {WAY_OUT}"
)


class _State(msgspec.Struct, rename="pascal"):
    """What `inspect` says of a container."""

    status: str = ""
    exit_code: int = -1
    out_of_memory: bool = msgspec.field(name="OOMKilled", default=False)


@dataclasses.dataclass(slots=True)
class RunningContainer:
    """Owns one container from `run` to `rm`; a context manager that leaves none behind.

    Attributes:
        engine: What runs it.
        plan: What to run.
        image_name: For messages.
        stop_timeout_s: How long the server may drain.
        is_kept: Whether it is left running when the context ends.
    """

    engine: ContainerEngine
    plan: ContainerPlan
    image_name: str
    stop_timeout_s: float
    is_kept: bool = False

    @property
    def name(self) -> str:
        """Of the container."""
        return self.plan.name

    def __enter__(self) -> Self:
        self._remove_leftover()
        done = self.engine.call(*self.plan.command[1:])
        if done.returncode != 0:
            # What could not be started may have been made; but not where another has the name.
            if not is_name_in_use(done.stderr):
                self.engine.call("rm", "--force", self.name)
            raise explain_refusal(done.stderr, self.image_name)
        return self

    def __exit__(self, *_: object) -> None:
        if not self.is_kept:
            stop_container(self.engine, self.name, self.stop_timeout_s)

    def find_port(self, inside: int) -> int:
        """The port on this machine of a port inside."""
        done = self.engine.call("port", self.name, f"{inside}/tcp")
        try:
            return int(done.stdout.split()[0].rpartition(":")[2])
        except (IndexError, ValueError):
            self.check_running()
            raise ServableUnavailableError(
                f"{self.engine.program} does not say where port {inside} is: {done.stderr.strip()}"
            ) from None

    def wait_until_available(
        self, models: Sequence[str], probe: Probe, *, timeout_s: float
    ) -> None:
        """Waits until every model has a version that is AVAILABLE."""
        began = looked = time.monotonic()
        line = WaitingLine()
        while True:
            progress = {model: probe(model) for model in models}
            shown = ", ".join(
                f"{name}: {one.failure or one.state}" for name, one in progress.items()
            )
            waited = time.monotonic() - began
            line.show(shown, waited)
            if all(one.state == AVAILABLE for one in progress.values()):
                return line.end()
            if time.monotonic() - looked > LOOK_AFTER_S:
                looked = time.monotonic()
                self.check_running()
            failures = [f"{name}: {one.failure}" for name, one in progress.items() if one.failure]
            if failures:
                raise ServableUnavailableError(
                    f"no version can be served of {'; '.join(failures)}{quote_log(self.read_log())}"
                )
            if waited > timeout_s:
                raise ServableUnavailableError(
                    f"not every model is AVAILABLE after {timeout_s:g} s ({shown}); give it longer "
                    f"with --start_timeout_s{quote_log(self.read_log())}"
                )
            time.sleep(POLL_INTERVAL_S)

    def check_running(self) -> None:
        """Raises what ended the server, if it did."""
        done = self.engine.call("inspect", "--format", "{{json .State}}", self.name)
        if done.returncode != 0:
            raise ServableUnavailableError(f"somebody removed the container {self.name}")
        state = msgspec.json.decode(done.stdout, type=_State)
        if state.status in _STOPPED:
            raise explain_ending(state, self.read_log())

    def read_log(self) -> str:
        """What the server printed so far."""
        done = self.engine.call("logs", self.name)
        return done.stdout + done.stderr

    def follow(self) -> None:
        """Copies the server's log to stderr until it ends."""
        process = subprocess.Popen(
            [self.engine.program, "logs", "--follow", "--tail=0", self.name],
            stdin=subprocess.DEVNULL,
            stdout=sys.stderr,
            start_new_session=True,  # out of reach of the terminal's Ctrl-C
        )
        try:
            process.wait()
            self.engine.call("wait", self.name, timeout_s=10)
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
        self.check_running()
        raise ServableUnavailableError(f"lost sight of the container {self.name}")

    def _remove_leftover(self) -> None:
        done = self.engine.call("inspect", "--format", "{{.State.Status}}", self.name)
        if done.returncode == 0 and done.stdout.strip() in (*_STOPPED, "created"):
            self.engine.call("rm", "--force", self.name)


def stop_container(engine: ContainerEngine, name: str, timeout_s: float) -> None:
    """Lets the server drain, then removes the container; a second Ctrl-C removes it at once."""
    with contextlib.suppress(KeyboardInterrupt, ServableUnavailableError):
        engine.call("stop", "-t", str(int(timeout_s) + 5), name, timeout_s=timeout_s + 30)
    engine.call("rm", "--force", name)


def check_port_is_free(host: str, port: int, flag: str) -> None:
    """Refuses a port that another process holds, before an engine says so in its own words."""
    bare = host.strip("[]")
    family = socket.AF_INET6 if ":" in bare else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((bare, port))
        except PermissionError:
            return  # a low port: the container engine may be allowed what this process is not
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise ServableUnavailableError(
                    f"{join_address(host, port)} is in use; stop the server that holds it, or "
                    f"choose another --{flag} (-1 for any free one)"
                ) from None
            raise ConfigError(f"--host={host}: {error.strerror or error}") from None


@dataclasses.dataclass(frozen=True, slots=True)
class ModelProgress:
    """How far a model is.

    Attributes:
        state: `AVAILABLE`, another state of a version, or `not up yet`.
        failure: Why no version will become AVAILABLE, or "".
    """

    state: str
    failure: str = ""


Probe: TypeAlias = Callable[[str], ModelProgress]
"""Asks once how far the model of a name is."""


def choose_probe(
    config: ServerConfig,
    server: ImageServer,
    address: str,
    *,
    engine: ContainerEngine,
    container: str,
) -> Probe:
    """How to ask: with TLS only the server's own means know whom to trust."""
    if not config.tls:
        return partial(_ask_status, address, config.auth_tokens)
    if server is ImageServer.EMBEDDED:
        return partial(_run_health_check, engine, container)
    return partial(_search_log, engine, container)


def _ask_status(address: str, tokens: Sequence[str], model_name: str) -> ModelProgress:
    """Asks GetModelStatus over gRPC in the clear."""
    request = status_pb2.GetModelStatusRequest()
    request.model_spec.name = model_name
    metadata = [("authorization", f"Bearer {tokens[0]}")] if tokens else []
    try:
        answer = call_unary(
            address, GET_MODEL_STATUS, request, timeout_s=_CALL_TIMEOUT_S, metadata=metadata
        )
    except ServableNotFoundError:
        return ModelProgress("no version found yet")
    except PlumblineError:
        return ModelProgress(WAITING)
    return _summarize(answer)


def _summarize(answer: status_pb2.GetModelStatusResponse) -> ModelProgress:
    versions = sorted(answer.model_version_status, key=lambda one: one.version)
    states = [VersionState(one.state) for one in versions]
    if VersionState.AVAILABLE in states:
        return ModelProgress(AVAILABLE)
    failed = [
        one for one in versions if one.state == int(VersionState.END) and one.status.error_code
    ]
    if failed and len(failed) == len(versions):
        reasons = [f"version {one.version}: {one.status.error_message}" for one in failed]
        return ModelProgress(VersionState.END.name, "; ".join(reasons))
    listed = ", ".join(
        f"{one.version} {state.name}" for one, state in zip(versions, states, strict=True)
    )
    return ModelProgress(listed or "no version found yet")


def _run_health_check(engine: ContainerEngine, container: str, model_name: str) -> ModelProgress:
    """Runs the health check of Plumbline's own image inside: all models at once."""
    done = engine.call("exec", container, *_HEALTH_CHECK)
    return ModelProgress(AVAILABLE if done.returncode == 0 else WAITING)


def _search_log(engine: ContainerEngine, container: str, model_name: str) -> ModelProgress:
    """Reads TensorFlow Serving's log, where TLS keeps strangers from asking it."""
    done = engine.call("logs", container)
    loaded = set(_LOADED.findall(done.stdout + done.stderr))
    return ModelProgress(AVAILABLE if model_name in loaded else WAITING)


def is_name_in_use(stderr: str) -> bool:
    """Whether a `run` failed since another container has the name."""
    return bool(_NAME_IN_USE.search(stderr))


def explain_refusal(stderr: str, image: str) -> PlumblineError:
    """The error for a `run` that started nothing."""
    reason = last_line(stderr)
    if _PORT_IN_USE.search(stderr):
        return ServableUnavailableError(
            f"a port is in use: {reason}; stop the server that holds it, or choose others with "
            "--port and --rest_api_port (-1 for any free one)"
        )
    if is_name_in_use(stderr):
        return ServableUnavailableError(
            f"a container of this name is running: {reason}; end it with python -m serving stop, "
            "or choose another --name"
        )
    if _FOREIGN.search(stderr):
        return ServableUnavailableError(
            f"image {image} is built for another architecture and nothing emulates it here "
            f"({reason}); run one built for this machine with --image, {WAY_OUT}"
        )
    if _NO_PROGRAM.search(stderr):
        return ServableUnavailableError(
            f"image {image} holds no tensorflow_model_server and is none of Plumbline's own "
            f"({reason}); name a tensorflow/serving image with --image, {WAY_OUT}"
        )
    return ServableUnavailableError(f"the container did not start: {reason}. Mend that, {WAY_OUT}")


def explain_ending(state: _State, log: str) -> ServableUnavailableError:
    """The error for a server that ended by itself, with the last lines of its log."""
    code = state.exit_code
    if code == ILLEGAL_INSTRUCTION or _ILLEGAL.search(log):
        reason = _OLD_CPU
    elif _FOREIGN.search(log):
        reason = (
            f"the image is built for another architecture; name another with --image, {WAY_OUT}"
        )
    elif state.out_of_memory:
        reason = (
            "it was killed for lack of memory; give the container engine more, serve less, "
            f"{WAY_OUT}"
        )
    elif code == KILLED:
        reason = "it was killed from outside (stopped by someone, or out of memory)"
    elif code == SEGMENTATION_FAULT:
        reason = f"it crashed (segmentation fault, as emulators do on ARM); try another, {WAY_OUT}"
    else:
        reason = f"see its log; mend that, {WAY_OUT}"
    return ServableUnavailableError(
        f"the server in the container ended with exit code {code}: {reason}{quote_log(log)}"
    )


def quote_log(log: str) -> str:
    """The last lines of a log, set off."""
    lines = [line.rstrip() for line in log.splitlines() if line.strip()][-LOG_LINES:]
    if not lines:
        return "\nIts log is empty."
    return "\nThe last lines of its log:\n" + "\n".join(f"  | {line}" for line in lines)
