"""The command that is run: confinement, mounts, flags, refusals. No engine is needed."""

import os
import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from contract import layout
from contract.errors import ConfigError
from serving.config.flags import ServerFlags, list_flags, parse_flags
from serving.config.server import parse_config
from serving.container.engine import (
    REPOSITORY,
    ContainerEngine,
    Image,
    ImageServer,
    name_default_image,
)
from serving.container.plan import make_plan
from tests.signing_keys import make_keys

ENGINE = ContainerEngine("podman", is_podman=True)
STOCK = Image("tensorflow/serving:2.20.0")
EMBEDDED = Image("plumbline:embedded", ImageServer.EMBEDDED)
ROOT = Path(__file__).resolve().parents[2]


def list_command(
    arguments: Sequence[str],
    image: Image = STOCK,
    engine: ContainerEngine = ENGINE,
    mount_dirs: Sequence[Path] = (),
) -> list[str]:
    given, _ = parse_flags(arguments, list_flags(ServerFlags))
    plan = make_plan(parse_config(arguments), given, image, engine, mount_dirs=mount_dirs)
    return list(plan.command)


@pytest.fixture
def model(tmp_path: Path) -> list[str]:
    (tmp_path / "mlp" / "1").mkdir(parents=True)
    return ["--model_name=mlp", f"--model_base_path={tmp_path}/mlp"]


def test_the_default_image_is_of_the_locked_serving_api() -> None:
    lock = (ROOT / "requirements.lock").read_text()
    pinned = re.search(r"^tensorflow-serving-api==(\S+)", lock, re.MULTILINE)
    assert pinned
    assert name_default_image() == f"{REPOSITORY}:{pinned[1]}"


def test_the_container_is_confined(model: list[str]) -> None:
    command = list_command(model)
    assert f"--user={os.getuid()}:{os.getgid()}" in command
    assert {"--read-only", "--security-opt=no-new-privileges", "--cap-drop=all"} <= set(command)


def test_rootless_engines_keep_the_calling_user(model: list[str]) -> None:
    podman = list_command(model, engine=ContainerEngine("podman", True, rootless=True))
    assert "--userns=keep-id" in podman
    assert f"--user={os.getuid()}:{os.getgid()}" in podman
    assert "--user=0:0" in list_command(model, engine=ContainerEngine("docker", rootless=True))


def test_ports_are_published_on_loopback_unless_told_otherwise(model: list[str]) -> None:
    ports = ["--port=9000", "--rest_api_port=9001"]
    command = list_command([*model, *ports])
    assert {"--publish=127.0.0.1:9000:8500", "--publish=127.0.0.1:9001:8501"} <= set(command)
    assert "--publish=0.0.0.0:9000:8500" in list_command([*model, *ports, "--host=0.0.0.0"])
    assert "--publish=[::1]:9000:8500" in list_command([*model, *ports, "--host=::1"])
    for host in ("[::]", "*"):  # [::] would be IPv6 alone to docker
        assert "--publish=9000:8500" in list_command([*model, *ports, f"--host={host}"])


def test_rest_is_published_only_when_asked_for(model: list[str]) -> None:
    assert not [one for one in list_command(model) if one.endswith(":8501")]


def test_base_paths_are_mounted_read_only_at_their_own_path(
    model: list[str], tmp_path: Path
) -> None:
    path = tmp_path / "mlp"
    assert f"--mount=type=bind,source={path},target={path},readonly" in list_command(model)


def test_the_folder_of_a_config_file_is_mounted_so_that_a_rename_is_seen(tmp_path: Path) -> None:
    base_path = tmp_path / "models" / "mlp"
    base_path.mkdir(parents=True)
    config = tmp_path / "etc" / "models.config"
    config.parent.mkdir()
    config.write_text(
        f'model_config_list {{ config {{ name: "mlp" base_path: "{base_path}" '
        'model_platform: "tensorflow" } }'
    )
    command = list_command([f"--model_config_file={config}"])
    target = "/mnt/plumbline/model_config"
    assert f"--mount=type=bind,source={config.parent},target={target},readonly" in command
    assert f"--model_config_file={target}/models.config" in command
    assert f"--mount=type=bind,source={base_path},target={base_path},readonly" in command
    assert not [one for one in command if one.startswith("--model_name")]


