"""The report as a page: one HTML file that asks nobody for anything.

What is said is put together here, what it looks like stands in `templates/`. Equal facts give
equal bytes: no date but the manifest's.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from contract import layout
from contract.console.plots import PLOT_CSS
from contract.manifest import DataEntry, Manifest
from contract.signature import UINT8, TensorSpec
from exporter.report.confusions import MOST_WRITTEN
from exporter.report.evaluation import NUM_WORST, ClassFacts, HeadFacts, WorstRow
from exporter.report.facts import CopyFacts, Facts
from exporter.report.rows import ShownInput, shorten, show_row
from exporter.report.snippets import GRPC, REST, Snippet, write_snippet

if TYPE_CHECKING:
    import jinja2

    from exporter.report.figures import CopyPoint

_DARK = "@media (prefers-color-scheme: dark)"
_CSS = PLOT_CSS.replace(_DARK, "@media screen and (prefers-color-scheme: dark)")
"""Paper is white whatever the screen is."""

_MAX_LISTED_CLASSES = 60
_MAX_CONFUSIONS = 20
_MAX_HEADS_IN_FULL = 4
_CURVES = (
    ("accuracy", "accuracy"),
    ("macro_f1", "macro F1"),
    ("f1", "F1"),
    ("auc", "AUC"),
    ("rmse", "RMSE"),
    ("mae", "mean absolute error"),
)
_NAMES = dict(_CURVES) | {"mean_iou": "mean IoU", "iou": "IoU"}
_TASKS = {
    "multiclass": "one class of {count}",
    "binary": "yes or no",
    "multilabel": "any of {count} labels",
    "embedding": "an embedding",
}
_COLUMNS_SHOWN = 40
_MAX_SIGNATURES, _MAX_TENSORS = 12, 20


@dataclasses.dataclass(frozen=True)
class Figure:
    """A figure of a page.

    Attributes:
        svg: Safe: ours, with names escaped.
        title: A sentence that says what is to be seen.
        note: How to read it; "" where there is nothing to add.
    """

    svg: str
    title: str
    note: str = ""


@dataclasses.dataclass(frozen=True)
class HeadView:
    """One output, as the page shows it.

    Attributes:
        anchor: Of its part of the page.
        name: Of the output.
        is_only: There is no other.
        facts: What was counted.
        task: In words.
        metrics: (name, value).
        figures: Matrix, reliability, answers.
        classes: In the order of the table.
        classes_note: Which classes are not in it.
        confusions: (truth, answer, rows), where no matrix is drawn.
        notes: Sentences, of what is absent too.
        worst_title: Above the worst rows.
        worst: The rows.
    """

    anchor: str
    name: str
    is_only: bool
    facts: HeadFacts
    task: str
    metrics: tuple[tuple[str, str], ...]
    figures: tuple[Figure, ...]
    classes: tuple[ClassFacts, ...]
    classes_note: str
    confusions: tuple[tuple[str, str, int], ...]
    notes: tuple[str, ...]
    worst_title: str
    worst: tuple[WorstRow, ...]


@dataclasses.dataclass(frozen=True)
class CopyView:
    """One line of the table of copies.

    Attributes:
        facts: The copy.
        cells: (heading, text) of its numbers.
        worst: The golden example that it is farthest from.
        worst_text: Which one it is.
        sentences: What failed, why, and what mends it.
    """

    facts: CopyFacts
    cells: tuple[tuple[str, str], ...]
    worst: tuple[ShownInput, ...]
    worst_text: str
    sentences: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class SignatureView:
    """One signature and how it is asked."""

    name: str
    method: str
    inputs: tuple[tuple[str, str], ...]
    outputs: tuple[tuple[str, str], ...]
    snippet: Snippet


@dataclasses.dataclass(frozen=True)
class StaticFigures:
    """What can be drawn before any copy has been verified.

    Attributes:
        curves: Of training.
        heads: What the page shows of each output.
    """

    curves: tuple[Figure, ...]
    heads: tuple[HeadView, ...]


def draw_static(facts: Facts) -> StaticFigures:
    """The part of a page that needs no copy: it is drawn while copies are made."""
    names = list(facts.evaluation.heads)
    _load_template("report.html")  # imports and compiles now what has to be quick later
    return StaticFigures(
        curves=tuple(_draw_curves(facts.manifest)),
        heads=tuple(
            _view_head(facts, name, at, is_full=at < _MAX_HEADS_IN_FULL)
            for at, name in enumerate(names)
        ),
    )


def render(facts: Facts, static: StaticFigures | None = None) -> bytes:
    """The page of a version, UTF-8.

    Args:
        facts: Of the version.
        static: From `draw_static`, where that has been drawn already; its metrics are read anew.
    """
    drawn = static or draw_static(facts)
    manifest = facts.manifest
    heads = tuple(
        dataclasses.replace(one, metrics=_list_metrics(facts, one.name, is_only=one.is_only))
        for one in drawn.heads
    )
    text = _load_template("report.html").render(
        css=_CSS,
        facts=facts,
        manifest=manifest,
        title=shorten(manifest.model_name),
        version=manifest.version,
        summary=_summarise(facts),
        verdict=_judge(facts),
        tiles=_list_tiles(facts),
        curves=drawn.curves,
        curves_absent=_explain_no_curves(manifest),
        training=_describe_training(manifest),
        heads=heads,
        num_heads=facts.evaluation.num_heads,
        no_heads=_explain_no_heads(facts),
        copies=tuple(_view_copy(facts, one) for one in facts.copies),
        copies_figure=_draw_copies(facts),
        signatures=tuple(_list_signatures(facts)),
        serve=_write_serve(manifest),
        data=tuple(_list_data(manifest.data)),
        columns=_list_columns(manifest.data),
        provenance=tuple(_list_provenance(manifest)),
        files=tuple(_list_files(manifest)),
        num_worst=NUM_WORST,
        grpc=GRPC,
        rest=REST,
    )
    return text.encode("utf-8")


@functools.cache
def _environment() -> jinja2.Environment:
    import jinja2
    import markupsafe

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("exporter.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["share"] = tell_share
    environment.filters["short"] = shorten
    environment.filters["svg"] = markupsafe.Markup
    environment.filters["count"] = lambda number: f"{number:,}"
    return environment


def _load_template(name: str) -> jinja2.Template:
    return _environment().get_template(name)


def render_template(name: str, **values: object) -> bytes:
    """Another page of the same look."""
    return _load_template(name).render(css=_CSS, **values).encode("utf-8")


def tell_share(share: float | None, digits: int = 1) -> str:
    """For example 98.6 %; a dash where there is none."""
    return "–" if share is None else f"{share * 100:.{digits}f} %"


def tell_metric(name: str, value: float) -> str:
    """A metric for people: shares of rows in percent, others in four digits."""
    return tell_share(value, 2) if name.endswith("accuracy") else f"{value:.4g}"


def _summarise(facts: Facts) -> str:
    """What the model is, in a sentence."""
    manifest, data = facts.manifest, facts.manifest.data
    named = [_tell_task(one) for one in facts.evaluation.heads.values()]
    kind = f"Answers with {' and '.join(named[:3])}" if named else "Answers what its signatures say"
    if len(named) > 3:
        kind = f"Has {facts.evaluation.num_heads} outputs"
    if "training" in manifest.config:
        made = "trained here"
    else:
        made = "of a model that was trained elsewhere"
    rows = ""
    if data is not None:
        counts = ", ".join(f"{count:,} {split}".strip() for split, count in _order_splits(data))
        rows = f" with the data “{shorten(data.name)}” ({counts} rows)"
    return f"{kind}; {made}{rows}; made {manifest.created.replace('T', ' ').replace('Z', ' UTC')}."


def _order_splits(data: DataEntry) -> list[tuple[str, int]]:
    known = ("train", "validation", "test")
    found = data.num_examples
    names = [*(one for one in known if one in found), *(one for one in found if one not in known)]
    # Of a model that was trained elsewhere all rows are one split, and need no word for it.
    return [("" if name == "examples" else shorten(name), found[name]) for name in names]


def _tell_task(head: HeadFacts) -> str:
    if head.task == "regression":
        count = head.num_columns or 1
        return f"{count} values" if count != 1 else "a value"
    return _TASKS[head.task].format(count=f"{head.num_classes:,}")


def _judge(facts: Facts) -> tuple[str, str]:
    """(`good`, `mixed` or `bad`, a sentence) about the copies."""
    others = [one for one in facts.copies if not one.is_origin]
    if not others:
        return "mixed", "Nothing was verified: the version says nothing of copies."
    failed = [one.name for one in facts.copies if one.verdict == "failed"]
    left_out = [one.name for one in others if one.verdict == "left out"]
    if failed:
        return "bad", f"{', '.join(failed)} failed verification."
    passed = len(others) - len(left_out)
    copies = "copy gives" if passed == 1 else "copies give"
    text = f"{passed} {copies} the answers of the model in process, within tolerance"
    if left_out:
        are = "is" if len(left_out) == 1 else "are"
        return "mixed", f"{text}; {', '.join(left_out)} {are} left out."
    return "good", f"{text}."


def _list_tiles(facts: Facts) -> list[tuple[str, str]]:
    """(name, number) of what people look for first."""
    metrics = facts.manifest.metrics
    tiles = [
        (f"test {label}", tell_metric(key, metrics[f"test_{key}"]))
        for key, label in (*_CURVES, ("mean_iou", _NAMES["mean_iou"]))
        if f"test_{key}" in metrics
    ][:3]
    first = next(iter(facts.evaluation.heads.values()), None)
    if first is not None and first.calibration is not None:
        tiles.append(("calibration error", tell_share(first.calibration.error)))
    name = "golden examples" if facts.is_golden_only else "test rows"
    if facts.evaluation.num_rows:
        tiles.append((name, f"{facts.evaluation.num_rows:,}"))
    sizes = [
        one.measurement.num_bytes
        for one in facts.copies
        if one.measurement.num_bytes and one.verdict in ("passed", "bit for bit")
    ]
    if sizes:
        tiles.append(("smallest copy", f"{min(sizes) / 1024:,.0f} KiB"))
    return tiles


def _draw_curves(manifest: Manifest) -> list[Figure]:
    training = manifest.training
    if training is None or not training.epochs:
        return []
    from exporter.report.figures import draw_curves

    figures = []
    wanted = [("loss", "loss")]
    wanted += [one for one in _CURVES if f"val_{one[0]}" in training.history][:1]
    for key, label in wanted:
        curves = [
            (name, line)
            for name, line in ((f"val_{key}", "validation"), (key, "training"))
            if any(value is not None for value in training.history.get(name, ()))
        ]
        if not curves:
            continue
        best = _find_best(training.epochs, training.history[curves[0][0]], training.best_epoch)
        said = "" if best is None else f" {tell_metric(key, best)} when kept"
        title = f"{curves[0][1].capitalize()} {label}{said}"
        svg = draw_curves(training, curves, name=f"curve-{key.replace('_', '-')}", title=title)
        figures.append(Figure(svg, title))
    return figures


def _find_best(epochs: Sequence[int], values: Sequence[float | None], best: int) -> float | None:
    return values[epochs.index(best)] if best in epochs else None


def _explain_no_curves(manifest: Manifest) -> str:
    if manifest.training is not None:
        return ""
    if "training" in manifest.config:
        return (
            "This version was made before versions kept the history of their training, so there "
            "are no curves; export the model again to have them."
        )
    return "The model was trained elsewhere, so there are no training curves."


def _describe_training(manifest: Manifest) -> str:
    training = manifest.training
    if training is None:
        return ""
    return (
        f"{training.epochs_run} epoch{'s' if training.epochs_run != 1 else ''} in "
        f"{training.seconds:.1f} s, seed {manifest.seed}; the weights of epoch "
        f"{training.best_epoch}, of the lowest validation loss, were kept."
    )


def _explain_no_heads(facts: Facts) -> str:
    if facts.evaluation.heads:
        return ""
    return (
        "No output is known to be classes, labels or values, so there are no metrics, no matrix "
        "and no worst rows; the copies below were compared all the same."
    )


def _view_head(facts: Facts, name: str, at: int, *, is_full: bool) -> HeadView:
    head = facts.evaluation.heads[name]
    is_only = len(facts.evaluation.heads) == 1
    named = _MAX_LISTED_CLASSES
    listed = head.classes
    note = ""
    if len(listed) > named:
        worst = sorted(listed, key=lambda one: (one.f1 if one.f1 is not None else 2, one.index))
        listed = tuple(worst[:named])
    if head.num_classes > len(listed) and head.classes:
        note = (
            f"{len(listed)} of {head.num_classes:,} are listed, those with the lowest F1; "
            "evaluation.json beside this file keeps "
            f"{'all' if len(head.classes) == head.num_classes else f'{len(head.classes):,}'}."
        )
    figures = tuple(_draw_head(head, f"head-{at}")) if is_full else ()
    return HeadView(
        anchor=f"head-{at}",
        name=name,
        is_only=is_only,
        facts=head,
        task=_tell_task(head),
        metrics=_list_metrics(facts, name, is_only=is_only),
        figures=figures,
        classes=listed if is_full else (),
        classes_note=note,
        confusions=_list_confusions(head) if is_full else (),
        notes=tuple(_list_head_notes(facts, head, is_full=is_full)),
        worst_title=_title_worst(facts, head),
        worst=head.worst if is_full else (),
    )


def _list_metrics(facts: Facts, name: str, *, is_only: bool) -> tuple[tuple[str, str], ...]:
    """(name, value) of one output's metrics, of its labels none: they have a table."""
    found = []
    for key, value in sorted(facts.manifest.metrics.items()):
        if not key.startswith("test_"):
            continue
        metric, _, output = key.removeprefix("test_").partition("/")
        if (output == name if output else is_only) and not metric.startswith("f1_"):
            found.append(
                (_NAMES.get(metric, shorten(metric.replace("_", " "))), tell_metric(metric, value))
            )
    return tuple(found)


