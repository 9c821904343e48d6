"""Whether a cost and usage file is what FOCUS 1.2 asks for.

Rows come one at a time, so a file of any length is checked in little memory. Sums and
products are compared exactly, in decimal; the cost billed under an invoice id must add
up to the total that the rows state.
"""

from __future__ import annotations

import functools
import json
import re
from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Context, Decimal, Inexact, InvalidOperation
from typing import TYPE_CHECKING, Final, TypeAlias

from qcbridge.billing.focus_rules import COLUMNS, CURRENCIES, ONE_TO_ONE, RULES, TOTAL

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from qcbridge.billing.focus_rules import Column, Condition, Rule

EXAMPLES_MAX: Final = 5
_KEPT_MAX: Final = 4_096

Value: TypeAlias = "str | Decimal | datetime | None"
Row: TypeAlias = "Mapping[str, Value]"

_DECIMAL = re.compile(r"-?[0-9]+(\.[0-9]+)?")
_INSTANT = re.compile(r"\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}Z")
_UNIT = re.compile(r"([1-9][0-9]* )?[A-Z][A-Za-z]*(-[A-Z][A-Za-z]*)?(/([1-9][0-9]* )?[A-Z][a-z]+)?")
_CUSTOM = re.compile(r"x_[A-Z][A-Za-z0-9]*")
_EXACT = Context(prec=100, traps=[Inexact, InvalidOperation])


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A rule that a file breaks, how often, and the first rows where it does."""

    rule: str
    column: str
    words: str
    times: int
    rows: tuple[int, ...]


@dataclass(slots=True)
class FocusCheck:
    """Takes the rows of one file, and says what is wrong with it."""

    header: Sequence[str]
    rows: int = 0
    billed: dict[str, Decimal] = field(default_factory=dict)
    """The cost billed under each invoice id."""
    _found: dict[tuple[str, str, str], list[int]] = field(default_factory=dict)
    _times: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    _kinds: list[tuple[Column, Callable[[Value], bool], set[Value]]] = field(default_factory=list)
    """Each column, whether a value fits it, and values that are known to."""
    _tests: list[tuple[Rule, Callable[[Row], bool]]] = field(default_factory=list)
    """Rules that depend on numbers or instants."""
    _shapes: _Shapes = field(init=False)
    _pairs: dict[str, dict[Value, Value]] = field(default_factory=dict)
    _totals: dict[str, Value] = field(default_factory=dict)

    def __post_init__(self) -> None:
        names = set(self.header)
        known = {column.name for column in COLUMNS}
        for column in COLUMNS:
            if column.name in names:
                self._kinds.append((column, _KINDS[column.kind], set()))
            elif column.level == "M":
                self._blame("CostAndUsage-D-001-M", column.name, "this column is missing", 0)
        for name in self.header:
            if name not in known and not _CUSTOM.fullmatch(name):
                self._blame("ColumnHandling-A-009-M", name, "no column of FOCUS, and not x_Own", 0)
        for name, times in Counter(self.header).items():
            if times > 1:
                self._blame("ColumnHandling-A-000-M", name, "this column is there twice", 0)
        rules = [rule for rule in RULES if _columns_of(rule) <= names]
        plain = [rule for rule in rules if _is_plain(rule)]
        self._shapes = _Shapes(plain)
        self._tests = [(rule, _compile_rule(rule)) for rule in rules if rule not in plain]

    def row(self, row: Row) -> None:
        """Check the next row; what cannot be read comes as the text it is."""
        self.rows += 1
        number = self.rows
        if not self._cells_fit(row, number):
            return  # What depends on them would be said twice.
        for rule in self._shapes.broken(row):
            self._blame(rule.id, rule.id.partition("-")[0], rule.words, number)
        for rule, holds in self._tests:
            if not holds(row):
                self._blame(rule.id, rule.id.partition("-")[0], rule.words, number)
        for rule_id, one, other in ONE_TO_ONE:
            if row.get(one) is not None:
                had = self._pairs.setdefault(rule_id, {}).setdefault(row[one], row.get(other))
                if had != row.get(other):
                    self._blame(rule_id, one, f"goes with more than one {other}", number)
        self._add_up(row, number)

    def findings(self) -> tuple[Finding, ...]:
        """Return what is wrong, once all rows were given."""
        for invoice, total in self._totals.items():
            if total is not None and self.billed[invoice] != total:
                self._blame(
                    "BilledCost-C-006-M",
                    "BilledCost",
                    f"adds up to {self.billed[invoice]:f} under invoice {invoice}, not {total:f}",
                    0,
                )
        return tuple(
            Finding(rule=rule, column=column, words=words, times=times, rows=tuple(rows))
            for (rule, column, words), times in sorted(self._times.items())
            for rows in [self._found[rule, column, words]]
        )

    def _cells_fit(self, row: Row, number: int) -> bool:
        sound = True
        for column, fits, known in self._kinds:
            value = row[column.name]
            if value in known:
                continue
            if value is None:
                if not column.nulls:
                    self._blame(f"{column.name}-C-000-M", column.name, "is null", number)
                    sound = False
            elif not fits(value):
                self._blame(f"{column.name}-C-001-M", column.name, f"is no {column.kind}", number)
                sound = False
            elif column.allowed and value not in column.allowed:
                self._blame(f"{column.name}-C-003-M", column.name, "no allowed value", number)
            elif column.kind != "decimal" and len(known) < _KEPT_MAX:
                known.add(value)
        return sound

    def _add_up(self, row: Row, number: int) -> None:
        invoice, billed = row.get("InvoiceId"), row.get("BilledCost")
        if isinstance(invoice, str) and isinstance(billed, Decimal):
            self.billed[invoice] = _EXACT.add(self.billed.get(invoice, Decimal(0)), billed)
            total = row.get(TOTAL)
            if self._totals.setdefault(invoice, total) != total:
                self._blame("BilledCost-C-006-M", TOTAL, "is not the same on every row", number)

    def _blame(self, rule: str, column: str, words: str, number: int) -> None:
        key = (rule, column, words)
        self._times[key] += 1
        rows = self._found.setdefault(key, [])
        if number and len(rows) < EXAMPLES_MAX:
            rows.append(number)


class _Shapes:
    """Rules on what is null and what words say; rows that are alike in that are judged once."""

    def __init__(self, rules: Sequence[Rule]) -> None:
        self._tests = [(rule, _compile_rule(rule)) for rule in rules]
        words: set[str] = set()
        flags: set[str] = set()
        for rule in rules:
            for condition in (rule.then, rule.when):
                if condition is not None:
                    _sort_columns(condition, words, flags)
        self._words = sorted(words)
        self._flags = sorted(flags - words)
        self._judged: dict[tuple[Value, ...], tuple[Rule, ...]] = {}

    def broken(self, row: Row) -> tuple[Rule, ...]:
        """Return the rules that a row breaks."""
        shape = (
            *[row[name] for name in self._words],
            *["" if row[name] is None else "there" for name in self._flags],
        )
        found = self._judged.get(shape)
        if found is None:
            found = tuple(rule for rule, holds in self._tests if not holds(row))
            if len(self._judged) < _KEPT_MAX:
                self._judged[shape] = found
        return found


def read_decimal(text: str) -> Decimal | str:
    """Read a number written as FOCUS wants it; what is not comes back as the text it is."""
    return Decimal(text) if _DECIMAL.fullmatch(text) else text


def read_instant(text: str) -> datetime | str:
    """Read an instant written as FOCUS wants it; what is not comes back as the text it is."""
    if not _INSTANT.fullmatch(text):
        return text
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        return text


def cell_reader(kind: str) -> Callable[[str], Value]:
    """Return what reads a cell of a CSV file that is not empty."""
    if kind == "decimal":
        return read_decimal
    if kind == "datetime":
        return functools.lru_cache(_KEPT_MAX)(read_instant)
    return str


def _is_text(value: Value) -> bool:
    return isinstance(value, str) and value != ""


def _is_currency(value: Value) -> bool:
    return value in CURRENCIES


def _is_unit(value: Value) -> bool:
    return isinstance(value, str) and _UNIT.fullmatch(value) is not None


def _is_decimal(value: Value) -> bool:
    return isinstance(value, Decimal) and value.is_finite()


def _is_instant(value: Value) -> bool:
    return isinstance(value, datetime) and value.tzinfo is not None and value.utcoffset() == _ZERO


def _is_key_values(value: Value) -> bool:
    """Say whether this is a JSON object of plain values, each key once."""
    if not isinstance(value, str):
        return False
    try:
        pairs = json.loads(value, object_pairs_hook=list)
    except ValueError:
        return False
    if not isinstance(pairs, list) or not value.lstrip().startswith("{"):
        return False
    keys = [key for key, _ in pairs]
    return len(set(keys)) == len(keys) and all(
        one is None or isinstance(one, str | int | float | bool) for _, one in pairs
    )


_ZERO: Final = timedelta()
_KINDS: Final[dict[str, Callable[[Value], bool]]] = {
    "string": _is_text,
    "currency": _is_currency,
    "unit": _is_unit,
    "decimal": _is_decimal,
    "datetime": _is_instant,
    "json": _is_key_values,
}


def _product(one: Value, other: Value) -> Value:
    """Multiply what the columns' kinds say are numbers, exactly."""
    if isinstance(one, Decimal) and isinstance(other, Decimal):
        return _EXACT.multiply(one, other)
    return None


