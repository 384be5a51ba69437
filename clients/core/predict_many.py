"""One `predict_many`, all but its I/O: rows in, calls to make, answers in, parts out.

A shell repeats, until `done`: give items while `wants_item()`, make the calls of
`take_sends()`, deliver `take_parts()`; and if there were none, wait for a call to end (or
`seconds_to_wait()`) and `record` it.
"""

from __future__ import annotations

import dataclasses
import heapq
import random
from collections import deque
from collections.abc import Callable, Collection, Iterator

import numpy as np

from clients.core.checking import BatchLike, CachedSignatures, refuse_non_finite
from clients.core.effects import Call, Effects
from clients.core.operations import Operations, Prepared, count_rows
from clients.core.retry import Remedy, RetryPolicy, choose_remedy
from clients.core.rows import BatchCutter, find_bad_rows, require_batch_axis, slice_rows
from clients.results import (
    FailedRow,
    Part,
    Progress,
    UnansweredRowsError,
    WholeAnswer,
    concatenate_rows,
)
from contract.errors import ConfigError, PlumblineError
from contract.servable import ModelSpec
from contract.signature import Array, Batch, Hints, find_signature

ProgressCallback = Callable[[Progress], None]

_NO_ROWS: Array = np.empty(0, np.int64)

Outcome = dict[str, Array] | PlumblineError
"""Output name to array, or why there is none."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """What a `predict_many` was asked for, beside its rows.

    Raises:
        ConfigError: A number that cannot be.
    """

    batch_size: int | None
    max_in_flight: int
    output_filter: tuple[str, ...]
    timeout_s: float
    progress: ProgressCallback | None

    def __post_init__(self) -> None:
        batch_size = 1 if self.batch_size is None else self.batch_size
        if self.max_in_flight < 1 or batch_size < 1 or self.timeout_s <= 0:
            raise ConfigError(
                f"batch_size {self.batch_size}, max_in_flight {self.max_in_flight}, "
                f"timeout_s {self.timeout_s}: give numbers above 0"
            )


class PredictRun:
    """The state of one run; `cached` are the signatures, just fetched.

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
        cached: CachedSignatures,
        total_rows: int | None,
    ) -> None:
        signature = find_signature(cached.signatures, spec.signature_name)
        require_batch_axis(signature)
        self._operations = operations
        self._spec = spec
        self._options = options
        self._cached = cached
        self._total_rows = total_rows
        self._cutter = BatchCutter(
            signature, options.batch_size, Hints(frozenset(cached.signatures))
        )
        self._cuts: Iterator[dict[str, Array]] = iter(())
        self._closed = False
        # One that has the same first axis whatever is sent has no entry per row.
        self._fixed = {
            name
            for name, one in signature.outputs.items()
            if one.shape is not None and (not one.shape or one.shape[0] is not None)
        }
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
        ask, output_filter = self._operations.dialect.ask_predict, self._options.output_filter
        return [
            (piece, Call(*ask(self._spec, piece.batch, output_filter), self._options.timeout_s))
            for piece in self._flow.take_sends(self._operations.clock())
        ]

    def seconds_to_wait(self) -> float | None:
        """The longest to wait for a call to end; None for as long as it takes."""
        return self._flow.seconds_to_wait(self._operations.clock())

    def read(self, piece: Piece, body: bytes) -> Effects[Outcome]:
        """The outputs in a reply, or what is wrong with it."""
        deadline = self._operations.clock() + self._options.timeout_s
        try:
            outputs = yield from self._operations.read_answer(
                body,
                Prepared(piece.batch, piece.num_rows, self._cached),
                self._spec,
                self._options.output_filter,
                deadline,
            )
        except PlumblineError as error:
            return error
        for name, array in outputs.items():
            if array.ndim == 0 or len(array) != piece.num_rows or name in self._fixed:
                self._flow.whole_names.add(name)
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
        first = self._flow.num_rows
        errors: dict[int, PlumblineError] = {
            row: refuse_non_finite(name, first + row)
            for row, name in find_bad_rows(batch, self._operations.checks).items()
        }
        self._flow.add(batch, count_rows(batch), errors)


