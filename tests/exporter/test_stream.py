"""Rows that stream: drawn, ordered and shared out by what is known of them beforehand."""

from __future__ import annotations

import gc
import gzip
import re
import struct
import sys
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from contract.errors import ConfigError, DatasetError
from contract.heads import Head
from contract.pictures import PNG_MAGIC
from contract.wire.plumbline_wire import example_pb2
from contract.wire.tfrecord import frame_record, read_records, write_records
from exporter.config import DataConfig
from exporter.data.dataset import Dataset, draw_export_examples, load_dataset
from exporter.data.readers.stream import Stream, explain_read_errors

ROWS = 300


def encode(row: int, **more: Any) -> bytes:
    """A record whose only number says which row it is."""
    example = example_pb2.Example()
    features = example.features.feature
    features["x"].float_list.value.extend([row, row / 2, -row])
    features["label"].int64_list.value.append(row % 3)
    for name, value in more.items():
        features[name].bytes_list.value.append(value)
    return bytes(example.SerializeToString(deterministic=True))


def write_shards(folder: Path, rows: int = ROWS, shards: int = 3, **more: Any) -> Path:
    for shard in range(shards):
        name = f"data-{shard:05}-of-{shards:05}.tfrecord"
        write_records(folder / name, (encode(row, **more) for row in range(shard, rows, shards)))
    return folder


def configure(path: Path | str, **keys: Any) -> DataConfig:
    numbers = {"seed": 3, "test_fraction": 0.2, "validation_fraction": 0.2, "target": "label"}
    return DataConfig(kind="tfrecord", path=str(path), **{**numbers, **keys})


def load(path: Path, **keys: Any) -> Dataset:
    return load_dataset(configure(path, **keys))


def open_train(dataset: Dataset) -> Stream:
    assert isinstance(dataset.train, Stream)
    return dataset.train


def name_rows(batches: Any) -> list[list[int]]:
    """The row numbers of every batch, which have their own label."""
    found = []
    for inputs, targets in batches:
        rows = inputs[""].numpy()[:, 0].astype(int)
        assert (targets[""].numpy() == rows % 3).all()
        found.append(rows.tolist())
    return found


def flatten(batches: list[list[int]]) -> list[int]:
    return [row for batch in batches for row in batch]


def test_every_record_is_in_one_split(tmp_path: Path) -> None:
    dataset = load(write_shards(tmp_path))
    rows = [split.take(slice(None)) for split in (dataset.train, dataset.validation, dataset.test)]
    numbers = np.concatenate([one.inputs[""][:, 0] for one in rows]).astype(int)
    assert sorted(numbers.tolist()) == list(range(ROWS))
    assert all(len(one) > ROWS * 0.08 for one in rows)
    assert dataset.targets[""].task == "multiclass" and dataset.num_classes == 3


def test_a_record_keeps_its_split_when_shards_are_cut_otherwise(tmp_path: Path) -> None:
    for folder, shards in (("a", 3), ("b", 7)):
        (tmp_path / folder).mkdir()
        write_shards(tmp_path / folder, shards=shards)
    one, other = load(tmp_path / "a"), load(tmp_path / "b")
    assert set(one.test.take(slice(None)).inputs[""][:, 0]) == set(
        other.test.take(slice(None)).inputs[""][:, 0]
    )


def test_rows_are_taken_in_the_order_that_is_asked_for(tmp_path: Path) -> None:
    train = open_train(load(write_shards(tmp_path)))
    every = train.take(slice(None))
    rows = np.array([17, 3, 3, 80])
    assert (train.take(rows).inputs[""] == every.inputs[""][rows]).all()
    assert (train.take(rows).targets[""] == every.targets[""][rows]).all()


