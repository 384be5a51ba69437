"""JSON of a classify or regress request to tf.Examples (`util/json_tensor.cc`)."""

from __future__ import annotations

from typing import Any

from contract.errors import RequestError
from contract.wire.plumbline_wire import example_pb2
from serving.rest.json_items import decode_base64_object, is_base64_object
from serving.rest.json_object import list_members
from serving.rest.json_printer import describe_json, name_json_type

EXAMPLES = "examples"
CONTEXT = "context"

_KINDS = {"bytes_list": "bytes", "float_list": "float", "int64_list": "int64"}
_MAX_FLOAT32 = 3.4028235677973366e38
"""From here on (halfway to the next power of two) a double is an infinite float32."""


def read_examples(document: dict[str, Any]) -> Any:
    """The `Input` of a classify or regress request.

    Raises:
        RequestError: In TensorFlow Serving's words.
    """
    message = example_pb2.Input()
    has_context = CONTEXT in document
    if has_context:
        _fill_example(document[CONTEXT], message.example_list_with_context.context)
    if EXAMPLES not in document:
        raise _format_error(
            document, "When method is classify, key 'examples' is expected and was not found"
        )
    examples = document[EXAMPLES]
    if not isinstance(examples, list):
        raise _format_error(document, "Expecting 'examples' value to be an list/array")
    if not examples:
        raise _format_error(document, "'examples' value is an empty array")
    target = message.example_list_with_context if has_context else message.example_list
    for example in examples:
        _fill_example(example, target.examples.add())
    return message


def _fill_example(value: Any, example: Any) -> None:
    if not isinstance(value, dict):
        raise RequestError(f"Example must be JSON object but got JSON {name_json_type(value)}")
    example.SetInParent()
    for name, content in list_members(value):
        feature = example.features.feature[_to_key(name)]
        feature.Clear()  # of equal names the last counts
        for one in content if isinstance(content, list) else (content,):
            _add_value(one, name, feature)


def _add_value(value: Any, name: str, feature: Any) -> None:
    kind = _find_kind(value, name)
    if feature.WhichOneof("kind") not in (None, kind):
        raise RequestError(
            f"Unexpected element type in feature: {name} "
            f"expecting type: {_KINDS[feature.WhichOneof('kind')]}"
        )
    getattr(feature, kind).value.append(_read_element(value, name))


def _find_kind(value: Any, name: str) -> str:
    if isinstance(value, bool | int):
        return "int64_list"
    if isinstance(value, float):
        return "float_list"
    if isinstance(value, str) or is_base64_object(value):
        return "bytes_list"
    raise RequestError(
        f"Feature: {name} has element with unexpected JSON type: {name_json_type(value)}"
    )


def _read_element(value: Any, name: str) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", "surrogateescape")
    if isinstance(value, float):
        return _narrow(value)
    if isinstance(value, dict):
        return decode_base64_object(value)
    if value >= 2**63:
        raise RequestError(f"Feature: {name} has uint64_t element. Only int64_t is supported.")
    return int(value)


def _narrow(value: float) -> float:
    if abs(value) < _MAX_FLOAT32:
        return value
    return value * float("inf")


def _to_key(name: str) -> str:
    # A name that is no UTF-8 cannot travel in a string field.
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _format_error(document: dict[str, Any], text: str) -> RequestError:
    return RequestError(f"JSON Value: {describe_json(document)} {text}")
