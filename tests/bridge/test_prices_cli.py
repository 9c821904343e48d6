"""`qcnode prices`, as people type it."""

import json
import sys
from datetime import UTC, datetime
from types import SimpleNamespace

import pytest
from genai_prices import Usage
from genai_prices.data import providers

from qcbridge.prices import PriceBook
from qcbridge.pricing import book_check
from qcbridge.pricing.book_file import read_book
from qcnode.books.seals import SigningKey
from qcnode.cli import prices as commands
from qcnode.cli.app import main
from qcnode.doctor import examine
from qcnode.money import PICO, TokenUsage
from tests.bridge.price_books import both, holidays, instant, output, row, schedule, write

NOW = instant("2026-11-22T12:00Z")


@pytest.fixture
def prices(monkeypatch, capsys):
    """Type `qcnode prices ...` at noon of 2026-11-22 and read what is printed."""
    monkeypatch.setattr(commands, "_now", lambda: NOW)
    monkeypatch.delenv("QCNODE_PROVIDER_PRICES", raising=False)

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["qcnode", "prices", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capsys.readouterr()
        return SimpleNamespace(
            returncode=ended.value.code or 0,
            stdout=printed.out,
            stderr=printed.err,
            json=lambda: json.loads(printed.out),
        )

    return run


def test_a_price_is_explained_with_its_rows_and_the_vendors_clock(prices):
    told = prices(
        "explain", "deepseek-v4-flash", "2026-10-02T02:00Z", "--input", 1_000_000, "--json"
    ).json()
    assert (told["cost_pico"], told["currency"]) == (15 * 10**10, "USD")
    assert [part["class"] for part in told["rows"]] == ["input", "output"]
    assert sum(part["cost_pico"] for part in told["rows"]) == told["cost_pico"]
    assert (told["provider"], told["book"], told["also_in"]) == (
        "deepseek",
        "deepseek",
        ["deepseek-cny"],
    )
    assert told["why"] == {
        "priced_as": "deepseek-flash",
        "zone": "Asia/Shanghai",
        "local_time": "2026-10-02 10:00",
        "weekday": "Friday",
        "day": "holiday",
        "holiday": "National Day",
        "schedules": {"peak": False},
    }
    words = prices("explain", "deepseek-v4-flash", "2026-10-02T02:00Z", "--input", 1_000_000)
    assert "Friday 2026-10-02 10:00 (Asia/Shanghai), National Day" in words.stdout
    assert "the name means deepseek-flash" in words.stdout
    assert "0.15 USD" in words.stdout


def test_each_class_of_token_has_its_option_and_none_is_counted_twice(prices, tmp_path):
    classes = ("image", "cache_read", "cache_write", "cache_write_1h", "reasoning")
    rows = [
        row(**{"class": f'"{of}"', "price_micro_per_mtok": 10 ** (number + 2)})
        for number, of in enumerate(classes)
    ]
    book = write(tmp_path, row(price_micro_per_mtok=1), output(price_micro_per_mtok=10), *rows)
    options = [word for of in classes for word in (f"--{of.replace('_', '-')}", "3")]
    told = prices(
        *("explain", "eye-1", "2026-06-01T00:00Z", "--book", book, "--json"),
        *("--input", "3", "--output", "3", *options),
    ).json()
    assert (told["cost_pico"], told["currency"]) == (3_333_333, "CNY")


def test_what_has_no_price_is_said_and_exits_with_1(prices):
    words = ("explain", "deepseek-flash", "2026-06-01T00:00Z", "--book", "deepseek", "--input", "1")
    told = prices(*words, "--json")
    assert told.returncode == 1
    answer = told.json()
    assert (answer["cost_pico"], answer["currency"], answer["rows"]) == (None, None, [])
    assert "no price for deepseek-flash" in answer["reason"]
    assert "no price for deepseek-flash" in prices(*words).stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("explain", "deepseek-flash", "yesterday"), "is no instant"),
        (("explain", "deepseek-flash", "2026-11-16T02:00"), "has no offset"),
        (("explain", "nobody-has-it", "2026-11-16T02:00Z"), "which book?"),
        (("explain", "qwen3-max", "2026-11-16T02:00Z", "--provider", "x"), "none of those"),
        (("check", "gone.toml"), "no price file"),
        (("show", "--book", "deepseek", "--key", "x"), "of a kind not known"),
        (("explain", "eye", "2026-11-16T02:00Z", "--book", "deepseek"), "nobody has a price"),
        (("import", "--provider", "mars", "--out", "x.toml"), "is no provider"),
        (("import", "--provider", "openai", "--out", "x.toml", "--model", "zzz"), "has no zzz"),
    ],
)
def test_a_wrong_word_exits_with_2_and_one_line(prices, monkeypatch, tmp_path, words, said):
    monkeypatch.chdir(tmp_path)
    told = prices(*words)
    assert told.returncode == 2
    assert said in told.stderr
    assert told.stdout == ""


