"""What a real TensorFlow Serving was asked and answered, and how an answer is compared."""

from __future__ import annotations

import base64
import dataclasses
import http.client
import json
import math
import re
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from contract.wire.plumbline_wire import metadata_pb2
from contract.wire.rpc import METHODS

TESTS = Path(__file__).resolve().parent.parent
MODELS = TESTS / "tfserving_models"
RECORDED = TESTS / "recorded"
PROTOCOL = TESTS.parent / "docs" / "protocol.md"
TIMEOUT_S = 60
MAX_ULP = 2


@dataclasses.dataclass(frozen=True)
class Case:
    """One recorded request and answer."""

    session: str
    id: str
    transport: str
    request: dict[str, Any]
    response: dict[str, Any]
    is_text_exact: bool


@dataclasses.dataclass(frozen=True)
class Addresses:
    """Where a server listens."""

    grpc_port: int
    rest_port: int


def read_sessions() -> dict[str, Any]:
    """`sessions.json`: flags per session, and the files that they name."""
    return dict(json.loads((RECORDED / "sessions.json").read_text()))


def read_cases() -> list[Case]:
    """Every recorded case."""
    cases = []
    for name in sorted(read_sessions()["flags"]):
        for line in (RECORDED / f"{name}.jsonl").read_text().splitlines():
            row = json.loads(line)
            cases.append(
                Case(
                    row["session"],
                    row["id"],
                    row["transport"],
                    row["request"],
                    row["response"],
                    is_text_exact=row["text"] == "exact",
                )
            )
    return cases


@dataclasses.dataclass(frozen=True)
class Difference:
    """A row of the table of deliberate differences."""

    case_id: str
    is_off_when_strict: bool


def read_differences() -> dict[str, Difference]:
    """The differences that docs/protocol.md declares, by case id."""
    found = {}
    for row in re.findall(r"^\| (`[^|]+) \|.*\| (yes|no) \|$", PROTOCOL.read_text(), re.MULTILINE):
        for case_id in re.findall(r"`([^`]+)`", row[0]):
            found[case_id] = Difference(case_id, row[1] == "yes")
    return found


def find_problem(case: Case, addresses: Addresses) -> str:
    """Asks the server; "" when it answers as recorded."""
    ask = _ask_grpc if case.transport == "grpc" else _ask_rest
    return ask(case, addresses)


def _ask_grpc(case: Case, addresses: Addresses) -> str:
    path, want = case.request["method"], case.response
    with grpc.insecure_channel(f"127.0.0.1:{addresses.grpc_port}") as channel:
        try:
            body = channel.unary_unary(path)(
                base64.b64decode(case.request["body"]), timeout=TIMEOUT_S
            )
            code, details = "OK", ""
        except grpc.RpcError as error:
            body, code, details = b"", error.code().name, error.details()
    if code != want["code"]:
        return f"code {code} {details!r} instead of {want['code']} {want['details']!r}"
    if case.is_text_exact and details != want["details"]:
        return f"text {details!r} instead of {want['details']!r}"
    if code != "OK":
        return ""
    got, wanted = (_parse(path, data) for data in (body, base64.b64decode(want["body"])))
    return "" if _are_messages_equal(got, wanted) else f"message\n{got}instead of\n{wanted}"


def _parse(path: str, body: bytes) -> Any:
    message = METHODS[path].response.FromString(body)
    if not path.endswith("/GetModelMetadata"):
        return message
    packed = message.metadata["signature_def"]
    return (
        message.model_spec,
        packed.type_url,
        metadata_pb2.SignatureDefMap.FromString(packed.value),
    )


def _are_messages_equal(got: Any, wanted: Any) -> bool:
    if not hasattr(got, "ListFields"):
        return bool(got == wanted)
    from google.protobuf import json_format

    documents = [
        json_format.MessageToDict(one, preserving_proto_field_name=True) for one in (got, wanted)
    ]
    return is_same(documents[0], documents[1], np.float32)


def _ask_rest(case: Case, addresses: Addresses) -> str:
    request, want = case.request, case.response
    connection = http.client.HTTPConnection("127.0.0.1", addresses.rest_port, timeout=TIMEOUT_S)
    try:
        body = None if request["body"] is None else _to_bytes(request["body"])
        connection.request(request["method"], request["path"], body, request["headers"])
        response = connection.getresponse()
        data = response.read()
    finally:
        connection.close()
    if response.status != want["status"]:
        return f"status {response.status} {data!r} instead of {want['status']} {want['body']}"
    media_type = response.headers.get_content_type()
    if media_type != want["content_type"].split(";")[0]:
        return f"content type {media_type} instead of {want['content_type']}"
    if response.status != 200 and not case.is_text_exact:
        return ""
    wanted = _to_bytes(want["body"])
    if media_type == "application/json" and wanted:
        same = is_same(_parse_json(data), _parse_json(wanted), np.float64)
    else:
        same = data == wanted
    return "" if same else f"body {data!r} instead of {wanted!r}"


def _to_bytes(body: dict[str, str]) -> bytes:
    return body["text"].encode() if "text" in body else base64.b64decode(body["base64"])


def _parse_json(data: bytes) -> Any:
    return json.loads(data.decode("utf-8", "surrogateescape"))


def is_same(got: Any, wanted: Any, float_type: Any) -> bool:
    """Equal, floats within 2 ULP; 1 and 1.0 differ."""
    if type(got) is not type(wanted):
        return False
    if isinstance(got, dict):
        return got.keys() == wanted.keys() and all(
            is_same(got[key], wanted[key], float_type) for key in got
        )
    if isinstance(got, list):
        return len(got) == len(wanted) and all(
            is_same(one, other, float_type) for one, other in zip(got, wanted, strict=True)
        )
    if isinstance(got, float):
        if math.isfinite(got) and math.isfinite(wanted):
            unit = abs(float(np.spacing(float_type(wanted))))
            return abs(got - wanted) <= MAX_ULP * unit
        return repr(got) == repr(wanted)
    return bool(got == wanted)
