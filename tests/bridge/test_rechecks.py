"""Audited parts are asked about in the cheap hours, by a price book that knows them."""

import itertools
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from pydantic import SecretStr

from qcbridge.rechecks import Rechecks
from qcnode.books.chain import fact_of
from qcnode.books.journal import Journal
from qcnode.books.ledger import SqliteLedger
from qcnode.books.merits import Merits
from qcnode.books.pictures import PictureStore
from qcnode.domain import (
    Action,
    Decider,
    Escalation,
    Evidence,
    Finding,
    Frame,
    Inspection,
    Limits,
    Ruling,
    Verdict,
)
from qcnode.health import HealthBoard
from qcnode.money import Intent
from qcnode.settings import AgentSettings, ProviderSettings, Settings
from qcnode.wiring.agents import build_agent
from tests.scripted import KEY, scripted_provider

# Half price from 22:00 to 06:00 in Shanghai, which is 14:00 to 22:00 UTC.
PRICES = """
[[schedule]]
id = "night"
tz = "Asia/Shanghai"
weekdays = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
windows = ["00:00-06:00", "22:00-24:00"]

[[price]]
provider = "acme"
model = "look-1"
currency = "USD"
micro_per_mtok = { input = 100_000, cache_read = 100_000, output = 100_000 }
during = "night"
valid_from = 2020-01-01T00:00:00Z
source = "a test"
checked_at = 2026-11-01

[[price]]
provider = "acme"
model = "look-1"
currency = "USD"
micro_per_mtok = { input = 200_000, cache_read = 200_000, output = 200_000 }
outside = "night"
valid_from = 2020-01-01T00:00:00Z
source = "a test"
checked_at = 2026-11-01
"""
MORNING = datetime(2026, 11, 23, 9, tzinfo=UTC)
NIGHT = datetime(2026, 11, 23, 14, tzinfo=UTC)


class Plant:
    """A journal with audited parts in it, and a router over one provider with night rates."""

    def __init__(self, folder, stack):
        self.at = MORNING
        health = HealthBoard(self.now)
        self.journal = Journal(
            folder / "journal.db",
            pictures=PictureStore(folder / "pictures", pictures_max=100, heat_full=lambda: 1.0),
            health=health,
        )
        stack.callback(self.journal.close)
        self.ledger = SqliteLedger(
            folder / "ledger.db",
            now_us=lambda: int(self.at.timestamp() * 1_000_000),
            new_epoch=lambda: "e" * 32,
        )
        stack.callback(self.ledger.close)
        self.provider = stack.enter_context(scripted_provider(folder, model="look-1"))
        self.provider.parts(P_1="dent", P_2="good")
        (folder / "acme.toml").write_text(PRICES)
        ids = itertools.count(1)
        self.router = build_agent(
            Settings(
                provider=(
                    ProviderSettings(
                        name="acme",
                        model="look-1",
                        base_url=f"{self.provider.base_url}/v1",
                        api_key=SecretStr(KEY),
                        prices=folder / "acme.toml",
                    ),
                ),
                agent=AgentSettings(enabled=True),
            ),
            ledger=self.ledger,
            health=health,
            new_id=lambda: f"a{next(ids)}",
        )
        self.rechecks = self.again()

    def now(self):
        return self.at

    def again(self, within=timedelta(hours=12)):
        return Rechecks(self.journal, self.router, within=within, now=self.now)

    def ruled(self, part, *, audit=True, by=Decider.OPERATOR):
        """Have a part pass, drawn for an audit, and a person rule on it."""
        frame = Frame(
            id=f"f-{part}",
            part_id=part,
            camera="c",
            name="",
            captured_at=self.at,
            pixels=np.full((90, 120, 3), 90, np.uint8),
        )
        self.journal.append(
            Inspection(
                id=f"i-{part}",
                trigger_seq=int(part[-1]),
                part_id=part,
                verdict=Verdict.OK,
                action=Action.DIVERT,
                score=0.1,
                model="m",
                captured_at=self.at,
                latency_us=1_000,
                audit=True,
            ),
            evidence=Evidence(frame=frame, heat=None),
        )
        self.journal.append(
            Escalation(
                id=f"e-{part}",
                inspection_id=f"i-{part}",
                part_id=part,
                reason="an audit",
                score=0.1,
                opened_at=self.at,
                expires_at=self.at + timedelta(hours=1),
                audit=audit,
            )
        )
        ruling = Ruling(
            id=f"r-{part}",
            escalation_id=f"e-{part}",
            part_id=part,
            by=by,
            who="anna",
            finding=Finding.GOOD,
            disposition=None,
            binding=True,
            reason="",
            defect_class=None,
            confidence=None,
            at=self.at,
        )
        self.journal.submit(ruling).result(timeout=10)

    def asked(self):
        facts = [fact_of(entry) for entry in self.ledger.read(0, 100)]
        return [fact.attempt.escalation_id for fact in facts if isinstance(fact, Intent)]

    def said(self, part):
        return [one for one in self.journal.story(f"e-{part}")[1] if one.by is Decider.AGENT]


