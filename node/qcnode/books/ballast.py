"""A few MiB beside the ledger that are given up when the disk is full.

What was sent has to be put on record even then, or its cost is lost; what was not sent
can wait. So room for many outcomes is held from the beginning, let go when the disk
says that it is full, and taken again before anything new may be spent.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pathlib import Path

BALLAST_BYTES: Final = 4 * 1024 * 1024
"""Room for some 3,000 outcomes with all that SQLite writes around them."""
_BLOCK: Final = 512
"""What `st_blocks` counts in, whatever the file system's own blocks are."""


class Ballast:
    """The file that holds the room. No method raises for a disk that does not give it."""

    def __init__(self, path: Path, *, size: int = BALLAST_BYTES) -> None:
        self._path = path
        self._size = size

    def held(self) -> bool:
        """Say whether the room is held."""
        try:
            return self._path.stat().st_size >= self._size
        except OSError:
            return False

    def hold(self) -> bool:
        """Hold the room, if as much again stays free; say whether it is held now."""
        if self.held():
            return True
        unfinished = self._path.with_name(self._path.name + ".part")
        try:
            free = os.statvfs(self._path.parent)
            if free.f_bavail * free.f_frsize < 2 * self._size:
                return False
            descriptor = os.open(
                unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600
            )
            try:
                self._fill(descriptor)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            unfinished.replace(self._path)
        except OSError:
            with contextlib.suppress(OSError):
                unfinished.unlink(missing_ok=True)
            return False
        return True

    def release(self) -> bool:
        """Give the room up; say whether there was any."""
        try:
            self._path.unlink()
        except OSError:
            return False
        return True

    def _fill(self, descriptor: int) -> None:
        with contextlib.suppress(OSError):  # Not every file system can set room aside.
            os.posix_fallocate(descriptor, 0, self._size)
        if os.fstat(descriptor).st_blocks * _BLOCK >= self._size:
            return
        left = memoryview(hashlib.shake_128(b"ballast").digest(self._size))  # Cannot be packed.
        while left:
            left = left[os.write(descriptor, left) :]
