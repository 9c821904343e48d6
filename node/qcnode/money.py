"""What is spent, and what is known of it, as plain values.

Nothing here does I/O or changes once made, so node, bridge, billing server and verifier
speak of the same things. Money is whole pico-units of a named currency, tokens are whole
counts in classes that share none, times are microseconds since 1970 UTC. What is not
known is None and never zero.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TypeAlias

PICO = 10**12
"""Pico-units in one unit of a currency."""


class TokenClass(StrEnum):
    """The kinds that the tokens of a request fall into; no token is of two."""

    TEXT = "text"
    IMAGE = "image"
    UNKNOWN = "unknown"
    """Input of which the provider does not say whether it was text or picture."""
    CACHE_READ = "cache_read"
    CACHE_WRITE = "cache_write"
    """Written to a cache that lives for minutes."""
    CACHE_WRITE_1H = "cache_write_1h"
    OUTPUT = "output"
    REASONING = "reasoning"


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenUsage:
    """The tokens of one request, as the provider counted them, by `TokenClass`.

    Each token is in one class, so the classes add up to the provider's own totals.
    """

    text: int = 0
    image: int = 0
    unknown: int = 0
    cache_read: int = 0
    cache_write: int = 0
    cache_write_1h: int = 0
    output: int = 0
    reasoning: int = 0

    def __post_init__(self) -> None:
        if (
            min(
                self.text,
                self.image,
                self.unknown,
                self.cache_read,
                self.cache_write,
                self.cache_write_1h,
                self.output,
                self.reasoning,
            )
            < 0
        ):
            raise ValueError(f"a count of tokens is never negative: {self}")

    @property
    def input_tokens(self) -> int:
        """Everything that was sent, cached or not."""
        return (
            self.text
            + self.image
            + self.unknown
            + self.cache_read
            + self.cache_write
            + self.cache_write_1h
        )

    @property
    def output_tokens(self) -> int:
        """Everything that was answered, thought included."""
        return self.output + self.reasoning

    def __add__(self, other: TokenUsage) -> TokenUsage:
        return TokenUsage(
            text=self.text + other.text,
            image=self.image + other.image,
            unknown=self.unknown + other.unknown,
            cache_read=self.cache_read + other.cache_read,
            cache_write=self.cache_write + other.cache_write,
            cache_write_1h=self.cache_write_1h + other.cache_write_1h,
            output=self.output + other.output,
            reasoning=self.reasoning + other.reasoning,
        )

    @classmethod
    def divide(
        cls,
        *,
        input_tokens: int,
        output_tokens: int,
        image: int | None,
        cache_read: int = 0,
        cache_write: int = 0,
        cache_write_1h: int = 0,
        reasoning: int = 0,
    ) -> TokenUsage:
        """Divide a provider's totals, which hold all the rest, into classes.

        `image` is None when a picture was sent and its tokens were not told apart, and 0
        when none was. How many of the image tokens were cached no provider says, so up to
        as many as were cached are unknown. Raises `ValueError` when the
        parts are more than the whole; nothing is ever made to fit.
        """
        rest = input_tokens - cache_read - cache_write - cache_write_1h
        if rest < 0 or (image or 0) > input_tokens:
            raise ValueError(
                f"{input_tokens} input tokens cannot hold {cache_read} read from and"
                f" {cache_write + cache_write_1h} written to a cache, and {image or 0} of a picture"
            )
        if reasoning > output_tokens:
            raise ValueError(f"{output_tokens} output tokens cannot hold {reasoning} of reasoning")
        # Of `rest`, what is a picture whatever was cached, and what is text whatever was.
        seen = 0 if image is None else max(0, image - (input_tokens - rest))
        read = 0 if image is None else rest - min(image, rest)
        return cls(
            text=read,
            image=seen,
            unknown=rest - seen - read,
            cache_read=cache_read,
            cache_write=cache_write,
            cache_write_1h=cache_write_1h,
            output=output_tokens - reasoning,
            reasoning=reasoning,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What a request costs, exactly, and by which rows of the price book."""

    currency: str
    pico: int
    rows: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class WorstCase:
    """The most that one request can use, and the most that can cost."""

    usage: TokenUsage
    hold: Cost


