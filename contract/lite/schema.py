"""What a `.tflite` file says before an interpreter reads it: operators, memory, metadata.

Reads the tables it needs of the flatbuffer (tensorflow/lite/schema/schema.fbs, laid out as in
https://flatbuffers.dev/internals/), so that neither TensorFlow nor the flatbuffers package has to
be installed.
"""

from __future__ import annotations

import contextlib
import enum
import itertools
import struct
from collections.abc import Iterator

from contract.errors import ManifestError
from contract.pictures import PixelScaling

_FILE_IDENTIFIER = b"TFL3"

# Fields of the tables, by their order in schema.fbs.
_MODEL_OPERATOR_CODES = 1
_MODEL_SUBGRAPHS = 2
_CODE_DEPRECATED_BUILTIN = 0
_CODE_CUSTOM = 1
_CODE_BUILTIN = 3
_SUBGRAPH_TENSORS = 0
_SUBGRAPH_OPERATORS = 3
_TENSOR_TYPE = 1
_TENSOR_IS_VARIABLE = 5
_OPERATOR_CODE = 0
_OPERATOR_OPTIONS = 4
_CALL_ONCE_SUBGRAPH = 0

_MODEL_BUFFERS = 4
_MODEL_METADATA = 6
_METADATA_NAME, _METADATA_BUFFER = 0, 1
_BUFFER_DATA = 0

# And in metadata_schema.fbs, of which the buffer called TFLITE_METADATA is.
_NOTES_BUFFER = b"TFLITE_METADATA"
_NOTES_IDENTIFIER = b"M001"
_NOTES_SUBGRAPHS = 3
_NOTE_NAME = 0
_SUBGRAPH_INPUT_NOTES = 2
_TENSOR_UNITS = 4
_UNIT_TYPE, _UNIT_OPTIONS = 0, 1
_NORMALIZATION = 1
_NORMALIZATION_MEAN, _NORMALIZATION_STD = 0, 1

_EXOTIC = {13: "resource", 14: "variant", 17: "int4", 19: "int2", 20: "uint4"}
_LAST_TYPE = 18
"""bfloat16, the last that an ndarray can hold."""

_CALL_ONCE = 129
_ASSIGN_VARIABLE = 144


class Memory(enum.Enum):
    """What a model carries from one call into the next, if nobody sees to it."""

    NONE = enum.auto()
    """Nothing."""
    TENSORS = enum.auto()
    """Variable tensors, as fused recurrent operators have them: an interpreter can reset them."""
    RESOURCES = enum.auto()
    """Variables that operators assign to: only a new interpreter has them as they were."""


def list_custom_ops(content: bytes) -> list[str]:
    """Names of the operators that are not TFLite builtins, sorted.

    Args:
        content: A whole `.tflite` file.

    Raises:
        ManifestError: `content` is not a TFLite model.
    """
    with _explained(content):
        names = (_follow(content, code, _CODE_CUSTOM) for code in _iterate_codes(content))
        return sorted(
            {
                content[at + 4 : at + 4 + size].decode()
                for at in names
                if at is not None and (size := _read(content, "<I", at))
            }
        )


def list_flex_ops(content: bytes) -> list[str]:
    """Names of the TensorFlow operators (`FlexErf` is `Erf`) that need the Flex delegate.

    Args:
        content: A whole `.tflite` file.

    Raises:
        ManifestError: `content` is not a TFLite model.
    """
    return [name[4:] for name in list_custom_ops(content) if name.startswith("Flex")]


def find_exotic_tensors(content: bytes) -> dict[tuple[int, int], str]:
    """The tensors that no ndarray holds, though a runtime may say that one does.

    Args:
        content: A whole `.tflite` file.

    Returns:
        Subgraph and tensor to the name of its type.

    Raises:
        ManifestError: `content` is not a TFLite model.
    """
    exotic = {}
    with _explained(content):
        subgraphs = _iterate(content, _read(content, "<I", 0), _MODEL_SUBGRAPHS)
        for subgraph, table in enumerate(subgraphs):
            for index, tensor in enumerate(_iterate(content, table, _SUBGRAPH_TENSORS)):
                number = _scalar(content, tensor, _TENSOR_TYPE, "<b")
                if number in _EXOTIC or number > _LAST_TYPE:
                    exotic[subgraph, index] = _EXOTIC.get(number, f"of type {number}")
    return exotic


def find_memory(content: bytes) -> Memory:
    """What the model would remember of a call.

    Variables that are assigned to only once, when an interpreter is made, remember nothing.

    Args:
        content: A whole `.tflite` file.

    Raises:
        ManifestError: `content` is not a TFLite model.
    """
    with _explained(content):
        codes = [_read_builtin(content, code) for code in _iterate_codes(content)]
        subgraphs = list(_iterate(content, _read(content, "<I", 0), _MODEL_SUBGRAPHS))
        if _ASSIGN_VARIABLE in codes and _assigns(content, subgraphs, codes):
            return Memory.RESOURCES
        for subgraph in subgraphs:
            for tensor in _iterate(content, subgraph, _SUBGRAPH_TENSORS):
                if _scalar(content, tensor, _TENSOR_IS_VARIABLE, "<B"):
                    return Memory.TENSORS
    return Memory.NONE


