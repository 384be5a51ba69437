"""What a command shows: tables, JSON and remarks; `progress.py` shows how far it is.

Results go to stdout, progress and remarks to stderr. A table is laid out here once, for the width
of the terminal (80 columns where there is none). On a terminal with `rich` (the extra `cli`) it has
colours and a rule; anything else gets plain lines.

Every command imports this before it knows what is asked of it: what takes milliseconds to import
is imported where it is used.
"""

from __future__ import annotations

import itertools
import math
import os
import re
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, TextIO

from contract.console.extras import is_installed

if TYPE_CHECKING:
    from rich.console import Console

_CHATTER = ("I0000 ", "WARNING: All log messages before absl::InitializeLog()")
_FILTER = """
import os, sys
chatter = tuple(map(os.fsencode, sys.argv[1:]))
held, is_shown = b"", None  # of this line: what may yet be chatter; None while that is not known
while data := os.read(0, 65536):
    is_shown = is_shown and None  # a bar's frame has no end of line, and chatter may follow it
    for part in data.splitlines(keepends=True):
        if is_shown is None:
            held += part
            if held.startswith(chatter):
                held, is_shown = b"", False
            elif not any(one.startswith(held) for one in chatter):
                os.write(2, held)
                held, is_shown = b"", True
        elif is_shown:
            os.write(2, part)
        if part.endswith((b"\\n", b"\\r")):
            is_shown = None
os.write(2, held)
"""

_HIDING = threading.Lock()

_GAP = "  "
_MIN_WIDTH = 20  # of a terminal that says it is narrower, or 0
_MIN_COLUMN = 8  # a name shortened to less than that is no name any more
_FIRST_COLUMN = 16  # what rows are called is shortened to less only after all else
_SENTENCE_WORDS = 4  # what has as many is read, not looked at

_GOOD, _BAD, _DOUBTFUL = "green", "bold red", "yellow"
_VERDICTS = {
    **dict.fromkeys(("ok", "agrees", "passed", "bit for bit", "AVAILABLE"), _GOOD),
    **dict.fromkeys(("fails", "differs", "failed", "FAILED", "unreachable", "END"), _BAD),
    **dict.fromkeys(("warning", "skipped", "untested", "not checked", "leads nowhere"), _DOUBTFUL),
    **dict.fromkeys(("START", "LOADING", "UNLOADING"), ""),
}
"""Words that are the result of a row, and their styles: a narrow table never breaks them."""

_NUMBER = r"[-+]?\d[\d,]*(\.\d+)?(e[-+]?\d+)?( ?[%×x])?|nan|[-+]?inf"
_NOTHING = frozenset({"", "-", "–"})


def say(text: str) -> None:
    """Writes a line of the result to stdout; a terminal breaks it between words."""
    write_line(sys.stdout, text)


def remark(text: str) -> None:
    """Writes a line for the person watching to stderr."""
    write_line(sys.stderr, text)


def print_json(document: object, *, indent: int | None = 2) -> None:
    """Writes one JSON document to stdout, in one line where `indent` is None.

    Arrays become lists, dataclasses and Structs objects, NaN and infinity strings.
    """
    import json

    sys.stdout.write(json.dumps(to_json(document), indent=indent, allow_nan=False) + "\n")
    sys.stdout.flush()


def format_table(
    headings: Sequence[str], rows: Sequence[Sequence[object]], *, title: str = "", width: int = 80
) -> str:
    """The text of a table: as `print_table` writes it where it is no terminal."""
    lines = _make_lines(headings, rows, title, width, has_rule=False)
    return _write_plainly(lines)


def _write_plainly(lines: Sequence[_Line]) -> str:
    return "".join("".join(text for text, _ in line).rstrip() + "\n" for line in lines)


def _make_lines(
    headings: Sequence[str],
    rows: Sequence[Sequence[object]],
    title: str,
    room: int,
    *,
    has_rule: bool,
    folds_last: bool = False,
) -> list[_Line]:
    columns = [_Column(clean(heading)) for heading in headings]
    for row in rows:
        for column, cell in zip(columns, row, strict=True):
            column.cells.append(clean(str(cell)))
    widths = _choose_widths(columns, room - len(_GAP) * (len(columns) - 1))
    if widths is None:
        lines = _lay_out_blocks(columns, room)
    else:
        lines = _lay_out(columns, widths, has_rule=has_rule, folds_last=folds_last)
        told = [] if folds_last else _tell_whole(columns, widths, room)
        lines += [[], *told] if told else []
    if not title:
        return lines
    return [[(_drop_middle(clean(title), room), "bold")], *lines, []]


