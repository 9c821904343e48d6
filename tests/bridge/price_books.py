"""Price books as people write them, for tests about the books themselves."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from qcbridge.prices import PriceBook
from qcnode.money import TokenUsage

if TYPE_CHECKING:
    from pathlib import Path

AT = datetime(2026, 6, 1, tzinfo=UTC)
ACME = ("acme", "eye-1")
ONE = TokenUsage(text=1)

WORKDAYS = '["mon", "tue", "wed", "thu", "fri"]'
EVERY_DAY = '["mon", "tue", "wed", "thu", "fri", "sat", "sun"]'


def table(kind: str, values: dict[str, object]) -> str:
    lines = [f"{key} = {value}" for key, value in values.items() if value is not None]
    return "\n".join([f"[[{kind}]]", *lines, ""])


def row(**changes: object) -> str:
    values = {
        "provider": '"acme"',
        "model": '"eye-1"',
        "class": '"input"',
        "currency": '"CNY"',
        "price_micro_per_mtok": "2_000_000",
        "valid_from": "2026-01-01T00:00:00+08:00",
        "source": '"a test"',
        "checked_at": "2026-11-01",
    }
    return table("price", values | changes)


def output(**changes: object) -> str:
    return row(**({"class": '"output"', "price_micro_per_mtok": "8_000_000"} | changes))


def both(entered: int, answered: int, **changes: object) -> str:
    prices = f"{{ input = {entered}, output = {answered} }}"
    group = {"class": None, "price_micro_per_mtok": None, "micro_per_mtok": prices}
    return row(**(group | changes))


def schedule(**changes: object) -> str:
    values = {
        "id": '"peak"',
        "tz": '"Asia/Shanghai"',
        "weekdays": WORKDAYS,
        "windows": '["09:00-12:00", "14:00-18:00"]',
    }
    return table("schedule", values | changes)


def holidays(**changes: object) -> dict[str, object]:
    """Return the keys of a schedule that minds the Chinese holidays."""
    keys = {"calendar": '"cn-public"', "holidays": '"exclude"', "make_up_days": '"weekend"'}
    return keys | changes


def alias(**changes: object) -> str:
    values = {
        "provider": '"acme"',
        "model": '"eye-1"',
        "target": '"eye-2"',
        "valid_from": "2026-03-01T00:00:00Z",
        "source": '"a test"',
        "checked_at": "2026-11-01",
    }
    return table("alias", values | changes)


def withdrawal(*rows: str, recorded_at: str) -> str:
    ids = ", ".join(f'"{one}"' for one in rows)
    values = {"rows": f"[{ids}]", "recorded_at": recorded_at}
    return table("withdrawal", values | {"source": '"a test"', "checked_at": "2026-11-01"})


def write(folder: Path, *tables: str, name: str = "book.toml") -> Path:
    path = folder / name
    path.write_text("# prices\n" + "\n".join(tables), encoding="utf-8")
    return path


def load(folder: Path, *tables: str) -> PriceBook:
    return PriceBook.load(write(folder, *tables))


def instant(text: str) -> datetime:
    return datetime.fromisoformat(text).astimezone(UTC)
