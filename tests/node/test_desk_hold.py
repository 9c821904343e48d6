"""A part that a person has decided and may still take back: agent and clock leave it alone."""

from datetime import timedelta

import pytest

from qcnode.domain import Decider, Disposition, Finding
from tests.node.test_desk import Bench, Colleague, until

HELD = timedelta(seconds=30)


@pytest.fixture
async def corner(tmp_path):
    bench = Bench(tmp_path)
    yield bench
    await bench.close()


async def test_what_the_agent_says_of_a_part_a_person_decided_is_an_opinion(corner):
    colleague = Colleague(Finding.DEFECTIVE)
    colleague.may_answer.clear()
    desk = await corner.open(colleague)
    corner.inspect(1)
    await until(lambda: colleague.asked)
    desk.hold("e-i1", corner.clock.now + HELD)
    colleague.may_answer.set()
    await until(lambda: desk.waiting()[0].proposal is not None)
    assert corner.line.told == []
    await desk.settle("e-i1", Finding.GOOD, who="ana")
    await until(lambda: corner.line.told)
    assert corner.line.told == [("part-1", Disposition.RELEASE)]


async def test_a_part_a_person_decided_does_not_time_out_before_that_went_out(corner):
    desk = await corner.open()
    corner.inspect(1)
    await until(desk.waiting)
    corner.clock.now += timedelta(minutes=15)
    desk.hold("e-i1", corner.clock.now + HELD)
    corner.inspect(2)
    await until(lambda: len(desk.waiting()) == 2)
    assert {one.escalation.id for one in desk.waiting()} == {"e-i1", "e-i2"}
    corner.clock.now += HELD
    await until(lambda: corner.line.told)
    (ruling,) = [one for one in corner.rulings() if getattr(one, "by", None)]
    assert (ruling.by, ruling.escalation_id) == (Decider.TIMEOUT, "e-i1")
    desk.hold("e-nobody", corner.clock.now)


async def test_a_part_that_was_taken_back_is_the_agents_again(corner):
    colleague = Colleague(Finding.GOOD)
    colleague.is_reachable = False
    desk = await corner.open(colleague)
    corner.inspect(1)
    await until(desk.waiting)
    desk.hold("e-i1", corner.clock.now + HELD)
    desk.hold("e-i1", corner.clock.now)
    colleague.is_reachable = True
    await until(lambda: corner.line.told)
    assert colleague.asked == ["part-1"]