def print_table(
    headings: Sequence[str],
    rows: Sequence[Sequence[object]],
    *,
    title: str = "",
    folds_last: bool = False,
) -> None:
    """Writes a table to stdout that is no wider than the terminal, a line for each row.

    Columns of numbers are aligned to the right. Where room is short headings fold; then sentences
    in the last column lose their end, other cells and titles their middle, for which "…" stands.
    Such a sentence is written in full below the table; `--json` has all names. Numbers and
    verdicts stay whole. Where even that is not enough every row becomes a block of lines, one or
    more for each cell. A table with a title also has an empty line below. With `folds_last` the
    last column is read rather than compared: its cells take as many lines as they need.
    """
    console = open_rich(sys.stdout)
    if console is None:
        lines = _make_lines(
            headings, rows, title, find_width(), has_rule=False, folds_last=folds_last
        )
        sys.stdout.write(_write_plainly(lines))
        return
    lines = _make_lines(headings, rows, title, find_width(), has_rule=True, folds_last=folds_last)
    from rich.text import Text

    for line in lines:
        console.print(Text.assemble(*line), soft_wrap=True)


def has_rich(stream: TextIO) -> bool:
    """Whether `open_rich` will give a console; imports nothing."""
    return stream.isatty() and is_installed("rich")


def open_rich(stream: TextIO) -> Console | None:
    """A rich console on a stream; None where that is no terminal, or rich is not installed."""
    if not has_rich(stream):
        return None
    from rich.console import Console

    return Console(file=stream, highlight=False, width=find_width())


def find_width() -> int:
    """Columns of the terminal: of COLUMNS, else of the terminal itself, else 80."""
    import shutil

    return max(_MIN_WIDTH, shutil.get_terminal_size().columns)


def fold(text: str, *, indent: str = "") -> str:
    """A text in lines that fit, broken between words; words too long for a line stay whole."""
    room = find_width() - len(indent)
    folded = itertools.chain.from_iterable(
        _fold(line, room, breaks_words=False) for line in text.split("\n")
    )
    return "\n".join(indent + line for line in folded)


def to_json(value: Any) -> Any:
    """The value in JSON's own types."""
    if isinstance(value, str | int | None):
        return value
    if isinstance(value, float):
        # NaN and infinity are no numbers of JSON: "nan", "inf"
        number = float(value)  # numpy's is a float too
        return number if math.isfinite(number) else str(number)
    if isinstance(value, dict):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    if isinstance(value, bytes):
        return value.decode(errors="backslashreplace")
    if hasattr(value, "__dataclass_fields__"):
        import dataclasses

        return {one.name: to_json(getattr(value, one.name)) for one in dataclasses.fields(value)}
    if hasattr(value, "__struct_fields__"):  # a msgspec.Struct
        return {name: to_json(getattr(value, name)) for name in value.__struct_fields__}
    if hasattr(value, "__fspath__"):  # a path
        return value.__fspath__()
    if hasattr(value, "tolist"):  # an array of numpy, or one of its numbers
        return to_json(value.tolist())
    return value


_Line = list[tuple[str, str]]
"""Pieces of text and the style of each."""


class _Column:
    def __init__(self, heading: str) -> None:
        self.heading = heading
        self.cells: list[str] = []

    @property
    def is_numeric(self) -> bool:
        """Whether it holds numbers, and blanks, alone."""
        given = [cell for cell in self.cells if cell not in _NOTHING]
        return bool(given) and all(re.fullmatch(_NUMBER, cell) for cell in given)

    @property
    def is_whole(self) -> bool:
        """Whether no cell may be broken: numbers and verdicts."""
        return self.is_numeric or all(cell in _VERDICTS or cell in _NOTHING for cell in self.cells)

    @property
    def width(self) -> int:
        """Of the widest cell, the heading aside."""
        return max(map(measure, self.cells), default=0)

    @property
    def heading_width(self) -> int:
        """Of the heading's longest word."""
        return max(map(measure, self.heading.split()), default=0)

    @property
    def has_sentences(self) -> bool:
        """Whether a cell is one."""
        return any(map(_is_sentence, self.cells))

    @property
    def names_width(self) -> int:
        """Of the widest cell that is no sentence."""
        return max((measure(cell) for cell in self.cells if not _is_sentence(cell)), default=0)


