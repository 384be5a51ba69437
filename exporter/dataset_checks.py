"""What data must be before anything is trained on them: each fault gets its own sentence."""

from __future__ import annotations

import dataclasses

import numpy as np

from contract.errors import DatasetError
from exporter.dataset_readers import Array, RawData

MAX_CLASSES = 100_000


def clean_features(raw: RawData) -> RawData:
    """Return the data with uint8 images or float32 features; refuse all else.

    Integers in 0..255 of the shape of images are taken as pixels; floats are not guessed at,
    for a wrong guess (0..1 or 0..255?) trains a model that is wrong only when it serves.

    Raises:
        DatasetError: Wrong type or shape, values out of range, NaN, splits that differ.
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


def check_labels(raw: RawData) -> int:
    """Refuse labels that are not the integers 0..n-1, each present; return n.

    Raises:
        DatasetError: Wrong length, not integers, negative, gaps, one class only.
    """
    _check_label_array(raw.x_train, raw.y_train, raw.source, split="train")
    found = np.unique(raw.y_train)
    highest = int(found[-1])
    if len(found) < 2:
        raise DatasetError(f"{raw.source}: y_train holds one class only ({highest}); give two")
    if highest >= MAX_CLASSES or len(found) != highest + 1:
        missing = int(np.setdiff1d(np.arange(min(highest, MAX_CLASSES)), found)[0])
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
