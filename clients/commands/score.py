"""`score`: files of rows to files of answers, on all cores or on a cluster, each row once."""

from __future__ import annotations

import argparse
import dataclasses
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path

from clients.files.fit import check_adjustment, list_remarks
from clients.files.predict import add_adjustment_flags, find_adjustment, find_scaling
from clients.score.columns import ColumnPlan
from clients.score.engines import (
    LITERT,
    NEEDS_OF_TENSORFLOW,
    SERVER,
    TENSORFLOW,
    Engine,
    EngineChoice,
    Wait,
    choose_kind,
    open_engine,
)
from clients.score.job import ended_by_sigterm, open_cluster, run_here, run_units
from clients.score.output import (
    Destination,
    UnitSummary,
    check_writable,
    claim,
    count_parts,
    find_parts,
    refuse_stale,
    sweep,
)
from clients.score.plan import describe_order, parse_map, plan_columns, try_first
from clients.score.sources import (
    EXAMPLE,
    Block,
    Unit,
    find_place,
    holds,
    list_folders,
    list_units,
    read_unit,
)
from clients.score.verify import Verdict, choose_units, draw_sample, judge, open_judges
from clients.score.worker import Task, make_task
from clients.targets import add_credential_flags, connection_options
from contract import layout
from contract.console.exits import ExitCode
from contract.console.extras import advise_extra, find_extra, is_installed, require_packages
from contract.console.flags import positive_count, whole_number
from contract.console.progress import Progress, format_seconds, show_progress
from contract.console.terminal import keep_stderr, print_json, print_table, remark, say
from contract.errors import ConfigError, DatasetError, PlumblineError
from contract.lite.runtime import has_runtime
from contract.manifest import Manifest, from_entries, read_manifest
from contract.remote import explain_errors, find_driver, open_version
from contract.signature import IMAGE_BYTES, PREDICT_METHOD, UINT8, Signature
from contract.statistics import Shift, measure_shift

DEFAULT_MAX_BAD = 100
BATCH = "batch"
"""The extra that has what scoring needs, but for drivers of addresses and TensorFlow."""

