"""Week by week: how often the node asked, what that took, what it was worth, who agreed.

Pure, and made from journal and ledger. A week begins on Monday in the zone it is asked for;
a question counts in the week in which the part was asked about, with whatever became known
of it later. The bill should fall as the node learns: this is where it is seen to.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from qcnode.domain import Action, Decider, Escalation, Finding, Inspection, Ruling
from qcnode.worth import is_wrong, tokens_by_stream

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from datetime import date, datetime, tzinfo

    from qcnode.books.repricing import Recorded
    from qcnode.domain import JournalRecord
    from qcnode.money import Outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class Week:
    """What one week came to. What cannot be said, for want of parts or answers, is None.

    `asked` are parts put to an agent. `avoided` and `made` are errors of the node alone that
    the agent put right, and the reverse, among parts of which the truth became known.
    `agreed` of `compared` answers were what a person, or the part itself, said later.
    """

    begins: date
    parts: int
    escalated: int
    asked: int
    tokens: Mapping[str, int]
    unknown: int
    cost_pico: Mapping[str, int]
    avoided: int
    made: int
    agreed: int
    compared: int

    @property
    def escalation_rate(self) -> float | None:
        """The share of parts that the limits left undecided."""
        return self.escalated / self.parts if self.parts else None

    @property
    def tokens_per_1000(self) -> int | None:
        """The tokens for a thousand parts."""
        return round(1000 * sum(self.tokens.values()) / self.parts) if self.parts else None

    @property
    def cost_per_error(self) -> Mapping[str, int] | None:
        """The cost of one error less, in pico-units by currency; None where there is none."""
        less = self.avoided - self.made
        return {name: pico // less for name, pico in self.cost_pico.items()} if less > 0 else None

    @property
    def agreement(self) -> float | None:
        """The share of answers that proved right."""
        return self.agreed / self.compared if self.compared else None


def by_week(
    records: Iterable[JournalRecord],
    requests: Recorded,
    outcomes: Iterable[Outcome],
    zone: tzinfo,
) -> tuple[Week, ...]:
    """Return the weeks from the first part to the last one, empty ones among them."""
    parts: Counter[date] = Counter()
    escalated: Counter[date] = Counter()
    week_of: dict[str, date] = {}
    said: defaultdict[str, list[Ruling]] = defaultdict(list)
    for record in records:
        if isinstance(record, Inspection):
            parts[_monday(record.captured_at, zone)] += 1
        elif isinstance(record, Escalation) and not record.audit and record.score is not None:
            week = week_of[record.id] = _monday(record.opened_at, zone)
            escalated[week] += 1
        elif isinstance(record, Ruling):
            said[record.escalation_id].append(record)
    answers = {
        escalation: one
        for escalation, rulings in said.items()
        for one in rulings
        if one.by is Decider.AGENT
    }
    worth = _worth(answers, outcomes, week_of)
    asked = defaultdict(list)
    for one in requests.asked:
        asked[_monday(one.began, zone)].append(one)
    weeks = sorted({*parts, *escalated, *asked})
    if not weeks:
        return ()
    found = []
    week = weeks[0]
    while week <= weeks[-1]:
        cost: Counter[str] = Counter()
        for one in asked[week]:
            if one.cost is not None:
                cost[one.cost.currency] += one.cost.pico
        found.append(
            Week(
                begins=week,
                parts=parts[week],
                escalated=escalated[week],
                asked=len({one.attempt.escalation_id for one in asked[week]}),
                tokens=tokens_by_stream(asked[week]),
                unknown=sum(one.cost is None for one in asked[week]),
                cost_pico=dict(cost),
                avoided=worth[week]["avoided"],
                made=worth[week]["made"],
                agreed=worth[week]["agreed"],
                compared=worth[week]["compared"],
            )
        )
        week += timedelta(days=7)
    return tuple(found)


def _worth(
    answers: Mapping[str, Ruling], outcomes: Iterable[Outcome], week_of: Mapping[str, date]
) -> defaultdict[date, Counter[str]]:
    worth: defaultdict[date, Counter[str]] = defaultdict(Counter)
    last = {one.escalation_id: one for one in outcomes}  # Of several the last one counts.
    for escalation_id, outcome in last.items():
        answer, week = answers.get(escalation_id), week_of.get(escalation_id)
        if answer is None or week is None:
            continue
        defective = outcome.truth == Finding.DEFECTIVE.name
        right = answer.finding.name == outcome.truth
        worth[week]["compared"] += answer.finding is not Finding.UNSURE
        worth[week]["agreed"] += right
        if answer.finding is Finding.UNSURE:
            continue
        # In the dark the node alone does nothing that could be wrong.
        alone = Action(outcome.node_alone)
        worth[week]["avoided"] += right and is_wrong(alone, defective)
        worth[week]["made"] += (
            not right and alone is not Action.DIVERT and not is_wrong(alone, defective)
        )
    return worth


def _monday(at: datetime, zone: tzinfo) -> date:
    day = at.astimezone(zone).date()
    return day - timedelta(days=day.weekday())
