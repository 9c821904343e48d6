"""The panel over HTTP and WebSocket: what it says, whom it answers, what it never makes up."""

import csv
import json
import math
from dataclasses import replace
from datetime import timedelta
from urllib.parse import quote

import cv2
import httpx2
import numpy as np
import pytest
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from qcnode.books.budgets import Budget
from qcnode.domain import Box, Counts, Decider, Disposition, Limits, Prediction, Verdict
from qcnode.panel import books, pictures, view
from qcnode.panel.access import Role
from qcnode.panel.guard import BODY_BYTES_MAX, COOKIE
from qcnode.panel.words import languages
from qcnode.policy import judge
from tests.node.panel_fakes import DAY, LIMITS, FakeNode, budget_state, served

ORIGIN = {"origin": "http://127.0.0.1"}
ENGLISH = languages()["en"]
DOUBTFUL = 5.0
WAIT_S = 20


@pytest.fixture
def node():
    return FakeNode()


@pytest.fixture
def client(node):
    with open_client(node) as client:
        yield client


def open_client(node, *, role=Role.ADMIN, **settings):
    """Open the panel as somebody who is signed in."""
    client = TestClient(node.panel(**settings), base_url="http://127.0.0.1", follow_redirects=False)
    client.cookies.set(COOKIE, node.session(role))
    return client


def stream(url, *, cookie=None, **settings):
    settings = {"origin": url} | settings
    if cookie is not None:
        settings["additional_headers"] = {"cookie": f"{COOKIE}={cookie}"}
    return connect(url.replace("http", "ws") + "/ws", compression=None, **settings)


@pytest.fixture
def url(node, free_port):
    """Serve the panel as the node does."""
    with served(node.panel(), free_port()) as url:
        yield url


def press(client, escalation_id, finding="good", *, key="0123456789abcdef", **headers):
    return client.post(
        f"/api/v1/escalations/{quote(escalation_id)}/ruling",
        json={"finding": finding},
        headers=ORIGIN | {"idempotency-key": key} | headers,
    )


# -- who may ask ---------------------------------------------------------------


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "", "[::1"])
def test_a_foreign_host_name_is_refused(client, host):
    assert client.get("/api/v1/state", headers={"host": host}).status_code == 400


def test_a_host_name_from_the_settings_is_known_with_any_port(node):
    with open_client(node, hosts=("panel.works",)) as client:
        assert client.get("/livez", headers={"host": "Panel.Works:8443"}).status_code == 200


@pytest.mark.parametrize(
    "headers", [{}, {"origin": "http://evil.example"}, {"origin": "http://127.0.0.1:81"}]
)
def test_a_ruling_from_another_page_is_refused(node, client, headers):
    escalation_id = f"e-{node.pass_part(DOUBTFUL).id}"
    answer = client.post(
        f"/api/v1/escalations/{escalation_id}/ruling",
        json={"finding": "good"},
        headers={"idempotency-key": "0123456789abcdef", **headers},
    )
    assert (answer.status_code, node.desk.calls) == (403, 0)


@pytest.mark.parametrize("origin", [None, "http://evil.example", "null"])
def test_the_live_stream_is_refused_to_other_pages(url, origin):
    with pytest.raises(InvalidStatus, match="403"), stream(url, origin=origin):
        pass


def test_a_ruling_that_is_not_json_is_refused(client):
    answer = client.post(
        "/api/v1/escalations/e-1/ruling",
        content='{"finding": "good"}',
        headers=ORIGIN | {"content-type": "text/plain"},
    )
    assert answer.status_code == 415


def test_a_body_that_is_too_large_is_refused_however_it_comes(node, client):
    large = b"[" + b" " * BODY_BYTES_MAX + b"]"
    headers = ORIGIN | {"content-type": "application/json", "idempotency-key": "0" * 16}
    url = "/api/v1/escalations/e-1/ruling"
    assert client.post(url, content=large, headers=headers).status_code == 413
    assert client.post(url, content=iter([large]), headers=headers).status_code >= 400
    assert node.desk.calls == 0


@pytest.mark.parametrize("path", ["/", "/static/main.js", "/api/v1/state", "/livez", "/nowhere"])
def test_every_answer_forbids_what_the_panel_does_not_need(client, path):
    headers = client.get(path).headers
    policy = headers["content-security-policy"]
    assert policy.startswith("default-src 'self';")
    assert "require-trusted-types-for 'script'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "same-origin"


