"""Arrays for hypothesis."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from hypothesis import strategies as st

from contract.signature import Array

shapes = st.lists(st.integers(0, 4), max_size=3).map(tuple)


def draw_array(draw: st.DrawFn, shape: tuple[int, ...], kind: Any, *, longest: int) -> Array:
    """Any bits of a dtype; of "O", strings of at most `longest` bytes."""
    count = math.prod(shape)
    if kind == "O":
        strings = draw(st.lists(st.binary(max_size=longest), min_size=count, max_size=count))
        array = np.empty(count, object)
        array[:] = strings
        return array.reshape(shape)
    dtype = np.dtype(kind)
    raw = draw(st.binary(min_size=count * dtype.itemsize, max_size=count * dtype.itemsize))
    if kind == "?":
        return (np.frombuffer(raw, np.uint8) % 2).astype(bool).reshape(shape)
    return np.frombuffer(raw, dtype).reshape(shape)
