"""`python -m serving promote`, `rollback`, `retire` and `labels`: their flags and their output.

What they do is `serving.rollout.rollout`'s.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import grpc
import msgspec

from contract.console.exits import ExitCode, exit_code_of
from contract.console.flags import (
    add_credential_flags,
    positive_number,
    read_tls_files,
    read_token,
    whole_number,
)
from contract.console.terminal import print_json, print_table, remark, say
from contract.errors import ConfigError, DeadlineExceededError, PlumblineError
from contract.shadow import MAX_ROWS
from serving.rollout.audit import PROMOTE
from serving.rollout.config_file import ModelConfigFile
from serving.rollout.rollout import (
    LabelsReport,
    Outcome,
    Rollout,
    RolloutOptions,
    promote,
    read_labels,
    retire,
    rollback,
)
from serving.rollout.servers import Server, Servers
from serving.rollout.shadow import LIVE_SAMPLE, MIN_ROWS, ShadowOptions, ShadowReport


def add_promote_arguments(parser: argparse.ArgumentParser) -> None:
    """Serve a version and point a label at it, or undo all of it."""
    _add_shared_flags(parser)
    _add_version_flag(parser, "the version to promote")
    parser.add_argument("--label", required=True, help="for example stable or canary")
    _add_change_flags(parser)
    _add_parity_flags(parser)
    _add_shadow_flags(parser)


def run_promote(arguments: argparse.Namespace) -> int:
    """Promotes; 1 when it failed and everything is as it was."""
    name, version, label = arguments.model_name, arguments.version, arguments.label
    return _run_change(
        arguments, lambda rollout: promote(rollout, name, version=version, label=label)
    )


def add_rollback_arguments(parser: argparse.ArgumentParser) -> None:
    """A label goes back where it pointed before."""
    _add_shared_flags(parser)
    parser.add_argument("--label", default="", help="default: the label that was moved last")
    _add_change_flags(parser)
    _add_parity_flags(parser)


def run_rollback(arguments: argparse.Namespace) -> int:
    """Rolls back; 1 when the label is back but golden disagrees."""
    name, label = arguments.model_name, arguments.label
    return _run_change(arguments, lambda rollout: rollback(rollout, name, label=label))


def add_retire_arguments(parser: argparse.ArgumentParser) -> None:
    """A version without labels goes out of service; its files stay."""
    _add_shared_flags(parser)
    _add_version_flag(parser, "the version to retire")
    _add_change_flags(parser)


def run_retire(arguments: argparse.Namespace) -> int:
    """Retires a version."""
    name, version = arguments.model_name, arguments.version
    return _run_change(arguments, lambda rollout: retire(rollout, name, version=version))


def add_labels_arguments(parser: argparse.ArgumentParser) -> None:
    """The labels of a models.config, and where they lead."""
    _add_shared_flags(parser)


def run_labels(arguments: argparse.Namespace) -> int:
    """Prints the table; 1 when a server disagrees with the file, 3 when one does not answer."""

    def command() -> ExitCode:
        config = ModelConfigFile(arguments.model_config_file)
        report = read_labels(config, _open_servers(arguments), arguments.model_name)
        if arguments.json:
            print_json(report)
        else:
            _print_labels(report)
        if report.unreachable:
            return ExitCode.UNREACHABLE
        return ExitCode.DONE if report.agrees else ExitCode.FAILED

    return _run(command)


def _add_shared_flags(parser: argparse.ArgumentParser) -> None:
    """The file, the model, and the servers."""
    parser.add_argument(
        "--model_config_file",
        type=Path,
        required=True,
        metavar="FILE",
        help="the models.config that the servers read",
    )
    parser.add_argument("--model_name", default="default", help="default: %(default)s")
    parser.add_argument(
        "--server",
        default="127.0.0.1:8500",
        metavar="ADDRESS[,ADDRESS...]",
        help="gRPC addresses of every server that reads the file (default: %(default)s)",
    )
    parser.add_argument(
        "--timeout_s",
        type=positive_number,
        default=60.0,
        help="how long the servers may take for each step (default: %(default)g)",
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    safety = parser.add_argument_group("credentials")
    add_credential_flags(safety)


def _add_version_flag(parser: argparse.ArgumentParser, description: str) -> None:
    parser.add_argument("--version", type=int, required=True, metavar="N", help=description)


def _add_change_flags(parser: argparse.ArgumentParser) -> None:
    """How servers learn of a change."""
    parser.add_argument(
        "--reload_config",
        action="store_true",
        help="tell the servers by HandleReloadConfigRequest, instead of waiting until they poll "
        "the file (--model_config_file_poll_wait_seconds)",
    )


def _add_parity_flags(parser: argparse.ArgumentParser) -> None:
    """Where golden examples are."""
    parser.add_argument(
        "--version_dir",
        type=Path,
        metavar="PATH",
        help="where the version lies on this machine, if the servers see it under another path",
    )
    parser.add_argument("--skip_parity", action="store_true", help="check no golden examples")
    parser.add_argument(
        "--every_signature",
        action="store_true",
        help="check also the signatures that take strings, for which the embedded server loads "
        "TensorFlow",
    )


def _add_shadow_flags(parser: argparse.ArgumentParser) -> None:
    """How a version answers real calls before its label moves."""
    shadow = parser.add_argument_group(
        "shadow: the version answers real calls before the label moves"
    )
    shadow.add_argument(
        "--shadow_s",
        type=positive_number,
        metavar="SECONDS",
        help="how long; the embedded server runs a sample of its calls on both versions "
        "(--enable_reload_config)",
    )
    shadow.add_argument(
        "--shadow_sample",
        type=_share,
        metavar="SHARE",
        help=f"of the calls, above 0 and up to 1 (default: {LIVE_SAMPLE:g}; of a log: all)",
    )
    shadow.add_argument(
        "--shadow_log",
        type=Path,
        metavar="PATH",
        help="recorded calls instead of live ones: TFRecord files of PredictionLog, or their "
        "folder; for TensorFlow Serving",
    )
    shadow.add_argument(
        "--max_flips",
        type=_share_or_none,
        default=0.01,
        metavar="SHARE",
        help="of the rows, 0 to 1, whose top class may be another (default: %(default)g)",
    )
    shadow.add_argument(
        "--max_shadow_failures",
        type=whole_number,
        default=0,
        metavar="N",
        help="calls that the new version alone may fail (default: %(default)d)",
    )
    shadow.add_argument(
        "--max_shadow_difference",
        type=positive_number,
        metavar="DIFFERENCE",
        help="the largest of any output (default: any)",
    )
    shadow.add_argument(
        "--min_shadow_rows",
        type=whole_number,
        default=MIN_ROWS,
        metavar="N",
        help="fewer prove too little, and the label stays (default: %(default)d)",
    )
    shadow.add_argument(
        "--shadow_rows",
        type=whole_number,
        default=20,
        metavar="N",
        help="how many of the worst rows are kept beside the audit, as people sent them; 0 for "
        f"none, at most {MAX_ROWS} (default: %(default)d)",
    )


def _share_or_none(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not a share of 0 to 1")
    return value


def _share(text: str) -> float:
    value = _share_or_none(text)
    if not value:
        raise argparse.ArgumentTypeError(f"{text} is no share of the calls")
    return value


def _read_shadow(arguments: argparse.Namespace) -> ShadowOptions | None:
    """The flags of a shadow, if there is to be one."""
    seconds, log = getattr(arguments, "shadow_s", None), getattr(arguments, "shadow_log", None)
    if seconds is None:
        if log is not None:
            raise ConfigError("--shadow_log wants --shadow_s SECONDS, how long it may take")
        return None
    if arguments.shadow_rows > MAX_ROWS:
        raise ConfigError(f"--shadow_rows {arguments.shadow_rows}: at most {MAX_ROWS} are kept")
    return ShadowOptions(
        seconds=seconds,
        sample=arguments.shadow_sample,
        log=log,
        max_flips=arguments.max_flips,
        max_failures=arguments.max_shadow_failures,
        max_difference=arguments.max_shadow_difference,
        min_rows=arguments.min_shadow_rows,
        num_rows=arguments.shadow_rows,
    )


def _open_rollout(arguments: argparse.Namespace) -> Rollout:
    """The file and the servers of the flags."""
    options = RolloutOptions(
        is_reload_sent=getattr(arguments, "reload_config", False),
        is_parity_skipped=getattr(arguments, "skip_parity", True),
        is_every_signature_checked=getattr(arguments, "every_signature", False),
        version_dir=getattr(arguments, "version_dir", None),
        shadow=_read_shadow(arguments),
    )
    return Rollout(ModelConfigFile(arguments.model_config_file), _open_servers(arguments), options)


def _open_servers(arguments: argparse.Namespace) -> Servers:
    """The servers of the flags."""
    addresses = [one.strip() for one in arguments.server.split(",") if one.strip()]
    if not addresses:
        raise ConfigError("--server: give at least one address, such as 127.0.0.1:8500")
    credentials = None
    if tls := read_tls_files(arguments):
        credentials = grpc.ssl_channel_credentials(tls.trusted, tls.key, tls.certificate)
    token = read_token(arguments)
    metadata = [("authorization", f"Bearer {token}")] if token else []
    found = [Server(one, credentials=credentials, metadata=metadata) for one in addresses]
    return Servers(found, timeout_s=arguments.timeout_s)


def _run_change(arguments: argparse.Namespace, change: Callable[[Rollout], Outcome]) -> int:
    def command() -> ExitCode:
        outcome = change(_open_rollout(arguments))
        if arguments.json:
            _print_outcome_as_json(outcome)
        else:
            _print_parity(outcome)
            if outcome.shadow is not None:
                _print_shadow(outcome, outcome.shadow)
            say(_summarize(outcome))
        return ExitCode.DONE if outcome.passed else ExitCode.FAILED

    return _run(command)


def _run(command: Callable[[], ExitCode]) -> int:
    """Runs a command of a rollout; its errors are one line on stderr and an exit code."""
    logging.basicConfig(
        stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S"
    )
    # A promotion that is told to stop puts back what it changed, as for Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return command()
    except PlumblineError as error:
        remark(f"error: {error.message}")
        # Servers that answer, and do not follow in time, are a rollout that failed.
        has_failed = isinstance(error, DeadlineExceededError)
        return ExitCode.FAILED if has_failed else exit_code_of(error)
    except KeyboardInterrupt:
        return ExitCode.INTERRUPTED


def _print_outcome_as_json(outcome: Outcome) -> None:
    """Its fields, and the verdicts, which are properties."""
    document = {**dataclasses.asdict(outcome), "passed": outcome.passed}
    for shown, one in zip(document["parity"], outcome.parity, strict=True):
        shown["passed"] = one.passed
        for shown_report, report in zip(shown["reports"], one.reports, strict=True):
            shown_report["passed"] = report.passed
    if outcome.shadow is not None:
        shadow = msgspec.to_builtins(outcome.shadow)
        document["shadow"] = {**shadow, "passed": outcome.shadow.passed}
    print_json(document)


def _print_parity(outcome: Outcome) -> None:
    """What golden showed last: a row for each server and signature."""
    rows = []
    for one in outcome.parity:
        for report in one.reports:
            verdict = "passed" if report.passed else f"FAILED: {'; '.join(report.problems)}"
            gap = f"{report.worst.max_abs_difference:.1e}" if report.outputs else "-"
            rows.append([report.signature_name, one.address, report.num_rows, gap, verdict])
        rows += [[name, one.address, "-", "-", "untested"] for name in one.untested_names]
    if rows:
        headings = ["signature", "server", "rows", "max abs difference", "golden"]
        print_table(headings, rows, title=f"parity of version {outcome.version}")


def _print_shadow(outcome: Outcome, report: ShadowReport) -> None:
    """What real calls showed, and what was asked."""
    versions = " and ".join(map(str, report.figures.versions)) or "the old version"
    of = "live calls" if report.source == "live" else report.source
    print_table(
        ["what", "found", "limit", "verdict"],
        [
            [
                one.name,
                one.found,
                one.limit,
                _tell(one.passed) if one.limit and one.is_judged else "-",
            ]
            for one in report.checks
        ],
        title=f"shadow: version {outcome.version} beside {versions}, {report.sample:g} of {of}, "
        f"{report.seconds:.0f} s",
    )
    if report.rows_file:
        say(f"{report.num_kept} of the rows that changed, as people sent them: {report.rows_file}")


def _tell(passed: bool) -> str:
    return "passed" if passed else "FAILED"


def _summarize(outcome: Outcome) -> str:
    what = f"{outcome.action} {outcome.model_name}"
    if outcome.label:
        before = outcome.version_before
        where = "nowhere" if before is None else f"version {before}"
        what += f": label {outcome.label} from {where} to version {outcome.version}"
    else:
        what += f" version {outcome.version}"
    if outcome.passed:
        return f"{what}: done in {outcome.seconds:.1f} s; policy {outcome.policy}"
    end = "everything is as it was" if outcome.is_restored else "NOT restored: see `labels`"
    if outcome.action != PROMOTE:
        end = f"policy {outcome.policy}"
    return f"{what}: FAILED: {outcome.problem}; {end}"


def _print_labels(report: LabelsReport) -> None:
    print_table(
        ["label", "version", "server", "there"],
        [
            [one.label, one.version, address, _compare(found, one.version)]
            for one in report.labels
            for address, found in one.servers.items()
        ]
        or [[one.label, one.version, "-", "-"] for one in report.labels],
        title=f"model {report.model_name}, policy {report.policy}",
    )
    versions = sorted({version for states in report.versions.values() for version in states})
    print_table(
        ["version", "labels", "server", "state"],
        [
            [version, _join_labels(report, version), address, states.get(version, "-")]
            for version in versions
            for address, states in report.versions.items()
        ],
        title="versions",
    )
    for address, reason in report.unreachable.items():
        say(f"{address} does not answer: {reason}")


def _join_labels(report: LabelsReport, version: int) -> str:
    return ",".join(one.label for one in report.labels if one.version == version) or "-"


def _compare(found: int | None, version: int) -> str:
    if found is None:
        return "leads nowhere"
    return "ok" if found == version else f"leads to {found}"
