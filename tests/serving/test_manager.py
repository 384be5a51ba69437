"""Versions come and go while requests are answered; files and threads are real."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from contract.errors import (
    Code,
    ConfigError,
    InternalError,
    PlumblineError,
    RequestError,
    ServableNotFoundError,
    ServableUnavailableError,
)
from contract.servable import All, ModelSpec, ServableId, Specific, VersionPolicy, VersionState
from serving.config.models import ModelConfig
from serving.config.server import ServerConfig
from serving.engines.servable import Servable
from serving.versions.lifecycle import LoadFunction
from serving.versions.manager import ServableManager
from tests.serving.offset_servables import WEIGHTS, Loads, put_version

WAIT_S = 20
STRICT = {"strict_compat": True, "max_num_load_retries": 2, "load_retry_interval_micros": 10_000}

Make = Callable[..., ServableManager]


@pytest.fixture
def loads() -> Loads:
    return Loads()


@pytest.fixture
def make(loads: Loads) -> Iterator[Make]:
    made: list[ServableManager] = []

    def make_manager(load: LoadFunction = loads, **flags: Any) -> ServableManager:
        config = ServerConfig(**({"file_system_poll_wait_seconds": 0.01} | flags))
        made.append(ServableManager(load, config))
        return made[-1]

    yield make_manager
    loads.gate.set()
    for manager in made:
        manager.stop()


def model(base_path: Path, policy: VersionPolicy | None = None, **labels: int) -> ModelConfig:
    more = {} if policy is None else {"version_policy": policy}
    return ModelConfig(base_path.name, base_path, version_labels=labels, **more)


def wait_for_state(manager: ServableManager, servable_id: ServableId, state: VersionState) -> None:
    def is_reached() -> bool:
        status = manager.monitor.find(servable_id)
        return status is not None and status.state is state

    assert manager.monitor.wait_for(is_reached, timeout_s=WAIT_S), manager.monitor.snapshot()


def answer(manager: ServableManager, spec: ModelSpec) -> int:
    with manager.acquire(spec) as servable:
        return int(servable.run("serving_default", {"x": np.zeros(1, np.int64)})["x"][0])


def test_a_model_is_served_once_its_version_is_loaded(tmp_path: Path, make: Make) -> None:
    put_version(tmp_path / "m", 1, 10)
    manager = make()
    manager.start([model(tmp_path / "m")])
    assert manager.wait_until_ready(timeout_s=WAIT_S)
    assert answer(manager, ModelSpec("m")) == 10


def test_a_new_version_takes_over_and_the_old_one_ends(tmp_path: Path, make: Make) -> None:
    put_version(tmp_path / "m", 1, 10)
    manager = make()
    manager.start([model(tmp_path / "m")])
    assert manager.wait_until_ready(timeout_s=WAIT_S)
    put_version(tmp_path / "m", 2, 20)
    wait_for_state(manager, ServableId("m", 1), VersionState.END)
    assert answer(manager, ModelSpec("m")) == 20
    states = [(one.version, one.state.name) for one in manager.list_states("m")]
    assert states == [(2, "AVAILABLE"), (1, "END")]


def test_states_pass_in_tensorflow_servings_order(tmp_path: Path, make: Make) -> None:
    passed: list[tuple[int, str]] = []
    manager = make()
    manager.monitor.subscribe(lambda one, status: passed.append((one.version, status.state.name)))
    put_version(tmp_path / "m", 1)
    manager.start([model(tmp_path / "m")])
    assert manager.wait_until_ready(timeout_s=WAIT_S)
    put_version(tmp_path / "m", 2)
    wait_for_state(manager, ServableId("m", 1), VersionState.END)
    assert passed == [
        *((1, state) for state in ("START", "LOADING", "AVAILABLE")),
        *((2, state) for state in ("START", "LOADING", "AVAILABLE")),
        *((1, state) for state in ("UNLOADING", "END")),
    ]


def test_a_version_in_use_is_closed_only_after_its_last_user(
    tmp_path: Path, make: Make, loads: Loads
) -> None:
    put_version(tmp_path / "m", 1, 10)
    manager = make()
    manager.start([model(tmp_path / "m")])
    assert manager.wait_until_ready(timeout_s=WAIT_S)
    with manager.acquire(ModelSpec("m")) as old:
        put_version(tmp_path / "m", 2, 20)
        wait_for_state(manager, ServableId("m", 1), VersionState.UNLOADING)
        assert answer(manager, ModelSpec("m")) == 20
        assert not loads.made[0].is_closed
        assert old.run("serving_default", {"x": np.zeros(1)})["x"][0] == 10
    wait_for_state(manager, ServableId("m", 1), VersionState.END)
    assert loads.made[0].is_closed


def test_requests_are_answered_while_a_version_loads(
    tmp_path: Path, make: Make, loads: Loads
) -> None:
    put_version(tmp_path / "m", 1, 10)
    manager = make()
    manager.start([model(tmp_path / "m")])
    assert manager.wait_until_ready(timeout_s=WAIT_S)
    loads.gate.clear()
    put_version(tmp_path / "m", 2, 20)
    wait_for_state(manager, ServableId("m", 2), VersionState.LOADING)
    assert answer(manager, ModelSpec("m")) == 10
    loads.gate.set()
    wait_for_state(manager, ServableId("m", 2), VersionState.AVAILABLE)


def test_the_old_version_serves_on_when_the_new_one_fails(tmp_path: Path, make: Make) -> None:
    put_version(tmp_path / "m", 1, 10)
    manager = make()
    manager.start([model(tmp_path / "m")])
    assert manager.wait_until_ready(timeout_s=WAIT_S)
    put_version(tmp_path / "m", 2, "garbage")
    wait_for_state(manager, ServableId("m", 2), VersionState.END)
    assert answer(manager, ModelSpec("m")) == 10
    status = manager.list_states("m", 2)[0]
    assert status.code is Code.DATA_LOSS
    assert "garbage" in status.message


def test_a_failed_version_is_tried_again_when_its_files_change(
    tmp_path: Path, make: Make, loads: Loads
) -> None:
    directory = put_version(tmp_path / "m", 1, "garbage")
    manager = make()
    manager.start([model(tmp_path / "m")])
    wait_for_state(manager, ServableId("m", 1), VersionState.END)
    assert not manager.is_ready()
    (directory / WEIGHTS).write_text("7")
    assert manager.wait_until_ready(timeout_s=WAIT_S)
    assert answer(manager, ModelSpec("m")) == 7


def test_a_fault_that_may_pass_is_tried_so_often_and_no_oftener(tmp_path: Path, make: Make) -> None:
    put_version(tmp_path / "m", 1)
    tries: list[ServableId] = []

    def load(servable_id: ServableId, directory: Path) -> Servable:
        tries.append(servable_id)
        raise InternalError("the disk hiccuped")

    manager = make(load=load, max_num_load_retries=2, load_retry_interval_micros=0)
    manager.start([model(tmp_path / "m")])
    wait_for_state(manager, ServableId("m", 1), VersionState.END)
    assert len(tries) == 3
    assert manager.list_states("m", 1)[0].message == "the disk hiccuped"


def test_a_crash_in_the_loader_ends_that_version_only(
    tmp_path: Path, make: Make, loads: Loads
) -> None:
    put_version(tmp_path / "good", 1, 1)
    put_version(tmp_path / "bad", 1, 1)

    def load(servable_id: ServableId, directory: Path) -> Servable:
        if servable_id.name == "bad":
            raise ZeroDivisionError("a bug")
        return loads(servable_id, directory)

    manager = make(load=load, max_num_load_retries=0)
    manager.start([model(tmp_path / "good"), model(tmp_path / "bad")])
    wait_for_state(manager, ServableId("bad", 1), VersionState.END)
    wait_for_state(manager, ServableId("good", 1), VersionState.AVAILABLE)
    assert manager.list_states("bad")[0].code is Code.INTERNAL
    assert not manager.is_ready()


def test_an_emptied_base_path_unloads_the_model(tmp_path: Path, make: Make) -> None:
    directory = put_version(tmp_path / "m", 1)
    manager = make()
    manager.start([model(tmp_path / "m")])
    assert manager.wait_until_ready(timeout_s=WAIT_S)
    directory.rename(tmp_path / "elsewhere")
    wait_for_state(manager, ServableId("m", 1), VersionState.END)
    with pytest.raises(ServableNotFoundError, match=r"request: Latest\(m\)"):
        manager.acquire(ModelSpec("m"))


def test_a_base_path_that_vanishes_unloads_nothing(tmp_path: Path, make: Make) -> None:
    put_version(tmp_path / "m", 1, 10)
    manager = make()
    manager.start([model(tmp_path / "m")])
    assert manager.wait_until_ready(timeout_s=WAIT_S)
    (tmp_path / "m").rename(tmp_path / "elsewhere")
    assert manager.monitor.wait_for(
        lambda: manager._polled["m"].error is not None, timeout_s=WAIT_S
    )
    assert answer(manager, ModelSpec("m")) == 10


def test_versions_and_labels_are_found_and_absent_ones_named(tmp_path: Path, make: Make) -> None:
    for version in (1, 2, 3):
        put_version(tmp_path / "m", version, version * 10)
    manager = make(allow_version_labels_for_unavailable_models=True)
    manager.start([model(tmp_path / "m", Specific((1, 2)), stable=1, next=9)])
    assert manager.wait_until_ready(timeout_s=WAIT_S)
    assert answer(manager, ModelSpec("m")) == 20
    assert answer(manager, ModelSpec("m", version=1)) == 10
    assert answer(manager, ModelSpec("m", version_label="stable")) == 10
    for spec, error, text in (
        (ModelSpec("m", version=3), ServableNotFoundError, r"request: Specific\(m, 3\)"),
        (ModelSpec("m", version_label="next"), ServableNotFoundError, r"Specific\(m, 9\)"),
        (ModelSpec("m", version_label="nope"), RequestError, "servable version label: nope"),
        (ModelSpec("nope"), ServableNotFoundError, r"request: Latest\(nope\)"),
        (ModelSpec(""), RequestError, "ModelSpec has no name specified"),
    ):
        with pytest.raises(error, match=text):
            manager.acquire(spec)


def test_unknown_models_and_versions_have_no_states(tmp_path: Path, make: Make) -> None:
    put_version(tmp_path / "m", 1)
    manager = make()
    manager.start([model(tmp_path / "m")])
    assert manager.wait_until_ready(timeout_s=WAIT_S)
    with pytest.raises(ServableNotFoundError, match="Could not find version 42 of model m"):
        manager.list_states("m", 42)
    with pytest.raises(ServableNotFoundError, match="Could not find any versions of model nope"):
        manager.list_states("nope")


def test_a_model_that_loads_for_the_first_time_is_unavailable_not_unknown(
    tmp_path: Path, make: Make, loads: Loads
) -> None:
    put_version(tmp_path / "m", 1)
    loads.gate.clear()
    manager = make()
    manager.start([model(tmp_path / "m")])
    with pytest.raises(ServableUnavailableError, match="loading for the first time"):
        manager.acquire(ModelSpec("m"))


def test_ready_means_every_model_and_every_first_load(
    tmp_path: Path, make: Make, loads: Loads
) -> None:
    for version in (1, 2):
        put_version(tmp_path / "a", version)
    put_version(tmp_path / "b", 1)
    loads.gated = lambda one: one == ServableId("a", 1)
    loads.gate.clear()
    manager = make()
    manager.start([model(tmp_path / "a", All()), model(tmp_path / "b")])
    wait_for_state(manager, ServableId("a", 2), VersionState.AVAILABLE)
    wait_for_state(manager, ServableId("b", 1), VersionState.AVAILABLE)
    assert not manager.is_ready()
    loads.gate.set()
    assert manager.wait_until_ready(timeout_s=WAIT_S)


def test_what_is_not_ready_is_named(tmp_path: Path, make: Make, loads: Loads) -> None:
    for version in (1, 3):
        put_version(tmp_path / "slow", version)
    put_version(tmp_path / "good", 1)
    put_version(tmp_path / "bad", 1, "garbage")
    (tmp_path / "empty").mkdir()
    loads.gated = lambda one: one.name == "slow"
    loads.gate.clear()
    manager = make(max_num_load_retries=0)
    assert manager.list_obstacles() == ["no model is configured"]
    names = ("slow", "good", "bad", "empty", "missing")
    manager.start([model(tmp_path / name) for name in names])
    expected = [
        "model slow: loading version 3",
        "model bad: its versions failed to load",
        "model empty: no version in its base path",
        "model missing: its base path cannot be read",
    ]
    assert manager.monitor.wait_for(
        lambda: manager.list_obstacles() == expected, timeout_s=WAIT_S
    ), manager.list_obstacles()
    loads.gate.set()
    wait_for_state(manager, ServableId("slow", 3), VersionState.AVAILABLE)
    assert manager.list_obstacles() == expected[1:]


def test_a_reload_replaces_everything_and_waits_for_new_models(tmp_path: Path, make: Make) -> None:
    put_version(tmp_path / "a", 1, 1)
    put_version(tmp_path / "b", 1, 2)
    manager = make()
    manager.start([model(tmp_path / "a")])
    assert manager.wait_until_ready(timeout_s=WAIT_S)
    manager.reload([model(tmp_path / "b")])
    assert answer(manager, ModelSpec("b")) == 2
    wait_for_state(manager, ServableId("a", 1), VersionState.END)
    assert manager.is_ready()


def test_a_reload_answers_the_error_of_each_new_model(tmp_path: Path, make: Make) -> None:
    put_version(tmp_path / "a", 1, 1)
    put_version(tmp_path / "bad", 1, "garbage")
    manager = make()
    manager.start([model(tmp_path / "a")])
    assert manager.wait_until_ready(timeout_s=WAIT_S)
    with pytest.raises(PlumblineError) as caught:
        manager.reload([model(tmp_path / name) for name in ("a", "bad", "nope")])
    assert caught.value.code is Code.UNKNOWN
    assert caught.value.message.startswith("2 model(s) did not become available: {{")
    assert "{name: bad version: 1} due to error: DATA_LOSS" in caught.value.message
    assert "Could not find base path" in caught.value.message
    assert answer(manager, ModelSpec("a")) == 1


def test_a_label_must_point_at_an_available_version(tmp_path: Path, make: Make) -> None:
    for version in (1, 2):
        put_version(tmp_path / "m", version, version)
    manager = make()
    manager.start([model(tmp_path / "m", Specific((1,)))])
    assert manager.wait_until_ready(timeout_s=WAIT_S)
    with pytest.raises(PlumblineError) as caught:
        manager.reload([model(tmp_path / "m", Specific((1, 2)), canary=2)])
    assert caught.value.code is Code.FAILED_PRECONDITION
    assert caught.value.message == (
        "Request to assign label to version 2 of model m, "
        "which is not currently available for inference"
    )
    manager.reload([model(tmp_path / "m", Specific((1, 2)))])
    wait_for_state(manager, ServableId("m", 2), VersionState.AVAILABLE)
    manager.reload([model(tmp_path / "m", Specific((1, 2)), canary=2)])
    assert answer(manager, ModelSpec("m", version_label="canary")) == 2


def test_labels_in_a_first_configuration_want_a_flag_and_say_which(
    tmp_path: Path, make: Make
) -> None:
    put_version(tmp_path / "m", 1)
    with pytest.raises(PlumblineError, match="--allow_version_labels_for_unavailable_models"):
        make().start([model(tmp_path / "m", stable=1)])


def test_an_allowed_label_still_may_not_move_to_an_unavailable_version(
    tmp_path: Path, make: Make
) -> None:
    put_version(tmp_path / "m", 1)
    manager = make(allow_version_labels_for_unavailable_models=True)
    manager.start([model(tmp_path / "m", stable=1)])
    assert manager.wait_until_ready(timeout_s=WAIT_S)
    with pytest.raises(PlumblineError, match="assign label to version 2 of model m"):
        manager.reload([model(tmp_path / "m", stable=2)])


def test_a_changed_platform_is_refused(tmp_path: Path, make: Make) -> None:
    put_version(tmp_path / "m", 1)
    manager = make()
    manager.start([model(tmp_path / "m")])
    with pytest.raises(ConfigError, match=r"platform was tensorflow and new .* is other"):
        manager.reload([ModelConfig("m", tmp_path / "m", platform="other")])


def test_strict_tries_a_lasting_fault_again_and_ignores_changed_files(
    tmp_path: Path, make: Make, loads: Loads
) -> None:
    directory = put_version(tmp_path / "m", 1, "garbage")
    manager = make(**STRICT)
    manager.start([model(tmp_path / "m")])
    wait_for_state(manager, ServableId("m", 1), VersionState.END)
    assert len(loads.begun) == 3
    (directory / WEIGHTS).write_text("7")
    os.utime(directory / WEIGHTS, ns=(1, 1))
    manager._source.poll()
    assert manager.list_states("m")[0].state is VersionState.END


def test_a_hundred_swaps_under_load_lose_no_call_and_close_every_old_version(
    tmp_path: Path, make: Make, loads: Loads
) -> None:
    base_path = tmp_path / "m"
    put_version(base_path, 1, 1)
    manager = make(file_system_poll_wait_seconds=0.001)
    manager.start([model(base_path)])
    assert manager.wait_until_ready(timeout_s=WAIT_S)
    stop = threading.Event()
    answers: list[list[int]] = [[], []]
    faults: list[BaseException] = []

    def call(mine: list[int]) -> None:
        while not stop.is_set():
            try:
                mine.append(answer(manager, ModelSpec("m")))
                stop.wait(0.0005)  # leave the interpreter to the manager now and then
            except BaseException as error:
                faults.append(error)
                return

    callers = [threading.Thread(target=call, args=(mine,)) for mine in answers]
    for caller in callers:
        caller.start()
    for version in range(2, 102):
        put_version(base_path, version, version)
        wait_for_state(manager, ServableId("m", version), VersionState.AVAILABLE)
        seen = [len(mine) for mine in answers]
        while not faults and any(len(mine) == old for mine, old in zip(answers, seen, strict=True)):
            stop.wait(0.0005)
    wait_for_state(manager, ServableId("m", 100), VersionState.END)
    stop.set()
    for caller in callers:
        caller.join()
    assert not faults
    assert all(mine == sorted(mine) and len(mine) >= 100 for mine in answers)
    assert [one.is_closed for one in loads.made] == [True] * 100 + [False]


def test_stop_waits_for_users_and_closes_everything(
    tmp_path: Path, make: Make, loads: Loads
) -> None:
    put_version(tmp_path / "m", 1)
    manager = make()
    manager.start([model(tmp_path / "m")])
    assert manager.wait_until_ready(timeout_s=WAIT_S)
    manager.stop(timeout_s=WAIT_S)
    assert [one.is_closed for one in loads.made] == [True]
    with pytest.raises(ServableNotFoundError):
        manager.acquire(ModelSpec("m"))
