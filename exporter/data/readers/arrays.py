"""Data sets that are arrays: scikit-learn's digits, MNIST and its kind, the user's own npz."""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import math
import os
import re
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from contract.console.extras import advise_extra
from contract.errors import DatasetError
from contract.signature import Array
from exporter.data.examples import Examples, RawData

_DIGITS_SIDE = 28

URL = "https://storage.googleapis.com/tensorflow/tf-keras-datasets/mnist.npz"
SHA256 = "731c5ac602752760c8e48fbffcf8c3b850d9dc2a2aedcf2cc48468fc17b673d1"
"""Of that file, as Keras checks it."""
_DOWNLOAD_TIMEOUT_S = 60

IDX_FILES = {
    "x_train": "train-images-idx3-ubyte",
    "y_train": "train-labels-idx1-ubyte",
    "x_test": "t10k-images-idx3-ubyte",
    "y_test": "t10k-labels-idx1-ubyte",
}
"""MNIST's own names; `_IDX_NAME` knows the others that they go by."""

_IDX_NAME = re.compile(
    r"(?P<prefix>.*?)(?P<split>train|t10k|test)-(?P<what>images|labels)[-.]idx[13]-ubyte(\.gz)?"
)
"""EMNIST puts `emnist-balanced-` before, and says `test`; others write `.idx3` for `-idx3`."""

_ARRAY_NAME = re.compile(r"(?P<letter>[xy])_(?P<split>train|validation|test)([/.](?P<name>.+))?")
_CLASS_NAMES = re.compile(r"class_names([/.](?P<name>.+))?")

_IDX_DTYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_GZIP_MAGIC = b"\x1f\x8b"


