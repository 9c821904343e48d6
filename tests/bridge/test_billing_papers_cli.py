"""The papers of `qcnode billing`, as people type them."""

import json
import sys
from types import SimpleNamespace

import pytest

from qcnode.cli.app import main
from qcnode.money import Outcome
from tests.bridge.paper_world import PAINT, SOLDER, PaperWorld, at
from tests.bridge.test_reconcile import OPENROUTER, generation

BOOK = """\
[defaults]
source = "a test"
checked_at = 2026-11-01
[[price]]
provider = "deepseek"
model = "deepseek-flash"
currency = "CNY"
valid_from = 2026-01-01T00:00:00Z
valid_to = 2026-11-20T00:00:00Z
micro_per_mtok = { input = 1_000_000, image = 1_500_000, cache_read = 20_000, output = 4_000_001 }
[[price]]
provider = "deepseek"
model = "deepseek-flash"
currency = "CNY"
valid_from = 2026-11-20T00:00:00Z
micro_per_mtok = { input = 2_000_000, image = 3_000_000, cache_read = 40_000, output = 8_000_002 }
[[price]]
provider = "openai"
model = "gpt-5.5-instant"
currency = "USD"
valid_from = 2026-01-01T00:00:00Z
micro_per_mtok = { input = 1_000_000, image = 1_500_000, cache_read = 20_000, output = 4_000_001 }
"""


@pytest.fixture
def desk(tmp_path, monkeypatch, capsys):
    """A tenant's books of September 2026, which is over, and a way to type commands about them."""
    world = PaperWorld(f"sqlite:///{tmp_path}/billing.db", now="2026-09-20T00")
    node = world.node()
    node.use(at_us=at("2026-09-16T01"), escalation="part-1")
    node.use(at_us=at("2026-09-16T02"), centre=PAINT)
    node.lose(at_us=at("2026-09-16T03"))
    node.write(
        Outcome(
            escalation_id="part-1",
            centre=SOLDER,
            ruled="GOOD",
            truth="GOOD",
            node_alone="REJECT",
            source="audit",
        ),
        at_us=at("2026-09-17T00"),
    )
    world.send()
    (tmp_path / "book.toml").write_text(BOOK)

    def run(*words):
        capsys.readouterr()
        url = ["--url", f"sqlite:///{tmp_path}/billing.db"]
        if words[0] == "check-focus":
            url = []
        monkeypatch.setattr(sys, "argv", ["qcnode", "billing", *map(str, words), *url])
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capsys.readouterr()
        return SimpleNamespace(code=ended.value.code or 0, out=printed.out, err=printed.err)

    yield SimpleNamespace(run=run, world=world, path=tmp_path, book=tmp_path / "book.toml")
    world.close()


SEPTEMBER = ("--period", "2026-09")


def issue(desk, *words):
    return desk.run("invoice", *SEPTEMBER, "--issue", "--prices", desk.book, *words)


def test_a_preview_is_a_readable_table_and_changes_nothing(desk):
    done = desk.run("invoice", *SEPTEMBER)
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    assert lines[0] == "Invoice of acme for 2026-09 (UTC), preview"
    assert lines[1].split() == [
        *("node", "account", "provider", "model", "class", "price", "attempts", "tokens"),
        "amount",
    ]
    assert lines[2].split()[:4] == ["node-1", "assembly", "/", "vision"]
    assert any(line.startswith("Total: 0.00") and line.endswith(" CNY") for line in lines)
    assert "Held, not billed: 1 attempt indeterminate at deepseek, at most 0.009 CNY" in lines
    value = json.loads(desk.run("invoice", *SEPTEMBER, "--json").out)
    assert (value["issued"], value["number"], value["differing"]) == (False, None, None)
    assert json.loads(desk.run("invoices", "--json").out) == {"invoices": []}


