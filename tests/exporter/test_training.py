"""Both loops train alike, stop alike, and go on after a kill as if nothing had been."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from contract.errors import ConfigError
from contract.heads import Head
from exporter.config import Config
from exporter.data.dataset import to_float32
from exporter.training.batches import BatchPlan, order_rows
from exporter.training.run import ProgressReport, TrainResult
from exporter.training.train import train
from tests.exporter.file_limit import limit_files
from tests.exporter.small_training import make_config, make_dataset

pytestmark = pytest.mark.tensorflow

ROOT = Path(__file__).parents[2]
DATASET = make_dataset()
LOOPS = ["fit", "gradient_tape"]
CNN = {"kind": "cnn", "filters": [4], "dense_units": 8, "dropout": 0.5}

CUSTOM = """
import tensorflow as tf
import tf_keras
from tf_keras import layers

def hinge(y_true, y_pred):
    return tf.reduce_sum(tf.nn.relu(1 + y_pred - tf.reduce_max(y_true * y_pred, axis=-1,
        keepdims=True)), axis=-1)

def scalar(y_true, y_pred):
    return tf.reduce_mean((y_true - y_pred) ** 2)

def narrowing(y_true, y_pred):
    return y_true[:, 0] - y_pred

def logits(input_shape, num_classes):
    return tf_keras.Sequential(
        [layers.Input(input_shape), layers.Flatten(), layers.Dense(num_classes)]
    )

def regression(input_shape, num_classes):
    return tf_keras.Sequential([layers.Input(input_shape), layers.Flatten(), layers.Dense(1)])

def two_heads(input_shape, num_classes):
    a = layers.Input(input_shape, name="a")
    b = layers.Input((input_shape[0] * input_shape[1],), name="b")
    x = layers.Dropout(0.2)(layers.Concatenate()([layers.Flatten()(a), b]))
    digit = layers.Dense(num_classes, activation="softmax", name="digit")(x)
    return tf_keras.Model([a, b], [layers.Dense(1, name="size")(x), digit])
