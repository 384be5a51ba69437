"""The `run` command: everything that is decided before a container is started.

That is what the server inside gets to see of this machine (base paths and config files), and its
flags: TensorFlow Serving's, or all where the image is Plumbline's.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import shlex
import stat
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath

from contract import layout
from contract.errors import ConfigError
from contract.servable import choose_versions
from serving.config.flags import FlagValue, ServerFlags, list_flags
from serving.config.models import ModelConfig
from serving.config.server import ServerConfig
from serving.container.engine import MODELS_FOLDER, ContainerEngine, Image, ImageServer

CONTAINER_LABEL = "plumbline.container=serving"
"""By which `python -m serving stop` finds what it may stop."""

MONITORING_CONFIG = Path(__file__).with_name("monitoring.config")
TEMPORARY_FOLDER = "--tmpfs=/tmp:rw,nosuid,nodev,noexec,size=64m"

CONFIG_FOLDER = PurePosixPath("/mnt/plumbline")
"""Where files land; base paths keep their own absolute path, so that config files stay true."""

FILE_FLAGS = (
    "batching_parameters_file",
    "ssl_config_file",
    "platform_config_file",
    "tensorflow_session_config_file",
    "thread_pool_factory_config_file",
    "monitoring_config_file",
    "auth_token_file",
    "require_signature_key",
)

GRPC_PORT = 8500
REST_PORT = 8501
"""Ports inside the container; those outside are published onto them."""

MIN_GRPC_THREADS = 64
GRPC_THREADS_PER_CPU = 16

_SELINUX = Path("/sys/fs/selinux/enforce")
_RESERVED = frozenset(map(Path, ("/", "/bin", "/dev", "/etc", "/lib", "/proc", "/sys", "/usr")))
_REASONS = {
    "models_base_path": "it takes --model_base_path of one model, or --model_config_file",
    "load_on_demand": "it loads every model at the start",
    "max_resident_bytes": "it has no limit on what is loaded",
    "auth_token_file": "it has no tokens, and would answer everyone",
    "require_signature_key": "it loads what nobody has signed",
    "max_message_bytes": "it takes messages of up to 2 GiB",
    "max_json_bytes": "it has no limit on REST bodies",
    "max_json_depth": "it has no limit on nesting",
    "max_inflated_bytes": "it has no limit on inflated bodies",
    "max_concurrent_calls": "it limits calls by --grpc_max_threads alone",
    "max_bytes_in_flight": "it has no limit on the memory of calls",
    "max_connections": "it has no limit on connections",
    "max_connection_age_s": "its gRPC takes --grpc_channel_arguments=grpc.max_connection_age_ms=N",
    "header_timeout_s": "it waits for ever",
    "idle_timeout_s": "its gRPC takes --grpc_channel_arguments=grpc.max_connection_idle_ms=N",
    "max_image_pixels_per_call": "it has no limit on images",
    "max_queued_calls": "it limits queues by max_enqueued_batches in --batching_parameters_file",
    "log_format": "its log is text",
    "access_log": "it logs no calls; ask a proxy before it",
    "tracing": "it makes no spans; those of the clients remain",
    "tracing_stages": "it makes no spans",
    "request_log_dir": "its open source build logs no requests",
    "request_log_sampling_rate": "its open source build logs no requests",
    "request_log_max_bytes": "its open source build logs no requests",
}
_LOG_LEVELS = {"debug": "0", "info": "0", "warning": "1", "error": "2"}
_HANDLED_OUTSIDE = frozenset(
    {
        *("host", "port", "rest_api_port", "model_name", "model_base_path", "port_file", "version"),
        *("grpc_max_threads", "models_base_path"),
    }
)

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, slots=True)
class ContainerPlan:
    """A container to start.

    Attributes:
        name: Of the container.
        command: The whole `run` command, the container engine's program first.
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

    Raises:
        ConfigError: What was asked for cannot be done in a container, or not in this one.
    """
    if image.is_modelcar:
        raise ConfigError(
            f"--image={image.name}: a modelcar holds a model and no server; KServe mounts it "
            "(storageUri: oci://…). For an image that serves: python -m serving bake without "
            "--modelcar"
        )
    chosen = name or f"plumbline-{config.port if config.port > 0 else os.getpid()}"
    # Those on this machine: not what is baked into the image.
    baked = Path(MODELS_FOLDER, image.model_name) if image.model_name else None
    base_paths = [model.base_path for model in config.models if model.base_path != baked]
    files, paths = _list_file_mounts(config)
    folders = [*mount_dirs, *map(Path, filter(None, [config.models_base_path]))]
    mounts = _list_base_path_mounts(base_paths, folders) + files + _list_socket_mounts(config)
    stock = image.server is ImageServer.TENSORFLOW_SERVING
    if stock and not config.prefer_tflite_model:
        _warn_of_tflite_alone([one for one in config.models if one.base_path != baked])
    if stock and config.rest_api_port and "monitoring_config_file" not in paths:
        target = CONFIG_FOLDER / "monitoring_config_file"  # metrics on, as in the embedded server
        mounts.append(_mount(MONITORING_CONFIG, target))
        paths["monitoring_config_file"] = str(target)
    command = [
        *(engine.program, "run", "--detach", f"--name={chosen}", f"--label={CONTAINER_LABEL}"),
        *list_confinements(engine),
        *_list_ports(config),
        *mounts,
        *_list_endings(config, image),
        image.name,
        *_list_server_flags(config, given, image.server, paths),
    ]
    return ContainerPlan(chosen, tuple(command))


def list_confinements(engine: ContainerEngine) -> list[str]:
    """What a container may not do: every server's, in `deploy/` as well."""
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
    # Of IPv6 alone is what [::] means to docker; nothing is every address of both.
    where = "" if host == "[::]" else f"{host}:"
    options = []
    for port, inside in ((config.port, GRPC_PORT), (config.rest_api_port, REST_PORT)):
        if port:
            options.append(f"--publish={where}{port if port > 0 else ''}:{inside}")
    return options