def test_a_refusal_carries_the_same_headers(client):
    refused = client.get("/", headers={"host": "evil.example"})
    assert "default-src 'self'" in refused.headers["content-security-policy"]


@pytest.mark.parametrize("path", ["/docs", "/redoc", "/openapi.json"])
def test_the_interface_describes_itself_to_nobody(client, path):
    assert client.get(path).status_code == 404


# -- rulings -------------------------------------------------------------------


def test_a_person_settles_a_part_and_is_told(node, client):
    escalation_id = f"e-{node.pass_part(DOUBTFUL).id}"
    answer = press(client, escalation_id, "defective")
    assert answer.status_code == 200
    assert answer.json()["disposition"] == "SCRAP"
    assert "reject part, scrap" in answer.json()["words"]
    (ruling,) = node.desk.rulings
    assert ruling.who == "the admin@testclient"
    assert client.get("/api/v1/escalations").json()["total"] == 0


def test_the_same_press_counts_once_and_is_answered_the_same(node, client):
    escalation_id = f"e-{node.pass_part(DOUBTFUL).id}"
    first, second = (press(client, escalation_id) for _ in range(2))
    assert first.json() == second.json()
    assert node.desk.calls == 1


def test_a_second_decision_on_a_part_is_told_that_somebody_was_first(node, client):
    escalation_id = f"e-{node.pass_part(DOUBTFUL).id}"
    first = press(client, escalation_id, "good", key="the first press of two")
    second = press(client, escalation_id, "defective", key="the other press of two")
    assert (first.status_code, second.status_code) == (200, 409)
    assert "has been ruled on" in second.json()["detail"]
    assert len(node.desk.rulings) == 1


def test_one_key_cannot_mean_two_things(node, client):
    escalation_id = f"e-{node.pass_part(DOUBTFUL).id}"
    press(client, escalation_id, "good")
    assert press(client, escalation_id, "defective").status_code == 422


def test_a_ruling_that_could_not_be_put_on_record_can_be_pressed_again(node, client):
    escalation_id = f"e-{node.pass_part(DOUBTFUL).id}"
    node.desk.broken = True
    refused = press(client, escalation_id)
    assert (refused.status_code, refused.json()["detail"]) == (503, "journal.db: disk full")
    node.desk.broken = False
    assert press(client, escalation_id).status_code == 200


def test_not_sure_is_noted_and_the_part_goes_on_waiting(node, client):
    escalation_id = f"e-{node.pass_part(DOUBTFUL).id}"
    answer = press(client, escalation_id, "unsure").json()
    assert (answer["binding"], answer["disposition"]) == (False, None)
    (part,) = client.get("/api/v1/escalations").json()["parts"]
    assert part["proposal"]["word"] == "Not sure"
    assert not part["proposal"]["awaits"]


@pytest.mark.parametrize("said", [{}, {"finding": "maybe"}, {"finding": "good", "who": "boss"}])
def test_a_ruling_that_says_too_little_or_too_much_is_refused(node, client, said):
    escalation_id = f"e-{node.pass_part(DOUBTFUL).id}"
    answer = client.post(
        f"/api/v1/escalations/{escalation_id}/ruling",
        json=said,
        headers=ORIGIN | {"idempotency-key": "0" * 16},
    )
    assert (answer.status_code, node.desk.calls) == (422, 0)


def test_waiting_parts_come_oldest_first_with_the_proposal_marked(node, client):
    first = node.pass_part(DOUBTFUL)
    node.at += timedelta(seconds=75)
    node.pass_part(DOUBTFUL)
    node.desk.open = dict(reversed(node.desk.open.items()))
    node.propose(f"e-{first.id}")
    told = client.get("/api/v1/escalations").json()
    assert [part["part_id"] for part in told["parts"]] == ["P0000001", "P0000002"]
    assert told["oldest"] == "1 min 15 s"
    proposal = told["parts"][0]["proposal"]
    assert (proposal["awaits"], proposal["by"]) == (True, "scripted provider")


