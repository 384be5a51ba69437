"""Tables, JSON, exit codes and missing extras, as every command has them."""

from __future__ import annotations

import dataclasses
import enum
import io
import json
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from rich.cells import cell_len

from contract import errors
from contract.console.exits import ExitCode, exit_code_of
from contract.console.extras import (
    advise_extra,
    advise_package,
    import_extra,
    require_extra,
    require_packages,
)
from contract.console.terminal import (
    fold,
    print_json,
    print_table,
    remark,
    say,
    to_json,
)
from contract.errors import PlumblineError, UnimplementedError

ANSI = re.compile(r"\x1b\[[0-9;]*m")


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


def draw(
    headings: list[str],
    rows: list[list[str]],
    *,
    title: str = "",
    width: int = 80,
    is_terminal: bool = False,
) -> list[str]:
    """The lines of a table, without colours."""
    stream = Terminal() if is_terminal else io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", str(width))
        patch.setenv("TERM", "xterm")
        patch.setattr(sys, "stdout", stream)
        print_table(headings, rows, title=title)
    return ANSI.sub("", stream.getvalue()).splitlines()


def test_a_plain_table_has_aligned_columns_and_numbers_to_the_right() -> None:
    rows = [["saved_model", "293.1"], ["int8", "–"], ["x", "-7"]]
    assert draw(["copy", "KiB"], rows, title="mlp") == [
        "mlp",
        "copy           KiB",
        "saved_model  293.1",
        "int8             –",
        "x               -7",
        "",
    ]


def test_a_terminal_gets_the_same_table_with_a_rule() -> None:
    rows = [["saved_model", "293.1"], ["int8", "–"]]
    assert [line.rstrip() for line in draw(["copy", "KiB"], rows, is_terminal=True)] == [
        "copy           KiB",
        "───────────  ─────",
        "saved_model  293.1",
        "int8             –",
    ]


def test_verdicts_have_colours_on_a_terminal_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Terminal()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stdout", stream)
    print_table(["hop", "verdict"], [["grpc", "agrees"], ["rest", "differs"]])
    assert "\x1b[32magrees" in stream.getvalue()
    assert "\x1b[1;31mdiffers" in stream.getvalue()


def test_headings_fold_before_cells() -> None:
    rows = [["saved_model", "293.6", "97.77%", "6.0e-07", "bit for bit"]]
    headings = ["copy", "KiB", "top-1 agreement", "max abs difference", "verdict"]
    assert draw(headings, rows, width=55) == [
        "copy           KiB      top-1     max abs  verdict",
        "                    agreement  difference",
        "saved_model  293.6     97.77%     6.0e-07  bit for bit",
    ]


def test_a_sentence_is_cut_in_its_row_and_whole_below_the_table() -> None:
    sentence = "the server at this address does not answer, and may be starting " * 3
    rows = [["reachable", "not checked", "123,456", sentence.strip()]]
    shown = draw(["check", "result", "rows", "what was seen"], rows, width=60)
    assert max(map(len, shown)) <= 60
    assert shown[1] == "reachable  not checked  123,456  the server at this address…"
    assert shown[2] == ""
    assert " ".join(shown[3:]) == f"reachable: {sentence.strip()}"


def test_what_several_rows_say_stands_below_once() -> None:
    name = "Anseriformes, Wasservögel und andere Arten"
    rows = [[f"eine Datei mit langem Namen:{at}", name, "0.5", "next"] for at in range(3)]
    shown = draw(["row", "class", "probabilities", "or"], rows, width=60)
    assert [line.split()[-1] for line in shown[1:4]] == ["next"] * 3
    assert [line[:18].rstrip()[-2:] for line in shown[1:4]] == [":0", ":1", ":2"]
    assert shown[-1] == name


def test_a_name_too_long_loses_its_middle() -> None:
    path = "/models/" + "very_long_name/" * 12
    title = f"parity with {path}golden.npz"
    shown = draw(["row", "class"], [[path + "one", "7"], [path + "two", "7"]], title=title)
    assert [len(line) for line in shown] == [80, 80, 80, 80, 0]
    assert shown[0].startswith("parity with /models/very_long_name/very")
    assert shown[0].endswith("very_long_name/golden.npz")
    assert [line.split()[0][-9:] for line in shown[2:4]] == ["_name/one", "_name/two"]


@pytest.mark.parametrize(
    "name", ["梵文 " * 3 + "名前" * 20, "großer Seeadler (ostpreußischer) " * 3]
)
def test_a_long_class_and_its_count_share_a_line(name: str) -> None:
    shown = draw(["copy", "lost"], [["dynamic_range", f"{name}: 12 of 100"]], width=50)
    assert cell_len(shown[1]) <= 50
    assert shown[1].startswith("dynamic_range  ")
    assert "…" in shown[1]
    assert "12 of 100" in "".join(shown)


