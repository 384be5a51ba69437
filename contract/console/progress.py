"""Long work shows itself, on stderr: how far it is, how fast, and how long it will take.

Work that takes less than two seconds shows nothing. After that a terminal with `rich` (the extra
`cli`) has a line that is rewritten; anything else, as the log of a CI job, gets a line now and
then, ever more rarely. To count costs an addition; all else happens on a thread of its own, which
sleeps for those two seconds first.
"""

from __future__ import annotations

import itertools
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, TextIO

from contract.console.terminal import (
    clean,
    cut,
    find_width,
    has_rich,
    measure,
    open_rich,
    remark,
    write_line,
)

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions
    from rich.live import Live
    from rich.text import Text

FIRST_S = 2.0
"""What takes less is nothing that anybody waits for."""

_GAPS_S = (FIRST_S, 3.0, 5.0, 10.0, 20.0)
_LAST_GAP_S = 60.0
_WINDOW_S = 30.0
"""The rate is that of the last so many seconds: work is not equally fast from first to last."""
_SAMPLE_S = 0.5
_STALLED_S = 10.0
"""Without anything new for so long, and for twice as long as ever, work is at a standstill: what is
left of it cannot be told."""
_FRAMES_S = 0.125
_SPINNER, _ASCII_SPINNER = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏", "-\\|/"
_MIN_BAR, _MAX_BAR = 6, 24
_MIN_NOTE = 8


