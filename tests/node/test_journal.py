import sqlite3
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcnode.books.journal import Journal
from qcnode.books.pictures import PictureStore
from qcnode.books.records import KIND_OF, decode, encode
from qcnode.domain import (
    Action,
    Box,
    Decider,
    Disposition,
    Escalation,
    Evidence,
    Fault,
    FaultKind,
    Finding,
    Frame,
    Inspection,
    Passage,
    Ruling,
    Verdict,
)
from qcnode.errors import JournalUnavailableError
from qcnode.health import HealthBoard

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)


def make_inspection(seq, verdict=Verdict.OK, **changes):
    values = {
        "id": f"i{seq}",
        "trigger_seq": seq,
        "part_id": f"part-{seq}",
        "verdict": verdict,
        "action": Action.DIVERT if verdict is Verdict.NOT_DECIDABLE else Action.ACCEPT,
        "score": 1.5,
        "model": "m@1",
        "captured_at": NOW,
        "latency_us": 5000,
    }
    return Inspection(**(values | changes))


def make_fault(seq):
    return Fault(
        id=f"f{seq}",
        trigger_seq=seq,
        part_id=f"part-{seq}",
        kind=FaultKind.LATE,
        reason="late",
        at=NOW,
        late_verdict=Verdict.OK,
    )


def make_escalation(seq):
    return Escalation(
        id=f"e{seq}",
        inspection_id=f"i{seq}",
        part_id=f"part-{seq}",
        reason="between",
        score=1.5,
        opened_at=NOW,
        expires_at=NOW + timedelta(minutes=15),
        box=Box(left=1, top=2, width=3, height=4),
    )


def make_ruling(seq, *, id_="r", binding=True):
    return Ruling(
        id=f"{id_}{seq}",
        escalation_id=f"e{seq}",
        part_id=f"part-{seq}",
        by=Decider.AGENT,
        who="agent:m",
        finding=Finding.DEFECTIVE,
        disposition=Disposition.SCRAP,
        binding=binding,
        reason="scratch, 《划痕》",
        defect_class="scratch",
        confidence=0.9,
        at=NOW,
    )


@pytest.fixture
def health():
    return HealthBoard(lambda: NOW)


@pytest.fixture
def open_journal(tmp_path, health):
    opened = []

    def open_journal(pictures_max=100):
        pictures = PictureStore(tmp_path / "pictures", pictures_max=pictures_max, heat_full=1.0)
        journal = Journal(tmp_path / "journal.db", pictures=pictures, health=health)
        opened.append(journal)
        return journal

    yield open_journal
    for journal in opened:
        journal.close()


@pytest.mark.parametrize(
    "record",
    [
        make_inspection(1, captured_at=NOW + timedelta(microseconds=7)),
        make_inspection(2, Verdict.UNDEFINED, score=None, reason="no frame"),
        make_fault(3),
        Passage(id="p1", trigger_seq=1, part_id="x", action=Action.DIVERT, commanded=False, at=NOW),
        make_escalation(4),
        make_ruling(5),
    ],
    ids=lambda record: type(record).__name__,
)
def test_a_record_comes_back_as_it_was(record):
    assert decode(KIND_OF[type(record)], encode(record)) == record


def test_records_are_read_in_order_after_a_restart_each_by_its_readers_cursor(open_journal):
    first = open_journal()
    for seq in range(1, 6):
        first.append(make_inspection(seq))
    first.advance("desk", 3)
    first.close()

    again = open_journal()

    assert [record.trigger_seq for _, record in again.read(again.cursor("desk"))] == [4, 5]
    assert again.cursor("somebody else") == 0


def test_a_trigger_keeps_its_first_outcome(open_journal):
    journal = open_journal()

    assert journal.submit(make_inspection(1)).result(5)
    assert not journal.submit(make_fault(1)).result(5)

    assert (journal.counts().parts, journal.counts().faults) == (1, 0)


def test_an_escalation_keeps_its_first_binding_ruling(open_journal):
    journal = open_journal()
    journal.append(make_escalation(1))
    journal.append(make_ruling(1, id_="proposal", binding=False))

    (waiting,) = journal_waits(journal)
    assert waiting[1].id == "proposal1"

    assert journal.submit(make_ruling(1)).result(5)
    assert not journal.submit(make_ruling(1, id_="second")).result(5)
    assert journal.open_escalations() == []
    assert (journal.counts().ruled, journal.counts().waiting) == (1, 0)


