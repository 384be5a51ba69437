"""PNG and JPEG to pixels inside a graph, with the declared size checked before decoding.

A few kilobytes can declare gigapixels. `tf.io.decode_*` allocates what the header declares,
so the header is read first and everything over `MAX_PIXELS` is refused.
"""

from __future__ import annotations

import tensorflow as tf

MAX_PIXELS = 16 * 1024 * 1024
_PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
_JPEG_MAGIC = b"\xff\xd8\xff"
_PNG_HEADER_BYTES = 24
"""Magic (8), length and name of IHDR (8), width and height (4 + 4), big endian.
https://www.w3.org/TR/png-3/#11IHDR: IHDR is the first chunk of every PNG."""
_LUMA = (0.299, 0.587, 0.114)
"""ITU-R BT.601, as JPEG and Pillow's mode L use it. (`decode_png(channels=1)` swaps weights.)"""


def decode_images(image_bytes: tf.Tensor, image_shape: tuple[int, ...]) -> tf.Tensor:
    """Decodes, greyscales, resizes a batch of files to what a model was trained on.

    Args:
        image_bytes: string (batch,), a PNG or JPEG file each, of any size up to `MAX_PIXELS`.
        image_shape: (height, width, channels) of the data; channels is 1 or 3.

    Returns:
        float32 (batch, height, width, channels), whole numbers 0..255: a file of the data's
        own size gives exactly the pixels it holds. Transparency is dropped.

    Raises:
        tf.errors.InvalidArgumentError: When the graph runs, if one file is no PNG or JPEG, is
            damaged, or declares too many pixels. The whole batch fails with it.
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
    is_png = tf.strings.substr(data, 0, len(_PNG_MAGIC)) == _PNG_MAGIC
    is_jpeg = tf.strings.substr(data, 0, len(_JPEG_MAGIC)) == _JPEG_MAGIC
    long_enough = tf.strings.length(data) >= _PNG_HEADER_BYTES
    known = tf.debugging.Assert(
        tf.logical_and(tf.logical_or(is_png, is_jpeg), long_enough),
        ["image is neither a PNG nor a JPEG file; bytes:", tf.strings.length(data)],
    )
    with tf.control_dependencies([known]):
        data = tf.identity(data)
    shape = tf.cond(is_png, lambda: _read_png_size(data), lambda: _read_jpeg_size(data))
    with tf.control_dependencies([_refuse_large(shape)]):
        data = tf.identity(data)
    decoded = tf.cond(
        is_png,
        lambda: tf.io.decode_png(data, channels=3),
        lambda: tf.io.decode_jpeg(data, channels=3, dct_method="INTEGER_ACCURATE"),
    )
    decoded = tf.ensure_shape(decoded, (None, None, 3))
    # Resized before the greyscale: the uint8 image is the only large tensor there is.
    return tf.image.resize(decoded, size, method="bilinear", antialias=True)


def _refuse_large(shape: tf.Tensor) -> tf.Operation:
    num_pixels = shape[0] * shape[1]
    return tf.debugging.Assert(
        tf.logical_and(num_pixels > 0, num_pixels <= MAX_PIXELS),
        [f"image declares 0 or more than {MAX_PIXELS} pixels; (height, width):", shape],
    )


def _read_png_size(data: tf.Tensor) -> tf.Tensor:
    """int64 (2,): height and width."""
    field = tf.cast(tf.io.decode_raw(tf.strings.substr(data, 16, 8), tf.uint8), tf.int64)
    powers = tf.constant([2**24, 2**16, 2**8, 1], tf.int64)
    # Each is below 2^32 and the product below 2^64; the spec forbids sides of 2^31 and more.
    width, height = tf.reduce_sum(field[:4] * powers), tf.reduce_sum(field[4:] * powers)
    limit = tf.constant(2**31 - 1, tf.int64)
    return tf.stack([tf.minimum(height, limit), tf.minimum(width, limit)])


def _read_jpeg_size(data: tf.Tensor) -> tf.Tensor:
    """int64 (2,): height and width."""
    return tf.image.extract_jpeg_shape(data, output_type=tf.int64)[:2]
