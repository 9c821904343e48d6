"""The virtual line's own record of what really happened to each part.

One line of words per event: `trigger <seq> <part> <truth>`, `gate <seq> <ACTION>
commanded|default`, `dispose <part> <DISPOSITION>`. The node never reads it: it is the
witness against which verdicts, books and the scripted provider are checked.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from qcnode.domain import Action, Disposition
from qcnode.errors import LineUnavailableError

if TYPE_CHECKING:
    from pathlib import Path

GOOD = "good"
UNKNOWN = "unknown"


class World:
    """The world's own record: one line per event, handed to the system at once."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def write(self, *words: str) -> None:
        """Add an event. Spaces within a word become underscores."""
        self._append(" ".join("_".join(word.split()) or "-" for word in words) + "\n")

    def history(self) -> tuple[int, list[tuple[int, str]]]:
        """Return the last trigger's number, and number and id of parts that met no gate."""
        try:
            text = self._path.read_text("utf-8", "replace") if self._path.exists() else ""
        except OSError as error:
            raise LineUnavailableError(
                f"{self._path}: the world's record cannot be read ({error.strerror})"
            ) from error
        if text and not text.endswith("\n"):
            self._append("\n")  # A power cut tore the last line; nobody was told of its event.
        last, on_belt = 0, dict[int, str]()
        for line in text.splitlines():
            match line.split():
                case ["trigger", seq, part_id, _] if seq.isdecimal():
                    last = int(seq)
                    on_belt[last] = part_id
                case ["gate", seq, _, _] if seq.isdecimal():
                    on_belt.pop(int(seq), None)
        return last, sorted(on_belt.items())

    def _append(self, text: str) -> None:
        try:
            file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            try:
                os.write(file, text.encode())
            finally:
                os.close(file)
        except OSError as error:
            raise LineUnavailableError(
                f"{self._path}: the world's record cannot be written ({error.strerror}):"
                " make room or fix its rights"
            ) from error


def last_trigger_in(path: Path) -> int:
    """Return how far the record in this file has counted; 0 where there is none."""
    return World(path).history()[0]


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
        """Say whether the gate rejected a good part."""
        return self.truth == GOOD and self.action is Action.REJECT

    @property
    def is_escape(self) -> bool:
        """Say whether the gate accepted a defective part."""
        return self.is_defective and self.action is Action.ACCEPT

    @property
    def is_false_scrap(self) -> bool:
        """Say whether a ruling scrapped a good part."""
        return self.truth == GOOD and self.disposition is Disposition.SCRAP

    @property
    def is_false_release(self) -> bool:
        """Say whether a ruling released a defective part."""
        return self.is_defective and self.disposition is Disposition.RELEASE


def read_fates(path: Path) -> list[Fate]:
    """Return every part the line has seen, in order; lines torn by a power cut are left out."""
    fates: dict[int, Fate] = {}
    seq_of: dict[str, int] = {}
    text = path.read_text("utf-8", "replace") if path.exists() else ""
    for line in text[: text.rfind("\n") + 1].splitlines():
        match line.split():
            case ["trigger", seq, part_id, truth] if seq.isdecimal():
                fates[int(seq)] = Fate(seq=int(seq), part_id=part_id, truth=truth)
                seq_of[part_id] = int(seq)
            case ["gate", seq, action, _] if seq.isdecimal() and int(seq) in fates:
                fates[int(seq)] = replace(fates[int(seq)], action=Action(action))
            case ["dispose", part_id, disposition] if part_id in seq_of:
                seen = fates[seq_of[part_id]]
                fates[seen.seq] = replace(seen, disposition=Disposition(disposition))
    return [fates[seq] for seq in sorted(fates)]
