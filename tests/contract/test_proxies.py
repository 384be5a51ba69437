"""Which hosts are this machine, and which proxy stands before the others."""

from __future__ import annotations

import pytest

from contract.proxies import (
    find_grpc_proxy,
    find_http_proxy,
    is_local,
    is_local_target,
    list_channel_options,
    name_grpc_proxy,
)

PROXY = "http://user:secret@proxy.example:3128"


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment without proxies."""
    import os

    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        *((host, True) for host in ("127.0.0.1", "127.8.9.1", "::1", "[::1]", "LOCALHOST")),
        *((host, True) for host in ("a.localhost", "localhost.", "::ffff:127.0.0.1", "0.0.0.0")),
        *((host, False) for host in ("10.0.0.1", "localhost.example.org", "notlocalhost", "::2")),
    ],
)
def test_a_host_is_this_machine_by_its_name_or_address(host: str, expected: bool) -> None:
    assert is_local(host) is expected


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        *((one, True) for one in ("unix:/run/a", "unix-abstract:a", "localhost:8500", "[::1]:1")),
        *((one, True) for one in ("dns:///localhost:1", "ipv4:127.0.0.1:1", "ipv6:[::1]:1")),
        *((one, True) for one in ("dns:localhost", "ipv4:127.0.0.1:1,127.0.0.2:1", "127.0.0.1")),
        *((one, False) for one in ("models.example:8500", "dns:///models:1", "ipv4:10.0.0.1:1")),
        *((one, False) for one in ("dns://8.8.8.8/models:1", "[fd00::2]:8500")),
    ],
)
def test_a_target_of_grpc_is_this_machine_in_every_way_to_write_it(
    target: str, expected: bool
) -> None:
    assert is_local_target(target) is expected
    assert list_channel_options(target) == ([("grpc.enable_http_proxy", 0)] if expected else [])


@pytest.mark.parametrize(
    ("environment", "variable"),
    [
        ({"http_proxy": PROXY}, "http_proxy"),
        ({"https_proxy": PROXY, "http_proxy": "http://other:1"}, "https_proxy"),
        ({"grpc_proxy": PROXY, "https_proxy": "http://other:1"}, "grpc_proxy"),
        ({"grpc_proxy": "", "http_proxy": PROXY}, None),
        ({"HTTP_PROXY": PROXY}, None),
        ({"all_proxy": PROXY}, None),
        ({"http_proxy": "socks5://proxy.example:1"}, None),
        ({"http_proxy": PROXY, "no_proxy": "other, example.org"}, None),
        ({"http_proxy": PROXY, "no_proxy": "*"}, None),
        ({"http_proxy": PROXY, "no_grpc_proxy": "x", "no_proxy": "example.org"}, "http_proxy"),
    ],
)
def test_the_proxy_of_grpc_is_the_one_that_grpcio_takes(
    environment: dict[str, str], variable: str | None
) -> None:
    found = find_grpc_proxy("models.example.org:8500", environment)
    assert (None if found is None else found.variable) == variable
    assert found is None or found.url == "http://…@proxy.example:3128"


def test_a_network_in_no_proxy_is_reached_without() -> None:
    environment = {"http_proxy": PROXY, "no_proxy": "10.0.0.0/8"}
    assert find_grpc_proxy("10.1.2.3:8500", environment) is None
    assert find_grpc_proxy("11.1.2.3:8500", environment) is not None


@pytest.mark.parametrize("variable", ["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"])
def test_the_proxy_of_http_is_found_in_either_case(
    monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    if variable == "HTTP_PROXY":
        monkeypatch.delenv("REQUEST_METHOD", raising=False)
    monkeypatch.setenv(variable, PROXY)
    found = find_http_proxy("http://models.example.org:8501")
    assert found is not None
    assert found.variable == variable
    assert find_http_proxy("http://127.0.0.1:8501") is None
    monkeypatch.setenv("no_proxy", "example.org")
    assert find_http_proxy("http://models.example.org:8501") is None


def test_what_a_failure_says_names_the_proxy_and_no_password(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("http_proxy", PROXY)
    text = name_grpc_proxy("models.example.org:8500")
    assert "http_proxy" in text
    assert "no_proxy=models.example.org" in text
    assert "secret" not in text
    assert name_grpc_proxy("localhost:8500") == ""
