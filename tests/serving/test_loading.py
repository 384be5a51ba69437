import contextlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from contract import layout
from contract.errors import (
    ManifestError,
    ServableNotFoundError,
    UnimplementedError,
    VerificationError,
)
from contract.golden import Golden, GoldenExamples, read_golden, write_golden
from contract.servable import ServableId
from serving.config.server import ServerConfig
from serving.engines.loading import load_servable
from serving.engines.servable import LITERT, TENSORFLOW
from serving.observer import EngineChoice, Observer
from tests.conformance.recordings import MODELS
from tests.serving.seen import Seen
from tests.versions import write_tolerances

ROOT = Path(__file__).resolve().parent.parent.parent
ID = ServableId("mlp", 1)


@pytest.fixture
def version_dir(published_mlp: Path, tmp_path: Path) -> Path:
    """A copy of a published version that a test may change."""
    return Path(shutil.copytree(published_mlp / "mlp" / "1", tmp_path / "mlp" / "1"))


def unseal(version_dir: Path) -> None:
    (version_dir / layout.MANIFEST).unlink()


def spoil_golden(version_dir: Path, signature_name: str) -> None:
    golden = read_golden(version_dir / layout.GOLDEN)
    signatures = dict(golden.signatures)
    one = signatures[signature_name]
    outputs = {name: array + np.float32(0.5) for name, array in one.outputs.items()}
    signatures[signature_name] = GoldenExamples(one.inputs, outputs, one.batch_sizes)
    write_golden(version_dir / layout.GOLDEN, Golden(signatures))


def run_python(code: str, *arguments: str) -> Any:
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_litert_answers_what_golden_vouches_for_and_tensorflow_the_rest(
    published_mlp: Path,
) -> None:
    seen = Seen()
    servable = load_servable(ID, published_mlp / "mlp" / "1", ServerConfig(), seen)
    assert seen.choices["serving_default"].engine == LITERT
    assert "golden examples agree" in seen.choices["serving_default"].reason
    assert seen.choices["classify"].engine == TENSORFLOW
    assert "strings" in seen.choices["classify"].reason
    assert seen.results["serving_default"] == "passed"
    assert seen.results["classify"] == "untested"
    assert seen.warmups == 1
    assert servable.engines == seen.choices
    servable.close()


def test_a_version_with_litert_never_imports_tensorflow(published_mlp: Path) -> None:
    code = """
import json, sys
from pathlib import Path
import numpy as np
from contract.servable import ServableId
from serving.config.server import ServerConfig
from serving.engines.loading import load_servable
from serving.observer import Observer
servable = load_servable(ServableId("mlp", 1), Path(sys.argv[1]), ServerConfig(), Observer())
spec = servable.signatures["serving_default"].inputs["images"]
rows = np.zeros([size or 3 for size in spec.shape], np.float32)
shape = servable.run("serving_default", {"images": rows})["probabilities"].shape
print(json.dumps([list(shape), [name for name in sys.modules if "tensorflow" in name]]))
"""
    shape, modules = run_python(code, str(published_mlp / "mlp" / "1"))
    assert shape == [3, 10]
    assert modules == ["serving.engines.tensorflow"]


def test_without_tensorflow_a_signature_that_needs_it_names_the_extra(published_mlp: Path) -> None:
    code = """
import json, sys
sys.modules["tensorflow"] = None
from pathlib import Path
import numpy as np
from contract.errors import UnimplementedError
from contract.servable import ServableId
from serving.config.server import ServerConfig
from serving.engines.loading import load_servable
from serving.observer import Observer
servable = load_servable(ServableId("mlp", 1), Path(sys.argv[1]), ServerConfig(), Observer())
try:
    servable.run("classify", {"inputs": np.array([b""], object)})
except UnimplementedError as error:
    print(json.dumps(str(error)))
"""
    text = run_python(code, str(published_mlp / "mlp" / "1"))
    assert "plumbline-tf[tensorflow]" in text


def test_a_changed_file_is_refused(version_dir: Path) -> None:
    with (version_dir / layout.LABELS).open("a") as labels:
        labels.write("one more\n")
    with pytest.raises(ManifestError, match=r"labels\.txt"):
        load_servable(ID, version_dir, ServerConfig(), Observer())


def test_a_model_that_disagrees_with_golden_is_not_given_to_litert(version_dir: Path) -> None:
    unseal(version_dir)
    spoil_golden(version_dir, "serving_uint8")
    seen = Seen()
    load_servable(ID, version_dir, ServerConfig(), seen).close()
    assert seen.choices["serving_default"].engine == LITERT
    assert seen.choices["serving_uint8"].engine == TENSORFLOW
    assert "LiteRT disagrees: probabilities differs by" in seen.choices["serving_uint8"].reason