@dataclass(frozen=True, slots=True, kw_only=True)
class CostCentre:
    """On whose account something is spent; what is not told apart is empty.

    The node is not among these, because each node has a ledger of its own.
    """

    line: str = ""
    product: str = ""
    department: str = ""
    application: str = ""
    function: str = ""
    agent: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One HTTP request to a provider about one escalation."""

    id: str
    escalation_id: str
    number: int
    provider: str
    model: str
    centre: CostCentre = CostCentre()
    level: str = ""
    """The agent's authority, L1 to L4."""
    region: str = ""
    """Where the provider works on the data."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reserved:
    """Money put aside for an attempt that is being prepared; nothing has left yet."""

    attempt: Attempt
    worst: TokenUsage
    hold: Cost


@dataclass(frozen=True, slots=True, kw_only=True)
class Intent:
    """An attempt about to leave, and the most it can cost; on disk before its bytes go."""

    attempt: Attempt
    worst: TokenUsage
    hold: Cost
    request_sha256: str
    request_bytes: int
    image_sha256: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Settled:
    """An attempt the provider answered, with its own count of tokens.

    `cost` is None when no price is known for what was used: unpriced is never zero. It
    was priced by the rows in force at `rated_at_us`; when the clock could not tell on
    which side of a change of price that was, `other_cost` is what the other side says.
    `raw_usage` is the provider's usage block, verbatim, and `stated_cost` the cost it
    named itself, if any: evidence, whose unit nobody vouches for.
    """

    attempt_id: str
    usage: TokenUsage
    cost: Cost | None
    started_at_us: int
    rated_at_us: int
    raw_usage: str
    response_id: str | None
    model_served: str | None
    http_status: int
    duration_ms: int
    request_id: str | None = None
    stated_cost: str | None = None
    other_cost: Cost | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class NotBilled:
    """An attempt that cannot have cost anything: it was refused before any work."""

    attempt_id: str
    reason: str
    http_status: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Indeterminate:
    """An attempt of which nobody here knows whether it was billed; held at its worst case.

    `request_id` is what the provider called it, when so much of an answer came.
    """

    attempt_id: str
    reason: str
    hold: Cost
    request_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Reconciled:
    """What an attempt of unknown or unpriced cost did cost, by the provider's own record."""

    attempt_id: str
    usage: TokenUsage | None
    cost: Cost
    source: str
    """Which record said so, as in `openai usage 2026-11`."""
    source_sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenOff:
    """An attempt nobody will ever know the cost of; its hold is given back by a rule."""

    attempt_id: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Adjusted:
    """Another cost for an attempt that has one: prices became known late, or were withdrawn."""

    attempt_id: str
    before: Cost | None
    after: Cost
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a part proved to be, later, by an operator, rework or a customer; it moves no money.

    Of several about one escalation the last counts.
    """

    escalation_id: str
    centre: CostCentre
    ruled: str
    """GOOD, DEFECTIVE or UNSURE: what the agent said, or where none was asked, who ruled on it."""
    truth: str
    """GOOD or DEFECTIVE."""
    node_alone: str
    """What a node with nobody to ask would have done: ACCEPT, REJECT, or DIVERT if in the dark."""
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Leased:
    """A part of a shared budget, lent to this node by the billing server until an instant."""

    lease_id: str
    budget: str
    unit: str
    limit: int
    from_us: int
    until_us: int


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochOpened:
    """The first entry after a ledger was found restored or copied: what it goes on from."""

    previous_epoch: str
    previous_seq: int
    previous_hash: str
    reason: str


Outcomes: TypeAlias = Settled | NotBilled | Indeterminate
"""What can become of an attempt that was about to leave."""

Resolution: TypeAlias = Reconciled | WrittenOff | Adjusted
"""What can be learnt later of an attempt whose outcome is on record."""

LedgerFact: TypeAlias = Reserved | Intent | Outcomes | Resolution | Outcome | Leased | EpochOpened


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerEntry:
    """One fact about money: a seq, a time, never changed, corrected by another entry.

    `body` is the canonical JSON that is hashed; `hash` covers seq, body and the
    hash of the entry before.
    """

    epoch: str
    seq: int
    kind: str
    at_us: int
    body: bytes
    prev_hash: bytes
    hash: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerTotals:
    """The books in one look; money in pico-units by currency.

    Measured, held (reserved, open and indeterminate), written off and unpriced stand side
    by side, because a sum of them would be a wrong bill. Attempts are counted by the
    state they are in now.
    """

    entries: int
    attempts: int
    reserved: int
    open: int
    settled: int
    not_billed: int
    indeterminate: int
    reconciled: int
    written_off: int
    unpriced: int
    usage: TokenUsage
    cost_pico: dict[str, int]
    held_pico: dict[str, int]
    written_off_pico: dict[str, int]

    @property
    def input_tokens(self) -> int:
        """All that was sent, in tokens."""
        return self.usage.input_tokens

    @property
    def output_tokens(self) -> int:
        """All that was answered, in tokens."""
        return self.usage.output_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """The billing server's word, after its commit, for all entries up to `acked_seq`.

    `head_hash` is that entry's hash (hex) as the server has it. `missing` are stretches
    beyond it, first and last seq, that the server wants first; `quarantined` are entries
    it stored and moves no money by until a person has looked. `note` is the server's
    signed checkpoint at `acked_seq`, the node's proof of delivery. A fork or a refused
    batch is named in `problem`. `resolutions` and `leases` are facts for the node to put
    on its own record, with `seal` the server's signature under them. `server_key` is the
    public key to both, for a node that has none.
    """

    epoch: str
    acked_seq: int
    head_hash: str
    problem: str | None = None
    server_time_us: int | None = None
    missing: tuple[tuple[int, int], ...] = ()
    quarantined: tuple[int, ...] = ()
    note: str | None = None
    resolutions: tuple[Reconciled | WrittenOff | Adjusted, ...] = ()
    leases: tuple[Leased, ...] = ()
    seal: str | None = None
    server_key: str | None = None


def format_pico(pico: int) -> str:
    """Write pico-units exactly, in units of the currency, without trailing zeros."""
    whole, rest = divmod(abs(pico), 10**12)
    digits = f"{rest:012d}".rstrip("0").ljust(2, "0")
    return f"{'-' if pico < 0 else ''}{whole}.{digits}"


def tokens_of(usage: TokenUsage) -> tuple[int, ...]:
    """Return the tokens of a usage in the order of the classes."""
    return (
        usage.text,
        usage.image,
        usage.unknown,
        usage.cache_read,
        usage.cache_write,
        usage.cache_write_1h,
        usage.output,
        usage.reasoning,
    )
