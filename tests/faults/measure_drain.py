"""How fast a month of entries gets out, and what the line feels of it, on this machine.

    python -m tests.faults.measure_drain [--rows N] [--way http|mqtt] [--home DIR]

1.6 million entries are what a line that escalates 17,280 times a day writes in thirty days.
The billing server and PostgreSQL run here too, so they share processors and disk with the
node, which at a factory they do not.
"""

import argparse
import asyncio
import logging
import socket
import tempfile
import time
from pathlib import Path

import structlog

from tests.faults.drain import (
    OUTAGE,
    Outage,
    billing_server,
    channel_over,
    check_nothing_lost_or_doubled,
)
from tests.programs import find_postgres, find_program
from tests.services import Mosquitto, Postgres

IDLE_S = 20.0


def main():
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("--rows", type=int, default=1_600_000)
    asked.add_argument("--way", choices=("http", "mqtt"), default="http")
    asked.add_argument("--home", type=Path, help="where the ledger is; its disk is what counts")
    asked.add_argument("--seconds-max", type=float, default=1_800.0)
    options = asked.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    programs = find_postgres()
    if programs is None:
        raise SystemExit("PostgreSQL's server programs are missing here")
    postgres = Postgres(programs)
    with tempfile.TemporaryDirectory(dir=options.home) as folder:
        try:
            postgres.start()
            measure(options, Path(folder), postgres())
        finally:
            postgres.remove()


def measure(options, home, url):
    began = time.perf_counter()
    outage = Outage(home, options.rows)
    say(
        f"{options.rows} entries of {OUTAGE.days} days written"
        f" in {time.perf_counter() - began:.0f} s; fsync and all else on {home}"
    )
    broker = None
    if options.way == "mqtt":
        (home / "mosquitto").mkdir()
        broker = Mosquitto(find_program, home / "mosquitto", free_port())
        broker.start()
    broker_port = None if broker is None else broker.port
    port = free_port()
    try:
        with billing_server(home, url, port, outage.key.public, broker_port=broker_port):
            figures = asyncio.run(drain(outage, options, port, broker_port))
        check_nothing_lost_or_doubled(outage, url)
    finally:
        outage.close()
        if broker is not None:
            broker.stop()
    say(
        f"drained over {options.way} in {figures.seconds:.0f} s: {figures.rate:.0f} entries/s;"
        " none lost, none doubled"
    )
    for name, waits in (("idle", figures.idle_ms), ("meanwhile", figures.meanwhile_ms)):
        say(
            f"commit {name}: p50 {quantile(waits, 0.5):.1f} p99 {quantile(waits, 0.99):.1f}"
            f" max {waits[-1]:.1f} ms (n = {len(waits)})"
        )
    median, tail = (
        quantile(figures.meanwhile_ms, share) / quantile(figures.idle_ms, share)
        for share in (0.5, 0.99)
    )
    say(f"commits while draining, over commits before it: p50 x{median:.2f}, p99 x{tail:.2f}")


async def drain(outage, options, port, broker_port):
    channel = channel_over(options.way, billing_port=port, broker_port=broker_port)
    try:
        return await outage.drain(channel, timeout_s=options.seconds_max, idle_s=IDLE_S)
    finally:
        await channel.close()


def quantile(values, share):
    return values[min(len(values) - 1, int(share * len(values)))]


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def say(words):
    print(words, flush=True)  # noqa: T201  # a script that prints is what this is


if __name__ == "__main__":
    main()
