"""`deploy/verify_ledger.py`, run as an auditor runs it: with nothing of ours at hand."""

from __future__ import annotations

import base64
import importlib.util
import itertools
import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer import Typer
from typer.testing import CliRunner

from qcnode.books import chain
from qcnode.books.seals import Checkpoint, SigningKey
from qcnode.cli import ledger as ledger_cli
from qcnode.money import EpochOpened, Receipt
from tests.node.homes import FIRST, Node, spend
from tests.node.test_ledger import indeterminate, intent, not_billed, put, settled
from tests.node.test_ledger_file import make_v1
from tests.node.test_ledger_snapshot import BUDGETS, STEP, live

SCRIPT = Path(__file__).resolve().parents[2] / "deploy" / "verify_ledger.py"
ALONE = """
import runpy, sys
for ours in ("qcnode", "qcmodels", "qcbridge", "msgspec"):
    sys.modules[ours] = None
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(scope="module")
def verifier():
    """The verifier as a module, for the many cases that need no process of their own."""
    spec = importlib.util.spec_from_file_location("verify_ledger", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["verify_ledger"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["verify_ledger"]


@pytest.fixture
def check(verifier, capsys):
    """Run it in this process; return exit code and what it printed as JSON."""

    def run(*words):
        capsys.readouterr()
        code = verifier.main([*map(str, words), "--json"])
        return code, json.loads(capsys.readouterr().out)

    return run


def alone(*words):
    return subprocess.run(
        [sys.executable, "-I", "-c", ALONE, str(SCRIPT), *map(str, words)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def export(node: Node, out: Path, *, code: int = 0) -> Path:
    app = Typer()
    ledger_cli.register(app)
    words = ["ledger", "export", "--home", str(node.home), "--out", str(out), "--force"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == code, done.output
    return out


@pytest.fixture
def server(tmp_path) -> SigningKey:
    return SigningKey.open(tmp_path / "server.key", name="billing")


@pytest.fixture
def node(tmp_path, server) -> Node:
    node = Node(tmp_path / "home")
    with node.open() as ledger:
        spend(ledger, "a", "b")
        put(ledger, intent("c"), not_billed("c"), intent("d"), indeterminate("d"))
        put(ledger, intent("e"), settled("e", None))
        sixth = ledger.read(5, 1)[0]
        note = server.add_to(ledger.checkpoint_note(6, sixth.hash))
        ledger.confirm(Receipt(epoch=FIRST, acked_seq=6, head_hash=sixth.hash.hex(), note=note))
    return node


@pytest.fixture
def books(node, tmp_path) -> Path:
    return export(node, tmp_path / "books.jsonl")


def test_a_clean_export_verifies_without_anything_of_ours(node, server, books):
    done = alone(books, "--key", node.key.public, "--server-key", server.public)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        f"10 entries of epoch {FIRST}: chain, form and steps hold",
        "5 attempts: 1 indeterminate, 1 not billed, 2 settled, 1 unpriced",
        "21 input and 9 output tokens",
        "measured 0.000000000120 USD",
        "held 0.000000000200 USD",
        "signed by the node up to entry 10",
        "signed by the billing server up to entry 6",
    ]


def test_it_says_when_it_knows_no_other_keys_than_the_exports_own(books):
    done = alone(books)
    assert done.returncode == 0
    assert "by the keys in the export itself" in done.stdout


def test_it_explains_itself(verifier):
    done = alone("--help")
    assert done.returncode == 0
    for words in ("--key", "--server-key", "--note", "Exit code 0", "cryptography"):
        assert words in done.stdout
    assert "import qcnode" not in SCRIPT.read_text()
    assert verifier.FORMAT == "qcnode.ledger.export.v1"


def test_a_tampered_export_ends_with_1_in_a_process_of_its_own(books, node):
    lines = books.read_text().splitlines(keepends=True)
    books.write_text("".join([*lines[:3], *lines[4:]]))
    done = alone(books, "--key", node.key.public)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "entry 3 is missing, 4 stands in its place\n"


# -- all that can be wrong ---------------------------------------------------------------


def edit(books: Path, change) -> None:
    """Change the export, line by line as objects."""
    rows = [json.loads(line) for line in books.read_text().splitlines()]
    changed = change(rows)
    rows = changed if isinstance(changed, list) else rows
    books.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def entries(rows: list) -> list:
    return [row for row in rows if "seq" in row]


def rehash(rows: list) -> None:
    """Link all entries anew, and set the end."""
    before = chain.genesis(FIRST)
    for seq, row in enumerate(entries(rows), start=1):
        row["seq"] = seq
        before = chain.entry_hash(seq, row["body"].encode(), before)
        row["hash"] = before.hex()
    rows[-1]["end"] = {"entries": len(entries(rows)), "hash": before.hex()}


def body(rows: list, seq: int, old: str, new: str) -> None:
    row = rows[seq]
    assert old in row["body"]
    row["body"] = row["body"].replace(old, new)


def no_notes(rows: list) -> list:
    return [row for row in rows if "checkpoint" not in row]


def forge(rows: list, seq: int, old: str, new: str) -> list:
    """Change a body as somebody does who hashes everything anew and drops the notes."""
    body(rows, seq, old, new)
    rehash(rows)
    return no_notes(rows)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda rows: body(rows, 2, '"pico":60', '"pico":10'), "entry 2 was changed"),
        (lambda rows: rows[4].update(hash="00" * 32), "entry 4 was changed"),
        (lambda rows: rows[4].update(hash="zz"), "entry 4: line 5 is not as it was exported"),
        (lambda rows: rows[4].update(seq="4"), "entry 4: line 5 is an entry without a number"),
        (lambda rows: rows[4].update(seq=7), "entry 4 is missing, 7 stands in its place"),
        (lambda rows: rows[4].update(epoch="2" * 32), "entry 4 belongs to epoch 2222"),
        (lambda rows: rows.pop(10), "entry 10 is missing: the node has vouched for 10"),
        (
            lambda rows: no_notes([*rows[:10], *rows[11:]]),
            "entry 10 is missing: the export ended with 10",
        ),
        (lambda rows: rows.insert(3, rows[2]), "entry 3 is missing, 2 stands in its place"),
        (lambda rows: rows.pop(), "the export has no end: it was cut off after entry 10"),
        (lambda rows: rows.append(rows[2]), "something follows the end"),
        (lambda rows: rows[-1]["end"].update(hash="00" * 32), "entry 10 is not the one"),
        (lambda rows: rows[0].update(genesis="00" * 32), "another beginning"),
        (lambda rows: rows[-2]["checkpoint"].update(note="scribbles"), "cannot be read"),
        (lambda rows: rows[-2]["checkpoint"].update(seq=3), "is about something else"),
        # Hashed anew and without notes: the steps still have to be possible.
        (
            lambda rows: forge(rows, 2, '"attempt_id":"a"', '"attempt_id":"z"'),
            "entry 2: attempt z has no intent",
        ),
        (
            lambda rows: forge(rows, 3, '"id":"b"', '"id":"a"'),
            "entry 3: attempt a is on record already (settled)",
        ),
        (lambda rows: forge(rows, 2, '"pico":60', '"pico":-60'), "entry 2: no amount"),
        (lambda rows: forge(rows, 2, '"pico":60', '"pico":6e1'), "entry 2: its body is no JSON"),
        (lambda rows: forge(rows, 2, '"pico":60', '"pico":60.5'), "is no whole number"),
        (lambda rows: forge(rows, 2, '"pico":60', '"pico":true'), "entry 2: no amount"),
        (lambda rows: forge(rows, 2, '"pico":60', '"pico": 60'), "not written the one way"),
        (lambda rows: forge(rows, 2, '"v":2', '"v":3'), "of a version that is not known"),
        (lambda rows: forge(rows, 2, '"kind":"settled"', '"kind":"gift"'), "'gift' may not follow"),
        (lambda rows: forge(rows, 8, '"currency":"USD"', '"currency":"CNY"'), "another currency"),
        (lambda rows: forge(rows, 2, '"output":3', '"output":-3'), "no count of tokens"),
    ],
)
def test_what_was_tampered_with_is_found_and_named(books, check, change, says):
    edit(books, change)
    code, told = check(books)
    assert (code, told["verified"]) == (1, False)
    assert says in told["problem"]


def test_a_cut_line_is_no_entry(books, check):
    raw = books.read_bytes()
    books.write_bytes(raw[: raw.index(b'"seq": 5') + 30])
    code, told = check(books)
    assert code == 1
    assert "entry 5: line 6 is not as it was exported" in told["problem"]


def test_a_history_hashed_anew_is_not_what_the_node_signed(books, node, check):
    def forge_and_keep_notes(rows):
        body(rows, 2, '"pico":60', '"pico":10')
        rehash(rows)

    edit(books, forge_and_keep_notes)
    code, told = check(books, "--key", node.key.public)
    assert code == 1
    assert "another one than the node has vouched for" in told["problem"]


def test_a_history_signed_anew_has_no_signature_of_the_node(books, node, check, tmp_path):
    impostor = SigningKey.open(tmp_path / "impostor.key", name="acme/n1")

    def forge_and_sign(rows):
        rows = forge(rows, 2, '"pico":60', '"pico":10')
        end = rows[-1]["end"]
        said = Checkpoint(
            origin=f"qcnode/acme/n1/{FIRST}", size=10, head_hash=bytes.fromhex(end["hash"])
        )
        note = {"seq": 10, "signer": "node", "note": impostor.sign(said)}
        rows[0]["keys"]["node"] = [str(impostor.public)]
        rows.insert(-1, {"checkpoint": note})
        return rows

    edit(books, forge_and_sign)
    assert check(books)[0] == 0  # By its own keys it agrees with itself: this is why to ask.
    code, told = check(books, "--key", node.key.public)
    assert code == 1
    assert "the note at entry 10 has no signature of the node" in told["problem"]


def test_a_tail_cut_off_is_found_by_a_note_kept_elsewhere(books, node, server, check, tmp_path):
    tenth = bytes.fromhex(
        entries([json.loads(one) for one in books.read_text().splitlines()])[9]["hash"]
    )
    said = Checkpoint(origin=f"qcnode/acme/n1/{FIRST}", size=10, head_hash=tenth)
    (tmp_path / "notes.txt").write_text(server.add_to(node.key.sign(said)))
    words = ("--note", tmp_path / "notes.txt", "--server-key", server.public)
    assert check(books, *words)[1]["signed_by_server"] == 10

    def cut(rows):
        rows[:] = [*rows[:7], rows[-1]]
        rehash(rows)

    edit(books, cut)
    assert check(books)[0] == 0
    code, told = check(books, *words)
    assert code == 1
    assert "entry 7 is missing: the billing server has vouched for 10" in told["problem"]
    forged = server.add_to(node.key.sign(said)).replace("\n10\n", "\n6\n")
    (tmp_path / "notes.txt").write_text(forged)
    code, told = check(books, *words)
    assert code == 1
    assert "no signature of the billing server" in told["problem"]


@pytest.mark.parametrize(
    "words",
    [
        ("/none/books.jsonl",),
        ("{books}", "--key", "nonsense"),
        ("{books}", "--server-key", "billing+00000000+AAAA"),
        ("{books}", "--note", "/none/notes.txt"),
        ("{script}",),
        ("{picture}",),
        ("{other}",),
    ],
)
def test_what_cannot_be_checked_ends_with_2(books, check, tmp_path, words):
    (tmp_path / "picture").write_bytes(base64.b64decode("iVBORw0KGgo="))
    (tmp_path / "other").write_text(json.dumps({"format": "another", "epoch": "e"}) + "\n")
    files = {
        "books": books,
        "script": SCRIPT,
        "picture": tmp_path / "picture",
        "other": tmp_path / "other",
    }
    code, told = check(*(word.format(**files) for word in words))
    assert code == 2
    assert "verified" not in told
    assert "\n" not in told["problem"]


def test_random_flips_of_an_export_never_pass_and_never_break_it(books, check):
    clean = books.read_bytes()
    chance = random.Random(4)
    begins = clean.index(b"\n") + 1
    entries_end = clean.index(b'{"checkpoint"')
    for number in range(300):
        raw = bytearray(clean)
        raw[chance.randrange(begins, entries_end)] ^= 1 << chance.randrange(8)
        books.write_bytes(raw)
        code, told = check(books)
        same = [json.loads(one) for one in clean.splitlines()]
        try:
            unchanged = [json.loads(one) for one in bytes(raw).splitlines()] == same
        except ValueError:
            unchanged = False
        assert code == (0 if unchanged else 1), (number, told)


# -- the same as ours --------------------------------------------------------------------


def test_an_epoch_that_goes_on_from_another_verifies(node, check, tmp_path):
    (node.home / "ledger.db.mark").unlink()
    with node.open() as ledger:
        assert isinstance(chain.fact_of(ledger.read(0, 1)[0]), EpochOpened)
        spend(ledger, "x")
    code, told = check(export(node, tmp_path / "second.jsonl"), "--key", node.key.public)
    assert (code, told["entries"], told["signed_by_node"]) == (0, 3, 3)


def test_bodies_of_version_1_verify(check, tmp_path):
    node = Node(tmp_path / "old", signs=False)
    make_v1(node.path)
    code, told = check(export(node, tmp_path / "v1.jsonl"))
    assert code == 0
    assert told["attempts"] == {"settled": 2, "not_billed": 1, "indeterminate": 1}
    assert (told["tokens"], told["cost_pico"]) == ({"input": 24, "output": 6}, {"CNY": 8_000})


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(STEP, min_size=1, max_size=60))
def test_it_comes_to_the_same_sums_as_the_node(tmp_path_factory, verifier, steps):
    folder = tmp_path_factory.mktemp("home")
    node = Node(folder / "h", budgets=BUDGETS)
    with node.open() as ledger:
        live(node, ledger, steps, itertools.count())
        totals = ledger.totals()
    result = verifier.check_export(export(node, folder / "x.jsonl"), [node.key.public], [], [])
    books = result.books
    assert books.entries == totals.entries == result.signed_by_node
    states = books.states()
    assert states.get("settled", 0) + states.get("unpriced", 0) == totals.settled
    for state in ("reserved", "not_billed", "indeterminate", "reconciled", "written_off"):
        assert states.get(state, 0) == getattr(totals, state)
    assert (states.get("intent", 0), states.get("unpriced", 0)) == (totals.open, totals.unpriced)
    assert books.sums("usage") == totals.cost_pico
    assert books.sums("holds") == totals.held_pico
    assert sum(books.accounts.values()) == 0
    assert books.tokens == {"input": totals.input_tokens, "output": totals.output_tokens}
