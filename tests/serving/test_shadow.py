"""A version that answers real calls beside the old one, and what comes of it."""

from __future__ import annotations

import asyncio
import re
import signal
import stat
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import numpy as np
import pytest

from clients import PredictionClient, RestClient
from contract import layout
from contract.errors import PlumblineError, ResourceExhaustedError
from contract.golden import read_golden
from contract.servable import ModelSpec
from contract.shadow import ShadowFigures, read_shadow_rows
from contract.signature import Array, Batch
from contract.wire.plumbline_wire import model_pb2
from contract.wire.plumbline_wire.prediction_log_pb2 import PredictionLog
from contract.wire.predict import encode_predict_request, parse_predict_request
from contract.wire.tfrecord import read_records, write_records
from serving.api.handlers import Handlers
from serving.api.results import CLASSIFICATION, REGRESSION
from serving.api.shadow import MAX_QUEUED_CALLS, Shadow, ShadowOrder
from serving.config.server import ServerConfig
from serving.engines.servable import Servable
from serving.engines.signatures import UNKNOWN_IN_PREDICT, SignatureCheck
from serving.engines.thread_pool import ThreadPool
from serving.observer import Observer
from serving.rollout.servers import Server
from serving.rollout.shadow import ShadowOptions, judge_shadow
from serving.transport.admission import MemoryBudget
from tests.conformance.servers import find_model_server
from tests.serving.numpy_servables import NumpyEngine, OneModelManager, make_servable
from tests.serving.rollout_scene import (
    Scene,
    change_weights,
    copy_version,
    replace_text,
    run_json,
    run_serving,
    serve,
    start_serving,
    write_config,
)
from tests.serving.server_process import ServerProcess

CALLERS = 3


@pytest.fixture(scope="module")
def versions(tmp_path_factory: pytest.TempPathFactory, published_mlp: Path) -> Path:
    folder = tmp_path_factory.mktemp("shadow")
    source = published_mlp / "mlp" / "1"
    for number in (1, 2):
        copy_version(source, folder / "mlp" / str(number))
    change_weights(source, folder / "mlp" / "3", bias=4.0)
    return folder


@pytest.fixture(scope="module", params=[1, 2], ids=["alone", "two workers"])
def server(request: pytest.FixtureRequest, versions: Path) -> Iterator[ServerProcess]:
    config = write_config(versions)
    flags = ("--enable_reload_config", f"--workers={request.param}")
    log = versions / f"log-{request.param}"
    with serve(
        versions,
        config,
        *flags,
        "--rest_api_port=-1",
        f"--request_log_dir={log}",
        "--request_log_sampling_rate=1",
    ) as server:
        yield server


@pytest.fixture
def scene(versions: Path, server: ServerProcess) -> Scene:
    """Version 1 under the label stable; 2 is equal to it, 3 has other weights."""
    scene = Scene(write_config(versions), server, ("--label=stable", "--shadow_sample=1"))
    server.wait_for(lambda: scene.find_label() == 1 and scene.list_states()[1] == "AVAILABLE")
    server.wait_for(lambda: {scene.list_states().get(number) for number in (2, 3)} <= {None, "END"})
    return scene


def read_rows(folder: Path) -> Array:
    golden = read_golden(folder / "mlp" / "1" / layout.GOLDEN).signatures["serving_default"]
    (rows,) = golden.inputs.values()
    return rows


def find_input(folder: Path) -> str:
    golden = read_golden(folder / "mlp" / "1" / layout.GOLDEN).signatures["serving_default"]
    (name,) = golden.inputs
    return name