_LONG_S = 2.0


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command to the parser."""
    parser = verbs.add_parser(
        "score", help="millions of rows, on all cores or on a Ray cluster", description=__doc__
    )
    parser.add_argument(
        "input",
        type=_read_address,
        metavar="IN",
        help="Parquet, CSV, JSON lines, TFRecord or pictures: a file, a folder or a pattern, here "
        "or at s3://, gs://, ...",
    )
    parser.add_argument(
        "output", type=_read_address, metavar="OUT", help="a folder for Parquet files"
    )
    parser.add_argument(
        "--version_dir",
        required=True,
        metavar="PATH",
        help="a version directory, or a base path for its newest version; any address",
    )
    rows = parser.add_argument_group("rows")
    rows.add_argument("--signature_name", default="", metavar="NAME", help="default: by the rows")
    rows.add_argument(
        "--map",
        action="append",
        default=[],
        metavar="INPUT=COLUMN[,COLUMN...]",
        help="which columns an input is; default: by name",
    )
    rows.add_argument(
        "--keys",
        metavar="COLUMN,...",
        help="columns to carry through (default: all of single values that are no input)",
    )
    rows.add_argument(
        "--outputs", default="", metavar="NAME,...", help="outputs to write (default: all)"
    )
    rows.add_argument(
        "--max_bad_rows",
        type=whole_number,
        default=DEFAULT_MAX_BAD,
        metavar="N",
        help="give up after more than N rows that cannot be scored (default %(default)s)",
    )
    add_adjustment_flags(rows)
    rows.add_argument("--allow_non_finite", action="store_true", help="score NaN and infinity")
    engine = parser.add_argument_group("engine")
    engine.add_argument(
        "--variant",
        default=layout.FLOAT32,
        choices=layout.VARIANTS,
        metavar="VARIANT",
        help="of TFLite, in the workers (default %(default)s)",
    )
    engine.add_argument(
        "--engine",
        default="",
        choices=(LITERT, TENSORFLOW),
        metavar="ENGINE",
        help="litert or tensorflow (default: LiteRT, unless it lacks the signature)",
    )
    engine.add_argument(
        "--server",
        default="",
        metavar="ADDRESS,...",
        help="send the rows to these gRPC servers instead",
    )
    engine.add_argument("--model_name", default="", metavar="NAME", help="there")
    add_credential_flags(engine)
    cluster = parser.add_argument_group("cluster")
    cluster.add_argument(
        "--cluster", default="", metavar="ADDRESS", help="of Ray (default: RAY_ADDRESS, else here)"
    )
    cluster.add_argument(
        "--workers",
        type=positive_count,
        metavar="N",
        help="default: one for each core; 1 needs no Ray on this machine",
    )
    parser.set_defaults(run=run)


def _read_address(text: str) -> str:
    """An argparse type: an address. An empty one, of a variable that is not set, would be the
    folder that one is in.
    """
    if not text.strip():
        raise argparse.ArgumentTypeError("empty; give a path or an address (`.` is this folder)")
    return text


@dataclasses.dataclass
class Result:
    """What a job came to.

    Attributes:
        num_rows: Rows read, in all runs.
        num_scored: Of them, those with an answer.
        num_bad: The others.
        num_units: Parts in OUT.
        num_before: Of them, those that an earlier run had written.
        num_others: Parts in OUT of files that are not in IN.
        seconds: Of this run, with the start of Ray and of workers.
        start_s: Of them, until a worker began to score.
        first_s: Likewise, until the first part was there.
        rows_per_s: Of this run.
        is_steady: Whether `rows_per_s` is counted from the start of the first worker on.
        unsure: Share of answers whose class has a score below 0.5; None without classes.
        shifts: (input, column) to how far it moved.
        verdict: Of a sample of what lies in OUT.
    """

    num_rows: int = 0
    num_scored: int = 0
    num_bad: int = 0
    num_units: int = 0
    num_before: int = 0
    num_others: int = 0
    seconds: float = 0.0
    start_s: float = 0.0
    first_s: float = 0.0
    rows_per_s: float = 0.0
    is_steady: bool = False
    unsure: float | None = None
    shifts: dict[tuple[str, str], Shift] = dataclasses.field(default_factory=dict)
    verdict: Verdict = dataclasses.field(default_factory=Verdict)

    def set_speed(self, num_rows: int) -> None:
        """Finds the speed at which a run scored so many rows.

        Where workers took long to start, it is that of the time from then on. That from the first
        part on would be too high: other workers had scored most of theirs by then.
        """
        scoring_s = self.seconds - self.start_s
        self.is_steady = scoring_s > _LONG_S < self.start_s
        self.rows_per_s = num_rows / max(scoring_s if self.is_steady else self.seconds, 1e-9)


@dataclasses.dataclass(frozen=True)
class _Job:
    """A job that is ready to run."""

    units: list[Unit]
    task: Task
    plan: ColumnPlan
    version_dir: Path
    manifest: Manifest
    done: dict[str, str]
    tally: UnitSummary


def run(args: argparse.Namespace) -> ExitCode:
    """Scores; 1 when the sample differs, or no row could be scored."""
    _require_packages(args)
    with ended_by_sigterm(), open_version(args.version_dir) as version_dir:
        manifest = read_manifest(version_dir)
        choice = _choose_engine(args, version_dir, manifest)
        rows = _find_rows(args)
        with ExitStack() as stack:
            engine = stack.enter_context(_open_engine(version_dir, choice))
            plan = _plan_by_engine(args, version_dir, manifest, engine, rows)
            if plan.signature.name not in engine.signatures:
                remark(
                    f"the rows fit signature {plan.signature.name}, which LiteRT lacks: TensorFlow "
                    "scores them"
                )
                choice = EngineChoice(kind=TENSORFLOW)
                engine = stack.enter_context(_open_engine(version_dir, choice))
            _remark_rows(args, manifest, engine, rows, plan)
            job = _prepare(args, version_dir, manifest, choice, rows, plan, stack)
            result = _run(args, job)
            with explain_errors(args.output):
                sweep(job.task.destination)  # what workers left that died meanwhile
                parts = find_parts(job.task.destination)
            refuse_stale(job.units, job.task.destination, parts)  # which came meanwhile
            result.num_others = len(parts) - len(job.units)
            result.verdict = _judge(job, engine, parts)
    if args.json:
        print_json(_to_document(args, job, result))
    else:
        _print(args, job, result)
    is_good = result.verdict.passed and result.num_scored
    if is_good and result.verdict.unread:
        return ExitCode.UNREACHABLE
    return ExitCode.DONE if is_good else ExitCode.FAILED


def _require_packages(args: argparse.Namespace) -> None:
    """Names at once all that this command line needs and this machine lacks.

    Ray is asked for only once it is clear that one process is not enough; but where something is
    missing, one command is to bring it, too.
    """
    needs = dict.fromkeys(("fsspec", "pyarrow"), BATCH)
    if not has_runtime():
        needs["ai_edge_litert"] = BATCH
    if args.cluster or os.environ.get("RAY_ADDRESS"):
        needs["ray"] = BATCH
    for address in (args.input, args.output, args.version_dir):
        if driver := find_driver(address):
            needs[driver] = find_extra(driver)
    if args.engine == TENSORFLOW:
        needs |= NEEDS_OF_TENSORFLOW
    is_whole = all(map(is_installed, ("PIL", *(["ray"] if args.workers != 1 else []))))
    require_packages(needs, "scoring", likely=() if is_whole else (BATCH,))


def _choose_engine(args: argparse.Namespace, version_dir: Path, manifest: Manifest) -> EngineChoice:
    if args.server and args.engine:
        raise ConfigError("give --server or --engine, not both")
    if args.variant != layout.FLOAT32 and (args.server or args.engine == TENSORFLOW):
        raise ConfigError(
            f"--variant {args.variant} is a TFLite file, which LiteRT runs: give it without "
            "--server and --engine tensorflow"
        )
    if args.server:
        return EngineChoice(
            kind=SERVER,
            addresses=tuple(args.server.split(",")),
            model_name=args.model_name or manifest.model_name,
            version=manifest.version,
            connection=connection_options(args),
        )
    kind = args.engine or choose_kind(version_dir, args.variant, args.signature_name)
    return EngineChoice(kind=kind, variant=args.variant)


def _open_engine(version_dir: Path, choice: EngineChoice) -> Engine:
    """The engine of this process; one that takes long to start is said to be waited for."""
    wait = Wait()
    with show_progress("score", unit="", is_kept=False) as progress:
        progress.find_wait = wait.describe
        return open_engine(version_dir, choice, wait=wait)


@dataclasses.dataclass(frozen=True)
class _Rows:
    """What IN holds: its units, and the first block of rows."""

    units: list[Unit]
    block: Block


def _find_rows(args: argparse.Namespace) -> _Rows:
    if holds(args.input, args.output):
        raise ConfigError(
            f"{args.output} lies in {args.input}, where the next run would take answers for rows; "
            "give an OUT beside IN"
        )
    with show_progress("list", unit="files") as progress:
        units = list_units(args.input, progress.advance)
    lost: list[str] = []
    for block in (block for unit in units for block in read_unit(unit)):
        if block.table.num_rows:
            return _Rows(units, block)
        lost += block.lost
    raise DatasetError(f"{args.input} has no rows" + "".join(f"; {one}" for one in lost[:1]))


def _remark_rows(
    args: argparse.Namespace, manifest: Manifest, engine: Engine, rows: _Rows, plan: ColumnPlan
) -> None:
    """Says what looks wrong about the first rows, and refuses those that do not fit at all."""
    batch = try_first(rows.block, plan, engine.signatures, args.signature_name)
    if plan.is_image:
        check_adjustment(plan.adjustment, plan.signature, engine.signatures)
    if words := describe_order(rows.block, plan, manifest.data):
        remark(words)
    for one in list_remarks(batch, manifest.inputs, plan.adjustment, engine.signatures):
        remark(f"{one.text}: {one.flag} mends it" if one.flag else one.text)


def _plan_by_engine(
    args: argparse.Namespace, version_dir: Path, manifest: Manifest, engine: Engine, rows: _Rows
) -> ColumnPlan:
    """How rows become batches: of a signature of the engine's; where rows that name none fit none
    of LiteRT's, of one that the version has beside those.
    """
    name = args.signature_name
    try:
        return _plan(args, version_dir, manifest, engine.signatures, name, rows)
    except PlumblineError:
        others = _list_others(manifest, engine, rows)
        if name or args.engine or args.server or args.variant != layout.FLOAT32 or not others:
            raise
        with suppress(PlumblineError):
            one = next(iter(others.values()))
            if len(others) == 1 and one.method_name != PREDICT_METHOD:
                name = one.name  # nothing else chooses one that takes tf.Examples
            return _plan(args, version_dir, manifest, others, name, rows)
        raise


def _list_others(manifest: Manifest, engine: Engine, rows: _Rows) -> dict[str, Signature]:
    """Signatures that the engine lacks, and that rows of this kind are meant for."""
    others = {
        name: one
        for name, one in from_entries(manifest.signatures).items()
        # What that one decodes is decoded here for the other.
        if name not in engine.signatures
        and not (name == IMAGE_BYTES and UINT8 in engine.signatures)
    }
    of_examples = {name: one for name, one in others.items() if one.method_name != PREDICT_METHOD}
    if EXAMPLE in rows.block.table.column_names and of_examples:
        return of_examples
    return {name: one for name, one in others.items() if name not in of_examples}


def _plan(
    args: argparse.Namespace,
    version_dir: Path,
    manifest: Manifest,
    signatures: Mapping[str, Signature],
    signature_name: str,
    rows: _Rows,
) -> ColumnPlan:
    adjustment = dataclasses.replace(
        find_adjustment(args),
        pixels=find_scaling(version_dir, signatures, signature_name),
    )
    return plan_columns(
        rows.block,
        signatures,
        signature_name=signature_name,
        mapped=parse_map(args.map),
        keys=None if args.keys is None else _split(args.keys),
        data=manifest.data,
        folders={name for unit in rows.units for name in list_folders(unit)},
        adjustment=adjustment,
        allow_non_finite=args.allow_non_finite,
    )


def _prepare(
    args: argparse.Namespace,
    version_dir: Path,
    manifest: Manifest,
    choice: EngineChoice,
    rows: _Rows,
    plan: ColumnPlan,
    held: ExitStack,
) -> _Job:
    outputs = _split(args.outputs)
    unknown = [name for name in outputs if name not in plan.signature.outputs]
    if unknown:
        raise ConfigError(
            f"--outputs names {', '.join(unknown)}; signature {plan.signature.name!r} has "
            f"{', '.join(plan.signature.outputs)}"
        )
    task = make_task(
        version_dir,
        manifest,
        choice,
        plan,
        find_place(args.output),
        outputs=outputs,
        max_bad_rows=args.max_bad_rows,
    )
    destination = task.destination
    shown = show_progress("score", unit="", note="looks at OUT", is_kept=False)
    with explain_errors(args.output), shown:
        check_writable(destination)
        held.enter_context(claim(destination))
        sweep(destination)
        parts = find_parts(destination)
        refuse_stale(rows.units, destination, parts)
        done, tally = count_parts(destination, rows.units, parts)
    return _Job(rows.units, task, plan, version_dir, manifest, done, tally)


def _run(args: argparse.Namespace, job: _Job) -> Result:
    destination = job.task.destination
    left = [unit for unit in job.units if destination.name_part(unit) not in job.done]
    before = [unit for unit in job.units if destination.name_part(unit) in job.done]
    tally = job.tally
    result = Result(num_units=len(job.units), num_before=len(before))
    if before:
        remark(f"{len(before):,} of {len(job.units):,} parts are there already")
    _limit_bad(args, destination, tally.num_bad, "give a larger one")
    num_rows_before = tally.num_rows
    if left:
        began = first = time.perf_counter()
        with (
            keep_stderr() as shown,
            show_progress("score", is_kept=False, stream=shown) as progress,
        ):
            course = Course(progress, left, tally)
            with _start(args, job, left, course) as finished:
                for summary in finished:
                    tally.add(summary)
                    if first == began:
                        first = time.perf_counter()
                    course.tell()
                    _limit_bad(
                        args,
                        destination,
                        tally.num_bad,
                        "what is scored stays, and the same command with a larger one goes on",
                    )
            result.seconds = time.perf_counter() - began
            result.first_s = first - began
            result.start_s = course.began - began
        result.set_speed(tally.num_rows - num_rows_before)
    _add_up(result, tally, job.manifest)
    return result


class Course:
    """How far a job is: by rows where all are known before, else by the bytes of its files.

    Args:
        progress: Shows it.
        units: What is to be done.
        tally: Of the units that are finished, whose rows are added by others.

    Attributes:
        wait: Knows who is waited for.
        began: When a worker began to score, by time.perf_counter; before that, when all began.
    """

    def __init__(self, progress: Progress, units: Sequence[Unit], tally: UnitSummary) -> None:
        self.wait = Wait()
        self.began = time.perf_counter()
        self._is_begun = False
        progress.find_wait = self.wait.describe
        self._progress = progress
        self._tally = tally
        self._num_rows_before, self._num_bytes_before = tally.num_rows, tally.num_bytes
        self._num_bytes = 0
        if min(unit.num_rows for unit in units) >= 0:
            progress.expect(sum(unit.num_rows for unit in units))
        elif min(unit.num_bytes for unit in units) >= 0:
            self._num_bytes = sum(unit.num_bytes for unit in units)

    def begin(self, step: str) -> None:
        """Names what comes before the first row; what it takes says nothing of the speed."""
        self._progress.note = step
        self._progress.begin()

    def tell(self, now: UnitSummary | None = None, num_bytes: int = 0) -> None:
        """Shows what is finished.

        Args:
            now: With what came of units that are not finished yet.
            num_bytes: And how many of their bytes were read.
        """
        if not self._is_begun:
            self._is_begun, self.began = True, time.perf_counter()
            self._progress.begin()
        now = now or UnitSummary()
        num_bad = self._tally.num_bad + now.num_bad
        self._progress.note = f"{num_bad:,} bad" if num_bad else ""
        num_rows = self._tally.num_rows - self._num_rows_before + now.num_rows
        # Of a unit that is begun again, by another worker, what was told once stands.
        if num_rows > self._progress.count:
            self._progress.reach(num_rows)
        if self._num_bytes:
            num_bytes += self._tally.num_bytes - self._num_bytes_before
            share = min(1.0, num_bytes / self._num_bytes)
            self._progress.share = max(self._progress.share, share)


def _split(names: str) -> list[str]:
    """Names between commas, each once."""
    return list(dict.fromkeys(name for name in names.split(",") if name))


@contextmanager
def _start(
    args: argparse.Namespace, job: _Job, units: Sequence[Unit], course: Course
) -> Iterator[Iterator[UnitSummary]]:
    """Units as they are finished, by Ray's workers; here, where one worker would have them all."""
    is_alone = args.workers == 1 or len(units) == 1
    try:
        if is_alone and not (args.cluster or os.environ.get("RAY_ADDRESS")):
            done = run_here(
                units,
                job.task,
                job.plan,
                job.version_dir,
                on_block=course.tell,
                wait=course.wait,
            )
            with closing(done) as finished:
                yield finished
            return
        course.begin("Ray starts")
        with open_cluster(args.cluster, args.workers) as cluster:
            course.begin("workers start")
            yield run_units(
                units,
                job.task,
                job.plan,
                job.version_dir,
                cluster,
                on_block=course.tell,
                wait=course.wait,
            )
    except KeyboardInterrupt as interruption:
        raise KeyboardInterrupt(
            "what is scored stays, and the same command goes on from there"
        ) from interruption


