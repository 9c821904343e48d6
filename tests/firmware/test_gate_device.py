"""The reject gate's and the stack light's logic, compiled as strictly as can be and run on belts.

What is asked of the gate: whatever the network, the clocks and the counts do, the coil is on
only for a part that the node passed, and never in front of a part that it did not.
"""

import random
from datetime import UTC, datetime, timedelta

import pytest

BELTS = 1_000
GATE, GUARD, APART, OPEN, MATCH_MS, ANSWER_MS = 1_000, 140, 240, 200, 100, 150
START_MS = 1_795_348_800_000


@pytest.fixture(scope="module")
def device(compiled):
    """Gate and stack light, to feed events."""
    return compiled("gate_device")


class Belt:
    """Parts on a belt at one pulse a millisecond, a node that judges them, a network between.

    Time comes in steps of 10 ms. `faults`: what may go wrong. The node's count of triggers is
    its own: it misses some, as the gate does.
    """

    def __init__(self, seed, *, faults=True, apart_ms=None):
        chance = random.Random(seed)
        self.events = [f"new {GATE} {GUARD} {APART} {OPEN} {MATCH_MS} {ANSWER_MS}"]
        self.at = []
        self.passed = {}
        skew = chance.choice([0, 0, 20, -20, 120, 300, 400, -300, 5_000, -5_000]) if faults else 0
        start = chance.choice([0, (1 << 31) - 2_000, (1 << 32) - 1_500])
        due = []
        position, node_seq, born = 0, chance.randrange(1_000), {}
        next_part = gap = 300
        silent = chance.randrange(3_000, 9_000) if faults and chance.random() < 0.4 else 99_999
        stops = chance.randrange(2_000, 9_000) if chance.random() < 0.3 else 99_999
        for now in range(0, 12_000, 10):
            if not stops <= now < stops + 700:
                position += 10
            self.events.append(f"moved {(start + position) & 0xFFFFFFFF}")
            if position >= next_part and now < 9_500:
                before = gap
                gap = chance.choice([150, 250, 300, 500, 900]) if apart_ms is None else apart_ms
                # A part that no eye saw right beside another one, nothing at the belt can tell.
                alone = min(before, gap) >= 300
                next_part = position + gap
                passes = chance.random() < 0.6
                born[position] = passes
                if not (faults and alone and chance.random() < 0.05):
                    self.events.append(f"trigger {START_MS + now + skew}")
                if not (faults and chance.random() < 0.05):
                    node_seq += 1
                    late = chance.choice([40, 40, 80, 80, 200, 900, 2_500]) if faults else 40
                    taken = now + chance.randrange(0, 30)
                    word = "ACCEPT" if passes else chance.choice(["REJECT", "DIVERT", "null"])
                    answer = f"answer {node_seq} {word} {START_MS + taken}"
                    due.append((now + late, answer))
                    if faults and chance.random() < 0.1:
                        due.append((now + late + 700, answer))
            if now % 500 == 0 and not silent <= now < silent + 2_000:
                self.events.append(f"beat 1 {now}")
            for when, answer in [one for one in due if one[0] <= now]:
                due.remove((when, answer))
                self.events.append(f"{answer} {START_MS + now + skew}")
            self.events.append(f"tick {now}")
            self.at.append((now, position, silent <= now - 1_000 < silent + 990))
        self.born = born
        self.events.append("counts")

    def wrong(self, said):
        """Return the parts that went through an open gate though the node did not pass them."""
        open_at = [
            position
            for (_now, position, _gone), coil in zip(self.at, said, strict=False)
            if coil == "1"
        ]
        found = []
        for born, passes in self.born.items():
            # While a part is at the gate: from its crossing until the next step.
            if not passes and any(0 <= at - (born + GATE) < 20 for at in open_at):
                found.append(born)
        return found

    def through(self, said):
        """Return the parts that went through an open gate."""
        open_at = {
            position
            for (_now, position, _gone), coil in zip(self.at, said, strict=False)
            if coil == "1"
        }
        return [born for born in self.born if born + GATE in open_at]


