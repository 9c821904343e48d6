"""The part between camera and gate.

Pure: the belt is where the encoder says it is, and nothing here knows the time. The
encoder counts pulses modulo 2**32, so positions are compared on that ring and are
never further apart than half of it. Parts leave in the order in which they came, one
belt after all, and only because the belt moved: no movement, no fire. A part leaves with
the action it was given only if nothing is in doubt; every doubt is the gate's default and
has a name (`Default`). Line adapters rely on this.
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from qcnode.domain import Action

if TYPE_CHECKING:
    from collections.abc import Mapping

    from qcnode.domain import Trigger

GATE_DEFAULT = Action.DIVERT
"""What the gate does without a command, or without power."""

RING = 1 << 32
TAGS = 256


class Default(StrEnum):
    """Why a part met the gate's default."""

    UNSPOKEN = "unspoken"
    """Nobody spoke for it."""
    LATE = "late"
    """Somebody spoke for it when the gate was too near."""
    CROWDED = "crowded"
    """Another part was nearer than the gate can move: no single one can be sorted."""
    UNSEEN = "unseen"
    """The eye at the gate did not see it where it should have been."""
    STRAY = "stray"
    """The eye saw a part that no trigger had announced."""
    RELEASED = "released"
    """The gate was let go of."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Crossing:
    """One part at the gate, and what it met there; a stray one has no trigger.

    `late` is the action somebody asked for when it could no longer be taken.
    """

    trigger: Trigger | None
    action: Action
    default: Default | None = None
    late: Action | None = None

    @property
    def commanded(self) -> bool:
        """Say whether the action was set in time, or is the gate's own default."""
        return self.default is None


@dataclass(frozen=True, slots=True, kw_only=True)
class Eye:
    """A photo-eye `before_gate_pulses` ahead of the gate.

    A part that is on the belt at all is at most `window_pulses` from where its trigger and
    the encoder say. As long as that is true, no part is taken for another, but for one that
    came untriggered right beside one that fell off: nothing at the belt tells that from a slip.
    """

    before_gate_pulses: int
    window_pulses: int


@dataclass(slots=True)
class _Slot:
    trigger: Trigger | None
    gate: int
    action: Action | None = None
    late: Action | None = None
    seen: bool = False


