"""`qcnode ledger`, as people and programs type it."""

from __future__ import annotations

import http.server
import json
import shutil
import sqlite3
import threading
from contextlib import closing

import pytest
from typer import Typer
from typer.testing import CliRunner

from qcnode.books.seals import PublicKey, SigningKey
from qcnode.cli import ledger as ledger_cli
from qcnode.money import Attempt, CostCentre, Intent, Receipt, TokenUsage
from tests.node.homes import FIRST, Node, spend
from tests.node.test_ledger import indeterminate, intent, not_billed, put, settled, usd
from tests.node.test_seals import cut


@pytest.fixture
def run():
    app = Typer()
    ledger_cli.register(app)
    runner = CliRunner()
    return lambda *words: runner.invoke(app, ["ledger", *map(str, words)])


@pytest.fixture
def server(tmp_path) -> SigningKey:
    return SigningKey.open(tmp_path / "server.key", name="billing")


@pytest.fixture
def node(tmp_path) -> Node:
    """Six attempts of two cost centres; the server has confirmed nothing."""
    node = Node(tmp_path / "home")
    with node.open() as ledger:
        spend(ledger, "a", "b")
        put(ledger, intent("c"), not_billed("c"), intent("d"), indeterminate("d"))
        put(ledger, intent("e"), settled("e", None))
        centre = CostCentre(line="L1", department="body shop")
        attempt = Attempt(
            id="f", escalation_id="e", number=1, provider="acme-llm", model="m", centre=centre
        )
        put(
            ledger,
            Intent(
                attempt=attempt,
                worst=TokenUsage(text=9),
                hold=usd(500),
                request_sha256="0" * 64,
                request_bytes=1,
                image_sha256=None,
            ),
            settled("f", 300),
        )
    return node


def confirmed(node: Node, server: SigningKey, seq: int) -> str:
    """Have the server confirm up to `seq`; return its note."""
    with node.open() as ledger:
        entry = ledger.read(seq - 1, 1)[0]
        note = server.add_to(ledger.checkpoint_note(seq, entry.hash))
        ledger.confirm(Receipt(epoch=FIRST, acked_seq=seq, head_hash=entry.hash.hex(), note=note))
    return note


def test_show_tells_states_kinds_of_tokens_and_accounts(node, run):
    told = run("show", "--home", node.home, "--last", "2").stdout
    assert "12 entries, 0 confirmed by the billing server" in told
    assert (
        "6 attempts: 4 settled, 1 not billed, 1 indeterminate, 0 reconciled, 0 written off,"
        " 0 reserved, 0 open; 1 unpriced"
    ) in told
    assert "by class: 28 text, 12 output" in told
    assert "usage   line L1, department body shop" in told
    shown = json.loads(run("show", "--home", node.home, "--json", "--last", "0").stdout)
    assert shown["totals"]["usage"]["text"] == 28
    assert {
        "account": "usage",
        "of": {
            "line": "L1",
            "product": "",
            "department": "body shop",
            "application": "",
            "function": "",
            "agent": "",
        },
        "currency": "USD",
        "pico": 300,
    } in shown["balances"]
    assert shown["entries"] == []


def test_accounts_sum_to_zero_in_each_currency(node, run):
    done = run("accounts", "--home", node.home, "--json")
    told = json.loads(done.stdout)
    assert (done.exit_code, told["balanced"], told["sum_pico"]) == (0, True, {"USD": 0})
    assert sum(row["pico"] for row in told["balances"]) == 0
    assert {row["account"] for row in told["balances"]} == {"holds", "pending", "usage", "payable"}
    lines = run("accounts", "--home", node.home).stdout.splitlines()
    assert lines[-1].split() == ["all", "accounts", "together", "0.00", "USD"]
    assert any(
        line.startswith("pending scripted") and "-0.0000000002 USD" in line for line in lines
    )