class BatchFlow:
    """The plan of one `predict_many`: what to send next, what may be delivered, when to stop.

    It has no clock either: it is asked with `take_sends` what to send, told with `record` how that
    ended, and asked with `take_parts` what to deliver. It promises:

    - Parts come in the order of the rows, and every row is in exactly one part.
    - At most `max_in_flight` batches are held, sent or answered but not yet delivered.
    - A batch that a row may have made fail is sent again alone, with nothing else of ours in
      flight (a server may merge batches, and then a bad row fails its neighbours too), and then
      in halves until the bad rows stand alone.

    Attributes:
        num_rows: Rows taken in so far.
        size_limit: The most rows of a batch that a server turned out to take, if it
            refused larger ones.
        whole_names: Outputs that turned out to have no entry per row.
    """

    def __init__(
        self,
        retry: RetryPolicy,
        *,
        max_in_flight: int,
        jitter: Callable[[], float],  # uniform in 0..1
        total_rows: int | None = None,
    ) -> None:
        self.num_rows = 0
        self.size_limit: int | None = None
        self.whole_names: set[str] = set()
        self._retry = retry
        self._max_in_flight = max_in_flight
        self._jitter = jitter
        self._total_rows = total_rows
        self._slots: deque[Slot] = deque()
        self._queue: list[Piece] = []
        self._suspects: deque[Piece] = deque()
        self._num_sent = 0
        self._is_lone_sent = False
        self._has_answers = False
        self._ended = False

    @property
    def wants_rows(self) -> bool:
        """Whether one more batch may be added."""
        return not self._ended and not self._suspects and len(self._slots) < self._max_in_flight

    @property
    def done(self) -> bool:
        """Whether every row was delivered."""
        return self._ended and not self._slots

    def add(self, batch: Batch, num_rows: int, bad_rows: dict[int, PlumblineError]) -> None:
        """Takes in the next batch."""
        rows = range(self.num_rows, self.num_rows + num_rows)
        self.num_rows = rows.stop
        indices = np.arange(rows.start, rows.stop, dtype=np.int64)
        if bad_rows:
            good = np.setdiff1d(np.arange(num_rows), list(bad_rows))
            batch, indices = {name: array[good] for name, array in batch.items()}, indices[good]
        refused = tuple(FailedRow(rows.start + row, error) for row, error in bad_rows.items())
        slot = Slot(rows, indices, batch, refused)
        self._slots.append(slot)
        if len(indices):
            slot.pieces.append(Piece(slot, 0, len(indices)))
            heapq.heappush(self._queue, slot.pieces[0])

    def finish(self) -> None:
        """There are no more rows."""
        self._ended = True

    def fail(self, error: PlumblineError) -> None:
        """The next rows cannot be had; what came before is still answered."""
        self._ended = True
        start = self.num_rows
        self._slots.append(Slot(range(start, start), np.empty(0, np.int64), {}, error=error))

    def take_sends(self, now: float) -> list[Piece]:
        """What to send at once."""
        taken: list[Piece] = []
        if self._is_lone_sent:
            return taken
        if self._suspects:
            if self._num_sent == 0 and self._suspects[0].ready_at <= now:
                taken.append(self._suspects.popleft())
                self._is_lone_sent = True
        else:
            while self._queue and self._queue[0].ready_at <= now:
                taken.append(heapq.heappop(self._queue))
        self._num_sent += len(taken)
        return taken

    def seconds_to_wait(self, now: float) -> float | None:
        """Until there is something to send; None when only answers can bring it about."""
        waiting = self._suspects or self._queue
        if not waiting or self._is_lone_sent or (self._suspects and self._num_sent):
            return None
        return max(0.0, waiting[0].ready_at - now)

    def record(self, piece: Piece, outcome: Outcome, now: float) -> None:
        """How a send ended."""
        self._num_sent -= 1
        self._is_lone_sent = False  # it flies alone: while it does, nothing else is recorded
        if piece.slot.dropped:
            return
        if isinstance(outcome, dict):
            self._has_answers = True
            piece.outcome = outcome
            return
        if piece.attempts == 0:
            piece.failing_since = now
        piece.attempts += 1
        match choose_remedy(outcome, self._retry, has_answers=self._has_answers):
            case Remedy.AGAIN if self._is_patient(piece, now):
                self._send_later(piece, outcome, now)
            case Remedy.SMALLER if piece.num_rows > 1:
                self._shrink(piece)
            case Remedy.SMALLER:
                piece.outcome = outcome
            case Remedy.ALONE:
                self._suspect(piece, outcome)
            case _:
                self._stop(piece, outcome)

    def take_parts(self) -> list[Part]:
        """What may be delivered, in order."""
        parts = []
        while self._slots and self._slots[0].error is None and self._slots[0].resolved:
            parts.append(self._slots.popleft().make_part(self.whole_names))
        if parts or not self._slots or self._slots[0].error is None:
            return parts
        first_row, error = self._slots[0].rows.start, self._slots[0].error
        if first_row == 0:
            raise error
        raise UnansweredRowsError(error, first_row, self._total_rows)

    def _is_patient(self, piece: Piece, now: float) -> bool:
        return piece.attempts < self._retry.max_attempts or (
            self._has_answers and now - piece.failing_since < self._retry.patience_s
        )

    def _send_later(self, piece: Piece, error: PlumblineError, now: float) -> None:
        piece.ready_at = now + self._retry.pause_s(error, piece.attempts, self._jitter())
        if piece.alone:
            self._suspects.appendleft(piece)
        else:
            heapq.heappush(self._queue, piece)

    def _shrink(self, piece: Piece) -> None:
        halves = piece.slot.split(piece, alone=piece.alone)
        self.size_limit = min(self.size_limit or piece.num_rows, halves[1].num_rows)
        if piece.alone:
            self._suspects.extendleft(reversed(halves))
            return
        for half in halves:
            heapq.heappush(self._queue, half)

    def _suspect(self, piece: Piece, error: PlumblineError) -> None:
        """Alone first; then in halves; a row that fails alone has failed."""
        if not piece.alone:
            piece.alone = True
            self._suspects.append(piece)
        elif piece.num_rows > 1:
            self._suspects.extendleft(reversed(piece.slot.split(piece, alone=True)))
        else:
            piece.outcome = error

    def _stop(self, piece: Piece, error: PlumblineError) -> None:
        """Ends the run at this piece's slot; those before it go on, those after it are lost."""
        piece.slot.error = error
        self._ended = True
        while self._slots[-1] is not piece.slot:
            self._slots.pop().dropped = True
        piece.slot.dropped = True
        self._queue = [waiting for waiting in self._queue if not waiting.slot.dropped]
        heapq.heapify(self._queue)
        self._suspects = deque(found for found in self._suspects if not found.slot.dropped)


