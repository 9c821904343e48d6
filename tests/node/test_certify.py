from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qcnode.certify import (
    earn_escape_limit,
    earn_reject_limit,
    lower_bound,
    parts_needed,
    settle_limits,
    upper_bound,
)
from qcnode.errors import CertificateError

SCORES = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=60)
ALPHAS = st.sampled_from([0.01, 0.02, 0.05, 0.1, 0.2, 0.5])


@pytest.mark.parametrize(("alpha", "n"), [(0.05, 19), (0.01, 99), (0.005, 199), (0.001, 999)])
def test_a_limit_is_earned_with_exactly_the_parts_it_takes(alpha, n):
    assert parts_needed(alpha) == n
    assert earn_reject_limit(range(n), alpha=alpha).value == math.nextafter(n - 1, math.inf)
    assert earn_escape_limit(range(n), alpha=alpha).value == 0

    refused = earn_reject_limit(range(n - 3), alpha=alpha)
    assert refused.value is None
    assert refused.guarantee is None
    assert "3 more good parts needed" in refused.reason
    assert "3 more defects needed" in earn_escape_limit(range(n - 3), alpha=alpha).reason


@pytest.mark.parametrize("alpha", [0.01, 0.02, 0.05, 0.1, 0.2, 0.5])
@pytest.mark.parametrize("by_folds", [False, True])
def test_a_limit_is_refused_for_every_number_of_parts_that_is_too_small(alpha, by_folds):
    enough = parts_needed(alpha)
    for n in range(enough + 1):
        folds = [number % 5 for number in range(n)] if by_folds and n > 1 else None
        for limit in (
            earn_reject_limit(range(n), alpha=alpha, folds=folds),
            earn_escape_limit(range(n), alpha=alpha, folds=folds),
        ):
            earned = n == enough
            assert (limit.value is not None) == (limit.guarantee is not None) == earned
            assert (limit.alpha is not None) == earned
            assert limit.n + limit.needed == enough
            assert earned or f"{limit.needed} more" in limit.reason


@pytest.mark.parametrize(
    ("folds", "proved"),
    [
        (4, 0.23),  # 2 (4 + 1) / (40 + 4): of 40 parts one lies above the limit
        (40, 0.098),  # each part a fold of its own: 2 (1 + 1) / (40 + 1)
    ],
)
def test_a_limit_from_folds_has_the_same_value_and_says_what_is_proved_of_it(folds, proved):
    good = list(range(40))
    split = earn_reject_limit(good, alpha=0.05)
    numbers = [number % folds for number in good]
    cross = earn_reject_limit(good, alpha=0.05, folds=numbers)
    nested = earn_reject_limit(good, alpha=0.05, folds=numbers, nested=True)

    assert cross.value == nested.value == split.value
    assert split.guarantee == nested.guarantee == "P(good part rejected) <= 0.05"
    assert cross.guarantee == (
        f"P(good part rejected) about 0.05; proved is <= {proved:g} for a vote of the {folds}"
        " models taught without a fold each"
    )
    assert f"taught without its fold of {folds}" in cross.reason
    assert split.alpha_95 == upper_bound(1, 40)
    assert cross.alpha_95 is None


@given(defects=SCORES, alpha=ALPHAS)
def test_the_pass_limit_is_the_largest_that_risk_control_allows(defects, alpha):
    limit = earn_escape_limit(defects, alpha=alpha).value
    allowed = [
        score
        for score in defects
        # Loss 1 for a defect that passes, at most 1: (n / (n + 1)) R + 1 / (n + 1) <= alpha.
        if (sum(other < score for other in defects) + 1) / (len(defects) + 1) <= alpha + 1e-9
    ]
    assert limit == max(allowed, default=None)


@settings(max_examples=30)
@given(n=st.integers(19, 400), data=st.data())
def test_one_calibration_set_keeps_to_alpha_95_as_often_as_it_says(n, data):
    alpha = data.draw(ALPHAS.filter(lambda alpha: parts_needed(alpha) <= n))
    limit = earn_reject_limit(range(n), alpha=alpha)
    index = int(limit.value) + 1
    # Over calibration sets the share of good parts above the index-th of n is a Beta.
    shares = np.random.default_rng(n).beta(n + 1 - index, index, 20_000)
    assert np.mean(shares > limit.alpha_95) == pytest.approx(0.05, abs=0.01)
    assert np.mean(shares) <= alpha + 0.01