def _draw_head(head: HeadFacts, anchor: str) -> list[Figure]:
    from exporter.report import figures

    drawn = []
    is_matrix = head.task in ("multiclass", "binary") and head.has_truth
    if is_matrix and head.num_classes <= MOST_WRITTEN:
        title = f"{head.num_right:,} of {head.num_places:,} {_places(head)} are right"
        svg = figures.draw_matrix(
            head.classes, head.confusions, name=f"{anchor}-matrix", title=title
        )
        note = "Rows are the true class, columns what was answered; the diagonal is right."
        drawn.append(Figure(svg, title, note))
    if head.calibration is not None:
        error = 100 * head.calibration.error
        title = f"Confidence is off by {error:.1f} percentage points on average"
        svg = figures.draw_calibration(head.calibration, name=f"{anchor}-calibration", title=title)
        note = (
            "On the dotted line, answers are right as often as they claim. The number is the "
            "expected calibration error over ten bins; the bars say how many answers each bin has."
        )
        drawn.append(Figure(svg, title, note))
    for at, values in enumerate(head.values[:2]):
        column = f", {values.name}" if values.name else ""
        explained = values.explained
        told = "" if explained is None else f"; R² {explained:.3f}"
        title = f"Answers against truth{column}: RMSE {values.rmse:.4g}{told}"
        svg = figures.draw_values(values, name=f"{anchor}-values-{at}", title=title)
        more = values.num_rows - len(values.points)
        note = f"{len(values.points)} of {values.num_rows:,} rows." if more > 0 else ""
        drawn.append(Figure(svg, title, note))
        title = f"Residuals{column}: {values.bias:+.3g} on average, {values.mae:.4g} without sign"
        svg = figures.draw_residuals(values, name=f"{anchor}-residuals-{at}", title=title)
        drawn.append(Figure(svg, title))
    return drawn


