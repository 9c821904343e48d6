"""Ledgers as a node would write them, for the billing server's tests."""

import hashlib
from dataclasses import replace
from datetime import UTC, datetime

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from qcbridge.billing.offers import read_offer
from qcnode.books import chain
from qcnode.books.batch import encode_batch
from qcnode.books.seals import Checkpoint, SigningKey, origin_of
from qcnode.money import (
    Adjusted,
    Attempt,
    Cost,
    CostCentre,
    Indeterminate,
    Intent,
    NotBilled,
    Outcome,
    Reconciled,
    Reserved,
    Settled,
    TokenUsage,
    WrittenOff,
)

NOW = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)
AT_US = 1_794_787_200_000_000  # 2026-11-16 00:00 UTC
HOLD = Cost(currency="CNY", pico=9_000_000, rows=("in", "out"))
COST = Cost(currency="CNY", pico=1_234_567, rows=("in", "out"))
EVERYTHING = CostCentre()
USAGE = TokenUsage.divide(input_tokens=1_000, output_tokens=50, cache_read=200, image=700)


def intent(attempt="a1", *, hold=HOLD, provider="scripted", model="vlm-1", centre=EVERYTHING):
    return Intent(
        attempt=Attempt(
            id=attempt,
            escalation_id=f"esc-{attempt}",
            number=1,
            provider=provider,
            model=model,
            centre=centre,
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


def reserved(attempt="a1", *, hold=HOLD, **who):
    announced = intent(attempt, hold=hold, **who)
    return Reserved(attempt=announced.attempt, worst=announced.worst, hold=hold)


def reconciled(attempt="a1", *, usage=USAGE, cost=COST):
    return Reconciled(
        attempt_id=attempt, usage=usage, cost=cost, source="usage 2026-11", source_sha256="11" * 32
    )


def written_off(attempt="a1"):
    return WrittenOff(attempt_id=attempt, reason="older than 30 days")


def adjusted(attempt="a1", *, before=COST, after=COST):
    return Adjusted(attempt_id=attempt, before=before, after=after, reason="a price came late")


def outcome(escalation="esc-a1"):
    return Outcome(
        escalation_id=escalation,
        centre=CostCentre(line="line-1"),
        ruled="GOOD",
        truth="DEFECTIVE",
        node_alone="DIVERT",
        source="rework",
    )


def write(facts, *, epoch="epoch-1", at_us=AT_US, after=()):
    """Chain facts into entries, a second apart, going on from the entries `after`."""
    entries = list(after)
    prev_hash = entries[-1].hash if entries else chain.genesis(epoch)
    for seq, fact in enumerate(facts, start=len(entries) + 1):
        entry = chain.make_entry(
            fact, epoch=epoch, seq=seq, at_us=at_us + seq * 1_000_000, prev_hash=prev_hash
        )
        entries.append(entry)
        prev_hash = entry.hash
    return entries


def rewrite(entry, body):
    """The entry with another body, properly hashed: poison that a chain can carry."""
    return replace(entry, body=body, hash=chain.entry_hash(entry.seq, body, entry.prev_hash))


def attempts(count):
    """Facts of `count` attempts that end in every way there is, and of what goes with them."""
    facts = []
    for number in range(count):
        name = f"a{number}"
        cost = replace(COST, pico=1_000_000 + number)
        centre = CostCentre(line=f"line-{number % 3}", department="press" if number % 2 else "")
        facts += [reserved(name, centre=centre), intent(name, centre=centre)]
        facts += [
            [settled(name, cost=cost)],
            [settled(name, cost=cost), adjusted(name, before=cost)],
            [indeterminate(name)],
            [indeterminate(name), reconciled(name)],
            [indeterminate(name), written_off(name)],
            [not_billed(name)],
            [settled(name, cost=None)],
            [settled(name, cost=None), reconciled(name)],
            [outcome(f"esc-{name}")],
            [settled(name, cost=cost), settled(name, cost=cost)],  # The second is no fact.
        ][number % 10]
    return facts


def key_of(tenant="acme", node="node-1", *, generation=1):
    """The key of a node, the same in every run; another one for each generation."""
    seed = hashlib.sha256(f"{tenant}/{node}/{generation}".encode()).digest()
    return SigningKey(f"{tenant}/{node}", Ed25519PrivateKey.from_private_bytes(seed))


def note_of(entry, *, tenant="acme", node="node-1", key=None):
    """The node's signed note that `entry` is its last."""
    signer = key_of(tenant, node) if key is None else key
    origin = origin_of(tenant, node, entry.epoch)
    return signer.sign(Checkpoint(origin=origin, size=entry.seq, head_hash=entry.hash))


def batch_of(entries, **who):
    return read_offer(raw_batch(entries, **who))


def raw_batch(entries, *, tenant="acme", node="node-1", key=None):
    """A batch as a node sends it: signed, and with its key for a server that takes it in."""
    signer = key_of(tenant, node) if key is None else key
    note = note_of(entries[-1], tenant=tenant, node=node, key=signer)
    return encode_batch(tenant, node, entries, at=NOW, checkpoint=note, key=str(signer.public))
