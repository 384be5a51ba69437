"""`GET /v1/models`: what a real server says that it serves."""

import json
import shutil
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from serving.config.server import ServerConfig
from tests.serving.numpy_servables import OneModelManager, make_servable
from tests.serving.server_process import ServerProcess
from tests.serving.servers import serve

OK = {"error_code": "OK", "error_message": ""}
TOKEN = "a-token-of-sixteen-letters"


def fetch(url: str, path: str = "/v1/models", token: str = "") -> Any:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    request = urllib.request.Request(url + path, headers=headers)
    with urllib.request.urlopen(request, timeout=30) as response:
        return json.load(response)


def write_config(folder: Path, *models: str) -> Path:
    path = folder / "models.config"
    path.write_text(f"model_config_list {{ {' '.join(models)} }}")
    return path


def describe_model(name: str, base_path: Path, more: str = "") -> str:
    return (
        f'config {{ name: "{name}" base_path: "{base_path}" model_platform: "tensorflow" {more} }}'
    )


@pytest.mark.parametrize("workers", [1, 2])
def test_every_model_is_listed_by_name_with_its_versions_and_labels(
    tmp_path: Path, published_mlp: Path, workers: int
) -> None:
    for version in ("1", "2"):
        shutil.copytree(published_mlp / "mlp" / "1", tmp_path / "b" / version)
    (tmp_path / "b" / "2" / "model.tflite").write_bytes(b"no model")
    shutil.copytree(published_mlp / "mlp" / "1", tmp_path / "a" / "1")
    (tmp_path / "none").mkdir()
    config = write_config(
        tmp_path,
        describe_model("none", tmp_path / "none"),
        describe_model(
            "b",
            tmp_path / "b",
            'model_version_policy { all {} } version_labels { key: "stable" value: 1 }',
        ),
        describe_model("a", tmp_path / "a"),
    )
    with ServerProcess(
        tmp_path,
        f"--model_config_file={config}",
        "--allow_version_labels_for_unavailable_models",
        f"--workers={workers}",
        rest=True,
    ) as server:
        models: list[Any] = []

        def is_settled() -> bool:  # of the worker that answers, whichever it is
            models[:] = fetch(server.url)["models"]
            states = [one["state"] for model in models for one in model["model_version_status"]]
            return states == ["AVAILABLE", "END", "AVAILABLE"]

        server.wait_for(is_settled)
        a, b, none = models
    assert none == {"name": "none", "version_labels": {}, "model_version_status": []}
    available = {"version": "1", "state": "AVAILABLE", "status": OK}
    assert a == {"name": "a", "version_labels": {}, "model_version_status": [available]}
    failed, serving = b["model_version_status"]
    assert b["version_labels"] == {"stable": "1"}
    assert serving == available
    assert (failed["version"], failed["state"]) == ("2", "END")
    assert failed["status"]["error_code"] == "DATA_LOSS"


def test_a_version_that_was_unloaded_is_no_longer_listed(
    tmp_path: Path, published_mlp: Path
) -> None:
    shutil.copytree(published_mlp / "mlp" / "1", tmp_path / "mlp" / "1")
    flags = ("--model_name=mlp", f"--model_base_path={tmp_path / 'mlp'}")
    with ServerProcess(tmp_path, *flags, rest=True) as server:
        server.wait_until_ready()
        shutil.copytree(tmp_path / "mlp" / "1", tmp_path / "mlp" / ".2")
        (tmp_path / "mlp" / ".2").rename(tmp_path / "mlp" / "2")
        server.wait_for(lambda: server.list_states("mlp") == {2: "AVAILABLE", 1: "END"})
        (mlp,) = fetch(server.url)["models"]
    assert [one["version"] for one in mlp["model_version_status"]] == ["2"]


def test_a_server_without_models_lists_none(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    with ServerProcess(
        tmp_path, f"--model_config_file={config}", "--enable_reload_config", rest=True
    ) as server:
        assert fetch(server.url) == {"models": []}


def test_the_list_wants_the_token(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    (tmp_path / "tokens").write_text(TOKEN)
    flags = (f"--model_config_file={config}", f"--auth_token_file={tmp_path / 'tokens'}")
    with ServerProcess(tmp_path, *flags, "--enable_reload_config", rest=True) as server:
        with pytest.raises(urllib.error.HTTPError) as refused:
            fetch(server.url)
        assert refused.value.code == 401
        assert fetch(server.url, token=TOKEN) == {"models": []}


@pytest.mark.parametrize(
    ("path", "is_strict"), [("/v1/models", True), ("/v1/models/versions/1", False)]
)
def test_what_is_no_list_is_answered_as_tensorflow_serving_answers(
    path: str, is_strict: bool
) -> None:
    config = ServerConfig(strict_compat=is_strict)
    with serve(OneModelManager(make_servable()), config) as faces:
        answer = faces.request("GET", path)
    assert answer.status == 400
    assert json.loads(answer.body) == {"error": "Missing model name in request."}
