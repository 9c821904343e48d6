"""The ledger as a file: where it may live, whose it is, how it grows older, and full disks."""

from __future__ import annotations

import json
import shutil
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from qcnode.books import chain
from qcnode.books.archive import ArchivedLedger, archived_ledgers
from qcnode.books.attempts import subject_of
from qcnode.books.ledger_file import LedgerReader, put_entries
from qcnode.books.mark import FileId, Found, Mark, MarkFile, judge
from qcnode.books.place import check_place
from qcnode.errors import LedgerCorruptError, LedgerUnavailableError
from qcnode.money import (
    CostCentre,
    EpochOpened,
    Intent,
    Outcome,
    Receipt,
)
from tests.node.homes import FIRST, SECOND, THIRD, Node, spend, used
from tests.node.test_ledger import intent, put, settled


@pytest.fixture
def node(tmp_path) -> Node:
    return Node(tmp_path / "home")


# -- where it may live -------------------------------------------------------------------

MOUNTS = """\
22 27 0:21 / /proc rw,relatime - proc proc rw
27 1 254:0 / / rw,relatime - ext4 /dev/vda rw
40 27 0:50 / /mnt/plant rw,relatime shared:1 master:2 - {kind} server:/plant rw
41 27 254:1 / /mnt/plant/local\\040disk rw - xfs /dev/vdb rw
"""


@pytest.mark.parametrize(
    "kind", ["nfs", "nfs4", "cifs", "smb3", "9p", "fuse.sshfs", "fuse", "virtiofs", "ceph"]
)
def test_a_ledger_on_another_machines_disk_is_refused_in_one_line(kind):
    with pytest.raises(LedgerUnavailableError) as refused:
        check_place(Path("/mnt/plant/home"), read_mounts=lambda: MOUNTS.format(kind=kind))
    assert f"/mnt/plant/home: lies on a network or user-space file system ({kind})" in str(
        refused.value
    )
    assert "put the node's home on a local disk" in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("folder", "kind"),
    [
        ("/srv/home", "ext4"),
        ("/mnt/plant/local disk/home", "xfs"),  # On a disk of its own within the network's.
        ("/mnt/plants", "ext4"),  # Only called alike.
    ],
)
def test_a_local_disk_is_taken_whatever_is_mounted_around_it(folder, kind):
    place = check_place(Path(folder), read_mounts=lambda: MOUNTS.format(kind="nfs4"))
    assert place.kind == kind


def test_the_last_of_several_mounts_at_one_point_counts():
    covered = MOUNTS.format(kind="nfs4") + "50 40 8:1 / /mnt/plant rw - btrfs /dev/sda1 rw\n"
    assert check_place(Path("/mnt/plant/x"), read_mounts=lambda: covered).kind == "btrfs"


def test_where_the_kernel_tells_no_mounts_any_place_is_taken():
    assert check_place(Path("/mnt/plant/home"), read_mounts=lambda: "").kind == ""
    assert check_place(Path("/"), read_mounts=lambda: "not a line of\nmountinfo").kind == ""


def test_a_node_with_its_home_on_the_network_does_not_start(node, monkeypatch):
    monkeypatch.setattr(
        "qcnode.books.place._read_mounts", lambda: "1 0 0:1 / / rw - nfs4 server:/ rw\n"
    )
    with pytest.raises(LedgerUnavailableError, match="network or user-space"), node.open():
        pass
    assert not node.path.exists()


# -- whose it is -------------------------------------------------------------------------


def test_a_restart_is_the_same_ledger(node):
    with node.open() as ledger:
        spend(ledger, "a", "b")
    for _ in range(3):
        with node.open() as ledger:
            assert (ledger.epoch, ledger.totals().entries) == (FIRST, 4)
        assert node.words("epoch") is None
    assert archived_ledgers(node.home) == []


