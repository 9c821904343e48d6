"""Review, alarms and roles in a real browser, as people with keys and fingers use them."""

from dataclasses import replace
from datetime import timedelta
from urllib.parse import urlencode

import pytest
from playwright.sync_api import expect

from qcnode.domain import Finding
from qcnode.panel.access import GRANTS, Role
from qcnode.panel.accounts import IDLE
from qcnode.panel.guard import COOKIE
from qcnode.panel.pages import PAGES
from qcnode.panel.screen import COOKIE as SCREEN
from qcnode.panel.words import languages
from tests.node.panel_fakes import FakeNode, served
from tests.node.panel_screens import (
    BEYOND_GUARD_MS,
    decide,
    hear,
    new_tab,
    open_live,
    waiting_part,
)

pytestmark = pytest.mark.chromium

DOUBTFUL = 5.0
DELAY = timedelta(seconds=3)


@pytest.fixture
def node():
    node = FakeNode()
    node.about = replace(node.about, defect_classes=("scratch", "dent", "burr"))
    return node


@pytest.fixture
def url(node, free_port):
    with served(node.panel(release_delay=DELAY), free_port()) as url:
        yield url


def release(page, node):
    """Let what was decided go out."""
    node.at += DELAY
    expect(page.locator("[data-finding=undo]")).to_be_disabled()


def found(node):
    return [(one.part_id, one.finding, one.defect_class) for one in node.desk.rulings]


# -- review --------------------------------------------------------------------


def test_review_by_keys_only_good_reject_class_not_sure_and_undo(node, url, page):
    one, two, three = (node.pass_part(DOUBTFUL) for _ in range(3))
    page.clock.install()
    open_live(page, node, url, "/review", role=Role.OPERATOR)
    waiting_part(page, one)
    decide(page, "g")
    waiting_part(page, two)
    decide(page, "r")  # Which defect?
    expect(page.locator("qc-decide[data-asking]")).to_have_count(1)
    decide(page, "2")
    waiting_part(page, three)
    decide(page, "u")  # The second part comes back.
    waiting_part(page, two)
    decide(page, "1")
    waiting_part(page, three)
    decide(page, "s")
    expect(page.locator(".result")).to_contain_text("not sure, noted")
    decide(page, "r")
    decide(page, "r")
    expect(page.locator(".result")).to_contain_text(f"{three.part_id}: reject part")
    release(page, node)
    expect(page.locator("qc-case .calm")).to_have_text("No part is waiting.")
    assert sorted(found(node), key=lambda said: said[0]) == [
        (one.part_id, Finding.GOOD, None),
        (two.part_id, Finding.DEFECTIVE, "scratch"),
        (three.part_id, Finding.UNSURE, None),
        (three.part_id, Finding.DEFECTIVE, None),
    ]
    assert {one.who for one in node.desk.rulings} == {"the operator@127.0.0.1"}


def test_review_by_touch_only_in_two_presses_from_the_live_page(node, url, page):
    part = node.pass_part(DOUBTFUL)
    open_live(page, node, url, role=Role.OPERATOR)
    page.get_by_role("link", name="Review the oldest").click()
    waiting_part(page, part)
    page.wait_for_timeout(BEYOND_GUARD_MS)
    page.get_by_role("button", name="Good part").click()
    expect(page.locator(".result")).to_contain_text("It goes out in a moment; Undo takes it back")
    release(page, node)
    assert found(node) == [(part.part_id, Finding.GOOD, None)]


def test_a_double_tap_decides_one_part(node, url, page):
    first, second = node.pass_part(DOUBTFUL), node.pass_part(DOUBTFUL)
    open_live(page, node, url, "/review", role=Role.OPERATOR)
    waiting_part(page, first)
    page.wait_for_timeout(BEYOND_GUARD_MS)
    page.get_by_role("button", name="Good part").dblclick(delay=50)
    waiting_part(page, second)
    release(page, node)
    assert found(node) == [(first.part_id, Finding.GOOD, None)]


def test_arrows_look_at_other_parts_and_decide_nothing(node, url, page):
    first, second = node.pass_part(DOUBTFUL), node.pass_part(DOUBTFUL)
    open_live(page, node, url, "/review", role=Role.OPERATOR)
    waiting_part(page, first)
    page.keyboard.press("ArrowRight")
    waiting_part(page, second)
    page.keyboard.press("ArrowLeft")
    waiting_part(page, first)
    assert found(node) == []


def test_two_stations_have_two_parts_and_the_other_one_sees_with_whom(node, url, page, browser):
    first, second = node.pass_part(DOUBTFUL), node.pass_part(DOUBTFUL)
    open_live(page, node, url, "/review", role=Role.OPERATOR)
    waiting_part(page, first)
    other = new_tab(browser)
    open_live(other, node, url, "/review", role=Role.SUPERVISOR)
    waiting_part(other, second)
    node.settle_elsewhere(second)
    expect(other.locator("qc-case .calm")).to_have_text(
        "All waiting parts are with the operator just now."
    )
    other.close()


