"""How the parts of the node are doing, in words, as they say it themselves.

Each component reports when its state changes; the panel, `/readyz`, the metrics
and the alarms all read this one board. Any thread may report.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """One component's state. `needed` is false for what parts can be judged without."""

    component: str
    ok: bool
    words: str
    needed: bool
    since: datetime


class HealthBoard:
    """The last word of each component, kept until it says otherwise."""

    def __init__(self, now: Callable[[], datetime]) -> None:
        self._now = now
        self._lock = threading.Lock()
        self._board: dict[str, Health] = {}

    def report(self, component: str, *, ok: bool, words: str, needed: bool = False) -> None:
        """Put down a state; saying the same again keeps its `since` and logs nothing."""
        with self._lock:
            last = self._board.get(component)
            changed = last is None or last.ok != ok
            since = self._now() if last is None or changed else last.since
            self._board[component] = Health(
                component=component, ok=ok, words=words, needed=needed, since=since
            )
        if changed and (last is not None or not ok):
            tell = log.info if ok else log.warning
            tell("health changed", component=component, ok=ok, words=words)

    def all(self) -> tuple[Health, ...]:
        """Return every component's state, by name."""
        with self._lock:
            return tuple(self._board[name] for name in sorted(self._board))

    def ready(self) -> bool:
        """Say whether parts can be judged: everything needed is well. The cloud is not."""
        board = self.all()
        return bool(board) and all(health.ok for health in board if health.needed)
