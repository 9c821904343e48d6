"""What a picture says of camera and light, whatever the part: how bright, sharp, and where.

Pure. Four cheap figures of a picture, none of which needs the model: its mean brightness;
its focus, which is how much neighbouring pixels differ, as a share of the brightness, so
that a weaker lamp is no blur; a small grey copy, from which the part's place is told; and a
mark that two pictures only share when they are the same picture.
"""

from __future__ import annotations

import base64
import binascii
import math
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import cv2
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

SMALL_ROWS: Final = 64
SMALL_COLUMNS: Final = 64
_SIDE_PX: Final = 240
"""The shorter side of what is looked at: every so many pixels of a larger picture."""
_REACH: Final = 12
"""How far a part is looked for, in pixels of the small copy, to each side."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Look:
    """The four figures of one picture."""

    brightness: float
    focus: float
    small: NDArray[np.float32]
    mark: int


def look(pixels: NDArray[np.uint8]) -> Look:
    """Return the figures of a picture (RGB, uint8), in well under a millisecond."""
    height, width = pixels.shape[:2]
    step = max(1, min(height, width) // _SIDE_PX)
    # Skipping pixels, and not averaging them, leaves the fine differences that blur takes.
    fewer = cv2.resize(pixels, (width // step, height // step), interpolation=cv2.INTER_NEAREST)
    grey = cv2.cvtColor(fewer, cv2.COLOR_RGB2GRAY)
    brightness = float(cv2.mean(grey)[0])
    differences = cv2.norm(cv2.Laplacian(grey, cv2.CV_16S)) / math.sqrt(grey.size)
    small = cv2.resize(grey, (SMALL_COLUMNS, SMALL_ROWS), interpolation=cv2.INTER_AREA)
    return Look(
        brightness=brightness,
        focus=differences / (brightness + 1.0),
        small=small.astype(np.float32),
        mark=zlib.crc32(grey.tobytes()),
    )


class Outline:
    """What good parts have in common, as a small grey picture; places are told from it."""

    def __init__(self, grey: NDArray[np.uint8]) -> None:
        if grey.shape != (SMALL_ROWS, SMALL_COLUMNS):
            raise ValueError(f"an outline has {SMALL_ROWS}x{SMALL_COLUMNS} pixels: {grey.shape}")
        self._grey = grey
        self._middle = grey[_REACH:-_REACH, _REACH:-_REACH].astype(np.float32)

    @classmethod
    def of(cls, smalls: Sequence[NDArray[np.float32]]) -> Outline:
        """Return the mean of these pictures."""
        return cls(np.mean(smalls, axis=0).round().astype(np.uint8))

    @classmethod
    def decoded(cls, text: str) -> Outline:
        """Return what `encoded` wrote; raises `ValueError` for anything else."""
        try:
            grey = np.frombuffer(base64.b64decode(text, validate=True), np.uint8)
            return cls(grey.reshape(SMALL_ROWS, SMALL_COLUMNS))
        except (binascii.Error, ValueError) as error:
            raise ValueError(f"not an outline: {error}") from error

    def encoded(self) -> str:
        """Return it as text, for a manifest."""
        return base64.b64encode(self._grey.tobytes()).decode()

    def shift(self, small: NDArray[np.float32]) -> float:
        """Return how far the part lies from its usual place, as a share of the picture's side."""
        likeness = cv2.matchTemplate(small, self._middle, cv2.TM_CCOEFF_NORMED)
        _, _, _, (across, down) = cv2.minMaxLoc(likeness)
        return max(abs(across - _REACH) / SMALL_COLUMNS, abs(down - _REACH) / SMALL_ROWS)
