"""Signatures over the ledger: keys, notes, the node's checkpoints and the server's."""

from __future__ import annotations

import base64
import sqlite3
import stat
import threading
from contextlib import closing

import pytest
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from qcnode.books.checkpoints import Note, check_notes, read_notes, split_notes
from qcnode.books.keeper import CHECKPOINT_ENTRIES
from qcnode.books.ledger_file import LedgerReader
from qcnode.books.seals import Checkpoint, PublicKey, SigningKey, read_note
from qcnode.errors import LedgerCorruptError, SealError
from qcnode.money import Receipt
from tests.node.homes import FIRST, Node, spend
from tests.node.test_ledger import intent, put, settled

HEAD = bytes(range(32))
SAID = Checkpoint(origin=f"qcnode/acme/n1/{FIRST}", size=7, head_hash=HEAD)


@pytest.fixture
def node(tmp_path) -> Node:
    return Node(tmp_path / "home")


@pytest.fixture
def server(tmp_path) -> SigningKey:
    return SigningKey.open(tmp_path / "server.key", name="billing")


# -- keys and notes ----------------------------------------------------------------------


def test_a_key_is_made_once_and_for_its_owner_alone(tmp_path):
    path = tmp_path / "node.key"
    key = SigningKey.open(path, name="acme/n1")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert str(SigningKey.open(path, name="acme/n1").public) == str(key.public)
    assert path.read_bytes().startswith(b"-----BEGIN PRIVATE KEY-----")


def test_a_public_key_is_read_as_it_is_written(server):
    text = str(server.public)
    assert text.split("+")[:2] == ["billing", server.public.id.hex()]
    assert PublicKey.parse(f" {text}\n").raw == server.public.raw


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("billing", "NAME\\+ID\\+KEY|of a kind not known"),
        ("billing+00000000+AQ==", "32 bytes|does not match"),
        ("billing+00000000+!!!", "NAME\\+ID\\+KEY"),
        ("billing+00000000+" + base64.b64encode(b"\x02" + HEAD).decode(), "of a kind not known"),
        ("billing+00000000+" + base64.b64encode(b"\x01" + HEAD).decode(), "copy it whole"),
        ("two words+00000000+" + base64.b64encode(b"\x01" + HEAD).decode(), "no name for a key"),
    ],
)
def test_what_is_no_public_key_is_refused_in_one_line(text, words):
    with pytest.raises(SealError, match=words) as refused:
        PublicKey.parse(text)
    assert "\n" not in str(refused.value)


