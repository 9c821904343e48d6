"""The price book: which row counts when, and which books do not load."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcbridge.prices import PriceBook, Terms, shipped
from qcnode.errors import PriceError, UnpricedError
from qcnode.money import TokenUsage
from tests.bridge.price_books import (
    ACME,
    AT,
    EVERY_DAY,
    ONE,
    alias,
    both,
    holidays,
    instant,
    load,
    output,
    row,
    schedule,
    table,
    withdrawal,
)

CUT = datetime(2026, 8, 31, 16, tzinfo=UTC)
SCRIPTED = ("scripted", "scripted-provider")


def test_the_default_book_changes_its_price_at_one_instant():
    book, usage = PriceBook.load(), TokenUsage(text=1_000, output=100)
    before = book.price(usage, *SCRIPTED, CUT - timedelta(microseconds=1))
    after = book.price(usage, *SCRIPTED, CUT)
    assert before.pico == 1_000 * 400_000 + 100 * 1_600_000
    assert after.pico == 1_000 * 300_000 + 100 * 1_200_000
    assert "scripted/scripted-provider/input@2026-08-31T16:00:00Z" in after.rows


def test_the_default_book_prices_the_script_alone_and_says_that_it_is_made_up():
    assert all("illustrative" in row.source for row in PriceBook.load().rows)
    assert {row.provider for row in PriceBook.load().rows} == {"scripted"}


@pytest.mark.parametrize("name", shipped())
def test_every_book_that_ships_loads_and_says_where_each_row_stands(name):
    book = PriceBook.load(shipped()[name])
    assert book.rows
    assert all(row.source and row.checked_at for row in book.rows)
    ours = name in ("scripted", "local")
    assert ours or all(row.confirmed is False or row.source_url for row in book.rows)


def test_each_token_is_priced_once_and_by_its_own_class(tmp_path):
    classes = {"image": 3, "cache_read": 5, "cache_write": 7, "cache_write_1h": 11, "reasoning": 13}
    rows = [
        row(**{"class": f'"{of}"', "price_micro_per_mtok": micro}) for of, micro in classes.items()
    ]
    book = load(tmp_path, row(), output(), *rows)
    usage = TokenUsage(
        text=1_000_000,
        image=10_000,
        cache_read=1_000,
        cache_write=100,
        cache_write_1h=10,
        output=1,
        reasoning=2,
    )
    cost = book.price(usage, *ACME, AT)
    assert cost.pico == (
        1_000_000 * 2_000_000 + 10_000 * 3 + 1_000 * 5 + 100 * 7 + 10 * 11 + 1 * 8_000_000 + 2 * 13
    )
    assert [name.split("/")[2].split("@")[0] for name in cost.rows] == [
        "input",
        "image",
        "cache_read",
        "cache_write",
        "cache_write_1h",
        "output",
        "reasoning",
    ]


def test_image_and_reasoning_tokens_cost_what_text_costs_without_rows_of_their_own(tmp_path):
    book = load(tmp_path, row(), output())
    plain = book.price(TokenUsage(text=9, output=5), *ACME, AT)
    split = TokenUsage(text=1, image=5, unknown=3, output=1, reasoning=4)
    assert plain == book.price(split, *ACME, AT)
    assert plain.pico == 9 * 2_000_000 + 5 * 8_000_000


@pytest.mark.parametrize(
    ("usage", "provider", "model", "at"),
    [
        (TokenUsage(text=9, output=5), "acme", "eye-2", "2026-06-01"),
        (TokenUsage(text=9, output=5), "other", "eye-1", "2026-06-01"),
        (TokenUsage(text=9, output=5), "acme", "eye-1", "2025-06-01"),
        (TokenUsage(text=8, cache_read=1, output=5), "acme", "eye-1", "2026-06-01"),
        (TokenUsage(text=8, cache_write=1, output=5), "acme", "eye-1", "2026-06-01"),
        (TokenUsage(text=8, cache_write_1h=1, output=5), "acme", "eye-1", "2026-06-01"),
    ],
)
def test_what_has_no_row_is_unpriced_and_never_free(tmp_path, usage, provider, model, at):
    book = load(tmp_path, row(), output())
    with pytest.raises(UnpricedError, match="add"):
        book.price(usage, provider, model, datetime.fromisoformat(at).replace(tzinfo=UTC))


def test_tokens_that_may_be_picture_or_text_have_no_price_where_the_two_differ(tmp_path):
    picture = {"class": '"image"', "price_micro_per_mtok": "2_500_000"}
    usage = TokenUsage.divide(input_tokens=100, output_tokens=1, cache_read=60, image=60)
    assert usage.unknown
    cached = row(**{"class": '"cache_read"', "price_micro_per_mtok": "1"})
    apart = load(tmp_path, row(), output(), cached, row(**picture))
    with pytest.raises(UnpricedError, match="text or picture"):
        apart.price(usage, *ACME, AT)
    same = load(
        tmp_path, row(), output(), cached, row(**picture | {"price_micro_per_mtok": 2_000_000})
    )
    assert same.price(usage, *ACME, AT).pico == 40 * 2_000_000 + 60 + 8_000_000


def test_the_worst_case_is_the_dearest_row_in_force_until_the_answer():
    book, usage = PriceBook.load(), TokenUsage(text=1_000, output=100)
    before = CUT - timedelta(seconds=30)
    assert book.worst_case(usage, *SCRIPTED, CUT).pico == 1_000 * 300_000 + 100 * 1_200_000
    late = book.worst_case(usage, *SCRIPTED, before, CUT + timedelta(seconds=30))
    assert late.pico == 1_000 * 400_000 + 100 * 1_600_000


@st.composite
def usages(draw, most: int = 10_000_000) -> TokenUsage:
    counts = [draw(st.integers(0, most // 6)) for _ in range(6)]
    names = ("text", "image", "unknown", "cache_read", "cache_write", "cache_write_1h")
    return TokenUsage(
        **dict(zip(names, counts, strict=True)),
        output=draw(st.integers(0, most // 2)),
        reasoning=draw(st.integers(0, most // 2)),
    )


@given(usage=usages(), seconds=st.integers(0, 400))
def test_no_request_costs_more_than_its_worst_case_and_all_fit_64_bits(usage, seconds):
    book = PriceBook.load()
    asked = CUT - timedelta(seconds=200)
    worst = book.worst_case(usage, *SCRIPTED, asked, asked + timedelta(seconds=400))
    try:
        cost = book.price(usage, *SCRIPTED, asked + timedelta(seconds=seconds))
    except UnpricedError:
        assert usage.cache_write or usage.cache_write_1h
    else:
        assert cost.pico <= worst.pico < 2**63


@given(usage=usages())
def test_the_lines_of_a_cost_are_its_sum_and_its_rows(usage):
    book = PriceBook.load()
    try:
        cost = book.price(usage, *SCRIPTED, CUT)
    except UnpricedError:
        with pytest.raises(UnpricedError):
            book.lines(usage, *SCRIPTED, CUT)
    else:
        lines = book.lines(usage, *SCRIPTED, CUT)
        assert sum(line.pico for line in lines) == cost.pico
        assert tuple(line.row.id for line in lines) == cost.rows


def test_a_pattern_prices_what_begins_like_it(tmp_path):
    book = load(tmp_path, row(model='"eye-*"'), output(model='"eye-*"'))
    usage = TokenUsage(text=1)
    assert book.price(usage, "acme", "eye-2-mini", AT).pico == 2_000_000
    with pytest.raises(UnpricedError):
        book.price(usage, "acme", "ear-1", AT)


def test_a_region_has_its_own_price_and_an_unknown_one_the_price_of_all(tmp_path):
    book = load(tmp_path, both(1, 2), both(10, 20, region='"cn"', currency='"USD"'))
    usage = TokenUsage(text=1, output=1)
    assert book.price(usage, *ACME, AT).pico == 3
    assert book.price(usage, *ACME, AT, terms=Terms(region="eu")).pico == 3
    assert book.price(usage, *ACME, AT, terms=Terms(region="cn")).pico == 30


def test_where_prices_differ_by_region_an_unsaid_region_is_not_guessed(tmp_path):
    usage = TokenUsage(text=1, output=1)
    one = load(tmp_path, both(1, 2, region='"cn"'))
    assert one.price(usage, *ACME, AT).pico == 3
    two = load(tmp_path, both(1, 2, region='"cn"'), both(3, 4, region='"sg"'))
    with pytest.raises(UnpricedError, match="known are cn, sg"):
        two.price(usage, *ACME, AT)
    with pytest.raises(UnpricedError, match="region eu"):
        two.price(usage, *ACME, AT, terms=Terms(region="eu"))


def test_rows_have_in_common_what_the_file_says_once(tmp_path):
    common = {
        "provider": '"acme"',
        "currency": '"EUR"',
        "source": '"once"',
        "checked_at": "2026-11-02",
        "confirmed": "false",
    }
    defaults = table("defaults", common).replace("[[", "[").replace("]]", "]")
    bare = both(1, 2, provider=None, currency=None, source=None, checked_at=None)
    own = both(3, 4, provider=None, model='"eye-2"', currency='"USD"', checked_at=None)
    rows = load(tmp_path, defaults, bare, own).rows
    assert {(row.model, row.currency, row.source, row.confirmed) for row in rows} == {
        ("eye-1", "EUR", "once", False),
        ("eye-2", "USD", "a test", False),
    }


def test_a_promotion_is_a_row_that_ends(tmp_path):
    half = {"valid_to": "2026-09-09T24:00:00+08:00"}
    end = "2026-09-10T00:00:00+08:00"
    book = load(
        tmp_path, both(5, 10, promotion='"half price"', valid_to=end), both(10, 20, valid_from=end)
    )
    usage = TokenUsage(text=1, output=1)
    assert book.price(usage, *ACME, instant("2026-09-09T23:59:59+08:00")).pico == 15
    assert book.price(usage, *ACME, instant("2026-09-10T00:00:00+08:00")).pico == 30
    with pytest.raises(PriceError, match="a promotion ends"):
        load(tmp_path, both(5, 10, promotion='"half price"'))
    with pytest.raises(PriceError):
        load(tmp_path, both(5, 10, **half))  # The day has no hour 24 but the next day's 0.


LATER = {"valid_from": "2026-03-01T00:00:00Z"}
ENDED = {"valid_to": "2026-03-01T00:00:00Z"}
TIER = '{ basis = "request_input", mode = "cliff", low = 0, high = 10 }'
BAD_BOOKS = {
    "two rows at once": ((row(), row(**LATER), output()), r"book\.toml:2 and .*:12: both price"),
    "a pattern over a name": (
        (row(), output(), row(model='"eye-*"'), output(model='"eye-*"')),
        "both price",
    ),
    "the same row twice": ((row(), row(), output()), r"book\.toml:2 and .*:12: both price"),
    "a hole": (
        (row(valid_to="2026-02-01T00:00:00Z"), row(**LATER), output()),
        r"book\.toml:2 and .*:13: no price between",
    ),
    "no output": ((row(),), r"book\.toml:2: .* no row for output"),
    "output ends before input": ((row(), output(**ENDED)), "begin and end alike"),
    "two currencies": ((row(), output(currency='"USD"')), "one currency"),
    "an unknown key": ((row(discount="3"), output()), r"book\.toml:11: discount: unknown key"),
    "a missing key": ((row(source=None), output()), r"book\.toml:2: this row has no source"),
    "a fraction": ((row(price_micro_per_mtok="2.5"), output()), r"book\.toml:7: price_micro"),
    "a truth value": ((row(price_micro_per_mtok="true"), output()), "whole number"),
    "below nothing": ((row(price_micro_per_mtok="-1"), output()), "whole number"),
    "beyond 64 bits": ((row(price_micro_per_mtok="1_000_000_000_000"), output()), "whole number"),
    "no time zone": ((row(valid_from="2026-01-01T00:00:00"), output()), r"book\.toml:8: .*offset"),
    "a day as instant": ((row(valid_from="2026-01-01"), output()), "offset"),
    "an end before its start": ((row(valid_to="2025-01-01T00:00:00Z"), output()), "not after"),
    "an unknown class": ((row(**{"class": '"tokens"'}), output()), "none of input"),
    "a currency of four": ((row(currency='"EURO"'), output()), "three capital"),
    "two stars": ((row(model='"*eye*"'), output()), "one \\*"),
    "an unknown table": (("[prices]\n",), r"book\.toml:2: prices: unknown key"),
    "no TOML": (("[[price]\n",), "line 2"),
    "an unknown tier of service": ((row(service='"fast"'), output()), "none of standard, flex"),
    "a batch that is a word": ((row(batch='"yes"'), output()), "neither true nor false"),
    "a digest that is none": ((row(evidence_sha256='"abc"'), output()), "a SHA-256 in hex"),
    "a schedule nobody made": ((row(during='"peak"'), output()), r"no \[\[schedule\]\] 'peak'"),
    "two rating instants": ((row(), output(rating_instant='"start"')), "one rating_instant"),
    "a tier upside down": ((row(tier=TIER.replace("low = 0", "low = 11")), output()), "not above"),
    "no first tier": ((row(tier=TIER.replace("low = 0", "low = 5")), output()), "begin with low 0"),
    "a hole between tiers": (
        (row(tier=TIER), row(tier=TIER.replace("0, high = 10", "20")), output()),
        "no price for tokens 11 to 20",
    ),
    "tiers that overlap": (
        (row(tier=TIER), row(tier=TIER.replace("0, high = 10", "5")), output()),
        "both price",
    ),
    "tiers of two kinds": (
        (
            row(tier=TIER),
            row(tier='{ basis = "month_class", mode = "cliff", low = 10 }'),
            output(),
        ),
        "one basis and one mode",
    ),
    "graduated by what has no order": (
        (row(tier=TIER.replace("cliff", "graduated")), output()),
        "request_class or month_class",
    ),
    "a name that means itself": (
        (both(1, 2), alias(), alias(model='"eye-2"', target='"eye-1"')),
        "end the circle",
    ),
    "a name that means nothing": (
        (both(1, 2), alias(target='"ear-1"')),
        "ear-1 by acme has no price",
    ),
    "a replaced row of nobody": ((both(1, 2, replaces='["acme/x/input@y"]'),), "names no row"),
    "a withdrawn row of nobody": (
        (both(1, 2), withdrawal("acme/x", recorded_at="2026-01-01T00:00:00Z")),
        "no row 'acme/x' to withdraw",
    ),
    "an hour left out": (
        (schedule(), both(1, 2, during='"peak"')),
        r"no price for input tokens of eye-1 on mon at 00:00",
    ),
    "an hour priced twice": (
        (schedule(), both(1, 2, during='"peak"'), both(3, 4)),
        r"both price input tokens of eye-1 .* on mon at 09:00",
    ),
    "a day priced twice": (
        (
            schedule(weekdays='["mon"]', windows='["00:00-24:00"]'),
            schedule(
                id='"rest"',
                weekdays='["mon", "tue", "wed", "thu", "fri", "sat", "sun"]',
                windows='["00:00-24:00"]',
            ),
            both(1, 2, during='"peak"'),
            both(3, 4, during='"rest"'),
        ),
        "both price",
    ),
    "holidays left out": (
        (
            schedule(windows='["00:00-24:00"]', **holidays()),
            schedule(id='"rest"', weekdays='["sat", "sun"]', windows='["00:00-24:00"]'),
            both(1, 2, during='"peak"'),
            both(3, 4, during='"rest"'),
        ),
        "no price for input tokens of eye-1 on mon, holiday at 00:00",
    ),
    "two time zones": (
        (
            schedule(),
            schedule(id='"other"', tz='"UTC"'),
            both(1, 2, during='"peak"'),
            both(3, 4, outside='["peak", "other"]'),
        ),
        "different time zones",
    ),
    "holidays of a year nobody knows": (
        (
            schedule(**holidays()),
            both(1, 2, during='"peak"', valid_from="2025-12-31T15:59:59Z"),
            both(3, 4, outside='"peak"', valid_from="2025-12-31T15:59:59Z"),
        ),
        "holidays of 2025",
    ),
}


@pytest.mark.parametrize("name", BAD_BOOKS)
def test_a_book_that_is_not_plain_does_not_load_and_says_where(tmp_path, name):
    rows, words = BAD_BOOKS[name]
    with pytest.raises(PriceError, match=words):
        load(tmp_path, *rows)


def test_a_folder_without_prices_and_a_missing_file_are_named(tmp_path):
    with pytest.raises(PriceError, match="no price file"):
        PriceBook.load(tmp_path)
    with pytest.raises(PriceError, match=r"gone\.toml"):
        PriceBook.load(tmp_path / "gone.toml")


def test_a_book_that_ships_is_named_by_its_name(tmp_path):
    assert PriceBook.load(tmp_path / "deepseek").files[0].path == shipped()["deepseek"]


def test_hours_written_out_one_by_one_make_a_whole_day(tmp_path):
    book = load(
        tmp_path,
        schedule(id='"day"', weekdays=EVERY_DAY, windows='["08:00-20:00"]'),
        schedule(id='"night"', weekdays=EVERY_DAY, windows='["00:00-08:00", "20:00-24:00"]'),
        both(2, 1, during='"day"'),
        both(1, 1, during='"night"'),
    )
    costs = [book.price(ONE, *ACME, AT + timedelta(hours=hour)).pico for hour in range(24)]
    assert costs == [2] * 12 + [1] * 12  # from 08:00 in Shanghai


def test_prices_of_two_sources_are_never_one_book():
    with pytest.raises(PriceError, match="two sources"):
        PriceBook.load(shipped()["market-2026"], shipped()["openai"])
