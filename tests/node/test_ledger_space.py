"""Disks that are full or fail: what was sent is still recorded, and nothing new is spent."""

from __future__ import annotations

import asyncio
import os
import subprocess
from typing import TYPE_CHECKING

import pytest

from qcnode.books.ballast import BALLAST_BYTES, Ballast
from qcnode.books.ledger_file import LedgerReader
from qcnode.errors import LedgerUnavailableError
from qcnode.money import Receipt
from tests.node.homes import FIRST, Node, spend
from tests.node.test_ledger import indeterminate, intent, not_billed, put, settled
from tests.sim.disk import FULL, IOERR_FSYNC, OK, Disk

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SMALL = 64 * 1024


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """Mount a disk of a few MiB, which is what a full one is tried on."""
    point = tmp_path / "disk"
    point.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=12m", "none", str(point)],
        check=False,
        capture_output=True,
        text=True,
    )
    if mounted.returncode:
        pytest.skip(f"no right to mount a small disk here: {mounted.stderr.strip()}")
    yield point
    subprocess.run(["umount", "--lazy", str(point)], check=True)


def fill(point: Path) -> Path:
    """Take all the room there is."""
    filler = point / "filler"
    with filler.open("ab", buffering=0) as file:
        for size in (1 << 20, 1 << 12, 1):
            while True:
                try:
                    file.write(b"\0" * size)
                except OSError:
                    break
    return filler


def test_on_a_full_disk_what_was_sent_is_recorded_and_nothing_new_is_spent(small_disk):
    node = Node(small_disk / "home", ballast_bytes=BALLAST_BYTES)
    node.budgets = ()
    with node.open() as ledger:
        sent = [f"sent-{number}" for number in range(40)]
        for attempt in sent:
            put(ledger, intent(attempt))
        filler = fill(small_disk)
        # The log reuses the room it has, so it takes a while until the disk is asked.
        refused = []
        for number in range(6_000):
            try:
                ledger.submit(intent(f"more-{number}")).result(10)
                sent.append(f"more-{number}")
            except LedgerUnavailableError as error:
                refused.append(str(error))
                break
        assert refused
        assert "only what was sent is still recorded; free space" in refused[0]
        assert node.words("space") is not None

        # Every outcome of what was sent still goes on record, whatever it is.
        for number, attempt in enumerate(sent):
            put(ledger, (settled, not_billed, indeterminate)[number % 3](attempt))
        ledger.confirm(receipt_for_first(ledger))
        with pytest.raises(LedgerUnavailableError, match="free space"):
            ledger.submit(intent("next")).result(10)
        totals = ledger.totals()
        assert (totals.open, totals.attempts) == (0, len(sent))
        assert ledger.verify() == totals.entries == 2 * len(sent)

        filler.unlink()
        put(ledger, intent("next"), settled("next"))
        assert node.words("space") is None
    assert (node.home / "ledger.db.ballast").stat().st_size == BALLAST_BYTES


def receipt_for_first(ledger) -> Receipt:
    return Receipt(epoch=FIRST, acked_seq=1, head_hash=ledger.read(0, 1)[0].hash.hex())


def test_a_node_that_starts_on_a_full_disk_closes_what_was_open_and_spends_nothing(small_disk):
    node = Node(small_disk / "home", ballast_bytes=BALLAST_BYTES)
    killed = Node(small_disk / "home", ballast_bytes=BALLAST_BYTES)
    with killed.open() as ledger:
        put(ledger, intent("open"))
        for name in ("ledger.db", "ledger.db-wal"):  # As a kill would leave it.
            (small_disk / name).write_bytes((killed.home / name).read_bytes())
    for name in ("ledger.db", "ledger.db-wal"):
        (killed.home / name).write_bytes((small_disk / name).read_bytes())
        (small_disk / name).unlink()
    fill(small_disk)
    next(node.epochs)
    with node.open() as ledger:
        assert ledger.totals().indeterminate == 1
        ends = [ledger.submit(intent(f"more-{number}")).exception(10) for number in range(3)]
        assert all("free space" in str(end) for end in ends)


def test_without_room_for_the_ballast_nothing_is_spent(small_disk):
    node = Node(small_disk / "home", ballast_bytes=BALLAST_BYTES)
    filler = small_disk / "filler"
    filler.write_bytes(b"\0" * (9 << 20))
    with node.open() as ledger:
        assert "disk is full" in node.words("space")
        with pytest.raises(LedgerUnavailableError, match="free space"):
            ledger.submit(intent("a")).result(10)
        filler.unlink()
        spend(ledger, "a")


def test_a_ballast_is_real_room_and_comes_and_goes(tmp_path):
    ballast = Ballast(tmp_path / "ballast", size=SMALL)
    assert not ballast.held()
    assert not ballast.release()
    assert ballast.hold()
    assert ballast.hold()
    there = (tmp_path / "ballast").stat()
    assert (there.st_size, there.st_blocks * 512 >= SMALL) == (SMALL, True)
    assert ballast.release()
    assert not ballast.held()
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_cannot_set_room_aside_is_written_full(tmp_path, monkeypatch):
    def refuse(*_args) -> None:
        raise OSError(95, "not supported")

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    assert Ballast(tmp_path / "ballast", size=SMALL).hold()
    content = (tmp_path / "ballast").read_bytes()
    assert len(set(content)) == 256  # Not a byte of it can be left out.


