"""A trained model is taken up as it was trained: only where it goes may change."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from contract.errors import ConfigError
from exporter.config import Config, override_config
from exporter.training.trained import (
    TrainedRecord,
    pack_weights,
    read_record,
    take_up,
    unpack_weights,
    write_record,
)
from tests.exporter.small_training import make_config


def keep(run_dir: Path) -> Config:
    config = make_config()
    record = TrainedRecord(
        config=config, data_fingerprint="0", history={}, epochs_run=3, best_epoch=2, seconds=1.0
    )
    write_record(run_dir, record)
    return config


def test_export_settings_and_the_place_of_the_data_are_those_asked_for_now(tmp_path: Path) -> None:
    own = keep(tmp_path)
    moved = ["export.variants=[]", "data.path=elsewhere.npz", "training.checkpoint_every=5"]
    config = take_up(tmp_path, override_config(own, moved))
    assert config.export.variants == ()
    assert config.data.path == "elsewhere.npz"
    assert config.training == own.training


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("training.epochs=4", r"training\.epochs = 3, not 4: leave --config out"),
        ("model.hidden_units=[8]", r"model\.hidden_units = \[16\], not \[8\]"),
    ],
)
def test_settings_that_would_train_otherwise_are_refused(
    tmp_path: Path, override: str, sentence: str
) -> None:
    own = keep(tmp_path)
    with pytest.raises(ConfigError, match=sentence):
        take_up(tmp_path, override_config(own, [override]))


@pytest.mark.parametrize("content", [None, b"{", b"{}"])
def test_a_folder_without_a_trained_model_is_refused(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "trained.json").write_bytes(content)
    with pytest.raises(ConfigError, match="holds no trained model"):
        take_up(tmp_path, make_config())


def test_a_history_with_a_metric_that_is_no_number_is_kept(tmp_path: Path) -> None:
    record = TrainedRecord(
        config=make_config(),
        data_fingerprint="0",
        history={"val_auc": [0.5, math.nan]},
        epochs_run=2,
        best_epoch=1,
        seconds=1.0,
    )
    write_record(tmp_path, record)
    assert str(read_record(tmp_path).history) == str(record.history)


def test_weights_come_back_as_they_were_vocabularies_included(tmp_path: Path) -> None:
    words = np.array([[b"", b"a\0"], [b"\xc3\xa9t\xc3\xa9", b"b"]], object)
    weights = [np.eye(2, dtype=np.float32), words, np.arange(3), np.array(2.5)]
    np.savez(tmp_path / "weights.npz", allow_pickle=False, **pack_weights(weights))
    with np.load(tmp_path / "weights.npz", allow_pickle=False) as archive:
        found = unpack_weights(archive)
    assert [one.dtype for one in found] == [one.dtype for one in weights]
    assert all(np.array_equal(one, other) for one, other in zip(found, weights, strict=True))