def test_every_epoch_has_every_row_once_in_an_order_of_its_own(tmp_path: Path) -> None:
    train = open_train(load(write_shards(tmp_path), shuffle_bytes=2000))
    batches = name_rows(train.open_batches(16, seed=5, epochs=range(2)))
    steps = -(-len(train) // 16)
    first, second = (flatten(batches[at : at + steps]) for at in (0, steps))
    assert len(batches) == 2 * steps
    assert sorted(first) == sorted(second) == sorted(train.take(slice(None)).inputs[""][:, 0])
    assert first != second and first != sorted(first)


def test_a_resumed_run_sees_the_batches_it_would_have_seen(tmp_path: Path) -> None:
    train = open_train(load(write_shards(tmp_path), shuffle_bytes=2000))
    whole = name_rows(train.open_batches(16, seed=5, epochs=range(3)))
    resumed = name_rows(train.open_batches(16, seed=5, epochs=range(2, 3)))
    assert whole[-len(resumed) :] == resumed


def test_workers_read_rows_of_their_own_and_as_many_each(tmp_path: Path) -> None:
    train = open_train(load(write_shards(tmp_path)))
    shares = [
        name_rows(
            train.open_batches(
                16, seed=5, epochs=range(3), drop_remainder=True, worker=worker, num_workers=2
            )
        )
        for worker in (0, 1)
    ]
    rows = [set(flatten(batches)) for batches in shares]
    assert not rows[0] & rows[1]
    # Elements hold two steps of half a batch each, over all epochs; the last may be filled up.
    assert [len(batches) for batches in shares] == [-(-3 * (len(train) // 16) // 2)] * 2
    with pytest.raises(ConfigError, match="multiple of 2"):
        train.open_batches(15, num_workers=2)


def test_a_worker_trains_without_the_shards_of_the_others(tmp_path: Path) -> None:
    train = open_train(load(write_shards(tmp_path, shards=4)))
    own = train.open_batches(16, seed=5, drop_remainder=True, worker=0, num_workers=2)
    for path in sorted(tmp_path.iterdir())[3:]:
        path.unlink()  # the third may hold rows of both
    assert len(set(flatten(name_rows(own)))) == len(train) // 16 * 8


def test_what_a_version_is_made_with_is_drawn_from_the_index(tmp_path: Path) -> None:
    dataset = load(write_shards(tmp_path))
    examples = draw_export_examples(dataset, num_golden=64, num_calibration=30, seed=1)
    assert len(examples.golden) == 64 and len(examples.calibration) == 30
    assert (np.bincount(examples.calibration.targets[""]) == 10).all()
    assert len(examples.test) == len(dataset.test)
    assert examples.num_examples["train"] == len(dataset.train)


def test_the_fingerprint_is_of_the_records(tmp_path: Path) -> None:
    for folder, rows in (("a", ROWS), ("b", ROWS), ("c", ROWS + 1)):
        (tmp_path / folder).mkdir()
        write_shards(tmp_path / folder, rows)
    prints = [load(tmp_path / folder).fingerprint for folder in "abc"]
    assert prints[0] == prints[1] != prints[2]


def test_labels_that_the_index_does_not_hold_are_counted_all_the_same(tmp_path: Path) -> None:
    from exporter.training.batches import count_classes

    examples = []
    for row in range(60):
        example = example_pb2.Example()
        example.features.feature["x"].float_list.value.extend([row, 1])
        example.features.feature["tags"].int64_list.value.extend([row % 2, int(row % 3 == 0)])
        examples.append(example.SerializeToString())
    write_records(tmp_path / "a.tfrecord", examples)
    train = load(tmp_path, target="tags", task="multilabel").train
    tags = train.take(slice(None)).targets[""]
    counted = count_classes(train, "", Head(task="multilabel", class_names=("odd", "third")))
    assert counted.tolist() == [(tags == 0).sum(axis=0).tolist(), tags.sum(axis=0).tolist()]


def test_raw_bytes_of_pixels_are_images(tmp_path: Path) -> None:
    pixels = np.arange(20, dtype=np.uint8)
    write_shards(tmp_path, picture=pixels.tobytes())
    features = {"picture": "uint8[4,5]", "label": "int64"}
    dataset = load(tmp_path, features=features)
    assert dataset.input_shape == (4, 5, 1) and dataset.pixels is not None
    assert (dataset.train.take(slice(2)).inputs[""][1].ravel() == pixels).all()


def test_encoded_pictures_are_decoded(tmp_path: Path) -> None:
    import io

    import PIL.Image

    file = io.BytesIO()
    PIL.Image.fromarray(np.full((9, 9, 3), 70, np.uint8)).save(file, "PNG")
    write_shards(tmp_path, 60, picture=file.getvalue())
    with pytest.raises(DatasetError, match=r"data\.image_size"):
        load(tmp_path, features={"picture": "image", "label": "int64"})
    dataset = load(tmp_path, features={"picture": "image", "label": "int64"}, image_size=(3, 4))
    (inputs, _), *_ = open_train(dataset).open_batches(8)
    assert inputs[""].shape == (8, 3, 4, 3) and (inputs[""].numpy() == 70).all()


def encode_picture() -> bytes:
    import io

    import PIL.Image

    file = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (90, 90, 3), np.uint8)
    PIL.Image.fromarray(noise).save(file, "JPEG")
    return file.getvalue()


def test_a_record_whose_picture_is_none_is_named_and_skipped_only_when_told(
    tmp_path: Path,
) -> None:
    good = [encode(row, picture=encode_picture()) for row in range(60)]
    write_records(tmp_path / "a.tfrecord", [*good, encode(60, picture=b"<html>")])
    keys: dict[str, Any] = {
        "features": {"picture": "image", "label": "int64"},
        "image_size": (3, 4),
    }
    with pytest.raises(DatasetError, match=r"a\.tfrecord: record 60: its picture cannot be read"):
        load(tmp_path, **keys)
    dataset = load(tmp_path, **keys, skip_unreadable=True)
    assert dataset.num_skipped == 1
    assert len(dataset.train) + len(dataset.validation) + len(dataset.test) == 60


def test_a_jpeg_that_was_cut_off_is_found_before_training(tmp_path: Path) -> None:
    write_shards(tmp_path, 60, picture=encode_picture()[:-300])
    features = {"picture": "image", "label": "int64"}
    with pytest.raises(DatasetError, match=r"00000-of-00003.*: record 0: .* truncated"):
        load(tmp_path, features=features, image_size=(3, 4))


def encode_late_png() -> bytes:
    """A PNG with right checksums, whose compressed pixels end too early."""
    pixels = zlib.compress(np.random.default_rng(0).bytes(9 * 28))[:60]
    head = struct.pack(">IIBBBBB", 9, 9, 8, 2, 0, 0, 0)
    chunks = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in ((b"IHDR", head), (b"IDAT", pixels), (b"IEND", b""))
    ]
    return b"".join((PNG_MAGIC, *chunks))


LATE: dict[str, Any] = {
    "features": {"picture": "image", "label": "int64"},
    "image_size": (3, 4),
}


def test_a_picture_that_shows_its_fault_late_is_named_when_it_is_decoded(tmp_path: Path) -> None:
    good = [encode(row, picture=encode_picture()) for row in range(60)]
    bad = encode(61, picture=encode_late_png())
    write_records(tmp_path / "a.tfrecord", [*good[:20], bad, *good[20:]])
    train = open_train(load(tmp_path, **LATE))
    with pytest.raises(DatasetError, match=r"a\.tfrecord: record 20: its picture cannot be dec"):
        train.take(slice(None))
    with (
        pytest.raises(DatasetError, match=r"record 20: its picture cannot be decoded"),
        explain_read_errors(),
    ):
        list(train.open_batches(8, seed=1))
    assert load(tmp_path, **LATE, skip_unreadable=True).num_skipped == 1


def test_a_file_that_was_cut_off_since_is_a_sentence_too(tmp_path: Path) -> None:
    train = write_ok_then_cut(tmp_path, LATE["features"])
    with pytest.raises(DatasetError, match="it was cut off since"), explain_read_errors():
        list(train.open_batches(8))


def encode_misfit(kind: str) -> bytes:
    example = example_pb2.Example()
    features = example.features.feature
    if kind != "no label":
        features["label"].int64_list.value.append(1)
    features["x"].float_list.value.extend([1, 2] if kind == "length" else [1, 2, 3])
    if kind == "dtype":
        features["x"].int64_list.value.extend([1, 2, 3])
    data = bytes(example.SerializeToString(deterministic=True))
    return b"\xff" + data if kind == "no example" else data


@pytest.mark.parametrize("kind", ["length", "no label", "dtype", "no example"])
def test_a_record_that_does_not_hold_the_features_is_named_and_skipped_only_when_told(
    tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    good = [encode(row) for row in range(60)]
    write_records(tmp_path / "a.tfrecord", [*good[:20], encode_misfit(kind), *good[20:]])
    with pytest.raises(DatasetError, match=r"a\.tfrecord: record 20 does not hold .*skip_unr"):
        load(tmp_path)
    dataset = load(tmp_path, skip_unreadable=True)
    assert "skipped 1 records" in caplog.text and "record 20" in caplog.text
    rows = [split.take(slice(None)) for split in (dataset.train, dataset.validation, dataset.test)]
    numbers = np.concatenate([one.inputs[""][:, 0] for one in rows]).astype(int)
    assert dataset.num_skipped == 1 and sorted(numbers.tolist()) == list(range(60))
    assert (np.concatenate([one.targets[""] for one in rows]) == numbers % 3).all()


def write_ok_then_cut(folder: Path, features: dict[str, str]) -> Stream:
    """A stream whose files were cut off after they were indexed."""
    for path in folder.iterdir():
        path.unlink()
    write_shards(folder, 60, picture=encode_picture())
    train = open_train(load(folder, features=features, image_size=(3, 4)))
    for path in folder.iterdir():
        path.write_bytes(path.read_bytes()[:100])
    return train


def test_texts_and_named_classes_are_read(tmp_path: Path) -> None:
    examples = []
    for row in range(60):
        example = example_pb2.Example()
        example.features.feature["text"].bytes_list.value.append(f"text {row}\0".encode())
        example.features.feature["kind"].bytes_list.value.append((b"good", b"bad")[row % 2])
        examples.append(example.SerializeToString())
    write_records(tmp_path / "a.tfrecord", examples)
    dataset = load(tmp_path / "a.tfrecord", target="kind")
    assert dataset.class_names == ("bad", "good")
    rows = dataset.train.take(slice(3))
    assert all(text.endswith(b"\0") for text in rows.inputs[""])


@pytest.mark.parametrize(("cut", "byte"), [(5, "record 299 at byte"), (0, "")])
def test_a_shard_that_is_cut_off_is_named_with_the_byte(
    tmp_path: Path, cut: int, byte: str
) -> None:
    write_shards(tmp_path, shards=1)
    path = next(tmp_path.iterdir())
    data = path.read_bytes()
    path.write_bytes(data[: len(data) - cut])
    if not cut:
        load(tmp_path)
        return
    with pytest.raises(DatasetError) as caught:
        load(tmp_path)
    last = len(data) - len(frame_record(encode(ROWS - 1)))
    assert f"{path}: {byte} {last} is cut off" in str(caught.value)


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ({"target": "price"}, "no feature 'price', only 'label', 'x'"),
        ({"target": ""}, "data.target must name the feature"),
        ({"features": {"x": "float32[4]", "label": "int64"}}, "record 0 does not hold"),
        ({"features": {"x": "cube", "label": "int64"}}, "data.features: x = 'cube'"),
        ({"path": "nowhere.tfrecord"}, "cannot read nowhere.tfrecord"),
        ({"path": "nowhere/*.tfrecord"}, "holds no TFRecord files"),
        ({"target": ("x", "label")}, "no feature beside"),
    ],
)
def test_what_cannot_be_read_is_said(tmp_path: Path, keys: dict[str, Any], sentence: str) -> None:
    write_shards(tmp_path)
    with pytest.raises(DatasetError) as caught:
        load_dataset(configure(**{"path": tmp_path, **keys}))
    assert sentence in str(caught.value)


def test_a_damaged_shard_is_named(tmp_path: Path) -> None:
    write_shards(tmp_path, shards=1)
    path = next(tmp_path.iterdir())
    data = bytearray(path.read_bytes())
    data[700] ^= 1
    path.write_bytes(data)
    with pytest.raises(DatasetError, match="checksum of its"):
        load(tmp_path)


COMPRESSIONS = {"GZIP": ".gz", "ZLIB": ""}


def compress_shards(folder: Path, kind: str) -> Path:
    """As TensorFlow writes them."""
    import tensorflow as tf

    folder.mkdir()
    plain = folder.parent / "plain"
    plain.mkdir(exist_ok=True)
    for path in sorted(write_shards(plain).iterdir()):
        name = str(folder / (path.name + COMPRESSIONS[kind]))
        with tf.io.TFRecordWriter(name, tf.io.TFRecordOptions(compression_type=kind)) as writer:
            for data in read_records(path):
                writer.write(data)
    return plain


@pytest.mark.parametrize("kind", COMPRESSIONS)
def test_compressed_shards_hold_the_same_rows_in_the_same_order(tmp_path: Path, kind: str) -> None:
    plain = load(compress_shards(tmp_path / "packed", kind))
    packed = load(tmp_path / "packed")
    assert packed.fingerprint == plain.fingerprint
    batches = [name_rows(open_train(one).open_batches(16, seed=5)) for one in (plain, packed)]
    assert batches[0] == batches[1]


def test_what_compressed_shards_were_unpacked_to_goes_with_the_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compress_shards(tmp_path / "packed", "GZIP")
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    dataset = load(tmp_path / "packed")
    assert len(list((tmp_path / "temporary").glob("*/*"))) == 3
    del dataset
    gc.collect()
    assert not list((tmp_path / "temporary").iterdir())


@pytest.mark.parametrize("kind", COMPRESSIONS)
@pytest.mark.parametrize("cut", [4, 400])
def test_a_compressed_shard_that_is_cut_off_is_named_with_the_record(
    tmp_path: Path, kind: str, cut: int
) -> None:
    compress_shards(tmp_path / "packed", kind)
    path = max((tmp_path / "packed").iterdir())
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(DatasetError) as caught:
        load(tmp_path / "packed")
    found = re.search(r"(.*): record (\d+) is cut off: the compressed file ends", str(caught.value))
    assert found and found[1] == str(path)
    assert int(found[2]) == 100 if cut == 4 else 0 < int(found[2]) < 100


def test_a_compressed_shard_that_is_damaged_is_named(tmp_path: Path) -> None:
    compress_shards(tmp_path / "packed", "GZIP")
    path = max((tmp_path / "packed").iterdir())
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 40] = bytes(40)
    path.write_bytes(data)
    with pytest.raises(DatasetError, match=r"-of-00003\.tfrecord\.gz.*: record \d+"):
        load(tmp_path / "packed")


