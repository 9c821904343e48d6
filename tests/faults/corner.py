"""A factory corner whose parts are real processes: a node, a provider, a billing server.

The node can be killed at any moment. What it left behind is read from outside, from
its files and from the provider's own books, and held against what must always be true.
"""

import json
import os
import secrets
import signal
import sqlite3
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from qcbridge.billing.engine import Database
from qcbridge.billing.reports import Reports
from qcnode.books import chain
from qcnode.books.ledger_file import LedgerReader
from qcnode.lines.world import read_fates
from qcnode.money import Indeterminate, Intent, NotBilled, Settled

START_S = 60.0
PERIOD_MS = 40.0
NEVER_MS = 3_600_000.0


class Zygote:
    """The process that starts nodes by forking."""

    def __init__(self, environ=None):
        self._process = subprocess.Popen(
            [sys.executable, Path(__file__).with_name("zygote.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environ,
        )

    def start(self, config, log, **environ):
        """Start `qcnode run` and return its process id; its output is added to `log`."""
        more = " ".join(f"{name}={value}" for name, value in environ.items())
        return int(self._ask(f"start {config} {log} {more}"))

    def reap(self, pid):
        """Wait for a node to end and return its exit code, negative for a signal."""
        return int(self._ask(f"reap {pid}"))

    def close(self):
        self._process.stdin.close()
        self._process.wait(10)
        self._process.stdout.close()

    def _ask(self, line):
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, "the zygote has died"
        return answer


@dataclass
class Corner:
    """The processes around one node, and its files."""

    home: Path
    model: Path
    zygote: Zygote
    billing_url: str
    free_port: object
    broker_port: int | None = None
    fallback_after_s: float | None = None
    billing_token: str = field(default_factory=lambda: secrets.token_urlsafe(24))
    key: str = field(default_factory=lambda: secrets.token_urlsafe(24))

    def __post_init__(self):
        self.home.mkdir(parents=True, exist_ok=True)
        self.provider_port = self.free_port()
        self.billing_port = self.free_port()
        self.panel_port = self.free_port()
        self.children = []
        self.config = self._write_config("node.toml", period_ms=PERIOD_MS, asks="true")
        self.resting = self._write_config("resting.toml", period_ms=NEVER_MS, asks="false")

    def _write_config(self, name, *, period_ms, asks):
        channel = "http" if self.broker_port is None else "mqtt"
        fallback = ""
        if self.fallback_after_s is not None:
            fallback = (
                f'fallback_url = "http://127.0.0.1:{self.billing_port}"\n'
                f"fallback_after_s = {self.fallback_after_s}"
            )
        path = self.home / name
        path.write_text(
            f"""
            [node]
            tenant = "t"
            home = "{self.home}"
            [panel]
            port = {self.panel_port}
            [line]
            period_ms = {period_ms}
            gate_mm = 400.0
            [camera]
            defect_rate = 0.4
            [model]
            dir = "{self.model}"
            [agent]
            enabled = {asks}
            level = "L3"
            waiting_max = 500
            [provider]
            base_url = "http://127.0.0.1:{self.provider_port}/v1"
            timeout_s = 1.0
            [metering]
            channel = "{channel}"
            url = "http://127.0.0.1:{self.billing_port}"
            receipt_timeout_s = 2.0
            {fallback}
            [mqtt]
            port = {self.broker_port or 1883}
            """
        )
        return path

    def open(self):
        """Start what is around the node."""
        (self.home / "key").write_text(self.key)
        (self.home / "token").write_text(self.billing_token)
        self._run(
            *("scripted-provider", "--port", str(self.provider_port)),
            *("--world", str(self.home / "world.log"), "--log", str(self.home / "provider.log")),
            *("--latency-ms", "120", "--error-rate", "0.05", "--timeout-rate", "0.05"),
            *("--reset-rate", "0.05"),
        )
        mqtt = (
            [] if self.broker_port is None else ["--mqtt", f"mqtt://127.0.0.1:{self.broker_port}"]
        )
        self._run(
            *("billing", "serve", "--port", str(self.billing_port), "--url", self.billing_url),
            *("--key-file", str(self.home / "billing.key"), "--enrol-first"),
            *mqtt,
        )
        self._until_alive(self.provider_port)
        self._until_alive(self.billing_port)

    def close(self):
        for child in self.children:
            child.terminate()
        for child in self.children:
            child.wait(20)

    def start_node(self, *, resting=False):
        """Start a node and return its process id; a resting one gets no parts and asks nobody."""
        config = self.resting if resting else self.config
        return self.zygote.start(config, self.home / "node.log")

    def triggers(self):
        """Return how many parts the line has counted; cheap enough to poll."""
        try:
            return (self.home / "world.log").read_bytes().count(b"trigger ")
        except FileNotFoundError:
            return 0

    def until_running(self):
        """Wait until the node answers."""
        self._until_alive(self.panel_port)

    def asked(self):
        """Return how many requests the provider has taken."""
        return len(provider_books(self.home))

    def until_triggers(self, count, pid):
        """Wait until the line has counted `count` parts."""
        self.until(lambda: self.triggers() >= count, pid)

    def until_asked(self, count, pid):
        """Wait until the provider has taken `count` requests."""
        self.until(lambda: self.asked() >= count, pid)

    def until_recorded(self, count, pid):
        """Wait until the ledger has `count` entries."""
        self.until(lambda: self.ledger_totals().entries >= count, pid)

    def until(self, holds, pid):
        """Wait until `holds` does, while the node lives."""
        deadline = time.monotonic() + START_S
        while not holds():
            os.kill(pid, 0)
            assert time.monotonic() < deadline, self.log_tail()
            time.sleep(0.005)

    def until_billed(self, pid):
        """Wait until nothing is open and the bill has every entry."""
        deadline = time.monotonic() + START_S
        while True:
            ledger = self.ledger_totals()
            billed = self.billed()
            if ledger.open == 0 and (billed.entries, billed.cost_pico) == (
                ledger.entries,
                ledger.cost_pico,
            ):
                return
            os.kill(pid, 0)
            assert time.monotonic() < deadline, f"{ledger} {billed} {self.log_tail()}"
            time.sleep(0.1)

    def billed(self):
        database = Database(self.billing_url)
        try:
            return Reports(database).totals("t")
        finally:
            database.close()

    def ledger_totals(self):
        reader = LedgerReader(self.home / "ledger.db")
        try:
            return reader.verify()
        finally:
            reader.close()

    def log(self):
        return (self.home / "node.log").read_text()

    def log_tail(self):
        return self.log()[-3000:]

    def _run(self, *words):
        environ = {
            **os.environ,
            "QCNODE_PROVIDER_API_KEY": self.key,
            "QCNODE_BILLING_TOKEN": self.billing_token,
        }
        self.children.append(
            subprocess.Popen([sys.executable, "-m", "qcnode.cli.app", *words], env=environ)
        )

    def _until_alive(self, port):
        deadline = time.monotonic() + START_S
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/livez", timeout=5):
                    return
            except (urllib.error.URLError, OSError):
                assert time.monotonic() < deadline, f"nothing came up at port {port}"
                assert all(child.poll() is None for child in self.children)
                time.sleep(0.05)


def outcomes(home):
    """Return how many outcomes the journal has for each trigger."""
    db = sqlite3.connect(f"file:{home / 'journal.db'}?mode=ro", uri=True)
    try:
        rows = db.execute(
            "SELECT trigger_seq FROM record WHERE kind IN ('inspection', 'fault')"
        ).fetchall()
    finally:
        db.close()
    return Counter(seq for (seq,) in rows)


def facts(home):
    """Return every fact of the ledger, the chain having been checked."""
    reader = LedgerReader(home / "ledger.db")
    try:
        reader.verify()
        return [chain.fact_of(entry) for entry in reader.read(0, 1_000_000)]
    finally:
        reader.close()


def in_flight(home):
    """Return the triggers without an outcome, all of which must be the last ones."""
    triggered = [fate.seq for fate in read_fates(home / "world.log")]
    recorded = outcomes(home) if (home / "journal.db").exists() else Counter()
    return [seq for seq in triggered if recorded[seq] == 0]


def check_requests(home):
    """No request reached the provider without an intent on disk."""
    intended = {fact.attempt.id for fact in facts(home) if isinstance(fact, Intent)}
    asked = {row["attempt"] for row in provider_books(home)}
    assert asked <= intended, f"requests without an intent: {asked - intended}"


def provider_books(home):
    """Return the provider's own record of requests, whole lines only."""
    path = home / "provider.log"
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def check_parts(home):
    """Every trigger ended as exactly one verdict or one fault."""
    triggered = [fate.seq for fate in read_fates(home / "world.log")]
    assert triggered == list(range(1, len(triggered) + 1)), "the line skipped a number"
    recorded = outcomes(home)
    lost = [seq for seq in triggered if recorded[seq] == 0]
    doubled = [seq for seq, count in recorded.items() if count > 1]
    assert not lost, f"triggers without an outcome: {lost}"
    assert not doubled, f"triggers with two outcomes: {doubled}"
    assert set(recorded) <= set(triggered), "outcomes of triggers that never were"


def check_money(home):
    """What the provider says it answered is settled to the token, or held at its worst case."""
    settled = {fact.attempt_id: fact for fact in facts(home) if isinstance(fact, Settled)}
    held = {fact.attempt_id for fact in facts(home) if isinstance(fact, Indeterminate)}
    refused = {fact.attempt_id for fact in facts(home) if isinstance(fact, NotBilled)}
    for row in provider_books(home):
        attempt = row["attempt"]
        if attempt in settled:
            used = settled[attempt].usage
            assert row["usage"]["prompt_tokens"] == used.input_tokens
            assert row["usage"]["completion_tokens"] == used.output_tokens
        elif row["billed"]:
            assert attempt in held, f"{row} is billed there and neither settled nor held here"
        else:
            assert attempt in held | refused, f"{row} has no outcome here"


def stop_gently(zygote, pid):
    """Send SIGTERM and return the exit code."""
    os.kill(pid, signal.SIGTERM)
    return zygote.reap(pid)


def check_after_restart(corner):
    """Start once more, let it finish, end it in good order and look at everything."""
    pid = corner.start_node()
    corner.until_triggers(corner.triggers() + 5, pid)
    assert stop_gently(corner.zygote, pid) == 0

    pid = corner.start_node(resting=True)
    corner.until_running()
    corner.until_billed(pid)
    assert stop_gently(corner.zygote, pid) == 0
    check_parts(corner.home)
    check_requests(corner.home)
    check_money(corner.home)
    ledger, billed = corner.ledger_totals(), corner.billed()
    assert billed.entries == ledger.entries
    assert billed.cost_pico == ledger.cost_pico
    assert billed.held_pico == ledger.held_pico
    assert (ledger.open, ledger.unpriced) == (0, 0)
    return ledger
