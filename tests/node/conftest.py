"""The commands as people type them, run in this process."""

import logging
import os
import sys
from dataclasses import dataclass

import pytest
import structlog

from qcnode.cli.app import main


@dataclass(frozen=True)
class Done:
    """How a command ended, and what it said."""

    code: int
    out: str
    err: str


@pytest.fixture
def qcnode(monkeypatch, capfd):
    """Run a command as the shell would; whatever is not said on purpose comes out here."""
    for name in [name for name in os.environ if name.startswith("QCNODE_")]:
        monkeypatch.delenv(name)

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["qcnode", *map(str, words)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        said = capfd.readouterr()
        return Done(ended.value.code or 0, said.out, said.err)

    handlers, level = logging.root.handlers[:], logging.root.level
    yield run
    # A service sets logging up for its whole process, which here is everybody's.
    structlog.reset_defaults()
    logging.root.handlers, logging.root.level = handlers, level


@pytest.fixture(scope="module")
def browser(program):
    # Playwright is heavy, and few tests need it.
    from tests.node.panel_screens import chromium  # noqa: PLC0415

    with chromium(program("chromium")) as browser:
        yield browser


@pytest.fixture
def page(browser):
    """A tab that notes everything in it that complains or looks elsewhere."""
    from tests.node.panel_screens import new_tab  # noqa: PLC0415

    page = new_tab(browser)
    yield page
    page.close()
