"""A billing server small enough to read: it keeps entries in a list and gives receipts."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

from qcnode.books import chain
from qcnode.books.batch import Batch, decode_batch, sealed_words
from qcnode.books.outbox import WINDOW
from qcnode.books.seals import Checkpoint, origin_of
from qcnode.errors import LedgerCorruptError, LineUnavailableError
from qcnode.money import LedgerEntry, Receipt

if TYPE_CHECKING:
    from collections.abc import Callable

    from qcnode.books.seals import SigningKey
    from qcnode.money import Leased, Resolution


class FakeBilling:
    """Takes batches of one epoch as the real one does, and shows what it has.

    What comes before its turn is kept aside and asked for, or with `keeps_ahead` off
    it is dropped without a word.
    """

    def __init__(self, *, key: SigningKey | None = None) -> None:
        self.entries: list[LedgerEntry] = []
        self.ahead: dict[int, LedgerEntry] = {}
        self.batches: list[Batch] = []
        self.keeps_ahead = True
        self.refuses_from: int | None = None
        self.quarantines: set[int] = set()
        self.resolutions: tuple[Resolution, ...] = ()
        self.leases: tuple[Leased, ...] = ()
        self.key = key
        self.forgets_seal = False

    @property
    def seqs(self) -> list[int]:
        return [entry.seq for entry in self.entries]

    def restore_backup(self, up_to: int) -> None:
        del self.entries[up_to:]
        self.ahead.clear()

    def take(self, raw: bytes) -> Receipt:
        batch = decode_batch(raw)
        self.batches.append(batch)
        for entry in batch.entries:
            if entry.seq <= len(self.entries) and self.entries[entry.seq - 1].hash != entry.hash:
                return self._head(batch, problem=f"fork: another entry {entry.seq} is stored here")
        if batch.first_seq > len(self.entries) + 1:
            if self.keeps_ahead:
                self.ahead.update({entry.seq: entry for entry in batch.entries})
            return self._head(batch)
        new = {entry.seq: entry for entry in batch.entries}
        while (entry := new.get(len(self.entries) + 1)) or (
            entry := self.ahead.pop(len(self.entries) + 1, None)
        ):
            if entry.seq == self.refuses_from:
                return self._head(batch, problem=f"entry {entry.seq} is refused")
            try:
                chain.verify(
                    [entry],
                    epoch=batch.epoch,
                    after_seq=entry.seq - 1,
                    prev_hash=self._digest(batch.epoch),
                )
            except LedgerCorruptError as error:
                return self._head(batch, problem=str(error))
            self.entries.append(entry)
        return self._head(batch)

    def _digest(self, epoch: str) -> bytes:
        return self.entries[-1].hash if self.entries else chain.genesis(epoch)

    def _head(self, batch: Batch, problem: str | None = None) -> Receipt:
        acked, digest, note = len(self.entries), self._digest(batch.epoch), None
        if self.key is not None:
            origin = origin_of(batch.tenant, batch.node, batch.epoch)
            note = self.key.sign(Checkpoint(origin=origin, size=acked, head_hash=digest))
        receipt = Receipt(
            epoch=batch.epoch,
            acked_seq=acked,
            head_hash=digest.hex(),
            problem=problem,
            missing=tuple(self._gaps()),
            quarantined=tuple(sorted(seq for seq in self.quarantines if seq <= acked)),
            note=note,
            resolutions=self.resolutions,
            leases=self.leases,
            server_key=None if self.key is None else str(self.key.public),
        )
        if self.key is None or self.forgets_seal:
            return receipt
        return replace(receipt, seal=self.key.seal(sealed_words(receipt)))

    def _gaps(self) -> list[tuple[int, int]]:
        gaps, expected = [], len(self.entries) + 1
        for seq in sorted(seq for seq in self.ahead if seq >= expected):
            if seq > expected:
                gaps.append((expected, seq - 1))
            expected = seq + 1
        return gaps


class FakeChannel:
    """A way to a `FakeBilling` that can be cut before or after the server.

    `turns` says how many turns of the event loop a batch or a receipt is on its way, so that
    they overtake each other; while `open` is not set, batches stand still.
    """

    name = "fake"

    def __init__(self, billing: FakeBilling, *, turns: Callable[[], int] = lambda: 0) -> None:
        self.billing = billing
        self.sent: list[bytes] = []
        self.cut = False
        self.loses_receipts = 0
        self.doubles = False
        self.open = asyncio.Event()
        self.open.set()
        self.in_flight = 0
        self.in_flight_most = 0
        self.in_flight_then: list[int] = []
        self._news = asyncio.Event()
        self._turns = turns

    async def send(self, batch: bytes) -> Receipt:
        self.in_flight += 1
        self.in_flight_most = max(self.in_flight, self.in_flight_most)
        assert self.in_flight <= WINDOW, "a full window in flight"
        try:
            self.sent.append(batch)
            self.in_flight_then.append(self.in_flight)
            self._news.set()
            await self.open.wait()
            await self._travel()
            if self.cut:
                raise LineUnavailableError("the wire is cut")
            receipt = self.billing.take(batch)
            if self.doubles:
                self.billing.take(batch)
            await self._travel()
            if self.loses_receipts:
                self.loses_receipts -= 1
                raise LineUnavailableError("the receipt was lost")
            return receipt
        finally:
            self.in_flight -= 1

    async def until(self, holds: Callable[[], bool]) -> None:
        """Wait until something holds that a batch being sent can bring about."""
        async with asyncio.timeout(10):
            while not holds():
                self._news.clear()
                await self._news.wait()

    async def close(self) -> None:
        pass

    async def _travel(self) -> None:
        for _ in range(self._turns()):
            await asyncio.sleep(0)
