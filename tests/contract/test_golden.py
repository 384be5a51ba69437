"""Golden files keep every dtype, every byte and every batch boundary."""

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contract.errors import ManifestError
from contract.golden import Golden, GoldenExamples, read_golden, write_golden
from contract.parity import EXACT, compare

DTYPES = [
    *("float16", "float32", "float64", "int8", "int16", "int32", "int64"),
    *("uint8", "uint16", "uint32", "uint64", "bool", "complex64", "complex128"),
    ml_dtypes.bfloat16,
]


def round_trip(tmp_path: Path, examples: GoldenExamples) -> GoldenExamples:
    path = tmp_path / "golden.npz"
    write_golden(path, Golden({"serving_default": examples}))
    return read_golden(path).signatures["serving_default"]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_golden_keeps_the_bits_of_every_dtype(tmp_path: Path, dtype: str) -> None:
    array = np.arange(12).reshape(4, 3).astype(dtype)
    back = round_trip(tmp_path, GoldenExamples({"x": array}, {"y": array}, (3, 1)))
    assert back.inputs["x"].dtype == array.dtype
    assert back.inputs["x"].tobytes() == array.tobytes()
    assert back.batch_sizes == (3, 1)


@given(rows=st.lists(st.binary(max_size=20), max_size=8))
@settings(max_examples=30, deadline=None)
def test_golden_keeps_strings_with_their_trailing_nuls(
    tmp_path_factory: pytest.TempPathFactory, rows: list[bytes]
) -> None:
    array = np.empty(len(rows), object)
    array[:] = rows
    examples = GoldenExamples({"x": array}, {"y": array}, (len(rows),))
    back = round_trip(tmp_path_factory.mktemp("golden"), examples)
    assert back.inputs["x"].tolist() == rows
    assert compare(examples.outputs, back.outputs, EXACT).passed


def test_golden_iterates_the_batches_that_were_answered(tmp_path: Path) -> None:
    array = np.arange(5.0)
    examples = round_trip(tmp_path, GoldenExamples({"x": array}, {"y": -array}, (2, 3)))
    batches = [(x["x"].tolist(), y["y"].tolist()) for x, y in examples.iter_batches()]
    assert batches == [([0, 1], [0, -1]), ([2, 3, 4], [-2, -3, -4])]
    assert examples.num_examples == 5


def test_equal_golden_examples_give_equal_bytes(tmp_path: Path) -> None:
    golden = Golden({"s": GoldenExamples({"x": np.ones(3)}, {"y": np.ones(3)}, (3,))})
    write_golden(tmp_path / "a.npz", golden)
    write_golden(tmp_path / "b.npz", golden)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def test_a_truncated_golden_file_is_a_manifest_error(tmp_path: Path) -> None:
    path = tmp_path / "golden.npz"
    write_golden(path, Golden({"s": GoldenExamples({"x": np.ones(3)}, {"y": np.ones(3)}, (3,))}))
    whole = path.read_bytes()
    for size in range(0, len(whole), 37):
        path.write_bytes(whole[:size])
        with pytest.raises(ManifestError, match="golden"):
            read_golden(path)


def test_an_ordinary_npz_is_not_a_golden_file(tmp_path: Path) -> None:
    np.savez(tmp_path / "other.npz", x=np.ones(3))
    with pytest.raises(ManifestError, match="not a golden file"):
        read_golden(tmp_path / "other.npz")


def test_pickled_arrays_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "evil.npz", index=np.array([{"a": 1}], object))
    with pytest.raises(ManifestError):
        read_golden(tmp_path / "evil.npz")
