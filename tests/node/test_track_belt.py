"""The whole tracker (eye, crowding, late verdicts, tags) against a belt that knows everything.

The belt here has real parts at real places, which slip, fall off, or pass the camera
untriggered; its encoder never wraps. What is checked is what a factory cares for: no part
ever leaves with an action that was meant for another one, and each default has its reason.
"""

import random
from collections import Counter
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcnode.domain import Action, Trigger
from qcnode.track import (
    GATE_DEFAULT,
    RING,
    TAGS,
    Default,
    Eye,
    Tracker,
    Verifier,
    ahead,
    may_hold,
    tag_of,
)

GATE, GUARD, APART = 1000, 60, 50
EYE = Eye(before_gate_pulses=100, window_pulses=20)


def make_trigger(seq, position):
    return Trigger(
        seq=seq, part_id=f"P{seq}", position=position % RING, at_ns=0, deadline_ns=10**12
    )


@dataclass
class RealPart:
    """One part: where it was triggered, where it is off to, and what was asked for it."""

    seq: int | None  # None: the trigger was missed
    born: int
    slip: int = 0
    fell: bool = False
    seen: bool = False
    wanted: Action | None = None
    late: Action | None = None

    @property
    def at_eye(self):
        return self.born + self.slip + GATE - EYE.before_gate_pulses

    @property
    def at_gate(self):
        return self.born + self.slip + GATE


# What happens to one part: how far behind the last one, what it is, when it is spoken for.
PART = st.fixed_dictionaries(
    {
        "gap": st.one_of(st.integers(1, APART + 5), st.integers(APART, 400)),
        "fate": st.sampled_from(["fine"] * 6 + ["missed", "fell"]),
        "slip": st.integers(-EYE.window_pulses, EYE.window_pulses),
        "action": st.sampled_from([*Action, None]),
        "after": st.integers(0, GATE + 50),
    }
)


@given(start=st.integers(0, RING - 1), plans=st.lists(PART, min_size=1, max_size=12))
def test_no_part_leaves_with_the_action_of_another(start, plans):
    run_belt(start, plans)


@pytest.mark.long
def test_a_million_triggers_each_meet_the_gate_once_and_no_part_as_another():
    chance, triggers, met = random.Random(20261122), 0, Counter()
    while triggers < 1_000_000:
        plans = [random_plan(chance) for _ in range(2_000)]
        met += run_belt(chance.randrange(RING), plans)
        triggers = sum(met.values()) - met[Default.STRAY]

    assert set(met) == {None, *Default} - {Default.RELEASED}


def random_plan(chance):
    return {
        "gap": chance.choice([chance.randint(1, APART + 5), chance.randint(APART, 400)]),
        "fate": chance.choice(["fine"] * 6 + ["missed", "fell"]),
        "slip": chance.randint(-EYE.window_pulses, EYE.window_pulses),
        "action": chance.choice([*Action, None]),
        "after": chance.randint(0, GATE + 50),
    }


def run_belt(start, plans):
    """Run a belt of these parts and return how many met the gate, by why they met its default."""
    tracker = Tracker(gate_pulses=GATE, guard_pulses=GUARD, apart_pulses=APART, eye=EYE)
    parts, events = lay_out(start, plans)
    by_seq, leaving, met = {p.seq: p for p in parts if p.seq is not None}, {}, []
    for position, _order, what, part, action in events:
        for crossing in tracker.pass_to(position % RING):
            met.append(crossing)
            note(crossing, by_seq, leaving, position)
        if what == "camera":
            assert tracker.add(make_trigger(part.seq, position)) == part.seq % TAGS
        elif what == "eye":
            tracker.see(position % RING)
        elif what == "gate":
            check_gate(part, leaving.get(position))
        elif tracker.command(part.seq, action, position=position % RING):
            # Its own slip, and on a crowded belt the slip of the one it is taken for.
            assert part.at_gate - position > GUARD - 2 * EYE.window_pulses
            part.wanted = action
    for crossing in tracker.pass_to((parts[-1].born + GATE + 500) % RING):
        met.append(crossing)
        note(crossing, by_seq, leaving, None)
    assert len(tracker) == 0
    seqs = [crossing.trigger.seq for crossing in met if crossing.trigger is not None]
    assert sorted(seqs) == sorted(by_seq), "a trigger met the gate twice, or never"
    return Counter(crossing.default for crossing in met)


