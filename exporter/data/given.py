"""Examples that somebody gives for a model of theirs: arrays, tables, data sets, files, labels."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias, TypeGuard

import numpy as np

from contract.errors import DatasetError
from contract.heads import Head, Task
from contract.signature import STRING, Array, dtype_name
from exporter.data.dataset import fingerprint_arrays
from exporter.data.examples import (
    PLACE,
    Examples,
    ExportExamples,
    choose_rows,
    count_bytes,
    spread_rows,
    to_bytes,
)
from exporter.data.pixels import PixelScale
from exporter.data.readers.image_folder import read_example_pictures
from exporter.data.readers.tables import read_arrow, read_columns
from exporter.tasks.targets import clean_class_names

ExamplesLike: TypeAlias = Any
"""An array, a mapping of input name to array, a `tf.data.Dataset`, a DataFrame, or a path: of an
.npz, .npy, .csv, .parquet or .jsonl file, or of a folder of pictures."""

LabelsLike: TypeAlias = Any
"""An array, a mapping of output name to array, the name of a column of the examples, or a path."""

MAX_ROWS = 10_000
MAX_BYTES = 512 * 2**20
"""What is taken of a `tf.data.Dataset`, which may have no end."""

_NUM_CALIBRATION = 200
_MAX_PLACES = 16
"""Inputs that may be given in a list instead of by name."""


@dataclasses.dataclass(frozen=True)
class GivenExamples:
    """What was given, as arrays.

    Attributes:
        name: What to call the data.
        examples: The rows.
        targets: Target name to the task that it poses.
        class_names: As given.
    """

    name: str
    examples: Examples
    targets: Mapping[str, Head]
    class_names: tuple[str, ...] = ()


def read_given(
    examples: ExamplesLike,
    labels: LabelsLike = None,
    *,
    class_names: Sequence[str] = (),
    input_shape: tuple[int | None, ...] | None = None,
    skip_unreadable: bool = False,
) -> GivenExamples:
    """Reads examples and labels of any ordinary kind; files are there, says `check_paths`.

    Args:
        examples: See `ExamplesLike`. A `tf.data.Dataset` gives inputs, or (inputs, labels).
        labels: See `LabelsLike`; None where there are none.
        class_names: Of integer labels, in order; of labels that are names, their order.
        input_shape: What the model's only input takes, its batch axis first; None where nobody
            knows. Pictures of a folder get this size; it tells batches of a data set from rows.
        skip_unreadable: Leave out pictures of a folder that cannot be read.

    Raises:
        DatasetError: What was given is none of these, has no rows, or its parts do not fit.
    """
    names = clean_class_names(class_names, "class_names")
    name = "examples"
    if isinstance(examples, str | os.PathLike):
        name = Path(examples).stem
        examples, labels, names = _read_path(
            Path(examples), labels, names, input_shape, skip_unreadable=skip_unreadable
        )
    table = _read_table(examples)
    examples = examples if table is None else table
    if isinstance(labels, str | os.PathLike):
        examples, labels = _find_labels(examples, labels)
    if _is_tensorflow_data(examples):
        if labels is not None:
            raise DatasetError(
                "a tf.data.Dataset brings its labels itself: give one of (inputs, labels), or "
                "arrays and labels"
            )
        examples, labels = _drain(examples, input_shape)
    inputs = _to_arrays(examples, "examples", has_one_input=input_shape is not None)
    targets = {} if labels is None else _to_arrays(labels, "labels")
    _check_rows(inputs, targets)
    described = {key: describe_target(array, names, key) for key, array in targets.items()}
    arrays = {key: array for key, (array, _) in described.items()}
    heads = {key: head for key, (_, head) in described.items()}
    return GivenExamples(name, Examples(inputs, arrays), heads, names)


def check_paths(examples: ExamplesLike, labels: LabelsLike) -> None:
    """Finds out, before anything is loaded, that a file is not there.

    Labels that are no path are the name of a column.

    Raises:
        DatasetError: One is not there.
    """
    for what, given in (("examples", examples), ("labels", labels)):
        if not isinstance(given, str | os.PathLike) or Path(given).exists():
            continue
        if what == "examples" or os.sep in os.fspath(given) or Path(given).suffix:
            raise DatasetError(
                f"the {what} {os.fspath(given)} are not there; give an existing file"
            )


def _read_path(
    path: Path,
    labels: LabelsLike,
    names: tuple[str, ...],
    input_shape: tuple[int | None, ...] | None,
    *,
    skip_unreadable: bool,
) -> tuple[object, LabelsLike, tuple[str, ...]]:
    """Examples, labels and names of classes of a file or a folder."""
    if not path.is_dir():
        return _read_file(path), labels, names
    if labels is not None:
        raise DatasetError(
            f"{path} is a folder, whose own folders are the labels; leave labels out"
        )
    size, channels = _find_picture_size(input_shape)
    pixels, found, folders = read_example_pictures(
        path, size=size, channels=channels, class_names=names, skip_unreadable=skip_unreadable
    )
    return pixels, found, names or folders


def _find_labels(examples: object, labels: str | os.PathLike[str]) -> tuple[object, object]:
    """Labels that are a column of the examples, which lose it, or a file."""
    if isinstance(examples, Mapping) and labels in examples:
        others = {name: one for name, one in examples.items() if name != labels}
        return others, examples[labels]
    if isinstance(labels, str) and not Path(labels).exists():
        columns = ", ".join(map(str, examples)) if isinstance(examples, Mapping) else "none"
        raise DatasetError(
            f"labels {labels!r} is no column of the examples ({columns}), and no file"
        )
    found = _read_file(Path(labels))
    if isinstance(found, Mapping) and len(found) == 1:
        return examples, next(iter(found.values()))
    return examples, found


def _check_rows(inputs: Mapping[str, Array], targets: Mapping[str, Array]) -> None:
    counts = {
        f"{what} {key!r}" if key else what: len(array)
        for what, arrays in (("examples", inputs), ("labels", targets))
        for key, array in arrays.items()
    }
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{key}: {count}" for key, count in counts.items())
        raise DatasetError(f"examples and labels must have equally many rows; got {listed}")
    if not counts or not next(iter(counts.values())):
        raise DatasetError("the examples have no rows; give a few dozen at least")


def _find_picture_size(
    shape: tuple[int | None, ...] | None,
) -> tuple[tuple[int, int] | None, int]:
    """(height, width), if fixed, and channels, 0 if not, of the pictures that a model takes."""
    if shape is None or len(shape) not in (3, 4):
        return None, 0
    height, width = shape[1:3]
    channels = shape[3] if len(shape) == 4 else 1
    size = (height, width) if height and width else None
    return size, channels if channels in (1, 3) else 0


def _is_several(given: object, *, has_one_input: bool) -> TypeGuard[Sequence[Array]]:
    """Whether a list or tuple holds an array for each input, and not a row in each place."""
    if not isinstance(given, list | tuple) or not 1 < len(given) <= _MAX_PLACES:
        return False
    if not all(isinstance(one, np.ndarray) and one.ndim for one in given):
        return False
    return isinstance(given, tuple) or (not has_one_input and all(one.ndim > 1 for one in given))


def _to_arrays(given: object, what: str, *, has_one_input: bool = False) -> dict[str, Array]:
    if isinstance(given, Mapping):
        if not given:
            raise DatasetError(f"{what}: an empty mapping; give an array per name")
        return {str(key): _to_array(one, f"{what} {key!r}") for key, one in given.items()}
    if what == "examples" and _is_several(given, has_one_input=has_one_input):
        return {f"{PLACE}{at}": _to_array(one, what) for at, one in enumerate(given)}
    columns = _read_table(given)
    if columns is not None:
        return {name: _to_array(one, f"{what} {name!r}") for name, one in columns.items()}
    return {"": _to_array(given, what)}


def _to_array(given: object, what: str) -> Array:
    try:
        array = np.asarray(given)
    except Exception as error:  # whatever the object's own conversion raises
        raise DatasetError(
            f"{what} cannot be read as an array: {type(error).__name__}: {error}"
        ) from error
    if array.dtype.kind == "O" and not all(isinstance(one, str | bytes) for one in array.flat):
        kinds = sorted({type(one).__name__ for one in array.flat})
        raise DatasetError(
            f"{what} is an array of Python objects ({', '.join(kinds[:4])}); give numbers of one "
            "dtype, or strings"
        )
    if array.ndim == 0:
        raise DatasetError(
            f"{what} is a {type(given).__name__}; give an array, a mapping of input name to array, "
            "a tf.data.Dataset, a DataFrame, an .npz, .npy, .csv or .parquet file, or a folder of "
            "images"
        )
    if array.dtype.kind in "OUS":
        array = to_bytes(array)
    if array.dtype.kind not in "biufO" and array.dtype.name != "bfloat16":
        raise DatasetError(f"{what} is {array.dtype}; give real numbers or strings")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        row = int(np.argwhere(~np.isfinite(array))[0][0])
        raise DatasetError(
            f"{what} holds NaN or infinity in row {row}; remove or replace such rows"
        )
    return array


def _read_table(given: object) -> dict[str, Array] | None:
    """The columns of a DataFrame of any library, by the protocols that they share.

    None for what is no table, as a Series, which speaks the protocol too.
    """
    is_table = any(hasattr(given, name) for name in ("columns", "column_names", "schema"))
    is_stream = is_table and hasattr(given, "__arrow_c_stream__")
    if not is_stream and not hasattr(given, "__dataframe__"):
        return None
    import pyarrow as pa
    import pyarrow.interchange

    try:
        table = pa.table(given) if is_stream else pa.interchange.from_dataframe(given)
    except pa.ArrowException as error:
        reason = "; ".join(map(str, error.args))
        raise DatasetError(
            f"the table cannot be read: {reason}; give each column values of one type"
        ) from error
    # pandas stores an index that is not a plain range as a column of this name.
    kept = [name for name in table.column_names if not str(name).startswith("__index_level_")]
    return read_arrow(table.select(kept), "the table")


def _is_tensorflow_data(given: object) -> bool:
    return any(
        base.__module__.startswith("tensorflow") and base.__name__ == "DatasetV2"
        for base in type(given).__mro__
    )


def _drain(dataset: Any, input_shape: tuple[int | None, ...] | None) -> tuple[object, object]:
    """Inputs and labels of a `tf.data.Dataset`, as many rows as are wanted."""
    import tensorflow as tf

    spec = dataset.element_spec
    has_labels = isinstance(spec, tuple) and len(spec) in (2, 3)
    flat = tf.nest.flatten(spec)
    odd = next((one for one in flat if not isinstance(one, tf.TensorSpec)), None)
    if odd is not None:
        raise DatasetError(
            f"the tf.data.Dataset gives {type(odd).__name__.removesuffix('Spec')}s; give dense "
            "tensors (.to_tensor(), tf.sparse.to_dense)"
        )
    is_batched = _is_batched(flat, input_shape)
    parts: list[tuple[Any, Any]] = []
    rows = num_bytes = 0
    try:
        for element in dataset:
            inputs, labels = (element[0], element[1]) if has_labels else (element, None)
            arrays = tf.nest.map_structure(lambda one: one.numpy(), (inputs, labels))
            if not is_batched:
                arrays = tf.nest.map_structure(lambda one: np.asarray(one)[np.newaxis], arrays)
            parts.append(arrays)
            found = tf.nest.flatten(arrays[0])
            rows += len(found[0])
            num_bytes += sum(map(count_bytes, found))
            if rows >= MAX_ROWS or num_bytes >= MAX_BYTES:
                break
    except tf.errors.OpError as error:
        raise DatasetError(
            f"the tf.data.Dataset fails after {rows} rows: {str(error).splitlines()[0]}"
        ) from error
    if not parts:
        raise DatasetError("the tf.data.Dataset has no elements; give a few dozen rows at least")
    try:
        joined = tf.nest.map_structure(lambda *arrays: np.concatenate(arrays), *parts)
    except ValueError as error:
        raise DatasetError(
            f"the tf.data.Dataset gives rows of different shapes: {error}; pad or crop them alike"
        ) from error
    return joined[0], joined[1]


def _is_batched(flat: list[Any], input_shape: tuple[int | None, ...] | None) -> bool:
    """Whether elements are batches: an open first axis, the model's rank, or equal first sizes."""
    ranks = [one.shape.rank for one in flat]
    if None in ranks:
        return True
    if 0 in ranks:
        return False
    if any(one.shape[0] is None for one in flat):
        return True
    if input_shape is not None:
        return bool(ranks[0] == len(input_shape))
    return len(flat) > 1 and len({one.shape[0] for one in flat}) == 1


