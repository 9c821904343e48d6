"""Many seeds, spread over processes."""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from functools import partial

from tests.sim.world import World

CHUNK = 5


def run_seeds(seeds, *, processes=1, without=()):
    """Run each seed once and yield what came of it, in the order of the seeds."""
    run = partial(run_seed, without=tuple(without))
    if processes == 1:
        yield from map(run, seeds)
        return
    # Not forked: a child shares nothing with the process that started it.
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(run, seeds, chunksize=CHUNK)


def run_seed(seed, *, without=()):
    """Run one seed."""
    return World(seed, without=without).run()
