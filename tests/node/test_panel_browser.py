"""The panel in a real browser: what a person at the line sees, presses and is spared."""

import itertools
import math
import threading
from dataclasses import replace
from urllib.parse import urlencode

import cv2
import numpy as np
import pytest
from playwright.sync_api import expect

from qcnode.domain import Finding
from qcnode.money import TokenUsage
from qcnode.panel import view
from qcnode.panel.access import Role
from qcnode.panel.audit import Deed
from qcnode.panel.pages import PAGES
from qcnode.panel.screen import COOKIE as SCREEN
from tests.node.panel_fakes import BARS, DAY, FakeNode, budget_state, served
from tests.node.panel_screens import (
    BEYOND_GUARD_MS,
    decide,
    hear,
    let_pass,
    open_live,
    stop_clock,
    waiting_part,
)

pytestmark = pytest.mark.chromium

BY = {"who": "root", "role": "admin", "where": "test"}
SIZES = [(1280, 800), (1920, 1080), (800, 1280)]
DASH = "\N{EM DASH}"
DOUBTFUL = 5.0

# Look at the screen once per painted frame: the number beside the picture, the bars in the
# picture and the hot cell of its heat map.
WATCH = """async ([frames, bars]) => {
  const { fit } = await import("/static/paint.js");
  const canvas = document.querySelector("qc-frame canvas");
  const words = document.querySelector("qc-part");
  const seen = [];
  for (let left = frames; left > 0; left -= 1) {
    await new Promise(requestAnimationFrame);
    const at = fit({ width: 320, height: 240 }, canvas.width, canvas.height);
    const dots = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
    const dot = (across, down) => {
      const x = Math.round(at.left + across * at.width);
      const y = Math.round(at.top + down * at.height);
      return dots.slice((y * canvas.width + x) * 4, (y * canvas.width + x) * 4 + 3);
    };
    let number = 0;
    let hottest = [-1, -Infinity];
    for (let bar = 0; bar < bars; bar += 1) {
      number = number * 2 + (dot((bar + 0.5) / bars, 0.03)[1] > 127 ? 1 : 0);
      const [red, , blue] = dot((bar + 0.5) / bars, 1 - 0.5 / 16);
      if (red - blue > hottest[1]) hottest = [bar, red - blue];
    }
    seen.push([Number(words.dataset.number), number, hottest[0]]);
  }
  return seen;
}"""


SCROLL = "[document.documentElement.scrollWidth, document.documentElement.scrollHeight]"
CONTROLS = """[...document.querySelectorAll("button, a, select, input:not([type=checkbox])")]
  .map((one) => [one, one.getBoundingClientRect()])
  .filter(([one, box]) => box.width > 0 && one.checkVisibility())
  .map(([one, box]) => ({
    words: one.outerHTML.slice(0, 120), width: box.width, height: box.height, right: box.right,
  }))"""


@pytest.fixture
def node():
    return FakeNode()


@pytest.fixture
def url(node, free_port):
    with served(node.panel(), free_port()) as url:
        yield url


# -- the truthful picture ------------------------------------------------------


def test_picture_heat_and_words_on_the_screen_are_always_of_the_same_part(node, url, page):
    stop = threading.Event()

    def belt():
        while not stop.wait(timeout=0.1):
            node.pass_part()

    node.pass_part()
    open_live(page, node, url)
    page.wait_for_selector("qc-part[data-number]")
    feeder = threading.Thread(target=belt)
    feeder.start()
    try:
        seen = page.evaluate(WATCH, [240, BARS])
    finally:
        stop.set()
        feeder.join()
    assert len({words for words, _, _ in seen}) >= 10
    wrong = [one for one in seen if one[0] != one[1] or one[0] % BARS != one[2]]
    assert wrong == []


