"""Before a label moves: the new version answers real calls beside the old one, and is judged by it.

live: the embedded server runs a sample of its calls on both versions (`serving.api.shadow`)
log:  recorded calls are sent to both, as TensorFlow Serving cannot do that by itself
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import logging
import math
import os
import random
import secrets
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import grpc
import msgspec
import numpy as np
from google.protobuf.message import DecodeError

from contract.agreement import bound_share, bound_share_above
from contract.errors import ConfigError, ManifestError, PlumblineError, UnimplementedError
from contract.parity import Tolerance
from contract.servable import DEFAULT_SIGNATURE_NAME, ModelSpec
from contract.shadow import (
    ShadowFigures,
    ShadowRow,
    ShadowTally,
    choose_worst,
    join_figures,
    write_shadow_rows,
)
from contract.wire.plumbline_wire.prediction_log_pb2 import PredictionLog
from contract.wire.predict import (
    decode_predict_response,
    model_spec_from_proto,
    model_spec_to_proto,
    parse_predict_request,
)
from contract.wire.rpc import PREDICT
from contract.wire.status_codes import error_from_rpc
from contract.wire.tfrecord import read_records
from serving.rollout.servers import Server, Servers

LIVE_SAMPLE, LOG_SAMPLE = 0.1, 1.0
MIN_ROWS = 300
"""None of so many flipped proves that less than one row in a hundred does."""

_EARLY_RISK = 1e-3
"""How often one look stops a version early that is just good enough; there are many looks."""
_LEASE_S = 15.0
_ASK_S = 0.5
_TELL_S = 10.0
_CALL_S = 30.0
_MAX_FILES = 20
"""Files of kept rows beside a models.config; the oldest go first."""

_LOG = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ShadowOptions:
    """How long, of how much, and what is good enough.

    Attributes:
        seconds: How long at most; a log may end before.
        sample: The share of calls, above 0 and up to 1; None for a tenth of live ones, and for all
            of a log.
        log: Recorded calls: a file, or a folder of them; None for live calls.
        max_flips: The share of rows, 0..1, whose top class may be another.
        max_failures: Calls that the new version alone may fail.
        max_difference: The largest difference of any output; None for any.
        min_rows: Fewer rows prove too little.
        num_rows: How many of the worst rows are kept; 0 for none.
    """

    seconds: float
    sample: float | None = None
    log: Path | None = None
    max_flips: float = 0.01
    max_failures: int = 0
    max_difference: float | None = None
    min_rows: int = MIN_ROWS
    num_rows: int = 20


class ShadowCheck(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the verdict.

    Attributes:
        name: What was counted.
        found: How much of it, in words.
        limit: What is allowed, in words; "" where nothing is asked.
        passed: Within it.
        is_judged: Whether there was anything to judge it by.
    """

    name: str
    found: str
    limit: str = ""
    passed: bool = True
    is_judged: bool = True


class ShadowReport(msgspec.Struct, frozen=True, kw_only=True):
    """What a shadow showed.

    Attributes:
        source: `live` or the log.
        seconds: How long it took.
        sample: The share of calls.
        figures: What was counted, over all servers; latencies stand below.
        most_flips: The share of rows, 0..1, that may flip as far as the sample proves.
        p50_us: Of the engine (live) or of whole calls (log): the old version, the new one.
        p99_us: Likewise.
        checks: The table.
        problem: Why the label stays, or "".
        rows_file: Where the worst rows are kept, or "".
        num_kept: How many they are.
    """

    source: str
    seconds: float
    sample: float
    figures: ShadowFigures
    most_flips: float
    p50_us: tuple[float, float] | None
    p99_us: tuple[float, float] | None
    checks: tuple[ShadowCheck, ...]
    problem: str
    rows_file: str = ""
    num_kept: int = 0

    @property
    def passed(self) -> bool:
        """The label may move."""
        return not self.problem


def check_shadow(servers: Servers, options: ShadowOptions) -> None:
    """Finds out, before anything is changed, whether there can be a shadow.

    Raises:
        ConfigError: A server cannot shadow, or the log is none.
        PlumblineError: The server's own refusal.
    """
    if options.log is not None:
        _list_files(options.log)
        return
    for server in servers.all:
        try:
            server.shadow(ModelSpec("", 0), secrets.token_hex(8), sample=1, lease_s=0, num_rows=0)
        except UnimplementedError as error:
            raise ConfigError(
                f"{server.address} cannot shadow live calls: the embedded server can, TensorFlow "
                "Serving cannot. Record requests instead, and give the folder with --shadow_log: a "
                "logging_config in models.config, where the server has a log collector, or the "
                "embedded server's --request_log_dir"
            ) from error


