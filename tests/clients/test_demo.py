"""What the page of `demo` is told, and what Python answers it; no browser."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from clients.cli import main
from clients.demo.engine import Engine
from clients.demo.facts import Version
from clients.demo.ink import Ink, measure_ink
from clients.on_device import OnDevicePredictor
from clients.web.server import Request
from contract import layout
from contract.errors import ConfigError, RequestError
from contract.golden import read_golden
from contract.signature import UINT8

LITE = Path(__file__).resolve().parents[1] / "recorded" / "lite"
SERVER = "http://127.0.0.1:8501"


def draw_bars(*, top: int, bottom: int, thickness: int) -> np.ndarray:
    """Upright bars with a foot each, of several widths, each with its box in the middle."""
    pictures = np.zeros((8, 28, 28), np.uint8)
    for row, width in enumerate((8, 10, 12, 14) * 2):
        left = 14 - width // 2
        pictures[row, top:bottom, left : left + thickness] = 255
        pictures[row, bottom - thickness : bottom, left : left + width] = 255
    return pictures


def measure(pictures: np.ndarray) -> Ink:
    ink = measure_ink(pictures)
    assert ink is not None
    return ink


def test_ink_is_as_thick_and_as_large_as_it_was_drawn() -> None:
    ink = measure(draw_bars(top=4, bottom=24, thickness=3))
    assert ink.stroke == pytest.approx(3, rel=0.15)
    assert (ink.height, ink.width) == (20, 14)
    assert ink.center == (14, 14)
    assert not ink.by_mass


def test_dark_ink_on_paper_is_measured_as_light_ink_is() -> None:
    light = measure(draw_bars(top=4, bottom=24, thickness=3))
    dark = measure(255 - draw_bars(top=4, bottom=24, thickness=3))
    assert dark.is_dark and not light.is_dark
    assert (dark.stroke, dark.width, dark.center) == (light.stroke, light.width, light.center)


def test_pictures_that_are_centred_by_mass_are_told_from_those_that_are_not() -> None:
    pictures = draw_bars(top=6, bottom=22, thickness=3)
    for picture in pictures:
        y, x = np.nonzero(picture)
        moved = np.roll(picture, (round(13.5 - y.mean()), round(13.5 - x.mean())), axis=(0, 1))
        picture[:] = moved
    assert measure(pictures).by_mass


@pytest.mark.parametrize(("ends", "is_stretched"), [((22, 24, 26, 27), False), ((26,) * 4, True)])
def test_ink_that_is_always_as_high_is_to_be_stretched(
    ends: tuple[int, ...], is_stretched: bool
) -> None:
    pictures = np.concatenate([draw_bars(top=2, bottom=end, thickness=3) for end in ends])
    assert measure(pictures).is_stretched == is_stretched


def test_blurred_ink_has_wider_edges() -> None:
    sharp = draw_bars(top=4, bottom=24, thickness=4)
    kernel = np.ones(3) / 3
    rows = np.apply_along_axis(np.convolve, 2, sharp.astype(float), kernel, "same")
    blurred = np.apply_along_axis(np.convolve, 1, rows, kernel, "same").astype(np.uint8)
    assert measure(blurred).blur > 2 * measure(sharp).blur


@pytest.mark.parametrize("pictures", [np.zeros((3, 28, 28)), np.full((3, 96, 96), 255)])
def test_photographs_and_blank_pictures_are_not_drawn(pictures: np.ndarray) -> None:
    assert measure_ink(pictures.astype(np.uint8)) is None


def make_foreign(folder: Path, name: str = "cnn") -> Path:
    """A version of another tool: a file, and no word of what it is."""
    version_dir = folder / "1"
    version_dir.mkdir()
    shutil.copy(LITE / f"{name}.tflite", version_dir / layout.TFLITE)
    return version_dir


def test_pixels_are_asked_for_where_the_version_takes_them(published_mlp: Path) -> None:
    version = Version(published_mlp / "mlp" / "1", server=SERVER, model_name="mlp")
    facts = version.facts
    assert facts.signature_name == UINT8
    assert facts.picture is not None and facts.picture.ink is not None
    assert (facts.picture.height, facts.picture.width, facts.picture.channels) == (28, 28, 1)
    assert facts.server_url == f"{SERVER}/v1/models/mlp/versions/1"
    (output,) = facts.outputs
    assert output.head is not None and output.head.class_names == tuple("0123456789")


def test_the_first_examples_show_every_class(published_mlp: Path) -> None:
    version = Version(published_mlp / "mlp" / "1", server=SERVER, model_name="mlp")
    golden = read_golden(published_mlp / "mlp" / "1" / layout.GOLDEN).signatures[UINT8]
    classes = set(golden.outputs["probabilities"].argmax(axis=1).tolist())
    scores = [one.outputs["probabilities"] for one in version.examples[: len(classes)]]
    assert {int(np.argmax(one)) for one in scores} == classes  # type: ignore[arg-type]


def test_a_version_of_another_tool_has_its_own_signature_and_says_what_is_missing(
    tmp_path: Path,
) -> None:
    facts = Version(make_foreign(tmp_path), server=SERVER, model_name="other").facts
    assert facts.picture is None
    assert [(one.name, one.dtype, one.shape) for one in facts.inputs] == [
        ("input_1", "float32", (6, 6, 2))
    ]
    assert layout.variant_path(layout.WEB) in facts.browser_obstacle
    assert facts.python_obstacle == ""


def test_strings_are_left_to_the_server_and_no_copy_is_missed(tmp_path: Path) -> None:
    version = Version(make_foreign(tmp_path, "identity"), server=SERVER, model_name="other")
    for obstacle in (version.facts.browser_obstacle, version.facts.python_obstacle):
        assert obstacle == "serving_default takes strings, which TFLite leaves to the server"


def test_a_folder_without_a_model_is_refused_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "1").mkdir()
    with pytest.raises(ConfigError, match="python -m exporter export --model"):
        Version(tmp_path / "1", server=SERVER, model_name="other")


def test_python_answers_the_page_as_the_predictor_does(tmp_path: Path) -> None:
    rows = np.random.default_rng(1).normal(size=(1, 6, 6, 2)).astype(np.float32)
    with OnDevicePredictor(make_foreign(tmp_path)) as predictor:
        inputs = {"input_1": rows.tolist()}
        body = json.dumps({"signature_name": "serving_default", "inputs": inputs}).encode()
        response = Engine(predictor).predict(Request("predict", body))
        answer = np.array(json.loads(response.body)["outputs"]["dense"], np.float32)
        np.testing.assert_array_equal(answer, predictor.predict(rows)["dense"])


def test_python_writes_what_is_no_number_as_the_server_does(tmp_path: Path) -> None:
    rows = np.full((1, 6, 6, 2), np.nan).tolist()
    body = json.dumps({"signature_name": "serving_default", "inputs": {"input_1": rows}}).encode()
    with OnDevicePredictor(make_foreign(tmp_path)) as predictor:
        response = Engine(predictor).predict(Request("predict", body))
    assert response.body == b'{"outputs": {"dense": [[NaN, NaN]]}}'


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[1]",
        b'{"signature_name": "serving_default"}',
        b'{"signature_name": "serving_default", "inputs": {"input_1": [[1], [2, 3]]}}',
        b'{"signature_name": "serving_default", "inputs": {"input_1": ["a"]}}',
    ],
)
def test_python_refuses_what_it_cannot_read(body: bytes, tmp_path: Path) -> None:
    with (
        OnDevicePredictor(make_foreign(tmp_path)) as predictor,
        pytest.raises(RequestError, match="cannot be read"),
    ):
        Engine(predictor).predict(Request("predict", body))


@pytest.mark.parametrize("address", ["a b:1", "http://host/path", "http://", "host;script-src"])
def test_an_address_that_is_none_is_refused(
    address: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["demo", "--server", address, "--version_dir", str(make_foreign(tmp_path))]
    assert main(command) == 2
    assert "give host:port of REST" in capsys.readouterr().err
