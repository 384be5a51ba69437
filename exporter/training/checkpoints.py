"""Checkpoints that survive `kill -9`: a resumed run ends with the weights of one never stopped.

    <run_dir>/checkpoints/epoch-00012/
      variables.*    model, optimizer and the generators of its layers (tf.train.Checkpoint)
      best.npz       the best epoch's weights
      state.json     history, epochs, and which run this is

A checkpoint is written to a dot-directory and renamed once, so one that has its name is whole.
Of several machines the chief alone keeps them; a run that is resumed sends the others its own.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import re
import shutil
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
import tensorflow as tf
import tf_keras

from contract.errors import ConfigError
from contract.signature import Array
from exporter.config import Config, Table
from exporter.data.dataset import Dataset
from exporter.publishing.staging import translate_disk_errors
from exporter.training.parts import TrainingParts
from exporter.training.run import EpochListener, RunState
from exporter.training.strategy import broadcast
from exporter.training.trained import CHANGEABLE, pack_weights, unpack_weights

_LOG = logging.getLogger(__name__)

_KEPT = 2
_EPOCH_DIRECTORY = re.compile(r"epoch-(\d+)")


class RunIdentity(msgspec.Struct, frozen=True):
    """What must be equal for a checkpoint to be gone on from.

    Attributes:
        model: The section of the configuration, as it was then: keys may have come or gone.
        training: Likewise, without what moves no weight.
        data: The fingerprint.
    """

    model: Table
    training: Table
    data: str


def identify_run(
    config: Config, dataset: Dataset, *, ignored: Sequence[str] = CHANGEABLE
) -> RunIdentity:
    """Return what a run is recognised by."""
    plain = msgspec.to_builtins(config)
    training = {key: value for key, value in plain["training"].items() if key not in ignored}
    # As JSON keeps it, so that it equals what is read back: lists, not tuples.
    return msgspec.json.decode(
        msgspec.json.encode(RunIdentity(plain["model"], training, dataset.fingerprint)),
        type=RunIdentity,
    )


def check_same_run(strategy: tf.distribute.Strategy, config: Config, dataset: Dataset) -> None:
    """Refuse a worker that would train something else than the chief; to be called by all."""
    own = identify_run(config, dataset, ignored=())
    chiefs = msgspec.json.decode(broadcast(strategy, msgspec.json.encode(own)), type=RunIdentity)
    changed = _describe_changes(chiefs, own) or ("other data" if chiefs.data != own.data else "")
    if changed:
        raise ConfigError(
            f"this worker was started otherwise than the chief ({changed}); start the same command "
            "on the same data everywhere"
        )


def _describe_changes(before: RunIdentity, now: RunIdentity) -> str:
    """Which keys differ, and how."""
    changes = [
        f"{section}.{key} {earlier.get(key)} -> {later.get(key)}"
        for section, earlier, later in (
            ("model", before.model, now.model),
            ("training", before.training, now.training),
        )
        for key in {**earlier, **later}
        if earlier.get(key) != later.get(key)
    ]
    return ", ".join(changes)


class _SavedState(msgspec.Struct, frozen=True):
    """`state.json`: what is kept of `RunState` but for the weights, and whose it is."""

    epochs_run: int
    best_epoch: int
    stopped: bool
    history: dict[str, list[float]]
    run: RunIdentity


class CheckpointStore:
    """The checkpoints of one run.

    Args:
        directory: Where they lie.
        parts: What is saved and restored.
        run: From `identify_run`; a checkpoint of another run is refused.
        chief: Whether this worker keeps what it writes, and reads what is there.
    """

    def __init__(
        self, directory: Path, parts: TrainingParts, run: RunIdentity, *, chief: bool
    ) -> None:
        self._directory = directory
        self._parts = parts
        self._run = run
        self._chief = chief

    def begin(self, *, resume: bool) -> RunState:
        """Return the state a run begins with: of the newest checkpoint, whose variables model and
        optimizer are given, or an empty one.

        Of several workers the chief decides, and what others were asked for does not count.
        Without a checkpoint (the run died before its first) training starts over; what an earlier
        run left is removed where it is not resumed, so that nobody does so by mistake.
        """
        with contextlib.ExitStack() as stack:
            path = self._choose(resume=resume) if self._chief else None
            if self._parts.plan.num_workers > 1:
                path = self._share(path, stack)
            if path is None:
                return RunState()
            state = self._read_state(path)
            restored = self._make_checkpoint().read(str(path / "variables"))
            restored.assert_existing_objects_matched()
            whence = path if self._chief else "the chief's checkpoint"
            _LOG.info("resuming after epoch %d from %s", state.epochs_run, whence)
            return state

    def _choose(self, *, resume: bool) -> Path | None:
        self._remove_stages()
        found = self._find()
        if not resume:
            for path in found.values():
                shutil.rmtree(path)
        elif found:
            return found[max(found)]
        else:
            _LOG.warning("no checkpoint in %s: training starts over", self._directory)
        return None

    def save_when_due(self, state: RunState, metrics: dict[str, float]) -> None:
        """Write a checkpoint after every `checkpoint_every`th epoch and the last."""
        del metrics
        config = self._parts.config
        last = state.stopped or state.epochs_run == config.epochs
        every = config.checkpoint_every
        if every and (last or state.epochs_run % every == 0):
            self.save(state)

    def save(self, state: RunState) -> None:
        """Write one checkpoint; all workers must, as TensorFlow wants it."""
        if not self._chief:
            self._write_unread()
            return
        stage = self._directory / f".stage-{os.getpid()}-{state.epochs_run:05}"
        final = self._directory / f"epoch-{state.epochs_run:05}"
        try:
            stage.mkdir(parents=True)
            with translate_disk_errors(stage):
                self._make_checkpoint().write(str(stage / "variables"))
            _write_files(stage, state, self._run)
            stage.rename(final)
        except OSError as error:
            shutil.rmtree(stage, ignore_errors=True)
            raise ConfigError(
                f"cannot write a checkpoint to {self._directory}: {error.strerror}; give another "
                "--run_dir, or training.checkpoint_every = 0"
            ) from error
        for epoch in sorted(self._find())[:-_KEPT]:
            shutil.rmtree(self._directory / f"epoch-{epoch:05}")

    def _write_unread(self) -> None:
        try:
            with (
                tempfile.TemporaryDirectory(prefix="plumbline-checkpoint-") as folder,
                translate_disk_errors(Path(folder)),
            ):
                self._make_checkpoint().write(f"{folder}/variables")
        except OSError as error:
            raise ConfigError(
                f"cannot write to {tempfile.gettempdir()}: {error.strerror}; name another folder "
                "in TMPDIR"
            ) from error

    def _share(self, path: Path | None, stack: contextlib.ExitStack) -> Path | None:
        """Sends the chief's checkpoint to all workers, whose disks need not have it."""
        packed = io.BytesIO()
        if path is not None:
            with tarfile.open(fileobj=packed, mode="w") as archive:
                archive.add(path, path.name)
        data = broadcast(self._parts.strategy, packed.getvalue())
        if path is not None or not data:
            return path
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="plumbline-checkpoint-"))
        with tarfile.open(fileobj=io.BytesIO(data)) as archive:
            archive.extractall(folder, filter="data")
            return Path(folder) / archive.getnames()[0]

    def _make_checkpoint(self) -> tf.train.Checkpoint:
        return tf.train.Checkpoint(
            model=self._parts.model,
            optimizer=self._parts.optimizer,
            generators=_find_generators(self._parts.model),
        )

    def _read_state(self, path: Path) -> RunState:
        saved, best_weights = _read_files(path)
        changed = _describe_changes(saved.run, self._run)
        if changed:
            raise ConfigError(
                f"{path} is of another run ({changed}); give its configuration, or leave "
                "--resume out to start over"
            )
        if saved.run.data != self._run.data:
            raise ConfigError(f"{path} was trained on other data; leave --resume out")
        return RunState(
            epochs_run=saved.epochs_run,
            history=saved.history,
            best_epoch=saved.best_epoch,
            best_weights=best_weights,
            stopped=saved.stopped,
        )

    def _find(self) -> dict[int, Path]:
        if not self._directory.is_dir():
            return {}
        matches = {
            path: _EPOCH_DIRECTORY.fullmatch(path.name) for path in self._directory.iterdir()
        }
        return {int(match[1]): path for path, match in matches.items() if match}

    def _remove_stages(self) -> None:
        for stage in self._directory.glob(".stage-*"):
            shutil.rmtree(stage, ignore_errors=True)


