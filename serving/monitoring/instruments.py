"""Counters, gauges and histograms that cost a fraction of a microsecond, and their text.

The text is Prometheus' exposition format as TensorFlow Serving writes it
(`util/prometheus_exporter.cc`): names keep their colons and counters get no suffix, which is
why prometheus-client does not write it.

No update takes a lock. `x[i] += v` on lists and slots runs between two points where CPython
may switch threads (calls and backward jumps), as long as there is a GIL, which every Python
that this package admits has.
"""

from __future__ import annotations

import copy
import functools
import math
import os
import threading
import time
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Generic, Self, TypeVar

Labels = tuple[str, ...]
Value = float | tuple[list[int], float]
"""What a child holds: a number, or the counts and the total of a histogram."""

Dump = dict[str, dict[Labels, Value]]
"""Family name to labels to what the children hold."""

MAX_CHILDREN = 1000
"""Label values of a family of which callers choose some: there must be an end."""

OTHER = "(other)"
"""What stands for all label values beyond `MAX_CHILDREN`."""

_MOST_UNSETTLED = 512

MAX_LABEL_BYTES = 256
"""Where a label value is cut."""


class Counter:
    """A number that grows, or is set (a gauge)."""

    __slots__ = ("_sources", "_value")

    def __init__(self) -> None:
        self._value: float = 0
        self._sources: list[Tally] = []

    @property
    def value(self) -> float:
        """The number."""
        for tally in self._sources:
            tally.settle()
        return self._value

    @value.setter
    def value(self, value: float) -> None:
        self._value = value

    def add(self, amount: float = 1) -> None:
        """Grows by `amount`."""
        self._value += amount


