"""Ledgers put away, when power or disk fail while a receipt for them is noted.

Both were found by the simulator: seeds 20 and 355 of `tests.sim`.
"""

import asyncio
import json
import shutil
from random import Random

import pytest

from qcnode.books.archive import ArchivedLedger, archived_ledgers
from qcnode.books.outbox import Outbox
from qcnode.money import Receipt
from tests.node.homes import FIRST, NOW, Node, spend, used
from tests.node.test_ledger import intent, put
from tests.sim.disk import IOERR_WRITE, OK, restore, watched

ARCHIVE = f"ledger-{FIRST}.db"
SPENT = 60 + 60 + 100


@pytest.fixture
def node(tmp_path):
    """A node whose home was copied, so that its first ledger was put away, all unconfirmed."""
    first = Node(tmp_path / "home")
    with first.open() as ledger:
        spend(ledger, "a", "b")
        put(ledger, intent("open"))
    shutil.copytree(first.home, tmp_path / "copy")
    copy = first.at(tmp_path / "copy")
    with copy.open() as ledger:
        assert used(ledger) == SPENT
    return copy


def open_archive(node):
    return ArchivedLedger(node.home / ARCHIVE, now_us=node.clock, key=node.key)


def test_no_power_cut_while_a_receipt_is_noted_hides_what_was_put_away(node, tmp_path):
    left = []

    def before(what, name):
        if name.startswith(ARCHIVE):
            left.extend((what, disk.files.left(Random(1), how)) for how in ("none", "all"))
        return OK

    with watched(node.home, before=before) as disk:
        archive = open_archive(node)
        last = archive.read(0, 100)[-1]
        archive.confirm(Receipt(epoch=FIRST, acked_seq=last.seq, head_hash=last.hash.hex()))
        archive.close()

    assert any(f"{ARCHIVE}-journal" in files for _what, files in left)
    assert {what for what, _files in left} >= {"make", "write", "sync", "delete"}
    for number, (_what, files) in enumerate(left):
        restore(tmp_path / str(number), files)
        again = node.at(tmp_path / str(number))
        again.epochs = iter("abc")
        with again.open() as ledger:
            assert used(ledger) == SPENT
        assert again.home / ARCHIVE in archived_ledgers(again.home)


def test_one_that_cannot_be_read_is_not_taken_for_none(node):
    (node.home / f"{ARCHIVE}-journal").mkdir()  # What would be rolled back cannot be read.

    assert archived_ledgers(node.home) == [node.home / ARCHIVE]


class Channel:
    """Gives a receipt for all it is sent."""

    async def send(self, batch):
        last = json.loads(batch)["data"]["entries"][-1]
        return Receipt(epoch=FIRST, acked_seq=last["seq"], head_hash=last["hash"])


async def test_a_disk_that_fails_for_a_while_does_not_end_the_outbox(node):
    failing = iter(range(20))

    def before(what, name):
        # The journal is taken, so that there is something to roll back and no way to do it.
        bad = what == "write" and name == ARCHIVE and next(failing, None) is not None
        return IOERR_WRITE if bad else OK

    with watched(node.home, before=before):
        archive = open_archive(node)
        outbox = Outbox(
            archive,
            Channel(),
            tenant="acme",
            node="n1",
            health=node.health,
            now=lambda: NOW,
            jitter=lambda: 0.5,
            retry_max_s=0.01,
        )
        sending = asyncio.create_task(outbox.run())
        try:
            assert await outbox.flush(20), sending
        finally:
            sending.cancel()
            await asyncio.wait([sending])
            received = (archive.receipt_seq(), archive.last_seq())
            archive.close()

    assert received == (5, 5)
    assert next(failing, None) is None
