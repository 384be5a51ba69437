"""A given model and given labels, brought together: classes, targets by head, pixels by scale."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping

import numpy as np

from contract.errors import DatasetError
from contract.heads import Head
from contract.signature import Array, Batch
from exporter.artifacts.exportable import Exportable
from exporter.artifacts.golden import find_fixed_batch
from exporter.data.examples import Examples, ExportExamples, count_bytes
from exporter.data.pixels import PixelScale

_LOG = logging.getLogger(__name__)

_CHUNK = 64
_MAX_BYTES = 64 * 2**20
"""Of the rows that are answered to learn which classes there are."""
_FAR_BETTER = 0.25
"""Share of rows that another scale must get right beyond the one given, to be spoken of."""
_SCALES = (PixelScale(0.0, 1.0), PixelScale(-1.0, 1.0), PixelScale(0.0, 255.0))


def answer_rows(model: Exportable, examples: ExportExamples, most: int) -> Batch:
    """What the main signature answers to the first rows, at most `most` of them."""
    return _answer(model, examples, examples.test.take(slice(most)).inputs)


def _answer(model: Exportable, examples: ExportExamples, inputs: Mapping[str, Array]) -> Batch:
    signature = model.main_signature
    rows = len(next(iter(inputs.values())))
    row_bytes = max(1, sum(map(count_bytes, inputs.values())) // rows)
    chunk = find_fixed_batch(signature) or _CHUNK
    rows = min(rows, max(chunk, _MAX_BYTES // row_bytes))
    answers: list[Batch] = []
    for start in range(0, rows, chunk):
        numbers = np.arange(start, start + chunk)
        if find_fixed_batch(signature) is None:
            numbers = numbers[numbers < rows]
        part = {name: array[numbers % rows] for name, array in inputs.items()}
        batch = model.make_inputs(signature, examples, part)
        assert batch is not None, "the main signature's inputs fit, or were refused"
        answers.append(model.predict(batch, signature_name=signature.name))
    return {name: np.concatenate([one[name] for one in answers])[:rows] for name in answers[0]}


def decide_classes(model: Exportable, answers: Mapping[str, Array]) -> Array | None:
    """int64 (rows,): the class that the first output with one class a row says of each."""
    for name, answer in answers.items():
        head = model.heads.get(name)
        if head is None or head.task not in ("multiclass", "binary"):
            continue
        decided = head.decide(answer)
        if decided.ndim == 1:
            return decided
    return None


def fit_targets(
    model: Exportable, examples: Examples, answers: Mapping[str, Array]
) -> dict[str, Array]:
    """Labels as the heads of the outputs that they are for take them.

    Raises:
        DatasetError: They name no output, or are not what it answers.
    """
    _check_names(model, answers)
    outputs = [name for name in model.main_signature.outputs if name in model.heads]
    found: dict[str, Array] = {}
    for name, target in examples.targets.items():
        named = model.name_targets({name: target})
        is_alone = len(examples.targets) == 1
        if not named or (name and not is_alone and not _is_name(model, name)):
            raise DatasetError(
                f"labels {name!r} are for none of the outputs; the model answers "
                f"{', '.join(outputs) or 'no numbers'}"
            )
        (output,) = named
        found[name] = _fit_target(output, model.heads[output], target, answers[output])
    return found


def _check_names(model: Exportable, answers: Mapping[str, Array]) -> None:
    for name, answer in answers.items():
        head = model.heads.get(name)
        if head is None or not head.has_classes or not head.class_names:
            continue
        width = 2 if head.task == "binary" else answer.shape[-1]
        if len(head.class_names) != width:
            raise DatasetError(
                f"{len(head.class_names)} class names ({', '.join(head.class_names[:4])} …) for "
                f"output {name!r}, which has {width} classes"
            )


def _is_name(model: Exportable, name: str) -> bool:
    """Whether labels of several go to an output by their name and not by being alone."""
    return len(model.name_targets({name: np.zeros(0), f"not {name}": np.zeros(0)})) == 1


def _fit_target(output: str, head: Head, target: Array, answer: Array) -> Array:
    held = f"the labels are {target.dtype} {target.shape}"
    width = answer.shape[-1] if answer.ndim > 1 else 1
    if head.task == "multiclass":
        target = _to_classes(target, output, "one class a score")
        if target.shape[1:] != answer.shape[1:-1]:
            raise DatasetError(
                f"output {output!r} answers {answer.shape[1:]} a row, {width} scores for "
                f"{answer.shape[1:-1] or 'each row'}; {held}"
            )
        if int(target.max()) >= width:
            raise DatasetError(
                f"the labels hold class {int(target.max())}, and output {output!r} has {width} "
                f"scores, for classes 0 to {width - 1}"
            )
        return target
    if head.task == "binary":
        target = _to_classes(target, output, "one score for two classes")
        if target.size != len(target) or int(target.max()) > 1:
            raise DatasetError(
                f"output {output!r} says which of two classes a row is, 0 or 1; {held}, up to "
                f"{int(target.max())}"
            )
        return target.reshape(len(target))
    if head.task == "multilabel":
        if target.ndim == 1 and target.dtype.kind in "iu" and width > 1 and target.max() < width:
            target = np.eye(width, dtype=np.float32)[target]
        if not np.isin(target, (0, 1)).all() or target.size != len(target) * answer[0].size:
            raise DatasetError(
                f"output {output!r} scores {answer.shape[1:]} labels a row, each 0 or 1; {held}"
            )
        return target.astype(np.float32).reshape(len(target), *answer.shape[1:])
    if target.dtype.kind not in "biuf" or target.size != len(target) * answer[0].size:
        raise DatasetError(
            f"output {output!r} answers values, {answer.shape[1:] or 'one'} a row; {held}"
        )
    return target.astype(np.float32).reshape(len(target), *(answer.shape[1:] or (1,)))


def _to_classes(target: Array, output: str, what: str) -> Array:
    if target.dtype.kind == "f":
        whole = target.astype(np.int64)
        wrong = np.flatnonzero((whole != target).reshape(len(target), -1).any(axis=1))
        if len(wrong) or whole.min() < 0:
            row = int(wrong[0]) if len(wrong) else int(np.flatnonzero(whole.min(axis=-1) < 0)[0])
            raise DatasetError(
                f"output {output!r} has {what}, and the labels hold {target[row].ravel()[0]:g} in "
                f"row {row}; give class numbers from 0, or say task='regression' if these are "
                "values"
            )
        target = whole.reshape(len(whole)) if whole.size == len(whole) else whole
    return target


def warn_of_scale(
    model: Exportable, examples: ExportExamples, answers: Mapping[str, Array]
) -> None:
    """Logs where labelled pictures on another scale would be answered far better."""
    name = next(iter(answers))
    if len(answers) != 1 or len(examples.test.inputs) != 1 or name not in model.heads:
        return
    head, targets = model.heads[name], model.name_targets(examples.test.targets)
    ((key, rows),) = examples.test.inputs.items()
    is_pictures = rows.ndim in (3, 4) and rows.dtype.kind in "uf"
    if name not in targets or head.task not in ("multiclass", "binary") or not is_pictures:
        return
    asked = slice(min(len(answers[name]), 256))
    right = targets[name][asked]
    if right.ndim != 1:
        return
    share = float(np.mean(head.decide(answers[name][asked]) == right))
    best, hint = share + _FAR_BETTER, ""
    for tried, inputs, remedy in _rescale(rows[asked], examples):
        got = _answer(model, tried, {key: inputs})[name]
        found = float(np.mean(head.decide(got) == right[: len(got)]))
        if found > best:
            best, hint = found, remedy
    if hint:
        _LOG.warning(
            "the model answers %.0f %% of the labelled examples right as they are, and %.0f %% of "
            "them on another scale: %s",
            share * 100,
            best * 100,
            hint,
        )


def _rescale(rows: Array, examples: ExportExamples) -> list[tuple[ExportExamples, Array, str]]:
    """The rows on other scales, each with what makes them so."""
    if examples.pixels is not None:
        return [
            (
                dataclasses.replace(examples, pixels=scale),
                rows,
                f"give scale=({scale.low:g}, {scale.high:g}) (--scale {scale.low:g} "
                f"{scale.high:g})",
            )
            for scale in _SCALES
            if scale != examples.pixels
        ]
    if rows.dtype.kind != "f":
        return []
    if float(rows.min()) >= 0 and float(rows.max()) <= 1:
        return [
            (examples, rows * np.float32(255), "the model wants 0..255: multiply them by 255"),
            (examples, rows * 2 - 1, "the model wants -1..1: give x * 2 - 1"),
        ]
    if float(rows.min()) >= 0 and float(rows.max()) <= 255:
        return [
            (examples, rows / 255, "the model wants 0..1: divide them by 255"),
            (examples, rows / 127.5 - 1, "the model wants -1..1: give x / 127.5 - 1"),
        ]
    return []
