"""A product, its light and its flaws, drawn.

The product is a pump cover: a brushed plate with four countersunk holes, a turned
boss around a rubber seal, an engraved type number and a code mark, on a dark belt.
Light, grain, noise, place and angle differ from picture to picture. Everything random
comes from the caller's generator, so the same state of it gives the same picture. A
severity of 1 is plain to see; near 0 a person has to be told where to look.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

from qcnode.domain import Box

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

Picture: TypeAlias = NDArray[np.uint8]
Plane: TypeAlias = NDArray[np.floating[Any]]
Sheet: TypeAlias = Picture | Plane

WIDTH, HEIGHT = 320, 240


class DefectKind(StrEnum):
    """What can be wrong with a pump cover."""

    SCRATCH = "scratch"
    CRACK = "crack"
    DENT = "dent"
    STAIN = "stain"
    HEAT_TINT = "heat_tint"
    BLIND_HOLE = "blind_hole"
    CHIPPED_EDGE = "chipped_edge"
    WORN_PRINT = "worn_print"
    TORN_SEAL = "torn_seal"


@dataclass(frozen=True, slots=True, kw_only=True)
class Defect:
    """One flaw; `severity` runs from 0 (not there) to 1 (plain)."""

    kind: DefectKind
    severity: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RenderedPart:
    """A picture and the truth about it; `mask` is 255 where the flaw is."""

    pixels: Picture
    defect: Defect | None = None
    box: Box | None = None
    mask: Picture | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """How the camera sees: `brightness` as a share of the usual, `smear_px` along the belt."""

    brightness: float = 1.0
    smear_px: float = 0.0


AS_USUAL = Seen()


class Studio:
    """Everything that is drawn once, and the camera that looks at it.

    The product lies on a sheet of twice the picture's size. A part is a copy of the
    sheet with its flaw, seen through that part's place, angle and light.
    """

    def __init__(self) -> None:
        rng = np.random.default_rng(20261122)
        self._product = _draw_product()
        self._grain = _brushed(rng)
        self._belt = _woven(rng)
        self._noise = rng.normal(0.0, 1.0, (3, 2 * HEIGHT, 2 * WIDTH)).astype(np.float32)
        rows, columns = np.mgrid[-1.0 : 1.0 : HEIGHT * 1j, -1.0 : 1.0 : WIDTH * 1j]
        self._rows, self._columns = rows.astype(np.float32), columns.astype(np.float32)

    def render(
        self, rng: np.random.Generator, defect: Defect | None, seen: Seen = AS_USUAL
    ) -> RenderedPart:
        """Draw one part."""
        pose = _pose(rng)
        light = self._light(rng)
        grain, belt, noise = _cut(self._grain, rng), _cut(self._belt, rng), _cut(self._noise, rng)

        product, flaw = self._product, None
        if defect is not None:
            product = product.copy()
            flaw = _FLAWS[defect.kind](rng, defect.severity, product)
        sheet = np.stack(cv2.split(_seen(product.sheet, pose)))
        plate, metal, shadow = (
            np.multiply(plane, np.float32(1 / 255))
            for plane in cv2.split(_seen(product.planes, pose))
        )

        # Colour comes first here: NumPy is several times faster along long rows.
        scene = belt * (1.0 - 0.7 * shadow)
        scene += (sheet + metal * grain - scene) * plate
        scene *= light
        if seen is not AS_USUAL:
            _show(scene, seen)
        scene += noise * (1.0 + 0.008 * scene)
        pixels = cv2.merge(list(np.clip(scene, 0.0, 255.0).astype(np.uint8)))
        if flaw is None:
            return RenderedPart(pixels=pixels)
        plate = _seen(self._product.planes, pose)[:, :, 0]  # as it was before the flaw
        mask = np.where(_seen(flaw, pose) * plate > _COVERED * 255, 255, 0).astype(np.uint8)
        left, top, width, height = cv2.boundingRect(mask)
        box = Box(left=left, top=top, width=width, height=height)
        return RenderedPart(pixels=pixels, defect=defect, box=box, mask=mask)

    def _light(self, rng: np.random.Generator) -> Plane:
        angle, tilt = rng.uniform(0.0, 2.0 * math.pi), rng.uniform(0.01, 0.05)
        slope = self._columns * np.float32(tilt * math.cos(angle))
        slope += self._rows * np.float32(tilt * math.sin(angle))
        lamp = 1.05 - 0.08 * (self._columns**2 + self._rows**2) + slope
        gain = float(np.clip(rng.normal(1.0, 0.025), 0.93, 1.07))
        warmth = float(np.clip(rng.normal(0.0, 0.006), -0.015, 0.015))
        tone = np.array((1.0 + warmth, 1.0, 1.0 - warmth), np.float32) * np.float32(gain)
        field: Plane = lamp * tone[:, None, None]
        return field


def draw_defect(rng: np.random.Generator, kinds: Sequence[DefectKind]) -> Defect:
    """Draw a flaw; every depth from barely visible to plain is as likely."""
    kind = kinds[int(rng.integers(len(kinds)))]
    return Defect(kind=kind, severity=float(rng.uniform(0.08, 1.0)))


# --- The product --------------------------------------------------------------------------

_SHEET = (2 * HEIGHT, 2 * WIDTH)
_FINE = 3
"""Shapes are drawn this much finer than the sheet and shrunk, for smooth edges."""
_COVERED = 0.15
"""From this share on a pixel of the picture belongs to a flaw."""

_CENTRE = (320, 240)
_PLATE = (46, 54, 594, 426)
_PLATE_CORNER = 62
_HOLES = ((116, 124), (524, 124), (116, 356), (524, 356))
_HOLE_RADIUS, _SINK_RADIUS = 25, 37
_BOSS_RADIUS, _SEAL_OUTER, _SEAL_INNER, _BORE_RADIUS = 150, 116, 88, 74
_PRINT = (76, 196, 156, 286)
_CODE_CORNER, _CODE_CELLS, _CODE_CELL = (487, 198), 14, 6

_DARK, _RUBBER, _INK = 20.0, (44.0, 47.0, 55.0), (62.0, 64.0, 68.0)


@dataclass(slots=True)
class _Product:
    """The sheet, its planes (plate, brushed metal, shadow; 255 is all) and the bare plate."""

    sheet: Picture
    planes: Picture
    bare: Picture

    def copy(self) -> _Product:
        return _Product(self.sheet.copy(), self.planes.copy(), self.bare)


def _draw_product() -> _Product:
    plate = _shape(lambda canvas: _round_box(canvas, _PLATE, _PLATE_CORNER))
    boss = _shape(lambda canvas: _disc(canvas, _CENTRE, _BOSS_RADIUS))
    bare = np.empty((*_SHEET, 3), np.float32)
    bare[:] = (166.0, 169.0, 173.0)
    _shade_rim(bare, plate, depth=5.0, height=62.0)
    _paint(bare, _turned_face(bare), boss)
    _shade_rim(bare, boss, depth=3.5, height=48.0)

    sheet = bare.copy()
    for centre in _HOLES:
        _drill(sheet, centre)
    seal = _ring(_CENTRE, _SEAL_OUTER, _SEAL_INNER)
    groove = _ring(_CENTRE, _SEAL_OUTER + 4, _SEAL_INNER - 4)
    _paint(sheet, 0.42 * bare, groove)
    _paint(sheet, _rubber(), seal)
    bore = _shape(lambda canvas: _disc(canvas, _CENTRE, _BORE_RADIUS))
    _shade_rim(sheet, bore, depth=4.0, height=-70.0)
    inner = _shape(lambda canvas: _disc(canvas, _CENTRE, _BORE_RADIUS - 6))
    _paint(sheet, _pit(_CENTRE, _BORE_RADIUS - 6), inner)
    mark = _engraving()
    _paint(sheet, _INK, 0.88 * mark)

    holes = sum(_hole(centre) for centre in _HOLES)
    metal = plate * (1.0 - groove) * (1.0 - bore) * (1.0 - holes) * (1.0 - 0.7 * mark)
    shadow = cv2.GaussianBlur(np.roll(plate, (12, 10), axis=(0, 1)), (0, 0), 9)
    planes = 255.0 * np.dstack((plate, metal, shadow))
    return _Product(_whole(sheet), _whole(planes), _whole(bare))


def _whole(sheet: Plane) -> Picture:
    return np.clip(np.round(sheet), 0.0, 255.0).astype(np.uint8)


def _turned_face(bare: Plane) -> Plane:
    """Return the boss as a lathe leaves it: fine rings, and light in two opposite fans."""
    rows, columns = np.mgrid[0 : _SHEET[0], 0 : _SHEET[1]].astype(np.float32)
    across, down = columns - _CENTRE[0], rows - _CENTRE[1]
    angle, radius = np.arctan2(down, across), np.hypot(across, down)
    fans = 22.0 * np.cos(2.0 * (angle + 0.9)) + 8.0 * np.cos(4.0 * angle + 0.4)
    rings = 4.5 * np.sin(radius * 1.9) * np.cos(radius * 0.37)
    face: Plane = bare + (fans + rings + 8.0).astype(np.float32)[:, :, None]
    return face


def _drill(sheet: Plane, centre: tuple[int, int]) -> None:
    sink = _shape(lambda canvas: _disc(canvas, centre, _SINK_RADIUS))
    _paint(sheet, (138.0, 141.0, 146.0), sink)
    _shade_rim(sheet, sink, depth=6.0, height=-74.0)
    _paint(sheet, _pit(centre, _HOLE_RADIUS), _hole(centre))


def _hole(centre: tuple[int, int]) -> Plane:
    return _shape(lambda canvas: _disc(canvas, centre, _HOLE_RADIUS))


def _pit(centre: tuple[int, int], radius: int) -> Plane:
    """Return a dark bore whose far wall catches some light at the lower right."""
    rows, columns = np.mgrid[0 : _SHEET[0], 0 : _SHEET[1]].astype(np.float32)
    toward = (columns - centre[0] + rows - centre[1]) / (1.42 * radius)
    wall = np.hypot(columns - centre[0], rows - centre[1]) / radius
    glow = 52.0 * np.clip(toward, 0.0, 1.0) * np.clip(wall - 0.72, 0.0, 1.0) / 0.28
    pit: Plane = (_DARK + glow)[:, :, None] * np.array((1.0, 1.02, 1.08), np.float32)
    return pit


def _rubber() -> Plane:
    """Return the seal: round in section, so that it shines along its crest."""
    rows, columns = np.mgrid[0 : _SHEET[0], 0 : _SHEET[1]].astype(np.float32)
    across, down = columns - _CENTRE[0], rows - _CENTRE[1]
    middle, half = (_SEAL_OUTER + _SEAL_INNER) / 2, (_SEAL_OUTER - _SEAL_INNER) / 2
    height = (np.hypot(across, down) - middle) / half
    lit = -(across + down) / (1.42 * _SEAL_OUTER)
    crest = np.exp(-(((height + 0.30 * lit) / 0.34) ** 2))
    shine = 12.0 + crest * (26.0 + 20.0 * lit) - 14.0 * height**2
    rubber: Plane = shine[:, :, None] + np.array(_RUBBER, np.float32)
    return rubber


def _engraving() -> Plane:
    """Return the type number at the left and the code mark at the right of the boss."""

    def draw(canvas: Picture) -> None:
        left, top, _, _ = _PRINT
        for line, (text, size) in enumerate((("PC-40", 0.86), ("316L", 0.86), ("A 7113", 0.74))):
            place = ((left + 1) * _FINE, (top + 24 + 31 * line) * _FINE)
            cv2.putText(
                canvas, text, place, cv2.FONT_HERSHEY_SIMPLEX, size * 0.92 * _FINE, 255, 2 * _FINE
            )
        cells = np.random.default_rng(40).integers(2, size=(_CODE_CELLS, _CODE_CELLS)) == 1
        cells[:, 0] = cells[-1, :] = True  # the finder: two solid sides,
        cells[0, ::2], cells[0, 1::2] = True, False  # and two dotted ones
        cells[1::2, -1], cells[0::2, -1] = True, False
        for row, column in np.argwhere(cells):
            x, y = _CODE_CORNER[0] + column * _CODE_CELL, _CODE_CORNER[1] + row * _CODE_CELL
            low = (int(x) * _FINE, int(y) * _FINE)
            high = ((int(x) + _CODE_CELL) * _FINE - 2, (int(y) + _CODE_CELL) * _FINE - 2)
            cv2.rectangle(canvas, low, high, 255, cv2.FILLED)

    return _shape(draw)


# --- What light, belt and camera add ------------------------------------------------------


def _seen(sheet: Sheet, pose: NDArray[np.float64]) -> NDArray[Any]:
    return cv2.warpAffine(sheet, pose, (WIDTH, HEIGHT), flags=cv2.INTER_LINEAR)


def _show(scene: Plane, seen: Seen) -> None:
    """Dim or brighten a scene, and smear it along the belt, before the sensor's noise is added."""
    scene *= np.float32(seen.brightness)
    width = round(seen.smear_px)
    if width > 1:
        kernel = np.full((1, width), 1.0 / width, np.float32)
        for plane in scene:
            plane[:] = cv2.filter2D(plane, -1, kernel)


