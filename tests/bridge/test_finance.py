"""What finance sees over HTTP: behind its own door, side by side, and nothing of strangers."""

import re

import httpx2
import pytest

from qcbridge.billing.app import create_app
from qcbridge.billing.finance import spent_by_account
from qcbridge.billing.issued_paper import decode_invoice, encode_invoice
from qcbridge.billing.provider_bills import read_bill
from qcbridge.billing.reconciled import Reconciler
from qcbridge.billing.tokens import Scope, Tokens
from qcnode.money import CostCentre, Outcome
from tests.bridge.paper_world import OCTOBER, PAINT, SOLDER, PaperWorld, at
from tests.bridge.test_reconcile import OPENROUTER, generation

ROUTES = [
    "/finance?tenant=acme",
    "/v1/usage?tenant=acme",
    "/v1/issued?tenant=acme",
    "/v1/issued/1?tenant=acme",
    "/v1/capture?tenant=acme",
    "/v1/value?tenant=acme",
]
BOOTSTRAP = "the-token-of-the-server"


@pytest.fixture
def world(tmp_path):
    """A tenant with something of everything in November, and October issued."""
    opened = PaperWorld(f"sqlite:///{tmp_path}/billing.db", now="2026-11-01T00")
    node = opened.node()
    node.use(at_us=at("2026-10-16T01"))
    node.send()
    opened.issue(OCTOBER)
    opened.clock("2026-11-20T12")
    node.use(at_us=at("2026-11-16T01"), escalation="part-1")
    node.use(at_us=at("2026-11-16T02"), centre=PAINT, provider="openai")
    node.lose(at_us=at("2026-11-16T03"), provider="openai")
    node.intent(at_us=at("2026-11-16T04"))
    node.settle(node.intent(at_us=at("2026-11-16T05")), at_us=at("2026-11-16T05"), cost=None)
    node.write(
        Outcome(
            escalation_id="part-1",
            centre=SOLDER,
            ruled="DEFECTIVE",
            truth="DEFECTIVE",
            node_alone="ACCEPT",
            source="audit",
        ),
        at_us=at("2026-11-17T00"),
    )
    opened.send()
    file = tmp_path / "openrouter.csv"
    file.write_text(OPENROUTER + generation("gen-of-nobody", at="2026-11-16 09:00:00"))
    Reconciler(opened.books.database, opened.resolutions, now=lambda: opened.now).take(
        "acme", read_bill(file, "openrouter"), by="test", provider="openai"
    )
    yield opened
    opened.close()


def client_of(world, *, token=None, header=None):
    app = create_app(world.books.store, token=token, now=lambda: world.now)
    return httpx2.AsyncClient(
        transport=httpx2.ASGITransport(app),
        base_url="http://127.0.0.1",
        headers={} if header is None else {"authorization": f"Bearer {header}"},
    )


@pytest.fixture
async def client(world):
    async with client_of(world) as opened:
        yield opened


async def test_d10_the_page_shows_what_is_known_and_what_is_not_side_by_side(client):
    answer = await client.get("/finance", params={"tenant": "acme"})
    assert answer.status_code == 200
    page = re.sub(r"<[^>]+>", " ", answer.text)
    for words in (
        "Measured",
        "Estimated, on the way, at most",
        "Estimated, indeterminate, at most",
        "Unpriced",
        "Quarantined",
        "Capture rate",
        "under 99.5 % on a day",
        "1 attempt",
        "assembly",
        "scratches",
        "openai",
        "acme-000001",
        "0.00 %",
    ):
        assert words in page, words
    assert "0.009 USD" in page  # What the lost attempt is held at.


async def test_the_page_lets_a_browser_run_nothing_and_load_nothing_from_elsewhere(client):
    answer = await client.get("/finance", params={"tenant": "acme"})
    policy = answer.headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "<script" not in answer.text
    assert "style=" not in answer.text
    assert not re.search(r'(src|href)="(?!/)', answer.text)
    style = await client.get("/static/billing.css")
    assert ".side" in style.text
    assert "url(" not in style.text


async def test_words_of_a_node_are_text_on_the_page_and_no_markup(world):
    attack = "<img src=x onerror=alert(1)>"
    world.node("node-2").use(at_us=at("2026-11-16T01"), centre=CostCentre(department=attack))
    world.send()
    async with client_of(world) as client:
        page = (await client.get("/finance?tenant=acme")).text
    assert attack not in page
    assert "&lt;img src=x" in page