def test_a_key_file_that_is_none_is_named(tmp_path):
    path = tmp_path / "node.key"
    path.write_text("nonsense")
    with pytest.raises(SealError, match="no private key in PEM"):
        SigningKey.open(path, name="acme/n1")
    other = generate_private_key(public_exponent=65537, key_size=2048)
    path.write_bytes(other.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    with pytest.raises(SealError, match="use Ed25519"):
        SigningKey.open(path, name="acme/n1")


def test_a_note_says_who_signed_what(node, server):
    note = server.add_to(node.key.sign(SAID))
    assert note.startswith(f"qcnode/acme/n1/{FIRST}\n7\n{base64.b64encode(HEAD).decode()}\n\n")
    assert read_note(note) == SAID
    assert node.key.public.check(note) == SAID
    assert server.public.check(note) == SAID


def test_a_signature_of_another_key_or_on_other_words_is_none(node, server, tmp_path):
    impostor = SigningKey.open(tmp_path / "other.key", name="acme/n1")
    with pytest.raises(SealError, match="no signature of acme/n1 with the key"):
        node.key.public.check(impostor.sign(SAID))
    with pytest.raises(SealError, match="no signature of acme/n1"):
        node.key.public.check(server.sign(SAID))
    with pytest.raises(SealError, match="is not its own"):
        node.key.public.check(node.key.sign(SAID).replace("\n7\n", "\n8\n"))


@pytest.mark.parametrize(
    "broken",
    [
        lambda note: note.replace("\n\n", "\n"),
        lambda note: note[:-1],
        lambda note: note.replace("\n7\n", "\n07\n"),
        lambda note: note.replace("\n7\n", "\n-7\n"),
        lambda note: note.replace("\u2014", "-"),
        lambda note: note.replace("AAEC", "AAE"),
        lambda note: note + "\n",
        lambda _note: "",
    ],
)
def test_what_is_no_note_is_refused(node, broken):
    with pytest.raises(SealError, match="no signed checkpoint"):
        read_note(broken(node.key.sign(SAID)))


def test_notes_that_stand_one_after_the_other_are_taken_apart(node, server):
    one = node.key.sign(SAID)
    two = server.add_to(node.key.sign(Checkpoint(origin="o", size=8, head_hash=HEAD)))
    assert split_notes(one + two) == [one, two]
    assert split_notes(one + "\n" + two + "\n") == [one, two]
    assert split_notes("") == []
    with pytest.raises(SealError, match="has no signature: copy it whole"):
        split_notes(one + two.split("\u2014")[0])
    with pytest.raises(SealError, match="no signed checkpoint"):
        split_notes(f"# notes of november\n{one}")


# -- the node's own checkpoints ----------------------------------------------------------


def notes_of(node: Node, signer: str = "node") -> list[tuple[int, str]]:
    reader = LedgerReader(node.path)
    with reader.moment() as db:
        notes = [(note.kept_at, note.text) for note in read_notes(db) if note.signer == signer]
    reader.close()
    return notes


def test_the_node_signs_where_its_ledger_ends_when_it_is_closed(node):
    with node.open() as ledger:
        spend(ledger, "a")
        end = ledger.read(1, 1)[0]
    (note,) = notes_of(node)
    assert node.key.public.check(note[1]) == Checkpoint(
        origin=f"qcnode/acme/n1/{FIRST}", size=2, head_hash=end.hash
    )
    with node.open():
        pass  # Without news there is nothing to sign.
    assert notes_of(node) == [note]


def test_the_node_signs_every_thousand_entries(node):
    node.budgets = ()
    facts = [intent(f"{number}") for number in range(CHECKPOINT_ENTRIES * 2 + 50)]
    with node.open() as ledger:
        for start in range(0, len(facts), 50):
            ledger.submit_all(facts[start : start + 50]).result(10)
        signed = [seq for seq, _note in notes_of(node)]
    assert signed[:3] == [50, 1_050, 2_050]  # The first at once: nothing was signed before.


def test_the_node_signs_news_after_a_minute(node):
    with node.open() as ledger:
        put(ledger, intent("a"))
        put(ledger, intent("b"))
        assert [seq for seq, _note in notes_of(node)] == [1]
        node.clock.us += 60_000_000
        put(ledger, intent("c"))
        put(ledger, settled("a"))
        assert [seq for seq, _note in notes_of(node)] == [1, 3]
        node.clock.us -= 3_600_000_000  # A clock set back holds nothing up.
        put(ledger, settled("b"))
        assert [seq for seq, _note in notes_of(node)] == [1, 3, 5]


def test_the_last_news_before_a_quiet_time_is_signed_too(node):
    with node.open(checkpoint_s=0.05) as ledger:
        put(ledger, intent("a"))
        put(ledger, intent("b"))
        signed = threading.Event()
        for _ in range(200):
            if [seq for seq, _note in notes_of(node)] == [1, 2]:
                signed.set()
                break
            signed.wait(0.05)
        assert signed.is_set()


def test_without_a_key_nobody_vouches(tmp_path):
    node = Node(tmp_path / "home", signs=False)
    with node.open() as ledger:
        spend(ledger, "a")
        assert ledger.checkpoint_note(2, HEAD) is None
    assert notes_of(node) == []


def test_any_entry_can_be_vouched_for_on_its_way_out(node):
    with node.open() as ledger:
        spend(ledger, "a")
        entry = ledger.read(0, 1)[0]
        note = ledger.checkpoint_note(entry.seq, entry.hash)
    assert node.key.public.check(note).size == 1


def test_the_servers_note_is_kept_with_its_receipt(node, server):
    with node.open() as ledger:
        spend(ledger, "a")
        entry = ledger.read(1, 1)[0]
        note = server.add_to(ledger.checkpoint_note(2, entry.hash))
        ledger.confirm(Receipt(epoch=FIRST, acked_seq=2, head_hash=entry.hash.hex(), note=note))
    assert notes_of(node, "server") == [(2, note)]


def test_a_ledger_that_ends_before_what_the_node_has_signed_does_not_open(node):
    with node.open() as ledger:
        spend(ledger, "a", "b")
    cut(node, 3)
    with pytest.raises(LedgerCorruptError, match="entry 3 is missing"), node.open(identify=None):
        pass


def cut(node: Node, first: int) -> None:
    """Cut the tail off with care: entries, head and cursor, and not the notes."""
    with closing(sqlite3.connect(node.path)) as db:
        db.execute("DROP TRIGGER entry_not_removed")
        db.execute("DELETE FROM entry WHERE seq >= ?", (first,))
        db.execute(
            "UPDATE head SET seq = ?, hash = (SELECT hash FROM entry ORDER BY seq DESC LIMIT 1)",
            (first - 1,),
        )
        db.execute("DELETE FROM cursor")
        db.execute("DELETE FROM snapshot")
        db.commit()


# -- notes against entries ---------------------------------------------------------------


@pytest.fixture
def checked(node):
    """Check notes against a ledger of four entries."""
    with node.open() as ledger:
        spend(ledger, "a", "b")
        hashes = [b"", *(entry.hash for entry in ledger.read(0, 10))]

    def check(*notes: Note, keys=None):
        reader = LedgerReader(node.path)
        try:
            with reader.moment() as db:
                return check_notes(db, FIRST, notes, entries=4, keys=keys or {})
        finally:
            reader.close()

    check.hashes = hashes
    return check


def at(size: int, digest: bytes, epoch: str = FIRST) -> Checkpoint:
    return Checkpoint(origin=f"qcnode/acme/n1/{epoch}", size=size, head_hash=digest)


def test_notes_say_how_far_everybody_vouches(node, server, checked):
    keys = {"node": [node.key.public], "server": [server.public]}
    vouched = checked(
        Note(signer="node", text=node.key.sign(at(2, checked.hashes[2]))),
        Note(signer="server", text=server.sign(at(4, checked.hashes[4]))),
        Note(signer="server", text=server.sign(at(9, HEAD, epoch="another"))),
        keys=keys,
    )
    assert (vouched.node_seq, vouched.server_seq, vouched.notes, vouched.unsigned) == (2, 4, 2, 0)


def test_a_note_from_beyond_the_end_names_the_first_missing_entry(server, checked):
    with pytest.raises(
        LedgerCorruptError, match="entry 5 is missing: the billing server has vouched for 9"
    ):
        checked(Note(signer="server", text=server.sign(at(9, HEAD))))


def test_a_note_about_another_entry_names_where_to_look(node, server, checked):
    with pytest.raises(LedgerCorruptError, match="something in entries 3 to 4 was changed"):
        checked(
            Note(signer="node", text=node.key.sign(at(2, checked.hashes[2]))),
            Note(signer="server", text=server.sign(at(4, HEAD))),
        )


def test_a_note_of_a_known_signer_needs_its_signature(node, checked, tmp_path):
    impostor = SigningKey.open(tmp_path / "other.key", name="acme/n1")
    forged = Note(signer="node", text=impostor.sign(at(4, checked.hashes[4])))
    assert checked(forged).unsigned == 1  # Nobody knows better.
    with pytest.raises(LedgerCorruptError, match="the note of the node at entry 4: no signature"):
        checked(forged, keys={"node": [node.key.public]})
    # A key that was replaced is known beside the new one.
    assert checked(forged, keys={"node": [node.key.public, impostor.public]}).node_seq == 4


def test_a_note_that_is_none_is_no_proof(checked):
    with pytest.raises(LedgerCorruptError, match="a note of the node cannot be read"):
        checked(Note(signer="node", text="scribbles"))
