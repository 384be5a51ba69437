"""Where things lie below a base path: the only file that knows path names.

    <base_path>/<version>/
      saved_model.pb  variables/  fingerprint.pb  assets/labels.txt
      model.tflite
      assets.extra/{tf_serving_warmup_requests,golden.npz,manifest.json,MODEL_CARD.md,confusion_matrix.png}
      assets.extra/{report.html,evaluation.json}
      assets.extra/tflite/{float16,dynamic_range,int8,web,int8_float_io}.tflite
      .model.sig

A version may lack `saved_model.pb` or `model.tflite`, but not both. A *base path* is a model's own
folder, as in TensorFlow Serving's `--model_base_path`.
"""

from __future__ import annotations

import re
from pathlib import Path

from contract.errors import ConfigError

SAVED_MODEL = "saved_model.pb"
TFLITE = "model.tflite"
VARIABLES = "variables"
LABELS = "assets/labels.txt"
EXTRA = "assets.extra"
WARMUP = f"{EXTRA}/tf_serving_warmup_requests"
GOLDEN = f"{EXTRA}/golden.npz"
MANIFEST = f"{EXTRA}/manifest.json"
MODEL_CARD = f"{EXTRA}/MODEL_CARD.md"
CONFUSION_MATRIX = f"{EXTRA}/confusion_matrix.png"
REPORT = f"{EXTRA}/report.html"
EVALUATION = f"{EXTRA}/evaluation.json"
"""What the report shows of the test split, so that it can be made again and compared."""

SIGNATURE = ".model.sig"
"""Who made the version: see `contract.signing`. Not in the manifest, which it covers as well."""

FLOAT32 = "float32"
INT8, INT8_FLOAT_IO = "int8", "int8_float_io"
INT8_VARIANTS = (INT8, INT8_FLOAT_IO)
"""Of int8 weights and activations; the second takes and gives floats, which it scales itself."""

WEB = "web"
"""float32 with a batch of 1, which is what LiteRT.js runs in a browser."""

FLOAT_VARIANTS = (FLOAT32, WEB)
"""Of the model's own weights: they answer as it does but for the order of sums."""

DEFAULT_VARIANTS = (FLOAT32, "float16", "dynamic_range", INT8, WEB)
VARIANTS = (*DEFAULT_VARIANTS, INT8_FLOAT_IO)
"""TFLite variants, in the order of every table."""

STAGE_PREFIX = ".stage-"
RETIRED_PREFIX = ".retired-"
LOCK = ".publish.lock"

_VERSION = re.compile(r"[0-9]{1,19}")


def variant_path(variant: str) -> str:
    """A variant's file, relative to the version directory.

    The float32 one bears the name that TensorFlow Serving's --prefer_tflite_model reads.

    Args:
        variant: One of `VARIANTS`.
    """
    return TFLITE if variant == FLOAT32 else f"{EXTRA}/tflite/{variant}.tflite"


def holds_model(directory: Path) -> bool:
    """Whether a directory holds what a server loads: a SavedModel, or a TFLite file alone.

    Args:
        directory: A version's, a candidate's or another tool's.
    """
    return any((directory / name).is_file() for name in (SAVED_MODEL, TFLITE))


def is_foreign(path: Path) -> bool:
    """Whether a version, or a `.tflite` file, is of another tool: with neither manifest nor golden.

    Args:
        path: A directory that holds a model, or a file.
    """
    return path.is_file() or not any((path / name).exists() for name in (MANIFEST, GOLDEN))


def parse_version(name: str) -> int | None:
    """The version a folder name stands for, or None.

    TensorFlow Serving takes any base-10 int64, leading zeros allowed
    (`sources/storage_path/file_system_storage_path_source.cc`).

    Args:
        name: Of a folder, without its path.

    Example:
        >>> parse_version("00000123"), parse_version("12a")
        (123, None)
    """
    if not _VERSION.fullmatch(name) or not name.isascii():
        return None
    number = int(name)
    return number if number < 2**63 else None


def find_versions(base_path: Path) -> dict[int, Path]:
    """The versions below a base path.

    Args:
        base_path: A model's own folder.

    Returns:
        Version number to directory, ascending. Of two names for one number (`1`, `001`) the
        shorter wins.

    Raises:
        OSError: The base path cannot be listed.
    """
    found: dict[int, Path] = {}
    for child in sorted(base_path.iterdir(), key=lambda path: (len(path.name), path.name)):
        version = parse_version(child.name)
        if version is not None and child.is_dir():
            found.setdefault(version, child)
    return dict(sorted(found.items()))


def find_version_dir(path: Path) -> Path:
    """The version that is meant by a path: itself, or the newest below it.

    Args:
        path: A version directory, whatever its name, or a base path.

    Returns:
        `path` where it holds anything that a version holds, else the highest of its versions, and
        `path` again where its name is a number: whoever reads it says what it lacks.

    Raises:
        ConfigError: There is neither, or the folder cannot be listed.

    Example:
        >>> find_version_dir(Path("models/mlp"))  # doctest: +SKIP
        PosixPath('models/mlp/2')
    """
    if not path.is_dir():
        what = "no folder, but a file" if path.exists() else "no folder that exists"
        raise ConfigError(
            f"{path} is {what}; {_suggest_versions(path.parent)}give a version "
            "directory, or a base path that holds one"
        )
    held = (MANIFEST, SAVED_MODEL, *map(variant_path, VARIANTS))
    if any((path / name).is_file() for name in held):
        return path
    try:
        versions = find_versions(path)
    except OSError as error:
        raise ConfigError(f"{path} cannot be listed: {error.strerror or error}") from None
    if versions:
        return versions[max(versions)]
    if parse_version(path.name) is not None:
        return path
    raise ConfigError(
        f"{path} is no version directory and has no version below it (a folder named by a number, "
        f"such as {path / '1'}); {_suggest_base_path(path)}"
    )


def _suggest_versions(base_path: Path) -> str:
    """What is there where somebody asked for another version."""
    try:
        versions = sorted(find_versions(base_path))
    except OSError:
        return ""
    return f"{base_path} has {', '.join(map(str, versions))}; " if versions else ""


def _suggest_base_path(path: Path) -> str:
    """A folder one deeper, where that holds versions."""
    deeper = [one for one in sorted(path.iterdir()) if one.is_dir() and find_versions(one)]
    if deeper:
        return f"did you mean {deeper[0]}?"
    return "make one with: python -m exporter export"


def list_files(directory: Path) -> list[str]:
    """Every file below a directory.

    Args:
        directory: Symbolic links to files in it count as files.

    Returns:
        Relative POSIX paths, sorted.
    """
    return sorted(
        path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file()
    )
