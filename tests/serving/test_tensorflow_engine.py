import asyncio
import math
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tensorflow.core.protobuf import config_pb2

from contract import layout
from contract.errors import (
    Code,
    ConfigError,
    PlumblineError,
    TensorMismatchError,
    VerificationError,
)
from contract.golden import Golden, GoldenExamples, write_golden
from contract.parity import Tolerance, replay
from contract.servable import ServableId
from serving.config.server import BatchingParameters, ServerConfig
from serving.context import PlainContext
from serving.engines import loading, tensorflow
from serving.engines.litert import LiteRTEngine
from serving.engines.loading import load_servable, select_engines
from serving.engines.self_test import load_golden
from serving.engines.servable import LITERT, TENSORFLOW
from serving.engines.tensorflow import TensorFlowEngine
from serving.engines.thread_pool import ThreadPool
from serving.observer import Observer
from tests.conformance.recordings import MODELS
from tests.versions import write_tolerances

pytestmark = pytest.mark.tensorflow

ID = ServableId("affine", 3)
AFFINE = MODELS / "affine" / "3"
X = {"x": np.array([1, 2, 5], np.float32)}


@pytest.fixture(scope="module")
def engine() -> TensorFlowEngine:
    return TensorFlowEngine(AFFINE, ServerConfig())


def test_signatures_are_fed_and_fetched_by_name(engine: TensorFlowEngine) -> None:
    assert engine.run("", X)["y"].tolist() == [3, 5, 11]
    outputs = engine.run("two_outputs", X, output_filter=["minus_y"])
    assert {name: array.tolist() for name, array in outputs.items()} == {"minus_y": [-3, -5, -11]}


def test_scalars_and_strings_keep_their_shape() -> None:
    mixed = TensorFlowEngine(MODELS / "mixed" / "1", ServerConfig())
    outputs = mixed.run("length", {"image_bytes": np.array([b"a\0", b""], object)})
    (lengths,) = outputs.values()
    assert lengths.tolist() == [2, 0]
    mixed.close()


@pytest.mark.parametrize(
    "array", [np.zeros(2, np.int64), np.array([b"a"], object), np.zeros((0,), np.float64)]
)
def test_a_wrong_dtype_is_an_invalid_argument(engine: TensorFlowEngine, array: Any) -> None:
    with pytest.raises(PlumblineError) as caught:
        engine.run("serving_default", {"x": array})
    assert caught.value.code is Code.INVALID_ARGUMENT


def test_arrays_of_any_layout_are_fed(engine: TensorFlowEngine) -> None:
    strided = np.arange(8, dtype=np.float32)[::2]
    unaligned = np.frombuffer(b"\0" + np.float32([1, 2]).tobytes(), np.float32, offset=1)
    assert engine.run("", {"x": strided})["y"].tolist() == [1, 5, 9, 13]
    assert engine.run("", {"x": unaligned})["y"].tolist() == [3, 5]


def test_prepared_calls_are_bounded(
    engine: TensorFlowEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensorflow, "MAX_CALLS", 2)
    for wanted in (["y"], ["minus_y"], ["y", "minus_y"], ["minus_y", "y"], []):
        assert engine.run("two_outputs", X, output_filter=wanted)
        assert len(engine._calls) <= 2


def test_an_input_that_there_is_not_is_told(engine: TensorFlowEngine) -> None:
    for _ in range(2):
        with pytest.raises(TensorMismatchError, match="has no z"):
            engine.run("serving_default", X | {"z": X["x"]})


@pytest.fixture(scope="module")
def endless(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TensorFlowEngine]:
    """Counts to 2^60 for whatever it is asked."""
    import tensorflow as tf

    module = tf.Module()
    spec = tf.TensorSpec((None,), tf.float32, "x")

    def count(x: Any) -> Any:
        steps = tf.while_loop(lambda i: i < 2**60, lambda i: i + 1, [tf.constant(0, tf.int64)])
        return {"y": x + tf.cast(steps[0], tf.float32)}

    function = tf.function(count, input_signature=[spec])
    path = tmp_path_factory.mktemp("endless")
    tf.saved_model.save(module, str(path), signatures=function.get_concrete_function())
    engine = TensorFlowEngine(path, ServerConfig())
    yield engine
    engine.close()


def test_a_run_ends_at_its_deadline(endless: TensorFlowEngine) -> None:
    context = PlainContext(deadline=time.monotonic() + 0.2)
    with pytest.raises(PlumblineError) as caught:
        endless.run("serving_default", X, context=context)
    assert caught.value.code is Code.DEADLINE_EXCEEDED
    assert time.monotonic() >= context.deadline


def test_a_deadline_changes_no_answer(engine: TensorFlowEngine) -> None:
    for seconds in (60.0, 1e9, math.inf):
        context = PlainContext(deadline=time.monotonic() + seconds)
        assert engine.run("", X, context=context)["y"].tolist() == [3, 5, 11]


def test_wrong_tags_are_told() -> None:
    with pytest.raises(PlumblineError, match="tags"):
        load_servable(ID, AFFINE, ServerConfig(saved_model_tags="gpu"), Observer())


def make_session_config(**flags: Any) -> config_pb2.ConfigProto:
    return tensorflow._make_session_config(ServerConfig(**flags), config_pb2.ConfigProto())


def test_the_session_config_is_the_files_with_flags_of_threads_and_memory_over_it() -> None:
    text = (
        "intra_op_parallelism_threads: 3 inter_op_parallelism_threads: 2 allow_soft_placement: true"
    )
    made = make_session_config(
        session_config=text,
        tensorflow_intra_op_parallelism=1,
        per_process_gpu_memory_fraction=0.25,
    )
    assert made.intra_op_parallelism_threads == 1
    assert made.inter_op_parallelism_threads == 2
    assert made.allow_soft_placement
    assert made.gpu_options.per_process_gpu_memory_fraction == 0.25
    assert make_session_config() == config_pb2.ConfigProto()


