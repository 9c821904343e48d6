"""What an agent earns, by simulation: the useless rarely rise, the bad fall, the good rise."""

import math
import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcnode.domain import AgentLevel
from qcnode.trust import ALPHA, BETA, Constant, Isotonic, Platt, calibrate, earned

L1, L2, L3, L4 = AgentLevel
AGENTS = 1_000
PARTS = 300


def draws(rng, chance, count):
    return [rng.random() < chance for _ in range(count)]


@pytest.mark.parametrize("start", [L1, L2])
def test_agents_no_better_than_the_node_hardly_ever_rise(start):
    rng = random.Random(1)
    risen = sum(earned(draws(rng, 0.5, PARTS), start=start).rises > 0 for _ in range(AGENTS))
    # At most alpha of them ever do; three standard deviations for the draw.
    assert risen <= ALPHA * AGENTS + 3 * math.sqrt(AGENTS * ALPHA * (1 - ALPHA))


def test_looking_after_each_part_does_not_help_the_useless():
    rng = random.Random(2)
    risen = 0
    for _ in range(100):
        parts = draws(rng, 0.5, 100)
        risen += any(earned(parts[:count]).rises for count in range(0, 101, 5))
    assert risen <= 0.05 * 100 + 3 * math.sqrt(100 * 0.05 * 0.95)


def test_an_agent_that_is_right_where_the_node_is_wrong_rises():
    rng = random.Random(3)
    needed = []
    for _ in range(100):
        parts = draws(rng, 0.85, 200)
        needed.append(next(n for n in range(201) if earned(parts[:n]).level is L3))
    assert sorted(needed)[50] <= 25
    assert max(needed) <= 100


def test_a_bad_agent_falls_from_wherever_it_stands():
    rng = random.Random(4)
    for start in (L2, L3):
        for _ in range(50):
            parts = draws(rng, 0.1, 60)
            assert earned(parts, start=start).level is L1


def test_an_agent_that_was_good_for_long_falls_soon_after_it_turned_bad():
    rng = random.Random(5)
    for _ in range(50):
        parts = draws(rng, 0.85, 500) + draws(rng, 0.1, 60)
        assert earned(parts[:500]).level is L3
        assert earned(parts).level is not L3


def test_a_harmless_agent_falls_no_more_often_than_stated():
    rng = random.Random(6)
    falls = sum(earned(draws(rng, 0.5, PARTS), start=L3).falls for _ in range(200))
    assert falls <= 200 * PARTS * BETA


def test_nothing_seen_is_nothing_earned_and_what_is_missing_is_told():
    fresh = earned(())
    assert (fresh.level, fresh.up, fresh.down, fresh.parts) == (L2, 0.0, 0.0, 0)
    some = earned([True] * 4)
    assert some.level is L2
    assert 0 < some.up < 1
    assert earned((), start=L4).level is L3


# -- what confidence is worth -------------------------------------------------------------


def test_with_too_few_settled_answers_the_worth_is_not_known():
    assert calibrate([(0.9, True)] * 39) is None
    assert calibrate([(0.9, True)] * 40) == Constant(41 / 42)


def made(rng, count, chance):
    pairs = []
    for _ in range(count):
        stated = rng.uniform(0.5, 1.0)
        pairs.append((stated, rng.random() < chance(stated)))
    return pairs


def test_an_agent_that_is_too_sure_of_itself_is_taken_at_less():
    rng = random.Random(7)
    worth = calibrate(made(rng, 600, lambda stated: 0.2 + 0.6 * stated))
    for stated in (0.6, 0.75, 0.95):
        assert abs(worth(stated) - (0.2 + 0.6 * stated)) < 0.08


def test_steps_are_chosen_where_a_curve_does_not_fit():
    rng = random.Random(8)
    worth = calibrate(made(rng, 1_000, lambda stated: 0.95 if stated > 0.8 else 0.55))
    assert isinstance(worth, Isotonic)
    assert worth(0.9) > 0.9
    assert worth(0.6) < 0.65


def test_a_confidence_that_says_nothing_counts_for_nothing():
    rng = random.Random(9)
    worth = calibrate(made(rng, 400, lambda _: 0.8))
    assert abs(worth(0.99) - worth(0.55)) < 0.1
    backwards = calibrate(made(rng, 400, lambda stated: 1.3 - stated * 0.8))
    assert isinstance(backwards, Constant)


def test_answers_without_a_confidence_are_worth_the_share_of_right_ones():
    assert calibrate([(None, True)] * 50 + [(None, False)] * 50) == Constant(51 / 102)


def test_a_curve_knows_nothing_of_an_answer_that_states_none():
    assert Platt(1.0, 0.0)(None) is None
    assert Isotonic((0.5,), (0.7,))(None) is None
    assert Isotonic((0.5,), (0.7,))(0.1) == 0.7


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=40, max_size=120))
def test_more_confidence_is_never_worth_less(pairs):
    worth = calibrate(pairs)
    values = [worth(number / 20) for number in range(21)]
    assert all(0 < value < 1 for value in values)
    assert all(a <= b + 1e-12 for a, b in pairwise(values))
