"""The ledger: what is on record, what it adds up to, and what happens when it is meddled with."""

from __future__ import annotations

import contextlib
import itertools
import json
import sqlite3
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer import Typer
from typer.testing import CliRunner

from qcnode.books import chain
from qcnode.books.ledger import Budget, SqliteLedger
from qcnode.books.ledger_file import LedgerReader
from qcnode.cli import ledger as ledger_cli
from qcnode.errors import BudgetExceededError, LedgerCorruptError, LedgerUnavailableError
from qcnode.money import (
    Attempt,
    Cost,
    Indeterminate,
    Intent,
    NotBilled,
    Receipt,
    Settled,
    TokenUsage,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

EPOCH = "0123456789abcdef0123456789abcdef"
DAY_US = 86_400_000_000
NOON_US = 20_000 * DAY_US + DAY_US // 2


class Clock:
    """Stands still until told."""

    def __init__(self) -> None:
        self.us = NOON_US

    def __call__(self) -> int:
        return self.us


def open_ledger(folder: Path, *, budget: Budget | None = None, clock: Clock | None = None):
    return SqliteLedger(
        folder / "ledger.db",
        now_us=clock or Clock(),
        new_epoch=lambda: EPOCH,
        budgets=() if budget is None else (budget,),
    )


@contextlib.contextmanager
def opened(folder: Path, **how) -> Iterator[SqliteLedger]:
    ledger = open_ledger(folder, **how)
    try:
        yield ledger
    finally:
        ledger.close()


def usd(pico: int) -> Cost:
    return Cost(currency="USD", pico=pico, rows=("a-row",))


def intent(attempt_id: str, hold: int = 100) -> Intent:
    return Intent(
        attempt=Attempt(
            id=attempt_id, escalation_id="e1", number=1, provider="scripted", model="m"
        ),
        worst=TokenUsage(text=10, output=10),
        hold=usd(hold),
        request_sha256="0" * 64,
        request_bytes=1,
        image_sha256=None,
    )


def settled(attempt_id: str, pico: int | None = 60) -> Settled:
    return Settled(
        attempt_id=attempt_id,
        usage=TokenUsage(text=7, output=3),
        cost=None if pico is None else usd(pico),
        started_at_us=1_795_000_000_000_000,
        rated_at_us=1_795_000_000_000_000,
        raw_usage='{"prompt_tokens": 7}',
        response_id="r",
        model_served="m",
        http_status=200,
        duration_ms=1,
    )


def not_billed(attempt_id: str) -> NotBilled:
    return NotBilled(attempt_id=attempt_id, reason="HTTP 429", http_status=429)


def indeterminate(attempt_id: str, hold: int = 100) -> Indeterminate:
    return Indeterminate(attempt_id=attempt_id, reason="reset", hold=usd(hold))


def put(ledger: SqliteLedger, *facts):
    return [future.result(10) for future in [ledger.submit(fact) for fact in facts]]


def receipt_for(ledger: SqliteLedger, seq: int) -> Receipt:
    digest = ledger.read(seq - 1, 1)[0].hash.hex() if seq else chain.genesis(EPOCH).hex()
    return Receipt(epoch=EPOCH, acked_seq=seq, head_hash=digest)


def test_an_entry_is_on_disk_for_others_when_its_future_ends(tmp_path):
    with opened(tmp_path) as ledger:
        (entry,) = put(ledger, intent("a1"))
        reader = LedgerReader(tmp_path / "ledger.db")
        assert reader.read(0, 10) == [entry]
        assert chain.fact_of(entry) == intent("a1")
        reader.close()


def test_the_first_entry_hangs_on_the_epoch_and_the_next_on_it(tmp_path):
    with opened(tmp_path) as ledger:
        first, second = put(ledger, intent("a1"), settled("a1"))
        assert (first.seq, first.prev_hash) == (1, chain.genesis(EPOCH))
        assert (second.seq, second.prev_hash) == (2, first.hash)


@pytest.mark.parametrize(
    "wrong",
    [
        settled("a1"),  # a second outcome
        indeterminate("a1"),
        intent("a1"),  # an attempt is made once
        settled("never meant"),
    ],
)
def test_a_fact_that_cannot_follow_is_refused_and_leaves_no_trace(tmp_path, wrong):
    with opened(tmp_path) as ledger:
        put(ledger, intent("a1"), settled("a1"))
        with pytest.raises(ValueError, match="attempt"):
            ledger.submit(wrong).result(10)
        assert ledger.verify() == 2


def test_an_attempt_recorded_before_a_restart_cannot_be_made_again(tmp_path):
    with opened(tmp_path) as ledger:
        put(ledger, intent("a1"), settled("a1"))
    with opened(tmp_path) as ledger, pytest.raises(ValueError, match="a1"):
        ledger.submit(intent("a1")).result(10)


def test_what_a_stop_left_open_is_indeterminate_at_its_hold_after_it(tmp_path):
    with opened(tmp_path) as ledger:
        put(ledger, intent("a1", hold=70), intent("a2"), settled("a2"))
        assert ledger.totals().open == 1
    with opened(tmp_path) as ledger:
        totals = ledger.totals()
        assert (totals.open, totals.indeterminate) == (0, 1)
        assert totals.held_pico == {"USD": 70}
        fact = chain.fact_of(ledger.read(3, 1)[0])
        assert fact == Indeterminate(
            attempt_id="a1", reason="the node stopped before an answer", hold=usd(70)
        )
    with opened(tmp_path) as ledger:
        assert ledger.totals().entries == 4


def test_an_answer_without_a_price_is_counted_as_unpriced_and_not_as_zero(tmp_path):
    budget = Budget(name="day", currency="USD", limit=100)
    with opened(tmp_path, budget=budget) as ledger:
        put(ledger, intent("a1", hold=100), settled("a1", pico=None))
        totals = ledger.totals()
        assert (totals.settled, totals.unpriced, totals.cost_pico) == (1, 1, {})
        assert ledger.budget_left_pico() == 0


def test_an_intent_that_does_not_fit_the_budget_is_refused_until_the_next_day(tmp_path):
    clock = Clock()
    with opened(
        tmp_path, budget=Budget(name="day", currency="USD", limit=150), clock=clock
    ) as ledger:
        put(ledger, intent("a1"))
        assert ledger.budget_left_pico() == 50
        with pytest.raises(BudgetExceededError, match=r"0\.00000000005 USD left"):
            ledger.submit(intent("a2")).result(10)
        put(ledger, settled("a1", pico=60))
        assert ledger.budget_left_pico() == 90
        put(ledger, intent("a3", hold=90), indeterminate("a3", hold=90))
        assert ledger.budget_left_pico() == 0
        clock.us += DAY_US
        assert ledger.budget_left_pico() == 150
        put(ledger, intent("a4", hold=150))


def test_what_was_spent_today_counts_after_a_restart(tmp_path):
    budget = Budget(name="day", currency="USD", limit=150)
    with opened(tmp_path, budget=budget) as ledger:
        put(ledger, intent("a1"), settled("a1", pico=60), intent("a2", hold=80))
    with opened(tmp_path, budget=budget) as ledger:
        assert ledger.budget_left_pico() == 10


def test_a_cost_above_its_hold_is_a_debt_and_nothing_more_is_reserved(tmp_path):
    with opened(tmp_path, budget=Budget(name="day", currency="USD", limit=100)) as ledger:
        put(ledger, intent("a1"), settled("a1", pico=250))
        assert ledger.budget_left_pico() == 0
        with pytest.raises(BudgetExceededError):
            ledger.submit(intent("a2", hold=1)).result(10)


def test_a_budget_in_one_currency_lets_nothing_pass_in_another(tmp_path):
    with (
        opened(tmp_path, budget=Budget(name="day", currency="CNY", limit=10**9)) as ledger,
        pytest.raises(BudgetExceededError, match="CNY"),
    ):
        ledger.submit(intent("a1")).result(10)


def test_two_hundred_intents_at_once_never_overspend(tmp_path):
    with opened(tmp_path, budget=Budget(name="day", currency="USD", limit=1_050)) as ledger:
        start = threading.Barrier(20)

        def ask(worker: int) -> int:
            start.wait(10)
            taken = 0
            for number in range(10):
                future = ledger.submit(intent(f"{worker}-{number}"))
                with contextlib.suppress(BudgetExceededError):
                    future.result(30)
                    taken += 1
            return taken

        with ThreadPoolExecutor(20) as pool:
            taken = sum(pool.map(ask, range(20)))
        assert taken == 10
        assert ledger.totals().held_pico == {"USD": 1_000}
        assert ledger.budget_left_pico() == 50


def test_a_cancelled_fact_that_was_not_begun_is_not_recorded(tmp_path):
    with opened(tmp_path) as ledger:
        held = threading.Event()
        ledger.submit(intent("a1")).add_done_callback(lambda _done: held.wait(10))
        waiting = ledger.submit(intent("a2"))
        cancelled = waiting.cancel()
        held.set()
        put(ledger, intent("a3"))
        attempts = [chain.fact_of(entry).attempt.id for entry in ledger.read(0, 10)]
        assert ("a2" in attempts) is not cancelled


def test_a_listener_hears_of_each_commit_until_it_is_undone(tmp_path):
    with opened(tmp_path) as ledger:
        heard = threading.Semaphore(0)
        undo = ledger.add_listener(heard.release)
        put(ledger, intent("a1"))
        assert heard.acquire(timeout=10)
        undo()
        put(ledger, intent("a2"))
        assert not heard.acquire(blocking=False)


def test_a_closed_ledger_takes_nothing_and_says_so(tmp_path):
    ledger = open_ledger(tmp_path)
    ledger.close()
    ledger.close()
    with pytest.raises(LedgerUnavailableError, match="closed"):
        ledger.submit(intent("a1")).result(10)


# Receipts


def test_a_receipt_moves_the_mark_and_stays_through_a_restart(tmp_path):
    with opened(tmp_path) as ledger:
        put(ledger, intent("a1"), settled("a1"))
        ledger.confirm(receipt_for(ledger, 2))
        assert ledger.receipt_seq() == 2
    with opened(tmp_path) as ledger:
        assert ledger.receipt_seq() == 2
        ledger.confirm(receipt_for(ledger, 0))  # The server was restored from a backup.
        assert ledger.receipt_seq() == 0


@pytest.mark.parametrize(
    ("receipt", "words"),
    [
        (Receipt(epoch=EPOCH, acked_seq=2, head_hash="00" * 32), "entry 2 is another one"),
        (Receipt(epoch=EPOCH, acked_seq=3, head_hash="00" * 32), "has entry 3"),
        (Receipt(epoch="another", acked_seq=1, head_hash="00" * 32), "another"),
        (Receipt(epoch=EPOCH, acked_seq=-1, head_hash=""), "-1"),
    ],
)
def test_a_receipt_that_contradicts_the_chain_is_refused(tmp_path, receipt, words):
    with opened(tmp_path) as ledger:
        put(ledger, intent("a1"), settled("a1"))
        with pytest.raises(LedgerCorruptError, match=words):
            ledger.confirm(receipt)
        assert ledger.receipt_seq() == 0


# Random histories against a plain model

OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("intent"), st.integers(0, 3), st.integers(0, 200)),
        st.tuples(st.just("settle"), st.integers(0, 3), st.none() | st.integers(0, 300)),
        st.tuples(st.just("refuse"), st.integers(0, 3), st.none()),
        st.tuples(st.just("lose"), st.integers(0, 3), st.none()),
        st.tuples(st.just("reopen"), st.none(), st.none()),
    ),
    max_size=25,
)


