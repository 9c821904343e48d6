"""Several processes that take batches: the same books, whoever takes which batch."""

import os
import signal
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import pytest

from qcbridge.billing.engine import StoreUnavailableError
from qcbridge.billing.intake import Intake
from qcbridge.billing.keys import Trust
from qcbridge.billing.offers import BatchRefusedError
from qcbridge.billing.pool import StoreOptions, TakingPool
from qcnode.books.seals import SigningKey
from tests.bridge.books import Books
from tests.bridge.ledgers import attempts, batch_of, raw_batch, write

PATIENCE_S = 60


def now():
    """The time, as a function that another process can import."""
    return datetime(2026, 11, 20, 12, 0, tzinfo=UTC)


@pytest.fixture
def shared(postgres, tmp_path):
    """Books on PostgreSQL, and an intake whose work two other processes do."""
    books = Books(postgres()).open()
    key_file = tmp_path / "billing.key"
    SigningKey.open(key_file, name="billing")
    options = StoreOptions(url=books.url, now=now, trust=Trust.FIRST, key_file=key_file)
    pool = TakingPool(options, workers=2)
    yield books, Intake(books.store, pool=pool), pool
    pool.close()
    books.close()


@pytest.mark.postgres
def test_batches_taken_by_several_processes_at_once_end_as_one_process_has_them(shared):
    books, intake, _pool = shared
    entries = write(attempts(20))
    batches = [
        raw_batch(entries[at : at + 10], node=f"n{n}") for at in range(0, 50, 5) for n in (1, 2)
    ]
    with ThreadPoolExecutor(4) as ways:
        receipts = list(ways.map(lambda raw: intake.take(raw, via="test"), batches * 2))

    assert {receipt.problem for receipt in receipts} == {None}
    books.ingest(batch_of(entries[:55], tenant="straight", node="n1"))
    books.ingest(batch_of(entries[:55], tenant="straight", node="n2"))
    together, straight = books.reports.totals("acme"), books.reports.totals("straight")
    assert together.entries == 110
    assert together.cost_pico == straight.cost_pico
    assert together.held_pico == straight.held_pico
    assert {head.head_hash for head in together.ledgers} == {entries[54].hash.hex()}
    last = intake.take(raw_batch(entries[54:55], node="n1"), via="test")
    assert (last.acked_seq, last.note is not None) == (55, True)


@pytest.mark.postgres
def test_a_refusal_comes_back_from_another_process_and_is_on_record(shared):
    books, intake, _pool = shared
    with pytest.raises(BatchRefusedError, match="not a ledger batch") as refused:
        intake.take(b"{", via="test")
    assert refused.value.kind == "unreadable"
    with pytest.raises(BatchRefusedError, match="in the name of tenant 'acme'"):
        intake.take(raw_batch(write(attempts(1))), via="test", tenant="other")
    assert len(books.reports.refusals(None, limit=9)) == 2


@pytest.mark.postgres
def test_a_process_that_is_killed_is_replaced_and_the_batch_comes_again(shared):
    books, intake, pool = shared
    entries = write(attempts(4))
    intake.take(raw_batch(entries[:3]), via="test")
    for pid in pool._pool._processes:
        os.kill(pid, signal.SIGKILL)

    def send_until_it_is_noticed():
        while True:
            intake.take(raw_batch(entries[:3]), via="test")

    with pytest.raises(StoreUnavailableError, match="another takes its place"):
        send_until_it_is_noticed()
    assert intake.take(raw_batch(entries), via="test").acked_seq == len(entries)
    assert books.reports.totals("acme").entries == len(entries)
