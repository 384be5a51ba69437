"""`/openapi.json`: the REST API as an OpenAPI 3.1 document, with each model's own schemas.

It is built from what is served when it is asked for: a path for every model, version and label, and
the names, dtypes and shapes of their signatures in row and column format. What JSON Schema cannot
say stands in descriptions: NaN and Infinity are bare words, and free axes are of one size in all
rows of a call.
"""

from __future__ import annotations

import dataclasses
import re
import urllib.parse
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from contract.errors import ServableNotFoundError, ServableUnavailableError
from contract.servable import DEFAULT_SIGNATURE_NAME, ModelSpec, VersionState
from contract.signature import Signature, TensorSpec, describe_shape
from serving.api.results import CLASSIFICATION, REGRESSION
from serving.rest.requests import INT_RANGES

if TYPE_CHECKING:
    from serving.api.handlers import Handlers

Json: TypeAlias = (
    "bool | int | float | str | Sequence[Json] | Mapping[str, Json] | None"  # a document's node
)
Node: TypeAlias = "dict[str, Json]"
"""A JSON object of the document: a schema, a path item, an operation."""

_FLOATS = {"float32": "float", "float64": "double"}
_BYTES_SUFFIX = "_bytes"
"""Of outputs that are answered as base64."""

_LARGEST_EXAMPLE = 1024
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]")
_JSON = "application/json"
_TITLE = "Plumbline: TensorFlow Serving's REST API"
_DESCRIPTION = (
    "What this server serves at the moment. In answers, and in requests, numbers that are not "
    "finite are the bare words NaN, Infinity and -Infinity, as TensorFlow Serving has them. Axes "
    "that a schema leaves free are of one size in all rows of a call. Keys that are not named are "
    "ignored. A method that a path does not have is answered with 400."
)


@dataclasses.dataclass(frozen=True, slots=True)
class ServedVersion:
    """A version that answers.

    Attributes:
        number: Its version number.
        signatures: Signature name to signature.
    """

    number: int
    signatures: Mapping[str, Signature]


