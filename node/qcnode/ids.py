"""Ids that sort by the time they were made and are never made twice.

The shape is that of a ULID: 48 bits of milliseconds, then 80 bits of chance, written in
26 characters. Within one millisecond, and when the wall clock steps back, the next id
is the last one plus one, so the order of ids is the order of making.
"""

from __future__ import annotations

import secrets
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

_ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_LENGTH = 26
_CHANCE_BITS = 80


class IdMaker:
    """Makes ids; any thread may call."""

    def __init__(
        self, now_ms: Callable[[], int], chance: Callable[[int], int] = secrets.randbits
    ) -> None:
        self._now_ms = now_ms
        self._chance = chance
        self._lock = threading.Lock()
        self._last = 0

    def __call__(self) -> str:
        """Return an id that sorts after every id made here before."""
        with self._lock:
            fresh = (self._now_ms() << _CHANCE_BITS) | self._chance(_CHANCE_BITS)
            in_step = fresh >> _CHANCE_BITS > self._last >> _CHANCE_BITS
            self._last = fresh if in_step else self._last + 1
            return _written(self._last)


def first_id(at_ms: int) -> str:
    """Return what sorts before every id made from then on, and after every earlier one."""
    return _written(at_ms << _CHANCE_BITS)


def _written(number: int) -> str:
    return "".join(_ALPHABET[(number >> shift) & 31] for shift in range(5 * (_LENGTH - 1), -1, -5))
