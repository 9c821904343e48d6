import json
from datetime import date, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcnode.domain import Action, Decider, Finding
from qcnode.worth import Weighed, weigh
from tests.node.settled import MONDAY, SettledHome

AGENT, OPERATOR = Decider.AGENT, Decider.OPERATOR
GOOD, BAD = Finding.GOOD, Finding.DEFECTIVE


@pytest.fixture
def home(tmp_path):
    home = SettledHome(tmp_path / "home")
    with home.open():
        home.passed(6)
        home.part((AGENT, BAD), truth=BAD)  # an escape avoided
        home.part((AGENT, BAD), truth=BAD)
        home.part((AGENT, GOOD), truth=BAD, alone=Action.REJECT)  # an error made
        home.part((OPERATOR, BAD), truth=BAD)  # a person's, which took no token
        home.hours = 14 * 24
        home.passed(9)
        home.part((AGENT, GOOD), truth=GOOD)
    return home


def test_the_bill_is_shown_week_by_week_beside_what_it_was_worth(home, qcnode):
    weeks = json.loads(qcnode("report", "--home", home.home, "--json").out)["weeks"]

    first, second, third = weeks
    assert first["begins"] == MONDAY.date().isoformat()
    assert (first["parts"], first["escalated"], first["asked"]) == (10, 4, 3)
    assert first["escalation_rate"] == 0.4
    assert first["tokens"] == {"image": 300, "analysis": 1350, "adjustment": 0}
    assert first["tokens_per_1000_parts"] == 165_000
    assert (first["avoided"], first["made"]) == (2, 1)
    assert first["cost_pico_per_error_avoided"] == {"USD": 3_000}
    assert (first["agreed"], first["compared"]) == (2, 3)
    assert (second["parts"], second["escalation_rate"], second["agreement"]) == (0, None, None)
    assert date.fromisoformat(third["begins"]) == MONDAY.date() + timedelta(days=14)
    assert third["tokens_per_1000_parts"] == 55_000
    assert third["cost_pico_per_error_avoided"] is None  # it confirmed what the node would do


def test_a_person_sees_bars(home, qcnode):
    lines = qcnode("report", "--home", home.home).out.splitlines()

    assert len(lines) == 4
    assert lines[1].count("#") == 24
    assert lines[3].count("#") == 6
    assert "2 of 3" in lines[1]


def test_weeks_begin_on_monday_in_the_zone_asked_for(home, qcnode):
    # The first part is seen at 8:00 on Monday in UTC, when it is still Sunday evening there.
    there = qcnode("report", "--home", home.home, "--zone", "Pacific/Pago_Pago", "--json")
    nowhere = qcnode("report", "--home", home.home, "--zone", "Mars/North")

    assert json.loads(there.out)["weeks"][0]["begins"] == "2026-10-26"
    assert (nowhere.code, nowhere.err.count("\n")) == (2, 1)


ACTIONS = st.sampled_from(Action)
PARTS = st.lists(
    st.builds(Weighed, defective=st.booleans(), alone=ACTIONS, done=ACTIONS, ruled=st.booleans())
)


@given(PARTS)
def test_what_is_wrong_with_the_agent_is_what_was_less_avoided_plus_made(
    parts,
):
    worth = weigh(parts)

    assert worth.with_agent == worth.alone - worth.avoided + worth.made
    assert 0 <= worth.if_right <= worth.alone <= worth.parts
