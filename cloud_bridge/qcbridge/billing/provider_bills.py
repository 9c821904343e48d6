"""What providers say was used and billed, read from the files they hand out.

Pure. Known are the usage and cost exports of OpenAI (API pages as JSON, and CSV), of
DeepSeek (amount and cost CSV, or the ZIP with both) and of OpenRouter (activity CSV,
generation lookups as JSON). A record is one request where the provider tells requests
apart, else all use of one model between two instants. Amounts are read as decimals and
kept to the pico-unit; what a file does not say is None.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import zipfile
from collections import defaultdict
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from decimal import Context, Decimal, InvalidOperation
from typing import TYPE_CHECKING, Any, Final

from qcbridge.billing.invoices import to_us
from qcnode.errors import BillingError
from qcnode.money import PICO

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from pathlib import Path

FILE_BYTES_MAX: Final = 512 * 1024 * 1024
ROWS_MAX: Final = 5_000_000
DAY_US: Final = 86_400_000_000
_SECOND_US: Final = 1_000_000
_WIDE: Final = Context(prec=60)


@dataclass(frozen=True, slots=True, kw_only=True)
class BilledRecord:
    """One thing that a provider says it did: a request, or all of a model's over some time."""

    model: str
    from_us: int
    to_us: int
    account: str = ""
    record_id: str | None = None
    """The provider's id of the request or of its answer."""
    requests: int | None = None
    input_tokens: int | None = None
    cached_tokens: int | None = None
    output_tokens: int | None = None
    reasoning_tokens: int | None = None
    currency: str | None = None
    cost_pico: int | None = None

    @property
    def tokens(self) -> int | None:
        """All tokens, where both kinds are known."""
        if self.input_tokens is None or self.output_tokens is None:
            return None
        return self.input_tokens + self.output_tokens

    @property
    def day(self) -> str:
        """The day in UTC on which it began."""
        return (_EPOCH + timedelta(microseconds=self.from_us)).date().isoformat()


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderBill:
    """All records of one file, which is known by the hash of its bytes."""

    provider: str
    name: str
    sha256: str
    records: tuple[BilledRecord, ...]

    @property
    def source(self) -> str:
        """What the file is called where something is settled by it."""
        return f"{self.provider} {self.name}"[:200]


_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def read_bill(path: Path, provider: str, *, currency: str | None = None) -> ProviderBill:
    """Read a provider's file; raises `BillingError` naming the file and what it lacks.

    `currency` is what amounts are in where the file does not say.
    """
    reader = READERS.get(provider)
    if reader is None:
        raise BillingError(
            f"provider {provider!r:.60}: exports of {', '.join(sorted(READERS))} can be read"
        )
    try:
        if path.stat().st_size > FILE_BYTES_MAX:
            raise BillingError(f"{path}: larger than {FILE_BYTES_MAX} bytes: export fewer days")
        raw = path.read_bytes()
    except OSError as error:
        raise BillingError(f"{path}: cannot be read ({error.strerror})") from error
    try:
        records = tuple(reader(raw, currency))
    except (ValueError, KeyError, TypeError, csv.Error, zipfile.BadZipFile) as error:
        words = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise BillingError(f"{path}: no usage export of {provider}: {words}") from error
    if not records:
        raise BillingError(f"{path}: nothing in it: export days on which something was used")
    return ProviderBill(
        provider=provider,
        name=path.name,
        sha256=hashlib.sha256(raw).hexdigest(),
        records=records,
    )


def _read_openai(raw: bytes, currency: str | None) -> Iterator[BilledRecord]:
    """Read pages of the usage or cost API, or the dashboard's CSV with the same names."""
    if raw.lstrip()[:1] in (b"{", b"["):
        pages = _json(raw)
        for page in pages if isinstance(pages, list) else [pages]:
            for bucket in page["data"]:
                span = (int(bucket["start_time"]), int(bucket["end_time"]))
                for result in bucket["results"]:
                    yield _openai_record(result, span, currency)
        return
    for row in _csv(raw, "start_time", "end_time"):
        amount = None
        if row.get("amount_value"):
            amount = {"value": row["amount_value"], "currency": row.get("amount_currency")}
        span = (int(Decimal(row["start_time"])), int(Decimal(row["end_time"])))
        if row.get("model") or row.get("line_item") or amount:
            yield _openai_record({**row, "amount": amount}, span, currency)


