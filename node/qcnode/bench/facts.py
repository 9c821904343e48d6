"""Facts as a line that asks writes them, to measure with."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from qcnode.money import Attempt, Cost, CostCentre, Intent, Settled, TokenUsage

if TYPE_CHECKING:
    from qcnode.money import LedgerFact


def facts(first: int, count: int) -> list[LedgerFact]:
    """Return intents and their answers, as a line that asks writes them."""
    made: list[LedgerFact] = []
    for number in range(first, first + count // 2):
        made += [_intent(number), _settled(number)]
    return made


_CENTRE = CostCentre(
    line="line1", product="board", department="quality", application="inspection", agent="vlm"
)


def _intent(number: int) -> Intent:
    return Intent(
        attempt=Attempt(
            id=f"0193a000-0000-7000-8000-{number:012x}",
            escalation_id=f"0193a000-0000-7000-9000-{number:012x}",
            number=1,
            provider="bench",
            model="vlm-1",
            centre=_CENTRE,
            level="L2",
            region="eu",
        ),
        worst=TokenUsage(text=1_800, image=900, output=300),
        hold=Cost(currency="USD", pico=2_820_000_000, rows=("bench/vlm-1/input@2026-01-01",)),
        request_sha256=hashlib.sha256(number.to_bytes(8, "big")).hexdigest(),
        request_bytes=48_000,
        image_sha256=None,
    )


def _settled(number: int) -> Settled:
    usage = '{"prompt_tokens": 1204, "completion_tokens": 58, "total_tokens": 1262}'
    return Settled(
        attempt_id=f"0193a000-0000-7000-8000-{number:012x}",
        usage=TokenUsage(text=504, image=700, output=58),
        cost=Cost(currency="USD", pico=720_000_000, rows=("bench/vlm-1/input@2026-01-01",)),
        started_at_us=1_795_000_000_000_000,
        rated_at_us=1_795_000_001_000_000,
        raw_usage=usage,
        response_id=f"response-{number}",
        model_served="vlm-1",
        http_status=200,
        duration_ms=1_000,
    )
