"""The `run` command: everything that is decided before a container is started."""

from __future__ import annotations

import dataclasses
import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from serving.config import ServerConfig
from serving.container.engines import ContainerEngine
from serving.container.images import MODELS_FOLDER, Image, ImageServer
from serving.container.mounts import (
    CONFIG_FOLDER,
    Mount,
    list_base_path_mounts,
    list_file_mounts,
    list_socket_mounts,
)
from serving.container.server_flags import (
    GRPC_PORT,
    REST_PORT,
    list_environment,
    list_server_flags,
)
from serving.flag_parsing import FlagValue

CONTAINER_LABEL = "plumbline.container=serving"
"""By which `python -m serving stop` finds what it may stop."""

MONITORING_CONFIG = Path(__file__).with_name("monitoring.config")
TEMPORARY_FOLDER = "--tmpfs=/tmp:rw,nosuid,nodev,noexec,size=64m"

_SELINUX = Path("/sys/fs/selinux/enforce")


@dataclasses.dataclass(frozen=True, slots=True)
class ContainerPlan:
    """A container to start.

    Attributes:
        name: Of the container.
        command: The whole `run` command, the engine's program first.
    """

    name: str
    command: tuple[str, ...]

    def describe(self) -> str:
        """The command for a shell, one option a line."""
        return " \\\n  ".join([" ".join(self.command[:2]), *map(shlex.quote, self.command[2:])])


def make_plan(
    config: ServerConfig,
    given: Mapping[str, FlagValue],
    image: Image,
    engine: ContainerEngine,
    *,
    name: str = "",
    mount_dirs: Sequence[Path] = (),
) -> ContainerPlan:
    """Decides how the server is run.

    Args:
        config: What the user asked for.
        given: The flags the user wrote, by name.
        image: What to run.
        engine: What runs it.
        name: Of the container; one made from the port without it.
        mount_dirs: More folders that the server may read.

    Raises:
        ConfigError: A path cannot be read, or a flag asks for what the image cannot give.
    """
    chosen = name or f"plumbline-{config.port if config.port > 0 else os.getpid()}"
    mounts = list_base_path_mounts(_list_outer_base_paths(config, image), mount_dirs)
    files, paths = list_file_mounts(config)
    mounts += files + list_socket_mounts(config)
    stock = image.server is ImageServer.TENSORFLOW_SERVING
    if stock and config.rest_api_port and "monitoring_config_file" not in paths:
        target = CONFIG_FOLDER / "monitoring_config_file"  # metrics on, as in the embedded server
        mounts.append(Mount(MONITORING_CONFIG, target))
        paths["monitoring_config_file"] = str(target)
    flags = list_server_flags(config, given, image.server, paths)
    command = [
        *(engine.program, "run", "--detach", f"--name={chosen}", f"--label={CONTAINER_LABEL}"),
        *_list_confinements(engine),
        *_list_ports(config),
        *(mount.describe() for mount in mounts),
        *(f"--env={variable}" for variable in list_environment(config, image.server)),
        *_list_endings(config, image),
        image.name,
        *flags,
    ]
    return ContainerPlan(chosen, tuple(command))


def _list_outer_base_paths(config: ServerConfig, image: Image) -> list[Path]:
    """Those on this machine: not what is baked into the image."""
    inside = Path(MODELS_FOLDER, image.model_name) if image.model_name else None
    return [model.base_path for model in config.models if model.base_path != inside]


def _list_confinements(engine: ContainerEngine) -> list[str]:
    options = [f"--user={os.getuid()}:{os.getgid()}"]
    if engine.rootless and engine.is_podman:
        options.insert(0, "--userns=keep-id")
    elif engine.rootless:
        # There, root inside is the calling user, and any other user is nobody outside.
        options = ["--user=0:0"]
    options += ["--read-only", TEMPORARY_FOLDER, "--security-opt=no-new-privileges"]
    if _SELINUX.exists():
        # Or the user's files would have to be relabelled to be read inside.
        options.append("--security-opt=label=disable")
    return [*options, "--cap-drop=all"]


def _list_ports(config: ServerConfig) -> list[str]:
    host = config.host.strip("[]")
    host = f"[{host}]" if ":" in host else host
    options = []
    for port, inside in ((config.port, GRPC_PORT), (config.rest_api_port, REST_PORT)):
        if port:
            options.append(f"--publish={host}:{port if port > 0 else ''}:{inside}")
    return options


def _list_endings(config: ServerConfig, image: Image) -> list[str]:
    if image.server is ImageServer.EMBEDDED:
        # A second more than the server takes, or it is killed while it still drains.
        return [f"--stop-timeout={int(config.drain_timeout_s) + 5}"]
    # tensorflow_model_server handles no signal, so as PID 1 it would ignore SIGTERM; the
    # image's own entry point is a shell that forwards none. It drains nothing either way.
    return ["--entrypoint=tensorflow_model_server", "--stop-signal=SIGKILL"]
