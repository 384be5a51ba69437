"""Files to pixels, inside the graph and beside it: which way up a picture is shown."""

from __future__ import annotations

import io
import random
import struct
import zlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from clients.files.images import decode_image
from contract.pictures import EXIF_MAGIC, HEAD_BYTES, MAX_SEGMENTS, PNG_MAGIC, read_orientation

if TYPE_CHECKING:
    Files = Callable[[list[bytes]], np.ndarray[Any, Any]]

pytestmark = pytest.mark.tensorflow

HEIGHT, WIDTH = 12, 20


@pytest.fixture(scope="module")
def decode() -> Files:
    """Files to uint8 (files, HEIGHT, WIDTH, 3), as an exported graph does it."""
    import tensorflow as tf

    from exporter.artifacts.decoding import decode_images

    strings = tf.TensorSpec((None,), tf.string)
    graph = tf.function(
        lambda files: decode_images(files, (HEIGHT, WIDTH, 3)),
        input_signature=[strings],
        autograph=False,
    )
    return lambda files: graph(tf.constant(files)).numpy().astype(np.uint8)


@pytest.fixture(scope="module")
def read_in_graph() -> Callable[[list[bytes]], list[int]]:
    """Files to orientations, as an exported graph reads them."""
    import tensorflow as tf

    from exporter.artifacts.decoding import _read_orientation

    def read(files: tf.Tensor) -> tf.Tensor:
        return tf.map_fn(
            lambda one: _read_orientation(
                tf.strings.substr(one, 0, HEAD_BYTES), tf.strings.substr(one, 0, 8) == PNG_MAGIC
            ),
            files,
            fn_output_signature=tf.int64,
        )

    strings = tf.TensorSpec((None,), tf.string)
    graph = tf.function(read, input_signature=[strings], autograph=False)
    return lambda files: graph(tf.constant(files)).numpy().tolist()


def make_tiff(
    value: int, *, order: str = "<", kind: int = 3, count: int = 1, before: int = 0
) -> bytes:
    """An EXIF structure whose orientation comes after `before` other entries."""
    entries = [struct.pack(f"{order}HHI4s", 0x0001 + n, 4, 1, b"\1\2\3\4") for n in range(before)]
    code = "HHIHxx" if kind == 3 else "HHII"
    entries.append(struct.pack(order + code, 0x0112, kind, count, value))
    head = struct.pack(f"{order}2sHI", b"II" if order == "<" else b"MM", 42, 8)
    return head + struct.pack(f"{order}H", len(entries)) + b"".join(entries) + bytes(4)


def make_segment(marker: int, content: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content


def make_jpeg(*segments: bytes, pixels: np.ndarray[Any, Any] | None = None) -> bytes:
    """A JPEG file with segments of ours at its head."""
    stream = io.BytesIO()
    shown = make_pixels(HEIGHT, WIDTH) if pixels is None else pixels
    Image.fromarray(shown).save(stream, "JPEG", quality=95, subsampling=0)
    content = stream.getvalue()
    return content[:2] + b"".join(segments) + content[2:]


def make_chunk(name: bytes, content: bytes) -> bytes:
    checksum = struct.pack(">I", zlib.crc32(name + content))
    return struct.pack(">I", len(content)) + name + content + checksum


def make_png(*chunks: bytes, pixels: np.ndarray[Any, Any] | None = None) -> bytes:
    """A PNG file with chunks of ours after its header."""
    stream = io.BytesIO()
    shown = make_pixels(HEIGHT, WIDTH) if pixels is None else pixels
    Image.fromarray(shown).save(stream, "PNG")
    content = stream.getvalue()
    return content[:33] + b"".join(chunks) + content[33:]


def make_exif_segment(tiff: bytes) -> bytes:
    return make_segment(0xE1, EXIF_MAGIC + tiff)


def make_pixels(height: int, width: int) -> np.ndarray[Any, Any]:
    """Smooth, and another picture whichever way it is turned or mirrored."""
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 12, y * 12, (x + 2 * y) * 4], axis=-1).astype(np.uint8)


def show(content: bytes) -> np.ndarray[Any, Any]:
    """What a viewer shows."""
    with Image.open(io.BytesIO(content)) as image:
        return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_pictures_are_decoded_as_a_viewer_shows_them(decode: Files, kind: str, order: str) -> None:
    files = []
    for orientation in range(1, 9):
        stored = (HEIGHT, WIDTH) if orientation < 5 else (WIDTH, HEIGHT)
        tiff, pixels = make_tiff(orientation, order=order), make_pixels(*stored)
        files.append(
            make_jpeg(make_exif_segment(tiff), pixels=pixels)
            if kind == "JPEG"
            else make_png(make_chunk(b"eXIf", tiff), pixels=pixels)
        )
    wanted = np.stack([show(one) for one in files])
    assert len({one.tobytes() for one in wanted}) == 8
    clients = np.stack([decode_image(one, (HEIGHT, WIDTH, 3)) for one in files])
    np.testing.assert_array_equal(clients, wanted)
    # Decoders of JPEG may round differently.
    np.testing.assert_allclose(decode(files), wanted, atol=0 if kind == "PNG" else 2)


