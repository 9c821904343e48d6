import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcnode.domain import (
    Action,
    AgentLevel,
    Decider,
    Disposition,
    Limits,
    Prediction,
    ReviewBounds,
    Verdict,
)
from qcnode.policy import action_for, authorize, choose_decider, judge

LIMITS = Limits(accept_below=0.2, reject_from=0.8)
BOUNDS = ReviewBounds(waiting_max=3, cost_pico_max=100)


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
        ({"budget_left_pico": 99}, Decider.OPERATOR),
        ({"budget_left_pico": 100}, Decider.AGENT),
        ({"waiting": 3}, Decider.OPERATOR),
    ],
)
def test_the_operator_is_the_answer_to_every_doubt_about_the_cloud(doubt, expected):
    circumstances = {"cloud_reachable": True, "budget_left_pico": None, "waiting": 0} | doubt

    assert choose_decider(Verdict.NOT_DECIDABLE, BOUNDS, **circumstances) is expected
    assert choose_decider(Verdict.UNDEFINED, BOUNDS, **circumstances) is Decider.OPERATOR
    assert choose_decider(Verdict.OK, BOUNDS, **circumstances) is Decider.NODE


@pytest.mark.parametrize(
    ("level", "may_scrap", "may_release"),
    [
        (AgentLevel.L1, False, False),
        (AgentLevel.L2, True, False),
        (AgentLevel.L3, True, True),
        (AgentLevel.L4, True, True),
    ],
)
def test_an_agent_may_be_stricter_before_it_may_be_milder(level, may_scrap, may_release):
    assert authorize(level, Disposition.SCRAP) is may_scrap
    assert authorize(level, Disposition.RELEASE) is may_release
