"""Provenance: how a candidate came about, as its manifest keeps it."""

from __future__ import annotations

import contextlib
import datetime
import importlib.metadata
from collections.abc import Mapping

import msgspec

from contract.manifest import DataEntry, Manifest, to_entries
from contract.signature import Signature
from exporter.config import Config, config_to_dict
from exporter.datasets import Dataset
from exporter.training import TrainResult
from exporter.verdict import Verification

_TOOLS = ("tensorflow", "tf-keras", "ai-edge-litert", "numpy", "plumbline-tf")


def describe_candidate(
    result: TrainResult,
    dataset: Dataset,
    config: Config,
    *,
    signatures: Mapping[str, Signature],
    verification: Verification,
    calibration_fingerprint: str,
) -> Manifest:
    """The manifest of a candidate (version 0), but for its files.

    Args:
        result: Of training.
        dataset: What it was trained on.
        config: The whole configuration.
        signatures: By name.
        verification: What was measured.
        calibration_fingerprint: Of the int8 calibration set, or "".
    """
    accuracy = verification.measurements[0].accuracy
    metrics = {} if accuracy is None else {"test_accuracy": accuracy}
    best = result.best_epoch - 1
    metrics |= {
        f"validation_{name.removeprefix('val_')}": values[best]
        for name, values in result.history.items()
        if name.startswith("val_")
    }
    return Manifest(
        model_name=config.model.name,
        version=0,
        created=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        signatures=to_entries(signatures),
        metrics=metrics | {"best_epoch": float(result.best_epoch)},
        parity={one.name: msgspec.to_builtins(one) for one in verification.measurements},
        config=config_to_dict(config),
        data=DataEntry(
            name=dataset.name,
            fingerprint=dataset.fingerprint,
            class_names=dataset.class_names,
            num_examples={
                "train": len(dataset.y_train),
                "validation": len(dataset.y_validation),
                "test": len(dataset.y_test),
            },
            dummy=dataset.dummy,
        ),
        seed=config.training.seed,
        tool_versions=_list_tool_versions(),
        calibration_fingerprint=calibration_fingerprint,
    )


def _list_tool_versions() -> dict[str, str]:
    found = {}
    for name in _TOOLS:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found