@pytest.mark.parametrize("route", ROUTES)
async def test_only_who_may_see_the_papers_does(world, route):
    tokens = Tokens(world.books.database, now=lambda: world.now, random=lambda n: b"t" * n)
    reader = tokens.add("reader", {Scope.READ}, by="test", tenant="acme")
    tokens = Tokens(world.books.database, now=lambda: world.now, random=lambda n: b"u" * n)
    finance = tokens.add("finance", {Scope.FINANCE}, by="test", tenant="acme")
    tokens = Tokens(world.books.database, now=lambda: world.now, random=lambda n: b"v" * n)
    other = tokens.add("other", {Scope.FINANCE}, by="test", tenant="other")
    for header, status in (
        (None, 401),
        ("qcb_" + "00" * 32, 401),
        (reader, 403),
        (other, 403),
        (finance, 200),
        (BOOTSTRAP, 200),
    ):
        async with client_of(world, token=BOOTSTRAP, header=header) as client:
            assert (await client.get(route)).status_code == status, header


async def test_use_is_told_by_account_and_provider_for_programs(client, world):
    value = (await client.get("/v1/usage?tenant=acme&period=2026-11")).json()
    assert [(one["department"], one["provider"], one["currency"]) for one in value["usage"]] == [
        ("assembly", "deepseek", "CNY"),
        ("paint", "openai", "USD"),
    ]
    assert [one["attempts"] for one in value["usage"]] == [1, 1]
    assert (
        sum(one["cost_pico"] for one in value["usage"] if one["currency"] == "USD")
        == (world.recorded()["USD"])
    )
    standing = value["standing"]
    assert set(standing) == {"measured", "on_the_way", "indeterminate", "unpriced", "quarantined"}
    assert standing["indeterminate"] == {"USD": 9_000_000_000}
    assert standing["on_the_way"] == {"CNY": 9_000_000_000}
    assert standing["unpriced"] == 1


async def test_an_issued_invoice_is_handed_out_byte_for_byte(client, world):
    heads = (await client.get("/v1/issued?tenant=acme")).json()["invoices"]
    assert [head["id"] for head in heads] == ["acme-000001"]
    answer = await client.get("/v1/issued/1?tenant=acme")
    assert answer.content == encode_invoice(world.invoices.invoice("acme", 1))
    assert decode_invoice(answer.content).period == "2026-10"
    assert (await client.get("/v1/issued/2?tenant=acme")).status_code == 400
    month = (await client.get("/v1/invoices/2026-10?tenant=acme")).json()
    assert (month["issued"], month["id"]) == (True, "acme-000001")


async def test_d10_the_capture_rate_is_told_day_by_day(client):
    [day] = (await client.get("/v1/capture?tenant=acme&period=2026-11")).json()["days"]
    assert (day["day"], day["rate_bp"], day["alarm"]) == ("2026-11-16", 0, True)


async def test_value_is_told_by_account_and_worked_out_anew_when_entries_come(client, world):
    [row] = (await client.get("/v1/value?tenant=acme&period=2026-11")).json()["value"]
    assert row["account"] == {
        "department": "assembly",
        "application": "vision",
        "function": "solder",
    }
    assert row["defects_caught"] == 1
    assert row["per_defect_pico"] == row["cost_pico"]
    world.node().write(
        Outcome(
            escalation_id="part-1",
            centre=SOLDER,
            ruled="DEFECTIVE",
            truth="GOOD",
            node_alone="ACCEPT",
            source="customer",
        ),
        at_us=at("2026-11-18T00"),
    )
    world.send()
    [row] = (await client.get("/v1/value?tenant=acme&period=2026-11")).json()["value"]
    assert (row["defects_caught"], row["false_rejects_made"]) == (0, 1)


@pytest.mark.parametrize(
    ("route", "status", "words"),
    [
        ("/finance?tenant=nobody", 404, "no entries of tenant nobody"),
        ("/v1/usage?tenant=acme&period=nov", 400, "is no month"),
        ("/v1/usage", 400, "tenant"),
        ("/v1/issued/x?tenant=acme", 400, "number"),
    ],
)
async def test_wrong_questions_are_answered_in_one_line(client, route, status, words):
    answer = await client.get(route)
    assert answer.status_code == status
    assert words in answer.json()["detail"]


async def test_other_months_are_one_step_away_and_closed_ones_say_so(client):
    for period, words in (
        ("2026-10", "issued"),
        ("2026-09", "2026-09 is closed"),
        ("2026-12", "Nothing was measured in this month."),
    ):
        answer = await client.get(f"/finance?tenant=acme&period={period}")
        assert answer.status_code == 200
        assert words in answer.text


async def test_an_empty_server_has_a_page_too(tmp_path):
    world = PaperWorld(f"sqlite:///{tmp_path}/empty.db")
    async with client_of(world) as client:
        assert "No node has reported yet." in (await client.get("/finance")).text
    world.close()


def test_an_attempt_counts_once_however_many_classes_its_tokens_have(world):
    invoice = world.draft(currency=None)
    assert [one.attempts for one in spent_by_account(invoice.lines)] == [1, 1]
