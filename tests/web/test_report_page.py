"""The report in a real browser: on a telephone and a screen, light and dark, and asking nobody."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from exporter.report.facts import read_facts
from exporter.report.page import render
from exporter.report.verb import make_comparison
from tests.exporter import report_versions as made
from tests.exporter.report_versions import MAKERS

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)
WIDTHS = {"small telephone": 320, "telephone": 360, "screen": 1280}
HOSTILE = tuple(f"<b>{'W' * 200}{n}</b>" for n in range(10))

pytestmark = pytest.mark.skipif(not CHROMIUM, reason="there is no Chromium or Chrome")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    flags = ["--no-sandbox"] if os.geteuid() == 0 else []
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Task to the file of its report."""
    folder = tmp_path_factory.mktemp("reports")
    versions = {task: maker(folder / task / "1") for task, maker in MAKERS.items()}
    versions["hostile names"] = made.make_digits(folder / "hostile" / "2", names=HOSTILE)
    found = {}
    for task, version in versions.items():
        found[task] = folder / f"{task.replace(' ', '-')}.html"
        found[task].write_bytes(render(read_facts(version)))
    found["two versions"] = folder / "two.html"
    other = made.make_digits(folder / "digits" / "3", seed=5)
    make_comparison(versions["digits"], other, out=found["two versions"])
    return found


KINDS = [*MAKERS, "hostile names", "two versions"]


def open_page(browser: Browser, file: Path, width: int, scheme: str = "light") -> Page:
    context = browser.new_context(viewport={"width": width, "height": 800})
    page = context.new_page()
    page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
    page.goto(file.as_uri())
    return page


@pytest.mark.parametrize("kind", KINDS)
def test_a_report_asks_nobody_and_has_no_horizontal_scroll_bar(
    browser: Browser, pages: dict[str, Path], kind: str
) -> None:
    for width in WIDTHS.values():
        context = browser.new_context(viewport={"width": width, "height": 800})
        page = context.new_page()
        said: list[str] = []
        asked: list[str] = []
        page.on("console", lambda message, said=said: said.append(message.text))
        page.on("pageerror", lambda error, said=said: said.append(str(error)))
        page.on("request", lambda request, asked=asked: asked.append(request.url))
        page.goto(pages[kind].as_uri())
        room = page.evaluate("document.documentElement.clientWidth")
        assert page.evaluate("document.documentElement.scrollWidth") <= room == width
        assert not said
        own = pages[kind].as_uri()
        assert [url for url in asked if url != own and not url.startswith("data:")] == []
        context.close()


@pytest.mark.parametrize("kind", ["digits", "regression", "two versions"])
def test_nothing_reaches_beyond_the_right_edge_of_a_telephone(
    browser: Browser, pages: dict[str, Path], kind: str
) -> None:
    page = open_page(browser, pages[kind], 360)
    beyond = page.evaluate(
        """[...document.querySelectorAll('body *')]
        .filter((one) => !one.closest('svg') && !one.closest('thead'))
        .filter((one) => one.getBoundingClientRect().right > 360.5)
        .map((one) => one.tagName + ' ' + one.textContent.slice(0, 40))"""
    )
    page.context.close()
    assert beyond == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_and_lines_are_seen_in_light_and_dark(
    browser: Browser, pages: dict[str, Path], scheme: str
) -> None:
    page = open_page(browser, pages["digits"], 1280, scheme)
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    inks = page.evaluate(
        """[...document.querySelectorAll('p, th, td, dt, dd, figcaption, svg text')]
        .filter((one) => one.textContent.trim())
        .map((one) => getComputedStyle(one)[one.closest('svg') ? 'fill' : 'color'])"""
    )
    page.context.close()
    is_dark = sum(read_colour(ground)) < 384
    assert is_dark == (scheme == "dark")
    # Ink on a coloured cell is of the paper's colour, and is judged against the cell.
    for ink in set(inks) - {ground}:
        assert measure_contrast(read_colour(ink), read_colour(ground)) >= 4.5, ink


def test_letters_of_figures_can_be_read_on_a_telephone(
    browser: Browser, pages: dict[str, Path]
) -> None:
    page = open_page(browser, pages["digits"], 360)
    heights = page.evaluate(
        """[...document.querySelectorAll('svg text')].filter((one) => one.textContent.trim())
        .map((one) => parseFloat(getComputedStyle(one).fontSize)
             * one.closest('svg').getBoundingClientRect().width
             / one.closest('svg').viewBox.baseVal.width)"""
    )
    page.context.close()
    assert heights
    assert min(heights) >= 7.5
    assert max(heights) <= 16


def test_labels_of_the_plot_of_copies_do_not_overlap(
    browser: Browser, pages: dict[str, Path]
) -> None:
    page = open_page(browser, pages["digits"], 360)
    boxes = page.evaluate(
        """[...document.querySelectorAll('#copies svg text')].map((one) => {
            const box = one.getBoundingClientRect();
            return [box.left, box.top, box.right, box.bottom, one.textContent.trim()];
        }).filter((box) => box[4])"""
    )
    page.context.close()
    assert len(boxes) > 8
    for at, one in enumerate(boxes):
        for other in boxes[at + 1 :]:
            apart = (
                one[2] <= other[0] + 0.5
                or other[2] <= one[0] + 0.5
                or one[3] <= other[1] + 2
                or other[3] <= one[1] + 2
            )
            assert apart, (one, other)


def test_a_report_can_be_printed(browser: Browser, pages: dict[str, Path]) -> None:
    page = open_page(browser, pages["digits"], 1280, "dark")
    page.emulate_media(media="print")
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    ink = page.evaluate("getComputedStyle(document.body).color")
    lines = page.evaluate("getComputedStyle(document.querySelector('svg text')).fill")
    pdf = page.pdf()
    page.context.close()
    assert pdf.startswith(b"%PDF")
    assert sum(read_colour(ground)) > 700
    assert sum(read_colour(ink)) < 100
    assert measure_contrast(read_colour(lines), read_colour(ground)) >= 4.5


def read_colour(text: str) -> tuple[float, float, float]:
    parts = text[text.index("(") + 1 : text.index(")")].replace(",", " ").split()
    red, green, blue = (float(part) for part in parts[:3])
    return red, green, blue


def measure_contrast(one: tuple[float, float, float], other: tuple[float, float, float]) -> float:
    def measure_light(colour: tuple[float, float, float]) -> float:
        shares = [part / 255 for part in colour]
        linear = [
            part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in shares
        ]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    dark, light = sorted((measure_light(one), measure_light(other)))
    return (light + 0.05) / (dark + 0.05)