def test_a_month_is_issued_listed_shown_and_verified_from_the_nodes_own_ledger(desk):
    done = issue(desk)
    assert done.code == 0, done.err
    assert done.out.startswith("Invoice acme-000001 to acme for 2026-09 (UTC), issued ")
    assert "Entries that differ from the price book: 0" in done.out
    again = issue(desk)
    assert again.out == done.out
    assert again.err == "2026-09 was issued before as acme-000001\n"
    assert "acme-000001  2026-09" in desk.run("invoices").out
    shown = json.loads(desk.run("invoice", *SEPTEMBER, "--json").out)
    assert (shown["issued"], shown["id"]) == (True, "acme-000001")

    export = desk.world.node().export(desk.path)
    for number in ("1", "acme-000001"):
        verified = desk.run(
            "verify-invoice", number, "--entries", export, "--prices", desk.book, "--json"
        )
        assert verified.code == 0, verified.out + verified.err
        assert json.loads(verified.out)["verified"]


def test_an_invoice_is_verified_offline_from_its_document(desk):
    issue(desk)
    document, entries = desk.path / "acme-000001.json", desk.path / "entries"
    desk.run("export", "--format", "invoice", *SEPTEMBER, "--out", document)
    made = desk.run("export", "--format", "entries", "--out", entries, *SEPTEMBER, "--json")
    assert json.loads(made.out) == {"format": "entries", "out": str(entries), "count": 1}
    words = (
        "verify-invoice",
        1,
        "--invoice",
        document,
        "--entries",
        entries,
        "--prices",
        desk.book,
    )
    verified = desk.run(*words)
    assert verified.code == 0, verified.out
    assert verified.out == "acme-000001: 7 entries, 10 lines, verified\n"
    text = document.read_text()
    document.write_text(text.replace('"tokens":800', '"tokens":801', 1))
    changed = desk.run(*words)
    assert changed.code == 1
    assert "tokens 801, worked out 800" in changed.out
    assert changed.out.endswith("NOT verified: 1 differences\n")


def test_focus_is_written_and_checked(desk):
    issue(desk)
    for form in ("focus-csv", "focus-parquet"):
        path = desk.path / f"f.{form.removeprefix('focus-')}"
        done = desk.run("export", "--format", form, *SEPTEMBER, "--out", path)
        assert done.code == 0, done.err
        assert done.out == f"{path}: 10 rows of {form}\n"
        checked = desk.run("check-focus", path)
        assert (checked.code, checked.out) == (0, f"{path}: 10 rows, conforms to FOCUS 1.2\n")
    broken = desk.path / "f.csv"
    broken.write_text(broken.read_text().replace(",Usage,", ",usage,"))
    checked = desk.run("check-focus", broken, "--json")
    assert checked.code == 1
    value = json.loads(checked.out)
    assert not value["conforms"]
    assert {"ChargeCategory", "ConsumedQuantity"} == {one["column"] for one in value["findings"]}
    assert "ChargeCategory-C-003-M" in desk.run("check-focus", broken).out


@pytest.mark.parametrize(("form", "count"), [("cloudevents", 2), ("openmeter", 1), ("lago", 1)])
def test_events_are_one_request_body_a_line(desk, form, count):
    path = desk.path / "events.jsonl"
    done = desk.run("export", "--format", form, *SEPTEMBER, "--out", path, "--json")
    assert json.loads(done.out)["count"] == 2
    assert len([json.loads(line) for line in path.read_text().splitlines()]) == count


def test_a_providers_file_is_compared_once_and_an_alarm_is_exit_code_1(desk):
    file = desk.path / "activity.csv"
    file.write_text(OPENROUTER + generation("gen-x", at="2026-09-16 05:00:00"))
    words = ("reconcile", file, "--provider", "openrouter", "--as", "deepseek")
    done = desk.run(*words)
    assert done.code == 1
    assert "ALARM: under 99.5 %" in done.out
    again = desk.run(*words, "--json")
    value = json.loads(again.out)
    assert (again.code, value["fresh"], value["alarm"]) == (1, False, True)


def test_a_pack_is_bought_once_and_listed_with_what_is_left(desk):
    words = ("pack", "buy", "pack-1", "--provider", "deepseek", "--tokens", 1_000_000)
    words += ("--price", "5000.00", "--currency", "CNY")
    words += ("--bought", "2026-09-01", "--until", "2027-09-01")
    assert desk.run(*words).out == "pack-1: on record\n"
    assert desk.run(*words).out == "pack-1: was on record before\n"
    assert desk.run(*words[:-4], *words[-2:]).out == "pack-1: was on record before\n"
    done = issue(desk)
    assert "Pack pack-1: 1000000 tokens of deepseek, 5000.000000 CNY" in done.out
    [pack] = json.loads(desk.run("pack", "list", "--json").out)["packs"]
    assert pack["left"] == 1_000_000 - 2 * 1_760
    assert "996480" in desk.run("pack", "list").out


