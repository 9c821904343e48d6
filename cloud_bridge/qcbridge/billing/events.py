"""What was used, as events that other billing platforms take in.

One event for each attempt whose cost is known, with an id that never changes: whoever
gets it twice counts it once. A cost that was put right later is two more events, one
that takes back and one that stands in its place. Each line of a file is one request body:
a CloudEvent, a batch of CloudEvents as OpenMeter takes them, or a batch as Lago does.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from qcbridge.billing.bill import CLASSES
from qcbridge.billing.invoices import from_us
from qcnode.books import chain
from qcnode.errors import BillingError
from qcnode.money import format_pico

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

EVENT_TYPE: Final = "org.qcnode.usage.v1"
CODE: Final = "qcnode_usage"
"""What the billable metric is called at Lago."""
OPENMETER_BATCH: Final = 1_000
LAGO_BATCH: Final = 100
"""The most events that one request to Lago may hold."""
FORMATS: Final = ("cloudevents", "openmeter", "lago")


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageEvent:
    """One attempt's use, or what is taken back of it, at a known cost."""

    id: str
    tenant: str
    node: str
    at_us: int
    attempt_id: str
    provider: str
    model: str
    department: str
    application: str
    function: str
    line: str
    product: str
    agent: str
    level: str
    region: str
    tokens: tuple[int, ...]
    currency: str
    cost_pico: int
    price_rows: tuple[str, ...]

    @property
    def data(self) -> dict[str, Any]:
        """What is measured: counts as numbers, money as text, so that nobody rounds it."""
        words = ("department", "application", "function", "line", "product", "agent")
        values: dict[str, Any] = {name: getattr(self, name) for name in words}
        values |= {"level": self.level, "region": self.region, "node": self.node}
        values = {name: value for name, value in values.items() if value}
        values |= {
            "attempt": self.attempt_id,
            "provider": self.provider,
            "model": self.model,
            "currency": self.currency,
            "cost": format_pico(self.cost_pico),
            "cost_pico": str(self.cost_pico),
            "price_rows": ",".join(self.price_rows),
            "tokens": sum(self.tokens),
        }
        for token_class, count in zip(CLASSES, self.tokens, strict=True):
            values[f"{token_class}_tokens"] = count
        return values


def cloudevent(event: UsageEvent) -> dict[str, Any]:
    """Return an event as CloudEvents 1.0 has it; its subject is who is billed."""
    return {
        "specversion": "1.0",
        "type": EVENT_TYPE,
        "source": f"urn:qcnode:node:{event.tenant}:{event.node}",
        "id": event.id,
        "time": from_us(event.at_us).isoformat(timespec="microseconds").replace("+00:00", "Z"),
        "subject": event.tenant,
        "datacontenttype": "application/json",
        "data": event.data,
    }


def lago_event(event: UsageEvent) -> dict[str, Any]:
    """Return an event as Lago has it; its subscription is called after the tenant."""
    return {
        "transaction_id": event.id,
        "external_subscription_id": event.tenant,
        "code": CODE,
        "timestamp": f"{event.at_us // 10**6}.{event.at_us % 10**6 // 1000:03}",
        "precise_total_amount_cents": format_pico(event.cost_pico * 100),
        "properties": event.data,
    }


def lines(events: Iterable[UsageEvent], form: str) -> Iterator[bytes]:
    """Yield one request body after the other."""
    if form == "cloudevents":
        for event in events:
            yield chain.canonical(cloudevent(event))
    elif form == "openmeter":
        for batch in _batches(events, OPENMETER_BATCH):
            yield chain.canonical([cloudevent(event) for event in batch])
    elif form == "lago":
        for batch in _batches(events, LAGO_BATCH):
            yield chain.canonical({"events": [lago_event(event) for event in batch]})
    else:
        raise BillingError(f"events as {form!r:.40}: known are {', '.join(FORMATS)}")


def write_events(path: Path, events: Iterable[UsageEvent], form: str) -> int:
    """Write events to `path`, and return how many there were."""
    unfinished = path.with_name(path.name + ".part")
    counted = _Counted(events)
    try:
        with unfinished.open("wb") as file:
            for line in lines(counted, form):
                file.write(line + b"\n")
        unfinished.replace(path)
    except OSError as error:
        raise BillingError(f"{path}: cannot be written ({error.strerror})") from error
    finally:
        unfinished.unlink(missing_ok=True)
    return counted.count


class _Counted:
    """Counts what passes."""

    def __init__(self, events: Iterable[UsageEvent]) -> None:
        self._events = events
        self.count = 0

    def __iter__(self) -> Iterator[UsageEvent]:
        for event in self._events:
            self.count += 1
            yield event


def _batches(events: Iterable[UsageEvent], size: int) -> Iterator[list[UsageEvent]]:
    each = iter(events)
    while batch := list(itertools.islice(each, size)):
        yield batch
