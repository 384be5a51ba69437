"""What `clients score` says of OUT: broken in one place each, it must be found."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from clients.score.sources import list_units
from clients.score.verify import choose_units
from contract.signature import Batch
from tests.clients.grpc_servers import ModelServer
from tests.score import jobs
from tests.score.jobs import is_noise, make_images, write_images


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """Two hundred rows in two row groups."""
    write_images(tmp_path / "in.parquet", 200)
    return tmp_path / "in.parquet"


Score = Callable[..., tuple[int, dict[str, object]]]


@pytest.fixture
def score(score: jobs.Score, capsys: pytest.CaptureFixture[str]) -> Score:
    """Runs the command; its exit code, and what it says of the sample."""

    def run(*arguments: str) -> tuple[int, dict[str, object]]:
        status = score("--json", *arguments)
        sample = json.loads(capsys.readouterr().out)["sample"]
        assert isinstance(sample, dict)
        return status, sample

    return run


def list_parts(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "out").rglob("part-*.parquet"))


def change(path: Path, edit: Callable[[pa.Table], pa.Table]) -> None:
    """Writes a part anew, with the metadata that it had."""
    file = parquet.ParquetFile(path)
    metadata = file.metadata.metadata
    table = edit(file.read()).replace_schema_metadata(metadata)
    parquet.write_table(table, path)


def set_column(table: pa.Table, name: str, values: list[object]) -> pa.Table:
    place = table.column_names.index(name)
    return table.set_column(place, name, pa.array(values, table.column(name).type))


def test_all_that_the_model_answered_is_confirmed(score: Score) -> None:
    status, sample = score()
    assert (status, sample["passed"], sample["num_rows"]) == (0, True, 200)
    assert sample["compared_with"] == ["LiteRT float32 in process"]


def test_one_number_that_was_changed_is_found_and_its_row_named(
    score: Score, tmp_path: Path
) -> None:
    score()
    part = list_parts(tmp_path)[0]

    def edit(table: pa.Table) -> pa.Table:
        values = table["probabilities"].to_pylist()
        values[7][3] += 0.01
        return set_column(table, "probabilities", values)

    change(part, edit)
    status, sample = score()
    assert status == 1
    (problem,) = sample["problems"]  # type: ignore[misc]
    assert "in.parquet, row " in problem and part.stem in problem


def test_a_class_that_was_changed_is_found(score: Score, tmp_path: Path) -> None:
    score()
    change(
        list_parts(tmp_path)[0],
        lambda table: set_column(
            table, "probabilities_class", table["probabilities_class"].to_pylist()[::-1]
        ),
    )
    status, sample = score()
    assert status == 1 and "is not the class of" in str(sample["problems"])


def test_classes_that_are_gone_are_found(score: Score, tmp_path: Path) -> None:
    score()
    change(list_parts(tmp_path)[0], lambda table: table.drop_columns(["probabilities_class"]))
    status, sample = score()
    assert status == 1 and "has no column probabilities_class" in str(sample["problems"])


def test_a_key_that_was_changed_is_found(score: Score, tmp_path: Path) -> None:
    score()
    change(
        list_parts(tmp_path)[0],
        lambda table: set_column(table, "id", [1000, *table["id"].to_pylist()[1:]]),
    )
    status, sample = score()
    assert status == 1 and "id is 1000 in OUT" in str(sample["problems"])


def test_rows_that_changed_places_are_found(score: Score, tmp_path: Path) -> None:
    score()
    change(list_parts(tmp_path)[0], lambda table: table.take(pa.array([*range(1, 100), 0])))
    status, sample = score()
    assert status == 1 and "of other rows" in str(sample["problems"])


def test_two_parts_that_changed_places_are_refused(
    score: Score, tmp_path: Path, rows: Path, version: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    score()
    one, other = list_parts(tmp_path)
    content = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(content)
    assert jobs.score(rows, tmp_path / "out", version) != 0
    assert "was written as" in capsys.readouterr().err


def test_a_part_that_lost_rows_is_refused(
    score: Score, tmp_path: Path, rows: Path, version: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    score()
    change(list_parts(tmp_path)[0], lambda table: table.slice(0, 90))
    assert jobs.score(rows, tmp_path / "out", version) != 0
    assert "has 90 rows, and had 100" in capsys.readouterr().err


@pytest.mark.parametrize("block_rows", [8192, 16])
def test_bad_rows_are_stepped_over(
    tmp_path: Path,
    version: Path,
    rows: Path,
    score: Score,
    block_rows: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("clients.score.sources.BLOCK_ROWS", block_rows)
    values: list[object] = (make_images(200) / 255).tolist()
    for row in (0, 1, 50, 99, 100, 199):
        values[row] = None
    table = pa.table({"id": range(200), "x": pa.array(values, pa.list_(pa.float32()))})
    parquet.write_table(table, rows, row_group_size=100)
    status, sample = score()
    assert (status, sample["problems"]) == (0, [])
    if block_rows > 200:
        assert sample["num_rows"] == 194


def test_a_side_file_that_is_gone_is_noticed(
    tmp_path: Path, version: Path, rows: Path, score: Score
) -> None:
    table = pa.table({"x": pa.array([None, *(make_images(9) / 255).tolist()])})
    parquet.write_table(table, rows)
    score()
    shutil.rmtree(tmp_path / "out" / "_bad_rows")
    status, sample = score()
    assert status == 1 and "side file has 0" in str(sample["problems"])


def test_parts_of_this_run_and_of_earlier_ones_are_looked_at(tmp_path: Path) -> None:
    for number in range(12):
        write_images(tmp_path / f"{number}.parquet", 5)
    units = list_units(str(tmp_path))
    for seed in "abcdef":
        chosen = choose_units(units[-1:], units[:-1], seed)
        assert units[-1] in chosen and len(set(chosen)) == 4
        assert len(set(choose_units(units[:6], units[6:], seed)) & set(units[:6])) == 2
        assert len(choose_units([], units, seed)) == len(choose_units(units, [], seed)) == 4


@pytest.mark.parametrize("variant", ["float16", "dynamic_range", "int8"])
def test_a_variant_is_held_to_itself_and_to_float32(
    score: Score, tmp_path: Path, variant: str
) -> None:
    status, sample = score("--variant", variant)
    assert (status, sample["compared_with"]) == (
        0,
        [f"{variant} in process", "LiteRT float32 in process"],
    )

    def edit(table: pa.Table) -> pa.Table:
        values = table["probabilities"].to_pylist()
        best = int(np.argmax(values[7]))
        values[7][best] -= 0.05  # of the same class still
        values[7][best - 1] += 0.05
        return set_column(table, "probabilities", values)

    change(list_parts(tmp_path)[0], edit)
    status, sample = score("--variant", variant)
    assert status == 1 and f"not as {variant} in process" in str(sample["problems"])


def test_what_a_server_answered_is_held_against_litert_and_not_against_the_server(
    score: Score, server: ModelServer
) -> None:
    status, sample = score("--server", server.address)
    assert (status, sample["passed"]) == (0, True)
    assert sample["compared_with"] == ["LiteRT float32 in process"]
    asked = sum(server.batch_sizes)
    assert score("--server", server.address)[0] == 0
    assert sum(server.batch_sizes) == asked, "the second run asked the server for the sample"


def test_a_server_that_begins_to_answer_otherwise_fails_the_verdict(
    score: Score, server: ModelServer, version: Path
) -> None:
    right = server.answer

    def answer(inputs: Batch) -> Batch:
        outputs = right(inputs)
        if is_noise(inputs):
            outputs = {name: np.roll(array, 1, axis=-1) for name, array in outputs.items()}
        return outputs

    server.answer = answer
    status, sample = score("--server", server.address)
    assert status == 1 and "not as LiteRT float32" in str(sample["problems"])


def test_a_server_of_another_model_scores_nothing(
    rows: Path,
    tmp_path: Path,
    version: Path,
    server: ModelServer,
    capsys: pytest.CaptureFixture[str],
) -> None:
    right = server.answer
    server.answer = lambda inputs: {
        name: np.roll(array, 1, axis=-1) for name, array in right(inputs).items()
    }
    assert jobs.score(rows, tmp_path / "out", version, "--server", server.address) != 0
    said = capsys.readouterr().err
    assert server.address in said and "golden" in said
    assert list_parts(tmp_path) == []


# Every kind of file ----------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["csv", "jsonl", "tfrecord"])
def test_the_verdict_knows_the_rows_of_every_kind_of_file(
    tmp_path: Path,
    people: Path,
    kind: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("clients.score.sources.PIECE_BYTES", 500)
    monkeypatch.setattr("clients.score.sources.BLOCK_ROWS", 20)
    source = jobs.write_rows(tmp_path, kind)
    assert jobs.score(source, tmp_path / "out", people, "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["num_bad"], document["sample"]["passed"]) == (15, True)
    assert document["sample"]["num_rows"] > 1
    for part in list_parts(tmp_path):
        change(part, lambda table: table.take(pa.array(range(len(table)))[::-1]))
    assert jobs.score(source, tmp_path / "out", people) == 1
    assert "is of other rows than" in capsys.readouterr().out
