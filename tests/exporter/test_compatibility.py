"""What breaks the clients of the version before."""

from __future__ import annotations

import dataclasses

import pytest

from contract.signature import CLASSIFY_METHOD, Signature, TensorSpec
from exporter.publishing.publish import list_breaks
from tests.exporter.candidates import make_signature

BEFORE = make_signature()


def breaks(after: Signature) -> list[str]:
    return list_breaks({BEFORE.name: BEFORE}, {after.name: after})


def test_the_same_signatures_break_nobody() -> None:
    assert breaks(make_signature()) == []


def test_a_new_signature_and_a_new_output_break_nobody() -> None:
    more = dataclasses.replace(
        BEFORE, outputs={**BEFORE.outputs, "logits": TensorSpec("logits", "float32", (None, 10))}
    )
    assert (
        list_breaks({BEFORE.name: BEFORE}, {BEFORE.name: more, "new": make_signature("new")}) == []
    )


@pytest.mark.parametrize(
    ("after", "text"),
    [
        (make_signature("renamed"), "signature 'serving_default' is gone or renamed"),
        (make_signature(given="pixels"), "input 'images' is gone or renamed"),
        (make_signature(answered="scores"), "output 'probabilities' is gone or renamed"),
        (make_signature(dtype="uint8"), "was float32 (batch, 784) and is uint8 (batch, 784)"),
        (make_signature(width=100), "was float32 (batch, 784) and is float32 (batch, 100)"),
        (
            dataclasses.replace(BEFORE, method_name=CLASSIFY_METHOD),
            "was tensorflow/serving/predict and is tensorflow/serving/classify",
        ),
        (
            dataclasses.replace(
                BEFORE, inputs={**BEFORE.inputs, "mask": TensorSpec("mask", "bool", (None,))}
            ),
            "input 'mask' is new",
        ),
    ],
)
def test_whatever_a_client_relies_on_may_not_change(after: Signature, text: str) -> None:
    assert any(text in found for found in breaks(after))