def _is_plain(rule: Rule) -> bool:
    """Say whether a rule is on nothing but words and on what is null."""
    return all(_is_plain_condition(one) for one in (rule.then, rule.when) if one is not None)


def _is_plain_condition(condition: Condition) -> bool:
    verb, *rest = condition
    if verb in ("not", "all", "any"):
        return all(_is_plain_condition(one) for one in rest)
    if verb == "is":
        return not any(isinstance(value, Decimal) for value in rest)
    return verb in ("null", "known", "same")


def _sort_columns(condition: Condition, words: set[str], flags: set[str]) -> None:
    """Tell apart columns whose words matter and those of which only matters that they say any."""
    verb, *rest = condition
    if verb in ("not", "all", "any"):
        for one in rest:
            _sort_columns(one, words, flags)
    elif verb == "is":
        words.add(rest[0])
    elif verb == "same":
        words.update(rest)
    else:
        flags.update(rest)


def _columns_of(rule: Rule) -> set[str]:
    return _names(rule.then) | (_names(rule.when) if rule.when else set())


def _names(condition: Condition) -> set[str]:
    verb, *rest = condition
    if verb in ("not", "all", "any"):
        return set().union(*(_names(one) for one in rest))
    if verb in ("is", "least"):
        return {rest[0]}
    return set(rest)


def _compile_rule(rule: Rule) -> Callable[[Row], bool]:
    then = _compile(rule.then)
    if rule.when is None:
        return then
    when = _compile(rule.when)
    return lambda row: not when(row) or then(row)


def _compile(condition: Condition) -> Callable[[Row], bool]:  # noqa: PLR0911  # one for each verb
    verb, *rest = condition
    if verb == "is":
        column, allowed = rest[0], frozenset(rest[1:])
        return lambda row: row[column] in allowed
    if verb == "null":
        (column,) = rest
        return lambda row: row[column] is None
    if verb == "known":
        (column,) = rest
        return lambda row: row[column] is not None
    if verb == "same":
        one, other = rest
        return lambda row: row[one] == row[other]
    if verb == "product":
        one, other, result = rest
        return lambda row: _product(row[one], row[other]) == row[result]
    if verb == "least":
        column, bound = rest
        return lambda row: row[column] >= bound
    if verb == "before":
        one, other = rest
        return lambda row: row[one] < row[other]  # type: ignore[operator]
    parts = [_compile(one) for one in rest]
    if verb == "not":
        return lambda row: not parts[0](row)
    if verb == "all":
        return lambda row: all(part(row) for part in parts)
    return lambda row: any(part(row) for part in parts)