def test_more_numbers_than_a_line_holds_become_a_block_for_each_row() -> None:
    headings = [f"p{at} ms" for at in range(20)]
    rows = [[f"{1000 + at}.25" for at in range(20)]] * 2
    shown = draw(headings, rows)
    assert max(map(len, shown)) <= 80
    assert shown[0].split() == ["p0", "ms", "1000.25"]
    assert len(shown) == 41  # 20 lines for each row, and one between them


def test_what_would_move_the_cursor_is_shown_and_not_sent() -> None:
    shown = draw(["error"], [["two\nlines \x1b[2Jand more"]])
    assert shown == ["error", r"two lines \x1b[2Jand more"]


def test_wide_letters_count_twice() -> None:
    shown = draw(["name", "n"], [["模型" * 30, "1"], ["e\u0301", "2"]], width=40)
    assert [cell_len(line) for line in shown] == [40, 40, 40]  # an accent takes no room
    assert shown[1] == f"{'模型' * 4}模…{'型模' * 4}型  1"  # two columns a letter


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(
    cells=st.integers(1, 7).flatmap(
        lambda count: st.lists(
            st.lists(
                st.text(max_size=60)
                | st.text("ab /", max_size=150)
                | st.from_regex(r"\A[0-9]{1,12}(\.[0-9]{1,4})?\Z")
                | st.sampled_from(["agrees", "bit for bit", "–", ""]),
                min_size=count,
                max_size=count,
            ),
            min_size=2,
            max_size=5,
        )
    ),
    width=st.integers(20, 120),
    is_terminal=st.booleans(),
)
@example(cells=[["", "a\tb", "000"], ["", "", ""]], width=20, is_terminal=True)
def test_every_table_fits_whatever_its_cells(
    cells: list[list[str]], width: int, is_terminal: bool
) -> None:
    headings, *rows = cells
    title = " ".join(headings)
    shown = draw(headings, rows, title=title, width=width, is_terminal=is_terminal)
    ascii_lines = [line for line in shown if line.isascii() or "─" in line]
    assert all(cell_len(line) <= width for line in ascii_lines)


def _is_told(cell: str, line: str, below: str) -> bool:
    """Whether a row holds a cell, or shows that it has more; a sentence stands below, too."""
    if cell in line:
        return True
    starts = [f"{cell[:at]}…{cell[len(cell) - end :]}" for at in range(3, 120) for end in range(80)]
    is_shortened = any(one in line for one in starts)
    return is_shortened and (len(cell.split()) < 4 or "".join(cell.split()) in below)


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(
    rows=st.lists(
        st.tuples(
            st.from_regex(r"\A[a-z:/_.-]{1,60}\Z"),
            st.from_regex(r"\A[0-9]{1,9}(\.[0-9]{1,4})?\Z"),
            st.sampled_from(["agrees", "bit for bit", "not checked"]),
            st.from_regex(r"\A[a-z/]{1,40}( [a-z:/0-9]{1,30}){0,12}\Z"),
        ),
        min_size=1,
        max_size=4,
    ),
    width=st.integers(60, 120),
    is_terminal=st.booleans(),
)
def test_a_row_is_a_line_and_no_cell_loses_anything_unseen(
    rows: list[tuple[str, ...]], width: int, is_terminal: bool
) -> None:
    headings = ["copy", "max abs difference", "verdict", "what was seen"]
    shown = draw(headings, [list(row) for row in rows], width=width, is_terminal=is_terminal)
    assert all(cell_len(line) <= width for line in shown)
    at = next(at for at, line in enumerate(shown) if rows[0][2] in line)
    lines, below = shown[at : at + len(rows)], "".join("".join(shown[at + len(rows) :]).split())
    for row, line in zip(rows, lines, strict=True):
        assert all(_is_told(cell, line, below) for cell in row)


def test_a_word_too_long_for_a_line_of_text_stays_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "30")
    path = "/models/" + "x" * 40
    assert fold(f"Published this model at {path}") == f"Published this model at\n{path}"
    assert fold("one two", indent="  ") == "  one two"


def test_lines_fold_on_a_terminal_and_stay_whole_elsewhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    sentence = "Note: int8 is slower here than float32; it saves space, not time."
    terminal, pipe = Terminal(), io.StringIO()
    for stream in (terminal, pipe):
        monkeypatch.setattr(sys, "stdout", stream)
        monkeypatch.setattr(sys, "stderr", stream)
        say(sentence)
        remark(sentence)
    assert pipe.getvalue() == f"{sentence}\n{sentence}\n"
    assert all(len(line) <= 40 for line in terminal.getvalue().splitlines())


class Colour(enum.IntEnum):
    RED = 1


@dataclasses.dataclass(frozen=True)
class Given:
    names: tuple[str, ...]
    colour: Colour


class Found(msgspec.Struct, frozen=True):
    given: Given
    worst: float


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ({1: np.float32(0.5)}, {"1": 0.5}),
        (np.arange(4, dtype=np.int16).reshape(2, 2), [[0, 1], [2, 3]]),
        ([np.bool_(True), b"\xff", None], [True, "\\xff", None]),
        ([float("nan"), float("-inf"), np.float64("inf")], ["nan", "-inf", "inf"]),
        (
            Found(Given(("a",), Colour.RED), float("inf")),
            {"given": {"names": ["a"], "colour": 1}, "worst": "inf"},
        ),
    ],
)
def test_json_knows_arrays_structs_and_infinity(
    document: Any, expected: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    print_json(document)
    assert json.loads(capsys.readouterr().out) == expected


def test_json_of_a_line_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"port": 1, "host": "::1"}, indent=None)
    assert capsys.readouterr().out == '{"port": 1, "host": "::1"}\n'
    assert to_json("text") == "text"


