"""What a node says and hears at the broker, message by message. Pure.

These types are the schema: payloads are written and read through them, and the AsyncAPI
file and the documentation are made of them. Everything is JSON in UTF-8 of at most 4 KiB
without pictures. A reader knows an event by its `id`, which it may see more than once, and
orders parts by `seq`; neither arrival nor the camera's own numbers say anything.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final, Literal, TypeAlias

import msgspec

from qcnode.domain import Disposition, Escalation, Fault, Inspection, Ruling

if TYPE_CHECKING:
    from datetime import datetime

    from qcnode.domain import JournalRecord
    from qcnode.health import Health

COMMAND_BYTES_MAX: Final = 8_192
COMMAND_LIFE_MAX_S: Final = 30
US_PER_MS: Final = 1_000

Text: TypeAlias = Annotated[str, msgspec.Meta(max_length=500)]
Id: TypeAlias = Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
Role: TypeAlias = Literal["viewer", "operator", "engineer", "billing"]
PackMlState: TypeAlias = Literal["Idle", "Execute", "Held", "Stopped"]
Status: TypeAlias = Literal["applied", "rejected", "expired", "superseded"]


class State(msgspec.Struct, frozen=True, kw_only=True):
    """Whether the node is there and what it does; retained, and the will with `online` false."""

    v: Literal[1] = 1
    online: bool
    node: str
    boot_id: str
    sw_version: str
    packml_state: PackMlState
    ready: bool
    degraded: bool
    model: str
    reason: str
    ts: str


class Heartbeat(msgspec.Struct, frozen=True, kw_only=True):
    """Every 500 ms: the loop is alive. `mono_ms` counts from a start of its own."""

    v: Literal[1] = 1
    seq: int
    ready: bool
    mono_ms: int
    oldest_pending_ms: int
    """For how long the part in hand has been in hand."""


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """Which part. `tag` is what a trigger controller calls it, 0 to 255 and round."""

    id: str
    seq: int
    tag: int


class VerdictEvent(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=False):
    """One part: a verdict and an action, or the fault it ended as."""

    v: Literal[1] = 1
    id: str
    part: Part
    verdict: Literal["OK", "NOT_OK", "NOT_DECIDABLE", "UNDEFINED"] | None
    action: Literal["ACCEPT", "REJECT", "DIVERT"] | None
    """What was set in time; null: the gate took its default."""
    fault: Literal["late", "missed", "interrupted", "unrecorded"] | None
    score: float | None
    model: str | None
    latency_us: int | None
    """From the trigger to the action."""
    reason: str | None
    picture_sha256: str | None
    ts: str


class EscalationEvent(msgspec.Struct, frozen=True, kw_only=True):
    """A diverted part was put to the agent or an operator."""

    v: Literal[1] = 1
    id: str
    part_id: str
    inspection_id: str
    reason: str
    score: float | None
    expires: str
    ts: str


class DispositionEvent(msgspec.Struct, frozen=True, kw_only=True):
    """What was ruled on a diverted part; one that is not binding is a proposal."""

    v: Literal[1] = 1
    id: str
    escalation_id: str
    part_id: str
    finding: Literal["good", "defective", "unsure"]
    disposition: Literal["RELEASE", "SCRAP", "REWORK"] | None
    binding: bool
    by: Literal["node", "agent", "operator", "timeout"]
    who: str
    reason: str
    ts: str


class Alarm(msgspec.Struct, frozen=True, kw_only=True):
    """Something is not well (`active`), or is again."""

    v: Literal[1] = 1
    id: str
    code: str
    severity: Literal["critical", "warning"]
    """Critical: parts cannot be judged, and take the gate's default."""
    active: bool
    words: str
    since: str
    ts: str


class Alarms(msgspec.Struct, frozen=True, kw_only=True):
    """All that is not well now; retained."""

    v: Literal[1] = 1
    active: tuple[Alarm, ...]
    ts: str


class Totals(msgspec.Struct, frozen=True, kw_only=True):
    """What was spent so far, for looking at; retained. Bills are made of `meter/usage` alone.

    Money is in pico-units of its currency.
    """

    v: Literal[1] = 1
    epoch: str
    last_seq: int
    acked_seq: int
    input_tokens: int
    output_tokens: int
    cost_pico: dict[str, int]
    held_pico: dict[str, int]
    ts: str


