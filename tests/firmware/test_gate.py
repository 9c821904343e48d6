"""The controller's tracker and the node's do the same with 10,000 random belts."""

import random

import pytest

from qcnode.domain import Action, Trigger
from qcnode.track import RING, Default, Eye, Tracker

BELTS = 10_000
ACTIONS = {None: 0, Action.ACCEPT: 1, Action.REJECT: 2, Action.DIVERT: 3}
DEFAULTS = {
    None: 0,
    Default.UNSPOKEN: 1,
    Default.LATE: 2,
    Default.CROWDED: 3,
    Default.UNSEEN: 4,
    Default.STRAY: 5,
    Default.RELEASED: 6,
}


@pytest.fixture(scope="module")
def gate(compiled):
    """The controller's tracker, to run belts through."""
    return compiled("gate_vectors")


class Belt:
    """One random belt: what is told to the controller, and what the node's tracker says."""

    def __init__(self, chance):
        self.chance = chance
        self.told, self.expected = [], []
        self.apart = chance.choice([0, 50])
        eye = Eye(before_gate_pulses=100, window_pulses=20) if self.apart else None
        self.eye = eye if chance.random() < 0.6 else None
        self.tracker = Tracker(
            gate_pulses=1000, guard_pulses=60, apart_pulses=self.apart, eye=self.eye
        )
        self.position = chance.choice([0, RING - 700, chance.randrange(RING)])
        self.seq = chance.choice([0, 250])
        self.furthest = self.position
        self.tell("setup", 1000, 60, self.apart, int(self.eye is not None), 100, 20)
        self.expected.append("sound 1")

    def tell(self, what, *numbers):
        self.told.append(" ".join(map(str, [what, *numbers, *[0] * (6 - len(numbers))])))

    def live(self):
        for _ in range(self.chance.randrange(25)):
            step = self.chance.choice(
                [self.move, self.move, self.part, self.speak, self.tag, self.see, self.silence]
            )
            step()
        self.tell("release")
        self.met(self.tracker.release())
        self.expected.append("left 0")

    def move(self):
        self.position += self.chance.choice([0, -15, 7, 40, 111, 300, 900])
        self.tell("pass", 0, self.position % RING)
        self.met(self.tracker.pass_to(self.position % RING))

    def part(self):
        self.seq += self.chance.choice([1, 1, 1, 2])  # now and then a trigger is missed
        in_order = self.position >= self.furthest
        at = self.position % RING
        self.tell("add", self.seq, at)
        try:
            self.tracker.add(
                Trigger(seq=self.seq, part_id="P", position=at, at_ns=0, deadline_ns=1)
            )
        except ValueError:
            self.expected.append("add 0")
            return
        self.expected.append("add 1")
        self.furthest = max(self.furthest, self.position) if in_order else self.furthest

    def speak(self):
        seq, action = max(0, self.seq - self.chance.randrange(5)), self.chance.choice(list(Action))
        at = (self.position + self.chance.choice([0, 0, 600, 930, 960])) % RING
        self.tell("command", seq, at, ACTIONS[action])
        self.expected.append(f"command {int(self.tracker.command(seq, action, position=at))}")

    def tag(self):
        tag, action = self.chance.randrange(256), self.chance.choice(list(Action))
        if self.chance.random() < 0.8:
            tag = self.seq % 256
        at = self.position % RING
        self.tell("tag", tag, at, ACTIONS[action])
        self.expected.append(f"tag {int(self.tracker.command_tag(tag, action, position=at))}")

    def see(self):
        if self.eye is not None:
            at = (self.position + self.chance.choice([0, 450, 880, 900, 915])) % RING
            self.tell("see", 0, at)
            self.tracker.see(at)

    def silence(self):
        if self.chance.random() < 0.2:
            self.tell("disown")
            self.tracker.disown()

    def met(self, crossings):
        for crossing in crossings:
            seq = 0 if crossing.trigger is None else crossing.trigger.seq
            self.expected.append(
                f"met {seq} {ACTIONS[crossing.action]} {DEFAULTS[crossing.default]}"
                f" {ACTIONS[crossing.late]}"
            )


def test_ten_thousand_belts_come_out_alike(gate):
    told, expected = [], []
    for number in range(BELTS):
        belt = Belt(random.Random(number))
        belt.live()
        told += belt.told
        expected += belt.expected

    said = gate(told)

    assert said == expected
    for why in range(7):
        assert any(line.startswith("met") and line.split()[3] == str(why) for line in said), why


SETUPS = [
    (1000, 60, 50, 1, 100, 20),
    (1000, 60, 0, 0, 0, 0),
    (1000, 1000, 0, 0, 0, 0),
    (1000, 60, 1000, 0, 0, 0),
    (1000, 60, 50, 1, 100, 25),
    (1000, 60, 50, 1, 39, 20),
    (1000, 60, 50, 1, 990, 20),
    (1000, 60, 0, 1, 100, 0),
    (RING // 2, 60, 0, 0, 0, 0),
]


def test_a_setup_is_sound_where_the_node_would_build_it(gate):
    def builds(setup):
        gate_pulses, guard, apart, has_eye, before, window = setup
        eye = Eye(before_gate_pulses=before, window_pulses=window) if has_eye else None
        try:
            Tracker(gate_pulses=gate_pulses, guard_pulses=guard, apart_pulses=apart, eye=eye)
        except ValueError:
            return 0
        return 1

    said = gate(["setup " + " ".join(map(str, setup)) for setup in SETUPS])

    assert said == [f"sound {builds(setup)}" for setup in SETUPS]
    assert {"sound 0", "sound 1"} == set(said)


def test_a_node_that_is_silent_for_a_second_is_gone_also_when_the_clock_wraps(gate):
    wrap = 2**32
    said = gate(
        [
            "watch 1000 500 1500 0 0 0",
            "watch 1000 500 1501 0 0 0",
            f"watch 1000 {wrap - 400} 600 0 0 0",
            f"watch 1000 {wrap - 400} 601 0 0 0",
        ]
    )

    assert said == ["watch 0 1", "watch 0 0", "watch 0 1", "watch 0 0"]
