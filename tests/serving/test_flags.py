"""Flags are read as tensorflow_model_server reads them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract.errors import ConfigError
from serving.config.flags import (
    ServerFlags,
    ServerKind,
    TensorFlowServingFlags,
    describe_flags,
    list_flags,
    parse_flags,
)
from serving.config.server import check_honoured, parse_server_flags

FLAGS = list_flags(ServerFlags)


def parse(*arguments: str) -> dict[str, bool | int | float | str]:
    values, unknown = parse_flags(arguments, FLAGS)
    assert not unknown
    return values


@pytest.mark.parametrize("arguments", [("--port=12",), ("--port", "12")])
def test_a_value_stands_behind_an_equals_sign_or_a_space(arguments: tuple[str, ...]) -> None:
    assert parse(*arguments) == {"port": 12}


@pytest.mark.parametrize(
    ("arguments", "value"),
    [
        (("--enable_batching",), True),
        (("--enable_batching=true",), True),
        (("--enable_batching=false",), False),
        (("--enable_batching", "false"), False),
        (("--enable_batching", "--port=1"), True),
    ],
)
def test_a_bare_boolean_is_true(arguments: tuple[str, ...], value: bool) -> None:
    assert parse(*arguments)["enable_batching"] is value


def test_a_value_may_hold_equals_signs_and_begin_with_a_dash() -> None:
    assert parse("--grpc_channel_arguments=a=1,b=2", "--load_retry_interval_micros", "-1") == {
        "grpc_channel_arguments": "a=1,b=2",
        "load_retry_interval_micros": -1,
    }


def test_an_unknown_flag_is_named_with_the_nearest_known_one_and_its_value_is_skipped() -> None:
    values, unknown = parse_flags(["--rest_api_prot", "8501", "--port=1", "-v", "stray"], FLAGS)
    assert values == {"port": 1}
    assert [str(one) for one in unknown] == [
        "unknown argument: --rest_api_prot (did you mean --rest_api_port?)",
        "unknown argument: -v",
        "unknown argument: stray",
    ]


@pytest.mark.parametrize(
    ("argument", "meant"),
    [
        ("--auth_tokens_file=/secrets/tokens", "auth_token_file"),
        ("--auth-token-file=/secrets/tokens", "auth_token_file"),
        ("--token=correct-horse", "auth_token_file"),
        ("auth_token_file=/secrets/tokens", "auth_token_file"),
        ("--ssl_config=/secrets/ssl", "ssl_config_file"),
        ("--max_json_byte=1", "max_json_bytes"),
        ("--max_json=1", "max_json_bytes"),
        ("--max_connections_per_client=1", "max_connections"),
        ("-workers=2", "workers"),
        ("--Host=0.0.0.0", "host"),
    ],
)
def test_a_misspelt_flag_is_refused_with_the_right_name(argument: str, meant: str) -> None:
    with pytest.raises(ConfigError, match=f"did you mean --{meant}") as caught:
        parse_server_flags([argument, "--model_base_path=/models/m"])
    assert caught.value.message.count("unknown argument") == 1


@pytest.mark.parametrize("flag", ["--tls_cert=x", "--api_key=x", "--mtls", "--client-certificate"])
def test_a_flag_that_seems_to_say_who_may_call_is_refused_though_there_is_none_like_it(
    flag: str,
) -> None:
    with pytest.raises(ConfigError, match="--ssl_config_file and --auth_token_file"):
        parse_server_flags([flag, "--model_base_path=/models/m"])


def test_a_secret_in_a_misspelt_flag_is_not_repeated() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_server_flags(["--auth_token=correct-horse", "--password=battery-staple"])
    assert "horse" not in caught.value.message and "staple" not in caught.value.message


@pytest.mark.parametrize("flag", ["--future_flag=1", "--enable_tfrt", "--use_gpu_tensor=3", "-v"])
def test_a_flag_like_none_that_is_known_is_printed_and_not_fatal(flag: str) -> None:
    _, unknown = parse_server_flags([flag, "--model_base_path=/models/m"])
    assert [str(one) for one in unknown] == [f"unknown argument: {flag}"]


def test_an_unknown_flag_is_named_where_the_base_path_is_missing() -> None:
    with pytest.raises(ConfigError, match=r"model_base_path.*\(unknown argument: --folder=/m\)"):
        parse_server_flags(["--folder=/m"])
    with pytest.raises(ConfigError, match="did you mean --model_base_path"):
        parse_server_flags(["--model_basepath=/models/m"])


@pytest.mark.parametrize(
    ("flag", "reason"),
    [
        ("use_alts_credentials=true", "--ssl_config_file"),
        ("platform_config_file=/x", "--engine"),
        ("mixed_precision=bfloat16", "verified"),
    ],
)
def test_what_would_change_answers_or_safety_and_cannot_be_honoured_is_refused(
    flag: str, reason: str
) -> None:
    flags, _ = parse_server_flags([f"--{flag}", "--model_base_path=/models/m"])
    with pytest.raises(ConfigError, match=f"--{flag}: .*cannot honour it.*{reason}"):
        check_honoured(flags)


def test_only_tuning_is_accepted_without_effect_and_each_says_why() -> None:
    ignored = {one.name for one in FLAGS if one.embedded == "ignored"}
    assert ignored == {
        *("rest_api_num_threads", "grpc_max_threads", "num_unload_threads"),
        *("num_tflite_pools", "num_tflite_interpreters_per_pool", "flush_filesystem_caches"),
        *("remove_unused_fields_from_bundle_metagraph", "thread_pool_factory_config_file"),
    }
    assert all(bool(one.reason) == (one.embedded != "kept") for one in FLAGS)


@pytest.mark.parametrize(
    ("argument", "wanted"),
    [
        ("--port=eight", "an integer"),
        ("--drain_timeout_s=soon", "a number"),
        ("--enable_batching=maybe", "true or false"),
    ],
)
def test_a_value_of_the_wrong_type_says_what_is_wanted(argument: str, wanted: str) -> None:
    with pytest.raises(ConfigError, match=f"{argument}: it wants {wanted}"):
        parse(argument)


def test_a_flag_without_its_value_is_refused() -> None:
    with pytest.raises(ConfigError, match="--model_name wants a value"):
        parse("--model_name", "--port=1")


@given(st.lists(st.text(max_size=30), max_size=6))
def test_any_command_line_is_parsed_or_refused_in_one_sentence(arguments: list[str]) -> None:
    try:
        parse_flags(arguments, FLAGS)
    except ConfigError as error:
        assert "\n" not in error.message or any("\n" in argument for argument in arguments)


def test_every_flag_of_tensorflow_model_server_is_known_with_its_default() -> None:
    defaults = {one.name: one.default for one in list_flags(TensorFlowServingFlags)}
    assert defaults["port"] == 8500
    assert defaults["rest_api_timeout_in_ms"] == 30000
    assert defaults["model_name"] == "default"
    assert defaults["max_num_load_retries"] == 5
    assert defaults["load_retry_interval_micros"] == 60_000_000
    assert defaults["file_system_poll_wait_seconds"] == 1
    assert defaults["enable_model_warmup"] is True
    assert len(defaults) == 48  # all of main.cc


def test_flags_that_make_a_server_safe_are_never_passed_to_one_that_ignores_them() -> None:
    by_name = {one.name: one for one in FLAGS}
    for name in ("auth_token_file", "max_json_depth", "max_inflated_bytes", "max_message_bytes"):
        assert by_name[name].container == "refused"
    own = {one.name for one in FLAGS} - {one.name for one in list_flags(TensorFlowServingFlags)}
    assert all(by_name[name].container != "passed" for name in own)


@pytest.mark.parametrize("server", ["embedded", "container"])
def test_help_shows_every_flag_with_default_and_purpose(server: ServerKind) -> None:
    text = describe_flags(FLAGS, server)
    on_one_line = " ".join(text.split())
    for one in FLAGS:
        assert f"--{one.name}=" in text
        assert one.description in on_one_line


def test_help_of_the_container_marks_what_tensorflow_serving_lacks_and_nothing_else() -> None:
    text = describe_flags(FLAGS, "container")
    marked = set(re.findall(r"--(\w+)=.*\[Plumbline's own image only\]", text))
    assert "ignored" not in text
    assert {"workers", "max_json_bytes", "auth_token_file"} <= marked
    assert marked.isdisjoint(one.name for one in list_flags(TensorFlowServingFlags))


def test_help_of_the_embedded_server_marks_what_it_ignores() -> None:
    text = describe_flags(FLAGS, "embedded")
    marked = set(re.findall(r"--(\w+)=.*\[accepted and ignored\]", text))
    assert marked == {one.name for one in FLAGS if one.embedded == "ignored"}
    assert "request_log_dir" not in marked
    refused = set(re.findall(r"--(\w+)=.*\[refused\]", text))
    assert refused == {one.name for one in FLAGS if one.embedded == "refused"}


def test_docs_name_every_flag_of_tensorflow_serving_that_is_ignored_or_refused() -> None:
    document = Path(__file__).parents[2] / "docs" / "protocol.md"
    ignored, refused = (
        {one.name for one in list_flags(TensorFlowServingFlags) if one.embedded == fate}
        for fate in ("ignored", "refused")
    )
    rows = document.read_text().split("**Flags without effect.**")[1].split("**Refused")
    assert set(re.findall(r"^\| `--(\w+)", rows[0], re.M)) == ignored
    assert set(re.findall(r"^\| `--(\w+)", rows[1].split("\n\n")[1], re.M)) == refused