@pytest.fixture
async def plant(tmp_path):
    with ExitStack() as stack:
        plant = Plant(tmp_path, stack)
        yield plant
        await plant.router.close()


async def test_an_audited_part_waits_for_the_cheap_hours_and_then_is_asked_about_once(plant):
    plant.ruled("P-1")
    assert await plant.rechecks.step() == 1
    assert plant.asked() == []

    plant.at = NIGHT - timedelta(seconds=1)
    assert await plant.rechecks.step() == 1
    assert plant.asked() == []

    plant.at = NIGHT
    assert await plant.rechecks.step() == 0
    assert await plant.rechecks.step() == 0
    assert plant.asked() == ["e-P-1"]
    (said,) = plant.said("P-1")
    assert (said.finding, said.binding, said.disposition) == (Finding.DEFECTIVE, False, None)
    assert (said.who, said.code) == ("agent:look-1", "recheck")


async def test_what_comes_in_a_cheap_hour_is_asked_at_once(plant):
    plant.at = NIGHT + timedelta(hours=1)
    plant.ruled("P-2")

    assert await plant.rechecks.step() == 0
    assert plant.asked() == ["e-P-2"]


async def test_where_no_cheap_hour_comes_in_time_it_is_asked_in_the_dear_one(plant):
    rechecks = plant.again(within=timedelta(hours=1))
    plant.ruled("P-1")

    assert await rechecks.step() == 0
    assert plant.asked() == ["e-P-1"]


async def test_only_what_a_person_ruled_at_an_audit_is_asked_about(plant):
    plant.at = NIGHT
    plant.ruled("P-1", audit=False)
    plant.ruled("P-2", by=Decider.TIMEOUT)

    assert await plant.rechecks.step() == 0
    assert plant.asked() == []


async def test_what_waited_is_found_again_after_a_restart_and_what_was_asked_is_not_again(plant):
    plant.ruled("P-1")
    assert await plant.rechecks.step() == 1
    plant.at = NIGHT

    restarted = plant.again()
    assert await restarted.step() == 0
    assert await plant.again().step() == 0
    assert plant.asked() == ["e-P-1"]


async def test_a_question_too_late_for_its_time_is_let_go(plant):
    plant.ruled("P-1")
    plant.at = MORNING + timedelta(hours=13)

    assert await plant.rechecks.step() == 0
    assert plant.asked() == []


async def test_what_the_agent_says_of_an_audited_part_counts_for_what_it_is_worth(plant):
    plant.at = NIGHT
    plant.ruled("P-1")  # Good, a person says; the script was told of a dent.
    plant.ruled("P-2")
    await plant.rechecks.step()
    merits = Merits(plant.journal, limits=lambda: Limits(accept_below=0.2, reject_from=0.8))

    merit = merits.read()["agent:look-1"]

    assert (merit.asked, merit.right, merit.wrong) == (2, 1, 1)
    assert (merit.gained, merit.lost) == (0, 1)  # The node alone would have passed both.
