"""What each ledger entry does to the bill.

Pure. An entry is refused when its bytes are not what `chain` writes: then nothing of
its batch is stored. An entry that is well written but makes no sense as money (an
outcome without an intent, a second outcome) is *disputed*: it stays in the chain,
which would have a hole otherwise, and moves nothing until a person has looked at it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from qcnode.books import chain
from qcnode.books.attempts import subject_of
from qcnode.errors import BillingError, LedgerCorruptError
from qcnode.money import Indeterminate, Intent, NotBilled, Settled

if TYPE_CHECKING:
    from collections.abc import Iterable, MutableMapping

    from qcnode.books.batch import Batch
    from qcnode.money import Cost, LedgerEntry, LedgerFact, TokenUsage

BATCH_BYTES_MAX = 1024 * 1024
ENTRIES_MAX = 2_000
BODY_BYTES_MAX = 64 * 1024
NAME_CHARS_MAX = 200
ROWS_MAX = 32
TOKENS_MAX = 1_000_000_000
"""More tokens than any single request can have used."""
PICO_MAX = 2**62
SEQ_MAX = 2**63 - 1
AT_US_MAX = 253_402_300_799_999_999
"""The end of the year 9999, the last instant a `datetime` can tell."""

_IDENTITY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class RefusalKind(StrEnum):
    """Why something was not taken."""

    UNREADABLE = "unreadable"
    """No batch at all, or one outside the bounds."""
    BROKEN = "broken"
    """The chain does not hold, or an entry is not what `chain` writes."""
    FORK = "fork"
    """Another entry is stored under the same identity: a restored disk or a cloned card."""


class BatchRefusedError(BillingError):
    """Nothing of this batch is stored; the message says what is wrong with it."""

    def __init__(self, kind: RefusalKind, words: str) -> None:
        super().__init__(words)
        self.kind = kind


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptState:
    """How far an attempt has come: its last entry, which the next outcome would close."""

    provider: str | None
    model: str | None
    hold_currency: str | None
    last_seq: int
    last_kind: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Posting:
    """One entry and what it moves: a hold put up, a hold closed, tokens and money spent."""

    entry: LedgerEntry
    attempt_id: str
    provider: str | None = None
    model: str | None = None
    usage: TokenUsage | None = None
    cost: Cost | None = None
    rated_us: int | None = None
    hold: Cost | None = None
    closes_seq: int | None = None
    dispute: str | None = None


def check_batch(batch: Batch) -> None:
    """Refuse a batch that names nobody, is out of bounds or skips a seq."""
    for what, value in (("tenant", batch.tenant), ("node", batch.node), ("epoch", batch.epoch)):
        if not _IDENTITY.fullmatch(value):
            raise BatchRefusedError(
                RefusalKind.UNREADABLE,
                f"{what} {value[:80]!r} is no name: use up to 64 letters, digits, '.', '_', '-'",
            )
    if len(batch.entries) > ENTRIES_MAX:
        raise BatchRefusedError(
            RefusalKind.UNREADABLE,
            f"{len(batch.entries)} entries in one batch: send {ENTRIES_MAX} at most",
        )
    for place, entry in enumerate(batch.entries):
        if entry.seq != batch.first_seq + place or not 1 <= entry.seq <= SEQ_MAX:
            raise BatchRefusedError(
                RefusalKind.UNREADABLE, f"entry {entry.seq} is out of order in its batch"
            )
        if len(entry.body) > BODY_BYTES_MAX:
            raise BatchRefusedError(
                RefusalKind.UNREADABLE,
                f"entry {entry.seq} has {len(entry.body)} bytes, more than {BODY_BYTES_MAX}",
            )


def read_fact(entry: LedgerEntry) -> LedgerFact:
    """Read an entry's fact; refuses a body that `chain` would not have written for it."""
    try:
        fact = chain.fact_of(entry)
        again = chain.make_entry(
            fact, epoch=entry.epoch, seq=entry.seq, at_us=entry.at_us, prev_hash=entry.prev_hash
        )
    except (LedgerCorruptError, ValueError, RecursionError) as error:
        raise _broken(entry, f"its body is no fact this server knows ({error})") from error
    if again.body != entry.body:
        raise _broken(entry, "its body is not written in the canonical way")
    if not 0 <= entry.at_us <= AT_US_MAX:
        raise _broken(entry, f"its time {entry.at_us} is no instant")
    _check_values(entry, fact)
    return fact


def post(
    facts: Iterable[tuple[LedgerEntry, LedgerFact]], attempts: MutableMapping[str, AttemptState]
) -> list[Posting]:
    """Say what each entry moves, given the attempts known before; `attempts` is carried on."""
    postings: list[Posting] = []
    for entry, fact in facts:
        posting = _post_one(entry, fact, attempts)
        if posting.dispute is None:
            attempts[posting.attempt_id] = AttemptState(
                provider=posting.provider,
                model=posting.model,
                hold_currency=None if posting.hold is None else posting.hold.currency,
                last_seq=entry.seq,
                last_kind=entry.kind,
            )
        postings.append(posting)
    return postings


