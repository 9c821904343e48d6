"""Alarms after ISA-18.2: when one is raised, who may put it away, and that none is forgotten."""

from datetime import timedelta

import pytest
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as st

from qcnode.panel import alarms
from qcnode.panel.access import Role
from qcnode.panel.alarms import KINDS, SHELF_MAX, Alarm, Kind, State
from qcnode.panel.guard import COOKIE
from qcnode.panel.words import languages
from tests.conftest import ROOT
from tests.node.panel_fakes import START, FakeNode, served

SECOND = timedelta(seconds=1)
KIND = Kind(
    key="camera",
    priority=1,
    name="n",
    cause="c",
    consequence="q",
    action="a",
    on_delay=2 * SECOND,
    off_delay=10 * SECOND,
)
ORIGIN = {"origin": "http://127.0.0.1"}


def run(conditions, *, alarm=None, kind=KIND, suppressed=()):
    """Look once a second at these conditions, and return how the alarm stands and what happened."""
    alarm, events = alarm or Alarm(key=kind.key), []
    for second, on in enumerate(conditions):
        alarm, happened = alarms.step(
            alarm,
            kind,
            words="words" if on else None,
            suppressed=second in suppressed,
            now=START + second * SECOND,
        )
        events += happened
    return alarm, [event.what for event in events]


def test_an_alarm_is_raised_when_its_condition_has_held_and_cleared_when_it_is_gone():
    alarm, events = run([1, 1, 1])
    assert (alarm.state, events) == (State.UNACKED, ["raised"])
    assert alarm.since == START + 2 * SECOND
    alarm, events = run([1, 1, 1, *[0] * 11])
    assert (alarm.state, events) == (State.CLEARED, ["raised", "cleared"])


def test_fifty_flickers_in_ten_seconds_are_one_alarm_at_most():
    for first in (0, 1):
        _, events = run([(number + first) % 2 for number in range(50)])
        assert events.count("raised") <= 1
    _, events = run([1, 1, 1] + [0, 1] * 25)
    assert events == ["raised"]


def test_an_alarm_that_was_seen_is_normal_when_its_condition_goes():
    alarm, _ = run([1, 1, 1])
    alarm, events = alarms.acknowledge(alarm, who="Ana", now=START)
    assert (alarm.state, alarm.acked_by, events[0].who) == (State.ACKED, "Ana", "Ana")
    assert alarms.acknowledge(alarm, who="Ben", now=START) == (alarm, [])
    assert run([0] * 11, alarm=alarm)[0].state is State.NORMAL


def test_an_alarm_that_went_unseen_waits_to_be_seen():
    alarm, _ = run([1, 1, 1, *[0] * 11])
    alarm, _ = alarms.acknowledge(alarm, who="Ana", now=START)
    assert alarm.state is State.NORMAL


def test_a_shelf_ends_by_itself_and_what_still_holds_is_raised_anew():
    alarm, _ = run([1, 1, 1])
    alarm, _ = alarms.shelve(alarm, who="Li", reason="lens", until=START + 5 * SECOND, now=START)
    assert run([1] * 5, alarm=alarm)[0].state is State.SHELVED
    back, events = run([1] * 6, alarm=alarm)
    assert (back.state, events) == (State.UNACKED, ["unshelved", "raised"])
    longer = alarms.shelve(alarm, who="Li", reason="lens", until=START + 20 * SECOND, now=START)[0]
    gone, events = run([0] * 22, alarm=longer)
    assert (gone.state, gone.reason, events) == (State.NORMAL, "", ["unshelved"])


@pytest.mark.parametrize("span", [timedelta(0), -SECOND, SHELF_MAX + SECOND])
def test_nothing_is_shelved_for_longer_than_a_shift_or_for_no_time(span):
    with pytest.raises(ValueError, match="at most"):
        alarms.shelve(Alarm(key="x"), who="Li", reason="r", until=START + span, now=START)


