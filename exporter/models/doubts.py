"""Whether a model was shown numbers that it does not know: another scale, or light for dark.

There are no training data to look at, so that labels must tell: rows that the model gets wrong, and
would get right on another scale.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Iterator, Mapping

import numpy as np

from contract.heads import Head
from contract.signature import Array
from exporter.artifacts.exportable import Exportable
from exporter.data.examples import ExportExamples
from exporter.data.pixels import PixelScale
from exporter.models.fitting import answer_inputs

_LOG = logging.getLogger(__name__)

_MOST_ROWS = 256
_FAR_BETTER = 0.25
"""The share of rows, on the average over the classes, that must be right beyond those that are so
as they were given. An answer that is always the same class is right in one share of the classes,
and no better than another."""
_RISK = 1e-3
"""Of speaking up by chance, for each way that is tried (McNemar's test, one-sided)."""


@dataclasses.dataclass(frozen=True)
class _Trial:
    """Rows as they may have been meant, and what to do if so."""

    examples: ExportExamples
    rows: Array
    remedy: str


def warn_of_doubts(
    model: Exportable, examples: ExportExamples, answers: Mapping[str, Array]
) -> None:
    """Logs where labelled rows would be answered far better on another scale, or inverted.

    A model that gets three quarters of the rows right is never doubted, and nothing is tried.
    """
    name = next(iter(answers))
    if len(answers) != 1 or len(examples.test.inputs) != 1 or name not in model.heads:
        return
    head, targets = model.heads[name], model.name_targets(examples.test.targets)
    ((key, rows),) = examples.test.inputs.items()
    if name not in targets or not head.has_one_class:
        return
    right = targets[name][: min(len(answers[name]), _MOST_ROWS)]
    if right.ndim != 1 or rows.dtype.kind not in "uif" or rows.ndim < 2:
        return
    hits = _decide(head, answers[name], right)
    share = best = _average(hits, right)
    # Classes the other way round explain so much, without any other pictures.
    known = max(share + _FAR_BETTER, 1 - share if len(np.unique(right)) == 2 else 0.0)
    hint = ""
    if known > 1:
        return
    for trial in _list_trials(model, rows[: len(right)], examples):
        got = answer_inputs(model, trial.examples, {key: trial.rows})[name]
        tried = _decide(head, got, right)
        found = _average(tried, right[: len(tried)])
        if found > max(best, known) and _is_no_chance(hits[: len(tried)], tried):
            best, hint = found, trial.remedy
    if hint:
        _LOG.warning(
            "the model answers %.0f %% of the labelled examples right as they are, and %.0f %% %s",
            share * 100,
            best * 100,
            hint,
        )


def _decide(head: Head, answer: Array, right: Array) -> Array:
    """bool (rows,): which rows are answered right."""
    decided = head.decide(answer[: len(right)])
    hits: Array = decided == right[: len(decided)]
    return hits


def _average(hits: Array, right: Array) -> float:
    """The share of rows that are right in each class, averaged over the classes."""
    return float(np.mean([hits[right == label].mean() for label in np.unique(right)]))


def _is_no_chance(before: Array, after: Array) -> bool:
    """Whether so many more rows right are no accident, by the rows that changed."""
    gained = int(np.count_nonzero(after & ~before))
    changed = gained + int(np.count_nonzero(before & ~after))
    tail = sum(math.comb(changed, count) for count in range(gained, changed + 1))
    return changed > 0 and tail / 2**changed < _RISK


def _list_trials(model: Exportable, rows: Array, examples: ExportExamples) -> Iterator[_Trial]:
    """The rows on other scales and inverted, each with what makes them so."""
    if examples.pixels is not None:
        for scale in dict.fromkeys((examples.pixels, *_SCALES)):
            other = dataclasses.replace(examples, pixels=scale)
            flag = f"scale=({scale.low:g}, {scale.high:g}) (--scale {scale.low:g} {scale.high:g})"
            if scale != examples.pixels:
                yield _Trial(other, rows, f"of them on another scale: give {flag}")
            with_flag = f", with {flag}" if scale != examples.pixels else ""
            yield _Trial(other, 255 - rows, _invert("255 - x") + with_flag)
        return
    if not _takes_floats(model):
        return
    numbers = rows.astype(np.float32)
    low, high = float(numbers.min()), float(numbers.max())
    seen = next((one for one in _SCALES if one.low <= low and high <= one.high), None)
    if seen is None:
        return
    inverted = np.float32(seen.low + seen.high) - numbers
    yield _Trial(examples, inverted, _invert(f"{seen.low + seen.high:g} - x"))
    for wanted, remedy in _REMEDIES[seen].items():
        stretched = (numbers - seen.low) / (seen.high - seen.low)
        scaled = (stretched * (wanted.high - wanted.low) + wanted.low).astype(np.float32)
        yield _Trial(examples, scaled, f"of them on another scale: {remedy}")
        swapped = np.float32(wanted.low + wanted.high) - scaled
        both = f"{_invert('them inverted')}, on another scale: {remedy}"
        yield _Trial(examples, swapped, both)


def _invert(what: str) -> str:
    return (
        "with light and dark exchanged, as it was trained: give "
        f"{what}, and `clients predict` --invert"
    )


def _takes_floats(model: Exportable) -> bool:
    specs = model.main_signature.inputs.values()
    return all(spec.dtype in ("float32", "float64", "float16", "bfloat16") for spec in specs)


_UNIT, _SIGNED, _BYTES = PixelScale(0, 1), PixelScale(-1, 1), PixelScale(0, 255)
_SCALES = (_UNIT, _SIGNED, _BYTES)
_REMEDIES: dict[PixelScale, dict[PixelScale, str]] = {
    _UNIT: {
        _BYTES: "the model wants 0..255: multiply them by 255",
        _SIGNED: "the model wants -1..1: give x * 2 - 1",
    },
    _SIGNED: {
        _UNIT: "the model wants 0..1: give (x + 1) / 2",
        _BYTES: "the model wants 0..255: give (x + 1) * 127.5",
    },
    _BYTES: {
        _UNIT: "the model wants 0..1: give them as uint8 pictures with scale=(0, 1) (--scale 0 1), "
        "or divided by 255",
        _SIGNED: "the model wants -1..1: give them as uint8 pictures with scale=(-1, 1) "
        "(--scale -1 1), or x / 127.5 - 1",
    },
}
"""The scale that rows seem to be on, to those that a model may want, and what gets them there."""
