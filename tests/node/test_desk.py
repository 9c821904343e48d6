import asyncio
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from qcnode.books.journal import Journal
from qcnode.books.pictures import PictureStore
from qcnode.desk import Desk, DeskRules
from qcnode.domain import (
    Action,
    AgentLevel,
    Decider,
    Disposition,
    Evidence,
    Fault,
    FaultKind,
    Finding,
    Frame,
    Inspection,
    Opinion,
    Verdict,
)
from qcnode.errors import (
    LineUnavailableError,
    ProviderRefusedError,
    ProviderUnavailableError,
    RulingError,
)
from qcnode.health import HealthBoard
from qcnode.ids import IdMaker

START = datetime(2026, 11, 22, 12, tzinfo=UTC)
RULES = DeskRules(
    level=AgentLevel.L3,
    workers=2,
    waiting_max=10,
    ruling_timeout=timedelta(minutes=15),
    on_timeout=Disposition.REWORK,
)


class Clock:
    def __init__(self):
        self.now = START

    def __call__(self):
        return self.now


class TellableLine:
    """A line that hears dispositions, and can be unplugged."""

    def __init__(self):
        self.told = []
        self.plugged = True

    def dispose(self, part_id, disposition):
        if not self.plugged:
            raise LineUnavailableError("unplugged")
        self.told.append((part_id, disposition))


class Colleague:
    """A reviewer that answers what the test says, when the test says."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.asked = []
        self.is_reachable = True
        self.may_answer = asyncio.Event()
        self.may_answer.set()

    async def review(self, escalation, picture, heat):
        assert picture.startswith(b"\xff\xd8")
        assert heat.startswith(b"\x89PNG")
        self.asked.append(escalation.part_id)
        await self.may_answer.wait()
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return Opinion(
            finding=answer, defect_class=None, reason="seen", confidence=0.9, who="agent:test"
        )

    def reachable(self):
        return self.is_reachable

    def cost_pico_max(self):
        return 100

    async def close(self):
        pass


class Purse:
    def __init__(self, left_pico=None):
        self.left_pico = left_pico

    def budget_left_pico(self):
        return self.left_pico


class Bench:
    """A desk on a real journal, with the world around it in the test's hands."""

    def __init__(self, folder):
        self.folder = folder
        self.clock = Clock()
        self.line = TellableLine()
        self.health = HealthBoard(self.clock)
        self.new_id = IdMaker(lambda: 1)
        self.journal = None
        self.task = None

    async def open(self, reviewer=None, *, rules=RULES, purse=None):
        pictures = PictureStore(self.folder / "pictures", pictures_max=100, heat_full=1.0)
        self.journal = Journal(self.folder / "journal.db", pictures=pictures, health=self.health)
        self.desk = Desk(
            journal=self.journal,
            line=self.line,
            reviewer=reviewer,
            ledger=purse or Purse(),
            rules=rules,
            health=self.health,
            now=self.clock,
            new_id=self.new_id,
        )
        self.task = asyncio.create_task(self.desk.run())
        return self.desk

    async def close(self):
        if self.task is not None:
            self.task.cancel()
            await asyncio.gather(self.task, return_exceptions=True)
            await asyncio.to_thread(self.journal.close)

    def inspect(self, seq, verdict=Verdict.NOT_DECIDABLE, action=Action.DIVERT):
        pixels = np.full((60, 80, 3), 90, np.uint8)
        heat = np.zeros((6, 8), np.float32)
        heat[2, 3] = 1
        frame = Frame(
            id=f"f{seq}", part_id="p", camera="c", name="n", captured_at=START, pixels=pixels
        )
        self.journal.append(
            Inspection(
                id=f"i{seq}",
                trigger_seq=seq,
                part_id=f"part-{seq}",
                verdict=verdict,
                action=action,
                score=None if verdict is Verdict.UNDEFINED else 1.0,
                model="m",
                captured_at=START,
                latency_us=1,
            ),
            evidence=Evidence(frame=frame, heat=heat),
        )

    def rulings(self):
        return [record for _, record in self.journal.read(0) if hasattr(record, "escalation_id")]