def test_what_is_out_of_service_comes_back_only_when_somebody_brings_it_back():
    alarm, _ = run([1, 1, 1])
    alarm, _ = alarms.withdraw(alarm, who="Li", reason="no camera here", now=START)
    alarm, events = run([1] * 60, alarm=alarm)
    assert (alarm.state, events) == (State.OUT_OF_SERVICE, [])
    alarm, events = alarms.restore(alarm, who="Li", now=START)
    assert (alarm.state, [event.what for event in events]) == (
        State.UNACKED,
        ["restored", "raised"],
    )


def test_what_another_alarm_explains_is_suppressed_by_design_and_comes_back_after_it():
    alarm, events = run([1] * 6, suppressed=range(1, 5))
    assert (alarm.state, events) == (State.UNACKED, ["raised"])
    assert run([1] * 5, suppressed=range(1, 5))[0].state is State.SUPPRESSED


@given(
    looks=st.lists(
        st.tuples(
            st.booleans(),
            st.booleans(),
            st.sampled_from(["", "ack", "shelve", "withdraw", "restore"]),
        ),
        max_size=80,
    )
)
def test_no_alarm_is_lost_whatever_people_do(looks):
    alarm, on_for = Alarm(key="camera"), 0
    for second, (on, suppressed, deed) in enumerate(looks):
        now = START + second * SECOND
        if deed == "ack":
            alarm, _ = alarms.acknowledge(alarm, who="a", now=now)
        elif deed == "shelve":
            alarm, _ = alarms.shelve(alarm, who="a", reason="r", until=now + 3 * SECOND, now=now)
        elif deed == "withdraw":
            alarm, _ = alarms.withdraw(alarm, who="a", reason="r", now=now)
        elif deed == "restore":
            alarm, _ = alarms.restore(alarm, who="a", now=now)
        alarm, _ = alarms.step(
            alarm, KIND, words="w" if on else None, suppressed=suppressed, now=now
        )
        on_for = on_for + 1 if on else 0
        if on_for > 3:  # It held for as long as it must: it shows, or somebody put it away.
            assert alarm.on
            assert alarm.state not in (State.NORMAL, State.CLEARED)


def test_every_alarm_says_what_it_means_and_what_to_do_in_every_language():
    for kind in KINDS:
        assert kind.cause
        assert kind.priority in (1, 2, 3)
        assert set(kind.suppressed_by) <= {one.key for one in KINDS}
        for say in languages().values():
            assert say(f"alarm.{kind.key}.action")
    english = languages()["en"]
    assert [english(f"alarm.{one.key}") for one in KINDS] == [one.name for one in KINDS]


def test_the_list_in_the_docs_is_the_one_in_the_code():
    assert (ROOT / "docs" / "alarms.md").read_text() == alarms.page()


# -- over HTTP -----------------------------------------------------------------


@pytest.fixture
def node():
    return FakeNode()


@pytest.fixture
def client(node):
    with TestClient(node.panel(), base_url="http://127.0.0.1") as client:
        yield client


def be(client, node, role, name=None):
    client.cookies.set(COOKIE, node.session(role, name))


def press(client, path, **said):
    return client.post(f"/api/v1/{path}", json=said, headers=ORIGIN)


def shown(client, wanted):
    """Look until the alarms are as wanted: they are looked at once a second."""
    while not wanted(told := client.get("/api/v1/alarms").json()):
        pass
    return told


def raise_camera(client, node):
    node.health.report("camera", ok=False, words="no picture", needed=True)
    while not (told := client.get("/api/v1/alarms").json())["rows"]:
        node.at += SECOND
    return told["rows"][0]


def test_an_alarm_is_acknowledged_by_name_and_that_is_in_the_journal(node, client):
    row = raise_camera(client, node)
    assert (row["key"], row["priority"], row["state"]) == ("camera", 1, "unacked")
    assert press(client, "alarms/camera/ack").json()["detail"] == "needs operator"
    be(client, node, Role.OPERATOR, "Ana")
    assert press(client, "alarms/camera/ack").status_code == 204
    told = shown(client, lambda told: told["events"][0]["who"])
    assert told["rows"][0]["acked_by"] == "Ana"
    assert (told["events"][0]["what"], told["events"][0]["who"]) == ("acknowledged", "Ana")
    assert (told["rate"], told["day"]) == (1, 1)
    assert press(client, "alarms/camera/ack").status_code == 409
    assert press(client, "alarms/none/ack").status_code == 409


