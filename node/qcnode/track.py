"""The part between camera and gate.

Pure: the belt is where the encoder says it is, and nothing here knows the time. The
encoder counts pulses modulo 2**32, so positions are compared on that ring and are
never further apart than half of it. A part nobody spoke for in time gets the
gate's default. Parts leave in the order in which they came, one belt after all, and
only because the belt moved: no movement, no fire. Line adapters rely on this.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qcnode.domain import Action

if TYPE_CHECKING:
    from qcnode.domain import Trigger

GATE_DEFAULT = Action.DIVERT
"""What the gate does without a command, or without power."""

RING = 1 << 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Crossing:
    """One part at the gate, and what it met there."""

    trigger: Trigger
    action: Action
    commanded: bool


@dataclass(slots=True)
class _Slot:
    trigger: Trigger
    gate: int
    action: Action | None = None


class Tracker:
    """Parts on their way to a gate `gate_pulses` behind the camera.

    An action is taken only while the gate is more than `guard_pulses` away: what the
    actuator needs to move.
    """

    def __init__(self, *, gate_pulses: int, guard_pulses: int) -> None:
        if not 0 <= guard_pulses < gate_pulses < RING // 2:
            raise ValueError(
                f"the guard ({guard_pulses} pulses) must lie between camera and gate"
                f" ({gate_pulses} pulses, less than half the encoder's range)"
            )
        self._gate_pulses = gate_pulses
        self._guard_pulses = guard_pulses
        self._slots: deque[_Slot] = deque()

    def __len__(self) -> int:
        """Return how many parts are on their way."""
        return len(self._slots)

    def add(self, trigger: Trigger) -> None:
        """Follow a part from the camera on; parts come in the belt's order."""
        gate = (trigger.position + self._gate_pulses) % RING
        if self._slots:
            last = self._slots[-1]
            if trigger.seq <= last.trigger.seq or ahead(last.gate, gate) < 0:
                raise ValueError(
                    f"trigger {trigger.seq} at {trigger.position} cannot come after"
                    f" trigger {last.trigger.seq} at {last.trigger.position}"
                )
        self._slots.append(_Slot(trigger, gate))

    def command(self, seq: int, action: Action, *, position: int) -> bool:
        """Set a part's action and say whether it was in time; the last one in time stands."""
        for slot in self._slots:
            if slot.trigger.seq == seq:
                if ahead(position, slot.gate) <= self._guard_pulses:
                    return False
                slot.action = action
                return True
        return False

    def pass_to(self, position: int) -> list[Crossing]:
        """Move the belt to `position` and return the parts that have met the gate."""
        met: list[Crossing] = []
        while self._slots and ahead(position, self._slots[0].gate) <= 0:
            slot = self._slots.popleft()
            met.append(
                Crossing(
                    trigger=slot.trigger,
                    action=slot.action or GATE_DEFAULT,
                    commanded=slot.action is not None,
                )
            )
        return met

    def release(self) -> list[Crossing]:
        """De-energise the gate: every part still on its way meets the default."""
        left = [
            Crossing(trigger=slot.trigger, action=GATE_DEFAULT, commanded=False)
            for slot in self._slots
        ]
        self._slots.clear()
        return left

    def pulses_to_gate(self, position: int) -> int | None:
        """Return how far the belt must move until the next part meets the gate."""
        return ahead(position, self._slots[0].gate) if self._slots else None


def ahead(position: int, target: int) -> int:
    """Return the pulses from `position` to `target` the shorter way round; negative: passed."""
    pulses = (target - position) % RING
    return pulses if pulses < RING // 2 else pulses - RING
