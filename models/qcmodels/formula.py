"""Pictures made by formulas, for pretraining a backbone: nobody's photographs, nobody's terms.

A class is one formula with its numbers; its pictures differ as pictures of one product do.
There are three sorts: fractals (iterated function systems), textures, and drawn parts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeAlias

import cv2
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

Random: TypeAlias = np.random.Generator

SIDE: Final = 128
_CHAINS: Final = 400
_LENGTH: Final = 120
_LEAD: Final = 20


def draw_class(number: int, pictures: int, *, seed: int) -> list[NDArray[np.uint8]]:
    """Return pictures of the class of this number, each SIDE x SIDE x 3."""
    return [
        _SORTS[number % len(_SORTS)](
            np.random.default_rng([seed, number]), np.random.default_rng([seed, number, index])
        )
        for index in range(1, pictures + 1)
    ]


def draw_flaw(picture: NDArray[np.uint8], random: Random) -> NDArray[np.uint8]:
    """Return `picture` with one flaw: a blob, a line, or a piece of it gone elsewhere."""
    done = picture.copy()
    centre = random.integers(12, len(picture) - 12, 2)
    size = int(random.integers(3, 14))
    kind = int(random.integers(3))
    colour = tuple(int(value) for value in random.integers(0, 256, 3))
    x, y = int(centre[0]), int(centre[1])
    if kind == 0:
        box = ((float(x), float(y)), (float(size), float(random.uniform(2, size + 1))))
        cv2.ellipse(done, (*box, float(random.uniform(0, 180))), colour, -1)
    elif kind == 1:
        end = centre + random.integers(-2 * size, 2 * size + 1, 2)
        cv2.line(done, (x, y), (int(end[0]), int(end[1])), colour, int(random.integers(1, 3)))
    else:
        other = random.integers(0, len(picture) - size, 2)
        here = np.clip(centre, 0, len(picture) - size)
        done[here[1] : here[1] + size, here[0] : here[0] + size] = picture[
            other[1] : other[1] + size, other[0] : other[0] + size
        ]
    share = random.uniform(0.35, 1.0)
    return cv2.addWeighted(done, share, picture, 1.0 - share, 0.0).astype(np.uint8)


def _fractal(formula: Random, instance: Random) -> NDArray[np.uint8]:
    """Return the attractor of a few affine maps, found by playing the chaos game."""
    maps = int(formula.integers(2, 5))
    turns = []
    for _ in range(maps):
        left, right = (_rotation(formula.uniform(0, 2 * np.pi)) for _ in range(2))
        turns.append(left @ np.diag(formula.uniform(0.3, 0.85, 2)) @ right)
    matrices = np.array(turns) + instance.normal(0, 0.01, (maps, 2, 2))
    offsets = formula.uniform(-1, 1, (maps, 2)) + instance.normal(0, 0.02, (maps, 2))
    points = np.zeros((_CHAINS, 2))
    trail = []
    for step in range(_LENGTH):
        drawn = instance.integers(0, maps, _CHAINS)
        points = np.einsum("nij,nj->ni", matrices[drawn], points) + offsets[drawn]
        if step >= _LEAD:
            trail.append(points)
    cloud = np.concatenate(trail)
    low, high = np.quantile(cloud, 0.01, axis=0), np.quantile(cloud, 0.99, axis=0)
    places = ((cloud - low) / np.maximum(high - low, 1e-6) * 0.8 + 0.1) * SIDE
    density, _, _ = np.histogram2d(places[:, 1], places[:, 0], SIDE, [[0, SIDE], [0, SIDE]])
    value = np.log1p(density)
    return _coloured(value / max(value.max(), 1e-6), formula, instance)


def _texture(formula: Random, instance: Random) -> NDArray[np.uint8]:
    """Return noise of a few scales and directions, with stripes, dots or neither."""
    value = np.zeros((SIDE, SIDE))
    for _ in range(int(formula.integers(1, 4))):
        along, across = np.exp(formula.uniform(np.log(0.6), np.log(12), 2))
        noise = instance.normal(0, 1, (2 * SIDE, 2 * SIDE)).astype(np.float32)
        soft = cv2.GaussianBlur(noise, (0, 0), sigmaX=float(along), sigmaY=float(across))
        turned = cv2.warpAffine(
            soft,
            cv2.getRotationMatrix2D((SIDE, SIDE), float(formula.uniform(0, 180)), 1.0),
            (2 * SIDE, 2 * SIDE),
            borderMode=cv2.BORDER_REFLECT,
        )
        part = turned[SIDE // 2 : SIDE // 2 + SIDE, SIDE // 2 : SIDE // 2 + SIDE]
        value += part / (part.std() + 1e-6) * formula.uniform(0.2, 1.0)
    kind, period = int(formula.integers(3)), formula.uniform(5, 40)
    angle, phase = formula.uniform(0, np.pi), instance.uniform(0, 2 * np.pi, 2)
    y, x = np.mgrid[:SIDE, :SIDE]
    first = (x * np.cos(angle) + y * np.sin(angle)) * 2 * np.pi / period + phase[0]
    second = (y * np.cos(angle) - x * np.sin(angle)) * 2 * np.pi / period + phase[1]
    if kind:
        wave = np.sin(first) if kind == 1 else np.sin(first) * np.sin(second)
        value += formula.uniform(0.5, 3.0) * np.tanh(formula.uniform(0.5, 5.0) * wave)
    return _coloured(1.0 / (1.0 + np.exp(-value)), formula, instance)


def _part(formula: Random, instance: Random) -> NDArray[np.uint8]:
    """Return plates, holes and lines laid out by the formula, a little moved and worn."""
    picture = np.full((SIDE, SIDE, 3), formula.integers(0, 256, 3), np.float32)
    moved = instance.normal(0, 1.0, 2)
    for _ in range(int(formula.integers(4, 16))):
        x, y = formula.uniform(5, SIDE - 5, 2) + moved
        wide, high = np.exp(formula.uniform(np.log(3), np.log(45), 2))
        colour = tuple(float(value) for value in formula.integers(0, 256, 3))
        kind, angle = int(formula.integers(4)), float(formula.choice([0, 0, 0, 30, 45, 90]))
        box = ((float(x), float(y)), (float(wide), float(high)), angle)
        if kind == 0:
            cv2.ellipse(picture, box, colour, -1, cv2.LINE_AA)
        elif kind == 1:
            cv2.fillPoly(picture, [cv2.boxPoints(box).astype(np.int32)], colour, cv2.LINE_AA)
        elif kind == 2:  # noqa: PLR2004  # the third of four shapes
            thick = int(formula.integers(1, 4))
            cv2.circle(picture, (int(x), int(y)), int(wide / 2), colour, thick, cv2.LINE_AA)
        else:
            end = (int(x + wide), int(y + high))
            cv2.line(picture, (int(x), int(y)), end, colour, int(formula.integers(1, 4)))
    grain = formula.uniform(0, 12)
    return _rounded(picture + instance.normal(0, 1, picture.shape) * grain)


_SORTS: Final[tuple[Callable[[Random, Random], NDArray[np.uint8]], ...]] = (
    _part,
    _texture,
    _part,
    _fractal,
)


def _rotation(angle: float) -> NDArray[np.float64]:
    return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])


def _coloured(value: NDArray[np.float64], formula: Random, instance: Random) -> NDArray[np.uint8]:
    """Return values of 0 to 1 as colours between those of the formula."""
    colours = formula.uniform(0, 255, (3, 3))
    if formula.random() < 0.3:  # noqa: PLR2004  # some products are grey
        colours = colours.mean(axis=1, keepdims=True).repeat(3, axis=1)
    stops = [0.0, 0.5, 1.0]
    picture = np.stack([np.interp(value, stops, colours[:, band]) for band in range(3)], axis=2)
    return _rounded(picture + instance.normal(0, formula.uniform(0, 8), picture.shape))


def _rounded(picture: NDArray[np.floating]) -> NDArray[np.uint8]:
    return np.asarray(np.clip(picture.round(), 0, 255), np.uint8)
