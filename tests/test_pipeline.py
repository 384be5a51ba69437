"""The whole flow, as a user runs it: real data, real processes, real files."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from contract import layout
from contract.golden import read_golden
from contract.manifest import check_files, read_manifest
from tests.conftest import ROOT, Run

CONFIGS = ROOT / "configs"
MLP = ("--config", str(CONFIGS / "mlp.toml"))

BUILDER = """
import tf_keras
layers = tf_keras.layers

def build(input_shape, num_classes):
    images = layers.Input(input_shape, name="images")
    flat = layers.Flatten()(images)
    left = layers.Dense(16, "relu")(flat)
    right = layers.Dense(16, "tanh")(flat)
    merged = layers.Add()([left, right])
    return tf_keras.Model(images, {
        "digit": layers.Dense(num_classes, "softmax")(merged),
        "logits": layers.Dense(num_classes)(merged),
    })

def build_betainc(input_shape, num_classes):
    import tensorflow as tf
    images = layers.Input(input_shape)
    flat = layers.Flatten()(images)
    odd = layers.Lambda(lambda x: tf.math.betainc(x + 1.0, x + 1.0, x / 2.0))(flat)
    return tf_keras.Model(images, layers.Dense(num_classes, "softmax")(odd))
"""


def settings(*overrides: str) -> list[str]:
    return [item for override in overrides for item in ("--set", override)]


def test_an_exported_version_holds_everything_that_the_layout_promises(published_mlp: Path) -> None:
    version = published_mlp / "mlp" / "1"
    manifest = read_manifest(version)
    check_files(version, manifest)
    variables = ["variables/variables.data-00000-of-00001", "variables/variables.index"]
    assert sorted(manifest.files) == sorted(
        [
            layout.SAVED_MODEL,
            "fingerprint.pb",
            *variables,
            layout.LABELS,
            layout.WARMUP,
            layout.GOLDEN,
            layout.MODEL_CARD,
            layout.CONFUSION_MATRIX,
            layout.REPORT,
            layout.EVALUATION,
            *map(layout.variant_path, layout.DEFAULT_VARIANTS),
        ]
    )
    assert (manifest.model_name, manifest.version) == ("mlp", 1)
    assert manifest.calibration_fingerprint
    assert set(manifest.parity) == {"in_process", "saved_model", *layout.DEFAULT_VARIANTS}
    assert manifest.parity["saved_model"]["bit_equal"]
    assert manifest.parity["float32"]["max_abs_difference"] <= 1e-5
    assert manifest.metrics["test_accuracy"] > 0.9


def test_golden_has_64_rows_for_every_signature_and_every_class(published_mlp: Path) -> None:
    golden = read_golden(published_mlp / "mlp" / "1" / layout.GOLDEN)
    assert set(golden.signatures) == {
        "serving_default",
        "serving_uint8",
        "serving_image_bytes",
        "classify",
        "predict_images",
    }
    for examples in golden.signatures.values():
        assert examples.num_examples >= 64
    scores = golden.signatures["serving_default"].outputs["probabilities"]
    assert set(scores.argmax(axis=1)) == set(range(10))


def test_the_model_card_holds_table_classes_and_picture(published_mlp: Path) -> None:
    card = (published_mlp / "mlp" / "1" / layout.MODEL_CARD).read_text(encoding="utf-8")
    for text in (
        "| saved_model |",
        "| int8 |",
        "µs per row",
        "bit for bit",
        "Accuracy per class",
        "![Confusion matrix of the test split](confusion_matrix.png)",
    ):
        assert text in card
    picture = published_mlp / "mlp" / "1" / layout.CONFUSION_MATRIX
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_the_report_shows_the_epoch_that_was_kept(published_mlp: Path) -> None:
    version = published_mlp / "mlp" / "1"
    training = read_manifest(version).training
    assert training is not None
    assert training.best_epoch <= training.epochs_run == len(training.epochs)
    assert {"loss", "val_loss", "val_accuracy"} <= set(training.history)
    page = (version / layout.REPORT).read_text(encoding="utf-8")
    assert f"epoch {training.best_epoch} kept" in page
    assert "The twelve rows that it answers worst" in page
    assert len(page) < 1_500_000


@pytest.mark.tensorflow
def test_a_candidate_that_fails_is_not_published_and_its_report_stays(
    tmp_path: Path, run_here: Run
) -> None:
    impossible = settings(
        "training.epochs=1",
        'export.variants=["float32"]',
        "export.tolerances.float32.max_abs_difference=0.0",
    )
    done = run_here("export", *MLP, *impossible, "--run_dir", "run", "--json")
    assert done.returncode == 1, done.stderr
    document = json.loads(done.stdout)
    assert document["published"] is None
    (failure, *_) = document["verification"]["failures"]["float32"]
    assert "must be equal bit for bit" in failure
    assert not (tmp_path / "models").exists()
    report = json.loads((tmp_path / "run" / "verification.json").read_text())
    assert "float32" in report["failures"]
    page = run_here("report", "run").stdout.strip()
    assert "float32 failed verification" in (tmp_path / page).read_text(encoding="utf-8")
    refused = run_here("publish", "run")
    assert refused.returncode == 1
    assert "did not pass verification" in refused.stderr
    assert not (tmp_path / "models").exists()


@pytest.mark.tensorflow
def test_a_copy_that_fails_is_left_out_of_what_is_published_and_the_command_ends_with_1(
    tmp_path: Path, run_here: Run
) -> None:
    impossible = settings(
        "training.epochs=1",
        'export.variants=["float32", "float16"]',
        "export.tolerances.float16.max_abs_difference=0.0",
    )
    done = run_here("export", *MLP, *impossible, "--json")
    assert done.returncode == 1, done.stderr
    document = json.loads(done.stdout)
    assert document["verification"]["left_out"] == ["float16"]
    version_dir = tmp_path / "models" / "mlp" / "1"
    assert document["published"]["path"].endswith("models/mlp/1")
    assert (version_dir / "model.tflite").exists()
    assert not (version_dir / "assets.extra" / "tflite" / "float16.tflite").exists()
    assert run_here("verify", str(version_dir)).returncode == 0


@pytest.mark.tensorflow
def test_what_train_left_can_be_exported_twice_at_once(tmp_path: Path, run_here: Run) -> None:
    flags = [*MLP, *settings("training.epochs=2", "export.variants=[]")]
    trained = run_here("train", *flags, "--run_dir", "run", "--json")
    assert trained.returncode == 0, trained.stderr
    assert json.loads(trained.stdout)["epochs_run"] == 2
    children = [
        subprocess.Popen(
            [sys.executable, "-m", "exporter", "export", *flags, "--trained", "run", "--json"],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for _ in range(2)
    ]
    outputs = [child.communicate(timeout=200) for child in children]
    assert [child.returncode for child in children] == [0, 0], outputs
    versions = {json.loads(out)["published"]["version"] for out, _ in outputs}
    assert versions == {1, 2}
    base_path = tmp_path / "models" / "mlp"
    for version in (1, 2):
        check_files(base_path / str(version), read_manifest(base_path / str(version)))


@pytest.mark.tensorflow
def test_what_an_export_trained_and_could_not_convert_is_exported_without_training_again(
    tmp_path: Path, run_here: Run
) -> None:
    hasty = settings(
        "training.epochs=2", 'export.variants=["float32"]', "export.conversion_timeout_s=0.001"
    )
    failed = run_here("export", *MLP, *hasty, "--run_dir", "run")
    assert failed.returncode == 1
    assert "python -m exporter export --trained run" in failed.stdout
    # Without --config: the run brings its own.
    again = settings("export.variants=[]", "export.conversion_timeout_s=300")
    done = run_here("export", "--trained", "run", *again, "--json")
    assert done.returncode == 0, done.stderr
    assert "epoch" not in done.stderr
    manifest = read_manifest(tmp_path / "models" / "mlp" / "1")
    assert manifest.config["training"]["epochs"] == 2
    assert manifest.config["export"]["variants"] == []


@pytest.mark.tensorflow
def test_random_data_are_labelled_in_every_output(tmp_path: Path, run_here: Run) -> None:
    tolerant = settings('data.kind="random"', "training.epochs=1", "export.variants=[]")
    done = run_here("export", *MLP, *tolerant)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "DUMMY DATA" in done.stdout
    assert "dummy data" in done.stderr
    version = tmp_path / "models" / "mlp" / "1"
    assert "Dummy data" in (version / layout.MODEL_CARD).read_text()
    assert "Dummy data" in (version / layout.REPORT).read_text(encoding="utf-8")
    assert read_manifest(version).data.dummy  # type: ignore[union-attr]
    assert "DUMMY" in run_here("inspect", str(version)).stdout


@pytest.mark.tensorflow
def test_a_users_own_branching_model_goes_the_whole_way(tmp_path: Path, run_here: Run) -> None:
    (tmp_path / "my_models.py").write_text(BUILDER)
    (tmp_path / "mine.toml").write_text(
        (CONFIGS / "mlp.toml")
        .read_text()
        .replace('kind = "mlp"', 'kind = "builder"\nname = "mine"\nbuilder = "my_models:build"')
        .replace("hidden_units = [64]", "")
    )
    flags = settings("training.epochs=6")
    done = run_here("export", "--config", "mine.toml", *flags)
    assert done.returncode == 0, done.stdout + done.stderr
    signatures = read_manifest(tmp_path / "models" / "mine" / "1").signatures
    assert set(signatures) == {"serving_default", "serving_uint8", "serving_image_bytes"}
    assert set(signatures["serving_default"].outputs) == {"digit", "logits"}


@pytest.mark.tensorflow
def test_a_model_with_an_operator_that_tflite_lacks_is_told_and_not_published(
    tmp_path: Path, run_here: Run
) -> None:
    (tmp_path / "my_models.py").write_text(BUILDER)
    (tmp_path / "mine.toml").write_text(
        (CONFIGS / "mlp.toml")
        .read_text()
        .replace('kind = "mlp"', 'kind = "builder"\nbuilder = "my_models:build_betainc"')
        .replace("hidden_units = [64]", "")
    )
    flags = [
        "export",
        "--config",
        "mine.toml",
        *settings("training.epochs=1", 'export.variants=["float32"]'),
    ]
    done = run_here(*flags)
    assert done.returncode == 1
    assert "float32 FAILED: the model uses Betainc (layer lambda)" in done.stdout
    assert "To publish without float32, take it out of export.require" in done.stdout
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize(
    ("how", "status"), [(signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)]
)
def test_an_export_that_is_stopped_publishes_nothing_and_leaves_no_process(
    tmp_path: Path, how: signal.Signals, status: int
) -> None:
    child = psutil.Popen(
        [sys.executable, "-m", "exporter", "export", *MLP, *settings("training.epochs=100000")],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    assert child.stderr is not None
    for line in child.stderr:
        if line.startswith(b"epoch 1/"):
            break
    workers = child.children(recursive=True)
    assert len(workers) == 2
    child.send_signal(how)
    _, errors = child.communicate(timeout=60)
    assert child.returncode == status
    assert b"Traceback" not in errors
    deadline = time.monotonic() + 30
    while any(one.is_running() and one.status() != psutil.STATUS_ZOMBIE for one in workers):
        assert time.monotonic() < deadline, "a worker outlives the export"
        time.sleep(0.05)
    assert not (tmp_path / "models").exists()
