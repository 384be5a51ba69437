"""What a command shows: tables and progress bars on a terminal, plain lines elsewhere.

Results go to stdout, progress and remarks to stderr. Without `rich` (the extra `cli`) a
terminal gets the plain lines too.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TextIO

import numpy as np

from clients.extras import import_extra, is_installed
from contract.lite.notes import hide_delegate_notes as hide_delegate_notes

_GOOD = frozenset({"ok", "agrees", "AVAILABLE"})
_BAD = frozenset({"fails", "differs", "unreachable", "failed", "END"})
_WARNING = frozenset({"warning", "skipped", "not checked"})


def print_json(document: Any) -> None:
    """Writes one JSON document to stdout; arrays become lists, NaN and infinity strings."""
    sys.stdout.write(json.dumps(_plain(document), indent=2, allow_nan=False) + "\n")


def print_line(text: str) -> None:
    """Writes one line of the result to stdout."""
    sys.stdout.write(text + "\n")


def print_remark(text: str) -> None:
    """Writes one line for the person watching to stderr."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def print_table(
    columns: Sequence[str],
    rows: Sequence[Sequence[object]],
    *,
    title: str = "",
    numeric: Sequence[str] = (),
) -> None:
    """Writes a table to stdout.

    Args:
        columns: Headings.
        rows: One sequence of cells per row, as many as there are columns.
        title: A line above.
        numeric: Headings of the columns that are aligned to the right.
    """
    cells = [[str(cell) for cell in row] for row in rows]
    if _is_rich(sys.stdout):
        _print_rich(columns, cells, title, frozenset(numeric))
    else:
        _print_plain(columns, cells, title, frozenset(numeric))


class Progress:
    """Counts rows and says how fast they go.

    Attributes:
        num_rows: Rows so far.
    """

    def __init__(self, label: str, unit: str = "rows") -> None:
        self.num_rows = 0
        self._label = label
        self._unit = unit
        self._start = time.perf_counter()

    def advance(self, num_rows: int) -> None:
        """Adds rows."""
        self.num_rows += num_rows

    @property
    def rate(self) -> float:
        """Rows per second so far."""
        return self.num_rows / max(time.perf_counter() - self._start, 1e-9)

    def describe(self) -> str:
        """For example `predict: 12,800 rows, 54,321 rows/s`."""
        unit = self._unit
        return f"{self._label}: {self.num_rows:,} {unit}, {self.rate:,.0f} {unit}/s"


@contextmanager
def show_progress(
    label: str, *, total: int | None = None, unit: str = "rows"
) -> Iterator[Progress]:
    """A progress bar with rows/s on a terminal; one line at the end elsewhere.

    Args:
        label: What is being done.
        total: Rows in all, None when nobody knows yet.
        unit: What is counted.
    """
    if not _is_rich(sys.stderr):
        progress = Progress(label, unit)
        try:
            yield progress
        finally:
            print_remark(progress.describe())
        return
    rich_progress = import_extra("rich.progress", "a progress bar")
    console = import_extra("rich.console", "a progress bar").Console(stderr=True)
    text = rich_progress.TextColumn
    bar = rich_progress.Progress(
        text("{task.description}"),
        rich_progress.BarColumn(),
        text(f"{{task.completed:,}} {unit}"),
        text(f"{{task.fields[rate]:,.0f}} {unit}/s"),
        rich_progress.TimeElapsedColumn(),
        console=console,
    )
    with bar:
        task = bar.add_task(label, total=total, rate=0.0)
        progress = _BarProgress(label, bar, task)
        try:
            yield progress
        finally:
            bar.update(task, total=progress.num_rows, completed=progress.num_rows)


class _BarProgress(Progress):
    def __init__(self, label: str, bar: Any, task: Any) -> None:
        super().__init__(label)
        self._bar = bar
        self._task = task

    def advance(self, num_rows: int) -> None:
        super().advance(num_rows)
        self._bar.update(self._task, advance=num_rows, rate=self.rate)


def _is_rich(stream: TextIO) -> bool:
    return stream.isatty() and is_installed("rich")


def _print_rich(
    columns: Sequence[str], rows: list[list[str]], title: str, numeric: frozenset[str]
) -> None:
    text = import_extra("rich.text", "a table").Text
    table = import_extra("rich.table", "a table").Table(
        title=title or None,
        title_justify="left",
        title_style="bold",
        box=import_extra("rich.box", "a table").SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    for column in columns:
        # Numbers and verdicts never break: a narrow terminal breaks names and sentences.
        is_whole = column in numeric or column in ("verdict", "result")
        justify = "right" if column in numeric else "left"
        table.add_column(text(column), justify=justify, overflow="fold", no_wrap=is_whole)
    for row in rows:
        table.add_row(*(text(cell, style=_choose_style(cell)) for cell in row))
    import_extra("rich.console", "a table").Console().print(table)


def _choose_style(cell: str) -> str:
    word = cell.partition(":")[0]
    if word in _GOOD:
        return "green"
    if word in _BAD:
        return "bold red"
    return "yellow" if word in _WARNING else ""


def _print_plain(
    columns: Sequence[str], rows: list[list[str]], title: str, numeric: frozenset[str]
) -> None:
    widths = [
        max(len(line[index]) for line in [list(columns), *rows]) for index in range(len(columns))
    ]
    lines = [title] if title else []
    for row in [list(columns), *rows]:
        cells = [
            cell.rjust(width) if column in numeric else cell.ljust(width)
            for cell, width, column in zip(row, widths, columns, strict=True)
        ]
        lines.append("  ".join(cells).rstrip())
    sys.stdout.write("\n".join(lines) + "\n")


def _plain(value: Any) -> Any:
    """The value in JSON's own types."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, float) and not np.isfinite(value):
        return str(value)
    if isinstance(value, bytes):
        return value.decode(errors="backslashreplace")
    return value
