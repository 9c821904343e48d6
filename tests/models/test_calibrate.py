from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcmodels.calibrate import calibrate, normal_pictures, risk_coverage
from qcnode.errors import CertificateError
from qcnode.sight import Outline

RNG = np.random.default_rng(3)
GOOD = RNG.normal(1.0, 0.3, 80).tolist()
DEFECTS = RNG.normal(2.2, 0.5, 40).tolist()
ASKED = {"alpha": 0.05, "escape_alpha": 0.1, "pass_share": 0.9, "prevalence": 0.02}


def test_folds_change_what_is_promised_and_no_limit():
    split = calibrate(GOOD, DEFECTS, **ASKED)
    cross = calibrate(GOOD, DEFECTS, **ASKED, folds=[number % 5 for number in range(80)])

    assert (cross.reject_from.value, cross.accept_below) == (
        split.reject_from.value,
        split.accept_below,
    )
    assert cross.reject_from.guarantee.startswith("P(good part rejected) about 0.05; proved is <=")
    assert (cross.reject_from.alpha, cross.reject_from.alpha_95) == (0.05, None)
    assert split.reject_from.alpha_95 > split.reject_from.alpha


def test_each_row_of_the_risk_table_says_what_asking_costs_and_buys():
    rows = calibrate(GOOD, DEFECTS, **ASKED, tokens_per_escalation=2_000).risk_coverage

    assert rows[0].escalation_rate == 0
    assert rows[0].tokens_per_1000 == 0
    assert rows[0].asked_per_error is None
    for before, row in itertools.pairwise(rows):
        assert row.tokens_per_1000 == round(row.escalation_rate * 2_000_000)
        avoided = before.risk - row.risk
        if row.asked_per_error is None:
            assert avoided == pytest.approx(0)
        else:
            more = row.escalation_rate - before.escalation_rate
            assert row.asked_per_error * avoided == pytest.approx(more)
    bought = [row.asked_per_error for row in rows if row.asked_per_error is not None]
    assert bought
    # An error avoided for less than one question would be a part judged twice.
    assert min(bought) >= 1


@given(
    good=st.lists(st.floats(-1, 3), min_size=1, max_size=40),
    defects=st.lists(st.floats(0, 4), min_size=1, max_size=40),
    share=st.floats(0, 1),
    prevalence=st.floats(0.01, 0.99),
)
def test_limits_chosen_by_a_share_of_questions_lie_in_order_and_promise_nothing(
    good, defects, share, prevalence
):
    found = calibrate(good, defects, **(ASKED | {"prevalence": prevalence}), ask_share=share)

    assert found.accept_below.value <= found.reject_from.value
    assert found.accept_below.guarantee is found.reject_from.guarantee is None
    if share == 0:
        assert found.accept_below.value == found.reject_from.value


@pytest.mark.parametrize("share", [0.02, 0.05, 0.2])
def test_of_parts_to_come_about_the_chosen_share_is_asked_about_and_fewer_are_wrong(share):
    to_come = RNG.normal(1.0, 0.3, 20_000), RNG.normal(2.2, 0.5, 20_000)
    alone, asking = (
        calibrate(GOOD, DEFECTS, **(ASKED | {"prevalence": 0.5}), ask_share=one)
        for one in (0.0, share)
    )

    def wrong_and_asked(found):
        low, high = found.accept_below.value, found.reject_from.value
        ok, bad = to_come
        wrong = (np.mean(ok >= high) + np.mean(bad < low)) / 2
        return wrong, sum(np.mean((one >= low) & (one < high)) for one in to_come) / 2

    assert wrong_and_asked(asking)[1] == pytest.approx(share, abs=0.02)
    assert wrong_and_asked(asking)[0] < wrong_and_asked(alone)[0] - share / 5


def test_a_share_without_labelled_defects_is_refused():
    with pytest.raises(CertificateError, match="label"):
        calibrate(GOOD, [], **ASKED, ask_share=0.05)


@given(
    good=st.lists(st.sampled_from([0.0, 1.0, 2.0, 3.0]), min_size=1, max_size=30),
    defects=st.lists(st.sampled_from([1.0, 2.0, 3.0, 4.0]), min_size=1, max_size=30),
)
def test_asking_more_never_leaves_more_errors(good, defects):
    rows = risk_coverage(good, defects, prevalence=0.1)
    assert all(row.accept_below <= row.reject_from for row in rows)
    for before, row in itertools.pairwise(rows):
        assert row.risk <= before.risk + 1e-12
        assert row.escalation_rate >= before.escalation_rate - 1e-12
        assert row.asked_per_error is None or math.isfinite(row.asked_per_error)


def test_without_defects_no_risk_is_estimated():
    assert risk_coverage(GOOD, [], prevalence=0.02) == ()


def test_how_good_parts_look_is_kept_only_of_pictures_of_one_size():
    pictures = [RNG.integers(0, 255, (48, 64, 3)).astype(np.uint8) for _ in range(5)]
    norm = normal_pictures(pictures)

    assert len(norm.brightness) == len(norm.focus) == len(norm.shift) == 5
    assert Outline.decoded(norm.outline).encoded() == norm.outline
    assert normal_pictures([*pictures, pictures[0][:40]]) is None
    assert normal_pictures([]) is None
