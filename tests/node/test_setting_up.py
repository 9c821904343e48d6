"""Setting a node up: the example configuration tells the truth, and the doctor finds the fault."""

import json
import re
import socket
import sqlite3

import pytest

from qcnode.books.ledger import SqliteLedger
from qcnode.money import Attempt, Cost, Intent, TokenUsage
from qcnode.settings import BudgetSettings, ScopeSettings, Settings, load_settings

KEY_LINE = re.compile(r"# (\w+ = .*|\[\[\w+\]\].*)")


@pytest.fixture
def example(qcnode, tmp_path):
    """The configuration that `qcnode init` writes."""
    path = tmp_path / "node.toml"
    done = qcnode("init", path)
    assert (done.code, done.err) == (0, "")
    return path


def test_init_writes_a_file_that_loads_as_the_defaults(example):
    assert load_settings(example, {}) == load_settings_of_nothing(example)


def load_settings_of_nothing(path):
    empty = path.with_name("empty.toml")
    empty.write_text("")
    return load_settings(empty, {})


def uncommented(example):
    """The example with everything in it that it only shows."""
    lines = [
        found[1] if (found := KEY_LINE.fullmatch(line)) else line
        for line in example.read_text().splitlines()
    ]
    shown = example.with_name("shown.toml")
    shown.write_text("\n".join(lines))
    example.with_name("provider.key").write_text("k3y\n")
    return shown


def test_every_key_stands_in_the_example_with_its_real_default(example):
    defaults = load_settings_of_nothing(example)
    stated = load_settings(uncommented(example), {})

    for name in Settings.model_fields.keys() - {"secrets", "budget"}:
        section, default = getattr(stated, name), getattr(defaults, name)
        if name == "provider":  # Of which there may be several.
            (section,), (default,) = section, default
        keys = type(section).model_fields.keys() - {"api_key"}  # Never in the file.
        assert section.model_fields_set >= keys, name
        for key in keys:
            # Where the default is that there is none, the example shows one.
            if getattr(default, key) not in (None, ()):
                assert getattr(section, key) == getattr(default, key), f"{name}.{key}"


def test_the_example_shows_budgets_of_both_kinds_and_limits_nothing_by_itself(example):
    assert load_settings(example, {}).budget == ()

    day, rate = load_settings(uncommented(example), {}).budget

    assert day.model_fields_set >= set(BudgetSettings.model_fields) - {"limit"}
    assert (day.window, day.shared, day.scope) == ("day", False, ScopeSettings())
    assert (rate.unit, rate.window) == ("calls", "hour")


def test_init_does_not_write_over_a_file_unless_told_to(qcnode, example):
    example.write_text("mine")

    refused = qcnode("init", example)

    assert refused.code == 2
    assert refused.err.count("\n") == 1
    assert "--force" in refused.err
    assert example.read_text() == "mine"
    assert qcnode("init", example, "--force").code == 0
    assert example.read_text() != "mine"


def test_init_names_a_place_it_cannot_write_to(qcnode, tmp_path):
    done = qcnode("init", tmp_path / "none" / "node.toml")

    assert done.code == 2
    assert done.err.count("\n") == 1
    assert "none" in done.err


# -- the doctor ----------------------------------------------------------------------


@pytest.fixture
def examine(qcnode, doubtful_model, free_port, tmp_path):
    """Let the doctor look at a set-up, and return exit code and findings by check."""
    taken = socket.create_server(("127.0.0.1", 0))
    places = {
        "model": doubtful_model,
        "free": free_port(),
        "nobody": free_port(),
        "taken": taken.getsockname()[1],
        "here": tmp_path,
    }

    def examine(text):
        config = tmp_path / "node.toml"
        config.write_text(text % places)
        done = qcnode("doctor", "--config", config, "--json")
        assert done.err == ""
        shown = json.loads(done.out)
        assert shown["ok"] == (done.code == 0)
        return done.code, {finding["check"]: finding for finding in shown["findings"]}

    with taken:
        yield examine


@pytest.fixture
def examine_with(examine, monkeypatch):
    """As `examine`, with one variable in the environment."""

    def examine_with(variable, text):
        monkeypatch.setenv(*variable)
        return examine(text)

    return examine_with


WELL = '[model]\ndir = "%(model)s"\n[panel]\nport = %(free)d\n'
ASKING = WELL + "[agent]\nenabled = true\n[provider]\n"


def test_the_doctor_finds_nothing_wrong_with_a_good_set_up(examine):
    code, findings = examine(WELL)

    assert code == 0
    assert {"python", "onnxruntime", "sqlite", "settings", "home", "model", "panel"} == set(
        findings
    )


def test_the_doctor_looks_at_everything_that_is_used(examine, monkeypatch):
    monkeypatch.setenv("QCNODE_PROVIDER_API_KEY", "k")
    text = (
        ASKING
        + 'base_url = "http://127.0.0.1:%(taken)d/v1"\n'
        + '[metering]\nchannel = "http"\nurl = "http://127.0.0.1:%(taken)d"\n'
    )

    code, findings = examine(text)

    assert code == 0
    assert {"prices", "provider", "billing"} <= set(findings)