@contextmanager
def call_by_label(scene: Scene, *, version: int | None = None) -> Iterator[list[str]]:
    """Callers who ask row after row; gives what they saw that they should not have."""
    rows = read_rows(scene.config.parent)
    (name,) = (
        read_golden(scene.config.parent / "mlp" / "1" / layout.GOLDEN)
        .signatures["serving_default"]
        .inputs
    )
    with PredictionClient(scene.server.address, model_name="mlp") as client:
        wanted = [
            client.predict({name: rows[at : at + 1]}, version=1)["probabilities"]
            for at in range(len(rows))
        ]
    stop, faults = threading.Event(), list[str]()

    def call() -> None:
        with PredictionClient(scene.server.address, model_name="mlp") as client:
            at = 0
            while not stop.wait(0.001):
                at = (at + 1) % len(rows)
                label = None if version else "stable"
                try:
                    got = client.predict(
                        {name: rows[at : at + 1]}, version=version, version_label=label
                    )["probabilities"]
                except PlumblineError as error:
                    faults.append(error.message)
                    continue
                if not np.array_equal(got, wanted[at]):
                    faults.append(f"row {at} is answered otherwise")

    threads = [threading.Thread(target=call) for _ in range(CALLERS)]
    for thread in threads:
        thread.start()
    try:
        yield faults
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def ask(
    server: ServerProcess, order_id: str, *, lease_s: float, version: int = 2, num_rows: int = 0
) -> ShadowFigures:
    spec = ModelSpec("mlp", version)
    figures, _ = Server(server.address).shadow(
        spec, order_id, sample=1, lease_s=lease_s, num_rows=num_rows
    )
    return figures


@contextmanager
def load(server: ServerProcess, scene: Scene, version: int) -> Iterator[None]:
    """A version beside version 1, without a promotion."""
    text = scene.config.read_text()
    wanted = f"versions: 1 versions: {version} "
    replace_text(scene.config, text.replace("versions: 1 ", wanted))
    server.wait_for(lambda: server.list_states("mlp").get(version) == "AVAILABLE")
    yield
    replace_text(scene.config, text)


def test_a_version_that_answers_otherwise_never_gets_the_label(scene: Scene) -> None:
    text = scene.config.read_text()
    with call_by_label(scene) as faults:
        code, document = run_json(
            "promote", *scene.flags, "--version=3", "--shadow_s=30", "--min_shadow_rows=100"
        )
    assert faults == []
    shadow = document["shadow"]
    assert code == 1 and document["is_restored"] and not shadow["passed"]
    assert "change their top class" in document["problem"]
    assert shadow["figures"]["num_flips"] > 0 and shadow["figures"]["versions"] == [1]
    assert scene.config.read_text() == text and scene.find_label() == 1


def test_the_worst_rows_are_kept_for_their_owner_alone(scene: Scene) -> None:
    with call_by_label(scene):
        _, document = run_json(
            "promote",
            *scene.flags,
            *("--version=3", "--shadow_s=30", "--min_shadow_rows=100", "--shadow_rows=5"),
        )
    assert document["shadow"]["rows_file"], document
    path = Path(document["shadow"]["rows_file"])
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    kept = read_shadow_rows(path)
    assert len(kept) == document["shadow"]["num_kept"] == 5
    assert kept[0].is_flipped
    assert kept[0].after["probabilities"].argmax() == 3 != kept[0].before["probabilities"].argmax()
    rows = read_rows(scene.config.parent)
    (sent,) = kept[0].inputs.values()
    assert any(np.array_equal(sent[0], row) for row in rows)


def test_no_rows_are_kept_where_none_are_wanted(scene: Scene) -> None:
    with call_by_label(scene):
        _, document = run_json(
            "promote",
            *scene.flags,
            *("--version=3", "--shadow_s=30", "--min_shadow_rows=100", "--shadow_rows=0"),
        )
    assert document["shadow"]["rows_file"] == ""


def test_a_version_that_answers_alike_gets_the_label_and_no_caller_notices(scene: Scene) -> None:
    with call_by_label(scene) as faults:
        code, out, err = run_serving(
            "promote", *scene.flags, "--version=2", "--shadow_s=2", "--min_shadow_rows=1"
        )
    assert faults == []
    assert code == 0, err
    assert "shadow: version 2 beside 1" in out and "latency, p50" in out
    assert max(map(len, out.splitlines()[:-1])) <= 80
    assert scene.find_label() == 2


