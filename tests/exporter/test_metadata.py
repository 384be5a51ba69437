"""TFLite metadata, read back by hand: what a file says, and that nothing else changes."""

from __future__ import annotations

import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest

from contract import layout
from contract.lite import LiteModel
from contract.lite.schema import find_scalings
from contract.signature import TensorSpec
from exporter.artifacts.metadata import add_metadata, describe_model
from exporter.data.pixels import PixelScale
from tests.exporter.models_for_tests import build_branching, build_softmax, make_dataset
from tests.exporter.test_tflite import convert, save

pytestmark = pytest.mark.tensorflow

IMAGES = make_dataset()


class Fields:
    """A table of a flatbuffer, by field number (https://flatbuffers.dev/internals/)."""

    def __init__(self, content: bytes, at: int) -> None:
        self.content, self.at = content, at

    @staticmethod
    def root(content: bytes) -> Fields:
        return Fields(content, struct.unpack_from("<I", content)[0])

    def find(self, field: int) -> int | None:
        vtable = self.at - struct.unpack_from("<i", self.content, self.at)[0]
        if 4 + 2 * field >= struct.unpack_from("<H", self.content, vtable)[0]:
            return None
        (offset,) = struct.unpack_from("<H", self.content, vtable + 4 + 2 * field)
        return self.at + offset if offset else None

    def number(self, field: int, code: str = "I") -> float:
        at = self.find(field)
        return 0 if at is None else struct.unpack_from(f"<{code}", self.content, at)[0]

    def follow(self, field: int) -> int:
        at = self.find(field)
        assert at is not None, f"field {field} is not set"
        return at + int(struct.unpack_from("<I", self.content, at)[0])

    def table(self, field: int) -> Fields:
        return Fields(self.content, self.follow(field))

    def vector(self, field: int, code: str) -> list[float]:
        at = self.follow(field)
        (count,) = struct.unpack_from("<I", self.content, at)
        return list(struct.unpack_from(f"<{count}{code}", self.content, at + 4))

    def tables(self, field: int) -> list[Fields]:
        start = self.follow(field) + 4
        return [
            Fields(self.content, start + 4 * at + int(offset))
            for at, offset in enumerate(self.vector(field, "I"))
        ]

    def text(self, field: int) -> str:
        at = self.follow(field)
        (size,) = struct.unpack_from("<I", self.content, at)
        return self.content[at + 4 : at + 4 + size].decode()


def read_metadata(content: bytes) -> Fields:
    model = Fields.root(content)
    named = {one.text(0): int(one.number(1)) for one in model.tables(6)}
    buffer = model.tables(4)[named["TFLITE_METADATA"]]
    found = bytes(map(int, buffer.vector(0, "B")))
    assert found[4:8] == b"M001"
    return Fields.root(found)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, bytes]:
    """A file of several signatures without metadata, and the same with it."""
    path = tmp_path_factory.mktemp("images") / "model"
    made = save(build_softmax((28, 28, 1), 10), IMAGES, path)
    content = convert(made, IMAGES, path, layout.FLOAT32).read_bytes()
    return content, add_metadata(
        content, describe_model("digits", list(made.signatures.values()), made.heads, IMAGES.pixels)
    )


def test_a_file_says_its_name_its_normalisation_and_its_labels(
    plain: tuple[bytes, bytes], tmp_path: Path
) -> None:
    metadata = read_metadata(plain[1])
    assert metadata.text(0) == "digits"
    assert "serving_uint8" in metadata.text(1)
    subgraphs = {one.text(0): one for one in metadata.tables(3)}
    default = subgraphs["serving_default"]
    (images,) = default.tables(2)
    assert images.text(0) == "images"
    content = images.table(3)
    assert content.number(0, "B") == 2, "image properties"
    size = content.table(1).table(1)
    assert (size.number(0), size.number(1)) == (28, 28)
    assert content.table(1).number(0, "b") == 2, "grey"
    options = images.tables(4)[0].table(1)
    assert (options.vector(0, "f"), options.vector(1, "f")) == ([0.0], [255.0])
    (output,) = default.tables(3)
    assert output.text(0) == "probabilities"
    (labels,) = output.tables(6)
    assert (labels.text(0), labels.number(2, "b")) == ("labels.txt", 2)
    file = tmp_path / "model.tflite"
    file.write_bytes(plain[1])
    with zipfile.ZipFile(file) as archive:
        assert archive.read("labels.txt").decode().splitlines() == list(IMAGES.class_names)
    raw = subgraphs["serving_uint8"].tables(2)[0].tables(4)[0].table(1)
    assert (raw.vector(0, "f"), raw.vector(1, "f")) == ([0.0], [1.0])


