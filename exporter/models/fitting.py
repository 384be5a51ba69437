"""A given model and given labels, brought together: classes, targets by head."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from contract.errors import DatasetError
from contract.heads import Head
from contract.signature import Array, Batch
from exporter.artifacts.exportable import Exportable
from exporter.artifacts.golden import choose_chunk, find_fixed_batch
from exporter.data.examples import Examples, ExportExamples, count_bytes

_CHUNK = 64
_MAX_BYTES = 64 * 2**20
"""Of the rows that are answered to learn which classes there are."""


def answer_rows(model: Exportable, examples: ExportExamples, most: int) -> Batch:
    """What the main signature answers to the first rows, at most `most` of them."""
    return answer_inputs(model, examples, examples.test.take(slice(most)).inputs)


def answer_inputs(
    model: Exportable, examples: ExportExamples, inputs: Mapping[str, Array]
) -> Batch:
    """What the main signature answers to rows by the data's own names, cut at 64 MB of them."""
    signature = model.main_signature
    rows = len(next(iter(inputs.values())))
    row_bytes = max(1, sum(map(count_bytes, inputs.values())) // rows)
    chunk = choose_chunk(signature, examples, _CHUNK)
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
        decided = head.decide_rows(answer) if head is not None else None
        if decided is not None:
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
