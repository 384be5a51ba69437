"""PNG and JPEG files to pixels, inside an exported graph.

A few kilobytes can declare gigapixels, and `tf.io.decode_*` allocates what a header declares, so
the header is read first. The EXIF orientation, for which TensorFlow has no operator, is read as
`contract/pictures.py` reads it: the two are changed together.
"""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf

from contract.pictures import (
    EXIF_MAGIC,
    HEAD_BYTES,
    JPEG_MAGIC,
    LONG,
    MAX_EXIF_BYTES,
    MAX_PIXELS,
    MAX_SEGMENTS,
    ORIENTATION_TAG,
    PNG_MAGIC,
    SHORT,
)

_PNG_HEADER_BYTES = 24
"""Magic (8), length and name of IHDR (8), width and height (4 + 4), big endian.
https://www.w3.org/TR/png-3/#11IHDR: IHDR is the first chunk of every PNG."""
_LUMA = (0.299, 0.587, 0.114)
"""ITU-R BT.601, as JPEG and Pillow's mode L use it. (`decode_png(channels=1)` swaps weights.)"""
_SEARCHING = -1
_LOOKS_LIKE_EXIF = r"(?s)\C*(Exif\x00\x00|eXIf)\C*"
"""RE2's \\C is a byte, where a dot is a character of UTF-8."""


def decode_images(image_bytes: tf.Tensor, image_shape: tuple[int, ...]) -> tf.Tensor:
    """Decodes, turns upright, greyscales, resizes a batch of files to what a model was trained on.

    Args:
        image_bytes: string (batch,), a PNG or JPEG file each, of any size up to `MAX_PIXELS`.
        image_shape: (height, width, channels) of the data; channels is 1 or 3.

    Returns:
        float32 (batch, height, width, channels), whole numbers 0..255: a file of the data's
        own size gives exactly the pixels it shows. Transparency is dropped.
    """
    height, width, channels = image_shape
    pixels = tf.map_fn(
        lambda one: _decode_image(one, (height, width)),
        image_bytes,
        fn_output_signature=tf.TensorSpec((height, width, 3), tf.float32),
        parallel_iterations=1,  # bounds memory: one decoded image at a time
    )
    if channels == 1:
        pixels = tf.reduce_sum(pixels * tf.constant(_LUMA, tf.float32), axis=-1, keepdims=True)
    return tf.clip_by_value(tf.round(pixels), 0.0, 255.0)


def _decode_image(data: tf.Tensor, size: tuple[int, int]) -> tf.Tensor:
    """float32 (height, width, 3) of one file."""
    is_png = tf.strings.substr(data, 0, len(PNG_MAGIC)) == PNG_MAGIC
    is_jpeg = tf.strings.substr(data, 0, len(JPEG_MAGIC)) == JPEG_MAGIC
    long_enough = tf.strings.length(data) >= _PNG_HEADER_BYTES
    known = tf.debugging.Assert(
        tf.logical_and(tf.logical_or(is_png, is_jpeg), long_enough),
        ["image is neither a PNG nor a JPEG file; bytes:", tf.strings.length(data)],
    )
    with tf.control_dependencies([known]):
        data = tf.identity(data)
    shape = tf.cond(
        is_png,
        lambda: _read_png_size(data),
        lambda: tf.image.extract_jpeg_shape(data, output_type=tf.int64)[:2],
    )
    num_pixels = shape[0] * shape[1]
    small = tf.debugging.Assert(
        tf.logical_and(num_pixels > 0, num_pixels <= MAX_PIXELS),
        [f"image declares 0 or more than {MAX_PIXELS} pixels; (height, width):", shape],
    )
    with tf.control_dependencies([small]):
        data = tf.identity(data)
    decoded = tf.cond(
        is_png,
        lambda: tf.io.decode_png(data, channels=3),
        lambda: tf.io.decode_jpeg(data, channels=3, dct_method="INTEGER_ACCURATE"),
    )
    decoded = tf.ensure_shape(decoded, (None, None, 3))
    head = tf.strings.substr(data, 0, HEAD_BYTES)
    # Resized before the greyscale and before it is turned: the uint8 image is the only large
    # tensor there is. One operator tells most files apart; walking over segments takes a hundred.
    resize_upright = tf.function(
        lambda: _resize_upright(decoded, _read_orientation(head, is_png), size),
        autograph=False,
        experimental_attributes={"_noinline": True},  # else each of its operators is passed over
    )
    resized = tf.cond(
        tf.strings.regex_full_match(head, _LOOKS_LIKE_EXIF),
        resize_upright,
        lambda: _resize(decoded, size),
    )
    return tf.ensure_shape(resized, (*size, 3))


