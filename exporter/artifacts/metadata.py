"""TFLite metadata: what a `.tflite` file says of itself to the tools of mobile platforms.

The format is that of tflite-support: a flatbuffer (metadata_schema.fbs, identifier M001) in a
buffer of the model, named TFLITE_METADATA, and files appended to the model as a zip. It is written
here since the package that writes it exists for no current Python.

The model's own bytes stay as they are. A flatbuffer's offsets are relative and point forward, so
that a new root table goes in front of the old file, with offsets into it.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping, Sequence
from typing import TypeAlias

import flatbuffers
import msgspec
from flatbuffers.number_types import UOffsetTFlags
from flatbuffers.table import Table

from contract.heads import Head
from contract.signature import Signature, TensorSpec
from exporter.data.pixels import PixelScale

_NAME = "TFLITE_METADATA"
_IDENTIFIER = b"M001"
_PARSER_VERSION = "1.0.0"
_FIXED_DATE = (1980, 1, 1, 0, 0, 0)
"""The first that a zip can hold: files of equal models are equal."""
_ALIGNMENT = 64
"""More than any tensor asks for; the old file keeps its place modulo this."""

# Fields of the model's tables (tensorflow/lite/schema/schema.fbs), by number.
_VERSION, _OPERATOR_CODES, _SUBGRAPHS, _DESCRIPTION, _BUFFERS, _METADATA_BUFFER = range(6)
_METADATA, _SIGNATURE_DEFS, _NUM_FIELDS = 6, 7, 8
_SIGNATURE_INPUTS, _SIGNATURE_OUTPUTS, _SIGNATURE_KEY, _, _SIGNATURE_SUBGRAPH = range(5)
_MAP_NAME, _MAP_TENSOR = range(2)
_SUBGRAPH_INPUTS, _SUBGRAPH_OUTPUTS = 1, 2
_BUFFER_OFFSET = 1

# Enumerations of metadata_schema.fbs.
_TENSOR_AXIS_LABELS = 2
_RGB, _GRAYSCALE = 1, 2
_FEATURE_PROPERTIES, _IMAGE_PROPERTIES = 1, 2
_NORMALIZATION_OPTIONS = 1

_Offset: TypeAlias = int
"""Of what a builder has written, from the end of the buffer."""


class Normalisation(msgspec.Struct, frozen=True):
    """How numbers of an input come from what a program has: (value - mean) / std.

    Attributes:
        mean: What becomes 0.
        std: What becomes 1, less `mean`.
    """

    mean: float
    std: float


class TensorNote(msgspec.Struct, frozen=True, kw_only=True):
    """What is said of an input or an output.

    Attributes:
        description: A sentence.
        channels: Of an image, 1 or 3; 0 for what is none.
        size: (height, width) of an image; () for what is none.
        normalisation: Of an image's pixels, 0..255; None where nobody knows.
        labels: Of an output's last axis; ().
    """

    description: str
    channels: int = 0
    size: tuple[int, ...] = ()
    normalisation: Normalisation | None = None
    labels: tuple[str, ...] = ()


class ModelNote(msgspec.Struct, frozen=True, kw_only=True):
    """What is said of a model.

    Attributes:
        name: The model's.
        description: A sentence or two.
        tensors: Signature name to tensor name to what is said of it; an input and an output of
            one signature never share a name here.
    """

    name: str
    description: str
    tensors: dict[str, dict[str, TensorNote]] = {}


def describe_model(
    name: str,
    signatures: Sequence[Signature],
    heads: Mapping[str, Head],
    pixels: PixelScale | None,
) -> ModelNote:
    """What the copies of a model say; `pixels` is how pictures become its input, if they do."""
    tensors: dict[str, dict[str, TensorNote]] = {}
    for one in signatures:
        tensors[one.name] = {
            key: _describe_output(spec, heads.get(key)) for key, spec in one.outputs.items()
        } | {key: _describe_input(spec, pixels) for key, spec in one.inputs.items()}
    takes = "pictures" if pixels is not None else "numbers"
    return ModelNote(
        name=name,
        description=f"{name}: takes {takes}. Signatures: {', '.join(tensors)}.",
        tensors=tensors,
    )


def _describe_input(spec: TensorSpec, pixels: PixelScale | None) -> TensorNote:
    shape = spec.shape[1:] if spec.shape else ()
    size = tuple(one for one in shape[:2] if one is not None)
    if pixels is None or len(size) < 2 or len(shape) > 3:
        return TensorNote(description=f"{spec.describe()}.")
    low, high = (0.0, 255.0) if spec.dtype == "uint8" else (pixels.low, pixels.high)
    std = 255.0 / (high - low)
    return TensorNote(
        description=f"Pictures, {spec.describe()}.",
        channels=shape[2] or 0 if len(shape) == 3 else 1,
        size=size,
        normalisation=Normalisation(mean=-low * std, std=std),
    )


def _describe_output(spec: TensorSpec, head: Head | None) -> TensorNote:
    if head is None:
        return TensorNote(description=f"{spec.describe()}.")
    kind = f"{head.task}, logits" if head.from_logits else head.task
    width = spec.shape[-1] if spec.shape else None
    labels = head.class_names if width == len(head.class_names) else ()
    return TensorNote(description=f"{spec.describe()}, {kind}.", labels=labels)


def add_metadata(content: bytes, note: ModelNote) -> bytes:
    """A `.tflite` file with metadata; it answers as before.

    Returns:
        `content` as it is where it is of more than 2 GB, whose offsets are absolute.
    """
    model = Table(content, int.from_bytes(content[:4], "little"))
    if _has_far_buffers(model):
        return content
    files = _name_label_files(note)
    metadata = _build_metadata(model, note, files)
    return _append_files(_insert(content, metadata), files)


def _name_label_files(note: ModelNote) -> dict[tuple[str, ...], str]:
    """Labels to the name of their file: `labels.txt`, or one for each output that has others."""
    named: dict[tuple[str, ...], str] = {}
    for tensors in note.tensors.values():
        for tensor, one in tensors.items():
            if one.labels and one.labels not in named:
                named[one.labels] = f"labels_{tensor}.txt"
    return {next(iter(named)): "labels.txt"} if len(named) == 1 else named


def _append_files(content: bytes, files: Mapping[tuple[str, ...], str]) -> bytes:
    if not files:
        return content
    stream = io.BytesIO(content)
    with zipfile.ZipFile(stream, "a", zipfile.ZIP_STORED) as archive:
        for labels, name in files.items():
            entry = zipfile.ZipInfo(name, _FIXED_DATE)
            archive.writestr(entry, "".join(f"{label}\n" for label in labels))
    return stream.getvalue()


# -- The metadata's own flatbuffer ---------------------------------------------------------------


def _build_metadata(model: Table, note: ModelNote, files: Mapping[tuple[str, ...], str]) -> bytes:
    builder = flatbuffers.Builder(1024)
    subgraphs = [
        _build_subgraph(builder, graph, *signature, note, files)
        for graph, signature in zip(
            _list_tables(model, _SUBGRAPHS), _find_signatures(model), strict=False
        )
    ]
    name, description, version = map(
        builder.CreateString, (note.name, note.description, _PARSER_VERSION)
    )
    graphs = _create_vector(builder, subgraphs)
    builder.StartObject(8)
    builder.PrependUOffsetTRelativeSlot(0, name, 0)
    builder.PrependUOffsetTRelativeSlot(1, description, 0)
    builder.PrependUOffsetTRelativeSlot(3, graphs, 0)
    builder.PrependUOffsetTRelativeSlot(7, version, 0)
    builder.Finish(builder.EndObject(), _IDENTIFIER)
    return bytes(builder.Output())


def _find_signatures(model: Table) -> list[tuple[str, dict[int, str]]]:
    """(signature name, tensor number to name) of each subgraph up to the last that has one."""
    found = {}
    for one in _list_tables(model, _SIGNATURE_DEFS):
        tensors = {
            _read_number(entry, _MAP_TENSOR): _read_text(entry, _MAP_NAME)
            for field in (_SIGNATURE_INPUTS, _SIGNATURE_OUTPUTS)
            for entry in _list_tables(one, field)
        }
        subgraph = _read_number(one, _SIGNATURE_SUBGRAPH)
        found[subgraph] = _read_text(one, _SIGNATURE_KEY), tensors
    return [found.get(at, ("", {})) for at in range(max(found, default=-1) + 1)]


def _build_subgraph(
    builder: flatbuffers.Builder,
    graph: Table,
    signature: str,
    names: Mapping[int, str],
    note: ModelNote,
    files: Mapping[tuple[str, ...], str],
) -> _Offset:
    notes = note.tensors.get(signature, {})
    inputs, outputs = (
        _create_vector(
            builder,
            [
                _build_tensor(builder, names.get(number, ""), notes, files)
                for number in _list_numbers(graph, field)
            ],
        )
        for field in (_SUBGRAPH_INPUTS, _SUBGRAPH_OUTPUTS)
    )
    name = builder.CreateString(signature)
    builder.StartObject(7)
    builder.PrependUOffsetTRelativeSlot(0, name, 0)
    builder.PrependUOffsetTRelativeSlot(2, inputs, 0)
    builder.PrependUOffsetTRelativeSlot(3, outputs, 0)
    return int(builder.EndObject())


def _build_tensor(
    builder: flatbuffers.Builder,
    name: str,
    notes: Mapping[str, TensorNote],
    files: Mapping[tuple[str, ...], str],
) -> _Offset:
    note = notes.get(name, TensorNote(description=""))
    content = _build_content(builder, note)
    units = (
        _create_vector(builder, [_build_normalisation(builder, note.normalisation)])
        if note.normalisation is not None
        else 0
    )
    labels = (
        _create_vector(builder, [_build_file(builder, files[note.labels])]) if note.labels else 0
    )
    text, description = builder.CreateString(name), builder.CreateString(note.description)
    builder.StartObject(7)
    builder.PrependUOffsetTRelativeSlot(0, text, 0)
    builder.PrependUOffsetTRelativeSlot(1, description, 0)
    builder.PrependUOffsetTRelativeSlot(3, content, 0)
    builder.PrependUOffsetTRelativeSlot(4, units, 0)
    builder.PrependUOffsetTRelativeSlot(6, labels, 0)
    return int(builder.EndObject())


def _build_content(builder: flatbuffers.Builder, note: TensorNote) -> _Offset:
    if note.size:
        height, width = note.size
        builder.StartObject(2)
        builder.PrependUint32Slot(0, width, 0)
        builder.PrependUint32Slot(1, height, 0)
        size = builder.EndObject()
        builder.StartObject(2)
        builder.PrependInt8Slot(0, {1: _GRAYSCALE, 3: _RGB}.get(note.channels, 0), 0)
        builder.PrependUOffsetTRelativeSlot(1, size, 0)
        kind = _IMAGE_PROPERTIES
    else:
        builder.StartObject(0)
        kind = _FEATURE_PROPERTIES
    properties = builder.EndObject()
    builder.StartObject(3)
    builder.PrependUint8Slot(0, kind, 0)
    builder.PrependUOffsetTRelativeSlot(1, properties, 0)
    return int(builder.EndObject())


def _build_normalisation(builder: flatbuffers.Builder, one: Normalisation) -> _Offset:
    vectors = []
    for value in (one.mean, one.std):
        builder.StartVector(4, 1, 4)
        builder.PrependFloat32(value)
        vectors.append(builder.EndVector())
    builder.StartObject(2)
    builder.PrependUOffsetTRelativeSlot(0, vectors[0], 0)
    builder.PrependUOffsetTRelativeSlot(1, vectors[1], 0)
    options = builder.EndObject()
    builder.StartObject(2)
    builder.PrependUint8Slot(0, _NORMALIZATION_OPTIONS, 0)
    builder.PrependUOffsetTRelativeSlot(1, options, 0)
    return int(builder.EndObject())


def _build_file(builder: flatbuffers.Builder, file_name: str) -> _Offset:
    name = builder.CreateString(file_name)
    description = builder.CreateString("A label a line, in the order of the last axis.")
    builder.StartObject(4)
    builder.PrependUOffsetTRelativeSlot(0, name, 0)
    builder.PrependUOffsetTRelativeSlot(1, description, 0)
    builder.PrependInt8Slot(2, _TENSOR_AXIS_LABELS, 0)
    return int(builder.EndObject())


# -- Into the model ------------------------------------------------------------------------------


def _insert(content: bytes, metadata: bytes) -> bytes:
    """The model with one more buffer and one more entry of metadata, in front of the old file."""
    padded = content + bytes(-len(content) % _ALIGNMENT)
    builder = flatbuffers.Builder(len(padded) + len(metadata) + 65536)
    # A builder writes from the back to the front, so the old file is as if it had written it.
    builder.head = len(builder.Bytes) - len(padded)
    builder.Bytes[builder.head :] = padded
    builder.minalign = _ALIGNMENT

    def locate(position: int) -> _Offset:
        return len(padded) - position

    model = Table(content, int.from_bytes(content[:4], "little"))
    data = _create_bytes(builder, metadata)
    builder.StartObject(3)
    builder.PrependUOffsetTRelativeSlot(0, data, 0)
    buffer = builder.EndObject()
    old_buffers = [locate(one.Pos) for one in _list_tables(model, _BUFFERS)]
    buffers = _create_vector(builder, [*old_buffers, buffer])
    name = builder.CreateString(_NAME)
    builder.StartObject(2)
    builder.PrependUOffsetTRelativeSlot(0, name, 0)
    builder.PrependUint32Slot(1, len(old_buffers), 0)
    entry = builder.EndObject()
    old_entries = [locate(one.Pos) for one in _list_tables(model, _METADATA)]
    entries = _create_vector(builder, [*old_entries, entry])
    kept = {
        field: locate(model.Indirect(model.Pos + offset))
        for field in (_OPERATOR_CODES, _SUBGRAPHS, _DESCRIPTION, _METADATA_BUFFER, _SIGNATURE_DEFS)
        if (offset := model.Offset(4 + 2 * field))
    }
    builder.StartObject(_NUM_FIELDS)
    builder.PrependUint32Slot(_VERSION, _read_number(model, _VERSION), 0)
    for field, offset in (kept | {_BUFFERS: buffers, _METADATA: entries}).items():
        builder.PrependUOffsetTRelativeSlot(field, offset, 0)
    builder.Finish(builder.EndObject(), content[4:8])
    return bytes(builder.Output())


def _create_vector(builder: flatbuffers.Builder, offsets: Sequence[_Offset]) -> _Offset:
    builder.StartVector(4, len(offsets), 4)
    for offset in reversed(offsets):
        builder.PrependUOffsetTRelative(offset)
    return int(builder.EndVector())


def _create_bytes(builder: flatbuffers.Builder, content: bytes) -> _Offset:
    builder.StartVector(1, len(content), 16)
    builder.head -= len(content)
    builder.Bytes[builder.head : builder.head + len(content)] = content
    return int(builder.EndVector())


# -- Reading a model's tables --------------------------------------------------------------------


def _has_far_buffers(model: Table) -> bool:
    """Whether the bytes of buffers lie outside of the flatbuffer, at absolute offsets."""
    return any(_read_number(one, _BUFFER_OFFSET) for one in _list_tables(model, _BUFFERS))


def _list_tables(table: Table, field: int) -> list[Table]:
    offset = table.Offset(4 + 2 * field)
    if not offset:
        return []
    start, count = table.Vector(offset), table.VectorLen(offset)
    return [Table(table.Bytes, table.Indirect(start + 4 * at)) for at in range(count)]


def _list_numbers(table: Table, field: int) -> list[int]:
    offset = table.Offset(4 + 2 * field)
    if not offset:
        return []
    start, count = table.Vector(offset), table.VectorLen(offset)
    return [int(table.Get(UOffsetTFlags, start + 4 * at)) for at in range(count)]


def _read_number(table: Table, field: int) -> int:
    offset = table.Offset(4 + 2 * field)
    return int(table.Get(UOffsetTFlags, table.Pos + offset)) if offset else 0


def _read_text(table: Table, field: int) -> str:
    offset = table.Offset(4 + 2 * field)
    return str(table.String(table.Pos + offset).decode()) if offset else ""
