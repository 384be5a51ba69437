"""Readers of each kind of data: scikit-learn's digits, MNIST, the user's own npz."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import importlib.util
import math
import os
import struct
import urllib.error
import urllib.request
import zipfile
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from contract.errors import DatasetError
from contract.signature import Array

_DIGITS_SIDE = 28

URL = "https://storage.googleapis.com/tensorflow/tf-keras-datasets/mnist.npz"
SHA256 = "731c5ac602752760c8e48fbffcf8c3b850d9dc2a2aedcf2cc48468fc17b673d1"
"""Of that file, as Keras checks it."""
_DOWNLOAD_TIMEOUT_S = 60

IDX_FILES = {
    "x_train": ("train-images-idx3-ubyte", "train-images.idx3-ubyte"),
    "y_train": ("train-labels-idx1-ubyte", "train-labels.idx1-ubyte"),
    "x_test": ("t10k-images-idx3-ubyte", "t10k-images.idx3-ubyte"),
    "y_test": ("t10k-labels-idx1-ubyte", "t10k-labels.idx1-ubyte"),
}

_IDX_DTYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_GZIP_MAGIC = b"\x1f\x8b"


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
    weights = _interpolation_matrix(images.shape[1], _DIGITS_SIDE)
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


def read_mnist(path: str, *, download: bool) -> RawData:
    """Read MNIST from a file or folder the user gives, else from Keras's cache."""
    if path:
        return _make_raw_data("mnist", path, _read_path(Path(path)))
    home = os.environ.get("KERAS_HOME") or Path.home() / ".keras"
    cached = Path(home) / "datasets" / "mnist.npz"
    if not cached.is_file():
        if not download:
            raise DatasetError(
                f"MNIST is not at {cached}; give data.path (mnist.npz, or the folder of the four "
                "IDX files), or data.download = true to fetch it"
            )
        _download(cached)
    return _make_raw_data("mnist", str(cached), _read_npz_arrays(cached))


def _read_path(path: Path) -> dict[str, Array]:
    if path.is_dir():
        if (path / "mnist.npz").is_file():
            return _read_npz_arrays(path / "mnist.npz")
        return _read_idx_files(path)
    try:
        with path.open("rb") as file:
            magic = file.read(2)
    except OSError as error:
        raise DatasetError(f"cannot read {path}: {error.strerror}") from error
    if magic in (_GZIP_MAGIC, b"\0\0"):
        return _read_idx_files(path.parent)
    return _read_npz_arrays(path)


def _read_idx_files(folder: Path) -> dict[str, Array]:
    arrays = {}
    for name, stems in IDX_FILES.items():
        candidates = [folder / (stem + end) for stem in stems for end in ("", ".gz")]
        found = next((path for path in candidates if path.is_file()), None)
        if found is None:
            raise DatasetError(
                f"{folder} has neither {stems[0]} nor {stems[0]}.gz; give the folder of MNIST's "
                "four IDX files, or an npz"
            )
        arrays[name] = _read_idx(found)
    return arrays


def _download(target: Path) -> None:
    """Fetch into the cache; a file that is not whole never gets the name."""
    partial = target.with_suffix(f".{os.getpid()}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with urllib.request.urlopen(URL, timeout=_DOWNLOAD_TIMEOUT_S) as response:
            data = response.read()
        if hashlib.sha256(data).hexdigest() != SHA256:
            raise DatasetError(f"{URL} gave {len(data)} bytes that are not mnist.npz; try again")
        partial.write_bytes(data)
        partial.replace(target)
    except (urllib.error.URLError, OSError) as error:
        partial.unlink(missing_ok=True)
        raise DatasetError(
            f"cannot download {URL} to {target}: {error}; give data.path, or data.kind = 'digits'"
        ) from error


def _read_idx(path: Path) -> Array:
    """Read one of MNIST's original files, gzipped or not, into an array of native byte order.

    The IDX format is big-endian: two zero bytes, a type code, the rank, then one uint32 per axis,
    then the values (http://yann.lecun.com/exdb/mnist/).
    """
    try:
        data = path.read_bytes()
        if data[:2] == _GZIP_MAGIC:
            data = gzip.decompress(data)
    except EOFError as error:
        raise DatasetError(f"{path} is a truncated gzip file; copy it again") from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise DatasetError(f"{path} is a damaged gzip file ({error}); copy it again") from error
    except OSError as error:
        raise DatasetError(f"cannot read {path}: {error.strerror or error}") from error
    return _parse_idx(data, path)


def _parse_idx(data: bytes, path: Path) -> Array:
    if len(data) < 4 or data[:2] != b"\0\0" or data[2] not in _IDX_DTYPES:
        raise DatasetError(
            f"{path} is not an IDX file (it begins with {data[:4].hex() or 'nothing'}); give "
            "MNIST's four original files, gzipped or not, or an npz"
        )
    rank = data[3]
    start = 4 + 4 * rank
    if len(data) < start:
        raise DatasetError(f"{path} is a truncated IDX file; copy it again")
    shape = struct.unpack(f">{rank}I", data[4:start])
    dtype = np.dtype(_IDX_DTYPES[data[2]])
    wanted = math.prod(shape) * dtype.itemsize
    if len(data) - start != wanted:
        raise DatasetError(
            f"{path} says shape {shape}, {wanted} bytes, but holds {len(data) - start}; it is "
            "truncated or damaged: copy it again"
        )
    array = np.frombuffer(data, dtype, offset=start).reshape(shape)
    return array.astype(dtype.newbyteorder("="))


def read_npz(path: str) -> RawData:
    """Read the user's own `x_train, y_train[, x_test, y_test][, class_names]`."""
    if not path:
        raise DatasetError("data.kind is 'npz', so data.path must name the file")
    return _make_raw_data(Path(path).stem, path, _read_npz_arrays(Path(path)))


def _make_raw_data(name: str, source: str, arrays: dict[str, Array]) -> RawData:
    """Sort arrays by their names, those of an npz file, into the splits."""
    for wanted in ("x_train", "y_train"):
        if wanted not in arrays:
            raise DatasetError(
                f"{source} has no array {wanted!r}, only {sorted(arrays)}; give x_train, y_train "
                "and, if you have them, x_test, y_test"
            )
    if ("x_test" in arrays) != ("y_test" in arrays):
        raise DatasetError(f"{source} has one of x_test and y_test; give both or neither")
    class_names = arrays.get("class_names")
    return RawData(
        name=name,
        source=source,
        x_train=arrays["x_train"],
        y_train=arrays["y_train"],
        x_test=arrays.get("x_test"),
        y_test=arrays.get("y_test"),
        class_names=() if class_names is None else tuple(str(one) for one in class_names.ravel()),
    )


def _read_npz_arrays(path: Path) -> dict[str, Array]:
    """Read every array of an npz file, never unpickling."""
    try:
        with path.open("rb") as file:
            loaded = np.load(file, allow_pickle=False)
            if not isinstance(loaded, np.lib.npyio.NpzFile):
                raise DatasetError(
                    f"{path} is one array (.npy); give an npz with x_train and y_train"
                )
            return {name: loaded[name] for name in loaded.files}
    except OSError as error:
        raise DatasetError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error, KeyError) as error:
        reason = f"{error}; write it with numpy.savez"
        if "allow_pickle" in str(error):
            reason = (
                "it holds Python objects or is no npz at all; save plain arrays with "
                "numpy.savez (no dtype=object)"
            )
        raise DatasetError(f"{path} is not a readable npz file: {reason}") from error
