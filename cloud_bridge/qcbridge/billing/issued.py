"""Invoices as they are issued: numbered, final, each entry on exactly one of them.

An invoice covers, of every ledger, the entries from where the one before ended to the
last that was written in its month, and the decisions about them; so no entry can be
missed or billed twice, whatever came late. What comes late, or puts right what was
billed, is on the next invoice as a correction, and an issued one never changes. It is
worked out from one moment of the books, then stored in a transaction of its own that
begins by looking whether it is still the next one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from qcbridge.billing.audit import Change, note_change
from qcbridge.billing.charges import Charges, Stretch
from qcbridge.billing.contracts import Pack
from qcbridge.billing.drafts import Draft, pack_of, packs_left
from qcbridge.billing.invoices import from_us, month, to_us
from qcbridge.billing.issued_paper import (
    IssuedInvoice,
    decode_invoice,
    encode_invoice,
    invoice_id,
    invoice_sha256,
)
from qcbridge.billing.paper_tables import (
    INVOICE,
    INVOICE_DECISION,
    INVOICE_LEDGER,
    INVOICE_PACK,
    PACK,
)
from qcbridge.billing.tables import LEDGER
from qcnode.errors import BillingError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from datetime import datetime

    from qcbridge.billing.bill import Cell
    from qcbridge.billing.drafts import IssueTerms
    from qcbridge.billing.engine import Database
    from qcbridge.billing.invoices import Period
    from qcbridge.billing.issued_paper import CoveredLedger


@dataclass(frozen=True, slots=True, kw_only=True)
class InvoiceHead:
    """What a list of invoices shows."""

    tenant: str
    number: int
    period: str
    currency: str
    total_micro: int
    issued_us: int
    sha256: str

    @property
    def id(self) -> str:
        """What people call it."""
        return invoice_id(self.tenant, self.number)


@dataclass(frozen=True, slots=True, kw_only=True)
class Issued:
    """An invoice, and whether it is new; asking for it again changes nothing."""

    invoice: IssuedInvoice
    fresh: bool


class Invoices:
    """Works invoices out, and keeps those that were issued; any thread may use it."""

    def __init__(self, database: Database, *, now: Callable[[], datetime]) -> None:
        self._database = database
        self._now = now

    def draft(self, tenant: str, period: Period, terms: IssueTerms) -> IssuedInvoice:
        """Return the invoice as it would be issued now, also of a month that is not over.

        Without a currency to put all of it in, its lines stay in those they were priced
        in, its own `currency` is empty and its total is 0.
        """
        with self._database.reading() as db:
            return Draft(db, tenant, period, terms, now_us=to_us(self._now()), preview=True).make()

    def issue(self, tenant: str, period: Period, terms: IssueTerms, *, by: str) -> Issued:
        """Issue the invoice of a month that is over; issuing it again returns the same one.

        Raises `BillingError` when it is not the next in order, when a currency has no
        rate, or when what is asked for is not what was issued before.
        """
        if terms.rates is None:
            raise BillingError("an invoice names its prices: say by which book with --prices")
        before = self.of_period(tenant, period.name)
        if before is not None:
            _check_same(before, terms)
            return Issued(invoice=before, fresh=False)
        now_us = to_us(self._now())
        if now_us < period.to_us:
            raise BillingError(
                f"{period.name} is not over: issue it from {from_us(period.to_us):%Y-%m-%d} on"
                " (UTC), or leave --issue away for a preview"
            )
        with self._database.reading() as db:
            draft = Draft(db, tenant, period, terms, now_us=now_us)
            invoice = draft.make()
        if not invoice.currency:
            raise BillingError(
                "use was priced in several currencies: name the invoice's with --currency,"
                " and what the others are in it with --rate"
            )
        self._store(invoice, draft.stretches, by=by)
        return Issued(invoice=invoice, fresh=True)

    def of_period(self, tenant: str, period: str) -> IssuedInvoice | None:
        """Return the issued invoice of a month, if there is one."""
        return self._find(tenant, INVOICE.c.period == period)

    def invoice(self, tenant: str, number: int) -> IssuedInvoice:
        """Return an issued invoice; raises `BillingError` when there is none of that number."""
        found = self._find(tenant, INVOICE.c.number == number)
        if found is None:
            raise BillingError(
                f"there is no invoice {invoice_id(tenant, number)}: see `qcnode billing invoices`"
            )
        return found

    def listed(self, tenant: str) -> tuple[InvoiceHead, ...]:
        """Return what was issued to a tenant, by number."""
        columns = INVOICE.c
        query = (
            sa.select(
                columns.tenant,
                columns.number,
                columns.period,
                columns.currency,
                columns.total_micro,
                columns.issued_us,
                columns.sha256,
            )
            .where(columns.tenant == tenant)
            .order_by(columns.number)
        )
        with self._database.reading() as db:
            return tuple(
                InvoiceHead(**{**row, "sha256": bytes(row["sha256"]).hex()})
                for row in db.execute(query).mappings()
            )

    def nodes(self, invoice: IssuedInvoice) -> Iterator[list[Cell]]:
        """Read again what an issued invoice covers, one node after the other."""
        with self._database.reading() as db:
            stretches = [
                Stretch(ledger_id, ledger.node, ledger.epoch, ledger.first_seq, ledger.last_seq)
                for ledger in invoice.ledgers
                for ledger_id in [_ledger_id(db, invoice.tenant, ledger)]
            ]
            charges = Charges(
                db,
                month(invoice.period),
                invoice.number,
                frozenset(decision.id for decision in invoice.decisions),
            )
            yield from charges.nodes(stretches)

    def buy(self, tenant: str, pack: Pack, *, by: str) -> bool:
        """Put a pack on record, and say whether it was new; the same again changes nothing.

        Raises `BillingError` when the id stands for another pack.
        """
        if pack.tokens < 1 or pack.price_micro < 0 or pack.until_us <= pack.bought_us:
            raise BillingError(
                f"pack {pack.id}: give it tokens, a price and an end after its start"
            )
        values = {name: getattr(pack, name) for name in Pack.__slots__}
        now_us = to_us(self._now())
        with self._database.writing() as db:
            same = db.execute(
                sa.select(PACK).where(PACK.c.tenant == tenant, PACK.c.id == pack.id)
            ).one_or_none()
            if same is not None:
                if pack_of(same) != pack:
                    raise BillingError(f"pack {pack.id} was bought before, and is another one")
                return False
            db.execute(
                sa.insert(PACK).values(tenant=tenant, recorded_us=now_us, recorded_by=by, **values)
            )
            note_change(
                db, Change(at_us=now_us, who=by, action="pack buy", tenant=tenant, what=values)
            )
            db.commit()
        return True

    def packs(self, tenant: str) -> tuple[tuple[Pack, int], ...]:
        """Return a tenant's packs and what is left in each."""
        with self._database.reading() as db:
            return tuple(packs_left(db, tenant))

    def _find(self, tenant: str, where: sa.ColumnElement[bool]) -> IssuedInvoice | None:
        with self._database.reading() as db:
            row = db.execute(
                sa.select(INVOICE.c.body, INVOICE.c.sha256).where(INVOICE.c.tenant == tenant, where)
            ).one_or_none()
        if row is None:
            return None
        raw = row.body.encode()
        if invoice_sha256(raw) != bytes(row.sha256).hex():
            raise BillingError("an issued invoice was changed in the database: restore a backup")
        return decode_invoice(raw)

    def _store(self, invoice: IssuedInvoice, stretches: Sequence[Stretch], *, by: str) -> None:
        raw = encode_invoice(invoice)
        tenant, number = invoice.tenant, invoice.number
        with self._database.writing() as db:
            if not self._database.is_sqlite:  # Two who issue at once: one waits, then sees.
                key = sa.func.hashtext(f"qcnode invoice {tenant}")
                db.execute(sa.select(sa.func.pg_advisory_xact_lock(key)))
            last = db.execute(
                sa.select(sa.func.max(INVOICE.c.number)).where(INVOICE.c.tenant == tenant)
            ).scalar_one()
            if (last or 0) + 1 != number:
                raise BillingError(
                    f"another invoice of {tenant} was issued meanwhile: issue this one again"
                )
            db.execute(
                sa.insert(INVOICE).values(
                    tenant=tenant,
                    number=number,
                    period=invoice.period,
                    currency=invoice.currency,
                    total_micro=invoice.total_micro,
                    issued_us=invoice.issued_us,
                    issued_by=by,
                    sha256=bytes.fromhex(invoice_sha256(raw)),
                    body=raw.decode(),
                )
            )
            _insert(
                db,
                INVOICE_LEDGER,
                [
                    {
                        "ledger_id": stretch.ledger_id,
                        "number": number,
                        "first_seq": stretch.first_seq,
                        "last_seq": stretch.last_seq,
                    }
                    for stretch in stretches
                    if stretch.first_seq <= stretch.last_seq
                ],
            )
            _insert(
                db,
                INVOICE_DECISION,
                [
                    {"resolution_id": decision.id, "tenant": tenant, "number": number}
                    for decision in invoice.decisions
                ],
            )
            bought = {purchase.pack.id for purchase in invoice.purchases}
            drawn = {draw.pack: draw.tokens for draw in invoice.draws}
            _insert(
                db,
                INVOICE_PACK,
                [
                    {
                        "tenant": tenant,
                        "pack_id": pack_id,
                        "number": number,
                        "tokens": drawn.get(pack_id, 0),
                        "bought": int(pack_id in bought),
                    }
                    for pack_id in sorted(bought | drawn.keys())
                ],
            )
            what = {"id": invoice.id, "period": invoice.period, "sha256": invoice_sha256(raw)}
            note_change(
                db,
                Change(
                    at_us=invoice.issued_us,
                    who=by,
                    action="invoice issue",
                    tenant=tenant,
                    what=what,
                ),
            )
            db.commit()


def _check_same(invoice: IssuedInvoice, terms: IssueTerms) -> None:
    """Raise when what is asked for now is not what was issued."""
    asked = (
        (terms.currency, invoice.currency, "currency"),
        (terms.exchange or None, invoice.exchange, "exchange rates"),
        (terms.contract.sha256 or None, invoice.contract_sha256, "contract"),
        (None if terms.rates is None else terms.rates.digest, invoice.prices_sha256, "price book"),
    )
    for wanted, had, what in asked:
        if wanted is not None and wanted != had:
            raise BillingError(
                f"{invoice.period} was issued as {invoice.id} with another {what}: an issued"
                " invoice never changes"
            )


def _ledger_id(db: sa.Connection, tenant: str, ledger: CoveredLedger) -> int:
    return int(
        db.execute(
            sa.select(LEDGER.c.id).where(
                LEDGER.c.tenant == tenant,
                LEDGER.c.node == ledger.node,
                LEDGER.c.epoch == ledger.epoch,
            )
        ).scalar_one()
    )


def _insert(db: sa.Connection, table: sa.Table, rows: list[dict[str, Any]]) -> None:
    if rows:
        db.execute(sa.insert(table), rows)