def find_scalings(content: bytes) -> dict[str, PixelScaling]:
    """How pixels become the input of each signature, as the file's metadata say.

    Args:
        content: A whole `.tflite` file.

    Returns:
        Name of a signature to what is said of the first of its inputs that has a normalisation; ""
        stands for a subgraph without a name. Empty where the file has no metadata.

    Raises:
        ManifestError: `content` is not a TFLite model.
    """
    found: dict[str, PixelScaling] = {}
    with _explained(content):
        root = _read(content, "<I", 0)
        for entry in _iterate(content, root, _MODEL_METADATA):
            if _bytes(content, entry, _METADATA_NAME) != _NOTES_BUFFER:
                continue
            number = _scalar(content, entry, _METADATA_BUFFER, "<I")
            for buffer in itertools.islice(
                _iterate(content, root, _MODEL_BUFFERS), number, number + 1
            ):
                notes = _bytes(content, buffer, _BUFFER_DATA)
                if notes[4:8] == _NOTES_IDENTIFIER:
                    found |= _read_scalings(notes)
    return found


def _read_scalings(notes: bytes) -> dict[str, PixelScaling]:
    found: dict[str, PixelScaling] = {}
    for subgraph in _iterate(notes, _read(notes, "<I", 0), _NOTES_SUBGRAPHS):
        name = _bytes(notes, subgraph, _NOTE_NAME).decode()
        for tensor in _iterate(notes, subgraph, _SUBGRAPH_INPUT_NOTES):
            for unit in _iterate(notes, tensor, _TENSOR_UNITS):
                options = _follow(notes, unit, _UNIT_OPTIONS)
                if _scalar(notes, unit, _UNIT_TYPE, "<B") != _NORMALIZATION or options is None:
                    continue
                mean = _floats(notes, options, _NORMALIZATION_MEAN)
                std = _floats(notes, options, _NORMALIZATION_STD)
                if mean and len(mean) == len(std) and all(std):
                    found.setdefault(name, PixelScaling(mean, std))
    return found


def _assigns(content: bytes, subgraphs: list[int], codes: list[int]) -> bool:
    """Whether a subgraph assigns to a variable that is not one of those that run once."""
    once: set[int] = set()
    assigning: set[int] = set()
    for index, subgraph in enumerate(subgraphs):
        for operator in _iterate(content, subgraph, _SUBGRAPH_OPERATORS):
            position = _scalar(content, operator, _OPERATOR_CODE, "<I")
            code = codes[position] if position < len(codes) else 0
            if code == _ASSIGN_VARIABLE:
                assigning.add(index)
            elif code == _CALL_ONCE:
                options = _follow(content, operator, _OPERATOR_OPTIONS)
                if options is not None:
                    once.add(_scalar(content, options, _CALL_ONCE_SUBGRAPH, "<i"))
    return not assigning <= once


def _read_builtin(content: bytes, code: int) -> int:
    # Codes below 127 stand in the older field; the larger of both counts (schema_utils.cc).
    return max(
        _scalar(content, code, _CODE_DEPRECATED_BUILTIN, "<b"),
        _scalar(content, code, _CODE_BUILTIN, "<i"),
    )


def _iterate_codes(content: bytes) -> Iterator[int]:
    return _iterate(content, _read(content, "<I", 0), _MODEL_OPERATOR_CODES)


def _iterate(content: bytes, table: int, field: int) -> Iterator[int]:
    """Where each table of a vector of tables starts."""
    vector = _follow(content, table, field)
    if vector is None:
        return
    for index in range(_read(content, "<I", vector)):
        slot = vector + 4 + 4 * index
        yield slot + _read(content, "<I", slot)


def _follow(content: bytes, table: int, field: int) -> int | None:
    """Where the vector, string or table in `field` of the table at `table` starts, if it is set."""
    at = _find(content, table, field)
    return at + _read(content, "<I", at) if at else None


def _bytes(content: bytes, table: int, field: int) -> bytes:
    """The string, or vector of bytes, in `field` of a table; empty if it is not set."""
    at = _follow(content, table, field)
    return b"" if at is None else content[at + 4 : at + 4 + _read(content, "<I", at)]


def _floats(content: bytes, table: int, field: int) -> tuple[float, ...]:
    """The vector of float32 in `field` of the table at `table`."""
    packed = _bytes(content, table, field)
    at = _follow(content, table, field)
    return struct.unpack_from(f"<{len(packed)}f", content, at + 4) if at is not None else ()


def _scalar(content: bytes, table: int, field: int, layout: str) -> int:
    """The number in `field` of the table at `table`; 0, the default of all that are read here."""
    at = _find(content, table, field)
    return _read(content, layout, at) if at else 0


def _find(content: bytes, table: int, field: int) -> int:
    """Where `field` of the table at `table` stands; 0 if it is not set."""
    vtable = table - _read(content, "<i", table)
    entry = 4 + 2 * field
    if vtable < 0 or entry >= _read(content, "<H", vtable):
        return 0
    offset = _read(content, "<H", vtable + entry)
    return table + offset if offset else 0


def _read(content: bytes, layout: str, at: int) -> int:
    (value,) = struct.unpack_from(layout, content, at)
    return int(value)


@contextlib.contextmanager
def _explained(content: bytes) -> Iterator[None]:
    """Turns what a damaged file leads to into one sentence."""
    if content[4:8] != _FILE_IDENTIFIER:
        raise ManifestError(
            f"not a TFLite model: {len(content)} bytes that lack the identifier TFL3 at offset 4"
        )
    try:
        yield
    except (struct.error, UnicodeDecodeError) as error:
        raise ManifestError(f"a damaged TFLite model of {len(content)} bytes: {error}") from error
