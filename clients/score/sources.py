"""Where rows come from: Parquet, CSV, JSON lines, TFRecord and folders of pictures, at any address.

The unit of work is a row group of a Parquet file, a piece of a JSON lines file, a whole CSV or
TFRecord file, or so many pictures. Units never change between runs over the same files, so that
what one run has done, the next can recognise.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import itertools
import os
import posixpath
import re
import struct
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Any, BinaryIO, cast
from urllib.parse import unquote

import msgspec

from clients.files.read import IMAGE_SUFFIXES
from clients.score.lines import CSV_BLOCK_BYTES, check_names, cut, read_csv, read_json
from clients.score.stores import explain_store, open_file
from contract.console.extras import import_extra
from contract.errors import ConfigError, DatasetError, ManifestError
from contract.remote import explain_errors, list_protocols, open_address

if TYPE_CHECKING:
    import pyarrow as pa
    from fsspec import AbstractFileSystem

BLOCK_ROWS = 8192
"""Rows in memory at a time."""

BLOCK_BYTES = 64 * 2**20
"""Likewise, where rows are wide."""

PICTURES = 1024
"""Pictures in a unit."""

PIECE_BYTES = 64 * 2**20
"""Of a JSON lines file, in a unit."""

_BUFFER_BYTES = 2**20

REQUESTS = 16
"""To a file system at a time: one that is far away takes long to answer each."""

SOURCE, ROW = "source", "source_row"
"""Names of the columns that say where a row comes from, where a file has no keys."""

IMAGE = "image"
EXAMPLE = "example"
"""Names of the only column of pictures and of serialized tf.Examples."""

_BLANK = b"\xef\xbb\xbf \t\r\n"
"""Bytes of lines that hold nothing: those of a byte order mark too."""

_PACKED = (".gz", ".bz2", ".xz", ".zst", ".zip")

_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]*://")
_WILD = "*?["
_SOME_PART = "version=1/part-0123456789abcdef-000000-0123456789abcdef.parquet"

_NO_VALUE = "__HIVE_DEFAULT_PARTITION__"

_PURPOSE = "scoring files"
_TELL_TALES = (
    *("ETag", "etag", "md5Hash", "crc32c", "checksum"),
    *("mtime", "LastModified", "last_modified"),
)
"""What file systems say of a file, checksums before ages."""

_SAYS_THE_SAME = frozenset({"file", "local", "s3", "s3a"})
"""Protocols of file systems that say the same of a file alone and in the list of a folder."""

_Info = dict[str, Any]
"""What a file system says of a file, as fsspec has it."""

_FOOTER = struct.Struct("<I")
_MAGIC = b"PAR1"


class Unit(msgspec.Struct, frozen=True, kw_only=True):
    """What one call of a worker reads, scores and writes.

    Attributes:
        kind: `parquet`, `csv`, `jsonl`, `tfrecord` or `pictures`.
        address: Of the file; of the folder for pictures.
        name: The file or folder relative to IN, for people, and for the name of what is written.
        number: Of the unit within its file or folder, from 0.
        first_row: Number of its first row within the file; -1 where that is not known.
        num_rows: Its rows; -1 where that is not known before they are read.
        num_bytes: Of the file or files, that it is; of Parquet, what it takes unpacked. -1 where
            the file system does not say.
        start: Of a JSON lines file, the byte where it begins.
        stop: And where it ends.
        files: Of pictures, what their addresses have after the folder's: a unit holds many, and
            travels; whole where an address does not begin with the folder's.
        identity: Hash of what the file holds, as far as can be told without reading it all.
    """

    kind: str
    address: str
    name: str
    number: int = 0
    first_row: int = 0
    num_rows: int = -1
    num_bytes: int = -1
    start: int = 0
    stop: int = 0
    files: tuple[str, ...] = ()
    identity: str = ""

    def describe(self) -> str:
        """For example `rows.parquet, row group 3`."""
        what = {"parquet": "row group", "jsonl": "piece", "pictures": "pictures"}.get(self.kind)
        return f"{self.name}, {what} {self.number}" if what else self.name


def find_place(address: str) -> str:
    """An address that means the same in every process: of a local path the absolute one."""
    system, path = open_address(address)
    return path if is_local(system) else str(system.unstrip_protocol(path))


def is_local(system: AbstractFileSystem) -> bool:
    """Whether its files are files of this machine."""
    return "file" in list_protocols(system)


def holds(address: str, other: str) -> bool:
    """Whether what is written at another address would be found at this one: a folder or a pattern.

    Args:
        address: IN.
        other: A folder, which need not be there.
    """
    (system, path), (other_system, inner) = open_address(address), open_address(other)
    if system.protocol != other_system.protocol:
        return False
    with explain_errors(address):
        is_pattern = _is_pattern(system, path)
    if is_pattern:
        root = _find_root(path)
        rest = path[len(root) :].lstrip("/")
        if is_local(system):
            root, inner = os.path.realpath(root or "."), os.path.realpath(inner)
        pattern = _translate(f"{root.rstrip('/')}/" if root else "", rest, address)
        return pattern.match(f"{inner}/{_SOME_PART}") is not None
    with explain_errors(address):
        if not system.isdir(path):
            return False
    if is_local(system):
        path, inner = os.path.realpath(path), os.path.realpath(inner)
    return f"{inner}/".startswith(path.rstrip("/") + "/")


def _is_pattern(system: AbstractFileSystem, path: str) -> bool:
    """Whether it has wild cards, and is no file or folder that is called so."""
    return any(char in path for char in _WILD) and not system.exists(path)


def _find_root(pattern: str) -> str:
    """The folder that holds all that a pattern may match, as far as it is named."""
    return posixpath.dirname(pattern[: min(pattern.find(c) for c in _WILD if c in pattern)])


def _translate(root: str, rest: str, address: str) -> re.Pattern[str]:
    utils = import_extra("fsspec.utils", f"{_PURPOSE} at {address}")
    try:
        return re.compile(re.escape(root) + utils.glob_translate(rest))
    except ValueError as error:
        raise ConfigError(f"{address}: {error}") from error


def list_units(address: str, on_listed: Callable[[], None] = lambda: None) -> list[Unit]:
    """The units of a file or a folder, in the order of their names.

    Args:
        address: A file, a folder whose files are all of one kind (at any depth; names that begin
            with a dot or an underscore are left out), or a pattern with `*`.
        on_listed: Called for each table whose units are known: of Parquet the footer is read.

    Raises:
        ConfigError: Nothing there, nothing of a kind that is known, or access is refused.
        DatasetError: A Parquet file that cannot be read.
        ServableUnavailableError: The address cannot be reached.
        UnimplementedError: A package is missing; says which.
    """
    system, path = open_address(address)
    root, files = _list_files(system, path, address)
    pictures = [one for one in files if _suffix(one) in IMAGE_SUFFIXES]
    tables = [one for one in files if _suffix(one) in _KINDS]
    packed = [one for one in files if _is_packed(one)]
    if packed:
        raise ConfigError(
            f"{posixpath.basename(packed[0])} is compressed, and would be left out: unpack it "
            "(Parquet is compressed within), or leave it out by a pattern: 'IN/*.csv'"
        )
    if not pictures and not tables:
        raise ConfigError(
            f"{address} holds nothing that can be scored; give files that end in "
            f"{', '.join(sorted({*_KINDS, *IMAGE_SUFFIXES}))}"
        )
    if pictures and tables:
        raise ConfigError(
            f"{address} holds both pictures and tables ({posixpath.basename(tables[0])}, ...); "
            "give one kind at a time, by folder or pattern: 'IN/*.parquet'"
        )
    if pictures:
        return _list_pictures(system, {path: files[path] for path in pictures}, root)
    units: list[Unit] = []
    with ThreadPoolExecutor(REQUESTS) as pool:
        listed = pool.map(
            lambda file: _list_units_of(system, file, _relate(file, root), files[file]), tables
        )
        for some in listed:
            units += some
            on_listed()
    return units


def _list_files(
    system: AbstractFileSystem, path: str, address: str
) -> tuple[str, dict[str, _Info]]:
    """The folder that names are relative to, and what the file system says of each file."""
    found: dict[str, _Info]
    with explain_errors(address):
        if _is_pattern(system, path):
            found = system.glob(path, detail=True)
            folder = _find_root(path)
        elif system.isfile(path):
            return posixpath.dirname(path), {path: system.info(path)}
        else:
            found = system.find(path, detail=True) if system.isdir(path) else {}
            folder = path
    files = {
        path: info
        for path, info in sorted(found.items())
        if info["type"] != "directory" and not _is_hidden(_relate(path, folder))
    }
    if not files:
        raise ConfigError(f"{address}: no such file, or a folder without any")
    return folder, files


def _is_hidden(name: str) -> bool:
    return any(part[:1] in {".", "_"} for part in name.split("/"))


def _relate(path: str, root: str) -> str:
    return path[len(root) :].lstrip("/") if root and path.startswith(root) else path


def _is_packed(path: str) -> bool:
    """Whether it holds rows, but has to be unpacked first."""
    inner, suffix = posixpath.splitext(path)
    return suffix.lower() in _PACKED and _suffix(inner) in _KINDS


def _suffix(path: str) -> str:
    return posixpath.splitext(path)[1].lower()


def _list_units_of(system: AbstractFileSystem, path: str, name: str, info: _Info) -> list[Unit]:
    kind = _KINDS[_suffix(path)]
    address = str(system.unstrip_protocol(path))
    if kind == "parquet":
        return _list_row_groups(address, name, info)
    size, identity = int(info["size"] or 0), _identify(info)
    if kind != "jsonl":
        return [
            Unit(
                kind=kind,
                address=address,
                name=name,
                num_bytes=_count_bytes([info]),
                identity=identity,
            )
        ]
    starts = range(0, max(size, 1), PIECE_BYTES)
    return [
        Unit(
            kind=kind,
            address=address,
            name=name,
            number=number,
            first_row=0 if number == 0 else -1,
            num_bytes=min(PIECE_BYTES, size - start),
            start=start,
            stop=min(start + PIECE_BYTES, size),
            identity=identity,
        )
        for number, start in enumerate(starts)
    ]


def _list_row_groups(address: str, name: str, info: _Info) -> list[Unit]:
    parquet = import_extra("pyarrow.parquet", _PURPOSE)
    pa = import_extra("pyarrow", _PURPOSE)
    try:
        with open_file(address) as file:
            footer = _read_footer(file)
        described = parquet.read_metadata(io.BytesIO(_MAGIC + footer))
    except (pa.ArrowException, OSError, ValueError, struct.error) as error:
        reason = " ".join(str(error).split())
        raise DatasetError(f"{address} is no Parquet file that can be read: {reason}") from error
    identity = hashlib.sha256(footer).hexdigest() + _identify(info)
    groups = [described.row_group(number) for number in range(described.num_row_groups)]
    counts = [group.num_rows for group in groups]
    firsts = itertools.accumulate(counts, initial=0)
    return [
        Unit(
            kind="parquet",
            address=address,
            name=name,
            number=number,
            first_row=first,
            num_rows=count,
            num_bytes=groups[number].total_byte_size,
            identity=identity,
        )
        for number, (first, count) in enumerate(zip(firsts, counts, strict=False))
    ]


def _read_footer(file: IO[bytes]) -> bytes:
    """The end of a Parquet file: where every column lies, of which size and with which statistics.

    A file of other rows may have the same one: two values have changed places.
    """
    size = file.seek(0, io.SEEK_END)
    file.seek(max(0, size - 8))
    tail = file.read(8)
    if tail[4:] != _MAGIC:
        raise ValueError("it does not end in PAR1")
    length = _FOOTER.unpack(tail[:4])[0]
    if length + 12 > size:
        raise ValueError("its footer is longer than the file")
    file.seek(size - 8 - length)
    return file.read(length + 8)


def _list_pictures(system: AbstractFileSystem, files: Mapping[str, _Info], root: str) -> list[Unit]:
    units = []
    paths = list(files)
    address = str(system.unstrip_protocol(root))
    for number, start in enumerate(range(0, len(paths), PICTURES)):
        block = paths[start : start + PICTURES]
        digest = hashlib.sha256()
        for file in block:
            digest.update(f"{_relate(file, root)} {_identify(files[file])}\n".encode())
        units.append(
            Unit(
                kind="pictures",
                address=address,
                name=posixpath.basename(root.rstrip("/")) or root,
                number=number,
                first_row=start,
                num_rows=len(block),
                num_bytes=_count_bytes([files[file] for file in block]),
                files=tuple(
                    str(system.unstrip_protocol(file)).removeprefix(address) for file in block
                ),
                identity=digest.hexdigest(),
            )
        )
    return units


def _count_bytes(infos: Sequence[_Info]) -> int:
    sizes = [info.get("size") for info in infos]
    return -1 if None in sizes else sum(int(size or 0) for size in sizes)


def _identify(info: _Info) -> str:
    """A hash of what a file system says of a file: its size, and its checksum or its age."""
    tell_tale = next((info[key] for key in _TELL_TALES if info.get(key)), "")
    return hashlib.sha256(f"{info.get('size')} {tell_tale}".encode()).hexdigest()


@dataclasses.dataclass(frozen=True)
class Block:
    """Some rows of a unit.

    Attributes:
        table: Columns of the file; pictures and records have one.
        first_row: Number of the first one within the file.
        names: What to call each row; empty: by number.
        wrong: Rows of the table that could not be read, to the reason; nothing stands in them.
        lost: Reasons of rows that have no place in the table.
        num_bytes: Of the unit, read up to its end; 0 where rows are counted instead.
        is_text: All is text, whatever it means.
        is_record: Columns are features of records, each of which may hold what it likes.
    """

    table: pa.Table
    first_row: int
    names: tuple[str, ...] = ()
    wrong: Mapping[int, str] = dataclasses.field(default_factory=dict)
    lost: tuple[str, ...] = ()
    num_bytes: int = 0
    is_text: bool = False
    is_record: bool = False


def read_unit(
    unit: Unit,
    columns: Sequence[str] | None = None,
    types: Mapping[str, pa.DataType] | None = None,
) -> Iterator[Block]:
    """The rows of a unit, so many at a time.

    Args:
        unit: As `list_units` gave it.
        columns: Those to read; None = all.
        types: Of columns of JSON lines and records, where they are known.

    Raises:
        DatasetError: It cannot be read: damaged, gone, not what its name says, or not what it was
            when it was listed, before or after it was read.
        ConfigError: Access is refused.
        ServableUnavailableError: The address cannot be reached.
    """
    pa = import_extra("pyarrow", _PURPOSE)
    try:
        _refuse_changed(unit)
        first = max(unit.first_row, 0)
        for block in _READERS[unit.kind](unit, columns, types or {}):
            table = _add_folders(block.table, unit, columns)
            yield dataclasses.replace(block, table=table, first_row=first)
            first += table.num_rows
        _refuse_changed(unit)
    except (pa.ArrowException, OSError) as error:  # of a damaged page, pyarrow raises the latter
        reason = " ".join(str(error).split())
        raise DatasetError(
            f"{unit.address} cannot be read: {reason}; mend it or leave it out, and run again: "
            "what is scored stays"
        ) from error
    except DatasetError as error:
        if error.message.startswith(unit.address):
            raise
        raise DatasetError(f"{unit.address}: {error.message}") from error


def _refuse_changed(unit: Unit) -> None:
    """Refuses a file that is not the one that was listed: its answers would have the name of those
    to the other. Only of file systems that are known to say the same of a file however they are
    asked; of pictures each is a row of its own.
    """
    system, path = open_address(unit.address)
    if unit.kind == "pictures" or _SAYS_THE_SAME.isdisjoint(list_protocols(system)):
        return
    system.invalidate_cache(path)
    with explain_store(unit.address):
        info = system.info(path)
    if not unit.identity.endswith(_identify(info)):
        raise DatasetError(
            f"{unit.address} has changed since the job began; run again when nobody writes to it: "
            "where OUT has answers to it as it was, that run says so"
        )


def _add_folders(table: pa.Table, unit: Unit, columns: Sequence[str] | None) -> pa.Table:
    """With what folders of partitions say: texts, in every row the same."""
    pa = import_extra("pyarrow", _PURPOSE)
    for name, value in list_folders(unit).items():
        if name in table.column_names:
            if table.column(name).type != pa.null():
                continue
            table = table.drop_columns([name])
        if columns is None or name in columns:
            table = table.append_column(name, pa.array([value] * table.num_rows, pa.string()))
    return table


def list_folders(unit: Unit) -> dict[str, str | None]:
    """What the folders of a unit's file say, as Hive names them: `day=2026-01-01`."""
    if unit.kind == "pictures":
        return {}
    pairs = [folder.partition("=") for folder in unit.name.split("/")[:-1]]
    return {
        unquote(name): None if value == _NO_VALUE else unquote(value)
        for name, sign, value in pairs
        if name and sign
    }


