"""The invoice of a month, worked out from one moment of the books.

Nothing is written here. What is covered follows from the invoices before and from the
order of the chain alone, so whoever works it out twice gets the same.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import sqlalchemy as sa

from qcbridge.billing.bill import TermsThen, Why, gather, make_lines, round_half_even
from qcbridge.billing.charges import Charges, Origin, Stretch, history, used_at
from qcbridge.billing.contracts import MICRO, Contract, ExchangeRate, Pack, check_currency
from qcbridge.billing.invoices import from_us, month_of, next_month
from qcbridge.billing.issued_paper import (
    FORMAT,
    Beside,
    Capture,
    CoveredLedger,
    Decision,
    IssuedInvoice,
    PackLine,
    decode_invoice,
    total_micro,
)
from qcbridge.billing.merkle import MerkleTree
from qcbridge.billing.paper_tables import (
    CAPTURE,
    INVOICE,
    INVOICE_DECISION,
    INVOICE_LEDGER,
    INVOICE_PACK,
    PACK,
)
from qcbridge.billing.tables import ENTRY, HEADING, LEDGER, RESOLUTION
from qcnode.books.attempts import State
from qcnode.errors import BillingError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Sequence

    from qcbridge.billing.bill import GroupKey, InvoiceLine, Rates
    from qcbridge.billing.invoices import Period

DEFAULT_ISSUER: Final = "qcnode billing"
_WAITING: Final = (State.RESERVED, State.INTENT, State.INDETERMINATE, State.UNPRICED)
_STREAM_ROWS: Final = 10_000
_HALF: Final = 2**32


@dataclass(frozen=True, slots=True, kw_only=True)
class IssueTerms:
    """What an invoice is worked out by, beside the entries.

    `opening` says that the tenant's books begin with this month, whatever is older.
    """

    rates: Rates | None
    currency: str | None = None
    exchange: tuple[ExchangeRate, ...] = ()
    contract: Contract = field(default_factory=Contract)
    issuer: str = DEFAULT_ISSUER
    opening: bool = False


class Draft:
    """One invoice before it is issued; a preview may be of any month that is not closed.

    `stretches` are the entries it covers.
    """

    def __init__(
        self,
        db: sa.Connection,
        tenant: str,
        period: Period,
        terms: IssueTerms,
        *,
        now_us: int,
        preview: bool = False,
    ) -> None:
        self._db = db
        self._tenant = tenant
        self._period = period
        self._terms = terms
        self._now_us = now_us
        self._preview = preview
        self._last = db.execute(
            sa.select(INVOICE)
            .where(INVOICE.c.tenant == tenant)
            .order_by(INVOICE.c.number.desc())
            .limit(1)
        ).one_or_none()
        self._number = 1 if self._last is None else self._last.number + 1
        self._check_order()
        # A preview of a month before which others are still open leaves those to them.
        self._skips = preview and (
            self._last is None or next_month(self._last.period) != period.name
        )
        self._whole = tuple(self._uncovered())
        self.stretches = tuple(self._of_this_month()) if self._skips else self._whole

    def make(self) -> IssuedInvoice:
        """Return the invoice."""
        terms, period = self._terms, self._period
        decisions = self._decisions()
        self.stretches += tuple(self._empty(decisions))
        charges = Charges(
            self._db,
            period,
            self._number,
            frozenset(one.id for one in decisions),
            lenient=self._skips,
        )
        groups = gather(cell for cells in charges.nodes(self.stretches) for cell in cells)
        if not self._preview:
            self._check_volumes(groups)
        packs = [
            (pack, left)
            for pack, left in packs_left(self._db, self._tenant)
            if left and pack.bought_us < period.to_us and pack.until_us > period.from_us
        ]
        bought = self._unbilled_packs()
        priced_in = {key.currency for key in groups} | {pack.currency for pack in bought}
        currency = self._currency(priced_in)
        lines, draws = make_lines(
            groups,
            period=period.name,
            rates=terms.rates,
            contract=terms.contract,
            packs=packs,
            exchange=terms.exchange,
            currency=currency or None,
            earlier=_EarlierTerms(self._db, self._tenant),
        )
        purchases = tuple(self._purchase(pack, currency) for pack in bought) if currency else ()
        used = {draw.pack for draw in draws} | {pack.id for pack in bought}
        return IssuedInvoice(
            format=FORMAT,
            tenant=self._tenant,
            number=self._number,
            period=period.name,
            currency=currency,
            issuer=terms.issuer,
            issued_us=self._now_us,
            previous_sha256="" if self._last is None else bytes(self._last.sha256).hex(),
            prices_sha256="" if terms.rates is None else terms.rates.digest,
            contract_sha256=terms.contract.sha256,
            terms=terms.contract.terms,
            exchange=terms.exchange,
            packs=tuple(pack for pack, _ in packs_left(self._db, self._tenant) if pack.id in used),
            draws=draws,
            ledgers=tuple(self._covered(stretch, charges.corrects) for stretch in self.stretches),
            decisions=tuple(self._named(one, charges.corrects) for one in decisions),
            lines=lines,
            purchases=purchases,
            total_micro=total_micro(lines, purchases) if currency else 0,
            beside=self._beside(frozenset(one.id for one in decisions)),
            capture=self._capture(),
        )

    def _check_volumes(self, groups: Iterable[GroupKey]) -> None:
        """Raise when a price falls with the month's volume and no contract says how far.

        A node does not know what others used: it prices each request as the month's first.
        """
        rates, contract = self._terms.rates, self._terms.contract
        if rates is None:
            return
        for key in groups:
            falling = [row for row in key.rows if rates.falls_with_volume(row)]
            term = contract.term(key.provider, key.model, self._period.name)
            if falling and key.why in (Why.USAGE, Why.LATE) and (term is None or not term.tiers):
                raise BillingError(
                    f"{falling[0]} falls with the volume of a month, and every request is on record"
                    f" as its first: state the tiers of {key.model} in a contract (--contract)"
                )

    def _check_order(self) -> None:
        """Raise when another month comes first: an invoice takes in all that is older."""
        period, last = self._period, self._last
        if self._preview and (last is None or period.name > last.period):
            return
        if last is not None:
            if period.name <= last.period:
                raise BillingError(
                    f"{period.name} is closed, {last.period} was the last to be issued:"
                    " what came late is on the next invoice"
                )
            wanted = next_month(last.period)
            if period.name != wanted:
                raise BillingError(
                    f"{wanted} comes before {period.name} and was not issued: issue it first"
                )
            return
        first = self._db.execute(
            sa.select(sa.func.min(sa.func.coalesce(ENTRY.c.at_us, ENTRY.c.stored_us)))
            .join(LEDGER, LEDGER.c.id == ENTRY.c.ledger_id)
            .where(LEDGER.c.tenant == self._tenant, ENTRY.c.seq == 1)
        ).scalar_one()
        if first is None or self._terms.opening or first >= period.from_us:
            return
        begin = month_of(from_us(first)).name
        raise BillingError(
            f"these books begin in {begin}: issue that month first, or say with --opening that"
            f" they open with {period.name} and all that is older is late use"
        )

    def _uncovered(self) -> Iterator[Stretch]:
        """Yield what no invoice covers yet and was written by the end of the month.

        A node whose clock runs ahead is held to the time when its entries came here.
        """
        covered = (
            sa.select(INVOICE_LEDGER.c.ledger_id, sa.func.max(INVOICE_LEDGER.c.last_seq))
            .join(LEDGER, LEDGER.c.id == INVOICE_LEDGER.c.ledger_id)
            .where(LEDGER.c.tenant == self._tenant)
            .group_by(INVOICE_LEDGER.c.ledger_id)
        )
        upto = {int(ledger_id): int(last) for ledger_id, last in self._db.execute(covered)}
        ledgers = self._db.execute(
            sa.select(LEDGER)
            .where(LEDGER.c.tenant == self._tenant)
            .order_by(LEDGER.c.node, LEDGER.c.id)
        ).all()
        for ledger in ledgers:
            done = upto.get(ledger.id, 0)
            last = self._last_before(ledger.id, done, ledger.acked_seq, self._period.to_us)
            if last > done:
                yield Stretch(ledger.id, ledger.node, ledger.epoch, done + 1, last)

    def _of_this_month(self) -> Iterator[Stretch]:
        for stretch in self._whole:
            done = stretch.first_seq - 1
            before = self._last_before(
                stretch.ledger_id, done, stretch.last_seq, self._period.from_us
            )
            if before < stretch.last_seq:
                yield stretch._replace(first_seq=before + 1)

    def _last_before(self, ledger_id: int, done: int, last: int, until_us: int) -> int:
        """Return the last entry after `done`, up to `last`, before all of a later month."""
        after = self._db.execute(
            sa.select(ENTRY.c.seq)
            .where(
                ENTRY.c.ledger_id == ledger_id,
                ENTRY.c.seq > done,
                ENTRY.c.at_us >= until_us,
                ENTRY.c.stored_us >= until_us,
            )
            .order_by(ENTRY.c.seq)
            .limit(1)
        ).scalar_one_or_none()
        return last if after is None else min(after - 1, last)

    def _empty(self, decisions: Collection[Any]) -> Iterator[Stretch]:
        """Yield ledgers of which nothing is new but a decision, as stretches of no entry."""
        known = {stretch.ledger_id for stretch in self.stretches}
        upto = self._covered_upto({row.ledger_id for row in decisions} - known)
        for ledger in {row.ledger_id: row for row in decisions}.values():
            if ledger.ledger_id not in known:
                last = upto[ledger.ledger_id]
                yield Stretch(ledger.ledger_id, ledger.node, ledger.epoch, last + 1, last)

    def _decisions(self) -> list[Any]:
        """Return the decisions that are on no invoice and whose attempts are on this or one before.

        A decision about an attempt of a later month waits for that month.
        """
        rows = self._db.execute(
            sa.select(RESOLUTION, LEDGER.c.node, LEDGER.c.epoch)
            .join(LEDGER, LEDGER.c.id == RESOLUTION.c.ledger_id)
            .outerjoin(INVOICE_DECISION, INVOICE_DECISION.c.resolution_id == RESOLUTION.c.id)
            .where(LEDGER.c.tenant == self._tenant, INVOICE_DECISION.c.resolution_id.is_(None))
            .order_by(RESOLUTION.c.id)
        ).all()
        upto = self._covered_upto({row.ledger_id for row in rows})
        kept: list[Any] = []
        for ledger_id in sorted({row.ledger_id for row in rows}):
            mine = [row for row in rows if row.ledger_id == ledger_id]
            steps_of = history(self._db, ledger_id, {row.subject for row in mine})
            for row in mine:
                steps = [
                    step
                    for step in steps_of.get(row.subject, [])
                    if row.step is None or step.step < row.step
                ]
                seqs = [step.seq for step in steps if step.seq is not None]
                seqs.append(row.releases_seq or 0)
                used_us = used_at(steps) if steps else row.at_us
                in_time = used_us < self._period.to_us and not (
                    self._skips and used_us < self._period.from_us
                )
                if max(seqs) <= upto[ledger_id] and in_time:
                    kept.append(row)
        return sorted(kept, key=lambda row: row.id)

    def _covered_upto(self, ledger_ids: Collection[int]) -> dict[int, int]:
        upto = dict.fromkeys(ledger_ids, 0)
        for ledger_id in ledger_ids:
            upto[ledger_id] = (
                self._db.execute(
                    sa.select(sa.func.max(INVOICE_LEDGER.c.last_seq)).where(
                        INVOICE_LEDGER.c.ledger_id == ledger_id
                    )
                ).scalar_one()
                or 0
            )
        for stretch in self._whole:
            upto[stretch.ledger_id] = stretch.last_seq
        return upto

    def _currency(self, priced_in: Collection[str]) -> str:
        if self._terms.currency is not None:
            return check_currency(self._terms.currency)
        if self._preview:
            return ""
        if len(priced_in) == 1:
            return next(iter(priced_in))
        if not priced_in and self._last is not None:
            return str(self._last.currency)
        return ""

    def _covered(self, stretch: Stretch, corrects: dict[Origin, int]) -> CoveredLedger:
        if self._preview:  # What a tree hash covers is settled when it is issued.
            return self._seen(stretch)
        tree = MerkleTree()
        quarantined: list[int] = []
        repeats: list[int] = []
        mine: list[tuple[int, int]] = []
        query = (
            sa.select(
                ENTRY.c.seq,
                ENTRY.c.hash,
                ENTRY.c.resolution_id,
                ENTRY.c.quarantine.is_not(None).label("quarantined"),
                ENTRY.c.kind,
            )
            .where(
                ENTRY.c.ledger_id == stretch.ledger_id,
                ENTRY.c.seq.between(stretch.first_seq, stretch.last_seq),
            )
            .order_by(ENTRY.c.seq)
            .execution_options(yield_per=_STREAM_ROWS)
        )
        for seq, digest, resolution_id, is_quarantined, kind in self._db.execute(query):
            tree.add(bytes(digest))
            if is_quarantined:
                quarantined.append(seq)
            elif resolution_id is not None:
                repeats.append(seq)
            elif kind == "adjusted":
                mine += self._corrected(stretch, seq, corrects)
        if tree.size != stretch.last_seq - stretch.first_seq + 1:
            raise BillingError(
                f"{stretch.node}, epoch {stretch.epoch}: entries are missing between"
                f" {stretch.first_seq} and {stretch.last_seq}: restore a backup"
            )
        return CoveredLedger(
            node=stretch.node,
            epoch=stretch.epoch,
            first_seq=stretch.first_seq,
            last_seq=stretch.last_seq,
            root=tree.root().hex(),
            quarantined=tuple(quarantined),
            repeats=tuple(repeats),
            corrects=tuple(mine),
        )

    def _seen(self, stretch: Stretch) -> CoveredLedger:
        quarantined = self._db.execute(
            sa.select(ENTRY.c.seq).where(
                ENTRY.c.ledger_id == stretch.ledger_id,
                ENTRY.c.seq.between(stretch.first_seq, stretch.last_seq),
                ENTRY.c.quarantine.is_not(None),
            )
        ).scalars()
        return CoveredLedger(
            node=stretch.node,
            epoch=stretch.epoch,
            first_seq=stretch.first_seq,
            last_seq=stretch.last_seq,
            root="",
            quarantined=tuple(quarantined),
        )

    def _corrected(
        self, stretch: Stretch, seq: int, corrects: dict[Origin, int]
    ) -> list[tuple[int, int]]:
        number = corrects.get(Origin(stretch.ledger_id, seq, None))
        return [] if number is None else [(seq, number)]

    def _named(self, row: Any, corrects: dict[Origin, int]) -> Decision:
        return Decision(
            id=row.id,
            epoch=row.epoch,
            attempt_id=row.subject,
            body=row.body,
            releases_seq=row.releases_seq,
            corrects=corrects.get(Origin(row.ledger_id, None, row.id)),
        )

    def _unbilled_packs(self) -> list[Pack]:
        billed = set(
            self._db.execute(
                sa.select(INVOICE_PACK.c.pack_id).where(
                    INVOICE_PACK.c.tenant == self._tenant, INVOICE_PACK.c.bought == 1
                )
            ).scalars()
        )
        return [
            pack
            for pack, _ in packs_left(self._db, self._tenant)
            if pack.id not in billed and pack.bought_us < self._period.to_us
        ]

    def _purchase(self, pack: Pack, currency: str) -> PackLine:
        rates = {currency: MICRO} | {
            rate.currency: rate.rate_micro for rate in self._terms.exchange
        }
        rate_micro = rates.get(pack.currency)
        if rate_micro is None:
            raise BillingError(
                f"pack {pack.id} is priced in {pack.currency} and the invoice is in {currency}:"
                f" state the rate with --rate {pack.currency}=..."
            )
        return PackLine(
            pack=pack,
            rate_micro=rate_micro,
            amount_micro=round_half_even(pack.price_micro * rate_micro, MICRO),
        )

    def _beside(self, decisions: frozenset[int]) -> tuple[Beside, ...]:
        """Say what is held or unpriced at the end, from what was so before and what moved."""
        sums: dict[tuple[str, str, str], list[int]] = {}

        def count(
            state: str | None, provider: str, currency: str | None, n: int, pico: int
        ) -> None:
            if state in _WAITING and currency is not None:
                held = sums.setdefault((str(state), provider, currency), [0, 0])
                held[0] += n
                held[1] += pico

        if self._last is not None:
            for one in decode_invoice(self._last.body.encode()).beside:
                count(one.state, one.provider, one.currency, one.attempts, one.hold_pico)
        for row in self._moved(decisions):
            steps = int(row.steps)
            if row.hold_currency is not None:
                count(row.state, row.provider, row.hold_currency, steps, _joined(row, "hold"))
            if row.hold_was_currency is not None:
                count(
                    row.was, row.provider, row.hold_was_currency, -steps, -_joined(row, "hold_was")
                )
        return tuple(
            Beside(state=state, provider=provider, currency=currency, attempts=n, hold_pico=pico)
            for (state, provider, currency), (n, pico) in sorted(sums.items())
            if n
        )

    def _moved(self, decisions: frozenset[int]) -> Iterator[Any]:
        for stretch in self._whole:
            inside = (ENTRY.c.ledger_id == stretch.ledger_id) & ENTRY.c.seq.between(
                stretch.first_seq, stretch.last_seq
            )
            yield from self._db.execute(_select_moved(ENTRY, inside))
        if decisions:
            ids = sa.select(RESOLUTION.c.id).where(RESOLUTION.c.id.in_(decisions))
            yield from self._db.execute(_select_moved(RESOLUTION, RESOLUTION.c.id.in_(ids)))

    def _capture(self) -> tuple[Capture, ...]:
        return capture_of(self._db, self._tenant, self._period.name)


class _EarlierTerms:
    """The terms of the invoices that were issued before, read when they are asked for."""

    def __init__(self, db: sa.Connection, tenant: str) -> None:
        self._db = db
        self._tenant = tenant
        self._invoices: dict[int, IssuedInvoice] = {}

    def terms(
        self, number: int, provider: str, model: str, token_class: str, currency: str
    ) -> TermsThen:
        """Return the terms at which invoice `number` billed these tokens."""
        if number not in self._invoices:
            body = self._db.execute(
                sa.select(INVOICE.c.body).where(
                    INVOICE.c.tenant == self._tenant, INVOICE.c.number == number
                )
            ).scalar_one()
            self._invoices[number] = decode_invoice(body.encode())
        invoice = self._invoices[number]
        lines = [
            line
            for line in invoice.lines
            if (line.provider, line.model, line.currency) == (provider, model, currency)
        ]
        lines = [line for line in lines if line.token_class == token_class] or lines
        used = [line for line in lines if line.why in (Why.USAGE, Why.LATE)] or lines
        return terms_then(used)


def terms_then(lines: Sequence[InvoiceLine]) -> TermsThen:
    """Return at what terms lines of one price and month were billed.

    What was taken from a pack was not charged: of what is taken back, that share is not
    given back either.
    """
    charged = [line for line in lines if line.pack is None]
    if not lines:
        return TermsThen(None, 0, (0, 1), MICRO)
    if not charged:
        return TermsThen(None, 0, (1, 1), lines[0].rate_micro)
    one = charged[0]
    taken = sum(line.tokens for line in lines if line.pack is not None)
    whole = sum(line.tokens for line in lines)
    back, of = one.rebate
    if taken and whole > 0:
        back, of = back * whole + taken * of - back * taken, of * whole
    shared = math.gcd(back, of) or 1
    return TermsThen(one.term, one.discount_bp, (back // shared, of // shared), one.rate_micro)


def capture_of(db: sa.Connection, tenant: str, period: str) -> tuple[Capture, ...]:
    """Return how much of each provider's bill for a month is on record, by its latest files."""
    rows = db.execute(
        sa.select(CAPTURE)
        .where(CAPTURE.c.tenant == tenant, CAPTURE.c.day.startswith(period))
        .order_by(CAPTURE.c.taken_us)
    )
    latest = {(row.provider, row.day, row.unit): (row.ours, row.billed) for row in rows}
    sums: dict[tuple[str, str], list[int]] = {}
    for (provider, _day, unit), (ours, billed) in latest.items():
        both = sums.setdefault((provider, unit), [0, 0])
        both[0] += ours
        both[1] += billed
    return tuple(
        Capture(provider=provider, currency=unit, ours_pico=ours, billed_pico=billed)
        for (provider, unit), (ours, billed) in sorted(sums.items())
    )


