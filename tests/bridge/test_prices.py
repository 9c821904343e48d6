"""The price book: which row counts when, and which books do not load."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcbridge.prices import PriceBook
from qcnode.errors import PriceError, UnpricedError
from qcnode.money import TokenUsage

CUT = datetime(2026, 8, 31, 16, tzinfo=UTC)
SCRIPTED = ("scripted", "scripted-provider")


def row(**changes: object) -> str:
    values = {
        "provider": '"acme"',
        "model": '"eye-1"',
        "class": '"input"',
        "currency": '"CNY"',
        "price_micro_per_mtok": "2_000_000",
        "valid_from": "2026-01-01T00:00:00+08:00",
        "source": '"a test"',
        "checked_at": "2026-11-01",
    } | changes
    lines = [f"{key} = {value}" for key, value in values.items() if value is not None]
    return "\n".join(["[[price]]", *lines, ""])


def load(tmp_path, *rows: str) -> PriceBook:
    path = tmp_path / "book.toml"
    path.write_text("# prices\n" + "\n".join(rows), encoding="utf-8")
    return PriceBook.load(path)


def output(**changes: object) -> str:
    return row(**({"class": '"output"', "price_micro_per_mtok": "8_000_000"} | changes))


def test_the_book_that_ships_changes_its_price_at_one_instant():
    book, usage = PriceBook.load(), TokenUsage(text=1_000, output=100)
    before = book.price(usage, *SCRIPTED, CUT - timedelta(microseconds=1))
    after = book.price(usage, *SCRIPTED, CUT)
    assert before.pico == 1_000 * 400_000 + 100 * 1_600_000
    assert after.pico == 1_000 * 300_000 + 100 * 1_200_000
    assert "scripted/scripted-provider/input@2026-08-31T16:00:00Z" in after.rows


def test_the_book_that_ships_says_that_its_prices_are_made_up():
    assert all("illustrative" in row.source for row in PriceBook.load().rows)
    assert {row.provider for row in PriceBook.load().rows} == {"scripted"}


def test_each_token_is_priced_once_and_by_its_own_class():
    usage = TokenUsage.divide(
        input_tokens=1_000,
        output_tokens=100,
        cache_read=200,
        image=300,
        reasoning=40,
    )
    cost = PriceBook.load().price(usage, *SCRIPTED, CUT)
    assert cost.pico == 500 * 300_000 + 200 * 30_000 + 300 * 350_000 + 100 * 1_200_000


def test_image_and_reasoning_tokens_cost_what_text_costs_without_rows_of_their_own(tmp_path):
    book = load(tmp_path, row(), output())
    at = datetime(2026, 6, 1, tzinfo=UTC)
    plain = book.price(TokenUsage(text=9, output=5), "acme", "eye-1", at)
    split = book.price(
        TokenUsage.divide(input_tokens=9, output_tokens=5, image=7, reasoning=4),
        "acme",
        "eye-1",
        at,
    )
    assert plain.pico == split.pico == 9 * 2_000_000 + 5 * 8_000_000
    assert plain.rows == split.rows


@pytest.mark.parametrize(
    ("usage", "provider", "model", "at"),
    [
        (TokenUsage(text=9, output=5), "acme", "eye-2", "2026-06-01"),
        (TokenUsage(text=9, output=5), "other", "eye-1", "2026-06-01"),
        (TokenUsage(text=9, output=5), "acme", "eye-1", "2025-06-01"),
        (
            TokenUsage.divide(input_tokens=9, output_tokens=5, cache_read=1, image=0),
            "acme",
            "eye-1",
            "2026-06-01",
        ),
    ],
)
def test_what_has_no_row_is_unpriced_and_never_free(tmp_path, usage, provider, model, at):
    book = load(tmp_path, row(), output())
    with pytest.raises(UnpricedError, match="add"):
        book.price(usage, provider, model, datetime.fromisoformat(at).replace(tzinfo=UTC))


def test_cached_and_image_tokens_that_overlap_have_no_price():
    usage = TokenUsage.divide(input_tokens=100, output_tokens=1, cache_read=60, image=60)
    with pytest.raises(UnpricedError, match="overlap"):
        PriceBook.load().price(usage, *SCRIPTED, CUT)


def test_the_worst_case_is_the_dearest_row_in_force_until_the_answer():
    book, usage = PriceBook.load(), TokenUsage(text=1_000, output=100)
    before = CUT - timedelta(seconds=30)
    assert book.worst_case(usage, *SCRIPTED, CUT).pico == 1_000 * 350_000 + 100 * 1_200_000
    late = book.worst_case(usage, *SCRIPTED, before, CUT + timedelta(seconds=30))
    assert late.pico == 1_000 * 400_000 + 100 * 1_600_000


@given(data=st.data(), entered=st.integers(0, 10_000_000), answered=st.integers(0, 10_000_000))
def test_no_request_costs_more_than_its_worst_case_and_all_fit_64_bits(data, entered, answered):
    cached = data.draw(st.integers(0, entered))
    usage = TokenUsage(
        input_tokens=entered,
        output_tokens=answered,
        cache_read_tokens=cached,
        image_tokens=data.draw(st.integers(0, entered - cached)),
        reasoning_tokens=data.draw(st.integers(0, answered)),
    )
    book = PriceBook.load()
    worst = book.worst_case(usage, *SCRIPTED, CUT)
    assert book.price(usage, *SCRIPTED, CUT).pico <= worst.pico < 2**63


def test_a_pattern_prices_what_begins_like_it(tmp_path):
    book = load(tmp_path, row(model='"eye-*"'), output(model='"eye-*"'))
    at, usage = datetime(2026, 6, 1, tzinfo=UTC), TokenUsage(text=1, output=0)
    assert book.price(usage, "acme", "eye-2-mini", at).pico == 2_000_000
    with pytest.raises(UnpricedError):
        book.price(usage, "acme", "ear-1", at)


LATER = {"valid_from": "2026-03-01T00:00:00Z"}
ENDED = {"valid_to": "2026-03-01T00:00:00Z"}
BAD_BOOKS = {
    "two rows at once": ((row(), row(**LATER), output()), r"book\.toml:2 and .*:12: both price"),
    "a pattern over a name": (
        (row(), output(), row(model='"eye-*"'), output(model='"eye-*"')),
        "both price",
    ),
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
    "an unknown table": (("[prices]\n",), r"book\.toml:2: unknown key 'prices'"),
    "no TOML": (("[[price]\n",), "line 2"),
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
