"""Scoring from a bucket into a bucket, with the version in one: a real S3-speaking server."""

from __future__ import annotations

import gc
import hashlib
import io
import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import boto3
import fsspec
import pyarrow as pa
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.spec import AbstractBufferedFile
from pyarrow import parquet
from s3fs import S3FileSystem

from clients.score.output import Destination, WholeFile, claim, find_parts, sweep
from clients.score.sources import list_units, read_unit
from contract.console.exits import ExitCode
from contract.errors import ConfigError, DatasetError, ServableUnavailableError
from tests.exporter.remote_versions import CREDENTIALS, serve_s3
from tests.score import jobs
from tests.score.jobs import score, write_rows


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    """The address of an empty bucket; all servers of a process have the same ones."""
    name = hashlib.sha256(str(tmp_path).encode()).hexdigest()[:16]
    S3FileSystem.clear_instance_cache()  # of a server of another test
    with serve_s3() as endpoint:
        for variable, value in {**CREDENTIALS, "AWS_ENDPOINT_URL": endpoint}.items():
            monkeypatch.setenv(variable, value)
        boto3.client("s3").create_bucket(Bucket=name)
        try:
            yield f"s3://{name}"
        finally:
            S3FileSystem.clear_instance_cache()


def put(address: str, first: int, *, age: float = 1.0) -> None:
    table = pa.table({"id": range(first, first + 5), "age": [age] * 5, "color": ["red"] * 5})
    with fsspec.open(address, "wb") as file:
        parquet.write_table(table, file, row_group_size=2)


def read_ids(address: str) -> list[int]:
    system = fsspec.filesystem("s3")
    system.invalidate_cache()
    tables = [parquet.read_table(system.open(one)) for one in system.ls(address, detail=False)]
    ids: list[int] = pa.concat_tables(tables)["id"].to_pylist()
    return sorted(ids)


