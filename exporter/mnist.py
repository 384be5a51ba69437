"""MNIST from where the user has it; from the network only when asked."""

from __future__ import annotations

import hashlib
import os
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from contract.errors import DatasetError
from exporter.idx import GZIP_MAGIC, read_idx
from exporter.npz import read_npz_arrays

URL = "https://storage.googleapis.com/tensorflow/tf-keras-datasets/mnist.npz"
SHA256 = "731c5ac602752760c8e48fbffcf8c3b850d9dc2a2aedcf2cc48468fc17b673d1"
"""Of that file, as Keras checks it."""
DOWNLOAD_TIMEOUT_S = 60

IDX_FILES = {
    "x_train": ("train-images-idx3-ubyte", "train-images.idx3-ubyte"),
    "y_train": ("train-labels-idx1-ubyte", "train-labels.idx1-ubyte"),
    "x_test": ("t10k-images-idx3-ubyte", "t10k-images.idx3-ubyte"),
    "y_test": ("t10k-labels-idx1-ubyte", "t10k-labels.idx1-ubyte"),
}


def read_mnist_arrays(path: str, *, download: bool) -> tuple[dict[str, NDArray[Any]], str]:
    """Read MNIST's four arrays; return them with where they came from.

    Args:
        path: Keras's `mnist.npz`, the folder of the four IDX files, or one of these; "" for
            Keras's own cache.
        download: Fetch `mnist.npz` into the cache when it is not there.

    Raises:
        DatasetError: Not there, unreadable, or the download fails or differs.
    """
    if path:
        return _read_path(Path(path)), path
    cached = keras_cache_path()
    if not cached.is_file():
        if not download:
            raise DatasetError(
                f"MNIST is not at {cached}; give data.path (mnist.npz, or the folder of the four "
                "IDX files), or data.download = true to fetch it"
            )
        _download(cached)
    return read_npz_arrays(cached), str(cached)


def keras_cache_path() -> Path:
    """Return where Keras keeps its `mnist.npz`."""
    home = os.environ.get("KERAS_HOME") or Path.home() / ".keras"
    return Path(home) / "datasets" / "mnist.npz"


def _read_path(path: Path) -> dict[str, NDArray[Any]]:
    if path.is_dir():
        if (path / "mnist.npz").is_file():
            return read_npz_arrays(path / "mnist.npz")
        return _read_idx_files(path)
    try:
        with path.open("rb") as file:
            magic = file.read(2)
    except OSError as error:
        raise DatasetError(f"cannot read {path}: {error.strerror}") from error
    if magic in (GZIP_MAGIC, b"\0\0"):
        return _read_idx_files(path.parent)
    return read_npz_arrays(path)


def _read_idx_files(folder: Path) -> dict[str, NDArray[Any]]:
    arrays = {}
    for name, stems in IDX_FILES.items():
        candidates = [folder / (stem + end) for stem in stems for end in ("", ".gz")]
        found = next((path for path in candidates if path.is_file()), None)
        if found is None:
            raise DatasetError(
                f"{folder} has neither {stems[0]} nor {stems[0]}.gz; give the folder of MNIST's "
                "four IDX files, or an npz"
            )
        arrays[name] = read_idx(found)
    return arrays


def _download(target: Path) -> None:
    """Fetch into the cache; a file that is not whole never gets the name."""
    partial = target.with_suffix(f".{os.getpid()}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with urllib.request.urlopen(URL, timeout=DOWNLOAD_TIMEOUT_S) as response:
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