def test_too_little_traffic_proves_nothing_and_the_label_stays(scene: Scene) -> None:
    code, document = run_json("promote", *scene.flags, "--version=2", "--shadow_s=0.5")
    assert code == 1 and document["is_restored"]
    assert "not enough traffic: 0 rows (--min_shadow_rows 300)" in document["problem"]
    assert scene.find_label() == 1


def test_calls_that_name_a_version_are_not_shadowed(scene: Scene) -> None:
    with call_by_label(scene, version=1):
        code, document = run_json("promote", *scene.flags, "--version=2", "--shadow_s=1")
    assert code == 1 and document["shadow"]["figures"]["num_calls"] == 0


def test_calls_over_rest_are_shadowed_too(scene: Scene) -> None:
    rows = read_rows(scene.config.parent)
    with (
        load(scene.server, scene, 2),
        RestClient(scene.server.url, model_name="mlp") as client,
    ):
        ask(scene.server, "rest", lease_s=30)
        name = find_input(scene.config.parent)

        def is_seen() -> bool:
            client.predict({name: rows[:2]}, version_label="stable")
            return ask(scene.server, "rest", lease_s=30).num_rows > 0

        scene.server.wait_for(is_seen)
        assert ask(scene.server, "rest", lease_s=0).num_flips == 0


def test_ctrl_c_ends_the_shadow_at_once_and_leaves_the_label(scene: Scene) -> None:
    text = scene.config.read_text()
    before = scene.server.log.count("answers 1 of its calls beside")
    process = start_serving("promote", *scene.flags, "--version=2", "--shadow_s=300")
    scene.server.wait_for(lambda: scene.server.log.count("answers 1 of its calls beside") > before)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130
    assert scene.config.read_text() == text and scene.find_label() == 1
    with load(scene.server, scene, 2):
        ask(scene.server, "the next one", lease_s=30)  # and is not refused
        ask(scene.server, "the next one", lease_s=0)


def test_a_shadow_that_nobody_asks_for_any_more_ends_by_itself(scene: Scene) -> None:
    with load(scene.server, scene, 2):
        seen = len(scene.server.log)
        ask(scene.server, "dies", lease_s=1)

        def has_ended() -> bool:  # in every worker
            log = scene.server.log[seen:]
            return "has ended" in log and log.count("has ended") == log.count("calls beside")

        scene.server.wait_for(has_ended)
        rows, name = read_rows(scene.config.parent), find_input(scene.config.parent)
        with PredictionClient(scene.server.address, model_name="mlp") as client:
            for _ in range(20):
                client.predict({name: rows[:1]}, version_label="stable")
        assert ask(scene.server, "dies", lease_s=0).num_calls == 0


def test_one_shadow_runs_at_a_time(scene: Scene) -> None:
    with load(scene.server, scene, 2):
        ask(scene.server, "first", lease_s=30)
        with pytest.raises(PlumblineError, match="shadow"):
            ask(scene.server, "second", lease_s=30)
        ask(scene.server, "first", lease_s=0)
        ask(scene.server, "second", lease_s=30)
        ask(scene.server, "second", lease_s=0)


def test_what_a_shadow_saw_is_a_metric(scene: Scene) -> None:
    def read() -> str:
        with urllib.request.urlopen(f"{scene.server.url}/monitoring/prometheus/metrics") as page:
            return str(page.read().decode())

    with load(scene.server, scene, 2), call_by_label(scene):
        ask(scene.server, "counts", lease_s=30)
        scene.server.wait_for(lambda: ask(scene.server, "counts", lease_s=30).num_rows > 0)
        of = r'model_name="mlp",version="2",result="compared"'
        line = rf"^plumbline_shadow_rows_total\{{{of}\}} [1-9]"
        scene.server.wait_for(lambda: re.search(line, read(), re.MULTILINE) is not None)
        ask(scene.server, "counts", lease_s=0)


