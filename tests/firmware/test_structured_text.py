"""The PLC's function blocks, run beside the node's own classes, which they must agree with."""

import random

import pytest

from qcnode.domain import Action, Trigger, Verdict
from qcnode.lines.handshake import BUFFERS, RESULTS, Handshake, Result
from qcnode.track import RING, Default, Tracker
from tests.firmware.structured_text import Block

BELTS = 300
ACTIONS = {Action.ACCEPT: 1, Action.REJECT: 2, Action.DIVERT: 3}
DEFAULTS = {
    None: 0,
    Default.UNSPOKEN: 1,
    Default.LATE: 2,
    Default.CROWDED: 3,
    Default.RELEASED: 6,
}


@pytest.fixture
def block(repository):
    """Read a function block as the PLC's tool would."""

    def read(name, **options):
        path = repository / "firmware_configs" / "plc" / "st" / f"{name}.st"
        return Block(path.read_text(), **options)

    return read


def trigger_at(seq, position):
    return Trigger(seq=seq, part_id=f"P{seq}", position=position, at_ns=0, deadline_ns=1)


def in_plc(crossing):
    """Return a crossing as the PLC says it."""
    return (crossing.trigger.seq, ACTIONS[crossing.action], DEFAULTS[crossing.default])


def scan(tracker, **inputs):
    """Call the block once and return what met the gate."""
    quiet = {"Trigger": False, "Answer": False, "Release": False}
    tracker(**{**quiet, **inputs})
    return [(tracker.MetSeq, tracker.MetAction, tracker.MetWhy)] if tracker.Met else []


@pytest.mark.parametrize("seed", range(0, BELTS, 50))
def test_the_plcs_tracker_does_what_the_nodes_does(block, seed):
    """One event a scan; the PLC hands out one part a scan, so it is scanned until it is done."""
    met_any = 0
    plc = block("FB_QcRejectTracker")
    fresh = {name: list(v) if isinstance(v, list) else v for name, v in plc.values.items()}
    for belt in range(seed, seed + 50):
        chance = random.Random(belt)
        plc.values.update({n: list(v) if isinstance(v, list) else v for n, v in fresh.items()})
        gate, guard = chance.randrange(300, 900), chance.randrange(0, 150)
        apart = chance.choice([0, 0, 40, 120])
        node = Tracker(gate_pulses=gate, guard_pulses=guard, apart_pulses=apart)
        plc(GatePulses=gate, GuardPulses=guard, ApartPulses=apart)
        position = chance.choice([0, RING - 400, RING // 2 - 300])
        seq = 0
        for _ in range(80):
            position = (position + chance.choice([0, 5, 20, 60, 200, -3])) % RING
            theirs, ours = [], []
            match chance.choice(["trigger", "trigger", "answer", "answer", "move", "release"]):
                case "trigger":
                    seq += 1
                    try:
                        node.add(trigger_at(seq, position))
                        refused = False
                    except ValueError:
                        refused = True
                    theirs += scan(plc, Position=position, Trigger=True, Seq=seq)
                    assert plc.Refused == refused
                case "answer" if seq:
                    which = chance.randrange(max(1, seq - 5), seq + 1)
                    action = chance.choice(list(ACTIONS))
                    in_time = node.command(which, action, position=position)
                    theirs += scan(
                        plc,
                        Position=position,
                        Answer=True,
                        AnswerSeq=which,
                        AnswerAction=ACTIONS[action],
                    )
                    assert plc.InTime == in_time
                case "release" if chance.random() < 0.1:
                    ours += node.pass_to(position)
                    ours += node.release()
                    # What is at the gate by now has met it; the rest is let go of.
                    while len(theirs) < len(
                        [one for one in ours if one.default is not Default.RELEASED]
                    ):
                        theirs += scan(plc, Position=position)
                    while plc.OnBelt:
                        theirs += scan(plc, Position=position, Release=True)
                case _:
                    pass
            ours += node.pass_to(position)
            while more := scan(plc, Position=position):
                theirs += more
            assert theirs == [in_plc(one) for one in ours], f"belt {belt}"
            assert plc.OnBelt == len(node)
            met_any += len(ours)
    assert met_any > 500


def test_the_plc_takes_every_result_once(block):
    chance = random.Random(1)
    node, plc = Handshake(), block("FB_QcHandshake")
    control, put, taken = 2, [], []
    for _ in range(6_000):
        if chance.random() < 0.2 and node.shown().buffers_left > 0:
            seq = len(put) + 1
            put.append(seq)
            node.put(Result(seq=seq, verdict=Verdict.OK, action=Action.ACCEPT, latency_us=1))
        if chance.random() < 0.7:  # the PLC and the node do not go in step
            node.said(ack=bool(control & 1), buffering=bool(control & 2), reset=False)
        shown = node.shown()
        status = (8 if shown.valid else 0) | (16 if shown.overrun else 0)
        plc(
            Status=status,
            ResultNo=shown.number,
            PartSeqIn=shown.result.seq if shown.result else 0,
            GateActionIn=1,
            DispositionIn=0,
            ControlIn=control,
        )
        control = plc.Control
        if plc.New:
            taken.append(plc.PartSeq)
            assert not plc.Gap
        assert not plc.Overrun
    assert len(taken) > 500
    assert taken == put[: len(taken)]
    assert len(put) - len(taken) <= BUFFERS + 1


@pytest.mark.parametrize(
    ("first", "second", "gap"), [(5, 6, False), (5, 7, True), (RESULTS - 1, 0, False)]
)
def test_a_result_that_was_skipped_is_a_gap(block, first, second, gap):
    plc = block("FB_QcHandshake")
    rest = {"PartSeqIn": 1, "GateActionIn": 1, "DispositionIn": 0, "ControlIn": 0}

    plc(Status=8, ResultNo=first, **rest)
    plc(Status=0, ResultNo=first, **rest)
    plc(Status=8, ResultNo=second, **rest)

    assert (plc.New, plc.Gap) == (True, gap)


def test_a_node_that_stands_for_a_second_is_not_there(block):
    now = [0.0]
    plc = block("FB_QcWatchdog", clock=lambda: now[0])
    alive = []
    for tick in range(100):  # 10 a second; the node beats each half second, until 5 s
        now[0] = tick / 10
        alive.append(plc(Heartbeat=min(tick // 5, 10), ErrorCode=0).Alive)

    assert not any(alive[:5])  # before the first beat nobody is there
    assert all(alive[5:60])
    assert not any(alive[61:])


def test_a_node_with_an_error_is_not_there(block):
    plc = block("FB_QcWatchdog")
    plc(Heartbeat=1, ErrorCode=0)

    assert plc(Heartbeat=2, ErrorCode=0).Alive
    assert not plc(Heartbeat=3, ErrorCode=1).Alive
