"""Which billing server this node believes: by the key that was set, or the first one seen.

A receipt says how far the server has come, and who owns the broker could write one. The
server signs what it says; here that signature is checked. Without a key in the settings
the first one that a receipt names, and is signed with, is kept in the home and said once,
so that a person can compare it; from then on no other counts.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import structlog

from qcnode.books.batch import sealed_words
from qcnode.books.seals import PublicKey
from qcnode.errors import LedgerUnavailableError, SealError

if TYPE_CHECKING:
    from pathlib import Path

    from qcnode.books.seals import Checkpoint
    from qcnode.money import Receipt

log = structlog.get_logger()


class ServerKey:
    """The billing server's public key: `given`, or the one kept at `path`, or none so far."""

    def __init__(self, path: Path, *, given: PublicKey | None = None) -> None:
        self._path = path
        self._given = given is not None
        self._key = given if given is not None else _read(path)

    @property
    def known(self) -> bool:
        """Whether receipts are checked."""
        return self._key is not None

    def check(self, receipt: Receipt) -> Checkpoint:
        """Return what the server has signed in `receipt`, or raise `SealError` with the fix."""
        if self._key is None:
            raise SealError("the billing server's key is not known yet")
        try:
            return self._key.check(receipt.note or "")
        except SealError as error:
            fix = "set metering.server_key" if self._given else f"remove {self._path}"
            raise SealError(f"{error}; if the server has a new key, {fix}") from error

    def vouches(self, receipt: Receipt) -> bool:
        """Say whether the facts in `receipt` are the server's; without a key nobody can tell."""
        if self._key is None or not (receipt.resolutions or receipt.leases):
            return True
        try:
            self._key.check_seal(sealed_words(receipt), receipt.seal)
        except SealError as error:
            log.error(  # noqa: TRY400  # one line says all a person can use
                "a receipt wants on record what the billing server did not sign: left out",
                why=str(error),
            )
            return False
        return True

    def learn(self, receipt: Receipt) -> None:
        """Take the key that `receipt` names and is signed with, unless one is known.

        Raises `SealError` when it is not signed with it.
        """
        if self._key is not None or receipt.server_key is None or receipt.note is None:
            return
        key = PublicKey.parse(receipt.server_key)
        key.check(receipt.note)
        try:
            _write(self._path, str(key))
        except OSError as error:
            raise LedgerUnavailableError(
                f"{self._path}: the billing server's key cannot be kept ({error.strerror})"
            ) from error
        self._key = key
        log.warning(
            "the billing server is believed by the first key it named: compare it with the"
            " server's own, or set metering.server_key",
            key=str(key),
            kept_in=str(self._path),
        )


def _read(path: Path) -> PublicKey | None:
    try:
        return PublicKey.parse(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise SealError(f"{path}: the billing server's key cannot be read ({error})") from error
    except SealError as error:
        raise SealError(f"{path}: {error}; remove it to take the server's key anew") from error


def _write(path: Path, text: str) -> None:
    unfinished = path.with_name(path.name + ".part")
    with unfinished.open("w", encoding="utf-8") as file:
        file.write(text + "\n")
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)
