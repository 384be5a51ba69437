"""Spans of the clients, as an application of their users makes them: in an interpreter of its own,
with OpenTelemetry's SDK, and a collector on loopback."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator

import pytest

from contract.errors import ServableUnavailableError
from serving.config.server import ServerConfig
from tests.clients.grpc_servers import ModelServer, answer_sums
from tests.collector import Collector, ReceivedSpan
from tests.serving.numpy_servables import OneModelManager, make_servable
from tests.serving.servers import serve

SET_UP = """
import asyncio
import numpy as np
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
provider = TracerProvider()
provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
trace.set_tracer_provider(provider)
from clients import AsyncPredictionClient, PredictionClient, RestClient, RetryPolicy
from clients.options import Checks, ConnectionOptions
tracer = trace.get_tracer("app")
"""
BLOCKING = """
with tracer.start_as_current_span("app"), PredictionClient("{grpc}", model_name="m") as client:
    client.predict({{"x": np.ones({shape}, np.float32)}})
"""
ASYNC = """
async def ask():
    async with AsyncPredictionClient("{grpc}", model_name="m") as client:
        await client.predict({{"x": np.ones({shape}, np.float32)}})
with tracer.start_as_current_span("app"):
    asyncio.run(ask())
"""
REST = """
with tracer.start_as_current_span("app"), RestClient("{rest}", model_name="m") as client:
    client.predict({{"x": np.ones({shape}, np.float32)}})
"""
PREDICT = "tensorflow.serving.PredictionService/Predict"


def run_app(collector: Collector, code: str) -> str:
    """Runs an application; its spans are at the collector when it has ended."""
    ends = "\nprovider.shutdown()\n"
    return run_python(SET_UP + textwrap.dedent(code) + ends, collector.environment)


def run_python(code: str, environment: dict[str, str] | None = None) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=os.environ | (environment or {}),
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    with Collector() as found:
        for name, value in found.environment.items():
            monkeypatch.setenv(name, value)
        yield found


@pytest.fixture
def server() -> Iterator[ModelServer]:
    with ModelServer() as found:
        yield found


def list_predicts(collector: Collector, count: int = 1) -> list[ReceivedSpan]:
    """The clients' spans of predictions."""
    return collector.wait_for(
        count, lambda span: span.kind == "SPAN_KIND_CLIENT" and "redict" in span.name[-8:]
    )


@pytest.mark.parametrize("code", [BLOCKING, ASYNC, REST])
def test_the_servers_span_is_below_the_clients_and_that_below_the_applications(
    collector: Collector, code: str
) -> None:
    manager = OneModelManager(make_servable())
    with serve(manager, ServerConfig(tracing=True)) as faces:
        addresses = {
            "grpc": f"127.0.0.1:{faces.grpc_port}",
            "rest": f"http://127.0.0.1:{faces.rest_port}",
        }
        run_app(collector, code.format(**addresses, shape=3))
    (client,) = list_predicts(collector)
    (app,) = collector.wait_for(1, lambda span: span.name == "app")
    (of_server,) = collector.wait_for(1, lambda span: span.parent_id == client.span_id)
    assert client.parent_id == app.span_id
    assert of_server.kind == "SPAN_KIND_SERVER"
    assert of_server.attributes["plumbline.rows"] == 3
    assert {client.trace_id, of_server.trace_id} == {app.trace_id}
    # Asking for the signatures is a call as well.
    assert len(collector.wait_for(5)) == 5


def test_a_span_of_grpc_says_what_was_asked_of_whom(
    collector: Collector, server: ModelServer
) -> None:
    run_app(collector, BLOCKING.format(grpc=server.address, shape=(1, 4)))
    (span,) = list_predicts(collector)
    assert span.name == PREDICT
    assert span.attributes == {
        "rpc.system.name": "grpc",
        "rpc.method": PREDICT,
        "rpc.response.status_code": "OK",
        "server.address": "127.0.0.1",
        "server.port": server.port,
        "plumbline.model": "m",
    }
    assert span.status == 0


def test_a_span_of_http_says_what_was_asked_of_whom(collector: Collector) -> None:
    with serve(OneModelManager(make_servable())) as faces:
        url = f"http://127.0.0.1:{faces.rest_port}"
        run_app(collector, REST.format(rest=url, shape=2))
    (span,) = list_predicts(collector)
    assert span.name == "POST /v1/models/{model}:predict"
    assert span.attributes == {
        "http.request.method": "POST",
        "http.response.status_code": 200,
        "url.full": f"{url}/v1/models/m:predict",
        "url.template": "/v1/models/{model}:predict",
        "server.address": "127.0.0.1",
        "server.port": faces.rest_port,
        "plumbline.model": "m",
    }


@pytest.mark.parametrize("code", [BLOCKING, ASYNC])
def test_retries_are_events_of_one_span(
    collector: Collector, server: ModelServer, code: str
) -> None:
    left = [ServableUnavailableError("not yet"), ServableUnavailableError("not yet")]

    def answer(inputs: object) -> object:
        if left:
            raise left.pop()
        return answer_sums(inputs)  # type: ignore[arg-type]

    server.answer = answer
    run_app(collector, code.format(grpc=server.address, shape=(1, 4)))
    (span,) = list_predicts(collector)
    assert [name for name, _ in span.events] == ["retry", "retry"]
    assert [event["plumbline.attempt"] for _, event in span.events] == [1, 2]
    assert {event["error.type"] for _, event in span.events} == {"UNAVAILABLE"}
    assert span.status == 0
    sent = [one["traceparent"] for one in server.metadata if "traceparent" in one]
    assert len([one for one in sent if span.span_id in one]) == 3


