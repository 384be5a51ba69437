"""What NVIDIA's clients make of the embedded server; runs where they are installed.

    python judge.py GRPC_ADDRESS REST_ADDRESS

Prints a JSON object: the name of each check, and null or what went wrong.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import ml_dtypes
import numpy as np
import tritonclient.grpc as triton_grpc
import tritonclient.grpc.aio as triton_grpc_aio
import tritonclient.http as triton_http
import tritonclient.http.aio as triton_http_aio
from tritonclient.utils import InferenceServerException

DTYPES: dict[str, tuple[str, Any]] = {
    "BOOL": ("bool", np.bool_),
    "UINT8": ("uint8", np.uint8),
    "UINT16": ("uint16", np.uint16),
    "UINT32": ("uint32", np.uint32),
    "UINT64": ("uint64", np.uint64),
    "INT8": ("int8", np.int8),
    "INT16": ("int16", np.int16),
    "INT32": ("int32", np.int32),
    "INT64": ("int64", np.int64),
    "FP16": ("float16", np.float16),
    "FP32": ("float32", np.float32),
    "FP64": ("float64", np.float64),
    "BF16": ("bfloat16", ml_dtypes.bfloat16),
    "BYTES": ("string", np.object_),
}
MODEL = "echo"
Check = Callable[[], None]


def make_values(datatype: str) -> np.ndarray:
    """Numbers at both ends of what the datatype holds; texts of all kinds."""
    dtype = DTYPES[datatype][1]
    if datatype == "BYTES":
        texts = [b"plain", b"", b"\0a\0\0", "größe".encode(), b"x" * 300, b"\0"]
        values = np.empty(6, object)
        values[:] = texts
        return values
    if datatype == "BOOL":
        return np.array([True, False, True, True, False, False])
    if datatype in ("FP16", "FP32", "FP64", "BF16"):
        limits = ml_dtypes.finfo(dtype)
        return np.array([0.1, -0.0, float(limits.max), float(limits.min), 1 / 3, 2], dtype)
    limits = np.iinfo(dtype)
    return np.array([0, 1, limits.min, limits.max, limits.max - 1, 7], dtype)


SHAPES = {"six": (6,), "2x3": (2, 3), "scalar": (), "empty": (0,), "2x0x3": (2, 0, 3)}


def make_tensor(datatype: str, shape: tuple[int, ...]) -> np.ndarray:
    """Some of these values in that shape."""
    return make_values(datatype)[: int(np.prod(shape))].reshape(shape)


def same(found: np.ndarray, wanted: np.ndarray) -> None:
    """Fails unless two arrays are equal, bit for bit."""
    assert found is not None, "no such output"
    assert found.shape == wanted.shape, f"{found.shape} is not {wanted.shape}"
    if wanted.dtype == object:
        given = [one.encode() if isinstance(one, str) else one for one in found.reshape(-1)]
        assert given == list(wanted.reshape(-1)), f"{given}"
        return
    assert found.dtype == wanted.dtype, f"{found.dtype} is not {wanted.dtype}"
    assert found.tobytes() == wanted.tobytes(), f"{found!r} is not {wanted!r}"


def refused(call: Callable[[], object], *words: str, status: str = "") -> None:
    """Fails unless a call ends in an error of the server's, in its words."""
    try:
        answer = call()
    except InferenceServerException as error:
        text = error.message() or ""
        assert "exception occurred in the client" not in text, text  # no JSON
        assert all(word in text for word in words), text
        assert not status or error.status() == status, error.status()
    else:
        raise AssertionError(f"answered {answer!r}")


