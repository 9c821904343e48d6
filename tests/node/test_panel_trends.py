"""Trends: the sums are those of the journal, and the limits those a person froze."""

import csv
import io
from datetime import UTC, datetime, timedelta

import pytest
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as st

from qcnode.books.trends import KEEP, TrendReader
from qcnode.domain import (
    CertificateChange,
    Finding,
    Verdict,
)
from qcnode.panel.access import Role
from qcnode.panel.guard import COOKIE
from qcnode.panel.trends import p_limits
from tests.node.panel_fakes import FakeNode, served
from tests.node.panel_past import ACTIONS, Past

NOW = datetime(2026, 11, 22, 12, 7, tzinfo=UTC)


@pytest.fixture
def history(tmp_path):
    history = Past(tmp_path / "journal.db", NOW)
    yield history
    history.journal.close()


def total(trends, name):
    return sum(getattr(one, name) for one in trends.buckets.values())


def test_the_sums_are_those_of_the_journal(history):
    for minutes in range(0, 180, 3):
        history.part(Verdict.OK, timedelta(minutes=minutes))
    for verdict in (Verdict.NOT_OK, Verdict.NOT_DECIDABLE, Verdict.UNDEFINED):
        history.part(verdict, timedelta(minutes=5))
    history.fault(timedelta(minutes=4))

    trends = TrendReader(history.path).read(NOW)

    sums = {name: total(trends, name) for name in ("parts", "accepted", "rejected", "asked")}
    assert sums == {"parts": 64, "accepted": 60, "rejected": 1, "asked": 1}
    assert (total(trends, "blind"), total(trends, "faults")) == (1, 1)


def test_a_second_look_reads_only_what_is_new_and_says_the_same_as_one_look(history):
    reader = TrendReader(history.path)
    for number in range(30):
        one = history.part(Verdict.NOT_DECIDABLE, timedelta(minutes=30 - number))
        history.ruled(
            one,
            timedelta(minutes=30 - number),
            agent=Finding.GOOD if number % 3 else Finding.DEFECTIVE,
            person=Finding.DEFECTIVE,
            took=timedelta(seconds=number),
            defect="scratch" if number % 2 else "dent",
        )
        if number % 7 == 0:
            reader.read(NOW)
    assert reader.read(NOW).buckets == TrendReader(history.path).read(NOW).buckets
    assert reader.read(NOW).decisions_s == TrendReader(history.path).read(NOW).decisions_s


def test_what_people_found_is_set_beside_what_the_agent_had_said(history):
    for number, agent in enumerate((Finding.DEFECTIVE, Finding.DEFECTIVE, Finding.GOOD)):
        one = history.part(Verdict.NOT_DECIDABLE, timedelta(minutes=9 - number))
        history.ruled(
            one,
            timedelta(minutes=9 - number),
            agent=agent,
            person=Finding.DEFECTIVE,
            took=timedelta(seconds=12),
            defect="dent",
        )
    trends = TrendReader(history.path).read(NOW)
    assert (total(trends, "compared"), total(trends, "agreed")) == (3, 2)
    assert [round(seconds) for _, seconds in trends.decisions_s] == [12, 12, 12]
    assert {name for one in trends.buckets.values() for name in one.classes} == {"dent"}


def test_older_than_a_week_is_left_out_wherever_it_lies(history):
    for days in (30, 20, 10):
        for _ in range(40):
            history.part(Verdict.OK, timedelta(days=days))
    for _ in range(25):
        history.part(Verdict.OK, timedelta(hours=1))
    assert total(TrendReader(history.path).read(NOW), "parts") == 25
    assert timedelta(days=10) > KEEP


def test_another_model_and_a_lost_certificate_are_marked(history):
    for model, hours in (("one", 5), ("two", 4), ("two", 3), ("one", 2)):
        history.part(Verdict.OK, timedelta(hours=hours), model=model)
    history.add(
        CertificateChange(
            id="c1",
            model="one",
            valid=False,
            reason="lamp",
            who="drift",
            at=NOW - timedelta(hours=1),
        )
    )
    marks = TrendReader(history.path).read(NOW).marks
    assert [(mark.what, mark.name) for mark in marks] == [
        ("model", "two"),
        ("model", "one"),
        ("certificate.revoked", "one"),
    ]


@given(st.floats(0, 1), st.integers(1, 10**6))
def test_limits_hold_the_baseline_and_close_in_with_more_parts(share, parts):
    low, high = p_limits(share, parts)
    assert 0 <= low <= share <= high <= 1
    nearer, further = p_limits(share, 4 * parts)
    assert low <= nearer
    assert further <= high


