"""Spans of the server's calls, as a collector of OpenTelemetry receives them."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from contract.servable import ModelSpec
from contract.wire.open_inference import MODEL_INFER
from contract.wire.plumbline_wire import open_inference_pb2
from contract.wire.predict import encode_predict_request
from contract.wire.rpc import PREDICT
from serving.config.server import BatchingParameters, ServerConfig
from serving.engines.batching import Batcher
from serving.engines.servable import Servable
from serving.observer import Observer
from tests.collector import Collector, ReceivedSpan
from tests.serving.numpy_servables import NumpyEngine, OneModelManager, make_servable
from tests.serving.server_process import ServerProcess
from tests.serving.servers import Faces, serve

TRACE = "0af7651916cd43dd8448eb211c80319c"
SPAN = "b7ad6b7169203331"
SAMPLED, UNSAMPLED = f"00-{TRACE}-{SPAN}-01", f"00-{TRACE}-{SPAN}-00"
METHOD = "tensorflow.serving.PredictionService/Predict"


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    with Collector() as found:
        for name, value in found.environment.items():
            monkeypatch.setenv(name, value)
        yield found


def ask_grpc(
    faces: Faces, *metadata: tuple[str, str], signature: str = "", model: str = "m", rows: int = 3
) -> grpc.StatusCode:
    body = encode_predict_request(
        ModelSpec(model, signature_name=signature), {"x": np.ones(rows, np.float32)}
    )
    return call(faces, PREDICT.path, body, *metadata)


def call(faces: Faces, path: str, body: bytes, *metadata: tuple[str, str]) -> grpc.StatusCode:
    with grpc.insecure_channel(f"127.0.0.1:{faces.grpc_port}") as channel:
        try:
            channel.unary_unary(path)(body, timeout=20, metadata=metadata)
        except grpc.RpcError as error:
            code: grpc.StatusCode = error.code()  # type: ignore[attr-defined]
            return code
    return grpc.StatusCode.OK


def ask_rest(faces: Faces, headers: dict[str, str] | None = None, signature: str = "") -> int:
    document: dict[str, Any] = {"instances": [1.0, 2.0]}
    if signature:
        document["signature_name"] = signature
    body = json.dumps(document).encode()
    return faces.request("POST", "/v1/models/m:predict", body, headers).status


def serve_traced(servable: Servable | None = None, **flags: Any) -> Any:
    return serve(OneModelManager(servable or make_servable()), ServerConfig(tracing=True, **flags))


def is_server(span: ReceivedSpan) -> bool:
    return span.kind == "SPAN_KIND_SERVER"


def test_a_grpc_call_is_a_span_below_its_callers(collector: Collector) -> None:
    with serve_traced() as faces:
        ask_grpc(faces, ("traceparent", SAMPLED), ("tracestate", "vendor=1"), ("x-request-id", "r"))
    (span,) = collector.wait_for(1)
    assert (span.name, span.kind) == (METHOD, "SPAN_KIND_SERVER")
    assert (span.trace_id, span.parent_id, span.state) == (TRACE, SPAN, "vendor=1")
    found = span.attributes
    assert {name: found[name] for name in found if not name.endswith("_us")} == {
        "rpc.system.name": "grpc",
        "rpc.method": METHOD,
        "rpc.response.status_code": "OK",
        "client.address": "127.0.0.1",
        "plumbline.request_id": "r",
        "plumbline.model": "m",
        "plumbline.version": 3,
        "plumbline.signature": "serving_default",
        "plumbline.rows": 3,
    }
    assert span.status == 0


def test_a_rest_call_is_a_span_below_its_callers(collector: Collector) -> None:
    with serve_traced() as faces:
        assert ask_rest(faces, {"traceparent": SAMPLED, "x-request-id": "r"}) == 200
    (span,) = collector.wait_for(1)
    assert (span.name, span.kind) == ("POST /v1/models/{model}:predict", "SPAN_KIND_SERVER")
    assert (span.trace_id, span.parent_id) == (TRACE, SPAN)
    found = span.attributes
    assert {name: found[name] for name in found if not name.endswith("_us")} == {
        "http.request.method": "POST",
        "http.response.status_code": 200,
        "http.route": "/v1/models/{model}:predict",
        "url.path": "/v1/models/m:predict",
        "url.scheme": "http",
        "client.address": "127.0.0.1",
        "plumbline.request_id": "r",
        "plumbline.model": "m",
        "plumbline.version": 3,
        "plumbline.signature": "serving_default",
        "plumbline.rows": 2,
    }


@pytest.mark.parametrize("is_rest", [False, True])
def test_the_parts_of_a_call_fill_its_span(collector: Collector, is_rest: bool) -> None:
    with serve_traced() as faces:
        for _ in range(3):  # a call whose form is known takes another way
            assert ask_rest(faces) == 200 if is_rest else ask_grpc(faces) is grpc.StatusCode.OK
    for span in collector.wait_for(3):
        parts = [
            span.attributes[f"plumbline.{name}_us"] for name in ("decode", "queue", "run", "encode")
        ]
        assert all(part >= 0 for part in parts)
        assert 0 < sum(parts) <= span.seconds * 1e6 + 1


def test_parts_are_spans_on_request_alone(collector: Collector) -> None:
    with serve_traced(tracing_stages=True) as faces:
        ask_grpc(faces, ("traceparent", SAMPLED))
    spans = collector.wait_for(5)
    (call,) = filter(is_server, spans)
    stages = {span.name: span for span in spans if not is_server(span)}
    assert list(stages) == ["decode", "queue", "run", "encode"]
    assert {span.parent_id for span in stages.values()} == {call.span_id}
    assert {span.trace_id for span in spans} == {TRACE}
    ends = [time for span in stages.values() for time in span.times]
    assert ends == sorted(ends)
    assert call.times[0] <= ends[0]
    assert ends[-1] == call.times[1]


@pytest.mark.parametrize("ask", [ask_grpc, ask_rest])
def test_calls_that_their_callers_do_not_keep_make_no_span(collector: Collector, ask: Any) -> None:
    with serve_traced() as faces:
        for sent in (UNSAMPLED, SAMPLED):
            ask(faces, ("traceparent", sent) if ask is ask_grpc else {"traceparent": sent})
    assert len(collector.wait_for(1)) == 1


def test_a_sampler_that_asks_no_caller_is_asked(
    collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_on")
    with serve_traced() as faces:
        ask_grpc(faces, ("traceparent", UNSAMPLED))
    (span,) = collector.wait_for(1)
    assert span.parent_id == SPAN


def test_calls_without_a_caller_are_sampled_as_the_variable_says(
    collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "parentbased_traceidratio")
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", "0")
    with serve_traced() as faces:
        ask_grpc(faces)
        ask_rest(faces)
        ask_grpc(faces, ("traceparent", SAMPLED))
    assert [span.parent_id for span in collector.wait_for(1)] == [SPAN]


@pytest.mark.parametrize(
    "parent",
    [
        "",
        "00",
        SAMPLED.upper(),
        SAMPLED + "-01",
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE[1:]}-{SPAN}-01",
    ],
)
def test_a_malformed_parent_is_none(collector: Collector, parent: str) -> None:
    with serve_traced() as faces:
        ask_grpc(faces, ("traceparent", parent))
    (span,) = collector.wait_for(1)
    assert not span.parent_id
    assert span.trace_id != TRACE


def test_a_later_version_of_traceparent_is_read_as_far_as_it_is_known(
    collector: Collector,
) -> None:
    with serve_traced() as faces:
        ask_grpc(faces, ("traceparent", f"01-{TRACE}-{SPAN}-01-more"))
    assert [span.parent_id for span in collector.wait_for(1)] == [SPAN]


@pytest.mark.parametrize(
    ("signature", "model", "code", "is_error"),
    [
        ("fails", "m", "INVALID_ARGUMENT", False),
        ("", "unknown", "NOT_FOUND", False),
        ("crashes", "m", "INTERNAL", True),
    ],
)
def test_what_is_the_servers_fault_is_an_error_of_its_span(
    collector: Collector, signature: str, model: str, code: str, is_error: bool
) -> None:
    with serve_traced() as faces:
        ask_grpc(faces, signature=signature, model=model)
    (span,) = collector.wait_for(1)
    assert span.attributes["rpc.response.status_code"] == code
    assert span.attributes["plumbline.model"] == model
    assert span.status == (2 if is_error else 0)
    assert span.attributes.get("error.type") == (code if is_error else None)


@pytest.mark.parametrize(
    ("signature", "status", "is_error"), [("fails", 400, False), ("crashes", 500, True)]
)
def test_over_http_errors_of_the_server_begin_at_500(
    collector: Collector, signature: str, status: int, is_error: bool
) -> None:
    with serve_traced() as faces:
        assert ask_rest(faces, signature=signature) == status
    (span,) = collector.wait_for(1)
    assert span.attributes["http.response.status_code"] == status
    assert span.status == (2 if is_error else 0)
    if is_error:
        assert "secret" not in span.status_text


def test_what_callers_make_up_is_no_name_of_a_span(collector: Collector) -> None:
    with serve_traced() as faces:
        call(faces, "/made.up/Method", b"")
        faces.request("GET", "/v1/models/a/b/c/d")
    names = {span.name for span in collector.wait_for(2)}
    assert names == {"_OTHER", "GET"}


def test_the_other_protocol_is_traced_alike(collector: Collector) -> None:
    tensor = {"name": "x", "shape": [2], "datatype": "FP32"}
    message = open_inference_pb2.ModelInferRequest(model_name="m")
    message.inputs.add(**tensor).contents.fp32_contents.extend([1.0, 2.0])
    body = json.dumps({"inputs": [tensor | {"data": [1.0, 2.0]}]}).encode()
    headers = {"traceparent": SAMPLED}
    with serve_traced() as faces:
        call(faces, MODEL_INFER.path, message.SerializeToString(), *headers.items())
        assert faces.request("POST", "/v2/models/m/infer", body, headers).status == 200
        assert faces.request("GET", "/v2/health/ready").status == 200
    grpc_span, rest_span = collector.wait_for(2)
    assert grpc_span.name == MODEL_INFER.path[1:]
    assert rest_span.name == "POST /v2/models/{model}/infer"
    for span in (grpc_span, rest_span):
        assert span.parent_id == SPAN
        found = span.attributes
        assert (found["plumbline.model"], found["plumbline.version"]) == ("m", 3)
        assert (found["plumbline.signature"], found["plumbline.rows"]) == ("serving_default", 2)
        assert found["plumbline.run_us"] >= 0


def test_variables_name_the_service(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    given = "deployment.environment.name=test,service.version=9"
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", given)
    with serve_traced() as faces:
        ask_grpc(faces)
    (span,) = collector.wait_for(1)
    assert span.resource["service.name"] == "plumbline-serving"
    assert span.resource["service.version"] == "9"
    assert span.resource["deployment.environment.name"] == "test"
    monkeypatch.setenv("OTEL_SERVICE_NAME", "ours")
    with serve_traced() as faces:
        ask_grpc(faces)
    assert collector.wait_for(2)[1].resource["service.name"] == "ours"


@pytest.mark.parametrize(
    ("name", "value"), [("OTEL_SDK_DISABLED", "true"), ("OTEL_TRACES_EXPORTER", "none")]
)
def test_variables_turn_spans_off(
    collector: Collector, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    with serve_traced() as faces:
        assert ask_grpc(faces, ("traceparent", SAMPLED)) is grpc.StatusCode.OK
    assert not collector.spans  # what waits is sent by the time the server has ended


class BatchingEngine(NumpyEngine):
    """Runs what arrives together."""

    def __init__(self) -> None:
        parameters = BatchingParameters(batch_timeout_micros=20_000)
        self._batcher = Batcher(
            make_servable().id,
            lambda name, inputs, outputs, context: self.run(
                name, inputs, output_filter=outputs, context=context
            ),
            parameters=parameters,
            observer=Observer(),
        )

    @property
    def batcher(self) -> Batcher:
        return self._batcher

    def close(self) -> None:
        self._batcher.close()


def test_the_wait_for_a_batch_is_the_queues(collector: Collector) -> None:
    engine = BatchingEngine()
    with serve_traced(make_servable(engine=engine)) as faces:
        ask_grpc(faces)
    engine.close()
    (span,) = collector.wait_for(1)
    queue_us, run_us = (span.attributes[f"plumbline.{name}_us"] for name in ("queue", "run"))
    assert queue_us >= 20_000
    assert queue_us + run_us <= span.seconds * 1e6 + 1  # and it is not told twice


# A process of its own.


def predict(server: ServerProcess, count: int = 1) -> None:
    body = encode_predict_request(ModelSpec("mlp"), {"images": np.zeros((1, 784), np.float32)})
    for _ in range(count):  # connections are shared out among workers
        with grpc.insecure_channel(server.address) as channel:
            channel.unary_unary(PREDICT.path)(body, timeout=30)


@pytest.fixture
def flags(published_mlp: Path) -> list[str]:
    return ["--model_name=mlp", f"--model_base_path={published_mlp / 'mlp'}", "--engine=litert"]


def test_a_server_that_ends_sends_what_waits(
    flags: list[str], tmp_path: Path, collector: Collector
) -> None:
    slow = collector.environment | {"OTEL_BSP_SCHEDULE_DELAY": "3600000"}
    with ServerProcess(tmp_path, *flags, "--tracing", environment=slow) as server:
        predict(server.wait_until_ready())
        server.signal()
        assert server.wait() == 0
    assert [span.name for span in collector.spans] == [METHOD]


def test_each_worker_sends_spans_of_its_own(
    flags: list[str], tmp_path: Path, collector: Collector
) -> None:
    with ServerProcess(
        tmp_path, *flags, "--tracing", "--workers=2", environment=collector.environment
    ) as server:
        server.wait_until_ready()

        def have_both_sent() -> bool:
            predict(server, 4)
            return len({span.resource["process.pid"] for span in collector.spans}) == 2

        server.wait_for(have_both_sent)
        server.signal()
        assert server.wait() == 0
    assert len({span.resource["service.instance.id"] for span in collector.spans}) == 2


def test_a_collector_that_is_away_costs_no_call_its_answer_and_a_line_of_the_log(
    flags: list[str], tmp_path: Path
) -> None:
    with Collector(status=503) as broken:
        environment = broken.environment
        with ServerProcess(tmp_path, *flags, "--tracing", environment=environment) as server:
            predict(server.wait_until_ready(), 40)
            server.wait_for(lambda: "opentelemetry" in server.log)
            predict(server, 10)
            server.signal()
            assert server.wait(timeout_s=30) == 0
    (said,) = [line for line in server.log.splitlines() if " opentelemetry." in line]
    assert "are dropped; OTEL_EXPORTER_OTLP_ENDPOINT says where it is (" in said
    assert "Traceback" not in server.log


def test_without_the_extra_the_flag_is_refused_in_a_sentence(flags: list[str]) -> None:
    code = """
        import sys
        class Refuse:
            def find_spec(self, name, path=None, target=None):
                if name.partition(".")[0] == "opentelemetry":
                    raise ModuleNotFoundError(name)
        sys.meta_path.insert(0, Refuse())
        from serving.cli import main
        sys.exit(main(["embedded", "--port=-1", "--tracing", *sys.argv[1:]]))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *flags], capture_output=True, text=True
    )
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "[tracing]'" in line


def test_a_server_without_traces_never_imports_them() -> None:
    code = (
        "import sys, serving.server, serving.rest.server, serving.monitoring.watch; "
        "print([name for name in sys.modules if name.startswith('opentelemetry')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
