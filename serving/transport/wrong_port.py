"""What a client of HTTP/2 is told by a port that speaks HTTP/1.1: a sentence, in its own frames."""

from __future__ import annotations

from urllib.parse import quote

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

_HEADERS, _SETTINGS, _GOAWAY = 1, 4, 7
_ACK = 1
_END_OF_STREAM_AND_HEADERS = 5
_MAX_FRAME_BYTES = 16384
_NO_ERROR = 0
"""HTTP_1_1_REQUIRED would be the word for it, and grpcio 1.85 aborts its process over it."""

_UNIMPLEMENTED = b"12"


class WrongPort:
    """Answers the first call of a client that sent the preface of HTTP/2, and says good-bye.

    A call is answered with gRPC's status and message (PROTOCOL-HTTP2.md of grpc/grpc,
    Trailers-Only), since who speaks HTTP/2 here wants gRPC; who sends no call reads the sentence
    in GOAWAY. To it alone grpcio would connect over and over.

    Args:
        text: The sentence.

    Attributes:
        out: Bytes to be sent.
        is_done: Whether nothing more is to be said.
    """

    def __init__(self, text: str) -> None:
        self._text = text
        self._data = b""
        self.out = _frame(_SETTINGS, 0, 0, b"")
        self.is_done = False

    def read(self, data: bytes) -> None:
        """Takes what came after the preface."""
        self._data += data
        while len(self._data) >= 9 and not self.is_done:
            size = int.from_bytes(self._data[:3], "big")
            if size > _MAX_FRAME_BYTES:
                self._say_goodbye(0)
                return
            if len(self._data) < 9 + size:
                return
            kind, flags = self._data[3], self._data[4]
            stream = int.from_bytes(self._data[5:9], "big") & 0x7FFF_FFFF
            self._data = self._data[9 + size :]
            if kind == _SETTINGS and not flags & _ACK:
                self.out += _frame(_SETTINGS, _ACK, 0, b"")
            elif kind == _HEADERS:
                message = quote(self._text, safe=" /,;:()'=-").encode()
                headers = (
                    b"\x88"  # :status: 200
                    + _field(b"content-type", b"application/grpc")
                    + _field(b"grpc-status", _UNIMPLEMENTED)
                    + _field(b"grpc-message", message)
                )
                self.out += _frame(_HEADERS, _END_OF_STREAM_AND_HEADERS, stream, headers)
                self._say_goodbye(stream)

    def _say_goodbye(self, stream: int) -> None:
        content = stream.to_bytes(4, "big") + _NO_ERROR.to_bytes(4, "big")
        self.out += _frame(_GOAWAY, 0, 0, content + self._text.encode())
        self.is_done = True


def _frame(kind: int, flags: int, stream: int, content: bytes) -> bytes:
    return (
        len(content).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + content
    )


def _field(name: bytes, value: bytes) -> bytes:
    """A literal field without indexing, its name new (RFC 7541, 6.2.2)."""
    return b"\0" + _string(name) + _string(value)


def _string(text: bytes) -> bytes:
    size = len(text)
    if size < 127:
        return bytes((size,)) + text
    rest, digits = size - 127, bytearray((127,))
    while rest >= 128:
        digits.append(rest % 128 | 128)
        rest //= 128
    digits.append(rest)
    return bytes(digits) + text