def run_shadow(
    servers: Servers,
    model_name: str,
    *,
    version: int,
    before: int | None,
    tolerance: Tolerance,
    options: ShadowOptions,
    folder: Path,
) -> ShadowReport:
    """Has a version that is AVAILABLE answer real calls, and judges it.

    Args:
        servers: Which shadow, all of them.
        model_name: Whose calls.
        version: The new version.
        before: The old one; of live calls it is whichever answered the caller.
        tolerance: Of the new version; a server reads its own.
        options: How.
        folder: Where the worst rows are kept.

    Raises:
        PlumblineError: A server does not answer, or nothing can be compared.
    """
    started = time.monotonic()
    if options.log is None:
        source, sample = "live", options.sample or LIVE_SAMPLE
        figures, rows = _shadow_live(servers, model_name, version, sample, options)
    else:
        if before is None:
            raise ConfigError(
                f"no other version of {model_name} is served, so there is nothing to compare "
                f"version {version} with"
            )
        source, sample = str(options.log), options.sample or LOG_SAMPLE
        replay = _Replay(servers.all, model_name, version, before, options)
        tally = ShadowTally(tolerance, options.num_rows)
        replay.run(tally, sample)
        figures, rows = tally.take_figures(), tally.rows
    checks, problem = judge_shadow(figures, version, options, sample=sample)
    path, num_kept = None, 0
    if rows:
        path, num_kept = _keep_rows(folder, f"{model_name}-{version}", rows)
    return ShadowReport(
        source=source,
        seconds=round(time.monotonic() - started, 3),
        sample=sample,
        figures=msgspec.structs.replace(figures, before_us=(), after_us=()),
        most_flips=bound_share_above(math.floor(figures.num_flips), figures.num_rows),
        p50_us=_find_percentile(figures, 50),
        p99_us=_find_percentile(figures, 99),
        checks=checks,
        problem=problem,
        rows_file=str(path or ""),
        num_kept=num_kept,
    )


# What is good enough.


def judge_shadow(
    figures: ShadowFigures, version: int, options: ShadowOptions, *, sample: float
) -> tuple[tuple[ShadowCheck, ...], str]:
    """The table, and why the label stays, or ""."""
    num_rows = figures.num_rows
    num_flips = math.floor(figures.num_flips + 1e-9)
    share = figures.num_flips / max(1, num_rows)
    most = bound_share_above(num_flips, num_rows)
    is_enough = num_rows >= options.min_rows
    has_failed = figures.num_failures > options.max_failures
    is_flipped = share > options.max_flips
    limit = options.max_difference
    is_far = limit is not None and not figures.max_abs_difference <= limit
    missed = figures.num_dropped + figures.num_shed + figures.num_unanswered
    checks = [
        ShadowCheck(name="calls compared", found=f"{figures.num_calls:,}"),
        ShadowCheck(
            name="rows compared",
            found=f"{num_rows:,}",
            limit=f"at least {options.min_rows:,}",
            passed=is_enough,
        ),
        ShadowCheck(
            name="top class flipped",
            found=f"{_count(num_flips, 'row')} ({share:.2%})" if num_rows else "-",
            limit=f"at most {options.max_flips:.2%}",
            passed=not is_flipped,
            is_judged=num_rows > 0,
        ),
        ShadowCheck(name="flips that the rows leave possible", found=f"up to {most:.2%}"),
        ShadowCheck(
            name=f"failures of version {version} alone",
            found=_count(figures.num_failures, "call"),
            limit=f"at most {options.max_failures:,}",
            passed=not has_failed,
            is_judged=num_rows + figures.num_failures > 0,
        ),
        ShadowCheck(
            name="largest difference",
            found=f"{figures.max_abs_difference:.1e}" if num_rows else "-",
            limit="" if limit is None else f"at most {limit:.1e}",
            passed=not is_far,
            is_judged=num_rows > 0,
        ),
        ShadowCheck(name="rows outside the tolerance", found=f"{figures.num_outside:,}"),
    ]
    for percent in (50, 99):
        times = _find_percentile(figures, percent)
        if times is not None:
            found = f"{times[0]:,.0f} µs, then {times[1]:,.0f} µs"
            checks.append(ShadowCheck(name=f"latency, p{percent}", found=found))
    if missed:
        checks.append(ShadowCheck(name="sampled calls that were not compared", found=f"{missed:,}"))
    problems = []
    if has_failed:
        problems.append(
            f"{figures.num_failures:,} calls fail on version {version} alone "
            f"(--max_shadow_failures {options.max_failures:,}): {figures.first_failure}"
        )
    if is_flipped:
        problems.append(
            f"{num_flips:,} of {num_rows:,} rows change their top class, {share:.2%} "
            f"(--max_flips {options.max_flips:g})"
        )
    if is_far:
        problems.append(
            f"answers differ by up to {figures.max_abs_difference:.3g} "
            f"(--max_shadow_difference {limit:g})"
        )
    if not problems and not is_enough:
        problems.append(_explain_too_few(figures, most, options, sample))
    return tuple(checks), "; ".join(problems)


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _explain_too_few(
    figures: ShadowFigures, most: float, options: ShadowOptions, sample: float
) -> str:
    num_rows = figures.num_rows
    text = f"not enough traffic: {num_rows:,} rows (--min_shadow_rows {options.min_rows:,})"
    if num_rows:
        text += f", which prove only that at most {most:.1%} of rows flip"
    missed = figures.num_dropped + figures.num_shed
    if missed > figures.num_calls:
        return (
            f"{text}; {missed:,} sampled calls were not run, as the server has no time or memory "
            "to spare: give it longer (--shadow_s)"
        )
    if options.log is not None:
        return (
            f"{text}; give a log with more Predict requests of this model, or a longer --shadow_s"
        )
    more = f", or a larger --shadow_sample than {sample:g}" if sample < 1 else ""
    return (
        f"{text}; only calls by label, or by no version, that an older version answers are "
        f"compared: give a longer --shadow_s{more}"
    )


