"""Flags that commands share."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import pytest

from contract.console.flags import (
    TlsFiles,
    add_credential_flags,
    positive_count,
    positive_number,
    read_tls_files,
    read_token,
    whole_number,
)
from contract.errors import ConfigError


def parse(*arguments: object) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_credential_flags(parser.add_argument_group("credentials"))
    return parser.parse_args([str(one) for one in arguments])


def test_without_flags_calls_go_as_plain_text_without_a_token() -> None:
    args = parse()
    assert (read_tls_files(args), read_token(args)) == (None, None)


def test_any_file_of_tls_turns_it_on(tmp_path: Path) -> None:
    for name in ("ca", "cert", "key"):
        (tmp_path / name).write_text(name)
    assert read_tls_files(parse("--tls")) == TlsFiles(None, None, None)
    assert read_tls_files(parse("--ca_file", tmp_path / "ca")) == TlsFiles(b"ca", None, None)
    pair = parse("--cert_file", tmp_path / "cert", "--key_file", tmp_path / "key")
    assert read_tls_files(pair) == TlsFiles(None, b"cert", b"key")


@pytest.mark.parametrize("flag", ["--cert_file", "--key_file"])
def test_a_certificate_and_its_key_go_together(tmp_path: Path, flag: str) -> None:
    with pytest.raises(ConfigError, match="both --cert_file and --key_file"):
        read_tls_files(parse(flag, tmp_path / "one.pem"))


def test_a_file_that_is_not_there_is_named_with_its_flag(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--ca_file .*none\.pem cannot be read: No such file"):
        read_tls_files(parse("--ca_file", tmp_path / "none.pem"))
    with pytest.raises(ConfigError, match=r"--auth_token_file .*none cannot be read: No such file"):
        read_token(parse("--auth_token_file", tmp_path / "none"))


@pytest.mark.parametrize("content", [b"", b"\n", b"two\nlines\n", b"\xff\xfe", "é".encode()])
def test_what_is_no_token_is_refused_and_not_shown(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "token"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="holds no token") as refused:
        read_token(parse("--auth_token_file", path))
    assert "lines" not in refused.value.message


def test_a_token_is_read_without_its_line_end(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("secret\n")
    assert read_token(parse("--auth_token_file", tmp_path / "token")) == "secret"


@pytest.mark.parametrize("text", ["0", "-1", "inf", "nan", "x", ""])
def test_a_number_that_is_not_positive_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="not a finite number above 0"):
        positive_number(text)


@pytest.mark.parametrize(("kind", "least"), [(whole_number, 0), (positive_count, 1)])
def test_what_is_no_whole_number_is_refused_in_words(
    kind: Callable[[str], int], least: int, capsys: pytest.CaptureFixture[str]
) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=kind)
    assert parser.parse_args([f"--count={least}"]).count == least
    for text in ("x", "1.5", str(least - 1)):
        with pytest.raises(SystemExit):
            parser.parse_args([f"--count={text}"])
        said = capsys.readouterr().err
        assert f"--count: {text} is no whole number of {least} or more" in said
