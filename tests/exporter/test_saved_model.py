"""Which signatures a model gets, and that the SavedModel on disk answers like the model."""

from __future__ import annotations

import errno
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from PIL import Image

from contract import layout
from contract.errors import RequestError
from contract.signature import CLASSIFY_METHOD
from contract.wire.signatures import read_signatures
from exporter.data.dataset import Dataset, to_float32
from exporter.models.keras import KerasModel
from exporter.verification.reload import load_saved_model
from tests.exporter.file_limit import limit_files
from tests.exporter.models_for_tests import (
    build_branching,
    build_logits,
    build_softmax,
    make_dataset,
    make_exportable,
)

pytestmark = pytest.mark.tensorflow

IMAGES = make_dataset()
FEATURES = make_dataset((20,), num_classes=3)


def save(model: Any, dataset: Dataset, path: Path, **options: str) -> KerasModel:
    made = make_exportable(model, dataset, **options)
    made.save(path)
    return made


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, KerasModel]:
    path = tmp_path_factory.mktemp("saved") / "model"
    tf_keras.utils.set_random_seed(0)  # the same weights in every run: answers are compared
    return path, save(build_softmax((28, 28, 1), 10), IMAGES, path)


def encode(pixels: Any, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def files(*contents: bytes) -> dict[str, Any]:
    array = np.empty(len(contents), dtype=object)
    array[:] = contents
    return {"image_bytes": array}


def ask_files(predictor: KerasModel, *contents: bytes) -> Any:
    return predictor.predict(files(*contents), signature_name="serving_image_bytes")[
        "probabilities"
    ]


def test_images_and_probabilities_have_the_names_that_were_promised(
    saved: tuple[Path, KerasModel],
) -> None:
    signatures = read_signatures((saved[0] / layout.SAVED_MODEL).read_bytes())
    described = {
        name: (
            {key: spec.describe() for key, spec in one.inputs.items()},
            {key: spec.describe() for key, spec in one.outputs.items()},
        )
        for name, one in signatures.items()
    }
    assert described == {
        "serving_default": (
            {"images": "float32 (batch, 28, 28, 1)"},
            {"probabilities": "float32 (batch, 10)"},
        ),
        "serving_uint8": (
            {"images": "uint8 (batch, 28, 28)"},
            {"probabilities": "float32 (batch, 10)"},
        ),
        "serving_image_bytes": (
            {"image_bytes": "string (batch,)"},
            {"probabilities": "float32 (batch, 10)"},
        ),
        "classify": (
            {"inputs": "string (batch,)"},
            {"classes": "string (batch, 10)", "scores": "float32 (batch, 10)"},
        ),
        "predict_images": (
            {"images": "float32 (batch, 784)"},
            {"scores": "float32 (batch, 10)"},
        ),
    }
    assert signatures["classify"].method_name == CLASSIFY_METHOD


def test_what_is_on_disk_and_in_process_have_the_same_signatures(
    saved: tuple[Path, KerasModel],
) -> None:
    assert read_signatures((saved[0] / layout.SAVED_MODEL).read_bytes()) == saved[1].signatures


def test_the_in_process_answers_are_the_keras_models_own(tmp_path: Path) -> None:
    model = build_softmax((28, 28, 1), 10)
    predictor = save(model, IMAGES, tmp_path / "model")
    images = to_float32(IMAGES.test.inputs[""])
    got = predictor.predict({"images": images})["probabilities"]
    np.testing.assert_allclose(got, model.predict(images, verbose=0), rtol=0, atol=1e-6)


def test_the_reloaded_model_answers_bit_for_bit(saved: tuple[Path, KerasModel]) -> None:
    reloaded = load_saved_model(saved[0])
    for name, batch in {
        "serving_default": {"images": to_float32(IMAGES.test.inputs[""])},
        "serving_uint8": {"images": IMAGES.test.inputs[""][..., 0]},
        "serving_image_bytes": files(*(encode(one[..., 0]) for one in IMAGES.test.inputs[""])),
    }.items():
        expected = saved[1].predict(batch, signature_name=name)["probabilities"]
        got = reloaded.predict(batch, signature_name=name)["probabilities"]
        np.testing.assert_array_equal(got, expected)


def test_pixels_as_float_as_uint8_and_as_files_give_one_answer(
    saved: tuple[Path, KerasModel],
) -> None:
    pixels = IMAGES.test.inputs[""]
    default = saved[1].predict({"images": to_float32(pixels)})["probabilities"]
    raw = saved[1].predict({"images": pixels[..., 0]}, signature_name="serving_uint8")[
        "probabilities"
    ]
    named = ask_files(saved[1], *(encode(one[..., 0]) for one in pixels))
    flat = saved[1].predict(
        {"images": to_float32(pixels, (784,))}, signature_name="predict_images"
    )["scores"]
    for other in (raw, named, flat):
        np.testing.assert_allclose(other, default, rtol=0, atol=1e-6)


def test_class_names_go_into_the_assets_and_into_classify(
    saved: tuple[Path, KerasModel],
) -> None:
    labels = (saved[0] / layout.LABELS).read_text().splitlines()
    assert labels == list(IMAGES.class_names)
    example = tf.train.Example()
    example.features.feature["image/encoded"].bytes_list.value.append(
        encode(IMAGES.test.inputs[""][0, ..., 0])
    )
    inputs = np.array([example.SerializeToString()], dtype=object)
    got = saved[1].predict({"inputs": inputs}, signature_name="classify")
    assert [name.decode() for name in got["classes"][0]] == labels
    raw = saved[1].predict(
        {"images": IMAGES.test.inputs[""][:1, ..., 0]}, signature_name="serving_uint8"
    )
    np.testing.assert_allclose(got["scores"], raw["probabilities"], atol=1e-6)


@pytest.mark.parametrize("kind", ["RGB", "RGBA", "P", "LA", "1", "I;16"])
def test_every_kind_of_png_is_greyed_as_pillow_does(
    saved: tuple[Path, KerasModel], kind: str
) -> None:
    rng = np.random.default_rng(1)
    if kind == "I;16":
        grey = rng.integers(0, 256, (28, 28), np.uint8)
        picture = Image.fromarray(grey.astype(np.uint16) * 257)
    else:
        colour = Image.fromarray(rng.integers(0, 256, (28, 28, 3), np.uint8))
        picture = colour.convert(kind)
        grey = np.asarray(picture.convert("RGB").convert("L"))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    got = ask_files(saved[1], buffer.getvalue())
    expected = saved[1].predict({"images": grey[None]}, signature_name="serving_uint8")[
        "probabilities"
    ]
    # Pillow truncates its weights to 16 bits: a pixel may differ by one level.
    np.testing.assert_allclose(got, expected, atol=0.02)


def test_files_of_any_size_are_resized(saved: tuple[Path, KerasModel]) -> None:
    small = np.kron(np.eye(7, dtype=np.uint8) * 200, np.ones((4, 4), np.uint8))
    large = np.kron(small, np.ones((10, 10), np.uint8))
    got = ask_files(saved[1], encode(small), encode(large), encode(large, "JPEG", quality=98))
    np.testing.assert_allclose(got[1], got[0], atol=0.02)
    np.testing.assert_allclose(got[2], got[0], atol=0.02)


def declare(width: int, height: int) -> bytes:
    """A PNG whose header is valid and declares a size; its data are short."""
    import struct
    import zlib

    def chunk(name: bytes, data: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(name + data))
        return struct.pack(">I", len(data)) + name + data + checksum

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    content = zlib.compress(b"\0" * 1000)
    magic = b"\x89PNG\r\n\x1a\n"
    return magic + chunk(b"IHDR", header) + chunk(b"IDAT", content) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    "size", [(20_000, 20_000), (4097, 4096), (2**31 - 1, 2**31 - 1), (2**32 - 1, 2**32 - 1), (0, 9)]
)
def test_a_png_that_declares_too_many_pixels_is_refused_before_decoding(
    saved: tuple[Path, KerasModel], size: tuple[int, int]
) -> None:
    with pytest.raises(RequestError, match="declares 0 or more than 16777216"):
        ask_files(saved[1], declare(*size))


