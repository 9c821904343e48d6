from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qcbridge.packing import open_views
from qcbridge.settled import Settled, SettledFirst
from qcnode.books.journal import Journal
from qcnode.books.pictures import PictureStore
from qcnode.domain import (
    Action,
    Decider,
    Disposition,
    Escalation,
    Evidence,
    Finding,
    Frame,
    Inspection,
    Opinion,
    Ruling,
    Verdict,
)
from qcnode.errors import JournalUnavailableError
from qcnode.health import HealthBoard

NOW = datetime(2026, 11, 2, 9, tzinfo=UTC)
MODEL = "bank@0123"
ASKED = Opinion(
    finding=Finding.UNSURE, defect_class=None, reason="asked", confidence=0.5, who="agent:a"
)


class Asked:
    """A reviewer that counts how often it is asked."""

    def __init__(self):
        self.times = 0

    async def review(self, *_):
        self.times += 1
        return ASKED

    def reachable(self):
        return True

    def worst(self):
        return None

    async def close(self):
        pass


class Bench:
    """A journal with parts that were put to people, and a reviewer behind what they settled."""

    def __init__(self, folder):
        store = PictureStore(folder / "pictures", pictures_max=100, heat_full=None)
        self.journal = Journal(
            folder / "journal.db", pictures=store, health=HealthBoard(lambda: NOW)
        )
        self.asked = Asked()

    def put(self, name, pixels, *, model=MODEL):
        frame = Frame(
            id=name,
            part_id=f"P-{name}",
            camera="c",
            name=name,
            captured_at=NOW,
            pixels=np.ascontiguousarray(pixels),
        )
        inspection = Inspection(
            id=f"i-{name}",
            trigger_seq=len(self.journal.recent(100)) + 1,
            part_id=f"P-{name}",
            verdict=Verdict.NOT_DECIDABLE,
            action=Action.DIVERT,
            score=0.5,
            model=model,
            captured_at=NOW,
            latency_us=1,
        )
        evidence = Evidence(frame=frame, heat=None)
        self.journal.submit(inspection, evidence=evidence).result(5)
        escalation = Escalation(
            id=f"e-i-{name}",
            inspection_id=inspection.id,
            part_id=inspection.part_id,
            reason="between the limits",
            score=0.5,
            opened_at=NOW,
            expires_at=NOW + timedelta(hours=1),
        )
        self.journal.submit(escalation).result(5)
        return escalation

    def rule(self, escalation, finding, *, by=Decider.OPERATOR, defect_class=None, binding=True):
        ruling = Ruling(
            id=f"r-{escalation.id}-{by}",
            escalation_id=escalation.id,
            part_id=escalation.part_id,
            by=by,
            who="ada",
            finding=finding,
            disposition=Disposition.REWORK,
            binding=binding,
            reason="looked at it",
            defect_class=defect_class,
            confidence=None,
            at=NOW,
        )
        self.journal.submit(ruling).result(5)

    async def review(self, escalation, *, alike=False, settled=None):
        settled = settled or Settled(self.journal)
        picture = self.journal.picture(escalation.inspection_id)
        first = SettledFirst(self.asked, settled, alike=alike)
        return await first.review(escalation, picture, None)


@pytest.fixture
def bench(tmp_path):
    made = Bench(tmp_path)
    yield made
    made.journal.close()


def part(seed=1, *, scratch=False):
    pixels = np.random.default_rng(seed).integers(80, 90, (96, 96, 3)).astype(np.uint8)
    if scratch:
        pixels[40:52, 10:80] = 200
    return pixels


async def test_a_picture_on_which_a_person_ruled_is_not_asked_about_again(bench):
    bench.rule(bench.put("a", part()), Finding.DEFECTIVE, defect_class="dent")

    opinion = await bench.review(bench.put("b", part()))

    assert bench.asked.times == 0
    assert (opinion.finding, opinion.defect_class) == (Finding.DEFECTIVE, "dent")
    assert (opinion.who, opinion.confidence) == (f"cache:{MODEL}", None)
    assert "ada found of inspection i-a" in opinion.reason


async def test_what_was_settled_since_the_last_question_counts(bench):
    settled = Settled(bench.journal)
    first, second = bench.put("a", part()), bench.put("b", part())
    assert await bench.review(second, settled=settled) is ASKED

    bench.rule(first, Finding.GOOD)

    assert (await bench.review(second, settled=settled)).finding is Finding.GOOD


