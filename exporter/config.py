"""The configuration of a run: what may be written in `configs/*.toml`, and how it is read.

`configs/` is the only place where hyper-parameters are written as numbers; a value stands
here only where leaving a key out has one plain meaning (0 = off, "" = none).
"""

from __future__ import annotations

import difflib
import importlib
import math
import re
import sys
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, get_args

import msgspec
from msgspec import Meta

from contract.errors import ConfigError
from contract.layout import FLOAT32
from contract.parity import Tolerances, fill_tolerances

Share = Annotated[float, Meta(ge=0, lt=1)]
Fraction = Annotated[float, Meta(gt=0, lt=1)]
Count = Annotated[int, Meta(ge=0)]
Positive = Annotated[int, Meta(ge=1)]
NotNegative = Annotated[float, Meta(ge=0)]
Seed = Annotated[int, Meta(ge=0, le=2**32 - 1)]

MODEL_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
BUILDER = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
REGRESSION_LOSSES = ("mean_squared_error", "mean_absolute_error", "huber")
BUILT_IN_LOSSES = (
    "categorical_crossentropy",
    "sparse_categorical_crossentropy",
    "binary_crossentropy",
    *REGRESSION_LOSSES,
)
LoopName = Literal["fit", "gradient_tape"]
StrategyName = Literal["none", "mirrored", "multi_worker"]
TargetTask = Literal["", "multiclass", "binary", "multilabel", "regression"]
InMemoryKind = Literal[
    "digits",
    "mnist",
    "npz",
    "image_folder",
    "csv",
    "parquet",
    "sequence",
    "text",
    "random",
]
"""Kinds of data that are read as a whole."""
DataKind = Literal[InMemoryKind, "tfrecord", "loader"]
VariantName = Literal["float32", "float16", "dynamic_range", "int8", "web", "int8_float_io"]

Table: TypeAlias = dict[str, Any]
"""A table of TOML, as it was read: nothing is known of it yet."""


def is_custom(loss: str) -> bool:
    """Whether a loss is a function of the user's own."""
    return ":" in loss


class ModelConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Which network to build.

    Attributes:
        kind: `mlp`, `cnn`, or `builder` for the user's own.
        name: Model name below the base path; "" stands for the kind.
        builder: `package.module:function`, called with (input_shape, num_classes).
        hidden_units: Widths of the MLP's hidden layers.
        filters: Filters of the CNN's convolutions, each followed by a pooling of 2.
        dense_units: Width of the CNN's layer before the last.
        dropout: Share of activations dropped before the last layer, 0..1.
        l2: Factor of the L2 penalty on every kernel.
    """

    kind: Literal["mlp", "cnn", "builder"]
    name: str = ""
    builder: str = ""
    hidden_units: tuple[Positive, ...] = ()
    filters: tuple[Positive, ...] = ()
    dense_units: Count = 0
    dropout: Share = 0.0
    l2: NotNegative = 0.0

    def __post_init__(self) -> None:
        if not self.name:
            msgspec.structs.force_setattr(self, "name", self.kind)
        if not MODEL_NAME.fullmatch(self.name):
            raise ValueError(
                f"name {self.name!r} cannot name a directory; use letters, digits, '_', '.' or '-'"
            )
        if self.kind == "builder" and not BUILDER.fullmatch(self.builder):
            raise ValueError(
                f"kind is 'builder', so builder must be 'package.module:function', "
                f"not {self.builder!r}"
            )
        if self.kind != "builder" and self.builder:
            raise ValueError(f"builder is given, so kind must be 'builder', not {self.kind!r}")
        others = {"hidden_units": "mlp", "filters": "cnn", "dense_units": "cnn"}
        for key, kind in others.items():
            if getattr(self, key) and self.kind != kind:
                raise ValueError(f"{key} is for kind = {kind!r}; the kind here is {self.kind!r}")


class DataConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Which data to train on and how to split them.

    Attributes:
        kind: Where they come from, see docs/training.md.
        path: The user's file (mnist: a file or the folder of the four IDX files).
        test_path: Likewise with the test split, for kinds that have one split a file.
        download: Fetch MNIST when neither `path` nor Keras's cache has it.
        seed: Of the split (and of `random`); independent of the training seed.
        validation_fraction: Share of the training rows set apart for early stopping.
        test_fraction: Share set apart first, where the data bring no test split.
        target: The column to be learnt, or several: one target each, or one for all of them with
            the task `multilabel` or `regression`.
        columns: Those that the model is fed with; () stands for all others.
        categories: Columns whose numbers are names.
        inputs: `vector`: one input, categories one-hot; `columns`: one input a column, (rows, 1).
        features: Feature name of a tf.Example to what it holds: `image`, `string`,
            `float32[28,28]`, `int64`, or `uint8[28,28]` of raw bytes; {} asks the first record.
        loader: `package.module:function` that returns a tf.data.Dataset.
        class_names: Of the only target, where the data do not name its classes.
        shuffle_bytes: Records in memory from which the next row is drawn, of data that stream.
        memory_bytes: Rows of a loader beyond it are kept in a temporary folder, and stream.
        task: What the targets are; "" tells it from their values.
        tasks: Target name to what it is, where several targets differ.
        image_size: (height, width) that pictures are resized to; () where all have the same.
        channels: 1 for grey, 3 for RGB; 0: grey where all pictures are.
        skip_unreadable: Leave out pictures, and records, that cannot be read.
        scale: What a model receives for the pixels 0 and 255.
        impute: What a missing number becomes: the `mean` or `median` of its column's training
            rows, or `zero`; "" refuses missing values.
        max_examples: Rows taken at most of each split that the data bring, evenly spread over it;
            0 takes all. Not of data that stream.
        num_examples: Rows of `random`.
    """

    kind: DataKind
    path: str = ""
    test_path: str = ""
    download: bool = False
    seed: Seed
    validation_fraction: Fraction
    test_fraction: Fraction
    target: str | tuple[str, ...] = ""
    columns: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    inputs: Literal["vector", "columns"] = "vector"
    features: dict[str, str] = {}
    loader: str = ""
    class_names: tuple[str, ...] = ()
    shuffle_bytes: Positive = 64 * 2**20
    memory_bytes: Positive = 512 * 2**20
    task: TargetTask = ""
    tasks: dict[str, TargetTask] = {}
    image_size: tuple[Positive, ...] = ()
    channels: Literal[0, 1, 3] = 0
    skip_unreadable: bool = False
    scale: tuple[float, float] = (0.0, 1.0)
    impute: Literal["", "mean", "median", "zero"] = ""
    max_examples: Annotated[int, Meta(ge=0)] = 0
    num_examples: Annotated[int, Meta(ge=40)] = 2000

    def __post_init__(self) -> None:
        if (self.kind == "loader") != bool(self.loader):
            raise ValueError(
                f"kind is {self.kind!r} and loader {self.loader!r}; kind = 'loader' and loader = "
                "'package.module:function' go together"
            )
        if self.loader and not BUILDER.fullmatch(self.loader):
            raise ValueError(f"loader is {self.loader!r}; give 'package.module:function'")
        if len(self.image_size) not in (0, 2):
            raise ValueError(f"image_size is {list(self.image_size)}; give [height, width]")
        if not self.scale[0] < self.scale[1]:
            raise ValueError(
                f"scale is {list(self.scale)}; give what black and white become, the lower first: "
                "[0, 1], [-1, 1] or [0, 255]"
            )


class ScheduleConfig(msgspec.Struct, frozen=True, kw_only=True):
    """How the learning rate moves over the run, in epochs.

    Attributes:
        kind: `constant`; `cosine` (to `final_fraction` at the last epoch); `exponential` (to
            `final_fraction` at the last epoch); `piecewise` (times `factor` at `boundaries`).
        warmup_epochs: Epochs of linear rise from 0 before it.
        final_fraction: Last learning rate as a share of the first.
        boundaries: Epochs at which `piecewise` steps.
        factor: What it multiplies by at each.
    """

    kind: Literal["constant", "cosine", "exponential", "piecewise"] = "constant"
    warmup_epochs: NotNegative = 0.0
    final_fraction: Annotated[float, Meta(gt=0, le=1)] = 0.01
    boundaries: tuple[Positive, ...] = ()
    factor: Annotated[float, Meta(gt=0)] = 0.1


