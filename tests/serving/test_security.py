"""Nobody gets in without a certificate or a token where one is wanted; probes always do."""

from __future__ import annotations

import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from contract.errors import ConfigError, UnauthenticatedError
from contract.wire.plumbline_wire import health_pb2, status_pb2
from contract.wire.rpc import GET_MODEL_STATUS, HEALTH_CHECK
from serving.config.server import TlsConfig
from serving.security import check_token, make_ssl_context
from tests.serving.certificates import Authority, Pair
from tests.serving.server_process import ServerProcess, call

TOKEN = "correct-horse-battery-staple"
OTHER_TOKEN = "another-token-for-another-team"
STATUS_PATH = "/v1/models/mlp"


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority("plumbline test authority")


@pytest.fixture(scope="module")
def server_pair(authority: Authority) -> Pair:
    return authority.issue("server")


def write_ssl_config(path: Path, pair: Pair, authority: Authority, *, verify: bool) -> Path:
    def quote(text: str) -> str:
        return '"' + text.replace("\n", "\\n") + '"'

    path.write_text(
        f"server_key: {quote(pair.key)}\nserver_cert: {quote(pair.cert)}\n"
        f"custom_ca: {quote(authority.cert)}\nclient_verify: {str(verify).lower()}\n"
    )
    return path


def get_code(url: str, context: ssl.SSLContext | None = None, **headers: str) -> int:
    request = urllib.request.Request(url, headers=headers)
    try:
        with urllib.request.urlopen(request, context=context, timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def ask_status(channel: grpc.Channel, *metadata: tuple[str, str]) -> int:
    request = status_pb2.GetModelStatusRequest()
    request.model_spec.name = "mlp"
    return len(call(channel, GET_MODEL_STATUS, request, metadata=metadata).model_version_status)


@pytest.fixture(scope="module")
def mutual_tls_server(
    published_mlp: Path,
    tmp_path_factory: pytest.TempPathFactory,
    authority: Authority,
    server_pair: Pair,
) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("tls")
    config = write_ssl_config(folder / "ssl.config", server_pair, authority, verify=True)
    with ServerProcess(
        folder,
        "--model_name=mlp",
        f"--model_base_path={published_mlp / 'mlp'}",
        f"--ssl_config_file={config}",
        rest=True,
    ) as server:
        server.wait_for(lambda: "Successfully loaded" in server.log)
        yield server


def make_channel(server: ServerProcess, authority: Authority, pair: Pair | None) -> grpc.Channel:
    credentials = grpc.ssl_channel_credentials(
        authority.cert.encode(),
        pair.key.encode() if pair else None,
        pair.cert.encode() if pair else None,
    )
    return grpc.secure_channel(server.address, credentials)


def make_context(tmp_path: Path, authority: Authority, pair: Pair | None) -> ssl.SSLContext:
    context = ssl.create_default_context(cadata=authority.cert)
    if pair:
        (tmp_path / "cert.pem").write_text(pair.cert)
        (tmp_path / "key.pem").write_text(pair.key)
        context.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    return context


def test_a_client_with_a_certificate_is_served_over_both_apis(
    mutual_tls_server: ServerProcess, authority: Authority, tmp_path: Path
) -> None:
    pair = authority.issue("client")
    with make_channel(mutual_tls_server, authority, pair) as channel:
        assert ask_status(channel) == 1
    url = mutual_tls_server.url.replace("http:", "https:") + STATUS_PATH
    assert get_code(url, make_context(tmp_path, authority, pair)) == 200


@pytest.mark.parametrize("stranger", [False, True])
def test_a_client_without_a_certificate_of_the_authority_is_turned_away(
    mutual_tls_server: ServerProcess, authority: Authority, tmp_path: Path, stranger: bool
) -> None:
    pair = Authority("somebody else").issue("stranger") if stranger else None
    channel = make_channel(mutual_tls_server, authority, pair)
    with channel, pytest.raises(grpc.RpcError) as caught:
        ask_status(channel)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    url = mutual_tls_server.url.replace("http:", "https:") + STATUS_PATH
    with pytest.raises(OSError):
        get_code(url, make_context(tmp_path, authority, pair))


def test_plain_text_is_not_spoken_where_tls_is(mutual_tls_server: ServerProcess) -> None:
    channel = grpc.insecure_channel(mutual_tls_server.address)
    with channel, pytest.raises(grpc.RpcError) as caught:
        ask_status(channel)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    with pytest.raises(OSError):
        get_code(mutual_tls_server.url + STATUS_PATH)


@pytest.fixture(scope="module")
def token_server(
    published_mlp: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("token")
    (folder / "tokens").write_text(f"{TOKEN}\n{OTHER_TOKEN}\n")
    with ServerProcess(
        folder,
        "--model_name=mlp",
        f"--model_base_path={published_mlp / 'mlp'}",
        f"--auth_token_file={folder / 'tokens'}",
        rest=True,
    ) as server:
        yield server.wait_until_ready()


@pytest.mark.parametrize("token", [TOKEN, OTHER_TOKEN])
def test_any_token_of_the_file_opens_both_apis(token_server: ServerProcess, token: str) -> None:
    with grpc.insecure_channel(token_server.address) as channel:
        assert ask_status(channel, ("authorization", f"Bearer {token}")) == 1
    url = token_server.url + STATUS_PATH
    assert get_code(url, Authorization=f"bearer {token}") == 200


@pytest.mark.parametrize("header", [None, "", f"Basic {TOKEN}", f"Bearer {TOKEN}x", "Bearer "])
def test_without_a_token_both_faces_refuse(token_server: ServerProcess, header: str | None) -> None:
    metadata = () if header is None else (("authorization", header),)
    channel = grpc.insecure_channel(token_server.address)
    with channel, pytest.raises(grpc.RpcError) as caught:
        ask_status(channel, *metadata)
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
    headers = {} if header is None else {"Authorization": header}
    for path in (STATUS_PATH, "/monitoring/prometheus/metrics", "/v1/nonsense"):
        assert get_code(token_server.url + path, **headers) == 401


def test_probes_need_no_token(token_server: ServerProcess) -> None:
    assert get_code(token_server.url + "/livez") == 200
    assert get_code(token_server.url + "/readyz") == 200
    with grpc.insecure_channel(token_server.address) as channel:
        answer = call(channel, HEALTH_CHECK, health_pb2.HealthCheckRequest())
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_the_log_holds_no_token(token_server: ServerProcess) -> None:
    assert TOKEN not in token_server.log


def test_a_refusal_never_repeats_what_was_given() -> None:
    with pytest.raises(UnauthenticatedError) as caught:
        check_token((TOKEN,), "Bearer my-password")
    assert "my-password" not in caught.value.message
    check_token((TOKEN,), f"Bearer {TOKEN}")


def test_a_key_of_another_certificate_is_refused(authority: Authority, server_pair: Pair) -> None:
    with pytest.raises(ConfigError, match="--ssl_config_file"):
        make_ssl_context(TlsConfig(authority.issue("x").key, server_pair.cert))


def test_non_ascii_credentials_are_refused_not_a_crash() -> None:
    with pytest.raises(UnauthenticatedError):
        check_token((TOKEN,), "Bearer ÿ\udcff")
