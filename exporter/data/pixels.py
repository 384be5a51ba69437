"""How pixels become the numbers that a model takes: the one rule, for training and for graphs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import numpy as np
from numpy.typing import NDArray

from contract.signature import Array

if TYPE_CHECKING:
    import tensorflow as tf


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

        Divided, then stretched: a product with 1/255 rounds differently.
        """
        numbers: NDArray[np.float32] = pixels.astype(np.float32)
        if self.is_identity:
            return numbers
        numbers /= np.float32(255)
        if (self.low, self.high) != (0.0, 1.0):
            numbers *= np.float32(self.high - self.low)
            numbers += np.float32(self.low)
        return numbers

    def trace(self, pixels: tf.Tensor) -> tf.Tensor:
        """`apply` in a graph, to the same bits: uint8 or whole floats to float32."""
        import tensorflow as tf

        numbers = tf.cast(pixels, tf.float32)
        if self.is_identity:
            return numbers
        numbers = numbers / tf.constant(255.0)
        if (self.low, self.high) != (0.0, 1.0):
            numbers = numbers * tf.constant(self.high - self.low, tf.float32)
            numbers = numbers + tf.constant(self.low, tf.float32)
        return numbers


ZERO_TO_ONE = PixelScale()
