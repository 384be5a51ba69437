"""TensorFlow Serving's REST calls as JSON: what is asked, and what was answered.

Column format throughout (`inputs`, `outputs`), since it holds every shape; strings go as
`{"b64": ...}`, since JSON holds no bytes. https://www.tensorflow.org/tfx/serving/api_rest
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

import numpy as np
from google.protobuf import json_format

from clients.core.effects import Question
from clients.results import Classification, ModelMetadata, VersionStatus, list_statuses
from contract.errors import Code, InternalError, PlumblineError, TensorMismatchError
from contract.servable import ModelSpec
from contract.signature import STRING, Array, Batch, Signature, TensorSpec, dtype_name
from contract.wire import rpc
from contract.wire.plumbline_wire import metadata_pb2, status_pb2
from contract.wire.signatures import signatures_from_map

_OF_JSON = frozenset(
    {
        *("float32", "float64", "bool", STRING),
        *(f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)),
    }
)
"""The dtypes that servers read from JSON, and write into it."""

_OF_VALUES = frozenset({Code.UNIMPLEMENTED, Code.INVALID_ARGUMENT, Code.INTERNAL, Code.UNKNOWN})
"""What servers answer to a dtype that they do not know there."""


class RestDialect:
    """As GrpcDialect, in JSON; a question's path begins with the HTTP method."""

    def ask_predict(self, spec: ModelSpec, batch: Batch, output_filter: Sequence[str]) -> Question:
        """REST knows no output filter: all come, the client drops the rest."""
        inputs = {name: write_array(name, array) for name, array in batch.items()}
        return _post(spec, "predict", {"inputs": inputs})

    def read_predict(
        self, body: bytes, signature: Signature | None
    ) -> tuple[int | None, dict[str, Array]]:
        """REST does not say which version answered."""
        specs = {} if signature is None else signature.outputs
        outputs = _field(body, "outputs")
        # A single output comes without its name; b64 is how a string comes, not a name.
        named = isinstance(outputs, dict) and outputs.keys() != {"b64"} and len(specs) != 1
        if not named:
            outputs = {next(iter(specs), "outputs"): outputs}
        return None, {
            name: read_array(name, value, specs.get(name)) for name, value in outputs.items()
        }

    def advise(
        self, error: PlumblineError, batch: Batch, signature: Signature | None
    ) -> PlumblineError:
        """As GrpcDialect: whether it may be for a dtype that JSON does not carry."""
        found = {name: dtype_name(array.dtype) for name, array in batch.items()}
        if signature is not None:
            found |= {name: spec.dtype for name, spec in signature.outputs.items()}
        odd = [f"`{name}` ({dtype})" for name, dtype in found.items() if dtype not in _OF_JSON]
        if not odd or error.code not in _OF_VALUES:
            return error
        return type(error)(
            f"{error.message}; REST carries no {', '.join(odd)}: use gRPC (PredictionClient; on "
            "the command line --server host:port)",
            code=error.code,
        )

    def ask_examples(
        self,
        method: rpc.Method,
        spec: ModelSpec,
        examples: list[dict[str, Array]],
        context: Mapping[str, Array],
    ) -> Question:
        """As GrpcDialect."""
        fields: dict[str, object] = {"context": _write_features(context)} if context else {}
        fields["examples"] = [_write_features(features) for features in examples]
        return _post(spec, method.name.lower(), fields)

    def read_classify(self, body: bytes) -> list[list[Classification]]:
        """As GrpcDialect."""
        rows = _field(body, "results")
        try:
            return [[Classification(str(row[0]), float(row[1])) for row in found] for found in rows]
        except (TypeError, ValueError, IndexError) as error:
            raise _unreadable("results", error) from error

    def read_regress(self, body: bytes) -> Array:
        """As GrpcDialect."""
        try:
            return np.array(_field(body, "results"), np.float32)
        except (TypeError, ValueError) as error:
            raise _unreadable("results", error) from error

    def ask_metadata(self, spec: ModelSpec) -> Question:
        """As GrpcDialect."""
        return Question(f"GET {_path(spec)}/metadata", b"")

    def read_metadata(self, body: bytes) -> ModelMetadata:
        """As GrpcDialect."""
        served, metadata = _field(body, "model_spec"), _field(body, "metadata")
        message = metadata_pb2.SignatureDefMap()
        try:
            json_format.ParseDict(metadata["signature_def"], message, ignore_unknown_fields=True)
            signatures = signatures_from_map(message.signature_def)
            return ModelMetadata(served["name"], int(served["version"]), signatures)
        except (json_format.ParseError, KeyError, TypeError, ValueError) as error:
            raise _unreadable("metadata", error) from error

    def ask_status(self, spec: ModelSpec) -> Question:
        """As GrpcDialect."""
        return Question(f"GET {_path(spec)}", b"")

    def read_status(self, body: bytes) -> list[VersionStatus]:
        """As GrpcDialect."""
        rows = {"model_version_status": _field(body, "model_version_status")}
        reply = status_pb2.GetModelStatusResponse()
        try:
            json_format.ParseDict(rows, reply, ignore_unknown_fields=True)
        except json_format.ParseError as error:
            raise _unreadable("model_version_status", error) from error
        return list_statuses(reply)


