"""The kill switch at the panel: whoever works there stops, two supervisors clear."""

from dataclasses import replace

import pytest
from fastapi.testclient import TestClient

from qcnode.authority import Code
from qcnode.desk import TOO_LATE
from qcnode.kill import record_of
from qcnode.panel import view
from qcnode.panel.access import Right, Role
from qcnode.panel.audit import AuditTrail, Deed
from qcnode.panel.guard import COOKIE
from qcnode.panel.words import languages
from tests.node.panel_fakes import FakeNode

ORIGIN = {"origin": "http://127.0.0.1"}
DOUBTFUL = 5.0
BY = Deed(what="token.issue", who="root", role="admin", where="test")


@pytest.fixture
def node():
    return FakeNode()


@pytest.fixture
def client(node):
    with TestClient(node.panel(), base_url="http://127.0.0.1") as client:
        yield client


def as_one(node, role, name):
    return ORIGIN | {"cookie": f"{COOKIE}={node.session(role, name)}"}


def stop(client, headers, scope="all", reason=""):
    said = {"scope": scope, "reason": reason}
    return client.post("/api/v1/stops", json=said, headers=headers)


def clear(client, headers, scope="all", reason="looked into it"):
    said = {"scope": scope, "reason": reason}
    return client.post("/api/v1/stops/clear", json=said, headers=headers)


def stops(client):
    return client.get("/api/v1/state").json()["stops"]


def test_an_operator_stops_it_and_everybody_sees_what_and_by_whom(node, client):
    ana = as_one(node, Role.OPERATOR, "Ana")
    assert stops(client)["active"] == []
    assert stop(client, ana, "agent:scripted-provider", "odd rulings").status_code == 204
    assert node.switch.stopped("agent:scripted-provider")
    (shown,) = stops(client)["active"]
    assert (shown["name"], shown["who"], shown["reason"]) == (
        "agent scripted-provider",
        "Ana",
        "odd rulings",
    )
    assert client.get("/api/v1/stops").json() == [shown]


def test_it_takes_two_supervisors_to_clear(node, client):
    ana, li, bo = (
        as_one(node, role, name)
        for role, name in (
            (Role.OPERATOR, "Ana"),
            (Role.SUPERVISOR, "Li"),
            (Role.SUPERVISOR, "Bo"),
        )
    )
    stop(client, ana)
    assert clear(client, ana).status_code == 403
    assert clear(client, li, reason="ok").status_code == 422
    assert clear(client, li).json()["cleared"] is False
    assert clear(client, li).status_code == 409
    assert stops(client)["active"][0]["asked_by"] == "Li"
    assert node.switch.stopped("line")
    assert clear(client, bo).json()["cleared"] is True
    assert not node.switch.stopped("line")
    assert clear(client, bo).status_code == 409


def test_a_token_is_nobody_who_could_clear(node, client):
    stop(client, as_one(node, Role.OPERATOR, "Ana"))
    secret = node.accounts.issue("robot", [Right.STOP, Right.CLEAR], by=BY)
    robot = {"authorization": f"Bearer {secret}"}
    assert stop(client, robot, "line").status_code == 204
    assert clear(client, robot).status_code == 403


def test_a_viewer_stops_nothing_and_there_are_no_other_scopes(node, client):
    assert stop(client, ORIGIN).status_code == 403
    assert stop(client, as_one(node, Role.AUDITOR, "Au")).status_code == 403
    assert stop(client, as_one(node, Role.OPERATOR, "Ana"), "everything").status_code == 409
    assert not node.switch.stopped("line")


def test_what_was_stopped_and_cleared_is_in_the_audit_trail(node):
    with TestClient(node.panel(), base_url="http://127.0.0.1") as client:
        stop(client, as_one(node, Role.OPERATOR, "Ana"), reason="smoke")
        for name in ("Li", "Bo"):
            clear(client, as_one(node, Role.SUPERVISOR, name))
    trail = AuditTrail(node.file, now=node.now)
    deeds = [(row.deed.what, row.deed.who, row.deed.subject) for row in trail.rows(limit=20)]
    assert [one for one in reversed(deeds) if one[0].startswith("stop")] == [
        ("stop", "Ana", "all"),
        ("stop.ask", "Li", "all"),
        ("stop.clear", "Bo", "all"),
    ]


def test_it_stops_also_when_the_panels_own_file_takes_nothing(node, client):
    ana = as_one(node, Role.OPERATOR, "Ana")
    node.file.close()
    assert stop(client, ana).status_code == 204
    assert node.switch.stopped("line")
    assert record_of(node.switch.folder)[-1]["who"] == "Ana"


# -- why a part waits ---------------------------------------------------------------------


@pytest.mark.parametrize("language", ["en", "zh-Hans"])
def test_the_panel_says_why_an_agents_word_was_not_enough(node, language):
    say = languages()[language]
    shown = waiting(say, node, code="quota")
    assert shown["why"] == say("why.quota")
    assert shown["proposal"] is not None


def test_of_a_part_drawn_blind_nobody_is_told_what_the_agent_said(node):
    shown = waiting(languages()["en"], node, code="level", blind=True)
    assert shown["proposal"] is None
    assert shown["look_first"]
    assert shown["why"] == "Drawn for a check without the agent's word."


def test_every_reason_has_its_words():
    for say in languages().values():
        known = [code for code in (*Code, TOO_LATE) if f"why.{code}" in say]
        # What agents may not do at all is not said of a part.
        assert {*Code} - {*known} == {Code.ALLOWED, Code.RESTART, Code.BOUNDS, Code.UNARMED}


def waiting(say, node, **ruled):
    node.pass_part(DOUBTFUL)
    (one,) = node.desk.waiting()
    node.propose(one.escalation.id)
    one.proposal = replace(one.proposal, **ruled)
    shown = view.waiting(
        say,
        [one],
        node.about,
        kept={},
        leases={},
        pending={},
        look_first=0.0,
        now=node.now(),
    )
    return shown["parts"][0]