def _list_endings(config: ServerConfig, image: Image) -> list[str]:
    if image.server is ImageServer.EMBEDDED:
        # A second more than the server takes, or it is killed while it still drains.
        return [f"--stop-timeout={int(config.drain_timeout_s) + 5}", *_list_variables(config)]
    # tensorflow_model_server handles no signal, so as PID 1 it would ignore SIGTERM; the
    # image's own entry point is a shell that forwards none. It drains nothing either way.
    log_level = f"--env=TF_CPP_MIN_LOG_LEVEL={_LOG_LEVELS[config.log_level]}"  # it has no flag
    return [log_level, "--entrypoint=tensorflow_model_server", "--stop-signal=SIGKILL"]


def _list_variables(config: ServerConfig) -> list[str]:
    """What OpenTelemetry's SDK is told, by name alone: a value may hold a key."""
    names = [name for name in sorted(os.environ) if name.startswith("OTEL_")]
    return [f"--env={name}" for name in names] if config.tracing else []


def _list_base_path_mounts(folders: Sequence[Path], more: Sequence[Path]) -> list[str]:
    """Base paths and the folders of `--mount_dir`, each at its own path."""
    wanted = sorted({Path(os.path.normpath(folder.absolute())) for folder in (*folders, *more)})
    # A folder inside a mounted one is there already.
    kept = [one for one in wanted if not any(other in one.parents for other in wanted)]
    for folder in wanted:
        _check_folder(folder)
    for folder in folders:
        _check_versions(folder, kept)
    return [_mount(folder, PurePosixPath(folder)) for folder in kept]