def _places(head: HeadFacts) -> str:
    return "places" if head.num_places != head.num_rows else "rows"


def _list_confusions(head: HeadFacts) -> tuple[tuple[str, str, int], ...]:
    if head.num_classes <= MOST_WRITTEN:
        return ()
    return tuple(
        (
            head.names.get(one.truth, str(one.truth)),
            head.names.get(one.answer, "no class"),
            one.count,
        )
        for one in head.confusions[:_MAX_CONFUSIONS]
    )


def _list_head_notes(facts: Facts, head: HeadFacts, *, is_full: bool) -> list[str]:
    """What is absent, and why."""
    notes = []
    if not is_full:
        notes.append(
            f"This page shows {_MAX_HEADS_IN_FULL} outputs in full; of this one it shows the "
            "metrics, and evaluation.json beside this file keeps the rest."
        )
    if head.task == "embedding":
        return [
            *notes,
            "An embedding means something only beside another, so it has no right answer, no "
            "classes and no worst rows; its copies are compared below.",
        ]
    if not head.has_truth:
        if facts.is_golden_only:
            notes.append(
                "This version was made before versions kept what a report needs, so nobody can say "
                "here how good its answers are; export the model again to have its confusion "
                "matrix, metrics per class and reliability."
            )
        else:
            notes.append(
                "Nobody said what the right answers are, so there is no accuracy, no confusion "
                "matrix and no reliability; export with labels to have them."
            )
        return notes

    if head.task in ("multiclass", "binary") and head.num_classes > MOST_WRITTEN:
        notes.append(
            f"A matrix of {head.num_classes:,} classes cannot be read, so the most frequent "
            "confusions are listed instead."
        )
    if head.task in ("multiclass", "binary", "multilabel") and head.calibration is None:
        notes.append(
            "The scores are no probabilities in 0 to 1, so their reliability cannot be told."
        )
    if head.task == "regression" and head.num_columns > 2:
        notes.append(f"It has {head.num_columns:,} values; the first two are drawn.")
    return notes


