import numpy as np
import pytest

from contract.errors import Code, RequestError, TensorMismatchError
from contract.servable import ModelSpec
from serving.engines.signatures import (
    UNKNOWN_IN_EXAMPLES,
    UNKNOWN_IN_MULTI_INFERENCE,
    UNKNOWN_IN_PREDICT,
    UNKNOWN_IN_REST,
)
from tests.serving.numpy_servables import make_servable

CHECKS = make_servable().checks
TWO = CHECKS.find("two", UNKNOWN_IN_PREDICT)
METHODS = (
    UNKNOWN_IN_PREDICT,
    UNKNOWN_IN_REST,
    UNKNOWN_IN_EXAMPLES,
    UNKNOWN_IN_MULTI_INFERENCE,
)


def test_no_signature_name_means_serving_default() -> None:
    for unknown in METHODS:
        assert CHECKS.find("", unknown).answer_spec == ModelSpec(
            "m", version=3, signature_name="serving_default"
        )


def test_each_method_has_its_own_words_and_code_for_an_unknown_signature() -> None:
    found = {}
    for unknown in METHODS:
        with pytest.raises(RequestError) as caught:
            CHECKS.find("nope", unknown)
        found[caught.value.message] = caught.value.code
    assert found == {
        'Serving signature key "nope" not found.': Code.FAILED_PRECONDITION,
        'Serving signature name: "nope" not found in signature def': Code.INVALID_ARGUMENT,
        "No signature was found with the name: nope": Code.INVALID_ARGUMENT,
        "Requested signature not found in model graph: nope": Code.INVALID_ARGUMENT,
    }


def test_defaults_fill_what_is_missing_and_nothing_else() -> None:
    a = np.ones(2, np.float32)
    TWO.check_names(["a"])
    completed = TWO.complete({"a": a})
    assert completed["a"] is a
    assert completed["b"].tolist() == [1]


def test_an_input_without_a_default_is_missed_by_name() -> None:
    with pytest.raises(TensorMismatchError) as caught:
        TWO.check_names(["b"])
    assert caught.value.message == (
        "Signature input alias: a(feed name: two_a:0) not found in request and no default value "
        "provided. Inputs expected to be in the request {b}, or default input alias set: b"
    )


def test_what_the_signature_does_not_name_is_left_out_when_the_number_fits() -> None:
    x = np.ones(1, np.float32)
    TWO.check_names(["a", "z"])
    assert set(TWO.complete({"a": x, "z": x})) == {"a", "b"}


def test_too_many_inputs_are_listed() -> None:
    with pytest.raises(TensorMismatchError, match=r"Sent extra: \{z\}\. Missing but required"):
        TWO.check_names(["a", "b", "z"])


@pytest.mark.parametrize(
    ("wanted", "text"),
    [
        (
            ["nope"],
            "output tensor alias not found in signature: nope Outputs expected to be in "
            "the set {difference,sum}.",
        ),
        (["sum", "sum"], "duplicate output tensor alias: sum"),
    ],
)
def test_output_filters_are_checked(wanted: list[str], text: str) -> None:
    with pytest.raises(RequestError) as caught:
        TWO.check_filter(wanted)
    assert caught.value.message == text
