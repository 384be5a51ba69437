"""`clients score` as people see it: its words, its exit codes, its addresses."""

from __future__ import annotations

import functools
import http.server
import json
import socket
import sys
import threading
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pytest
from packaging.requirements import Requirement
from PIL import Image
from pyarrow import parquet

from clients import OnDevicePredictor
from clients.cli import main
from clients.commands.score import BATCH
from clients.score.engines import NEEDS_OF_TENSORFLOW
from contract.console.extras import advise_extra
from contract.signature import Batch, Signature, TensorSpec
from tests.clients.grpc_servers import ModelServer
from tests.score.jobs import COLUMNS, ROOT, make_images, make_training_rows, score, write_images
from tests.terminals import run_in_terminal


def write_people(
    path: Path, *, older: float = 0.0, share_missing: float = 0.1, color: str = ""
) -> Path:
    """Two thousand people, spread as in training but for what is said."""
    ages, blue, _ = make_training_rows(seed=1).T.astype(np.float64)
    colors = np.where(blue > 0, "blue", "red").astype(object)
    rng = np.random.default_rng(2)
    present = ages != 30
    ages = np.where(present, ages, rng.normal(40, 10, len(ages))) + older
    if color:
        colors[rng.random(len(ages)) < 0.2] = color
    missing = rng.random(len(ages)) < share_missing
    table = {"id": range(len(ages)), "age": pa.array(ages, mask=missing), "color": colors.tolist()}
    parquet.write_table(pa.table(table), path)
    return path


# What it says ----------------------------------------------------------------------------


def test_a_terminal_of_eighty_columns_shows_all_of_it(tmp_path: Path, people: Path) -> None:
    write_people(tmp_path / "in.parquet", older=20, share_missing=0.5, color="green")
    arguments = ["in.parquet", "out", "--version_dir", str(people)]
    seen = run_in_terminal([sys.executable, "-m", "clients", "score", *arguments], cwd=tmp_path)
    assert seen.returncode == 0
    assert max(map(len, seen.lines)) <= 80
    text = " ".join(seen.text.split())
    rows = [line.split() for line in seen.lines]
    assert [
        "rows",
        "scored",
        "bad",
        "parts",
        "from",
        "before",
        "seconds",
        "rows/s",
        "unsure",
    ] in rows
    assert ["2,000", "2,000", "0", "1", "0"] in [row[:5] for row in rows]
    assert "Drift: " in text and "Verdict: 512 rows of a sample of OUT agree with LiteRT" in text


