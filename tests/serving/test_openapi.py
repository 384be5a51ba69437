"""`/openapi.json`: valid, true of the models that are served, and held to by the server."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import openapi_spec_validator
import pytest

from contract.signature import Signature, TensorSpec
from serving.config.server import ServerConfig
from serving.rest.openapi import DescribedModel, ServedVersion, make_document
from tests.serving.numpy_servables import SIGNATURES, OneModelManager, make_servable
from tests.serving.server_process import ROOT, ServerProcess
from tests.serving.servers import Faces, serve
from tests.serving.test_discovery import TOKEN, describe_model, fetch, write_config

SCHEMATHESIS = Path(sys.executable).with_name("schemathesis")


def make(*models: DescribedModel, **more: Any) -> dict[str, Any]:
    """A document as clients read it."""
    document: dict[str, Any] = json.loads(json.dumps(make_document(models, version="1", **more)))
    openapi_spec_validator.validate(document)
    return document


def make_model(name: str, *signatures: Signature, **labels: int) -> DescribedModel:
    version = ServedVersion(1, {one.name: one for one in signatures})
    return DescribedModel(name, labels, (version,))


def sign(dtype: str, shape: tuple[int | None, ...] | None, name: str = "x") -> Signature:
    spec = {name: TensorSpec(name, dtype, shape)}
    return Signature("serving_default", spec, spec)


def find_schema(document: dict[str, Any], path: str, kind: str) -> dict[str, Any]:
    """The schema of a path's request or of its answer, with what it refers to."""
    operation = document["paths"][path]["post"]
    place = operation["requestBody"] if kind == "request" else operation["responses"]["200"]
    return place["content"]["application/json"]["schema"] | {"components": document["components"]}


def is_admitted(document: dict[str, Any], path: str, body: Any, kind: str = "request") -> bool:
    validator = jsonschema.Draft202012Validator(find_schema(document, path, kind))
    return bool(validator.is_valid(body))


@pytest.fixture(scope="module")
def faces() -> Iterator[Faces]:
    with serve(OneModelManager(make_servable())) as found:
        yield found


@pytest.fixture(scope="module")
def document(faces: Faces) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(faces.request("GET", "/openapi.json").body)
    openapi_spec_validator.validate(found)
    return found


REQUESTS: list[tuple[str, Any]] = [
    ("predict", {"instances": [1.0, 2.0]}),
    ("predict", {"instances": [{"x": 1.0}]}),
    ("predict", {"inputs": [1.0]}),
    ("predict", {"inputs": {"x": [1.0, 2.0]}}),
    ("predict", {"signature_name": "two", "instances": [{"a": 1.0, "b": 2.0}]}),
    ("predict", {"signature_name": "two", "inputs": {"a": [1.0], "b": [2.0]}}),
    ("predict", {"signature_name": "echo", "instances": ["a", {"b64": "AA=="}]}),
    ("predict", {"signature_name": "echo", "inputs": ["a"]}),
    ("classify", {"signature_name": "classify", "examples": [{"a": [1.0, 2.0]}, {}]}),
    ("regress", {"signature_name": "regress", "context": {"b": "x"}, "examples": [{"a": 1}]}),
]


@pytest.mark.parametrize(("verb", "body"), REQUESTS)
def test_requests_and_their_answers_fit_the_schemas(
    faces: Faces, document: dict[str, Any], verb: str, body: Any
) -> None:
    path = f"/v1/models/m:{verb}"
    assert is_admitted(document, path, body)
    answer = faces.request("POST", path, json.dumps(body).encode())
    assert answer.status == 200, answer.body
    assert is_admitted(document, path, json.loads(answer.body), "answer")


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"instances": []},
        {"instances": [1.0], "inputs": [1.0]},
        {"instances": ["x"]},
        {"instances": [{"x": 1.0, "y": 1.0}]},
        {"instances": [1.0, {"x": 1.0}]},
        {"signature_name": "two", "instances": [1.0]},
        {"signature_name": "two", "inputs": {"a": [1.0]}},
        {"signature_name": "none", "instances": [1.0]},
        {"signature_name": "echo", "instances": [{"b64": "AA==", "c": 1}]},
    ],
)
def test_what_is_refused_does_not_fit_the_schema(
    faces: Faces, document: dict[str, Any], body: Any
) -> None:
    assert not is_admitted(document, "/v1/models/m:predict", body)
    assert faces.request("POST", "/v1/models/m:predict", json.dumps(body).encode()).status == 400


def test_shapes_and_dtypes_are_those_of_the_signature() -> None:
    document = make(make_model("m", sign("uint8", (None, 2, None))))
    path = "/v1/models/m:predict"
    assert is_admitted(document, path, {"instances": [[[1], [2]]]})
    assert is_admitted(document, path, {"inputs": [[[1, 2], [2, 3]]]})
    assert not is_admitted(document, path, {"instances": [[[1]]]})
    assert not is_admitted(document, path, {"instances": [[[256], [2]]]})
    assert not is_admitted(document, path, {"instances": [[[0.5], [2]]]})


def test_a_fixed_batch_is_so_many_rows() -> None:
    document = make(make_model("m", sign("bool", (2,))))
    assert is_admitted(document, "/v1/models/m:predict", {"instances": [True, False]})
    assert not is_admitted(document, "/v1/models/m:predict", {"instances": [True]})


def test_a_scalar_has_no_rows() -> None:
    document = make(make_model("m", sign("int64", ())))
    assert is_admitted(document, "/v1/models/m:predict", {"inputs": 3})
    assert not is_admitted(document, "/v1/models/m:predict", {"instances": [3]})