class Model:
    """The same books on the back of an envelope: one hold, then one outcome per attempt."""

    def __init__(self) -> None:
        self.seq = 0
        self.holds: dict[str, int] = {}
        self.outcomes: dict[str, tuple[str, int | None]] = {}

    def left_open(self) -> list[str]:
        return [attempt for attempt in self.holds if attempt not in self.outcomes]

    def end(self, attempt: str, kind: str, pico: int | None = None) -> None:
        self.outcomes[attempt] = (kind, pico)
        self.seq += 1

    def agrees(self, totals) -> None:
        kinds = [kind for kind, _pico in self.outcomes.values()]
        costs = [pico for kind, pico in self.outcomes.values() if kind == "settle"]
        # Open, of unknown outcome, and settled without a price: all three hold their worst case.
        held = sum(
            hold
            for attempt, hold in self.holds.items()
            if self.outcomes.get(attempt, ("lose", None)) in (("lose", None), ("settle", None))
        )
        assert totals.entries == self.seq
        assert totals.attempts == len(self.holds)
        assert totals.open == len(self.left_open())
        assert totals.settled == kinds.count("settle")
        assert totals.not_billed == kinds.count("refuse")
        assert totals.indeterminate == kinds.count("lose")
        assert totals.unpriced == costs.count(None)
        assert totals.input_tokens == 7 * len(costs)
        assert totals.cost_pico.get("USD", 0) == sum(cost for cost in costs if cost is not None)
        assert totals.held_pico.get("USD", 0) == held


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(operations=OPERATIONS)
def test_any_history_is_dense_verifies_and_adds_up(tmp_path_factory, operations):
    folder, model, slots = tmp_path_factory.mktemp("history"), Model(), {}
    numbers = itertools.count()
    ledger = open_ledger(folder)
    try:
        for name, slot, amount in operations:
            if name == "reopen":
                ledger.close()
                ledger = open_ledger(folder)
                for attempt in model.left_open():
                    model.end(attempt, "lose")
            elif name == "intent":
                attempt = slots[slot] = f"a{next(numbers)}"
                put(ledger, intent(attempt, hold=amount))
                model.holds[attempt] = amount
                model.seq += 1
            else:
                attempt = slots.get(slot, "none")
                fact = {
                    "settle": settled(attempt, pico=amount),
                    "refuse": not_billed(attempt),
                    "lose": indeterminate(attempt, hold=model.holds.get(attempt, 0)),
                }[name]
                if attempt in model.left_open():
                    put(ledger, fact)
                    model.end(attempt, name, amount)
                else:
                    with pytest.raises(ValueError, match="not open"):
                        ledger.submit(fact).result(10)
            model.agrees(ledger.totals())
        assert [entry.seq for entry in ledger.read(0, 1_000)] == list(range(1, model.seq + 1))
        assert ledger.verify() == model.seq
    finally:
        ledger.close()
    reader = LedgerReader(folder / "ledger.db")
    model.agrees(reader.verify())
    reader.close()


