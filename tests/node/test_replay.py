"""What recorded questions would have cost: by another book, at another hour, for whose budget."""

import json
from datetime import UTC, datetime, timedelta

import pytest

from qcnode.books.ledger import SqliteLedger
from qcnode.money import (
    Adjusted,
    Attempt,
    Cost,
    CostCentre,
    Indeterminate,
    Intent,
    NotBilled,
    Outcome,
    Reconciled,
    Settled,
    TokenUsage,
)

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
PEAK = datetime(2026, 11, 16, 2, tzinfo=UTC)  # a Monday morning in Beijing
USAGE = TokenUsage(text=1_000, output=100)
BOOK = """
[[price]]
provider = "acme"
model = "seer"
currency = "{currency}"
valid_from = 2026-01-01T00:00:00Z
micro_per_mtok = {{ input = {input}, output = {output} }}
source = "a test"
checked_at = 2026-11-01
"""


@pytest.fixture
def make_book(tmp_path):
    """Write a price file for acme's seer, 500 pico a token both ways unless said otherwise."""

    def make_book(name="book.toml", *, currency="USD", tokens_in=500, tokens_out=500):
        path = tmp_path / name
        path.write_text(BOOK.format(currency=currency, input=tokens_in, output=tokens_out))
        return path

    return make_book


@pytest.fixture
def record(tmp_path):
    """Put facts on record, each at its time, in the ledger of a home."""

    def record(*facts):
        home = tmp_path / "home"
        home.mkdir(exist_ok=True)
        clock = [0]
        ledger = SqliteLedger(
            home / "ledger.db", now_us=lambda: clock[0], new_epoch=lambda: "e" * 32
        )
        for at, fact in facts:
            clock[0] = to_us(at)
            ledger.submit(fact).result(10)
        ledger.close()
        return home

    return record


@pytest.fixture
def replayed(qcnode):
    """Replay, and return what was said as JSON."""

    def replayed(*words):
        done = qcnode("replay", "--escalations", "--json", *words)
        assert (done.code, done.err) == (0, ""), done.err
        return json.loads(done.out)

    return replayed


def to_us(at):
    return (at - EPOCH) // timedelta(microseconds=1)


def usd(pico, currency="USD"):
    return Cost(currency=currency, pico=pico, rows=("row",))


def intent(name, at, *, provider="acme", model="seer", centre=CostCentre(line="line1")):  # noqa: B008
    attempt = Attempt(
        id=name, escalation_id=f"e-{name}", number=1, provider=provider, model=model, centre=centre
    )
    fact = Intent(
        attempt=attempt,
        worst=USAGE,
        hold=usd(9_000_000),
        request_sha256="0" * 64,
        request_bytes=1,
        image_sha256=None,
    )
    return at, fact


def settled(name, at, pico=1_000_000, usage=USAGE):
    fact = Settled(
        attempt_id=name,
        usage=usage,
        cost=None if pico is None else usd(pico),
        started_at_us=to_us(at),
        rated_at_us=to_us(at) + 1_000_000,
        raw_usage="{}",
        response_id=None,
        model_served=None,
        http_status=200,
        duration_ms=1_000,
    )
    return at + timedelta(seconds=1), fact


def asked(name, at, pico=1_000_000, **how):
    return [intent(name, at, **how), settled(name, at, pico)]


def test_recorded_questions_are_priced_again_day_by_day(record, replayed, make_book):
    home = record(*asked("a1", PEAK), *asked("a2", PEAK), *asked("a3", PEAK + timedelta(days=1)))

    said = replayed("--home", home, "--prices", make_book())

    (book,) = said["books"]
    assert [
        (line["day"], line["requests"], line["tokens"], line["before_pico"], line["after_pico"])
        for line in book["lines"]
    ] == [
        ("2026-11-16", 2, 2_200, "2000000", "1100000"),
        ("2026-11-17", 1, 1_100, "1000000", "550000"),
    ]
    assert book["totals"] == [
        {
            "currency": "USD",
            "before_pico": "3000000",
            "after_pico": "1650000",
            "difference_pico": "-1350000",
        }
    ]