def list_infer_checks(http: Any, grpc: Any) -> Iterator[tuple[str, Check]]:
    """Every datatype in every shape, every way it travels."""
    for datatype, (name, _) in DTYPES.items():
        parameters = {"signature_name": f"echo_{name}"}
        for label, shape in SHAPES.items():
            tensor = make_tensor(datatype, shape)

            def over_grpc(tensor=tensor, datatype=datatype, parameters=parameters) -> None:
                given = triton_grpc.InferInput("x", list(tensor.shape), datatype)
                given.set_data_from_numpy(tensor)
                found = grpc.infer(MODEL, [given], parameters=parameters, request_id="7")
                same(found.as_numpy("y"), tensor)
                same(found.as_numpy("size"), np.array(tensor.size, np.int32))
                assert found.get_response().id == "7"

            def over_http(
                binary_in: bool,
                binary_out: bool | None,
                tensor=tensor,
                datatype=datatype,
                parameters=parameters,
            ) -> None:
                given = triton_http.InferInput("x", list(tensor.shape), datatype)
                given.set_data_from_numpy(tensor, binary_data=binary_in)
                wanted = None
                if binary_out is not None:
                    wanted = [
                        triton_http.InferRequestedOutput(one, binary_data=binary_out)
                        for one in ("size", "y")
                    ]
                found = http.infer(MODEL, [given], outputs=wanted, parameters=parameters)
                same(found.as_numpy("y"), tensor)
                same(found.as_numpy("size"), np.array(tensor.size, np.int32))

            yield f"infer/grpc/{datatype}/{label}", over_grpc
            for way, binary_in, binary_out in (
                ("binary", True, None),
                ("binary-out-named", True, True),
                ("json", False, False),
                ("json-to-binary", False, True),
            ):
                if datatype in ("FP16", "BF16") and way.startswith("json"):
                    continue
                check = lambda i=binary_in, o=binary_out, f=over_http: f(i, o)  # noqa: E731
                yield f"infer/http/{way}/{datatype}/{label}", check


def make_inputs(module: Any) -> tuple[list[Any], np.ndarray, np.ndarray]:
    """The inputs of `serving_default`."""
    a = np.arange(6, dtype=np.float32).reshape(2, 3)
    b = np.full((2, 3), 2, np.int32)
    inputs = [
        module.InferInput("a", [2, 3], "FP32"),
        module.InferInput("b", [2, 3], "INT32"),
    ]
    inputs[0].set_data_from_numpy(a)
    inputs[1].set_data_from_numpy(b)
    return inputs, a + np.float32(2), a * np.float32(2)


