"""What is written: a Parquet file for each unit, there whole or not at all, and never twice.

    OUT/version=3/part-<file>-<number>-<content>.parquet
    OUT/_bad_rows/version=3/part-<file>-<number>-<content>.jsonl
    OUT/_asked/version=3/<question>-<job>               while a job is at work

A part's name is made of the file and the number of the unit, and of what the unit holds, the
manifest's digest and what was asked: who finds the name need not do the work again. Its metadata
say which version answered and what came of the unit.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import posixpath
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING

import msgspec
import numpy as np

from clients.score.columns import BadRow
from clients.score.questions import name_differences, shorten_digest
from clients.score.sources import REQUESTS, ROW, SOURCE, Block, Unit, is_local
from clients.score.stores import explain_store, open_file
from contract.console.extras import import_extra
from contract.console.terminal import remark
from contract.errors import (
    ConfigError,
    DatasetError,
    PlumblineError,
    ServableUnavailableError,
)
from contract.heads import Head
from contract.remote import explain_errors, list_protocols, make_folder, open_address
from contract.signature import STRING, Array, dtype_name
from contract.statistics import Sketch, join_sketches

if TYPE_CHECKING:
    import pyarrow as pa
    from fsspec import AbstractFileSystem

SUMMARY = "plumbline.summary"
_PART = "plumbline.part"
_QUESTION = "plumbline.question"
_CONTENT = "plumbline.content"
_PREFIX = "plumbline."
_TEMPORARY = ".part-"
_BAD = "_bad_rows"
_ASKED = "_asked"
_PURPOSE = "writing scores"
_READ_ROWS = 8192
_READ_AT_ONCE = 1000
_LONG_AGO_S = 24 * 60 * 60
_WHOLE = frozenset({"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az"})
"""Protocols of stores where an object is there when all of it has come."""


class UnitSummary(msgspec.Struct, kw_only=True):
    """What came of a unit.

    Attributes:
        num_rows: Rows read.
        num_bad: Of them, those in the side file.
        num_bytes: Of the unit.
        num_judged: Rows whose answer has classes, of the first output with classes.
        num_unsure: Of them, those whose best class has a score below 0.5.
        sketches: Input name to name of a column, or of a measure of pictures, to what it held.
    """

    num_rows: int = 0
    num_bad: int = 0
    num_bytes: int = 0
    num_judged: int = 0
    num_unsure: int = 0
    sketches: dict[str, dict[str, Sketch]] = {}

    def add(self, other: UnitSummary) -> None:
        """Counts another unit in."""
        self.num_rows += other.num_rows
        self.num_bad += other.num_bad
        self.num_bytes += other.num_bytes
        self.num_judged += other.num_judged
        self.num_unsure += other.num_unsure
        self.sketches = join_sketches([self.sketches, other.sketches])


class Destination(msgspec.Struct, frozen=True, kw_only=True):
    """Where the answers go.

    Attributes:
        address: OUT.
        version: Of the model; its folder is `version=N`.
        digest: The manifest's.
        fingerprint: Hash of the digest and of everything else that an answer hangs on.
        facts: What every part says of itself: metadata of the Parquet file.
        asked: As `Question.describe` has it: so do parts, to say how another question differs.
    """

    address: str
    version: int
    digest: str
    fingerprint: str
    facts: dict[str, str]
    asked: dict[str, str] = {}

    @property
    def folder(self) -> str:
        """Of the parts, below OUT."""
        return f"version={self.version}"

    def find_address(self, path: str) -> str:
        """The address of a path in OUT."""
        system, _ = open_address(self.address)
        return path if is_local(system) else str(system.unstrip_protocol(path))

    def name_part(self, unit: Unit) -> str:
        """The name of a unit's part, without its suffix."""
        content = _hash(unit.identity, self.fingerprint)
        return f"{name_place(unit)}{content}"


def name_place(unit: Unit) -> str:
    """What the names of all parts that were ever made of a unit's place begin with."""
    return f"part-{_hash(unit.name)}-{unit.number:06d}-"


