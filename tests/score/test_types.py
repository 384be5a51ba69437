"""Columns of the types that Arrow has, as inputs and as keys."""

from __future__ import annotations

import decimal
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from clients.files.fit import Adjustment
from clients.score.arrays import convert
from clients.score.columns import ColumnPlan, prepare, read_planned
from clients.score.plan import plan_columns
from clients.score.sources import Block, list_units
from contract.errors import TensorMismatchError
from contract.signature import Signature, TensorSpec
from contract.wire.plumbline_wire import example_pb2
from contract.wire.tfrecord import write_records
from tests.score.jobs import Job, first_block, make_job

ROWS = [[1, 2, 3], [4, 5, 6], [7, 8, 9]]


@pytest.fixture(scope="module")
def version(people: Path) -> Path:
    return people


def score(column: pa.Array, tmp_path: Path, version: Path, keys: pa.Array | None = None) -> Job:
    """Scores rows of three numbers, which are the answers, too."""
    ids = pa.array(range(len(column))) if keys is None else keys
    parquet.write_table(pa.table({"id": ids, "x": column}), tmp_path / "x.parquet")
    job = make_job(tmp_path / "x.parquet", tmp_path / "out", version, keys=["id"])
    job.run()
    return job


def read_answers(job: Job) -> dict[object, list[float]]:
    """Key to answer."""
    table = job.read()
    return dict(zip(table["id"].to_pylist(), table["total"].to_pylist(), strict=True))


def read_bad(job: Job) -> list[tuple[int, str]]:
    (side,) = Path(job.task.destination.address, "_bad_rows").rglob("*.jsonl")
    return [(row["source_row"], row["reason"]) for row in map(json.loads, side.open())]


def fixed(kind: pa.DataType) -> pa.DataType:
    return pa.list_(kind, 3)


@pytest.mark.parametrize("make", [pa.list_, pa.large_list, fixed])
@pytest.mark.parametrize("kind", [pa.uint8(), pa.int64(), pa.decimal128(9, 2)])
def test_a_list_that_lacks_a_value_is_one_bad_row(
    tmp_path: Path, version: Path, make: Callable[[pa.DataType], pa.DataType], kind: pa.DataType
) -> None:
    rows: list[Any] = [ROWS[0], [4, None, 6], ROWS[2], None]
    job = score(pa.array(rows, make(kind)), tmp_path, version)
    assert read_answers(job) == {0: ROWS[0], 2: ROWS[2]}
    assert read_bad(job) == [(1, "x lacks a value"), (3, "x is missing")]


def test_a_float_that_is_missing_in_a_list_is_nan(tmp_path: Path, version: Path) -> None:
    column = pa.array([[1, None, 3], ROWS[1]], pa.list_(pa.float32()))
    job = score(column, tmp_path, version)
    assert read_answers(job) == {1: ROWS[1]}
    ((row, reason),) = read_bad(job)
    assert row == 0 and "NaN" in reason


GRID = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
FLOAT = pa.float32()


@pytest.mark.parametrize(
    "column",
    [
        pa.array(GRID.tolist(), pa.list_(pa.list_(FLOAT))),
        pa.array(GRID.tolist(), pa.list_(pa.list_(FLOAT, 4), 3)),
        pa.array(GRID.tolist(), pa.list_(pa.list_(FLOAT), 3)),
        pa.array(GRID.tolist(), pa.list_(pa.large_list(FLOAT))),
        pa.array(GRID.tolist(), pa.list_(pa.list_(FLOAT, 4))),
        pa.array(GRID.tolist(), pa.list_(pa.list_(pa.float16()))),
        pa.array(GRID.astype(int).tolist(), pa.list_(pa.list_(pa.decimal128(9, 2)))),
        pa.FixedShapeTensorArray.from_numpy_ndarray(GRID.reshape(2, 12)),
    ],
    ids=lambda column: str(column.type),
)
@pytest.mark.parametrize("num_chunks", [1, 2])
def test_lists_of_lists_and_tensors_are_arrays(column: pa.Array, num_chunks: int) -> None:
    chunks = [column] if num_chunks == 1 else [column[:1], column[1:]]
    found = convert(pa.chunked_array(chunks), None)
    np.testing.assert_array_equal(np.asarray(found).reshape(GRID.shape), GRID)


