"""What an alarm is here, after ISA-18.2, and the rationalised list of them. Pure.

An alarm asks a person to do something; whatever does not is an event and stands in no list.
Each has a cause, a consequence and an action, a delay before it is raised and another
before it is cleared, so that something that flickers is one alarm and not fifty. While an
alarm that explains another one stands, that other one is suppressed by design.
`docs/alarms.md` is written from this list.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

SHELF_MAX = timedelta(hours=8)
"""No alarm is put away for longer than a shift."""


class State(StrEnum):
    """The states of ISA-18.2."""

    NORMAL = "normal"
    UNACKED = "unacked"
    ACKED = "acked"
    CLEARED = "cleared"
    """Gone by itself, and nobody has seen it yet."""
    SHELVED = "shelved"
    SUPPRESSED = "suppressed"
    OUT_OF_SERVICE = "out_of_service"


SHOWN = (State.UNACKED, State.ACKED, State.CLEARED)
"""States in which an alarm asks for something."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """One alarm that this node can raise; priority 1 is the most urgent."""

    key: str
    priority: int
    name: str
    cause: str
    consequence: str
    action: str
    on_delay: timedelta = timedelta(seconds=1)
    off_delay: timedelta = timedelta(seconds=10)
    suppressed_by: tuple[str, ...] = ()


KINDS = (
    Kind(
        key="line",
        priority=1,
        name="Line stands or is not heard",
        cause="The line's own interface reports a stop, or does not answer.",
        consequence="No part is judged. What is in the divert lane can still be ruled on.",
        action="Look at the line; start it again, or call the line's engineer.",
    ),
    Kind(
        key="camera",
        priority=1,
        name="Camera gives no picture",
        cause="No usable picture came for a trigger: cable, power, light, or a frozen camera.",
        consequence="No part gets a verdict; every part goes the safe way.",
        action="Look at camera, cable and light. If it stays dark, stop the line.",
    ),
    Kind(
        key="model",
        priority=1,
        name="Model does not judge",
        cause="The model could not be loaded or gave an answer that is no score.",
        consequence="No part gets a verdict; every part goes the safe way.",
        action="Call the engineer; go back to the release before.",
    ),
    Kind(
        key="journal",
        priority=1,
        name="Journal takes no records",
        cause="The disk is full, broken, or hangs.",
        consequence="Parts go the safe way once the queue before the disk is used up.",
        action="Free the disk or call the engineer.",
    ),
    Kind(
        key="kill",
        priority=1,
        name="Stopped by the kill switch",
        cause="Somebody stopped an agent, a provider, the line or all: panel, command or file.",
        consequence="What is stopped does nothing. With the line stopped every part goes the safe"
        " way, and only people move parts out of the divert lane.",
        action="Find out why. Two people with the role of a supervisor clear it on Health.",
        on_delay=timedelta(0),
        off_delay=timedelta(0),
    ),
    Kind(
        key="help",
        priority=1,
        name="Help was called",
        cause="Somebody pressed Call help at a screen.",
        consequence="A person at the line waits.",
        action="Go there, then press Help is here.",
        on_delay=timedelta(0),
        off_delay=timedelta(0),
    ),
    Kind(
        key="ledger",
        priority=2,
        name="Ledger takes no entries",
        cause="The disk is full, broken, or hangs; or the chain does not verify.",
        consequence="The agent is asked nothing, so that nothing is spent unrecorded; doubtful"
        " parts wait for people.",
        action="Call the engineer; rule on the waiting parts.",
    ),
    Kind(
        key="blind",
        priority=2,
        name="Parts without a verdict",
        cause="Three of the last ten parts were UNDEFINED or ended without a verdict.",
        consequence="These parts go the safe way and fill the divert lane.",
        action="Look at light, lens and part position.",
        suppressed_by=("camera", "model", "line"),
    ),
    Kind(
        key="rejects",
        priority=2,
        name="Five rejects in a row",
        cause="The last five parts were all NOT OK: a process that went wrong, or a wrong model.",
        consequence="Scrap piles up.",
        action="Look at the parts; call the process owner if the defects are real.",
        suppressed_by=("camera", "model", "line"),
    ),
    Kind(
        key="queue",
        priority=2,
        name="Parts wait too long",
        cause="Ten parts wait for a ruling, or the oldest has used up half of its time.",
        consequence="The divert lane fills; parts nobody rules on take the safe disposition.",
        action="Rule on the waiting parts, or call a second person.",
        on_delay=timedelta(seconds=5),
    ),
    Kind(
        key="budget-gone",
        priority=2,
        name="Budget is used up",
        cause="Not one more question fits a budget, or the server lends none of it.",
        consequence="Doubtful parts wait for people instead of the agent.",
        action="Rule on the waiting parts; ask the budget's owner for more.",
    ),
    Kind(
        key="budget-low",
        priority=3,
        name="Budget will not last",
        cause="More than 80 % are used, or going on like this uses it up before its end.",
        consequence="Later parts will wait for people.",
        action="Look at Spend; ask the budget's owner.",
        on_delay=timedelta(seconds=30),
        off_delay=timedelta(minutes=1),
        suppressed_by=("budget-gone",),
    ),
    Kind(
        key="provider",
        priority=3,
        name="Agent cannot be reached",
        cause="The network or the provider is down, or refuses.",
        consequence="Doubtful parts wait for people. Nothing is lost.",
        action="Rule on the waiting parts; look at the network if it stays.",
        on_delay=timedelta(seconds=5),
    ),
    Kind(
        key="billing",
        priority=3,
        name="Billing server does not confirm",
        cause="Broker or billing server cannot be reached, or refuses entries.",
        consequence="Entries wait on this node's disk. Nothing is lost.",
        action="Look at the network; call the engineer if it stays for a shift.",
        on_delay=timedelta(seconds=5),
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Alarm:
    """One alarm as it stands; `changing_since` is when its condition began to differ."""

    key: str
    state: State = State.NORMAL
    on: bool = False
    words: str = ""
    since: datetime | None = None
    changing_since: datetime | None = None
    acked_by: str = ""
    until: datetime | None = None
    reason: str = ""
    put_by: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One thing that happened to an alarm; `who` is empty where nobody did it."""

    at: datetime
    key: str
    what: str
    who: str = ""
    reason: str = ""


