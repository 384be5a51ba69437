"""Real handwritten digits, MNIST, the user's own arrays, or noise: one `Dataset` of fixed splits.

Images are held as raw uint8, ink light on dark as in MNIST (0 = paper, 255 = ink), so that
every signature sees the same pixels; `PixelScale` is the one place that scales them.
Nothing here imports TensorFlow.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from typing import assert_never

import numpy as np
from numpy.typing import NDArray

from contract.errors import DatasetError
from contract.heads import Head
from contract.signature import Array
from exporter.config import DataConfig
from exporter.data.examples import Examples, ExportExamples, choose_rows, spread_rows
from exporter.data.pixels import ZERO_TO_ONE, PixelScale
from exporter.data.readers import RawData, read_digits, read_mnist, read_npz

_RANDOM_FEATURES = 784
_RANDOM_CLASSES = 10
_MAX_CLASSES = 100_000

_CLASS_ROWS = 64
"""Rows of a class, beside the test split, that copies are judged by ..."""
_MAX_MORE_ROWS = 4096
"""... and of all classes together."""


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Three splits of examples with targets.

    Attributes:
        name: `digits`, `mnist`, `random`, or the user's file name without its ending.
        train: What is trained on, and what int8 is calibrated with.
        validation: For early stopping.
        test: Seen by nothing but the final measurement.
        targets: Target name to the task that it poses, with the names of its classes.
        fingerprint: sha256 (hex) over all arrays, their dtypes and shapes.
        pixels: How the pixels of the only input, uint8 (examples, height, width, channels),
            become numbers; None where it holds none.
        dummy: The data mean nothing (`random`): every output must say so.
    """

    name: str
    train: Examples
    validation: Examples
    test: Examples
    targets: Mapping[str, Head]
    fingerprint: str
    pixels: PixelScale | None = None
    dummy: bool = False

    @property
    def is_image(self) -> bool:
        """The only input holds pixels."""
        return self.pixels is not None

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one example of the only input: (height, width, channels) or the features'."""
        return tuple(int(n) for n in self.x_train.shape[1:])

    @property
    def class_names(self) -> tuple[str, ...]:
        """Of the first target, in order."""
        return next(iter(self.targets.values())).class_names

    @property
    def num_classes(self) -> int:
        """Number of classes of the first target."""
        return len(self.class_names)

    @property
    def x_train(self) -> Array:
        """The first input of the training split."""
        return _first(self.train.inputs)

    @property
    def y_train(self) -> Array:
        """The first target of the training split."""
        return _first(self.train.targets)

    @property
    def x_validation(self) -> Array:
        """The first input of the validation split."""
        return _first(self.validation.inputs)

    @property
    def y_validation(self) -> Array:
        """The first target of the validation split."""
        return _first(self.validation.targets)

    @property
    def x_test(self) -> Array:
        """The first input of the test split."""
        return _first(self.test.inputs)

    @property
    def y_test(self) -> Array:
        """The first target of the test split."""
        return _first(self.test.targets)


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
        >>> load_dataset(load_config("configs/mlp.toml").data).x_train.shape[1:]
        (28, 28, 1)
    """
    if config.kind == "digits":
        raw = read_digits()
    elif config.kind == "mnist":
        raw = read_mnist(config.path, download=config.download)
    elif config.kind == "npz":
        raw = read_npz(config.path)
    elif config.kind == "random":
        raw = _make_random(config)
    else:
        assert_never(config.kind)
    raw = _clean_features(raw)
    num_classes = _check_labels(raw)
    return _split(raw, config, num_classes)


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
    others = Examples.concatenate(list(splits[1:]))
    labels = dataset.test.labels
    if labels is None:
        golden = dataset.test.take(spread_rows(len(dataset.test), num_golden))
        more = others.take(slice(0))
        calibration = dataset.train.take(spread_rows(len(dataset.train), num_calibration))
    else:
        chosen = choose_rows(labels, num_golden)
        golden = dataset.test.take(chosen)
        if len(chosen) < num_golden or len(np.unique(labels)) < dataset.num_classes:
            every = Examples.concatenate(list(splits))
            golden = every.take(choose_rows(_labels(every), num_golden))
        limit = min(_CLASS_ROWS * dataset.num_classes, _MAX_MORE_ROWS)
        more = others.take(choose_rows(_labels(others), limit))
        train_labels = _labels(dataset.train)
        calibration = dataset.train.take(choose_rows(train_labels, num_calibration, seed=seed))
    return ExportExamples(
        name=dataset.name,
        fingerprint=dataset.fingerprint,
        num_examples={
            "train": len(dataset.train),
            "validation": len(dataset.validation),
            "test": len(dataset.test),
        },
        golden=golden,
        test=dataset.test,
        more=more,
        calibration=calibration,
        targets=dataset.targets,
        pixels=dataset.pixels,
        dummy=dataset.dummy,
    )


def _labels(examples: Examples) -> Array:
    labels = examples.labels
    assert labels is not None, "every split has the same targets"
    return labels


def fingerprint_arrays(arrays: dict[str, Array]) -> str:
    """Return the sha256 (hex) over names, dtypes, shapes and bytes of arrays."""
    digest = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
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


def _split(raw: RawData, config: DataConfig, num_classes: int) -> Dataset:
    x_train, y_train = raw.x_train, raw.y_train.astype(np.int64)
    if raw.x_test is None or raw.y_test is None:
        kept, tested = split_stratified(y_train, config.test_fraction, seed=config.seed)
        x_test, y_test = x_train[tested], y_train[tested]
        x_train, y_train = x_train[kept], y_train[kept]
    else:
        x_test, y_test = raw.x_test, raw.y_test.astype(np.int64)
    kept, validated = split_stratified(y_train, config.validation_fraction, seed=config.seed + 1)
    if len(np.unique(y_train[kept])) < num_classes:
        raise DatasetError(
            f"{raw.source}: a class has too few training rows to split; give each class at "
            "least three (train, validation, test)"
        )
    arrays = {
        "x_train": x_train[kept],
        "y_train": y_train[kept],
        "x_validation": x_train[validated],
        "y_validation": y_train[validated],
        "x_test": x_test,
        "y_test": y_test,
    }
    names = raw.class_names or tuple(str(label) for label in range(num_classes))
    return Dataset(
        name=raw.name,
        **{
            split: Examples({"": arrays[f"x_{split}"]}, {"": arrays[f"y_{split}"]})
            for split in ("train", "validation", "test")
        },
        targets={"": Head(task="multiclass", class_names=names)},
        fingerprint=fingerprint_arrays(arrays),
        pixels=PixelScale() if raw.x_train.dtype == np.uint8 else None,
        dummy=raw.dummy,
    )


def _make_random(config: DataConfig) -> RawData:
    """Make features that mean nothing: for smoke tests only."""
    rng = np.random.default_rng(config.seed)
    rows = config.num_examples
    return RawData(
        name="random",
        source="random data",
        x_train=rng.random((rows, _RANDOM_FEATURES), np.float32),
        # Every class appears, however few the rows.
        y_train=rng.permutation(np.arange(rows) % _RANDOM_CLASSES),
        dummy=True,
    )


def _clean_features(raw: RawData) -> RawData:
    """Return the data with uint8 images or float32 features; refuse all else.

    Integers in 0..255 of the shape of images are taken as pixels; floats are not guessed at,
    for a wrong guess (0..1 or 0..255?) trains a model that is wrong only when it serves.
    """
    x_train = _clean(raw.x_train, f"{raw.source}: x_train")
    if raw.x_test is None:
        return dataclasses.replace(raw, x_train=x_train)
    x_test = _clean(raw.x_test, f"{raw.source}: x_test")
    if x_test.shape[1:] != x_train.shape[1:] or x_test.dtype != x_train.dtype:
        raise DatasetError(
            f"{raw.source}: x_train holds {x_train.dtype} {x_train.shape[1:]} and x_test "
            f"{x_test.dtype} {x_test.shape[1:]}; both must be alike"
        )
    return dataclasses.replace(raw, x_train=x_train, x_test=x_test)


def _clean(features: Array, what: str) -> Array:
    if features.ndim < 2 or 0 in features.shape:
        raise DatasetError(f"{what} has shape {features.shape}; give (examples, ...), none of it 0")
    if features.ndim == 2 and features.dtype == np.uint8:
        raise DatasetError(
            f"{what} is uint8 of shape {features.shape}; reshape images to (examples, height, "
            "width), or give other numbers as floats"
        )
    if features.ndim == 2 and np.issubdtype(features.dtype, np.number):
        return _clean_vectors(features, what)
    if np.issubdtype(features.dtype, np.integer):
        return _clean_images(features, what)
    raise DatasetError(
        f"{what} is {features.dtype} of shape {features.shape}; give images as raw pixels, uint8 "
        "in 0..255 (floats in 0..1: `(x * 255).round().astype('uint8')`), and other data as "
        "(examples, features) of floats"
    )


def _clean_images(images: Array, what: str) -> Array:
    lowest, highest = int(images.min()), int(images.max())
    if lowest < 0 or highest > 255:
        raise DatasetError(f"{what} holds values {lowest}..{highest}; pixels must be 0..255")
    if images.ndim == 3:
        images = images[..., np.newaxis]
    if images.ndim != 4 or images.shape[3] not in (1, 3):
        raise DatasetError(
            f"{what} has shape {images.shape}; images are (examples, height, width) or (examples, "
            "height, width, channels) with 1 or 3 channels"
        )
    return images.astype(np.uint8, copy=False)


def _clean_vectors(features: Array, what: str) -> Array:
    if np.iscomplexobj(features):
        raise DatasetError(f"{what} is {features.dtype}; give real numbers")
    with np.errstate(over="ignore"):
        numbers = features.astype(np.float32)
    wrong = ~np.isfinite(numbers)
    if wrong.any():
        row, column = (int(n) for n in np.argwhere(wrong)[0])
        raise DatasetError(
            f"{what} holds {features[row, column]} in row {row}, column {column}; numbers must be "
            "finite as float32: remove or replace such rows"
        )
    return numbers


def _check_labels(raw: RawData) -> int:
    """Refuse labels that are not the integers 0..n-1, each present; return n."""
    _check_label_array(raw.x_train, raw.y_train, raw.source, split="train")
    found = np.unique(raw.y_train)
    highest = int(found[-1])
    if len(found) < 2:
        raise DatasetError(f"{raw.source}: y_train holds one class only ({highest}); give two")
    if highest >= _MAX_CLASSES or len(found) != highest + 1:
        missing = int(np.setdiff1d(np.arange(min(highest, _MAX_CLASSES)), found)[0])
        raise DatasetError(
            f"{raw.source}: labels must be 0..classes-1 without gaps; the highest is {highest} "
            f"but {missing} never appears in y_train"
        )
    if raw.x_test is not None and raw.y_test is not None:
        _check_label_array(raw.x_test, raw.y_test, raw.source, split="test")
        if int(raw.y_test.max()) > highest:
            raise DatasetError(
                f"{raw.source}: y_test holds class {int(raw.y_test.max())}, which y_train lacks"
            )
    if raw.class_names and len(raw.class_names) != highest + 1:
        raise DatasetError(
            f"{raw.source}: {len(raw.class_names)} class_names for {highest + 1} classes"
        )
    return highest + 1


def _check_label_array(features: Array, labels: Array, source: str, *, split: str) -> None:
    what = f"{source}: y_{split}"
    if labels.ndim != 1:
        raise DatasetError(f"{what} has shape {labels.shape}; give one integer per example")
    if len(labels) != len(features):
        raise DatasetError(
            f"{source}: {len(features)} examples in x_{split} but {len(labels)} labels in "
            f"y_{split}; give one label per example"
        )
    if not np.issubdtype(labels.dtype, np.integer):
        raise DatasetError(f"{what} is {labels.dtype}; labels must be integers 0..classes-1")
    if len(labels) == 0:
        raise DatasetError(f"{what} is empty")
    if int(labels.min()) < 0:
        raise DatasetError(f"{what} holds {int(labels.min())}; labels must be 0..classes-1")