def _lay_out(
    columns: Sequence[_Column], widths: Sequence[int], *, has_rule: bool, folds_last: bool
) -> list[_Line]:
    """The headings, and a line for each row."""
    numeric = [column.is_numeric for column in columns]
    cells = [[column.heading for column in columns]]
    cells += [list(row) for row in zip(*(column.cells for column in columns), strict=True)]
    lines: list[_Line] = []
    folds = [
        [
            [_shorten(cell, width, is_last=column == len(columns) - 1)]
            if at and not (folds_last and column == len(columns) - 1)
            else _fold(cell, width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        for at, row in enumerate(cells)
    ]
    # No wider than what cells and headings really take.
    widths = [max(measure(one) for cell in cut for one in cell) for cut in zip(*folds, strict=True)]
    for at, (row, folded) in enumerate(zip(cells, folds, strict=True)):
        styles = [_choose_style(cell) if at else "bold" for cell in row]
        for pieces in itertools.zip_longest(*folded, fillvalue=""):
            line: _Line = []
            for piece, width, right, style in zip(pieces, widths, numeric, styles, strict=True):
                space = " " * (width - measure(piece))
                line += [(space, ""), (piece, style)] if right else [(piece, style), (space, "")]
                line.append((_GAP, ""))
            lines.append(_trim(line))
        if at == 0 and has_rule:
            lines.append([(_GAP.join("─" * width for width in widths), "dim")])
    return lines


def _tell_whole(columns: Sequence[_Column], widths: Sequence[int], room: int) -> list[_Line]:
    """Every sentence that its column has no room for, after what its row is called; by itself
    where several rows have it.
    """
    heads: dict[str, list[str]] = {}
    head = ""
    for row in zip(*(column.cells for column in columns), strict=True):
        head = _drop_middle(row[0], widths[0]) or head  # a blank stands for the cell above
        for cell, width in zip(row[1:], widths[1:], strict=True):
            if _is_sentence(cell) and measure(cell) > width:
                heads.setdefault(cell, []).append(head)
    return [
        [(line, "")]
        for cell, of in heads.items()
        for line in _fold(f"{of[0]}: {cell}" if len(of) == 1 and of[0] else cell, room)
    ]


def _lay_out_blocks(columns: Sequence[_Column], room: int) -> list[_Line]:
    """The table where columns have no room beside each other: a block for each row."""
    name_width = min(max(measure(column.heading) for column in columns), room // 3)
    lines: list[_Line] = []
    for row in zip(*(column.cells for column in columns), strict=True):
        lines += [[]] if lines else []
        for column, cell in zip(columns, row, strict=True):
            names = _fold(column.heading, name_width)
            values = _fold(cell, room - name_width - len(_GAP))
            for name, value in itertools.zip_longest(names, values, fillvalue=""):
                space = " " * (name_width - measure(name))
                line = [(name, "bold"), (space + _GAP, ""), (value, _choose_style(cell))]
                lines.append(_trim(line))
    return lines


def _choose_widths(columns: Sequence[_Column], room: int) -> list[int] | None:
    """The width of each column; None where there is no room for them beside each other."""
    widths = [max(measure(column.heading), column.width) for column in columns]
    headings = [max(column.width, column.heading_width) for column in columns]
    prose = list(headings)
    if columns[-1].has_sentences:
        last = columns[-1]
        prose[-1] = max(min(last.width, last.names_width), last.heading_width, _MIN_COLUMN)
    least = [
        width if column.is_whole else min(width, max(_MIN_COLUMN, column.heading_width))
        for column, width in zip(columns, headings, strict=True)
    ]
    names = [max(least[0], min(headings[0], _FIRST_COLUMN)), *least[1:]]
    # First headings fold; then sentences at the end of rows are shortened, and what else there is.
    for floors in (headings, prose, names, least):
        _shrink(widths, floors, room)
        if sum(widths) <= room:
            return widths
    return None


def _shrink(widths: list[int], floors: Sequence[int], room: int) -> None:
    """Makes the widest columns narrower until all have room, none below its floor."""
    excess = sum(widths) - room
    while excess > 0:
        above = [at for at, width in enumerate(widths) if width > floors[at]]
        if not above:
            return
        widest = max(above, key=lambda at: widths[at])
        # Down to the next widest at once: a cell may hold a whole page.
        others = [widths[at] for at in above if widths[at] < widths[widest]]
        target = max(floors[widest], widths[widest] - excess, max(others, default=0))
        ties = sum(widths[at] == widths[widest] for at in above)
        if ties > 1:
            target = max(target, widths[widest] - max(1, excess // ties))
        excess -= widths[widest] - target
        widths[widest] = target


def _fold(text: str, width: int, *, breaks_words: bool = True) -> list[str]:
    """A line as lines of at most `width` columns."""
    if measure(text) <= width:
        return [text]
    lines = []
    line = ""
    for word in text.split():
        joined = f"{line} {word}" if line else word
        if measure(joined) <= width:
            line = joined
            continue
        if line:
            lines.append(line)
        line = word
        while breaks_words and measure(line) > width:
            piece = cut(line, width)
            lines.append(piece)
            line = line[len(piece) :]
    return [*lines, line] if line else lines or [""]


def _is_sentence(cell: str) -> bool:
    return cell.count(" ") >= _SENTENCE_WORDS - 1


def _shorten(text: str, width: int, *, is_last: bool) -> str:
    """A cell of at most `width` columns: "…" stands for its middle, which tells two names apart
    least, or for the end of a sentence at the end of a row.
    """
    if not (is_last and _is_sentence(text)) or measure(text) <= width:
        return _drop_middle(text, width)
    return f"{_take(text, width - 1).rstrip()}…"


def _drop_middle(text: str, width: int) -> str:
    if measure(text) <= width:
        return text
    end = _take(text[::-1], (width - 1) // 2)[::-1]
    return f"{_take(text, width - 1 - measure(end))}…{end}"


def _take(text: str, width: int) -> str:
    """As much of the beginning of a text as fits, which may be nothing."""
    piece = cut(text, width) if width > 0 else ""
    return piece if measure(piece) <= width else ""


def cut(text: str, width: int) -> str:
    """As much of the beginning of a text as fits, at least one character."""
    if text.isascii():
        return text[:width]
    total = 0
    for at, character in enumerate(text):
        total += measure(character)
        if total > width and at:
            return text[:at]
    return text


def measure(text: str) -> int:
    """Columns of a terminal that a text takes."""
    if text.isascii():
        return len(text)
    import unicodedata

    return sum(
        0 if unicodedata.combining(one) else 1 + (unicodedata.east_asian_width(one) in "WF")
        for one in text
    )


def clean(text: str) -> str:
    """A text in one line, without what would move the cursor or change the terminal."""
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else ascii(one)[1:-1] for one in " ".join(text.split()))


def _choose_style(cell: str) -> str:
    return _VERDICTS.get(cell.partition(":")[0], "")


def _trim(line: _Line) -> _Line:
    """A line without blanks at its end."""
    while line and not line[-1][0].strip():
        line = line[:-1]
    return line


def write_line(stream: TextIO, text: str) -> None:
    """Writes a line; a terminal breaks it between words."""
    stream.write((fold(text) if stream.isatty() else text) + "\n")
    stream.flush()


@contextmanager
def keep_stderr() -> Iterator[TextIO]:
    """The stderr of now, for what is to be seen while a library's words are kept off it."""
    try:
        kept = os.dup(2)
    except OSError:  # closed: nobody is told anything
        yield sys.stderr
        return
    with os.fdopen(kept, "w", encoding="utf-8", errors="replace") as shown:
        yield shown


@contextmanager
def hide_chatter() -> Iterator[None]:
    """Keeps off stderr what TensorFlow's libraries log while they load; put its import within.

    Those of 2.21 log before TensorFlow has read TF_CPP_MIN_LOG_LEVEL, which keeps the rest away;
    no variable stops them. All else is let through by a process of its own, which still tells
    what this one says as it dies: TensorFlow ends a process on a processor that it was not
    compiled for. Threads take turns: stderr is the whole process's.
    """
    with _HIDING:
        yield from _hide_chatter()


def _hide_chatter() -> Iterator[None]:
    import subprocess

    try:
        shown = os.dup(2)
    except OSError:  # closed: nobody is told anything
        yield
        return
    try:
        reader = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _FILTER, *_CHATTER],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is not for it
        )
    except OSError:  # no room for one more process: rather chatter than no TensorFlow
        os.close(shown)
        yield
        return
    assert reader.stdin is not None
    os.dup2(reader.stdin.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(shown, 2)
        os.close(shown)
        reader.stdin.close()
        with suppress(subprocess.TimeoutExpired):  # somebody else may hold its pipe
            reader.wait(timeout=1)
