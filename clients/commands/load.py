"""`load`: an open-loop load test of a server over gRPC."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc

from clients.bench import make_batch
from clients.connection import explain_failure, open_channel
from clients.inputs import InputReader
from clients.interruption import Interrupted
from clients.load import PERCENTILES, LoadPlan, LoadResult, LoadRun
from clients.load_plot import write_plot
from clients.results import ModelMetadata
from clients.targets import (
    add_server_flags,
    choose_model_name,
    connection_options,
    open_client,
    positive_count,
    positive_number,
)
from contract.console.exits import ExitCode
from contract.console.extras import import_extra
from contract.console.terminal import print_json, print_table, remark, show_progress
from contract.servable import ModelSpec
from contract.signature import Batch, Signature, find_signature
from contract.wire import rpc
from contract.wire.codec import encode_predict_request

_LATE_SHARE = 0.5
_MOST_CERTAIN = 10


def add_parser(verbs: Any) -> None:
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


def run(args: argparse.Namespace) -> int:
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
            _load(args, plan, body, results)
    except KeyboardInterrupt:
        _report(args, results, signature)
        raise Interrupted(f"measured {sum(one.num_sent for one in results):,} calls") from None
    _report(args, results, signature)
    return ExitCode.DONE if all(map(_is_reached, results)) else ExitCode.FAILED


def _choose_batch(args: argparse.Namespace, metadata: ModelMetadata) -> tuple[Signature, Batch]:
    if args.input is None:
        signature = find_signature(metadata.signatures, args.signature_name)
        return signature, make_batch(signature, args.batch_size)
    reader = InputReader([args.input], metadata.signatures, signature_name=args.signature_name)
    rows = reader.take(1)[0]
    repeats = -(-args.batch_size // rows.num_rows)
    return reader.signature, {
        name: array.repeat(repeats, axis=0)[: args.batch_size] for name, array in rows.batch.items()
    }


def _load(args: argparse.Namespace, plan: LoadPlan, body: bytes, results: list[LoadResult]) -> None:
    """Adds the result of one rate to `results`, of an interrupted one too."""
    total = int(plan.rate * (plan.warmup_s + plan.duration_s))
    with show_progress(f"{plan.rate:g} calls/s", total=total, unit="calls") as progress:
        load = LoadRun(plan, lambda: progress.advance(1))
        try:
            asyncio.run(_run_load(args, load, body))
        finally:
            results.append(load.summarise())


async def _run_load(args: argparse.Namespace, load: LoadRun, body: bytes) -> None:
    options = connection_options(args)
    channel, address = open_channel(grpc.aio, args.server, options)
    async with channel:
        await load.run(_make_send(channel, address, body, args.timeout_s, options.headers()))


def _make_send(
    channel: Any, address: str, body: bytes, timeout_s: float, headers: tuple[Any, ...]
) -> Callable[[], Awaitable[object]]:
    path = rpc.PREDICT.path
    call = channel.unary_unary(path)  # bytes out, bytes in: no message is built or read

    async def send() -> object:
        try:
            return await call(body, timeout=timeout_s, metadata=headers)
        except grpc.RpcError as failure:
            raise explain_failure(failure, address, path, timeout_s) from failure

    return send


def _is_reached(result: LoadResult) -> bool:
    return result.num_ok == result.num_sent and result.achieved_rate >= 0.9 * result.asked_rate


def _report(args: argparse.Namespace, results: list[LoadResult], signature: Signature) -> None:
    if args.json:
        print_json([_describe(result) for result in results])
    elif results:
        _print(results, f"{signature.name}, {args.batch_size} rows a call, {args.duration_s:g} s")
    if args.plot and any(result.num_ok for result in results):
        title = f"{args.server} {choose_model_name(args)}: {signature.name}, "
        write_plot(args.plot, results, title=f"{title}{args.batch_size} rows a call")
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
        title=f"{title}; latency from the intended send time",
    )
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


def _describe(result: LoadResult) -> dict[str, Any]:
    return {
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
