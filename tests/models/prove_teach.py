"""Teaching by the commands people type, on recorded parts, against its aims: `make prove-teach`.

Each run is `qcnode teach` and `qcnode evaluate --json` in processes of their own. What counts is
the mean image AUROC over the seeds; the command ends with 1 where one falls short.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

COMMAND = Path(sys.executable).with_name("qcnode")
TIMEOUT_S = 1_800.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Aim:
    """What is to be reached on one data set; normals only, or with the labelled defects."""

    data: str
    normals_only: bool
    auroc: float

    @property
    def words(self) -> str:
        return f"{self.data}, {'normals only' if self.normals_only else 'with labels'}"


AIMS = (
    Aim(data="paper", normals_only=True, auroc=0.99),
    Aim(data="circuit_board", normals_only=True, auroc=0.93),
    Aim(data="solar_mono", normals_only=True, auroc=0.945),
    Aim(data="paper", normals_only=False, auroc=0.997),
    Aim(data="solar_mono", normals_only=False, auroc=0.96),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What one teaching came to."""

    family: str
    auroc: float
    recall_at_1: float
    recall_at_5: float
    teach_s: float


def run(aim: Aim, data: Path, *, seed: int) -> Run:
    """Teach and evaluate once; raises `CalledProcessError` when a command fails."""
    pictures = data / aim.data
    with tempfile.TemporaryDirectory() as home:
        release = Path(home) / "release"
        options = ["--normals-only"] if aim.normals_only else []
        start = time.monotonic()
        _command("teach", pictures, "--out", release, "--seed", seed, *options)
        teach_s = time.monotonic() - start
        found = json.loads(_command("evaluate", release, pictures, "--json"))
    return Run(
        family=found["family"],
        auroc=found["image_auroc"],
        recall_at_1=found["recall_at_1"],
        recall_at_5=found["recall_at_5"],
        teach_s=teach_s,
    )


def _command(*words: object) -> str:
    done = subprocess.run(  # the command of this environment
        [str(word) for word in (COMMAND, *words)],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    if done.returncode:
        raise SystemExit(f"qcnode {' '.join(map(str, words))}: {done.stderr.strip()}")
    return done.stdout


def main() -> None:
    """Print a line for each aim, and end with 1 when one is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--seeds", nargs="+", type=int, default=(0, 1, 2))
    parser.add_argument("--jobs", type=int, default=2, help="how many runs at a time")
    options = parser.parse_args()
    missed = 0
    with ThreadPoolExecutor(options.jobs) as workers:
        pending = [
            (aim, [workers.submit(run, aim, options.data, seed=seed) for seed in options.seeds])
            for aim in AIMS
        ]
        for aim, futures in pending:
            runs = [future.result() for future in futures]
            mean = statistics.fmean(one.auroc for one in runs)
            met = mean >= aim.auroc
            missed += not met
            _say(f"{aim.words}: mean {mean:.4f}, aim {aim.auroc:.3f}: {'met' if met else 'MISSED'}")
            _say(f"    image AUROC   {_spread([one.auroc for one in runs], 4)}")
            _say(f"    recall at 1 % {_spread([one.recall_at_1 for one in runs], 3)}")
            _say(f"    recall at 5 % {_spread([one.recall_at_5 for one in runs], 3)}")
            _say(f"    teaching, s   {_spread([one.teach_s for one in runs], 0)}")
            _say(f"    families      {', '.join(one.family for one in runs)}")
    sys.exit(1 if missed else 0)


def _spread(values: list[float], digits: int) -> str:
    """Return the least, the middle and the most."""
    shown = (min(values), statistics.median(values), max(values))
    return " / ".join(f"{value:.{digits}f}" for value in shown)


def _say(line: str) -> None:
    print(line, flush=True)  # noqa: T201  # this is what it is for


if __name__ == "__main__":
    main()
