"""What `export(model, …)` refuses: each with a sentence that says what to do, and nothing lost."""

from __future__ import annotations

import importlib
import importlib.util
import os
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pytest

from contract.console.exits import exit_code_of
from contract.errors import PlumblineError
from exporter import export
from exporter.cli import main
from tests.conftest import ROOT
from tests.exporter.own_models import LABELS, ROWS

pytestmark = pytest.mark.tensorflow

Case: TypeAlias = tuple[object, dict[str, Any], str]
"""A model, arguments of `export`, and what the error says."""


def make_dense(units: int = 2, activation: str | None = "softmax") -> Any:
    k = importlib.import_module("tf_keras")
    layer = k.layers.Dense(units, activation=activation, name="kind")
    return k.Sequential([k.Input((4,), name="numbers"), layer])


def given(**arguments: Any) -> dict[str, Any]:
    return {"examples": ROWS, **arguments}


def no_model(folder: Path) -> Case:
    (folder / "model.keras").write_text("no model")
    return folder / "model.keras", given(), "is no model .* give a .keras"


def no_file(folder: Path) -> Case:
    return folder / "absent.keras", given(), "No such file"


def cut_off_file(folder: Path) -> Case:
    make_dense().save(folder / "whole.keras")
    content = (folder / "whole.keras").read_bytes()
    (folder / "model.keras").write_bytes(content[: len(content) // 2])
    return folder / "model.keras", given(), "is no model of Keras, or is damaged"


def damaged_tflite(folder: Path) -> Case:
    (folder / "model.tflite").write_bytes(b"\x1c\x00\x00\x00TFL3" + bytes(64))
    return folder / "model.tflite", given(), "model.tflite"


def weights_alone(folder: Path) -> Case:
    make_dense().save_weights(folder / "model.weights.h5")
    return folder / "model.weights.h5", given(), "(weights and no model|damaged)"


def folder_of_nothing(folder: Path) -> Case:
    return folder, given(), "without saved_model.pb"


def pickled_model(folder: Path) -> Case:
    (folder / "model.pkl").write_bytes(pickle.dumps({"a": 1}))
    return folder / "model.pkl", given(), "is a pickle, which is never loaded"


def model_of_torch(folder: Path) -> Case:
    # What torch.save writes, without torch, of which hundreds of MB are needed.
    with zipfile.ZipFile(folder / "model.pt", "w") as archive:
        archive.writestr("model/data.pkl", pickle.dumps({}))
        archive.writestr("model/version", "3\n")
        archive.writestr("model/data/0", bytes(64))
    return folder / "model.pt", given(), "is a file of PyTorch; litert-torch .* give a .keras"


def old_model_of_torch(folder: Path) -> Case:
    magic = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)
    (folder / "model.pth").write_bytes(magic + pickle.dumps(1001, protocol=2))
    return folder / "model.pth", given(), "is a file of PyTorch"


def model_of_onnx(folder: Path) -> Case:
    content = b"\x08\x08\x12\x07pytorch\x1a\x052.4.0:\x00"  # ir_version, producer_name, its version
    (folder / "model.onnx").write_bytes(content)
    return folder / "model.onnx", given(), "is a file of ONNX; onnx2tf makes a SavedModel"


def weights_of_safetensors(folder: Path) -> Case:
    header = b'{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    content = len(header).to_bytes(8, "little") + header + bytes(4)
    (folder / "model.safetensors").write_bytes(content)
    return folder / "model.safetensors", given(), "holds weights and no model"


def arrays_for_a_model(folder: Path) -> Case:
    np.savez(folder / "model.npz", w=ROWS)
    return folder / "model.npz", given(), "holds arrays and no model"


def model_of_scikit_learn(folder: Path) -> Case:
    linear = importlib.import_module("sklearn.linear_model")
    return linear.LogisticRegression(), given(), "LogisticRegression is no model that can be"


def a_function(folder: Path) -> Case:
    return lambda rows: rows, given(), "a function is no model"


def unbuilt_model(folder: Path) -> Case:
    k = importlib.import_module("tf_keras")
    return k.Sequential([k.layers.Dense(2)]), given(), "never built, so it has no weights"


def call_with_an_argument(folder: Path) -> Case:
    k = importlib.import_module("tf_keras")

    class Modal(k.Model):  # type: ignore[misc]
        def call(self, rows: Any, mode: Any) -> Any:
            return rows * mode

    model = Modal()
    model(ROWS[:2], mode=2.0)
    return model, given(), "needs the arguments rows, mode.*an array for rows, mode"


def module_without_functions(folder: Path) -> Case:
    tf = importlib.import_module("tensorflow")
    return tf.Module(), given(), "has no signatures; give a method"


def wrong_width(folder: Path) -> Case:
    return make_dense(), given(examples=ROWS[:, :3]), r"takes .*\(rows, 4\)|give \(rows, 4\)"


def texts_for_numbers(folder: Path) -> Case:
    return make_dense(), given(examples=["a", "b"]), "takes float32.*hold string"


def a_missing_input(folder: Path) -> Case:
    k = importlib.import_module("tf_keras")
    age, income = k.Input((1,), name="age"), k.Input((1,), name="income")
    model = k.Model([age, income], k.layers.Dense(1)(k.layers.Concatenate()([age, income])))
    examples = {"age": ROWS[:, :1], "wage": ROWS[:, :1]}
    return model, given(examples=examples), "takes age, income.*hold age, wage.*for 'income'"


def python_objects(folder: Path) -> Case:
    return make_dense(), given(examples=np.array([{}, []], object)), "array of Python objects"


def no_rows(folder: Path) -> Case:
    return make_dense(), given(examples=ROWS[:0]), "have no rows"


def nan_examples(folder: Path) -> Case:
    rows = ROWS.copy()
    rows[7, 1] = np.nan
    return make_dense(), given(examples=rows), "NaN or infinity in row 7"


def an_empty_folder(folder: Path) -> Case:
    (folder / "pictures").mkdir()
    return make_dense(), given(examples=folder / "pictures"), "holds no pictures"


def an_empty_class(folder: Path) -> Case:
    (folder / "pictures" / "cat").mkdir(parents=True)
    return make_dense(), given(examples=folder / "pictures"), "cat.* holds no pictures"


def a_csv_of_mixed_types(folder: Path) -> Case:
    (folder / "x.csv").write_text("p,q,r,s\n" + "1,2,3,4\n" * 3 + "1,2,three,4\n")
    return make_dense(), given(examples=folder / "x.csv"), "'r' mixes numbers and texts.*'three'"


def a_csv_with_gaps(folder: Path) -> Case:
    (folder / "x.csv").write_text("p,q,r,s\n" + "1,2,3,4\n" * 3 + "1,2,,4\n")
    return make_dense(), given(examples=folder / "x.csv"), "'r' lacks 1 of 4 values, first in row 4"


def pickled_arrays(folder: Path) -> Case:
    np.save(folder / "x.npy", np.array([{}], object), allow_pickle=True)
    return make_dense(), given(examples=folder / "x.npy"), "pickled Python objects"


def an_unknown_file(folder: Path) -> Case:
    (folder / "x.xlsx").write_text("")
    return make_dense(), given(examples=folder / "x.xlsx"), "no file of examples; give an .npz"


def fewer_labels(folder: Path) -> Case:
    return make_dense(), given(labels=LABELS[:-1]), "examples: 40, labels: 39"


def labels_of_more_classes(folder: Path) -> Case:
    return make_dense(), given(labels=np.arange(40) % 3), "hold class 2, and output .* 2 scores"


def values_for_classes(folder: Path) -> Case:
    return make_dense(), given(labels=ROWS[:, 0]), "labels hold .* in row .*task='regression'"


def values_of_another_width(folder: Path) -> Case:
    model = make_dense(3, None)
    return model, given(labels=ROWS[:, :2]), r"answers values, \(3,\) a row; the labels are"


def labels_for_no_output(folder: Path) -> Case:
    labels = {"kind": LABELS, "price": ROWS[:, 0]}
    return make_dense(), given(labels=labels), "labels 'price' are for none of the outputs"


def no_such_column(folder: Path) -> Case:
    np.savez(folder / "x.npz", x=ROWS)
    case = given(examples=folder / "x.npz", labels="y")
    return make_dense(), case, r"'y' is no column of the examples \(x\), and no file"


def unknown_label(folder: Path) -> Case:
    case = given(labels=["fine", "odd"] * 20, class_names=["fine", "fraud"])
    return make_dense(), case, "hold 'odd', which is none of fine, fraud"


def unknown_task(folder: Path) -> Case:
    return make_dense(), given(task="clasification"), "'clasification' is none of multiclass, bin"


def task_of_no_output(folder: Path) -> Case:
    return make_dense(), given(task={"kind": "binary"}), "output 'kind'; the model's outputs are "


def column_of_mixed_objects(folder: Path) -> Case:
    frame = importlib.import_module("pandas").DataFrame(ROWS, columns=list("abcd")).astype(object)
    frame.loc[3, "b"] = "x"
    return make_dense(), given(examples=frame), "table cannot be read.*'x'.*column b.*one type"


def class_names_twice(folder: Path) -> Case:
    return make_dense(), given(class_names=["fine", "fine\n"]), "are the same once stripped"


def too_many_class_names(folder: Path) -> Case:
    return make_dense(), given(class_names=["a", "b", "c"]), "3 class names .* has 2 classes"


def a_scale_for_no_pictures(folder: Path) -> Case:
    return make_dense(), given(scale=(0, 1)), "scale is for pictures"


def an_unknown_variant(folder: Path) -> Case:
    return make_dense(), given(variants=("int4",)), "int4.*there are float32, float16"


def a_failing_data_set(folder: Path) -> Case:
    tf = importlib.import_module("tensorflow")
    data = tf.data.Dataset.from_tensor_slices(ROWS).batch(8)
    data = data.map(lambda rows: tf.debugging.check_numerics(rows / 0.0, "odd"))
    return make_dense(), given(examples=data), "fails after 0 rows"


def an_empty_data_set(folder: Path) -> Case:
    tf = importlib.import_module("tensorflow")
    return make_dense(), given(examples=tf.data.Dataset.from_tensor_slices(ROWS[:0])), "no elements"


CASES: list[Callable[[Path], Case]] = [
    found
    for found in dict(globals()).values()
    if getattr(found, "__annotations__", {}).get("return") == "Case"
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_what_cannot_be_exported_is_refused_with_what_to_do_and_nothing_is_lost(
    case: Callable[[Path], Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, arguments, text = case(tmp_path)
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    base = tmp_path / "base"
    with monkeypatch.context() as patch:
        patch.setattr("tempfile.tempdir", str(temporary))
        with pytest.raises(PlumblineError, match=rf"(?s){text}") as raised:
            export(model, base, **{"variants": (), **arguments})
    assert exit_code_of(raised.value) in (1, 2)
    assert "Traceback" not in raised.value.message
    assert len(raised.value.message) < 800
    assert not base.exists() or not list(base.iterdir())
    left = [path.name for path in temporary.iterdir() if path.name.startswith("plumbline-base")]
    assert not left


def test_a_keras_3_model_on_another_backend_is_refused_with_the_variable_to_set(
    tmp_path: Path,
) -> None:
    # Its name alone: Keras's other backends take jax or torch, of which hundreds of MB are needed.
    script = """
import keras, numpy as np
import keras.src.backend.config
from contract.errors import ConfigError
from exporter import export
model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
keras.src.backend.config._BACKEND = "numpy"
assert keras.backend.backend() == "numpy"
try:
    export(model, "own", examples=np.zeros((8, 4), "float32"), variants=())
except ConfigError as error:
    print(error.message)
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"KERAS_BACKEND": "tensorflow", "PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "set KERAS_BACKEND=tensorflow before keras is imported" in done.stdout


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (["--model", "m.keras"], "needs --examples FILE"),
        (["--model", "m.keras", "--config", "c.toml"], "--config has no place beside it"),
        (["--model", "m.keras", "--set", "training.epochs=1"], "--set has no place beside it"),
        (["--model", "m.keras", "--trained", "runs/1"], "--trained has no place beside it"),
        (["--examples", "x.npz"], "--examples is for a model that is trained already"),
        (["--require", "int8"], "--require is for a model that is trained already"),
        (["--model", "absent.keras", "--examples", "x.npz"], "absent.keras cannot be read"),
        (["--model", "m.keras", "--examples", "x.npz", "--base_path", "s3://b"], "a folder of"),
    ],
)
def test_flags_that_do_not_go_together_are_told_in_one_sentence(
    flags: list[str],
    text: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    make_dense().save("m.keras")
    assert main(["export", *flags]) == 2
    assert text in capsys.readouterr().err
