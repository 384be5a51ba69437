"""The usual mistakes: each is made for real, found, and comes with what mends it."""

from __future__ import annotations

import http.server
import json
import shutil
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from clients.cli import main
from clients.doctor import probe
from clients.doctor.findings import Check, check_package
from clients.doctor.probe import parse_address
from clients.doctor.server import find_rest_servers
from contract import layout
from contract.errors import (
    DeadlineExceededError,
    RequestError,
    ResourceExhaustedError,
    UnimplementedError,
)
from contract.manifest import InputStatistics, read_manifest, write_manifest
from contract.signature import Batch, TensorSpec
from tests.clients.grpc_servers import ModelServer, answer_sums, make_signature
from tests.clients.serving_mlp import serve_mlp
from tests.lite_models import FOLDER

Findings = dict[str, dict[str, str]]


@pytest.fixture
def diagnose(capsys: pytest.CaptureFixture[str]) -> Any:
    def run(*arguments: str | Path) -> tuple[int, Findings]:
        status = main(["doctor", *map(str, arguments), "--json"])
        findings = json.loads(capsys.readouterr().out)["findings"]
        return status, {finding["check"]: finding for finding in findings}

    return run


@pytest.fixture
def copied(published_mlp: Path, tmp_path: Path) -> Path:
    """A version that a test may break."""
    return Path(shutil.copytree(published_mlp / "mlp" / "1", tmp_path / "mlp" / "1"))


def test_a_good_server_and_a_good_version_pass_all_that_is_looked_at(
    published_mlp: Path, diagnose: Any
) -> None:
    version_dir = published_mlp / "mlp" / "1"
    with serve_mlp(version_dir) as server:
        status, findings = diagnose(server.address, version_dir, "--run")
    assert status == 0
    assert list(findings) == list(Check)
    assert {check: one["verdict"] for check, one in findings.items()} == {
        **dict.fromkeys(Check, "ok"),
        Check.INPUTS: "not checked",
    }


def test_inputs_that_look_otherwise_come_with_the_flag_that_mends_them(
    copied: Path, tmp_path: Path, diagnose: Any
) -> None:
    known = InputStatistics(
        min=0, max=1, mean=0.1, std=0.3, num_rows=64, image_shape=(28, 28, 1), light_borders=0.0
    )
    manifest = msgspec.structs.replace(read_manifest(copied), inputs={"": known})
    write_manifest(copied, manifest)
    paper = np.full((8, 28, 28), 250, np.uint8)
    paper[:, 8:20, 8:20] = 20
    np.save(tmp_path / "scan.npy", paper)
    _, findings = diagnose(copied, "--inputs", tmp_path / "scan.npy")
    assert findings["inputs"]["verdict"] == "warning"
    assert findings["inputs"]["fix"].endswith("scan.npy --invert")
    _, findings = diagnose(copied, "--inputs", tmp_path / "scan.npy", "--invert")
    assert findings["inputs"]["verdict"] == "ok"


def test_nobody_there_gives_the_command_that_starts_a_server(diagnose: Any) -> None:
    status, findings = diagnose("127.0.0.1:9")
    assert status == 3
    assert "nothing listens" in findings["reachable"]["explanation"]
    assert findings["reachable"]["fix"].startswith("python -m serving embedded --port=9")


@contextmanager
def serve_http(body: bytes) -> Iterator[str]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def test_the_rest_port_is_recognised(diagnose: Any) -> None:
    with serve_http(b"hello") as address:
        status, findings = diagnose(address, "--timeout_s", "3")
    assert status == 3
    assert "REST port" in findings["reachable"]["explanation"]


def test_a_listener_that_says_nothing_is_not_called_reachable(
    diagnose: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "TIMEOUT_S", 0.5)  # of each try
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        status, findings = diagnose(address, "--timeout_s", "1")
    assert status == 3
    assert findings["reachable"]["verdict"] == "fails"


LISTED = b'{"models": [{"name": "cnn", "model_version_status": [{}]}, {"name": "mlp"}]}'


def test_a_wrong_model_name_lists_the_served_ones(diagnose: Any) -> None:
    with ModelServer() as server, serve_http(LISTED) as rest:
        server.calls.clear()
        server._GetModelStatus = _not_found  # type: ignore[assignment, method-assign]
        status, findings = diagnose(server.address, "--model_name", "nlp", "--rest_server", rest)
    assert status == 1
    assert "it serves cnn, mlp" in findings["model name"]["explanation"]
    assert "--model_name=mlp" in findings["model name"]["fix"]


