"""What the scripted provider reads and writes: the truth about parts, and its own books.

The truth is the virtual line's record, read on as it grows. The books are a line for each
request, on disk before anything is answered.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


class World:
    """The truth about each part, as the virtual line writes it while it runs.

    Lines are `trigger <seq> <part_id> <truth>`, where the truth is `good`, `unknown` or a
    kind of defect; other lines are about other things. The file may appear later.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read_to = 0
        self._truth: dict[str, str] = {}

    def truth(self, part_id: str) -> str | None:
        """Return `good`, `unknown`, a kind of defect, or None for a part nobody has triggered."""
        if part_id not in self._truth:
            self._read_on()
        return self._truth.get(part_id)

    def _read_on(self) -> None:
        try:
            with self._path.open("rb") as world:
                world.seek(self._read_to)
                added = world.read()
        except FileNotFoundError:
            return
        whole = added[: added.rfind(b"\n") + 1]  # The last line may still be under way.
        self._read_to += len(whole)
        for line in whole.decode("utf-8", "replace").splitlines():
            words = line.split()
            if len(words) >= 4 and words[0] == "trigger":  # noqa: PLR2004  # as the docstring has it
                self._truth[words[2]] = words[3]


class RequestLog:
    """The provider's own books: one JSON line per request, appended and never changed."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

    def append(self, row: Mapping[str, Any]) -> None:
        """Write one line in one call, so that lines of a killed process are whole."""
        os.write(self._file, (json.dumps(row, ensure_ascii=True) + "\n").encode())

    def close(self) -> None:
        """Let go of the file."""
        os.close(self._file)
