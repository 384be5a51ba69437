"""What is fuzzed: a function of bytes each, that may raise nothing but what is documented."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Callable, Sequence

Feed = Callable[[bytes], None]


@dataclasses.dataclass(frozen=True)
class Target:
    """A parser.

    Attributes:
        modules: Packages and modules whose branches guide the fuzzer.
        make: Imports the parser and returns what takes one input.
        seeds: Good inputs to begin with.
        max_len: Longest input, bytes.
    """

    modules: Sequence[str]
    make: Callable[[], Feed]
    seeds: Callable[[], Sequence[bytes]]
    max_len: int = 2048


def _make_predict() -> Feed:
    """Bytes of a PredictRequest: what protobuf and we both take has the same inputs.

    We take some that protobuf does not: of two inputs of one name only the last is read.
    """
    from google.protobuf.message import DecodeError

    from contract.errors import PlumblineError
    from contract.wire.plumbline_wire import predict_pb2
    from contract.wire.predict import parse_predict_request

    def feed(body: bytes) -> None:
        try:
            inputs = parse_predict_request(body).decode_inputs(max_fill_bytes=2**16)
            request = predict_pb2.PredictRequest.FromString(body)
        except (DecodeError, PlumblineError):
            return
        assert request.inputs.keys() == inputs.keys()

    return feed


def _seed_predict() -> Sequence[bytes]:
    import numpy as np

    from contract.servable import ModelSpec
    from contract.wire.predict import encode_predict_request

    text = np.array([b"a", b"bc"], object)
    return [
        encode_predict_request(ModelSpec("m"), {"x": np.ones((2, 3), np.float32)}),
        encode_predict_request(ModelSpec("m", 3), {"x": np.arange(4), "y": text}),
        encode_predict_request(
            ModelSpec("m", signature_name="s"), {"x": np.ones(2, bool), "z": np.ones(1, np.float16)}
        ),
    ]


def _make_json() -> Feed:
    """A body of REST, as JSON, as rows or columns, and as tf.Examples."""
    from contract.errors import PlumblineError
    from serving.rest.json_text import parse_json_object
    from serving.rest.requests import read_examples, read_inputs, read_signature_name
    from serving.rest.weighing import weigh_json

    dtypes = ({"x": "float32"}, {"a": "int64", "b": "string"}, {"c": "bool", "d": "uint8"})

    def feed(body: bytes) -> None:
        readers: list[Callable[[dict[str, object]], object]] = [read_signature_name, read_examples]
        readers += [lambda document, one=one: read_inputs(document, one) for one in dtypes]  # type: ignore[misc]
        assert weigh_json(body) >= 0
        for reader in readers:
            try:
                reader(parse_json_object(body, max_depth=16))
            except PlumblineError:
                continue

    return feed


def _seed_json() -> Sequence[bytes]:
    documents = [
        {"instances": [[1.0, 2], [3, 4]]},
        {"signature_name": "s", "inputs": {"a": [1, 2], "b": ["x", {"b64": "YQ=="}]}},
        {"instances": [{"a": 1, "b": "é"}, {"a": 2, "b": "y"}]},
        {"instances": [{"c": True, "d": 7}]},
        {"examples": [{"x": 1.5, "y": [1, 2], "z": {"b64": "YQ"}}], "context": {"q": "w"}},
    ]
    texts = [json.dumps(one).encode() for one in documents]
    return [*texts, b'{"instances":[NaN,-Infinity,1e400,-0,"\\ud800"]}']


def _make_examples() -> Feed:
    """Bytes of a ClassificationRequest: what we take, protobuf takes, with the same tf.Examples.

    Protobuf takes more: varints that do not fit in 64 bits, which no writer writes.
    """
    from google.protobuf.message import DecodeError

    from contract.errors import PlumblineError
    from contract.wire.examples import parse_examples_request
    from contract.wire.plumbline_wire import example_pb2, inference_pb2

    def read(body: bytes) -> list[example_pb2.Example] | None:
        try:
            found = parse_examples_request(
                body, inference_pb2.ClassificationRequest, lambda num_bytes: None
            )
        except (DecodeError, PlumblineError):
            return None
        return [example_pb2.Example.FromString(row) for row in found.rows]

    def read_by_protobuf(body: bytes) -> list[example_pb2.Example] | None:
        try:
            request = inference_pb2.ClassificationRequest.FromString(body)
        except DecodeError:
            return None
        if request.input.WhichOneof("kind") != "example_list_with_context":
            return list(request.input.example_list.examples)
        found = []
        for example in request.input.example_list_with_context.examples:
            merged = example_pb2.Example()
            merged.CopyFrom(request.input.example_list_with_context.context)
            merged.MergeFrom(example)
            found.append(merged)
        return found

    def feed(body: bytes) -> None:
        ours, theirs = read(body), read_by_protobuf(body)
        if ours is not None and ours != theirs:
            assert str(ours) == str(theirs), f"{ours} instead of {theirs}"  # NaN equals nothing

    return feed


def _seed_examples() -> Sequence[bytes]:
    from contract.wire.plumbline_wire import inference_pb2

    request = inference_pb2.ClassificationRequest()
    request.model_spec.name = "m"
    example = request.input.example_list.examples.add()
    example.features.feature["x"].float_list.value.extend([1, 2])
    example.features.feature["y"].bytes_list.value.append(b"a")
    other = inference_pb2.ClassificationRequest()
    with_context = other.input.example_list_with_context
    with_context.context.features.feature["z"].int64_list.value.append(3)
    with_context.examples.add().features.feature["y"].bytes_list.value.append(b"b")
    return [request.SerializeToString(), other.SerializeToString()]


def _make_http2() -> Feed:
    """The first octet: whether preface and SETTINGS go ahead, and how large the pieces are."""
    from benchmarks.fuzz.transports import cut, exchange, make_http2
    from tests.serving import http2_peer as h2

    make = make_http2()
    greeting = h2.PREFACE + h2.settings()

    def feed(data: bytes) -> None:
        if not data:
            return
        choice, rest = data[0], data[1:]
        out = exchange(make, cut(greeting * (choice & 1) + rest, choice >> 1))
        if choice & 1:
            check_frames(out)

    return feed


def check_frames(out: bytes) -> None:
    """Whether bytes are whole frames of HTTP/2 with codes that there are (RFC 9113, 7)."""
    position = 0
    while position < len(out):
        length = int.from_bytes(out[position : position + 3], "big")
        kind, payload = out[position + 3], out[position + 9 : position + 9 + length]
        position += 9 + length
        assert kind <= 9, f"a frame of type {kind}"
        if kind in (3, 7):
            code = int.from_bytes(payload[:4] if kind == 3 else payload[4:8], "big")
            assert code <= 0xD, f"the code {code}"
            assert code != 2, "INTERNAL_ERROR"
    assert position == len(out), "the last frame is cut off"


def _seed_http2() -> Sequence[bytes]:
    """Every case of the specification's tests."""
    from tests.serving import test_http2 as cases

    kinds = (cases.PLAIN, dataclasses.replace(cases.GRPC, body=b"\0\0\0\0\4test"))
    found = []
    for case in (*cases.ANSWERED, *cases.CONNECTION_ERRORS, *cases.STREAM_ERRORS):
        for kind in kinds:
            whole = b"".join(one for one in case.steps(kind) if isinstance(one, bytes))
            if len(whole) < MAX_SEED:
                found += [b"\x01" + whole, b"\x27" + whole]
    return found


