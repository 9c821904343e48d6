"""Results handed to a PLC: in order, once each, and never silently lost."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcnode.domain import Action, Verdict
from qcnode.lines.handshake import BUFFERS, RESULTS, Handshake, Result


def result(seq):
    return Result(seq=seq, verdict=Verdict.OK, action=Action.ACCEPT, latency_us=9_000)


class Plc:
    """The other side, which takes its time: each call does one step of the handshake."""

    def __init__(self, handshake, *, buffering=True):
        self.handshake, self.buffering = handshake, buffering
        self.ack, self.reset, self.taken, self.toggles = False, False, [], []

    def scan(self):
        shown = self.handshake.shown()
        if shown.valid and not self.ack:
            self.taken.append((shown.number, shown.result.seq))
            self.toggles.append(shown.toggle)
            self.ack = True
        elif not shown.valid:
            self.ack = False
        self.say()

    def say(self):
        self.handshake.said(ack=self.ack, buffering=self.buffering, reset=self.reset)


def test_forty_thousand_cycles_skip_and_repeat_no_number():
    handshake = Handshake()
    plc = Plc(handshake)
    plc.say()
    for seq in range(1, 40_001):
        handshake.put(result(seq))
        plc.scan()
        plc.scan()

    numbers, seqs = zip(*plc.taken, strict=True)
    assert list(numbers) == [n % RESULTS for n in range(40_000)]
    assert list(seqs) == list(range(1, 40_001))
    assert all(a != b for a, b in zip(plc.toggles, plc.toggles[1:], strict=False))


@given(st.lists(st.sampled_from(["put", "scan", "reset", "buffer"]), max_size=200))
def test_whatever_the_order_results_come_once_in_order_or_are_counted_as_lost(steps):
    handshake = Handshake()
    plc, put = Plc(handshake, buffering=False), 0
    plc.say()
    for step in steps:
        if step == "put":
            put += 1
            lost = handshake.shown().lost
            handshake.put(result(put))
            assert handshake.shown().overrun or handshake.shown().lost == lost
        elif step == "scan":
            plc.scan()
        elif step == "buffer":
            plc.buffering = not plc.buffering
            plc.say()
        else:
            plc.reset = not plc.reset
            plc.say()
    for _ in range(4 * BUFFERS + 4):
        plc.scan()

    seqs = [seq for _number, seq in plc.taken]
    assert seqs == sorted(set(seqs))
    assert [number for number, _seq in plc.taken] == list(range(len(seqs)))
    assert len(seqs) + handshake.shown().lost == put


@pytest.mark.parametrize(("buffering", "kept"), [(True, 1 + BUFFERS), (False, 2)])
def test_a_plc_that_takes_nothing_is_told_of_the_overrun(buffering, kept):
    handshake = Handshake()
    plc = Plc(handshake, buffering=buffering)
    plc.say()
    for seq in range(1, 21):
        handshake.put(result(seq))

    shown = handshake.shown()
    assert (shown.overrun, shown.lost, shown.buffers_left) == (True, 20 - kept, 0)
    assert shown.result.seq == 1  # what is shown stays until it is taken
    plc.reset = True
    plc.say()
    assert not handshake.shown().overrun


def test_an_acknowledgement_that_stays_shows_nothing_more():
    handshake = Handshake()
    handshake.said(ack=True, buffering=True, reset=False)
    handshake.put(result(1))

    assert not handshake.shown().valid
    handshake.said(ack=False, buffering=True, reset=False)
    assert handshake.shown().valid
