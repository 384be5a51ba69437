"""Every fault of a container has its own message, which says what to do. With a real engine."""

from collections.abc import Callable
from pathlib import Path

import pytest

from contract.errors import ServableUnavailableError
from serving.config.server import parse_config
from serving.container.engine import ContainerEngine, find_image
from serving.container.plan import make_plan
from serving.container.running import RunningContainer
from tests.container import images_for_tests as images
from tests.container.processes import (
    ContainerProcess,
    hold_port,
    read_version_states,
    run_container,
)

pytestmark = pytest.mark.container

UNREACHABLE = "localhost:9/no/such-image:1"


def test_a_missing_image_without_network_says_so_and_names_the_way_out(flags: list[str]) -> None:
    done = run_container(f"--image={UNREACHABLE}", *flags)
    assert done.returncode == 3
    assert "cannot be pulled" in done.stderr
    assert "Its registry cannot be reached" in done.stderr
    assert "python -m serving embedded" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("flag", ["port", "rest_api_port"])
def test_a_port_in_use_is_named(embedded_image: str, flags: list[str], flag: str) -> None:
    with hold_port() as port:
        done = run_container(f"--image={embedded_image}", *flags, f"--{flag}={port}")
    assert done.returncode == 3
    assert f"127.0.0.1:{port} is in use" in done.stderr
    assert f"--{flag}" in done.stderr


def test_a_port_taken_at_the_last_moment_is_named_too(
    engine: ContainerEngine, embedded_image: str, flags: list[str]
) -> None:
    image = find_image(engine, embedded_image)
    assert image is not None
    with hold_port() as port:
        arguments = [*flags, f"--port={port}"]
        plan = make_plan(parse_config(arguments), {}, image, engine)
        container = RunningContainer(engine, plan, image.name, stop_timeout_s=1)
        with pytest.raises(ServableUnavailableError, match="a port is in use"), container:
            pass
    assert plan.name not in images.list_containers(engine)


def test_a_name_in_use_is_named(
    server: ContainerProcess, embedded_image: str, flags: list[str]
) -> None:
    done = run_container(f"--image={embedded_image}", *flags, f"--name={server.name}")
    assert done.returncode == 3
    assert "a container of this name is running" in done.stderr
    assert "python -m serving stop" in done.stderr
    assert read_version_states(server.address) == {1: 30}


def test_an_unreadable_base_path_is_refused_before_anything_starts(
    embedded_image: str, tmp_path: Path
) -> None:
    (tmp_path / "mlp").mkdir(mode=0o300)
    done = run_container(
        f"--image={embedded_image}", "--model_name=mlp", f"--model_base_path={tmp_path}/mlp"
    )
    assert done.returncode == 2
    assert "cannot read it" in done.stderr
    assert "chmod -R a+rX" in done.stderr


@pytest.mark.parametrize("script", [images.ILLEGAL_INSTRUCTION, images.FOREIGN])
def test_an_illegal_instruction_is_explained(
    stand_in: Callable[[str], str], flags: list[str], script: str
) -> None:
    done = run_container(f"--image={stand_in(script)}", *flags)
    assert done.returncode == 3
    assert "Illegal instruction: this CPU lacks" in done.stderr
    assert "python -m serving embedded" in done.stderr


def test_a_crash_at_start_shows_the_last_lines_of_the_log(
    stand_in: Callable[[str], str], flags: list[str], engine: ContainerEngine
) -> None:
    done = run_container(f"--image={stand_in(images.BROKEN)}", *flags)
    assert done.returncode == 3
    assert "ended with exit code 7" in done.stderr
    assert "  | E no such luck" in done.stderr
    assert "python -m serving embedded" in done.stderr


def test_an_image_without_a_server_is_explained(
    engine: ContainerEngine, embedded_image: str, flags: list[str], tmp_path: Path
) -> None:
    (tmp_path / "Containerfile").write_text(f"FROM {embedded_image}\nLABEL plumbline.server=none\n")
    image = f"{images.REPOSITORY}:empty"
    assert engine.call("build", "--tag", image, str(tmp_path)).returncode == 0
    done = run_container(f"--image={image}", *flags)
    assert done.returncode == 3
    assert "holds no tensorflow_model_server" in done.stderr


def test_a_server_that_never_answers_is_given_up_in_time(
    stand_in: Callable[[str], str], flags: list[str]
) -> None:
    done = run_container(f"--image={stand_in(images.SILENT)}", *flags, "--start_timeout_s=1")
    assert done.returncode == 3
    assert "not every model is AVAILABLE after 1 s (mlp: not up yet)" in done.stderr


def test_a_model_that_fails_to_load_is_told_with_its_reason(
    embedded_image: str, mlp_base_path: Path, tmp_path: Path
) -> None:
    version = images.copy_version(mlp_base_path / "1", tmp_path / "mlp")
    with (version / "model.tflite").open("r+b") as file:
        file.seek(1000)
        file.write(b"\0" * 1000)
    done = run_container(
        f"--image={embedded_image}", "--model_name=mlp", f"--model_base_path={tmp_path}/mlp"
    )
    assert done.returncode == 3
    assert "model.tflite differs from its sha256" in done.stderr


def test_behind_tls_the_log_of_tensorflow_serving_is_believed(
    stand_in: Callable[[str], str], flags: list[str], tmp_path: Path
) -> None:
    pem = "-----BEGIN X-----"
    (tmp_path / "ssl.config").write_text(f'server_key: "{pem}" server_cert: "{pem}"')
    image = stand_in(images.LOADED_BEHIND_TLS)
    tls = f"--ssl_config_file={tmp_path}/ssl.config"
    with ContainerProcess(tmp_path, f"--image={image}", tls, *flags) as process:
        process.wait_until_serving()


def test_a_server_that_dies_later_ends_the_command(
    engine: ContainerEngine, embedded_image: str, flags: list[str], tmp_path: Path
) -> None:
    with ContainerProcess(tmp_path, f"--image={embedded_image}", *flags) as process:
        process.wait_until_serving()
        engine.call("kill", process.name)
        assert process.process.wait(60) == 3
    assert "killed from outside" in process.log
    assert process.name not in images.list_containers(engine)
