"""A model from whatever somebody has: an object, or a file of which kind it is."""

from __future__ import annotations

import importlib
import json
import re
import sys
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, Literal, TypeAlias

from contract import layout
from contract.errors import ConfigError, PlumblineError
from contract.heads import Head
from contract.servable import DEFAULT_SIGNATURE_NAME
from contract.signature import Signature
from exporter.artifacts.exportable import Exportable
from exporter.data.examples import ExportExamples

ModelFileKind: TypeAlias = Literal["keras", "saved_model", "tflite"]

_HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"
_ZIP_MAGIC = b"PK\x03\x04"
_LITE_IDENTIFIER = b"TFL3"
_TORCH_MAGIC = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46"
"""How `torch.save` began before it wrote archives."""
_KINDS = "a .keras, .h5 or .tflite file, or the folder of a SavedModel"
_FOREIGN = {
    "torch": "is a file of PyTorch; litert-torch makes a .tflite file of its model, which can be "
    "given here",
    "onnx": "is a file of ONNX; onnx2tf makes a SavedModel of it, which can be given here",
    "pickle": "is a pickle, which is never loaded, for it may run any code; give the model itself "
    "to exporter.export(), or save it",
    "npz": "holds arrays and no model; load them into a model of Keras, and save that",
    "safetensors": "holds weights and no model; load them into a model of Keras, and save that",
}
"""What files of others are, and what becomes of them."""


def tell_file_kind(path: Path) -> ModelFileKind:
    """What kind of model a path holds, by its content and not by its name.

    Raises:
        ConfigError: None of those that are known; says what it is.
    """
    if path.is_dir():
        if (path / layout.SAVED_MODEL).exists():
            return "saved_model"
        raise ConfigError(f"{path} is a folder without {layout.SAVED_MODEL}; give {_KINDS}")
    try:
        with path.open("rb") as file:
            head = file.read(16)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}; give {_KINDS}") from error
    if head.startswith(_HDF5_MAGIC):
        return "keras"
    if foreign := _tell_foreign(path, head):
        raise ConfigError(f"{path} {_FOREIGN[foreign]}; give {_KINDS}")
    if head.startswith(_ZIP_MAGIC):
        return "keras"
    if head[4:8] == _LITE_IDENTIFIER:
        return "tflite"
    if path.name == layout.SAVED_MODEL:
        raise ConfigError(f"{path} is the graph alone; give the folder around it")
    raise ConfigError(
        f"{path} is no model (it begins with {head[:8].hex() or 'nothing'}); give {_KINDS}"
    )


def _tell_foreign(path: Path, head: bytes) -> str:
    """The kind of a file that other tools write, a key of `_FOREIGN`; "" where it is none."""
    if head.startswith(_ZIP_MAGIC):
        try:
            with zipfile.ZipFile(path) as archive:
                names = [PurePosixPath(name).name for name in archive.namelist()]
        except (OSError, zipfile.BadZipFile):
            return ""  # cut off: Keras's, as far as anybody can tell
        if {"data.pkl", "constants.pkl", "archive_format"} & set(names):
            return "torch"
        return "npz" if all(name.endswith(".npy") for name in names) else ""
    if head.startswith(_TORCH_MAGIC):
        return "torch"
    if len(head) < 10:
        return ""
    if head[:1] == b"\x80" and head[1:2] <= b"\x05":
        return "pickle"
    if head[8:10] == b'{"':
        return "safetensors"
    # A ModelProto: its version, 3 or higher, then its producer, graph or operators; a SavedModel's
    # version is 1.
    is_onnx = head[:1] == b"\x08" and 3 <= head[1] <= 32 and head[2] in b"\x12\x1a\x3a\x42"
    return "onnx" if is_onnx else ""


