"""The IDX format of the original MNIST files, gzipped or not.

Big-endian: two zero bytes, a type code, the rank, then one uint32 per axis, then the values
(http://yann.lecun.com/exdb/mnist/).
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from contract.errors import DatasetError

DTYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
GZIP_MAGIC = b"\x1f\x8b"


def read_idx(path: Path) -> NDArray[Any]:
    """Read one IDX file into an array of native byte order.

    Raises:
        DatasetError: Missing, unreadable, truncated (gzip or not), or not IDX.
    """
    try:
        data = path.read_bytes()
        if data[:2] == GZIP_MAGIC:
            data = gzip.decompress(data)
    except EOFError as error:
        raise DatasetError(f"{path} is a truncated gzip file; copy it again") from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise DatasetError(f"{path} is a damaged gzip file ({error}); copy it again") from error
    except OSError as error:
        raise DatasetError(f"cannot read {path}: {error.strerror or error}") from error
    return _parse(data, path)


def _parse(data: bytes, path: Path) -> NDArray[Any]:
    if len(data) < 4 or data[:2] != b"\0\0" or data[2] not in DTYPES:
        raise DatasetError(
            f"{path} is not an IDX file (it begins with {data[:4].hex() or 'nothing'}); give "
            "MNIST's four original files, gzipped or not, or an npz"
        )
    rank = data[3]
    start = 4 + 4 * rank
    if len(data) < start:
        raise DatasetError(f"{path} is a truncated IDX file; copy it again")
    shape = struct.unpack(f">{rank}I", data[4:start])
    dtype = np.dtype(DTYPES[data[2]])
    wanted = math.prod(shape) * dtype.itemsize
    if len(data) - start != wanted:
        raise DatasetError(
            f"{path} says shape {shape}, {wanted} bytes, but holds {len(data) - start}; it is "
            "truncated or damaged: copy it again"
        )
    array = np.frombuffer(data, dtype, offset=start).reshape(shape)
    return array.astype(dtype.newbyteorder("="))