def _title_worst(facts: Facts, head: HeadFacts) -> str:
    count = len(head.worst)
    if not count:
        return ""
    rows = f"The {_spell(count)} rows" if count > 1 else "The row"
    if head.has_truth:
        return f"{rows} that it answers worst"
    told = "golden examples" if facts.is_golden_only else "rows"
    return f"The {_spell(count)} {told} that it is least sure of"


def _spell(count: int) -> str:
    words = [
        "one",
        "two",
        "three",
        "four",
        "five",
        "six",
        "seven",
        "eight",
        "nine",
        "ten",
        "eleven",
        "twelve",
    ]
    return words[count - 1] if 0 < count <= len(words) else str(count)


def _draw_copies(facts: Facts) -> Figure | None:
    from exporter.report.figures import CopyPoint, draw_copies

    points = [
        CopyPoint(
            name=one.name,
            num_bytes=one.measurement.num_bytes,
            quality=one.quality,
            us_per_row=one.measurement.us_per_row,
            failed=one.verdict in ("failed", "left out"),
        )
        for one in facts.copies
        if one.measurement.is_measured
    ]
    if not points:
        return None
    title = _title_copies(points, facts.quality_label)
    svg = draw_copies(points, facts.quality_label, name="copies-plot", title=title)
    note = "Times are the medians of calls with one row, on the machine of the export."
    if not facts.quality:
        note = f"Nobody knows the right answers, so no metric stands beside the sizes. {note}"
    return Figure(svg, title, note)


