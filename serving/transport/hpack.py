"""HPACK, the header compression of HTTP/2 (RFC 7541): a whole decoder, and what answers need.

Answers are written without a dynamic table and without Huffman codes: they have few fields, which
are encoded once and kept. So the encoder has no state.

Importing costs nearly nothing: Huffman codes are kept as their lengths alone, from which canonical
codes follow (section 5.2), and are read by zlib, which is told the lengths once.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable
from typing import Any, Generic, TypeVar

DEFAULT_TABLE_SIZE = 4096
"""SETTINGS_HEADER_TABLE_SIZE until a peer says otherwise."""

ENTRY_OVERHEAD = 32
"""What an entry counts beyond its name and value (section 4.1)."""

_MAX_INTEGER = 2**31 - 1
_MAX_REMEMBERED_FIELDS = 1024
_LONGEST_REMEMBERED = 256
_MAX_VALUES = 64


class HpackError(Exception):
    """Bytes that are no header block: a connection error of type COMPRESSION_ERROR."""


Made = TypeVar("Made", bound=tuple[Any, ...])
"""What a decoder makes of a field: a tuple whose first two items are name and value."""

_STATIC_LINES = """\
:authority|:method GET|:method POST|:path /|:path /index.html|:scheme http|:scheme https
:status 200|:status 204|:status 206|:status 304|:status 400|:status 404|:status 500
accept-charset|accept-encoding gzip, deflate|accept-language|accept-ranges|accept
access-control-allow-origin|age|allow|authorization|cache-control|content-disposition
content-encoding|content-language|content-length|content-location|content-range|content-type
cookie|date|etag|expect|expires|from|host|if-match|if-modified-since|if-none-match|if-range
if-unmodified-since|last-modified|link|location|max-forwards|proxy-authenticate
proxy-authorization|range|referer|refresh|retry-after|server|set-cookie
strict-transport-security|transfer-encoding|user-agent|vary|via|www-authenticate"""

STATIC_TABLE: tuple[tuple[bytes, bytes], ...] = tuple(
    (name.encode(), value.encode())
    for name, _, value in (
        one.partition(" ") for one in _STATIC_LINES.replace("\n", "|").split("|")
    )
)
"""RFC 7541, appendix A; the first has index 1."""

_NUM_STATIC = len(STATIC_TABLE)

# Fields that are a byte each, an index (section 6.1).
_find_leading = re.compile(rb"[\x81-\xfe]*").match
_LAST_STATIC = 0x80 + _NUM_STATIC


class Decoder(Generic[Made]):
    """Reads the header blocks of one connection, in the order in which they arrive.

    Args:
        make: Makes of a name and a value what `decode` lists. It is called once for a field that
            comes again, so what is told of a field by itself belongs there.
        max_table_size: The most bytes that the peer's encoder may ask for; what
            SETTINGS_HEADER_TABLE_SIZE was sent and acknowledged.

    Attributes:
        num_changes: How often the dynamic table was inserted into or resized. Equal blocks
            mean the same as long as it is the same; the table's length tells nothing, since
            an insertion may evict.
        num_leading: How many fields of the last block came first and were in a table; with
            indexes of one byte, as all have in practice.
    """

    __slots__ = (
        "_dynamic",
        "_make",
        "_max_size",
        "_remembered",
        "_size",
        "_static",
        "max_table_size",
        "num_changes",
        "num_leading",
    )

    def __init__(
        self, make: Callable[[bytes, bytes], Made], *, max_table_size: int = DEFAULT_TABLE_SIZE
    ) -> None:
        known = _KNOWN.get(make)
        if known is None:
            known = _KNOWN[make] = ([make(name, value) for name, value in STATIC_TABLE], {})
        self._static: list[Made] = known[0]
        self._remembered: dict[bytes, Made] = known[1]
        self._make = make
        self._dynamic: list[Made] = []  # the newest last
        self._size = 0
        self._max_size = max_table_size
        self.max_table_size = max_table_size
        self.num_changes = 0
        self.num_leading = 0

    def decode(self, block: bytes) -> list[Made]:  # noqa: C901 - one loop, hot
        """The fields of a block, in order.

        Args:
            block: A whole header block: the fragments of HEADERS and CONTINUATION joined.

        Raises:
            HpackError: It is not well formed; the connection cannot go on.
        """
        static, dynamic = self._static, self._dynamic
        position, end = _find_leading(block).end(), len(block)  # type: ignore[union-attr]
        self.num_leading = position
        try:
            fields = [
                static[byte - 0x81] if byte <= _LAST_STATIC else dynamic[_LAST_STATIC - byte]
                for byte in block[:position]
            ]
            while position < end:
                start = position
                byte = block[position]
                position += 1
                mask = _MASKS[byte]
                number = byte & mask
                if number == mask:
                    rest = block[position]
                    if rest < 0x80:
                        number += rest
                        position += 1
                    else:
                        number, position = _read_rest(block, position, mask)
                if byte >= 0x80:  # an indexed field (section 6.1)
                    field = self._find(number)
                elif mask == 0x1F:  # a size update (section 6.3)
                    if fields:
                        raise HpackError("a table size update follows a field")
                    self._resize(number)
                    continue
                else:  # a literal field (section 6.2)
                    if number > _NUM_STATIC:
                        # The name means something else another time: nothing is remembered.
                        name = dynamic[_NUM_STATIC - number][0]
                        value, position = _read_string(block, position)
                        field = self._make(name, value)
                    else:
                        field, position = self._read_literal(block, start, position, number)
                    if byte >= 0x40:
                        self.num_changes += 1
                        self._size += len(field[0]) + len(field[1]) + ENTRY_OVERHEAD
                        dynamic.append(field)
                        if self._size > self._max_size:
                            self._evict()
                fields.append(field)
        except IndexError:
            raise HpackError(
                "a header block ends within a field, or has an index that is not there"
            ) from None
        return fields

    def _find(self, index: int) -> Made:
        if index > _NUM_STATIC:
            return self._dynamic[_NUM_STATIC - index]
        if index:
            return self._static[index - 1]
        raise HpackError("there is no field with index 0")

    def _read_literal(
        self, block: bytes, start: int, position: int, number: int
    ) -> tuple[Made, int]:
        """A literal field whose name is a string, or the static table's; and where it ends."""
        after_name = position if number else _find_end(block, position)
        stop = _find_end(block, after_name)
        raw = block[start:stop]
        field = self._remembered.get(raw)
        if field is None:
            name = self._static[number - 1][0] if number else _read_name(block[position:after_name])
            value, _ = _read_string(block, after_name)
            field = self._make(name, value)
            if raw[0] & 0xF0 != 0x10:  # that must not be kept by anyone (section 7.1.3)
                self._remember(raw, field)
        return field, stop

    def _remember(self, raw: bytes, field: Made) -> None:
        """Keeps what a literal means, but of names whose value is another every time."""
        name = field[0]
        num_values = _num_values.get(name, 0)
        if len(raw) > _LONGEST_REMEMBERED or num_values > _MAX_VALUES:
            return
        if len(self._remembered) >= _MAX_REMEMBERED_FIELDS:
            self._remembered.clear()
        if len(_num_values) >= _MAX_REMEMBERED_FIELDS:
            _num_values.clear()
        _num_values[name] = num_values + 1
        self._remembered[raw] = field

    def _resize(self, size: int) -> None:
        if size > self.max_table_size:
            raise HpackError(f"a table of {size} bytes was asked for; {self.max_table_size} is all")
        self.num_changes += 1
        self._max_size = size
        self._evict()

    def _evict(self) -> None:
        """Section 4.4: what is larger than the table empties it."""
        size, most, dynamic = self._size, self._max_size, self._dynamic
        while size > most:
            oldest = dynamic.pop(0)
            size -= len(oldest[0]) + len(oldest[1]) + ENTRY_OVERHEAD
        self._size = size


