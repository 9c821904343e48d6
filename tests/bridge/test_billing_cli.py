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
import structlog

from qcnode.books.batch import decode_receipt
from qcnode.books.ledger import SqliteLedger
from qcnode.books.seals import PublicKey
from qcnode.cli.app import main
from tests.bridge.ledgers import (
    AT_US,
    COST,
    HOLD,
    batch_of,
    indeterminate,
    intent,
    key_of,
    raw_batch,
    settled,
    write,
)

ENVIRONMENT = {name: value for name, value in os.environ.items() if "QCNODE" not in name}
EVENT = {"content-type": "application/cloudevents+json"}
NODE_ADD = ("node", "add", "--tenant", "acme", "--node", "node-1")
NODE_REVOKE = ("node", "revoke", "--tenant", "acme", "--node", "node-1")
BUDGET = ("budget", "add", "b", "--tenant", "t", "--limit", "1")
RELEASE = ("quarantine", "release", "--tenant", "acme", "--node", "node-1", "--epoch", "epoch-1")
ANYWHERE = "0.0.0.0"  # noqa: S104  # the case under test
PATIENCE_S = 120


@pytest.fixture
def billing(monkeypatch, capsys):
    """Type `qcnode billing ...` and read what is printed."""

    def run(*words, **environment):
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(sys, "argv", ["qcnode", "billing", *map(str, words)])
        capsys.readouterr()
        logs = structlog.get_config()
        with pytest.raises(SystemExit) as ended:
            main()
        structlog.configure(**logs)
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
        if not line.startswith("billing listens at "):
            process.kill()
            pytest.fail(line + process.communicate(timeout=PATIENCE_S)[1])
        yield process, line.split()[3].rstrip("/")
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate(timeout=PATIENCE_S)


@pytest.fixture
def url(sqlite_books, tmp_path):
    facts = [intent("a1"), settled("a1"), intent("a2"), indeterminate("a2")]
    sqlite_books.ingest(batch_of(write(facts)))
    return f"sqlite:///{tmp_path}/billing.db"


def test_a_served_batch_is_on_the_bill_and_a_term_signal_ends_it_cleanly(
    billing, database_url, tmp_path
):
    entries = write([intent(), settled()])
    registers = {"QCNODE_BILLING_URL": database_url}
    added = billing(*NODE_ADD, "--key", str(key_of().public), **registers)
    assert added.returncode == 0, added.stderr
    key_file = str(tmp_path / "billing.key")
    with serving(QCNODE_BILLING_KEY_FILE=key_file, **registers) as (process, address):
        answer = httpx2.post(f"{address}/v1/batches", content=raw_batch(entries), headers=EVENT)
        assert decode_receipt(answer.content).acked_seq == 2
        process.send_signal(signal.SIGTERM)
        said, errors = process.communicate(timeout=PATIENCE_S)
        assert (process.returncode, said, errors) == (0, "", "")
    printed = billing("key", "--key-file", key_file, QCNODE_BILLING_URL=database_url)
    receipt = decode_receipt(answer.content)
    assert PublicKey.parse(printed.stdout).check(receipt.note).size == 2
    assert receipt.server_key == printed.stdout.strip()

    printed = billing("invoice", "--period", "2026-11", "--json", QCNODE_BILLING_URL=database_url)
    assert printed.returncode == 0, printed.stderr
    assert json.loads(printed.stdout)["lines"][0]["cost_pico"] == COST.pico


@pytest.mark.postgres
def test_several_workers_serve_and_end_with_the_server(postgres, tmp_path):
    entries = write([intent(), settled()])
    words = ("--enrol-first", "--workers", "2", "--key-file", tmp_path / "billing.key")
    with serving(*words, QCNODE_BILLING_URL=postgres()) as (process, address):
        answer = httpx2.post(
            f"{address}/v1/batches", content=raw_batch(entries), headers=EVENT, timeout=PATIENCE_S
        )
        assert decode_receipt(answer.content).acked_seq == 2
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=PATIENCE_S)  # Ends when nobody holds its output any more.
        assert process.returncode == 0


def test_entries_with_a_receipt_survive_a_kill(billing, tmp_path):
    url = f"sqlite:///{tmp_path}/billing.db"
    entries = write([intent(), settled()])
    with serving("--enrol-first", "--url", url) as (process, address):
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
    assert lines[3].split()[4] == "[1]"
    assert "Total: 0.000001 CNY (scripted provider: nobody is charged)" in lines
    assert any(line.startswith("Held, not billed: 1 attempt ") for line in lines)
    assert lines[-1] == "[1] in + out"


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
    book = repository / "cloud_bridge" / "qcbridge" / "prices" / "scripted.toml"
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


