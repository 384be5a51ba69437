"""TensorFlow Serving's `BatchingParameters`, as a value."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True, slots=True)
class BatchingParameters:
    """TensorFlow Serving's `BatchingParameters`, with its defaults.

    Attributes:
        max_batch_size: Rows of one batch.
        batch_timeout_micros: How long the first task of a batch waits for company.
        max_enqueued_batches: Batches that may wait; beyond them UNAVAILABLE.
        num_batch_threads: Batches run at a time; 0 for the number of CPUs.
        allowed_batch_sizes: Sizes to pad up to; increasing, the last one `max_batch_size`.
        pad_variable_length_inputs: Pad inputs whose later axes differ to one shape.
    """

    max_batch_size: int = 1000
    batch_timeout_micros: int = 0
    max_enqueued_batches: int = 10
    num_batch_threads: int = 0
    allowed_batch_sizes: tuple[int, ...] = ()
    pad_variable_length_inputs: bool = False

    def round_up(self, size: int) -> int:
        """The size that a batch of `size` rows is padded to; 0 rows have none to repeat."""
        if size == 0:
            return 0
        return next((allowed for allowed in self.allowed_batch_sizes if allowed >= size), size)