# What `make` made of the static table and of literals; the same for all connections.
_KNOWN: dict[Callable[[bytes, bytes], Any], tuple[list[Any], dict[bytes, Any]]] = {}


# By the first byte of a field, which of its bits begin a number (section 6).
_MASKS = bytes(
    0x7F if byte >= 0x80 else 0x3F if byte >= 0x40 else 0x1F if byte >= 0x20 else 0x0F
    for byte in range(256)
)

# Strings that are names, and in how many ways a name was kept with a value.
_names: dict[bytes, bytes] = {}
_num_values: dict[bytes, int] = {}


def _read_rest(block: bytes, position: int, value: int) -> tuple[int, int]:
    """The rest of an integer whose prefix is full (section 5.1), and where it ends."""
    shift = 0
    while True:
        byte = block[position]
        position += 1
        value += (byte & 0x7F) << shift
        if value > _MAX_INTEGER or shift > 28:
            raise HpackError("an integer is too large")
        if byte < 0x80:
            return value, position
        shift += 7


def _find_end(block: bytes, position: int) -> int:
    """Where a string (section 5.2) ends."""
    length = block[position] & 0x7F
    position += 1
    if length == 0x7F:
        length, position = _read_rest(block, position, 0x7F)
    return position + length


def _read_string(block: bytes, position: int) -> tuple[bytes, int]:
    """A string, and where it ends."""
    head = block[position]
    length = head & 0x7F
    position += 1
    if length == 0x7F:
        length, position = _read_rest(block, position, 0x7F)
    stop = position + length
    if stop > len(block):
        raise HpackError("a string is longer than its block")
    text = block[position:stop]
    return (decode_huffman(text) if head >= 0x80 else text), stop


