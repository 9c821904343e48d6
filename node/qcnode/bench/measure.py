"""How figures are taken: ours and a reference in turn, in one run, as a ratio.

Machines are shared and noisy, so no figure stands alone: each round measures both sides
one after the other, in changing order, and what is reported is how they compare, with
the least, the middle and the most of all rounds.
"""

from __future__ import annotations

import os
import platform
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One figure: its values over the rounds, what was aimed at, and what stands beside it."""

    name: str
    values: tuple[float, ...]
    aim: float
    at_least: bool = True
    """Whether the aim is a floor; else it is a ceiling."""
    note: str = ""

    @property
    def median(self) -> float:
        """The middle of the rounds, which is what the aim is held against."""
        return statistics.median(self.values)

    @property
    def met(self) -> bool:
        """Whether the middle of the rounds reaches the aim."""
        return self.median >= self.aim if self.at_least else self.median <= self.aim

    def to_json(self) -> dict[str, Any]:
        """Return the figure as plain values."""
        return {
            "name": self.name,
            "min": min(self.values),
            "median": self.median,
            "max": max(self.values),
            "aim": self.aim,
            "at_least": self.at_least,
            "met": self.met,
            "note": self.note,
        }


def in_turn(
    rounds: int, ours: Callable[[int], float], reference: Callable[[int], float]
) -> Iterator[tuple[float, float]]:
    """Yield the seconds of both sides, round by round; who goes first changes."""
    for number in range(rounds):
        if number % 2:
            theirs = reference(number)
            yield ours(number), theirs
        else:
            mine = ours(number)
            yield mine, reference(number)


def speed_ratio(pairs: Sequence[tuple[float, float]]) -> tuple[float, ...]:
    """Return how fast ours is next to the reference, for each round: 1 is as fast."""
    return tuple(theirs / mine for mine, theirs in pairs)


def machine() -> dict[str, Any]:
    """Return what the figures were taken on."""
    return {
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_mib": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20,
        "system": platform.platform(),
        "python": platform.python_version(),
        "load_1m": os.getloadavg()[0],
    }


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())
