"""Flags and text files become one frozen value, or one sentence that says what is wrong."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from contract.errors import ConfigError
from contract.servable import All, Latest, Specific
from serving.config.models import ModelConfig, read_model_configs
from serving.config.server import METRICS_PATH, ServerConfig, parse_config
from tests.serving.server_process import ROOT

ONE_MODEL = ("--model_name=mlp", "--model_base_path=/models/mlp")


def write(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


def read(tmp_path: Path, text: str) -> tuple[ModelConfig, ...]:
    return read_model_configs(Path(write(tmp_path / "models.config", text)))


def test_flags_name_one_model() -> None:
    assert parse_config(ONE_MODEL).models == (ModelConfig("mlp", Path("/models/mlp")),)


def test_a_relative_base_path_on_the_command_line_is_relative_to_here() -> None:
    config = parse_config(["--model_base_path=models/mlp"])
    assert config.models == (ModelConfig("default", Path.cwd() / "models/mlp"),)


def test_a_file_lists_models_with_policies_labels_and_logging(tmp_path: Path) -> None:
    models = read(
        tmp_path,
        """
        model_config_list {
          config { name: "a" base_path: "/m/a" model_platform: "tensorflow"
            model_version_policy { specific { versions: 1 versions: 3 } }
            version_labels { key: "stable" value: 1 }
            logging_config { log_collector_config { filename_prefix: "/log/a" }
                             sampling_config { sampling_rate: 0.5 } } }
          config { name: "b" base_path: "/m/b" model_platform: "tensorflow"
            model_version_policy { all {} } }
          config { name: "c" base_path: "/m/c" model_platform: "tensorflow"
            model_version_policy { latest { num_versions: 2 } } }
          config { name: "d" base_path: "/m/d" model_type: TENSORFLOW
            model_version_policy { latest { } } }
        }""",
    )
    assert [model.version_policy for model in models] == [
        Specific((1, 3)),
        All(),
        Latest(2),
        Latest(1),
    ]
    assert models[0].version_labels == {"stable": 1}
    assert models[0].logging is not None
    assert (models[0].logging.filename_prefix, models[0].logging.sampling_rate) == ("/log/a", 0.5)


def entry(
    name: str = "a", base_path: str = "/m", rest: str = 'model_platform: "tensorflow"'
) -> str:
    return f'config {{ name: "{name}" base_path: "{base_path}" {rest} }}'


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (entry() + entry(), "Illegal to list model a multiple times in config list"),
        (
            entry(base_path="rel"),
            r"Expected model a to have an absolute path or URI; got base_path\(\)=rel",
        ),
        (
            entry(rest=""),
            "Illegal setting neither ModelServerConfig::model_type .* model name is a",
        ),
        (
            entry(rest='model_type: TENSORFLOW model_platform: "tensorflow"'),
            "Illegal setting both ModelServerConfig::model_type .* model name is a",
        ),
        (entry(rest="model_type: OTHER"), "model_type choice 2 not supported"),
        (entry(name=""), "model name ''"),
        (entry(name="../etc"), "model name '../etc'"),
        (entry(name="a/b"), "model name 'a/b'"),
        (entry(name=".."), "model name '..'"),
        (entry(name="a\\nb"), "without slashes and control characters"),
    ],
)
def test_a_model_that_cannot_be_served_is_refused(
    tmp_path: Path, entries: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        read(tmp_path, f"model_config_list {{ {entries} }}")


def test_a_file_that_does_not_parse_is_refused_in_tensorflow_servings_words(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"^Error parsing text-format tensorflow\.serving\.ModelServerConfig"
    ):
        read(tmp_path, "model_config_list { nonsense")


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.one_of(st.binary(max_size=80), st.text("{}:<>\"' acdefgilmnost_\n#", max_size=80)))
def test_any_bytes_in_a_config_file_are_read_or_refused(tmp_path: Path, data: bytes | str) -> None:
    path = tmp_path / "fuzz.config"
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    try:
        read_model_configs(path)
    except ConfigError as error:
        assert str(path) in error.message or "custom_model_config" in error.message


def test_deep_nesting_in_a_config_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Error parsing text-format"):
        read(tmp_path, "model_config_list {" * 100_000)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nope\.config: No such file"):
        read_model_configs(tmp_path / "nope.config")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "Both server_options.model_base_path and server_options.model_config_file are empty"),
        ((*ONE_MODEL, "--port=0"), "At least one of server_options.grpc_port"),
        ((*ONE_MODEL, "--port=70000"), "give 1 to 65535"),
        ((*ONE_MODEL, "--rest_api_port=8500"), "must differ"),
        ((*ONE_MODEL, "--engine=torch"), "choose one of auto, tensorflow, litert"),
        ((*ONE_MODEL, "--workers=0"), "--workers=0: give 1 or more"),
        ((*ONE_MODEL, "--max_json_depth=0"), "--max_json_depth=0"),
        ((*ONE_MODEL, "--drain_timeout_s=nan"), "--drain_timeout_s=nan"),
        ((*ONE_MODEL, "--batching_parameters_file=x"), "without setting server_options.enable_bat"),
        (("--model_base_path=/m", "--model_name=../x"), "model name '../x'"),
        ((*ONE_MODEL, "--ssl_config_file=/nope"), "/nope: No such file"),
        (("--model_base_path=s3://bucket/m",), r"exporter fetch s3://bucket/m --base_path"),
    ],
)
def test_flags_that_make_no_sense_are_refused(arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_config(arguments)


def parse_with_file(tmp_path: Path, flag: str, text: str, *more: str) -> ServerConfig:
    return parse_config([*ONE_MODEL, f"--{flag}={write(tmp_path / 'file', text)}", *more])


def test_batching_parameters_keep_the_defaults_of_what_is_not_given(tmp_path: Path) -> None:
    text = "max_batch_size { value: 4 } allowed_batch_sizes: 2 allowed_batch_sizes: 4"
    config = parse_with_file(tmp_path, "batching_parameters_file", text, "--enable_batching")
    assert config.batching is not None
    assert config.batching.max_batch_size == 4
    assert config.batching.allowed_batch_sizes == (2, 4)
    assert config.batching.max_enqueued_batches == 10


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("max_batch_size { value: 4 } allowed_batch_sizes: 2", "must match max_batch_size"),
        ("allowed_batch_sizes: 1000 allowed_batch_sizes: 2", "monotonically increasing"),
        ("max_batch_size { value: 0 }", "must be positive"),
        ("max_enqueued_batches { value: 0 }", "must be positive"),
        ("batch_timeout_micros { value: -1 }", "must be non-negative"),
        ("max_batch_size: 4", "Error parsing text-format tensorflow.serving.BatchingParameters"),
    ],
)
def test_batching_parameters_that_make_no_sense_are_refused(
    tmp_path: Path, text: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_with_file(tmp_path, "batching_parameters_file", text, "--enable_batching")


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("prometheus_config { enable: true }", METRICS_PATH),
        ('prometheus_config { enable: true path: "/m" }', "/m"),
        ("prometheus_config { enable: false }", ""),
        ("", ""),
    ],
)
def test_a_monitoring_config_turns_metrics_on_and_off(tmp_path: Path, text: str, path: str) -> None:
    assert parse_with_file(tmp_path, "monitoring_config_file", text).metrics_path == path


def test_loopback_unless_a_host_is_given_or_tensorflow_serving_is_to_be_copied() -> None:
    assert parse_config(ONE_MODEL).host == "127.0.0.1"
    assert parse_config([*ONE_MODEL, "--strict_compat"]).host == "0.0.0.0"
    assert parse_config([*ONE_MODEL, "--strict_compat", "--host=::1"]).host == "::1"


def test_metrics_are_on_unless_tensorflow_serving_is_to_be_copied() -> None:
    assert parse_config(ONE_MODEL).metrics_path == METRICS_PATH
    assert parse_config([*ONE_MODEL, "--strict_compat"]).metrics_path == ""


def test_tokens_are_lines_and_comments_are_not(tmp_path: Path) -> None:
    config = parse_with_file(tmp_path, "auth_token_file", "# ops\n0123456789abcdef\n\n" + "x" * 20)
    assert config.auth_tokens == ("0123456789abcdef", "x" * 20)
    assert "0123456789abcdef" not in repr(config)


@pytest.mark.parametrize("text", ["", "# only a comment\n", "short\n", "two words in one line\n"])
def test_a_token_file_without_a_usable_token_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match="token"):
        parse_with_file(tmp_path, "auth_token_file", text)


def test_an_ssl_config_with_a_path_instead_of_pem_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="server_key wants the PEM text itself"):
        parse_with_file(tmp_path, "ssl_config_file", 'server_key: "/etc/key.pem"')


def test_reading_the_configuration_loads_no_engine(tmp_path: Path) -> None:
    path = write(tmp_path / "batching.config", "max_batch_size { value: 4 }")
    check = (
        "import sys, serving.cli, serving.embedded\n"
        "from serving.config.server import parse_config\n"
        f"config = parse_config([*{ONE_MODEL}, '--engine=litert', '--enable_batching', "
        f"'--batching_parameters_file={path}'])\n"
        "assert config.batching.max_batch_size == 4\n"
        "heavy = {'contract.golden', 'contract.lite', 'grpc', 'numpy', 'serving.engines.servable', "
        "'serving.engines.loading', 'serving.engines.self_test'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", check], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