def packs_left(db: sa.Connection, tenant: str) -> Iterator[tuple[Pack, int]]:
    """Yield a tenant's packs in the order they were bought, and what is left in each."""
    taken = {
        pack_id: int(tokens)
        for pack_id, tokens in db.execute(
            sa.select(INVOICE_PACK.c.pack_id, sa.func.sum(INVOICE_PACK.c.tokens))
            .where(INVOICE_PACK.c.tenant == tenant)
            .group_by(INVOICE_PACK.c.pack_id)
        )
    }
    for row in db.execute(
        sa.select(PACK).where(PACK.c.tenant == tenant).order_by(PACK.c.bought_us, PACK.c.id)
    ):
        yield pack_of(row), row.tokens - taken.get(row.id, 0)


def pack_of(row: Any) -> Pack:
    """Return the pack that a row of `pack` is about."""
    return Pack(**{name: getattr(row, name) for name in Pack.__slots__})


def _select_moved(table: sa.Table, where: sa.ColumnElement[bool]) -> sa.Select[Any]:
    columns = table.c
    alike = (
        HEADING.c.provider,
        columns.state,
        columns.was,
        columns.hold_currency,
        columns.hold_was_currency,
    )
    return (
        sa.select(
            *alike,
            sa.func.count().label("steps"),
            # In two halves, because SQLite's sums stop at 64 bits.
            *(
                sa.func.coalesce(sa.func.sum(half), 0).label(f"{name}_{part}")
                for name in ("hold", "hold_was")
                for part, half in (
                    ("high", columns[f"{name}_pico"] // _HALF),
                    ("low", columns[f"{name}_pico"] % _HALF),
                )
            ),
        )
        .join(HEADING, HEADING.c.id == columns.heading_id)
        .where(where, columns.step.is_not(None))
        .group_by(*alike)
    )


def _joined(row: Any, name: str) -> int:
    return int(getattr(row, f"{name}_high")) * _HALF + int(getattr(row, f"{name}_low"))
