"""Budgets: whose spending they count, in which window, and that nothing is ever held for good."""

import contextlib
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qcnode.books import chain
from qcnode.books.attempts import State, subject_of
from qcnode.books.budgets import Budget, Counted, Meter
from qcnode.books.ledger import SqliteLedger
from qcnode.books.tally import Tally
from qcnode.errors import BudgetExceededError
from qcnode.money import (
    Adjusted,
    Attempt,
    Cost,
    CostCentre,
    Indeterminate,
    Intent,
    Leased,
    NotBilled,
    Reconciled,
    Reserved,
    Settled,
    TokenUsage,
    WrittenOff,
)

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
NOON_US = 1_795_348_800_000_000
HOUR_US = 3_600_000_000
DAY_US = 24 * HOUR_US
QUARTER = timedelta(minutes=15)
ZONES = (
    "UTC",
    "Asia/Shanghai",
    "Asia/Kolkata",  # half an hour beside the world
    "Asia/Kathmandu",  # a quarter
    "Europe/Berlin",
    "America/New_York",
    "America/Havana",  # midnight comes twice
    "America/Sao_Paulo",  # midnight was left out, until 2019
    "Africa/Cairo",
    "Asia/Beirut",
    "Australia/Lord_Howe",  # clocks are set by half an hour
    "Antarctica/Troll",  # and here by two
    "Pacific/Chatham",
)
WINDOWS = ("hour", "day", "week", "month")


def budget(**how) -> Budget:
    unit = how.get("unit", "money")
    defaults = {"name": "b", "limit": 500, "currency": "USD" if unit == "money" else None}
    return Budget(**defaults | how)


def to_us(at: datetime) -> int:
    return (at - EPOCH) // timedelta(microseconds=1)


def to_time(at_us: int) -> datetime:
    return EPOCH + timedelta(microseconds=at_us)


# -- windows -------------------------------------------------------------------------


def label(window: str, at: datetime, zone: ZoneInfo):
    """What people there call the window of this instant."""
    local = at.astimezone(zone)
    return {
        "hour": (local.date(), local.hour, local.utcoffset()),
        "day": local.date(),
        "week": local.isocalendar()[:2],
        "month": (local.year, local.month),
    }[window]


def by_walking(window: str, at: datetime, zone: ZoneInfo) -> tuple[datetime, datetime]:
    """Find the window's ends by asking what it is called, quarter hour by quarter hour."""
    name = label(window, at, zone)
    start = end = at
    while label(window, start - QUARTER, zone) == name:
        start -= QUARTER
    while label(window, end, zone) == name:
        end += QUARTER
    return start, end


@settings(max_examples=150, deadline=None)
@given(
    window=st.sampled_from(WINDOWS),
    zone=st.sampled_from(ZONES),
    quarters=st.integers(
        to_us(datetime(2012, 1, 1, tzinfo=UTC)) // (15 * 60 * 10**6),
        to_us(datetime(2035, 1, 1, tzinfo=UTC)) // (15 * 60 * 10**6),
    ),
    into_us=st.integers(0, 15 * 60 * 10**6 - 1),
)
def test_a_window_is_what_people_there_call_so_on_any_day_of_the_year(
    window, zone, quarters, into_us
):
    at = to_time(quarters * 15 * 60 * 10**6)
    span = budget(window=window, zone=zone).span(to_us(at) + into_us)

    assert (to_time(span.from_us), to_time(span.until_us)) == by_walking(window, at, ZoneInfo(zone))


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("zone", ZONES)
def test_around_every_set_of_the_clocks_windows_follow_each_other_without_gap(window, zone):
    here, ours = ZoneInfo(zone), budget(window=window, zone=zone)
    hours = [datetime(2018, 1, 1, tzinfo=UTC) + timedelta(hours=n) for n in range(24 * 365 * 2)]
    sets = [
        at
        for at in hours
        if at.astimezone(here).utcoffset() != (at - timedelta(hours=1)).astimezone(here).utcoffset()
    ]
    for at in sets or hours[:1]:
        for minutes in range(-180, 180, 15):
            span = ours.span(to_us(at + timedelta(minutes=minutes)))
            assert ours.span(span.from_us) == ours.span(span.until_us - 1) == span
            assert ours.span(span.until_us).from_us == span.until_us
            assert ours.span(span.from_us - 1).until_us == span.from_us