def load_keras(
    path: Path, *, custom_objects: Mapping[str, object] | None = None, allow_lambda: bool = False
) -> Any:
    """A Keras model out of a `.keras` or `.h5` file, by the Keras that wrote it.

    Args:
        path: The file.
        custom_objects: Name to class or function, of what Keras does not know.
        allow_lambda: Load Lambda layers too, which are code that runs.

    Raises:
        ConfigError: No Keras model; of a Keras that is not installed; a class is missing; a
            Lambda layer without `allow_lambda`.
    """
    config, version = _read_keras_config(path)
    lambdas = sorted(set(_find_lambdas(config)))
    if lambdas and not allow_lambda:
        raise ConfigError(
            f"{path} has Lambda layers ({', '.join(lambdas)}), whose Python code would run here; "
            "if you trust the file, allow it with allow_lambda=True (--allow_lambda)"
        )
    options = {"custom_objects": dict(custom_objects or {}), "compile": False}
    try:
        missing = sorted(set(_find_missing(config, custom_objects or {}, version)))
        if missing:
            raise ConfigError(_ask_for(path, missing))
        if version.startswith("3"):
            import keras

            check_backend()
            return keras.saving.load_model(path, safe_mode=not allow_lambda, **options)
        import tf_keras

        if path.suffix == ".keras" or zipfile.is_zipfile(path):
            options["safe_mode"] = not allow_lambda
        return tf_keras.saving.load_model(str(path), **options)
    except ConfigError:
        raise
    except Exception as error:  # ValueError, TypeError, KeyError, OSError: as Keras pleases
        raise ConfigError(_explain_loading(path, error, version)) from error


def check_backend() -> None:
    """Refuses a Keras 3 that runs on something else than TensorFlow."""
    import keras

    name = keras.backend.backend()
    if name != "tensorflow":
        raise ConfigError(
            f"the model is of Keras 3 on the backend {name!r}, and a SavedModel is made by "
            "TensorFlow: set KERAS_BACKEND=tensorflow before keras is imported, and load the "
            "model's file again"
        )


def read_keras_version(path: Path) -> str:
    """The version of the Keras that wrote a file, such as 3.12.0; TensorFlow is not imported.

    Raises:
        ConfigError: No Keras model.
    """
    return _read_keras_config(path)[1]


def _read_keras_config(path: Path) -> tuple[object, str]:
    """The configuration of the model, and the version of the Keras that wrote it."""
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                metadata = json.loads(archive.read("metadata.json"))
                config: object = json.loads(archive.read("config.json"))
            return config, str(metadata["keras_version"])
        import h5py

        with h5py.File(path, "r") as file:
            text = file.attrs.get("model_config")
            if text is None:
                raise ConfigError(
                    f"{path} holds weights and no model; give a file of model.save(), not of "
                    "model.save_weights()"
                )
            return json.loads(text), str(file.attrs.get("keras_version", "2"))
    except ConfigError:
        raise
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{path} is no model of Keras, or is damaged: {reason}") from error


def _find_lambdas(config: object) -> Iterator[str]:
    if isinstance(config, dict):
        if config.get("class_name") == "Lambda":
            inner = config.get("config")
            yield str(inner.get("name", "Lambda")) if isinstance(inner, dict) else "Lambda"
        for value in config.values():
            yield from _find_lambdas(value)
    elif isinstance(config, list):
        for value in config:
            yield from _find_lambdas(value)


def _find_missing(
    config: object, custom_objects: Mapping[str, object], version: str, *, is_whole: bool = True
) -> Iterator[str]:
    """Classes that the file names, that are not Keras's own, and that nobody gave.

    Keras 3 imports the module of a class that it does not know; `tf_keras` does so for the model
    as a whole (`is_whole`), and takes the class's name for a layer within it.
    """
    if isinstance(config, list):
        for value in config:
            yield from _find_missing(value, custom_objects, version, is_whole=False)
    if not isinstance(config, dict):
        return
    name, registered = config.get("class_name"), config.get("registered_name")
    if isinstance(name, str) and isinstance(registered, str):
        module = config.get("module")
        home = sys.modules.get(module) if isinstance(module, str) else None
        is_imported = isinstance(module, str) and (
            is_whole
            or version.startswith("3")
            or module.partition(".")[0] in ("keras", "tf_keras", "builtins")
        )
        may_be_found = (
            {name, registered, registered.rpartition(">")[2]} & custom_objects.keys()
            or _is_registered(registered, version)
            or (is_imported and (home is None or hasattr(home, name)))
        )
        if not may_be_found:
            yield name
    for key, value in config.items():
        if key != "compile_config":  # which is not loaded
            yield from _find_missing(value, custom_objects, version, is_whole=False)