def _title_copies(points: Sequence[CopyPoint], quality: str) -> str:
    sound = [one for one in points if one.num_bytes and not one.failed]
    if len(sound) < 2:
        return "Size, quality and speed of the copies" if quality else "Size and speed of copies"
    small = min(sound, key=lambda one: one.num_bytes)
    large = max(sound, key=lambda one: one.num_bytes)
    text = f"{small.name} is {large.num_bytes / small.num_bytes:.1f} × smaller than {large.name}"
    if small.quality is None or large.quality is None:
        return text
    lost = large.quality - small.quality
    if abs(lost) < 5e-5 * max(1.0, abs(large.quality)):
        return f"{text}, at the same {quality}"
    if quality == "RMSE":
        return f"{text}, RMSE {small.quality:.4g} instead of {large.quality:.4g}"
    return f"{text}, {quality} {lost * -100:+.2f} points"


def _view_copy(facts: Facts, copy: CopyFacts) -> CopyView:
    found = copy.measurement
    is_unknown = copy.is_origin or not found.is_measured
    cells = [("KiB", f"{found.num_bytes / 1024:,.0f}" if found.num_bytes else "–")]
    if facts.quality:
        share = facts.quality == "accuracy"
        shown = "–" if copy.quality is None else f"{copy.quality:.4g}"
        cells.append((facts.quality_label, tell_share(copy.quality, 2) if share else shown))
    difference = "–" if is_unknown else _tell_difference(found.max_abs_difference)
    cells.append(("largest difference", difference))
    agreement = None if is_unknown else found.top1_agreement
    cells.append(("same answer", tell_share(agreement, 2)))
    lost = "–"
    if found.worst_class is not None:
        lost = f"{shorten(found.worst_class.name, 24)}: {found.worst_class.num_lost} of "
        lost += f"{found.worst_class.num_rows}"
    elif found.relative_rmse:
        lost = f"RMSE {found.relative_rmse:.2g} of the spread"
    elif not is_unknown:
        lost = "none"
    cells.append(("lost most", lost))
    time = "–" if found.us_per_row is None else f"{found.us_per_row:,.1f}"
    if found.us_per_row_raw is not None:
        time += f" (raw {found.us_per_row_raw:,.1f})"
    cells.append(("µs per row", time))
    worst, text = _find_worst(facts, copy)
    return CopyView(
        facts=copy,
        cells=tuple(cells),
        worst=worst,
        worst_text=text,
        sentences=tuple(_sentence(one) for one in found.problems),
    )


def _tell_difference(value: float) -> str:
    if value == 0:
        return "0"
    return "not a number" if not math.isfinite(value) else f"{value:.1e}"