def _pose(rng: np.random.Generator) -> NDArray[np.float64]:
    angle = float(np.clip(rng.normal(0.0, 0.45), -1.2, 1.2))
    shift = np.clip(rng.normal(0.0, 0.8, 2), -2.0, 2.0)
    pose = np.asarray(cv2.getRotationMatrix2D(_CENTRE, angle, 0.5), np.float64)
    pose[:, 2] += np.array((WIDTH / 2, HEIGHT / 2)) - _CENTRE + shift
    return pose


def _brushed(rng: np.random.Generator) -> Plane:
    raw = rng.normal(0.0, 1.0, (2 * HEIGHT, 2 * WIDTH)).astype(np.float32)
    long = cv2.GaussianBlur(raw, (0, 0), sigmaX=26, sigmaY=0.45)
    short = cv2.GaussianBlur(raw[::-1], (0, 0), sigmaX=6, sigmaY=0.4)
    grain: Plane = (3.4 * long / long.std() + 2.0 * short / short.std()).astype(np.float32)
    return grain


def _woven(rng: np.random.Generator) -> Plane:
    rows, columns = np.mgrid[0 : 2 * HEIGHT, 0 : 2 * WIDTH].astype(np.float32)
    weave = 2.6 * np.sin(columns * 1.05 + rows * 0.52) * np.sin(rows * 1.05 - columns * 0.52)
    dirt = cv2.GaussianBlur(rng.normal(0.0, 1.0, weave.shape).astype(np.float32), (0, 0), 14)
    grey = (41.0 + weave + 2.2 * dirt / dirt.std()).astype(np.float32)
    belt: Plane = grey * np.array((0.94, 1.0, 1.05), np.float32)[:, None, None]
    return belt


