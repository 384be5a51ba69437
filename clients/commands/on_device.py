"""`on-device`: a TFLite variant of a version on this machine; no server."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import multiprocessing
import resource
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from clients.core.rows import make_random_batch
from clients.files.predict import add_input_flags, answer_one_by_one, predict_files
from clients.on_device import OnDevicePredictor, list_variants
from contract import layout
from contract.console.exits import ExitCode
from contract.console.flags import positive_count
from contract.console.terminal import print_json, print_table, say
from contract.lite.runtime import (
    Interpreter,
    TensorDetails,
    create_interpreter,
    hide_delegate_notes,
)
from contract.servable import DEFAULT_SIGNATURE_NAME
from contract.signature import Array, Signature

DEFAULT_CALLS = 2000
_ROUNDS = 10


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command to the parser."""
    parser = verbs.add_parser(
        "on-device", help="predict without a server, or measure that", description=__doc__
    )
    below = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_run(below)
    _add_bench(below)


def _add_run(below: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = below.add_parser("run", help="files to predictions")
    add_input_flags(parser)
    _add_model_flags(parser)
    parser.add_argument(
        "--variant",
        default=layout.FLOAT32,
        choices=layout.VARIANTS,
        metavar="VARIANT",
        help=f"{', '.join(layout.VARIANTS)} (default %(default)s)",
    )
    parser.set_defaults(run=run)


def _add_bench(below: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = below.add_parser("bench", help="latency, speed and memory of the variants")
    _add_model_flags(parser)
    parser.add_argument(
        "--variant",
        action="append",
        choices=layout.VARIANTS,
        metavar="VARIANT",
        help=f"{', '.join(layout.VARIANTS)}; may be repeated (default: all there are)",
    )
    parser.add_argument(
        "--batch_size",
        type=positive_count,
        default=1,
        metavar="ROWS",
        help="rows per call (default %(default)s)",
    )
    parser.add_argument(
        "--calls",
        type=positive_count,
        default=DEFAULT_CALLS,
        metavar="N",
        help="timed calls per variant",
    )
    parser.set_defaults(run=run_bench)


def _add_model_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--version_dir",
        type=Path,
        required=True,
        metavar="PATH",
        help="a version directory, a base path for its newest version, or a .tflite file",
    )
    parser.add_argument(
        "--num_threads", type=positive_count, default=1, metavar="N", help="inside one call"
    )


def run(args: argparse.Namespace) -> ExitCode:
    """Predicts on this machine; 1 when something was skipped or failed."""
    with hide_delegate_notes():
        predictor = OnDevicePredictor(
            args.version_dir,
            variant=args.variant,
            num_threads=args.num_threads,
            allow_non_finite=args.allow_non_finite,
        )
    with predictor:
        return predict_files(
            args, predictor.signatures, functools.partial(answer_one_by_one, predictor)
        )


def run_bench(args: argparse.Namespace) -> ExitCode:
    """Measures every variant beside a bare interpreter loop."""
    path: Path = args.version_dir
    variants = [layout.FLOAT32] if path.is_file() else list_variants(layout.find_version_dir(path))
    measured = [
        bench_variant(path, variant, args.batch_size, args.num_threads, args.calls)
        for variant in args.variant or variants
    ]
    if args.json:
        print_json({"variants": measured})
    else:
        print_bench(measured)
    return ExitCode.DONE


@dataclasses.dataclass(frozen=True, slots=True)
class VariantBench:
    """What one variant costs on this machine.

    Attributes:
        variant: Its name.
        signature_name: What was asked.
        kib: Size of the file.
        batch_size: Rows per call.
        num_threads: Threads inside one call.
        median_us: Of one call, in microseconds.
        p99_us: 99th percentile of one call.
        rows_per_s: At the median.
        bare_median_us: Of set_tensor, invoke, get_tensor on a bare interpreter.
        scaled_median_us: The same, where floats become int8 and back with plain numpy; equal
            to `bare_median_us` for a variant that takes floats.
        ratio: `median_us` over `scaled_median_us`: what takes floats and gives floats.
        peak_mib: Largest resident size of the process, interpreter library included.
        num_calls: Calls timed.
    """

    variant: str
    signature_name: str
    kib: float
    batch_size: int
    num_threads: int
    median_us: float
    p99_us: float
    rows_per_s: float
    bare_median_us: float
    scaled_median_us: float
    ratio: float
    peak_mib: float
    num_calls: int


def bench_variant(
    path: Path, variant: str, batch_size: int, num_threads: int, num_calls: int
) -> VariantBench:
    """Measures one variant beside a bare interpreter loop.

    It runs in a process of its own, so that its peak memory is its own. Rounds of the predictor
    and of the bare loop alternate, so that a machine that slows down slows both.
    """
    context = multiprocessing.get_context("spawn")
    with context.Pool(1, initializer=signal.signal, initargs=(signal.SIGINT, signal.SIG_IGN)) as p:
        job = (path, variant, batch_size, num_threads, num_calls)
        return p.apply_async(_measure, job).get()


def print_bench(measured: Sequence[VariantBench]) -> None:
    """One row per variant."""
    numbers = ["KiB", "median µs", "p99 µs", "rows/s", "bare µs", "scaled µs", "ratio", "peak MiB"]
    print_table(
        ["variant", *numbers],
        [
            [
                one.variant,
                f"{one.kib:.0f}",
                f"{one.median_us:.1f}",
                f"{one.p99_us:.1f}",
                f"{one.rows_per_s:,.0f}",
                f"{one.bare_median_us:.1f}",
                f"{one.scaled_median_us:.1f}",
                f"{one.ratio:.2f}",
                f"{one.peak_mib:.0f}",
            ]
            for one in measured
        ],
        title=f"rows a call: {measured[0].batch_size}, threads: {measured[0].num_threads}, calls: "
        f"{measured[0].num_calls:,}",
    )
    say(
        "bare: set_tensor, invoke, get_tensor; scaled: the same with int8 from and to floats, in "
        "numpy; ratio: to scaled"
    )


def _measure(
    path: Path, variant: str, batch_size: int, num_threads: int, num_calls: int
) -> VariantBench:
    with hide_delegate_notes():
        predictor = OnDevicePredictor(path, variant=variant, num_threads=num_threads)
        content = predictor.path.read_bytes()
        bare_model = create_interpreter(content, num_threads=num_threads, source=str(path))
    with predictor:
        signature = _find_primary(bare_model, predictor)
        batch = make_random_batch(signature, batch_size)
        array = next(iter(batch.values())) if len(batch) == 1 else batch

        def call() -> object:
            return predictor.predict(array, signature_name=signature.name)

        _time_calls(call, 50)
        peak_mib = _read_peak_mib()
        num_runs = -(-batch_size // (predictor.fixed_rows[signature.name] or batch_size))
        calls = [call, *_make_bare_calls(bare_model, batch_size, num_runs)]
        for one in calls:
            _time_calls(one, 50)
        size = max(num_calls // _ROUNDS, 1)
        rounds = [[_time_calls(one, size) for one in calls] for _ in range(_ROUNDS)]
    times, bare_times, scaled_times = (np.concatenate(found) for found in zip(*rounds, strict=True))
    median, bare, scaled = (float(np.median(t)) for t in (times, bare_times, scaled_times))
    return VariantBench(
        variant=variant,
        signature_name=signature.name,
        kib=len(content) / 1024,
        batch_size=batch_size,
        num_threads=num_threads,
        median_us=median,
        p99_us=float(np.percentile(times, 99)),
        rows_per_s=batch_size / median * 1e6,
        bare_median_us=bare,
        scaled_median_us=scaled,
        ratio=median / scaled,
        peak_mib=peak_mib,
        num_calls=len(times),
    )


def _find_primary(interpreter: Interpreter, predictor: OnDevicePredictor) -> Signature:
    """The signature of the subgraph that the interpreter's own calls run."""
    indexes = [details["index"] for details in interpreter.get_input_details()]
    for name in interpreter.get_signature_list():
        runner = interpreter.get_signature_runner(name)
        subgraph = interpreter._interpreter.GetSubgraphIndexFromSignature(name)
        given = [details["index"] for details in runner.get_input_details().values()]
        if subgraph == 0 and sorted(given) == sorted(indexes):
            return predictor.signatures[name]
    return predictor.signatures[DEFAULT_SIGNATURE_NAME]


def _make_bare_calls(
    interpreter: Interpreter, batch_size: int, num_runs: int
) -> tuple[Callable[[], object], Callable[[], object]]:
    """The bare loop on the tensors as they are, and the same from floats to floats.

    `num_runs` are one call, where the file fixes the rows of a run.
    """
    feeds = []
    for details in interpreter.get_input_details():
        sizes = details["shape_signature"]
        shape = [batch_size if size < 0 else int(size) for size in sizes]
        interpreter.resize_tensor_input(details["index"], shape)
        reals = np.ones(shape, np.float32)
        feeds.append((details["index"], reals.astype(details["dtype"]), reals, _scaling(details)))
    interpreter.allocate_tensors()
    fetches = [(one["index"], _scaling(one)) for one in interpreter.get_output_details()]

    def call() -> list[Array]:
        for index, array, _, _ in feeds:
            interpreter.set_tensor(index, array)
        interpreter.invoke()
        return [interpreter.get_tensor(index) for index, _ in fetches]

    def call_scaled() -> list[Array]:
        for index, array, reals, scaling in feeds:
            if scaling:
                array = np.clip(np.rint(reals / scaling[0] + scaling[1]), -128, 127).astype(np.int8)
            interpreter.set_tensor(index, array)
        interpreter.invoke()
        return [
            (interpreter.get_tensor(index).astype(np.float32) - scaling[1]) * scaling[0]
            if scaling
            else interpreter.get_tensor(index)
            for index, scaling in fetches
        ]

    if num_runs == 1:
        return call, call_scaled
    return (
        lambda: [call() for _ in range(num_runs)],
        lambda: [call_scaled() for _ in range(num_runs)],
    )


def _scaling(details: TensorDetails) -> tuple[np.float32, np.float32] | None:
    """Scale and zero point of an int8 tensor; None for any other, which passes as it is."""
    scale, zero_point = details["quantization"]
    is_scaled = scale and np.dtype(details["dtype"]) == np.int8
    return (np.float32(scale), np.float32(zero_point)) if is_scaled else None


def _time_calls(call: Callable[[], object], count: int) -> Array:
    """Microseconds of each of `count` calls."""
    clock = time.perf_counter_ns
    times = np.empty(count)
    for index in range(count):
        start = clock()
        call()
        times[index] = clock() - start
    return times / 1000


def _read_peak_mib() -> float:
    """Linux's own figure first: `ru_maxrss` there never falls below that of the parent process."""
    status = Path("/proc/self/status")
    if status.exists():
        fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return int(fields["VmHWM"].split()[0]) / 2**10
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10