_Types = Mapping[str, "pa.DataType"]


def _read_row_group(unit: Unit, columns: Sequence[str] | None, _: _Types) -> Iterator[Block]:
    parquet = import_extra("pyarrow.parquet", _PURPOSE)
    pa = import_extra("pyarrow", _PURPOSE)
    system, path = open_address(unit.address)
    # A local file is mapped: pyarrow reads it without asking Python for every piece.
    with explain_store(unit.address):
        opened = pa.memory_map(path) if is_local(system) else open_file(unit.address)
    with opened as source, parquet.ParquetFile(source) as file:
        chosen = None if columns is None else set(columns)
        check_names([name for name in file.schema_arrow.names if not chosen or name in chosen])
        count = _count_rows(file.metadata.row_group(unit.number), chosen)
        some = None if columns is None else list(columns)
        for batch in file.iter_batches(count, row_groups=[unit.number], columns=some):
            yield Block(_replace_views(pa.Table.from_batches([batch])), 0)


def _replace_views(table: pa.Table) -> pa.Table:
    """With views of texts and bytes, which few functions of Arrow take, as texts and bytes."""
    pa = import_extra("pyarrow", _PURPOSE)
    fields = [field.with_type(_replace_view(field.type)) for field in table.schema]
    schema = pa.schema(fields, table.schema.metadata)
    return table if schema == table.schema else table.cast(schema)


