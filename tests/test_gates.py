"""A copy that is of no use passes nowhere: a real int8 file that never finds the rare class."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clients.cli import main
from contract import layout
from contract.errors import VerificationError
from contract.golden import Golden, GoldenExamples, write_golden
from contract.heads import Head
from contract.manifest import Manifest, hash_files, write_manifest
from contract.signature import Array
from exporter.verification.recheck import recheck_version

pytestmark = pytest.mark.tensorflow

ROWS, FRAUDS = 64, 4
HEADS = {"probabilities": Head(task="multiclass", class_names=("fine", "fraud"))}


def make_transactions(num_rows: int, num_frauds: int) -> Array:
    """float32 (rows, 2): a share that tells frauds, and an amount that does not; frauds first."""
    rng = np.random.default_rng(0)
    is_fraud = np.arange(num_rows) < num_frauds
    share = np.where(is_fraud, rng.uniform(0.9, 1, num_rows), rng.uniform(0, 0.3, num_rows))
    return np.stack([share, rng.uniform(0, 100_000, num_rows)], axis=1).astype(np.float32)


def build_model() -> Any:
    """Answers `fraud` where the share is above 0.6; nothing is trained."""
    import tf_keras

    model = tf_keras.Sequential(
        [
            tf_keras.layers.Input((2,), name="transaction"),
            tf_keras.layers.Normalization(mean=[0.15, 5e4], variance=[0.01, 8e8]),
            tf_keras.layers.Dense(2, activation="softmax", name="probabilities"),
        ]
    )
    weights = np.array([[-2.0, 2.0], [0.0, 0.0]], np.float32)
    model.layers[-1].set_weights([weights, np.array([9.0, -9.0], np.float32)])
    return model


def convert_model(model: Any, variant: str) -> bytes:
    import tensorflow as tf

    def answer(transaction: Any) -> dict[str, Any]:
        return {"probabilities": model(transaction)}

    serve = tf.function(answer, input_signature=[tf.TensorSpec((None, 2), name="transaction")])
    module = tf.Module()
    module.model, module.serve = model, serve
    converter = tf.lite.TFLiteConverter.from_concrete_functions(
        [serve.get_concrete_function()], module
    )
    if variant == "int8":
        rows = make_transactions(200, 20)
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.representative_dataset = lambda: ([row[None]] for row in rows)
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.inference_input_type = converter.inference_output_type = tf.int8
    content: bytes = converter.convert()
    return content


@pytest.fixture(scope="module")
def version_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("fraud") / "1"
    model, rows = build_model(), make_transactions(ROWS, FRAUDS)
    for variant in ("float32", "int8"):
        target = path / layout.variant_path(variant)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(convert_model(model, variant))
    answers = model(rows).numpy()
    assert (answers.argmax(axis=1) == 1).sum() == FRAUDS
    examples = GoldenExamples({"transaction": rows}, {"probabilities": answers}, (1, 31, 32))
    write_golden(path / layout.GOLDEN, Golden({"serving_default": examples}))
    seal(path)
    return path


def seal(path: Path) -> None:
    manifest = Manifest(
        model_name="fraud",
        version=1,
        created="",
        signatures={},
        heads=HEADS,
        files=hash_files(path),
    )
    write_manifest(path, manifest)


def test_verify_fails_it_and_says_which_class_and_why(version_dir: Path) -> None:
    checks = {one.name: one for one in recheck_version(version_dir, skip_tensorflow=True).checks}
    assert checks["float32"].result == "passed", checks["float32"].detail
    assert checks["int8"].result == "FAILED"
    assert f"{FRAUDS} of {FRAUDS} rows of class fraud" in checks["int8"].detail
    assert "because column 1 of input 'transaction' spans" in checks["int8"].detail
    found = checks["int8"].measurement
    assert found is not None
    assert found.us_per_row_raw is not None


def test_parity_exits_with_a_difference(
    version_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["parity", "--version_dir", str(version_dir), "--json", "--via"]
    assert main([*arguments, "on-device:float32"]) == 0
    capsys.readouterr()
    assert main([*arguments, "on-device:int8"]) == 1
    (hop,) = json.loads(capsys.readouterr().out)["hops"]
    assert hop["verdict"] == "differs"
    assert hop["signatures"][0]["outputs"][0]["worst_class"]["name"] == "fraud"


def test_a_server_does_not_serve_it(version_dir: Path, tmp_path: Path) -> None:
    from contract.servable import ServableId
    from serving.config.server import ServerConfig
    from serving.engines.loading import load_servable
    from serving.observer import Observer

    config, identity = ServerConfig(prefer_tflite_model=True), ServableId("fraud", 1)
    load_servable(identity, version_dir, config, Observer()).close()
    blind = Path(shutil.copytree(version_dir, tmp_path / "1"))
    shutil.copy(blind / layout.variant_path("int8"), blind / layout.variant_path("float32"))
    seal(blind)
    with pytest.raises(VerificationError, match="rows of class fraud are answered otherwise"):
        load_servable(identity, blind, config, Observer())
