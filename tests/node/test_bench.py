"""`qcnode bench` answers with ratios, whatever the machine; what they are is not tested here."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from qcnode.bench.measure import Result, in_turn, speed_ratio

QCNODE = Path(sys.executable).with_name("qcnode")


def test_an_aim_is_held_against_the_middle_of_the_rounds():
    floor = Result(name="ratio", values=(0.5, 0.9, 1.2), aim=0.9)
    ceiling = Result(name="ms", values=(1.0, 3.0, 9.0), aim=2.0, at_least=False)
    assert (floor.met, ceiling.met) == (True, False)


def test_both_sides_take_turns_in_going_first():
    order = []
    pairs = list(
        in_turn(
            4,
            lambda number: order.append(("ours", number)) or 2.0,
            lambda number: order.append(("theirs", number)) or 1.0,
        )
    )
    assert [who for who, _number in order[::2]] == ["ours", "theirs", "ours", "theirs"]
    assert speed_ratio(pairs) == (0.5,) * 4


@pytest.mark.mosquitto
@pytest.mark.postgres
def test_the_books_are_measured_to_json(mosquitto, postgres, tmp_path):
    done = subprocess.run(
        [
            QCNODE,
            *("bench", "--books", "--json", "--rounds", "3", "--size", "small"),
            *("--folder", tmp_path, "--broker", f"127.0.0.1:{mosquitto.port}"),
            *("--billing-url", postgres()),
        ],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert {"cpu", "cores", "python"} <= set(found["machine"])
    assert len(found["results"]) >= 8
    for result in found["results"]:
        assert result["min"] <= result["median"] <= result["max"]
        assert result["met"] is (
            result["median"] >= result["aim"]
            if result["at_least"]
            else result["median"] <= result["aim"]
        )


def test_the_frames_are_measured_to_json(tmp_path):
    done = subprocess.run(
        [QCNODE, "bench", "--json", "--rounds", "3", "--size", "small", "--folder", tmp_path],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    names = [result["name"] for result in json.loads(done.stdout)["results"]]
    assert len(names) == len(set(names)) >= 5
    assert list(tmp_path.iterdir()) == []


def test_a_release_that_does_not_take_the_pictures_is_no_fast_release(doubtful_model, tmp_path):
    done = subprocess.run(
        [QCNODE, "bench", "--model", doubtful_model, "--size", "small", "--folder", tmp_path],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 2
    assert "takes any size" in done.stderr


def test_a_folder_that_is_not_there_is_named(tmp_path):
    done = subprocess.run(
        [QCNODE, "bench", "--folder", tmp_path / "nowhere"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert "nowhere" in done.stderr
