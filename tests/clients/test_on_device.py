"""Predictions on the device: variants, paths, int8 hidden, refusals."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
from pathlib import Path

import msgspec
import numpy as np
import pytest

from clients.files.predict import find_scaling
from clients.on_device import OnDevicePredictor, list_variants
from contract import layout
from contract.errors import (
    ConfigError,
    ManifestError,
    RequestError,
    SignatureNotFoundError,
    TensorMismatchError,
)
from contract.golden import GoldenExamples, read_golden
from contract.manifest import InputStatistics, read_manifest, write_manifest
from contract.pictures import PixelScaling
from tests.lite_models import FOLDER, answer_row_by_row


@pytest.fixture(scope="module")
def version_dir(published_mlp: Path) -> Path:
    return published_mlp / "mlp" / "1"


@pytest.fixture(scope="module")
def golden(version_dir: Path) -> GoldenExamples:
    return read_golden(version_dir / layout.GOLDEN).signatures["serving_default"]


@pytest.mark.parametrize("variant", layout.DEFAULT_VARIANTS)
def test_every_variant_of_a_published_version_gives_golden_classes(
    version_dir: Path, golden: GoldenExamples, variant: str
) -> None:
    with OnDevicePredictor(version_dir, variant=variant) as predictor:
        answer = predictor.predict(golden.inputs)["probabilities"]
    agreement = np.mean(answer.argmax(1) == golden.outputs["probabilities"].argmax(1))
    assert answer.dtype == np.float32
    assert agreement >= 0.95


def test_float32_gives_golden_numbers(version_dir: Path, golden: GoldenExamples) -> None:
    answer = OnDevicePredictor(version_dir).predict(golden.inputs["images"])
    assert np.abs(answer["probabilities"] - golden.outputs["probabilities"]).max() <= 1e-5


def test_a_base_path_means_its_newest_version(published_mlp: Path, tmp_path: Path) -> None:
    for version in ("2", "10", "not-a-version"):
        (tmp_path / version).mkdir()
        source = published_mlp / "mlp" / "1" / "model.tflite"
        (tmp_path / version / "model.tflite").write_bytes(source.read_bytes())
    assert OnDevicePredictor(tmp_path).path == tmp_path / "10" / "model.tflite"


def test_a_single_file_is_enough(version_dir: Path, golden: GoldenExamples) -> None:
    predictor = OnDevicePredictor(version_dir / "model.tflite")
    assert predictor.predict(golden.inputs["images"][:3])["probabilities"].shape == (3, 10)


def test_signatures_are_asked_by_name(version_dir: Path) -> None:
    pixels = np.zeros((5, *_pixel_shape(version_dir)), np.uint8)
    predictor = OnDevicePredictor(version_dir)
    assert predictor.predict(pixels, signature_name="serving_uint8")["probabilities"].shape[0] == 5


def test_scaled_pixels_are_not_sent_as_black_ones(version_dir: Path) -> None:
    pixels = np.random.default_rng(0).random((2, *_pixel_shape(version_dir)), np.float32)
    with pytest.raises(TensorMismatchError, match=r"\(x \* 255\)\.round\(\)\.astype\('uint8'\)"):
        OnDevicePredictor(version_dir).predict(pixels, signature_name="serving_uint8")


def test_raw_pixels_are_sent_to_the_signature_that_scales_them(version_dir: Path) -> None:
    pixels = np.full((2, *_pixel_shape(version_dir)), 200, np.uint8)
    with pytest.raises(TensorMismatchError, match=r"raw pixels, uint8, to signature serving_uint8"):
        OnDevicePredictor(version_dir).predict(pixels)


def _pixel_shape(version_dir: Path) -> tuple[int, ...]:
    spec = OnDevicePredictor(version_dir).signatures["serving_uint8"].inputs["images"]
    return tuple(size for size in (spec.shape or ())[1:] if size is not None)


def test_a_signature_of_strings_is_said_to_need_a_server(version_dir: Path) -> None:
    with pytest.raises(SignatureNotFoundError, match="need a server"):
        OnDevicePredictor(version_dir).predict(
            {"image_bytes": np.array([b"x"], object)}, signature_name="serving_image_bytes"
        )


def test_an_unknown_variant_lists_those_there_are(version_dir: Path) -> None:
    with pytest.raises(ConfigError, match="float32, float16, dynamic_range, int8"):
        OnDevicePredictor(version_dir, variant="int4")


def test_a_path_without_a_version_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no version below it"):
        OnDevicePredictor(tmp_path)


def test_a_file_that_is_no_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.tflite"
    path.write_bytes(b"not a model at all")
    with pytest.raises(ManifestError, match="TFLite"):
        OnDevicePredictor(path)


def test_nan_is_refused_where_that_is_asked_for(version_dir: Path) -> None:
    images = np.zeros((2, 784), np.float32)
    images[1, 7] = np.nan
    with pytest.raises(TensorMismatchError, match=r"the first at \(1, 7\)"):
        OnDevicePredictor(version_dir, allow_non_finite=False).predict(images)


def test_an_output_filter_keeps_only_those_outputs(version_dir: Path) -> None:
    predictor = OnDevicePredictor(version_dir)
    images = np.zeros((1, 784), np.float32)
    assert list(predictor.predict(images, output_filter=["probabilities"])) == ["probabilities"]
    with pytest.raises(RequestError, match="scores"):
        predictor.predict(images, output_filter=["scores"])


def test_a_wrong_shape_is_explained(version_dir: Path) -> None:
    with pytest.raises(TensorMismatchError, match=r"wants float32 \(batch, 784\)"):
        OnDevicePredictor(version_dir).predict(np.zeros((2, 28, 28), np.float32))


def test_threads_share_one_predictor(version_dir: Path, golden: GoldenExamples) -> None:
    predictor = OnDevicePredictor(version_dir)
    images = golden.inputs["images"]
    alone = predictor.predict(images)["probabilities"]
    answers: list[np.ndarray] = []

    def ask() -> None:
        for _ in range(20):
            answers.append(predictor.predict(images)["probabilities"])

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 80
    assert all(np.array_equal(answer, alone) for answer in answers)


def test_variants_are_listed_in_the_order_of_every_table(version_dir: Path) -> None:
    assert list_variants(version_dir) == list(layout.DEFAULT_VARIANTS)


def test_predicting_loads_neither_tensorflow_nor_grpc_of_a_server(version_dir: Path) -> None:
    code = (
        "import sys; from clients import OnDevicePredictor; import numpy as np;"
        f"OnDevicePredictor({str(version_dir)!r}).predict(np.zeros((1, 784), np.float32));"
        "print([name for name in ('tensorflow', 'httpx', 'rich', 'PIL') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stderr


def test_memory_stays_flat_over_many_calls(version_dir: Path) -> None:
    code = (
        "import psutil, numpy as np; from clients import OnDevicePredictor;"
        f"p = OnDevicePredictor({str(version_dir)!r}); x = np.zeros((1, 784), np.float32)\n"
        "me = psutil.Process()\n"
        "for _ in range(20000): p.predict(x)\n"
        "before = me.memory_info().rss\n"
        "for _ in range(200000): p.predict(x)\n"
        "print((me.memory_info().rss - before) // 1024)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert int(done.stdout) < 1024, done.stderr


def test_a_file_of_another_tool_needs_no_version_around_it(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).random((3, 6, 6, 2), np.float32)
    wanted = answer_row_by_row(FOLDER / "cnn.tflite", rows)
    (tmp_path / "base" / "3").mkdir(parents=True)
    shutil.copy(FOLDER / "cnn.tflite", tmp_path / "base" / "3" / "model.tflite")
    paths = (FOLDER / "cnn.tflite", tmp_path / "base", tmp_path / "base" / "3")
    for predictor in map(OnDevicePredictor, paths):
        np.testing.assert_array_equal(predictor.predict(rows)["dense"], wanted)
        assert predictor.fixed_rows == {"serving_default": 1}


def test_advice_on_a_file_of_another_tool_fits_it(tmp_path: Path) -> None:
    predictor = OnDevicePredictor(FOLDER / "fixed.tflite")
    with pytest.raises(SignatureNotFoundError, match=r"coupled, four.*as signature_name$"):
        predictor.predict(np.zeros((1, 3), np.float32))
    (tmp_path / "1").mkdir()
    shutil.copy(FOLDER / "cnn.tflite", tmp_path / "1" / "model.tflite")
    with pytest.raises(ConfigError, match=r"it has float32; copies.*export --model .*1 --examples"):
        OnDevicePredictor(tmp_path, variant="int8")


def test_what_pixels_become_is_what_the_manifest_says_else_the_file_s_metadata(
    version_dir: Path, tmp_path: Path
) -> None:
    copied = tmp_path / "1"
    shutil.copytree(version_dir, copied)
    signatures = OnDevicePredictor(copied).signatures
    known = InputStatistics(
        min=0, max=200, mean=9, std=9, num_rows=9, image_shape=(28, 28, 1), pixel_scale=(0, 255)
    )
    manifest = msgspec.structs.replace(read_manifest(copied), inputs={"": known})
    write_manifest(copied, manifest)
    assert find_scaling(copied, signatures) == PixelScaling.between(0, 255)
    (copied / layout.MANIFEST).unlink()
    for path in (copied, copied / "model.tflite"):
        assert find_scaling(path, signatures, "serving_uint8") == PixelScaling.between(0, 255)
    foreign = OnDevicePredictor(FOLDER / "cnn.tflite")
    assert find_scaling(foreign.path, foreign.signatures) is None
