"""Screenshots of every page, for a person to look at: `make panel-shots`.

The node behind them is the tests' own, so names, parts and figures are the same at each run.
"""

from __future__ import annotations

import itertools
import json
import socket
import sys
import tempfile
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from urllib.parse import urlencode

import cv2

from qcnode.domain import Finding, Verdict
from qcnode.panel.access import Role
from qcnode.panel.audit import Deed
from qcnode.panel.guard import COOKIE
from qcnode.panel.pages import PAGES
from qcnode.panel.screen import COOKIE as SCREEN
from tests.node.panel_fakes import FakeNode, served
from tests.node.panel_past import Past
from tests.node.panel_screens import chromium
from tests.programs import find_program

LOOKS = (("en", "dark"), ("zh-Hans", "light"))
SIZES = ((1280, 800), (1920, 1080), (800, 1280))
DOUBTFUL = 5.0
SETTLE_MS = 1_500


def busy_node() -> FakeNode:
    """Make a node in the middle of a shift: parts wait, one budget runs, the cloud is gone."""
    node = FakeNode()
    node.about = replace(node.about, defect_classes=("scratch", "dent", "burr", "stain"))
    for number in range(80):
        node.at += timedelta(seconds=0.6)
        node.pass_part(9.0 if number in (31, 57) else None, bars=False)
    waiting = []
    for _ in range(3):
        node.at += timedelta(seconds=20)
        waiting.append(node.pass_part(DOUBTFUL, bars=False))
    node.propose(f"e-{waiting[0].id}")
    node.at += timedelta(seconds=40)
    node.pass_part(bars=False)
    node.health.report("provider", ok=False, words="no answer within 3 s")
    return node


def good_part(node: FakeNode) -> bytes:
    bgr = cv2.cvtColor(node.parts.render(3).pixels, cv2.COLOR_RGB2BGR)
    return cv2.imencode(".png", bgr)[1].tobytes()


def a_day(path: Path, node: FakeNode) -> Past:
    """Write a day with a bad hour in it, and people who named what they saw."""
    past = Past(path, node.at)
    kinds = ("scratch", "scratch", "dent", "stain", "scratch", "burr", "dent", "scratch")
    for minute in range(24 * 60 - 30, 0, -3):
        bad = 6 * 60 < minute < 7 * 60
        for number in range(6):
            turn = (minute + number) % 50
            verdict = Verdict.NOT_OK if turn < (9 if bad else 1) else Verdict.OK
            if turn == 30:
                verdict = Verdict.NOT_DECIDABLE
            one = past.part(verdict, timedelta(minutes=minute), model="flange 3")
            if verdict is Verdict.NOT_DECIDABLE:
                past.ruled(
                    one,
                    timedelta(minutes=minute),
                    agent=Finding.DEFECTIVE if minute % 5 else Finding.GOOD,
                    person=Finding.DEFECTIVE,
                    took=timedelta(seconds=9 + minute % 7),
                    defect=kinds[minute % len(kinds)],
                )
    return past


def shoot(folder: Path) -> None:
    with tempfile.TemporaryDirectory() as past:
        _shoot(folder, busy_node(), Path(past) / "journal.db")


def _shoot(folder: Path, node: FakeNode, journal: Path) -> None:
    a_day(journal, node).journal.close()
    with node.file.transaction() as db:
        baseline = {"parts": 2_760, "accepted": 2_649, "until": "2026-11-20T06:00", "who": "Li Wei"}
        db.execute(
            "INSERT INTO kept (name, body) VALUES ('trends.baseline', ?)", (json.dumps(baseline),)
        )
    by = Deed(what="account.add", who="root", role=Role.ADMIN, where="bench")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    panel = node.panel(
        journal_file=journal, reference=good_part(node), release_delay=timedelta(seconds=3)
    )
    with served(panel, port) as url, chromium(find_program("chromium")) as browser:
        node.accounts.add("root", Role.ADMIN, "not a default one", by=by)
        for name, pin in (("Ana", "482913"), ("Ben", "739164")):
            node.accounts.add(name, Role.OPERATOR, pin, by=by)
        who = node.session(Role.ADMIN, "Li Wei")
        paths = {page.name: page.path for page in PAGES} | {"login": "/login"}
        for (name, path), (language, theme), (width, height) in itertools.product(
            paths.items(), LOOKS, SIZES
        ):
            # Upright and large screens once, of the two pages that are looked at all day.
            other = (width, height) != SIZES[0]
            if other and (name not in ("live", "review") or theme != "dark"):
                continue
            context = browser.new_context(viewport={"width": width, "height": height})
            screen = urlencode({"language": language, "theme": theme})
            context.add_cookies([{"name": SCREEN, "value": screen, "url": url}])
            if name != "login":
                context.add_cookies([{"name": COOKIE, "value": who, "url": url}])
            page = context.new_page()
            page.goto(url + path)
            page.wait_for_selector("html[data-link=live]")
            for _ in range(2):  # The alarms hold off for some seconds of the node's own time.
                node.at += timedelta(seconds=4)
                page.wait_for_timeout(SETTLE_MS)
            size = f"-{width}x{height}" if other else ""
            page.screenshot(path=folder / f"{name}-{theme}-{language}{size}.png")
            context.close()


if __name__ == "__main__":
    shoot(Path(sys.argv[1]))
