"""A trained model in its run directory: what `train` writes and `export --trained` takes up."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np

from contract.errors import ConfigError
from exporter.config import Config
from exporter.data.dataset import Dataset, load_dataset
from exporter.training.run import TrainResult

_RECORD = "trained.json"
_WEIGHTS = "weights.npz"


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
    weights = {f"w{at:04d}": array for at, array in enumerate(result.model.get_weights())}
    record = TrainedRecord(
        config=config,
        data_fingerprint=dataset.fingerprint,
        history=result.history,
        epochs_run=result.epochs_run,
        best_epoch=result.best_epoch,
        seconds=result.seconds,
    )
    with (run_dir / _WEIGHTS).open("wb") as stream:
        np.savez(stream, allow_pickle=False, **weights)
    (run_dir / _RECORD).write_bytes(msgspec.json.encode(record))


def check_trained(run_dir: Path) -> None:
    """Finds out early, before any process is started, that nothing was trained there."""
    if not (run_dir / _RECORD).exists():
        raise ConfigError(
            f"{run_dir} holds no trained model; make one with: python -m exporter train"
        )


def load_trained(run_dir: Path) -> tuple[Dataset, TrainResult]:
    """Reads the data again, builds the model again and gives it its weights."""
    from exporter.training.models import build_model
    from exporter.training.parts import describe_dataset_heads

    try:
        record = msgspec.json.decode((run_dir / _RECORD).read_bytes(), type=TrainedRecord)
    except (OSError, msgspec.DecodeError) as error:
        raise ConfigError(
            f"{run_dir} holds no trained model ({error}); make one with: python -m exporter train"
        ) from error
    config = record.config
    dataset = load_dataset(config.data)
    if dataset.fingerprint != record.data_fingerprint:
        raise ConfigError(
            f"{run_dir} was trained on data {record.data_fingerprint[:12]}, and those found now "
            f"are {dataset.fingerprint[:12]}; bring the data back, or train again"
        )
    model = build_model(config.model, dataset)
    try:
        with np.load(run_dir / _WEIGHTS, allow_pickle=False) as archive:
            model.set_weights([archive[name] for name in sorted(archive.files)])
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
