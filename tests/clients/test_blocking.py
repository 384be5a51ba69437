"""PredictionClient against a real gRPC server."""

from __future__ import annotations

import math
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clients import (
    Checks,
    Classification,
    ConnectionOptions,
    PredictionClient,
    RetryPolicy,
    Timeouts,
)
from contract import errors
from contract.errors import Code
from contract.servable import VersionState
from contract.signature import Batch, TensorSpec
from tests.clients.grpc_servers import ModelServer, answer_sums, make_signature

ROWS = np.arange(12, dtype=np.float32).reshape(3, 4)
SUMS = answer_sums({"x": ROWS})["y"]


@pytest.fixture
def server() -> Iterator[ModelServer]:
    with ModelServer() as running:
        yield running


@pytest.fixture
def client(server: ModelServer) -> Iterator[PredictionClient]:
    with PredictionClient(server.address, model_name="m") as opened:
        yield opened


def test_a_mapping_is_answered(client: PredictionClient) -> None:
    np.testing.assert_array_equal(client.predict({"x": ROWS})["y"], SUMS)


def test_one_array_stands_for_the_only_input(client: PredictionClient) -> None:
    np.testing.assert_array_equal(client.predict(ROWS)["y"], SUMS)


def test_a_list_takes_the_dtype_of_the_signature(client: PredictionClient) -> None:
    np.testing.assert_array_equal(client.predict(ROWS.tolist())["y"], SUMS)


def test_an_answer_may_be_written_to(client: PredictionClient) -> None:
    client.predict(ROWS)["y"][0, 0] = 7


def test_what_is_asked_for_reaches_the_server(
    server: ModelServer, client: PredictionClient
) -> None:
    server.signatures["other"] = make_signature("other")
    client.predict(ROWS, signature_name="other", version=1)
    client.predict(ROWS, version_label="stable")
    assert (server.specs[0].version, server.specs[0].signature_name) == (1, "other")
    assert server.specs[1].version_label == "stable"


def test_a_version_and_a_label_at_once_are_refused(client: PredictionClient) -> None:
    with pytest.raises(errors.RequestError, match="give one of them"):
        client.predict(ROWS, version=1, version_label="stable")


def test_an_output_filter_keeps_the_others_away(
    server: ModelServer, client: PredictionClient
) -> None:
    outputs = {name: TensorSpec(name, "float32", (None, 2)) for name in ("y", "z")}
    server.signatures["serving_default"] = make_signature(outputs=outputs)
    server.answer = lambda batch: {**answer_sums(batch), "z": answer_sums(batch)["y"]}
    assert list(client.predict(ROWS, output_filter=["z"])) == ["z"]
    assert set(client.predict(ROWS)) == {"y", "z"}


def test_signatures_are_fetched_once(server: ModelServer, client: PredictionClient) -> None:
    for _ in range(3):
        client.predict(ROWS)
    assert server.calls == {"GetModelMetadata": 1, "Predict": 3}


def test_signatures_are_fetched_anew_when_the_version_changes(
    server: ModelServer, client: PredictionClient
) -> None:
    client.predict(ROWS)
    server.version = 2
    server.signatures["serving_default"] = make_signature(
        outputs={"z": TensorSpec("z", "float32", (None, 2))}
    )
    server.answer = lambda batch: {"z": answer_sums(batch)["y"]}
    assert set(client.predict(ROWS)) == {"z"}
    client.predict(ROWS)
    assert server.calls["GetModelMetadata"] == 2


def test_replicas_of_two_versions_cost_one_fetch_each(
    server: ModelServer, client: PredictionClient
) -> None:
    for number in range(8):
        server.version = 1 + number % 2
        client.predict(ROWS)
    assert server.calls["GetModelMetadata"] == 2


def test_a_batch_that_fits_no_more_or_not_yet_is_held_to_fresh_signatures(
    server: ModelServer, client: PredictionClient
) -> None:
    client.predict(ROWS)
    client._operations._cache._clock = lambda: 1e12  # a while later
    server.version = 2
    server.signatures["serving_default"] = make_signature(
        inputs={"x": TensorSpec("x", "float32", (None, 3))}
    )
    np.testing.assert_array_equal(client.predict(ROWS[:, :3])["y"][:, 1], ROWS[:, 0])


