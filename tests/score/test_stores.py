"""Stores that fail: told as what they are, whatever was asked of them, and no file is blamed."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ClassVar

import fsspec
import numpy as np
import pyarrow as pa
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from pyarrow import parquet

from clients.score.columns import BadRow
from clients.score.output import (
    PartWriter,
    UnitSummary,
    count_parts,
    find_parts,
    read_bad_rows,
    read_rows,
    sweep,
)
from clients.score.sources import list_units, read_unit
from contract.errors import ConfigError, DatasetError, PlumblineError, ServableUnavailableError
from tests.score.jobs import Job, make_job, score

REFUSED = PermissionError(errno.EACCES, "Access Denied")
BROKEN = OSError(errno.EIO, "Please reduce your request rate")
DROPPED = ConnectionResetError(errno.ECONNRESET, "Connection reset by peer")
FAILURES = [
    pytest.param(REFUSED, ConfigError, "access is refused", id="refused"),
    pytest.param(BROKEN, ServableUnavailableError, "cannot be reached or failed", id="broken"),
    pytest.param(DROPPED, ServableUnavailableError, "cannot be reached or failed", id="dropped"),
]


class Moody(MemoryFileSystem):  # type: ignore[misc]
    """A store that fails where it is told to: `errors`, by what is asked and a piece of a path."""

    protocol = "moody"
    store: ClassVar[dict[str, object]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    errors: ClassVar[dict[tuple[str, str], Exception]] = {}

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(super()._strip_protocol(path.removeprefix("moody://")))

    def unstrip_protocol(self, name: str) -> str:
        return f"moody://{self._strip_protocol(name).lstrip('/')}"

    def _fail(self, what: str, path: str) -> None:
        for (one, piece), error in self.errors.items():
            if one == what and piece in self._strip_protocol(path):
                raise error

    def _open(self, path: str, mode: str = "rb", **options: object) -> object:
        self._fail("read" if mode == "rb" else "write", path)
        return super()._open(path, mode, **options)

    def cat_file(self, path: str, *args: object, **options: object) -> bytes:
        self._fail("read", path)
        return bytes(super().cat_file(path, *args, **options))

    def ls(self, path: str, detail: bool = True, **options: object) -> list[object]:
        self._fail("list", path)
        return list(super().ls(path, detail=detail, **options))

    def info(self, path: str, **options: object) -> dict[str, object]:
        self._fail("list", path)
        return dict(super().info(path, **options))

    def rm_file(self, path: str) -> None:
        self._fail("remove", path)
        super().rm_file(path)


@pytest.fixture
def store() -> Iterator[dict[tuple[str, str], Exception]]:
    """What `moody://` fails at: nothing yet."""
    fsspec.register_implementation("moody", Moody, clobber=True)
    Moody.store.clear()
    Moody.errors.clear()
    yield Moody.errors
    Moody.store.clear()
    Moody.errors.clear()


@pytest.fixture(scope="module")
def version(people: Path) -> Path:
    return people


def write(path: Path) -> Path:
    table = pa.table({"id": range(5), "age": [1.0] * 5, "color": ["red"] * 5})
    parquet.write_table(table, path)
    return path


@pytest.fixture
def job(tmp_path: Path, version: Path, store: object) -> Job:
    """A job of one unit, with one bad row, that is done."""
    job = make_job(write(tmp_path / "in.parquet"), "moody://jobs/out", version)
    block = next(read_unit(job.units[0]))
    with PartWriter(job.task.destination, job.units[0], {}) as writer:
        rows = np.arange(1, 5)
        writer.write(block, rows, ["id"], {"total": np.ones(4, np.float32)})
        writer.refuse(block, [BadRow(0, "nobody answered")], ["id"])
        writer.finish(UnitSummary(num_rows=5, num_bad=1))
    return job


# What lies in OUT ------------------------------------------------------------------------


@pytest.mark.parametrize(("error", "kind", "words"), FAILURES)
@pytest.mark.parametrize("what", ["summary", "rows", "side file"])
def test_a_store_that_fails_is_told_and_nothing_in_out_is_called_damaged(
    job: Job,
    store: dict[tuple[str, str], Exception],
    what: str,
    error: Exception,
    kind: type[PlumblineError],
    words: str,
) -> None:
    destination = job.task.destination
    parts = find_parts(destination)
    ((_, path),) = parts.items()
    ask: Callable[[], object] = {
        "summary": lambda: count_parts(destination, job.units, parts),
        "rows": lambda: read_rows(destination, path, np.arange(2)),
        "side file": lambda: read_bad_rows(destination, job.units[0]),
    }[what]
    ask()
    store["read", ".jsonl" if what == "side file" else ".parquet"] = error
    with pytest.raises(kind, match=words) as raised:
        ask()
    assert "remove" not in raised.value.message and "damaged" not in raised.value.message


@pytest.mark.parametrize("what", ["find", "sweep"])
def test_a_folder_that_cannot_be_listed_is_not_an_empty_one(
    job: Job, store: dict[tuple[str, str], Exception], what: str
) -> None:
    store["list", "version=1"] = REFUSED
    with pytest.raises(PermissionError):
        (find_parts if what == "find" else sweep)(job.task.destination)


@pytest.mark.parametrize(("error", "kind", "words"), FAILURES)
def test_a_store_that_fails_as_a_part_comes_to_it_is_told(
    tmp_path: Path,
    version: Path,
    store: dict[tuple[str, str], Exception],
    error: Exception,
    kind: type[PlumblineError],
    words: str,
) -> None:
    job = make_job(write(tmp_path / "in.parquet"), "moody://jobs/out", version)
    store["write", ""] = error
    with pytest.raises(kind, match=words):
        job.run()


def test_another_writers_file_under_a_parts_name_is_kept_and_refused(
    tmp_path: Path, version: Path
) -> None:
    job = make_job(write(tmp_path / "in.parquet"), tmp_path / "out", version)
    job.run()
    parts = find_parts(job.task.destination)
    ((_, path),) = parts.items()
    write(Path(path))
    content = Path(path).read_bytes()
    with pytest.raises(DatasetError, match=r"no part that this command wrote.*elsewhere"):
        count_parts(job.task.destination, job.units, parts)
    assert Path(path).read_bytes() == content


@pytest.mark.parametrize("damage", [b"\xff", b"\0", b"x"])
def test_a_part_with_a_damaged_end_is_written_again_as_one_that_lost_it(
    tmp_path: Path, version: Path, damage: bytes
) -> None:
    job = make_job(write(tmp_path / "in.parquet"), tmp_path / "out", version)
    job.run()
    ((_, name),) = find_parts(job.task.destination).items()
    content = bytearray(Path(name).read_bytes())
    footer = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    content[footer : footer + 40] = damage * 40
    Path(name).write_bytes(content)
    parts = find_parts(job.task.destination)
    assert count_parts(job.task.destination, job.units, parts)[0] == {}
    job.run()
    assert set(count_parts(job.task.destination, job.units, parts)[0]) == set(parts)


# The command -----------------------------------------------------------------------------


@pytest.mark.parametrize("error", [REFUSED, BROKEN])
def test_parts_that_cannot_be_looked_at_are_no_wrong_answers(
    tmp_path: Path,
    version: Path,
    store: dict[tuple[str, str], Exception],
    error: Exception,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source = write(tmp_path / "in.parquet")
    where = (source, "moody://jobs/out", version)
    store["read", ".parquet"] = error  # which only the verdict asks for in a first run
    assert score(*where, "--json") == 3
    document = json.loads(capsys.readouterr().out)
    assert (document["num_scored"], document["sample"]["passed"]) == (5, None)
    assert document["sample"]["problems"] == [] and len(document["sample"]["unread"]) == 1
    store.clear()
    assert score(*where) == 0
    assert "agree with LiteRT" in capsys.readouterr().out


def test_a_verdict_without_a_look_says_so(
    tmp_path: Path,
    version: Path,
    store: dict[tuple[str, str], Exception],
    capsys: pytest.CaptureFixture[str],
) -> None:
    source = write(tmp_path / "in.parquet")
    where = (source, "moody://jobs/out", version)
    store["read", ".parquet"] = BROKEN
    assert score(*where) == 3
    said = capsys.readouterr().out
    assert "Verdict: not proved. Parts of the sample could not be looked at" in said
    assert "is NOT what the model answers" not in said


def test_a_claim_that_cannot_be_removed_costs_no_result(
    tmp_path: Path,
    version: Path,
    store: dict[tuple[str, str], Exception],
    capsys: pytest.CaptureFixture[str],
) -> None:
    source = write(tmp_path / "in.parquet")
    where = (source, "moody://jobs/out", version)
    store["remove", "/_asked/"] = BROKEN
    assert score(*where) == 0
    said = capsys.readouterr()
    assert "agree with LiteRT" in said.out and "until that file is removed" in said.err


# IN --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("error", "kind", "words"), FAILURES)
@pytest.mark.parametrize("name", ["x.parquet", "x.csv", "x.jsonl", "x.tfrecord", "x.png"])
def test_a_file_that_a_store_refuses_is_not_called_damaged_and_none_of_its_rows_bad(
    tmp_path: Path,
    store: dict[tuple[str, str], Exception],
    name: str,
    error: Exception,
    kind: type[PlumblineError],
    words: str,
) -> None:
    content = write(tmp_path / "x").read_bytes() if name == "x.parquet" else b"a\n1\n"
    Moody().pipe_file(f"jobs/in/{name}", content)
    (unit,) = list_units("moody://jobs/in")
    store["read", name] = error
    with pytest.raises(kind, match=words):
        list(read_unit(unit))


def test_a_picture_that_is_gone_is_a_bad_row(store: object) -> None:
    for name in ("a.png", "b.png"):
        Moody().pipe_file(f"jobs/in/{name}", b"picture")
    (unit,) = list_units("moody://jobs/in")
    Moody().rm_file("jobs/in/a.png")
    (block,) = read_unit(unit)
    assert list(block.wrong) == [0] and block.table["image"].to_pylist() == [None, b"picture"]
