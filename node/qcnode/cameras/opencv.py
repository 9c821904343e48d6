"""Video files, USB cameras and network streams, through OpenCV.

A live source runs free: a thread of its own reads it without pause into a slot for one
picture, so that nothing waits in a driver and grows old. A trigger is answered with a
picture whose reading began after it, or not at all. A source that is gone is opened
again, ever more patiently; one that keeps showing the very same pixels is a frozen
camera and never passes a part. A video file gives its next frame to each trigger.
"""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol
from urllib.parse import urlsplit, urlunsplit

import cv2
import numpy as np
import structlog

from qcnode.cameras.frozen import Frozen
from qcnode.domain import Frame
from qcnode.errors import CameraError, PictureError
from qcnode.picture import as_rgb

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from datetime import datetime

    from numpy.typing import NDArray

    from qcnode.domain import Trigger

log = structlog.get_logger()

OPEN_TIMEOUT_MS = 5_000
READ_TIMEOUT_MS = 2_000
RETRY_FIRST_S = 0.25
RETRY_MAX_S = 8.0


class Capture(Protocol):
    """What is used of `cv2.VideoCapture`."""

    def isOpened(self) -> bool:  # noqa: N802  # OpenCV's name
        """Say whether there is a source behind it."""

    def read(self) -> tuple[bool, NDArray[np.generic] | None]:
        """Wait for the next picture (BGR); False when there is none."""

    def release(self) -> None:
        """Let go of the source."""


class OpenCvCamera:
    """A camera behind OpenCV: the path of a video file, a device number, or a URL.

    `clock_ns` must be the clock that triggers are stamped with.
    """

    def __init__(
        self,
        source: str,
        *,
        name: str,
        timeout_s: float,
        now: Callable[[], datetime],
        new_id: Callable[[], str],
        clock_ns: Callable[[], int] = time.monotonic_ns,
        open_capture: Callable[[str], Capture] | None = None,
    ) -> None:
        self._name = name
        self._shown = without_password(source)
        self._now = now
        self._new_id = new_id
        self._frozen = Frozen(self._shown)
        self._closed = False
        opener = open_capture or open_source
        self._live = is_live(source)
        self._feed: _LiveFeed | _FileFeed = (
            _LiveFeed(source, timeout_s=timeout_s, clock_ns=clock_ns, opener=opener)
            if self._live
            else _FileFeed(source, opener=opener)
        )

    def grab(self, trigger: Trigger) -> Frame:
        """Return a picture taken after the trigger (of a file: the next one)."""
        if self._closed:
            raise CameraError(f"camera {self._name} is closed")
        pixels = rgb_from(self._feed.after(trigger.at_ns), name=self._shown)
        if self._live:
            self._frozen.refuse(pixels)
        return Frame(
            id=self._new_id(),
            part_id=trigger.part_id,
            camera=self._name,
            name=f"{self._shown}#{trigger.seq}",
            captured_at=self._now(),
            pixels=pixels,
        )

    def close(self) -> None:
        """Let go of the source."""
        if not self._closed:
            self._closed = True
            self._feed.close()


def frames_of(
    source: str, *, now: Callable[[], datetime], new_id: Callable[[], str]
) -> Iterator[Frame]:
    """Yield every picture of a video file or stream until it ends, each as a part of its own."""
    shown = without_password(source)
    capture = open_source(source)
    try:
        if not capture.isOpened():
            raise CameraError(f"{shown}: cannot be opened as a video: check path, device or URL")
        number = 0
        while (pixels := _read(capture)) is not None:
            number += 1
            yield Frame(
                id=new_id(),
                part_id=f"{number:06d}",
                camera=shown,
                name=f"{shown}#{number}",
                captured_at=now(),
                pixels=rgb_from(pixels, name=shown),
            )
        if number == 0:
            raise CameraError(f"{shown}: no picture in it: check that it plays")
    finally:
        capture.release()


def is_live(source: str) -> bool:
    """Say whether `source` is a device number or a URL, and no file."""
    return source.isdigit() or "://" in source


def open_source(source: str) -> Capture:
    """Open a file, device or URL; whether that worked, `isOpened` tells."""
    if source.isdigit():
        device = cv2.VideoCapture(int(source))
        device.set(cv2.CAP_PROP_BUFFERSIZE, 1)
        return device
    if "://" in source:
        timeouts = [
            *(cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, OPEN_TIMEOUT_MS),
            *(cv2.CAP_PROP_READ_TIMEOUT_MSEC, READ_TIMEOUT_MS),
        ]
        return cv2.VideoCapture(source, cv2.CAP_FFMPEG, timeouts)
    return cv2.VideoCapture(source)


