"""Backups: taken while a node writes, proven before they count, restored as a new epoch."""

from __future__ import annotations

import sqlite3
import threading
from contextlib import closing

import pytest

from qcnode.books import chain
from qcnode.books.backup import back_up, restore
from qcnode.books.ledger_file import LedgerReader
from qcnode.books.mark import FileId
from qcnode.errors import LedgerCorruptError, LedgerUnavailableError
from tests.node.homes import FIRST, SECOND, Node, spend, used
from tests.node.test_ledger import intent, put
from tests.node.test_ledger_file import make_v1


@pytest.fixture
def node(tmp_path) -> Node:
    node = Node(tmp_path / "home")
    with node.open() as ledger:
        spend(ledger, "a", "b")
    return node


def entries_of(path) -> list:
    reader = LedgerReader(path)
    entries = reader.read(0, 10_000)
    reader.close()
    return entries


def test_a_backup_holds_every_entry_and_is_one_plain_file(node, tmp_path):
    done = back_up(node.path, tmp_path / "backup.db")
    assert (done.epoch, done.tally.seq) == (FIRST, 4)
    assert entries_of(tmp_path / "backup.db") == entries_of(node.path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["backup.db", "home"]


def test_a_backup_under_writes_is_one_moment_and_holds_nobody_up(node, tmp_path):
    copying, written = threading.Event(), []

    def progress(left: int, _pages: int) -> None:
        copying.set()
        if left and len(written) < 50:  # Between two pieces of the copy, a node goes on.
            spend(ledger, f"during-{len(written)}")
            written.append(left)

    node.budgets = ()
    with node.open() as ledger:
        for number in range(0, 3_000, 100):
            ledger.submit_all([intent(f"before-{number + one}") for one in range(100)]).result(10)
        before = ledger.totals().entries
        done = back_up(node.path, tmp_path / "backup.db", copied=progress)
        assert written
        assert done.tally.seq == before
        assert ledger.verify() == before + 2 * len(written)
    assert entries_of(tmp_path / "backup.db") == entries_of(node.path)[:before]


def test_a_backup_of_a_bad_ledger_is_refused_and_leaves_nothing(node, tmp_path):
    with closing(sqlite3.connect(node.path)) as db:
        db.executescript("DROP TRIGGER entry_not_changed; UPDATE entry SET at_us = 1 WHERE seq = 3")
    with pytest.raises(LedgerCorruptError, match="entry 3"):
        back_up(node.path, tmp_path / "backup.db")
    assert [path.name for path in tmp_path.iterdir()] == ["home"]


def test_a_backup_writes_over_nothing(node, tmp_path):
    (tmp_path / "backup.db").write_text("precious")
    with pytest.raises(LedgerUnavailableError, match="exists already"):
        back_up(node.path, tmp_path / "backup.db")
    assert (tmp_path / "backup.db").read_text() == "precious"
    with pytest.raises(LedgerUnavailableError, match="cannot be written"):
        back_up(node.path, tmp_path / "nowhere" / "backup.db")


def test_a_backup_of_version_1_is_one_of_this_version(tmp_path):
    node = Node(tmp_path / "home")
    make_v1(node.path)
    assert back_up(node.path, tmp_path / "backup.db").tally.seq == 8
    restore(tmp_path / "backup.db", tmp_path / "new", identify=FileId.of)
    with node.at(tmp_path / "new").open() as ledger:
        assert chain.fact_of(ledger.read(0, 1)[0]).previous_seq == 8


def test_what_is_restored_goes_on_in_a_new_epoch_and_says_from_where(node, tmp_path):
    back_up(node.path, tmp_path / "backup.db")
    with node.open() as ledger:
        spend(ledger, "lost")
    done = restore(tmp_path / "backup.db", tmp_path / "new", identify=FileId.of)
    assert (done.epoch, done.tally.seq) == (FIRST, 4)
    restored = node.at(tmp_path / "new")
    with restored.open() as ledger:
        fact = chain.fact_of(ledger.read(0, 1)[0])
        assert (ledger.epoch, fact.previous_epoch, fact.previous_seq) == (SECOND, FIRST, 4)
        assert fact.reason == "restored from a backup that ends at entry 4"
        assert used(ledger) == 120
        assert "restored from a backup" in restored.words("epoch")


def test_where_the_lost_ledger_left_its_mark_what_is_missing_is_said(node, tmp_path):
    back_up(node.path, tmp_path / "backup.db")
    with node.open() as ledger:
        spend(ledger, "lost")
    node.path.unlink()
    restore(tmp_path / "backup.db", node.home, identify=FileId.of)
    with node.open() as ledger:
        assert chain.fact_of(ledger.read(0, 1)[0]).reason == (
            "restored from a backup that ends at entry 4; 6 were on record"
        )


def test_nothing_is_restored_over_a_ledger_or_beside_a_node_that_writes(node, tmp_path):
    back_up(node.path, tmp_path / "backup.db")
    before = node.path.read_bytes()
    with pytest.raises(LedgerUnavailableError, match="never written over"):
        restore(tmp_path / "backup.db", node.home, identify=FileId.of)
    assert node.path.read_bytes() == before
    with node.open():
        node.path.rename(tmp_path / "moved.db")
        with pytest.raises(LedgerUnavailableError, match="another process writes"):
            restore(tmp_path / "backup.db", node.home, identify=FileId.of)
        (tmp_path / "moved.db").rename(node.path)


def test_a_backup_that_was_damaged_since_is_not_restored(node, tmp_path):
    back_up(node.path, tmp_path / "backup.db")
    with closing(sqlite3.connect(tmp_path / "backup.db")) as db:
        db.executescript("DROP TRIGGER entry_not_removed; DELETE FROM entry WHERE seq = 2")
    with pytest.raises(LedgerCorruptError, match="entry 2"):
        restore(tmp_path / "backup.db", tmp_path / "new", identify=FileId.of)
    assert not (tmp_path / "new" / "ledger.db").exists()


def test_a_backup_put_back_by_hand_is_noticed_too(node, tmp_path):
    back_up(node.path, tmp_path / "backup.db")
    other = node.at(tmp_path / "new")
    (tmp_path / "backup.db").rename(other.path)
    with other.open() as ledger:
        assert ledger.epoch == SECOND
    assert "without its mark" in other.words("epoch")


def test_what_was_sent_when_the_backup_was_taken_still_counts_after_it_is_restored(node, tmp_path):
    with node.open() as ledger:
        put(ledger, intent("under way", hold=700))
        back_up(node.path, tmp_path / "backup.db")
    restore(tmp_path / "backup.db", tmp_path / "new", identify=FileId.of)
    with node.at(tmp_path / "new").open() as ledger:
        assert used(ledger) == 120 + 700
        assert ledger.totals().entries == 1


def test_progress_is_told_of_pages_and_entries(node, tmp_path):
    pages, entries = [], []
    back_up(
        node.path,
        tmp_path / "backup.db",
        copied=lambda left, of: pages.append((left, of)),
        checked=entries.append,
    )
    assert pages[-1][0] == 0
    assert entries == [4]