def _list_file_mounts(config: ServerConfig) -> tuple[list[str], dict[str, str]]:
    """The files that flags name: their mounts, and flag name to the path inside."""
    mounts: list[str] = []
    inside: dict[str, str] = {}
    for flag in FILE_FLAGS:
        if value := str(getattr(config, flag)):
            source = Path(value).absolute()
            _check_path(source)
            check_readable(source, f"--{flag}={source}")
            inside[flag] = str(CONFIG_FOLDER / flag)
            mounts.append(_mount(source, CONFIG_FOLDER / flag))
    if config.model_config_file:
        source = Path(config.model_config_file).absolute()
        _check_path(source)
        check_readable(source, f"--model_config_file={source}")
        # Its folder, not the file: a mounted file would stay the old one when an editor or a
        # rollout replaces it by a rename.
        folder = CONFIG_FOLDER / "model_config"
        inside["model_config_file"] = str(folder / source.name)
        mounts.append(_mount(source.parent, folder))
    return mounts, inside


def _list_socket_mounts(config: ServerConfig) -> list[str]:
    """The folder of `--grpc_socket_path`, writable."""
    if not config.grpc_socket_path:
        return []
    folder = Path(config.grpc_socket_path).absolute().parent
    if folder in _RESERVED | {Path("/tmp"), Path("/run"), Path("/var/run")}:
        raise ConfigError(
            f"--grpc_socket_path={config.grpc_socket_path}: the server in the container gets to "
            f"write to its folder; give the socket a folder of its own, not {folder}"
        )
    if not folder.is_dir():
        raise ConfigError(f"--grpc_socket_path={config.grpc_socket_path}: {folder} is no folder")
    return [_mount(folder, PurePosixPath(folder), writable=True)]


def _mount(source: Path, target: PurePosixPath, *, writable: bool = False) -> str:
    mode = "" if writable else ",readonly"
    return f"--mount=type=bind,source={source},target={target}{mode}"


def _check_folder(folder: Path) -> None:
    _check_path(folder)
    if not folder.exists():
        raise ConfigError(f"base path {folder}: No such file or directory; publish a version first")
    if not folder.is_dir():
        raise ConfigError(f"base path {folder}: is a file; give the folder that holds the versions")
    check_readable(folder, f"base path {folder}")


def _check_versions(base_path: Path, mounted: Iterable[Path]) -> None:
    seen = [folder.resolve() for folder in mounted]
    for version, folder in layout.find_versions(base_path).items():
        real = folder.resolve()
        if not any(outer == real or outer in real.parents for outer in seen):
            raise ConfigError(
                f"version {version} of {base_path} is a link to {real}, which the container does "
                f"not see; add --mount_dir={real.parent}"
            )
        check_readable(folder, f"version {version} of base path {base_path}")
        for file in (folder / layout.SAVED_MODEL, folder / layout.variant_path(layout.FLOAT32)):
            if file.exists():
                check_readable(file, str(file))


def _warn_of_tflite_alone(models: Iterable[ModelConfig]) -> None:
    """Tells of versions to be served without the SavedModel that TensorFlow Serving looks for."""
    for model in models:
        found = layout.find_versions(model.base_path)
        for version in choose_versions(model.version_policy, list(found)):
            has_tflite = (found[version] / layout.TFLITE).is_file()
            if has_tflite and not (found[version] / layout.SAVED_MODEL).is_file():
                logger.warning(
                    "version %d of %s is %s without %s, which TensorFlow Serving does not load "
                    "by itself; add --prefer_tflite_model",
                    *(version, model.base_path, layout.TFLITE, layout.SAVED_MODEL),
                )


def _check_path(path: Path) -> None:
    if path in _RESERVED:
        raise ConfigError(f"{path} cannot be mounted into a container; use a folder of its own")
    if any(sign in str(path) for sign in ',"\n'):
        raise ConfigError(
            f"{path}: a path with a comma, a quote or a line break cannot be mounted; rename it"
        )


