"""Files of other people: a batch of fixed size, and models that remember, answer row by row."""

from __future__ import annotations

import runpy
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from contract.errors import (
    DeadlineExceededError,
    ManifestError,
    TensorMismatchError,
    UnimplementedError,
)
from contract.lite import LiteModel
from contract.lite.schema import Memory, find_memory
from contract.signature import Array, check_batch
from tests.lite_models import FOLDER, answer_row_by_row, open_bare

STATEFUL = ["lstm.tflite", "counter.tflite"]


def make_rows(model: LiteModel, num_rows: int, seed: int = 0) -> dict[str, Array]:
    (spec,) = model.signatures["serving_default"].inputs.values()
    assert spec.shape is not None
    shape = [num_rows if size is None else size for size in spec.shape]
    return {spec.name: np.random.default_rng(seed).random(shape, np.float32)}


def ask(model: LiteModel, rows: Array, **options: str) -> Array:
    (name,) = model.signatures["serving_default"].inputs
    (answer,) = model.predict({name: rows}, **options).values()
    return answer


@pytest.fixture
def fixed() -> LiteModel:
    return LiteModel(FOLDER / "fixed.tflite")


@pytest.mark.parametrize("name", ["cnn.tflite", "groupnorm.tflite", *STATEFUL])
@pytest.mark.parametrize("num_rows", [1, 2, 7, 70])
def test_a_batch_of_one_takes_any_rows_and_answers_each_as_a_bare_interpreter_does(
    name: str, num_rows: int
) -> None:
    model = LiteModel(FOLDER / name)
    batch = make_rows(model, num_rows)
    (rows,) = batch.values()
    answer = ask(model, rows)
    assert len(answer) == num_rows
    np.testing.assert_array_equal(answer, answer_row_by_row(FOLDER / name, rows))


@pytest.mark.parametrize("name", ["cnn.tflite", "lstm.tflite"])
def test_the_signature_shows_a_free_batch_and_the_check_agrees(name: str) -> None:
    model = LiteModel(FOLDER / name)
    signature = model.signatures["serving_default"]
    specs = [*signature.inputs.values(), *signature.outputs.values()]
    assert all(spec.describe().startswith("float32 (batch, ") for spec in specs)
    assert model.fixed_rows["serving_default"] == 1
    assert check_batch(make_rows(model, 5), signature) == 5


def test_no_rows_are_answered_with_no_rows() -> None:
    model = LiteModel(FOLDER / "cnn.tflite")
    assert ask(model, np.zeros((0, 6, 6, 2), np.float32)).shape == (0, 2)


def test_ten_thousand_rows_are_answered_as_ten_thousand_calls_are() -> None:
    model = LiteModel(FOLDER / "cnn.tflite")
    (rows,) = make_rows(model, 10_000).values()
    answer = ask(model, rows)
    assert answer.shape == (10_000, 2)
    for index in range(0, 10_000, 997):
        np.testing.assert_array_equal(answer[index], ask(model, rows[index : index + 1])[0])


def test_a_run_of_many_single_rows_ends_when_nobody_wants_it() -> None:
    program = LiteModel(FOLDER / "cnn.tflite").find_program()
    (name,) = program.signature.inputs
    asked = 0

    def proceed() -> None:
        nonlocal asked
        asked += 1
        if asked == 3:
            raise DeadlineExceededError("the deadline passed")

    with pytest.raises(DeadlineExceededError):
        program.run({name: np.zeros((50, 6, 6, 2), np.float32)}, proceed=proceed)
    assert asked == 3


def test_inputs_that_are_not_rows_go_whole_to_every_row(fixed: LiteModel) -> None:
    rows = np.random.default_rng(0).random((5, 3), np.float32)
    offset, scale = np.float32([1, 2, 3]), np.array(2, np.float32)
    batch = {"x": rows, "offset": offset, "scale": scale}
    answer = fixed.predict(batch, signature_name="mixed")["y"]
    np.testing.assert_allclose(answer, rows * 2 + offset, rtol=1e-6)
    with pytest.raises(TensorMismatchError, match=r"`offset`.*float32 \(3,\)"):
        fixed.predict(batch | {"offset": np.zeros((5, 3), np.float32)}, signature_name="mixed")


def test_an_output_without_rows_keeps_the_shapes_of_the_file(fixed: LiteModel) -> None:
    ones = np.ones((2, 3), np.float32)
    assert fixed.predict({"x": ones[:1]}, signature_name="total")["y"] == 3
    with pytest.raises(TensorMismatchError, match=r"float32 \(1, 3\)"):
        fixed.predict({"x": ones}, signature_name="total")


@pytest.mark.parametrize("num_rows", [1, 3, 4, 5, 8, 11])
def test_a_fixed_batch_of_four_takes_any_rows_where_they_are_independent(
    fixed: LiteModel, num_rows: int
) -> None:
    rows = np.random.default_rng(0).random((num_rows, 3), np.float32)
    answer = fixed.predict({"x": rows}, signature_name="four")["y"]
    np.testing.assert_allclose(answer, np.exp(rows), rtol=1e-6)


@pytest.mark.parametrize("value", [0.0, 1.0, 2.0])
def test_rows_that_depend_on_one_another_are_never_filled_up(
    fixed: LiteModel, value: float
) -> None:
    rows = np.full((6, 3), value, np.float32)
    whole = fixed.predict({"x": rows[:4]}, signature_name="coupled")["y"]
    np.testing.assert_array_equal(whole, np.zeros((4, 3)))
    with pytest.raises(TensorMismatchError, match="give a multiple of 4"):
        fixed.predict({"x": rows}, signature_name="coupled")


