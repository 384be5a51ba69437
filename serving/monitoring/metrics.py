"""What Prometheus reads: TensorFlow Serving's metrics under its names, and more under ours.

Names, labels and buckets: `servables/tensorflow/util.cc`, `batching/batching_util.h`,
`batching/batching_session.cc`, `servables/tensorflow/saved_model_warmup_util.cc`, and TensorFlow's
`cc/saved_model/loader.cc`.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from contract.errors import Code
from contract.servable import ServableId, VersionState
from serving.monitoring.instruments import (
    Family,
    HistogramFamily,
    Tally,
    exponential_bounds,
    find_start_time_s,
    measure_resident_bytes,
    render_families,
)
from serving.observer import EngineChoice, Observer, QueueFigures
from serving.transport.admission import MemoryBudget
from serving.transport.listener import ConnectionTable
from serving.versions.on_demand import Residency
from serving.versions.states import VersionStatus

CONTENT_TYPE = "text/plain"

_LATENCY_US = exponential_bounds(10, 1.8, 33)
_QUEUE_US = exponential_bounds(100, 1.2, 52)
_ROWS = exponential_bounds(1, 2, 14)
_SECONDS = exponential_bounds(1e-5, 2, 24)
_THREAD_POOL = "model_server_batch_threads"
_RUNTIMES = {"tensorflow": "TF1"}
_TF = ":tensorflow:serving:"
_SAVED_MODEL = ":tensorflow:cc:saved_model:"
_VERSION = ("model_name", "version")
UNKNOWN = "(unknown)"
"""The name of all models that are not served: callers choose them."""

_SIGNATURE = (*_VERSION, "signature_name")


class Metrics(Observer):
    """Counts what happens and writes it down on request."""

    def __init__(
        self,
        *,
        list_versions: Callable[[], Mapping[ServableId, VersionStatus]],
        is_ready: Callable[[], bool],
        count_restarts: Callable[[], Mapping[int, int]] = dict,
    ) -> None:
        self._list_versions = list_versions
        self._is_ready = is_ready
        self._count_restarts = count_restarts
        self._queues: dict[ServableId, Callable[[], QueueFigures]] = {}
        self._start_time_s = find_start_time_s()
        self._runtimes: dict[tuple[ServableId, str], str] = {}
        self._runs: dict[tuple[ServableId, str, str], Tally] = {}
        self._successes: dict[tuple[str, str, str], Tally] = {}
        self._model_names = {""}  # those that have been served, and requests without one
        self._budget = MemoryBudget(0)
        self._connections = ConnectionTable()
        self._measure_residency: Callable[[], Residency] | None = None
        self._count_queued: Callable[[], int] = int
        self._requests = Family(
            f"{_TF}request_count", "The total number of requests.", ("model_name", "status")
        )
        self._request_latency = HistogramFamily(
            f"{_TF}request_latency",
            "Wall time (in microseconds) of a successful request.",
            ("model_name", "API", "entrypoint"),
            bounds=_LATENCY_US,
        )
        self._runtime_latency = HistogramFamily(
            f"{_TF}runtime_latency",
            "Wall time (in microseconds) of the engine.",
            ("model_name", "API", "runtime"),
            bounds=_LATENCY_US,
        )
        self._examples = HistogramFamily(
            f"{_TF}request_example_counts",
            "The number of tensorflow.Examples per request.",
            ("model",),
            bounds=exponential_bounds(1, 2, 15),
        )
        self._example_total = Family(
            f"{_TF}request_example_count_total",
            "The total number of tensorflow.Examples.",
            ("model",),
        )
        self._warmup = HistogramFamily(
            f"{_TF}model_warmup_latency",
            "Wall time (in microseconds) for warming up the model.",
            ("model_path", "status"),
            bounds=_LATENCY_US,
        )
        self._load_attempts = Family(
            f"{_SAVED_MODEL}load_attempt_count",
            "The number of times a version was requested to be loaded.",
            ("model_path", "status"),
        )
        self._load_latency = Family(
            f"{_SAVED_MODEL}load_latency",
            "Latency in microseconds for versions that were successfully loaded.",
            ("model_path",),
        )
        self._queuing = HistogramFamily(
            f"{_TF}batching_session:queuing_latency",
            "Wall time (in microseconds) spent in queuing.",
            ("thread_pool_name",),
            bounds=_QUEUE_US,
        )
        self._padding = HistogramFamily(
            f"{_TF}batching_session:padding_size",
            "The padding size of batches.",
            ("execution_batch_size",),
            bounds=_ROWS,
            is_bounded=True,
        )
        self._input_size = HistogramFamily(
            f"{_TF}batching_session:input_batch_size",
            "The batch size of the inputs.",
            (),
            bounds=_ROWS,
        )
        self._processed_size = HistogramFamily(
            f"{_TF}batching_session:processed_batch_size",
            "The batch size of processing.",
            (),
            bounds=_ROWS,
        )
        self._runtime = HistogramFamily(
            "plumbline_runtime_seconds",
            "Wall time of the engine per version and signature.",
            _SIGNATURE,
            bounds=_SECONDS,
        )
        self._queue_wait = HistogramFamily(
            "plumbline_queue_wait_seconds",
            "How long calls waited for their batch.",
            _VERSION,
            bounds=_SECONDS,
        )
        self._abandoned = Family(
            "plumbline_abandoned_calls_total",
            "Calls whose caller had left, or whose deadline had passed, while waiting or running.",
            (*_VERSION, "stage"),
        )
        self._self_test = Family(
            "plumbline_self_test",
            "Result of the golden self-test: passed, failed or untested.",
            (*_SIGNATURE, "result"),
            kind="gauge",
        )
        self._demanded_loads = Family(
            "plumbline_demanded_loads_total",
            "Versions that were loaded, or failed to be, because a call asked for their model.",
            ("model_name", "result"),
        )
        self._evictions = Family(
            "plumbline_evictions_total",
            "How often a model was unloaded to make room (--max_resident_bytes).",
            ("model_name",),
        )
        self._load_wait = HistogramFamily(
            "plumbline_load_wait_seconds",
            "How long calls waited for their model to be loaded.",
            ("model_name",),
            bounds=_SECONDS,
        )
        self._request_log = Family(
            "plumbline_request_log_total",
            "Sampled requests: written, dropped or failed.",
            ("result",),
        )
        self._shadow_calls = Family(
            "plumbline_shadow_calls_total",
            "Sampled calls of a shadow: compared, failed, unanswered, dropped or shed.",
            (*_VERSION, "result"),
        )
        self._shadow_rows = Family(
            "plumbline_shadow_rows_total",
            "Rows that a shadow compared, and those that flipped or were outside the tolerance.",
            (*_VERSION, "result"),
        )
        self._shadow_difference = Family(
            "plumbline_shadow_max_abs_difference",
            "The largest difference that a shadow saw.",
            _VERSION,
            kind="gauge",
            combine=max,
        )
        self._shadow_latency = HistogramFamily(
            "plumbline_shadow_seconds",
            "Wall time of the engine for the calls of a shadow: before (the old version), after.",
            (*_VERSION, "side"),
            bounds=_SECONDS,
        )
        self._refused = Family(
            "plumbline_memory_refusals_total",
            "How often --max_bytes_in_flight refused memory to a call.",
        )
        self._refused_connections = Family(
            "plumbline_refused_connections_total",
            "Connections that were closed at once: one too many (--max_connections).",
        )
        self._malformed = Family(
            "plumbline_malformed_total",
            "How often bytes came that are no request of the port's protocol.",
            ("entrypoint",),
        )
        self._cpu = Family("plumbline_process_cpu_seconds_total", "CPU time.")
        self._engine = Family(
            "plumbline_engine",
            "The engine that answers a signature, and why.",
            (*_SIGNATURE, "engine", "reason"),
            kind="gauge",
        )

    # What the request path reports; see Observer.

    def observe_engine(
        self, servable_id: ServableId, signature_name: str, choice: EngineChoice
    ) -> None:
        key = (servable_id.name, str(servable_id.version), signature_name)
        self._engine.forget(*key)
        self._engine.child(*key, choice.engine, choice.reason).value = 1
        runtime = _RUNTIMES.get(choice.engine, choice.engine)
        self._runtimes[servable_id, signature_name] = runtime

    def observe_self_test(self, servable_id: ServableId, signature_name: str, result: str) -> None:
        key = (servable_id.name, str(servable_id.version), signature_name)
        self._self_test.forget(*key)
        self._self_test.child(*key, result).value = 1

    def observe_warmup(self, servable_id: ServableId, latency_us: float) -> None:
        path = f"{servable_id.name}/{servable_id.version}"
        self._warmup.child(path, "OK").observe(latency_us)

    def observe_load(self, directory: Path, latency_us: float, *, is_loaded: bool) -> None:
        path = str(directory)
        for status, amount in (("success", is_loaded), ("fail", not is_loaded)):
            # Both from the start, so that the first failure is a step that a rate sees.
            self._load_attempts.child(path, status).add(amount)
        if is_loaded:
            self._load_latency.child(path).add(latency_us)

    def watch_queue(self, servable_id: ServableId, measure: Callable[[], QueueFigures]) -> None:
        self._queues[servable_id] = measure

    def forget_queue(self, servable_id: ServableId) -> None:
        self._queues.pop(servable_id, None)

    def observe_request(self, model_name: str, status: str) -> None:
        if model_name not in self._model_names:
            if status == "OK":
                self._model_names.add(model_name)
            else:
                model_name = UNKNOWN
        self._requests.child(model_name, status).add()

    def observe_request_latency(
        self, model_name: str, api: str, entrypoint: str, latency_us: float
    ) -> None:
        self._request_latency.child(model_name, api, entrypoint).observe(latency_us)

    def bind_success(self, model_name: str, api: str, entrypoint: str) -> Callable[[float], None]:
        key = (model_name, api, entrypoint)
        tally = self._successes.get(key)
        if tally is None:
            self._model_names.add(model_name)
            latency = self._request_latency.child(*key)
            tally = Tally((latency, 1.0), counter=self._requests.child(model_name, "OK"))
            self._successes[key] = tally
        return tally.observe

    def observe_runtime_latency(
        self, servable_id: ServableId, signature_name: str, api: str, latency_us: float
    ) -> None:
        self.bind_runtime_latency(servable_id, signature_name, api)(latency_us)

    def bind_runtime_latency(
        self, servable_id: ServableId, signature_name: str, api: str
    ) -> Callable[[float], None]:
        key = (servable_id, signature_name, api)
        tally = self._runs.get(key)
        if tally is None:
            name = servable_id.name
            runtime = self._runtimes.get((servable_id, signature_name), "")
            all_versions = self._runtime_latency.child(name, api, runtime)
            own = self._runtime.child(name, str(servable_id.version), signature_name)
            tally = self._runs[key] = Tally((all_versions, 1.0), (own, 1e-6))
        return tally.observe

    def observe_examples(self, model_name: str, num_examples: int) -> None:
        self._examples.child(model_name).observe(num_examples)
        self._example_total.child(model_name).add(num_examples)

    def observe_batch_input(self, servable_id: ServableId, num_rows: int) -> None:
        self._input_size.child().observe(num_rows)

    def observe_queue_wait(self, servable_id: ServableId, latency_us: float) -> None:
        self._queuing.child(_THREAD_POOL).observe(latency_us)
        child = self._queue_wait.child(servable_id.name, str(servable_id.version))
        child.observe(latency_us * 1e-6)

    def observe_batch(self, servable_id: ServableId, padding: int, num_rows: int) -> None:
        self._processed_size.child().observe(num_rows)
        self._padding.child(str(num_rows)).observe(padding)

    def observe_abandoned(self, servable_id: ServableId, stage: str) -> None:
        self._abandoned.child(servable_id.name, str(servable_id.version), stage).add()

    def observe_demanded_load(self, model_name: str, result: str) -> None:
        self._demanded_loads.child(model_name, result).add()

    def observe_eviction(self, model_name: str) -> None:
        self._evictions.child(model_name).add()

    def observe_load_wait(self, model_name: str, seconds: float) -> None:
        self._load_wait.child(model_name).observe(seconds)

    def observe_request_log(self, result: str) -> None:
        self._request_log.child(result).add()

    def observe_shadow(
        self,
        servable_id: ServableId,
        result: str,
        *,
        num_rows: int = 0,
        num_flips: float = 0.0,
        num_outside: int = 0,
        max_abs_difference: float = 0.0,
        seconds: tuple[float, float] | None = None,
    ) -> None:
        key = (servable_id.name, str(servable_id.version))
        self._shadow_calls.child(*key, result).add()
        if result != "compared":
            return
        counts = {"compared": num_rows, "flipped": num_flips, "outside": num_outside}
        for name, count in counts.items():
            self._shadow_rows.child(*key, name).add(count)
        largest = self._shadow_difference.child(*key)
        largest.value = max(largest.value, max_abs_difference)
        for side, value in zip(("before", "after"), seconds or (), strict=False):
            self._shadow_latency.child(*key, side).observe(value)

    def observe_malformed(self, entrypoint: str) -> None:
        self._malformed.child(entrypoint).add()

    def observe_state(self, servable_id: ServableId, status: VersionStatus) -> None:
        """Drops what is said of a version that was unloaded; a failed one stays visible."""
        self._model_names.add(servable_id.name)
        if status.state is not VersionState.END or status.code is not Code.OK:
            return
        key = (servable_id.name, str(servable_id.version))
        for family in (
            self._runtime,
            self._queue_wait,
            self._abandoned,
            self._self_test,
            self._engine,
            self._shadow_calls,
            self._shadow_rows,
            self._shadow_difference,
            self._shadow_latency,
        ):
            family.forget(*key)
        for engine_key in [key for key in list(self._runtimes) if key[0] == servable_id]:
            self._runtimes.pop(engine_key, None)
        for run_key in [key for key in list(self._runs) if key[0] == servable_id]:
            self._runs.pop(run_key).close()

    def render(self) -> str:
        """The page that Prometheus scrapes."""
        return render_families((*self.list_counters(), *self.take_gauges()))

    def watch(
        self,
        budget: MemoryBudget,
        connections: ConnectionTable,
        count_queued: Callable[[], int] = int,
    ) -> None:
        """Tells from now on what calls hold, how many wait for a thread, and how many connections
        there are."""
        self._budget = budget
        self._connections = connections
        self._count_queued = count_queued

    def watch_residency(self, measure: Callable[[], Residency]) -> None:
        """Tells from now on what is loaded, where models are loaded on demand."""
        self._measure_residency = measure

    def _list_residency(self) -> list[Family]:
        if self._measure_residency is None:
            return []
        found = self._measure_residency()
        return [
            _make_gauge(
                "resident_bytes",
                "What loaded versions count for: 1.2 times their files.",
                found.num_bytes,
                sum,
            ),
            _make_gauge(
                "max_resident_bytes",
                "What loaded versions may count for (--max_resident_bytes); 0 for no limit.",
                found.max_bytes,
                sum,
            ),
            _make_gauge(
                "resident_models", "Models of which a version is loaded.", found.num_models, sum
            ),
        ]

    def list_counters(self) -> list[Family | HistogramFamily]:
        """What only grows, over all that this process has seen."""
        self._refused.child().value = self._budget.num_refused
        self._refused_connections.child().value = self._connections.num_refused
        self._cpu.child().value = time.process_time()
        return [
            self._requests,
            self._request_latency,
            self._runtime_latency,
            self._examples,
            self._example_total,
            self._warmup,
            self._load_attempts,
            self._load_latency,
            self._queuing,
            self._padding,
            self._input_size,
            self._processed_size,
            self._runtime,
            self._queue_wait,
            self._abandoned,
            self._request_log,
            self._shadow_calls,
            self._shadow_rows,
            self._shadow_latency,
            self._refused,
            self._refused_connections,
            self._malformed,
            self._cpu,
            self._demanded_loads,
            self._evictions,
            self._load_wait,
        ]

    def take_gauges(self) -> list[Family]:
        """How things stand now."""
        states = Family(
            "plumbline_version_state",
            "The state of each version, numbered as in get_model_status.proto.",
            _VERSION,
            kind="gauge",
        )
        for servable_id, status in self._list_versions().items():
            child = states.child(servable_id.name, str(servable_id.version))
            child.value = int(status.state)
        restarts = Family(
            "plumbline_worker_restarts_total",
            "Workers that ended and were replaced (--workers).",
            ("worker",),
            combine=max,  # the supervisor counts, and every worker reads the same
        )
        for slot, count in self._count_restarts().items():
            restarts.child(str(slot)).value = count
        build = Family(
            "plumbline_build_info", "Versions of the server.", ("version", "python"), kind="gauge"
        )
        # Asked here, since asking costs more than a tenth of the server's start.
        build.child(find_product_version(), platform.python_version()).value = 1
        return [
            *self._list_residency(),
            self._self_test,
            self._engine,
            self._shadow_difference,
            states,
            build,
            restarts,
            *self._measure_queues(),
            _make_gauge(
                "bytes_in_flight",
                "Memory that calls hold.",
                self._budget.num_bytes,
                sum,
            ),
            _make_gauge(
                "max_bytes_in_flight",
                "Memory that calls may hold (--max_bytes_in_flight).",
                self._budget.max_bytes,
                sum,
            ),
            _make_gauge("queued_calls", "Calls that wait for a thread.", self._count_queued(), sum),
            _make_gauge("connections", "Open connections.", self._connections.num_open, sum),
            _make_gauge("ready", "1 when every model is served.", float(self._is_ready()), min),
            _make_gauge(
                "process_start_time_seconds",
                "Start time of the process since the epoch.",
                self._start_time_s,
                min,
            ),
            _make_gauge(
                "process_resident_memory_bytes", "Resident memory.", measure_resident_bytes(), sum
            ),
        ]

    def _measure_queues(self) -> list[Family]:
        """How many calls wait for a batch, and for how long the first of them has."""
        calls = Family(
            "plumbline_batch_queue_calls",
            "Calls that wait for their batch (--enable_batching).",
            _VERSION,
            kind="gauge",
            combine=sum,
        )
        age = Family(
            "plumbline_batch_queue_age_seconds",
            "How long the call that has waited longest for its batch has done so.",
            _VERSION,
            kind="gauge",
        )
        for servable_id, measure in list(self._queues.items()):
            labels = (servable_id.name, str(servable_id.version))
            figures = measure()
            calls.child(*labels).value = figures.num_calls
            age.child(*labels).value = figures.age_s
        return [calls, age]


def _make_gauge(
    name: str, description: str, value: float, combine: Callable[[Iterable[float]], float]
) -> Family:
    gauge = Family(f"plumbline_{name}", description, kind="gauge", combine=combine)
    gauge.child().value = value
    return gauge


def find_product_version() -> str:
    """The version of the distribution, or "unknown" in a checkout that is not installed."""
    import importlib.metadata

    try:
        return importlib.metadata.version("plumbline-tf")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
