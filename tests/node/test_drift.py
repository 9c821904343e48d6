"""Whether change is noticed, and nothing else is."""

from __future__ import annotations

import random

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcmodels.calibrate import normal_pictures
from qcnode.cameras.virtual import RenderedParts
from qcnode.drift import FROZEN_AFTER, DriftWatch, RankWatch, ShareWatch
from qcnode.sight import Outline, look

GOOD, DEFECT = (0.0, 1.0), (4.0, 1.0)
LATEST = 400


def watch_scores(rng, *, n=60, norm=None, defects_most=0.3, false_alarm=0.01, good=None):
    good = rng.normal(*GOOD, n).tolist() if good is None else good
    return DriftWatch(
        good,
        norm,
        defects_most=defects_most,
        false_alarm=false_alarm,
        coin=random.Random(int(rng.integers(1 << 30))).random,
    )


def run_scores(watch, rng, parts, *, defects, moved=0.0, shape=lambda score: score):
    """Return after how many parts the watch raised its alarm, and the alarm."""
    for number in range(1, parts + 1):
        middle, spread = DEFECT if rng.random() < defects else GOOD
        score = float(shape(rng.normal(middle, spread) + moved))
        if alarm := watch.take(score, None):
            return number, alarm
    return None, None


@pytest.mark.parametrize("defects", [0.0, 0.02, 0.15, 0.3])
@pytest.mark.parametrize("shape", [float, round], ids=["smooth", "with ties"])
def test_a_quiet_line_raises_no_alarm_whatever_its_share_of_defects(defects, shape):
    alarms = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        good = [float(shape(score)) for score in rng.normal(*GOOD, 60)]
        watch = watch_scores(rng, good=good)
        alarms += run_scores(watch, rng, 1_000, defects=defects, shape=shape)[0] is not None
    # One in a hundred certificates may be revoked for nothing; two of twenty may not.
    assert alarms <= 1


@pytest.mark.parametrize(
    ("quiet", "moved"), [(0, 2.0), (0, 5.0), (1_000, 2.0), (1_000, 5.0), (1_000, -2.0)]
)
def test_scores_that_move_are_noticed_also_after_a_long_quiet_time(quiet, moved):
    rng = np.random.default_rng(7)
    watch = watch_scores(rng)
    assert run_scores(watch, rng, quiet, defects=0.15) == (None, None)
    after, alarm = run_scores(watch, rng, LATEST, defects=0.15, moved=moved)

    assert after is not None
    assert not alarm.picture_at_fault
    assert "pictures unmeasured: new material?" in alarm.words


def test_parts_taught_without_scoring_a_little_higher_is_no_fall():
    rng = np.random.default_rng(12)
    watch = watch_scores(rng, good=(rng.normal(*GOOD, 60) + 0.5).tolist())
    assert run_scores(watch, rng, 3_000, defects=0.15) == (None, None)


def test_more_defects_than_the_line_is_said_to_have_are_no_line_as_certified():
    rng = np.random.default_rng(8)
    after, alarm = run_scores(watch_scores(rng, defects_most=0.05), rng, LATEST, defects=0.7)
    assert after is not None
    assert "too many parts are unlike good ones" in alarm.words


def test_too_few_good_parts_are_no_measure_of_others():
    rng = np.random.default_rng(9)
    watch = watch_scores(rng, n=18)
    assert watch.watches() == "frozen pictures"
    assert run_scores(watch, rng, LATEST, defects=0, moved=9) == (None, None)


@given(
    outs=st.lists(st.booleans(), max_size=60),
    most=st.floats(0.01, 0.9),
)
def test_a_wager_is_fair_at_every_step(outs, most):
    watch = ShareWatch(most, delta=1e-9)
    for out in outs:
        watch.take(out=out)
    before = watch._wager.capital
    states = []
    for out in (True, False):
        again = ShareWatch(most, delta=1e-9)
        for one in (*outs, out):
            again.take(out=one)
        states.append(again._wager.capital)
    # Where as many are out as may be, the capital stays what it is, on average.
    assert most * states[0] + (1 - most) * states[1] == pytest.approx(before)