def test_advice_repeats_all_that_was_given_and_no_more(diagnose: Any, published_mlp: Path) -> None:
    base = published_mlp / "mlp"
    with ModelServer() as server:
        given = ("--version", "1", "--signature_name", "serving")
        fix = diagnose(server.address, base, *given)[1]["signature names"]["fix"]
        asked = f"python -m clients doctor {server.address} {base}"
        assert fix == f"{asked} --version=1 --signature_name=serving_default"
        fix = diagnose(server.address, "--signature_name", "serving")[1]["signature names"]["fix"]
    assert "--model_name" not in fix


def test_a_command_is_never_broken_in_a_narrow_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    with ModelServer() as server:
        main(["doctor", server.address, "--signature_name=a_name_that_is_not_there"])
    command = f"python -m clients doctor {server.address} --signature_name=serving_default"
    assert f"  {command}" in capsys.readouterr().out.splitlines()


def add_strings(server: ModelServer, error: Exception) -> None:
    """A signature that takes strings, and what the server makes of it."""
    text = TensorSpec("inputs", "string", (None,))
    server.signatures["classify"] = make_signature("classify", inputs={"inputs": text})

    def answer(inputs: Batch) -> Any:
        if "inputs" in inputs:
            raise error
        return answer_sums(inputs)

    server.answer = answer


@pytest.mark.parametrize(
    ("named", "status", "verdict"),
    [((), 0, "warning"), (("--signature_name", "classify"), 1, "fails")],
)
def test_a_signature_that_the_server_cannot_run_is_found_named_or_not(
    named: tuple[str, ...], status: int, verdict: str, diagnose: Any
) -> None:
    with ModelServer() as server:
        add_strings(server, UnimplementedError("classify needs TensorFlow"))
        found, findings = diagnose(server.address, "--run", *named)
    assert (found, findings["answers"]["verdict"]) == (status, verdict)
    assert "classify needs TensorFlow" in findings["answers"]["explanation"]


def test_a_signature_that_refuses_an_empty_string_is_one_that_runs(diagnose: Any) -> None:
    with ModelServer() as server:
        add_strings(server, RequestError("Could not parse example input"))
        status, findings = diagnose(server.address, "--run")
        assert server.calls["Predict"] == 2
    assert (status, findings["answers"]["verdict"]) == (0, "ok")


def test_a_signature_that_takes_long_over_strings_is_no_fault(diagnose: Any) -> None:
    with ModelServer() as server:
        add_strings(server, DeadlineExceededError("too late"))
        status, findings = diagnose(server.address, "--run")
    assert (status, findings["answers"]["verdict"]) == (0, "warning")
    assert findings["answers"]["fix"].endswith("--run --timeout_s=120")


def test_advice_repeats_inputs_and_what_is_done_to_them(
    copied: Path, tmp_path: Path, diagnose: Any
) -> None:
    known = InputStatistics(min=0, max=1, mean=0.1, std=0.3, num_rows=64)
    write_manifest(copied, msgspec.structs.replace(read_manifest(copied), inputs={"": known}))
    np.save(tmp_path / "two words.npy", np.full((8, 28, 28, 1), 200, np.float32))
    given = ("--inputs", tmp_path / "two words.npy", "--shift=0.5")
    with ModelServer() as server:
        _, findings = diagnose(server.address, copied, *given, "--signature_name", "nothing")
    listed = f"'{tmp_path}/two words.npy'"
    assert f"--inputs {listed} --shift=0.5 " in findings["signature names"]["fix"]
    assert findings["inputs"]["fix"] == (
        f"python -m clients predict {listed} --scale 255 --shift {0.5 / 255:g}"
    )


def test_a_folder_of_base_paths_is_told_from_an_empty_one(copied: Path, diagnose: Any) -> None:
    base = copied.parent
    (base.parent / "a_file").touch()
    status, findings = diagnose(base.parent)
    assert status == 1
    assert "(mlp)" in findings["version number"]["explanation"]
    assert findings["version number"]["fix"] == f"python -m clients doctor {base}"
    _, findings = diagnose(base.parent / "mpl")
    assert findings["version number"]["fix"] == f"python -m clients doctor {base}"


def test_names_in_metrics_are_no_models(diagnose: Any) -> None:
    metrics = b'x{model_name="nlp"} 1\n'
    with ModelServer() as server, serve_http(metrics) as rest:
        server._GetModelStatus = _not_found  # type: ignore[assignment, method-assign]
        status, findings = diagnose(server.address, "--model_name", "nlp", "--rest_server", rest)
    assert status == 1
    assert "it serves" not in findings["model name"]["explanation"]
    assert "TensorFlow Serving has no call for it" in findings["model name"]["explanation"]