def test_an_audit_says_that_the_model_would_pass_the_part(node, client):
    inspection = node.pass_part(DOUBTFUL)
    waiting = node.desk.open[f"e-{inspection.id}"]
    waiting.escalation = replace(waiting.escalation, audit=True)
    (part,) = client.get("/api/v1/escalations").json()["parts"]
    assert part["reason"].startswith("Audit: the model would pass this part.")


def test_parts_with_the_agent_come_last_and_not_before_it_had_time(node, client):
    young, old, other = (node.pass_part(DOUBTFUL) for _ in range(3))
    for inspection in (young, old):
        node.desk.open[f"e-{inspection.id}"].with_agent = True
    node.desk.open[f"e-{old.id}"].escalation = replace(
        node.desk.open[f"e-{old.id}"].escalation, opened_at=node.at - timedelta(seconds=2)
    )
    parts = client.get("/api/v1/escalations").json()["parts"]
    assert [(part["part_id"], part["ready"]) for part in parts] == [
        (other.part_id, True),
        (old.part_id, True),
        (young.part_id, False),
    ]


def test_every_waiting_part_is_named_though_few_are_shown(node, client):
    ids = [f"e-{node.pass_part(DOUBTFUL).id}" for _ in range(view.WAITING_SHOWN_MAX + 2)]
    told = client.get("/api/v1/escalations").json()
    assert told["total"] == len(ids)
    assert {part["id"] for part in told["parts"]} | set(told["more"]) == set(ids)
    assert len(told["parts"]) == view.WAITING_SHOWN_MAX


def test_the_list_says_what_there_is_to_see_of_a_part(node, client):
    seen, cold, blind, boxed = (
        node.pass_part(DOUBTFUL),
        node.pass_part(DOUBTFUL),
        node.pass_blind(),
        node.pass_part(DOUBTFUL),
    )
    del node.journal.heats[cold.id]
    waiting = node.desk.open[f"e-{boxed.id}"]
    waiting.escalation = replace(waiting.escalation, box=Box(left=0, top=0, width=9, height=9))
    told = {
        part["part_id"]: (part["picture"], part["heat"])
        for part in client.get("/api/v1/escalations").json()["parts"]
    }
    assert told == {
        seen.part_id: (True, True),
        cold.part_id: (True, False),
        blind.part_id: (False, False),
        boxed.part_id: (True, True),
    }


def test_while_the_disk_hangs_parts_wait_and_nobody_knows_what_is_kept(node, client, monkeypatch):
    monkeypatch.setattr(books, "ANSWER_MAX_S", 0.01)
    node.journal.stuck.clear()
    node.pass_part(DOUBTFUL)
    try:
        (part,) = client.get("/api/v1/escalations").json()["parts"]
    finally:
        node.journal.stuck.set()
    assert (part["picture"], part["heat"]) == (None, None)


@pytest.mark.parametrize(
    ("on_timeout", "words"), [(None, "Goes the safe way in"), ("REWORK", "Becomes REWORK in")]
)
def test_a_waiting_part_says_what_becomes_of_it_when_nobody_rules(node, on_timeout, words):
    node.about = replace(node.about, on_timeout=on_timeout)
    node.pass_part(DOUBTFUL)
    with open_client(node) as client:
        (part,) = client.get("/api/v1/escalations").json()["parts"]
    assert part["expires"] == f"{words} 15 min 00 s"


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"by": Decider.AGENT}, "settled by the agent (scripted provider), scrap"),
        ({"by": Decider.OPERATOR, "who": "operator@bench"}, "settled by operator@bench, scrap"),
        (
            {"by": Decider.TIMEOUT, "disposition": Disposition.REWORK},
            "nobody ruled in time, rework",
        ),
    ],
)
def test_whoever_settled_a_part_is_named(node, client, said, words):
    inspection = node.pass_part(DOUBTFUL)
    client.get("/api/v1/state")
    node.settle_elsewhere(inspection, **said)
    state = client.get("/api/v1/state").json()
    assert state["waiting"]["total"] == 0
    assert state["settled"] == {f"e-{inspection.id}": f"{inspection.part_id}: {words}"}


