"""The command line of `python -m serving` and of its verb `embedded`."""

from __future__ import annotations

import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import grpc
import pytest

from contract.wire.plumbline_wire import health_pb2
from contract.wire.rpc import HEALTH_CHECK
from serving.addresses import is_loopback
from serving.cli import VERBS, main
from serving.config.flags import Flag, ServerFlags, list_flags
from serving.config.server import parse_config
from serving.embedded import find_idle, find_ignored
from tests.serving.server_process import ROOT, ServerProcess, call, run_embedded


def test_help_lists_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(verb in text for verb in VERBS)


@pytest.mark.parametrize("arguments", [[], ["embeded"], ["embedded", "--port=x"]])
def test_wrong_usage_is_exit_code_2(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_help_of_the_verb_lists_the_flags(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["embedded", "--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert "--model_config_file=''" in text
    assert "[accepted and ignored]" in text


def test_version_needs_no_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["embedded", "--version"]) == 0
    assert capsys.readouterr().out.startswith("Plumbline: ")


def test_flags_without_effect_are_named_when_given() -> None:
    assert find_ignored(ServerFlags()) == []
    assert find_ignored(ServerFlags(num_tflite_pools=3, port=1)) == ["num_tflite_pools"]


def test_the_command_line_imports_no_server_and_no_tensorflow() -> None:
    check = (
        "import sys, serving.cli; serving.cli.main(['--help']); "
        "heavy = {'tensorflow', 'grpc', 'aiohttp', 'numpy'} & set(sys.modules); "
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", check], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("host", "is_ours"),
    [
        ("127.0.0.1", True),
        ("127.1.2.3", True),
        ("[::1]", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("[::]", False),
        ("10.0.0.7", False),
        ("models.example.org", False),
    ],
)
def test_loopback_is_what_only_this_machine_reaches(host: str, is_ours: bool) -> None:
    assert is_loopback(host) is is_ours


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_a_token_in_the_clear_is_warned_of_beyond_loopback(tmp_path: Path, host: str) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text("correct-horse-battery\n")
    flags = ("--port=-1", f"--host={host}", f"--model_base_path={tmp_path / 'none'}")
    done = run_embedded(*flags, f"--auth_token_file={tokens}")
    assert done.returncode == 3, done.stderr  # there is nothing to serve
    assert ("sees the tokens" in done.stderr) is (host == "0.0.0.0")


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="this machine has no IPv6")
def test_the_wildcard_of_ipv6_is_every_address_of_both_families_for_both_protocols(
    tmp_path: Path,
) -> None:
    (tmp_path / "base").mkdir()
    flags = ("--host=[::]", f"--model_base_path={tmp_path / 'base'}")
    with ServerProcess(tmp_path, *flags, rest=True) as server:
        for host in ("127.0.0.1", "[::1]"):
            url = f"http://{host}:{server.addresses['rest_port']}/livez"
            with urllib.request.urlopen(url, timeout=20) as answer:
                assert answer.status == 200
            address = f"{host}:{server.addresses['grpc_port']}"
            with grpc.insecure_channel(address) as channel:
                answer = call(channel, HEALTH_CHECK, health_pb2.HealthCheckRequest())
            assert answer.status == health_pb2.HealthCheckResponse.NOT_SERVING


def test_a_misspelt_flag_ends_the_start_and_a_strange_one_does_not(tmp_path: Path) -> None:
    base = f"--model_base_path={tmp_path / 'none'}"
    refused = run_embedded("--port=-1", "--auth_tokens_file=x", base)
    assert refused.returncode == 2
    assert refused.stderr.strip().count("\n") == 0
    strange = run_embedded("--port=-1", "--flag_of_the_future=x", base)
    assert strange.returncode == 3
    assert "unknown argument: --flag_of_the_future=x" in strange.stderr


def test_a_server_imports_no_other_http_server_and_nothing_that_is_slow_and_rarely_used() -> None:
    check = (
        "import sys, serving.server, serving.rest.server; "
        "heavy = {'aiohttp', 'http.client', 'email', 'google.protobuf.json_format', 'tensorflow'}"
        " & set(sys.modules); sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", check], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def find_words(*flags: str) -> list[str]:
    return find_idle(parse_config([*flags, "--model_base_path=/none", "--rest_api_port=1"]))


@pytest.mark.parametrize("one", [one for one in list_flags(ServerFlags) if one.needs or one.engine])
def test_a_flag_that_nothing_comes_of_is_named_and_only_then(one: Flag, tmp_path: Path) -> None:
    value: object = not one.default
    if isinstance(one.default, str):
        (tmp_path / "file").touch()
        value = tmp_path / "file"
    elif isinstance(one.default, int | float) and not isinstance(one.default, bool):
        value = one.default + 1 if one.name != "request_log_sampling_rate" else 0.5
    given = f"--{one.name}={str(value).lower() if isinstance(value, bool) else value}"
    base = ["--model_base_path=/none"]
    if one.needs:
        off = {"enable_model_warmup": "false", "max_num_load_retries": "0"}.get(one.needs)
        on = {"rest_api_port": "1", "request_log_dir": str(tmp_path)}.get(one.needs, "true")
        if one.needs == "model_config_file":
            (tmp_path / "models.config").write_text("model_config_list {}")
            base, on = [], str(tmp_path / "models.config")
        without = [f"--{one.needs}={off}"] if off else []
        with_it = [f"--{one.needs}={on}"] if not off else []
        text = f"--{one.name} has no effect without --{one.needs}"
    else:
        other = "litert" if one.engine == "tensorflow" else "tensorflow"
        without, with_it = [f"--engine={other}"], [f"--engine={one.engine}"]
        text = f"--{one.name} has no effect with --engine={other}"
    lacking = find_idle(parse_config([given, *without, *(base or ["--model_base_path=/none"])]))
    assert text in lacking
    assert text not in find_idle(parse_config([given, *with_it, *base]))


def test_request_logs_that_nobody_writes_are_named(tmp_path: Path) -> None:
    folder = f"--request_log_dir={tmp_path}"
    assert "logs nothing" in find_words(folder)[0]
    assert find_words(folder, "--request_log_sampling_rate=0.5") == []
    config = tmp_path / "models.config"
    config.write_text(
        'model_config_list { config { name: "m" base_path: "/m" model_platform: "tensorflow" '
        'logging_config { log_collector_config { filename_prefix: "a" } } } }'
    )
    given = [f"--model_config_file={config}"]
    assert find_idle(parse_config(given)) == [
        "logging_config of m has no effect without --request_log_dir"
    ]
    assert find_idle(parse_config([*given, folder])) == []


def test_a_model_s_flags_beside_a_file_of_models_are_named(tmp_path: Path) -> None:
    (tmp_path / "models.config").write_text("model_config_list {}")
    given = [f"--model_config_file={tmp_path / 'models.config'}", "--model_name=m"]
    assert find_idle(parse_config(given)) == [
        "--model_name has no effect beside --model_config_file"
    ]


def test_a_protocol_of_traces_that_is_not_spoken_is_said_once_for_all_workers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    flags = ["--model_base_path=/none", "--tracing", "--workers=2"]
    (said,) = find_idle(parse_config(flags))
    assert said.startswith("OTEL_EXPORTER_OTLP_PROTOCOL=grpc: spans go over http/protobuf")
    assert not find_idle(parse_config(flags[:1]))
