"""Recorded requests again: differences are found, and only where there are any."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from clients.cli import main
from contract.servable import ModelSpec
from contract.signature import Array
from contract.wire.plumbline_wire import predict_pb2, prediction_log_pb2
from contract.wire.predict import encode_predict_request, encode_predict_response
from contract.wire.tfrecord import write_records
from tests.clients.grpc_servers import ModelServer, answer_sums

X = np.arange(32, dtype=np.float32).reshape(8, 4)


def make_log(x: Array, y: Array | None = None) -> bytes:
    """A PredictionLog of a request to version 7, with the answer `y` if there is one."""
    spec = ModelSpec("sums", 7, None, "serving_default")
    request = encode_predict_request(spec, {"x": x})
    log = prediction_log_pb2.PredictionLog()
    log.predict_log.request.CopyFrom(predict_pb2.PredictRequest.FromString(request))
    if y is not None:
        response = encode_predict_response(spec, {"y": y})
        log.predict_log.response.CopyFrom(predict_pb2.PredictResponse.FromString(response))
    return bytes(log.SerializeToString())


def write_log(folder: Path, *logs: bytes) -> str:
    path = folder / "requests.tfrecord"
    write_records(path, logs)
    return str(path)


def golden(x: Array) -> Array:
    found: Array = answer_sums({"x": x})["y"]
    return found


def test_recorded_answers_that_come_again_agree(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_log(tmp_path, make_log(X[:3], golden(X[:3])), make_log(X[3:], golden(X[3:])))
    with ModelServer() as server:
        assert main(["replay", file, "--server", server.address, "--json"]) == 0
        assert [spec.name for spec in server.specs] == ["sums", "sums"]
        assert [spec.version for spec in server.specs] == [None, None]  # not the one of then
    assert json.loads(capsys.readouterr().out)["verdicts"] == {"agrees": 2}


def test_a_candidate_that_answers_otherwise_is_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_log(tmp_path, make_log(X[:3]), make_log(X[3:]))
    with ModelServer() as stable, ModelServer() as candidate:
        candidate.answer = lambda inputs: {
            "y": answer_sums(inputs)["y"] + np.float32(len(inputs["x"]) == 5)
        }
        arguments = ["replay", file, "--server", candidate.address, "--json"]
        assert main([*arguments, "--against", stable.address]) == 1
        result = json.loads(capsys.readouterr().out)
        assert result["verdicts"] == {"agrees": 1, "differs": 1}
        assert result["max_abs_difference"] == 1.0
        assert [one["number"] for one in result["not_agreeing"]] == [1]
        assert main([*arguments, "--against", stable.address, "--atol", "2"]) == 0


def test_two_versions_of_one_server_are_compared(tmp_path: Path) -> None:
    file = write_log(tmp_path, make_log(X))
    with ModelServer() as server:
        status = main(
            f"replay {file} --server {server.address} --version 2 "
            "--against_version_label stable".split()
        )
        asked = [(spec.version, spec.version_label) for spec in server.specs]
    assert status == 0
    assert asked == [(2, None), (None, "stable")]


def test_a_request_without_an_answer_to_compare_with_does_not_agree(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_log(tmp_path, make_log(X))
    with ModelServer() as server:
        assert main(["replay", file, "--server", server.address]) == 1
    assert "give --against" in capsys.readouterr().err


def test_a_missing_output_is_a_difference(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_log(tmp_path, make_log(X, golden(X)))
    with ModelServer() as server:
        server.answer = lambda inputs: {"z": golden(inputs["x"])}
        assert main(["replay", file, "--server", server.address]) == 1
    assert "output 'y' is missing" in capsys.readouterr().err


def test_other_kinds_of_records_are_named_and_skipped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = prediction_log_pb2.PredictionLog()
    other.session_run_log.SetInParent()
    file = write_log(tmp_path, other.SerializeToString(), make_log(X, golden(X)))
    with ModelServer() as server:
        assert main(["replay", file, "--server", server.address]) == 1
    assert "session_run_log cannot be sent again" in capsys.readouterr().err


def test_classifications_are_compared_by_label_and_score(tmp_path: Path) -> None:
    log = prediction_log_pb2.PredictionLog()
    request = log.classify_log.request
    request.model_spec.name = "sums"
    example = request.input.example_list.examples.add()
    example.features.feature["x"].float_list.value.append(0.25)
    with ModelServer() as server:
        log.classify_log.response.ParseFromString(server._Classify(request.SerializeToString()))
        good = write_log(tmp_path, log.SerializeToString())
        assert main(["replay", good, "--server", server.address]) == 0
        log.classify_log.response.result.classifications[0].classes[0].score += 0.01
        bad = write_log(tmp_path, log.SerializeToString())
        assert main(["replay", bad, "--server", server.address]) == 1


def test_a_damaged_file_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "requests.tfrecord"
    write_records(path, [make_log(X, golden(X))] * 2)
    path.write_bytes(path.read_bytes()[:-7])
    with ModelServer() as server:
        assert main(["replay", str(path), "--server", server.address]) == 2
    shown = capsys.readouterr()
    assert "record 1" in shown.err
    assert "serving_default" in shown.out  # the first one was compared, and is reported


def test_without_a_server_the_exit_code_is_3(tmp_path: Path) -> None:
    assert main(["replay", write_log(tmp_path, make_log(X)), "--server", "127.0.0.1:9"]) == 3


def test_a_missing_file_is_a_usage_error(tmp_path: Path) -> None:
    assert main(["replay", str(tmp_path / "none")]) == 2
