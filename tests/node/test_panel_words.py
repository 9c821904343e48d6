"""The sentences of the panel: the same in every language, and none of them missing."""

import re
import string

import pytest

from qcnode.domain import Decider, Disposition
from qcnode.health import HealthBoard
from qcnode.panel.access import Right, Role
from qcnode.panel.alarms import State
from qcnode.panel.pages import PAGES
from qcnode.panel.screen import Screen, read_screen
from qcnode.panel.view import EXPECTED
from qcnode.panel.words import languages
from tests.conftest import ROOT

PANEL = ROOT / "node" / "qcnode" / "panel"
ENGLISH = languages()["en"]
STATIC = sorted((PANEL / "static").glob("*.js"))


def fields(sentence):
    return {name for _, name, _, _ in string.Formatter().parse(sentence) if name is not None}


def test_every_language_has_the_same_keys_with_the_same_values_to_put_in():
    assert len(languages()) >= 2
    for say in languages().values():
        assert say.sentences.keys() == ENGLISH.sentences.keys()
        for key, sentence in say.sentences.items():
            assert sentence.strip()
            assert fields(sentence) == fields(ENGLISH.sentences[key]), key


def asked_for():
    """Every key that a script, a template or a module names in full."""
    pattern = {".js": r"""\bt\(\s*"([^"]+)\"""", ".html": r"""say\(["']([^"']+)["']\)"""}
    for path in [*STATIC, *PANEL.glob("templates/*.html")]:
        for key in re.findall(pattern[path.suffix], path.read_text()):
            yield path.name, key
    for path in PANEL.glob("*.py"):
        for key in re.findall(r"""\bsay\(\s*"([^"]+)\"""", path.read_text()):
            yield path.name, key


def test_no_page_asks_for_a_sentence_that_is_not_there():
    asked = set(asked_for())
    assert len(asked) > 80
    assert [one for one in asked if one[1] not in ENGLISH] == []


def test_what_is_put_together_from_parts_is_there_too():
    keys = [
        *(f"role.{role}" for role in Role),
        *(f"needs.{right}" for right in Right),
        *(f"page.{page.name}" for page in PAGES),
        *(f"component.{name}" for name in EXPECTED),
        *(f"chip.{name}.{state}" for name in ("provider", "billing", "ledger") for state in STATES),
        *(f"state.{state}" for state in STATES),
        *(f"alarm.state.{state}" for state in State),
        *(f"disposition.{one}" for one in Disposition),
        *(f"by.{one}" for one in Decider),
        *(f"budget.this.{window}" for window in ("hour", "day", "week", "month")),
        *(f"budget.unit.{unit}" for unit in ("money", "tokens", "calls")),
    ]
    assert [key for key in keys if key not in ENGLISH] == []
    assert HealthBoard  # The states are those of the rows of health.


STATES = ("well", "unwell", "silent")


def test_a_screen_keeps_to_what_there_is():
    said = {"language": "xx", "theme": "pink", "inch": "nan", "gloves": "maybe"}
    assert read_screen(said) == Screen()
    assert read_screen({"inch": "1e9"}).inch == 0
    whole = Screen(language="zh-Hans", theme="light", inch=10.1, gloves=True)
    pairs = dict(one.split("=") for one in whole.cookie().split("&"))
    assert read_screen(pairs) == whole


@pytest.mark.parametrize("path", STATIC, ids=lambda path: path.name)
def test_an_element_is_short_and_puts_nothing_in_as_markup(path):
    text = path.read_text()
    assert text.count("\n") <= 150
    for way in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("):
        assert way not in text


def test_all_scripts_together_stay_small():
    texts = [path.read_text() for path in STATIC]
    assert sum(text.count("\n") for text in texts) <= 2_700
    assert sum(map(len, texts)) <= 100_000
