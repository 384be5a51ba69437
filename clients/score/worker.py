"""What a worker does: a unit in, a part out."""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from clients.results import flatten
from clients.score.columns import BadRow, ColumnPlan, Prepared, prepare, read_planned
from clients.score.engines import LITERT, Engine, EngineChoice, Wait, open_engine
from clients.score.output import Destination, PartWriter, UnitSummary
from clients.score.questions import Question
from clients.score.sources import Block, Unit
from contract import layout
from contract.console.extras import import_extra
from contract.errors import (
    InternalError,
    ManifestError,
    PlumblineError,
    VerificationError,
)
from contract.golden import read_golden
from contract.manifest import Manifest, check_files, read_manifest
from contract.parity import replay
from contract.signature import Array, Batch
from contract.statistics import find_scaling, join_sketches, measure_columns, sketch_columns

if TYPE_CHECKING:
    from contract.statistics import Sketch

_SKETCHED_ROWS = 512
"""Of a block, at most."""

_UNSURE = 0.5


OnBlock = Callable[[UnitSummary, int], None]
"""Told of a unit that is scored: what came of it so far, and how many of its bytes were read."""


class Version(msgspec.Struct, frozen=True, kw_only=True):
    """A version as it reaches every node.

    Attributes:
        path: Where it lies on the machine that the job was started on.
        digest: Its manifest's.
        number: Its version.
    """

    path: str
    digest: str
    number: int


class Task(msgspec.Struct, frozen=True, kw_only=True):
    """What every worker of a job is told.

    Attributes:
        version: The model.
        engine: What scores.
        destination: Where the answers go.
        outputs: Those that are written; () = all.
        max_bad_rows: Of a unit; with more of them the job ends.
    """

    version: Version
    engine: EngineChoice
    destination: Destination
    outputs: tuple[str, ...] = ()
    max_bad_rows: int | None = None


class Scorer:
    """Scores units, one after the other, with one engine.

    Args:
        task: What the job is.
        plan: How rows become batches.
        version_dir: Where `place_version` found it on this machine, or laid it.
        wait: Told of servers that are waited for.

    Raises:
        PlumblineError: This machine's processor answers the golden examples otherwise.
    """

    def __init__(
        self, task: Task, plan: ColumnPlan, version_dir: Path, wait: Wait | None = None
    ) -> None:
        self._task = task
        self._plan = plan
        self._manifest = read_manifest(version_dir)
        signature_name = plan.signature.name
        self._engine = open_checked_engine(version_dir, task.engine, signature_name, wait)

    def score(self, unit: Unit, on_block: OnBlock = lambda *_: None) -> UnitSummary:
        """Reads, scores and writes one unit.

        Args:
            unit: What is to be done.
            on_block: Told how far it is.

        Raises:
            PlumblineError: It cannot be read, scored or written; nothing of it stays.
        """
        summary = UnitSummary(num_bytes=unit.num_bytes)
        heads = self._manifest.heads
        limit = self._task.max_bad_rows
        with PartWriter(self._task.destination, unit, heads, limit) as writer:
            for block in read_planned(unit, self._plan):
                try:
                    prepared = prepare(block, self._plan)
                    bad = [*prepared.bad, *self._answer(block, prepared, writer, summary)]
                except PlumblineError as error:
                    raise type(error)(f"{unit.describe()}: {error.message}") from error
                writer.refuse(block, bad, self._plan.keys)
                summary.num_rows += block.table.num_rows + len(block.lost)
                summary.num_bad += len(bad) + len(block.lost)
                on_block(summary, block.num_bytes)
            if summary.num_rows == summary.num_bad:
                self._write_nothing(writer)
            writer.finish(summary)
        return summary

    def _write_nothing(self, writer: PartWriter) -> None:
        """Gives a part without rows the columns of the others, as far as the signature tells."""
        pa = import_extra("pyarrow", "scoring files")
        specs = self._plan.signature.outputs
        names = self._task.outputs or sorted(specs)
        keys = {name: pa.array([], self._plan.types[name]) for name in self._plan.keys}
        none = {}
        for name in names:
            sizes = [size for size in (specs[name].shape or (None, None))[1:] if size is not None]
            if len(sizes) + 1 != len(specs[name].shape or ()):
                return
            none[name] = np.empty((0, *sizes), specs[name].numpy_dtype)
        writer.write(Block(pa.table(keys), 0), np.empty(0, np.int64), self._plan.keys, none)

    def _answer(
        self, block: Block, prepared: Prepared, writer: PartWriter, summary: UnitSummary
    ) -> list[BadRow]:
        if not len(prepared.rows):
            return []
        signature_name = self._plan.signature.name
        answers = self._engine.answer(prepared.batch, signature_name)
        # In the same order in all parts: servers answer in any.
        names = self._task.outputs or sorted(answers.outputs)
        outputs = {name: answers.outputs[name] for name in names}
        if len(answers.rows):
            writer.write(block, prepared.rows[answers.rows], self._plan.keys, outputs)
            self._count(prepared, outputs, summary)
        return [BadRow(int(prepared.rows[row]), text) for row, text in answers.failed.items()]

    def _count(
        self, prepared: Prepared, outputs: Mapping[str, Array], summary: UnitSummary
    ) -> None:
        """What the summary says of inputs and answers."""
        found = sketch_batch(prepared, self._manifest)
        summary.sketches = join_sketches([summary.sketches, found])
        for name, head in self._manifest.heads.items():
            if name in outputs and (scores := head.find_confidence(outputs[name])) is not None:
                summary.num_judged += len(scores)
                summary.num_unsure += int((scores < _UNSURE).sum())
                break

    def close(self) -> None:
        """Ends the engine."""
        self._engine.close()