def test_an_lstm_answers_what_keras_answered_in_any_order() -> None:
    recorded = np.load(FOLDER / "lstm.npz")
    rows, wanted = recorded["rows"], recorded["answers"]
    model = LiteModel(FOLDER / "lstm.tflite")
    for order in ([0, 1, 2, 3, 4, 5], [5, 0, 3], [2], [2, 2, 2]):
        np.testing.assert_allclose(ask(model, rows[order]), wanted[order], atol=1e-6)
    negative = ask(model, -rows, signature_name="negative")
    np.testing.assert_allclose(negative, wanted, atol=1e-6)
    np.testing.assert_allclose(ask(model, rows), wanted, atol=1e-6)


@pytest.mark.parametrize("first", ["serving_default", "negative"])
def test_either_signature_of_an_lstm_may_be_asked_first(first: str) -> None:
    recorded = np.load(FOLDER / "lstm.npz")
    sign = -1 if first == "negative" else 1
    answer = ask(LiteModel(FOLDER / "lstm.tflite"), sign * recorded["rows"], signature_name=first)
    np.testing.assert_allclose(answer, recorded["answers"], atol=1e-6)


@pytest.mark.parametrize("name", STATEFUL)
def test_the_bare_interpreter_does_remember(name: str) -> None:
    """Else the tests beside this one would show nothing."""
    rows = next(iter(make_rows(LiteModel(FOLDER / name), 1).values()))
    run = open_bare(FOLDER / name)
    assert not np.array_equal(run(rows), run(rows))


@pytest.mark.parametrize("name", STATEFUL)
def test_what_one_thread_asks_never_shows_in_the_answers_of_another(name: str) -> None:
    model = LiteModel(FOLDER / name)
    (rows,) = make_rows(model, 40).values()
    wanted = answer_row_by_row(FOLDER / name, rows)
    barrier = threading.Barrier(2)

    def ask_often(seed: int) -> None:
        barrier.wait()
        for index in np.random.default_rng(seed).integers(0, 40, 100):
            size = 1 + index % 3
            answer = ask(model, rows[index : index + size])
            np.testing.assert_array_equal(answer, wanted[index : index + size])

    with ThreadPoolExecutor(2) as threads:
        list(threads.map(ask_often, range(2)))


@pytest.mark.parametrize(
    ("name", "memory"),
    [
        ("lstm.tflite", Memory.TENSORS),
        ("counter.tflite", Memory.RESOURCES),
        ("cnn.tflite", Memory.NONE),
    ],
)
def test_memory_is_read_from_the_file(name: str, memory: Memory) -> None:
    assert find_memory((FOLDER / name).read_bytes()) is memory


def test_a_damaged_file_has_no_memory_but_an_error() -> None:
    content = (FOLDER / "lstm.tflite").read_bytes()
    with pytest.raises(ManifestError, match="damaged TFLite model"):
        find_memory(content[:100])


def retype(number: int) -> bytes:
    """A model that gives back what it takes, of any type of tensorflow/lite/schema/schema.fbs."""
    content = bytearray((FOLDER / "identity.tflite").read_bytes())
    content[content.index(b"\x05", content.index(b"TFL3") + 40)] = number
    return bytes(content)


@pytest.mark.parametrize(
    ("number", "dtype"),
    [(0, "float32"), (2, "int32"), (4, "int64"), (6, "bool"), (8, "complex64"), (18, "bfloat16")],
)
def test_every_dtype_of_numpy_passes_in_rows(number: int, dtype: str) -> None:
    model = LiteModel(retype(number))
    spec = model.signatures["serving_default"].inputs["x"]
    assert spec.describe() == f"{dtype} (batch, 3)"
    rows = np.arange(12).reshape(4, 3).astype(spec.numpy_dtype)
    np.testing.assert_array_equal(ask(model, rows), rows)


def test_strings_pass_in_rows() -> None:
    rows = np.array([[b"a", b"", b"b\0c"], [b"\xff", b"d" * 99, b"e"]], object)
    answer = ask(LiteModel(FOLDER / "identity.tflite"), rows)
    assert answer.tolist() == rows.tolist()


@pytest.mark.parametrize(
    ("number", "name"),
    [(13, "resource"), (14, "variant"), (17, "int4"), (19, "int2"), (20, "uint4")],
)
def test_a_dtype_that_no_array_holds_is_named(number: int, name: str) -> None:
    # A runtime older than the dtype knows its number alone.
    said = f"tensor `x` of signature.* is {name}, which|Unsupported data type {number}"
    with pytest.raises((UnimplementedError, ManifestError), match=said):
        LiteModel(retype(number))


@pytest.mark.tensorflow
def test_models_converted_here_and_now_answer_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "3")  # as make.py does, for good
    runpy.run_path(str(FOLDER / "make.py"))["make_all"](tmp_path)
    recorded = np.load(tmp_path / "lstm.npz")
    answer = ask(LiteModel(tmp_path / "lstm.tflite"), recorded["rows"])
    np.testing.assert_allclose(answer, recorded["answers"], atol=1e-6)
    counter = LiteModel(tmp_path / "counter.tflite")
    np.testing.assert_array_equal(ask(counter, np.ones((3, 3), np.float32)), np.ones((3, 3)))
