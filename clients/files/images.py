"""A picture as the pixels that a model takes: for whoever sends arrays instead of files."""

from __future__ import annotations

import io

import numpy as np

from contract.console.extras import import_extra
from contract.errors import DatasetError
from contract.pictures import MAX_PIXELS, read_orientation, turn_upright
from contract.signature import Array


def decode_image(content: bytes, shape: tuple[int, ...], *, invert: bool = False) -> Array:
    """uint8 pixels of `shape`: (height, width) or (height, width, channels 1 or 3).

    The picture as a viewer shows it, by its EXIF orientation. Light ink on a dark ground, as in
    MNIST; `invert` is for dark ink on paper. Pillow's resizing and the one inside
    `serving_image_bytes` differ by a few grey levels: send the bytes themselves
    (`--signature_name serving_image_bytes`) where that matters.
    """
    import_extra("PIL.Image", "reading images")
    import PIL.Image

    height, width = shape[:2]
    channels = shape[2] if len(shape) == 3 else 1
    try:
        with PIL.Image.open(io.BytesIO(content), formats=("PNG", "JPEG")) as image:
            if image.width * image.height > MAX_PIXELS:
                raise DatasetError(
                    f"{image.width} × {image.height} pixels; at most {MAX_PIXELS:,} are decoded"
                )
            pixels: PIL.Image.Image = image
            if image.mode.startswith("I"):  # 16 bits: the high byte, as TensorFlow's decoder
                high = np.asarray(image, dtype=np.uint32) >> 8
                pixels = PIL.Image.fromarray(high.clip(0, 255).astype(np.uint8))
            pixels = pixels.convert("L" if channels == 1 else "RGB")
            pixels = turn_upright(pixels, read_orientation(content))
            if pixels.size != (width, height):
                pixels = pixels.resize((width, height), PIL.Image.Resampling.BILINEAR)
            array: Array = np.asarray(pixels, dtype=np.uint8).reshape(shape)
    except (OSError, SyntaxError, ValueError, PIL.Image.DecompressionBombError) as error:
        text = str(error).partition("\n")[0].replace(" <_io.BytesIO object", "").strip()
        reason = text.partition(" at 0x")[0] or type(error).__name__
        raise DatasetError(f"not a readable PNG or JPEG ({reason})") from error
    return 255 - array if invert else array