@pytest.fixture
async def bench(tmp_path):
    bench = Bench(tmp_path)
    yield bench
    await bench.close()


async def until(holds):
    """Wait for something the desk does by itself."""
    async with asyncio.timeout(10):
        while not holds():  # noqa: ASYNC110  # what is waited for is seen, not signalled
            await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    ("finding", "disposition"),
    [(Finding.GOOD, Disposition.RELEASE), (Finding.DEFECTIVE, Disposition.SCRAP)],
)
async def test_an_undecided_part_is_ruled_on_by_the_agent_and_the_line_is_told(
    bench, finding, disposition
):
    await bench.open(Colleague(finding))
    bench.inspect(1)

    await until(lambda: bench.line.told)

    assert bench.line.told == [("part-1", disposition)]
    (ruling,) = bench.rulings()
    assert (ruling.by, ruling.who, ruling.binding) == (Decider.AGENT, "agent:test", True)
    assert bench.desk.waiting() == []


async def test_decided_parts_are_nobodys_business(bench):
    colleague = Colleague(Finding.GOOD)
    desk = await bench.open(colleague)
    bench.inspect(1, Verdict.OK, Action.ACCEPT)
    bench.inspect(2, Verdict.NOT_OK, Action.REJECT)
    bench.inspect(3)

    await until(lambda: bench.line.told)

    assert colleague.asked == ["part-3"]
    assert desk.waiting() == []


async def test_a_part_without_evidence_waits_for_a_person(bench):
    colleague = Colleague()
    desk = await bench.open(colleague)
    bench.inspect(1, Verdict.UNDEFINED)
    bench.journal.append(
        Fault(
            id="x2",
            trigger_seq=2,
            part_id="part-2",
            kind=FaultKind.LATE,
            reason="late",
            at=START,
        )
    )

    await until(lambda: len(desk.waiting()) == 2)
    async with asyncio.timeout(10):
        await desk.settled()

    assert colleague.asked == []
    ruling = await desk.settle("e-i1", Finding.DEFECTIVE, who="ana")
    await until(lambda: bench.line.told)
    assert (ruling.by, ruling.who) == (Decider.OPERATOR, "ana")
    assert bench.line.told == [("part-1", Disposition.SCRAP)]


async def test_an_agent_below_l3_proposes_a_release_and_a_person_confirms_it(bench):
    rules = DeskRules(
        level=AgentLevel.L2,
        workers=1,
        waiting_max=10,
        ruling_timeout=timedelta(minutes=15),
        on_timeout=Disposition.REWORK,
    )
    desk = await bench.open(Colleague(Finding.GOOD, Finding.DEFECTIVE), rules=rules)
    bench.inspect(1)
    await until(lambda: desk.waiting() and desk.waiting()[0].proposal is not None)

    assert bench.line.told == []
    assert desk.waiting()[0].proposal.disposition is Disposition.RELEASE

    await desk.settle("e-i1", Finding.GOOD, who="ana")
    bench.inspect(2)
    await until(lambda: len(bench.line.told) == 2)
    assert bench.line.told == [
        ("part-1", Disposition.RELEASE),
        ("part-2", Disposition.SCRAP),  # stricter than the node, so its word is enough
    ]


async def test_a_part_nobody_ruled_on_takes_the_safe_disposition_in_the_end(bench):
    desk = await bench.open()
    bench.inspect(1)
    await until(desk.waiting)

    bench.clock.now += timedelta(minutes=15)
    await until(lambda: bench.line.told)

    assert bench.line.told == [("part-1", Disposition.REWORK)]
    assert bench.rulings()[0].by is Decider.TIMEOUT


async def test_a_part_is_settled_once_and_the_second_person_is_told(bench):
    desk = await bench.open()
    bench.inspect(1)
    await until(desk.waiting)

    results = await asyncio.gather(
        desk.settle("e-i1", Finding.GOOD, who="ana"),
        desk.settle("e-i1", Finding.DEFECTIVE, who="bo"),
        return_exceptions=True,
    )

    assert [type(result) for result in results] == [type(results[0]), RulingError]
    await until(lambda: bench.line.told)
    assert bench.line.told == [("part-1", Disposition.RELEASE)]


