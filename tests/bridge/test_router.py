"""The router over real providers: scripted ones on loopback, each with its price."""

import itertools
import threading
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass, field

import numpy as np
import pytest
from pydantic import SecretStr

from qcnode.books.chain import fact_of
from qcnode.books.journal import Journal
from qcnode.books.ledger import SqliteLedger
from qcnode.books.merits import Merit
from qcnode.books.pictures import PictureStore
from qcnode.domain import AgentLevel, Choice, Finding
from qcnode.errors import (
    BudgetExceededError,
    EgressDeniedError,
    JournalUnavailableError,
    ProviderUnavailableError,
)
from qcnode.health import HealthBoard
from qcnode.kill import NeverStopped
from qcnode.money import Intent
from qcnode.picture import encode_png
from qcnode.settings import AgentSettings, BudgetSettings, ProviderSettings, Settings
from qcnode.trust import Trust
from qcnode.warrant import Record
from qcnode.wiring.agents import build_agent
from qcnode.wiring.machine import now
from tests.bridge.metering import escalation
from tests.scripted import KEY, scripted_provider

PICTURE = encode_png(np.full((300, 400, 3), 90, np.uint8))
PRICES = """
[[price]]
provider = "{name}"
model = "{model}"
currency = "USD"
micro_per_mtok = {{ input = {price}, cache_read = {price}, output = {price} }}
valid_from = 2020-01-01T00:00:00Z
source = "a test"
checked_at = 2026-11-01
"""
TRUST = Trust(level=AgentLevel.L2, parts=0, up=0.0, down=0.0, rises=0, falls=0)


def record(right, wrong):
    return Record(merit=Merit(right=right, wrong=wrong), trust=TRUST, worth=None)


@dataclass
class Shop:
    """Providers by name, each a real server; a router over them, and all that is on record."""

    folder: object
    stack: ExitStack
    servers: dict = field(default_factory=dict)
    settings: list = field(default_factory=list)
    choices: list = field(default_factory=list)
    known: dict = field(default_factory=dict)
    fails: Exception | None = None

    def open(self, name, price, *, timeout_s=5.0, **behaviour):
        folder = self.folder / name
        folder.mkdir()
        model = f"{name}-1"
        server = self.stack.enter_context(scripted_provider(folder, model=model, **behaviour))
        server.parts(P_1="dent")
        (folder / "prices.toml").write_text(PRICES.format(name=name, model=model, price=price))
        self.servers[name] = server
        self.settings.append(
            ProviderSettings(
                name=name,
                model=model,
                base_url=f"{server.base_url}/v1",
                prices=folder / "prices.toml",
                api_key=SecretStr(KEY),
                timeout_s=timeout_s,
            )
        )

    def router(self, *, budget=(), routing=None, stops=None, **changes):
        ids = itertools.count(1)
        self.ledger = SqliteLedger(
            self.folder / "ledger.db",
            now_us=lambda: 1_793_000_000_000_000,
            new_epoch=lambda: "e" * 32,
            budgets=[one.budget("UTC") for one in budget],
        )
        self.stack.callback(self.ledger.close)
        settings = Settings(
            provider=tuple(self.settings),
            agent=AgentSettings(enabled=True, attempts_max=1),
            **({} if routing is None else {"routing": routing}),
            **changes,
        )
        self.health = HealthBoard(now)
        return build_agent(
            settings,
            ledger=self.ledger,
            health=self.health,
            new_id=lambda: f"id-{next(ids)}",
            stops=stops,
            record=self.record,
            records=lambda: self.known,
        )

    def record(self, choice):
        done = Future()
        if self.fails is not None:
            done.set_exception(self.fails)
        else:
            self.choices.append(choice)
            done.set_result(True)
        return done

    def asked(self):
        """Whom the ledger says was asked, in order."""
        facts = [fact_of(entry) for entry in self.ledger.read(0, 1_000)]
        return [fact.attempt.provider for fact in facts if isinstance(fact, Intent)]

    def requests(self, name):
        return self.servers[name].requests() if self.servers[name].log.exists() else []


@pytest.fixture
def shop(tmp_path):
    with ExitStack() as stack:
        yield Shop(tmp_path, stack)


async def review(router):
    try:
        return await router.review(escalation(), PICTURE, None)
    finally:
        await router.close()


def no_trials(**more):
    return {"trial_share": 0.0} | more


