"""The outbox: ledger entries on their way to the billing server, until it has them.

What is unsent is what the ledger holds beyond the server's last receipt, so there is no
second queue that could lose anything. Only a receipt moves that mark, never an
acknowledgement of a broker. Every batch may arrive twice or be lost; the server knows
each entry by its seq. Nothing is skipped: an entry the server refuses stops the outbox,
visibly, until somebody has looked.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Protocol

import structlog

from qcnode.books import batch
from qcnode.errors import LedgerCorruptError, LedgerUnavailableError, LineUnavailableError
from qcnode.ports import Ledger

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from qcnode.health import HealthBoard
    from qcnode.money import LedgerEntry, Receipt
    from qcnode.ports import Channel

log = structlog.get_logger()

COMPONENT = "billing"
ROWS_MAX = 500
BATCH_BYTES_MAX = 256 * 1024
_LOOK_AGAIN_S = 30.0


class Source(Ledger, Protocol):
    """A ledger that says when there is news."""

    def add_listener(self, listener: Callable[[], None]) -> Callable[[], None]:
        """Call `listener` after each commit, from any thread, until what is returned is called."""


class Outbox:
    """Carries a ledger's entries through one channel, in order, one batch in flight.

    `jitter` gives a number from 0 to 1, so that a hundred nodes do not come back at
    the same moment. Run it as one task; `flush` works while it runs.
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
        retry_s: float = 1.0,
        retry_max_s: float = 30.0,
    ) -> None:
        self._ledger = ledger
        self._channel = channel
        self._tenant = tenant
        self._node = node
        self._health = health
        self._now = now
        self._jitter = jitter
        self._retry_s = retry_s
        self._retry_max_s = retry_max_s
        self._news = asyncio.Event()
        self._hurry = asyncio.Event()
        self._moved = asyncio.Condition()
        self._behind_until = 0

    def pending(self) -> int:
        """Return how many entries wait for a receipt."""
        return self._ledger.totals().entries - self._ledger.receipt_seq()

    async def run(self) -> None:
        """Send what the ledger holds until this task is cancelled."""
        loop = asyncio.get_running_loop()

        def wake() -> None:
            # The ledger's thread may outlive this loop.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(self._news.set)

        undo = self._ledger.add_listener(wake)
        self._health.report(COMPONENT, ok=True, words=f"{self.pending()} entries to send")
        failures = 0
        try:
            while True:
                self._news.clear()
                try:
                    await self._send_unread()
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
                    await _wait(self._news, _LOOK_AGAIN_S)
        finally:
            undo()

    async def flush(self, timeout_s: float) -> bool:
        """Wait until all entries recorded so far are receipted; False when time runs out."""
        target = self._ledger.totals().entries
        self._hurry.set()
        try:
            async with asyncio.timeout(timeout_s), self._moved:
                await self._moved.wait_for(lambda: self._ledger.receipt_seq() >= target)
        except TimeoutError:
            return False
        return True

    async def _send_unread(self) -> None:
        """Send batches until the server has all there is."""
        while entries := await asyncio.to_thread(
            self._ledger.read, self._ledger.receipt_seq(), ROWS_MAX
        ):
            receipt = await self._channel.send(self._encode(entries))
            if receipt.problem is not None and receipt.epoch != self._ledger.epoch:
                # A refusal of bytes the server could not even read: it says of no entry
                # how far it is.
                raise _StoppedError(f"the billing server refuses our batch: {receipt.problem}")
            await asyncio.to_thread(self._ledger.confirm, receipt)
            async with self._moved:
                self._moved.notify_all()
            self._weigh(receipt, sent_after=entries[0].seq - 1)

    def _weigh(self, receipt: Receipt, *, sent_after: int) -> None:
        """Say how it goes, or raise when it does not."""
        acked = receipt.acked_seq
        if receipt.problem is not None:
            raise _StoppedError(
                f"the billing server takes no entry beyond {acked} ({receipt.problem}):"
                " look at its books; nothing is skipped"
            )
        if acked < sent_after:
            self._behind_until = max(self._behind_until, sent_after)
            log.warning("the billing server went back", had=sent_after, has=acked)
        elif acked == sent_after:
            raise LineUnavailableError(
                f"the billing server took nothing beyond entry {acked} and does not say why:"
                " look at its log"
            )
        if acked < self._behind_until:
            self._health.report(
                COMPONENT,
                ok=False,
                words=f"the billing server has lost entries {acked + 1} to {self._behind_until},"
                " as after a restore: they are sent again",
            )
            return
        self._behind_until = 0
        self._health.report(COMPONENT, ok=True, words=f"receipted up to entry {acked}")

    def _encode(self, entries: list[LedgerEntry]) -> bytes:
        """Write as many of `entries` as fit one message; one alone always goes."""
        while True:
            raw = batch.encode_batch(self._tenant, self._node, entries, at=self._now())
            if len(raw) <= BATCH_BYTES_MAX or len(entries) == 1:
                return raw
            # Entries are much alike, so this comes close; and never to nothing.
            share = len(entries) * BATCH_BYTES_MAX // len(raw)
            entries = entries[: max(1, min(share, len(entries) - 1))]

    def _say_not_sent(self, why: str) -> None:
        self._health.report(COMPONENT, ok=False, words=f"{self.pending()} entries wait: {why}")

    def _backoff_s(self, failures: int) -> float:
        longest = min(self._retry_max_s, self._retry_s * 2.0 ** min(failures - 1, 16))
        return longest * (0.5 + 0.5 * self._jitter())

    async def _pause(self, seconds: float) -> None:
        await _wait(self._hurry, seconds)
        self._hurry.clear()


class _StoppedError(Exception):
    """The server gave a receipt and refuses what comes next."""


async def _wait(event: asyncio.Event, seconds: float) -> None:
    # Not wait_for: on Python 3.11 it can swallow a cancellation.
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
