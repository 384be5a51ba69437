"""`parity`: every way to ask a model, against the in-process answers in golden examples."""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import functools
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from clients.doctor.probe import REST_PORT, find_rest_port, parse_address
from clients.interruption import Interrupted
from clients.on_device import explain_missing
from clients.parity import (
    AGREES,
    ALL,
    BROWSER,
    DIFFERS,
    FAILED,
    GRPC_AIO,
    HOPS,
    ON_DEVICE,
    REST,
    SKIPPED,
    UNREACHABLE,
    V2_GRPC,
    V2_REST,
    Hop,
    HopReport,
    check_hop,
    list_hops,
    make_device_hop,
)
from clients.targets import (
    DEFAULT_REST_SERVER,
    Pinned,
    add_server_flags,
    add_version_dir_flag,
    connection_options,
    open_aio_client,
    open_client,
    open_rest_client,
    open_v2_grpc,
    open_v2_rest,
)
from contract import layout
from contract.console.completion import OFFERED
from contract.console.exits import ExitCode
from contract.console.extras import import_extra
from contract.console.interrupts import left_to_asyncio
from contract.console.progress import Heartbeat
from contract.console.terminal import print_json, print_table, remark
from contract.errors import ConfigError, PlumblineError, UnimplementedError
from contract.golden import MAX_BYTES, Golden, read_golden
from contract.lite.runtime import hide_delegate_notes
from contract.parity import Predictor, Tolerance, read_tolerances

if TYPE_CHECKING:
    from clients.open_inference import OpenInferenceGrpc, OpenInferenceRest

