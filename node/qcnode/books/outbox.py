"""The outbox: ledger entries on their way to the billing server, until it has them.

What is unsent is what the ledger holds beyond the server's last receipt, so there is no
second queue that could lose anything. Only a receipt moves that mark, never an
acknowledgement of a broker. Every batch may arrive twice, late or never, and receipts come
in any order; the server knows each entry by its seq, and a clock decides nothing here.
Nothing is skipped: a batch the server refuses stops the outbox, visibly, until somebody has
looked. An entry that it has quarantined is said once and stops nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import structlog

from qcnode.books import batch, chain
from qcnode.books.seals import origin_of
from qcnode.errors import (
    LedgerCorruptError,
    LedgerForkedError,
    LedgerUnavailableError,
    LineUnavailableError,
    SealError,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from qcnode.books.inbox import Inbox
    from qcnode.books.pin import ServerKey
    from qcnode.books.seals import PublicKey
    from qcnode.health import HealthBoard
    from qcnode.money import LedgerEntry, Receipt
    from qcnode.ports import Channel

log = structlog.get_logger()

COMPONENT = "billing"
ROWS_MAX = 500
BATCH_BYTES_MAX = 256 * 1024
WINDOW = 8
"""Batches on their way at once, at the most."""
FEW_ROWS = 50
"""So few entries wait for the batch before them, so that a live line sends one at a time."""
SHARE = 0.25
"""How much of one thread's time reading and writing batches may take."""
CONFIRM_EVERY_S = 0.5
"""Receipts cost a commit each, and the last one counts for all before it."""
QUARANTINED_TOLD_MAX = 1_000
RANGES_MAX = 64
FORK = "fork"
"""How a receipt's problem begins when the server has other entries than this ledger."""
_LOOK_AGAIN_S = 30.0
_ROWS_MIN = 16


class Source(Protocol):
    """A ledger, or one that was put away, as far as the outbox needs it."""

    @property
    def epoch(self) -> str:
        """The identity of this ledger file: seq starts at 1 in each epoch."""

    def read(self, after_seq: int, limit: int) -> list[LedgerEntry]:
        """Return up to `limit` entries beyond `after_seq`, in order."""

    def last_seq(self) -> int:
        """Return the seq of the last entry; 0 when there is none."""

    def receipt_seq(self) -> int:
        """Return how far the billing server has confirmed this epoch."""

    def confirm(self, receipt: Receipt) -> None:
        """Note a receipt; one that contradicts the chain raises `LedgerCorruptError`."""

    def checkpoint_note(self, seq: int, digest: bytes) -> str | None:
        """Return the node's signed note that entry `seq` has this hash; None without a key."""

    def add_listener(self, listener: Callable[[], None]) -> Callable[[], None]:
        """Call `listener` after each commit, from any thread, until what is returned is called."""