def test_only_the_last_settled_parts_are_remembered(node, client, monkeypatch):
    monkeypatch.setattr(books, "SETTLED_MAX", 2)
    monkeypatch.setattr(books, "NEWS_MAX", 3)
    client.get("/api/v1/state")
    inspections = [node.pass_part(DOUBTFUL) for _ in range(5)]
    for inspection in inspections[:4]:
        node.settle_elsewhere(inspection)
    assert list(client.get("/api/v1/state").json()["settled"]) == ["e-i2", "e-i3"]
    # One look took in as much as it may, and what was left then is old by now.
    node.settle_elsewhere(inspections[4])
    assert list(client.get("/api/v1/state").json()["settled"]) == ["e-i3", "e-i5"]


# -- pictures of waiting parts -------------------------------------------------


def test_a_waiting_part_comes_with_picture_heat_and_the_box_of_its_evidence(node, client):
    inspection = node.pass_part(DOUBTFUL)
    picture = client.get(f"/img/escalations/e-{inspection.id}.jpg")
    heat = client.get(f"/img/escalations/e-{inspection.id}/heat.png")
    assert picture.headers["content-type"] == "image/jpeg"
    assert picture.content == node.journal.pictures[inspection.id]
    assert heat.content == node.journal.heats[inspection.id]
    left, top, width, height = (int(value) for value in picture.headers["qcnode-box"].split(","))
    # The hot cell of part 1 is the second of 16 columns, in the lowest of 16 rows.
    assert left <= 1.5 * 320 / 16 <= left + width
    assert top <= 15.5 * 240 / 16 <= top + height


def test_a_kept_png_is_sent_as_the_jpeg_its_address_says(node, client):
    inspection = node.pass_part(DOUBTFUL)
    jpeg = np.frombuffer(node.journal.pictures[inspection.id], np.uint8)
    png = cv2.imencode(".png", cv2.imdecode(jpeg, cv2.IMREAD_COLOR))[1].tobytes()
    node.journal.pictures[inspection.id] = png
    assert client.get(f"/img/escalations/e-{inspection.id}.jpg").content.startswith(b"\xff\xd8")


@pytest.mark.parametrize("kept", [None, b"", b"no picture at all"])
def test_a_picture_that_is_not_kept_or_not_readable_is_said_to_be_missing(node, client, kept):
    inspection = node.pass_part(DOUBTFUL)
    if kept is None:
        del node.journal.pictures[inspection.id]
    else:
        node.journal.pictures[inspection.id] = kept
    answer = client.get(f"/img/escalations/e-{inspection.id}.jpg")
    assert (answer.status_code, answer.json()["detail"]) == (404, "no picture of this part is kept")


@pytest.mark.parametrize("name", ["e-none", "..%2f..%2fetc%2fpasswd", "%00"])
def test_only_waiting_parts_have_pictures(client, name):
    assert client.get(f"/img/escalations/{name}.jpg").status_code == 404
    assert client.get(f"/img/escalations/{name}/heat.png").status_code == 404


# -- service routes ------------------------------------------------------------


def test_ready_asks_for_what_judging_needs_and_not_for_the_cloud(node, client):
    node.health.report("billing", ok=False, words="broker unreachable")
    assert client.get("/readyz").status_code == 200
    node.health.report("camera", ok=False, words="no picture within 100 ms", needed=True)
    answer = client.get("/readyz")
    assert answer.status_code == 503
    assert {"component": "camera", "ok": False}.items() <= answer.json()["components"][1].items()
    assert client.get("/livez").status_code == 200


def test_metrics_are_what_the_books_say_at_the_scrape(node, client):
    node.pass_part(DOUBTFUL)
    node.pass_part(1.0)
    told = {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(client.get("/metrics").text)
        for sample in family.samples
    }
    expected = {
        ("qcnode_parts_total", "OK"): 1,
        ("qcnode_parts_total", "NOT_DECIDABLE"): 1,
        ("qcnode_escalations_waiting",): 1,
        ("qcnode_cost_pico_total", "USD"): 18_734_550_000,
        ("qcnode_held_pico", "USD"): 2_250_000_000,
        ("qcnode_attempts", "indeterminate"): 2,
        ("qcnode_ledger_unconfirmed_entries",): 6,
        ("qcnode_component_ok", "camera", "true"): 1,
        ("qcnode_ready",): 1,
        ("qcnode_budget_limit", "day", "USD", "day"): 5_000_000_000_000,
        ("qcnode_budget_used", "day", "USD", "day"): 20_984_550_000,
        ("qcnode_budget_held", "day", "USD", "day"): 2_250_000_000,
        ("qcnode_budget_left", "day", "USD", "day"): 4_979_015_450_000,
        # A quarter of the day is over.
        ("qcnode_budget_forecast", "day", "USD", "day"): 4 * 20_984_550_000,
        ("qcnode_budget_alarm", "exhausted", "day"): 0,
    }
    assert expected.items() <= told.items()


