"""Opening from a snapshot: the same as counting everything, or else it is not used."""

from __future__ import annotations

import itertools
import shutil
import sqlite3
import threading
from contextlib import closing
from dataclasses import fields

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qcnode.books.budgets import Budget
from qcnode.books.keeper import SNAPSHOT_ENTRIES
from qcnode.books.seals import SigningKey
from qcnode.books.snapshot import encode_tally
from qcnode.books.tally import Tally
from qcnode.errors import BudgetExceededError, LedgerCorruptError, LedgerUnavailableError
from qcnode.money import (
    Adjusted,
    Attempt,
    Cost,
    CostCentre,
    Indeterminate,
    Intent,
    Leased,
    NotBilled,
    Outcome,
    Reconciled,
    Reserved,
    Settled,
    TokenUsage,
    WrittenOff,
)
from tests.node.homes import Node, spend, used
from tests.node.test_ledger import NOON_US, intent, put, settled

HOUR_US = 3_600_000_000
BUDGETS = (
    Budget(name="money", limit=2_000, currency="USD", zone="Asia/Shanghai"),
    Budget(name="yuan", limit=2_000, currency="CNY", window="month"),
    Budget(name="tokens", limit=900, unit="tokens", window="hour"),
    Budget(name="calls", limit=12, unit="calls", scope=CostCentre(line="L1")),
    Budget(name="lent", limit=5_000, currency="USD", shared=True),
)


@pytest.fixture
def node(tmp_path) -> Node:
    return Node(tmp_path / "home")


def trusted(ledger) -> int:
    """How many entries opening took on trust."""
    return ledger.taken_on_trust


def state(ledger) -> bytes:
    """All that a ledger knows beside its entries."""
    return encode_tally(ledger._tally, ())


# Any history there can be: steps on a few attempts that may or may not be taken.


def facts(what: str, slot: int, amount: int, number: int):
    name = f"{slot}"
    currency = ("USD", "CNY")[slot % 2]
    cost = Cost(currency=currency, pico=amount, rows=("r",))
    usage = TokenUsage(text=amount, output=slot)
    attempt = Attempt(
        id=name,
        escalation_id="e",
        number=1,
        provider=("p", "q")[slot % 3 == 0],
        model="m",
        centre=CostCentre(line=f"L{slot % 3}", department="d" * (slot % 2)),
    )
    return {
        "reserve": lambda: Reserved(attempt=attempt, worst=usage, hold=cost),
        "intend": lambda: Intent(
            attempt=attempt,
            worst=usage,
            hold=cost,
            request_sha256="0" * 64,
            request_bytes=1,
            image_sha256=None,
        ),
        "settle": lambda: Settled(
            attempt_id=name,
            usage=usage,
            cost=cost if amount % 3 else None,
            started_at_us=1,
            rated_at_us=2,
            raw_usage="{}",
            response_id=None,
            model_served=None,
            http_status=200,
            duration_ms=1,
        ),
        "refuse": lambda: NotBilled(attempt_id=name, reason="HTTP 429", http_status=429),
        "lose": lambda: Indeterminate(attempt_id=name, reason="reset", hold=cost),
        "learn": lambda: Reconciled(
            attempt_id=name, usage=usage, cost=cost, source="s", source_sha256="0" * 64
        ),
        "write off": lambda: WrittenOff(attempt_id=name, reason="90 days"),
        "adjust": lambda: Adjusted(
            attempt_id=name, before=None if amount % 2 else cost, after=cost, reason="late row"
        ),
        "lend": lambda: Leased(
            lease_id=f"l{number}",
            budget="lent",
            unit="money",
            limit=amount * 10,
            from_us=NOON_US - 12 * HOUR_US,
            until_us=NOON_US + amount * HOUR_US,
        ),
        "tell": lambda: Outcome(
            escalation_id=f"e{slot}",
            centre=attempt.centre,
            ruled="GOOD",
            truth="DEFECTIVE",
            node_alone="DIVERT",
            source="rework",
        ),
    }[what]()


WHAT = "reserve intend settle refuse lose learn adjust lend tell".split()  # noqa: SIM905
STEP = st.tuples(
    st.sampled_from([*WHAT, "write off"]), st.integers(0, 7), st.integers(0, 120), st.integers(0, 9)
)