class Histogram:
    """How many observations fell at or below each bound."""

    __slots__ = ("_bounds", "_counts", "_sources", "_total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._total = 0.0
        self._sources: list[Tally] = []

    @property
    def value(self) -> tuple[list[int], float]:
        """The counts and the total."""
        for tally in self._sources:
            tally.settle()
        return list(self._counts), self._total

    def observe(self, value: float) -> None:
        """Counts `value`, in the unit of the bounds."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._total += value

    def observe_many(self, values: Sequence[float]) -> None:
        """Counts all of them; they are in order."""
        below = 0
        for index, bound in enumerate(self._bounds):
            up_to = bisect_right(values, bound, below)
            self._counts[index] += up_to - below
            below = up_to
        self._counts[-1] += len(values) - below
        self._total += sum(values)

    def add(self, counts: Sequence[int], total: float) -> None:
        """Adds what another of these bounds holds."""
        for index, count in enumerate(counts):
            self._counts[index] += count
        self._total += total


class Tally:
    """Observations for several histograms and a counter, which get them when somebody looks, or
    many at a time: a list's `append` is a tenth of what they cost each.

    Args:
        histograms: Each with what an observation is multiplied by for it.
        counter: Counts observations.
    """

    __slots__ = ("_counter", "_histograms", "_lock", "_values")

    def __init__(
        self, *histograms: tuple[Histogram, float], counter: Counter | None = None
    ) -> None:
        self._histograms = histograms
        self._counter = counter
        self._values: list[float] = []
        self._lock = threading.Lock()
        for histogram, _ in histograms:
            histogram._sources.append(self)
        if counter is not None:
            counter._sources.append(self)

    def observe(self, value: float) -> None:
        """Adds one; from any thread."""
        values = self._values
        values.append(value)
        if len(values) >= _MOST_UNSETTLED:
            self.settle()

    def close(self) -> None:
        """Hands on what was observed, for the last time."""
        self.settle()
        for histogram, _ in self._histograms:
            histogram._sources.remove(self)
        if self._counter is not None:
            self._counter._sources.remove(self)

    def settle(self) -> None:
        """Hands on what was observed."""
        with self._lock:  # those who observe take none: what they append comes after `size`
            size = len(self._values)
            values = sorted(self._values[:size])
            del self._values[:size]
            for histogram, factor in self._histograms:
                histogram.observe_many([value * factor for value in values])
            if self._counter is not None:
                self._counter.add(size)


Child = TypeVar("Child", bound=Counter | Histogram)


class _Family(Generic[Child]):
    """One metric: its name, and a child per combination of label values."""

    def __init__(
        self,
        name: str,
        description: str,
        label_names: Labels,
        *,
        kind: str,
        make_child: Callable[[], Child],
        is_bounded: bool = False,
    ) -> None:
        self.name = name
        self._is_bounded = is_bounded
        self._description = description
        self._label_names = label_names
        self._kind = kind
        self._make_child = make_child
        self._children: dict[Labels, Child] = {}

    def child(self, *labels: str) -> Child:
        """The child with these label values; made when it is first asked for."""
        found = self._children.get(labels)
        if found is None:
            labels = tuple(map(cut_label, labels))
            is_full = self._is_bounded and len(self._children) >= MAX_CHILDREN
            if is_full and labels not in self._children:
                labels = (OTHER,) * len(labels)
            found = self._children.setdefault(labels, self._make_child())
        return found

    def forget(self, *prefix: str) -> None:
        """Drops the children whose first label values are `prefix`."""
        for labels in [key for key in list(self._children) if key[: len(prefix)] == prefix]:
            self._children.pop(labels, None)

    def make_alike(self) -> Self:
        """A family like this one, without children."""
        alike = copy.copy(self)
        alike._children = {}
        return alike

    def dump(self) -> dict[Labels, Value]:
        """What the children hold, for another process."""
        return {labels: child.value for labels, child in list(self._children.items())}

    def render(self) -> Iterable[str]:
        """Lines of text."""
        yield f"# HELP {self.name} {self._description}"
        yield f"# TYPE {self.name} {self._kind}"
        for labels, child in list(self._children.items()):
            named = zip(self._label_names, labels, strict=True)
            pairs = ",".join(f'{name}="{_escape(value)}"' for name, value in named)
            yield from self._render_child(pairs, child)

    def _render_child(self, pairs: str, child: Child) -> Iterable[str]:
        raise NotImplementedError


class Family(_Family[Counter]):
    """A metric whose children are numbers.

    Args:
        name: As exposed.
        description: One sentence.
        label_names: In the order of the values that `child` takes.
        kind: `counter` or `gauge`.
        combine: How the values of several processes become one: a counter's are added, and
            of a gauge's the largest is taken, unless this says otherwise.
    """

    def __init__(
        self,
        name: str,
        description: str,
        label_names: Labels = (),
        *,
        kind: str = "counter",
        combine: Callable[[Iterable[float]], float] | None = None,
    ) -> None:
        super().__init__(name, description, label_names, kind=kind, make_child=Counter)
        self._combine = combine or (sum if kind == "counter" else max)

    def absorb(self, dumped: Mapping[Labels, Value]) -> None:
        """Combines with what another process holds."""
        for labels, value in dumped.items():
            assert not isinstance(value, tuple)
            is_new = labels not in self._children
            child = self.child(*labels)
            child.value = value if is_new else self._combine((child.value, value))

    def _render_child(self, pairs: str, child: Counter) -> Iterable[str]:
        yield f"{self.name}{{{pairs}}} {_render_number(child.value)}"


class HistogramFamily(_Family[Histogram]):
    """A metric whose children are histograms; see `Family`.

    With `is_bounded` it has `MAX_CHILDREN` children and one more for all others: callers choose
    its label values.
    """

    def __init__(
        self,
        name: str,
        description: str,
        label_names: Labels,
        *,
        bounds: Sequence[float],
        is_bounded: bool = False,
    ) -> None:
        super().__init__(
            name,
            description,
            label_names,
            kind="histogram",
            make_child=functools.partial(Histogram, tuple(bounds)),
            is_bounded=is_bounded,
        )
        self._limits = [*(f"{bound:.6g}" for bound in bounds), "+Inf"]

    def absorb(self, dumped: Mapping[Labels, Value]) -> None:
        """Adds what another process holds."""
        for labels, value in dumped.items():
            assert isinstance(value, tuple)
            self.child(*labels).add(*value)

    def _render_child(self, pairs: str, child: Histogram) -> Iterable[str]:
        comma = "," if pairs else ""
        cumulative = 0
        counts, total = child.value
        for limit, count in zip(self._limits, counts, strict=True):
            cumulative += count
            yield f'{self.name}_bucket{{{pairs}{comma}le="{limit}"}} {cumulative}'
        yield f"{self.name}_sum{{{pairs}}} {_render_number(total)}"
        yield f"{self.name}_count{{{pairs}}} {cumulative}"


def render_families(families: Iterable[Family | HistogramFamily]) -> str:
    """The page that Prometheus scrapes."""
    return "\n".join(line for family in families for line in family.render()) + "\n"


def add_dumps(dumps: Iterable[Dump]) -> Dump:
    """The sum of what several processes hold."""
    total: Dump = {}
    for dump in dumps:
        for name, children in dump.items():
            summed = total.setdefault(name, {})
            for labels, value in children.items():
                summed[labels] = _add(summed[labels], value) if labels in summed else value
    return total


def _add(one: Value, other: Value) -> Value:
    if isinstance(one, tuple) and isinstance(other, tuple):
        return [a + b for a, b in zip(one[0], other[0], strict=True)], one[1] + other[1]
    assert not isinstance(one, tuple)
    assert not isinstance(other, tuple)
    return one + other


def exponential_bounds(scale: float, growth: float, count: int) -> tuple[float, ...]:
    """The bounds of TensorFlow's `monitoring::Buckets::Exponential`, without the last."""
    return tuple(scale * growth**power for power in range(count))


def cut_label(value: str) -> str:
    """A label value of at most `MAX_LABEL_BYTES`, and dots where it was cut."""
    if len(value) * 4 <= MAX_LABEL_BYTES:
        return value
    encoded = value[: MAX_LABEL_BYTES + 1].encode(errors="replace")
    if len(encoded) <= MAX_LABEL_BYTES:
        return value
    return encoded[: MAX_LABEL_BYTES - 3].decode(errors="ignore") + "..."


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _render_number(value: float) -> str:
    if isinstance(value, float) and math.isfinite(value) and not value.is_integer():
        return repr(value)
    return str(int(value)) if math.isfinite(value) else "NaN"


def find_start_time_s() -> float:
    """Seconds since the epoch, from the kernel where it says so."""
    try:
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        uptime_s = float(Path("/proc/uptime").read_text().split()[0])
        return time.time() - uptime_s + int(fields[19]) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return time.time()


def measure_resident_bytes() -> float:
    """Resident memory in bytes, NaN where the kernel does not say."""
    try:
        return float(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return math.nan