def list_call_checks(http: Any, grpc: Any) -> Iterator[tuple[str, Check]]:  # noqa: C901 - a list
    """What else the endpoints are asked."""
    for way, client, module in (("http", http, triton_http), ("grpc", grpc, triton_grpc)):

        def default(client=client, module=module, **how: Any) -> None:
            inputs, total, product = make_inputs(module)
            found = client.infer(MODEL, inputs, **how)
            same(found.as_numpy("sum"), total)
            same(found.as_numpy("product"), product)

        def one_output(client=client, module=module) -> None:
            inputs, _, product = make_inputs(module)
            wanted = [module.InferRequestedOutput("product")]
            found = client.infer(MODEL, inputs, outputs=wanted)
            same(found.as_numpy("product"), product)
            assert found.as_numpy("sum") is None

        def of_version(default=default) -> None:
            default(model_version="1", priority=3, timeout=10_000_000)

        def asynchronous(client=client, module=module, way=way) -> None:
            inputs, total, _ = make_inputs(module)
            if way == "http":
                same(client.async_infer(MODEL, inputs).get_result().as_numpy("sum"), total)
                return
            import queue

            answers: queue.Queue[Any] = queue.Queue()
            client.async_infer(MODEL, inputs, lambda result, error: answers.put((result, error)))
            result, error = answers.get(timeout=30)
            assert error is None, error
            same(result.as_numpy("sum"), total)

        def sequence(client=client, module=module) -> None:
            inputs, _, _ = make_inputs(module)
            refused(lambda: client.infer(MODEL, inputs, sequence_id=5), "sequence")

        def classes(client=client, module=module) -> None:
            inputs, _, _ = make_inputs(module)
            wanted = [module.InferRequestedOutput("sum", class_count=2)]
            refused(lambda: client.infer(MODEL, inputs, outputs=wanted), "class_count")

        def shared(client=client, module=module) -> None:
            inputs, _, _ = make_inputs(module)
            inputs[0].set_shared_memory("region", 24)
            refused(lambda: client.infer(MODEL, inputs), "shared memory")

        def shared_out(client=client, module=module) -> None:
            inputs, _, _ = make_inputs(module)
            wanted = [module.InferRequestedOutput("sum")]
            wanted[0].set_shared_memory("region", 24)
            refused(lambda: client.infer(MODEL, inputs, outputs=wanted), "shared memory")

        def unknown(client=client, module=module) -> None:
            inputs, _, _ = make_inputs(module)
            refused(lambda: client.infer("nobody", inputs), "Servable not found")
            refused(lambda: client.infer(MODEL, inputs, model_version="9"), "Servable not found")
            refused(lambda: client.infer(MODEL, inputs, model_version="beta"), "label")
            refused(
                lambda: client.infer(MODEL, inputs, parameters={"signature_name": "nix"}),
                "nix",
                "echo_float32",
            )
            refused(lambda: client.infer(MODEL, inputs[:1]), "Missing but required: {b}")
            wanted = [module.InferRequestedOutput("nix")]
            refused(lambda: client.infer(MODEL, inputs, outputs=wanted), "nix")

        def not_carried(client=client, module=module) -> None:
            given = module.InferInput("x", [1, 3], "FP32")
            given.set_data_from_numpy(np.zeros((1, 3), np.float32))
            refused(
                lambda: client.infer(MODEL, [given], parameters={"signature_name": "complex"}),
                "complex64",
            )

        def states(client=client) -> None:
            assert client.is_server_live() is True
            assert client.is_server_ready() is True
            assert client.is_model_ready(MODEL) is True
            assert client.is_model_ready(MODEL, "1") is True
            assert client.is_model_ready(MODEL, "9") is False
            assert client.is_model_ready("nobody") is False

        def metadata(client=client, way=way) -> None:
            json_too = {} if way == "http" else {"as_json": True}
            server = client.get_server_metadata(**json_too)
            assert server["name"] == "plumbline" and "binary_tensor_data" in server["extensions"]
            model = client.get_model_metadata(MODEL, **json_too)
            assert model["name"] == MODEL and model["versions"] == ["1"], model
            assert model["platform"] == "tensorflow_savedmodel"
            rows = [-1, 3] if way == "http" else ["-1", "3"]
            assert model["inputs"] == [
                {"name": "a", "datatype": "FP32", "shape": rows},
                {"name": "b", "datatype": "INT32", "shape": rows},
            ], model["inputs"]
            assert {one["name"] for one in model["outputs"]} == {"sum", "product"}
            assert client.get_model_metadata(MODEL, "1", **json_too)["name"] == MODEL
            refused(lambda: client.get_model_metadata("nobody"), "Servable not found")

        yield f"calls/{way}/several outputs", default
        yield f"calls/{way}/one output", one_output
        yield f"calls/{way}/of a version", of_version
        yield f"calls/{way}/async", asynchronous
        yield f"calls/{way}/states", states
        yield f"calls/{way}/metadata", metadata
        yield f"refused/{way}/sequence", sequence
        yield f"refused/{way}/class_count", classes
        yield f"refused/{way}/shared memory in", shared
        yield f"refused/{way}/shared memory out", shared_out
        yield f"refused/{way}/unknown names", unknown
        yield f"refused/{way}/complex", not_carried
        algorithm = "request_compression_algorithm" if way == "http" else "compression_algorithm"
        for coding in ("gzip", "deflate"):
            compressed = lambda f=default, a=algorithm, c=coding: f(**{a: c})  # noqa: E731
            yield f"calls/{way}/{coding}", compressed

    def metadata_of_a_signature() -> None:
        found = http.get_model_metadata(MODEL, query_params={"signature_name": "echo_string"})
        assert found["inputs"] == [{"name": "x", "datatype": "BYTES", "shape": [-1]}], found

    def half_as_json() -> None:
        given = triton_http.InferInput("x", [1], "FP16")
        given.set_data_from_numpy(np.zeros(1, np.float16), binary_data=False)
        parameters = {"signature_name": "echo_float16"}
        refused(lambda: http.infer(MODEL, [given], parameters=parameters), "FP16")
        given.set_data_from_numpy(np.zeros(1, np.float16))
        wanted = [triton_http.InferRequestedOutput("y", binary_data=False)]
        refused(lambda: http.infer(MODEL, [given], outputs=wanted, parameters=parameters), "FP16")

    def not_finite() -> None:
        given = triton_http.InferInput("x", [3], "FP32")
        values = np.array([np.nan, np.inf, -np.inf], np.float32)
        given.set_data_from_numpy(values, binary_data=False)
        parameters = {"signature_name": "echo_float32"}
        wanted = [triton_http.InferRequestedOutput("y", binary_data=False)]
        found = http.infer(MODEL, [given], outputs=wanted, parameters=parameters)
        assert np.array_equal(found.as_numpy("y"), values, equal_nan=True)

    def no_text_as_json() -> None:
        given = triton_http.InferInput("x", [1], "BYTES")
        given.set_data_from_numpy(np.array([b"\xff"], object))
        parameters = {"signature_name": "echo_string"}
        wanted = [triton_http.InferRequestedOutput("y", binary_data=False)]
        refused(lambda: http.infer(MODEL, [given], outputs=wanted, parameters=parameters), "UTF-8")
        same(
            http.infer(MODEL, [given], parameters=parameters).as_numpy("y"),
            np.array([b"\xff"], object),
        )

    yield "calls/http/metadata of a signature", metadata_of_a_signature
    yield "calls/http/NaN and infinity as JSON", not_finite
    yield "refused/http/FP16 as JSON", half_as_json
    yield "refused/http/BYTES that are no text as JSON", no_text_as_json


