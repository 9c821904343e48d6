"""How results are handed to a PLC, one at a time, with none skipped and none shown twice.

Pure. The words are those of vision systems. The node shows a result and sets ResultsValid;
the PLC takes it and sets ResultsAck; the node takes ResultsValid back; the PLC takes
ResultsAck back, and the next result may be shown. Results that come meanwhile wait in a
short buffer, and one for which there is no room is lost, counted and flagged until the PLC
says ResetFault: a PLC that is too slow learns of it and never mistakes one part's result
for another's.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from qcnode.domain import Action, Disposition, Verdict

RESULTS: Final = 32_768
BUFFERS: Final = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One part's result; without an `action` the gate takes its default.

    With a `disposition` it is of a part that was diverted before, and is for whoever has it.
    """

    seq: int
    verdict: Verdict | None
    action: Action | None
    latency_us: int
    disposition: Disposition | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """What the PLC sees of the handshake; `result` stays until the next one is shown."""

    number: int
    result: Result | None
    valid: bool
    toggle: bool
    overrun: bool
    lost: int
    buffers_left: int


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeStatus:
    """How the node is, as the PLC is shown it."""

    ready: bool
    running: bool
    inspecting: bool


class Handshake:
    """The node's side. `said` is what the PLC wrote, `put` a result; `shown` what it reads."""

    def __init__(self) -> None:
        self._waiting: deque[Result] = deque()
        self._result: Result | None = None
        self._number = RESULTS - 1
        self._valid = False
        self._toggle = False
        self._overrun = False
        self._lost = 0
        self._ack = False
        self._buffering = False
        self._reset = False

    def put(self, result: Result) -> bool:
        """Hand over a result, which is shown when its turn comes; False: it is lost."""
        if len(self._waiting) >= self._room():
            self._overrun, self._lost = True, self._lost + 1
            return False
        self._waiting.append(result)
        self._show_next()
        return True

    def clear(self) -> None:
        """Take back what was not shown yet: nobody is to act on it any more."""
        self._waiting.clear()

    def said(self, *, ack: bool, buffering: bool, reset: bool) -> None:
        """Take what the PLC wrote."""
        if reset and not self._reset:
            self._overrun = False
        self._reset, self._buffering = reset, buffering
        if ack and not self._ack:
            self._valid = False
        self._ack = ack
        self._show_next()

    def shown(self) -> Shown:
        """Return what the PLC reads now."""
        return Shown(
            number=self._number,
            result=self._result,
            valid=self._valid,
            toggle=self._toggle,
            overrun=self._overrun,
            lost=self._lost,
            buffers_left=max(0, self._room() - len(self._waiting)),
        )

    def _room(self) -> int:
        # Without buffering a result waits for the handshake to end, and no longer.
        return BUFFERS if self._buffering else 1

    def _show_next(self) -> None:
        if self._valid or self._ack or not self._waiting:
            return
        self._result = self._waiting.popleft()
        self._number = (self._number + 1) % RESULTS
        self._valid, self._toggle = True, not self._toggle
