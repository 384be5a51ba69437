"""`clients score` but for Ray: units, columns, workers, and what is written."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import fsspec
import msgspec
import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from clients import OnDevicePredictor
from clients.score.columns import prepare
from clients.score.job import run_here
from clients.score.output import find_parts, refuse_stale, sweep
from clients.score.plan import parse_map, plan_columns
from clients.score.sources import Block, holds, list_units, read_unit
from clients.score.worker import Scorer, Version, pack_version, place_version
from contract.errors import ConfigError, DatasetError, ManifestError, VerificationError
from contract.manifest import FileEntry, hash_file, read_manifest
from contract.wire.plumbline_wire import example_pb2
from contract.wire.tfrecord import write_records
from tests.score.jobs import Job, make_images, make_job, to_binary, write_images


def predict(version: Path, images: np.ndarray) -> np.ndarray:
    with OnDevicePredictor(version) as predictor:
        pixels = images.reshape(-1, 28, 28)
        return predictor.predict(pixels, signature_name="serving_uint8")["probabilities"]


def test_every_row_is_answered_once_beside_its_key(tmp_path: Path, version: Path) -> None:
    images = write_images(tmp_path / "in.parquet", 250)
    job = make_job(tmp_path / "in.parquet", tmp_path / "out", version)
    assert job.run() == 0
    table = job.read().sort_by("id")
    assert table["id"].to_pylist() == list(range(250))
    got = np.array(table["probabilities"].to_pylist(), np.float32)
    np.testing.assert_allclose(got, predict(version, images), atol=1e-5)


def test_a_unit_is_a_row_group(tmp_path: Path, version: Path) -> None:
    write_images(tmp_path / "in.parquet", 250, group=100)
    job = make_job(tmp_path / "in.parquet", tmp_path / "out", version)
    assert [unit.num_rows for unit in job.units] == [100, 100, 50]
    job.run()
    assert len(find_parts(job.task.destination)) == 3


def test_a_second_run_writes_nothing_twice(tmp_path: Path, version: Path) -> None:
    write_images(tmp_path / "in.parquet", 120)
    job = make_job(tmp_path / "in.parquet", tmp_path / "out", version)
    job.run()
    job.run()
    assert sorted(job.read()["id"].to_pylist()) == list(range(120))


def test_a_part_says_which_manifest_answered(tmp_path: Path, version: Path) -> None:
    write_images(tmp_path / "in.parquet", 10)
    job = make_job(tmp_path / "in.parquet", tmp_path / "out", version)
    job.run()
    (path,) = find_parts(job.task.destination).values()
    metadata = parquet.read_metadata(path).metadata
    assert metadata[b"plumbline.manifest_digest"].decode() == read_manifest(version).digest


def test_the_class_is_named_beside_the_scores(tmp_path: Path, version: Path) -> None:
    images = write_images(tmp_path / "in.parquet", 20)
    job = make_job(tmp_path / "in.parquet", tmp_path / "out", version)
    job.run()
    expected = predict(version, images).argmax(axis=1)
    table = job.read().sort_by("id")
    assert [int(name) for name in table["probabilities_class"].to_pylist()] == expected.tolist()


def test_what_a_dead_worker_left_is_swept_and_what_a_live_one_writes_stays(
    tmp_path: Path, version: Path
) -> None:
    write_images(tmp_path / "in.parquet", 10)
    job = make_job(tmp_path / "in.parquet", tmp_path / "out", version)
    folder = tmp_path / "out" / job.task.destination.folder
    folder.mkdir(parents=True)
    (folder / ".part-dead").write_bytes(b"half")
    code = (
        "import fcntl, sys, time\n"
        "file = open(sys.argv[1], 'w'); fcntl.flock(file, fcntl.LOCK_EX)\n"
        "print('locked', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(folder / ".part-live")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as other:
        assert other.stdout is not None and other.stdout.readline() == b"locked\n"
        assert sweep(job.task.destination) == 1
        assert [one.name for one in folder.iterdir()] == [".part-live"]
        other.communicate()
    assert sweep(job.task.destination) == 1


def test_a_unit_that_fails_leaves_nothing(tmp_path: Path, version: Path) -> None:
    write_images(tmp_path / "a.parquet", 10)
    job = make_job(tmp_path / "a.parquet", tmp_path / "out", version)
    wrong = pa.table({"id": pa.array(range(3)), "other": to_binary(make_images(3))})
    parquet.write_table(wrong, tmp_path / "b.parquet")
    with pytest.raises(DatasetError, match=r"cannot be read|no column"):
        job.run(list_units(str(tmp_path / "b.parquet")))
    assert list((tmp_path / "out").rglob("*part*")) == []


def test_answers_to_other_rows_of_the_same_file_are_refused(tmp_path: Path, version: Path) -> None:
    write_images(tmp_path / "in.parquet", 10)
    make_job(tmp_path / "in.parquet", tmp_path / "out", version).run()
    write_images(tmp_path / "in.parquet", 10, seed=1)
    job = make_job(tmp_path / "in.parquet", tmp_path / "out", version)
    with pytest.raises(ConfigError, match="count its rows twice"):
        refuse_stale(job.units, job.task.destination, find_parts(job.task.destination))


def test_two_files_of_one_name_in_two_folders_are_two(tmp_path: Path, version: Path) -> None:
    write_images(tmp_path / "in" / "a" / "x.parquet", 5)
    write_images(tmp_path / "in" / "b" / "x.parquet", 7)
    job = make_job(tmp_path / "in", tmp_path / "out", version)
    job.run()
    assert job.read().num_rows == 12


def test_hidden_files_are_no_input(tmp_path: Path) -> None:
    write_images(tmp_path / "in" / "x.parquet", 5)
    for name in ("_SUCCESS", ".x.parquet.crc", "_temporary/y.parquet"):
        path = tmp_path / "in" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"")
    assert [unit.name for unit in list_units(str(tmp_path / "in"))] == ["x.parquet"]


@pytest.mark.parametrize(
    ("given", "words"),
    [("nowhere", "no such file"), ("empty", "without any"), ("text", "nothing that can be scored")],
)
def test_an_input_that_is_none_is_named(tmp_path: Path, given: str, words: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "notes.txt").write_text("no rows")
    with pytest.raises(ConfigError, match=words):
        list_units(str(tmp_path / given))


@pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1" + b"\xff" * 40 + b"PAR1", b"x" * 100])
def test_a_damaged_parquet_file_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.parquet").write_bytes(content)
    with pytest.raises(DatasetError, match=r"x\.parquet is no Parquet file"):
        list_units(str(tmp_path / "x.parquet"))


# Columns ---------------------------------------------------------------------------------


def _score(tmp_path: Path, version: Path, table: pa.Table, **options: object) -> Job:
    parquet.write_table(table, tmp_path / "in.parquet")
    job = make_job(tmp_path / "in.parquet", tmp_path / "out", version, **options)  # type: ignore[arg-type]
    job.run()
    return job


@pytest.mark.parametrize(
    "kind", ["float32 bytes", "fixed list", "list", "nested list", "uint8 list"]
)
def test_one_column_holds_the_row_in_any_of_these_types(
    tmp_path: Path, version: Path, kind: str
) -> None:
    images = make_images(12)
    floats = (images / np.float32(255)).astype(np.float32)
    column = {
        "float32 bytes": to_binary(floats),
        "fixed list": pa.FixedSizeListArray.from_arrays(pa.array(floats.reshape(-1)), 784),
        "list": pa.array(floats.tolist(), pa.list_(pa.float32())),
        "nested list": pa.array(
            floats.reshape(12, 28, 28).tolist(), pa.list_(pa.list_(pa.float32()))
        ),
        "uint8 list": pa.array(images.tolist(), pa.list_(pa.uint8())),
    }[kind]
    job = _score(tmp_path, version, pa.table({"id": pa.array(range(12)), "x": column}))
    got = np.array(job.read()["probabilities"].to_pylist(), np.float32)
    np.testing.assert_allclose(got, predict(version, images), atol=2e-5)


def test_a_column_for_each_value(tmp_path: Path, version: Path) -> None:
    images = make_images(6)
    floats = images / 255
    columns = {f"p{place}": pa.array(floats[:, place]) for place in range(784)}
    job = _score(tmp_path, version, pa.table(columns))
    got = np.array(job.read()["probabilities"].to_pylist(), np.float32)
    np.testing.assert_allclose(got, predict(version, images), atol=2e-5)
    assert job.read()["source_row"].to_pylist() == list(range(6))


def test_a_map_names_the_columns(tmp_path: Path, version: Path) -> None:
    images = make_images(6)
    table = pa.table({"a": to_binary(make_images(6, seed=1)), "b": to_binary(images)})
    with pytest.raises(ConfigError, match="--map INPUT=COLUMN"):
        _score(tmp_path, version, table)
    job = _score(tmp_path, version, table, mapped={"images": ("b",)})
    got = np.array(job.read()["probabilities"].to_pylist(), np.float32)
    np.testing.assert_allclose(got, predict(version, images), atol=1e-5)


def test_rows_that_cannot_be_scored_go_to_a_side_file_with_their_reason(
    tmp_path: Path, version: Path
) -> None:
    rows: list[object] = (make_images(8) / 255).tolist()
    rows[1] = None
    rows[2] = [0.5] * 100
    rows[3] = [float("nan")] * 784
    table = pa.table(
        {"key": [f"k{i}" for i in range(8)], "x": pa.array(rows, pa.list_(pa.float32()))}
    )
    job = _score(tmp_path, version, table)
    assert job.read()["key"].to_pylist() == ["k0", "k4", "k5", "k6", "k7"]
    (side,) = (tmp_path / "out" / "_bad_rows").rglob("*.jsonl")
    bad = [json.loads(line) for line in side.read_text().splitlines()]
    assert [one["keys"]["key"] for one in bad] == ["k1", "k2", "k3"]
    assert [one["source_row"] for one in bad] == [1, 2, 3]
    assert ["missing" in bad[0]["reason"], "100 values" in bad[1]["reason"]] == [True, True]
    assert "NaN" in bad[2]["reason"]


def test_bad_rows_do_not_move_the_answers_of_their_neighbours(
    tmp_path: Path, version: Path
) -> None:
    images = make_images(50)
    rows: list[object] = (images / 255).tolist()
    for place in (0, 7, 8, 49):
        rows[place] = None
    rows[20] = [1.0]
    table = pa.table({"id": pa.array(range(50)), "x": pa.array(rows, pa.list_(pa.float32()))})
    job = _score(tmp_path, version, table)
    kept = job.read()["id"].to_pylist()
    assert kept == [row for row in range(50) if row not in (0, 7, 8, 20, 49)]
    got = np.array(job.read()["probabilities"].to_pylist(), np.float32)
    np.testing.assert_allclose(got, predict(version, images[kept]), atol=2e-5)


@pytest.mark.parametrize("text", ["x", "=a", "x=", "x=,"])
def test_a_map_that_is_none_is_refused(text: str) -> None:
    if text == "=a":
        assert parse_map([text]) == {"": ("a",)}
        return
    with pytest.raises(ConfigError, match="--map"):
        parse_map([text])


# Other files -----------------------------------------------------------------------------


def test_json_lines_are_cut_into_pieces_and_no_line_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clients.score.sources.PIECE_BYTES", 1000)
    lines = [json.dumps({"id": number, "text": "x" * (number % 97)}) for number in range(300)]
    (tmp_path / "x.jsonl").write_text("\n".join(lines))
    units = list_units(str(tmp_path / "x.jsonl"))
    assert len(units) > 10
    read = [row for unit in units for block in read_unit(unit) for row in block.table.to_pylist()]
    assert [row["id"] for row in read] == list(range(300))


def test_csv_columns_are_rows(tmp_path: Path, version: Path) -> None:
    images = make_images(5)
    header = ",".join(f"p{place}" for place in range(784))
    rows = "\n".join(",".join(f"{value / 255:.9g}" for value in row) for row in images)
    (tmp_path / "in.csv").write_text(f"{header}\n{rows}\n")
    job = make_job(tmp_path / "in.csv", tmp_path / "out", version)
    job.run()
    got = np.array(job.read()["probabilities"].to_pylist(), np.float32)
    np.testing.assert_allclose(got, predict(version, images), atol=2e-5)


def test_tfrecords_of_examples_are_columns(tmp_path: Path, version: Path) -> None:
    images = make_images(5)
    records = []
    for number, row in enumerate(images):
        example = example_pb2.Example()
        example.features.feature["id"].int64_list.value.append(number)
        example.features.feature["pixels"].float_list.value.extend(row / 255)
        records.append(example.SerializeToString())
    write_records(tmp_path / "in.tfrecord", records)
    job = make_job(tmp_path / "in.tfrecord", tmp_path / "out", version)
    job.run()
    assert job.read()["id"].to_pylist() == list(range(5))
    got = np.array(job.read()["probabilities"].to_pylist(), np.float32)
    np.testing.assert_allclose(got, predict(version, images), atol=2e-5)


def test_a_folder_of_pictures_is_scored_by_name(tmp_path: Path, version: Path) -> None:
    from PIL import Image

    images = make_images(3)
    (tmp_path / "in").mkdir()
    for number, row in enumerate(images):
        Image.fromarray(row.reshape(28, 28)).save(tmp_path / "in" / f"{number}.png")
    (tmp_path / "in" / "9.png").write_bytes(b"no picture")
    job = make_job(tmp_path / "in", tmp_path / "out", version)
    assert job.run() == 1
    assert job.read()["source"].to_pylist() == ["0.png", "1.png", "2.png"]
    got = np.array(job.read()["probabilities"].to_pylist(), np.float32)
    np.testing.assert_allclose(got, predict(version, images), atol=1e-5)


PICTURE_NAMES = ("a.png", "b/c d.jpg", "b/x#1%41.png", "ü.jpeg")


def test_pictures_are_told_apart_as_ever_and_each_is_found(tmp_path: Path) -> None:
    for name in PICTURE_NAMES:
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
        os.utime(path, (5, 5))
    for address in (f"{tmp_path}/in", f"{tmp_path}/in/", f"{tmp_path}/in/**/*"):
        (unit,) = list_units(address)
        assert (unit.name, unit.identity) == (
            "in",
            "b3ea6464216a650ed81b74c354402d0662827b11603490634201e1b94f7e85ba",
        )
        (block,) = read_unit(unit)
        assert block.names == PICTURE_NAMES
        assert block.table["image"].to_pylist() == [name.encode() for name in PICTURE_NAMES]


def test_a_unit_of_pictures_names_their_folder_once(tmp_path: Path) -> None:
    folder = tmp_path / ("deep" * 20)
    folder.mkdir()
    for number in range(100):
        (folder / f"{number}.png").write_bytes(b"")
    (unit,) = list_units(str(folder))
    assert msgspec.json.encode(unit.files).count(b"deep") == 0
    assert len(msgspec.json.encode(unit)) < 3000


def test_any_address_of_fsspec_will_do(tmp_path: Path, version: Path) -> None:
    images = write_images(tmp_path / "in.parquet", 30)
    memory = fsspec.filesystem("memory")
    memory.pipe_file("/score/in/x.parquet", (tmp_path / "in.parquet").read_bytes())
    job = make_job("memory://score/in", "memory://score/out", version)
    job.run()
    (path,) = find_parts(job.task.destination).values()
    with memory.open(path, "rb") as file:
        table = parquet.read_table(file)
    got = np.array(table["probabilities"].to_pylist(), np.float32)
    np.testing.assert_allclose(got, predict(version, images), atol=1e-5)
    memory.rm("/score", recursive=True)


# Versions --------------------------------------------------------------------------------


def test_a_version_is_laid_on_a_machine_that_lacks_it(
    tmp_path: Path, version: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    manifest = read_manifest(version)
    job = make_job(write_and_name(tmp_path), tmp_path / "out", version)
    known = job.task.version
    elsewhere = type(known)(path=str(tmp_path / "gone"), digest=known.digest, number=known.number)
    loads: list[int] = []

    def load() -> dict[str, bytes]:
        loads.append(1)
        return pack_version(version)

    place = place_version(elsewhere, load)
    assert place_version(elsewhere, load) == place
    assert (read_manifest(place).digest, loads) == (manifest.digest, [1])


def write_and_name(tmp_path: Path) -> Path:
    write_images(tmp_path / "in.parquet", 3)
    return tmp_path / "in.parquet"


def test_a_version_with_a_changed_file_scores_nothing(tmp_path: Path, version: Path) -> None:
    copy = tmp_path / "1"
    shutil.copytree(version, copy)
    job = make_job(write_and_name(tmp_path), tmp_path / "out", copy)
    with (copy / "assets" / "labels.txt").open("a") as labels:
        labels.write("more\n")
    with pytest.raises(ManifestError, match=r"labels\.txt"):
        list(run_here(job.units, job.task, job.plan, copy))


def test_a_version_that_was_damaged_where_it_was_laid_is_laid_anew(
    tmp_path: Path, version: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    digest = read_manifest(version).digest
    elsewhere = Version(path=str(tmp_path / "gone"), digest=digest, number=1)
    place = place_version(elsewhere, lambda: pack_version(version))
    with (place / "assets" / "labels.txt").open("a") as labels:
        labels.write("more\n")
    assert place_version(elsewhere, lambda: pack_version(version)) == place
    assert pack_version(place) == pack_version(version)


@pytest.mark.parametrize("where", ["laid", "found", "published"])
def test_a_worker_hashes_each_file_of_its_version_once(
    tmp_path: Path, version: Path, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    job = make_job(write_and_name(tmp_path), tmp_path / "out", version)
    manifest = read_manifest(version)
    path = version if where == "published" else tmp_path / "gone"
    known = Version(path=str(path), digest=manifest.digest, number=1)
    if where == "found":
        place_version(known, lambda: pack_version(version))
    hashed: list[str] = []

    def count(path: Path) -> FileEntry:
        hashed.append(path.name)
        return hash_file(path)

    monkeypatch.setattr("contract.manifest.hash_file", count)
    place = place_version(known, lambda: pack_version(version))
    Scorer(job.task, job.plan, place).close()
    assert sorted(hashed) == sorted(Path(name).name for name in manifest.files)


def test_a_machine_that_answers_golden_otherwise_is_named(
    tmp_path: Path, version: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import clients.score.engines as engines

    job = make_job(write_and_name(tmp_path), tmp_path / "out", version)
    right = engines.LiteEngine.answer

    def wrong(self: engines.LiteEngine, batch: object, name: str) -> engines.Answers:
        answers = right(self, batch, name)  # type: ignore[arg-type]
        return engines.Answers(
            {key: array[:, ::-1] for key, array in answers.outputs.items()},
            answers.rows,
            answers.failed,
        )

    monkeypatch.setattr(engines.LiteEngine, "answer", wrong)
    with pytest.raises(VerificationError, match=os.uname().nodename):
        job.run()


def test_pixels_that_moved_are_counted_in_other_bins(tmp_path: Path, version: Path) -> None:
    manifest = read_manifest(version)
    if not manifest.distributions:
        pytest.skip("PUBLISHED_MODELS holds a version of an older exporter")
    write_images(tmp_path / "in.parquet", 100)  # noise: much brighter and flatter than digits
    from contract.statistics import measure_shift

    job = make_job(tmp_path / "in.parquet", tmp_path / "out", version)
    scorer = Scorer(job.task, job.plan, version)
    sketches = scorer.score(job.units[0]).sketches
    scorer.close()
    known = manifest.distributions[""]
    assert measure_shift(sketches[""]["mean"], known["mean"]).has_moved


def test_rows_of_training_have_not_moved(version: Path) -> None:
    from contract.statistics import measure_columns, measure_shift, sketch_columns
    from exporter.data.readers.arrays import read_digits

    manifest = read_manifest(version)
    if not manifest.distributions:
        pytest.skip("PUBLISHED_MODELS holds a version of an older exporter")
    pixels = read_digits().train.inputs[""].astype(np.float32) / 255
    known = manifest.distributions[""]
    sketches = sketch_columns(measure_columns(pixels, image_shape=(28, 28, 1)), known)
    assert not any(measure_shift(sketches[name], known[name]).has_moved for name in known)


def test_a_category_that_training_never_saw_is_counted() -> None:
    from contract.manifest import DataEntry
    from contract.signature import Signature, TensorSpec

    data = DataEntry(
        "t", "", columns=("age", "color=red", "color=blue"), fillings={"": (30.0, 0, 0)}
    )
    signature = Signature(
        "serving_default",
        {"x": TensorSpec("x", "float32", (None, 3))},
        {"y": TensorSpec("y", "float32", (None, 1))},
    )
    table = pa.table({"age": [20.0, None, 40.0], "color": ["red", "green", "blue"]})
    block = Block(table, 0)
    from clients.files.fit import Adjustment

    plan = plan_columns(block, {"serving_default": signature}, data=data, adjustment=Adjustment())
    prepared = prepare(block, plan)
    expected = [[20, 1, 0], [30, 0, 0], [40, 0, 1]]
    np.testing.assert_array_equal(prepared.batch["x"], np.array(expected, np.float32))
    assert (prepared.missing, prepared.unseen) == ({"age": 1}, {"color=red": 1})


def test_wide_rows_come_few_at_a_time_whatever_their_column_is_called(tmp_path: Path) -> None:
    rows = pa.array([b"%07d" % row * 2**14 for row in range(1000)])
    for name in ("image", "im.age", "im.a.ge", ".image"):
        table = pa.table({"id": range(1000), name: rows, "im": [{"image": "no"}] * 1000})
        parquet.write_table(table, tmp_path / "x.parquet", use_dictionary=False)
        (unit,) = list_units(str(tmp_path / "x.parquet"))
        sizes = [block.table.num_rows for block in read_unit(unit, [name])]
        assert len(sizes) > 1 and sum(sizes) == 1000


@pytest.mark.parametrize("name", ["rows [1]", "a*b", "what?"])
def test_a_folder_and_a_file_whose_names_have_wild_cards_are_themselves(
    tmp_path: Path, name: str
) -> None:
    write_images(tmp_path / name / f"{name}.parquet", 10)
    write_images(tmp_path / "other" / "x.parquet", 10)
    (unit,) = list_units(str(tmp_path / name))
    assert list_units(str(tmp_path / name / f"{name}.parquet")) == [unit]
    assert sum(block.table.num_rows for block in read_unit(unit)) == 10
    assert holds(str(tmp_path / name), str(tmp_path / name / "out"))
    assert not holds(str(tmp_path / name), str(tmp_path / "other"))
