"""Every kind of head is trained with the loss that fits it, alike in both loops, or refused."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from contract.errors import ConfigError
from contract.heads import Head
from exporter.config import ModelConfig
from exporter.data.dataset import Dataset
from exporter.data.examples import Examples
from exporter.training.run import TrainResult
from exporter.training.train import train
from tests.exporter.models_for_tests import find_heads
from tests.exporter.small_training import make_config

if TYPE_CHECKING:
    from exporter.training.heads import ModelHeads

pytestmark = pytest.mark.tensorflow

LOOPS = ("fit", "gradient_tape")
RNG = np.random.default_rng(7)
ROWS = 120
VECTORS = RNG.normal(size=(ROWS, 6)).astype(np.float32)
PICTURES = RNG.random((ROWS, 8, 8, 1)).astype(np.float32)
WORDS = np.array([b"good film", b"bad film", b"good", b"bad"], object)[np.arange(ROWS) % 4]
SUMS = VECTORS.sum(axis=1)
TWO = (SUMS > 0).astype(np.int64)
RARE = (SUMS > 4).astype(np.int64)
THREE = np.digitize(SUMS, (-1, 1)).astype(np.int64)
LABELS = (VECTORS[:, :3] > 0).astype(np.float32)
VALUE = SUMS[:, np.newaxis]
POINTS = VECTORS[:, :2] * 2 + 1
MASKS = np.digitize(PICTURES[..., 0], (0.3, 0.7)).astype(np.int64)
SPOTS = (PICTURES > 0.5).astype(np.int64)
NAMES = ("low", "middle", "high")

BUILDERS = """
import tensorflow as tf
import tf_keras
from tf_keras import layers

def one(units, activation, shape=(6,)):
    def build(input_shape, num_classes):
        x = layers.Dense(8, "relu")(inputs := layers.Input(input_shape))
        return tf_keras.Model(inputs, layers.Dense(units, activation, name="answer")(x))
    return build

sigmoid, logit, squeezed_softmax = one(1, "sigmoid"), one(1, None), one(1, "softmax")
softmax2, softmax3, logits3, sigmoids3 = (
    one(2, "softmax"), one(3, "softmax"), one(3, None), one(3, "sigmoid")
)
values2, wide, two_sigmoids = one(2, None), one(5, None), one(2, "sigmoid")

def hidden_sigmoids(input_shape, num_classes):
    inputs = layers.Input(input_shape)
    x = layers.Dense(3)(inputs)
    return tf_keras.Model(inputs, layers.Lambda(tf.sigmoid)(x))

def flat(input_shape, num_classes):
    inputs = layers.Input(input_shape)
    return tf_keras.Model(inputs, layers.Reshape(())(layers.Dense(1, "sigmoid")(inputs)))

def masks(input_shape, num_classes):
    inputs = layers.Input(input_shape)
    x = layers.Conv2D(4, 3, padding="same", activation="relu")(inputs)
    return tf_keras.Model(inputs, layers.Conv2D(num_classes, 1, activation="softmax")(x))

def spots(input_shape, num_classes):
    inputs = layers.Input(input_shape)
    return tf_keras.Model(inputs, layers.Conv2D(1, 3, padding="same", activation="sigmoid")(inputs))

def many(input_shape, num_classes):
    inputs = layers.Input(input_shape)
    x = layers.Dense(8, "relu", name="vector")(inputs)
    return tf_keras.Model(inputs, {
        # Named, since TensorFlow adds gradients in the order of names: dense_10 is before dense_9.
        "level": layers.Dense(num_classes["level"], "softmax", name="to_level")(x),
        "tags": layers.Dense(num_classes["tags"], "sigmoid", name="to_tags")(x),
        "total": layers.Dense(num_classes["total"], name="to_total")(x),
        "vector": x,
    })

def mixed_inputs(input_shape, num_classes, examples):
    text = layers.Input((), dtype="string", name="text")
    ids = layers.Input((2,), dtype="int32", name="ids")
    numbers = layers.Input(input_shape["numbers"], name="numbers")
    vectorise = layers.TextVectorization(output_sequence_length=3)
    vectorise.adapt(examples.inputs["text"])
    words = layers.Embedding(vectorise.vocabulary_size(), 4)(vectorise(text))
    tokens = layers.Embedding(9, 4)(ids)
    x = layers.Concatenate()([
        layers.Flatten()(words), layers.Flatten()(tokens), numbers
    ])
    return tf_keras.Model([text, ids, numbers], layers.Dense(num_classes, "softmax")(x))

