"""Where on a picture the evidence is: the box that a reviewer is shown.

Pure. The box depends on the shape of the heat alone and not on its unit, so the map
as the model gave it and the same map drawn in grey have the same box, but for the
rounding to grey. The desk, the panel and the agent may rely on one answer.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from qcnode.domain import Box

if TYPE_CHECKING:
    from numpy.typing import NDArray

MAP_SIDE_MAX = 512
PEAK_SHARE = 0.5
"""How far between usual heat and the peak a place must be to belong to the evidence."""
MARGIN_SHARE = 0.25
"""How much of the evidence's own size is added on each side, to see it in its place."""
SIDE_MIN_PX = 64
SIDE_MIN_SHARE = 0.25
"""The least side of a box, of the picture's shorter side: a scratch without its part says little"""


def find_box(heat: NDArray[Any], *, width: int, height: int) -> Box | None:
    """Return the box around the peak of `heat`, in pixels of a picture of this size.

    `heat` covers the whole picture, at whatever resolution. A map without a peak (flat,
    empty, not finite) has no evidence to show, and the answer is None.
    """
    if heat.ndim != 2 or heat.size == 0 or width < 1 or height < 1:  # noqa: PLR2004  # rows, columns
        return None
    if not np.isfinite(heat).all():
        return None
    values, step = _pooled(heat)
    usual, peak = float(np.median(values)), float(values.max())
    if peak <= usual:
        return None
    left, top, right, bottom = _region_of_peak(values, usual + PEAK_SHARE * (peak - usual))
    rows, columns = heat.shape
    across, down = step * width / columns, step * height / rows
    x, box_width = _span(left * across, min(right * across, width), width, min(width, height))
    y, box_height = _span(top * down, min(bottom * down, height), height, min(width, height))
    return Box(left=x, top=y, width=box_width, height=box_height)


def _pooled(heat: NDArray[Any]) -> tuple[NDArray[np.float64], int]:
    """Return the hottest of each block of `step` x `step`: a box needs no finer map."""
    step = math.ceil(max(heat.shape) / MAP_SIDE_MAX)
    if step > 1:
        for axis in (0, 1):
            heat = np.maximum.reduceat(heat, np.arange(0, heat.shape[axis], step), axis=axis)
    return heat.astype(np.float64), step


def _region_of_peak(values: NDArray[np.float64], level: float) -> tuple[int, int, int, int]:
    """Return left, top, right, bottom (exclusive) of the connected heat around the peak."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats((values >= level).astype(np.uint8))
    # A map drawn in grey may be cut off at white, so several places can share the peak:
    # the largest of them is shown.
    candidates = np.unique(labels[values == values.max()])
    best = max(candidates, key=lambda label: stats[label, cv2.CC_STAT_AREA])
    left, top, width, height = (int(value) for value in stats[best, :4])
    return left, top, left + width, top + height


def _span(low: float, high: float, length: int, shorter: int) -> tuple[int, int]:
    """Widen low..high by margin and least side, and shift it into 0..length."""
    least = min(length, max(SIDE_MIN_PX, math.ceil(SIDE_MIN_SHARE * shorter)))
    size = min(length, max(least, math.ceil((high - low) * (1 + 2 * MARGIN_SHARE))))
    start = round((low + high) / 2 - size / 2)
    return min(max(start, 0), length - size), size