def test_a_model_without_a_version_is_not_called_unknown(diagnose: Any) -> None:
    with ModelServer() as server, serve_http(b'{"models": [{"name": "m"}]}') as rest:
        server._GetModelStatus = _not_found  # type: ignore[assignment, method-assign]
        status, findings = diagnose(server.address, "--model_name", "m", "--rest_server", rest)
    assert status == 1
    assert "has no version" in findings["healthy version"]["explanation"]
    assert findings["model name"]["verdict"] != "fails"


def test_the_only_model_of_a_server_is_looked_at_where_none_is_named(
    diagnose: Any, published_mlp: Path
) -> None:
    listed = b'{"models": [{"name": "mlp"}]}'
    with serve_mlp(published_mlp / "mlp" / "1") as server, serve_http(listed) as rest:
        answer = server._GetModelStatus

        def know_mlp(request: bytes) -> bytes:
            return _not_found(request) if b"default" in request else answer(request)

        server._GetModelStatus = know_mlp  # type: ignore[assignment, method-assign]
        status, findings = diagnose(server.address, "--rest_server", rest)
    assert status == 0
    assert findings["model name"]["explanation"] == "mlp is served"


def test_models_are_looked_for_beside_the_server_that_is_asked() -> None:
    def find(address: str) -> str:
        return find_rest_servers(parse_address(address))[0]

    assert find("10.0.0.5:8500") == "http://10.0.0.5:8501"
    assert find("[::1]:9000") == "http://[::1]:8501"
    assert find("unix:/run/tf.sock") == "http://127.0.0.1:8501"
    assert find("https://models:9") == "https://models:9"


def test_advice_fits_where_the_version_came_from(copied: Path, diagnose: Any) -> None:
    (copied / layout.WARMUP).unlink()
    advice = []
    configs: list[dict[str, Any] | None] = [{"model": {"kind": "cnn"}}, {"export": {}}, None]
    for config in configs:
        if config is None:
            (copied / layout.MANIFEST).unlink()
        else:
            manifest = msgspec.structs.replace(read_manifest(copied), config=config)
            write_manifest(copied, manifest)
        advice.append(diagnose(copied)[1]["warmup"]["fix"])
    assert "--config FILE" in advice[0] and "--model" not in advice[0]
    assert "--model FILE --examples FILE" in advice[1] and "--config" not in advice[1]
    assert f"--model {copied} --examples FILE" in advice[2]


def _not_found(_: bytes) -> bytes:
    from contract.errors import ServableNotFoundError

    raise ServableNotFoundError("Could not find any versions of model nlp")


def test_a_version_that_ended_is_reported_with_its_reason(diagnose: Any) -> None:
    with ModelServer() as server:
        server.state = 50
        status, findings = diagnose(server.address)
    assert status == 1
    assert "variables are missing" in findings["healthy version"]["explanation"]
    assert "python -m clients doctor BASE_PATH/1" in findings["healthy version"]["fix"]


def test_a_missing_serving_default_is_found(diagnose: Any) -> None:
    with ModelServer() as server:
        server.signatures = {"other": make_signature("other")}
        status, findings = diagnose(server.address)
    assert status == 1
    assert "only other" in findings["signature names"]["explanation"]


def test_names_that_keras_made_up_are_a_warning(diagnose: Any) -> None:
    with ModelServer() as server:
        spec = TensorSpec("keras_tensor_3", "float32", (None, 4))
        server.signatures = {
            "serving_default": make_signature(inputs={"keras_tensor_3": spec}),
        }
        server.answer = lambda inputs: {"y": inputs["keras_tensor_3"][:, :2]}
        status, findings = diagnose(server.address)
    assert status == 0
    assert findings["signature names"]["verdict"] == "warning"
    assert "serving_default.keras_tensor_3" in findings["signature names"]["explanation"]


def test_a_server_that_answers_another_shape_is_found(diagnose: Any) -> None:
    with ModelServer() as server:
        server.answer = lambda inputs: {"y": inputs["x"]}
        status, findings = diagnose(server.address, "--run")
    assert status == 1
    assert "promises float32 (batch, 2)" in findings["answers"]["explanation"]


def test_a_message_limit_is_found_and_says_how_to_send_less(diagnose: Any) -> None:
    with ModelServer(max_message_bytes=4 * 2**20) as server:
        spec = TensorSpec("x", "float32", (None, 1024))
        server.signatures = {"serving_default": make_signature(inputs={"x": spec})}
        status, findings = diagnose(server.address, "--run")
    assert status == 1
    assert ResourceExhaustedError.default_code.name == "RESOURCE_EXHAUSTED"
    assert "predict_many" in findings["message limit"]["fix"]


def test_a_leaf_directory_without_a_number_is_found(copied: Path, diagnose: Any) -> None:
    copied.rename(copied.parent / "first")
    status, findings = diagnose(copied.parent)
    assert status == 1
    assert "(first)" in findings["version number"]["explanation"]
    assert findings["version number"]["fix"] == f"mv {copied.parent / 'first'} {copied}"


