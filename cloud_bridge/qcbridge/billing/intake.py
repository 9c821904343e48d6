"""The one door for batches, whichever way they come.

HTTP and MQTT hand over bytes here and get a receipt, or a refusal that is on record.
What is counted for Prometheus is counted here. With a pool, other processes do the work.
Any thread may call.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Histogram

from qcbridge.billing.engine import StoreUnavailableError
from qcbridge.billing.offers import BatchRefusedError
from qcbridge.billing.taking import take_batch

if TYPE_CHECKING:
    from qcbridge.billing.pool import TakingPool
    from qcbridge.billing.store import BillingStore
    from qcnode.money import Receipt


class Intake:
    """Takes batches into the store, and counts them in a registry of its own."""

    def __init__(self, store: BillingStore, *, pool: TakingPool | None = None) -> None:
        self._store = store
        self._pool = pool
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

    def take(
        self, raw: bytes, *, via: str, tenant: str | None = None, node: str | None = None
    ) -> Receipt:
        """Store the batch in `raw` and return its receipt.

        Raises `BatchRefusedError` when it is no batch, is out of bounds, or is not of
        `tenant` or `node` where the way it came proves the sender; `StoreUnavailableError`
        when the same bytes may be taken later.
        """
        try:
            with self._seconds.time():
                if self._pool is None:
                    taken = take_batch(self._store, raw, tenant=tenant, node=node)
                else:
                    taken = self._pool.take(raw, tenant=tenant, node=node)
        except BatchRefusedError:
            self._batches.labels(via, "unreadable").inc()
            raise
        except StoreUnavailableError:
            self._batches.labels(via, "unavailable").inc()
            raise
        self._batches.labels(via, str(taken.fate)).inc()
        self._entries.inc(taken.stored)
        return taken.receipt
