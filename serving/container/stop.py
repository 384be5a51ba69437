"""`python -m serving stop`: end what `serving container --detach` left running."""

from __future__ import annotations

import argparse

from contract.console.exits import ExitCode
from contract.console.terminal import remark, say
from contract.errors import ConfigError, ServableUnavailableError
from serving.container.engines import ContainerEngine, find_engine
from serving.container.plan import CONTAINER_LABEL
from serving.container.running import stop_container

DRAIN_TIMEOUT_S = 30.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which one, and how long it may take."""
    parser.add_argument("names", nargs="*", metavar="NAME", help="containers (default: the one)")
    parser.add_argument("--all", action="store_true", help="every one that serving started")
    parser.add_argument("--container_engine", choices=("docker", "podman"), default="")
    parser.add_argument("--drain_timeout_s", type=float, default=DRAIN_TIMEOUT_S)


def run(arguments: argparse.Namespace) -> int:
    """Stops and removes them; returns the exit code.

    Raises:
        ConfigError: None or several run and no name was given, or a name is unknown.
    """
    try:
        engine = find_engine(arguments.container_engine)
        for name in _choose(arguments, _list_names(engine)):
            stop_container(engine, name, arguments.drain_timeout_s)
            say(name)
    except ServableUnavailableError as error:
        remark(f"error: {error.message}")
        return ExitCode.UNREACHABLE
    return ExitCode.DONE


def _list_names(engine: ContainerEngine) -> list[str]:
    done = engine.call("ps", "--all", f"--filter=label={CONTAINER_LABEL}", "--format={{.Names}}")
    return done.stdout.split()


def _choose(arguments: argparse.Namespace, running: list[str]) -> list[str]:
    if arguments.all:
        return running
    listed = ", ".join(running) or "none"
    unknown = [name for name in arguments.names if name not in running]
    if unknown:
        raise ConfigError(f"{unknown[0]} was not started by `serving container`; running: {listed}")
    if arguments.names:
        return list(arguments.names)
    if len(running) != 1:
        raise ConfigError(f"name the container to stop, or --all; running: {listed}")
    return running
