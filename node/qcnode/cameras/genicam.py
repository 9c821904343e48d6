"""GigE Vision and USB3 Vision cameras, through Aravis, each in a process of its own.

A trigger is answered with the one picture the camera took for it, whole, or not at all:
pictures with missing packets, pictures that nobody asked for, and the very same pixels again
and again never pass a part. A camera that is gone, or whose process died, is opened again, ever
more patiently, and every part meanwhile is told so at once. The camera's own frame number is
16 bits wide and wraps, so nothing is ordered by it.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any, Final

import cv2
import numpy as np
import structlog

from qcnode.cameras.aravis_child import END, HEADER, NONE, PICTURE, READY
from qcnode.cameras.frozen import Frozen
from qcnode.domain import Frame
from qcnode.errors import CameraError, PictureError
from qcnode.picture import PIXELS_MAX, as_rgb

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from datetime import datetime

    from numpy.typing import NDArray

    from qcnode.domain import Trigger

log = structlog.get_logger()

MEMORY_BYTES: Final = 768 * 1024 * 1024
RETRY_FIRST_S: Final = 0.25
RETRY_MAX_S: Final = 8.0
ANSWER_SPARE_S: Final = 0.25
"""How long a camera's process may take beyond its timeout before a part is given up."""
STUCK_S: Final = 8.0
"""Longer than the library asks a camera that is gone; then its process is ended."""
END_S: Final = 2.0
WORDS_MAX: Final = 1024 * 1024
_PASSED_ON: Final = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "TMPDIR")
# Of the pixel format naming convention: 8 bits a sample.
_MONO8: Final = 0x01080001
_RGB8: Final = 0x02180014
_BGR8: Final = 0x02180015
# OpenCV names a Bayer pattern by its second row, the convention by its first.
_BAYER: Final = {
    0x01080008: cv2.COLOR_BayerBG2BGR,  # GR
    0x01080009: cv2.COLOR_BayerBG2RGB,  # RG
    0x0108000A: cv2.COLOR_BayerGR2RGB,  # GB
    0x0108000B: cv2.COLOR_BayerRG2RGB,  # BG
}