def _cut(stock: Plane, rng: np.random.Generator) -> Plane:
    """Return a piece of the picture's size from anywhere on `stock`."""
    top, left = int(rng.integers(HEIGHT)), int(rng.integers(WIDTH))
    return stock[..., top : top + HEIGHT, left : left + WIDTH]


# --- Flaws --------------------------------------------------------------------------------
#
# Each spoils the product in place and returns where it did, as shares of the sheet's pixels.


def _scratch(rng: np.random.Generator, severity: float, product: _Product) -> Plane:
    path = _wander(rng, _on_plate(rng), steps=14, step=4.0 + 5.0 * severity, wobble=0.10)
    line = _stroke(path, 1 + round(2.2 * severity))
    groove = np.roll(line, (2, 1), axis=(0, 1))
    _paint(product.sheet, (96.0, 98.0, 101.0), (0.12 + 0.55 * severity) * groove)
    _paint(product.sheet, (236.0, 238.0, 240.0), (0.16 + 0.76 * severity) * line)
    return line


def _crack(rng: np.random.Generator, severity: float, product: _Product) -> Plane:
    x, y = _HOLES[int(rng.integers(len(_HOLES)))]
    toward = math.atan2(_CENTRE[1] - y, _CENTRE[0] - x) + rng.normal(0.0, 0.5)
    start = (x + _SINK_RADIUS * math.cos(toward), y + _SINK_RADIUS * math.sin(toward))
    path = _wander(rng, start, steps=9, step=4.0 + 7.0 * severity, wobble=0.55, heading=toward)
    line = _stroke(path, 1 if severity < 0.6 else 2)  # noqa: PLR2004  # a hairline until plain
    _paint(product.sheet, (30.0, 30.0, 32.0), (0.22 + 0.70 * severity) * line)
    return line


