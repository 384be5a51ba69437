"""Rows that look otherwise than those a version was made with are remarked, others are not."""

from __future__ import annotations

import numpy as np
import pytest

from contract.manifest import InputStatistics
from contract.signature import Array
from contract.statistics import (
    compare_inputs,
    describe_columns,
    describe_scaling,
    find_scaling,
    measure_columns,
    measure_input,
    measure_shift,
    sketch_columns,
)

RNG = np.random.default_rng(4)
SHAPE = (12, 12, 1)


def draw_digits(rows: int = 40) -> Array:
    """Light strokes on dark, 0..1."""
    pictures = np.zeros((rows, *SHAPE), np.float32)
    pictures[:, 3:9, 4:7] = RNG.random((rows, 6, 3, 1))
    return pictures


def measure(array: Array, *, image: bool = True) -> dict[str, InputStatistics]:
    found = measure_input(array, SHAPE if image else ())
    assert found is not None
    return {"": found}


def flags(batch: Array, known: dict[str, InputStatistics]) -> list[str]:
    return [one.flag for one in compare_inputs({"images": batch}, known)]


def test_rows_of_the_same_kind_get_no_remark() -> None:
    known = measure(draw_digits())
    assert flags(draw_digits(5), known) == []
    assert flags((draw_digits(5) * 255).astype(np.uint8), known) == []
    assert flags(draw_digits(5).reshape(5, -1), known) == []


@pytest.mark.parametrize(
    ("low", "high", "flag"), [(0, 1, "--scale 255"), (-1, 1, "--scale 127.5 --shift -1")]
)
def test_pixels_as_floats_of_0_to_255_are_remarked(low: float, high: float, flag: str) -> None:
    known = measure(draw_digits() * (high - low) + low)
    assert flags(draw_digits(5) * 255, known) == [flag]


def test_floats_of_0_to_1_for_a_model_of_0_to_255_are_remarked() -> None:
    known = measure(draw_digits() * 255)
    assert flags(draw_digits(5), known) == ["--scale 1/255"]
    assert flags(draw_digits(5) * 255, known) == []


@pytest.mark.parametrize(
    ("low", "high", "flag"),
    [(0, 1, "--scale 1"), (-1, 1, "--scale 1/2 --shift -1"), (0, 255, "--scale 1/255")],
)
def test_integers_of_0_and_1_for_a_model_of_pictures_are_remarked(
    low: float, high: float, flag: str
) -> None:
    known = measure(draw_digits() * (high - low) + low)
    bits = (draw_digits() > 0.5).astype(np.uint8)
    assert flags(bits, known) == [flag]
    assert flags(bits * 255, known) == flags(bits * 0, known) == []
    (found,) = compare_inputs({"images": bits}, known)
    numbers = bits / found.scale + found.shift
    assert (numbers.min(), numbers.max()) == pytest.approx((low, high))
    assert flags(numbers.astype(np.float32), known) == []


def test_integers_that_are_no_pixels_get_no_remark() -> None:
    words = measure(RNG.integers(0, 200, (200, 8)), image=False)
    assert flags(np.tile(np.array([0, 1], np.int64), (40, 4)), words) == []


def test_pixels_that_were_divided_twice_are_remarked() -> None:
    known = measure(draw_digits())
    assert flags(draw_digits(5) / 255, known) == ["--scale 1/255"]
    assert flags(draw_digits(5) / 3, known) == []


def test_flags_of_a_scaling_are_what_it_does() -> None:
    found = [describe_scaling(*one) for one in ((255.0,), (1 / 255,), (127.5, -1.0), (0.4,))]
    assert found == ["--scale 255", "--scale 1/255", "--scale 127.5 --shift -1", "--scale 0.4"]
    assert describe_scaling(1.0, has_shift=True) == "--scale 1 --shift 0"


@pytest.mark.parametrize("as_bytes", [True, False])
def test_dark_on_light_is_remarked_either_way_round(as_bytes: bool) -> None:
    light, dark = draw_digits(), 1 - draw_digits()
    kind = (lambda x: (x * 255).astype(np.uint8)) if as_bytes else (lambda x: x)
    assert flags(kind(dark), measure(light)) == ["--invert"]
    assert flags(kind(light), measure(dark)) == ["--invert"]


def test_photographs_are_neither_way_round() -> None:
    photographs = RNG.random((60, *SHAPE))
    assert flags(draw_digits(), measure(photographs)) == []
    assert flags(photographs, measure(draw_digits())) == []


def test_a_table_of_numbers_is_not_taken_for_pixels() -> None:
    ages = RNG.integers(0, 90, (200, 3)).astype(np.float32)
    assert flags(np.ones((1, 3), np.float32), measure(ages, image=False)) == []
    standard = RNG.normal(size=(200, 3)).astype(np.float32)
    assert flags(standard * 9, measure(standard, image=False)) == []


def test_texts_and_what_is_unknown_have_no_remark() -> None:
    assert measure_input(np.array([b"a"], object)) is None
    assert compare_inputs({"a": np.array([b"a"], object)}, measure(draw_digits())) == []
    assert compare_inputs({"a": draw_digits()}, {}) == []


@pytest.mark.parametrize(
    ("low", "high", "stated", "mean", "std"),
    [
        (0.02, 0.97, (), 0, 255),
        (-0.9, 1, (), 127.5, 127.5),
        (0, 250, (), 0, 1),
        (0, 0.9, (0.0, 2.0), 0, 127.5),
    ],
)
def test_the_scale_of_pixels_is_as_stated_else_as_the_range_tells(
    low: float, high: float, stated: tuple[float, ...], mean: float, std: float
) -> None:
    known = InputStatistics(min=low, max=high, mean=0.1, std=0.1, num_rows=9, pixel_scale=stated)
    found = find_scaling(known)
    assert found is not None and (found.mean, found.std) == ((mean,), (std,))


def test_numbers_on_no_scale_of_pixels_say_nothing_of_it() -> None:
    known = InputStatistics(min=-300, max=900, mean=0, std=9, num_rows=9)
    assert find_scaling(known) is None


@pytest.mark.parametrize(("num_rows", "least"), [(20, 0.3), (50, 0.95), (1000, 1.0)])
def test_few_rows_of_the_same_kind_have_seldom_moved_and_others_mostly_have(
    num_rows: int, least: float
) -> None:
    rng = np.random.default_rng(0)

    def sample(count: int, mean: float = 0.0) -> dict[str, Array]:
        return measure_columns(rng.normal(mean, size=(count, 1)), names=["age"])

    known = describe_columns(rng.normal(size=(1000, 1)), names=["age"])

    def has_moved(mean: float) -> bool:
        sketch = sketch_columns(sample(num_rows, mean), known)["age"]
        return measure_shift(sketch, known["age"]).has_moved

    assert np.mean([has_moved(0.0) for _ in range(300)]) < 0.05
    assert np.mean([has_moved(1.0) for _ in range(100)]) >= least
