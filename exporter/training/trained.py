"""A trained model in its run directory: what `train` writes and `export --trained` takes up."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
import numpy as np

from contract.errors import ConfigError
from contract.signature import Array
from exporter.config import Config
from exporter.data.dataset import Dataset, load_dataset
from exporter.training.run import TrainResult

_RECORD = "trained.json"
_WEIGHTS = "weights.npz"

CHANGEABLE = ("checkpoint_every", "tensorboard")
"""Keys of [training] that move no weight."""


class TrainedRecord(msgspec.Struct, frozen=True, kw_only=True):
    """How the weights beside it came about.

    Attributes:
        config: The whole configuration.
        data_fingerprint: Of the data they were trained on.
        history: Metric to one value per epoch.
        epochs_run: Epochs trained.
        best_epoch: The epoch, from 1, whose weights these are.
        seconds: Wall time of training.
    """

    config: Config
    data_fingerprint: str
    history: dict[str, list[float]]
    epochs_run: int
    best_epoch: int
    seconds: float


def save_trained(run_dir: Path, result: TrainResult, dataset: Dataset, config: Config) -> None:
    """Writes weights, history and configuration."""
    record = TrainedRecord(
        config=config,
        data_fingerprint=dataset.fingerprint,
        history=result.history,
        epochs_run=result.epochs_run,
        best_epoch=result.best_epoch,
        seconds=result.seconds,
    )
    with (run_dir / _WEIGHTS).open("wb") as stream:
        np.savez(stream, allow_pickle=False, **pack_weights(result.model.get_weights()))
    write_record(run_dir, record)


def pack_weights(weights: Sequence[Array]) -> dict[str, Array]:
    """Name weights for an npz file; a vocabulary's words are their bytes and their lengths."""
    packed = {}
    for at, array in enumerate(weights):
        if array.dtype.kind == "O":
            packed[f"{at:05}.lengths"] = np.vectorize(len, otypes=[np.int64])(array)
            array = np.frombuffer(b"".join(array.flat), np.uint8)
        packed[f"{at:05}"] = array
    return packed


def unpack_weights(archive: Mapping[str, Array]) -> list[Array]:
    """Return what `pack_weights` was given."""
    weights = []
    for name in sorted(name for name in archive if "." not in name):
        array = archive[name]
        if (lengths := archive.get(f"{name}.lengths")) is not None:
            ends, data = np.cumsum(lengths), array.tobytes()
            words = np.empty(lengths.size, object)
            words[:] = [
                data[end - length : end]
                for end, length in zip(ends.flat, lengths.flat, strict=True)
            ]
            array = words.reshape(lengths.shape)
        weights.append(array)
    return weights


def take_up(run_dir: Path, asked: Config) -> Config:
    """Return the configuration that a trained model is exported with: its own, but for the export.

    Args:
        run_dir: Of `train`, or of an export that failed.
        asked: What is asked for now. Where the data lie may differ (they are recognised by their
            fingerprint), and so may all of [export].

    Raises:
        ConfigError: Nothing was trained there, or with other settings than are asked for now.
    """
    own = read_record(run_dir).config
    before, now = msgspec.to_builtins(own), msgspec.to_builtins(asked)
    changed = [
        f"{section}.{key} = {_show(before[section][key])}, not {_show(value)}"
        for section in ("model", "training")
        for key, value in now[section].items()
        if before[section][key] != value and key not in CHANGEABLE
    ]
    if changed:
        raise ConfigError(
            f"{run_dir} was trained with {'; '.join(changed)}: leave --config out to export it as "
            "it was trained, or train again"
        )
    return msgspec.structs.replace(own, data=asked.data, export=asked.export)


def _show(value: object) -> str:
    return msgspec.json.encode(value).decode()


def write_record(run_dir: Path, record: TrainedRecord) -> None:
    """Writes how a model was trained."""
    # Not msgspec's own JSON, which has no NaN: a metric of an epoch may be one.
    text = json.dumps(msgspec.to_builtins(record))
    (run_dir / _RECORD).write_text(text, encoding="utf-8")


def read_record(run_dir: Path) -> TrainedRecord:
    """Reads it; what is none is refused."""
    try:
        plain = json.loads((run_dir / _RECORD).read_text(encoding="utf-8"))
        return msgspec.convert(plain, TrainedRecord)
    except FileNotFoundError as error:
        raise ConfigError(
            f"{run_dir} holds no trained model; make one with: python -m exporter train"
        ) from error
    except (OSError, ValueError, msgspec.ValidationError) as error:
        raise ConfigError(
            f"{run_dir} holds no trained model ({error}); make one with: python -m exporter train"
        ) from error


def load_trained(run_dir: Path, config: Config) -> tuple[Dataset, TrainResult]:
    """Reads the data again, builds the model again and gives it its weights.

    `config` is from `take_up`.
    """
    from exporter.training.models import build_model
    from exporter.training.parts import describe_dataset_heads

    record = read_record(run_dir)
    dataset = load_dataset(config.data)
    if dataset.fingerprint != record.data_fingerprint:
        raise ConfigError(
            f"{run_dir} was trained on data {record.data_fingerprint[:12]}, and those found now "
            f"are {dataset.fingerprint[:12]}; bring the data back, or train again"
        )
    model = build_model(config.model, dataset)
    try:
        with np.load(run_dir / _WEIGHTS, allow_pickle=False) as archive:
            model.set_weights(unpack_weights(archive))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{run_dir / _WEIGHTS} does not fit its model: {error}") from error
    heads = describe_dataset_heads(model, dataset, config.training)
    result = TrainResult(
        model=model,
        heads=heads,
        history=record.history,
        epochs_run=record.epochs_run,
        best_epoch=record.best_epoch,
        seconds=record.seconds,
    )
    return dataset, result