def test_heat_can_be_taken_off_the_picture(node, url, page):
    node.pass_part(9.0)
    open_live(page, node, url)
    page.wait_for_selector("qc-part[data-number='1']")
    hot = page.evaluate(WATCH, [1, BARS])[0]
    page.get_by_role("button", name="Heat").first.click()
    assert hot[2] == 1
    saturation = page.evaluate(
        """() => {
          const canvas = document.querySelector("qc-frame canvas");
          const dots = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
          let most = 0;
          for (let at = 0; at < dots.length; at += 4) {
            most = Math.max(most, dots[at] - dots[at + 2]);
          }
          return most;
        }"""
    )
    assert saturation < 60


def test_a_part_without_a_picture_shows_no_older_one(node, url, page):
    node.pass_part()
    open_live(page, node, url)
    page.wait_for_selector("qc-part[data-number='1']")
    node.pass_blind("no picture within 100 ms")
    page.wait_for_selector("qc-part[data-number='2']")
    expect(page.locator("qc-frame .notice")).to_contain_text("NO PICTURE")
    expect(page.locator("qc-part .verdict")).to_have_text("UNDEFINED")
    painted = page.evaluate(
        """() => {
          const canvas = document.querySelector("qc-frame canvas");
          const dots = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
          return dots.some((dot) => dot > 0);
        }"""
    )
    assert not painted


def test_a_line_that_stands_leaves_no_verdict_on_the_screen(node, url, page):
    node.pass_part()
    open_live(page, node, url)
    expect(page.locator("qc-part .verdict")).to_have_text("OK")
    node.health.report("line", ok=False, words="emergency stop", needed=True)
    expect(page.locator("qc-frame .notice")).to_contain_text("NOT LIVE")
    expect(page.locator("qc-part .verdict")).to_have_text(DASH)
    expect(page.locator("qc-chips [data-chip=live]")).to_have_text("live")


# -- nothing foreign -----------------------------------------------------------


def test_nothing_leaves_the_origin_and_nothing_breaks_the_policy(node, url, page):
    inspection = node.pass_part(DOUBTFUL)
    node.propose(f"e-{inspection.id}")
    for one in PAGES:
        open_live(page, node, url, one.path)
    node.accounts.add("Ana", Role.OPERATOR, "482913", by=Deed(what="account.add", **BY))
    for path, form in (("/login", "[name=token]"), ("/login", "qc-keypad button")):
        page.goto(url + path)
        page.wait_for_selector(form)
        if form == "[name=token]":
            node.accounts.add("root", Role.ADMIN, "long enough", by=Deed(what="x", **BY))
    open_live(page, node, url, "/review")
    waiting_part(page, inspection)
    for key in ("h", "z", "h"):
        page.keyboard.press(key)
    page.get_by_role("button", name="Heat").first.click()
    own = (url, url.replace("http", "ws"))
    assert [one for one in page.requests if not one.startswith(own)] == []
    assert page.complaints == []


@pytest.mark.parametrize("evil", ["<img src=x onerror=alert(1)>", "<script>alert(1)</script>"])
def test_what_a_label_says_is_shown_as_text_everywhere(node, url, page, evil):
    inspection = node.pass_part(DOUBTFUL, part_id=evil)
    node.propose(f"e-{inspection.id}", reason=evil, defect_class=evil, who=evil)
    node.health.report("camera", ok=False, words=evil, needed=True)
    open_live(page, node, url)
    expect(page.locator("qc-part [data-value=part_id]")).to_have_text(evil)
    open_live(page, node, url, "/health")
    expect(page.locator("qc-health [data-component=camera] .words")).to_have_text(evil)
    open_live(page, node, url, "/review")
    expect(page.locator("qc-review .proposal")).to_contain_text(evil)
    expect(page.locator("qc-review h2")).to_contain_text(evil)
    for _ in range(2):
        hear(page, node)  # For as long as a condition holds before it is an alarm.
    expect(page.locator("qc-alarm")).to_contain_text(evil)
    assert page.locator("img[src=x], main script").count() == 0
    assert page.complaints == []


