"""Made-up defects on pictures of good parts: to choose a family by, never to teach or calibrate.

Ten kinds, each drawn at a random place in a size of a few percent of the picture: what they
have in common with real defects is only that something is there that was not. So they
rank ways to teach on one product, and say nothing of how many real defects are found.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeAlias

import cv2
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

Random: TypeAlias = np.random.Generator

SIZES: Final = (0.03, 0.12)
"""Of a defect, as shares of the picture's shorter side."""
CONTRAST: Final = (12.0, 70.0)
"""Grey levels between a defect and what is around it."""


def draw_defects(picture: NDArray[np.uint8], random: Random) -> list[NDArray[np.uint8]]:
    """Return `picture` ten times, each with one defect of another kind."""
    return [draw(picture.astype(np.float32), random) for draw in _KINDS]


def _scratch(picture: NDArray[np.float32], random: Random) -> NDArray[np.uint8]:
    start, side = _place(picture, random)
    angle = random.uniform(0, np.pi)
    end = start + 2.0 * side * np.array([np.cos(angle), np.sin(angle)])
    return _blend(picture, _stroke(picture, [start, end]), _shade(random))


def _crack(picture: NDArray[np.float32], random: Random) -> NDArray[np.uint8]:
    start, side = _place(picture, random)
    steps = random.normal(0, 0.3 * side, (8, 2)) + random.normal(0, 0.2 * side, 2)
    return _blend(picture, _stroke(picture, list(start + np.cumsum(steps, axis=0))), -_dark(random))


def _stain(picture: NDArray[np.float32], random: Random) -> NDArray[np.uint8]:
    mask = _ellipse(picture, random)
    soft = _blurred(mask, max(0.15 * float(np.sqrt(mask.sum())), 1.0))
    tint = random.uniform(0.5, 1.0, 3) * _shade(random)
    return _blend(picture, soft, tint)


def _hole(picture: NDArray[np.float32], random: Random) -> NDArray[np.uint8]:
    return _blend(picture, _ellipse(picture, random), _shade(random))


def _grain(picture: NDArray[np.float32], random: Random) -> NDArray[np.uint8]:
    noise = random.normal(0, 0.5 * _dark(random), picture.shape[:2])[:, :, np.newaxis]
    return _blend(picture, _ellipse(picture, random), noise.astype(np.float32))


def _paste(picture: NDArray[np.float32], random: Random) -> NDArray[np.uint8]:
    there, here, side = _two_places(picture, random)
    return _put(picture, here, _cut(picture, there, side))


def _turn(picture: NDArray[np.float32], random: Random) -> NDArray[np.uint8]:
    here, _, side = _two_places(picture, random)
    return _put(picture, here, np.rot90(_cut(picture, here, side), int(random.integers(1, 4))))


def _smear(picture: NDArray[np.float32], random: Random) -> NDArray[np.uint8]:
    here, _, side = _two_places(picture, random)
    return _put(picture, here, _blurred(_cut(picture, here, side), side / 5))


def _shift(picture: NDArray[np.float32], random: Random) -> NDArray[np.uint8]:
    here, _, side = _two_places(picture, random)
    step = random.choice([-1, 1], 2) * max(side // 5, 1)
    rows, columns = picture.shape[:2]
    there = np.clip(here + step, 0, [columns - side, rows - side])
    return _put(picture, here, _cut(picture, there, side))


def _missing(picture: NDArray[np.float32], random: Random) -> NDArray[np.uint8]:
    here, _, side = _two_places(picture, random)
    patch = _cut(picture, here, side)
    rim = np.concatenate([patch[0], patch[-1], patch[:, 0], patch[:, -1]])
    return _put(picture, here, np.broadcast_to(np.median(rim, axis=0), patch.shape))


_KINDS: Final[tuple[Callable[[NDArray[np.float32], Random], NDArray[np.uint8]], ...]] = (
    _scratch,
    _crack,
    _stain,
    _hole,
    _grain,
    _paste,
    _turn,
    _smear,
    _shift,
    _missing,
)


def _place(picture: NDArray[np.float32], random: Random) -> tuple[NDArray[np.float64], float]:
    """Return x and y away from the rim, and a size."""
    rows, columns = picture.shape[:2]
    side = random.uniform(*SIZES) * min(rows, columns)
    return random.uniform(0.1, 0.9, 2) * [columns, rows], max(side, 2.0)


def _two_places(
    picture: NDArray[np.float32], random: Random
) -> tuple[NDArray[np.int64], NDArray[np.int64], int]:
    """Return the corners of two squares inside the picture, and their side."""
    rows, columns = picture.shape[:2]
    side = max(int(2 * random.uniform(*SIZES) * min(rows, columns)), 2)
    room = np.array([columns - side, rows - side])
    return random.integers(0, room + 1), random.integers(0, room + 1), side


def _cut(picture: NDArray[np.float32], corner: NDArray[np.int64], side: int) -> NDArray[np.float32]:
    x, y = (int(value) for value in corner)
    return picture[y : y + side, x : x + side]


def _put(
    picture: NDArray[np.float32], corner: NDArray[np.int64], patch: NDArray[np.float32]
) -> NDArray[np.uint8]:
    done = picture.copy()
    _cut(done, corner, len(patch))[:] = patch
    return _rounded(done)


def _stroke(picture: NDArray[np.float32], points: list[NDArray[np.float64]]) -> NDArray[np.float32]:
    mask = np.zeros(picture.shape[:2], np.float32)
    width = max(round(min(mask.shape) / 200), 1)
    path = np.array(points).round().astype(np.int32)
    cv2.polylines(mask, [path], isClosed=False, color=1.0, thickness=width)
    return mask


def _ellipse(picture: NDArray[np.float32], random: Random) -> NDArray[np.float32]:
    (x, y), side = _place(picture, random)
    mask = np.zeros(picture.shape[:2], np.float32)
    axes = (side / 2 * random.uniform(0.5, 1.0), side / 2)
    box = ((float(x), float(y)), (2 * axes[0], 2 * axes[1]), random.uniform(0, 180))
    cv2.ellipse(mask, box, 1.0, -1)
    return mask


def _blurred(picture: NDArray[np.float32], sigma: float) -> NDArray[np.float32]:
    return np.asarray(cv2.GaussianBlur(picture, (0, 0), sigma), np.float32)


def _dark(random: Random) -> float:
    return float(random.uniform(*CONTRAST))


def _shade(random: Random) -> float:
    return float(random.choice([-1.0, 1.0])) * _dark(random)


def _blend(
    picture: NDArray[np.float32], mask: NDArray[np.float32], change: float | NDArray[np.floating]
) -> NDArray[np.uint8]:
    return _rounded(picture + mask[:, :, np.newaxis] * change)


def _rounded(picture: NDArray[np.floating]) -> NDArray[np.uint8]:
    return np.asarray(np.clip(picture.round(), 0, 255), np.uint8)
