"""A version that answers real calls beside the one that serves: what was seen, and the rows kept.

The server counts (`serving.api.shadow`), `promote` judges, and the exporter's report shows rows.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np

from contract.errors import ManifestError
from contract.golden import Golden, GoldenExamples, read_golden, write_golden
from contract.parity import RowDifferences, Tolerance, compare_rows
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

    def is_twin_of(self, other: ShadowRow) -> bool:
        """Whether the same was asked, and answered alike."""
        return (
            self.weight == other.weight
            and self.signature_name == other.signature_name
            and self.inputs.keys() == other.inputs.keys()
            and all(np.array_equal(one, other.inputs[name]) for name, one in self.inputs.items())
        )

    @property
    def num_bytes(self) -> int:
        """What its arrays hold."""
        return count_bytes(self.inputs) + count_bytes(self.before) + count_bytes(self.after)


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


class Compared(NamedTuple):
    """One call that both versions answered; what stands here counts its rows.

    Attributes:
        num_rows: Its rows.
        num_flips: See `ShadowFigures`.
        num_outside: See `ShadowFigures`.
        max_abs_difference: The largest difference of any output.
    """

    num_rows: int
    num_flips: float
    num_outside: int
    max_abs_difference: float


class ShadowTally:
    """Counts what a shadow sees, and keeps the worst rows; for one thread, and any may look.

    Args:
        tolerance: Of the new version.
        num_rows: How many rows are kept; 0 for none.
        take_spare: Takes memory for a row, or does not.
        give_back: Gives it back.

    Attributes:
        rows: Those that are kept, the worst first.
    """

    def __init__(
        self,
        tolerance: Tolerance,
        num_rows: int,
        *,
        take_spare: Callable[[int], bool] = lambda num_bytes: True,
        give_back: Callable[[int], None] = lambda num_bytes: None,
    ) -> None:
        self._tolerance = tolerance
        self._most = num_rows
        self._take_spare = take_spare
        self._give_back = give_back
        self._num_calls = self._num_rows = self._num_outside = self._num_failures = 0
        self._missed = dict.fromkeys(("unanswered", "dropped", "shed"), 0)
        self._num_flips = self._largest = 0.0
        self._first_failure = ""
        self._versions: set[int] = set()
        self._latencies = Latencies()
        self.rows: list[ShadowRow] = []

    def compare(
        self,
        signature_name: str,
        inputs: Batch,
        *,
        version: int,
        before: Batch,
        after: Batch,
        times_us: tuple[float, float] | None,
    ) -> Compared:
        """Counts one call.

        Args:
            signature_name: What was asked.
            inputs: Input name to array.
            version: Which version is the old one.
            before: Output name to what it answered.
            after: What the new one answered.
            times_us: How long each took, in microseconds; None where that was not measured.

        Raises:
            TensorMismatchError: The new version's outputs have another form; count it with `fail`.
        """
        rows = compare_rows(before, after, self._tolerance)
        found = Compared(
            len(rows.largest),
            float(rows.flips.sum()),
            int(rows.is_outside.sum()),
            float(rows.largest.max(initial=0.0)),
        )
        self._num_calls += 1
        self._num_rows += found.num_rows
        self._num_flips += found.num_flips
        self._num_outside += found.num_outside
        self._largest = max(self._largest, found.max_abs_difference)
        self._versions.add(version)
        if times_us is not None:
            self._latencies.add(*times_us)
        if self._most and found.num_outside:
            self._keep(signature_name, inputs, before, after, rows)
        return found

    def fail(self, message: str) -> None:
        """Counts a call that the new version alone cannot answer."""
        self._first_failure = self._first_failure or message
        self._num_failures += 1

    def miss(self, reason: str) -> None:
        """Counts a sampled call that was not compared: `unanswered`, `dropped` or `shed`."""
        self._missed[reason] += 1

    def take_figures(self) -> ShadowFigures:
        """What was seen so far."""
        pairs = list(self._latencies.pairs)
        return ShadowFigures(
            num_calls=self._num_calls,
            num_rows=self._num_rows,
            num_flips=self._num_flips,
            num_outside=self._num_outside,
            max_abs_difference=self._largest,
            num_failures=self._num_failures,
            first_failure=self._first_failure,
            num_unanswered=self._missed["unanswered"],
            num_dropped=self._missed["dropped"],
            num_shed=self._missed["shed"],
            versions=tuple(sorted(self._versions)),
            before_us=tuple(before for before, _ in pairs),
            after_us=tuple(after for _, after in pairs),
        )

    def forget_rows(self) -> None:
        """Lets go of the rows: they are people's own."""
        for row in self.rows:
            self._give_back(row.num_bytes)
        self.rows = []

    def _keep(
        self, signature_name: str, inputs: Batch, before: Batch, after: Batch, rows: RowDifferences
    ) -> None:
        arrays = (*inputs.values(), *before.values(), *after.values())
        if any(array.ndim == 0 or len(array) != len(rows.largest) for array in arrays):
            return  # it has no rows
        for row in np.lexsort((rows.largest, rows.flips > 0))[::-1][: self._most].tolist():
            weight = bool(rows.flips[row] > 0), float(rows.largest[row])
            is_full = len(self.rows) >= self._most
            if not rows.is_outside[row] or (is_full and weight <= self.rows[-1].weight):
                break
            one, old, new = (
                {name: array[row : row + 1].copy() for name, array in batch.items()}
                for batch in (inputs, before, after)
            )
            kept = ShadowRow(signature_name, one, old, new, weight[1], weight[0])
            if any(kept.is_twin_of(other) for other in self.rows):
                continue
            if kept.num_bytes > MAX_ROW_BYTES or not self._take_spare(kept.num_bytes):
                continue
            found = choose_worst([*self.rows, kept], self._most + 1)
            for dropped in found[self._most :]:
                self._give_back(dropped.num_bytes)
            self.rows = found[: self._most]


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
