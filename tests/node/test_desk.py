import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from qcnode.authority import Attestation
from qcnode.books import chain
from qcnode.books.budgets import Budget
from qcnode.books.journal import Journal
from qcnode.books.ledger import SqliteLedger
from qcnode.books.merits import Merits
from qcnode.books.pictures import PictureStore
from qcnode.books.policy_file import built_in
from qcnode.books.purse import Purse
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
    Limits,
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
from qcnode.kill import NeverStopped
from qcnode.money import (
    Attempt,
    Cost,
    CostCentre,
    Intent,
    Leased,
    Outcome,
    Settled,
    TokenUsage,
    WorstCase,
)
from qcnode.warrant import Warrant

START = datetime(2026, 11, 22, 12, tzinfo=UTC)
LIMITS = Limits(accept_below=0.0, reject_from=2.0)
CENTRE = CostCentre(line="line1", department="qa")
RULES = DeskRules(
    limits=lambda: LIMITS,
    centre=CENTRE,
    workers=2,
    waiting_max=10,
    ruling_timeout=timedelta(minutes=15),
    on_timeout=Disposition.REWORK,
)


# Nothing is drawn, so that what the tests say of one part holds of each.
PACK = replace(
    built_in(), envelope=replace(built_in().envelope, recheck_share=0.0, trial_share=0.0)
)
ATTESTATION = Attestation(
    agent="agent:test",
    provider="p",
    policy=PACK.digest,
    level=AgentLevel.L3,
    start=AgentLevel.L3,
    right_at_least=0.9,
    begins=START,
    ends=START + timedelta(days=30),
    by="auditor",
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
    """A reviewer that answers what the test says, when the test says, for 60 each at most 100."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.ledger = None
        self.priced = True
        self.costs = 60
        self.asked = []
        self.is_reachable = True
        self.may_answer = asyncio.Event()
        self.may_answer.set()

    async def review(self, escalation, picture, heat):
        assert picture.startswith(b"\xff\xd8")
        assert heat.startswith(b"\x89PNG")
        self.asked.append(escalation.part_id)
        name = f"{escalation.id}-{len(self.asked)}"
        await asyncio.wrap_future(self.ledger.submit(intent(name, escalation.id)))
        await self.may_answer.wait()
        await asyncio.wrap_future(self.ledger.submit(settled(name, self.costs)))
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return Opinion(
            finding=answer,
            defect_class=None,
            reason="seen",
            confidence=0.9,
            who="agent:test",
            provider="p",
        )

    def reachable(self):
        return self.is_reachable

    def worst(self):
        return WorstCase(usage=WORST, hold=usd(100)) if self.priced else None

    async def close(self):
        pass


WORST = TokenUsage(text=90, output=10)


def usd(pico):
    return Cost(currency="USD", pico=pico, rows=("row",))


def intent(name, escalation_id):
    return Intent(
        attempt=Attempt(
            id=name, escalation_id=escalation_id, number=1, provider="p", model="m", centre=CENTRE
        ),
        worst=WORST,
        hold=usd(100),
        request_sha256="0" * 64,
        request_bytes=1,
        image_sha256=None,
    )


def settled(name, pico=60):
    return Settled(
        attempt_id=name,
        usage=TokenUsage(text=50, output=10),
        cost=usd(pico),
        started_at_us=1,
        rated_at_us=2,
        raw_usage="{}",
        response_id=None,
        model_served=None,
        http_status=200,
        duration_ms=1,
    )


class Bench:
    """A desk on a real journal, with the world around it in the test's hands."""

    def __init__(self, folder):
        self.folder = folder
        self.clock = Clock()
        self.line = TellableLine()
        self.health = HealthBoard(self.clock)
        self.new_id = IdMaker(lambda: 1)
        self.journal = self.ledger = None
        self.task = None
        self.sees_more = 0

    async def open(
        self,
        reviewer=None,
        *,
        rules=RULES,
        budgets=(),
        audited=lambda: None,
        level=AgentLevel.L3,
        stops=None,
        pack=PACK,
        attestations=(ATTESTATION,),
        suspect=lambda _: None,
    ):
        pictures = PictureStore(self.folder / "pictures", pictures_max=100, heat_full=1.0)
        self.journal = Journal(self.folder / "journal.db", pictures=pictures, health=self.health)
        self.ledger = SqliteLedger(
            self.folder / "ledger.db",
            now_us=lambda: to_us(self.clock()),
            new_epoch=lambda: "e" * 32,
            budgets=budgets,
        )
        if reviewer is not None:
            reviewer.ledger = self.ledger
        self.warrant = Warrant(
            pack=pack,
            wanted=level,
            attestations=attestations,
            part_type="flange",
            secret=b"s" * 32,
            stops=stops or NeverStopped(),
            merits=Merits(self.journal, limits=lambda: LIMITS),
            certified=lambda: True,
            health=self.health,
            now=self.clock,
        )
        self.desk = Desk(
            journal=self.journal,
            line=self.line,
            reviewer=reviewer,
            ledger=self.ledger,
            purse=self,
            rules=rules,
            warrant=self.warrant,
            now=self.clock,
            new_id=self.new_id,
            audited=audited,
            suspect=suspect,
        )
        self.purse = Purse(ledger=self.ledger, centre=CENTRE, health=self.health, now=self.clock)
        self.task = asyncio.create_task(self.desk.run())
        return self.desk

    def arrived(self, at):
        self.purse.arrived(at)

    def look(self, worst):
        allowance = self.purse.look(worst)
        if allowance.fits and allowance.fits < 3:
            return replace(allowance, fits=allowance.fits + self.sees_more)
        return allowance

    async def close(self):
        if self.task is not None:
            self.task.cancel()
            await asyncio.gather(self.task, return_exceptions=True)
            await asyncio.to_thread(self.journal.close)
            await asyncio.to_thread(self.ledger.close)

    def inspect(self, seq, verdict=Verdict.NOT_DECIDABLE, action=Action.DIVERT, score=0.9):
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
                score=None if verdict is Verdict.UNDEFINED else score,
                model="m",
                captured_at=START,
                latency_us=1,
            ),
            evidence=Evidence(frame=frame, heat=heat),
        )

    def rulings(self):
        return [record for _, record in self.journal.read(0) if hasattr(record, "escalation_id")]

    def outcomes(self):
        facts = [chain.fact_of(entry) for entry in self.ledger.read(0, 1_000)]
        return [fact for fact in facts if isinstance(fact, Outcome)]

    def says(self, component):
        return next((one for one in self.health.all() if one.component == component), None)