def test_a_jpeg_that_declares_too_many_pixels_is_refused_before_decoding(
    saved: tuple[Path, KerasModel],
) -> None:
    whole = bytearray(encode(np.zeros((28, 28), np.uint8), "JPEG"))
    at = whole.index(b"\xff\xc0") + 5
    whole[at : at + 4] = (60_000).to_bytes(2, "big") * 2
    with pytest.raises(RequestError, match="declares 0 or more than 16777216"):
        ask_files(saved[1], bytes(whole))


def test_16_megapixels_are_still_answered(saved: tuple[Path, KerasModel]) -> None:
    got = ask_files(saved[1], encode(np.zeros((4096, 4096), np.uint8)))
    assert got.shape == (1, 10)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x89PNG\r\n\x1a\n",
        b"GIF89a" + b"\0" * 40,
        b"BM" + b"\0" * 60,
        encode(np.zeros((28, 28), np.uint8))[:60],
        encode(np.zeros((28, 28), np.uint8), "JPEG")[:200],
    ],
)
def test_one_undecodable_file_fails_the_batch(
    saved: tuple[Path, KerasModel], content: bytes
) -> None:
    good = encode(np.zeros((28, 28), np.uint8))
    with pytest.raises(RequestError):
        ask_files(saved[1], good, content)


