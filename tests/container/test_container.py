"""`serving container` with a real engine: serving, stopping, and every fault's own message."""

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from serving.container.engine import ContainerEngine
from tests.container import images_for_tests as images
from tests.container.processes import (
    ROOT,
    TIMEOUT_S,
    ContainerProcess,
    hold_port,
    read_version_states,
    run_container,
    run_serving,
)
from tests.serving.certificates import Authority
from tests.signing_keys import make_keys

pytestmark = pytest.mark.container


def inspect(engine: ContainerEngine, name: str) -> dict[str, Any]:
    document = json.loads(engine.call("inspect", name).stdout)
    facts: dict[str, Any] = document[0]
    return facts


def test_golden_examples_come_back_through_every_hop(
    server: ContainerProcess, mlp_base_path: Path
) -> None:
    command = ["parity", "--model_name=mlp", f"--version_dir={mlp_base_path}", "--via=all"]
    done = subprocess.run(
        [
            *(sys.executable, "-m", "clients", *command),
            *(f"--server={server.address}", f"--rest_server={server.url}", "--json"),
            "--signatures=serving_default,serving_uint8",  # the other takes strings
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_version_that_nobody_signed_ends_in_a_container_too(
    embedded_image: str, flags: list[str], tmp_path: Path
) -> None:
    keys = make_keys(tmp_path)
    done = run_container(
        *flags, f"--image={embedded_image}", f"--require_signature_key={keys.public}"
    )
    assert done.returncode == 3
    assert "has no signature" in done.stderr


def test_the_image_lists_what_is_in_it(engine: ContainerEngine, embedded_image: str) -> None:
    images.check_contents(engine, embedded_image)


def test_the_image_serves_with_the_options_that_the_documentation_names(
    engine: ContainerEngine, embedded_image: str, mlp_base_path: Path
) -> None:
    text = (ROOT / "docs" / "deploy.md").read_text()
    (command,) = re.findall(r"^docker run (?:.*\\\n)*.*plumbline:embedded$", text, re.MULTILINE)
    skipped = ("--publish", "--mount", "plumbline:embedded")
    words = command.replace("\\\n", " ").split()[2:]
    options = [one for one in words if not one.startswith(skipped)]
    mount = f"--mount=type=bind,source={mlp_base_path.parent},target=/models,readonly"
    name = f"{images.REPOSITORY.rpartition('/')[2]}-documented-{os.getpid()}"
    engine.call("run", "--detach", f"--name={name}", *options, mount, embedded_image)
    try:
        check = ("exec", name, "python3", "-S", "-E", "/usr/local/lib/plumbline/healthcheck.py")
        deadline = time.monotonic() + TIMEOUT_S
        while engine.call(*check).returncode != 0:
            assert time.monotonic() < deadline, engine.call("logs", name).stderr
            time.sleep(0.2)
        status = engine.call("exec", name, "cat", "/proc/1/status").stdout
        assert re.search(r"^CapEff:\s+0+$", status, re.MULTILINE)
        assert re.search(r"^Uid:\s+10001", status, re.MULTILINE)
        assert re.search(r"^NoNewPrivs:\s+1$", status, re.MULTILINE)
        assert engine.call("exec", name, "touch", "/opt/x").returncode != 0
    finally:
        engine.call("rm", "--force", "--time=0", name)


def test_the_server_runs_confined(server: ContainerProcess, engine: ContainerEngine) -> None:
    facts = inspect(engine, server.name)
    assert facts["HostConfig"]["ReadonlyRootfs"]
    assert "no-new-privileges" in facts["HostConfig"]["SecurityOpt"]
    done = engine.call("exec", server.name, "sh", "-c", "grep CapEff /proc/1/status; id -u")
    effective, user = done.stdout.split()[1:]
    assert int(effective, 16) == 0
    assert int(user) == os.getuid()
    assert engine.call("exec", server.name, "touch", "/opt/x").returncode != 0


def test_base_paths_cannot_be_written_inside(
    server: ContainerProcess, engine: ContainerEngine, mlp_base_path: Path
) -> None:
    done = engine.call("exec", server.name, "touch", f"{mlp_base_path}/9")
    assert done.returncode != 0
    assert not (mlp_base_path / "9").exists()


def test_ports_listen_on_loopback_alone(server: ContainerProcess, engine: ContainerEngine) -> None:
    bindings = inspect(engine, server.name)["HostConfig"]["PortBindings"]
    addresses = {one["HostIp"] for listed in bindings.values() for one in listed}
    assert addresses == {"127.0.0.1"}


def test_metrics_are_on(server: ContainerProcess) -> None:
    url = f"{server.url}/monitoring/prometheus/metrics"
    with urllib.request.urlopen(url, timeout=10) as answer:
        assert b":tensorflow:serving:request_count" in answer.read()


def test_the_health_check_of_the_image_passes(
    server: ContainerProcess, engine: ContainerEngine
) -> None:
    healthcheck = "/usr/local/lib/plumbline/healthcheck.py"
    done = engine.call("exec", server.name, "python3", "-S", "-E", healthcheck)
    assert done.returncode == 0, done.stderr


def test_the_image_runs_neither_as_root_nor_without_a_health_check(
    engine: ContainerEngine, embedded_image: str
) -> None:
    document = json.loads(engine.call("image", "inspect", embedded_image).stdout)[0]
    assert document["Config"]["User"].split(":")[0] not in ("", "0", "root")
    assert document.get("Healthcheck") or document["Config"].get("Healthcheck")


def test_the_image_holds_no_tensorflow(engine: ContainerEngine, embedded_image: str) -> None:
    code = "import importlib.util as u, sys; sys.exit(u.find_spec('tensorflow') is not None)"
    done = engine.call("run", "--rm", "--entrypoint=python3", embedded_image, "-c", code)
    assert done.returncode == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_and_removes_the_container(
    engine: ContainerEngine,
    embedded_image: str,
    flags: list[str],
    tmp_path: Path,
    number: signal.Signals,
) -> None:
    with ContainerProcess(tmp_path, f"--image={embedded_image}", *flags) as process:
        process.wait_until_serving()
        assert process.name in images.list_containers(engine)
        assert process.end(number) == 0
    assert process.name not in images.list_containers(engine)


def test_ctrl_c_while_starting_leaves_nothing(
    engine: ContainerEngine, stand_in: Callable[[str], str], flags: list[str], tmp_path: Path
) -> None:
    image = stand_in(images.SILENT)
    with ContainerProcess(tmp_path, f"--image={image}", *flags) as process:
        process.wait_for(lambda: "waiting" in process.log)
        assert process.end(signal.SIGINT) == 130
    assert process.name not in images.list_containers(engine)


def test_a_detached_container_is_stopped_by_the_stop_verb(
    engine: ContainerEngine, embedded_image: str, flags: list[str], tmp_path: Path
) -> None:
    with ContainerProcess(tmp_path, f"--image={embedded_image}", "--detach", *flags) as process:
        assert process.process.wait(60) == 0, process.log
    try:
        assert read_version_states(process.address) == {1: 30}
    finally:
        done = run_serving("stop", process.name)
    assert (done.returncode, done.stdout) == (0, f"{process.name}\n")
    assert process.name not in images.list_containers(engine)


def test_stop_refuses_a_container_that_it_did_not_start(engine: ContainerEngine) -> None:
    done = run_serving("stop", "somebody-elses")
    assert done.returncode == 2
    assert "somebody-elses was not started" in done.stderr


def test_a_new_version_is_seen_through_the_mount(
    embedded_image: str, mlp_base_path: Path, tmp_path: Path
) -> None:
    base_path = tmp_path / "mlp"
    images.copy_version(mlp_base_path / "1", base_path, 1)
    arguments = [f"--image={embedded_image}", "--model_name=mlp", f"--model_base_path={base_path}"]
    with ContainerProcess(tmp_path, *arguments) as process:
        process.wait_until_serving()
        images.copy_version(mlp_base_path / "1", tmp_path / "staged", 1)
        (tmp_path / "staged" / "1").rename(base_path / ".stage")
        (base_path / ".stage").rename(base_path / "2")
        process.wait_for(lambda: read_version_states(process.address).get(2, 0) in (30, 50))


def test_an_image_of_tensorflow_serving_is_served_by_its_own_program(
    stock: str, flags: list[str], tmp_path: Path, engine: ContainerEngine
) -> None:
    with ContainerProcess(tmp_path, f"--image={stock}", "--rest_api_port=-1", *flags) as process:
        process.wait_until_serving()
        command = inspect(engine, process.name)["Config"]["Cmd"]
        assert "--monitoring_config_file=/mnt/plumbline/monitoring_config_file" in command
        assert read_version_states(process.address) == {1: 30}
        with urllib.request.urlopen(f"{process.url}/v1/models/mlp", timeout=10) as answer:
            assert b"AVAILABLE" in answer.read()


def test_the_kubernetes_probe_tells_available_from_absent(
    stock: str, flags: list[str], tmp_path: Path, engine: ContainerEngine
) -> None:
    overlay = ROOT / "deploy" / "kubernetes" / "overlays" / "tensorflow-serving" / "server.yaml"
    container = yaml.safe_load(overlay.read_text())["spec"]["template"]["spec"]["containers"][0]
    probe = container["readinessProbe"]["exec"]["command"]
    with ContainerProcess(tmp_path, f"--image={stock}", "--rest_api_port=-1", *flags) as process:
        process.wait_until_serving()

        def ask(model: str) -> int:
            return engine.call("exec", f"--env=MODEL_NAME={model}", process.name, *probe).returncode

        assert ask("mlp") == 0
        assert ask("absent") != 0


def test_models_of_a_config_file_are_all_waited_for(
    stock: str, mlp_base_path: Path, tmp_path: Path
) -> None:
    images.copy_version(mlp_base_path / "1", tmp_path / "mlp", 3)
    models = "".join(
        f'config {{ name: "{name}" base_path: "{tmp_path}/mlp" model_platform: "tensorflow" }}'
        for name in ("one", "two")
    )
    (tmp_path / "models.config").write_text(f"model_config_list {{ {models} }}")
    flag = f"--model_config_file={tmp_path}/models.config"
    with ContainerProcess(tmp_path, f"--image={stock}", flag) as process:
        process.wait_until_serving()
        assert "one: AVAILABLE, two: AVAILABLE" in process.log


@pytest.mark.parametrize("client_verify", [False, True])
def test_our_own_image_keeps_its_safety_flags(
    embedded_image: str, flags: list[str], tmp_path: Path, client_verify: bool
) -> None:
    authority = Authority("authority")
    pair = authority.issue("server")
    texts = {"server_key": pair.key, "server_cert": pair.cert, "custom_ca": authority.cert}
    lines = [f"{name}: {json.dumps(text)}" for name, text in texts.items()]
    lines.append(f"client_verify: {str(client_verify).lower()}")
    (tmp_path / "ssl.config").write_text("\n".join(lines))
    (tmp_path / "token").write_text("a-token-of-some-length\n")
    safety = [f"--ssl_config_file={tmp_path}/ssl.config", f"--auth_token_file={tmp_path}/token"]
    arguments = [f"--image={embedded_image}", "--rest_api_port=-1", *safety, *flags]
    with ContainerProcess(tmp_path, *arguments) as process:
        process.wait_until_serving()
        assert read_version_states(process.address, fails_with="UNAVAILABLE") == {}


def test_the_server_drains_and_ends_by_itself_when_stopped(
    engine: ContainerEngine, embedded_image: str, flags: list[str], tmp_path: Path
) -> None:
    with ContainerProcess(tmp_path, f"--image={embedded_image}", "--detach", *flags) as process:
        assert process.process.wait(60) == 0, process.log
    try:
        assert engine.call("stop", "--time=20", process.name).returncode == 0
        assert inspect(engine, process.name)["State"]["ExitCode"] == 0
    finally:
        run_serving("stop", process.name)


def test_a_unix_socket_is_served_across_the_wall(
    embedded_image: str, flags: list[str], tmp_path: Path
) -> None:
    folder = tmp_path / "s"
    folder.mkdir()
    flag = f"--grpc_socket_path={folder}/g"
    with ContainerProcess(tmp_path, f"--image={embedded_image}", flag, *flags) as process:
        process.wait_until_serving()
        assert read_version_states(f"unix:{folder}/g") == {1: 30}


def test_the_dry_run_prints_a_command_that_serves(
    engine: ContainerEngine, embedded_image: str, flags: list[str]
) -> None:
    with hold_port() as port:
        pass
    name = f"plumbline-test-dry-{os.getpid()}"
    arguments = [f"--image={embedded_image}", f"--port={port}", f"--name={name}", *flags]
    done = run_serving("container", "--dry_run", *arguments)
    assert done.returncode == 0, done.stderr
    assert name not in images.list_containers(engine)
    try:
        subprocess.run(done.stdout, shell=True, check=True, capture_output=True)
        assert name in images.list_containers(engine)
    finally:
        assert run_serving("stop", name).returncode == 0