def _resize(image: tf.Tensor, size: tuple[int, int] | tf.Tensor) -> tf.Tensor:
    return tf.image.resize(image, size, method="bilinear", antialias=True)


def _resize_upright(image: tf.Tensor, orientation: tf.Tensor, size: tuple[int, int]) -> tf.Tensor:
    """float32 (height, width, channels) as a viewer shows it; `size` is what it will be."""
    height, width = size
    is_transposed = orientation >= 5
    upright = _resize(image, tf.where(is_transposed, (width, height), (height, width)))
    upright = tf.cond(is_transposed, lambda: tf.transpose(upright, (1, 0, 2)), lambda: upright)
    is_upside_down = (orientation - 1) // 2 % 2 == 1
    is_mirrored = orientation // 2 % 2 == 1
    for axis, (count, is_turned) in enumerate(
        zip(size, (is_upside_down, is_mirrored), strict=True)
    ):
        along = tf.range(count)
        upright = tf.gather(upright, tf.where(is_turned, along[::-1], along), axis=axis)
    return upright


def _read_png_size(data: tf.Tensor) -> tf.Tensor:
    """int64 (2,): height and width."""
    field = _read_bytes(data, 16, 8)
    # Each is below 2^32 and the product below 2^64; the spec forbids sides of 2^31 and more.
    width, height = _join(field[:4]), _join(field[4:])
    limit = tf.constant(2**31 - 1, tf.int64)
    return tf.stack([tf.minimum(height, limit), tf.minimum(width, limit)])


def _read_bytes(data: tf.Tensor, at: tf.Tensor | int, count: int) -> tf.Tensor:
    """int64 (count,); zeros beyond the end."""
    end = tf.cast(tf.strings.length(data), tf.int64)
    part = tf.strings.substr(data, tf.minimum(tf.cast(at, tf.int64), end), count)
    padded = tf.strings.join([part, tf.constant(bytes(count))])
    digits = tf.io.decode_raw(tf.strings.substr(padded, 0, count), tf.uint8)
    return tf.cast(tf.reshape(digits, (count,)), tf.int64)


def _join(digits: tf.Tensor, is_little: tf.Tensor | bool = False) -> tf.Tensor:
    """int64 (...) of bytes (..., size)."""
    powers = [256**place for place in range(digits.shape[-1])]
    backwards = tf.constant(powers[::-1], tf.int64)
    return tf.reduce_sum(digits * tf.where(is_little, tf.constant(powers, tf.int64), backwards), -1)


def _read_orientation(head: tf.Tensor, is_png: tf.Tensor) -> tf.Tensor:
    """int64, 1 to 8, of the head of a file."""
    return _read_tiff(tf.cond(is_png, lambda: _find_in_png(head), lambda: _find_in_jpeg(head)))