class Outbox:
    """Carries a ledger's entries through one channel, with up to `WINDOW` batches in flight.

    `node_key` is the public key of the ledger's own notes, and goes with each batch. Once
    `server_key` is known, a receipt counts only with its note on what it says. `inbox` takes
    what a receipt wants on record here. `on_fork` is told when the server has other entries
    than this ledger; nothing more is sent then. `jitter` gives a number from 0 to 1, so that
    a hundred nodes do not come back at the same moment. When nothing is new for
    `ask_every_s`, the last entry is sent again, or of an empty ledger a batch of none: the
    receipt says what the server has, and lends. Run it as one task; `flush` works while it
    runs.
    """

    def __init__(
        self,
        ledger: Source,
        channel: Channel,
        *,
        tenant: str,
        node: str,
        health: HealthBoard,
        now: Callable[[], datetime],
        jitter: Callable[[], float],
        inbox: Inbox | None = None,
        node_key: PublicKey | None = None,
        server_key: ServerKey | None = None,
        on_fork: Callable[[str], None] | None = None,
        component: str = COMPONENT,
        retry_s: float = 1.0,
        retry_max_s: float = 30.0,
        ask_every_s: float = 300.0,
    ) -> None:
        self._ledger = ledger
        self._channel = channel
        self._tenant = tenant
        self._node = node
        self._health = health
        self._now = now
        self._jitter = jitter
        self._inbox = inbox
        self._node_key = None if node_key is None else str(node_key)
        self._server_key = server_key
        self._on_fork = on_fork
        self._component = component
        self._retry_s = retry_s
        self._retry_max_s = retry_max_s
        self._ask_every_s = ask_every_s
        self._news = asyncio.Event()
        self._hurry = asyncio.Event()
        self._moved = asyncio.Condition()
        self._behind_until = 0
        self._window = 1
        self._rows = ROWS_MAX
        self._quarantined: set[int] = set()

    def pending(self) -> int:
        """Return how many entries wait for a receipt."""
        return self._ledger.last_seq() - self._ledger.receipt_seq()

    async def run(self) -> None:
        """Send what the ledger holds until this task is cancelled, or the chains have forked."""
        loop = asyncio.get_running_loop()

        def wake() -> None:
            # The ledger's thread may outlive this loop.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(self._news.set)

        undo = self._ledger.add_listener(wake)
        self._health.report(self._component, ok=True, words=f"{self.pending()} entries to send")
        try:
            await self._keep_sending()
        except _ForkedError as error:
            await self._give_up(str(error))
        finally:
            undo()

    async def flush(self, timeout_s: float) -> bool:
        """Wait until all entries recorded so far are receipted; False when time runs out."""
        target = self._ledger.last_seq()
        self._hurry.set()
        try:
            async with asyncio.timeout(timeout_s), self._moved:
                await self._moved.wait_for(lambda: self._ledger.receipt_seq() >= target)
        except TimeoutError:
            return False
        return True

    async def _keep_sending(self) -> None:
        loop, failures, ask_at = asyncio.get_running_loop(), 0, 0.0
        while True:
            self._news.clear()
            ask = loop.time() >= ask_at
            try:
                await self._send_unread(ask=ask)
            except LineUnavailableError as error:
                self._say_not_sent(str(error))
                failures += 1
                await self._pause(self._backoff_s(failures))
            except (_StoppedError, LedgerCorruptError, LedgerUnavailableError) as error:
                self._say_not_sent(str(error))
                failures += 1
                await self._pause(self._retry_max_s)
            else:
                failures = 0
                if ask:
                    ask_at = loop.time() + self._ask_every_s
                await _wait(self._news, min(_LOOK_AGAIN_S, self._ask_every_s))

    async def _send_unread(self, *, ask: bool) -> None:
        """Send batches until the server has all there is, or raise the first thing wrong."""
        trip = _Trip(mark=self._ledger.receipt_seq())
        trip.upto = trip.mark
        last = self._ledger.last_seq()
        if ask and last <= trip.mark:
            trip.wanted = [(last, last)]
        trouble: Exception | None = None
        try:
            while True:
                if trouble is None:
                    await self._launch(trip)
                if not trip.flights:
                    break
                done, _rest = await asyncio.wait(trip.flights, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    flight = trip.flights.pop(task)
                    try:
                        await self._take(task.result(), flight, trip)
                    except (
                        LineUnavailableError,
                        LedgerCorruptError,
                        LedgerUnavailableError,
                        _StoppedError,
                        _ForkedError,
                    ) as error:
                        trouble = trouble or error
                await self._confirm(trip)
                news = trip.moved or trip.mark >= trip.upto
                if trouble is None and trip.unconfirmed is None and news:
                    self._say_sent(trip.mark)
        finally:
            for task in trip.flights:
                task.cancel()
            await asyncio.gather(*trip.flights, return_exceptions=True)
        if trouble is not None:
            self._window = 1
            raise trouble

    # -- out ---------------------------------------------------------------------------

    async def _launch(self, trip: _Trip) -> None:
        """Send as many batches as the window has room for."""
        loop = asyncio.get_running_loop()
        while len(trip.flights) < self._window:
            span = self._next_span(trip)
            if span is None:
                return
            began = loop.time()
            raw, last = await asyncio.to_thread(self._pack, *span)
            took = loop.time() - began
            if last < span[1] and span[1] <= trip.upto:
                trip.wanted.insert(0, (last + 1, span[1]))
            trip.upto = max(trip.upto, last)
            flight = _Flight(first=span[0], last=last, mark=trip.mark, turn=trip.turn)
            trip.flights[asyncio.create_task(self._channel.send(raw))] = flight
            # A busy machine makes this take longer, and then it also rests longer.
            await asyncio.sleep(took * (1 / SHARE - 1))

    def _next_span(self, trip: _Trip) -> tuple[int, int] | None:
        """Return the first and the last entry that may go into the next batch."""
        if trip.wanted:
            return trip.wanted.pop(0)
        unread = self._ledger.last_seq() - trip.upto
        if unread > 0 and (not trip.flights or unread >= FEW_ROWS):
            return trip.upto + 1, trip.upto + unread
        if unread > 0 or trip.flights or trip.mark >= trip.upto:
            return None
        # All has been answered and not all is taken: again, from where the server is.
        if not trip.moved:
            raise LineUnavailableError(
                f"the billing server took nothing beyond entry {trip.mark} and does not say why:"
                " look at its log"
            )
        trip.rewind(trip.mark)
        return self._next_span(trip)

    def _pack(self, first: int, last: int) -> tuple[bytes, int]:
        """Write the batch that begins with entry `first`; return it and its last entry's seq."""
        if last == 0:
            return self._question(), 0
        entries = self._ledger.read(first - 1, min(self._rows, ROWS_MAX, last - first + 1))
        if not entries:
            raise LedgerCorruptError(f"entry {first} is missing: the entries went up to {last}")
        raw, count = batch.pack_batch(
            self._tenant,
            self._node,
            entries,
            at=self._now(),
            bytes_max=BATCH_BYTES_MAX,
            sign=lambda entry: self._ledger.checkpoint_note(entry.seq, entry.hash),
            key=self._node_key,
        )
        # Entries are much alike: no more are read next time than will about fit.
        self._rows = max(_ROWS_MIN, count + count // 4)
        return raw, first + count - 1

    def _question(self) -> bytes:
        """Write the batch of a ledger without entries: the server's answer is what counts."""
        epoch = self._ledger.epoch
        return batch.encode_question(
            self._tenant,
            self._node,
            epoch,
            at=self._now(),
            checkpoint=self._ledger.checkpoint_note(0, chain.genesis(epoch)),
            key=self._node_key,
        )

    # -- and back ----------------------------------------------------------------------

    async def _take(self, receipt: Receipt, flight: _Flight, trip: _Trip) -> None:
        """Weigh the receipt for `flight`; raises when nothing more may be sent for now."""
        if receipt.epoch != self._ledger.epoch:
            # A refusal of bytes the server could not even read, or no word about this
            # ledger: it says of no entry how far it is.
            why = receipt.problem or f"its receipt is for epoch {receipt.epoch!r:.40}"
            raise _StoppedError(f"the billing server refuses our batch: {why}")
        await self._check_note(receipt)
        if receipt.problem is not None and receipt.problem.startswith(FORK):
            raise _ForkedError(f"the billing server has other entries: {receipt.problem}")
        if self._inbox is not None and (
            self._server_key is None or self._server_key.vouches(receipt)
        ):
            await self._inbox.take(receipt)
        if flight.turn != trip.turn:
            return  # From before the server went back: what it had then, it has no more.
        acked = receipt.acked_seq
        if acked < flight.mark:
            self._note_retreat(acked, had=flight.mark)
            trip.rewind(acked)
            trip.unconfirmed = receipt
        elif acked > trip.mark:
            trip.mark, trip.moved, trip.unconfirmed = acked, True, receipt
            trip.asked_again.clear()
            self._window = min(WINDOW, 2 * self._window)
        elif trip.unconfirmed is None and acked == trip.mark:
            trip.unconfirmed = receipt
        if acked > trip.upto:  # It has more than we knew: true only if the hash says so.
            await self._confirm(trip, now=True)
            trip.upto = acked
        self._note_quarantine(receipt)
        self._want_again(receipt, trip)
        if receipt.problem is not None:
            raise _StoppedError(
                f"the billing server takes no entry beyond {acked} ({receipt.problem}):"
                " look at its books; nothing is skipped"
            )

    async def _check_note(self, receipt: Receipt) -> None:
        """See that the billing server itself has signed what the receipt says."""
        if self._server_key is None or receipt.acked_seq == 0:
            return
        try:
            if not self._server_key.known:
                await asyncio.to_thread(self._server_key.learn, receipt)
            if not self._server_key.known:
                return
            if receipt.note is None and receipt.problem is not None:
                raise _StoppedError(f"the billing server refuses our batch: {receipt.problem}")
            said = self._server_key.check(receipt)
        except SealError as error:
            raise _StoppedError(
                f"a receipt that is not the billing server's, who else answers there? {error}"
            ) from error
        origin = origin_of(self._tenant, self._node, self._ledger.epoch)
        if (said.origin, said.size) != (origin, receipt.acked_seq) or (
            said.head_hash.hex() != receipt.head_hash
        ):
            raise _StoppedError(
                f"a receipt for entry {receipt.acked_seq} with a signature for another"
                f" ({said.origin}, {said.size}): who else answers there?"
            )

    async def _confirm(self, trip: _Trip, *, now: bool = False) -> None:
        """Put the last receipt on record, but not more often than needed."""
        loop = asyncio.get_running_loop()
        receipt = trip.unconfirmed
        if receipt is None:
            return
        if not now and trip.flights and loop.time() < trip.confirm_at:
            return
        trip.unconfirmed, trip.confirm_at = None, loop.time() + CONFIRM_EVERY_S
        try:
            await asyncio.to_thread(self._ledger.confirm, receipt)
        except LedgerForkedError as error:
            raise _ForkedError(str(error)) from error
        async with self._moved:
            self._moved.notify_all()

    def _want_again(self, receipt: Receipt, trip: _Trip) -> None:
        """Send first what the server misses and what is not on its way any more."""
        under_way = [(flight.first, flight.last) for flight in trip.flights.values()]
        for first, last in receipt.missing[:RANGES_MAX]:
            span = (max(first, trip.mark + 1), min(last, trip.upto))
            for gap in _without(span, [*under_way, *trip.wanted]):
                # Twice for one receipt's worth of progress is enough; then it is started over.
                if gap not in trip.asked_again:
                    trip.asked_again.add(gap)
                    trip.wanted.append(gap)
        trip.wanted.sort()

    def _note_retreat(self, acked: int, *, had: int) -> None:
        self._behind_until = max(self._behind_until, had)
        log.warning("the billing server went back", had=had, has=acked)

    def _note_quarantine(self, receipt: Receipt) -> None:
        fresh = [seq for seq in receipt.quarantined if seq not in self._quarantined]
        if not fresh or len(self._quarantined) >= QUARANTINED_TOLD_MAX:
            return
        self._quarantined.update(fresh)
        log.error(
            "the billing server moves no money by these entries until a person has looked",
            entries=fresh[:20],
            count=len(fresh),
        )

    def _say_sent(self, acked: int) -> None:
        """Tell the health board how far the server is."""
        if acked < self._behind_until:
            self._health.report(
                self._component,
                ok=False,
                words=f"the billing server has lost entries {acked + 1} to {self._behind_until},"
                " as after a restore: they are sent again",
            )
            return
        self._behind_until = 0
        words = f"receipted up to entry {acked}"
        if self._quarantined:
            words += f", {len(self._quarantined)} quarantined there: {min(self._quarantined)}"
            words += ", ..." if len(self._quarantined) > 1 else ""
        self._health.report(self._component, ok=True, words=words)

    async def _give_up(self, why: str) -> None:
        """The server has other entries than this ledger: it was restored or copied."""
        log.error("the chains have forked, nothing more of this ledger is sent", why=why)
        self._health.report(
            self._component,
            ok=False,
            words=f"{why}; nothing more of this ledger is sent: restart the node, which then"
            " begins a new epoch",
        )
        if self._on_fork is not None:
            try:
                await asyncio.to_thread(self._on_fork, why)
            except (LedgerCorruptError, LedgerUnavailableError) as error:
                log.error("the ledger could not be marked", why=str(error))  # noqa: TRY400  # one line says all a person can use

    def _say_not_sent(self, why: str) -> None:
        self._health.report(
            self._component, ok=False, words=f"{self.pending()} entries wait: {why}"
        )

    def _backoff_s(self, failures: int) -> float:
        longest = min(self._retry_max_s, self._retry_s * 2.0 ** min(failures - 1, 16))
        return longest * (0.5 + 0.5 * self._jitter())

    async def _pause(self, seconds: float) -> None:
        await _wait(self._hurry, seconds)
        self._hurry.clear()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Flight:
    """A batch on its way, and how far the server was, as far as we knew, when it left."""

    first: int
    last: int
    mark: int
    turn: int


@dataclass(slots=True, kw_only=True)
class _Trip:
    """One going through what is unread: what is on its way, and how far the server is."""

    mark: int
    """The last entry that the server has, with all before it."""
    upto: int = 0
    """The last entry that was sent."""
    moved: bool = False
    """Whether the server took anything since entries were last sent from the mark."""
    turn: int = 0
    """How often the server was found behind what it had receipted."""
    wanted: list[tuple[int, int]] = field(default_factory=list)
    asked_again: set[tuple[int, int]] = field(default_factory=set)
    flights: dict[asyncio.Task[Receipt], _Flight] = field(default_factory=dict)
    unconfirmed: Receipt | None = None
    confirm_at: float = 0.0

    def rewind(self, mark: int) -> None:
        """Begin anew after `mark`; a receipt for what is on its way says nothing now."""
        self.mark = self.upto = mark
        self.turn += 1
        self.moved = False
        self.wanted.clear()
        self.asked_again.clear()


class _StoppedError(Exception):
    """The server gave a receipt and refuses what comes next, or it is not its receipt."""


class _ForkedError(Exception):
    """The server has another entry where this ledger has one, or more of them."""


def _without(span: tuple[int, int], taken: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return what is left of `span` when the stretches in `taken` are cut out of it."""
    left: list[tuple[int, int]] = []
    first, last = span
    for start, end in sorted(taken):
        if end < first or start > last:
            continue
        if start > first:
            left.append((first, start - 1))
        first = end + 1
    if first <= last:
        left.append((first, last))
    return left


async def _wait(event: asyncio.Event, seconds: float) -> None:
    # Not wait_for: on Python 3.11 it can swallow a cancellation.
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