@pytest.mark.parametrize(
    ("batch", "told"),
    [
        (
            ROWS.astype(np.uint8),
            "got uint8 (3, 4), `x` of signature 'serving_default' wants float32",
        ),
        (ROWS.astype(np.float64), "convert with .astype('float32')"),
        (ROWS[0], "add a batch axis with array[None]"),
        (ROWS.reshape(3, 2, 2), "reshape to (3, 4)"),
        ({"X": ROWS}, "missing x; not wanted X"),
        ({"x": ROWS, "z": ROWS}, "not wanted z"),
        (ROWS * np.nan, "row 0 of `x` holds NaN or infinity"),
        (np.where(np.eye(3, 4) + ROWS * 0 > 0, np.inf, ROWS), "holds NaN or infinity"),
        ([["a", "b", "c", "d"]], "`x` wants float32 (batch, 4)"),
    ],
)
def test_a_batch_that_does_not_fit_is_refused_before_it_is_sent(
    server: ModelServer, client: PredictionClient, batch: Any, told: str
) -> None:
    if isinstance(batch, np.ndarray) and "NaN" in told:
        batch = batch.astype(np.float32)
    with pytest.raises(errors.TensorMismatchError) as caught:
        client.predict(batch)
    assert told in caught.value.message
    assert "Predict" not in server.calls


def test_large_finite_numbers_are_no_infinities(
    server: ModelServer, client: PredictionClient
) -> None:
    server.answer = lambda batch: {"y": batch["x"][:, :2].copy()}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert client.predict(np.full((2, 4), 3e38, np.float32))["y"][0, 0] > 2e38


def test_non_finite_values_pass_when_allowed(server: ModelServer) -> None:
    checks = Checks(allow_non_finite=True)
    with PredictionClient(server.address, model_name="m", checks=checks) as client:
        assert np.isnan(client.predict(ROWS * np.float32(np.nan))["y"]).all()


def test_without_checks_no_signature_is_fetched(server: ModelServer) -> None:
    checks = Checks(batch=False)
    with PredictionClient(server.address, model_name="m", checks=checks) as client:
        np.testing.assert_array_equal(client.predict({"x": ROWS})["y"], SUMS)
        assert "GetModelMetadata" not in server.calls


def test_an_unknown_signature_lists_those_there_are(client: PredictionClient) -> None:
    with pytest.raises(errors.SignatureNotFoundError, match="has serving_default"):
        client.predict(ROWS, signature_name="nope")


def test_the_servers_own_error_class_is_raised(
    server: ModelServer, client: PredictionClient
) -> None:
    def refuse(_: Batch) -> None:
        raise errors.SignatureNotFoundError("gone", code=Code.INVALID_ARGUMENT)

    server.answer = refuse
    with pytest.raises(errors.SignatureNotFoundError, match="gone") as caught:
        client.predict(ROWS)
    assert caught.value.code is Code.INVALID_ARGUMENT


@pytest.mark.parametrize(
    ("code", "text", "kind"),
    [
        (Code.NOT_FOUND, "Servable not found for request: Latest(m)", errors.ServableNotFoundError),
        (
            Code.FAILED_PRECONDITION,
            'Serving signature key "nope" not found.',
            errors.SignatureNotFoundError,
        ),
        (Code.INVALID_ARGUMENT, "input size does not match signature", errors.TensorMismatchError),
        (Code.UNAUTHENTICATED, "who are you", errors.UnauthenticatedError),
        (Code.PERMISSION_DENIED, "no", errors.PermissionDeniedError),
        (Code.UNIMPLEMENTED, "no such method", errors.UnimplementedError),
    ],
)
def test_tensorflow_servings_codes_and_texts_become_errors_of_the_tree(
    server: ModelServer,
    client: PredictionClient,
    code: Code,
    text: str,
    kind: type[errors.PlumblineError],
) -> None:
    def refuse(_: Batch) -> None:
        raise errors.PlumblineError(text, code=code)

    server.answer, server.trailing = refuse, False
    with pytest.raises(kind) as caught:
        client.predict(ROWS)
    assert (caught.value.message, caught.value.code) == (text, code)


def test_what_is_safe_to_repeat_is_repeated(server: ModelServer, client: PredictionClient) -> None:
    failures = iter([Code.UNAVAILABLE, Code.RESOURCE_EXHAUSTED, Code.ABORTED])

    def stumble(batch: Batch) -> Batch:
        for code in failures:
            raise errors.PlumblineError("not now", code=code)
        return answer_sums(batch)

    server.answer = stumble
    np.testing.assert_array_equal(client.predict(ROWS)["y"], SUMS)
    assert server.calls["Predict"] == 4


