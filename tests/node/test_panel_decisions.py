"""From the press to the line: leases, what can be taken back, and that nothing counts twice."""

from datetime import timedelta
from urllib.parse import quote

import pytest
from fastapi.testclient import TestClient

from qcnode.domain import Finding
from qcnode.panel import view
from qcnode.panel.access import Role
from qcnode.panel.decisions import LEASE, SPARE
from qcnode.panel.guard import COOKIE
from tests.node.panel_fakes import FakeNode

ORIGIN = {"origin": "http://127.0.0.1"}
DELAY = timedelta(seconds=3)
DOUBTFUL = 5.0


class Station:
    """One person at one screen."""

    def __init__(self, client, cookie):
        self._client = client
        self._cookie = {"cookie": f"{COOKIE}={cookie}"}
        self._presses = 0

    def post(self, part, what, **said):
        self._presses += 1
        key = {"idempotency-key": f"{id(self):016d}-{self._presses}"}
        url = f"/api/v1/escalations/{quote(f'e-{part.id}')}/{what}"
        return self._client.post(url, json=said, headers=ORIGIN | self._cookie | key)

    def decide(self, part, finding="good", **said):
        return self.post(part, "ruling", finding=finding, **said)

    def waiting(self):
        return self._client.get("/api/v1/escalations", headers=self._cookie).json()


@pytest.fixture
def node():
    return FakeNode()


@pytest.fixture
def client(node):
    with TestClient(node.panel(release_delay=DELAY), base_url="http://127.0.0.1") as client:
        yield client


@pytest.fixture
def ana(node, client):
    return Station(client, node.session(Role.OPERATOR, "Ana"))


@pytest.fixture
def ben(node, client):
    return Station(client, node.session(Role.OPERATOR, "Ben"))


def released(node, station):
    """Let the delay pass, and wait until nothing is pending any more."""
    node.at += DELAY
    while station.waiting()["deciding"]:
        pass


def deeds(node):
    with node.file.transaction() as db:
        return [
            state for (state,) in db.execute("SELECT state FROM decision ORDER BY rowid").fetchall()
        ]


def test_a_decision_goes_out_after_its_delay_and_not_before(node, ana):
    part = node.pass_part(DOUBTFUL)
    answer = ana.decide(part, "defective", defect_class="scratch").json()
    assert (answer["pending"], node.desk.rulings) == (True, [])
    told = ana.waiting()
    assert (told["parts"], told["deciding"][0]["left_s"]) == ([], 3)
    assert deeds(node) == ["pending"]
    released(node, ana)
    (ruling,) = node.desk.rulings
    assert (ruling.finding, ruling.defect_class) == (Finding.DEFECTIVE, "scratch")
    assert ruling.who == "Ana@testclient"


def test_undo_takes_a_decision_back_before_anything_moved(node, ana):
    part = node.pass_part(DOUBTFUL)
    ana.decide(part)
    assert ana.post(part, "undo").json()["words"] == f"{part.part_id}: taken back. It waits again."
    node.at += DELAY * 2
    assert [one["part_id"] for one in ana.waiting()["parts"]] == [part.part_id]
    assert (node.desk.rulings, deeds(node)) == ([], ["undone"])
    ana.decide(part, "defective")
    released(node, ana)
    assert [ruling.finding for ruling in node.desk.rulings] == [Finding.DEFECTIVE]


def test_undo_after_the_release_is_refused_with_the_reason(node, ana):
    part = node.pass_part(DOUBTFUL)
    ana.decide(part)
    released(node, ana)
    answer = ana.post(part, "undo")
    assert (answer.status_code, "has gone out" in answer.json()["detail"]) == (409, True)
    assert len(node.desk.rulings) == 1


def test_only_whoever_decided_or_a_supervisor_takes_it_back(node, client, ana, ben):
    part = node.pass_part(DOUBTFUL)
    ana.decide(part)
    assert "only Ana or a supervisor" in ben.post(part, "undo").json()["detail"]
    boss = Station(client, node.session(Role.SUPERVISOR, "Li"))
    assert boss.post(part, "undo").status_code == 200


def test_a_part_on_one_screen_cannot_be_decided_on_another_for_a_minute(node, ana, ben):
    part = node.pass_part(DOUBTFUL)
    assert ana.post(part, "lease").status_code == 204
    assert ben.waiting()["parts"][0]["lease"] == {"who": "Ana"}
    for answer in (ben.post(part, "lease"), ben.decide(part)):
        assert (answer.status_code, "with Ana" in answer.json()["detail"]) == (409, True)
    node.at += LEASE
    assert ben.post(part, "lease").status_code == 204
    assert ana.decide(part).status_code == 409


