"""Agents at the desk: how far their word reaches, and what stops it at the last moment."""

import contextlib
import sqlite3
import time
from dataclasses import replace
from datetime import timedelta

import pytest

from qcnode.authority import Code
from qcnode.domain import AgentLevel, Decider, Disposition, Finding
from qcnode.kill import KillSwitch
from tests.node.test_desk import ATTESTATION, PACK, RULES, START, Bench, Colleague, until

GOOD, BAD = Finding.GOOD, Finding.DEFECTIVE
L2, L3 = AgentLevel.L2, AgentLevel.L3


def pack(**changes):
    return replace(PACK, envelope=replace(PACK.envelope, **changes))


class Room(Bench):
    """The bench with a kill switch that looks every 20 ms."""

    def __init__(self, folder):
        super().__init__(folder)
        self.kill = KillSwitch(
            folder / "kill", clock_ns=time.monotonic_ns, now=lambda: self.clock.now
        )

    async def open(self, *values, **named):
        desk = await super().open(*values, stops=self.kill, **named)
        self.kill.start()
        return desk

    async def close(self):
        await super().close()
        self.kill.close()

    def codes(self):
        return [one.code for one in self.rulings() if getattr(one, "by", None) is Decider.AGENT]

    def bound(self):
        return [
            one
            for one in self.rulings()
            if getattr(one, "by", None) is Decider.AGENT and one.binding
        ]


@pytest.fixture
async def room(tmp_path):
    room = Room(tmp_path)
    yield room
    await room.close()


async def test_why_a_ruling_binds_or_waits_is_on_record(room):
    desk = await room.open(Colleague(BAD, GOOD), level=L2, rules=replace(RULES, workers=1))
    room.inspect(1)
    await until(lambda: room.line.told)
    room.inspect(2)
    await until(lambda: desk.waiting() and desk.waiting()[0].proposal)
    assert room.codes() == [Code.ALLOWED, Code.LEVEL]
    assert desk.waiting()[0].proposal.code == "level"


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"attestations": ()}, Code.UNATTESTED),
        ({"attestations": (replace(ATTESTATION, agent="agent:other"),)}, Code.OTHER_AGENT),
        ({"attestations": (replace(ATTESTATION, policy="other"),)}, Code.OTHER_POLICY),
        ({"attestations": (replace(ATTESTATION, ends=START),)}, Code.EXPIRED),
        ({"attestations": (replace(ATTESTATION, right_at_least=0.0),)}, Code.CONFIDENCE),
        ({"pack": pack(confidence_floor=0.95)}, Code.CONFIDENCE),
        ({"pack": pack(part_types=("shaft",))}, Code.PART_TYPE),
        ({"pack": pack(cost_pico_max={"USD": 99})}, Code.COST),
        ({"pack": pack(quota_per_hour=0)}, Code.QUOTA),
        ({"pack": pack(recheck_share=1.0)}, Code.RECHECK),
    ],
)
async def test_a_release_outside_the_envelope_waits_for_a_person(room, changes, code):
    desk = await room.open(Colleague(GOOD), **changes)
    room.inspect(1)
    await until(lambda: desk.waiting() and desk.waiting()[0].proposal)
    # Without a start that was attested the level itself is what is missing.
    expected = Code.LEVEL if code in (Code.UNATTESTED, Code.OTHER_AGENT) else code
    assert room.codes() == [expected]
    assert room.line.told == []


async def test_a_release_the_node_leans_against_waits_unless_the_pack_says_otherwise(room):
    desk = await room.open(Colleague(GOOD, GOOD), rules=replace(RULES, workers=1))
    room.inspect(1, score=1.5)
    await until(lambda: desk.waiting() and desk.waiting()[0].proposal)
    assert room.codes() == [Code.NODE_DISAGREES]
    room.inspect(2, score=0.5)
    await until(lambda: room.line.told)
    assert room.line.told == [("part-2", Disposition.RELEASE)]


