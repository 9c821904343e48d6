"""Run the simulator by hand: many seeds, or one of them again.

python -m tests.sim --seeds 500                      each seed once; exit code 1 if one fails
python -m tests.sim --seed 17 --trace                one seed, with all that happens in it
python -m tests.sim --seed 17 --without 'cut off'    the same without a kind of fault
"""

import argparse
import hashlib
import json
import os
import sys
import time
import traceback
from collections import Counter

from tests.sim.faults import KINDS
from tests.sim.many import run_seeds
from tests.sim.world import World

TOLD_EVERY = 50


def main():
    parser = argparse.ArgumentParser(
        prog="python -m tests.sim",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seeds", type=int, default=500, help="how many")
    parser.add_argument("--from", type=int, default=1, dest="first", help="the first of them")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--seed", type=int, help="only this one")
    parser.add_argument("--without", action="append", default=[], choices=KINDS, metavar="KIND")
    parser.add_argument("--trace", action="store_true", help="with --seed: print what happens")
    parser.add_argument("--json", action="store_true", help="the sums as one JSON object")
    arguments = parser.parse_args()
    if arguments.seed is not None:
        return one(arguments.seed, arguments.without, trace=arguments.trace)
    return many(arguments)


def one(seed, without, *, trace):
    """Run one seed, and show where it failed if it did."""
    world = World(seed, without=without, trace=say if trace else None)
    run = world.run()
    say(
        f"seed {seed}: {run.virtual_s:.0f} virtual seconds, {run.steps} steps,"
        f" {run.entries} entries, {run.crashes} crashes, digest {run.digest}"
    )
    if world.error is None:
        return 0
    traceback.print_exception(world.error)
    return 1


def many(arguments):
    """Run many seeds, and say of each that fails how to run it again."""
    began = time.monotonic()
    seeds = range(arguments.first, arguments.first + arguments.seeds)
    sums, fallen, failed, all_of_it = Counter(), Counter(), [], hashlib.sha256()
    runs = run_seeds(seeds, processes=arguments.processes, without=arguments.without)
    for number, run in enumerate(runs, start=1):
        sums.update(
            entries=run.entries, crashes=run.crashes, steps=run.steps, virtual_s=run.virtual_s
        )
        fallen.update(run.fallen)
        all_of_it.update(run.digest.encode())
        if run.failure is not None:
            failed.append({"seed": run.seed, "failure": run.failure, "again": again(run.seed)})
            tell(f"FAILED seed {run.seed}: {run.failure}; again: {again(run.seed)}")
        if number % TOLD_EVERY == 0 and number < len(seeds):
            tell(f"{number} of {len(seeds)} seeds, {len(failed)} failed")
    took_s, hours = time.monotonic() - began, sums["virtual_s"] / 3_600
    if arguments.json:
        found = {
            "seeds": len(seeds),
            "from": arguments.first,
            "failed": failed,
            "virtual_hours": round(hours, 1),
            "entries": sums["entries"],
            "crashes": sums["crashes"],
            "steps": sums["steps"],
            "faults": dict(sorted(fallen.items())),
            "processes": arguments.processes,
            "seconds": round(took_s, 1),
            "digest": all_of_it.hexdigest(),
        }
        say(json.dumps(found, indent=2))
    else:
        say(
            f"{len(seeds)} seeds from {arguments.first}: {hours:.0f} virtual hours,"
            f" {fallen.total()} faults, {sums['crashes']} crashes, {sums['entries']} entries,"
            f" {sums['steps']} steps in {took_s:.0f} s on {arguments.processes} processes:"
            f" {len(failed)} failed; digest {all_of_it.hexdigest()[:16]}"
        )
    return int(bool(failed))


def again(seed):
    """Return the command that runs a seed again."""
    return f"python -m tests.sim --seed {seed} --trace"


def say(line):
    """Print a line of the result."""
    print(line, flush=True)  # noqa: T201  # this is a command


def tell(line):
    """Print a line of how it goes, which no program reads."""
    print(line, file=sys.stderr, flush=True)  # noqa: T201  # this is a command


if __name__ == "__main__":
    sys.exit(main())
