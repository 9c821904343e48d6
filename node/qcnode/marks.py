"""Whether something is written on a part, or stuck to it, that good parts do not have.

Pure. A model that reads can be told things by what it looks at, so it must not have the last
word about a part that bears words of its own. Nothing is read here: what counts is fine light
or dark strokes where no good part has any, at each size from the finest the picture holds.
Cracks and scratches are strokes too, and may count: a "yes" too many costs a person a look.
"""

from __future__ import annotations

import base64
import binascii
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import cv2
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from numpy.typing import NDArray

    Picture = NDArray[np.uint8]
    Strokes = NDArray[np.uint8]

PICTURES_MIN: Final = 10
"""Fewer good parts do not show what all of them bear."""
PICTURES_MAX: Final = 40
"""More show little that is new, and large pictures take their time."""
ROWS: Final = 60
COLUMNS: Final = 80
_SIDES_PX: Final = (1920, 960, 480, 240, 120)
"""Shorter sides at which strokes are looked for; a stroke is up to four pixels wide there."""
_REFERENCE_PX: Final = (160, 120)
_STROKE_PX: Final = 5
_CELLS_MIN: Final = 4
"""So many cells must have more strokes than on any good part: fewer are noise."""
_SLACK: Final = 2
"""Steps of 1/255 above the noise of the parts learnt from: others have a little more."""
_FULL: Final = 1.0
"""Strokes of this strength, as a share of the brightness, are drawn as 255."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Usual:
    """What good parts bear at one size: the most strokes of each cell, and what is still noise."""

    side_px: int
    most: Strokes
    limit: int


class Marks:
    """What good parts of one product bear, by their pictures, all of one size."""

    def __init__(self, reference: Picture, usual: Sequence[Usual]) -> None:
        self.reference = reference
        self.usual = tuple(usual)

    @classmethod
    def of(cls, pictures: Iterable[Picture]) -> Marks | None:
        """Learn it from good parts; None where there are too few or their sizes differ.

        One picture at a time is held: those of some cameras are large.
        """
        reference: Picture | None = None
        shapes: set[tuple[int, ...]] = set()
        found: defaultdict[int, list[Strokes]] = defaultdict(list)
        for pixels in pictures:
            shapes.add(pixels.shape)
            if len(shapes) > 1:
                return None
            reference = _small(pixels) if reference is None else reference
            for side, strokes in _looked_at(pixels, reference):
                found[side].append(strokes)
        if reference is None or len(next(iter(found.values()))) < PICTURES_MIN:
            return None
        return cls(reference, [_learnt(side, strokes) for side, strokes in found.items()])

    def foreign(self, pixels: Picture) -> bool:
        """Say whether this picture (RGB) shows strokes that good parts do not have."""
        usual = {one.side_px: one for one in self.usual}
        for side, strokes in _looked_at(pixels, self.reference):
            # At a size that was not taught nobody knows what is usual.
            if side not in usual or _excess(strokes, usual[side].most) > usual[side].limit:
                return True
        return False

    def encoded(self) -> tuple[str, tuple[tuple[int, int, str], ...]]:
        """Return it as text, for a manifest."""
        rows = tuple((one.side_px, one.limit, _text(one.most)) for one in self.usual)
        return _text(self.reference), rows

    @classmethod
    def decoded(cls, reference: str, usual: Sequence[tuple[int, int, str]]) -> Marks:
        """Return what `encoded` wrote; raises `ValueError` for anything else."""
        return cls(
            _array(reference, _REFERENCE_PX[::-1]),
            [
                Usual(side_px=side, limit=limit, most=_array(text, (2, ROWS, COLUMNS)))
                for side, limit, text in usual
            ],
        )


def _learnt(side_px: int, strokes: Sequence[Strokes]) -> Usual:
    """Take the most of all, and as noise what one of them has beyond all others at most."""
    wide = np.stack([_widened(one) for one in strokes])
    order = np.sort(wide, axis=0)
    most, second = order[-1], order[-2]
    limit = 0
    for one, own in zip(strokes, wide, strict=True):
        limit = max(limit, _excess(one, np.where(own == most, second, most)))
    return Usual(side_px=side_px, most=most, limit=min(limit + _SLACK, 255))


def _looked_at(pixels: Picture, reference: Picture) -> Iterator[tuple[int, Strokes]]:
    """Lay a picture on the reference and yield its strokes at each size, the finest first."""
    shorter = min(pixels.shape[:2])
    sides = [side for side in _SIDES_PX if side <= shorter] or [_SIDES_PX[-1]]
    sheet = _laid_on(_scaled(pixels, sides[0]), reference)
    for side in sides:
        sheet = _scaled(sheet, side)
        yield side, _strokes(sheet)


def _scaled(pixels: Picture, side_px: int) -> Picture:
    """Shrink a picture until its shorter side has so many pixels; a smaller one stays."""
    height, width = pixels.shape[:2]
    scale = side_px / min(height, width)
    if scale >= 1:
        return pixels
    size = (round(width * scale), round(height * scale))
    return cv2.resize(pixels, size, interpolation=cv2.INTER_AREA).astype(np.uint8, copy=False)


def _strokes(small: Picture) -> Strokes:
    """Return how much light and how much dark is in fine strokes, for each cell of the picture."""
    brightness = float(sum(cv2.mean(small)[:3])) / 3 + 1.0
    window = np.ones((_STROKE_PX, _STROKE_PX), np.uint8)
    found = []
    for way in (cv2.MORPH_TOPHAT, cv2.MORPH_BLACKHAT):
        # The strongest colour: red words on grey metal may be as bright as the metal.
        red, green, blue = cv2.split(cv2.morphologyEx(small, way, window))
        fine = cv2.max(cv2.max(red, green), blue).astype(np.uint8, copy=False)
        cells = _means(fine)
        found.append(np.clip(cells * (255.0 / _FULL / brightness), 0, 255))
    return np.stack(found).astype(np.uint8)


def _means(fine: Picture) -> NDArray[np.float32]:
    """Return the mean of each cell; of a large picture first that of smaller ones, in bytes."""
    height, width = fine.shape
    many = max(1, min(width // (4 * COLUMNS), height // (4 * ROWS)))
    fewer = cv2.resize(fine, (width // many, height // many), interpolation=cv2.INTER_AREA)
    cells = cv2.resize(fewer.astype(np.float32), (COLUMNS, ROWS), interpolation=cv2.INTER_AREA)
    return cells.astype(np.float32, copy=False)


def _widened(strokes: Strokes) -> Strokes:
    return np.stack([cv2.dilate(one, np.ones((3, 3), np.uint8)) for one in strokes])


def _excess(strokes: Strokes, most: Strokes) -> int:
    """Return by how much the strokes of so many cells at least are more than usual."""
    beyond = cv2.subtract(strokes, most).max(axis=0).ravel()
    return int(np.partition(beyond, -_CELLS_MIN)[-_CELLS_MIN])


def _laid_on(pixels: Picture, reference: Picture) -> Picture:
    """Turn and shift a picture until the part lies as on the reference; else leave it."""
    place = np.eye(2, 3, dtype=np.float32)
    stop = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 30, 1e-4)
    try:
        _, found = cv2.findTransformECC(
            reference, _small(pixels), place, cv2.MOTION_EUCLIDEAN, stop
        )
    except cv2.error:
        return pixels  # Nothing in common: all its strokes will count.
    height, width = pixels.shape[:2]
    place = np.array(found, dtype=np.float32)
    place[0, 2] *= width / _REFERENCE_PX[0]
    place[1, 2] *= height / _REFERENCE_PX[1]
    return cv2.warpAffine(
        pixels,
        place,
        (width, height),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REPLICATE,
    ).astype(np.uint8, copy=False)


def _small(pixels: Picture) -> Picture:
    grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    small = cv2.resize(grey, _REFERENCE_PX, interpolation=cv2.INTER_AREA)
    return cv2.GaussianBlur(small, (0, 0), 1.5).astype(np.uint8, copy=False)


def _text(values: NDArray[np.uint8]) -> str:
    return base64.b64encode(values.tobytes()).decode()


def _array(text: str, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    try:
        return np.frombuffer(base64.b64decode(text, validate=True), np.uint8).reshape(shape)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"not what good parts bear: {error}") from error