def run(device, belts):
    """Run belts one behind the other and return what each one's coil did, and its counts."""
    said = device([event for belt in belts for event in belt.events])
    per = len(belts[0].at) + 1
    return [said[at : at + per] for at in range(0, len(said), per)]


def test_no_part_passes_that_the_node_did_not_pass_whatever_goes_wrong(device):
    belts = [Belt(seed) for seed in range(BELTS)]

    passed = 0
    for seed, (belt, said) in enumerate(zip(belts, run(device, belts), strict=True)):
        assert belt.wrong(said[:-1]) == [], f"belt {seed}"
        passed += int(said[-1].split()[1])
    assert passed > BELTS // 2  # or the gate would be right by never opening


def test_without_faults_every_part_that_may_pass_does_but_the_first(device):
    belts = [Belt(seed, faults=False, apart_ms=400) for seed in range(50)]

    for belt, said in zip(belts, run(device, belts), strict=True):
        # The counts must have agreed in three answers before the first is believed.
        may = [born for born, passes in belt.born.items() if passes and born > 300 + 2 * 400]
        assert set(may) <= set(belt.through(said[:-1]))


def scripted(*, until_ms, triggers, answers, silent=()):
    """Return the events of a belt at one pulse a millisecond: what happens, at what time."""
    events = [f"new {GATE} {GUARD} {APART} {OPEN} {MATCH_MS} {ANSWER_MS}"]
    for now in range(0, until_ms, 10):
        events.append(f"moved {now}")
        if now % 500 == 0 and now not in silent:
            events.append(f"beat 1 {now}")
        if now in triggers:
            events.append(f"trigger {START_MS + now}")
        for seq, word, taken in answers.get(now, ()):
            events.append(f"answer {seq} {word} {START_MS + taken} {START_MS + now}")
        events.append(f"tick {now}")
    return [*events, "counts"]


def passing(device, events):
    """Return when the gate was open, and its counts."""
    *said, counts = device(events)
    at = [10 * index for index, coil in enumerate(said) if coil == "1"]
    return at, [int(word) for word in counts.split()]


GOOD = {at: [(number, "ACCEPT", at - 40)] for number, at in enumerate(range(440, 4_500, 400), 1)}
"""A part each 400 ms from 400 ms on, and an answer for each 40 ms later."""


def test_a_count_that_no_longer_agrees_lets_go_of_every_part_on_its_way(device):
    triggers = range(400, 4_500, 400)
    at, _ = passing(device, scripted(until_ms=6_000, triggers=triggers, answers=GOOD))
    assert any(3_000 <= when < 3_200 for when in at)  # the part of 2,000 passes at 3,000

    # From 2,400 on the node counts one less: it missed a trigger.
    missed = {
        when: [(seq - (when > 2_400), word, taken)] for when, [(seq, word, taken)] in GOOD.items()
    }
    at, counts = passing(device, scripted(until_ms=6_000, triggers=triggers, answers=missed))

    assert not any(2_450 <= when < 4_200 for when in at)  # those of 1,600 to 2,800 were let go of
    assert any(when > 4_200 for when in at)  # and then the counts agree anew
    assert counts[5] == 1


def test_an_answer_that_may_be_for_either_of_two_parts_is_for_none(device):
    triggers = sorted({*range(400, 4_500, 400), 2_600})  # 200 ms behind the one of 2,400
    answers = {**GOOD, 2_640: [(7, "ACCEPT", 2_600)], 2_840: [(8, "ACCEPT", 2_800)]}

    at, counts = passing(device, scripted(until_ms=4_000, triggers=triggers, answers=answers))

    assert not any(3_580 <= when < 3_790 for when in at)
    assert counts[4] >= 1


def test_after_a_silence_the_counts_must_agree_anew(device):
    away = range(1_500, 3_500, 500)
    triggers = [*range(400, 1_500, 400), 3_600, 4_100, 4_600, 5_100]
    answers = {at + 40: [(n, "ACCEPT", at)] for n, at in enumerate(triggers, 1)}

    at, counts = passing(
        device, scripted(until_ms=7_000, triggers=triggers, answers=answers, silent=away)
    )

    # One that was triggered before it passes; then the third answer that agrees is believed.
    assert next(when for when in at if when >= 2_500) == 5_600
    assert counts[5] == 0