def test_a_model_that_two_books_have_is_not_chosen_by_chance(prices):
    told = prices("explain", "qwen3-max", "2026-11-23T02:00Z", "--input", "1000000", "--json")
    assert told.json()["book"] == "alibaba"  # the vendor's own, called like the provider
    assert told.json()["also_in"] == ["market-2026"]


def test_the_news_can_be_read_as_of_an_earlier_day(prices):
    words = ("explain", "deepseek-v4-pro", "2026-09-20T20:00Z", "--input", "1000000", "--json")
    assert prices(*words).json()["cost_pico"] == 66 * 10**10
    earlier = prices(*words, "--known-at", "2026-09-11T00:00Z").json()
    assert earlier["cost_pico"] == 15 * 10**10


def test_the_books_that_ship_agree_with_themselves_and_say_what_is_not_confirmed(prices):
    told = prices("check", "--json")
    assert told.returncode == 0
    answer = told.json()
    assert answer["ok"]
    assert answer["books"]["scripted.toml"] == []
    about = {one["about"] for one in answer["books"]["deepseek.toml"]}
    assert about == {"unconfirmed", "calendar"}


def test_a_check_names_every_hole_and_overlap_at_once(prices, tmp_path):
    book = write(
        tmp_path,
        row(valid_to="2026-02-01T00:00:00Z"),
        row(valid_from="2026-03-01T00:00:00Z"),
        output(),
        both(1, 2, model='"eye-2"'),
        both(3, 4, model='"eye-2"', valid_from="2026-05-01T00:00:00Z"),
    )
    told = prices("check", book, "--json")
    assert told.returncode == 1
    words = [one["words"] for one in told.json()["books"]["book.toml"] if one["grade"] == "wrong"]
    assert any("no price between" in one for one in words)
    assert any("both price input tokens of eye-2" in one for one in words)
    assert any("both price output tokens of eye-2" in one for one in words)
    assert "3 wrong" in prices("check", book).stdout


def test_a_check_finds_old_rows_ended_prices_and_calendars_that_run_out(tmp_path):
    path = write(
        tmp_path,
        schedule(**holidays()),
        both(
            2, 1, during='"peak"', checked_at="2026-01-01", valid_from="2026-01-01T00:00:00+08:00"
        ),
        both(1, 1, outside='"peak"', valid_from="2026-01-01T00:00:00+08:00", confirmed="false"),
        both(1, 1, model='"gone"', valid_to="2026-06-01T00:00:00Z", checked_at="2026-01-01"),
    )
    files = [
        read_book(path, calendar_folders=[PriceBook.load().files[0].path.parent / "calendars"])
    ]

    def found(at: str, **changes: int) -> dict[str, str]:
        findings = book_check.check_book(files, now=instant(at), **changes)
        return {one.about: one.grade.value for one in findings}

    assert found("2026-01-02T00:00Z") == {"unconfirmed": "note"}
    autumn = {"unconfirmed": "note", "age": "wrong", "ended": "note"}
    assert found("2026-10-01T00:00Z") == autumn
    assert found("2026-10-01T00:00Z", age_days_max=300) == {
        "unconfirmed": "note",
        "ended": "note",
    }
    assert found("2026-12-01T00:00Z") == autumn | {"calendar": "note"}
    assert found("2027-01-01T00:00Z") == autumn | {"calendar": "wrong"}


def test_all_rows_of_a_book_are_shown_withdrawn_ones_marked(prices):
    listed = prices("show").stdout
    assert "deepseek-cny" in listed
    assert "market-2026" in listed
    shown = prices("show", "--book", "deepseek", "--model", "deepseek-v4-pro").stdout
    assert "deepseek-v4-pro->deepseek-flash@2026-09-14T04:00:00Z" in shown
    assert "[withdrawn]" in shown
    as_json = prices("show", "--book", "deepseek", "--json").json()
    assert [one["withdrawn_at"] for one in as_json["aliases"] if "v4-pro" in one["id"]] == [
        "2026-09-11T16:00:00Z"
    ]


