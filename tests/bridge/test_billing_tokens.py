"""API tokens: shown once, known by their digest, and good for what they were made for."""

import hashlib
from datetime import timedelta

import httpx2
import pytest
import sqlalchemy as sa

from qcbridge.billing.app import create_app
from qcbridge.billing.audit import changes
from qcbridge.billing.tokens import Grant, Scope, Tokens
from qcnode.books.batch import decode_receipt
from qcnode.errors import BillingError
from tests.bridge.books import Books
from tests.bridge.ledgers import NOW, batch_of, intent, raw_batch, settled, write

BOOTSTRAP = "the-token-of-the-server"
ENTRIES = write([intent(), settled()])


@pytest.fixture
def tokens(books):
    numbers = iter(range(1, 100))
    return Tokens(books.database, now=lambda: NOW, random=lambda n: bytes([next(numbers)]) * n)


@pytest.fixture
async def client(sqlite_books):
    app = create_app(sqlite_books.store, token=BOOTSTRAP, now=lambda: NOW)
    transport = httpx2.ASGITransport(app)
    async with httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1") as opened:
        yield opened


def make(books, *scopes, **whose):
    """A token by the registry's own door."""
    numbers = iter(range(1, 100))
    tokens = Tokens(books.database, now=lambda: NOW, random=lambda n: bytes([next(numbers)]) * n)
    return tokens.add("t", scopes, by="jo", **whose)


def bearer(token):
    return {"authorization": f"Bearer {token}", "content-type": "application/cloudevents+json"}


def test_a_token_opens_what_it_was_made_for_until_it_is_revoked(tokens):
    token = tokens.add("line-1", {Scope.INGEST}, by="jo", tenant="acme", node="node-1")

    grant = tokens.check(token)
    assert grant == Grant(
        name="line-1", scopes=frozenset({Scope.INGEST}), tenant="acme", node="node-1"
    )
    assert (grant.opens(Scope.INGEST), grant.opens(Scope.READ)) == (True, False)
    assert grant.reaches("acme", "node-1")
    assert not grant.reaches("acme", "node-2")
    assert not grant.reaches("other")

    tokens.revoke("line-1", by="jo")
    assert tokens.check(token) is None
    with pytest.raises(BillingError, match="no token 'line-1' in force"):
        tokens.revoke("line-1", by="jo")


@pytest.mark.parametrize("token", ["", "qcb_", "qcb_" + "02" * 31, "qcb_" + "02" * 32, "02" * 32])
def test_what_was_never_given_out_opens_nothing(tokens, token):
    tokens.add("one", {Scope.READ}, by="jo")
    assert tokens.check(token) is None


def test_the_books_hold_a_tokens_digest_and_never_the_token(tokens, books):
    token = tokens.add("one", {Scope.READ}, by="jo")
    with books.database.reading() as db:
        kept = "".join(
            str(row)
            for table in ("token", "audit")
            for row in db.execute(sa.text(f"SELECT * FROM {table}"))  # noqa: S608
        )
    assert token.removeprefix("qcb_") not in kept
    assert str(hashlib.sha256(token.encode()).digest())[2:-1] in kept


@pytest.mark.parametrize(
    ("name", "scopes", "whose", "says"),
    [
        ("one", {Scope.READ}, {}, "there is, or was, a token one"),
        ("two", set(), {}, "would open nothing"),
        ("two", {Scope.INGEST}, {}, "say of which tenant"),
        ("two", {Scope.READ}, {"node": "node-1"}, "say of which tenant"),
        ("two", {Scope.READ}, {"tenant": "a/b"}, "is no name"),
        ("t w o", {Scope.READ}, {}, "is no name"),
    ],
)
def test_a_token_that_makes_no_sense_is_not_made(tokens, name, scopes, whose, says):
    tokens.add("one", {Scope.READ}, by="jo")
    with pytest.raises(BillingError, match=says):
        tokens.add(name, scopes, by="jo", **whose)
    assert [info.name for info in tokens.listed()] == ["one"]


