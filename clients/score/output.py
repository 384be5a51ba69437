"""What is written: a Parquet file for each unit, there whole or not at all, and never twice.

    OUT/version=3/part-<file>-<number>-<content>.parquet
    OUT/_bad_rows/version=3/part-<file>-<number>-<content>.jsonl

A part's name is made of the file and the number of the unit, and of what the unit holds, the
manifest's digest and what was asked: who finds the name need not do the work again. Its metadata
say which version answered and what came of the unit.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import posixpath
import tempfile
import uuid
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING

import msgspec
import numpy as np

from clients.score.columns import BadRow
from clients.score.sources import REQUESTS, ROW, SOURCE, Block, Unit, is_local
from contract.console.extras import import_extra
from contract.errors import ConfigError, DatasetError, ServableUnavailableError
from contract.heads import Head
from contract.remote import open_address
from contract.signature import STRING, Array, dtype_name
from contract.statistics import Sketch, join_sketches

if TYPE_CHECKING:
    import pyarrow as pa

SUMMARY = "plumbline.summary"
_PART = "plumbline.part"
_PREFIX = "plumbline."
_TEMPORARY = ".part-"
_BAD = "_bad_rows"
_PURPOSE = "writing scores"
_READ_ROWS = 8192


class UnitSummary(msgspec.Struct, kw_only=True):
    """What came of a unit.

    Attributes:
        num_rows: Rows read.
        num_bad: Of them, those in the side file.
        num_judged: Rows whose answer has classes, of the first output with classes.
        num_unsure: Of them, those whose best class has a score below 0.5.
        sketches: Input name to name of a column, or of a measure of pictures, to what it held.
    """

    num_rows: int = 0
    num_bad: int = 0
    num_judged: int = 0
    num_unsure: int = 0
    sketches: dict[str, dict[str, Sketch]] = {}

    def add(self, other: UnitSummary) -> None:
        """Counts another unit in."""
        self.num_rows += other.num_rows
        self.num_bad += other.num_bad
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
    """

    address: str
    version: int
    digest: str
    fingerprint: str
    facts: dict[str, str]

    @property
    def folder(self) -> str:
        """Of the parts, below OUT."""
        return f"version={self.version}"

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
    if not system.exists(folder):
        return {}
    system.invalidate_cache()
    return {
        posixpath.basename(path).removesuffix(".parquet"): path
        for path in map(str, system.ls(folder, detail=False))
        if path.endswith(".parquet")
    }


def refuse_stale(units: Sequence[Unit], destination: Destination, parts: Mapping[str, str]) -> None:
    """Refuses to write beside answers to other rows, or of another question.

    Raises:
        ConfigError: Names the first file.
    """
    places: dict[str, set[str]] = {}
    for name in parts:
        place, sign, _ = name.rpartition("-")
        places.setdefault(place + sign, set()).add(name)
    for unit in units:
        if places.get(name_place(unit), set()) - {destination.name_part(unit)}:
            raise ConfigError(
                f"{destination.address} holds answers to {unit.describe()} as it was, or with "
                "other options, columns or another manifest; both together would count its rows "
                f"twice: give another OUT, or remove {destination.address}/{destination.folder}"
            )


def read_summaries(destination: Destination, paths: Sequence[str]) -> list[UnitSummary]:
    """What parts say of their units; errors as of `read_summary`."""
    with ThreadPoolExecutor(REQUESTS) as pool:
        return list(pool.map(lambda path: read_summary(destination, path), paths))


def read_summary(destination: Destination, path: str) -> UnitSummary:
    """What a part says of its unit.

    Raises:
        DatasetError: It is damaged, has another one's name, or not as many rows as it had.
    """
    parquet = import_extra("pyarrow.parquet", _PURPOSE)
    pa = import_extra("pyarrow", _PURPOSE)
    system, _ = open_address(destination.address)
    try:
        with system.open(path, "rb") as file:
            described = parquet.read_metadata(file)
        metadata = described.metadata or {}
        summary = msgspec.json.decode(metadata[SUMMARY.encode()], type=UnitSummary)
        written_as = metadata[_PART.encode()].decode()
    except (pa.ArrowException, OSError, KeyError, msgspec.MsgspecError) as error:
        raise DatasetError(
            f"{path} is no part that this command wrote ({error}); remove it, and run again"
        ) from error
    if written_as != posixpath.basename(path).removesuffix(".parquet"):
        raise DatasetError(f"{path} was written as {written_as}.parquet; remove it, and run again")
    if described.num_rows != summary.num_rows - summary.num_bad:
        raise DatasetError(
            f"{path} has {described.num_rows} rows, and had {summary.num_rows - summary.num_bad}; "
            "remove it, and run again"
        )
    return summary


def read_bad_rows(destination: Destination, unit: Unit) -> list[int | None]:
    """The numbers of the rows of a unit that its side file names, None of one without a number.

    Raises:
        DatasetError: It is damaged.
    """
    system, root = open_address(destination.address)
    path = posixpath.join(root, _BAD, destination.folder, f"{destination.name_part(unit)}.jsonl")
    if not system.exists(path):
        return []
    try:
        rows = [msgspec.json.decode(line) for line in system.cat_file(path).splitlines()]
        return [None if row[ROW] is None else int(row[ROW]) for row in rows]
    except (OSError, KeyError, TypeError, ValueError, msgspec.MsgspecError) as error:
        raise DatasetError(f"{path} is no side file that this command wrote ({error})") from error


