"""Every trigger is a verdict or a fault, whatever breaks; `make prove-line` runs a million."""

import pytest

from qcnode.station import Station
from tests.prove_line import is_whole, run

PARTS = 6_000


def test_triggers_are_verdicts_and_faults_through_every_trouble(tmp_path):
    found = run(PARTS, 3, tmp_path, life=700, stretch=120)

    assert is_whole(found), found
    assert found["verdicts"] + found["faults"] == found["triggers"] == PARTS
    assert set(found["troubles"]) >= {"camera", "slow", "disk", "broker", "kill -9"}
    assert set(found["outcomes"]) >= {"fault late", "fault missed", "fault interrupted"}


@pytest.mark.parametrize(
    ("broken", "why"),
    [
        ("_fault", "without an outcome"),
        ("_take_back", "passed without having been judged to"),
    ],
)
def test_a_station_that_errs_is_found_out(tmp_path, monkeypatch, broken, why):
    monkeypatch.setattr(Station, broken, lambda *_args, **_options: None)

    assert run(PARTS, 3, tmp_path, life=700, stretch=120)[why]