def _replace_view(kind: pa.DataType) -> pa.DataType:
    pa = import_extra("pyarrow", _PURPOSE)
    if pa.types.is_string_view(kind):
        return pa.string()
    if pa.types.is_binary_view(kind):
        return pa.binary()
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_replace_view(field.type)) for field in kind])
    if pa.types.is_list(kind):
        return pa.list_(kind.value_field.with_type(_replace_view(kind.value_type)))
    return kind


def _count_rows(group: pa.parquet.RowGroupMetaData, chosen: Set[str] | None) -> int:
    """Rows of a block: fewer where they are wide."""
    if group.total_byte_size <= BLOCK_BYTES // BLOCK_ROWS * group.num_rows:
        return BLOCK_ROWS
    columns = [group.column(place) for place in range(group.num_columns)]
    size: int = sum(
        one.total_uncompressed_size
        for one in columns
        if chosen is None or _is_of(one.path_in_schema, chosen)
    )
    num_rows: int = group.num_rows
    return max(1, min(BLOCK_ROWS, BLOCK_BYTES * num_rows // max(size, 1)))


def _is_of(path: str, columns: Set[str]) -> bool:
    """Whether a leaf belongs to one of some columns, whose own names may have dots."""
    ends = [place for place, char in enumerate(path) if char == "."]
    return any(path[:end] in columns for end in (*ends, len(path)))


def _read_csv(unit: Unit, columns: Sequence[str] | None, _: _Types) -> Iterator[Block]:
    with _open_buffered(unit.address) as file:
        for number, (table, lost) in enumerate(read_csv(file, columns)):
            # Where the file is read is far ahead of what has been made of it.
            place, end = (min(one * CSV_BLOCK_BYTES, file.tell()) for one in (number, number + 1))
            for start in range(0, table.num_rows, BLOCK_ROWS):
                done = min(start + BLOCK_ROWS, table.num_rows) / table.num_rows
                read = place + int((end - place) * done)
                yield Block(table.slice(start, BLOCK_ROWS), 0, num_bytes=read, is_text=True)
            if lost:
                yield Block(table.slice(0, 0), 0, lost=tuple(lost), num_bytes=end, is_text=True)


@contextmanager
def _open_buffered(address: str) -> Iterator[BinaryIO]:
    """A file to read line by line: fsspec's own would copy a block of 50 MiB for each."""
    with (
        open_file(address) as file,
        io.BufferedReader(cast(io.RawIOBase, file), _BUFFER_BYTES) as buffered,
    ):
        yield buffered


def _read_jsonl(unit: Unit, columns: Sequence[str] | None, types: _Types) -> Iterator[Block]:
    folders = list_folders(unit)
    chosen = None if columns is None else [name for name in columns if name not in folders]
    kinds = {name: kind for name, kind in types.items() if name not in folders}
    with _open_buffered(unit.address) as file:
        lines = _list_lines(file, unit.start, unit.stop)
        for table, wrong in read_json(
            lines, columns=chosen, types=kinds, block_rows=BLOCK_ROWS, block_bytes=BLOCK_BYTES
        ):
            yield Block(table, 0, wrong=wrong, num_bytes=max(0, file.tell() - unit.start))


def _list_lines(file: IO[bytes], start: int, stop: int) -> Iterator[bytes]:
    """Lines that begin in [start, stop): one that begins before is its piece's before."""
    if start:
        place = file.seek(start - 1)
        place += len(file.readline())
    else:
        place = 0
    while place < stop and (line := file.readline()):
        place += len(line)
        if line.strip(_BLANK):
            yield line if line.endswith(b"\n") else line + b"\n"


def _read_tfrecord(unit: Unit, columns: Sequence[str] | None, types: _Types) -> Iterator[Block]:
    from contract.wire.tfrecord import iterate_records

    damaged: dict[int, str] = {}
    known = set(itertools.chain.from_iterable(_list_feature_types().values()))
    kinds = {name: kind for name, kind in types.items() if kind in known}
    with _open_buffered(unit.address) as file:
        records = iterate_records(
            file, unit.name, on_damaged=lambda number, reason: damaged.update({number: reason})
        )
        first = 0
        try:
            for block in cut(records, BLOCK_ROWS, BLOCK_BYTES):
                rows = range(first, first + len(block))
                table, wrong = _tabulate(block, columns, kinds)
                wrong |= {row - first: damaged.pop(row) for row in rows if row in damaged}
                yield Block(table, 0, wrong=wrong, num_bytes=file.tell(), is_record=True)
                first += len(block)
        except ManifestError as error:
            raise DatasetError(str(error)) from error


def _list_feature_types() -> dict[str, tuple[pa.DataType, pa.DataType]]:
    """Of each kind of a feature, the types of a column of single values and of one of lists."""
    pa = import_extra("pyarrow", _PURPOSE)
    values = {"bytes_list": pa.binary(), "float_list": pa.float32(), "int64_list": pa.int64()}
    return {kind: (value, pa.list_(value)) for kind, value in values.items()}


def _tabulate(
    records: list[bytes], wanted: Sequence[str] | None, types: dict[str, pa.DataType]
) -> tuple[pa.Table, dict[int, str]]:
    """Serialized tf.Examples, and a column for each of their features; null where one lacks it.

    Args:
        records: Of one block.
        wanted: Features; None = all.
        types: Of features that are known; those that this block is the first to have join them.

    Returns:
        The table, and its rows whose features are of another kind than their columns.
    """
    pa = import_extra("pyarrow", _PURPOSE)
    from google.protobuf.message import DecodeError

    from contract.wire.plumbline_wire import example_pb2

    found: dict[str, dict[int, tuple[str, list[Any]]]] = {}
    for row, record in enumerate(records):
        try:
            features = example_pb2.Example.FromString(record).features.feature
        except DecodeError:
            continue  # what is asked of it will be missing
        for name, feature in features.items():
            kind = feature.WhichOneof("kind")
            if kind and (wanted is None or name in wanted):
                cells = found.setdefault(name, {})
                cells[row] = kind, list(getattr(feature, kind).value)
    arrays = {EXAMPLE: pa.array(records, pa.binary())}
    wrong: dict[int, str] = {}
    for name, cells in found.items():
        if name not in types:
            types[name] = _choose_feature_type(list(cells.values()))
        arrays[name], odd = _collect_feature(name, cells, types[name], len(records))
        wrong |= odd
    for name in wanted or ():
        arrays.setdefault(name, pa.nulls(len(records), types.get(name, pa.null())))
    return pa.table(arrays), wrong


def _choose_feature_type(cells: list[tuple[str, list[Any]]]) -> pa.DataType:
    """Of the kind of most; of single values where all of that kind are some."""
    most = Counter(kind for kind, _ in cells).most_common(1)[0][0]
    single, several = _list_feature_types()[most]
    return single if all(len(values) == 1 for kind, values in cells if kind == most) else several


def _collect_feature(
    name: str, cells: Mapping[int, tuple[str, list[Any]]], type_: pa.DataType, num_rows: int
) -> tuple[pa.Array, dict[int, str]]:
    """A column, null where a feature is not there or does not fit; and where it does not fit."""
    pa = import_extra("pyarrow", _PURPOSE)
    wanted = next(kind for kind, types in _list_feature_types().items() if type_ in types)
    is_single = not pa.types.is_list(type_)
    column: list[Any] = [None] * num_rows
    wrong = {}
    for row, (kind, values) in cells.items():
        if kind != wanted:
            wrong[row] = f"feature {name} holds a {kind}, unlike others: {wanted}"
        elif not is_single:
            column[row] = values
        elif len(values) > 1:
            wrong[row] = f"feature {name} has {len(values)} values, and one in others"
        elif values:
            column[row] = values[0]
    return pa.array(column, type_), wrong


def _find_picture(unit: Unit, file: str) -> str:
    """The address of one of a unit's files."""
    return file if _ADDRESS.match(file) else f"{unit.address}{file}"


def _read_pictures(unit: Unit, columns: Sequence[str] | None, _: _Types) -> Iterator[Block]:
    pa = import_extra("pyarrow", _PURPOSE)
    for start in range(0, len(unit.files), 256):
        files = unit.files[start : start + 256]
        contents: list[bytes | None] = []
        wrong: dict[int, str] = {}
        for row, file in enumerate(files):
            address = _find_picture(unit, file)
            system, path = open_address(address)
            try:
                with explain_store(address):
                    contents.append(system.cat_file(path))
            except FileNotFoundError as error:  # a bad row, not the end of the others
                contents.append(None)
                wrong[row] = f"it cannot be read: {error}"
        names = tuple(file.lstrip("/") for file in files)
        yield Block(pa.table({IMAGE: pa.array(contents, pa.binary())}), 0, names, wrong)


_KINDS = {
    ".parquet": "parquet",
    ".csv": "csv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".tfrecord": "tfrecord",
    ".tfrecords": "tfrecord",
}

_READERS: dict[str, Callable[[Unit, Sequence[str] | None, _Types], Iterator[Block]]] = {
    "parquet": _read_row_group,
    "csv": _read_csv,
    "jsonl": _read_jsonl,
    "tfrecord": _read_tfrecord,
    "pictures": _read_pictures,
}
