"""What the books say just now, read off the panel's loop, with a limit to the waiting.

A disk that does not answer must not freeze the screen, and must not leave old
figures on it either: past the limit everything read from it is unknown.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog

from qcnode.errors import QcError
from qcnode.panel.view import STRIP_MAX

if TYPE_CHECKING:
    from collections.abc import Sequence
    from concurrent.futures import Executor

    from qcnode.domain import Counts, Fault, Inspection, LedgerTotals
    from qcnode.panel.sources import JournalView
    from qcnode.ports import Ledger

log = structlog.get_logger()

ANSWER_MAX_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """One look at journal and ledger; None is what could not be read."""

    counts: Counts | None = None
    recent: Sequence[Inspection | Fault] | None = None
    totals: LedgerTotals | None = None
    budget_left: int | None = None
    confirmed: int | None = None


class Books:
    """Reads journal and ledger in threads of its own, one look at a time."""

    def __init__(self, *, journal: JournalView, ledger: Ledger, threads: Executor) -> None:
        self._journal = journal
        self._ledger = ledger
        self._threads = threads
        self._looking: asyncio.Future[Reading] | None = None

    async def read(self) -> Reading:
        """Look once. Whoever asks while somebody looks gets the same answer."""
        if self._looking is None or self._looking.done():
            loop = asyncio.get_running_loop()
            self._looking = loop.run_in_executor(self._threads, self._look)
        looking = asyncio.shield(self._looking)
        done, _ = await asyncio.wait({looking}, timeout=ANSWER_MAX_S)
        if not done:
            looking.cancel()  # The shield alone: the look itself goes on and is asked again.
            return Reading()
        return looking.result()

    def _look(self) -> Reading:
        counts = recent = totals = budget_left = confirmed = None
        try:
            counts, recent = self._journal.counts(), self._journal.recent(STRIP_MAX)
        except QcError as error:
            log.debug("journal not read", reason=str(error))
        try:
            totals = self._ledger.totals()
            budget_left = self._ledger.budget_left_pico()
            confirmed = self._ledger.receipt_seq()
        except QcError as error:
            totals = None
            log.debug("ledger not read", reason=str(error))
        return Reading(
            counts=counts,
            recent=recent,
            totals=totals,
            budget_left=budget_left,
            confirmed=confirmed,
        )