def test_when_a_token_was_last_used_is_known_to_the_minute(sqlite_books):
    at = [NOW]
    tokens = Tokens(sqlite_books.database, now=lambda: at[0], random=lambda n: b"x" * n)
    token = tokens.add("one", {Scope.READ}, by="jo")
    assert tokens.listed()[0].used_us is None
    seen = []
    for seconds in (0, 30, 60):
        at[0] = NOW + timedelta(seconds=seconds)
        tokens.check(token)
        seen.append(tokens.listed()[0].used_us - int(NOW.timestamp()) * 1_000_000)
    assert seen == [0, 0, 60_000_000]


def test_making_and_revoking_are_in_the_audit_trail(tokens, books):
    tokens.add("one", {Scope.READ}, by="jo")
    tokens.revoke("one", by="kim")
    assert [(change.who, change.action) for change in changes(books.database, limit=9)] == [
        ("kim", "token revoke"),
        ("jo", "token add"),
    ]


async def test_a_nodes_token_hands_in_its_own_batches_and_shows_nothing(client, sqlite_books):
    token = make(sqlite_books, Scope.INGEST, tenant="acme", node="node-1")
    own = await client.post("/v1/batches", content=raw_batch(ENTRIES), headers=bearer(token))
    assert decode_receipt(own.content).acked_seq == 2

    for whose in ({"tenant": "other"}, {"node": "node-2"}):
        raw = raw_batch(ENTRIES, **whose)
        answer = await client.post("/v1/batches", content=raw, headers=bearer(token))
        assert answer.status_code == 400
        assert "in the name of" in answer.json()["detail"]
    for path in ("/v1/totals?tenant=acme", "/v1/invoices/2026-11?tenant=acme", "/"):
        answer = await client.get(path, headers=bearer(token))
        assert answer.status_code == 403
        assert "it needs read" in answer.json()["detail"]
    assert sqlite_books.reports.tenants() == ("acme",)


async def test_a_reader_of_one_tenant_sees_that_tenant_alone(client, sqlite_books):
    for tenant in ("acme", "other"):
        sqlite_books.ingest(batch_of(ENTRIES, tenant=tenant))
    token = make(sqlite_books, Scope.READ, tenant="acme")

    assert (await client.get("/v1/totals?tenant=acme", headers=bearer(token))).status_code == 200
    for path in ("/v1/totals?tenant=other", "/v1/invoices/2026-11?tenant=other"):
        assert (await client.get(path, headers=bearer(token))).status_code == 403
    page = (await client.get("/", headers=bearer(token))).text
    assert "acme" in page
    assert "other" not in page
    refused = await client.post("/v1/batches", content=b"{}", headers=bearer(token))
    assert refused.status_code == 403


async def test_the_servers_own_token_opens_everything(client):
    for path in ("/v1/totals?tenant=acme", "/"):
        assert (await client.get(path, headers=bearer(BOOTSTRAP))).status_code == 200
    sent = await client.post("/v1/batches", content=raw_batch(ENTRIES), headers=bearer(BOOTSTRAP))
    assert sent.status_code == 200


async def test_a_revoked_token_is_turned_away(client, sqlite_books):
    token = make(sqlite_books, Scope.ADMIN)
    assert (await client.get("/", headers=bearer(token))).status_code == 200
    Tokens(sqlite_books.database, now=lambda: NOW, random=bytes).revoke("t", by="jo")
    assert (await client.get("/", headers=bearer(token))).status_code == 401


def test_books_opened_elsewhere_know_the_same_tokens(books, tokens, database_url):
    token = tokens.add("one", {Scope.READ}, by="jo")
    other = Books(database_url)
    again = Tokens(other.database, now=lambda: NOW, random=bytes)
    assert again.check(token) is not None
    other.close()
    assert books.reports.tenants() == ()