def _hash(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def find_parts(destination: Destination) -> dict[str, str]:
    """Name without suffix to path, of the parts that are there."""
    system, root = open_address(destination.address)
    folder = posixpath.join(root, destination.folder)
    system.invalidate_cache()
    return {
        posixpath.basename(path).removesuffix(".parquet"): path
        for path in _list_folder(system, folder)
        if path.endswith(".parquet")
    }


def _list_folder(system: AbstractFileSystem, folder: str) -> list[str]:
    """The paths in a folder that may not be there. `exists` takes any failure for a no."""
    try:
        return list(map(str, system.ls(folder, detail=False)))
    except FileNotFoundError:
        return []


def refuse_stale(units: Sequence[Unit], destination: Destination, parts: Mapping[str, str]) -> None:
    """Refuses to write beside answers to other rows, or of another question.

    Raises:
        ConfigError: Names the first file, and what differs; or the store refuses access.
        ServableUnavailableError: The store failed.
    """
    places: dict[str, set[str]] = {}
    for name in parts:
        place, sign, _ = name.rpartition("-")
        places.setdefault(place + sign, set()).add(name)
    for unit in units:
        others = places.get(name_place(unit), set()) - {destination.name_part(unit)}
        if others:
            differences = _name_differences(destination, unit, parts[min(others)])
            raise ConfigError(
                f"{destination.address} holds answers to {unit.describe()}, but "
                f"{'; '.join(differences)}; both together would count its rows twice: give "
                f"another OUT, or remove {destination.address}/{destination.folder}"
            )


def _name_differences(destination: Destination, unit: Unit, path: str) -> list[str]:
    """Why a part of a unit's place has another name: a clause for each reason."""
    try:
        metadata = _read_footer(destination, path).metadata or {}
        facts = {key.decode(): value.decode() for key, value in metadata.items()}
        asked = _read_question(facts)
    except (DatasetError, ValueError, msgspec.MsgspecError):
        return [f"how they differ cannot be told, since {path} is damaged"]
    differences = name_differences(asked, destination.asked, "was {other} and is {ours} now")
    content = facts.get(_CONTENT)
    if content is not None and content != _hash(unit.identity):
        what = "pictures came, went or have" if unit.kind == "pictures" else "the file has"
        differences.append(f"{what} changed since")
    return differences or [
        "the file, an option or a column differs, and the part does not tell which"
    ]


def _read_question(facts: Mapping[str, str]) -> dict[str, str]:
    """What was asked when a part was written, as far as it tells."""
    if _QUESTION in facts:
        return msgspec.json.decode(facts[_QUESTION], type=dict[str, str])
    asked = {}
    if digest := facts.get(f"{_PREFIX}manifest_digest"):
        asked["digest"] = shorten_digest(digest)
    if signature := facts.get(f"{_PREFIX}signature_name"):
        asked["signature"] = signature
    if variant := facts.get(f"{_PREFIX}engine", "").partition(" ")[2]:
        asked["variant"] = variant
    return asked


def count_parts(
    destination: Destination, units: Iterable[Unit], parts: Mapping[str, str]
) -> tuple[dict[str, str], UnitSummary]:
    """Those of the parts that are there which answer units, and what they say together. One that
    was cut off, by a file system that lost its end, or whose end is damaged, is as good as not
    there, since nothing in it can be read: it is written again.

    Raises:
        DatasetError: One is of another command, has another one's name, or fewer rows than it had.
        ConfigError: The store refuses access to one.
        ServableUnavailableError: The store failed.
    """

    def read(name: str) -> UnitSummary | None:
        try:
            return read_summary(destination, parts[name])
        except _DamagedError as error:
            remark(f"{error.message}: it is written again")
            return None

    names = [name for name in map(destination.name_part, units) if name in parts]
    whole: dict[str, str] = {}
    tally = UnitSummary()
    with ThreadPoolExecutor(REQUESTS) as pool:
        for start in range(0, len(names), _READ_AT_ONCE):
            some = names[start : start + _READ_AT_ONCE]
            for name, summary in zip(some, pool.map(read, some), strict=True):
                if summary is not None:
                    whole[name] = parts[name]
                    tally.add(summary)
    return whole, tally


class _DamagedError(DatasetError):
    """A part has no end that can be read, and so no row."""


def read_summary(destination: Destination, path: str) -> UnitSummary:
    """What a part says of its unit.

    Raises:
        DatasetError: It is damaged, has another one's name, or not as many rows as it had.
        ConfigError: The store refuses access to it.
        ServableUnavailableError: The store failed.
    """
    described = _read_footer(destination, path)
    metadata = described.metadata or {}
    try:
        summary = msgspec.json.decode(metadata[SUMMARY.encode()], type=UnitSummary)
        written_as = metadata[_PART.encode()].decode()
    except (KeyError, ValueError, msgspec.MsgspecError) as error:
        raise DatasetError(
            f"{path} is a Parquet file, but no part that this command wrote ({error}); move it "
            "elsewhere, and run again"
        ) from error
    if written_as != posixpath.basename(path).removesuffix(".parquet"):
        raise DatasetError(
            f"{path} was written as {written_as}.parquet; move it elsewhere, and run again"
        )
    if described.num_rows != summary.num_rows - summary.num_bad:
        raise DatasetError(
            f"{path} has {described.num_rows} rows, and had {summary.num_rows - summary.num_bad}; "
            "move it elsewhere, and run again"
        )
    return summary


def _read_footer(destination: Destination, path: str) -> pa.parquet.FileMetaData:
    """The end of a part, which says how many rows it has, and its metadata.

    Raises:
        DatasetError: It is gone, or damaged.
        ConfigError: The store refuses access to it.
        ServableUnavailableError: The store failed.
    """
    parquet = import_extra("pyarrow.parquet", _PURPOSE)
    pa = import_extra("pyarrow", _PURPOSE)
    try:
        with open_file(destination.find_address(path)) as file:
            return parquet.read_metadata(file)
    except FileNotFoundError as error:
        raise DatasetError(f"{path} is not there any more; run again") from error
    except (pa.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())
        raise _DamagedError(f"{path} is damaged or cut off ({reason})") from error


def read_bad_rows(destination: Destination, unit: Unit) -> list[int | None]:
    """The numbers of the rows of a unit that its side file names, None of one without a number.

    Raises:
        DatasetError: It is damaged.
        ConfigError: The store refuses access to it.
        ServableUnavailableError: The store failed.
    """
    system, root = open_address(destination.address)
    path = posixpath.join(root, _BAD, destination.folder, f"{destination.name_part(unit)}.jsonl")
    try:
        with explain_store(destination.find_address(path)):
            lines = system.cat_file(path).splitlines()
    except FileNotFoundError:
        return []
    try:
        rows = [msgspec.json.decode(line) for line in lines]
        return [None if row[ROW] is None else int(row[ROW]) for row in rows]
    except (KeyError, TypeError, ValueError, msgspec.MsgspecError) as error:
        raise DatasetError(f"{path} is no side file that this command wrote ({error})") from error


def sweep(destination: Destination) -> int:
    """Removes what dead workers left half written; how many there were.

    A worker that lives holds a lock on its file. Where there are no locks, what was not written to
    for a day is a dead one's. In object stores nothing is ever half written. What a store raises
    as it fails is the caller's to explain.
    """
    system, root = open_address(destination.address)
    folder = posixpath.join(root, destination.folder)
    if is_local(system):
        return sum(_sweep_file(path) for path in Path(folder).glob(f"{_TEMPORARY}*"))
    if not _WHOLE.isdisjoint(list_protocols(system)):
        return 0
    found = _list_folder(system, folder)
    left = [path for path in found if posixpath.basename(path).startswith(_TEMPORARY)]
    return sum(_remove_dead(system, path) for path in left)


def _sweep_file(path: Path) -> bool:
    # To be locked on NFS, a file must be open for writing.
    with suppress(OSError), path.open("r+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:
            if not _is_old(path.stat().st_mtime):
                return False
        if not os.path.samestat(os.fstat(file.fileno()), path.stat()):
            return False  # another job swept that one, and its owner has made one anew
        path.unlink()
        return True
    return False


def _is_old(seconds: float) -> bool:
    return time.time() - seconds > _LONG_AGO_S


def _open_locked(path: Path) -> IO[bytes]:
    """A new file that other jobs leave alone while it is open."""
    while True:
        file = path.open("w+b")
        with suppress(OSError):  # some file systems have no locks
            fcntl.flock(file, fcntl.LOCK_EX)
        if path.exists():
            return file
        file.close()  # another job swept it before it was locked


class WholeFile:
    """A file that comes to its place whole, or not at all. A context manager.

    Args:
        system: Where.
        path: Its place.
        folder: Where it is written if that is seen by others: what `sweep` looks at.
    """

    def __init__(self, system: AbstractFileSystem, path: str, folder: str) -> None:
        self._system = system
        self._path = path
        name = posixpath.basename(path).removeprefix("part-").partition(".")[0]
        self._temporary = posixpath.join(folder, f"{_TEMPORARY}{name}.{uuid.uuid4().hex[:8]}")
        self._is_local = is_local(system)
        make_folder(system, folder)
        self.file = self._open()

    def _open(self) -> IO[bytes]:
        if not self._is_local:
            return tempfile.TemporaryFile()
        return _open_locked(Path(self._temporary))

    def place(self) -> None:
        """Puts it there, over what is there already."""
        make_folder(self._system, posixpath.dirname(self._path))
        self.file.flush()
        if self._is_local:
            os.fsync(self.file.fileno())
            Path(self._temporary).replace(self._path)
            return
        self.file.seek(0)
        is_whole = not _WHOLE.isdisjoint(list_protocols(self._system))
        path = self._path if is_whole else self._temporary
        target = self._system.open(path, "wb")
        try:
            shutil.copyfileobj(self.file, target, 2**22)
            target.close()
            if not is_whole:
                self._move()
        except BaseException:
            # `close`, and the end of its life, would make an object of what was written.
            with suppress(Exception):
                target.discard()
            with suppress(Exception):
                target.closed = True
            if not is_whole:
                with suppress(Exception):
                    target.close()
                with suppress(Exception):
                    self._system.rm_file(path)
            raise

    def _move(self) -> None:
        try:
            self._system.mv(self._temporary, self._path)
        except Exception:  # some do not move over a file that is there, each in its own words
            if not self._system.exists(self._path):
                raise
            self._system.rm_file(self._path)
            self._system.mv(self._temporary, self._path)

    def __enter__(self) -> WholeFile:
        return self

    def __exit__(self, *_: object) -> None:
        if self._is_local:
            with suppress(OSError):  # it is not there where it was placed
                Path(self._temporary).unlink()
        with suppress(OSError):  # what a full disk did not take is tried again
            self.file.close()


def _remove(system: AbstractFileSystem, path: str) -> None:
    """Removes a file that may be there."""
    try:
        system.rm_file(path)
    except Exception:  # each has its own words for nothing being there
        if system.exists(path):
            raise


class PartWriter:
    """Writes the part of one unit. A context manager; without `finish` nothing stays.

    Args:
        destination: Where to.
        unit: What is answered.
        heads: Output name to what it means; where that is classes, the class is written beside it.
        max_bad_rows: With more of them the unit fails; None = any number.
    """

    def __init__(
        self,
        destination: Destination,
        unit: Unit,
        heads: Mapping[str, Head],
        max_bad_rows: int | None = None,
    ) -> None:
        self._destination = destination
        self._unit = unit
        self._heads = heads
        self._system, root = open_address(destination.address)
        self._name = destination.name_part(unit)
        folder = posixpath.join(root, destination.folder)
        self._folder = folder
        self._bad_path = posixpath.join(root, _BAD, destination.folder, f"{self._name}.jsonl")
        self._bad: WholeFile | None = None
        self._num_bad = 0
        self._max_bad_rows = max_bad_rows
        self._writer: pa.parquet.ParquetWriter | None = None
        self._schema: pa.Schema | None = None
        self._path = posixpath.join(folder, f"{self._name}.parquet")
        with self._explained():
            self._part = WholeFile(self._system, self._path, folder)

    def _explained(self) -> AbstractContextManager[None]:
        return explain_errors(self._destination.address)

    def write(
        self, block: Block, rows: Array, keys: Sequence[str], outputs: Mapping[str, Array]
    ) -> None:
        """Adds answers.

        Args:
            block: The rows that were read.
            rows: int64 (answered,): their numbers in the block.
            keys: Columns to carry through; without any, where each row comes from is written.
            outputs: Output name to array; axis 0 belongs to `rows`.
        """
        parquet = import_extra("pyarrow.parquet", _PURPOSE)
        pa = import_extra("pyarrow", _PURPOSE)
        columns = make_keys(self._unit, block, rows, keys)
        names = name_columns(columns, outputs)
        for name, array in outputs.items():
            if not array.ndim or len(array) != len(rows):
                raise DatasetError(
                    f"output {name!r} has the shape {array.shape} for {len(rows)} rows: it is not "
                    "of rows, and cannot be written beside them"
                )
            head = self._heads.get(name)
            if head is not None and (decided := name_classes(head, array)) is not None:
                columns[f"{names[name]}_class"] = decided
            columns[names[name]] = to_column(array)
        part = pa.table(columns)
        if self._writer is None:
            self._schema = part.schema
            facts = {f"{_PREFIX}{key}": value for key, value in self._destination.facts.items()}
            self._writer = parquet.ParquetWriter(
                self._part.file,
                part.schema.with_metadata(facts),
                use_dictionary=[name for name in part.column_names if name.endswith("_class")],
            )
        part = part.cast(self._schema)
        with self._explained():
            self._writer.write_table(part)

    def refuse(self, block: Block, bad: Sequence[BadRow], keys: Sequence[str]) -> None:
        """Adds bad rows to the side file.

        Raises:
            DatasetError: They are too many; the side file stays, to say why.
        """
        source = _name_source(self._unit)
        for reason in block.lost:
            self._tell({SOURCE: source, ROW: None, "reason": reason, "keys": {}})
        for one in bad:
            row = block.table.slice(one.row, 1).select(list(keys)).to_pylist()[0] if keys else {}
            self._tell(
                {
                    SOURCE: block.names[one.row] if block.names else source,
                    ROW: block.first_row + one.row,
                    "reason": one.reason,
                    "keys": {key: _to_plain(value) for key, value in row.items()},
                }
            )

    def _tell(self, row: dict[str, object]) -> None:
        """A line of the side file."""
        with self._explained():
            if self._bad is None:
                self._bad = WholeFile(self._system, self._bad_path, self._folder)
            self._bad.file.write(msgspec.json.encode(row) + b"\n")
        self._num_bad += 1
        if self._max_bad_rows is not None and self._num_bad > self._max_bad_rows:
            with self._explained():
                if not self._system.exists(self._path):  # another job's, with a larger limit
                    self._bad.place()
            raise DatasetError(
                f"more than {self._max_bad_rows:,} rows of {self._unit.describe()} cannot be "
                f"scored, and --max_bad_rows is {self._max_bad_rows:,}; {self._bad_path} says why; "
                "what is scored stays, and the same command with a larger one goes on"
            )

    def finish(self, summary: UnitSummary) -> None:
        """Puts the part in its place."""
        pa = import_extra("pyarrow", _PURPOSE)
        parquet = import_extra("pyarrow.parquet", _PURPOSE)
        if self._writer is None:  # no row was answered
            facts = {f"{_PREFIX}{key}": value for key, value in self._destination.facts.items()}
            empty = pa.schema([]).with_metadata(facts)
            self._writer = parquet.ParquetWriter(self._part.file, empty)
        self._writer.add_key_value_metadata(
            {
                SUMMARY: msgspec.json.encode(summary).decode(),
                _PART: self._name,
                _QUESTION: msgspec.json.encode(self._destination.asked).decode(),
                _CONTENT: _hash(self._unit.identity),
            }
        )
        with self._explained():
            self._writer.close()
            if self._bad is not None:
                self._bad.place()
            else:
                _remove(self._system, self._bad_path)  # of an attempt that ended before its part
            self._part.place()

    def __enter__(self) -> PartWriter:
        return self

    def __exit__(self, *error: object) -> None:
        if self._writer is not None:
            with suppress(OSError, ValueError):  # it would complain of a closed file otherwise
                self._writer.close()
        for file in (self._part, self._bad):
            if file is not None:
                file.__exit__(*error)


def name_columns(keys: Iterable[str], outputs: Iterable[str]) -> dict[str, str]:
    """Output to the name of its column, and of that of its classes without `_class`: its own,
    unless a key has one of them, or another output.
    """
    taken, names = set(keys), {}
    for output in sorted(outputs):
        name = output
        while name in taken or f"{name}_class" in taken:
            name += "_answer"
        taken |= {name, f"{name}_class"}
        names[output] = name
    return names


def _name_source(unit: Unit) -> str:
    return unit.name if unit.first_row >= 0 or unit.kind != "jsonl" else unit.describe()


def make_keys(unit: Unit, block: Block, rows: Array, keys: Sequence[str]) -> dict[str, pa.Array]:
    """The columns that say which rows are answered: those asked for, else where they come from.

    Args:
        unit: Of the rows.
        block: The rows.
        rows: int64: their numbers in the block.
        keys: Columns of the block.
    """
    pa = import_extra("pyarrow", _PURPOSE)
    if keys:
        return {name: block.table.column(name).take(pa.array(rows)) for name in keys}
    if unit.kind == "pictures":
        return {SOURCE: pa.array([block.names[row] for row in rows], pa.string())}
    source = pa.array([_name_source(unit)] * len(rows), pa.string())
    return {SOURCE: source, ROW: pa.array(block.first_row + rows, pa.int64())}


def to_column(array: Array) -> pa.Array:
    """An output as a column: (rows,) as it is, more axes as lists of a fixed size."""
    pa = import_extra("pyarrow", _PURPOSE)
    if dtype_name(array.dtype) == STRING:
        flat = pa.array([_decode(value) for value in array.reshape(-1)], pa.string())
    else:
        plain = array.astype(np.float32) if array.dtype.kind == "V" else array
        flat = pa.array(np.ascontiguousarray(plain).reshape(-1))
    for size in reversed(array.shape[1:]):
        flat = pa.FixedSizeListArray.from_arrays(flat, size)
    return flat


def _decode(value: bytes) -> str:
    return bytes(value).decode(errors="backslashreplace")


def _to_plain(value: object) -> object:
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)


def name_classes(head: Head, array: Array) -> pa.Array | None:
    """The class of each row; None where a row has several, or none."""
    pa = import_extra("pyarrow", _PURPOSE)
    decided = head.decide_rows(array)
    if decided is None:
        return None
    names = head.class_names
    if not names:
        return pa.array(decided)
    known = pa.array([*names, None], pa.string())
    places = np.where((decided < 0) | (decided >= len(names)), len(names), decided)
    return known.take(pa.array(places))


def check_writable(destination: Destination) -> None:
    """Finds out before the work whether OUT can be written.

    Raises:
        ConfigError: Not.
        ServableUnavailableError: The store does not answer.
    """
    system, root = open_address(destination.address)
    folder = posixpath.join(root, destination.folder)
    probe = posixpath.join(folder, f"{_TEMPORARY}probe-{uuid.uuid4().hex[:8]}")
    try:
        make_folder(system, folder)
        system.pipe_file(probe, b"")
        with suppress(FileNotFoundError):  # another job swept it
            system.rm_file(probe)
    except (PermissionError, NotADirectoryError, FileExistsError, IsADirectoryError) as error:
        raise ConfigError(f"{destination.address} cannot be written: {error}") from error
    except FileNotFoundError as error:  # no such bucket; or a place where nothing can be made
        raise ConfigError(
            f"{destination.address} cannot be written: {error.strerror or error}; is there such a "
            "bucket, or a folder to make it in?"
        ) from error
    except OSError as error:
        raise ServableUnavailableError(
            f"{destination.address} cannot be written: {error}"
        ) from error


@contextmanager
def claim(destination: Destination) -> Iterator[None]:
    """Keeps jobs that ask otherwise out of a folder while this one is at work there: of two that
    begin together at least one sees the other. Dead jobs' claims are removed as `sweep` would.

    Raises:
        ConfigError: Another is at work.
    """
    system, root = open_address(destination.address)
    folder = posixpath.join(root, _ASKED, destination.folder)
    asked = _hash(destination.fingerprint)
    path = posixpath.join(folder, f"{asked}-{uuid.uuid4().hex[:8]}")
    make_folder(system, folder)
    with ExitStack() as stack:
        question = msgspec.json.encode(destination.asked)
        if is_local(system):
            file = stack.enter_context(_open_locked(Path(path)))
            file.write(question)
            file.flush()
        else:
            system.pipe_file(path, question)
        stack.callback(_withdraw, system, path)
        system.invalidate_cache()
        for other in map(str, system.ls(folder, detail=False)):
            name = posixpath.basename(other)
            if "-" not in name or name == posixpath.basename(path):  # the folder's own marker
                continue
            if _remove_dead(system, other) or name.startswith(asked):
                continue
            differences = _name_other_question(system, other, destination)
            raise ConfigError(
                f"another job is at work in {destination.address}/{destination.folder}, "
                f"{differences}; both together would count rows twice: give another OUT, or wait "
                f"for it (if it has died, remove {other})"
            )
        yield


def _name_other_question(system: AbstractFileSystem, path: str, destination: Destination) -> str:
    """How what another job asks differs, as its claim tells; one that was made this moment may
    not tell yet.
    """
    clauses = []
    with suppress(FileNotFoundError, msgspec.MsgspecError):
        asked = msgspec.json.decode(system.cat_file(path), type=dict[str, str])
        clauses = name_differences(asked, destination.asked, "is {other} there and {ours} here")
    if not clauses:
        return "with other options, columns or another manifest"
    return f"and asks otherwise: {'; '.join(clauses)}"


def _withdraw(system: AbstractFileSystem, path: str) -> None:
    """Removes a claim. What a job came to does not hang on it."""
    try:
        with explain_errors(path):
            _remove(system, path)
    except PlumblineError as error:
        remark(f"{error.message}; other questions are refused there until that file is removed")


def _remove_dead(system: AbstractFileSystem, path: str) -> bool:
    if is_local(system):
        return _sweep_file(Path(path)) or not Path(path).exists()
    try:
        if _is_old(system.modified(path).timestamp()):
            _remove(system, path)
            return True
    except FileNotFoundError:
        return True
    except NotImplementedError:
        pass
    return False


def read_rows(destination: Destination, path: str, rows: Array) -> pa.Table:
    """Some rows of a part.

    Args:
        destination: OUT.
        path: Of the part.
        rows: int64 (count,): their numbers in it, ascending; those beyond its end are left out.

    Raises:
        DatasetError: It is damaged, or gone.
        ConfigError: The store refuses access to it.
        ServableUnavailableError: The store failed.
    """
    parquet = import_extra("pyarrow.parquet", _PURPOSE)
    pa = import_extra("pyarrow", _PURPOSE)
    address = destination.find_address(path)
    found, first = [], 0
    try:
        with open_file(address) as file, parquet.ParquetFile(file) as part:
            for batch in part.iter_batches(_READ_ROWS):
                here = rows[(rows >= first) & (rows < first + batch.num_rows)] - first
                found.append(pa.Table.from_batches([batch]).take(pa.array(here)))
                first += batch.num_rows
                if first > rows[-1]:
                    break
            return pa.concat_tables(found or [part.schema_arrow.empty_table()])
    except (pa.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())
        raise DatasetError(f"{path} cannot be read: {reason}") from error