def list_other_checks(http: Any, grpc: Any) -> Iterator[tuple[str, Check]]:
    """Every other call that the clients have: Triton's own."""
    for way, client in (("http", http), ("grpc", grpc)):
        calls: dict[str, Callable[[Any], object]] = {
            "get_model_config": lambda c: c.get_model_config(MODEL),
            "get_model_repository_index": lambda c: c.get_model_repository_index(),
            "load_model": lambda c: c.load_model(MODEL),
            "unload_model": lambda c: c.unload_model(MODEL),
            "get_inference_statistics": lambda c: c.get_inference_statistics(MODEL),
            "update_trace_settings": lambda c: c.update_trace_settings(settings={}),
            "get_trace_settings": lambda c: c.get_trace_settings(),
            "update_log_settings": lambda c: c.update_log_settings({}),
            "get_log_settings": lambda c: c.get_log_settings(),
            "get_system_shared_memory_status": lambda c: c.get_system_shared_memory_status(),
            "register_system_shared_memory": lambda c: c.register_system_shared_memory(
                "region", "/key", 8
            ),
            "unregister_system_shared_memory": lambda c: c.unregister_system_shared_memory(),
            "get_cuda_shared_memory_status": lambda c: c.get_cuda_shared_memory_status(),
            "register_cuda_shared_memory": lambda c: c.register_cuda_shared_memory(
                "region", b"aGFuZGxl", 0, 8
            ),
            "unregister_cuda_shared_memory": lambda c: c.unregister_cuda_shared_memory(),
        }
        status = "404" if way == "http" else "StatusCode.UNIMPLEMENTED"
        for name, call in calls.items():
            check = lambda c=call, k=client, s=status: refused(lambda: c(k), status=s)  # noqa: E731
            yield f"other/{way}/{name}", check

    def stream() -> None:
        import queue

        answers: queue.Queue[Any] = queue.Queue()
        with triton_grpc.InferenceServerClient(sys.argv[1]) as client:
            client.start_stream(lambda result, error: answers.put(error))
            with contextlib.suppress(InferenceServerException):  # the error may be there already
                client.async_stream_infer(MODEL, make_inputs(triton_grpc)[0])
            error = answers.get(timeout=30)
            assert error.status() == "StatusCode.UNIMPLEMENTED", error
            client.stop_stream()

    yield "other/grpc/stream", stream

    def no_calls_are_forgotten() -> None:
        asked = {
            *("is_server_live", "is_server_ready", "is_model_ready", "infer", "async_infer"),
            *("get_server_metadata", "get_model_metadata", "close"),
            *calls,
            *("start_stream", "async_stream_infer", "stop_stream"),
            *("generate_request_body", "parse_response_body"),  # no I/O
            *("register_plugin", "unregister_plugin", "plugin"),
        }
        for module in (triton_http, triton_grpc):
            there = {name for name in dir(module.InferenceServerClient) if not name.startswith("_")}
            assert there <= asked, there - asked

    yield "other/no call of the clients is left out", no_calls_are_forgotten


