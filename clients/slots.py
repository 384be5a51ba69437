"""Batches on their way through a `predict_many`, and the pieces they are sent as."""

from __future__ import annotations

import dataclasses

import numpy as np

from clients.results import FailedRow, Part
from clients.rows import slice_rows
from contract.errors import PlumblineError
from contract.signature import Array, Batch

Outcome = dict[str, Array] | PlumblineError
"""Output name to array, or why there is none."""


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

    def make_part(self) -> Part:
        """The part to deliver, once resolved."""
        answered = [piece for piece in self.pieces if isinstance(piece.outcome, dict)]
        failed = [
            FailedRow(int(self.indices[row]), piece.outcome)
            for piece in self.pieces
            if isinstance(piece.outcome, PlumblineError)
            for row in range(piece.start, piece.stop)
        ]
        outcomes = [piece.outcome for piece in answered if isinstance(piece.outcome, dict)]
        return Part(
            rows=self.rows,
            indices=_join([self.indices[piece.start : piece.stop] for piece in answered]),
            outputs={
                name: _join([outcome[name] for outcome in outcomes])
                for name in (outcomes[0] if outcomes else ())
            },
            failed=tuple(sorted([*self.refused, *failed], key=lambda row: row.index)),
        )


def _join(arrays: list[Array]) -> Array:
    if len(arrays) == 1:
        return arrays[0]
    return np.concatenate(arrays) if arrays else np.empty(0, np.int64)