def test_rows_and_version_in_a_bucket_are_scored_into_it_once(
    bucket: str, people: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fsspec.filesystem("s3").put(str(people), f"{bucket}/people/", recursive=True)
    put(f"{bucket}/in/a.parquet", 0)
    put(f"{bucket}/in/day=2/b.parquet", 5)
    where = (f"{bucket}/in", f"{bucket}/out", f"{bucket}/people")
    assert score(*where) == 0
    assert read_ids(f"{bucket}/out/version=1") == list(range(10))
    capsys.readouterr()
    assert score(*where, "--json") == 0
    again = json.loads(capsys.readouterr().out)
    assert (again["num_parts"], again["num_parts_before"]) == (6, 6)
    assert read_ids(f"{bucket}/out/version=1") == list(range(10))


def test_a_file_of_a_bucket_that_changes_while_it_is_read_is_refused(bucket: str) -> None:
    put(f"{bucket}/in/a.parquet", 0)
    units = list_units(f"{bucket}/in")
    assert units == list_units(f"{bucket}/in/a.parquet")
    assert sum(block.table.num_rows for unit in units for block in read_unit(unit)) == 5
    blocks = read_unit(units[0])
    next(blocks)
    put(f"{bucket}/in/a.parquet", 0, age=2.0)
    for rest in (blocks, read_unit(units[1])):
        with pytest.raises(DatasetError, match="has changed since the job began"):
            list(rest)


def test_a_file_of_a_bucket_that_was_replaced_is_refused_beside_its_answers(
    bucket: str, people: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = (f"{bucket}/in", f"{bucket}/out", people)
    put(f"{bucket}/in/a.parquet", 0)
    assert score(*where) == 0
    put(f"{bucket}/in/a.parquet", 0, age=2.0)
    capsys.readouterr()
    assert score(*where) == 2
    assert "but the file has changed since" in capsys.readouterr().err
    assert read_ids(f"{bucket}/out/version=1") == list(range(5))


class Interrupted(io.BytesIO):
    """Bytes of which the first ones can be read before somebody presses Ctrl-C."""

    def read(self, size: int | None = -1, /) -> bytes:
        if self.tell() > 11 * 2**20:
            raise KeyboardInterrupt
        return super().read(size)


@pytest.mark.parametrize("protocol", ["s3", "memory"])
def test_what_is_interrupted_on_its_way_to_a_store_is_not_there(bucket: str, protocol: str) -> None:
    system = fsspec.filesystem(protocol, default_block_size=5 * 2**20)
    root = f"{bucket.removeprefix('s3://')}/out"
    path = f"{root}/part-x.parquet"
    with WholeFile(system, path, root) as whole:
        whole.file = Interrupted(bytes(20 * 2**20))
        with pytest.raises(KeyboardInterrupt):
            whole.place()
    gc.collect()
    system.invalidate_cache()
    assert system.find(root) == []
    if protocol == "s3":
        uploads = boto3.client("s3").list_multipart_uploads(Bucket=root.partition("/")[0])
        assert not uploads.get("Uploads")


@pytest.mark.parametrize("protocol", ["s3", "memory"])
def test_what_comes_to_a_store_is_whole_and_replaces_what_is_there(
    bucket: str, protocol: str
) -> None:
    system = fsspec.filesystem(protocol)
    root = f"{bucket.removeprefix('s3://')}/out"
    path = f"{root}/part-x.parquet"
    for text in (b"half", b"all of it"):
        with WholeFile(system, path, root) as whole:
            whole.file.write(text)
            whole.place()
    system.invalidate_cache()
    assert [one.strip("/") for one in system.find(root)] == [path]
    assert system.cat_file(path) == b"all of it"


class Careful(MemoryFileSystem):  # type: ignore[misc]
    """Moves over nothing that is there, as HDFS and SMB do."""

    def mv(self, path1: str, path2: str, **_: object) -> None:
        if self.exists(path2):
            raise RuntimeError("550 it exists")
        super().mv(path1, path2)


def test_where_nothing_is_moved_over_a_file_it_is_removed_first(tmp_path: Path) -> None:
    system, root = Careful(), f"/{tmp_path.name}"
    for text in (b"half", b"all of it"):
        with WholeFile(system, f"{root}/part-x.parquet", root) as whole:
            whole.file.write(text)
            whole.place()
    assert system.find(root) == [f"{root}/part-x.parquet"]
    assert system.cat_file(f"{root}/part-x.parquet") == b"all of it"


def test_what_was_cut_off_at_a_file_system_without_locks_goes_after_a_day(tmp_path: Path) -> None:
    system = fsspec.filesystem("memory")
    folder = f"/{tmp_path.name}/version=1"
    for name in (".part-new", ".part-old"):
        system.pipe_file(f"{folder}/{name}", b"half")
    old = datetime.now(UTC) - timedelta(days=2)
    system.store[f"{folder}/.part-old"].modified = old
    address = f"memory://{tmp_path.name}"
    destination = Destination(address=address, version=1, digest="", fingerprint="", facts={})
    assert sweep(destination) == 1
    assert system.ls(folder, detail=False) == [f"{folder}/.part-new"]


def test_parts_of_workers_elsewhere_are_found_in_a_folder_that_was_looked_for(bucket: str) -> None:
    destination = Destination(
        address=f"{bucket}/out", version=1, digest="", fingerprint="", facts={}
    )
    boto3.client("s3").put_object(Bucket=bucket[5:], Key="out/version=2/part-x.parquet", Body=b"x")
    assert fsspec.filesystem("s3").ls(f"{bucket}/out") and find_parts(destination) == {}
    fsspec.filesystem("s3").ls(f"{bucket}/out")
    boto3.client("s3").put_object(Bucket=bucket[5:], Key="out/version=1/part-x.parquet", Body=b"x")
    assert list(find_parts(destination)) == ["part-x"]


def test_of_two_other_questions_to_one_bucket_one_is_refused(bucket: str) -> None:
    one, other = (
        Destination(address=f"{bucket}/out", version=1, digest="", fingerprint=name, facts={})
        for name in ("one", "other")
    )
    with (
        claim(one),
        claim(one),
        pytest.raises(ConfigError, match="another job is at work"),
        claim(other),
    ):
        pass
    with claim(other):
        pass


def test_what_a_dead_job_asked_of_a_store_is_forgotten_after_a_day(tmp_path: Path) -> None:
    system = fsspec.filesystem("memory")
    address = f"memory://{tmp_path.name}"
    destination = Destination(address=address, version=1, digest="", fingerprint="", facts={})
    left = f"/{tmp_path.name}/_asked/version=1/0123-abcd"
    system.pipe_file(left, b"")
    with pytest.raises(ConfigError, match="0123-abcd"), claim(destination):
        pass
    system.store[left].modified = datetime.now(UTC) - timedelta(days=2)
    with claim(destination):
        pass
    assert system.find(f"/{tmp_path.name}") == []


def test_lines_of_a_bucket_are_read_once_and_not_once_for_each_line(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [json.dumps({"id": number, "text": "x" * (number % 97)}) for number in range(2000)]
    data = "\n".join(lines).encode()
    fsspec.filesystem("s3").pipe_file(f"{bucket}/x.jsonl", data)
    monkeypatch.setattr("clients.score.sources.PIECE_BYTES", len(data) // 3)
    num_bytes = 0
    read = AbstractBufferedFile.read

    def count(file: AbstractBufferedFile, length: int = -1) -> bytes:
        nonlocal num_bytes
        found: bytes = read(file, length)
        num_bytes += len(found)
        return found

    monkeypatch.setattr(AbstractBufferedFile, "read", count)
    units = list_units(f"{bucket}/x.jsonl")
    found = [row for unit in units for block in read_unit(unit) for row in block.table.to_pylist()]
    assert [row["id"] for row in found] == list(range(2000))
    assert 0 < num_bytes <= len(units) * len(data)


@pytest.mark.parametrize("kind", ["csv", "jsonl", "tfrecord"])
def test_a_file_of_any_kind_is_scored_in_a_bucket_as_on_a_disk(
    bucket: str, people: Path, tmp_path: Path, kind: str
) -> None:
    source = write_rows(tmp_path, kind)
    fsspec.filesystem("s3").put(str(source), f"{bucket}/{source.name}")
    assert score(f"{bucket}/{source.name}", f"{bucket}/out", people) == 0
    assert score(source, tmp_path / "out", people) == 0
    assert read_ids(f"{bucket}/out/version=1") == jobs.read_ids(tmp_path / "out")


def test_a_parquet_file_of_a_bucket_is_closed_again(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(f"{bucket}/x.parquet", 0)
    opened: list[AbstractBufferedFile] = []
    begin = AbstractBufferedFile.__init__

    def note(file: AbstractBufferedFile, *args: object, **options: object) -> None:
        opened.append(file)
        begin(file, *args, **options)

    (unit, *_) = list_units(f"{bucket}/x.parquet")
    monkeypatch.setattr(AbstractBufferedFile, "__init__", note)
    assert sum(block.table.num_rows for block in read_unit(unit)) == 2
    assert opened and all(file.closed for file in opened)


def test_pictures_of_a_bucket_are_found_whatever_their_keys_are(bucket: str) -> None:
    for key in ("in//a.png", "in/b.png", "in/c://d.png"):
        boto3.client("s3").put_object(Bucket=bucket[5:], Key=key, Body=key.encode())
    (unit,) = list_units(f"{bucket}/in")
    (block,) = read_unit(unit)
    found = block.table["image"].to_pylist()
    assert sorted(found) == [b"in//a.png", b"in/b.png", b"in/c://d.png"]


@pytest.fixture
def silent(bucket: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], None]]:
    """Makes the store one that nobody runs."""

    def stop() -> None:
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
        fsspec.filesystem("s3").clear_instance_cache()

    yield stop
    fsspec.filesystem("s3").clear_instance_cache()


@pytest.mark.parametrize("name", ["x.parquet", "x.csv", "x.jsonl", "x.tfrecord", "x.png"])
def test_a_store_that_falls_silent_is_told_and_no_file_is_called_damaged(
    bucket: str, silent: Callable[[], None], name: str
) -> None:
    if name == "x.parquet":
        put(f"{bucket}/in/{name}", 0)
    else:
        fsspec.filesystem("s3").pipe_file(f"{bucket}/in/{name}", b"{}")
    (unit, *_) = list_units(f"{bucket}/in")
    silent()
    for ask in (lambda: list_units(f"{bucket}/in"), lambda: list(read_unit(unit))):
        with pytest.raises(ServableUnavailableError, match="cannot be reached"):
            ask()


def test_a_store_without_credentials_says_to_check_them(
    bucket: str, silent: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    silent()
    for variable in CREDENTIALS:
        monkeypatch.delenv(variable)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(ConfigError, match="check the credentials"):
        list_units(f"{bucket}/in")


def test_an_out_in_a_bucket_that_is_not_there_makes_none(
    bucket: str, people: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put(f"{bucket}/in/a.parquet", 0)
    assert score(f"{bucket}/in", f"{bucket}-typo/out", people) == ExitCode.USAGE
    assert "is there such a bucket" in capsys.readouterr().err
    assert not fsspec.filesystem("s3").exists(f"{bucket}-typo")


def test_an_out_without_credentials_is_a_sentence(
    bucket: str,
    silent: Callable[[], None],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    people: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    put(f"file://{tmp_path}/in.parquet", 0)
    silent()
    for variable in CREDENTIALS:
        monkeypatch.delenv(variable)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    assert score(tmp_path / "in.parquet", f"{bucket}/out", people) == 2
    assert "check the credentials" in capsys.readouterr().err
