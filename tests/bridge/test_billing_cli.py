"""`qcnode billing`, as people type it."""

import json
import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from types import SimpleNamespace

import httpx2
import pytest

from qcnode.books.batch import decode_receipt
from qcnode.books.ledger import SqliteLedger
from qcnode.cli.app import main
from tests.bridge.ledgers import (
    AT_US,
    COST,
    HOLD,
    batch_of,
    indeterminate,
    intent,
    raw_batch,
    settled,
    write,
)

ENVIRONMENT = {name: value for name, value in os.environ.items() if "QCNODE" not in name}
EVENT = {"content-type": "application/cloudevents+json"}
ANYWHERE = "0.0.0.0"  # noqa: S104  # the case under test
PATIENCE_S = 120


@pytest.fixture
def billing(monkeypatch, capsys):
    """Type `qcnode billing ...` and read what is printed."""

    def run(*words, **environment):
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(sys, "argv", ["qcnode", "billing", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capsys.readouterr()
        return SimpleNamespace(
            returncode=ended.value.code or 0, stdout=printed.out, stderr=printed.err
        )

    return run


@contextmanager
def serving(*words, **environment):
    """A billing server of its own, and its address."""
    process = subprocess.Popen(
        [sys.executable, "-m", "qcnode.cli.app", "billing", "serve", "--port", "0"]
        + [str(word) for word in words],
        env=ENVIRONMENT | environment | {"PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        line = process.stdout.readline()
        assert line.startswith("billing listens at "), line + process.stderr.read()
        yield process, line.split()[3].rstrip("/")
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate(timeout=PATIENCE_S)


@pytest.fixture
def url(sqlite_store, tmp_path):
    facts = [intent("a1"), settled("a1"), intent("a2"), indeterminate("a2")]
    sqlite_store.ingest(batch_of(write(facts)))
    return f"sqlite:///{tmp_path}/billing.db"


def test_a_served_batch_is_on_the_bill_and_a_term_signal_ends_it_cleanly(billing, database_url):
    entries = write([intent(), settled()])
    with serving(QCNODE_BILLING_URL=database_url) as (process, address):
        answer = httpx2.post(f"{address}/v1/batches", content=raw_batch(entries), headers=EVENT)
        assert decode_receipt(answer.content).acked_seq == 2
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=PATIENCE_S)
        assert (process.returncode, errors) == (0, "")

    printed = billing("invoice", "--period", "2026-11", "--json", QCNODE_BILLING_URL=database_url)
    assert printed.returncode == 0, printed.stderr
    assert json.loads(printed.stdout)["lines"][0]["cost_pico"] == COST.pico


def test_entries_with_a_receipt_survive_a_kill(billing, tmp_path):
    url = f"sqlite:///{tmp_path}/billing.db"
    entries = write([intent(), settled()])
    with serving("--url", url) as (process, address):
        httpx2.post(f"{address}/v1/batches", content=raw_batch(entries), headers=EVENT)
        process.kill()
        process.wait(10)
    totals = json.loads(billing("totals", "--url", url, "--json").stdout)
    assert totals["ledgers"][0]["head_hash"] == entries[-1].hash.hex()


def test_a_port_in_use_is_one_line_and_exit_code_2(billing, tmp_path):
    url = f"sqlite:///{tmp_path}/billing.db"
    with serving("--url", url) as (_, address):
        second = billing("serve", "--url", url, "--port", address.rpartition(":")[2])
    assert second.returncode == 2
    assert len(second.stderr.splitlines()) == 1
    assert "Address already in use" in second.stderr


def test_an_address_others_can_reach_needs_a_token(billing, tmp_path):
    refused = billing("serve", "--url", f"sqlite:///{tmp_path}/b.db", "--host", ANYWHERE)
    assert refused.returncode == 2
    assert "no token is set" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1


def test_the_token_comes_from_a_file_or_the_environment(billing, tmp_path):
    url = f"sqlite:///{tmp_path}/b.db"
    token_file = tmp_path / "token"
    token_file.write_text("a-token-of-enough-characters\n")
    with serving("--url", url, "--host", ANYWHERE, "--token-file", token_file) as (_, open_to):
        address = open_to.replace(ANYWHERE, "127.0.0.1")
        bearer = {"authorization": "Bearer a-token-of-enough-characters"}
        assert httpx2.get(f"{address}/v1/totals?tenant=a").status_code == 401
        assert httpx2.get(f"{address}/v1/totals?tenant=a", headers=bearer).status_code == 200
    weak = billing("serve", "--url", url, QCNODE_BILLING_TOKEN="short")
    assert weak.returncode == 2
    assert "use 16 at least" in weak.stderr
    assert "short" not in weak.stderr


def test_without_a_token_only_local_names_are_answered(tmp_path):
    with serving("--url", f"sqlite:///{tmp_path}/b.db") as (_, address):
        port = address.rpartition(":")[2]
        named = httpx2.get(f"{address}/livez", headers={"host": f"localhost:{port}"})
        rebound = httpx2.get(f"{address}/livez", headers={"host": f"evil.example:{port}"})
    assert (named.status_code, rebound.status_code) == (200, 400)


def test_an_invoice_is_a_readable_table(billing, url):
    printed = billing("invoice", "--url", url, "--period", "2026-11")
    assert printed.returncode == 0, printed.stderr
    lines = printed.stdout.splitlines()
    assert lines[2].split()[:3] == ["node", "provider", "model"]
    assert lines[3].split()[:3] == ["node-1", "scripted", "vlm-1"]
    assert lines[3].split()[3:5] == ["[1]", "[2]"]
    assert "Total: 0.000001 CNY (scripted provider: nobody is charged)" in lines
    assert any(line.startswith("Held, not billed: 1 attempt of") for line in lines)
    assert lines[-2:] == ["[1] in", "[2] out"]


def test_no_paper_reads_as_a_bill_where_the_provider_is_scripted(billing, url):
    said = "scripted provider: nobody is charged"
    for words in (("invoice", "--period", "2026-11"), ("totals",)):
        assert said in billing(*words, "--url", url).stdout.splitlines()[1]
        shown = json.loads(billing(*words, "--url", url, "--json").stdout)
        assert (shown["scripted"], shown["scripted_only"]) == (True, True)


def test_a_nodes_ledger_is_no_billing_database(billing, tmp_path):
    path = tmp_path / "ledger.db"
    SqliteLedger(path, now_us=lambda: AT_US, new_epoch=lambda: "epoch-1").close()
    before = path.read_bytes()
    for words in (("totals",), ("invoice",), ("serve", "--port", "0")):
        done = billing(*words, "--url", f"sqlite:///{path}")
        assert done.returncode == 2
        assert "is no billing database (a node's ledger?)" in done.stderr
        assert len(done.stderr.splitlines()) == 1
    assert path.read_bytes() == before


def test_an_invoice_is_recomputed_with_a_price_book(billing, url, repository):
    book = repository / "cloud_bridge" / "qcbridge" / "prices"
    printed = billing("invoice", "--url", url, "--period", "2026-11", "--prices", book)
    assert printed.returncode == 0, printed.stderr
    assert "Entries that differ from the price book: 1" in printed.stdout
    assert "recorded 0.000001234567 CNY, by the book " in printed.stdout


def test_totals_are_printed_for_people_and_for_programs(billing, url):
    printed = billing("totals", "--url", url)
    assert "acme: 4 entries of 2 attempts" in printed.stdout
    assert "Measured: 0.000001234567 CNY (scripted provider: nobody is charged)" in printed.stdout
    value = json.loads(billing("totals", "--url", url, "--json").stdout)
    assert value["held_pico"] == {"CNY": HOLD.pico}


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("invoice", "--period", "november"), "is no month"),
        (("invoice", "--tenant", "nobody"), "no entries of tenant"),
        (("totals", "--url", "sqlite:////none/billing.db"), "no billing database"),
        (("totals", "--url", "oracle://x"), "write sqlite:///FILE"),
        (("serve", "--mqtt", "http://x"), "write mqtt://HOST:PORT"),
        (("serve", "--mqtt", "mqtt://me:word@x"), "QCNODE_BILLING_MQTT_PASSWORD"),
        (("serve", "--token-file", "/none/token"), "cannot be read"),
        (("serve", "--url", "sqlite:////none/billing.db"), "does not answer"),
    ],
)
def test_wrong_use_is_one_line_and_exit_code_2(billing, url, words, says):
    done = billing(*words, QCNODE_BILLING_URL=url)
    assert done.returncode == 2, done.stdout
    assert says in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert "word@" not in done.stderr