class Heartbeat:
    """Calls a function on a thread after 2, 5, 10, 20, 40 s and then once a minute, until stopped.

    A context manager. The function is not called again once `stop` has returned.

    Args:
        beat: What to call.
    """

    def __init__(self, beat: Callable[[], None]) -> None:
        self._beat = beat
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def _run(self) -> None:
        for gap in itertools.chain(_GAPS_S, itertools.repeat(_LAST_GAP_S)):
            if self._stopped.wait(gap):
                return
            self._beat()

    def stop(self) -> None:
        """Ends it; waits for a call that is under way."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join()

    def __enter__(self) -> Heartbeat:
        with suppress(RuntimeError):  # no room for one more thread: rather silence than no work
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


class Progress:
    """How far some work is.

    Attributes:
        count: Units done so far.
        total: Of all; None while nobody knows.
        share: Of the work, how much is done, in 0..1: stands in for the total where nobody knows
            it; 0 = not known either.
        note: What it is at: the name of a file, a copy, an epoch.
        is_told: Whether anything was shown.
        find_wait: Asked whenever something is shown: what is waited for, and since when; "" while
            the work goes on.
    """

    def __init__(
        self,
        label: str,
        unit: str,
        total: int | Callable[[], int | None] | None = None,
        note: str = "",
        say: Callable[[str], None] = remark,
    ) -> None:
        self.count = 0
        self.total = None if callable(total) else total
        self._find_total = total if callable(total) else lambda: None
        self.share = 0.0
        self.note = note
        self.is_told = False
        self.find_wait: Callable[[], str] = lambda: ""
        self._label = clean(label)
        self._unit = unit
        self._say = say
        self._start = self._changed = time.perf_counter()
        self._longest_gap_s = 0.0
        self._samples = deque([(self._start, 0)])

    def advance(self, count: int = 1) -> None:
        """Adds what was done."""
        self.count += count
        now = time.perf_counter()
        self._longest_gap_s = max(self._longest_gap_s, now - self._changed)
        self._changed = now

    def reach(self, count: int) -> None:
        """Says how much is done in all."""
        self.advance(count - self.count)

    def begin(self, count: int = 0) -> None:
        """Counts from here, with so many done: what came before says nothing of the speed."""
        self.count = count
        self._changed = time.perf_counter()
        self._samples = deque([(self._changed, count)])
        self._longest_gap_s = 0.0

    def expect(self, total: int) -> None:
        """Says how many there are."""
        self.total = total

    @property
    def elapsed_s(self) -> float:
        """Since it began."""
        return time.perf_counter() - self._start

    @property
    def rate(self) -> float:
        """Units of a second, lately; 0 where that is not known."""
        samples, last = self._samples, (self._changed, self.count)
        if last[1] != samples[-1][1] and (last[0] - samples[-1][0] > _SAMPLE_S or len(samples) < 2):
            samples.append(last)
        while len(samples) > 2 and last[0] - samples[1][0] > _WINDOW_S:
            samples.popleft()
        at, count = samples[0]
        return (last[1] - count) / (last[0] - at) if last[0] > at else 0.0

    @property
    def left_s(self) -> float | None:
        """Seconds that the rest will take at this rate; None where that cannot be told."""
        rate, total = self.rate, self.total
        if total is None and self.share > 0:
            total = round(self.count / self.share)
        if total is None or rate <= 0 or self.count >= total:
            return None  # perhaps more than there should be: a total may be an estimate
        left = (total - self.count) / rate
        # Of a unit that takes long, some has been done; how much of a late one, nobody knows.
        return left - min(time.perf_counter() - self._changed, 1 / rate, left)

    @property
    def stalled_s(self) -> float:
        """Seconds without anything new, where that is longer than usual; else 0."""
        idle = time.perf_counter() - self._changed
        is_stalled = self.count and idle > max(_STALLED_S, 2 * self._longest_gap_s)
        return idle if is_stalled else 0.0

    def describe(self) -> str:
        """For example `12,800 of 60,000 rows, about 9 s left, 5,432 rows/s`."""
        return ", ".join(self._list_parts())

    def _list_parts(self, room: int | None = None) -> list[str]:
        """What is known; where room is short without the rate, then the note, then the count."""
        left, stalled_s = self.left_s, self.stalled_s
        if wait := clean(self.find_wait()):
            time_left = wait
        elif stalled_s:
            time_left = f"nothing new for {format_seconds(stalled_s)}"
        elif left is not None and self.count:
            time_left = f"about {format_seconds(max(1.95, left))} left"
        else:
            time_left = f"{format_seconds(self.elapsed_s)} so far"
        parts = {
            "note": clean(self.note),
            "count": self._describe_count(),
            "time": time_left,
            "rate": self._describe_rate(self.rate) if self._unit and self.count else "",
        }
        shown = {name: part for name, part in parts.items() if part}
        for name in ("rate", "note", "count"):
            excess = measure(", ".join(shown.values())) - room if room is not None else 0
            part = shown.pop(name, "") if excess > 0 else ""
            if name == "note" and part and measure(part) - excess >= _MIN_NOTE:
                shown = {name: cut(part, measure(part) - excess), **shown}
        return list(shown.values())

    def _describe_count(self, *, of_all: bool = True) -> str:
        if not self._unit:
            return ""
        total = f" of {self._format(self.total)}" if of_all and self.total is not None else ""
        unit = "MB" if self._unit == "bytes" else self._unit
        share = f" ({self.share:.0%})" if of_all and self.total is None and self.share else ""
        return f"{self._format(self.count)}{total} {unit}{share}"

    def _format(self, count: int) -> str:
        return f"{count / 1e6:,.1f}" if self._unit == "bytes" else f"{count:,}"

    def _describe_rate(self, rate: float) -> str:
        if self._unit == "bytes":
            return f"{rate / 1e6:,.1f} MB/s"
        # Nobody wants to know how many hundredths of a copy are made in a second.
        return f"{rate:,.0f} {self._unit}/s" if rate >= 2 else ""

    def _find_share(self) -> float | None:
        """How much is done, in 0..1 or more; None where that is not known."""
        if self.total is not None:
            return self.count / self.total if self.total else 1.0
        return self.share or None

    def describe_end(self) -> str:
        """For example `60,000 rows, 11 s, 5,432 rows/s`."""
        done = self._find_share()
        is_whole = done is not None and done >= 0.99
        parts = [self._describe_count(of_all=not is_whole), format_seconds(self.elapsed_s)]
        if self._unit and self.count:
            parts.append(self._describe_rate(self.count / max(self.elapsed_s, 1e-9)))
        return ", ".join(part for part in parts if part)

    def name(self, note: str) -> None:
        """Says what it is at."""
        self.note = note

    def find_total(self) -> None:
        """Finds out how many there are, if that is still to be done."""
        if self.total is None:
            with suppress(OSError, ValueError):  # who does the work says what is wrong with it
                self.total = self._find_total()

    def tell(self) -> None:
        """Says in a line how far it is."""
        self.find_total()
        self.is_told = True
        self._say(f"{self._label}: {self.describe()}")

    def tell_end(self) -> None:
        """Says in a line what it came to, if it was worth a line before."""
        if self.is_told:
            self._say(f"{self._label}: {self.describe_end()}")

    def draw(self, width: int, *, is_ascii: bool = False) -> list[tuple[str, str]]:
        """A line of at most so many columns, as pieces and their styles: a bar where there is room.

        What matters least is left out where there is none.
        """
        text = ", ".join(self._list_parts(width - 2 - min(measure(self._label) + 2, width // 2)))
        label = cut(self._label, max(8, width - measure(text) - 4))
        text = cut(text, max(1, width - measure(label) - 3))
        room = width - measure(label) - measure(text) - 2
        share = self._find_share()
        if share is not None and room > _MIN_BAR:
            size = min(room, _MAX_BAR)
            done = min(size, int(size * share))
            full, rest = (
                ("#" * done, "-" * (size - done)) if is_ascii else ("━" * done, "━" * (size - done))
            )
            return [(f"{label} ", ""), (full, "green"), (rest, "dim"), (f" {text}", "")]
        frames = _ASCII_SPINNER if is_ascii else _SPINNER
        frame = frames[int(self.elapsed_s / _FRAMES_S) % len(frames)]
        return [(f"{frame} ", "green"), (f"{label} ", ""), (text, "dim")]


class _Shown:
    """The line on a terminal, as rich asks for it again and again."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text]:
        from rich.text import Text

        # A terminal breaks a line that fills its last column.
        pieces = self._progress.draw(options.max_width - 1, is_ascii=options.ascii_only)
        yield Text.assemble(*pieces, no_wrap=True, overflow="crop")