def live(node: Node, ledger, steps, numbers) -> None:
    for what, slot, amount, hours in steps:
        node.clock.us += hours * HOUR_US // 3
        try:
            ledger.submit(facts(what, slot, amount, next(numbers))).result(10)
        except (ValueError, BudgetExceededError):
            continue


@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(STEP, min_size=1, max_size=40), st.lists(STEP, max_size=20))
def test_opening_with_a_snapshot_is_opening_without_it(tmp_path_factory, before, after):
    home = tmp_path_factory.mktemp("home")
    node = Node(home / "h", budgets=BUDGETS)
    numbers = itertools.count()
    with node.open() as ledger:
        live(node, ledger, before, numbers)
        kept = ledger.totals().entries
    key, node.key = node.key, None
    with node.open() as ledger:  # Nobody vouches for what comes now: the snapshot is behind.
        live(node, ledger, after, numbers)
    with node.open() as ledger:
        assert trusted(ledger) == 0
        counted = (state(ledger), ledger.totals(), ledger.budgets())
    node.key = key
    with node.open() as ledger:
        assert trusted(ledger) == kept
        assert (state(ledger), ledger.totals(), ledger.budgets()) == counted
        assert ledger.prove() == ledger.totals().entries


def test_a_snapshot_is_made_at_closing_and_taken_at_opening(node):
    with node.open() as ledger:
        spend(ledger, "a", "b")
    with node.open() as ledger:
        assert (trusted(ledger), used(ledger), ledger.totals().settled) == (4, 120, 2)
        spend(ledger, "c")
    with node.open() as ledger:
        assert (trusted(ledger), used(ledger), ledger.totals().settled) == (6, 180, 3)


def test_a_snapshot_is_made_now_and_then(node):
    node.budgets = ()
    with node.open() as ledger:
        for start in range(0, SNAPSHOT_ENTRIES, 500):
            ledger.submit_all([intent(f"{start}.{one}") for one in range(500)]).result(30)
        with closing(sqlite3.connect(node.path)) as db:
            assert db.execute("SELECT seq FROM snapshot").fetchall() == [(SNAPSHOT_ENTRIES,)]


def test_without_a_key_everything_is_counted(tmp_path):
    node = Node(tmp_path / "home", signs=False)
    with node.open() as ledger:
        spend(ledger, "a")
    with node.open() as ledger:
        assert (trusted(ledger), ledger.totals().entries) == (0, 2)


def test_a_limit_that_was_raised_needs_no_counting_anew(node):
    with node.open() as ledger:
        spend(ledger, "a")
    node.budgets = (Budget(name="other words", limit=99_999, currency="USD"),)
    with node.open() as ledger:
        (budget,) = ledger.budgets()
        assert (trusted(ledger), budget.used, budget.limit) == (2, 60, 99_999)


@pytest.mark.parametrize(
    "budgets",
    [
        (Budget(name="day", limit=10_000, currency="CNY"),),
        (Budget(name="day", limit=10_000, currency="USD", window="month"),),
        (Budget(name="day", limit=10_000, currency="USD", zone="Asia/Shanghai"),),
        (Budget(name="day", limit=10_000, currency="USD", scope=CostCentre(line="L1")),),
        (Budget(name="day", limit=10_000, unit="tokens"),),
    ],
)
def test_a_budget_that_counts_otherwise_is_counted_from_the_first_entry(node, budgets):
    with node.open() as ledger:
        spend(ledger, "a")
    node.budgets = budgets
    with node.open() as ledger:
        assert trusted(ledger) == 0
        assert ledger.prove() == 2


def meddle(node: Node, sql: str, *values) -> None:
    with closing(sqlite3.connect(node.path)) as db:
        for trigger in ("entry_not_changed", "entry_not_removed"):
            db.execute(f"DROP TRIGGER IF EXISTS {trigger}")
        db.execute(sql, values)
        db.commit()


@pytest.mark.parametrize(
    "sql",
    [
        "UPDATE snapshot SET state = CAST(replace(CAST(state AS TEXT), '60', '10') AS BLOB)",
        "UPDATE snapshot SET state = x'7b7d'",
        "UPDATE snapshot SET seq = 1",
        "UPDATE snapshot SET note = 'signed, the node'",
        "UPDATE snapshot SET note = (SELECT note FROM checkpoint)",
        "DELETE FROM snapshot",
    ],
)
def test_a_snapshot_that_does_not_fit_is_as_good_as_none(node, sql):
    with node.open() as ledger:
        put(ledger, intent("a"))
        put(ledger, settled("a"))
    meddle(node, sql)
    with node.open() as ledger:
        assert (trusted(ledger), used(ledger)) == (0, 60)


