"""The server of pages: whole to who was told its address, and shut to everybody else."""

from __future__ import annotations

import gzip
import http.client
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from clients.web.server import Request, Response, WebServer
from contract.errors import RequestError


def echo(request: Request) -> Response:
    return Response(request.body[::-1], "text/plain")


def refuse(_: Request) -> Response:
    raise RequestError("three rows, and two were asked for")


def fail(_: Request) -> Response:
    raise ZeroDivisionError("a secret")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[WebServer]:
    folder = tmp_path / "page"
    (folder / "wasm").mkdir(parents=True)
    (folder / "index.html").write_text("<p>page")
    (folder / "wasm" / "litert.wasm").write_bytes(b"\0asm")
    (folder / "notes.py").write_text("kept")
    (tmp_path / "outside.txt").write_text("kept")
    (folder / "link.txt").symlink_to(tmp_path / "outside.txt")
    handlers = {("POST", "echo"): echo, ("POST", "refuse"): refuse, ("GET", "fail"): fail}
    with WebServer(
        folder, handlers, connect_to=["http://127.0.0.1:8501"], max_body_bytes=1000
    ) as running:
        yield running


def ask(
    server: WebServer,
    path: str,
    *,
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
) -> tuple[int, bytes, http.client.HTTPMessage]:
    """One request for a path below the token, or for an absolute one."""
    base = urlsplit(server.url)
    assert base.hostname is not None
    connection = http.client.HTTPConnection(base.hostname, base.port, timeout=10)
    try:
        target = path if path.startswith("/") else base.path + path
        connection.request("GET" if body is None else "POST", target, body, dict(headers or {}))
        answer = connection.getresponse()
        return answer.status, answer.read(), answer.msg
    finally:
        connection.close()


def test_files_have_the_types_that_browsers_ask_for(server: WebServer) -> None:
    status, body, headers = ask(server, "wasm/litert.wasm")
    assert (status, body, headers["Content-Type"]) == (200, b"\0asm", "application/wasm")
    assert ask(server, "")[:2] == (200, b"<p>page")


def test_files_come_compressed_to_who_takes_that(server: WebServer) -> None:
    folder = server._site.folder
    (folder / "wasm" / "litert.wasm.gz").write_bytes(gzip.compress(b"\0asm"))
    plain = ask(server, "wasm/litert.wasm")
    packed = ask(server, "wasm/litert.wasm", headers={"Accept-Encoding": "gzip, deflate"})
    assert plain[1] == gzip.decompress(packed[1]) == b"\0asm"
    assert [one[2]["Content-Encoding"] for one in (plain, packed)] == [None, "gzip"]
    assert {one[2]["Content-Type"] for one in (plain, packed)} == {"application/wasm"}


def test_handlers_get_the_body_and_answer(server: WebServer) -> None:
    assert ask(server, "echo", body=b"abc")[:2] == (200, b"cba")


def test_the_page_may_ask_itself_and_what_was_named_alone(server: WebServer) -> None:
    policy = ask(server, "")[2]["Content-Security-Policy"]
    assert "connect-src 'self' http://127.0.0.1:8501;" in policy
    assert "default-src 'none'" in policy


@pytest.mark.parametrize("path", ["/", "/wrong/", "/wrong/echo", "/index.html", "/%FF/"])
def test_without_the_token_nothing_is_there(server: WebServer, path: str) -> None:
    assert ask(server, path)[0] == 404
    assert ask(server, path, body=b"abc")[0] == 404


@pytest.mark.parametrize(
    "path",
    [
        *("../outside.txt", "%2e%2e/outside.txt", "..%2foutside.txt", "/../outside.txt"),
        *("link.txt", "notes.py", "wasm", "none.html", "a%00.html", "//outside.txt"),
    ],
)
def test_nothing_but_files_of_the_page_is_served(server: WebServer, path: str) -> None:
    status, body, _ = ask(server, path)
    assert status == 404
    assert b"kept" not in body


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},
        {"Host": "127.0.0.1:1"},
        {"Host": ""},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
    ],
)
def test_other_names_and_other_pages_are_refused(
    server: WebServer, headers: dict[str, str]
) -> None:
    assert ask(server, "echo", body=b"abc", headers=headers)[0] == 403
    assert ask(server, "", headers=headers)[0] == 403


def test_its_own_page_is_heard(server: WebServer) -> None:
    assert ask(server, "echo", body=b"abc", headers={"Origin": server.origin})[0] == 200


def test_large_bodies_are_refused_unread(server: WebServer) -> None:
    status, body, _ = ask(server, "echo", body=b"x" * 1001)
    assert (status, body) == (413, b'{"error": "1001 bytes, at most 1000"}')


def test_errors_are_sentences_and_bugs_say_nothing_to_strangers(
    server: WebServer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert b"three rows" in ask(server, "refuse", body=b"")[1]
    status, body, _ = ask(server, "fail")
    assert (status, body) == (500, b'{"error": "internal error"}')
    assert "ZeroDivisionError: a secret" in capsys.readouterr().err


def test_every_server_has_a_token_of_its_own(tmp_path: Path) -> None:
    with WebServer(tmp_path, {}) as first, WebServer(tmp_path, {}) as second:
        assert urlsplit(first.url).path != urlsplit(second.url).path
