"""Where the node meets the world.

Adapters implement these, `main` chooses them, and everybody else sees no more of
them than stands here. Each port has a contract suite in `tests/contracts/`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from concurrent.futures import Future
    from datetime import datetime

    from qcnode.adviser import Advice, Reading
    from qcnode.domain import (
        Action,
        Allowance,
        Disposition,
        Escalation,
        Evidence,
        Frame,
        JournalRecord,
        Opinion,
        Passage,
        Prediction,
        Trigger,
    )
    from qcnode.money import LedgerEntry, LedgerFact, LedgerTotals, Receipt, WorstCase
    from qcnode.process import Knob


class Camera(Protocol):
    """Gives the picture that belongs to a trigger."""

    def grab(self, trigger: Trigger) -> Frame:
        """Return the picture of this part, or raise `CameraError`; never an older one."""

    def close(self) -> None:
        """Let go of the device; closing twice is harmless."""


class Model(Protocol):
    """Turns a picture into a score."""

    @property
    def version(self) -> str:
        """Name and digest of what judges, as it goes on record."""

    def predict(self, frame: Frame) -> Prediction:
        """Return the score, or raise `ModelError`; never a number that is no score."""


class Line(Protocol):
    """The belt between camera and gate."""

    def last_trigger(self) -> int:
        """Return the line's own count of triggers so far, kept through a restart of the node."""

    def triggers(self) -> Iterator[Trigger]:
        """Yield each part as it passes the camera, until `stop`; the caller's thread waits."""

    def act(self, trigger: Trigger, action: Action) -> bool:
        """Set the part's action; return False when the deadline has gone and the default stands."""

    def passages(self) -> Sequence[Passage]:
        """Return what the gate did since the last call."""

    def dispose(self, part_id: str, disposition: Disposition) -> None:
        """Tell what becomes of a diverted part, or raise `LineUnavailableError`."""

    def stop(self) -> None:
        """End `triggers`; the gate falls back to its default. Stopping twice is harmless."""


class Journal(Protocol):
    """Everything that happened to parts, in order; a queue that each reader walks at its pace."""

    def append(self, record: JournalRecord, *, evidence: Evidence | None = None) -> None:
        """Put a record in line for the disk and return at once.

        Raises `JournalUnavailableError` when the line is full because the disk does
        not take records; the part then goes the safe way.
        """

    def missing_triggers(self, upto: int) -> list[int]:
        """Return the triggers from 1 to `upto` that ended as nothing so far."""


class Ledger(Protocol):
    """Everything that was spent here, in order. Entries are added, never changed."""

    @property
    def epoch(self) -> str:
        """The identity of this ledger file: seq starts at 1 in each epoch."""

    def submit(self, fact: LedgerFact) -> Future[LedgerEntry]:
        """Record a fact; the future ends when it is durable.

        It fails with `BudgetExceededError` for an intent whose hold does not fit,
        and with `LedgerUnavailableError` when nothing can be recorded.
        """

    def read(self, after_seq: int, limit: int) -> list[LedgerEntry]:
        """Return up to `limit` entries beyond `after_seq`, in order."""

    def totals(self) -> LedgerTotals:
        """Return the sums over all entries."""

    def receipt_seq(self) -> int:
        """Return how far the billing server has confirmed this epoch."""

    def confirm(self, receipt: Receipt) -> None:
        """Note a receipt; one that contradicts the chain raises `LedgerCorruptError`."""


class Purse(Protocol):
    """What may be spent on questions; the ledger has the last word on each."""

    def arrived(self, at: datetime) -> None:
        """Note one more part that somebody has to rule on."""

    def look(self, worst: WorstCase | None) -> Allowance:
        """Say what may be asked, when a request may need so much; None has no price."""


class Channel(Protocol):
    """A way to the billing server."""

    name: str

    async def send(self, batch: bytes) -> Receipt:
        """Deliver one CloudEvent and return the server's receipt for it.

        Raises `LineUnavailableError` when there is no way through or no receipt in
        time; sending the same batch again is harmless.
        """

    async def close(self) -> None:
        """Leave; closing twice is harmless."""


class Proposals(Protocol):
    """Takes proposals to adjust the process; what becomes of each is decided elsewhere."""

    def offers(self) -> Mapping[str, tuple[float, float]]:
        """Return what may be proposed just now: each setting with its least and most value."""

    def propose(self, *, who: str, knob: str, value: float, reason: str, escalation_id: str) -> str:
        """Take a proposal and say in one word what became of it; waits for nobody.

        Called in the thread of the event loop.
        """


class Reviewer(Protocol):
    """Somebody, or something, that can be asked about a part."""

    async def review(self, escalation: Escalation, picture: bytes, heat: bytes | None) -> Opinion:
        """Give an opinion on the part in `picture`.

        `picture` is the encoded frame, `heat` the anomaly map as PNG of grey bytes.
        Raises `ProviderUnavailableError`, `ProviderRefusedError`, `BudgetExceededError`,
        `UnpricedError` or `LedgerUnavailableError`; the part then waits for a person.
        """

    def reachable(self) -> bool:
        """Say whether asking makes sense just now; False after repeated failures, for a while."""

    def worst(self) -> WorstCase | None:
        """Return the worst case of one request; None has no price and is never asked."""

    async def close(self) -> None:
        """Let go of connections; closing twice is harmless."""


class Stops(Protocol):
    """What people have stopped; asked before anything is done that an agent wanted."""

    def stopped(self, *scopes: str) -> bool:
        """Say whether any of these is stopped: `line`, `agent:NAME`, `provider:NAME`.

        `all` stops each of them. Answers from memory, and never waits.
        """

    def add_listener(self, listener: Callable[[], None]) -> None:
        """Have `listener` called, in a thread of its own, after each change."""


class Adviser(Protocol):
    """Somebody, or something, that proposes changes of the process."""

    async def advise(self, reading: Reading) -> Advice | None:
        """Say what to change; None is nothing.

        An adviser that asks somebody raises what `Reviewer.review` raises; the process then
        stays as it is.
        """


class Process(Protocol):
    """The machine that makes the parts, as far as it can be set from here."""

    def settings(self) -> Mapping[Knob, float]:
        """Return where the knobs stand."""

    def turn(self, knob: Knob, value: float) -> None:
        """Set a knob for the parts to come. Raises `AdjustmentError` beyond what it allows."""

    def halt(self) -> None:
        """Make no more parts until `start`; halting twice is harmless."""

    def start(self) -> None:
        """Make parts again."""