"""


@pytest.fixture
def custom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_training.py").write_text(CUSTOM)
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop("my_training", None)


def builder(name: str) -> dict[str, Any]:
    return {"kind": "builder", "builder": f"my_training:{name}"}


def largest_difference(first: TrainResult, second: TrainResult) -> float:
    pairs = zip(first.model.get_weights(), second.model.get_weights(), strict=True)
    return max(float(np.abs(a - b).max()) for a, b in pairs)


def train_both(**keys: Any) -> tuple[TrainResult, TrainResult]:
    fit, tape = (train(DATASET, make_config(loop=loop, **keys)) for loop in LOOPS)
    return fit, tape


def accuracy(result: TrainResult) -> float:
    shape = result.model.input_shape[1:]
    answers = result.model.predict_on_batch(to_float32(DATASET.test.inputs[""], shape))
    return float((answers.argmax(axis=1) == DATASET.test.targets[""]).mean())


@pytest.mark.parametrize("model", [None, CNN], ids=["mlp", "cnn"])
def test_both_loops_end_with_the_same_weights_dropout_included(model: dict[str, Any]) -> None:
    fit, tape = train_both(model=model)
    assert largest_difference(fit, tape) <= 1e-6
    assert fit.best_epoch == tape.best_epoch
    for name, values in fit.history.items():
        assert np.allclose(values, tape.history[name], atol=1e-5), name


def test_both_loops_agree_on_l2_a_schedule_and_another_optimizer() -> None:
    fit, tape = train_both(
        model={"kind": "mlp", "hidden_units": [8], "l2": 0.01},
        optimizer="sgd",
        momentum=0.9,
        schedule={"kind": "cosine", "warmup_epochs": 1},
    )
    assert largest_difference(fit, tape) <= 1e-6


@pytest.mark.usefixtures("custom")
def test_both_loops_agree_on_several_inputs_and_heads() -> None:
    fit, tape = train_both(model=builder("two_heads"))
    assert largest_difference(fit, tape) <= 1e-6
    assert fit.heads.main.name == "digit"
    assert fit.history.keys() == tape.history.keys()
    assert fit.history["val_accuracy"] == tape.history["val_accuracy"]


@pytest.mark.parametrize("loop", LOOPS)
def test_training_learns(loop: str) -> None:
    result = train(DATASET, make_config(loop=loop, epochs=8))
    assert accuracy(result) > 0.9
    assert result.history["loss"][-1] < result.history["loss"][0]


def test_another_seed_gives_other_weights() -> None:
    first, second = (train(DATASET, make_config(seed=seed, epochs=1)) for seed in (1, 2))
    assert largest_difference(first, second) > 1e-3


def test_the_model_is_left_as_the_builder_made_it() -> None:
    model = train(DATASET, make_config(epochs=1)).model
    assert getattr(model, "optimizer", None) is None
    assert type(model).__name__ == "Sequential"


def test_the_order_of_an_epoch_hangs_on_seed_and_epoch_alone() -> None:
    assert (order_rows(1, 2, 50) == order_rows(1, 2, 50)).all()
    assert (order_rows(1, 2, 50) != order_rows(1, 3, 50)).any()
    assert (order_rows(1, 2, 50) != order_rows(2, 2, 50)).any()
    assert sorted(order_rows(1, 2, 50)) == list(range(50))


@pytest.mark.parametrize("loop", LOOPS)
def test_early_stopping_restores_the_best_epoch(loop: str) -> None:
    # A rate this high makes validation worse again and again.
    config = make_config(loop=loop, epochs=30, learning_rate=0.3, patience=2)
    result = train(DATASET, config)
    losses = result.history["val_loss"]
    assert result.epochs_run == len(losses) == result.best_epoch + 2 < 30
    assert min(losses) == losses[result.best_epoch - 1]
    short = train(DATASET, make_config(loop=loop, epochs=result.best_epoch, learning_rate=0.3))
    assert largest_difference(result, short) == 0


def test_the_best_epoch_is_restored_without_patience_too() -> None:
    result = train(DATASET, make_config(epochs=8, learning_rate=0.3))
    assert result.epochs_run == 8
    assert result.best_epoch == 1 + int(np.argmin(result.history["val_loss"]))


@pytest.mark.parametrize("kind", ["constant", "cosine", "exponential", "piecewise"])
def test_a_schedule_moves_the_learning_rate(kind: str) -> None:
    schedule = {"kind": kind, "warmup_epochs": 1, "boundaries": [2] if kind == "piecewise" else []}
    rates = train(DATASET, make_config(schedule=schedule)).history["learning_rate"]
    last = {"constant": 0.01, "cosine": 0.0001, "exponential": 0.0001, "piecewise": 0.001}[kind]
    assert rates[0] == pytest.approx(0.01, rel=0.01)
    assert rates[-1] == pytest.approx(last, rel=0.01)


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd", "rmsprop"])
def test_every_optimizer_trains(optimizer: str) -> None:
    result = train(DATASET, make_config(optimizer=optimizer, epochs=2))
    assert result.history["loss"][-1] < result.history["loss"][0]


def test_a_diverging_loss_is_refused_in_words() -> None:
    with pytest.raises(ConfigError, match=r"training diverged.*lower training\.learning_rate"):
        train(DATASET, make_config(optimizer="sgd", learning_rate=1e30))


@pytest.mark.usefixtures("custom")
def test_logits_are_trained_as_logits() -> None:
    result = train(DATASET, make_config(model=builder("logits"), epochs=8))
    assert result.heads.main.head == Head(
        task="multiclass", from_logits=True, class_names=DATASET.class_names
    )
    assert accuracy(result) > 0.9


@pytest.mark.usefixtures("custom")
@pytest.mark.parametrize("loop", LOOPS)
def test_a_regression_head_learns_the_class_number(loop: str) -> None:
    config = make_config(
        loop=loop, model=builder("regression"), loss="mean_squared_error", epochs=10
    )
    history = train(DATASET, config).history
    assert "accuracy" not in history
    assert history["val_loss"][-1] < 0.5 * history["val_loss"][0]


@pytest.mark.usefixtures("custom")
def test_a_loss_of_the_users_own_trains_and_moves_other_weights() -> None:
    plain = train(DATASET, make_config(loop="gradient_tape"))
    own = train(DATASET, make_config(loop="gradient_tape", loss="my_training:hinge", epochs=8))
    assert accuracy(own) > 0.8
    assert largest_difference(plain, own) > 1e-3


@pytest.mark.usefixtures("custom")
@pytest.mark.parametrize(
    ("loss", "sentence"),
    [
        ("my_training:scalar", r"returned shape \(\) for 2 examples; return one loss"),
        ("my_training:narrowing", r"failed on y_true and y_pred of shape \(2, 3\)"),
        ("my_training:missing", "has no function 'missing'"),
    ],
)
def test_a_loss_of_no_use_is_refused(loss: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        train(DATASET, make_config(loop="gradient_tape", loss=loss))


def test_label_smoothing_keeps_the_answers_from_certainty() -> None:
    model = {"kind": "mlp", "hidden_units": [16]}
    sure, smooth = (
        train(DATASET, make_config(loop="gradient_tape", model=model, epochs=10, **keys))
        for keys in ({}, {"label_smoothing": 0.3})
    )
    x = to_float32(DATASET.test.inputs[""], (64,))
    tops = [result.model.predict_on_batch(x).max(axis=1).mean() for result in (sure, smooth)]
    assert tops[1] < tops[0] - 0.05


def test_clipping_bounds_the_step() -> None:
    keys: dict[str, Any] = {"loop": "gradient_tape", "optimizer": "sgd", "epochs": 1}
    start = train(DATASET, make_config(**keys, learning_rate=1e-12))
    clipped = train(DATASET, make_config(**keys, learning_rate=1.0, clip_norm=1e-4))
    steps = BatchPlan(150, 32, 3, 1, drop_remainder=False).steps_per_epoch
    moved = [a - b for a, b in zip(start.model.get_weights(), clipped.model.get_weights())]  # noqa: B905
    assert 0 < np.sqrt(sum(float((m**2).sum()) for m in moved)) <= steps * 1e-4 * 1.01


def test_mixup_trains_on_blends_and_is_repeatable() -> None:
    keys: dict[str, Any] = {"loop": "gradient_tape", "epochs": 6}
    plain, mixed, again = (
        train(DATASET, make_config(**keys, mixup=alpha)) for alpha in (0.0, 0.4, 0.4)
    )
    assert largest_difference(mixed, again) == 0
    assert largest_difference(mixed, plain) > 1e-3
    assert mixed.history["loss"][-1] > plain.history["loss"][-1]
    assert accuracy(mixed) > 0.8


def test_progress_counts_every_step_and_carries_the_metrics_of_an_epoch() -> None:
    reports: list[ProgressReport] = []
    train(DATASET, make_config(epochs=2), progress=reports.append)
    ends = [report for report in reports if report.metrics]
    assert [(report.epoch, report.step, report.steps) for report in ends] == [(1, 5, 5), (2, 5, 5)]
    assert {"loss", "accuracy", "val_loss", "val_accuracy"} <= ends[0].metrics.keys()


def test_tensorboard_logs_are_written_on_request(tmp_path: Path) -> None:
    train(DATASET, make_config(epochs=1), run_dir=tmp_path)
    assert not list(tmp_path.rglob("events.*"))
    train(DATASET, make_config(epochs=1, tensorboard=True), run_dir=tmp_path)
    assert list(tmp_path.rglob("events.*"))


@pytest.mark.parametrize("keys", [{"resume": True}, {}], ids=["resume", "tensorboard"])
def test_what_needs_a_run_folder_says_so(keys: dict[str, bool]) -> None:
    with pytest.raises(ConfigError, match="--run_dir"):
        train(DATASET, make_config(tensorboard=not keys), **keys)  # type: ignore[arg-type]


KILLED_RUN = """
import os, signal, sys
from pathlib import Path
from exporter.training.train import train
from tests.exporter.small_training import make_config, make_dataset

