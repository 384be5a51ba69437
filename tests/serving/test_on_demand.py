"""Models that are loaded when a call asks for them: real servers, and managers of tiny models."""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import re
import shutil
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import msgspec
import numpy as np
import psutil
import pytest

from clients.cli import main
from contract import layout
from contract.errors import (
    Code,
    ConfigError,
    InternalError,
    ManifestError,
    PlumblineError,
    ServableNotFoundError,
)
from contract.manifest import hash_files, read_manifest, write_manifest
from contract.servable import All, ModelSpec, ServableId, VersionState
from contract.wire.open_inference import MODEL_INFER, MODEL_METADATA, MODEL_READY
from contract.wire.plumbline_wire import metadata_pb2, predict_pb2
from contract.wire.rpc import GET_MODEL_METADATA, PREDICT, Method
from serving.config.models import ModelConfig, find_model_configs
from serving.config.server import ServerConfig, parse_config
from serving.embedded import find_idle
from serving.engines.servable import Servable
from serving.observer import Observer
from serving.rollout.rollout import promote
from serving.rollout.servers import Server
from serving.versions import on_demand
from serving.versions.lifecycle import LoadFunction
from serving.versions.manager import ServableManager
from serving.versions.on_demand import NOT_LOADED, NotLoadedError, estimate_bytes
from tests.serving import rollout_scene
from tests.serving.mlp_calls import NUM_PIXELS, make_request
from tests.serving.numpy_servables import make_servable
from tests.serving.offset_servables import WEIGHTS, Loads, put_version
from tests.serving.server_process import ServerProcess, call
from tests.serving.servers import Faces, serve
from tests.serving.test_discovery import fetch
from tests.serving.test_lifecycle import link_version, replace_file

WAIT_S = 20
Make = Callable[..., ServableManager]


class Events(Observer):
    """What happened, in order."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str]] = []

    def observe_demanded_load(self, model_name: str, result: str) -> None:
        self.seen.append((result, model_name))

    def observe_eviction(self, model_name: str) -> None:
        self.seen.append(("evicted", model_name))


@pytest.fixture
def loads() -> Loads:
    return Loads()


@pytest.fixture
def events() -> Events:
    return Events()


@pytest.fixture
def make(loads: Loads, events: Events) -> Iterator[Make]:
    made: list[ServableManager] = []

    def make_manager(load: LoadFunction = loads, **flags: Any) -> ServableManager:
        defaults = {"file_system_poll_wait_seconds": 0.01, "load_on_demand": True}
        made.append(ServableManager(load, ServerConfig(**(defaults | flags)), observer=events))
        return made[-1]

    yield make_manager
    loads.gate.set()
    for manager in made:
        manager.stop()


def put_models(folder: Path, *names: str, size: int = 100) -> list[ModelConfig]:
    """Models of one version, each of which counts for 1.2 times `size` bytes."""
    for number, name in enumerate(names):
        put_version(folder / name, 1, str(number).rjust(size))
    return [ModelConfig(name, folder / name) for name in names]


def start(manager: ServableManager, models: list[ModelConfig]) -> None:
    manager.start(models)
    assert manager.wait_until_ready(timeout_s=WAIT_S)


def ask(manager: ServableManager, name: str, **spec: Any) -> int:
    """A call that waits, as the protocols' do."""
    with contextlib.ExitStack() as claims:
        while True:
            try:
                with manager.acquire(ModelSpec(name, **spec)) as servable:
                    zero = {"x": np.zeros(1, np.int64)}
                    return int(servable.run("serving_default", zero)["x"][0])
            except NotLoadedError as error:
                claims.enter_context(error.claim()).result(WAIT_S)


def wait_for(manager: ServableManager, predicate: Callable[[], bool]) -> None:
    assert manager.monitor.wait_for(predicate, timeout_s=WAIT_S), manager.monitor.snapshot()


def find_state(manager: ServableManager, name: str, version: int = 1) -> VersionState:
    status = manager.monitor.find(ServableId(name, version))
    assert status is not None
    return status.state


def test_models_are_listed_and_not_loaded(tmp_path: Path, make: Make, loads: Loads) -> None:
    manager = make()
    start(manager, put_models(tmp_path, "a", "b"))
    assert [
        (one.name, one.versions[0].state, one.versions[0].message) for one in manager.list_models()
    ] == [(name, VersionState.START, NOT_LOADED) for name in "ab"]
    assert loads.begun == []


