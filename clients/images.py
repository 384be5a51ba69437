"""PNG and JPEG files into the pixels that a model was trained on, by Pillow.

Light ink on a dark ground, as in MNIST; `invert` is for dark ink on paper. Pillow's
resizing and the one inside `serving_image_bytes` differ by a few grey levels: send the
bytes themselves (`--signature_name serving_image_bytes`) where that matters.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np

from contract.console.extras import import_extra
from contract.errors import DatasetError
from contract.signature import Array

if TYPE_CHECKING:
    import PIL.Image

MAX_PIXELS = 16_000_000
"""The largest image decoded, as inside the exported graph."""


def decode_image(content: bytes, shape: tuple[int, ...], *, invert: bool = False) -> Array:
    """uint8 pixels of `shape`: (height, width) or (height, width, channels 1 or 3).

    Raises:
        DatasetError: No PNG or JPEG, damaged, or larger than 16 megapixels.
        UnimplementedError: Pillow is not installed.
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
            pixels = _to_mode(image, "L" if channels == 1 else "RGB")
            if pixels.size != (width, height):
                pixels = pixels.resize((width, height), PIL.Image.Resampling.BILINEAR)
            array: Array = np.asarray(pixels, dtype=np.uint8).reshape(shape)
    except (OSError, SyntaxError, ValueError, PIL.Image.DecompressionBombError) as error:
        raise DatasetError(f"not a readable PNG or JPEG ({_first_line(error)})") from error
    return 255 - array if invert else array


def _to_mode(image: PIL.Image.Image, mode: str) -> PIL.Image.Image:
    if image.mode.startswith("I"):  # 16 bits: the high byte, as TensorFlow's decoder takes it
        import PIL.Image

        high = (np.asarray(image, dtype=np.uint32) >> 8).clip(0, 255).astype(np.uint8)
        image = PIL.Image.fromarray(high)
    return image.convert(mode)


def _first_line(error: Exception) -> str:
    text = str(error).partition("\n")[0].replace(" <_io.BytesIO object", "").strip()
    return text.partition(" at 0x")[0] or type(error).__name__
