"""The page of `demo` in a real browser: what is drawn, asked and answered."""

from __future__ import annotations

import contextlib
import http.server
import io
import json
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pytest

from clients import OnDevicePredictor, PredictionClient
from contract import layout
from contract.golden import read_golden
from contract.signature import UINT8
from tests.clients.browsers import need_browser
from tests.ports import HeldPort
from tests.serving.server_process import ServerProcess

pytest.importorskip("playwright", reason="playwright drives the browser, and is not installed")
pytest.importorskip("serving.server", reason="the server is not installed")

from playwright.sync_api import Browser, expect, sync_playwright

from tests.web.pages import ENGINES, ROOT, Visit, open_page, serve_page

Stroke: TypeAlias = list[tuple[float, float]]

SEVEN = [(0.25, 0.2), (0.75, 0.2), (0.6, 0.5), (0.45, 0.85)], [(0.35, 0.52), (0.75, 0.52)]
FOREIGN = Path(__file__).resolve().parents[1] / "recorded" / "lite" / "cnn.tflite"
CORS = "--rest_api_enable_cors_support"
NOWHERE = "127.0.0.1:9"
"""The discard port, at which nobody listens."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = need_browser()
    with sync_playwright() as playwright:
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
        launched = playwright.chromium.launch(executable_path=path, args=arguments)
        yield launched
        launched.close()


@pytest.fixture(scope="module")
def version_dir(request: pytest.FixtureRequest) -> Path:
    need_browser()
    published: Path = request.getfixturevalue("published_mlp")
    directory = published / "mlp" / "1"
    if not (directory / layout.variant_path(layout.WEB)).is_file():
        pytest.skip(f"{directory} was exported before there was a web variant")
    return directory


@pytest.fixture(scope="module")
def server(version_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    flags = (CORS, "--model_name=mlp", f"--model_base_path={version_dir.parent}")
    with ServerProcess(tmp_path_factory.mktemp("server"), *flags, rest=True) as process:
        yield process.wait_until_ready()


@pytest.fixture(scope="module")
def url(version_dir: Path, server: ServerProcess) -> Iterator[str]:
    with serve_page(version_dir, server.url) as address:
        yield address


@pytest.fixture
def visit(browser: Browser, url: str) -> Iterator[Visit]:
    with open_page(browser, url) as opened:
        yield opened.wait_for_answer()


def make_png(pixels: np.ndarray) -> bytes:
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def read_digit(version_dir: Path, row: int = 0) -> np.ndarray:
    golden = read_golden(version_dir / layout.GOLDEN).signatures[UINT8]
    return np.asarray(golden.inputs["images"][row])


def test_a_drawn_seven_is_answered_as_the_server_answers_it_over_grpc(
    visit: Visit, server: ServerProcess
) -> None:
    visit.page.click("#clear")
    visit.draw(*SEVEN)
    visit.settle("All three agree")
    pixels = np.array(visit.read_pixels(), np.uint8).reshape(1, 28, 28)
    with PredictionClient(server.address, model_name="mlp") as client:
        told = client.predict(pixels, signature_name=UINT8)["probabilities"][0]
    for engine in ENGINES:
        np.testing.assert_allclose(visit.read_bars(engine), told, rtol=0, atol=1e-5)
    assert visit.headline == str(told.argmax())
    difference = float(visit.agreement.get_attribute("data-difference") or "nan")
    assert difference <= 1e-5


def test_the_page_asks_nobody_but_this_machine_and_breaks_no_rule(visit: Visit) -> None:
    visit.draw(*SEVEN)
    visit.settle("All three agree")
    assert visit.errors == []
    assert visit.violations == []
    assert visit.hosts == {"127.0.0.1"}


def test_the_page_may_ask_nobody_else(visit: Visit) -> None:
    refused = visit.page.evaluate("fetch('http://127.0.0.1:9/').catch((error) => error.name)")
    assert refused == "TypeError"
    assert visit.violations == ["connect-src: http://127.0.0.1:9/"]


@pytest.mark.parametrize("width", [320, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_wider_than_the_window(
    width: int, scheme: str, browser: Browser, url: str
) -> None:
    size = {"width": width, "height": 640}
    with open_page(browser, url, viewport=size, color_scheme=scheme) as visit:
        visit.wait_for_answer()
        visit.page.click("summary")
        assert visit.page.evaluate("document.documentElement.scrollWidth") == width


def test_on_a_phone_the_answer_is_in_sight_of_the_pad(browser: Browser, url: str) -> None:
    with open_page(browser, url, viewport={"width": 320, "height": 568}) as visit:
        visit.wait_for_answer()
        expect(visit.page.locator("#pad")).to_be_in_viewport(ratio=0.9)
        expect(visit.page.locator("#headline")).to_be_in_viewport(ratio=0.9)


def test_a_digit_is_drawn_with_keys_alone(visit: Visit) -> None:
    keyboard = visit.page.keyboard
    keyboard.press("Tab")
    expect(visit.page.locator("#pad")).to_be_focused()
    for key in ("Delete", *["ArrowUp"] * 10, " ", *["ArrowDown"] * 20, " ", "ArrowLeft"):
        keyboard.press(key)
    visit.settle("All three agree")
    ink = np.array(visit.read_pixels()).reshape(28, 28)
    assert (ink[:, 12:16].max(axis=1) > 127).all(), "a line from top to bottom"
    assert ink[:, :6].max() == ink[:, -6:].max() == 0


def test_an_example_is_shown_by_its_digit(visit: Visit, version_dir: Path) -> None:
    visit.page.keyboard.press("3")
    visit.settle("3, ")
    assert visit.headline == "3"
    golden = read_golden(version_dir / layout.GOLDEN).signatures[UINT8]
    first = golden.outputs["probabilities"].argmax(axis=1).tolist().index(3)
    assert visit.read_pixels() == golden.inputs["images"][first].ravel().tolist()


def test_everything_is_reached_by_tab_and_seen_where_it_is(visit: Visit) -> None:
    keys = visit.page
    reached = []
    for _ in range(20):
        keys.keyboard.press("Tab")
        focused = keys.evaluate(
            """() => {
              const one = document.activeElement;
              const shown = one.matches(".unseen") ? one.nextElementSibling : one;
              const { outlineStyle, outlineWidth } = getComputedStyle(shown);
              const ring = outlineStyle === "none" ? 0 : parseFloat(outlineWidth);
              return [one.id || one.textContent, ring];
            }"""
        )
        if focused[0] in [name for name, _ in reached]:
            break
        reached.append(focused)
    names = [name for name, _ in reached if name]
    assert {"pad", "clear", "picker", *"0123456789", "Keys"} <= set(names)
    controls = [ring for name, ring in reached if name in {"pad", "clear", "picker", "7", "Keys"}]
    assert min(controls) >= 2


def test_a_picture_that_is_dropped_is_what_the_model_sees(visit: Visit, version_dir: Path) -> None:
    digit = read_digit(version_dir, 5)
    visit.drop(make_png(digit), "digit.png")
    expect(visit.page.locator("#headline strong")).to_have_text(
        ask_python(version_dir, digit), timeout=30_000
    )
    assert visit.read_pixels() == digit.ravel().tolist()


def test_dark_ink_on_paper_is_turned_into_what_the_model_knows(
    visit: Visit, version_dir: Path
) -> None:
    digit = read_digit(version_dir, 5)
    visit.drop(make_png(255 - digit), "paper.png")
    expect(visit.page.locator("#headline strong")).to_have_text(
        ask_python(version_dir, digit), timeout=30_000
    )
    assert visit.read_pixels() == digit.ravel().tolist()


def ask_python(version_dir: Path, digit: np.ndarray) -> str:
    with OnDevicePredictor(version_dir) as predictor:
        told = predictor.predict(digit[np.newaxis], signature_name=UINT8)["probabilities"]
    return str(told.argmax())


def test_what_is_no_picture_is_refused_in_a_sentence(visit: Visit) -> None:
    visit.drop(b"%PDF-1.7", "letter.pdf")
    alert = visit.page.get_by_role("alert")
    expect(alert).to_have_text("letter.pdf is no picture that this browser can read.")


def test_without_a_server_the_others_go_on(browser: Browser, version_dir: Path) -> None:
    with serve_page(version_dir, NOWHERE) as address, open_page(browser, address) as visit:
        visit.settle("Both agree")
        assert f"nobody answers at {NOWHERE}" in visit.problems
        visit.draw(*SEVEN)
        visit.settle("Both agree")
        np.testing.assert_allclose(visit.read_bars("Browser"), visit.read_bars("Python"), atol=1e-5)


def test_a_server_that_is_not_for_web_pages_is_told_from_one_that_is_away(
    browser: Browser, version_dir: Path, tmp_path: Path
) -> None:
    flags = ("--model_name=mlp", f"--model_base_path={version_dir.parent}")
    with ServerProcess(tmp_path, *flags, rest=True) as process:
        process.wait_until_ready()
        with serve_page(version_dir, process.url) as address, open_page(browser, address) as visit:
            visit.settle("Both agree")
            assert CORS in visit.problems


def test_a_version_that_a_newer_one_took_the_place_of_is_named(
    browser: Browser, version_dir: Path, tmp_path: Path
) -> None:
    newer = Path(shutil.copytree(version_dir, tmp_path / "mlp" / "7"))
    flags = (CORS, "--model_name=mlp", f"--model_base_path={newer.parent}")
    with ServerProcess(tmp_path, *flags, rest=True) as process:
        process.wait_until_ready()
        with serve_page(version_dir, process.url) as address, open_page(browser, address) as visit:
            visit.settle("Both agree")
            assert "it serves version 7 of mlp, and not 1 any more" in visit.problems


def test_without_a_file_for_browsers_the_others_go_on(
    browser: Browser, version_dir: Path, server: ServerProcess, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(version_dir, tmp_path / "1"))
    (copy / layout.variant_path(layout.WEB)).unlink()
    with serve_page(copy, server.url) as address, open_page(browser, address) as visit:
        visit.settle("Both agree")
        assert "web.tflite" in visit.problems


def test_a_model_that_takes_no_picture_has_a_form(browser: Browser, tmp_path: Path) -> None:
    version_dir = tmp_path / "model" / "1"
    for place in (layout.TFLITE, layout.variant_path(layout.WEB)):
        (version_dir / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(FOREIGN, version_dir / place)
    flags = (CORS, "--model_name=default", f"--model_base_path={version_dir.parent}")
    rows = np.random.default_rng(1).normal(size=(1, 6, 6, 2)).astype(np.float32)
    with (
        ServerProcess(tmp_path, *flags, rest=True) as process,
        serve_page(version_dir, process.wait_until_ready().url) as address,
        open_page(browser, address) as visit,
        OnDevicePredictor(version_dir) as predictor,
    ):
        visit.settle("All three agree")
        field = visit.page.get_by_role("textbox", name="input_1")
        field.fill(" ".join(map(str, rows.ravel().tolist())))
        (told,) = predictor.predict(rows).values()
        first = f"{told[0, 0]:.4f}"
        expect(visit.page.locator("#bars tbody tr").first).to_contain_text(first)
        expect(visit.agreement).to_contain_text("All three agree")
        field.fill("1, 2, many")
        alert = visit.page.get_by_role("alert")
        expect(alert).to_have_text("input_1 takes numbers, and “many” is none.")
        field.fill("1, 2")
        expect(alert).to_have_text("input_1 takes 72 values, and 2 are given.")
        assert visit.errors == []


class SlowServer(http.server.ThreadingHTTPServer):
    """Answers a REST predict once it may, and counts."""

    daemon_threads = True
    allow_reuse_port = True

    def __init__(self, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _SlowHandler)
        self.bodies: list[bytes] = []
        self.may_answer = threading.Event()


class _SlowHandler(http.server.BaseHTTPRequestHandler):
    server: SlowServer

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.bodies.append(body)
        self.server.may_answer.wait(60)
        answer = json.dumps({"outputs": [[0.1] * 10]}).encode()
        self.send_response(200)
        self.send_header("Access-Control-Allow-Origin", "*")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: object) -> None:
        """pytest's output is no log."""


