"""Every way of tracing that a variant may need, and what a variant that has none costs."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from contract import layout
from contract.errors import VerificationError
from contract.golden import write_golden
from contract.lite import LiteModel
from exporter import export
from exporter.artifacts.conversion import ask_for_conversions, iterate_conversions
from exporter.artifacts.golden import list_variant_signatures, make_calibration
from exporter.artifacts.tflite import (
    MAX_UNROLLED_STEPS,
    Conversion,
    ConversionJob,
    convert,
    prepare_converting,
)
from exporter.models.keras import KerasModel
from exporter.processes import ChildProcess
from tests.exporter.models_for_tests import build_betainc, draw_examples, make_dataset

pytestmark = pytest.mark.tensorflow

Converter = ChildProcess[ConversionJob, Conversion]


@pytest.fixture(scope="module")
def converter(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Converter]:
    log = tmp_path_factory.mktemp("converter") / "conversion.log"
    with ChildProcess(convert, prepare_converting, log=log) as process:
        yield process


@pytest.fixture(params=["tf_keras", "keras"])
def keras(request: pytest.FixtureRequest) -> Any:
    return importlib.import_module(request.param)


def classify(keras: Any, shape: tuple[int, ...], *layers: Any, batch: int | None = None) -> Any:
    """A model of these layers and a softmax over 3 classes."""
    return keras.Sequential(
        [
            keras.layers.Input(shape, batch_size=batch),
            *layers,
            keras.layers.Dense(3, activation="softmax", dtype="float32"),
        ]
    )


def make_copies(
    converter: Converter, model: Any, shape: tuple[int, ...], path: Path, *variants: str
) -> tuple[KerasModel, dict[str, Conversion]]:
    """The model as an export has it, and what came of each variant."""
    examples = draw_examples(make_dataset(shape, num_classes=3))
    made = KerasModel(model, examples)
    candidate = path / "candidate"
    made.save(candidate)
    jobs = []
    for variant in variants:
        names = list_variant_signatures(made, variant)
        calibration = path / "calibration.npz" if variant == "int8" else None
        if calibration is not None:
            write_golden(calibration, make_calibration(made, names, examples)[0])
        jobs.append(
            ConversionJob(
                candidate=candidate,
                variant=variant,
                signatures=[made.signatures[name] for name in names],
                calibration=calibration,
            )
        )
    jobs = ask_for_conversions(converter, jobs, made, run_dir=path)
    found = iterate_conversions(converter, jobs, made, run_dir=path, timeout_s=200)
    return made, {one.variant: one for one in found}


def check_answers(made: KerasModel, copy: Conversion, *, atol: float) -> None:
    """Batches of 1 and 5 rows are answered as the model answers them, twice."""
    assert copy.file is not None, copy.problem
    ((name, spec),) = made.signatures["serving_default"].inputs.items()
    assert spec.shape is not None
    shape = [5, *(size or 1 for size in spec.shape[1:])]
    rows = np.random.default_rng(7).random(shape, np.float32)
    with LiteModel(copy.file) as model:
        for size in (1, 5, 5):
            (got,) = model.predict({name: rows[:size]}).values()
            (expected,) = made.predict({name: rows[:size]}).values()
            np.testing.assert_allclose(got, expected, atol=atol)


def test_recurrent_layers_are_loops_for_floats_and_unrolled_for_int8(
    converter: Converter, keras: Any, tmp_path: Path
) -> None:
    """Never the operator that keeps its state from one row to the next."""
    layers = keras.layers
    model = classify(
        keras,
        (6, 3),
        layers.Bidirectional(layers.LSTM(4, return_sequences=True)),
        layers.RNN([layers.GRUCell(4), layers.LSTMCell(4)]),
    )
    made, copies = make_copies(converter, model, (6, 3), tmp_path, "float32", "int8", "web")
    assert copies["float32"].batch_size == copies["web"].batch_size == 1
    assert copies["int8"].batch_size is None
    check_answers(made, copies["float32"], atol=1e-6)
    check_answers(made, copies["web"], atol=1e-6)
    check_answers(made, copies["int8"], atol=0.05)


def test_int8_of_long_sequences_is_left_out_with_the_reason(
    converter: Converter, tmp_path: Path
) -> None:
    import tf_keras

    shape = (MAX_UNROLLED_STEPS + 1, 2)
    model = classify(tf_keras, shape, tf_keras.layers.LSTM(2))
    made, copies = make_copies(converter, model, shape, tmp_path, "int8", "float32")
    assert copies["int8"].file is None
    assert "more than 64 steps" in copies["int8"].problem
    assert "dynamic_range" in copies["int8"].remedy
    check_answers(made, copies["float32"], atol=1e-6)


def test_a_web_copy_that_no_browser_could_run_is_left_out_with_the_reason(
    converter: Converter, tmp_path: Path
) -> None:
    import tf_keras

    model = classify(tf_keras, (None, 3), tf_keras.layers.GlobalAveragePooling1D())
    _, copies = make_copies(converter, model, (4, 3), tmp_path, "web")
    assert copies["web"].file is None
    assert "serving_default takes features, float32 (batch, ?, 3)" in copies["web"].problem
    assert "leave web out of the variants" in copies["web"].remedy


def test_a_converter_that_dies_costs_no_other_copy(
    converter: Converter, keras: Any, tmp_path: Path
) -> None:
    """Quantising the loop of a model whose batch is fixed ends it; unrolled, it goes."""
    model = classify(keras, (6, 3), keras.layers.GRU(4), batch=1)
    pid = converter.pid
    _, copies = make_copies(converter, model, (6, 3), tmp_path, "int8", "float32")
    assert converter.pid != pid
    assert all(one.file is not None for one in copies.values()), copies


def test_what_converts_with_a_fixed_batch_only_answers_any_rows(
    converter: Converter, tmp_path: Path
) -> None:
    import tf_keras

    layers = tf_keras.layers
    model = classify(
        tf_keras,
        (8, 8, 3),
        layers.Conv2D(4, 3),
        layers.GroupNormalization(2),
        layers.GlobalAveragePooling2D(),
    )
    made, copies = make_copies(converter, model, (8, 8, 3), tmp_path, "float32")
    assert copies["float32"].batch_size == 1
    assert made.signatures["serving_uint8"]
    check_answers(made, copies["float32"], atol=1e-6)


def test_mixed_precision_becomes_float32_with_the_same_weights(
    converter: Converter, keras: Any, tmp_path: Path
) -> None:
    layers = keras.layers
    model = classify(
        keras,
        (6,),
        layers.Dense(8, activation="relu", dtype="mixed_float16"),
        layers.BatchNormalization(dtype="mixed_float16"),
    )
    made, copies = make_copies(converter, model, (6,), tmp_path, "float32")
    assert made.is_half_precision
    check_answers(made, copies["float32"], atol=2e-3)
    assert model.layers[0].compute_dtype == "float16", "the model stays what it was"


def test_a_version_without_its_copies_says_why(tmp_path: Path) -> None:
    """In table, card and manifest; the failed file is no part of it."""
    model = build_betainc((6,), 3)
    rows = np.random.default_rng(3).random((40, 6), np.float32)
    base = tmp_path / "mine"
    with pytest.raises(VerificationError, match=r"Betainc \(layer odd\).*export\.require"):
        export(model, base, examples=rows, variants=["float32"])
    assert not base.exists()
    version = export(model, base, examples=rows, variants=["float32"], require=[])
    assert not list(version.path.rglob("*.tflite"))
    assert version.table[-1][0] == "float32"
    assert version.table[-1][-1] == "FAILED"
    assert "Betainc" in version.manifest.parity["float32"]["problems"][0]
    assert "float32 is left out: " in (version.path / layout.MODEL_CARD).read_text()
    assert "float32 is left out: " in version._repr_html_()


def test_a_model_of_strings_has_no_copies_and_says_so(tmp_path: Path) -> None:
    import tf_keras

    layers = tf_keras.layers
    texts = layers.Input((), dtype="string", name="text")
    numbers = layers.TextVectorization(vocabulary=["good", "bad"], output_mode="multi_hot")(texts)
    model = tf_keras.Model(texts, layers.Dense(1, activation="sigmoid")(numbers))
    rows = np.array([b"good one", b"bad", b"good, bad"] * 10, object)
    version = export(model, tmp_path / "words", examples=rows)
    assert not list(version.path.rglob("*.tflite"))
    assert any("every signature takes strings" in note for note in version.verification.notes)


def test_a_table_of_one_signature_costs_no_other(tmp_path: Path) -> None:
    import tensorflow as tf

    class Both(tf.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.weights = tf.Variable(np.eye(4, 3, dtype=np.float32))
            keys = tf.constant([1, 2], tf.int64)
            entries = tf.lookup.KeyValueTensorInitializer(keys, keys * 3)
            self.entries = tf.lookup.StaticHashTable(entries, 0)

        @tf.function(  # type: ignore[untyped-decorator]
            input_signature=[tf.TensorSpec((None, 4), tf.float32, "numbers")]
        )
        def __call__(self, numbers: Any) -> Any:
            return {"scores": tf.nn.softmax(numbers @ self.weights)}

        @tf.function(  # type: ignore[untyped-decorator]
            input_signature=[tf.TensorSpec((None,), tf.int64, "keys")]
        )
        def look(self, keys: Any) -> Any:
            return {"values": self.entries.lookup(keys)}

    numbers = np.random.default_rng(3).random((40, 4), np.float32)
    examples = {"numbers": numbers, "keys": np.arange(40) % 4}
    version = export(Both(), tmp_path / "both", examples=examples, variants=["float32"])
    with LiteModel(version.path / "model.tflite") as model:
        assert set(model.signatures) == {"serving_default"}


def make_cells(tf: Any) -> Any:
    """A recurrent layer by hand, which keeps what every step gave in a `tf.TensorArray`."""

    class Cells(tf.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.weights = tf.Variable(np.eye(3, dtype=np.float32) / 2)

        @tf.function(input_signature=[tf.TensorSpec((None, 6, 3), tf.float32, "steps")])
        def __call__(self, steps: Any) -> Any:
            def take_step(step: Any, state: Any, kept: Any) -> Any:
                state = tf.tanh(steps[:, step] + state @ self.weights)
                return step + 1, state, kept.write(step, state)

            start = (0, tf.zeros_like(steps[:, 0]), tf.TensorArray(tf.float32, 6))
            *_, kept = tf.while_loop(lambda step, *_: step < 6, take_step, start)
            return {"states": tf.transpose(kept.stack(), (1, 0, 2))}

    return Cells()


@pytest.mark.parametrize("kind", ["a tf.Module", "a SavedModel of Keras"])
def test_loops_of_a_given_graph_become_copies_that_remember_nothing(
    kind: str, tmp_path: Path
) -> None:
    tf, tf_keras = importlib.import_module("tensorflow"), importlib.import_module("tf_keras")
    model = make_cells(tf)
    if kind != "a tf.Module":
        layer = tf_keras.layers.LSTM(3, return_sequences=True)
        tf_keras.Sequential([tf_keras.Input((6, 3), name="steps"), layer]).export(
            tmp_path / "given"
        )
        model = tmp_path / "given"
    rows = np.random.default_rng(3).normal(size=(40, 6, 3)).astype(np.float32)
    version = export(model, tmp_path / "it", examples=rows, variants=["float32", "int8"])
    signature = tf.saved_model.load(str(version.path)).signatures["serving_default"]
    with LiteModel(version.path / layout.TFLITE) as copy:
        for size in (1, 5, 5):
            (expected,) = signature(steps=tf.constant(rows[:size])).values()
            (got,) = copy.predict({"steps": rows[:size]}).values()
            np.testing.assert_allclose(got, expected, atol=1e-6)
    assert version.verification.left_out == ("int8",)
    problem, remedy = version.manifest.parity["int8"]["problems"]
    assert "quantise the inside of a loop" in problem
    assert "export the Keras model" in remedy