def _sentence(text: str) -> str:
    clean = shorten(text, 600)
    return f"{clean[:1].upper()}{clean[1:]}".rstrip(".") + "."


def _find_worst(facts: Facts, copy: CopyFacts) -> tuple[tuple[ShownInput, ...], str]:
    worst = copy.measurement.worst_row
    if worst is None:
        if copy.is_origin:
            return (), "–"
        equal = copy.measurement.bit_equal and copy.measurement.is_measured
        return (), "none: all are equal" if equal else "not known"
    text = (
        f"{_tell_difference(worst.difference)} in golden {worst.row} of "
        f"{shorten(worst.signature_name, 24)}"
    )
    if len(facts.signatures[facts.main_signature].outputs) > 1:
        text += f", output {shorten(worst.output, 24)}"
    golden = facts.golden.signatures if facts.golden is not None else {}
    columns = facts.manifest.data.columns if facts.manifest.data else ()
    # The same rows stand behind every signature; raw pixels can be looked at.
    for name in (UINT8, worst.signature_name):
        examples = golden.get(name)
        if examples is None or not examples.batch_sizes or worst.row >= examples.num_examples:
            continue
        shown = show_row(examples.inputs, worst.row, columns)
        if pictures := [one for one in shown if one.kind == "picture"]:
            return tuple(pictures[:1]), text
    return (), text


def _list_signatures(facts: Facts) -> list[SignatureView]:
    golden = facts.golden.signatures if facts.golden is not None else {}
    names = sorted(facts.signatures, key=lambda name: name != facts.main_signature)
    return [
        SignatureView(
            name=name,
            method=facts.signatures[name].method_name.rpartition("/")[2],
            inputs=_list_tensors(facts.signatures[name].inputs.values()),
            outputs=_list_tensors(facts.signatures[name].outputs.values()),
            snippet=write_snippet(
                facts.manifest.model_name, facts.signatures[name], golden.get(name)
            ),
        )
        for name in names[:_MAX_SIGNATURES]
    ]


def _list_tensors(specs: Iterable[TensorSpec]) -> tuple[tuple[str, str], ...]:
    return tuple((shorten(one.name), one.describe()) for one in list(specs)[:_MAX_TENSORS])


def _write_serve(manifest: Manifest) -> str:
    name = manifest.model_name
    return (
        f"python -m serving embedded --model_name={name} "
        f"--model_base_path=models/{name} --rest_api_port=8501"
    )


def _list_data(data: DataEntry | None) -> list[tuple[str, str]]:
    if data is None:
        return []
    rows = [("data", shorten(data.name))]
    rows += [(f"{split} rows".strip(), f"{n:,}") for split, n in _order_splits(data)]
    if data.class_names:
        shown = ", ".join(shorten(one, 24) for one in data.class_names[:20])
        more = len(data.class_names) - 20
        rows.append(
            (
                f"{len(data.class_names):,} classes",
                f"{shown} and {more:,} more" if more > 0 else shown,
            )
        )
    rows.append(("fingerprint", data.fingerprint))
    return rows


def _list_columns(data: DataEntry | None) -> tuple[str, ...]:
    if data is None or not data.columns:
        return ()
    shown = [shorten(one, 40) for one in data.columns[:_COLUMNS_SHOWN]]
    more = len(data.columns) - len(shown)
    return (*shown, f"and {more:,} more") if more > 0 else tuple(shown)


def _list_provenance(manifest: Manifest) -> list[tuple[str, str]]:
    rows = [("model", shorten(manifest.model_name))]
    if manifest.version:
        rows.append(("version", str(manifest.version)))
    rows.append(("made", manifest.created))
    trained = "training" in manifest.config
    rows.append(("training seed", str(manifest.seed) if trained else "trained elsewhere"))
    if manifest.calibration_fingerprint:
        rows.append(("int8 calibration", manifest.calibration_fingerprint))
    rows += sorted(manifest.tool_versions.items())
    if manifest.digest:
        rows.append(("manifest digest", manifest.digest))
    return rows


def _list_files(manifest: Manifest) -> list[tuple[str, str, str]]:
    """(file, size, sha256) of what is served."""
    told = (layout.SAVED_MODEL, layout.TFLITE, f"{layout.EXTRA}/tflite/", layout.GOLDEN)
    return [
        (name, f"{entry.num_bytes / 1024:,.0f}", entry.sha256)
        for name, entry in sorted(manifest.files.items())
        if name.startswith(told)
    ]
