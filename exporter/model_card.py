"""MODEL_CARD.md: what a person should know before using a version."""

from __future__ import annotations

from pathlib import Path

from contract import layout
from contract.manifest import Manifest, from_entries
from contract.signature import Array
from exporter.verdict import Verification
from exporter.verification_table import HEADINGS, list_rows


def write_model_card(
    directory: Path, manifest: Manifest, verification: Verification, counts: Array | None
) -> None:
    """Writes the card; the picture is written by `confusion_matrix`.

    Args:
        directory: Of the candidate.
        manifest: As far as it is known by now.
        verification: The table.
        counts: Confusion counts (label, predicted), None without classes.

    Raises:
        OSError: The file cannot be written.
    """
    sections = [
        _write_head(manifest),
        _write_table(verification),
        *([] if counts is None else [_write_classes(manifest, counts)]),
        _write_signatures(manifest),
        _write_use(manifest),
    ]
    path = directory / layout.MODEL_CARD
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n\n".join(sections) + "\n", encoding="utf-8")


def _write_head(manifest: Manifest) -> str:
    data = manifest.data
    lines = [f"# {manifest.model_name}", ""]
    if data is not None and data.dummy:
        lines += ["**Dummy data: trained on random numbers. It predicts nothing real.**", ""]
    lines.append(f"- Made {manifest.created} with training seed {manifest.seed}.")
    if data is not None:
        rows = ", ".join(f"{count} {split}" for split, count in data.num_examples.items())
        lines.append(f"- Data: `{data.name}` ({rows} rows), fingerprint `{data.fingerprint[:16]}`.")
    for name, value in sorted(manifest.metrics.items()):
        lines.append(f"- {name.replace('_', ' ')}: {value:.4g}")
    tools = ", ".join(f"{name} {version}" for name, version in manifest.tool_versions.items())
    lines.append(f"- Tools: {tools}.")
    return "\n".join(lines)


def _write_table(verification: Verification) -> str:
    lines = [
        "## Copies, compared with the in-process model",
        "",
        f"| {' | '.join(HEADINGS)} |",
        f"|---|{'---:|' * (len(HEADINGS) - 1)}",
        *(f"| {' | '.join(row)} |" for row in list_rows(verification)),
    ]
    lines += [f"\n{note}." for note in verification.notes]
    return "\n".join(lines)


def _write_classes(manifest: Manifest, counts: Array) -> str:
    names = manifest.data.class_names if manifest.data else ()
    lines = [
        "## Accuracy per class, test split",
        "",
        "| class | rows | accuracy |",
        "|---|---:|---:|",
    ]
    for row, name in enumerate(names):
        total = int(counts[row].sum())
        share = f"{counts[row, row] / total:.1%}" if total else "–"
        lines.append(f"| {name.replace('|', chr(92) + '|')} | {total} | {share} |")
    picture = Path(layout.CONFUSION_MATRIX).name
    return "\n".join([*lines, "", f"![Confusion matrix of the test split]({picture})"])


def _write_signatures(manifest: Manifest) -> str:
    lines = ["## Signatures", "", "| signature | inputs | outputs |", "|---|---|---|"]
    for signature in from_entries(manifest.signatures).values():
        inputs, outputs = (
            "; ".join(f"`{spec.name}` {spec.describe()}" for spec in specs.values())
            for specs in (signature.inputs, signature.outputs)
        )
        lines.append(f"| `{signature.name}` | {inputs} | {outputs} |")
    return "\n".join(lines)


def _write_use(manifest: Manifest) -> str:
    lines = ["## Use", ""]
    if any(
        spec.dtype == "uint8" for e in manifest.signatures.values() for spec in e.inputs.values()
    ):
        lines.append(
            "Images are light ink on dark paper, as in MNIST: 0 is paper, 255 is ink. "
            "Invert photographs of dark ink on white paper before sending them."
        )
    lines.append(
        "`python -m exporter verify <this directory>` checks every file and replays the golden "
        "examples."
    )
    return "\n".join(lines)
