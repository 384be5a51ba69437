"""`predict`: in-process answers for the user's own inputs, as a golden file."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from contract import layout
from contract.errors import ConfigError, DatasetError
from contract.golden import read_golden
from contract.lite import LiteModel
from contract.parity import Tolerance, replay
from exporter.cli import main
from exporter.predict import predict_files, read_inputs

pytestmark = pytest.mark.tensorflow


def test_answers_can_be_replayed_through_any_copy(
    published_mlp: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    version = published_mlp / "mlp" / "1"
    images = np.random.default_rng(0).integers(0, 256, (11, 28, 28), np.uint8)
    np.save(tmp_path / "mine.npy", images)
    output = tmp_path / "golden.npz"
    flags = ["--input", str(tmp_path / "mine.npy"), "--output", str(output), "--batch_size", "4"]
    assert main(["predict", str(version), *flags, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["batch_sizes"] == [4, 4, 3]
    examples = read_golden(output).signatures["serving_uint8"]
    np.testing.assert_array_equal(examples.inputs["images"], images)
    with LiteModel(version / layout.variant_path("float32")) as model:
        report = replay(examples, model, Tolerance(1e-5), signature_name="serving_uint8")
    assert report.passed
    assert report.num_rows == 11


def test_pictures_go_to_the_signature_that_takes_files(published_mlp: Path, tmp_path: Path) -> None:
    for name in ("a.png", "b.jpg"):
        Image.new("L", (50, 40), 128).save(tmp_path / name)
    prediction = predict_files(
        published_mlp / "mlp" / "1",
        [tmp_path / "a.png", tmp_path / "b.jpg"],
        tmp_path / "golden.npz",
        signature_name="",
        batch_size=32,
    )
    assert prediction.signature_name == "serving_image_bytes"
    assert prediction.num_examples == 2


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (["--signature_name", "nope"], "signature 'nope' was asked for"),
        (["--batch_size", "0"], "give 1 or more"),
        (["--signature_name", "serving_default"], "wants float32 (batch, 784)"),
    ],
)
def test_what_does_not_fit_is_one_sentence_and_a_usage_error(
    published_mlp: Path,
    tmp_path: Path,
    flags: list[str],
    text: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    np.save(tmp_path / "mine.npy", np.zeros((3, 28, 28, 1), np.uint8))
    given = ["--input", str(tmp_path / "mine.npy"), "--output", str(tmp_path / "golden.npz")]
    assert main(["predict", str(published_mlp / "mlp" / "1"), *given, *flags]) == 2
    assert text in capsys.readouterr().err
    assert not (tmp_path / "golden.npz").exists()


def test_files_of_no_use_are_named(tmp_path: Path) -> None:
    broken, text = tmp_path / "broken.npz", tmp_path / "notes.txt"
    broken.write_bytes(b"PK\x03\x04 nothing")
    text.write_text("hello")
    with pytest.raises(DatasetError, match="broken"):
        read_inputs([broken])
    with pytest.raises(DatasetError, match="missing"):
        read_inputs([tmp_path / "missing.png"])
    with pytest.raises(ConfigError, match=r"give one \.npy"):
        read_inputs([text])


def test_pickles_are_never_loaded(tmp_path: Path) -> None:
    np.save(tmp_path / "evil.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(DatasetError, match="evil"):
        read_inputs([tmp_path / "evil.npy"])


def test_a_damaged_picture_is_one_sentence(
    published_mlp: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stream = io.BytesIO()
    Image.new("L", (28, 28), 7).save(stream, "PNG")
    picture = tmp_path / "broken.png"
    picture.write_bytes(stream.getvalue()[:-30])
    output = tmp_path / "golden.npz"
    flags = ["--input", str(picture), "--output", str(output)]
    assert main(["predict", str(published_mlp / "mlp" / "1"), *flags]) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith("the graph of 'serving_image_bytes' refused the inputs: Invalid PNG")
    assert not output.exists()
