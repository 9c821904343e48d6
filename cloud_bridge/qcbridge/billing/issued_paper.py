"""An issued invoice as a value, and as the bytes that are kept for good.

Pure. The document says everything that is needed to work it out again from the nodes'
own ledgers: which entries it covers and the tree hash over them, what this server
decided beside them, by which price book, terms, packs and exchange rates, and the hash
of the invoice before it. It is written once, in the one canonical form, and never again.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import msgspec

from qcbridge.billing.bill import Draw, InvoiceLine  # noqa: TC001  # read by msgspec
from qcbridge.billing.contracts import Contract, ExchangeRate, Pack, Term
from qcnode.books import chain
from qcnode.errors import BillingError

if TYPE_CHECKING:
    from collections.abc import Iterable

FORMAT: Final = "qcnode.invoice.v1"
NUMBER_DIGITS: Final = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class CoveredLedger:
    """The stretch of one ledger that an invoice bills, and no other does.

    `root` is the RFC 6962 tree hash over the hashes of its entries. `quarantined` are
    entries that move nothing until somebody has looked, `repeats` those that only write
    down what this server decided before, `corrects` those that put right what another
    invoice billed (seq, number).
    """

    node: str
    epoch: str
    first_seq: int
    last_seq: int
    root: str
    quarantined: tuple[int, ...] = ()
    repeats: tuple[int, ...] = ()
    corrects: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What the billing server decided about an attempt, and this invoice bills.

    `body` is written as an entry's is. `releases_seq` is the quarantined entry it lets
    count; `corrects` the earlier invoice it puts right.
    """

    id: int
    epoch: str
    attempt_id: str
    body: str
    releases_seq: int | None = None
    corrects: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PackLine:
    """A pack of tokens that was bought, and what it costs on this invoice."""

    pack: Pack
    rate_micro: int
    amount_micro: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Beside:
    """What is known to exist and is on no line: held, or without a price; by state and provider.

    `state` is reserved, intent, indeterminate or unpriced; `hold_pico` is the most that
    it can cost.
    """

    state: str
    provider: str
    currency: str
    attempts: int
    hold_pico: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Capture:
    """How much of what a provider billed for the month is on our record."""

    provider: str
    currency: str
    ours_pico: int
    billed_pico: int


@dataclass(frozen=True, slots=True, kw_only=True)
class IssuedInvoice:
    """What one tenant owes for one month, as it was issued."""

    format: str
    tenant: str
    number: int
    period: str
    currency: str
    issuer: str
    issued_us: int
    previous_sha256: str
    prices_sha256: str
    contract_sha256: str
    terms: tuple[Term, ...]
    exchange: tuple[ExchangeRate, ...]
    packs: tuple[Pack, ...]
    draws: tuple[Draw, ...]
    ledgers: tuple[CoveredLedger, ...]
    decisions: tuple[Decision, ...]
    lines: tuple[InvoiceLine, ...]
    purchases: tuple[PackLine, ...]
    total_micro: int
    beside: tuple[Beside, ...] = ()
    capture: tuple[Capture, ...] = ()

    @property
    def id(self) -> str:
        """What people call it."""
        return invoice_id(self.tenant, self.number)

    @property
    def contract(self) -> Contract:
        """The terms it was worked out by."""
        return Contract(terms=self.terms, sha256=self.contract_sha256)


_DECODER = msgspec.json.Decoder(IssuedInvoice)


def invoice_id(tenant: str, number: int) -> str:
    """Return what an invoice is called, as in acme-000001."""
    return f"{tenant}-{number:0{NUMBER_DIGITS}d}"


def encode_invoice(invoice: IssuedInvoice) -> bytes:
    """Write the document that is kept."""
    return chain.canonical(invoice)


def decode_invoice(raw: bytes) -> IssuedInvoice:
    """Read a document back; raises `BillingError` when it is none."""
    try:
        invoice = _DECODER.decode(raw)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise BillingError(f"this is no issued invoice: {error}") from error
    if invoice.format != FORMAT:
        raise BillingError(f"an invoice of another form: {invoice.format!r:.60}")
    return invoice


def invoice_sha256(raw: bytes) -> str:
    """Return the hash by which the next invoice holds on to this one."""
    return hashlib.sha256(raw).hexdigest()


def total_micro(lines: Iterable[InvoiceLine], purchases: Iterable[PackLine] = ()) -> int:
    """Add up what is billed, all of it in the invoice's own currency."""
    return sum(line.amount_micro for line in lines) + sum(one.amount_micro for one in purchases)
