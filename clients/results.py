"""What the clients answer with, beside plain arrays."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from contract.wire.plumbline_wire.status_pb2 import GetModelStatusResponse

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from contract.errors import Code, PlumblineError
from contract.servable import VersionState
from contract.signature import Array, Signature


@dataclasses.dataclass(frozen=True, slots=True)
class Classification:
    """One class of one example.

    Attributes:
        label: The class's name; "" where the model gives none.
        score: Its score; 0.0 where the model gives none.
    """

    label: str
    score: float


@dataclasses.dataclass(frozen=True, slots=True)
class ModelMetadata:
    """What a version can be asked.

    Attributes:
        name: The model name.
        version: The version that answered.
        signatures: Signature name to signature.
    """

    name: str
    version: int
    signatures: Mapping[str, Signature]


@dataclasses.dataclass(frozen=True, slots=True)
class VersionStatus:
    """Where one version is in its life.

    Attributes:
        version: The version.
        state: START, LOADING, AVAILABLE, UNLOADING or END.
        error_code: OK unless something went wrong.
        error_message: What went wrong.
    """

    version: int
    state: VersionState
    error_code: Code = Code.OK
    error_message: str = ""


def list_statuses(reply: GetModelStatusResponse) -> list[VersionStatus]:
    """The states that a `GetModelStatusResponse` tells of, in its order."""
    return [
        VersionStatus(
            version=row.version,
            state=VersionState(row.state),
            error_code=Code(row.status.error_code),
            error_message=row.status.error_message,
        )
        for row in reply.model_version_status
    ]


@dataclasses.dataclass(frozen=True, slots=True)
class FailedRow:
    """A row that was not answered.

    Attributes:
        index: Which row of what was given, from 0.
        error: Why.
    """

    index: int
    error: PlumblineError


@dataclasses.dataclass(frozen=True, slots=True)
class WholeAnswer:
    """What a server answered to rows that were sent together, and not to each of them.

    A scalar is such an output, or the k best of a batch.

    Attributes:
        indices: int64 (sent,): the rows.
        outputs: Output name to array, as it came.
    """

    indices: Array
    outputs: dict[str, Array]


@dataclasses.dataclass(frozen=True, slots=True)
class Part:
    """The answers to a run of consecutive rows; parts come in the order of the rows.

    Attributes:
        rows: The rows this part is about.
        indices: int64 (answered,): which of them were answered, ascending.
        outputs: Output name to array; axis 0 belongs to `indices`. Where its rows differ in shape
            from batch to batch, an array of objects, an array each.
        failed: The rest of them.
        whole: Outputs without an entry per row, in the order of the rows; empty with most models.
    """

    rows: range
    indices: Array
    outputs: dict[str, Array]
    failed: tuple[FailedRow, ...] = ()
    whole: tuple[WholeAnswer, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True)
class Progress:
    """How far a `predict_many` has come.

    Attributes:
        num_rows: Rows delivered, failed ones included.
        num_failed: How many of them failed.
        total_rows: All there are; None for an iterator.
    """

    num_rows: int
    num_failed: int
    total_rows: int | None


class UnansweredRowsError(PlumblineError):
    """A `predict_many` that ended early, after it had delivered some rows.

    Every row before `first_row` was delivered, answered or as a FailedRow; none from
    `first_row` on was. `code` and `__cause__` are those of the error that ended it.

    Args:
        cause: That error.
        first_row: The first row without an answer.
        total_rows: All there were; None for an iterator.
    """

    def __init__(self, cause: PlumblineError, first_row: int, total_rows: int | None) -> None:
        missing = (
            f"row {first_row} and all after it"
            if total_rows is None
            else f"rows {first_row} to {total_rows - 1}"
        )
        super().__init__(
            f"rows 0 to {first_row - 1} were answered, {missing} were not: {cause.message}",
            code=cause.code,
        )
        self.__cause__ = cause
        self.first_row = first_row
        self.total_rows = total_rows


def join_parts(parts: Iterable[Part]) -> Part:
    """All parts as one: for data that fits into memory.

    Args:
        parts: Of one `predict_many`, in their order.

    Returns:
        One part: `indices` int64 (answered,), each output with the answered rows along axis 0,
        every failed row and every whole answer. Without parts, or without answers, `outputs` is
        empty.

    Raises:
        UnansweredRowsError: What `predict_many` raises on the way, and PlumblineError.

    Example:
        >>> whole = join_parts(client.predict_many(images))  # doctest: +SKIP
        >>> whole.outputs["probabilities"].shape  # doctest: +SKIP
        (100000, 10)
    """
    found = list(parts)
    answered = [part for part in found if len(part.indices)]
    # That an output has no entry per row may have shown later only.
    names = [
        name
        for name in (answered[0].outputs if answered else ())
        if all(name in part.outputs for part in answered)
    ]
    return Part(
        rows=range(found[0].rows.start, found[-1].rows.stop) if found else range(0),
        indices=np.concatenate([np.empty(0, np.int64), *(part.indices for part in found)]),
        outputs={
            name: concatenate_rows([part.outputs[name] for part in answered]) for name in names
        },
        failed=tuple(row for part in found for row in part.failed),
        whole=tuple(one for part in found for one in _list_whole(part, names)),
    )


def _list_whole(part: Part, names: Sequence[str]) -> tuple[WholeAnswer, ...]:
    early = {name: array for name, array in part.outputs.items() if name not in names}
    if not early:
        return part.whole
    if len(part.whole) == 1 and len(part.whole[0].indices) == len(part.indices):
        return (WholeAnswer(part.indices, {**part.whole[0].outputs, **early}),)
    return (*part.whole, WholeAnswer(part.indices, early))


def concatenate_rows(arrays: Sequence[Array]) -> Array:
    """Arrays one below the other; of rows that differ in shape an array of objects."""
    if len({array.shape[1:] for array in arrays}) <= 1:
        return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
    rows = [row for array in arrays for row in array]
    ragged = np.empty(len(rows), object)
    for index, row in enumerate(rows):
        ragged[index] = row
    return ragged


def flatten(error: PlumblineError) -> str:
    """An error's text in one line."""
    return " ".join(error.message.split())