def lay_out(start, plans):
    """Return the parts of these plans and what happens to them, in order of the belt."""
    parts, events, born, seq = [], [], start, 0
    for plan in plans:
        # No part overtakes the one before it, however both have slipped.
        least = 1 + (parts[-1].slip - plan["slip"] if parts else 0)
        born += max(plan["gap"], least, 1)
        missed, fell = plan["fate"] == "missed", plan["fate"] == "fell"
        if parts and born - parts[-1].born <= 2 * EYE.window_pulses:
            # One that came untriggered beside one that fell off looks like one that slipped:
            # nothing at the belt can tell.
            missed = missed and not parts[-1].fell
            fell = fell and parts[-1].seq is not None
        seq += not missed
        part = RealPart(None if missed else seq, born, plan["slip"], fell)
        parts.append(part)
        if not missed:
            events.append((born, 0, "camera", part, None))
            if plan["action"] is not None:
                events.append((born + plan["after"], 2, "speak", part, plan["action"]))
        if not part.fell:
            events.append((part.at_eye, 1, "eye", part, None))
            events.append((part.at_gate, 3, "gate", part, None))
    return parts, sorted(events, key=lambda event: event[:2])


def check_gate(part, crossing):
    """The real part is at the gate now: what the gate does, it does to this one."""
    assert crossing is not None, "a part came to a gate that did not expect it"
    if crossing.action is not GATE_DEFAULT:
        assert crossing.trigger is not None
        assert crossing.trigger.seq == part.seq
        assert crossing.action is part.wanted


def note(crossing, by_seq, leaving, position):
    """Keep what the gate does, by the place at which it does it."""
    if crossing.default in (None, Default.CROWDED, Default.STRAY) or position is None:
        leaving[position] = crossing
    else:
        leaving.setdefault(position, crossing)
    if crossing.trigger is not None:
        part = by_seq[crossing.trigger.seq]
        if crossing.default is None:
            assert crossing.action is part.wanted


def make_tracker(**options):
    return Tracker(**{"gate_pulses": GATE, "guard_pulses": GUARD, **options})


def test_a_late_verdict_is_recorded_as_late_and_moves_no_gate():
    tracker = make_tracker()
    tracker.add(make_trigger(1, 0))

    assert not tracker.command(1, Action.ACCEPT, position=GATE - GUARD)

    (crossing,) = tracker.pass_to(GATE)
    assert (crossing.action, crossing.default) == (GATE_DEFAULT, Default.LATE)
    assert crossing.late is Action.ACCEPT
    assert not tracker.command(1, Action.ACCEPT, position=GATE + 1)


def test_an_action_in_time_stands_when_another_comes_late():
    tracker = make_tracker()
    tracker.add(make_trigger(1, 0))
    tracker.command(1, Action.REJECT, position=10)

    assert not tracker.command(1, Action.ACCEPT, position=GATE - 1)

    (crossing,) = tracker.pass_to(GATE)
    assert (crossing.action, crossing.late) == (Action.REJECT, Action.ACCEPT)