def test_an_unknown_rank_is_any_nesting() -> None:
    document = make(make_model("m", sign("float32", None)))
    assert is_admitted(document, "/v1/models/m:predict", {"instances": [[[1.0]]]})


def test_what_json_cannot_carry_is_left_out() -> None:
    half = make(make_model("m", sign("float16", (None,))))
    assert "/v1/models/m:predict" not in half["paths"]
    assert "/v1/models/m/metadata" in half["paths"]


def test_every_version_and_label_has_paths_of_its_own() -> None:
    one = sign("float32", (None, 1))
    versions = (ServedVersion(2, {"serving_default": one}), ServedVersion(1, {}))
    document = make(DescribedModel("m", {"stable": 2, "old": 0}, versions))
    predictions = {path for path in document["paths"] if ":" in path}
    assert predictions == {
        "/v1/models/m:predict",
        "/v1/models/m/versions/2:predict",
        "/v1/models/m/labels/stable:predict",
    }
    assert {"/v1/models/m/versions/1", "/v1/models/m/labels/old"} <= set(document["paths"])


def test_a_model_that_is_not_loaded_has_its_status_alone() -> None:
    paths = make(DescribedModel("m", {}, ()))["paths"]
    assert [path for path in paths if path.startswith("/v1/models/")] == ["/v1/models/m"]


def test_names_that_differ_in_what_components_may_not_have_are_told_apart() -> None:
    odd, even = sign("bool", (None,)), sign("string", (None,))
    document = make(make_model("a b", odd), make_model("a:b", even), make_model("größe", odd))
    assert is_admitted(document, "/v1/models/a%20b:predict", {"instances": [True]})
    assert is_admitted(document, "/v1/models/a%3Ab:predict", {"instances": ["x"]})
    assert not is_admitted(document, "/v1/models/a%3Ab:predict", {"instances": [True]})


def test_a_path_of_an_odd_name_is_one_that_the_server_answers(faces: Faces) -> None:
    paths = make(make_model("a b{c}%", *SIGNATURES.values()))["paths"]
    (path,) = [path for path in paths if path.endswith(":predict") and "versions" not in path]
    answer = faces.request("POST", path, b'{"instances": [1.0]}')
    assert b"Servable not found for request: Latest(a b{c}%)" in answer.body


def test_examples_of_the_document_are_answered(faces: Faces, document: dict[str, Any]) -> None:
    schema = document["components"]["schemas"]["m.3.PredictRequest"]
    examples = [example for one in schema["anyOf"] for example in one.get("examples", ())]
    names = {one.get("signature_name", "serving_default") for one in examples}
    assert {"serving_default", "two"} <= names
    for example in examples:
        assert is_admitted(document, "/v1/models/m:predict", example)
        if example.get("signature_name") not in ("fails", "crashes", "misreads"):
            body = json.dumps(example).encode()
            assert faces.request("POST", "/v1/models/m:predict", body).status == 200


def test_strict_compat_has_no_document() -> None:
    config = ServerConfig(strict_compat=True)
    with serve(OneModelManager(make_servable()), config) as faces:
        assert faces.request("GET", "/openapi.json").status == 404


def test_the_document_follows_what_is_served(tmp_path: Path, published_mlp: Path) -> None:
    shutil.copytree(published_mlp / "mlp" / "1", tmp_path / "mlp" / "1")
    (tmp_path / "tokens").write_text(TOKEN)
    config = write_config(tmp_path, describe_model("mlp", tmp_path / "mlp"))
    flags = (f"--model_config_file={config}", f"--auth_token_file={tmp_path / 'tokens'}")
    with ServerProcess(
        tmp_path, *flags, "--model_config_file_poll_wait_seconds=1", "--workers=2", rest=True
    ) as server:
        server.wait_until_ready()
        document = fetch(server.url, "/openapi.json", TOKEN)
        openapi_spec_validator.validate(document)
        assert document["security"] == [{"token": []}]
        assert document["paths"]["/readyz"]["get"]["security"] == []
        zeros = np.zeros((1, 784)).tolist()
        assert is_admitted(document, "/v1/models/mlp/versions/1:predict", {"instances": zeros})
        write_config(tmp_path, describe_model("other", tmp_path / "mlp"))
        server.wait_for(
            lambda: (
                "/v1/models/other:predict"
                in (paths := fetch(server.url, "/openapi.json", TOKEN)["paths"])
                and "/v1/models/mlp" not in paths
            )
        )


def test_schemathesis_finds_no_fault(tmp_path: Path, published_mlp: Path) -> None:
    shutil.copytree(published_mlp / "mlp" / "1", tmp_path / "mlp" / "1")
    flags = ("--model_name=mlp", f"--model_base_path={tmp_path / 'mlp'}", "--preload_signatures")
    with ServerProcess(tmp_path, *flags, rest=True, start_timeout_s=300) as server:
        server.wait_until_ready()
        done = subprocess.run(
            [
                SCHEMATHESIS,
                f"--config-file={ROOT / 'tests' / 'serving' / 'schemathesis.toml'}",
                *("run", f"{server.url}/openapi.json"),
                *("--phases=examples,coverage,fuzzing", "--max-examples=10", "--seed=1"),
                *("--generation-deterministic", "--no-shrink"),
                *("--request-timeout=120", "--no-color", "--continue-on-failure"),
            ],
            cwd=tmp_path,
            env=os.environ
            | {"PYTHONPATH": str(ROOT), "SCHEMATHESIS_HOOKS": "tests.serving.schemathesis_hooks"},
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
    assert done.returncode == 0, done.stdout[-10_000:] + done.stderr