# -- ruling --------------------------------------------------------------------


def test_a_key_decides_the_oldest_part_once_and_the_next_one_comes(node, url, page):
    first, second = node.pass_part(DOUBTFUL), node.pass_part(DOUBTFUL)
    page.clock.install()
    open_live(page, node, url, "/review")
    waiting_part(page, first)
    decide(page, "g")
    page.keyboard.press("g")  # The second half of a double press.
    waiting_part(page, second)
    page.keyboard.press("g")  # Before anybody can have seen the new part.
    decide(page, "r")
    expect(page.locator("qc-review .calm")).to_have_text("No part is waiting.")
    assert [(ruling.part_id, ruling.finding) for ruling in node.desk.rulings] == [
        (first.part_id, Finding.GOOD),
        (second.part_id, Finding.DEFECTIVE),
    ]
    assert node.desk.calls == 2


def test_a_key_held_down_decides_one_part(node, url, page):
    first, second = node.pass_part(DOUBTFUL), node.pass_part(DOUBTFUL)
    page.clock.install()
    open_live(page, node, url, "/review")
    waiting_part(page, first)
    page.clock.fast_forward(BEYOND_GUARD_MS)
    page.keyboard.down("r")
    waiting_part(page, second)
    page.clock.fast_forward(BEYOND_GUARD_MS)
    page.keyboard.down("r")  # What a keyboard does with a key that is held.
    page.keyboard.up("r")
    decide(page, "g")
    expect(page.locator("qc-review .calm")).to_have_text("No part is waiting.")
    assert [ruling.finding for ruling in node.desk.rulings] == [Finding.DEFECTIVE, Finding.GOOD]


def test_buttons_decide_and_say_what_became_of_the_part(node, url, page):
    inspection = node.pass_part(DOUBTFUL)
    page.clock.install()
    open_live(page, node, url, "/review")
    waiting_part(page, inspection)
    page.clock.fast_forward(BEYOND_GUARD_MS)
    page.get_by_role("button", name="Reject part").click()
    expect(page.locator("qc-review .result")).to_contain_text(
        f"{inspection.part_id}: reject part, scrap."
    )
    expect(page.get_by_role("button", name="Reject part")).to_be_disabled()


def test_not_sure_is_noted_and_goes_on_to_the_next_part_and_comes_round_again(node, url, page):
    first, second = node.pass_part(DOUBTFUL), node.pass_part(DOUBTFUL)
    page.clock.install()
    open_live(page, node, url, "/review")
    waiting_part(page, first)
    decide(page, "s")
    waiting_part(page, second)
    decide(page, "g")
    waiting_part(page, first)
    assert [ruling.finding for ruling in node.desk.rulings] == [Finding.UNSURE, Finding.GOOD]
    assert list(node.desk.open) == [f"e-{first.id}"]


def test_whoever_comes_second_is_told_and_the_part_leaves_the_card(node, url, page):
    first, second = node.pass_part(DOUBTFUL), node.pass_part(DOUBTFUL)
    node.desk.taken.add(f"e-{first.id}")
    page.clock.install()
    open_live(page, node, url, "/review")
    waiting_part(page, first)
    decide(page, "g")
    expect(page.locator("qc-review .result")).to_contain_text("has been ruled on")
    del node.desk.open[f"e-{first.id}"]
    waiting_part(page, second)
    expect(page.locator("qc-review .result")).to_have_text(f"{first.part_id} has been settled")
    assert node.desk.rulings == []


