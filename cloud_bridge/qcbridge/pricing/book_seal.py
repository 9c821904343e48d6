"""The signature of a price book: who vouches for these prices.

It is a file beside the book, `book.toml.sig`: the digests of the book and of the years of
holidays it leans on, one a line, and a signed note over them. Whoever was told the public
key refuses a book that was swapped or changed, and holidays that nobody signed.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from qcbridge.pricing.toml_table import read_bytes
from qcnode.books.seals import Checkpoint, PublicKey, SigningKey
from qcnode.errors import PriceError, SealError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from qcbridge.pricing.book_file import BookFile

ORIGIN: Final = "qcnode/prices"
_BOOK: Final = "book"
_LINE = re.compile(r"([0-9a-f]{64})  ([a-z0-9-]{1,100})")


@dataclass(frozen=True, slots=True, kw_only=True)
class BookSeal:
    """What a signature vouches for, by SHA-256 in hex."""

    book: str
    calendars: Mapping[str, str]


def seal_path(book: Path) -> Path:
    """Return where the signature of a book is."""
    return book.with_name(book.name + ".sig")


def write_seal(book: BookFile, key: SigningKey) -> Path:
    """Sign a book as it was read; raises `PriceError` when the file cannot be written."""
    lines = [f"{book.sha256}  {_BOOK}"]
    lines += [f"{year.sha256}  {year.name}" for year in sorted(book.years, key=lambda y: y.name)]
    listing = "\n".join(lines) + "\n"
    path = seal_path(book.path)
    unfinished = path.with_name(path.name + ".part")
    try:
        unfinished.write_text(listing + "\n" + key.sign(_checkpoint(listing)), encoding="utf-8")
        unfinished.replace(path)
    except OSError as error:
        raise PriceError(f"{path}: cannot be written ({error.strerror})") from error
    return path


def read_seal(book: Path, data: bytes, key: PublicKey) -> BookSeal:
    """Return what `key` vouches for, or raise `PriceError` when that is not these bytes."""
    path = seal_path(book)
    if not path.exists():
        raise PriceError(
            f"{book}: not signed, and this node takes prices of {key.name} alone:"
            " `qcnode prices sign` writes the signature"
        )
    try:
        listing, _, note = read_bytes(path).decode("utf-8").partition("\n\n")
        signed = key.check(note)
    except (SealError, UnicodeDecodeError) as error:
        raise PriceError(f"{path}: not a signature of {key.name} ({error})") from error
    listing += "\n"
    if signed != _checkpoint(listing):
        raise PriceError(f"{path}: {key.name} signed something else than this list")
    named: dict[str, str] = {}
    for line in listing.splitlines():
        found = _LINE.fullmatch(line)
        if found is None:
            raise PriceError(f"{path}: {line!r:.80} is no digest and name")
        named[found[2]] = found[1]
    digest = named.pop(_BOOK, None)
    if digest != hashlib.sha256(data).hexdigest():
        raise PriceError(f"{book}: not the book that {key.name} signed: it was changed or swapped")
    return BookSeal(book=digest, calendars=named)


def _checkpoint(listing: str) -> Checkpoint:
    return Checkpoint(
        origin=ORIGIN,
        size=listing.count("\n"),
        head_hash=hashlib.sha256(listing.encode()).digest(),
    )
