"""How far a job is, as its line says: by rows or by bytes, and whom it waits for."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from pyarrow import parquet

from clients.commands.score import Course, Result
from clients.score.job import run_here
from clients.score.output import UnitSummary
from clients.score.sources import BLOCK_ROWS, PIECE_BYTES, Unit, list_units
from contract.console.progress import Progress
from contract.wire.plumbline_wire import example_pb2
from contract.wire.tfrecord import write_records
from tests.score.jobs import (
    make_job,
    make_training_rows,
    score_by_absent,
    serve_answers,
    write_images,
)

ROWS = 2 * BLOCK_ROWS + 1000


def write_csv(path: Path) -> None:
    note = "n" * 1000  # so that the file is no single block
    lines = [
        f"{age},{'blue' if blue else 'red'},{note}" for age, blue, _ in make_training_rows(ROWS)
    ]
    path.write_text("\n".join(["age,color,note", *lines]))


def write_jsonl(path: Path) -> None:
    rows = [
        {"age": float(age), "color": "blue" if blue else "red"}
        for age, blue, _ in make_training_rows(ROWS)
    ]
    path.write_text("\n".join(map(json.dumps, rows)))


def write_tfrecord(path: Path) -> None:
    records = []
    for row in make_training_rows(ROWS):
        example = example_pb2.Example()
        example.features.feature["x"].float_list.value.extend(row.tolist())
        records.append(example.SerializeToString())
    write_records(path, records)


@pytest.mark.parametrize(
    ("name", "write"),
    [("x.csv", write_csv), ("x.jsonl", write_jsonl), ("x.tfrecord", write_tfrecord)],
)
def test_where_rows_are_not_known_before_bytes_tell_how_far_a_job_is(
    name: str, write: Callable[[Path], None], tmp_path: Path, people: Path
) -> None:
    write(tmp_path / name)
    job = make_job(tmp_path / name, tmp_path / "out", people, keys=[])
    assert [unit.num_bytes for unit in job.units] == [(tmp_path / name).stat().st_size]
    progress, tally, shares = Progress("score", "rows"), UnitSummary(), []
    course = Course(progress, job.units, tally)

    def tell(now: UnitSummary, num_bytes: int) -> None:
        course.tell(now, num_bytes)
        shares.append(progress.share)

    for summary in run_here(job.units, job.task, job.plan, job.version_dir, on_block=tell):
        tally.add(summary)
        course.tell()
    assert len(shares) >= 4 and shares == sorted(shares)
    assert shares[0] == 0 < shares[1] < 0.6
    assert (progress.count, progress.share) == (ROWS, 1.0)
    assert f"{ROWS:,} rows (100%)" in progress.describe()


def test_where_rows_are_known_a_unit_is_told_before_it_is_finished(
    tmp_path: Path, digits: Path
) -> None:
    write_images(tmp_path / "in.parquet", ROWS, group=ROWS)
    job = make_job(tmp_path / "in.parquet", tmp_path / "out", digits)
    progress, told = Progress("score", "rows"), []
    course = Course(progress, job.units, UnitSummary())

    def tell(now: UnitSummary, num_bytes: int) -> None:
        course.tell(now, num_bytes)
        told.append(progress.count)

    list(run_here(job.units, job.task, job.plan, job.version_dir, on_block=tell))
    assert progress.total == ROWS
    assert told == [0, BLOCK_ROWS, 2 * BLOCK_ROWS, ROWS]


def test_pieces_of_a_file_are_as_large_as_it_is(tmp_path: Path) -> None:
    with (tmp_path / "x.jsonl").open("wb") as file:
        file.truncate(PIECE_BYTES + 100)
    assert [unit.num_bytes for unit in list_units(str(tmp_path))] == [PIECE_BYTES, 100]


def test_a_job_that_goes_on_counts_what_is_left_alone(tmp_path: Path, people: Path) -> None:
    for name in "ab":
        write_csv(tmp_path / f"{name}.csv")
    first, second = list_units(str(tmp_path))
    tally = UnitSummary(num_rows=ROWS, num_bytes=first.num_bytes)
    progress = Progress("score", "rows")
    course = Course(progress, [second], tally)
    course.tell()
    assert (progress.count, progress.share) == (0, 0.0)
    course.tell(UnitSummary(num_rows=ROWS // 2), second.num_bytes // 2)
    assert progress.count == ROWS // 2
    assert progress.share == pytest.approx(0.5, abs=0.01)


def test_what_workers_take_to_start_says_nothing_of_the_speed() -> None:
    progress = Progress("score", "rows")
    course = Course(progress, [Unit(kind="csv", address="x.csv", name="x.csv")], UnitSummary())
    course.begin("workers start")
    begin = time.perf_counter()
    while time.perf_counter() < begin + 0.2:
        pass
    assert progress.describe().startswith("workers start")
    course.tell()
    while time.perf_counter() < begin + 0.22:
        pass
    course.tell(UnitSummary(num_rows=1000))
    assert course.began > begin + 0.2
    assert progress.rate > 1000 / 0.2


def test_a_unit_that_is_begun_again_takes_no_row_back() -> None:
    progress = Progress("score", "rows")
    course = Course(progress, [Unit(kind="csv", address="", name="", num_rows=9)], UnitSummary())
    counts = []
    for num_rows in (4, 2, 5):
        course.tell(UnitSummary(num_rows=num_rows))
        counts.append(progress.count)
    assert counts == [4, 4, 5]


def test_the_speed_is_of_the_time_in_which_workers_scored() -> None:
    result = Result(seconds=54.0, start_s=14.0, first_s=40.0)
    result.set_speed(200_000)
    assert (result.is_steady, result.rows_per_s) == (True, 5000.0)
    short = Result(seconds=3.0, start_s=1.0, first_s=2.0)
    short.set_speed(300)
    assert (short.is_steady, short.rows_per_s) == (False, 100.0)


def test_a_line_says_that_a_server_is_waited_for_and_since_when(
    tmp_path: Path, digits: Path
) -> None:
    version = digits
    write_images(tmp_path / "in.parquet", 1000, group=250)
    with serve_answers(version) as server:
        seen = score_by_absent(server, tmp_path / "in.parquet", tmp_path / "out", version)
    assert seen.returncode == 0
    (waited, *_) = (line for line in seen.lines if "waits for" in line)
    assert "left" not in waited and " s" in waited.partition("waits for")[2]
    assert max(len(line) for line in seen.lines if line.startswith("score ")) <= 80
    assert parquet.read_table(tmp_path / "out" / "version=1").num_rows == 1000
