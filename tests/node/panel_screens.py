"""A browser before the panel: how its tests open pages, wait for them and press keys."""

from __future__ import annotations

from contextlib import contextmanager
from datetime import timedelta

from playwright.sync_api import expect, sync_playwright

from qcnode.panel.access import Role
from qcnode.panel.guard import COOKIE

ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-features=Translate,OptimizationHints,MediaRouter",
]
LIVE_MS = 15_000  # Until a page is live; generous, for a machine with other things to do.
BEYOND_GUARD_MS = 500


@contextmanager
def chromium(path):
    """Start a browser that speaks to nobody else."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(path), args=ARGUMENTS)
        yield browser
        browser.close()


def new_tab(browser):
    """Open a tab of a browser of its own, which notes complaints and where it looks."""
    page = browser.new_page(viewport={"width": 1280, "height": 800})
    page.set_default_timeout(LIVE_MS)
    page.complaints, page.requests = [], []
    page.on("console", lambda said: said.type == "error" and page.complaints.append(said.text))
    page.on("pageerror", lambda error: page.complaints.append(str(error)))
    page.on("request", lambda request: page.requests.append(request.url))
    page.on("websocket", lambda socket: page.requests.append(socket.url))
    return page


def open_live(page, node, url, path="/", *, role=Role.ADMIN):
    """Open a page as somebody who is signed in, and wait until it is live."""
    if role is not None:
        page.context.add_cookies([{"name": COOKIE, "value": node.session(role), "url": url}])
    page.goto(url + path)
    page.wait_for_selector("html[data-link=live]")


def waiting_part(page, inspection):
    """Wait until the card shows this part, picture and all."""
    page.wait_for_selector(f"qc-evidence[data-shown='e-{inspection.id}']")


def decide(page, key):
    page.clock.fast_forward(BEYOND_GUARD_MS)
    page.keyboard.press(key)


def hear(page, node):
    """Have the browser hear of the node now: it takes a silent one for lost."""
    node.at += timedelta(seconds=1)
    expect(page.locator("qc-link")).to_contain_text(f"{node.at:%H:%M:%S}")


def stop_clock(page, node):
    """Have the browser's time stand still but for what a test lets pass."""
    hear(page, node)
    page.clock.pause_at(page.evaluate("Date.now()") / 1000 + 1)


def let_pass(page, node, *, seconds):
    """Let time pass at the node and in the browser."""
    for _ in range(seconds):
        hear(page, node)
        page.clock.fast_forward(1000)
