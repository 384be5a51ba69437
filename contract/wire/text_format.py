"""Files that a server's flags name: plain text, and messages in protobuf's text format.

The messages are ModelServerConfig, BatchingParameters, MonitoringConfig and SSLConfig.
"""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from google.protobuf import text_format
from google.protobuf.message import Message

from contract.errors import ConfigError

M = TypeVar("M", bound=Message)

MAX_FILE_BYTES = 16 * 2**20


def read_text(path: Path) -> str:
    """The text of a file that a flag names.

    Raises:
        ConfigError: It cannot be read, is larger than 16 MiB, or is not UTF-8.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
        if len(data) > MAX_FILE_BYTES:
            raise ConfigError(f"{path}: larger than {MAX_FILE_BYTES} bytes")
        return data.decode("utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: is not a text file in UTF-8") from None


def read_text_message(path: Path, message: M) -> M:
    """As `parse_text_message`, of the text of a file."""
    return parse_text_message(read_text(path), message, place=str(path))


def parse_text_message(text: str, message: M, *, place: str) -> M:
    """Fills a message of `tensorflow.serving` from text format, and returns it.

    Args:
        text: The message in text format.
        message: What to fill.
        place: What to call the text in an error, for example its file.

    Raises:
        ConfigError: In TensorFlow Serving's words, "Error parsing text-format
            tensorflow.serving.ModelServerConfig", then the place and the reason.
    """
    problem = f"Error parsing text-format tensorflow.serving.{message.DESCRIPTOR.name}: {place}"
    try:
        return text_format.Parse(text, message)
    except text_format.ParseError as error:
        raise ConfigError(f"{problem}: {error}") from None
    except RecursionError:
        raise ConfigError(f"{problem}: nested too deep") from None