def test_a_call_that_fails_is_an_error_of_its_span(
    collector: Collector, server: ModelServer
) -> None:
    def answer(inputs: object) -> object:
        raise ServableUnavailableError("never")

    server.answer = answer
    code = f"""
    try:
        with PredictionClient(
            "{server.address}", model_name="m", retry=RetryPolicy(max_attempts=2)
        ) as client:
            client.predict(np.ones((1, 4), np.float32))
    except Exception as error:
        print(error)
    """
    assert "never" in run_app(collector, code)
    (span,) = list_predicts(collector)
    assert (span.status, span.status_text) == (2, "never")
    assert span.attributes["error.type"] == "UNAVAILABLE"
    assert span.attributes["rpc.response.status_code"] == "UNAVAILABLE"
    assert len(span.events) == 1


@pytest.mark.parametrize("kind", ["blocking", "async"])
def test_of_many_batches_each_sending_is_a_span(
    collector: Collector, server: ModelServer, kind: str
) -> None:
    code = f"""
    rows = np.ones((5, 4), np.float32)
    async def ask():
        async with AsyncPredictionClient("{server.address}", model_name="m") as client:
            return [part async for part in client.predict_many(rows, batch_size=2)]
    with tracer.start_as_current_span("app"):
        if "{kind}" == "async":
            asyncio.run(ask())
        else:
            with PredictionClient("{server.address}", model_name="m") as client:
                list(client.predict_many(rows, batch_size=2))
    """
    run_app(collector, code)
    (app,) = collector.wait_for(1, lambda span: span.name == "app")
    spans = list_predicts(collector, 3)
    assert {span.parent_id for span in spans} == {app.span_id}
    sent = [one.get("traceparent", "") for one in server.metadata]
    assert all(any(span.span_id in one for one in sent) for span in spans)


def test_leaving_a_run_ends_the_spans_of_what_is_under_way(
    collector: Collector, server: ModelServer
) -> None:
    code = f"""
    rows = np.ones((40, 4), np.float32)
    with PredictionClient("{server.address}", model_name="m") as client:
        for part in client.predict_many(rows, batch_size=1, max_in_flight=4):
            break
    """
    run_app(collector, code)
    assert 1 <= len(list_predicts(collector)) <= 4 + 1


def test_a_callers_own_traceparent_goes_first(collector: Collector, server: ModelServer) -> None:
    own = f"00-{'1' * 32}-{'2' * 16}-01"
    code = f"""
    with PredictionClient("{server.address}", model_name="m") as client:
        client.predict(np.ones((1, 4), np.float32), metadata={{"traceparent": "{own}"}})
    """
    run_app(collector, code)
    assert {one.get("traceparent") for one in server.metadata} == {own}


def test_tracing_can_be_turned_off_in_an_application_that_has_it(
    collector: Collector, server: ModelServer
) -> None:
    code = f"""
    with tracer.start_as_current_span("app"):
        off = ConnectionOptions(tracing=False)
        with PredictionClient("{server.address}", model_name="m", connection=off) as client:
            client.predict(np.ones((1, 4), np.float32))
    """
    run_app(collector, code)
    assert [span.name for span in collector.wait_for(1)] == ["app"]
    assert not any("traceparent" in one for one in server.metadata)


def test_nothing_is_imported_and_nothing_sent_where_nobody_wants_spans(
    server: ModelServer,
) -> None:
    code = f"""
import sys
import numpy as np
from clients import AsyncPredictionClient, PredictionClient, RestClient
with PredictionClient("{server.address}", model_name="m") as client:
    client.predict(np.ones((1, 4), np.float32))
print([name for name in sys.modules if name.startswith("opentelemetry")])
"""
    assert run_python(code).strip() == "[]"
    assert not any("traceparent" in one for one in server.metadata)


@pytest.mark.parametrize("kind", ["PredictionClient", "AsyncPredictionClient", "RestClient"])
def test_without_the_extra_asking_for_spans_is_refused_in_a_sentence(kind: str) -> None:
    code = f"""
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "opentelemetry":
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Refuse())
import clients
from clients.options import ConnectionOptions
from contract.errors import UnimplementedError
try:
    clients.{kind}("127.0.0.1:1", model_name="m", connection=ConnectionOptions(tracing=True))
except UnimplementedError as error:
    print(error)
"""
    (line,) = run_python(code).splitlines()
    assert "[tracing]'" in line


def test_an_application_without_a_provider_is_answered_all_the_same(server: ModelServer) -> None:
    code = f"""
from opentelemetry import trace
import numpy as np
from clients import PredictionClient
with PredictionClient("{server.address}", model_name="m") as client:
    print(client.predict(np.ones((1, 4), np.float32))["y"].tolist())
"""
    assert run_python(code).strip() == "[[4.0, 1.0]]"


@pytest.mark.parametrize("is_rest", [False, True])
def test_an_error_names_the_request_where_the_server_did(is_rest: bool) -> None:
    from clients import PredictionClient, RestClient
    from contract.errors import ServableNotFoundError

    with serve(OneModelManager(make_servable())) as faces:
        port = faces.rest_port if is_rest else faces.grpc_port
        kind = RestClient if is_rest else PredictionClient
        with kind(f"127.0.0.1:{port}", model_name="unknown") as client:
            with pytest.raises(ServableNotFoundError, match=r"\(request id abc\)$"):
                client.metadata(metadata={"x-request-id": "abc"})
            with pytest.raises(ServableNotFoundError) as found:
                client.metadata()
    assert "request id" not in str(found.value)