def test_a_model_right_below_its_name_is_found(copied: Path, diagnose: Any) -> None:
    base = copied.parent.parent / "flat"
    copied.rename(base)
    status, findings = diagnose(base)
    assert status == 1
    assert f"mkdir {base}" in findings["version number"]["fix"]


def test_a_half_copied_version_is_found_by_its_manifest(copied: Path, diagnose: Any) -> None:
    (copied / "model.tflite").write_bytes((copied / "model.tflite").read_bytes()[:1000])
    status, findings = diagnose(copied)
    assert status == 1
    assert "model.tflite has 1000 bytes" in findings["whole version"]["explanation"]
    assert "cp -r" in findings["whole version"]["fix"]


def test_a_half_copied_version_is_found_without_a_manifest(copied: Path, diagnose: Any) -> None:
    (copied / layout.MANIFEST).unlink()
    (copied / "variables" / "variables.data-00000-of-00001").unlink()
    status, findings = diagnose(copied)
    assert status == 1
    assert "incomplete" in findings["whole version"]["explanation"]


def test_an_older_tensorflow_on_the_server_is_found(published_mlp: Path, diagnose: Any) -> None:
    status, findings = diagnose(published_mlp / "mlp", "--server_tensorflow", "2.9.1")
    assert status == 1
    assert findings["TensorFlow version"]["fix"].startswith("docker pull tensorflow/serving:2.")


def test_the_writing_tensorflow_is_read_without_a_manifest_too(copied: Path, diagnose: Any) -> None:
    (copied / layout.MANIFEST).unlink()
    _, findings = diagnose(copied, "--server_tensorflow", "1.15")
    assert findings["TensorFlow version"]["verdict"] == "fails"


def test_missing_warmup_is_a_warning(copied: Path, diagnose: Any) -> None:
    (copied / layout.WARMUP).unlink()
    (copied / layout.MANIFEST).unlink()
    status, findings = diagnose(copied)
    assert status == 0
    assert findings["warmup"]["verdict"] == "warning"
    assert "python -m exporter export" in findings["warmup"]["fix"]


def test_a_model_that_disagrees_with_golden_is_found(
    copied: Path, published_mlp: Path, diagnose: Any
) -> None:
    int8 = published_mlp / "mlp" / "1" / layout.variant_path("float16")
    (copied / "model.tflite").write_bytes(int8.read_bytes())
    status, findings = diagnose(copied)
    assert status == 1
    assert "differs by up to" in findings["healthy version"]["explanation"]


def test_every_copy_of_a_version_is_asked(copied: Path, diagnose: Any) -> None:
    _, findings = diagnose(copied)
    count = len(layout.DEFAULT_VARIANTS)
    assert f"agree through all {count} copies" in findings["healthy version"]["explanation"]
    manifest = read_manifest(copied)
    config = {"export": {"tolerances": {"int8": {"max_abs_difference": 1e-9}}}}
    write_manifest(copied, msgspec.structs.replace(manifest, config=config))
    status, findings = diagnose(copied)
    assert status == 1
    assert findings["healthy version"]["explanation"].startswith("int8: serving_default: ")


def test_another_package_of_our_name_is_found(tmp_path: Path) -> None:
    (tmp_path / "clients").mkdir()
    (tmp_path / "clients" / "__init__.py").touch()
    (found,) = check_package([str(tmp_path), *sys.path])
    assert found.verdict == "warning"
    assert str(tmp_path / "clients") in found.explanation
    assert "plumbline-clients" in found.fix
    assert check_package()[0].verdict == "ok"


def test_a_missing_folder_is_not_taken_for_an_address(tmp_path: Path, diagnose: Any) -> None:
    status, findings = diagnose(tmp_path / "none")
    assert status == 1
    assert "is no directory" in findings["version number"]["explanation"]


def test_a_folder_without_versions_is_not_asked_for_its_path_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor", str(tmp_path)]) == 1
    assert "give its path" not in capsys.readouterr().out


def test_a_tflite_file_of_another_tool_is_a_version_that_lacks_something(
    tmp_path: Path, diagnose: Any
) -> None:
    (tmp_path / "1").mkdir()
    shutil.copy(FOLDER / "lstm.tflite", tmp_path / "1" / layout.TFLITE)
    status, findings = diagnose(tmp_path)
    assert status == 0
    assert "serving_default" in findings["signature names"]["explanation"]
    assert "float32 (batch, 5, 3)" in findings["shapes"]["explanation"]
    assert findings["whole version"]["verdict"] == "warning"
    assert "fails" not in {one["verdict"] for one in findings.values()}
