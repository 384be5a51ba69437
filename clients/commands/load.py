"""`load`: an open-loop load test of a server over gRPC."""

from __future__ import annotations

import argparse
import asyncio
import collections
import dataclasses
import functools
import itertools
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import grpc
import numpy as np

from clients.core.rows import make_random_batch
from clients.files.fit import InputReader
from clients.interruption import Interrupted
from clients.results import ModelMetadata
from clients.targets import (
    add_server_flags,
    choose_model_name,
    connection_options,
    open_client,
)
from clients.transport.channel import explain_failure, open_channel
from contract.console.exits import ExitCode
from contract.console.extras import import_extra
from contract.console.flags import positive_count, positive_number
from contract.console.interrupts import left_to_asyncio
from contract.console.plots import (
    COLOURS,
    MUTED,
    label_ends,
    make_figure,
    save_plot,
    set_log_ticks,
    styled,
)
from contract.console.progress import show_progress
from contract.console.terminal import print_json, print_table, remark
from contract.errors import DatasetError, PlumblineError
from contract.servable import ModelSpec
from contract.signature import Array, Batch, Signature, find_signature
from contract.wire import rpc
from contract.wire.predict import encode_predict_request

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PERCENTILES = (50.0, 90.0, 99.0, 99.9)
MAX_OUTSTANDING = 10_000
NOT_SENT = "NOT_SENT"
"""Counted where MAX_OUTSTANDING calls were unanswered when the next one was due."""
_LATE_SHARE = 0.5
_MOST_CERTAIN = 10


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command to the parser."""
    parser = verbs.add_parser(
        "load", help="open-loop load test: latency at a given rate", description=__doc__
    )
    parser.add_argument(
        "--rate",
        type=_parse_rates,
        default=[100.0],
        metavar="R[,R…]",
        help="calls per second; several, one after the other, with commas (default 100)",
    )
    parser.add_argument(
        "--duration_s",
        type=positive_number,
        default=10.0,
        metavar="S",
        help="measured, per rate (default 10)",
    )
    parser.add_argument(
        "--warmup_s",
        type=positive_number,
        default=2.0,
        metavar="S",
        help="discarded, per rate (default 2)",
    )
    parser.add_argument(
        "--batch_size",
        type=positive_count,
        default=1,
        metavar="ROWS",
        help="rows per call (default 1)",
    )
    parser.add_argument(
        "--input", type=Path, metavar="FILE", help="rows to send; default: random values"
    )
    parser.add_argument(
        "--signature_name", default="", metavar="NAME", help="default: serving_default"
    )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="of the arrival times (default 0)"
    )
    parser.add_argument("--plot", type=Path, metavar="FILE", help="write the latency curve (png)")
    add_server_flags(parser)
    parser.set_defaults(run=run)


def _parse_rates(text: str) -> list[float]:
    return [positive_number(part) for part in text.split(",")]


def run(args: argparse.Namespace) -> ExitCode:
    """Loads the server at each rate; 1 when calls failed or a rate was not reached."""
    if args.plot:
        import_extra("matplotlib.figure", "--plot")
    with open_client(args) as client:
        metadata = client.metadata(version=args.version, version_label=args.version_label)
        signature, batch = _choose_batch(args, metadata)
        client.predict(
            batch,
            signature_name=signature.name,
            version=args.version,
            version_label=args.version_label,
        )  # proves once that the request is good; the rest is sent unread
    spec = ModelSpec(
        choose_model_name(args), args.version, args.version_label, signature_name=signature.name
    )
    body = encode_predict_request(spec, batch)
    results: list[LoadResult] = []
    try:
        for rate in args.rate:
            plan = LoadPlan(rate, args.duration_s, args.warmup_s, seed=args.seed)
            total = int(plan.rate * (plan.warmup_s + plan.duration_s))
            with show_progress(f"{rate:g} calls/s", total=total, unit="calls") as progress:
                load = LoadRun(plan, on_answer=functools.partial(progress.advance, 1))
                try:
                    with left_to_asyncio():
                        asyncio.run(_run_load(args, load, body))
                finally:
                    results.append(load.summarise())  # of an interrupted one too
    except KeyboardInterrupt:
        _report(args, results, signature)
        raise Interrupted(f"measured {sum(one.num_sent for one in results):,} calls") from None
    _report(args, results, signature)
    is_reached = all(
        one.num_ok == one.num_sent and one.achieved_rate >= 0.9 * one.asked_rate for one in results
    )
    return ExitCode.DONE if is_reached else ExitCode.FAILED


def _choose_batch(args: argparse.Namespace, metadata: ModelMetadata) -> tuple[Signature, Batch]:
    if args.input is None:
        signature = find_signature(metadata.signatures, args.signature_name)
        return signature, make_random_batch(signature, args.batch_size)
    reader = InputReader([args.input], metadata.signatures, signature_name=args.signature_name)
    rows = next(iter(reader), None)
    if rows is None:
        raise DatasetError(f"--input {args.input}: none of its rows can be sent")
    repeats = -(-args.batch_size // rows.num_rows)
    return reader.signature, {
        name: array.repeat(repeats, axis=0)[: args.batch_size] for name, array in rows.batch.items()
    }


async def _run_load(args: argparse.Namespace, load: LoadRun, body: bytes) -> None:
    options = connection_options(args)
    channel, address = open_channel(grpc.aio, args.server, options)
    path, headers = rpc.PREDICT.path, options.headers()
    call = channel.unary_unary(path)  # bytes out, bytes in: no message is built or read

    async def send() -> object:
        try:
            return await call(body, timeout=args.timeout_s, metadata=headers)
        except grpc.RpcError as failure:
            raise explain_failure(failure, address, path, args.timeout_s) from failure

    async with channel:
        await load.run(send)


def _report(args: argparse.Namespace, results: list[LoadResult], signature: Signature) -> None:
    if args.json:
        print_json(
            [
                {
                    "asked_rate": result.asked_rate,
                    "achieved_rate": result.achieved_rate,
                    "num_sent": result.num_sent,
                    "num_ok": result.num_ok,
                    "errors": result.errors,
                    **{f"p{p:g}_ms": result.percentiles_ms[p] for p in PERCENTILES},
                    "max_ms": result.max_ms,
                    "late_p99_ms": result.late_p99_ms,
                    "doubts": describe_doubts(result),
                }
                for result in results
            ]
        )
    elif results:
        _print(results, f"{signature.name}, {args.batch_size} rows a call, {args.duration_s:g} s")
    if args.plot and any(result.num_ok for result in results):
        note = f"{choose_model_name(args)} on {args.server}: {signature.name}, "
        rows = f"{args.batch_size} row{'s' if args.batch_size > 1 else ''} a call"
        write_plot(args.plot, results, note=note + rows)
        remark(f"wrote {args.plot}")


def _print(results: list[LoadResult], title: str) -> None:
    headings = ["asked/s", "achieved/s", "calls", *(f"p{p:g} ms" for p in PERCENTILES), "max ms"]
    print_table(
        [*headings, "errors"],
        [
            [
                f"{result.asked_rate:g}",
                f"{result.achieved_rate:.1f}",
                f"{result.num_ok:,}",
                *(f"{result.percentiles_ms[p]:.2f}" for p in PERCENTILES),
                f"{result.max_ms:.2f}",
                ", ".join(f"{code} {count:,}" for code, count in result.errors.items()) or "none",
            ]
            for result in results
        ],
        title=title,
    )
    remark("latency is counted from the intended send time")
    for result in results:
        for doubt in describe_doubts(result):
            remark(f"{result.asked_rate:g} calls/s: {doubt}")


def describe_doubts(result: LoadResult) -> list[str]:
    """What makes the numbers of one rate less than they seem."""
    doubts = []
    rare = [p for p in PERCENTILES if result.num_ok * (100 - p) / 100 < _MOST_CERTAIN]
    if rare:
        names = ", ".join(f"p{p:g}" for p in rare)
        doubts.append(f"fewer than {_MOST_CERTAIN} calls lie beyond {names}: run longer")
    if result.num_ok and result.late_p99_ms > _LATE_SHARE * result.percentiles_ms[99.0]:
        doubts.append(
            f"this generator was late itself (p99 {result.late_p99_ms:.2f} ms), which the "
            "latencies include: it lacks CPU for this rate"
        )
    return doubts


@dataclasses.dataclass(frozen=True, slots=True)
class LoadPlan:
    """How much is sent, and for how long; calls of the warm-up are not counted."""

    rate: float  # calls per second
    duration_s: float
    warmup_s: float = 1.0
    seed: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class LoadResult:
    """What came of one rate.

    Attributes:
        asked_rate: Calls per second asked for.
        achieved_rate: Good answers per second, until the last answer came.
        num_sent: Calls counted: those due after the warm-up.
        num_ok: Good answers among them.
        errors: Code name to calls.
        percentiles_ms: Percentile to milliseconds, of good answers.
        max_ms: The slowest good answer.
        late_p99_ms: 99th percentile of how late this generator itself sent a call.
        latencies_ms: Every good answer, in the order in which the calls were due.
    """

    asked_rate: float
    achieved_rate: float
    num_sent: int
    num_ok: int
    errors: Mapping[str, int]
    percentiles_ms: Mapping[float, float]
    max_ms: float
    late_p99_ms: float
    latencies_ms: Array = dataclasses.field(repr=False)


class _TimedCall(NamedTuple):
    """When a call was due, sent and answered, in seconds since the start; "" is a good answer."""

    due: float
    sent: float
    answered: float
    code: str


@dataclasses.dataclass(slots=True)
class LoadRun:
    """One rate, while it runs; `summarise` also works on what an interrupted run left.

    Calls are sent when they are due, however slow the answers are, and latency counts from
    the moment a call was *due*. So a server (or this generator) that falls behind shows in the
    numbers instead of hiding: a closed loop would wait with it, which is known as coordinated
    omission.

    Attributes:
        plan: What is asked for.
        on_answer: Called after each answer, for a progress bar.
    """

    plan: LoadPlan
    on_answer: Callable[[], None] = lambda: None
    _calls: list[_TimedCall] = dataclasses.field(default_factory=list)

    async def run(self, send: Callable[[], Awaitable[object]]) -> None:
        """Sends calls when they are due until the time is over, then awaits the last ones."""
        tasks: set[asyncio.Task[None]] = set()
        start = time.perf_counter()
        try:
            for due in plan_arrivals(self.plan).tolist():
                await asyncio.sleep(max(due - (time.perf_counter() - start), 0.0))
                if len(tasks) >= MAX_OUTSTANDING:
                    self._calls.append(_TimedCall(due, due, due, NOT_SENT))
                    continue
                task = asyncio.create_task(self._call(send, start, due))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
            while tasks:
                await asyncio.wait(tasks)
        finally:
            for task in tasks:
                task.cancel()

    async def _call(self, send: Callable[[], Awaitable[object]], start: float, due: float) -> None:
        sent = time.perf_counter() - start
        try:
            await send()
            code = ""
        except PlumblineError as error:
            code = error.code.name
        self._calls.append(_TimedCall(due, sent, time.perf_counter() - start, code))
        self.on_answer()

    def summarise(self) -> LoadResult:
        """What is known so far."""
        counted = sorted(call for call in self._calls if call.due >= self.plan.warmup_s)
        good = np.array([call[:3] for call in counted if not call.code]).reshape(-1, 3)
        latencies = (good[:, 2] - good[:, 0]) * 1e3
        end = max((call.answered for call in counted), default=0.0)
        # Poisson arrivals end a little before the time is over; a slow server ends after it.
        is_whole = end >= 0.9 * (self.plan.warmup_s + self.plan.duration_s)
        least_s = self.plan.duration_s if is_whole else 1e-9
        measured_s = max(end - self.plan.warmup_s, least_s)
        return LoadResult(
            asked_rate=self.plan.rate,
            achieved_rate=len(good) / measured_s,
            num_sent=len(counted),
            num_ok=len(good),
            errors=dict(collections.Counter(call.code for call in counted if call.code)),
            percentiles_ms={p: _percentile(latencies, p) for p in PERCENTILES},
            max_ms=float(latencies.max(initial=0.0)),
            late_p99_ms=_percentile((good[:, 1] - good[:, 0]) * 1e3, 99.0),
            latencies_ms=latencies,
        )


def plan_arrivals(plan: LoadPlan) -> Array:
    """Seconds at which calls are due: ascending, warm-up included.

    A Poisson process, given how many calls it has: then the times are uniform. So the rate
    asked for is the rate sent, however short the run.
    """
    rng = np.random.default_rng(plan.seed)
    parts = []
    for start, length in ((0.0, plan.warmup_s), (plan.warmup_s, plan.duration_s)):
        count = max(round(plan.rate * length), 1)
        parts.append(np.sort(start + length * rng.random(count)))
    return np.concatenate(parts)


def _percentile(values: Array, percentile: float) -> float:
    # The value that so many percent do not exceed, one that was really measured.
    return float(np.percentile(values, percentile, method="higher")) if len(values) else 0.0


def write_plot(path: Path, results: Sequence[LoadResult], *, note: str) -> None:
    """Writes the latency curve; the suffix chooses the format (png, svg, pdf).

    Args:
        path: Of the picture.
        results: Of several rates, or of one; at least one good answer among them.
        note: What was asked of whom.
    """
    with styled("--plot", texts=[note]):
        save_plot(draw_latencies(results, note=note), path)


def draw_latencies(results: Sequence[LoadResult], *, note: str) -> Figure:
    """The curve: percentiles over rates, or of one rate all latencies; within `styled`."""
    note = f"{note}; latency counts from when a call was due"
    return (_draw_rates if len(results) > 1 else _draw_percentiles)(results, note)


def _draw_rates(results: Sequence[LoadResult], note: str) -> Figure:
    ordered = sorted(results, key=lambda result: result.asked_rate)
    figure, (axes,) = make_figure(_describe_rates(ordered), note=note)
    rates = [result.asked_rate for result in ordered]
    for percentile in reversed(PERCENTILES):  # the highest line has the highest label
        values = [result.percentiles_ms[percentile] or np.nan for result in ordered]
        axes.plot(rates, values, label=f"p{percentile:g}")
    for rate in (result.asked_rate for result in ordered if not _is_reached(result)):
        axes.axvline(rate, color=MUTED, linestyle=(0, (3, 3)), linewidth=1, zorder=0)
    axes.set_xlabel("calls per second asked for")
    if len(rates) > 2 and min(rates) > 0 and max(rates) / min(rates) > 10:
        axes.set_xscale("log")
        set_log_ticks(axes.xaxis)
    _finish(axes)
    label_ends(axes)
    return figure


def _draw_percentiles(results: Sequence[LoadResult], note: str) -> Figure:
    (result,) = results
    values = np.sort(result.latencies_ms)
    figure, (axes,) = make_figure(_describe_rate(result), note=note)
    # Each decade further right holds a tenth of the calls: 90 %, 99 %, 99.9 %.
    beyond = len(values) / np.arange(len(values), 0, -1)
    axes.plot(beyond, values, drawstyle="steps-post", marker="")
    axes.set_xscale("log")
    axes.set_xlim(1, max(len(values), 10))
    ticks = [tick for tick in (1, 2, 10, 100, 1000, 10_000) if tick <= max(len(values), 10)]
    axes.set_xticks(ticks, [f"{100 * (1 - 1 / tick):g} %" for tick in ticks])
    axes.minorticks_off()
    axes.set_xlabel("share of the calls answered within")
    _finish(axes)
    shown = [p for p in PERCENTILES if 100 / (100 - p) <= len(values)]
    for percentile in shown:
        at, value = 100 / (100 - percentile), result.percentiles_ms[percentile]
        axes.plot([at], [value], marker="o", color=COLOURS[0], label="_")
        axes.annotate(
            f"{value:.3g} ms",
            (at, value),
            (-4, 5) if at > 2 else (6, -12),  # the axis is near the first
            textcoords="offset points",
            ha="right" if at > 2 else "left",
            color=COLOURS[0],
        )
    return figure


def _describe_rate(result: LoadResult) -> str:
    rate = f"at {result.asked_rate:,g} per second"
    if result.num_ok < result.num_sent:
        lost = result.num_sent - result.num_ok
        return f"{lost:,} of {result.num_sent:,} calls {rate} fail"
    if result.num_ok < 100:
        calls = f"All {result.num_ok} calls" if result.num_ok > 1 else "The one call"
        return f"{calls} {rate} took {result.max_ms:.3g} ms at most"
    within = f"{result.percentiles_ms[99.0]:.3g} ms"
    return f"99 % of {result.num_ok:,} calls {rate} are answered within {within}"


def _describe_rates(ordered: Sequence[LoadResult]) -> str:
    reached = list(itertools.takewhile(_is_reached, ordered))
    if not reached:
        return f"Not even {ordered[0].asked_rate:,g} calls per second are answered in full"
    last = reached[-1]
    sentence = (
        f"99 % of the calls are answered within {last.percentiles_ms[99.0]:.3g} ms at "
        f"{last.asked_rate:,g} per second"
    )
    if len(reached) == len(ordered):
        return sentence
    beyond = ordered[len(reached)].asked_rate
    return f"{sentence}; at {beyond:,g} (dashed) some fail, or the rate is not reached"


def _is_reached(result: LoadResult) -> bool:
    return result.num_ok == result.num_sent and result.achieved_rate >= 0.95 * result.asked_rate


def _finish(axes: Axes) -> None:
    axes.set_title("milliseconds")
    axes.set_yscale("log")
    set_log_ticks(axes.yaxis)
