"""What each ledger entry does to the bill.

Pure. An entry whose body cannot be understood, or is absurd, or makes no sense after
what is on record, is *quarantined*: it stays in the chain, which would have a hole
otherwise, and moves nothing until a person has looked at it. Everything else moves its
attempt from one standing to the next, as the node's own books have it. What this server
decided before the node wrote it down moved then, and does not move again.
"""

from __future__ import annotations

import contextlib
import hashlib
from operator import attrgetter
from typing import TYPE_CHECKING, Any, TypeAlias, TypeGuard

import msgspec

from qcbridge.billing.offers import Line
from qcnode.books import chain
from qcnode.books.attempts import Standing, State, advance
from qcnode.errors import LedgerCorruptError
from qcnode.money import (
    Adjusted,
    Attempt,
    CostCentre,
    EpochOpened,
    Indeterminate,
    Intent,
    Leased,
    LedgerFact,
    NotBilled,
    Outcome,
    Reconciled,
    Reserved,
    Settled,
    TokenUsage,
    WrittenOff,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, MutableMapping, Sequence

    from qcnode.books.attempts import AttemptFact
    from qcnode.money import Cost

BODY_BYTES_MAX = 64 * 1024
NAME_CHARS_MAX = 200
ROWS_MAX = 32
TOKENS_MAX = 1_000_000_000
"""More tokens than any single request can have used."""
AMOUNT_MAX = 2**62
AT_US_MAX = 253_402_300_799_999_999
"""The end of the year 9999, the last instant a `datetime` can tell."""
_encode = msgspec.json.Encoder(order="sorted").encode
_PLAIN = {
    f',"kind":"{kind}","v":{chain.BODY_VERSION}}}'.encode(): (
        kind,
        msgspec.json.Decoder(
            msgspec.defstruct(
                f"_{kind}", [("at_us", int), ("fact", fact), ("kind", str), ("v", int)], gc=False
            )
        ).decode,
    )
    for kind, fact in chain.KINDS.items()
}
"""How a body is read, by how it ends."""
UNREADABLE = "unreadable"
"""The kind of an entry whose body does not even say its kind."""
WORDS_MAX = 500


class _Head(msgspec.Struct):
    """As much of a body as an entry that cannot be understood may still say."""

    kind: str
    at_us: int | None = None


_HEAD = msgspec.json.Decoder(_Head)


class Read(msgspec.Struct, frozen=True):
    """A line and what it says; one without a fact cannot be understood, and `why` says so."""

    line: Line
    kind: str
    at_us: int | None
    fact: LedgerFact | None
    why: str | None


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """One step of an attempt, and the tokens that become known by it."""

    number: int
    before: Standing | None
    after: Standing
    usage: TokenUsage | None
    rated_us: int | None

    def known(self, waiting: tuple[Open, ...]) -> Known:
        """Return how the attempt stands after it."""
        return Known(self.after, self.number + 1, waiting)


class Posting(msgspec.Struct, frozen=True):
    """One entry and what it moves: a step of its attempt, or nothing.

    `resolution_id` is the decision of this server that it repeats.
    """

    read: Read
    subject: str | None
    step: Step | None
    resolution_id: int | None
    quarantine: str | None


ResolutionFact: TypeAlias = Reconciled | WrittenOff | Adjusted


class Open(msgspec.Struct, frozen=True):
    """A decision of this server that the node has not written down yet."""

    id: int
    fact: ResolutionFact


class Known(msgspec.Struct, frozen=True):
    """An attempt as it stands here, after so many steps."""

    standing: Standing
    steps: int
    waiting: tuple[Open, ...] = ()


Heading: TypeAlias = tuple[str, ...]
"""What use is summed under: provider, model, the cost centre's fields, level and region."""


def heading_of(attempt: Attempt) -> Heading:
    """Return what an attempt is summed under, in the order of the table's columns."""
    centre = attempt.centre
    return (
        attempt.provider,
        attempt.model,
        centre.line,
        centre.product,
        centre.department,
        centre.application,
        centre.function,
        centre.agent,
        attempt.level,
        attempt.region,
    )


def digest_of(heading: Heading) -> bytes:
    """Return what a heading is found by."""
    return hashlib.sha256(chain.canonical(heading)).digest()


def read_lines(lines: Iterable[Line]) -> list[Read]:
    """Read what lines say; a line that says nothing that can be understood is kept as such."""
    reads = []
    for line in lines:
        body = line.body
        # What is written the one way of today says last what it is, and is read in one go.
        plain = _PLAIN.get(body[body.rfind(b',"kind":') :])
        if plain is not None:
            kind, decode = plain
            try:
                said: Any = decode(body)
            except (msgspec.MsgspecError, ValueError, RecursionError):
                reads.append(_read(line))
                continue
            fact, at_us = said.fact, said.at_us
            if _encode(said) == body and len(body) <= BODY_BYTES_MAX and not absurd(fact, at_us):
                reads.append(Read(line, kind, at_us, fact, None))
                continue
        reads.append(_read(line))
    return reads


def _read(line: Line) -> Read:
    """Read a line of whatever kind, and say what is wrong with it."""
    body = line.body
    try:
        kind, at_us, fact = chain.read_body(line.seq, body)
        why = absurd(fact, at_us)
        if not chain.is_canonical(line.seq, body):
            why = "its body is not written in the canonical way"
        elif why is None and len(body) > BODY_BYTES_MAX:
            why = f"it has {len(body)} bytes, more than {BODY_BYTES_MAX}"
    except (LedgerCorruptError, ValueError, TypeError, RecursionError) as error:
        why = str(error)
    if why is not None:
        return _unread(line, why)
    return Read(line, kind, at_us, fact, None)


def _unread(line: Line, why: str) -> Read:
    kind, at_us = UNREADABLE, None
    with contextlib.suppress(msgspec.MsgspecError, ValueError, RecursionError):
        head = _HEAD.decode(line.body)
        if _is_name(head.kind):
            kind = head.kind
        if head.at_us is not None and 0 <= head.at_us <= AT_US_MAX:
            at_us = head.at_us
    return Read(line, kind, at_us, None, _bounded(why))


def _bounded(words: str) -> str:
    plain = "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in words)
    return plain if len(plain) <= WORDS_MAX else plain[: WORDS_MAX - 1] + "\N{HORIZONTAL ELLIPSIS}"


def post(reads: Iterable[Read], attempts: MutableMapping[str, Known]) -> list[Posting]:
    """Say what each entry moves, given the attempts known before; `attempts` is carried on."""
    return [_post_one(read, attempts) for read in reads]


_SUBJECT: dict[type[LedgerFact], Callable[[Any], str]] = {
    kind: attrgetter(
        {
            Reserved: "attempt.id",
            Intent: "attempt.id",
            Outcome: "escalation_id",
            Leased: "lease_id",
            EpochOpened: "previous_epoch",
        }.get(kind, "attempt_id")
    )
    for kind in chain.KINDS.values()
}
"""As `attempts.subject_of`, without looking for it anew."""


def is_about_attempt(fact: LedgerFact) -> TypeGuard[AttemptFact]:
    """Say whether a fact is a step of an attempt."""
    return type(fact) not in _NO_STEPS


_NO_STEPS = frozenset({Outcome, Leased, EpochOpened})


def subjects(reads: Iterable[Read]) -> set[str]:
    """Return the attempts that `reads` are about."""
    return {
        _SUBJECT[type(read.fact)](read.fact)
        for read in reads
        if read.fact is not None and is_about_attempt(read.fact)
    }


def _post_one(read: Read, attempts: MutableMapping[str, Known]) -> Posting:
    fact = read.fact
    if fact is None or read.at_us is None:
        return Posting(read, None, None, None, read.why or "it says nothing")
    subject: str = _SUBJECT[type(fact)](fact)
    if not is_about_attempt(fact):
        if isinstance(fact, EpochOpened) and read.line.seq != 1:
            return Posting(
                read, subject, None, None, "an epoch is opened by its first entry and by no other"
            )
        return Posting(read, subject, None, None, None)
    known = attempts.get(subject)
    if known is not None and known.waiting:
        for waiting in known.waiting:
            if waiting.fact == fact:
                rest = tuple(one for one in known.waiting if one is not waiting)
                attempts[subject] = Known(known.standing, known.steps, rest)
                return Posting(read, subject, None, waiting.id, None)
    try:
        step = take_step(known, fact, at_us=read.at_us)
    except ValueError as error:
        return Posting(read, subject, None, None, _bounded(str(error)))
    attempts[subject] = step.known(() if known is None else known.waiting)
    return Posting(read, subject, step, None, None)


def take_step(known: Known | None, fact: AttemptFact, *, at_us: int) -> Step:
    """Return the step that `fact` is; raises `ValueError` when it may not follow."""
    before = None if known is None else known.standing
    after = advance(before, fact, at_us=at_us)
    usage = rated_us = None
    if isinstance(fact, Settled):
        usage, rated_us = fact.usage, fact.rated_at_us
    elif isinstance(fact, Reconciled) and before is not None:
        # What was counted when it was settled without a price is not counted again.
        usage = fact.usage if before.state is State.INDETERMINATE else None
    return Step(
        number=0 if known is None else known.steps,
        before=before,
        after=after,
        usage=usage,
        rated_us=rated_us,
    )


def absurd(fact: LedgerFact, at_us: int) -> str | None:
    """Say what no honest node can have meant; None when there is nothing."""
    if not 0 <= at_us <= AT_US_MAX:
        return f"its time {at_us} is no instant"
    try:
        _CHECKS[type(fact)](fact)
    except _AbsurdError as error:
        return str(error)
    return None


class _AbsurdError(Exception):
    """A value that cannot be meant."""


def _check_attempt(attempt: Attempt) -> None:
    names = (attempt.id, attempt.escalation_id, attempt.provider, attempt.model)
    _provider, _model, *words = heading_of(attempt)
    # All together first: looking at each costs more than all the rest of reading an entry.
    together = "".join((*names, *words))
    if all(names) and len(together) <= NAME_CHARS_MAX and together.isprintable():
        return
    for what, value in zip(("attempt", "escalation", "provider", "model"), names, strict=True):
        _check_name(what, value)
    _check_words((*CostCentre.__slots__, "level", "region"), words)


def _check_centre(centre: CostCentre) -> None:
    names = CostCentre.__slots__
    _check_words(names, [getattr(centre, name) for name in names])


def _check_words(names: Sequence[str], words: Sequence[str]) -> None:
    for name, value in zip(names, words, strict=True):
        if not _is_text(value):
            raise _AbsurdError(f"its {name} is no text of at most {NAME_CHARS_MAX} characters")


def _check_name(what: str, value: str) -> None:
    if not _is_name(value):
        raise _AbsurdError(
            f"its {what} {value[:80]!r} is no text of 1 to {NAME_CHARS_MAX} characters"
            " that can be printed"
        )


def _is_name(value: str) -> bool:
    return 0 < len(value) <= NAME_CHARS_MAX and value.isprintable()


def _is_text(value: str) -> bool:
    return len(value) <= NAME_CHARS_MAX and value.isprintable()


def _check_usage(usage: TokenUsage) -> None:
    # No count is negative, or there were no usage: so the sums bound each.
    if usage.input_tokens > TOKENS_MAX or usage.output_tokens > TOKENS_MAX:
        raise _AbsurdError(
            f"{usage.input_tokens} and {usage.output_tokens} tokens in one request,"
            f" more than {TOKENS_MAX}"
        )


def _check_cost(cost: Cost) -> None:
    _check_amount(cost.pico)
    together = "".join((cost.currency, *cost.rows))
    if (
        cost.currency
        and all(cost.rows)
        and len(cost.rows) <= ROWS_MAX
        and len(together) <= NAME_CHARS_MAX
        and together.isprintable()
    ):
        return
    _check_name("currency", cost.currency)
    if len(cost.rows) > ROWS_MAX:
        raise _AbsurdError(f"{len(cost.rows)} price rows for one request, more than {ROWS_MAX}")
    for row in cost.rows:
        _check_name("price row", row)


def _check_amount(amount: int) -> None:
    if not 0 <= amount <= AMOUNT_MAX:
        raise _AbsurdError(f"an amount is {amount}, not 0 to {AMOUNT_MAX}")


def _check_instant(what: str, at_us: int) -> None:
    if not 0 <= at_us <= AT_US_MAX:
        raise _AbsurdError(f"it was {what} at {at_us}, which is no instant")


def _check_announced(fact: Reserved | Intent) -> None:
    _check_attempt(fact.attempt)
    _check_usage(fact.worst)
    _check_cost(fact.hold)


def _check_settled(fact: Settled) -> None:
    _check_name("attempt", fact.attempt_id)
    _check_usage(fact.usage)
    _check_instant("rated", fact.rated_at_us)
    _check_instant("started", fact.started_at_us)
    if fact.cost is not None:
        _check_cost(fact.cost)
    if fact.other_cost is not None:
        _check_cost(fact.other_cost)


def _check_indeterminate(fact: Indeterminate) -> None:
    _check_name("attempt", fact.attempt_id)
    _check_cost(fact.hold)


def _check_ended(fact: NotBilled | WrittenOff) -> None:
    _check_name("attempt", fact.attempt_id)


def _check_reconciled(fact: Reconciled) -> None:
    _check_name("attempt", fact.attempt_id)
    _check_cost(fact.cost)
    if fact.usage is not None:
        _check_usage(fact.usage)


def _check_adjusted(fact: Adjusted) -> None:
    _check_name("attempt", fact.attempt_id)
    _check_cost(fact.after)
    if fact.before is not None:
        _check_cost(fact.before)


def _check_outcome(fact: Outcome) -> None:
    _check_name("escalation", fact.escalation_id)
    _check_centre(fact.centre)


def _check_leased(fact: Leased) -> None:
    _check_name("lease", fact.lease_id)
    _check_name("budget", fact.budget)
    _check_amount(fact.limit)
    _check_instant("lent from", fact.from_us)
    _check_instant("lent until", fact.until_us)


def _check_opened(fact: EpochOpened) -> None:
    _check_name("epoch before", fact.previous_epoch)


_CHECKS: dict[type[LedgerFact], Callable[[Any], None]] = {
    Reserved: _check_announced,
    Intent: _check_announced,
    Settled: _check_settled,
    NotBilled: _check_ended,
    Indeterminate: _check_indeterminate,
    Reconciled: _check_reconciled,
    WrittenOff: _check_ended,
    Adjusted: _check_adjusted,
    Outcome: _check_outcome,
    Leased: _check_leased,
    EpochOpened: _check_opened,
}