def half(input_shape, num_classes):
    tf_keras.mixed_precision.set_global_policy("mixed_float16")
    inputs = layers.Input(input_shape)
    x = layers.Dense(num_classes)(layers.Dense(8, "relu")(inputs))
    return tf_keras.Model(inputs, layers.Activation("softmax", dtype="float32")(x))

def half_to_the_end(input_shape, num_classes):
    last = layers.Dense(num_classes, "softmax", dtype="mixed_float16")
    return tf_keras.Model(inputs := layers.Input(input_shape), last(inputs))

def beside(input_shape, num_classes):
    inputs = layers.Input(input_shape)
    x = layers.Dense(8, "relu", name="vector")(inputs)
    scores = layers.Dense(num_classes, "softmax")(x)
    number = layers.Lambda(lambda scores: tf.argmax(scores, axis=-1))(scores)
    return tf_keras.Model(inputs, {"scores": scores, "vector": x, "number": number})

def pull_together(y_true, y_pred):
    same = tf.matmul(y_true, y_true, transpose_b=True)
    far = tf.norm(y_pred[:, None] - y_pred[None] + 1e-3, axis=-1)
    return tf.reduce_mean(same * far + (1 - same) * tf.nn.relu(1 - far), axis=-1)
"""


@pytest.fixture(autouse=True)
def builders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_heads.py").write_text(BUILDERS)
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop("my_heads", None)


def make_data(
    inputs: Mapping[str, Any] | Any, targets: Mapping[str, tuple[Any, Head]] | tuple[Any, Head]
) -> Dataset:
    """The same rows in all three splits: what is learnt is not asked here."""
    inputs = inputs if isinstance(inputs, Mapping) else {"": inputs}
    named = targets if isinstance(targets, Mapping) else {"": targets}
    rows = Examples(inputs, {name: array for name, (array, _) in named.items()})
    heads = {name: head for name, (_, head) in named.items()}
    return Dataset("rows", rows, rows.take(slice(60)), rows.take(slice(60)), heads, "0" * 64)


def classes(array: Any, *names: str) -> tuple[Any, Head]:
    return array, Head(task="multiclass", class_names=names)


GOOD = classes(np.arange(ROWS) % 2, "good", "bad")
MULTILABEL = (LABELS, Head(task="multilabel", class_names=("a", "b", "c")))


def values(array: Any) -> tuple[Any, Head]:
    return array, Head(task="regression")


def train_one(
    dataset: Dataset,
    builder: str,
    *,
    run_dir: Path | None = None,
    resume: bool = False,
    **training: Any,
) -> TrainResult:
    model = {"kind": "builder", "builder": f"my_heads:{builder}"}
    config = make_config(model=model, **{"epochs": 2, **training})
    return train(dataset, config, run_dir=run_dir, resume=resume)


def describe(dataset: Dataset, builder: str, **training: Any) -> ModelHeads:
    """As `train` finds them, without training."""
    from exporter.training.models import build_model

    model = ModelConfig(kind="builder", builder=f"my_heads:{builder}")
    return find_heads(build_model(model, dataset), dataset, **training)


def describe_mlp(dataset: Dataset) -> ModelHeads:
    """The heads of the MLP for these data."""
    from exporter.training.models import build_model

    return find_heads(build_model(make_config().model, dataset), dataset)


def tell(head: Head) -> str:
    return head.task + (" from logits" if head.from_logits else "")


def train_both(dataset: Dataset, builder: str, **training: Any) -> TrainResult:
    """One of two results that are equal to the bit."""
    fit, tape = (train_one(dataset, builder, loop=loop, **training) for loop in LOOPS)
    pairs = zip(fit.model.get_weights(), tape.model.get_weights(), strict=True)
    assert all(np.array_equal(one, other) for one, other in pairs)
    assert fit.history.keys() == tape.history.keys()
    for name, numbers in fit.history.items():
        assert np.allclose(numbers, tape.history[name], atol=1e-5), name
    assert fit.history["loss"][1] < fit.history["loss"][0]
    return fit


PLAIN = {"accuracy", "macro_f1"}
RANKED = {"accuracy", "f1", "auc", "average_precision"}
SPOTTED = {"accuracy", "macro_f1", "auc", "average_precision", "f1_on"}
LABELLED = {*SPOTTED, "f1_a", "f1_b", "f1_c"} - {"f1_on"}
SEVERAL = {"level": classes(THREE, *NAMES), "tags": MULTILABEL, "total": values(VALUE)}
MIXED = {"text": WORDS, "ids": np.arange(ROWS * 2).reshape(ROWS, 2) % 9, "numbers": VECTORS}


@pytest.mark.parametrize(
    ("inputs", "targets", "builder", "expected", "metrics"),
    [
        (VECTORS, classes(TWO, "no", "yes"), "sigmoid", "binary", RANKED),
        (VECTORS, classes(TWO, "no", "yes"), "logit", "binary from logits", RANKED),
        (VECTORS, MULTILABEL, "sigmoids3", "multilabel", LABELLED),
        (VECTORS, MULTILABEL, "logits3", "multilabel from logits", LABELLED),
        (VECTORS, values(POINTS), "values2", "regression", {"mae", "rmse"}),
        (PICTURES, classes(MASKS, *NAMES), "masks", "multiclass", {*PLAIN, "mean_iou"}),
        (PICTURES, classes(SPOTS, "off", "on"), "spots", "multilabel", SPOTTED),
        (MIXED, GOOD, "mixed_inputs", "multiclass", PLAIN),
    ],
)
def test_each_kind_of_head_is_trained_alike_in_both_loops(
    inputs: Any, targets: Any, builder: str, expected: str, metrics: set[str]
) -> None:
    result = train_both(make_data(inputs, targets), builder)
    assert tell(result.heads.main.head) == expected
    shown = {name.removeprefix("val_") for name in result.history if name.startswith("val_")}
    assert shown == {"loss", *metrics}


@pytest.mark.parametrize(
    ("targets", "builder", "expected", "loss"),
    [
        (classes(TWO, "no", "yes"), "flat", "binary", "binary_crossentropy"),
        (classes(TWO, "no", "yes"), "softmax2", "multiclass", "categorical_crossentropy"),
        ((TWO, Head(task="binary")), "softmax2", "multiclass", "categorical_crossentropy"),
        ((TWO, Head(task="binary")), "sigmoid", "binary", "binary_crossentropy"),
        (classes(THREE, *NAMES), "logits3", "multiclass from logits", "categorical_crossentropy"),
        (MULTILABEL, "hidden_sigmoids", "multilabel", "binary_crossentropy"),
        (values(VALUE), "logit", "regression", "mean_squared_error"),
        (values(SUMS), "sigmoid", "regression", "mean_squared_error"),
    ],
)
def test_a_head_is_told_by_its_target_and_its_activation(
    targets: Any, builder: str, expected: str, loss: str
) -> None:
    output = describe(make_data(VECTORS, targets), builder).main
    assert (tell(output.head), output.loss) == (expected, loss)


@pytest.mark.parametrize("masks", [MASKS, MASKS[..., np.newaxis]], ids=["bare", "with a channel"])
def test_masks_may_have_a_channel(masks: Any) -> None:
    output = describe(make_data(PICTURES, classes(masks, *NAMES)), "masks").main
    assert (output.shape, output.target_shape) == ((8, 8, 3), (8, 8, 3))


def test_several_heads_learn_targets_of_their_own_and_one_may_learn_none() -> None:
    result = train_both(make_data(VECTORS, SEVERAL), "many", loss_weights={"total": 0.1})
    tasks = {name: head.task for name, head in result.heads.by_output.items()}
    assert tasks == {
        "level": "multiclass",
        "tags": "multilabel",
        "total": "regression",
        "vector": "embedding",
    }
    assert {"val_accuracy", "val_tags_accuracy", "val_total_mae"} <= result.history.keys()


def test_the_names_of_two_classes_stay_with_a_head_of_one_score() -> None:
    heads = describe(make_data(VECTORS, classes(TWO, "no", "yes")), "sigmoid")
    assert heads.by_output == {"answer": Head(task="binary", class_names=("no", "yes"))}


def test_a_model_with_a_vocabulary_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    data = make_data(MIXED, GOOD)
    first = train_one(data, "mixed_inputs", checkpoint_every=1, run_dir=tmp_path / "run")
    resumed = train_one(
        data, "mixed_inputs", checkpoint_every=1, run_dir=tmp_path / "run", resume=True
    )
    assert resumed.resumed_from == 2
    pairs = zip(first.model.get_weights(), resumed.model.get_weights(), strict=True)
    assert all(np.array_equal(one, other) for one, other in pairs)


def test_half_precision_is_trained_with_its_loss_scaled_and_stays_with_the_model() -> None:
    import tf_keras

    result = train_both(make_data(VECTORS, classes(THREE, *NAMES)), "half")
    assert {layer.compute_dtype for layer in result.model.layers} == {"float16", "float32"}
    assert tf_keras.mixed_precision.global_policy().name == "float32"


def test_answers_of_half_precision_are_refused() -> None:
    with pytest.raises(ConfigError, match="last layer dtype='float32'"):
        describe(make_data(VECTORS, classes(THREE, *NAMES)), "half_to_the_end")


@pytest.mark.parametrize("weights", ["balanced", {"high": 9.0}])
def test_class_weights_move_both_loops_alike(weights: Any) -> None:
    data = make_data(VECTORS, classes(THREE, *NAMES))
    weighed = train_both(data, "softmax3", class_weight=weights)
    plain = train_one(data, "softmax3")
    assert (weighed.model.get_weights()[0] != plain.model.get_weights()[0]).any()


def test_balanced_weights_find_a_rare_class() -> None:
    data = make_data(VECTORS, classes(RARE, "fine", "fraud"))
    keys: dict[str, Any] = {"epochs": 12, "learning_rate": 0.01}
    found = {}
    for weights in ("", "balanced"):
        model = train_one(data, "sigmoid", class_weight=weights, **keys).model
        found[weights] = float((model.predict_on_batch(VECTORS)[RARE == 1] > 0.5).mean())
    assert found["balanced"] > found[""] + 0.2


def test_masks_and_several_heads_are_weighed_too() -> None:
    train_both(make_data(PICTURES, classes(MASKS, *NAMES)), "masks", class_weight="balanced")
    train_both(make_data(VECTORS, SEVERAL), "many", class_weight={"low": 3.0}, epochs=2)


def test_balanced_labels_find_a_rare_one() -> None:
    rare = np.stack([RARE, TWO], axis=1).astype(np.float32)
    data = make_data(VECTORS, (rare, Head(task="multilabel", class_names=("fraud", "large"))))
    keys: dict[str, Any] = {"epochs": 12, "learning_rate": 0.01}
    found = {}
    for weights in ("", "balanced", {"fraud": 20.0}):
        model = train_one(data, "two_sigmoids", class_weight=weights, **keys).model
        answers = model.predict_on_batch(VECTORS)[RARE == 1, 0]
        found[str(weights)] = float((answers > 0.5).mean())
    assert min(found["balanced"], found[str({"fraud": 20.0})]) > found[""] + 0.2


@pytest.mark.parametrize("weights", ["balanced", {"b": 5.0}])
def test_label_weights_move_both_loops_alike_and_not_the_validation(weights: Any) -> None:
    data = make_data(VECTORS, MULTILABEL)
    train_both(data, "sigmoids3", class_weight=weights)
    still: dict[str, Any] = {"learning_rate": 1e-30, "epochs": 1}
    weighed = train_one(data, "sigmoids3", class_weight=weights, **still)
    plain = train_one(data, "sigmoids3", **still)
    assert weighed.history["loss"] != plain.history["loss"]
    assert weighed.history["val_loss"] == plain.history["val_loss"]


def test_balanced_labels_weigh_as_scikit_learn_has_it() -> None:
    from sklearn.utils.class_weight import compute_class_weight

    data = make_data(VECTORS, MULTILABEL)
    weights = weigh(data, "sigmoids3", "balanced").by_label["answer"]
    for label in range(3):
        rows = data.train.take(slice(None)).targets[""][:, label]
        expected = compute_class_weight("balanced", classes=np.array([0, 1]), y=rows)
        assert np.allclose(weights[:, label], expected)


def test_a_table_weighs_classes_and_labels_of_several_heads() -> None:
    data = make_data(VECTORS, SEVERAL)
    tags = SEVERAL["tags"][1].class_names
    weights = weigh(data, "many", {"low": 3.0, tags[1]: 5.0})
    assert weights.by_class["level"].tolist() == [3, 1, 1]
    assert weights.by_label["tags"].tolist() == [[1, 1, 1], [1, 5, 1]]
    train_both(data, "many", class_weight="balanced", epochs=2)


def weigh(data: Dataset, builder: str, asked: Any) -> Any:
    from exporter.training.parts import build_parts

    model = {"kind": "builder", "builder": f"my_heads:{builder}"}
    return build_parts(data, make_config(model=model, class_weight=asked)).class_weights


def test_a_loss_of_ones_own_trains_an_embedding_in_both_loops() -> None:
    data = make_data(VECTORS, classes(THREE, *NAMES))
    result = train_both(data, "wide", loss="my_heads:pull_together")
    assert result.heads.main.head.task == "embedding"


def test_a_vector_and_a_whole_number_beside_a_classifier_are_left_alone() -> None:
    heads = describe(make_data(VECTORS, classes(THREE, *NAMES)), "beside")
    assert {name: head.task for name, head in heads.by_output.items()} == {
        "scores": "multiclass",
        "vector": "embedding",
    }
    assert [output.name for output in heads.trained] == ["scores"]


def test_a_table_of_losses_is_by_output() -> None:
    table = {"total": "mean_absolute_error"}
    heads = describe(make_data(VECTORS, SEVERAL), "many", loss=table)
    losses = {output.name: output.loss for output in heads.trained}
    assert losses == {
        "level": "categorical_crossentropy",
        "tags": "binary_crossentropy",
        "total": "mean_absolute_error",
    }


@pytest.mark.parametrize(
    ("targets", "builder", "keys", "sentence"),
    [
        (classes(THREE, *NAMES), "sigmoids3", {}, "activation='softmax'"),
        (classes(THREE, *NAMES), "hidden_sigmoids", {}, "activation='softmax'"),
        (classes(THREE, *NAMES), "sigmoid", {}, "3 scores"),
        (classes(TWO, "no", "yes"), "squeezed_softmax", {}, "is always 1"),
        (classes(TWO, "no", "yes"), "wide", {}, r"\(batch, 2\) or \(batch, 1\)"),
        (MULTILABEL, "softmax3", {}, "activation='sigmoid'"),
        (MULTILABEL, "wide", {}, "one score for each label"),
        (values(POINTS), "logit", {}, "as many units as there are values"),
        (values(POINTS), "values2", {"loss": "binary_crossentropy"}, "fits no output"),
        (classes(TWO, "no", "yes"), "sigmoid", {"loss": {"b": "huber"}}, "names 'b'"),
        (values(POINTS), "values2", {"class_weight": "balanced"}, "of classes or of labels"),
        (
            MULTILABEL,
            "wide",
            {"class_weight": "balanced", "loss": "my_heads:pull_together"},
            "weigh the labels in that function",
        ),
        (MULTILABEL, "sigmoids3", {"class_weight": {"maybe": 1}}, "'maybe'"),
        (classes(TWO, "no", "yes"), "sigmoid", {"class_weight": {"maybe": 1}}, "'maybe'"),
        (SEVERAL, "logits3", {}, "one output, 'answer'"),
    ],
)
def test_a_head_that_fits_no_target_is_refused_with_what_does(
    targets: Any, builder: str, keys: dict[str, Any], sentence: str
) -> None:
    data = make_data(VECTORS, targets)
    with pytest.raises(ConfigError, match=sentence):
        if "class_weight" in keys:
            train_one(data, builder, **keys)
        describe(data, builder, **keys)


@pytest.mark.parametrize(
    ("inputs", "sentence"),
    [
        ({**MIXED, "ids": VECTORS[:, :2]}, "would be cut off"),
        ({"text": WORDS, "tokens": MIXED["ids"], "numbers": VECTORS}, "nothing feeds 'ids'"),
    ],
)
def test_an_input_that_the_data_do_not_fit_is_refused(inputs: Any, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        describe(make_data(inputs, GOOD), "mixed_inputs")


def test_texts_for_an_input_of_numbers_are_refused_with_the_layer_that_takes_them() -> None:
    data = make_data(WORDS[:, np.newaxis], classes(TWO, "no", "yes"))
    with pytest.raises(ConfigError, match=r"float32, and the data hold texts; .*StringLookup"):
        describe(data, "softmax2")


@pytest.mark.parametrize(
    ("targets", "keys", "sentence"),
    [
        (values(POINTS), {"mixup": 0.2}, "blends classes"),
        (values(POINTS), {"label_smoothing": 0.1}, "is for classes"),
    ],
)
def test_what_is_for_classes_is_refused_for_values(
    targets: Any, keys: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ConfigError, match=sentence):
        train_one(make_data(VECTORS, targets), "values2", loop="gradient_tape", **keys)


@pytest.mark.parametrize(
    ("targets", "task"),
    [
        (classes(TWO, "no", "yes"), "multiclass"),
        ((TWO, Head(task="binary")), "binary"),
        (MULTILABEL, "multilabel"),
        (values(POINTS), "regression"),
    ],
)
def test_the_mlp_gets_the_head_that_the_targets_ask_for(targets: Any, task: str) -> None:
    assert describe_mlp(make_data(VECTORS, targets)).main.head.task == task


def test_the_mlp_takes_several_columns_and_answers_several_targets() -> None:
    inputs = {"a b": VECTORS[:, 0], "rest": VECTORS[:, 1:]}
    heads = describe_mlp(make_data(inputs, SEVERAL))
    assert heads.inputs == {"a b": (1,), "rest": (5,)}
    assert set(heads.by_output) == set(SEVERAL)