class GenicamCamera:
    """The camera at `address` (an IP address, or a name as Aravis lists it).

    `trigger` is the source of its trigger: `Software`, fired by us for each part, or a line
    of the camera, fired by the part itself. `features` are set in order and read back.
    """

    def __init__(
        self,
        address: str,
        *,
        name: str,
        timeout_s: float,
        now: Callable[[], datetime],
        new_id: Callable[[], str],
        trigger: str = "Software",
        features: Sequence[tuple[str, str]] = (),
        memory_bytes: int = MEMORY_BYTES,
        monotonic_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._address = address
        self._name = name
        self._timeout_s = timeout_s
        self._now = now
        self._new_id = new_id
        self._job = json.dumps(
            {
                "address": address,
                "trigger": trigger,
                "features": list(features),
                "memory_bytes": memory_bytes,
                "timeout_ms": max(1, round(timeout_s * 1000)),
            }
        )
        self._frozen = Frozen(f"camera {address}")
        self._news = threading.Condition()
        self._child: subprocess.Popen[bytes] | None = None
        self._ready = False
        self._why = "it is being opened"
        self._read_back: dict[str, str] = {}
        self._answer: tuple[bytes, dict[str, Any], bytes] | None = None
        self._opened = 0
        self._asked_s: float | None = None
        self._monotonic_s = monotonic_s
        self._halt = threading.Event()
        # A daemon, because a library may hang for longer than a node takes to stop.
        self._thread = threading.Thread(target=self._keep, name="camera", daemon=True)
        self._thread.start()

    def grab(self, trigger: Trigger) -> Frame:
        """Return the picture the camera took for this trigger."""
        kind, about, data = self._ask(trigger.seq)
        if kind != PICTURE:
            raise CameraError(f"camera {self._address}: {about['why']}")
        pixels = self._rgb(about, data)
        self._frozen.refuse(pixels)
        return Frame(
            id=self._new_id(),
            part_id=trigger.part_id,
            camera=self._name,
            name=f"{self._address}#{trigger.seq}/{about['frame_id']}",
            captured_at=self._now(),
            pixels=pixels,
        )

    def until_ready(self, timeout_s: float) -> Mapping[str, str]:
        """Wait for the camera and return its features as read back; raises `CameraError`."""
        with self._news:
            self._news.wait_for(lambda: self._ready or self._halt.is_set(), timeout_s)
            if not self._ready:
                raise CameraError(f"camera {self._address}: {self._why}")
            return dict(self._read_back)

    @property
    def opened(self) -> int:
        """How often the camera was opened so far."""
        return self._opened

    def close(self) -> None:
        """Let go of the camera."""
        self._halt.set()
        with self._news:
            self._news.notify_all()
            self._end_child()
        if self._thread is not threading.current_thread():
            self._thread.join(END_S)

    # -- one trigger -----------------------------------------------------------

    def _ask(self, seq: int) -> tuple[bytes, dict[str, Any], bytes]:
        with self._news:
            if self._halt.is_set():
                raise CameraError(f"camera {self._name} is closed")
            if not self._ready or self._child is None or self._child.stdin is None:
                self._end_if_stuck()
                raise CameraError(f"camera {self._address} is not there: {self._why}")
            self._answer = None
            try:
                self._child.stdin.write(f"{seq}\n".encode())
                self._child.stdin.flush()
            except OSError as error:
                raise CameraError(f"camera {self._address}: its process has ended") from error
            self._news.wait_for(
                lambda: self._answer_to(seq) is not None or not self._ready,
                self._timeout_s + ANSWER_SPARE_S,
            )
            answer = self._answer_to(seq)
            if answer is None:
                if self._ready:
                    self._ready, self._why = False, "it does not answer"
                    self._asked_s = self._monotonic_s()
                raise CameraError(f"camera {self._address} is not there: {self._why}")
            return answer

    def _answer_to(self, seq: int) -> tuple[bytes, dict[str, Any], bytes] | None:
        answer = self._answer
        return answer if answer is not None and answer[1].get("seq") == seq else None

    def _rgb(self, about: Mapping[str, Any], data: bytes) -> NDArray[np.uint8]:
        width, height, kind = about["width"], about["height"], about["format"]
        channels = 3 if kind in (_RGB8, _BGR8) else 1
        if kind not in (_MONO8, _RGB8, _BGR8, *_BAYER):
            raise CameraError(
                f"camera {self._address}: pixel format 0x{kind:08x} is not read here: set"
                " PixelFormat to Mono8, RGB8 or a Bayer format of 8 bits"
            )
        if not 0 < width * height <= PIXELS_MAX or len(data) < width * height * channels:
            raise CameraError(
                f"camera {self._address}: {len(data)} bytes are no picture of {width}x{height}"
            )
        flat = np.frombuffer(data, np.uint8, width * height * channels)
        pixels: NDArray[Any] = flat.reshape(height, width, channels)
        if kind in _BAYER:
            pixels = cv2.cvtColor(pixels[:, :, 0], _BAYER[kind])
        elif kind == _BGR8:
            pixels = pixels[:, :, ::-1]
        try:
            return as_rgb(pixels, name=self._address)
        except PictureError as error:
            raise CameraError(str(error)) from error

    def _end_if_stuck(self) -> None:
        asked_s = self._asked_s
        if asked_s is not None and self._monotonic_s() - asked_s > STUCK_S:
            self._end_child()

    # -- the process -----------------------------------------------------------

    def _keep(self) -> None:
        """Keep a process that has the camera, until `close`."""
        wait_s = RETRY_FIRST_S
        while not self._halt.is_set():
            came = self._live()
            if self._halt.is_set():
                return
            if came:
                wait_s = RETRY_FIRST_S
                log.warning("camera gone, opening it again", camera=self._address, why=self._why)
            self._halt.wait(wait_s)
            wait_s = min(2 * wait_s, RETRY_MAX_S)

    def _live(self) -> bool:
        """Run one process to its end, and say whether it had the camera."""
        child = subprocess.Popen(  # noqa: S603  # our own interpreter and module
            [sys.executable, "-I", "-m", "qcnode.cameras.aravis_child", self._job],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={key: os.environ[key] for key in _PASSED_ON if key in os.environ},
            start_new_session=True,
        )
        had = False
        with child:
            with self._news:
                self._child = child
                if self._halt.is_set():
                    self._end_child()
            try:
                had = self._listen(child)
            finally:
                with self._news:
                    self._ready = False
                    self._end_child()
                    self._child = None
                    self._news.notify_all()
        return had

    def _listen(self, child: subprocess.Popen[bytes]) -> bool:
        had, told = False, False
        assert child.stdout is not None  # noqa: S101  # a pipe
        while (message := _read(child.stdout)) is not None:
            kind, about, _data = message
            with self._news:
                if kind == END:
                    self._why, told = about["why"], True
                elif kind in (PICTURE, NONE):
                    self._answer = message
                if kind == READY and not had:
                    had = True
                    self._opened += 1
                    self._read_back = about["features"]
                    log.info("camera opened", camera=self._address)
                # Whatever it says but this, it is there.
                self._ready = kind != END and not about.get("busy", False)
                self._why = self._why if self._ready or told else about["why"]
                self._asked_s = None
                self._news.notify_all()
        if not told:
            self._why = "its process ended without a word"
        return had

    def _end_child(self) -> None:
        if self._child is not None and self._child.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                self._child.kill()


def _read(pipe: Any) -> tuple[bytes, dict[str, Any], bytes] | None:
    """Read one message; None at the end, or when it is none."""
    head = pipe.read(HEADER.size)
    if len(head) < HEADER.size:
        return None
    kind, words, pixels = HEADER.unpack(head)
    if words > WORDS_MAX or pixels > 4 * PIXELS_MAX:
        return None
    about, data = pipe.read(words), pipe.read(pixels)
    if len(about) < words or len(data) < pixels:
        return None
    return kind, json.loads(about), data