def _dent(rng: np.random.Generator, severity: float, product: _Product) -> Plane:
    size = 9.0 + 9.0 * severity
    here, across, down = _around(_on_plate(rng), 3.0 * size)
    across, down = across / size, down / (size * rng.uniform(0.75, 1.1))
    bowl = np.exp(-(across**2 + down**2))
    slope = -(across + down) * bowl
    relief = severity * ((40.0 + 70.0 * severity) * slope - 14.0 * bowl)
    spoilt = product.sheet[here] + relief[:, :, None]
    product.sheet[here] = np.clip(spoilt, 0.0, 255.0).astype(np.uint8)
    return _at(here, np.clip(2.0 * bowl - 0.5, 0.0, 1.0))


def _stain(rng: np.random.Generator, severity: float, product: _Product) -> Plane:
    blot = _blot(rng, _on_plate(rng), size=22.0 + 22.0 * severity, soft=0.17)
    here = _bounds(blot)
    thick = blot[here]
    edge = np.clip(thick - cv2.GaussianBlur(thick, (0, 0), 5), 0.0, 1.0)
    tint = product.sheet[here] * np.array((0.60, 0.47, 0.30), np.float32)
    _paint(product.sheet[here], tint, (0.08 + 0.50 * severity) * thick + 0.5 * severity * edge)
    core: Plane = np.clip(2.0 * blot - 0.5, 0.0, 1.0)
    return core


