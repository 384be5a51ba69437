"""The plan of a `predict_many`: what to send next, what may be delivered, when to stop.

No I/O and no clock: the shells send what `take_sends` gives, say with `record` how it ended,
and deliver what `take_parts` gives. Promises:

- Parts come in the order of the rows, and every row is in exactly one part.
- At most `max_in_flight` batches are held, sent or answered but not yet delivered.
- A batch that a row may have made fail is sent again alone, with nothing else of ours in
  flight (a server may merge batches, and then a bad row fails its neighbours too), and then
  in halves until the bad rows stand alone.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable

import numpy as np

from clients.results import FailedRow, Part, UnansweredRowsError
from clients.retry import RetryPolicy, Verdict, judge
from clients.slots import Outcome, Piece, Slot
from contract.errors import PlumblineError
from contract.signature import Batch


class BatchFlow:
    """The state of one `predict_many`.

    Args:
        retry: When a batch is sent again.
        max_in_flight: Batches held at a time, 1 or more.
        jitter: Uniform numbers in 0..1.
        total_rows: All rows there are; None for an iterator.

    Attributes:
        num_rows: Rows taken in so far.
        size_limit: The most rows of a batch that a server turned out to take, if it
            refused larger ones.
    """

    def __init__(
        self,
        retry: RetryPolicy,
        *,
        max_in_flight: int,
        jitter: Callable[[], float],
        total_rows: int | None = None,
    ) -> None:
        self.num_rows = 0
        self.size_limit: int | None = None
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
        """Takes in the next batch.

        Args:
            batch: Input name to array.
            num_rows: Its rows.
            bad_rows: Row of this batch to why it is not sent.
        """
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
        match judge(outcome, self._retry, has_answers=self._has_answers):
            case Verdict.AGAIN if self._is_patient(piece, now):
                self._send_later(piece, now)
            case Verdict.SMALLER if piece.num_rows > 1:
                self._shrink(piece)
            case Verdict.SMALLER:
                piece.outcome = outcome
            case Verdict.ALONE:
                self._suspect(piece, outcome)
            case _:
                self._stop(piece, outcome)

    def take_parts(self) -> list[Part]:
        """What may be delivered, in order.

        Raises:
            PlumblineError: The run ends here, and nothing was delivered before.
            UnansweredRowsError: The same, after something was.
        """
        parts = []
        while self._slots and self._slots[0].error is None and self._slots[0].resolved:
            parts.append(self._slots.popleft().make_part())
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

    def _send_later(self, piece: Piece, now: float) -> None:
        piece.ready_at = now + self._retry.backoff_s(piece.attempts, self._jitter())
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
