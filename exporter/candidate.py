"""A candidate: everything a version holds, made and verified, not yet published.

What can run beside something else does: conversion and verification are processes of their
own, started while the model trains.
"""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np

from contract import layout
from contract.console.progress import Steps
from contract.errors import PlumblineError, VerificationError
from contract.golden import Golden, write_golden
from contract.heads import Head
from contract.manifest import Manifest, hash_file, hash_files, write_manifest
from contract.parity import EXACT, replay
from contract.signature import Array
from exporter.artifacts.conversion import ask_for_conversions, iterate_conversions
from exporter.artifacts.exportable import Exportable
from exporter.artifacts.golden import (
    list_variant_signatures,
    make_calibration,
    make_golden,
    make_held_out,
    write_warmup,
)
from exporter.artifacts.metadata import ModelNote, describe_model
from exporter.artifacts.tflite import Conversion, ConversionJob, convert, prepare_converting
from exporter.card import Origin, add_parity, describe_candidate, write_model_card
from exporter.config import ExportConfig
from exporter.data.examples import ExportExamples
from exporter.processes import ChildProcess
from exporter.publishing.publish import CANDIDATE, REPORT
from exporter.report.confusions import count_confusions, write_confusions
from exporter.report.evaluation import Evaluation, evaluate, write_evaluation
from exporter.report.facts import Facts, gather
from exporter.report.page import StaticFigures, draw_static, render
from exporter.verification.measurement import (
    ACCURACY,
    IN_PROCESS,
    SAVED_MODEL,
    HeldOut,
    Measurement,
    describe_unmade,
    measure_metrics,
    time_one_row,
    write_held_out,
)
from exporter.verification.reload import MeasurementJob, measure_copy, prepare_measuring
from exporter.verification.verdict import NO_COPIES, Verification, judge

CALIBRATION = "calibration.npz"
"""What int8 was calibrated with, in the run's folder until its candidate is published."""

_VERIFICATION_TIMEOUT_S = 600.0
_MOST_CONFUSED = 200
"""Classes of the largest confusion matrix that is drawn."""


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


class Processes(NamedTuple):
    """The two processes that a candidate is made with."""

    conversion: ChildProcess[ConversionJob, Conversion]
    verification: ChildProcess[MeasurementJob, Measurement]


_idle: list[Processes] = []
"""Those that have imported TensorFlow and wait for the next export of this process."""


@contextlib.contextmanager
def borrow_processes(run_dir: Path) -> Iterator[Processes]:
    """Those of the export before, or new ones; their logs lie in the run's folder.

    New ones start here, so that their imports run while the model is trained or loaded. Those that
    are still at work when an export fails are not used again: an answer is on its way.
    """
    conversion_log, verification_log = run_dir / "conversion.log", run_dir / "verification.log"
    if _idle:
        pair = _idle.pop()
        pair.conversion.write_to(conversion_log)
        pair.verification.write_to(verification_log)
    else:
        pair = Processes(
            ChildProcess(convert, prepare_converting, log=conversion_log),
            ChildProcess(measure_copy, prepare_measuring, log=verification_log),
        )
        for process in pair:
            atexit.register(process.close)
    try:
        yield pair
    finally:
        if all(process.is_idle for process in pair):
            _idle.append(pair)
        else:
            for process in pair:
                process.close()


