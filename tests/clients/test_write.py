"""Predictions in files: nothing is lost, and what was written stays."""

from __future__ import annotations

import csv
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clients.files.write import format_value, open_sink
from contract.errors import ConfigError

LABELS = ["zero", "one", "two"]
SCORES = np.array([[0.1, 0.7, 0.2], [1e-9, 0.25, 0.75]], np.float32)


def write(path: Path, labels: list[str]) -> None:
    sink = open_sink(path, labels)
    sink.write(["a.npy:0", "a.npy:1"], {"probabilities": SCORES})
    sink.write(["b.npy:3"], {"probabilities": SCORES[:1]})
    sink.close()


def test_csv_holds_names_classes_and_every_number(tmp_path: Path) -> None:
    write(tmp_path / "p.csv", LABELS)
    with (tmp_path / "p.csv").open() as stream:
        heading, *lines = csv.reader(stream)
    assert heading[:3] == ["row", "probabilities_class", "probabilities_0"]
    assert [line[:2] for line in lines] == [
        ["a.npy:0", "one"],
        ["a.npy:1", "two"],
        ["b.npy:3", "one"],
    ]
    assert np.array_equal(np.array(lines[1][2:], np.float32), SCORES[1])


def test_jsonl_holds_one_object_per_row(tmp_path: Path) -> None:
    write(tmp_path / "p.jsonl", [])
    lines = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    assert [line["row"] for line in lines] == ["a.npy:0", "a.npy:1", "b.npy:3"]
    assert lines[1]["probabilities_class"] == "2"
    assert np.array_equal(np.array(lines[0]["probabilities"], np.float32), SCORES[0])


def test_npz_holds_outputs_and_names_without_pickles(tmp_path: Path) -> None:
    write(tmp_path / "p.npz", [])
    with np.load(tmp_path / "p.npz", allow_pickle=False) as archive:
        assert np.array_equal(archive["probabilities"], SCORES[[0, 1, 0]])
        assert archive["row_names"].tolist() == ["a.npy:0", "a.npy:1", "b.npy:3"]


def test_strings_keep_their_trailing_zeros_in_an_npz(tmp_path: Path) -> None:
    strings = np.array([b"a\0", b"", b"\xff"], dtype=object)
    sink = open_sink(tmp_path / "p.npz", [])
    sink.write(["a.npy:0", "a.npy:1", "a.npy:2"], {"classes": strings})
    sink.close()
    with np.load(tmp_path / "p.npz", allow_pickle=False) as archive:
        offsets = archive["classes_offsets"]
        blob = archive["classes"].tobytes()
    assert [blob[a:b] for a, b in itertools.pairwise(offsets)] == strings.tolist()


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_text_output_is_on_disk_after_every_part(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"p.{suffix}"
    sink = open_sink(path, [])
    sink.write(["a.npy:0", "a.npy:1"], {"probabilities": SCORES})
    assert "a.npy:1" in path.read_text()
    assert sink.describe() == f"2 rows in {path}"


def test_a_table_shows_the_first_rows_and_counts_the_rest(
    capsys: pytest.CaptureFixture[str],
) -> None:
    sink = open_sink(None, LABELS)
    for _ in range(15):
        sink.write(["a.npy:0", "a.npy:1"], {"probabilities": SCORES})
    sink.close()
    shown = capsys.readouterr().out.splitlines()
    assert len(shown) == 21
    assert shown[1].split() == ["a.npy:0", "one", "0.7000", "two", "0.2000"]
    assert "10 more are not shown" in sink.describe()


def test_non_finite_numbers_stay_readable_json(tmp_path: Path) -> None:
    sink = open_sink(tmp_path / "p.jsonl", [])
    sink.write(["a.npy:0"], {"value": np.array([np.nan], np.float32)})
    sink.close()
    assert json.loads((tmp_path / "p.jsonl").read_text())["value"] == "nan"


@given(st.floats(width=32, allow_nan=False))
def test_numbers_read_back_as_they_were(value: float) -> None:
    assert np.float32(format_value(np.float32(value))) == np.float32(value)


def test_an_unknown_suffix_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"\.npz, \.csv, \.jsonl"):
        open_sink(tmp_path / "p.parquet", [])


def test_a_path_that_cannot_be_written_is_refused_before_the_work(tmp_path: Path) -> None:
    for suffix in ("npz", "csv", "jsonl"):
        with pytest.raises(ConfigError, match="cannot be written"):
            open_sink(tmp_path / "missing" / f"p.{suffix}", [])
