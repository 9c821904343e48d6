"""What happened to every part, in order, on this node's disk.

One SQLite file with one writer thread. The line hands records over without waiting;
the writer puts them on disk in groups (WAL, `synchronous=FULL`) and keeps trying when
the disk refuses, while the line is told as soon as its patience, a bounded queue, is
used up. At most one outcome, an inspection or a fault, is ever kept for a trigger.
Readers walk the records at their own pace, each with a cursor kept beside them.
"""

from __future__ import annotations

import queue
import sqlite3
import threading
from collections import deque
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, timedelta
from typing import TYPE_CHECKING, Any

import structlog

from qcnode.audit import Audit
from qcnode.books.records import KIND_OF, decode, encode
from qcnode.domain import (
    CertificateChange,
    Choice,
    Counts,
    Decider,
    Escalation,
    Fault,
    Finding,
    Inspection,
    ProcessChange,
    Ruling,
    Verdict,
)
from qcnode.errors import JournalUnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from datetime import datetime
    from pathlib import Path

    from qcnode.books.pictures import PictureStore
    from qcnode.domain import Evidence, JournalRecord
    from qcnode.health import HealthBoard

log = structlog.get_logger()

SCHEMA_VERSION = 1
QUEUE_MAX = 2_000
GROUP_MAX = 100
RETRY_S = 0.5
RECENT_MAX = 240
QUOTA_SPAN = timedelta(hours=1)

_SCHEMA = """
CREATE TABLE IF NOT EXISTS record (
    seq INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    kind TEXT NOT NULL,
    trigger_seq INTEGER,
    ref TEXT,
    final INTEGER NOT NULL,
    body TEXT NOT NULL
) STRICT;
CREATE UNIQUE INDEX IF NOT EXISTS one_outcome_per_trigger
    ON record (trigger_seq) WHERE kind IN ('inspection', 'fault');
CREATE UNIQUE INDEX IF NOT EXISTS one_final_ruling_per_escalation
    ON record (ref) WHERE kind = 'ruling' AND final = 1;
CREATE INDEX IF NOT EXISTS by_kind ON record (kind, seq);
CREATE INDEX IF NOT EXISTS by_ref ON record (ref) WHERE ref IS NOT NULL;
CREATE INDEX IF NOT EXISTS bound_by_agents ON record (json_extract(body, '$.at'))
    WHERE kind = 'ruling' AND final = 1 AND json_extract(body, '$.by') = 'agent';
CREATE TABLE IF NOT EXISTS cursor (reader TEXT PRIMARY KEY, seq INTEGER NOT NULL) STRICT;
"""


@dataclass(slots=True)
class _Waiting:
    record: JournalRecord
    evidence: Evidence | None
    done: Future[bool]


@dataclass(slots=True)
class _Weighed:
    draft: Ruling
    weigh: Callable[[int], Ruling]
    done: Future[Ruling | None]
    record: Ruling


@dataclass(slots=True)
class _Cursor:
    reader: str
    seq: int
    done: Future[bool]


