"""The networks are those of the configuration; a builder of no use is refused in words."""

from pathlib import Path
from typing import Any

import pytest

from contract.errors import ConfigError
from contract.heads import Head
from exporter.config import ModelConfig, load_config
from exporter.training.models import build_model
from tests.exporter.models_for_tests import find_heads, make_dataset

pytestmark = pytest.mark.tensorflow

CONFIGS = Path(__file__).parents[2] / "configs"
IMAGES = make_dataset((8, 8, 1))

BUILDERS = """
import tf_keras
from tf_keras import layers

def branching(input_shape, num_classes):
    images = layers.Input(input_shape, name="images")
    left = layers.Conv2D(2, 3, padding="same")(images)
    right = layers.Conv2D(2, 1, padding="same")(images)
    x = layers.Flatten()(layers.Add()([left, right]))
    return tf_keras.Model(images, layers.Dense(num_classes, activation="softmax", name="p")(x))

def two_heads(input_shape, num_classes):
    a = layers.Input(input_shape, name="a")
    b = layers.Input((input_shape[0] * input_shape[1],), name="b")
    x = layers.Concatenate()([layers.Flatten()(a), b])
    heads = {"digit": layers.Dense(num_classes)(x), "size": layers.Dense(1)(x)}
    return tf_keras.Model([a, b], heads)

def logits(input_shape, num_classes):
    return tf_keras.Sequential(
        [layers.Input(input_shape), layers.Flatten(), layers.Dense(num_classes)]
    )

def regression(input_shape, num_classes):
    return tf_keras.Sequential([layers.Input(input_shape), layers.Flatten(), layers.Dense(1)])

def narrow(input_shape, num_classes):
    return logits(input_shape, num_classes - 1)

def unbuilt(input_shape, num_classes):
    return tf_keras.Sequential([layers.Flatten(), layers.Dense(num_classes)])

def other_input(input_shape, num_classes):
    return logits((3, 3, 1), num_classes)

def any_size(input_shape, num_classes):
    images = layers.Input((None, None, 1))
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(2, 3)(images))
    return tf_keras.Model(images, layers.Dense(num_classes, activation="softmax")(x))

def asks_text(input_shape, num_classes, examples):
    return examples.inputs["text"]

def failing(input_shape, num_classes):
    raise RuntimeError("out of ideas")

def text(input_shape, num_classes):
    return "a model"

class Own(tf_keras.Model):
    def train_step(self, data):
        return super().train_step(data)

def own_step(input_shape, num_classes):
    images = layers.Input(input_shape)
    return Own(images, layers.Dense(num_classes)(layers.Flatten()(images)))

number = 3
"""


@pytest.fixture
def builders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_builders.py").write_text(BUILDERS)
    (tmp_path / "broken_builders.py").write_text("import no_such_package")
    monkeypatch.syspath_prepend(str(tmp_path))


def build(builder: str) -> Any:
    return build_model(ModelConfig(kind="builder", builder=builder), IMAGES)


def describe(builder: str, loss: str = "") -> Any:
    return find_heads(build(builder), IMAGES, loss=loss)


def layer_kinds(model: Any) -> list[str]:
    return [type(layer).__name__ for layer in model.layers]


def test_the_mlp_is_64_units_between_784_pixels_and_10_classes() -> None:
    model = build_model(load_config(CONFIGS / "mlp.toml").model, make_dataset())
    assert type(model).__name__ == "Sequential"
    assert model.input_shape == (None, 784)
    dense = [layer for layer in model.layers if type(layer).__name__ == "Dense"]
    assert [layer.units for layer in dense] == [64, 10]
    assert [layer.activation.__name__ for layer in dense] == ["relu", "softmax"]


def test_the_cnn_is_two_convolutions_with_pooling_and_128_units() -> None:
    model = build_model(load_config(CONFIGS / "cnn.toml").model, make_dataset())
    kinds = [kind for kind in layer_kinds(model) if kind != "Dropout"]
    assert kinds == [
        *("InputLayer", "Conv2D", "MaxPooling2D", "Conv2D", "MaxPooling2D"),
        *("Flatten", "Dense", "Dense"),
    ]
    assert [layer.filters for layer in model.layers if hasattr(layer, "filters")] == [32, 64]
    assert model.count_params() == 32 * 10 + 64 * (288 + 1) + 128 * (3136 + 1) + 10 * 129


