"""Files as people have them: what is wrong about one row costs that row, and is told."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from pyarrow import parquet

from clients.cli import main
from clients.files.fit import Adjustment
from clients.score.columns import prepare
from clients.score.output import find_parts
from clients.score.plan import plan_columns
from clients.score.sources import Block, list_units, read_unit
from contract.errors import ConfigError, DatasetError
from contract.signature import Signature, TensorSpec
from contract.wire.plumbline_wire import example_pb2
from contract.wire.tfrecord import frame_record
from tests.score import jobs
from tests.score.jobs import Job, make_job


@pytest.fixture(scope="module")
def version(people: Path) -> Path:
    return people


def score(source: Path, tmp_path: Path, version: Path, keys: list[str] | None = None) -> Job:
    job = make_job(source, tmp_path / "out", version, keys=keys)
    job.run()
    return job


def read_ages(job: Job) -> dict[object, float]:
    """Key to the age that was answered."""
    table = job.read()
    return {
        key: round(total[0], 4)
        for key, total in zip(table["id"].to_pylist(), table["total"].to_pylist(), strict=True)
    }


def read_bad(job: Job) -> list[tuple[object, str]]:
    """Row number and reason of what was left out."""
    found = []
    for path in sorted(Path(job.task.destination.address, "_bad_rows").rglob("*.jsonl")):
        for line in path.read_text().splitlines():
            row = json.loads(line)
            found.append((row["source_row"], row["reason"]))
    return found


# CSV -------------------------------------------------------------------------------------


def write_csv(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode())
    return path


def test_a_csv_line_of_too_few_cells_is_one_bad_row(tmp_path: Path, version: Path) -> None:
    source = write_csv(tmp_path / "x.csv", "id,age,color\n1,20,red\n2,30\n3,40,blue\n")
    job = score(source, tmp_path, version)
    assert read_ages(job) == {"1": 20, "3": 40}
    assert read_bad(job) == [(None, "it has 2 cells and the header 3: 2,30")]


def test_a_csv_cell_that_is_no_number_is_one_bad_row(tmp_path: Path, version: Path) -> None:
    lines = "".join(f"{n},{n}.5,red\n" for n in range(60))
    source = write_csv(tmp_path / "x.csv", f"id,age,color\n{lines}60,old,red\n61,3,red\n")
    job = score(source, tmp_path, version)
    assert read_ages(job) == {str(n): n + 0.5 for n in range(60)} | {"61": 3}
    assert read_bad(job) == [(60, "age is 'old', and no number")]


def test_ages_that_are_whole_at_first_may_have_fractions_later(
    tmp_path: Path, version: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clients.score.sources.BLOCK_ROWS", 4)
    lines = "".join(f"{n},{n if n < 4 else n + 0.5},red\n" for n in range(9))
    job = score(write_csv(tmp_path / "x.csv", f"id,age,color\n{lines}"), tmp_path, version)
    assert read_ages(job)["8"] == 8.5 and read_bad(job) == []


def test_an_empty_csv_cell_is_a_missing_value(tmp_path: Path, version: Path) -> None:
    source = write_csv(tmp_path / "x.csv", "id,age,color\n1,,red\n2,NA,\n3,40,blue\n")
    job = score(source, tmp_path, version)
    assert read_ages(job) == {"1": 30, "2": 30, "3": 40}
    assert job.read()["total"].to_pylist()[1] == [30, 0, 0]


def test_csv_keys_are_carried_as_they_stand(tmp_path: Path, version: Path) -> None:
    keys = ['"a,1"', '"say ""x"""', '"two\nlines"', "NA", "007"]
    text = "id,age,color\n" + "".join(f"{key},20,red\n" for key in keys)
    job = score(write_csv(tmp_path / "x.csv", text), tmp_path, version)
    assert list(read_ages(job)) == ["a,1", 'say "x"', "two\nlines", "NA", "007"]


