"""A table of a TOML file that can say on which line something in it is wrong.

Whoever reads prices, calendars or other files that people write asks it for values of a
kind, and what is not of that kind is refused with file, line, key and what was wanted.
"""

from __future__ import annotations

import re
import tomllib
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, Any, TypeVar

from qcnode.errors import PriceError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from enum import StrEnum
    from pathlib import Path

Choice = TypeVar("Choice", bound="StrEnum")

FILE_BYTES_MAX = 8 * 1024 * 1024


class Table:
    """One table, its place in the file, and readers for its values."""

    def __init__(self, raw: dict[str, Any], *, path: Path, text: str, start: int = 0) -> None:
        self.raw = raw
        self._path = path
        self._text = text
        self._start = start

    def at(self, key: str | None = None) -> str:
        """Return file and line of this table, or of a key in it."""
        line = self._text.count("\n", 0, self._start) + 1
        if key is not None:
            line = _line_of(self._text, key, start=self._start) or line
        return f"{self._path}:{line}"

    def refuse(self, key: str, why: str) -> PriceError:
        """Make the error that says what is wrong with a key."""
        return PriceError(f"{self.at(key)}: {key}: {why}")

    def has(self, key: str) -> bool:
        """Say whether the key is there."""
        return key in self.raw

    def over(self, defaults: Table | None, keys: set[str]) -> Table:
        """Return this table with what it does not say taken from `defaults`, for these keys."""
        if defaults is None:
            return self
        common = {key: value for key, value in defaults.raw.items() if key in keys}
        return Table(common | self.raw, path=self._path, text=self._text, start=self._start)

    def only(self, known: set[str], *, optional: set[str] | None = None) -> None:
        """Refuse keys that nobody knows, and missing ones."""
        known = known | (optional or set())
        for key in self.raw:
            if key not in known:
                raise self.refuse(key, f"unknown key; known are {', '.join(sorted(known))}")
        for key in sorted(known - (optional or set()) - self.raw.keys()):
            raise PriceError(f"{self.at()}: this row has no {key}: add it")

    def text(self, key: str, pattern: str, wanted: str) -> str:
        """Return a string that matches."""
        return self._matching(key, self.raw[key], pattern, wanted)

    def text_or_none(self, key: str, pattern: str, wanted: str) -> str | None:
        """Return a string that matches, or None where there is none."""
        return self.text(key, pattern, wanted) if key in self.raw else None

    def texts(self, key: str, pattern: str, wanted: str) -> tuple[str, ...]:
        """Return some strings; one may stand without its brackets."""
        value = self.raw.get(key, [])
        values = value if isinstance(value, list) else [value]
        return tuple(self._matching(key, one, pattern, wanted) for one in values)

    def choice(self, key: str, kind: type[Choice], default: Choice | None = None) -> Choice:
        """Return one of the members of an enumeration."""
        if default is not None and key not in self.raw:
            return default
        value = self.raw[key]
        try:
            return kind(value)
        except ValueError as error:
            raise self.refuse(key, f"{value!r:.60} is none of {', '.join(kind)}") from error

    def choices(self, key: str, known: tuple[str, ...]) -> tuple[str, ...]:
        """Return some of the known words, each once."""
        value = self.raw.get(key)
        if not isinstance(value, list) or len(set(map(str, value))) != len(value):
            raise self.refuse(key, f"{value!r:.60} is no list of different words")
        for word in value:
            if word not in known:
                raise self.refuse(key, f"{word!r:.60} is none of {', '.join(known)}")
        return tuple(value)

    def whole(self, key: str, low: int, high: int, *, wanted: str = "a whole number") -> int:
        """Return a whole number within bounds."""
        value = self.raw[key]
        if type(value) is not int or not low <= value <= high:
            raise self.refuse(key, f"{value!r:.60} is not {wanted} from {low} to {high}")
        return value

    def flag(self, key: str, *, default: bool) -> bool:
        """Return true or false."""
        value = self.raw.get(key, default)
        if not isinstance(value, bool):
            raise self.refuse(key, f"{value!r:.60} is neither true nor false")
        return value

    def instant(self, key: str) -> datetime | None:
        """Return an instant, in UTC, or None where there is none."""
        value = self.raw.get(key)
        if value is None:
            return None
        if not isinstance(value, datetime) or value.tzinfo is None:
            raise self.refuse(key, "not an instant: write it with its offset, 2026-01-01T00:00:00Z")
        return value.astimezone(UTC)

    def day(self, key: str) -> date:
        """Return a date."""
        return self._day(key, self.raw[key])

    def dates(self, key: str) -> tuple[date, ...]:
        """Return some dates."""
        value = self.raw.get(key, [])
        if not isinstance(value, list):
            raise self.refuse(key, "not a list of dates")
        return tuple(self._day(key, one) for one in value)

    def table(self, key: str) -> Table | None:
        """Return a table within this one, or None where there is none."""
        value = self.raw.get(key)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self.refuse(key, "not a table, as { key = value }")
        return Table(value, path=self._path, text=self._text, start=self._start)

    def tables(self, key: str) -> Iterator[Table]:
        """Return the tables that are written as `[[key]]`, in their order."""
        value = self.raw.get(key, [])
        if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
            raise PriceError(f"{self.at(key)}: rows are written as [[{key}]]")
        headings = re.compile(rf"(?m)^[ \t]*\[\[\s*{re.escape(key)}\s*\]\]")
        starts = [match.start() for match in headings.finditer(self._text)]
        for index, raw in enumerate(value):
            start = starts[index] if index < len(starts) else self._start
            yield Table(raw, path=self._path, text=self._text, start=start)

    def _matching(self, key: str, value: object, pattern: str, wanted: str) -> str:
        if not isinstance(value, str) or not value or not re.fullmatch(pattern, value):
            raise self.refuse(key, f"{value!r:.60} is not {wanted}")
        return value

    def _day(self, key: str, value: object) -> date:
        if isinstance(value, datetime):
            return value.date()
        if not isinstance(value, date):
            raise self.refuse(key, "not a date: write it as 2026-01-01")
        return value


def read_bytes(path: Path) -> bytes:
    """Read a file whole, once, so that what is hashed is what is parsed; raises `PriceError`."""
    try:
        with path.open("rb") as file:
            data = file.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        raise PriceError(f"{path}: no price file to read ({error.strerror})") from error
    if len(data) > FILE_BYTES_MAX:
        raise PriceError(f"{path}: larger than {FILE_BYTES_MAX} bytes: this is no price file")
    return data


def parse_toml(data: bytes, path: Path) -> Table:
    """Make sense of the bytes of a file; raises `PriceError`."""
    try:
        text = data.decode("utf-8")
        raw = tomllib.loads(text)
    except ValueError as error:
        raise PriceError(f"{path}: {error}") from error
    return Table(raw, path=path, text=text)


def _line_of(text: str, key: str, start: int = 0) -> int:
    found = re.compile(rf"(?m)^[ \t]*(?:\[+[ \t]*)?[\"']?{re.escape(key)}[\"']?").search(
        text, start
    )
    return 0 if found is None else text.count("\n", 0, found.start()) + 1
