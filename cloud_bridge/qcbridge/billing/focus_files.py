"""FOCUS rows as CSV and Parquet files, out and in.

Amounts leave as decimals with every digit they have: as text in CSV, as 128-bit decimals
in Parquet, never as floats. Both are written a part at a time and appear under their name
only when they are whole. Parquet needs pyarrow, which is loaded when it is asked for.
"""

from __future__ import annotations

import csv
import functools
import importlib.util
import itertools
from decimal import Context, Decimal, Inexact
from typing import TYPE_CHECKING, Any, Final

from qcbridge.billing.focus import HEADER, KINDS, SCALES, instant
from qcbridge.billing.focus_check import FocusCheck, cell_reader
from qcbridge.billing.invoices import from_us
from qcnode.errors import BillingError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

BATCH_ROWS: Final = 20_000
_READ_ROWS: Final = 4_000
_DIGITS: Final = 38
_TOLD_EVERY: Final = 100_000
_INSTANTS_KEPT: Final = 4_096
_EXACT: Final = Context(prec=100, traps=[Inexact])


def write_csv(path: Path, rows: Iterable[tuple[Any, ...]]) -> int:
    """Write rows to `path`, and return how many there were."""
    unfinished = path.with_name(path.name + ".part")
    # Text goes out as it is, and what is null as an empty cell.
    writers = [(place, write) for place, name in enumerate(HEADER) if (write := _csv_writer(name))]
    count = 0
    try:
        with unfinished.open("w", encoding="utf-8", newline="") as file:
            out = csv.writer(file, lineterminator="\n")
            out.writerow(HEADER)
            for row in rows:
                cells = list(row)
                for place, write in writers:
                    if cells[place] is not None:
                        cells[place] = write(cells[place])
                out.writerow(cells)
                count += 1
        unfinished.replace(path)
    except OSError as error:
        raise BillingError(f"{path}: cannot be written ({error.strerror})") from error
    finally:
        unfinished.unlink(missing_ok=True)
    return count


def has_parquet() -> bool:
    """Say whether Parquet can be written and read here."""
    return importlib.util.find_spec("pyarrow") is not None


def write_parquet(path: Path, rows: Iterable[tuple[Any, ...]]) -> int:
    """Write rows to `path`, and return how many there were; needs pyarrow."""
    pa, pq = _arrow()
    schema = pa.schema([(name, _arrow_type(pa, name)) for name in HEADER])
    readers = [_python_value(name) for name in HEADER]
    unfinished = path.with_name(path.name + ".part")
    count = 0
    try:
        with pq.ParquetWriter(unfinished, schema, compression="zstd") as out:
            each = iter(rows)
            while batch := list(itertools.islice(each, BATCH_ROWS)):
                columns = [
                    pa.array(
                        [None if value is None else read(value) for value in column],
                        type=field.type,
                    )
                    for read, column, field in zip(
                        readers, zip(*batch, strict=True), schema, strict=True
                    )
                ]
                out.write_batch(pa.record_batch(columns, schema=schema))
                count += len(batch)
        unfinished.replace(path)
    except OSError as error:
        raise BillingError(f"{path}: cannot be written ({error})") from error
    finally:
        unfinished.unlink(missing_ok=True)
    return count


def check_file(path: Path, *, tell: Callable[[int], None] | None = None) -> FocusCheck:
    """Check a FOCUS file, CSV or (by its name) Parquet; `tell` hears how far it has come."""
    if path.suffix == ".parquet":
        header, rows = _read_parquet(path)
    else:
        header, rows = _read_csv(path)
    check = FocusCheck(header)
    try:
        for row in rows:
            check.row(row)
            if tell is not None and check.rows % _TOLD_EVERY == 0:
                tell(check.rows)
    except (csv.Error, UnicodeDecodeError) as error:
        raise BillingError(f"{path}: row {check.rows + 1} cannot be read: {error}") from error
    return check


def _csv_writer(name: str) -> Callable[[Any], str] | None:
    kind = KINDS[name]
    if kind == "decimal":
        return _decimal_writer(SCALES[name])
    return functools.lru_cache(_INSTANTS_KEPT)(instant) if kind == "datetime" else None


def _decimal_writer(scale: int) -> Callable[[int], str]:
    if scale == 0:
        return str
    unit = 10**scale

    def write(value: int) -> str:
        whole, rest = divmod(abs(value), unit)
        sign = "-" if value < 0 else ""
        if not rest:
            return f"{sign}{whole}"
        return f"{sign}{whole}.{rest:0{scale}d}".rstrip("0")

    return write


def _python_value(name: str) -> Callable[[Any], Any]:
    kind = KINDS[name]
    if kind == "decimal":
        scale = SCALES[name]
        return lambda value: Decimal(value).scaleb(-scale, _EXACT)
    if kind == "datetime":
        return functools.lru_cache(_INSTANTS_KEPT)(from_us)
    return lambda value: value


def _arrow() -> tuple[Any, Any]:
    try:
        import pyarrow as pa  # noqa: PLC0415  # 40 MB that only Parquet needs
        import pyarrow.parquet as pq  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise BillingError(
            "Parquet needs pyarrow: install qcnode with the extra 'parquet', or export focus-csv"
        ) from error
    return pa, pq


def _arrow_type(pa: Any, name: str) -> Any:
    kind = KINDS[name]
    if kind == "decimal":
        return pa.decimal128(_DIGITS, SCALES[name])
    return pa.timestamp("us", tz="UTC") if kind == "datetime" else pa.string()


def _read_csv(path: Path) -> tuple[list[str], Iterator[dict[str, Any]]]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            header = next(csv.reader(file), [])
    except (OSError, UnicodeDecodeError) as error:
        raise BillingError(f"{path}: no CSV file to read: {error}") from error
    readers = [cell_reader(KINDS.get(name, "string")) for name in header]

    def rows() -> Iterator[dict[str, Any]]:
        with path.open(encoding="utf-8", newline="") as file:
            lines = csv.reader(file)
            next(lines, None)
            for line in lines:
                if len(line) != len(header):
                    raise csv.Error(f"{len(line)} cells under {len(header)} columns")
                yield dict(
                    zip(
                        header,
                        [
                            read(cell) if cell else None
                            for read, cell in zip(readers, line, strict=True)
                        ],
                        strict=True,
                    )
                )

    return header, rows()


def _read_parquet(path: Path) -> tuple[list[str], Iterator[dict[str, Any]]]:
    pa, pq = _arrow()
    try:
        file = pq.ParquetFile(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise BillingError(f"{path}: no Parquet file to read: {error}") from error

    names = list(file.schema_arrow.names)
    odd = [
        field.name
        for field in file.schema_arrow
        if not any(
            fits(field.type)
            for fits in (pa.types.is_string, pa.types.is_decimal, pa.types.is_timestamp)
        )
    ]

    def rows() -> Iterator[dict[str, Any]]:
        with file:
            for batch in file.iter_batches(_READ_ROWS):
                columns = [column.to_pylist() for column in batch.columns]
                for values in zip(*columns, strict=True):
                    row = dict(zip(names, values, strict=True))
                    for name in odd:
                        row[name] = _plain(row[name])
                    yield row

    return names, rows()


def _plain(value: Any) -> str | None:
    """Make what no column may hold, as a float, text that tells so."""
    return None if value is None else f"{type(value).__name__} {value!r}"
