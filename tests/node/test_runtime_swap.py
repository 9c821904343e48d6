"""How one model follows another at the line, and what sends a newcomer back."""

import re
import threading
import time
from datetime import UTC, datetime

import numpy as np
import pytest

from qcnode.domain import Frame, Limits, Prediction, Verdict
from qcnode.errors import ModelError
from qcnode.runtime.slot import Slot
from qcnode.runtime.swap import Agreement, ChangeRule, Stage

NOW = datetime(2026, 11, 22, tzinfo=UTC)
LIMITS = Limits(accept_below=0.3, reject_from=0.7)
# What a machine busy with other tests takes for a picture is no reason here.
ANY_TIME = 1e9
RULE = ChangeRule(
    shadow_parts=20, canary_share=0.5, canary_parts=20, watched_parts=20, slower_most=ANY_TIME
)
WAIT_S = 20.0


def frame(value):
    """A picture whose brightness is what a model makes of it."""
    return Frame(
        id=f"f{value}",
        part_id=f"p{value}",
        camera="test",
        name=f"p{value}.png",
        captured_at=NOW,
        pixels=np.full((2, 2, 3), value, np.uint8),
    )


class Brightness:
    """Scores a picture by its brightness; `change` makes it another model."""

    def __init__(self, version, change=lambda score: score, limits=LIMITS):
        self.version = version
        self.limits = limits
        self._change = change
        self.judged = 0
        self.hangs_at = None
        self.interrupted = threading.Event()

    def predict(self, picture):
        self.judged += 1
        if self.hangs_at is not None and self.judged >= self.hangs_at:
            assert self.interrupted.wait(WAIT_S)
            raise ModelError(f"{picture.name}: interrupted")
        score = self._change(picture.pixels[0, 0, 0] / 255)
        if score is None:
            raise ModelError(f"{picture.name}: no score")
        return Prediction(score=score, model=self.version)

    def interrupt(self):
        self.interrupted.set()


class World:
    """A slot with a model in service, and the parts that pass it."""

    def __init__(self, rule=RULE, *, slow=()):
        self.old = Brightness("old@1")
        self.steps = []
        self.over = threading.Event()
        self._coin = np.random.default_rng(1)
        self._slow = dict(slow)
        self.slot = Slot(
            self.old,
            rule=rule,
            coin=lambda: float(self._coin.random()),
            clock_ns=time.monotonic_ns,
            cpu_ns=time.thread_time_ns,
            tell=self._told,
        )
        self.parts = np.random.default_rng(2)
        self.judged = []

    def _told(self, step):
        self.steps.append(step)
        if step.stage is None:
            self.over.set()

    def run(self, parts=None):
        """Let parts pass, at most so many, until the change is over."""
        limit = 5_000 if parts is None else parts
        for _ in range(limit):
            before = self.progress()
            value = int(self.parts.choice([10, 30, 240, 250]))
            self.judged.append((value, self.slot.predict(frame(value))))
            if self.over.is_set() and parts is None:
                return self
            self._until_compared(before)
        assert parts is not None, "the change never ended"
        return self

    def progress(self):
        progress = self.slot.progress()
        return None if progress is None else (progress.stage, progress.parts)

    def _until_compared(self, before):
        # Parts of the canary that the old model decides are not compared.
        deadline = time.monotonic() + (WAIT_S if before and before[0] != "canary" else 0.01)
        while self.progress() == before and before is not None and time.monotonic() < deadline:
            time.sleep(0.0005)


def test_a_model_that_agrees_goes_through_every_stage_and_stays():
    world = World()
    new = Brightness("new@2", lambda score: score * 0.9 + 0.02)
    world.slot.offer(new)
    world.run()

    assert [step.stage for step in world.steps] == [
        Stage.SHADOW,
        Stage.CANARY,
        Stage.WATCHED,
        None,
    ]
    assert world.steps[-1].taken
    assert world.slot.version == "new@2"
    assert world.slot.progress() is None
    assert {prediction.model for _, prediction in world.judged} == {"old@1", "new@2"}


def test_in_the_shadow_the_old_model_alone_decides():
    world = World(ChangeRule(shadow_parts=1_000, slower_most=ANY_TIME))
    world.slot.offer(Brightness("new@2"))
    world.run(parts=50)

    assert {prediction.model for _, prediction in world.judged} == {"old@1"}
    assert world.slot.progress().stage is Stage.SHADOW
    assert world.slot.progress().parts >= 49


def test_each_answer_carries_the_limits_of_the_model_that_gave_it():
    other = Limits(accept_below=3.0, reject_from=7.0)
    world = World()
    world.slot.offer(Brightness("new@2", lambda score: score * 10, limits=other))
    world.run()

    assert world.slot.version == "new@2"
    for _, prediction in world.judged:
        assert prediction.limits is (LIMITS if prediction.model == "old@1" else other)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda _: 0.0, "passes . of . parts that the old model rejects"),
        (lambda score: 1 - score, "of . parts that the old model"),
        (lambda _: 0.5, "stops . of . parts that the old model passes"),
        (lambda _: None, "it failed"),
    ],
)
def test_a_bad_model_is_sent_back_from_the_shadow_within_ten_parts(change, words):
    world = World()
    world.slot.offer(Brightness("bad@2", change))
    world.run()

    assert len(world.judged) <= 11
    assert not world.steps[-1].taken
    assert world.slot.version == "old@1"
    assert {prediction.model for _, prediction in world.judged} == {"old@1"}
    assert re.search(words, world.steps[-1].words)