_ORDERS: Final = {(3,): cv2.COLOR_BGR2RGB, (4,): cv2.COLOR_BGRA2RGB}


def rgb_from(pixels: NDArray[np.generic], *, name: str) -> NDArray[np.uint8]:
    """Turn OpenCV's picture (BGR, or one channel of grey) into ours."""
    order = _ORDERS.get(pixels.shape[2:])
    if order is not None and pixels.size and pixels.dtype in (np.uint8, np.uint16):
        # Fifty times as fast as turning the channels round by slicing.
        pixels = cv2.cvtColor(pixels, order)  # type: ignore[arg-type]  # by the test above
    try:
        return as_rgb(pixels, name=name)
    except PictureError as error:
        raise CameraError(str(error)) from error


def without_password(source: str) -> str:
    """Return a source as it may be shown and logged."""
    if "://" not in source:
        return source
    parts = urlsplit(source)
    _, at, host = parts.netloc.rpartition("@")
    return urlunsplit(parts._replace(netloc=f"***@{host}" if at else host, query="", fragment=""))


def _read(capture: Capture) -> NDArray[np.generic] | None:
    try:
        done, pixels = capture.read()
    except cv2.error:
        return None
    return pixels if done else None


class _FileFeed:
    """The frames of a video file, one after the other."""

    def __init__(self, source: str, *, opener: Callable[[str], Capture]) -> None:
        if not Path(source).is_file():
            raise CameraError(
                f"{source}: no such file: name a video, a device number or a URL with ://"
            )
        self._source = source
        self._capture = opener(source)
        if not self._capture.isOpened():
            raise CameraError(f"{source}: cannot be opened as a video: convert or replace it")

    def after(self, _at_ns: int) -> NDArray[np.generic]:
        pixels = _read(self._capture)
        if pixels is None:
            raise CameraError(f"{self._source}: the video is exhausted, no picture is left")
        return pixels

    def close(self) -> None:
        self._capture.release()


class _LiveFeed:
    """The newest picture of a source that runs free, read by a thread of its own."""

    def __init__(
        self,
        source: str,
        *,
        timeout_s: float,
        clock_ns: Callable[[], int],
        opener: Callable[[str], Capture],
    ) -> None:
        self._source = source
        self._shown = without_password(source)
        self._timeout_s = timeout_s
        self._clock_ns = clock_ns
        self._opener = opener
        self._fresh = threading.Condition()
        self._began_ns: int | None = None
        self._pixels: NDArray[np.generic] | None = None
        self._halt = threading.Event()
        # A daemon, because a driver may hang for longer than a node takes to stop.
        self._thread = threading.Thread(target=self._run, name="camera", daemon=True)
        self._thread.start()

    def after(self, at_ns: int) -> NDArray[np.generic]:
        with self._fresh:
            self._fresh.wait_for(lambda: self._newer(at_ns) is not None, self._timeout_s)
            pixels = self._newer(at_ns)
        if pixels is None:
            raise CameraError(
                f"{self._shown}: no picture within {self._timeout_s:g} s of the trigger:"
                " check cable, power and address"
            )
        return pixels

    def close(self) -> None:
        self._halt.set()
        self._thread.join(READ_TIMEOUT_MS / 1000)

    def _newer(self, at_ns: int) -> NDArray[np.generic] | None:
        return self._pixels if self._began_ns is not None and self._began_ns > at_ns else None

    def _run(self) -> None:
        wait_s = RETRY_FIRST_S
        reachable = True
        while not self._halt.is_set():
            capture = self._opener(self._source)
            try:
                came = self._pump(capture) if capture.isOpened() else 0
            finally:
                capture.release()
            if came:
                wait_s = RETRY_FIRST_S
            if reachable or came:
                log.warning("camera gone, opening it again", source=self._shown)
            reachable = False
            self._halt.wait(wait_s)
            wait_s = min(2 * wait_s, RETRY_MAX_S)

    def _pump(self, capture: Capture) -> int:
        """Read until the source ends and return how many pictures came."""
        came = 0
        while not self._halt.is_set():
            began_ns = self._clock_ns()
            pixels = _read(capture)
            if pixels is None:
                break
            came += 1
            with self._fresh:
                self._began_ns, self._pixels = began_ns, pixels
                self._fresh.notify_all()
        return came