def _make_http1() -> Feed:
    """The first octet: how large the pieces are."""
    from benchmarks.fuzz.transports import cut, exchange, make_http1

    make = make_http1()

    def feed(data: bytes) -> None:
        if not data:
            return
        out = exchange(make, cut(data[1:], data[0]))
        if b"HEAD" not in data:  # its answers have a length and no body
            check_answers(out)

    return feed


def check_answers(out: bytes) -> None:
    """Whether bytes are answers of HTTP/1.1 with statuses that are documented."""
    while out and not out.startswith(NO_HTTP2):
        head, _, out = out.partition(b"\r\n\r\n")
        status_line, *lines = head.split(b"\r\n")
        version, status, _reason = status_line.split(b" ", 2)
        assert version == b"HTTP/1.1", status_line
        assert int(status) in HTTP_STATUSES, status_line
        fields = dict(line.split(b": ", 1) for line in lines)
        out = out[int(fields.get(b"Content-Length", 0)) :]


NO_HTTP2 = b"\0\0\0\4"
"""How SETTINGS begin: a client that speaks HTTP/2 is told in its own words."""

HTTP_STATUSES = {100, 200, 400, 413, 417, 429, 431, 501, 505}


def _seed_http1() -> Sequence[bytes]:
    """Requests good and bad."""
    post = b"POST /a HTTP/1.1\r\nHost: a\r\n"
    chunked = post + b"Transfer-Encoding: chunked\r\n\r\n"
    requests = [
        b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /later HTTP/1.1\r\nHost: a\r\n\r\n" * 3,
        b"GET http://a/b?c=%20d HTTP/1.1\r\nHost: a\r\nAccept: */*\r\nX: a,\tb\r\n\r\n",
        b"GET / HTTP/1.0\r\n\r\n",
        b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\nGET / HTTP/1.0\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\nGET / HTTP/1.1\r\n\r\n",
        b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n",
        post + b"Content-Length: 4\r\n\r\ntest",
        (post + b"Content-Length: 4\r\n\r\ntest") * 3,
        post + b"Content-Length: 0\r\n\r\n" + post + b"\r\n",
        chunked + b"4\r\ntest\r\n0\r\n\r\n",
        chunked
        + b"2;a=b\r\nte\r\n02\r\nst\r\n0\r\nTrailer: x\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
        post + b"Expect: 100-continue\r\nContent-Length: 4\r\n\r\ntest",
        post + b"Expect: 200-maybe\r\nContent-Length: 4\r\n\r\ntest",
        post + b"Content-Length: 99999999\r\n\r\ntest",
        post + b"Content-Length: 4\r\nContent-Length: 5\r\n\r\ntests",
        post + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        post + b"Content-Length: -4\r\n\r\ntest",
        post + b"Content-Length: 99999999999999999999999\r\n\r\ntest",
        post + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        chunked + b"zz\r\ntest\r\n0\r\n\r\n",
        chunked + b"ffffffffffffffffff\r\ntest",
        chunked + b"4\r\ntestX\r\n0\r\n\r\n",
        b"GET / HTTP/1.1\nHost: a\n\n",
        b"GET / HTTP/1.1\r\nHost: a\r\n folded: b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost : a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET  / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET / HTTP/9.9\r\nHost: a\r\n\r\n",
        b"FOO / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n",
        b"GET /" + b"x" * 3000 + b" HTTP/1.1\r\nHost: a\r\n\r\n",
        b"\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x16\x03\x01\x00\xf4\x01\x00\x00\xf0\x03\x03" + bytes(200),
    ]
    return [bytes([size]) + one for one in requests for size in (0, 7)]


