"""A drifting shift, three times over, small: what is counted agrees with who recorded it."""

import json
import shutil

import pytest
from typer.testing import CliRunner

from qcnode.books.journal import Journal
from qcnode.books.pictures import PictureStore
from qcnode.cli.app import app
from qcnode.cli.scenario import print_scenario
from qcnode.demo import DemoOptions, Show
from qcnode.domain import Inspection, ProcessChange
from qcnode.errors import SettingsError
from qcnode.health import HealthBoard
from qcnode.lines.world import read_fates
from qcnode.process import BEST, BOUNDS, Knob
from qcnode.scenario import RUNS, SAID, run_scenario
from qcnode.wiring.machine import now

PARTS = 96
QUIET = Show(say=lambda _: None, teaching=lambda *_: None, running=lambda _: None)


def options(home, **changes):
    return DemoOptions(
        **{
            "home": home,
            "data": None,
            "parts": PARTS,
            "seconds": None,
            "panel_port": 0,
            "billing_port": 0,
            "accuracy": 0.8,
            "ask_share": None,
            "seed": 0,
            "broker": None,
            "billing_url": None,
            "keep": False,
        }
        | changes
    )


@pytest.fixture(scope="module")
def told(rendered_data, doubtful_model, tmp_path_factory):
    """The whole scenario, once, with a model that was taught before."""
    home = tmp_path_factory.mktemp("scenario")
    shutil.copytree(rendered_data, home / "flange")
    shutil.copytree(doubtful_model, home / "model")
    return run_scenario(options(home), QUIET), home


def test_all_three_runs_are_the_same_shift_but_for_who_adjusts(told):
    summary, home = told
    runs = summary["runs"]

    assert [run["adjusted_by"] for run in runs] == list(RUNS)
    assert {run["parts"] for run in runs} == {PARTS}
    first_hour = PARTS // 8
    seen = [
        [(fate.part_id, fate.truth) for fate in read_fates(home / name / "world.log")[:first_hour]]
        for name in RUNS
    ]
    assert seen[0] == seen[1] == seen[2]
    assert runs[0]["adjustments"] == []


def test_defects_and_escapes_are_those_of_the_worlds_own_record(told):
    summary, home = told
    for run in summary["runs"]:
        fates = read_fates(home / run["adjusted_by"] / "world.log")
        assert run["defects"] == sum(fate.is_defective for fate in fates)
        assert run["defects"] == sum(run["defects_by_quarter"])
        assert run["escapes"] == sum(fate.is_escape for fate in fates)


def test_tokens_of_adjustment_are_told_apart_and_only_the_agent_has_any(told):
    nobody, rule, agent = told[0]["runs"]

    assert nobody["tokens"]["adjustment"] == rule["tokens"]["adjustment"] == 0
    assert agent["tokens"]["adjustment"] > 0
    for run in (nobody, rule, agent):
        assert run["asked"] > 0
        assert run["unanswered"] == 0
        assert min(run["tokens"]["image"], run["tokens"]["analysis"]) > 0
        assert run["cost_pico"]["USD"] > 0


def test_every_adjustment_is_on_record_within_bounds_and_follows_from_the_one_before(told):
    summary, home = told
    adjusted = 0
    for run in summary["runs"]:
        records = journal_of(home / run["adjusted_by"])
        changes = [record for record in records if isinstance(record, ProcessChange)]
        assert [change.id for change in changes] == [one["id"] for one in run["adjustments"]]
        assert sum(isinstance(record, Inspection) for record in records) == PARTS
        stands = dict(BEST)
        for change in changes:
            knob = Knob(change.knob)
            assert change.before == stands[knob]
            assert BOUNDS[knob].refusal(change.before, change.after) is None
            if change.stage == "ordered":
                stands[knob], adjusted = change.after, adjusted + 1
    assert adjusted > 0


def journal_of(home):
    journal = Journal(
        home / "journal.db",
        pictures=PictureStore(home / "pictures", pictures_max=1_000, heat_full=None),
        health=HealthBoard(now),
    )
    try:
        return [record for _, record in journal.read(0, 100_000)]
    finally:
        journal.close()


def test_what_is_scripted_or_a_model_is_said_with_the_figures(told, capsys):
    print_scenario(told[0])
    printed = capsys.readouterr().out

    assert all(words in printed for words in SAID)
    assert "scripted provider" in printed
    assert "-37 % defects at 2,000,000 tokens an hour" in printed
    assert json.loads(json.dumps(told[0]))["said"] == list(SAID)
    assert len({len(line) for line in printed.splitlines() if "|" in line}) == 1


def test_a_kept_shift_is_not_overwritten(told):
    summary, home = told
    with pytest.raises(SettingsError, match="a shift is kept there"):
        run_scenario(options(home), QUIET)
    assert summary["home"] == str(home)


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({"parts": 100}, "give 96"),
        ({"parts": 5}, "give 32"),
        ({"seconds": 3.0}, "--seconds"),
        ({"keep": True}, "--keep"),
        ({"broker": ("127.0.0.1", 1883)}, "--broker"),
        ({"ask_share": 0.1}, "--ask-share"),
    ],
)
def test_what_a_scenario_cannot_do_is_said_in_one_line_before_anything_is_made(
    tmp_path, wrong, why
):
    with pytest.raises(SettingsError, match=why) as refused:
        run_scenario(options(tmp_path / "home", **wrong), QUIET)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "home").exists()


def test_there_is_no_scenario_of_another_name(tmp_path):
    done = CliRunner().invoke(app, ["demo", "--home", str(tmp_path), "--scenario", "flood"])

    assert done.exit_code == 2
