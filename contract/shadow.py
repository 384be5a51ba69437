"""A version that answers real calls beside the one that serves: what was seen, and the rows kept.

The server counts (`serving.api.shadow`), `promote` judges, and the exporter's report shows rows.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import msgspec
import numpy as np

from contract.errors import ManifestError
from contract.golden import Golden, GoldenExamples, read_golden, write_golden
from contract.signature import Array, Batch

MAX_ROWS = 100
"""Rows that may be kept of one shadow."""

MAX_ROW_BYTES = 512 * 1024
"""A row that holds more, with both answers, is not kept."""

MAX_LATENCIES = 2000
"""Latencies of each side that are remembered, a fair sample of all."""

_BEFORE, _AFTER = "before/", "after/"
_FLIPPED, _DIFFERENCE = "is_flipped", "max_abs_difference"


class ShadowFigures(msgspec.Struct, frozen=True, kw_only=True):
    """What a shadow saw.

    Attributes:
        num_calls: Calls that both versions answered.
        num_rows: Their rows.
        num_flips: Rows whose top class is another; parts of rows where a row has many places.
        num_outside: Rows that differ by more than the contract's tolerance.
        max_abs_difference: The largest difference of any output; inf where one side is not finite.
        num_failures: Calls that the new version alone cannot answer.
        first_failure: Why, of the first of them.
        num_unanswered: Calls that could not be compared, as the old version failed this time.
        num_dropped: Sampled calls that were not run: too many waited.
        num_shed: Sampled calls that were not run: callers needed the memory.
        versions: Which versions answered the callers.
        before_us: Latencies of those versions, microseconds, without queues; a sample.
        after_us: Those of the new version, of the same calls.
    """

    num_calls: int = 0
    num_rows: int = 0
    num_flips: float = 0.0
    num_outside: int = 0
    max_abs_difference: float = 0.0
    num_failures: int = 0
    first_failure: str = ""
    num_unanswered: int = 0
    num_dropped: int = 0
    num_shed: int = 0
    versions: tuple[int, ...] = ()
    before_us: tuple[float, ...] = ()
    after_us: tuple[float, ...] = ()


def join_figures(parts: Iterable[ShadowFigures]) -> ShadowFigures:
    """What several processes or servers saw together."""
    parts = list(parts)
    names = (
        *("num_calls", "num_rows", "num_flips", "num_outside", "num_failures", "num_unanswered"),
        *("num_dropped", "num_shed"),
    )
    return ShadowFigures(
        **{name: sum(getattr(one, name) for one in parts) for name in names},
        max_abs_difference=max((one.max_abs_difference for one in parts), default=0.0),
        first_failure=next((one.first_failure for one in parts if one.first_failure), ""),
        versions=tuple(sorted({version for one in parts for version in one.versions})),
        before_us=tuple(us for one in parts for us in one.before_us),
        after_us=tuple(us for one in parts for us in one.after_us),
    )


@dataclasses.dataclass(frozen=True, slots=True)
class ShadowRow:
    """A row that two versions answer differently.

    Attributes:
        signature_name: What was asked.
        inputs: Input name to array of one row, axis 0 included.
        before: Output name to what the old version answered, likewise.
        after: What the new one answered.
        max_abs_difference: The largest difference of any output.
        is_flipped: Whether its class is another.
    """

    signature_name: str
    inputs: Batch
    before: Batch
    after: Batch
    max_abs_difference: float
    is_flipped: bool

    @property
    def weight(self) -> tuple[bool, float]:
        """By which the worst rows are found."""
        return self.is_flipped, self.max_abs_difference


class Latencies:
    """Pairs of latencies, of which a fair sample is remembered (reservoir sampling, Vitter's R)."""

    def __init__(self) -> None:
        self.pairs: list[tuple[float, float]] = []
        self._num_seen = 0

    def add(self, before_us: float, after_us: float) -> None:
        """Remembers one pair, perhaps."""
        self._num_seen += 1
        if len(self.pairs) < MAX_LATENCIES:
            self.pairs.append((before_us, after_us))
        elif (place := random.randrange(self._num_seen)) < MAX_LATENCIES:
            self.pairs[place] = (before_us, after_us)


def choose_worst(rows: Iterable[ShadowRow], num_rows: int) -> list[ShadowRow]:
    """The worst rows, the worst first: those whose class flipped before all others."""
    return sorted(rows, key=lambda row: row.weight, reverse=True)[:num_rows]


def count_bytes(batch: Mapping[str, Array]) -> int:
    """What the arrays of a batch hold, strings included."""
    total = 0
    for array in batch.values():
        total += array.nbytes
        if array.dtype.hasobject:
            total += sum(map(len, array.flat))
    return total


def write_shadow_rows(path: Path, rows: Sequence[ShadowRow]) -> int:
    """Writes rows into an npz, in the format of golden examples; nothing is pickled.

    Args:
        path: Its folder is made when missing.
        rows: Of any signatures; those of a signature that have another form than its first row are
            left out.

    Returns:
        How many were written.

    Raises:
        OSError: The file cannot be written.
    """
    groups: dict[str, list[ShadowRow]] = {}
    for row in rows:
        group = groups.setdefault(row.signature_name, [])
        if not group or _tell_form(group[0]) == _tell_form(row):
            group.append(row)
    write_golden(path, Golden({name: _stack(group) for name, group in groups.items()}))
    return sum(map(len, groups.values()))


def read_shadow_rows(path: Path) -> list[ShadowRow]:
    """Reads what `write_shadow_rows` wrote.

    Args:
        path: The npz.

    Returns:
        The worst first.

    Raises:
        ManifestError: Missing, damaged, or of another kind.
    """
    found = []
    for name, kept in read_golden(path).signatures.items():
        extra = [kept.outputs.get(one) for one in (_FLIPPED, _DIFFERENCE)]
        if extra[0] is None or extra[1] is None:
            raise ManifestError(
                f"{path}: holds no rows of a shadow; give the file that `promote --shadow_s` named"
            )
        for row in range(kept.num_examples):
            at = slice(row, row + 1)
            found.append(
                ShadowRow(
                    name,
                    {key: array[at] for key, array in kept.inputs.items()},
                    _take(kept.outputs, _BEFORE, at),
                    _take(kept.outputs, _AFTER, at),
                    float(extra[1][row]),
                    bool(extra[0][row]),
                )
            )
    return choose_worst(found, len(found))


def _take(outputs: Batch, prefix: str, rows: slice) -> Batch:
    return {
        name.removeprefix(prefix): array[rows]
        for name, array in outputs.items()
        if name.startswith(prefix)
    }


def _tell_form(row: ShadowRow) -> list[tuple[str, object, tuple[int, ...]]]:
    batches = (row.inputs, row.before, row.after)
    return [
        (name, array.dtype, array.shape)
        for batch in batches
        for name, array in sorted(batch.items())
    ]


def _stack(rows: Sequence[ShadowRow]) -> GoldenExamples:
    def join(batches: list[Batch], prefix: str = "") -> dict[str, Array]:
        return {
            prefix + name: np.concatenate([one[name] for one in batches]) for name in batches[0]
        }

    outputs = {
        **join([row.before for row in rows], _BEFORE),
        **join([row.after for row in rows], _AFTER),
        _FLIPPED: np.array([row.is_flipped for row in rows]),
        _DIFFERENCE: np.array([row.max_abs_difference for row in rows]),
    }
    return GoldenExamples(join([row.inputs for row in rows]), outputs, (1,) * len(rows))
