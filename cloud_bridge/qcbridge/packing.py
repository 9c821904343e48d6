"""What an agent is shown of a part: one picture, packed for what its tokens cost.

Pure: bytes in, bytes out. What leaves is a fresh JPEG with none of the camera's metadata
and with everything hidden that is to be hidden. However many panels it has, it costs no
more than the square of the side it is allowed, by the provider's own formula.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final

import cv2
import numpy as np

from qcbridge.evidence import SIDE_MIN_PX, cheapest_size
from qcbridge.redact import NOTHING_HIDDEN, Redaction, hide_areas, hide_codes
from qcnode.domain import Box
from qcnode.evidence import find_box
from qcnode.picture import decode_picture, encode_jpeg

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from qcbridge.evidence import ImageTokens

JPEG_QUALITY: Final = 85
GUTTER_PX: Final = 4
WHITE: Final = 255
ASPECT_DIFFERENCE_MAX: Final = 0.01
"""A golden picture of another shape is of another view, and no reference."""


class Packing(StrEnum):
    """How a part is shown."""

    FRAME = "frame"
    """The whole frame as the camera gave it: what a naive prompt sends."""
    CROP = "crop"
    CROP_GOLDEN = "crop+golden"
    """The crop, the same crop of a good part, and the heat map there, where there are any."""


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
    panels: tuple[str, ...] = ("part",)
    """What is to be seen, from left to right or from top to bottom."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Views:
    """A part as it can be shown: its frame, a good one, its heat, and what is hidden of them."""

    pixels: NDArray[np.uint8]
    golden: NDArray[np.uint8] | None
    heat: NDArray[np.uint8] | None
    redaction: Redaction

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the frame."""
        height, width = self.pixels.shape[:2]
        return width, height

    def evidence(self, box: Box | None) -> Box:
        """Return where to look: `box`, or around the heat's peak, or everywhere."""
        width, height = self.size
        if box is None and self.heat is not None:
            box = find_box(self.heat, width=width, height=height)
        whole = Box(left=0, top=0, width=width, height=height)
        return whole if box is None else within(box, width, height)

    def part(self, box: Box) -> NDArray[np.uint8]:
        """Return the part there."""
        return hide_codes(_cut(self.pixels, box), self.redaction)

    def good(self, box: Box) -> NDArray[np.uint8] | None:
        """Return the same place of a good part, if there is one of this view."""
        if self.golden is None:
            return None
        cut = _cut(self.golden, _scaled(box, self.size, self.golden.shape))
        return hide_codes(cut, self.redaction)

    def hot(self, box: Box) -> NDArray[np.uint8] | None:
        """Return the heat there, in colours, if there is any."""
        if self.heat is None:
            return None
        cut = _cut(self.heat, _scaled(box, self.size, self.heat.shape))
        return np.asarray(cv2.applyColorMap(cut, cv2.COLORMAP_INFERNO)[:, :, ::-1], np.uint8)


def open_views(
    picture: bytes,
    heat: bytes | None,
    *,
    golden: bytes | None = None,
    redaction: Redaction = NOTHING_HIDDEN,
) -> Views:
    """Unpack what there is of a part, with its areas hidden. Raises `PictureError`."""
    pixels = decode_picture(picture, name="the picture for the agent")
    reference = None
    if golden is not None:
        reference = decode_picture(golden, name="the golden picture for the agent")
        if abs(_aspect(reference) / _aspect(pixels) - 1) > ASPECT_DIFFERENCE_MAX:
            reference = None
    grey = None
    if heat is not None:
        grey = decode_picture(heat, name="the heat map for the agent")[:, :, 0]
    return Views(
        pixels=hide_areas(pixels, redaction),
        golden=None if reference is None else hide_areas(reference, redaction),
        heat=grey,
        redaction=redaction,
    )


def pack(
    views: Views, box: Box | None, packing: Packing, *, side_max_px: int, count: ImageTokens
) -> Shown:
    """Show a part at `box`, or where its evidence is, in one picture."""
    if packing is Packing.FRAME:
        width, height = views.size
        everything = Box(left=0, top=0, width=width, height=height)
        return _shown(views.part(everything), views, everything, ("part",))
    box = views.evidence(box)
    return beside(views, box, panels(views, box, packing), side_max_px=side_max_px, count=count)


def panels(views: Views, box: Box, packing: Packing) -> list[tuple[str, NDArray[np.uint8]]]:
    """Return what is to be seen at a place, by name."""
    seen = [("part", views.part(box))]
    if packing is Packing.CROP_GOLDEN:
        beside_it = (("golden", views.good(box)), ("heat", views.hot(box)))
        seen += [(name, pixels) for name, pixels in beside_it if pixels is not None]
    return seen


def beside(
    views: Views,
    box: Box,
    seen: Sequence[tuple[str, NDArray[np.uint8]]],
    *,
    side_max_px: int,
    count: ImageTokens,
) -> Shown:
    """Show panels of one place next to each other, as large as the tokens of a square allow."""
    most = count(side_max_px, side_max_px)
    while True:
        layout = _layout(box.width, box.height, len(seen), side_max_px, count)
        if layout.tokens <= most or len(seen) == 1:
            break
        seen = seen[:-1]  # Rather one panel less than one nobody can read or pay.
    scaled = [_fitted(pixels, layout.width, layout.height) for _, pixels in seen]
    whole = _joined(scaled, in_row=layout.in_row)
    return _shown(whole, views, box, tuple(name for name, _ in seen))