def test_grpc_threads_come_from_the_cores_or_from_the_flag(model: list[str]) -> None:
    threads = next(one for one in list_command(model) if one.startswith("--grpc_max_threads="))
    assert int(threads.partition("=")[2]) >= max(64, 16 * (os.cpu_count() or 1))
    assert "--grpc_max_threads=9" in list_command([*model, "--grpc_max_threads=9"])


def test_metrics_are_on_when_rest_is_served(model: list[str]) -> None:
    flag = "--monitoring_config_file=/mnt/plumbline/monitoring_config_file"
    assert flag in list_command([*model, "--rest_api_port=-1"])


def test_flags_of_tensorflow_serving_are_passed(model: list[str]) -> None:
    flags = ["--enable_batching=true", "--max_num_load_retries=2", "--prefer_tflite_model=true"]
    assert set(flags) <= set(list_command([*model, *flags]))


def test_tensorflow_serving_is_started_without_the_shell_that_swallows_signals(
    model: list[str],
) -> None:
    command = list_command(model)
    assert "--entrypoint=tensorflow_model_server" in command
    assert "--stop-signal=SIGKILL" in command


@pytest.mark.parametrize(
    "flag",
    [
        *("--max_message_bytes=1000", "--max_json_bytes=1000", "--max_json_depth=9"),
        *("--max_inflated_bytes=1000", "--max_concurrent_calls=5", "--max_queued_calls=5"),
        *("--request_log_dir=/x", "--engine=litert", "--enable_reload_config=false"),
    ],
)
def test_a_safety_flag_is_refused_for_tensorflow_serving_and_kept_by_our_own_image(
    model: list[str], flag: str
) -> None:
    with pytest.raises(ConfigError, match="TensorFlow Serving") as refusal:
        list_command([*model, flag])
    assert flag.partition("=")[0] in refusal.value.message
    assert flag in list_command([*model, flag], EMBEDDED)


@pytest.mark.parametrize("flag", ["--tracing=true", "--access_log=true", "--log_format=json"])
def test_what_tensorflow_serving_cannot_tell_of_calls_is_refused_and_kept_by_our_own_image(
    model: list[str], flag: str
) -> None:
    with pytest.raises(ConfigError, match="TensorFlow Serving"):
        list_command([*model, flag])
    assert flag in list_command([*model, flag], EMBEDDED)


def test_what_the_sdk_is_told_goes_along_by_name(
    model: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "key=secret")
    command = list_command([*model, "--tracing"], EMBEDDED)
    assert "--env=OTEL_EXPORTER_OTLP_HEADERS" in command
    assert not any("secret" in word for word in command)
    assert not any("OTEL" in word for word in list_command(model, EMBEDDED))


def test_a_token_is_refused_for_tensorflow_serving_and_mounted_for_our_own_image(
    model: list[str], tmp_path: Path
) -> None:
    token = tmp_path / "token"
    token.write_text("a-token-of-some-length\n")
    flag = f"--auth_token_file={token}"
    with pytest.raises(ConfigError, match="it has no tokens"):
        list_command([*model, flag])
    command = list_command([*model, flag], EMBEDDED)
    assert "--auth_token_file=/mnt/plumbline/auth_token_file" in command
    assert flag not in command


def test_a_key_is_refused_for_tensorflow_serving_and_mounted_for_our_own_image(
    model: list[str], tmp_path: Path
) -> None:
    pytest.importorskip("model_signing")
    key = make_keys(tmp_path).public
    flag = f"--require_signature_key={key}"
    with pytest.raises(ConfigError, match="it loads what nobody has signed"):
        list_command([*model, flag])
    command = list_command([*model, flag], EMBEDDED)
    inside = "/mnt/plumbline/require_signature_key"
    assert f"--require_signature_key={inside}" in command
    assert f"--mount=type=bind,source={key},target={inside},readonly" in command


