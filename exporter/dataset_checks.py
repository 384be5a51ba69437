"""What data must be before anything is trained on them: each fault gets its own sentence."""

from __future__ import annotations

import numpy as np

from contract.errors import DatasetError
from exporter.dataset_readers import Array, RawData

MAX_CLASSES = 100_000


def check_features(raw: RawData) -> None:
    """Refuse features that are not uint8 images or finite float32 numbers.

    Raises:
        DatasetError: Wrong dtype, wrong rank, empty, NaN or infinite, splits that differ.
    """
    _check_one(raw.x_train, f"{raw.source}: x_train")
    if raw.x_test is None:
        return
    _check_one(raw.x_test, f"{raw.source}: x_test")
    if raw.x_test.shape[1:] != raw.x_train.shape[1:] or raw.x_test.dtype != raw.x_train.dtype:
        raise DatasetError(
            f"{raw.source}: x_train holds {raw.x_train.dtype} {raw.x_train.shape[1:]} and x_test "
            f"{raw.x_test.dtype} {raw.x_test.shape[1:]}; both must be alike"
        )


def _check_one(features: Array, what: str) -> None:
    if features.ndim < 2 or 0 in features.shape:
        raise DatasetError(f"{what} has shape {features.shape}; give (examples, ...), none of it 0")
    if features.dtype == np.uint8:
        if features.ndim != 4 or features.shape[3] not in (1, 3):
            raise DatasetError(
                f"{what} has shape {features.shape}; uint8 images are (examples, height, width) "
                "or (examples, height, width, channels) with 1 or 3 channels"
            )
        return
    if features.dtype != np.float32:
        raise DatasetError(
            f"{what} is {features.dtype}; give uint8 pixels 0..255 for images, or float32 features"
        )
    finite = np.isfinite(features)
    if not finite.all():
        row = int(np.argwhere(~finite)[0][0])
        raise DatasetError(f"{what} holds NaN or infinity, first in row {row}; remove such rows")
    if features.ndim >= 3:
        raise DatasetError(
            f"{what} is float32 of shape {features.shape}, which looks like images; give images "
            "as raw uint8 pixels 0..255 (floats in 0..1: `(x * 255).round().astype('uint8')`), "
            "and other features as (examples, features)"
        )


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
