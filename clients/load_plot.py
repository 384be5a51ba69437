"""The picture of a load test: latency against rate, or against percentile for one rate."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from clients.load import PERCENTILES, LoadResult
from contract.console.extras import import_extra
from contract.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.ticker import Formatter

_COLOURS = ("#0072b2", "#009e73", "#e69f00", "#d55e00")
"""Of Okabe and Ito's palette, which colour-blind people can tell apart."""


def write_plot(path: Path, results: Sequence[LoadResult], *, title: str) -> None:
    """Writes the latency curve; the suffix chooses the format (png, svg, pdf).

    Args:
        path: Where to.
        results: One per rate, at least one with a good answer.
        title: A line above the picture.

    Raises:
        ConfigError: matplotlib cannot write this format, or the path is not writable.
        UnimplementedError: matplotlib is not installed.
    """
    import_extra("matplotlib.figure", "--plot")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    if len(results) > 1:
        _draw_rates(axes, results)
    else:
        _draw_percentiles(axes, results[0])
    axes.set_ylabel("latency from the intended send time [ms]")
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(_make_minor_formatter(axes))
    axes.grid(visible=True, which="both", alpha=0.25)
    axes.set_title(title)
    try:
        figure.savefig(path, dpi=120)
    except (OSError, ValueError) as error:
        raise ConfigError(f"--plot {path} cannot be written: {error}") from error


def _make_minor_formatter(axes: Axes) -> Formatter:
    """Numbers between the powers of ten where there is room for them."""
    from matplotlib import ticker

    low, high = axes.get_ylim()
    if high / max(low, 1e-12) > 30:
        return ticker.NullFormatter()
    return ticker.StrMethodFormatter("{x:g}")


def _draw_rates(axes: Axes, results: Sequence[LoadResult]) -> None:
    rates = [result.asked_rate for result in results]
    for percentile, colour in zip(PERCENTILES, _COLOURS, strict=True):
        values = [result.percentiles_ms[percentile] or np.nan for result in results]
        axes.plot(rates, values, marker="o", color=colour, label=f"p{percentile:g}")
    short = [r for r in results if r.num_ok < r.num_sent or r.achieved_rate < 0.95 * r.asked_rate]
    for index, result in enumerate(short):
        label = "errors, or less than 95 % of the rate" if index == 0 else None
        axes.axvline(result.asked_rate, color="#999999", linestyle="--", label=label)
    axes.set_xlabel("calls per second asked for")
    axes.legend()


def _draw_percentiles(axes: Axes, result: LoadResult) -> None:
    values = np.sort(result.latencies_ms)
    # Each decade further right holds a tenth of the calls: 90 %, 99 %, 99.9 %.
    beyond = len(values) / np.arange(len(values), 0, -1)
    axes.plot(beyond, values, color=_COLOURS[0], drawstyle="steps-post")
    axes.set_xscale("log")
    ticks = [1, 2, 10, 100, 1000, 10_000]
    ticks = [tick for tick in ticks if tick <= max(len(values), 10)]
    axes.set_xticks(ticks, [f"{100 * (1 - 1 / tick):g} %" for tick in ticks])
    axes.set_xlabel(f"share of {len(values):,} calls answered within")
