"""What a node takes from its machine: the clocks, and numbers nobody can guess."""

from __future__ import annotations

import secrets
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import SecretStr


LOOPBACK = ("127.0.0.1", "localhost", "::1")


def now() -> datetime:
    """Return the wall clock's time, in UTC."""
    return datetime.now(UTC)


def now_us() -> int:
    """Return the wall clock's time as the books write it."""
    return time.time_ns() // 1000


def new_epoch() -> str:
    """Return the name of a new ledger: no two are ever the same."""
    return secrets.token_hex(16)


def jitter() -> float:
    """Return a number from 0 to 1 that nobody can foresee."""
    return secrets.randbelow(1_000_000) / 1_000_000


def reveal(secret: SecretStr | None) -> str | None:
    """Return what a secret is, for the one place that needs it."""
    return None if secret is None else secret.get_secret_value()
