"""What the panel needs to know, and from whom; `main` brings things that fit.

The desk is asked on the loop the panel runs on and must answer from memory. The
journal and the ledger are asked from the panel's own threads and may take a while:
until they answer, the panel shows dashes. Nothing here can reach the line.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime, tzinfo

    from qcnode.domain import (
        Counts,
        Escalation,
        Fault,
        Finding,
        Frame,
        Inspection,
        JournalRecord,
        Limits,
        Prediction,
        Ruling,
    )
    from qcnode.money import Outcome


class LiveView(Protocol):
    """The last part that was judged, all of one piece: picture, score and verdict."""

    @property
    def frame(self) -> Frame | None:
        """The picture; None where the camera gave none."""

    @property
    def prediction(self) -> Prediction | None:
        """The score and its heat map; None where there is no evidence."""

    @property
    def inspection(self) -> Inspection:
        """What was said of the part, and done with it."""


class JournalView(Protocol):
    """What happened to parts. Each of these may raise `JournalUnavailableError`."""

    def counts(self) -> Counts:
        """Return how the parts came out."""

    def recent(self, limit: int) -> Sequence[Inspection | Fault]:
        """Return the last outcomes, newest last."""

    def cursor(self, reader: str) -> int:
        """Return how far a reader of the journal has come."""

    def read(self, after_seq: int, limit: int) -> Sequence[tuple[int, JournalRecord]]:
        """Return up to `limit` records beyond `after_seq` with their seq, in order."""

    def picture(self, inspection_id: str) -> bytes | None:
        """Return the encoded picture of an inspection, if it is kept."""

    def heat(self, inspection_id: str) -> bytes | None:
        """Return the heat map over the whole picture as a grey PNG, if it is kept."""


class WaitingView(Protocol):
    """An escalation that waits for a ruling, and what was said of it so far."""

    @property
    def escalation(self) -> Escalation:
        """The question."""

    @property
    def proposal(self) -> Ruling | None:
        """An answer that is not binding: it waits for a person to confirm or overrule it."""

    @property
    def with_agent(self) -> bool:
        """Whether the agent is being asked just now; a person may still be faster."""


class DeskView(Protocol):
    """Who rules on undecided parts."""

    def waiting(self) -> Sequence[WaitingView]:
        """Return what waits, from memory."""

    def hold(self, escalation_id: str, until: datetime) -> None:
        """Keep agent and timeout off a part until then: a person has decided it."""

    async def learn(self, escalation_id: str, truth: Finding, *, source: str) -> Outcome:
        """Put on record what a part that was ruled on proved to be.

        Raises `RulingError` when the part is unknown or still waits, and
        `LedgerUnavailableError` when nothing can be put on record.
        """

    async def settle(
        self,
        escalation_id: str,
        finding: Finding,
        *,
        who: str,
        defect_class: str | None,
        reason: str,
    ) -> Ruling:
        """Put a person's finding on record.

        Raises `RulingError` when the part is unknown or somebody was first, and
        `JournalUnavailableError` when nothing can be put on record.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """What there is to see of a part."""

    picture: bool
    heat: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class InService:
    """The model that judges just now, and what is promised of it.

    `guarantee` is the manifest's own text, one line for each promise kept or not kept.
    """

    model: str
    guarantee: str
    limits: Limits


@dataclass(frozen=True, slots=True, kw_only=True)
class About:
    """What this node is and promises, as the panel says it.

    `in_service` tells the model, which may change while the node runs. `scripted` says
    that answers and prices come from the scripted provider and nobody is charged.
    `on_timeout` is what becomes of a part that nobody rules on in time. `zone` is the zone
    times are shown in, the machine's own when None. `defect_classes` are the names a
    rejected part may be given.
    """

    site: str
    line: str
    node: str
    version: str
    in_service: Callable[[], InService]
    provider: str | None
    provider_model: str | None
    scripted: bool
    started_at: datetime
    on_timeout: str | None = None
    zone: tzinfo | None = None
    defect_classes: tuple[str, ...] = ()

    @property
    def model(self) -> str:
        """Name and digest of the model in service."""
        return self.in_service().model

    @property
    def guarantee(self) -> str:
        """What is promised of it."""
        return self.in_service().guarantee

    @property
    def limits(self) -> Limits:
        """Between which of its scores a part is asked about."""
        return self.in_service().limits