def test_metrics_leave_out_what_cannot_be_read(node, client):
    node.ledger.broken = True
    text = client.get("/metrics").text
    assert 'qcnode_source_up{source="ledger"} 0.0' in text
    assert "qcnode_cost_pico" not in text
    assert "qcnode_budget" not in text
    node.ledger.broken, node.ledger.states = False, []
    assert "qcnode_budget" not in client.get("/metrics").text
    node.ledger.states = [budget_state(used=0, held=0, calls=0)]
    text = client.get("/metrics").text
    assert 'qcnode_budget_used{budget="day",unit="USD",window="day"} 0.0' in text
    assert "qcnode_budget_forecast{" not in text


# -- what is shown -------------------------------------------------------------


def test_what_cannot_be_read_is_unknown_and_never_zero(node, client):
    node.journal.broken = node.ledger.broken = True
    state = client.get("/api/v1/state").json()
    assert state["counters"] is None
    assert state["strip"] is None
    assert not state["money"]["known"]
    assert "rows" not in state["money"]


def test_a_disk_that_hangs_leaves_dashes_and_the_rest_goes_on(node, client, monkeypatch):
    monkeypatch.setattr(books, "ANSWER_MAX_S", 0.01)
    node.journal.stuck.clear()
    state = client.get("/api/v1/state").json()
    assert (state["counters"], state["money"]["known"]) == (None, False)
    assert state["health"]["rows"]
    node.journal.stuck.set()
    monkeypatch.setattr(books, "ANSWER_MAX_S", 10)
    assert client.get("/api/v1/state").json()["counters"]["parts"] == "0"


def test_measured_held_and_unpriced_money_stand_side_by_side(node, client):
    node.ledger.sums = replace(
        node.ledger.sums, cost_pico={"CNY": 7, "USD": 1_500_000}, held_pico={"USD": 999}
    )
    money = client.get("/api/v1/state").json()["money"]
    assert money["rows"] == [
        {
            "currency": "CNY",
            "measured": "< 0.000001",
            "measured_pico": "7",
            "held": "0.000000",
            "held_pico": "0",
        },
        {
            "currency": "USD",
            "measured": "0.000002",
            "measured_pico": "1500000",
            "held": "< 0.000001",
            "held_pico": "999",
        },
    ]
    assert money["unpriced_words"] == "1 attempt"
    assert money["unconfirmed_words"] == "6 of 64"


def budgets_of(client):
    return client.get("/api/v1/state").json()["money"]["budgets"]


def test_a_budget_says_what_is_used_held_left_and_where_the_day_will_end(client):
    (shown,) = budgets_of(client)["shown"]

    assert (shown["name"], shown["window"], shown["alarm"]) == ("day", "this day", None)
    assert shown["used"] == "0.0210 of 5.00 USD"
    assert shown["held"] == "0.00225"
    assert shown["forecast"] == "ends at 0.0839 (0.0625 to 0.105)"
    assert shown["used_up"] is None
    assert shown["bar"]["held"] == round(20_984_550_000 / (5 * 10**12), 4)
    assert shown["bar"]["spent"] < shown["bar"]["held"] < shown["bar"]["expected"]


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"used": 3 * 10**12, "calls": 300}, ("will not last", False, "10:00")),
        (
            {"used": 4_100_000_000_000, "calls": 9, "hour": 23},
            ("over 80 % used", False, None),
        ),
        ({"used": 5 * 10**12, "calls": 300, "hour": 23}, ("used up", True, "23:00")),
        (
            {"used": 0, "held": 0, "calls": 0, "limit": 0, "lent": False},
            ("nothing is lent", True, None),
        ),
    ],
)
def test_what_is_wrong_with_a_budget_is_said_in_words(node, client, how, said):
    node.ledger.states = [budget_state(**how)]

    (shown,) = budgets_of(client)["shown"]

    assert (shown["alarm"], shown["bad"], shown["used_up"]) == said
    assert (shown["used"] == "\N{EM DASH}") == (said[0] == "nothing is lent")