MAX_SEED = 4000


def _make_infer() -> Feed:
    """Bytes of a ModelInferRequest: what we take, protobuf takes, with the same contents."""
    from google.protobuf.message import DecodeError

    from contract.errors import PlumblineError
    from contract.wire.open_inference import split_request
    from contract.wire.plumbline_wire.open_inference_pb2 import ModelInferRequest
    from serving.open_inference.grpc_methods import parse_infer

    def feed(body: bytes) -> None:
        try:
            asked = parse_infer(body, reserve=lambda _: None)
        except (DecodeError, PlumblineError):
            return
        _, raw = split_request(body)
        request = ModelInferRequest.FromString(body)
        assert list(map(bytes, raw)) in ([], list(request.raw_input_contents))
        assert list(asked.call.input_names) == [one.name for one in request.inputs]
        with contextlib.suppress(PlumblineError):
            asked.call.decode(lambda _: None)

    return feed


def _seed_infer() -> Sequence[bytes]:
    import numpy as np

    from contract.wire.open_inference import encode_raw, join_request
    from contract.wire.plumbline_wire.open_inference_pb2 import ModelInferRequest

    message = ModelInferRequest(model_name="m", model_version="3", id="7")
    message.parameters["signature_name"].string_param = "s"
    message.inputs.add(name="x", datatype="FP32", shape=[2])
    message.inputs.add(name="y", datatype="BYTES", shape=[2])
    message.outputs.add(name="z")
    texts = np.array([b"a", b"b\0c"], object)
    raw = join_request(message, [encode_raw(np.ones(2, np.float32)), encode_raw(texts)])
    message.inputs[0].contents.fp32_contents.extend([1, 2])
    message.inputs[1].contents.bytes_contents.extend([b"a", b"bc"])
    return [raw, message.SerializeToString()]


def _make_infer_json() -> Feed:
    """A body of the Open Inference Protocol; what follows a blank line is tensors' bytes."""
    from contract.errors import PlumblineError
    from contract.servable import ModelSpec
    from serving.open_inference.rest_methods import read_request
    from serving.rest.json_text import parse_json_object

    def feed(body: bytes) -> None:
        header, _, data = body.partition(b"\n\n")
        with contextlib.suppress(PlumblineError):
            document = parse_json_object(header, max_depth=16)
            asked = read_request(document, ModelSpec("m"), memoryview(data), header)
            asked.call.decode(lambda _: None)

    return feed


def _seed_infer_json() -> Sequence[bytes]:
    inline = {"name": "x", "datatype": "FP32", "shape": [2], "data": [1.5, 2]}
    apart = {
        "name": "y",
        "datatype": "BYTES",
        "shape": [1],
        "parameters": {"binary_data_size": 6},
    }
    asked = {"name": "z", "parameters": {"binary_data": True}}
    parameters = {"signature_name": "s", "binary_data_output": True}
    documents = [
        {"inputs": [inline], "id": "7"},
        {"inputs": [inline, apart], "outputs": [asked], "parameters": parameters},
    ]
    first, second = (json.dumps(one).encode() for one in documents)
    return [first, second + b"\n\n\2\0\0\0a\0"]


TARGETS = {
    "HTTP/2": Target(
        ["serving.transport.hpack", "serving.transport.http2", "serving.grpc.protocol"],
        _make_http2,
        _seed_http2,
        max_len=MAX_SEED,
    ),
    "HTTP/1.1": Target(["serving.transport.http1"], _make_http1, _seed_http1, max_len=MAX_SEED),
    "PredictRequest": Target(["contract.wire"], _make_predict, _seed_predict),
    "JSON": Target(["serving.rest"], _make_json, _seed_json),
    "ModelInferRequest": Target(
        ["contract.wire", "serving.open_inference"], _make_infer, _seed_infer
    ),
    "Open Inference JSON": Target(["serving.open_inference"], _make_infer_json, _seed_infer_json),
    "tf.Example": Target(["contract.wire"], _make_examples, _seed_examples),
}