@pytest.mark.parametrize(
    ("day", "hours"),
    [((2026, 3, 29), 23), ((2026, 10, 25), 25), ((2026, 11, 22), 24)],
)
def test_a_day_on_which_the_clocks_are_set_is_one_day(day, hours):
    noon = datetime(*day, 12, tzinfo=ZoneInfo("Europe/Berlin"))

    span = budget(zone="Europe/Berlin").span(to_us(noon))

    assert span.until_us - span.from_us == hours * HOUR_US


def test_an_hour_the_clock_repeats_is_two_windows():
    first = to_us(datetime(2026, 10, 25, 0, 30, tzinfo=UTC))  # 02:30 in Berlin, and then again
    ours = budget(zone="Europe/Berlin", window="hour")

    assert ours.span(first).until_us == ours.span(first + HOUR_US).from_us
    assert ours.span(first + HOUR_US).until_us - ours.span(first).from_us == 2 * HOUR_US


def test_in_kolkata_the_hour_begins_at_the_half_hour_of_utc():
    span = budget(zone="Asia/Kolkata", window="hour").span(NOON_US)

    assert to_time(span.from_us).minute == 30


def test_a_time_zone_that_is_none_is_refused_with_the_form_it_should_have():
    with pytest.raises(ValueError, match="Asia/Shanghai"):
        budget(zone="Beijing")


# -- whose spending ------------------------------------------------------------------

NAMES = st.sampled_from(["", "a", "b"])
CENTRES = st.builds(
    CostCentre,
    line=NAMES,
    product=NAMES,
    department=NAMES,
    application=NAMES,
    function=NAMES,
    agent=NAMES,
)


@given(scope=CENTRES, centre=CENTRES)
def test_a_scope_covers_what_agrees_with_every_name_it_gives(scope, centre):
    wanted = {name: getattr(scope, name) for name in CostCentre.__slots__ if getattr(scope, name)}

    agrees = all(getattr(centre, name) == value for name, value in wanted.items())

    assert budget(scope=scope).covers(centre) is agrees


# -- what is counted -----------------------------------------------------------------

WORST = TokenUsage(text=90, output=10)
USAGE = TokenUsage(text=7, output=3)
PLACES = (CostCentre(), CostCentre(line="1"), CostCentre(line="1", department="qa"))
BUDGETS = (
    budget(name="all"),
    budget(name="line", limit=250, scope=CostCentre(line="1"), window="month"),
    budget(name="hour", limit=300, window="hour", zone="Asia/Kolkata"),
    budget(name="yuan", limit=300, currency="CNY"),
    budget(name="tokens", limit=250, unit="tokens"),
    budget(name="calls", limit=4, unit="calls", window="hour"),
)


def money(pico: int) -> Cost:
    return Cost(currency="USD", pico=pico, rows=("row",))


def attempt(name: str, centre: CostCentre = PLACES[0]) -> Attempt:
    return Attempt(id=name, escalation_id="e", number=1, provider="p", model="m", centre=centre)


def reserved(name: str, hold: int, centre: CostCentre = PLACES[0]) -> Reserved:
    return Reserved(attempt=attempt(name, centre), worst=WORST, hold=money(hold))


def intent(name: str, hold: int = 100, centre: CostCentre = PLACES[0]) -> Intent:
    return Intent(
        attempt=attempt(name, centre),
        worst=WORST,
        hold=money(hold),
        request_sha256="0" * 64,
        request_bytes=1,
        image_sha256=None,
    )


def settled(name: str, pico: int | None = 60) -> Settled:
    return Settled(
        attempt_id=name,
        usage=USAGE,
        cost=None if pico is None else money(pico),
        started_at_us=1,
        rated_at_us=2,
        raw_usage="{}",
        response_id=None,
        model_served=None,
        http_status=200,
        duration_ms=1,
    )


def not_billed(name: str) -> NotBilled:
    return NotBilled(attempt_id=name, reason="refused", http_status=429)


def indeterminate(name: str, hold: int = 100) -> Indeterminate:
    return Indeterminate(attempt_id=name, reason="time-out", hold=money(hold))


def reconciled(name: str, pico: int = 50) -> Reconciled:
    return Reconciled(
        attempt_id=name, usage=USAGE, cost=money(pico), source="export", source_sha256="0" * 64
    )


def written_off(name: str) -> WrittenOff:
    return WrittenOff(attempt_id=name, reason="older than 90 days")


def adjusted(name: str, after: int, before: Cost | None = None) -> Adjusted:
    return Adjusted(attempt_id=name, before=before, after=money(after), reason="late price")