def test_a_part_settled_elsewhere_is_named_for_a_while_beside_the_own_ruling(node, url, page):
    first, second, third = (node.pass_part(DOUBTFUL) for _ in range(3))
    page.clock.install()
    open_live(page, node, url, "/review")
    stop_clock(page, node)
    waiting_part(page, first)
    hear(page, node)
    decide(page, "g")
    waiting_part(page, second)
    node.settle_elsewhere(second)
    waiting_part(page, third)
    hear(page, node)
    decide(page, "r")  # Meant for the part that went while the finger was on its way.
    own, note = page.locator("qc-review .result > span").all()
    expect(note).to_have_text(f"{second.part_id}: settled by the agent (scripted provider), scrap")
    expect(own).to_contain_text(f"{first.part_id}: good part, release.")
    let_pass(page, node, seconds=5)
    expect(note).to_have_text("")
    expect(own).to_contain_text(f"{first.part_id}: good part, release.")
    assert node.desk.calls == 1
    hear(page, node)
    decide(page, "r")
    expect(own).to_contain_text(f"{third.part_id}: reject part, scrap.")


def test_a_part_with_the_agent_is_put_before_nobody_while_it_is_young(node, url, page):
    first = node.pass_part(DOUBTFUL)
    node.desk.open[f"e-{first.id}"].with_agent = True
    open_live(page, node, url, "/review")
    expect(page.locator("qc-review .calm")).to_have_text("The agent is being asked.")
    second = node.pass_part(DOUBTFUL)
    waiting_part(page, second)
    node.at += view.AGENT_FIRST
    third = node.pass_part(DOUBTFUL)
    expect(page.locator("qc-review h2")).to_contain_text("3 waiting")
    node.settle_elsewhere(second)
    waiting_part(page, third)
    node.settle_elsewhere(third)
    waiting_part(page, first)


def test_a_part_that_goes_to_the_agent_stays_on_the_card(node, url, page):
    first = node.pass_part(DOUBTFUL)
    open_live(page, node, url, "/review")
    waiting_part(page, first)
    node.desk.open[f"e-{first.id}"].with_agent = True
    for _ in range(view.WAITING_SHOWN_MAX + 1):
        node.pass_part(DOUBTFUL)
    expect(page.locator("qc-review h2")).to_contain_text(f"{view.WAITING_SHOWN_MAX + 2} waiting")
    expect(page.locator("qc-review h2")).to_contain_text(first.part_id)
    expect(page.locator("qc-review .note")).to_have_text("")


def test_a_waiting_part_without_a_picture_says_where_to_look(node, url, page):
    node.pass_blind("no picture within 100 ms")
    seen = node.pass_part(DOUBTFUL)
    del node.journal.heats[seen.id]
    page.clock.install()
    open_live(page, node, url, "/review")
    expect(page.locator("qc-evidence .notice")).to_have_text(
        "No picture of this part: look at it in the divert lane"
    )
    expect(page.locator("qc-evidence button:visible")).to_have_count(0)
    decide(page, "r")
    waiting_part(page, seen)
    expect(page.locator("qc-evidence .notice")).to_have_text("")
    asked_for = [one for one in page.requests if "/img/" in one]
    assert asked_for == [f"{url}/img/escalations/e-{seen.id}.jpg"]
    assert page.complaints == []


def test_a_proposal_is_marked_as_one_and_names_the_scripted_provider(node, url, page):
    inspection = node.pass_part(DOUBTFUL)
    node.propose(f"e-{inspection.id}")
    open_live(page, node, url, "/review")
    proposal = page.locator("qc-review .proposal")
    expect(proposal).to_contain_text("Proposal, awaits your confirmation")
    expect(proposal).to_contain_text("Reject part: scratch")
    expect(proposal.locator(".chip")).to_have_text("scripted provider")
    open_live(page, node, url, "/spend")
    expect(page.locator("qc-money h2 .chip")).to_have_text("scripted provider: nobody is charged")