@pytest.mark.parametrize("code", [Code.INVALID_ARGUMENT, Code.INTERNAL, Code.NOT_FOUND])
def test_what_repeating_cannot_help_is_not_repeated(
    server: ModelServer, client: PredictionClient, code: Code
) -> None:
    def refuse(_: Batch) -> None:
        raise errors.PlumblineError("never", code=code)

    server.answer = refuse
    with pytest.raises(errors.PlumblineError, match="never"):
        client.predict(ROWS)
    assert server.calls["Predict"] == 1


def refuse_times(number: int, error: errors.PlumblineError) -> Callable[[Batch], Batch]:
    """Answers after so many refusals."""
    left = [error] * number

    def answer(batch: Batch) -> Batch:
        if left:
            raise left.pop()
        return answer_sums(batch)

    return answer


def test_a_server_that_says_when_to_come_back_is_believed(
    server: ModelServer, client: PredictionClient
) -> None:
    server.answer = refuse_times(2, errors.ResourceExhaustedError("full", retry_after_s=0.25))
    start = time.monotonic()
    np.testing.assert_array_equal(client.predict(ROWS)["y"], SUMS)
    assert time.monotonic() - start >= 0.5
    assert server.calls["Predict"] == 3


def test_nobody_waits_for_a_server_beyond_the_deadline(
    server: ModelServer, client: PredictionClient
) -> None:
    server.answer = refuse_times(9, errors.ResourceExhaustedError("full", retry_after_s=3600.0))
    with pytest.raises(errors.ResourceExhaustedError, match="full"):
        client.predict(ROWS, timeout_s=5.0)
    assert server.calls["Predict"] == 1


def test_a_server_that_says_never_is_not_asked_again(
    server: ModelServer, client: PredictionClient
) -> None:
    server.answer = refuse_times(1, errors.ResourceExhaustedError("full", retry_after_s=math.inf))
    with pytest.raises(errors.ResourceExhaustedError, match="full") as caught:
        client.predict(ROWS)
    assert caught.value.retry_after_s == math.inf
    assert server.calls["Predict"] == 1


def test_a_call_is_made_max_attempts_times_at_most(server: ModelServer) -> None:
    def refuse(_: Batch) -> None:
        raise errors.ServableUnavailableError("loading")

    server.answer = refuse
    retry = RetryPolicy(max_attempts=3, initial_backoff_s=0.01)
    with (
        PredictionClient(server.address, model_name="m", retry=retry) as client,
        pytest.raises(errors.ServableUnavailableError, match="loading"),
    ):
        client.predict(ROWS)
    assert server.calls["Predict"] == 3


def test_a_client_can_be_shared_by_threads(client: PredictionClient) -> None:
    wrong: list[int] = []

    def ask(number: int) -> None:
        for _ in range(20):
            rows = ROWS + np.float32(number)
            if not np.array_equal(client.predict(rows)["y"], answer_sums({"x": rows})["y"]):
                wrong.append(number)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_message_of_more_than_4_mib_comes_and_goes(
    server: ModelServer, client: PredictionClient
) -> None:
    wide = {"x": TensorSpec("x", "float32", (None, 4))}
    server.signatures["serving_default"] = make_signature(
        inputs=wide, outputs={"y": TensorSpec("y", "float32", (None, 4))}
    )
    server.answer = lambda batch: {"y": batch["x"]}
    rows = np.ones((400_000, 4), np.float32)
    np.testing.assert_array_equal(client.predict(rows)["y"], rows)


def test_classify_gives_labels_and_scores(client: PredictionClient) -> None:
    found = client.classify([{"x": 2.0}, {"x": [4.0]}], context={"offset": 1.0})
    assert found == [
        [Classification("low", 2.0), Classification("high", 3.0)],
        [Classification("low", 4.0), Classification("high", 5.0)],
    ]


def test_classify_takes_columns(client: PredictionClient) -> None:
    rows = client.classify({"x": np.array([1.5, 2.5])})
    assert [row[0].score for row in rows] == [1.5, 2.5]


def test_regress_takes_features_of_every_kind(client: PredictionClient) -> None:
    values = client.regress([{"x": 0.5, "n": np.int32(2), "s": [b"ab\0", "é"]}, {"n": True}])
    np.testing.assert_array_equal(values, np.float32([7.5, 1.0]))


