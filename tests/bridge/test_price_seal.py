"""The signature of a price book: what a node that was told a key takes, and what it does not."""

from __future__ import annotations

import pytest

from qcbridge.prices import PriceBook, open_book
from qcbridge.pricing.book_file import read_book
from qcbridge.pricing.book_seal import seal_path, write_seal
from qcnode.books.seals import SigningKey
from qcnode.errors import PriceError, SealError
from tests.bridge.price_books import ACME, AT, ONE, both, holidays, schedule, write

YEAR = """id = "works"
year = 2026
source = "a test"
checked_at = 2026-11-01

[[holiday]]
name = "{name}"
from = 2026-06-01
to = 2026-06-01
"""


@pytest.fixture
def key(tmp_path):
    return SigningKey.open(tmp_path / "prices.key", name="finance")


@pytest.fixture
def book(tmp_path, key):
    path = write(tmp_path, both(1, 2))
    write_seal(read_book(path, calendar_folders=[]), key)
    return path


def test_a_signed_book_is_taken_and_prices_as_it_would_without(book, key):
    taken = open_book(book, str(key.public))
    assert taken.price(ONE, *ACME, AT) == PriceBook.load(book).price(ONE, *ACME, AT)


def test_an_unsigned_book_is_refused_where_a_key_is_named(book, key):
    seal_path(book).unlink()
    with pytest.raises(PriceError, match="not signed, and this node takes prices of finance alone"):
        PriceBook.load(book, key=key.public)
    assert PriceBook.load(book).rows


def test_a_changed_or_swapped_book_is_refused(book, key, tmp_path):
    signed = book.read_bytes()
    for number in range(len(signed)):
        book.write_bytes(signed[:number] + bytes([signed[number] ^ 1]) + signed[number + 1 :])
        with pytest.raises(PriceError, match="changed or swapped"):
            PriceBook.load(book, key=key.public)
    other = write(tmp_path, both(0, 0), name="other.toml")
    other.replace(book)
    with pytest.raises(PriceError, match="changed or swapped"):
        PriceBook.load(book, key=key.public)


def test_a_signature_that_is_changed_anywhere_is_refused(book, key):
    path = seal_path(book)
    signed = path.read_bytes()
    for number in range(len(signed)):
        path.write_bytes(signed[:number] + bytes([signed[number] ^ 1]) + signed[number + 1 :])
        with pytest.raises((PriceError, SealError)):
            PriceBook.load(book, key=key.public)


def test_the_signature_of_somebody_else_is_refused(book, tmp_path):
    for name in ("finance", "somebody"):
        other = SigningKey.open(tmp_path / "other.key", name=name)
        with pytest.raises(PriceError, match=f"not a signature of {name}"):
            PriceBook.load(book, key=other.public)


def test_a_key_that_cannot_be_read_is_said(book):
    with pytest.raises(SealError, match="of a kind not known"):
        open_book(book, "finance")


def test_holidays_are_signed_with_the_book_and_others_do_not_count(tmp_path, key):
    folder = tmp_path / "calendars"
    folder.mkdir()
    year = folder / "works-2026.toml"
    year.write_text(YEAR.format(name="Founders' day"), encoding="utf-8")
    path = write(
        tmp_path,
        schedule(**holidays(calendar='"works"')),
        both(20, 1, during='"peak"'),
        both(10, 1, outside='"peak"'),
    )
    write_seal(read_book(path, calendar_folders=[]), key)
    assert PriceBook.load(path, key=key.public).price(ONE, *ACME, AT).pico == 10
    next_year = folder / "works-2027.toml"
    next_year.write_text(YEAR.replace("2026", "2027").format(name="x"), encoding="utf-8")
    assert [one.name for one in PriceBook.load(path, key=key.public).files[0].years] == [
        "works-2026"
    ]
    assert len(PriceBook.load(path).files[0].years) == 2
    year.write_text(YEAR.format(name="Another day"), encoding="utf-8")
    with pytest.raises(PriceError, match="not the calendar that was signed"):
        PriceBook.load(path, key=key.public)
    year.unlink()
    with pytest.raises(PriceError, match="no calendar 'works'"):
        PriceBook.load(path, key=key.public)
