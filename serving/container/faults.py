"""Why a container did not start or ended: the engine's words, and what to do."""

from __future__ import annotations

import dataclasses
import re

from contract.errors import PlumblineError, ServableUnavailableError
from serving.container.engines import WAY_OUT, last_line

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


@dataclasses.dataclass(frozen=True, slots=True)
class Ending:
    """How a container ended.

    Attributes:
        exit_code: 128 + the signal's number where a signal ended it.
        log: What it printed, both streams.
        out_of_memory: Whether the kernel killed it for that.
    """

    exit_code: int
    log: str
    out_of_memory: bool = False


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


def explain_ending(ending: Ending) -> ServableUnavailableError:
    """The error for a server that ended by itself, with the last lines of its log."""
    code = ending.exit_code
    if code == ILLEGAL_INSTRUCTION or _ILLEGAL.search(ending.log):
        reason = _OLD_CPU
    elif _FOREIGN.search(ending.log):
        reason = (
            f"the image is built for another architecture; name another with --image, {WAY_OUT}"
        )
    elif ending.out_of_memory:
        reason = f"it was killed for lack of memory; give the engine more, serve less, {WAY_OUT}"
    elif code == KILLED:
        reason = "it was killed from outside (stopped by someone, or out of memory)"
    elif code == SEGMENTATION_FAULT:
        reason = f"it crashed (segmentation fault, as emulators do on ARM); try another, {WAY_OUT}"
    else:
        reason = f"see its log; mend that, {WAY_OUT}"
    return ServableUnavailableError(
        f"the server in the container ended with exit code {code}: {reason}{quote_log(ending.log)}"
    )


def quote_log(log: str) -> str:
    """The last lines of a log, set off."""
    lines = [line.rstrip() for line in log.splitlines() if line.strip()][-LOG_LINES:]
    if not lines:
        return "\nIts log is empty."
    return "\nThe last lines of its log:\n" + "\n".join(f"  | {line}" for line in lines)
