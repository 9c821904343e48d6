"""The adviser that is a rule: it sees a rise soon, sees none where none is, and stays in bounds."""

import asyncio
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcnode.adviser import CURES, TOO_DARK, Reading, RuleAdviser, Tally, rates
from qcnode.process import BEST, BOUNDS, EFFECTS, Knob
from qcnode.spc import Cusum

LOOK = 50


def reading(classes, *, settings=BEST, parts=LOOK, usual=None):
    last = Tally(parts=parts, classes=classes)
    return Reading(
        id="look",
        last=last,
        hour=last,
        usual=usual or Tally(parts=4 * LOOK, classes={}),
        settings=settings,
        bounds=BOUNDS,
        since_turned={},
    )


def advise(adviser, classes, **changes):
    return asyncio.run(adviser.advise(reading(classes, **changes)))


def test_false_alarms_are_as_far_apart_as_was_asked_for():
    rng = np.random.default_rng(3)
    alarms, parts = 0, 60_000
    watch = Cusum(usual=0.02, parts_between=1_000.0)
    for event in rng.random(parts) < 0.02:
        watch = watch.after(events=int(event), parts=1)
        if watch.alarmed:
            alarms, watch = alarms + 1, watch.cleared()

    assert alarms <= parts / 1_000.0


def test_a_rate_four_times_the_usual_is_found_within_thirteen_of_its_events():
    watch = Cusum(usual=0.01)
    events = 0
    while not watch.alarmed:
        watch, events = watch.after(events=1, parts=25), events + 1

    assert events <= 13


@given(
    usual=st.floats(0.0, 1.0),
    times=st.floats(1.01, 100.0),
    counts=st.lists(st.integers(0, 20), max_size=30),
)
def test_a_level_is_never_below_nothing_and_more_events_never_lower_it(usual, times, counts):
    watch = Cusum(usual=usual, times=times)
    for events in counts:
        fewer, more = (watch.after(events=one, parts=21) for one in (events, events + 1))
        assert 0.0 <= fewer.level <= more.level < math.inf
        watch = fewer


@pytest.mark.parametrize(
    "wrong", [{"usual": -0.1}, {"usual": 1.1}, {"times": 1.0}, {"parts_between": 1.0}]
)
def test_a_watch_that_could_never_tell_is_refused(wrong):
    with pytest.raises(ValueError, match="usual rate"):
        Cusum(**{"usual": 0.1} | wrong)
    with pytest.raises(ValueError, match="cannot have"):
        Cusum(usual=0.1).after(events=2, parts=1)


def test_a_class_never_seen_in_the_usual_hour_is_not_taken_to_be_impossible():
    found = rates(Tally(parts=200, classes={"crack": 4}), ("crack", "dent"))

    assert found["crack"] > found["dent"] >= 1.0 / 201.0


@pytest.mark.parametrize("kind", list(CURES))
def test_a_class_that_rises_turns_its_knob_to_the_side_the_table_says(kind):
    adviser, cure = RuleAdviser(), CURES[kind][0]
    assert advise(adviser, {}) is None
    advice = advise(adviser, {kind: 12})

    assert advice is not None
    assert advice.knob == cure.knob
    assert (advice.value - BEST[cure.knob]) * cure.side > 0
    assert kind in advice.reason
    assert advice.tokens == 0


def test_the_table_fits_the_virtual_machine():
    for effect in EFFECTS:
        (cure,) = CURES[effect.kind]
        assert (cure.knob, cure.side) == (effect.knob, -effect.side)


def test_after_a_turn_new_evidence_is_asked_for():
    adviser = RuleAdviser()
    assert advise(adviser, {"crack": 12}) is not None

    assert advise(adviser, {}) is None
    assert advise(adviser, {"crack": 1}) is None


def test_a_knob_at_its_bound_is_left_alone_and_the_next_cure_is_taken():
    ended = {**BEST, Knob.LIGHT: BOUNDS[Knob.LIGHT].high}
    advice = advise(RuleAdviser(), {TOO_DARK: 40}, settings=ended)
    assert advice is not None
    assert advice.knob == Knob.EXPOSURE

    ended[Knob.EXPOSURE] = BOUNDS[Knob.EXPOSURE].high
    assert advise(RuleAdviser(), {TOO_DARK: 40}, settings=ended) is None


@given(
    looks=st.lists(
        st.dictionaries(st.sampled_from(list(CURES)), st.integers(0, 60), max_size=4), max_size=12
    ),
    at=st.dictionaries(st.sampled_from(list(Knob)), st.floats(0.0, 1.0)),
)
def test_whatever_comes_the_rule_proposes_nothing_outside_the_bounds(looks, at):
    settings = {
        **BEST,
        **{
            knob: BOUNDS[knob].low + share * (BOUNDS[knob].high - BOUNDS[knob].low)
            for knob, share in at.items()
        },
    }
    adviser = RuleAdviser()
    for classes in looks:
        advice = advise(adviser, classes, settings=settings)
        if advice is not None:
            knob = Knob(advice.knob)
            assert BOUNDS[knob].refusal(settings[knob], advice.value) is None
            settings = {**settings, knob: advice.value}
