"""An issued invoice, worked out again from the nodes' own ledgers.

Offline: it takes the document, exports of the ledgers and the price book, and trusts
none of them. The chain of every export is checked and its tree hash compared with the
document's; what the entries say is followed attempt by attempt, as the node's books do
it, and made into lines again. The billing server adds its columns up and this reads the
hashed bodies, so the two have nothing in common but the arithmetic of a line. Whatever
differs is named, line by line. An export of any length is read in little memory.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import msgspec

from qcbridge.billing.bill import (
    GroupKey,
    InvoiceLine,
    Sums,
    TermsThen,
    Why,
    make_lines,
    round_half_even,
)
from qcbridge.billing.charges import when
from qcbridge.billing.contracts import MICRO
from qcbridge.billing.invoices import format_micro, month
from qcbridge.billing.issued_paper import total_micro
from qcbridge.billing.merkle import MerkleTree
from qcnode.books import chain
from qcnode.books.attempts import LIVE, Standing, advance, subject_of
from qcnode.books.export import EXPORT_FORMAT
from qcnode.errors import BillingError, LedgerCorruptError
from qcnode.money import (
    Adjusted,
    EpochOpened,
    Intent,
    Leased,
    Outcome,
    Reconciled,
    Reserved,
    Settled,
    TokenUsage,
    WrittenOff,
    format_pico,
    tokens_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    from qcbridge.billing.book_rates import BookRates
    from qcbridge.billing.invoices import Period
    from qcbridge.billing.issued_paper import CoveredLedger, Decision, IssuedInvoice
    from qcnode.money import Cost, LedgerFact

_NO_ENTRY: Final = (b'{"checkpoint"', b'{"end"')
"""What follows the entries of an export: the signed notes, and the end."""
PROBLEMS_MAX: Final = 1_000
_TOLD_EVERY: Final = 100_000
_LATER: Final = frozenset({"reconciled", "adjusted", "written_off"})


class _Header(msgspec.Struct):
    format: str
    epoch: str


class _Row(msgspec.Struct, gc=False):
    seq: int
    body: str
    hash: str


class _Kind(msgspec.Struct, gc=False):
    kind: str


_HEADER = msgspec.json.Decoder(_Header)
_ROW = msgspec.json.Decoder(_Row)
_KIND = msgspec.json.Decoder(_Kind)


@dataclass(slots=True)
class Verification:
    """What was found: how much was read, and everything that is not as the invoice says."""

    invoice: str
    entries: int = 0
    lines: int = 0
    problems: list[str] = field(default_factory=list)
    problem_count: int = 0

    @property
    def verified(self) -> bool:
        """Whether all of it was worked out again and nothing differs."""
        return self.problem_count == 0

    def blame(self, words: str) -> None:
        """Note a difference; beyond a bound they are counted only."""
        self.problem_count += 1
        if len(self.problems) < PROBLEMS_MAX:
            self.problems.append(words)


@dataclass(slots=True)
class _Attempt:
    """An attempt as its own ledger tells it."""

    standing: Standing
    used_us: int
    usage: TokenUsage | None = None


def verify_invoice(
    invoice: IssuedInvoice,
    exports: Iterable[Path],
    rates: BookRates,
    *,
    tell: Callable[[int], None] | None = None,
) -> Verification:
    """Work `invoice` out again from exports and price book, and say what differs.

    `tell` hears from time to time how many entries were read.
    """
    found = Verification(invoice=invoice.id)
    if rates.digest != invoice.prices_sha256:
        found.blame(
            f"price book: the invoice names {invoice.prices_sha256[:16]}, this one is"
            f" {rates.digest[:16]}"
        )
    by_epoch: dict[str, Path] = {}
    for path in exports:
        by_epoch[_epoch_of(path)] = path
    again = _Again(invoice, rates, found, tell)
    for ledger in invoice.ledgers:
        export = by_epoch.get(ledger.epoch)
        if export is None:
            found.blame(f"{ledger.node}, epoch {ledger.epoch}: no export of this ledger was given")
            continue
        again.read(ledger, export)
    _compare(invoice, again.lines(), found)
    return found


class _Again:
    """Gathers what the ledgers say into the groups that lines are made of."""

    def __init__(
        self,
        invoice: IssuedInvoice,
        rates: BookRates,
        found: Verification,
        tell: Callable[[int], None] | None,
    ) -> None:
        self._invoice = invoice
        self._rates = rates
        self._found = found
        self._tell = tell
        self._period: Period = month(invoice.period)
        self._groups: dict[GroupKey, Sums] = {}
        self._decisions: dict[str, list[Decision]] = {}
        for decision in invoice.decisions:
            self._decisions.setdefault(decision.epoch, []).append(decision)

    def lines(self) -> tuple[InvoiceLine, ...]:
        """Return the lines that the entries make, at the terms that the invoice states."""
        invoice = self._invoice
        before = {draw.pack: draw.before for draw in invoice.draws}
        try:
            lines, _ = make_lines(
                self._groups,
                period=invoice.period,
                rates=self._rates,
                contract=invoice.contract,
                packs=[(pack, before[pack.id]) for pack in invoice.packs if pack.id in before],
                exchange=invoice.exchange,
                currency=invoice.currency,
                earlier=_StatedTerms(invoice.lines),
            )
        except BillingError as error:
            self._found.blame(str(error))
            return ()
        return lines

    def read(self, ledger: CoveredLedger, export: Path) -> None:
        """Read one ledger up to the last entry that the invoice covers."""
        decisions = self._decisions.get(ledger.epoch, [])
        wanted = {decision.attempt_id for decision in decisions}
        released = {one.releases_seq: one for one in decisions if one.releases_seq is not None}
        wanted |= self._check_chain(ledger, export)
        attempts: dict[str, _Attempt] = {}
        quarantined, repeats = frozenset(ledger.quarantined), frozenset(ledger.repeats)
        corrects = dict(ledger.corrects)
        for seq, body in _bodies(export, ledger.last_seq):
            covered = seq >= ledger.first_seq and seq not in repeats and seq not in quarantined
            if seq in released and released[seq].body.encode() != body:
                self._blame(ledger, seq, "is not the one that was let out of quarantine")
            try:
                _kind, at_us, fact = chain.read_body(seq, body)
                if isinstance(fact, Outcome | Leased | EpochOpened):
                    continue
                attempt = _follow(attempts, fact, at_us)
            except (LedgerCorruptError, ValueError) as error:
                if covered:
                    self._blame(ledger, seq, f"makes no sense: {error}")
                continue
            if covered:
                self._count(ledger, seq, attempt, fact, corrects.get(seq, 0))
            attempt_id = subject_of(fact)
            if attempt.standing.state not in LIVE and attempt_id not in wanted:
                del attempts[attempt_id]
        for decision in decisions:
            self._decide(ledger, decision, attempts.get(decision.attempt_id))

    def _check_chain(self, ledger: CoveredLedger, export: Path) -> set[str]:
        """Check every link and the tree hash; return the attempts whose history is needed."""
        prev_hash, tree, later = chain.genesis(ledger.epoch), MerkleTree(), set[str]()
        last = 0
        for seq, row, body in _rows(export, ledger.last_seq):
            digest = chain.entry_hash(seq, body, prev_hash)
            if row.seq != seq or digest.hex() != row.hash:
                self._blame(ledger, seq, "does not hang on the one before it, or was changed")
                break
            prev_hash, last = digest, seq
            if seq >= ledger.first_seq:
                tree.add(digest)
            if _kind_of(body) in _LATER:
                with contextlib.suppress(LedgerCorruptError):  # It is named further down.
                    later.add(subject_of(chain.read_body(seq, body)[2]))
            self._found.entries += 1
            if self._tell is not None and self._found.entries % _TOLD_EVERY == 0:
                self._tell(self._found.entries)
        if last < ledger.last_seq:
            self._found.blame(
                f"{ledger.node}, epoch {ledger.epoch}: the export ends at entry {last}, the"
                f" invoice covers up to {ledger.last_seq}"
            )
        elif tree.root().hex() != ledger.root:
            self._found.blame(
                f"{ledger.node}, epoch {ledger.epoch}: the tree hash over entries"
                f" {ledger.first_seq} to {ledger.last_seq} is {tree.root().hex()[:16]}, the"
                f" invoice says {ledger.root[:16]}"
            )
        return later

    def _count(
        self,
        ledger: CoveredLedger,
        seq: int,
        attempt: _Attempt,
        fact: LedgerFact,
        of_invoice: int,
    ) -> None:
        if isinstance(fact, Settled):
            if fact.cost is not None:
                self._add(ledger, attempt, fact.cost, fact.usage)
                self._check_price(ledger, seq, attempt, fact, fact.cost)
        elif isinstance(fact, Reconciled):
            self._add(ledger, attempt, fact.cost, attempt.usage)
        elif isinstance(fact, Adjusted):
            self._adjust(ledger, attempt, fact, of_invoice)

    def _decide(self, ledger: CoveredLedger, decision: Decision, attempt: _Attempt | None) -> None:
        fact = chain.read_body(decision.releases_seq or 0, decision.body.encode())[2]
        if isinstance(fact, Reserved | Intent | WrittenOff):
            return
        if attempt is None:
            self._found.blame(
                f"decision {decision.id}: attempt {decision.attempt_id} is not in the ledger of"
                f" {ledger.node}"
            )
        elif isinstance(fact, Settled):
            if fact.cost is not None:
                self._add(ledger, attempt, fact.cost, fact.usage)
        elif isinstance(fact, Reconciled):
            usage = fact.usage if attempt.usage is None else attempt.usage
            self._add(ledger, attempt, fact.cost, usage)
        elif isinstance(fact, Adjusted):
            self._adjust(ledger, attempt, fact, decision.corrects or 0)

    def _adjust(
        self, ledger: CoveredLedger, attempt: _Attempt, fact: Adjusted, of_invoice: int
    ) -> None:
        if fact.before is not None:
            self._add(ledger, attempt, fact.before, attempt.usage, of_invoice, back=True)
        self._add(ledger, attempt, fact.after, attempt.usage, of_invoice)

    def _add(
        self,
        ledger: CoveredLedger,
        attempt: _Attempt,
        cost: Cost,
        usage: TokenUsage | None,
        of_invoice: int = 0,
        *,
        back: bool = False,
    ) -> None:
        about = attempt.standing.attempt
        why, of_month, _hour = when(attempt.used_us, self._period, of_invoice, back=back)
        key = GroupKey(
            why=why,
            month=of_month,
            of_invoice=of_invoice,
            node=ledger.node,
            department=about.centre.department,
            application=about.centre.application,
            function=about.centre.function,
            provider=about.provider,
            model=about.model,
            currency=cost.currency,
            rows=cost.rows,
        )
        sums = self._groups.get(key)
        if sums is None:
            sums = self._groups[key] = Sums()
        tokens = tokens_of(usage or TokenUsage())
        if back:
            sums.add(-1, [-count for count in tokens], -cost.pico)
        else:
            sums.add(1, tokens, cost.pico)

    def _check_price(
        self, ledger: CoveredLedger, seq: int, attempt: _Attempt, fact: Settled, cost: Cost
    ) -> None:
        about = attempt.standing.attempt
        said = self._rates.says(
            fact.usage, about.provider, about.model, about.region, fact.rated_at_us
        )
        if said is not None and (said.currency, said.pico) == (cost.currency, cost.pico):
            return
        if not self._rates.allows(fact.usage, cost, fact.rated_at_us):
            by_book = "no price" if said is None else f"{format_pico(said.pico)} {said.currency}"
            self._blame(
                ledger,
                seq,
                f"was recorded at {format_pico(cost.pico)} {cost.currency}; by the book it is"
                f" {by_book}",
            )

    def _blame(self, ledger: CoveredLedger, seq: int, words: str) -> None:
        self._found.blame(f"{ledger.node}, epoch {ledger.epoch}: entry {seq} {words}")


class _StatedTerms:
    """The terms of earlier invoices, as credits and debits of this one state them."""

    def __init__(self, lines: Sequence[InvoiceLine]) -> None:
        self._terms = {
            (
                line.of_invoice,
                line.provider,
                line.model,
                line.token_class,
                line.currency,
            ): TermsThen(line.term, line.discount_bp, line.rebate, line.rate_micro)
            for line in lines
            if line.why in (Why.CREDIT, Why.DEBIT)
        }

    def terms(
        self, number: int, provider: str, model: str, token_class: str, currency: str
    ) -> TermsThen:
        """Return what the invoice says; where it says nothing, no terms at all."""
        key = (number, provider, model, token_class, currency)
        return self._terms.get(key, TermsThen(None, 0, (0, 1), MICRO))


def _follow(attempts: dict[str, _Attempt], fact: LedgerFact, at_us: int) -> _Attempt:
    """Take an attempt the next step; raises `ValueError` when it may not follow."""
    if isinstance(fact, Outcome | Leased | EpochOpened):
        raise TypeError(f"no step of an attempt: {fact!r}")
    attempt_id = subject_of(fact)
    had = attempts.get(attempt_id)
    standing = advance(None if had is None else had.standing, fact, at_us=at_us)
    if had is None:
        had = attempts[attempt_id] = _Attempt(standing, at_us)
    had.standing = standing
    if isinstance(fact, Intent):
        had.used_us = at_us
    elif isinstance(fact, Settled):
        had.used_us, had.usage = fact.rated_at_us, fact.usage
    elif isinstance(fact, Reconciled) and had.usage is None:
        had.usage = fact.usage
    return had


def _compare(invoice: IssuedInvoice, again: Sequence[InvoiceLine], found: Verification) -> None:
    """Compare the lines, and what they add up to."""
    stated = {(line.key, line.pack): line for line in invoice.lines}
    worked_out = {(line.key, line.pack): line for line in again}
    for number, line in enumerate(invoice.lines, start=1):
        found.lines += 1
        other = worked_out.get((line.key, line.pack))
        for words in _differences(line, other):
            found.blame(f"line {number} ({_name(line)}): {words}")
    for key, line in worked_out.items():
        if key not in stated:
            found.blame(
                f"missing line ({_name(line)}): {line.tokens} tokens,"
                f" {format_pico(line.list_pico)} {line.currency} by the list"
            )
    for purchase in invoice.purchases:
        amount = round_half_even(purchase.pack.price_micro * purchase.rate_micro, MICRO)
        if amount != purchase.amount_micro:
            found.blame(
                f"pack {purchase.pack.id}: amount {format_micro(purchase.amount_micro)}, worked"
                f" out {format_micro(amount)}"
            )
    total = total_micro(again, invoice.purchases)
    if total != invoice.total_micro:
        found.blame(
            f"total: {format_micro(invoice.total_micro)} {invoice.currency}, worked out"
            f" {format_micro(total)}"
        )


def _differences(line: InvoiceLine, other: InvoiceLine | None) -> Iterator[str]:
    if other is None:
        yield "nothing in the ledgers makes this line"
        return
    for what, mine, theirs in (
        ("attempts", line.attempts, other.attempts),
        ("tokens", line.tokens, other.tokens),
        ("price", line.unit_micro, other.unit_micro),
        ("terms", (line.discount_bp, line.rebate), (other.discount_bp, other.rebate)),
        ("rate", line.rate_micro, other.rate_micro),
    ):
        if mine != theirs:
            yield f"{what} {mine}, worked out {theirs}"
    if line.list_pico != other.list_pico:
        yield (
            f"list cost {format_pico(line.list_pico)} {line.currency}, worked out"
            f" {format_pico(other.list_pico)}"
        )
    if line.amount_micro != other.amount_micro:
        yield (
            f"amount {format_micro(line.amount_micro)}, worked out"
            f" {format_micro(other.amount_micro)}"
        )


def _name(line: InvoiceLine) -> str:
    words = (line.why, line.node, line.department, line.application, line.function)
    about = (line.provider, line.model, line.token_class or "request", line.price_row)
    return " ".join(word for word in (*words, *about) if word)


def _epoch_of(path: Path) -> str:
    try:
        with path.open("rb") as file:
            header = _HEADER.decode(file.readline())
    except (OSError, msgspec.MsgspecError) as error:
        raise BillingError(
            f"{path}: no ledger export: write one with `qcnode ledger export` ({error})"
        ) from error
    if header.format != EXPORT_FORMAT:
        raise BillingError(f"{path}: an export of another form: {header.format!r:.60}")
    return header.epoch


def _rows(export: Path, last_seq: int) -> Iterator[tuple[int, _Row, bytes]]:
    """Yield the rows of an export, numbered as they come, up to `last_seq`."""
    with export.open("rb") as file:
        file.readline()
        for seq, line in enumerate(file, start=1):
            if seq > last_seq or line.startswith(_NO_ENTRY):
                return
            try:
                row = _ROW.decode(line)
                body = row.body.encode()
            except (msgspec.MsgspecError, UnicodeEncodeError) as error:
                raise BillingError(f"{export}: line {seq + 1} is no entry: {error}") from error
            yield seq, row, body


def _bodies(export: Path, last_seq: int) -> Iterator[tuple[int, bytes]]:
    for seq, _row, body in _rows(export, last_seq):
        yield seq, body


def _kind_of(body: bytes) -> str:
    try:
        return _KIND.decode(body).kind
    except msgspec.MsgspecError:
        return ""
