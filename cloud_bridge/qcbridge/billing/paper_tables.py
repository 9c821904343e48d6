"""The tables of the papers: invoices and what they cover, packs, providers' files.

What is here was concluded from the books and sent out, so it is kept as it was: the
database refuses to change or delete any of it, an invoice number cannot be skipped, and
no stretch of a ledger and no decision can be on two invoices. The same conventions as in
`tables`; money on an invoice is in micro-units of its currency.
"""

from sqlalchemy import CheckConstraint, Column, LargeBinary, Table, Text, UniqueConstraint
from sqlmodel import Field

from qcbridge.billing.tables import BIG, METADATA, STRICT, _Billing


class InvoiceRow(_Billing, table=True):
    """One issued invoice: its document, and what is looked up of it."""

    __tablename__ = "invoice"
    __table_args__ = (
        UniqueConstraint("tenant", "period"),
        CheckConstraint("number >= 1", name="number"),
        CheckConstraint("length(sha256) = 32", name="sha256"),
        STRICT,
    )

    tenant: str = Field(sa_column=Column(Text, primary_key=True))
    number: int = Field(sa_column=Column(BIG, primary_key=True, autoincrement=False))
    period: str = Field(sa_type=Text)
    currency: str = Field(sa_type=Text)
    total_micro: int = Field(sa_type=BIG)
    issued_us: int = Field(sa_type=BIG)
    issued_by: str = Field(sa_type=Text)
    sha256: bytes = Field(sa_type=LargeBinary)
    body: str = Field(sa_type=Text)


class InvoiceLedgerRow(_Billing, table=True):
    """The stretch of one ledger that an invoice covers; each begins where the last one ended."""

    __tablename__ = "invoice_ledger"
    __table_args__ = (
        CheckConstraint("first_seq >= 1 AND first_seq <= last_seq", name="seq"),
        STRICT,
    )

    ledger_id: int = Field(sa_column=Column(BIG, primary_key=True, autoincrement=False))
    number: int = Field(sa_column=Column(BIG, primary_key=True, autoincrement=False))
    first_seq: int = Field(sa_type=BIG)
    last_seq: int = Field(sa_type=BIG)


class InvoiceDecisionRow(_Billing, table=True):
    """On which invoice a decision of this server is."""

    __tablename__ = "invoice_decision"
    __table_args__ = (STRICT,)

    resolution_id: int = Field(sa_column=Column(BIG, primary_key=True, autoincrement=False))
    tenant: str = Field(sa_type=Text)
    number: int = Field(sa_type=BIG)


class PackRow(_Billing, table=True):
    """Tokens a tenant has bought in advance."""

    __tablename__ = "pack"
    __table_args__ = (
        CheckConstraint("tokens >= 1", name="tokens"),
        CheckConstraint("price_micro >= 0", name="price_micro"),
        STRICT,
    )

    tenant: str = Field(sa_column=Column(Text, primary_key=True))
    id: str = Field(sa_column=Column(Text, primary_key=True))
    provider: str = Field(sa_type=Text)
    model: str = Field(sa_type=Text)
    token_class: str = Field(sa_type=Text)
    tokens: int = Field(sa_type=BIG)
    price_micro: int = Field(sa_type=BIG)
    currency: str = Field(sa_type=Text)
    bought_us: int = Field(sa_type=BIG)
    until_us: int = Field(sa_type=BIG)
    recorded_us: int = Field(sa_type=BIG)
    recorded_by: str = Field(sa_type=Text)


class InvoicePackRow(_Billing, table=True):
    """What an invoice takes from a pack; `bought` is 1 on the invoice that charges for it."""

    __tablename__ = "invoice_pack"
    __table_args__ = (
        CheckConstraint("tokens >= 0", name="tokens"),
        CheckConstraint("bought IN (0, 1)", name="bought"),
        STRICT,
    )

    tenant: str = Field(sa_column=Column(Text, primary_key=True))
    pack_id: str = Field(sa_column=Column(Text, primary_key=True))
    number: int = Field(sa_column=Column(BIG, primary_key=True, autoincrement=False))
    tokens: int = Field(sa_type=BIG)
    bought: int = Field(sa_type=BIG)


class ProviderFileRow(_Billing, table=True):
    """A provider's export that was compared with the books, and what that has shown."""

    __tablename__ = "provider_file"
    __table_args__ = (CheckConstraint("length(sha256) = 32", name="sha256"), STRICT)

    tenant: str = Field(sa_column=Column(Text, primary_key=True))
    sha256: bytes = Field(sa_column=Column(LargeBinary, primary_key=True))
    provider: str = Field(sa_type=Text)
    name: str = Field(sa_type=Text)
    from_us: int = Field(sa_type=BIG)
    to_us: int = Field(sa_type=BIG)
    records: int = Field(sa_type=BIG)
    taken_us: int = Field(sa_type=BIG)
    taken_by: str = Field(sa_type=Text)
    report: str = Field(sa_type=Text)


class CaptureRow(_Billing, table=True):
    """How much of what a provider billed for a day is on our record, as one file shows it.

    `unit` is a currency, with amounts in pico-units, or `tokens`.
    """

    __tablename__ = "capture"
    __table_args__ = (CheckConstraint("ours >= 0 AND billed >= 0", name="amounts"), STRICT)

    tenant: str = Field(sa_column=Column(Text, primary_key=True))
    provider: str = Field(sa_column=Column(Text, primary_key=True))
    day: str = Field(sa_column=Column(Text, primary_key=True))
    unit: str = Field(sa_column=Column(Text, primary_key=True))
    sha256: bytes = Field(sa_column=Column(LargeBinary, primary_key=True))
    ours: int = Field(sa_type=BIG)
    billed: int = Field(sa_type=BIG)
    taken_us: int = Field(sa_type=BIG)


INVOICE: Table = METADATA.tables["invoice"]
INVOICE_LEDGER: Table = METADATA.tables["invoice_ledger"]
INVOICE_DECISION: Table = METADATA.tables["invoice_decision"]
PACK: Table = METADATA.tables["pack"]
INVOICE_PACK: Table = METADATA.tables["invoice_pack"]
PROVIDER_FILE: Table = METADATA.tables["provider_file"]
CAPTURE: Table = METADATA.tables["capture"]
