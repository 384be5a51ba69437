"""Pictures of measurements: drawn from the JSON files that the benchmarks leave beside them.

Run: python -m benchmarks.pictures   (growth.png and replicas.png again, without measuring)
"""

import datetime
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import msgspec

from contract.console.plots import (
    COLOURS,
    INK,
    MUTED,
    label_ends,
    make_figure,
    save_plot,
    set_log_ticks,
    set_ticks,
    styled,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HERE = Path(__file__).resolve().parent
GROWTH, REPLICAS = HERE / "growth.json", HERE / "replicas.json"
_WORDS = {1: "one", 2: "two", 3: "three", 4: "four"}


class Where(msgspec.Struct, frozen=True, kw_only=True):
    """On what it was measured, and when.

    Attributes:
        machine: Cores and processor.
        date: ISO 8601.
        remark: What else one has to know: that others used the machine.
    """

    machine: str
    date: str
    remark: str = ""

    def __str__(self) -> str:
        return ", ".join(one for one in (self.machine, self.date, self.remark) if one)


class Growth(msgspec.Struct, frozen=True, kw_only=True):
    """Calls per second of one process of the embedded server.

    Attributes:
        where: On what.
        seconds: Of each point, of calls up to 64 rows; of larger ones in proportion.
        by_rows: Model name to rows per call to calls/s.
        by_callers: Model name to calls in flight, of one row each, to calls/s.
    """

    where: Where
    seconds: float
    by_rows: dict[str, dict[int, float]]
    by_callers: dict[str, dict[int, float]]


class Cell(msgspec.Struct, frozen=True, kw_only=True):
    """So many replicas on so many cores, and the calls/s of each round."""

    replicas: int
    cores: int
    calls_per_s: tuple[float, ...]


class Replicas(msgspec.Struct, frozen=True, kw_only=True):
    """Calls per second of replicas that share cores.

    Attributes:
        where: On what.
        what: Model, rows a call, calls in flight.
        cells: All of them.
    """

    where: Where
    what: str
    cells: tuple[Cell, ...]


def describe_here(remark: str = "") -> Where:
    """This machine, today."""
    return Where(
        machine=f"{len(os.sched_getaffinity(0))} cores of {_find_processor()}",
        date=datetime.date.today().isoformat(),
        remark=remark,
    )


def _find_processor() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            name = line.partition(":")[2]
            return " ".join(name.replace("(R)", "").replace("Processor", "").split())
    return platform.machine()


def write_figures(path: Path, figures: Growth | Replicas) -> None:
    """Keeps the numbers of a picture, for whoever draws or reads them again."""
    text = msgspec.json.format(msgspec.json.encode(figures), indent=1)
    path.write_bytes(text + b"\n")


def draw_growth(growth: Growth) -> "Figure":
    """Rows per second against rows per call, and calls per second against callers."""
    figure, (rows, callers) = make_figure(
        _describe_growth(growth),
        note=f"Embedded server, one process, {growth.where}",
        panels=2,
        width_in=9.0,
    )
    for panel, title, across, curves in (
        (rows, "rows per second", "rows per call", _count_rows(growth.by_rows)),
        (callers, "calls of one row per second", "calls in flight", growth.by_callers),
    ):
        for model, curve in curves.items():
            panel.plot(list(curve), list(curve.values()), label=model)
        panel.set(xscale="log", yscale="log", xlabel=across)
        panel.set_title(title)
        set_ticks(panel.xaxis, sorted({x for curve in curves.values() for x in curve})[::2])
        set_log_ticks(panel.yaxis)
        label_ends(panel)
    return figure


def _count_rows(curves: Mapping[str, Mapping[int, float]]) -> dict[str, dict[int, float]]:
    return {
        model: {rows: rows * calls for rows, calls in curve.items()}
        for model, curve in curves.items()
    }


def _describe_growth(growth: Growth) -> str:
    larger = " and ".join(
        f"{_measure_gain(curve):.2g} × for {model}"
        for model, curve in _count_rows(growth.by_rows).items()
    )
    more = " and ".join(f"{_measure_gain(one):.2g} ×" for one in growth.by_callers.values())
    return f"Larger calls bring more rows per second: {larger}; more callers bring {more}"


def _measure_gain(curve: Mapping[int, float]) -> float:
    return max(curve.values()) / curve[min(curve)]


def draw_replicas(replicas: Replicas) -> "Figure":
    """A bar for each number of replicas, in a group for each number of cores."""
    medians = {(one.cores, one.replicas): median(one.calls_per_s) for one in replicas.cells}
    figure, (axes,) = make_figure(
        _describe_replicas(medians),
        note=f"{replicas.what}; {replicas.where}",
        height_in=1.9 + 0.32 * len(medians),
    )
    places, names, at = [], [], 0.0
    groups = sorted({cores for cores, _ in medians})
    for group, cores in enumerate(groups):
        first = at
        for number in sorted(number for given, number in medians if given == cores):
            value = medians[cores, number]
            axes.barh(at, value, 0.78, color=COLOURS[group % len(COLOURS)])
            axes.annotate(
                f"{value:,.0f}",
                (value, at),
                (5, 0),
                textcoords="offset points",
                va="center",
                color=INK,
            )
            places.append(at)
            names.append(f"{number} replica{'s' if number > 1 else ''}")
            at += 1
        axes.annotate(
            f"on {cores} core{'s' if cores > 1 else ''}",
            (0, first - 0.62),
            (2, 0),
            textcoords="offset points",
            va="center",
            color=COLOURS[group % len(COLOURS)],
            weight="bold",
            annotation_clip=False,
        )
        at += 1
    axes.set_yticks(places, names)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.08 * max(medians.values()))
    axes.grid(visible=False)
    axes.grid(visible=True, axis="x")
    axes.spines["bottom"].set_visible(False)
    axes.set_xlabel("calls per second", color=MUTED)
    return figure


def _describe_replicas(medians: Mapping[tuple[int, int], float]) -> str:
    by_cores: dict[int, dict[int, float]] = {}
    for (cores, number), value in sorted(medians.items()):
        by_cores.setdefault(cores, {})[number] = value
    best = {cores: max(found.values()) for cores, found in by_cores.items()}
    gain = max(best[cores] / found[min(found)] for cores, found in by_cores.items())
    more = "more replicas on the same cores answer "
    more += "no more" if gain < 1.05 else f"up to {gain:.2g} × as many"
    fewest, most = min(best), max(best)
    if fewest == most:
        return more[0].upper() + more[1:]
    cores = str(_WORDS.get(most, most)).capitalize()
    times = f"{best[most] / best[fewest]:.2g} × the calls of {_WORDS.get(fewest, fewest)}"
    return f"{cores} cores answer {times}; {more}"


def redraw(only: Sequence[Path] = (GROWTH, REPLICAS)) -> None:
    """Draws each picture beside its numbers."""
    with styled("a picture of measurements"):
        for path in only:
            data = path.read_bytes()
            figure = (
                draw_growth(msgspec.json.decode(data, type=Growth))
                if path == GROWTH
                else draw_replicas(msgspec.json.decode(data, type=Replicas))
            )
            save_plot(figure, path.with_suffix(".png"))


if __name__ == "__main__":
    redraw()