def test_a_call_loads_its_model_alone(tmp_path: Path, make: Make, loads: Loads) -> None:
    manager = make()
    start(manager, put_models(tmp_path, "a", "b"))
    assert ask(manager, "b") == 1
    assert loads.begun == [ServableId("b", 1)]
    assert find_state(manager, "a") is VersionState.START
    assert find_state(manager, "b") is VersionState.AVAILABLE


def test_calls_at_once_share_a_load(tmp_path: Path, make: Make, loads: Loads) -> None:
    manager = make()
    start(manager, put_models(tmp_path, "a"))
    loads.gate.clear()
    with concurrent.futures.ThreadPoolExecutor(20) as callers:
        answers = [callers.submit(ask, manager, "a") for _ in range(20)]
        wait_for(manager, lambda: find_state(manager, "a") is VersionState.LOADING)
        loads.gate.set()
        assert {one.result(WAIT_S) for one in answers} == {0}
    assert len(loads.begun) == 1


def test_the_least_recently_used_model_leaves(tmp_path: Path, make: Make, events: Events) -> None:
    manager = make(max_resident_bytes=240)
    start(manager, put_models(tmp_path, "a", "b", "c"))
    for name in ("a", "b", "a", "c", "a", "b"):
        ask(manager, name)
    assert events.seen == [
        *(("loaded", "a"), ("loaded", "b"), ("evicted", "b"), ("loaded", "c")),
        *(("evicted", "c"), ("loaded", "b")),
    ]
    found = manager.measure_residency()
    assert (found.num_bytes, found.num_models) == (240, 2)


def test_what_left_is_listed_as_before(tmp_path: Path, make: Make, loads: Loads) -> None:
    manager = make(max_resident_bytes=120)
    start(manager, put_models(tmp_path, "a", "b"))
    ask(manager, "a")
    ask(manager, "b")
    assert loads.made[0].is_closed
    status = manager.list_states("a")[0]
    assert (status.state, status.code, status.message) == (VersionState.START, Code.OK, NOT_LOADED)
    assert manager.is_ready()


def test_a_model_with_a_call_in_flight_stays(tmp_path: Path, make: Make, events: Events) -> None:
    manager = make(max_resident_bytes=240)
    start(manager, put_models(tmp_path, "a", "b", "c"))
    ask(manager, "a")
    ask(manager, "b")
    with manager.acquire(ModelSpec("a")):  # now b is the last to have been asked, but for this
        ask(manager, "b")
        ask(manager, "c")
    assert ("evicted", "b") in events.seen
    assert ("evicted", "a") not in events.seen


def test_a_load_waits_for_calls_in_flight_to_end(tmp_path: Path, make: Make) -> None:
    manager = make(max_resident_bytes=120)
    start(manager, put_models(tmp_path, "a", "b"))
    ask(manager, "a")
    with concurrent.futures.ThreadPoolExecutor(1) as callers:
        with manager.acquire(ModelSpec("a")) as servable:
            answer = callers.submit(ask, manager, "b")
            with pytest.raises(concurrent.futures.TimeoutError):
                answer.result(0.2)
            servable.run("serving_default", {})
        assert answer.result(WAIT_S) == 1


def test_what_was_loaded_for_a_call_stays_until_that_was_answered(
    tmp_path: Path, make: Make
) -> None:
    manager = make(max_resident_bytes=120)
    start(manager, put_models(tmp_path, "a", "b"))
    with pytest.raises(NotLoadedError) as absent:
        manager.acquire(ModelSpec("a"))
    with concurrent.futures.ThreadPoolExecutor(1) as callers:
        with absent.value.claim() as settled:
            settled.result(WAIT_S)
            answer = callers.submit(ask, manager, "b")
            with pytest.raises(concurrent.futures.TimeoutError):
                answer.result(0.2)
            assert ask(manager, "a") == 0
        assert answer.result(WAIT_S) == 1


