"""The server's signed notes, as others keep them against the day something is cut off."""

import secrets

import httpx2
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from qcbridge.billing.app import create_app
from qcbridge.billing.tokens import Scope, Tokens
from qcbridge.billing.witness import latest_notes
from qcnode.books.checkpoints import split_notes
from qcnode.books.seals import SigningKey
from qcnode.errors import BillingError
from tests.bridge.books import Books
from tests.bridge.ledgers import NOW, batch_of, intent, settled, write

SERVER = SigningKey("billing", Ed25519PrivateKey.from_private_bytes(b"s" * 32))


@pytest.fixture
def books(tmp_path):
    opened = Books(f"sqlite:///{tmp_path / 'billing.db'}", key=SERVER).open()
    yield opened
    opened.close()


def hand_in(books, entries, **whose):
    assert books.ingest(batch_of(entries, **whose)).problem is None


def test_the_last_note_of_each_ledger_is_given_and_no_other_tenants(books):
    first = write([intent("a1"), settled("a1")])
    longer = write([intent("a2"), settled("a2")], after=first)
    hand_in(books, first)
    hand_in(books, longer[2:])
    hand_in(books, write([intent("b1")]), node="node-2")
    hand_in(books, write([intent("c1")]), tenant="other")

    notes = latest_notes(books.database, "acme")

    said = [SERVER.public.check(note) for note in notes]
    assert [(one.origin, one.size) for one in said] == [
        ("qcnode/acme/node-1/epoch-1", 4),
        ("qcnode/acme/node-2/epoch-1", 1),
    ]
    assert said[0].head_hash == longer[-1].hash
    assert latest_notes(books.database, "acme", "node-2") == notes[1:]


async def test_they_are_served_as_one_text_to_who_may_read_these_books(books):
    hand_in(books, write([intent("a1")]))
    hand_in(books, write([intent("b1")]), node="node-2")
    tokens = Tokens(books.database, now=lambda: NOW, random=secrets.token_bytes)
    ours = tokens.add("auditor", {Scope.READ}, by="jo", tenant="acme")
    theirs = tokens.add("stranger", {Scope.READ}, by="jo", tenant="other")
    app = create_app(books.store, token="a-token-of-enough-characters", now=lambda: NOW)
    async with httpx2.AsyncClient(
        transport=httpx2.ASGITransport(app), base_url="http://127.0.0.1"
    ) as client:

        async def ask(token):
            headers = {"authorization": f"Bearer {token}"}
            return await client.get("/v1/notes", params={"tenant": "acme"}, headers=headers)

        answer = await ask(ours)
        refused = await ask(theirs)

    assert split_notes(answer.text) == list(latest_notes(books.database, "acme"))
    assert refused.status_code == 403


def test_one_token_has_one_name(books):
    tokens = Tokens(books.database, now=lambda: NOW, random=lambda count: b"x" * count)
    tokens.add("one", {Scope.READ}, by="jo")

    with pytest.raises(BillingError, match="token two is, or was, known as one"):
        tokens.add("two", {Scope.READ}, by="jo")