def test_csv_keys_are_texts_in_every_part_and_in_the_side_file(
    tmp_path: Path, version: Path
) -> None:
    keys = ["02139", "7", "007", " 7", "18446744073709551616", "1e3", "1.50", "true", "A17", ""]
    rows = "".join(f"{key},20,red\n" for key in keys)
    write_csv(tmp_path / "in" / "a.csv", "id,age,color\n1,20,red\n")
    write_csv(tmp_path / "in" / "b.csv", f"id,age,color\n{rows}{'00,inf,red'}\n")
    job = score(tmp_path / "in", tmp_path, version)
    assert sorted(job.read()["id"].to_pylist()) == sorted(["1", *keys])
    (side,) = Path(job.task.destination.address, "_bad_rows").rglob("*.jsonl")
    assert json.loads(side.read_text())["keys"] == {"id": "00"}


def test_csv_files_whose_columns_stand_in_another_order_are_scored_alike(
    tmp_path: Path, version: Path
) -> None:
    write_csv(tmp_path / "in" / "a.csv", "id,age,color\n1,20,red\n")
    write_csv(tmp_path / "in" / "b.csv", "color,more,age,id\nred,x,21,2\n")
    write_csv(tmp_path / "in" / "c.csv", "")
    write_csv(tmp_path / "in" / "d.csv", "id,age,color\n")
    assert read_ages(score(tmp_path / "in", tmp_path, version)) == {"1": 20, "2": 21}


def test_a_csv_file_that_lacks_a_column_is_named(tmp_path: Path, version: Path) -> None:
    write_csv(tmp_path / "in" / "a.csv", "id,age,color\n1,20,red\n")
    write_csv(tmp_path / "in" / "b.csv", "id,color\n1,red\n")
    with pytest.raises(DatasetError, match=r"b\.csv has no column age"):
        score(tmp_path / "in", tmp_path, version)


@pytest.mark.parametrize("ends", ["\n", "\r\n"])
def test_csv_with_blank_lines_a_mark_at_its_head_and_any_line_ends(
    tmp_path: Path, version: Path, ends: str
) -> None:
    text = ends.join(["\ufeffid,age,color", "1,20,red", "", "2,21,red"])
    assert read_ages(score(write_csv(tmp_path / "x.csv", text), tmp_path, version)) == {
        "1": 20,
        "2": 21,
    }


def test_two_columns_of_one_name_are_refused(tmp_path: Path, version: Path) -> None:
    source = write_csv(tmp_path / "x.csv", "id,age,age,color\n1,2,3,red\n")
    with pytest.raises(DatasetError, match="two columns are called 'age'"):
        score(source, tmp_path, version)
    table = pa.Table.from_arrays(
        [pa.array([1]), pa.array([2.0]), pa.array([3.0])], ["id", "age", "age"]
    )
    parquet.write_table(table, tmp_path / "x.parquet")
    with pytest.raises(DatasetError, match=r"x\.parquet: two columns are called 'age'"):
        score(tmp_path / "x.parquet", tmp_path, version)


# JSON lines ------------------------------------------------------------------------------


def test_a_json_line_that_is_none_is_one_bad_row(tmp_path: Path, version: Path) -> None:
    lines = [
        '{"id": 1, "age": 20, "color": "red"}',
        '{"id": 2, "age": 21, "col',
        "[1, 2]",
        '{"id": 3, "age": "old", "color": "red"}',
        '{"id": 4, "color": "blue"}',
    ]
    (tmp_path / "x.jsonl").write_text("\n".join(lines))
    job = score(tmp_path / "x.jsonl", tmp_path, version)
    assert read_ages(job) == {1: 20, 4: 30}
    assert [row for row, _ in read_bad(job)] == [1, 2, 3]
    assert "no JSON object" in read_bad(job)[0][1] and "old" in read_bad(job)[2][1]


def test_json_lines_end_as_they_like(tmp_path: Path, version: Path) -> None:
    text = '{"id": 1, "age": 20, "color": "red"}\r\n\r\n{"id": 2, "age": 21, "color": "red"}'
    (tmp_path / "x.jsonl").write_bytes(text.encode())
    assert read_ages(score(tmp_path / "x.jsonl", tmp_path, version)) == {1: 20, 2: 21}


def test_what_json_lines_lack_for_a_whole_block_is_missing(
    tmp_path: Path, version: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clients.score.sources.BLOCK_ROWS", 2)
    rows = [{"id": n, "age": 20 + n, "color": "red", "note": f"n{n}"} for n in range(4)]
    for row in rows[2:]:
        del row["age"], row["note"]
    (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, rows)))
    job = score(tmp_path / "x.jsonl", tmp_path, version)
    assert read_ages(job) == {0: 20, 1: 21, 2: 30, 3: 30}
    assert job.read()["note"].to_pylist() == ["n0", "n1", None, None]


