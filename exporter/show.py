"""What each verb shows people of its result; `--json` prints the whole of it instead."""

from __future__ import annotations

from typing import TYPE_CHECKING

from contract import layout
from contract.console.terminal import print_table, say
from exporter.publishing.foreign import advise

if TYPE_CHECKING:
    from exporter.flow import Exported, Trained
    from exporter.inspect import InspectedVariant, Inspection
    from exporter.own_model import ExportedVersion
    from exporter.predict import Prediction
    from exporter.publishing.publish import Published, Signed
    from exporter.publishing.transfer import Copied
    from exporter.report.compare import Change
    from exporter.report.verb import MadeComparison, MadeReport
    from exporter.verification.recheck import Recheck


def show_training(trained: Trained) -> None:
    """What training came to."""
    from exporter.training.run import describe_metrics

    best = trained.best_epoch
    last = {name: values[best - 1] for name, values in trained.history.items()}
    dummy = " on DUMMY DATA" if trained.dummy else ""
    say(f"Trained {trained.model_name}{dummy} in {trained.seconds:.1f} s")
    say(f"Best of {trained.epochs_run} epochs: {best}  {describe_metrics(last)}")
    if not trained.chief:
        say("Trained as a worker; the chief keeps the model.")
        return
    say(f"Export it with: python -m exporter export --trained {trained.run_dir}")


def show_export(exported: Exported) -> None:
    """The one table that says what was made and that every copy agrees."""
    from exporter.verification.verdict import (
        describe_requirement,
        list_failures,
        list_headings,
        list_rows,
    )

    if exported.candidate is None:
        say("Trained as a worker; the chief exports.")
        return
    verification = exported.candidate.verification
    title = exported.candidate.manifest.model_name
    if exported.dummy:
        title += " — DUMMY DATA, predicts nothing real"
    print_table(list_headings(verification), list_rows(verification), title=title)
    for note in verification.notes:
        say(f"Note: {note}.")
    for failure in list_failures(verification):
        say(failure)
    if exported.published is None:
        requirement = describe_requirement(verification)
        if requirement:
            say(f"{requirement}.")
        say(f"Not published. The candidate and its report stay in {exported.run_dir}.")
        if exported.trained_in is not None:
            say(
                "The trained model is kept; export it without training again: "
                f"python -m exporter export --trained {exported.trained_in}"
            )
    else:
        show_published(exported.published)


def show_own(exported: ExportedVersion) -> None:
    """The table of a model that was trained elsewhere, and where its version is."""
    from exporter.verification.verdict import list_failures, list_headings, list_rows

    rows = list_rows(exported.verification)
    print_table(list_headings(exported.verification), rows, title=exported.manifest.model_name)
    for note in exported.verification.notes:
        say(f"Note: {note}.")
    for failure in list_failures(exported.verification):
        say(failure)
    show_published(exported.published)


def show_published(published: Published) -> None:
    """Where the version is."""
    for change in published.changes:
        say(f"Allowed signature change: {change}.")
    signed = f", signed with {published.signed_with}" if published.signed_with else ""
    say(f"Published {published.path}{signed}")
    if (published.path / layout.REPORT).is_file():
        say(f"Report: {published.path / layout.REPORT}")
    for lack in published.lacks:
        say(f"It lacks {lack}.")
    if published.retired:
        say(f"Retired {', '.join(map(str, published.retired))}")


def show_signed(signed: Signed) -> None:
    """What is signed now."""
    say(
        f"Signed {signed.path}: {signed.num_files} files of {signed.model_name} version "
        f"{signed.version}, with {signed.signed_with}"
    )


def show_copied(copied: Copied, seconds: float) -> None:
    """What went from where to where."""
    already = f", {copied.num_present} of them there already" if copied.num_present else ""
    say(
        f"{copied.model_name} version {copied.version}: {copied.num_files} files{already}, "
        f"{copied.num_bytes / 1e6:.1f} MB, every sha256 checked, {seconds:.1f} s\n"
        f"{copied.source} -> {copied.target}"
    )


def show_recheck(recheck: Recheck) -> None:
    """What was checked, and what was not."""
    print_table(
        ("checked", "result", "detail"),
        [(one.name, one.result, one.detail) for one in recheck.checks],
        title=str(recheck.path),
    )
    if recheck.failed or recheck.passed:
        say("FAILED." if recheck.failed else "Passed.")
    else:
        say(f"Not verified: it is not ours. A version that is: {advise(recheck.path)}")


def show_report(made: MadeReport) -> None:
    """Where the page is."""
    say(str(made.report))


def show_comparison(made: MadeComparison) -> None:
    """What changed between two versions."""
    found = made.comparison
    heads = (*found.names, "change")
    say(f"{heads[0]}: {found.before.path}\n{heads[1]}: {found.after.path}\n")
    if found.metrics:
        print_table(
            ("metric", *heads),
            [(one.name, *_list_change(one)) for one in found.metrics],
            title="metrics on the test split",
        )
    rows = []
    for one in found.copies:
        verdict = one.before if one.before == one.after else f"{one.before} -> {one.after}"
        rows.append((one.name, verdict, *(_tell_pair(of) for of in (one.kib, one.us_per_row))))
    print_table(("copy", "verdict", "KiB", "µs per row"), rows, title="copies")
    if found.classes:
        print_table(
            ("class", *heads),
            [(one.name, *_list_change(one.f1)) for one in found.classes],
            title="F1 per class",
        )
    if found.signature_name:
        judged = ""
        if found.num_better or found.num_worse:
            judged = f": {found.num_better} better, {found.num_worse} worse"
        say(
            f"{found.num_changed} of {found.num_rows} rows of {found.signature_name} are answered "
            f"differently{judged} ({found.asked})."
        )
    else:
        say(f"{found.asked[:1].upper()}{found.asked[1:]}.")
    if found.rows:
        print_table(
            ("row", "output", "true", *heads[:2]),
            [(one.row, one.output, one.truth or "–", one.before, one.after) for one in found.rows],
            title="rows that changed",
        )
    if found.settings:
        print_table(
            ("what differs", *heads[:2]),
            [(one.name, one.before, one.after) for one in found.settings],
            title="data, configuration and tools",
        )
    for note in found.notes:
        say(f"Note: {note}.")
    if made.report is not None:
        say(f"Report: {made.report}")


