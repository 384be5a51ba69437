"""`train`: one call for both loops, with one result."""

from __future__ import annotations

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class TrainResult:
    """A trained model and how it came about.

    Attributes:
        model: A `tf_keras.Model` with the best epoch's weights.
        history: Metric name (`loss`, `accuracy`, `val_loss`, `val_accuracy`,
            `learning_rate`) to one value per epoch; a resumed run's is whole.
        epochs_run: Epochs trained, those before a resume included.
        best_epoch: The epoch, from 1, whose weights the model has.
        seconds: Wall time of this call.
        resumed_from: Epoch the run was resumed after, or 0.
    """

    model: Any
    history: dict[str, list[float]]
    epochs_run: int
    best_epoch: int
    seconds: float
    resumed_from: int = 0
