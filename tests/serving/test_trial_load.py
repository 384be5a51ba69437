"""A bad version costs itself: whatever its files do, they do it in a process of their own."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import grpc
import msgspec
import numpy as np
import psutil
import pytest

from contract import layout
from contract.errors import ManifestError, PlumblineError
from contract.golden import Golden, GoldenExamples, read_golden, write_golden
from contract.manifest import hash_files, read_manifest, write_manifest
from contract.servable import ServableId
from contract.wire.plumbline_wire import predict_pb2, status_pb2
from contract.wire.rpc import GET_MODEL_STATUS, PREDICT
from contract.wire.tensors import to_tensor_proto
from serving.config.server import ServerConfig
from serving.engines.trial_load import SpawnedTrials
from serving.observer import Observer
from tests.serving.mlp_calls import make_request
from tests.serving.seen import Seen
from tests.serving.server_process import ROOT, ServerProcess, call

ENDLESS = ROOT / "tests" / "recorded" / "endless.tflite"
"""`images` to `probabilities`, by a `tf.while_loop` whose condition stays true."""

VECTOR_OF_TWO = bytes.fromhex("92ffffff02000000")
"""In the file of the published MLP: the end of a table, and how many items follow."""

WORKERS = pytest.mark.parametrize("workers", [1, 2])


@pytest.fixture
def source(published_mlp: Path) -> Path:
    return published_mlp / "mlp" / "1"


@pytest.fixture
def base(tmp_path: Path, source: Path) -> Path:
    """A base path with one good version."""
    shutil.copytree(source, tmp_path / "mlp" / "1")
    return tmp_path / "mlp"


class Draft:
    """A version in the making; `publish` seals and renames it, as Plumbline does."""

    def __init__(self, source: Path, base: Path, version: int) -> None:
        self.path = base / f".draft-{version}"
        self._target = base / str(version)
        shutil.copytree(source, self.path)

    def publish(self) -> None:
        manifest = read_manifest(self.path)
        sealed = msgspec.structs.replace(manifest, files=hash_files(self.path))
        write_manifest(self.path, sealed)
        self.path.rename(self._target)

    def crash(self) -> None:
        """Two bytes that end whoever loads the model: a vector of 2 becomes one of 940."""
        path = self.path / "model.tflite"
        content = bytearray(path.read_bytes())
        at = content.index(VECTOR_OF_TWO) + 4
        content[at : at + 2] = bytes((172, 3))
        path.write_bytes(content)

    def never_end(self) -> None:
        shutil.copyfile(ENDLESS, self.path / "model.tflite")

    def disagree(self) -> None:
        """Neither LiteRT nor TensorFlow gives what these golden examples say."""
        path = self.path / layout.GOLDEN
        one = read_golden(path).signatures["serving_default"]
        outputs = {name: array + np.float32(0.5) for name, array in one.outputs.items()}
        wrong = GoldenExamples(one.inputs, outputs, one.batch_sizes)
        write_golden(path, Golden({"serving_default": wrong}))


def serve(folder: Path, base: Path, *flags: str, **options: Any) -> ServerProcess:
    return ServerProcess(folder, "--model_name=mlp", f"--model_base_path={base}", *flags, **options)


def ask(server: ServerProcess) -> int:
    """The version that answers a Predict."""
    with grpc.insecure_channel(server.address) as channel:
        answer: predict_pb2.PredictResponse = call(channel, PREDICT, make_request())
    return answer.model_spec.version.value


def find_status(server: ServerProcess, version: int) -> Any:
    request = status_pb2.GetModelStatusRequest()
    request.model_spec.name = "mlp"
    with grpc.insecure_channel(server.address) as channel:
        answer = call(channel, GET_MODEL_STATUS, request)
    found = [one for one in answer.model_version_status if one.version == version]
    return found[0] if found else status_pb2.ModelVersionStatus()


def wait_for_end(server: ServerProcess, version: int) -> str:
    """Waits until a version has ended; what is said of it. TensorFlow may be imported for it."""
    end = status_pb2.ModelVersionStatus.END
    server.wait_for(lambda: find_status(server, version).state == end, timeout_s=200)
    return str(find_status(server, version).status.error_message)


@WORKERS
def test_a_model_that_crashes_the_interpreter_ends_its_version_and_nothing_else(
    tmp_path: Path, base: Path, source: Path, workers: int
) -> None:
    with serve(tmp_path, base, f"--workers={workers}") as server:
        server.wait_until_ready()
        draft = Draft(source, base, 2)
        draft.crash()
        draft.publish()
        assert "SIGSEGV" in wait_for_end(server, 2)
        assert [ask(server) for _ in range(4)] == [1] * 4
        assert "ended with signal" not in server.log
        server.signal()
        assert server.wait() == 0


def test_a_server_that_has_no_other_version_says_why_it_serves_nothing(
    tmp_path: Path, source: Path
) -> None:
    (tmp_path / "mlp").mkdir()
    draft = Draft(source, tmp_path / "mlp", 1)
    draft.crash()
    draft.publish()
    done = subprocess.run(
        [
            *(sys.executable, "-m", "serving", "embedded", "--port=-1"),
            *("--model_name=mlp", f"--model_base_path={tmp_path / 'mlp'}"),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 3
    assert "SIGSEGV" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_graph_that_never_ends_is_given_up_and_its_process_ended(
    tmp_path: Path, base: Path, source: Path
) -> None:
    with serve(tmp_path, base, "--trial_timeout_s=5") as server:  # time enough for version 1
        server.wait_until_ready()
        draft = Draft(source, base, 2)
        draft.never_end()
        draft.publish()
        assert "not loaded and tested within" in wait_for_end(server, 2)
        assert ask(server) == 1
        zygote = find_zygote(server)
        server.wait_for(lambda: not zygote.children(recursive=True))


def test_files_that_change_are_tried_again(tmp_path: Path, base: Path, source: Path) -> None:
    with serve(tmp_path, base) as server:
        server.wait_until_ready()
        draft = Draft(source, base, 2)
        draft.crash()
        draft.publish()
        wait_for_end(server, 2)
        shutil.copyfile(source / "model.tflite", base / "2" / "model.tflite")
        shutil.copyfile(source / layout.MANIFEST, base / "2" / layout.MANIFEST)
        server.wait_for(lambda: ask(server) == 2)


def test_what_the_trial_found_is_not_found_again(tmp_path: Path, base: Path) -> None:
    with serve(tmp_path, base, rest=True) as server:
        server.wait_until_ready()
        assert server.log.count("warmup calls in") == 1
        assert server.log.count("serving_default by litert: 64 golden examples agree") == 1
        page = subprocess.run(
            ["curl", "-s", f"{server.url}/monitoring/prometheus/metrics"],
            capture_output=True,
            text=True,
            timeout=20,
        ).stdout
    passed = [line for line in page.splitlines() if "serving_uint8" in line and "passed" in line]
    assert passed, page


def test_a_self_test_that_fails_leaves_no_tensorflow_in_a_server_that_served_without_it(
    tmp_path: Path, base: Path, source: Path
) -> None:
    with serve(tmp_path, base) as server:
        server.wait_until_ready()
        draft = Draft(source, base, 2)
        draft.disagree()
        draft.publish()
        assert "self-test" in wait_for_end(server, 2)
        assert ask(server) == 1
        maps = psutil.Process(server.process.pid).memory_maps()
        assert not [one.path for one in maps if "libtensorflow" in one.path]


def test_a_signature_that_needs_tensorflow_is_tried_elsewhere_when_it_is_first_asked_for(
    tmp_path: Path, base: Path
) -> None:
    path = base / "1" / layout.GOLDEN
    signatures = dict(read_golden(path).signatures)
    one = signatures["classify"]
    outputs = {
        name: array[::-1] if array.dtype.hasobject else array + np.float32(0.5)
        for name, array in one.outputs.items()
    }
    signatures["classify"] = GoldenExamples(one.inputs, outputs, one.batch_sizes)
    write_golden(path, Golden(signatures))
    (base / "1" / layout.MANIFEST).unlink()
    with serve(tmp_path, base) as server:
        server.wait_until_ready()
        request = predict_pb2.PredictRequest()
        request.model_spec.name, request.model_spec.signature_name = "mlp", "classify"
        rows = np.empty(1, object)
        rows[:] = [b""]
        request.inputs["inputs"].CopyFrom(to_tensor_proto(rows))
        with (
            grpc.insecure_channel(server.address) as channel,
            pytest.raises(grpc.RpcError, match="self-test of signature 'classify' failed"),
        ):
            call(channel, PREDICT, request, timeout_s=200)
        assert ask(server) == 1
        maps = psutil.Process(server.process.pid).memory_maps()
        assert not [one.path for one in maps if "libtensorflow" in one.path]


def test_a_zygote_that_is_gone_is_done_without(tmp_path: Path, base: Path, source: Path) -> None:
    with serve(tmp_path, base) as server:
        server.wait_until_ready()
        find_zygote(server).kill()
        draft = Draft(source, base, 2)
        draft.crash()
        draft.publish()
        assert "SIGSEGV" in wait_for_end(server, 2)
        Draft(source, base, 3).publish()
        server.wait_for(lambda: ask(server) == 3)


def find_zygote(server: ServerProcess) -> psutil.Process:
    (zygote,) = psutil.Process(server.process.pid).children()
    return zygote


@WORKERS
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_the_zygotes_end_with_their_server(
    tmp_path: Path, base: Path, workers: int, number: signal.Signals
) -> None:
    with serve(tmp_path, base, f"--workers={workers}") as server:
        server.wait_until_ready()
        family = psutil.Process(server.process.pid).children(recursive=True)
        assert len(family) == (1 if workers == 1 else 2 * workers)
        server.signal(number)
        server.wait()
        _, alive = psutil.wait_procs(family, timeout=30)
        assert not alive


def test_a_trial_ends_with_its_server(tmp_path: Path, base: Path, source: Path) -> None:
    with serve(tmp_path, base) as server:
        server.wait_until_ready()
        zygote = find_zygote(server)
        draft = Draft(source, base, 2)
        draft.never_end()
        draft.publish()
        server.wait_for(lambda: len(zygote.children(recursive=True)) == 2)
        family = zygote.children(recursive=True)
        server.signal(signal.SIGKILL)
        server.wait()
        _, alive = psutil.wait_procs([zygote, *family], timeout=30)
        assert not alive


def test_where_there_is_no_fork_an_interpreter_of_its_own_tries_a_version(
    base: Path, source: Path
) -> None:
    trials, seen = SpawnedTrials(ServerConfig(trial_timeout_s=20)), Seen()
    findings = trials.examine(ServableId("mlp", 1), base / "1", seen)
    assert findings.choices == seen.choices
    assert seen.choices["serving_default"].engine == "litert"
    assert seen.results["serving_default"] == "passed"
    assert "serving_default" in findings.signature_defs
    draft = Draft(source, base, 2)
    draft.crash()
    draft.publish()
    with pytest.raises(ManifestError, match="SIGSEGV"):
        trials.examine(ServableId("mlp", 2), base / "2", Observer())
    draft = Draft(source, base, 3)
    draft.never_end()
    draft.publish()
    with pytest.raises(ManifestError, match="not loaded and tested within"):
        SpawnedTrials(ServerConfig(trial_timeout_s=3)).examine(
            ServableId("mlp", 3), base / "3", Observer()
        )


def test_an_error_keeps_its_class_message_and_code(tmp_path: Path) -> None:
    (tmp_path / "1").mkdir()
    with pytest.raises(PlumblineError) as raised:
        SpawnedTrials(ServerConfig()).examine(ServableId("mlp", 1), tmp_path / "1", Observer())
    assert type(raised.value).__name__ == "ServableNotFoundError"
    assert "Could not find SavedModel" in raised.value.message


def test_hot_swaps_with_every_second_version_bad_fail_no_call(
    tmp_path: Path, base: Path, source: Path
) -> None:
    with serve(tmp_path, base) as server:
        server.wait_until_ready()
        stopped, failures, counts = threading.Event(), [], []

        def ask_again_and_again() -> None:
            count = 0
            with grpc.insecure_channel(server.address) as channel:
                while not stopped.wait(0.002):
                    try:
                        call(channel, PREDICT, make_request())
                        count += 1
                    except grpc.RpcError as error:
                        failures.append(str(error))
            counts.append(count)

        threads = [threading.Thread(target=ask_again_and_again) for _ in range(4)]
        for thread in threads:
            thread.start()
        try:
            for version in range(2, 8):
                draft = Draft(source, base, version)
                if version % 2 == 0:
                    draft.crash()
                draft.publish()
                if version % 2 == 0:
                    wait_for_end(server, version)
                else:
                    server.wait_for(lambda wanted=version: ask(server) == wanted)  # type: ignore[misc]
        finally:
            stopped.set()
            for thread in threads:
                thread.join()
        assert not failures
        assert len(counts) == 4 and min(counts) > 10


GREEDY = """
import sys
from pathlib import Path
from contract.servable import ServableId
from serving.config.server import ServerConfig
from serving.engines import trial_load
from serving.observer import Observer

