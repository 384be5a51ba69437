"""Pixels on one scale for a signature of another: what `score` and `predict` say, and that it is
right: who does as told gets the answers that the pixels have.
"""

from __future__ import annotations

import dataclasses
import re
import shlex
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from clients import OnDevicePredictor
from clients.cli import main
from contract.signature import Array
from tests.score.jobs import make_images, to_binary

PIXELS = make_images(40)
BITS = (PIXELS > 127).astype(np.uint8)
UNIT = (PIXELS / 255).astype(np.float32)

ARRAYS = {
    "uint8 of 0..255": PIXELS,
    "uint8 of 0..1": BITS,
    "float32 of 0..255": PIXELS.astype(np.float32),
    "float32 between, of 0..255": (UNIT * 255 * 0.999).astype(np.float32),
    "float32 of 0..1": UNIT,
}
MEANT = {"uint8 of 0..1": BITS * 255}
SIGNATURES = ("", "serving_default", "serving_uint8")

SCALE, FLOATS, OTHER = "--scale 255", "--scale 1 --signature_name serving_default", "leave"
SAID = {
    ("uint8 of 0..255", "serving_default"): {"score": SCALE, "predict": OTHER},
    ("uint8 of 0..1", ""): {"score": FLOATS, "predict": FLOATS},
    ("uint8 of 0..1", "serving_default"): {"predict": OTHER},
    ("uint8 of 0..1", "serving_uint8"): {"score": FLOATS, "predict": FLOATS},
    ("float32 of 0..255", ""): {"predict": SCALE},
    ("float32 of 0..255", "serving_default"): {"score": SCALE, "predict": SCALE},
    ("float32 of 0..255", "serving_uint8"): {"predict": OTHER},
    ("float32 between, of 0..255", ""): {"score": SCALE, "predict": SCALE},
    ("float32 between, of 0..255", "serving_default"): {"score": SCALE, "predict": SCALE},
    ("float32 between, of 0..255", "serving_uint8"): {"score": OTHER, "predict": OTHER},
    ("float32 of 0..1", "serving_uint8"): {"score": OTHER, "predict": OTHER},
}
"""What is said of rows, and of the signature that is asked for; nothing of all others."""


@dataclasses.dataclass(frozen=True)
class Asked:
    """What a command answered.

    Attributes:
        code: Its exit code.
        advice: The flags that mend it, `leave` for a signature that is not to be named; "".
        answers: float32 (rows, classes); empty where there are none.
    """

    code: int
    advice: str
    answers: Array


class Asker:
    """Asks a version through the command line."""

    def __init__(self, folder: Path, version: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self._folder, self._version, self._capsys = folder, version, capsys
        self._count = 0

    def ask(self, verb: str, array: Array, flags: list[str]) -> Asked:
        """Rows of pixels, with flags."""
        self._count += 1
        out = self._folder / f"out-{self._count}"
        ask = self._score if verb == "score" else self._predict
        self._capsys.readouterr()
        code, answers = ask(array, out, [*flags, "--version_dir", str(self._version)])
        said = self._capsys.readouterr().err
        found = re.search(r": (--.*) mends it", said)
        advice = found.group(1) if found else OTHER if "leave --signature_name out" in said else ""
        return Asked(code, advice, answers)

    def _score(self, array: Array, out: Path, flags: list[str]) -> tuple[int, Array]:
        column = (
            to_binary(array)
            if array.dtype == np.uint8
            else pa.FixedSizeListArray.from_arrays(pa.array(array.ravel()), array.shape[1])
        )
        table = pa.table({"id": range(len(array)), "image": column})
        parquet.write_table(table, self._folder / "in.parquet")
        where = [str(self._folder / "in.parquet"), str(out), "--workers=1"]
        code = main(["score", *where, *flags])
        if code:
            return code, np.empty(0)
        found = parquet.read_table(out / "version=1").sort_by("id")
        return code, np.array(found["probabilities"].to_pylist(), np.float32)

    def _predict(self, array: Array, out: Path, flags: list[str]) -> tuple[int, Array]:
        np.save(self._folder / "in.npy", array)
        where = [str(self._folder / "in.npy"), f"--output={out}.npz"]
        code = main(["on-device", "run", *where, *flags])
        if code:
            return code, np.empty(0)
        with np.load(f"{out}.npz") as found:
            return code, found["probabilities"]


@pytest.fixture
def asker(tmp_path: Path, digits: Path, capsys: pytest.CaptureFixture[str]) -> Asker:
    return Asker(tmp_path, digits, capsys)


def predict(version: Path, pixels: Array) -> Array:
    with OnDevicePredictor(version) as predictor:
        batch = pixels.reshape(-1, 28, 28)
        answers: Array = predictor.predict(batch, signature_name="serving_uint8")["probabilities"]
        return answers


@pytest.mark.parametrize("verb", ["score", "predict"])
@pytest.mark.parametrize("signature", SIGNATURES)
@pytest.mark.parametrize("kind", ARRAYS)
def test_who_does_as_told_gets_the_answers_of_the_pixels(
    kind: str, signature: str, verb: str, asker: Asker, digits: Path
) -> None:
    flags = [f"--signature_name={signature}"] if signature else []
    asked = asker.ask(verb, ARRAYS[kind], flags)
    assert asked.advice == SAID.get((kind, signature), {}).get(verb, "")
    assert (asked.code == 0) == (asked.advice != OTHER)
    for _ in range(2):  # another signature, and then perhaps its scale
        if asked.advice == OTHER:
            flags = []
        flags = [*flags, *shlex.split(asked.advice)] if asked.advice.startswith("--") else flags
        asked = asker.ask(verb, ARRAYS[kind], flags) if asked.advice else asked
    assert (asked.code, asked.advice) == (0, "")
    golden = predict(digits, MEANT.get(kind, PIXELS))
    np.testing.assert_allclose(asked.answers, golden, atol=0.02)


@pytest.mark.parametrize("verb", ["score", "predict"])
def test_flags_that_mend_are_those_in_place_of_what_was_given(verb: str, asker: Asker) -> None:
    shifted = (UNIT * 254.9 - 20).astype(np.float32)
    assert asker.ask(verb, UNIT, ["--scale=255"]).advice == "--scale 1"
    assert asker.ask(verb, UNIT, ["--scale=1/255"]).advice == "--scale 1"
    asked = asker.ask(verb, shifted, ["--scale=1", "--shift=20"])
    assert asked.advice == f"--scale 255 --shift {20 / 255:g}"
