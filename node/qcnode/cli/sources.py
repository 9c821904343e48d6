"""Where `inspect` takes its pictures from: a folder, a picture, a video file or a stream.

Each item is a picture or the reason why there is none; one bad file never ends the rest.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from qcnode.cameras.opencv import frames_of
from qcnode.domain import Frame
from qcnode.errors import PictureError
from qcnode.picture import SUFFIXES, decode_picture, read_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from datetime import datetime


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Item:
    """One picture of a source by its path, or the reason why it cannot be judged."""

    path: str
    frame: Frame | None
    reason: str | None = None


def open_source(
    source: str, *, now: Callable[[], datetime], new_id: Callable[[], str]
) -> Iterator[Item]:
    """Return the pictures of `source`; without any, an error names it now or at the first.

    A stream is anything OpenCV opens: a URL, a device such as /dev/video0, or its number.
    """
    path = Path(source)
    if path.is_dir():
        found = sorted(
            file
            for file in path.rglob("*")
            if file.suffix.lower() in SUFFIXES and not file.name.startswith(".")
        )
        if not found:
            raise PictureError(f"{path}: no picture in this folder: name one that holds some")
        return (_read(file, now, new_id) for file in found)
    if path.suffix.lower() in SUFFIXES and "://" not in source:
        if not path.exists():
            raise PictureError(f"{path}: no such file: check the path")
        return iter([_read(path, now, new_id)])
    return (
        Item(path=frame.name, frame=frame) for frame in frames_of(source, now=now, new_id=new_id)
    )


def _read(path: Path, now: Callable[[], datetime], new_id: Callable[[], str]) -> Item:
    try:
        data = read_bytes(path)
        pixels = decode_picture(data, name=str(path))
    except PictureError as error:
        return Item(path=str(path), frame=None, reason=str(error))
    frame = Frame(
        id=new_id(),
        part_id=path.stem,
        camera="inspect",
        name=str(path),
        captured_at=now(),
        pixels=pixels,
        encoded=data,
    )
    return Item(path=str(path), frame=frame)
