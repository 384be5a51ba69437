"""What a report tells, out of a version's manifest, evaluation and golden examples."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from contract import layout
from contract.agreement import guess_head
from contract.errors import ConfigError, ManifestError
from contract.golden import Golden, read_golden
from contract.heads import Head
from contract.manifest import Manifest, from_entries, read_manifest
from contract.servable import DEFAULT_SIGNATURE_NAME
from contract.signature import STRING, Signature
from exporter.inspect import check_version_dir
from exporter.publishing.foreign import advise
from exporter.report.evaluation import Evaluation, evaluate, read_evaluation
from exporter.verification.measurement import (
    ACCURACY,
    IN_PROCESS,
    SAVED_MODEL,
    HeldOut,
    Measurement,
)
from exporter.verification.verdict import NO_COPIES, list_notes

QUALITIES = {ACCURACY: "accuracy", "macro_f1": "macro F1", "rmse": "RMSE"}
"""The metric that copies are shown with: the first of these that was measured."""


@dataclasses.dataclass(frozen=True)
class CopyFacts:
    """One copy, as verification left it.

    Attributes:
        measurement: What was measured; its `problems` are all that was found wrong, with remedies.
        is_present: The version holds it.
        quality: Its metric (`Facts.quality`), or None.
    """

    measurement: Measurement
    is_present: bool
    quality: float | None

    @property
    def name(self) -> str:
        """Of the copy, for people."""
        return "in process" if self.measurement.name == IN_PROCESS else self.measurement.name

    @property
    def is_origin(self) -> bool:
        """It is the model itself, which the others are held against."""
        return self.measurement.name == IN_PROCESS

    @property
    def verdict(self) -> str:
        """One word or three."""
        found = self.measurement
        if found.problems and not self.is_origin:
            return "failed" if self.is_present or found.name == SAVED_MODEL else "left out"
        if found.problems:
            return "failed"
        if self.is_origin:
            return "the model itself"
        return "bit for bit" if found.bit_equal else "passed"


@dataclasses.dataclass(frozen=True)
class Facts:
    """Everything that a report tells.

    Attributes:
        manifest: Of the version; version 0 while it is a candidate.
        evaluation: Of its test split, or of golden alone.
        is_golden_only: The version keeps no evaluation: it was made before there were reports.
        golden: None where it has none.
        copies: In the order of the manifest.
        quality: Name of the metric of `CopyFacts.quality`; "" where none was measured.
        signatures: By name.
        main_signature: The one that copies are measured with.
        notes: What a reader should know of copies though nothing failed.
    """

    manifest: Manifest
    evaluation: Evaluation
    is_golden_only: bool
    golden: Golden | None
    copies: tuple[CopyFacts, ...]
    quality: str
    signatures: Mapping[str, Signature]
    main_signature: str
    notes: tuple[str, ...]

    @property
    def quality_label(self) -> str:
        """For people."""
        return QUALITIES.get(self.quality, "")

    @property
    def is_dummy(self) -> bool:
        """The data mean nothing."""
        return self.manifest.data is not None and self.manifest.data.dummy


def read_facts(version_dir: Path) -> Facts:
    """The facts of a version, whoever made it, as far as it keeps them.

    Raises:
        ConfigError: It is no version of ours.
        ManifestError: Something of it is damaged.
    """
    check_version_dir(version_dir)
    if version_dir.is_file() or not (version_dir / layout.MANIFEST).exists():
        raise ConfigError(
            f"{version_dir} has no manifest, so nothing is known of it that a report could show; "
            f"a version that has one is made with: {advise(version_dir)}"
        )
    manifest = read_manifest(version_dir)
    has_golden = (version_dir / layout.GOLDEN).exists()
    return gather(
        version_dir,
        manifest,
        read_evaluation(version_dir),
        read_golden(version_dir / layout.GOLDEN) if has_golden else None,
    )


def gather(
    version_dir: Path, manifest: Manifest, evaluation: Evaluation | None, golden: Golden | None
) -> Facts:
    """The facts of a version or candidate whose parts are at hand."""
    signatures = from_entries(manifest.signatures)
    main = (
        DEFAULT_SIGNATURE_NAME if DEFAULT_SIGNATURE_NAME in signatures else next(iter(signatures))
    )
    measurements = [_read_measurement(name, one) for name, one in manifest.parity.items()]
    measurements.sort(key=lambda one: _ORDER.get(one.name, len(_ORDER)))
    quality = next(
        (
            name
            for name in QUALITIES
            if any(find_metric(one, name) is not None for one in measurements)
        ),
        "",
    )
    return Facts(
        manifest=manifest,
        evaluation=evaluation or _evaluate_golden(manifest, golden, main),
        is_golden_only=evaluation is None,
        golden=golden,
        copies=tuple(
            CopyFacts(
                measurement=one,
                is_present=one.name == IN_PROCESS or _holds(version_dir, one.name),
                quality=find_metric(one, quality) if quality else None,
            )
            for one in measurements
        ),
        quality=quality,
        signatures=signatures,
        main_signature=main,
        notes=tuple(_list_notes(measurements, signatures)),
    )


def _list_notes(measurements: list[Measurement], signatures: Mapping[str, Signature]) -> list[str]:
    names = {one.name for one in measurements}
    takes_strings = signatures and all(
        any(spec.dtype == STRING for spec in one.inputs.values()) for one in signatures.values()
    )
    lacks_copies = SAVED_MODEL in names and not names & set(layout.VARIANTS) and takes_strings
    return [*list_notes(measurements), *([NO_COPIES] if lacks_copies else [])]


_ORDER = {name: at for at, name in enumerate((IN_PROCESS, SAVED_MODEL, *layout.VARIANTS))}
"""JSON keeps the manifest's copies by name; every table has them in this order."""


