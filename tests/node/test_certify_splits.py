"""A quick version of `make prove-certify`, which has the recorded sets and all sizes."""

from __future__ import annotations

import numpy as np
import pytest

from tests import prove_certify as prove

SPLITS = 200


@pytest.mark.parametrize("law", prove.LAWS)
@pytest.mark.parametrize(("alpha", "n"), [(0.05, 19), (0.05, 60)])
def test_false_rejects_exceed_alpha_in_no_more_splits_than_stated(law, alpha, n):
    good, _ = prove.LAWS[law]
    cell = prove.reject_cell(law, good, alpha=alpha, n=n, splits=SPLITS, seed=1)
    assert cell.kept, cell


@pytest.mark.parametrize("law", prove.LAWS)
@pytest.mark.parametrize(("alpha", "n"), [(0.1, 9), (0.05, 40)])
def test_escapes_exceed_alpha_in_no_more_splits_than_stated(law, alpha, n):
    _, defects = prove.LAWS[law]
    cell = prove.escape_cell(law, defects, alpha=alpha, n=n, splits=SPLITS, seed=2)
    assert cell.kept, cell


def test_a_split_of_a_fixed_pool_is_held_to_the_same_law():
    rng = np.random.default_rng(4)
    pool = prove.from_pool(rng.gamma(3, 1, 200))
    cell = prove.reject_cell("pool", pool, alpha=0.05, n=60, splits=SPLITS, seed=3)
    assert cell.kept, cell
    # The law is sharp, so the counts would tell a limit that is off by a little.
    assert cell.above_alpha == pytest.approx(cell.above_alpha_stated, abs=0.12)


def test_limits_settled_with_each_other_keep_both_promises():
    good, defects = prove.LAWS["normal"]
    for cell in prove.settled_cells(
        "normal", good, defects, n=60, n_defects=40, splits=SPLITS, seed=4
    ):
        assert cell.kept, cell


@pytest.mark.parametrize("off", [0.97, 0.9])
def test_a_limit_that_is_a_little_too_low_is_found_out(monkeypatch, off):
    real = prove.earn_reject_limit

    def too_low(good, *, alpha, **_):
        limit = real(good, alpha=1 - off * (1 - alpha))
        return real(good, alpha=alpha) if limit.value is None else limit

    monkeypatch.setattr(prove, "earn_reject_limit", too_low)
    good, _ = prove.LAWS["normal"]
    assert not prove.reject_cell("low", good, alpha=0.05, n=60, splits=SPLITS, seed=5).kept


@pytest.mark.parametrize("learner", [prove.nearest, prove.gaussian])
def test_a_limit_from_folds_holds_for_the_model_taught_on_all(learner):
    cell, _ = prove.cross_cell("folds", learner, n=60, splits=60, seed=6)
    assert cell.kept, cell


def test_more_points_never_raise_a_score_where_all_are_kept():
    _, raised = prove.cross_cell("nearest", prove.nearest, n=60, splits=10, seed=7)
    assert raised == 0


def test_a_learner_that_breaks_the_condition_of_folds_breaks_the_promise():
    cell, raised = prove.cross_cell("broken", prove.growing, n=60, splits=60, seed=8)
    assert raised == 1
    assert not cell.kept


def test_a_limit_earned_on_taught_parts_is_found_out():
    assert not prove.taught_control(splits=40).kept


def test_a_limit_that_was_typed_is_found_out():
    assert not prove.typed_control("heavy tails", *prove.LAWS["heavy tails"], splits=40).kept


def test_every_under_sampled_case_is_refused():
    cases, refused = prove.refusals()
    assert refused == cases > 3_000
