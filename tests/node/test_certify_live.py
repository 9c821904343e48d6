"""What becomes of a certificate on the line: revoked, put in force again, audited."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from datetime import timedelta

import numpy as np
import pytest
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as st

from qcnode.audit import Audit, AuditDraw
from qcnode.certificate import AUDITED, SUSPENDED, AuditRules, LiveCertificate
from qcnode.domain import (
    Action,
    CertificateChange,
    Decider,
    Disposition,
    Finding,
    Inspection,
    Limits,
    Prediction,
    Verdict,
)
from qcnode.drift import DriftWatch
from qcnode.errors import CertificateError, JournalUnavailableError
from qcnode.health import HealthBoard
from qcnode.panel.access import Role
from qcnode.panel.guard import COOKIE
from qcnode.policy import Bucket, judge, refilled, widened
from qcnode.station import Station
from tests.fakes import FakeCamera, FakeClock, FakeJournal, FakeLine, FakeModel, make_ids
from tests.node.panel_fakes import FakeNode
from tests.node.test_desk import (  # noqa: F401  # the fixture is used by its name
    RULES,
    START,
    Colleague,
    bench,
    until,
)

LIMITS = Limits(accept_below=1.5, reject_from=2.5)
GOOD = np.random.default_rng(1).normal(0, 1, 60).tolist()
MIDDLE = sorted(GOOD)[29]


class World:
    """A station whose limits are a live certificate."""

    def __init__(self, scores, *, journal=None, rules=None, last=None, drift=True):
        self.audit = Audit()
        self.clock = FakeClock()
        self.line = FakeLine(self.clock, parts=len(scores))
        self.journal = journal or FakeJournal()
        self.health = HealthBoard(self.clock.now)
        self.certificate = LiveCertificate(
            model="fake@0",
            earned=LIMITS,
            good=GOOD,
            new_watch=self.watch if drift else None,
            rules=rules,
            count_audit=lambda: self.audit,
            last=last,
            health=self.health,
            now=self.clock.now,
            new_id=make_ids("certificate"),
        )
        self.station = Station(
            camera=FakeCamera(self.clock),
            model=FakeModel(scores),
            limits=LIMITS,
            failsafe=Action.DIVERT,
            line=self.line,
            journal=self.journal,
            health=self.health,
            now=self.clock.now,
            new_id=make_ids("record"),
            clock_ns=self.clock.ns,
            certificate=self.certificate,
        )

    def watch(self):
        return DriftWatch(
            GOOD, None, defects_most=0.3, false_alarm=0.01, coin=random.Random(1).random
        )

    def found(self, *, good=0, defective=0):
        for _ in range(good):
            self.audit = self.audit.answered(defective=False)
        for _ in range(defective):
            self.audit = self.audit.answered(defective=True)
        self.station.recount_audit()

    def changes(self):
        return [one for one in self.journal.records if isinstance(one, CertificateChange)]

    def told(self, component):
        return next(one for one in self.health.all() if one.component == component)


def quiet(parts):
    return np.random.default_rng(2).normal(0, 1, parts).tolist()


def moved(parts, by=3.0):
    return (np.random.default_rng(3).normal(0, 1, parts) + by).tolist()


def test_while_nothing_changes_the_earned_limits_decide():
    world = World(quiet(400))
    world.station.run()

    assert world.changes() == []
    assert world.told("certificate").ok
    assert "scores" in world.told("certificate").words
    assert [one.verdict for one in world.journal.inspections()] == [
        judge(Prediction(score=one.score, model="m"), LIMITS) for one in world.journal.inspections()
    ]


def test_drift_revokes_the_certificate_widens_the_band_and_says_why():
    world = World([*quiet(100), *moved(200)])
    world.station.run()

    (change,) = world.changes()
    assert not change.valid
    assert change.who == "node"
    told = world.told("certificate")
    assert not told.ok
    assert not told.needed
    assert change.reason in told.words

    at = world.journal.records.index(change)
    after = [one for one in world.journal.records[at:] if isinstance(one, Inspection)]
    assert len(after) > 150
    assert not any(one.verdict is Verdict.NOT_OK for one in after)
    assert all(one.score < MIDDLE for one in after if one.verdict is Verdict.OK)
    asked = [one for one in after if one.score >= LIMITS.reject_from]
    assert asked
    for one in asked:
        assert one.action is Action.DIVERT
        assert one.reason == f"certificate revoked: {change.reason}"


def test_a_revoked_certificate_stays_revoked_over_a_restart_until_a_person_says_otherwise():
    world = World([*quiet(100), *moved(100)])
    world.station.run()
    (change,) = world.changes()

    again = World(quiet(10), last=change)
    assert not again.told("certificate").ok
    assert again.certificate.limits == widened(LIMITS, GOOD, picture_at_fault=False)

    again.station.recertify(who="ana", reason="new lamp")
    (renewal,) = again.changes()
    assert (renewal.valid, renewal.who, renewal.reason) == (True, "ana", "new lamp")
    assert again.told("certificate").ok
    assert again.certificate.limits == LIMITS
    assert World([], last=renewal).certificate.limits == LIMITS


def test_a_certificate_put_in_force_again_is_watched_anew():
    world = World([*quiet(50), *moved(100), *moved(100)])
    triggers = world.line.triggers

    def until_renewed():
        for trigger in triggers():
            yield trigger
            if trigger.seq == 150:
                world.station.recertify(who="ana", reason="looked at it")

    world.line.triggers = until_renewed
    world.station.run()
    assert [change.valid for change in world.changes()] == [False, True, False]


def test_what_the_journal_refuses_does_not_come_into_force():
    world = World([*quiet(100), *moved(100)])
    world.station.run()
    world.journal.full = True
    with pytest.raises(JournalUnavailableError):
        world.station.recertify(who="ana", reason="new lamp")
    assert world.certificate.revoked is not None


def test_there_is_nothing_to_put_in_force_where_nothing_was_revoked():
    with pytest.raises(CertificateError, match="nothing to put in force"):
        World([]).station.recertify(who="ana", reason="why not")


def test_a_person_puts_it_in_force_again_at_the_panel_and_says_why():
    world = World([*quiet(100), *moved(100)])
    world.station.run()
    node = FakeNode()
    panel = node.panel(recertify=world.station.recertify)
    with TestClient(panel, base_url="http://127.0.0.1") as client:
        client.cookies.set(COOKIE, node.session(Role.ENGINEER, "Li"))

        def press(**said):
            return client.post(
                "/api/v1/certificate", json=said, headers={"origin": "http://127.0.0.1"}
            )

        assert press().status_code == 422
        assert world.certificate.revoked is not None
        assert press(reason="new lamp, taught anew").status_code == 204
        assert press(reason="once more").status_code == 409

    assert world.certificate.revoked is None
    assert world.changes()[-1].who == "Li@testclient"
    assert world.changes()[-1].reason == "new lamp, taught anew"


@given(
    limits=st.builds(
        Limits,
        accept_below=st.none() | st.floats(-5, 5),
        reject_from=st.none() | st.floats(-5, 5),
    ),
    good=st.lists(st.floats(-5, 5), max_size=9),
    score=st.floats(-9, 9),
    picture=st.booleans(),
)
def test_widened_limits_reject_nothing_and_pass_nothing_new(limits, good, score, picture):
    left = widened(limits, good, picture_at_fault=picture)
    prediction = Prediction(score=score, model="m")
    verdict = judge(prediction, left)
    assert verdict is not Verdict.NOT_OK
    if verdict is Verdict.OK:
        assert judge(prediction, limits) is Verdict.OK
        assert not picture


def test_another_model_is_judged_by_its_own_limits_and_by_none_while_revoked():
    world = World([*quiet(100), *moved(100)])
    score, limits = -1.0, Limits(accept_below=-2.0, reject_from=-1.5)
    newcomer = Prediction(score=score, model="new@1", limits=limits)
    ours = Prediction(score=score, model="fake@0", limits=LIMITS)

    assert world.certificate.judge("P1", newcomer).verdict is Verdict.NOT_OK
    assert world.certificate.judge("P1", ours).verdict is Verdict.OK

    world.station.run()
    asked = world.certificate.judge("P1", newcomer)
    assert asked.verdict is Verdict.NOT_DECIDABLE
    assert asked.reason.startswith("certificate revoked: ")
    assert world.certificate.judge("P1", ours).verdict is Verdict.OK


def test_scores_of_another_model_are_no_drift_of_this_one():
    world = World(quiet(100))
    world.station.run()
    for score in moved(200):
        prediction = Prediction(score=score, model="new@1", limits=LIMITS)
        assert world.certificate.take(None, prediction) is None


# -- audit -------------------------------------------------------------------------------


def test_a_random_share_of_what_would_pass_goes_to_a_person_with_its_picture():
    rules = AuditRules(draw=AuditDraw(b"secret", 0.25))
    world = World([0.0] * 400, rules=rules, drift=False)
    world.station.run()

    drawn = [one for one in world.journal.inspections() if one.audit]
    assert 70 <= len(drawn) <= 130
    for one in drawn:
        assert (one.verdict, one.action, one.reason) == (Verdict.OK, Action.DIVERT, AUDITED)
        assert one.id in world.journal.evidence
    others = [one for one in world.journal.inspections() if not one.audit]
    assert {one.action for one in others} == {Action.ACCEPT}


@given(
    parts=st.lists(st.text(max_size=9), min_size=1, max_size=20),
    scores=st.lists(st.sampled_from([-3.0, 0.0, 1.4]), min_size=20, max_size=20),
)
def test_who_is_drawn_hangs_on_name_and_secret_and_never_on_the_score(parts, scores):
    draw = AuditDraw(b"secret", 0.5)
    world = World([], rules=AuditRules(draw=draw), drift=False)
    for part, score in zip(parts, scores, strict=False):
        judgement = world.certificate.judge(part, Prediction(score=score, model="m"))
        assert judgement.audit == draw.drawn(part)


def test_another_secret_draws_others():
    parts = [f"P{number}" for number in range(400)]
    one, other = (
        {part for part in parts if AuditDraw(secret, 0.5).drawn(part)} for secret in (b"a", b"b")
    )
    assert 150 < len(one) < 250
    assert 50 < len(one - other) < 150
    assert not any(AuditDraw(b"a", 0.0).drawn(part) for part in parts)
    assert all(AuditDraw(b"a", 1.0).drawn(part) for part in parts)


def test_with_a_target_nothing_passes_until_checks_have_shown_it():
    rules = AuditRules(draw=AuditDraw(b"secret", 0.01), target=0.02)
    world = World([0.0] * 20, rules=rules, drift=False)
    world.station.run()
    assert {one.action for one in world.journal.inspections()} == {Action.DIVERT}
    assert all(one.audit for one in world.journal.inspections())
    assert {one.reason for one in world.journal.inspections()} == {SUSPENDED}
    assert not world.told("audit").ok
    assert "149 more clean parts" in world.told("audit").words

    world.found(good=149)
    assert world.told("audit").ok
    passes = world.certificate.judge("P7", Prediction(score=0.0, model="m"))
    assert passes.verdict is Verdict.OK

    world.found(defective=1)
    assert not world.told("audit").ok
    stopped = world.certificate.judge("P7", Prediction(score=0.0, model="m"))
    assert (stopped.verdict, stopped.audit) == (Verdict.NOT_DECIDABLE, True)


@given(
    defective=st.integers(0, 5),
    good=st.integers(0, 400),
    target=st.sampled_from([0.01, 0.02, 0.1]),
)
def test_the_number_of_clean_parts_a_target_takes_is_exact(defective, good, target):
    audit = Audit(checked=defective + good, defective=defective)
    more = audit.needed(target)
    assert replace(audit, checked=audit.checked + more).at_most <= target
    assert more == 0 or replace(audit, checked=audit.checked + more - 1).at_most > target


@pytest.mark.parametrize("share", [0.005, 0.03, 0.2])
def test_the_interval_covers_the_truth_as_often_as_it_says(share):
    rng = np.random.default_rng(11)
    inside = below = 0
    for defective, times in Counter(rng.binomial(150, share, 400).tolist()).items():
        audit = Audit(checked=150, defective=defective)
        low, high = audit.interval
        inside += times * (low <= share <= high)
        below += times * (share <= audit.at_most)
    assert inside >= 0.95 * 400 - 13  # three standard errors
    assert below >= 0.95 * 400 - 13


async def test_a_person_answers_audits_the_agent_is_not_asked_and_a_restart_remembers(
    bench,  # noqa: F811
):
    colleague, counts = Colleague(Finding.GOOD), []
    desk = await bench.open(colleague, audited=lambda: counts.append(bench.journal.audit("m")))
    for seq in (1, 2, 3):
        bench.journal.append(
            Inspection(
                id=f"i{seq}",
                trigger_seq=seq,
                part_id=f"part-{seq}",
                verdict=Verdict.OK,
                action=Action.DIVERT,
                score=0.0,
                model="m",
                captured_at=START,
                latency_us=1,
                reason=AUDITED,
                audit=True,
            )
        )
    bench.inspect(4)
    await until(lambda: len(desk.waiting()) == 3 and bench.line.told)
    assert colleague.asked == ["part-4"]
    assert all(one.escalation.reason == AUDITED for one in desk.waiting())

    await desk.settle("e-i1", Finding.GOOD, who="ana")
    await desk.settle("e-i2", Finding.DEFECTIVE, who="ana")
    bench.clock.now = START + RULES.ruling_timeout
    await until(lambda: not desk.waiting())

    await until(lambda: len(counts) == 3)
    assert [(one.checked, one.defective, one.unanswered) for one in counts] == [
        (1, 0, 0),
        (2, 1, 0),
        (2, 1, 1),
    ]
    assert [ruling.by for ruling in bench.rulings() if hasattr(ruling, "by")].count(
        Decider.TIMEOUT
    ) == 1
    assert bench.journal.audit("m") == Audit(checked=2, defective=1, unanswered=1)
    assert bench.journal.audit("another model") == Audit()
    await until(lambda: ("part-3", Disposition.REWORK) in bench.line.told)


# -- a hard rate -------------------------------------------------------------------------


async def test_over_the_rate_parts_wait_for_people_whatever_the_limits_ask(
    bench,  # noqa: F811
):
    colleague = Colleague(*[Finding.GOOD] * 10)
    desk = await bench.open(colleague, rules=replace(RULES, per_minute_max=3))
    for seq in range(1, 9):
        bench.inspect(seq)
    await until(lambda: len(bench.line.told) == 3 and len(desk.waiting()) == 5)
    assert not any(one.with_agent for one in desk.waiting())

    bench.clock.now += timedelta(seconds=20)
    await until(lambda: len(bench.line.told) == 4)
    assert len(colleague.asked) == 4


@given(
    steps=st.lists(st.floats(0, 90), max_size=60),
    per_minute=st.floats(0.5, 60),
    most=st.integers(1, 20),
)
def test_no_stretch_of_time_sees_more_questions_than_its_rate_and_one_fill(steps, per_minute, most):
    bucket, now, asked = Bucket(float(most), 0.0), 0.0, []
    for step in steps:
        now += step
        bucket = refilled(bucket, now, per_minute=per_minute, most=most)
        while bucket.tokens >= 1:
            bucket = Bucket(bucket.tokens - 1, bucket.at_s)
            asked.append(now)
    for first, begin in enumerate(asked):
        for last in range(first, len(asked)):
            allowed = most + (asked[last] - begin) * per_minute / 60
            assert last - first + 1 <= allowed + 1e-6
