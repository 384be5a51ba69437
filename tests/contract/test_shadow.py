"""What a shadow counts, and the rows that it keeps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from contract.agreement import bound_share_above, find_flips
from contract.errors import ManifestError, TensorMismatchError
from contract.golden import Golden, GoldenExamples, write_golden
from contract.heads import Head
from contract.parity import FLOAT32, Tolerance, compare_rows
from contract.shadow import (
    MAX_LATENCIES,
    MAX_ROW_BYTES,
    ShadowFigures,
    ShadowRow,
    ShadowTally,
    join_figures,
    read_shadow_rows,
    write_shadow_rows,
)
from contract.signature import Array
from contract.wire.shadow import read_shadow_response, write_shadow_response

SCORES = np.array([[0.7, 0.3], [0.2, 0.8], [0.5, 0.5]], np.float32)


def test_a_row_flips_where_another_class_wins() -> None:
    got = SCORES[:, ::-1].copy()
    found = compare_rows({"p": SCORES}, {"p": got}, FLOAT32)
    assert found.flips.tolist() == [1, 1, 0]  # a tie may go either way
    assert found.is_outside.tolist() == [True, True, False]
    np.testing.assert_allclose(found.largest, [0.4, 0.6, 0], atol=1e-6)


def test_a_row_of_many_places_flips_in_part() -> None:
    masks = np.zeros((2, 4, 1), np.float32)
    got = masks.copy()
    got[1, 0] = 1
    flips = find_flips(Head(task="binary"), masks, got)
    assert flips.tolist() == [0, 0.25]


def test_a_row_of_labels_flips_where_any_label_does() -> None:
    labels = np.array([[0.1, 0.9], [0.9, 0.9]], np.float32)
    got = np.array([[0.1, 0.8], [0.9, 0.2]], np.float32)
    assert find_flips(Head(task="multilabel"), labels, got).tolist() == [0, 1]


def test_values_never_flip() -> None:
    found = compare_rows({"y": np.ones(3)}, {"y": np.full(3, 9.0)}, Tolerance())
    assert found.flips.tolist() == [0, 0, 0] and found.is_outside.all()


def test_what_is_no_number_on_one_side_is_outside_of_every_tolerance() -> None:
    got = SCORES.copy()
    got[0, 0] = np.nan
    found = compare_rows({"p": SCORES}, {"p": got}, Tolerance(atol=np.inf))
    assert found.is_outside.tolist() == [True, False, False] and found.flips[0] == 1


def test_an_output_of_the_whole_call_counts_for_each_of_its_rows() -> None:
    before = {"p": SCORES, "mean": np.array(1, np.float32)}
    found = compare_rows(before, {"p": SCORES, "mean": np.array(2, np.float32)}, FLOAT32)
    assert found.is_outside.all() and found.largest.tolist() == [1, 1, 1]


@pytest.mark.parametrize("got", [{}, {"p": SCORES[:2]}, {"p": SCORES.astype(np.float64)}])
def test_outputs_of_another_form_cannot_be_compared(got: dict[str, Array]) -> None:
    with pytest.raises(TensorMismatchError, match="output 'p'"):
        compare_rows({"p": SCORES}, got, FLOAT32)


def test_no_flip_among_300_rows_proves_a_share_of_less_than_one_in_a_hundred() -> None:
    assert 0.009 < bound_share_above(0, 300) < 0.01
    assert bound_share_above(0, 0) == bound_share_above(5, 5) == 1
    assert bound_share_above(3, 300) > 0.01


def tally_words(words: list[bytes], **options: int) -> ShadowTally:
    tally = ShadowTally(FLOAT32, options.get("num_rows", 3))
    for at, word in enumerate(words):
        tally.compare(
            "echo",
            {"word": np.array([word], object)},
            version=1,
            before={"y": np.zeros(1, np.float32)},
            after={"y": np.full(1, at, np.float32)},
            times_us=(1.0, 2.0),
        )
    return tally


def test_the_worst_rows_survive_a_file_strings_included(tmp_path: Path) -> None:
    tally = tally_words([b"a", b"", b"c\0", b"\xff\0"])
    path = tmp_path / "rows.npz"
    assert write_shadow_rows(path, tally.rows) == 3
    kept = read_shadow_rows(path)
    assert [row.inputs["word"][0] for row in kept] == [b"\xff\0", b"c\0", b""]
    assert [float(row.after["y"][0]) for row in kept] == [3, 2, 1]
    assert {row.signature_name for row in kept} == {"echo"} and not kept[0].is_flipped


def test_a_golden_file_holds_no_rows_of_a_shadow(tmp_path: Path) -> None:
    examples = GoldenExamples({"x": SCORES}, {"y": SCORES}, (3,))
    write_golden(tmp_path / "golden.npz", Golden({"serving_default": examples}))
    with pytest.raises(ManifestError, match="promote --shadow_s"):
        read_shadow_rows(tmp_path / "golden.npz")


def test_a_row_that_was_asked_twice_is_kept_once() -> None:
    tally = ShadowTally(FLOAT32, 5)
    for _ in range(2):
        tally.compare(
            "s",
            {"x": np.ones(1)},
            version=1,
            before={"y": np.zeros(1)},
            after={"y": np.ones(1)},
            times_us=None,
        )
    assert len(tally.rows) == 1 and tally.take_figures().num_rows == 2


def test_a_row_that_is_too_large_is_not_kept() -> None:
    tally = tally_words([b"a", b"x" * MAX_ROW_BYTES])
    assert tally.rows == []


def test_figures_of_processes_are_joined() -> None:
    parts = [
        ShadowFigures(num_rows=2, num_flips=0.5, versions=(1,), after_us=(1.0,)),
        ShadowFigures(num_rows=3, max_abs_difference=2.0, versions=(1, 2), first_failure="why"),
    ]
    whole = join_figures(parts)
    assert (whole.num_rows, whole.num_flips, whole.max_abs_difference) == (5, 0.5, 2.0)
    assert whole.versions == (1, 2) and whole.first_failure == "why"
    assert whole.after_us == (1.0,)


def test_latencies_are_a_sample_of_bounded_size() -> None:
    tally = tally_words([b"a"] * (MAX_LATENCIES + 50), num_rows=0)
    assert len(tally.take_figures().after_us) == MAX_LATENCIES


def test_what_was_seen_survives_the_wire() -> None:
    figures = ShadowFigures(
        num_calls=3,
        num_rows=4,
        num_flips=0.5,
        max_abs_difference=float("inf"),
        first_failure="why",
        versions=(1, 7),
        before_us=(1.0,),
        after_us=(2.0,),
    )
    row = ShadowRow(
        "s", {"x": np.array([b"\0"], object)}, {"y": SCORES[:1]}, {"y": SCORES[1:2]}, 0.5, True
    )
    response = write_shadow_response(figures, [row])
    found, rows = read_shadow_response(type(response).FromString(response.SerializeToString()))
    assert found == figures
    assert rows[0].inputs["x"][0] == b"\0" and rows[0].is_flipped
    np.testing.assert_array_equal(rows[0].after["y"], SCORES[1:2])