def check_readable(path: Path, name: str) -> None:
    """Refuses what the calling user cannot read inside, where even root has no capabilities."""
    try:
        facts = path.stat()
    except OSError as error:
        raise ConfigError(f"{name}: {error.strerror or error}") from None
    wanted = stat.S_IRUSR | (stat.S_IXUSR if stat.S_ISDIR(facts.st_mode) else 0)
    shift = 0 if facts.st_uid == os.getuid() else 3 if facts.st_gid == os.getgid() else 6
    if facts.st_mode & (wanted >> shift) != wanted >> shift:
        raise ConfigError(
            f"{name}: the server, run as user {os.getuid()} without capabilities, cannot read it "
            f"(owner {facts.st_uid}, mode {stat.S_IMODE(facts.st_mode):04o}); "
            f"chmod -R a+rX {path}"
        )


def _list_server_flags(
    config: ServerConfig,
    given: Mapping[str, FlagValue],
    server: ImageServer,
    paths: Mapping[str, str],
) -> list[str]:
    """The command line of the server inside; `paths`: flag name to the path of its file inside."""
    embedded = server is ImageServer.EMBEDDED
    # The embedded server's health check asks REST inside, published or not.
    rest_port = REST_PORT if config.rest_api_port or embedded else 0
    flags = [f"--port={GRPC_PORT if config.port else 0}", f"--rest_api_port={rest_port}"]
    if embedded:
        flags.insert(0, "--host=0.0.0.0")
    if config.models_base_path:
        flags.append(f"--models_base_path={Path(config.models_base_path).absolute()}")
    elif not config.model_config_file:
        model = config.models[0]
        flags += [f"--model_name={model.name}", f"--model_base_path={model.base_path}"]
    flags += [f"--{name}={path}" for name, path in paths.items()]
    if embedded:
        skipped = _HANDLED_OUTSIDE | paths.keys()
        return flags + [_write(name, value) for name, value in given.items() if name not in skipped]
    _refuse_unsafe(config, given)
    return flags + _pass_some(config, given)


def _pass_some(config: ServerConfig, given: Mapping[str, FlagValue]) -> list[str]:
    cpus = os.cpu_count() or 1
    threads = config.grpc_max_threads or max(MIN_GRPC_THREADS, GRPC_THREADS_PER_CPU * cpus)
    flags = [f"--grpc_max_threads={threads}"]
    for one in list_flags(ServerFlags):
        if one.name not in given:
            continue
        if one.container == "passed" and one.name != "model_name":
            flags.append(_write(one.name, given[one.name]))
        if one.container == "ignored":
            logger.info("--%s says nothing to TensorFlow Serving", one.name)
    if config.grpc_socket_path:
        flags.append(_write("grpc_socket_path", config.grpc_socket_path))
    return flags


def _refuse_unsafe(config: ServerConfig, given: Mapping[str, FlagValue]) -> None:
    for one in list_flags(ServerFlags):
        value = given.get(one.name, one.default)
        if one.container != "refused" or value == one.default:
            continue
        if one.name == "engine":
            if value == "litert":
                raise ConfigError(
                    "--engine=litert: TensorFlow Serving chooses TFLite with --prefer_tflite_model"
                )
            continue
        reason = _REASONS.get(one.name, "it has no such flag")
        raise ConfigError(
            f"{_write(one.name, value)}: the image is TensorFlow Serving's, which cannot honour "
            f"it: {reason}. Without the flag it runs as it is; an image of Plumbline's own "
            "(--image) and python -m serving embedded honour it"
        )
    if config.ssl_config_file and config.rest_api_port:
        raise ConfigError(
            f"--ssl_config_file with --rest_api_port={config.rest_api_port}: TensorFlow Serving "
            "has no TLS on REST and would serve it in the clear; give --rest_api_port=0, or use "
            "python -m serving embedded, which has"
        )
    if given.get("enable_reload_config") is False:
        raise ConfigError(
            "--enable_reload_config=false: TensorFlow Serving always answers "
            "HandleReloadConfigRequest; use python -m serving embedded, which can turn it off"
        )


def _write(name: str, value: FlagValue) -> str:
    return f"--{name}={str(value).lower() if isinstance(value, bool) else value}"