def test_verify_says_who_stands_in_for_what(node, run, server):
    note = confirmed(node, server, 10)
    told = run("verify", "--home", node.home, "--server-key", server.public).stdout
    assert "12 entries verified, 10 confirmed" in told
    assert "signed by the node up to entry 12" in told
    assert "signed by the billing server up to entry 10" in told
    assert "not known here" not in told
    assert "whose signer's key is not known here: 1" in run("verify", "--home", node.home).stdout
    as_json = json.loads(run("verify", "--home", node.home, "--json").stdout)
    assert (as_json["signed_by_node"], as_json["signed_by_server"]) == (12, 10)
    assert note.startswith("qcnode/acme/n1/")


def test_a_tail_cut_off_head_and_all_is_found_by_a_note_kept_elsewhere(node, run, server, tmp_path):
    (tmp_path / "notes.txt").write_text(confirmed(node, server, 10))
    words = ("--witness", tmp_path / "notes.txt", "--server-key", server.public)
    assert run("verify", "--home", node.home, *words).exit_code == 0

    cut(node, 7)
    with closing(sqlite3.connect(node.path)) as db:
        db.execute("DELETE FROM checkpoint")
        db.commit()
    alone = tmp_path / "alone.db"
    shutil.copy(node.path, alone)
    assert run("verify", "--db", alone).exit_code == 0  # By itself it is a sound ledger of six.
    done = run("verify", "--db", alone, *words)
    assert done.exit_code == 1
    assert "entry 7 is missing: the billing server has vouched for 10" in done.stderr
    # In its home, the mark knows as well.
    beside = run("verify", "--home", node.home)
    assert beside.exit_code == 1
    assert "entry 7 is missing: 12 were on record by the mark" in beside.stderr


class Notes(http.server.BaseHTTPRequestHandler):
    """A billing server that gives out notes to whoever presents the token."""

    def do_GET(self) -> None:
        allowed = self.headers["Authorization"] == "Bearer sesame"
        self.send_response(200 if allowed else 401)
        self.end_headers()
        if allowed:
            self.wfile.write(self.server.notes.encode())

    def log_message(self, *_args) -> None:
        pass


def test_a_witness_can_be_asked_at_its_address(node, run, server, monkeypatch):
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Notes) as listening:
        listening.notes = confirmed(node, server, 10)
        threading.Thread(target=listening.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{listening.server_port}/notes"
        refused = run("verify", "--home", node.home, "--witness", url)
        assert refused.exit_code == 2
        assert "answers 401" in refused.stderr
        monkeypatch.setenv("QCNODE_BILLING_TOKEN", "sesame")
        assert run("verify", "--home", node.home, "--witness", url).exit_code == 0
        cut(node, 7)
        done = run("verify", "--home", node.home, "--witness", url)
        listening.shutdown()
    assert done.exit_code == 1
    gone = run("verify", "--home", node.home, "--witness", url)
    assert gone.exit_code == 2
    assert "does not answer" in gone.stderr


def test_notes_about_other_ledgers_are_no_witness(node, run, server, tmp_path):
    other = Node(tmp_path / "other", budgets=())
    other.epochs = iter(["9" * 32])
    with other.open() as ledger:
        spend(ledger, "a")
        note = ledger.checkpoint_note(2, ledger.read(1, 1)[0].hash)
    (tmp_path / "notes.txt").write_text(server.add_to(note))
    done = run("verify", "--home", node.home, "--witness", tmp_path / "notes.txt")
    assert done.exit_code == 2
    assert f"none of the 1 notes given is about epoch {FIRST}" in done.stderr


def test_a_ledger_signed_with_another_key_does_not_verify(node, run, tmp_path):
    SigningKey.open(tmp_path / "impostor.key", name="acme/n1")
    shutil.copy(tmp_path / "impostor.key", node.home / "node.key")
    done = run("verify", "--home", node.home)
    assert done.exit_code == 1
    assert "no signature of acme/n1 with the key" in done.stderr
    # With the key it was signed with, it does; a file may hold it.
    (tmp_path / "node.pub").write_text(f"{node.key.public}\n")
    assert run("verify", "--home", node.home, "--key", tmp_path / "node.pub").exit_code == 0


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--key", "nonsense"), "no key"),
        (("--witness", "/none/notes.txt"), "/none/notes.txt: cannot be read"),
        (("--db", "/none/ledger.db"), "/none/ledger.db: there is no ledger here"),
    ],
)
def test_wrong_use_of_verify_is_one_line_and_exit_code_2(node, run, words, says):
    done = run("verify", *(() if "--db" in words else ("--home", node.home)), *words)
    assert done.exit_code == 2
    assert says in done.stderr or "is of a kind not known" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("content", [b"not a database at all" * 100, b"", b"SQLite format 3"])
