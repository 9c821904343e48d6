"""How parts came out over time, summed by the quarter of an hour, out of the journal.

The sums are made by SQLite in a connection of their own, so that neither the journal's
readers nor Python's lock are held for long; each look reads only what is new since the
last one. Nothing older than `KEEP` is kept in memory, and the journal itself is never
changed.
"""

from __future__ import annotations

import sqlite3
from collections import deque
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from qcnode.errors import JournalUnavailableError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

BUCKET = timedelta(minutes=15)
KEEP = timedelta(days=8)
STRETCH = 50_000
"""How many records are summed at once; a look at a long journal is many short ones."""
DECISIONS_MAX = 2_000
MARKS_MAX = 50
BUSY_S = 1.0


@dataclass(slots=True)
class Bucket:
    """What came out in one quarter of an hour; `classes` are the defects people or agents named.

    `rejected` and `accepted` are what was asked of the gate. `agreed` of `compared` parts were
    found by a person to be what the agent had said.
    """

    parts: int = 0
    accepted: int = 0
    rejected: int = 0
    asked: int = 0
    blind: int = 0
    faults: int = 0
    compared: int = 0
    agreed: int = 0
    classes: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Mark:
    """Something that may explain a change: another model, or a certificate that ended."""

    at: datetime
    what: str
    name: str


@dataclass(frozen=True, slots=True)
class Trends:
    """The sums by the beginning of their quarter of an hour, and what may explain them.

    `decisions_s` are the instants of the last rulings by people, and how long each took.
    """

    buckets: dict[datetime, Bucket]
    marks: tuple[Mark, ...]
    decisions_s: tuple[tuple[datetime, float], ...]


class TrendReader:
    """Reads the sums of the journal in `path`; one thread at a time."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read_to: int | None = None
        self._buckets: dict[datetime, Bucket] = {}
        self._marks: deque[Mark] = deque(maxlen=MARKS_MAX)
        self._decisions: deque[tuple[datetime, float]] = deque(maxlen=DECISIONS_MAX)
        self._model: str | None = None

    def read(self, now: datetime) -> Trends:
        """Return the sums up to now. Raises `JournalUnavailableError`."""
        try:
            with closing(_open(self._path)) as db:
                if self._read_to is None:
                    self._read_to = _before(db, now - KEEP)
                (last,) = db.execute("SELECT coalesce(max(seq), 0) FROM record").fetchone()
                while self._read_to < last:
                    upto = min(last, self._read_to + STRETCH)
                    self._add(db, self._read_to, upto)
                    self._read_to = upto
        except sqlite3.Error as error:
            raise JournalUnavailableError(
                f"{self._path}: the journal cannot be read: {error}"
            ) from error
        for old in [at for at in self._buckets if at < now - KEEP]:
            del self._buckets[old]
        return Trends(
            buckets=self._buckets, marks=tuple(self._marks), decisions_s=tuple(self._decisions)
        )

    def _add(self, db: sqlite3.Connection, after: int, upto: int) -> None:
        between = (after, upto)
        for quarter, action, verdict, count in db.execute(_OUTCOMES, between):
            self._note_outcomes(self._bucket(quarter), action, verdict, count)
        for quarter, name, count in db.execute(_CLASSES, between):
            classes = self._bucket(quarter).classes
            classes[name] = classes.get(name, 0) + count
        for quarter, compared, agreed in db.execute(_AGREEMENT, between):
            bucket = self._bucket(quarter)
            bucket.compared += compared
            bucket.agreed += agreed
        self._decisions.extend(
            (datetime.fromisoformat(at), took_s) for at, took_s in db.execute(_DECISIONS, between)
        )
        self._note_marks(db.execute(_MARKS, between))

    def _bucket(self, quarter: int) -> Bucket:
        at = datetime.fromtimestamp(quarter * BUCKET.total_seconds(), UTC)
        return self._buckets.setdefault(at, Bucket())

    @staticmethod
    def _note_outcomes(bucket: Bucket, action: str | None, verdict: str | None, count: int) -> None:
        bucket.parts += count
        if action is None:
            bucket.faults += count
        bucket.accepted += count * (action == "ACCEPT")
        bucket.rejected += count * (action == "REJECT")
        bucket.asked += count * (verdict == "NOT_DECIDABLE")
        bucket.blind += count * (verdict == "UNDEFINED")

    def _note_marks(self, rows: Iterable[tuple[str, str, str, int | None]]) -> None:
        for kind, at, model, valid in rows:
            when = datetime.fromisoformat(at)
            if kind == "certificate":
                what = "certificate.valid" if valid else "certificate.revoked"
                self._marks.append(Mark(when, what, model))
            elif model != self._model:
                if self._model is not None:
                    self._marks.append(Mark(when, "model", model))
                self._model = model


_QUARTER = f"CAST(strftime('%s', {{}}) AS INTEGER) / {int(BUCKET.total_seconds())}"
_AT = "coalesce(json_extract(body, '$.captured_at'), json_extract(body, '$.at'))"
_OUTCOMES = f"""
SELECT {_QUARTER.format(_AT)},
       json_extract(body, '$.action'), json_extract(body, '$.verdict'), count(*)