def test_a_gate_whose_clock_is_wrong_passes_nothing(device):
    belts = [Belt(seed, faults=False, apart_ms=900) for seed in range(20)]
    for belt in belts:
        belt.events = [
            f"trigger {int(event.split()[1]) + 60_000}"
            if event.startswith("trigger")
            else event.rpartition(" ")[0] + f" {int(event.split()[-1]) + 60_000}"
            if event.startswith("answer")
            else event
            for event in belt.events
        ]

    for said in run(device, belts):
        assert set(said[:-1]) == {"0"}


@pytest.mark.parametrize("gone", ["silent", "not ready", "no clock", "never"])
def test_a_gate_without_a_node_diverts(device, gone):
    belt = Belt(1, faults=False, apart_ms=400)
    after = 4_000
    events, now = [], 0
    for event in belt.events:
        if event.startswith("tick"):
            now = int(event.split()[1])
        if event.startswith("beat") and (gone == "never" or now > after):
            if gone == "not ready":
                events.append(event.replace("beat 1", "beat 0"))
            if gone in ("silent", "never", "not ready"):
                continue
        if event.startswith("trigger") and gone == "no clock" and now > after:
            events.append("trigger 0")
            continue
        events.append(event)

    said = device(events)[:-1]

    open_at = [when for (when, *_), coil in zip(belt.at, said, strict=True) if coil == "1"]
    assert not open_at if gone == "never" else open_at
    # A second until the silence is noticed; a part that was answered may still be on the belt.
    assert all(when <= after + 500 + 1_000 + GATE for when in open_at)


def test_a_setup_that_cannot_be_right_passes_nothing(device):
    belt = Belt(1, faults=False, apart_ms=400)
    belt.events[0] = f"new 100 140 50 50 {MATCH_MS} {ANSWER_MS}"  # the guard is longer than the way

    assert set(device(belt.events)[:-1]) == {"0"}


def test_beginning_the_encoder_anew_does_not_move_the_belt(device):
    belt = Belt(1, faults=False, apart_ms=400)
    events, shift = [], 0
    for event in belt.events:
        if event == "tick 250":
            shift = int(events[-1].split()[1]) if events[-1].startswith("moved") else 0
            events += [event, "rebased 0"]
            continue
        if event.startswith("moved"):
            event = f"moved {(int(event.split()[1]) - shift) & 0xFFFFFFFF}"  # noqa: PLW2901
        events.append(event)

    assert device(events) == device(belt.events)


def test_times_are_read_as_the_node_writes_them(device):
    chance = random.Random(7)
    times = [
        datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=chance.randrange(1, 4 * 10**12))
        for _ in range(500)
    ]
    wanted = [round(at.timestamp() * 1_000) for at in times]
    spoken = [at.isoformat(timespec="milliseconds").replace("+00:00", "Z") for at in times]
    broken = ["2026-11-22", "2026-13-01T00:00:00Z", "x", "2026-11-22T15:49:14+00:00", "0"]

    said = device([f"utc {word}" for word in [*spoken, *broken]])

    assert said == [str(ms) for ms in wanted] + ["0"] * len(broken)


@pytest.mark.parametrize(
    ("online", "ready", "degraded", "packml", "age_ms", "lamps"),
    [
        (1, 1, 0, "Execute", 100, "001"),
        (1, 1, 1, "Execute", 100, "011"),
        (1, 1, 0, "Idle", 100, "000"),
        (1, 0, 0, "Held", 100, "100"),
        (1, 0, 1, "Held", 100, "100"),
        (0, 1, 0, "Execute", 100, "100"),
        (1, 1, 0, "Execute", 1_001, "100"),
    ],
)
def test_the_lamps_say_how_the_node_is(  # noqa: PLR0917  # what the table says
    device, online, ready, degraded, packml, age_ms, lamps
):
    said = device(
        [
            "lamps 0",
            "hb 5000",
            f"state {online} {ready} {degraded} {packml}",
            f"lamps {5_000 + age_ms}",
        ]
    )

    assert said == ["100", lamps]
