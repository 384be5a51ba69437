"""Whatever was read, checked and split: one `Dataset` of fixed splits.

Images are held as raw uint8, ink light on dark as in MNIST (0 = paper, 255 = ink), so that
every signature sees the same pixels; `PixelScale` is the one place that scales them.
Nothing here imports TensorFlow.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Mapping, Sequence
from typing import assert_never

import numpy as np
from numpy.typing import NDArray

from contract.errors import DatasetError
from contract.heads import Head
from contract.signature import Array
from exporter.config import DataConfig, InMemoryKind
from exporter.data.examples import Examples, ExportExamples, RawData, choose_rows, spread_rows
from exporter.data.inputs import clean_input, fill_missing, find_fillings
from exporter.data.pixels import ZERO_TO_ONE, PixelScale
from exporter.data.readers.arrays import read_digits, read_mnist, read_npz
from exporter.data.readers.image_folder import read_image_folder
from exporter.data.readers.stream import Stream, StreamedData, open_tfrecords
from exporter.data.readers.tables import read_table, read_texts
from exporter.data.statistics import warn_of_odd_splits
from exporter.tasks.targets import clean_target

_RANDOM_FEATURES = 784
_RANDOM_CLASSES = 10

_CLASS_ROWS = 64
"""Rows of a class, beside the test split, that copies are judged by ..."""
_MAX_MORE_ROWS = 4096
"""... and of all classes together."""
_MAX_SAMPLE_ROWS = 10_000
_MAX_SAMPLE_BYTES = 64 * 2**20
"""Of a test split that streams."""


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Three splits of examples with targets.

    Attributes:
        name: `digits`, `mnist`, `random`, or the user's file name without its ending.
        train: What is trained on, and what int8 is calibrated with; each split is in memory, or
            read where it lies.
        validation: For early stopping.
        test: Seen by nothing but the final measurement.
        targets: Target name to the task that it poses, with the names of its classes.
        fingerprint: sha256 (hex) over all arrays, their dtypes and shapes.
        pixels: How the pixels of the only input, uint8 (examples, height, width, channels),
            become numbers; None where it holds none.
        columns: What the values of the only input's last axis are called, where they have names;
            `color=red` is 1 in rows whose category is `red`.
        fillings: Input name to what a missing number became, float32 (columns,).
        missing: Input name to the share of training rows that lacked a value, float64 (columns,);
            of a category, in the first of its columns.
        num_skipped: Files that could not be read and were left out.
        dummy: The data mean nothing (`random`): every output must say so.
    """

    name: str
    train: Examples | Stream
    validation: Examples | Stream
    test: Examples | Stream
    targets: Mapping[str, Head]
    fingerprint: str
    pixels: PixelScale | None = None
    columns: tuple[str, ...] = ()
    fillings: Mapping[str, Array] = dataclasses.field(default_factory=dict)
    missing: Mapping[str, Array] = dataclasses.field(default_factory=dict)
    num_skipped: int = 0
    dummy: bool = False

    @property
    def is_image(self) -> bool:
        """The only input holds pixels."""
        return self.pixels is not None

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one example of the only input: (height, width, channels) or the features'."""
        return tuple(int(n) for n in _first(self.train.take(slice(1)).inputs).shape[1:])

    @property
    def class_names(self) -> tuple[str, ...]:
        """Of the first target, in order."""
        return next(iter(self.targets.values())).class_names

    @property
    def num_classes(self) -> int:
        """Number of classes of the first target."""
        return len(self.class_names)


def _first(arrays: Mapping[str, Array]) -> Array:
    return next(iter(arrays.values()))


def to_float32(
    features: Array,
    input_shape: tuple[int, ...] | None = None,
    pixels: PixelScale = ZERO_TO_ONE,
) -> NDArray[np.float32]:
    """Turn raw features into what a model takes.

    Args:
        features: uint8 pixels (examples, ...), or float32 features, which pass unscaled.
        input_shape: Shape of one example for the model, where it differs: an MLP takes
            (784,) for images of (28, 28, 1).
        pixels: What 0 and 255 become.

    Returns:
        float32 (examples, *input_shape).
    """
    is_pixels = features.dtype == np.uint8
    scaled = pixels.apply(features) if is_pixels else np.asarray(features, np.float32)
    return scaled if input_shape is None else scaled.reshape(len(scaled), *input_shape)


