"""A candidate: everything a version holds, made and verified, not yet published.

What can run beside something else does: conversion and verification are processes of their
own, started while the model trains.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from contract import layout
from contract.golden import Golden, write_golden
from contract.manifest import Manifest, hash_files, write_manifest
from contract.servable import DEFAULT_SIGNATURE_NAME
from contract.signature import Array
from exporter.artifacts.golden import (
    list_lite_signatures,
    make_calibration,
    make_golden,
    make_held_out,
    write_warmup,
)
from exporter.artifacts.tflite import ConversionJob
from exporter.card import count_confusions, describe_candidate, draw_confusions, write_model_card
from exporter.config import Config
from exporter.data.dataset import Dataset
from exporter.processes import ChildProcess
from exporter.publishing.publish import CANDIDATE, REPORT
from exporter.training.train import TrainResult
from exporter.verification.measurement import (
    IN_PROCESS,
    SAVED_MODEL,
    HeldOut,
    Measurement,
    measure_accuracy,
    time_one_row,
    write_held_out,
)
from exporter.verification.reload import MeasurementJob
from exporter.verification.verdict import Verification, judge

if TYPE_CHECKING:
    from exporter.artifacts.saved_model import InProcessPredictor
    from exporter.artifacts.signatures import ServedModel

_VERIFICATION_TIMEOUT_S = 600.0

Step = Callable[[str], None]
"""Told the name of each step as it begins."""


@dataclasses.dataclass(frozen=True, slots=True)
class Candidate:
    """What an export made.

    Attributes:
        path: The directory; it has a manifest only if verification passed.
        manifest: With version 0.
        verification: The table.
    """

    path: Path
    manifest: Manifest
    verification: Verification


def make_candidate(
    result: TrainResult,
    dataset: Dataset,
    config: Config,
    *,
    run_dir: Path,
    conversion: ChildProcess[ConversionJob, Path],
    verification: ChildProcess[MeasurementJob, Measurement],
    step: Step,
) -> Candidate:
    """Saves, converts, verifies and describes a trained model in `run_dir/candidate`."""
    from exporter.artifacts.saved_model import save_model

    path = run_dir / CANDIDATE
    step("save")
    predictor, served = save_model(result.model, result.heads, dataset, path)
    export = _Export(path, run_dir, config, dataset, predictor, conversion, verification)
    step("convert")
    fingerprint = export.ask_for_variants()
    golden, held_out = export.write_golden_files(_find_scored_output(result, served))
    export.ask_for_measurement(SAVED_MODEL, list(golden.signatures))
    write_warmup(path, config.model.name, golden, list(predictor.signatures.values()))
    counts = _draw_confusions(path, dataset, config, held_out)
    measurements = [_measure_in_process(predictor, golden, held_out)]
    step("verify")
    measurements += export.collect_measurements()
    verdict = judge(measurements, golden, config.export.tolerances)
    manifest = describe_candidate(
        result,
        dataset,
        config,
        signatures=predictor.signatures,
        verification=verdict,
        calibration_fingerprint=fingerprint,
    )
    write_model_card(path, manifest, verdict, counts)
    _write_report(run_dir / REPORT, verdict)
    if verdict.passed:
        manifest = msgspec.structs.replace(manifest, files=hash_files(path))
        manifest = write_manifest(path, manifest)
    return Candidate(path, manifest, verdict)


@dataclasses.dataclass(frozen=True, slots=True)
class _Export:
    """The files and processes of one export."""

    path: Path
    run_dir: Path
    config: Config
    dataset: Dataset
    predictor: InProcessPredictor
    conversion: ChildProcess[ConversionJob, Path]
    verification: ChildProcess[MeasurementJob, Measurement]

    def ask_for_variants(self) -> str:
        """Sends the conversions; returns the fingerprint of the calibration set, or ""."""
        fingerprint = ""
        for variant in self.config.export.variants:
            names = list_lite_signatures(self.predictor.signatures, variant)
            calibration = None
            if variant == "int8":
                calibration = self.run_dir.resolve() / "calibration.npz"
                examples, fingerprint = make_calibration(
                    [self.predictor.signatures[name] for name in names],
                    self.dataset,
                    self.config.export.calibration_num_examples,
                    seed=self.config.training.seed,
                )
                write_golden(calibration, examples)
            self.conversion.ask(
                ConversionJob(
                    candidate=self.path.resolve(),
                    variant=variant,
                    signature_names=names,
                    calibration=calibration,
                )
            )
        return fingerprint

    def write_golden_files(self, scored: str) -> tuple[Golden, HeldOut]:
        """Asks the in-process model: golden for the version, the test split for verification."""
        golden = make_golden(
            self.predictor,
            self.predictor.signatures,
            self.dataset,
            self.config.export.golden_num_examples,
        )
        write_golden(self.path / layout.GOLDEN, golden)
        held_out = HeldOut(
            make_held_out(self.predictor, self.predictor.signatures, self.dataset),
            self.dataset.y_test,
            scored,
        )
        write_held_out(self.run_dir, held_out)
        return golden, held_out

    def ask_for_measurement(self, name: str, signature_names: list[str]) -> None:
        """Sends one copy to be verified."""
        self.verification.ask(
            MeasurementJob(
                candidate=self.path.resolve(),
                name=name,
                signature_names=signature_names,
                golden=self.path.resolve() / layout.GOLDEN,
                held_out=self.run_dir.resolve(),
                tolerances=self.config.export.tolerances,
            )
        )

    def collect_measurements(self) -> list[Measurement]:
        """Passes each variant on as it is converted, then waits for all answers."""
        variants = self.config.export.variants
        for variant in variants:
            self.conversion.receive(
                timeout_s=self.config.export.conversion_timeout_s,
                remedy="raise export.conversion_timeout_s, or leave out a variant",
            )
            names = list_lite_signatures(self.predictor.signatures, variant)
            self.ask_for_measurement(variant, names)
        return [
            self.verification.receive(timeout_s=_VERIFICATION_TIMEOUT_S)
            for _ in (SAVED_MODEL, *variants)
        ]


def _find_scored_output(result: TrainResult, served: ServedModel) -> str:
    main = result.heads.main
    names = dict(zip(served.own_outputs, served.outputs, strict=True))
    return "" if main.kind == "value" else names[main.name]


def _measure_in_process(
    predictor: InProcessPredictor, golden: Golden, held_out: HeldOut
) -> Measurement:
    answers = held_out.golden.signatures[DEFAULT_SIGNATURE_NAME].outputs
    return Measurement(
        name=IN_PROCESS,
        num_test_rows=len(held_out.labels),
        accuracy=measure_accuracy(answers, held_out),
        us_per_row=time_one_row(predictor, golden),
    )


def _draw_confusions(
    path: Path, dataset: Dataset, config: Config, held_out: HeldOut
) -> Array | None:
    if not held_out.scored:
        return None
    answers = held_out.golden.signatures[DEFAULT_SIGNATURE_NAME].outputs
    predicted = answers[held_out.scored].argmax(axis=1)
    counts = count_confusions(held_out.labels, predicted, dataset.num_classes)
    right = int(np.trace(counts))
    title = f"{config.model.name} on {dataset.name}: {right} of {counts.sum()} test rows right"
    picture = path / layout.CONFUSION_MATRIX
    picture.parent.mkdir(parents=True, exist_ok=True)
    draw_confusions(picture, counts, dataset.class_names, title)
    return counts


def _write_report(path: Path, verification: Verification) -> None:
    path.write_bytes(msgspec.json.format(msgspec.json.encode(verification), indent=2))