def test_models_that_take_turns_are_all_answered(tmp_path: Path, make: Make) -> None:
    manager = make(max_resident_bytes=120)
    names = [f"m{number}" for number in range(8)]
    start(manager, put_models(tmp_path, *names))
    with concurrent.futures.ThreadPoolExecutor(8) as callers:
        for _ in range(5):
            assert list(callers.map(lambda name: ask(manager, name), names)) == list(range(8))
    assert manager.measure_residency().num_bytes == 120


def test_a_model_larger_than_the_limit_says_so(tmp_path: Path, make: Make, loads: Loads) -> None:
    manager = make(max_resident_bytes=119)
    start(manager, put_models(tmp_path, "a"))
    with pytest.raises(PlumblineError, match=r"120 bytes .*--max_resident_bytes=119") as refused:
        ask(manager, "a")
    assert refused.value.code is Code.FAILED_PRECONDITION
    assert loads.begun == []
    assert manager.is_ready()


def test_a_version_whose_files_are_damaged_unloads_nobody(
    tmp_path: Path, loads: Loads, events: Events
) -> None:
    def check(servable_id: ServableId, directory: Path) -> None:
        if "broken" in (directory / WEIGHTS).read_text():
            raise ManifestError(f"{servable_id}: sha256 differs")

    config = ServerConfig(
        load_on_demand=True, max_resident_bytes=120, file_system_poll_wait_seconds=0.01
    )
    manager = ServableManager(loads, config, observer=events, check=check)
    try:
        models = put_models(tmp_path, "a", "b")
        (tmp_path / "b" / "1" / WEIGHTS).write_text("broken".rjust(100))
        start(manager, models)
        assert ask(manager, "a") == 0
        with pytest.raises(PlumblineError, match="sha256 differs") as refused:
            ask(manager, "b")
        assert refused.value.code is Code.FAILED_PRECONDITION
        assert events.seen == [("loaded", "a"), ("failed", "b")]
        assert not loads.made[0].is_closed
        # Of another size, since two texts of one tick of the clock have the same time.
        (tmp_path / "b" / "1" / WEIGHTS).write_text("7".rjust(99))
        wait_for(manager, lambda: find_state(manager, "b") is VersionState.AVAILABLE)
        assert ask(manager, "b") == 7
    finally:
        manager.stop()