# Disks that do not take it

DISK_FULL = """
import json, resource, sys
from pathlib import Path
from qcnode.books.ledger import SqliteLedger
from qcnode.errors import LedgerUnavailableError
from tests.node.test_ledger import Clock, intent, settled
ledger = SqliteLedger(Path(sys.argv[1]), now_us=Clock(), new_epoch=lambda: "e")
taken, refused = [], 0
soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, hard))
for number in range(200):
    try:
        taken.append(ledger.submit(intent(f"full-{number}")).result(10).seq)
    except LedgerUnavailableError as error:
        refused += 1
resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
after = ledger.submit(intent("after")).result(10).seq
verified = ledger.verify()
totals = ledger.totals()
ledger.close()
print(json.dumps([taken, refused, after, verified, totals.entries, totals.open]))
"""


def test_a_full_disk_refuses_halves_nothing_and_goes_on_when_there_is_space(tmp_path, repository):
    child = subprocess.run(
        [sys.executable, "-c", DISK_FULL, str(tmp_path / "ledger.db")],
        cwd=repository,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    taken, refused, after, verified, entries, still_open = json.loads(child.stdout.splitlines()[-1])
    assert refused > 0
    assert taken == list(range(1, len(taken) + 1))
    assert after == len(taken) + 1
    assert verified == entries == still_open == after


class LyingDisk:
    """A connection whose next commits end in an error, done or not."""

    def __init__(self, db: sqlite3.Connection, *, commits: bool, deaf: bool = False) -> None:
        self._db = db
        self._commits = commits
        self.deaf = deaf
        self.failures = 1

    def execute(self, sql: str, *values):
        if sql == "COMMIT" and self.failures:
            self.failures -= 1
            if self._commits:
                self._db.execute(sql)
            raise sqlite3.OperationalError("disk I/O error")
        if self.deaf and not self.failures and sql.startswith("SELECT"):
            raise sqlite3.OperationalError("disk I/O error")
        return self._db.execute(sql, *values)

    def __getattr__(self, name: str):
        return getattr(self._db, name)


def test_a_commit_that_failed_is_rolled_back_and_the_next_takes_its_seq(tmp_path):
    with opened(tmp_path) as ledger:
        put(ledger, intent("a1"))
        ledger._db = LyingDisk(ledger._db, commits=False)
        with pytest.raises(LedgerUnavailableError, match="disk I/O error"):
            ledger.submit(intent("a2")).result(10)
        assert ledger.totals().entries == 1
        (entry,) = put(ledger, intent("a2"))
        assert entry.seq == 2
        assert ledger.verify() == 2


def test_a_commit_that_failed_and_yet_happened_is_read_back_as_done(tmp_path):
    with opened(tmp_path) as ledger:
        ledger._db = LyingDisk(ledger._db, commits=True)
        (entry,) = put(ledger, intent("a1"))
        assert entry.seq == 1
        assert ledger.totals().open == 1
        assert put(ledger, settled("a1"))[0].seq == 2
        assert ledger.verify() == 2


def test_an_intent_found_on_disk_after_it_was_reported_lost_is_given_back(tmp_path):
    with opened(tmp_path) as ledger:
        disk = ledger._db = LyingDisk(ledger._db, commits=True, deaf=True)
        with pytest.raises(LedgerUnavailableError):
            ledger.submit(intent("a1")).result(10)
        disk.deaf = False
        put(ledger, intent("a2"))
        totals = ledger.totals()
        assert (totals.entries, totals.not_billed, totals.open) == (3, 1, 1)
        assert ledger.verify() == 3


# Files that are meddled with


@pytest.fixture
def books(tmp_path):
    """A ledger of ten entries, the billing server's receipt up to the eighth, at rest."""
    with opened(tmp_path) as ledger:
        for number in range(5):
            put(ledger, intent(f"a{number}"), settled(f"a{number}"))
        ledger.confirm(receipt_for(ledger, 8))
    return tmp_path / "ledger.db"


def meddle(path: Path, *statements: str) -> None:
    db = sqlite3.connect(path)
    with db:
        for trigger in ("entry_is_next", "entry_not_changed", "entry_not_removed"):
            db.execute(f"DROP TRIGGER {trigger}")
        for statement in statements:
            db.execute(statement)
    db.close()


TAMPERS = {
    "a body is edited": (4, "UPDATE entry SET body = CAST('{}' AS BLOB) WHERE seq = 4"),
    "a time is edited": (3, "UPDATE entry SET at_us = at_us + 1 WHERE seq = 3"),
    "a kind is edited": (2, "UPDATE entry SET kind = 'not_billed' WHERE seq = 2"),
    "a subject is edited": (6, "UPDATE entry SET subject = 'a9' WHERE seq = 6"),
    "a hash is edited": (7, "UPDATE entry SET hash = zeroblob(32) WHERE seq = 7"),
    "an entry is deleted": (5, "DELETE FROM entry WHERE seq = 5"),
    "the first is deleted": (1, "DELETE FROM entry WHERE seq = 1"),
    "two are swapped": (
        4,
        "UPDATE entry SET seq = 99 WHERE seq = 4",
        "UPDATE entry SET seq = 4 WHERE seq = 6",
        "UPDATE entry SET seq = 6 WHERE seq = 99",
    ),
    "one is inserted": (
        11,
        "INSERT INTO entry SELECT 11, kind, 'a9', at_us, body, hash, hash FROM entry WHERE seq = 2",
    ),
    "the tail is cut": (9, "DELETE FROM entry WHERE seq > 8"),
    "the tail is cut with its head": (
        7,
        "DELETE FROM entry WHERE seq > 6",
        "UPDATE head SET seq = 6, hash = (SELECT hash FROM entry WHERE seq = 6)",
    ),
    "all is deleted": (1, "DELETE FROM entry", "DELETE FROM head"),
}


@pytest.mark.parametrize("name", TAMPERS)
def test_meddling_is_found_and_the_first_bad_entry_named(books, name):
    first_bad, *statements = TAMPERS[name]
    meddle(books, *statements)
    reader = LedgerReader(books)
    with pytest.raises(LedgerCorruptError, match=rf"^entry {first_bad}\b"):
        reader.verify()
    reader.close()
    with pytest.raises(LedgerCorruptError, match=rf"^entry {first_bad}\b"):
        open_ledger(books.parent)


def test_a_history_hashed_anew_is_another_one_than_the_server_confirmed(books):
    db = sqlite3.connect(books)
    with db:
        for trigger in ("entry_is_next", "entry_not_changed", "entry_not_removed"):
            db.execute(f"DROP TRIGGER {trigger}")
        before = chain.genesis(EPOCH)
        for seq, body in db.execute("SELECT seq, body FROM entry ORDER BY seq").fetchall():
            cheaper = body.replace(b'"pico":60', b'"pico":10')
            digest = chain.entry_hash(seq, cheaper, before)
            db.execute(
                "UPDATE entry SET body = ?, prev_hash = ?, hash = ? WHERE seq = ?",
                (cheaper, before, digest, seq),
            )
            before = digest
        db.execute("UPDATE head SET hash = ?", (before,))
    db.close()
    reader = LedgerReader(books)
    with pytest.raises(LedgerCorruptError, match="entry 8 is another one"):
        reader.verify()
    reader.close()


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE entry SET at_us = 0",
        "DELETE FROM entry WHERE seq = 10",
        "INSERT OR REPLACE INTO entry SELECT * FROM entry WHERE seq = 3",
        "INSERT INTO entry SELECT 12, kind, 'a9', at_us, body, prev_hash, hash FROM entry LIMIT 1",
        "UPDATE ledger SET epoch = 'another'",
        "DELETE FROM ledger",
    ],
)
def test_the_file_itself_refuses_what_is_no_addition(books, statement):
    db = sqlite3.connect(books)
    with pytest.raises(sqlite3.IntegrityError):
        db.execute(statement)
    db.close()