@pytest.mark.parametrize(
    ("by", "finding", "binding"),
    [
        (Decider.AGENT, Finding.GOOD, True),  # an agent is no authority for itself
        (Decider.TIMEOUT, Finding.GOOD, True),
        (Decider.OPERATOR, Finding.UNSURE, True),
        (Decider.OPERATOR, Finding.GOOD, False),
    ],
)
async def test_only_what_a_person_settled_is_settled(bench, by, finding, binding):
    bench.rule(bench.put("a", part()), finding, by=by, binding=binding)

    assert await bench.review(bench.put("b", part())) is ASKED


async def test_another_model_judged_by_other_limits_and_is_asked(bench):
    bench.rule(bench.put("a", part()), Finding.GOOD)

    assert await bench.review(bench.put("b", part(), model="bank@4567")) is ASKED


async def test_where_people_did_not_agree_the_agent_is_asked(bench):
    bench.rule(bench.put("a", part()), Finding.GOOD)
    bench.rule(bench.put("b", part()), Finding.DEFECTIVE)

    assert await bench.review(bench.put("c", part())) is ASKED


async def test_what_looks_the_same_is_asked_about_unless_that_is_set(bench):
    bench.rule(bench.put("a", part(scratch=True)), Finding.DEFECTIVE)
    nearly = part(scratch=True)
    nearly[0, 0] += 5
    other = bench.put("b", nearly)

    assert await bench.review(other) is ASKED
    assert (await bench.review(other, alike=True)).finding is Finding.DEFECTIVE


async def test_a_part_that_looks_like_a_good_one_is_asked_about_whatever_is_set(bench):
    bench.rule(bench.put("a", part()), Finding.GOOD)
    nearly = part()
    nearly[0, 0] += 5

    assert await bench.review(bench.put("b", nearly), alike=True) is ASKED


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_no_picture_but_the_very_same_ever_makes_a_part_good(tmp_path_factory, data):
    bench = Bench(tmp_path_factory.mktemp("bench"))
    try:
        known = part(data.draw(st.integers(0, 2)))
        bench.rule(bench.put("a", known), Finding.GOOD)
        new = known.copy()
        for _ in range(data.draw(st.integers(0, 3))):
            row, column = data.draw(st.integers(0, 95)), data.draw(st.integers(0, 95))
            new[row, column] = data.draw(st.integers(0, 255))
        escalation = bench.put("b", new)
        first = SettledFirst(bench.asked, Settled(bench.journal), alike=True)
        case = first._case_for(escalation, bench.journal.picture("i-b"), None)

        same_bytes = bench.journal.picture("i-a") == bench.journal.picture("i-b")
        assert (case is not None) == same_bytes
    finally:
        bench.journal.close()


async def test_no_more_cases_are_kept_than_allowed(bench):
    for number in range(6):
        bench.rule(bench.put(f"a{number}", part(number)), Finding.DEFECTIVE)
    settled = Settled(bench.journal, cases_max=3)

    assert await bench.review(bench.put("b", part(0)), settled=settled) is ASKED
    kept = await bench.review(bench.put("c", part(5)), settled=settled)
    assert kept.finding is Finding.DEFECTIVE


async def test_a_journal_that_cannot_be_read_leaves_the_agent_to_be_asked(bench):
    escalation = bench.put("a", part())
    picture = bench.journal.picture("i-a")

    class Broken:
        def cursor(self, _):
            raise JournalUnavailableError("no disk")

    first = SettledFirst(bench.asked, Settled(Broken()))
    assert await first.review(escalation, picture, None) is ASKED


def test_the_nearest_cases_come_first(bench):
    near, far = part(1), part(1)
    near[:30, :30] = 100
    far[:] = 250
    for name, pixels in (("far", far), ("near", near)):
        bench.rule(bench.put(name, pixels), Finding.DEFECTIVE)
    escalation = bench.put("a", part(1))
    views = open_views(bench.journal.picture("i-a"), None)

    found = Settled(bench.journal).nearest(replace(escalation), views, 2)

    assert [case.inspection_id for case in found] == ["i-near", "i-far"]
