"""What a node and its devices show as Sparkplug tags, and the values they have. Pure.

Types are those every host reads alike. Counters count since the journal began and never
go back. Money is shown as a floating number of the currency's units, for people to look
at: bills are made of the ledger, never of tags.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from qcnode.domain import Fault, Inspection
from qcnode.lines.edge import Tag
from qcnode.lines.sparkplug import DataType, Value

if TYPE_CHECKING:
    from qcnode.domain import Counts
    from qcnode.money import LedgerTotals

CAMERA: Final = "camera"
PICO: Final = 10**12
US_PER_MS: Final = 1_000

_B, _S, _I, _L = DataType.BOOLEAN, DataType.STRING, DataType.INT32, DataType.INT64
_F, _D = DataType.FLOAT, DataType.DOUBLE

NODE_TAGS: Final = (
    Tag(name="Node Info/Software Version", type=_S),
    Tag(name="Node Info/Boot Id", type=_S),
    Tag(name="Status/PackML State", type=_S),
    Tag(name="Status/Ready", type=_B),
    Tag(name="Status/Degraded", type=_B),
    Tag(name="Status/Uptime s", type=_L),
    Tag(name="Tokens/Input Total", type=_L),
    Tag(name="Tokens/Output Total", type=_L),
    Tag(name="Cost/Total USD", type=_D),
    Tag(name="Ledger/Last Seq", type=_L),
    Tag(name="Ledger/Acked Seq", type=_L),
)
CAMERA_TAGS: Final = (
    Tag(name="Verdict/Last", type=_S),
    Tag(name="Verdict/Action", type=_S),
    Tag(name="Verdict/Part Id", type=_S),
    Tag(name="Verdict/Score", type=_F),
    Tag(name="Verdict/Latency ms", type=_I, labels=(("unit", "ms"),)),
    Tag(name="Model/Name", type=_S),
    Tag(name="Counters/Inspected", type=_L),
    Tag(name="Counters/Pass", type=_L),
    Tag(name="Counters/Fail", type=_L),
    Tag(name="Counters/Ambiguous", type=_L),
    Tag(name="Counters/Error", type=_L),
    Tag(name="Counters/Faults", type=_L),
    Tag(name="Counters/Escalated", type=_L),
)


def counters(counts: Counts) -> dict[str, Value]:
    """Return the camera's counters."""
    return {
        "Counters/Inspected": counts.parts,
        "Counters/Pass": counts.ok,
        "Counters/Fail": counts.not_ok,
        "Counters/Ambiguous": counts.not_decidable,
        "Counters/Error": counts.undefined,
        "Counters/Faults": counts.faults,
        "Counters/Escalated": counts.escalated,
    }


def verdict(outcome: Inspection | Fault) -> dict[str, Value]:
    """Return what is shown of one part."""
    if isinstance(outcome, Fault):
        return {
            "Verdict/Last": f"FAULT {outcome.kind.value}",
            "Verdict/Action": None,
            "Verdict/Part Id": outcome.part_id,
            "Verdict/Score": None,
            "Verdict/Latency ms": None,
        }
    return {
        "Verdict/Last": outcome.verdict.value,
        "Verdict/Action": outcome.action.value,
        "Verdict/Part Id": outcome.part_id,
        "Verdict/Score": outcome.score,
        "Verdict/Latency ms": outcome.latency_us // US_PER_MS,
        "Model/Name": outcome.model,
    }


def books(totals: LedgerTotals, *, last_seq: int, acked_seq: int) -> dict[str, Value]:
    """Return the node's values of what was spent, and how far the billing server has it."""
    return {
        "Tokens/Input Total": totals.input_tokens,
        "Tokens/Output Total": totals.output_tokens,
        "Cost/Total USD": totals.cost_pico.get("USD", 0) / PICO,
        "Ledger/Last Seq": last_seq,
        "Ledger/Acked Seq": acked_seq,
    }