def test_colour_images_keep_their_colours(tmp_path: Path) -> None:
    dataset = make_dataset((16, 12, 3), num_classes=4)
    predictor = save(build_softmax((16, 12, 3), 4), dataset, tmp_path / "model")
    assert set(predictor.signatures) == {
        "serving_default",
        "serving_uint8",
        "serving_image_bytes",
        "classify",
    }
    raw = predictor.predict({"images": dataset.test.inputs[""]}, signature_name="serving_uint8")
    named = ask_files(predictor, *map(encode, dataset.test.inputs[""]))
    np.testing.assert_allclose(named, raw["probabilities"], atol=1e-6)


def test_data_that_are_not_images_get_no_image_signatures(tmp_path: Path) -> None:
    predictor = save(build_softmax((20,), 3), FEATURES, tmp_path / "model")
    assert set(predictor.signatures) == {"serving_default"}
    signature = predictor.signatures["serving_default"]
    assert set(signature.inputs) == {"features"}
    assert set(signature.outputs) == {"probabilities"}


def test_784_features_get_the_tutorials_signature(tmp_path: Path) -> None:
    dataset = make_dataset((784,), num_classes=10)
    predictor = save(build_softmax((784,), 10), dataset, tmp_path / "model")
    assert set(predictor.signatures) == {"serving_default", "predict_images"}


@pytest.mark.parametrize(
    ("head", "name"), [("scores_by_class", "scores_by_class"), (None, "outputs")]
)
def test_logits_keep_their_own_name_but_not_a_generated_one(
    tmp_path: Path, head: str | None, name: str
) -> None:
    predictor = save(build_logits((28, 28, 1), 10, head=head), IMAGES, tmp_path / "model")
    assert set(predictor.signatures["serving_default"].outputs) == {name}
    assert set(predictor.signatures["serving_uint8"].outputs) == {name}
    assert "classify" in predictor.signatures


def test_a_regression_head_gets_no_classify(tmp_path: Path) -> None:
    model = build_logits((28, 28, 1), 1, head="value")
    predictor = save(model, IMAGES, tmp_path / "model", loss="mean_squared_error")
    assert set(predictor.signatures) == {"serving_default", "serving_uint8", "serving_image_bytes"}
    assert set(predictor.signatures["serving_default"].outputs) == {"value"}


def test_several_inputs_and_outputs_keep_their_own_names(tmp_path: Path) -> None:
    model = build_branching((6,), 3)
    dataset = make_dataset((6,), num_classes=3)
    predictor = save(model, dataset, tmp_path / "model")
    assert set(predictor.signatures) == {"serving_default"}
    signature = predictor.signatures["serving_default"]
    assert set(signature.inputs) == {"left", "right"}
    assert set(signature.outputs) == {"digit", "size"}
    rng = np.random.default_rng(0)
    batch = {name: rng.random((5, 6), np.float32) for name in ("left", "right")}
    expected = model(batch, training=False)
    for one in (predictor, load_saved_model(tmp_path / "model")):
        got = one.predict(batch)
        for name in ("digit", "size"):
            np.testing.assert_allclose(got[name], expected[name].numpy(), atol=1e-6)


def test_a_layer_with_a_lookup_table_can_be_saved(tmp_path: Path) -> None:
    import tf_keras

    features = tf_keras.layers.Input((20,), name="features")
    codes = tf_keras.layers.IntegerLookup(vocabulary=[0, 1], output_mode="multi_hot")(
        tf_keras.layers.Lambda(lambda x: tf.cast(x, tf.int64))(features)
    )
    model = tf_keras.Model(features, tf_keras.layers.Dense(3, "softmax")(codes))
    predictor = save(model, FEATURES, tmp_path / "model")
    batch = {"features": FEATURES.test.inputs[""][:4]}
    got = load_saved_model(tmp_path / "model").predict(batch)
    np.testing.assert_array_equal(got["probabilities"], predictor.predict(batch)["probabilities"])


def test_a_disk_that_fills_up_under_a_saved_model_raises_what_python_would(tmp_path: Path) -> None:
    model = build_softmax((28, 28, 1), 10)
    with limit_files(4_000), pytest.raises(OSError, match=str(tmp_path)) as caught:
        save(model, IMAGES, tmp_path / "model")
    assert caught.value.errno in (errno.EFBIG, errno.ENOSPC)
