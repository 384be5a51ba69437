"""`python -m serving container`, TensorFlow Serving's image with its flags, and `serving stop`."""

from __future__ import annotations

import argparse
import logging
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeAlias

from contract.console.exits import ExitCode
from contract.console.terminal import print_json, remark, say
from contract.errors import ConfigError, ServableUnavailableError
from serving.addresses import Addresses, join_address, log_addresses, write_port_file
from serving.config.flags import FlagValue, ServerFlags, describe_flags, list_flags, parse_flags
from serving.config.server import ServerConfig, parse_config
from serving.container.engine import (
    ContainerEngine,
    Image,
    find_engine,
    find_image,
    name_default_image,
    require_image,
)
from serving.container.plan import CONTAINER_LABEL, GRPC_PORT, REST_PORT, ContainerPlan, make_plan
from serving.container.running import (
    RunningContainer,
    check_port_is_free,
    choose_probe,
    stop_container,
)

TAKES_FLAGS = True

START_TIMEOUT_S = 120.0
DRAIN_TIMEOUT_S = 30.0

logger = logging.getLogger(__name__)


def add_container_arguments(parser: argparse.ArgumentParser) -> None:
    """What only a container needs, beside the server's flags."""
    parser.add_argument(
        "--image", default="", help=f"image to run (default {name_default_image()})"
    )
    parser.add_argument(
        "--container_engine",
        choices=("docker", "podman"),
        default="",
        help="the container engine to use (default: the first that works)",
    )
    parser.add_argument("--name", default="", help="the container's name (default plumbline-PORT)")
    parser.add_argument(
        "--mount_dir",
        type=Path,
        action="append",
        default=[],
        metavar="DIR",
        help="one more folder that the server may read, for models configured later",
    )
    parser.add_argument(
        "--start_timeout_s",
        type=float,
        default=START_TIMEOUT_S,
        help=f"how long to wait until every model is AVAILABLE (default {START_TIMEOUT_S:g})",
    )
    parser.add_argument(
        "--detach", action="store_true", help="leave it running; python -m serving stop ends it"
    )
    parser.add_argument(
        "--dry_run", action="store_true", help="print the command that would be run, and end"
    )
    parser.add_argument("--json", action="store_true", help="print the addresses as JSON")


def describe() -> str:
    """The server's flags, for `--help`."""
    return "the server's flags:\n" + describe_flags(list_flags(ServerFlags), "container")


_MakePlan: TypeAlias = Callable[[Image, ContainerEngine], ContainerPlan]
"""How an image is run for what was asked."""


def run_container(arguments: argparse.Namespace) -> int:
    """Serves until a signal; returns the exit code."""
    given, _ = parse_flags(arguments.flags, list_flags(ServerFlags))
    config = parse_config(arguments.flags + _find_baked_model(arguments, given))
    logging.basicConfig(
        stream=sys.stderr, level=config.log_level.upper(), format="%(levelname).1s %(message)s"
    )
    for one in config.unknown_flags:
        logger.warning("%s", one)
    make = partial(make_plan, config, given, name=arguments.name, mount_dirs=arguments.mount_dir)
    try:
        if arguments.dry_run:
            return _print_command(arguments, make)
        return _serve(arguments, config, make)
    except ServableUnavailableError as error:
        remark(f"error: {error.message}")
        return ExitCode.UNREACHABLE


_WHAT_TO_SERVE = {"model_base_path", "model_config_file", "models_base_path"}
"""Flags that say which models there are."""


def _find_baked_model(arguments: argparse.Namespace, given: dict[str, FlagValue]) -> list[str]:
    """Flags of the model in the image, where the user names none."""
    if not arguments.image or _WHAT_TO_SERVE & given.keys():
        return []
    try:
        image = find_image(find_engine(arguments.container_engine), arguments.image)
    except ServableUnavailableError:
        return []  # said again where it ends the command
    return image.model_flags if image else []


