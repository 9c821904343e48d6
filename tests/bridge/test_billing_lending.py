"""Parts of shared budgets: together the nodes never spend more than the limit, come what may."""

import contextlib
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qcbridge.billing.lending import SKEW_US, Budgets, SharedBudget
from qcnode.books import chain
from qcnode.books.attempts import LIVE
from qcnode.books.budgets import Budget
from qcnode.books.tally import Tally
from qcnode.errors import BillingError, BudgetExceededError
from qcnode.money import Cost, CostCentre
from tests.bridge.books import Books
from tests.bridge.ledgers import (
    batch_of,
    indeterminate,
    intent,
    not_billed,
    outcome,
    reserved,
    settled,
)

NOW = datetime(2026, 11, 20, 2, 0, tzinfo=UTC)  # Ten in the morning in Shanghai.
LIMIT = 1_000
HOUR_US = 3_600_000_000
PRESS = CostCentre(department="press")


class Node:
    """A node's books in memory: it spends what its budget lets it, and sends what it wrote."""

    def __init__(self, books, budget, name, *, tenant, skew_us=0):
        self.books, self.budget, self.name, self.tenant = books, budget, name, tenant
        self.skew_us = skew_us
        self.clock_us = 0
        self.epochs = 0
        self.ledgers = []
        self.open_epoch()

    def open_epoch(self):
        """Go on with a new ledger, as after a restore; what the old one counted stays spent."""
        self.epochs += 1
        self.epoch = f"epoch-{self.epochs}"
        self.tally = Tally.start(chain.genesis(self.epoch), [self.budget])
        self.ledgers.append(self.tally)
        self.entries, self.acked, self.ids, self.done = [], 0, 0, {}
        self.leases = set()

    def record(self, fact):
        # Node clocks never go back, which the ledger sees to.
        self.clock_us = max(self.clock_us, self.books.now_us() + self.skew_us)
        step = self.tally.check(fact, at_us=self.clock_us, find=self.done.get)
        entry = chain.make_entry(
            fact,
            epoch=self.epoch,
            seq=self.tally.seq + 1,
            at_us=self.clock_us,
            prev_hash=self.tally.hash,
        )
        self.tally.add(entry.seq, entry.hash, fact, step)
        if step[1] is not None and step[1].state not in LIVE:
            self.done[step[1].attempt.id] = step[1]
        self.entries.append(entry)

    def hello(self):
        """Write something that spends nothing."""
        self.record(outcome(f"{self.name}-{self.epochs}"))

    def spend(self, hold, cost, ending="settled"):
        """Make one request, or none if it does not fit."""
        self.ids += 1
        name = f"{self.name}-{self.epochs}-{self.ids}"
        worst = Cost(currency="CNY", pico=hold, rows=())
        with contextlib.suppress(BudgetExceededError):
            self.record(reserved(name, hold=worst, centre=PRESS))
            if ending == "left":
                return
            self.record(intent(name, hold=worst, centre=PRESS))
            self.record(
                {
                    "settled": settled(name, cost=Cost(currency="CNY", pico=cost, rows=())),
                    "indeterminate": indeterminate(name, hold=worst),
                    "not billed": not_billed(name),
                    "unpriced": settled(name, cost=None),
                }[ending]
            )

    def send(self):
        """Send what waits and return the receipt, which is not taken in yet."""
        waiting = self.entries[self.acked :] or self.entries[-1:]
        if not waiting:
            return None
        return self.books.ingest(batch_of(waiting, tenant=self.tenant, node=self.name))

    def take(self, receipt):
        """Take a receipt in, however late it comes."""
        if receipt is None or receipt.epoch != self.epoch:
            return
        self.acked = max(self.acked, receipt.acked_seq)
        for lease in receipt.leases:
            if lease.lease_id not in self.leases:
                self.leases.add(lease.lease_id)
                self.record(lease)

    def sync(self):
        self.take(self.send())

    def counted(self):
        """What it counts in all, by window."""
        counted = {}
        for tally in self.ledgers:
            for start, window in tally.meters[0].windows.items():
                counted[start] = counted.get(start, 0) + window.used
        return counted