def test_a_snapshot_sealed_with_another_key_is_not_taken(node, tmp_path):
    with node.open() as ledger:
        spend(ledger, "a")
    node.key = SigningKey.open(tmp_path / "other.key", name="acme/n1")
    with node.open() as ledger:
        assert trusted(ledger) == 0


def test_a_snapshot_of_another_ledger_is_not_taken(node, tmp_path):
    with node.open() as ledger:
        spend(ledger, "a")
    other = node.at(tmp_path / "other")
    with other.open() as ledger:
        spend(ledger, "b")
    shutil.copy(other.path, tmp_path / "donor.db")
    with closing(sqlite3.connect(node.path)) as db:
        db.execute("ATTACH ? AS donor", (str(tmp_path / "donor.db"),))
        db.execute("DELETE FROM snapshot")
        db.execute("INSERT INTO snapshot SELECT * FROM donor.snapshot")
        db.commit()
    with node.open() as ledger:
        assert trusted(ledger) == 0


# -- the proof behind it -----------------------------------------------------------------


def test_the_proof_checks_everything_and_says_so(node):
    with node.open() as ledger:
        spend(ledger, "a", "b")
    with node.open() as ledger:
        spend(ledger, "c")
        assert ledger.prove() == 6
        assert [(one.component, one.words) for one in node.health.all()] == [
            ("proof", "6 entries verified")
        ]


def test_what_the_proof_finds_stops_all_new_spending(node):
    with node.open() as ledger:
        spend(ledger, "a", "b")
    meddle(
        node,
        "UPDATE entry SET body = CAST(replace(CAST(body AS TEXT), 'USD', 'CNY') AS BLOB)"
        " WHERE seq = 2",
    )
    with node.open() as ledger:
        assert trusted(ledger) == 4  # It opened, because it was taken on trust.
        put(ledger, intent("sent"))
        with pytest.raises(LedgerCorruptError, match="entry 2"):
            ledger.prove()
        assert "entry 2" in node.words("proof")
        refused = ledger.submit(intent("next")).exception(10)
        assert isinstance(refused, LedgerUnavailableError)
        assert "entry 2" in str(refused)
        put(ledger, settled("sent"))  # What was sent is still put on record.


def test_a_snapshot_that_counted_wrong_is_found_by_the_proof(node):
    with node.open() as ledger:
        spend(ledger, "a")
        ledger._tally.written_off_pico["USD"] = 5  # As a mistake in the counting would.
    with node.open() as ledger:
        assert ledger.totals().written_off_pico == {"USD": 5}
        with pytest.raises(LedgerCorruptError, match="snapshot at entry 2 is not what"):
            ledger.prove()


def test_the_proof_ends_when_the_ledger_is_closed(node):
    with node.open() as ledger:
        spend(ledger, "a")
        ended = []

        def prove() -> None:
            try:
                ledger.prove(rest_s=600)
            except LedgerUnavailableError as error:
                ended.append(str(error))

        proof = threading.Thread(target=prove)
        proof.start()
    proof.join(10)
    assert not proof.is_alive()
    assert "closed while it was being proven" in ended[0]


def test_entries_go_on_record_while_the_proof_is_under_way(node):
    with node.open() as ledger:
        spend(ledger, "a")
        seen = []

        def rest(_seconds: float) -> bool:
            spend(ledger, f"during-{len(seen)}")
            seen.append(ledger.totals().entries)
            return False

        ledger._closing.wait = rest
        assert ledger.prove() == 2
        del ledger._closing.wait
        assert seen
        assert ledger.verify() == 2 + 2 * len(seen)


def test_a_snapshot_keeps_all_there_is_in_a_tally():
    # Whoever gives a tally another field adds it to the snapshot and raises its version.
    assert [field.name for field in fields(Tally)] == [
        "seq",
        "hash",
        "live",
        "worst",
        "counts",
        "usage",
        "sums",
        "written_off_pico",
        "meters",
        "leases",
    ]