def record_calls(scene: Scene, folder: Path) -> Path:
    """A folder with calls by label as the server has logged them: 300, of all that tests made."""
    log = sorted(scene.config.parent.glob("log-*"))[-1]
    with call_by_label(scene):
        scene.server.wait_for(lambda: sum(one.stat().st_size for one in log.iterdir()) > 10**6)
    records = [one for path in sorted(log.iterdir()) for one in read_records(path)]
    by_label = [one for one in records if find_spec(one).version_label]
    assert len(by_label) >= 100
    some = folder / "log"
    some.mkdir()
    write_records(some / "calls.tfrecord", by_label[:300])
    return some


def find_spec(record: bytes) -> model_pb2.ModelSpec:
    return PredictionLog.FromString(record).predict_log.request.model_spec


def test_a_log_of_requests_stands_for_live_calls(tmp_path: Path, scene: Scene) -> None:
    log = record_calls(scene, tmp_path)
    flags = [f"--shadow_log={log}", "--shadow_s=30", "--min_shadow_rows=20"]
    code, document = run_json("promote", *scene.flags, "--version=3", *flags)
    assert code == 1 and "change their top class" in document["problem"]
    assert document["shadow"]["source"] == str(log)
    assert Path(document["shadow"]["rows_file"]).is_file()
    code, document = run_json("promote", *scene.flags, "--version=2", *flags)
    assert code == 0 and document["shadow"]["figures"]["num_flips"] == 0


def test_a_server_that_takes_no_orders_is_told_of_before_anything_changes(
    versions: Path, tmp_path: Path
) -> None:
    config = write_config(versions)
    with serve(tmp_path, config) as server:
        code, out, err = run_serving(
            *("promote", f"--model_config_file={config}", "--model_name=mlp", "--version=2"),
            *(f"--server={server.address}", "--label=stable", "--shadow_s=1"),
        )
    assert code == 2 and out == "" and "--enable_reload_config" in err
    assert config.read_text() == write_config(versions).read_text()


@pytest.mark.parametrize(
    "kind, flags",
    [
        # It has no call that TensorFlow Serving lacks.
        ("embedded", ["--strict_compat", "--enable_grpc_healthcheck_service"]),
        pytest.param(
            "tensorflow_model_server",
            [],
            marks=pytest.mark.skipif(
                find_model_server() is None, reason="tensorflow_model_server is not installed"
            ),
        ),
    ],
)
def test_tensorflow_serving_is_shadowed_by_a_log_and_says_so(
    versions: Path, tmp_path: Path, scene: Scene, kind: str, flags: list[str]
) -> None:
    log = record_calls(scene, tmp_path)
    config = write_config(versions)
    with serve(tmp_path, config, *flags, kind=kind) as server:
        command = [
            *("promote", f"--model_config_file={config}", "--model_name=mlp", "--version=2"),
            *(f"--server={server.address}", "--label=stable", "--shadow_s=20"),
        ]
        code, _, err = run_serving(*command)
        assert code == 2 and "--shadow_log" in err and "--request_log_dir" in err
        code, document = run_json(*command, f"--shadow_log={log}", "--min_shadow_rows=20")
        assert code == 0 and document["shadow"]["figures"]["num_rows"] >= 20


@pytest.mark.parametrize(
    "figures, word",
    [
        (ShadowFigures(num_calls=400, num_rows=400), ""),
        (ShadowFigures(num_calls=400, num_rows=400, num_flips=4), ""),
        (ShadowFigures(num_calls=400, num_rows=400, num_flips=5), "--max_flips"),
        (ShadowFigures(num_calls=400, num_rows=400, num_failures=1), "--max_shadow_failures"),
        (ShadowFigures(num_calls=12, num_rows=12), "at most 22.1% of rows flip"),
        (ShadowFigures(num_rows=400, max_abs_difference=0.3), "--max_shadow_difference"),
        (ShadowFigures(num_rows=400, max_abs_difference=float("nan")), "--max_shadow_difference"),
        (ShadowFigures(num_rows=4, num_dropped=500), "no time or memory"),
    ],
)
def test_the_gate_says_which_limit_was_passed(figures: ShadowFigures, word: str) -> None:
    options = ShadowOptions(seconds=1, max_difference=0.2)
    checks, problem = judge_shadow(figures, 2, options, sample=0.1)
    assert word in problem and bool(word) == bool(problem)
    assert all(check.passed for check in checks) == (not problem)