trial_load.examine_version = lambda *_: bytearray(2**30)
trial_load.find_memory_limit = lambda: 2**28  # of a container
trials = trial_load.ForkedTrials(ServerConfig())
try:
    trials.examine(ServableId("mlp", 1), Path("/nowhere/1"), Observer())
except Exception as error:
    print(type(error).__name__, error.code.name)
"""


def test_a_version_that_wants_more_memory_than_there_is_is_told_so(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", GREEDY],
        cwd=ROOT,
        env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.strip() == "ResourceExhaustedError RESOURCE_EXHAUSTED", done.stderr


def test_what_the_kernel_kills_for_want_of_memory_may_be_tried_again(
    tmp_path: Path, base: Path, source: Path
) -> None:
    with serve(tmp_path, base, "--load_retry_interval_micros=100000") as server:
        server.wait_until_ready()
        zygote = find_zygote(server)
        draft = Draft(source, base, 2)
        draft.never_end()
        draft.publish()
        server.wait_for(lambda: len(zygote.children(recursive=True)) == 2)
        (watcher,) = zygote.children()
        (trial,) = watcher.children()
        # It has read the files that are replaced now, and runs the loop that never ends.
        server.wait_for(lambda: trial.cpu_times().user > 0.5)
        assert Path(f"/proc/{trial.pid}/oom_score_adj").read_text().strip() == "1000"
        shutil.copyfile(source / "model.tflite", base / "2" / "model.tflite")
        shutil.copyfile(source / layout.MANIFEST, base / "2" / layout.MANIFEST)
        trial.kill()
        server.wait_for(lambda: ask(server) == 2)
        assert "RESOURCE_EXHAUSTED" in server.log