def _read_file(path: Path) -> object:
    """Arrays or columns of a file."""
    suffix = path.suffix.lower()
    if suffix in (".csv", ".tsv", ".parquet", ".jsonl", ".ndjson"):
        try:
            return read_columns(path)
        except DatasetError as error:  # how a training run would be configured is no advice here
            raise DatasetError(error.message.partition(", or say that")[0]) from error
    if suffix not in (".npy", ".npz"):
        raise DatasetError(
            f"{path} is no file of examples; give an .npz, .npy, .csv, .parquet or .jsonl file, or "
            "a folder of pictures"
        )
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return loaded
        with loaded:
            return {name: loaded[name] for name in loaded.files}
    except Exception as error:  # numpy's and zipfile's own
        if "pickle" in str(error):
            raise DatasetError(
                f"{path} holds pickled Python objects, which are code; save arrays of numbers or "
                "of numpy strings"
            ) from error
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise DatasetError(f"{path} cannot be read: {reason}") from error


def describe_target(
    labels: Array, class_names: Sequence[str] = (), name: str = ""
) -> tuple[Array, Head]:
    """Labels as a target, and the task that they pose.

    Args:
        labels: Integers, booleans or names: a class a row, or a place of it. Rows of 0 and 1:
            one-hot, or the labels of a row. Other floats: values.
        class_names: In order.
        name: Of the target, for messages.

    Returns:
        The target as `Examples.targets` has it, and its task.
    """
    what = f"labels {name!r}" if name else "labels"
    names = tuple(class_names)
    if dtype_name(labels.dtype) == STRING:
        return _number_names(labels, names, what)
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.dtype.kind == "b":
        labels = labels.astype(np.int64)
    is_indicator = labels.ndim == 2 and bool(np.isin(labels, (0, 1)).all())
    if labels.dtype.kind == "f" and labels.ndim == 1 and bool(np.isin(labels, (0, 1)).all()):
        labels = labels.astype(np.int64)
    if is_indicator and bool((labels.sum(axis=1) == 1).all()):
        labels = labels.argmax(axis=1)
    elif is_indicator:
        return labels.astype(np.float32), Head(task="multilabel", class_names=names)
    if labels.dtype.kind == "f":
        values = labels.astype(np.float32)
        return values.reshape(len(values), -1) if values.ndim == 1 else values, Head(
            task="regression", class_names=names
        )
    if labels.min() < 0:
        raise DatasetError(f"{what} hold {int(labels.min())}; classes are numbers from 0")
    if names and labels.max() >= len(names):
        raise DatasetError(
            f"{what} hold class {int(labels.max())}, and there are {len(names)} names"
        )
    is_flag = labels.ndim == 1 and int(labels.max()) <= 1
    task: Task = "binary" if is_flag and len(names) in (0, 2) else "multiclass"
    return labels.astype(np.int64), Head(task=task, class_names=names)