def lease(limit: int, from_us: int, until_us: int, *, name: str = "fleet") -> Leased:
    return Leased(
        lease_id=f"{name}-{limit}",
        budget=name,
        unit="money",
        limit=limit,
        from_us=from_us,
        until_us=until_us,
    )


IDS = st.sampled_from("ab")
AMOUNTS = st.integers(0, 300)
STEPS = st.one_of(
    st.builds(reserved, IDS, AMOUNTS, centre=st.sampled_from(PLACES)),
    st.builds(intent, IDS, AMOUNTS, centre=st.sampled_from(PLACES)),
    st.builds(settled, IDS, st.none() | st.integers(0, 400)),
    st.builds(not_billed, IDS),
    st.builds(indeterminate, IDS, AMOUNTS),
    st.builds(reconciled, IDS, st.integers(0, 400)),
    st.builds(written_off, IDS),
    st.builds(adjusted, IDS, st.integers(0, 400)),
)


class Told:
    """What became of one attempt, kept the plain way: as the story that was told of it."""

    def __init__(self, at_us):
        self.at_us = at_us
        self.standing = None
        self.counts_pico = 0
        self.held_pico = 0
        self.tokens = 0
        self.tokens_held = 0

    def hear(self, fact, standing):
        known_before = self.standing is not None and self.standing.cost is not None
        self.standing = standing
        if not known_before:  # A cost put right later is no spending of that window.
            amount = standing.cost or standing.hold
            self.counts_pico = 0 if amount is None else amount.pico
        self.held_pico = 0 if standing.hold is None else standing.hold.pico
        if isinstance(fact, Reserved | Intent):
            self.tokens = self.tokens_held = 100
        elif isinstance(fact, Settled):
            self.tokens, self.tokens_held = 10, 0
        elif isinstance(fact, NotBilled):
            self.tokens = self.tokens_held = 0

    def counted(self, unit, currency):
        billed = self.standing.state is not State.NOT_BILLED
        if unit == "tokens":
            return Counted(self.tokens, self.tokens_held, int(billed))
        if unit == "calls":
            return Counted(int(billed), int(self.standing.hold is not None), int(billed))
        if currency != "USD":
            return Counted(0, 0, int(billed))
        return Counted(self.counts_pico, self.held_pico, int(billed))


@settings(max_examples=300, deadline=None)
@given(steps=st.lists(st.tuples(STEPS, st.integers(0, 30 * HOUR_US)), max_size=30))
def test_a_meter_counts_what_the_attempts_of_its_window_come_to(steps):
    tally = Tally.start(b"\0" * 32, BUDGETS)
    told, at_us = {}, NOON_US
    for seq, (fact, later_us) in enumerate(steps, 1):
        at_us += later_us
        name = subject_of(fact)
        standing = told[name].standing if name in told else None
        if isinstance(fact, Adjusted) and standing is not None:
            fact = replace(fact, before=standing.cost)  # noqa: PLW2901  # as whoever adjusts knows
        try:
            step = tally.follow(fact, at_us=at_us, find=lambda _id, known=standing: known)
        except ValueError:
            continue
        tally.add(seq, b"", fact, step)
        told.setdefault(name, Told(at_us)).hear(fact, step[1])

    for meter in tally.meters:
        ours = meter.budget
        spans = {ours.span(one.at_us) for one in told.values()}
        for span in spans:
            inside = [
                one.counted(ours.unit, ours.currency)
                for one in told.values()
                if span.holds(one.at_us) and ours.covers(one.standing.attempt.centre)
            ]
            wanted = Counted(*map(sum, zip(*inside, strict=True))) if inside else Counted()
            assert meter.at(span.from_us) == wanted, ours.name


def test_d2_a_hold_is_given_back_once_however_an_attempt_ends():
    tally = Tally.start(b"\0" * 32, (budget(limit=100),))
    ends = (settled, not_billed)
    standings = {}
    for number in range(1_000):
        name = f"a{number}"
        # Each fits only if every hold before it was given back to the last unit.
        for fact in (reserved(name, 100), intent(name, 90), ends[number % 2](name)):
            if isinstance(fact, Settled):
                fact = replace(fact, cost=money(0))  # noqa: PLW2901  # free, so that all may come
            step = tally.check(fact, at_us=NOON_US, find=standings.get)
            tally.add(tally.seq + 1, b"", fact, step)
            standings[name] = step[1]
    assert tally.meters[0].at(NOON_US) == Counted(0, 0, 500)


