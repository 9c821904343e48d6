"""What is hidden of a picture before anything of it leaves.

Pure. Areas are set once for a station's fixed camera, as shares of the frame, so that they
hold at any resolution: screens, labels, places where people stand. Beyond those, QR codes
and bar codes are found and hidden where OpenCV can read their corners. Nothing here finds
faces or printed words: whoever may come into view needs an area. Metadata need no hiding,
because what leaves is a JPEG written anew from pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import cv2
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

GREY: Final = 128
CODE_MARGIN: Final = 0.1
"""What is hidden around a code, of its size: its corners are found to some pixels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Redaction:
    """What to hide. `areas` are left, top, width and height, each a share of the frame."""

    areas: tuple[tuple[float, float, float, float], ...] = ()
    codes: bool = False

    def __post_init__(self) -> None:
        for area in self.areas:
            left, top, width, height = area
            inside = 0 <= left < 1 and 0 <= top < 1 and 0 < width <= 1 and 0 < height <= 1
            if not inside or left + width > 1 or top + height > 1:
                raise ValueError(
                    f"{list(area)} is no area: left, top, width and height are shares of the"
                    " frame, from 0 to 1, and end within it"
                )


NOTHING_HIDDEN: Final = Redaction()


def hide_areas(pixels: NDArray[np.uint8], redaction: Redaction) -> NDArray[np.uint8]:
    """Return a whole frame with its areas in grey, to the last pixel they touch."""
    if not redaction.areas:
        return pixels
    hidden = pixels.copy()
    height, width = pixels.shape[:2]
    for left, top, across, down in redaction.areas:
        rows = slice(math.floor(top * height), math.ceil((top + down) * height))
        columns = slice(math.floor(left * width), math.ceil((left + across) * width))
        hidden[rows, columns] = GREY
    return hidden


def hide_codes(pixels: NDArray[np.uint8], redaction: Redaction) -> NDArray[np.uint8]:
    """Return a part of a frame with the codes that are found on it in grey."""
    if not redaction.codes:
        return pixels
    hidden = pixels
    height, width = pixels.shape[:2]
    for corners in _codes(pixels):
        if hidden is pixels:
            hidden = pixels.copy()
        low, high = corners.min(axis=0), corners.max(axis=0)
        margin = CODE_MARGIN * (high - low)
        left, top = np.floor(np.clip(low - margin, 0, (width, height))).astype(int)
        right, bottom = np.ceil(np.clip(high + margin, 0, (width, height))).astype(int)
        hidden[top:bottom, left:right] = GREY
    return hidden


def _codes(pixels: NDArray[np.uint8]) -> Iterator[NDArray[np.float64]]:
    grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    for detector in (cv2.QRCodeDetector(), cv2.barcode.BarcodeDetector()):
        found, corners = detector.detectMulti(grey)
        if found and corners is not None:
            codes = corners.reshape(-1, 4, 2).astype(np.float64)
            yield from (code for code in codes if np.isfinite(code).all())
