"""`qcnode replay --escalations --packings`: recorded parts in other ways, side by side."""

import asyncio
import json
from datetime import timedelta

import numpy as np
import pytest

from qcbridge.packing import open_views
from qcnode.books.journal import Journal
from qcnode.books.pictures import PictureStore
from qcnode.domain import Action, Escalation, Evidence, Frame, Inspection, Verdict
from qcnode.health import HealthBoard
from qcnode.picture import encode_png
from tests.bridge.asking import NOW, bridge
from tests.scripted import KEY, scripted_provider

PARTS = {"P-1": "good", "P-2": "dent", "P-3": "dent", "P-4": "good", "P-5": "scratch"}
SIZE = (800, 600)
CONFIG = """
[node]
home = "{home}"
[agent]
product = "a cap"
defect_classes = ["scratch", "dent"]
[provider]
name = "scripted"
model = "scripted-provider"
base_url = "{url}"
"""


def put(journal, seq, part_id):
    """Record a part with a warm place on it, and that somebody was asked about it."""
    pixels = np.full((SIZE[1], SIZE[0], 3), 80 + seq, np.uint8)
    heat = np.zeros((60, 80), np.float32)
    heat[20 + seq : 28 + seq, 40:50] = 200
    frame = Frame(
        id=part_id, part_id=part_id, camera="c", name=part_id, captured_at=NOW, pixels=pixels
    )
    inspection = Inspection(
        id=f"i-{part_id}",
        trigger_seq=seq,
        part_id=part_id,
        verdict=Verdict.NOT_DECIDABLE,
        action=Action.DIVERT,
        score=0.5,
        model="bank@0123",
        captured_at=NOW,
        latency_us=1,
    )
    journal.submit(inspection, evidence=Evidence(frame=frame, heat=heat)).result(5)
    escalation = Escalation(
        id=f"e-{part_id}",
        inspection_id=inspection.id,
        part_id=part_id,
        reason="between the limits",
        score=0.5,
        opened_at=NOW,
        expires_at=NOW + timedelta(hours=1),
    )
    journal.submit(escalation).result(5)
    return escalation


async def ask_all(home, journal, escalations):
    async with bridge(home, agent={"health": HealthBoard(lambda: NOW)}) as way:
        way.provider.parts(**{part.replace("-", "_"): truth for part, truth in PARTS.items()})
        for escalation in escalations:
            name = escalation.inspection_id
            await way.agent.review(escalation, journal.picture(name), journal.heat(name))


@pytest.fixture
def home(tmp_path):
    """Return the home of a node that asked the scripted provider about every part."""
    store = PictureStore(tmp_path / "pictures", pictures_max=100, heat_full=None)
    journal = Journal(tmp_path / "journal.db", pictures=store, health=HealthBoard(lambda: NOW))
    escalations = [put(journal, seq, part) for seq, part in enumerate(PARTS, start=1)]
    asyncio.run(ask_all(tmp_path, journal, escalations))
    journal.close()
    return tmp_path


@pytest.fixture
def config(home):
    path = home / "node.toml"
    path.write_text(CONFIG.format(home=home, url="http://127.0.0.1:8090/v1"))
    return path


@pytest.fixture
def compared(qcnode):
    def compared(*words):
        done = qcnode("replay", "--escalations", "--packings", "--json", *words)
        assert done.code == 0, done.err
        return json.loads(done.out)

    return compared


def row(said, packing, formula="patch28"):
    (found,) = [
        one
        for one in said["rows"]
        if (one["packing"], one["formula"], one["model"] is None)
        == (packing, formula, formula != "patch28")
    ]
    return found


def test_ways_to_show_are_counted_by_each_formula(compared, config):
    said = compared("--config", config)

    assert said["parts"] == len(PARTS)
    frame, crop = row(said, "frame"), row(said, "crop")
    assert frame["image_tokens_per_part"]["median"] == 29 * 22
    assert crop["image_tokens_per_part"]["max"] <= 256
    assert crop["tokens"] < frame["tokens"]
    assert row(said, "frame", "openai-tiles-4o")["image_tokens_per_part"]["min"] == 765
    sheet = row(said, "sheet")
    assert sheet["text_tokens_per_part"] < crop["text_tokens_per_part"]


