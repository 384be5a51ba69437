"""Scoring from a bucket into a bucket, with the version in one: a real S3-speaking server."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import boto3
import fsspec
import pyarrow as pa
import pytest
from fsspec.spec import AbstractBufferedFile
from moto.server import ThreadedMotoServer
from pyarrow import parquet
from s3fs import S3FileSystem

from clients.cli import main
from clients.score.sources import list_units, read_unit
from contract.errors import ConfigError, ServableUnavailableError
from tests.score.jobs import make_table_version

CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_DEFAULT_REGION": "us-east-1",
}


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    """The address of an empty bucket; all servers of a process have the same ones."""
    name = hashlib.sha256(str(tmp_path).encode()).hexdigest()[:16]
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    S3FileSystem.clear_instance_cache()  # of a server of another test
    host, port = server.get_host_and_port()
    for variable, value in {**CREDENTIALS, "AWS_ENDPOINT_URL": f"http://{host}:{port}"}.items():
        monkeypatch.setenv(variable, value)
    boto3.client("s3").create_bucket(Bucket=name)
    try:
        yield f"s3://{name}"
    finally:
        S3FileSystem.clear_instance_cache()
        server.stop()


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
    bucket: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fsspec.filesystem("s3").put(
        str(make_table_version(tmp_path)), f"{bucket}/people/", recursive=True
    )
    put(f"{bucket}/in/a.parquet", 0)
    put(f"{bucket}/in/day=2/b.parquet", 5)
    command = ["score", f"{bucket}/in", f"{bucket}/out", "--version_dir", f"{bucket}/people"]
    assert main([*command, "--workers=1"]) == 0
    assert read_ids(f"{bucket}/out/version=1") == list(range(10))
    capsys.readouterr()
    assert main([*command, "--workers=1", "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert (again["num_parts"], again["num_parts_before"]) == (6, 6)
    assert read_ids(f"{bucket}/out/version=1") == list(range(10))


def test_a_file_of_a_bucket_that_was_replaced_is_refused_beside_its_answers(
    bucket: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    version = str(make_table_version(tmp_path))
    put(f"{bucket}/in/a.parquet", 0)
    command = ["score", f"{bucket}/in", f"{bucket}/out", "--version_dir", version, "--workers=1"]
    assert main(command) == 0
    put(f"{bucket}/in/a.parquet", 0, age=2.0)
    capsys.readouterr()
    assert main(command) == 2
    assert "as it was" in capsys.readouterr().err
    assert read_ids(f"{bucket}/out/version=1") == list(range(5))


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