@pytest.mark.parametrize("num_lost", [0, 1])
def test_a_list_that_is_missing_in_a_list_is_one_bad_row(
    tmp_path: Path, version: Path, num_lost: int
) -> None:
    rows: list[Any] = [[[1], [2], [3]], [[4], None, [6]], [[7], [8], [9]]][num_lost:]
    job = score(pa.array(rows, pa.list_(pa.list_(FLOAT, 1), 3)), tmp_path, version)
    assert [row for row, _ in read_bad(job)] == [1 - num_lost]
    assert list(read_answers(job).values())[-1] == [7, 8, 9]


def test_booleans_in_lists_are_numbers(tmp_path: Path, version: Path) -> None:
    column = pa.array([[True, False, True]], pa.list_(pa.bool_()))
    assert read_answers(score(column, tmp_path, version)) == {0: [1, 0, 1]}


KEYS = [
    pa.array(["a", "b", None], pa.string_view()),
    pa.array([b"a", b"\xff", None], pa.binary_view()),
    pa.array(["a", "b", None], pa.large_string()),
    pa.array(["a", "b", None]).dictionary_encode(),
    pa.array([decimal.Decimal("1.10"), None, decimal.Decimal(2)]),
    pa.array([2**64 - 1, 0, None], pa.uint64()),
    pa.array([0, 1, None], pa.timestamp("us", "Europe/Paris")),
]


@pytest.mark.parametrize("keys", KEYS, ids=lambda keys: str(keys.type))
def test_keys_come_out_as_they_went_in(tmp_path: Path, version: Path, keys: pa.Array) -> None:
    job = score(pa.array([*ROWS[:2], None]), tmp_path, version, keys)
    assert job.read()["id"].to_pylist() == keys.to_pylist()[:2]
    assert read_bad(job) == [(2, "x is missing")]


def test_a_tensor_of_arrow_is_an_input_and_no_key(tmp_path: Path, version: Path) -> None:
    column = pa.FixedShapeTensorArray.from_numpy_ndarray(np.array(ROWS, np.float32))
    parquet.write_table(pa.table({"id": [5, 6, 7], "values": column}), tmp_path / "x.parquet")
    job = make_job(tmp_path / "x.parquet", tmp_path / "out", version)
    job.run()
    assert read_answers(job) == dict(zip([5, 6, 7], ROWS, strict=True))


def test_columns_of_decimals_are_columns_of_numbers(tmp_path: Path, version: Path) -> None:
    numbers = [decimal.Decimal("1.5"), decimal.Decimal(2)]
    table = pa.table({name: pa.array(numbers, pa.decimal128(9, 2)) for name in "abc"})
    parquet.write_table(table, tmp_path / "x.parquet")
    job = make_job(tmp_path / "x.parquet", tmp_path / "out", version)
    job.run()
    assert job.read()["total"].to_pylist() == [[1.5] * 3, [2] * 3]


# Integers and texts, where the model takes nothing else ----------------------------------


def plan_one(block: Block, dtype: str, shape: tuple[int | None, ...] = (None, 1)) -> ColumnPlan:
    """How rows go into the only input of a model of that type."""
    signature = Signature(
        "serving_default",
        {"x": TensorSpec("x", dtype, shape)},
        {"y": TensorSpec("y", "float32", (None, 1))},
    )
    return plan_columns(block, {signature.name: signature}, adjustment=Adjustment())


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ([1, 2**40, 3], "x is 1.09951162778e+12, and no int32"),
        ([1.0, 2.5, 3.0], "x is 2.5, and no int32"),
        ([1.0, float("inf"), 3.0], "x is inf, and no int32"),
        ([[1], [-(2**31) - 1], [3]], "x is -2147483649, and no int32"),
    ],
)
@pytest.mark.parametrize("is_planned_so", [False, True])
def test_a_number_that_the_input_cannot_hold_is_one_bad_row(
    values: list[object], reason: str, is_planned_so: bool
) -> None:
    block = Block(pa.table({"x": values}), 0)
    first = block if is_planned_so else Block(block.table.slice(0, 1), 0)
    prepared = prepare(block, plan_one(first, "int32"))
    assert prepared.batch["x"].tolist() == [[1], [3]]
    assert [(one.row, one.reason) for one in prepared.bad] == [(1, reason)]