def _judge(job: _Job, engine: Engine, parts: Mapping[str, str]) -> Verdict:
    """Compares a sample of OUT with what the version answers in process."""
    destination, signature_name = job.task.destination, job.plan.signature.name
    units = choose_units(
        [unit for unit in job.units if destination.name_part(unit) not in job.done],
        [unit for unit in job.units if destination.name_part(unit) in job.done],
        f"{destination.fingerprint} {len(job.done)}",
    )
    with show_progress("verify", unit="", note="a sample of OUT", is_kept=False):
        sample = draw_sample(
            units,
            parts,
            destination,
            job.plan,
            job.manifest.heads,
            outputs=job.task.outputs,
        )
        with open_judges(job.version_dir, job.task.engine, engine, signature_name) as judges:
            return judge(sample, judges, signature_name)


def _limit_bad(
    args: argparse.Namespace, destination: Destination, num_bad: int, advice: str
) -> None:
    if num_bad > args.max_bad_rows:
        raise DatasetError(
            f"{num_bad:,} rows cannot be scored, and --max_bad_rows is {args.max_bad_rows:,}; "
            f"{destination.address}/_bad_rows says why; {advice}"
        )


def _add_up(result: Result, tally: UnitSummary, manifest: Manifest) -> None:
    result.num_rows = tally.num_rows
    result.num_bad = tally.num_bad
    result.num_scored = result.num_rows - result.num_bad
    if tally.num_judged:
        result.unsure = tally.num_unsure / tally.num_judged
    for name, columns in tally.sketches.items():
        known = manifest.distributions.get(name, {})
        for column, sketch in columns.items():
            if column in known:
                result.shifts[name, column] = measure_shift(sketch, known[column])