def test_json_alone_goes_to_stdout(
    tmp_path: Path, people: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    write_people(tmp_path / "in.parquet")
    assert score(tmp_path / "in.parquet", tmp_path / "out", people, "--json") == 0
    document = json.loads(capfd.readouterr().out)
    assert (document["num_rows"], document["num_scored"], document["num_bad"]) == (2000, 2000, 0)
    assert document["sample"]["passed"] is True
    assert document["model_name"] == "people"


# Drift -----------------------------------------------------------------------------------


def list_moved(
    source: Path, tmp_path: Path, version: Path, capsys: pytest.CaptureFixture[str]
) -> set[str]:
    capsys.readouterr()
    assert score(source, tmp_path / f"out-{source.stem}", version, "--json") == 0
    drift = json.loads(capsys.readouterr().out)["drift"]
    assert drift
    return {one["column"] for one in drift if one["has_moved"]}


def test_drift_names_what_has_moved_and_nothing_else(
    tmp_path: Path, people: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = {
        name: list_moved(
            write_people(tmp_path / f"{name}.parquet", **how), tmp_path, people, capsys
        )  # type: ignore[arg-type]
        for name, how in {
            "same": {},
            "older": {"older": 10.0},
            "missing": {"share_missing": 0.15},
            "unseen": {"color": "green"},
        }.items()
    }
    assert found == {
        "same": set(),
        "older": {"age"},
        "missing": {"age"},
        "unseen": {"color=blue"},
    }
    assert "color=blue" in COLUMNS


def test_missing_values_are_no_news_to_a_model_that_was_trained_with_them(
    tmp_path: Path, people: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_people(tmp_path / "x.parquet", share_missing=0.1)
    capsys.readouterr()
    assert score(source, tmp_path / "out", people, "--json") == 0
    (age,) = (one for one in json.loads(capsys.readouterr().out)["drift"] if one["column"] == "age")
    assert age["was_missing"] == 0.1 and age["missing"] == pytest.approx(0.1, abs=0.02)
    assert not age["has_moved"]


def test_nan_is_a_missing_value_where_those_are_filled(
    tmp_path: Path, people: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = parquet.read_table(write_people(tmp_path / "x.parquet", share_missing=0.3))
    ages = table["age"].to_numpy()
    assert np.isnan(ages).any()
    parquet.write_table(table.set_column(1, "age", pa.array(ages)), tmp_path / "x.parquet")
    assert list_moved(tmp_path / "x.parquet", tmp_path, people, capsys) == {"age"}


def test_dark_pictures_have_moved(
    tmp_path: Path, digits: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_images(tmp_path / "noise.parquet", 300)
    moved = list_moved(tmp_path / "noise.parquet", tmp_path, digits, capsys)
    assert moved == {"mean", "spread"}


def test_the_summary_names_drift_in_a_table(
    tmp_path: Path, people: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert score(write_people(tmp_path / "x.parquet", older=20), tmp_path / "out", people) == 0
    text = capsys.readouterr().out
    assert "Drift: 1 of 3 columns and measures have moved" in text
    assert [line.split()[1] for line in text.splitlines() if line.startswith("–")] == ["age"]


# Remarks ---------------------------------------------------------------------------------


def write_encoded(path: Path, names: tuple[str, ...] = COLUMNS) -> Path:
    """Rows that are encoded already, in columns of these names."""
    numbers = dict(zip(names, make_training_rows(seed=1).T, strict=True))
    parquet.write_table(pa.table({"id": range(2000), **numbers}), path)
    return path


def list_order_remarks(said: str) -> list[str]:
    return [line for line in said.splitlines() if "another place" in line]


@pytest.mark.parametrize(
    ("mapped", "remarked"),
    [
        ("color=red,color=blue,age", "2 of 3 stand at another place than in training (number 1 is"),
        ("age,color=red,color=blue", "(number 2 is color=red, and was color=blue)"),
        ("age,color=blue,color=red", ""),
        ("", ""),
    ],
)
def test_columns_in_another_order_than_in_training_are_remarked_once(
    mapped: str, remarked: str, tmp_path: Path, people: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_encoded(tmp_path / "in.parquet")
    arguments = [f"--map=x={mapped}"] if mapped else []
    assert score(source, tmp_path / "out", people, *arguments) == 0
    found = list_order_remarks(capsys.readouterr().err)
    assert len(found) == bool(remarked)
    assert all(remarked in one and "without --map" in one for one in found)


def test_columns_of_other_names_are_remarked_where_one_of_training_has_moved(
    tmp_path: Path, people: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_encoded(tmp_path / "in.parquet", ("color=red", "blue", "age"))
    arguments = ["--map=x=color=red,blue,age"]
    assert score(source, tmp_path / "out", people, *arguments) == 0
    (found,) = list_order_remarks(capsys.readouterr().err)
    assert "training had age, color=blue, color=red: say which is which with --map" in found
    source = write_encoded(tmp_path / "other.parquet", ("a", "b", "c"))
    assert score(source, tmp_path / "out2", people, "--map=x=a,b,c") == 0
    assert not list_order_remarks(capsys.readouterr().err)


# Refusals --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--keys=nobody"], "--keys names nobody; the columns are id, age, color"),
        (["--map=x=nobody"], "--map names nobody"),
        (["--map=wrong=age,id,id"], "--map names wrong; the inputs are serving_default: x"),
        (["--map=x"], "give INPUT=COLUMN"),
        (["--map=x=id"], "of column id: got"),
        (["--outputs=nobody"], "--outputs names nobody; signature 'serving_default' has total"),
        (["--signature_name=nobody"], "nobody"),
        (["--variant=int8"], "int8"),
        (["--server=a b"], "a b"),
        (["--server=x:1", "--variant=int8"], "without --server"),
        (["--server=x:1", "--engine=litert"], "--server or --engine"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence_before_anything_is_written(
    tmp_path: Path,
    people: Path,
    arguments: list[str],
    words: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_people(tmp_path / "in.parquet")
    assert score(tmp_path / "in.parquet", tmp_path / "out", people, *arguments) in (1, 2, 3)
    said = capsys.readouterr().err
    assert words in said and "Traceback" not in said
    assert not list((tmp_path / "out").rglob("part-*"))


def test_hundreds_of_columns_are_not_all_named_but_what_to_do_is(
    tmp_path: Path, digits: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pixels = make_images(20)
    table = {"id": range(20), "label": [7] * 20}
    table |= {f"p{place}": pixels[:, place] for place in range(784)}
    parquet.write_table(pa.table(table), tmp_path / "in.parquet")
    assert score(tmp_path / "in.parquet", tmp_path / "out", digits) == 2
    said = capsys.readouterr().err
    assert "id, label, p0, p1, p2, p3, p4, p5 and 778 more" in said and "p6" not in said
    assert "a row has 784 values, and 786 columns are numbers" in said and "--keys" in said
    assert score(tmp_path / "in.parquet", tmp_path / "out", digits, "--keys=id,label") == 0
    found = parquet.read_table(tmp_path / "out" / "version=1").sort_by("id")
    assert found.column_names[:2] == ["id", "label"]
    with OnDevicePredictor(digits) as predictor:
        batch = pixels.reshape(-1, 28, 28)
        golden = predictor.predict(batch, signature_name="serving_uint8")["probabilities"]
    np.testing.assert_allclose(found["probabilities"].to_pylist(), golden, atol=1e-5)


def test_a_column_of_training_that_is_not_there_is_named(
    tmp_path: Path, people: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parquet.write_table(pa.table({"id": [1], "age": [40.0], "note": ["a"]}), tmp_path / "x.parquet")
    assert score(tmp_path / "x.parquet", tmp_path / "out", people) == 2
    assert "the version was trained on age, color: add color" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "code", "words"),
    [
        (["--scale=255"], 0, "--scale and --shift are left out: serving_uint8 takes raw pixels"),
        (["--signature_name=serving_default"], 0, ""),
        ([], 0, ""),
    ],
)
def test_flags_that_pictures_do_not_need_are_said_to_be_left_out(
    flags: list[str],
    code: int,
    words: str,
    tmp_path: Path,
    digits: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "in").mkdir()
    picture = np.zeros((28, 28), np.uint8)
    picture[8:20, 12:16] = 255
    for number in range(3):
        Image.fromarray(picture).save(tmp_path / "in" / f"{number}.png")
    assert score(tmp_path / "in", tmp_path / "out", digits, *flags) == code
    said = capsys.readouterr().err
    assert words in said and (words or not said)


def test_names_that_are_given_twice_are_meant_once(
    tmp_path: Path, people: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_people(tmp_path / "in.parquet")
    arguments = ["--keys=id,color,id", "--outputs=total,total"]
    assert score(source, tmp_path / "out", people, *arguments) == 0
    table = parquet.read_table(tmp_path / "out" / "version=1")
    assert table.column_names[:3] == ["id", "color", "total"]
    assert "agree with LiteRT" in capsys.readouterr().out


def test_a_version_that_is_not_there_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_people(tmp_path / "in.parquet")
    for version in (tmp_path / "none", f"file://{tmp_path}/none", "memory://none"):
        assert score(tmp_path / "in.parquet", tmp_path / "out", version) == 2
        said = capsys.readouterr().err
        assert "none" in said and "Traceback" not in said


def test_an_out_that_cannot_be_written_is_refused(
    tmp_path: Path, people: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_people(tmp_path / "in.parquet")
    (tmp_path / "file").write_text("no folder")
    assert score(source, tmp_path / "file", people) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_a_file_without_rows_is_refused(
    tmp_path: Path, people: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "x.csv").write_text("id,age,color\n")
    assert score(tmp_path / "x.csv", tmp_path / "out", people) == 2
    assert "has no rows" in capsys.readouterr().err


def test_a_file_with_a_damaged_page_is_named_and_the_others_stay(
    tmp_path: Path, people: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in").mkdir()
    for name in "abc":
        write_people(tmp_path / "in" / f"{name}.parquet")
    damaged = tmp_path / "in" / "b.parquet"
    content = damaged.read_bytes()
    damaged.write_bytes(content[:4] + b"\xff" * 60 + content[64:])
    assert score(tmp_path / "in", tmp_path / "out", people) == 2
    said = capsys.readouterr().err
    assert "b.parquet cannot be read" in said and "what is scored stays" in said
    assert len(list((tmp_path / "out").rglob("part-*"))) == 1
    damaged.unlink()
    assert score(tmp_path / "in", tmp_path / "out", people) == 0


def test_a_job_whose_rows_are_all_bad_has_failed(
    tmp_path: Path, people: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = pa.table({"id": [1], "age": [float("inf")], "color": ["red"]})
    parquet.write_table(table, tmp_path / "x.parquet")
    assert score(tmp_path / "x.parquet", tmp_path / "out", people) == 1
    assert "Verdict: no row could be scored" in capsys.readouterr().out


def test_what_only_a_server_can_answer_is_said_to_be_unproved(
    tmp_path: Path,
    digits: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("clients.score.verify._has_tensorflow", lambda: False)
    write_images(tmp_path / "in.parquet", 20)
    images = TensorSpec("images", "uint8", (None, 784))
    sums = TensorSpec("sums", "float32", (None,))

    def answer(inputs: Batch) -> Batch:
        return {"sums": inputs["images"].sum(axis=1).astype(np.float32)}

    with ModelServer() as server:
        server.signatures = {"extra": Signature("extra", {"images": images}, {"sums": sums})}
        server.answer = answer
        arguments = ["--server", server.address, "--signature_name=extra"]
        assert score(tmp_path / "in.parquet", tmp_path / "out", digits, *arguments) == 0
        assert "Verdict: not proved. 20 rows" in capsys.readouterr().out
        assert score(tmp_path / "in.parquet", tmp_path / "out", digits, *arguments, "--json") == 0
    assert json.loads(capsys.readouterr().out)["sample"]["passed"] is None


# Missing packages ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "arguments", "missing", "extras"),
    [
        ("s3://bucket/rows", [], "fsspec pyarrow ai_edge_litert tensorflow s3fs", "batch,remote"),
        ("s3://bucket/rows", [], "s3fs ray", "batch,remote"),
        ("s3://bucket/rows", ["--workers=1"], "s3fs ray", "remote"),
        ("in.parquet", [], "pyarrow", "batch"),
        ("in.parquet", ["--cluster=127.0.0.1:1"], "ray", "batch"),
        (
            "in.parquet",
            ["--engine=tensorflow"],
            "tensorflow httptools PIL",
            "batch,serving,tensorflow",
        ),
    ],
)
def test_all_that_a_command_line_lacks_is_named_at_once(
    source: str,
    arguments: list[str],
    missing: str,
    extras: str,
    tmp_path: Path,
    people: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in (*missing.split(), "tflite_runtime"):
        for module in (name, f"{name}.interpreter"):
            monkeypatch.setitem(sys.modules, module, None)
    where = [source, str(tmp_path / "out"), "--version_dir", str(people)]
    assert main(["score", *where, *arguments]) == 2
    said = capsys.readouterr().err
    assert f"not installed: {advise_extra(extras)}" in said


def test_the_extras_that_are_advised_bring_what_is_missing() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    brought = {
        extra: {Requirement(line).name for line in lines}
        for extra, lines in project["optional-dependencies"].items()
    }
    assert {"fsspec", "pyarrow", "ai-edge-litert", "ray", "Pillow"} <= brought[BATCH]
    assert "s3fs" in brought["remote"]
    assert all(package in brought[extra] for package, extra in NEEDS_OF_TENSORFLOW.items())


# Addresses -------------------------------------------------------------------------------


@pytest.fixture
def web(tmp_path: Path) -> Iterator[str]:
    """The address of a folder `web`, over HTTP, in ranges too."""
    (tmp_path / "web").mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            """A file, or a range of it."""
            path = Path(self.translate_path(self.path))
            if not path.is_file():
                self.send_error(404)
                return
            data, wanted = path.read_bytes(), self.headers.get("Range", "")
            self.send_response(206 if wanted else 200)
            if wanted:
                first, _, last = wanted.removeprefix("bytes=").partition("-")
                stop = min(int(last or len(data)) + 1, len(data))
                self.send_header("Content-Range", f"bytes {first}-{stop - 1}/{len(data)}")
                data = data[int(first) : stop]
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def send_head(self) -> None:
            """Of HEAD: how large the file is, and that there are ranges."""
            path = Path(self.translate_path(self.path))
            self.send_response(200 if path.is_file() else 404)
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("Content-Length", str(path.stat().st_size if path.is_file() else 0))
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Nothing."""

    handler = functools.partial(Handler, directory=str(tmp_path / "web"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def test_rows_may_lie_on_the_web(
    tmp_path: Path, people: Path, web: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write_people(tmp_path / "web" / "x.parquet")
    assert score(f"{web}/x.parquet", tmp_path / "out", people) == 0
    assert "agree with LiteRT" in capsys.readouterr().out
    assert score(f"{web}/nothing.parquet", tmp_path / "out", people) == 2
    assert "nothing.parquet" in capsys.readouterr().err


@pytest.fixture
def memory() -> Iterator[Callable[[str, Path], str]]:
    """Puts a folder or file into memory; its address."""
    system = fsspec.filesystem("memory")

    def put(name: str, path: Path) -> str:
        system.put(str(path), f"/jobs/{name}", recursive=True)
        return f"memory://jobs/{name}"

    yield put
    system.rm("/jobs", recursive=True)


def test_rows_answers_and_version_may_lie_at_any_address(
    tmp_path: Path,
    people: Path,
    memory: Callable[[str, Path], str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_people(tmp_path / "x.parquet")
    source = memory("in/x.parquet", tmp_path / "x.parquet")
    version = memory("people/1", people)
    for address in (version, version.removesuffix("/1")):
        assert score(source, "memory://jobs/out", address, "--json") == 0
        document = json.loads(capsys.readouterr().out)
        assert document["sample"]["passed"] and document["num_scored"] == 2000
    assert document["num_parts_before"] == 1
    assert score("memory://jobs/in", "memory://jobs/in/out", version) == 2


def test_one_worker_needs_no_ray(
    tmp_path: Path, people: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    write_people(tmp_path / "x.parquet")
    assert score(tmp_path / "x.parquet", tmp_path / "out", people) == 0


def test_the_answers_are_the_models(tmp_path: Path, digits: Path) -> None:
    images = write_images(tmp_path / "in.parquet", 64)
    assert score(tmp_path / "in.parquet", tmp_path / "out", digits) == 0
    table = parquet.read_table(tmp_path / "out" / "version=1").sort_by("id")
    with OnDevicePredictor(digits) as predictor:
        pixels = images.reshape(-1, 28, 28)
        golden = predictor.predict(pixels, signature_name="serving_uint8")["probabilities"]
    np.testing.assert_allclose(table["probabilities"].to_pylist(), golden, atol=1e-5)


def test_a_cluster_that_is_not_there_is_a_sentence_before_ray_is_asked(
    tmp_path: Path, people: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_people(tmp_path / "in.parquet")
    with socket.socket() as bound:  # and does not listen
        bound.bind(("127.0.0.1", 0))
        cluster = f"127.0.0.1:{bound.getsockname()[1]}"
        code = score(tmp_path / "in.parquet", tmp_path / "out", people, "--cluster", cluster)
    assert code == 3
    assert f"no Ray cluster answers at {cluster}: Connection refused" in capsys.readouterr().err


@pytest.mark.parametrize("where", [("", "out"), ("in", ""), ("in", " ")])
def test_an_address_of_a_variable_that_is_not_set_is_refused(
    tmp_path: Path,
    people: Path,
    where: tuple[str, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    write_images(tmp_path / "in" / "x.parquet", 1)
    with pytest.raises(SystemExit) as ended:
        main(["score", *where, f"--version_dir={people}", "--workers=1"])
    assert ended.value.code == 2
    assert "empty; give a path" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["in"]