def test_ranks_of_values_in_any_order_win_nothing_on_average():
    rng = np.random.default_rng(10)
    ends = []
    for seed in range(2_000):
        values = rng.normal(size=30).tolist()
        tilt = 1.5 if seed % 2 else -1.5
        coin = random.Random(seed).random
        watch = RankWatch(values[:10], tilts=[tilt], delta=1e-9, coin=coin)
        for value in values[10:]:
            watch.take(value)
        ends.append(watch._wager.capital)
    assert np.mean(ends) == pytest.approx(1.0, abs=0.15)


# -- pictures ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def parts():
    """Good rendered parts as the camera sees them."""
    rendered = RenderedParts(seed=5, defect_share=0.0)
    return [rendered.render(seq).pixels for seq in range(1, 121)]


@pytest.fixture(scope="module")
def norm(parts):
    return normal_pictures(parts[:60])


def run_pictures(norm, pictures, *, quiet=(), false_alarm=0.01):
    rng = np.random.default_rng(3)
    watch = watch_scores(rng, norm=norm, false_alarm=false_alarm)
    for picture in quiet:
        assert watch.take(None, look(picture)) is None
    for number, picture in enumerate(pictures, start=1):
        if alarm := watch.take(None, look(picture)):
            return number, alarm
    return None, None


def darker(picture, share):
    return (picture * share).astype(np.uint8)


def blurred(picture, sigma):
    return cv2.GaussianBlur(picture, (0, 0), sigma)


def moved(picture, share):
    return np.roll(picture, round(share * picture.shape[1]), axis=1)


def test_pictures_like_those_of_teaching_raise_no_alarm(parts, norm):
    assert run_pictures(norm, parts[60:]) == (None, None)
    assert "brightness, focus" in watch_scores(np.random.default_rng(1), norm=norm).watches()


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda picture: darker(picture, 0.6), "darker than taught: brightness"),
        (lambda picture: blurred(picture, 3.0), "out of focus: focus"),
        (lambda picture: moved(picture, 0.15), "out of place: shift"),
    ],
    ids=["lamp", "focus", "place"],
)
def test_a_picture_that_is_at_fault_is_named(parts, norm, spoil, words):
    after, alarm = run_pictures(
        norm, [spoil(picture) for picture in parts[80:]], quiet=parts[60:80]
    )
    assert after is not None
    assert words in alarm.words
    assert alarm.picture_at_fault


def test_a_weaker_lamp_is_not_taken_for_bad_focus(parts):
    sharp = look(parts[0])
    assert look(darker(parts[0], 0.5)).focus == pytest.approx(sharp.focus, rel=0.15)
    assert look(blurred(parts[0], 2.0)).focus < 0.7 * sharp.focus


def test_the_same_picture_again_and_again_is_a_frozen_camera(parts, norm):
    after, alarm = run_pictures(norm, [parts[90]] * 10, quiet=parts[60:70])
    assert after == FROZEN_AFTER
    assert alarm.words == f"the camera is frozen: {FROZEN_AFTER} identical pictures in a row"


def test_parts_that_lie_anywhere_have_no_place_to_leave():
    rng = np.random.default_rng(4)
    part = np.zeros((96, 96, 3), np.uint8)
    cv2.rectangle(part, (30, 30), (60, 50), (200, 180, 160), -1)
    anywhere = [
        np.roll(part, tuple(rng.integers(-25, 25, 2)), axis=(0, 1))
        + rng.integers(0, 9, part.shape).astype(np.uint8)
        for _ in range(40)
    ]
    watch = watch_scores(rng, norm=normal_pictures(anywhere))
    assert "place" not in watch.watches()


def test_how_far_a_part_lies_off_is_measured(parts, norm):
    outline = Outline.decoded(norm.outline)
    assert outline.shift(look(moved(parts[5], 0.1)).small) == pytest.approx(0.1, abs=0.03)
    assert outline.shift(look(darker(moved(parts[5], 0.1), 0.5)).small) == pytest.approx(
        0.1, abs=0.03
    )
    with pytest.raises(ValueError, match="not an outline"):
        Outline.decoded("AAAA")
