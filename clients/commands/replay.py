"""`replay`: recorded requests sent again; a candidate beside the stable version."""

from __future__ import annotations

import argparse
import collections
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from clients.connection import explain_failure, open_channel
from clients.interruption import Interrupted
from clients.replay import Ask, read_recordings, redirect, replay_recordings
from clients.replay_comparison import AGREES, DIFFERS, FAILED, NOT_COMPARED, Comparison, Recording
from clients.targets import add_server_flags, connection_options
from contract.console.exits import ExitCode
from contract.console.terminal import print_json, print_table, remark, show_progress
from contract.errors import ConfigError, PlumblineError
from contract.parity import FLOAT32, Tolerance
from contract.servable import ModelSpec

_SHOWN = 20
_HEADINGS = (
    *("method", "signature", "requests", "rows", AGREES, DIFFERS, FAILED, NOT_COMPARED),
    *("max abs difference", "class changed"),
)


def add_parser(verbs: Any) -> None:
    """Adds the command to the parser."""
    parser = verbs.add_parser(
        "replay",
        help="send recorded requests again, compare the answers",
        description=__doc__,
        epilog="A candidate against the stable version on one server: "
        "--version 2 --against_version_label stable",
    )
    parser.add_argument(
        "files", nargs="+", type=Path, metavar="FILE", help="TFRecord files of PredictionLog"
    )
    add_server_flags(parser)
    other = parser.add_argument_group("what to compare with (default: the recorded answers)")
    other.add_argument("--against", metavar="ADDRESS", help="default: --server")
    other.add_argument("--against_version", type=int, metavar="N")
    other.add_argument("--against_version_label", metavar="LABEL", help="instead of a number")
    other.add_argument(
        "--atol",
        type=float,
        default=FLOAT32.atol,
        metavar="DIFFERENCE",
        help="(default %(default)g)",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Prints what differs: 0 nothing, 1 something differs, fails or cannot be compared."""
    if args.atol < 0:
        raise ConfigError(f"--atol {args.atol}: give 0 or more")
    if args.against_version is not None and args.against_version_label:
        raise ConfigError("--against_version and --against_version_label: give one of them")
    for path in args.files:
        if not path.is_file():
            raise ConfigError(f"{path} is no file; give a TFRecord file of PredictionLog")
    skipped: list[tuple[str, str]] = []
    found: list[Comparison] = []
    try:
        _replay(args, found, skipped)
    except KeyboardInterrupt:
        _report(args, found, skipped)
        raise Interrupted(f"{len(found):,} requests were compared") from None
    except PlumblineError:
        _report(args, found, skipped)
        raise
    _report(args, found, skipped)
    agrees = found and all(one.verdict == AGREES for one in found) and not skipped
    return ExitCode.DONE if agrees else ExitCode.FAILED


def _replay(
    args: argparse.Namespace, found: list[Comparison], skipped: list[tuple[str, str]]
) -> None:
    compares = args.against or args.against_version is not None or args.against_version_label
    spec = ModelSpec(args.model_name, args.version, args.version_label)
    other = ModelSpec(args.model_name, args.against_version, args.against_version_label)
    with (
        _Sender(args, args.server, spec) as ask,
        _Sender(args, args.against or args.server, other) as against,
        show_progress("replay", unit="requests") as progress,
    ):
        for path in args.files:
            recordings = read_recordings(
                path, on_skipped=lambda name, reason: skipped.append((name, reason))
            )
            tolerance = Tolerance(atol=args.atol)
            pairs = replay_recordings(
                recordings, ask.send, against.send if compares else None, tolerance
            )
            for one in pairs:
                found.append(one)
                progress.advance(1)


class _Sender:
    """One server, asked for one version."""

    def __init__(self, args: argparse.Namespace, address: str, spec: ModelSpec) -> None:
        options = connection_options(args)
        self._channel, self._address = open_channel(grpc, address, options)
        self._headers = options.headers()
        self._spec = spec
        self._timeout_s: float = args.timeout_s
        self.send: Ask = self._send

    def _send(self, recording: Recording) -> Any:
        method = recording.method
        call = self._channel.unary_unary(
            method.path,
            request_serializer=method.request.SerializeToString,
            response_deserializer=method.response.FromString,
        )
        request = redirect(recording, self._spec)
        try:
            return call(request, timeout=self._timeout_s, metadata=self._headers)
        except grpc.RpcError as failure:
            raise explain_failure(failure, self._address, method.path, self._timeout_s) from failure

    def __enter__(self) -> _Sender:
        return self

    def __exit__(self, *_: object) -> None:
        self._channel.close()


def _report(
    args: argparse.Namespace, found: list[Comparison], skipped: list[tuple[str, str]]
) -> None:
    counts = collections.Counter(one.verdict for one in found)
    if args.json:
        print_json(
            {
                "num_requests": len(found),
                "verdicts": counts,
                "max_abs_difference": max((one.max_abs_difference for one in found), default=0.0),
                "num_top1_changed": sum(one.num_top1_changed for one in found),
                "not_agreeing": [one for one in found if one.verdict != AGREES],
                "skipped": [{"record": name, "reason": reason} for name, reason in skipped],
            }
        )
        return
    print_table(
        _HEADINGS,
        [_summarise(key, group) for key, group in _group(found).items()],
        title=f"replay of {', '.join(map(str, args.files))}",
    )
    _explain(found, skipped)


def _explain(found: list[Comparison], skipped: list[tuple[str, str]]) -> None:
    bad = [one for one in found if one.verdict != AGREES]
    for one in bad[:_SHOWN]:
        reason = one.problem or f"by up to {one.max_abs_difference:.3g}"
        remark(f"request {one.number} {one.verdict}: {reason}")
    if len(bad) > _SHOWN:
        remark(f"and {len(bad) - _SHOWN:,} more: --json lists all")
    for name, reason in skipped[:_SHOWN]:
        remark(f"skipped {name}: {reason}")
    if not found:
        remark("no request was found")


def _group(found: list[Comparison]) -> dict[tuple[str, str], list[Comparison]]:
    groups: dict[tuple[str, str], list[Comparison]] = {}
    for one in found:
        groups.setdefault((one.method_name, one.signature_name or "serving_default"), []).append(
            one
        )
    return dict(sorted(groups.items()))


def _summarise(key: tuple[str, str], group: list[Comparison]) -> list[str]:
    counts = collections.Counter(one.verdict for one in group)
    finite = [one.max_abs_difference for one in group]
    return [
        *key,
        f"{len(group):,}",
        f"{sum(one.num_rows for one in group):,}",
        *(f"{counts[verdict]:,}" for verdict in (AGREES, DIFFERS, FAILED, NOT_COMPARED)),
        f"{np.max(finite):.2e}",
        f"{sum(one.num_top1_changed for one in group):,}",
    ]
