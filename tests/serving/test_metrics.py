"""What Prometheus reads is what happened, under TensorFlow Serving's names."""

from __future__ import annotations

import math
import re
import shutil
import threading
import urllib.request
from pathlib import Path

import grpc
import prometheus_client
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from contract.errors import ManifestError, ResourceExhaustedError
from contract.servable import ServableId, VersionState
from contract.wire.rpc import PREDICT
from serving.monitoring.instruments import (
    MAX_CHILDREN,
    OTHER,
    Counter,
    Family,
    Histogram,
    HistogramFamily,
    Tally,
    cut_label,
    exponential_bounds,
)
from serving.monitoring.metrics import UNKNOWN, Metrics
from serving.observer import EngineChoice, QueueFigures
from serving.transport.admission import MemoryBudget
from serving.transport.listener import ConnectionTable
from serving.versions.states import VersionStatus
from tests.serving.server_process import ServerProcess, call

MLP_1 = ServableId("mlp", 1)


def read(text: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Sample name and labels to value, as Prometheus reads a page.

    The parser gives counters without it the suffix that its own library would have written.
    """
    return {
        (
            sample.name if f"# TYPE {sample.name} " in text else find_name(family, sample.name),
            tuple(sorted(sample.labels.items())),
        ): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def find_name(family: prometheus_client.Metric, sample_name: str) -> str:
    """The name on the page: TensorFlow Serving's counters have no suffix."""
    return family.name if family.type == "counter" else sample_name


def make_metrics() -> Metrics:
    """Of a server that has no versions."""
    return Metrics(list_versions=dict, is_ready=lambda: False)


def find(text: str, name: str, **labels: str) -> float | None:
    return read(text).get((name, tuple(sorted(labels.items()))))


def test_requests_are_counted_by_model_and_status() -> None:
    metrics = make_metrics()
    for status in ("OK", "OK", "NOT_FOUND"):
        metrics.observe_request("mlp", status)
    name = ":tensorflow:serving:request_count"
    assert f"# TYPE {name} counter" in metrics.render()
    assert find(metrics.render(), name, model_name="mlp", status="OK") == 2
    assert find(metrics.render(), name, model_name="mlp", status="NOT_FOUND") == 1


def test_latencies_fall_into_the_buckets_of_tensorflow_serving() -> None:
    metrics = make_metrics()
    for latency_us in (10.0, 11.0, 1e12):
        metrics.observe_request_latency("mlp", "Predict", "GRPC", latency_us)
    name = ":tensorflow:serving:request_latency"
    labels = {"model_name": "mlp", "API": "Predict", "entrypoint": "GRPC"}
    text = metrics.render()
    assert find(text, f"{name}_bucket", le="10", **labels) == 1
    assert find(text, f"{name}_bucket", le="18", **labels) == 2
    assert find(text, f"{name}_bucket", le="+Inf", **labels) == 3
    assert find(text, f"{name}_count", **labels) == 3
    assert text.count(f"{name}_bucket") == 34


def test_the_engine_of_a_signature_is_a_label_of_its_runtime_and_a_metric_with_its_reason() -> None:
    metrics = make_metrics()
    metrics.observe_engine(MLP_1, "serving_default", EngineChoice("litert", 'it "agrees"'))
    metrics.observe_runtime_latency(MLP_1, "serving_default", "Predict", 50)
    text = metrics.render()
    assert (
        find(
            text,
            ":tensorflow:serving:runtime_latency_count",
            model_name="mlp",
            API="Predict",
            runtime="litert",
        )
        == 1
    )
    labels = {"model_name": "mlp", "version": "1", "signature_name": "serving_default"}
    assert find(text, "plumbline_engine", engine="litert", reason='it "agrees"', **labels) == 1
    assert find(text, "plumbline_runtime_seconds_sum", **labels) == pytest.approx(50e-6)


def test_what_is_said_of_an_unloaded_version_goes_and_of_a_failed_one_stays() -> None:
    metrics = make_metrics()
    failed = ServableId("mlp", 2)
    for one, result in ((MLP_1, "passed"), (failed, "failed")):
        metrics.observe_self_test(one, "serving_default", result)
    error = ManifestError("no")
    metrics.observe_state(MLP_1, VersionStatus(1, VersionState.END))
    metrics.observe_state(failed, VersionStatus(2, VersionState.END, error.code, error.message))
    text = metrics.render()
    assert 'plumbline_self_test{model_name="mlp",version="1"' not in text
    assert 'plumbline_self_test{model_name="mlp",version="2"' in text


def test_names_of_models_that_are_not_served_share_one_row() -> None:
    metrics = make_metrics()
    for number in range(5000):
        metrics.observe_request(f"invented-{number}", "NOT_FOUND")
    name = ":tensorflow:serving:request_count"
    text = metrics.render()
    assert find(text, name, model_name=UNKNOWN, status="NOT_FOUND") == 5000
    assert "invented" not in text


def test_a_served_model_keeps_its_own_row_whatever_others_ask_for() -> None:
    metrics = make_metrics()
    for number in range(MAX_CHILDREN + 500):
        metrics.observe_request(f"invented-{number}", "NOT_FOUND")
        metrics.observe_state(
            ServableId(f"model-{number}", 1), VersionStatus(1, VersionState.LOADING)
        )
    metrics.observe_request("mlp", "OK")
    metrics.observe_request("model-1400", "UNAVAILABLE")
    name = ":tensorflow:serving:request_count"
    text = metrics.render()
    assert find(text, name, model_name="mlp", status="OK") == 1
    assert find(text, name, model_name="model-1400", status="UNAVAILABLE") == 1
    assert OTHER not in text


def test_batch_sizes_that_callers_choose_do_not_grow_without_end() -> None:
    metrics = make_metrics()
    for number in range(MAX_CHILDREN + 500):
        metrics.observe_batch(MLP_1, 0, number)
    name = ":tensorflow:serving:batching_session:padding_size_count"
    assert find(metrics.render(), name, execution_batch_size=OTHER) == 500


@pytest.mark.parametrize("letter", ["n", "ä", "😀"])
def test_a_long_label_is_cut_at_256_bytes(letter: str) -> None:
    family = Family("name", "Description.", ("label",))
    for _ in range(2):
        family.child(letter * 100_000).add()
    ((_, labels), value) = next(iter(read("\n".join(family.render()) + "\n").items()))
    assert value == 2
    assert 250 <= len(dict(labels)["label"].encode()) <= 256
    shortest = letter * (256 // len(letter.encode()))
    assert cut_label(shortest) == shortest


def test_what_calls_hold_is_seen() -> None:
    metrics, budget = make_metrics(), MemoryBudget(1000)
    metrics.watch(budget, ConnectionTable(num_open=3, num_refused=2), lambda: 5)
    reservation = budget.open("caller")
    reservation.grow(100)
    with pytest.raises(ResourceExhaustedError):
        reservation.grow(1000)
    text = metrics.render()
    assert find(text, "plumbline_bytes_in_flight") == 100
    assert find(text, "plumbline_max_bytes_in_flight") == 1000
    assert find(text, "plumbline_memory_refusals_total") == 1
    assert find(text, "plumbline_connections") == 3
    assert find(text, "plumbline_queued_calls") == 5
    assert find(text, "plumbline_refused_connections_total") == 2


def test_counters_of_ours_and_no_gauges_are_called_totals() -> None:
    kinds = dict(
        re.findall(r"^# TYPE (plumbline_\S+) (\S+)$", make_metrics().render(), re.MULTILINE)
    )
    assert len(kinds) > 20
    assert {kind for name, kind in kinds.items() if name.endswith("_total")} == {"counter"}
    assert [
        name for name in kinds if kinds[name] == "counter" and not name.endswith("_total")
    ] == []


def test_loads_are_counted_by_path_and_outcome_as_tensorflow_serving_does() -> None:
    metrics = make_metrics()
    path = Path("/models/mlp/1")
    name = ":tensorflow:cc:saved_model:load_attempt_count"
    metrics.observe_load(path, 2000.0, is_loaded=True)
    assert find(metrics.render(), name, model_path=str(path), status="fail") == 0
    metrics.observe_load(path, 1.0, is_loaded=False)
    text = metrics.render()
    assert find(text, name, model_path=str(path), status="success") == 1
    assert find(text, name, model_path=str(path), status="fail") == 1
    latency = ":tensorflow:cc:saved_model:load_latency"
    assert find(text, latency, model_path=str(path)) == 2000


def test_a_queue_is_measured_when_somebody_looks_and_goes_with_its_version() -> None:
    metrics, calls = make_metrics(), [3]
    metrics.watch_queue(MLP_1, lambda: QueueFigures(calls[0], 0.25))
    labels = {"model_name": "mlp", "version": "1"}
    assert find(metrics.render(), "plumbline_batch_queue_calls", **labels) == 3
    assert find(metrics.render(), "plumbline_batch_queue_age_seconds", **labels) == 0.25
    calls[0] = 4
    assert find(metrics.render(), "plumbline_batch_queue_calls", **labels) == 4
    metrics.forget_queue(MLP_1)
    assert "plumbline_batch_queue_calls{" not in metrics.render()


@given(st.text(max_size=20))
def test_any_label_value_survives_the_page(value: str) -> None:
    family = Family("name", "Description.", ("label",))
    family.child(value).add()
    assert find("\n".join(family.render()) + "\n", "name", label=value) == 1


@given(st.lists(st.floats(0, 1e9), max_size=50))
def test_a_histogram_counts_every_value_once_at_or_below_its_bound(values: list[float]) -> None:
    bounds = exponential_bounds(1, 10, 6)
    family = HistogramFamily("h", "Description.", (), bounds=bounds)
    for value in values:
        family.child().observe(value)
    text = "\n".join(family.render()) + "\n"
    if values:
        for bound in bounds:
            expected = sum(value <= bound for value in values)
            assert find(text, "h_bucket", le=f"{bound:.6g}") == expected
        assert math.isclose(find(text, "h_sum") or 0.0, sum(values), abs_tol=1e-6)


def test_a_server_counts_its_calls_and_says_what_it_is(published_mlp: Path, tmp_path: Path) -> None:
    (tmp_path / "monitoring.config").write_text(
        'prometheus_config { enable: true path: "/custom/metrics" }'
    )
    with ServerProcess(
        tmp_path,
        "--model_name=mlp",
        f"--model_base_path={published_mlp / 'mlp'}",
        f"--monitoring_config_file={tmp_path / 'monitoring.config'}",
        rest=True,
    ) as server:
        server.wait_until_ready()
        request = PREDICT.request()
        request.model_spec.name = "absent"
        channel = grpc.insecure_channel(server.address)
        with channel, pytest.raises(grpc.RpcError):
            call(channel, PREDICT, request)
        with urllib.request.urlopen(f"{server.url}/custom/metrics") as answer:
            assert answer.headers.get_content_type() == "text/plain"
            text = answer.read().decode()
    name = ":tensorflow:serving:request_count"
    assert find(text, name, model_name=UNKNOWN, status="NOT_FOUND") == 1
    assert find(text, "plumbline_bytes_in_flight") == 0
    assert (find(text, "plumbline_max_bytes_in_flight") or 0) > 1e7
    assert find(text, "plumbline_version_state", model_name="mlp", version="1") == 30
    assert find(text, "plumbline_ready") == 1
    assert (find(text, "plumbline_process_start_time_seconds") or 0) > 1e9
    assert (find(text, "plumbline_process_resident_memory_bytes") or 0) > 1e7
    assert "plumbline_build_info{" in text
    engines = [key for key in read(text) if key[0] == "plumbline_engine"]
    assert ("signature_name", "serving_default") in {pair for key in engines for pair in key[1]}


def test_a_server_counts_a_version_that_does_not_load(published_mlp: Path, tmp_path: Path) -> None:
    base_path = Path(shutil.copytree(published_mlp / "mlp", tmp_path / "mlp"))
    broken = base_path / "9"
    broken.mkdir()
    (broken / "saved_model.pb").write_bytes(b"no model")
    flags = ["--model_name=mlp", f"--model_base_path={base_path}", "--engine=litert"]
    name = ":tensorflow:cc:saved_model:load_attempt_count"

    def count(status: str) -> float | None:
        with urllib.request.urlopen(f"{server.url}/monitoring/prometheus/metrics") as answer:
            page = answer.read().decode()
        return find(page, name, model_path=str(broken), status=status)

    with ServerProcess(tmp_path, *flags, rest=True) as server:
        server.wait_for(lambda: count("fail") == 1)
        assert count("success") == 0


def test_observations_that_are_counted_later_fall_where_those_counted_at_once_do() -> None:
    bounds = exponential_bounds(10, 1.8, 33)
    values = [0.0, *bounds, *(bound * 1.0001 for bound in bounds), 1e12] * 20
    at_once, later, in_thousands = Histogram(bounds), Histogram(bounds), Histogram(bounds)
    counter = Counter()
    tally = Tally((later, 1.0), (in_thousands, 1000.0), counter=counter)
    for value in values:
        at_once.observe(value)
        tally.observe(value)
    assert later.value[0] == at_once.value[0]
    assert later.value[1] == pytest.approx(at_once.value[1])
    assert in_thousands.value[1] == pytest.approx(1000 * at_once.value[1])
    assert counter.value == len(values)


def test_no_observation_is_lost_or_counted_twice_while_others_look() -> None:
    histogram = Histogram([1.0])
    tally = Tally((histogram, 1.0))
    is_over = threading.Event()

    def look() -> None:
        while not is_over.is_set():
            histogram.value  # noqa: B018 - looking counts

    def observe() -> None:
        for _ in range(20_000):
            tally.observe(0.5)

    looking = [threading.Thread(target=look) for _ in range(2)]
    observing = [threading.Thread(target=observe) for _ in range(3)]
    for thread in looking + observing:
        thread.start()
    for thread in observing:
        thread.join()
    is_over.set()
    for thread in looking:
        thread.join()
    assert histogram.value == ([60_000, 0], 30_000.0)


def test_the_runs_of_a_version_that_is_unloaded_stay_in_the_models_runtime() -> None:
    metrics = make_metrics()
    metrics.bind_runtime_latency(MLP_1, "serving_default", "Predict")(50.0)
    metrics.observe_state(MLP_1, VersionStatus(1, VersionState.END))
    text = metrics.render()
    name = ":tensorflow:serving:runtime_latency_count"
    assert find(text, name, model_name="mlp", API="Predict", runtime="") == 1
    assert "plumbline_runtime_seconds_count{" not in text