def test_every_error_has_an_exit_code() -> None:
    codes = {name: exit_code_of(one("why")) for name, one in errors.ERRORS_BY_NAME.items()}
    assert {name for name, code in codes.items() if code is ExitCode.UNREACHABLE} == {
        *("ServableUnavailableError", "DeadlineExceededError", "WorkerLostError"),
    }
    assert {name for name, code in codes.items() if code is ExitCode.FAILED} == {
        *("PlumblineError", "ExportError", "VerificationError", "SignatureChangedError"),
        *("VersionExistsError", "ResourceExhaustedError", "CancelledError", "InternalError"),
        "UntrustedVersionError",
    }
    assert exit_code_of(PlumblineError("away", code=errors.Code.UNAVAILABLE)) == 3
    assert set(codes.values()) == {1, 2, 3}


def test_a_missing_extra_is_one_sentence_that_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PIL", "PIL.Image"):  # the latter may have been imported before
        monkeypatch.setitem(sys.modules, name, None)
    for name in ("tensorflow", "tf_keras"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UnimplementedError) as single:
        import_extra("PIL.Image", "reading images")
    assert single.value.message == (
        f"reading images needs Pillow, which is not installed: {advise_extra('cli')}"
    )
    with pytest.raises(UnimplementedError) as whole:
        require_extra("tensorflow", "this command")
    assert whole.value.message == (
        "this command needs tensorflow, tf_keras, Pillow, which are not installed: "
        f"{advise_extra('tensorflow')}"
    )


def test_all_that_is_missing_is_named_with_one_command(monkeypatch: pytest.MonkeyPatch) -> None:
    needs = {"json": "cli", "pyarrow": "batch", "s3fs": "remote", "gcsfs": ""}
    for name in ("pyarrow", "s3fs", "gcsfs"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UnimplementedError) as caught:
        require_packages(needs, "scoring")
    advice = advise_extra("batch,remote", beside=["gcsfs"])
    assert advice.endswith("[batch,remote]' gcsfs")
    assert caught.value.message == (
        f"scoring needs pyarrow, s3fs, gcsfs, which are not installed: {advice}"
    )
    with pytest.raises(UnimplementedError, match=re.escape("[batch,remote]'")):
        require_packages({"s3fs": "remote"}, "scoring", likely=["batch"])
    require_packages({"json": "cli"}, "scoring", likely=["batch"])
    assert advise_package("gcsfs") == "pip install gcsfs"
    assert advise_package("s3fs") == advise_extra("remote")


def test_a_clone_installs_an_extra_from_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pyproject.toml").touch()
    assert f"pip install '{tmp_path}[cli]'" in advise_extra("cli", tmp_path)
    monkeypatch.chdir(tmp_path)
    assert "pip install '.[cli]'" in advise_extra("cli", tmp_path)


def test_a_wheel_that_is_still_there_is_installed_again_with_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = tmp_path / "plumbline_tf-9.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: plumbline-tf\nVersion: 9\n")
    wheel = tmp_path / "plumbline_tf-9-py3-none-any.whl"
    (info / "direct_url.json").write_text(json.dumps({"url": wheel.as_uri(), "archive_info": {}}))
    monkeypatch.syspath_prepend(tmp_path)
    assert advise_extra("cli", tmp_path) == "pip install 'plumbline-tf[cli]'"
    wheel.touch()
    found = advise_extra("cli", tmp_path)
    assert found == f"pip install 'plumbline-tf[cli] @ {wheel.as_uri()}'"


def test_threads_that_hide_chatter_at_once_leave_stderr_where_it_was() -> None:
    code = """
        import os, threading, time
        from contract.console.terminal import hide_chatter
        def load(delay_s: float) -> None:  # the second begins and ends after the first
            time.sleep(delay_s)
            with hide_chatter():
                os.write(2, b"I0000 loading\\n")
                time.sleep(0.4)
        threads = [threading.Thread(target=load, args=(delay_s,)) for delay_s in (0, 0.2)]
        shown = os.fstat(2).st_ino
        for one in threads: one.start()
        for one in threads: one.join()
        assert os.fstat(2).st_ino == shown
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_last_column_to_be_read_is_folded_and_not_told_twice(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    sentence = "a server that listens there takes every connection and answers nothing at all"
    print_table(["check", "what was seen"], [["reachable", sentence]], folds_last=True)
    shown = capsys.readouterr().out
    assert "…" not in shown
    assert max(map(len, shown.splitlines())) <= 40
    assert " ".join(shown.split()).endswith(f"reachable {sentence[:20]}" + sentence[20:])