@pytest.fixture
def asked(history):
    """A panel over that journal, with somebody who may freeze a baseline and somebody who not."""
    node = FakeNode()
    node.at = NOW
    with TestClient(node.panel(journal_file=history.path), base_url="http://127.0.0.1") as client:

        def ask(method, path, *, role=Role.SUPERVISOR, **said):
            client.cookies.clear()
            cookie = f"{COOKIE}={node.session(role)}"
            headers = {"cookie": cookie, "origin": "http://127.0.0.1"}
            return client.request(method, path, headers=headers, **said)

        yield ask


def test_a_stretch_outside_the_frozen_limits_is_a_point_outside(history, asked):
    for hour in range(1, 20):
        for number in range(100):
            verdict = Verdict.NOT_OK if number < 3 else Verdict.OK
            history.part(verdict, timedelta(hours=20 - hour))
    told = asked("GET", "/api/v1/trends/day").json()
    assert told["yield"]["centre"] is None, "no limits before anybody said what is normal"
    assert not any(point["out"] for point in told["yield"]["points"])

    assert asked("POST", "/api/v1/trends/baseline", json={"span": "day"}).status_code == 204
    for _ in range(100):
        history.part(Verdict.NOT_OK, timedelta(minutes=1))
    told = asked("GET", "/api/v1/trends/day").json()

    assert "97.0 % of 1900 parts" in told["baseline"]
    out = [point for point in told["yield"]["points"] if point["out"]]
    assert [point["at"] for point in out] == ["2026-11-22 12:00"]


def test_only_a_supervisor_freezes_a_baseline_and_it_goes_on_record(history, asked):
    for _ in range(50):
        history.part(Verdict.OK, timedelta(minutes=5))
    path, said = "/api/v1/trends/baseline", {"span": "shift"}
    assert asked("POST", path, role=Role.OPERATOR, json=said).status_code == 403
    assert asked("POST", path, json=said).status_code == 204
    rows = asked("GET", "/api/v1/audit", role=Role.AUDITOR).json()["rows"]
    frozen = [(row["who"], row["after"]) for row in rows if row["what"] == "trends.baseline"]
    assert frozen == [("the supervisor", "1.0000 of 50")]


def test_too_few_parts_are_no_baseline(history, asked):
    history.part(Verdict.OK, timedelta(minutes=5))
    answer = asked("POST", "/api/v1/trends/baseline", json={"span": "shift"})
    assert (answer.status_code, "too few" in answer.text) == (409, True)


def test_the_table_adds_up_to_the_figures(history, asked):
    for minutes in range(100):
        verdict = list(ACTIONS)[minutes % 4]
        history.part(verdict, timedelta(minutes=100 - minutes))
    rows = list(csv.DictReader(io.StringIO(asked("GET", "/api/v1/trends/shift/csv").text)))
    told = asked("GET", "/api/v1/trends/shift").json()
    assert sum(int(row["parts"]) for row in rows) == told["figures"]["parts"] == 100
    assert sum(int(row["accepted"]) for row in rows) == 25
    assert told["figures"]["asked"] == "25.0 %"


def test_the_page_draws_a_stretch_outside_as_another_shape_and_a_supervisor_freezes(
    history, free_port, page
):
    for hour in range(1, 12):
        for number in range(60):
            verdict = Verdict.NOT_OK if number == 7 or (hour == 3 and number < 30) else Verdict.OK
            history.part(verdict, timedelta(hours=12 - hour))
    node = FakeNode()
    node.at = NOW
    with served(node.panel(journal_file=history.path), free_port()) as url:
        cookie = {"name": COOKIE, "value": node.session(Role.SUPERVISOR), "url": url}
        page.context.add_cookies([cookie])
        page.goto(url + "/trends")
        page.wait_for_selector("qc-trends .p-chart circle")
        assert page.locator("qc-trends .out").count() == 0
        assert "No baseline yet" in page.inner_text("qc-trends")
        page.get_by_role("button", name="Freeze as baseline").click()
        page.wait_for_selector("qc-trends .out")
        assert page.locator("qc-trends .out").count() == 1
        assert "frozen by the supervisor" in page.inner_text("qc-trends")
        shown = page.get_by_role("img").get_attribute("aria-label")
        assert "1 stretches lie outside" in shown


def test_a_journal_that_cannot_be_read_is_no_empty_page(tmp_path):
    node = FakeNode()
    panel = node.panel(journal_file=tmp_path / "gone.db")
    with TestClient(panel, base_url="http://127.0.0.1") as client:
        assert client.get("/api/v1/trends/day").status_code == 503
