"""What the panel shows, made from what is known: words, numbers and places on a scale.

Pure, and the only place where anything is computed for the screen: the browser
draws what it is given. Sentences come from the catalogue of the screen's language; what
the node's parts say of themselves, and names, are passed on as they are. Whatever is not
known is None and shown as a dash, never as zero. Money keeps its exact pico-units beside
the rounded words.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, TypeAlias

from qcnode.books.forecast import Alarm
from qcnode.domain import Decider, Fault, Finding, Inspection, Verdict
from qcnode.money import CostCentre

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import tzinfo

    from qcnode.books.budgets import Budget
    from qcnode.books.forecast import Forecast, Outlook
    from qcnode.domain import Counts, Limits, Ruling
    from qcnode.health import Health
    from qcnode.money import LedgerTotals
    from qcnode.panel.decisions import Lease, Pending
    from qcnode.panel.sources import About, Kept, LiveView, WaitingView
    from qcnode.panel.words import Words

Json: TypeAlias = dict[str, Any]

STRIP_MAX = 120
"""How many of the last parts the strip shows."""
WAITING_SHOWN_MAX = 25
"""How many waiting parts a browser is told of; the rest follow as these are settled."""
BUDGETS_SHOWN_MAX = 3
"""How many budgets fit the screen; those with an alarm come first."""
AGENT_FIRST = timedelta(seconds=2)
"""How long the agent has a part to itself: what it answers at once flashes past nobody."""
EXPECTED = ("camera", "model", "line", "journal", "ledger", "billing", "provider")
"""Components every node has, in the order they are shown; silence of one is shown too."""

DASH = "\N{EM DASH}"
PICO = 10**12
MICRO_PER_UNIT = 10**6
PICO_PER_MICRO = PICO // MICRO_PER_UNIT

_VERDICTS = {
    Verdict.OK: ("ok", "OK"),
    Verdict.NOT_OK: ("not_ok", "NOT OK"),
    Verdict.NOT_DECIDABLE: ("not_decidable", "NOT DECIDABLE"),
    Verdict.UNDEFINED: ("undefined", "UNDEFINED"),
}
_FINDINGS = {
    Finding.GOOD: "good",
    Finding.DEFECTIVE: "defective",
    Finding.UNSURE: "unsure",
}
_ALARMS: dict[Alarm | None, tuple[int, str | None]] = {
    Alarm.NOT_LENT: (0, "budget.not_lent"),
    Alarm.EXHAUSTED: (1, "budget.exhausted"),
    Alarm.OVER: (2, "budget.over"),
    Alarm.MUCH: (3, "budget.much"),
    None: (4, None),
}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def part(live: LiveView, limits: Limits, *, zone: tzinfo | None) -> Json:
    """Describe the current part; this travels with its picture, in one message."""
    inspection, frame = live.inspection, live.frame
    kind, word = _VERDICTS[inspection.verdict]
    return {
        "id": inspection.id,
        "number": inspection.trigger_seq,
        "part_id": inspection.part_id,
        "camera": None if frame is None else frame.camera,
        "name": None if frame is None else frame.name,
        "verdict": {"kind": kind, "word": word},
        "action": inspection.action.value,
        "reason": inspection.reason,
        "scale": scale(inspection.score, limits),
        "latency": f"{inspection.latency_us / 1000:.1f} ms",
        "captured": clock(inspection.captured_at, zone, millis=True),
        "model": inspection.model,
    }


def scale(score: float | None, limits: Limits) -> Json:
    """Place a score between pass, ask and reject, from 0 (left) to 1 (right).

    The scale hangs on the limits alone, so it stands still while parts pass. A
    limit that was not earned leaves its zone out. A score off the scale is put at
    its end and said to be `beyond`.
    """
    known = sorted(
        limit for limit in (limits.accept_below, limits.reject_from) if limit is not None
    )
    digits = _digits([*known, *([] if score is None else [score])])
    if not known:
        low, high = (0.0, 2 * abs(score) or 1.0) if score is not None else (0.0, 1.0)
    else:
        room = max(known[-1] - known[0], abs(known[-1]) / 4) or 1.0
        low, high = known[0] - room, known[-1] + room

    def place(value: float) -> float:
        return round(min(max((value - low) / (high - low), 0.0), 1.0), 4)

    # As `judge` does: where the limits cross, everything between them is asked about.
    accept = None if limits.accept_below is None else known[0]
    reject = None if limits.reject_from is None else known[-1]
    return {
        "score": None if score is None else f"{score:.{digits}f}",
        "at": None if score is None else place(score),
        "beyond": score is not None and not low <= score <= high,
        "accept": None if accept is None else {"at": place(accept), "text": f"{accept:.{digits}f}"},
        "reject": None if reject is None else {"at": place(reject), "text": f"{reject:.{digits}f}"},
    }


def counters(counts: Counts | None) -> Json | None:
    """Return the counters with thousands set apart; None where they are not known."""
    if counts is None:
        return None
    return {
        name: grouped(getattr(counts, name))
        for name in (
            "parts",
            "ok",
            "not_ok",
            "not_decidable",
            "undefined",
            "faults",
            "escalated",
            "ruled",
            "waiting",
        )
    }


def strip(say: Words, recent: Sequence[Inspection | Fault] | None) -> Json | None:
    """Return the last outcomes, oldest first, and the same in one sentence."""
    if recent is None:
        return None
    kinds = [_kind(outcome) for outcome in recent[-STRIP_MAX:]]
    tally = Counter(kinds)
    named = [kind for kind, _ in _VERDICTS.values()] + ["fault"]
    spoken = ", ".join(f"{tally[kind]} {say(f'strip.{kind}')}" for kind in named if tally[kind])
    return {
        "kinds": kinds,
        "words": say("strip.words", count=len(kinds), spoken=spoken or say("strip.none")),
    }


def queue(say: Words, desk: Sequence[WaitingView], *, now: datetime) -> Json:
    """Return how many parts wait and since when, for those who may not rule on them."""
    oldest = min((one.escalation.opened_at for one in desk), default=None)
    return {"total": len(desk), "oldest": None if oldest is None else age(say, now - oldest)}


def waiting(
    say: Words,
    desk: Sequence[WaitingView],
    about: About,
    *,
    kept: Mapping[str, Kept],
    leases: Mapping[str, Lease],
    pending: Mapping[str, Pending],
    look_first: float,
    now: datetime,
) -> Json:
    """Return the parts a person can rule on, in turn, and how many there are.

    A part that somebody decided and nobody released yet is among `deciding`. Of the share
    `look_first` the agent's opinion is left out: people look before they are told.

    `more` names those beyond the shown ones: a part that is named nowhere is settled.
    """
    turn = in_turn([one for one in desk if one.escalation.id not in pending])
    oldest = min((one.escalation.opened_at for one in turn), default=None)
    return {
        "total": len(turn),
        "oldest": None if oldest is None else age(say, now - oldest),
        "parts": [
            _waiting_part(
                say,
                one,
                about,
                kept=kept.get(one.escalation.inspection_id),
                lease=leases.get(one.escalation.id),
                look_first=look_first,
                now=now,
            )
            for one in turn[:WAITING_SHOWN_MAX]
        ],
        "more": [one.escalation.id for one in turn[WAITING_SHOWN_MAX:]],
        "deciding": [
            {
                "id": one.escalation_id,
                "part_id": one.part_id,
                "word": say(f"finding.{one.finding}"),
                "who": one.who,
                "tag": one.tag,
                "left_s": max(0, math.ceil((one.release_at - now).total_seconds())),
            }
            for one in pending.values()
        ],
    }


def looks_first(escalation_id: str, share: float) -> bool:
    """Say whether of this part the agent's opinion is shown only after the person's own.

    It hangs on the id alone, so it is the same for everybody and after a restart.
    """
    digest = hashlib.sha256(escalation_id.encode()).digest()
    return int.from_bytes(digest[:4], "big") < share * 2**32


def in_turn(desk: Sequence[WaitingView]) -> list[WaitingView]:
    """Return the oldest first, and those with the agent behind all others."""
    return sorted(
        desk, key=lambda one: (one.with_agent, one.escalation.opened_at, one.escalation.id)
    )


def settled(say: Words, rulings: Sequence[Ruling], about: About) -> Json:
    """Say of each escalation that was settled lately by whom, in one sentence."""
    return {ruling.escalation_id: _settled_words(say, ruling, about) for ruling in rulings}


def money(
    say: Words,
    totals: LedgerTotals | None,
    about: About,
    *,
    outlooks: Sequence[Outlook] | None,
    confirmed: int | None,
    now: datetime,
) -> Json:
    """Return the books in one look. Measured, held and unpriced are never added up."""
    view: Json = {"scripted": say("scripted") if about.scripted else None}
    if totals is None or outlooks is None:
        return view | {"known": False}
    limited = {currency for one in outlooks if (currency := one.state.budget.currency)}
    currencies = sorted({*totals.cost_pico, *totals.held_pico, *limited})
    waits = None if confirmed is None else max(0, totals.entries - confirmed)
    return view | {
        "known": True,
        "rows": [
            {
                "currency": currency,
                "measured": amount(totals.cost_pico.get(currency, 0)),
                "measured_pico": str(totals.cost_pico.get(currency, 0)),
                "held": amount(totals.held_pico.get(currency, 0)),
                "held_pico": str(totals.held_pico.get(currency, 0)),
            }
            for currency in currencies
        ],
        "attempts": grouped(totals.attempts),
        "open": totals.open,
        "indeterminate": totals.indeterminate,
        "unpriced": totals.unpriced,
        "unpriced_words": say.count("money.unpriced", totals.unpriced),
        "input_tokens": grouped(totals.input_tokens),
        "output_tokens": grouped(totals.output_tokens),
        "budgets": budgets(say, outlooks, about, now=now),
        "entries": totals.entries,
        "unconfirmed": waits,
        "unconfirmed_words": None
        if waits is None
        else say("money.of", part=waits, whole=totals.entries),
    }


def budgets(say: Words, outlooks: Sequence[Outlook], about: About, *, now: datetime) -> Json:
    """Return the budgets, those with an alarm first, and how many more there are."""
    turn = sorted(outlooks, key=lambda one: _ALARMS[one.alarm][0])
    return {
        "shown": [_budget(say, one, about, now) for one in turn[:BUDGETS_SHOWN_MAX]],
        "more": max(0, len(turn) - BUDGETS_SHOWN_MAX),
    }


def bars(
    say: Words, outlooks: Sequence[Outlook] | None, about: About, *, now: datetime
) -> Json | None:
    """Return the budgets as bars without a figure, for those who may see no money."""
    if outlooks is None:
        return None
    shown = budgets(say, outlooks, about, now=now)
    names = ("name", "window", "alarm", "bad", "bar")
    return shown | {"shown": [{name: one[name] for name in names} for one in shown["shown"]]}


def _budget(say: Words, one: Outlook, about: About, now: datetime) -> Json:
    state, coming = one.state, one.forecast
    budget, limit = state.budget, state.limit
    rank, word = _ALARMS[one.alarm]
    return {
        "name": budget.name,
        "window": say(f"budget.this.{budget.window}"),
        "scope": ", ".join(
            f"{name} {value}"
            for name in CostCentre.__slots__
            if (value := getattr(budget.scope, name))
        ),
        "used": say(
            "budget.used",
            used=quantity(state.used, budget),
            limit=quantity(limit, budget),
            unit=budget.currency or say(f"budget.unit.{budget.unit}"),
        )
        if state.lent
        else DASH,
        "held": quantity(state.held, budget) if state.held else None,
        "forecast": None if coming is None else _coming(say, coming, budget),
        "used_up": None
        if coming is None or coming.used_up_us is None
        else clock(_time(coming.used_up_us), about.zone, near=now, seconds=False),
        "alarm": None if word is None else say(word),
        "bad": rank < 2,  # noqa: PLR2004  # nothing may be asked any more
        # Everything as a share of the limit, at the right end of the bar.
        "bar": {
            "spent": _share(state.used - state.held, limit),
            "held": _share(state.used, limit),
            "expected": None if coming is None else _share(coming.expected, limit),
            "low": None if coming is None else _share(coming.low, limit),
            "high": None if coming is None else _share(coming.high, limit),
            "beyond": coming is not None and coming.expected > limit,
        },
    }


def _coming(say: Words, coming: Forecast, budget: Budget) -> str:
    low, high = quantity(coming.low, budget), quantity(coming.high, budget)
    expected = quantity(coming.expected, budget)
    if low == high:
        return say("budget.ends", expected=expected)
    return say("budget.ends.likely", expected=expected, low=low, high=high)


def _share(part: int, whole: int) -> float:
    return round(min(max(part / whole, 0.0), 1.0), 4) if whole else float(part > 0)


def _time(at_us: int) -> datetime:
    return _EPOCH + timedelta(microseconds=at_us)


def quantity(count: int, budget: Budget) -> str:
    """Write what a budget counts: money to three figures, and tokens and calls in full."""
    if budget.unit != "money":
        return grouped(count)
    if count <= 0:
        return "0.00" if count == 0 else f"\N{MINUS SIGN}{quantity(-count, budget)}"
    digits = min(max(2, len(str(PICO)) + 2 - len(str(count))), 6)
    scaled = (count * 10**digits + PICO // 2) // PICO
    if not scaled:
        return f"< 0.{'0' * (digits - 1)}1"
    whole, part = divmod(scaled, 10**digits)
    return f"{grouped(whole)}.{part:0{digits}d}"


def grouped(count: int) -> str:
    """Write a whole number with its thousands set apart."""
    return f"{count:,}".replace(",", "\N{NARROW NO-BREAK SPACE}")


def amount(pico: int) -> str:
    """Write pico-units as units with six decimals; what rounds to nothing is no zero."""
    sign, pico = ("\N{MINUS SIGN}", -pico) if pico < 0 else ("", pico)
    micro = (pico + PICO_PER_MICRO // 2) // PICO_PER_MICRO
    if pico and not micro:
        return f"{sign}< 0.000001"
    return f"{sign}{micro // MICRO_PER_UNIT}.{micro % MICRO_PER_UNIT:06d}"


def health(say: Words, board: Sequence[Health], about: About, *, now: datetime) -> Json:
    """Return every component in words, and the one the strip at the top speaks of."""
    known = {one.component: one for one in board}
    names = [*EXPECTED, *(name for name in known if name not in EXPECTED)]
    if about.provider is None:
        names = [name for name in names if name != "provider" or name in known]
    rows = []
    for name in names:
        one = known.get(name)
        note = say("scripted") if name == "provider" and about.scripted else None
        words = say("health.silent") if one is None else one.words
        if note is not None:  # The chip names it already.
            words = words.removeprefix(f"{about.provider} ")
        rows.append(
            {
                "component": name,
                "name": _component(say, name),
                "state": "silent" if one is None else "well" if one.ok else "unwell",
                "needed": one is not None and one.needed,
                "words": words,
                "since": None if one is None else clock(one.since, about.zone, near=now),
                "note": note,
            }
        )
    unwell = [one for one in board if not one.ok]
    worst = min(unwell, key=lambda one: (not one.needed, one.since), default=None)
    return {
        "rows": rows,
        "line_words": known["line"].words if "line" in known else None,
        "alarm": None
        if worst is None
        else {
            "needed": worst.needed,
            "words": say("alarm.words", name=_component(say, worst.component), words=worst.words),
            "more": len(unwell) - 1,
        },
        # While the line stands no newer part can come, and the last one is no current one.
        # A blind camera or a missing model still gives parts: each says so itself.
        "line_well": all(one.ok for one in board if one.component == "line"),
    }


def about_words(say: Words, about: About) -> Json:
    """Return what this node is: names, model, guarantee, provider."""
    provider = about.provider or say("about.no_provider")
    if about.provider_model:
        provider = f"{provider} · {about.provider_model}"
    return {
        "site": about.site,
        "line": about.line,
        "node": about.node,
        "version": about.version,
        "model": about.model,
        "guarantee": about.guarantee,
        "provider": provider,
        "scripted": say("scripted") if about.scripted else None,
        "defect_classes": list(about.defect_classes),
        "since": clock(about.started_at, about.zone, day=True),
    }


def pulse(say: Words, now: datetime, about: About, live: LiveView | None) -> Json:
    """Return what changes by itself: the clock, and how old the current part is."""
    shown = None if live is None else age(say, now - live.inspection.captured_at)
    return {"now": clock(now, about.zone), "part_age": shown}


def wall(
    say: Words,
    counts: Counts | None,
    recent: Sequence[Inspection | Fault] | None,
    *,
    running: bool,
    called: timedelta | None,
) -> Json | None:
    """Return how a line does in four figures; None where that is not known."""
    if counts is None or recent is None:
        return None
    times = [one.captured_at for one in recent if isinstance(one, Inspection)]
    span = (times[-1] - times[0]).total_seconds() if len(times) > 1 else 0.0
    return {
        "running": running,
        "yield": f"{counts.ok / counts.parts:.1%}" if counts.parts else None,
        "rate": f"{60 * (len(times) - 1) / span:.0f}" if running and span else None,
        "waiting": str(counts.waiting),
        "help": None if called is None else age(say, called),
    }


def ruled(say: Words, ruling: Ruling) -> str:
    """Say what a ruling did, in one sentence."""
    if ruling.disposition is None:
        return say("ruled.unsure", part=ruling.part_id)
    return say(
        "ruled",
        part=ruling.part_id,
        finding=say(f"finding.{_FINDINGS[ruling.finding]}").lower(),
        disposition=say(f"disposition.{ruling.disposition.value}"),
        who=ruling.who,
    )


def age(say: Words, span: timedelta) -> str:
    """Say a span of time as people say it; one that lies ahead counts as nothing."""
    seconds = max(0.0, span.total_seconds())
    if seconds < 10:  # noqa: PLR2004  # tenths only tell something while they are seen to move
        return say("age.s", s=f"{seconds:.1f}")
    if seconds < 60:  # noqa: PLR2004  # seconds in a minute
        return say("age.s", s=int(seconds))
    minutes, seconds = divmod(int(seconds), 60)
    if minutes < 60:  # noqa: PLR2004  # minutes in an hour
        return say("age.min", min=minutes, s=f"{seconds:02d}")
    hours, minutes = divmod(minutes, 60)
    if hours < 48:  # noqa: PLR2004  # up to two days hours say more
        return say("age.h", h=hours, min=f"{minutes:02d}")
    return say("age.days", days=hours // 24)


def clock(
    at: datetime,
    zone: tzinfo | None,
    *,
    millis: bool = False,
    day: bool = False,
    near: datetime | None = None,
    seconds: bool = True,
) -> str:
    """Write a time of day in `zone`, with its date when asked or when `near` is another day."""
    local = at.astimezone(zone)
    text = local.strftime("%H:%M:%S" if seconds else "%H:%M")
    text += f".{local.microsecond // 1000:03d}" if millis else ""
    other_day = near is not None and near.astimezone(zone).date() != local.date()
    return f"{local:%Y-%m-%d} {text}" if day or other_day else text


def changed(old: Mapping[str, Any], new: Mapping[str, Any]) -> Json:
    """Return the sections of `new` that differ from `old`."""
    return {name: value for name, value in new.items() if name not in old or old[name] != value}


def _kind(outcome: Inspection | Fault) -> str:
    return "fault" if isinstance(outcome, Fault) else _VERDICTS[outcome.verdict][0]


def _component(say: Words, name: str) -> str:
    return say(f"component.{name}") if f"component.{name}" in say else name


def _settled_words(say: Words, ruling: Ruling, about: About) -> str:
    disposition = ruling.disposition
    became = "" if disposition is None else f", {say(f'disposition.{disposition.value}')}"
    if ruling.by is Decider.TIMEOUT:
        return say("settled.timeout", part=ruling.part_id) + became
    who = ruling.who
    if ruling.by is Decider.AGENT:
        who = say("settled.agent.scripted" if about.scripted else "settled.agent")
    return say("settled", part=ruling.part_id, who=who) + became


def _waiting_part(
    say: Words,
    one: WaitingView,
    about: About,
    *,
    kept: Kept | None,
    lease: Lease | None,
    look_first: float,
    now: datetime,
) -> Json:
    escalation = one.escalation
    waited, left = now - escalation.opened_at, age(say, escalation.expires_at - now)
    said = one.proposal
    by_agent = said is not None and said.by is Decider.AGENT
    # Drawn for the blind re-check: a person rules before being told.
    hidden = looks_first(escalation.id, look_first) or (said is not None and said.blind)
    return {
        "id": escalation.id,
        "part_id": escalation.part_id,
        "reason": say("waiting.audit") if escalation.audit else escalation.reason,
        "scale": scale(escalation.score, about.limits),
        "picture": None if kept is None else kept.picture,
        "heat": None if kept is None else kept.heat,
        "age": age(say, waited),
        "expires": say("waiting.safe", left=left)
        if about.on_timeout is None
        else say("waiting.becomes", what=about.on_timeout, left=left),
        "late": waited * 2 >= escalation.expires_at - escalation.opened_at,
        "with_agent": one.with_agent,
        "ready": not one.with_agent or waited >= AGENT_FIRST,
        "look_first": hidden,
        "proposal": None if said is None or (hidden and by_agent) else proposal(say, said, about),
        "why": None if said is None else _why(say, said),
        "lease": None if lease is None else {"who": lease.who},
    }


def _why(say: Words, ruling: Ruling) -> str | None:
    """Say why what an agent said does not count by itself; of a blind one that alone."""
    code = "recheck" if ruling.blind else ruling.code
    return say(f"why.{code}") if code is not None and f"why.{code}" in say else None


def proposal(say: Words, ruling: Ruling, about: About) -> Json:
    """Return what was said of a part that still waits."""
    kind = _FINDINGS[ruling.finding]
    by_agent = ruling.by is Decider.AGENT
    return {
        "kind": kind,
        "word": say(f"finding.{kind}"),
        "who": ruling.who,
        "by": say("scripted") if by_agent and about.scripted else say(f"by.{ruling.by.value}"),
        "awaits": not ruling.binding and ruling.disposition is not None,
        "reason": ruling.reason,
        "defect_class": ruling.defect_class,
        "confidence": None if ruling.confidence is None else f"{ruling.confidence:.0%}",
    }


def _digits(values: Sequence[float]) -> int:
    """Return the decimals that give the largest of `values` about three figures."""
    largest = max((abs(value) for value in values), default=1.0) or 1.0
    return min(max(2 - math.floor(math.log10(largest)), 0), 9)
