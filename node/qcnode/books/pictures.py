"""The pictures of parts that were not simply good, for whoever rules on them.

One JPEG (the camera's own bytes where it delivers them) and one heat map (PNG, grey)
per inspection, in a folder with a bound: the oldest go first. Decisions never wait
for this store, and losing a picture never loses a record.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np
import structlog

from qcnode.errors import PictureError
from qcnode.picture import encode_jpeg, encode_png, seen_of

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from qcnode.domain import Evidence, Frame

log = structlog.get_logger()

JPEG_QUALITY = 92
_ID = re.compile(r"[A-Za-z0-9_.-]{1,128}")
_JPEG_MAGIC = b"\xff\xd8\xff"


class PictureStore:
    """Keeps at most `pictures_max` inspections' pictures under `folder`.

    `heat_full` is the score that is drawn as full heat where the evidence names none.
    """

    def __init__(self, folder: Path, *, pictures_max: int, heat_full: float | None) -> None:
        self._folder = folder
        self._pictures_max = pictures_max
        self._heat_full = heat_full
        folder.mkdir(parents=True, exist_ok=True)
        # Names of inspections begin with their time, so the order of names is age.
        self._kept = sorted(path.stem for path in folder.glob("*.jpg"))

    def keep(self, inspection_id: str, evidence: Evidence) -> bool:
        """Store what there is and say whether a picture was stored; a full disk is no error."""
        if evidence.frame is None:
            return False
        try:
            self._path(inspection_id, "jpg").write_bytes(_jpeg(evidence.frame))
            if evidence.heat is not None:
                self._path(inspection_id, "png").write_bytes(
                    self._heat_png(evidence.heat, evidence.heat_full)
                )
        except (OSError, PictureError) as error:
            log.warning("picture not kept", inspection=inspection_id, reason=str(error))
            return False
        self._kept.append(inspection_id)
        while len(self._kept) > self._pictures_max:
            oldest = self._kept.pop(0)
            self._path(oldest, "jpg").unlink(missing_ok=True)
            self._path(oldest, "png").unlink(missing_ok=True)
        return True

    def picture(self, inspection_id: str) -> bytes | None:
        """Return the JPEG of an inspection, or None where there is none any more."""
        return self._read(inspection_id, "jpg")

    def heat(self, inspection_id: str) -> bytes | None:
        """Return the heat map as a grey PNG over the whole picture, or None."""
        return self._read(inspection_id, "png")

    def _read(self, inspection_id: str, suffix: str) -> bytes | None:
        if not _ID.fullmatch(inspection_id):
            return None  # Ids come back from browsers; a path must not.
        try:
            return self._path(inspection_id, suffix).read_bytes()
        except OSError:
            return None

    def _path(self, inspection_id: str, suffix: str) -> Path:
        return self._folder / f"{inspection_id}.{suffix}"

    def _heat_png(self, heat: NDArray[np.float32], full: float | None) -> bytes:
        full = full or self._heat_full or float(heat.max()) or 1.0
        grey = np.clip(heat * (255.0 / full), 0, 255).astype(np.uint8)
        return encode_png(grey)


def _jpeg(frame: Frame) -> bytes:
    if frame.encoded is not None and frame.encoded.startswith(_JPEG_MAGIC):
        return frame.encoded
    return encode_jpeg(seen_of(frame, None), quality=JPEG_QUALITY)
