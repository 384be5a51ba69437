"""Where `--host` listens: every way to write it, on both ports, with one process and several."""

from __future__ import annotations

import socket
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from serving.config.server import parse_config
from serving.transport.listener import bind_addresses, bind_tcp, find_port
from tests.serving.server_process import ServerProcess, run_embedded

LOOPBACKS = {"127.0.0.1": socket.AF_INET, "::1": socket.AF_INET6}


def has_ipv6() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


def find_families(port: int) -> set[str]:
    """The loopback addresses at which somebody listens."""
    found = set()
    for host, family in LOOPBACKS.items():
        with socket.socket(family) as one:
            if one.connect_ex((host, port)) == 0:
                found.add(host)
    return found


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")
@pytest.mark.parametrize(
    ("host", "workers", "expected"),
    [
        ("[::]", 1, set(LOOPBACKS)),
        ("::", 1, set(LOOPBACKS)),
        ("*", 2, set(LOOPBACKS)),
        ("0.0.0.0", 1, {"127.0.0.1"}),
        ("[::1]", 1, {"::1"}),
    ],
)
def test_both_ports_listen_where_the_host_says(
    tmp_path: Path, host: str, workers: int, expected: set[str]
) -> None:
    (tmp_path / "models").mkdir()
    flags = (f"--host={host}", f"--workers={workers}", f"--model_base_path={tmp_path / 'models'}")
    with ServerProcess(tmp_path, *flags, rest=True) as server:
        for port in (server.addresses["grpc_port"], server.addresses["rest_port"]):
            assert find_families(port) == expected
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        for one in expected:
            url = (
                f"http://{f'[{one}]' if ':' in one else one}:{server.addresses['rest_port']}/livez"
            )
            assert opener.open(url, timeout=30).status == 200


def test_a_star_stands_for_every_address() -> None:
    assert parse_config(["--host=*", "--model_base_path=/m"]).host == "[::]"


def close(opened: list[socket.socket]) -> None:
    for one in opened:
        one.close()


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")
def test_a_name_of_both_families_has_one_port_at_both() -> None:
    opened = bind_addresses(
        [(socket.AF_INET6, ("::1", 0, 0, 0)), (socket.AF_INET, ("127.0.0.1", 0))]
    )
    ports = {one.getsockname()[1] for one in opened}
    close(opened)
    assert len(opened) == 2
    assert len(ports) == 1


LACKING: list[tuple[int, tuple[Any, ...]]] = [
    (socket.AF_INET6, ("2001:db8::1", 0, 0, 0)),  # of documentation, and no machine's own
    (socket.AF_INET, ("203.0.113.1", 0)),
    (socket.AF_DECnet if hasattr(socket, "AF_DECnet") else 12, ("127.0.0.1", 0)),  # long gone
]


@pytest.mark.parametrize("lacking", LACKING)
def test_an_address_that_the_machine_lacks_is_left_out_beside_others(
    lacking: tuple[int, tuple[Any, ...]],
) -> None:
    opened = bind_addresses([lacking, (socket.AF_INET, ("127.0.0.1", 0))])
    hosts = [one.getsockname()[0] for one in opened]
    close(opened)
    assert hosts == ["127.0.0.1"]
    with pytest.raises(OSError):
        bind_addresses([lacking])


def test_a_port_in_use_is_refused_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(OSError):
        bind_tcp("127.0.0.1", find_port([taken]))


@pytest.mark.parametrize("host", ["nobody.invalid", "203.0.113.1"])
def test_a_host_that_is_not_this_machine_is_named(tmp_path: Path, host: str) -> None:
    done = run_embedded("--port=-1", f"--host={host}", f"--model_base_path={tmp_path}")
    assert done.returncode == 3
    assert f"cannot listen on {host}:0" in done.stderr
    assert "choose another --host" in done.stderr