FROM record WHERE seq > ? AND seq <= ? AND kind IN ('inspection', 'fault') GROUP BY 1, 2, 3
"""  # noqa: S608  # nothing of anybody's is put in
_CLASSES = f"""
SELECT {_QUARTER.format(_AT)}, json_extract(body, '$.defect_class'), count(*)
FROM record WHERE seq > ? AND seq <= ? AND kind = 'ruling' AND final = 1
    AND json_extract(body, '$.finding') = 'defective'
    AND json_extract(body, '$.defect_class') IS NOT NULL GROUP BY 1, 2
"""  # noqa: S608
_AGREEMENT = f"""
SELECT {_QUARTER.format("json_extract(o.body, '$.at')")}, count(*),
       sum(json_extract(o.body, '$.finding') = json_extract(a.body, '$.finding'))
FROM record o JOIN record a ON a.ref = o.ref AND a.kind = 'ruling' AND a.final = 0
    AND json_extract(a.body, '$.by') = 'agent'
WHERE o.seq > ? AND o.seq <= ? AND o.kind = 'ruling' AND o.final = 1
    AND json_extract(o.body, '$.by') = 'operator' GROUP BY 1
"""  # noqa: S608
_DECISIONS = """
SELECT json_extract(r.body, '$.at'), (julianday(json_extract(r.body, '$.at'))
       - julianday(json_extract(e.body, '$.opened_at'))) * 86400.0
FROM record r JOIN record e ON e.id = r.ref
WHERE r.seq > ? AND r.seq <= ? AND r.kind = 'ruling' AND r.final = 1
    AND json_extract(r.body, '$.by') = 'operator' ORDER BY r.seq
"""
_MARKS = f"""
SELECT kind, at, model, valid FROM (
    SELECT seq, kind, {_AT} AS at,
           json_extract(body, '$.model') AS model, json_extract(body, '$.valid') AS valid,
           lag(json_extract(body, '$.model')) OVER (PARTITION BY kind ORDER BY seq) AS before
    FROM record WHERE seq > ? AND seq <= ? AND kind IN ('inspection', 'certificate'))
WHERE kind = 'certificate' OR before IS NULL OR model != before ORDER BY seq
"""  # noqa: S608
_WHEN = """
SELECT seq, coalesce(json_extract(body, '$.captured_at'), json_extract(body, '$.at'),
                     json_extract(body, '$.opened_at'))
FROM record WHERE seq > ? ORDER BY seq LIMIT 1
"""


def _open(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=BUSY_S)


def _before(db: sqlite3.Connection, since: datetime) -> int:
    """Return a seq after which everything since then comes: records lie in order of time."""
    low, (high,) = 0, db.execute("SELECT coalesce(max(seq), 0) FROM record").fetchone()
    while low < high:
        middle = (low + high) // 2
        found = db.execute(_WHEN, (middle,)).fetchone()
        if found is None or datetime.fromisoformat(found[1]) >= since:
            high = middle
        else:
            low = found[0]
    return low