def test_estimates_are_held_against_what_was_returned(compared, config):
    (found,) = compared("--config", config)["estimates"]

    assert (found["provider"], found["requests"], found["other_pictures"]) == ("scripted", 5, 0)
    assert found["image_error"] == {"min": 0, "median": 0, "max": 0}
    assert abs(found["input_error"]["median"]) < 0.02


def test_a_request_whose_picture_would_be_another_now_is_no_evidence(compared, config):
    config.write_text(config.read_text() + "image_side_max_px = 128\n")

    (found,) = compared("--config", config)["estimates"]

    assert (found["requests"], found["other_pictures"]) == (0, 5)
    assert found["image_error"] is None


def test_a_way_costs_what_the_book_says_for_the_model_it_is_counted_for(compared, config):
    said = compared("--config", config, "--formula", "qwen25vl=scripted/scripted-provider")

    for found in said["rows"]:
        tokens_in = found["tokens"] - said["output_tokens"] * said["parts"]
        expected = tokens_in * 300_000 + said["output_tokens"] * said["parts"] * 1_200_000
        assert abs(int(found["cost_pico"]) - expected) <= 300_000
        assert found["currency"] == "USD"


def test_a_golden_picture_is_shown_beside_the_part(compared, home, config):
    golden = home / "golden.png"
    golden.write_bytes(encode_png(np.full((600, 800, 3), 100, np.uint8)))

    said = compared("--config", config, "--golden", golden)

    assert said["golden"]
    assert row(said, "crop+golden")["image_tokens_per_part"]["max"] <= 256
    assert (
        row(said, "crop+golden")["text_tokens_per_part"] > row(said, "crop")["text_tokens_per_part"]
    )


def test_asking_in_each_way_is_metered_in_a_ledger_of_its_own(
    compared, home, config, tmp_path_factory, monkeypatch
):
    before = (home / "ledger.db").read_bytes()
    with scripted_provider(tmp_path_factory.mktemp("script"), accuracy=1.0) as script:
        script.parts(**{part.replace("-", "_"): truth for part, truth in PARTS.items()})
        config.write_text(CONFIG.format(home=home, url=script.base_url))
        monkeypatch.setenv("QCNODE_PROVIDER_API_KEY", KEY)
        said = compared("--config", config, "--ask")
        requests = script.requests()

    assert said["scripted"]
    assert [(one["packing"], one["right"]) for one in said["asked"]] == [("frame", 5), ("crop", 5)]
    assert sum(one["input_tokens"] for one in said["asked"]) == sum(
        one["usage"]["prompt_tokens"] for one in requests
    )
    assert (home / "ledger.db").read_bytes() == before
    assert (home / "replay-ledger.db").is_file()


def test_a_comparison_in_words_says_what_is_scripted_and_draws_bars(qcnode, config):
    done = qcnode("replay", "--escalations", "--packings", "--config", config)

    assert done.code == 0
    assert "5 escalations with their pictures" in done.out
    assert "█" in done.out
    assert "made again to the byte" in done.out


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--formula", "nobody's"], "give FORMULA"),
        (["--formula", "qwen25vl=alibaba"], "give FORMULA"),
        (["--ask"], "--config"),
        (["--home", "nowhere"], "no journal"),
    ],
)
def test_what_cannot_be_compared_is_said_in_one_line(qcnode, words, why):
    done = qcnode("replay", "--escalations", "--packings", *words)

    assert done.code == 2
    assert why in done.err


def test_the_views_of_a_recorded_part_hold_its_heat(home):
    picture = (home / "pictures" / "i-P-1.jpg").read_bytes()
    heat = (home / "pictures" / "i-P-1.png").read_bytes()

    assert open_views(picture, heat).evidence(None).width < SIZE[0]