@pytest.mark.parametrize("length", [0x9C78, 0x088B1F])
def test_a_length_that_looks_like_a_compressed_file_is_a_length(
    tmp_path: Path, length: int
) -> None:
    record = encode(0, blob=b"")
    blob = bytes(length - len(record) - 8)
    while len(record := encode(0, blob=blob)) != length:
        blob = blob[: len(blob) + length - len(record)] or bytes(1)
        blob += bytes(max(0, length - len(record)))
    write_records(tmp_path / "a.tfrecord", [record, *(encode(row, blob=b"") for row in range(60))])
    assert load(tmp_path, features={"x": "float32[3]", "label": "int64"}).num_classes == 3


def test_members_that_were_put_one_after_the_other_are_all_read(tmp_path: Path) -> None:
    (tmp_path / "packed").mkdir()
    parts = [
        gzip.compress(b"".join(frame_record(encode(row)) for row in range(first, first + 100)))
        for first in (0, 100, 200)
    ]
    (tmp_path / "packed" / "all.tfrecord.gz").write_bytes(b"".join(parts))
    dataset = load(tmp_path / "packed")
    assert len(dataset.train) + len(dataset.validation) + len(dataset.test) == ROWS


LOADERS = """
import numpy as np
import tensorflow as tf

x = np.arange(240, dtype=np.float32).reshape(60, 4)
y = np.arange(60) % 3

def pairs(): return tf.data.Dataset.from_tensor_slices((x, y))
def batched(): return pairs().batch(7)
def dicts(): return tf.data.Dataset.from_tensor_slices(
    ({"a": x, "b": y.astype("float32")}, {"kind": y, "size": x[:, :2] / 7}))
def records(): return tf.data.Dataset.from_tensor_slices({"a": x, "label": y})
def array(): return x, y
def endless(): return pairs().repeat()
def inputs_alone(): return tf.data.Dataset.from_tensor_slices(x)
def fails(): raise RuntimeError("no disk")
def empty(): return pairs().take(0)
def ragged(): return tf.data.Dataset.from_generator(
    lambda: ((x[0, : 1 + n % 3], n % 2) for n in range(9)),
    output_signature=(tf.TensorSpec((None,)), tf.TensorSpec((), tf.int64)))
"""