@pytest.fixture
async def bench(tmp_path):
    bench = Bench(tmp_path)
    yield bench
    await bench.close()


def to_us(at):
    return (at - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)


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
    rules = replace(RULES, workers=1)
    desk = await bench.open(
        Colleague(Finding.GOOD, Finding.DEFECTIVE), rules=rules, level=AgentLevel.L2
    )
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


# -- what the budget leaves ----------------------------------------------------------


def budget(limit, **how):
    return Budget(**{"name": "day", "limit": limit, "currency": "USD"} | how)


async def test_without_budget_parts_wait_for_people_until_there_is_one_again(bench):
    colleague = Colleague(Finding.GOOD, Finding.GOOD)
    desk = await bench.open(colleague, budgets=[budget(159)])
    bench.inspect(1)
    await until(lambda: bench.line.told)
    bench.inspect(2)
    async with asyncio.timeout(10):
        await until(desk.waiting)
        await desk.settled()
    assert colleague.asked == ["part-1"]
    assert not bench.says("budget").ok
    assert "day is used up for this day" in bench.says("budget").words

    bench.clock.now = START.replace(hour=0) + timedelta(days=1)
    desk.waiting()[0].escalation = replace(
        desk.waiting()[0].escalation, expires_at=bench.clock.now + timedelta(hours=1)
    )
    await until(lambda: len(bench.line.told) == 2)

    assert colleague.asked == ["part-1", "part-2"]


