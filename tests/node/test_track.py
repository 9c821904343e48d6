"""The tracker against the simplest belt one can think of."""

from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qcnode.domain import Action, Trigger
from qcnode.track import GATE_DEFAULT, RING, Tracker, ahead

GATE, GUARD = 1000, 60


def make_trigger(seq, position):
    return Trigger(
        seq=seq, part_id=f"P{seq}", position=position % RING, at_ns=0, deadline_ns=10**12
    )


@dataclass
class ModelPart:
    seq: int
    gate: int
    action: Action | None = None
    gone: bool = False


class BruteForceBelt:
    """A belt whose encoder never wraps and that looks at every part at every move."""

    def __init__(self, position):
        self.position = position
        self.parts = []

    def add(self, seq):
        self.parts.append(ModelPart(seq, self.position + GATE))

    def command(self, seq, action):
        for part in self.parts:
            if part.seq == seq and not part.gone and part.gate - self.position > GUARD:
                part.action = action
                return True
        return False

    def move(self, pulses):
        self.position += pulses
        met = []
        for part in self.parts:
            if not part.gone and part.gate <= self.position:
                part.gone = True
                met.append((part.seq, part.action or GATE_DEFAULT, part.action is not None))
        return met


MOVES = st.tuples(
    st.just("move"),
    st.one_of(
        st.just(0),  # the belt stands
        st.integers(-40, -1),  # it slips back
        st.integers(1, 30),  # slow, so that parts stand inside the guard
        st.integers(31, 900),  # fast: two parts in one window
    ),
)
PARTS = st.tuples(st.just("part"), st.just(0))
COMMANDS = st.tuples(st.sampled_from(list(Action)), st.integers(0, 5))


@settings(deadline=None)  # a busy machine is no failure
@given(
    start=st.one_of(st.integers(RING - 3000, RING - 1), st.integers(0, RING - 1)),
    events=st.lists(st.one_of(MOVES, PARTS, COMMANDS), max_size=80),
)
def test_the_tracker_does_what_the_brute_force_belt_does(start, events):
    belt, tracker = BruteForceBelt(start), Tracker(gate_pulses=GATE, guard_pulses=GUARD)
    seq, furthest = 0, start
    for what, value in events:
        if what == "move":
            expected = belt.move(value)
            crossings = tracker.pass_to(belt.position % RING)
            assert [(c.trigger.seq, c.action, c.commanded) for c in crossings] == expected
        elif what == "part":
            if belt.position < furthest:  # A belt that slipped back sees its last part again.
                continue
            seq, furthest = seq + 1, belt.position
            belt.add(seq)
            tracker.add(make_trigger(seq, belt.position))
        else:
            wanted = max(0, seq - value)
            assert tracker.command(wanted, what, position=belt.position % RING) == belt.command(
                wanted, what
            )
        assert len(tracker) == sum(not part.gone for part in belt.parts)


def test_a_part_nobody_spoke_for_is_diverted():
    tracker = Tracker(gate_pulses=GATE, guard_pulses=GUARD)
    tracker.add(make_trigger(1, 0))

    (crossing,) = tracker.pass_to(GATE)

    assert (crossing.action, crossing.commanded) == (Action.DIVERT, False)


@pytest.mark.parametrize(
    ("to_gate", "in_time"),
    [
        (GUARD + 1, True),
        (GUARD, False),  # the actuator needs all of it
        (0, False),
    ],
)
def test_an_action_counts_only_while_the_gate_is_beyond_the_guard(to_gate, in_time):
    tracker = Tracker(gate_pulses=GATE, guard_pulses=GUARD)
    tracker.add(make_trigger(1, RING - 500))
    position = (RING - 500 + GATE - to_gate) % RING

    assert tracker.command(1, Action.ACCEPT, position=position) is in_time


def test_a_standing_belt_fires_nothing_and_loses_no_action():
    tracker = Tracker(gate_pulses=GATE, guard_pulses=GUARD)
    tracker.add(make_trigger(1, 0))
    tracker.command(1, Action.ACCEPT, position=900)

    assert [tracker.pass_to(999) for _ in range(100)] == [[]] * 100
    assert tracker.pass_to(1000)[0].action is Action.ACCEPT


def test_a_released_gate_forgets_every_action():
    tracker = Tracker(gate_pulses=GATE, guard_pulses=GUARD)
    for seq in (1, 2):
        tracker.add(make_trigger(seq, seq * 10))
        tracker.command(seq, Action.ACCEPT, position=50)

    assert [(c.action, c.commanded) for c in tracker.release()] == [(Action.DIVERT, False)] * 2
    assert len(tracker) == 0


@pytest.mark.parametrize(("seq", "position"), [(7, 100), (8, 99), (6, 200)])
def test_a_part_cannot_come_before_the_one_ahead_of_it(seq, position):
    tracker = Tracker(gate_pulses=GATE, guard_pulses=GUARD)
    tracker.add(make_trigger(7, 100))

    with pytest.raises(ValueError, match=f"trigger {seq} at {position}"):
        tracker.add(make_trigger(seq, position))


@pytest.mark.parametrize("guard", [-1, GATE])
def test_a_guard_outside_the_way_to_the_gate_is_refused(guard):
    with pytest.raises(ValueError, match="between camera and gate"):
        Tracker(gate_pulses=GATE, guard_pulses=guard)


@settings(deadline=None)  # a busy machine is no failure
@given(st.integers(0, RING - 1), st.integers(-(RING // 2), RING // 2 - 1))
def test_distance_on_the_ring_is_what_was_moved(position, pulses):
    assert ahead(position, (position + pulses) % RING) == pulses