def make_candidate(
    model: Exportable,
    examples: ExportExamples,
    config: ExportConfig,
    origin: Origin,
    *,
    run_dir: Path,
    processes: Processes,
    step: Steps,
) -> Candidate:
    """Saves, converts, verifies and describes a model in `run_dir/candidate`.

    `step` is told the name of each step as it begins.
    """
    path = run_dir / CANDIDATE
    conversion, verification = processes
    config, origin = _loosen_for_half(model, config, origin)
    step("save")
    model.save(path)
    variants = config.variants if model.lite_signatures else ()
    copies = (*([SAVED_MODEL] if model.has_saved_model else []), *model.given_variants)

    progress = step("convert")
    note = describe_model(
        origin.model_name,
        [model.signatures[name] for name in model.lite_signatures],
        model.heads,
        examples.pixels,
    )
    jobs, fingerprint = _list_jobs(model, examples, variants, run_dir, note)
    jobs = ask_for_conversions(conversion, jobs, model, run_dir=run_dir)
    progress.note = "golden examples"
    golden = make_golden(model, examples, config.golden_num_examples)
    _check_answers(model, golden)
    write_golden(path / layout.GOLDEN, golden)
    progress.note = "test rows"
    held_out = _hold_out(model, examples)
    write_held_out(run_dir, held_out)

    def ask_for_measurement(copy: str, names: list[str]) -> None:
        verification.ask(
            MeasurementJob(
                candidate=path.resolve(),
                name=copy,
                signature_names=names,
                held_out=run_dir.resolve(),
                tolerances=config.tolerances,
                heads=dict(model.heads),
            )
        )

    for copy in copies:
        ask_for_measurement(copy, list(golden.signatures))
    asked = [one for name, one in model.signatures.items() if name in golden.signatures]
    write_warmup(path, origin.model_name, golden, asked)
    answers = held_out.golden.signatures[held_out.signature_name].outputs
    metrics = measure_metrics(answers, held_out)
    in_process = Measurement(
        name=IN_PROCESS,
        num_test_rows=held_out.num_test,
        accuracy=metrics.get(ACCURACY),
        metrics=metrics,
        us_per_row=time_one_row(model, golden),
    )
    manifest = describe_candidate(
        model, examples, origin, in_process=in_process, calibration_fingerprint=fingerprint
    )
    evaluation = _evaluate(model, examples, held_out, golden)
    write_evaluation(path, evaluation)

    # Every copy that is to be converted is waited for twice.
    progress = step("verify", total=len(copies) + 2 * len(jobs))
    found = {}
    measured = list(copies)
    unmade = [job.variant for job in jobs]
    progress.note = _name_conversion(unmade)
    # Here, since this process waits for the two others now; in a thread, so that it hears them.
    with ThreadPoolExecutor(max_workers=1) as thread:
        known = gather(path, manifest, evaluation, golden)
        drawing = thread.submit(_draw, path, held_out, answers, known)
        for made in iterate_conversions(
            conversion, jobs, model, run_dir=run_dir, timeout_s=config.conversion_timeout_s
        ):
            unmade.remove(made.variant)
            progress.advance(2 if made.file is None else 1)
            progress.note = _name_conversion(unmade)
            if made.file is None:
                found[made.variant] = describe_unmade(made.variant, made.problem, made.remedy)
            else:
                measured.append(made.variant)
                ask_for_measurement(made.variant, list_variant_signatures(model, made.variant))
        for name in measured:
            progress.note = f"measuring {name}"
            found[name] = _receive_measurement(verification, name)
            progress.advance()
        drawn = drawing.result()
    verdict = judge(
        [in_process, *(found[name] for name in (*copies, *variants))],
        golden,
        config.tolerances,
        optional=set(variants) - set(config.require),
    )
    if config.variants and model.has_saved_model and not model.lite_signatures:
        verdict = msgspec.structs.replace(verdict, notes=(*verdict.notes, NO_COPIES))
    for name in verdict.left_out:
        (path / layout.variant_path(name)).unlink(missing_ok=True)
    manifest = add_parity(manifest, verdict)
    write_model_card(path, manifest, verdict, evaluation)
    manifest = msgspec.structs.replace(manifest, files=hash_files(path))
    page = render(gather(path, manifest, evaluation, golden), drawn)
    (path / layout.REPORT).write_bytes(page)
    report = msgspec.json.format(msgspec.json.encode(verdict), indent=2)
    (run_dir / REPORT).write_bytes(report)
    if verdict.passed:
        files = manifest.files | {layout.REPORT: hash_file(path / layout.REPORT)}
        manifest = msgspec.structs.replace(manifest, files=dict(sorted(files.items())))
        manifest = write_manifest(path, manifest)
    return Candidate(path, manifest, verdict)


def _name_conversion(unmade: Sequence[str]) -> str:
    """What is waited for while there are copies to convert."""
    return f"converting {unmade[0]}" if unmade else ""


def _loosen_for_half(
    model: Exportable, config: ExportConfig, origin: Origin
) -> tuple[ExportConfig, Origin]:
    """A float32 copy of a model that computes in float16 is held to float16's tolerance.

    The manifest keeps that, so that whoever checks the version later asks no more.
    """
    if not model.is_half_precision:
        return config, origin
    numbers = msgspec.structs.replace(config.tolerances, float32=config.tolerances.float16)
    config = msgspec.structs.replace(config, tolerances=numbers)
    kept = {**origin.config, "export": msgspec.to_builtins(config)}
    return config, dataclasses.replace(origin, config=kept)