def sketch_batch(prepared: Prepared, manifest: Manifest) -> dict[str, dict[str, Sketch]]:
    """Counts some rows of a batch in the bins of the version's own, in its numbers."""
    found: dict[str, dict[str, Sketch]] = {}
    batch: Batch = prepared.batch
    for name, array in batch.items():
        known = manifest.distributions.get(name)
        key = name
        if known is None and len(manifest.distributions) == 1 and len(batch) == 1:
            key, known = next(iter(manifest.distributions.items()))
        if not known or not array.ndim:
            continue
        step = -(-len(array) // _SKETCHED_ROWS)
        rows = array[::step]
        statistics = manifest.inputs.get(key)
        shape = statistics.image_shape if statistics else ()
        if statistics and shape and rows.dtype == np.uint8:
            scaling = find_scaling(statistics)
            rows = scaling.apply(rows) if scaling is not None else rows
        names = manifest.data.columns if manifest.data else ()
        sketches = sketch_columns(measure_columns(rows, names=names, image_shape=shape), known)
        for column, sketch in sketches.items():
            # Of all rows, although the values of some were looked at.
            known_missing = prepared.missing.get(column, prepared.missing.get(name))
            sketch.num_missing = sketch.num_missing if known_missing is None else known_missing
            sketch.num_unseen = prepared.unseen.get(column, 0)
            sketch.num_rows = prepared.num_rows
        found[key] = sketches
    return found


def open_checked_engine(
    version_dir: Path, choice: EngineChoice, signature_name: str, wait: Wait | None = None
) -> Engine:
    """An engine that has just answered the golden examples of a signature as the model did.

    Raises:
        VerificationError: Another processor: names this machine.
    """
    engine = open_engine(version_dir, choice, is_patient=True, wait=wait)
    try:
        _check_golden(engine, version_dir, signature_name, choice.addresses)
    except BaseException:
        engine.close()
        raise
    return engine


def _check_golden(engine: Engine, version_dir: Path, name: str, servers: tuple[str, ...]) -> None:
    if not (version_dir / layout.GOLDEN).is_file():
        return
    golden = read_golden(version_dir / layout.GOLDEN).signatures
    if name not in golden or name not in engine.signatures:
        return
    report = replay(golden[name], engine, engine.tolerance, signature_name=name)
    if not report.passed:
        what = f"the golden examples of {version_dir.name} otherwise than the model did"
        how = f"{name}: {'; '.join(report.problems)}"
        if servers:
            raise VerificationError(
                f"{', '.join(servers)} answers {what}: {how}; nothing was scored: is it the same "
                "version that is served there, under --model_name?"
            )
        raise VerificationError(
            f"{name_node()} answers {what}: {how}; nothing was scored there: leave that machine "
            "out, or score with --server"
        )


def name_node() -> str:
    """What this machine is called, in errors."""
    try:
        import ray

        if ray.is_initialized():
            return f"{socket.gethostname()} ({ray.util.get_node_ip_address()})"
    except ImportError:
        pass
    return socket.gethostname()


def place_version(version: Version, load: Callable[[], Mapping[str, bytes]]) -> Path:
    """Where a version lies on this machine, just checked; it is laid there first where it does
    not. All its files are hashed, and once: a worker needs no other check.

    Args:
        version: Which.
        load: Its files, by their paths in it.

    Raises:
        ManifestError: Files where the job found the version are not those of its manifest; or
            what was loaded is not the version.
        InternalError: No room.
    """
    path = Path(version.path)
    if (manifest := _find_manifest(path, version)) is not None:
        check_files(path, manifest)
        return path
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(cache, "plumbline", "versions", version.digest)
    place = folder / str(version.number)
    if _is_whole(place, version):  # before the lock: workers need not hash one after the other
        return place
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not _is_whole(place, version):  # another worker may have laid it meanwhile
                shutil.rmtree(place, ignore_errors=True)
                _unpack(load(), place, version)
    except OSError as error:
        raise InternalError(
            f"{name_node()} cannot keep the version in {folder}: {error}"
        ) from error
    return place


def _find_manifest(place: Path, version: Version) -> Manifest | None:
    """The manifest of what lies there, where it is that of the version."""
    try:
        found = read_manifest(place)
    except (ManifestError, OSError):
        return None
    return found if found.digest == version.digest else None


def _is_whole(place: Path, version: Version) -> bool:
    manifest = _find_manifest(place, version)
    if manifest is None:
        return False
    try:
        check_files(place, manifest)
    except (ManifestError, OSError):
        return False
    return True


def _unpack(files: Mapping[str, bytes], place: Path, version: Version) -> None:
    stage = Path(tempfile.mkdtemp(prefix=".stage-", dir=place.parent))
    try:
        for name, data in files.items():
            path = stage / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        if not _is_whole(stage, version):
            raise ManifestError(
                f"{version.path} is no longer the version that the job began with; run again"
            )
        stage.rename(place)
    except BaseException:
        shutil.rmtree(stage, ignore_errors=True)
        raise


def pack_version(version_dir: Path) -> dict[str, bytes]:
    """The files of a version, by their paths in it: what `place_version` lays elsewhere."""
    return {name: (version_dir / name).read_bytes() for name in layout.list_files(version_dir)}


def make_task(
    version_dir: Path,
    manifest: Manifest,
    engine: EngineChoice,
    plan: ColumnPlan,
    address: str,
    *,
    outputs: Sequence[str] = (),
    max_bad_rows: int | None = None,
) -> Task:
    """What every worker is told of a job that writes to `address`; as `Task` otherwise."""
    facts = {
        "model_name": manifest.model_name,
        "version": str(manifest.version),
        "manifest_digest": manifest.digest,
        "signature_name": plan.signature.name,
        "engine": f"{engine.kind} {engine.variant}" if engine.kind == LITERT else engine.kind,
    }
    question = Question.of(plan, digest=manifest.digest, outputs=outputs, variant=engine.variant)
    destination = Destination(
        address=address,
        version=manifest.version,
        digest=manifest.digest,
        fingerprint=question.fingerprint,
        asked=question.describe(),
        facts=facts,
    )
    version = Version(
        path=str(version_dir.resolve()), digest=manifest.digest, number=manifest.version
    )
    return Task(
        version=version,
        engine=engine,
        destination=destination,
        outputs=tuple(outputs),
        max_bad_rows=max_bad_rows,
    )


class WorkerFault(msgspec.Struct, kw_only=True):
    """An error as it travels from a worker: its kind and its text."""

    kind: str
    text: str

    @classmethod
    def of(cls, error: Exception, where: str = "") -> WorkerFault:
        """Of an error; one that nobody foresaw says where, and its kind."""
        if isinstance(error, PlumblineError):
            return cls(kind=type(error).__name__, text=flatten(error))
        text = f"{where or name_node()}: {type(error).__name__}: {' '.join(str(error).split())}"
        return cls(kind="InternalError", text=text)

    def rebuild(self) -> PlumblineError:
        """The error again."""
        from contract import errors

        kind = getattr(errors, self.kind, InternalError)
        if not (isinstance(kind, type) and issubclass(kind, PlumblineError)):
            kind = InternalError
        return kind(self.text)
