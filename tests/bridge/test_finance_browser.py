"""The finance page in a real browser, on a desk and in a hand."""

import pytest
from playwright.sync_api import sync_playwright

from qcbridge.billing.app import create_app
from tests.bridge.paper_world import OCTOBER, PAINT, PaperWorld, at
from tests.node.panel_fakes import served

pytestmark = pytest.mark.chromium

SIZES = [(1280, 800), (390, 844)]


@pytest.fixture
def url(tmp_path, free_port):
    world = PaperWorld(f"sqlite:///{tmp_path}/billing.db", now="2026-11-01T00")
    node = world.node()
    node.use(at_us=at("2026-10-16T01"), escalation="part-1")
    node.send()
    world.issue(OCTOBER)
    world.clock("2026-11-20T12")
    node.use(at_us=at("2026-11-16T01"), centre=PAINT, provider="openai")
    node.lose(at_us=at("2026-11-16T03"))
    world.send()
    with served(
        create_app(world.books.store, token=None, now=lambda: world.now), free_port()
    ) as url:
        yield url
    world.close()


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_the_page_fits_and_nothing_in_it_complains(url, program, width, height):
    complaints, elsewhere = [], []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=str(program("chromium")), args=["--no-sandbox", "--disable-gpu"]
        )
        page = browser.new_page(viewport={"width": width, "height": height})
        page.on("console", lambda said: said.type == "error" and complaints.append(said.text))
        page.on("request", lambda asked: asked.url.startswith(url) or elsewhere.append(asked.url))
        page.goto(f"{url}/finance?tenant=acme")
        wide = page.evaluate("document.documentElement.scrollWidth")
        boxes = [box.bounding_box() for box in page.locator(".side > div").all()]
        told = page.locator("main").inner_text()
        browser.close()
    assert wide == width
    assert len(boxes) == 6
    assert all(box["x"] >= 0 and box["x"] + box["width"] <= width for box in boxes)
    assert len({box["y"] for box in boxes}) == (1 if width == 1280 else 6)
    assert "acme-000001" in told
    assert "0.00209400006 USD" in told
    assert (complaints, elsewhere) == ([], [])
