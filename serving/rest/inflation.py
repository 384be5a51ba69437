"""gzip bodies, inflated up to a limit."""

from __future__ import annotations

import zlib

from contract.errors import ResourceExhaustedError

_GZIP = 16 + zlib.MAX_WBITS


def inflate_gzip(data: bytes, *, max_bytes: int) -> bytes:
    """The content of a gzip body; b"" when it is damaged, as TensorFlow Serving takes it.

    Never allocates more than `max_bytes` and a little.

    Raises:
        ResourceExhaustedError: The content is larger.
    """
    inflater = zlib.decompressobj(_GZIP)
    try:
        content = inflater.decompress(data, max_bytes + 1)
    except zlib.error:
        return b""
    if len(content) > max_bytes:
        raise ResourceExhaustedError(
            f"the body is larger than {max_bytes} bytes after gunzip (--max_inflated_bytes); "
            "send fewer rows at a time, or use gRPC"
        )
    return content if inflater.eof else b""