def test_a_turned_picture_of_another_size_is_resized_upright(decode: Files) -> None:
    large = np.kron(make_pixels(WIDTH, HEIGHT), np.ones((5, 5, 1), np.uint8))
    content = make_png(make_chunk(b"eXIf", make_tiff(6)), pixels=large)
    (got,) = decode([content])
    turned = np.rot90(make_pixels(WIDTH, HEIGHT), -1)
    assert np.abs(got.astype(int) - turned.astype(int)).max() <= 6
    client = decode_image(content, (HEIGHT, WIDTH, 3))
    assert np.abs(client.astype(int) - turned.astype(int)).max() <= 6


SIX = make_exif_segment(make_tiff(6))
RULES = {
    "nothing": (make_jpeg(), 1),
    "after JFIF, a comment and a colour profile": (
        make_jpeg(make_segment(0xFE, b"hello"), make_segment(0xE2, bytes(60_000)), SIX),
        6,
    ),
    "after fill bytes": (make_jpeg(b"\xff\xff\xff" + SIX), 6),
    "the first of two": (make_jpeg(SIX, make_exif_segment(make_tiff(3))), 6),
    "the twentieth entry": (make_jpeg(make_exif_segment(make_tiff(6, before=19))), 6),
    "a long": (make_jpeg(make_exif_segment(make_tiff(6, kind=4, order=">"))), 6),
    "two values": (make_jpeg(make_exif_segment(make_tiff(6, count=2))), 1),
    "a fraction": (make_jpeg(make_exif_segment(make_tiff(6, kind=5))), 1),
    "9": (make_jpeg(make_exif_segment(make_tiff(9))), 1),
    "0": (make_jpeg(make_exif_segment(make_tiff(0))), 1),
    "no TIFF": (make_jpeg(make_exif_segment(b"XX" + make_tiff(6)[2:])), 1),
    "cut": (make_jpeg(make_exif_segment(make_tiff(6)[:-8])), 1),
    "empty": (make_jpeg(make_exif_segment(b"")), 1),
    "elsewhere in the file": (make_jpeg() + SIX, 1),
    "behind too many segments": (make_jpeg(*[make_segment(0xEA, b"")] * MAX_SEGMENTS, SIX), 1),
    "too far behind": (make_jpeg(*[make_segment(0xEA, bytes(60_000))] * 5, SIX), 1),
    "another kind of APP1": (
        make_jpeg(make_segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + SIX), SIX),
        6,
    ),
    "PNG: nothing": (make_png(), 1),
    "PNG: after a text": (
        make_png(make_chunk(b"tEXt", b"a\0b"), make_chunk(b"eXIf", make_tiff(6, order=">"))),
        6,
    ),
    "PNG: with the magic of JPEG's": (
        make_png(make_chunk(b"eXIf", EXIF_MAGIC + make_tiff(6))),
        6,
    ),
    "PNG: after the image data": (
        make_png()[:-12] + make_chunk(b"eXIf", make_tiff(6)) + make_png()[-12:],
        1,
    ),
}


@pytest.mark.parametrize(("content", "wanted"), RULES.values(), ids=RULES)
def test_where_an_orientation_counts(
    read_in_graph: Callable[[list[bytes]], list[int]], content: bytes, wanted: int
) -> None:
    assert read_orientation(content) == wanted
    assert read_in_graph([content]) == [wanted]


def test_damaged_files_are_read_alike_in_the_graph_and_beside_it(
    read_in_graph: Callable[[list[bytes]], list[int]],
) -> None:
    rng = random.Random(1)
    files = [mutate(rng, rng.choice(list(RULES.values()))[0]) for _ in range(4000)]
    ours = [read_orientation(one) for one in files]
    assert read_in_graph(files) == ours
    assert len(set(ours)) > 2


@pytest.mark.filterwarnings("ignore::UserWarning:PIL.TiffImagePlugin")
def test_a_damaged_orientation_fails_no_batch(decode: Files) -> None:
    rng = random.Random(2)
    tiff = make_tiff(6, before=3)
    files = [make_jpeg(make_exif_segment(mutate(rng, tiff))) for _ in range(300)]
    files += [make_png(make_chunk(b"eXIf", mutate(rng, tiff))) for _ in range(300)]
    assert decode(files).shape == (600, HEIGHT, WIDTH, 3)
    for one in files:
        assert decode_image(one, (HEIGHT, WIDTH, 3)).shape == (HEIGHT, WIDTH, 3)


def mutate(rng: random.Random, content: bytes) -> bytes:
    """With bytes of its head changed, cut out or put in; most of the rest cut off."""
    head = bytearray(content[:HEAD_BYTES] if rng.random() < 0.02 else content[:400])
    for _ in range(rng.choice((1, 1, 2, 4))):
        at = rng.randrange(min(len(head), 120))
        if rng.random() < 0.6:
            head[at] = rng.choice((0, 1, 6, 8, 0xE1, 0xFF, rng.randrange(256)))
        elif rng.random() < 0.5:
            del head[at : at + rng.choice((1, 2, 12))]
        else:
            head[at:at] = rng.randbytes(rng.choice((1, 2, 12)))
    return bytes(head[: rng.randrange(1, len(head) + 1)] if rng.random() < 0.2 else head)
