"""How right each agent was on this line, out of the journal.

An agent's last word on a part is set beside what a person ruled of it. Follows the journal
in memory from where it last read, so counting again costs what is new. Any thread may ask.
"""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from qcnode.certify import lower_bound
from qcnode.domain import Action, Decider, Finding
from qcnode.policy import alone

if TYPE_CHECKING:
    from collections.abc import Callable

    from qcnode.books.journal import Journal
    from qcnode.domain import Escalation, Limits, Ruling

READ_MAX: Final = 500
PAIRS_MAX: Final = 500
"""How many of the last settled answers say what a confidence is worth."""
OPEN_MAX: Final = 5_000
"""How many parts an agent spoke of and nobody has settled are kept in mind."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Merit:
    """One agent's record. `gained` and `lost` are settled parts where the node alone differed.

    `pairs` are stated confidences and whether the answer was right; `blind` are the parts
    drawn for the re-check on which agent and node differed, true where the agent was right.
    """

    asked: int = 0
    right: int = 0
    wrong: int = 0
    gained: int = 0
    lost: int = 0
    checked: int = 0
    pairs: tuple[tuple[float | None, bool], ...] = ()
    blind: tuple[bool, ...] = ()

    @property
    def lower_bound(self) -> float:
        """The share of right answers, at least, with 95 % confidence; 0 where none is settled."""
        settled = self.right + self.wrong
        return lower_bound(self.right, settled) if settled else 0.0


@dataclass(slots=True)
class _Count:
    asked: int = 0
    right: int = 0
    wrong: int = 0
    gained: int = 0
    lost: int = 0
    checked: int = 0
    pairs: deque[tuple[float | None, bool]] = field(default_factory=lambda: deque(maxlen=PAIRS_MAX))
    blind: list[bool] = field(default_factory=list)

    def merit(self) -> Merit:
        return Merit(
            asked=self.asked,
            right=self.right,
            wrong=self.wrong,
            gained=self.gained,
            lost=self.lost,
            checked=self.checked,
            pairs=tuple(self.pairs),
            blind=tuple(self.blind),
        )


class Merits:
    """Every agent's record so far."""

    def __init__(self, journal: Journal, *, limits: Callable[[], Limits]) -> None:
        self._journal = journal
        self._limits = limits
        self._lock = threading.Lock()
        self._after = 0
        self._said: dict[str, Ruling] = {}
        """What an agent last said of each part that nobody has settled."""
        self._audited: dict[str, Finding] = {}
        """What people found at audits that no agent has been asked about."""
        self._counts: dict[str, _Count] = {}

    def read(self) -> dict[str, Merit]:
        """Return each agent's record by its name in rulings; raises `JournalUnavailableError`."""
        with self._lock:
            while rows := self._journal.rulings(self._after, READ_MAX):
                for seq, escalation, ruling in rows:
                    self._take(escalation, ruling)
                    self._after = seq
            return {who: count.merit() for who, count in self._counts.items()}

    def _take(self, escalation: Escalation, ruling: Ruling) -> None:
        if ruling.by is Decider.AGENT:
            self._counts.setdefault(ruling.who, _Count()).asked += 1
            truth = self._audited.pop(escalation.id, None)
            if truth is not None:  # Asked after a person had ruled, and without knowing how.
                self._settle(escalation, ruling, truth)
                return
            # Once it binds nobody looks at the part again.
            if not ruling.binding:
                self._said[escalation.id] = ruling
                while len(self._said) > OPEN_MAX:
                    del self._said[next(iter(self._said))]
            return
        if not ruling.binding:
            return
        said = self._said.pop(escalation.id, None)
        if said is None and escalation.audit and ruling.by is Decider.OPERATOR:
            self._audited[escalation.id] = ruling.finding
            while len(self._audited) > OPEN_MAX:
                del self._audited[next(iter(self._audited))]
        if said is None or ruling.by is not Decider.OPERATOR or ruling.finding is Finding.UNSURE:
            return
        self._settle(escalation, said, ruling.finding)

    def _settle(self, escalation: Escalation, said: Ruling, truth: Finding) -> None:
        count = self._counts[said.who]
        count.checked += said.blind
        if Finding.UNSURE in (said.finding, truth):
            return  # It took no side.
        right = said.finding is truth
        count.right += right
        count.wrong += not right
        count.pairs.append((said.confidence, right))
        node = alone(escalation.score, self._limits())
        if node is Action.DIVERT or (node is Action.ACCEPT) is (said.finding is Finding.GOOD):
            return  # The node had no opinion, or the same.
        count.gained += right
        count.lost += not right
        if said.blind:
            count.blind.append(right)
