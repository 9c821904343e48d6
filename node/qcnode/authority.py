"""What an agent may do, and why not: one pure function before every action of one.

`authorize` takes all that counts as values: the policy pack, the attestation, what the
agent has earned, what it did this hour, who armed it, what is stopped. What is not known
counts as the worst. Two things hold whatever a pack says: an action never needs less than
the level of `LEVEL_OF`, and no agent starts a line again. Less of a level, of an
attestation, of confidence never allows more.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from qcnode.domain import Action, AgentLevel, Disposition

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime


class AgentAction(StrEnum):
    """What an agent may want to do."""

    INFORM = "inform"
    PROPOSE = "propose"
    SCRAP = "scrap"
    REWORK = "rework"
    RELEASE = "release"
    ADJUST = "adjust"
    STOP = "stop"
    CHOOSE_PROVIDER = "choose_provider"
    RESTART = "restart"


class Answer(StrEnum):
    """Whether it may."""

    ALLOW = "allow"
    HOLD = "hold"
    """A person confirms it; silence is no."""
    DENY = "deny"


class Code(StrEnum):
    """Why, in a word that goes on record."""

    ALLOWED = "allowed"
    STOPPED = "stopped"
    """The kill switch is set for this agent, its provider, the line, or all."""
    RESTART = "restart"
    """A line is started again by a person."""
    NOT_HELD = "not-held"
    """The part is not one that waits: nobody asked."""
    BOUNDS = "bounds"
    """The adjustment is not within the pack's bounds."""
    LEVEL = "level"
    """It takes a higher level than is set, or earned."""
    UNATTESTED = "unattested"
    """There is no attestation."""
    OTHER_AGENT = "other-agent"
    """The attestation is for another agent or provider."""
    OTHER_POLICY = "other-policy"
    """The attestation was given under another policy pack."""
    EXPIRED = "expired"
    """The attestation has ended, or not begun."""
    DRIFT = "drift"
    """The model's certificate is revoked: the line is not what the attestation saw."""
    PART_TYPE = "part-type"
    CONFIDENCE = "confidence"
    """Below the floor, or its worth on this line is not known yet."""
    NODE_DISAGREES = "node-disagrees"
    """The node itself does not lean towards good: an agent's word alone releases nothing."""
    SUSPICION = "suspicion"
    """Something on the picture may be there to persuade."""
    QUOTA = "quota"
    COST = "cost"
    """Dearer than the pack's cap, or its cost is not known."""
    UNARMED = "unarmed"
    """No two people have armed it, or their time is over."""
    RECHECK = "recheck"
    """Drawn for the blind re-check: a person rules, without being told what the agent said."""


