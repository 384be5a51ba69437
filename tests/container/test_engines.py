"""Which engine is picked, and what is said when none works."""

import argparse
from pathlib import Path

import pytest

from contract.console.exits import ExitCode
from contract.errors import ServableUnavailableError
from serving.container.bake import add_bake_arguments, run_bake
from serving.container.engine import find_engine
from tests.container.images_for_tests import make_program

DEAD_DOCKER = "echo 'Cannot connect to the Docker daemon at unix:///x.sock.' >&2; exit 1"
PODMAN = """echo '{"host": {"arch": "arm64", "security": {"rootless": true}}}'"""
DOCKER = """echo '{"Architecture": "x86_64", "SecurityOptions": ["name=seccomp"]}'"""


@pytest.fixture
def only_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return folder


def test_docker_on_path_without_a_daemon_is_passed_over_for_podman(only_path: Path) -> None:
    make_program(only_path, "docker", DEAD_DOCKER)
    make_program(only_path, "podman", PODMAN)
    engine = find_engine()
    assert (engine.program, engine.is_podman, engine.rootless) == ("podman", True, True)
    assert engine.machine == "arm64"


def test_docker_that_works_is_taken_first(only_path: Path) -> None:
    make_program(only_path, "docker", DOCKER)
    make_program(only_path, "podman", PODMAN)
    engine = find_engine()
    assert (engine.program, engine.is_podman, engine.rootless) == ("docker", False, False)


def test_podman_under_the_name_docker_is_known_as_podman(only_path: Path) -> None:
    make_program(only_path, "docker", PODMAN)
    assert find_engine().is_podman


def test_rootless_docker_is_known(only_path: Path) -> None:
    make_program(only_path, "docker", """echo '{"SecurityOptions": ["name=rootless"]}'""")
    assert find_engine().rootless


def test_a_missing_engine_says_so_and_names_the_embedded_server(only_path: Path) -> None:
    with pytest.raises(ServableUnavailableError) as failure:
        find_engine()
    text = failure.value.message
    assert "docker: not installed" in text
    assert "podman: not installed" in text
    assert "python -m serving embedded" in text


OFFLINE = """case $1 in
  info) echo '{"host": {"arch": "arm64"}}' ;;
  pull) echo 'Error: dial tcp: lookup registry: no such host' >&2; exit 125 ;;
  *) exit 1 ;;
esac"""


def test_bake_without_a_network_asks_for_another_base_and_offers_no_server(
    only_path: Path, published_mlp: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_program(only_path, "podman", OFFLINE)
    parser = argparse.ArgumentParser()
    add_bake_arguments(parser)
    given = parser.parse_args(["--version_dir", str(published_mlp / "mlp"), "--modelcar"])
    assert run_bake(given) == ExitCode.UNREACHABLE
    said = capsys.readouterr().err
    assert "name a base that is on this machine with --image" in said
    assert "serving embedded" not in said


def test_an_engine_that_does_not_answer_gives_its_own_reason(only_path: Path) -> None:
    make_program(only_path, "docker", DEAD_DOCKER)
    with pytest.raises(ServableUnavailableError, match="Cannot connect to the Docker daemon"):
        find_engine()


def test_the_engine_asked_for_is_the_only_one_tried(only_path: Path) -> None:
    make_program(only_path, "podman", PODMAN)
    with pytest.raises(ServableUnavailableError, match=r"works here \(docker: not installed\)"):
        find_engine("docker")
