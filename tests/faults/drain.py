"""What an outage of a month leaves in a ledger, and how it gets out: for a test and a measurement.

The ledger is a real one whose clock is a virtual one, the billing server is a process of
its own on PostgreSQL, and between them is HTTP or Mosquitto. While it all goes out the line
goes on to spend, and how long it waits for each commit is taken down.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import httpx2

from qcbridge.billing.engine import Database
from qcbridge.billing.keys import NodeKeys
from qcbridge.billing.reports import Reports
from qcnode.bench.books import facts
from qcnode.books import batch
from qcnode.books.inbox import Inbox
from qcnode.books.ledger import SqliteLedger
from qcnode.books.outbox import Outbox
from qcnode.books.pin import ServerKey
from qcnode.books.seals import SigningKey
from qcnode.health import HealthBoard
from qcnode.lines.http import HttpChannel
from qcnode.lines.mqtt import Broker, MqttChannel
from qcnode.lines.topics import NodeTopics

OUTAGE = timedelta(days=30)
START = datetime(2026, 10, 20, tzinfo=UTC)
TENANT, NODE = "acme", "n1"
GROUP = 1_000
SERVER_START_S = 60.0
SPEND_EVERY_S = 0.02
TOKEN = "a-token-of-the-drain"
LIVE = 10**9
"""Where the attempts of the line that goes on begin to be numbered."""


@dataclass(frozen=True, kw_only=True)
class Figures:
    """How it went; the waits for a commit are in milliseconds."""

    rows: int
    seconds: float
    idle_ms: list[float]
    meanwhile_ms: list[float]

    @property
    def rate(self):
        return self.rows / self.seconds


class Outage:
    """A node whose ledger has grown for a month with nobody to tell."""

    def __init__(self, home, rows):
        self.home = home
        self.key = SigningKey.open(home / "node.key", name=f"{TENANT}/{NODE}")
        step_us = int(OUTAGE.total_seconds() * 1_000_000) // rows
        clock = itertools.count(int(START.timestamp() * 1_000_000), step_us)
        self.ledger = SqliteLedger(
            home / "ledger.db",
            now_us=lambda: next(clock),
            new_epoch=lambda: "e" * 32,
            key=self.key,
        )
        self._spent = 0
        for first in range(0, rows, GROUP):
            self.ledger.submit_all(facts(first, min(GROUP, rows - first))).result(60)

    def close(self):
        self.ledger.close()

    async def drain(self, channel, *, timeout_s, idle_s=0.0):
        """Send everything through `channel`, and return how that went."""
        idle = await asyncio.to_thread(self._spend_for, idle_s)
        now = lambda: START + OUTAGE  # noqa: E731  # a clock that stands is the shortest there is
        box = Outbox(
            self.ledger,
            channel,
            tenant=TENANT,
            node=NODE,
            health=HealthBoard(now),
            now=now,
            jitter=random.random,
            inbox=Inbox(self.ledger),
            node_key=self.key.public,
            server_key=ServerKey(self.home / "billing.pub"),
        )
        stop, rows = threading.Event(), box.pending()
        spending = asyncio.create_task(asyncio.to_thread(self._spend, stop))
        sending = asyncio.create_task(box.run())
        began = time.perf_counter()
        try:
            whole = await box.flush(timeout_s)
            seconds = time.perf_counter() - began
            stop.set()
            meanwhile = await spending
            whole = whole and await box.flush(timeout_s)
        finally:
            stop.set()
            sending.cancel()
            await asyncio.wait({sending, spending}, timeout=10)
        assert whole, f"{box.pending()} of {rows} entries were left after {timeout_s} s"
        return Figures(rows=rows, seconds=seconds, idle_ms=idle, meanwhile_ms=meanwhile)

    def _spend_for(self, seconds):
        stop = threading.Event()
        timer = threading.Timer(seconds, stop.set)
        timer.start()
        waits = self._spend(stop) if seconds else []
        timer.cancel()
        return waits

    def _spend(self, stop):
        """Go on asking, as the line does, and return how long each commit was waited for."""
        waits = []
        while not stop.wait(SPEND_EVERY_S):
            for fact in facts(LIVE + self._spent, 2):
                began = time.perf_counter()
                self.ledger.submit(fact).result(60)
                waits.append((time.perf_counter() - began) * 1_000)
            self._spent += 2
        return sorted(waits)


def channel_over(way, *, billing_port, broker_port=None):
    """Return the node's way to the billing server: `http` or `mqtt`."""
    if way == "http":
        return HttpChannel(
            httpx2.AsyncClient(trust_env=False),
            f"http://127.0.0.1:{billing_port}",
            token=TOKEN,
            read_receipt=batch.decode_receipt,
            timeout_s=30.0,
        )
    ids = itertools.count()
    return MqttChannel(
        Broker(host="127.0.0.1", port=broker_port),
        NodeTopics(site="s", area="a", line="l", node=NODE),
        read_receipt=batch.decode_receipt,
        new_id=lambda: f"{next(ids)}",
        timeout_s=30.0,
    )


@contextmanager
def billing_server(home, url, port, key, *, broker_port=None):
    """Run the billing server, which knows the node by its key, as a process of its own."""
    database = Database(url)
    database.migrate()
    NodeKeys(database, now=lambda: START - OUTAGE).add(TENANT, NODE, key, by="a person")
    database.close()
    words = [sys.executable, "-m", "qcnode.cli.app", "billing", "serve"]
    words += ["--port", str(port), "--url", url]
    if broker_port is not None:
        words += ["--mqtt", f"mqtt://127.0.0.1:{broker_port}"]
    server = subprocess.Popen(
        words,
        env={
            **os.environ,
            "QCNODE_BILLING_TOKEN": TOKEN,
            "QCNODE_BILLING_KEY_FILE": str(home / "billing.key"),
        },
    )
    try:
        _until_alive(port, server)
        yield
    finally:
        server.terminate()
        server.wait(20)


def check_nothing_lost_or_doubled(outage, url):
    """Hold the server's books against the ledger."""
    database = Database(url)
    try:
        billed = Reports(database).totals(TENANT)
    finally:
        database.close()
    booked, last = outage.ledger.totals(), outage.ledger.last_seq()
    (entry,) = outage.ledger.read(last - 1, 1)
    (head,) = billed.ledgers
    assert (head.acked_seq, head.head_hash) == (last, entry.hash.hex())
    assert (billed.entries, billed.attempts) == (booked.entries, booked.attempts)
    assert (billed.input_tokens, billed.output_tokens) == (
        booked.input_tokens,
        booked.output_tokens,
    )
    assert billed.cost_pico == booked.cost_pico


def _until_alive(port, server):
    deadline = time.monotonic() + SERVER_START_S
    while True:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/livez", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            assert server.poll() is None, "the billing server ended"
            assert time.monotonic() < deadline, "the billing server did not come up"
            time.sleep(0.05)