RANK: Final[Mapping[AgentLevel, int]] = MappingProxyType(
    {level: number for number, level in enumerate(AgentLevel, start=1)}
)
LEVEL_OF: Final[Mapping[AgentAction, AgentLevel]] = MappingProxyType(
    {
        AgentAction.INFORM: AgentLevel.L1,
        AgentAction.PROPOSE: AgentLevel.L2,
        AgentAction.SCRAP: AgentLevel.L2,
        AgentAction.REWORK: AgentLevel.L2,
        AgentAction.RELEASE: AgentLevel.L3,
        AgentAction.ADJUST: AgentLevel.L4,
        AgentAction.STOP: AgentLevel.L4,
        AgentAction.CHOOSE_PROVIDER: AgentLevel.L4,
    }
)
"""The least level of each action. A pack may ask for more and never for less."""
ACTION_OF: Final[Mapping[Disposition, AgentAction]] = MappingProxyType(
    {
        Disposition.RELEASE: AgentAction.RELEASE,
        Disposition.SCRAP: AgentAction.SCRAP,
        Disposition.REWORK: AgentAction.REWORK,
    }
)
ON_A_PART: Final = frozenset(ACTION_OF.values())
ON_THE_PROCESS: Final = frozenset(
    {AgentAction.ADJUST, AgentAction.STOP, AgentAction.CHOOSE_PROVIDER}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Envelope:
    """Inside which an agent's word on one held part is enough.

    `part_types` empty is any type. `cost_pico_max` is by currency; one that is not named has
    no cap that could be kept, so a person confirms. With `overrule_node` a part may be let go
    that the node itself leans against. `recheck_share` of what would bind is
    put to a person blind, `trial_share` of everything while the agent has yet to prove itself.
    """

    part_types: tuple[str, ...] = ()
    confidence_floor: float = 1.0
    quota_per_hour: int = 0
    cost_pico_max: Mapping[str, int] = field(default_factory=dict)
    recheck_share: float = 1.0
    trial_share: float = 1.0
    overrule_node: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """Between which values an agent may set a knob, and by how much at a time."""

    low: float
    high: float
    step_max: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Pack:
    """The policy of a line: data, signed and versioned. `digest` is of the file's bytes."""

    name: str
    version: int
    digest: str
    levels: Mapping[AgentAction, AgentLevel]
    envelope: Envelope
    bounds: Mapping[str, Bounds] = field(default_factory=dict)

    def needs(self, action: AgentAction) -> AgentLevel:
        """Return the level an action takes here: the pack's, and never less than the rule's."""
        least = LEVEL_OF[action]
        return max(least, self.levels.get(action, least), key=RANK.__getitem__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Attestation:
    """An auditor's word, whose signature was checked, that this agent was examined.

    It is for one agent (whose name carries its model) at one provider, under one policy
    pack, and for a time. `start` is the level the agent begins at on this line by what the
    auditor saw; without it there is everything to prove. `right_at_least` is the share of
    right answers the auditor vouches for, until this line has settled enough of its own.
    """

    agent: str
    provider: str
    policy: str
    level: AgentLevel
    begins: datetime
    ends: datetime
    by: str
    start: AgentLevel = AgentLevel.L2
    right_at_least: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Arming:
    """Two people's word that an agent may act on the process until then."""

    first: str
    second: str
    until: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Adjustment:
    """A knob's value now, and the one that is wanted."""

    knob: str
    now: float
    wanted: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """All that counts for one action. Each default is what allows least."""

    pack: Pack
    granted: AgentLevel
    """The lesser of what the settings say and what the agent has earned."""
    at: datetime
    stopped: bool = True
    attestation: Attestation | None = None
    certified: bool = False
    provider: str | None = None
    held: bool = False
    drawn: bool = True
    part_type: str = ""
    confidence: float | None = None
    """Recalibrated on this line; None is not known."""
    node_leans: Action | None = None
    """What the node alone would do with the part."""
    suspicion: str | None = None
    taken: int | None = None
    """How many rulings of agents were binding in the hour before."""
    spent: tuple[str, int] | None = None
    """What this decision cost: currency and pico-units."""
    arming: Arming | None = None
    adjustment: Adjustment | None = None


@dataclass(frozen=True, slots=True)
class Decision:
    """The answer, and why."""

    answer: Answer
    code: Code

    @property
    def allowed(self) -> bool:
        """Whether the agent may act on its own word."""
        return self.answer is Answer.ALLOW


def authorize(  # noqa: PLR0911  # one for each kind of answer
    agent: str, action: AgentAction, context: Context
) -> Decision:
    """Say whether `agent` may do this by itself, may propose it, or may not.

    The kill switch beats everything. What an agent may not do by itself it may put to a
    person from L2 on; at L1 its word is a note.
    """
    if context.stopped:
        return Decision(Answer.DENY, Code.STOPPED)
    if action is AgentAction.RESTART:
        return Decision(Answer.DENY, Code.RESTART)
    if action in ON_A_PART and not context.held:
        return Decision(Answer.DENY, Code.NOT_HELD)
    if action is AgentAction.ADJUST and not _within_bounds(context):
        return Decision(Answer.DENY, Code.BOUNDS)
    level, why = standing(agent, context)
    if RANK[level] < RANK[context.pack.needs(action)]:
        may_propose = action is not AgentAction.PROPOSE and level is not AgentLevel.L1
        return Decision(Answer.HOLD if may_propose else Answer.DENY, why)
    hindrance = None
    if action in ON_A_PART:
        hindrance = _outside_envelope(action, context)
    elif action in ON_THE_PROCESS:
        hindrance = None if _is_armed(context) else Code.UNARMED
    if hindrance is not None:
        return Decision(Answer.HOLD, hindrance)
    return Decision(Answer.ALLOW, Code.ALLOWED)


def standing(agent: str, context: Context) -> tuple[AgentLevel, Code]:
    """Return the level that counts now, and what keeps it from being more.

    Beyond L2 it is the level granted only while an attestation covers it, and L2 at once
    when that ends or the line drifts.
    """
    granted = context.granted
    if RANK[granted] <= RANK[AgentLevel.L2]:
        return granted, Code.LEVEL
    fault = unattested(agent, context)
    if fault is not None:
        return AgentLevel.L2, fault
    if not context.certified:
        return AgentLevel.L2, Code.DRIFT
    assert context.attestation is not None  # noqa: S101  # or there were a fault
    return min(granted, context.attestation.level, key=RANK.__getitem__), Code.LEVEL


def unattested(agent: str, context: Context) -> Code | None:
    """Say what is wrong with the attestation; None where it covers this agent now."""
    attestation = context.attestation
    if attestation is None:
        return Code.UNATTESTED
    if attestation.agent != agent or attestation.provider != context.provider:
        return Code.OTHER_AGENT
    if attestation.policy != context.pack.digest:
        return Code.OTHER_POLICY
    if not attestation.begins <= context.at < attestation.ends:
        return Code.EXPIRED
    return None


def _outside_envelope(  # noqa: PLR0911  # one for each side of it
    action: AgentAction, context: Context
) -> Code | None:
    """Say what keeps a ruling from binding; only letting a part go takes confidence."""
    envelope = context.pack.envelope
    if envelope.part_types and context.part_type not in envelope.part_types:
        return Code.PART_TYPE
    if action is AgentAction.RELEASE:
        if context.suspicion is not None:
            return Code.SUSPICION
        if context.node_leans is not Action.ACCEPT and not envelope.overrule_node:
            return Code.NODE_DISAGREES
        if context.confidence is None or context.confidence < envelope.confidence_floor:
            return Code.CONFIDENCE
    if context.spent is None or not _within_cap(*context.spent, envelope):
        return Code.COST
    if context.taken is None or context.taken >= envelope.quota_per_hour:
        return Code.QUOTA
    return Code.RECHECK if context.drawn else None


def _within_cap(currency: str, pico: int, envelope: Envelope) -> bool:
    return currency in envelope.cost_pico_max and pico <= envelope.cost_pico_max[currency]


def _within_bounds(context: Context) -> bool:
    wanted = context.adjustment
    bounds = None if wanted is None else context.pack.bounds.get(wanted.knob)
    if wanted is None or bounds is None:
        return False
    # Not a number is within nothing.
    return (
        bounds.low <= wanted.wanted <= bounds.high
        and abs(wanted.wanted - wanted.now) <= bounds.step_max
    )


def _is_armed(context: Context) -> bool:
    arming = context.arming
    return arming is not None and arming.first != arming.second and context.at < arming.until