def test_what_tokens_were_worth_is_printed(desk):
    done = desk.run("value", *SEPTEMBER)
    assert done.code == 0, done.err
    assert "0 defects caught, 1 false rejects avoided" in done.out
    [row] = json.loads(desk.run("value", *SEPTEMBER, "--json").out)["value"]
    assert row["per_saved_pico"] == row["cost_pico"]


def test_totals_are_printed_for_people_and_for_programs(desk):
    assert "acme: 7 entries of 3 attempts" in desk.run("totals").out
    value = json.loads(desk.run("totals", "--json").out)
    assert (value["indeterminate"], value["capture"]) == (1, [])


def test_yuan_on_a_dollar_invoice_need_a_rate_with_date_and_source(desk):
    refused = issue(desk, "--currency", "USD")
    assert refused.code == 2
    assert "state what one CNY is" in refused.err
    done = issue(desk, "--currency", "USD", "--rate", "CNY=0.139512,2026-09-30,PBOC central parity")
    assert done.code == 0, done.err
    assert "One CNY is 0.139512 USD: PBOC central parity, 2026-09-30" in done.out


def test_a_contract_is_applied_and_named_on_the_invoice(desk):
    contract = desk.path / "contract.toml"
    contract.write_text(
        '[[term]]\nid = "t"\nprovider = "deepseek"\nmodel = "*"\nfrom_period = "2026-01"\n'
        "discount_bp = 5000\n"
    )
    full = json.loads(desk.run("invoice", *SEPTEMBER, "--json").out)["total_micro"]["CNY"]
    half = json.loads(issue(desk, "--contract", contract, "--json").out)
    assert abs(half["total_micro"]["CNY"] * 2 - full) <= len(half["lines"])
    assert half["contract_sha256"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("invoice", "--period", "november"), "is no month"),
        (("invoice", "--tenant", "nobody"), "no entries of tenant"),
        (("invoice", "--issue", "--period", "2026-09"), "--prices"),
        (("invoice", "--rate", "CNY=1"), "write CURRENCY=RATE,DATE,SOURCE"),
        (("invoice", "--currency", "yuan"), "three capital letters"),
        (("invoice", "--contract", "/none"), "no contract to read"),
        (("verify-invoice", "one", "--prices", "scripted", "--entries", "x"), "no number"),
        (("verify-invoice", "7", "--prices", "scripted", "--entries", "x"), "there is no invoice"),
        (("export", "--format", "pdf", "--out", "x"), "write focus-csv"),
        (("export", "--format", "focus-csv", "--out", "x", "--period", "2026-09"), "not issued"),
        (("export", "--format", "focus-csv", "--out", "x", "--bucket", "week"), "hour or day"),
        (("check-focus", "/none.csv"), "no CSV file"),
        (("reconcile", "/none.csv", "--provider", "openai"), "cannot be read"),
        (("reconcile", "/none.csv", "--provider", "acme"), "exports of deepseek"),
        (
            (
                *("pack", "buy", "p", "--provider", "x", "--tokens", "1", "--price", "1"),
                *("--currency", "USD", "--until", "soon"),
            ),
            "is no day",
        ),
    ],
)
def test_wrong_use_is_one_line_and_exit_code_2(desk, words, says):
    done = desk.run(*words)
    assert done.code == 2, done.out
    assert says in done.err
    assert len(done.err.splitlines()) == 1


def test_a_proof_is_one_command(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("QCNODE_BILLING_URL", raising=False)
    out = tmp_path / "proof"
    words = ["billing", "prove", "--entries", "300", "--nodes", "2", "--out", str(out), "--json"]
    monkeypatch.setattr(sys, "argv", ["qcnode", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    assert (ended.value.code or 0) == 0
    assert json.loads(capsys.readouterr().out)["proven"]
