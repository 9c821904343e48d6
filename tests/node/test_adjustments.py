"""What becomes of a proposed change: authority, the kill switch, bounds, the record, undo."""

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcnode.adjustments import Adjustments
from qcnode.adviser import STOP, Advice
from qcnode.authority import Arming, Attestation, Bounds, Context, Envelope, Pack
from qcnode.books.journal import Journal
from qcnode.books.pictures import PictureStore
from qcnode.domain import AgentLevel, ChangeStage, Decider, ProcessChange
from qcnode.errors import AdjustmentError, JournalUnavailableError
from qcnode.health import HealthBoard
from qcnode.kill import KillSwitch, NeverStopped
from qcnode.process import BEST, BOUNDS, Knob, VirtualProcess
from tests.fakes import make_ids

NOW = datetime(2026, 11, 22, 6, tzinfo=UTC)
WHO = "agent:adviser"
PACK = Pack(
    name="test",
    version=1,
    digest="d" * 64,
    levels={},
    envelope=Envelope(),
    bounds={
        knob.value: Bounds(low=one.low, high=one.high, step_max=one.step_max)
        for knob, one in BOUNDS.items()
    },
)
ATTESTED = Attestation(
    agent=WHO,
    provider="scripted",
    policy=PACK.digest,
    level=AgentLevel.L4,
    begins=NOW,
    ends=NOW + timedelta(hours=1),
    by="auditor",
)
L4 = Context(
    pack=PACK,
    granted=AgentLevel.L4,
    at=NOW,
    stopped=False,
    attestation=ATTESTED,
    certified=True,
    provider="scripted",
    arming=Arming(first="ada", second="bob", until=NOW + timedelta(hours=1)),
)


def advice(knob=Knob.PRESS_FORCE, value=87.0, **changes):
    return Advice(
        **{
            "knob": knob,
            "value": value,
            "reason": "crack: 9 of 200",
            "by": Decider.AGENT,
            "who": WHO,
            "provider": "scripted",
            "tokens": 700,
        }
        | changes
    )


class Bench:
    """Adjustments over a real journal and a real machine, whose context a test may change."""

    def __init__(self, folder, *, stops=None):
        self.process = VirtualProcess(())
        self.journal = Journal(
            folder / "journal.db",
            pictures=PictureStore(folder / "pictures", pictures_max=1, heat_full=None),
            health=HealthBoard(lambda: NOW),
        )
        self.context = L4
        self.stops = stops or NeverStopped()
        self.adjustments = Adjustments(
            process=self.process,
            bounds=BOUNDS,
            journal=self.journal,
            context=lambda _, wanted: replace(
                self.context,
                adjustment=wanted,
                stopped=self.context.stopped or self.stops.stopped("line", WHO),
            ),
            stops=self.stops,
            now=lambda: NOW,
            new_id=make_ids(),
        )

    def stands(self, knob=Knob.PRESS_FORCE):
        return self.process.settings()[knob]

    async def on_record(self):
        await asyncio.wrap_future(self.journal.advance("test", 0))
        records = [record for _, record in self.journal.read(0)]
        return [record for record in records if isinstance(record, ProcessChange)]


@pytest.fixture
def bench(tmp_path):
    bench = Bench(tmp_path)
    yield bench
    bench.journal.close()


async def test_what_is_allowed_is_done_and_on_record_with_who_what_from_to_why_and_tokens(bench):
    change = await bench.adjustments.take(advice())

    assert bench.stands() == 87.0
    assert await bench.on_record() == [change]
    assert (change.stage, change.code) == (ChangeStage.ORDERED, "allowed")
    assert (change.knob, change.before, change.after) == ("press_force", 85.0, 87.0)
    assert (change.who, change.reason, change.tokens) == (WHO, "crack: 9 of 200", 700)