@pytest.mark.parametrize(("limit", "result"), [(0.1, "failed"), (0.6, "passed")])
def test_the_self_test_asks_what_export_asked(limit: float, result: str, version_dir: Path) -> None:
    spoil_golden(version_dir, "serving_default")
    write_tolerances(version_dir, {"float32": {"max_abs_difference": limit}})
    seen = Seen()
    config = ServerConfig(engine=LITERT)
    refusal = pytest.raises(VerificationError, match=r"up to 0\.5 \(at most 0\.15\)")
    with refusal if result == "failed" else contextlib.nullcontext():
        load_servable(ID, version_dir, config, seen).close()
    assert seen.results["serving_default"] == result


def test_litert_is_trusted_with_what_export_trusted_it_with(version_dir: Path) -> None:
    spoil_golden(version_dir, "serving_default")
    write_tolerances(version_dir, {"float32": {"max_abs_difference": 0.6}})
    seen = Seen()
    load_servable(ID, version_dir, ServerConfig(), seen).close()
    assert seen.choices["serving_default"].engine == LITERT


def test_without_golden_examples_litert_is_not_trusted(version_dir: Path) -> None:
    unseal(version_dir)
    (version_dir / layout.GOLDEN).unlink()
    seen = Seen()
    config = ServerConfig(engine="litert")
    load_servable(ID, version_dir, config, seen).close()
    assert seen.choices["serving_default"] == EngineChoice(LITERT, "asked for by flag")
    assert seen.results["serving_default"] == "untested"


@pytest.fixture
def lonely(version_dir: Path) -> Path:
    """A version of a TFLite file and nothing else."""
    path = version_dir.parent / "2"
    path.mkdir()
    shutil.copy(version_dir / "model.tflite", path)
    return path


@pytest.mark.parametrize(
    "config",
    [
        ServerConfig(),
        ServerConfig(engine=LITERT),
        ServerConfig(prefer_tflite_model=True),
        ServerConfig(prefer_tflite_model=True, strict_compat=True),
        ServerConfig(saved_model_tags="serve,gpu"),
    ],
    ids=["auto", "litert", "prefer", "strict", "tags"],
)
def test_a_version_of_a_tflite_file_alone_is_served_by_litert(
    lonely: Path, config: ServerConfig
) -> None:
    servable = load_servable(ID, lonely, config, Observer())
    assert servable.engines["serving_default"].engine == LITERT
    assert "serving_default" in servable.signature_defs.signature_def
    servable.close()


@pytest.mark.parametrize(
    ("config", "match"),
    [
        (ServerConfig(engine=TENSORFLOW), "use --engine=auto"),
        (ServerConfig(strict_compat=True), r"Could not find SavedModel \.pb"),
    ],
    ids=["tensorflow", "strict"],
)
def test_a_version_of_a_tflite_file_alone_is_no_saved_model(
    lonely: Path, config: ServerConfig, match: str
) -> None:
    with pytest.raises(ServableNotFoundError, match=match):
        load_servable(ID, lonely, config, Observer())


def test_golden_examples_of_a_tflite_file_alone_are_replayed(
    lonely: Path, version_dir: Path
) -> None:
    (lonely / layout.EXTRA).mkdir()
    shutil.copy(version_dir / layout.GOLDEN, lonely / layout.GOLDEN)
    seen = Seen()
    load_servable(ID, lonely, ServerConfig(), seen).close()
    assert seen.results["serving_default"] == "passed"
    spoil_golden(lonely, "serving_default")
    with pytest.raises(VerificationError, match="golden self-test"):
        load_servable(ID, lonely, ServerConfig(), Observer())


def test_forcing_litert_on_a_version_without_it_is_refused() -> None:
    with pytest.raises(UnimplementedError, match="--engine=litert"):
        load_servable(ID, MODELS / "affine" / "3", ServerConfig(engine="litert"), Observer())


def test_an_empty_version_is_told_in_tensorflow_servings_words(tmp_path: Path) -> None:
    with pytest.raises(ServableNotFoundError, match=r"Could not find SavedModel \.pb"):
        load_servable(ID, tmp_path, ServerConfig(), Observer())


def test_a_saved_model_that_is_none_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "saved_model.pb").write_bytes(b"\xff\xff\xff")
    with pytest.raises(ManifestError):
        load_servable(ID, tmp_path, ServerConfig(), Observer())


def test_a_broken_warmup_record_fails_the_load(version_dir: Path) -> None:
    unseal(version_dir)
    (version_dir / layout.WARMUP).write_bytes(b"not a record at all, but long enough")
    with pytest.raises(ManifestError, match="tf_serving_warmup_requests"):
        load_servable(ID, version_dir, ServerConfig(), Observer())
    load_servable(ID, version_dir, ServerConfig(enable_model_warmup=False), Observer()).close()