async def test_a_part_refused_because_others_were_faster_is_asked_about_when_they_are_done(bench):
    parts = 12
    colleague = Colleague(*[Finding.GOOD] * parts)
    colleague.costs = 0
    # The desk sees more than there is, as if others spent at the same moment.
    bench.sees_more = 300
    rules = replace(RULES, workers=4, waiting_max=50)
    await bench.open(colleague, rules=rules, budgets=[budget(100)])
    for seq in range(1, parts + 1):
        bench.inspect(seq)

    await until(lambda: len(bench.line.told) == parts)

    (state,) = bench.ledger.budgets()
    assert (state.used, state.held, state.calls) == (0, 0, parts)


async def test_a_shared_budget_of_which_nothing_is_lent_asks_nothing_and_says_why(bench):
    colleague = Colleague(Finding.GOOD)
    fleet = budget(10_000, name="fleet", shared=True)
    desk = await bench.open(colleague, budgets=[fleet])
    bench.inspect(1)
    async with asyncio.timeout(10):
        await until(desk.waiting)
        await desk.settled()

    assert colleague.asked == []
    assert "billing server has lent none of it" in bench.says("budget").words

    span = fleet.span(to_us(START))
    bench.ledger.submit(
        Leased(
            lease_id="l1",
            budget="fleet",
            unit="money",
            limit=100,
            from_us=span.from_us,
            until_us=span.until_us,
        )
    ).result(10)
    await until(lambda: bench.line.told)
    assert colleague.asked == ["part-1"]


async def test_a_budget_of_another_cost_centre_stops_nobody_here(bench):
    other = budget(0, scope=CostCentre(department="paint"))
    await bench.open(Colleague(Finding.GOOD), budgets=[other])
    bench.inspect(1)

    await until(lambda: bench.line.told)


@pytest.mark.parametrize("limit", [{"unit": "calls", "limit": 0}, {"unit": "tokens", "limit": 99}])
async def test_tokens_and_calls_are_limits_like_money(bench, limit):
    colleague = Colleague(Finding.GOOD)
    desk = await bench.open(colleague, budgets=[budget(currency=None, **limit)])
    bench.inspect(1)
    async with asyncio.timeout(10):
        await until(desk.waiting)
        await desk.settled()

    assert colleague.asked == []


async def test_without_a_price_nothing_is_asked_and_it_is_said(bench):
    colleague = Colleague(Finding.GOOD)
    colleague.priced = False
    desk = await bench.open(colleague)
    bench.inspect(1)
    async with asyncio.timeout(10):
        await until(desk.waiting)
        await desk.settled()

    assert colleague.asked == []
    assert "has no price" in bench.says("prices").words


async def test_what_has_one_worst_case_is_reckoned_once_for_all_parts_that_wait(bench):
    colleague = Colleague()
    colleague.is_reachable = False
    desk = await bench.open(colleague)
    for seq in range(1, 31):
        bench.inspect(seq)
    await until(lambda: len(desk.waiting()) == 30)
    looks, worst = [], colleague.worst
    colleague.worst = lambda: looks.append(len(desk.waiting())) or worst()

    await until(lambda: len(looks) == 3)

    assert looks == [30, 30, 30]  # once a tick, whoever waits


async def test_as_the_budget_runs_low_the_most_doubtful_parts_are_asked_about(bench):
    """Of forty parts an hour ten can be paid for: the quarter nearest the middle of the band."""
    parts = 80
    colleague = Colleague(*[Finding.GOOD] * parts)
    colleague.is_reachable = False
    # Much is used up already, so that the rate of the last minutes counts.
    rules = replace(RULES, waiting_max=200, ruling_timeout=timedelta(days=2))
    desk = await bench.open(colleague, rules=rules, budgets=[budget(10_000)])
    spent = [(f"old-{number}", "e-old") for number in range(50)]
    for name, escalation in spent:
        bench.ledger.submit(intent(name, escalation)).result(10)
        bench.ledger.submit(settled(name)).result(10)
    scores = [2.0 * (number % 40 + 0.5) / 40 for number in range(parts)]
    for number, score in enumerate(scores):
        bench.inspect(number, score=score)
        await until(lambda seen=number: len(desk.waiting()) == seen + 1)
        bench.clock.now += timedelta(minutes=1)

    colleague.is_reachable = True
    async with asyncio.timeout(20):
        await until(lambda: bench.line.told)
        await desk.settled()

    asked = {scores[int(part.removeprefix("part-"))] for part in colleague.asked}
    assert 5 <= len(colleague.asked) < parts / 2
    assert max(abs(score - 1.0) for score in asked) < 0.5
    unasked = {one.escalation.score for one in desk.waiting()}
    assert min(abs(score - 1.0) for score in unasked) >= min(abs(score - 1.0) for score in asked)
    (state,) = bench.ledger.budgets()
    assert state.used <= state.limit


