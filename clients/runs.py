"""One `predict_many`, all but its I/O: rows in, calls to make, answers in, parts out.

A shell repeats, until `done`: give items while `wants_item()`, make the calls of
`take_sends()`, deliver `take_parts()`; and if there were none, wait for a call to end (or
`seconds_to_wait()`) and `record` it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence

from clients.batching import BatchFlow
from clients.checking import BatchLike, refuse_non_finite
from clients.memory import Known
from clients.operations import Operations, Prepared, count_rows
from clients.results import Part, Progress
from clients.rows import BatchCutter, find_bad_rows, require_batch_axis
from clients.slots import Outcome, Piece
from clients.steps import Call, Steps
from contract.errors import Code, ConfigError, InternalError, PlumblineError
from contract.servable import ModelSpec
from contract.signature import Array, Batch, find_signature

ProgressCallback = Callable[[Progress], None]


class RunOptions:
    """What a `predict_many` was asked for, beside its rows.

    Raises:
        ConfigError: A number that cannot be.
    """

    def __init__(
        self,
        *,
        batch_size: int | None,
        max_in_flight: int,
        output_filter: Sequence[str],
        timeout_s: float,
        progress: ProgressCallback | None,
    ) -> None:
        if max_in_flight < 1 or (batch_size is not None and batch_size < 1) or timeout_s <= 0:
            raise ConfigError(
                f"batch_size {batch_size}, max_in_flight {max_in_flight}, timeout_s {timeout_s}: "
                "give numbers above 0"
            )
        self.batch_size = batch_size
        self.max_in_flight = max_in_flight
        self.output_filter = tuple(output_filter)
        self.timeout_s = timeout_s
        self.progress = progress


class PredictRun:
    """The state of one run.

    Args:
        operations: Of the client.
        spec: What is asked.
        options: How.
        known: The signatures, just fetched.
        total_rows: All rows there are; None for an iterator.

    Raises:
        SignatureNotFoundError: The version has no such signature.
        TensorMismatchError: It has no batch axis.
    """

    def __init__(
        self,
        operations: Operations,
        spec: ModelSpec,
        options: RunOptions,
        *,
        known: Known,
        total_rows: int | None,
    ) -> None:
        signature = find_signature(known.signatures, spec.signature_name)
        require_batch_axis(signature)
        self._operations = operations
        self._spec = spec
        self._options = options
        self._known = known
        self._total_rows = total_rows
        self._cutter = BatchCutter(signature, options.batch_size)
        self._cuts: Iterator[dict[str, Array]] = iter(())
        self._closed = False
        self._num_failed = 0
        self._flow = BatchFlow(
            operations.retry,
            max_in_flight=options.max_in_flight,
            jitter=random.random,
            total_rows=total_rows,
        )

    @property
    def done(self) -> bool:
        """Whether every row was delivered."""
        return self._flow.done

    def wants_item(self) -> bool:
        """Whether another item of the input is needed before anything more can be sent."""
        while self._flow.wants_rows:
            try:
                batch = next(self._cuts, None)
            except PlumblineError as error:
                for held in self._cutter.flush():
                    self._add(held)
                self._flow.fail(error)
                return False
            if batch is not None:
                self._add(batch)
            elif self._closed:
                self._flow.finish()
            else:
                return True
        return False

    def take_item(self, item: BatchLike) -> None:
        """The next row or batch, or all rows at once."""
        self._cuts = self._cutter.cut(item)

    def close(self) -> None:
        """There are no more items."""
        self._cuts = self._cutter.flush()
        self._closed = True

    def take_sends(self) -> list[tuple[Piece, Call]]:
        """The calls to make at once."""
        return [
            (piece, self._write(piece)) for piece in self._flow.take_sends(self._operations.clock())
        ]

    def seconds_to_wait(self) -> float | None:
        """The longest to wait for a call to end; None for as long as it takes."""
        return self._flow.seconds_to_wait(self._operations.clock())

    def read(self, piece: Piece, body: bytes) -> Steps[Outcome]:
        """The outputs in a reply, or what is wrong with it."""
        deadline = self._operations.clock() + self._options.timeout_s
        try:
            outputs = yield from self._operations.read_answer(
                body,
                Prepared(piece.batch, piece.num_rows, self._known),
                self._spec,
                self._options.output_filter,
                deadline,
            )
            require_rows(outputs, piece.num_rows)
        except PlumblineError as error:
            return error
        return outputs

    def record(self, piece: Piece, outcome: Outcome) -> None:
        """How a call ended."""
        self._flow.record(piece, outcome, self._operations.clock())
        limit = self._flow.size_limit
        if limit is not None and self._cutter.batch_size > limit:
            self._cutter.batch_size = limit

    def take_parts(self) -> list[Part]:
        """What may be delivered; errors as of `BatchFlow.take_parts`."""
        return self._flow.take_parts()

    def tell(self, part: Part) -> None:
        """Reports progress, once a part is about to be delivered."""
        self._num_failed += len(part.failed)
        if self._options.progress is not None:
            self._options.progress(Progress(part.rows.stop, self._num_failed, self._total_rows))

    def _add(self, batch: Batch) -> None:
        bad = find_bad_rows(batch, self._operations.checks)
        first = self._flow.num_rows
        errors: dict[int, PlumblineError] = {
            row: refuse_non_finite(name, first + row) for row, name in bad.items()
        }
        self._flow.add(batch, count_rows(batch), errors)

    def _write(self, piece: Piece) -> Call:
        question = self._operations.dialect.ask_predict(
            self._spec, piece.batch, self._options.output_filter
        )
        return Call(*question, self._options.timeout_s)


def require_rows(outputs: Batch, num_rows: int) -> None:
    """Refuses outputs that cannot be told apart by row.

    Raises:
        InternalError: Names the output; code DATA_LOSS.
    """
    for name, array in outputs.items():
        if array.ndim == 0 or len(array) != num_rows:
            raise InternalError(
                f"the server answered {name!r} with shape {array.shape} to {num_rows} rows; "
                "an output without an entry per row needs predict",
                code=Code.DATA_LOSS,
            )