def _post_one(  # noqa: PLR0911  # one for each way it can go
    entry: LedgerEntry, fact: LedgerFact, attempts: MutableMapping[str, AttemptState]
) -> Posting:
    if isinstance(fact, Intent):
        attempt = fact.attempt
        if attempt.id in attempts:
            return _disputed(entry, attempt.id, f"a second intent for attempt {attempt.id}")
        return Posting(
            entry=entry,
            attempt_id=attempt.id,
            provider=attempt.provider,
            model=attempt.model,
            hold=fact.hold,
        )
    if not isinstance(fact, Settled | NotBilled | Indeterminate):
        return _disputed(entry, subject_of(fact), f"a {entry.kind} entry, which moves nothing yet")
    known = attempts.get(fact.attempt_id)
    if known is None:
        return _disputed(
            entry, fact.attempt_id, f"an outcome of attempt {fact.attempt_id}, which has no intent"
        )
    if known.last_kind != "intent":
        return _disputed(entry, fact.attempt_id, f"a second outcome of attempt {fact.attempt_id}")
    if isinstance(fact, Indeterminate) and fact.hold.currency != known.hold_currency:
        return _disputed(
            entry, fact.attempt_id, f"attempt {fact.attempt_id} is held in another currency"
        )
    return Posting(
        entry=entry,
        attempt_id=fact.attempt_id,
        provider=known.provider,
        model=known.model,
        usage=fact.usage if isinstance(fact, Settled) else None,
        cost=fact.cost if isinstance(fact, Settled) else None,
        rated_us=fact.rated_at_us if isinstance(fact, Settled) else None,
        hold=fact.hold if isinstance(fact, Indeterminate) else None,
        closes_seq=known.last_seq,
    )


def _disputed(entry: LedgerEntry, attempt_id: str, words: str) -> Posting:
    return Posting(entry=entry, attempt_id=attempt_id, dispute=f"entry {entry.seq}: {words}")


def _broken(entry: LedgerEntry, words: str) -> BatchRefusedError:
    return BatchRefusedError(RefusalKind.BROKEN, f"entry {entry.seq}: {words}")


def _check_values(entry: LedgerEntry, fact: LedgerFact) -> None:
    """Refuse values that would not survive a column: a fact read from JSON has no types."""
    if isinstance(fact, Intent):
        _check_name(entry, "provider", fact.attempt.provider)
        _check_name(entry, "model", fact.attempt.model)
        _check_name(entry, "attempt", fact.attempt.id)
        _check_usage(entry, fact.worst)
        _check_cost(entry, fact.hold)
        return
    _check_name(entry, "subject", subject_of(fact))
    if isinstance(fact, Settled):
        _check_usage(entry, fact.usage)
        if not isinstance(fact.rated_at_us, int) or not 0 <= fact.rated_at_us <= AT_US_MAX:
            raise _broken(entry, f"it was rated at {fact.rated_at_us!r}, which is no instant")
        if fact.cost is not None:
            _check_cost(entry, fact.cost)
    elif isinstance(fact, Indeterminate):
        _check_cost(entry, fact.hold)


def _check_name(entry: LedgerEntry, what: str, value: object) -> None:
    if not isinstance(value, str) or not value or len(value) > NAME_CHARS_MAX:
        raise _broken(entry, f"its {what} is no text of 1 to {NAME_CHARS_MAX} characters")
    if not value.isprintable():
        raise _broken(entry, f"its {what} {value[:80]!r} holds characters that cannot be printed")


def _check_usage(entry: LedgerEntry, usage: TokenUsage) -> None:
    for count in (
        usage.input_tokens,
        usage.output_tokens,
        usage.cache_read,
        usage.image,
        usage.reasoning,
    ):
        # `True` is an int to Python and a fault here.
        if type(count) is not int or not 0 <= count <= TOKENS_MAX:
            raise _broken(entry, f"a count of tokens is {count!r}, not 0 to {TOKENS_MAX}")


def _check_cost(entry: LedgerEntry, cost: Cost) -> None:
    if type(cost.pico) is not int or not 0 <= cost.pico <= PICO_MAX:
        raise _broken(entry, f"an amount is {cost.pico!r}, not 0 to {PICO_MAX} pico-units")
    _check_name(entry, "currency", cost.currency)
    if len(cost.rows) > ROWS_MAX:
        raise _broken(entry, f"{len(cost.rows)} price rows for one request, more than {ROWS_MAX}")
    for row in cost.rows:
        _check_name(entry, "price row", row)