def test_several_books_are_compared_side_by_side(record, replayed, make_book):
    home = record(*asked("a1", PEAK))
    dear, cheap = make_book("dear.toml", tokens_in=2_000), make_book("cheap.toml", tokens_in=1)

    said = replayed("--home", home, "--prices", dear, "--prices", cheap)

    assert [book["totals"][0]["after_pico"] for book in said["books"]] == ["2050000", "51000"]


def test_the_same_book_gives_the_same_bill(record, replayed, make_book):
    home = record(*asked("a1", PEAK, 550_000))

    said = replayed("--home", home, "--prices", make_book())

    assert said["books"][0]["totals"][0]["difference_pico"] == "0"


def test_what_the_other_book_does_not_price_is_counted_and_never_free(
    record, replayed, make_book, qcnode
):
    home = record(*asked("a1", PEAK), *asked("a2", PEAK, model="oracle"))
    words = ("--home", home, "--prices", make_book())

    (book,) = replayed(*words)["books"]

    assert book["unpriced"] == 1
    assert [(line["model"], line["after_pico"]) for line in book["lines"]] == [
        ("oracle", None),
        ("seer", "550000"),
    ]
    assert "1 requests have no price there" in qcnode("replay", "--escalations", *words).out


def test_what_was_learnt_later_counts_and_what_nobody_knows_is_left_out(
    record, replayed, make_book
):
    later = PEAK + timedelta(hours=1)
    home = record(
        *asked("adjusted", PEAK),
        (
            later,
            Adjusted(
                attempt_id="adjusted", before=usd(1_000_000), after=usd(800_000), reason="late"
            ),
        ),
        *asked("unpriced", PEAK, None),
        intent("reconciled", PEAK),
        (PEAK, Indeterminate(attempt_id="reconciled", reason="reset", hold=usd(9_000_000))),
        (
            later,
            Reconciled(
                attempt_id="reconciled",
                usage=USAGE,
                cost=usd(300_000),
                source="export",
                source_sha256="0" * 64,
            ),
        ),
        intent("lost", PEAK),
        (PEAK, Indeterminate(attempt_id="lost", reason="reset", hold=usd(9_000_000))),
        intent("refused", PEAK),
        (PEAK, NotBilled(attempt_id="refused", reason="HTTP 429", http_status=429)),
        (
            later,
            Outcome(
                escalation_id="e-adjusted",
                centre=CostCentre(),
                ruled="GOOD",
                truth="GOOD",
                node_alone="ACCEPT",
                source="rework",
            ),
        ),
    )

    said = replayed("--home", home, "--prices", make_book())

    assert (said["requests"], said["unknown"]) == (3, 1)
    (total,) = said["books"][0]["totals"]
    assert (total["before_pico"], total["after_pico"]) == ("1100000", str(3 * 550_000))


def test_a_book_in_another_currency_is_never_added_to_this_one(record, replayed, make_book):
    home = record(*asked("a1", PEAK))

    said = replayed("--home", home, "--prices", make_book(currency="CNY"))

    assert said["books"][0]["totals"] == [
        {
            "currency": "CNY",
            "before_pico": None,
            "after_pico": "550000",
            "difference_pico": None,
        },
        {
            "currency": "USD",
            "before_pico": "1000000",
            "after_pico": None,
            "difference_pico": None,
        },
    ]


def test_questions_that_could_have_waited_would_have_cost_the_cheaper_hour(record, replayed):
    home = record(*asked("a1", PEAK, provider="deepseek", model="deepseek-flash"))
    words = ("--home", home, "--prices", "deepseek")

    now, half_an_hour, half_a_day = (
        int(replayed(*words, *defer)["books"][0]["totals"][0]["after_pico"])
        for defer in ((), ("--defer", "1"), ("--defer", "12"))
    )

    # 02:00 UTC is peak in Beijing, which ends at 04:00: half the price from then on.
    assert now == 1_000 * 300_000 + 100 * 1_200_000
    assert half_an_hour == now
    assert half_a_day == now // 2


def test_another_model_is_priced_for_as_many_tokens(record, replayed):
    home = record(*asked("a1", PEAK))
    words = ("--home", home, "--prices", "deepseek", "--as", "deepseek/deepseek-flash")

    (total,) = replayed(*words)["books"][0]["totals"]

    assert (total["before_pico"], total["after_pico"]) == ("1000000", str(420_000_000))