def _is_registered(name: str, version: str) -> bool:
    library = importlib.import_module("keras" if version.startswith("3") else "tf_keras")
    return library.saving.get_registered_object(name) is not None


def _ask_for(path: Path, names: list[str]) -> str:
    given = ", ".join(f"{name!r}: {name}" for name in names)
    flags = " ".join(f"--custom_objects package.module:{name}" for name in names)
    return (
        f"{path} uses {', '.join(map(repr, names))}, which Keras does not know; give it with "
        f"custom_objects={{{given}}} ({flags})"
    )


_MISSING = re.compile(
    r"Unknown (?:layer|object|loss function|metric function|optimizer|activation function|"
    r"initializer|regularizer)[^']*: '?([\w.>]+)|Could not locate (?:class|function) '([\w.>]+)'"
    r"|Cannot deserialize object of type `([\w.>]+)`"
)


def _explain_loading(path: Path, error: Exception, version: str) -> str:
    text = str(error)
    found = _MISSING.search(text)
    if found is not None:
        name = next(part for part in found.groups() if part)
        return _ask_for(path, [name.rpartition(">")[2]])
    first = next((line.strip() for line in text.splitlines() if line.strip()), "")
    return f"{path}, written by Keras {version}, cannot be loaded: {type(error).__name__}: {first}"


def make_exportable(
    model: object,
    examples: ExportExamples,
    *,
    heads: Mapping[str, Head] | None = None,
) -> Exportable:
    """A loaded model, or a file that is no Keras model's, as exports take it.

    Args:
        model: A Keras model, a `tf.Module`, or the path of a SavedModel or a `.tflite` file.
        examples: What it will be verified with.
        heads: Output name to what it means, as far as somebody knows.

    Raises:
        ConfigError: It is none of these, or has no signatures.
        DatasetError: The examples do not fit its inputs.
    """
    if isinstance(model, Path):
        if tell_file_kind(model) == "tflite":
            from exporter.models.lite import LiteFile

            return LiteFile(model, examples, heads=heads)
        from exporter.models.saved_model import GivenSavedModel

        return GivenSavedModel(model, examples, heads=heads)
    from exporter.models.keras import KerasModel, is_keras

    if is_keras(model):
        if type(model).__module__.partition(".")[0] == "keras":
            check_backend()
        return KerasModel(model, examples, heads=heads)
    import tensorflow as tf

    # What tf.saved_model.load gives is no tf.Module.
    if isinstance(model, tf.Module | tf.__internal__.tracking.AutoTrackable):
        from exporter.models.saved_model import save_module

        return save_module(model, examples, heads=heads)
    kind = f"{type(model).__module__}.{type(model).__name__}".removeprefix("builtins.")
    raise ConfigError(
        f"a {kind} is no model that can be exported; give a model of tf_keras or keras, a "
        f"tf.Module with signatures, or {_KINDS}"
    )


def find_input_shape(model: object) -> tuple[int | None, ...] | None:
    """The shape of a model's only input, its batch axis first, before any example is read.

    None where there are several inputs, or the model does not say.
    """
    if isinstance(model, Path):
        try:
            signatures = _read_file_signatures(model)
        except PlumblineError:
            return None  # whoever loads it says what is wrong with it
        for one in sorted(signatures.values(), key=lambda one: one.name != DEFAULT_SIGNATURE_NAME):
            shapes = [spec.shape for spec in one.inputs.values()]
            return shapes[0] if len(shapes) == 1 else None
        return None
    inputs = getattr(model, "inputs", None)
    if not isinstance(inputs, list) or len(inputs) != 1:
        return None
    try:
        return tuple(inputs[0].shape)
    except (AttributeError, ValueError):
        return None


def _read_file_signatures(path: Path) -> dict[str, Signature]:
    if tell_file_kind(path) == "tflite":
        from contract.lite import LiteModel

        return dict(LiteModel(path.read_bytes()).signatures)
    from contract.wire.signatures import read_signatures

    return read_signatures((path / layout.SAVED_MODEL).read_bytes())
