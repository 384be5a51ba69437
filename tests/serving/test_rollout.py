from __future__ import annotations

import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from contract import layout
from contract.errors import ConfigError, ServableUnavailableError
from contract.golden import read_golden
from contract.lite import LiteModel
from contract.servable import ModelSpec
from contract.signature import Batch
from serving.rollout.audit import RESTORE, read_lines
from serving.rollout.rollout import (
    RolloutOptions,
    check_parity,
    leave_strings_out,
    promote,
    read_version_golden,
    retire,
    rollback,
)
from serving.rollout.servers import Server
from tests.serving.rollout_scene import (
    SERVERS,
    Scene,
    answer_labels_wrongly,
    copy_version,
    open_rollout,
    run_json,
    run_serving,
    serve,
    start_serving,
    write_config,
)
from tests.serving.server_process import ServerProcess
from tests.versions import write_tolerances


@pytest.fixture(scope="module", params=SERVERS)
def running(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, published_mlp: Path
) -> Iterator[tuple[Path, ServerProcess]]:
    """A server on versions 1, 2 and a damaged 3; `other/2` has golden that is not its own."""
    folder = tmp_path_factory.mktemp("rollout")
    for number in (1, 2):
        copy_version(published_mlp / "mlp" / "1", folder / "mlp" / str(number))
    damaged = copy_version(published_mlp / "mlp" / "1", folder / "mlp" / "3")
    for name in ("model.tflite", layout.SAVED_MODEL):
        (damaged / name).write_bytes(b"cut short")
    copy_version(published_mlp / "mlp" / "1", folder / "other" / "2", golden_offset=0.5)
    config = write_config(folder)
    with serve(folder, config, "--enable_reload_config", kind=request.param) as server:
        yield folder, server


@pytest.fixture
def scene(running: tuple[Path, ServerProcess]) -> Scene:
    """The server back at version 1 under the label stable, and no audit."""
    folder, server = running
    config = write_config(folder)
    config.with_name("models.config.audit.jsonl").unlink(missing_ok=True)
    scene = Scene(config, server)
    server.wait_for(
        lambda: (
            scene.find_label() == 1
            and scene.find_label("canary") is None
            and scene.list_states().get(1) == "AVAILABLE"
            and scene.list_states().get(2) in (None, "END")
        ),
    )
    return scene


def test_promote_serves_a_version_and_points_the_label_at_it(scene: Scene) -> None:
    code, document = run_json("promote", *scene.flags, "--version=2", "--label=stable")
    assert (code, document["passed"], document["version_before"]) == (0, True, 1)
    assert {report["signature_name"] for report in document["parity"][0]["reports"]} >= {
        "serving_default",
        "serving_uint8",
    }
    assert scene.find_label() == 2
    assert scene.list_states()[1] == "AVAILABLE"  # and the way back is short


def test_a_label_is_never_pointed_at_a_version_before_it_is_available(scene: Scene) -> None:
    before = len(scene.server.log)
    promote(open_rollout(scene.config, scene.server.address), "mlp", version=2, label="canary")
    assert "not currently available for inference" not in scene.server.log[before:]


def test_a_version_that_fails_to_load_changes_nothing(scene: Scene) -> None:
    text = scene.config.read_text()
    code, document = run_json("promote", *scene.flags, "--version=3", "--label=stable")
    assert (code, document["is_restored"]) == (1, True)
    assert "failed to load" in document["problem"]
    assert scene.config.read_text() == text
    assert scene.find_label() == 1