def test_a_person_has_one_part_at_a_time_and_keeps_it_on_another_screen(node, client, ana, ben):
    first, second = node.pass_part(DOUBTFUL), node.pass_part(DOUBTFUL)
    ana.post(first, "lease")
    elsewhere = Station(client, node.session(Role.OPERATOR, "Ana"))
    assert elsewhere.post(first, "lease").status_code == 204
    ana.post(second, "lease")
    assert ben.post(first, "lease").status_code == 204


def test_of_two_people_who_decide_at_once_one_is_told_that_the_other_was_first(node, ana, ben):
    part = node.pass_part(DOUBTFUL)
    assert ana.decide(part).status_code == 200
    answer = ben.decide(part, "defective")
    assert (answer.status_code, "Ana has just decided" in answer.json()["detail"]) == (409, True)
    released(node, ana)
    assert [ruling.finding for ruling in node.desk.rulings] == [Finding.GOOD]


def test_agent_and_timeout_are_kept_off_a_part_that_a_person_decided(node, ana):
    part = node.pass_part(DOUBTFUL)
    ana.decide(part)
    assert node.desk.held[f"e-{part.id}"] == node.at + DELAY + SPARE
    ana.post(part, "undo")
    assert node.desk.held[f"e-{part.id}"] == node.at


def test_a_decision_that_somebody_forestalled_is_noted_and_told_nobody_twice(node, ana):
    part = node.pass_part(DOUBTFUL)
    ana.decide(part)
    node.settle_elsewhere(part)
    released(node, ana)
    while deeds(node) == ["pending"]:
        pass
    assert (node.desk.rulings, deeds(node)) == ([], ["refused"])


def test_a_decision_waits_while_the_journal_takes_nothing(node, ana):
    part = node.pass_part(DOUBTFUL)
    ana.decide(part)
    node.desk.broken = True
    node.at += DELAY
    while not node.desk.calls:
        ana.waiting()
    node.desk.broken = False
    node.at += timedelta(seconds=1)
    while ana.waiting()["deciding"]:
        pass
    assert len(node.desk.rulings) == 1


def test_what_was_pending_when_the_node_died_goes_out_at_the_next_start(node):
    part = node.pass_part(DOUBTFUL)
    with TestClient(node.panel(release_delay=DELAY), base_url="http://127.0.0.1") as client:
        Station(client, node.session(name="Ana")).decide(part)
    assert node.desk.rulings == []
    node.at += DELAY
    with TestClient(node.panel(release_delay=DELAY), base_url="http://127.0.0.1") as client:
        station = Station(client, node.session(name="Ana"))
        while station.waiting()["total"] or not node.desk.rulings:
            pass
    assert [ruling.who for ruling in node.desk.rulings] == ["Ana@testclient"]


def test_what_cannot_be_kept_is_not_decided(node, ana):
    part = node.pass_part(DOUBTFUL)
    with node.file.transaction() as db:
        db.execute("ALTER TABLE decision RENAME TO gone")
    assert ana.decide(part).status_code == 503
    assert [one["part_id"] for one in ana.waiting()["parts"]] == [part.part_id]
    with node.file.transaction() as db:
        db.execute("ALTER TABLE gone RENAME TO decision")
    assert ana.decide(part).status_code == 200


# -- look first ----------------------------------------------------------------


def test_the_agents_opinion_comes_after_the_persons_and_is_not_sent_before(node):
    part = node.pass_part(DOUBTFUL)
    node.propose(f"e-{part.id}", Finding.DEFECTIVE)
    with TestClient(node.panel(look_first=1.0), base_url="http://127.0.0.1") as client:
        ana = Station(client, node.session(name="Ana"))
        (shown,) = ana.waiting()["parts"]
        assert (shown["look_first"], shown["proposal"]) == (True, None)
        answer = ana.decide(part, "good").json()
    assert (answer["agent"]["kind"], answer["agrees"]) == ("defective", False)


def test_the_share_of_parts_looked_at_first_is_the_one_asked_for():
    ids = [f"e-{number}" for number in range(4000)]
    for share in (0.0, 0.25, 1.0):
        got = sum(view.looks_first(one, share) for one in ids) / len(ids)
        assert got == pytest.approx(share, abs=0.03)