def test_a_budget_is_a_bar_up_to_its_limit_and_its_alarm_is_said_in_words(node, url, page):
    node.ledger.states = [
        budget_state(used=3 * 10**12, held=10**12, calls=300, hour=11),
        budget_state(replace(DAY, name="month", window="month"), used=0, held=0, calls=0),
    ]
    open_live(page, node, url, "/spend")
    day, month = (page.locator(f"qc-money [data-budget={name}]") for name in ("day", "month"))
    expect(day.locator("[data-value=used]")).to_have_text("3.00 of 5.00 USD")
    expect(day.locator(".warn")).to_have_text("will not last")
    expect(day).to_contain_text("ends at 6.55 (6.09 to 7.00)")
    expect(month.locator(".warn, .bad")).to_have_count(0)

    limit = day.locator("svg").bounding_box()
    widths = {
        part: day.locator(f".{part}").bounding_box()["width"] / limit["width"]
        for part in ("spent", "held")
    }
    assert widths["spent"] == pytest.approx(0.4, abs=0.02)  # the rest of it is held
    assert widths["held"] == pytest.approx(0.6, abs=0.02)
    expect(month.locator("line")).to_have_count(0)


# -- honest when broken --------------------------------------------------------


def test_a_lost_node_leaves_dashes_and_no_verdict_and_heals_by_itself(node, free_port, page):
    port = free_port()
    node.pass_part(DOUBTFUL)
    with served(node.panel(), port) as url:
        open_live(page, node, url)
        expect(page.locator("qc-part .verdict")).to_have_text("NOT DECIDABLE")
        page.evaluate("window.sameDocument = true")
    page.wait_for_selector("html[data-link=lost]")
    expect(page.locator("qc-frame .notice")).to_contain_text("NO LIVE DATA")
    expect(page.locator("qc-part .verdict")).to_have_text(DASH)
    assert set(page.locator("[data-value]").all_text_contents()) == {DASH}
    expect(page.locator("qc-strip rect")).to_have_count(0)
    expect(page.locator("qc-chips")).to_have_text("no live data")
    expect(page.locator("qc-help button")).to_be_disabled()
    with served(node.panel(), port):
        page.wait_for_selector("html[data-link=live]")
        page.wait_for_selector("qc-part[data-kind=not_decidable]")
        assert page.evaluate("window.sameDocument")


def test_a_lost_node_locks_the_decision_and_nothing_is_decided_twice(node, free_port, page):
    port = free_port()
    inspection = node.pass_part(DOUBTFUL)
    with served(node.panel(), port) as url:
        open_live(page, node, url, "/review")
        waiting_part(page, inspection)
    page.wait_for_selector("html[data-link=lost]")
    expect(page.locator(".decide button:disabled")).to_have_count(4)
    page.keyboard.press("g")
    with served(node.panel(), port):
        page.wait_for_selector("html[data-link=live]")
        waiting_part(page, inspection)
        # The session is the same too, as it is in the panel's own file.
        expect(page.get_by_role("button", name="Good part")).to_be_enabled()
    assert node.desk.calls == 0


def test_a_node_that_hangs_is_taken_for_lost_too(node, free_port, page):
    hang = threading.Event()
    hang.set()

    def station_live():
        hang.wait(timeout=60)
        return node.live

    node.pass_part(DOUBTFUL)
    with served(node.panel(station_live=station_live), free_port()) as url:
        try:
            open_live(page, node, url)
            page.wait_for_selector("qc-part[data-number]")
            hang.clear()
            page.wait_for_selector("html[data-link=lost]")
            expect(page.locator("qc-part .verdict")).to_have_text(DASH)
            hang.set()
            page.wait_for_selector("html[data-link=live]")
            page.wait_for_selector("qc-part[data-number]")
        finally:
            hang.set()


def test_books_that_cannot_be_read_leave_dashes_and_the_picture_goes_on(node, url, page):
    node.pass_part()
    open_live(page, node, url)
    expect(page.locator("qc-counters [data-value=parts]")).to_have_text("1")
    node.journal.broken = node.ledger.broken = True
    expect(page.locator("qc-counters [data-value=parts]")).to_have_text(DASH)
    node.pass_part()
    page.wait_for_selector("qc-part[data-number='2']")
    open_live(page, node, url, "/spend")
    expect(page.locator("qc-money [data-value=measured]")).to_have_text(DASH)


