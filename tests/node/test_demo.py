"""The demo as a person runs it: the whole way of a part, and books that agree.

The same run passes without any service, and with Mosquitto and PostgreSQL in their place.
"""

import json
import subprocess
import sys

import pytest

from qcnode.lines.world import read_fates

PARTS = 60


def run_demo(home, *options):
    done = subprocess.run(
        [sys.executable, "-m", "qcnode.cli.app", "demo", "--home", home, "--json", *options],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def check_summary(summary, home):
    verdicts = [summary[name] for name in ("ok", "not_ok", "not_decidable", "undefined")]
    assert sum(verdicts) + summary["faults"] == summary["parts"]
    assert summary["parts"] == len(read_fates(home / "world.log"))
    assert summary["ledger"]["verified"]
    assert summary["billing"]["matches"]
    assert summary["billing"]["entries"] == summary["ledger"]["entries"]
    assert summary["billing"]["cost_pico"] == summary["cost_pico"]
    assert summary["escalated"] == summary["ruled"] + summary["waiting"]
    assert summary["attempts"] >= summary["indeterminate"]
    assert 0 <= summary["false_rejects"] + summary["escapes"] <= summary["parts"]
    agent = summary["agent"]
    assert sum(agent["tokens"].values()) == sum(summary["tokens"].values())
    gained = agent["errors_avoided"] - agent["errors_made"]
    assert agent["wrong_with_agent"] == agent["wrong_alone"] - gained
    assert agent["wrong_if_every_ruling_were_right"] <= agent["wrong_alone"]
    assert agent["naive"] is None or agent["naive"]["tokens_saved"] > 0


@pytest.fixture(
    params=["alone", pytest.param("services", marks=[pytest.mark.mosquitto, pytest.mark.postgres])]
)
def around(request):
    """What stands around the node: nothing, or a real broker and a real database."""
    if request.param == "alone":
        return []
    broker = request.getfixturevalue("mosquitto")
    database = request.getfixturevalue("postgres")()
    return ["--broker", f"127.0.0.1:{broker.port}", "--billing-url", database]


def test_the_whole_way_of_a_part_ends_in_books_that_agree(tmp_path, around):
    summary = run_demo(tmp_path, "--parts", str(PARTS), *around)

    check_summary(summary, tmp_path)
    assert summary["parts"] == PARTS
    assert summary["escalated"] > 0
    assert summary["tokens"]["input"] > 0
    assert summary["cost_pico"]["USD"] > 0

    # The books are found again and go on where they ended.
    more = run_demo(tmp_path, "--parts", "10", *around)
    check_summary(more, tmp_path)
    assert more["parts"] == PARTS + 10
    assert more["ledger"]["entries"] >= summary["ledger"]["entries"]


def test_a_data_sets_test_pictures_come_as_parts(tmp_path, shared_data):
    summary = run_demo(tmp_path, "--parts", str(PARTS), "--data", shared_data / "paper")

    check_summary(summary, tmp_path)
    assert summary["defective"] > 0
    assert summary["undefined"] == 0


def test_a_folder_that_is_none_is_one_line_and_exit_code_2(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "qcnode.cli.app", "demo", "--data", tmp_path / "none"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "no such folder" in done.stderr
