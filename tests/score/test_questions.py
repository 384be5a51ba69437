"""Answers to another question, or to other rows, beside those asked for: what differs is named."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import fsspec
import msgspec
import pyarrow as pa
import pytest
from pyarrow import parquet

from clients.files.fit import Adjustment
from clients.score.columns import ColumnPlan, InputColumns
from clients.score.output import Destination, claim
from clients.score.questions import Question
from contract.errors import ConfigError
from contract.manifest import read_manifest, write_manifest
from contract.signature import Signature, TensorSpec
from tests.score import jobs
from tests.score.jobs import write_images


@pytest.fixture(scope="module")
def version(people: Path) -> Path:
    return people


def write(path: Path, *, age: float = 1.0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table({"id": range(5), "age": [age] * 5, "color": ["red"] * 5})
    parquet.write_table(table, path)
    os.utime(path, (age, age))
    return path


Refuse = Callable[..., str]


@pytest.fixture
def refuse(tmp_path: Path, version: Path, capsys: pytest.CaptureFixture[str]) -> Refuse:
    """What the command says as it refuses to write into `out`."""

    def run(*arguments: str, version_dir: Path = version) -> str:
        capsys.readouterr()
        assert jobs.score(tmp_path / "in", tmp_path / "out", version_dir, *arguments) == 2
        said = capsys.readouterr().err.splitlines()
        (error,) = (line for line in said if line.startswith("error: "))
        return error

    return run


def score(tmp_path: Path, version: Path, *arguments: str) -> None:
    assert jobs.score(tmp_path / "in", tmp_path / "out", version, *arguments) == 0


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--keys=color"], "the choice of keys (--keys) was id (int64) and is color (string) now"),
        (["--scale=2"], "--scale was 0 and is 2 now"),
        (["--shift=0.5"], "--shift was 0 and is 0.5 now"),
        (["--outputs=total"], "--outputs was all and is total now"),
        (["--allow_non_finite"], "--allow_non_finite was off and is on now"),
        (["--map=x=id,age,id"], "the choice of input columns (--map) was "),
    ],
)
def test_the_flag_that_differs_is_named_and_no_other(
    tmp_path: Path, version: Path, refuse: Refuse, flags: list[str], words: str
) -> None:
    write(tmp_path / "in" / "x.parquet")
    score(tmp_path, version, "--keys=id")
    said = refuse(*([] if "--keys=color" in flags else ["--keys=id"]), *flags)
    refusal = said.partition("error: ")[2]  # after what may be remarked of the columns
    assert f"but {words}" in refusal and refusal.count(" was ") == 1
    assert "changed since" not in said and "manifest was" not in said


def test_another_variant_is_named(tmp_path: Path, digits: Path, refuse: Refuse) -> None:
    write_images(tmp_path / "in" / "x.parquet", 5)
    score(tmp_path, digits, "--variant=int8")
    assert "--variant was int8 and is float32 now;" in refuse(version_dir=digits)


def test_another_manifest_is_named(tmp_path: Path, version: Path, refuse: Refuse) -> None:
    write(tmp_path / "in" / "x.parquet")
    score(tmp_path, version)
    again = tmp_path / "again" / "1"
    shutil.copytree(version, again)
    manifest = read_manifest(again)
    write_manifest(again, msgspec.structs.replace(manifest, created="2026-02-01T00:00:00Z"))
    then, now = manifest.digest[:12], read_manifest(again).digest[:12]
    assert f"but the manifest was {then} and is {now} now;" in refuse(version_dir=again)


def test_a_file_that_has_changed_is_named_and_no_flag(
    tmp_path: Path, version: Path, refuse: Refuse
) -> None:
    write(tmp_path / "in" / "x.parquet")
    score(tmp_path, version)
    write(tmp_path / "in" / "x.parquet", age=2)
    said = refuse()
    assert "x.parquet, row group 0, but the file has changed since;" in said
    said = refuse("--scale=2")
    assert "--scale was 0 and is 2 now; the file has changed since;" in said


def test_a_picture_that_was_added_is_named(tmp_path: Path, digits: Path, refuse: Refuse) -> None:
    from PIL import Image

    (tmp_path / "in").mkdir()
    Image.new("L", (28, 28)).save(tmp_path / "in" / "a.png")
    score(tmp_path, digits)
    Image.new("L", (28, 28)).save(tmp_path / "in" / "b.png")
    assert "pictures came, went or have changed since" in refuse(version_dir=digits)


def make_older(out: Path) -> None:
    """Parts as they were written before they told what was asked."""
    for path in (out / "version=1").iterdir():
        file = parquet.ParquetFile(path)
        facts = {
            key: value
            for key, value in file.metadata.metadata.items()
            if key not in (b"plumbline.question", b"plumbline.content")
        }
        parquet.write_table(file.read().replace_schema_metadata(facts), path)


def test_parts_of_before_are_read_and_say_what_they_can(
    tmp_path: Path, version: Path, refuse: Refuse
) -> None:
    write(tmp_path / "in" / "x.parquet")
    score(tmp_path, version)
    make_older(tmp_path / "out")
    score(tmp_path, version)
    assert "the part does not tell which" in refuse("--scale=2")
    again = tmp_path / "again" / "1"
    shutil.copytree(version, again)
    manifest = read_manifest(again)
    write_manifest(again, msgspec.structs.replace(manifest, created="2026-02-01T00:00:00Z"))
    assert "the manifest was" in refuse(version_dir=again)


def test_a_damaged_part_of_another_question_is_refused_all_the_same(
    tmp_path: Path, version: Path, refuse: Refuse
) -> None:
    write(tmp_path / "in" / "x.parquet")
    score(tmp_path, version)
    (path,) = (tmp_path / "out" / "version=1").iterdir()
    path.write_bytes(b"")
    said = refuse("--scale=2")
    assert "cannot be told" in said and "count its rows twice" in said


@pytest.mark.parametrize("protocol", ["", "memory://"])
def test_what_another_job_at_work_asks_otherwise_is_named(tmp_path: Path, protocol: str) -> None:
    one, other = (
        Destination(
            address=f"{protocol}{tmp_path}",
            version=1,
            digest="",
            fingerprint=variant,
            facts={},
            asked={"variant": variant, "scale": "0"},
        )
        for variant in ("int8", "float32")
    )
    with (
        claim(one),
        pytest.raises(ConfigError, match="--variant is int8 there and float32 here;"),
        claim(other),
    ):
        pass
    if protocol:
        fsspec.filesystem("memory").rm(str(tmp_path), recursive=True)


# What parts say --------------------------------------------------------------------------


def make_plan(columns: tuple[str, ...]) -> ColumnPlan:
    signature = Signature(
        "serving_default",
        {"x": TensorSpec("x", "float32", (None, 3))},
        {"y": TensorSpec("y", "float32", (None, 1))},
    )
    inputs = InputColumns("x", columns, ("", "red"), (30.0, 0.0))
    adjustment = Adjustment(invert=True, scale=2.5)
    types = {"id": pa.int64(), "day": pa.string()}
    return ColumnPlan(signature, (inputs,), ("id", "day"), (), adjustment, True, types)


def test_names_of_parts_are_those_that_they_always_were() -> None:
    question = Question.of(
        make_plan(("age", "color")), digest="ab" * 32, outputs=["y"], variant="int8"
    )
    assert (
        question.fingerprint == "4a7698ab60bc0eac0e6888401299ad5f09816491f28fa9d4cc36da940a290423"
    )


def test_what_a_part_says_of_its_question_is_small_however_many_columns_there_are() -> None:
    found = [
        Question.of(
            make_plan(tuple(f"column {number + first}" for number in range(1000))),
            digest="ab" * 32,
            outputs=(),
            variant="float32",
        ).describe()
        for first in (0, 1)
    ]
    assert found[0] != found[1]
    assert len(msgspec.json.encode(found[0])) < 500
