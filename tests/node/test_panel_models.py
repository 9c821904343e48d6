"""Models: what-if counts parts as the limits would, and the screen counts no other way."""

import json

import pytest
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as st

from qcnode.domain import Limits, Prediction, Verdict
from qcnode.errors import ModelError
from qcnode.panel.access import Role
from qcnode.panel.guard import COOKIE
from qcnode.panel.models import CHECKED_MIN, MILLION, seen, table_of, what_if
from qcnode.policy import judge
from tests.node.panel_fakes import FakeModels, FakeNode, served

WHAT_IF = "([told, a, r]) => import('/static/qc-models.js').then(m => m.whatIf(told, a, r))"
SCORES = st.lists(st.floats(-5, 20, allow_nan=False), min_size=1, max_size=60)


@given(good=SCORES, bad=SCORES, prevalence=st.sampled_from([0.0, 0.02, 0.5]), data=st.data())
def test_what_if_is_what_judging_each_calibration_part_would_say(good, bad, prevalence, data):
    bad = bad * CHECKED_MIN
    table = table_of(good, bad, [], prevalence=prevalence)
    places = st.integers(0, len(table.thresholds) - 1)
    accept, reject = sorted((data.draw(places), data.draw(places)))
    limits = Limits(accept_below=table.thresholds[accept], reject_from=table.thresholds[reject])

    def share(scores, verdict):
        found = [judge(Prediction(score=one, model="m"), limits) for one in scores]
        return found.count(verdict) / len(scores)

    told = what_if(table, accept, reject, tokens=1_500)

    near = pytest.approx
    assert told.false_rejects == near(
        MILLION * (1 - prevalence) * share(good, Verdict.NOT_OK), abs=1
    )
    assert told.escapes == near(MILLION * prevalence * share(bad, Verdict.OK), abs=1)
    asked = (1 - prevalence) * share(good, Verdict.NOT_DECIDABLE)
    asked += prevalence * share(bad, Verdict.NOT_DECIDABLE)
    assert told.asked == near(MILLION * asked, abs=2)
    assert told.tokens == told.asked * 1_500


def test_a_limit_that_is_not_set_asks_about_everything_on_its_side():
    table = table_of([1.0, 2.0, 3.0], [4.0] * CHECKED_MIN, [], prevalence=0.5)
    told = what_if(table, None, None, tokens=1)
    assert (told.asked, told.false_rejects, told.escapes) == (MILLION, 0, 0)


def test_of_few_defects_no_figure_of_escapes_is_given(tmp_path):
    told = seen(FakeModels(tmp_path, defects=CHECKED_MIN - 1))
    assert told["what_if"]["escaped"] is None
    assert seen(FakeModels(tmp_path, defects=CHECKED_MIN))["what_if"]["escaped"] is not None


def test_only_an_engineer_asks_for_the_model_before_and_it_goes_on_record(tmp_path):
    node, models = FakeNode(), FakeModels(tmp_path)
    with TestClient(node.panel(changes=models), base_url="http://127.0.0.1") as client:

        def ask(role):
            headers = {"origin": "http://127.0.0.1", "cookie": f"{COOKIE}={node.session(role)}"}
            said = {"reason": "it asks too much"}
            return client.post("/api/v1/models/rollback", json=said, headers=headers)

        assert (ask(Role.SUPERVISOR).status_code, models.asked) == (403, [])
        assert ask(Role.ENGINEER).status_code == 202
        assert models.asked == ["the engineer@testclient"]
        headers = {"cookie": f"{COOKIE}={node.session(Role.AUDITOR)}"}
        rows = client.get("/api/v1/audit", headers=headers).json()["rows"]
        assert [row["reason"] for row in rows if row["what"] == "model.rollback"] == [
            "it asks too much"
        ]


def test_a_wish_that_cannot_be_left_is_said_in_a_sentence(tmp_path):
    node, models = FakeNode(), FakeModels(tmp_path)

    def refuse(who):
        raise ModelError(f"ask.json: another wish waits to be taken, so not that of {who}")

    models.roll_back = refuse
    with TestClient(node.panel(changes=models), base_url="http://127.0.0.1") as client:
        headers = {
            "origin": "http://127.0.0.1",
            "cookie": f"{COOKIE}={node.session(Role.ENGINEER)}",
        }
        answer = client.post("/api/v1/models/rollback", json={"reason": "why not"}, headers=headers)
        assert (answer.status_code, "another wish" in answer.json()["detail"]) == (503, True)


def test_the_screen_counts_as_the_node_does_and_goes_back_to_now(tmp_path, free_port, page):
    node, models = FakeNode(), FakeModels(tmp_path)
    told = seen(models)["what_if"]
    manifest = models.manifest
    table = table_of(
        manifest.good_scores,
        manifest.defect_scores,
        [manifest.accept_below.value, manifest.reject_from.value],
        prevalence=manifest.prevalence,
    )
    places = [(None, None), (0, 50), (20, 20), (37, 90), (0, len(table.thresholds) - 1)]
    with served(node.panel(changes=models), free_port()) as url:
        cookie = {"name": COOKIE, "value": node.session(Role.ENGINEER), "url": url}
        page.context.add_cookies([cookie])
        page.goto(url + "/models")
        page.wait_for_selector("qc-models table")
        for accept, reject in places:
            shown = page.evaluate(
                WHAT_IF,
                [json.loads(json.dumps(told)), accept, reject],
            )
            expected = what_if(table, accept, reject, tokens=told["tokens"])
            assert shown == {name: getattr(expected, name) for name in shown}

        before = page.inner_text(".whatif table")
        for _ in range(12):
            page.get_by_role("button", name="Pass below \N{MINUS SIGN}").click()
            page.get_by_role("button", name="Reject from +").click()
        assert page.inner_text(".whatif table") != before
        page.get_by_role("button", name="Back to now").click()
        assert page.inner_text(".whatif table") == before
