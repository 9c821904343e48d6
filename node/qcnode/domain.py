"""What happens at an inspection station, as plain values.

Nothing here does I/O or changes once made, so any module, at the line or in the
cloud, may import it. Wall times are aware and in UTC and serve records; anything
that must happen in time is counted in nanoseconds of the monotonic clock. Ids are
made where the thing is first seen and never reused. Money is whole pico-units of
its currency (micro-currency per million tokens, times tokens) and never a float.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from datetime import datetime

    import numpy as np
    from numpy.typing import NDArray


class Verdict(StrEnum):
    """What the node can say of a part, in the words of OPC UA 40100."""

    OK = "OK"
    NOT_OK = "NOT_OK"
    NOT_DECIDABLE = "NOT_DECIDABLE"
    """There is evidence, and it is too uncertain."""
    UNDEFINED = "UNDEFINED"
    """There is no evidence: no picture, a damaged one, or no model."""


class Action(StrEnum):
    """What the gate does with a part at its deadline."""

    ACCEPT = "ACCEPT"
    REJECT = "REJECT"
    DIVERT = "DIVERT"


class Disposition(StrEnum):
    """What becomes of a diverted part."""

    RELEASE = "RELEASE"
    SCRAP = "SCRAP"
    REWORK = "REWORK"


class Decider(StrEnum):
    """Who has the last word on a part."""

    NODE = "node"
    AGENT = "agent"
    OPERATOR = "operator"
    TIMEOUT = "timeout"
    """Nobody answered in time, and the safe disposition was taken."""


class Finding(StrEnum):
    """What a reviewer saw; what may be done about it is another question."""

    GOOD = "good"
    DEFECTIVE = "defective"
    UNSURE = "unsure"


class AgentLevel(StrEnum):
    """How far an agent is trusted, from informing to changing the process."""

    L1 = "L1"
    L2 = "L2"
    L3 = "L3"
    L4 = "L4"


class ChangeStage(StrEnum):
    """How far a change of the process has come; one proposal leaves one or two on record."""

    HELD = "held"
    """It waits for a person to confirm it."""
    DENIED = "denied"
    DECLINED = "declined"
    """A person would not have it."""
    ORDERED = "ordered"
    """It is on record, and done right after."""
    DROPPED = "dropped"
    """It was ordered and not done: the kill switch, or the machine, was against it."""


class FaultKind(StrEnum):
    """Why a trigger ended without a verdict."""

    LATE = "late"
    """The verdict came after the gate's deadline; the gate took its default."""
    MISSED = "missed"
    """The line was ahead of the node, which never got the trigger; the gate took its default."""
    INTERRUPTED = "interrupted"
    """The node stopped between the trigger and the record."""
    UNRECORDED = "unrecorded"
    """The journal could not take the record; the part went the safe way."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trigger:
    """One part at the camera, as the line counts it.

    `seq` is the line's own counter from 1, without gaps. `position` is the encoder
    at the camera, in pulses. The action must be set before `deadline_ns`.
    """

    seq: int
    part_id: str
    position: int
    at_ns: int
    deadline_ns: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Frame:
    """One picture of one part, from one trigger.

    `pixels` is RGB, uint8, height x width x 3. `encoded` holds the camera's own
    bytes where it delivers any (the best evidence there is), and `name` where they
    came from, for people. `size` is rows and columns of the whole picture where `pixels`
    is less of it: `encoded`, unpacked no finer than the model looks.
    """

    id: str
    part_id: str
    camera: str
    name: str
    captured_at: datetime
    pixels: NDArray[np.uint8]
    encoded: bytes | None = None
    size: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Prediction:
    """A score from one model version: the higher, the less like a good part.

    `heat` is the anomaly map over the whole picture (float32, rows x columns, in
    the score's own units); its peak is the evidence. `limits` are those of this model,
    where several take turns; None where whoever judges knows them.
    """

    score: float
    model: str
    heat: NDArray[np.float32] | None = None
    limits: Limits | None = None

    def __post_init__(self) -> None:
        if not math.isfinite(self.score):
            raise ValueError(f"a score must be a finite number, not {self.score}")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Evidence:
    """What is kept of an undecided part, for whoever rules on it.

    `heat_full` is the score that is drawn as full heat: the limit from which the model
    that judged the part rejects, so that heat means the same on every part.
    """

    frame: Frame | None
    heat: NDArray[np.float32] | None
    heat_full: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Between which scores a part is asked about; a limit not earned is None.

    Without `accept_below` no part passes unasked, without `reject_from` none is
    rejected unasked.
    """

    accept_below: float | None
    reject_from: float | None

    def __post_init__(self) -> None:
        for limit in (self.accept_below, self.reject_from):
            if limit is not None and not math.isfinite(limit):
                raise ValueError(f"a limit must be a finite number: {self}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Allowance:
    """What the budgets leave for questions.

    `fits` is how many more requests may be made now, each at its worst case; None is no
    limit. `share` is what part of the undecided parts the rest of the windows can pay for,
    from 0 to 1.
    """

    fits: int | None
    share: float

    def __post_init__(self) -> None:
        if not 0.0 <= self.share <= 1.0:
            raise ValueError(f"a share lies between 0 and 1: {self}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """One part judged once; judging again makes another.

    `latency_us` runs from the trigger to the action handed to the line. `reason` says why
    there is no evidence when the verdict is UNDEFINED, or why a part is asked about that
    the earned limits decide. `audit`: they would pass it, and a person looks at it.
    """

    id: str
    trigger_seq: int
    part_id: str
    verdict: Verdict
    action: Action
    score: float | None
    model: str
    captured_at: datetime
    latency_us: int
    picture: str | None = None
    picture_sha256: str | None = None
    reason: str | None = None
    audit: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One trigger that ended without a verdict, and what is known of it."""

    id: str
    trigger_seq: int
    part_id: str
    kind: FaultKind
    reason: str
    at: datetime
    late_verdict: Verdict | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Passage:
    """One part at the gate: what the gate did, whatever had been asked of it."""

    id: str
    trigger_seq: int
    part_id: str
    action: Action
    commanded: bool
    """Whether the action was set in time, or is the gate's own default."""
    at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Box:
    """A rectangle in pixels of the picture."""

    left: int
    top: int
    width: int
    height: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Escalation:
    """A question the node could not settle, about one diverted part."""

    id: str
    inspection_id: str
    part_id: str
    reason: str
    score: float | None
    opened_at: datetime
    expires_at: datetime
    box: Box | None = None
    """Where the evidence is, in the picture's own pixels."""
    audit: bool = False
    """Whether this is a passed part that a person checks; the agent is not asked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Opinion:
    """What a reviewer says of a part, before it is known what that may change."""

    finding: Finding
    defect_class: str | None
    reason: str
    confidence: float | None
    who: str
    provider: str | None = None
    """Who was asked, as the settings call them."""
    spent: tuple[str, int] | None = None
    """What this opinion cost: currency and pico-units; None is not known."""
    suspicion: str | None = None
    """What on the picture may be there to persuade; None is nothing."""

    def __post_init__(self) -> None:
        if self.confidence is not None and not 0.0 <= self.confidence <= 1.0:
            raise ValueError(f"confidence is a share between 0 and 1, not {self.confidence}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ruling:
    """The answer to an escalation, by agent or operator, and why.

    A ruling that is not `binding` is a proposal: the part stays where it is until
    a person confirms or overrules it. Of an agent's, `code` says why it binds or waits, and
    one that is `blind` was drawn for a person to rule without knowing it.
    """

    id: str
    escalation_id: str
    part_id: str
    by: Decider
    who: str
    finding: Finding
    disposition: Disposition | None
    binding: bool
    reason: str
    defect_class: str | None
    confidence: float | None
    at: datetime
    provider: str | None = None
    code: str | None = None
    blind: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class CertificateChange:
    """The certificate of a model was revoked, or put in force again by a person.

    `picture_at_fault` says whether light, focus, place or camera is what had changed.
    """

    id: str
    model: str
    valid: bool
    reason: str
    who: str
    at: datetime
    picture_at_fault: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessChange:
    """A step in the life of a proposed change of the process: who, what, from, to, and why.

    `knob` is what is turned, or "stop" and "restart" for the line as a whole, which have no
    values. `by` is whose idea it was, and `confirmed_by` the person who let it happen. `tokens`
    is what the advice used; None is not known. `undoes` is the proposal it takes back.
    """

    id: str
    proposal_id: str
    stage: ChangeStage
    knob: str
    before: float | None
    after: float | None
    by: Decider
    who: str
    reason: str
    code: str
    tokens: int | None
    at: datetime
    confirmed_by: str | None = None
    undoes: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """Who was chosen to be asked about a part, why, and why none of the others.

    `permit` is the leave under which its picture goes there, in words.
    """

    id: str
    escalation_id: str
    provider: str
    model: str
    reason: str
    passed_over: tuple[str, ...]
    permit: str
    at: datetime


JournalRecord: TypeAlias = (
    Inspection | Fault | Passage | Escalation | Ruling | CertificateChange | ProcessChange | Choice
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """How the parts came out since the journal began."""

    parts: int = 0
    ok: int = 0
    not_ok: int = 0
    not_decidable: int = 0
    undefined: int = 0
    faults: int = 0
    escalated: int = 0
    ruled: int = 0
    waiting: int = 0
