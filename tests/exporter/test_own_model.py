"""`export(model, …)`: models as people have them become versions that answer as they do."""

from __future__ import annotations

import importlib
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from contract import layout
from contract.errors import PlumblineError, VerificationError
from contract.golden import read_golden
from contract.lite import LiteModel
from contract.manifest import check_files, read_manifest
from exporter import ExportedVersion, export
from exporter.cli import main
from exporter.models.load import load_keras
from exporter.verification.recheck import recheck_version
from tests.exporter.own_models import KINDS, LABELS, ROWS, Keras, trained_with_batch_norm
from tests.lite_models import FOLDER

pytestmark = pytest.mark.tensorflow


@pytest.fixture(params=["tf_keras", "keras"])
def k(request: pytest.FixtureRequest) -> Keras:
    return importlib.import_module(request.param)


@pytest.fixture(scope="module")
def tf() -> Any:
    return importlib.import_module("tensorflow")


@pytest.fixture(scope="module")
def dense() -> Any:
    """A softmax of three over four numbers, answered by the row's largest of the first three."""
    tf_keras = importlib.import_module("tf_keras")
    layer = tf_keras.layers.Dense(3, activation="softmax", name="kind")
    model = tf_keras.Sequential([tf_keras.Input((4,), name="numbers"), layer])
    layer.set_weights([5 * np.eye(4, 3, dtype=np.float32), np.zeros(3, np.float32)])
    return model


CLASSES = ROWS[:, :3].argmax(axis=1)


def publish(model: object, path: Path, **arguments: Any) -> ExportedVersion:
    return export(model, path / "own", **{"variants": (), **arguments})


def flatten(answers: Any) -> list[Any]:
    tf = importlib.import_module("tensorflow")
    return [one.numpy() for one in tf.nest.flatten(answers)]


@pytest.mark.parametrize("kind", KINDS)
def test_a_version_answers_bit_for_bit_as_the_model_that_was_given(
    kind: str, k: Keras, tmp_path: Path
) -> None:
    build, inputs, outputs = KINDS[kind]
    model, arguments = build(k)
    weights = [np.array(one) for one in model.get_weights()]
    version = publish(model, tmp_path, **arguments)
    signature = version.manifest.signatures["serving_default"]
    assert (tuple(sorted(signature.inputs)), tuple(sorted(signature.outputs))) == (inputs, outputs)
    assert version.manifest.parity["saved_model"]["bit_equal"]
    check_files(version.path, version.manifest)
    for before, after in zip(weights, model.get_weights(), strict=True):
        np.testing.assert_array_equal(before, after)


def test_golden_holds_what_the_model_itself_answers_with_its_batch_statistics(
    k: Keras, tmp_path: Path
) -> None:
    model, arguments = trained_with_batch_norm(k)
    version = publish(model, tmp_path, **arguments)
    golden = read_golden(version.path / layout.GOLDEN).signatures["serving_default"]
    for inputs, outputs in golden.iter_batches():
        (rows,), (got,) = inputs.values(), outputs.values()
        np.testing.assert_array_equal(got, np.array(model(rows, training=False)))


def test_an_export_leaves_the_users_model_and_random_numbers_alone(
    k: Keras, tf: Any, tmp_path: Path
) -> None:
    model, arguments = trained_with_batch_norm(k)
    optimizer, loss = model.optimizer, model.loss
    steps = int(np.array(optimizer.iterations))

    def draw() -> list[float]:
        return [random.random(), float(np.random.random()), float(tf.random.uniform(()))]

    random.seed(1), np.random.seed(1), tf.random.set_seed(1)
    expected = draw()
    random.seed(1), np.random.seed(1), tf.random.set_seed(1)
    publish(model, tmp_path, **arguments)
    assert draw() == expected
    assert model.optimizer is optimizer and model.loss is loss and model.trainable
    assert int(np.array(optimizer.iterations)) == steps
    model.fit(ROWS, LABELS, epochs=1, verbose=0)