def test_the_answers_of_every_signature_stay_bit_for_bit(plain: tuple[bytes, bytes]) -> None:
    with LiteModel(plain[0]) as before, LiteModel(plain[1]) as after:
        assert before.signatures == after.signatures
        for name, signature in before.signatures.items():
            ((key, spec),) = signature.inputs.items()
            shape = [9, *(size or 1 for size in (spec.shape or ())[1:])]
            rows = np.random.default_rng(1).integers(0, 256, shape).astype(spec.numpy_dtype)
            for got, expected in zip(
                after.predict({key: rows}, signature_name=name).values(),
                before.predict({key: rows}, signature_name=name).values(),
                strict=True,
            ):
                np.testing.assert_array_equal(got, expected)


def test_tensorflows_own_interpreter_reads_it(plain: tuple[bytes, bytes]) -> None:
    import tensorflow as tf

    interpreter = tf.lite.Interpreter(model_content=plain[1])
    assert set(interpreter.get_signature_list()) >= {"serving_default", "serving_uint8"}
    runner = interpreter.get_signature_runner("serving_default")
    assert runner(images=np.zeros((2, 28, 28, 1), np.float32))["probabilities"].shape == (2, 10)


def test_metadata_is_small_and_the_same_each_time(plain: tuple[bytes, bytes]) -> None:
    content, noted = plain
    assert len(noted) - len(content) < 4096
    assert noted[-len(content) - 4096 :].count(content[8:4096]) == 1, (
        "the model itself is as it was"
    )
    note = describe_model("m", [], {}, None)
    assert add_metadata(content, note) == add_metadata(content, note)


def test_outputs_with_labels_of_their_own_have_files_of_their_own(tmp_path: Path) -> None:
    dataset = make_dataset((6,), num_classes=3)
    made = save(build_branching((6,), 3), dataset, tmp_path)
    content = convert(made, dataset, tmp_path, layout.FLOAT32).read_bytes()
    heads = {
        "digit": made.heads["digit"],
        "size": type(made.heads["digit"])(task="multilabel", class_names=("only",)),
    }
    noted = add_metadata(content, describe_model("m", list(made.signatures.values()), heads, None))
    file = tmp_path / "noted.tflite"
    file.write_bytes(noted)
    with zipfile.ZipFile(file) as archive:
        assert sorted(archive.namelist()) == ["labels_digit.txt", "labels_size.txt"]
    (default,) = read_metadata(noted).tables(3)
    assert {one.text(0): one.tables(6)[0].text(0) for one in default.tables(3)} == {
        "digit": "labels_digit.txt",
        "size": "labels_size.txt",
    }


@pytest.mark.parametrize(
    ("scale", "mean", "std"),
    [(PixelScale(0, 1), 0, 255), (PixelScale(-1, 1), 127.5, 127.5), (PixelScale(0, 255), 0, 1)],
)
def test_normalisation_is_of_pixels_from_0_to_255(
    scale: PixelScale, mean: float, std: float
) -> None:
    from contract.signature import Signature

    signature = Signature(
        "serving_default", {"images": TensorSpec("images", "float32", (None, 8, 9, 3))}, {}
    )
    note = describe_model("m", [signature], {}, scale).tensors["serving_default"]["images"]
    assert note.normalisation is not None
    assert (note.normalisation.mean, note.normalisation.std) == (mean, std)
    assert (note.size, note.channels) == ((8, 9), 3)


@pytest.mark.parametrize("scale", [PixelScale(0, 1), PixelScale(-1, 1), PixelScale(0, 255)])
def test_what_is_said_of_pixels_is_read_again(
    plain: tuple[bytes, bytes], scale: PixelScale
) -> None:
    with LiteModel(plain[0]) as model:
        note = describe_model("m", list(model.signatures.values()), {}, scale)
    scalings = find_scalings(add_metadata(plain[0], note))
    pixels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    made = scalings["serving_default"].apply(pixels)
    assert np.allclose(made, scale.apply(pixels), atol=1e-6)
    assert np.array_equal(scalings["serving_uint8"].apply(pixels), pixels)
    assert find_scalings(plain[0]) == {}