@pytest.mark.parametrize(("gap", "sorted_"), [(APART, True), (APART - 1, False)])
def test_parts_nearer_than_the_gate_can_move_both_take_the_default(gap, sorted_):
    tracker = make_tracker(apart_pulses=APART)
    for seq, position in ((1, RING - 10), (2, RING - 10 + gap), (3, RING + 500)):
        tracker.add(make_trigger(seq, position))
        tracker.command(seq, Action.ACCEPT, position=(RING - 10) % RING)

    crossings = tracker.pass_to(RING // 4)

    assert [c.commanded for c in crossings] == [sorted_, sorted_, True]
    assert tracker.counts().get(Default.CROWDED, 0) == (0 if sorted_ else 2)


def test_a_part_whose_trigger_was_missed_is_diverted_and_so_is_a_near_neighbour():
    tracker = make_tracker(apart_pulses=APART, eye=EYE)
    for seq, position in ((1, 0), (2, 300)):
        tracker.add(make_trigger(seq, position))
        tracker.command(seq, Action.ACCEPT, position=10)
    for position in (0, 40, 300):  # the second of them no camera saw
        tracker.see(position + GATE - EYE.before_gate_pulses)

    crossings = tracker.pass_to(GATE + 400)

    assert [c.default for c in crossings] == [Default.CROWDED, Default.STRAY, None]
    assert crossings[1].trigger is None


def test_a_part_that_slipped_is_sorted_where_the_eye_saw_it():
    tracker = make_tracker(apart_pulses=APART, eye=EYE)
    tracker.add(make_trigger(1, 0))
    tracker.command(1, Action.ACCEPT, position=10)
    tracker.see(GATE - EYE.before_gate_pulses + 15)

    assert tracker.pass_to(GATE + 14) == []
    assert tracker.pass_to(GATE + 15)[0].action is Action.ACCEPT


def test_a_part_that_slipped_too_far_is_unseen_and_then_a_stray():
    tracker = make_tracker(apart_pulses=APART, eye=EYE)
    tracker.add(make_trigger(1, 0))
    tracker.command(1, Action.ACCEPT, position=10)
    tracker.see(GATE - EYE.before_gate_pulses + EYE.window_pulses + 1)

    defaults = [crossing.default for crossing in tracker.pass_to(GATE + 100)]

    assert defaults == [Default.UNSEEN, Default.STRAY]


def test_a_tag_that_two_parts_bear_names_neither():
    tracker = Tracker(gate_pulses=10_000, guard_pulses=GUARD)
    for seq in range(1, TAGS + 2):
        tracker.add(make_trigger(seq, seq * 10))

    assert tag_of(1) == tag_of(TAGS + 1)
    assert not tracker.command_tag(tag_of(1), Action.ACCEPT, position=5_000)
    assert tracker.command_tag(tag_of(2), Action.ACCEPT, position=5_000)
    assert not tracker.command_tag(tag_of(0), Action.ACCEPT, position=10_000 + TAGS * 10)


def test_a_released_gate_says_why():
    tracker = make_tracker()
    tracker.add(make_trigger(1, 0))

    assert [crossing.default for crossing in tracker.release()] == [Default.RELEASED]
    assert tracker.counts() == {Default.RELEASED: 1}


@pytest.mark.parametrize(
    "options",
    [
        {"apart_pulses": GATE},
        {"apart_pulses": -1},
        {"eye": EYE},  # parts it could take for each other would be sorted
        {"apart_pulses": APART, "eye": Eye(before_gate_pulses=100, window_pulses=25)},
        {"apart_pulses": APART, "eye": Eye(before_gate_pulses=39, window_pulses=20)},
        {"apart_pulses": APART, "eye": Eye(before_gate_pulses=GATE, window_pulses=20)},
        {"apart_pulses": APART, "eye": Eye(before_gate_pulses=100, window_pulses=-1)},
    ],
)
def test_a_tracker_that_could_mistake_parts_cannot_be_built(options):
    with pytest.raises(ValueError, match="between camera and gate"):
        make_tracker(**options)


def rejected(seq):
    tracker = make_tracker()
    tracker.add(make_trigger(seq, 0))
    tracker.command(seq, Action.REJECT, position=1)
    return tracker.pass_to(GATE)[0]


def test_a_rejected_part_that_does_not_arrive_is_an_alarm():
    verifier = Verifier(within_pulses=200)
    first, second = rejected(1), rejected(2)
    verifier.expect(first, position=RING - 150)
    verifier.expect(second, position=RING - 50)

    assert verifier.confirm(RING - 20) is first
    assert verifier.pass_to(150) == []
    assert verifier.pass_to(151) == [second]
    assert verifier.pass_to(500) == []
    assert verifier.confirm(510) is None


def test_a_part_that_was_let_pass_is_not_waited_for():
    tracker = make_tracker()
    tracker.add(make_trigger(1, 0))
    tracker.command(1, Action.ACCEPT, position=1)
    verifier = Verifier(within_pulses=200)
    verifier.expect(tracker.pass_to(GATE)[0], position=GATE)

    assert verifier.pass_to(GATE + 1000) == []


def test_a_verifier_without_a_way_to_look_at_is_refused():
    with pytest.raises(ValueError, match="within some way"):
        Verifier(within_pulses=0)


@pytest.mark.parametrize(
    ("pulses", "speed", "p95", "holds"),
    [
        (10_060, 10_000.0, 0.99, True),
        (10_060, 10_000.0, 1.0, False),  # exactly as long is too long
        (10_060, 10_000.0, None, False),  # nobody has measured
        (10_060, 0.0, 0.1, False),  # the belt stands
    ],
)
def test_the_line_waits_for_an_answer_only_when_there_is_time(pulses, speed, p95, holds):
    assert (
        may_hold(pulses_to_gate=pulses, guard_pulses=GUARD, pulses_per_s=speed, answer_p95_s=p95)
        is holds
    )


@given(st.integers(0, RING - 1), st.integers(-(RING // 2) + 1, RING // 2 - 1))
def test_the_way_there_is_the_way_back(position, pulses):
    target = (position + pulses) % RING
    assert ahead(position, target) == -ahead(target, position)
