"""What is known of parts by now, as labels to teach from: whose word, and since when.

Pure. What a part proved to be later (rework, a customer) counts most, then a person's ruling,
then an agent's that was binding. A part on which they contradict each other is no example of
anything and is left out, and so is one that nobody was sure of.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from qcnode.domain import Action, Decider, Escalation, Finding, Inspection, Ruling

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from datetime import datetime

    from qcnode.domain import Box, JournalRecord
    from qcnode.money import Outcome

GOOD: Final = "good"
DEFECT: Final = "defect"
"""The kind of a defect that nobody named."""
TRUTH: Final = "truth"
_KIND: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Label:
    """One part that was asked about, and what it is.

    `by` is who says so: `truth`, `operator` or `agent`; `who` is the name on record. `box` is
    where the evidence was, which is no outline of a defect.
    """

    escalation_id: str
    inspection_id: str
    part_id: str
    kind: str
    by: str
    who: str
    at: datetime
    model: str
    score: float | None
    box: Box | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Labels:
    """What can be taught from, in the order of time, and how many parts were left out, and why."""

    labels: tuple[Label, ...]
    left_out: Mapping[str, int]


def gather(records: Iterable[JournalRecord], outcomes: Iterable[Outcome]) -> Labels:
    """Go through a journal, in order, and what the ledger has of how parts turned out."""
    inspections: dict[str, Inspection] = {}
    escalations: dict[str, Escalation] = {}
    rulings: defaultdict[str, list[Ruling]] = defaultdict(list)
    for record in records:
        if isinstance(record, Inspection) and record.action is Action.DIVERT:
            inspections[record.id] = record
        elif isinstance(record, Escalation):
            escalations[record.id] = record
        elif isinstance(record, Ruling):
            rulings[record.escalation_id].append(record)
    # What the desk wrote of an operator's ruling says nothing that the ruling does not.
    proved = {one.escalation_id: one for one in outcomes if one.source != "operator"}
    left_out: Counter[str] = Counter()
    labels = []
    for escalation in escalations.values():
        inspection = inspections.get(escalation.inspection_id)
        found = _settle(rulings[escalation.id], proved.get(escalation.id))
        if inspection is None:
            left_out["no picture"] += 1
        elif isinstance(found, str):
            left_out[found] += 1
        else:
            labels.append(
                Label(
                    escalation_id=escalation.id,
                    inspection_id=inspection.id,
                    part_id=escalation.part_id,
                    kind=found.kind,
                    by=found.by,
                    who=found.who,
                    at=found.at,
                    model=inspection.model,
                    score=escalation.score,
                    box=escalation.box,
                )
            )
    labels.sort(key=lambda label: (label.at, label.escalation_id))
    return Labels(labels=tuple(labels), left_out=dict(left_out))


def split_by_time(labels: Sequence[Label], *, test_share: float) -> tuple[int, int]:
    """Return how many labels teach and how many test: the newest test, as the line goes on."""
    test = round(len(labels) * test_share)
    return len(labels) - test, test


@dataclass(frozen=True, slots=True)
class _Found:
    kind: str
    by: str
    who: str
    at: datetime


def _settle(rulings: Sequence[Ruling], proved: Outcome | None) -> _Found | str:
    """Return what a part is and who says so, or why it is left out."""
    binding = next((one for one in rulings if one.binding), None)
    if binding is None:
        return "unsettled"
    named = next(
        (one.defect_class for one in reversed(rulings) if one.defect_class is not None), None
    )
    if proved is not None:
        kind = _kind_of(Finding[proved.truth], named)
        return _Found(kind, TRUTH, proved.source, binding.at)
    if binding.by is Decider.TIMEOUT or binding.finding is Finding.UNSURE:
        return "unsure"
    said = {one.finding for one in rulings if one.finding is not Finding.UNSURE}
    if len(said) > 1:
        return "disagreement"
    kind = _kind_of(binding.finding, binding.defect_class or named)
    return _Found(kind, binding.by.value, binding.who, binding.at)


def _kind_of(finding: Finding, named: str | None) -> str:
    if finding is Finding.GOOD:
        return GOOD
    # It becomes the name of a folder, and `good` is the name of another.
    if named is None or not _KIND.fullmatch(named) or named == GOOD:
        return DEFECT
    return named
