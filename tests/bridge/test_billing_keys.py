"""Whose batches are believed, and what the server signs in return."""

from dataclasses import replace
from datetime import timedelta

import pytest

from qcbridge.billing.audit import changes
from qcbridge.billing.keys import Trust
from qcbridge.billing.offers import RefusalKind
from qcbridge.billing.witness import key_path, open_key
from qcnode.books.seals import Checkpoint, PublicKey, SigningKey, origin_of
from qcnode.errors import BillingError
from tests.bridge.books import Books
from tests.bridge.ledgers import (
    NOW,
    attempts,
    batch_of,
    intent,
    key_of,
    not_billed,
    note_of,
    settled,
    write,
)

ENTRIES = write([intent(), settled()])


@pytest.fixture
def now():
    """The hands of the clock."""
    return [NOW]


@pytest.fixture
def strict(database_url, now):
    """Books that believe registered nodes alone."""
    opened = Books(database_url, now=lambda: now[0], trust=Trust.REGISTERED).open()
    yield opened
    opened.close()


def _refused(books, offer):
    receipt = books.ingest(offer)
    assert receipt.acked_seq == 0
    assert books.reports.tenants() == ()
    [refusal] = books.reports.refusals("acme", limit=10)
    assert refusal.kind == RefusalKind.UNSIGNED
    assert refusal.words == receipt.problem
    return receipt.problem


def test_a_registered_node_is_believed_and_a_stranger_is_refused_and_on_record(strict):
    assert "no key of node acme/node-1 counts here" in _refused(strict, batch_of(ENTRIES))
    strict.nodes.add("acme", "node-1", key_of().public, by="jo")
    assert strict.ingest(batch_of(ENTRIES)).acked_seq == 2


@pytest.mark.parametrize(
    ("forge", "says"),
    [
        (lambda offer: replace(offer, note=None), "is not signed"),
        (lambda offer: replace(offer, note="nothing\n"), "no signed checkpoint"),
        (lambda offer: replace(offer, note=offer.note + "x" * 2_000), "characters: 2000 at most"),
        # Somebody else's key, under the node's own name.
        (lambda _: batch_of(ENTRIES, key=key_of(generation=2)), "no signature of acme/node-1"),
        # A note that the node did write, under other entries.
        (
            lambda _: replace(batch_of(write([intent(), not_billed()])), note=note_of(ENTRIES[-1])),
            "not about entry 2",
        ),
        (lambda offer: replace(offer, note=note_of(ENTRIES[0])), "is about entry 1"),
        (
            lambda offer: replace(
                offer, note=note_of(write([intent(), settled()], epoch="epoch-2")[-1])
            ),
            "/epoch-2, not about",
        ),
        (lambda offer: replace(offer, note=offer.note.replace("\n2\n", "\n3\n")), "not its own"),
    ],
)
def test_what_the_node_did_not_sign_is_refused(tmp_path, forge, says):
    strict = Books(f"sqlite:///{tmp_path}/b.db", trust=Trust.REGISTERED).open()
    strict.nodes.add("acme", "node-1", key_of().public, by="jo")
    assert says in _refused(strict, forge(batch_of(ENTRIES)))
    strict.close()


def test_a_stretch_cut_out_of_a_signed_batch_is_not_believed(strict):
    strict.nodes.add("acme", "node-1", key_of().public, by="jo")
    whole = batch_of(ENTRIES)
    assert "is about entry 2" in _refused(strict, replace(whole, lines=whole.lines[:1]))


def test_a_new_key_counts_from_its_instant_beside_the_old_one_until_that_is_revoked(strict, now):
    old, new = key_of(), key_of(generation=2)
    entries = write(attempts(6))
    strict.nodes.add("acme", "node-1", old.public, by="jo")
    from_us = int((NOW + timedelta(days=1)).timestamp() * 1_000_000)
    strict.nodes.add("acme", "node-1", new.public, by="jo", from_us=from_us)

    assert strict.ingest(batch_of(entries[:2], key=new)).acked_seq == 0
    assert strict.ingest(batch_of(entries[:2], key=old)).acked_seq == 2
    now[0] += timedelta(days=1)
    assert strict.ingest(batch_of(entries[2:4], key=new)).acked_seq == 4
    assert strict.ingest(batch_of(entries[4:6], key=old)).acked_seq == 6
    strict.nodes.revoke("acme", "node-1", by="jo", key_id=old.public.id.hex())
    assert strict.ingest(batch_of(entries[6:8], key=old)).acked_seq == 6
    assert strict.ingest(batch_of(entries[6:8], key=new)).acked_seq == 8
    strict.nodes.revoke("acme", "node-1", by="jo")
    assert "counts here" in strict.ingest(batch_of(entries[8:], key=new)).problem

    assert [change.action for change in changes(strict.database, limit=10)] == [
        "node revoke",
        "node revoke",
        "node add",
        "node add",
    ]