class _Display:
    """Shows a progress on a terminal from the moment when it is worth it."""

    def __init__(self, progress: Progress, stream: TextIO, *, is_kept: bool) -> None:
        self._progress = progress
        self._stream = stream
        self._is_kept = is_kept
        self._live: Live | None = None
        self._lock = threading.Lock()
        self._is_over = False

    def open(self) -> None:
        """Begins, unless it has begun or is over."""
        console = open_rich(self._stream)
        if console is None:
            return
        from rich.live import Live

        self._progress.find_total()
        with self._lock:
            if self._live is None and not self._is_over:
                self._live = Live(
                    _Shown(self._progress),
                    console=console,
                    refresh_per_second=1 / _FRAMES_S,
                    transient=True,
                )
                self._live.start()
                self._progress.is_told = True

    def close(self) -> None:
        """Takes the line away, and leaves what it came to where that is wanted."""
        with self._lock:
            self._is_over = True
            if self._live is None:
                return
            self._live.stop()
        if self._is_kept:
            self._progress.tell_end()


@contextmanager
def show_progress(
    label: str,
    *,
    total: int | Callable[[], int | None] | None = None,
    unit: str = "rows",
    note: str = "",
    at_once: bool = False,
    is_kept: bool = True,
    say: Callable[[str], None] | None = None,
    stream: TextIO | None = None,
) -> Iterator[Progress]:
    """Shows how far the work within is, with its rate and an estimate of the time left.

    Args:
        label: What is done: "predict".
        total: Units of all; None when nobody knows yet, and the `Progress` may be told later. A
            function is asked when something is shown for the first time, on another thread.
        unit: Of what; `bytes` are shown as MB, "" is not counted.
        note: What it is at, at first.
        at_once: On a terminal from the beginning; else after two seconds, as elsewhere.
        is_kept: Leaves a line that says what it came to, where anything was shown.
        say: Takes the lines where there is no terminal; else they go to the stream.
        stream: Where it is shown; stderr unless that is hidden meanwhile.
    """
    shown_on = stream or sys.stderr
    progress = Progress(label, unit, total, note, say or partial(write_line, shown_on))
    if has_rich(shown_on):
        display = _Display(progress, shown_on, is_kept=is_kept)
        if at_once:
            display.open()
        try:
            with Heartbeat(display.open):
                yield progress
        finally:
            display.close()
        return
    try:
        with Heartbeat(progress.tell):
            yield progress
    finally:
        if is_kept:
            progress.tell_end()


