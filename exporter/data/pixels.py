"""How pixels become the numbers that a model takes: the one rule, for training and for graphs."""

from __future__ import annotations

import msgspec
import numpy as np
from numpy.typing import NDArray

from contract.signature import Array


class PixelScale(msgspec.Struct, frozen=True):
    """The numbers that black and white stand for in a model's input.

    Attributes:
        low: What the pixel 0 becomes.
        high: What 255 becomes: (0, 1) by default; (-1, 1) for MobileNet, (0, 255) for EfficientNet,
            which scales by itself (https://keras.io/api/applications).
    """

    low: float = 0.0
    high: float = 1.0

    @property
    def is_identity(self) -> bool:
        """Pixels pass as they are, as floats."""
        return (self.low, self.high) == (0.0, 255.0)

    def apply(self, pixels: Array) -> NDArray[np.float32]:
        """uint8 of any shape as float32 of the same.

        Divided, then stretched, as the exported signatures do it (`artifacts/signatures.py`): a
        product with 1/255 rounds differently.
        """
        numbers: NDArray[np.float32] = pixels.astype(np.float32)
        if self.is_identity:
            return numbers
        numbers /= np.float32(255)
        if (self.low, self.high) != (0.0, 1.0):
            numbers *= np.float32(self.high - self.low)
            numbers += np.float32(self.low)
        return numbers


ZERO_TO_ONE = PixelScale()
