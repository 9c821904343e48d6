"""The cost that a provider names in its answer: evidence, and never the price.

Nobody vouches for its unit, so it is compared with the book's own cost in every unit that
is in use, and what agrees is only said. What is charged stays what the book says until a
bill is reconciled.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Final

from qcnode.money import PICO

if TYPE_CHECKING:
    from qcnode.money import Cost

_UNITS: Final = {"units": PICO, "cents": PICO // 100, "micro-units": PICO // 10**6}
_NUMBER: Final = re.compile(r"-?[0-9]{1,30}(\.[0-9]{1,40})?([eE][+-]?[0-9]{1,2})?")
_NEAR: Final = Fraction(1, 200)
"""Providers round what they state; half a hundredth is still the same sum."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StatedCost:
    """How a stated cost compares with ours; `unit` is the one in which they agree, if any."""

    unit: str | None
    difference_pico: int | None
    """Theirs less ours, in that unit, or in whole units where none agrees; None: unreadable."""


def compare_stated(cost: Cost, stated: str) -> StatedCost:
    """Compare what a provider stated, verbatim, with what the book says."""
    if not _NUMBER.fullmatch(stated.strip()):
        return StatedCost(unit=None, difference_pico=None)
    value = Fraction(stated.strip())
    for unit, pico in _UNITS.items():
        if abs(value * pico - cost.pico) <= _NEAR * cost.pico:
            return StatedCost(unit=unit, difference_pico=round(value * pico) - cost.pico)
    return StatedCost(unit=None, difference_pico=round(value * PICO) - cost.pico)
