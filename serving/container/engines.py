"""Docker or podman, whichever works here, and what they say."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
from collections.abc import Sequence
from typing import Any

from contract.errors import ServableUnavailableError

PROGRAMS = ("docker", "podman")
WAY_OUT = "or serve without a container, with the same flags: python -m serving embedded"

_INFO_TIMEOUT_S = 60.0
_CALL_TIMEOUT_S = 120.0


@dataclasses.dataclass(frozen=True, slots=True)
class ContainerEngine:
    """An engine that answers.

    Attributes:
        program: What is run: `docker` or `podman`.
        is_podman: Also true where `docker` is podman under another name.
        rootless: Whether containers are run without root on this host.
        machine: Architecture of what it runs on, as the engine calls it; "" if it doesn't say.
    """

    program: str
    is_podman: bool = False
    rootless: bool = False
    machine: str = ""

    def call(
        self, *arguments: str, timeout_s: float = _CALL_TIMEOUT_S
    ) -> subprocess.CompletedProcess[str]:
        """Runs one command of the engine to its end and returns what it printed.

        Raises:
            ServableUnavailableError: It does not end in time.
        """
        return call_program([self.program, *arguments], timeout_s)

    def start(self, *arguments: str, stdout: int | Any = None) -> subprocess.Popen[str]:
        """Starts a command that goes on, out of reach of the terminal's Ctrl-C."""
        return subprocess.Popen(
            [self.program, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            text=True,
            start_new_session=True,
        )


def call_program(command: Sequence[str], timeout_s: float) -> subprocess.CompletedProcess[str]:
    """Runs a program in a session of its own, so that Ctrl-C does not cut it in the middle.

    Raises:
        ServableUnavailableError: It does not end in time, or cannot be run.
    """
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
        raise ServableUnavailableError(
            f"`{' '.join(command[:3])}` did not end within {timeout_s:g} s; is the engine stuck?"
        ) from None
    except OSError as error:
        raise ServableUnavailableError(f"{command[0]}: {error.strerror or error}") from None


def find_engine(program: str = "") -> ContainerEngine:
    """The first engine that answers `info`; being on PATH is not enough.

    Args:
        program: The only one to try; docker, then podman without it.

    Raises:
        ServableUnavailableError: None answers; says why of each, and what to do.
    """
    reasons = []
    for name in [program] if program else PROGRAMS:
        found = _ask_for_info(name)
        if isinstance(found, ContainerEngine):
            return found
        reasons.append(f"{name}: {found}")
    raise ServableUnavailableError(
        f"no container engine works here ({'; '.join(reasons)}). "
        f"Install podman or docker and start it, {WAY_OUT}"
    )


def _ask_for_info(program: str) -> ContainerEngine | str:
    if shutil.which(program) is None:
        return "not installed"
    try:
        done = call_program([program, "info", "--format", "{{json .}}"], _INFO_TIMEOUT_S)
    except ServableUnavailableError as error:
        return error.message
    if done.returncode != 0:
        return last_line(done.stderr) or f"`{program} info` ended with {done.returncode}"
    try:
        info = json.loads(done.stdout)
    except ValueError:
        return f"`{program} info` answered no JSON"
    return _read_info(program, info)


def _read_info(program: str, info: dict[str, Any]) -> ContainerEngine | str:
    # Only podman nests its facts below "host"; `docker` may be podman's stand-in.
    if "host" in info:
        host = info["host"]
        rootless = bool(host.get("security", {}).get("rootless"))
        return ContainerEngine(program, True, rootless, str(host.get("arch", "")))
    if info.get("ServerErrors"):
        return str(info["ServerErrors"][0])
    options = info.get("SecurityOptions") or []
    rootless = any("name=rootless" in str(option) for option in options)
    return ContainerEngine(program, False, rootless, str(info.get("Architecture", "")))


def last_line(text: str) -> str:
    """What an engine gives as its reason: its last error, or else the last line."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    # podman's own log (time=… level=…) comes before and after the error, and names no cause.
    lines = [line for line in lines if not line.startswith("time=")] or lines
    errors = [line for line in lines if line.lower().startswith("error")]
    chosen = (errors or lines or [""])[-1]
    return chosen.removeprefix("Error: ").removeprefix("ERROR: ")