def _path(spec: ModelSpec) -> str:
    path = f"/v1/models/{quote(spec.name, safe='')}"
    if spec.version is not None:
        return f"{path}/versions/{spec.version}"
    if spec.version_label is not None:
        return f"{path}/labels/{quote(spec.version_label, safe='')}"
    return path


def _post(spec: ModelSpec, verb: str, fields: Mapping[str, object]) -> Question:
    if spec.signature_name:
        fields = {"signature_name": spec.signature_name, **fields}
    return Question(f"POST {_path(spec)}:{verb}", json.dumps(fields).encode())


def _write_features(features: Mapping[str, Array]) -> dict[str, object]:
    return {name: write_array(name, values) for name, values in features.items()}


def write_array(name: str, array: Array) -> object:
    """Nested lists of numbers, booleans or `{"b64": ...}`."""
    if array.dtype.kind == "c":
        raise TensorMismatchError(
            f"`{name}` is {array.dtype.name}, which JSON cannot hold: use PredictionClient"
        )
    if array.dtype.kind in "OSUT":
        return _write_strings(array.tolist())
    if array.dtype.kind not in "fbiu":
        array = array.astype(np.float32)  # bfloat16 and its kin
    return array.tolist()


def _write_strings(value: Any) -> object:
    if isinstance(value, list):
        return [_write_strings(entry) for entry in value]
    raw = value.encode() if isinstance(value, str) else value
    return {"b64": base64.b64encode(raw).decode("ascii")}


def read_array(name: str, value: Any, spec: TensorSpec | None) -> Array:
    """The array in nested lists; of the signature's dtype where there is one."""
    try:
        if spec is None:
            found = np.asarray(value)
            return found if found.dtype.kind in "fbiu" else _read_strings(value)
        array = _read_strings(value) if spec.dtype == STRING else np.array(value, spec.numpy_dtype)
        if array.size == 0 and spec.shape:
            return array.reshape([size or 0 for size in spec.shape])
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise _unreadable(name, error) from error
    return array


def _read_strings(value: Any) -> Array:
    array = np.array(value, object)
    flat = [_read_string(entry) for entry in array.reshape(-1).tolist()]
    read = np.empty(len(flat), object)
    read[:] = flat
    return read.reshape(array.shape)


def _read_string(entry: Any) -> bytes:
    if isinstance(entry, str):
        return entry.encode("utf-8", "surrogateescape")
    return base64.b64decode(entry["b64"], validate=True)


def _field(body: bytes, name: str) -> Any:
    try:
        # TensorFlow Serving puts a string's bytes into JSON as they are, UTF-8 or not.
        return json.loads(body.decode("utf-8", "surrogateescape"))[name]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise _unreadable(name, error, body) from error


def _unreadable(name: str, error: Exception, body: bytes = b"") -> InternalError:
    shown = f" (it begins with {body[:60]!r})" if body else ""
    return InternalError(
        f"the server's {name!r} cannot be read{shown}: {type(error).__name__}: {error}",
        code=Code.DATA_LOSS,
    )
