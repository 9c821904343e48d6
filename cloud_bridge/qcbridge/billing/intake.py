"""The one door for batches, whichever way they come.

HTTP and MQTT hand over bytes here and get a receipt, or a refusal that is on record.
What is counted for Prometheus is counted here. Any thread may call.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Histogram

from qcbridge.billing.postings import BATCH_BYTES_MAX, BatchRefusedError, RefusalKind
from qcbridge.billing.store import Outcome, StoreUnavailableError
from qcnode.books import batch as batches

if TYPE_CHECKING:
    from qcbridge.billing.store import BillingStore
    from qcnode.money import Receipt


class Intake:
    """Takes batches into the store, and counts them in a registry of its own."""

    def __init__(self, store: BillingStore) -> None:
        self._store = store
        self.registry = CollectorRegistry()
        self._batches = Counter(
            "qcbilling_batches",
            "Batches offered, by the way they came and what became of them",
            ("via", "outcome"),
            registry=self.registry,
        )
        self._entries = Counter(
            "qcbilling_entries", "Ledger entries stored since the start", registry=self.registry
        )
        self._seconds = Histogram(
            "qcbilling_batch_seconds",
            "Time from a batch's last byte to its commit",
            registry=self.registry,
        )

    def take(self, raw: bytes, *, via: str, node: str | None = None) -> Receipt:
        """Store the batch in `raw` and return its receipt.

        Raises `BatchRefusedError` when it is no batch, is out of bounds, or does not come
        from `node` where the way it came proves the sender; `StoreUnavailableError` when
        the same bytes may be taken later.
        """
        try:
            with self._seconds.time():
                taken = self._store.take(_read(raw, node))
        except BatchRefusedError as refused:
            self._batches.labels(via, "unreadable").inc()
            self._store.record_refusal(refused.kind, str(refused), offered=raw)
            raise
        except StoreUnavailableError:
            self._batches.labels(via, "unavailable").inc()
            raise
        self._batches.labels(via, str(taken.outcome)).inc()
        if taken.outcome is Outcome.TAKEN:
            self._entries.inc(taken.stored)
        return taken.receipt


def _read(raw: bytes, node: str | None) -> batches.Batch:
    if len(raw) > BATCH_BYTES_MAX:
        raise BatchRefusedError(
            RefusalKind.UNREADABLE, f"a batch of {len(raw)} bytes: send {BATCH_BYTES_MAX} at most"
        )
    try:
        batch = batches.decode_batch(raw)
    except (ValueError, OverflowError) as error:  # JSON may hold numbers beyond any int64.
        raise BatchRefusedError(RefusalKind.UNREADABLE, f"not a ledger batch: {error}") from error
    if node is not None and batch.node != node:
        raise BatchRefusedError(
            RefusalKind.UNREADABLE,
            f"node {node} sent a batch in the name of node {batch.node[:80]!r}",
        )
    return batch
