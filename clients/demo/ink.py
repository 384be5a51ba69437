"""What drawn pictures of a version look like, so that a drawing on the page can look the same.

Digits are cut out, scaled and centred before anybody learns from them, each collection in its own
way: MNIST's fit 20 × 20 and are centred by their mass, scikit-learn's are as high as the picture,
three times as thick, and blurred. A model knows its own collection alone. So nothing of that is
written down here: it is measured in the version's golden examples.
"""

from __future__ import annotations

import msgspec
import numpy as np
from numpy.typing import NDArray

from contract.signature import Array

MAX_SIDE = 64
"""Pixels; larger pictures are photographs, and are dropped on the page rather than drawn."""

_MAX_ROWS = 256
_FULL_SHARE = 0.95
"""Of rows that are as high as the picture, from which on all are meant to be."""


class Ink(msgspec.Struct, frozen=True, kw_only=True):
    """How ink lies in a picture; lengths in pixels of it.

    Attributes:
        is_dark: Dark ink on a light ground.
        height: Of the box that ink fits into.
        width: Likewise.
        is_stretched: Ink is always as high as the box; what is too wide then is made narrower.
            Else its shape is kept.
        by_mass: The centre is that of the ink's mass; else that of its box.
        center: (y, x) of where the centre comes to lie; 0 is the upper left corner of the picture.
        stroke: Thickness of a line.
        blur: Over how many pixels its edge goes from light to dark, were it a ramp.
    """

    is_dark: bool
    height: float
    width: float
    is_stretched: bool
    by_mass: bool
    center: tuple[float, float]
    stroke: float
    blur: float


def measure_ink(pictures: Array) -> Ink | None:
    """Measures uint8 pictures of one channel, (rows, height, width).

    Returns:
        None where they are too large to be drawn, or hold nothing that stands out.
    """
    if max(pictures.shape[1:]) > MAX_SIDE:
        return None
    ink = pictures[:_MAX_ROWS].astype(np.float64) / 255
    borders = np.concatenate([ink[:, 0], ink[:, -1], ink[:, :, 0], ink[:, :, -1]], axis=1)
    is_dark = bool(np.median(borders) > 0.5)
    if is_dark:
        ink = 1 - ink
    ink = ink[ink.max(axis=(1, 2)) > 0.5]
    if not len(ink):
        return None
    top, bottom = _find_extent(ink, axis=2)
    left, right = _find_extent(ink, axis=1)
    heights, widths = bottom - top, right - left
    boxes = np.stack([top + bottom, left + right], axis=1) / 2
    masses = _find_masses(ink)
    is_stretched = bool(np.mean(heights == heights.max()) >= _FULL_SHARE)
    by_mass = bool(masses.std(axis=0).sum() < boxes.std(axis=0).sum())
    center = np.median(masses if by_mass else boxes, axis=0)
    inner = _find_slopes(ink)
    # Ink that touches the border of a picture ends there.
    outlines = _find_slopes(np.pad(ink, ((0, 0), (1, 1), (1, 1)))).sum(axis=(1, 2))
    return Ink(
        is_dark=is_dark,
        height=float(np.percentile(heights, 95)),
        width=float(np.percentile(widths, 95)),
        is_stretched=is_stretched,
        by_mass=by_mass,
        center=(float(center[0]), float(center[1])),
        # A line rises and falls once across: its mass is length times thickness, and the slopes
        # along it sum up to twice its length, whatever the blur.
        stroke=float(np.median(2 * ink.sum(axis=(1, 2)) / outlines)),
        blur=float(np.median(inner.sum(axis=(1, 2)) / np.square(inner).sum(axis=(1, 2)))),
    )


def _find_extent(ink: NDArray[np.float64], axis: int) -> tuple[Array, Array]:
    """First and last edge of what is at least half ink, across an axis of (rows, height, width)."""
    is_ink: NDArray[np.bool_] = np.asarray((ink >= 0.5).any(axis=axis))
    return is_ink.argmax(axis=1), is_ink.shape[1] - is_ink[:, ::-1].argmax(axis=1)


def _find_slopes(ink: NDArray[np.float64]) -> NDArray[np.float64]:
    """How steeply ink rises or falls at each pixel, (rows, height - 1, width - 1)."""
    slopes: NDArray[np.float64] = np.hypot(
        np.diff(ink, axis=1)[:, :, 1:], np.diff(ink, axis=2)[:, 1:, :]
    )
    return slopes


def _find_masses(ink: NDArray[np.float64]) -> NDArray[np.float64]:
    """Centres of mass, (rows, 2): y and x."""
    total = ink.sum(axis=(1, 2))
    places = [np.arange(size) + 0.5 for size in ink.shape[1:]]
    along = [ink.sum(axis=2) @ places[0], ink.sum(axis=1) @ places[1]]
    masses: NDArray[np.float64] = np.stack(along, axis=1) / total[:, np.newaxis]
    return masses