class Tracker:
    """Parts on their way to a gate `gate_pulses` behind the camera.

    An action is taken only while the gate is more than `guard_pulses` away: what the
    actuator needs to move, and what a part may be off. Parts less than `apart_pulses` from
    each other cannot be sorted and take the default. With an `eye`, each part's place is
    where the eye saw it, and one that it did not see has no action.
    """

    def __init__(
        self, *, gate_pulses: int, guard_pulses: int, apart_pulses: int = 0, eye: Eye | None = None
    ) -> None:
        if not 0 <= guard_pulses < gate_pulses < RING // 2:
            raise ValueError(
                f"the guard ({guard_pulses} pulses) must lie between camera and gate"
                f" ({gate_pulses} pulses, less than half the encoder's range)"
            )
        if not 0 <= apart_pulses < gate_pulses:
            raise ValueError(
                f"parts are sorted one by one between camera and gate ({gate_pulses} pulses),"
                f" so they cannot have to be {apart_pulses} pulses apart"
            )
        if eye is not None and not (
            # Parts that the eye could take for each other are too near to be sorted.
            0 <= 2 * eye.window_pulses < max(1, apart_pulses)
            and 2 * eye.window_pulses <= eye.before_gate_pulses
            and eye.before_gate_pulses + eye.window_pulses < gate_pulses
        ):
            raise ValueError(
                f"{eye} must look at a stretch between camera and gate ({gate_pulses} pulses), by"
                f" a window of less than half of what parts are apart ({apart_pulses} pulses)"
            )
        self._gate_pulses = gate_pulses
        self._guard_pulses = guard_pulses
        self._apart_pulses = apart_pulses
        self._eye = eye
        self._slots: deque[_Slot] = deque()
        self._last_gate: int | None = None
        self._counts: Counter[Default] = Counter()

    def __len__(self) -> int:
        """Return how many parts are on their way."""
        return len(self._slots)

    def add(self, trigger: Trigger) -> int:
        """Follow a part from the camera on and return its tag; parts come in the belt's order."""
        gate = (trigger.position + self._gate_pulses) % RING
        last = next((slot for slot in reversed(self._slots) if slot.trigger is not None), None)
        if last is not None and last.trigger is not None:
            nominal = (last.trigger.position + self._gate_pulses) % RING
            if trigger.seq <= last.trigger.seq or ahead(nominal, gate) < 0:
                raise ValueError(
                    f"trigger {trigger.seq} at {trigger.position} cannot come after"
                    f" trigger {last.trigger.seq} at {last.trigger.position}"
                )
        self._slots.append(_Slot(trigger, gate))
        return tag_of(trigger.seq)

    def command(self, seq: int, action: Action, *, position: int) -> bool:
        """Set a part's action and say whether it was in time; the last one in time stands."""
        for slot in self._slots:
            if slot.trigger is not None and slot.trigger.seq == seq:
                return self._command(slot, action, position)
        return False

    def command_tag(self, tag: int, action: Action, *, position: int) -> bool:
        """As `command`, by tag; a tag that two parts bear names neither."""
        slots = [
            slot
            for slot in self._slots
            if slot.trigger is not None and tag_of(slot.trigger.seq) == tag
        ]
        return len(slots) == 1 and self._command(slots[0], action, position)

    def see(self, position: int) -> None:
        """Take note that the eye sees a part: the first one that may be there is put right."""
        if self._eye is None:
            raise ValueError("this tracker was built without an eye")
        gate = (position + self._eye.before_gate_pulses) % RING
        for slot in self._slots:
            off = ahead(gate, slot.gate)
            if off > self._eye.window_pulses:
                break  # This one, and all behind it, are still on their way to the eye.
            if not slot.seen and off >= -self._eye.window_pulses:
                slot.gate, slot.seen = gate, True
                return
        stray = _Slot(None, gate, seen=True)
        behind = next(
            (at for at, slot in enumerate(self._slots) if ahead(gate, slot.gate) > 0),
            len(self._slots),
        )
        self._slots.insert(behind, stray)

    def pass_to(self, position: int) -> list[Crossing]:
        """Move the belt to `position` and return the parts that have met the gate."""
        met: list[Crossing] = []
        while self._slots and ahead(position, self._slots[0].gate) <= 0:
            slot = self._slots.popleft()
            met.append(self._crossing(slot))
            self._last_gate = slot.gate
        return met

    def disown(self) -> None:
        """Forget every action given so far: whoever gave them is gone. The parts stay."""
        for slot in self._slots:
            slot.action = None

    def release(self) -> list[Crossing]:
        """De-energise the gate: every part still on its way meets the default."""
        left = [
            Crossing(
                trigger=slot.trigger,
                action=GATE_DEFAULT,
                default=Default.RELEASED,
                late=slot.late,
            )
            for slot in self._slots
        ]
        self._counts[Default.RELEASED] += len(left)
        self._slots.clear()
        return left

    def pulses_to_gate(self, position: int) -> int | None:
        """Return how far the belt must move until the next part meets the gate."""
        return ahead(position, self._slots[0].gate) if self._slots else None

    def counts(self) -> Mapping[Default, int]:
        """Return how many parts met the default, by reason."""
        return dict(self._counts)

    def _command(self, slot: _Slot, action: Action, position: int) -> bool:
        if ahead(position, slot.gate) <= self._guard_pulses:
            slot.late = action
            return False
        slot.action = action
        return True

    def _crossing(self, slot: _Slot) -> Crossing:
        default = self._doubt(slot)
        if default is None and slot.action is not None:
            return Crossing(trigger=slot.trigger, action=slot.action, late=slot.late)
        default = default or Default.UNSPOKEN
        self._counts[default] += 1
        return Crossing(trigger=slot.trigger, action=GATE_DEFAULT, default=default, late=slot.late)

    def _doubt(self, slot: _Slot) -> Default | None:
        """Say why the part that meets the gate now may not have its action."""
        if slot.trigger is None:
            return Default.STRAY
        if self._eye is not None and not slot.seen:
            return Default.UNSEEN
        if self._is_crowded(slot):
            return Default.CROWDED
        if slot.action is None and slot.late is not None:
            return Default.LATE
        return None

    def _is_crowded(self, slot: _Slot) -> bool:
        near = [slot.gate for slot in self._slots]
        if self._last_gate is not None:
            near.append(self._last_gate)
        return any(abs(ahead(slot.gate, gate)) < self._apart_pulses for gate in near)


class Verifier:
    """Sees that parts the gate turned away did arrive where such parts go.

    A sensor there sees them between the gate and `within_pulses` of belt later, in order.
    """

    def __init__(self, *, within_pulses: int) -> None:
        if not 0 < within_pulses < RING // 2:
            raise ValueError(f"a part arrives within some way, not {within_pulses} pulses")
        self._within_pulses = within_pulses
        self._due: deque[tuple[int, Crossing]] = deque()

    def expect(self, crossing: Crossing, *, position: int) -> None:
        """Take note of a part at the gate; one that was let pass is not waited for."""
        if crossing.action is not Action.ACCEPT:
            self._due.append(((position + self._within_pulses) % RING, crossing))

    def confirm(self, position: int) -> Crossing | None:
        """Return the part that has arrived; None when none should have."""
        for at, (until, crossing) in enumerate(self._due):
            if ahead(position, until) >= 0:
                del self._due[at]
                return crossing
        return None

    def pass_to(self, position: int) -> list[Crossing]:
        """Return the parts that should have arrived by now and did not: an alarm each."""
        missing: list[Crossing] = []
        while self._due and ahead(position, self._due[0][0]) < 0:
            missing.append(self._due.popleft()[1])
        return missing


def tag_of(seq: int) -> int:
    """Return the tag by which controllers know a trigger; it comes again after 256."""
    return seq % TAGS


def may_hold(
    *, pulses_to_gate: int, guard_pulses: int, pulses_per_s: float, answer_p95_s: float | None
) -> bool:
    """Say whether the line may wait for an answer that usually takes `answer_p95_s`.

    A belt that stands gives no time: it may start again at any moment, and the guard is a
    length of belt. An answering time nobody has measured (None) is no reason to wait.
    """
    if answer_p95_s is None or pulses_per_s <= 0:
        return False
    return (pulses_to_gate - guard_pulses) / pulses_per_s > answer_p95_s


def ahead(position: int, target: int) -> int:
    """Return the pulses from `position` to `target` the shorter way round; negative: passed."""
    pulses = (target - position) % RING
    return pulses if pulses < RING // 2 else pulses - RING
