"""The virtual line's own record of what really happened to each part.

One line of words per event: `trigger <seq> <part> <truth>`, `gate <seq> <ACTION>
commanded|default`, `dispose <part> <DISPOSITION>`. The node never reads it: it is the
witness against which verdicts, books and the scripted provider are checked.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from qcnode.domain import Action, Disposition

if TYPE_CHECKING:
    from pathlib import Path

GOOD = "good"
UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fate:
    """One part: what it was, what the gate did with it, and what became of it."""

    seq: int
    part_id: str
    truth: str
    action: Action | None = None
    disposition: Disposition | None = None

    @property
    def is_defective(self) -> bool:
        """Say whether the part is known to be defective."""
        return self.truth not in (GOOD, UNKNOWN)

    @property
    def is_false_reject(self) -> bool:
        """Say whether a good part was rejected or scrapped."""
        lost = self.action is Action.REJECT or self.disposition is Disposition.SCRAP
        return self.truth == GOOD and lost

    @property
    def is_escape(self) -> bool:
        """Say whether a defective part was accepted or released."""
        passed = self.action is Action.ACCEPT or self.disposition is Disposition.RELEASE
        return self.is_defective and passed


def read_fates(path: Path) -> list[Fate]:
    """Return every part the line has seen, in order; a line cut off at the end is left out."""
    fates: dict[int, Fate] = {}
    seq_of: dict[str, int] = {}
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    for line in text[: text.rfind("\n") + 1].splitlines():
        match line.split():
            case ["trigger", seq, part_id, truth]:
                fates[int(seq)] = Fate(seq=int(seq), part_id=part_id, truth=truth)
                seq_of[part_id] = int(seq)
            case ["gate", seq, action, _] if int(seq) in fates:
                fates[int(seq)] = replace(fates[int(seq)], action=Action(action))
            case ["dispose", part_id, disposition] if part_id in seq_of:
                seen = fates[seq_of[part_id]]
                fates[seen.seq] = replace(seen, disposition=Disposition(disposition))
    return [fates[seq] for seq in sorted(fates)]
