"""Bugs made on purpose, each of which the simulator has to find.

They are the ones others had, or the ones that are easy to make: every one of them passes
a test in which nothing goes wrong. Each is a small change to the real code, undone afterwards.
"""

import asyncio
import contextlib
import json
import sqlite3
from concurrent.futures import Future
from dataclasses import replace
from unittest.mock import patch

from qcbridge import meter, transport
from qcbridge.billing import store as store_module
from qcbridge.billing.engine import StoreUnavailableError
from qcnode.books import archive, keeper, ledger, ledger_file, outbox, tally
from qcnode.errors import BudgetExceededError, LedgerUnavailableError, LineUnavailableError
from qcnode.lines import mqtt
from qcnode.money import Intent, NotBilled, Receipt, Reserved

MUTANTS = []


def mutant(shows, *, first=1):
    """Make a function that breaks something a mutant, to be told by what it `shows`.

    It is looked for from the seed `first` on: those before give this bug no occasion.
    """

    def made(function):
        broken = contextlib.contextmanager(function)
        broken.shows, broken.first = shows, first
        MUTANTS.append(broken)
        return broken

    return made


@mutant("request .* (without an entry|while it is reserved)")
def sends_before_its_intent_is_durable():
    """The intent is handed in, and the request leaves without waiting for the disk."""

    async def put(self, fact, attempt_id, *, aside):
        del attempt_id, aside
        self._ledger.submit(fact)

    with patch.object(meter.Meter, "_put", put):
        yield


@mutant("receipt for .* was given")
def takes_an_acknowledgement_for_a_receipt():
    """The broker's PUBACK moves the mark, as in C1."""

    own = mqtt.MqttChannel.send

    async def send(self, batch):
        data = json.loads(batch)["data"]
        if not data["entries"]:
            return await own(self, batch)
        link = await self._linked()
        ask = link.ask(batch, self._new_id().encode())
        for _ in range(500):
            if ask.acknowledged:
                break
            await asyncio.sleep(0.01)
        else:
            raise LineUnavailableError("no PUBACK")
        last = data["entries"][-1]
        return Receipt(epoch=data["epoch"], acked_seq=last["seq"], head_hash=last["hash"])

    with patch.object(mqtt.MqttChannel, "send", send):
        yield


@mutant("a receipt for entry .* are stored")
def remembers_a_batch_before_it_is_stored():
    """What was seen is noted first and stored after; a repetition is answered from the note."""
    seen, own = {}, store_module.BillingStore.take

    def take(self, offer):
        known = seen.get((id(self._witness), offer.digest))
        if known is not None:
            return known
        receipt = Receipt(
            epoch=offer.epoch, acked_seq=offer.last_seq, head_hash=offer.head_hash.hex()
        )
        seen[id(self._witness), offer.digest] = store_module.Taken(
            fate=store_module.Fate.REPEATED, stored=0, receipt=receipt
        )
        return own(self, offer)

    with patch.object(store_module.BillingStore, "take", take):
        yield


@mutant("a receipt for entry .* are stored", first=25)
def gives_its_receipt_before_its_commit():
    """The answer goes out although the database has not taken the batch."""
    own = store_module.BillingStore.take

    def take(self, offer):
        try:
            return own(self, offer)
        except StoreUnavailableError:
            receipt = Receipt(
                epoch=offer.epoch, acked_seq=offer.last_seq, head_hash=offer.head_hash.hex()
            )
            return store_module.Taken(fate=store_module.Fate.TAKEN, stored=0, receipt=receipt)

    with patch.object(store_module.BillingStore, "take", take):
        yield


@mutant("the provider bills .*not billed")
def gives_the_hold_back_on_a_time_out():
    """An error reconciles to zero, as in D4."""
    own = transport._unknown

    def unknown(*what, **more):
        outcome = own(*what, **more)
        return NotBilled(attempt_id=outcome.attempt_id, reason=outcome.reason, http_status=None)

    with patch.object(transport, "_unknown", unknown):
        yield


@mutant("of budget .* is used")
def checks_a_budget_and_acts_later():
    """What is left is looked at before the commit that takes it, as in D1."""
    own = ledger.SqliteLedger.submit

    def submit(self, fact):
        if isinstance(fact, Reserved | Intent):
            for meter_, state in zip(self._tally.meters, self.budgets(), strict=True):
                if meter_.budget.amount(fact.hold, fact.worst) > state.left:
                    refused = Future()
                    refused.set_exception(BudgetExceededError("it does not fit"))
                    return refused
        return own(self, fact)

    with (
        patch.object(tally.Tally, "_check_budgets", lambda *_args: None),
        patch.object(ledger.SqliteLedger, "submit", submit),
    ):
        yield


@mutant("are gone|a new epoch, and nothing was put back")
def does_not_wait_for_the_disk():
    """`synchronous` is NORMAL, which a power cut does not respect."""

    def make_durable(db: sqlite3.Connection, path):
        ledger_file.make_durable(db, path)
        db.execute("PRAGMA synchronous = NORMAL")

    with patch.object(keeper, "make_durable", make_durable):
        yield


@mutant("of budget .* is used", first=18)
def takes_a_ledger_put_away_for_none_when_it_cannot_be_read():
    """A power cut while a receipt is noted in it leaves what only a writer can undo.

    No invention: it was so until seed 20 found it.
    """
    with patch.object(archive, "_roll_back", lambda _path: None):
        own = archive._is_put_away

        def is_put_away(path):
            try:
                archive.LedgerReader(path).close()
            except LedgerUnavailableError:
                return False
            return own(path)

        with patch.object(archive, "_is_put_away", is_put_away):
            yield


@mutant("left open after a start")
def leaves_open_what_a_stop_left_open():
    """A start settles nothing of what was under way."""

    def open_books(self, *, _own=ledger.SqliteLedger._open_books):
        live, self._keeper.tally.live = self._keeper.tally.live, {}
        _own(self)
        self._tally.live = live

    with patch.object(ledger.SqliteLedger, "_open_books", open_books):
        yield


@mutant("no rest|still open", first=8)
def forgets_an_outcome_that_was_not_taken():
    """A commit that fails is logged, and life goes on: the next one succeeds."""

    def hand_in(self, outcome):
        return self._ledger.submit(outcome)

    with patch.object(meter.Meter, "hand_in", hand_in):
        yield


@mutant("no rest", first=4)
def does_not_see_that_the_server_went_back():
    """A receipt for less than before is taken for an old one."""
    own = outbox.Outbox._take

    async def take(self, receipt, flight, trip):
        if receipt.acked_seq < flight.mark:
            receipt = replace(receipt, acked_seq=flight.mark, note=None)
            self._server_key._key = None
        await own(self, receipt, flight, trip)

    with patch.object(outbox.Outbox, "_take", take):
        yield