class Fleet:
    """A clock, billing books, a shared budget and the nodes that share it."""

    def __init__(self, url):
        self.at = NOW
        self.books = Books(url, now=lambda: self.at).open()
        self.books.now_us = lambda: int(self.at.timestamp()) * 1_000_000
        self.budgets = Budgets(self.books.database, now=lambda: self.at)
        self.tenants = 0

    def tenant(self, **changes):
        """A tenant of its own with one shared budget."""
        self.tenants += 1
        tenant = f"t{self.tenants}"
        budget = Budget(
            name="press",
            limit=LIMIT,
            currency="CNY",
            shared=True,
            scope=PRESS,
            zone="Asia/Shanghai",
        )
        shared = SharedBudget(
            tenant=tenant,
            budget=budget,
            slice_min=changes.pop("slice_min", 50),
            lease_us=changes.pop("lease_us", 4 * HOUR_US),
            nodes=changes.pop("nodes", None),
        )
        self.budgets.set(shared, by="test")
        return tenant, budget

    def state(self, tenant):
        [state] = self.budgets.listed(tenant)
        return state


@pytest.fixture
def fleet(database_url):
    opened = Fleet(database_url)
    yield opened
    opened.books.close()


@pytest.fixture
def small(tmp_path):
    opened = Fleet(f"sqlite:///{tmp_path}/billing.db")
    yield opened
    opened.books.close()


NODES = st.integers(0, 2)
ENDINGS = st.sampled_from(["settled", "settled", "indeterminate", "not billed", "unpriced", "left"])
ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("spend"), NODES, st.integers(1, 120), st.integers(0, 100), ENDINGS),
        st.tuples(st.just("sync"), NODES),
        st.tuples(st.just("lost"), NODES),
        st.tuples(st.just("late"), NODES),
        st.tuples(st.just("arrives"), NODES),
        st.tuples(st.just("wait"), st.integers(1, 6)),
        st.tuples(st.just("epoch"), NODES),
    ),
    max_size=60,
)


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(actions=ACTIONS, skews=st.lists(st.integers(-SKEW_US, SKEW_US), min_size=3, max_size=3))
def test_together_the_nodes_never_hold_and_spend_more_than_the_limit(small, actions, skews):
    tenant, nodes = _nodes(small, 3)
    late = {}
    for node, skew_us in zip(nodes, skews, strict=True):
        node.skew_us = skew_us
    for name, *rest in actions:
        if name == "wait":
            small.at += timedelta(hours=rest[0])
        else:
            _act(nodes[rest[0]], name, rest, late)
        spent = {}
        for node in nodes:
            for start, used in node.counted().items():
                spent[start] = spent.get(start, 0) + used
        assert all(used <= LIMIT for used in spent.values()), spent
    assert small.state(tenant).left >= 0


