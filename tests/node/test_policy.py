import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qcnode.domain import (
    Action,
    Allowance,
    Decider,
    Limits,
    Prediction,
    Verdict,
)
from qcnode.policy import (
    action_for,
    alone,
    choose_decider,
    judge,
    lean,
    rank_among,
    share_to_ask,
)

LIMITS = Limits(accept_below=0.2, reject_from=0.8)
BAND = Limits(accept_below=0.0, reject_from=10.0)
PLENTY = {
    "allowance": Allowance(fits=None, share=1.0),
    "cloud_reachable": True,
    "room": True,
    "rank": 0.0,
}


def make_prediction(score):
    return Prediction(score=score, model="m@1")


@pytest.mark.parametrize(
    ("score", "expected"),
    [
        (0.19, Verdict.OK),
        (0.20, Verdict.NOT_DECIDABLE),  # accept_below
        (0.79, Verdict.NOT_DECIDABLE),
        (0.80, Verdict.NOT_OK),  # reject_from
    ],
)
def test_a_score_on_a_limit_gets_the_stricter_verdict(score, expected):
    assert judge(make_prediction(score), LIMITS) is expected


def test_without_a_prediction_there_is_no_verdict():
    assert judge(None, LIMITS) is Verdict.UNDEFINED


@given(score=st.floats(allow_nan=False, allow_infinity=False))
def test_a_limit_that_was_not_earned_decides_nothing(score):
    prediction = make_prediction(score)

    assert judge(prediction, Limits(accept_below=None, reject_from=None)) is Verdict.NOT_DECIDABLE
    assert judge(prediction, Limits(accept_below=None, reject_from=0.5)) is not Verdict.OK
    assert judge(prediction, Limits(accept_below=0.5, reject_from=None)) is not Verdict.NOT_OK


@pytest.mark.parametrize(
    ("score", "expected"),
    [(0.2, Verdict.OK), (0.5, Verdict.NOT_DECIDABLE), (0.8, Verdict.NOT_OK)],
)
def test_between_limits_that_cross_everything_is_asked_about(score, expected):
    crossed = Limits(accept_below=0.7, reject_from=0.3)

    assert judge(make_prediction(score), crossed) is expected


@given(a=st.floats(-10, 10), b=st.floats(-10, 10))
def test_a_higher_score_never_gets_a_milder_verdict(a, b):
    order = [Verdict.OK, Verdict.NOT_DECIDABLE, Verdict.NOT_OK]
    low, high = sorted((a, b))

    ranks = [order.index(judge(make_prediction(score), LIMITS)) for score in (low, high)]
    assert ranks == sorted(ranks)


@pytest.mark.parametrize("score", [float("nan"), float("inf")])
def test_a_score_that_is_no_number_cannot_exist(score):
    with pytest.raises(ValueError, match="finite"):
        make_prediction(score)


def test_a_part_without_evidence_goes_the_safe_way_chosen_beforehand():
    assert action_for(Verdict.UNDEFINED, failsafe=Action.REJECT) is Action.REJECT
    assert action_for(Verdict.NOT_DECIDABLE, failsafe=Action.REJECT) is Action.DIVERT


@pytest.mark.parametrize(
    ("doubt", "expected"),
    [
        ({}, Decider.AGENT),
        ({"cloud_reachable": False}, Decider.OPERATOR),
        ({"allowance": Allowance(fits=0, share=1.0)}, Decider.OPERATOR),
        ({"allowance": Allowance(fits=1, share=1.0)}, Decider.AGENT),
        ({"allowance": Allowance(fits=9, share=0.5), "rank": 0.5}, Decider.OPERATOR),
        ({"allowance": Allowance(fits=9, share=0.5), "rank": 0.49}, Decider.AGENT),
        ({"allowance": Allowance(fits=9, share=0.0)}, Decider.OPERATOR),
        ({"room": False}, Decider.OPERATOR),
    ],
)
def test_the_operator_is_the_answer_to_every_doubt_about_the_cloud(doubt, expected):
    circumstances = PLENTY | doubt

    assert choose_decider(Verdict.NOT_DECIDABLE, **circumstances) is expected
    assert choose_decider(Verdict.UNDEFINED, **circumstances) is Decider.OPERATOR
    assert choose_decider(Verdict.OK, **circumstances) is Decider.NODE


# -- which parts are worth a question ------------------------------------------------

scores = st.floats(-100, 100)
shares = st.floats(0, 1)
counts = st.integers(0, 1_000)
allowances = st.builds(Allowance, fits=st.none() | counts, share=shares)
limits = st.builds(Limits, accept_below=st.none() | scores, reject_from=st.none() | scores)
rulings = st.lists(st.tuples(scores, st.booleans()), max_size=60)


@given(
    verdict=st.sampled_from([Verdict.OK, Verdict.NOT_OK]),
    allowance=allowances,
    reachable=st.booleans(),
    room=st.booleans(),
    rank=shares,
)
def test_what_the_limits_decide_is_never_touched_by_any_budget(
    verdict, allowance, reachable, room, rank
):
    decider = choose_decider(verdict, allowance, cloud_reachable=reachable, room=room, rank=rank)

    assert decider is Decider.NODE


@given(allowance=allowances, rank=shares, more_share=shares, more_fits=counts)
def test_with_more_to_spend_no_question_is_dropped(allowance, rank, more_share, more_fits):
    richer = Allowance(
        fits=None if allowance.fits is None else allowance.fits + more_fits,
        share=max(allowance.share, more_share),
    )
    poor, rich = (
        choose_decider(Verdict.NOT_DECIDABLE, one, cloud_reachable=True, room=True, rank=rank)
        for one in (allowance, richer)
    )

    assert rich is Decider.AGENT or poor is Decider.OPERATOR