def _find_percentile(figures: ShadowFigures, percent: int) -> tuple[float, float] | None:
    if not figures.before_us:
        return None
    before, after = (
        float(np.percentile(side, percent)) for side in (figures.before_us, figures.after_us)
    )
    return round(before, 1), round(after, 1)


def _is_hopeless(figures: ShadowFigures, options: ShadowOptions) -> bool:
    """Whether no more calls could change the verdict, or should be asked to."""
    flips = math.floor(figures.num_flips)
    return figures.num_failures > options.max_failures or (
        figures.num_rows >= options.min_rows
        and bound_share(flips, figures.num_rows, risk=_EARLY_RISK) > options.max_flips
    )


# Live calls.


def _shadow_live(
    servers: Servers, model_name: str, version: int, sample: float, options: ShadowOptions
) -> tuple[ShadowFigures, list[ShadowRow]]:
    """Orders the shadow, renews it while the time runs, and ends it whatever happens."""
    spec, order_id = ModelSpec(model_name, version), secrets.token_hex(8)
    seen: dict[str, ShadowFigures] = {}
    rows: list[ShadowRow] = []
    started = told = time.monotonic()
    _LOG.info(
        "version %d answers %g of the calls beside, for %g s", version, sample, options.seconds
    )
    try:
        while True:
            for server in servers.all:
                try:
                    seen[server.address], _ = server.shadow(
                        spec,
                        order_id,
                        sample=sample,
                        lease_s=_LEASE_S,
                        num_rows=options.num_rows,
                    )
                except PlumblineError:
                    if server.address not in seen:  # else it may be restarting
                        raise
            figures = join_figures(seen.values())
            now = time.monotonic()
            if now - told > _TELL_S:
                told = now
                _LOG.info("%d rows so far, %d flips", figures.num_rows, figures.num_flips)
            left_s = started + options.seconds - now
            if left_s <= 0 or _is_hopeless(figures, options):
                break
            time.sleep(min(_ASK_S, left_s))
    finally:
        for server in servers.all:
            with contextlib.suppress(PlumblineError):
                seen[server.address], kept = server.shadow(
                    spec, order_id, sample=sample, lease_s=0, num_rows=options.num_rows
                )
                rows += kept
    return join_figures(seen.values()), choose_worst(rows, options.num_rows)


# Recorded calls.


def _list_files(path: Path) -> list[Path]:
    """The files of a log, the newest first."""
    try:
        files = [path] if path.is_file() else [one for one in path.iterdir() if one.is_file()]
        files = [one for one in files if not one.name.startswith(".")]
        files.sort(key=lambda one: one.stat().st_mtime, reverse=True)
    except OSError as error:
        raise ConfigError(f"--shadow_log {path}: {error.strerror or error}") from error
    if not files:
        raise ConfigError(
            f"--shadow_log {path}: no file; give TFRecord files of PredictionLog, as request "
            "logging writes them (--request_log_dir of the embedded server)"
        )
    return files