def test_budgets_with_an_alarm_come_first_and_the_rest_are_counted(node, client):
    calm = [replace(DAY, name=f"calm-{number}") for number in range(view.BUDGETS_SHOWN_MAX)]
    node.ledger.states = [
        *map(budget_state, calm),
        budget_state(replace(DAY, name="gone"), used=DAY.limit),
    ]

    told = budgets_of(client)

    assert told["shown"][0]["name"] == "gone"
    assert told["more"] == 1


@pytest.mark.parametrize(
    ("unit", "used", "words"),
    [
        (
            "tokens",
            12_345,
            "12\N{NARROW NO-BREAK SPACE}345 of 50\N{NARROW NO-BREAK SPACE}000 tokens",
        ),
        ("calls", 7, "7 of 50\N{NARROW NO-BREAK SPACE}000 calls"),
    ],
)
def test_tokens_and_calls_are_written_in_full(node, client, unit, used, words):
    budget = Budget(name="b", limit=50_000, unit=unit)
    node.ledger.states = [budget_state(budget, used=used, held=0)]

    assert budgets_of(client)["shown"][0]["used"] == words


@pytest.mark.parametrize(
    ("pico", "words"),
    [
        (0, "0.00"),
        (1, "< 0.000001"),
        (2_250_000_000, "0.00225"),
        (20_984_550_000, "0.0210"),
        (999_999_999_999, "1.000"),
        (10**12, "1.00"),
        (1_234_567_890_000_000, "1\N{NARROW NO-BREAK SPACE}234.57"),
        (-20_984_550_000, "\N{MINUS SIGN}0.0210"),
    ],
)
def test_money_of_budgets_is_written_to_about_three_figures(pico, words):
    assert view.quantity(pico, DAY) == words


def test_spending_is_told_to_other_programs_exactly(client):
    told = client.get("/api/v1/spend").json()

    assert told["cost_pico"] == {"USD": "18734550000"}
    assert told["tokens"] == {"input": 41_812, "output": 2_377}
    (budget,) = told["budgets"]
    assert (budget["limit"], budget["used"], budget["held"]) == (
        "5000000000000",
        "20984550000",
        "2250000000",
    )
    assert budget["from"] == "2026-11-22T00:00:00+00:00"
    assert budget["forecast"]["forecast"] == str(4 * 20_984_550_000)

    rows = list(csv.DictReader(client.get("/api/v1/spend.csv").text.splitlines()))
    assert [(row["name"], row["used"], row["forecast"]) for row in rows] == [
        ("day", "20984550000", str(4 * 20_984_550_000))
    ]


def test_spending_that_cannot_be_read_is_an_error_and_not_nothing(node, client):
    node.ledger.broken = True

    assert client.get("/api/v1/spend").status_code == 503
    assert client.get("/api/v1/spend.csv").status_code == 503


def test_what_a_part_proved_to_be_is_put_on_record(node, client):
    inspection = node.pass_part(DOUBTFUL)
    url = f"/api/v1/escalations/e-{inspection.id}/truth"
    said = {"truth": "defective", "source": "returned by the customer"}
    assert client.post(url, json=said, headers=ORIGIN).status_code == 409

    press(client, f"e-{inspection.id}", "good")
    answer = client.post(url, json=said, headers=ORIGIN)

    assert answer.status_code == 201
    assert answer.json()["truth"] == "DEFECTIVE"
    (outcome,) = node.desk.outcomes
    assert (outcome.ruled, outcome.source) == ("GOOD", "returned by the customer")
    assert client.post(url, json=said).status_code == 403  # from another page


@pytest.mark.parametrize(
    "said",
    [{}, {"truth": "unsure", "source": "x"}, {"truth": "good"}, {"truth": "good", "source": ""}],
)
def test_a_truth_that_says_too_little_is_refused(node, client, said):
    answer = client.post("/api/v1/escalations/e-i1/truth", json=said, headers=ORIGIN)

    assert (answer.status_code, node.desk.outcomes) == (422, [])


