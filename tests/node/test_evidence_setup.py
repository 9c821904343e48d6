"""What settings and journal make of an agent's means."""

from datetime import UTC, datetime

import pytest

from qcbridge.packing import Packing
from qcbridge.redact import Redaction
from qcbridge.settled import SettledFirst
from qcbridge.tools import Tool
from qcnode.books.journal import Journal
from qcnode.books.pictures import PictureStore
from qcnode.domain import Action, Inspection, Verdict
from qcnode.errors import SettingsError
from qcnode.health import HealthBoard
from qcnode.ids import IdMaker, first_id
from qcnode.settings import Settings, load_settings
from qcnode.wiring.evidence import means_of, settled_first

NOW = datetime(2026, 11, 22, tzinfo=UTC)


@pytest.fixture
def journal(tmp_path):
    store = PictureStore(tmp_path / "pictures", pictures_max=10, heat_full=None)
    journal = Journal(tmp_path / "journal.db", pictures=store, health=HealthBoard(lambda: NOW))
    yield journal
    journal.close()


@pytest.fixture
def loaded(tmp_path):
    def loaded(text):
        path = tmp_path / "node.toml"
        path.write_text(text)
        return load_settings(path)

    return loaded


def test_settings_say_what_is_hidden_and_what_is_shown(loaded, journal):
    settings = loaded(
        "[agent]\nmask = [[0, 0.8, 0.3, 0.2]]\nsteps_max = 3\nreview_tokens_max = 9000\n"
    )

    means = means_of(settings, journal=journal, golden=lambda: b"golden")

    assert means.redaction == Redaction(areas=((0, 0.8, 0.3, 0.2),), codes=True)
    assert (means.packing, means.steps_max, means.tokens_max) == (Packing.CROP_GOLDEN, 3, 9000)
    assert set(means.style().tools) == set(Tool) - {Tool.PROPOSE}


def test_by_default_a_part_is_asked_about_once_and_nothing_is_said_of_tools(journal):
    means = means_of(Settings(), journal=journal, golden=None)

    assert (means.packing, means.steps_max, means.style().tools) == (Packing.CROP, 1, ())


@pytest.mark.parametrize("area", ["[-0.1, 0, 0.5, 0.5]", "[0.9, 0, 0.2, 1]", "[0, 0, 0, 1]", "[0]"])
def test_an_area_outside_the_frame_is_refused_before_anything_starts(loaded, area):
    with pytest.raises(SettingsError, match="mask"):
        loaded(f"[agent]\nmask = [{area}]\n")


@pytest.mark.parametrize(("settled", "wrapped"), [("off", False), ("exact", True), ("alike", True)])
def test_settled_cases_are_looked_at_as_set(loaded, journal, settled, wrapped):
    reviewer = object()

    first = settled_first(loaded(f'[agent]\nsettled = "{settled}"\n'), reviewer, journal=journal)

    assert isinstance(first, SettledFirst) is wrapped
    assert (first is reviewer) is not wrapped


def test_ids_made_from_an_instant_on_sort_after_its_first_id():
    clock = [1_000]
    make = IdMaker(lambda: clock[0], lambda _: 0)
    before = make()
    clock[0] = 2_000
    after = make()

    assert before < first_id(2_000) <= after
    assert first_id(1_001) > before


def test_parts_are_counted_from_an_instant_on(journal):
    for seq, at_ms in enumerate([1_000, 5_000, 6_000, 7_000], start=1):
        inspection = Inspection(
            id=IdMaker(lambda at_ms=at_ms: at_ms)(),
            trigger_seq=seq,
            part_id=f"P-{seq}",
            verdict=Verdict.NOT_OK if seq == 3 else Verdict.OK,
            action=Action.ACCEPT,
            score=0.5,
            model="bank@0123",
            captured_at=NOW,
            latency_us=1,
        )
        journal.submit(inspection).result(5)

    assert journal.came_out_since(first_id(5_000)) == {"OK": 2, "NOT_OK": 1}
    assert journal.came_out_since(first_id(0)) == {"OK": 3, "NOT_OK": 1}
    assert journal.came_out_since(first_id(8_000)) == {}
