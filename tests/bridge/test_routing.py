import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcbridge.routing import Candidate, RoutingRule, Standing, gain_pico, pick, second
from qcnode.certify import lower_bound
from qcnode.money import Cost

RULE = RoutingRule(floor=0.8, trial_share=0.1)
NO_TRIAL = 1.0


def candidate(name, pico, *, right=0, wrong=0, against=None, currency="USD"):
    price = None if pico is None else Cost(currency=currency, pico=pico, rows=())
    return Candidate(name=name, price=price, against=against, right=right, wrong=wrong)


CHEAP = candidate("cheap", 10, right=95, wrong=5)
DEAR = candidate("dear", 90, right=99, wrong=1)
NEW = candidate("new", 5)
BAD = candidate("bad", 1, right=40, wrong=60)


def test_the_cheapest_that_proved_good_enough_is_asked():
    found = pick([DEAR, CHEAP, BAD, NEW], RULE, coin=NO_TRIAL)

    assert found.candidate is CHEAP
    assert "proved good enough" in found.reason
    assert [words.partition(":")[0] for words in found.passed_over] == ["dear", "bad", "new"]
    assert "right in 40 of 100, below 80%" in found.passed_over[1]


@pytest.mark.parametrize(
    ("floor", "expected"),
    [(0.8, Standing.PROVED), (0.93, Standing.UNPROVED), (0.99, Standing.DISPROVED)],
)
def test_a_record_proves_disproves_or_leaves_open(floor, expected):
    assert CHEAP.standing(floor) is expected


def test_one_that_has_yet_to_prove_itself_gets_its_share_of_trials():
    known, less = candidate("known", 50, right=3), candidate("less", 99, right=1)
    share = sum(
        pick([CHEAP, known, less], RULE, coin=number / 1_000).candidate is less
        for number in range(1_000)
    )

    assert share == 100  # The one least is known of; a tenth of the questions.
    assert pick([CHEAP, known, less], RULE, coin=0.1).candidate is CHEAP


def test_while_nobody_has_proved_anything_the_cheapest_is_asked():
    assert pick([DEAR.__class__(name="a", price=DEAR.price), NEW], RULE, coin=0.0).candidate is NEW


@pytest.mark.parametrize("others", [[BAD], [BAD, candidate("far", 2, against="not allowed")]])
def test_one_that_proved_too_often_wrong_is_not_asked_even_if_nobody_else_is_left(others):
    found = pick([candidate("gone", 3, against="it does not answer"), *others], RULE, coin=NO_TRIAL)

    assert found.candidate is None
    assert "gone: it does not answer" in found.passed_over


def test_whoever_is_alone_is_asked_whatever_its_record():
    assert pick([BAD], RULE, coin=NO_TRIAL).candidate is BAD
    assert pick([candidate("x", 1, against="not allowed")], RULE, coin=0.0).candidate is None
    assert pick([candidate("x", None)], RULE, coin=0.0).candidate is None


def test_prices_in_two_currencies_are_not_compared():
    yuan = candidate("yuan", 1, right=99, wrong=1, currency="CNY")

    assert pick([CHEAP, yuan], RULE, coin=NO_TRIAL).candidate is CHEAP
    assert pick([yuan, CHEAP], RULE, coin=NO_TRIAL).candidate is yuan


def test_a_second_opinion_is_asked_only_where_it_saves_more_than_its_price():
    dear = candidate("dear", 90_000, right=990, wrong=10)
    right = 0.90
    saved = dear.at_least - right  # per unit of what an error costs
    enough = int(90_000 / saved / 1_000_000) + 1

    pays = RoutingRule(floor=0.8, error_cost_micro=enough)
    does_not = RoutingRule(floor=0.8, error_cost_micro=enough - 1)

    assert second([CHEAP, dear], ["cheap"], pays, right=right).candidate is dear
    assert second([CHEAP, dear], ["cheap"], does_not, right=right).candidate is None
    assert second([CHEAP, dear], ["cheap"], RULE, right=0.0).candidate is None


def test_nobody_who_proved_nothing_gives_a_second_opinion():
    rule = RoutingRule(floor=0.8, error_cost_micro=10**9)

    assert second([CHEAP, NEW, BAD], ["cheap"], rule, right=0.0).candidate is None


candidates = st.lists(
    st.builds(
        candidate,
        st.uuids().map(str),
        st.none() | st.integers(0, 10**9),
        right=st.integers(0, 200),
        wrong=st.integers(0, 200),
        against=st.none() | st.just("not allowed"),
        currency=st.sampled_from(["USD", "CNY"]),
    ),
    min_size=1,
    max_size=5,
)
rules = st.builds(
    RoutingRule,
    floor=st.floats(0, 0.99),
    trial_share=st.floats(0, 1),
    error_cost_micro=st.none() | st.integers(0, 10**9),
)


@given(candidates, rules, st.floats(0, 1))
def test_nobody_is_asked_who_may_not_be_or_has_no_price_or_proved_too_often_wrong(
    several, rule, coin
):
    found = pick(several, rule, coin=coin)
    free = [one for one in several if one.against is None and one.price is not None]
    good = [one for one in free if one.standing(rule.floor) is not Standing.DISPROVED]

    if found.candidate is None:
        assert not good
        assert len(found.passed_over) == len(several)
        return
    assert found.candidate in free
    assert found.candidate in good or len(several) == 1
    # Everybody else is on record with why not.
    assert len(found.passed_over) == len(several) - 1
    proved = [one for one in good if one.standing(rule.floor) is Standing.PROVED]
    if found.candidate in proved and len({one.price.currency for one in proved}) == 1:
        assert found.candidate.price.pico == min(one.price.pico for one in proved)


@given(candidates, rules, st.floats(0, 1), st.integers(0, 4))
def test_a_second_opinion_never_costs_more_than_it_can_be_expected_to_save(
    several, rule, right, number
):
    asked = [several[number % len(several)].name]
    found = second(several, asked, rule, right=right).candidate

    if found is None:
        return
    assert found.name not in asked
    assert found.against is None
    saved = (found.at_least - right) * rule.error_cost_micro * 10**6
    assert gain_pico(found, rule, right=right) <= saved
    assert found.price.pico < saved
    assert found.at_least == lower_bound(found.right, found.settled) >= rule.floor
