"""TFLite variants: their signatures and dtypes, and operators that TFLite lacks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from contract import layout
from contract.golden import write_golden
from contract.lite import LiteModel, list_custom_ops
from exporter.artifacts.exportable import Recipe
from exporter.artifacts.golden import list_variant_signatures, make_calibration
from exporter.artifacts.tflite import Conversion, ConversionJob
from exporter.artifacts.tflite import convert as convert_variant
from exporter.artifacts.web import find_free_axis
from exporter.data.dataset import Dataset, to_float32
from exporter.models.keras import KerasModel
from tests.exporter.models_for_tests import (
    build_betainc,
    build_branching,
    build_softmax,
    draw_examples,
    make_dataset,
    make_exportable,
)

pytestmark = pytest.mark.tensorflow

IMAGES = make_dataset()


def save(model: Any, dataset: Dataset, path: Path) -> KerasModel:
    made = make_exportable(model, dataset)
    made.save(path)
    return made


def convert(predictor: KerasModel, dataset: Dataset, path: Path, variant: str) -> Path:
    made = try_to_convert(predictor, dataset, path, variant)
    assert made.file is not None, made.problem
    return made.file


def try_to_convert(predictor: KerasModel, dataset: Dataset, path: Path, variant: str) -> Conversion:
    names = list_variant_signatures(predictor, variant)
    calibration = None
    if variant in layout.INT8_VARIANTS:
        calibration = path / "calibration.npz"
        write_golden(calibration, make_calibration(predictor, names, draw_examples(dataset))[0])
    source = None
    if variant == layout.WEB:
        source = path / "batch of 1"
        if not source.is_dir():
            assert predictor.save_for_conversion(source, Recipe(batch_size=1))
    return convert_variant(
        ConversionJob(
            candidate=path,
            variant=variant,
            signatures=[predictor.signatures[name] for name in names],
            source=source,
            calibration=calibration,
        )
    )


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, KerasModel]:
    path = tmp_path_factory.mktemp("saved") / "model"
    return path, save(build_softmax((28, 28, 1), 10), IMAGES, path)


@pytest.mark.parametrize("variant", layout.VARIANTS)
def test_every_variant_answers_any_batch_with_builtin_operators_only(
    saved: tuple[Path, KerasModel], variant: str
) -> None:
    file = convert(saved[1], IMAGES, saved[0], variant)
    assert list_custom_ops(file.read_bytes()) == []
    lacks_tutorial = variant in (*layout.INT8_VARIANTS, layout.WEB)
    tutorial = set() if lacks_tutorial else {"predict_images"}
    with LiteModel(file) as model:
        assert set(model.signatures) == {"serving_default", "serving_uint8"} | tutorial
        for rows in (1, 5, 33):
            pixels = IMAGES.test.inputs[""][:rows]
            raw = model.predict({"images": pixels[..., 0]}, signature_name="serving_uint8")
            golden = saved[1].predict({"images": to_float32(pixels)})["probabilities"]
            np.testing.assert_allclose(raw["probabilities"], golden, atol=0.1)


def test_int8_takes_and_gives_integers(saved: tuple[Path, KerasModel]) -> None:
    with LiteModel(convert(saved[1], IMAGES, saved[0], "int8")) as model:
        raw = model.raw_signatures
        assert raw["serving_default"].inputs["images"].dtype == "int8"
        assert raw["serving_default"].outputs["probabilities"].dtype == "int8"
        assert raw["serving_uint8"].inputs["images"].dtype == "uint8"


def test_int8_may_take_and_give_floats_and_answers_alike(
    saved: tuple[Path, KerasModel],
) -> None:
    files = [convert(saved[1], IMAGES, saved[0], variant) for variant in layout.INT8_VARIANTS]
    with LiteModel(files[0]) as integers, LiteModel(files[1]) as floats:
        raw = floats.raw_signatures
        assert raw["serving_default"].inputs["images"].dtype == "float32"
        assert raw["serving_default"].outputs["probabilities"].dtype == "float32"
        batch = {"images": to_float32(IMAGES.test.inputs[""])}
        np.testing.assert_array_equal(
            floats.predict(batch)["probabilities"], integers.predict(batch)["probabilities"]
        )


def test_every_size_of_the_web_variant_is_fixed_and_it_takes_floats_or_pixels(
    saved: tuple[Path, KerasModel],
) -> None:
    with LiteModel(convert(saved[1], IMAGES, saved[0], "web")) as model:
        assert model.fixed_rows == {"serving_default": 1, "serving_uint8": 1}
        raw = model.raw_signatures
        assert raw["serving_default"].inputs["images"].describe() == "float32 (batch, 28, 28, 1)"
        assert raw["serving_uint8"].inputs["images"].describe() == "uint8 (batch, 28, 28)"
        for signature in raw.values():
            assert find_free_axis(signature, fixed_rows=1) == ""
            assert find_free_axis(signature, fixed_rows=0) != ""


def test_a_file_whose_batch_is_free_is_no_web_variant(saved: tuple[Path, KerasModel]) -> None:
    path, predictor = saved
    signatures = [predictor.signatures["serving_default"]]
    made = convert_variant(ConversionJob(candidate=path, variant="web", signatures=signatures))
    assert made.file is None
    assert "LiteRT.js runs fixed sizes only" in made.problem


def test_signatures_share_one_set_of_weights(saved: tuple[Path, KerasModel]) -> None:
    size = convert(saved[1], IMAGES, saved[0], "float32").stat().st_size
    weights = 784 * 10 * 4
    assert weights < size < 1.6 * weights


def test_a_model_with_two_inputs_converts(tmp_path: Path) -> None:
    dataset = make_dataset((6,), num_classes=3)
    predictor = save(build_branching((6,), 3), dataset, tmp_path)
    for variant in ("float32", "int8"):
        with LiteModel(convert(predictor, dataset, tmp_path, variant)) as model:
            batch = dict.fromkeys(("left", "right"), dataset.test.inputs[""][:7])
            got, golden = model.predict(batch), predictor.predict(batch)
            assert set(got) == {"digit", "size"}
            np.testing.assert_allclose(got["digit"], golden["digit"], atol=0.1)


@pytest.mark.parametrize("variant", ["float32", "int8"])
def test_an_operator_that_tflite_lacks_is_named_with_its_layer(
    tmp_path: Path, variant: str
) -> None:
    predictor = save(build_betainc((28, 28, 1), 10), IMAGES, tmp_path)
    made = try_to_convert(predictor, IMAGES, tmp_path, variant)
    assert made.file is None
    assert "uses Betainc (layer odd), which TFLite has no builtin operator for" in made.problem
    assert made.remedy == "replace the layer"
    assert not (tmp_path / layout.variant_path(variant)).exists()
