"""What schemathesis is told of TensorFlow Serving's API, in the process that runs it."""

import re
from typing import Any

import schemathesis

_BARE = re.compile(rb"-?\b(?:NaN|Infinity)\b")
_BEYOND_SCHEMAS = re.compile(
    r"\{\{node|\{\{function_node"  # a graph: bytes are no picture, a feature is not there
    # 1 and 1.0 are one number in JSON Schema; here the latter is a float, in features as well.
    r"|JSON Value: \S+ Type: Number is not of expected type: u?int"
    r"|Unexpected element type in feature|Only int64_t is supported"
)


@schemathesis.hook
def after_call(context: Any, case: Any, response: Any) -> None:
    """Numbers that are not finite are bare words, as in TensorFlow Serving: taken for zeros."""
    if response.status_code == 200 and case.path.endswith(":predict"):
        response.content = _BARE.sub(b"0.0", response.content)


@schemathesis.check
def is_accepted(ctx: Any, response: Any, case: Any) -> None:
    """What a schema promises is accepted, but for what no schema can say."""
    is_promised = case.meta is not None and case.meta.generation.mode.is_positive
    is_documented = case.method == case.operation.method.upper()
    if is_promised and is_documented and response.status_code == 400:
        assert _BEYOND_SCHEMAS.search(response.text), response.text