class _Replay:
    """Sends the Predict calls of a log to two versions, in turns to each server.

    Args:
        servers: At least one.
        model_name: Whose calls.
        version: The new version.
        before: The old one.
        options: Where the log is, and how long it may take.
    """

    def __init__(
        self,
        servers: Sequence[Server],
        model_name: str,
        version: int,
        before: int,
        options: ShadowOptions,
    ) -> None:
        self._servers = servers
        self._model_name = model_name
        self._versions = (before, version)
        self._options = options

    def run(self, tally: ShadowTally, sample: float) -> None:
        """Counts into `tally` until the log or the time ends."""
        deadline = time.monotonic() + self._options.seconds
        _LOG.info("versions %d and %d answer what %s holds", *self._versions, self._options.log)
        with contextlib.ExitStack() as stack:
            channels = [stack.enter_context(server.open_channel()) for server in self._servers]
            for number, request in enumerate(self._read_requests()):
                if time.monotonic() > deadline:
                    break
                if random.random() < sample:
                    at = number % len(channels)
                    self._ask(tally, request, self._servers[at], channels[at], number)
                    if _is_hopeless(tally.take_figures(), self._options):
                        break

    def _read_requests(self) -> Iterator[PredictionLog]:
        assert self._options.log is not None
        for path in _list_files(self._options.log):
            for data in read_records(path):
                try:
                    log = PredictionLog.FromString(data)
                except DecodeError as error:
                    raise ManifestError(f"{path} is no log of requests: {error}") from error
                spec = log.predict_log.request.model_spec
                is_ours = log.WhichOneof("log_type") == "predict_log"
                if is_ours and spec.name == self._model_name and not spec.HasField("version"):
                    yield log

    def _ask(
        self,
        tally: ShadowTally,
        log: PredictionLog,
        server: Server,
        channel: grpc.Channel,
        number: int,
    ) -> None:
        request = log.predict_log.request
        asked = model_spec_from_proto(request.model_spec)
        answers: list[bytes | grpc.RpcError] = [b"", b""]
        times = [0.0, 0.0]
        call = channel.unary_unary(PREDICT.path)
        for side in (0, 1) if number % 2 else (1, 0):
            spec = ModelSpec(
                self._model_name, self._versions[side], signature_name=asked.signature_name
            )
            request.model_spec.CopyFrom(model_spec_to_proto(spec))
            body = request.SerializeToString()
            started = time.perf_counter()
            try:
                answers[side] = call(body, timeout=_CALL_S, metadata=tuple(server.metadata))
            except grpc.RpcError as error:
                answers[side] = error
            times[side] = (time.perf_counter() - started) * 1e6
        before, after = answers
        if isinstance(before, grpc.RpcError):
            tally.miss("unanswered")
            return
        if isinstance(after, grpc.RpcError):
            tally.fail(error_from_rpc(after).message)
            return
        try:
            tally.compare(
                asked.signature_name or DEFAULT_SIGNATURE_NAME,
                parse_predict_request(body).decode_inputs(),
                version=self._versions[0],
                before=decode_predict_response(before)[1],
                after=decode_predict_response(after)[1],
                times_us=(times[0], times[1]),
            )
        except PlumblineError as error:
            tally.fail(error.message)


# The rows.


def find_rows_folder(config: Path) -> Path:
    """`models.config.shadow` for `models.config`."""
    return config.with_name(f"{config.name}.shadow")


def _keep_rows(folder: Path, stem: str, rows: Sequence[ShadowRow]) -> tuple[Path, int]:
    """Writes the worst rows where their owner alone reads them: people sent them."""
    when = datetime.datetime.now(datetime.UTC).strftime("%Y%m%dT%H%M%S")
    path = folder / f"{stem}-{when}.npz"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        folder.chmod(0o700)
        partial = folder / f".{path.name}.{os.getpid()}"
        num_kept = write_shadow_rows(partial, rows)
        partial.chmod(0o600)
        partial.replace(path)
        files = sorted(folder.glob("*.npz"), key=lambda one: one.stat().st_mtime, reverse=True)
        for old in files[_MAX_FILES:]:
            old.unlink(missing_ok=True)
    except OSError as error:
        raise ConfigError(
            f"{folder}: the rows that changed cannot be kept ({error.strerror or error}); "
            "--shadow_rows 0 keeps none"
        ) from error
    return path, num_kept
