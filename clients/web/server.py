"""A web server for pages of ours, on this machine and for whoever was told its address.

Two commands show a page: `demo` to a person, `parity` to a browser that nobody sees. A browser
also runs pages of strangers, which may send requests to any port of this machine. So everything
lies below a token that is made anew each time, and a request must name the loopback address as its
host: a stranger's name that is made to point here (DNS rebinding) does not do.
"""

from __future__ import annotations

import dataclasses
import http.server
import json
import secrets
import socketserver
import threading
from collections.abc import Callable, Mapping, Sequence
from http import HTTPStatus
from pathlib import Path
from urllib.parse import unquote, urlsplit

from contract.console.terminal import remark
from contract.errors import PlumblineError, UnimplementedError

LOOPBACK = "127.0.0.1"

_PAGES = (Path(__file__).with_name("dist"), Path(__file__).resolve().parents[2] / "web" / "dist")
"""Where the built pages are: of a wheel, and of a checkout."""

_INDEX = "index.html"
_MAX_BODY_BYTES = 64 * 2**20
_IDLE_S = 60
_POLL_S = 0.05  # how long `close` waits at most for the thread that accepts connections

_CONTENT_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".map": "application/json",
    ".png": "image/png",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
    ".wasm": "application/wasm",
}
"""What a page consists of; files of other names are not served. The system's own table
(`mimetypes`) differs between machines, and a module script of a wrong type does not run."""


@dataclasses.dataclass(frozen=True, slots=True)
class Request:
    """What a handler is asked.

    Attributes:
        path: Below the token, decoded and without a query: "answers".
        body: Empty for GET.
    """

    path: str
    body: bytes


@dataclasses.dataclass(frozen=True, slots=True)
class Response:
    """What a handler answers.

    Attributes:
        body: As it is sent.
        content_type: Of what it is, decoded.
        status: Of HTTP.
        encoding: How the body is compressed: "gzip", "" for not at all.
    """

    body: bytes = b""
    content_type: str = "application/octet-stream"
    status: HTTPStatus = HTTPStatus.OK
    encoding: str = ""


Handler = Callable[[Request], Response]


def find_page() -> Path:
    """The folder of the built page.

    Raises:
        UnimplementedError: It was not built.
    """
    for folder in _PAGES:
        if (folder / _INDEX).is_file():
            return folder
    raise UnimplementedError(
        f"{_PAGES[1]} has no {_INDEX}: the page that runs models in a browser is built by "
        "`make web`, which needs Node.js, in a checkout; wheels of `make dist` carry it"
    )


class WebServer:
    """Serves the files of a folder, and what handlers answer, below a token.

    Args:
        folder: Its files, by their names below it; `index.html` for the folder itself.
        handlers: Method (GET or POST) and path below the token to who answers. They go before
            files, and run in threads, several at a time.
        connect_to: Origins (`http://127.0.0.1:8501`) that the page may send requests to, beside
            this server.
        port: 0 takes one that is free.
        max_body_bytes: Larger requests are refused unread.

    Raises:
        OSError: The port is taken.

    Example:
        >>> handlers = {("POST", "answers"): take}                   # doctest: +SKIP
        >>> with WebServer(find_page(), handlers) as server:         # doctest: +SKIP
        ...     webbrowser.open(server.url)
    """

    def __init__(
        self,
        folder: Path,
        handlers: Mapping[tuple[str, str], Handler],
        *,
        connect_to: Sequence[str] = (),
        port: int = 0,
        max_body_bytes: int = _MAX_BODY_BYTES,
    ) -> None:
        self._token = secrets.token_urlsafe(16)
        self._site = _Site(folder.resolve(), handlers, self._token, max_body_bytes)
        self._server = _Server((LOOPBACK, port), self._site, _make_headers(connect_to))
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(_POLL_S,), name="web server", daemon=True
        )

    @property
    def url(self) -> str:
        """Where the page is: `http://127.0.0.1:PORT/TOKEN/`."""
        return f"{self.origin}/{self._token}/"

    @property
    def origin(self) -> str:
        """What the page's own requests carry as `Origin`."""
        return f"http://{LOOPBACK}:{self._server.server_port}"

    def __enter__(self) -> WebServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@dataclasses.dataclass(frozen=True, slots=True)