# Files that cannot be opened


def test_a_second_process_may_not_write_and_is_told(tmp_path):
    with opened(tmp_path), pytest.raises(LedgerUnavailableError, match="another process"):
        open_ledger(tmp_path)


def test_a_missing_directory_is_named(tmp_path):
    with pytest.raises(LedgerUnavailableError, match="no such directory"):
        open_ledger(tmp_path / "nowhere")


def test_a_file_of_a_newer_qcnode_is_refused(books):
    db = sqlite3.connect(books)
    db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(LedgerUnavailableError, match="newer qcnode"):
        open_ledger(books.parent)


def test_another_database_is_no_ledger(tmp_path):
    db = sqlite3.connect(tmp_path / "ledger.db")
    db.execute("CREATE TABLE t (x)")
    db.close()
    with pytest.raises(LedgerUnavailableError, match="no ledger"):
        open_ledger(tmp_path)


def test_bytes_that_are_no_database_are_called_damaged(tmp_path):
    (tmp_path / "ledger.db").write_bytes(b"not a database at all" * 100)
    with pytest.raises(LedgerCorruptError, match="damaged"):
        open_ledger(tmp_path)


# The commands


@pytest.fixture
def run():
    app = Typer()
    ledger_cli.register(app)
    runner = CliRunner()
    return lambda *words: runner.invoke(app, ["ledger", *map(str, words)])


