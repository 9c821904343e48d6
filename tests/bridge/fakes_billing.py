"""A billing server small enough to read: it keeps entries in a list and gives receipts."""

from __future__ import annotations

from qcnode.books import chain
from qcnode.books.batch import Batch, decode_batch
from qcnode.errors import LedgerCorruptError, LineUnavailableError
from qcnode.money import LedgerEntry, Receipt


class FakeBilling:
    """Takes batches of one epoch as the real one does, and shows what it has."""

    def __init__(self) -> None:
        self.entries: list[LedgerEntry] = []
        self.batches: list[Batch] = []
        self.refuses_from: int | None = None

    @property
    def seqs(self) -> list[int]:
        return [entry.seq for entry in self.entries]

    def restore_backup(self, up_to: int) -> None:
        del self.entries[up_to:]

    def take(self, raw: bytes) -> Receipt:
        batch = decode_batch(raw)
        self.batches.append(batch)
        head = self._head(batch.epoch)
        if batch.first_seq > head.acked_seq + 1:
            return head  # A gap: it wants what comes before.
        fresh = [entry for entry in batch.entries if entry.seq > head.acked_seq]
        try:
            chain.verify(
                fresh,
                epoch=batch.epoch,
                after_seq=head.acked_seq,
                prev_hash=bytes.fromhex(head.head_hash),
            )
        except LedgerCorruptError as error:
            return Receipt(
                epoch=batch.epoch,
                acked_seq=head.acked_seq,
                head_hash=head.head_hash,
                problem=str(error),
            )
        for entry in fresh:
            if entry.seq == self.refuses_from:
                return self._head(batch.epoch, problem=f"entry {entry.seq} is quarantined")
            self.entries.append(entry)
        return self._head(batch.epoch)

    def _head(self, epoch: str, problem: str | None = None) -> Receipt:
        digest = self.entries[-1].hash if self.entries else chain.genesis(epoch)
        return Receipt(
            epoch=epoch, acked_seq=len(self.entries), head_hash=digest.hex(), problem=problem
        )


class FakeChannel:
    """A way to a `FakeBilling` that can be cut before or after the server."""

    name = "fake"

    def __init__(self, billing: FakeBilling) -> None:
        self.billing = billing
        self.sent: list[bytes] = []
        self.cut = False
        self.loses_receipts = 0
        self.in_flight = 0

    async def send(self, batch: bytes) -> Receipt:
        assert self.in_flight == 0, "one batch in flight"
        self.in_flight += 1
        try:
            self.sent.append(batch)
            if self.cut:
                raise LineUnavailableError("the wire is cut")
            receipt = self.billing.take(batch)
            if self.loses_receipts:
                self.loses_receipts -= 1
                raise LineUnavailableError("the receipt was lost")
            return receipt
        finally:
            self.in_flight -= 1

    async def close(self) -> None:
        pass
