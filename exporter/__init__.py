"""Dataset → train → export → verify → publish: the side of Plumbline that runs TensorFlow.

Everything is loaded when it is first asked for: what reads a version needs no TensorFlow.

    >>> from pathlib import Path
    >>> from exporter import PublishOptions, choose_run_dir, load_config, run_export
    >>> config = load_config("mlp", ["training.epochs=3"])
    >>> exported = run_export(  # doctest: +SKIP
    ...     config,
    ...     base_path=Path("models/mlp"),
    ...     options=PublishOptions(keep=5),
    ...     run_dir=choose_run_dir(config, None, resume=False),
    ... )
    >>> exported.published.version  # doctest: +SKIP
    1
"""

from __future__ import annotations

TYPE_CHECKING = False  # typing's own would take its import, which every command would wait for
if TYPE_CHECKING:
    from typing import Any

    from exporter.candidate import Candidate
    from exporter.config import Config, load_config, parse_config
    from exporter.data.dataset import Dataset, load_dataset
    from exporter.flow import Exported, Trained, choose_run_dir, run_export, run_train
    from exporter.inspect import Inspection, inspect_version
    from exporter.own_model import ExportedVersion, export
    from exporter.predict import Prediction, predict_files
    from exporter.publishing.publish import Published, PublishOptions, publish_version
    from exporter.publishing.transfer import Copied, copy_to_remote, fetch_version
    from exporter.training.run import ProgressReport, TrainResult, open_progress
    from exporter.training.train import train
    from exporter.verification.measurement import Measurement
    from exporter.verification.recheck import Check, Recheck, recheck_version
    from exporter.verification.verdict import Verification

_MODULES = {
    "Candidate": "candidate",
    **dict.fromkeys(("Config", "load_config", "parse_config"), "config"),
    **dict.fromkeys(("Dataset", "load_dataset"), "data.dataset"),
    **dict.fromkeys(("Exported", "Trained", "choose_run_dir", "run_export", "run_train"), "flow"),
    **dict.fromkeys(("Inspection", "inspect_version"), "inspect"),
    **dict.fromkeys(("ExportedVersion", "export"), "own_model"),
    **dict.fromkeys(("Prediction", "predict_files"), "predict"),
    **dict.fromkeys(("PublishOptions", "Published", "publish_version"), "publishing.publish"),
    **dict.fromkeys(("Copied", "copy_to_remote", "fetch_version"), "publishing.transfer"),
    **dict.fromkeys(("ProgressReport", "open_progress"), "training.run"),
    "TrainResult": "training.run",
    "train": "training.train",
    "Measurement": "verification.measurement",
    **dict.fromkeys(("Check", "Recheck", "recheck_version"), "verification.recheck"),
    "Verification": "verification.verdict",
}

__all__ = [
    "Candidate",
    "Check",
    "Config",
    "Copied",
    "Dataset",
    "Exported",
    "ExportedVersion",
    "Inspection",
    "Measurement",
    "Prediction",
    "ProgressReport",
    "PublishOptions",
    "Published",
    "Recheck",
    "TrainResult",
    "Trained",
    "Verification",
    "choose_run_dir",
    "copy_to_remote",
    "export",
    "fetch_version",
    "inspect_version",
    "load_config",
    "load_dataset",
    "open_progress",
    "parse_config",
    "predict_files",
    "publish_version",
    "recheck_version",
    "run_export",
    "run_train",
    "train",
]


def __getattr__(name: str) -> Any:
    """Loads a public name when it is asked for (PEP 562)."""
    import importlib

    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(importlib.import_module(f"exporter.{_MODULES[name]}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