def test_tls_with_rest_is_refused_for_tensorflow_serving(model: list[str], tmp_path: Path) -> None:
    pem = "-----BEGIN X-----"
    (tmp_path / "ssl.config").write_text(f'server_key: "{pem}" server_cert: "{pem}"')
    tls = f"--ssl_config_file={tmp_path}/ssl.config"
    with pytest.raises(ConfigError, match="no TLS on REST"):
        list_command([*model, tls, "--rest_api_port=8501"])
    list_command([*model, tls])
    list_command([*model, tls, "--rest_api_port=8501"], EMBEDDED)


def test_our_own_image_keeps_rest_inside_for_its_health_check(model: list[str]) -> None:
    command = list_command(model, EMBEDDED)
    assert "--rest_api_port=8501" in command
    assert "--host=0.0.0.0" in command
    assert not [one for one in command if one.startswith("--entrypoint")]


def test_a_missing_base_path_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere: No such file or directory; publish"):
        list_command(["--model_name=x", f"--model_base_path={tmp_path}/nowhere"])


def test_an_unreadable_base_path_names_owner_mode_and_remedy(
    model: list[str], tmp_path: Path
) -> None:
    (tmp_path / "mlp").chmod(0o300)
    try:
        with pytest.raises(ConfigError, match=r"cannot read it .*mode 0300\); chmod -R a\+rX"):
            list_command(model)
    finally:
        (tmp_path / "mlp").chmod(0o755)


def test_an_unreadable_version_is_named(model: list[str], tmp_path: Path) -> None:
    (tmp_path / "mlp" / "1").chmod(0)
    try:
        with pytest.raises(ConfigError, match="version 1 of base path"):
            list_command(model)
    finally:
        (tmp_path / "mlp" / "1").chmod(0o755)


def test_a_version_that_links_outside_is_refused_until_its_folder_is_mounted(
    model: list[str], tmp_path: Path
) -> None:
    (tmp_path / "elsewhere" / "v2").mkdir(parents=True)
    (tmp_path / "mlp" / "2").symlink_to(tmp_path / "elsewhere" / "v2")
    with pytest.raises(ConfigError, match=f"add --mount_dir={tmp_path}/elsewhere"):
        list_command(model)
    list_command(model, mount_dirs=[tmp_path / "elsewhere"])


def test_a_socket_in_a_shared_folder_is_refused(model: list[str], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="a folder of its own"):
        list_command([*model, "--grpc_socket_path=/tmp/grpc.sock"])
    (tmp_path / "run").mkdir()
    command = list_command([*model, f"--grpc_socket_path={tmp_path}/run/grpc.sock"])
    assert f"--mount=type=bind,source={tmp_path}/run,target={tmp_path}/run" in command


def test_a_path_that_would_end_the_option_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a,readonly=false").mkdir()
    with pytest.raises(ConfigError, match="a comma"):
        list_command(["--model_name=x", f"--model_base_path={tmp_path}/a,readonly=false"])


def test_a_version_of_a_tflite_file_alone_asks_for_the_flag_that_serves_it(
    model: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "mlp" / "1" / layout.SAVED_MODEL).touch()
    (tmp_path / "mlp" / "1" / layout.TFLITE).touch()
    list_command(model)
    assert "prefer_tflite_model" not in caplog.text
    (tmp_path / "mlp" / "2").mkdir()
    (tmp_path / "mlp" / "2" / layout.TFLITE).touch()
    list_command([*model, "--prefer_tflite_model"])
    list_command(model, EMBEDDED)
    assert "prefer_tflite_model" not in caplog.text
    list_command(model)
    assert f"version 2 of {tmp_path}/mlp is model.tflite without saved_model.pb" in caplog.text
    assert "add --prefer_tflite_model" in caplog.text


def test_a_folder_of_base_paths_is_mounted_whole_and_refused_for_tensorflow_serving(
    tmp_path: Path,
) -> None:
    (tmp_path / "mlp" / "1").mkdir(parents=True)
    flags = [f"--models_base_path={tmp_path}", "--load_on_demand"]
    command = list_command(flags, EMBEDDED)
    assert f"--mount=type=bind,source={tmp_path},target={tmp_path},readonly" in command
    assert command.count(flags[0]) == 1
    assert "--load_on_demand=true" in command
    with pytest.raises(ConfigError, match="which cannot honour it"):
        list_command(flags)