class _Site:
    """What is served, whatever the connection."""

    folder: Path
    handlers: Mapping[tuple[str, str], Handler]
    token: str
    max_body_bytes: int

    def answer(self, method: str, target: str, body: bytes, *, takes_gzip: bool) -> Response:
        token, _, path = unquote(urlsplit(target).path).removeprefix("/").partition("/")
        # compare_digest takes ASCII alone
        if not secrets.compare_digest(token.encode(), self.token.encode()):
            return _refuse(HTTPStatus.NOT_FOUND, "no such page; is the address whole?")
        handler = self.handlers.get((method, path))
        if handler is not None:
            return _run(handler, Request(path, body))
        if method != "GET":
            return _refuse(HTTPStatus.METHOD_NOT_ALLOWED, f"{method} of {path}")
        return self._read(path or _INDEX, takes_gzip)

    def _read(self, path: str, takes_gzip: bool) -> Response:
        content_type = _CONTENT_TYPES.get(Path(path).suffix)
        try:
            found = (self.folder / path).resolve()
            if content_type is None or not found.is_relative_to(self.folder):
                return _refuse(HTTPStatus.NOT_FOUND, f"no file {path}")
            packed = found.with_name(f"{found.name}.gz")  # as `make web` leaves it
            if takes_gzip and packed.is_file():
                return Response(packed.read_bytes(), content_type, encoding="gzip")
            return Response(found.read_bytes(), content_type)
        except (OSError, ValueError):  # ValueError: a name with a NUL
            return _refuse(HTTPStatus.NOT_FOUND, f"no file {path}")


def _run(handler: Handler, request: Request) -> Response:
    try:
        return handler(request)
    except PlumblineError as error:
        return _refuse(HTTPStatus.BAD_REQUEST, error.message)
    except Exception as error:  # the rim: a connection must be answered
        remark(f"internal error in {request.path}: {type(error).__name__}: {error}")
        return _refuse(HTTPStatus.INTERNAL_SERVER_ERROR, "internal error")


def _refuse(status: HTTPStatus, reason: str) -> Response:
    return Response(json.dumps({"error": reason}).encode(), "application/json", status)


def _make_headers(connect_to: Sequence[str]) -> dict[str, str]:
    """What goes with every answer: the page runs its own scripts and nobody else's."""
    policy = {
        "default-src": "'none'",
        "script-src": "'self' 'wasm-unsafe-eval'",  # WebAssembly, and no eval of JavaScript
        "style-src": "'self'",
        "img-src": "'self' blob: data:",
        "connect-src": " ".join(["'self'", *connect_to]),
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    return {
        "Content-Security-Policy": "; ".join(f"{key} {value}" for key, value in policy.items()),
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",  # the address holds the token
        "Cross-Origin-Resource-Policy": "same-origin",
        "Cross-Origin-Opener-Policy": "same-origin",
        "Cache-Control": "no-store",
    }


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, address: tuple[str, int], site: _Site, headers: Mapping[str, str]) -> None:
        super().__init__(address, _Connection)
        self.site = site
        self.headers = headers
        # Without the port where it is HTTP's own, as browsers send it.
        names = (f"{LOOPBACK}:{self.server_port}", f"localhost:{self.server_port}")
        self.hosts = frozenset(names if self.server_port != 80 else (*names, LOOPBACK, "localhost"))

    def server_bind(self) -> None:
        # HTTPServer's own asks for the name of the address, which may take seconds.
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = LOOPBACK, self.server_address[1]

    def handle_error(self, request: object, client_address: object) -> None:
        """A browser that went away has left nothing to say."""


class _Connection(http.server.BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "plumbline", ""
    timeout = _IDLE_S
    wbufsize = -1  # head and body in one write
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        if self._admits():
            self._answer(b"")

    def do_POST(self) -> None:
        if not self._admits():
            return
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdigit()):
            self._refuse(HTTPStatus.LENGTH_REQUIRED, "POST needs a Content-Length")
        elif int(length) > self.server.site.max_body_bytes:
            most = self.server.site.max_body_bytes
            self._refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"{length} bytes, at most {most}")
        elif len(body := self.rfile.read(int(length))) < int(length):
            self.close_connection = True  # cut off: nobody listens
        else:
            self._answer(body)

    def _answer(self, body: bytes) -> None:
        takes_gzip = "gzip" in self.headers.get("Accept-Encoding", "")
        site = self.server.site
        self._send(site.answer(self.command, self.path, body, takes_gzip=takes_gzip))

    def _admits(self) -> bool:
        """Whether the request is for this machine, and of a page of this server if of any."""
        host, origin = self.headers.get("Host", "").lower(), self.headers.get("Origin")
        if host not in self.server.hosts:
            self._refuse(HTTPStatus.FORBIDDEN, f"the host {host!r} is not this machine")
        elif origin is not None and origin.removeprefix("http://") not in self.server.hosts:
            self._refuse(HTTPStatus.FORBIDDEN, f"the page at {origin!r} is not of this server")
        else:
            return True
        return False

    def _refuse(self, status: HTTPStatus, reason: str) -> None:
        self.close_connection = True  # a body may be unread
        self._send(_refuse(status, reason))

    def _send(self, response: Response) -> None:
        self.send_response(response.status)
        self.send_header("Content-Type", response.content_type)
        self.send_header("Content-Length", str(len(response.body)))
        if response.encoding:
            self.send_header("Content-Encoding", response.encoding)
        for name, value in self.server.headers.items():
            self.send_header(name, value)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(response.body)

    def log_message(self, *_: object) -> None:
        """stderr is the command's own."""
