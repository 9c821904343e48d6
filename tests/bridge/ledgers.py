"""Ledgers as a node would write them, for the billing server's tests."""

from dataclasses import replace
from datetime import UTC, datetime

from qcnode.books import chain
from qcnode.books.batch import decode_batch, encode_batch
from qcnode.money import Attempt, Cost, Indeterminate, Intent, NotBilled, Settled, TokenUsage

NOW = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)
AT_US = 1_794_787_200_000_000  # 2026-11-16 00:00 UTC
HOLD = Cost(currency="CNY", pico=9_000_000, rows=("in", "out"))
COST = Cost(currency="CNY", pico=1_234_567, rows=("in", "out"))
USAGE = TokenUsage.divide(input_tokens=1_000, output_tokens=50, cache_read=200, image=700)


def intent(attempt="a1", *, hold=HOLD, provider="scripted", model="vlm-1"):
    return Intent(
        attempt=Attempt(
            id=attempt, escalation_id=f"esc-{attempt}", number=1, provider=provider, model=model
        ),
        worst=TokenUsage(text=2_000, output=400),
        hold=hold,
        request_sha256="00" * 32,
        request_bytes=40_000,
        image_sha256=None,
    )


def settled(attempt="a1", *, usage=USAGE, cost=COST):
    return Settled(
        attempt_id=attempt,
        usage=usage,
        cost=cost,
        started_at_us=AT_US,
        rated_at_us=AT_US,
        raw_usage='{"prompt_tokens": 1000, "completion_tokens": 50}',
        response_id=f"resp-{attempt}",
        model_served="vlm-1",
        http_status=200,
        duration_ms=900,
    )


def indeterminate(attempt="a1", *, hold=HOLD):
    return Indeterminate(attempt_id=attempt, reason="timed out", hold=hold)


def not_billed(attempt="a1"):
    return NotBilled(attempt_id=attempt, reason="connection refused", http_status=None)


def write(facts, *, epoch="epoch-1", at_us=AT_US):
    """Chain facts into entries, a second apart."""
    entries, prev_hash = [], chain.genesis(epoch)
    for seq, fact in enumerate(facts, start=1):
        entry = chain.make_entry(
            fact, epoch=epoch, seq=seq, at_us=at_us + seq * 1_000_000, prev_hash=prev_hash
        )
        entries.append(entry)
        prev_hash = entry.hash
    return entries


def attempts(count):
    """Facts of `count` attempts that end in every way there is."""
    facts = []
    for number in range(count):
        name = f"a{number}"
        facts.append(intent(name))
        ending = number % 5
        if ending in (0, 1):
            facts.append(settled(name, cost=replace(COST, pico=1_000_000 + number)))
        elif ending == 2:
            facts.append(indeterminate(name))
        elif ending == 3:
            facts.append(not_billed(name))
        elif number % 2:
            facts.append(settled(name, cost=None))
    return facts


def batch_of(entries, *, tenant="acme", node="node-1"):
    return decode_batch(raw_batch(entries, tenant=tenant, node=node))


def raw_batch(entries, *, tenant="acme", node="node-1"):
    return encode_batch(tenant, node, entries, at=NOW)
