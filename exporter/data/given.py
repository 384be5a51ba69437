"""Examples that somebody gives for a model of theirs: arrays, tables, data sets, files, labels."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from contract.errors import DatasetError
from contract.heads import Head
from contract.signature import STRING, Array, dtype_name
from exporter.data.dataset import fingerprint_arrays
from exporter.data.examples import Examples, ExportExamples, choose_rows, count_bytes, spread_rows
from exporter.data.image_folder import read_pictures
from exporter.data.pixels import PixelScale
from exporter.data.targets import clean_class_names

ExamplesLike: TypeAlias = Any
"""An array, a mapping of input name to array, a `tf.data.Dataset`, a DataFrame, or a path."""

LabelsLike: TypeAlias = Any
"""An array, a mapping of output name to array, the name of a column of the examples, or a path."""

MAX_ROWS = 10_000
MAX_BYTES = 512 * 2**20
"""What is taken of a `tf.data.Dataset`, which may have no end."""

_NUM_CALIBRATION = 200


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
    picture_shape: tuple[int, ...] = (),
) -> GivenExamples:
    """Reads examples and labels of any ordinary kind.

    Args:
        examples: See `ExamplesLike`. A `tf.data.Dataset` gives inputs, or (inputs, labels).
        labels: See `LabelsLike`; None where there are none.
        class_names: Of integer labels, in order; of labels that are names, their order.
        picture_shape: (height, width, channels) that files of pictures are resized to; () where
            nobody knows what the model takes.

    Raises:
        DatasetError: What was given is none of these, has no rows, or its parts do not fit.
    """
    name = "examples"
    class_names = clean_class_names(class_names, "class_names")
    if isinstance(examples, str | os.PathLike):
        path = Path(examples)
        name = path.resolve().stem
        if path.is_dir():
            examples, classes = read_pictures(path, picture_shape)
            labels = classes if labels is None else labels
        else:
            examples = _read_file(path)
    if isinstance(labels, str | os.PathLike):
        columns = _read_table(examples)
        if columns is not None and labels in columns:
            labels = columns.pop(str(labels))
            examples = _stack_columns(columns)
        else:
            labels = _read_file(Path(labels))
    if _is_tensorflow_data(examples):
        if labels is not None:
            raise DatasetError(
                "a tf.data.Dataset brings its labels itself: give one of (inputs, labels), or "
                "arrays and labels"
            )
        examples, labels = _drain(examples)
    inputs = _to_arrays(examples, "examples")
    targets = {} if labels is None else _to_arrays(labels, "labels")
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
    described = {key: describe_target(array, class_names, key) for key, array in targets.items()}
    found = {key: array for key, (array, _) in described.items()}
    heads = {key: head for key, (_, head) in described.items()}
    return GivenExamples(name, Examples(inputs, found), heads, class_names)


def _to_arrays(given: object, what: str) -> dict[str, Array]:
    if isinstance(given, Mapping):
        if not given:
            raise DatasetError(f"{what}: an empty mapping; give an array per name")
        return {str(key): _to_array(one, f"{what} {key!r}") for key, one in given.items()}
    columns = _read_table(given)
    if columns is not None:
        stacked = _stack_columns(columns)
        return stacked if isinstance(stacked, dict) else {"": stacked}
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
    if array.dtype.kind in "US":
        array = array.astype(object)
    if array.dtype.kind == "c":
        raise DatasetError(f"{what} is {array.dtype}; give real numbers")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        row = int(np.argwhere(~np.isfinite(array))[0][0])
        raise DatasetError(
            f"{what} holds NaN or infinity in row {row}; remove or replace such rows"
        )
    return array


def _read_table(given: object) -> dict[str, Array] | None:
    """The columns of a DataFrame of any library, by the protocols that they share."""
    if hasattr(given, "__arrow_c_stream__"):
        import pyarrow as pa

        table = pa.table(given)
    elif hasattr(given, "__dataframe__"):
        import pyarrow.interchange

        table = pyarrow.interchange.from_dataframe(given)
    else:
        return None
    columns = {}
    for name in table.column_names:
        column = table.column(name)
        if column.null_count:
            raise DatasetError(
                f"column {name!r} lacks {column.null_count} of {len(column)} values; fill them as "
                "for the model's training"
            )
        columns[str(name)] = column.to_numpy()
    return columns


def _stack_columns(columns: Mapping[str, Array]) -> Array | dict[str, Array]:
    """Numbers of one row each become one array (rows, columns); else an array per column."""
    if all(array.dtype.kind in "fiub" and array.ndim == 1 for array in columns.values()):
        return np.stack([array.astype(np.float32) for array in columns.values()], axis=1)
    return dict(columns)


def _is_tensorflow_data(given: object) -> bool:
    return any(
        base.__module__.startswith("tensorflow") and base.__name__ == "DatasetV2"
        for base in type(given).__mro__
    )


def _drain(dataset: Any) -> tuple[object, object]:
    """Inputs and labels of a `tf.data.Dataset`, as many rows as are wanted."""
    import tensorflow as tf

    spec = dataset.element_spec
    has_labels = isinstance(spec, tuple) and len(spec) in (2, 3)
    parts: list[tuple[Any, Any]] = []
    rows = num_bytes = 0
    is_batched = all(
        (one.shape.rank and one.shape[0] is None) or one.shape.rank is None
        for one in tf.nest.flatten(spec)
    )
    for element in dataset:
        inputs, labels = (element[0], element[1]) if has_labels else (element, None)
        arrays = tf.nest.map_structure(lambda one: one.numpy(), (inputs, labels))
        if not is_batched:
            arrays = tf.nest.map_structure(lambda one: np.asarray(one)[np.newaxis], arrays)
        parts.append(arrays)
        flat = tf.nest.flatten(arrays[0])
        rows += len(flat[0])
        num_bytes += sum(map(count_bytes, flat))
        if rows >= MAX_ROWS or num_bytes >= MAX_BYTES:
            break
    if not parts:
        raise DatasetError("the tf.data.Dataset has no elements; give a few dozen rows at least")
    joined = tf.nest.map_structure(lambda *arrays: np.concatenate(arrays), *parts)
    return joined[0], joined[1]


def _read_file(path: Path) -> object:
    """Arrays or a table of a file; a folder of images gives pixels."""
    suffix = path.suffix.lower()
    try:
        if suffix in (".npy", ".npz"):
            loaded = np.load(path, allow_pickle=False)
            if isinstance(loaded, np.ndarray):
                return loaded
            with loaded:
                return {name: loaded[name] for name in loaded.files}
        if suffix == ".csv":
            import pyarrow.csv

            return pyarrow.csv.read_csv(path)
        if suffix == ".parquet":
            import pyarrow.parquet

            return pyarrow.parquet.read_table(path)
    except Exception as error:  # numpy's, zipfile's and Arrow's own
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise DatasetError(f"{path} cannot be read: {reason}") from error
    raise DatasetError(
        f"{path} is no file of examples; give an .npz, .npy, .csv or .parquet file, or a folder of "
        "pictures"
    )


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
    return labels.astype(np.int64), Head(task="multiclass", class_names=names)


def _number_names(labels: Array, names: tuple[str, ...], what: str) -> tuple[Array, Head]:
    texts = [one.decode() if isinstance(one, bytes) else str(one) for one in labels.flat]
    names = names or tuple(sorted(set(texts)))
    numbers = {name: at for at, name in enumerate(names)}
    unknown = sorted(set(texts) - set(names))
    if unknown:
        raise DatasetError(f"{what} hold {unknown[0]!r}, which is none of {', '.join(names)}")
    found = np.array([numbers[text] for text in texts], np.int64).reshape(labels.shape)
    return found, Head(task="multiclass", class_names=names)


def draw_given(
    given: GivenExamples, *, num_golden: int, pixels: PixelScale | None = None
) -> ExportExamples:
    """The rows that a version of a model which was trained elsewhere is made and verified with.

    Args:
        given: What somebody gave.
        num_golden: Golden rows, or as many as there are.
        pixels: How pixels become numbers; None where they are none.
    """
    examples = given.examples
    labels = examples.labels
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
