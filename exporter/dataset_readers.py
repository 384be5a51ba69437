"""Readers of each kind of data: scikit-learn's digits, MNIST, the user's own npz."""

from __future__ import annotations

import dataclasses
import gzip
import importlib.util
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from contract.errors import DatasetError
from exporter.mnist import read_mnist_arrays
from exporter.npz import read_npz_arrays

Array = NDArray[Any]
DIGITS_SIDE = 28


@dataclasses.dataclass(frozen=True)
class RawData:
    """Arrays as read, before the split.

    Attributes:
        name: What the data are called in outputs.
        source: What to call them in an error, usually a path.
        x_train: uint8 (examples, height, width, channels), or other (examples, ...).
        y_train: (examples,).
        x_test: As `x_train`, or None when the data bring no test split.
        y_test: As `y_train`, or None.
        class_names: One per class, or () for the class numbers.
        dummy: The data mean nothing.
    """

    name: str
    source: str
    x_train: Array
    y_train: Array
    x_test: Array | None = None
    y_test: Array | None = None
    class_names: tuple[str, ...] = ()
    dummy: bool = False


def read_digits() -> RawData:
    """Read the 1,797 scanned digits that ship inside scikit-learn, as 28×28×1.

    The file is read without importing scikit-learn, which takes over a second.

    Raises:
        DatasetError: scikit-learn is not installed, or its file is damaged.
    """
    spec = importlib.util.find_spec("sklearn")
    if spec is None or not spec.submodule_search_locations:
        raise DatasetError(
            "the digits ship inside scikit-learn, which is not installed; install "
            "plumbline-tf[tensorflow]"
        )
    path = Path(spec.submodule_search_locations[0]) / "datasets" / "data" / "digits.csv.gz"
    try:
        with gzip.open(path, "rt", encoding="ascii") as lines:
            table = np.loadtxt(lines, delimiter=",", dtype=np.uint8)
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise DatasetError(
            f"cannot read {path}: {error}; reinstall scikit-learn, or give data.kind = 'mnist'"
        ) from error
    # 64 pixels of 0..16, then the class. 0 is paper: light ink on dark already.
    images = table[:, :-1].reshape(-1, 8, 8)
    return RawData("digits", str(path), _enlarge(images), table[:, -1].astype(np.int64))


def _enlarge(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Resize (examples, 8, 8) of 0..16 to (examples, 28, 28, 1) of 0..255, bilinearly.

    One matrix from either side does all images at once.
    """
    weights = _interpolation_matrix(images.shape[1], DIGITS_SIDE)
    enlarged = weights @ (images.astype(np.float64) * (255 / 16)) @ weights.T
    return np.clip(np.rint(enlarged), 0, 255).astype(np.uint8)[..., np.newaxis]


def _interpolation_matrix(old: int, new: int) -> NDArray[np.float64]:
    """Return (new, old) weights of linear interpolation between pixel centres."""
    centres = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
    below = np.minimum(centres.astype(int), old - 2)
    matrix = np.zeros((new, old))
    matrix[np.arange(new), below] = 1 - (centres - below)
    matrix[np.arange(new), below + 1] = centres - below
    return matrix


def read_npz(path: str) -> RawData:
    """Read the user's own `x_train, y_train[, x_test, y_test][, class_names]`.

    Raises:
        DatasetError: The file cannot be read, is no npz, or lacks an array.
    """
    if not path:
        raise DatasetError("data.kind is 'npz', so data.path must name the file")
    arrays = read_npz_arrays(Path(path))
    return RawData(Path(path).stem, path, **arrays_to_splits(arrays, path))


def arrays_to_splits(arrays: dict[str, Array], source: str) -> dict[str, Any]:
    """Sort the arrays of an npz file into the fields of `RawData`.

    Raises:
        DatasetError: `x_train` or `y_train` is missing, or one of the test arrays alone.
    """
    for name in ("x_train", "y_train"):
        if name not in arrays:
            raise DatasetError(
                f"{source} has no array {name!r}, only {sorted(arrays)}; give x_train, y_train "
                "and, if you have them, x_test, y_test"
            )
    if ("x_test" in arrays) != ("y_test" in arrays):
        raise DatasetError(f"{source} has one of x_test and y_test; give both or neither")
    names = ("x_train", "y_train", "x_test", "y_test")
    splits: dict[str, Any] = {name: arrays[name] for name in names if name in arrays}
    if "class_names" in arrays:
        splits["class_names"] = tuple(str(name) for name in arrays["class_names"].ravel())
    return splits


def read_mnist(path: str, *, download: bool) -> RawData:
    """Read MNIST from a file or folder the user gives, else from Keras's cache.

    Raises:
        DatasetError: It is nowhere and `download` is off, or it cannot be read.
    """
    arrays, source = read_mnist_arrays(path, download=download)
    return RawData("mnist", source, **arrays_to_splits(arrays, source))
