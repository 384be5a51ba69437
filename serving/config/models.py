"""The models that a server is told to serve, from a flag, a file or a request.

The texts of errors are TensorFlow Serving's (`model_servers/server_core.cc`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path

from contract.errors import ConfigError
from contract.layout import find_versions
from contract.servable import All, Latest, Specific, VersionPolicy
from contract.wire.plumbline_wire import config_pb2
from contract.wire.text_format import read_text_message

PLATFORM = "tensorflow"


@dataclasses.dataclass(frozen=True, slots=True)
class RequestLogging:
    """A model's `logging_config`: where sampled requests go.

    Attributes:
        filename_prefix: Of the files, as TensorFlow Serving's LogCollectorConfig has it.
        sampling_rate: Share of requests to log, 0 to 1.
    """

    filename_prefix: str
    sampling_rate: float


@dataclasses.dataclass(frozen=True, slots=True)
class ModelConfig:
    """One model to serve.

    Attributes:
        name: The model name.
        base_path: Absolute; its children named by integers are the versions.
        version_policy: Which of them to serve.
        version_labels: Label to version.
        platform: "tensorflow", the only one.
        logging: Where to log sampled requests, or None.
    """

    name: str
    base_path: Path
    version_policy: VersionPolicy = dataclasses.field(default_factory=Latest)
    version_labels: Mapping[str, int] = dataclasses.field(default_factory=dict)
    platform: str = PLATFORM
    logging: RequestLogging | None = None


def read_model_configs(path: Path) -> tuple[ModelConfig, ...]:
    """The models of a `--model_config_file`."""
    return model_configs_from_message(read_text_message(path, config_pb2.ModelServerConfig()))


def find_model_configs(folder: Path) -> tuple[ModelConfig, ...]:
    """The models of `--models_base_path`: its folders that hold a version, by name.

    Raises:
        ConfigError: It cannot be listed.
    """
    try:
        found = sorted(path for path in folder.absolute().iterdir() if path.is_dir())
    except OSError as error:
        raise ConfigError(
            f"--models_base_path={folder}: {error.strerror or error}; give a folder whose folders "
            "are the base paths of models"
        ) from None
    return tuple(ModelConfig(path.name, path) for path in found if _is_base_path(path))


def explain_no_models(folder: Path) -> str:
    """Why `--models_base_path` names no model, and what to give instead: it is one folder too
    deep, one too shallow, or still empty."""
    given = f"--models_base_path={folder}"
    folder = folder.absolute()
    try:
        versions = find_versions(folder)
        above = [path for path in sorted(folder.iterdir()) if _holds_models(path)]
    except OSError:
        versions, above = {}, []
    if versions:
        listed = ", ".join(map(str, versions))
        return (
            f"{given} holds no models but versions of one ({listed}), and nothing is served: give "
            f"--model_name={folder.name} --model_base_path={folder}, or for all models beside it "
            f"--models_base_path={folder.parent}"
        )
    if above:
        return (
            f"{given} holds no models but folders of them, and nothing is served: give "
            f"--models_base_path={above[0]}"
        )
    return (
        f"{given} holds no model, and nothing is served until there is one: a folder with a "
        f"numbered version in it, such as {folder / 'mlp' / '1'}"
    )


def _holds_models(path: Path) -> bool:
    return not path.name.startswith(".") and path.is_dir() and any(map(_is_base_path, _list(path)))


def _list(path: Path) -> list[Path]:
    try:
        return list(path.iterdir())
    except OSError:
        return []


def _is_base_path(path: Path) -> bool:
    try:
        check_model_name(path.name)
        return not path.name.startswith(".") and bool(find_versions(path))
    except (ConfigError, OSError):
        return False


def model_configs_from_message(
    message: config_pb2.ModelServerConfig,
) -> tuple[ModelConfig, ...]:
    """The models of a `ModelServerConfig`, from a file or from HandleReloadConfigRequest."""
    if message.WhichOneof("config") == "custom_model_config":
        raise ConfigError("custom_model_config is not supported; list models in model_config_list")
    models: list[ModelConfig] = []
    for one in message.model_config_list.config:
        if one.name in {model.name for model in models}:
            raise ConfigError(f"Illegal to list model {one.name} multiple times in config list")
        models.append(_model_from_message(one))
    return tuple(models)


def _model_from_message(message: config_pb2.ModelConfig) -> ModelConfig:
    check_model_name(message.name)
    check_local_path(message.name, message.base_path)
    if not message.base_path.startswith("/"):
        raise ConfigError(
            f"Expected model {message.name} to have an absolute path or URI; "
            f"got base_path()={message.base_path}"
        )
    policy: VersionPolicy
    match message.model_version_policy.WhichOneof("policy_choice"):
        case "all":
            policy = All()
        case "specific":
            policy = Specific(tuple(message.model_version_policy.specific.versions))
        case _:
            # TensorFlow Serving takes a num_versions of 0 for 1.
            policy = Latest(max(message.model_version_policy.latest.num_versions, 1))
    logging, logger = message.logging_config, message.logging_config.log_collector_config
    return ModelConfig(
        name=message.name,
        base_path=Path(message.base_path),
        version_policy=policy,
        version_labels=dict(message.version_labels),
        platform=_find_platform(message),
        logging=RequestLogging(logger.filename_prefix, logging.sampling_config.sampling_rate)
        if logging.HasField("log_collector_config")
        else None,
    )


def _find_platform(message: config_pb2.ModelConfig) -> str:
    typed = message.model_type != config_pb2.MODEL_TYPE_UNSPECIFIED
    if typed and message.model_platform:
        raise ConfigError(
            "Illegal setting both ModelServerConfig::model_type (deprecated) and "
            f"ModelServerConfig::model_platform, model name is {message.name}"
        )
    if message.model_type == config_pb2.TENSORFLOW:
        return PLATFORM
    if typed:
        raise ConfigError(
            f"ModelServerConfig::model_type choice {message.model_type} not supported."
        )
    if not message.model_platform:
        raise ConfigError(
            "Illegal setting neither ModelServerConfig::model_type (deprecated) nor "
            f"ModelServerConfig::model_platform, model name is {message.name}"
        )
    return message.model_platform


def check_platforms(models: Iterable[ModelConfig], old_models: Iterable[ModelConfig]) -> None:
    """Refuses platforms that are unknown, or that differ from those in force."""
    old = {model.name: model.platform for model in old_models}
    for model in models:
        if model.platform != old.get(model.name, model.platform):
            raise ConfigError(
                f"Illegal to change a model's platform. For model {model.name} platform was "
                f"{old[model.name]} and new platform requested is {model.platform}"
            )
        if model.platform != PLATFORM:
            raise ConfigError(f"Model {model.name} requests unsupported platform {model.platform}")


def check_local_path(name: str, base_path: str) -> None:
    """Refuses addresses: TensorFlow Serving reads buckets, but neither command here does."""
    if "://" in base_path:
        raise ConfigError(
            f"model {name}: base path {base_path} is not a folder of this machine; "
            "bring the version here first, from there: python -m exporter fetch "
            f"{base_path} --base_path FOLDER"
        )


def check_model_name(name: str) -> None:
    """Refuses names that are empty, walk a path, or break a line."""
    # A name stands in URLs, log files and metrics: nothing that walks a path or breaks a line.
    if not name or name in (".", "..") or "/" in name or "\\" in name or not name.isprintable():
        raise ConfigError(f"model name {name!r}: give one without slashes and control characters")
