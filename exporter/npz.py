"""Reads the arrays of an npz file, whoever wrote it."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from contract.errors import DatasetError

Array = NDArray[Any]


def read_npz_arrays(path: Path) -> dict[str, Array]:
    """Read every array of an npz file, never unpickling.

    Raises:
        DatasetError: Missing, unreadable, not npz, truncated, or holding Python objects.
    """
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
        raise DatasetError(f"{path} is not a readable npz file: {_explain_npz(error)}") from error


def _explain_npz(error: Exception) -> str:
    if "allow_pickle" in str(error):
        return (
            "it holds Python objects or is no npz at all; save plain arrays with "
            "numpy.savez (no dtype=object)"
        )
    return f"{error}; write it with numpy.savez"