def test_d4_an_attempt_nobody_knows_the_end_of_is_held_until_somebody_does():
    tally = Tally.start(b"\0" * 32, (budget(limit=150),))
    standings = {}

    def add(fact):
        step = tally.check(fact, at_us=NOON_US, find=standings.get)
        tally.add(tally.seq + 1, b"", fact, step)
        standings[subject_of(fact)] = step[1]

    add(intent("a"))
    add(indeterminate("a"))
    with pytest.raises(BudgetExceededError):
        add(intent("b"))
    add(reconciled("a", 50))
    add(intent("b"))

    assert tally.meters[0].at(NOON_US) == Counted(150, 100, 2)


def test_a_meter_forgets_windows_long_gone_and_late_news_of_them_changes_nothing():
    ours = budget(window="hour")
    meter = Meter(ours)
    for hour in range(200):
        meter.add(Counted(1, 0, 1), NOON_US + hour * HOUR_US)

    meter.add(Counted(-1, 0, 0), NOON_US)

    assert len(meter.windows) < 100
    assert meter.used_at(NOON_US) == 0
    assert meter.used_at(NOON_US + 199 * HOUR_US) == 1


# -- what is lent --------------------------------------------------------------------

FLEET = budget(name="fleet", limit=10_000, shared=True)
START_US = FLEET.span(NOON_US).from_us
END_US = FLEET.span(NOON_US).until_us


@pytest.fixture
def open_ledger(tmp_path):
    """Open a ledger with the shared budget, and close it at the end."""
    opened = []

    def open_ledger(clock):
        for one in opened:
            one.close()
        ledger = SqliteLedger(
            tmp_path / "ledger.db",
            now_us=lambda: clock[0],
            new_epoch=lambda: "e" * 32,
            budgets=(FLEET,),
        )
        opened.append(ledger)
        return ledger

    yield open_ledger
    for ledger in opened:
        ledger.close()


def put(ledger, *facts):
    return [ledger.submit(fact).result(10) for fact in facts]


def test_of_a_shared_budget_nothing_is_spent_before_something_is_lent(open_ledger):
    ledger = open_ledger([NOON_US])

    with pytest.raises(BudgetExceededError, match="has lent this node none"):
        put(ledger, intent("a"))

    (state,) = ledger.budgets()
    assert (state.lent, state.limit, state.left) == (False, 0, 0)


def test_what_is_lent_is_what_may_be_used_in_the_whole_window(open_ledger):
    ledger = open_ledger([NOON_US])
    put(ledger, lease(150, START_US, END_US), intent("a"))
    with pytest.raises(BudgetExceededError):
        put(ledger, intent("b"))

    # Another lease goes on from the start of the window: it is no addition.
    put(ledger, lease(200, START_US, END_US), intent("b"))

    with pytest.raises(BudgetExceededError):
        put(ledger, intent("c", 1))
    (state,) = ledger.budgets()
    assert (state.lent, state.limit, state.used) == (True, 200, 200)


def test_a_lease_that_has_run_out_lends_nothing_and_one_from_before_a_restart_still_does(
    open_ledger,
):
    clock = [NOON_US]
    put(open_ledger(clock), lease(150, START_US, NOON_US + HOUR_US))
    ledger = open_ledger(clock)
    put(ledger, intent("a"))

    clock[0] = NOON_US + HOUR_US

    with pytest.raises(BudgetExceededError, match="none"):
        put(ledger, intent("b", 1))
    assert not ledger.budgets()[0].lent


def test_a_lease_never_lends_more_than_the_node_may_spend_anyway(open_ledger):
    ledger = open_ledger([NOON_US])
    put(ledger, lease(10**9, START_US, END_US))

    assert ledger.budgets()[0].limit == FLEET.limit


def test_the_state_of_a_budget_tells_spent_from_held_and_counts_the_calls(tmp_path):
    ledger = SqliteLedger(
        tmp_path / "ledger.db",
        now_us=lambda: NOON_US,
        new_epoch=lambda: "e" * 32,
        budgets=(budget(limit=1_000),),
    )
    with contextlib.closing(ledger):
        put(ledger, intent("a"), settled("a"), intent("b"), indeterminate("b"), intent("c"))
        put(ledger, not_billed("c"))
        (state,) = ledger.budgets()
        assert [chain.fact_of(entry) for entry in ledger.read(0, 2)] == [intent("a"), settled("a")]

    assert (state.used, state.held, state.calls, state.left) == (160, 100, 2, 840)
    assert state.span.holds(state.at_us)