def _act(node, name, rest, late):
    if name == "spend":
        _, hold, share, ending = rest
        node.spend(hold, hold * share // 100, ending)
    elif name == "sync":
        node.sync()
    elif name == "lost":
        node.send()
    elif name == "late":
        late[node.name] = node.send()
    elif name == "arrives":
        node.take(late.pop(node.name, None))
    else:
        node.open_epoch()
        node.hello()


def _nodes(fleet, count, **changes):
    tenant, budget = fleet.tenant(**changes)
    nodes = [Node(fleet.books, budget, f"n{number}", tenant=tenant) for number in range(count)]
    for node in nodes:
        node.hello()
    return tenant, nodes


def test_without_a_lease_nothing_is_spent_and_with_one_no_more_than_that(fleet):
    _tenant, [node] = _nodes(fleet, 1, slice_min=LIMIT)
    node.spend(10, 10)
    assert node.counted() == {}

    node.sync()
    node.spend(LIMIT + 1, 10)
    assert node.counted() == {}
    node.spend(LIMIT, 10)
    assert list(node.counted().values()) == [10]


def test_a_lease_comes_with_every_receipt_until_the_node_has_written_it_down(fleet):
    _tenant, [node] = _nodes(fleet, 1)
    lost = [node.send() for _ in range(3)]
    assert len({receipt.leases for receipt in lost}) == 1
    [lease] = lost[0].leases
    assert (lease.budget, lease.unit) == ("press", "money")

    node.take(lost[2])
    node.take(lost[0])
    assert node.send().leases == ()
    assert [entry.kind for entry in node.entries] == ["outcome", "leased"]


def test_what_is_left_is_shared_by_those_who_were_heard_of(small):
    tenant, nodes = _nodes(small, 4)
    for _ in range(2):
        for node in nodes:
            node.sync()
    committed = [one.most for one in small.state(tenant).committed]
    assert len(committed) == 4
    assert min(committed) >= 50
    assert sum(committed) <= LIMIT


def test_a_node_that_runs_low_is_lent_more_while_there_is_more(small):
    tenant, [first, second] = _nodes(small, 2)
    second.sync()
    for _ in range(40):
        first.sync()
        first.spend(20, 20)
    spent = sum(first.counted().values())
    kept = small.state(tenant).committed[1].most
    assert spent + kept <= LIMIT
    assert LIMIT - spent - kept < 50  # Less is left than the smallest part.


def test_what_an_expired_lease_did_not_spend_is_free_once_the_chain_is_past_it(small):
    tenant, [silent, other] = _nodes(small, 2)
    silent.sync()
    silent.spend(100, 100)
    other.sync()
    [lent, _] = small.state(tenant).committed
    assert lent.most > 400

    small.at += timedelta(hours=5)  # It has expired; what was spent under it nobody knows.
    other.sync()
    assert small.state(tenant).committed[0] == lent

    silent.hello()
    silent.send()  # Now its chain is past the end of the lease.
    known = small.state(tenant).committed[0]
    assert known.used == 100
    assert known.most < lent.most


def test_a_silent_node_keeps_what_was_lent_to_it_until_the_window_ends(small):
    tenant, [silent, other] = _nodes(small, 2, slice_min=LIMIT, lease_us=48 * HOUR_US)
    silent.sync()
    other.sync()
    assert not other.leases

    small.at = datetime(2026, 11, 20, 16, 1, tzinfo=UTC)  # Past midnight in Shanghai.
    other.hello()
    other.sync()
    assert other.leases
    assert small.state(tenant).span.from_us == int(small.at.timestamp() - 60) * 1_000_000


def test_an_idle_fleet_falls_silent(small):
    _tenant, nodes = _nodes(small, 3)
    for _ in range(5):
        for node in nodes:
            node.sync()
    before = [len(node.entries) for node in nodes]
    for _ in range(5):
        for node in nodes:
            node.sync()
    assert [len(node.entries) for node in nodes] == before


def test_what_was_billed_beyond_its_hold_counts_and_leaves_less_for_all(small):
    tenant, [node] = _nodes(small, 1)
    node.sync()
    node.spend(10, LIMIT + 500)
    node.sync()
    state = small.state(tenant)
    assert state.committed[0].used == LIMIT + 500
    assert state.left == -500


def test_a_budget_for_named_nodes_is_lent_to_no_other(small):
    _tenant, nodes = _nodes(small, 2, nodes=("n1",))
    for node in nodes:
        node.sync()
    assert [bool(node.leases) for node in nodes] == [False, True]


@pytest.mark.parametrize(("unit", "amount"), [("tokens", 1_050 + 2_400), ("calls", 2)])
def test_tokens_and_calls_are_lent_and_counted_likewise(small, unit, amount):
    budget = Budget(name="use", limit=10_000, unit=unit, window="month", shared=True)
    small.budgets.set(SharedBudget(tenant="t", budget=budget, slice_min=5_000), by="test")
    node = Node(small.books, budget, "n", tenant="t")
    node.hello()
    node.sync()
    node.spend(5, 5)
    node.spend(5, 5, "indeterminate")  # Held at its worst case.
    node.spend(5, 5, "not billed")
    node.sync()
    assert small.state("t").committed[0].used == amount
    assert list(node.counted().values()) == [amount]


def test_a_limit_may_change_and_what_it_counts_may_not(small):
    tenant, [node] = _nodes(small, 1)
    node.sync()
    [before] = small.budgets.listed(tenant)
    lower = replace(before.shared, budget=replace(before.shared.budget, limit=10))
    small.budgets.set(lower, by="jo")
    assert small.state(tenant).left < 0
    other = replace(before.shared, budget=replace(before.shared.budget, window="month"))
    with pytest.raises(BillingError, match="what it counts cannot change"):
        small.budgets.set(other, by="jo")