def _heat_tint(rng: np.random.Generator, severity: float, product: _Product) -> Plane:
    size = 52.0 + 34.0 * severity
    here, across, down = _around(_on_plate(rng), size)
    reach = np.hypot(across, down) / size
    hues = np.array(
        ((0.72, 0.80, 1.10), (0.86, 0.72, 1.02), (1.06, 0.82, 0.58), (1.04, 0.98, 0.82)),
        np.float32,
    )
    place = np.clip(reach * 3.0, 0.0, 2.999)
    step = place.astype(np.int64)
    share = (place - step)[:, :, None]
    tint = (hues[step] * (1.0 - share) + hues[step + 1] * share) * product.sheet[here]
    metal = product.planes[here][:, :, 1].astype(np.float32) / 255.0
    spot = np.clip(1.25 - 1.25 * reach, 0.0, 1.0) * metal
    _paint(product.sheet[here], tint, (0.10 + 0.80 * severity) * spot)
    return _at(here, np.clip(spot - 0.1, 0.0, 1.0))


def _blind_hole(rng: np.random.Generator, severity: float, product: _Product) -> Plane:
    x, y = _HOLES[int(rng.integers(len(_HOLES)))]
    here, across, down = _around((x, y), _HOLE_RADIUS + 2.0)
    hole = np.clip(_HOLE_RADIUS + 0.5 - np.hypot(across, down), 0.0, 1.0)
    _paint(product.sheet[here], 0.74 * product.bare[here], (0.10 + 0.90 * severity) * hole)
    grain = product.planes[here][:, :, 1]
    np.maximum(grain, (255.0 * severity * hole).astype(np.uint8), out=grain)
    return _at(here, hole)


def _chipped_edge(rng: np.random.Generator, severity: float, product: _Product) -> Plane:
    left, top, right, bottom = _PLATE
    along = rng.uniform(0.2, 0.8)
    x, y = [
        (left + along * (right - left), top),
        (left + along * (right - left), bottom),
        (left, top + along * (bottom - top)),
        (right, top + along * (bottom - top)),
    ][int(rng.integers(4))]
    size = 4.0 + 24.0 * severity
    bite = _blot(rng, (x, y), size=size, soft=0.05)
    here, _, _ = _around((x, y), 2.2 * size + 12.0)
    gone = bite[here]
    broken = np.clip(cv2.GaussianBlur(gone, (0, 0), 3.5) * 1.6 - gone, 0.0, 1.0)
    _paint(product.sheet[here], (214.0, 216.0, 220.0), 0.7 * broken)
    plate = product.planes[here][:, :, 0]
    bite[here] *= plate.astype(np.float32) / 255.0
    np.multiply(plate, 1.0 - gone, out=plate, casting="unsafe")
    return bite