def _print(args: argparse.Namespace, job: _Job, result: Result) -> None:
    destination = job.task.destination
    say(
        f"{args.output}/{destination.folder}: {job.manifest.model_name} version "
        f"{destination.version}, signature {job.plan.signature.name}"
    )
    speed = f"{result.rows_per_s:,.0f}" if result.rows_per_s else "–"
    unsure = "–" if result.unsure is None else f"{result.unsure:.2%}"
    print_table(
        ["rows", "scored", "bad", "parts", "from before", "seconds", "rows/s", "unsure"],
        [
            [
                f"{result.num_rows:,}",
                f"{result.num_scored:,}",
                f"{result.num_bad:,}",
                f"{result.num_units:,}",
                f"{result.num_before:,}",
                format_seconds(result.seconds) if result.seconds else "–",
                speed,
                unsure,
            ]
        ],
    )
    if result.is_steady:
        start = format_seconds(result.start_s)
        say(f"Workers started after {start}; rows/s are those from then on")
    if result.num_others > 0:
        say(f"{result.num_others:,} more parts lie there, of files that are not in {args.input}")
    if result.num_bad:
        say(f"Bad rows and their reasons: {args.output}/_bad_rows/{destination.folder}")
    _print_shifts(job, result)
    _print_verdict(job, result)