class TrainingConfig(msgspec.Struct, frozen=True, kw_only=True):
    """How to train.

    Attributes:
        loop: `fit` or `gradient_tape`.
        seed: Of the weights, the order of the batches, dropout and mixup.
        epochs: Most epochs.
        batch_size: Rows per step, over all replicas and workers together.
        optimizer: `adam`, `adamw`, `sgd` or `rmsprop`.
        learning_rate: At the start, or after warm-up.
        momentum: For `sgd` and `rmsprop`.
        weight_decay: For `adamw`.
        patience: Epochs without a better validation loss before it stops; 0 = never.
            The best epoch's weights are restored in either case.
        loss: "" takes the one that fits each output: crossentropy of classes, of two or of labels,
            squared error of values. Or a name of Keras's, or `package.module:function` (y_true,
            y_pred) -> per-example loss; a table gives outputs losses of their own, by name.
        loss_weights: Output name to the factor of its loss in the sum; 1 where it is not named.
        class_weight: "" weighs every row alike; `balanced` gives each class the same weight in
            all, and the 1s and 0s of each label; a table gives weights by class name, or of a
            label's 1s against its 0s, 1 where it is not named.
        label_smoothing: Share of probability moved to the other classes (gradient_tape).
        clip_norm: Largest global norm of the gradient; 0 = any (gradient_tape).
        mixup: Alpha of mixup's Beta distribution; 0 = off (gradient_tape).
        checkpoint_every: Epochs between checkpoints; 0 = none.
        tensorboard: Write TensorBoard logs into the run's folder.
        jit_compile: Compile the step with XLA.
        strategy: `none`, `mirrored` (devices of one machine) or `multi_worker` (TF_CONFIG).
    """

    loop: LoopName = "fit"
    seed: Seed = 0
    epochs: Positive
    batch_size: Positive
    optimizer: Literal["adam", "adamw", "sgd", "rmsprop"] = "adam"
    learning_rate: Annotated[float, Meta(gt=0)]
    momentum: Share = 0.0
    weight_decay: NotNegative = 0.0
    schedule: ScheduleConfig = ScheduleConfig()
    patience: Count = 0
    loss: str | dict[str, str] = ""
    loss_weights: dict[str, NotNegative] = {}
    class_weight: str | dict[str, NotNegative] = ""
    label_smoothing: Share = 0.0
    clip_norm: NotNegative = 0.0
    mixup: NotNegative = 0.0
    checkpoint_every: Count = 0
    tensorboard: bool = False
    jit_compile: bool = False
    strategy: StrategyName = "none"

    def __post_init__(self) -> None:
        asked = [self.loss] if isinstance(self.loss, str) else list(self.loss.values())
        for loss in filter(None, asked):
            if loss not in BUILT_IN_LOSSES and not BUILDER.fullmatch(loss):
                raise ValueError(
                    f"loss is {loss!r}; give one of {', '.join(map(repr, BUILT_IN_LOSSES))}, or "
                    "'package.module:function', or leave it out for the one that fits"
                )
        if isinstance(self.class_weight, str) and self.class_weight not in ("", "balanced"):
            raise ValueError(
                f"class_weight is {self.class_weight!r}; give 'balanced', or a table of weights by "
                "class name or label"
            )
        only = [name for name in ("label_smoothing", "clip_norm", "mixup") if getattr(self, name)]
        if only and self.loop != "gradient_tape":
            raise ValueError(f"{', '.join(only)}: only with loop = 'gradient_tape', not 'fit'")


class ExportConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What to write and where.

    Attributes:
        base_path: The model's own folder, which holds its versions, as in TensorFlow Serving's
            `--model_base_path`; "" stands for `models/<model name>`.
        keep: Versions to keep when publishing; 0 = all.
        variants: TFLite variants to convert. `web` is float32 for one row at a time, as LiteRT.js
            runs it in a browser; `int8_float_io` is `int8` that takes and gives floats.
        require: Those of them without which nothing is published; another that cannot be
            converted, or fails its gate, is left out and said so.
        conversion_timeout_s: Time limit of the converter's process.
        golden_num_examples: Rows kept as golden examples, every class included.
        calibration_num_examples: Rows, balanced over the classes, that calibrate int8.
        tolerances: See `contract.parity.Tolerances`.
    """

    base_path: str = ""
    keep: Count = 0
    variants: tuple[VariantName, ...] = ("float32", "float16", "dynamic_range", "int8", "web")
    require: tuple[VariantName, ...] = ("float32",)
    conversion_timeout_s: Annotated[float, Meta(gt=0)] = 300.0
    golden_num_examples: Annotated[int, Meta(ge=64)] = 64
    calibration_num_examples: Annotated[int, Meta(ge=10)] = 200
    tolerances: Tolerances = Tolerances()

    def __post_init__(self) -> None:
        missing = [one for one in self.require if one not in (*self.variants, FLOAT32)]
        if missing:
            raise ValueError(
                f"require asks for {', '.join(missing)}, which variants lacks: "
                f"{', '.join(self.variants) or 'none'}"
            )


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """One runnable experiment."""

    model: ModelConfig
    data: DataConfig
    training: TrainingConfig
    export: ExportConfig = ExportConfig()


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a TOML file and apply overrides.

    Args:
        path: A file, or the name of a configuration that comes with Plumbline: `mlp`.
        overrides: `section.key=value` each, as `--set` takes them; the value is written as in
            TOML, a text may go without quotes.

    Returns:
        The whole configuration, checked.

    Raises:
        ConfigError: There is no such file and no such name, it cannot be read, or a key is
            unknown, of the wrong type or out of range; the message names the key and what it takes.

    Example:
        >>> load_config("mlp", ["training.epochs=3"]).training.epochs
        3
    """
    path = _find_config(Path(path))
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read the configuration {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not TOML: {error}") from error
    return _override(table, overrides, source=str(path))


def list_bundled_configs() -> dict[str, Path]:
    """The configurations that come with Plumbline.

    Returns:
        Name, as `--config` takes it, to file; sorted.
    """
    packed = Path(__file__).with_name("configs")  # of a wheel
    folder = packed if packed.is_dir() else Path(__file__).parents[1] / "configs"
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def _find_config(given: Path) -> Path:
    """The file that is meant: one that exists wins over a name."""
    if given.is_file():
        return given
    bundled = list_bundled_configs()
    if given.name == str(given) and given.name in bundled:
        return bundled[given.name]
    problem = f"cannot read the configuration {given}: "
    if given.exists():
        raise ConfigError(f"{problem}it is no file")
    meant = f"did you mean {given.stem}, by name? " if given.stem in bundled else ""
    folder = next(iter(bundled.values())).parent if bundled else "nowhere"
    raise ConfigError(
        f"{problem}there is no such file; {meant}These come with Plumbline, and are given by name: "
        f"{', '.join(bundled)} (files of {folder}). A model that is trained already takes "
        "--model FILE instead"
    )


def override_config(config: Config, overrides: Sequence[str]) -> Config:
    """Apply overrides to a configuration.

    Args:
        config: Read before.
        overrides: As `load_config` takes them.

    Raises:
        ConfigError: See `load_config`.
    """
    return _override(msgspec.to_builtins(config), overrides, source="the configuration")


def _override(table: Table, overrides: Sequence[str], *, source: str) -> Config:
    for override in overrides:
        _apply_override(table, override)
    return parse_config(table, source=source)


def parse_config(table: Table, *, source: str = "the configuration") -> Config:
    """Check a parsed table against the schema.

    Args:
        table: With the sections of a configuration file.
        source: What to call it in an error.

    Returns:
        The whole configuration, checked.

    Raises:
        ConfigError: See `load_config`.
    """
    valid = dict(_iter_keys(Config))
    given = dict(_iter_entries(table, Config))
    for key in given:
        if key not in valid:
            raise ConfigError(f"{source}: unknown key {key!r}; {_suggest_key(key, valid)}")
    for key, value in given.items():
        if isinstance(value, float) and not math.isfinite(value):  # which TOML has
            raise ConfigError(f"{source}: {key}: expected a finite number, got {value}")
    match table:
        case {"export": {"tolerances": dict(tolerances)} as export}:
            # A file may change one number of a tolerance and keep the others as they are.
            export = {**export, "tolerances": fill_tolerances(tolerances)}
            table = {**table, "export": export}
    try:
        return msgspec.convert(table, Config)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{source}: {_describe(error, given, valid)}") from error


def _apply_override(table: Table, override: str) -> None:
    key, equals, text = override.partition("=")
    valid = dict(_iter_keys(Config))
    key = key.strip()
    if not equals or not key:
        raise ConfigError(f"--set {override}: give section.key=value, as training.epochs=3")
    if _section_of(valid.get(key)):
        raise ConfigError(f"--set {override}: {key!r} is a table; give one key of it, {key}.KEY=")
    if key not in valid:
        raise ConfigError(f"--set {override}: unknown key {key!r}; {_suggest_key(key, valid)}")
    *sections, leaf = key.split(".")
    for section in sections:
        table = table.setdefault(section, {})
        if not isinstance(table, dict):
            raise ConfigError(f"--set {override}: {section!r} is not a table in the file")
    table[leaf] = _parse_value(text.strip(), takes_text=valid[key] is str)


def _parse_value(text: str, *, takes_text: bool) -> object:
    """Read a TOML value; whatever is none, or goes to a text key unquoted, is a text."""
    if takes_text and not text.startswith(('"', "'")):
        return text
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _section_of(kind: object) -> type[msgspec.Struct] | None:
    for candidate in (kind, *get_args(kind)):
        if isinstance(candidate, type) and issubclass(candidate, msgspec.Struct):
            return candidate
    return None


def _iter_keys(section: type[msgspec.Struct], prefix: str = "") -> Iterator[tuple[str, object]]:
    """Yield (dotted key, type) of every key the schema knows."""
    for field in msgspec.structs.fields(section):
        yield prefix + field.name, field.type
        if inner := _section_of(field.type):
            yield from _iter_keys(inner, f"{prefix}{field.name}.")


def _iter_entries(
    table: Table, section: type[msgspec.Struct], prefix: str = ""
) -> Iterator[tuple[str, object]]:
    """Yield (dotted key, value) of a file, not looking into tables the schema does not know."""
    types = {field.name: field.type for field in msgspec.structs.fields(section)}
    for key, value in table.items():
        yield prefix + key, value
        if isinstance(value, dict) and (inner := _section_of(types.get(key))):
            yield from _iter_entries(value, inner, f"{prefix}{key}.")


_REMOVED = {
    "max_accuracy_loss_rows": "how many rows may be lost follows from how many there are "
    "(docs/verification.md): take it out"
}


def _suggest_key(key: str, valid: Mapping[str, object]) -> str:
    section, _, leaf = key.rpartition(".")
    if leaf in _REMOVED:
        return _REMOVED[leaf]
    split = {name: name.rpartition(".") for name in valid}
    same_leaf = [name for name, parts in split.items() if parts[2] == leaf]
    siblings = {parts[2]: name for name, parts in split.items() if parts[0] == section}
    near = [siblings[name] for name in difflib.get_close_matches(leaf, siblings, n=1, cutoff=0.5)]
    close = same_leaf or near or difflib.get_close_matches(key, valid, n=1, cutoff=0.0)
    return f"did you mean {close[0]!r}?"


def _describe(
    error: msgspec.ValidationError, given: Mapping[str, object], valid: Mapping[str, object]
) -> str:
    """Turn msgspec's "Expected `int` - at `$.training.epochs`" round: key first, then value."""
    message, _, path = str(error).rpartition(" - at `$.")
    if not message:
        message, path = str(error), ""
    key = path.rstrip("`")
    name = key.partition("[")[0]  # of a list, where an item of it is wrong
    message = message.replace("Object missing required field", "missing the required key")
    message = re.sub(r"`(.*?)`", r"\1", message)
    if message.startswith("Invalid enum value"):
        choices = [repr(choice) for choice in get_args(valid.get(name))]
        message = f"expected one of {', '.join(choices)}"
    if message.lower().startswith("expected") and ", got " not in message:
        message += f", got {given.get(name)!r}"
    message = message.replace("Expected ", "expected ", 1)
    return f"{key}: {message}" if key else message


def import_function(reference: str, *, key: str) -> Callable[..., object]:
    """Import `package.module:function`, also from the current folder."""
    module_name, _, name = reference.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # importing runs the user's code
        raise ConfigError(
            f"{key} {reference!r} does not import: {type(error).__name__}: {error}"
        ) from error
    function = getattr(module, name, None)
    if not callable(function):
        raise ConfigError(f"{key} {reference!r}: {module_name} has no function {name!r}")
    return function  # type: ignore[no-any-return]
