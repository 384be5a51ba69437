"""`clients score --server`: real servers, that are busy, go away and come back."""

from __future__ import annotations

import contextlib
import io
import json
import os
import select
import subprocess
import sys
import threading
from pathlib import Path

import grpc
import numpy as np
import psutil
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from clients import OnDevicePredictor
from clients.score.engines import TENSORFLOW, EngineChoice, OwnServerEngine, open_engine
from clients.score.output import find_parts
from contract.errors import Code, InternalError, PlumblineError, ResourceExhaustedError
from contract.signature import Array, Batch, Signature, TensorSpec
from contract.wire.plumbline_wire import example_pb2
from contract.wire.tfrecord import write_records
from tests.clients.grpc_servers import ModelServer
from tests.score.jobs import (
    ROOT,
    Absence,
    Score,
    is_noise,
    make_images,
    make_job,
    read_ids,
    write_images,
)
from tests.serving.server_process import ServerProcess

ROWS = 1000


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """A thousand rows in four row groups."""
    write_images(tmp_path / "in.parquet", ROWS, group=250)
    return tmp_path / "in.parquet"


def test_an_embedded_server_scores_and_litert_confirms(
    tmp_path: Path, version: Path, score: Score, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("--model_name=mlp", f"--model_base_path={version.parent}")
    with ServerProcess(tmp_path, *flags) as server:
        server.wait_until_ready()
        assert score("--server", server.address, "--model_name=mlp", "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert document["num_scored"] == ROWS
    assert document["sample"]["compared_with"] == ["LiteRT float32 in process"]
    assert read_ids(tmp_path / "out") == list(range(ROWS))


def test_two_servers_share_the_rows(tmp_path: Path, score: Score, server: ModelServer) -> None:
    write_images(tmp_path / "in.parquet", 10 * ROWS, group=ROWS)
    with ModelServer() as other:
        other.signatures, right = server.signatures, server.answer
        are_known = threading.Event()

        def answer(inputs: Batch) -> Batch:
            if server.batch_sizes and other.batch_sizes:
                are_known.set()
            are_known.wait(1)  # else one may answer all before the other is connected
            return right(inputs)

        server.answer = other.answer = answer
        assert score("--server", f"{server.address},{other.address}") == 0
        assert min(sum(one.batch_sizes) for one in (server, other)) > ROWS
    assert read_ids(tmp_path / "out") == list(range(10 * ROWS))


def test_a_server_that_goes_away_and_comes_back_costs_nothing(
    tmp_path: Path, score: Score, server: ModelServer
) -> None:
    absence = Absence(server)

    def come_back() -> None:
        if absence.has_begun.wait(60):
            threading.Event().wait(3)  # longer than the tries of one call
            absence.end()

    helper = threading.Thread(target=come_back)
    helper.start()
    assert score("--server", server.address) == 0
    helper.join()
    assert absence.has_begun.is_set()
    assert read_ids(tmp_path / "out") == list(range(ROWS))


def test_a_server_that_stays_away_ends_the_job_which_goes_on_later(
    tmp_path: Path,
    score: Score,
    server: ModelServer,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("clients.score.engines.PATIENCE_S", 0.5)
    absence = Absence(server, after_rows=600)
    assert score("--server", server.address) == 3
    said = capsys.readouterr().err
    assert server.address in said and "what is scored stays" in said
    parts = list((tmp_path / "out").rglob("part-*.parquet"))
    assert 0 < len(parts) < 4
    absence.end()
    assert score("--server", server.address, "--json") == 0
    assert json.loads(capsys.readouterr().out)["num_parts_before"] == len(parts)
    assert read_ids(tmp_path / "out") == list(range(ROWS))


def test_a_busy_servers_hints_are_heeded(tmp_path: Path, score: Score, server: ModelServer) -> None:
    right = server.answer
    refused = 0

    def answer(inputs: Batch) -> Batch:
        nonlocal refused
        if is_noise(inputs) and refused < 20:
            refused += 1
            raise ResourceExhaustedError("the queue is full", retry_after_s=0.05)
        return right(inputs)

    server.answer = answer
    assert score("--server", server.address) == 0
    assert refused == 20
    assert read_ids(tmp_path / "out") == list(range(ROWS))


def test_outputs_have_one_order_whatever_the_order_of_answers(tmp_path: Path, people: Path) -> None:
    names = [f"y{number}" for number in range(12)]
    columns = {"id": range(40), "x": [[1.0]] * 40}
    parquet.write_table(pa.table(columns), tmp_path / "in.parquet", row_group_size=10)
    with ModelServer() as server:
        inputs = {"x": TensorSpec("x", "float32", (None, 1))}
        outputs = {name: TensorSpec(name, "float32", (None, 1)) for name in reversed(names)}
        server.signatures = {"serving_default": Signature("serving_default", inputs, outputs)}
        server.answer = lambda inputs: dict.fromkeys(reversed(names), inputs["x"])
        choice = EngineChoice(kind="server", addresses=(server.address,), model_name="people")
        job = make_job(tmp_path / "in.parquet", tmp_path / "out", people, choice=choice)
        job.run()
    for part in find_parts(job.task.destination).values():
        assert parquet.read_schema(part).names == ["id", *sorted(names)]


class BusyServer(ModelServer):
    """Refuses calls, counted over all of them, after the first `num_free`."""

    def __init__(self, num_free: int, num_refused: int) -> None:
        super().__init__()
        self._num_free, self._num_left, self._guard = num_free, num_refused, threading.Lock()

    def serve(self, path: str, body: bytes, context: grpc.ServicerContext) -> bytes:
        with self._guard:
            self._num_free -= 1
            is_refused = self._num_free < 0 < self._num_left
            self._num_left -= is_refused
        if is_refused:
            context.abort(grpc.StatusCode.UNAVAILABLE, "the server restarts")
        return super().serve(path, body, context)

    @property
    def num_left(self) -> int:
        """Calls that it is still to refuse."""
        return self._num_left


@pytest.mark.parametrize("num_free", [1, 2, 3], ids=["metadata", "golden", "golden's rows"])
def test_a_worker_that_starts_waits_for_a_server(
    tmp_path: Path, score: Score, server: ModelServer, num_free: int
) -> None:
    with BusyServer(num_free, num_refused=8) as busy:  # more than one call's tries
        busy.signatures, busy.answer = server.signatures, server.answer
        assert score("--server", busy.address) == 0
        assert busy.num_left == 0
    assert read_ids(tmp_path / "out") == list(range(ROWS))


def test_a_server_that_is_busy_at_first_contact_is_told_at_once(
    score: Score, capsys: pytest.CaptureFixture[str]
) -> None:
    with BusyServer(0, num_refused=1000) as busy:
        assert score("--server", busy.address) == 3
        assert busy.num_left >= 990
    assert "the server restarts" in capsys.readouterr().err


def test_an_address_where_nobody_answers_is_told_at_once(
    score: Score, capsys: pytest.CaptureFixture[str]
) -> None:
    assert score("--server", "127.0.0.1:9") == 3
    assert "127.0.0.1:9" in capsys.readouterr().err


def test_rows_that_a_server_refuses_are_bad_rows(
    tmp_path: Path, score: Score, server: ModelServer, capsys: pytest.CaptureFixture[str]
) -> None:
    from contract.errors import RequestError

    right = server.answer

    def answer(inputs: Batch) -> Batch:
        (array,) = inputs.values()
        if is_noise(inputs) and (array.reshape(len(array), -1)[:, 0] == 7).any():
            raise RequestError("a pixel is 7")
        return right(inputs)

    server.answer = answer
    assert score("--server", server.address, "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert 0 < document["num_bad"] < 20
    assert document["num_scored"] + document["num_bad"] == ROWS
    assert document["sample"]["passed"]
    assert len(read_ids(tmp_path / "out")) == document["num_scored"]


@pytest.mark.parametrize("code", [Code.INTERNAL, Code.UNKNOWN, Code.OUT_OF_RANGE])
@pytest.mark.parametrize("group", [250, 1])
def test_rows_at_which_a_server_fails_are_bad_rows(
    tmp_path: Path,
    score: Score,
    server: ModelServer,
    capsys: pytest.CaptureFixture[str],
    code: Code,
    group: int,
) -> None:
    right, images = server.answer, write_images(tmp_path / "in.parquet", 20, group=group)

    def answer(inputs: Batch) -> Batch:
        (array,) = inputs.values()
        if (array.reshape(len(array), -1) == images[7]).all(axis=1).any():
            raise PlumblineError("index 12 is not in [0, 10)", code=code)
        return right(inputs)

    server.answer = answer
    assert score("--server", server.address, "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["num_scored"], document["num_bad"]) == (19, 1)
    assert read_ids(tmp_path / "out") == [row for row in range(20) if row != 7]
    (bad,) = (tmp_path / "out" / "_bad_rows").rglob("*.jsonl")
    assert "index 12 is not in" in bad.read_text()


@pytest.mark.parametrize("num_answered", [0, 300])
def test_a_server_that_fails_at_all_rows_costs_none(
    tmp_path: Path,
    score: Score,
    server: ModelServer,
    capsys: pytest.CaptureFixture[str],
    num_answered: int,
) -> None:
    right, asked = server.answer, 0

    def answer(inputs: Batch) -> Batch:
        nonlocal asked
        asked += len(next(iter(inputs.values()))) if is_noise(inputs) else 0
        if asked > num_answered:
            raise InternalError("out of memory")
        return right(inputs)

    server.answer = answer
    assert score("--server", server.address) != 0
    assert "out of memory" in capsys.readouterr().err
    server.answer = right
    assert score("--server", server.address) == 0
    assert read_ids(tmp_path / "out") == list(range(ROWS))


@pytest.mark.parametrize(
    ("allow", "num_bad"), [(["--allow_non_finite"], 0), ([], 1)], ids=["allowed", "refused"]
)
def test_a_server_is_sent_nan_where_it_is_allowed(
    tmp_path: Path,
    score: Score,
    server: ModelServer,
    capsys: pytest.CaptureFixture[str],
    allow: list[str],
    num_bad: int,
) -> None:
    rows = (make_images(20) / 255).astype(np.float32)
    rows[3, 5] = np.nan
    table = pa.table({"id": range(20), "x": pa.array(rows.tolist(), pa.list_(pa.float32()))})
    parquet.write_table(table, tmp_path / "in.parquet")
    assert score("--server", server.address, "--json", *allow) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["num_bad"], document["num_scored"]) == (num_bad, 20 - num_bad)
    assert document["sample"]["passed"]
    written = parquet.read_table(tmp_path / "out" / "version=1")
    assert written["id"].to_pylist() == [row for row in range(20) if row != 3 or not num_bad]


def test_a_server_and_an_engine_are_not_both_taken(
    score: Score, capsys: pytest.CaptureFixture[str]
) -> None:
    assert score("--server", "x:1", "--engine", "litert") == 2
    assert "--server or --engine" in capsys.readouterr().err


def test_tensorflow_scores_what_litert_lacks_and_judges_it(
    tmp_path: Path, version: Path, score: Score, capsys: pytest.CaptureFixture[str]
) -> None:
    records = []
    for number in range(6):
        example = example_pb2.Example()
        example.features.feature["id"].int64_list.value.append(number)
        example.features.feature["image/encoded"].bytes_list.value.append(make_png(number))
        records.append(example.SerializeToString())
    records[2] = b"\xff\xff"
    write_records(tmp_path / "in.tfrecord", records)
    source = tmp_path / "in.tfrecord"
    assert score("--signature_name=classify", "--json", source=source) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["num_scored"], document["num_bad"]) == (5, 1)
    assert document["sample"]["compared_with"] == ["TensorFlow on this machine"]
    assert document["sample"]["passed"] is True
    table = parquet.read_table(tmp_path / "out" / "version=1")
    assert table["id"].to_pylist() == [0, 1, 3, 4, 5]
    with OnDevicePredictor(version) as predictor:
        pixels = np.stack([make_pixels(number) for number in table["id"].to_pylist()])
        golden = predictor.predict(pixels, signature_name="serving_uint8")["probabilities"]
    np.testing.assert_allclose(table["scores"].to_pylist(), golden, atol=1e-5)


def test_rows_that_fit_only_what_litert_lacks_are_scored_by_tensorflow(
    tmp_path: Path, score: Score, capsys: pytest.CaptureFixture[str]
) -> None:
    records = []
    for number in range(6):
        example = example_pb2.Example()
        features = example.features.feature
        features["image/encoded"].bytes_list.value.append(make_png(number))
        features["thumbnail"].bytes_list.value.append(make_png(number))  # which one is it?
        records.append(example.SerializeToString())
    write_records(tmp_path / "in.tfrecord", records)
    assert score("--engine=litert", source=tmp_path / "in.tfrecord") == 2
    capsys.readouterr()
    assert score("--json", source=tmp_path / "in.tfrecord") == 0
    said = capsys.readouterr()
    document = json.loads(said.out)
    assert "signature classify, which LiteRT lacks" in said.err
    assert (document["signature_name"], document["num_scored"]) == ("classify", 6)
    assert document["sample"]["passed"] is True


def test_rows_that_fit_nothing_are_told_of_litert_and_start_no_tensorflow(
    tmp_path: Path, score: Score, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in.csv").write_text("id,text\n1,hello\n2,world\n")
    assert score(source=tmp_path / "in.csv") == 2
    said = capsys.readouterr().err
    assert "serving_default: images" in said and "TensorFlow" not in said


def test_a_server_beside_a_worker_takes_no_more_threads_than_it_is_given(version: Path) -> None:
    choice = EngineChoice(kind=TENSORFLOW, num_threads=1)
    with open_engine(version, choice) as engine:
        assert isinstance(engine, OwnServerEngine)
        pictures = np.array([make_png(number) for number in range(50)], object)
        engine.predict({"image_bytes": pictures}, signature_name="serving_image_bytes")
        names = []
        for process in psutil.Process(engine._process.pid).children(recursive=True):
            for thread in Path(f"/proc/{process.pid}/task").iterdir():
                with contextlib.suppress(OSError):  # it has ended
                    names.append((thread / "comm").read_text().strip())
    assert names.count("tf_Compute") == 1


def test_a_server_beside_a_worker_is_sent_nan(version: Path) -> None:
    rows = np.full((2, 784), np.nan, np.float32)
    with open_engine(version, EngineChoice(kind=TENSORFLOW)) as engine:
        outputs = engine.predict({"images": rows}, signature_name="serving_default")
    assert np.isnan(outputs["probabilities"]).all()


_OPENS_AND_WAITS = """
import sys
from pathlib import Path
from clients.score.engines import TENSORFLOW, EngineChoice, open_engine
engine = open_engine(Path(sys.argv[1]), EngineChoice(kind=TENSORFLOW))
print(engine._process.pid, engine._folder.name, flush=True)
sys.stdin.read()
"""


def test_a_worker_that_is_killed_leaves_no_server_and_no_folder(version: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", _OPENS_AND_WAITS, str(version)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as worker:
        assert worker.stdout is not None
        pid, folder = worker.stdout.readline().split()
        tether = psutil.Process(int(pid))
        left = [tether, *tether.children(recursive=True)]
        assert len(left) > 1 and Path(folder).is_dir()
        watched = [os.pidfd_open(one.pid) for one in left]
        worker.kill()
    for one in watched:
        assert select.select([one], [], [], 60)[0], "it runs on"
        os.close(one)
    assert not Path(folder).exists()


def make_pixels(number: int) -> Array:
    return np.random.default_rng(number).integers(0, 256, (28, 28), dtype=np.uint8)


def make_png(number: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(make_pixels(number)).save(file, "PNG")
    return file.getvalue()
