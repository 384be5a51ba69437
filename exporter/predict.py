"""`predict`: in-process answers for the user's own inputs, kept as a golden file."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from contract import layout
from contract.console.extras import require_extra
from contract.errors import ConfigError, DatasetError
from contract.golden import Golden, write_golden
from contract.lite import LiteModel
from contract.signature import (
    IMAGE_BYTES,
    UINT8,
    Array,
    Hints,
    Signature,
    check_batch,
    find_signature,
)
from exporter.inspect import check_version_dir

if TYPE_CHECKING:
    from exporter.artifacts.saved_model import InProcessPredictor

_PICTURES = {".png", ".jpg", ".jpeg"}


class Prediction(msgspec.Struct, frozen=True, kw_only=True):
    """What was answered.

    Attributes:
        output: The golden file that holds inputs and answers.
        signature_name: Who answered.
        num_examples: Rows.
        batch_sizes: Of the calls, in order.
    """

    output: Path
    signature_name: str
    num_examples: int
    batch_sizes: tuple[int, ...]


def predict_files(
    version_dir: Path,
    files: list[Path],
    output: Path,
    *,
    signature_name: str = "",
    batch_size: int = 32,
) -> Prediction:
    """Loads a version into this process, asks it, and writes inputs and answers.

    Args:
        version_dir: A published version or a candidate.
        files: One .npy, one .npz (a key per input), or PNG and JPEG files.
        output: The golden file, which every client's parity check takes.
        signature_name: "" chooses by the files: `serving_image_bytes` for pictures,
            `serving_uint8` for uint8 arrays, else `serving_default`.
        batch_size: Rows per call; a replay sends the same batches.

    Returns:
        Where the answers are, and whose they are.

    Raises:
        ConfigError: `batch_size` is below 1, or `output` cannot be written.
        DatasetError: A file cannot be read.
        SignatureNotFoundError: The version has no such signature.
        RequestError: The arrays do not fit it, or a picture cannot be decoded.
        ManifestError: The version cannot be loaded.
    """
    if batch_size < 1:
        raise ConfigError(f"--batch_size {batch_size}: give 1 or more")
    check_version_dir(version_dir)
    arrays = read_inputs(files)
    from exporter.artifacts.golden import answer_inputs

    predictor = _open_model(version_dir)
    name = signature_name or _choose_signature(arrays, predictor.signatures)
    signature = find_signature(predictor.signatures, name)
    batch = _name_inputs(arrays, signature)
    rows = check_batch(batch, signature, Hints(frozenset(predictor.signatures)))
    if rows < 1:
        raise DatasetError("the inputs have no rows; give at least one")
    sizes = tuple(min(batch_size, rows - start) for start in range(0, rows, batch_size))
    examples = answer_inputs(predictor, batch, signature.name, batch_sizes=sizes)
    try:
        write_golden(output, Golden({signature.name: examples}))
    except OSError as error:
        raise ConfigError(f"--output {output} cannot be written: {error.strerror}") from error
    return Prediction(
        output=output, signature_name=signature.name, num_examples=rows, batch_sizes=sizes
    )


def _open_model(path: Path) -> InProcessPredictor | LiteModel:
    """The SavedModel of a version, or the TFLite file where there is nothing else."""
    if path.is_file():
        return LiteModel(path)
    if not (path / layout.SAVED_MODEL).exists():
        return LiteModel(path / layout.TFLITE)
    require_extra("tensorflow", "this command")
    from exporter.verification.reload import load_saved_model

    return load_saved_model(path)


def read_inputs(files: list[Path]) -> dict[str, Array]:
    """Arrays by input name; "" stands for the only input."""
    kinds = {path.suffix.lower() for path in files}
    if kinds <= _PICTURES:
        contents = np.empty(len(files), dtype=object)
        for at, path in enumerate(files):
            try:
                contents[at] = path.read_bytes()
            except OSError as error:
                raise DatasetError(f"{path} cannot be read: {error.strerror}") from error
        return {"": contents}
    if len(files) > 1 or not kinds <= {".npy", ".npz"}:
        given = ", ".join(map(str, files[:3]))
        raise ConfigError(f"--input {given}: give one .npy, one .npz, or PNG and JPEG files")
    path = files[0]
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return {"": loaded}
        with loaded:
            return {name: loaded[name] for name in loaded.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise DatasetError(f"{path} cannot be read as .npy or .npz: {reason}") from error


def _choose_signature(arrays: dict[str, Array], signatures: Mapping[str, Signature]) -> str:
    if len(arrays) != 1:
        return ""
    (array,) = arrays.values()
    wanted = {"O": IMAGE_BYTES, "u": UINT8}.get(array.dtype.kind, "")
    return wanted if wanted in signatures else ""


def _name_inputs(arrays: dict[str, Array], signature: Signature) -> dict[str, Array]:
    if set(arrays) == {""} and len(signature.inputs) == 1:
        arrays = {next(iter(signature.inputs)): arrays[""]}
    return {name: _as_objects(array) for name, array in arrays.items()}


def _as_objects(array: Array) -> Array:
    """Strings of an npz (fixed width, never pickled) as an object array of bytes."""
    if array.dtype.kind == "U":
        return np.char.encode(array, "utf-8").astype(object)
    return array.astype(object) if array.dtype.kind == "S" else array