def test_sizes_dropout_and_l2_come_from_the_configuration() -> None:
    config = ModelConfig(kind="mlp", hidden_units=(5, 4), dropout=0.25, l2=0.1)
    model = build_model(config, make_dataset((6,), num_classes=3))
    assert model.count_params() == 7 * 5 + 6 * 4 + 5 * 3
    assert [layer.rate for layer in model.layers if hasattr(layer, "rate")] == [0.25]
    assert len(model.losses) == 3


def test_a_cnn_refuses_data_that_are_no_images() -> None:
    with pytest.raises(ConfigError, match="needs images"):
        build_model(ModelConfig(kind="cnn", filters=(2,), dense_units=2), make_dataset((784,)))


def test_a_cnn_refuses_images_too_small_for_its_poolings() -> None:
    with pytest.raises(ConfigError, match="need images of 8×8 or more, not 4×4"):
        build_model(ModelConfig(kind="cnn", filters=(2, 2, 2)), make_dataset((4, 4, 1)))


@pytest.mark.usefixtures("builders")
def test_a_branching_builder_is_built() -> None:
    heads = describe("my_builders:branching")
    assert heads.inputs == {"images": (8, 8, 1)}
    assert heads.by_output == {"p": Head(task="multiclass", class_names=IMAGES.class_names)}


@pytest.mark.usefixtures("builders")
def test_several_inputs_and_heads_are_named_and_told_apart() -> None:
    heads = describe("my_builders:two_heads")
    assert heads.inputs == {"a": (8, 8, 1), "b": (64,)}
    assert {name: (head.task, head.from_logits) for name, head in heads.by_output.items()} == {
        "digit": ("multiclass", True),
        "size": ("regression", False),
    }
    assert heads.main.name == "digit"


@pytest.mark.usefixtures("builders")
def test_an_input_of_open_size_takes_the_size_of_the_data() -> None:
    assert list(describe("my_builders:any_size").inputs.values()) == [(8, 8, 1)]


@pytest.mark.usefixtures("builders")
def test_one_number_for_many_classes_goes_with_the_loss_for_it() -> None:
    output = describe("my_builders:regression", "mean_squared_error").main
    assert (output.shape, output.head.task) == ((1,), "regression")
    with pytest.raises(ConfigError, match=r"softmax'\); .* 'mean_squared_error'"):
        describe("my_builders:regression")


@pytest.mark.usefixtures("builders")
def test_an_output_that_is_not_as_wide_as_there_are_classes_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"shape \(batch, 9\), but its shape must be \(batch, 10\)"
    ):
        describe("my_builders:narrow")


@pytest.mark.usefixtures("builders")
def test_an_input_that_does_not_fit_the_data_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"takes \(3, 3, 1\), but the data have .*\(8, 8, 1\)"):
        describe("my_builders:other_input")


@pytest.mark.usefixtures("builders")
@pytest.mark.parametrize(
    ("builder", "sentence"),
    [
        ("no_such_module:build", "does not import: ModuleNotFoundError"),
        ("broken_builders:build", "does not import: ModuleNotFoundError: No module named"),
        ("my_builders:missing", "has no function 'missing'"),
        ("my_builders:number", "has no function 'number'"),
        ("my_builders:failing", "failed on ((8, 8, 1), 10): RuntimeError: out of ideas"),
        ("my_builders:asks_text", "KeyError: 'text'; examples.inputs holds ''"),
        ("my_builders:text", "returned a builtins.str; return a tf_keras.Model"),
        ("my_builders:unbuilt", "without an input shape"),
        ("my_builders:own_step", "a train_step of its own, which neither loop would call"),
    ],
)
def test_a_builder_of_no_use_is_refused(builder: str, sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build(builder)
    assert sentence in str(caught.value)