def list_aio_checks() -> Iterator[tuple[str, Check]]:
    """The clients for event loops."""
    for way, module, address in (
        ("http", triton_http_aio, sys.argv[2]),
        ("grpc", triton_grpc_aio, sys.argv[1]),
    ):

        def check(module=module, address=address) -> None:
            async def ask() -> None:
                async with module.InferenceServerClient(address) as client:
                    assert await client.is_server_live()
                    assert await client.is_server_ready()
                    assert await client.is_model_ready(MODEL)
                    assert not await client.is_model_ready("nobody")
                    assert await client.get_server_metadata()
                    assert await client.get_model_metadata(MODEL)
                    inputs, total, product = make_inputs(module)
                    found = await client.infer(MODEL, inputs)
                    same(found.as_numpy("sum"), total)
                    same(found.as_numpy("product"), product)

            asyncio.run(ask())

        yield f"calls/{way}/event loop", check


def list_proto_checks() -> Iterator[tuple[str, Check]]:
    """Our messages beside theirs, in one process."""

    def describe(message: Any) -> dict[str, Any]:
        return {
            field.name: (
                field.number,
                field.type,
                field.is_repeated,
                field.is_packed,
                describe(field.message_type) if field.message_type else None,
            )
            for field in message.fields
        }

    def check() -> None:
        from tritonclient.grpc import service_pb2

        from contract.wire.plumbline_wire import open_inference_pb2

        theirs = service_pb2.DESCRIPTOR.message_types_by_name
        ours = open_inference_pb2.DESCRIPTOR.message_types_by_name
        assert len(ours) > 10
        for name, message in ours.items():
            assert describe(message) == describe(theirs[name]), name

    yield "protos/our messages have their fields", check


def main() -> None:
    """Runs all of it."""
    results: dict[str, str | None] = {}
    with (
        triton_http.InferenceServerClient(sys.argv[2]) as http,
        triton_grpc.InferenceServerClient(sys.argv[1]) as grpc,
    ):
        for name, check in (
            *list_infer_checks(http, grpc),
            *list_call_checks(http, grpc),
            *list_other_checks(http, grpc),
            *list_aio_checks(),
            *list_proto_checks(),
        ):
            try:
                check()
            except Exception as error:  # every check is told of
                where = traceback.extract_tb(error.__traceback__)[-1]
                results[name] = f"{type(error).__name__}: {error} ({where.name}:{where.lineno})"
            else:
                results[name] = None
    print(json.dumps(results))


if __name__ == "__main__":
    main()