class Command(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What every command says. `iat` and `exp` are seconds since 1970, at most 30 s apart."""

    id: Id
    iat: int
    exp: int
    actor: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9._@-]{1,64}$")]
    role: Role


class PingCommand(Command, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Ask whether commands arrive; changes nothing."""


class RefreshCommand(Command, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Ask for everything that is retained to be said anew."""


class RuleCommand(Command, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Rule on a diverted part, as an operator does at the panel."""

    escalation_id: Id
    finding: Literal["good", "defective", "unsure"]
    defect_class: Annotated[str, msgspec.Meta(max_length=100)] | None = None
    reason: Text = ""


class KillCommand(Command, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Stop something at once: `all`, `line`, `agent:NAME` or `provider:NAME`.

    It is done before it is put on record, and cannot be undone from here.
    """

    scope: Annotated[str, msgspec.Meta(min_length=1, max_length=80)] = "all"
    reason: Text = ""


class Reply(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to a command; `id` is null when it could not be read."""

    v: Literal[1] = 1
    id: str | None
    command: str
    status: Status
    reason: str
    ts: str


COMMANDS: Final[dict[str, tuple[type[Command], tuple[Role, ...]]]] = {
    "ping": (PingCommand, ("viewer", "operator", "engineer")),
    "refresh": (RefreshCommand, ("viewer", "operator", "engineer")),
    "rule": (RuleCommand, ("operator", "engineer")),
    "kill": (KillCommand, ("operator", "engineer")),
}
"""What is sent to each command's topic, and who may."""

Event: TypeAlias = VerdictEvent | EscalationEvent | DispositionEvent

encode = msgspec.json.Encoder().encode


def event_of(record: JournalRecord) -> Event | None:
    """Return what is told of a record; None is told of some."""
    if isinstance(record, Inspection | Fault):
        return _verdict(record)
    if isinstance(record, Escalation):
        return EscalationEvent(
            id=record.id,
            part_id=record.part_id,
            inspection_id=record.inspection_id,
            reason=record.reason,
            score=record.score,
            expires=stamp(record.expires_at),
            ts=stamp(record.opened_at),
        )
    if isinstance(record, Ruling):
        return DispositionEvent(
            id=record.id,
            escalation_id=record.escalation_id,
            part_id=record.part_id,
            finding=record.finding.value,
            disposition=None if record.disposition is None else _word(record.disposition),
            binding=record.binding,
            by=record.by.value,
            who=record.who,
            reason=record.reason,
            ts=stamp(record.at),
        )
    return None


def alarm_of(health: Health, *, alarm_id: str, now: datetime) -> Alarm:
    """Return what is told of a component's state."""
    return Alarm(
        id=alarm_id,
        code=health.component.replace(" ", "-"),
        severity="critical" if health.needed else "warning",
        active=not health.ok,
        words=health.words[:500],
        since=stamp(health.since),
        ts=stamp(now),
    )


def stamp(at: datetime) -> str:
    """Write an instant as every message has it."""
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _verdict(record: Inspection | Fault) -> VerdictEvent:
    # The tag is the convention of `track.tag_of`.
    part = Part(id=record.part_id, seq=record.trigger_seq, tag=record.trigger_seq % 256)
    if isinstance(record, Fault):
        late = record.late_verdict
        return VerdictEvent(
            id=record.id,
            part=part,
            verdict=None if late is None else late.value,
            action=None,
            fault=record.kind.value,
            score=None,
            model=None,
            latency_us=None,
            reason=record.reason,
            picture_sha256=None,
            ts=stamp(record.at),
        )
    return VerdictEvent(
        id=record.id,
        part=part,
        verdict=record.verdict.value,
        action=record.action.value,
        fault=None,
        score=record.score,
        model=record.model,
        latency_us=record.latency_us,
        reason=record.reason,
        picture_sha256=record.picture_sha256,
        ts=stamp(record.captured_at),
    )


def _word(disposition: Disposition) -> Literal["RELEASE", "SCRAP", "REWORK"]:
    return disposition.value