def sweep(destination: Destination) -> int:
    """Removes what dead workers left half written; how many there were.

    A worker that lives holds a lock on its file. On object stores nothing is ever half written.
    """
    system, root = open_address(destination.address)
    if not is_local(system):
        return 0
    removed = 0
    for path in Path(root, destination.folder).glob(f"{_TEMPORARY}*"):
        with suppress(OSError), path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
            removed += 1
    return removed


class PartWriter:
    """Writes the part of one unit. A context manager; without `finish` nothing stays.

    Args:
        destination: Where to.
        unit: What is answered.
        heads: Output name to what it means; where that is classes, the class is written beside it.
    """

    def __init__(self, destination: Destination, unit: Unit, heads: Mapping[str, Head]) -> None:
        self._destination = destination
        self._unit = unit
        self._heads = heads
        self._system, root = open_address(destination.address)
        self._name = destination.name_part(unit)
        self._path = posixpath.join(root, destination.folder, f"{self._name}.parquet")
        self._bad_path = posixpath.join(root, _BAD, destination.folder, f"{self._name}.jsonl")
        self._bad: list[dict[str, object]] = []
        self._writer: pa.parquet.ParquetWriter | None = None
        self._schema: pa.Schema | None = None
        self._temporary: Path | None = None
        try:
            self._file = self._open()
        except OSError as error:
            raise ConfigError(
                f"{destination.address} cannot be written: {error.strerror or error}"
            ) from error

    def _open(self) -> IO[bytes]:
        self._system.makedirs(posixpath.dirname(self._path), exist_ok=True)
        if not is_local(self._system):
            return tempfile.TemporaryFile()
        while True:
            name = f"{_TEMPORARY}{self._name[5:]}.{uuid.uuid4().hex[:8]}"
            self._temporary = Path(self._path).with_name(name)
            file = self._temporary.open("w+b")
            fcntl.flock(file, fcntl.LOCK_EX)
            if self._temporary.exists():
                return file
            file.close()  # another job swept it before it was locked

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
                self._file,
                part.schema.with_metadata(facts),
                use_dictionary=[name for name in part.column_names if name.endswith("_class")],
            )
        self._writer.write_table(part.cast(self._schema))

    def refuse(self, block: Block, bad: Sequence[BadRow], keys: Sequence[str]) -> None:
        """Adds bad rows to the side file."""
        for reason in block.lost:
            source = _name_source(self._unit)
            self._bad.append({SOURCE: source, ROW: None, "reason": reason, "keys": {}})
        for one in bad:
            row = block.table.slice(one.row, 1).select(list(keys)).to_pylist()[0] if keys else {}
            number = block.first_row + one.row
            self._bad.append(
                {
                    SOURCE: block.names[one.row] if block.names else _name_source(self._unit),
                    ROW: number,
                    "reason": one.reason,
                    "keys": {key: _to_plain(value) for key, value in row.items()},
                }
            )

    def finish(self, summary: UnitSummary) -> None:
        """Puts the part in its place."""
        pa = import_extra("pyarrow", _PURPOSE)
        parquet = import_extra("pyarrow.parquet", _PURPOSE)
        if self._writer is None:  # no row was answered
            facts = {f"{_PREFIX}{key}": value for key, value in self._destination.facts.items()}
            empty = pa.schema([]).with_metadata(facts)
            self._writer = parquet.ParquetWriter(self._file, empty)
        self._writer.add_key_value_metadata(
            {SUMMARY: msgspec.json.encode(summary).decode(), _PART: self._name}
        )
        self._writer.close()
        if self._bad:
            self._system.makedirs(posixpath.dirname(self._bad_path), exist_ok=True)
            lines = b"".join(msgspec.json.encode(row) + b"\n" for row in self._bad)
            self._system.pipe_file(self._bad_path, lines)
        self._file.flush()
        if self._temporary:
            os.fsync(self._file.fileno())
            self._temporary.replace(self._path)
            self._temporary = None
        else:
            self._file.seek(0)
            with self._system.open(self._path, "wb") as target:
                while piece := self._file.read(2**22):
                    target.write(piece)

    def __enter__(self) -> PartWriter:
        return self

    def __exit__(self, *_: object) -> None:
        if self._writer is not None:
            with suppress(OSError, ValueError):  # it would complain of a closed file otherwise
                self._writer.close()
        if self._temporary:
            with suppress(OSError):
                self._temporary.unlink()
        self._file.close()


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
    if head.task not in ("multiclass", "binary") or array.dtype.kind != "f":
        return None
    decided = head.decide(array)
    if decided.ndim != 1:
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
        system.makedirs(folder, exist_ok=True)
        system.pipe_file(probe, b"")
        with suppress(FileNotFoundError):  # another job swept it
            system.rm_file(probe)
    except (PermissionError, NotADirectoryError, FileExistsError, IsADirectoryError) as error:
        raise ConfigError(f"{destination.address} cannot be written: {error}") from error
    except OSError as error:
        raise ServableUnavailableError(
            f"{destination.address} cannot be written: {error}"
        ) from error


def read_rows(destination: Destination, path: str, rows: Array) -> pa.Table:
    """Some rows of a part.

    Args:
        destination: OUT.
        path: Of the part.
        rows: int64 (count,): their numbers in it, ascending; those beyond its end are left out.

    Raises:
        DatasetError: It is damaged.
    """
    parquet = import_extra("pyarrow.parquet", _PURPOSE)
    pa = import_extra("pyarrow", _PURPOSE)
    system, _ = open_address(destination.address)
    found, first = [], 0
    try:
        with system.open(path, "rb") as file, parquet.ParquetFile(file) as part:
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
