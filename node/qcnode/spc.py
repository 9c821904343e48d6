"""Whether something has become more common: statistical process control, pure.

A CUSUM adds up, part by part, how much better "so many times as common as usual" explains
what comes than "as usual", and never falls below nothing. While all is as usual it reaches
`log(n)` no sooner than once in n parts on average (Lorden), whatever n and however rare the
event, as long as the usual rate is right. A rate that was itself counted is uncertain, so
who counts it should not count on too few.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

RATE_MIN: Final = 1e-4
RATE_MAX: Final = 0.45


@dataclass(frozen=True, slots=True, kw_only=True)
class Cusum:
    """Watches for one event, `times` as common as its `usual` rate; `level` is how sure it is.

    `parts_between` is how many parts come between two false alarms, at least, on average.
    """

    usual: float
    times: float = 4.0
    parts_between: float = 3_000.0
    level: float = 0.0

    def __post_init__(self) -> None:
        if not (0.0 <= self.usual <= 1.0 and self.times > 1.0 and self.parts_between > 1.0):
            raise ValueError(f"a usual rate is a share, and a rise and a wait exceed 1: {self}")

    @property
    def alarmed(self) -> bool:
        """Whether it is no chance any more."""
        return self.level >= math.log(self.parts_between)

    @property
    def share(self) -> float:
        """How far it is on the way to an alarm; 1 and more is one."""
        return self.level / math.log(self.parts_between)

    def after(self, *, events: int, parts: int) -> Cusum:
        """Return it after so many parts more, of which so many had the event."""
        if not 0 <= events <= parts:
            raise ValueError(f"{events} of {parts} parts cannot have an event")
        usual = min(max(self.usual, RATE_MIN), RATE_MAX)
        raised = min(usual * self.times, (1.0 + RATE_MAX) / 2.0)
        level = self.level
        level += events * math.log(raised / usual)
        level += (parts - events) * math.log((1.0 - raised) / (1.0 - usual))
        return Cusum(
            usual=self.usual,
            times=self.times,
            parts_between=self.parts_between,
            level=max(0.0, level),
        )

    def cleared(self) -> Cusum:
        """Return it as it begins: something was changed, and what came before is past."""
        return Cusum(usual=self.usual, times=self.times, parts_between=self.parts_between)