def _find_in_jpeg(data: tf.Tensor) -> tf.Tensor:
    """The EXIF of a JPEG file, a scalar string; empty where there is none."""
    magic = tf.constant(list(EXIF_MAGIC), tf.int64)

    def look(at: tf.Tensor, _: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        head = _read_bytes(data, at, 10)
        marker, length = head[1], _join(head[2:4])
        is_fill = tf.logical_and(head[0] == 0xFF, marker == 0xFF)
        is_app = tf.logical_or(tf.bitwise.bitwise_and(marker, 0xF0) == 0xE0, marker == 0xFE)
        is_app = tf.logical_and(head[0] == 0xFF, is_app)
        found = tf.reduce_all(head[4:] == magic)
        found = tf.logical_and(tf.logical_and(is_app, marker == 0xE1), found)
        following = tf.where(is_fill, at + 1, at + 2 + tf.maximum(length, 2))
        goes_on = tf.where(tf.logical_or(is_app, is_fill), tf.constant(_SEARCHING, tf.int64), 0)
        return (
            tf.where(found, at + 10, following),
            tf.where(found, tf.maximum(length - 8, 0), goes_on),
        )

    return _search(data, 2, look)


def _find_in_png(data: tf.Tensor) -> tf.Tensor:
    """The EXIF of a PNG file, a scalar string; empty where there is none."""
    end = tf.cast(tf.strings.length(data), tf.int64)

    def look(at: tf.Tensor, _: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        head = _read_bytes(data, at, 8)
        length, kind = _join(head[:4]), _join(head[4:])
        found = kind == int.from_bytes(b"eXIf", "big")
        is_over = tf.logical_or(at + 8 > end, kind == int.from_bytes(b"IDAT", "big"))
        goes_on = tf.where(is_over, tf.constant(0, tf.int64), _SEARCHING)
        return (
            tf.where(found, at + 8, at + 12 + length),
            tf.where(found, tf.minimum(length, MAX_EXIF_BYTES), goes_on),
        )

    return _search(data, len(PNG_MAGIC), look)


def _search(
    data: tf.Tensor,
    start: int,
    look: Callable[[tf.Tensor, tf.Tensor], tuple[tf.Tensor, tf.Tensor]],
) -> tf.Tensor:
    """The part of `data` where, and as long as, `look` says once it no longer searches."""
    at, size = tf.while_loop(
        lambda _, size: size == _SEARCHING,
        look,
        (tf.constant(start, tf.int64), tf.constant(_SEARCHING, tf.int64)),
        maximum_iterations=MAX_SEGMENTS,
    )
    end = tf.cast(tf.strings.length(data), tf.int64)
    return tf.strings.substr(data, tf.minimum(at, end), tf.maximum(size, 0))


def _read_tiff(exif: tf.Tensor) -> tf.Tensor:
    """int64, 1 to 8: the orientation."""
    skipped = len(EXIF_MAGIC) * tf.cast(
        tf.strings.substr(exif, 0, len(EXIF_MAGIC)) == EXIF_MAGIC, tf.int32
    )
    tiff = tf.strings.substr(exif, skipped, MAX_EXIF_BYTES)
    order = tf.strings.substr(tiff, 0, 4)
    is_little = order == b"II*\0"
    is_tiff = tf.logical_or(is_little, order == b"MM\0*")
    first = _join(_read_bytes(tiff, 4, 4), is_little)
    count = _join(_read_bytes(tiff, first, 2), is_little)
    end = tf.cast(tf.strings.length(tiff), tf.int64)
    table = tf.strings.substr(tiff, tf.minimum(first + 2, end), 12 * count)
    field = tf.cast(tf.io.decode_raw(table, tf.uint8), tf.int64)
    entries = tf.reshape(field[: tf.size(field) // 12 * 12], (-1, 12))
    entries = tf.concat([entries, tf.zeros((1, 12), tf.int64)], axis=0)  # never none
    kind = _join(entries[:, 2:4], is_little)
    is_short = kind == SHORT
    is_orientation = (
        (_join(entries[:, :2], is_little) == ORIENTATION_TAG)
        & (is_short | (kind == LONG))
        & (_join(entries[:, 4:8], is_little) == 1)
    )
    values = tf.where(
        is_short, _join(entries[:, 8:10], is_little), _join(entries[:, 8:12], is_little)
    )
    value = values[tf.argmax(tf.cast(is_orientation, tf.int32))]
    is_known = is_tiff & tf.reduce_any(is_orientation) & (value >= 1) & (value <= 8)
    return tf.where(is_known, value, 1)
