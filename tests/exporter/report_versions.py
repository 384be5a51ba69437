"""Versions of every task as an export leaves them, made without a model: what reports are of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
import numpy as np

from contract import layout
from contract.golden import Golden, GoldenExamples, write_golden
from contract.heads import Head
from contract.manifest import (
    DataEntry,
    Manifest,
    TrainingEntry,
    hash_files,
    to_entries,
    write_manifest,
)
from contract.signature import UINT8, Array, Signature, TensorSpec, dtype_name
from exporter.report.evaluation import evaluate, write_evaluation
from exporter.verification.measurement import (
    IN_PROCESS,
    SAVED_MODEL,
    HeldOut,
    Measurement,
    WorstRow,
    measure_metrics,
)

ROWS, GOLDEN = 200, 32


def make_version(
    directory: Path,
    *,
    heads: Mapping[str, Head],
    inputs: Mapping[str, Array],
    answers: Mapping[str, Array],
    targets: Mapping[str, Array] | None = None,
    pixels: Array | None = None,
    model_name: str = "made",
    data: DataEntry | None = None,
    training: TrainingEntry | None = None,
    parity: Sequence[Measurement] = (),
    keeps_evaluation: bool = True,
    has_saved_model: bool = True,
    created: str = "2026-01-01T00:00:00Z",
) -> Path:
    """A version directory, with placeholders for the files that nobody reads here."""
    signatures = {"serving_default": _sign("serving_default", inputs, answers)}
    whole = {"serving_default": GoldenExamples(inputs, answers, (len(_first(inputs)),))}
    if pixels is not None:
        signatures[UINT8] = _sign(UINT8, {"images": pixels}, answers)
        whole[UINT8] = GoldenExamples({"images": pixels}, answers, (len(pixels),))
    golden = Golden({name: _take(one) for name, one in whole.items()})
    held_out = HeldOut(Golden(whole), len(_first(inputs)), "serving_default", heads, targets or {})
    metrics = measure_metrics(answers, held_out)
    (directory / layout.EXTRA).mkdir(parents=True)
    (directory / (layout.SAVED_MODEL if has_saved_model else layout.TFLITE)).write_bytes(b"graph")
    write_golden(directory / layout.GOLDEN, golden)
    columns = data.columns if data else ()
    if keeps_evaluation:
        truth = {name: array[:GOLDEN] for name, array in (targets or {}).items()}
        evaluation = evaluate(held_out, columns=columns, golden_targets=truth, num_golden=GOLDEN)
        write_evaluation(directory, evaluation)
    in_process = Measurement(
        name=IN_PROCESS,
        accuracy=metrics.get("accuracy"),
        metrics=metrics,
        us_per_row=210.0,
    )
    measured = [in_process, *(parity or make_copies(in_process))]
    manifest = Manifest(
        model_name=model_name,
        version=int(directory.name) if directory.name.isdigit() else 0,
        created=created,
        signatures=to_entries(signatures),
        heads=dict(heads),
        metrics={f"test_{name}": value for name, value in metrics.items()},
        parity={one.name: msgspec.to_builtins(one) for one in measured},
        config={"export": {}} if training is None else {"export": {}, "training": {"seed": 1}},
        data=data or DataEntry(name="made up", fingerprint="ab" * 32, num_examples={"test": ROWS}),
        training=training,
        seed=1,
        tool_versions={"tensorflow": "2.21.0"},
        files=hash_files(directory),
    )
    write_manifest(directory, manifest)
    return directory


def make_copies(in_process: Measurement) -> list[Measurement]:
    """A SavedModel that is equal, a float32 copy that passes, an int8 copy that was left out."""

    def copy(name: str, **changed: object) -> Measurement:
        return msgspec.structs.replace(in_process, name=name, **changed)

    return [
        copy(SAVED_MODEL, num_bytes=300_000, top1_agreement=1.0),
        copy(
            layout.FLOAT32,
            num_bytes=200_000,
            us_per_row=4.2,
            bit_equal=False,
            max_abs_difference=6e-7,
            worst_row=WorstRow(
                signature_name="serving_default", output="y", row=3, difference=6e-7
            ),
        ),
        copy(
            layout.INT8,
            num_bytes=60_000,
            us_per_row=3.0,
            bit_equal=False,
            max_abs_difference=0.4,
            problems=("on held-out rows: y: fraud 3 of 5 lost", "because of <b>reasons</b>"),
        ),
    ]


def _sign(name: str, inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> Signature:
    return Signature(name, _specify(inputs), _specify(outputs))


def _specify(arrays: Mapping[str, Array]) -> dict[str, TensorSpec]:
    return {
        name: TensorSpec(name, dtype_name(array.dtype), (None, *array.shape[1:]))
        for name, array in arrays.items()
    }


def _first(arrays: Mapping[str, Array]) -> Array:
    return next(iter(arrays.values()))


def _take(examples: GoldenExamples) -> GoldenExamples:
    return GoldenExamples(
        {name: array[:GOLDEN] for name, array in examples.inputs.items()},
        {name: array[:GOLDEN] for name, array in examples.outputs.items()},
        (GOLDEN,),
    )


def make_scores(labels: Array, count: int, *, seed: int = 0) -> Array:
    """float32 (rows, count): softmax scores that are mostly right."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(*labels.shape, count)) * 1.2
    np.put_along_axis(
        logits, labels[..., None], np.take_along_axis(logits, labels[..., None], -1) + 2.5, -1
    )
    powers = np.exp(logits)
    return (powers / powers.sum(axis=-1, keepdims=True)).astype(np.float32)


