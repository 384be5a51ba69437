"""The page of `demo` as its users open it: a command, a browser, and a person at the keyboard."""

from __future__ import annotations

import itertools
import json
import math
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from playwright.sync_api import Browser, Locator, Page, expect

ROOT = Path(__file__).resolve().parents[2]
ENGINES = ("Browser", "Server", "Python")
PIXELS_A_MOVE = 25
"""Of a pen in a hand: each move has all engines asked."""

# What a page would hide from who looks at it alone.
_WATCH = """
window.violations = [];
document.addEventListener("securitypolicyviolation", (event) =>
  window.violations.push(`${event.violatedDirective}: ${event.blockedURI}`));
window.delays = [];
new PerformanceObserver((list) => {
  for (const { name, startTime, duration } of list.getEntries()) {
    window.delays.push([name, startTime, duration]);
  }
}).observe({ type: "measure" });
"""


@contextmanager
def serve_page(version_dir: Path, server: str, *arguments: str) -> Iterator[str]:
    """`python -m clients demo` until the end of the block, which Ctrl-C is; gives the address."""
    command = [sys.executable, "-m", "clients", "demo", "--version_dir", str(version_dir)]
    process = subprocess.Popen(
        [*command, "--server", server, "--no_browser", "--json", *arguments],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        said = process.stdout.readline()
        while said and "}" not in said:
            said += process.stdout.readline()
        assert said, process.communicate()[1]
        yield str(json.loads(said)["url"])
        process.send_signal(signal.SIGINT)
        _, log = process.communicate(timeout=30)
        assert process.returncode == 130, log
        assert "Traceback" not in log, log
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()


class Visit:
    """A page that is open, and everything about it that went wrong."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.errors: list[str] = []
        self.requests: list[str] = []
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("console", lambda one: one.type == "error" and self.errors.append(one.text))
        page.on("request", lambda request: self.requests.append(request.url))

    def wait_for_answer(self) -> Visit:
        """Until all engines that answer have answered the latest question."""
        expect(self.agreement).not_to_be_empty(timeout=30_000)
        return self

    @property
    def agreement(self) -> Locator:
        """The sentence that says whether they agree."""
        return self.page.locator("#agreement")

    @property
    def headline(self) -> str:
        """The class, or the value."""
        return self.page.locator("#headline strong").inner_text()

    @property
    def problems(self) -> str:
        """What is said of engines that do not answer."""
        return self.page.locator("#notes").inner_text()

    @property
    def violations(self) -> list[str]:
        """Of the content security policy."""
        found: list[str] = self.page.evaluate("window.violations")
        return found

    @property
    def hosts(self) -> set[str | None]:
        """Whom the page has asked for anything."""
        return {urlsplit(url).hostname for url in self.requests if not url.startswith("blob:")}

    def read_bars(self, engine: str) -> list[float]:
        """The shares that one engine's bars show, in the order of the rows."""
        column = ENGINES.index(engine) + 2
        shares: list[str] = self.page.eval_on_selector_all(
            f"#bars tbody td:nth-child({column}) .bar",
            "bars => bars.map(bar => bar.style.getPropertyValue('--share'))",
        )
        return [float(one) for one in shares]

    def read_pixels(self) -> list[int]:
        """What the model sees, one channel."""
        pixels: list[int] = self.page.eval_on_selector(
            "#seen",
            "seen => [...seen.getContext('2d').getImageData(0, 0, seen.width, seen.height).data]"
            ".filter((_, at) => at % 4 === 0)",
        )
        return pixels

    def draw(self, *strokes: Sequence[tuple[float, float]]) -> None:
        """Strokes of a pen over the pad, which is 1 wide and 1 high."""
        self.page.locator("#pad").scroll_into_view_if_needed()
        box = self.page.locator("#pad").bounding_box()
        assert box is not None
        mouse = self.page.mouse
        for stroke in strokes:
            places = [
                (box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in stroke
            ]
            mouse.move(*places[0])
            mouse.down()
            for start, end in itertools.pairwise(places):
                mouse.move(*end, steps=1 + int(math.dist(start, end) / PIXELS_A_MOVE))
            mouse.up()

    def drop(self, content: bytes, name: str) -> None:
        """A file is let go over the page."""
        self.page.evaluate(
            """([bytes, name]) => {
              const transfer = new DataTransfer();
              transfer.items.add(new File([new Uint8Array(bytes)], name));
              document.body.dispatchEvent(
                new DragEvent("drop", { dataTransfer: transfer, bubbles: true, cancelable: true }));
            }""",
            [list(content), name],
        )

    def settle(self, sentence: str) -> None:
        """Until the latest question is answered by all that answer, and screen readers told."""
        question = self.page.locator("#ask")
        expect(question).to_have_attribute("data-question", re.compile("."), timeout=30_000)
        asked = question.get_attribute("data-question") or ""
        expect(self.agreement).to_have_attribute("data-question", asked, timeout=30_000)
        expect(self.page.locator("#live")).to_contain_text(sentence, timeout=30_000)


@contextmanager
def open_page(browser: Browser, url: str, **options: Any) -> Iterator[Visit]:
    """A tab of its own, closed at the end."""
    with browser.new_context(**options) as context:
        context.add_init_script(_WATCH)
        visit = Visit(context.new_page())
        visit.page.goto(url)
        yield visit
