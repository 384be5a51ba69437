"""Each row once: whatever happens to IN, to OUT, and to who else writes there."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from fsspec.implementations.local import LocalFileSystem
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from clients.score import output
from clients.score.columns import BadRow
from clients.score.output import (
    Destination,
    PartWriter,
    UnitSummary,
    WholeFile,
    claim,
    find_parts,
    name_place,
    read_bad_rows,
    sweep,
)
from clients.score.sources import Unit, holds, list_units, read_unit
from contract.errors import ConfigError, DatasetError
from contract.wire.plumbline_wire import example_pb2
from contract.wire.tfrecord import frame_record
from tests.score.jobs import ROOT, Score, make_job, read_ids, wait_for_parts


@pytest.fixture(scope="module")
def version(people: Path) -> Path:
    return people


def write(path: Path, first: int, count: int = 5, *, group: int = 2, age: float = 1.0) -> Path:
    ids = range(first, first + count)
    table = pa.table({"id": ids, "age": [age] * count, "color": ["red"] * count})
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(table, path, row_group_size=group)
    return path


# Names -----------------------------------------------------------------------------------

UNITS = st.builds(
    Unit,
    kind=st.just("parquet"),
    address=st.text(max_size=3),
    name=st.text(max_size=6),
    number=st.integers(0, 10**7),
    identity=st.text(max_size=3),
)


def make_destination(fingerprint: str, *, address: object = "x") -> Destination:
    return Destination(
        address=str(address), version=1, digest="", fingerprint=fingerprint, facts={}
    )


@settings(max_examples=300, deadline=None)
@given(one=UNITS, other=UNITS, fingerprints=st.tuples(st.text(max_size=3), st.text(max_size=3)))
def test_names_are_equal_where_place_content_and_question_are(
    one: Unit, other: Unit, fingerprints: tuple[str, str]
) -> None:
    names = [
        make_destination(f).name_part(u) for f, u in zip(fingerprints, (one, other), strict=True)
    ]
    is_same = (one.name, one.number, one.identity, fingerprints[0]) == (
        other.name,
        other.number,
        other.identity,
        fingerprints[1],
    )
    assert (names[0] == names[1]) == is_same
    is_same_place = (one.name, one.number) == (other.name, other.number)
    assert (name_place(one) == name_place(other)) == is_same_place
    assert all("/" not in name and name.isascii() and len(name) < 100 for name in names)


def test_units_of_two_lists_of_one_folder_are_equal(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", 0)
    (tmp_path / "b.csv").write_text("id,age,color\n1,2,red\n")
    (tmp_path / "c.jsonl").write_text("{}")
    assert (
        list_units(str(tmp_path)) == list_units(f"{tmp_path}/") == list_units(f"file://{tmp_path}")
    )


# Files that come, go and change ----------------------------------------------------------


def test_one_content_under_two_names_is_scored_twice(tmp_path: Path, score: Score) -> None:
    write(tmp_path / "in" / "a" / "x.parquet", 0)
    shutil.copytree(tmp_path / "in" / "a", tmp_path / "in" / "b")
    assert score() == 0
    assert read_ids(tmp_path / "out") == sorted([*range(5), *range(5)])


def test_files_that_are_added_are_scored_alone(
    tmp_path: Path, score: Score, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "in" / "b.parquet", 0)
    assert score() == 0
    write(tmp_path / "in" / "a.parquet", 10)
    capsys.readouterr()
    assert score("--json") == 0
    assert json.loads(capsys.readouterr().out)["num_parts_before"] == 3
    assert read_ids(tmp_path / "out") == [*range(5), *range(10, 15)]


@pytest.mark.parametrize("name", ["x.parquet", "x.csv", "x.jsonl"])
def test_a_file_that_was_replaced_is_refused_and_nothing_is_written(
    tmp_path: Path, score: Score, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def put(age: int) -> None:
        path = tmp_path / "in" / name
        path.parent.mkdir(exist_ok=True)
        if name.endswith("parquet"):
            write(path, 0, age=age)
        elif name.endswith("csv"):
            path.write_text(f"id,age,color\n1,{age},red\n")
        else:
            path.write_text(json.dumps({"id": 1, "age": age, "color": "red"}))
        os.utime(path, (age, age))

    put(20)
    assert score() == 0
    before = sorted((tmp_path / "out").rglob("*"))
    put(30)
    assert score() == 2
    assert "count its rows twice" in capsys.readouterr().err
    assert sorted((tmp_path / "out").rglob("*")) == before


@pytest.mark.parametrize("name", ["x.parquet", "x.csv", "x.jsonl", "x.tfrecord"])
@pytest.mark.parametrize("is_begun", [False, True])
def test_a_file_that_changes_while_a_job_is_at_work_gets_no_answers_under_its_old_name(
    tmp_path: Path, version: Path, name: str, is_begun: bool
) -> None:
    path = tmp_path / "in" / name

    def put(age: int) -> None:
        path.parent.mkdir(exist_ok=True)
        if name.endswith("parquet"):
            write(path, 0, age=age)
        elif name.endswith("csv"):
            path.write_text(f"id,age,color\n1,{age},red\n")
        elif name.endswith("jsonl"):
            path.write_text(json.dumps({"id": 1, "age": age, "color": "red"}))
        else:
            example = example_pb2.Example()
            features = example.features.feature
            features["id"].int64_list.value.append(1)
            features["age"].float_list.value.append(age)
            features["color"].bytes_list.value.append(b"red")
            path.write_bytes(frame_record(example.SerializeToString()))
        os.utime(path, (age, age))

    put(20)
    job = make_job(path.parent, tmp_path / "out", version)
    if is_begun:
        blocks = read_unit(job.units[0])
        next(blocks)
        put(30)
        with pytest.raises(DatasetError, match="has changed since the job began"):
            list(blocks)
    else:
        put(30)
        with pytest.raises(DatasetError, match="has changed since the job began"):
            job.run()
        assert find_parts(job.task.destination) == {}


@pytest.mark.parametrize("compression", ["none", "snappy", "zstd"])
def test_rows_that_have_changed_places_are_other_rows(tmp_path: Path, compression: str) -> None:
    path = tmp_path / "x.parquet"
    units, footers = [], set()
    for age in (1, 2):
        values = np.linspace(0, 1, 12, dtype=np.float32).reshape(4, 3)
        if age == 2:
            values[[1, 2]] = values[[2, 1]]
        table = pa.table({"x": pa.array(values.tolist(), pa.list_(pa.float32()))})
        parquet.write_table(table, path, compression=compression, use_dictionary=False)
        os.utime(path, (age, age))
        units.append(list_units(str(path))[0])
        data = path.read_bytes()
        footers.add(data[-8 - int.from_bytes(data[-8:-4], "little") :])
    assert len(footers) == 1, "this test is of files that only their values tell apart"
    assert units[0] != units[1]


def test_a_file_that_was_copied_with_its_age_is_the_same(tmp_path: Path) -> None:
    path = write(tmp_path / "a" / "x.parquet", 0)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    found = [list_units(str(tmp_path / one))[0].identity for one in "ab"]
    assert found[0] == found[1]
    os.utime(path, (1, 1))
    assert list_units(str(path))[0].identity != found[0]


@pytest.mark.parametrize(
    "flags",
    [["--keys", "color"], ["--scale", "2"], ["--outputs", "total"], ["--allow_non_finite"]],
)
def test_other_flags_into_the_same_folder_are_refused(
    tmp_path: Path, score: Score, flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "in" / "x.parquet", 0)
    assert score() == 0
    assert score(*flags) == 2
    assert flags[0] in capsys.readouterr().err
    assert read_ids(tmp_path / "out") == list(range(5))


def test_parts_of_files_that_are_gone_are_told(
    tmp_path: Path, score: Score, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "in" / "a.parquet", 0)
    write(tmp_path / "in" / "b.parquet", 10)
    assert score() == 0
    (tmp_path / "in" / "a.parquet").rename(tmp_path / "in" / "c.parquet")
    (tmp_path / "out" / "version=1" / "notes.parquet").write_bytes(b"")
    capsys.readouterr()
    assert score() == 0
    assert "4 more parts lie there, of files that are not in" in capsys.readouterr().out


def test_the_side_file_of_an_attempt_that_was_lost_goes_with_the_next_one(
    tmp_path: Path, version: Path
) -> None:
    write(tmp_path / "in.parquet", 0)
    job = make_job(tmp_path / "in.parquet", tmp_path / "out", version)
    destination, unit = job.task.destination, job.units[0]
    block = next(read_unit(unit))
    with PartWriter(destination, unit, {}) as writer:
        writer.refuse(block, [BadRow(1, "nobody answered")], ["id"])
        writer.finish(UnitSummary(num_rows=1, num_bad=1))
    assert read_bad_rows(destination, unit) == [1]
    job.run([unit])
    assert read_bad_rows(destination, unit) == []


def test_of_an_attempt_that_fails_no_bad_row_is_told(tmp_path: Path, version: Path) -> None:
    write(tmp_path / "in.parquet", 0)
    job = make_job(tmp_path / "in.parquet", tmp_path / "out", version)
    block = next(read_unit(job.units[0]))
    with (
        pytest.raises(KeyboardInterrupt),
        PartWriter(job.task.destination, job.units[0], {}) as writer,
    ):
        writer.refuse(block, [BadRow(1, "nobody answered")], ["id"])
        raise KeyboardInterrupt
    assert [path for path in (tmp_path / "out").rglob("*") if path.is_file()] == []


def test_more_bad_rows_than_are_allowed_end_their_unit_at_once(
    tmp_path: Path, version: Path
) -> None:
    write(tmp_path / "in.parquet", 0, 900, group=900)
    job = make_job(tmp_path / "in.parquet", tmp_path / "out", version)
    destination, unit = job.task.destination, job.units[0]
    block = next(read_unit(unit))
    bad = [BadRow(row, "nobody answered") for row in range(900)]
    with PartWriter(destination, unit, {}, 3) as writer:
        writer.refuse(block, bad[:3], ["id"])
        with pytest.raises(DatasetError, match=r"more than 3 rows of .*in\.parquet"):
            writer.refuse(block, bad[3:], ["id"])
    assert read_bad_rows(destination, unit) == [0, 1, 2, 3]
    assert find_parts(destination) == {}


@pytest.mark.parametrize("num_bytes", [0, 300])
def test_a_part_that_was_cut_off_is_written_again_and_no_other(
    tmp_path: Path, score: Score, num_bytes: int, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "in" / "x.parquet", 0)
    assert score() == 0
    first, *others = (tmp_path / "out" / "version=1").iterdir()
    first.write_bytes(first.read_bytes()[:num_bytes])
    ages = [path.stat().st_mtime_ns for path in others]
    capsys.readouterr()
    assert score("--json") == 0
    said = capsys.readouterr()
    assert f"{first} is damaged or cut off" in said.err
    assert json.loads(said.out)["num_parts_before"] == 2
    assert [path.stat().st_mtime_ns for path in others] == ages
    assert read_ids(tmp_path / "out") == list(range(5))


def test_a_part_of_another_question_under_a_part_s_name_is_kept_and_refused(
    tmp_path: Path, score: Score, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "in" / "x.parquet", 0)
    assert score() == 0
    assert score("--keys", "color", out=tmp_path / "other") == 0
    other = next((tmp_path / "other" / "version=1").iterdir())
    part = next((tmp_path / "out" / "version=1").iterdir())
    shutil.copy(other, part)
    assert score() == 2
    assert f"was written as {other.name}" in capsys.readouterr().err
    assert part.read_bytes() == other.read_bytes()


# IN and OUT ------------------------------------------------------------------------------


@pytest.mark.parametrize("out", ["", "scores", "a/../scores"])
def test_a_folder_within_in_is_no_out(
    tmp_path: Path, score: Score, out: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "in" / "a" / "x.parquet", 0)
    assert score(out=tmp_path / "in" / out) == 2
    assert "give an OUT beside IN" in capsys.readouterr().err
    assert score(source=f"{tmp_path}/in/**/*.parquet", out=tmp_path / "in" / "out") == 2
    (tmp_path / "link").symlink_to(tmp_path / "in")
    assert score(out=tmp_path / "link" / "out") == 2
    assert {path.name for path in (tmp_path / "in").iterdir()} == {"a"}


def test_a_file_and_its_answers_may_lie_side_by_side(tmp_path: Path, score: Score) -> None:
    path = write(tmp_path / "in" / "x.parquet", 0)
    for source in (path, f"{tmp_path}/in/*.parquet"):
        assert score(source=source, out=tmp_path / "in" / "out") == 0
    assert read_ids(tmp_path / "in" / "out") == list(range(5))


@pytest.mark.parametrize("pattern", ["*/*/*.parquet", "**/*.parquet", "*/version=?/part-*", "**"])
def test_a_pattern_that_would_find_the_answers_is_refused(
    tmp_path: Path, score: Score, pattern: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "in" / "a" / "version=0" / "part-x.parquet", 0)
    (tmp_path / "link").symlink_to(tmp_path / "in")
    for out in (tmp_path / "in" / "out", tmp_path / "link" / "out"):
        assert score(source=f"{tmp_path}/in/{pattern}", out=out) == 2
        assert "give an OUT beside IN" in capsys.readouterr().err


@pytest.mark.parametrize("pattern", ["*/*.parquet", "a/**/*.parquet", "[a]/*", "**/*.csv"])
def test_a_pattern_that_does_not_find_the_answers_is_taken(tmp_path: Path, pattern: str) -> None:
    assert not holds(f"{tmp_path}/in/{pattern}", str(tmp_path / "in" / "out"))
    assert not holds(f"memory://in/{pattern}", "memory://in/out")


def test_a_pattern_that_is_none_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"a\*\*b: .*entire path component"):
        holds(f"{tmp_path}/a**b", str(tmp_path / "out"))


# Others at work --------------------------------------------------------------------------


def start(tmp_path: Path, version: Path) -> subprocess.Popen[str]:
    arguments = [str(tmp_path / "in"), str(tmp_path / "out"), "--version_dir", str(version)]
    return subprocess.Popen(
        [sys.executable, "-m", "clients", "score", *arguments, "--workers=1", "--json"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("limit", [100, 5000])
def test_a_full_disk_is_a_sentence_and_the_next_run_goes_on(
    tmp_path: Path, version: Path, score: Score, limit: int
) -> None:
    source = write(tmp_path / "in" / "x.parquet", 0, 1000, group=1000)
    write(tmp_path / "in" / "a.parquet", 1000, 1, group=1)
    out = tmp_path / "out"
    job = subprocess.run(
        [
            *(sys.executable, "-m", "clients", "score", str(source.parent), str(out)),
            *("--version_dir", str(version), "--workers=1"),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    assert job.returncode == 3, job.stderr
    assert job.stderr.endswith("make room and run the same command again\n")
    assert len(list(out.rglob("*.parquet"))) == (limit == 5000)
    assert not list(out.rglob(".part-*"))
    assert score() == 0
    assert read_ids(out) == list(range(1001))


def test_two_jobs_at_a_time_write_each_row_once(tmp_path: Path, version: Path) -> None:
    write(tmp_path / "in" / "x.parquet", 0, 600, group=3)
    jobs = [start(tmp_path, version) for _ in range(2)]
    said = [job.communicate() for job in jobs]
    assert [job.returncode for job in jobs] == [0, 0], said
    assert read_ids(tmp_path / "out") == list(range(600))
    assert not list((tmp_path / "out").rglob(".part-*"))


def test_a_job_that_begins_takes_nothing_from_one_at_work(tmp_path: Path, version: Path) -> None:
    write(tmp_path / "in" / "x.parquet", 0, 300, group=1)
    job = make_job(tmp_path / "in", tmp_path / "out", version)
    is_done = threading.Event()

    def begin_again_and_again() -> None:
        while not is_done.is_set():
            sweep(job.task.destination)

    others = [threading.Thread(target=begin_again_and_again) for _ in range(2)]
    for other in others:
        other.start()
    try:
        job.run()
    finally:
        is_done.set()
        for other in others:
            other.join()
    assert read_ids(tmp_path / "out") == list(range(300))


def test_what_a_worker_left_that_died_in_a_job_goes_with_the_end_of_the_job(
    tmp_path: Path, version: Path
) -> None:
    write(tmp_path / "in" / "x.parquet", 0, 600, group=3)
    job = start(tmp_path, version)
    wait_for_parts(tmp_path / "out", 1, job)
    left = tmp_path / "out" / "version=1" / ".part-left"
    left.write_bytes(b"half")
    _, err = job.communicate()
    assert job.returncode == 0, err
    assert not left.exists()


def test_what_a_dead_worker_left_on_nfs_is_swept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fcntl.flock", fcntl.lockf)  # what NFS makes of it
    destination = make_destination("", address=tmp_path)
    left = tmp_path / "version=1" / ".part-left"
    left.parent.mkdir()
    left.write_bytes(b"half")
    assert sweep(destination) == 1
    assert not left.exists()


def test_without_locks_parts_are_written_and_only_what_is_a_day_old_is_swept(
    tmp_path: Path, score: Score, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", refuse)
    write(tmp_path / "in" / "x.parquet", 0)
    folder = tmp_path / "out" / "version=1"
    folder.mkdir(parents=True)
    (folder / ".part-new").write_bytes(b"half")
    (folder / ".part-old").write_bytes(b"half")
    os.utime(folder / ".part-old", (1, 1))
    assert score() == 0
    assert read_ids(tmp_path / "out") == list(range(5))
    assert [path.name for path in folder.glob(".part-*")] == [".part-new"]


def test_a_job_that_is_killed_leaves_whole_parts_and_goes_on(
    tmp_path: Path, version: Path, score: Score, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "in" / "x.parquet", 0, 3000, group=3)
    job = start(tmp_path, version)
    folder = tmp_path / "out" / "version=1"
    wait_for_parts(tmp_path / "out", 20, job)
    job.send_signal(signal.SIGKILL)
    job.communicate()
    before = list(folder.glob("part-*"))
    assert 20 <= len(before) < 1000
    ages = {path: path.stat().st_mtime_ns for path in before}
    assert score("--json") == 0
    assert json.loads(capsys.readouterr().out)["num_parts_before"] == len(before)
    assert {path: path.stat().st_mtime_ns for path in before} == ages
    assert read_ids(tmp_path / "out") == list(range(3000))


def test_an_interrupted_job_says_how_to_go_on_and_leaves_no_half_part(
    tmp_path: Path, version: Path, score: Score
) -> None:
    write(tmp_path / "in" / "x.parquet", 0, 3000, group=3)
    job = start(tmp_path, version)
    wait_for_parts(tmp_path / "out", 20, job)
    job.send_signal(signal.SIGINT)
    out, err = job.communicate()
    assert (job.returncode, out) == (130, "")
    assert "the same command goes on from there" in err and "Traceback" not in err
    assert not list((tmp_path / "out").rglob(".part-*"))
    assert score() == 0
    assert read_ids(tmp_path / "out") == list(range(3000))


ENDS = """
import os, signal
from clients.score.job import ended_by_sigterm