@pytest.mark.parametrize("examples", [[], {}, {"x": [1.0], "n": [1, 2]}, [{"x": object()}], ["x"]])
def test_examples_that_are_none_are_refused(client: PredictionClient, examples: Any) -> None:
    with pytest.raises(errors.TensorMismatchError):
        client.classify(examples)


def test_metadata_tells_the_version_and_its_signatures(
    server: ModelServer, client: PredictionClient
) -> None:
    found = client.metadata()
    assert (found.name, found.version) == ("m", 1)
    assert found.signatures == server.signatures | {
        "serving_default": make_signature(method_name="tensorflow/serving/predict")
    }


def test_status_tells_the_states(client: PredictionClient) -> None:
    (row,) = client.status()
    assert (row.version, row.state, row.error_code) == (1, VersionState.AVAILABLE, Code.OK)


def test_waiting_ends_when_a_server_has_come_up_and_loaded() -> None:
    def come_up() -> None:
        server.start()
        while server.calls.get("GetModelStatus", 0) < 2:
            threading.Event().wait(0.01)
        server.state = 30

    with ModelServer() as server, PredictionClient(server.address, model_name="m") as client:
        server.stop()
        server.state = 20
        helper = threading.Thread(target=come_up)
        helper.start()
        try:
            assert client.wait_until_available(timeout_s=20).version == 1
        finally:
            helper.join()


def test_waiting_for_a_version_that_failed_ends_at_once(
    server: ModelServer, client: PredictionClient
) -> None:
    server.state = 50
    with pytest.raises(errors.ServableUnavailableError, match="variables are missing"):
        client.wait_until_available(timeout_s=20)


def test_waiting_in_vain_says_what_was_seen_last(
    server: ModelServer, client: PredictionClient
) -> None:
    server.state = 20
    client.status()  # connects, so that all of the time is for asking
    with pytest.raises(errors.DeadlineExceededError, match="version 1: LOADING"):
        client.wait_until_available(timeout_s=1)


def test_nobody_there_is_told_within_the_attempts() -> None:
    with (
        PredictionClient("127.0.0.1:1", model_name="m") as client,
        pytest.raises(errors.ServableUnavailableError, match=r"127.0.0.1:1: nobody answers"),
    ):
        client.predict(ROWS)


def test_a_token_goes_with_every_call(server: ModelServer) -> None:
    tokens = iter(["one", "two", "three"])
    connection = ConnectionOptions(token=lambda: next(tokens))
    with PredictionClient(server.address, model_name="m", connection=connection) as client:
        client.predict(ROWS)
    assert [row["authorization"] for row in server.metadata] == ["Bearer one", "Bearer two"]
    assert "secret" not in repr(ConnectionOptions(token="secret"))


def test_a_unix_socket_is_an_address(tmp_path: Path) -> None:
    with (
        ModelServer(address=f"unix:{tmp_path}/s") as server,
        PredictionClient(server.address, model_name="m") as client,
    ):
        np.testing.assert_array_equal(client.predict(ROWS)["y"], SUMS)


def test_requests_can_be_compressed(server: ModelServer) -> None:
    connection = ConnectionOptions(compression="gzip")
    with PredictionClient(server.address, model_name="m", connection=connection) as client:
        np.testing.assert_array_equal(client.predict(ROWS)["y"], SUMS)


@pytest.mark.parametrize("timeout_s", [0, -1.0])
def test_a_timeout_that_cannot_be_is_a_config_error(
    client: PredictionClient, timeout_s: float
) -> None:
    with pytest.raises(errors.ConfigError):
        client.predict(ROWS, timeout_s=timeout_s)
    with pytest.raises(errors.ConfigError):
        client.predict_many(ROWS, timeout_s=timeout_s)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Timeouts(predict_s=0),
        lambda: RetryPolicy(max_attempts=0),
        lambda: PredictionClient("", model_name="m"),
        lambda: PredictionClient("http://localhost:8500", model_name="m"),
        lambda: PredictionClient("localhost:port", model_name="m"),
        lambda: PredictionClient("unix:/a,localhost:1", model_name="m"),
        lambda: PredictionClient("a.invalid:1,b.invalid:1", model_name="m"),
    ],
)
def test_settings_that_cannot_be_are_config_errors(make: Any) -> None:
    with pytest.raises(errors.ConfigError):
        make()