def test_numbers_none_of_which_the_input_can_hold_are_a_column_that_does_not_fit() -> None:
    with pytest.raises(TensorMismatchError, match="wants int32"):
        plan_one(Block(pa.table({"x": [1.5, 2.5]}), 0), "int32")


def test_cells_of_csv_stay_texts_where_the_model_takes_texts(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("id,x\n1,12\n2,007\n3,\n4,NA\n")
    with first_block(str(tmp_path / "x.csv")) as block:
        plan = plan_one(block, "string", (None,))
    (unit,) = list_units(str(tmp_path / "x.csv"))
    (found,) = (prepare(one, plan) for one in read_planned(unit, plan))
    assert found.batch["x"].tolist() == [b"12", b"007", b"", b"NA"]
    assert found.bad == []


@pytest.mark.parametrize("kind", [pa.list_(FLOAT), pa.list_(FLOAT, 3), pa.binary(12)])
def test_bytes_beside_the_only_column_of_numbers_are_no_input(kind: pa.DataType) -> None:
    numbers = np.array(ROWS, np.float32)
    rows = [row.tobytes() if kind == pa.binary(12) else row.tolist() for row in numbers]
    columns = {
        "hash": pa.array([b"0123456789abcdef"] * 3, pa.binary(16)),
        "name": pa.array([b"a", b"b", b"\xff"]),
        "values": pa.array(rows, kind),
    }
    plan = plan_one(Block(pa.table(columns), 0), "float32", (None, 3))
    assert plan.columns == ["values"]


def test_lists_that_are_keys_are_no_input(tmp_path: Path, version: Path) -> None:
    columns = {"id": [[1], [2], [3]], "values": ROWS}
    parquet.write_table(pa.table(columns), tmp_path / "x.parquet")
    job = make_job(tmp_path / "x.parquet", tmp_path / "out", version, keys=["id"])
    job.run()
    assert job.read()["id"].to_pylist() == [[1], [2], [3]]


def test_categories_may_be_bytes_of_any_kind(tmp_path: Path, version: Path) -> None:
    colors = [b"red", b"\xff", None, b"blue"]
    table = pa.table({"id": range(4), "age": [1.0] * 4, "color": pa.array(colors)})
    parquet.write_table(table, tmp_path / "x.parquet")
    job = make_job(tmp_path / "x.parquet", tmp_path / "out", version)
    job.run()
    assert list(read_answers(job).values()) == [[1, 0, 1], [1, 0, 0], [1, 0, 0], [1, 1, 0]]


BYTES = [np.array(row, np.float32).tobytes() for row in ROWS]


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.binary_view(), pa.binary(12)])
def test_bytes_of_a_row_are_its_numbers_in_a_column_of_any_length_too(
    tmp_path: Path, version: Path, kind: pa.DataType
) -> None:
    assert read_answers(score(pa.array(BYTES, kind), tmp_path, version)) == dict(enumerate(ROWS))


def test_bytes_of_another_length_than_a_rows_are_one_bad_row(tmp_path: Path, version: Path) -> None:
    column = pa.array([*BYTES * 30, b"", BYTES[0]], pa.binary())
    job = score(column, tmp_path, version)
    assert read_bad(job) == [(90, "x is 0 bytes, and not 12 bytes")]
    assert read_answers(job)[91] == ROWS[0]


def test_bytes_of_a_row_in_records_are_its_numbers(tmp_path: Path, version: Path) -> None:
    records = []
    for values in BYTES:
        example = example_pb2.Example()
        example.features.feature["pixels"].bytes_list.value.append(values)
        records.append(example.SerializeToString())
    write_records(tmp_path / "x.tfrecord", records)
    job = make_job(tmp_path / "x.tfrecord", tmp_path / "out", version)
    job.run()
    assert job.read()["total"].to_pylist() == ROWS
