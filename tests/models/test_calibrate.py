from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcmodels.calibrate import calibrate, normal_pictures, risk_coverage
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