@given(allowance=allowances, ranks=st.tuples(shares, shares))
def test_a_part_more_worth_asking_about_is_never_passed_over_for_another(allowance, ranks):
    better, worse = (
        choose_decider(Verdict.NOT_DECIDABLE, allowance, cloud_reachable=True, room=True, rank=rank)
        for rank in sorted(ranks)
    )

    assert better is Decider.AGENT or worse is Decider.OPERATOR


@given(affordable=counts, expected=st.none() | counts, more=counts)
def test_the_share_to_ask_grows_with_the_budget_and_is_what_it_pays_for(affordable, expected, more):
    share = share_to_ask(affordable, expected)

    assert 0 <= share <= share_to_ask(affordable + more, expected) <= 1
    if expected is not None and affordable:
        assert share * expected <= affordable + 1e-6
    if not affordable:
        assert share == 0


@settings(max_examples=60, deadline=None)
@given(
    arriving=st.lists(st.floats(0, 10), min_size=30, max_size=200),
    budget=st.integers(0, 120),
    seed=st.integers(0, 2**32),
)
def test_a_line_never_asks_more_than_its_budget_and_spends_it_on_the_best(arriving, budget, seed):
    """A window as the desk lives through it: so many parts to come, so much left."""
    leaning = lean(BAND, arriving, ())
    doubts = sorted(leaning.doubt(score) for score in arriving)
    random.Random(seed).shuffle(arriving)
    left, asked, others = budget, [], []
    for number, score in enumerate(arriving):
        doubt = leaning.doubt(score)
        decider = choose_decider(
            Verdict.NOT_DECIDABLE,
            Allowance(fits=left, share=share_to_ask(left, len(arriving) - number)),
            cloud_reachable=True,
            room=True,
            rank=rank_among(doubt, doubts),
        )
        (asked if decider is Decider.AGENT else others).append(doubt)
        left -= decider is Decider.AGENT

    assert len(asked) <= budget
    if budget >= len(arriving):
        assert not others
    if asked and others:
        assert sum(asked) / len(asked) >= sum(others) / len(others) - 1e-9


@given(
    limits=limits,
    recent=st.lists(scores, max_size=30),
    ruled=rulings,
    pair=st.tuples(scores, scores),
)
def test_a_higher_score_is_never_less_likely_defective(limits, recent, ruled, pair):
    leaning = lean(limits, recent, ruled)
    low, high = (leaning.chance(score) for score in sorted(pair))

    assert 0 <= low <= high + 1e-9
    assert high <= 1


@given(ruled=rulings, scores=st.lists(st.floats(0, 10), min_size=3, max_size=3))
def test_the_parts_asked_about_are_one_stretch_of_scores(ruled, scores):
    """Of three, the middle one is never the least doubtful: the band narrows from both sides."""
    leaning = lean(BAND, (), ruled)
    low, middle, high = (leaning.doubt(score) for score in sorted(scores))

    assert middle >= min(low, high) - 1e-9


def test_without_rulings_the_middle_of_the_band_is_the_most_doubtful():
    leaning = lean(BAND, (), ())

    assert leaning.doubt(5.0) == pytest.approx(0.5)
    assert leaning.doubt(1.0) < leaning.doubt(3.0) < leaning.doubt(5.0)
    assert leaning.doubt(9.0) < leaning.doubt(7.0) < leaning.doubt(5.0)


def test_where_people_keep_finding_good_parts_the_doubt_moves_up():
    good_below_seven = [(score / 10, score > 70) for score in range(0, 100, 2)] * 4

    leaning = lean(BAND, (), good_below_seven)

    assert leaning.doubt(7.0) > leaning.doubt(5.0)
    assert leaning.doubt(7.0) > 0.3


@pytest.mark.parametrize(
    ("earned", "order"),
    [
        # The nearer to the one limit there is, the less the node knows.
        (Limits(accept_below=None, reject_from=8.0), [2.0, 5.0, 7.9]),
        (Limits(accept_below=2.0, reject_from=None), [9.0, 5.0, 2.1]),
    ],
)
def test_with_one_limit_earned_the_doubt_is_largest_at_it(earned, order):
    leaning = lean(earned, [1.0, 3.0, 5.0, 7.0, 9.0], ())

    assert [leaning.doubt(score) for score in order] == sorted(
        leaning.doubt(score) for score in order
    )


def test_with_no_limit_earned_every_part_is_as_doubtful_as_any():
    leaning = lean(Limits(accept_below=None, reject_from=None), [1.0, 9.0], ())

    assert {leaning.doubt(score) for score in (0.0, 3.0, 100.0)} == {0.5}


@pytest.mark.parametrize(
    ("score", "earned", "action"),
    [
        (4.9, BAND, Action.ACCEPT),
        (5.0, BAND, Action.REJECT),
        (4.9, Limits(accept_below=10.0, reject_from=0.0), Action.ACCEPT),
        (7.9, Limits(accept_below=None, reject_from=8.0), Action.ACCEPT),
        (2.1, Limits(accept_below=2.0, reject_from=None), Action.REJECT),
        (5.0, Limits(accept_below=None, reject_from=None), Action.DIVERT),
        (None, BAND, Action.DIVERT),
    ],
)
def test_a_node_alone_would_turn_in_the_middle_of_its_band(score, earned, action):
    assert alone(score, earned) is action