def test_what_nothing_was_compared_for_is_not_passed() -> None:
    options = ShadowOptions(seconds=1, max_difference=0.2)
    checks, _ = judge_shadow(ShadowFigures(), 2, options, sample=0.1)
    assert [one.name for one in checks if one.limit and one.is_judged] == ["rows compared"]


# The shadow itself, with servables over numpy.


class _OtherEngine(NumpyEngine):
    """Answers what a version of other weights would, when it may."""

    def __init__(self, change: Callable[[Batch], Batch]) -> None:
        self._change = change
        self.gate = threading.Event()
        self.gate.set()

    def _compute(self, name: str, inputs: Batch) -> dict[str, Array]:
        assert self.gate.wait(20)
        return dict(self._change(super()._compute(name, inputs)))


class _Scene:
    """Two versions of one model, version 3 the old one, and their shadow."""

    def __init__(
        self, change: Callable[[Batch], Batch] = lambda outputs: outputs, max_bytes: int = 2**20
    ) -> None:
        self.engine = _OtherEngine(change)
        self.before, self.after = make_servable(3), make_servable(4)
        self.after._engines = {"litert": self.engine}
        self.after._by_signature = dict.fromkeys(self.after._by_signature, self.engine)
        self.budget = MemoryBudget(max_bytes)
        self.pool = ThreadPool()
        self.attached: list[Shadow | None] = []
        self.shadow = Shadow(
            self._acquire,
            find_version_dir=lambda name, version: None,
            pool=self.pool,
            budget=self.budget,
            observer=Observer(),
            attach=self.attached.append,
        )
        self.order = ShadowOrder(id="a", model_name="m", version=4, sample=1.0, num_rows=3)

    def _acquire(self, spec: ModelSpec) -> AbstractContextManager[Servable]:
        return nullcontext(self.after if spec.version == 4 else self.before)

    def offer(self, num_calls: int, num_rows: int = 1) -> None:
        check = self.before.checks.find("", UNKNOWN_IN_PREDICT)

        async def offer() -> None:
            for at in range(num_calls):
                rows = np.arange(at, at + num_rows, dtype=np.float32)
                self.shadow.offer(ModelSpec("m"), check, lambda rows=rows: {"x": rows})  # type: ignore[misc]
            await asyncio.sleep(0)

        asyncio.run(offer())

    def wait_for(self, is_reached: Callable[[ShadowFigures], bool]) -> ShadowFigures:
        deadline = time.monotonic() + 20
        while not is_reached(figures := self.shadow.take_state().figures):
            assert time.monotonic() < deadline, figures
            time.sleep(0.01)
        return figures

    def __enter__(self) -> _Scene:
        self.shadow.follow(self.order, time.monotonic() + 60)
        return self

    def __exit__(self, *error: object) -> None:
        self.engine.gate.set()
        self.shadow.end("a")
        self.pool.close()
        assert self.budget.num_bytes == 0, "all memory was given back"
        assert self.attached[-1] is None, "nobody offers calls any more"


def test_calls_beyond_the_queue_are_dropped_and_counted() -> None:
    with _Scene() as scene:
        scene.engine.gate.clear()
        scene.offer(MAX_QUEUED_CALLS + 200)
        figures = scene.wait_for(lambda found: found.num_dropped >= 199)
        assert figures.num_dropped <= 200


def test_a_shadow_gives_its_memory_back_when_callers_are_short_of_it() -> None:
    with _Scene(max_bytes=100_000) as scene:
        scene.engine.gate.clear()
        scene.offer(10, num_rows=1000)
        assert scene.budget.num_bytes >= 40_000
        call = scene.budget.open("a caller")
        call.grow(70_000)  # and is not refused
        call.close()
        assert scene.shadow.take_state().figures.num_shed >= 9


