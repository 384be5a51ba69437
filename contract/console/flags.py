"""Flags that commands share: of TLS, of a bearer token, and numbers."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from contract.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class TlsFiles:
    """What the files of `add_credential_flags` hold, PEM.

    Attributes:
        trusted: Certificates that may sign the server's; None for the system's.
        certificate: Our own; None without.
        key: Its private key; None without.
    """

    trusted: bytes | None
    certificate: bytes | None
    key: bytes | None


def add_credential_flags(group: argparse._ArgumentGroup) -> None:
    """Adds --tls, --ca_file, --cert_file, --key_file and --auth_token_file.

    Args:
        group: Of a parser.
    """
    group.add_argument("--tls", action="store_true", help="encrypt; trust the system's CAs")
    group.add_argument(
        "--ca_file", metavar="FILE", help="PEM: who may sign the server's certificate"
    )
    group.add_argument("--cert_file", metavar="FILE", help="PEM: our own certificate (mutual TLS)")
    group.add_argument("--key_file", metavar="FILE", help="PEM: its private key")
    group.add_argument(
        "--auth_token_file", type=Path, metavar="FILE", help="a file that holds a bearer token"
    )


def read_tls_files(args: argparse.Namespace) -> TlsFiles | None:
    """What the flags of `add_credential_flags` say of TLS.

    Args:
        args: Of a parser with these flags.

    Returns:
        None for plain text.

    Raises:
        ConfigError: A file cannot be read, or a certificate was given without its key.
    """
    names = ("ca_file", "cert_file", "key_file")
    given = {name: getattr(args, name) for name in names if getattr(args, name)}
    if not (args.tls or given):
        return None
    if ("cert_file" in given) != ("key_file" in given):
        raise ConfigError("give both --cert_file and --key_file, or neither")
    found = {name: _read(f"--{name}", Path(path)) for name, path in given.items()}
    return TlsFiles(*map(found.get, names))


def read_token(args: argparse.Namespace) -> str | None:
    """The bearer token of --auth_token_file.

    Args:
        args: Of a parser with the flags of `add_credential_flags`.

    Returns:
        None where none was given.

    Raises:
        ConfigError: The file cannot be read, or holds something else than a token.
    """
    path: Path | None = args.auth_token_file
    if path is None:
        return None
    token = _read("--auth_token_file", path).decode(errors="replace").strip()
    if not token or not token.isascii() or not token.isprintable():
        raise ConfigError(
            f"--auth_token_file {path} holds no token, which is one line of printable ASCII"
        )
    return token


def _read(flag: str, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{flag} {path} cannot be read: {error.strerror}") from error


def positive_number(text: str) -> float:
    """An argparse type: a finite number above 0.

    Args:
        text: As it was given.

    Returns:
        The number.

    Raises:
        ArgumentTypeError: It is another one, or none.
    """
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a finite number above 0")
    return value


def whole_number(text: str) -> int:
    """An argparse type: a whole number of at least 0."""
    return _read_whole(text, 0)


def positive_count(text: str) -> int:
    """An argparse type: a whole number of at least 1."""
    return _read_whole(text, 1)


def _read_whole(text: str, least: int) -> int:
    try:
        value = int(text)
    except ValueError:
        value = least - 1
    if value < least:
        raise argparse.ArgumentTypeError(f"{text} is no whole number of {least} or more")
    return value