_LOADS = "; a server may have to load the model first, or TensorFlow for it"


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command to the parser."""
    parser = verbs.add_parser(
        "parity", help="does every way to ask give the in-process answer?", description=__doc__
    )
    via = parser.add_argument(
        "--via",
        default=ALL,
        metavar="HOPS",
        help=f"with commas: {', '.join(HOPS)}; or all (default)",
    )
    setattr(via, OFFERED, (ALL, *HOPS))
    add_version_dir_flag(parser, "golden examples and TFLite variants")
    parser.add_argument(
        "--golden",
        type=Path,
        metavar="FILE",
        help="golden examples, such as `python -m exporter predict` writes",
    )
    parser.add_argument(
        "--rest_server",
        default="",
        metavar="ADDRESS",
        help="host:port or URL of REST (default: the one that --server names, else port 8501)",
    )
    parser.add_argument(
        "--browser",
        default="",
        metavar="PATH",
        help="a Chromium or Chrome for the hop `browser` (default: the one on PATH)",
    )
    parser.add_argument("--per_signature", action="store_true", help="one line per signature")
    parser.add_argument(
        "--signatures",
        metavar="NAMES",
        help="with commas (default: all that have golden examples); a server without TensorFlow "
        "has none that takes strings",
    )
    add_server_flags(parser)
    # A server may load TensorFlow for the first signature that needs it.
    parser.set_defaults(run=run, timeout_s=120.0)


def run(args: argparse.Namespace) -> ExitCode:
    """Prints one table: 0 all agree, 1 a difference or an error, 3 unreachable."""
    version_dir = layout.find_version_dir(args.version_dir) if args.version_dir else None
    path: Path | None = args.golden or (version_dir and version_dir / layout.GOLDEN)
    if path is None:
        raise ConfigError("parity needs golden examples: give --version_dir or --golden")
    whole = read_golden(path, max_bytes=None if args.golden else MAX_BYTES)
    golden = _keep_signatures(whole, args.signatures)
    if version_dir and not args.golden and args.version is None and args.version_label is None:
        # Golden examples belong to one version: a newer one may answer differently.
        args.version = layout.parse_version(version_dir.name)
    names = list_hops(args.via, version_dir)
    reports: list[HopReport] = []
    try:
        for name in names:
            remark(f"asking {name}")
            with Heartbeat(functools.partial(_tell, name, time.monotonic())):
                report = _check(name, args, version_dir, golden)
            if report.verdict == UNREACHABLE and name in (REST, V2_REST) and not args.rest_server:
                where = f"REST was looked for at {find_rest_server(args)}"
                told = f"{where}; if it is elsewhere, say so with --rest_server=HOST:PORT"
                report = dataclasses.replace(report, problems=(*report.problems, told))
            reports.append(report)
    except KeyboardInterrupt:
        _print(args, reports, path)
        raise Interrupted(f"{len(reports)} of {len(names)} hops were checked") from None
    _print(args, reports, path)
    return choose_exit_code(reports)


def _tell(name: str, begun: float) -> None:
    loads = "" if name == BROWSER or name.startswith(ON_DEVICE) else _LOADS
    remark(f"still asking {name}, {time.monotonic() - begun:.0f} s so far{loads}")


def find_rest_server(args: argparse.Namespace) -> str:
    """--rest_server, else where the server of --server has REST."""
    if args.rest_server:
        return str(args.rest_server)
    address = parse_address(args.server.split(",")[0])
    if address.is_rest:
        return address.text
    if address.is_socket:
        return DEFAULT_REST_SERVER
    return address.join(find_rest_port(address, connection_options(args).tls) or REST_PORT)


def choose_exit_code(reports: Sequence[HopReport]) -> ExitCode:
    """Whether all agree; a difference, an error or a gap outweighs what is unreachable.

    What was skipped for want of something proves nothing, and is no fault of the version.
    """
    verdicts = {report.verdict for report in reports} - {SKIPPED}
    if verdicts == {AGREES}:
        return ExitCode.DONE
    if not verdicts:
        return ExitCode.FAILED
    return ExitCode.UNREACHABLE if verdicts <= {AGREES, UNREACHABLE} else ExitCode.FAILED


def _keep_signatures(golden: Golden, names: str | None) -> Golden:
    if names is None:
        return golden
    wanted = names.split(",")
    for name in wanted:
        if name not in golden.signatures:
            known = ", ".join(golden.signatures)
            raise ConfigError(f"--signatures: no golden examples of {name!r}; there are: {known}")
    return Golden({name: golden.signatures[name] for name in wanted})


def _check(
    name: str, args: argparse.Namespace, version_dir: Path | None, golden: Golden
) -> HopReport:
    try:
        if name == BROWSER:
            return _ask_browser(args, version_dir, golden)
        if name.startswith(ON_DEVICE):
            with hide_delegate_notes():
                hop = make_device_hop(name, version_dir)
        else:
            hop = _make_server_hop(name, args, read_tolerances(version_dir).of_server)
    except UnimplementedError as error:
        if name in args.via.replace(" ", "").split(","):  # asked for by its name, not by `all`
            raise
        return HopReport(name, SKIPPED, problems=(error.message,))
    except ConfigError:
        raise
    except PlumblineError as error:
        return HopReport(name, FAILED, problems=(error.message,))
    return check_hop(hop, golden)


def _ask_browser(args: argparse.Namespace, version_dir: Path | None, golden: Golden) -> HopReport:
    from clients.web.browser import BrowserPredictor, find_browser

    if version_dir is None:
        raise ConfigError(f"--via {BROWSER} needs --version_dir, where the variant is")
    model = version_dir / layout.variant_path(layout.WEB)
    if not model.is_file():
        raise UnimplementedError(explain_missing(version_dir, layout.WEB))
    tolerance = read_tolerances(version_dir).of_variant(layout.WEB)
    browser = find_browser(args.browser)
    with BrowserPredictor(model, browser, timeout_s=args.timeout_s) as predictor:
        hop = Hop(BROWSER, tolerance, lambda: nullcontext(predictor), predictor.signature_names)
        return check_hop(hop, golden)


def _make_server_hop(name: str, args: argparse.Namespace, tolerance: Tolerance) -> Hop:
    if name in (V2_GRPC, V2_REST):
        return _make_v2_hop(name, args, tolerance)
    if name == REST:
        import_extra("httpx", "REST")

    @contextmanager
    def open_predictor() -> Iterator[Predictor]:
        if name == GRPC_AIO:
            client = open_aio_client(args, allow_non_finite=True)
            with left_to_asyncio(), asyncio.Runner() as runner:
                try:
                    yield Pinned(lambda *a, **k: runner.run(client.predict(*a, **k)), args)
                finally:
                    runner.run(client.close())
        elif name == REST:
            with open_rest_client(
                args, allow_non_finite=True, server=find_rest_server(args)
            ) as rest:
                yield Pinned(rest.predict, args)
        else:
            with open_client(args, allow_non_finite=True) as blocking:
                yield Pinned(blocking.predict, args)

    return Hop(name, tolerance, open_predictor)


def _make_v2_hop(name: str, args: argparse.Namespace, tolerance: Tolerance) -> Hop:
    """A hop by the Open Inference Protocol; an UnimplementedError where nobody speaks it."""

    def connect() -> OpenInferenceGrpc | OpenInferenceRest:
        return (
            open_v2_grpc(args)
            if name == V2_GRPC
            else open_v2_rest(args, server=find_rest_server(args))
        )

    with closing(connect()) as predictor:
        predictor.check_spoken()

    @contextmanager
    def open_predictor() -> Iterator[Predictor]:
        with closing(connect()) as predictor:
            yield Pinned(predictor.predict, args)

    return Hop(name, tolerance, open_predictor)


def _print(args: argparse.Namespace, reports: Sequence[HopReport], path: Path) -> None:
    if args.json:
        _print_json(reports, path)
        return
    columns = ["hop", "rows", "max diff", "max ULP", "top-1", "worst row", "verdict"]
    rows = [_make_row(report) for report in reports]
    if args.per_signature:
        columns.insert(1, "signature")
        rows = [row for report in reports for row in _split(report)]
    print_table(columns, rows, title=f"parity with {path}")
    for report in reports:
        for problem in report.problems:
            remark(f"{report.hop}: {problem}")


def _print_json(reports: Sequence[HopReport], path: Path) -> None:
    hops = [
        {
            "hop": report.hop,
            "verdict": report.verdict,
            "num_rows": report.num_rows,
            "max_abs_difference": report.max_abs_difference,
            "max_ulp": report.max_ulp,
            "top1_agreement": report.top1_agreement,
            "worst_row": report.worst_row,
            "problems": report.problems,
            "signatures": report.reports,
        }
        for report in reports
    ]
    print_json({"golden": str(path), "hops": hops})


def _make_row(report: HopReport) -> list[str]:
    agreement = report.top1_agreement
    return [
        report.hop,
        f"{report.num_rows:,}",
        f"{report.max_abs_difference:.1e}" if report.reports else "",
        _describe_ulp(report),
        "" if agreement is None else f"{agreement:.2%}",
        report.worst_row.rpartition("[")[2].rstrip("]"),
        report.verdict,
    ]


def _describe_ulp(report: HopReport) -> str:
    if not report.reports:
        return ""
    count = report.max_ulp
    if not report.counts_ulp:
        return "–"
    return f"{count:,}" if count < 1_000_000 else f"{count:.0e}"


def _split(report: HopReport) -> list[list[str]]:
    rows = []
    for one in report.reports:
        verdict = AGREES if one.passed else DIFFERS
        row = _make_row(dataclasses.replace(report, reports=(one,), verdict=verdict))
        rows.append([row[0], one.signature_name, *row[1:]])
    if not rows:
        hop, *rest = _make_row(report)
        rows.append([hop, "", *rest])
    return rows