def test_json_texts_that_look_like_times_are_carried_as_they_stand(
    tmp_path: Path, version: Path
) -> None:
    keys = ["2026-01-01", "2026-01-01 10:00:00", "then"]
    rows = [{"id": key, "age": 20, "color": "red"} for key in keys]
    (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert list(read_ages(score(tmp_path / "x.jsonl", tmp_path, version))) == keys
    (tmp_path / "y.jsonl").write_text(json.dumps(rows[1]))
    assert list(read_ages(score(tmp_path / "y.jsonl", tmp_path / "y", version))) == [keys[1]]


# TFRecord --------------------------------------------------------------------------------


def make_record(number: int) -> bytes:
    example = example_pb2.Example()
    example.features.feature["id"].int64_list.value.append(number)
    example.features.feature["x"].float_list.value.extend([number, 0, 1])
    return bytes(frame_record(example.SerializeToString()))


def test_a_damaged_record_is_one_bad_row_and_so_is_a_cut_off_tail(
    tmp_path: Path, version: Path
) -> None:
    records = [make_record(number) for number in range(5)]
    records[1] = records[1][:20] + bytes([records[1][20] ^ 255]) + records[1][21:]
    (tmp_path / "x.tfrecord").write_bytes(b"".join(records)[:-9])
    job = score(tmp_path / "x.tfrecord", tmp_path, version)
    assert read_ages(job) == {0: 0, 2: 2, 3: 3}
    assert [row for row, _ in read_bad(job)] == [1, 4]
    assert "checksum of its data" in read_bad(job)[0][1] and "cut off" in read_bad(job)[1][1]


def test_a_file_whose_records_cannot_be_found_any_more_is_named(
    tmp_path: Path, version: Path
) -> None:
    record = make_record(1)
    data = record * 3
    (tmp_path / "x.tfrecord").write_bytes(data[: len(record)] + b"\xff" + data[len(record) + 1 :])
    with pytest.raises(DatasetError, match=r"x\.tfrecord.*checksum of its length"):
        score(tmp_path / "x.tfrecord", tmp_path, version)


def make_features(**features: object) -> bytes:
    """A record of features: lists of ints, floats or bytes."""
    example = example_pb2.Example()
    for name, values in features.items():
        assert isinstance(values, list)
        kind = {int: "int64_list", float: "float_list", bytes: "bytes_list"}[type(values[0])]
        getattr(example.features.feature[name], kind).value.extend(values)
    return bytes(frame_record(example.SerializeToString()))


def test_a_feature_of_another_kind_than_others_is_one_bad_row(
    tmp_path: Path, version: Path
) -> None:
    records = [make_features(id=[n], x=[float(n), 0.0, 1.0]) for n in range(6)]
    records[2] = make_features(id=[2], x=[b"old"])
    records[4] = make_features(id=[b"four"], x=[4.0, 0.0, 1.0])
    (tmp_path / "x.tfrecord").write_bytes(b"".join(records))
    job = score(tmp_path / "x.tfrecord", tmp_path, version)
    assert read_ages(job) == {0: 0, 1: 1, 3: 3, 5: 5}
    assert read_bad(job) == [
        (2, "feature x holds a bytes_list, unlike others: float_list"),
        (4, "feature id holds a bytes_list, unlike others: int64_list"),
    ]


def test_features_have_the_type_of_the_first_rows_in_every_block_and_file(
    tmp_path: Path, version: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clients.score.sources.BLOCK_ROWS", 2)
    rows = [(0, [1.0, 0.0, 1.0]), (1, [1.0, 0.0, 1.0]), (2, [7.0]), (3, [8.0])]
    records = [make_features(id=[n], x=values) for n, values in rows]
    more = [make_features(id=[4, 4], x=[1.0, 0.0, 1.0]), make_features(id=[5], x=[2.0, 0.0, 1.0])]
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.tfrecord").write_bytes(b"".join(records))
    (tmp_path / "in" / "b.tfrecord").write_bytes(more[0] * 2)
    (tmp_path / "in" / "c.tfrecord").write_bytes(b"".join(more))
    (tmp_path / "in" / "d.tfrecord").write_bytes(make_features(id=[6], x=[9.0]))
    job = score(tmp_path / "in", tmp_path, version)
    assert read_ages(job) == {0: 1, 1: 1, 5: 2}
    assert sorted(reason for _, reason in read_bad(job)) == [
        *["feature id has 2 values, and one in others"] * 3,
        *["it has 1 values and not 3"] * 3,
    ]


# Parquet ---------------------------------------------------------------------------------


def people(ids: list[object], **columns: object) -> pa.Table:
    count = len(ids)
    return pa.table(
        {"id": ids, "age": [float(n) for n in range(count)], "color": ["red"] * count, **columns}
    )


def test_folders_of_partitions_are_columns(tmp_path: Path, version: Path) -> None:
    for day, ids in (
        ("2026-01-01", [1, 2]),
        ("2026-01-02", [3]),
        ("__HIVE_DEFAULT_PARTITION__", [4]),
    ):
        folder = tmp_path / "in" / f"day={day}" / "city=S%C3%A3o%20Paulo"
        folder.mkdir(parents=True)
        parquet.write_table(people(ids), folder / "x.parquet")
    table = score(tmp_path / "in", tmp_path, version).read().sort_by("id")
    assert table["day"].to_pylist() == ["2026-01-01", "2026-01-01", "2026-01-02", None]
    assert set(table["city"].to_pylist()) == {"São Paulo"}


def test_a_partition_can_be_what_the_model_takes(tmp_path: Path, version: Path) -> None:
    for color in ("red", "blue"):
        folder = tmp_path / "in" / f"color={color}"
        folder.mkdir(parents=True)
        parquet.write_table(pa.table({"id": [color], "age": [1.0]}), folder / "x.parquet")
    table = score(tmp_path / "in", tmp_path, version).read().sort_by("id")
    assert table["total"].to_pylist() == [[1, 1, 0], [1, 0, 1]]


def test_partitions_alone_tell_no_rows_apart(tmp_path: Path, version: Path) -> None:
    folder = tmp_path / "in" / "day=1"
    folder.mkdir(parents=True)
    parquet.write_table(people([1, 2]).drop_columns(["id"]), folder / "x.parquet")
    table = score(tmp_path / "in", tmp_path, version).read()
    assert table["source"].to_pylist() == ["day=1/x.parquet"] * 2
    assert table["source_row"].to_pylist() == [0, 1]


def test_files_without_rows_are_no_hindrance(tmp_path: Path, version: Path) -> None:
    (tmp_path / "in").mkdir()
    schema = people([1]).schema
    with parquet.ParquetWriter(tmp_path / "in" / "a.parquet", schema):
        pass
    with parquet.ParquetWriter(tmp_path / "in" / "b.parquet", schema) as writer:
        writer.write_table(schema.empty_table())
        writer.write_table(people([7]))
    job = score(tmp_path / "in", tmp_path, version)
    assert read_ages(job) == {7: 0}
    assert parquet.ParquetFile(tmp_path / "in" / "b.parquet").num_row_groups >= 1


def test_a_file_of_bad_rows_alone_leaves_a_part_that_says_so(tmp_path: Path, version: Path) -> None:
    table = people([1, 2]).set_column(1, "age", pa.array([float("inf")] * 2))
    (tmp_path / "in").mkdir()
    parquet.write_table(people([3]), tmp_path / "in" / "a.parquet")
    parquet.write_table(table, tmp_path / "in" / "b.parquet")
    job = score(tmp_path / "in", tmp_path, version)
    assert [reason for _, reason in read_bad(job)] == ["x holds NaN or infinity"] * 2
    assert len(find_parts(job.task.destination)) == 2
    schemas = [parquet.read_schema(path) for path in find_parts(job.task.destination).values()]
    assert schemas[0].equals(schemas[1])
    assert job.read()["id"].to_pylist() == [3]


def test_outputs_step_aside_for_keys_of_their_names(tmp_path: Path, version: Path) -> None:
    names = {"total": ["t"], "total_answer": ["u"], "source": ["s"], "a/b": ["v"], "x.y": ["w"]}
    parquet.write_table(people([1], **names), tmp_path / "x.parquet")
    row = score(tmp_path / "x.parquet", tmp_path, version).read().to_pylist()[0]
    assert row.pop("total_answer_answer") == [0, 0, 1]
    assert row == {"id": 1, **{name: values[0] for name, values in names.items()}}


def test_an_input_that_was_whole_at_first_is_told_to_be_no_number(
    tmp_path: Path, version: Path
) -> None:
    ages = ["40"] * 9000 + ["40.5", "old"]
    lines = [f"{number},{age},red" for number, age in enumerate(ages)]
    job = score(
        write_csv(tmp_path / "x.csv", "\n".join(["id,age,color", *lines])), tmp_path, version
    )
    assert read_ages(job)["9000"] == 40.5
    assert read_bad(job) == [(9001, "age is 'old', and no number")]


def test_keys_have_one_type_in_all_parts(tmp_path: Path, version: Path) -> None:
    (tmp_path / "in").mkdir()
    for name, ids in (
        ("a", pa.array([1], pa.int64())),
        ("b", pa.array([2], pa.int32())),
        ("c", pa.array(["3"])),
        ("d", pa.array(["4", "x"]).dictionary_encode()),
        ("e", pa.array([None], pa.null())),
    ):
        table = people([0] * len(ids)).set_column(0, "id", ids)
        parquet.write_table(table, tmp_path / "in" / f"{name}.parquet")
    job = score(tmp_path / "in", tmp_path, version)
    ids = job.read()["id"]
    assert ids.type == pa.int64()
    assert set(ids.to_pylist()) == {1, 2, 3, 4, None}
    assert read_bad(job) == [(1, "id is 'x', and no whole number")]


def test_wide_rows_are_read_few_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clients.score.sources.BLOCK_BYTES", 2**20)
    table = pa.table({"x": pa.array(np.zeros((100, 2**15)).tolist()), "id": range(100)})
    parquet.write_table(table, tmp_path / "x.parquet", use_dictionary=False)
    (unit,) = list_units(str(tmp_path / "x.parquet"))
    assert all(block.table.num_rows <= 4 for block in read_unit(unit))
    assert sum(block.table.num_rows for block in read_unit(unit)) == 100
    assert [block.table.num_rows for block in read_unit(unit, ["id"])] == [100]


# Pictures --------------------------------------------------------------------------------


def test_pictures_of_any_name_are_scored_and_a_broken_one_is_named(
    tmp_path: Path, digits: Path
) -> None:
    (tmp_path / "in" / "été 1").mkdir(parents=True)
    for name in ("a b.png", "ü#?.PNG", "été 1/x.jpg"):
        Image.fromarray(np.zeros((28, 28), np.uint8)).save(tmp_path / "in" / name)
    (tmp_path / "in" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n....")
    job = make_job(tmp_path / "in", tmp_path / "out", digits)
    assert job.run() == 1
    assert set(job.read()["source"].to_pylist()) == {"a b.png", "ü#?.PNG", "été 1/x.jpg"}


@pytest.mark.parametrize("data", [b"", b"GIF89a", b"\x89PNG\r\n\x1a\n"])
def test_a_damaged_picture_may_be_the_first_one_or_alone_in_its_unit(
    tmp_path: Path, digits: Path, data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clients.score.sources.PICTURES", 1)
    (tmp_path / "in").mkdir()
    for name in ("a", "c"):
        (tmp_path / "in" / f"{name}.png").write_bytes(data)
    for name in ("b", "d"):
        Image.new("L", (28, 28)).save(tmp_path / "in" / f"{name}.png")
    job = score(tmp_path / "in", tmp_path, digits)
    assert job.read()["source"].to_pylist() == ["b.png", "d.png"]
    assert [row for row, _ in read_bad(job)] == [0, 2]


def test_a_damaged_picture_of_a_table_may_be_the_first_one_or_alone_in_its_group(
    tmp_path: Path, digits: Path
) -> None:
    picture = io.BytesIO()
    Image.new("L", (28, 28)).save(picture, "PNG")
    pictures = [b"", picture.getvalue(), b"damaged", None, picture.getvalue()]
    table = pa.table({"id": range(5), "image": [{"bytes": one} for one in pictures]})
    parquet.write_table(table, tmp_path / "x.parquet", row_group_size=2)
    job = score(tmp_path / "x.parquet", tmp_path, digits)
    assert job.read()["id"].to_pylist() == [1, 4]
    assert [row for row, _ in read_bad(job)] == [0, 2, 3]


# Two inputs ------------------------------------------------------------------------------


def make_signature(name: str, **inputs: int) -> Signature:
    """float32 inputs of so many values a row, and one output."""
    return Signature(
        name,
        {key: TensorSpec(key, "float32", (None, size)) for key, size in inputs.items()},
        {"y": TensorSpec("y", "float32", (None, 1))},
    )


@pytest.mark.parametrize("wrong", [[float("nan"), 0], [float("nan")], None])
def test_a_row_that_is_bad_in_two_inputs_is_refused_once(wrong: list[float] | None) -> None:
    kind = pa.list_(pa.float32())
    columns = {name: pa.array([[1, 2], wrong, [3, 4]], kind) for name in "ab"}
    block = Block(pa.table({"id": [1, 2, 3], **columns}), 0)
    signature = make_signature("serving_default", a=2, b=2)
    plan = plan_columns(block, {signature.name: signature}, adjustment=Adjustment())
    prepared = prepare(block, plan)
    assert [one.row for one in prepared.bad] == [1]
    assert prepared.rows.tolist() == [0, 2]
    assert [len(array) for array in prepared.batch.values()] == [2, 2]


def test_columns_of_bytes_ask_the_signature_whose_inputs_they_are() -> None:
    cells = [np.zeros(2, np.float32).tobytes()] * 3
    block = Block(pa.table({name: pa.array(cells, pa.binary(8)) for name in "ab"}), 0)
    signatures = {
        "other": make_signature("other", c=9, d=9),
        "ours": make_signature("ours", a=2, b=2),
    }
    plan = plan_columns(block, signatures, adjustment=Adjustment())
    assert plan.signature.name == "ours"


# Any rows --------------------------------------------------------------------------------

CELLS = st.one_of(
    st.floats(-1e3, 1e3, width=32), st.none(), st.just("old"), st.integers(-(10**6), 10**6)
)


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(ages=st.lists(CELLS, min_size=1, max_size=30), kind=st.sampled_from(["csv", "jsonl"]))
def test_every_row_is_answered_or_refused_never_both(
    ages: list[object], kind: str, version: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("any")
    first = ["1.5", "2.5", "3.5"] * 100  # so that the column is one of numbers
    source = folder / f"x.{kind}"
    if kind == "csv":
        lines = [f"{n},{'' if age is None else age},red" for n, age in enumerate([*first, *ages])]
        source.write_text("\n".join(["id,age,color", *lines]))
    else:
        numbers: list[object] = [float(one) for one in first]
        rows = [{"id": n, "age": a, "color": "red"} for n, a in enumerate([*numbers, *ages])]
        source.write_text("\n".join(map(json.dumps, rows)))
    job = score(source, folder, version)
    found = {int(str(key)): age for key, age in read_ages(job).items()}
    bad = {row for row, _ in read_bad(job)}
    expected_bad = {300 + n for n, age in enumerate(ages) if age == "old"}
    assert bad == expected_bad
    assert set(found) == set(range(300 + len(ages))) - bad
    for number, age in enumerate(ages):
        if 300 + number not in bad:
            wanted = 30 if age is None else np.float32(float(age))  # type: ignore[arg-type]
            assert found[300 + number] == pytest.approx(wanted, abs=1e-2, rel=1e-5)


def test_the_command_stops_at_too_many_bad_rows_and_says_where_they_are(
    tmp_path: Path, version: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = "".join(f"{n},{n if n % 2 else 'x'},red\n" for n in range(20))
    source = write_csv(tmp_path / "x.csv", "id,age,color\n" + "0,1,red\n" * 500 + lines)
    where = (source, tmp_path / "out", version)
    assert jobs.score(*where, "--max_bad_rows=9") == 2
    said = capsys.readouterr().err
    assert "more than 9 rows" in said and "x.csv cannot be scored" in said
    (side,) = (tmp_path / "out" / "_bad_rows").rglob("*.jsonl")
    assert str(side) in said and len(side.read_text().splitlines()) == 10
    assert jobs.score(*where, "--max_bad_rows=10") == 0
    assert "_bad_rows/version=1" in capsys.readouterr().out


def test_an_address_that_is_no_file_system_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nowhere://"):
        list_units("nowhere://x")


# Any columns -----------------------------------------------------------------------------

NUMBERS = st.floats(-1e3, 1e3, width=32, allow_subnormal=False)
ROWS = st.lists(
    st.one_of(
        st.none(),
        st.lists(NUMBERS, min_size=3, max_size=3),
        st.lists(st.one_of(NUMBERS, st.none()), min_size=3, max_size=3),
        st.lists(NUMBERS, max_size=5),
    ),
    min_size=1,
    max_size=30,
)


@settings(max_examples=60, deadline=None)
@given(
    rows=ROWS,
    kind=st.sampled_from(["list", "large list", "fixed list", "fixed binary", "doubles"]),
    group=st.integers(1, 40),
)
def test_rows_of_any_column_come_out_as_they_went_in_or_are_refused(
    rows: list[list[float | None] | None],
    kind: str,
    group: int,
    version: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.mktemp("columns")
    rows = [[1.0, 2.0, 3.0], *rows]
    if kind.startswith("fixed"):
        rows = [row if row is None or len(row) == 3 else [*row, 0, 0, 0][:3] for row in rows]
    if kind == "fixed binary":
        rows = [None if row is None or None in row else row for row in rows]
        cells = [None if row is None else np.float32(row).tobytes() for row in rows]
        column = pa.array(cells, pa.binary(12))
    else:
        types = {
            "list": pa.list_(pa.float32()),
            "large list": pa.large_list(pa.float32()),
            "fixed list": pa.list_(pa.float32(), 3),
            "doubles": pa.list_(pa.float64()),
        }
        column = pa.array(rows, types[kind])
    table = pa.table({"id": range(len(rows)), "x": column})
    parquet.write_table(table, folder / "x.parquet", row_group_size=group)
    job = score(folder / "x.parquet", folder, version)
    good = {n: row for n, row in enumerate(rows) if row and len(row) == 3 and None not in row}
    read = job.read()
    found = dict(zip(read["id"].to_pylist(), read["total"].to_pylist(), strict=True))
    assert found == {n: [float(np.float32(one)) for one in row] for n, row in good.items()}  # type: ignore[arg-type]
    assert len(read_bad(job)) == len(rows) - len(good)


@settings(max_examples=100, deadline=None)
@given(
    lines=st.lists(st.integers(0, 60), max_size=40),
    ends=st.sampled_from(["\n", "\r\n", "\n\n"]),
    ends_last=st.booleans(),
    piece_bytes=st.integers(1, 300),
)
def test_pieces_of_json_lines_have_each_line_once(
    lines: list[int],
    ends: str,
    ends_last: bool,
    piece_bytes: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    path = tmp_path_factory.mktemp("pieces") / "x.jsonl"
    texts = [json.dumps({"id": n, "text": "x" * size}) for n, size in enumerate(lines)]
    path.write_bytes((ends.join(texts) + (ends if ends_last else "")).encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("clients.score.sources.PIECE_BYTES", piece_bytes)
        units = list_units(str(path))
    assert [unit.number for unit in units] == list(range(len(units)))
    found = [row for unit in units for block in read_unit(unit) for row in block.table.to_pylist()]
    assert [row["id"] for row in found] == list(range(len(lines)))
    assert [len(row["text"]) for row in found] == lines


# Files that are nearly what their names say ----------------------------------------------


@pytest.mark.parametrize("line", ["null", "1", "[1]", '"a"', "\ufeff null", "[" * 5000])
def test_a_json_line_that_is_no_object_ends_nothing(
    tmp_path: Path, version: Path, line: str
) -> None:
    for name, last in (("alone", ""), ("others", '{"id": 2, "age": 20, "color": "red"}\n')):
        (tmp_path / name).mkdir()
        path = tmp_path / name / "b.jsonl"
        path.write_text(f"{line}\n{last}")
        path.with_name("a.jsonl").write_text('{"id": 1, "age": 10, "color": "red"}\n')
        job = make_job(path.parent, tmp_path / name / "out", version)
        job.run()
        assert read_ages(job) == ({1: 10, 2: 20} if last else {1: 10})
        ((row, reason),) = read_bad(job)
        assert row == 0 and "it is no JSON object" in reason


def test_a_json_lines_file_of_nothing_but_a_byte_order_mark_has_no_rows(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text("\ufeff\n \r\n")
    (unit,) = list_units(str(tmp_path / "x.jsonl"))
    assert list(read_unit(unit)) == []


def test_a_json_line_that_is_not_utf_8_is_one_bad_row(tmp_path: Path, version: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(
        b'{"id": "\xe9", "age": 10, "color": "red"}\n{"id": "b", "age": 20, "color": "red"}\n'
    )
    job = score(path, tmp_path, version)
    assert read_ages(job) == {"b": 20}
    ((row, reason),) = read_bad(job)
    assert row == 0 and "utf-8" in reason


@pytest.mark.parametrize("others", [[], [1, 2]])
def test_json_keys_of_64_bits_are_not_rounded(
    tmp_path: Path, version: Path, others: list[int]
) -> None:
    keys = [*others, 2**64 - 1, 2**64 - 2, 2**63, 2**53 + 1]
    lines = (json.dumps({"id": key, "age": 20, "color": "red"}) + "\n" for key in keys)
    (tmp_path / "x.jsonl").write_text("".join(lines))
    job = score(tmp_path / "x.jsonl", tmp_path, version)
    assert list(read_ages(job)) == keys


def test_json_keys_that_are_too_large_for_their_column_are_bad_rows(
    tmp_path: Path, version: Path
) -> None:
    keys = [1.5, 2, 2**53 + 1]
    for name, some in (("a", keys[:1]), ("b", keys[1:])):
        lines = (json.dumps({"id": key, "age": 20, "color": "red"}) + "\n" for key in some)
        (tmp_path / "in").mkdir(exist_ok=True)
        (tmp_path / "in" / f"{name}.jsonl").write_text("".join(lines))
    job = score(tmp_path / "in", tmp_path, version)
    assert sorted(map(str, read_ages(job))) == ["1.5", "2.0"]
    assert read_bad(job) == [(1, "id is 9007199254740993, unlike others")]


def test_a_name_of_a_csv_column_may_hold_line_ends(tmp_path: Path, version: Path) -> None:
    source = write_csv(tmp_path / "x.csv", '"id","age","co\nlor",color\n1,20,x,red\n')
    job = score(source, tmp_path, version)
    assert job.read().column_names == ["id", "co\nlor", "total"]


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("x.csv", b"id;age;color\n1;20;red\n", "'id;age;color'; write it with commas"),
        ("x.csv", "id,age,color\n1,20,red\n".encode("utf-16"), "write it as UTF-8"),
        ("x.csv", b"id,age,color\n1,2\n", "has no rows; it has 2 cells and the header 3: 1,2"),
        ("x.csv.gz", b"", "unpack it"),
        ("x.jsonl.zst", b"", "unpack it"),
        ("x.jsonl", b'[{"id": 1}]\n', "row 0: it is no JSON object"),
        ("x.jsonl", b'{\n"id": 1}\n', "row 0: it is no JSON object"),
    ],
)
def test_what_is_wrong_with_all_rows_is_said_of_the_first(
    tmp_path: Path, people: Path, name: str, data: bytes, words: str, capfd: Any
) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / name).write_bytes(data)
    where = [str(tmp_path / "in"), str(tmp_path / "out")]
    assert main(["score", *where, f"--version_dir={people}", "--workers=1"]) == 2
    assert words in capfd.readouterr().err


def test_a_csv_file_without_a_whole_row_is_followed_by_others(
    tmp_path: Path, people: Path, capfd: Any
) -> None:
    write_csv(tmp_path / "in" / "a.csv", "id,age,color\n1,2\n")
    write_csv(tmp_path / "in" / "b.csv", "id,age,color\n1,20,red\n")
    where = [str(tmp_path / "in"), str(tmp_path / "out")]
    assert main(["score", *where, f"--version_dir={people}", "--workers=1", "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["num_bad"] == 1
