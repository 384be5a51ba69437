"""Whether the examples are on the scale that a model was trained on, as far as its answers tell.

Nobody can see from a trained model which numbers it wants. The labels show it: a model that is
right far more often about the same rows divided by 255, or inverted, was trained on those.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

import numpy as np

from contract.signature import Array, Signature
from exporter.artifacts.exportable import Exportable
from exporter.data.examples import ExportExamples, spread_rows

_LOG = logging.getLogger(__name__)

_ROWS, _FEWEST = 64, 20
_MUCH_BETTER = 0.25
"""Of the rows: a model that merely generalises badly does not gain that much."""


def warn_of_scale(model: Exportable, examples: ExportExamples) -> str:
    """Logs, and returns, what is wrong with the examples' scale; "" where nothing seems to be."""
    signature = model.main_signature
    rows = examples.test.take(spread_rows(len(examples.test), _ROWS))
    targets = {
        name: array
        for name, array in model.name_targets(rows.targets).items()
        if name in model.heads and model.heads[name].task in ("multiclass", "binary")
    }
    inputs = model.make_inputs(signature, examples, rows.inputs)
    if len(rows) < _FEWEST or not targets or inputs is None or len(inputs) != 1:
        return ""
    ((name, numbers),) = inputs.items()
    is_fixed = any(spec.shape and spec.shape[0] is not None for spec in signature.inputs.values())
    if numbers.dtype.kind != "f" or is_fixed:
        return ""
    given = _measure(model, signature, {name: numbers}, targets)
    best, best_advice = given + _MUCH_BETTER, ""
    if best > 1:
        return ""
    for advice, changed in _list_changes(numbers):
        share = _measure(model, signature, {name: changed.astype(numbers.dtype)}, targets)
        if share >= best:
            best, best_advice = share, advice
    if not best_advice:
        return ""
    text = (
        "the examples seem to be on another scale than the model was trained on: it is right "
        f"about {given:.0%} of them as they are, and about {best:.0%} of them {best_advice}"
    )
    _LOG.warning("%s", text)
    return text


def _list_changes(numbers: Array) -> list[tuple[str, Array]]:
    """What people forget, with what mends it."""
    lowest, highest = float(numbers.min()), float(numbers.max())
    if lowest < 0 or highest > 255 or highest == lowest:
        return []
    is_bytes = highest > 1
    whole = 255 if is_bytes else 1
    inverted = (
        "when inverted: give 255 - x" if is_bytes else "when inverted: give 1 - x",
        whole - numbers,
    )
    if not is_bytes:
        return [("times 255: give pixels of 0..255", numbers * 255), inverted]
    return [
        ("divided by 255: give x / 255, or uint8 pixels with scale=(0, 1)", numbers / 255),
        ("in -1..1: give x / 127.5 - 1, or uint8 pixels with scale=(-1, 1)", numbers / 127.5 - 1),
        inverted,
    ]


def _measure(
    model: Exportable,
    signature: Signature,
    inputs: Mapping[str, Array],
    targets: Mapping[str, Array],
) -> float:
    """Share of rows whose class is the labelled one, over all targets."""
    answers = model.predict(dict(inputs), signature_name=signature.name)
    shares = [
        float((model.heads[name].decide(answers[name]).reshape(labels.shape) == labels).mean())
        for name, labels in targets.items()
    ]
    return float(np.mean(shares))