# -- what a part proved to be --------------------------------------------------------


async def test_what_a_person_finds_of_a_proposal_is_on_record_beside_its_cost(bench):
    desk = await bench.open(Colleague(Finding.GOOD), level=AgentLevel.L1)
    bench.inspect(1, score=0.5)
    await until(lambda: desk.waiting() and desk.waiting()[0].proposal is not None)

    await desk.settle("e-i1", Finding.DEFECTIVE, who="ana")
    await until(bench.outcomes)

    assert bench.outcomes() == [
        Outcome(
            escalation_id="e-i1",
            centre=CENTRE,
            ruled="GOOD",
            truth="DEFECTIVE",
            node_alone="ACCEPT",
            source="operator",
        )
    ]


async def test_of_a_part_nobody_asked_about_the_nodes_own_opinion_is_on_record(bench):
    desk = await bench.open()
    bench.inspect(1, score=1.5)
    bench.inspect(2, Verdict.UNDEFINED)
    await until(lambda: len(desk.waiting()) == 2)

    await desk.settle("e-i1", Finding.UNSURE, who="ana")
    await desk.settle("e-i2", Finding.GOOD, who="ana")
    await desk.settle("e-i1", Finding.GOOD, who="bo")
    await until(bench.outcomes)

    # Nobody had an opinion of the part without evidence.
    (outcome,) = bench.outcomes()
    assert (outcome.escalation_id, outcome.ruled, outcome.truth, outcome.node_alone) == (
        "e-i1",
        "GOOD",
        "GOOD",
        "REJECT",
    )


async def test_an_answer_that_came_too_late_is_set_beside_the_truth_as_well(bench):
    colleague = Colleague(Finding.DEFECTIVE)
    colleague.may_answer.clear()
    desk = await bench.open(colleague)
    bench.inspect(1)
    await until(lambda: colleague.asked)
    await desk.settle("e-i1", Finding.GOOD, who="ana")
    await until(bench.outcomes)

    colleague.may_answer.set()
    await until(lambda: len(bench.outcomes()) == 2)

    assert [(one.ruled, one.truth) for one in bench.outcomes()] == [
        ("GOOD", "GOOD"),
        ("DEFECTIVE", "GOOD"),
    ]


async def test_outcomes_survive_a_restart_between_ruling_and_ledger(bench):
    desk = await bench.open()
    bench.inspect(1)
    await until(desk.waiting)
    bench.ledger.close()  # It takes nothing any more; the ruling is made all the same.
    await desk.settle("e-i1", Finding.GOOD, who="ana")
    await until(lambda: bench.line.told)
    await bench.close()

    await bench.open()
    await until(bench.outcomes)

    assert [one.truth for one in bench.outcomes()] == ["GOOD"]


async def test_a_later_truth_is_set_beside_what_the_agent_said(bench):
    desk = await bench.open(Colleague(Finding.DEFECTIVE))
    bench.inspect(1, score=0.5)
    await until(lambda: bench.line.told)

    await desk.learn("e-i1", Finding.GOOD, source="rework")

    (outcome,) = bench.outcomes()
    assert (outcome.ruled, outcome.truth, outcome.node_alone, outcome.source) == (
        "DEFECTIVE",
        "GOOD",
        "ACCEPT",
        "rework",
    )


async def test_a_truth_about_no_part_or_one_that_waits_is_refused(bench):
    desk = await bench.open()
    bench.inspect(1)
    await until(desk.waiting)

    with pytest.raises(RulingError, match="no such part"):
        await desk.learn("e-none", Finding.GOOD, source="rework")
    with pytest.raises(RulingError, match="still waits"):
        await desk.learn("e-i1", Finding.GOOD, source="rework")


# -- restarts and outages ------------------------------------------------------------


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