@dataclasses.dataclass(slots=True, eq=False)
class Piece:
    """Rows `start` to `stop` of a slot's batch, which are sent together.

    Attributes:
        attempts: How often they were sent and failed.
        failing_since: When they failed first.
        ready_at: When they may be sent.
        alone: They were sent with nothing else in flight.
        outcome: How it ended; None until then.
    """

    slot: Slot
    start: int
    stop: int
    attempts: int = 0
    failing_since: float = 0.0
    ready_at: float = 0.0
    alone: bool = False
    outcome: Outcome | None = None

    @property
    def batch(self) -> dict[str, Array]:
        """What to send."""
        return slice_rows(self.slot.batch, self.start, self.stop)

    @property
    def num_rows(self) -> int:
        """Rows to send."""
        return self.stop - self.start

    def __lt__(self, other: Piece) -> bool:
        return (self.ready_at, self.slot.rows.start, self.start) < (
            other.ready_at,
            other.slot.rows.start,
            other.start,
        )


@dataclasses.dataclass(slots=True, eq=False)
class Slot:
    """One batch on its way, from being cut to being delivered.

    Attributes:
        rows: The rows of the input it is about.
        indices: int64: which of them `batch` holds.
        batch: What is sent.
        refused: Rows that were not sent.
        pieces: What `batch` is sent as, in order.
        error: Why the run ends here, if it does.
        dropped: Nothing of it is sent or delivered any more.
    """

    rows: range
    indices: Array
    batch: Batch
    refused: tuple[FailedRow, ...] = ()
    pieces: list[Piece] = dataclasses.field(default_factory=list)
    error: PlumblineError | None = None
    dropped: bool = False

    @property
    def resolved(self) -> bool:
        """Whether nothing is left to send."""
        return all(piece.outcome is not None for piece in self.pieces)

    def split(self, piece: Piece, *, alone: bool) -> list[Piece]:
        """Puts two halves in a piece's place."""
        middle = (piece.start + piece.stop) // 2
        halves = [
            Piece(self, piece.start, middle, alone=alone),
            Piece(self, middle, piece.stop, alone=alone),
        ]
        place = self.pieces.index(piece)
        self.pieces[place : place + 1] = halves
        return halves

    def make_part(self, whole_names: Collection[str]) -> Part:
        """The part to deliver, once resolved."""
        answered = [
            (self.indices[piece.start : piece.stop], piece.outcome)
            for piece in self.pieces
            if isinstance(piece.outcome, dict)
        ]
        failed = [
            FailedRow(int(self.indices[row]), piece.outcome)
            for piece in self.pieces
            if isinstance(piece.outcome, PlumblineError)
            for row in range(piece.start, piece.stop)
        ]
        names = [name for name in answered[0][1] if name not in whole_names] if answered else []
        return Part(
            rows=self.rows,
            indices=concatenate_rows([rows for rows, _ in answered] or [_NO_ROWS]),
            outputs={
                name: concatenate_rows([outcome[name] for _, outcome in answered]) for name in names
            },
            failed=tuple(sorted([*self.refused, *failed], key=lambda row: row.index)),
            whole=tuple(
                WholeAnswer(rows, {name: outcome[name] for name in outcome if name not in names})
                for rows, outcome in answered
            )
            if whole_names
            else (),
        )
