"""Where `inspect` takes its pictures from: a folder, a picture, a video file or a stream.

Each item is a picture or the reason why there is none; one bad file never ends the rest.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import cv2

from qcnode.cameras.opencv import frames_of, is_live
from qcnode.domain import Frame
from qcnode.errors import CameraError, PictureError
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
    if not is_live(source) and not path.exists():
        raise PictureError(f"{path}: no such file or folder: check the path")
    if not is_live(source) and path.suffix.lower() in SUFFIXES:
        return iter([_read(path, now, new_id)])
    return _play(source, now, new_id)


def _play(source: str, now: Callable[[], datetime], new_id: Callable[[], str]) -> Iterator[Item]:
    _silence_decoders()
    played = False
    try:
        for frame in frames_of(source, now=now, new_id=new_id):
            played = True
            yield Item(path=frame.name, frame=frame)
    except CameraError as error:
        if played or is_live(source) or not Path(source).is_file():
            raise
        kinds = " ".join(sorted(SUFFIXES))
        raise PictureError(
            f"{source}: neither a picture ({kinds}) nor a video that plays: check the file"
        ) from error


def _silence_decoders() -> None:
    """Keep OpenCV and FFmpeg from writing to standard error, where our own words stand.

    FFmpeg's level is read when the first video is opened; somebody who has set it to see
    more gets to see it.
    """
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    if "OPENCV_LOG_LEVEL" not in os.environ:
        cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


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
