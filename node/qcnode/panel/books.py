"""What desk and books say just now, the books read off the panel's loop, and not for long.

A disk that does not answer must not freeze the screen, and must not leave old
figures on it either: past the limit everything read from it is unknown. The desk is
asked first, so of a part that left it the ruling can be read.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import structlog

from qcnode.domain import Ruling
from qcnode.errors import QcError
from qcnode.panel.sources import Kept
from qcnode.panel.view import STRIP_MAX, WAITING_SHOWN_MAX, in_turn

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from concurrent.futures import Executor

    from qcnode.books.forecast import Outlook
    from qcnode.domain import Counts, Fault, Inspection
    from qcnode.money import LedgerTotals
    from qcnode.panel.sources import DeskView, JournalView, WaitingView
    from qcnode.ports import Ledger

log = structlog.get_logger()

ANSWER_MAX_S = 1.0
NEWS_MAX = 500
"""How many records are looked through at once; of what lies further back nobody asks."""
SETTLED_MAX = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """One look at desk, journal and ledger; None is what could not be read.

    `settled` are the last binding rulings. `kept` says what there is to see of waiting
    parts, by inspection; of those it does not name that is not known.
    """

    waiting: Sequence[WaitingView] = ()
    settled: Sequence[Ruling] = ()
    kept: Mapping[str, Kept] = field(default_factory=dict)
    counts: Counts | None = None
    recent: Sequence[Inspection | Fault] | None = None
    totals: LedgerTotals | None = None
    outlooks: Sequence[Outlook] | None = None
    confirmed: int | None = None


class Books:
    """Reads journal and ledger in threads of its own, one look at a time."""

    def __init__(
        self,
        *,
        desk: DeskView,
        journal: JournalView,
        ledger: Ledger,
        outlooks: Callable[[], Sequence[Outlook]],
        threads: Executor,
    ) -> None:
        self._desk = desk
        self._journal = journal
        self._ledger = ledger
        self._outlooks = outlooks
        self._threads = threads
        self._looking: asyncio.Future[Reading] | None = None
        # Only one look at a time, so these are never touched by two threads at once.
        self._read_to: int | None = None
        self._settled: dict[str, Ruling] = {}
        self._kept: dict[str, Kept] = {}

    async def read(self) -> Reading:
        """Look once. Whoever asks while somebody looks gets the same answer."""
        if self._looking is None or self._looking.done():
            loop = asyncio.get_running_loop()
            waiting = self._desk.waiting()
            self._looking = loop.run_in_executor(self._threads, self._look, waiting)
        looking = asyncio.shield(self._looking)
        done, _ = await asyncio.wait({looking}, timeout=ANSWER_MAX_S)
        if not done:
            looking.cancel()  # The shield alone: the look itself goes on and is asked again.
            return Reading(waiting=self._desk.waiting())
        return looking.result()

    def _look(self, waiting: Sequence[WaitingView]) -> Reading:
        counts = recent = totals = outlooks = confirmed = None
        try:
            self._look_for_pictures(waiting)
            counts, recent = self._journal.counts(), self._journal.recent(STRIP_MAX)
            self._follow_rulings()
        except QcError as error:
            log.debug("journal not read", reason=str(error))
        try:
            totals = self._ledger.totals()
            outlooks = self._outlooks()
            confirmed = self._ledger.receipt_seq()
        except QcError as error:
            totals = None
            log.debug("ledger not read", reason=str(error))
        return Reading(
            waiting=waiting,
            settled=tuple(self._settled.values()),
            kept=self._kept,
            counts=counts,
            recent=recent,
            totals=totals,
            outlooks=outlooks,
            confirmed=confirmed,
        )

    def _follow_rulings(self) -> None:
        if self._read_to is None:
            self._read_to = self._journal.cursor("desk")
        records = self._journal.read(self._read_to, NEWS_MAX)
        for _, record in records:
            if isinstance(record, Ruling) and record.binding:
                self._settled[record.escalation_id] = record
        for old in list(self._settled)[:-SETTLED_MAX]:
            del self._settled[old]
        if records:
            self._read_to = records[-1][0]
        if len(records) == NEWS_MAX:  # Nobody looked for a while.
            self._read_to = max(self._read_to, self._journal.cursor("desk"))

    def _look_for_pictures(self, waiting: Sequence[WaitingView]) -> None:
        """Find out what is kept of the parts that are shown, of each once."""
        kept = {}
        for one in in_turn(waiting)[:WAITING_SHOWN_MAX]:
            name = one.escalation.inspection_id
            if name in self._kept:
                kept[name] = self._kept[name]
            elif one.escalation.box is not None:  # Made from both.
                kept[name] = Kept(picture=True, heat=True)
            else:
                kept[name] = Kept(
                    picture=self._journal.picture(name) is not None,
                    heat=self._journal.heat(name) is not None,
                )
        self._kept = kept