async def test_a_person_is_faster_than_the_agent_and_the_agents_word_is_only_noted(bench):
    colleague = Colleague(Finding.GOOD)
    colleague.may_answer.clear()
    desk = await bench.open(colleague)
    bench.inspect(1)
    await until(lambda: colleague.asked)

    await desk.settle("e-i1", Finding.DEFECTIVE, who="ana")
    colleague.may_answer.set()
    await until(lambda: len(bench.rulings()) == 2)

    assert [ruling.binding for ruling in bench.rulings()] == [True, False]
    await until(lambda: bench.line.told)
    assert bench.line.told == [("part-1", Disposition.SCRAP)]


async def test_an_answer_that_is_no_ruling_leaves_the_part_to_people(bench):
    colleague = Colleague(ProviderRefusedError("prose"))
    desk = await bench.open(colleague)
    bench.inspect(1)

    await until(lambda: colleague.asked)
    async with asyncio.timeout(10):
        await desk.settled()

    assert colleague.asked == ["part-1"]
    assert [waiting.with_agent for waiting in desk.waiting()] == [False]


async def test_a_part_is_asked_about_again_when_the_provider_is_back(bench):
    colleague = Colleague(ProviderUnavailableError("down"), Finding.GOOD)
    colleague.is_reachable = False
    desk = await bench.open(colleague)
    bench.inspect(1)
    await until(desk.waiting)
    assert colleague.asked == []

    colleague.is_reachable = True
    await until(lambda: bench.line.told)

    assert colleague.asked == ["part-1", "part-1"]


async def test_without_budget_parts_wait_for_people(bench):
    colleague = Colleague(Finding.GOOD)
    purse = Purse(left_pico=99)
    desk = await bench.open(colleague, purse=purse)
    bench.inspect(1)
    await until(desk.waiting)
    assert colleague.asked == []

    await until(lambda: bench.health.all()[0].component == "budget")
    assert not bench.health.all()[0].ok

    purse.left_pico = 100
    await until(lambda: bench.line.told)
    await until(lambda: bench.health.all()[0].ok)
    assert colleague.asked == ["part-1"]


async def test_what_was_open_is_open_again_after_a_restart_and_nothing_is_told_twice(bench):
    await bench.open()
    bench.inspect(1)
    bench.inspect(2)
    await until(lambda: len(bench.desk.waiting()) == 2)
    await bench.desk.settle("e-i1", Finding.GOOD, who="ana")
    await until(lambda: bench.line.told)
    await bench.close()

    colleague = Colleague(Finding.DEFECTIVE)
    await bench.open(colleague)
    await until(lambda: len(bench.line.told) == 2)

    assert colleague.asked == ["part-2"]
    assert bench.line.told == [
        ("part-1", Disposition.RELEASE),
        ("part-2", Disposition.SCRAP),
    ]


async def test_a_line_that_cannot_be_told_is_told_when_it_is_back(bench):
    await bench.open(Colleague(Finding.GOOD, Finding.GOOD))
    bench.line.plugged = False
    bench.inspect(1)
    await until(bench.rulings)
    bench.inspect(2)
    await until(lambda: len(bench.rulings()) == 2)  # the desk goes on meanwhile

    bench.line.plugged = True
    await until(lambda: len(bench.line.told) == 2)

    assert [part for part, _ in bench.line.told] == ["part-1", "part-2"]


async def test_the_evidence_has_a_box_on_the_picture(bench):
    desk = await bench.open()
    bench.inspect(1)
    await until(desk.waiting)

    box = desk.waiting()[0].escalation.box

    # The peak stands at column 3 of 8 and row 2 of 6 of an 80 x 60 picture.
    assert box.left <= 30
    assert box.left + box.width >= 40
    assert box.top <= 20
    assert box.top + box.height >= 30