@pytest.mark.parametrize(
    ("weaker", "code"),
    [
        ({"granted": AgentLevel.L2}, "level"),
        ({"granted": AgentLevel.L3}, "level"),
        ({"attestation": None}, "unattested"),
        ({"attestation": replace(ATTESTED, ends=NOW)}, "expired"),
        ({"certified": False}, "drift"),
        ({"arming": None}, "unarmed"),
        ({"arming": Arming(first="ada", second="ada", until=NOW + timedelta(1))}, "unarmed"),
    ],
)
async def test_short_of_an_armed_l4_a_proposal_waits_for_a_person(bench, weaker, code):
    bench.context = replace(L4, **weaker)
    held = await bench.adjustments.take(advice())

    assert (held.stage, held.code, bench.stands()) == (ChangeStage.HELD, code, 85.0)
    assert bench.adjustments.waiting() == [held]

    done = await bench.adjustments.confirm(held.proposal_id, who="carla")
    assert (bench.stands(), done.confirmed_by, done.who) == (87.0, "carla", WHO)
    assert bench.adjustments.waiting() == []
    assert [one.stage for one in await bench.on_record()] == ["held", "ordered"]


async def test_an_agent_that_may_only_inform_changes_nothing_and_holds_up_nobody(bench):
    bench.context = replace(L4, granted=AgentLevel.L1)
    denied = await bench.adjustments.take(advice())

    assert denied.stage is ChangeStage.DENIED
    assert (bench.stands(), bench.adjustments.waiting()) == (85.0, [])


async def test_one_proposal_waits_for_each_knob_and_a_second_is_denied(bench):
    bench.context = replace(L4, granted=AgentLevel.L2)
    await bench.adjustments.take(advice())
    second = await bench.adjustments.take(advice(value=88.0))
    await bench.adjustments.take(advice(knob=Knob.LIGHT, value=102.0))

    assert (second.stage, second.code) == (ChangeStage.DENIED, "busy")
    assert [one.knob for one in bench.adjustments.waiting()] == ["press_force", "light"]


async def test_a_declined_proposal_is_gone_and_on_record(bench):
    bench.context = replace(L4, granted=AgentLevel.L2)
    held = await bench.adjustments.take(advice())
    await bench.adjustments.decline(held.proposal_id, who="carla")

    with pytest.raises(AdjustmentError, match="nothing waits"):
        await bench.adjustments.confirm(held.proposal_id, who="carla")
    assert [one.stage for one in await bench.on_record()] == ["held", "declined"]
    assert bench.stands() == 85.0


async def test_a_proposal_about_a_machine_that_was_turned_since_is_not_confirmed(bench):
    bench.context = replace(L4, granted=AgentLevel.L2)
    held = await bench.adjustments.take(advice())
    bench.process.turn(Knob.PRESS_FORCE, 84.0)

    with pytest.raises(AdjustmentError, match="not at 85"):
        await bench.adjustments.confirm(held.proposal_id, who="carla")
    assert bench.stands() == 84.0


@pytest.fixture
def kill(tmp_path):
    ticks = iter(range(0, 10**18, 10**9))  # Each look is a second after the last: never stale.
    switch = KillSwitch(tmp_path / "kill", clock_ns=lambda: next(ticks), now=lambda: NOW)
    yield switch
    switch.close()


@pytest.mark.parametrize("scope", ["all", "line", WHO, "provider:scripted"])
async def test_after_the_kill_nothing_is_applied_however_it_was_allowed(tmp_path, kill, scope):
    bench = Bench(tmp_path, stops=kill)
    try:
        bench.context = replace(L4, granted=AgentLevel.L2)
        held = await bench.adjustments.take(advice())
        kill.stop(scope, who="carla", reason="test")
        dropped = await bench.adjustments.confirm(held.proposal_id, who="carla")
        bench.context = L4  # As it was weighed a moment before the switch was set.
        late = await bench.adjustments.take(advice(knob=Knob.LIGHT, value=102.0))

        assert dropped.stage is ChangeStage.DROPPED
        assert late.stage in (ChangeStage.DROPPED, ChangeStage.DENIED)
        assert bench.process.settings() == BEST
        # What was ordered and not done is on record as both.
        assert [one.stage for one in await bench.on_record()][:3] == ["held", "ordered", "dropped"]
    finally:
        bench.journal.close()


