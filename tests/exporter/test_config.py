"""A configuration is read whole, or refused with the key that is wrong."""

from pathlib import Path

import msgspec
import pytest

from contract.errors import ConfigError
from exporter.config import Config, load_config, parse_config

CONFIGS = Path(__file__).parents[2] / "configs"
MLP = CONFIGS / "mlp.toml"


def refuse(*overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(MLP, overrides)
    return str(caught.value)


@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_the_shipped_configurations_are_valid(name: str) -> None:
    config = load_config(CONFIGS / f"{name}.toml")
    assert config.model.kind == config.model.name == name
    assert config.data.kind == "digits"


@pytest.mark.parametrize(
    ("override", "section", "key", "value"),
    [
        ("training.epochs=3", "training", "epochs", 3),
        ("training.learning_rate = 1", "training", "learning_rate", 1.0),
        ("data.path=/data/my file.npz", "data", "path", "/data/my file.npz"),
        ("data.path=2024", "data", "path", "2024"),
        ('model.name="quoted"', "model", "name", "quoted"),
        ("model.hidden_units=[8, 4]", "model", "hidden_units", (8, 4)),
        ("data.download=true", "data", "download", True),
        ("training.loop=gradient_tape", "training", "loop", "gradient_tape"),
    ],
)
def test_an_override_replaces_one_value(
    override: str, section: str, key: str, value: object
) -> None:
    assert getattr(getattr(load_config(MLP, [override]), section), key) == value


def test_only_what_is_converted_can_be_required() -> None:
    assert load_config(MLP, ["export.variants=[]"]).export.require == ("float32",)
    with pytest.raises(ConfigError, match="require asks for int8, which variants lacks: float32"):
        load_config(MLP, ['export.variants=["float32"]', 'export.require=["int8"]'])


def test_a_later_override_wins() -> None:
    assert load_config(MLP, ["training.epochs=3", "training.epochs=4"]).training.epochs == 4


@pytest.mark.parametrize(
    ("override", "nearest"),
    [
        ("training.epoch=3", "training.epochs"),
        ("training.learningrate=3", "training.learning_rate"),
        ("model.epochs=3", "training.epochs"),
        ("trainin.epochs=3", "training.epochs"),
        ("training.schedule.final=1", "training.schedule.final_fraction"),
        ("export.tolerances.int16.max_abs_difference=1", "max_abs_difference"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_valid_one(override: str, nearest: str) -> None:
    message = refuse(override)
    assert "unknown key" in message
    assert nearest in message.split("did you mean")[1]


def test_a_key_that_is_gone_says_what_takes_its_place() -> None:
    message = refuse("export.tolerances.int8.max_accuracy_loss_rows=3")
    assert "docs/verification.md" in message
    assert "did you mean" not in message


def test_an_unknown_key_in_the_file_is_refused_like_one_on_the_command_line(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(MLP.read_text() + "\n[export]\nbase_pth = 'models'\n")
    with pytest.raises(ConfigError, match=r"export\.base_pth.*did you mean 'export\.base_path'"):
        load_config(path)


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("training.epochs=x", "training.epochs: expected int, got str"),
        ("training.epochs=0", "training.epochs: expected int >= 1, got 0"),
        ("training.epochs=1.5", "training.epochs: expected int, got float"),
        ("training.learning_rate=nan", "training.learning_rate: expected a finite number"),
        ("training.learning_rate=-1", "training.learning_rate: expected float > 0.0, got -1"),
        ("training.optimizer=adm", "training.optimizer: expected one of 'adam'"),
        ("model.hidden_units=[0]", "]: expected int >= 1"),
        ("data.test_fraction=1", "data.test_fraction: expected float < 1.0, got 1"),
        ("export.golden_num_examples=10", "export.golden_num_examples: expected int >= 64"),
        ("model.name=../up", "cannot name a directory"),
        ("model.kind=builder", "'package.module:function'"),
        ("model.filters=[4]", "filters is for kind = 'cnn'"),
        ("training=3", "'training' is a table"),
        ("epochs", "give section.key=value"),
    ],
)
def test_a_value_that_cannot_be_is_refused_with_its_key(override: str, sentence: str) -> None:
    assert sentence in refuse(override)


@pytest.mark.parametrize(
    "override",
    ["label_smoothing=0.1", "clip_norm=1", "mixup=0.2"],
)
def test_what_only_the_custom_loop_offers_is_refused_for_fit(override: str) -> None:
    assert "only with loop = 'gradient_tape'" in refuse(f"training.{override}")
    load_config(MLP, [f"training.{override}", "training.loop=gradient_tape"])


def test_a_missing_key_is_named(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(MLP.read_text().replace("batch_size", "# batch_size"))
    with pytest.raises(ConfigError, match="training: missing the required key batch_size"):
        load_config(path)


@pytest.mark.parametrize("content", ["not = = toml", "[training\n", "\x00"])
def test_a_file_that_is_not_toml_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(content)
    with pytest.raises(ConfigError, match="is not TOML"):
        load_config(path)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read .*nowhere\.toml"):
        load_config(tmp_path / "nowhere.toml")


def test_a_configuration_that_comes_along_is_found_by_name_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_config("mlp") == load_config(CONFIGS / "mlp.toml")


def test_a_file_that_exists_wins_over_a_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    named = MLP.read_text().replace('kind = "mlp"', 'kind = "mlp"\nname = "mine"')
    Path("mlp").write_text(named)
    assert load_config("mlp").model.name == "mine"


@pytest.mark.parametrize("given", ["mpl", "configs/mlp.toml", "mlp.toml", "there/mlp"])
def test_a_configuration_that_is_not_there_says_which_are(
    given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as caught:
        load_config(given)
    assert "cnn, mlp, mnist_cnn, mnist_mlp" in caught.value.message
    assert ("did you mean mlp, by name?" in caught.value.message) == (given != "mpl")


def test_one_number_of_a_tolerance_can_change_and_the_others_stay() -> None:
    config = load_config(MLP, ["export.tolerances.int8.min_top1_agreement=0.5"])
    assert config.export.tolerances.int8.min_top1_agreement == 0.5
    assert config.export.tolerances.int8.max_class_loss == 0.05
    assert config.export.tolerances.float16.max_class_loss == 0.01


def test_a_configuration_survives_the_manifest() -> None:
    config = load_config(MLP, ["model.hidden_units=[8,4]"])
    assert parse_config(msgspec.to_builtins(config)) == config


def test_a_configuration_cannot_be_changed() -> None:
    config: Config = load_config(MLP)
    with pytest.raises(AttributeError):
        config.training.epochs = 5  # type: ignore[misc]