def _read_name(raw: bytes) -> bytes:
    """A name that is no index but a string."""
    name = _names.get(raw)
    if name is None:
        name, _ = _read_string(raw, 0)
        if len(raw) <= _LONGEST_REMEMBERED:
            if len(_names) >= _MAX_REMEMBERED_FIELDS:
                _names.clear()
            _names[raw] = name
    return name


# Encoding.

_STATIC_NAMES: dict[bytes, int] = {}
_STATIC_FIELDS: dict[tuple[bytes, bytes], int] = {}
for _index, (_name, _value) in enumerate(STATIC_TABLE, 1):
    _STATIC_NAMES.setdefault(_name, _index)
    _STATIC_FIELDS.setdefault((_name, _value), _index)


def encode_field(name: bytes, value: bytes) -> bytes:
    """A field that leaves the peer's dynamic table alone.

    Args:
        name: In lower case.
        value: Any bytes.
    """
    index = _STATIC_FIELDS.get((name, value))
    if index is not None:
        return _encode_integer(index, 0x7F, 0x80)
    index = _STATIC_NAMES.get(name)
    head = (
        b"\x00" + _encode_integer(len(name), 0x7F, 0) + name
        if index is None
        else _encode_integer(index, 0x0F, 0)
    )
    return head + _encode_integer(len(value), 0x7F, 0) + value


FORGET_TABLE = b"\x20"
"""A size update to 0: what a block must begin with after the peer has made its table smaller than
our encoder may use it (section 4.2)."""


def _encode_integer(value: int, mask: int, pattern: int) -> bytes:
    if value < mask:
        return bytes((pattern | value,))
    made = bytearray((pattern | mask,))
    value -= mask
    while value >= 0x80:
        made.append(value & 0x7F | 0x80)
        value >>= 7
    made.append(value)
    return bytes(made)


# Huffman codes.

# The length in bits of the code of each byte, and of EOS (appendix B), a digit of base 36 each.
_CODE_LENGTHS = (
    "dnsssssssoussussssssssusssssssss6aacd68baa8b8666555666666678f6cad677777777777777"
    "77777777878djde6f56565666577666567655677777fbedskmkkmmmnmnnnnnonoomnonnnnlmnmnno"
    "mlkmmnnlnmmolmnnllmlnmnnkmmmnmmnqqkjmnmpqqqrrqopjlqrrqrollqqsrrrkoklmllnmmppooqn"
    "qrqqrrrrrsrrrrrqu"
)
_EOS = 256
_MOST_ZLIB_BITS = 15