def _print_command(arguments: argparse.Namespace, make: _MakePlan) -> ExitCode:
    name = arguments.image or name_default_image()
    try:
        engine = find_engine(arguments.container_engine)
        image = find_image(engine, name) or Image(name)
    except ServableUnavailableError as error:
        logger.warning("%s", error.message)
        engine, image = ContainerEngine(arguments.container_engine or "docker"), Image(name)
    plan = make(image, engine)
    if arguments.json:
        print_json(plan.command, indent=None)
    else:
        say(plan.describe())
    return ExitCode.DONE


def _serve(arguments: argparse.Namespace, config: ServerConfig, make: _MakePlan) -> ExitCode:
    engine = find_engine(arguments.container_engine)
    image = require_image(engine, arguments.image or name_default_image())
    plan = make(image, engine)
    for flag, port in (("port", config.port), ("rest_api_port", config.rest_api_port)):
        if port > 0:
            check_port_is_free(config.host, port, flag)
    logger.info("starting %s as %s with %s", image.name, plan.name, engine.program)
    container = RunningContainer(engine, plan, image.name, stop_timeout_s=config.drain_timeout_s)
    serving = False
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C
    try:
        with container:
            addresses = Addresses(
                host=config.host,
                grpc_port=container.find_port(GRPC_PORT) if config.port else 0,
                rest_port=container.find_port(REST_PORT) if config.rest_api_port else 0,
                socket_path=config.grpc_socket_path,
            )
            target = _choose_target(addresses)
            probe = choose_probe(
                config, image.server, target, engine=engine, container=container.name
            )
            models = [model.name for model in config.models]
            container.wait_until_available(models, probe, timeout_s=arguments.start_timeout_s)
            serving = True
            _announce(arguments, config, addresses)
            if arguments.detach:
                container.is_kept = True
                logger.info("left running; python -m serving stop %s ends it", container.name)
                return ExitCode.DONE
            container.follow()
    except KeyboardInterrupt:
        logger.info("stopped and removed the container %s", container.name)
        return ExitCode.DONE if serving else ExitCode.INTERRUPTED
    return ExitCode.DONE


def _choose_target(addresses: Addresses) -> str:
    if not addresses.grpc_port:
        return f"unix:{Path(addresses.socket_path).absolute()}"
    everywhere = dict.fromkeys(("0.0.0.0", "::", "[::]"), "127.0.0.1")
    return join_address(everywhere.get(addresses.host, addresses.host), addresses.grpc_port)


def _announce(arguments: argparse.Namespace, config: ServerConfig, addresses: Addresses) -> None:
    log_addresses(addresses)
    if config.port_file:
        write_port_file(Path(config.port_file), addresses)
    if arguments.json:
        found = {"grpc_port": addresses.grpc_port, "rest_port": addresses.rest_port}
        print_json({"host": addresses.host, **found}, indent=None)  # a line, as it serves on


def add_stop_arguments(parser: argparse.ArgumentParser) -> None:
    """Which one, and how long it may take."""
    parser.add_argument("names", nargs="*", metavar="NAME", help="containers (default: the one)")
    parser.add_argument("--all", action="store_true", help="every one that serving started")
    parser.add_argument("--container_engine", choices=("docker", "podman"), default="")
    parser.add_argument("--drain_timeout_s", type=float, default=DRAIN_TIMEOUT_S)


def run_stop(arguments: argparse.Namespace) -> int:
    """Stops and removes them; returns the exit code."""
    try:
        engine = find_engine(arguments.container_engine)
        label = f"--filter=label={CONTAINER_LABEL}"
        done = engine.call("ps", "--all", label, "--format={{.Names}}")
        for name in _choose(arguments, done.stdout.split()):
            stop_container(engine, name, arguments.drain_timeout_s)
            say(name)
    except ServableUnavailableError as error:
        remark(f"error: {error.message}")
        return ExitCode.UNREACHABLE
    return ExitCode.DONE


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