def test_the_changes_to_come_and_the_cheap_hours_are_shown(prices):
    told = prices(
        "next", "deepseek-flash", "--from", "2026-11-16T01:30Z", "--days", "1", "--json"
    ).json()
    assert [one["start"][11:16] for one in told["changes"]] == [
        "01:30",
        "04:00",
        "06:00",
        "10:00",
        "01:00",
    ]
    assert told["cheapest"]["start"] == "2026-11-16T04:00:00Z"
    assert told["cheapest"]["cost_pico"] * 2 == told["cheapest"]["now_pico"]
    assert "cheapest to begin" in prices("next", "deepseek-flash").stdout


def test_a_book_is_signed_and_then_asked_for_by_its_key(prices, tmp_path):
    book = write(tmp_path, both(1, 2))
    signed = prices("sign", book, "--key", tmp_path / "prices.key", "--name", "finance")
    key = signed.stdout.splitlines()[-1]
    assert key.startswith("finance+")
    assert prices("check", book, "--key", key).returncode == 0
    book.write_text(book.read_text(encoding="utf-8") + "# later\n", encoding="utf-8")
    told = prices("check", book, "--key", key)
    assert told.returncode == 1
    assert "changed or swapped" in told.stdout


def test_a_book_that_contradicts_itself_is_not_signed(prices, tmp_path):
    book = write(tmp_path, row())
    told = prices("sign", book, "--key", tmp_path / "prices.key")
    assert told.returncode == 2
    assert not book.with_name("book.toml.sig").exists()


def test_proposals_are_a_book_of_unconfirmed_rows_that_says_what_differs(prices, tmp_path):
    out = tmp_path / "proposals.toml"
    told = prices("import", "--provider", "deepseek", "--out", out, "--book", "deepseek")
    assert told.returncode == 0
    book = PriceBook.load(out)
    assert book.rows
    assert not any(one.confirmed for one in book.rows)
    assert all("genai-prices" in one.source for one in book.rows)
    text = out.read_text(encoding="utf-8")
    # It is a Sunday, of which the collection knows nothing.
    assert "# input: the present book has 150_000 at 2026-11-22T01:00:00Z" in text
    again = prices("import", "--provider", "deepseek", "--out", out)
    assert again.returncode == 2
    assert "--force" in again.stderr


NODE = """
[agent]
enabled = true
[provider]
name = "acme"
model = "eye-1"
prices = "book.toml"
"""


def test_the_doctor_says_which_prices_nobody_read_at_the_vendor(tmp_path, monkeypatch):
    for name in ("QCNODE_PROVIDER_NAME", "QCNODE_PROVIDER_MODEL", "QCNODE_PROVIDER_PRICES"):
        monkeypatch.delenv(name, raising=False)
    config = tmp_path / "node.toml"
    key = SigningKey.open(tmp_path / "prices.key", name="finance").public
    found: list[str] = []
    for confirmed, more in (("true", ""), ("false", ""), ("true", f'prices_key = "{key}"')):
        write(
            tmp_path,
            both(1, 2, confirmed=confirmed, checked_at=datetime.now(UTC).date().isoformat()),
        )
        config.write_text(NODE + more, encoding="utf-8")
        (finding,) = [one for one in examine(config) if one.check == "prices"]
        found.append(f"{finding.ok} {finding.words}")
    assert "not confirmed" not in found[0]
    assert "2 not confirmed: see `qcnode prices check`" in found[1]
    assert found[2].startswith("False")
    assert "not signed" in found[2]


@pytest.mark.parametrize("provider", ["openai", "anthropic", "google", "moonshotai", "x-ai"])
def test_what_is_proposed_agrees_with_itself_and_with_its_source(prices, tmp_path, provider):
    out = tmp_path / "proposals.toml"
    assert prices("import", "--provider", provider, "--out", out).returncode == 0
    book = PriceBook.load(out)
    proposed = {one.model for one in book.rows}
    source = next(one for one in providers if one.id == provider)
    checked = 0
    for model in source.models:
        if model.id in proposed:
            theirs = model.calc_price(
                Usage(input_tokens=300_000, output_tokens=1_000),
                source,
                genai_request_timestamp=NOW,
            )
            ours = book.price(TokenUsage(text=300_000, output=1_000), provider, model.id, NOW)
            assert ours.pico == int(theirs.total_price * PICO)
            checked += 1
    assert checked == len(proposed) >= 5