def _openai_record(
    result: Mapping[str, Any], span: tuple[int, int], currency: str | None
) -> BilledRecord:
    amount = result.get("amount") or {}
    # A cost has its model in the first words of its line item.
    item = str(result.get("line_item") or "")
    cost = amount.get("value")
    return BilledRecord(
        model=str(result.get("model") or item.partition(",")[0]).strip(),
        from_us=span[0] * _SECOND_US,
        to_us=span[1] * _SECOND_US,
        account=str(result.get("project_id") or ""),
        requests=_count(result.get("num_model_requests")),
        input_tokens=_count(result.get("input_tokens")),
        cached_tokens=_count(result.get("input_cached_tokens")),
        output_tokens=_count(result.get("output_tokens")),
        currency=None if cost is None else _currency(amount.get("currency") or currency),
        cost_pico=None if cost is None else _pico(cost),
    )


_DEEPSEEK_TYPES: Final = {
    "input_cache_hit_tokens": "hit",
    "input_cache_miss_tokens": "miss",
    "input_tokens": "miss",
    "output_tokens": "output",
    "request_count": "requests",
}


def _read_deepseek(raw: bytes, currency: str | None) -> Iterator[BilledRecord]:
    """Read the amount CSV, the cost CSV, or the ZIP that holds both."""
    amounts, costs = _deepseek_files(raw)
    used = _deepseek_amounts(amounts, currency) if amounts else {}
    paid = _deepseek_costs(costs) if costs else {}
    if not paid:
        yield from used.values()
        return
    # The costs are not told apart by key, so the tokens are added up over the keys.
    whole: dict[tuple[str, int, int], BilledRecord] = {}
    for record in used.values():
        key = (record.model, record.from_us, record.to_us)
        whole[key] = replace(
            _plus(whole.get(key), replace(record, account="")), currency=None, cost_pico=None
        )
    for (model, start, end, unit), pico in paid.items():
        had = whole.pop((model, start, end), None)
        record = had or BilledRecord(model=model, from_us=start, to_us=end)
        yield replace(record, currency=unit, cost_pico=pico)
    yield from whole.values()


def _deepseek_files(raw: bytes) -> tuple[bytes, bytes]:
    """Return the amounts and the costs, whichever of them are there."""
    if raw[:2] != b"PK":
        return (b"", raw) if b",cost" in raw.partition(b"\n")[0] else (raw, b"")
    amounts, costs = b"", b""
    with zipfile.ZipFile(io.BytesIO(raw)) as archive:
        for item in archive.infolist():
            name = item.filename.rpartition("/")[2]
            if item.file_size > FILE_BYTES_MAX:
                raise ValueError(f"{name} in it is too large")
            if name.startswith("amount"):
                amounts = archive.read(item)
            elif name.startswith("cost"):
                costs = archive.read(item)
    if not amounts and not costs:
        raise ValueError("neither amount-*.csv nor cost-*.csv is in it")
    return amounts, costs


def _deepseek_amounts(
    raw: bytes, currency: str | None
) -> dict[tuple[str, str, int, int], BilledRecord]:
    sums: defaultdict[tuple[str, str, int, int], dict[str, Decimal]] = defaultdict(
        lambda: defaultdict(Decimal)
    )
    for row in _csv(raw, "model", "type", "amount"):
        start, end = _deepseek_span(row)
        kind = _DEEPSEEK_TYPES.get(row["type"])
        if kind is None:
            raise ValueError(f"a row of type {row['type']!r:.60}, which is not known here")
        amount = Decimal(_count(row["amount"]) or 0)
        of_key = sums[row.get("api_key_name") or "", row["model"], start, end]
        of_key[kind] += amount
        if kind != "requests" and row.get("price"):
            of_key["cost"] += _WIDE.multiply(_number(row["price"]), amount)
    return {
        (account, model, start, end): BilledRecord(
            model=model,
            from_us=start,
            to_us=end,
            account=account,
            requests=int(of_key["requests"]) if "requests" in of_key else None,
            input_tokens=int(of_key["hit"] + of_key["miss"]),
            cached_tokens=int(of_key["hit"]),
            output_tokens=int(of_key["output"]),
            currency=_currency(currency) if currency and "cost" in of_key else None,
            cost_pico=_pico(of_key["cost"]) if currency and "cost" in of_key else None,
        )
        for (account, model, start, end), of_key in sums.items()
    }


def _deepseek_costs(raw: bytes) -> dict[tuple[str, int, int, str], int]:
    paid: defaultdict[tuple[str, int, int, str], int] = defaultdict(int)
    for row in _csv(raw, "model", "cost", "currency"):
        start, end = _deepseek_span(row)
        paid[row["model"], start, end, _currency(row["currency"])] += _pico(row["cost"])
    return dict(paid)