def test_nodes_are_registered_listed_and_revoked(billing, url, tmp_path):
    key_file = tmp_path / "node.pub"
    key_file.write_text(f"{key_of(generation=2).public}\n")
    at = {"QCNODE_BILLING_URL": url}

    added = billing(*NODE_ADD, "--key", key_file, "--by", "jo", **at)
    assert added.stdout == f"acme/node-1 signs with key {key_of(generation=2).public.id.hex()}\n"
    listed = json.loads(billing("node", "list", "--json", **at).stdout)
    assert [row["added_by"] for row in listed] == ["enrol-first", "jo"]
    gone = billing(*NODE_REVOKE, "--key-id", listed[0]["id"], **at)
    assert gone.stdout == "1 of the keys of acme/node-1 no longer count\n"
    assert billing("node", "list", **at).stdout.splitlines()[1].split()[4] != "-"
    assert "enrol-first" in billing("audit", **at).stdout


def test_a_token_is_printed_once_and_listed_without_it(billing, url):
    at = {"QCNODE_BILLING_URL": url}
    made = billing("token", "add", "panel", "--scope", "read", "--tenant", "acme", **at)
    token = made.stdout.strip()
    assert token.startswith("qcb_")
    listed = billing("token", "list", **at).stdout
    assert token not in listed
    assert listed.splitlines()[1].split()[:3] == ["panel", "read", "acme"]
    assert billing("token", "revoke", "panel", **at).returncode == 0
    assert json.loads(billing("token", "list", "--json", **at).stdout)[0]["revoked"]


def test_quarantined_entries_are_listed_and_released_by_hand(billing, sqlite_books, tmp_path):
    at = {"QCNODE_BILLING_URL": f"sqlite:///{tmp_path}/billing.db"}
    sqlite_books.ingest(batch_of(write([intent("a1"), settled("ghost")])))
    [row] = json.loads(billing("quarantine", "list", "--json", **at).stdout)
    assert (row["node"], row["seq"], row["kind"]) == ("node-1", 2, "settled")
    assert "is not open" in billing("quarantine", "list", **at).stdout
    refused = billing(*RELEASE, "--seq", "2", **at)
    assert (refused.returncode, len(refused.stderr.splitlines())) == (2, 1)
    assert "still makes no sense" in refused.stderr


def test_a_shared_budget_is_set_in_the_units_people_use(billing, url):
    at = {"QCNODE_BILLING_URL": url}
    words = ("--tenant", "acme", "--limit", "250.5", "--currency", "CNY", "--zone", "Asia/Shanghai")
    done = billing("budget", "add", "press", *words, "--scope", "department=press", **at)
    assert done.returncode == 0, done.stderr
    [row] = json.loads(billing("budget", "list", "--json", **at).stdout)
    assert (row["limit"], row["used"]) == (250_500_000_000_000, 0)
    assert row["left"] == row["limit"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ((*NODE_ADD, "--key", "/none/key"), "cannot be read"),
        ((*NODE_ADD, "--key", "acme/node-1+00000000+AAAA"), "of a kind not known"),
        ((*NODE_ADD, "--key", str(key_of(node="other").public)), "the key of acme/other"),
        ((*NODE_ADD, "--key", str(key_of().public), "--valid-from", "soon"), "is no instant"),
        ((*NODE_ADD, "--key", str(key_of().public), "--valid-from", "2026-12-01"), "no zone"),
        (("token", "add", "x", "--scope", "everything"), "no scope is called 'everything'"),
        (("token", "revoke", "none"), "no token 'none' in force"),
        (("budget", "add", "b", "--tenant", "t", "--limit", "-1"), "--limit '-1'"),
        (("budget", "add", "b", "--tenant", "t", "--limit", "1e-13"), "--limit '1e-13'"),
        (BUDGET, "money has a currency"),
        ((*BUDGET, "--unit", "eggs"), "choose of"),
        (
            (*BUDGET, "--unit", "calls", "--scope", "house=1"),
            "fields are line",
        ),
        (("key",), "no key at"),
        (("key", "--url", "postgresql+psycopg://host/db"), "name a file for this server's"),
        (("serve", "--enrol-first", "--host", ANYWHERE), "believes every stranger"),
        (("serve", "--port", "0", "--workers", "2"), "2 workers and SQLite"),
    ],
)
def test_wrong_use_of_access_is_one_line_and_exit_code_2(billing, url, words, says):
    done = billing(*words, QCNODE_BILLING_URL=url)
    assert done.returncode == 2, done.stdout
    assert says in done.stderr
    assert len(done.stderr.splitlines()) == 1
