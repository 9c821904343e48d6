import base64

import httpx2
import pytest

from qcbridge.billing.app import create_app
from qcnode.books.batch import decode_receipt
from tests.bridge.books import Books
from tests.bridge.ledgers import (
    COST,
    HOLD,
    NOW,
    attempts,
    indeterminate,
    intent,
    not_billed,
    raw_batch,
    settled,
    write,
)

TOKEN = "a-token-of-enough-characters"
EVENT = {"content-type": "application/cloudevents+json"}
BEARER = {"authorization": f"Bearer {TOKEN}"}


def client_of(books, *, token=None, **options):
    app = create_app(books.store, token=token, now=lambda: NOW, **options)
    return httpx2.AsyncClient(
        transport=httpx2.ASGITransport(app), base_url="http://127.0.0.1", headers=EVENT
    )


@pytest.fixture
async def client(sqlite_books):
    async with client_of(sqlite_books) as opened:
        yield opened


async def test_a_posted_batch_comes_back_as_its_receipt(client):
    entries = write([intent(), settled()])

    answer = await client.post("/v1/batches", content=raw_batch(entries))

    assert answer.status_code == 200
    receipt = decode_receipt(answer.content)
    assert (receipt.acked_seq, receipt.problem) == (2, None)
    assert receipt.head_hash == entries[-1].hash.hex()


async def test_totals_say_what_the_node_can_compare_with_its_ledger(client):
    entries = write([intent("a1"), settled("a1"), intent("a2"), indeterminate("a2")])
    await client.post("/v1/batches", content=raw_batch(entries))

    totals = (await client.get("/v1/totals", params={"tenant": "acme"})).json()

    assert totals["entries"] == 4
    assert totals["cost_pico"] == {"CNY": COST.pico}
    assert totals["held_pico"] == {"CNY": HOLD.pico}
    assert (totals["indeterminate"], totals["unpriced"], totals["open"]) == (1, 0, 0)
    [head] = totals["ledgers"]
    assert (head["node"], head["acked_seq"]) == ("node-1", 4)
    assert head["head_hash"] == entries[-1].hash.hex()


async def test_a_fork_is_answered_with_a_receipt_that_names_it(client):
    await client.post("/v1/batches", content=raw_batch(write([intent(), settled()])))
    answer = await client.post("/v1/batches", content=raw_batch(write([intent(), not_billed()])))
    assert answer.status_code == 200
    assert "another content" in decode_receipt(answer.content).problem


async def test_an_invoice_is_worked_out_for_a_month(client):
    await client.post("/v1/batches", content=raw_batch(write([intent(), settled()])))
    invoice = (await client.get("/v1/invoices/2026-11", params={"tenant": "acme"})).json()
    assert invoice["total_micro"] == {"CNY": 1}
    empty = (await client.get("/v1/invoices/2026-10", params={"tenant": "acme"})).json()
    assert empty["lines"] == []


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("/v1/invoices/november?tenant=acme", "is no month"),
        ("/v1/totals", "tenant"),
        ("/v1/invoices/2026-11", "tenant"),
    ],
)
async def test_a_question_that_makes_no_sense_gets_one_line(client, path, says):
    answer = await client.get(path)
    assert answer.status_code == 400
    assert says in answer.json()["detail"]
    assert "\n" not in answer.json()["detail"]


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"[]",
        b"\xff\xfe",
        b'{"specversion":"1.0"}',
        b"[" * 100_000,
        raw_batch(write([intent()])).replace(b"ledger.batch.v1", b"something.else"),
        raw_batch(write([intent()])).replace(b'"seq":1', b'"seq":-1'),
        raw_batch(write([intent()])).replace(b'"seq":1', b'"seq":99999999999999999999999'),
        raw_batch(write([intent()])).replace(b'"seq":1', b'"seq":Infinity'),
        raw_batch(write([intent()])).replace(b'"tenant":"acme"', b'"tenant":"\\ud800"'),
        raw_batch(write([intent()])).replace(b'"entries":[', b'"entries":[[],'),
    ],
)
async def test_what_is_no_batch_is_refused_in_one_line_and_kept_as_evidence(
    client, sqlite_books, raw
):
    answer = await client.post("/v1/batches", content=raw)

    assert answer.status_code == 400
    assert "\n" not in answer.json()["detail"]
    [refusal] = sqlite_books.reports.refusals(None, limit=10)
    assert refusal.kind == "unreadable"


async def test_a_batch_that_is_too_long_is_refused_before_it_is_read(client):
    sent = 0

    async def endless():
        nonlocal sent
        for _ in range(64):
            sent += 1
            yield b" " * 65_536

    answer = await client.post("/v1/batches", content=endless())
    declared = await client.post("/v1/batches", content=b" " * (1024 * 1024 + 1))

    assert answer.status_code == declared.status_code == 413
    assert "1048576" in answer.json()["detail"]


async def test_another_content_type_is_refused(client):
    answer = await client.post(
        "/v1/batches", content=b"{}", headers={"content-type": "application/json"}
    )
    assert answer.status_code == 415


@pytest.mark.parametrize(
    "header",
    [
        {},
        {"authorization": "Bearer wrong"},
        {"authorization": f"Bearer {TOKEN}x"},
        {"authorization": "Bearer"},
        {"authorization": "Basic !!!"},
        {"authorization": "Bearer \xe4".encode("latin-1").decode("latin-1")},
    ],
)
@pytest.mark.parametrize("path", ["/v1/totals?tenant=acme", "/v1/invoices/2026-11?tenant=a", "/"])
async def test_without_the_token_no_amount_is_shown(sqlite_books, path, header):
    async with client_of(sqlite_books, token=TOKEN) as client:
        encoded = {name: value.encode("latin-1") for name, value in header.items()}
        answer = await client.get(path, headers=encoded)
        batch = await client.post("/v1/batches", content=b"{}", headers=encoded)
    assert answer.status_code == batch.status_code == 401
    assert sqlite_books.reports.refusals(None, limit=1) == ()


