"""Sparkplug B payloads, written and read. Pure.

The payload is Protocol Buffers, of which this needs little enough to have no library for
it. Only types that every host reads alike are written: signed integers of 32 and 64 bits,
floats, booleans, strings and instants (small and unsigned ones are read differently by
different hosts). What is read may come from anybody: a payload whose frame is broken raises
`ValueError`, a single metric that makes no sense is a `BadMetric` beside the good ones.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Final, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

Value: TypeAlias = bool | int | float | str | None

METRICS_MAX: Final = 10_000
_INT: Final = 10
_LONG: Final = 11
_FLOAT: Final = 12
_DOUBLE: Final = 13
_BOOLEAN: Final = 14
_STRING: Final = 15
_UINT32: Final = 1 << 32
_UINT64: Final = 1 << 64
_VARINT_BYTES_MAX: Final = 10


class DataType(IntEnum):
    """The types that are written here, by Sparkplug's numbers."""

    INT32 = 3
    INT64 = 4
    FLOAT = 9
    DOUBLE = 10
    BOOLEAN = 11
    STRING = 12
    DATETIME = 13
    """Milliseconds since 1970 in UTC."""


_FIELD_OF: Final = {
    DataType.INT32: _INT,
    DataType.INT64: _LONG,
    DataType.FLOAT: _FLOAT,
    DataType.DOUBLE: _DOUBLE,
    DataType.BOOLEAN: _BOOLEAN,
    DataType.STRING: _STRING,
    DataType.DATETIME: _LONG,
}
_BITS: Final = {DataType.INT32: 32, DataType.INT64: 64, DataType.DATETIME: 64}


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One value at one instant, by name or by alias.

    Without a `type`, as data messages have it, a value that was read is as it lay on the
    wire (integers without a sign); `typed` makes it one of the type it was born with.
    `labels` are properties for people.
    """

    at_ms: int | None
    value: Value
    type: DataType | None = None
    name: str | None = None
    alias: int | None = None
    historical: bool = False
    labels: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class BadMetric:
    """A metric that makes no sense, as far as it could be read."""

    name: str | None
    alias: int | None
    problem: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Payload:
    """What stands in one message. A death has no `seq`."""

    at_ms: int | None
    seq: int | None
    metrics: tuple[Metric | BadMetric, ...]

    @property
    def good(self) -> tuple[Metric, ...]:
        """Return the metrics that make sense."""
        return tuple(metric for metric in self.metrics if isinstance(metric, Metric))


def encode(
    metrics: Iterable[Metric], *, at_ms: int | None, seq: int | None, types: bool = True
) -> bytes:
    """Write a payload; raises `ValueError` for a value that is not of its type.

    Births say the types, data messages (`types` False) do not: hosts know them by then.
    """
    out = bytearray()
    if at_ms is not None:
        out += _uint(1, at_ms)
    for metric in metrics:
        out += _bytes(2, _metric(metric, types=types))
    if seq is not None:
        out += _uint(3, seq)
    return bytes(out)


def decode(raw: bytes) -> Payload:
    """Read a payload from anybody; raises `ValueError` when it is none."""
    at_ms = seq = None
    metrics: list[Metric | BadMetric] = []
    for field, value in _fields(raw):
        if field == 1 and isinstance(value, int):
            at_ms = value
        elif field == 3 and isinstance(value, int):  # noqa: PLR2004  # as Sparkplug counts them
            seq = value
        elif field == 2 and isinstance(value, bytes):  # noqa: PLR2004
            if len(metrics) >= METRICS_MAX:
                raise ValueError(f"more than {METRICS_MAX} metrics in one payload")
            metrics.append(_read_metric(value))
    return Payload(at_ms=at_ms, seq=seq, metrics=tuple(metrics))


def typed(value: Value, kind: DataType) -> Value:
    """Return a value from the wire as one of type `kind`, or raise `ValueError`.

    A whole number may stand for a float, and a float of either length for the other; nothing
    else is taken for what it is not.
    """
    if value is None:
        return None
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if kind is DataType.BOOLEAN and isinstance(value, bool):
        return value
    if kind is DataType.STRING and isinstance(value, str):
        return value
    if kind in (DataType.FLOAT, DataType.DOUBLE) and number and math.isfinite(float(value)):
        return float(value)
    if kind in _BITS and isinstance(value, int) and not isinstance(value, bool):
        return _signed(value, _BITS[kind])
    raise ValueError(f"{str(value)[:40]!r} is no {kind.name}")


# -- writing ------------------------------------------------------------------------------


def _metric(metric: Metric, *, types: bool) -> bytes:
    out = bytearray()
    if metric.name is not None:
        out += _bytes(1, metric.name.encode())
    if metric.alias is not None:
        out += _uint(2, metric.alias)
    if metric.at_ms is not None:
        out += _uint(3, metric.at_ms)
    if metric.type is not None and types:
        out += _uint(4, metric.type)
    if metric.historical:
        out += _uint(5, 1)
    if metric.value is None:
        out += _uint(7, 1)
    if metric.labels:
        out += _bytes(9, _labels(metric.labels))
    if metric.value is not None:
        out += _value(metric.value, metric.type)
    return bytes(out)


def _labels(labels: tuple[tuple[str, str], ...]) -> bytes:
    out = bytearray()
    for key, _text in labels:
        out += _bytes(1, key.encode())
    for _key, text in labels:
        out += _bytes(2, _uint(1, DataType.STRING) + _bytes(8, text.encode()))
    return bytes(out)


def _value(value: Value, kind: DataType | None) -> bytes:
    if value is None:
        return b""
    if kind is None:
        raise ValueError(f"{value!r} has no type to be written as")
    field, wrong = _FIELD_OF[kind], ValueError(f"{value!r} is no {kind.name}")
    if kind is DataType.BOOLEAN and isinstance(value, bool):
        return _uint(field, int(value))
    if isinstance(value, bool):
        raise wrong
    if kind is DataType.STRING and isinstance(value, str):
        return _bytes(field, value.encode())
    if kind is DataType.FLOAT and isinstance(value, int | float):
        return _key(field, 5) + struct.pack("<f", value)
    if kind is DataType.DOUBLE and isinstance(value, int | float):
        return _key(field, 1) + struct.pack("<d", value)
    if kind in _BITS and isinstance(value, int):
        bits = _BITS[kind]
        if not -(1 << bits - 1) <= value < 1 << bits - 1:
            raise wrong
        return _uint(field, value % (1 << bits))
    raise wrong


def _key(field: int, wire: int) -> bytes:
    return _varint(field << 3 | wire)


def _uint(field: int, number: int) -> bytes:
    if not 0 <= number < _UINT64:
        raise ValueError(f"{number} has no place in 64 bits without a sign")
    return _key(field, 0) + _varint(number)


def _bytes(field: int, raw: bytes) -> bytes:
    return _key(field, 2) + _varint(len(raw)) + raw


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:  # noqa: PLR2004  # seven bits a byte
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


# -- reading ------------------------------------------------------------------------------


def _read_metric(raw: bytes) -> Metric | BadMetric:
    name: str | None = None
    alias: int | None = None
    try:
        found = {}
        for field, value in _fields(raw):
            found[field] = value
            if field == 1 and isinstance(value, bytes):
                name = value.decode()
            elif field == 2 and isinstance(value, int):  # noqa: PLR2004
                alias = value
        return _sense(found, name, alias)
    except (ValueError, struct.error) as error:
        return BadMetric(name=name, alias=alias, problem=str(error))


def _sense(found: dict[int, int | bytes], name: str | None, alias: int | None) -> Metric:
    if name is None and alias is None:
        raise ValueError("neither name nor alias")
    number = _integer(found, 4)
    kind = None
    if number is not None:
        try:
            kind = DataType(number)
        except ValueError:
            raise ValueError(f"type {number} is none of those understood here") from None
    value: Value = None
    if not _integer(found, 7):
        fields = [field for field in found if _INT <= field <= 19]  # noqa: PLR2004  # the values
        if len(fields) != 1:
            raise ValueError(f"{len(fields)} values where there should be one, or null")
        value = _read_value(fields[0], found[fields[0]])
        value = value if kind is None else typed(value, kind)
    return Metric(
        at_ms=_integer(found, 3),
        value=value,
        type=kind,
        name=name,
        alias=alias,
        historical=bool(_integer(found, 5)),
    )


def _integer(found: dict[int, int | bytes], field: int) -> int | None:
    value = found.get(field)
    if isinstance(value, bytes):
        raise ValueError(f"field {field} is no number")  # noqa: TRY004  # a wrong value from outside
    return value


def _read_value(field: int, value: int | bytes) -> Value:
    if field == _STRING and isinstance(value, bytes):
        return value.decode()
    if field == _BOOLEAN and isinstance(value, int):
        return value != 0
    if field in (_INT, _LONG) and isinstance(value, int):
        # Some write a negative Int32 over 64 bits.
        return value
    if field == _FLOAT and isinstance(value, bytes):
        return float(struct.unpack("<f", value)[0])
    if field == _DOUBLE and isinstance(value, bytes):
        return float(struct.unpack("<d", value)[0])
    raise ValueError(f"field {field} is no value understood here")


def _signed(number: int, bits: int) -> int:
    if not 0 <= number < _UINT64:
        return number
    low, top = number % (1 << bits), 1 << bits - 1
    signed = low - (1 << bits) if low & top else low
    # Beyond the type's own bits only the sign may stand.
    if number >> bits and number != signed % _UINT64:
        raise ValueError(f"{number} has no place in {bits} bits")
    return signed


def _fields(raw: bytes) -> Iterator[tuple[int, int | bytes]]:
    at = 0
    while at < len(raw):
        key, at = _read_varint(raw, at)
        field, wire = key >> 3, key & 7
        if field == 0:
            raise ValueError("field 0 is none")
        if wire == 0:
            number, at = _read_varint(raw, at)
            yield field, number
            continue
        if wire == 2:  # noqa: PLR2004  # as Protocol Buffers number them
            length, at = _read_varint(raw, at)
        elif wire in (1, 5):
            length = 8 if wire == 1 else 4
        else:
            raise ValueError(f"wire type {wire} has no place here")
        if length > len(raw) - at:
            raise ValueError(f"field {field} ends beyond the payload")
        yield field, raw[at : at + length]
        at += length


def _read_varint(raw: bytes, at: int) -> tuple[int, int]:
    number = 0
    for shift in range(_VARINT_BYTES_MAX):
        if at + shift >= len(raw):
            raise ValueError("the payload ends within a number")
        byte = raw[at + shift]
        number |= (byte & 0x7F) << 7 * shift
        if not byte & 0x80:
            return number % _UINT64, at + shift + 1
    raise ValueError("a number of more than 64 bits")
