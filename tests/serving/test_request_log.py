"""A sample of answered requests is on disk, for its owner alone, and costs callers nothing."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from contract.errors import ConfigError
from contract.servable import ModelSpec
from contract.signature import Batch
from contract.wire.plumbline_wire import prediction_log_pb2
from contract.wire.predict import encode_predict_request, encode_predict_response
from contract.wire.rpc import CLASSIFY, PREDICT
from contract.wire.tfrecord import read_records
from serving.api.request_log import MAX_QUEUED_BYTES, LogFiles, RequestLog
from serving.config.models import ModelConfig, RequestLogging
from serving.config.server import ServerConfig
from tests.serving.mlp_calls import make_request
from tests.serving.numpy_servables import OneModelManager, make_servable
from tests.serving.server_process import ROOT, ServerProcess, call
from tests.serving.servers import serve

ROW = np.arange(3, dtype=np.float32)


def read_logs(folder: Path) -> list[Any]:
    return [
        prediction_log_pb2.PredictionLog.FromString(data)
        for path in sorted(folder.iterdir())
        for data in read_records(path)
    ]


def make_exchange(name: str = "m") -> Callable[[], tuple[bytes, bytes]]:
    batch: Batch = {"x": ROW}
    request = encode_predict_request(ModelSpec(name), batch)
    response = encode_predict_response(ModelSpec(name, version=3), batch)
    return lambda: (request, response)


def make_log(folder: Path, *models: ModelConfig, rate: float = 1, **more: Any) -> RequestLog:
    config = ServerConfig(request_log_dir=str(folder), request_log_sampling_rate=rate)
    return RequestLog(config, lambda: models, **more)


def test_calls_over_both_faces_are_logged_with_their_answers(tmp_path: Path) -> None:
    config = ServerConfig(request_log_dir=str(tmp_path), request_log_sampling_rate=1)
    log = RequestLog(config, lambda: ())
    with serve(OneModelManager(make_servable()), config, request_log=log) as faces:
        spec = ModelSpec("m", signature_name="serving_default")
        faces.call(PREDICT.path, encode_predict_request(spec, {"x": ROW}))
        faces.request("POST", "/v1/models/m:predict", b'{"instances": [0.0, 1.0, 2.0]}')
        with pytest.raises(grpc.RpcError):
            faces.call(PREDICT.path, encode_predict_request(ModelSpec("n"), {"x": ROW}))
    over_grpc, over_rest = read_logs(tmp_path)
    assert over_grpc.predict_log == over_rest.predict_log
    assert over_grpc.log_metadata.model_spec.version.value > 0
    assert over_grpc.log_metadata.sampling_config.sampling_rate == 1
    assert over_grpc.log_metadata.timestamp_secs > 0
    assert over_grpc.predict_log.response.outputs


def test_examples_over_rest_are_logged(tmp_path: Path) -> None:
    config = ServerConfig(request_log_dir=str(tmp_path), request_log_sampling_rate=1)
    log = RequestLog(config, lambda: ())
    body = json.dumps({"signature_name": "classify", "examples": [{"f": 1.0}]}).encode()
    with serve(OneModelManager(make_servable()), config, request_log=log) as faces:
        assert faces.request("POST", "/v1/models/m:classify", body).status == 200
    (found,) = read_logs(tmp_path)
    assert found.WhichOneof("log_type") == "classify_log"
    assert len(found.classify_log.response.result.classifications) == 1


def test_files_and_folder_are_for_their_owner_alone(tmp_path: Path) -> None:
    folder = tmp_path / "log"
    log = make_log(folder)
    log.offer(PREDICT.path, make_exchange(), 1)
    log.close()
    assert folder.stat().st_mode & 0o777 == 0o700
    assert [path.stat().st_mode & 0o777 for path in folder.iterdir()] == [0o600]


def test_the_rate_is_the_share_of_requests(tmp_path: Path) -> None:
    log = make_log(tmp_path, rate=0.25)
    for _ in range(2000):
        log.offer(PREDICT.path, make_exchange(), 1)
    log.close()
    assert 380 < len(read_logs(tmp_path)) < 620  # 500 and more than six sigmas


def test_a_models_own_rate_goes_before_the_flag(tmp_path: Path) -> None:
    own = RequestLogging("/elsewhere/mine", 1)
    log = make_log(tmp_path, ModelConfig("own", tmp_path, logging=own), rate=0)
    for name in ("own", "other"):
        log.offer(PREDICT.path, make_exchange(name), 1)
    log.close()
    assert [one.log_metadata.model_spec.name for one in read_logs(tmp_path)] == ["own"]
    assert next(tmp_path.iterdir()).name.startswith("mine-")


def test_nothing_is_written_where_the_rate_is_zero(tmp_path: Path) -> None:
    log = make_log(tmp_path, rate=0)
    log.offer(PREDICT.path, make_exchange(), 1)
    log.close()
    assert list(tmp_path.iterdir()) == []


def test_a_slow_disk_drops_requests_and_never_waits(tmp_path: Path) -> None:
    results: list[str] = []
    log = make_log(tmp_path, observe=results.append)
    held = threading.Event()

    def wait_and_make() -> tuple[bytes, bytes]:
        held.wait(20)
        return make_exchange()()

    log.offer(PREDICT.path, wait_and_make, MAX_QUEUED_BYTES)
    for _ in range(3):
        log.offer(PREDICT.path, make_exchange(), 1)
    assert results == ["dropped"] * 3
    held.set()
    log.close()
    assert results[3:] == ["written"]


def test_what_cannot_be_written_fails_nobody(tmp_path: Path) -> None:
    results: list[str] = []
    folder = tmp_path / "log"
    log = make_log(folder, observe=results.append)
    folder.rmdir()
    log.offer(PREDICT.path, make_exchange(), 1)
    log.offer(CLASSIFY.path, lambda: (b"", b"\xff"), 1)
    log.close()
    assert results == ["failed", "failed"]


def test_files_are_replaced_when_full_and_the_oldest_go(tmp_path: Path) -> None:
    foreign = tmp_path / "kept.tfrecord"
    foreign.write_bytes(bytes(1000))
    files = LogFiles(tmp_path, max_bytes=400, max_file_bytes=100)
    for number in range(20):
        files.append("a", bytes([number]) * 60)
        size = sum(path.stat().st_size for path in tmp_path.iterdir() if path != foreign)
        assert size <= 400
    files.close()
    left = sorted(path.read_bytes()[0] for path in tmp_path.iterdir() if path != foreign)
    assert left == list(range(20 - len(left), 20))
    assert len(left) > 3
    assert foreign.exists()


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="--request_log_dir"):
        make_log(tmp_path / "file" / "log")


def test_a_recorded_sample_replays_without_a_difference(
    published_mlp: Path, tmp_path: Path
) -> None:
    flags = ("--model_name=mlp", f"--model_base_path={published_mlp / 'mlp'}", "--engine=litert")
    folder = tmp_path / "log"
    with ServerProcess(
        tmp_path, *flags, f"--request_log_dir={folder}", "--request_log_sampling_rate=1", rest=True
    ) as server:
        server.wait_until_ready()
        with grpc.insecure_channel(server.address) as channel:
            for num_rows in (1, 3):
                call(channel, PREDICT, make_request(num_rows=num_rows))
        body = json.dumps({"instances": [[0.5] * 784]}).encode()
        urllib.request.urlopen(f"{server.url}/v1/models/mlp:predict", body).close()
        server.signal(signal.SIGTERM)
        assert server.wait() == 0
    (path,) = folder.iterdir()
    assert len(list(read_records(path))) == 3
    with ServerProcess(tmp_path, *flags) as server:
        server.wait_until_ready()
        done = subprocess.run(
            [sys.executable, "-m", "clients", "replay", str(path), "--server", server.address],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert done.returncode == 0, done.stdout + done.stderr