def _worn_print(rng: np.random.Generator, severity: float, product: _Product) -> Plane:
    left, top, right, bottom = _PRINT
    height = 26 + round(30 * severity)
    low = int(rng.integers(top - 2, bottom - height + 3))
    here = (slice(top - 16, bottom + 16), slice(left - 20, right + 28))
    wiped = np.zeros(_SHEET, np.float32)
    wiped[low : low + height, left - 6 : right + 12] = 1.0
    cloth = cv2.GaussianBlur(wiped[here], (0, 0), 4)
    _paint(product.sheet[here], product.bare[here], (0.14 + 0.86 * severity) * cloth)
    return wiped


def _torn_seal(rng: np.random.Generator, severity: float, product: _Product) -> Plane:
    start, sweep = float(rng.uniform(0.0, 360.0)), 5.0 + 24.0 * severity
    middle, width = (_SEAL_OUTER + _SEAL_INNER) // 2, _SEAL_OUTER - _SEAL_INNER - 2
    canvas = np.zeros(_SHEET, np.uint8)
    cv2.ellipse(canvas, _CENTRE, (middle, middle), start, 0.0, sweep, 255, width, cv2.LINE_AA)
    gap = canvas.astype(np.float32) / 255.0
    _paint(product.sheet, 0.78 * product.bare, (0.16 + 0.80 * severity) * gap)
    return gap


_FLAWS: dict[DefectKind, Callable[[np.random.Generator, float, _Product], Plane]] = {
    DefectKind.SCRATCH: _scratch,
    DefectKind.CRACK: _crack,
    DefectKind.DENT: _dent,
    DefectKind.STAIN: _stain,
    DefectKind.HEAT_TINT: _heat_tint,
    DefectKind.BLIND_HOLE: _blind_hole,
    DefectKind.CHIPPED_EDGE: _chipped_edge,
    DefectKind.WORN_PRINT: _worn_print,
    DefectKind.TORN_SEAL: _torn_seal,
}


def _on_plate(rng: np.random.Generator) -> tuple[float, float]:
    """Return a place on metal: the turned ring, the long edges, or beside the boss."""
    x, y = _CENTRE
    side = float(rng.choice((-1.0, 1.0)))
    match int(rng.integers(3)):
        case 0:
            angle = rng.uniform(0.0, 2.0 * math.pi)
            radius = rng.uniform(_SEAL_OUTER + 12, _BOSS_RADIUS - 10)
            return x + radius * math.cos(angle), y + radius * math.sin(angle)
        case 1:
            return x + rng.uniform(-145.0, 145.0), y + side * rng.uniform(156.0, 172.0)
        case _:
            return x + side * rng.uniform(156.0, 236.0), y + rng.uniform(-74.0, 74.0)


def _wander(
    rng: np.random.Generator,
    start: tuple[float, float],
    *,
    steps: int,
    step: float,
    wobble: float,
    heading: float | None = None,
) -> list[tuple[float, float]]:
    if heading is None:
        heading = float(rng.uniform(0.0, 2.0 * math.pi))
    x, y = start
    path = [start]
    for turn in rng.normal(0.0, wobble, steps):
        heading += float(turn)
        x, y = x + step * math.cos(heading), y + step * math.sin(heading)
        path.append((x, y))
    return path


def _stroke(path: Sequence[tuple[float, float]], width: int) -> Plane:
    canvas = np.zeros(_SHEET, np.uint8)
    points = np.round(np.array(path) * 16).astype(np.int32)
    cv2.polylines(canvas, [points], False, 255, width, cv2.LINE_AA, 4)
    return canvas.astype(np.float32) / 255.0