def test_a_server_that_starts_later_is_asked_again_without_a_stroke(
    browser: Browser, version_dir: Path
) -> None:
    with (
        contextlib.closing(HeldPort()) as port,
        serve_page(version_dir, f"127.0.0.1:{port.number}") as url,
        open_page(browser, url) as visit,
    ):
        visit.settle("Both agree")
        with SlowServer(port.number) as late:
            late.may_answer.set()
            threading.Thread(target=late.serve_forever, daemon=True).start()
            expect(visit.agreement).to_contain_text("they differ", timeout=30_000)
            assert visit.problems == ""
            late.shutdown()


def test_a_slow_engine_is_asked_the_latest_and_nothing_in_between(
    browser: Browser, version_dir: Path
) -> None:
    with SlowServer() as slow:
        threading.Thread(target=slow.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{slow.server_port}"
        with serve_page(version_dir, address) as url, open_page(browser, url) as visit:
            expect(visit.page.locator("#headline strong")).not_to_be_empty(timeout=30_000)
            visit.page.click("#clear")
            visit.draw(*SEVEN)
            expect(visit.page.locator("#headline strong")).not_to_have_text("0")
            pixels = visit.read_pixels()
            slow.may_answer.set()
            expect(visit.agreement).to_contain_text("they differ", timeout=30_000)
            assert len(slow.bodies) == 2, "the first picture, and the last"
            (sent,) = json.loads(slow.bodies[1])["inputs"]["images"]
            assert [level for row in sent for level in row] == pixels
        slow.shutdown()


def turn(x: float, y: float, wide: float, high: float, start: float, end: float) -> Stroke:
    """Part of an ellipse around a place, in degrees from the right, clockwise."""
    angles = np.radians(np.linspace(start, end, 17))
    return [(x + wide * np.cos(one), y + high * np.sin(one)) for one in angles]


DIGITS: list[list[Stroke]] = [
    [turn(0.5, 0.5, 0.2, 0.33, -90, 270)],
    [[(0.38, 0.3), (0.52, 0.17), (0.52, 0.85)]],
    [[*turn(0.5, 0.33, 0.2, 0.17, -170, 40), (0.32, 0.83), (0.72, 0.83)]],
    [[*turn(0.47, 0.33, 0.2, 0.16, -150, 90), *turn(0.47, 0.67, 0.22, 0.18, -90, 150)]],
    [[(0.55, 0.15), (0.28, 0.6), (0.75, 0.6)], [(0.6, 0.4), (0.6, 0.87)]],
    [[(0.7, 0.17), (0.38, 0.17), (0.35, 0.47), *turn(0.5, 0.63, 0.2, 0.19, -120, 150)]],
    [[(0.62, 0.15), (0.42, 0.35), *turn(0.5, 0.65, 0.17, 0.19, -170, 190)]],
    [[(0.28, 0.18), (0.72, 0.18), (0.45, 0.85)], [(0.38, 0.5), (0.68, 0.5)]],
    [[*turn(0.5, 0.33, 0.15, 0.16, 90, 450), *turn(0.5, 0.67, 0.18, 0.18, -90, 270)]],
    [[*turn(0.5, 0.35, 0.17, 0.17, 0, 360), (0.66, 0.4), (0.6, 0.85)]],
]


def test_drawn_digits_are_recognised(visit: Visit) -> None:
    recognised = 0
    for digit, strokes in enumerate(DIGITS):
        visit.page.click("#clear")
        visit.draw(*strokes)
        visit.settle("All three agree")
        recognised += visit.headline == str(digit)
    assert recognised >= 8


def test_make_demo_shows_the_page_and_ends_where_nobody_is_there(
    version_dir: Path,
) -> None:
    if not (ROOT / ".venv" / "bin" / "python").exists():
        pytest.skip("scripts/demo runs in .venv, which make sets up")
    done = subprocess.run(
        [ROOT / "scripts" / "demo"],
        env=os.environ | {"BASE_PATH": str(version_dir.parents[1])},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "The page is at http://127.0.0.1:" in done.stdout
    assert "The page answers" in done.stdout
    assert "The server has drained and stopped." in done.stdout