def step(
    alarm: Alarm, kind: Kind, *, words: str | None, suppressed: bool, now: datetime
) -> tuple[Alarm, list[Event]]:
    """Return the alarm after one look; `words` say its condition, None where there is none."""
    events: list[Event] = []
    alarm, turned = _turned(alarm, kind, words, now)
    if alarm.state is State.SHELVED and alarm.until is not None and alarm.until <= now:
        events.append(Event(at=now, key=kind.key, what="unshelved"))
        alarm = replace(_back(alarm), until=None, reason="", put_by="")
        turned = alarm.on
    elif alarm.state is State.SUPPRESSED and not suppressed:
        alarm = _back(alarm)
        turned = alarm.on
    if alarm.state in (State.SHELVED, State.OUT_OF_SERVICE):
        return alarm, events
    if suppressed:
        return replace(alarm, state=State.SUPPRESSED), events
    if turned and alarm.on:
        events.append(Event(at=now, key=kind.key, what="raised", reason=alarm.words))
        alarm = replace(alarm, state=State.UNACKED, since=now, acked_by="")
    elif turned:
        events.append(Event(at=now, key=kind.key, what="cleared"))
        gone = State.NORMAL if alarm.state in (State.ACKED, State.NORMAL) else State.CLEARED
        alarm = replace(alarm, state=gone)
    return alarm, events


def acknowledge(alarm: Alarm, *, who: str, now: datetime) -> tuple[Alarm, list[Event]]:
    """Note that somebody has seen this alarm."""
    if alarm.state is State.UNACKED:
        return replace(alarm, state=State.ACKED, acked_by=who), [_by(alarm, "acked", who, now)]
    if alarm.state is State.CLEARED:
        return replace(alarm, state=State.NORMAL, acked_by=who), [_by(alarm, "acked", who, now)]
    return alarm, []


def shelve(
    alarm: Alarm, *, who: str, reason: str, until: datetime, now: datetime
) -> tuple[Alarm, list[Event]]:
    """Put an alarm away until `until`; it comes back by itself."""
    if not now < until <= now + SHELF_MAX:
        raise ValueError(f"an alarm is shelved for at most {SHELF_MAX}")
    put = replace(alarm, state=State.SHELVED, until=until, reason=reason, put_by=who)
    return put, [_by(alarm, "shelved", who, now, reason)]


def withdraw(alarm: Alarm, *, who: str, reason: str, now: datetime) -> tuple[Alarm, list[Event]]:
    """Take an alarm out of service until somebody puts it back."""
    out = replace(alarm, state=State.OUT_OF_SERVICE, until=None, reason=reason, put_by=who)
    return out, [_by(alarm, "withdrawn", who, now, reason)]


def restore(alarm: Alarm, *, who: str, now: datetime) -> tuple[Alarm, list[Event]]:
    """Bring an alarm back from the shelf or into service; if its condition holds, it is new."""
    if alarm.state not in (State.SHELVED, State.OUT_OF_SERVICE):
        return alarm, []
    events = [_by(alarm, "restored", who, now)]
    back = replace(_back(alarm), until=None, reason="", put_by="")
    if back.on:
        events.append(Event(at=now, key=alarm.key, what="raised", reason=back.words))
        back = replace(back, state=State.UNACKED, since=now)
    return back, events


def page(kinds: Iterable[Kind] = KINDS) -> str:
    """Write the list of alarms as docs/alarms.md has it."""
    rows = [
        "# Alarms",
        "",
        "Written from `node/qcnode/panel/alarms.py` by `make panel-docs`; a test compares the two.",
        "Priority 1 asks for a person within a minute, 2 within ten, 3 within the shift. A part",
        "that was rejected is an event; an alarm asks somebody to do something.",
        "",
        "| alarm | priority | cause | consequence | do | raised after | cleared after | unless |",
        "|---|---|---|---|---|---|---|---|",
    ]
    rows += [
        f"| **{one.name}** (`{one.key}`) | {one.priority} | {one.cause} | {one.consequence}"
        f" | {one.action} | {one.on_delay.total_seconds():g} s"
        f" | {one.off_delay.total_seconds():g} s | {', '.join(one.suppressed_by) or '-'} |"
        for one in kinds
    ]
    return "\n".join(rows) + "\n"


def _turned(alarm: Alarm, kind: Kind, words: str | None, now: datetime) -> tuple[Alarm, bool]:
    """Take in the condition, and say whether it has by now turned for good."""
    wanted = words is not None
    if words is not None:
        alarm = replace(alarm, words=words)
    if wanted == alarm.on:
        return replace(alarm, changing_since=None), False
    since = alarm.changing_since or now
    if now - since < (kind.on_delay if wanted else kind.off_delay):
        return replace(alarm, changing_since=since), False
    return replace(alarm, on=wanted, changing_since=None), True


def _back(alarm: Alarm) -> Alarm:
    return replace(alarm, state=State.NORMAL)


def _by(alarm: Alarm, what: str, who: str, now: datetime, reason: str = "") -> Event:
    return Event(at=now, key=alarm.key, what=what, who=who, reason=reason)