def test_a_session_config_reaches_the_session() -> None:
    # A session without devices cannot be had.
    nowhere = 'device_count { key: "CPU" value: 0 }'
    with pytest.raises(PlumblineError, match="No CPU devices"):
        TensorFlowEngine(AFFINE, ServerConfig(session_config=nowhere))


def test_a_session_config_that_does_not_parse_names_its_flag() -> None:
    config = ServerConfig(tensorflow_session_config_file="/etc/session", session_config="nonsense")
    with pytest.raises(ConfigError, match="--tensorflow_session_config_file=/etc/session"):
        TensorFlowEngine(AFFINE, config)


def test_a_model_may_have_batching_parameters_of_its_own_and_is_not_batched_without(
    tmp_path: Path,
) -> None:
    common = BatchingParameters(max_batch_size=7)
    config = ServerConfig(batching=common, enable_per_model_batching_parameters=True)
    assert loading._choose_batching(tmp_path, config) is None
    (tmp_path / "batching_params.pbtxt").write_text("max_batch_size { value: 9 }")
    chosen = loading._choose_batching(tmp_path, config)
    assert chosen is not None and chosen.max_batch_size == 9
    assert loading._choose_batching(tmp_path, ServerConfig(batching=common)) is common
    assert loading._choose_batching(tmp_path, ServerConfig()) is None
    (tmp_path / "batching_params.pbtxt").write_text("max_batch_size { value: 0 }")
    with pytest.raises(ConfigError, match="positive"):
        loading._choose_batching(tmp_path, config)


def test_other_tags_than_serve_are_answered_by_tensorflow(published_mlp: Path) -> None:
    version = published_mlp / "mlp" / "1"
    signatures = LiteRTEngine(version / layout.variant_path(layout.FLOAT32)).signatures
    choices, _ = select_engines(version, signatures, ServerConfig(saved_model_tags="serve,gpu"))
    assert {one.engine for one in choices.values()} == {TENSORFLOW}
    choices, _ = select_engines(version, signatures, ServerConfig())
    assert LITERT in {one.engine for one in choices.values()}


def test_variables_that_are_missing_fail_the_load(tmp_path: Path) -> None:
    broken = Path(shutil.copytree(AFFINE, tmp_path / "1"))
    shutil.rmtree(broken / "variables")
    with pytest.raises(PlumblineError):
        load_servable(ID, broken, ServerConfig(), Observer())


def test_a_version_without_tflite_is_loaded_and_tested_at_once(tmp_path: Path) -> None:
    version = Path(shutil.copytree(AFFINE, tmp_path / "3"))
    examples = GoldenExamples(X, {"y": np.array([3, 5, 11], np.float32)}, (3,))
    write_golden(version / layout.GOLDEN, Golden({"serving_default": examples}))
    load_servable(ID, version, ServerConfig(), Observer()).close()
    wrong = GoldenExamples(X, {"y": np.array([3, 5, 12], np.float32)}, (3,))
    write_golden(version / layout.GOLDEN, Golden({"serving_default": wrong}))
    with pytest.raises(VerificationError, match="y differs by up to 1 "):
        load_servable(ID, version, ServerConfig(), Observer())


def test_both_engines_give_the_golden_answers(published_mlp: Path) -> None:
    version = published_mlp / "mlp" / "1"
    golden = load_golden(version)
    config = ServerConfig(engine=TENSORFLOW)
    servable = load_servable(ServableId("mlp", 1), version, config, Observer())
    assert {choice.engine for choice in servable.engines.values()} == {TENSORFLOW}

    class Through:
        def predict(self, batch: Any, *, signature_name: str) -> Any:
            return servable.run(signature_name, batch)

    for name, examples in golden.items():
        report = replay(examples, Through(), Tolerance(atol=1e-5), signature_name=name)
        assert report.passed, report
    servable.close()


def test_a_saved_model_is_not_excused_by_what_its_float32_variant_may_do(
    published_mlp: Path, tmp_path: Path
) -> None:
    version = Path(shutil.copytree(published_mlp / "mlp" / "1", tmp_path / "1"))
    golden = dict(load_golden(version))
    one = golden["serving_default"]
    moved = {name: array + np.float32(1e-3) for name, array in one.outputs.items()}
    golden["serving_default"] = GoldenExamples(one.inputs, moved, one.batch_sizes)
    write_golden(version / layout.GOLDEN, Golden(golden))
    write_tolerances(version, {"float32": {"max_abs_difference": 0.1}})
    with pytest.raises(VerificationError, match="at most 1e-05"):
        load_servable(ServableId("mlp", 1), version, ServerConfig(engine=TENSORFLOW), Observer())


def test_batching_answers_as_without_it() -> None:
    servable = load_servable(
        ID,
        AFFINE,
        ServerConfig(batching=BatchingParameters(max_batch_size=8, batch_timeout_micros=1000)),
        Observer(),
    )

    async def ask() -> list[Any]:
        pool = ThreadPool()
        calls = [
            servable.answer("serving_default", {"x": np.full(2, n, np.float32)}, pool=pool)
            for n in range(10)
        ]
        answers = await asyncio.gather(*calls)
        pool.close()
        return answers

    assert [one["y"].tolist() for one in asyncio.run(ask())] == [[2 * n + 1] * 2 for n in range(10)]
    servable.close()