def main():
    with ended_by_sigterm():
        try:
            import swallows
            signal.pause()
        finally:
            print("given back")
"""
SWALLOWS = """
import os, signal
try:
    os.kill(os.getpid(), signal.SIGTERM)
except BaseException:
    print("swallowed")
"""


@pytest.mark.parametrize("ignores_sigint", [False, True])
def test_sigterm_waits_for_imports_as_ctrl_c_does(tmp_path: Path, ignores_sigint: bool) -> None:
    (tmp_path / "ends.py").write_text(ENDS)
    kill = "import os, signal\nos.kill(os.getpid(), signal.SIGTERM)\n"
    (tmp_path / "swallows.py").write_text(kill if ignores_sigint else SWALLOWS)
    job = subprocess.run(
        [
            *(sys.executable, "-c"),
            "from contract.console.interrupts import run_main; raise SystemExit(run_main('ends'))",
        ],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        preexec_fn=lambda: signal.signal(
            signal.SIGINT, signal.SIG_IGN if ignores_sigint else signal.SIG_DFL
        ),
    )
    assert (job.returncode, job.stdout, job.stderr) == (143, "given back\n", "")


def test_what_ended_jobs_had_asked_is_told_by_nothing_that_stays(
    tmp_path: Path, version: Path, score: Score
) -> None:
    write(tmp_path / "in" / "x.parquet", 0, 3000, group=3)
    asked = tmp_path / "out" / "_asked" / "version=1"
    job = start(tmp_path, version)
    wait_for_parts(tmp_path / "out", 20, job)
    job.send_signal(signal.SIGTERM)
    out, err = job.communicate()
    assert (job.returncode, out, err) == (143, "", "")
    assert not list(asked.iterdir()) and not list((tmp_path / "out").rglob(".part-*"))
    job = start(tmp_path, version)
    wait_for_parts(tmp_path / "out", 40, job)
    job.send_signal(signal.SIGKILL)
    job.communicate()
    assert len(list(asked.iterdir())) == 1
    assert score() == 0
    assert not list(asked.iterdir())


def test_while_a_job_is_at_work_another_question_is_refused_and_writes_nothing(
    tmp_path: Path, score: Score, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "in" / "x.parquet", 0)
    with claim(make_destination("other", address=tmp_path / "out")):
        assert score() == 2
        assert "another job is at work" in capsys.readouterr().err
        assert list((tmp_path / "out" / "version=1").iterdir()) == []
    assert score() == 0
    assert read_ids(tmp_path / "out") == list(range(5))
    assert [path for path in (tmp_path / "out" / "_asked").rglob("*") if path.is_file()] == []


def test_of_two_other_questions_at_a_time_one_is_refused(tmp_path: Path) -> None:
    one, other = (make_destination(name, address=tmp_path) for name in ("one", "other"))
    with claim(one), claim(one):
        for _ in range(2):
            with pytest.raises(ConfigError, match="another job is at work"), claim(other):
                pass
    with claim(other):
        pass


def test_no_claim_is_swept_before_it_is_locked(tmp_path: Path) -> None:
    destination, is_over = make_destination("one", address=tmp_path), threading.Event()
    folder = tmp_path / "_asked" / destination.folder
    folder.mkdir(parents=True)

    def sweep_all() -> None:  # as many jobs would that begin at the same time
        while not is_over.is_set():
            for path in folder.iterdir():
                output._sweep_file(path)

    sweeping = threading.Thread(target=sweep_all)
    sweeping.start()
    try:
        for _ in range(300):
            with claim(destination):
                assert list(folder.iterdir())
    finally:
        is_over.set()
        sweeping.join()


def test_a_job_that_died_keeps_no_other_question_out(tmp_path: Path, score: Score) -> None:
    write(tmp_path / "in" / "x.parquet", 0)
    left = tmp_path / "out" / "_asked" / "version=1" / "0123-abcd"
    left.parent.mkdir(parents=True)
    left.touch()
    assert score() == 0
    assert not left.exists()


def test_another_question_that_came_meanwhile_is_found(
    tmp_path: Path, version: Path, score: Score, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "in" / "x.parquet", 0)
    other = make_job(tmp_path / "in", tmp_path / "other", version, keys=["color"])
    other.run()
    assert score() == 0
    for path in (tmp_path / "other" / "version=1").iterdir():
        shutil.copy(path, tmp_path / "out" / "version=1")
    assert score() == 2
    assert "count its rows twice" in capsys.readouterr().err


def test_jobs_that_begin_at_a_time_take_no_file_from_each_other(tmp_path: Path) -> None:
    destination = make_destination("one", address=tmp_path)
    other = make_destination("other", address=tmp_path)
    is_done, lost = threading.Event(), []

    def begin_again_and_again() -> None:
        while not is_done.is_set():
            with suppress(ConfigError), claim(destination):
                sweep(destination)
                with suppress(ConfigError), claim(other):
                    lost.append("a claim that another job took for a dead one's")

    jobs = [threading.Thread(target=begin_again_and_again) for _ in range(3)]
    for job in jobs:
        job.start()
    try:
        for number in range(300):
            place = tmp_path / "version=1" / f"part-{number}"
            with WholeFile(LocalFileSystem(), str(place), str(place.parent)) as file:
                file.place()
            assert place.exists()
    finally:
        is_done.set()
        for job in jobs:
            job.join()
    assert lost == []
