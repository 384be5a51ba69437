"""`demo`: a page on which to draw, or drop a picture, and to see every engine answer at once."""

from __future__ import annotations

import argparse
import os
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from clients.targets import DEFAULT_REST_SERVER, choose_model_name, is_rest
from contract import layout
from contract.console.exits import ExitCode
from contract.console.terminal import print_json, remark
from contract.errors import ConfigError
from contract.lite.runtime import hide_delegate_notes

if TYPE_CHECKING:
    from clients.demo.facts import Version
    from clients.web.server import Handler, Request, Response

_MODEL = "model.tflite"  # on the page; of the version it is the variant web


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command to the parser."""
    parser = verbs.add_parser(
        "demo",
        help="draw or drop a picture, and see all engines answer",
        description=f"{__doc__} Serves it on this machine alone, until Ctrl-C.",
    )
    parser.add_argument(
        "--version_dir",
        type=Path,
        required=True,
        metavar="PATH",
        help="a version directory, or a base path for its newest version",
    )
    parser.add_argument(
        "--server",
        default=f"http://{DEFAULT_REST_SERVER}",
        metavar="ADDRESS",
        help="host:port or URL of REST, started with --rest_api_enable_cors_support "
        "(default %(default)s)",
    )
    parser.add_argument(
        "--model_name", default="", metavar="NAME", help="default: the version directory's"
    )
    parser.add_argument(
        "--page_port", type=int, default=0, metavar="PORT", help="of the page; default: a free one"
    )
    parser.add_argument(
        "--no_browser",
        action="store_true",
        help="print the page's address only; so it is, too, where there is no display",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> ExitCode:
    """Serves the page until Ctrl-C."""
    from clients.demo.facts import Version  # other commands do without an HTTP server
    from clients.web.server import WebServer, find_page

    server = _read_server(args.server)
    directory = layout.find_version_dir(args.version_dir)
    folder = find_page()
    with hide_delegate_notes():
        version = Version(directory, server=server, model_name=choose_model_name(args))
    try:
        with WebServer(
            folder, _list_handlers(version), connect_to=[server], port=args.page_port
        ) as page:
            if args.json:
                print_json({"url": page.url})
            else:
                print(f"The page is at {page.url} (Ctrl-C ends it)", flush=True)  # noqa: T201
            if not args.no_browser:
                _open(page.url)
            threading.Event().wait()
    finally:
        if version.predictor is not None:
            version.predictor.close()
    return ExitCode.DONE


def _list_handlers(version: Version) -> dict[tuple[str, str], Handler]:
    from clients.demo.engine import JSON, Engine
    from clients.web.server import Response

    facts = Response(msgspec.json.encode(version.facts), JSON)

    def send_examples(_: Request) -> Response:
        return Response(msgspec.json.encode(version.examples), JSON)

    handlers: dict[tuple[str, str], Handler] = {
        ("GET", "facts.json"): lambda _: facts,
        ("GET", "examples.json"): send_examples,
    }
    if version.predictor is not None:
        handlers["POST", "predict"] = Engine(version.predictor).predict
    if version.web_model is not None:
        model = version.web_model
        handlers["GET", _MODEL] = lambda _: Response(model.read_bytes())
    return handlers


def _read_server(address: str) -> str:
    """The origin that the page may ask."""
    text = (address if is_rest(address) else f"http://{address}").rstrip("/")
    scheme, _, host = text.partition("://")
    if not host or set(host) & set("/?#@;,'\" "):
        raise ConfigError(f"--server {address}: give host:port of REST, such as 127.0.0.1:8501")
    return f"{scheme}://{host}"


def _open(url: str) -> None:
    """Opens a browser where somebody sees it; a browser in a terminal runs no model."""
    has_display = sys.platform in ("darwin", "win32") or any(
        os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY")
    )
    if not has_display or os.environ.get("CI"):
        return
    import webbrowser

    if not webbrowser.open(url):
        remark("no browser could be opened; open the address yourself")
