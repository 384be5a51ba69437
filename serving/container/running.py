"""A server in a container: started, waited for, followed, stopped and removed."""

from __future__ import annotations

import contextlib
import errno
import json
import socket
import sys
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from contract.console.terminal import WaitingLine
from contract.errors import ConfigError, ServableUnavailableError
from serving.announcement import join_address
from serving.container.engines import ContainerEngine
from serving.container.faults import (
    Ending,
    explain_ending,
    explain_refusal,
    is_name_in_use,
    quote_log,
)
from serving.container.plan import ContainerPlan
from serving.container.probes import AVAILABLE, ModelProgress, Probe

POLL_INTERVAL_S = 0.1
LOOK_AFTER_S = 0.5
"""How often the engine is asked whether the container still runs."""

_STOPPED = ("exited", "dead", "stopped")


class RunningContainer:
    """Owns one container from `run` to `rm`; a context manager that leaves none behind.

    Args:
        engine: What runs it.
        plan: What to run.
        image_name: For messages.
        stop_timeout_s: How long the server may drain.
    """

    def __init__(
        self,
        engine: ContainerEngine,
        plan: ContainerPlan,
        image_name: str,
        *,
        stop_timeout_s: float,
    ) -> None:
        self._engine = engine
        self._plan = plan
        self._image_name = image_name
        self._stop_timeout_s = stop_timeout_s
        self._kept = False

    @property
    def name(self) -> str:
        """Of the container."""
        return self._plan.name

    def __enter__(self) -> Self:
        self._remove_leftover()
        done = self._engine.call(*self._plan.command[1:])
        if done.returncode != 0:
            # What could not be started may have been made; but not where another has the name.
            if not is_name_in_use(done.stderr):
                self._engine.call("rm", "--force", self.name)
            raise explain_refusal(done.stderr, self._image_name)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if not self._kept:
            stop_container(self._engine, self.name, self._stop_timeout_s)

    def keep(self) -> None:
        """Leaves it running when the context ends."""
        self._kept = True

    def find_port(self, inside: int) -> int:
        """The port on this machine of a port inside.

        Raises:
            ServableUnavailableError: It is not published, or the server has ended.
        """
        done = self._engine.call("port", self.name, f"{inside}/tcp")
        try:
            return int(done.stdout.split()[0].rpartition(":")[2])
        except (IndexError, ValueError):
            self.check_running()
            raise ServableUnavailableError(
                f"{self._engine.program} does not say where port {inside} is: {done.stderr.strip()}"
            ) from None

    def wait_until_available(
        self, models: Sequence[str], probe: Probe, *, timeout_s: float
    ) -> None:
        """Waits until every model has a version that is AVAILABLE.

        Raises:
            ServableUnavailableError: The server ended, a model failed, or time is up; the last
                lines of the log are in the message.
        """
        began = looked = time.monotonic()
        line = WaitingLine()
        while True:
            progress = {model: probe.look(model) for model in models}
            waited = time.monotonic() - began
            line.show(describe_progress(progress), waited)
            if all(one.state == AVAILABLE for one in progress.values()):
                return line.end()
            if time.monotonic() - looked > LOOK_AFTER_S:
                looked = time.monotonic()
                self.check_running()
            self._check_failures(progress)
            if waited > timeout_s:
                raise ServableUnavailableError(
                    f"not every model is AVAILABLE after {timeout_s:g} s ("
                    + describe_progress(progress)
                    + "); give it longer with --start_timeout_s"
                    + quote_log(self.read_log())
                )
            time.sleep(POLL_INTERVAL_S)

    def _check_failures(self, progress: dict[str, ModelProgress]) -> None:
        failures = [f"{name}: {one.failure}" for name, one in progress.items() if one.failure]
        if failures:
            raise ServableUnavailableError(
                f"no version can be served of {'; '.join(failures)}{quote_log(self.read_log())}"
            )

    def check_running(self) -> None:
        """Raises what ended the server, if it did.

        Raises:
            ServableUnavailableError: It ended, or somebody removed it.
        """
        done = self._engine.call("inspect", "--format", "{{json .State}}", self.name)
        if done.returncode != 0:
            raise ServableUnavailableError(f"somebody removed the container {self.name}")
        state = json.loads(done.stdout)
        if str(state.get("Status", "")) in _STOPPED:
            out_of_memory = bool(state.get("OOMKilled"))
            ending = Ending(int(state.get("ExitCode", -1)), self.read_log(), out_of_memory)
            raise explain_ending(ending)

    def read_log(self) -> str:
        """What the server printed so far."""
        done = self._engine.call("logs", self.name)
        return done.stdout + done.stderr

    def follow(self) -> None:
        """Copies the server's log to stderr until it ends.

        Raises:
            ServableUnavailableError: Always, once the server has ended: nobody asked it to.
        """
        process = self._engine.start("logs", "--follow", "--tail=0", self.name, stdout=sys.stderr)
        try:
            process.wait()
            self._engine.call("wait", self.name, timeout_s=10)
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
        self.check_running()
        raise ServableUnavailableError(f"lost sight of the container {self.name}")

    def _remove_leftover(self) -> None:
        done = self._engine.call("inspect", "--format", "{{.State.Status}}", self.name)
        if done.returncode == 0 and done.stdout.strip() in (*_STOPPED, "created"):
            self._engine.call("rm", "--force", self.name)


def stop_container(engine: ContainerEngine, name: str, timeout_s: float) -> None:
    """Lets the server drain, then removes the container; a second Ctrl-C removes it at once."""
    with contextlib.suppress(KeyboardInterrupt, ServableUnavailableError):
        engine.call("stop", "-t", str(int(timeout_s) + 5), name, timeout_s=timeout_s + 30)
    engine.call("rm", "--force", name)


def check_port_is_free(host: str, port: int, flag: str) -> None:
    """Refuses a port that another process holds, before an engine says so in its own words.

    Raises:
        ServableUnavailableError: The port is in use.
        ConfigError: The host is no address of this machine.
    """
    bare = host.strip("[]")
    family = socket.AF_INET6 if ":" in bare else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((bare, port))
        except PermissionError:
            return  # a low port: the engine may be allowed what this process is not
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise ServableUnavailableError(
                    f"{join_address(host, port)} is in use; stop the server that holds it, or "
                    f"choose another --{flag} (-1 for any free one)"
                ) from None
            raise ConfigError(f"--host={host}: {error.strerror or error}") from None


def describe_progress(progress: dict[str, ModelProgress]) -> str:
    """One line: each model and its state."""
    return ", ".join(f"{name}: {one.failure or one.state}" for name, one in progress.items())
