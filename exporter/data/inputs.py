"""What a model is fed with: pixels, numbers, sequences or texts; checked, and gaps filled."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias

import numpy as np

from contract.errors import DatasetError
from contract.signature import Array

Impute: TypeAlias = Literal["", "mean", "median", "zero"]


def clean_input(
    features: Array,
    what: str,
    *,
    named: bool = False,
    sequence: bool = False,
    missing: bool = False,
) -> Array:
    """One input as `Examples` holds it.

    Integers in 0..255 of the shape of images are taken as pixels; floats are not guessed at,
    for a wrong guess (0..1 or 0..255?) trains a model that is wrong only when it serves.

    Args:
        features: As read; axis 0 is the row.
        what: What to call it in an error.
        named: One of several inputs: it may be one number a row.
        sequence: Numbers of (rows, time, features).
        missing: NaN stands for a number that is missing, and is let through.

    Returns:
        uint8 (rows, height, width, channels), float32 (rows, ...), or bytes in an object array.

    Raises:
        DatasetError: It is none of these.
    """
    if features.ndim == 0 or 0 in features.shape:
        raise DatasetError(f"{what} has shape {features.shape}; give (examples, ...), none of it 0")
    if features.dtype.kind in "USO":
        return _clean_texts(features, what)
    is_number = features.dtype.kind in "biuf"
    if sequence and is_number and features.ndim < 3:
        raise DatasetError(
            f"{what} has shape {features.shape}; sequences are (examples, time, features), with "
            "one value a step `x[..., None]`"
        )
    if sequence and is_number:
        return _clean_numbers(features, what, missing=missing)
    if named and features.ndim == 1 and is_number:
        return _clean_numbers(features[:, np.newaxis], what, missing=missing)
    if features.ndim < 2:
        raise DatasetError(f"{what} has shape {features.shape}; give (examples, ...), none of it 0")
    if features.ndim == 2 and features.dtype == np.uint8 and not named:
        raise DatasetError(
            f"{what} is uint8 of shape {features.shape}; reshape images to (examples, height, "
            "width), or give other numbers as floats"
        )
    if features.ndim == 2 and (is_number or features.dtype.kind == "c"):
        return _clean_numbers(features, what, missing=missing)
    if features.dtype.kind in "iu":
        return _clean_images(features, what)
    raise DatasetError(
        f"{what} is {features.dtype} of shape {features.shape}; give images as raw pixels, uint8 "
        "in 0..255 (floats in 0..1: `(x * 255).round().astype('uint8')`), sequences with "
        "data.kind = 'sequence', and other data as (examples, features) of floats"
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
            "height, width, channels) with 1 or 3 channels; sequences need data.kind = 'sequence'"
        )
    return images.astype(np.uint8, copy=False)


def _clean_numbers(features: Array, what: str, *, missing: bool) -> Array:
    if np.iscomplexobj(features):
        raise DatasetError(f"{what} is {features.dtype}; give real numbers")
    with np.errstate(over="ignore"):
        numbers = features.astype(np.float32)
    wrong = np.isinf(numbers) if missing else ~np.isfinite(numbers)
    if wrong.any():
        place = tuple(int(n) for n in np.argwhere(wrong)[0])
        advice = "remove or replace such rows"
        if np.isnan(features[place]):
            advice += ", or say how to fill them: data.impute = 'mean', 'median' or 'zero'"
        raise DatasetError(
            f"{what} holds {features[place]} in row {place[0]}, column {place[-1]}; numbers must "
            f"be finite as float32: {advice}"
        )
    return numbers


def _clean_texts(features: Array, what: str) -> Array:
    texts = np.empty(features.shape, object)
    for place, value in np.ndenumerate(features):
        if not isinstance(value, str | bytes):
            raise DatasetError(f"{what} holds {value!r} in row {place[0]}; give texts or numbers")
        texts[place] = value.encode() if isinstance(value, str) else bytes(value)
    return texts


def find_fillings(train: Array, rule: Impute, what: str, columns: Sequence[str] = ()) -> Array:
    """What a missing number becomes, from the training rows alone.

    Args:
        train: float32 (rows, ..., columns); NaN is missing.
        rule: `mean` or `median` of the column's numbers, or `zero`.
        what: What to call the input in an error.
        columns: What to call its columns.

    Returns:
        float32 (columns,).

    Raises:
        DatasetError: A column has no number at all.
    """
    flat = train.reshape(-1, train.shape[-1])
    if rule == "zero":
        return np.zeros(flat.shape[1], np.float32)
    lacking = np.isnan(flat).all(axis=0)
    if lacking.any():
        column = int(np.flatnonzero(lacking)[0])
        name = repr(columns[column]) if columns else str(column)
        raise DatasetError(
            f"{what}: column {name} is missing in every training row, so it has no {rule}; leave "
            "it out, or say data.impute = 'zero'"
        )
    reduce = np.nanmean if rule == "mean" else np.nanmedian
    found: Array = reduce(flat.astype(np.float64), axis=0).astype(np.float32)
    return found


def fill_missing(numbers: Array, fillings: Array) -> Array:
    """NaN replaced by the column's filling; float32 (rows, ..., columns)."""
    filled: Array = np.where(np.isnan(numbers), fillings, numbers)
    return filled
