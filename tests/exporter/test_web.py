"""Which signatures the variant `web` carries: those that LiteRT.js runs."""

from __future__ import annotations

import pytest

from contract.signature import Signature, TensorSpec
from exporter.artifacts.web import find_obstacle


def make(dtype: str, shape: tuple[int | None, ...] | None, answers: str = "float32") -> Signature:
    return Signature(
        "serving_default",
        {"x": TensorSpec("x", dtype, shape)},
        {"y": TensorSpec("y", answers, (None, None))},
    )


@pytest.mark.parametrize(
    "signature",
    [
        make("float32", (None, 4)),
        make("uint8", (None, 28, 28)),
        make("int32", (None, 4), "int32"),
        make("float32", ()),
    ],
)
def test_what_litert_js_has_a_type_for_is_carried(signature: Signature) -> None:
    assert find_obstacle(signature) == ""


@pytest.mark.parametrize(
    ("signature", "text"),
    [
        (make("int8", (None, 4)), "serving_default has x, int8 (batch, 4)"),
        (make("float32", (None, 4), "int64"), "serving_default has y, int64 (batch, ?)"),
        (make("float32", (None, None)), "serving_default takes x, float32 (batch, ?)"),
        (make("float32", None), "serving_default takes x, float32 (any)"),
    ],
)
def test_what_litert_js_cannot_run_is_named(signature: Signature, text: str) -> None:
    assert find_obstacle(signature) == text
