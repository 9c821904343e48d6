"""What the billing server tells a node to put on its own record: each once.

Receipts name what became known of attempts, and what a shared budget lends this node.
The server repeats both until it finds them among the node's entries, so everything here
may come many times. What the ledger does not take is said once and holds nothing up.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import TYPE_CHECKING, Protocol

import structlog

from qcnode.books.attempts import subject_of
from qcnode.errors import LedgerCorruptError, LedgerUnavailableError, QcError
from qcnode.money import Leased

if TYPE_CHECKING:
    from collections.abc import Sequence
    from concurrent.futures import Future

    from qcnode.money import LedgerEntry, LedgerFact, Receipt

log = structlog.get_logger()

KNOWN_MAX = 4_096
_DURABLE_S = 10.0


class Record(Protocol):
    """A ledger that can be asked what it holds about something."""

    def submit(self, fact: LedgerFact) -> Future[LedgerEntry]:
        """Record a fact; the future ends when it is durable."""

    def facts_about(self, subject: str) -> Sequence[LedgerFact]:
        """Return what is on record about an attempt or a lease, in order."""


class Inbox:
    """Puts the server's facts on record in `ledger`; one event loop may use it."""

    def __init__(self, ledger: Record) -> None:
        self._ledger = ledger
        self._turn = asyncio.Lock()
        self._known: OrderedDict[LedgerFact, None] = OrderedDict()
        """What was dealt with since the start, so that the disk is not asked each time."""

    async def take(self, receipt: Receipt) -> None:
        """Record what is new in `receipt`; errors are logged and never raised."""
        if not receipt.leases and not receipt.resolutions:
            return
        async with self._turn:
            facts = dict.fromkeys((*receipt.leases, *receipt.resolutions))
            fresh = [fact for fact in facts if fact not in self._known]
            # Together, so that they share a commit.
            dealt_with = await asyncio.gather(*(self._record(fact) for fact in fresh))
            for fact, done in zip(fresh, dealt_with, strict=True):
                if done:
                    self._known[fact] = None
            while len(self._known) > KNOWN_MAX:
                self._known.popitem(last=False)

    async def _record(self, fact: LedgerFact) -> bool:
        """Put `fact` on record and say whether it is dealt with."""
        try:
            # The state of an attempt refuses a second resolution; a lease has no state.
            if isinstance(fact, Leased) and await self._stands(fact):
                return True
            async with asyncio.timeout(_DURABLE_S):
                await asyncio.wrap_future(self._ledger.submit(fact))
        except ValueError as error:
            if not await self._stands(fact):
                log.error("not recorded, the billing server is wrong", fact=fact, why=str(error))  # noqa: TRY400  # one line says all a person can use
        except (LedgerUnavailableError, LedgerCorruptError, TimeoutError) as error:
            log.warning("not recorded yet", fact=fact, why=str(error))
            return False
        return True

    async def _stands(self, fact: LedgerFact) -> bool:
        try:
            on_record = await asyncio.to_thread(self._ledger.facts_about, subject_of(fact))
        except QcError:
            return False
        if isinstance(fact, Leased):
            return any(isinstance(one, Leased) for one in on_record)
        return fact in on_record