def journal_waits(journal):
    journal.advance("flush", 0).result(5)
    return journal.open_escalations()


def test_triggers_without_an_outcome_are_found(open_journal):
    journal = open_journal()
    for seq in (1, 2, 4):
        journal.append(make_inspection(seq))
    journal.append(make_fault(6))
    journal.advance("flush", 0).result(5)

    assert journal.missing_triggers(upto=7) == [3, 5, 7]
    assert journal.missing_triggers(upto=2) == []


@given(
    outcomes=st.lists(st.sampled_from([*Verdict, None]), max_size=30),
)
def test_parts_are_the_sum_of_verdicts_and_faults_also_after_a_restart(tmp_path_factory, outcomes):
    folder = tmp_path_factory.mktemp("journal")
    health = HealthBoard(lambda: NOW)

    def open_journal():
        pictures = PictureStore(folder / "pictures", pictures_max=1, heat_full=None)
        return Journal(folder / "journal.db", pictures=pictures, health=health)

    journal = open_journal()
    for seq, verdict in enumerate(outcomes, start=1):
        journal.append(make_fault(seq) if verdict is None else make_inspection(seq, verdict))
    journal.advance("flush", 0).result(5)
    before = journal.counts()
    journal.close()
    journal = open_journal()
    after = journal.counts()
    journal.close()

    assert before == after
    assert before.parts == len(outcomes)
    verdicts = before.ok + before.not_ok + before.not_decidable + before.undefined
    assert verdicts + before.faults == before.parts
    assert before.faults == outcomes.count(None)


def test_evidence_of_a_part_is_kept_and_the_oldest_goes_first(open_journal):
    journal = open_journal(pictures_max=2)
    pixels = np.full((40, 60, 3), 128, np.uint8)
    heat = np.zeros((10, 15), np.float32)
    for seq in (1, 2, 3):
        frame = Frame(
            id=f"fr{seq}",
            part_id="p",
            camera="c",
            name="n",
            captured_at=NOW,
            pixels=pixels,
        )
        journal.append(make_inspection(seq), evidence=Evidence(frame=frame, heat=heat))
    journal.advance("flush", 0).result(5)

    assert journal.picture("i1") is None
    assert journal.picture("i3").startswith(b"\xff\xd8")
    assert journal.heat("i3").startswith(b"\x89PNG")


def test_a_path_in_place_of_an_id_finds_nothing(open_journal, tmp_path):
    (tmp_path / "secret.jpg").write_bytes(b"\xff\xd8")

    assert open_journal().picture("../secret") is None


def test_records_wait_while_the_disk_refuses_and_land_when_it_takes_them_again(
    open_journal, health, tmp_path
):
    journal = open_journal()
    blocker = sqlite3.connect(tmp_path / "journal.db", isolation_level=None, timeout=0)
    journal.submit(make_inspection(1)).result(5)
    # Another program holds the file: every commit fails, as it would on a full disk.
    blocker.execute("BEGIN IMMEDIATE")
    refused = journal.submit(make_inspection(2))
    wait_until(lambda: not health.ready(), refused)
    assert "takes no records" in health.all()[0].words

    blocker.execute("ROLLBACK")
    blocker.close()

    assert refused.result(10)
    assert health.ready()
    assert journal.counts().parts == 2


def wait_until(holds, never):
    """Poll the future briefly until `holds`; a future that ends first is a failure."""
    for _ in range(200):
        if holds():
            return
        with pytest.raises(TimeoutError):
            never.result(0.1)
    raise AssertionError("it never came")


def test_a_full_queue_is_said_at_once_and_nothing_blocks(open_journal, tmp_path, monkeypatch):
    monkeypatch.setattr("qcnode.books.journal.QUEUE_MAX", 3)
    journal = open_journal()
    blocker = sqlite3.connect(tmp_path / "journal.db", isolation_level=None, timeout=0)
    blocker.execute("BEGIN IMMEDIATE")

    def fill():
        for seq in range(1, 200):
            journal.append(make_inspection(seq))

    with pytest.raises(JournalUnavailableError, match="disk takes none"):
        fill()

    blocker.execute("ROLLBACK")
    blocker.close()


def test_a_journal_of_a_newer_version_is_refused_untouched(open_journal, tmp_path):
    db = sqlite3.connect(tmp_path / "journal.db")
    db.execute("PRAGMA user_version = 99")
    db.commit()
    db.close()

    with pytest.raises(JournalUnavailableError, match="newer qcnode"):
        open_journal()
