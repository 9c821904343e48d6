"""From the bytes of a batch to what became of it, in one process or in another."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qcbridge.billing.offers import BatchRefusedError, Offer, RefusalKind, read_offer

if TYPE_CHECKING:
    from qcbridge.billing.store import BillingStore, Taken


def take_batch(
    store: BillingStore, raw: bytes, *, tenant: str | None = None, node: str | None = None
) -> Taken:
    """Store the batch in `raw`.

    Raises `BatchRefusedError`, once that is on record, when it is no batch, is out of
    bounds, or is not of `tenant` or `node` where the way it came proves the sender;
    `StoreUnavailableError` when the same bytes may be taken later.
    """
    try:
        offer = _read(raw, tenant, node)
    except BatchRefusedError as refused:
        store.record_refusal(refused, offered=raw)
        raise
    return store.take(offer)


def _read(raw: bytes, tenant: str | None, node: str | None) -> Offer:
    offer = read_offer(raw)
    for what, proven, said in (("node", node, offer.node), ("tenant", tenant, offer.tenant)):
        if proven is not None and proven != said:
            raise BatchRefusedError(
                RefusalKind.UNREADABLE,
                f"{what} {proven} sent a batch in the name of {what} {said[:80]!r}",
            )
    return offer