def kill(report):
    if report.epoch == 4 and not report.metrics:
        os.kill(os.getpid(), signal.SIGKILL)

config = make_config(loop=sys.argv[1], epochs=6, checkpoint_every=2)
train(make_dataset(), config, run_dir=Path(sys.argv[2]), progress=kill)
"""


def resumable(loop: str, **keys: Any) -> Config:
    return make_config(**{"loop": loop, "epochs": 6, "checkpoint_every": 2, **keys})


@pytest.mark.parametrize("loop", LOOPS)
def test_a_run_killed_and_resumed_ends_as_one_never_stopped(loop: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", KILLED_RUN, loop, str(tmp_path)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
    resumed = train(DATASET, resumable(loop), resume=True, run_dir=tmp_path)
    whole = train(DATASET, resumable(loop))
    assert resumed.resumed_from == 2
    assert largest_difference(resumed, whole) == 0
    assert resumed.history == whole.history
    assert resumed.best_epoch == whole.best_epoch


def test_a_finished_run_resumes_to_its_own_result(tmp_path: Path) -> None:
    first = train(DATASET, resumable("fit"), run_dir=tmp_path)
    second = train(DATASET, resumable("fit"), resume=True, run_dir=tmp_path)
    assert second.resumed_from == 6
    assert largest_difference(first, second) == 0


def test_a_run_killed_before_its_first_checkpoint_starts_over(tmp_path: Path) -> None:
    stage = tmp_path / "checkpoints" / ".stage-1-00002"
    stage.mkdir(parents=True)
    (stage / "state.json").write_text("{")
    result = train(DATASET, resumable("fit", epochs=2), resume=True, run_dir=tmp_path)
    assert result.resumed_from == 0
    assert not stage.exists()


def test_only_the_last_two_checkpoints_are_kept(tmp_path: Path) -> None:
    train(DATASET, resumable("fit", checkpoint_every=1), run_dir=tmp_path)
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["epoch-00005", "epoch-00006"]


def test_a_new_run_removes_the_checkpoints_of_the_one_before(tmp_path: Path) -> None:
    train(DATASET, resumable("fit"), run_dir=tmp_path)
    train(DATASET, resumable("fit", epochs=1, checkpoint_every=0), run_dir=tmp_path)
    assert not list((tmp_path / "checkpoints").iterdir())


def test_a_checkpoint_of_another_run_is_refused_by_its_differences(tmp_path: Path) -> None:
    train(DATASET, resumable("fit"), run_dir=tmp_path)
    with pytest.raises(ConfigError, match=r"training\.learning_rate 0\.01 -> 0\.02"):
        train(DATASET, resumable("fit", learning_rate=0.02), resume=True, run_dir=tmp_path)
    with pytest.raises(ConfigError, match="trained on other data"):
        train(make_dataset(rows=151), resumable("fit"), resume=True, run_dir=tmp_path)


def test_a_damaged_checkpoint_is_refused(tmp_path: Path) -> None:
    train(DATASET, resumable("fit"), run_dir=tmp_path)
    (tmp_path / "checkpoints" / "epoch-00006" / "best.npz").write_bytes(b"PK")
    with pytest.raises(ConfigError, match="cannot be read"):
        train(DATASET, resumable("fit"), resume=True, run_dir=tmp_path)


def test_a_disk_that_fills_up_under_a_checkpoint_is_told_in_words(tmp_path: Path) -> None:
    config = make_config(checkpoint_every=1)
    with limit_files(4_000), pytest.raises(ConfigError, match=r"checkpoint_every = 0") as caught:
        train(make_dataset(), config, run_dir=tmp_path)
    assert str(caught.value).startswith(f"cannot write a checkpoint to {tmp_path / 'checkpoints'}")
    assert list((tmp_path / "checkpoints").iterdir()) == []


def test_a_run_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    with pytest.raises(ConfigError, match="cannot write a checkpoint"):
        train(DATASET, resumable("fit"), run_dir=tmp_path / "run")
