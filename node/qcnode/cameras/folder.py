"""The pictures of a folder, arriving as parts.

Each picture is one part and comes exactly once, in an order that depends on the names
(or on a seed) alone; the part's number on the line says which picture is its own, so a
trigger nobody looked at takes its picture with it. The file's own bytes travel with
the frame: they are the best evidence there is.
"""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import TYPE_CHECKING

from qcnode.domain import Frame
from qcnode.errors import CameraError, PictureError
from qcnode.picture import SUFFIXES, read_bytes, unpack_picture

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from qcnode.domain import Trigger

GOOD = "good"
UNKNOWN = "unknown"


class FolderPictures:
    """The pictures in and below `folder` as the parts from number `first_seq` on.

    They come sorted by path, or shuffled by `shuffle_seed`. Masks, in folders named
    `...ground_truth`, are no parts.
    """

    def __init__(
        self, folder: Path, *, first_seq: int = 1, shuffle_seed: int | None = None
    ) -> None:
        self._folder = folder
        self._first_seq = first_seq
        self._paths = _find(folder)
        if shuffle_seed is not None:
            random.Random(shuffle_seed).shuffle(self._paths)  # noqa: S311  # an order, no secret

    def __len__(self) -> int:
        """Return how many pictures there are."""
        return len(self._paths)

    def path(self, seq: int) -> Path | None:
        """Return the picture of the part with this number; None beyond the last one."""
        place = seq - self._first_seq
        return self._paths[place] if 0 <= place < len(self._paths) else None

    def part(self, seq: int) -> tuple[str, str] | None:
        """Return the part's id, and the truth about it as far as its folder tells."""
        path = self.path(seq)
        if path is None:
            return None
        return f"P{seq:07d}", truth_of(path) or UNKNOWN

    def name(self, path: Path) -> str:
        """Return what people call this picture: its path within the folder."""
        return path.relative_to(self._folder).as_posix()


class FolderCamera:
    """Gives each trigger the picture that is its own, no finer than `side` asks for just then."""

    def __init__(
        self,
        pictures: FolderPictures,
        *,
        name: str,
        now: Callable[[], datetime],
        new_id: Callable[[], str],
        side: Callable[[], int | None] = lambda: None,
    ) -> None:
        self._pictures = pictures
        self._name = name
        self._now = now
        self._new_id = new_id
        self._side = side
        self._closed = False

    def grab(self, trigger: Trigger) -> Frame:
        """Return the picture of this part; one that cannot be read is a `CameraError`."""
        if self._closed:
            raise CameraError(f"camera {self._name} is closed")
        path = self._pictures.path(trigger.seq)
        if path is None:
            raise CameraError(
                f"camera {self._name}: the folder is exhausted, it has no picture for"
                f" part {trigger.part_id}"
            )
        try:
            encoded = read_bytes(path)
            unpacked = unpack_picture(encoded, name=str(path), side=self._side())
        except PictureError as error:
            raise CameraError(str(error)) from error
        return Frame(
            id=self._new_id(),
            part_id=trigger.part_id,
            camera=self._name,
            name=self._pictures.name(path),
            captured_at=self._now(),
            pixels=unpacked.pixels,
            encoded=encoded,
            size=unpacked.size,
        )

    def close(self) -> None:
        """Read no more."""
        self._closed = True


def truth_of(path: Path) -> str | None:
    """Say what a picture shows by the folder it lies in: `good`, or a kind of defect.

    Only the MVTec AD layout (`train/<kind>/...`, `test/<kind>/...`) and a folder named
    `good` tell; of any other picture nothing is known.
    """
    kind = path.parent.name
    return kind if kind == GOOD or path.parent.parent.name in ("train", "test") else None


def _find(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise CameraError(f"{folder}: no such folder: name one that holds pictures")
    found: list[Path] = []
    for place, folders, files in os.walk(folder):
        folders[:] = [
            name for name in folders if name[0] != "." and not name.endswith("ground_truth")
        ]
        paths = (Path(place, name) for name in files if name[0] != ".")
        found.extend(path for path in paths if path.suffix.lower() in SUFFIXES)
    if not found:
        raise CameraError(
            f"{folder}: no pictures here: put in some ({', '.join(sorted(SUFFIXES))})"
        )
    return sorted(found)