def test_the_scripted_provider_is_named_wherever_it_appears_and_once(node, client):
    node.health.report("provider", ok=True, words="scripted answers, p95 1.2 s")
    node.propose(f"e-{node.pass_part(DOUBTFUL).id}")
    state = client.get("/api/v1/state").json()
    rows = {row["component"]: row for row in state["health"]["rows"]}
    assert state["money"]["scripted"] == "scripted provider"
    assert state["about"]["scripted"] == "scripted provider"
    assert rows["provider"]["note"] == "scripted provider"
    assert rows["provider"]["words"] == "answers, p95 1.2 s"
    assert state["waiting"]["parts"][0]["proposal"]["by"] == "scripted provider"


def test_a_component_that_never_spoke_is_shown_as_silent(node):
    node.health = type(node.health)(now=node.now)
    node.health.report("camera", ok=True, words="delivers pictures", needed=True)
    with open_client(node) as client:
        rows = client.get("/api/v1/state").json()["health"]["rows"]
    assert [row["state"] for row in rows] == ["well"] + ["silent"] * 6


@pytest.mark.parametrize(
    ("pico", "words"),
    [
        (0, "0.000000"),
        (1, "< 0.000001"),
        (499_999, "< 0.000001"),
        (500_000, "0.000001"),
        (1_500_000, "0.000002"),
        (10**12, "1.000000"),
        (123_456_789_012_345_678_901, "123456789.012346"),
        (-2_000_000, "\N{MINUS SIGN}0.000002"),
    ],
)
def test_money_is_written_from_whole_numbers(pico, words):
    assert view.amount(pico) == words


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (-3, "0.0 s"),
        (9.94, "9.9 s"),
        (59.9, "59 s"),
        (61, "1 min 01 s"),
        (7_260, "2 h 01 min"),
        (200_000, "2 days"),
    ],
)
def test_a_span_is_said_as_people_say_it(seconds, words):
    assert view.age(ENGLISH, timedelta(seconds=seconds)) == words


scores = st.floats(-1e6, 1e6)


@given(score=scores, accept=st.none() | scores, reject=st.none() | scores)
def test_the_scale_puts_a_score_where_the_verdict_is(score, accept, reject):
    limits = Limits(accept_below=accept, reject_from=reject)
    scale = view.scale(score, limits)
    low = 0.0 if scale["accept"] is None else scale["accept"]["at"]
    high = 1.0 if scale["reject"] is None else scale["reject"]["at"]
    verdict = judge(Prediction(score=score, model="m"), limits)
    if verdict is Verdict.OK:
        assert 0 <= scale["at"] <= low
    elif verdict is Verdict.NOT_OK:
        assert high <= scale["at"] <= 1
    else:
        assert low <= scale["at"] <= high


def test_counters_name_every_count_there_is():
    assert set(view.counters(Counts())) == set(Counts.__dataclass_fields__)


# -- the live stream -----------------------------------------------------------


class Tab:
    """A browser tab, as the server hears it."""

    def __init__(self, socket):
        self._socket = socket
        self.sections = {}

    def say(self, **message):
        self._socket.send(json.dumps(message))

    def next(self):
        """Return the next picture's header, or None after a message of state."""
        message = self._socket.recv(timeout=WAIT_S)
        if isinstance(message, str):
            self.sections |= json.loads(message)["sections"]
            return None
        return unpack(message)[0]

    def picture(self):
        while (header := self.next()) is None:
            pass
        return header

    def until(self, wanted):
        """Read until the state is as wanted, and return the pictures that came before."""
        seen = []
        while not wanted(self.sections):
            if (header := self.next()) is not None:
                seen.append(header)
        return seen


@pytest.fixture
def tab(node, url):
    with stream(url, cookie=node.session(Role.ADMIN)) as socket:
        yield Tab(socket)


def unpack(message):
    head, warm = (int.from_bytes(message[at : at + 4], "little") for at in (0, 4))
    header = json.loads(message[8 : 8 + head])
    return header, message[8 + head : 8 + head + warm], message[8 + head + warm :]


def consume(socket):
    while True:
        socket.recv(timeout=WAIT_S)


def parts_are(count):
    return lambda sections: (sections.get("counters") or {}).get("parts") == str(count)


