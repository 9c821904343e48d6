"""How journal records are written down and read back. Pure.

A record is JSON with the fields of its value, instants as ISO 8601 in UTC. Fields a
newer version added are ignored, so an older one can still read the journal.
"""

from __future__ import annotations

import json
from dataclasses import asdict, fields, is_dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from qcnode.domain import (
    Action,
    Box,
    CertificateChange,
    ChangeStage,
    Choice,
    Decider,
    Disposition,
    Escalation,
    Fault,
    FaultKind,
    Finding,
    Inspection,
    Passage,
    ProcessChange,
    Ruling,
    Verdict,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from qcnode.domain import JournalRecord

KINDS: dict[str, type[JournalRecord]] = {
    "inspection": Inspection,
    "fault": Fault,
    "passage": Passage,
    "escalation": Escalation,
    "ruling": Ruling,
    "certificate": CertificateChange,
    "process": ProcessChange,
    "choice": Choice,
}
KIND_OF = {record_type: kind for kind, record_type in KINDS.items()}

_READERS: dict[str, Callable[[Any], Any]] = {
    "verdict": Verdict,
    "late_verdict": Verdict,
    "action": Action,
    "kind": FaultKind,
    "disposition": Disposition,
    "finding": Finding,
    "by": Decider,
    "stage": ChangeStage,
    "box": lambda raw: Box(**raw),
    "passed_over": tuple,
    "at": datetime.fromisoformat,
    "captured_at": datetime.fromisoformat,
    "opened_at": datetime.fromisoformat,
    "expires_at": datetime.fromisoformat,
}


def encode(record: JournalRecord) -> str:
    """Write a record as JSON."""
    # Field by field: `asdict` copies every value deeply first, on the line's own core.
    values = {field.name: getattr(record, field.name) for field in fields(record)}
    return json.dumps(values, default=_plain, separators=(",", ":"), ensure_ascii=False)


def decode(kind: str, body: str) -> JournalRecord:
    """Read back what `encode` wrote for a record of this kind."""
    record_type = KINDS[kind]
    raw = json.loads(body)
    values = {}
    for field in fields(record_type):
        if field.name not in raw:
            continue  # written by an older version: the field's default stands
        value = raw[field.name]
        reader = _READERS.get(field.name)
        values[field.name] = value if value is None or reader is None else reader(value)
    return record_type(**values)


def _plain(value: object) -> object:
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat()
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    raise TypeError(f"{value!r} has no place in a journal record")
