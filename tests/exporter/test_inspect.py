"""`inspect` shows a version without TensorFlow."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from exporter.cli import main
from exporter.inspect import inspect_version

ROOT = Path(__file__).resolve().parents[2]


def test_signatures_variants_and_provenance_are_shown(
    published_mlp: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", str(published_mlp / "mlp" / "1")]) == 0
    shown = capsys.readouterr().out
    for text in (
        "mlp version 1",
        "serving_image_bytes",
        "string (batch,)",
        "float32 (batch, 784)",
        "dynamic_range",
        "0.00392156886  -128",
        "fingerprint",
        "1 at a time",
        "tensorflow",
    ):
        assert text in shown


def test_the_json_holds_quantisation_and_the_whole_manifest(
    published_mlp: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", str(published_mlp / "mlp" / "1"), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["manifest"]["data"]["name"] == "digits"
    assert document["manifest"]["config"]["model"]["kind"] == "mlp"
    (images,) = [
        one
        for one in document["variants"]["int8"]["quantisation"]
        if (one["signature"], one["tensor"]) == ("serving_default", "images")
    ]
    assert images["dtype"] == "int8"
    assert images["scale"] == pytest.approx(1 / 255)
    assert images["zero_point"] == -128
    uint8 = document["variants"]["int8"]["signatures"]["serving_uint8"]
    assert uint8["inputs"] == {"images": "uint8 (batch, 28, 28)"}


def test_a_saved_model_of_another_tool_is_shown_as_far_as_it_goes() -> None:
    path = next((ROOT / "tests" / "tfserving_models" / "affine").iterdir())
    found = inspect_version(path)
    assert found.manifest is None
    assert "serving_default" in found.signatures
    assert found.variants == {}


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["export", "--help"], ["inspect", "{version}", "--json"]],
    ids=["help", "export help", "inspect"],
)
def test_help_and_inspect_do_not_import_tensorflow(
    published_mlp: Path, arguments: list[str]
) -> None:
    filled = [text.format(version=published_mlp / "mlp" / "1") for text in arguments]
    code = (
        "import sys, json\nfrom exporter.cli import main\n"
        "try: main(sys.argv[1:])\nexcept SystemExit: pass\n"
        "heavy = {'tensorflow', 'tf_keras', 'keras', 'sklearn', 'matplotlib'} & set(sys.modules)\n"
        "print(json.dumps(sorted(heavy)), file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *filled],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stderr.splitlines()[-1]) == []