def _blot(
    rng: np.random.Generator, centre: tuple[float, float], *, size: float, soft: float
) -> Plane:
    bulges = size * np.clip(1.0 + 0.22 * rng.normal(0.0, 1.0, 11), 0.5, 1.6)
    angles = np.linspace(0.0, 2.0 * math.pi, len(bulges), endpoint=False)
    outline = np.stack((np.cos(angles), np.sin(angles)), axis=1) * bulges[:, None] + centre
    canvas = np.zeros(_SHEET, np.uint8)
    cv2.fillPoly(canvas, [np.round(outline * 16).astype(np.int32)], 255, cv2.LINE_AA, 4)
    here, _, _ = _around(centre, 2.2 * size + 4.0)
    return _at(here, cv2.GaussianBlur(canvas[here], (0, 0), soft * size).astype(np.float32) / 255.0)


_Window: TypeAlias = tuple[slice, slice]


def _around(centre: tuple[float, float], reach: float) -> tuple[_Window, Plane, Plane]:
    """Return the window about a place on the sheet, and how far across and down from it."""
    x, y = centre
    top, bottom = max(0, int(y - reach)), min(_SHEET[0], int(y + reach) + 1)
    left, right = max(0, int(x - reach)), min(_SHEET[1], int(x + reach) + 1)
    down, across = np.mgrid[top:bottom, left:right].astype(np.float32)
    return (slice(top, bottom), slice(left, right)), across - x, down - y


def _bounds(plane: Plane) -> _Window:
    left, top, width, height = cv2.boundingRect((plane > 0.0).astype(np.uint8))
    return slice(top, top + height), slice(left, left + width)


def _at(here: _Window, part: Plane) -> Plane:
    plane = np.zeros(_SHEET, np.float32)
    plane[here] = part
    return plane


# --- Drawing ------------------------------------------------------------------------------


def _shape(draw: Callable[[Picture], object]) -> Plane:
    """Return what `draw` puts on a fine canvas, as shares of the sheet's pixels."""
    canvas = np.zeros((_SHEET[0] * _FINE, _SHEET[1] * _FINE), np.uint8)
    draw(canvas)
    small = cv2.resize(canvas, _SHEET[::-1], interpolation=cv2.INTER_AREA)
    return small.astype(np.float32) / 255.0


def _disc(canvas: Picture, centre: tuple[int, int], radius: int) -> None:
    fine = (centre[0] * _FINE, centre[1] * _FINE)
    cv2.circle(canvas, fine, radius * _FINE, 255, cv2.FILLED)


def _ring(centre: tuple[int, int], outer: int, inner: int) -> Plane:
    return _shape(lambda canvas: _disc(canvas, centre, outer)) - _shape(
        lambda canvas: _disc(canvas, centre, inner)
    )


def _round_box(canvas: Picture, box: tuple[int, int, int, int], corner: int) -> None:
    left, top, right, bottom = (side * _FINE for side in box)
    corner *= _FINE
    cv2.rectangle(canvas, (left + corner, top), (right - corner, bottom), 255, cv2.FILLED)
    cv2.rectangle(canvas, (left, top + corner), (right, bottom - corner), 255, cv2.FILLED)
    for x in (left + corner, right - corner):
        for y in (top + corner, bottom - corner):
            cv2.circle(canvas, (x, y), corner, 255, cv2.FILLED)


def _shade_rim(sheet: Plane, shape: Plane, *, depth: float, height: float) -> None:
    """Light the rim of `shape` from the upper left; a negative height sinks it."""
    soft = cv2.GaussianBlur(shape, (0, 0), depth)
    slope = cv2.Sobel(soft, cv2.CV_32F, 1, 0) + cv2.Sobel(soft, cv2.CV_32F, 0, 1)
    peak = float(np.abs(slope).max())
    sheet += (height / peak) * (slope * shape)[:, :, None]


def _paint(sheet: Sheet, colour: Sheet | tuple[float, float, float], opacity: Plane) -> None:
    """Lay `colour` (or another sheet) over the sheet, as thick as `opacity` says."""
    here = _bounds(opacity)
    under, thick = sheet[here], np.minimum(opacity[here], 1.0)[:, :, None]
    over = colour[here] if isinstance(colour, np.ndarray) else np.array(colour, np.float32)
    mixed = under + (over - under.astype(np.float32)) * thick
    sheet[here] = np.clip(mixed, 0.0, 255.0).astype(sheet.dtype)
