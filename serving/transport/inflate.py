"""Inflating what callers compressed, in steps, so that nothing grows before it was weighed."""

from __future__ import annotations

import enum
import io
import math
import zlib
from collections.abc import Callable

from contract.errors import ResourceExhaustedError

_STEP_BYTES = 256 * 1024
_INPUT_BYTES = 64 * 1024


class Compression(enum.IntEnum):
    """How a body is compressed, as zlib's `wbits`."""

    GZIP = 16 + zlib.MAX_WBITS
    """RFC 1952: HTTP's and gRPC's `gzip`."""
    DEFLATE = zlib.MAX_WBITS
    """RFC 1950: gRPC's `deflate` (PROTOCOL-HTTP2.md), which is zlib's format."""


def inflate(
    data: bytes | bytearray | memoryview,
    compression: Compression,
    *,
    max_bytes: int,
    reserve: Callable[[int], None],
    flag: str,
) -> bytes | None:
    """What a compressed body holds.

    Takes a millisecond for some hundred kilobytes, and lets other threads run meanwhile.

    Args:
        data: The body. What follows the first stream in it is ignored.
        compression: Its format.
        max_bytes: The most that it may inflate to.
        reserve: Is told of every piece, of 256 KiB at most, before the next one comes; see
            `RequestContext.reserve`.
        flag: The name of the flag that `max_bytes` comes from, for the text of the error.

    Returns:
        None when it is damaged or cut off.

    Raises:
        ResourceExhaustedError: It inflates to more than `max_bytes`, or `reserve` says so.
    """
    inflater = zlib.decompressobj(compression)
    content = io.BytesIO()  # grows in place, and hands its bytes out without a copy
    size = 0
    with memoryview(data) as view:
        # A slice at a time: what a step leaves over is copied.
        for start in range(0, len(view), _INPUT_BYTES):
            rest: bytes | memoryview = view[start : start + _INPUT_BYTES]
            while rest and not inflater.eof:
                try:
                    piece = inflater.decompress(rest, _STEP_BYTES)
                except zlib.error:
                    return None
                size += len(piece)
                if size > max_bytes:
                    raise ResourceExhaustedError(
                        f"the body is larger than {max_bytes} bytes once it is inflated "
                        f"(--{flag}); send fewer rows at a time",
                        retry_after_s=math.inf,
                    )
                reserve(len(piece))
                content.write(piece)
                rest = inflater.unconsumed_tail
            if inflater.eof:
                return content.getvalue()
    return None