def _list_jobs(
    model: Exportable,
    examples: ExportExamples,
    variants: Sequence[str],
    run_dir: Path,
    note: ModelNote,
) -> tuple[list[ConversionJob], str]:
    """What the converter is to make, and the fingerprint of what calibrates it ("" if nothing)."""
    jobs, fingerprint = [], ""
    for variant in variants:
        names = list_variant_signatures(model, variant)
        calibration = run_dir.resolve() / CALIBRATION if variant in layout.INT8_VARIANTS else None
        if calibration is not None and not fingerprint:
            rows, fingerprint = make_calibration(model, names, examples)
            write_golden(calibration, rows)
        jobs.append(
            ConversionJob(
                candidate=(run_dir / CANDIDATE).resolve(),
                variant=variant,
                signatures=[model.signatures[name] for name in names],
                calibration=calibration,
                note=note,
            )
        )
    return jobs, fingerprint


def _receive_measurement(
    verification: ChildProcess[MeasurementJob, Measurement], copy: str
) -> Measurement:
    """What was measured; a copy that cannot be asked, or ends the process, has failed."""
    try:
        return verification.receive(timeout_s=_VERIFICATION_TIMEOUT_S)
    except PlumblineError as error:
        if not verification.is_alive:
            verification.restart()
        return describe_unmade(copy, error.message)


def _check_answers(model: Exportable, golden: Golden) -> None:
    """Refuses a model that no copy could equal: one that draws lots, or answers what is no number.

    Raises:
        VerificationError: Names the output and the row.
    """
    for name, examples in golden.signatures.items():
        for output, array in examples.outputs.items():
            if array.dtype.kind != "f":
                continue
            wrong = ~np.isfinite(array.reshape(len(array), -1)).all(axis=1)
            if wrong.any():
                row = int(np.flatnonzero(wrong)[0])
                raise VerificationError(
                    f"the model answers NaN or infinity in output {output!r} of {name} for "
                    f"{int(wrong.sum())} of {len(array)} examples, first for example {row}; look "
                    "for weights that are no numbers, and for examples on another scale than the "
                    "model was trained on"
                )
    name = next(iter(golden.signatures))
    again = replay(golden.signatures[name], model, EXACT, signature_name=name)
    if not again.passed:
        worst = again.worst
        raise VerificationError(
            f"the model answers the same rows differently when asked twice: output {worst.name!r} "
            f"by up to {worst.max_abs_difference:.3g}; a layer draws random numbers at inference "
            "(dropout called with training=True, a random augmentation, sampling): take it out "
            "of the exported model"
        )


def _hold_out(model: Exportable, examples: ExportExamples) -> HeldOut:
    """The held-out rows with the answers in process, and the targets of the test split."""
    golden, num_test = make_held_out(model, examples)
    signature = model.main_signature
    heads = {name: head for name, head in model.heads.items() if name in signature.outputs}
    targets = model.name_targets(examples.test.targets)
    return HeldOut(
        golden,
        num_test,
        signature_name=signature.name,
        heads=heads,
        targets={name: array[:num_test] for name, array in targets.items() if name in heads},
    )


def _evaluate(
    model: Exportable, examples: ExportExamples, held_out: HeldOut, golden: Golden
) -> Evaluation:
    asked = golden.signatures.get(held_out.signature_name)
    return evaluate(
        held_out,
        columns=examples.columns,
        golden_targets=model.name_targets(examples.golden.targets),
        num_golden=asked.num_examples if asked is not None and asked.batch_sizes else 0,
    )


def _draw(
    path: Path, held_out: HeldOut, answers: Mapping[str, Array], known: Facts
) -> StaticFigures:
    """Draws whatever no copy is needed for."""
    data = known.manifest.data
    _draw_confusions(path, held_out, answers, known.manifest.model_name, data.name if data else "")
    return draw_static(known)


def _draw_confusions(
    path: Path, held_out: HeldOut, answers: Mapping[str, Array], model_name: str, data_name: str
) -> None:
    """Draws the confusions of the first output that says one class a row, if any."""
    for name, targets in held_out.targets.items():
        head: Head = held_out.heads[name]
        predicted = head.decide_rows(answers[name][: held_out.num_test])
        if predicted is None or targets.ndim != 1:
            continue
        classes = 2 if head.task == "binary" else answers[name].shape[1]
        counts = count_confusions(targets, predicted, classes)
        names = head.class_names or tuple(map(str, range(classes)))
        if classes <= _MOST_CONFUSED:
            note = f"{model_name} on the test rows of {data_name}"
            write_confusions(path / layout.CONFUSION_MATRIX, counts, names, note=note)
        return