def read_digits() -> RawData:
    """Read the 1,797 scanned digits that ship inside scikit-learn, as 28×28×1.

    The file is read without importing scikit-learn, which takes over a second.
    """
    spec = importlib.util.find_spec("sklearn")
    if spec is None or not spec.submodule_search_locations:
        raise DatasetError(
            "the digits ship inside scikit-learn, which is not installed: "
            + advise_extra("tensorflow")
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
    labels = table[:, -1].astype(np.int64)
    return RawData("digits", str(path), Examples({"": _enlarge(images)}, {"": labels}))


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
        match = _IDX_NAME.fullmatch(path.name)
        is_alone = path.parent.name == path.name  # Kaggle's archive: a folder for each file
        folder = path.parent.parent if is_alone else path.parent
        return _read_idx_files(folder, match["prefix"] if match else None)
    return _read_npz_arrays(path)


def _read_idx_files(folder: Path, prefix: str | None = None) -> dict[str, Array]:
    """The four files in a folder, or each in a folder of its own name, as Kaggle's archive has it.

    `prefix` chooses among several sets of EMNIST in one folder.
    """
    found: dict[str, dict[str, Path]] = {}
    for path in sorted([*folder.glob("*ubyte*"), *folder.glob("*ubyte*/*ubyte*")]):
        match = _IDX_NAME.fullmatch(path.name)
        if match is None or not path.is_file():
            continue
        letter = "x" if match["what"] == "images" else "y"
        split = "train" if match["split"] == "train" else "test"
        found.setdefault(match["prefix"], {}).setdefault(f"{letter}_{split}", path)
    if prefix is None and len(found) > 1:
        sets = ", ".join(repr(one) for one in found)
        raise DatasetError(
            f"{folder} holds several sets of IDX files, beginning with {sets}; give one of the "
            "files of the set to take, not the folder"
        )
    if prefix is None:
        prefix = next(iter(found), "")
    files = found.get(prefix, {})
    for name, stem in IDX_FILES.items():
        if name not in files:
            wanted = prefix + (stem.replace("t10k", "test") if prefix else stem)
            raise DatasetError(
                f"{folder} has neither {wanted} nor {wanted}.gz; give the folder of MNIST's "
                "four IDX files, or an npz"
            )
    arrays = {name: _read_idx(files[name]) for name in IDX_FILES}
    return _mend_emnist(arrays, folder, prefix) if prefix.startswith("emnist") else arrays


def _mend_emnist(arrays: dict[str, Array], folder: Path, prefix: str) -> dict[str, Array]:
    """Upright pictures, labels from 0, and class names where the mapping lies beside.

    EMNIST stores each picture with its axes swapped, and counts letters from 1
    (https://www.nist.gov/itl/products-and-services/emnist-dataset).
    """
    mended = {
        name: array.swapaxes(1, 2) if name[0] == "x" else array for name, array in arrays.items()
    }
    first = int(mended["y_train"].min())
    for name in ("y_train", "y_test"):
        mended[name] = mended[name].astype(np.int64) - first
    mapping = folder / f"{prefix}mapping.txt"
    if mapping.is_file():
        lines = [line.split() for line in mapping.read_text(encoding="ascii").splitlines() if line]
        names = {int(line[0]) - first: chr(int(line[1])) for line in lines}
        mended["class_names"] = np.array([names[label] for label in sorted(names)])
    return mended


def _download(target: Path) -> None:
    """Fetch into the cache; a file that is not whole never gets the name."""
    import urllib.error
    import urllib.request

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


def read_npz(path: str, kind: str = "npz") -> RawData:
    """Read the user's own `x_train, y_train[, x_test, y_test][, class_names]`."""
    if not path:
        raise DatasetError(f"data.kind is {kind!r}, so data.path must name the file")
    return _make_raw_data(Path(path).stem, path, _read_npz_arrays(Path(path)))


def _make_raw_data(name: str, source: str, arrays: dict[str, Array]) -> RawData:
    """Sort arrays by their names, those of an npz file, into the splits."""
    inputs: dict[str, dict[str, Array]] = {}
    targets: dict[str, dict[str, Array]] = {}
    class_names: dict[str, tuple[object, ...]] = {}
    for key, array in arrays.items():
        if match := _ARRAY_NAME.fullmatch(key):
            sort = inputs if match["letter"] == "x" else targets
            sort.setdefault(match["split"], {})[match["name"] or ""] = array
        elif match := _CLASS_NAMES.fullmatch(key):
            class_names[match["name"] or ""] = tuple(array.ravel().tolist())
    for letter, sort in (("x", inputs), ("y", targets)):
        if "train" not in sort:
            raise DatasetError(
                f"{source} has no array '{letter}_train', only {sorted(arrays)}; give x_train, "
                "y_train and, if you have them, x_test, y_test (several inputs or targets: "
                "x_train/NAME, y_train/NAME)"
            )
    for split in ("validation", "test"):
        if (split in inputs) != (split in targets):
            raise DatasetError(f"{source} has one of x_{split} and y_{split}; give both or neither")
    splits = {split: Examples(inputs[split], targets[split]) for split in inputs}
    for split, examples in splits.items():
        _check_names(splits["train"], examples, split, source)
    return RawData(
        name=name,
        source=source,
        train=splits["train"],
        validation=splits.get("validation"),
        test=splits.get("test"),
        class_names=class_names,
    )


def _check_names(train: Examples, other: Examples, split: str, source: str) -> None:
    """Every split has the same inputs and targets, either one without a name or all with one."""
    for letter, ours, theirs in (
        ("x", train.inputs, other.inputs),
        ("y", train.targets, other.targets),
    ):
        if "" in theirs and len(theirs) > 1:
            named = ", ".join(f"{letter}_{split}/{name}" for name in theirs if name)
            raise DatasetError(
                f"{source} has {letter}_{split} beside {named}; name all of them or none"
            )
        if ours.keys() != theirs.keys():
            raise DatasetError(
                f"{source}: {letter}_train holds {sorted(ours)} and {letter}_{split} "
                f"{sorted(theirs)}; both must have the same names"
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
