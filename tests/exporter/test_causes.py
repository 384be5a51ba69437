"""Why int8 lost what it lost: what can be seen is named, with its remedy."""

from __future__ import annotations

import numpy as np

from contract.heads import Head
from contract.lite import Quantisation
from contract.signature import Array
from exporter.verification.causes import find_causes

RNG = np.random.default_rng(0)


def quantise(array: Array) -> Quantisation:
    """As the converter does it: 256 steps from the smallest to the largest value, 0 included."""
    low, high = min(0.0, float(array.min())), max(0.0, float(array.max()))
    return Quantisation("int8", (high - low) / 255, 0)


def explain_input(array: Array) -> tuple[str, ...]:
    return find_causes({"x": array}, {}, ({"x": quantise(array)}, {}), {})


def explain_output(array: Array, head: Head) -> tuple[str, ...]:
    return find_causes({}, {"y": array}, ({}, {"y": quantise(array)}), {"y": head})


def spread(*widths: float) -> Array:
    return RNG.uniform(0, widths, (200, len(widths))).astype(np.float32)


def test_a_column_that_is_tiny_beside_another_is_named() -> None:
    (cause,) = explain_input(spread(1, 100_000))
    assert "column 1 of input 'x' spans" in cause
    assert "while column 0 spans" in cause
    assert "normalise the inputs" in cause


def test_columns_of_about_one_scale_are_no_cause() -> None:
    assert explain_input(spread(1, 4, 2)) == ()
    assert explain_input(np.hstack([spread(1), np.zeros((200, 1), np.float32)])) == ()


def test_ids_as_floats_are_named() -> None:
    (cause,) = explain_input(RNG.integers(0, 5000, (200, 1)).astype(np.float32))
    assert "take ids as int32" in cause


def test_pixels_as_floats_are_no_ids() -> None:
    assert explain_input(RNG.integers(0, 256, (20, 784)).astype(np.float32)) == ()


def test_an_input_that_lies_far_from_0_is_named() -> None:
    (cause,) = explain_input(1000 + spread(1))
    assert "subtract the mean" in cause


def test_outliers_are_named() -> None:
    array = spread(1)
    array[7] = 500
    (cause,) = explain_input(array)
    assert "others reach 500" in cause


def test_values_far_from_0_and_values_of_two_scales_are_named() -> None:
    values = Head(task="regression")
    (far,) = explain_output(1000 + spread(1), values)
    assert "targets less their mean" in far
    (mixed,) = explain_output(spread(1, 1000), values)
    assert "an output of its own" in mixed
    assert explain_output(spread(1, 2), values) == ()
    assert explain_output(spread(1, 1000), Head(task="multiclass", from_logits=True)) == ()
