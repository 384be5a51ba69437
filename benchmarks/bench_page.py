"""The page of `demo` in Chromium: seconds to the first answer, from stroke to bars, bytes.

Run: make bench-page  (needs Chromium and `make web`; ARGS="--model cnn" for the other one)
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import Browser, sync_playwright

from clients.web.browser import find_browser
from tests.serving.server_process import ServerProcess
from tests.web.pages import ENGINES, ROOT, open_page, serve_page

CORS = "--rest_api_enable_cors_support"
OPENINGS, DRAWINGS = 5, 10
ZIGZAG = [(0.2, 0.2), (0.8, 0.25), (0.3, 0.5), (0.75, 0.6), (0.2, 0.85)]


def open_often(browser: Browser, url: str) -> dict[str, list[float]]:
    """Milliseconds from navigation to each engine's first bars, in tabs without a cache."""
    found: dict[str, list[float]] = {name: [] for name in ENGINES}
    for _ in range(OPENINGS):
        with open_page(browser, url) as visit:
            visit.wait_for_answer()
            for name in ENGINES:
                first = f"window.delays.find(([name]) => name === '{name}')"
                visit.page.wait_for_function(first)
                _, start, duration = visit.page.evaluate(first)
                found[name].append(start + duration)
    return found


def draw_often(browser: Browser, url: str) -> dict[str, list[float]]:
    """Milliseconds from a move of the pen to each engine's bars."""
    with open_page(browser, url) as visit:
        visit.wait_for_answer()
        visit.draw(ZIGZAG)  # warm
        visit.page.evaluate("window.delays.length = 0")
        for _ in range(DRAWINGS):
            visit.page.click("#clear")
            visit.draw(ZIGZAG)
        delays = visit.page.evaluate("window.delays")
    return {name: [delay for one, _, delay in delays if one == name] for name in ENGINES}


def weigh(browser: Browser, url: str) -> int:
    """Bytes that opening the page brings over the wire, model and examples included."""
    with browser.new_context() as context:
        page = context.new_page()
        session = context.new_cdp_session(page)
        session.send("Network.enable")
        sizes: list[int] = []
        session.on("Network.loadingFinished", lambda one: sizes.append(one["encodedDataLength"]))
        page.goto(url, wait_until="networkidle")
        return sum(sizes)


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="mlp", choices=["mlp", "cnn"])
    parser.add_argument("--base_path", type=Path, help="default: models/MODEL")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    base_path = (args.base_path or ROOT / "models" / args.model).resolve()
    if not base_path.is_dir():
        sys.exit(f"{base_path} holds no version; make one first: make export MODEL={args.model}")
    flags = (CORS, f"--model_name={args.model}", f"--model_base_path={base_path}")
    with (
        tempfile.TemporaryDirectory() as folder,
        ServerProcess(Path(folder), *flags, rest=True) as server,
        sync_playwright() as playwright,
    ):
        browser = playwright.chromium.launch(
            executable_path=find_browser(), args=["--no-sandbox"] if os.geteuid() == 0 else []
        )
        server.wait_until_ready()
        with serve_page(base_path, server.url) as url:
            first, drawn = open_often(browser, url), draw_often(browser, url)
            num_bytes = weigh(browser, url)
        browser.close()
    if args.json:
        print(json.dumps({"first_ms": first, "stroke_ms": drawn, "num_bytes": num_bytes}))
        return
    print(f"{'':10} {'first answer ms':>16} {'stroke to bars ms':>18} {'p90':>6} {'answers':>8}")
    for name in ENGINES:
        tenth = statistics.quantiles(drawn[name], n=10)[-1]
        print(
            f"{name:10} {statistics.median(first[name]):16.0f} "
            f"{statistics.median(drawn[name]):18.1f} {tenth:6.1f} {len(drawn[name]):8}"
        )
    print(f"{num_bytes / 2**20:.2f} MiB over the wire, the model and its examples included")


if __name__ == "__main__":
    main()