def _print_verdict(job: _Job, result: Result) -> None:
    verdict = result.verdict
    if not verdict.passed:
        say(f"Verdict: OUT is NOT what the model answers: {'; '.join(verdict.problems)}")
    elif verdict.unread:
        say(
            f"Verdict: not proved. Parts of the sample could not be looked at: "
            f"{'; '.join(verdict.unread)}. All is scored: run the same command for a verdict"
        )
    elif verdict.is_proof:
        differs = verdict.max_abs_difference
        say(
            f"Verdict: {verdict.num_rows:,} rows of a sample of OUT agree with "
            f"{' and '.join(verdict.judges)}, {f'within {differs:.1e}' if differs else 'exactly'}"
        )
    elif verdict.num_rows:
        say(
            f"Verdict: not proved. {verdict.num_rows:,} rows of a sample of OUT have the keys of "
            f"IN, but signature {job.plan.signature.name} runs in TensorFlow alone, which this "
            f"machine lacks: {advise_extra('serving,tensorflow')}, and run the same command"
        )
    elif result.num_scored:
        say("Verdict: not proved, since the sample was of parts of which no row could be scored")
    else:
        say("Verdict: no row could be scored")


def _print_shifts(job: _Job, result: Result) -> None:
    if not job.manifest.distributions:
        say(
            "Drift: unknown, since the manifest does not tell how inputs were spread: the version "
            "is of an older exporter, or was made without examples; export it again, with examples"
        )
        return
    if not result.shifts:
        say(
            f"Drift: not measured, since the manifest does not say how what signature "
            f"{job.plan.signature.name} takes is spread"
        )
        return
    moved = {key: one for key, one in result.shifts.items() if one.has_moved}
    if not moved:
        say(f"Drift: none of {len(result.shifts)} columns and measures has moved")
        return
    say(f"Drift: {len(moved)} of {len(result.shifts)} columns and measures have moved")
    order = sorted(moved.items(), key=lambda pair: -pair[1].psi)
    print_table(
        ["input", "column", "PSI", "missing", "unseen"],
        [
            [
                name or "–",
                column,
                f"{one.psi:.2f}",
                f"{one.missing:.1%}",
                f"{one.unseen:.1%}",
            ]
            for (name, column), one in order[:20]
        ],
    )


