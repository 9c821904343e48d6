"""The virtual machine: what its knobs, its drift and its bounds do to parts and pictures."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcnode.cameras.virtual import RenderedParts
from qcnode.errors import AdjustmentError
from qcnode.process import (
    BEST,
    BOUNDS,
    EFFECTS,
    Bounds,
    Drift,
    Knob,
    VirtualProcess,
    conditions,
    draw_drifts,
)

KNOBS = st.sampled_from(list(Knob))
STILL = ()


def off(knob, tolerances):
    return conditions(BEST, [Drift(knob=knob, onset=0, rate=tolerances * 1000.0)], seq=1)


def test_with_all_knobs_at_their_best_nothing_is_more_common_and_the_picture_is_as_usual():
    made = conditions(BEST, STILL, seq=1)

    assert {made.chance(effect.kind, 0.01) for effect in EFFECTS} == {0.01}
    assert (made.brightness, made.smear_px) == (1.0, 0.0)


@given(
    effect=st.sampled_from(EFFECTS),
    near=st.floats(0.0, 20.0),
    farther=st.floats(0.0, 20.0),
    base=st.floats(0.0, 0.3),
)
def test_the_farther_off_its_place_a_knob_is_the_more_common_its_defects_up_to_a_bound(
    effect, near, farther, base
):
    one, other = (
        off(effect.knob, effect.side * by).chance(effect.kind, base)
        for by in (near, near + farther)
    )

    assert base <= one <= other <= max(base, 0.3)
    # The other side is another matter.
    assert off(effect.knob, -effect.side * near).chance(effect.kind, base) == base


def test_light_and_exposure_change_the_picture_and_make_no_defects():
    for knob in (Knob.LIGHT, Knob.EXPOSURE):
        assert not [effect for effect in EFFECTS if effect.knob is knob]
    assert off(Knob.LIGHT, -2.0).brightness == pytest.approx(0.9)
    assert off(Knob.EXPOSURE, 2.0).smear_px > 0.0
    assert off(Knob.EXPOSURE, -2.0).smear_px == 0.0


@given(seed=st.integers(0, 10_000), shift=st.integers(32, 5_000))
def test_drift_is_drawn_by_the_seed_and_begins_when_the_first_eighth_is_over(seed, shift):
    drifts = draw_drifts(seed, shift=shift)

    assert drifts == draw_drifts(seed, shift=shift)
    assert Knob.EXPOSURE not in {drift.knob for drift in drifts}
    for drift in drifts:
        assert abs(drift.at(shift // 8)) <= drift.sway
        assert abs(drift.at(shift)) <= 3.0 + drift.sway


@given(
    turns=st.lists(
        st.tuples(KNOBS, st.floats(-400.0, 400.0) | st.sampled_from([float("nan"), float("inf")])),
        max_size=40,
    )
)
def test_no_series_of_turns_gets_a_knob_beyond_its_bounds_or_faster_than_its_step(turns):
    process = VirtualProcess(STILL)
    for knob, value in turns:
        before = process.settings()[knob]
        try:
            process.turn(knob, value)
        except AdjustmentError:
            assert process.settings()[knob] == before
        after = process.settings()[knob]
        assert BOUNDS[knob].low <= after <= BOUNDS[knob].high
        assert abs(after - before) <= BOUNDS[knob].step_max * (1.0 + 1e-9)


@given(knob=KNOBS, by=st.floats(allow_nan=False), start=st.floats(0.0, 1.0))
def test_a_turn_that_was_cut_to_the_bounds_is_never_refused(knob, by, start):
    bounds = BOUNDS[knob]
    before = bounds.low + start * (bounds.high - bounds.low)

    assert bounds.refusal(before, bounds.toward(before, by)) is None


@pytest.mark.parametrize(
    "wrong",
    [
        {"low": 1.0, "high": 1.0},
        {"low": 2.0, "high": 1.0},
        {"step_max": 0.0},
        {"step_max": 2.0},
        {"low": float("nan")},
        {"high": float("inf")},
    ],
)
def test_bounds_that_bound_nothing_are_refused(wrong):
    with pytest.raises(ValueError, match=r"bounds|step"):
        Bounds(**{"low": 0.0, "high": 1.0, "step_max": 0.5, "unit": "%"} | wrong)


def test_a_setting_holds_from_the_part_after_the_last_one_that_was_looked_at():
    process = VirtualProcess(STILL)
    process.conditions(10)
    process.turn(Knob.PRESS_FORCE, 87.0)
    process.turn(Knob.PRESS_FORCE, 89.0)

    assert process.conditions(10).off[Knob.PRESS_FORCE] == 0.0
    assert process.conditions(11).off[Knob.PRESS_FORCE] == 1.0
    assert process.conditions(3).off[Knob.PRESS_FORCE] == 0.0


def test_parts_of_a_machine_that_drifts_are_the_same_whoever_asks_and_when():
    one, other = (
        RenderedParts(seed=5, defect_share=0.2, process=VirtualProcess(draw_drifts(5, shift=100)))
        for _ in range(2)
    )
    one.render(90)

    for seq in (80, 12):
        assert one.part(seq) == other.part(seq)
        assert np.array_equal(one.render(seq).pixels, other.render(seq).pixels)


def test_a_machine_at_its_best_makes_the_share_it_was_asked_for_and_drift_only_adds():
    still = RenderedParts(seed=7, defect_share=0.1, process=VirtualProcess(STILL))
    drift = Drift(knob=Knob.PRESS_FORCE, onset=0, rate=1.0)
    moved = RenderedParts(seed=7, defect_share=0.1, process=VirtualProcess([drift]))
    good = {seq for seq in range(3_000) if still.defect(seq) is None}
    good_then = {seq for seq in range(3_000) if moved.defect(seq) is None}

    assert 1.0 - len(good) / 3_000 == pytest.approx(0.1, abs=0.02)
    assert good_then < good
    added = [moved.defect(seq).kind for seq in good - good_then]
    assert set(added) <= {"crack", "dent"}


def test_a_weaker_lamp_makes_a_darker_picture_of_the_same_part():
    def brightness(rate):
        drift = Drift(knob=Knob.LIGHT, onset=0, rate=rate)
        parts = RenderedParts(seed=5, defect_share=0.0, process=VirtualProcess([drift]))
        return float(parts.render(1).pixels.mean())

    usual = brightness(0.0)
    assert brightness(-2_000.0) == pytest.approx(0.9 * usual, rel=0.02)
    still = RenderedParts(seed=5, defect_share=0.0)
    assert usual == pytest.approx(float(still.render(1).pixels.mean()), rel=1e-3)


def test_a_shutter_open_too_long_smears_the_part_along_the_belt():
    def sharpness(rate):
        drift = Drift(knob=Knob.EXPOSURE, onset=0, rate=rate)
        parts = RenderedParts(seed=5, defect_share=0.0, process=VirtualProcess([drift]))
        grey = parts.render(1).pixels.astype(float).mean(axis=2)
        return np.abs(np.diff(grey, axis=1)).mean() / grey.mean()

    assert sharpness(8_000.0) < 0.9 * sharpness(0.0)
