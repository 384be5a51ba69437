"""What a version tells of itself: its manifest and its model card."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import importlib.metadata
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from contract import layout
from contract.golden import read_golden
from contract.manifest import DataEntry, Manifest, TrainingEntry, from_entries, to_entries
from contract.signature import UINT8
from exporter.artifacts.exportable import Exportable
from exporter.config import Config
from exporter.data.examples import ExportExamples
from exporter.data.statistics import describe_distributions, describe_inputs
from exporter.models.inputs import find_vector
from exporter.report.evaluation import Evaluation
from exporter.training.run import TrainResult
from exporter.verification.measurement import Measurement
from exporter.verification.verdict import (
    Verification,
    list_failures,
    list_headings,
    list_rows,
)

_TOOLS = ("tensorflow", "tf-keras", "keras", "ai-edge-litert", "numpy", "plumbline-tf")

_MOST_COLUMNS = 200
_MOST_EPOCHS, _MOST_CURVES = 400, 40
_NEARLY, _GROUND = 32, 0.3
"""Grey levels that are black or white for the eye; the share of pictures that is ground where
there is one (0.47 in the digits)."""


@dataclasses.dataclass(frozen=True)
class Origin:
    """Where a model comes from, for those who hold its version.

    Attributes:
        model_name: The model this becomes a version of.
        config: The configuration of the run, in plain types; `export` at least.
        seed: Of its training; None where it was trained elsewhere.
        metrics: Of its training, by name.
        training: How it went; None where it was trained elsewhere.
    """

    model_name: str
    config: Mapping[str, Any]
    seed: int | None = None
    metrics: Mapping[str, float] = dataclasses.field(default_factory=dict)
    training: TrainingEntry | None = None


def describe_training(result: TrainResult, config: Config) -> Origin:
    """Where a model comes from that was trained here."""
    best = result.best_epoch - 1
    metrics = {
        f"validation_{name.removeprefix('val_')}": values[best]
        for name, values in result.history.items()
        if name.startswith("val_") and math.isfinite(values[best])
    }
    return Origin(
        config.model.name,
        msgspec.to_builtins(config),
        config.training.seed,
        metrics | {"best_epoch": float(result.best_epoch)},
        _keep_history(result),
    )


def _keep_history(result: TrainResult) -> TrainingEntry:
    """The curves that a version keeps: of many metrics the first, of many epochs some."""
    last = result.epochs_run
    chosen = sorted({*np.linspace(1, last, min(last, _MOST_EPOCHS)).astype(int).tolist()})
    names = [name for name, values in result.history.items() if len(values) == last]
    return TrainingEntry(
        epochs_run=last,
        best_epoch=result.best_epoch,
        epochs=tuple(chosen),
        history={
            name: tuple(
                float(value) if math.isfinite(value := result.history[name][at - 1]) else None
                for at in chosen
            )
            for name in names[:_MOST_CURVES]
        },
        seconds=round(result.seconds, 3),
    )


def describe_candidate(
    model: Exportable,
    examples: ExportExamples,
    origin: Origin,
    *,
    in_process: Measurement,
    calibration_fingerprint: str,
) -> Manifest:
    """The manifest of a candidate (version 0), but for its files and `add_parity`.

    `calibration_fingerprint` is "" where nothing was calibrated.
    """
    metrics = {f"test_{name}": value for name, value in in_process.metrics.items()}
    columns, distributions = examples.columns, describe_distributions(examples)
    served = next(iter(model.signatures.values())).inputs
    if vector := find_vector(examples.test.inputs, {name: name for name in served}):
        columns = vector
        distributions = {
            "": {
                name: next(iter(distributions[name].values()))
                for name in vector
                if name in distributions
            }
        }
    return Manifest(
        model_name=origin.model_name,
        version=0,
        created=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        signatures=to_entries(model.signatures),
        heads=dict(model.heads),
        metrics=metrics | dict(origin.metrics),
        config=dict(origin.config),
        data=DataEntry(
            name=examples.name,
            fingerprint=examples.fingerprint,
            class_names=examples.class_names,
            num_examples=dict(examples.num_examples),
            dummy=examples.dummy,
            columns=columns,
            fillings={name: tuple(one.tolist()) for name, one in examples.fillings.items()},
        ),
        inputs=describe_inputs(examples),
        distributions=distributions,
        seed=origin.seed or 0,
        training=origin.training,
        tool_versions=_list_tool_versions(),
        calibration_fingerprint=calibration_fingerprint,
    )


def add_parity(manifest: Manifest, verification: Verification) -> Manifest:
    """The manifest with what was measured of every copy, and what was found wrong with it."""
    parity = {
        one.name: msgspec.to_builtins(one)
        | {"problems": list(verification.failures.get(one.name, ()))}
        for one in verification.measurements
    }
    return msgspec.structs.replace(manifest, parity=parity)


def _list_tool_versions() -> dict[str, str]:
    found = {}
    for name in _TOOLS:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def write_model_card(
    directory: Path,
    manifest: Manifest,
    verification: Verification,
    evaluation: Evaluation | None = None,
) -> None:
    """Writes the card, but for its picture, which `write_confusions` draws."""
    sections = [
        _write_head(manifest),
        _write_table(verification),
        *_write_classes(directory, evaluation),
        _write_signatures(manifest),
        *([_write_columns(manifest.data)] if manifest.data and manifest.data.columns else []),
        _write_use(directory),
    ]
    path = directory / layout.MODEL_CARD
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n\n".join(sections) + "\n", encoding="utf-8")


def _write_head(manifest: Manifest) -> str:
    data = manifest.data
    lines = [f"# {manifest.model_name}", ""]
    if data is not None and data.dummy:
        lines += ["**Dummy data: trained on random numbers. It predicts nothing real.**", ""]
    lines.append(_write_making(manifest))
    if data is not None:
        rows = ", ".join(f"{count} {split}" for split, count in data.num_examples.items())
        lines.append(f"- Data: `{data.name}` ({rows} rows), fingerprint `{data.fingerprint[:16]}`.")
    for name, value in sorted(manifest.metrics.items()):
        lines.append(f"- {name.replace('_', ' ')}: {value:.4g}")
    tools = ", ".join(f"{name} {version}" for name, version in manifest.tool_versions.items())
    lines.append(f"- Tools: {tools}.")
    return "\n".join(lines)


def _write_making(manifest: Manifest) -> str:
    if "training" in manifest.config:
        return f"- Made {manifest.created} with training seed {manifest.seed}."
    return f"- Made {manifest.created} of a model that was trained elsewhere."


def _write_table(verification: Verification) -> str:
    headings = list_headings(verification)
    lines = [
        "## Copies, compared with the in-process model",
        "",
        f"| {' | '.join(headings)} |",
        f"|---|{'---:|' * (len(headings) - 1)}",
        *(f"| {' | '.join(row)} |" for row in list_rows(verification)),
    ]
    lines += [f"\n{note}." for note in verification.notes]
    lines += [f"\n{failure}" for failure in list_failures(verification)]
    return "\n".join(lines)


def _write_classes(directory: Path, evaluation: Evaluation | None) -> list[str]:
    """Of the first output that says one class a row, as the picture is."""
    heads = evaluation.heads.values() if evaluation else ()
    found = (one for one in heads if one.classes and one.task in ("multiclass", "binary"))
    head = next(found, None)
    if head is None:
        return []
    lines = [
        "## Accuracy per class, test split",
        "",
        "| class | rows | recall | precision | F1 |",
        "|---|---:|---:|---:|---:|",
    ]
    for one in head.classes:
        shares = " | ".join(
            "–" if share is None else f"{share:.1%}"
            for share in (one.recall, one.precision, one.f1)
        )
        lines.append(f"| {_escape(one.name)} | {one.num_rows} | {shares} |")
    if left_out := head.num_classes - len(head.classes):
        lines += ["", f"{left_out} more classes are not listed; these have the lowest F1."]
    if (directory / layout.CONFUSION_MATRIX).exists():
        picture = Path(layout.CONFUSION_MATRIX).name
        lines += ["", f"![Confusion matrix of the test split]({picture})"]
    return ["\n".join(lines)]


def _write_signatures(manifest: Manifest) -> str:
    lines = ["## Signatures", "", "| signature | inputs | outputs |", "|---|---|---|"]
    for signature in from_entries(manifest.signatures).values():
        inputs, outputs = (
            "; ".join(f"`{spec.name}` {spec.describe()}" for spec in specs.values())
            for specs in (signature.inputs, signature.outputs)
        )
        lines.append(f"| `{signature.name}` | {inputs} | {outputs} |")
    return "\n".join(lines)


def _write_columns(data: DataEntry) -> str:
    filled: tuple[float, ...] = next(iter(data.fillings.values()), ())
    lines = [
        "## Columns",
        "",
        "The values of a row, in order; of a category, `column=text` is 1 where it is that text.",
        "",
        "| place | column | where it is missing |",
        "|---:|---|---:|",
    ]
    for place, name in enumerate(data.columns[:_MOST_COLUMNS]):
        value = f"{filled[place]:.6g}" if filled and "=" not in name else "–"
        lines.append(f"| {place} | {_escape(name)} | {value} |")
    if len(data.columns) > _MOST_COLUMNS:
        lines += ["", f"The manifest lists all {len(data.columns)}."]
    return "\n".join(lines)


def _escape(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _write_use(directory: Path) -> str:
    lines = ["## Use", ""]
    if _is_light_on_dark(directory):
        lines.append(
            "Pictures are light on dark: 0 is the ground, 255 is ink. Invert pictures of dark ink "
            "on white paper before sending them (`python -m clients predict --invert`)."
        )
    lines.append(
        "`python -m exporter verify <this directory>` checks every file and replays the golden "
        "examples."
    )
    return "\n".join(lines)


def _is_light_on_dark(directory: Path) -> bool:
    """Whether the golden pixels have one channel, and a black ground rather than a white one."""
    golden = read_golden(directory / layout.GOLDEN).signatures.get(UINT8)
    if golden is None:
        return False
    pixels = next(iter(golden.inputs.values()))
    has_one_channel = pixels.ndim == 3 or pixels.shape[-1] == 1
    black, white = float(np.mean(pixels < _NEARLY)), float(np.mean(pixels > 255 - _NEARLY))
    return has_one_channel and black > _GROUND and black > 2 * white
