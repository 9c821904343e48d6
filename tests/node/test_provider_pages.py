"""The pages about providers, followed to the letter by somebody who knows nothing else."""

import json
import re
import shlex
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from qcnode.books.chain import fact_of
from qcnode.books.ledger_file import LedgerReader
from qcnode.domain import Finding
from qcnode.money import Settled
from qcnode.picture import encode_jpeg
from qcnode.settings import load_settings
from tests.loopback import loopback
from tests.scripted import KEY, scripted_provider

HOW_TO = Path(__file__).resolve().parents[2] / "docs" / "how-to"
BLOCK = re.compile(r"^( *)```(\w+)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)


def blocks(page, language):
    """Return the code of a page in one language, as a reader would copy it."""
    found = BLOCK.findall((HOW_TO / page).read_text())
    return [
        "\n".join(line.removeprefix(indent) for line in code.splitlines()) + "\n"
        for indent, spoken, code in found
        if spoken == language
    ]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder to be in, with a picture of a part."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "part.jpg").write_bytes(encode_jpeg(np.full((300, 400, 3), 90, np.uint8)))
    return tmp_path


def type_in(qcnode, commands, *, key):
    """Type what a page says, and paste the key where it asks for one."""
    done = []
    for line in commands.splitlines():
        words = shlex.split(line, comments=True)
        if words[0] == "qcnode":
            done.append(qcnode(*words[1:]))
            assert (done[-1].code, done[-1].err) == (0, ""), line
        else:
            subprocess.run(words, input=key.encode(), check=True, timeout=20)
    return done


def settled(home):
    reader = LedgerReader(home / "ledger.db")
    try:
        facts = [fact_of(entry) for entry in reader.read(0, 100)]
    finally:
        reader.close()
    return [fact for fact in facts if isinstance(fact, Settled)]


def test_five_commands_lead_from_a_key_to_the_first_metered_ruling(qcnode, here, monkeypatch):
    (commands,) = blocks("use-a-real-provider.md", "sh")
    assert len(commands.splitlines()) == 5

    with scripted_provider(here, model="deepseek-flash") as provider:
        provider.parts(try_1="dent")
        # The script stands where the vendor's address leads.
        monkeypatch.setenv("QCNODE_PROVIDER_BASE_URL", f"{provider.base_url}/v1")
        *_, tried, shown = type_in(qcnode, commands, key=KEY)

    (fact,) = settled(here / "qcnode-home")
    assert tried.out.startswith("ruling     defective")
    assert fact.cost.pico > 0
    assert f"image {fact.usage.image}" in tried.out
    assert "settled" in tried.out
    assert fact.attempt_id in shown.out
    written = load_settings(here / "node.toml", {}).provider[0]
    assert (written.base_url, written.region) == ("https://api.deepseek.com/v1", "cn")
    assert written.data_classes == ("part-image",)


def acme(seen):
    """Answer as the page says that Acme does."""
    part = json.loads(seen.body["question"])["part_id"]
    ruling = {
        "part_id": part,
        "finding": "good",
        "defect_class": None,
        "location": None,
        "confidence": 0.9,
        "reason": "nothing to be seen",
    }
    return 200, {
        "id": "look-77",
        "model": "look-1",
        "ended": "done",
        "answer": json.dumps(ruling),
        "tokens": {"sent": 700, "said": 40, "cached": 100},
    }


def test_one_module_and_one_price_file_add_a_provider(qcnode, here, monkeypatch):
    page = "add-a-provider.md"
    (module,), tomls, (commands,) = blocks(page, "python"), blocks(page, "toml"), blocks(page, "sh")
    for text in (module, *tomls):
        name = text.splitlines()[0].removeprefix("# ")
        (here / name).write_text(text)
    (here / "acme.key").write_text(KEY)
    assert sorted(path.name for path in here.iterdir() if path.suffix in {".py", ".toml"}) == [
        *("acme.py", "acme.toml", "node.toml")
    ]

    with loopback(acme) as server:
        monkeypatch.setenv("QCNODE_PROVIDER_BASE_URL", f"{server.base_url}/api")
        _, tried = type_in(qcnode, commands, key=KEY)

    (seen,) = server.asked
    assert seen.path == "/api/look-1/look"
    assert seen.headers["x-acme-key"] == KEY
    assert tried.out.startswith(f"ruling     {Finding.GOOD}, confidence 0.90")
    (fact,) = settled(here / "qcnode-home")
    assert (fact.usage.cache_read, fact.usage.unknown, fact.usage.output) == (100, 600, 40)
    assert fact.cost.pico == 600 * 250_000 + 100 * 25_000 + 40 * 1_000_000
    assert (fact.response_id, fact.model_served) == ("look-77", "look-1")


def test_what_the_page_wrote_says_why_nothing_is_sent_without_leave(qcnode, here):
    page = "add-a-provider.md"
    (module,), (prices, node) = blocks(page, "python"), blocks(page, "toml")
    (here / "acme.py").write_text(module)
    (here / "acme.toml").write_text(prices)
    (here / "acme.key").write_text(KEY)
    (here / "node.toml").write_text(node.replace('data_classes = ["part-image"]', ""))

    tried = qcnode("provider", "try", "part.jpg", "--json")

    said = json.loads(tried.out)
    assert tried.code == 1
    assert "may not be sent part-image" in said["why"]
    assert said["requests"] == []


@pytest.mark.parametrize(
    ("module", "words"),
    [
        (None, "no such Python file"),
        ("import nothing_of_the_kind\n", "fails as it is read"),
        ("def broken(:\n", "fails as it is read"),
        ("class Provider:\n    pass\n", "builds on"),
        (
            (
                "from qcbridge.providers.http import HttpProvider\nclass Provider(HttpProvider):\n"
                "    def path(self, model):\n        return '/'\n"
            ),
            "does not say shape, body, words",
        ),
    ],
)
def test_a_module_that_is_none_is_named_with_what_it_lacks(qcnode, here, module, words):
    if module is not None:
        (here / "mine.py").write_text(module)
    (here / "node.toml").write_text('[provider]\nmodule = "mine.py"\n')

    tried = qcnode("provider", "try", "part.jpg")

    assert (tried.code, tried.err.count("\n")) == (2, 1)
    assert "mine.py" in tried.err
    assert words in tried.err


@pytest.mark.parametrize(
    "slip",
    [
        ("prompt.system", "prompt.sytem", "its module fails to ask", 0),
        ('answer["answer"]', 'answer["ansewr"]', "no chat completion", 1),
        ('raw["sent"]', 'raw["snet"]', None, 1),
    ],
)
def test_a_slip_in_a_module_costs_a_ruling_and_neither_the_node_nor_the_count(
    qcnode, here, monkeypatch, slip
):
    was, wrong, words, requests = slip
    (module,), (prices, node) = (blocks("add-a-provider.md", kind) for kind in ("python", "toml"))
    assert was in module
    (here / "acme.py").write_text(module.replace(was, wrong))
    (here / "acme.toml").write_text(prices)
    (here / "node.toml").write_text(node)
    (here / "acme.key").write_text(KEY)

    with loopback(acme) as server:
        monkeypatch.setenv("QCNODE_PROVIDER_BASE_URL", f"{server.base_url}/api")
        tried = qcnode("provider", "try", "part.jpg", "--json")

    said = json.loads(tried.out)
    assert len(said["requests"]) == len(server.asked) == requests
    if words is None:  # The words are worth having; what nobody can count stays held.
        assert said["requests"][0]["state"] == "indeterminate"
        assert said["ruling"]["finding"] == "good"
    else:
        assert words in said["why"]


def use(qcnode, here, *words):
    if not (here / "node.toml").exists():
        assert qcnode("init").code == 0
    return qcnode("provider", "use", *words)


def test_a_provider_used_after_another_leaves_nothing_of_it(qcnode, here):
    (here / "provider.key").write_text(KEY)
    (here / "provider.key").chmod(0o600)
    keyed = ("--key-file", "provider.key", "--allow", "part-image")

    assert use(qcnode, here, "gemini", *keyed, "--until", "2027-06-30").code == 0
    done = use(qcnode, here, "anthropic", *keyed, "--filing", "F-1")

    settings = load_settings(here / "node.toml", {})
    one = settings.provider[0]
    assert (one.protocol, one.name, one.filing) == ("anthropic", "anthropic", "F-1")
    assert one.allowed_until is None
    assert one.api_key.get_secret_value() == KEY
    assert (settings.agent.enabled, settings.egress.regions) == (True, ("us",))
    assert "Anthropic, PBC in us, filing F-1, until changed" in done.out
    assert "# timeout_s = 10.0" in (here / "node.toml").read_text()


def test_a_model_on_this_machine_needs_no_leave_and_no_key(qcnode, here):
    done = use(qcnode, here, "ollama", "--model", "qwen3-vl")

    assert (done.code, done.err) == (0, "")
    assert "nothing leaves" in done.out
    settings = load_settings(here / "node.toml", {})
    assert settings.egress.regions == ()
    assert settings.provider[0].model == "qwen3-vl"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("acme",), "no such preset; there are: openai, deepseek"),
        (("deepseek",), "--allow part-image"),
        (("deepseek", "--allow", "part-image"), "there is no key"),
        (("deepseek", "--allow", "part-image", "--key-file", "none"), "none: cannot be read"),
        (("deepseek", "--allow", "part-image", "--key-file", "open.key"), "chmod 600 open.key"),
        (("ollama", "--base-url", "http://10.0.0.7/v1", "--allow", "part-image"), "use https://"),
    ],
)
def test_what_cannot_be_used_is_said_in_one_line_and_changes_nothing(qcnode, here, words, said):
    (here / "open.key").write_text(KEY)
    (here / "open.key").chmod(0o644)
    assert qcnode("init").code == 0
    before = (here / "node.toml").read_text()

    done = use(qcnode, here, *words)

    assert (done.code, done.err.count("\n")) == (2, 1)
    assert said in done.err
    assert (here / "node.toml").read_text() == before
    assert not (here / ".node.toml.new").exists()


def test_every_preset_names_a_book_that_has_its_model(qcnode):
    from qcbridge.evidence import FORMULAS  # noqa: PLC0415
    from qcnode.settings import ProviderSettings, presets  # noqa: PLC0415
    from qcnode.wiring.agents import checked_on, prices_of  # noqa: PLC0415

    listed = json.loads(qcnode("provider", "presets", "--json").out)["presets"]
    assert listed == presets()
    for name in presets():
        one = ProviderSettings.model_validate({"preset": name})
        at = datetime(2026, 11, 22, 12, tzinfo=UTC)
        assert one.image_tokens in FORMULAS, name
        assert checked_on(prices_of(one), one.name, one.model, at) is not None, name
        assert one.region, name
        assert one.entity, name
