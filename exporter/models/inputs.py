"""Which of the data's arrays goes to which input of a model."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from contract.errors import DatasetError
from contract.signature import Array
from exporter.data.examples import PLACE


def name_rows(inputs: Mapping[str, Array], wanted: Mapping[str, str]) -> dict[str, Array]:
    """Arrays of the data by the served names of a model's inputs.

    By name, served or the model's own. Data of one array without a name fit any model: the one
    array goes to every input, in the shape that each takes. Columns of numbers are one array for
    a model of one input, in their order; arrays that have places instead of names go to the inputs
    in theirs.

    Args:
        inputs: The data's name to rows.
        wanted: Served name to the model's own.

    Raises:
        DatasetError: Names which inputs the data lack, and which they have.
    """
    if set(inputs) == {""} or (len(inputs) == 1 and len(wanted) == 1):
        (rows,) = inputs.values()
        return dict.fromkeys(wanted, rows)
    if len(inputs) == len(wanted) and all(name.startswith(PLACE) for name in inputs):
        return dict(zip(wanted, inputs.values(), strict=True))
    if columns := find_vector(inputs, wanted):
        rows = np.stack([inputs[name].astype(np.float32) for name in columns], axis=1)
        return dict.fromkeys(wanted, rows)
    found = {}
    for served, own in wanted.items():
        name = served if served in inputs else own
        if name not in inputs:
            raise DatasetError(
                f"the model takes {', '.join(wanted.values())}, and the examples hold "
                f"{', '.join(inputs)}; give an array or a column for {own!r}"
                + _suggest_labels(inputs)
            )
        found[served] = inputs[name]
    return found


def find_vector(inputs: Mapping[str, Array], wanted: Mapping[str, str]) -> tuple[str, ...]:
    """The columns that are one vector for a model of one input, in their order; () for others.

    Args:
        inputs: The data's name to rows.
        wanted: Served name to the model's own.
    """
    is_table = all(one.ndim == 1 and one.dtype.kind in "fiub" for one in inputs.values())
    if len(wanted) != 1 or len(inputs) < 2 or not is_table:
        return ()
    return () if inputs.keys() & {*wanted, *wanted.values()} else tuple(inputs)


def _suggest_labels(inputs: Mapping[str, Array]) -> str:
    """What to say of arrays one of which may be what the rows should be answered."""
    if len(inputs) < 2:
        return ""
    return "; if one of them holds the labels, name it: labels='NAME' (--labels NAME)"
