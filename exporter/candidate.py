"""A candidate: everything a version holds, made and verified, not yet published.

What can run beside something else does: conversion and verification are processes of their
own, started while the model trains.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np

from contract import layout
from contract.golden import write_golden
from contract.manifest import Manifest, hash_files, write_manifest
from contract.servable import DEFAULT_SIGNATURE_NAME
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
from exporter.training.run import TrainResult
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

CALIBRATION = "calibration.npz"
"""What int8 was calibrated with, in the run's folder until its candidate is published."""

_VERIFICATION_TIMEOUT_S = 600.0


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
    step: Callable[[str], None],
) -> Candidate:
    """Saves, converts, verifies and describes a trained model in `run_dir/candidate`.

    `step` is told the name of each step as it begins.
    """
    from exporter.artifacts.saved_model import save_model

    path = run_dir / CANDIDATE
    step("save")
    predictor, served = save_model(result.model, result.heads, dataset, path)
    signatures = predictor.signatures
    carried = [list_lite_signatures(signatures, variant) for variant in config.export.variants]

    step("convert")
    fingerprint = ""
    for variant, names in zip(config.export.variants, carried, strict=True):
        calibration = None
        if variant == "int8":
            calibration = run_dir.resolve() / CALIBRATION
            examples, fingerprint = make_calibration(
                [signatures[name] for name in names],
                dataset,
                config.export.calibration_num_examples,
                seed=config.training.seed,
            )
            write_golden(calibration, examples)
        conversion.ask(
            ConversionJob(
                candidate=path.resolve(),
                variant=variant,
                signature_names=names,
                calibration=calibration,
            )
        )
    golden = make_golden(predictor, signatures, dataset, config.export.golden_num_examples)
    write_golden(path / layout.GOLDEN, golden)
    main = result.heads.main
    outputs = dict(zip(served.own_outputs, served.outputs, strict=True))
    held_out = HeldOut(
        make_held_out(predictor, signatures, dataset),
        dataset.y_test,
        scored="" if main.kind == "value" else outputs[main.name],
    )
    write_held_out(run_dir, held_out)

    def ask_for_measurement(copy: str, names: list[str]) -> None:
        verification.ask(
            MeasurementJob(
                candidate=path.resolve(),
                name=copy,
                signature_names=names,
                held_out=run_dir.resolve(),
                tolerances=config.export.tolerances,
            )
        )

    ask_for_measurement(SAVED_MODEL, list(signatures))
    write_warmup(path, config.model.name, golden, list(signatures.values()))
    answers = held_out.golden.signatures[DEFAULT_SIGNATURE_NAME].outputs
    counts = None
    if held_out.scored:
        predicted = answers[held_out.scored].argmax(axis=1)
        counts = count_confusions(dataset.y_test, predicted, dataset.num_classes)
        right = int(np.trace(counts))
        title = f"{config.model.name} on {dataset.name}: {right} of {counts.sum()} test rows right"
        draw_confusions(path / layout.CONFUSION_MATRIX, counts, dataset.class_names, title)
    in_process = Measurement(
        name=IN_PROCESS,
        num_test_rows=len(dataset.y_test),
        accuracy=measure_accuracy(answers, held_out),
        us_per_row=time_one_row(predictor, golden),
    )

    step("verify")
    for variant, names in zip(config.export.variants, carried, strict=True):
        conversion.receive(
            timeout_s=config.export.conversion_timeout_s,
            remedy="raise export.conversion_timeout_s, or leave out a variant",
        )
        ask_for_measurement(variant, names)
    copies = [
        verification.receive(timeout_s=_VERIFICATION_TIMEOUT_S)
        for _ in (SAVED_MODEL, *config.export.variants)
    ]
    verdict = judge([in_process, *copies], golden, config.export.tolerances)
    manifest = describe_candidate(
        result,
        dataset,
        config,
        signatures=signatures,
        verification=verdict,
        calibration_fingerprint=fingerprint,
    )
    write_model_card(path, manifest, verdict, counts)
    report = msgspec.json.format(msgspec.json.encode(verdict), indent=2)
    (run_dir / REPORT).write_bytes(report)
    if verdict.passed:
        manifest = msgspec.structs.replace(manifest, files=hash_files(path))
        manifest = write_manifest(path, manifest)
    return Candidate(path, manifest, verdict)
