"""HPACK, the header compression of HTTP/2 (RFC 7541): a whole decoder, and what answers need.

Answers are written without a dynamic table and without Huffman codes: they have few fields, which
are encoded once and kept. So the encoder has no state.

Importing costs nearly nothing: Huffman codes are kept as their lengths alone, from which canonical
codes follow (section 5.2), and the machine that decodes them grows as it meets bytes.
"""

from __future__ import annotations

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

    def decode(self, block: bytes) -> list[Made]:
        """The fields of a block, in order.

        Args:
            block: A whole header block: the fragments of HEADERS and CONTINUATION joined.

        Raises:
            HpackError: It is not well formed; the connection cannot go on.
        """
        fields: list[Made] = []
        position, end = 0, len(block)
        try:
            while position < end:
                byte = block[position]
                if byte >= 0x80:
                    index = byte & 0x7F
                    position += 1
                    if index == 0x7F:
                        index, position = _read_rest(block, position, 0x7F)
                    fields.append(
                        self._static[index - 1]
                        if 0 < index <= _NUM_STATIC
                        else self._find_dynamic(index)
                    )
                elif byte & 0xE0 == 0x20:
                    if fields:
                        raise HpackError("a table size update follows a field")
                    size, position = byte & 0x1F, position + 1
                    if size == 0x1F:
                        size, position = _read_rest(block, position, 0x1F)
                    self._resize(size)
                else:
                    field, position = self._read_literal(block, position, byte)
                    fields.append(field)
        except IndexError:
            raise HpackError("a header block ends within a field") from None
        return fields

    def _read_literal(  # noqa: C901 - on the hot path
        self, block: bytes, position: int, byte: int
    ) -> tuple[Made, int]:
        """A literal field (section 6.2), and where it ends."""
        start = position
        mask = 0x3F if byte >= 0x40 else 0x0F
        index = byte & mask
        position += 1
        if index == mask:
            index, position = _read_rest(block, position, mask)
        name_start = position
        if index == 0:
            length = block[position] & 0x7F
            position += 1
            if length == 0x7F:
                length, position = _read_rest(block, position, 0x7F)
            position += length
        name_stop = position
        length = block[position] & 0x7F
        position += 1
        if length == 0x7F:
            length, position = _read_rest(block, position, 0x7F)
        stop = position + length
        if stop > len(block):
            raise HpackError("a string is longer than its block")
        # A field whose name stands in the dynamic table means something else another time, and
        # what is never to be indexed is not to be kept either (section 7.1.3).
        is_lasting = index <= _NUM_STATIC and byte & 0xF0 != 0x10
        if is_lasting:
            raw = block[start:stop]
            found = self._remembered.get(raw)
            if found is not None:
                if byte >= 0x40:
                    self._insert(found)
                return found, stop
        if index == 0:
            name = _read_name(block, name_start, name_stop)
        elif index <= _NUM_STATIC:
            name = self._static[index - 1][0]
        else:
            name = self._find_dynamic(index)[0]
        value = block[position:stop]
        if block[name_stop] >= 0x80:
            value = decode_huffman(value)
        field = self._make(name, value)
        if is_lasting:
            self._remember(raw, field)
        if byte >= 0x40:
            self._insert(field)
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

    def _find_dynamic(self, index: int) -> Made:
        if not _NUM_STATIC < index <= _NUM_STATIC + len(self._dynamic):
            raise HpackError(f"there is no field with index {index}")
        return self._dynamic[_NUM_STATIC - index]

    def _insert(self, field: Made) -> None:
        """Section 4.4: evict first; what is larger than the table empties it."""
        self.num_changes += 1
        self._size += len(field[0]) + len(field[1]) + ENTRY_OVERHEAD
        self._dynamic.append(field)
        self._evict()

    def _resize(self, size: int) -> None:
        if size > self.max_table_size:
            raise HpackError(f"a table of {size} bytes was asked for; {self.max_table_size} is all")
        self.num_changes += 1
        self._max_size = size
        self._evict()

    def _evict(self) -> None:
        dynamic = self._dynamic
        while self._size > self._max_size:
            oldest = dynamic.pop(0)
            self._size -= len(oldest[0]) + len(oldest[1]) + ENTRY_OVERHEAD


# What `make` made of the static table and of literals; the same for all connections.
_KNOWN: dict[Callable[[bytes, bytes], Any], tuple[list[Any], dict[bytes, Any]]] = {}


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


def _read_name(block: bytes, start: int, stop: int) -> bytes:
    """A name that is no index: the string (section 5.2) from `start` to `stop`."""
    raw = block[start:stop]
    name = _names.get(raw)
    if name is None:
        is_huffman = raw[0] >= 0x80
        position = 1
        if raw[0] & 0x7F == 0x7F:
            _, position = _read_rest(raw, 1, 0x7F)
        name = decode_huffman(raw[position:]) if is_huffman else raw[position:]
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

# The machine: a state is 256 times a node of the tree of codes, so that state + byte is a key.
_children: list[list[int]] = []
"""Node to its two children: a node, or ~symbol. Empty until the first code is decoded."""
_ends: set[int] = set()
"""The states in which a string may end: within a code's first 7 bits, all of them ones."""


class _Steps(dict[int, tuple[int, bytes]]):
    """State + byte to the state after it and the bytes that it completed; grows as it is used, to
    2^16 entries at most."""

    def __missing__(self, key: int) -> tuple[int, bytes]:
        if not _children:
            _grow_tree()
        node, text = key >> 8, b""
        for shift in range(7, -1, -1):
            node = _children[node][key >> shift & 1]
            if node < 0:
                if ~node == _EOS:
                    raise HpackError("EOS is no character")
                text += bytes((~node,))
                node = 0
        step = self[key] = (node << 8, text)
        return step


_steps = _Steps()


def decode_huffman(data: bytes) -> bytes:
    """The bytes behind Huffman codes (section 5.2).

    Raises:
        HpackError: EOS is among them, or the padding is longer than 7 bits or not of ones.
    """
    state, parts = 0, []
    steps = _steps
    for byte in data:
        state, text = steps[state + byte]
        parts.append(text)
    if state and state not in _ends:
        raise HpackError("a Huffman code is cut off, or its padding is not of ones")
    return b"".join(parts)


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
        _ends.add(node << 8)
        node = children[node][1]
    _children.extend(children)