def load_dataset(config: DataConfig) -> Dataset:
    """Read the data and split them.

    The split is stratified and hangs on `config.seed` alone, so that training seeds can be
    compared on the same rows.

    Args:
        config: Which data, and how to split them.

    Returns:
        Training, validation and test split.

    Raises:
        DatasetError: The data are missing, unreadable, or cannot be trained on.

    Example:
        >>> load_dataset(load_config("mlp").data).train.inputs[""].shape[1:]
        (28, 28, 1)
    """
    if config.kind == "tfrecord":
        return _stream_dataset(open_tfrecords(config), config)
    if config.kind == "loader":
        from exporter.data.readers.loader import read_loader

        read = read_loader(config)
        if isinstance(read, StreamedData):
            return _stream_dataset(read, config)
        return make_dataset(read, config)
    return make_dataset(_read(config, config.kind), config)


def _read(config: DataConfig, kind: InMemoryKind) -> RawData:
    match kind:
        case "digits":
            return read_digits()
        case "mnist":
            return read_mnist(config.path, download=config.download)
        case "npz":
            return read_npz(config.path)
        case "sequence":
            return dataclasses.replace(read_npz(config.path, config.kind), is_sequence=True)
        case "image_folder":
            return read_image_folder(config)
        case "csv" | "parquet":
            return read_table(config)
        case "text":
            return read_texts(config)
        case "random":
            return _make_random(config)
        case _:
            assert_never(kind)


def _stream_dataset(data: StreamedData, config: DataConfig) -> Dataset:
    if config.max_examples:
        raise DatasetError(
            f"data.max_examples is {config.max_examples}, and {data.name} streams: give fewer "
            "shards, or cut the data in the loader"
        )
    row = data.splits["train"].take(slice(1))
    is_image = len(row.inputs) == 1 and _first(row.inputs).dtype == np.uint8
    return Dataset(
        name=data.name,
        train=data.splits["train"],
        validation=data.splits["validation"],
        test=data.splits["test"],
        targets=data.heads,
        fingerprint=data.fingerprint,
        pixels=PixelScale(*config.scale) if is_image else None,
        num_skipped=data.num_skipped,
    )


def make_dataset(raw: RawData, config: DataConfig) -> Dataset:
    """Checks what was read, splits it, fills what is missing, and takes the fingerprint.

    Raises:
        DatasetError: The data cannot be trained on.
    """
    inputs = _clean_inputs(raw, missing=bool(config.impute))
    targets, heads = _clean_targets(raw, config)
    given = {name: Examples(inputs[name], targets[name]) for name in raw.splits}
    if config.max_examples:
        given = {
            name: examples.take(spread_rows(len(examples), config.max_examples))
            for name, examples in given.items()
        }
    splits = _split(given, heads, raw, config)
    missing = _share_missing(splits["train"], raw, config)
    splits, fillings = _fill_missing(splits, raw, config)
    warn_of_odd_splits({split: splits[split] for split in raw.splits}, raw.source)
    is_image = len(inputs["train"]) == 1 and _first(inputs["train"]).dtype == np.uint8
    pixels = PixelScale(*config.scale) if is_image else None
    arrays = {
        f"{letter}_{split}" + (f"/{name}" if name else ""): array
        for split, examples in splits.items()
        for letter, named in (("x", examples.inputs), ("y", examples.targets))
        for name, array in named.items()
    }
    if pixels is not None and pixels != ZERO_TO_ONE:
        arrays["scale"] = np.array(config.scale)
    return Dataset(
        name=raw.name,
        **splits,
        targets=heads,
        fingerprint=fingerprint_arrays(arrays),
        pixels=pixels,
        columns=raw.columns,
        fillings=fillings,
        missing=missing,
        num_skipped=raw.num_skipped,
        dummy=raw.dummy,
    )


def draw_export_examples(
    dataset: Dataset, *, num_golden: int, num_calibration: int, seed: int
) -> ExportExamples:
    """The rows of a data set that its version is made and verified with.

    Args:
        dataset: What the model was trained on.
        num_golden: Golden rows, or as many as there are.
        num_calibration: Rows of int8's calibration, balanced over the classes.
        seed: Of the choice of calibration rows.
    """
    splits = (dataset.test, dataset.validation, dataset.train)
    test = _sample(dataset.test)
    if any(split.labels is None for split in splits):
        golden = dataset.test.take(spread_rows(len(dataset.test), num_golden))
        more = dataset.test.take(slice(0))
        calibration = dataset.train.take(spread_rows(len(dataset.train), num_calibration))
    else:
        chosen = choose_rows(_labels(dataset.test), num_golden)
        golden = dataset.test.take(chosen)
        if len(chosen) < num_golden or len(np.unique(_labels(dataset.test))) < dataset.num_classes:
            golden = _choose(splits, num_golden)
        limit = min(_CLASS_ROWS * dataset.num_classes, _MAX_MORE_ROWS)
        more = _choose(splits[1:], limit)
        rows = choose_rows(_labels(dataset.train), num_calibration, seed=seed)
        calibration = dataset.train.take(rows)
    return ExportExamples(
        name=dataset.name,
        fingerprint=dataset.fingerprint,
        num_examples={
            "train": len(dataset.train),
            "validation": len(dataset.validation),
            "test": len(dataset.test),
        },
        golden=golden,
        test=test,
        more=more,
        calibration=calibration,
        targets=dataset.targets,
        pixels=dataset.pixels,
        dummy=dataset.dummy,
        columns=dataset.columns,
        fillings=dataset.fillings,
        missing=dataset.missing,
    )


