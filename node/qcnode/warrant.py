"""What the agents of this line may do now: pack, attestations, what they earned, what is stopped.

The desk asks here before an agent's ruling binds, from the journal's own transaction, and
again before the line is told; whoever adjusts the process asks with `may`. Counting what
was earned reads the journal and belongs in a thread; everything else is memory.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from qcnode.audit import AuditDraw
from qcnode.authority import RANK, Code, Context, authorize, standing, unattested
from qcnode.domain import AgentLevel
from qcnode.trust import LADDER, calibrate, earned

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from datetime import datetime

    from qcnode.authority import (
        Adjustment,
        AgentAction,
        Arming,
        Attestation,
        Decision,
        Pack,
    )
    from qcnode.books.merits import Merit, Merits
    from qcnode.domain import Action, Escalation, Opinion
    from qcnode.health import HealthBoard
    from qcnode.ports import Stops
    from qcnode.trust import Calibration, Trust

COMPONENT = "authority"
LINE = "line"
_DRAW = "recheck:"


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """What an agent has earned on this line; `worth` is what its confidence means."""

    merit: Merit
    trust: Trust
    worth: Calibration | None


class Warrant:
    """The one place that knows all that `authorize` asks; any thread may ask it."""

    def __init__(
        self,
        *,
        pack: Pack,
        wanted: AgentLevel,
        attestations: Sequence[Attestation],
        part_type: str,
        secret: bytes,
        stops: Stops,
        merits: Merits,
        certified: Callable[[], bool],
        health: HealthBoard,
        now: Callable[[], datetime],
        arming: Callable[[], Arming | None] = lambda: None,
    ) -> None:
        self._pack = pack
        self._wanted = wanted
        self._attestations = tuple(attestations)
        self._part_type = part_type
        self._recheck = AuditDraw(secret=secret, share=pack.envelope.recheck_share)
        self._trial = AuditDraw(secret=secret, share=pack.envelope.trial_share)
        self._stops = stops
        self._merits = merits
        self._certified = certified
        self._health = health
        self._now = now
        self._arming = arming
        self._records: Mapping[str, Record] = {}

    @property
    def pack(self) -> Pack:
        """The policy in force."""
        return self._pack

    def stopped(self, *scopes: str) -> bool:
        """Say whether the line, or any of these, is stopped."""
        return self._stops.stopped(LINE, *scopes)

    def add_listener(self, listener: Callable[[], None]) -> None:
        """Have `listener` called, in another thread, when something was stopped or cleared."""
        self._stops.add_listener(listener)

    def recount(self) -> None:
        """Count again what was earned, and say so; raises `JournalUnavailableError`."""
        known = self._records
        records = {}
        for who, merit in self._merits.read().items():
            last = known.get(who)
            if last is not None and last.merit == merit:
                records[who] = last
                continue
            start = max((one.start for one in self._of(who)), default=AgentLevel.L2)
            records[who] = Record(
                merit=merit,
                trust=earned(merit.blind, start=start),
                worth=calibrate(merit.pairs),
            )
        self._records = records
        self._tell()

    def records(self) -> Mapping[str, Record]:
        """Return what each agent has earned, as last counted."""
        return self._records

    def drawn(self, who: str, part_id: str) -> bool:
        """Say whether a person rules on this part blind, whatever the agent says of it."""
        proven = RANK[self._granted(who)] >= RANK[self._wanted]
        return (self._recheck if proven else self._trial).drawn(_DRAW + part_id)

    def rule(
        self,
        opinion: Opinion,
        escalation: Escalation,
        action: AgentAction,
        *,
        node_leans: Action,
        spent: tuple[str, int] | None,
        taken: int,
    ) -> Decision:
        """Say whether an agent's ruling binds, now and with so many before it this hour."""
        who, provider = opinion.who, opinion.provider
        context = replace(
            self._context(who, provider),
            held=not escalation.audit and escalation.score is not None,
            drawn=self.drawn(who, escalation.part_id),
            confidence=self._worth(who, provider, opinion.confidence),
            node_leans=node_leans,
            suspicion=opinion.suspicion,
            spent=opinion.spent or spent,
            taken=taken,
        )
        return authorize(who, action, context)

    def may(
        self,
        who: str,
        action: AgentAction,
        *,
        provider: str | None = None,
        adjustment: Adjustment | None = None,
    ) -> Decision:
        """Say whether an agent may act on the process, or must ask a person."""
        return authorize(who, action, replace(self._context(who, provider), adjustment=adjustment))

    def _context(self, who: str, provider: str | None) -> Context:
        return Context(
            pack=self._pack,
            granted=self._granted(who),
            at=self._now(),
            stopped=self.stopped(who, f"provider:{provider or ''}"),
            attestation=self._attestation(who, provider),
            certified=self._certified(),
            provider=provider,
            part_type=self._part_type,
            arming=self._arming(),
        )

    def _granted(self, who: str) -> AgentLevel:
        """Return the lesser of what is wanted and what was earned; L4 comes with L3."""
        trust = self._trust(who)
        if trust.level is LADDER[-1]:
            return self._wanted
        return min(self._wanted, trust.level, key=RANK.__getitem__)

    def _trust(self, who: str) -> Trust:
        record = self._records.get(who)
        if record is not None:
            return record.trust
        return earned((), start=max((one.start for one in self._of(who)), default=AgentLevel.L2))

    def _worth(self, who: str, provider: str | None, stated: float | None) -> float | None:
        """Return what a confidence is worth here; the auditor's word stands in until known."""
        record = self._records.get(who)
        if record is not None and record.worth is not None:
            return record.worth(stated)
        attestation = self._attestation(who, provider)
        return attestation.right_at_least if attestation and attestation.right_at_least else None

    def _of(self, who: str) -> list[Attestation]:
        return [one for one in self._attestations if one.agent == who]

    def _attestation(self, who: str, provider: str | None) -> Attestation | None:
        """Return the one that fits best: that which ends last, or any, to say what is wrong."""
        fits = [one for one in self._of(who) if one.provider == provider]
        return max(fits or self._of(who) or self._attestations, key=_end, default=None)

    def _tell(self) -> None:
        """Put on the board which level counts, and what is missing for the one wanted."""
        said = [self._words(who) for who in sorted(self._records)]
        if not said:
            said = [self._words("")] if not self._attestations else []
            said += [self._words(one.agent) for one in self._attestations]
        well = all(ok for ok, _ in said)
        self._health.report(COMPONENT, ok=well, words="; ".join(words for _, words in said))

    def _words(self, who: str) -> tuple[bool, str]:
        attested = self._of(who)
        context = self._context(who, attested[0].provider if attested else None)
        level, why = standing(who, context)
        trust = self._trust(who)
        told = f"{who or 'no agent has ruled yet'}: {level}"
        if level is self._wanted:
            return True, f"{told} as set; {trust.parts} differing parts checked blind"
        missing = []
        if trust.level is AgentLevel.L1:
            missing.append("it was shown to be worse than the node alone")
        elif trust.level is not LADDER[-1]:
            record = self._records.get(who)
            checked = 0 if record is None else record.merit.checked
            missing.append(
                f"not proved better than the node yet ({trust.up:.0%} of the way: {checked}"
                f" parts checked blind, {trust.parts} differed)"
            )
        if RANK[self._wanted] > RANK[AgentLevel.L2]:
            fault = unattested(who, context) or (why if why is Code.DRIFT else None)
            missing += [] if fault is None else [_WORDS[fault]]
        return (
            trust.level is not AgentLevel.L1,
            f"{told} of {self._wanted} wanted: {'; '.join(missing)}",
        )


_WORDS = {
    Code.UNATTESTED: "there is no attestation; see docs/how-to/authority.md",
    Code.OTHER_AGENT: "the attestation is for another agent or provider",
    Code.OTHER_POLICY: "the attestation was given under another policy pack",
    Code.EXPIRED: "the attestation has ended, or not begun",
    Code.DRIFT: "the model's certificate is revoked",
}


def _end(attestation: Attestation) -> datetime:
    return attestation.ends
