"""Rendered parts before a camera, with flaws whose place and depth are known.

Which part comes, and how it looks, are functions of a seed and the part's number on the
line alone. So line, camera and whoever counts the escapes agree without speaking to
each other, and a part that is looked at again looks the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import cv2
import numpy as np

from qcnode.cameras.studio import AS_USUAL, Defect, DefectKind, Seen, Studio, draw_defect
from qcnode.domain import Frame
from qcnode.errors import CameraError

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime
    from pathlib import Path

    from qcnode.cameras.studio import Picture, RenderedPart
    from qcnode.domain import Trigger
    from qcnode.process import Conditions, VirtualProcess

GOOD = "good"


class RenderedParts:
    """The parts that come down a belt, by their number on the line.

    Two objects with the same seed and share speak of the same parts, in whatever
    order they are asked. With a `process` the share is what it makes at its best, and how
    a part is made and seen follows from how its knobs stood; a part that is defective with
    all of them at their best is so wherever they stand.
    """

    def __init__(
        self, *, seed: int, defect_share: float, process: VirtualProcess | None = None
    ) -> None:
        self._seed = seed
        self._defect_share = defect_share
        self._process = process
        self._studio = Studio()

    def part(self, seq: int) -> tuple[str, str]:
        """Return the part's id and the truth about it: `good`, or the kind of its defect."""
        defect = self.defect(seq)
        return f"P{seq:07d}", GOOD if defect is None else str(defect.kind)

    def defect(self, seq: int) -> Defect | None:
        """Return what is wrong with the part."""
        rng = np.random.default_rng([self._seed, seq, 0])
        if self._process is not None:
            return _made_by(self._process.conditions(seq), rng, self._defect_share)
        if rng.random() >= self._defect_share:
            return None
        return draw_defect(rng, tuple(DefectKind))

    def render(self, seq: int) -> RenderedPart:
        """Return the part as the camera sees it, and the truth about it."""
        seen = AS_USUAL
        if self._process is not None:
            made = self._process.conditions(seq)
            seen = Seen(brightness=made.brightness, smear_px=made.smear_px)
        rng = np.random.default_rng([self._seed, seq, 1])
        return self._studio.render(rng, self.defect(seq), seen)


def _made_by(made: Conditions, rng: np.random.Generator, share: float) -> Defect | None:
    """Draw what is wrong with a part made under these conditions: of each kind on its own."""
    kinds = tuple(DefectKind)
    dice = rng.random(len(kinds))
    lucky = [
        (throw / chance, kind)
        for throw, kind in zip(dice, kinds, strict=True)
        if throw < (chance := made.chance(kind, share / len(kinds)))
    ]
    defect = draw_defect(rng, kinds)  # Drawn in any case, so its depth is that of any process.
    return Defect(kind=min(lucky)[1], severity=defect.severity) if lucky else None


class RenderedCamera:
    """Sees the part that belongs to a trigger, as often as it is asked."""

    def __init__(
        self,
        parts: RenderedParts,
        *,
        name: str,
        now: Callable[[], datetime],
        new_id: Callable[[], str],
    ) -> None:
        self._parts = parts
        self._name = name
        self._now = now
        self._new_id = new_id
        self._closed = False

    def grab(self, trigger: Trigger) -> Frame:
        """Return the picture of this part."""
        if self._closed:
            raise CameraError(f"camera {self._name} is closed")
        return Frame(
            id=self._new_id(),
            part_id=trigger.part_id,
            camera=self._name,
            name=f"rendered/{trigger.part_id}",
            captured_at=self._now(),
            pixels=self._parts.render(trigger.seq).pixels,
        )

    def close(self) -> None:
        """Stop seeing."""
        self._closed = True


def write_dataset(
    folder: Path,
    *,
    seed: int,
    good: int,
    defects: int,
    progress: Callable[[int, int], None],
) -> None:
    """Write a data set to teach from, in the MVTec AD folder layout, with masks.

    `good` pictures go to `train/good` and a quarter as many to `test/good`; of each kind
    of defect, `defects` go to `train` (labelled) and as many to `test`. `progress` is told
    how many of how many are written.
    """
    jobs: list[tuple[str, DefectKind | None, int]] = [
        *(("train", None, number) for number in range(good)),
        *(("test", None, number) for number in range(-(-good // 4))),
        *(
            (split, kind, number)
            for split in ("train", "test")
            for kind in DefectKind
            for number in range(defects)
        ),
    ]
    studio = Studio()
    for done, (split, kind, number) in enumerate(jobs, start=1):
        rng = np.random.default_rng([seed, done, 2])
        part = studio.render(rng, None if kind is None else draw_defect(rng, (kind,)))
        label = GOOD if kind is None else str(kind)
        _write_png(folder / split / label / f"{number:03d}.png", part.pixels[:, :, ::-1])
        if part.mask is not None:
            truth = "ground_truth" if split == "test" else f"{split}_ground_truth"
            _write_png(folder / truth / label / f"{number:03d}_mask.png", part.mask)
        progress(done, len(jobs))


def _write_png(path: Path, pixels: Picture) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    _, encoded = cv2.imencode(".png", pixels, [cv2.IMWRITE_PNG_COMPRESSION, 1])
    path.write_bytes(encoded.tobytes())