def make_training(epochs: int = 12, **history: tuple[float | None, ...]) -> TrainingEntry:
    """Curves that fall and rise."""
    at = np.arange(1, epochs + 1)
    found: dict[str, tuple[float | None, ...]] = {
        "loss": tuple((2 / at).tolist()),
        "val_loss": tuple((2.2 / at + 0.01 * at).tolist()),
        "accuracy": tuple((1 - 0.6 / at).tolist()),
        "val_accuracy": tuple((1 - 0.7 / at).tolist()),
    }
    return TrainingEntry(
        epochs_run=epochs,
        best_epoch=max(1, epochs - 3),
        epochs=tuple(at.tolist()),
        history=found | history,
        seconds=3.5,
    )


def make_digits(directory: Path, *, seed: int = 0, names: tuple[str, ...] = ()) -> Path:
    """Pictures of ten classes."""
    rng = np.random.default_rng(1)
    labels = np.arange(ROWS) % 10
    pixels = rng.integers(0, 256, (ROWS, 28, 28), np.uint8)
    return make_version(
        directory,
        heads={"y": Head(task="multiclass", class_names=names or tuple("0123456789"))},
        inputs={"images": (pixels / 255).astype(np.float32).reshape(ROWS, 784)},
        answers={"y": make_scores(labels, 10, seed=seed)},
        targets={"y": labels},
        pixels=pixels,
        training=make_training(),
        data=DataEntry(
            name="digits",
            fingerprint="cd" * 32,
            class_names=names or tuple("0123456789"),
            num_examples={"test": ROWS, "train": 1000, "validation": 100},
        ),
    )


def make_binary(directory: Path, *, names: tuple[str, ...] = ("no", "yes")) -> Path:
    """Rows of a table with named columns, yes or no, trained elsewhere."""
    rng = np.random.default_rng(2)
    rows = rng.normal(size=(ROWS, 4)).astype(np.float32)
    labels = (rows.sum(axis=1) + rng.normal(size=ROWS) > 0).astype(np.int64)
    scores = 1 / (1 + np.exp(-2 * rows.sum(axis=1, keepdims=True)))
    return make_version(
        directory,
        heads={"y": Head(task="binary", class_names=names)},
        inputs={"features": rows},
        answers={"y": scores.astype(np.float32)},
        targets={"y": labels},
        data=DataEntry(
            name="people",
            fingerprint="ef" * 32,
            class_names=names,
            num_examples={"all": ROWS},
            columns=("age", "income", "color=red", "color=blue"),
        ),
    )


def make_regression(directory: Path, *, columns: int = 1) -> Path:
    """Values."""
    rng = np.random.default_rng(3)
    rows = rng.normal(size=(ROWS, 6)).astype(np.float32)
    truth = (rows @ rng.normal(size=(6, columns)) * 40 + 180).astype(np.float32)
    got = (truth * 0.95 + rng.normal(size=truth.shape) * 12).astype(np.float32)
    return make_version(
        directory,
        heads={"y": Head(task="regression")},
        inputs={"features": rows},
        answers={"y": got},
        targets={"y": truth},
        training=make_training(3, val_mae=(3.0, 2.0, 1.5), mae=(3.5, 2.5, 1.0)),
    )