def test_one_message_holds_picture_heat_and_words_of_the_same_part(node, url):
    node.pass_part(9.0)
    with stream(url) as socket:
        socket.send('{"type": "shown", "visible": true}')
        while isinstance(message := socket.recv(timeout=WAIT_S), str):
            pass
    header, heat, jpeg = unpack(message)
    assert header["part"]["verdict"] == {"kind": "not_ok", "word": "NOT OK"}
    assert header["part"]["scale"]["score"] == "9.00"
    grey = np.frombuffer(heat, np.uint8).reshape(header["heat"]["height"], header["heat"]["width"])
    assert np.unravel_index(grey.argmax(), grey.shape) == (15, 1)
    assert cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR).shape == (240, 320, 3)


def test_a_tab_that_paints_nothing_is_sent_two_pictures_and_then_the_newest(node, tab):
    tab.say(type="shown", visible=True)
    for number in (1, 2):
        node.pass_part()
        assert tab.picture()["part"]["number"] == number
    node.pass_part()
    assert tab.until(parts_are(3)) == []
    node.pass_part()
    assert tab.until(parts_are(4)) == []
    tab.say(type="painted", seq=1)
    assert tab.picture()["part"]["number"] == 4


def test_a_hidden_tab_gets_figures_and_no_pictures(node, tab):
    node.pass_part()
    assert tab.until(parts_are(1)) == []
    tab.say(type="shown", visible=True)
    assert tab.picture()["part"]["number"] == 1
    tab.say(type="painted", seq=1)
    tab.say(type="shown", visible=False)
    node.pass_part()
    assert tab.until(parts_are(2)) == []


def test_a_part_without_a_picture_says_so_and_why(node, tab):
    node.pass_blind("no picture within 100 ms")
    tab.say(type="shown", visible=True)
    header = tab.picture()
    assert (header["picture"], header["heat"]) == (False, None)
    assert header["part"]["verdict"]["word"] == "UNDEFINED"
    assert header["part"]["reason"] == "no picture within 100 ms"
    assert header["part"]["scale"]["score"] is None


def test_only_what_changed_is_sent_again(node, tab):
    tab.until(lambda sections: "health" in sections)
    tab.sections.clear()
    node.pass_part()
    tab.until(parts_are(1))
    assert "counters" in tab.sections
    assert not {"health", "about", "money"} & set(tab.sections)


def test_a_ruling_is_seen_by_every_tab(node, url, tab):
    escalation_id = f"e-{node.pass_part(DOUBTFUL).id}"
    tab.until(lambda sections: sections.get("waiting", {}).get("total") == 1)
    cookies = {COOKIE: node.session(name="Ana")}
    with httpx2.Client(base_url=url, cookies=cookies) as client:
        press(client, escalation_id, origin=url)
    tab.until(lambda sections: sections["waiting"]["total"] == 0)


@pytest.mark.parametrize(
    "garbage",
    ["", "[]", "{}", '{"type": "painted"}', '{"type": "painted", "seq": "x"}', "[" * 3000],
)
def test_a_tab_that_talks_nonsense_is_cut_off(url, garbage):
    with stream(url) as socket:
        socket.send(garbage)
        with pytest.raises(ConnectionClosed, match="1008"):
            consume(socket)


def test_a_wide_picture_is_sent_smaller_and_a_strange_heat_map_does_no_harm():
    pixels = np.zeros((1200, 2400, 3), np.uint8)
    heat = np.full((600, 1200), math.nan, np.float32)
    heat[0, 0] = math.inf
    message = pictures.pack(
        {},
        pixels=pixels,
        prediction=Prediction(score=1.0, model="m", heat=heat),
        limits=LIMITS,
    )
    header, grey, jpeg = unpack(message)
    assert header["heat"] == {"width": 256, "height": 128}
    assert set(grey) == {0}
    assert cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR).shape[:2] == (480, 960)


def test_a_live_stream_that_dies_is_put_on_the_health_board(node, free_port):
    with (
        served(node.panel(station_live=object), free_port()) as url,
        stream(url) as socket,
        httpx2.Client(base_url=url) as client,
    ):
        socket.send('{"type": "shown", "visible": true}')
        while not (told := [one for one in node.health.all() if one.component == "panel"]):
            client.get("/livez")
    assert not told[0].ok
