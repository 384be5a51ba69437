import gzip
import json
from collections.abc import Iterator

import pytest

from contract.wire.status_codes import ERROR_KEY
from serving.config.server import ServerConfig
from tests.serving.numpy_servables import OneModelManager, make_servable
from tests.serving.servers import Faces, serve

PREDICT = "/v1/models/m:predict"
BODY = b'{"instances": [1.0]}'
ANSWER = {"predictions": [2.0]}


@pytest.fixture(scope="module")
def faces() -> Iterator[Faces]:
    with serve(OneModelManager(make_servable())) as found:
        yield found


def read_error(faces: Faces, body: bytes, path: str = PREDICT) -> tuple[int, str]:
    answer = faces.request("POST", path, body)
    return answer.status, json.loads(answer.body)["error"]


def test_predict_is_laid_out_as_tensorflow_serving_lays_it_out(faces: Faces) -> None:
    answer = faces.request("POST", PREDICT, BODY)
    assert answer.status == 200
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.body == b'{\n    "predictions": [2.0\n    ]\n}'


def test_an_error_names_its_class_in_a_header(faces: Faces) -> None:
    answer = faces.request("POST", "/v1/models/n:predict", BODY)
    assert answer.status == 404
    assert answer.headers[ERROR_KEY] == "ServableNotFoundError"


def test_wrong_json_is_told_before_an_unknown_model(faces: Faces) -> None:
    status, text = read_error(faces, b"{", "/v1/models/n:predict")
    assert (status, text[:17]) == (400, "JSON Parse error:")


def test_gzip_bodies_are_inflated(faces: Faces) -> None:
    answer = faces.request("POST", PREDICT, gzip.compress(BODY), {"Content-Encoding": "gzip"})
    assert json.loads(answer.body) == ANSWER


@pytest.mark.parametrize("damaged", [b"no gzip", gzip.compress(BODY)[:-12]], ids=["none", "cut"])
def test_damaged_gzip_is_an_empty_body(faces: Faces, damaged: bytes) -> None:
    answer = faces.request("POST", PREDICT, damaged, {"Content-Encoding": "gzip"})
    assert json.loads(answer.body) == {"error": "JSON Parse error: The document is empty"}


def test_a_gzip_bomb_is_refused() -> None:
    config = ServerConfig(max_inflated_bytes=2**20)
    bomb = gzip.compress(b"[" * 2**26)
    with serve(OneModelManager(make_servable()), config) as faces:
        answer = faces.request("POST", PREDICT, bomb, {"Content-Encoding": "gzip"})
        assert answer.status == 429
        assert json.loads(faces.request("POST", PREDICT, BODY).body) == ANSWER


def test_bodies_beyond_the_limit_are_refused() -> None:
    with serve(OneModelManager(make_servable()), ServerConfig(max_json_bytes=1000)) as faces:
        answer = faces.request("POST", PREDICT, BODY + b" " * 1000)
        assert answer.status == 429
        assert "--max_json_bytes" in json.loads(answer.body)["error"]


def test_fifty_thousand_brackets_are_refused(faces: Faces) -> None:
    status, text = read_error(faces, b'{"instances": ' + b"[" * 50_000)
    assert status == 400
    assert "nested deeper than 64 levels" in text


def test_large_bodies_are_read_off_the_event_loop_and_answered_alike(faces: Faces) -> None:
    values = [float(number) for number in range(30_000)]
    answer = faces.request("POST", PREDICT, json.dumps({"instances": values}).encode())
    assert json.loads(answer.body)["predictions"] == [2 * value for value in values]


def test_a_crash_is_a_500_that_tells_nothing(faces: Faces) -> None:
    status, text = read_error(faces, b'{"signature_name": "crashes", "instances": [1.0]}')
    assert status == 500
    assert "secret" not in text


def test_long_texts_are_whole(faces: Faces) -> None:
    _, text = read_error(faces, b'{"signature_name": "fails", "instances": [1.0]}')
    assert text == "x" * 2000


def test_bytes_that_are_no_utf8_come_back(faces: Faces) -> None:
    body = b'{"signature_name": "echo", "instances": ["\xff"]}'
    assert b'"word": "\xff"' in faces.request("POST", PREDICT, body).body


def test_a_missing_input_with_a_default_cannot_be_left_out_of_rows(faces: Faces) -> None:
    status, text = read_error(faces, b'{"signature_name": "two", "instances": [{"a": 1.0}]}')
    assert status == 400
    assert text.endswith("keys must be equal to: a,b")