class Steps:
    """Tells which step of some work runs, for how long, and how far it is where that is known.

    A context manager that is called with the name of each step as it begins.

    Attributes:
        seconds: Step name to wall time, of the steps that have ended.

    Args:
        log: Takes the lines where there is no terminal.

    Example:
        >>> with Steps() as begin:  # doctest: +SKIP
        ...     begin("save")
        ...     begin("convert", total=5).note = "int8"
    """

    def __init__(self, log: Callable[[str], None] = remark) -> None:
        self.seconds: dict[str, float] = {}
        self._log = log
        self._name = ""
        self._began = 0.0
        self._shown = ExitStack()
        self._console = open_rich(sys.stderr)

    def __call__(self, name: str, *, total: int | None = None, live: bool = True) -> Progress:
        """Ends the step before, and begins this one.

        Args:
            name: Of the step.
            total: Parts that it has, where they are known.
            live: Off where the step shows its own progress.

        Returns:
            What may be told how far the step is.
        """
        self._end()
        self._name, self._began = name, time.perf_counter()
        if not live:
            return Progress(name, "", total)
        return self._shown.enter_context(
            show_progress(name, total=total, unit="", at_once=True, is_kept=False, say=self._log)
        )

    def __enter__(self) -> Steps:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self._end(failed=kind is not None)

    def _end(self, *, failed: bool = False) -> None:
        if not self._name:
            return
        seconds = time.perf_counter() - self._began
        self.seconds[self._name] = self.seconds.get(self._name, 0.0) + seconds
        self._shown.close()
        if self._console is not None:
            mark = "[red]✗[/red]" if failed else "[green]✓[/green]"
            self._console.print(f"{mark} {self._name} [dim]{seconds:.1f} s[/dim]")
        elif not failed:  # the error that follows says what failed
            self._log(f"{self._name}: {seconds:.1f} s")
        self._name = ""


class WaitingLine:
    """What is waited for, on stderr: one line rewritten on a terminal, else one for each change."""

    def __init__(self) -> None:
        self._shown = ""
        self._rewrites = sys.stderr.isatty()

    def show(self, text: str, waited_s: float) -> None:
        """Shows it, if there is news."""
        if self._rewrites:
            line = f"waiting {waited_s:4.1f} s  {clean(text)}"
            sys.stderr.write(f"\r\033[K{cut(line, find_width() - 1)}")
            sys.stderr.flush()
        elif text != self._shown:
            remark(f"waiting {waited_s:.1f} s  {text}")
        self._shown = text

    def end(self) -> None:
        """Ends the line."""
        if self._rewrites:
            sys.stderr.write("\n")


def format_seconds(seconds: float) -> str:
    """A span of time as people say it: 9 s, 3 min, 1 h 20 min."""
    if seconds < 9.95:
        return f"{seconds:.1f} s" if seconds < 1.95 else f"{seconds:.0f} s"
    if seconds < 89.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