def test_a_model_that_goes_bad_after_taking_over_is_sent_back_and_no_part_is_lost():
    world = World(
        ChangeRule(shadow_parts=10, canary_parts=10, canary_share=0.5, slower_most=ANY_TIME)
    )
    bad = Brightness("bad@2")
    bad._change = lambda score: 0.0 if bad.judged > 60 else score
    world.slot.offer(bad)
    world.run()

    assert [step.stage for step in world.steps][:3] == [Stage.SHADOW, Stage.CANARY, Stage.WATCHED]
    assert "sent back from watched" in world.steps[-1].words
    assert world.slot.version == "old@1"
    before = len(world.judged)
    world.run(parts=5)
    assert {prediction.model for _, prediction in world.judged[before:]} == {"old@1"}


def test_a_part_on_which_the_newcomer_fails_is_judged_by_the_old_model():
    world = World(
        ChangeRule(shadow_parts=5, canary_parts=5, canary_share=1.0, slower_most=ANY_TIME)
    )
    new = Brightness("new@2")
    new._change = lambda score: None if new.judged > 8 else score
    world.slot.offer(new)
    world.run()

    assert "it failed" in world.steps[-1].words
    assert world.judged[-1][1].model == "old@1"
    assert "new@2" in {prediction.model for _, prediction in world.judged}


def test_a_newcomer_that_never_answers_is_interrupted_and_sent_back():
    world = World()
    stuck = Brightness("stuck@2")
    stuck.hangs_at = 5
    world.slot.offer(stuck)
    deadline = time.monotonic() + WAIT_S
    while not world.over.is_set() and time.monotonic() < deadline:
        world.slot.predict(frame(10))
        world.slot.interrupt_after(0.2)

    assert "interrupted" in world.steps[-1].words
    assert world.slot.version == "old@1"


def test_a_newcomer_that_takes_too_long_is_sent_back_at_the_end_of_the_shadow():
    world = World(ChangeRule(shadow_parts=10, slower_most=2.0))

    def slowly(score):
        until = time.thread_time_ns() + 3_000_000
        while time.thread_time_ns() < until:
            pass
        return score

    world.slot.offer(Brightness("slow@2", slowly))
    world.run()

    assert "times the processor time" in world.steps[-1].words


def test_one_change_at_a_time():
    world = World()
    world.slot.offer(Brightness("new@2"))
    with pytest.raises(ModelError, match="new@2 is being taken in just now"):
        world.slot.offer(Brightness("third@3"))


def test_a_change_can_be_called_off():
    world = World()
    assert not world.slot.send_back("nothing to call off")
    world.slot.offer(Brightness("new@2"))
    world.run(parts=3)
    assert world.slot.send_back("asked for by a person")
    assert "asked for by a person" in world.steps[-1].words
    assert world.slot.predict(frame(10)).model == "old@1"


def test_a_model_put_in_service_by_a_person_decides_the_next_part():
    world = World()
    world.slot.offer(Brightness("new@2"))
    world.slot.put(Brightness("previous@0"))
    assert world.slot.predict(frame(10)).model == "previous@0"
    assert world.slot.progress() is None


# -- the rule, as promised -------------------------------------------------------------


def sent_back(rng, rule, *, passes_rejected, stops_passed, parts=800, defects=0.2):
    """Whether a model with these shares is sent back at any time, and after how many parts."""
    agreement = Agreement(rule=rule)
    for number in range(1, parts + 1):
        if rng.random() < defects:
            out = rng.random() < passes_rejected
            old, new = Verdict.NOT_OK, Verdict.OK if out else Verdict.NOT_OK
        else:
            out = rng.random() < stops_passed
            old, new = Verdict.OK, Verdict.NOT_OK if out else Verdict.OK
        agreement.take(old, new, old_cpu_ns=1, new_cpu_ns=1)
        if agreement.objection() is not None:
            return number
    return None


def test_a_model_at_the_edge_of_both_tolerances_is_sent_back_no_more_often_than_stated():
    rng = np.random.default_rng(3)
    rule = ChangeRule(false_alarm=0.05)
    runs = 600
    alarms = sum(
        sent_back(rng, rule, passes_rejected=0.05, stops_passed=0.1) is not None
        for _ in range(runs)
    )
    # Three standard deviations above the promise would be 46 of 600.
    assert alarms <= 46


def test_a_model_well_beyond_the_tolerances_is_sent_back_every_time_and_soon():
    rng = np.random.default_rng(4)
    after = [
        sent_back(rng, ChangeRule(), passes_rejected=0.5, stops_passed=0.02) for _ in range(200)
    ]
    assert None not in after
    assert np.median(after) < 60


def test_what_the_old_model_could_not_decide_says_nothing_of_the_new_one():
    agreement = Agreement(rule=ChangeRule())
    for _ in range(1_000):
        agreement.take(Verdict.NOT_DECIDABLE, Verdict.OK, old_cpu_ns=1, new_cpu_ns=1)
    assert agreement.objection() is None
    assert agreement.agreeing() == 0.0


@pytest.mark.parametrize(
    "wrong", [{"canary_share": 0.0}, {"false_alarm": 0.7}, {"shadow_parts": 0}]
)
def test_a_rule_that_makes_no_sense_is_refused(wrong):
    with pytest.raises(ValueError, match=r"share|stage"):
        ChangeRule(**wrong)