def test_classify_and_regress_take_examples(faces: Faces) -> None:
    body = b'{"signature_name": "%s", "examples": [{"f": "a"}]}'
    answer = faces.request("POST", "/v1/models/m:classify", body % b"classify")
    assert [pair[0] for pair in json.loads(answer.body)["results"][0]] == ["short", "long"]
    answer = faces.request("POST", "/v1/models/m:regress", body % b"regress")
    assert len(json.loads(answer.body)["results"]) == 1


@pytest.mark.parametrize(
    ("example", "text"),
    [
        ('{"f": null}', "Feature: f has element with unexpected JSON type: Null"),
        ('{"f": [[1]]}', "Feature: f has element with unexpected JSON type: Array"),
        ('{"f": [1, 1.5]}', "Unexpected element type in feature: f expecting type: int64"),
        ('{"f": [1.5, "a"]}', "Unexpected element type in feature: f expecting type: float"),
        (
            '{"f": 9223372036854775808}',
            "Feature: f has uint64_t element. Only int64_t is supported.",
        ),
        ('{"f": {"b64": "*"}}', "Unable to base64 decode"),
        ("[]", "Example must be JSON object but got JSON Array"),
    ],
)
def test_examples_that_cannot_be_are_told(faces: Faces, example: str, text: str) -> None:
    body = f'{{"signature_name": "classify", "examples": [{example}]}}'
    assert read_error(faces, body.encode(), "/v1/models/m:classify") == (400, text)


@pytest.mark.parametrize(
    ("method", "path", "text"),
    [
        ("HEAD", PREDICT, None),
        ("DELETE", PREDICT, f"Malformed request: DELETE {PREDICT}"),
        ("POST", f"{PREDICT}#x", f"Malformed request: POST {PREDICT}#x"),
        ("GET", "/v1/models/", "Malformed request: GET /v1/models/"),
        ("GET", "/v1/models/m/versions/x", "Malformed request: GET /v1/models/m/versions/x"),
        (
            "POST",
            "/v1/models/m/versions/1/labels/a:predict",
            "Malformed request: POST /v1/models/m/versions/1/labels/a:predict",
        ),
    ],
)
def test_malformed_paths_are_quoted(faces: Faces, method: str, path: str, text: str | None) -> None:
    answer = faces.request(method, path)
    assert answer.status == 400
    assert answer.body == b"" if text is None else json.loads(answer.body) == {"error": text}


@pytest.mark.parametrize("path", ["/v1/models/%2e%2e:predict", "/v1/models/..%2fm:predict"])
def test_path_tricks_are_names_of_no_model(faces: Faces, path: str) -> None:
    assert faces.request("POST", path, BODY).status == 404


def test_a_name_that_is_no_utf8_is_told_as_it_came(faces: Faces) -> None:
    answer = faces.request("POST", "/v1/models/%ff:predict", BODY)
    assert answer.status == 404
    assert b"Latest(\xff)" in answer.body


def test_methods_that_http_servers_leave_out_are_not_implemented(faces: Faces) -> None:
    assert faces.request("TRACE", PREDICT).status == 501


@pytest.mark.parametrize("path", ["/v1/models/%zz:predict", "/v1/models/a{b}", "/x|y"])
def test_paths_that_are_no_uris_are_bad_requests(faces: Faces, path: str) -> None:
    answer = faces.request("POST", path, BODY)
    assert (answer.status, answer.headers["Content-Type"]) == (400, "text/html")
    assert b"<H1>Bad Request</H1>" in answer.body


def test_a_preflight_wants_an_origin(faces: Faces) -> None:
    assert faces.request("OPTIONS", PREDICT).status == 400
    assert faces.request("OPTIONS", PREDICT, headers={"Origin": "http://a.org"}).status == 200


def test_cors_headers_come_with_the_flag() -> None:
    config = ServerConfig(rest_api_enable_cors_support=True)
    with serve(OneModelManager(make_servable()), config) as faces:
        for method, body in (("POST", BODY), ("OPTIONS", None)):
            headers = faces.request(method, PREDICT, body, {"Origin": "http://a.org"}).headers
            assert headers["Access-Control-Allow-Origin"] == "*"
            assert headers["Access-Control-Allow-Methods"] == "POST, GET"


def test_metadata_and_status_name_the_version(faces: Faces) -> None:
    metadata = json.loads(faces.request("GET", "/v1/models/m/metadata").body)
    assert metadata["model_spec"] == {"name": "m", "signature_name": "", "version": "3"}
    status = json.loads(faces.request("GET", "/v1/models/m").body)
    assert status["model_version_status"][0]["state"] == "AVAILABLE"
