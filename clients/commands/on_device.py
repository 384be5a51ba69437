"""`on-device`: a TFLite variant of a version on this machine; no server."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from clients.answering import Answer, answer_one_by_one
from clients.bench import DEFAULT_CALLS, bench_variant, print_bench
from clients.commands.predict import add_input_flags, predict_files
from clients.input_rows import Rows
from clients.on_device import OnDevicePredictor, find_version_dir, list_variants
from clients.targets import positive_count
from contract import layout
from contract.console.exits import ExitCode
from contract.lite.runtime import hide_delegate_notes


def add_parser(verbs: Any) -> None:
    """Adds the command to the parser."""
    parser = verbs.add_parser(
        "on-device", help="predict without a server, or measure that", description=__doc__
    )
    below = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_run(below)
    _add_bench(below)


def _add_run(below: Any) -> None:
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


def _add_bench(below: Any) -> None:
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


def run(args: argparse.Namespace) -> int:
    """Predicts on this machine; 1 when something was skipped or failed."""
    with hide_delegate_notes():
        predictor = OnDevicePredictor(
            args.version_dir,
            variant=args.variant,
            num_threads=args.num_threads,
            allow_non_finite=args.allow_non_finite,
        )
    with predictor:

        def answer(blocks: Iterator[Rows], signature_name: str) -> Iterator[Answer]:
            return answer_one_by_one(predictor, blocks, signature_name=signature_name)

        return predict_files(args, predictor.signatures, answer)


def run_bench(args: argparse.Namespace) -> int:
    """Measures every variant beside a bare interpreter loop."""
    path: Path = args.version_dir
    variants = [layout.FLOAT32] if path.is_file() else list_variants(find_version_dir(path))
    measured = [
        bench_variant(
            path,
            variant,
            batch_size=args.batch_size,
            num_threads=args.num_threads,
            num_calls=args.calls,
        )
        for variant in args.variant or variants
    ]
    print_bench(measured, as_json=args.json)
    return ExitCode.DONE