def _list_change(change: Change) -> tuple[str, str, str]:
    shown = ["–" if value is None else f"{value:.4g}" for value in (change.before, change.after)]
    return shown[0], shown[1], change.verdict or "–"


def _tell_pair(change: Change) -> str:
    shown = ["–" if one is None else f"{one:.4g}" for one in (change.before, change.after)]
    return " -> ".join(shown)


def show_prediction(prediction: Prediction) -> None:
    """Where the golden file is."""
    say(
        f"{prediction.num_examples} answers of {prediction.signature_name} written to "
        f"{prediction.output}"
    )


def show_inspection(inspection: Inspection) -> None:
    """Signatures, copies, provenance."""
    print_table(
        ("signature", "", "tensor", "takes or gives"),
        _list_signature_rows(inspection),
        title=inspection.model_name
        if inspection.version is None
        else f"{inspection.model_name} version {inspection.version}",
    )
    print_table(
        ("copy", "KiB", "signatures", "quantised tensor", "scale", "zero point"),
        _list_copy_rows(inspection),
        title="copies",
    )
    problems: dict[str, list[str]] = {}
    for name, variant in inspection.variants.items():
        if variant.problem:
            problems.setdefault(variant.problem, []).append(name)
    for problem, names in problems.items():
        say(f"{', '.join(names)} not read: {problem}")
    print_table(("what", "value"), _list_provenance(inspection), title="provenance")
    for lack in inspection.lacks:
        say(f"It lacks {lack}.")


def _list_signature_rows(inspection: Inspection) -> list[tuple[str, ...]]:
    """A row for each tensor of each signature."""
    rows: list[tuple[str, ...]] = []
    for name, signature in inspection.signatures.items():
        tensors = [("in", *item) for item in signature.inputs.items()]
        tensors += [("out", *item) for item in signature.outputs.items()]
        rows += [("" if at else name, *tensor) for at, tensor in enumerate(tensors)]
    return rows


def _list_copy_rows(inspection: Inspection) -> list[tuple[str, ...]]:
    """A row for each signature of a copy, or for each quantised tensor of it."""
    rows: list[tuple[str, ...]] = []
    if num_bytes := inspection.saved_model.num_bytes:
        rows.append(("saved_model", _to_kib(num_bytes), "", "", "", ""))
    for name, variant in inspection.variants.items():
        size = _to_kib(variant.num_bytes)
        # Blanks, not nothing: so the columns are text, and numbers begin one below the other.
        below = [
            (one.signature, f"{one.tensor} {one.dtype}", f"{one.scale:.9g}", str(one.zero_point))
            for one in variant.quantisation
        ] or [(one, *"   ") for one in variant.signatures]
        if variant.problem:
            below = [("not read", *"   ")]  # why stands below, once
        heads = [(name, size), *_describe_runs(variant)]
        heads += [("", "")] * (len(below) - len(heads))
        below += [("", *"   ")] * (len(heads) - len(below))
        rows += [(*head, *cells) for head, cells in zip(heads, below, strict=True)]
    return rows


def _describe_runs(variant: InspectedVariant) -> list[tuple[str, str]]:
    """What stands below the name of a copy that is run so many rows at a time."""
    fixed = sorted({one.fixed_rows for one in variant.signatures.values() if one.fixed_rows})
    return [(f"{' or '.join(map(str, fixed))} at a time", "")] if fixed else []


def _list_provenance(inspection: Inspection) -> list[tuple[str, str]]:
    """Where a version comes from."""
    manifest = inspection.manifest
    if manifest is None:
        return [("manifest", "none: not published by Plumbline")]
    rows = [("created", manifest.created), ("training seed", str(manifest.seed))]
    if manifest.data is not None:
        counts = ", ".join(f"{count} {name}" for name, count in manifest.data.num_examples.items())
        dummy = ", DUMMY: predicts nothing real" if manifest.data.dummy else ""
        rows.append(("data", f"{manifest.data.name} ({counts}){dummy}"))
        rows.append(("fingerprint", manifest.data.fingerprint))
    if manifest.calibration_fingerprint:
        rows.append(("calibration", manifest.calibration_fingerprint))
    rows += [(name, f"{value:.4g}") for name, value in sorted(manifest.metrics.items())]
    rows += sorted(manifest.tool_versions.items())
    rows.append(("manifest", manifest.digest))
    if (inspection.path / layout.SIGNATURE).exists():
        rows.append(("signature", "there; whose it is, `verify --key FILE` says"))
    if layout.REPORT in manifest.files:
        rows.append(("report", str(inspection.path / layout.REPORT)))
    return rows


def _to_kib(num_bytes: int) -> str:
    return f"{num_bytes / 1024:.1f}" if num_bytes else "–"