def test_a_ledger_whose_node_was_killed_is_the_same_ledger(node, repository):
    killed = """
import os, signal, sys
from pathlib import Path
from tests.node.homes import Node, spend
node = Node(Path(sys.argv[1]))
with node.open() as ledger:
    spend(ledger, "a", "b")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run(
        [sys.executable, "-c", killed, str(node.home)], cwd=repository, timeout=60, check=False
    )
    assert done.returncode == -signal.SIGKILL
    next(node.epochs)
    with node.open() as ledger:
        assert (ledger.epoch, ledger.totals().entries) == (FIRST, 4)
    assert node.words("epoch") is None


def test_a_home_that_was_renamed_holds_the_same_ledger(node, tmp_path):
    with node.open() as ledger:
        spend(ledger, "a")
    node.home.rename(tmp_path / "elsewhere")
    moved = node.at(tmp_path / "elsewhere")
    with moved.open() as ledger:
        assert (ledger.epoch, ledger.totals().entries) == (FIRST, 2)
    assert moved.words("epoch") is None


def test_a_container_made_anew_over_the_same_volume_holds_the_same_ledger(node):
    # Another device number, another machine-id, another container: only the file counts.
    with node.open() as ledger:
        spend(ledger, "a")
    there = node.path.stat()
    with node.open(identify=lambda _path: FileId(inode=there.st_ino, generation=None)) as ledger:
        assert ledger.epoch == FIRST


def test_after_a_power_cut_the_mark_may_be_behind_the_ledger(node):
    with node.open() as ledger:
        spend(ledger, "a")
        behind = (node.home / "ledger.db.mark").read_bytes()
        spend(ledger, "b")
    (node.home / "ledger.db.mark").write_bytes(behind)
    with node.open() as ledger:
        assert (ledger.epoch, ledger.totals().entries) == (FIRST, 4)
    # And torn in its moving half, it still says what it said at opening.
    (node.home / "ledger.db.mark").write_bytes(behind[:4096] + b'{"epoch": "1')
    with node.open() as ledger:
        assert ledger.epoch == FIRST


def test_a_copied_home_goes_on_in_a_new_epoch_and_says_so(node, tmp_path):
    with node.open() as ledger:
        spend(ledger, "a", "b")
        put(ledger, intent("open", hold=500))
    last = LedgerReader(node.path)
    end = last.read(4, 10)[-1]
    last.close()
    shutil.copytree(node.home, tmp_path / "copy")

    copy = node.at(tmp_path / "copy")
    with copy.open() as ledger:
        assert ledger.epoch == SECOND
        (first,) = ledger.read(0, 10)
        assert chain.fact_of(first) == EpochOpened(
            previous_epoch=FIRST,
            previous_seq=5,
            previous_hash=end.hash.hex(),
            reason="the ledger was copied here, or moved to another disk",
        )
        # What was spent today still counts, and so does what was held.
        assert used(ledger) == 60 + 60 + 500
        assert "copied here" in copy.words("epoch")
    assert [path.name for path in archived_ledgers(copy.home)] == [f"ledger-{FIRST}.db"]

    with copy.open() as ledger:  # And it stays so, until the billing server knows.
        assert (ledger.epoch, used(ledger)) == (SECOND, 620)
        assert "copied here" in copy.words("epoch")
        ledger.confirm(Receipt(epoch=SECOND, acked_seq=1, head_hash=first.hash.hex()))
    with copy.open():
        assert copy.words("epoch") is None
    with node.open() as ledger:  # The one that was copied knows nothing of it.
        assert ledger.epoch == FIRST


def test_a_ledger_copied_without_its_mark_is_noticed(node, tmp_path):
    with node.open() as ledger:
        spend(ledger, "a")
    other = node.at(tmp_path / "other")
    shutil.copy(node.path, other.path)
    with other.open() as ledger:
        assert (ledger.epoch, ledger.totals().entries) == (SECOND, 1)
    assert "without its mark" in other.words("epoch")


def test_an_older_file_put_back_in_place_is_noticed(node):
    with node.open() as ledger:
        spend(ledger, "a")
    old = node.path.read_bytes()
    with node.open() as ledger:
        spend(ledger, "b", "c")
    node.path.write_bytes(old)  # In place: the same inode, as `cp` over a file leaves it.
    with node.open() as ledger:
        assert ledger.epoch == SECOND
        fact = chain.fact_of(ledger.read(0, 1)[0])
        assert (fact.previous_epoch, fact.previous_seq) == (FIRST, 2)
        assert fact.reason.endswith("it ends at entry 2 and 6 were on record")
        # What the lost entries spent is not known here, but what is here still counts.
        assert used(ledger) == 60


def test_another_history_of_the_same_length_put_back_is_noticed(node, tmp_path):
    with node.open() as ledger:
        spend(ledger, "a")
    twin = tmp_path / "twin"
    shutil.copytree(node.home, twin)
    with node.open() as ledger:
        spend(ledger, "mine")
    other = node.at(twin)
    with other.open(identify=None) as ledger:  # Written where nobody looks.
        spend(ledger, "theirs")
    node.path.write_bytes(other.path.read_bytes())
    with node.open() as ledger:
        assert ledger.epoch == SECOND
        assert "its entry 4 is not the one on record" in node.words("epoch")


def test_a_copy_that_somebody_reads_is_not_put_away_under_their_eyes(node, tmp_path, monkeypatch):
    monkeypatch.setattr("qcnode.books.keeper._MOVE_TIMEOUT_S", 0)
    with node.open() as ledger:
        spend(ledger, "a")
    shutil.copytree(node.home, tmp_path / "copy")
    copy = node.at(tmp_path / "copy")
    reader = LedgerReader(copy.path)
    with pytest.raises(LedgerUnavailableError, match="another process reads it"), copy.open():
        pass
    assert len(reader.read(0, 9)) == 2
    reader.close()
    with copy.open() as ledger:
        assert ledger.epoch == SECOND


def test_a_fork_is_refused_also_where_the_mark_cannot_be_made(node, monkeypatch):
    def refuse(*_args) -> None:
        raise OSError(28, "No space left on device")

    with node.open() as ledger:
        spend(ledger, "a")
        monkeypatch.setattr(MarkFile, "write", refuse)
        with pytest.raises(LedgerCorruptError, match="restored from a backup"):
            ledger.confirm(Receipt(epoch=FIRST, acked_seq=9, head_hash="ab" * 32))
        assert isinstance(ledger.submit(intent("b")).exception(10), LedgerUnavailableError)


def test_a_head_that_a_lying_disk_gave_back_empty_is_named(node):
    with node.open() as ledger:
        spend(ledger, "a1")
    with closing(sqlite3.connect(node.path, isolation_level=None)) as db:
        # What the table forbids is written by taking the word out of the table first.
        db.execute("PRAGMA writable_schema = ON")
        db.execute(
            "UPDATE sqlite_schema SET sql = replace(sql, ' NOT NULL', '') WHERE name = 'head'"
        )
    with closing(sqlite3.connect(node.path, isolation_level=None)) as db:
        db.execute("UPDATE head SET seq = NULL, hash = NULL")

    with pytest.raises(LedgerCorruptError, match="lost where it ends"), node.open():
        pass


def test_a_ledger_that_was_removed_is_missed(node):
    with node.open() as ledger:
        spend(ledger, "a")
        end = ledger.read(1, 1)[0]
    node.path.unlink()
    with node.open() as ledger:
        fact = chain.fact_of(ledger.read(0, 1)[0])
    assert (fact.previous_epoch, fact.previous_seq) == (FIRST, 2)
    assert fact.previous_hash == end.hash.hex()
    assert "is gone" in node.words("epoch")


def test_a_receipt_from_beyond_a_restored_disk_begins_a_new_epoch_at_the_next_start(node):
    with node.open() as ledger:
        spend(ledger, "a")
        put(ledger, intent("sent"))
        with pytest.raises(LedgerCorruptError, match="restored from a backup or cloned"):
            ledger.confirm(Receipt(epoch=FIRST, acked_seq=9, head_hash="ab" * 32))
        # Nothing new is spent in an epoch that is somebody else's as well...
        with pytest.raises(LedgerUnavailableError, match="goes on in a new epoch"):
            ledger.submit(intent("next")).result(10)
        # ... and what was sent is still put on record.
        put(ledger, settled("sent", 70))
        assert "restored from a backup" in node.words("epoch")
    with node.open() as ledger:
        assert ledger.epoch == SECOND
        assert used(ledger) == 60 + 70
        assert chain.fact_of(ledger.read(0, 1)[0]).previous_seq == 4


def test_a_fork_that_the_outbox_was_told_of_counts_the_same(node):
    with node.open() as ledger:
        spend(ledger, "a")
        ledger.forked("the billing server has other entries: fork at 2")
        with pytest.raises(LedgerUnavailableError, match="fork at 2: restart"):
            ledger.submit(intent("next")).result(10)
    with node.open() as ledger:
        assert ledger.epoch == SECOND
        put(ledger, intent("next"))


def test_a_receipt_of_another_epoch_forks_nothing(node):
    with node.open() as ledger:
        spend(ledger, "a")
        with pytest.raises(LedgerCorruptError, match="receipt is for epoch"):
            ledger.confirm(Receipt(epoch=SECOND, acked_seq=9, head_hash="ab" * 32))
        spend(ledger, "b")
    with node.open() as ledger:
        assert ledger.epoch == FIRST


def test_a_ledger_with_a_bad_chain_is_not_gone_on_from(node, tmp_path):
    with node.open() as ledger:
        spend(ledger, "a", "b")
    shutil.copytree(node.home, tmp_path / "copy")
    copy = node.at(tmp_path / "copy")
    db = sqlite3.connect(copy.path)
    db.executescript("DROP TRIGGER entry_not_changed; UPDATE entry SET at_us = 1 WHERE seq = 2")
    db.close()
    with pytest.raises(LedgerCorruptError, match="entry 2"), copy.open():
        pass
    assert archived_ledgers(copy.home) == []


FORKS = """
import json, os, sqlite3, sys
import alembic.operations, alembic.runtime.migration, alembic.script  # Once for all of them.
from pathlib import Path
from tests.node.homes import Node, SECOND
base, homes, how = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
left = 0