async def test_with_the_token_programs_and_browsers_come_in(sqlite_books):
    password = base64.b64encode(f"anyone:{TOKEN}".encode()).decode()
    async with client_of(sqlite_books, token=TOKEN) as client:
        answers = [
            await client.post(
                "/v1/batches", content=raw_batch(write([intent()])), headers=BEARER | EVENT
            ),
            await client.get("/v1/totals?tenant=acme", headers=BEARER),
            await client.get("/", headers={"authorization": f"Basic {password}"}),
            await client.get("/livez"),
            await client.get("/readyz"),
            await client.get("/metrics"),
        ]
    assert [answer.status_code for answer in answers] == [200] * 6


async def test_the_page_shows_nodes_sums_and_what_was_refused(client):
    facts = [intent("a1"), settled("a1"), intent("a2"), indeterminate("a2"), intent("a3")]
    facts += [settled("a3", cost=None), settled("ghost")]
    await client.post("/v1/batches", content=raw_batch(write(facts)))
    await client.post("/v1/batches", content=raw_batch(write([not_billed("x")])))

    page = await client.get("/")

    assert page.status_code == 200
    for words in (
        "acme",
        "node-1",
        "0.000001234567 CNY",
        "Unpriced",
        "Quarantined",
        "0.000001 CNY",
    ):
        assert words in page.text
    assert "another content" in page.text
    policy = page.headers["content-security-policy"]
    assert policy.startswith("default-src 'self'")
    assert "style=" not in page.text
    assert "<script" not in page.text
    assert (await client.get("/static/billing.css")).status_code == 200


async def test_the_page_says_that_a_scripted_provider_charges_nobody(client):
    await client.post("/v1/batches", content=raw_batch(write([intent("a1"), settled("a1")])))
    page = (await client.get("/")).text
    chip = '<span class="chip">scripted provider: nobody is charged</span>'
    assert page.count(chip) == 5  # tenant, sum, invoice, line and total
    assert f"<td>no {chip}</td>" in page
    assert "<td>yes</td>" not in page
    assert "<li>in + out</li>" in page


async def test_the_page_keeps_what_is_charged_apart_from_what_is_not(client):
    facts = [intent("a1"), settled("a1"), intent("a2", provider="vendor"), settled("a2")]
    await client.post("/v1/batches", content=raw_batch(write(facts)))
    page = (await client.get("/")).text
    chip = '<span class="chip">scripted provider: nobody is charged</span>'
    assert (page.count(f"<td>no {chip}</td>"), page.count("<td>yes</td>")) == (1, 1)
    assert page.count(chip) == 2  # the sum and the line; not tenant, invoice or total
    assert "0.000001 CNY of it: scripted provider: nobody is charged" in page


async def test_names_from_nodes_are_text_on_the_page(client):
    facts = [intent("a1", model="<script>alert(1)</script>"), settled("a1")]
    await client.post("/v1/batches", content=raw_batch(write(facts)))
    page = await client.get("/")
    assert "<script" not in page.text
    assert "&lt;script&gt;" in page.text


async def test_an_empty_server_says_so(client):
    assert "No node has reported yet" in (await client.get("/")).text


async def test_metrics_count_batches_by_what_became_of_them(client):
    raw = raw_batch(write(attempts(3)))
    for content in (raw, raw, b"{"):
        await client.post("/v1/batches", content=content)
    metrics = (await client.get("/metrics")).text
    assert 'qcbilling_batches_total{outcome="taken",via="http"} 1.0' in metrics
    assert 'qcbilling_batches_total{outcome="repeated",via="http"} 1.0' in metrics
    assert 'qcbilling_batches_total{outcome="unreadable",via="http"} 1.0' in metrics
    assert f"qcbilling_entries_total {len(write(attempts(3)))}.0" in metrics


async def test_a_database_that_is_away_makes_it_unready_but_not_dead(tmp_path):
    away = Books(f"sqlite:///{tmp_path}/no/folder.db")
    async with client_of(away) as client:
        assert (await client.get("/livez")).status_code == 200
        assert (await client.get("/readyz")).status_code == 503
        answer = await client.post("/v1/batches", content=raw_batch(write([intent()])))
    away.close()
    assert answer.status_code == 503
    assert "does not answer" in answer.json()["detail"]


async def test_a_server_that_names_its_hosts_answers_to_no_other(sqlite_books):
    async with client_of(sqlite_books, hosts=["localhost", "127.0.0.1"]) as client:
        answer = await client.get("/livez", headers={"host": "evil.example"})
        assert answer.status_code == 400
        assert (await client.get("/livez", headers={"host": "localhost:8081"})).status_code == 200


async def test_a_node_that_dies_while_it_sends_is_no_fault_of_the_server(sqlite_books):
    app = create_app(sqlite_books.store, token=None, now=lambda: NOW)
    heard = [
        {"type": "http.request", "body": b"{", "more_body": True},
        {"type": "http.disconnect"},
    ]
    said = []

    async def receive():
        return heard.pop(0)

    async def send(message):
        said.append(message)

    await app(
        {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": "POST",
            "path": "/v1/batches",
            "raw_path": b"/v1/batches",
            "query_string": b"",
            "headers": [(b"host", b"127.0.0.1"), (b"content-type", EVENT["content-type"].encode())],
        },
        receive,
        send,
    )

    assert said[0]["status"] == 400
    assert sqlite_books.reports.tenants() == ()
