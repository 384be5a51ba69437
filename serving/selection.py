"""Which engine answers which signature of a version, and why."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from contract import layout
from contract.errors import PlumblineError, UnimplementedError
from contract.golden import GoldenExamples
from contract.parity import Tolerance, read_tolerances
from contract.signature import STRING, Signature
from serving.engines import LITERT, TENSORFLOW
from serving.litert_engine import LiteRTEngine
from serving.self_test import load_golden, replay_golden
from serving.servable import EngineChoice


@dataclasses.dataclass(frozen=True, slots=True)
class Selection:
    """The outcome.

    Attributes:
        choices: Signature name to who answers it.
        engine: The LiteRT engine when it answers anything, else None.
    """

    choices: Mapping[str, EngineChoice]
    engine: LiteRTEngine | None


def select_engines(
    version_dir: Path,
    signatures: Mapping[str, Signature],
    *,
    engine: str,
    prefer_tflite_model: bool,
    num_threads: int,
) -> Selection:
    """Chooses an engine per signature.

    `auto` takes LiteRT when `model.tflite` has the signature and golden examples agree
    through it; `--prefer_tflite_model` and `litert` take it without golden examples too.

    Args:
        version_dir: The version's directory.
        signatures: Signature name to signature, as the version promises them.
        engine: `auto`, `tensorflow` or `litert`.
        prefer_tflite_model: TensorFlow Serving's flag.
        num_threads: Threads inside one run of LiteRT.

    Raises:
        UnimplementedError: `litert` is forced and cannot be had.
        ManifestError: `litert` is forced and `model.tflite` cannot be read.
    """
    if engine == TENSORFLOW:
        return _give_all(signatures, "--engine=tensorflow")
    model = _open_model(version_dir, is_forced=engine == LITERT, num_threads=num_threads)
    if isinstance(model, str):
        return _give_all(signatures, model)
    is_forced = engine == LITERT or prefer_tflite_model
    golden = {} if is_forced else load_golden(version_dir)
    tolerance = read_tolerances(version_dir).of_server
    choices = {
        name: _choose(model, signature, golden.get(name), tolerance, is_forced=is_forced)
        for name, signature in signatures.items()
    }
    if engine == LITERT:
        choices = {name: one for name, one in choices.items() if one.engine == LITERT}
    if any(choice.engine == LITERT for choice in choices.values()):
        return Selection(choices, model)
    model.close()
    if engine == LITERT:
        raise UnimplementedError(
            f"model.tflite of {version_dir} has none of the signatures "
            f"{', '.join(sorted(signatures))}, and --engine=litert allows no other engine"
        )
    return Selection(choices, None)


def _open_model(version_dir: Path, *, is_forced: bool, num_threads: int) -> LiteRTEngine | str:
    """The version's TFLite model, or why there is none to use."""
    path = version_dir / layout.variant_path(layout.FLOAT32)
    if not path.is_file():
        if is_forced:
            raise UnimplementedError(
                f"{version_dir} has no {path.name}, which --engine=litert needs; "
                "use --engine=auto or export the version with TFLite variants"
            )
        return f"the version has no {path.name}"
    try:
        return LiteRTEngine(path, num_threads=num_threads)
    except PlumblineError as error:
        if is_forced or not (version_dir / layout.SAVED_MODEL).is_file():
            raise
        return f"LiteRT cannot serve {path.name}: {error}"


def _give_all(signatures: Mapping[str, Signature], reason: str) -> Selection:
    return Selection({name: EngineChoice(TENSORFLOW, reason) for name in signatures}, None)


def _choose(
    model: LiteRTEngine,
    signature: Signature,
    examples: GoldenExamples | None,
    tolerance: Tolerance,
    *,
    is_forced: bool,
) -> EngineChoice:
    obstacle = _find_obstacle(signature, model.signatures.get(signature.name))
    if obstacle:
        return EngineChoice(TENSORFLOW, obstacle)
    if is_forced:
        return EngineChoice(LITERT, "asked for by flag")
    if examples is None:
        return EngineChoice(TENSORFLOW, "no golden examples show that model.tflite agrees")
    try:
        report = replay_golden(model, signature.name, examples, tolerance)
    except PlumblineError as error:
        return EngineChoice(TENSORFLOW, f"LiteRT cannot run the golden examples: {error}")
    if not report.passed:
        return EngineChoice(TENSORFLOW, f"LiteRT disagrees: {'; '.join(report.problems)}")
    return EngineChoice(LITERT, f"{report.num_rows} golden examples agree")


def _find_obstacle(signature: Signature, lite: Signature | None) -> str:
    """Why a TFLite signature cannot stand in for the version's own; "" when it can."""
    if lite is None:
        specs = [*signature.inputs.values(), *signature.outputs.values()]
        strings = ", ".join(spec.name for spec in specs if spec.dtype == STRING)
        return "model.tflite lacks it" + (f" (strings: {strings})" if strings else "")
    for kind, mine, its in (
        ("input", signature.inputs, lite.inputs),
        ("output", signature.outputs, lite.outputs),
    ):
        if mine.keys() != its.keys():
            return f"model.tflite names its {kind}s {', '.join(its)}"
        for name, spec in mine.items():
            if spec.dtype != its[name].dtype:
                return f"model.tflite has {kind} {name} as {its[name].dtype}, not {spec.dtype}"
    return ""
