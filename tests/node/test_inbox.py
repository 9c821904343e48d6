"""What the billing server wants on a node's record gets there once, and holds nothing up."""

from __future__ import annotations

import asyncio

import pytest
from structlog.testing import capture_logs

from qcnode.books import chain
from qcnode.books.inbox import Inbox
from qcnode.books.ledger import SqliteLedger
from qcnode.errors import LedgerUnavailableError
from qcnode.money import (
    Adjusted,
    Attempt,
    Cost,
    Indeterminate,
    Intent,
    Leased,
    Receipt,
    Reconciled,
    TokenUsage,
    WrittenOff,
)

LEASE = Leased(lease_id="l1", budget="fleet", unit="money", limit=10**12, from_us=0, until_us=9)


def cost(pico):
    return Cost(currency="USD", pico=pico, rows=())


def known(attempt="a1", pico=3):
    return Reconciled(
        attempt_id=attempt, usage=None, cost=cost(pico), source="export", source_sha256="00"
    )


def receipt(*facts):
    return Receipt(
        epoch="e" * 32,
        acked_seq=0,
        head_hash="",
        resolutions=tuple(fact for fact in facts if not isinstance(fact, Leased)),
        leases=tuple(fact for fact in facts if isinstance(fact, Leased)),
    )


@pytest.fixture
def ledger(tmp_path):
    """A ledger with two attempts that nobody here knows the cost of."""
    books = SqliteLedger(tmp_path / "ledger.db", now_us=lambda: 0, new_epoch=lambda: "e" * 32)
    for name in ("a1", "a2"):
        attempt = Attempt(id=name, escalation_id="e1", number=1, provider="p", model="m")
        usage = TokenUsage(text=10, output=10)
        books.submit(
            Intent(
                attempt=attempt,
                worst=usage,
                hold=cost(9),
                request_sha256="00",
                request_bytes=1,
                image_sha256=None,
            )
        )
        books.submit(Indeterminate(attempt_id=name, reason="lost", hold=cost(9))).result(10)
    yield books
    books.close()


def recorded(ledger):
    return [chain.fact_of(entry) for entry in ledger.read(4, 100)]


async def test_resolutions_and_leases_are_recorded(ledger):
    lost = WrittenOff(attempt_id="a2", reason="older than 90 days")
    await Inbox(ledger).take(receipt(known(), lost, LEASE))
    assert set(recorded(ledger)) == {known(), lost, LEASE}
    assert ledger.totals().cost_pico == {"USD": 3}


async def test_what_is_said_again_is_not_recorded_again_and_not_complained_of(ledger):
    inbox = Inbox(ledger)
    with capture_logs() as logs:
        for _ in range(3):
            await inbox.take(receipt(known(), LEASE))
        await asyncio.gather(*(inbox.take(receipt(known(), LEASE)) for _ in range(3)))
        await Inbox(ledger).take(receipt(known(), LEASE))  # as after a restart
    assert len(recorded(ledger)) == 2
    assert logs == []


async def test_a_cost_may_be_put_right_and_that_too_is_recorded_once(ledger):
    right = Adjusted(attempt_id="a1", before=cost(3), after=cost(4), reason="withdrawn price")
    back = Adjusted(attempt_id="a1", before=cost(4), after=cost(3), reason="and back")
    for inbox in (Inbox(ledger), Inbox(ledger)):
        await inbox.take(receipt(known()))
        await inbox.take(receipt(right))
    await Inbox(ledger).take(receipt(back))
    assert recorded(ledger) == [known(), right, back]


async def test_what_cannot_be_true_is_said_once_and_the_rest_goes_on(ledger):
    inbox = Inbox(ledger)
    with capture_logs() as logs:
        for _ in range(3):
            await inbox.take(receipt(known("nobody"), known("a1", -1), known("a2")))
    assert recorded(ledger) == [known("a2")]
    assert sorted(line["fact"].attempt_id for line in logs) == ["a1", "nobody"]


async def test_a_lease_under_a_known_id_is_not_taken_again(ledger):
    larger = Leased(lease_id="l1", budget="fleet", unit="money", limit=9, from_us=0, until_us=9)
    await Inbox(ledger).take(receipt(LEASE))
    await Inbox(ledger).take(receipt(larger))
    assert recorded(ledger) == [LEASE]


async def test_what_the_disk_did_not_take_is_tried_again_with_the_next_receipt(ledger):
    inbox, submit = Inbox(ledger), ledger.submit

    def fail(_fact):
        future = asyncio.Future()
        future.set_exception(LedgerUnavailableError("no disk"))
        return future

    ledger.submit = fail
    await inbox.take(receipt(known()))
    assert recorded(ledger) == []
    ledger.submit = submit
    await inbox.take(receipt(known()))
    assert recorded(ledger) == [known()]
