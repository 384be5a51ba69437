"""What data ask of a model: which task a target poses, its values, and the names of its classes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from contract.errors import DatasetError
from contract.heads import Head, Task
from contract.signature import Array

_MAX_CLASSES = 100_000

Name = Callable[[str], str]
"""Split to what an error calls the target there: `mine.npz: y_train`."""


def clean_target(
    parts: Mapping[str, Array],
    name: Name,
    *,
    source: str,
    task: Task | None = None,
    class_names: Iterable[object] = (),
) -> tuple[dict[str, Array], Head]:
    """Checks one target, and tells its task.

    Args:
        parts: Split to what was read, axis 0 is the row; `train` is among them and decides.
        name: What to call the target of a split in an error.
        source: What to call the data.
        task: What the user says it is; None tells it from the values.
        class_names: In order; none for the class numbers, or the sorted texts of the target.

    Returns:
        Split to the array as `Examples` holds it, and the task with its class names.

    Raises:
        DatasetError: The values fit no task, or not the one that was asked for.
    """
    names = clean_class_names(class_names, source)
    for split, array in parts.items():
        if array.ndim == 0 or array.size == 0:
            raise DatasetError(f"{name(split)} is empty")
        if np.iscomplexobj(array) or array.dtype.kind not in "biufUSO":
            raise DatasetError(f"{name(split)} is {array.dtype}; give numbers, or texts as classes")
    if parts["train"].dtype.kind in "USO":
        parts, names = _number_texts(parts, name, source, names)
        task = task or "multiclass"
    task = task or _tell_task(parts["train"], name("train"))
    clean: dict[Task, Callable[[Mapping[str, Array], Name], tuple[dict[str, Array], int]]] = {
        "multiclass": functools.partial(_clean_classes, source=source),
        "binary": _clean_binary,
        "multilabel": _clean_labels,
        "regression": _clean_values,
    }
    if task not in clean:
        raise DatasetError(f"{source}: a target cannot be of the task {task!r}")
    cleaned, width = clean[task](parts, name)
    if names and len(names) != width:
        raise DatasetError(f"{source}: {len(names)} class_names for {width} classes")
    if not names and task != "regression":
        names = tuple(map(str, range(width)))
    return cleaned, Head(task=task, class_names=names)


def clean_class_names(names: Iterable[object], source: str) -> tuple[str, ...]:
    """Names of classes as a version keeps them, one a line: decoded, stripped, all different.

    Args:
        names: Texts, or bytes of UTF-8; as `readlines` gives them, line ends included.
        source: What to call the data in an error.

    Raises:
        DatasetError: A name is empty, has several lines, or occurs twice.
    """
    cleaned: dict[str, object] = {}
    for number, given in enumerate(names):
        try:
            decoded = given.decode() if isinstance(given, bytes) else str(given)
        except UnicodeDecodeError as error:
            raise DatasetError(
                f"{source}: class name {number}, {given!r}, is not UTF-8; encode it so"
            ) from error
        text = decoded.strip()
        if not text:
            raise DatasetError(
                f"{source}: class name {number} is empty ({given!r}); give every class a name"
            )
        if len(text.splitlines()) > 1:
            raise DatasetError(
                f"{source}: class name {number}, {given!r}, has several lines; a version keeps "
                "one name a line"
            )
        if text in cleaned:
            raise DatasetError(
                f"{source}: the class names {cleaned[text]!r} and {given!r} are the same once "
                f"stripped ({text!r}, classes {list(cleaned).index(text)} and {number}); give "
                "every class a name of its own"
            )
        cleaned[text] = given
    return tuple(cleaned)


def _tell_task(values: Array, what: str) -> Task:
    is_flag = values.dtype == bool or bool(np.isin(values, (0, 1)).all())
    if values.ndim == 1:
        if values.dtype == bool:
            return "binary"
        if values.dtype.kind in "iu":
            return "multiclass"
        if _is_whole(values):
            raise DatasetError(
                f"{what} is {values.dtype} but holds whole numbers only; labels must be integers "
                "0..classes-1 (`y.astype('int64')`), and for values to be learnt say "
                "data.task = 'regression'"
            )
        return "regression"
    if values.ndim == 2 and values.shape[1] > 1 and is_flag:
        is_one_hot = bool((values.sum(axis=1) == 1).all())
        return "multiclass" if is_one_hot else "multilabel"
    if values.dtype.kind == "f":
        return "regression"
    if values.ndim == 2:
        raise DatasetError(
            f"{what} has shape {values.shape}; give one integer per example, or say what it is: "
            "data.task = 'multiclass' (a class for each place), 'multilabel' or 'regression'"
        )
    return "multiclass"


def _number_texts(
    parts: Mapping[str, Array], name: Name, source: str, names: tuple[str, ...]
) -> tuple[dict[str, Array], tuple[str, ...]]:
    """Classes given as texts become numbers: by `names`, else in sorted order."""
    texts = {split: _read_texts(array, name(split)) for split, array in parts.items()}
    if not names:
        names = clean_class_names(sorted(set(texts["train"].ravel().tolist())), source)
    numbers = {text: number for number, text in enumerate(names)}
    numbered: dict[str, Array] = {}
    for split, array in texts.items():
        unknown = next((text for text in array.ravel().tolist() if text not in numbers), None)
        if unknown is not None:
            raise DatasetError(
                f"{name(split)} holds class {unknown!r}, which is none of {', '.join(names[:8])}"
                f"{' …' if len(names) > 8 else ''}"
            )
        flat = [numbers[text] for text in array.ravel().tolist()]
        numbered[split] = np.asarray(flat, np.int64).reshape(array.shape)
    return numbered, names


def _read_texts(array: Array, what: str) -> Array:
    texts = np.empty(array.shape, object)
    for place, value in np.ndenumerate(array):
        if not isinstance(value, str | bytes):
            raise DatasetError(f"{what} holds {value!r} among texts; give texts or numbers")
        try:
            text = value.decode() if isinstance(value, bytes) else str(value)
        except UnicodeDecodeError as error:
            raise DatasetError(f"{what} holds {value!r}, which is not UTF-8") from error
        if not text.strip():
            raise DatasetError(f"{what} holds an empty text in row {place[0]}; name every class")
        texts[place] = text.strip()
    return texts


def _clean_classes(
    parts: Mapping[str, Array], name: Name, *, source: str
) -> tuple[dict[str, Array], int]:
    """int64 (rows, ...), 0..classes-1, each class present; one-hot rows become numbers."""
    train = parts["train"]
    if _is_one_hot(train):
        return _number_one_hots(parts, name), train.shape[1]
    cleaned: dict[str, Array] = {}
    for split, array in parts.items():
        if array.dtype.kind == "f" and not _is_whole(array):
            raise DatasetError(f"{name(split)} is {array.dtype}; labels must be integers")
        cleaned[split] = array.astype(np.int64)
        if cleaned[split].min() < 0:
            raise DatasetError(
                f"{name(split)} holds {int(cleaned[split].min())}; labels must be 0..classes-1"
            )
    found = np.unique(cleaned["train"])
    highest = int(found[-1])
    if len(found) < 2:
        raise DatasetError(f"{name('train')} holds one class only ({highest}); give two")
    if highest >= _MAX_CLASSES or len(found) != highest + 1:
        missing = int(np.setdiff1d(np.arange(min(highest, _MAX_CLASSES)), found)[0])
        raise DatasetError(
            f"{source}: labels must be 0..classes-1 without gaps; the highest is {highest} "
            f"but {missing} never appears in {name('train').removeprefix(f'{source}: ')}; number "
            "the classes anew, or for values to be learnt say data.task = 'regression'"
        )
    for split, array in cleaned.items():
        if int(array.max()) > highest:
            raise DatasetError(f"{name(split)} holds class {int(array.max())}, which y_train lacks")
    return cleaned, highest + 1


def _is_one_hot(values: Array) -> bool:
    if values.ndim != 2 or values.shape[1] < 2:
        return False
    return bool(np.isin(values, (0, 1)).all() and (values.sum(axis=1) == 1).all())


def _number_one_hots(parts: Mapping[str, Array], name: Name) -> dict[str, Array]:
    width = parts["train"].shape[1]
    for split, array in parts.items():
        if not _is_one_hot(array) or array.shape[1] != width:
            raise DatasetError(
                f"{name(split)} is not one-hot as y_train is: give rows of {width} with one 1"
            )
    return {split: array.argmax(axis=1).astype(np.int64) for split, array in parts.items()}


def _clean_binary(parts: Mapping[str, Array], name: Name) -> tuple[dict[str, Array], int]:
    """int64 (rows,) of 0 and 1, both present."""
    cleaned: dict[str, Array] = {}
    for split, array in parts.items():
        if array.ndim == 2 and array.shape[1] == 1:
            array = array[:, 0]
        if array.ndim != 1:
            raise DatasetError(
                f"{name(split)} has shape {array.shape}; a binary target is one 0 or 1 per example"
            )
        _check_flags(array, name(split), "a binary target is 0 or 1")
        cleaned[split] = array.astype(np.int64)
    found = np.unique(cleaned["train"])
    if len(found) < 2:
        raise DatasetError(f"{name('train')} holds one class only ({found[0]}); give two")
    return cleaned, 2


def _clean_labels(parts: Mapping[str, Array], name: Name) -> tuple[dict[str, Array], int]:
    """float32 (rows, labels) of 0 and 1."""
    width = parts["train"].shape[-1]
    for split, array in parts.items():
        if array.ndim != 2 or array.shape[1] != width:
            raise DatasetError(
                f"{name(split)} has shape {array.shape}; a multilabel target is (rows, labels), "
                "0 or 1 for each label"
            )
        _check_flags(array, name(split), "a multilabel target is 0 or 1 for each label")
    return {split: array.astype(np.float32) for split, array in parts.items()}, width


def _check_flags(array: Array, what: str, rule: str) -> None:
    wrong = ~np.isin(array, (0, 1))
    if wrong.any():
        raise DatasetError(f"{what} holds {array[wrong][0]}; {rule}")


def _clean_values(parts: Mapping[str, Array], name: Name) -> tuple[dict[str, Array], int]:
    """float32 (rows, values), finite; of more axes as they are."""
    cleaned: dict[str, Array] = {}
    for split, array in parts.items():
        with np.errstate(over="ignore"):
            numbers = array.astype(np.float32)
        wrong = ~np.isfinite(numbers)
        if wrong.any():
            row = int(np.argwhere(wrong)[0][0])
            raise DatasetError(
                f"{name(split)} holds {array[wrong][0]} in row {row}; values must be finite as "
                "float32: remove such rows"
            )
        cleaned[split] = numbers[:, np.newaxis] if numbers.ndim == 1 else numbers
        if cleaned[split].shape[1:] != cleaned["train"].shape[1:]:
            raise DatasetError(
                f"{name(split)} holds {cleaned[split].shape[1:]} a row and y_train "
                f"{cleaned['train'].shape[1:]}; both must be alike"
            )
    return cleaned, cleaned["train"].shape[-1]


def _is_whole(values: Array) -> bool:
    numbers: Any = values
    return bool(np.isfinite(numbers).all() and (numbers == np.floor(numbers)).all())