class Journal:
    """The journal of one node; any thread may append and read."""

    def __init__(self, path: Path, *, pictures: PictureStore, health: HealthBoard) -> None:
        self._path = path
        self._pictures = pictures
        self._health = health
        self._queue: queue.Queue[_Waiting | _Weighed | _Cursor | None] = queue.Queue(
            maxsize=QUEUE_MAX
        )
        self._listeners: list[Callable[[], None]] = []
        self._recent: deque[Inspection | Fault] = deque(maxlen=RECENT_MAX)
        self._closed = False
        self._closing = threading.Event()
        try:
            self._db = _open(path)
            self._reader = sqlite3.connect(
                f"file:{path}?mode=ro", uri=True, check_same_thread=False
            )
        except sqlite3.Error as error:
            raise JournalUnavailableError(
                f"{path}: the journal cannot be opened: {error}"
            ) from error
        self._reader_lock = threading.Lock()
        self._counts = self._count_all()
        self._recent.extend(self._last_outcomes())
        self._writer = threading.Thread(target=self._write, name="journal", daemon=True)
        self._writer.start()
        health.report("journal", ok=True, words="recording", needed=True)

    # -- writing ---------------------------------------------------------------

    def append(self, record: JournalRecord, *, evidence: Evidence | None = None) -> None:
        """Put a record in line for the disk and return at once.

        Raises `JournalUnavailableError` when the line is full because the disk does
        not take records.
        """
        self.submit(record, evidence=evidence)

    def submit(self, record: JournalRecord, *, evidence: Evidence | None = None) -> Future[bool]:
        """As `append`; the future says whether the record was new, once it is durable."""
        waiting = _Waiting(record, evidence, Future())
        self._enqueue(waiting)
        return waiting.done

    def rule(self, draft: Ruling, weigh: Callable[[int], Ruling]) -> Future[Ruling | None]:
        """Record what `weigh` makes of an agent's ruling, and return that; None was not new.

        It is called in the writer's thread, in the same transaction, with how many rulings
        of agents were binding in the hour before: whatever it looks at is as fresh as can be.
        """
        weighed = _Weighed(draft, weigh, Future(), draft)
        self._enqueue(weighed)
        return weighed.done

    def advance(self, reader: str, seq: int) -> Future[bool]:
        """Note that `reader` has dealt with everything up to `seq`."""
        cursor = _Cursor(reader, seq, Future())
        self._enqueue(cursor)
        return cursor.done

    def add_listener(self, listener: Callable[[], None]) -> None:
        """Have `listener` called, from the writer's thread, after each group is durable."""
        self._listeners.append(listener)

    def close(self, timeout_s: float = 5.0) -> None:
        """Write what is in line and stop. Closing twice is harmless."""
        if self._closed:
            return
        self._closed = True
        self._closing.set()
        with suppress(queue.Full):
            self._queue.put(None, timeout=timeout_s)
        self._writer.join(timeout_s)
        if self._writer.is_alive():
            log.error("journal closed with records the disk would not take")
            return
        # The writing connection leaves last, and takes the write-ahead log with it.
        with self._reader_lock:
            self._reader.close()
        self._db.close()

    # -- reading ---------------------------------------------------------------

    def read(self, after_seq: int, limit: int = 500) -> list[tuple[int, JournalRecord]]:
        """Return up to `limit` records beyond `after_seq` with their seq, in order."""
        rows = self._rows(
            "SELECT seq, kind, body FROM record WHERE seq > ? ORDER BY seq LIMIT ?",
            (after_seq, limit),
        )
        return [(seq, decode(kind, body)) for seq, kind, body in rows]

    def cursor(self, reader: str) -> int:
        """Return how far `reader` has come; 0 at the beginning."""
        rows = self._rows("SELECT seq FROM cursor WHERE reader = ?", (reader,))
        return int(rows[0][0]) if rows else 0

    def counts(self) -> Counts:
        """Return how the parts came out, over all that is durable."""
        return self._counts

    def came_out_since(self, id_: str) -> dict[str, int]:
        """Return how many parts got which verdict, of those whose inspection has a later id."""
        rows = self._rows(
            "SELECT json_extract(body, '$.verdict'), count(*) FROM record"
            # Ids made by the clock are digits and capitals, so those of others are not walked.
            " WHERE id >= ? AND id < '[' AND +kind = 'inspection' GROUP BY 1",
            (id_,),
        )
        return {str(verdict): int(count) for verdict, count in rows}

    def recent(self, limit: int) -> list[Inspection | Fault]:
        """Return the last outcomes, newest last."""
        return list(self._recent)[-limit:]

    def missing_triggers(self, upto: int) -> list[int]:
        """Return the triggers from 1 to `upto` that have no outcome."""
        known = self._rows(
            "SELECT count(*), max(trigger_seq) FROM record"
            " WHERE kind IN ('inspection', 'fault') AND trigger_seq <= ?",
            (upto,),
        )[0]
        if known[0] == upto:
            return []
        present = {
            row[0]
            for row in self._rows(
                "SELECT trigger_seq FROM record"
                " WHERE kind IN ('inspection', 'fault') AND trigger_seq <= ?",
                (upto,),
            )
        }
        return [seq for seq in range(1, upto + 1) if seq not in present]

    def open_escalations(self) -> list[tuple[Escalation, Ruling | None]]:
        """Return the escalations without a final ruling, oldest first, with the last proposal."""
        rows = self._rows(
            "SELECT e.body, (SELECT p.body FROM record p WHERE p.ref = e.id AND p.kind = 'ruling'"
            "                ORDER BY p.seq DESC LIMIT 1)"
            " FROM record e WHERE e.kind = 'escalation' AND NOT EXISTS"
            " (SELECT 1 FROM record r WHERE r.ref = e.id AND r.kind = 'ruling' AND r.final = 1)"
            " ORDER BY e.seq",
            (),
        )
        found = []
        for escalation_body, proposal_body in rows:
            escalation = decode("escalation", escalation_body)
            proposal = None if proposal_body is None else decode("ruling", proposal_body)
            assert isinstance(escalation, Escalation)  # noqa: S101  # the kind column says so
            assert proposal is None or isinstance(proposal, Ruling)  # noqa: S101  # likewise
            found.append((escalation, proposal))
        return found

    def story(self, escalation_id: str) -> tuple[Escalation, list[Ruling]] | None:
        """Return an escalation and what was ruled on it, in order; None is not on record."""
        rows = self._rows(
            "SELECT kind, body FROM record WHERE kind = 'escalation' AND id = ?1"
            " OR kind = 'ruling' AND ref = ?1 ORDER BY seq",
            (escalation_id,),
        )
        records = [decode(str(kind), str(body)) for kind, body in rows]
        if not records or not isinstance(records[0], Escalation):
            return None
        return records[0], [record for record in records[1:] if isinstance(record, Ruling)]

    def rulings(self, after_seq: int, limit: int) -> list[tuple[int, Escalation, Ruling]]:
        """Return up to `limit` rulings beyond `after_seq` with what they were asked, in order."""
        rows = self._rows(
            "SELECT r.seq, e.body, r.body FROM record r JOIN record e ON e.id = r.ref"
            " WHERE r.kind = 'ruling' AND r.seq > ? ORDER BY r.seq LIMIT ?",
            (after_seq, limit),
        )
        found = []
        for seq, asked, said in rows:
            escalation, ruling = decode("escalation", asked), decode("ruling", said)
            assert isinstance(escalation, Escalation)  # noqa: S101  # by its kind
            assert isinstance(ruling, Ruling)  # noqa: S101  # likewise
            found.append((int(seq), escalation, ruling))
        return found

    def certificate(self, model: str) -> CertificateChange | None:
        """Return what last became of the certificate of `model`; None is nothing so far."""
        rows = self._rows(
            "SELECT body FROM record WHERE kind = 'certificate' AND ref = ?"
            " ORDER BY seq DESC LIMIT 1",
            (model,),
        )
        found = decode("certificate", str(rows[0][0])) if rows else None
        assert found is None or isinstance(found, CertificateChange)  # noqa: S101  # by its kind
        return found

    def audit(self, model: str) -> Audit:
        """Return what people found of the parts that `model` would pass and they checked."""
        rows = self._rows(
            "SELECT json_extract(r.body, '$.by'), json_extract(r.body, '$.finding'), count(*)"
            " FROM record e JOIN record i ON i.id = e.ref"
            " JOIN record r ON r.ref = e.id AND r.kind = 'ruling' AND r.final = 1"
            " WHERE e.kind = 'escalation' AND json_extract(e.body, '$.audit') = 1"
            " AND json_extract(i.body, '$.model') = ? GROUP BY 1, 2",
            (model,),
        )
        checked = {finding: count for by, finding, count in rows if by == Decider.OPERATOR.value}
        return Audit(
            checked=sum(checked.values()),
            defective=checked.get(Finding.DEFECTIVE.value, 0),
            unanswered=sum(row[2] for row in rows) - sum(checked.values()),
        )

    def picture(self, inspection_id: str) -> bytes | None:
        """Return the JPEG of an inspection that was not simply good, if it is still kept."""
        return self._pictures.picture(inspection_id)

    def heat(self, inspection_id: str) -> bytes | None:
        """Return that inspection's heat map as a grey PNG, if it is still kept."""
        return self._pictures.heat(inspection_id)

    # -- inside ----------------------------------------------------------------

    def _enqueue(self, item: _Waiting | _Weighed | _Cursor) -> None:
        if self._closed:
            raise JournalUnavailableError(f"{self._path}: the journal is closed")
        try:
            self._queue.put_nowait(item)
        except queue.Full:
            raise JournalUnavailableError(
                f"{self._path}: {QUEUE_MAX} records wait because the disk takes none"
            ) from None

    def _rows(self, sql: str, values: tuple[object, ...]) -> list[tuple[Any, ...]]:
        with self._reader_lock:
            try:
                return self._reader.execute(sql, values).fetchall()
            except sqlite3.Error as error:
                raise JournalUnavailableError(
                    f"{self._path}: the journal cannot be read: {error}"
                ) from error

    def _write(self) -> None:
        stopping = False
        while not stopping:
            group, stopping = self._next_group()
            if group:
                self._write_group(group)

    def _next_group(self) -> tuple[list[_Waiting | _Weighed | _Cursor], bool]:
        item = self._queue.get()
        group: list[_Waiting | _Weighed | _Cursor] = []
        while item is not None:
            group.append(item)
            if len(group) == GROUP_MAX:
                return group, False
            try:
                item = self._queue.get_nowait()
            except queue.Empty:
                return group, False
        return group, True

    def _write_group(self, group: list[_Waiting | _Weighed | _Cursor]) -> None:
        for item in group:
            if isinstance(item, _Waiting) and item.evidence is not None:
                self._pictures.keep(item.record.id, item.evidence)
        while True:
            try:
                fresh = self._commit(group)
                break
            except sqlite3.Error as error:
                with suppress(sqlite3.Error):
                    self._db.rollback()
                self._health.report(
                    "journal", ok=False, words=f"the disk takes no records: {error}", needed=True
                )
                # Nothing is lost while it waits here; a closing journal gives up loudly.
                if self._closed:
                    for item in group:
                        item.done.set_exception(JournalUnavailableError(str(error)))
                    return
                self._closing.wait(RETRY_S)
        self._health.report("journal", ok=True, words="recording", needed=True)
        for item, new in zip(group, fresh, strict=True):
            if new and not isinstance(item, _Cursor):
                self._take_note(item.record)
            with suppress(InvalidStateError):  # whoever waited may have given up
                _answer(item, new=new)
        for listener in self._listeners:
            listener()

    def _commit(self, group: Iterable[_Waiting | _Weighed | _Cursor]) -> list[bool]:
        fresh = []
        for item in group:
            if isinstance(item, _Cursor):
                self._db.execute(
                    "INSERT INTO cursor (reader, seq) VALUES (?, ?)"
                    " ON CONFLICT (reader) DO UPDATE SET seq = max(seq, excluded.seq)",
                    (item.reader, item.seq),
                )
                fresh.append(True)
            else:
                if isinstance(item, _Weighed):
                    # Anew each time the disk is tried: what held then may not hold now.
                    item.record = item.weigh(self._bound_by_agents(item.draft.at))
                fresh.append(self._insert(item.record))
        self._db.commit()
        return fresh

    def _bound_by_agents(self, before: datetime) -> int:
        """Count the binding rulings of agents in the last hour; what is dated later counts too."""
        since = (before - QUOTA_SPAN).astimezone(UTC).isoformat()
        row = self._db.execute(
            "SELECT count(*) FROM record WHERE kind = 'ruling' AND final = 1"
            " AND json_extract(body, '$.by') = 'agent' AND json_extract(body, '$.at') > ?",
            (since,),
        ).fetchone()
        return int(row[0])

    def _insert(self, record: JournalRecord) -> bool:
        trigger_seq, ref, final = _keys(record)
        done = self._db.execute(
            "INSERT INTO record (id, kind, trigger_seq, ref, final, body)"
            " VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
            (record.id, KIND_OF[type(record)], trigger_seq, ref, final, encode(record)),
        )
        if done.rowcount == 0:
            # The same record again is a retry; another one in its place is a fault in
            # the program, and the first to be recorded stays the truth.
            log.debug("record not new", record=record.id, trigger=trigger_seq, ref=ref)
        return done.rowcount == 1

    def _take_note(self, record: JournalRecord) -> None:
        self._counts = _counted(self._counts, record)
        if isinstance(record, Inspection | Fault):
            self._recent.append(record)

    def _count_all(self) -> Counts:
        verdicts: dict[str, int] = dict(
            self._rows(
                "SELECT json_extract(body, '$.verdict'), count(*) FROM record"
                " WHERE kind = 'inspection' GROUP BY 1",
                (),
            )
        )
        kinds: dict[str, int] = dict(
            self._rows(
                "SELECT kind, count(*) FROM record WHERE kind != 'ruling' OR final = 1 GROUP BY 1",
                (),
            )
        )

        escalated, ruled = kinds.get("escalation", 0), kinds.get("ruling", 0)
        faults = kinds.get("fault", 0)
        return Counts(
            parts=kinds.get("inspection", 0) + faults,
            ok=verdicts.get(Verdict.OK, 0),
            not_ok=verdicts.get(Verdict.NOT_OK, 0),
            not_decidable=verdicts.get(Verdict.NOT_DECIDABLE, 0),
            undefined=verdicts.get(Verdict.UNDEFINED, 0),
            faults=faults,
            escalated=escalated,
            ruled=ruled,
            waiting=escalated - ruled,
        )

    def _last_outcomes(self) -> list[Inspection | Fault]:
        rows = self._rows(
            "SELECT kind, body FROM record WHERE kind IN ('inspection', 'fault')"
            " ORDER BY seq DESC LIMIT ?",
            (RECENT_MAX,),
        )
        outcomes = [decode(str(kind), str(body)) for kind, body in reversed(rows)]
        return [outcome for outcome in outcomes if isinstance(outcome, Inspection | Fault)]