def _number_names(labels: Array, names: tuple[str, ...], what: str) -> tuple[Array, Head]:
    texts = [
        (one.decode(errors="replace") if isinstance(one, bytes) else str(one)).strip()
        for one in labels.flat
    ]
    names = names or clean_class_names(sorted(set(texts)), what)
    numbers = {name: at for at, name in enumerate(names)}
    unknown = sorted(set(texts) - set(names))
    if unknown:
        raise DatasetError(f"{what} hold {unknown[0]!r}, which is none of {', '.join(names)}")
    found = np.array([numbers[text] for text in texts], np.int64).reshape(labels.shape)
    task: Task = "binary" if len(names) == 2 else "multiclass"
    return found, Head(task=task, class_names=names)


def draw_given(
    given: GivenExamples,
    *,
    num_golden: int,
    pixels: PixelScale | None = None,
    classes: Array | None = None,
) -> ExportExamples:
    """The rows that a version of a model which was trained elsewhere is made and verified with.

    Args:
        given: What somebody gave.
        num_golden: Golden rows, or as many as there are.
        pixels: How pixels become numbers; None where they are none.
        classes: int64, what the model answers to the first rows; None where nobody asked it or
            it has no classes. Golden rows have all of them.
    """
    examples = given.examples
    labels = examples.labels if classes is None else classes
    if labels is None:
        chosen = spread_rows(len(examples), num_golden)
        calibration = spread_rows(len(examples), _NUM_CALIBRATION)
    else:
        chosen = choose_rows(labels, num_golden)
        calibration = choose_rows(labels, _NUM_CALIBRATION, seed=0)
    arrays = {f"x {name}".strip(): array for name, array in examples.inputs.items()}
    arrays |= {f"y {name}".strip(): array for name, array in examples.targets.items()}
    return ExportExamples(
        name=given.name,
        fingerprint=fingerprint_arrays(arrays),
        num_examples={"examples": len(examples)},
        golden=examples.take(chosen),
        test=examples,
        more=examples.take(slice(0)),
        calibration=examples.take(calibration),
        targets=given.targets,
        given_names=given.class_names,
        pixels=pixels,
    )