async def test_the_kill_switch_set_while_the_record_is_written_still_beats_it(tmp_path):
    class StopsLate(NeverStopped):
        def __init__(self):
            self.answers = iter([False])

        def stopped(self, *_scopes):
            return next(self.answers, True)  # Free when it was weighed, and stopped from then on.

    bench = Bench(tmp_path, stops=StopsLate())
    try:
        dropped = await bench.adjustments.take(advice())
        assert dropped.stage is ChangeStage.DROPPED
        assert bench.stands() == 85.0
    finally:
        bench.journal.close()


async def test_a_person_takes_back_the_last_change_of_a_knob_and_no_earlier_one(bench):
    first = await bench.adjustments.take(advice(value=87.0))
    second = await bench.adjustments.take(advice(value=89.0))

    with pytest.raises(AdjustmentError, match="not the last change"):
        await bench.adjustments.undo(first.proposal_id, who="carla", reason="")
    undone = await bench.adjustments.undo(second.proposal_id, who="carla", reason="too hard")

    assert bench.stands() == 87.0
    assert (undone.by, undone.who, undone.undoes) == (
        Decider.OPERATOR,
        "carla",
        second.proposal_id,
    )
    assert (await bench.on_record())[-1] == undone


async def test_a_stop_needs_what_a_turn_needs_and_only_a_person_starts_the_line_again(bench):
    bench.context = replace(L4, granted=AgentLevel.L3)
    held = await bench.adjustments.take(advice(knob=STOP, value=0.0))
    assert not bench.process.halted
    await bench.adjustments.confirm(held.proposal_id, who="carla")
    assert bench.process.halted

    with pytest.raises(AdjustmentError, match="no such knob"):
        await bench.adjustments.take(advice(knob="restart", value=0.0))
    assert bench.process.halted
    started = await bench.adjustments.restart(who="carla", reason="die replaced")
    assert (bench.process.halted, started.by, started.who) == (False, Decider.OPERATOR, "carla")


async def test_what_cannot_be_put_on_record_is_not_done(bench):
    bench.journal.close()

    with pytest.raises(JournalUnavailableError):
        await bench.adjustments.take(advice())
    assert bench.stands() == 85.0


@given(
    proposals=st.lists(
        st.tuples(
            st.sampled_from([*Knob, STOP, "speed", ""]),
            st.floats(-300.0, 300.0) | st.sampled_from([float("nan"), float("inf"), 1e308]),
            st.sampled_from(list(AgentLevel)),
        ),
        max_size=8,
    )
)
def test_whatever_is_proposed_no_knob_leaves_its_bounds_and_nothing_moves_below_l4(
    tmp_path_factory, proposals
):
    async def check():
        bench = Bench(tmp_path_factory.mktemp("bench"))
        try:
            for knob, value, level in proposals:
                before, halted = bench.process.settings(), bench.process.halted
                bench.context = replace(L4, granted=level)
                try:
                    change = await bench.adjustments.take(advice(knob=knob, value=value))
                except AdjustmentError:
                    assert knob in ("speed", "")
                    continue
                after = bench.process.settings()
                for one, bounds in BOUNDS.items():
                    assert bounds.refusal(before[one], after[one]) is None
                moved = (after, bench.process.halted) != (before, halted)
                assert not moved or (change.stage, level) == (ChangeStage.ORDERED, AgentLevel.L4)
        finally:
            bench.journal.close()

    asyncio.run(check())


def test_what_comes_to_mind_over_a_part_is_put_to_a_person_and_never_done(bench):
    def propose(knob, value):
        return bench.adjustments.propose(
            who=WHO, knob=knob, value=value, reason="looks blue", escalation_id="e-1"
        )

    low, high = bench.adjustments.offers()["temperature"]
    assert (low, high) == (175.0, 185.0)
    assert propose("temperature", 178.0) == "held"
    assert propose("temperature", 177.0) == "denied"  # One waits already.
    assert propose("light", 400.0) == "denied"
    assert propose("speed", 1.0) == "denied"
    assert propose(STOP, 1.0) == "held"
    bench.context = replace(L4, granted=AgentLevel.L1)
    assert propose("press_force", 86.0) == "denied"

    assert bench.process.settings() == BEST
    assert not bench.process.halted
    assert [one.reason for one in bench.adjustments.waiting()] == ["e-1: looks blue"] * 2
