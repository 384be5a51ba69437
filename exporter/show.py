"""What each verb shows people of its result; `--json` prints the whole of it instead."""

from __future__ import annotations

from typing import Any

import msgspec

from contract.console.terminal import print_table, say
from exporter.training.progress import describe_metrics
from exporter.verification.measurement import Measurement
from exporter.verification.verdict import IN_PROCESS, Verification


def show_export(document: dict[str, Any]) -> None:
    """The one table that says what was made and that every copy agrees."""
    from exporter.verification.verdict import Verification

    verification = msgspec.convert(document["verification"], Verification)
    title = document["model_name"] + (
        " — DUMMY DATA, predicts nothing real" if document["dummy"] else ""
    )
    print_table(HEADINGS, list_rows(verification), title=title)
    for note in verification.notes:
        say(f"Note: {note}.")
    for name, problems in verification.failures.items():
        say(f"{name} FAILED: {'; '.join(problems)}.")
    if document["published"] is None:
        say(f"Not published. The candidate and its report stay in {document['run_dir']}.")
    else:
        show_published(document["published"])


def show_worker(_: dict[str, Any]) -> None:
    """A worker of several has nothing to show: the chief exports."""
    say("Trained as a worker; the chief exports.")


def show_published(document: dict[str, Any]) -> None:
    """Where the version is."""
    for change in document["changes"]:
        say(f"Allowed signature change: {change}.")
    say(f"Published {document['path']}")
    if document["retired"]:
        say(f"Retired {', '.join(map(str, document['retired']))}")


def show_training(document: dict[str, Any]) -> None:
    """What training came to."""
    best = document["best_epoch"]
    last = {name: values[best - 1] for name, values in document["history"].items()}
    dummy = " on DUMMY DATA" if document["dummy"] else ""
    say(f"Trained {document['model_name']}{dummy} in {document['seconds']:.1f} s")
    say(f"Best of {document['epochs_run']} epochs: {best}  {describe_metrics(last)}")
    say(f"Export it with: python -m exporter export --trained {document['run_dir']}")


def show_inspection(document: dict[str, Any]) -> None:
    """Signatures, variants, provenance."""
    from exporter.inspect import list_provenance, list_signature_rows, list_variant_rows

    print_table(
        ("signature", "", "tensor", "takes or gives"),
        list_signature_rows(document),
        title=f"{document['model_name']} version {document['version']}",
    )
    print_table(
        ("copy", "KiB", "signatures", "quantised tensor", "scale", "zero point"),
        list_variant_rows(document),
        title="copies",
    )
    print_table(("what", "value"), list_provenance(document), title="provenance")


def show_recheck(document: dict[str, Any]) -> None:
    """What was checked, and what was not."""
    print_table(
        ("checked", "result", "detail"),
        [(one["name"], one["result"], one["detail"]) for one in document["checks"]],
        title=str(document["path"]),
    )
    say("Passed." if document["passed"] else "FAILED.")


def show_prediction(document: dict[str, Any]) -> None:
    """Where the golden file is."""
    say(
        f"{document['num_examples']} answers of {document['signature_name']} written to "
        f"{document['output']}"
    )


# The table of a verification, as cells of text.


HEADINGS = (
    "copy",
    "KiB",
    "accuracy",
    "top-1 agreement",
    "max abs difference",
    "µs per row",
    "verdict",
)


def list_rows(verification: Verification) -> list[tuple[str, ...]]:
    """One row per copy, a cell per heading."""
    return [_make_row(one, verification) for one in verification.measurements]


def _make_row(found: Measurement, verification: Verification) -> tuple[str, ...]:
    is_origin = found.name == IN_PROCESS
    failed = found.name in verification.failures
    if failed:
        verdict = "FAILED"
    elif is_origin:
        verdict = "–"
    else:
        verdict = "bit for bit" if found.bit_equal else "passed"
    return (
        found.name.replace("_", " ") if is_origin else found.name,
        f"{found.num_bytes / 1024:.1f}" if found.num_bytes else "–",
        "–" if found.accuracy is None else f"{found.accuracy:.2%}",
        "–" if found.top1_agreement is None or is_origin else f"{found.top1_agreement:.2%}",
        "–" if is_origin else _describe_difference(found.max_abs_difference),
        "–" if found.us_per_row is None else f"{found.us_per_row:.1f}",
        verdict,
    )


def _describe_difference(value: float) -> str:
    return "0" if value == 0 else f"{value:.1e}"