def test_a_disk_that_does_not_give_the_room_is_told_of_and_left_clean(tmp_path):
    assert not Ballast(tmp_path / "none" / "ballast", size=SMALL).hold()
    assert not Ballast(tmp_path / "ballast", size=1 << 60).hold()
    assert list(tmp_path.iterdir()) == []


# -- disks that fail ---------------------------------------------------------------------


class Faults:
    """Fails the given operations of SQLite on the ledger's log, counted from when armed."""

    def __init__(self) -> None:
        self.what, self.when, self.code, self.count = "", frozenset(), OK, 0

    def arm(self, what: str, *when: int, code: int) -> None:
        self.what, self.when, self.code, self.count = what, frozenset(when), code, 0

    def __call__(self, what: str, name: str) -> int:
        if what != self.what or name != "ledger.db-wal":
            return OK
        self.count += 1
        return self.code if self.count in self.when else OK


@pytest.fixture
def faults() -> Faults:
    return Faults()


@pytest.fixture
def failing(tmp_path, faults) -> Iterator[Node]:
    """A node on a disk that fails as `faults` says, under SQLite's own code."""
    node = Node(tmp_path / "home", ballast_bytes=SMALL)
    disk = Disk(node.home, before=faults)
    yield node
    disk.close()


def test_after_a_failed_sync_the_same_id_is_retried_and_is_on_record_once(failing, faults):
    with failing.open() as ledger:
        put(ledger, intent("a"), intent("b"))
        faults.arm("sync", 1, code=IOERR_FSYNC)
        with pytest.raises(LedgerUnavailableError, match="disk I/O error"):
            ledger.submit(settled("a")).result(10)
        # The next commit succeeds: whoever only logged the failure has lost an outcome.
        put(ledger, settled("b"))
        put(ledger, settled("a"))
        with pytest.raises(ValueError, match="outcome is on record already"):
            ledger.submit(settled("a")).result(10)
        assert ledger.totals().settled == 2
        assert ledger.verify() == 4
    reader = LedgerReader(failing.path)
    assert [entry.kind for entry in reader.read(0, 9)] == ["intent"] * 2 + ["settled"] * 2
    reader.close()


def test_an_intent_whose_sync_failed_can_be_announced_again(failing, faults):
    with failing.open() as ledger:
        faults.arm("sync", 1, code=IOERR_FSYNC)
        with pytest.raises(LedgerUnavailableError, match="disk I/O error"):
            ledger.submit(intent("a")).result(10)
        put(ledger, intent("a"), settled("a"))
        assert ledger.totals().attempts == 1


def test_every_sync_failing_refuses_everything_and_halves_nothing(failing, faults):
    with failing.open() as ledger:
        put(ledger, intent("a"))
        faults.arm("sync", *range(1, 100), code=IOERR_FSYNC)
        for _ in range(5):
            with pytest.raises(LedgerUnavailableError):
                ledger.submit(settled("a")).result(10)
        faults.arm("", code=OK)
        put(ledger, settled("a"))
        assert ledger.verify() == 2
    with failing.open() as ledger:
        assert ledger.totals().settled == 1


@pytest.mark.parametrize("again", [False, True])
def test_a_disk_that_says_full_once_gets_the_ballast(failing, faults, again):
    with failing.open() as ledger:
        put(ledger, intent("a"), intent("b"))
        faults.arm("write", *((1, 2) if again else (1,)), code=FULL)
        if again:  # The room was not enough, or not the reason.
            with pytest.raises(LedgerUnavailableError, match="full"):
                ledger.submit(settled("a")).result(10)
        put(ledger, settled("a") if again else settled("b"))
        assert ledger.verify() == 3
        assert not (failing.home / "ledger.db.ballast").exists()
        put(ledger, intent("c"))  # There is room: it is held again before anything is spent.
        assert (failing.home / "ledger.db.ballast").exists()


def test_facts_that_come_together_are_refused_together_on_a_full_disk(tmp_path):
    # More than any disk has, so it is never held.
    node = Node(tmp_path / "home")
    with node.open() as ledger:
        put(ledger, intent("a"))
    with node.open(ballast_bytes=1 << 60) as ledger:
        with pytest.raises(LedgerUnavailableError, match="free space"):
            ledger.submit_all([intent("b"), not_billed("b")]).result(10)
        assert ledger.totals().attempts == 1


async def test_a_checkpoint_that_fails_is_made_up_for(failing, faults):
    with failing.open() as ledger:
        spend(ledger, "a")
        faults.arm("sync", 1, code=IOERR_FSYNC)
        await asyncio.to_thread(ledger._vouch)
        spend(ledger, "b")
    with failing.open() as ledger:
        assert ledger.verify() == 4
        assert ledger.taken_on_trust == 4
