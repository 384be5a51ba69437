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

from benchmarks.loadgen.watching import Point
from contract.console.plots import (
    COLOURS,
    INK,
    MUTED,
    label_ends,
    make_figure,
    save_plot,
    set_count_ticks,
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


class Payload(Point, frozen=True, kw_only=True):
    """Calls of so many rows.

    Attributes:
        alone_us: Processor time of the model alone, in a plain loop over LiteRT in one process.
    """

    alone_us: float


class Shared(Point, frozen=True, kw_only=True):
    """So many workers, kept to so many cores."""

    workers: int
    cores: int


class Loaded(Point, frozen=True, kw_only=True):
    """So many models in one process.

    Attributes:
        ready_s: From the start of the process until all were loaded.
        idle_mib: Resident then, before the first call.
    """

    ready_s: float
    idle_mib: float


class Growth(msgspec.Struct, frozen=True, kw_only=True):
    """What the embedded server does with more and more of each kind.

    Attributes:
        where: On what.
        seconds: Of a window; of calls with more than 128 rows, and of more than 1,024 connections,
            in proportion longer.
        by_rows: Model name to rows per call to the point, 4 to 32 calls in flight, one process.
        by_connections: Model name to connections, a call of one row in flight on each, one process.
        by_workers: Model name to workers against cores, 32 calls of one row in flight.
        many: The model that `by_models` has copies of.
        by_models: Models in one process to the point, 32 calls of one row in flight.
    """

    where: Where
    seconds: float
    by_rows: dict[str, dict[int, Payload]]
    by_connections: dict[str, dict[int, Point]]
    by_workers: dict[str, list[Shared]]
    many: str
    by_models: dict[int, Loaded]


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
    """What a core answers against rows and connections, and memory against models."""
    figure, (rows, connections, models) = make_figure(
        _describe_growth(growth),
        note=f"Embedded server, one process, by its processor time; {growth.where}",
        panels=3,
        width_in=11.0,
    )
    by_connections = {
        model: {number: one.calls_a_core for number, one in curve.items()}
        for model, curve in growth.by_connections.items()
    }
    for panel, title, across, curves in (
        (rows, "rows per second of a core", "rows per call", _count_rows(growth)),
        (connections, "calls of one row per second of a core", "connections", by_connections),
    ):
        for model, curve in curves.items():
            panel.plot(list(curve), list(curve.values()), label=model)
        panel.set(xscale="log", yscale="log", xlabel=across)
        panel.set_title(title)
        set_ticks(panel.xaxis, sorted({x for curve in curves.values() for x in curve})[::2])
        set_log_ticks(panel.yaxis)
        label_ends(panel)
    loaded = growth.by_models
    models.plot(list(loaded), [one.mib for one in loaded.values()])
    models.set(xlabel=f"copies of {growth.many} in one process", ylim=(0, None))
    models.set_title("MiB resident")
    set_count_ticks(models.xaxis)
    return figure


def _count_rows(growth: Growth) -> dict[str, dict[int, float]]:
    return {
        model: {rows: rows * one.calls_a_core for rows, one in curve.items()}
        for model, curve in growth.by_rows.items()
    }


def _describe_growth(growth: Growth) -> str:
    larger = " and ".join(
        f"{max(curve.values()) / curve[min(curve)]:.2g} × for {model}"
        for model, curve in _count_rows(growth).items()
    )
    fewest, most = min(growth.by_models), max(growth.by_models)
    first, last = growth.by_models[fewest], growth.by_models[most]
    each = (last.mib - first.mib) / (most - fewest)
    return f"Larger calls bring more rows of a core: {larger}; each model more takes {each:.2g} MiB"


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
