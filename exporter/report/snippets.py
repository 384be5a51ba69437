"""How a signature is asked: a line for curl and a few for Python, which work when pasted.

They ask with a golden example where that is short, else with zeros of its shape, so that nothing
has to be at hand but a server.
"""

from __future__ import annotations

import base64
import json
import re
import shlex
import urllib.parse
from collections.abc import Mapping

import msgspec
import numpy as np

from contract.golden import GoldenExamples
from contract.pictures import JPEG_MAGIC, PNG_MAGIC
from contract.signature import (
    CLASSIFY_METHOD,
    REGRESS_METHOD,
    STRING,
    Array,
    Signature,
    TensorSpec,
)

GRPC, REST = "localhost:8500", "localhost:8501"

_LONGEST = 480
"""Letters of a row that is written out."""
_WORDS = re.compile(r"[a-z]+")
_PICTURE = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000008000000080800000000e164e1570000000c4944415478da6360a00e"
    "0000004800011045efd20000000049454e44ae426082"
)


class Snippet(msgspec.Struct, frozen=True, kw_only=True):
    """How one signature is asked.

    Attributes:
        curl: For a shell.
        python: For a Python that has `clients`.
        is_made_up: The row is zeros, not a golden example.
    """

    curl: str
    python: str
    is_made_up: bool


def write_snippet(
    model_name: str, signature: Signature, examples: GoldenExamples | None
) -> Snippet:
    """How a signature is asked over REST and over gRPC."""
    name = signature.name
    quoted = urllib.parse.quote(model_name, safe="")
    if signature.method_name in (CLASSIFY_METHOD, REGRESS_METHOD):
        verb = "classify" if signature.method_name == CLASSIFY_METHOD else "regress"
        features, is_made_up = _read_features(examples)
        given = {key: _to_json(value) for key, value in features.items()}
        text = json.dumps({"signature_name": name, "examples": [given]})
        curl = f"curl -s -d {shlex.quote(text)} http://{REST}/v1/models/{quoted}:{verb}"
        call = f"client.{verb}([{features!r}], signature_name={json.dumps(name)})"
        return Snippet(curl=curl, python=_wrap(model_name, call), is_made_up=is_made_up)
    rows = _choose_rows(signature, examples)
    python, body, is_made_up = {}, {}, False
    for key, spec in signature.inputs.items():
        value = _round(rows[key]) if key in rows and rows[key].size < _LONGEST else None
        text = repr(value)
        if value is None or len(text) > _LONGEST:
            shape = rows[key].shape if key in rows else spec.shape or ()
            python[key], body[key] = _write_zeros(spec, shape), _write_zeros(spec, shape, '"text"')
            is_made_up = True
        else:
            python[key], body[key] = text, _dump(_to_json(value))
    url = f"http://{REST}/v1/models/{quoted}:predict"
    document = f'{{"signature_name": {json.dumps(name)}, "inputs": {_write_dict(body)}}}'
    if is_made_up:
        program = f"import json; print(json.dumps({document}))"
        curl = f"python3 -c {shlex.quote(program)} | curl -s -d @- {url}"
    else:
        given = {key: _to_json(_round(one)) for key, one in rows.items()}
        text = json.dumps({"signature_name": name, "inputs": given})
        curl = f"curl -s -d {shlex.quote(text)} {url}"
    call = f"client.predict({_write_dict(python)}, signature_name={json.dumps(name)})"
    return Snippet(curl=curl, python=_wrap(model_name, call), is_made_up=is_made_up)


def _write_dict(values: Mapping[str, str]) -> str:
    return f"{{{', '.join(f'{json.dumps(key)}: {text}' for key, text in values.items())}}}"


def _dump(value: object) -> str:
    """JSON that is Python, too."""
    text = json.dumps(value)
    return repr(value) if {"true", "false", "null"} & set(_WORDS.findall(text)) else text


def _wrap(model_name: str, call: str) -> str:
    return (
        "from clients import PredictionClient\n\n"
        f'with PredictionClient("{GRPC}", model_name={json.dumps(model_name)}) as client:\n'
        f"    print({call})"
    )


def _choose_rows(signature: Signature, examples: GoldenExamples | None) -> dict[str, Array]:
    """The first call of golden that is one row, or as many as the signature fixes."""
    if examples is None or not set(signature.inputs) <= set(examples.inputs):
        return {}
    count = examples.batch_sizes[0] if examples.batch_sizes else None
    return {
        name: _shorten_strings(examples.inputs[name][:count])
        for name in signature.inputs
        if np.all(_is_finite(examples.inputs[name][:count]))
    }


def _is_finite(array: Array) -> Array | bool:
    return True if array.dtype.kind in "OSUb" else np.isfinite(array.astype(np.float64))


def _shorten_strings(array: Array) -> Array:
    if array.dtype.kind != "O":
        return array
    made = np.empty(array.shape, object)
    made.reshape(-1)[:] = [_shorten_bytes(bytes(one)) for one in array.flat]
    return made


def _shorten_bytes(content: bytes) -> bytes:
    if len(content) <= _LONGEST // 2:
        return content
    if content.startswith((PNG_MAGIC, JPEG_MAGIC)):
        return _PICTURE
    return content[: _LONGEST // 4].decode(errors="ignore").encode()


def _round(array: Array) -> object:
    """Nested lists; floats in the shortest digits that are the same float32."""
    if array.dtype.kind not in "fV" and array.dtype.name != "bfloat16":
        return array.tolist()
    values = [float(str(np.float32(one))) for one in array.astype(np.float32).flat]
    return np.asarray(values).reshape(array.shape).tolist()


def _write_zeros(spec: TensorSpec, shape: tuple[int | None, ...], string: str = "b'text'") -> str:
    """A Python expression of nested lists."""
    text = {STRING: string, "bool": "False"}.get(spec.dtype, "0")
    for size in reversed(shape):
        text = f"[{text}]" if size in (None, 1) else f"[{text}] * {size}"
    return text


def _to_json(value: object) -> object:
    """What JSON holds; bytes as TensorFlow Serving's REST API takes them."""
    if isinstance(value, list):
        return [_to_json(one) for one in value]
    if isinstance(value, bytes):
        return {"b64": base64.b64encode(value).decode()}
    return value


def _read_features(examples: GoldenExamples | None) -> tuple[Mapping[str, object], bool]:
    """The features of the first golden tf.Example."""
    from contract.wire.plumbline_wire import example_pb2

    if examples is None:
        return {}, True
    parsed = example_pb2.Example()
    parsed.ParseFromString(bytes(next(iter(next(iter(examples.inputs.values())).flat))))
    found: dict[str, object] = {}
    for key, feature in sorted(parsed.features.feature.items()):
        kind = feature.WhichOneof("kind")
        if kind is None:
            continue
        values: list[object] = list(getattr(feature, kind).value)
        if kind == "bytes_list":
            values = [_shorten_bytes(bytes(one)) for one in getattr(feature, kind).value]
        elif kind == "float_list":
            values = [float(str(np.float32(one))) for one in getattr(feature, kind).value]
        found[key] = values[0] if len(values) == 1 else values
    return found, False
