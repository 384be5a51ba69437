"""Tokens and certificates are read again when their files change, for both protocols."""

from __future__ import annotations

import contextlib
import http.client
import os
import socket
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

from contract.wire.plumbline_wire import status_pb2
from contract.wire.rpc import GET_MODEL_STATUS
from serving.config.server import TlsConfig, read_tls
from serving.security import make_ssl_context
from tests.serving.certificates import Authority, Pair
from tests.serving.server_process import ServerProcess, call

OLD, NEW = "the-token-of-yesterday", "the-token-of-tomorrow"
FACES = ("grpc_port", "rest_port")


def replace(path: Path, text: str) -> None:
    """Puts another file behind the path, at once and whole."""
    other = path.with_name("other")
    other.write_text(text)
    other.replace(path)


def write_as_secret(folder: Path, name: str, text: str) -> Path:
    """As Kubernetes mounts a secret: the file is a link through a folder that is a link."""
    data = folder / f"..{os.urandom(4).hex()}"
    data.mkdir(parents=True)
    (data / name).write_text(text)
    link = folder / "..data_tmp"
    link.symlink_to(data.name)
    link.replace(folder / "..data")
    path = folder / name
    if not path.is_symlink():
        path.symlink_to(Path("..data", name))
    return path


def describe_tls(pair: Pair, authority: Authority | None = None) -> str:
    """An SSLConfig; with an authority, clients must show a certificate of it."""

    def quote(text: str) -> str:
        return '"' + text.replace("\n", "\\n") + '"'

    text = f"server_key: {quote(pair.key)}\nserver_cert: {quote(pair.cert)}\n"
    if authority is not None:
        text += f"custom_ca: {quote(authority.cert)}\nclient_verify: true\n"
    return text


@contextlib.contextmanager
def serve(folder: Path, *arguments: str) -> Iterator[ServerProcess]:
    """A server of a base path that is empty: who may call is all that is asked."""
    base = folder / "base"
    base.mkdir()
    with ServerProcess(folder, f"--model_base_path={base}", *arguments, rest=True) as server:
        yield server


def is_let_in(server: ServerProcess, token: str, face: str) -> bool:
    """Whether the token opens the protocol: a model that is not there is found missing."""
    if face == "rest_port":
        port = server.addresses["rest_port"]
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        with contextlib.closing(connection):
            headers = {"Authorization": f"Bearer {token}"}
            connection.request("GET", "/v1/models/none", headers=headers)
            return connection.getresponse().status != 401
    with grpc.insecure_channel(server.address) as channel:
        return ask_grpc(channel, token) is not grpc.StatusCode.UNAUTHENTICATED


def ask_grpc(channel: grpc.Channel, token: str = "") -> grpc.StatusCode:
    request = status_pb2.GetModelStatusRequest()
    request.model_spec.name = "none"
    metadata = [("authorization", f"Bearer {token}")] if token else []
    with pytest.raises(grpc.RpcError) as caught:
        call(channel, GET_MODEL_STATUS, request, metadata=metadata)
    code: grpc.StatusCode = caught.value.code()
    return code


def read_certificate(server: ServerProcess, face: str, trust: Authority) -> bytes:
    """The certificate that a port shows now, checked against an authority."""
    context = ssl.create_default_context(cadata=trust.cert)
    context.set_alpn_protocols(["h2", "http/1.1"])
    with (
        socket.create_connection(("127.0.0.1", server.addresses[face]), timeout=20) as plain,
        context.wrap_socket(plain, server_hostname="127.0.0.1") as wrapped,
    ):
        certificate = wrapped.getpeercert(binary_form=True)
    assert certificate
    return certificate


def is_served_by_certificate(
    server: ServerProcess, face: str, trust: Authority, pair: Pair, folder: Path
) -> bool:
    """Whether a client that shows `pair` gets an answer."""
    if face == "grpc_port":
        given = grpc.ssl_channel_credentials(
            trust.cert.encode(), pair.key.encode(), pair.cert.encode()
        )
        with grpc.secure_channel(server.address, given) as channel:
            return ask_grpc(channel) is not grpc.StatusCode.UNAVAILABLE
    context = ssl.create_default_context(cadata=trust.cert)
    (folder / "cert.pem").write_text(pair.cert)
    (folder / "key.pem").write_text(pair.key)
    context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    port = server.addresses["rest_port"]
    connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=20, context=context)
    with contextlib.closing(connection):
        try:
            connection.request("GET", "/v1/models/none")
            return connection.getresponse().status > 0
        except (OSError, http.client.HTTPException):
            return False


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority("plumbline test authority")


@pytest.mark.parametrize("write", [replace, Path.write_text], ids=["replaced", "written over"])
def test_a_new_token_opens_and_the_old_one_no_more(
    tmp_path: Path, write: Callable[[Path, str], object]
) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text(f"{OLD}\n")
    with serve(tmp_path, f"--auth_token_file={tokens}") as server:
        for face in FACES:
            assert is_let_in(server, OLD, face)
            assert not is_let_in(server, NEW, face)
        write(tokens, f"# of the day\n{NEW}\n")
        for face in FACES:
            server.wait_for(lambda face=face: is_let_in(server, NEW, face))
            assert not is_let_in(server, OLD, face)
        assert NEW not in server.log


def test_a_secret_that_kubernetes_swaps_is_read_again(tmp_path: Path) -> None:
    tokens = write_as_secret(tmp_path / "secret", "tokens", f"{OLD}\n")
    with serve(tmp_path, f"--auth_token_file={tokens}") as server:
        assert is_let_in(server, OLD, "rest_port")
        write_as_secret(tmp_path / "secret", "tokens", f"{NEW}\n")
        for face in FACES:
            server.wait_for(lambda face=face: is_let_in(server, NEW, face))


