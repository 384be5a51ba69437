import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract.servable import ModelSpec
from serving.rest.paths import EmptyAnswer, Target, is_api_path, is_valid_path, parse_path


@pytest.mark.parametrize(
    ("method", "path", "target"),
    [
        ("POST", "/v1/models/m:predict", Target(ModelSpec("m"), "predict")),
        ("POST", "/V1/MODELS/m:predict", Target(ModelSpec("m"), "predict")),
        ("POST", "/v1/models/m/versions/007:classify", Target(ModelSpec("m", 7), "classify")),
        (
            "POST",
            "/v1/models/m/labels/a%20b:regress",
            Target(ModelSpec("m", None, "a b"), "regress"),
        ),
        ("POST", "/v1/models/%zz:predict", Target(ModelSpec("%zz"), "predict")),
        ("GET", "/v1/models", Target(ModelSpec(""), "")),
        ("GET", "/v1/models/m", Target(ModelSpec("m"), "")),
        ("GET", "/v1/models/metadata", Target(ModelSpec("metadata"), "")),
        (
            "GET",
            "/v1/models/m/versions/9223372036854775807/metadata",
            Target(ModelSpec("m", 2**63 - 1), "metadata"),
        ),
        ("GET", "/v1/models/m:predict", None),
        ("PUT", "/v1/models/m:predict", None),
        ("POST", "/v1/models/m:predict?x", None),
        ("POST", "/v1/models/m/:predict", None),
    ],
)
def test_paths_are_read_as_tensorflow_serving_reads_them(
    method: str, path: str, target: Target | None
) -> None:
    assert parse_path(method, path) == target


def test_a_version_beyond_64_bits_has_an_empty_answer() -> None:
    with pytest.raises(EmptyAnswer):
        parse_path("POST", f"/v1/models/m/versions/{2**63}:predict")


def test_only_paths_below_v1_are_the_api() -> None:
    assert is_api_path("/v1/")
    assert not is_api_path("/v1")
    assert not is_api_path("/v2/models/m")


@given(st.sampled_from(["GET", "POST"]), st.text())
def test_any_path_is_read_or_refused(method: str, rest: str) -> None:
    with contextlib.suppress(EmptyAnswer):
        parse_path(method, f"/v1/models/{rest}")


@pytest.mark.parametrize(
    "path", ["/v1/models/m:predict?a=?#b", "/v1/models/%C3%A9", "/", "/~a,b@c"]
)
def test_paths_of_allowed_characters_are_valid(path: str) -> None:
    assert is_valid_path(path)


@pytest.mark.parametrize("path", ["/v1/models/%zz", "/a%", "/a{b}", "/a|b", '/a"b', "/é", "/a#b#c"])
def test_paths_that_libevent_refuses_are_not_valid(path: str) -> None:
    assert not is_valid_path(path)
