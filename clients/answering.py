"""Blocks of rows through whoever answers, and their answers in order."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterable, Iterator, Sequence

from clients.input_rows import Rows
from clients.results import Part
from clients.sync import PredictionClient
from contract.errors import PlumblineError, RequestError, SignatureNotFoundError
from contract.parity import Predictor
from contract.signature import Batch


@dataclasses.dataclass(frozen=True, slots=True)
class Answer:
    """The answers to some rows of one block.

    Attributes:
        rows: The block.
        indices: Which of its rows were answered.
        outputs: Output name to array; axis 0 belongs to `indices`.
        failed: Name and reason of rows that were not.
    """

    rows: Rows
    indices: Sequence[int]
    outputs: Batch
    failed: tuple[tuple[str, str], ...] = ()

    @property
    def num_rows(self) -> int:
        """Rows dealt with."""
        return len(self.indices) + len(self.failed)


def answer_one_by_one(
    predictor: Predictor, blocks: Iterable[Rows], *, signature_name: str
) -> Iterator[Answer]:
    """Asks for one block after the other.

    A block that the model refuses is halved until the rows at fault are found.

    Raises:
        PlumblineError: What the predictor raises, other than for a bad row.
    """
    for rows in blocks:
        yield from _ask(predictor, rows, range(rows.num_rows), signature_name)


def _ask(predictor: Predictor, rows: Rows, indices: range, signature_name: str) -> Iterator[Answer]:
    batch = {name: array[indices.start : indices.stop] for name, array in rows.batch.items()}
    try:
        outputs = predictor.predict(batch, signature_name=signature_name)
    except SignatureNotFoundError:
        raise
    except RequestError as error:
        if len(indices) == 1:
            yield Answer(rows, (), {}, ((rows.name_row(indices.start), flatten(error)),))
            return
        middle = (indices.start + indices.stop) // 2
        yield from _ask(predictor, rows, range(indices.start, middle), signature_name)
        yield from _ask(predictor, rows, range(middle, indices.stop), signature_name)
        return
    yield Answer(rows, indices, outputs)


def answer_pipelined(
    client: PredictionClient,
    blocks: Iterable[Rows],
    *,
    signature_name: str,
    version: int | None = None,
    version_label: str | None = None,
) -> Iterator[Answer]:
    """Asks a server for many blocks at once, by `PredictionClient.predict_many`.

    Raises:
        UnansweredRowsError: The server went away; says which rows have no answer.
        PlumblineError: What the server says to the first rows.
    """
    sent: collections.deque[tuple[int, Rows]] = collections.deque()

    def send() -> Iterator[Batch]:
        start = 0
        for rows in blocks:
            sent.append((start, rows))
            start += rows.num_rows
            yield rows.batch

    parts = client.predict_many(
        send(), signature_name=signature_name, version=version, version_label=version_label
    )
    for part in parts:
        while part.rows.start >= sent[0][0] + sent[0][1].num_rows:
            sent.popleft()
        for start, rows in list(sent):
            if start >= part.rows.stop:
                break
            answer = _cut_answer(part, start, rows)
            if answer.num_rows:
                yield answer


def _cut_answer(part: Part, start: int, rows: Rows) -> Answer:
    """What `part` says of the rows of one block, which begins at row `start` of all."""
    stop = start + rows.num_rows
    kept = slice(*part.indices.searchsorted([start, stop]))
    return Answer(
        rows,
        (part.indices[kept] - start).tolist(),
        {name: array[kept] for name, array in part.outputs.items()},
        tuple(
            (rows.name_row(failed.index - start), flatten(failed.error))
            for failed in part.failed
            if start <= failed.index < stop
        ),
    )


def flatten(error: PlumblineError) -> str:
    """An error's text in one line."""
    return " ".join(error.message.split())