def to_pixels(rows: Array, scale: PixelScale | None) -> tuple[Array, PixelScale] | None:
    """Pictures of a model's only input as raw pixels, where that is what they are.

    Args:
        rows: uint8 pictures; or floats, with the scale that the model takes.
        scale: What 0 and 255 become; None takes uint8 as the numbers that they are.

    Returns:
        uint8 (rows, height, width, channels) and the scale; None where rows are no pictures.

    Raises:
        DatasetError: Floats that are no pixels on that scale.
    """
    if rows.ndim == 3 and rows.dtype == np.uint8:
        rows = rows[..., np.newaxis]
    is_picture = rows.ndim == 4 and rows.shape[-1] in (1, 3)
    if not is_picture or (scale is None and rows.dtype != np.uint8):
        return None
    if rows.dtype == np.uint8:
        return rows, scale or PixelScale(0.0, 255.0)
    assert scale is not None
    levels = (rows.astype(np.float64) - scale.low) / (scale.high - scale.low) * 255
    pixels = np.clip(np.rint(levels), 0, 255)
    if np.abs(levels - pixels).max() > 0.01:
        raise DatasetError(
            f"the examples are no pixels on the scale {scale.low:g}..{scale.high:g}: they hold "
            f"{rows.min():.4g}..{rows.max():.4g}, between the steps of 1/255; give uint8 "
            "pixels, or leave the scale out"
        )
    return pixels.astype(np.uint8), scale