def test_a_shadow_takes_no_memory_beyond_half_of_what_calls_may_hold() -> None:
    with _Scene(max_bytes=100_000) as scene:
        scene.engine.gate.clear()
        scene.offer(20, num_rows=1000)
        assert scene.budget.num_bytes <= 50_000
        assert scene.shadow.take_state().figures.num_shed >= 7


def test_memory_is_refused_to_callers_only_after_spare_bytes_were_given_back() -> None:
    budget = MemoryBudget(1000)
    assert budget.take_spare(400) and not budget.take_spare(200)
    told = []

    def give_back() -> None:
        told.append(budget.num_bytes)
        budget.give_back(400 if len(told) == 1 else 0)

    budget.on_shortage = give_back
    call = budget.open("one")
    call.grow(700)
    assert told == [400]
    with pytest.raises(ResourceExhaustedError):
        budget.open("two").grow(600)


def test_a_call_that_the_new_version_alone_cannot_answer_is_its_failure() -> None:
    def fail(outputs: Batch) -> Batch:
        raise ZeroDivisionError("no weights")

    with _Scene(fail) as scene:
        scene.offer(1)
        figures = scene.wait_for(lambda found: found.num_failures == 1)
        assert "no weights" in figures.first_failure and figures.num_calls == 0


def test_an_answer_of_another_shape_is_a_failure_of_the_new_version() -> None:
    with _Scene(lambda outputs: {"y": outputs["y"][:, None]}) as scene:
        scene.offer(1)
        figures = scene.wait_for(lambda found: found.num_failures == 1)
        assert "(1, 1) instead of" in figures.first_failure


def test_the_worst_rows_of_all_calls_are_handed_over_once() -> None:
    with _Scene(lambda outputs: {"y": outputs["y"] * np.float32(1.5)}) as scene:
        scene.offer(20)
        scene.wait_for(lambda found: found.num_calls == 20)
        ended = scene.shadow.end("a")
        assert [row.max_abs_difference for row in ended.rows] == [19, 18, 17]
        assert scene.shadow.end("a").rows == ()


def test_a_call_waits_for_nothing_while_a_version_is_shadowed() -> None:
    with _Scene() as scene:
        scene.engine.gate.clear()  # the new version hangs
        scene.offer(5)
        assert scene.shadow.take_state().figures.num_calls == 0  # and who offers is back


class _Calls:
    """Stands where a shadow would, and notes what it is offered."""

    def __init__(self) -> None:
        self.offered: list[tuple[ModelSpec, str, Batch, tuple[str, ...]]] = []

    def offer(
        self,
        asked: ModelSpec,
        check: SignatureCheck,
        decode: Callable[[], Batch],
        output_filter: Sequence[str] = (),
    ) -> None:
        self.offered.append((asked, check.name, decode(), tuple(output_filter)))

    def close(self) -> None:
        """Nothing is under way."""


def test_every_method_offers_what_was_run() -> None:
    handlers = Handlers(OneModelManager(make_servable()), ServerConfig(), Observer())  # type: ignore[arg-type]
    calls = _Calls()
    handlers.shadow = calls  # type: ignore[assignment]
    spec = ModelSpec("m", version_label="stable")
    rows = np.arange(2, dtype=np.float32)
    words = np.array([b"a", b"bc"], object)

    async def ask() -> None:
        request = encode_predict_request(spec, {"x": rows}, output_filter=["y"])
        await handlers.predict(parse_predict_request(request))
        for method, name in ((CLASSIFICATION, "classify"), (REGRESSION, "regress")):
            asked = ModelSpec("m", version_label="stable", signature_name=name)
            await handlers.answer_examples(method, asked, words)

    asyncio.run(ask())
    handlers.close()
    assert [one[1] for one in calls.offered] == ["serving_default", "classify", "regress"]
    assert [one[3] for one in calls.offered] == [("y",), ("classes", "scores"), ("outputs",)]
    assert all(one[0].version_label == "stable" for one in calls.offered)
    np.testing.assert_array_equal(calls.offered[0][2]["x"], rows)
    assert calls.offered[1][2]["inputs"].tolist() == words.tolist()