def _to_document(args: argparse.Namespace, job: _Job, result: Result) -> Mapping[str, object]:
    verdict = result.verdict
    return {
        "input": args.input,
        "output": f"{args.output}/{job.task.destination.folder}",
        "bad_rows": f"{args.output}/_bad_rows/{job.task.destination.folder}"
        if result.num_bad
        else None,
        "model_name": job.manifest.model_name,
        "version": job.manifest.version,
        "manifest_digest": job.manifest.digest,
        "signature_name": job.plan.signature.name,
        "engine": job.task.destination.facts["engine"],
        "keys": list(job.plan.keys),
        "num_rows": result.num_rows,
        "num_scored": result.num_scored,
        "num_bad": result.num_bad,
        "num_parts": result.num_units,
        "num_parts_before": result.num_before,
        "num_parts_of_others": result.num_others,
        "seconds": result.seconds,
        "start_seconds": result.start_s,
        "first_part_seconds": result.first_s,
        "rows_per_s": result.rows_per_s or None,
        "unsure": result.unsure,
        "drift": [
            {"input": name, "column": column, "has_moved": one.has_moved, **dataclasses.asdict(one)}
            for (name, column), one in result.shifts.items()
        ],
        "sample": {
            "num_rows": verdict.num_rows,
            "compared_with": list(verdict.judges),
            "passed": verdict.passed if verdict.is_proof or verdict.problems else None,
            "max_abs_difference": verdict.max_abs_difference,
            "problems": list(verdict.problems),
            "unread": list(verdict.unread),
        },
    }
