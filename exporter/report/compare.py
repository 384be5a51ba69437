"""Two versions side by side: what got better, what got worse, which rows changed their answer."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec
import numpy as np

from contract import layout
from contract.agreement import guess_head
from contract.console.extras import require_extra
from contract.errors import ConfigError
from contract.golden import GoldenExamples
from contract.heads import Head
from contract.lite import LiteModel
from contract.manifest import check_files
from contract.parity import Predictor
from contract.shadow import read_shadow_rows
from contract.signature import IMAGE_BYTES, STRING, UINT8, Array, Batch, Signature
from exporter.report.evaluation import ClassFacts, name_classes
from exporter.report.facts import Facts, read_facts
from exporter.report.rows import ShownInput, shorten, show_row

_MAX_ROWS, _MAX_CLASSES, _MAX_SETTINGS = 24, 40, 60
_LESS_IS_BETTER = ("rmse", "mae", "loss")
_NOTICED = 1e-3
"""Of values: a change of less than this share of their spread is none."""
_CHUNK = 32
_OFF = frozenset({"", "0", "0.0", "False", "None", "[]", "{}", "()"})


class VersionName(msgspec.Struct, frozen=True, kw_only=True):
    """Which version is meant."""

    path: Path
    model_name: str
    version: int
    created: str

    def __str__(self) -> str:
        return f"{self.model_name} {self.version}"


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """A number of both versions.

    Attributes:
        name: What it is.
        before: In the first version; None where it has none.
        after: In the second.
        verdict: `better`, `worse`, `same`, or "" where one of them has none.
    """

    name: str
    before: float | None
    after: float | None
    verdict: str


class CopyChange(msgspec.Struct, frozen=True, kw_only=True):
    """One copy in both versions; where it passed, and what it is like."""

    name: str
    before: str
    after: str
    kib: Change
    quality: Change
    us_per_row: Change


class ClassChange(msgspec.Struct, frozen=True, kw_only=True):
    """F1 of one class of one output."""

    output: str
    name: str
    f1: Change


class ChangedRow(msgspec.Struct, frozen=True, kw_only=True):
    """A golden example that the versions answer differently.

    Attributes:
        row: Its number among those that were compared.
        output: Of which output.
        inputs: What it looks like.
        truth: What is right, "" where nobody knows.
        before: What the first version answers.
        after: What the second answers.
        verdict: `better` (it became right), `worse`, or "".
    """

    row: int
    output: str
    inputs: tuple[ShownInput, ...]
    truth: str
    before: str
    after: str
    verdict: str = ""


class Setting(msgspec.Struct, frozen=True, kw_only=True):
    """Something of data, configuration or tools that differs."""

    name: str
    before: str
    after: str


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """Two versions.

    Attributes:
        before: The first.
        after: The second.
        quality: What the metric of copies is called; "" without one.
        metrics: Of the test split.
        copies: All of either.
        classes: Those whose F1 changed, the largest change first.
        num_classes_left_out: Of those, how many are not listed.
        signature_name: That both were asked by; "" where no rows could be compared.
        num_rows: Rows that both answered.
        num_changed: Of those, how many they answer differently.
        num_better: Became right.
        num_worse: Became wrong.
        rows: Some of them.
        asked: How the answers came about.
        settings: What differs in data, configuration and tools.
        notes: What a reader has to know.
    """

    before: VersionName
    after: VersionName
    quality: str
    metrics: tuple[Change, ...]
    copies: tuple[CopyChange, ...]
    classes: tuple[ClassChange, ...]
    num_classes_left_out: int
    signature_name: str
    num_rows: int
    num_changed: int
    num_better: int
    num_worse: int
    rows: tuple[ChangedRow, ...]
    asked: str
    settings: tuple[Setting, ...]
    notes: tuple[str, ...]

    @property
    def names(self) -> tuple[str, str]:
        """What to call them in a table."""
        names = str(self.before), str(self.after)
        return names if names[0] != names[1] else ("first", "second")


def compare_versions(
    before_dir: Path, after_dir: Path, *, shadow: Path | None = None
) -> Comparison:
    """Holds one version against another.

    Where their golden examples are the same, what the models answered in process is compared; else
    both are asked the golden examples of both. Rows that `promote --shadow_s` kept stand for
    golden examples where `shadow` is their file.

    Raises:
        ConfigError: One is no version, or they have no signature in common.
        ManifestError: One is damaged.
        UnimplementedError: A version has to be asked, and nothing that can is installed.
    """
    before, after = read_facts(before_dir), read_facts(after_dir)
    name = _find_common(before, after, before_dir, after_dir)
    notes = _list_notes(before, after)
    if shadow is not None:
        name, asked = _read_shadow(shadow, before)
    else:
        asked = _ask(name, before, after, before_dir, after_dir)
    changed = list(_list_changed(name, asked, before, after)) if asked else []
    classes = _compare_classes(before, after)
    return Comparison(
        before=_name(before, before_dir),
        after=_name(after, after_dir),
        quality=after.quality_label if before.quality == after.quality else "",
        metrics=tuple(_compare_metrics(before.manifest.metrics, after.manifest.metrics)),
        copies=tuple(_compare_copies(before, after)),
        classes=tuple(classes[:_MAX_CLASSES]),
        num_classes_left_out=max(0, len(classes) - _MAX_CLASSES),
        signature_name=name if asked else "",
        num_rows=asked.num_rows if asked else 0,
        num_changed=len({row.row for row in changed}),
        num_better=sum(row.verdict == "better" for row in changed),
        num_worse=sum(row.verdict == "worse" for row in changed),
        rows=tuple(changed[:_MAX_ROWS]),
        asked=asked.how
        if asked
        else "no golden examples could be compared: neither version has any",
        settings=tuple(_compare_settings(before, after)),
        notes=tuple(notes),
    )


def _name(facts: Facts, path: Path) -> VersionName:
    manifest = facts.manifest
    return VersionName(
        path=path,
        model_name=shorten(manifest.model_name),
        version=manifest.version,
        created=manifest.created,
    )


@dataclasses.dataclass(frozen=True)
class _Asked:
    """Rows with the answers of both.

    Attributes:
        inputs: Input name to rows.
        before: Output name to answers.
        after: Likewise.
        truths: Output name to what is right, NaN where nobody knows.
        how: In words.
        num_rows: How many.
    """

    inputs: Batch
    before: Batch
    after: Batch
    truths: Mapping[str, Array]
    how: str
    num_rows: int


def _find_common(before: Facts, after: Facts, before_dir: Path, after_dir: Path) -> str:
    """The signature that both are asked by: one that golden examples are at hand for first."""
    common = [
        name
        for name, one in before.signatures.items()
        if name in after.signatures and _is_alike(one, after.signatures[name])
    ]
    if not common:
        raise ConfigError(
            f"{before_dir} and {after_dir} have no signature in common that takes the same inputs "
            f"and gives an output of the same name (the first has {_tell(before)}, the second "
            f"{_tell(after)}), so their answers cannot be compared; give two versions of one model"
        )
    held = {
        name
        for facts in (before, after)
        if facts.golden is not None
        for name in facts.golden.signatures
    }
    order = [before.main_signature, UINT8, *common]
    known = [name for name in order if name in common]
    return next((name for name in known if name in held), known[0])


def _is_alike(one: Signature, other: Signature) -> bool:
    return dict(one.inputs) == dict(other.inputs) and bool(set(one.outputs) & set(other.outputs))


def _tell(facts: Facts) -> str:
    return ", ".join(sorted(facts.signatures)) or "none"


def _read_shadow(path: Path, before: Facts) -> tuple[str, _Asked | None]:
    """The rows that a shadow kept of the signature with the most of them."""
    kept = read_shadow_rows(path)
    names = collections.Counter(row.signature_name for row in kept)
    if not names:
        raise ConfigError(f"{path} holds no rows")
    name = names.most_common(1)[0][0]
    if name not in before.signatures:
        raise ConfigError(
            f"{path} holds rows of signature {name}, which the first version has not "
            f"({_tell(before)}); give the version that served them first"
        )
    rows = [row for row in kept if row.signature_name == name]
    inputs, got, other = (
        {key: np.concatenate([one[key] for one in batches]) for key in batches[0]}
        for batches in (
            [row.inputs for row in rows],
            [row.before for row in rows],
            [row.after for row in rows],
        )
    )
    how = f"they are the worst rows of real calls, which a shadow kept in {path.name}"
    return name, _Asked(inputs, got, other, {}, how, len(rows))


def _ask(
    name: str, before: Facts, after: Facts, before_dir: Path, after_dir: Path
) -> _Asked | None:
    ours = before.golden.signatures.get(name) if before.golden else None
    theirs = after.golden.signatures.get(name) if after.golden else None
    if ours is not None and theirs is not None and _have_same_rows(ours.inputs, theirs.inputs):
        how = (
            "their golden examples are the same, so what the models answered in process is compared"
        )
        count = ours.num_examples
        truths = _find_truths(after, count) or _find_truths(before, count)
        return _Asked(ours.inputs, ours.outputs, theirs.outputs, truths, how, count)
    parts = [(facts, one) for facts, one in ((before, ours), (after, theirs)) if one is not None]
    parts = [(facts, one) for facts, one in parts if one.batch_sizes]
    if not parts:
        return None
    inputs, truths = _unite(parts)
    signature = before.signatures[name]
    answers, means = [], []
    for facts, folder in ((before, before_dir), (after, after_dir)):
        check_files(folder, facts.manifest)
        with _open_copy(folder, name, signature) as (predictor, copy):
            answers.append(_answer(predictor, inputs, signature))
            means.append(copy)
    count = len(next(iter(inputs.values())))
    how = (
        f"their golden examples differ, so both were asked those of both: the first through its "
        f"{means[0]}, the second through its {means[1]}"
    )
    return _Asked(inputs, answers[0], answers[1], truths, how, count)


def _have_same_rows(ours: Batch, theirs: Batch) -> bool:
    """Whether both are the same bits: a NaN, which stands for what is missing, is itself."""
    return ours.keys() == theirs.keys() and all(
        (array.dtype, array.shape) == (theirs[name].dtype, theirs[name].shape)
        and (
            np.array_equal(array, theirs[name])
            if array.dtype.kind == "O"
            else array.tobytes() == theirs[name].tobytes()
        )
        for name, array in ours.items()
    )


def _find_truths(facts: Facts, count: int) -> dict[str, Array]:
    """What is right, for golden examples of every signature: they are the same rows."""
    return {
        name: np.asarray(values, float)
        for name, values in facts.evaluation.golden_truth.items()
        if len(values) == count
    }


def _unite(
    parts: list[tuple[Facts, GoldenExamples]],
) -> tuple[dict[str, Array], dict[str, Array]]:
    """The rows of all, each once, and what is right."""
    seen: set[bytes] = set()
    chosen: list[tuple[int, int]] = []
    for at, (_, examples) in enumerate(parts):
        for row in range(examples.num_examples):
            key = b"\0".join(
                array[row].tobytes()
                if array.dtype.kind != "O"
                else b"\1".join(map(bytes, np.ravel(array[row])))
                for _, array in sorted(examples.inputs.items())
            )
            if key not in seen:
                seen.add(key)
                chosen.append((at, row))
    inputs = {
        name: _stack([parts[at][1].inputs[name][row] for at, row in chosen], array)
        for name, array in parts[0][1].inputs.items()
    }
    found = [_find_truths(facts, examples.num_examples) for facts, examples in parts]
    names = {name for one in found for name in one}
    truths = {
        name: np.array(
            [found[at][name][row] if name in found[at] else np.nan for at, row in chosen]
        )
        for name in sorted(names)
    }
    return inputs, truths


def _stack(rows: list[Array], like: Array) -> Array:
    if like.dtype.kind != "O":
        return np.stack(rows)
    made = np.empty((len(rows), *like.shape[1:]), object)
    for at, row in enumerate(rows):
        made[at] = row
    return made


@contextlib.contextmanager
def _open_copy(folder: Path, name: str, signature: Signature) -> Iterator[tuple[Predictor, str]]:
    """The float32 TFLite copy where it has the signature, else the SavedModel."""
    takes_strings = any(spec.dtype == STRING for spec in signature.inputs.values())
    if (folder / layout.TFLITE).exists() and not takes_strings:
        with LiteModel(folder / layout.TFLITE) as model:
            if name in model.signatures:
                yield model, "float32 TFLite copy"
                return
    if not (folder / layout.SAVED_MODEL).exists():
        raise ConfigError(
            f"{folder} has no copy that answers {name}, so it cannot be asked; compare versions "
            "that have a SavedModel or the float32 copy"
        )
    require_extra("tensorflow", f"asking the SavedModel of {folder}")
    from exporter.verification.reload import load_saved_model

    yield load_saved_model(folder), "SavedModel"


def _answer(predictor: Predictor, inputs: Batch, signature: Signature) -> dict[str, Array]:
    count = len(next(iter(inputs.values())))
    sizes = {spec.shape[0] for spec in signature.inputs.values() if spec.shape}
    fixed = next((size for size in sizes if size), None)
    step = fixed or _CHUNK
    answers = []
    for start in range(0, count, step):
        rows = np.arange(start, min(start + step, count))
        asked = np.resize(rows, step) if fixed else rows
        batch = {name: array[asked] for name, array in inputs.items()}
        got = predictor.predict(batch, signature_name=signature.name)
        answers.append({name: array[: len(rows)] for name, array in got.items()})
    return {name: np.concatenate([one[name] for one in answers]) for name in answers[0]}


def _list_changed(
    signature_name: str, asked: _Asked, before: Facts, after: Facts
) -> Iterator[ChangedRow]:
    """Rows whose answers differ: those that became wrong first, then right, then the others."""
    columns = after.manifest.data.columns if after.manifest.data else ()
    shown = _find_pictures(signature_name, asked, after) or asked.inputs
    found: list[ChangedRow] = []
    for output, got in asked.before.items():
        other = asked.after.get(output)
        if other is None or (got.shape[1:] != other.shape[1:] and got.ndim != other.ndim):
            continue
        heads = [
            _find_head(facts, output, array) for facts, array in ((before, got), (after, other))
        ]
        if heads[0] is None or heads[1] is None or heads[0].task != heads[1].task:
            continue
        truth = asked.truths.get(output)
        for row, texts in _list_differing(heads[0], heads[1], got, other):
            right, verdict = _judge(heads[1], truth, row, texts, other)
            found.append(
                ChangedRow(
                    row=row,
                    output=output,
                    inputs=show_row(shown, row, columns),
                    truth=right,
                    before=texts[0],
                    after=texts[1],
                    verdict=verdict,
                )
            )
    order = {"worse": 0, "better": 1, "": 2}
    yield from sorted(found, key=lambda one: order[one.verdict])


def _find_pictures(signature_name: str, asked: _Asked, after: Facts) -> Batch | None:
    """The same rows as raw pixels, where golden has them beside a signature of flat numbers."""
    golden = after.golden.signatures if after.golden else {}
    held = golden.get(signature_name)
    for name in (UINT8, IMAGE_BYTES):
        pixels = golden.get(name)
        if held is None or pixels is None or pixels.num_examples != asked.num_rows:
            continue
        if _have_same_rows(held.inputs, asked.inputs):
            return pixels.inputs
    return None


def _find_head(facts: Facts, output: str, answers: Array) -> Head | None:
    head = facts.manifest.heads.get(output) or guess_head(answers)
    if head is None or head.class_names or not head.has_classes or head.task == "binary":
        return head
    names = facts.manifest.data.class_names if facts.manifest.data else ()
    fits = answers.ndim > 1 and answers.shape[-1] == len(names)
    return msgspec.structs.replace(head, class_names=names) if fits else head


def _list_differing(
    ours: Head, theirs: Head, got: Array, other: Array
) -> Iterator[tuple[int, tuple[str, str]]]:
    rows = min(len(got), len(other))
    if ours.task in ("regression", "embedding"):
        if got.shape != other.shape or ours.task == "embedding":
            return
        flat, new = got.reshape(rows, -1).astype(float), other.reshape(rows, -1).astype(float)
        known = flat[np.isfinite(flat)]
        spread = (float(known.std()) or float(np.abs(known).max())) if known.size else 1.0
        is_same = (flat == new) | (np.isnan(flat) & np.isnan(new))
        with np.errstate(invalid="ignore"):
            moved = np.nan_to_num(np.where(is_same, 0.0, np.abs(new - flat)), nan=np.inf).max(
                axis=1
            )
        for row in np.argsort(-moved, kind="stable"):
            if moved[row] > _NOTICED * (spread or 1.0):
                yield int(row), (_tell_values(flat[row]), _tell_values(new[row]))
        return
    first, second = ours.decide(got), theirs.decide(other)
    for row in range(rows):
        texts = (
            _tell_decided(ours, first[row], got[row]),
            _tell_decided(theirs, second[row], other[row]),
        )
        is_many = ours.task == "multilabel" or first[row].ndim
        if is_many and first[row].shape == second[row].shape:
            if not np.array_equal(first[row], second[row]):
                yield row, texts
        elif texts[0] != texts[1]:
            yield row, texts


def _tell_decided(head: Head, decided: Array, scores: Array) -> str:
    if decided.ndim == 0:
        names = name_classes(head, 2 if head.task == "binary" else scores.shape[-1])
        at = int(decided)
        return names[at] if 0 <= at < len(names) else "no class"
    if head.task == "multilabel" and decided.ndim == 1:
        names = name_classes(head, len(decided))
        return shorten(", ".join(names[at] for at in np.flatnonzero(decided > 0)) or "none", 120)
    names = name_classes(head, max(2, scores.shape[-1]))
    kinds, counts = np.unique(decided, return_counts=True)
    told = [f"{names[at]} {n / decided.size:.0%}" for at, n in zip(kinds, counts, strict=True)]
    return ", ".join(told[:4])


def _tell_values(values: Array) -> str:
    shown = ", ".join(f"{value:.5g}" for value in values[:4])
    return f"{shown} and {len(values) - 4} more" if len(values) > 4 else shown


def _judge(
    head: Head, truth: Array | None, row: int, texts: tuple[str, str], answers: Array
) -> tuple[str, str]:
    """What is right, and whether the row became right or wrong."""
    if truth is None or not np.isfinite(truth[row]):
        return "", ""
    if head.task == "regression":
        value = float(truth[row])
        try:
            gaps = [abs(float(text) - value) for text in texts]
        except ValueError:
            return f"{value:.5g}", ""
        return f"{value:.5g}", "better" if gaps[1] < gaps[0] else "worse"
    if not head.has_one_class:
        return "", ""
    names = name_classes(head, 2 if head.task == "binary" else answers.shape[-1])
    at = int(truth[row])
    right = names[at] if 0 <= at < len(names) else str(at)
    if right == texts[1]:
        return right, "better"
    return right, "worse" if right == texts[0] else ""


def _change(
    name: str, before: float | None, after: float | None, *, less_is_better: bool = False
) -> Change:
    verdict = ""
    if before is not None and after is not None:
        is_same = math.isclose(before, after, rel_tol=1e-9, abs_tol=1e-12)
        is_better = (after < before) == less_is_better
        verdict = "same" if is_same else "better" if is_better else "worse"
    return Change(name=name, before=before, after=after, verdict=verdict)


def _compare_metrics(before: Mapping[str, float], after: Mapping[str, float]) -> Iterator[Change]:
    for name in sorted({*before, *after}):
        if not name.startswith("test_") or name.startswith("test_f1_"):
            continue
        metric = name.removeprefix("test_")
        yield _change(
            metric.replace("_", " "),
            before.get(name),
            after.get(name),
            less_is_better=metric.partition("/")[0] in _LESS_IS_BETTER,
        )


def _compare_copies(before: Facts, after: Facts) -> Iterator[CopyChange]:
    ours, theirs = ({one.name: one for one in facts.copies} for facts in (before, after))
    same = before.quality == after.quality
    for name in dict.fromkeys((*ours, *theirs)):
        pair = ours.get(name), theirs.get(name)
        sizes, qualities, times = [], [], []
        for one in pair:
            found = one.measurement if one else None
            sizes.append(found.num_bytes / 1024 if found and found.num_bytes else None)
            qualities.append(one.quality if one and same else None)
            times.append(found.us_per_row if found else None)
        yield CopyChange(
            name=name,
            before=pair[0].verdict if pair[0] else "not there",
            after=pair[1].verdict if pair[1] else "not there",
            kib=_change("KiB", *sizes, less_is_better=True),
            quality=_change(
                after.quality_label, *qualities, less_is_better=after.quality in _LESS_IS_BETTER
            ),
            us_per_row=_change("µs per row", *times, less_is_better=True),
        )


def _compare_classes(before: Facts, after: Facts) -> list[ClassChange]:
    """Classes whose F1 changed, the largest change first."""
    found = []
    for output, head in after.evaluation.heads.items():
        other = before.evaluation.heads.get(output)
        if other is None:
            continue
        ours: dict[str, ClassFacts] = {one.name: one for one in other.classes}
        for one in head.classes:
            if one.name in ours and ours[one.name].f1 != one.f1:
                f1 = _change("F1", ours[one.name].f1, one.f1)
                found.append(ClassChange(output=output, name=one.name, f1=f1))
    return sorted(found, key=lambda one: -abs((one.f1.after or 0.0) - (one.f1.before or 0.0)))


def _list_notes(before: Facts, after: Facts) -> list[str]:
    notes = []
    ours, theirs = before.manifest.data, after.manifest.data
    if before.manifest.model_name != after.manifest.model_name:
        notes.append("the two are versions of different models")
    if ours and theirs and ours.fingerprint != theirs.fingerprint:
        notes.append(
            "they were made with different data, so their metrics are of different test rows"
        )
    for which, facts in (("first", before), ("second", after)):
        if facts.is_golden_only:
            notes.append(
                f"the {which} was made before versions kept what a report needs, so there is no "
                "comparison per class; export it again to have it"
            )
        if facts.is_dummy:
            notes.append(f"the {which} was made with dummy data and predicts nothing real")
    if before.quality != after.quality:
        notes.append("their copies were measured with different metrics")
    return notes


def _compare_settings(before: Facts, after: Facts) -> Iterator[Setting]:
    ours, theirs = (dict(_flatten(_collect(facts))) for facts in (before, after))
    differing = [
        name
        for name in dict.fromkeys((*ours, *theirs))
        if ours.get(name, "–") != theirs.get(name, "–")
        # A setting that one exporter did not have yet, and the other leaves off.
        and not (name not in ours and theirs[name] in _OFF)
        and not (name not in theirs and ours[name] in _OFF)
    ]
    for name in differing[:_MAX_SETTINGS]:
        yield Setting(name=shorten(name), before=ours.get(name, "–"), after=theirs.get(name, "–"))


def _collect(facts: Facts) -> dict[str, object]:
    manifest, data = facts.manifest, facts.manifest.data
    found: dict[str, object] = {}
    if data is not None:
        found["data"] = {
            "name": data.name,
            "fingerprint": data.fingerprint[:16],
            "rows": dict(data.num_examples),
            "classes": ", ".join(data.class_names),
            "columns": ", ".join(data.columns),
        }
    found["config"] = manifest.config
    found["tools"] = manifest.tool_versions
    if manifest.training is not None:
        found["training"] = {
            "epochs run": manifest.training.epochs_run,
            "epoch kept": manifest.training.best_epoch,
        }
    return found


def _flatten(value: object, name: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for key, one in value.items():
            yield from _flatten(one, f"{name}.{key}" if name else str(key))
    else:
        yield name, shorten(value if isinstance(value, str) else str(value), 80)
