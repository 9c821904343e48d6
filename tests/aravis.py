"""Fake GigE Vision cameras for the tests: Aravis's own program, and ours with pictures of ours.

They serve on the loopback address, of which there is one, so tests take turns.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from qcnode.cameras.fake_gige import FakeGigeCamera
from tests.programs import find_program

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ADDRESS = "127.0.0.1"
SIZE = (("Width", "64"), ("Height", "48"), ("PixelFormat", "RGB8"), ("AcquisitionFrameRate", "100"))
TURN_S = 300


@contextlib.contextmanager
def my_turn() -> Iterator[None]:
    """Wait until no other test has a fake camera."""
    with (Path(tempfile.gettempdir()) / "qcnode-fake-camera.lock").open("w") as lock:
        deadline = time.monotonic() + TURN_S
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                assert time.monotonic() < deadline, "another test has kept the fake camera"
                time.sleep(0.1)
            else:
                break
        yield


@contextlib.contextmanager
def showing(picture: Callable[[], bytes]) -> Iterator[None]:
    """Serve a camera that shows pictures of 64 x 48 in RGB."""
    with my_turn():
        camera = FakeGigeCamera(ADDRESS, serial="QC", picture=picture)
        try:
            yield
        finally:
            camera.close()


def counted_pictures() -> Callable[[], bytes]:
    """Return pictures of which no two in a row are alike."""
    numbers = itertools.count(1)
    return lambda: np.full((48, 64, 3), next(numbers) % 251, np.uint8).tobytes()


class FakeProgram:
    """Aravis's own fake camera, a process that can be killed and started again."""

    def __init__(self, *options: str) -> None:
        self._program = find_program("arv-fake-gv-camera-0.8")
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        assert self._program is not None
        self._process = subprocess.Popen(
            [self._program, "-i", ADDRESS, *self._options], stdout=subprocess.DEVNULL
        )

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait(10)