def test_show_prints_totals_while_a_node_writes(tmp_path, run):
    with opened(tmp_path) as ledger:
        put(ledger, intent("a1"), settled("a1"), intent("a2"))
        done = run("show", "--home", tmp_path, "--json", "--last", 2)
        assert done.exit_code == 0
        shown = json.loads(done.stdout)
        assert shown["totals"]["open"] == 1
        assert [row["seq"] for row in shown["entries"]] == [2, 3]
        words = run("show", "--home", tmp_path).stdout
        assert "measured 0.00000000006 USD" in words
        assert "held 0.0000000001 USD" in words


def test_verify_ends_with_0_and_counts(books, run):
    done = run("verify", "--db", books, "--json")
    assert done.exit_code == 0
    told = json.loads(done.stdout)
    assert (told["verified"], told["epoch"]) == (True, EPOCH)
    assert (told["entries"], told["confirmed"]) == (10, 8)


def test_verify_ends_with_1_and_names_the_first_bad_entry(books, run):
    meddle(books, "DELETE FROM entry WHERE seq = 5")
    done = run("verify", "--db", books)
    assert done.exit_code == 1
    assert "entry 5" in done.stderr
    as_json = run("verify", "--db", books, "--json")
    assert as_json.exit_code == 1
    assert json.loads(as_json.stdout)["verified"] is False


