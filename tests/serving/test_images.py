"""Images are weighed by what their headers declare, before anything is decoded."""

import contextlib
import io
import struct
import time
import zlib

import numpy as np
import pytest
from PIL import Image

from contract.errors import RequestError
from contract.signature import Batch
from contract.wire.plumbline_wire.example_pb2 import Example
from serving.engines.images import check_pixels, weigh_images


def files(*contents: bytes) -> Batch:
    array = np.empty(len(contents), object)
    array[:] = contents
    return {"image_bytes": array}


def encode(width: int, height: int, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (width, height), (200, 10, 10)).save(stream, kind, **options)
    return stream.getvalue()


def declare(width: int, height: int) -> bytes:
    """A PNG of which there is nothing but the header."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + struct.pack(">I", 13)
        + header
        + struct.pack(">I", zlib.crc32(header))
    )


@pytest.mark.parametrize(
    "content",
    [
        encode(30, 20, "PNG"),
        encode(30, 20, "JPEG"),
        encode(30, 20, "JPEG", progressive=True, comment=b"c" * 60_000),
        encode(30, 20, "JPEG", icc_profile=b"p" * 500_000),
    ],
)
def test_a_file_weighs_its_pixels(content: bytes) -> None:
    assert weigh_images(files(content)) == (600, 600)


def test_the_files_of_a_call_weigh_together() -> None:
    contents = (encode(30, 20, "PNG"), encode(5, 5, "JPEG"), b"", b"no image " * 10)
    assert weigh_images(files(*contents)) == (625, 600)


def test_a_file_in_an_example_weighs_as_much() -> None:
    example = Example()
    for name, content in (("a", encode(30, 20, "PNG")), ("b", encode(4, 4, "JPEG"))):
        example.features.feature[name].bytes_list.value.append(content)
    assert weigh_images(files(example.SerializeToString())) == (616, 600)


def test_numbers_and_texts_weigh_nothing() -> None:
    batch = {"x": np.ones((2, 2), np.float32), "words": np.array([b"a" * 100, b"b"], object)}
    assert weigh_images(batch) == (0, 0)


def test_a_preview_inside_a_file_weighs_nothing() -> None:
    preview = encode(16, 16, "JPEG")
    content = encode(30, 20, "JPEG", exif=b"Exif\0\0" + preview)
    assert weigh_images(files(content)) == (600, 600)


def test_a_call_over_the_limit_is_told_what_it_has_and_what_it_may_have() -> None:
    batch = files(*[declare(4096, 4096)] * 3)
    with pytest.raises(RequestError, match=r"50331648 pixels.*33554432.*_per_call\); send fewer"):
        check_pixels(batch, 2 * 4096 * 4096)
    assert check_pixels(batch, 0)[0] == check_pixels(batch, 3 * 4096 * 4096)[0]


@pytest.mark.parametrize(
    "content",
    [
        b"\xff\xd8\xff" + b"\xff" * 2**20,
        b"\xff\xd8" + b"\xff\xfe\x00\x02" * 2**18,
        b"\xff\xd8" + b"\xff\xd0" * 2**18,
    ],
)
def test_a_jpeg_that_hides_its_size_is_refused(content: bytes) -> None:
    with pytest.raises(RequestError, match="more than 1024 segments"):
        weigh_images(files(content))


@pytest.mark.parametrize(
    "piece", [b"\xff\xd8\xff", b"\xff\xd8\xff\xfe\x00\x04ab", b"\xff", b"\x89PNG"]
)
def test_weighing_takes_time_in_proportion_to_the_bytes(piece: bytes) -> None:
    content = piece * (2**22 // len(piece))
    started = time.process_time()
    with contextlib.suppress(RequestError):
        weigh_images(files(*[content] * 2))
    assert time.process_time() - started < 20  # a second at most; quadratic would be hours


def test_bytes_cut_anywhere_and_changed_anywhere_are_weighed_or_refused() -> None:
    random = np.random.default_rng(7)
    for content in (encode(30, 20, "PNG"), encode(30, 20, "JPEG")):
        for _ in range(500):
            changed = bytearray(content[: random.integers(len(content) + 1)])
            for _ in range(random.integers(8)):
                if changed:
                    changed[random.integers(len(changed))] = random.integers(256)
            total, largest = weigh_images(files(bytes(changed)))
            assert 0 <= largest <= total