@pytest.mark.parametrize(
    ("text", "check", "words", "fix"),
    [
        ("[panel]\n\nprot = 1\n", "settings", "line 3: unknown key panel.prot", "mend the file"),
        (
            '[line]\nperiod_ms = "fast"\n',
            "settings",
            "line 2: line.period_ms = 'fast'",
            "mend the file",
        ),
        ('[model]\ndir = "none"\n', "model", "none/manifest.json", "qcnode teach"),
        ("[panel]\nport = %(taken)d\n", "panel", "cannot listen", "panel.port"),
        ('[panel]\nhost = "::"\n', "panel", "'::'", "QCNODE_PANEL_TOKEN"),
        ('[node]\nhome = "node.toml/home"\n', "home", "cannot be written", "node.home"),
        ('[node]\nhome = "node.toml"\n', "home", "cannot be written", "node.home"),
        (
            ASKING + 'name = "acme"\nbase_url = "https://provider.example/v1"\n',
            "provider",
            "no key",
            "mend the key",
        ),
        (
            ASKING + 'image_tokens = "guess"\n',
            "provider",
            "no such formula",
            "[provider]",
        ),
        (
            ASKING + 'base_url = "https://provider.example/v1"\n',
            "provider",
            "nobody is charged",
            "[provider]",
        ),
        (
            ASKING + 'model = "unheard-of"\n',
            "prices",
            "unheard-of",
            "write a price file",
        ),
        (ASKING + 'prices = "none.toml"\n', "prices", "none.toml", "write a price file"),
        (
            ASKING + '[[budget]]\nname = "day"\ncurrency = "CNY"\nlimit_micro = 1\n',
            "prices",
            "prices are in USD, budget day in CNY",
            "currency of budget day",
        ),
        (
            ASKING + '[[budget]]\nname = "day"\ncurrency = "USD"\nlimit_micro = 1\n',
            "budget day",
            "allows no question at all",
            "raise its limit",
        ),
        (
            ASKING + '[[budget]]\nname = "rate"\nunit = "calls"\nlimit = 0\n',
            "budget rate",
            "allows no question at all: one request may need 1 calls, and it has 0 calls",
            "raise its limit",
        ),
        (
            '[metering]\nchannel = "http"\nurl = "http://127.0.0.1:%(nobody)d"\n',
            "billing",
            "cannot be reached",
            "qcnode billing serve",
        ),
        (
            '[metering]\nchannel = "mqtt"\n[mqtt]\nport = %(nobody)d\n',
            "broker",
            "cannot be reached",
            "[mqtt]",
        ),
    ],
)
def test_the_doctor_names_what_is_wrong_and_the_fix(examine, text, check, words, fix):
    code, findings = examine(text)

    assert code == 1
    finding = findings[check]
    assert not finding["ok"]
    assert words in finding["words"]
    assert fix in finding["fix"]


@pytest.mark.parametrize(
    ("variable", "text", "check", "words"),
    [
        (
            ("QCNODE_PROVIDER_API_KEY", "k"),
            ASKING + 'base_url = "http://127.0.0.1:%(nobody)d/v1"\n',
            "provider",
            "cannot be reached",
        ),
        (
            ("QCNODE_PROVIDER_API_KEY", "k"),
            ASKING + 'name = "acme"\nbase_url = "https://provider.example/v1"\n',
            "provider",
            "nothing is sent to acme: its region is not stated",
        ),
        (("QCNODE_PANEL_TOKEN", "short"), WELL, "panel", "16"),
        (("QCNODE_BILLING_TOKEN_FILE", "none"), WELL, "settings", "QCNODE_BILLING_TOKEN_FILE"),
    ],
)
def test_the_doctor_sees_what_the_environment_brings(examine_with, variable, text, check, words):
    code, findings = examine_with(variable, text)

    assert code == 1
    assert not findings[check]["ok"]
    assert words in findings[check]["words"]


def test_the_doctor_finds_books_that_do_not_verify(examine, tmp_path):
    path = tmp_path / "qcnode-home" / "ledger.db"
    path.parent.mkdir()
    ledger = SqliteLedger(path, now_us=lambda: 1, new_epoch=lambda: "e")
    ledger.submit(an_intent()).result(timeout=10)
    ledger.close()
    with sqlite3.connect(path) as db:
        for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'"):
            db.execute(f"DROP TRIGGER {name}")
        db.execute("UPDATE entry SET hash = zeroblob(32)")
    db.close()

    code, findings = examine(WELL)

    assert code == 1
    assert "entry 1" in findings["ledger"]["words"]


def an_intent():
    attempt = Attempt(id="a1", escalation_id="e1", number=1, provider="scripted", model="m")
    return Intent(
        attempt=attempt,
        worst=TokenUsage(text=1, output=1),
        hold=Cost(currency="USD", pico=1, rows=("r",)),
        request_sha256="0" * 64,
        request_bytes=1,
        image_sha256=None,
    )


def test_the_doctor_also_speaks_to_people(qcnode, tmp_path):
    config = tmp_path / "node.toml"
    config.write_text('[model]\ndir = "none"\n[panel]\nport = 0\n')

    done = qcnode("doctor", "--config", config)

    assert done.code == 1
    assert re.search(r"^FIX  model .*\n.*-> qcnode teach", done.out, re.MULTILINE)