@pytest.mark.parametrize("broken", ["", "short\n", None])
def test_a_token_file_that_cannot_be_used_or_is_gone_changes_nothing_and_is_told_once(
    tmp_path: Path, broken: str | None
) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text(f"{OLD}\n")
    with serve(tmp_path, f"--auth_token_file={tokens}") as server:
        assert is_let_in(server, OLD, "rest_port")
        if broken is None:
            tokens.unlink()
        else:
            replace(tokens, broken)

        def is_told() -> bool:
            assert is_let_in(server, OLD, "rest_port")
            return "stay in force" in server.log

        server.wait_for(is_told)
        assert not is_let_in(server, NEW, "rest_port")
        replace(tokens, f"{NEW}\n")
        server.wait_for(lambda: is_let_in(server, NEW, "rest_port"))
        # gRPC was not asked meanwhile, so one of the two has looked.
        assert server.log.count("stay in force") == 1


def test_connections_that_come_later_see_the_new_certificate(
    tmp_path: Path, authority: Authority
) -> None:
    first, second = authority.issue("first"), authority.issue("second")
    config = tmp_path / "ssl.config"
    config.write_text(describe_tls(first))
    with serve(tmp_path, f"--ssl_config_file={config}") as server:
        before = {face: read_certificate(server, face, authority) for face in FACES}
        assert set(before.values()) == {ssl.PEM_cert_to_DER_cert(first.cert)}
        credentials = grpc.ssl_channel_credentials(authority.cert.encode())
        with grpc.secure_channel(server.address, credentials) as open_before:
            assert ask_grpc(open_before) is grpc.StatusCode.NOT_FOUND
            replace(config, describe_tls(second))
            expected = ssl.PEM_cert_to_DER_cert(second.cert)
            for face in FACES:
                server.wait_for(
                    lambda face=face: read_certificate(server, face, authority) == expected
                )
            assert ask_grpc(open_before) is grpc.StatusCode.NOT_FOUND


def test_an_authority_that_is_replaced_is_trusted_no_more(
    tmp_path: Path, authority: Authority
) -> None:
    ours, theirs = Authority("clients of before"), Authority("clients of now")
    old_client, new_client = ours.issue("old"), theirs.issue("new")
    pair = authority.issue("server")
    config = write_as_secret(tmp_path / "secret", "ssl.config", describe_tls(pair, ours))
    with serve(tmp_path, f"--ssl_config_file={config}") as server:
        for face in FACES:
            assert is_served_by_certificate(server, face, authority, old_client, tmp_path)
            assert not is_served_by_certificate(server, face, authority, new_client, tmp_path)
        write_as_secret(tmp_path / "secret", "ssl.config", describe_tls(pair, theirs))
        for face in FACES:
            server.wait_for(
                lambda face=face: is_served_by_certificate(
                    server, face, authority, new_client, tmp_path
                )
            )
            assert not is_served_by_certificate(server, face, authority, old_client, tmp_path)


@pytest.mark.parametrize("broken", ["another key", "no config", "half a file"])
def test_certificates_that_cannot_be_used_change_nothing_and_are_told_once(
    tmp_path: Path, authority: Authority, broken: str
) -> None:
    pair = authority.issue("server")
    good = describe_tls(pair)
    bad = {
        "another key": describe_tls(Pair(pair.cert, authority.issue("x").key)),
        "no config": "nonsense {",
        "half a file": good[: len(good) // 2],
    }[broken]
    config = tmp_path / "ssl.config"
    config.write_text(good)
    with serve(tmp_path, f"--ssl_config_file={config}") as server:
        before = read_certificate(server, "rest_port", authority)
        replace(config, bad)

        def is_told() -> bool:
            assert read_certificate(server, "rest_port", authority) == before
            return "stay in force" in server.log

        server.wait_for(is_told)
        assert server.log.count("stay in force") == 1
        assert "PRIVATE KEY" not in server.log
        assert read_certificate(server, "grpc_port", authority) == before


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1")
def test_a_context_offers_the_protocols_of_its_port_and_nothing_older_than_tls_1_2(
    authority: Authority, tmp_path: Path
) -> None:
    pair = authority.issue("server")
    path = tmp_path / "ssl.config"
    path.write_text(describe_tls(pair))
    for tls in (TlsConfig(pair.key, pair.cert), read_tls(path)):
        server = make_ssl_context(tls, alpn=("h2",))
        assert shake_hands(server, authority).selected_alpn_protocol() == "h2"
        with pytest.raises(ssl.SSLError):
            shake_hands(server, authority, newest=ssl.TLSVersion.TLSv1_1)


def shake_hands(
    server: ssl.SSLContext, authority: Authority, newest: ssl.TLSVersion | None = None
) -> ssl.SSLObject:
    """The client's end of a handshake in memory, as an event loop does it."""
    context = ssl.create_default_context(cadata=authority.cert)
    context.set_alpn_protocols(["http/1.1", "h2"])
    if newest is not None:
        context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
        context.maximum_version = newest
        context.set_ciphers("ALL:@SECLEVEL=0")
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = context.wrap_bio(down, up, server_hostname="127.0.0.1")
    ends = (client, server.wrap_bio(up, down, server_side=True))
    done: set[ssl.SSLObject] = set()
    while len(done) < 2:
        for end in ends:
            with contextlib.suppress(ssl.SSLWantReadError):
                end.do_handshake()
                done.add(end)
    return client