def test_a_shelf_needs_a_supervisor_a_reason_and_an_end(node, client):
    raise_camera(client, node)
    be(client, node, Role.OPERATOR)
    assert press(client, "alarms/camera/shelve", minutes=15, reason="lens").status_code == 403
    be(client, node, Role.SUPERVISOR, "Li")
    for said in ({"minutes": 15}, {"minutes": 481, "reason": "lens"}, {"minutes": 0}):
        assert press(client, "alarms/camera/shelve", **said).status_code == 422
    assert press(client, "alarms/camera/shelve", minutes=15, reason="lens").status_code == 204
    (away,) = client.get("/api/v1/alarms").json()["away"]
    assert (away["state"], away["reason"], away["put_by"]) == ("shelved", "lens", "Li")
    node.at += timedelta(minutes=15)
    shown(client, lambda told: told["rows"] and told["rows"][0]["state"] == "unacked")


def test_out_of_service_is_an_engineers_and_so_is_the_way_back(node, client):
    raise_camera(client, node)
    be(client, node, Role.SUPERVISOR)
    assert press(client, "alarms/camera/withdraw", reason="no camera").status_code == 403
    be(client, node, Role.ENGINEER)
    assert press(client, "alarms/camera/withdraw", reason="no camera").status_code == 204
    be(client, node, Role.SUPERVISOR)
    answer = press(client, "alarms/camera/restore")
    assert (answer.status_code, answer.json()["detail"]) == (403, "needs engineer")
    be(client, node, Role.ENGINEER)
    assert press(client, "alarms/camera/restore").status_code == 204
    assert client.get("/api/v1/alarms").json()["rows"][0]["state"] == "unacked"


def test_an_alarm_is_still_there_after_a_restart_and_is_not_raised_twice(node, client):
    raise_camera(client, node)
    be(client, node, Role.OPERATOR, "Ana")
    press(client, "alarms/camera/ack")
    shown(client, lambda told: told["events"][0]["who"])
    with TestClient(node.panel(), base_url="http://127.0.0.1") as again:
        told = again.get("/api/v1/alarms").json()
    assert (told["rows"][0]["state"], told["day"]) == ("acked", 1)


def test_help_is_called_without_signing_in_and_answered_by_somebody_who_did(node, client):
    assert press(client, "help").status_code == 204
    assert press(client, "help").status_code == 204
    node.at += 90 * SECOND
    told = shown(client, lambda told: told["rows"])
    assert told["help"] == {"since": "1 min 30 s", "where": "testclient"}
    assert [row["key"] for row in told["rows"]] == ["help"]
    assert press(client, "help/answer").status_code == 403
    be(client, node, Role.OPERATOR, "Ana")
    assert press(client, "help/answer").status_code == 204
    told = client.get("/api/v1/alarms").json()
    assert (told["help"], told["rows"]) == (None, [])
    be(client, node, Role.AUDITOR)
    rows = shown_audit(client, "help.answer")
    assert (rows[0]["who"], rows[0]["after"]) == ("Ana", "after 90 s")


def shown_audit(client, words):
    while not (rows := client.get("/api/v1/audit", params={"words": words}).json()["rows"]):
        pass
    return rows


def test_five_rejects_in_a_row_are_an_alarm_and_four_are_events(node, client):
    for _ in range(4):
        node.pass_part(9.0)
    node.at += 5 * SECOND
    assert client.get("/api/v1/alarms").json()["rows"] == []
    node.pass_part(9.0)
    while not (rows := client.get("/api/v1/alarms").json()["rows"]):
        node.at += SECOND
    assert [row["key"] for row in rows] == ["rejects"]


def test_a_watched_alarm_reaches_every_screen(node, free_port):
    with served(node.panel(), free_port()) as url:
        assert url  # The alarms are looked at whether or not anybody watches.
        node.health.report("line", ok=False, words="stopped", needed=True)
        with TestClient(node.panel(), base_url="http://127.0.0.1") as client:
            assert raise_camera(client, node)