async def test_an_attestation_that_ends_takes_the_level_with_it_at_once(room):
    desk = await room.open(Colleague(GOOD, GOOD), rules=replace(RULES, workers=1))
    room.inspect(1)
    await until(lambda: room.line.told)
    room.clock.now = ATTESTATION.ends
    room.inspect(2)
    await until(lambda: desk.waiting() and desk.waiting()[0].proposal)
    assert room.codes() == [Code.ALLOWED, Code.EXPIRED]
    await until(lambda: "the attestation has ended" in room.says("authority").words)


async def test_no_more_rulings_bind_in_an_hour_than_the_quota_whoever_hurries(room):
    answers = [BAD] * 12
    colleague = Colleague(*answers)
    desk = await room.open(
        colleague, rules=replace(RULES, workers=8), pack=pack(quota_per_hour=5), level=L2
    )
    for number in range(12):
        room.inspect(number + 1)
    await until(lambda: len(room.codes()) == 12)
    assert sorted(room.codes()) == [Code.ALLOWED] * 5 + [Code.QUOTA] * 7
    await until(lambda: len(room.line.told) == 5)
    for waiting in desk.waiting():
        await desk.settle(waiting.escalation.id, BAD, who="ana")
    # People do not count, and an hour later there is room again.
    room.clock.now += timedelta(hours=1, seconds=1)
    colleague.answers.append(BAD)
    room.inspect(13)
    await until(lambda: len(room.bound()) == 6)


async def test_a_drawn_part_is_a_persons_whatever_the_agent_says_of_it(room):
    desk = await room.open(
        Colleague(GOOD, BAD), rules=replace(RULES, workers=1), pack=pack(recheck_share=1.0)
    )
    room.inspect(1)
    room.inspect(2)
    await until(lambda: [bool(one.proposal) for one in desk.waiting()] == [True, True])
    assert all(one.proposal.blind for one in desk.waiting())
    assert room.codes() == [Code.RECHECK] * 2
    await desk.settle("e-i1", BAD, who="ana")
    await until(lambda: room.line.told)
    assert room.line.told == [("part-1", Disposition.SCRAP)]
    room.warrant.recount()
    (record,) = room.warrant.records().values()
    assert (record.merit.asked, record.merit.right, record.merit.wrong) == (2, 0, 1)


async def test_an_agent_that_proves_itself_blind_rises_and_the_board_says_how_far(room):
    vouched = replace(ATTESTATION, start=L2)
    desk = await room.open(
        Colleague(*[GOOD] * 11),
        rules=replace(RULES, workers=1),
        attestations=(vouched,),
        pack=replace(pack(trial_share=1.0), digest=PACK.digest),
    )
    for number in range(1, 11):
        room.inspect(number, score=1.5)  # the node alone would reject each of them
        await until(lambda: desk.waiting() and desk.waiting()[0].proposal)
        assert desk.waiting()[0].proposal.code == Code.LEVEL
        if number == 4:
            await until(lambda: "3 parts checked blind, 3 differed" in room.says("authority").words)
            assert "L2 of L3 wanted" in room.says("authority").words
        await desk.settle(f"e-i{number}", GOOD, who="ana")
        await until(lambda: not desk.waiting())
    await until(lambda: "L3 as set" in room.says("authority").words)
    room.inspect(11, score=0.5)
    await until(room.bound)
    await until(lambda: room.line.told[-1] == ("part-11", Disposition.RELEASE))


async def test_an_agent_that_proves_worse_than_the_node_only_informs(room):
    desk = await room.open(
        Colleague(*[GOOD] * 40),
        rules=replace(RULES, workers=1),
        attestations=(),
        level=L2,
        pack=pack(recheck_share=1.0, trial_share=1.0),
    )
    for number in range(1, 21):
        room.inspect(number, score=1.5)
        await until(lambda: desk.waiting() and desk.waiting()[0].proposal)
        await desk.settle(f"e-i{number}", BAD, who="ana")
        await until(lambda: not desk.waiting())
    await until(lambda: not room.says("authority").ok)
    assert "worse than the node alone" in room.says("authority").words


# -- the kill switch ----------------------------------------------------------------------


