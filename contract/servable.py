"""Names of what is served: servables, the specs that ask for them, policies and states.

The words and numbers are TensorFlow Serving's (`core/servable_id.h`, `apis/model.proto`,
`apis/get_model_status.proto`, `sources/storage_path/file_system_storage_path_source.proto`).
"""

from __future__ import annotations

import dataclasses
import enum

from contract.errors import ConfigError, RequestError

MAX_VERSION = 2**63 - 1
"""Versions are int64 (`core/servable_id.h`)."""

DEFAULT_SIGNATURE_NAME = "serving_default"
"""What a signature name of "" stands for (tf.saved_model.DEFAULT_SERVING_SIGNATURE_DEF_KEY)."""


@dataclasses.dataclass(frozen=True, slots=True, order=True)
class ServableId:
    """One version of one model.

    Attributes:
        name: The model name.
        version: A positive-or-zero int64.
    """

    name: str
    version: int

    def __str__(self) -> str:
        return f"{{name: {self.name} version: {self.version}}}"


@dataclasses.dataclass(frozen=True, slots=True)
class ModelSpec:
    """What a request asks for: a model, a version of it (or a label), and a signature.

    Attributes:
        name: The model name.
        version: A version number, or None for the latest available.
        version_label: A label of the model's configuration, instead of a version.
        signature_name: "" stands for `serving_default`.

    Raises:
        RequestError: Both a version and a version label are given.
    """

    name: str
    version: int | None = None
    version_label: str | None = None
    signature_name: str = ""

    def __post_init__(self) -> None:
        if self.version is not None and self.version_label is not None:
            raise RequestError(
                f"model {self.name!r}: both version {self.version} and version label "
                f"{self.version_label!r} were given; give one of them"
            )


class VersionState(enum.IntEnum):
    """The life of a version, numbered as in `apis/get_model_status.proto`."""

    UNKNOWN = 0
    START = 10
    LOADING = 20
    AVAILABLE = 30
    UNLOADING = 40
    END = 50


@dataclasses.dataclass(frozen=True, slots=True)
class Latest:
    """Serve the highest version numbers.

    Attributes:
        num_versions: How many; TensorFlow Serving's default is 1.

    Raises:
        ConfigError: Fewer than 1.
    """

    num_versions: int = 1

    def __post_init__(self) -> None:
        if self.num_versions < 1:
            raise ConfigError(f"latest {{ num_versions: {self.num_versions} }}: give 1 or more")


@dataclasses.dataclass(frozen=True, slots=True)
class All:
    """Serve every version found."""


@dataclasses.dataclass(frozen=True, slots=True)
class Specific:
    """Serve exactly these versions, as far as they exist.

    Attributes:
        versions: In any order.
    """

    versions: tuple[int, ...]


VersionPolicy = Latest | All | Specific


def choose_versions(policy: VersionPolicy, found: list[int]) -> list[int]:
    """The versions that a policy aspires to.

    Args:
        policy: Of the model's configuration.
        found: The versions below the base path, in any order.

    Returns:
        Those of `found` that are to be served, ascending.

    Example:
        >>> choose_versions(Latest(2), [1, 3, 2])
        [2, 3]
    """
    ascending = sorted(set(found))
    match policy:
        case Latest(num_versions):
            return ascending[-num_versions:]
        case Specific(versions):
            return [version for version in ascending if version in versions]
        case All():
            return ascending
