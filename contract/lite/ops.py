"""Which operators outside the builtin set a `.tflite` file asks for, read from its bytes.

Reads the three tables it needs of the flatbuffer (`tensorflow/lite/schema/schema.fbs`:
Model.operator_codes is field 1, OperatorCode.custom_code is field 1), so neither
TensorFlow nor the flatbuffers package has to be installed. Layout of a flatbuffer:
https://flatbuffers.dev/internals/.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from contract.errors import ManifestError

FILE_IDENTIFIER = b"TFL3"
_OPERATOR_CODES_FIELD = 1
_CUSTOM_CODE_FIELD = 1


def list_custom_ops(content: bytes) -> list[str]:
    """Names of the operators that are not TFLite builtins, sorted.

    Args:
        content: A whole `.tflite` file.

    Raises:
        ManifestError: `content` is not a TFLite model.
    """
    if content[4:8] != FILE_IDENTIFIER:
        raise ManifestError(
            f"not a TFLite model: {len(content)} bytes that lack the identifier TFL3 at offset 4"
        )
    try:
        return sorted(set(_iterate_custom_codes(content)))
    except (struct.error, UnicodeDecodeError) as error:
        raise ManifestError(f"a damaged TFLite model of {len(content)} bytes: {error}") from error


def list_flex_ops(content: bytes) -> list[str]:
    """Names of the TensorFlow operators (`FlexErf` is `Erf`) that need the Flex delegate.

    Raises:
        ManifestError: `content` is not a TFLite model.
    """
    return [name[4:] for name in list_custom_ops(content) if name.startswith("Flex")]


def _iterate_custom_codes(content: bytes) -> Iterator[str]:
    vector = _follow(content, _read(content, "<I", 0), _OPERATOR_CODES_FIELD)
    if vector is None:
        return
    for index in range(_read(content, "<I", vector)):
        slot = vector + 4 + 4 * index
        name = _follow(content, slot + _read(content, "<I", slot), _CUSTOM_CODE_FIELD)
        if name is not None and (size := _read(content, "<I", name)):
            yield content[name + 4 : name + 4 + size].decode()


def _follow(content: bytes, table: int, field: int) -> int | None:
    """Where the vector or string in `field` of the table at `table` starts, if it is set."""
    vtable = table - _read(content, "<i", table)
    entry = 4 + 2 * field
    if vtable < 0 or entry >= _read(content, "<H", vtable):
        return None
    offset = _read(content, "<H", vtable + entry)
    return table + offset + _read(content, "<I", table + offset) if offset else None


def _read(content: bytes, layout: str, at: int) -> int:
    (value,) = struct.unpack_from(layout, content, at)
    return int(value)