def spend_a_step(*_):
    global left
    left -= 1
    if left < 0:
        os._exit(9)

def watch_files(event, args):
    if event in {"os.rename", "open", "sqlite3.connect", "os.remove"} and str(base) in str(args):
        spend_a_step()

class Watched(sqlite3.Connection):
    def __init__(self, *args, **how):
        super().__init__(*args, **how)
        self.set_trace_callback(spend_a_step)

def run(home, steps):
    global left
    node = Node(home, signs=how == "files")
    next(node.epochs)
    connect, left = sqlite3.connect, steps
    if how == "files":
        sys.addaudithook(watch_files)
    else:
        sqlite3.connect = lambda *args, **how: connect(*args, **{**how, "factory": Watched})
    with node.open():
        os._exit(0)

ended = []
for steps in range(homes):
    child = os.fork()
    if child == 0:
        try:
            run(base / str(steps), steps)
        finally:
            os._exit(1)
    ended.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
print(json.dumps(ended))
"""


def kill_at_each_step(base: Path, home: Path, repository, *, homes: int, how: str) -> list[int]:
    """Open copies of a home, each killed one step later; return how each ended."""
    for steps in range(homes):
        shutil.copytree(home, base / str(steps))
    child = subprocess.run(
        [sys.executable, "-c", FORKS, str(base), str(homes), how],
        cwd=repository,
        timeout=300,
        check=False,
        capture_output=True,
        text=True,
    )
    assert child.returncode == 0, child.stderr
    return json.loads(child.stdout.splitlines()[-1])


def test_a_kill_at_any_step_of_beginning_a_new_epoch_loses_nothing(node, tmp_path, repository):
    with node.open() as ledger:
        spend(ledger, "a", "b")
    base = tmp_path / "copies"
    ended = kill_at_each_step(base, node.home, repository, homes=24, how="files")
    steps = ended.index(0)
    assert ended == [9] * steps + [0] * (24 - steps)
    assert steps >= 8
    for number in range(steps + 1):
        copy = node.at(base / str(number))
        copy.epochs = iter((SECOND, THIRD))
        with copy.open() as ledger:
            fact = chain.fact_of(ledger.read(0, 1)[0])
            assert (fact.previous_epoch, fact.previous_seq) == (FIRST, 4)
            assert "copied here" in fact.reason
            assert used(ledger) == 120
        assert [path.name for path in archived_ledgers(copy.home)] == [f"ledger-{FIRST}.db"]


FILE = FileId(inode=7, generation=70)
MARKED = Mark(epoch=FIRST, file=FILE, seq=5, hash=b"h" * 32)


def found(**what) -> Found:
    same = {
        "epoch": FIRST,
        "file": FILE,
        "seq": 5,
        "hash_at_mark": b"h" * 32,
        "opened_from": None,
    }
    return Found(**{**same, **what})


@pytest.mark.parametrize(
    "what",
    [
        {},
        {"seq": 9},  # It went on after the mark was last seen on disk.
        {"file": FileId(inode=7, generation=None)},  # A kernel that does not tell.
        {"file": FileId(inode=None, generation=None)},  # A file system that makes numbers up.
        # Killed between beginning a new epoch and marking it.
        {"epoch": SECOND, "opened_from": FIRST, "seq": 1, "hash_at_mark": None},
    ],
)
def test_what_is_no_other_file_raises_no_alarm(what):
    assert judge(MARKED, found(**what)) is None


@pytest.mark.parametrize(
    ("mark", "what", "words"),
    [
        (None, {}, "without its mark"),
        (MARKED, {"file": FileId(inode=8, generation=70)}, "copied here"),
        (MARKED, {"file": FileId(inode=7, generation=71)}, "copied here"),
        (MARKED, {"seq": 4, "hash_at_mark": None}, "it ends at entry 4 and 5 were on record"),
        (MARKED, {"hash_at_mark": b"x" * 32}, "entry 5 is not the one on record"),
        (MARKED, {"epoch": SECOND}, f"in place of epoch {FIRST}"),
        (MARKED, {"epoch": SECOND, "opened_from": FIRST}, f"in place of epoch {FIRST}"),
        (replace(MARKED, reason="restored"), {}, "restored"),
    ],
)
def test_what_is_another_file_is_named(mark, what, words):
    assert words in judge(mark, found(**what))


def test_a_mark_survives_being_written_and_moved(tmp_path):
    file = MarkFile(tmp_path / "mark")
    assert file.read() is None
    file.write(MARKED)
    assert file.read() == MARKED
    file.move(FIRST, 9, b"i" * 32)
    assert file.read() == Mark(epoch=FIRST, file=FILE, seq=9, hash=b"i" * 32)
    file.move(SECOND, 12, b"i" * 32)  # Of another ledger: it says nothing of this one.
    assert file.read() == MARKED
    file.close()
    (tmp_path / "mark").write_bytes(b"\xff\x00 nonsense")
    assert file.read() is None


# -- ledgers put away --------------------------------------------------------------------


@pytest.fixture
def copied(node, tmp_path) -> Node:
    """A copied home, with three entries that the billing server has confirmed and two not."""
    with node.open() as ledger:
        spend(ledger, "a", "b")
        put(ledger, intent("open"))
        third = ledger.read(2, 1)[0]
        ledger.confirm(Receipt(epoch=FIRST, acked_seq=3, head_hash=third.hash.hex()))
    shutil.copytree(node.home, tmp_path / "copy")
    copy = node.at(tmp_path / "copy")
    with copy.open():
        pass
    return copy


def archive_of(node: Node) -> ArchivedLedger:
    (path,) = archived_ledgers(node.home)
    return ArchivedLedger(path, now_us=node.clock, key=node.key)


def test_what_the_server_has_not_confirmed_of_an_archived_ledger_is_still_there_to_send(copied):
    archive = archive_of(copied)
    assert (archive.epoch, archive.totals().entries, archive.receipt_seq()) == (FIRST, 5, 3)
    unsent = archive.read(archive.receipt_seq(), 100)
    assert [entry.seq for entry in unsent] == [4, 5]
    note = archive.checkpoint_note(5, unsent[-1].hash)
    assert copied.key.public.check(note).origin == f"qcnode/acme/n1/{FIRST}"
    archive.confirm(Receipt(epoch=FIRST, acked_seq=5, head_hash=unsent[-1].hash.hex()))
    archive.add_listener(lambda: None)()
    archive.close()
    again = archive_of(copied)
    assert again.receipt_seq() == 5
    again.close()
    again.close()


def test_a_server_that_has_more_than_an_older_file_confirms_all_of_it(copied):
    archive = archive_of(copied)
    archive.confirm(Receipt(epoch=FIRST, acked_seq=12, head_hash="ab" * 32))
    assert archive.receipt_seq() == 5
    archive.close()


def test_a_fork_of_an_archived_ledger_confirms_nothing(copied):
    archive = archive_of(copied)
    for receipt in (
        Receipt(epoch=FIRST, acked_seq=12, head_hash="ab" * 32, problem="fork at 4"),
        Receipt(epoch=FIRST, acked_seq=4, head_hash="ab" * 32),
        Receipt(epoch=SECOND, acked_seq=1, head_hash="ab" * 32),
    ):
        with pytest.raises(LedgerCorruptError):
            archive.confirm(receipt)
    assert archive.receipt_seq() == 3
    archive.close()


def test_two_copies_of_one_epoch_count_once_in_a_budget(copied):
    # The same older ledger restored twice is put away twice.
    shutil.copy(copied.home / f"ledger-{FIRST}.db", copied.home / f"ledger-{FIRST}.2.db")
    (copied.home / "ledger.db.mark").unlink()
    with copied.open() as ledger:
        assert used(ledger) == 60 + 60 + 100


def test_a_backup_laid_down_in_the_home_is_no_archived_ledger(node):
    with node.open() as ledger:
        spend(ledger, "a")
    shutil.copy(node.path, node.home / "ledger-monday.db")
    (node.home / "ledger-notes.db").write_text("")
    assert archived_ledgers(node.home) == []
    with node.open() as ledger:
        assert used(ledger) == 60


def test_an_archived_ledger_needs_no_walk_at_each_start(copied):
    db = sqlite3.connect(copied.home / f"ledger-{FIRST}.db")
    db.executescript("DROP TRIGGER entry_not_changed; UPDATE entry SET at_us = 1 WHERE seq = 2")
    db.close()
    with copied.open() as ledger:  # Its snapshot is taken on trust ...
        assert used(ledger) == 220
    unsigned = copied.at(copied.home)
    unsigned.key = None
    with pytest.raises(LedgerCorruptError, match="entry 2"), unsigned.open():
        pass  # ... and only on that.


# -- earlier versions --------------------------------------------------------------------

V1_SCHEMA = Path(__file__).parent / "ledger_v1.sql"
USAGE_V1 = {
    "input_tokens": 12,
    "output_tokens": 3,
    "cache_read_tokens": 2,
    "image_tokens": 0,
    "reasoning_tokens": 1,
}


def v1_facts():
    for number in range(4):
        attempt = f"{number:032x}"
        hold = {"currency": "CNY", "pico": 9_000, "rows": ["r1"]}
        yield (
            "intent",
            attempt,
            {
                "attempt": {
                    "id": attempt,
                    "escalation_id": f"{number + 100:032x}",
                    "number": 1,
                    "provider": "scripted",
                    "model": "vlm-1",
                },
                "worst": USAGE_V1,
                "hold": hold,
                "request_sha256": "0" * 64,
                "request_bytes": 100,
                "image_sha256": None,
            },
        )
        if number == 1:
            yield (
                "not_billed",
                attempt,
                {
                    "attempt_id": attempt,
                    "reason": "HTTP 429",
                    "http_status": 429,
                },
            )
        elif number == 2:
            yield (
                "indeterminate",
                attempt,
                {
                    "attempt_id": attempt,
                    "reason": "reset",
                    "hold": hold,
                },
            )
        else:
            yield (
                "settled",
                attempt,
                {
                    "attempt_id": attempt,
                    "usage": USAGE_V1,
                    "cost": {"currency": "CNY", "pico": 4_000, "rows": ["r1"]},
                    "rated_at_us": 1_795_000_000_000_000,
                    "raw_usage": '{"prompt_tokens": 12, "grüße": "检测"}',
                    "response_id": None,
                    "model_served": "vlm-1",
                    "http_status": 200,
                    "duration_ms": 20,
                },
            )


def make_v1(path: Path) -> None:
    """Write a ledger as the first version did, by hand."""
    db = sqlite3.connect(path, isolation_level=None)
    db.execute("PRAGMA journal_mode = WAL")
    db.executescript(
        "BEGIN; PRAGMA application_id = 1902341169; PRAGMA user_version = 1;"
        + V1_SCHEMA.read_text(encoding="utf-8")
    )
    db.execute("INSERT INTO ledger (id, epoch, created_us) VALUES (1, ?, 5)", (FIRST,))
    previous = chain.genesis(FIRST)
    for seq, (kind, attempt, fact) in enumerate(v1_facts(), start=1):
        body = json.dumps(
            {"at_us": seq, "fact": fact, "kind": kind, "v": 1},
            sort_keys=True,
            separators=(",", ":"),
            ensure_ascii=False,
        ).encode()
        digest = chain.entry_hash(seq, body, previous)
        db.execute(
            "INSERT INTO entry VALUES (?, ?, ?, ?, ?, ?, ?)",
            (seq, kind, attempt, seq, body, previous, digest),
        )
        previous = digest
    db.execute("INSERT INTO head VALUES (1, ?, ?)", (seq, previous))
    db.execute("INSERT INTO cursor VALUES ('billing', 0, ?)", (chain.genesis(FIRST),))
    db.execute("COMMIT")
    db.close()


def rows_of(path: Path) -> list:
    db = sqlite3.connect(path)
    rows = db.execute("SELECT seq, kind, at_us, body, prev_hash, hash FROM entry").fetchall()
    db.close()
    return rows


def schema_of(path: Path) -> list:
    db = sqlite3.connect(path)
    rows = db.execute("SELECT type, name, tbl_name, sql FROM sqlite_schema").fetchall()
    version = db.execute("PRAGMA user_version").fetchone()
    db.close()

    def plain(sql: str | None) -> str:
        return " ".join((sql or "").replace("(", " ( ").replace(")", " ) ").split())

    return [version, *sorted((*row[:3], plain(row[3])) for row in rows)]


def test_a_ledger_of_version_1_is_migrated_and_not_a_byte_of_its_entries_changes(node):
    make_v1(node.path)
    before = rows_of(node.path)
    with node.open() as ledger:
        totals = ledger.totals()
        assert (ledger.epoch, totals.entries, ledger.verify()) == (FIRST, 8, 8)
        assert (totals.settled, totals.not_billed, totals.indeterminate) == (2, 1, 1)
        assert (totals.cost_pico, totals.held_pico) == ({"CNY": 8_000}, {"CNY": 9_000})
        assert (totals.usage.cache_read, totals.usage.reasoning) == (4, 2)
        assert isinstance(chain.fact_of(ledger.read(0, 1)[0]), Intent)
    assert rows_of(node.path) == before
    assert node.words("epoch") is None  # It could have no mark.
    with node.open() as ledger:
        assert ledger.epoch == FIRST
        put(ledger, intent("next"))
    assert rows_of(node.path)[:8] == before


def test_a_migrated_ledger_has_the_schema_of_a_new_one(node, tmp_path):
    make_v1(node.path)
    with node.open():
        pass
    new = node.at(tmp_path / "new")
    with new.open():
        pass
    assert schema_of(node.path) == schema_of(new.path)


def test_reading_a_ledger_of_version_1_leaves_it_as_it_is(node):
    make_v1(node.path)
    before = node.path.read_bytes()
    reader = LedgerReader(node.path)
    assert reader.verify().entries == 8
    assert len(reader.read(0, 100)) == 8
    assert reader.facts_about(f"{1:032x}")[1].reason == "HTTP 429"
    reader.close()
    assert node.path.read_bytes() == before


def test_a_migration_killed_anywhere_leaves_a_whole_ledger(node, tmp_path, repository):
    make_v1(node.path)
    entries, old = rows_of(node.path), schema_of(node.path)
    base = tmp_path / "copies"
    ended = kill_at_each_step(base, node.home, repository, homes=18, how="statements")
    assert ended == [9] * 18
    seen = []
    for number in range(18):
        path = base / str(number) / "ledger.db"
        assert rows_of(path) == entries
        seen.append(schema_of(path))
        with node.at(path.parent).open() as ledger:
            assert (ledger.epoch, ledger.verify()) == (FIRST, 8)
    new = schema_of(path)
    migrated = seen.index(new)
    assert seen == [old] * migrated + [new] * (18 - migrated)
    assert 8 < migrated < 18  # It was killed in the middle of it, again and again.


def test_a_ledger_of_a_newer_version_is_left_alone(node):
    with node.open():
        pass
    db = sqlite3.connect(node.path)
    db.execute("PRAGMA user_version = 99")
    db.close()
    before = node.path.read_bytes()
    with pytest.raises(LedgerUnavailableError, match="install the newer one"), node.open():
        pass
    assert node.path.read_bytes() == before


# -- what nobody here would write --------------------------------------------------------


def write_anyway(node: Node, *facts) -> None:
    """Put facts on record with sound hashes, whatever they say."""
    reader = LedgerReader(node.path)
    entry = reader.read(0, 1_000)[-1]
    reader.close()
    with closing(sqlite3.connect(node.path)) as db:
        db.execute("DROP INDEX entry_step")
        for fact in facts:
            entry = chain.make_entry(
                fact, epoch=FIRST, seq=entry.seq + 1, at_us=1, prev_hash=entry.hash
            )
            put_entries(db, [(entry, subject_of(fact))])
        db.commit()


@pytest.mark.parametrize(
    ("facts", "says"),
    [
        ([intent("a")], "entry 3: attempt a has its intent on record already"),
        ([intent("b"), settled("b"), intent("c"), intent("b")], "entry 6: attempt b"),
        ([settled("a")], "entry 3: attempt a is not open"),
        ([settled("never")], "entry 3: attempt never is not open"),
        ([intent("b"), intent("b")], "entry 4: attempt b has its intent on record already"),
    ],
)
def test_steps_that_cannot_be_are_found_however_well_they_are_hashed(node, facts, says):
    with node.open() as ledger:
        spend(ledger, "a")
    write_anyway(node, *facts)
    reader = LedgerReader(node.path)
    with pytest.raises(LedgerCorruptError, match=says):
        reader.verify()
    reader.close()
    with pytest.raises(LedgerCorruptError, match=says), node.open():
        pass


def test_an_outcome_about_an_escalation_called_like_an_attempt_begins_nothing(node):
    told = Outcome(
        escalation_id="b",
        centre=CostCentre(),
        ruled="GOOD",
        truth="GOOD",
        node_alone="DIVERT",
        source="rework",
    )
    with node.open() as ledger:
        spend(ledger, "a")
        put(ledger, told)
        spend(ledger, "b")
        assert ledger.verify() == 5
    write_anyway(node, intent("a"))
    reader = LedgerReader(node.path)
    with pytest.raises(LedgerCorruptError, match="entry 6: attempt a"):
        reader.verify()
    reader.close()