def _find_generators(model: tf_keras.Model) -> list[tf.random.Generator]:
    """Return the random generators of a model's layers, in order.

    Keras does not track them; without their state a resumed run would drop other units.
    """
    holders = [getattr(layer, "_random_generator", None) for layer in model.submodules]
    found = [getattr(holder, "_generator", None) for holder in holders]
    return [generator for generator in found if generator is not None]


def _write_files(directory: Path, state: RunState, run: RunIdentity) -> None:
    with (directory / "best.npz").open("wb") as file:
        np.savez(file, allow_pickle=False, **pack_weights(state.best_weights))
    saved = _SavedState(
        epochs_run=state.epochs_run,
        best_epoch=state.best_epoch,
        stopped=state.stopped,
        history=state.history,
        run=run,
    )
    # Not msgspec's own JSON, which has no NaN: a validation loss may be one.
    text = json.dumps(msgspec.to_builtins(saved))
    (directory / "state.json").write_text(text, encoding="utf-8")


def _read_files(directory: Path) -> tuple[_SavedState, list[Array]]:
    try:
        plain = json.loads((directory / "state.json").read_text(encoding="utf-8"))
        with np.load(directory / "best.npz", allow_pickle=False) as arrays:
            best_weights = unpack_weights(arrays)
        return msgspec.convert(plain, _SavedState), best_weights
    except (OSError, ValueError, KeyError, TypeError, msgspec.ValidationError) as error:
        raise ConfigError(
            f"the checkpoint {directory} cannot be read ({error}); remove it, or leave --resume out"
        ) from error


def make_tensorboard_log(directory: Path) -> EpochListener:
    """Return what writes `epoch_<metric>` after each epoch; `tensorboard --logdir` shows them."""
    writer = tf.summary.create_file_writer(str(directory))

    def write(state: RunState, metrics: dict[str, float]) -> None:
        with translate_disk_errors(directory):
            with writer.as_default():
                for name, value in metrics.items():
                    tf.summary.scalar(f"epoch_{name}", value, step=state.epochs_run)
            writer.flush()

    return write
