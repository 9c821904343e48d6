"""Node, broker, provider and server under every fault at once, seed by seed.

What must hold is in `oracle`; what goes wrong, in `faults`. A seed that fails is printed
with the command that runs it again. These are a few of the seeds: `make prove-sim` runs 500.
"""

import os
import re
import subprocess
import sys

import pytest

from tests.sim.__main__ import again
from tests.sim.faults import EVENTS, KINDS, RATES
from tests.sim.many import run_seed, run_seeds
from tests.sim.mutants import MUTANTS
from tests.sim.provider import FATES

SEEDS = 25
MUTANT_SEEDS = 12
AGAIN = 20
"""Run twice: it puts ledgers away, loses power and dies in the middle of writes."""


@pytest.fixture(scope="module")
def runs():
    return list(run_seeds(range(1, SEEDS + 1)))


def test_money_is_right_whatever_goes_wrong(runs):
    failed = [run for run in runs if run.failure is not None]
    assert not failed, "\n".join(f"{again(run.seed)}: {run.failure}" for run in failed)


def test_every_kind_of_fault_falls_in_these_seeds(runs):
    assert {kind for run in runs for kind, times in run.fallen.items() if times} == set(KINDS)
    assert len(set(KINDS)) == len(RATES) + len(EVENTS) + len(FATES)


def test_a_seed_runs_the_same_way_again_in_another_process(runs):
    other = subprocess.run(
        [sys.executable, "-m", "tests.sim", "--seed", str(AGAIN)],
        env=os.environ | {"PYTHONHASHSEED": "12345"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )

    here = runs[AGAIN - 1]
    assert here.seed == AGAIN
    assert here.entries > 30
    assert other.stdout.endswith(f"digest {here.digest}\n"), other.stdout + other.stderr


def test_a_fault_left_out_makes_another_run(runs):
    """The control: a digest that is always the same would tell nothing."""
    here = runs[AGAIN - 1]
    kind = next(kind for kind, times in here.fallen.items() if times)
    assert run_seed(AGAIN, without=(kind,)).digest != here.digest


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.__name__)
def test_a_bug_made_on_purpose_is_found(mutant):
    """The control: each has to be found by one of a few seeds, and for what it is."""
    failure = None
    for seed in range(mutant.first, mutant.first + MUTANT_SEEDS):
        with mutant():
            failure = run_seed(seed).failure
        if failure is not None:
            break

    assert failure is not None, f"{MUTANT_SEEDS} seeds and nobody noticed"
    assert re.search(mutant.shows, failure)