def test_the_agents_opinion_comes_after_the_own_choice(node, free_port, page):
    part = node.pass_part(DOUBTFUL)
    node.propose(f"e-{part.id}")
    with served(node.panel(look_first=1.0), free_port()) as url:
        open_live(page, node, url, "/review", role=Role.OPERATOR)
        waiting_part(page, part)
        expect(page.locator("qc-case")).to_contain_text("Look first")
        expect(page.locator("qc-case .proposal")).to_have_count(0)
        page.wait_for_timeout(BEYOND_GUARD_MS)
        page.get_by_role("button", name="Good part").click()
        expect(page.locator(".result .agent")).to_contain_text("The agent says otherwise.")
        expect(page.locator(".result .proposal")).to_contain_text("Reject part: scratch")


# -- alarms and help -----------------------------------------------------------


def test_an_alarm_is_seen_on_every_page_and_acknowledged_in_its_row(node, url, page):
    node.pass_part()
    node.health.report("provider", ok=False, words="no answer within 3 s")
    open_live(page, node, url, "/alarms", role=Role.OPERATOR)
    for _ in range(6):
        hear(page, node)
    row = page.locator("qc-alarms [data-alarm=provider]")
    expect(row).to_contain_text("Doubtful parts wait for people. Nothing is lost.")
    expect(page.locator("qc-alarm")).to_contain_text("Agent cannot be reached")
    expect(row.get_by_role("button", name="Put away")).to_be_disabled()
    expect(row.get_by_role("button", name="Put away")).to_have_attribute(
        "title", "needs supervisor"
    )
    row.get_by_role("button", name="Acknowledge").click()
    expect(row).to_contain_text("acknowledged by the operator")
    expect(page.locator("qc-history td").filter(has_text="the operator")).to_have_count(1)


def test_help_is_called_without_signing_in_and_answered_by_whoever_came(node, url, page):
    open_live(page, node, url, role=None)
    page.get_by_role("button", name="Call help").click()
    expect(page.locator("qc-help")).to_contain_text("Help called")
    expect(page.locator("qc-alarm")).to_contain_text("Help was called")
    open_live(page, node, url, role=Role.OPERATOR)
    page.get_by_role("button", name="Help is here").click()
    expect(page.get_by_role("button", name="Call help")).to_be_enabled()


# -- roles ---------------------------------------------------------------------


@pytest.mark.parametrize("role", [Role.VIEWER, Role.OPERATOR, Role.AUDITOR])
def test_a_page_for_others_is_shown_as_such_with_whom_it_is_for(node, url, page, role):
    open_live(page, node, url, role=None if role is Role.VIEWER else role)
    for one in PAGES:
        link = page.locator(f".pages a[href='{one.path}']")
        denied = one.right not in GRANTS[role]
        assert (link.get_attribute("class") == "denied") == denied
        assert bool(link.get_attribute("title")) == denied


def test_whoever_goes_away_leaves_a_viewers_page_with_a_live_picture(node, url, page):
    part = node.pass_part(DOUBTFUL)
    open_live(page, node, url, role=Role.OPERATOR)
    expect(page.locator("qc-who")).to_contain_text("the operator")
    node.at += IDLE
    expect(page.get_by_role("link", name="Sign in")).to_be_visible()
    node.pass_part()
    page.wait_for_selector("qc-part[data-number='2']")
    assert node.accounts.who(page.context.cookies()[0]["value"]) is None
    assert part.part_id


def test_name_and_pin_on_the_keypad_sign_in(node, url, page):
    by = {"what": "account.add", "who": "root", "role": "admin", "where": "test"}
    from qcnode.panel.audit import Deed  # noqa: PLC0415

    node.accounts.add("root", Role.ADMIN, "long enough", by=Deed(**by))
    node.accounts.add("Ana", Role.OPERATOR, "482913", by=Deed(**by))
    page.goto(f"{url}/review")
    page.get_by_role("button", name="Ana").click()
    for digit in "482913":
        page.get_by_role("button", name=digit, exact=True).click()
    page.locator("form").get_by_role("button", name="Sign in").click()
    page.wait_for_url(f"{url}/review")
    expect(page.locator("qc-who")).to_contain_text("Ana")
    assert COOKIE in {cookie["name"] for cookie in page.context.cookies()}


# -- words ---------------------------------------------------------------------


@pytest.mark.parametrize("language", languages())
def test_no_page_shows_a_raw_key_in_any_language(node, url, page, language):
    part = node.pass_part(DOUBTFUL)
    node.health.report("camera", ok=False, words="dark", needed=True)
    cookie = urlencode({"language": language, "theme": "light"})
    page.context.add_cookies([{"name": SCREEN, "value": cookie, "url": url}])
    keys = {key for key in languages()["en"].sentences if "." in key}
    for one in PAGES:
        open_live(page, node, url, one.path)
        assert page.locator("html").get_attribute("lang") == language
        words = set(page.locator("body").inner_text().split())
        assert words & keys == set(), one.name
    open_live(page, node, url, "/review")
    waiting_part(page, part)
    good = languages()[language]("finding.good")
    expect(page.locator("[data-finding=good]")).to_contain_text(good)
