"""Golden files keep every dtype, every byte and every batch boundary."""

import contextlib
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
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


def write_example(path: Path) -> bytes:
    rows = np.array([b"a", b"", b"long\0"], object)
    inputs = {"x": np.ones((3, 2), np.float32), "s": rows}
    outputs = {"y": np.ones(3, ml_dtypes.bfloat16)}
    write_golden(path, Golden({"s": GoldenExamples(inputs, outputs, (2, 1))}))
    return path.read_bytes()


@given(data=st.data())
@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_damaged_bytes_are_a_manifest_error_or_no_damage(
    tmp_path: Path, data: st.DataObject
) -> None:
    path = tmp_path / "golden.npz"
    content = bytearray(write_example(path))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content) - 1))
        width = data.draw(st.integers(1, 4))
        content[at : at + width] = data.draw(st.binary(min_size=1, max_size=4))
    path.write_bytes(content)
    with contextlib.suppress(ManifestError):
        assert read_golden(path).signatures


def replace_entries(path: Path, **entries: bytes) -> None:
    """Writes the file anew with other bytes in some entries, their checksums true."""
    with zipfile.ZipFile(path) as old:
        kept = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for name, content in (kept | {f"{key}.npy": one for key, one in entries.items()}).items():
            new.writestr(name, content)


def make_entry(array: np.ndarray[Any, Any]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


@given(
    entry=st.sampled_from(["index", "tensor_0", "tensor_1", "tensor_1_offsets", "tensor_3"]),
    data=st.data(),
)
@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_false_entries_under_true_checksums_are_a_manifest_error_or_read(
    tmp_path: Path, entry: str, data: st.DataObject
) -> None:
    path = tmp_path / "golden.npz"
    write_example(path)
    with zipfile.ZipFile(path) as file:
        content = bytearray(file.read(f"{entry}.npy"))
    at = data.draw(st.integers(0, len(content) - 1))
    content[at : at + data.draw(st.integers(0, 8))] = data.draw(st.binary(max_size=8))
    replace_entries(path, **{entry: bytes(content)})
    with contextlib.suppress(ManifestError):
        assert read_golden(path).signatures


def test_an_array_that_claims_more_than_it_holds_is_never_allocated(tmp_path: Path) -> None:
    path = tmp_path / "golden.npz"
    write_example(path)
    with zipfile.ZipFile(path) as file:
        honest = file.read("tensor_0.npy")
    replace_entries(path, tensor_0=honest.replace(b"(3, 2), ", b"(9999999999, 2), ", 1))
    with pytest.raises(ManifestError, match="shape"):
        read_golden(path)


def test_a_bomb_is_refused_before_it_is_inflated(tmp_path: Path) -> None:
    path = tmp_path / "golden.npz"
    write_example(path)
    replace_entries(path, tensor_0=make_entry(np.zeros((2**23, 2), np.float32)))
    with pytest.raises(ManifestError, match="more than 1000000 bytes"):
        read_golden(path, max_bytes=1_000_000)


def test_one_array_named_many_times_counts_many_times(tmp_path: Path) -> None:
    path = tmp_path / "golden.npz"
    write_example(path)
    one = {"key": "tensor_0", "dtype": "float32", "shape": [3, 2]}
    index = {f"s{n}": {"inputs": {"x": one}, "outputs": {}, "batch_sizes": [3]} for n in range(99)}
    text = np.frombuffer(json.dumps(index).encode(), np.uint8)
    replace_entries(path, index=make_entry(text))
    assert len(read_golden(path).signatures) == 99
    with pytest.raises(ManifestError, match="more than 20000 bytes"):
        read_golden(path, max_bytes=20_000)


def test_an_index_nested_without_end_is_a_manifest_error(tmp_path: Path) -> None:
    path = tmp_path / "golden.npz"
    write_example(path)
    text = b'{"s": ' + b"[" * 1_000_000
    replace_entries(path, index=make_entry(np.frombuffer(text, np.uint8)))
    with pytest.raises(ManifestError):
        read_golden(path)


def test_batches_that_do_not_add_up_to_the_rows_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "golden.npz"
    write_golden(path, Golden({"s": GoldenExamples({"x": np.ones(3)}, {"y": np.ones(3)}, (2, 2))}))
    with pytest.raises(ManifestError, match="add up"):
        read_golden(path)