def make_labels(directory: Path) -> Path:
    """Texts with any of six labels."""
    rng = np.random.default_rng(4)
    truth = (rng.random((ROWS, 6)) < 0.3).astype(np.float32)
    scores = np.clip(truth * 0.7 + rng.random((ROWS, 6)) * 0.4, 0, 1).astype(np.float32)
    texts = np.empty((ROWS, 1), object)
    texts[:, 0] = [f"film {n} was <b>good</b> & long, ünïcode ✓".encode() for n in range(ROWS)]
    return make_version(
        directory,
        heads={"y": Head(task="multilabel", class_names=("a", "b", "c", "d", "e", "f"))},
        inputs={"text": texts},
        answers={"y": scores},
        targets={"y": truth},
    )


def make_masks(directory: Path) -> Path:
    """A class for each place of a picture."""
    rng = np.random.default_rng(5)
    labels = rng.integers(0, 3, (40, 8, 8))
    return make_version(
        directory,
        heads={"y": Head(task="multiclass", class_names=("sky", "road", "car"))},
        inputs={"images": rng.random((40, 8, 8, 3)).astype(np.float32)},
        answers={"y": make_scores(labels, 3)},
        targets={"y": labels},
    )


def make_embedding(directory: Path) -> Path:
    """Vectors, beside nothing."""
    rows = np.random.default_rng(6).normal(size=(ROWS, 8)).astype(np.float32)
    return make_version(
        directory,
        heads={"y": Head(task="embedding")},
        inputs={"features": rows},
        answers={"y": rows[:, :4]},
    )


def make_several_heads(directory: Path) -> Path:
    """Two inputs; six outputs of three tasks."""
    rng = np.random.default_rng(7)
    rows = rng.normal(size=(ROWS, 3)).astype(np.float32)
    labels = np.arange(ROWS) % 4
    tags = (rng.random((ROWS, 2)) < 0.5).astype(np.float32)
    heads: dict[str, Head] = {
        "kind": Head(task="multiclass"),
        "price": Head(task="regression"),
        "tags": Head(task="multilabel"),
        "vector": Head(task="embedding"),
        "other": Head(task="regression"),
        "last": Head(task="regression"),
    }
    answers = {
        "kind": make_scores(labels, 4),
        "price": rows[:, :1],
        "tags": np.clip(tags * 0.8 + 0.1, 0, 1).astype(np.float32),
        "vector": rows,
        "other": rows[:, 1:2],
        "last": rows[:, 2:],
    }
    targets = {"kind": labels, "price": rows[:, :1] + 0.1, "tags": tags, "last": rows[:, 2:]}
    return make_version(
        directory,
        heads=heads,
        inputs={"left": rows, "right": rows[:, ::-1].copy()},
        answers=answers,
        targets=targets,
    )


def make_unlabelled(directory: Path) -> Path:
    """Classes, without anybody knowing which is right; a `.tflite` alone."""
    rng = np.random.default_rng(8)
    labels = rng.integers(0, 3, ROWS)
    return make_version(
        directory,
        heads={"y": Head(task="multiclass", class_names=("x", "y", "z"))},
        inputs={"features": rng.normal(size=(ROWS, 5)).astype(np.float32)},
        answers={"y": make_scores(labels, 3)},
        has_saved_model=False,
    )


def make_many_classes(directory: Path, count: int = 1000) -> Path:
    """A thousand classes."""
    labels = np.arange(2000) % count
    rows = np.random.default_rng(9).normal(size=(2000, 4)).astype(np.float32)
    scores = make_scores(labels, count)
    names = tuple(f"class number {n} of many" for n in range(count))
    return make_version(
        directory,
        heads={"y": Head(task="multiclass", class_names=names)},
        inputs={"features": rows},
        answers={"y": scores},
        targets={"y": labels},
    )


MAKERS = {
    "digits": make_digits,
    "binary": make_binary,
    "regression": make_regression,
    "labels": make_labels,
    "masks": make_masks,
    "embedding": make_embedding,
    "several heads": make_several_heads,
    "unlabelled": make_unlabelled,
    "a thousand classes": make_many_classes,
}
