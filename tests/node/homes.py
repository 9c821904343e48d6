"""A node's home, whose ledger is opened as a node opens it, again and again."""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from qcnode.books.budgets import Budget
from qcnode.books.ledger import SqliteLedger
from qcnode.books.mark import FileId
from qcnode.books.seals import SigningKey
from qcnode.health import HealthBoard
from tests.node.test_ledger import Clock, intent, put, settled

if TYPE_CHECKING:
    from pathlib import Path

NOW = datetime(2026, 11, 22, tzinfo=UTC)
FIRST, SECOND, THIRD = ("1" * 32, "2" * 32, "3" * 32)
DAY = Budget(name="day", limit=10_000, currency="USD")


class Node:
    """Opens the ledger of one home as a node does, again and again."""

    def __init__(self, home: Path, *, budgets=(DAY,), signs=True, ballast_bytes=0) -> None:
        home.mkdir(exist_ok=True)
        self.home = home
        self.path = home / "ledger.db"
        self.clock = Clock()
        self.health = HealthBoard(lambda: NOW)
        self.epochs = iter((FIRST, SECOND, THIRD))
        self.budgets = budgets
        self.key = SigningKey.open(home / "node.key", name="acme/n1") if signs else None
        self.how = {"ballast_bytes": ballast_bytes, "identify": FileId.of}

    @contextlib.contextmanager
    def open(self, **how):
        self.health = HealthBoard(lambda: NOW)
        ledger = SqliteLedger(
            self.path,
            now_us=self.clock,
            new_epoch=lambda: next(self.epochs),
            budgets=self.budgets,
            key=self.key,
            health=self.health,
            **{**self.how, **how},
        )
        try:
            yield ledger
        finally:
            ledger.close()

    def at(self, home: Path) -> Node:
        """The same node with another home."""
        other = Node(home, budgets=self.budgets, signs=False)
        other.epochs, other.key, other.how = self.epochs, self.key, self.how
        return other

    def words(self, component: str) -> str | None:
        return next(
            (one.words for one in self.health.all() if one.component == component and not one.ok),
            None,
        )


def spend(ledger: SqliteLedger, *attempts: str, pico: int = 60) -> None:
    for attempt in attempts:
        put(ledger, intent(attempt), settled(attempt, pico))


def used(ledger: SqliteLedger) -> int:
    return ledger.budgets()[0].used