@pytest.fixture
def loaders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "my_loaders.py").write_text(LOADERS)
    monkeypatch.chdir(tmp_path)
    yield
    sys.modules.pop("my_loaders", None)


def call(name: str, **keys: Any) -> Dataset:
    numbers: dict[str, Any] = {"seed": 3, "test_fraction": 0.2, "validation_fraction": 0.2}
    reference = name if ":" in name else f"my_loaders:{name}"
    return load_dataset(DataConfig(kind="loader", loader=reference, **{**numbers, **keys}))


@pytest.mark.usefixtures("loaders")
def test_a_loader_s_rows_are_held_or_spooled_alike() -> None:
    held, batched = call("pairs"), call("batched")
    assert not isinstance(held.train, Stream)
    assert held.fingerprint == batched.fingerprint
    spooled = call("pairs", memory_bytes=100)
    assert isinstance(spooled.train, Stream)
    splits = [spooled.train, spooled.validation, spooled.test]
    rows = np.concatenate([split.take(slice(None)).inputs[""] for split in splits])
    assert sorted(rows[:, 0].tolist()) == list(range(0, 240, 4))
    assert spooled.num_classes == 3


@pytest.mark.usefixtures("loaders")
@pytest.mark.parametrize("memory_bytes", [2**20, 100])
def test_a_loader_may_name_inputs_and_targets(memory_bytes: int) -> None:
    dataset = call("dicts", memory_bytes=memory_bytes)
    rows = dataset.train.take(slice(2))
    assert {name: array.shape for name, array in rows.inputs.items()} == {"a": (2, 4), "b": (2, 1)}
    assert {name: head.task for name, head in dataset.targets.items()} == {
        "kind": "multiclass",
        "size": "regression",
    }
    assert call("records", target="label", memory_bytes=memory_bytes).num_classes == 3


@pytest.mark.usefixtures("loaders")
@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("array", "returned a builtins.tuple; return a tf.data.Dataset"),
        ("endless", "leave out .repeat()"),
        ("inputs_alone", "its data set gives one tensor"),
        ("records", "data.target must name what is to be learnt"),
        ("fails", "failed: RuntimeError: no disk"),
        ("empty", "is empty"),
        ("ragged", "not of one shape"),
    ],
)
def test_a_loader_that_returns_something_else_is_told_what_to_return(
    name: str, sentence: str
) -> None:
    with pytest.raises(DatasetError) as caught:
        call(name)
    assert sentence in str(caught.value)


@pytest.mark.usefixtures("loaders")
def test_a_loader_that_is_not_there_is_named() -> None:
    with pytest.raises(ConfigError, match="does not import"):
        call("nowhere:load")
    with pytest.raises(ConfigError, match="no function 'nothing'"):
        call("nothing")
