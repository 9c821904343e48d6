"""The virtual line in a time of its own, which stands while the node works.

A belt that runs by the clock shows whether the node keeps up. This one shows everything
else, faster than a shift takes: each part comes when the one before it was judged, the
belt's clock having moved on by one period, so nothing is ever late and no latency means
anything. The same parts come in the same order, whatever machine it runs on.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Final

from qcnode.lines.virtual import NS_PER_S

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from qcnode.domain import Action, Disposition, Passage, Trigger
    from qcnode.lines.virtual import VirtualLine

START_NS: Final = NS_PER_S


class BeltClock:
    """Belt time in nanoseconds; it moves when it is told to. Any thread may ask."""

    def __init__(self) -> None:
        self._ns = START_NS

    def ns(self) -> int:
        """Return the time."""
        return self._ns

    def advance(self, by_ns: int) -> None:
        """Move on; one thread does this."""
        self._ns += by_ns


class PacedLine:
    """Moves `line` by one period for each part that is asked for; a `Line`.

    `line` is by hand, has no jitter and tells the time by `clock`. `between` is called
    with the number of parts so far, each time before the next one comes; it may take as
    long as it likes, and says whether there shall be a next one.
    """

    def __init__(
        self,
        line: VirtualLine,
        clock: BeltClock,
        *,
        period_ns: int,
        between: Callable[[int], bool],
    ) -> None:
        self._line = line
        self._clock = clock
        self._period_ns = period_ns
        self._between = between
        self._stopped = threading.Event()

    def last_trigger(self) -> int:
        """Return the line's own count of triggers."""
        return self._line.last_trigger()

    def triggers(self) -> Iterator[Trigger]:
        """Yield each part; the belt moves when the next one is asked for."""
        self._line.step(self._clock.ns())
        arriving, count = self._line.triggers(), 0
        while not self._stopped.is_set():
            if count and not self._between(count):
                self._line.finish()
            self._clock.advance(self._period_ns)
            self._line.step(self._clock.ns())
            trigger = next(arriving, None)
            if trigger is None:
                return
            count += 1
            yield trigger

    def act(self, trigger: Trigger, action: Action) -> bool:
        """Set the part's action."""
        return self._line.act(trigger, action)

    def passages(self) -> Sequence[Passage]:
        """Return what the gate did since the last call."""
        return self._line.passages()

    def dispose(self, part_id: str, disposition: Disposition) -> None:
        """Write down what becomes of a diverted part."""
        self._line.dispose(part_id, disposition)

    def stop(self) -> None:
        """End `triggers`."""
        self._stopped.set()
        self._line.stop()
