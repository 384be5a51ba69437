"""The examples of a Classify or Regress request, as the tensor of strings a graph parses."""

from __future__ import annotations

from typing import Any

import numpy as np

from contract.errors import RequestError
from contract.signature import Array


def serialize_examples(message: Any) -> Array:
    """Serialized tf.Examples, one per row.

    A context is put before each example's own bytes: protobuf merges what is concatenated,
    and an example's own feature wins (`servables/tensorflow/util.cc`).

    Args:
        message: An `Input`.

    Returns:
        Objects of bytes, shape (examples,).

    Raises:
        RequestError: There are no examples.
    """
    kind = message.WhichOneof("kind")
    examples = getattr(message, kind).examples if kind else ()
    if not examples:
        raise RequestError("Input is empty.")
    context = (
        message.example_list_with_context.context.SerializeToString()
        if kind == "example_list_with_context"
        else b""
    )
    rows = np.empty(len(examples), object)
    rows[:] = [context + example.SerializeToString() for example in examples]
    return rows