def decode_huffman(data: bytes) -> bytes:
    """The bytes behind Huffman codes (section 5.2).

    Raises:
        HpackError: EOS is among them, or the padding is longer than 7 bits or not of ones.
    """
    codes = (_zlib_state or _make_zlib_state()).copy()
    # No code is shorter than 5 bits; without a limit, 32 KiB are allocated.
    text: bytes = codes.decompress(data.translate(_REVERSED), 2 * len(data) + 1)
    if codes.eof:  # there is a code of more bits
        return _decode_long_codes(data)
    padding = 8 * len(data) - sum(text.translate(_LENGTHS))
    if padding:
        ones = (1 << padding) - 1
        if padding > 7 or data[-1] & ones != ones:
            raise HpackError("a Huffman code is cut off, or its padding is not of ones")
    return text


# The codes of up to 15 bits, all those of printable ASCII but one, are for zlib. Deflate (RFC 1951)
# has canonical codes too, if as many bits of code length are told, and takes the bits of a byte
# from the other end. 15 bits of ones, with which all longer codes begin, are its end of a block.
_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
_LENGTHS = bytes(int(digit, 36) for digit in _CODE_LENGTHS[:_EOS])
_ZLIB_WINDOW = -9
"""The least, which is allocated, and not used."""
_zlib_state: Any = None


def _make_zlib_state() -> Any:
    """A decompressor that has read the head of a block, up to the first code (section 3.2.7)."""
    global _zlib_state
    lengths = [length if length <= _MOST_ZLIB_BITS else 0 for length in _LENGTHS]
    bits = "".join(
        (
            # Empty blocks, so that the first code begins with a byte.
            3 * "0100000000",
            "101" + "00000" + "00000" + "1111",  # the last block; 257 codes, 1 distance
            # Code lengths are told in 4 bits each: no 16, 17 and 18, the others alike.
            3 * "000" + 16 * "001",
            *(f"{length:04b}" for length in (*lengths, _MOST_ZLIB_BITS, 0)),
        )
    )
    assert len(bits) % 8 == 0
    head = bytes(int(bits[at : at + 8][::-1], 2) for at in range(0, len(bits), 8))
    _zlib_state = zlib.decompressobj(_ZLIB_WINDOW)
    _zlib_state.decompress(head)
    return _zlib_state


# The others, byte by byte. A state is a node of the tree of codes: what has come of a code.
_children: list[list[int]] = []
"""Node to its two children: a node, or ~symbol. Empty until it is needed."""
_ends: set[int] = set()
"""The nodes at which a string may end: within a code's first 7 bits, all of them ones."""
_steps: dict[int, tuple[int, bytes]] = {}
"""256 times a node + byte to the node after it and the bytes that it completed; grows as it is
used, to 2^16 entries at most."""


def _decode_long_codes(data: bytes) -> bytes:
    """As `decode_huffman`, of codes of any length."""
    node, parts = 0, []
    for byte in data:
        step = _steps.get(node << 8 | byte)
        if step is None:
            step = _steps[node << 8 | byte] = _find_step(node, byte)
        node, text = step
        parts.append(text)
    if node not in _ends:
        raise HpackError("a Huffman code is cut off, or its padding is not of ones")
    return b"".join(parts)


def _find_step(node: int, byte: int) -> tuple[int, bytes]:
    if not _children:
        _grow_tree()
    text = b""
    for shift in range(7, -1, -1):
        node = _children[node][byte >> shift & 1]
        if node < 0:
            if ~node == _EOS:
                raise HpackError("EOS is no character")
            text += bytes((~node,))
            node = 0
    return node, text


def _grow_tree() -> None:
    lengths = [int(digit, 36) for digit in _CODE_LENGTHS]
    children: list[list[int]] = [[0, 0]]
    code, last = -1, lengths[ord("0")]
    for symbol in sorted(range(len(lengths)), key=lambda one: (lengths[one], one)):
        length = lengths[symbol]
        code = (code + 1) << (length - last)
        last = length
        node = 0
        for shift in range(length - 1, 0, -1):
            bit = code >> shift & 1
            if not children[node][bit]:
                children.append([0, 0])
                children[node][bit] = len(children) - 1
            node = children[node][bit]
        children[node][code & 1] = ~symbol
    node = 0
    for _ in range(8):
        _ends.add(node)
        node = children[node][1]
    _children.extend(children)
