"""What the server in a container gets to see of this machine: base paths and config files."""

from __future__ import annotations

import dataclasses
import os
import stat
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

from contract import layout
from contract.errors import ConfigError
from serving.config import ServerConfig

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
)
_RESERVED = frozenset(map(Path, ("/", "/bin", "/dev", "/etc", "/lib", "/proc", "/sys", "/usr")))


@dataclasses.dataclass(frozen=True, slots=True)
class Mount:
    """A file or folder of this machine inside the container."""

    source: Path
    target: PurePosixPath
    writable: bool = False

    def describe(self) -> str:
        """As an argument of `run`."""
        mode = "" if self.writable else ",readonly"
        return f"--mount=type=bind,source={self.source},target={self.target}{mode}"


def list_base_path_mounts(folders: Sequence[Path], more: Sequence[Path]) -> list[Mount]:
    """Base paths and the folders of `--mount_dir`, each at its own path.

    Raises:
        ConfigError: One is missing, cannot be read by the server, or leads outside.
    """
    wanted = sorted({Path(os.path.normpath(folder.absolute())) for folder in (*folders, *more)})
    # A folder inside a mounted one is there already.
    kept = [one for one in wanted if not any(other in one.parents for other in wanted)]
    for folder in wanted:
        _check_folder(folder)
    for folder in folders:
        _check_versions(folder, kept)
    return [Mount(folder, PurePosixPath(folder)) for folder in kept]


def list_file_mounts(config: ServerConfig) -> tuple[list[Mount], dict[str, str]]:
    """The files that flags name: their mounts, and flag name to the path inside.

    Raises:
        ConfigError: A file cannot be read by the server.
    """
    mounts: list[Mount] = []
    inside: dict[str, str] = {}
    for flag in FILE_FLAGS:
        if value := str(getattr(config, flag)):
            source = Path(value).absolute()
            _check_path(source)
            check_readable(source, f"--{flag}={source}")
            inside[flag] = str(CONFIG_FOLDER / flag)
            mounts.append(Mount(source, CONFIG_FOLDER / flag))
    if config.model_config_file:
        source = Path(config.model_config_file).absolute()
        _check_path(source)
        check_readable(source, f"--model_config_file={source}")
        # Its folder, not the file: a mounted file would stay the old one when an editor or a
        # rollout replaces it by a rename.
        folder = CONFIG_FOLDER / "model_config"
        inside["model_config_file"] = str(folder / source.name)
        mounts.append(Mount(source.parent, folder))
    return mounts, inside


def list_socket_mounts(config: ServerConfig) -> list[Mount]:
    """The folder of `--grpc_socket_path`, writable.

    Raises:
        ConfigError: It is a folder that others share, or none.
    """
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
    return [Mount(folder, PurePosixPath(folder), writable=True)]


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


def _check_path(path: Path) -> None:
    if path in _RESERVED:
        raise ConfigError(f"{path} cannot be mounted into a container; use a folder of its own")
    if any(sign in str(path) for sign in ',"\n'):
        raise ConfigError(
            f"{path}: a path with a comma, a quote or a line break cannot be mounted; rename it"
        )


def check_readable(path: Path, name: str) -> None:
    """Refuses what the calling user cannot read inside, where even root has no capabilities.

    Raises:
        ConfigError: Names owner and mode, and the command that helps.
    """
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