def _holds(version_dir: Path, copy: str) -> bool:
    file = layout.SAVED_MODEL if copy == SAVED_MODEL else layout.variant_path(copy)
    return (version_dir / file).exists()


def _read_measurement(name: str, plain: Any) -> Measurement:
    """What a manifest keeps of a copy; what was not measured is left at nothing."""
    given = dict(plain) if isinstance(plain, dict) else {}
    # JSON has no infinity: null stands for it.
    if given.get("max_abs_difference", 0.0) is None:
        given["max_abs_difference"] = math.inf
    worst = given.get("worst_row")
    if isinstance(worst, dict) and worst.get("difference", 0.0) is None:
        given["worst_row"] = worst | {"difference": math.inf}
    try:
        return msgspec.convert(given | {"name": name}, Measurement)
    except msgspec.ValidationError as error:
        raise ManifestError(
            f"the manifest's parity of {name} cannot be read: {error}; export the model again"
        ) from error


def find_metric(found: Measurement, metric: str) -> float | None:
    """One metric of a copy; of several outputs that of the first."""
    if metric == ACCURACY:
        return found.accuracy
    return next(
        (value for name, value in found.metrics.items() if name.partition("/")[0] == metric), None
    )


def _evaluate_golden(manifest: Manifest, golden: Golden | None, main: str) -> Evaluation:
    """What golden alone can tell: answers, without knowing whether they are right."""
    examples = golden.signatures.get(main) if golden is not None else None
    if golden is None or examples is None:
        return Evaluation(num_rows=0, heads={}, num_heads=0)
    heads: dict[str, Head] = dict(manifest.heads)
    names = manifest.data.class_names if manifest.data else ()
    for name, array in examples.outputs.items():
        if name not in heads and array.dtype.kind == "f":
            guessed = guess_head(array)
            if guessed is not None:
                fits = array.ndim > 1 and array.shape[-1] == len(names)
                heads[name] = msgspec.structs.replace(guessed, class_names=names if fits else ())
    held_out = HeldOut(
        golden,
        examples.num_examples if examples.batch_sizes else 0,
        signature_name=main,
        heads={
            name: head
            for name, head in heads.items()
            if name in examples.outputs and np.asarray(examples.outputs[name]).ndim
        },
        targets={},
    )
    return evaluate(held_out, columns=manifest.data.columns if manifest.data else ())