def test_a_file_that_is_no_ledger_ends_with_2(tmp_path, run, content):
    (tmp_path / "file.db").write_bytes(content)
    for command in ("verify", "show", "accounts"):
        done = run(command, "--db", tmp_path / "file.db")
        assert done.exit_code == 2
        assert "file.db" in done.stderr
        assert len(done.stderr.splitlines()) == 1


def test_key_prints_what_the_billing_server_wants(node, run, tmp_path):
    assert run("key", "--home", node.home).stdout.strip() == str(node.key.public)
    told = json.loads(run("key", "--home", node.home, "--json").stdout)
    assert PublicKey.parse(told["key"]).name == told["name"] == "acme/n1"
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "add --make" in run("key", "--home", empty).stderr
    assert "say --name" in run("key", "--home", empty, "--make").stderr
    made = run("key", "--home", empty, "--make", "--name", "acme/n2").stdout
    assert made.startswith("acme/n2+")
    assert run("key", "--home", empty, "--name", "acme/n2").stdout == made


def test_backup_and_restore_go_there_and_back(node, run, tmp_path):
    out = tmp_path / "backup.db"
    done = run("backup", "--home", node.home, "--out", out)
    assert done.exit_code == 0
    assert f"12 entries of epoch {FIRST}, verified" in done.stdout
    assert run("backup", "--home", node.home, "--out", out).exit_code == 2

    drill = run("restore", out, "--verify")
    assert drill.exit_code == 0
    assert "restored and opened on trial" in drill.stdout
    new = tmp_path / "new"
    told = json.loads(run("restore", out, "--home", new, "--verify", "--json").stdout)
    assert (told["epoch"], told["entries"]) == (FIRST, 12)
    assert told["opened_as"] == "restored from a backup that ends at entry 12"
    again = run("restore", out, "--home", new)
    assert again.exit_code == 2
    assert "never written over" in again.stderr


def test_restore_asks_where_to_and_takes_no_other_file(node, run, tmp_path):
    assert "say where" in run("restore", node.path).output
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\r\n")
    done = run("restore", tmp_path / "picture.png", "--home", tmp_path / "new")
    assert done.exit_code == 2
    assert "picture.png: this is no ledger" in done.stderr
    assert not (tmp_path / "new").exists()


def test_a_damaged_backup_is_refused_with_1(node, run, tmp_path):
    out = tmp_path / "backup.db"
    run("backup", "--home", node.home, "--out", out)
    with closing(sqlite3.connect(out)) as db:
        db.executescript("DROP TRIGGER entry_not_removed; DELETE FROM entry WHERE seq = 4")
    for words in (("--verify",), ("--home", tmp_path / "new")):
        done = run("restore", out, *words)
        assert done.exit_code == 1
        assert "entry 4" in done.stderr


def test_everything_works_while_a_node_writes(node, run, tmp_path):
    with node.open() as ledger:
        spend(ledger, "now")
        for words in (
            ("show",),
            ("accounts",),
            ("verify",),
            ("backup", "--out", tmp_path / "b.db"),
        ):
            assert run(words[0], "--home", node.home, *words[1:]).exit_code == 0
        spend(ledger, "then")