@pytest.mark.parametrize(
    ("add", "says"),
    [
        (("acme", "node-2", key_of().public), "this is the key of acme/node-1"),
        (("a/b", "node-1", key_of().public), "is no name"),
        (("acme", "node-1", key_of(generation=2).public), "has the key"),
    ],
)
def test_a_key_is_registered_once_and_under_its_own_name(sqlite_books, add, says):
    for generation in (1, 2, 1):
        sqlite_books.nodes.add("acme", "node-1", key_of(generation=generation).public, by="jo")
    assert len(sqlite_books.nodes.listed()) == 2
    sqlite_books.nodes.revoke(
        "acme", "node-1", by="jo", key_id=key_of(generation=2).public.id.hex()
    )
    with pytest.raises(BillingError, match=says):
        sqlite_books.nodes.add(*add, by="jo")
    with pytest.raises(BillingError, match="has no key in force"):
        sqlite_books.nodes.revoke("acme", "node-9", by="jo")


def test_where_strangers_are_taken_in_the_first_key_counts_and_no_other(books):
    assert books.ingest(batch_of(ENTRIES)).acked_seq == 2

    other = write([intent("x"), settled("x")], epoch="epoch-2")
    assert (
        "no signature of acme/node-1"
        in books.ingest(batch_of(other, key=key_of(generation=2))).problem
    )
    assert "is not signed" in books.ingest(replace(batch_of(other), note=None)).problem

    [known] = books.nodes.listed()
    assert (str(known.key), known.added_by) == (str(key_of().public), "enrol-first")
    assert changes(books.database, limit=1)[0].who == "enrol-first"


@pytest.mark.parametrize(
    ("key", "says"),
    [
        (None, "names no key to be known by"),
        ("nonsense", "a key that is none"),
        (str(key_of(node="node-2").public), "names the key of 'acme/node-2' as its own"),
        (str(key_of(generation=2).public), "no signature of acme/node-1"),
    ],
)
def test_a_stranger_is_not_taken_in_by_a_key_it_does_not_hold(tmp_path, key, says):
    books = Books(f"sqlite:///{tmp_path}/b.db").open()
    assert says in _refused(books, replace(batch_of(ENTRIES), key=key))
    assert books.nodes.listed() == ()
    books.close()


@pytest.fixture
def server_key(tmp_path):
    return SigningKey.open(tmp_path / "billing.key", name="billing")


@pytest.fixture
def signing(database_url, server_key):
    """Books whose receipts are signed."""
    opened = Books(database_url, key=server_key).open()
    yield opened
    opened.close()


def test_a_receipt_carries_the_nodes_note_with_the_servers_line_beside_it(signing, server_key):
    receipt = signing.ingest(batch_of(ENTRIES))

    assert PublicKey.parse(receipt.server_key).raw == server_key.public.raw
    for key in (server_key.public, key_of().public):
        assert key.check(receipt.note) == Checkpoint(
            origin=origin_of("acme", "node-1", "epoch-1"), size=2, head_hash=ENTRIES[1].hash
        )
    assert signing.ingest(batch_of(ENTRIES)) == receipt
    assert receipt.server_time_us == int(NOW.timestamp() * 1_000_000)


def test_every_receipt_is_signed_at_what_the_server_has_whatever_came(signing, server_key):
    entries = write(attempts(6))
    fork = write([intent("other")])
    receipts = [
        signing.ingest(batch_of(piece))
        for piece in (entries[:3], entries[5:7], fork, entries[1:2], entries[3:5], entries[:6])
    ]
    assert [receipt.acked_seq for receipt in receipts] == [3, 3, 3, 3, 7, 7]
    for receipt in receipts:
        said = server_key.public.check(receipt.note)
        assert (said.size, said.head_hash.hex()) == (receipt.acked_seq, receipt.head_hash)


def test_before_anything_is_stored_there_is_nothing_to_sign(signing):
    assert signing.ingest(batch_of(ENTRIES[1:])).note is None


def test_a_server_with_a_new_key_signs_again_what_it_has(database_url, server_key, tmp_path):
    before = Books(database_url, key=server_key).open()
    before.ingest(batch_of(ENTRIES))
    before.close()
    newer = SigningKey.open(tmp_path / "newer.key", name="billing")
    after = Books(database_url, key=newer)

    receipt = after.ingest(batch_of(ENTRIES))

    for key in (newer.public, server_key.public, key_of().public):
        assert key.check(receipt.note).size == 2
    after.close()


def test_the_servers_key_is_made_beside_the_database_for_its_owner_alone(sqlite_books, tmp_path):
    path = key_path(sqlite_books.database, None)
    assert path == tmp_path / "billing.key"
    first = open_key(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert open_key(path).public.raw == first.public.raw
    assert key_path(sqlite_books.database, tmp_path / "other") == tmp_path / "other"
    path.write_text("no key")
    with pytest.raises(BillingError, match=r"billing.key: "):
        open_key(path)