def _deepseek_span(row: Mapping[str, str]) -> tuple[int, int]:
    """Return the time of a row: two instants, or in older files a day of UTC."""
    if row.get("start_time_iso"):
        return _instant(row["start_time_iso"]), _instant(row["end_time_iso"])
    day = row["utc_date"].replace("-", "")
    start = to_us(datetime.strptime(day, "%Y%m%d").replace(tzinfo=UTC))
    return start, start + DAY_US


def _read_openrouter(raw: bytes, currency: str | None) -> Iterator[BilledRecord]:
    """Read the activity CSV, or what looking generations up has returned."""
    unit = _currency(currency or "USD")
    if raw.lstrip()[:1] in (b"{", b"["):
        answers = _json(raw)
        for answer in answers if isinstance(answers, list) else [answers]:
            yield _openrouter_record(answer.get("data", answer), unit)
        return
    for row in _csv(raw, "generation_id", "created_at", "cost_total", "model_permaslug"):
        yield _openrouter_record(
            {
                "id": row["generation_id"],
                "created_at": row["created_at"],
                "model": row["model_permaslug"],
                "total_cost": row["cost_total"],
                "native_tokens_prompt": row.get("tokens_prompt"),
                "native_tokens_completion": row.get("tokens_completion"),
                "native_tokens_reasoning": row.get("tokens_reasoning"),
                "native_tokens_cached": row.get("tokens_cached"),
                "account": row.get("api_key_name"),
            },
            unit,
        )


def _openrouter_record(data: Mapping[str, Any], unit: str) -> BilledRecord:
    at_us = _instant(str(data["created_at"]))
    return BilledRecord(
        model=str(data["model"]),
        from_us=at_us,
        to_us=at_us + 1,
        account=str(data.get("account") or ""),
        record_id=str(data["id"]),
        requests=1,
        input_tokens=_count(data.get("native_tokens_prompt")),
        cached_tokens=_count(data.get("native_tokens_cached")),
        output_tokens=_count(data.get("native_tokens_completion")),
        reasoning_tokens=_count(data.get("native_tokens_reasoning")),
        currency=unit,
        cost_pico=_pico(data["total_cost"]),
    )


READERS: Final[dict[str, Callable[[bytes, str | None], Iterable[BilledRecord]]]] = {
    "openai": _read_openai,
    "deepseek": _read_deepseek,
    "openrouter": _read_openrouter,
}


def _plus(one: BilledRecord | None, other: BilledRecord) -> BilledRecord:
    if one is None:
        return other

    def both(name: str) -> int | None:
        first, second = getattr(one, name), getattr(other, name)
        return None if first is None or second is None else first + second

    return replace(
        one,
        requests=both("requests"),
        input_tokens=both("input_tokens"),
        cached_tokens=both("cached_tokens"),
        output_tokens=both("output_tokens"),
    )


def _json(raw: bytes) -> Any:
    return json.loads(raw, parse_float=Decimal)


def _csv(raw: bytes, *wanted: str) -> Iterator[dict[str, str]]:
    rows = csv.DictReader(io.StringIO(raw.decode("utf-8-sig"), newline=""))
    missing = [name for name in wanted if name not in (rows.fieldnames or [])]
    if missing:
        raise ValueError(f"it has no column {', '.join(missing)}")
    for number, row in enumerate(rows):
        if number >= ROWS_MAX:
            raise ValueError(f"more than {ROWS_MAX} rows: export fewer days")
        if None in row or None in row.values():
            raise ValueError(f"row {number + 1} has another number of cells than there are columns")
        yield row


def _count(value: Any) -> int | None:
    if value is None or value == "":
        return None
    number = _number(value)
    if number != int(number) or number < 0:
        raise ValueError(f"{value!r:.40} is no count")
    return int(number)


def _number(value: Any) -> Decimal:
    try:
        number = Decimal(str(value))
    except InvalidOperation as error:
        raise ValueError(f"{value!r:.40} is no number") from error
    if not number.is_finite():
        raise ValueError(f"{value!r:.40} is no number")
    return number


def _pico(value: Any) -> int:
    """Return an amount in pico-units; what is smaller is rounded, half to even."""
    return int(_WIDE.multiply(_number(value), Decimal(PICO)).to_integral_value())


def _currency(value: Any) -> str:
    unit = str(value or "").upper()
    if len(unit) != 3 or not unit.isalpha():  # noqa: PLR2004  # three letters, as USD
        raise ValueError(f"{value!r:.40} is no currency: say it with --currency")
    return unit


def _instant(text: str) -> int:
    at = datetime.fromisoformat(text.strip())
    return to_us(at if at.tzinfo is not None else at.replace(tzinfo=UTC))