def _sample(split: Examples | Stream) -> Examples:
    """All rows that are in memory; of a stream, as many as is reasonable, spread evenly."""
    if isinstance(split, Examples):
        return split
    count = max(1, min(_MAX_SAMPLE_ROWS, _MAX_SAMPLE_BYTES // split.row_bytes))
    return split.take(spread_rows(len(split), count))


def _choose(splits: Sequence[Examples | Stream], count: int) -> Examples:
    """Rows of several splits, the classes in turn."""
    chosen = choose_rows(np.concatenate([_labels(split) for split in splits]), count)
    starts = np.cumsum([0, *map(len, splits)])
    parts = []
    places = []
    for split, first, stop in zip(splits, starts[:-1], starts[1:], strict=True):
        here = np.flatnonzero((chosen >= first) & (chosen < stop))
        parts.append(split.take(chosen[here] - first))
        places.append(here)
    return Examples.concatenate(parts).take(np.argsort(np.concatenate(places)))


def _labels(examples: Examples | Stream) -> Array:
    labels = examples.labels
    assert labels is not None, "every split has the same targets"
    return labels


def fingerprint_arrays(arrays: dict[str, Array]) -> str:
    """Return the sha256 (hex) over names, dtypes, shapes and bytes of arrays."""
    digest = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        if array.dtype.kind == "O":  # texts, as bytes
            for text in array.flat:
                digest.update(len(text).to_bytes(8, "little") + text)
        else:
            digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def split_stratified(
    labels: Array, fraction: float, *, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Choose rows so that each class keeps its share in both parts.

    Args:
        labels: int64 (examples,).
        fraction: Share of the second part, 0..1; at least one row of each class goes there.
        seed: Of the choice.
    """
    rng = np.random.default_rng(seed)
    second: list[NDArray[np.int64]] = []
    for label in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == label))
        second.append(rows[: max(1, round(len(rows) * fraction))])
    chosen = np.sort(np.concatenate(second))
    return np.setdiff1d(np.arange(len(labels)), chosen), chosen


def _clean_inputs(raw: RawData, *, missing: bool) -> dict[str, dict[str, Array]]:
    """Split to inputs, checked."""
    cleaned: dict[str, dict[str, Array]] = {}
    num_rows: dict[str, int] = {}
    for split, examples in raw.splits.items():
        cleaned[split] = {}
        for name, array in examples.inputs.items():
            what = raw.call_array("x", split, name)
            array = clean_input(
                array, what, named=bool(name), sequence=raw.is_sequence, missing=missing
            )
            rows = num_rows.setdefault(split, len(array))
            if len(array) != rows:
                raise DatasetError(
                    f"{what} has {len(array)} rows, but the inputs before it {rows}; give every "
                    "input the same rows"
                )
            cleaned[split][name] = array
            train = cleaned["train"][name]
            if array.shape[1:] != train.shape[1:] or array.dtype != train.dtype:
                raise DatasetError(
                    f"{raw.source}: x_train holds {train.dtype} {train.shape[1:]} and x_{split} "
                    f"{array.dtype} {array.shape[1:]}; both must be alike"
                )
    return cleaned


def _clean_targets(
    raw: RawData, config: DataConfig
) -> tuple[dict[str, dict[str, Array]], dict[str, Head]]:
    """Split to targets, checked, and what each target asks."""
    cleaned: dict[str, dict[str, Array]] = {split: {} for split in raw.splits}
    heads: dict[str, Head] = {}
    unknown = sorted(config.tasks.keys() - raw.train.targets.keys())
    if unknown:
        raise DatasetError(
            f"{raw.source}: data.tasks names {unknown[0]!r}; the targets are "
            f"{', '.join(map(repr, raw.train.targets))}"
        )
    alone = len(raw.train.targets) == 1
    for name in raw.train.targets:
        for split, examples in raw.splits.items():
            rows, labels = len(examples), len(examples.targets[name])
            if rows != labels:
                raise DatasetError(
                    f"{raw.source}: {rows} examples in x_{split} but {labels} labels in "
                    f"y_{split}{f'/{name}' if name else ''}; give one label per example"
                )
        parts, heads[name] = clean_target(
            {split: examples.targets[name] for split, examples in raw.splits.items()},
            functools.partial(raw.call_array, "y", name=name),
            source=raw.source,
            task=config.tasks.get(name) or config.task or None,
            class_names=raw.class_names.get(name) or (config.class_names if alone else ()),
        )
        for split, array in parts.items():
            cleaned[split][name] = array
    return cleaned, heads


def _split(
    given: dict[str, Examples], heads: Mapping[str, Head], raw: RawData, config: DataConfig
) -> dict[str, Examples]:
    """`train`, `validation` and `test`: those that are not given are taken from `train`."""
    train = given["train"]
    test, validation = given.get("test"), given.get("validation")
    if test is None:
        kept, tested = _choose_split(train, config.test_fraction, seed=config.seed)
        train, test = train.take(kept), train.take(tested)
    if validation is None:
        kept, validated = _choose_split(train, config.validation_fraction, seed=config.seed + 1)
        train, validation = train.take(kept), train.take(validated)
    for name, head in heads.items():
        labels = train.targets[name]
        is_class = head.has_one_class and labels.ndim == 1
        if not len(train) or (is_class and len(np.unique(labels)) < len(head.class_names)):
            raise DatasetError(
                f"{raw.source}: a class has too few training rows to split; give each class at "
                "least three (train, validation, test)"
            )
    return {"train": train, "validation": validation, "test": test}


def _choose_split(
    examples: Examples, fraction: float, *, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Stratified where a target is one class a row; else any rows."""
    labels = examples.labels
    if labels is None:
        labels = np.zeros(len(examples), np.int64)
    return split_stratified(labels, fraction, seed=seed)


def _share_missing(train: Examples, raw: RawData, config: DataConfig) -> dict[str, Array]:
    """The share of rows without a value in each column, before any is filled."""
    if not config.impute:
        return {}
    found: dict[str, Array] = {}
    for name, array in train.inputs.items():
        if array.dtype != np.float32:
            continue
        flat = array.reshape(-1, array.shape[-1])
        found[name] = np.isnan(flat).mean(axis=0)
        # Training knows every category that it has, so that a row of none has no value.
        for first, stop in _list_categories(raw.columns):
            found[name][first] = (flat[:, first:stop] == 0).all(axis=1).mean()
    return found


def _list_categories(columns: Sequence[str]) -> list[tuple[int, int]]:
    """Where the columns of each category begin and end: `color=blue`, `color=red`."""
    names = [column.partition("=")[0] if "=" in column else "" for column in columns]
    ends: dict[str, tuple[int, int]] = {}
    for place, name in enumerate(names):
        if name:
            ends[name] = (ends.get(name, (place, 0))[0], place + 1)
    return list(ends.values())


def _fill_missing(
    splits: dict[str, Examples], raw: RawData, config: DataConfig
) -> tuple[dict[str, Examples], dict[str, Array]]:
    """The splits without NaN, and what a missing number of each input became."""
    if not config.impute:
        return splits, {}
    fillings: dict[str, Array] = {}
    for name, array in splits["train"].inputs.items():
        if array.dtype != np.float32 or not any(
            np.isnan(one.inputs[name]).any() for one in splits.values()
        ):
            continue
        what = raw.call_array("x", "train", name)
        fillings[name] = find_fillings(array, config.impute, what, raw.columns)
    filled = {
        split: dataclasses.replace(
            examples,
            inputs={
                name: fill_missing(array, fillings[name]) if name in fillings else array
                for name, array in examples.inputs.items()
            },
        )
        for split, examples in splits.items()
    }
    return filled, fillings


def _make_random(config: DataConfig) -> RawData:
    """Make features that mean nothing: for smoke tests only."""
    rng = np.random.default_rng(config.seed)
    rows = config.num_examples
    features = rng.random((rows, _RANDOM_FEATURES), np.float32)
    # Every class appears, however few the rows.
    labels = rng.permutation(np.arange(rows) % _RANDOM_CLASSES)
    return RawData("random", "random data", Examples({"": features}, {"": labels}), dummy=True)