def test_a_version_that_disagrees_with_golden_never_gets_the_label(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    text = scene.config.read_text()
    options = RolloutOptions(version_dir=scene.config.parent / "other" / "2")
    rollout = open_rollout(scene.config, scene.server.address, options=options)
    outcome = promote(rollout, "mlp", version=2, label="stable")
    assert not outcome.passed and outcome.is_restored
    assert "golden examples differ" in outcome.problem
    assert scene.config.read_text() == text
    assert all("stable" not in line.labels for line in read_lines(scene.config))
    assert "policy specific" in caplog.text
    assert "label stable to" not in caplog.text  # it never moved


def test_a_label_whose_answers_disagree_with_golden_goes_back_by_itself(scene: Scene) -> None:
    text = scene.config.read_text()
    with answer_labels_wrongly(scene.server.address) as address:
        outcome = promote(open_rollout(scene.config, address), "mlp", version=2, label="stable")
    assert not outcome.passed and outcome.is_restored
    assert scene.config.read_text() == text
    assert scene.find_label() == 1
    labels = [line.labels["stable"] for line in read_lines(scene.config) if line.labels]
    assert labels == [(1, 2), (2, 1)]
    assert any(line.action == RESTORE for line in read_lines(scene.config))


def test_a_new_label_whose_answers_disagree_is_taken_away_again(scene: Scene) -> None:
    with answer_labels_wrongly(scene.server.address) as address:
        outcome = promote(open_rollout(scene.config, address), "mlp", version=2, label="canary")
    assert outcome.is_restored
    assert scene.find_label("canary") is None


def test_rollback_brings_back_a_version_that_was_retired_meanwhile(scene: Scene) -> None:
    rollout = open_rollout(scene.config, scene.server.address)
    promote(rollout, "mlp", version=2, label="stable")
    retire(rollout, "mlp", version=1)
    assert scene.list_states()[1] == "END"
    code, document = run_json("rollback", *scene.flags)
    assert (code, document["label"], document["version"]) == (0, "stable", 1)
    assert scene.find_label() == 1
    with pytest.raises(ConfigError, match="knows no version"):
        rollback(rollout, "mlp", label="stable")


def test_rollback_stays_back_even_when_golden_disagrees(scene: Scene) -> None:
    promote(open_rollout(scene.config, scene.server.address), "mlp", version=2, label="stable")
    with answer_labels_wrongly(scene.server.address) as address:
        outcome = rollback(open_rollout(scene.config, address), "mlp")
    assert not outcome.passed
    assert scene.find_label() == 1


def test_retire_leaves_a_labelled_version_and_the_last_one(scene: Scene) -> None:
    code, _, err = run_serving("retire", *scene.flags, "--version=1")
    assert code == 2 and "bears the label stable" in err
    code, _, err = run_serving("retire", *scene.flags, "--version=2")
    assert code == 2 and "is not served" in err


def test_a_policy_that_follows_the_newest_is_pinned_so_that_the_label_lasts(scene: Scene) -> None:
    write_config(scene.config.parent, fields='version_labels { key: "stable" value: 1 }')
    outcome = promote(
        open_rollout(scene.config, scene.server.address), "mlp", version=2, label="stable"
    )
    assert outcome.passed
    assert outcome.policy.startswith("specific 1 2")


@pytest.mark.parametrize("kind", SERVERS)
def test_servers_that_do_not_poll_are_told_to_reload(
    tmp_path: Path, published_mlp: Path, kind: str
) -> None:
    for number in (1, 2):
        copy_version(published_mlp / "mlp" / "1", tmp_path / "mlp" / str(number))
    config = write_config(tmp_path)
    flags = ("--model_config_file_poll_wait_seconds=0", "--enable_reload_config")
    with serve(tmp_path, config, *flags, kind=kind) as server:
        flags = tuple(Scene(config, server).flags)
        code, document = run_json(
            "promote", *flags, "--version=2", "--label=stable", "--reload_config"
        )
        assert (code, document["passed"]) == (0, True), document
        code, document = run_json(
            "promote", *flags[:-1], "--timeout_s=1", "--version=1", "--label=stable"
        )
        assert code == 1 and "--reload_config" in document["problem"]


def test_two_operators_at_once_both_get_their_label(scene: Scene) -> None:
    processes = [
        start_serving("promote", *scene.flags, "--version=2", f"--label={label}")
        for label in ("canary", "next")
    ]
    outputs = [process.communicate(timeout=200) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert (scene.find_label("canary"), scene.find_label("next")) == (2, 2)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_promotion_puts_back_what_it_changed(
    scene: Scene, number: signal.Signals
) -> None:
    text = scene.config.read_text()
    process = start_serving("promote", *scene.flags, "--version=2", "--label=stable")
    while scene.config.read_text() == text:
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(number)
    _, err = process.communicate(timeout=200)
    assert process.returncode == 130, err
    assert scene.config.read_text() == text
    assert "Traceback" not in err


def test_a_server_that_does_not_answer_stops_a_promotion_before_it_begins(scene: Scene) -> None:
    text = scene.config.read_text()
    flags = [flag for flag in scene.flags if not flag.startswith("--server")]
    code, _, err = run_serving(
        "promote",
        *flags,
        f"--server={scene.server.address},127.0.0.1:9",
        "--version=2",
        "--label=stable",
    )
    assert code == 3 and "127.0.0.1:9" in err and "Traceback" not in err
    assert scene.config.read_text() == text
    with pytest.raises(ServableUnavailableError):
        promote(open_rollout(scene.config, "127.0.0.1:9"), "mlp", version=2, label="stable")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--version=7", "--label=stable"], "there is no version 7"),
        (["--version=2", "--label="], "give a name"),
        (["--version=-2", "--label=stable"], "--version -2"),
        (["--version=2", "--label=a", "--version_dir=/nowhere"], "no golden examples"),
        (["--version=2", "--label=a", "--model_name=cnn"], "lists no model 'cnn'"),
        (["--version=2", "--label=a", "--model_config_file=/nowhere"], "no such file"),
        (["--version=2", "--label=a", "--server=,"], "give at least one address"),
    ],
)
def test_what_cannot_be_used_is_one_sentence_and_exit_code_2(
    scene: Scene, arguments: list[str], message: str
) -> None:
    code, out, err = run_serving("promote", *scene.flags, *arguments)
    assert (code, out) == (2, "")
    assert message in err and "Traceback" not in err


