"""Pictures as the panel sends them: smaller, encoded once, bound to what was said of them.

Pure. One message carries the picture, its heat map and its header, so no screen can
show the map of one part on the picture of another.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from qcnode.errors import PictureError
from qcnode.evidence import find_box
from qcnode.picture import decode_picture, seen_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from qcnode.domain import Box, Frame, Limits, Prediction

LIVE_WIDTH_MAX = 960
LIVE_SIDE = 512
"""The shorter side of what is unpacked for that, at the least."""
LIVE_QUALITY = 82
REVIEW_QUALITY = 95
HEAT_SIDE_MAX = 256
_LENGTHS = struct.Struct("<II")
_JPEG_MAGIC = b"\xff\xd8\xff"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReviewPicture:
    """The picture of a waiting part as JPEG, and where on it the evidence is."""

    jpeg: bytes
    box: Box | None


def pack(
    header: dict[str, Any],
    *,
    pixels: NDArray[np.uint8] | None,
    prediction: Prediction | None,
    limits: Limits,
) -> bytes:
    """Return u32 header length, u32 heat length, header, heat (rows x columns), JPEG.

    Both lengths are little-endian. A part without a picture or without heat has
    nothing in its place, and the header says so.
    """
    grey = None if prediction is None or pixels is None else grey_heat(prediction.heat, limits)
    jpeg = b"" if pixels is None else _live_jpeg(pixels)
    full = header | {
        "picture": bool(jpeg),
        "heat": None if grey is None else {"width": grey.shape[1], "height": grey.shape[0]},
    }
    head = json.dumps(full, ensure_ascii=False, allow_nan=False).encode()
    heat = b"" if grey is None else grey.tobytes()
    return _LENGTHS.pack(len(head), len(heat)) + head + heat + jpeg


def shown(frame: Frame) -> NDArray[np.uint8]:
    """Return a frame's pixels no coarser than the panel shows them live.

    The model may look less closely than people do.
    """
    return frame.pixels if frame.size is None else seen_of(frame, LIVE_SIDE)


def grey_heat(heat: NDArray[np.float32] | None, limits: Limits) -> NDArray[np.uint8] | None:
    """Draw heat in grey, full at the limit from which parts are rejected.

    So heat means the same on every part, live and on review. Without that limit the
    picture's own peak is full.
    """
    if heat is None or heat.size == 0:
        return None
    values = np.nan_to_num(heat.astype(np.float32), nan=0.0, posinf=0.0, neginf=0.0)
    full = limits.reject_from or float(values.max())
    if full <= 0:
        return np.zeros(values.shape, dtype=np.uint8)
    grey = np.clip(values * (255.0 / full), 0, 255).astype(np.uint8)
    return _within(grey, HEAT_SIDE_MAX)


def review_picture(encoded: bytes, heat_png: bytes | None, box: Box | None) -> ReviewPicture | None:
    """Prepare kept evidence for the browser; None when it cannot be read any more.

    A JPEG is passed on as it is. The box comes from the escalation, or from the heat
    map by the rule the agent's crop is made with.
    """
    try:
        pixels = decode_picture(encoded, name="kept picture")
        grey = None if heat_png is None else decode_picture(heat_png, name="kept heat")[:, :, 0]
    except PictureError:
        return None
    height, width = pixels.shape[:2]
    if box is None and grey is not None:
        box = find_box(grey, width=width, height=height)
    if encoded.startswith(_JPEG_MAGIC):
        return ReviewPicture(jpeg=encoded, box=box)
    return ReviewPicture(jpeg=_encode(pixels, REVIEW_QUALITY), box=box)


def _live_jpeg(pixels: NDArray[np.uint8]) -> bytes:
    height, width = pixels.shape[:2]
    if width > LIVE_WIDTH_MAX:
        size = (LIVE_WIDTH_MAX, max(1, round(height * LIVE_WIDTH_MAX / width)))
        small: NDArray[Any] = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    else:
        small = pixels
    return _encode(small, LIVE_QUALITY)


def _within(grey: NDArray[np.uint8], side_max: int) -> NDArray[np.uint8]:
    rows, columns = grey.shape
    shrink = side_max / max(rows, columns)
    if shrink >= 1:
        return grey
    size = (max(1, round(columns * shrink)), max(1, round(rows * shrink)))
    return np.asarray(cv2.resize(grey, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)


def _encode(pixels: NDArray[Any], quality: int) -> bytes:
    bgr = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)
    return bytes(cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])[1])
