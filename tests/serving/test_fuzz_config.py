"""Whatever a configuration file or a command line holds, it is read or refused in a sentence.

Examples are drawn from a fixed seed; what once failed is kept as an `example`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from contract.errors import ConfigError
from serving.config.flags import ServerFlags, list_flags
from serving.config.models import check_model_name, read_model_configs
from serving.config.server import parse_config

FUZZ = settings(
    max_examples=200,
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
VALID = """\
model_config_list {
  config {
    name: "mlp" base_path: "/models/mlp" model_platform: "tensorflow"
    model_version_policy { specific { versions: 1 versions: 2 } }
    version_labels { key: "stable" value: 1 }
    logging_config {
      log_collector_config { type: "file" filename_prefix: "/log/mlp" }
      sampling_config { sampling_rate: 0.5 }
    }
  }
}
"""
PIECES = st.sampled_from(
    [
        *("model_config_list", "config", "name", "base_path", "version_labels", "key", "value"),
        *("model_version_policy", "specific", "latest", "all", "versions", "num_versions"),
        *("{", "}", ":", "<", ">", "[", "]", ",", '"', "'", "#", "\\", "\n", " ", "\x00", "\xff"),
        *("0", "-1", "1e400", "9" * 40, "nan", '"/a"', '"../a"', '"mlp"', "true", "é"),
    ]
)


def read_or_refuse(path: Path, text: bytes) -> None:
    path.write_bytes(text)
    try:
        read_model_configs(path)
    except ConfigError as error:
        assert "Traceback" not in error.message
        assert error.message


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "models.config"


@FUZZ
@given(data=st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(path: Path, data: bytes) -> None:
    read_or_refuse(path, data)


@FUZZ
@given(pieces=st.lists(PIECES, max_size=40))
@example(pieces=["{"] * 50_000)
@example(pieces=["model_config_list", "{"] * 5000)
def test_any_words_of_the_format_are_read_or_refused(path: Path, pieces: list[str]) -> None:
    read_or_refuse(path, " ".join(pieces).encode(errors="replace"))


@FUZZ
@given(
    start=st.integers(0, len(VALID)), length=st.integers(0, 20), piece=PIECES | st.text(max_size=8)
)
def test_a_file_with_a_fault_is_read_or_refused(
    path: Path, start: int, length: int, piece: str
) -> None:
    text = VALID[:start] + piece + VALID[start + length :]
    read_or_refuse(path, text.encode(errors="replace"))


@FUZZ
@given(name=st.text(max_size=30))
@example(name="..")
@example(name="a/../b")
@example(name="a\x00")
@example(name="a" * 100_000)
def test_a_model_name_that_is_taken_leads_out_of_no_folder(name: str) -> None:
    try:
        check_model_name(name)
    except ConfigError as error:
        assert len(error.message) < 1000 + len(name) * 10
        return
    base = Path("/models")
    assert (base / name).resolve().parent == base
    assert name.isprintable()


FLAGS = [one.name for one in list_flags(ServerFlags)]
# Flags that name files would be read: they have tests of their own.
WORDS = st.sampled_from(
    [*("0", "-1", "1", "nan", "inf", "1e400", "true", "no", "", "--", "é"), "9" * 30]
)


@FUZZ
@given(
    arguments=st.lists(
        st.builds(lambda name, value: f"--{name}={value}", st.sampled_from(FLAGS), WORDS)
        | st.text(max_size=10),
        max_size=6,
    )
)
def test_any_command_line_is_taken_or_refused(arguments: list[str]) -> None:
    try:
        parse_config(["--model_base_path=/models/m", *arguments])
    except ConfigError as error:
        assert error.message


@pytest.mark.parametrize("make", [lambda path: path.mkdir(), lambda path: path.symlink_to(path)])
def test_what_is_no_file_is_refused(path: Path, make: Callable[[Path], None]) -> None:
    make(path)
    with pytest.raises(ConfigError):
        read_model_configs(path)