def test_a_missing_ledger_ends_with_2_and_is_named(tmp_path, run):
    done = run("verify", "--home", tmp_path / "nowhere")
    assert done.exit_code == 2
    assert "nowhere" in done.stderr


def test_an_export_of_a_changed_ledger_is_written_and_said_to_be_bad(books, tmp_path, run):
    with sqlite3.connect(books) as db:
        db.execute("DROP TRIGGER entry_not_changed")
        db.execute("UPDATE entry SET body = CAST(replace(body, '60', '61') AS BLOB) WHERE seq = 2")
    db.close()
    out = tmp_path / "export.jsonl"

    result = run("export", "--db", books, "--out", out)

    assert result.exit_code == 1
    assert "entry 2" in result.stderr
    assert out.exists()
    assert run("export", "--db", books, "--out", out).exit_code == 2  # not written over


def test_an_export_can_be_verified_without_us(books, tmp_path, run):
    out = tmp_path / "books.jsonl"
    assert run("export", "--db", books, "--out", out).exit_code == 0
    header, *lines = [json.loads(line) for line in out.read_text().splitlines()]
    rows = [line for line in lines if "seq" in line]
    before = bytes.fromhex(header["genesis"])
    for seq, row in enumerate(rows, start=1):
        assert row["seq"] == seq
        before = chain.entry_hash(seq, row["body"].encode(), before)
        assert row["hash"] == before.hex()
    assert len(rows) == 10