def sheet(crops: Sequence[NDArray[np.uint8]], *, side_max_px: int) -> NDArray[np.uint8]:
    """Lay several parts on one picture, each as large as it would be shown alone."""
    columns = math.ceil(math.sqrt(len(crops)))
    sizes = [(crop.shape[1], crop.shape[0]) for crop in crops]
    cells = [
        _resized(crop, *_shrunk(*size, min(max(size), side_max_px)))
        for crop, size in zip(crops, sizes, strict=True)
    ]
    width = max(cell.shape[1] for cell in cells)
    height = max(cell.shape[0] for cell in cells)
    rows = []
    for first in range(0, len(cells), columns):
        row = [_padded(cell, width, height) for cell in cells[first : first + columns]]
        blank = np.full((height, width, 3), WHITE, np.uint8)
        row += [blank] * (columns - len(row) if first else 0)
        rows.append(_joined(row, in_row=True))
    return _joined(rows, in_row=False)


def within(box: Box, width: int, height: int) -> Box:
    """Return what of `box` lies in a picture of this size, and at least a pixel of it."""
    left, top = min(max(box.left, 0), width - 1), min(max(box.top, 0), height - 1)
    return Box(
        left=left,
        top=top,
        width=max(1, min(box.left + box.width, width) - left),
        height=max(1, min(box.top + box.height, height) - top),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Layout:
    """The size of each panel, whether they stand in a row, and the tokens of all."""

    width: int
    height: int
    in_row: bool
    tokens: int


def _layout(width: int, height: int, panels: int, side_max_px: int, count: ImageTokens) -> _Layout:
    """Return the largest panels that together cost no more than a square."""
    gutters = GUTTER_PX * (panels - 1)
    most = count(side_max_px, side_max_px)

    def in_row(across: int, down: int) -> int:
        return count(across * panels + gutters, down)

    def in_column(across: int, down: int) -> int:
        return count(across, down * panels + gutters)

    def cost(across: int, down: int) -> int:
        return min(in_row(across, down), in_column(across, down))

    for longest in range(min(max(width, height), side_max_px), 0, -1):
        size = _shrunk(width, height, longest)
        if cost(*size) <= most or size == (SIDE_MIN_PX, SIDE_MIN_PX):
            break
    across, down = cheapest_size(*size, cost)
    return _Layout(
        width=across,
        height=down,
        in_row=in_row(across, down) <= in_column(across, down),
        tokens=cost(across, down),
    )


def _shrunk(width: int, height: int, longest: int) -> tuple[int, int]:
    """Return the size with this longest side, and no side too small to be taken."""
    shrink = longest / max(width, height)
    return max(SIDE_MIN_PX, round(width * shrink)), max(SIDE_MIN_PX, round(height * shrink))


def _shown(pixels: NDArray[np.uint8], views: Views, box: Box, panels: tuple[str, ...]) -> Shown:
    jpeg = encode_jpeg(np.ascontiguousarray(pixels), quality=JPEG_QUALITY)
    width, height = views.size
    return Shown(
        jpeg=jpeg,
        width=pixels.shape[1],
        height=pixels.shape[0],
        sha256=hashlib.sha256(jpeg).hexdigest(),
        box=box,
        picture_width=width,
        picture_height=height,
        panels=panels,
    )


def _cut(pixels: NDArray[np.uint8], box: Box) -> NDArray[np.uint8]:
    return pixels[box.top : box.top + box.height, box.left : box.left + box.width]


def _scaled(box: Box, size: tuple[int, int], shape: tuple[int, ...]) -> Box:
    """Return the same place in a picture of another size."""
    across, down = shape[1] / size[0], shape[0] / size[1]
    scaled = Box(
        left=round(box.left * across),
        top=round(box.top * down),
        width=max(1, round(box.width * across)),
        height=max(1, round(box.height * down)),
    )
    return within(scaled, shape[1], shape[0])


def _aspect(pixels: NDArray[np.uint8]) -> float:
    return float(pixels.shape[1] / pixels.shape[0])


def _resized(pixels: NDArray[np.uint8], width: int, height: int) -> NDArray[np.uint8]:
    if pixels.shape[:2] == (height, width):
        return pixels
    small = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)
    return small.astype(np.uint8, copy=False)


def _fitted(pixels: NDArray[np.uint8], width: int, height: int) -> NDArray[np.uint8]:
    """Return pixels at this size, on white where their shape is another."""
    tall, wide = pixels.shape[:2]
    if abs(wide * height - tall * width) <= max(wide, tall, width, height):
        return _resized(pixels, width, height)
    shrink = min(width / wide, height / tall)
    size = max(1, round(wide * shrink)), max(1, round(tall * shrink))
    return _padded(_resized(pixels, *size), width, height)


def _padded(cell: NDArray[np.uint8], width: int, height: int) -> NDArray[np.uint8]:
    padded = np.full((height, width, 3), WHITE, np.uint8)
    padded[: cell.shape[0], : cell.shape[1]] = cell
    return padded


def _joined(panels: Sequence[NDArray[np.uint8]], *, in_row: bool) -> NDArray[np.uint8]:
    """Set panels of one size next to each other, with white between."""
    apart: list[NDArray[np.uint8]] = []
    for panel in panels:
        if apart:
            height, width = panel.shape[:2]
            gap = (height, GUTTER_PX, 3) if in_row else (GUTTER_PX, width, 3)
            apart.append(np.full(gap, WHITE, np.uint8))
        apart.append(panel)
    return np.concatenate(apart, axis=1 if in_row else 0)