# Files ----------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_a_file_of_either_keras_is_loaded_by_the_keras_that_wrote_it(
    suffix: str, k: Keras, tmp_path: Path
) -> None:
    model, arguments = trained_with_batch_norm(k)
    path = tmp_path / f"model{suffix}"
    model.save(path)
    version = publish(path, tmp_path, **arguments)
    golden = read_golden(version.path / layout.GOLDEN).signatures["serving_default"]
    (rows,), (got,) = golden.inputs.values(), golden.outputs.values()
    np.testing.assert_allclose(got, np.array(model(rows, training=False)), atol=1e-6)


def test_a_lambda_and_an_own_layer_of_a_file_are_loaded_when_they_are_allowed(
    k: Keras, tmp_path: Path
) -> None:
    class Shift(k.layers.Layer):  # type: ignore[misc]
        def call(self, rows: Any) -> Any:
            return rows + 1

    features = k.Input((4,))
    model = k.Model(features, k.layers.Lambda(lambda rows: rows * 2)(Shift()(features)))
    path = tmp_path / "model.keras"
    model.save(path)
    with pytest.raises(PlumblineError, match="allow_lambda=True"):
        publish(path, tmp_path, examples=ROWS)
    with pytest.raises(PlumblineError, match=r"custom_objects=\{'Shift': Shift\}"):
        publish(path, tmp_path, examples=ROWS, allow_lambda=True)
    version = publish(
        path, tmp_path, examples=ROWS, allow_lambda=True, custom_objects={"Shift": Shift}
    )
    assert version.version == 1


