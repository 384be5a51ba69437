"""Lines and tables on stdout: rich ones on a terminal, plain ones elsewhere or without `rich`."""

from __future__ import annotations

import importlib.util
import sys
import textwrap
from collections.abc import Iterable, Sequence
from typing import Literal

_COLOURS = {"FAILED": "red", "passed": "green", "bit for bit": "green"}
_GAP = "  "


def say(text: str) -> None:
    """A line on stdout."""
    sys.stdout.write(f"{text}\n")


def print_table(title: str, headings: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """A table on stdout; columns of numbers to the right."""
    cells = [[str(cell) for cell in row] for row in rows]
    numeric = [
        at > 0 and all(_is_number(row[at]) for row in cells) for at, _ in enumerate(headings)
    ]
    if sys.stdout.isatty() and importlib.util.find_spec("rich") is not None:
        _print_rich(title, headings, cells, numeric)
    else:
        _print_plain(title, headings, cells, numeric)


def _is_number(cell: str) -> bool:
    return cell in {"", "–"} or cell.lstrip("-")[:1].isdigit()


def _print_plain(
    title: str, headings: Sequence[str], cells: list[list[str]], numeric: list[bool]
) -> None:
    widths = [max(map(len, column)) for column in zip(headings, *cells, strict=True)]
    say(f"{title}\n")
    for row in (headings, ["─" * width for width in widths], *cells):
        padded = [
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, numeric, strict=True)
        ]
        say((_GAP + _GAP.join(padded)).rstrip())
    say("")


def _print_rich(
    title: str, headings: Sequence[str], cells: list[list[str]], numeric: list[bool]
) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    # Without edges, and with headings no wider than need be, most tables fit 80 columns.
    table = Table(
        title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0)
    )
    for at, (heading, *column, right) in enumerate(zip(headings, *cells, numeric, strict=True)):
        width = max(map(len, (*column, *heading.split())))
        justify: Literal["left", "right"] = "right" if right else "left"
        table.add_column(
            textwrap.fill(heading, width), justify=justify, overflow="fold", no_wrap=at == 0
        )
    for row in cells:
        table.add_row(
            *(f"[{_COLOURS[cell]}]{cell}[/]" if cell in _COLOURS else escape(cell) for cell in row)
        )
    Console().print(table)
