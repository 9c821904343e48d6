"""Which instant decides a price, and what is put down when the clock cannot tell."""

from datetime import timedelta

import pytest

from qcbridge.prices import RatingInstant
from qcnode.errors import UnpricedError
from qcnode.money import Settled, TokenUsage
from tests.bridge.metering import COST, HOLD, NOW, USAGE, Clock, Rig
from tests.bridge.priced import LONG_AGO, book, prices

NOW_US = int(NOW.timestamp() * 1_000_000)
SECOND_US = 1_000_000


def dearer_from(change, *, instant=RatingInstant.COMPLETION):
    """A book in which everything is three times as dear from `change` on."""
    return book(prices(end=change, instant=instant), prices(start=change, instant=instant, times=3))


@pytest.fixture
async def rig_of(tmp_path):
    rigs = []

    def make(**how):
        rigs.append(Rig(tmp_path / str(len(rigs)), **how))
        return rigs[-1]

    yield make
    for rig in rigs:
        await rig.close()


def taking(rig, seconds, *, set_wall=0.0):
    """Let an answer take so long, and the wall clock be set while it does."""

    async def answer(_request):
        rig.clock.pass_time(seconds)
        rig.clock.set_wall(set_wall)
        return USAGE

    rig.endpoint.answer = answer


@pytest.mark.parametrize(
    ("instant", "rated_after_s", "times"),
    [(RatingInstant.START, 0, 1), (RatingInstant.COMPLETION, 4, 3)],
)
async def test_a5_the_instant_that_decides_a_price_is_the_providers_own(
    rig_of, instant, rated_after_s, times
):
    rig = rig_of(prices=dearer_from(NOW + timedelta(seconds=2), instant=instant))
    taking(rig, 4)

    await rig.ask()

    settled = rig.outcome()
    assert settled.cost.pico == times * COST
    # Both instants are on record, whichever counted.
    assert settled.started_at_us == NOW_US
    assert settled.duration_ms == 4_000
    assert settled.rated_at_us == NOW_US + rated_after_s * SECOND_US
    assert settled.other_cost is None


async def test_a_hold_covers_the_price_that_comes_while_the_answer_is_waited_for(rig_of):
    rig = rig_of(prices=dearer_from(NOW + timedelta(seconds=60)), answer_timeout_s=60)
    await rig.ask()
    assert rig.facts()[0].hold.pico == 3 * HOLD

    rig = rig_of(prices=dearer_from(NOW + timedelta(seconds=61)), answer_timeout_s=60)
    await rig.ask()
    assert rig.facts()[0].hold.pico == HOLD


@pytest.mark.parametrize(
    ("change_after_s", "cost", "other"),
    [
        (-5, 3, None),  # A clock five seconds fast stands at the very change.
        (-4, 3, 1),
        (0, 3, 1),
        (1, 1, 3),
        (5, 1, 3),
        (6, 1, None),
    ],
)
async def test_a_change_of_price_within_the_clocks_doubt_leaves_both_costs(
    rig_of, change_after_s, cost, other
):
    rig = rig_of(
        prices=dearer_from(NOW + timedelta(seconds=change_after_s)),
        clock_uncertainty=lambda: timedelta(seconds=5),
        answer_timeout_s=1,
    )

    await rig.ask()

    settled = rig.outcome()
    assert settled.cost.pico == cost * COST
    assert (settled.other_cost and settled.other_cost.pico) == (other and other * COST)


async def test_a_hold_covers_the_price_that_a_slow_clock_has_not_noticed(rig_of):
    rig = rig_of(
        prices=dearer_from(NOW + timedelta(seconds=64)),
        clock_uncertainty=lambda: timedelta(seconds=5),
        answer_timeout_s=60,
    )
    await rig.ask()

    assert rig.facts()[0].hold.pico == 3 * HOLD


@pytest.mark.parametrize("by_s", [-3_600, 3_600])
async def test_a_clock_set_while_an_answer_was_on_its_way_is_doubted_by_as_much(rig_of, by_s):
    # Between the two words of the wall clock lies a change of price that may not have been.
    change = NOW + timedelta(seconds=by_s / 2)
    rig = rig_of(prices=dearer_from(change))
    taking(rig, 2, set_wall=by_s)

    await rig.ask()

    settled = rig.outcome()
    assert {settled.cost.pico, settled.other_cost.pico} == {COST, 3 * COST}
    assert settled.duration_ms == 2_000


async def test_a_clock_that_runs_as_it_should_is_not_doubted(rig_of):
    rig = rig_of(prices=dearer_from(NOW + timedelta(seconds=2, microseconds=1)))
    taking(rig, 2)

    await rig.ask()

    assert rig.outcome().cost.pico == COST
    assert rig.outcome().other_cost is None


async def test_where_only_the_other_side_of_a_change_has_no_price_this_sides_stands(rig_of):
    rig = rig_of(
        prices=book(prices(end=NOW + timedelta(seconds=1))),
        clock_uncertainty=lambda: timedelta(seconds=5),
        answer_timeout_s=0.5,
    )

    await rig.ask()

    assert rig.outcome().cost.pico == COST
    assert rig.outcome().other_cost is None


async def test_an_answer_after_the_last_price_is_unpriced_and_its_hold_stays(rig_of):
    rig = rig_of(prices=book(prices(end=NOW + timedelta(seconds=1))))
    taking(rig, 2)

    await rig.ask()

    settled = rig.outcome()
    assert isinstance(settled, Settled)
    assert settled.cost is None
    assert rig.ledger.totals().held_pico == {"USD": HOLD}


async def test_prices_of_the_attempts_region_are_used_and_no_others(rig_of):
    everywhere, there = prices(), prices(region="cn-beijing", times=2)
    rig = rig_of(prices=book(everywhere, there))

    await rig.ask("a1", region="cn-beijing")
    await rig.ask("a2", region="eu-central")
    await rig.ask("a3")

    costs = [fact.cost.pico for fact in rig.facts() if isinstance(fact, Settled)]
    assert costs == [2 * COST, COST, COST]


def test_a_price_that_is_not_there_yet_makes_nothing_free(rig_of):
    rig = rig_of(prices=book(prices(start=NOW + timedelta(days=1))), clock=Clock(LONG_AGO))

    with pytest.raises(UnpricedError):
        rig.meter.worst_case(TokenUsage(text=1), "scripted", "scripted-provider")