@given(good=SCORES, alpha=ALPHAS)
def test_of_the_calibration_parts_no_more_than_alpha_are_rejected(good, alpha):
    limit = earn_reject_limit(good, alpha=alpha)
    if limit.value is None:
        assert len(good) < parts_needed(alpha)
        assert len(good) + limit.needed == parts_needed(alpha)
    else:
        assert sum(score >= limit.value for score in good) <= alpha * (len(good) + 1)


@given(defects=SCORES, alpha=ALPHAS)
def test_of_the_calibration_defects_no_more_than_alpha_pass(defects, alpha):
    limit = earn_escape_limit(defects, alpha=alpha)
    if limit.value is None:
        assert len(defects) < parts_needed(alpha)
    else:
        assert sum(score < limit.value for score in defects) <= alpha * (len(defects) + 1)


@given(good=SCORES, defects=st.lists(st.floats(-1e6, 1e6), max_size=60), alpha=ALPHAS)
def test_settling_only_makes_limits_stricter(good, defects, alpha):
    reject = earn_reject_limit(good, alpha=alpha)
    escape = earn_escape_limit(defects, alpha=alpha)

    accept, settled = settle_limits(good, reject, escape, pass_share=0.9)

    assert accept.value is not None
    if escape.value is not None:
        assert accept.value <= escape.value
    assert (accept.guarantee, settled.guarantee) == (escape.guarantee, reject.guarantee)
    if reject.value is None:
        assert settled.value is None
    else:
        assert settled.value >= reject.value
        assert accept.value <= settled.value


def test_without_defects_the_pass_limit_is_a_quantile_on_the_audit_route():
    good = list(range(1, 100))
    accept, _ = settle_limits(
        good,
        earn_reject_limit(good, alpha=0.05),
        earn_escape_limit([], alpha=0.05),
        pass_share=0.9,
    )
    assert accept.value == 90
    assert accept.guarantee is None
    assert "19 more defects needed" in accept.reason
    assert "audit" in accept.reason


def test_over_many_splits_the_promises_are_kept_on_average():
    rng = np.random.default_rng(11)
    alpha, n, splits = 0.1, 59, 400
    good, bad = rng.gamma(4, 1, 4000), rng.gamma(9, 1, 4000)
    rejected, passed = [], []
    for _ in range(splits):
        rng.shuffle(good)
        rng.shuffle(bad)
        reject = earn_reject_limit(good[:n].tolist(), alpha=alpha)
        escape = earn_escape_limit(bad[:n].tolist(), alpha=alpha)
        accept, reject = settle_limits(good[:n].tolist(), reject, escape, pass_share=0.9)
        rejected.append((good[n:] >= reject.value).mean())
        passed.append((bad[n:] < accept.value).mean())

    # The mean over splits is what is promised; its own error here is near 0.002.
    assert np.mean(rejected) <= alpha + 0.006
    assert np.mean(passed) <= alpha + 0.006
    # Settling is strict, but the promise must not be kept by rejecting nothing at all.
    assert np.mean(rejected) > 0.01


@pytest.mark.parametrize(
    ("failures", "n", "confidence", "bound"),
    [
        (0, 149, 0.95, 0.02),
        (0, 299, 0.95, 0.01),
        (0, 2995, 0.95, 0.001),
        (1, 236, 0.95, 0.02),
        (1, 4742, 0.95, 0.001),
        (0, 459, 0.99, 0.01),
    ],
)
def test_the_upper_bound_agrees_with_the_tables_of_quality_engineers(
    failures, n, confidence, bound
):
    assert upper_bound(failures, n, confidence=confidence) <= bound
    assert upper_bound(failures, n - 1, confidence=confidence) > bound


@settings(max_examples=40)
@given(n=st.integers(1, 300), share=st.floats(0, 1))
def test_the_bounds_enclose_what_was_seen(n, share):
    failures = round(share * n)
    low, high = lower_bound(failures, n), upper_bound(failures, n)
    assert 0 <= low <= failures / n <= high <= 1


@pytest.mark.parametrize(
    "ask",
    [
        lambda: earn_reject_limit([1.0, math.nan], alpha=0.05),
        lambda: earn_reject_limit([1.0], alpha=0.0),
        lambda: earn_escape_limit([1.0], alpha=1.0),
        lambda: earn_reject_limit([1.0, 2.0], alpha=0.5, folds=[0]),
        lambda: earn_reject_limit([1.0, 2.0], alpha=0.5, folds=[3, 3]),
        lambda: upper_bound(3, 2),
        lambda: upper_bound(0, 0),
    ],
)
def test_what_cannot_be_certified_is_an_error(ask):
    with pytest.raises(CertificateError):
        ask()