def touch(room, scope):
    (room.folder / "kill" / scope).touch()


def press(room, scope):
    room.kill.stop(scope, who="ana", reason="smoke")


@pytest.mark.parametrize("way", [touch, press])
@pytest.mark.parametrize("scope", ["all", "line", "agent:test", "provider:p"])
async def test_nothing_an_agent_said_is_done_once_its_stop_is_noticed(room, scope, way):
    """Seven trials of each, 56 in all, with no broker and no cloud anywhere."""
    colleague = Colleague(*[GOOD, BAD] * 20)
    desk = await room.open(colleague)
    for trial in range(7):
        colleague.may_answer.clear()
        asked = len(colleague.asked)
        room.inspect(trial + 1)
        await until(lambda asked=asked: len(colleague.asked) > asked)
        way(room, scope)
        await until(lambda: room.warrant.stopped("agent:test", "provider:p"))
        colleague.may_answer.set()
        await until(lambda: not desk.asking())
        assert room.bound() == []
        # What was told so far is what people ruled.
        assert [part for part, _ in room.line.told] == [f"part-{n + 1}" for n in range(trial)]
        await desk.settle(f"e-i{trial + 1}", GOOD, who="ana")
        await until(lambda trial=trial: len(room.line.told) == trial + 1)
        for who in ("ana", "bo"):
            room.kill.clear(scope, who=who, reason="no fire")
        await until(lambda: not room.warrant.stopped("agent:test", "provider:p"))


@pytest.mark.parametrize("scope", ["all", "line"])
async def test_a_question_under_way_is_cut_off_though_nobody_answers_it(room, scope):
    colleague = Colleague()
    colleague.may_answer.clear()
    desk = await room.open(colleague)
    room.inspect(1)
    await until(lambda: colleague.asked)
    touch(room, scope)
    touch(room, "agent:test")  # a second stop while the first still ends the question
    await until(lambda: not desk.asking())
    assert room.codes() == []
    await desk.settle("e-i1", GOOD, who="ana")
    await until(lambda: room.line.told)


async def test_a_ruling_that_waits_for_the_disk_binds_nothing_once_it_is_stopped(room):
    colleague = Colleague(GOOD)
    colleague.may_answer.clear()
    await room.open(colleague)
    room.inspect(1)
    await until(lambda: colleague.asked)
    with contextlib.closing(sqlite3.connect(room.folder / "journal.db")) as other:
        # To whoever writes, the database is down.
        other.isolation_level = None
        other.execute("BEGIN IMMEDIATE")
        colleague.may_answer.set()
        await until(lambda: not room.says("journal").ok)
        touch(room, "agent:test")
        await until(lambda: room.warrant.stopped("agent:test"))
        other.execute("ROLLBACK")
    await until(room.codes)
    assert room.codes() == [Code.STOPPED]
    assert room.line.told == []


async def test_a_ruling_on_record_that_the_line_has_not_heard_is_put_to_a_person(room):
    room.line.plugged = False
    desk = await room.open(Colleague(GOOD))
    room.inspect(1)
    await until(room.bound)
    touch(room, "provider:p")
    await until(lambda: room.warrant.stopped("provider:p"))
    room.line.plugged = True
    await until(desk.waiting)
    (waiting,) = desk.waiting()
    assert "stopped before its ruling reached the line" in waiting.escalation.reason
    assert room.line.told == []
    await desk.settle(waiting.escalation.id, BAD, who="ana")
    await until(lambda: room.line.told)
    assert room.line.told == [("part-1", Disposition.SCRAP)]


async def test_a_stopped_line_asks_nobody_and_lets_no_part_time_out(room):
    press(room, "line")
    colleague = Colleague(GOOD)
    desk = await room.open(colleague)
    room.inspect(1)
    await until(desk.waiting)
    room.clock.now += timedelta(hours=1)
    room.inspect(2)
    await until(lambda: len(desk.waiting()) == 2)
    assert colleague.asked == []
    assert room.line.told == []
    await desk.settle("e-i1", GOOD, who="ana")
    await until(lambda: room.line.told)