def test_promote_tells_both_versions_and_parity_once_in_80_columns(scene: Scene) -> None:
    code, out, err = run_serving("promote", *scene.flags, "--version=2", "--label=canary")
    assert code == 0
    assert "label canary from nowhere to version 2" in out
    code, out, err = run_serving("promote", *scene.flags, "--version=2", "--label=stable")
    assert code == 0
    assert "label stable from version 1 to version 2" in out
    assert (out + err).count("serving_uint8 ") == 1
    assert "None" not in out + err
    assert max(map(len, out.splitlines()[:-1])) <= 80


def test_labels_shows_where_each_server_leads(scene: Scene) -> None:
    code, out, _ = run_serving("labels", *scene.flags)
    assert code == 0
    assert f"stable        1  {scene.server.address}  ok" in out and "AVAILABLE" in out
    code, document = run_json("labels", *scene.flags[:-2], f"--server={scene.server.address}")
    assert document["agrees"] and document["labels"][0]["servers"] == {scene.server.address: 1}


def test_labels_shows_the_file_when_no_server_answers(scene: Scene) -> None:
    code, out, _ = run_serving("labels", *scene.flags[:-2], "--server=127.0.0.1:1")
    assert code == 3
    assert "stable        1  -       -" in out and "127.0.0.1:1" in out


def test_labels_tells_a_server_that_disagrees_with_the_file(scene: Scene) -> None:
    other = scene.config.with_name("other.config")
    shutil.copy(scene.config, other)
    other.write_text(other.read_text().replace('"stable" value: 1', '"stable" value: 2'))
    flags = [f"--model_config_file={other}", *scene.flags[1:]]
    code, out, _ = run_serving("labels", *flags)
    assert code == 1 and "leads to 1" in out


def test_calls_by_label_never_fail_while_it_moves(scene: Scene) -> None:
    golden = read_golden(scene.config.parent / "mlp" / "1" / layout.GOLDEN)
    batch, _ = next(golden.signatures["serving_default"].iter_batches())
    process = start_serving("promote", *scene.flags, "--version=2", "--label=stable")
    server = Server(scene.server.address)
    spec = ModelSpec("mlp", version_label="stable", signature_name="serving_default")
    answered = []
    while process.poll() is None:
        answered.append(server.predict(spec, batch)[0])
    out, err = process.communicate()
    assert process.returncode == 0, err
    answered.append(server.predict(spec, batch)[0])
    assert answered == sorted(answered)  # first version 1, then version 2, and nothing else
    assert {1, 2} == set(answered), out


@pytest.mark.parametrize(("limit", "passed"), [(1e-3, False), (0.1, True)])
def test_servers_may_be_as_far_off_as_the_manifest_allows(
    limit: float, passed: bool, published_mlp: Path, tmp_path: Path
) -> None:
    version_dir = copy_version(published_mlp / "mlp" / "1", tmp_path / "1", golden_offset=0.01)
    write_tolerances(version_dir, {"float32": {"max_abs_difference": limit}})
    expected = leave_strings_out(read_version_golden(version_dir))

    class OnDevice:
        address = "here"

        def predict(self, spec: ModelSpec, inputs: Batch) -> tuple[int, Batch]:
            return 1, model.predict(inputs, signature_name=spec.signature_name)

    with LiteModel(version_dir / layout.variant_path(layout.FLOAT32)) as model:
        servers: Any = SimpleNamespace(all=[OnDevice()])
        (found,) = check_parity(servers, expected, ModelSpec("mlp"), version=1)
    assert found.passed is passed
