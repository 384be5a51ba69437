"""One TFLite interpreter behaves as one function: any batch size, any thread, floats throughout."""

from __future__ import annotations

import gc
import math
import struct
import subprocess
import sys
import textwrap
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contract.errors import (
    ConfigError,
    DeadlineExceededError,
    InternalError,
    ManifestError,
    SignatureNotFoundError,
    TensorMismatchError,
    UnimplementedError,
)
from contract.lite import LiteModel, Quantisation, list_custom_ops, list_flex_ops, runtime
from contract.lite import program as program_file
from contract.signature import Array, TensorSpec

# Converts in a process of its own: this one must stay free of TensorFlow.
CONVERSION = """
import pathlib, sys
import numpy as np
import tensorflow as tf

folder = pathlib.Path(sys.argv[1])
rng = np.random.default_rng(1)
make = lambda *shape: tf.Variable(rng.normal(0, 0.1, shape).astype("float32"))
w1, b1, w2, b2 = make(784, 64), make(64), make(64, 10), make(10)

def mlp(x):
    return tf.nn.softmax(tf.nn.relu(x @ w1 + b1) @ w2 + b2)

def pixels(images):
    return mlp(tf.reshape(tf.cast(images, tf.float32) / 255.0, (-1, 784)))

def trace(call, **inputs):
    specs = [tf.TensorSpec(shape, dtype, name=name) for name, (shape, dtype) in inputs.items()]
    return tf.function(call).get_concrete_function(*specs)

floats, count = ((None, 784), tf.float32), ((), tf.float32)
module = tf.Module()
module.weights = [w1, b1, w2, b2]
signatures = {
    "serving_default": trace(lambda images: {"probabilities": mlp(images)}, images=floats),
    "serving_uint8": trace(
        lambda images: {"probabilities": pixels(images)}, images=((None, 28, 28), tf.uint8)),
    "predict_images": trace(lambda images: {"scores": mlp(images)}, images=floats),
    "mixed": trace(
        lambda left, right, scale: {"sum": left * scale + right, "left": left + 0.0},
        left=((None, 3), tf.float32), right=((None, 3), tf.float32), scale=count),
    "total": trace(lambda images: {"total": tf.reduce_sum(images)}, images=floats),
    "cholesky": trace(lambda x: {"y": tf.linalg.cholesky(x)}, x=((None, 3, 3), tf.float32)),
}
saved = str(folder / "saved")
tf.saved_model.save(module, saved, signatures=signatures)

def convert(name, keys, configure=lambda converter: None):
    converter = tf.lite.TFLiteConverter.from_saved_model(saved, signature_keys=keys)
    configure(converter)
    (folder / name).write_bytes(converter.convert())

def quantise(io_type):
    def configure(converter):
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.representative_dataset = lambda: (
            ("serving_default", {"images": np.random.default_rng(i).random((1, 784), "float32")})
            for i in range(40))
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.inference_input_type = converter.inference_output_type = io_type
    return configure

def allow_flex(converter):
    converter.target_spec.supported_ops = [
        tf.lite.OpsSet.TFLITE_BUILTINS, tf.lite.OpsSet.SELECT_TF_OPS]

convert("float32.tflite", ["serving_default", "serving_uint8", "predict_images", "mixed", "total"])
convert("int8.tflite", ["serving_default"], quantise(tf.int8))
convert("int8_float_io.tflite", ["serving_default"], quantise(tf.float32))
convert("flex.tflite", ["cholesky"], allow_flex)
"""


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("lite")
    done = subprocess.run(
        [sys.executable, "-c", CONVERSION, str(path)], capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    return path


@pytest.fixture(scope="session")
def model(folder: Path) -> LiteModel:
    return LiteModel(folder / "float32.tflite")


@pytest.fixture(scope="session")
def whole(folder: Path) -> LiteModel:
    """The same model without chunks."""
    return LiteModel(folder / "float32.tflite", max_chunk_rows=10_000)


@pytest.fixture(scope="session")
def int8(folder: Path) -> LiteModel:
    return LiteModel(folder / "int8.tflite")


def make_rows(num_rows: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).random((num_rows, 784), dtype=np.float32)


def test_signatures_are_read_by_name_with_a_free_batch_axis(model: LiteModel) -> None:
    assert model.signatures.keys() >= {"serving_default", "serving_uint8", "predict_images"}
    pixels = model.signatures["serving_uint8"]
    assert pixels.inputs == {"images": TensorSpec("images", "uint8", (None, 28, 28))}
    assert pixels.outputs["probabilities"].shape == (None, 10)
    assert not model.is_quantised


@settings(deadline=None, max_examples=40)
@given(num_rows=st.integers(0, 200), seed=st.integers(0, 9))
def test_chunks_give_what_the_whole_batch_gives(
    model: LiteModel, whole: LiteModel, num_rows: int, seed: int
) -> None:
    batch = {"images": make_rows(num_rows, seed)}
    chunked = model.predict(batch)["probabilities"]
    assert chunked.shape == (num_rows, 10)
    np.testing.assert_allclose(chunked, whole.predict(batch)["probabilities"], atol=1e-6)


def test_a_run_ends_between_chunks_when_nobody_wants_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(program_file, "QUICK_CHUNK_S", 0.0)
    program = LiteModel(folder / "float32.tflite").find_program()
    batch = {"images": make_rows(200)}
    wanted = program.run(batch)["probabilities"]
    asked = 0

    def proceed() -> None:
        nonlocal asked
        asked += 1
        if asked == 2:
            raise DeadlineExceededError("the deadline passed")

    with pytest.raises(DeadlineExceededError):
        program.run(batch, proceed=proceed)
    assert asked == 2
    asked = 2
    np.testing.assert_array_equal(program.run(batch, proceed=proceed)["probabilities"], wanted)
    assert asked == 2 + 3


def test_chunks_of_quick_programs_grow_fourfold_and_answer_the_same_bits(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = {"images": make_rows(1000)}
    answers = []
    chunks = []
    for quick_s in (0.0, math.inf):
        monkeypatch.setattr(program_file, "QUICK_CHUNK_S", quick_s)
        program = LiteModel(folder / "float32.tflite").find_program()
        for _ in range(4):
            answers.append(program.run(batch)["probabilities"])
        passed: list[int] = []
        program.run(batch, proceed=lambda passed=passed: passed.append(1))  # type: ignore[misc]
        chunks.append(1 + len(passed))
    assert chunks == [16, 4]
    for answer in answers:
        np.testing.assert_array_equal(answer, answers[0])


@pytest.mark.parametrize("num_rows", [2, 31, 65, 300])
def test_a_row_has_the_same_bits_in_any_company(model: LiteModel, num_rows: int) -> None:
    rows = make_rows(num_rows)
    together = model.predict({"images": rows})["probabilities"]
    for index in range(0, num_rows, 7):
        alone = model.predict({"images": rows[index : index + 1]})["probabilities"]
        np.testing.assert_array_equal(together[index : index + 1], alone)


def test_answers_are_those_of_the_public_signature_runner(folder: Path, model: LiteModel) -> None:
    interpreter = runtime.find_interpreter()(model_path=str(folder / "float32.tflite"))
    pixels = (make_rows(5) * 255).astype(np.uint8).reshape(5, 28, 28)
    for name, images in (("serving_uint8", pixels), ("predict_images", make_rows(5))):
        theirs = interpreter.get_signature_runner(name)(images=images)
        ours = model.predict({"images": images}, signature_name=name)
        assert ours.keys() == theirs.keys()
        for output in theirs:
            np.testing.assert_array_equal(ours[output], theirs[output])


def test_an_answer_is_not_overwritten_by_the_next_one(model: LiteModel) -> None:
    first = model.predict({"images": make_rows(1, 1)})["probabilities"]
    kept = first.copy()
    model.predict({"images": make_rows(1, 2)})
    np.testing.assert_array_equal(first, kept)


def test_sixteen_threads_answer_what_one_thread_answers(folder: Path) -> None:
    model = LiteModel(folder / "float32.tflite")
    sizes = [1, 2, 64, 65, 130, 0, 32, 7]
    names = ["serving_default", "predict_images"]
    tasks = [(make_rows(sizes[i % 8], i), names[i % 2]) for i in range(64)]
    barrier = threading.Barrier(16)

    def ask(task: tuple[Array, str]) -> Array:
        images, name = task
        (answer,) = model.predict({"images": images}, signature_name=name).values()
        return answer

    alone = [ask(task) for task in tasks]
    with ThreadPoolExecutor(16, initializer=barrier.wait) as threads:
        together = list(threads.map(ask, tasks * 4))
    for index, answer in enumerate(together):
        np.testing.assert_array_equal(answer, alone[index % len(tasks)])


def test_one_caller_needs_one_interpreter_whatever_it_asks(model: LiteModel) -> None:
    (lane,) = model._pool.idle
    for num_rows in (1, 1, 3, 64, 100):
        model.predict({"images": make_rows(num_rows)})
        with pytest.raises(TensorMismatchError):
            model.predict({"images": make_rows(num_rows), "more": make_rows(1)})
    assert model._pool.idle == [lane]


def test_a_lane_that_ran_a_large_indivisible_batch_is_not_kept(folder: Path) -> None:
    model = LiteModel(folder / "float32.tflite")
    model.predict({"images": make_rows(65)}, signature_name="total")
    assert model._pool.idle == []


def test_threads_within_an_invoke_change_no_bit(folder: Path, model: LiteModel) -> None:
    batch = {"images": make_rows(64)}
    threaded = LiteModel(folder / "float32.tflite", num_threads=2)
    np.testing.assert_array_equal(
        threaded.predict(batch)["probabilities"], model.predict(batch)["probabilities"]
    )


def test_memory_is_flat_over_many_calls(folder: Path) -> None:
    model = LiteModel(folder / "float32.tflite")
    batches = [{"images": make_rows(n)} for n in (1, 1, 1, 1, 1, 1, 1, 1, 1, 70)]

    def call_often(times: int) -> int:
        for index in range(times):
            model.predict(batches[index % 10])
        gc.collect()
        return int(psutil.Process().memory_info().rss)

    before = call_often(5_000)
    assert call_often(30_000) - before < 2 << 20


@pytest.mark.parametrize("num_rows", [2, 40])  # small and large arrays are stored differently
def test_layouts_that_are_not_native_are_read_for_their_values(
    model: LiteModel, num_rows: int
) -> None:
    rows = make_rows(num_rows)
    answer = model.predict({"images": rows})["probabilities"]
    read_only = np.frombuffer(rows.tobytes(), np.float32).reshape(rows.shape)
    strided = np.repeat(rows, 2, axis=0)[::2]
    for given_rows in (rows.astype(">f4"), np.asfortranarray(rows), read_only, strided):
        for _ in range(2):  # the second time takes the path of a batch shaped as the one before
            again = model.predict({"images": given_rows})["probabilities"]
            np.testing.assert_array_equal(again, answer)


@pytest.mark.parametrize("num_rows", [1, 64, 150])
def test_several_inputs_are_cut_alike_and_scalars_are_not(model: LiteModel, num_rows: int) -> None:
    rng = np.random.default_rng(0)
    left, right = rng.random((2, num_rows, 3), dtype=np.float32)
    batch = {"left": left, "right": right, "scale": np.float32(2).reshape(())}
    for _ in range(2):
        answer = model.predict(batch, signature_name="mixed")
        np.testing.assert_allclose(answer["sum"], left * 2 + right, rtol=1e-6)
        np.testing.assert_array_equal(answer["left"], left)


def test_a_signature_without_rows_in_its_output_runs_in_one_piece(model: LiteModel) -> None:
    ones = np.ones((100, 784), np.float32)
    answer = model.predict({"images": ones}, signature_name="total")["total"]
    assert answer.shape == ()
    assert answer == 78_400
    with pytest.raises(TensorMismatchError, match="0 rows"):
        model.predict({"images": ones[:0]}, signature_name="total")


@pytest.mark.parametrize(
    ("batch", "match"),
    [
        ({"image": np.zeros((1, 784), np.float32)}, "missing images; not wanted image"),
        ({"images": np.zeros((1, 784))}, "float64"),
        ({"images": np.zeros((1, 28, 28), np.float32)}, r"reshape to \(1, 784\)"),
        ({"images": np.zeros((1, 784), np.float32), "more": np.zeros(1)}, "not wanted more"),
        ({}, "missing images"),
    ],
)
def test_a_wrong_batch_is_refused_after_a_right_one(
    model: LiteModel, batch: dict[str, Array], match: str
) -> None:
    right = {"images": make_rows(1)}
    before = model.predict(right)["probabilities"]
    with pytest.raises(TensorMismatchError, match=match):
        model.predict(batch)
    np.testing.assert_array_equal(model.predict(right)["probabilities"], before)


def test_an_unknown_signature_is_named_with_those_there_are(model: LiteModel) -> None:
    with pytest.raises(SignatureNotFoundError, match=r"'serving'.*predict_images"):
        model.predict({"images": make_rows(1)}, signature_name="serving")


def test_int8_takes_and_gives_floats_unless_asked_for_integers(int8: LiteModel) -> None:
    assert int8.is_quantised
    assert int8.signatures["serving_default"].inputs["images"].dtype == "float32"
    assert int8.raw_signatures["serving_default"].inputs["images"].dtype == "int8"
    inputs, outputs = int8.quantisation()
    rows = make_rows(100)
    floats = int8.predict({"images": rows})["probabilities"]
    integers = int8.predict({"images": inputs["images"].quantise(rows)}, dequantise=False)
    assert (floats.dtype, integers["probabilities"].dtype) == (np.float32, np.int8)
    np.testing.assert_array_equal(
        floats, outputs["probabilities"].dequantise(integers["probabilities"])
    )


def test_int8_refuses_the_dtype_of_the_other_view(int8: LiteModel) -> None:
    rows = make_rows(2)
    integers = int8.quantisation()[0]["images"].quantise(rows)
    for _ in range(2):
        int8.predict({"images": rows})
        with pytest.raises(TensorMismatchError, match=r"quantise with \(x / 0\.0039"):
            int8.predict({"images": rows}, dequantise=False)
        int8.predict({"images": integers}, dequantise=False)
        with pytest.raises(TensorMismatchError, match="float32"):
            int8.predict({"images": integers})


def test_both_views_of_int8_take_turns_at_any_batch_size(int8: LiteModel) -> None:
    quantise = int8.quantisation()[0]["images"].quantise
    rows = make_rows(5)
    expected = int8.predict({"images": rows})["probabilities"]
    for num_rows in (5, 2, 2, 5, 1):
        raw = int8.predict({"images": quantise(rows)}, dequantise=False)["probabilities"]
        shown = int8.predict({"images": rows[:num_rows]})["probabilities"]
        np.testing.assert_array_equal(shown, expected[:num_rows])
        assert raw.shape == (5, 10)


def test_hiding_int8_gives_what_quantise_operators_inside_the_model_give(
    folder: Path, int8: LiteModel
) -> None:
    inside = LiteModel(folder / "int8_float_io.tflite")
    batch = {"images": make_rows(150) * 1.2 - np.float32(0.1)}  # some beyond both ends
    np.testing.assert_array_equal(
        int8.predict(batch)["probabilities"], inside.predict(batch)["probabilities"]
    )


@given(
    integers=st.lists(st.integers(-128, 127), min_size=1, max_size=20),
    scale=st.floats(2**-20, 2**10, width=32),
    zero_point=st.integers(-128, 127),
)
def test_quantising_undoes_dequantising(integers: list[int], scale: float, zero_point: int) -> None:
    quantisation = Quantisation("int8", scale, zero_point)
    array = np.array(integers, np.int8)
    np.testing.assert_array_equal(quantisation.quantise(quantisation.dequantise(array)), array)


def test_quantising_rounds_halves_to_even_and_clips() -> None:
    reals = np.array([0.5, 1.5, 2.5, -0.5, -1.5, 1e9, -1e9, np.inf], np.float32)
    np.testing.assert_array_equal(
        Quantisation("int8", 1.0, 0).quantise(reals), [0, 2, 2, 0, -2, 127, -128, 127]
    )


def test_builtin_models_have_no_custom_operators(folder: Path) -> None:
    assert list_custom_ops((folder / "float32.tflite").read_bytes()) == []


def test_flex_operators_are_refused_by_name(folder: Path) -> None:
    content = (folder / "flex.tflite").read_bytes()
    assert list_flex_ops(content) == ["Cholesky"]
    with pytest.raises(UnimplementedError, match=r"flex\.tflite needs.*Cholesky"):
        LiteModel(folder / "flex.tflite")


def test_a_model_without_signatures_is_asked_by_tensor_names(folder: Path) -> None:
    content = bytearray((folder / "int8.tflite").read_bytes())
    (root,) = struct.unpack_from("<I", content, 0)
    (to_vtable,) = struct.unpack_from("<i", content, root)
    struct.pack_into("<H", content, root - to_vtable + 4 + 2 * 7, 0)  # Model.signature_defs
    model = LiteModel(bytes(content))
    (name,) = model.signatures["serving_default"].inputs
    assert name == "serving_default_images"
    (answer,) = model.predict({name: make_rows(3)}).values()
    assert answer.shape == (3, 10)


@pytest.mark.parametrize(
    "content", [b"", b"hello", b"\0\0\0\xffTFL3", b"\x1c\0\0\0TFL3" + b"\xff" * 99]
)
def test_bytes_that_are_no_model_are_refused_in_a_sentence(content: bytes) -> None:
    with pytest.raises(ManifestError, match="TFLite model"):
        LiteModel(content)


def test_other_files_are_told_by_their_lack_of_an_identifier() -> None:
    with pytest.raises(ManifestError, match="lack the identifier TFL3"):
        list_flex_ops(b"PK\x03\x04 a zip file, longer than a header")


def test_a_truncated_model_is_refused(folder: Path) -> None:
    content = (folder / "float32.tflite").read_bytes()
    with pytest.raises(ManifestError):
        LiteModel(content[: len(content) // 2])


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"none\.tflite cannot be read: No such file"):
        LiteModel(tmp_path / "none.tflite")


def test_zero_threads_are_refused() -> None:
    with pytest.raises(ConfigError, match="num_threads is 0"):
        LiteModel(b"", num_threads=0)


def test_a_missing_runtime_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "is_installed", lambda name: False)
    runtime.find_interpreter.cache_clear()
    with pytest.raises(UnimplementedError, match=r"\[on-device\]'"):
        LiteModel(b"")
    runtime.find_interpreter.cache_clear()


def test_a_lane_that_failed_is_not_used_again(folder: Path) -> None:
    model = LiteModel(folder / "float32.tflite")
    batch = {"images": make_rows(1)}
    before = model.predict(batch)["probabilities"]
    (lane,) = model._pool.idle

    def fail(subgraph: int) -> Any:
        raise RuntimeError("a kernel\nfailed")

    lane.invoke = fail
    with pytest.raises(InternalError, match="'serving_default': a kernel failed"):
        model.predict(batch)
    np.testing.assert_array_equal(model.predict(batch)["probabilities"], before)
    assert lane not in model._pool.idle


def test_predicting_never_imports_tensorflow(folder: Path) -> None:
    program = f"""
        import sys
        import contract.lite
        heavy = ("tensorflow", "ai_edge_litert", "google.protobuf")
        assert not [name for name in heavy if name in sys.modules], "imported too early"
        import numpy as np
        model = contract.lite.LiteModel({str(folder / "float32.tflite")!r})
        model.predict({{"images": np.zeros((3, 784), np.float32)}})
        assert "tensorflow" not in sys.modules
    """
    root = Path(__file__).parents[2]
    subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], check=True, cwd=root, timeout=60
    )