@dataclasses.dataclass(frozen=True, slots=True)
class DescribedModel:
    """A model of the configuration, as the document tells it.

    Attributes:
        name: The model name.
        labels: Label to version.
        versions: Those that answer, the highest first; none while nothing is loaded.
    """

    name: str
    labels: Mapping[str, int]
    versions: tuple[ServedVersion, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Part:
    """What an API has to say of a model.

    Attributes:
        paths: Path to path item.
        schemas: Name among the document's components to schema.
    """

    paths: Node
    schemas: Node


DescribeModel: TypeAlias = "Callable[[DescribedModel, str], Part]"
"""Given a model, and the prefix of what it names among the components."""


def find_models(handlers: Handlers) -> list[DescribedModel]:
    """The models of the configuration, with the signatures of those versions that answer here."""
    found = []
    for model in handlers.list_models():
        versions = []
        for status in model.versions:
            if status.state is VersionState.END:
                continue
            try:
                with handlers.acquire(ModelSpec(model.name, version=status.version)) as servable:
                    versions.append(ServedVersion(status.version, servable.signatures))
            except (ServableNotFoundError, ServableUnavailableError):
                continue  # it is not loaded here, or left meanwhile
        found.append(DescribedModel(model.name, model.labels, tuple(versions)))
    return found


def make_document(
    models: Iterable[DescribedModel],
    *,
    version: str,
    probes: Iterable[str] = (),
    metrics_path: str = "",
    wants_token: bool = False,
) -> Node:
    """The whole document.

    Args:
        models: What is served.
        version: Of the server.
        probes: Paths that tell whether it lives and is ready, which want no token.
        metrics_path: Of the page that Prometheus scrapes; "" for none.
        wants_token: Whether calls want a bearer token.
    """
    paths: Node = {
        "/v1/models": {
            "get": _make_operation(
                "listModels", "Every model, its versions, labels and states", _ref("ModelList")
            )
        }
    }
    schemas: Node = dict(_SCHEMAS)
    prefixes: set[str] = set()
    for model in models:
        prefix = _name_component(model.name, prefixes)
        for describe in APIS:
            part = describe(model, prefix)
            paths |= part.paths
            schemas |= part.schemas
    paths["/openapi.json"] = {
        "get": _make_operation("describeApi", "This document", {"type": "object"})
    }
    for path in sorted(probes):
        paths[path] = {"get": _make_page(path.strip("/"), "A probe: 200, or 503 and why", True)}
    if metrics_path:
        paths[metrics_path] = {"get": _make_page("metrics", "Metrics, for Prometheus")}
    components: Node = {"schemas": schemas}
    document: Node = {
        "openapi": "3.1.0",
        "info": {"title": _TITLE, "version": version, "description": _DESCRIPTION},
        "servers": [{"url": "/"}],
        "paths": paths,
        "components": components,
    }
    if wants_token:
        components["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"token": []}]
    return document


def _name_component(name: str, taken: set[str]) -> str:
    """A model's name as components may have it, and as no other model has it."""
    plain = _UNSAFE.sub("_", name)
    chosen, number = plain, 2
    while chosen in taken:
        chosen, number = f"{plain}_{number}", number + 1
    taken.add(chosen)
    return chosen


# TensorFlow Serving's API.


def describe_v1(model: DescribedModel, prefix: str) -> Part:
    """Status, metadata and predictions of a model, each of its versions, and each label."""
    paths: Node = {}
    schemas: Node = {}
    by_number = {one.number: one for one in model.versions}
    for one in model.versions:
        schemas |= _list_version_schemas(one, f"{prefix}.{one.number}")
    base = f"/v1/models/{urllib.parse.quote(model.name, safe='')}"
    latest = model.versions[0] if model.versions else None
    for path, told, version in (
        (base, f"{model.name}", latest),
        *(
            (f"{base}/versions/{number}", f"{model.name}, version {number}", one)
            for number, one in by_number.items()
        ),
        *(
            (
                f"{base}/labels/{urllib.parse.quote(label, safe='')}",
                f"{model.name}, label {label}",
                by_number.get(number),
            )
            for label, number in model.labels.items()
        ),
    ):
        paths[path] = {
            "get": _make_operation(f"status {path}", f"States of {told}", _ref("ModelStatus"))
        }
        if version is not None:
            paths |= _list_version_paths(path, told, version, f"{prefix}.{version.number}")
    return Part(paths, schemas)


APIS: tuple[DescribeModel, ...] = (describe_v1,)
"""Who describes a model. Another API adds its own function here."""


def _list_version_paths(path: str, told: str, version: ServedVersion, prefix: str) -> Node:
    paths: Node = {
        f"{path}/metadata": {
            "get": _make_operation(
                f"metadata {path}", f"Signatures of {told}", _ref("ModelMetadata")
            )
        }
    }
    for verb, title, is_there in (
        ("predict", "Predict", any(map(_is_expressible, version.signatures.values()))),
        ("classify", "Classify", bool(_list_for(CLASSIFICATION.method_name, version))),
        ("regress", "Regress", bool(_list_for(REGRESSION.method_name, version))),
    ):
        if is_there:
            paths[f"{path}:{verb}"] = {
                "post": _make_operation(
                    f"{verb} {path}",
                    f"{title} by {told}",
                    _ref(f"{prefix}.{title}Response"),
                    _ref(f"{prefix}.{title}Request"),
                )
            }
    return paths


def _list_version_schemas(version: ServedVersion, prefix: str) -> Node:
    schemas: Node = {}
    signatures = [one for one in version.signatures.values() if _is_expressible(one)]
    requests: list[Json] = []
    responses: list[Json] = []
    for one in sorted(signatures, key=lambda one: (one.name != DEFAULT_SIGNATURE_NAME, one.name)):
        requests += _list_requests(one)
        responses += _list_responses(one)
    if requests:
        schemas[f"{prefix}.PredictRequest"] = {"anyOf": requests}
        schemas[f"{prefix}.PredictResponse"] = {"anyOf": responses}
    for title, method, result in (
        ("Classify", CLASSIFICATION, _CLASSIFICATIONS),
        ("Regress", REGRESSION, _NUMBERS),
    ):
        names = _list_for(method.method_name, version)
        if names:
            schemas[f"{prefix}.{title}Request"] = _make_examples_request(names)
            schemas[f"{prefix}.{title}Response"] = _make_object({"results": result})
    return schemas


def _list_for(method_name: str, version: ServedVersion) -> list[str]:
    """The signatures that are meant for Classify or Regress."""
    return sorted(
        name for name, one in version.signatures.items() if one.method_name == method_name
    )


def _is_expressible(signature: Signature) -> bool:
    """Whether REST can carry all of its tensors, as JSON has no float16 and the like."""
    specs = (*signature.inputs.values(), *signature.outputs.values())
    return bool(signature.inputs) and all(
        one.dtype in INT_RANGES or one.dtype in _FLOATS or one.dtype in ("string", "bool")
        for one in specs
    )


def _list_requests(signature: Signature) -> Iterator[Json]:
    """Its requests in row format, if every tensor has rows, and in column format."""
    inputs = signature.inputs
    if all(map(_has_rows, (*inputs.values(), *signature.outputs.values()))):
        yield _make_request(signature, "row by row", "instances", _make_rows(inputs), "inputs")
    columns = _make_whole(inputs)
    yield _make_request(signature, "column by column", "inputs", columns, "instances")


def _make_request(signature: Signature, how: str, key: str, tensors: Node, other: str) -> Node:
    name = signature.name
    is_default = name == DEFAULT_SIGNATURE_NAME
    schema: Node = {
        "title": f"{name}, {how}",
        "type": "object",
        "properties": {"signature_name": {"const": name}, key: tensors, other: False},
        "required": [key] if is_default else ["signature_name", key],
    }
    example = _make_example(signature.inputs, is_by_row=key == "instances")
    if example is not None:
        named: Node = {} if is_default else {"signature_name": name}
        schema["examples"] = [{**named, key: example}]
    return schema


def _list_responses(signature: Signature) -> Iterator[Json]:
    outputs = signature.outputs
    if all(map(_has_rows, (*signature.inputs.values(), *outputs.values()))):
        rows = _make_rows(outputs, is_output=True)
        yield {"title": f"{signature.name}, row by row", **_make_object({"predictions": rows})}
    columns = _make_whole(outputs, is_output=True)
    yield {"title": f"{signature.name}, column by column", **_make_object({"outputs": columns})}


def _has_rows(spec: TensorSpec) -> bool:
    return spec.shape is None or len(spec.shape) > 0


def _make_rows(specs: Mapping[str, TensorSpec], *, is_output: bool = False) -> Node:
    """A list of rows: of plain values where there is one tensor, else of objects."""
    rows = {name: _make_row(spec, is_output) for name, spec in specs.items()}
    named = {**_make_object(rows), "additionalProperties": False}
    item: Json = named
    if len(specs) == 1:
        (plain,) = rows.values()
        item = plain
        if not is_output:
            # Named rows and plain ones do not mix.
            return {"anyOf": [_make_batch(specs, plain), _make_batch(specs, named)]}
    return _make_batch(specs, item, is_output=is_output)


def _make_batch(specs: Mapping[str, TensorSpec], item: Json, *, is_output: bool = False) -> Node:
    sizes = {one.shape[0] for one in specs.values() if one.shape}
    fixed = [size for size in sizes if size is not None]
    return _make_list(item, fixed[0] if fixed else None, is_filled=not is_output)


def _make_row(spec: TensorSpec, is_output: bool) -> Node:
    shape = None if spec.shape is None else spec.shape[1:]
    return _make_tensor(spec, shape, is_output)


def _make_whole(specs: Mapping[str, TensorSpec], *, is_output: bool = False) -> Node:
    """A tensor where there is one, else an object of them."""
    columns = {name: _make_tensor(spec, spec.shape, is_output) for name, spec in specs.items()}
    named = {**_make_object(columns), "additionalProperties": not is_output}
    if len(specs) > 1:
        return named
    (plain,) = columns.values()
    return plain if is_output else {"anyOf": [plain, named]}


def _make_tensor(spec: TensorSpec, shape: Sequence[int | None] | None, is_output: bool) -> Node:
    """Lists within lists; the outermost axis is described with its name and dtype."""
    value = _make_value(spec, is_output)
    told = f"{spec.name}: {spec.dtype} {describe_shape(spec.shape)}"
    if shape is None:
        lists: Node = {"type": "array", "items": {}}
        return {"description": f"{told}; lists nested alike", "anyOf": [value, lists]}
    node = value
    for axis in range(len(shape) - 1, -1, -1):
        # Of what is not there nobody can tell the inner axes.
        node = _make_list(node, shape[axis], is_filled=not is_output and axis < len(shape) - 1)
    return {"description": told, **node}


def _make_list(item: Json, size: int | None, *, is_filled: bool) -> Node:
    node: Node = {"type": "array", "items": item}
    if size is not None:
        node |= {"minItems": size, "maxItems": size}
    elif is_filled:
        node["minItems"] = 1
    return node


def _make_value(spec: TensorSpec, is_output: bool) -> Node:
    if spec.dtype == "bool":
        return {"type": "boolean"}
    if spec.dtype in _FLOATS:
        return {"type": "number", "format": _FLOATS[spec.dtype]}
    if spec.dtype == "string":
        if is_output:
            return dict(_BASE64) if spec.name.endswith(_BYTES_SUFFIX) else {"type": "string"}
        return {"anyOf": [{"type": "string"}, _BASE64]}
    limits = np.iinfo(spec.dtype)  # of small ones more is taken, and wraps
    return {
        "type": "integer",
        "format": spec.dtype,
        "minimum": int(limits.min),
        "maximum": int(limits.max),
    }


def _make_example(specs: Mapping[str, TensorSpec], *, is_by_row: bool) -> Json:
    """One row of zeros; None for strings, which mean something, and for what is large."""
    size = 0
    examples: dict[str, Json] = {}
    for name, spec in specs.items():
        if spec.dtype == "string" or spec.shape is None:
            return None
        shape = [1 if axis is None else axis for axis in spec.shape]
        example: Json = {"bool": False}.get(spec.dtype, 0.0 if spec.dtype in _FLOATS else 0)
        num = 1
        for axis in reversed(shape[1:] if is_by_row else shape):
            example, num = [example] * axis, num * axis
        size += num
        examples[name] = example
    if size > _LARGEST_EXAMPLE:
        return None
    row: Json = examples if len(examples) > 1 else next(iter(examples.values()))
    if not is_by_row:
        return row
    first = next(iter(specs.values())).shape
    return [row] * ((first[0] or 1) if first else 1)


def _make_examples_request(names: Sequence[str]) -> Node:
    """Of Classify or Regress."""
    examples: Node = {"type": "array", "minItems": 1, "items": _ref("Example")}
    schema = _make_object({"examples": examples})
    schema["properties"] = {
        "signature_name": {"enum": list(names)},
        "context": _ref("Example"),
        "examples": examples,
    }
    if DEFAULT_SIGNATURE_NAME not in names:
        schema["required"] = ["signature_name", "examples"]
    return schema


# The words of OpenAPI.


def _make_operation(
    operation_id: str, summary: str, answer: Node, request: Node | None = None
) -> Node:
    operation: Node = {
        "operationId": operation_id,
        "summary": summary,
        "responses": {
            "200": {"description": "The answer", "content": {_JSON: {"schema": answer}}},
            "default": {
                "description": "Why there is none; the status says what kind of fault it is",
                "content": {_JSON: {"schema": _ref("Error")}},
            },
        },
    }
    if request is not None:
        operation["requestBody"] = {"required": True, "content": {_JSON: {"schema": request}}}
    return operation


def _make_page(name: str, summary: str, is_open: bool = False) -> Node:
    text: Node = {"text/plain": {"schema": {"type": "string"}}}
    operation: Node = {
        "operationId": name,
        "summary": summary,
        "responses": {
            "200": {"description": "The page", "content": text},
            "default": {
                "description": "Why there is none",
                "content": {**text, _JSON: {"schema": _ref("Error")}},
            },
        },
    }
    if is_open:
        operation["security"] = []
    return operation


def _make_object(properties: Mapping[str, Json]) -> Node:
    return {"type": "object", "properties": dict(properties), "required": list(properties)}


def _ref(name: str) -> Node:
    return {"$ref": f"#/components/schemas/{name}"}


_BASE64: Node = {
    "type": "object",
    "properties": {
        "b64": {
            "type": "string",
            "contentEncoding": "base64",
            "pattern": "^([A-Za-z0-9+/]{4})*([A-Za-z0-9+/]{2}(==)?|[A-Za-z0-9+/]{3}=?)?$",
        }
    },
    "required": ["b64"],
    "additionalProperties": False,
}
_NUMBERS: Node = {"type": "array", "items": {"type": "number"}}
_CLASSIFICATIONS: Node = {
    "type": "array",
    "items": {
        "type": "array",
        "items": {
            "type": "array",
            "prefixItems": [{"type": "string"}, {"type": "number"}],
            "minItems": 2,
            "maxItems": 2,
        },
    },
}
_STATES: list[Json] = [one.name for one in VersionState]
_STATUSES: Node = {
    "type": "array",
    "items": {
        "type": "object",
        "properties": {
            "version": {"type": "string", "pattern": "^[0-9]+$"},
            "state": {"enum": _STATES},
            "status": {
                "type": "object",
                "properties": {
                    "error_code": {"type": "string"},
                    "error_message": {"type": "string"},
                },
                "required": ["error_code", "error_message"],
            },
        },
        "required": ["version", "state", "status"],
    },
}
_SCHEMAS: Node = {
    "Error": _make_object({"error": {"type": "string"}}),
    "ModelStatus": _make_object({"model_version_status": _STATUSES}),
    "ModelList": _make_object(
        {
            "models": {
                "type": "array",
                "items": _make_object(
                    {
                        "name": {"type": "string"},
                        "version_labels": {
                            "type": "object",
                            "additionalProperties": {"type": "string", "pattern": "^[0-9]+$"},
                        },
                        "model_version_status": _STATUSES,
                    }
                ),
            }
        }
    ),
    "ModelMetadata": _make_object(
        {
            "model_spec": {"type": "object"},
            "metadata": _make_object({"signature_def": {"type": "object"}}),
        }
    ),
    "Example": {
        "type": "object",
        "additionalProperties": {
            "anyOf": [
                {"type": ["string", "number", "boolean"]},
                _BASE64,
                {"type": "array", "items": {"type": "number"}},
                {"type": "array", "items": {"anyOf": [{"type": "string"}, _BASE64]}},
            ]
        },
        "description": (
            "A tf.Example: feature name to a value, or to values of one kind. Numbers with a point "
            "are floats, those without are int64; which features there must be is the graph's "
            "own affair."
        ),
    },
}