async def test_the_cheapest_is_asked_and_it_is_on_record_why(shop):
    shop.open("dear", 2_000_000)
    shop.open("cheap", 1_000_000)

    opinion = await review(shop.router())

    assert (opinion.finding, opinion.who) == (Finding.DEFECTIVE, "agent:cheap-1")
    assert shop.asked() == ["cheap"]
    (choice,) = shop.choices
    assert (choice.provider, choice.model, choice.escalation_id) == ("cheap", "cheap-1", "e-P-1")
    assert "nobody has proved good enough yet" in choice.reason
    assert choice.passed_over[0].startswith("dear/dear-1: unproved, ")
    assert choice.permit == "on this machine: nothing leaves"


async def test_what_was_proved_on_this_line_beats_the_price(shop):
    shop.open("dear", 2_000_000)
    shop.open("cheap", 1_000_000)
    shop.known = {"agent:cheap-1": record(60, 40), "agent:dear-1": record(99, 1)}

    await review(shop.router(routing=no_trials()))

    assert shop.asked() == ["dear"]
    assert "right in 60 of 100, below 80%" in shop.choices[0].passed_over[0]


async def test_where_one_does_not_answer_the_next_is_asked_and_both_are_on_record(shop):
    shop.open("cheap", 1_000_000, error_rate=1.0)
    shop.open("dear", 2_000_000)

    opinion = await review(shop.router())

    assert opinion.who == "agent:dear-1"
    assert shop.asked() == ["cheap", "dear"]
    assert [choice.provider for choice in shop.choices] == ["cheap", "dear"]
    assert shop.choices[1].passed_over == ("cheap/cheap-1: it was asked already",)


async def test_when_nobody_answers_a_person_rules(shop):
    shop.open("cheap", 1_000_000, error_rate=1.0)
    shop.open("dear", 2_000_000, limit_rate=1.0)

    with pytest.raises(ProviderUnavailableError):
        await review(shop.router())

    assert shop.asked() == ["cheap", "dear"]


async def test_one_that_fails_again_and_again_is_left_alone_and_the_board_says_so(shop):
    shop.open("cheap", 1_000_000, error_rate=1.0)
    shop.open("dear", 2_000_000)
    router = shop.router()
    for _ in range(7):
        await router.review(escalation(), PICTURE, None)
    board = {one.component: one for one in shop.health.all()}
    await router.close()

    assert shop.asked().count("cheap") == 5
    assert "cheap/cheap-1: it does not answer" in shop.choices[-1].passed_over[0]
    assert board["provider"].ok
    assert "cheap/cheap-1" in board["provider"].words


async def test_who_stands_in_for_a_trial_that_failed_is_the_one_that_proved_itself(shop):
    shop.open("new", 1_000_000, error_rate=1.0)
    shop.open("newer", 1_000_001)
    shop.open("proved", 2_000_000)
    shop.known = {"agent:proved-1": record(99, 1)}

    await review(shop.router(routing={"trial_share": 1.0}))

    assert shop.asked() == ["new", "proved"]
    assert "a trial, with 0 rulings settled" in shop.choices[0].reason


async def test_a_second_opinion_is_asked_where_it_is_worth_its_price(shop):
    shop.open("cheap", 1_000_000, accuracy=0.0)
    shop.open("dear", 2_000_000)
    shop.known = {"agent:cheap-1": record(90, 10), "agent:dear-1": record(999, 1)}

    opinion = await review(shop.router(routing=no_trials(error_cost_micro=10_000_000)))

    assert shop.asked() == ["cheap", "dear"]
    assert opinion.who == "agent:dear-1"  # Of the two the one that is more often right.
    assert "second opinion" in shop.choices[1].reason


async def test_no_second_opinion_where_an_error_costs_less_or_nobody_said_what(shop):
    shop.open("cheap", 1_000_000)
    shop.open("dear", 2_000_000)
    shop.known = {"agent:cheap-1": record(90, 10), "agent:dear-1": record(999, 1)}
    router = shop.router(routing=no_trials(error_cost_micro=100))

    await review(router)

    assert shop.asked() == ["cheap"]