def _answer(item: _Waiting | _Weighed | _Cursor, *, new: bool) -> None:
    if isinstance(item, _Weighed):
        item.done.set_result(item.record if new else None)
    else:
        item.done.set_result(new)


def _open(path: Path) -> sqlite3.Connection:
    # Nobody else writes here; if somebody does, the line must hear of it soon.
    db = sqlite3.connect(path, timeout=1.0, check_same_thread=False)
    version = db.execute("PRAGMA user_version").fetchone()[0]
    if version > SCHEMA_VERSION:
        db.close()
        raise JournalUnavailableError(
            f"{path}: written by a newer qcnode (schema {version}); update this one"
        )
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = FULL")
    db.executescript(_SCHEMA)
    db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
    db.commit()
    return db


def _keys(record: JournalRecord) -> tuple[int | None, str | None, int]:
    if isinstance(record, Escalation):
        return None, record.inspection_id, 0
    if isinstance(record, Ruling):
        return None, record.escalation_id, int(record.binding)
    if isinstance(record, Choice):
        return None, record.escalation_id, 0
    if isinstance(record, CertificateChange):
        return None, record.model, 0
    if isinstance(record, ProcessChange):
        return None, record.proposal_id, 0
    return record.trigger_seq, None, 0


def _counted(counts: Counts, record: JournalRecord) -> Counts:
    if isinstance(record, Inspection):
        name = record.verdict.value.lower()
        return replace(counts, parts=counts.parts + 1, **{name: getattr(counts, name) + 1})
    if isinstance(record, Fault):
        return replace(counts, parts=counts.parts + 1, faults=counts.faults + 1)
    if isinstance(record, Escalation):
        return replace(counts, escalated=counts.escalated + 1, waiting=counts.waiting + 1)
    if isinstance(record, Ruling) and record.binding:
        return replace(counts, ruled=counts.ruled + 1, waiting=counts.waiting - 1)
    return counts  # No other kind says how a part came out.
