"""Examples for `classify` and `regress`: mappings of features, or columns of arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from contract.errors import TensorMismatchError
from contract.signature import Array

Features = Mapping[str, Any]
"""Feature name to a value or a sequence of values: floats, integers, booleans, bytes, str."""

Examples = Mapping[str, Any] | Sequence[Features]
"""A mapping of columns, each with one entry per example, or a sequence of examples."""


def split_examples(examples: Examples) -> list[dict[str, Array]]:
    """One mapping of feature name to a flat array per example."""
    if isinstance(examples, Mapping):
        columns = {name: np.asarray(column) for name, column in examples.items()}
        lengths = {name: len(column) if column.ndim else -1 for name, column in columns.items()}
        if len(set(lengths.values())) != 1 or -1 in lengths.values():
            raise TensorMismatchError(
                f"got columns of {lengths or 'nothing'}; every feature needs one entry per example"
            )
        count = next(iter(lengths.values()))
        rows: Sequence[Features] = [
            {name: column[row] for name, column in columns.items()} for row in range(count)
        ]
    else:
        rows = examples
    if not rows:
        raise TensorMismatchError("got no examples; give at least one")
    return [read_features(row, f"example {number}") for number, row in enumerate(rows)]


def read_features(features: Features, where: str) -> dict[str, Array]:
    """Feature name to a flat array of float32, int64, or objects of bytes."""
    if not isinstance(features, Mapping):
        raise TensorMismatchError(
            f"{where} is a {type(features).__name__}; it must map feature names to values"
        )
    return {name: _read_values(value, f"{where}, {name!r}") for name, value in features.items()}


def _read_values(value: Any, where: str) -> Array:
    array = np.asarray(value, object) if isinstance(value, bytes) else np.asarray(value)
    if array.dtype.kind in "SUT" or array.dtype == object:
        # numpy's fixed-width bytes lose trailing NULs: go back to what was given.
        array = np.asarray(value, object)
    flat = array.reshape(-1)
    kind = array.dtype.kind
    if kind in "biu":
        return flat.astype(np.int64)
    if kind == "f" or array.dtype.name == "bfloat16":
        return flat.astype(np.float32)
    texts = [item.encode() if isinstance(item, str) else item for item in flat.tolist()]
    if not all(isinstance(item, bytes) for item in texts):
        raise TensorMismatchError(
            f"{where}: a feature holds floats, integers or bytes, not {value!r:.80}"
        )
    held = np.empty(len(texts), object)
    held[:] = texts
    return held