async def test_a_second_opinion_that_does_not_come_leaves_the_first(shop):
    shop.open("cheap", 1_000_000)
    shop.open("dear", 2_000_000, prose_rate=1.0)
    shop.known = {"agent:cheap-1": record(90, 10), "agent:dear-1": record(999, 1)}

    opinion = await review(shop.router(routing=no_trials(error_cost_micro=10_000_000)))

    assert shop.asked() == ["cheap", "dear"]
    assert opinion.who == "agent:cheap-1"


async def test_one_the_budget_has_no_room_for_is_passed_over(shop):
    shop.open("dear", 9_000_000_000)
    shop.known = {"agent:dear-1": record(99, 1)}
    shop.open("cheap", 1_000_000)
    day = BudgetSettings(name="day", currency="USD", limit_micro=100_000)
    router = shop.router(budget=(day,), routing=no_trials())

    await review(router)

    assert shop.asked() == ["cheap"]
    assert "no room for its worst case" in shop.choices[0].passed_over[0]


async def test_with_room_for_nobody_nothing_leaves(shop):
    shop.open("dear", 9_000_000_000)
    shop.open("cheap", 8_000_000_000)
    day = BudgetSettings(name="day", currency="USD", limit_micro=1)

    with pytest.raises((BudgetExceededError, ProviderUnavailableError)):
        await review(shop.router(budget=(day,)))

    assert shop.asked() == []


async def test_what_cannot_be_put_on_record_is_not_asked(shop):
    shop.open("cheap", 1_000_000)
    shop.fails = JournalUnavailableError("the disk takes no records")

    with pytest.raises(JournalUnavailableError):
        await review(shop.router())

    assert shop.asked() == []
    assert shop.requests("cheap") == []


class Stopped(NeverStopped):
    """A kill switch with one thing stopped."""

    def __init__(self, scope):
        self.scope = scope
        self.threads = threading.active_count()

    def stopped(self, *scopes):
        return self.scope in scopes


async def test_a_provider_that_people_stopped_is_not_asked(shop):
    shop.open("cheap", 1_000_000)
    shop.open("dear", 2_000_000)

    await review(shop.router(stops=Stopped("provider:cheap")))

    assert shop.asked() == ["dear"]
    assert shop.requests("cheap") == []


async def test_alone_a_provider_is_asked_whatever_its_record_and_errors_are_its_own(shop):
    shop.open("cheap", 1_000_000, limit_rate=1.0)
    shop.known = {"agent:cheap-1": record(0, 100)}
    router = shop.router()

    assert router.reachable()
    assert router.worst().hold.pico > 0
    with pytest.raises(ProviderUnavailableError, match="HTTP 429"):
        await review(router)
    assert shop.asked() == ["cheap"]


def far(**changes):
    """Settings of a provider beyond this machine that may be sent what the line has."""
    allowed = {
        "region": "cn",
        "entity": "Acme",
        "filing": "F-1",
        "data_classes": ("part-image",),
    }
    return ProviderSettings(
        name="scripted-elsewhere",
        base_url="https://acme.invalid/v1",
        api_key=SecretStr(KEY),
        **allowed | changes,
    )


async def test_nothing_is_prepared_or_sent_for_one_that_may_not_be_sent_it(shop):
    shop.settings.append(far(region=""))
    shop.open("here", 1_000_000)

    opinion = await review(shop.router(egress={"regions": ("cn",)}))

    assert opinion.who == "agent:here-1"
    assert "its region is not stated" in shop.choices[0].passed_over[0]


async def test_where_all_are_forbidden_the_reason_is_said_and_nobody_is_reachable(shop):
    shop.settings.append(far())
    router = shop.router()

    assert not router.reachable()
    with pytest.raises(EgressDeniedError, match=r"egress\.regions"):
        await review(router)
    assert shop.ledger.totals().entries == 0


def test_a_choice_comes_back_from_the_journal_as_it_went_in(tmp_path):
    health = HealthBoard(now)
    pictures = PictureStore(tmp_path / "pictures", pictures_max=10, heat_full=lambda: 1.0)
    journal = Journal(tmp_path / "journal.db", pictures=pictures, health=health)
    choice = Choice(
        id="c-1",
        escalation_id="e-1",
        provider="acme",
        model="look-1",
        reason="the cheapest",
        passed_over=("a: not allowed", "b: dearer"),
        permit="part-image to Acme in eu, filing none, until changed",
        at=now(),
    )
    journal.submit(choice).result(timeout=10)
    ((_, back),) = journal.read(0)
    journal.close()

    assert back == choice