def test_only_the_days_asked_for_count_in_the_zone_asked_for(record, replayed, make_book):
    home = record(*[fact for day in range(4) for fact in asked(f"a{day}", at_one(day))])
    words = ("--home", home, "--prices", make_book(), "--since", "2026-11-18")

    assert days(replayed(*words)) == ["2026-11-18", "2026-11-19"]
    # 22:00 in London is the next morning in Shanghai.
    assert days(replayed(*words, "--zone", "Asia/Shanghai")) == [
        "2026-11-18",
        "2026-11-19",
        "2026-11-20",
    ]
    assert days(replayed(*words, "--until", "2026-11-19")) == ["2026-11-18"]


def at_one(day):
    return datetime(2026, 11, 16 + day, 22, tzinfo=UTC)


def days(said):
    return [line["day"] for line in said["books"][0]["lines"]]


def test_budgets_say_when_they_would_have_given_out(record, replayed, make_book, tmp_path, qcnode):
    facts = [
        fact
        for hour in range(6)
        for fact in asked(f"a{hour}", PEAK + timedelta(hours=hour), 1_000_000)
    ]
    home = record(*facts, *asked("next", PEAK + timedelta(days=1)))
    config = tmp_path / "node.toml"
    config.write_text(
        '[node]\nline = "line1"\ntimezone = "Asia/Shanghai"\n'
        '[[budget]]\nname = "day"\ncurrency = "USD"\nlimit_micro = 3\n'
        '[[budget]]\nname = "paint"\ncurrency = "USD"\nlimit_micro = 0\n'
        'scope = { department = "paint" }\n'
        '[[budget]]\nname = "rate"\nunit = "calls"\nlimit = 1\n'
    )
    words = ("--home", home, "--prices", make_book(), "--config", config)

    said = replayed(*words)

    assert said["zone"] == "Asia/Shanghai"
    assert said["books"][0]["budgets"] == [
        {
            "name": "day",
            # 3 at 1.00 each are all: the fourth, at 05:00 UTC, is one too many.
            "before": {
                "windows": 1,
                "first": "2026-11-16T13:00:00+08:00",
                "most_pico": "3000000",
            },
            "after": {
                "windows": 1,
                "first": "2026-11-16T15:00:00+08:00",
                "most_pico": "300000",
            },
        },
        {"name": "paint", "before": None, "after": None},
    ]
    text = qcnode("replay", "--escalations", *words).out
    assert "exceeded in 1 window, first at 2026-11-16T13:00:00+08:00" in text
    assert "paint        before kept" in text


def test_people_see_bars_on_one_scale(record, make_book, qcnode):
    home = record(*asked("a1", PEAK, 1_100_000))

    done = qcnode("replay", "--escalations", "--home", home, "--prices", make_book())

    before, after = (
        line.count("\N{FULL BLOCK}") for line in done.out.splitlines() if "\N{FULL BLOCK}" in line
    )
    assert (before, after) == (36, 18)
    assert "total USD  0.0000011 -> 0.00000055 (-50.0 %)" in done.out


def test_an_empty_ledger_costs_nothing_by_any_book(record, replayed, make_book):
    said = replayed("--home", record(), "--prices", make_book())

    assert said["requests"] == 0
    assert said["books"][0]["totals"] == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--prices", "deepseek"), "--escalations"),
        (("--escalations",), "--prices"),
        (("--escalations", "--prices", "deepseek", "--as", "flash"), "PROVIDER/MODEL"),
        (("--escalations", "--prices", "none.toml"), "none.toml"),
        (("--escalations", "--prices", "deepseek", "--zone", "Beijing"), "Asia/Shanghai"),
        (("--escalations", "--prices", "deepseek", "--since", "yesterday"), "write a day as"),
        (("--escalations", "--prices", "deepseek"), "no ledger here"),
    ],
)
def test_wrong_use_is_one_line_and_exit_code_2(qcnode, tmp_path, words, said):
    done = qcnode("replay", "--home", tmp_path / "none", *words)

    assert done.code == 2
    assert said in done.err