def test_an_own_layer_whose_module_is_there_is_asked_for_where_keras_would_not_import_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tf_keras

    (tmp_path / "my_layers.py").write_text(
        "import tf_keras\nclass Shift(tf_keras.layers.Layer):\n    def call(self, x): return x"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    shift = importlib.import_module("my_layers").Shift
    path = tmp_path / "model.keras"
    tf_keras.Sequential([tf_keras.Input((4,)), shift(), tf_keras.layers.Dense(2)]).save(path)
    with pytest.raises(PlumblineError, match=r"--custom_objects package\.module:Shift"):
        load_keras(path)
    assert load_keras(path, custom_objects={"Shift": shift}).count_params() == 10


def test_signatures_of_a_module_keep_their_names_and_the_untestable_is_served_all_the_same(
    tf: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Module(tf.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.weights = tf.Variable(tf.ones((4, 2)))

        @tf.function(input_signature=[tf.TensorSpec((None, 4), tf.float32, name="rows")])
        def score(self, rows: Any) -> Any:
            return {"scores": rows @ self.weights}

        @tf.function(input_signature=[tf.TensorSpec((None, 4), tf.float32, name="rows")])
        def embed(self, rows: Any) -> Any:
            return {"vector": rows * 2}

        @tf.function(
            input_signature=[
                tf.TensorSpec((None, 4), tf.float32, name="rows"),
                tf.TensorSpec((), tf.float32, name="temperature"),
            ]
        )
        def soften(self, rows: Any, temperature: Any) -> Any:
            return {"scores": rows @ self.weights / temperature}

    version = publish(Module(), tmp_path, examples=ROWS)
    assert set(version.manifest.signatures) == {"embed", "score", "soften"}
    assert set(read_golden(version.path / layout.GOLDEN).signatures) == {"embed", "score"}
    assert "'soften' is served but not verified: input 'temperature'" in caplog.text


def test_a_saved_model_with_a_table_and_its_file_goes_through_as_it_lies(
    tf: Any, tmp_path: Path
) -> None:
    vocabulary = tmp_path / "vocabulary.txt"
    vocabulary.write_text("Bern\nBasel\n")

    class Lookup(tf.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            whole, number = tf.lookup.TextFileIndex.WHOLE_LINE, tf.lookup.TextFileIndex.LINE_NUMBER
            initializer = tf.lookup.TextFileInitializer(
                str(vocabulary), tf.string, whole, tf.int64, number
            )
            self.table = tf.lookup.StaticHashTable(initializer, -1)

        @tf.function(input_signature=[tf.TensorSpec((None,), tf.string, name="city")])
        def __call__(self, city: Any) -> Any:
            return {"number": self.table.lookup(city)}

    cities = np.array(["Bern", "Basel", "Chur"] * 8)
    module = Lookup()
    tf.saved_model.save(module, str(tmp_path / "given"))
    vocabulary.unlink()
    loaded = tf.saved_model.load(str(tmp_path / "given"))
    for number, model in enumerate((tmp_path / "given", loaded), 1):
        version = publish(model, tmp_path, examples=cities)
        assert version.version == number
        golden = read_golden(version.path / layout.GOLDEN).signatures["serving_default"]
        assert set(golden.outputs["number"].tolist()) == {-1, 0, 1}
        assert (version.path / "assets" / "vocabulary.txt").exists()


# Examples -------------------------------------------------------------------------------


def give_array(folder: Path) -> dict[str, Any]:
    return {"examples": ROWS, "labels": CLASSES}


def give_mapping(folder: Path) -> dict[str, Any]:
    return {"examples": {"numbers": ROWS.tolist()}, "labels": {"kind": CLASSES}}


def give_npz(folder: Path) -> dict[str, Any]:
    np.savez(folder / "x.npz", x=ROWS, y=np.eye(3)[CLASSES])
    return {"examples": folder / "x.npz", "labels": "y"}


def give_npy(folder: Path) -> dict[str, Any]:
    np.save(folder / "x.npy", ROWS.astype(np.float64))
    np.save(folder / "y.npy", CLASSES.astype(np.float32))
    return {"examples": str(folder / "x.npy"), "labels": folder / "y.npy"}


def give_csv(folder: Path) -> dict[str, Any]:
    names = ["c", "a", "b"]
    lines = [",".join(["p", "q", "r", "s", "kind"])]
    for row, label in zip(ROWS, CLASSES, strict=True):
        lines.append(",".join([*(f"{one:.9g}" for one in row), names[label]]))
    (folder / "x.csv").write_text("\n".join(lines) + "\n")
    return {"examples": folder / "x.csv", "labels": "kind", "class_names": names}


def give_parquet(folder: Path) -> dict[str, Any]:
    pa, parquet = importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
    columns = {f"c{at}": ROWS[:, at] for at in range(4)} | {"y": CLASSES}
    parquet.write_table(pa.table(columns), folder / "x.parquet")
    return {"examples": folder / "x.parquet", "labels": "y"}


def give_table(folder: Path) -> dict[str, Any]:
    pa = importlib.import_module("pyarrow")
    columns = {f"c{at}": ROWS[:, at] for at in range(4)}
    return {"examples": pa.table(columns), "labels": CLASSES}


def give_series(folder: Path) -> dict[str, Any]:
    pandas = importlib.import_module("pandas")
    kinds = pandas.Series(CLASSES).map(dict(enumerate("cab")))
    frame = pandas.DataFrame(ROWS, columns=list("pqrs"))
    return {"examples": frame, "labels": kinds, "class_names": ["c", "a", "b"]}


def give_old_frame(folder: Path) -> dict[str, Any]:
    """A DataFrame that knows the older protocol alone."""
    table = give_table(folder)["examples"]

    class Frame:
        def __dataframe__(self, **_: Any) -> Any:
            return table.__dataframe__()

    return {"examples": Frame(), "labels": CLASSES}


def make_data(*parts: Any) -> Any:
    return importlib.import_module("tensorflow").data.Dataset.from_tensor_slices(parts)


def give_rows(folder: Path) -> dict[str, Any]:
    return {"examples": make_data(ROWS, CLASSES)}


def give_batches(folder: Path) -> dict[str, Any]:
    return {"examples": make_data(ROWS, CLASSES).batch(16)}


def give_whole_batches(folder: Path) -> dict[str, Any]:
    return {"examples": make_data(ROWS, CLASSES).batch(8, drop_remainder=True)}


def give_endless(folder: Path) -> dict[str, Any]:
    data = make_data({"numbers": ROWS}, {"kind": CLASSES}).repeat().batch(1024)
    return {"examples": data}


@pytest.mark.parametrize(
    "give",
    [
        give_array,
        give_mapping,
        give_npz,
        give_npy,
        give_csv,
        give_parquet,
        give_table,
        give_old_frame,
        give_series,
        give_rows,
        give_batches,
        give_whole_batches,
        give_endless,
    ],
    ids=lambda give: give.__name__,
)
def test_examples_and_labels_are_taken_as_people_have_them(
    give: Any, dense: Any, tmp_path: Path
) -> None:
    version = publish(dense, tmp_path, **give(tmp_path))
    assert version.manifest.metrics["test_accuracy"] == 1.0
    assert version.manifest.heads["probabilities"].task == "multiclass"


def test_columns_that_are_one_vector_are_known_by_name_and_in_their_order(
    dense: Any, tmp_path: Path
) -> None:
    manifest = publish(dense, tmp_path, **give_series(tmp_path)).manifest
    assert manifest.data is not None and manifest.data.columns == tuple("pqrs")
    assert {name: set(found) for name, found in manifest.distributions.items()} == {"": set("pqrs")}


def test_a_folder_of_pictures_gives_rows_labels_and_the_names_of_the_classes(
    k: Keras, tmp_path: Path
) -> None:
    image = importlib.import_module("PIL.Image")
    for name, level in (("dark", 20), ("light", 230)):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for number in range(6):
            size = (8 + number, 8)  # of other sizes than the model takes
            image.new("RGB", size, (level, level + number, level)).save(
                tmp_path / "pictures" / name / f"{number}.png"
            )
    layer = k.layers.Dense(2, activation="softmax")
    flat = k.layers.GlobalAveragePooling2D()
    model = k.Sequential([k.Input((4, 4, 3)), k.layers.Rescaling(1 / 255), flat, layer])
    layer.set_weights([np.array([[-9, 9]] * 3, np.float32), np.array([13, -13], np.float32)])
    version = publish(model, tmp_path, examples=tmp_path / "pictures")
    assert version.manifest.metrics["test_accuracy"] == 1.0
    assert version.manifest.data is not None
    assert version.manifest.data.class_names == ("dark", "light")
    assert "serving_image_bytes" in version.manifest.signatures
    (tmp_path / "pictures" / "dark" / "7.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    with pytest.raises(PlumblineError, match=r"7\.png.*skip_unreadable=True"):
        publish(model, tmp_path, examples=tmp_path / "pictures")
    publish(model, tmp_path, examples=tmp_path / "pictures", skip_unreadable=True)


def test_without_labels_golden_still_has_every_class_that_the_model_finds(
    dense: Any, tmp_path: Path
) -> None:
    rows = np.tile(np.eye(4, dtype=np.float32)[:1], (1500, 1))
    rows[[1201, 1333]] = np.eye(4, dtype=np.float32)[1:3]
    version = publish(dense, tmp_path, examples=rows)
    golden = read_golden(version.path / layout.GOLDEN).signatures["serving_default"]
    assert set(golden.outputs["probabilities"].argmax(axis=1)) == {0, 1, 2}
    assert "test_accuracy" not in version.manifest.metrics


@pytest.mark.parametrize(
    ("units", "activation", "loss", "labels", "task"),
    [
        (1, "sigmoid", None, LABELS.astype(np.float32), "binary"),
        (1, "sigmoid", None, LABELS.astype(bool), "binary"),
        (1, None, None, LABELS, "binary"),
        (1, None, "mse", LABELS, "regression"),
        (1, None, None, ROWS[:, 0], "regression"),
        (3, "sigmoid", None, (ROWS[:, :3] > 0).astype(int), "multilabel"),
        (3, "softmax", None, np.eye(3)[CLASSES], "multiclass"),
        (3, "softmax", None, CLASSES.astype(np.float64), "multiclass"),
        (3, None, None, CLASSES, "multiclass"),
        (3, None, "binary_crossentropy", (ROWS[:, :3] > 0).astype(int), "multilabel"),
        (3, None, None, ROWS[:, :3], "regression"),
        (3, None, None, None, "regression"),
        (1, "sigmoid", None, None, "binary"),
    ],
)
def test_what_an_output_means_follows_from_labels_loss_and_activation(
    units: int, activation: str, loss: str, labels: Any, task: str, k: Keras, tmp_path: Path
) -> None:
    model = k.Sequential([k.Input((4,)), k.layers.Dense(units, activation=activation)])
    if loss:
        model.compile("sgd", loss)
    version = publish(model, tmp_path, examples=ROWS, labels=labels)
    assert {head.task for head in version.manifest.heads.values()} == {task}
    assert bool(version.manifest.metrics) == (labels is not None)


# What it returns, and what it warns of ---------------------------------------------------


def test_a_version_shows_its_table_in_a_notebook_and_one_line_in_a_shell(
    dense: Any, tmp_path: Path
) -> None:
    version = publish(dense, tmp_path, examples=ROWS, labels=CLASSES, variants=("float32",))
    assert repr(version) == f"ExportedVersion('own', 1, '{version.path}')"
    text = version._repr_html_()
    assert "<table" in text and "float32" in text and str(version.path) in text
    assert "color:" not in text.replace("border-color:", "")  # the page's own, light or dark
    assert [row[0] for row in version.table] == ["copy", "in process", "saved_model", "float32"]
    assert version.manifest == read_manifest(version.path)


def test_a_model_that_draws_lots_or_answers_no_numbers_is_not_published(
    tf: Any, tmp_path: Path
) -> None:
    tf_keras = importlib.import_module("tf_keras")
    features = tf_keras.Input((4,))
    noisy = tf_keras.Model(features, tf_keras.layers.Dropout(0.5)(features, training=True))
    with pytest.raises(VerificationError, match="differently when asked twice"):
        publish(noisy, tmp_path, examples=ROWS)
    broken = tf_keras.Sequential([tf_keras.Input((4,)), tf_keras.layers.Dense(2)])
    broken.layers[-1].set_weights([np.full((4, 2), np.nan, np.float32), np.zeros(2, np.float32)])
    with pytest.raises(VerificationError, match="answers NaN or infinity in output 'outputs'"):
        publish(broken, tmp_path, examples=ROWS)
    assert not list(tmp_path.glob("own/*"))


@pytest.mark.parametrize("name", ["cnn", "fixed", "lstm", "groupnorm"])
def test_a_tflite_file_becomes_a_version_that_answers_as_the_file_does(
    name: str, tmp_path: Path
) -> None:
    path = FOLDER / f"{name}.tflite"
    signature = next(iter(LiteModel(path).signatures.values()))
    (spec,) = signature.inputs.values()
    assert spec.shape is not None
    rows = np.random.default_rng(0).random((24, *(size or 1 for size in spec.shape[1:])))
    version = publish(path, tmp_path, examples=rows.astype(np.float32))
    assert (version.path / layout.variant_path("float32")).read_bytes() == path.read_bytes()
    assert not (version.path / layout.SAVED_MODEL).exists()
    assert recheck_version(version.path, skip_tensorflow=True).passed


def test_the_command_exports_a_file_and_shows_the_table_that_the_function_returns(
    dense: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dense.save(tmp_path / "kinds.keras")
    np.savez(tmp_path / "rows.npz", x=ROWS, y=CLASSES)
    command = ["export", "--model", str(tmp_path / "kinds.keras"), "--variants", "float32"]
    command += ["--examples", str(tmp_path / "rows.npz"), "--labels", "y"]
    command += ["--class_names", "a,b,c", "--base_path", str(tmp_path / "kinds")]
    assert main(command) == 0
    shown = capsys.readouterr().out
    assert "bit for bit" in shown and f"Published {tmp_path / 'kinds' / '1'}" in shown
    assert main([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["published"]["version"] == 2
    manifest = read_manifest(tmp_path / "kinds" / "2")
    assert manifest.heads["probabilities"].class_names == ("a", "b", "c")
