"""What the agent is shown of a part, and its tokens before it is sent.

Pure: bytes in, bytes out. What leaves is a fresh JPEG of the crop around the
evidence, with none of the camera's metadata, no larger than asked. The counts of
tokens here size a reservation and the savings; only the provider's own count settles.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import cv2
import numpy as np

from qcnode.domain import Box
from qcnode.evidence import find_box
from qcnode.picture import decode_picture, encode_jpeg

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

JPEG_QUALITY = 85
SIDE_MIN_PX = 28
"""The least side of a picture that is shown: one patch, below which providers refuse."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """The picture a reviewer gets, and what it was cut from."""

    jpeg: bytes
    width: int
    height: int
    sha256: str
    box: Box
    """Where the crop was taken, in pixels of the whole picture."""
    picture_width: int
    picture_height: int


def show(picture: bytes, heat: bytes | None, box: Box | None, *, side_max_px: int) -> Shown:
    """Cut the evidence out of `picture` and shrink it until no side exceeds `side_max_px`.

    `box` is where the evidence was found already; without one it is looked for in
    `heat`, and where there is none the whole picture is shown. Raises `PictureError`.
    """
    pixels = decode_picture(picture, name="the picture for the agent")
    height, width = pixels.shape[:2]
    if box is None and heat is not None:
        grey = decode_picture(heat, name="the heat map for the agent")[:, :, 0]
        box = find_box(grey, width=width, height=height)
    box = Box(left=0, top=0, width=width, height=height) if box is None else box
    box = _within(box, width, height)
    crop = pixels[box.top : box.top + box.height, box.left : box.left + box.width]
    shrink = min(1.0, side_max_px / max(box.width, box.height))
    shown_width = max(SIDE_MIN_PX, round(box.width * shrink))
    shown_height = max(SIDE_MIN_PX, round(box.height * shrink))
    if (shown_width, shown_height) != (box.width, box.height):
        small = cv2.resize(crop, (shown_width, shown_height), interpolation=cv2.INTER_AREA)
        crop = small.astype(np.uint8, copy=False)
    jpeg = encode_jpeg(np.ascontiguousarray(crop), quality=JPEG_QUALITY)
    return Shown(
        jpeg=jpeg,
        width=shown_width,
        height=shown_height,
        sha256=hashlib.sha256(jpeg).hexdigest(),
        box=box,
        picture_width=width,
        picture_height=height,
    )


def _within(box: Box, width: int, height: int) -> Box:
    left, top = min(max(box.left, 0), width - 1), min(max(box.top, 0), height - 1)
    return Box(
        left=left,
        top=top,
        width=max(1, min(box.left + box.width, width) - left),
        height=max(1, min(box.top + box.height, height) - top),
    )


def _patches(side_px: int) -> Callable[[int, int], int]:
    return lambda width, height: math.ceil(width / side_px) * math.ceil(height / side_px)


IMAGE_TOKENS: Mapping[str, Callable[[int, int], int]] = {
    "patch28": _patches(28),  # Anthropic; Qwen2-VL and Qwen2.5-VL
    "patch32": _patches(32),  # OpenAI's patch models before their multiplier; Qwen3-VL
}


def image_tokens(width: int, height: int, *, formula: str) -> int:
    """Return the tokens of a picture by a provider's published formula."""
    return IMAGE_TOKENS[formula](width, height)