def test_a_model_that_never_fits_is_refused_once_for_a_call(
    tmp_path: Path, make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    manager = make(max_resident_bytes=150)
    start(manager, put_models(tmp_path, "a", size=200) + put_models(tmp_path, "b"))
    with pytest.raises(PlumblineError, match="counts for"):
        ask(manager, "a")
    for _ in range(3):  # looks at the base paths, and loads, go on meanwhile
        assert ask(manager, "b") == 0
        threading.Event().wait(0.05)
    assert caplog.text.count("counts for") == 1


def fail_once(loads: Loads) -> LoadFunction:
    """Loads as `loads` does, but for the first time."""

    def load(servable_id: ServableId, directory: Path) -> Servable:
        if not loads.begun:
            loads.begun.append(servable_id)
            raise InternalError("the disk hiccuped")
        return loads(servable_id, directory)

    return load


def test_a_failed_load_is_told_at_once_for_a_while(
    tmp_path: Path, make: Make, loads: Loads, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(on_demand, "_FIRST_PAUSE_S", 3600.0)
    manager = make(fail_once(loads))
    start(manager, put_models(tmp_path, "a"))
    for _ in range(3):
        with pytest.raises(PlumblineError, match=r"the disk hiccuped.*tried again") as refused:
            ask(manager, "a")
        assert refused.value.code is Code.UNAVAILABLE
    assert len(loads.begun) == 1
    assert find_state(manager, "a") is VersionState.END


def test_a_failed_load_is_tried_again_after_a_while(
    tmp_path: Path, make: Make, loads: Loads, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(on_demand, "_FIRST_PAUSE_S", 0.05)
    manager = make(fail_once(loads))
    start(manager, put_models(tmp_path, "a"))
    with pytest.raises(PlumblineError, match="the disk hiccuped"):
        ask(manager, "a")
    deadline = time.monotonic() + WAIT_S
    while True:
        try:
            assert ask(manager, "a") == 0
            break
        except PlumblineError:
            assert time.monotonic() < deadline
            threading.Event().wait(0.01)
    assert len(loads.begun) == 2


def test_a_version_that_is_mended_is_loaded_without_a_pause(
    tmp_path: Path, make: Make, loads: Loads
) -> None:
    manager = make()
    (model,) = put_models(tmp_path, "a")
    (model.base_path / "1" / WEIGHTS).write_text("no number")
    start(manager, [model])
    with pytest.raises(PlumblineError) as refused:
        ask(manager, "a")
    assert refused.value.code is Code.FAILED_PRECONDITION
    (model.base_path / "1" / WEIGHTS).write_text("42")
    wait_for(manager, lambda: find_state(manager, "a") is VersionState.AVAILABLE)
    assert ask(manager, "a") == 42


def test_a_new_version_of_a_model_that_sleeps_is_listed_alone(
    tmp_path: Path, make: Make, loads: Loads
) -> None:
    manager = make()
    start(manager, put_models(tmp_path, "a"))
    put_version(tmp_path / "a", 2, 20)
    wait_for(manager, lambda: manager.list_models()[0].versions[0].version == 2)
    assert ask(manager, "a") == 20
    assert loads.begun == [ServableId("a", 2)]


def test_a_new_version_of_a_loaded_model_takes_over(tmp_path: Path, make: Make) -> None:
    manager = make()
    start(manager, put_models(tmp_path, "a"))
    assert ask(manager, "a") == 0
    put_version(tmp_path / "a", 2, 20)
    wait_for(manager, lambda: find_state(manager, "a") is VersionState.END)
    assert ask(manager, "a") == 20


def test_a_new_version_that_fits_only_alone_takes_over(tmp_path: Path, make: Make) -> None:
    manager = make(max_resident_bytes=200)
    start(manager, put_models(tmp_path, "a"))
    assert ask(manager, "a") == 0
    put_version(tmp_path / "a", 2, "20".rjust(100))
    wait_for(manager, lambda: find_state(manager, "a") is VersionState.END)
    assert ask(manager, "a") == 20


def test_all_versions_of_a_model_come_and_go_together(tmp_path: Path, make: Make) -> None:
    models = put_models(tmp_path, "a", "b")
    put_version(tmp_path / "a", 2, "20".rjust(100))
    manager = make(max_resident_bytes=240)
    labels = {"old": 1}
    start(manager, [ModelConfig("a", tmp_path / "a", All(), labels), models[1]])
    assert ask(manager, "a") == 20
    assert ask(manager, "a", version_label="old") == ask(manager, "a", version=1) == 0
    assert ask(manager, "b") == 1
    wait_for(manager, lambda: find_state(manager, "a", 2) is VersionState.START)
    assert find_state(manager, "a", 1) is VersionState.START
    assert ask(manager, "a", version_label="old") == 0


def test_what_there_is_not_loads_nothing(tmp_path: Path, make: Make, loads: Loads) -> None:
    manager = make()
    start(manager, put_models(tmp_path, "a"))
    for spec in (ModelSpec("a", version=9), ModelSpec("none")):
        with pytest.raises(ServableNotFoundError) as missing:
            manager.acquire(spec)
        assert not isinstance(missing.value, NotLoadedError)
    assert loads.begun == []


def test_a_model_that_left_the_configuration_leaves_and_wakes_who_waits(
    tmp_path: Path, make: Make, loads: Loads
) -> None:
    manager = make()
    models = put_models(tmp_path, "a", "b")
    start(manager, models)
    ask(manager, "a")
    manager.reload(models[1:])
    wait_for(manager, lambda: find_state(manager, "a") is VersionState.END)
    assert loads.made[0].is_closed
    with pytest.raises(ServableNotFoundError):
        ask(manager, "a")


def test_a_reload_waits_for_no_load(tmp_path: Path, make: Make, loads: Loads) -> None:
    manager = make()
    models = put_models(tmp_path, "a", "b")
    start(manager, models[:1])
    manager.reload(models)
    assert loads.begun == []
    assert ask(manager, "b") == 1


def test_a_stop_lets_nobody_wait(tmp_path: Path, make: Make, loads: Loads) -> None:
    manager = make()
    start(manager, put_models(tmp_path, "a"))
    loads.gate.clear()
    with pytest.raises(NotLoadedError) as absent:
        manager.acquire(ModelSpec("a"))
    with absent.value.claim() as settled:
        stopping = threading.Thread(target=manager.stop)
        stopping.start()
        settled.result(WAIT_S)
    loads.gate.set()
    stopping.join()


def test_a_version_counts_for_its_files_but_what_no_engine_loads(tmp_path: Path) -> None:
    version = put_version(tmp_path / "a", 1, "x" * 1000)
    (version / "variables").mkdir()
    (version / "variables" / "data").write_bytes(bytes(500))
    (version / "assets.extra").mkdir()
    (version / "assets.extra" / "golden.npz").write_bytes(bytes(10_000))
    assert estimate_bytes(version) == 1800


def test_base_paths_are_found_in_their_folder(tmp_path: Path) -> None:
    put_models(tmp_path, "b", "a")
    put_version(tmp_path / ".hidden", 1)
    (tmp_path / "no_version").mkdir()
    (tmp_path / "file").write_text("")
    assert [(one.name, one.base_path) for one in find_model_configs(tmp_path)] == [
        (name, tmp_path / name) for name in "ab"
    ]


@pytest.mark.parametrize(
    ("flags", "word"),
    [
        (("--model_base_path=/m", "--max_resident_bytes=5"), "wants --load_on_demand"),
        (("--model_base_path=/m", "--load_on_demand", "--strict_compat"), "exclude each other"),
        (("--models_base_path=/m", "--model_base_path=/m"), "without --model_config_file"),
        (("--models_base_path=/m", "--strict_compat"), "exclude each other"),
        (("--models_base_path=/no/such/folder",), "No such file"),
        (("--model_base_path=/m", "--load_on_demand", "--max_resident_bytes=-1"), "0 or more"),
    ],
)
def test_flags_that_cannot_be_used_are_refused(flags: tuple[str, ...], word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        parse_config(flags)


# Real servers, real versions.


def serve_on_demand(tmp_path: Path, *flags: str) -> ServerProcess:
    """A server of the models in a folder, which loads each when it is asked for."""
    base = f"--models_base_path={tmp_path / 'models'}"
    return ServerProcess(tmp_path, base, "--load_on_demand", *flags, rest=True)


def serve_many(folder: Path, source: Path, num_models: int) -> int:
    """So many models of one version; what each counts for."""
    for number in range(num_models):
        link_version(source, folder / f"m{number}", 1)
    return estimate_bytes(source)


def predict(url: str, name: str, timeout_s: float = 60) -> Any:
    body = json.dumps({"instances": np.zeros((1, NUM_PIXELS)).tolist()}).encode()
    request = urllib.request.Request(f"{url}/v1/models/{name}:predict", body)
    with urllib.request.urlopen(request, timeout=timeout_s) as response:
        return json.load(response)["predictions"]


def read_metric(server: ServerProcess, name: str) -> float:
    """A metric's values, added."""
    with urllib.request.urlopen(f"{server.url}/monitoring/prometheus/metrics") as response:
        page = response.read().decode()
    return sum(float(value) for value in re.findall(rf"^{name}(?:{{.*}})? (\S+)$", page, re.M))


@pytest.mark.parametrize("workers", [1, 2])
def test_a_server_loads_and_unloads_as_it_is_asked(
    tmp_path: Path, published_mlp: Path, workers: int
) -> None:
    size = serve_many(tmp_path / "models", published_mlp / "mlp" / "1", 4)
    with serve_on_demand(
        tmp_path,
        f"--max_resident_bytes={2 * size}",
        f"--workers={workers}",
    ) as server:
        server.wait_until_ready()
        models = fetch(server.url)["models"]
        assert [one["name"] for one in models] == ["m0", "m1", "m2", "m3"]
        for one in models:
            (status,) = one["model_version_status"]
            assert (status["state"], status["status"]["error_message"]) == ("START", NOT_LOADED)
        answers = [predict(server.url, f"m{number}") for number in (0, 1, 2, 3, 0)]
        assert answers == answers[:1] * 5
        with grpc.insecure_channel(server.address) as channel:
            for number in range(4):
                for _ in range(2):  # the second is of a form that was answered before
                    call(channel, PREDICT, make_request(f"m{number}"), timeout_s=60)
            request = metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
            request.model_spec.name = "m0"
            assert call(channel, GET_MODEL_METADATA, request, timeout_s=60).metadata
        assert fetch(server.url, "/v1/models/m1/metadata")["metadata"]
        assert 0 < read_metric(server, "plumbline_resident_bytes") <= workers * 2 * size
        assert read_metric(server, "plumbline_resident_models") <= workers * 2
        assert read_metric(server, "plumbline_demanded_loads_total") >= 8
        assert read_metric(server, "plumbline_evictions_total") >= 4
        assert read_metric(server, "plumbline_load_wait_seconds_count") >= 8
        assert read_metric(server, "plumbline_ready") == 1


def make_infer_request() -> Any:
    request = MODEL_INFER.request(model_name="m")
    tensor = request.inputs.add(name="x", datatype="FP32", shape=[1])
    tensor.contents.fp32_contents.append(1.0)
    return request


@pytest.fixture
def gate() -> threading.Event:
    return threading.Event()


@pytest.fixture(params=[30_000])
def faces(
    request: pytest.FixtureRequest, tmp_path: Path, make: Make, gate: threading.Event
) -> Iterator[Faces]:
    """Both protocols over a manager whose one model `m` is loaded once the gate is open; the time
    limit of REST, in ms, may be another."""

    def load(servable_id: ServableId, directory: Path) -> Servable:
        assert gate.wait(WAIT_S)
        return make_servable(servable_id.version)

    manager = make(load)
    start(manager, put_models(tmp_path, "m"))
    config = ServerConfig(load_on_demand=True, rest_api_timeout_in_ms=request.param)
    with serve(manager, config) as found:
        yield found
    gate.set()


BODY = b'{"instances": [1.0]}'
INFER = b'{"inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": [1.0]}]}'
EXAMPLES = b'{"signature_name": "%s", "examples": [{}]}'


@pytest.mark.parametrize("faces", [500], indirect=True)
def test_a_deadline_ends_the_wait_and_not_the_load(faces: Faces, gate: threading.Event) -> None:
    late = faces.request("POST", "/v1/models/m:predict", BODY)
    assert late.status == 504
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "m"
    address = f"127.0.0.1:{faces.grpc_port}"
    with grpc.insecure_channel(address) as channel, pytest.raises(grpc.RpcError) as too_late:
        call(channel, PREDICT, request, timeout_s=0.3)
    assert too_late.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    gate.set()
    while (answer := faces.request("POST", "/v1/models/m:predict", BODY)).status == 504:
        pass  # it is not there yet
    assert answer.status == 200


@pytest.mark.parametrize(
    ("method", "request_"),
    [(MODEL_METADATA, MODEL_METADATA.request(name="m")), (MODEL_INFER, make_infer_request())],
    ids=["metadata", "infer"],
)
def test_the_open_inference_protocol_waits_over_grpc_too(
    faces: Faces, gate: threading.Event, method: Method, request_: Any
) -> None:
    address = f"127.0.0.1:{faces.grpc_port}"
    with grpc.insecure_channel(address) as channel:
        assert call(channel, MODEL_READY, MODEL_READY.request(name="m")).ready
        with concurrent.futures.ThreadPoolExecutor(1) as callers:
            answer = callers.submit(call, channel, method, request_)
            with pytest.raises(concurrent.futures.TimeoutError):
                answer.result(0.1)
            gate.set()
            assert answer.result(WAIT_S)


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/v1/models/m:predict", BODY),
        ("GET", "/v1/models/m/metadata", None),
        ("POST", "/v1/models/m:classify", EXAMPLES % b"classify"),
        ("POST", "/v1/models/m/versions/1:regress", EXAMPLES % b"regress"),
        ("GET", "/v2/models/m", None),
        ("POST", "/v2/models/m/infer", INFER),
    ],
)
def test_every_method_that_needs_a_model_waits_for_it(
    faces: Faces, gate: threading.Event, method: str, path: str, body: bytes | None
) -> None:
    with concurrent.futures.ThreadPoolExecutor(1) as callers:
        answer = callers.submit(faces.request, method, path, body)
        with pytest.raises(concurrent.futures.TimeoutError):
            answer.result(0.1)
        gate.set()
        assert answer.result(WAIT_S).status == 200


def test_a_status_and_the_list_load_nothing(faces: Faces) -> None:
    for path in ("/v1/models/m", "/v1/models", "/openapi.json", "/v2/models/m/ready"):
        answer = faces.request("GET", path)
        assert answer.status == 200
    (status,) = json.loads(faces.request("GET", "/v1/models/m").body)["model_version_status"]
    assert status["state"] == "START"
    assert status["status"]["error_message"] == NOT_LOADED


def test_a_damaged_version_tells_its_reason_and_costs_no_other(
    tmp_path: Path, published_mlp: Path
) -> None:
    serve_many(tmp_path / "models", published_mlp / "mlp" / "1", 2)
    damaged = tmp_path / "models" / "m0" / "1" / "model.tflite"
    damaged.unlink()
    damaged.write_bytes(b"no model")
    with serve_on_demand(tmp_path) as server:
        server.wait_until_ready()
        with pytest.raises(urllib.error.HTTPError) as failed:
            predict(server.url, "m0")
        text = json.load(failed.value)["error"]
        assert "instead of" in text
        assert "tried again for a call" in text
        assert predict(server.url, "m1")
        assert server.is_serving


def test_a_folder_of_no_models_says_which_one_is_meant(tmp_path: Path) -> None:
    base_path = tmp_path / "models" / "mlp"

    def explain(folder: Path) -> str:
        (said,) = find_idle(ServerConfig(models_base_path=str(folder)))
        return said

    base_path.mkdir(parents=True)
    assert f"such as {tmp_path / 'models' / 'mlp' / '1'}" in explain(tmp_path / "models")
    put_version(base_path, 1)
    deep = explain(base_path)
    assert f"--model_name=mlp --model_base_path={base_path}" in deep
    assert deep.endswith(f"--models_base_path={tmp_path / 'models'}")
    assert explain(tmp_path).endswith(f"--models_base_path={tmp_path / 'models'}")


def test_a_model_that_appears_in_the_folder_is_served(tmp_path: Path, published_mlp: Path) -> None:
    source = published_mlp / "mlp" / "1"
    serve_many(tmp_path / "models", source, 1)
    with serve_on_demand(tmp_path) as server:
        server.wait_until_ready()
        link_version(source, tmp_path / "models" / "new", 1)
        # Its folder may be seen before its version.
        server.wait_for(
            lambda: (
                [bool(one["model_version_status"]) for one in fetch(server.url)["models"]]
                == [True, True]
            )
        )
        assert predict(server.url, "new")
        shutil.rmtree(tmp_path / "models" / "m0")
        server.wait_for(lambda: [one["name"] for one in fetch(server.url)["models"]] == ["new"])


def test_a_damaged_model_and_a_start_move_nothing_that_is_good(
    tmp_path: Path, published_mlp: Path
) -> None:
    size = serve_many(tmp_path / "models", published_mlp / "mlp" / "1", 3)
    graph = tmp_path / "models" / "m2" / "1" / "saved_model.pb"
    replace_file(graph, graph.read_bytes()[:-1] + b"?")
    with serve_on_demand(
        tmp_path,
        f"--max_resident_bytes={size}",
    ) as server:
        server.wait_until_ready()
        assert predict(server.url, "m0")
        with pytest.raises(urllib.error.HTTPError) as refused:
            predict(server.url, "m2")
        assert b"sha256" in refused.value.read()
        assert server.list_states("m0") == {1: "AVAILABLE"}
        assert "name: m1" not in server.log


def test_a_version_that_fails_its_trial_moves_nothing_that_is_good(
    tmp_path: Path, published_mlp: Path
) -> None:
    size = serve_many(tmp_path / "models", published_mlp / "mlp" / "1", 1)
    unfit = rollout_scene.copy_version(
        published_mlp / "mlp" / "1", tmp_path / "models" / "unfit" / "2"
    )
    (unfit / layout.TFLITE).write_bytes(b"no model")  # and the manifest is true to it
    manifest = read_manifest(unfit)
    write_manifest(unfit, msgspec.structs.replace(manifest, files=hash_files(unfit)))
    with serve_on_demand(
        tmp_path,
        f"--max_resident_bytes={size}",
        "--engine=litert",
    ) as server:
        server.wait_until_ready()
        assert predict(server.url, "m0")
        with pytest.raises(urllib.error.HTTPError) as refused:
            predict(server.url, "unfit")
        assert b"model.tflite" in refused.value.read()
        assert server.list_states("m0") == {1: "AVAILABLE"}
        assert read_metric(server, "plumbline_evictions_total") == 0


def test_who_leaves_leaves_for_a_version_that_was_tried_once(
    tmp_path: Path, published_mlp: Path
) -> None:
    size = serve_many(tmp_path / "models", published_mlp / "mlp" / "1", 2)
    with serve_on_demand(
        tmp_path,
        f"--max_resident_bytes={size}",
    ) as server:
        server.wait_until_ready()
        assert predict(server.url, "m0")
        assert predict(server.url, "m1")
        assert server.list_states("m0") == {1: "START"}
        assert server.log.count("name: m1 version: 1}: serving_default by litert") == 1


def test_memory_stays_flat_over_many_loads(tmp_path: Path, published_mlp: Path) -> None:
    size = serve_many(tmp_path / "models", published_mlp / "mlp" / "1", 3)
    with serve_on_demand(
        tmp_path,
        f"--max_resident_bytes={size}",
        "--log_level=warning",
    ) as server:
        server.wait_until_ready()
        process = psutil.Process(server.process.pid)

        def go_round(num_rounds: int) -> int:
            for number in range(num_rounds):
                predict(server.url, f"m{number % 3}")
            return int(process.memory_info().rss)

        before = go_round(60)
        after = go_round(120)
        assert read_metric(server, "plumbline_evictions_total") == 179
        assert after - before < 10 * 2**20
        assert process.num_threads() < 40
        assert process.num_fds() < 60


def test_a_rollout_loads_the_version_that_it_promotes(tmp_path: Path, published_mlp: Path) -> None:
    for number in (1, 2):
        rollout_scene.copy_version(published_mlp / "mlp" / "1", tmp_path / "mlp" / str(number))
    config = rollout_scene.write_config(tmp_path)
    flags = ("--enable_reload_config", "--load_on_demand")
    with rollout_scene.serve(tmp_path, config, *flags, kind="embedded") as server:
        rollout = rollout_scene.open_rollout(config, server.address)
        promote(rollout, "mlp", version=2, label="stable")
        assert Server(server.address).find_label("mlp", "stable") == 2


def test_callers_lose_no_call_while_models_come_and_go(tmp_path: Path, published_mlp: Path) -> None:
    size = serve_many(tmp_path / "models", published_mlp / "mlp" / "1", 5)
    with serve_on_demand(
        tmp_path,
        f"--max_resident_bytes={2 * size}",
        "--log_level=warning",
    ) as server:
        server.wait_until_ready()

        def ask_in_turn(first: int) -> int:
            with grpc.insecure_channel(server.address) as channel:
                for number in range(first, first + 30):
                    call(channel, PREDICT, make_request(f"m{number % 5}"), timeout_s=120)
                    predict(server.url, f"m{number * 2 % 5}", timeout_s=120)
            return 60

        with concurrent.futures.ThreadPoolExecutor(4) as callers:
            assert sum(callers.map(ask_in_turn, range(4))) == 240
        assert read_metric(server, "plumbline_evictions_total") > 20
        assert read_metric(server, "plumbline_resident_bytes") <= 2 * size


@pytest.mark.parametrize("workers", [1, 2])
def test_a_client_that_waits_for_a_version_has_it_loaded(
    tmp_path: Path, published_mlp: Path, workers: int
) -> None:
    serve_many(tmp_path / "models", published_mlp / "mlp" / "1", 2)
    with serve_on_demand(
        tmp_path,
        f"--workers={workers}",
    ) as server:
        server.wait_until_ready()
        for where in (server.address, server.url):
            flags = ("--server", where, "--model_name", "m0")
            assert main(["status", *flags, "--wait_s", "60"]) in (0, 1)  # 1: not in all workers
            assert predict(server.url, "m0")


def test_doctor_knows_a_model_that_is_loaded_on_demand_and_leaves_it_alone(
    tmp_path: Path, published_mlp: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    serve_many(tmp_path / "models", published_mlp / "mlp" / "1", 1)
    with serve_on_demand(tmp_path) as server:
        server.wait_until_ready()
        assert main(["doctor", server.address, "--model_name", "m0", "--json"]) == 0
        assert NOT_LOADED in capsys.readouterr().out
        assert server.list_states("m0") == {1: "START"}