# -- the look ------------------------------------------------------------------


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_every_page_fits_the_screen_and_can_be_hit_with_a_finger(node, url, page, width, height):
    inspection = node.pass_part(DOUBTFUL)
    node.propose(f"e-{inspection.id}")
    node.about = replace(node.about, defect_classes=("scratch", "dent"))
    page.set_viewport_size({"width": width, "height": height})
    for one in PAGES:
        open_live(page, node, url, one.path)
        assert page.evaluate(SCROLL) == [width, height], one.name
        for control in page.evaluate(CONTROLS):
            assert min(control["width"], control["height"]) >= 60, (one.name, control)
            assert control["right"] <= width, (one.name, control)
    open_live(page, node, url, "/review")
    waiting_part(page, inspection)
    for button in page.locator("qc-decide button").all():
        box = button.bounding_box()
        assert box["y"] + box["height"] <= height


def test_with_gloves_on_a_small_screen_decisions_are_twenty_millimetres_and_eight_apart(
    node, url, page
):
    inspection = node.pass_part(DOUBTFUL)
    screen = {"inch": "10.1", "gloves": "True"}
    page.context.add_cookies([{"name": SCREEN, "value": urlencode(screen), "url": url}])
    open_live(page, node, url, "/review")
    waiting_part(page, inspection)
    mm = math.hypot(1280, 800) / (10.1 * 25.4)
    boxes = [one.bounding_box() for one in page.locator(".decide button").all()]
    assert min(box["height"] for box in boxes) >= 20 * mm - 1
    assert min(box["width"] for box in boxes) >= 20 * mm - 1
    for left, right in itertools.pairwise(boxes):
        assert right["x"] - left["x"] - left["width"] >= 8 * mm - 1
    assert page.evaluate(SCROLL) == [1280, 800]


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_long_words_push_nothing_off_the_screen_and_can_be_read_in_full(
    node, free_port, page, width, height
):
    words = "ledger.db: " + "the disk takes no entries and keeps saying so; " * 4
    for component in ("camera", "ledger", "provider"):
        node.health.report(component, ok=False, words=words)
    page.set_viewport_size({"width": width, "height": height})
    with served(node.panel(), free_port()) as url:
        open_live(page, node, url, "/health")
        expect(page.locator("qc-health li")).to_have_count(7)
        for _ in range(2):
            hear(page, node)
        expect(page.locator("qc-alarm .tally")).to_contain_text("1")
        row = page.locator("qc-health li[data-component=ledger]")
        assert row.locator(".words").get_attribute("title") == words
        assert row.get_attribute("aria-label") == f"ledger, unwell: {words}"
        assert page.evaluate(SCROLL) == [width, height]
        assert page.locator(".top").bounding_box()["height"] < height / 5


def test_a_healthy_line_shows_no_strong_colour_outside_pictures(node, url, page):
    for _ in range(30):
        node.pass_part()
    node.ledger.sums = type(node.ledger.sums)(
        **dict.fromkeys(node.ledger.sums.__dataclass_fields__, 0)
        | {"cost_pico": {}, "held_pico": {}, "written_off_pico": {}, "usage": TokenUsage()}
    )
    page.set_viewport_size({"width": 1280, "height": 800})
    open_live(page, node, url)
    page.wait_for_selector("qc-part[data-kind=ok]")
    shot = page.screenshot(mask=[page.locator("qc-frame")], mask_color="#000000")
    pixels = cv2.imdecode(np.frombuffer(shot, np.uint8), cv2.IMREAD_COLOR)
    assert int((pixels.max(axis=2) - pixels.min(axis=2)).max()) <= 40
