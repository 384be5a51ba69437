"""What lies where in a figure of matplotlib, as its renderer draws it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from matplotlib.transforms import Bbox


def find_texts(figure: Figure) -> list[tuple[str, Bbox]]:
    """What is written and where, as the renderer draws it."""
    from matplotlib.text import Text

    figure.draw_without_rendering()
    unseen = set()  # ticks beyond the limits, which are there but not drawn
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            unseen |= {
                tick.label1
                for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks())
                if not low <= tick.get_loc() <= high
            }
    return [
        (text.get_text(), Text.get_window_extent(text))
        for text in figure.findobj(Text)
        if isinstance(text, Text)
        and text not in unseen
        and text.get_visible()
        and text.get_text().strip()
    ]


def find_overlaps(figure: Figure) -> list[tuple[str, str]]:
    """Pairs of texts that lie on each other."""
    texts = find_texts(figure)
    boxes = np.array([box.padded(-1).extents for _, box in texts]).reshape(-1, 4)
    low, high = boxes[:, None, :2], boxes[:, None, 2:]
    meet = ((low < boxes[None, :, 2:]) & (high > boxes[None, :, :2])).all(axis=-1)
    return [(texts[one][0], texts[other][0]) for one, other in np.argwhere(np.triu(meet, k=1))]


def find_cut(figure: Figure) -> list[str]:
    """Texts that leave the picture."""
    room = figure.bbox.padded(1)
    return [
        text
        for text, box in find_texts(figure)
        if not (room.contains(*box.min) and room.contains(*box.max))
    ]
