"""The mark beside the ledger: which file was written here last, and how far.

A ledger that was copied or restored goes on as if nothing had been, and two of one
identity would bill twice or not at all. The mark knows what the file cannot say of
itself: the number that the file system gave it, and where it ended. It is no lock and
no proof: it is for accidents, and the billing server's receipts find the rest.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import msgspec

from qcnode.books import chain
from qcnode.books.ledger_file import sync_directory

if TYPE_CHECKING:
    from pathlib import Path

_LIVE_AT: Final = 4_096
"""Where the part stands that moves: in a block of its own, so a torn write spoils no other."""
_LIVE_BYTES: Final = 256
# <linux/fs.h>: FS_IOC_GETVERSION, _IOR('v', 1, long).
_GET_GENERATION: Final = 0x8000_7601 | struct.calcsize("l") << 16


@dataclass(frozen=True, slots=True, kw_only=True)
class FileId:
    """Which file this is, as its file system tells them apart; a copy is another one.

    A file keeps both numbers when it or its folder is renamed and through every mount.
    None is not known here.
    """

    inode: int | None
    generation: int | None

    @classmethod
    def of(cls, path: Path, *, keeps_inodes: bool = True) -> FileId:
        """Return the identity of the file at `path`; raises `OSError`.

        Never while SQLite has the file open in this process: letting go of a descriptor
        drops every lock that the process holds on the file.
        """
        if not keeps_inodes:
            return cls(inode=None, generation=None)
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return cls(inode=os.fstat(descriptor).st_ino, generation=_generation(descriptor))
        finally:
            os.close(descriptor)

    def differs(self, other: FileId) -> bool:
        """Say whether these are two files; what one of them does not know tells nothing."""
        return any(
            mine is not None and theirs is not None and mine != theirs
            for mine, theirs in (
                (self.inode, other.inode),
                (self.generation, other.generation),
            )
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """The ledger file as it was left, or nearly: it may have gone on a little since."""

    epoch: str
    file: FileId
    seq: int
    hash: bytes
    reason: str | None = None
    """Why a new epoch is to begin at the next opening, if one is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A ledger file as it is found at opening."""

    epoch: str
    file: FileId
    seq: int
    hash_at_mark: bytes | None
    """The hash of the entry that the mark names; None when there is no such entry."""
    opened_from: str | None
    """The epoch it goes on from, when its first entry names one."""


def judge(mark: Mark | None, found: Found) -> str | None:  # noqa: PLR0911  # one each way
    """Say why `found` must not be gone on with; None when it is what was written here last.

    A restart, a kill, a power cut, another mount and a folder renamed are all the same
    file, at the mark or beyond it.
    """
    if mark is None:
        if found.seq == 0:
            return None
        return "the ledger was copied here without its mark, or the mark was lost"
    if found.opened_from == mark.epoch and found.seq == 1:
        return None  # The new epoch was just begun, with its own mark not yet made.
    if mark.reason is not None:
        return mark.reason
    if mark.epoch != found.epoch:
        return f"another ledger was put in place of epoch {mark.epoch}"
    if found.seq < mark.seq:
        return (
            f"an older ledger was put back: it ends at entry {found.seq}"
            f" and {mark.seq} were on record"
        )
    if mark.seq and found.hash_at_mark != mark.hash:
        return f"another ledger was put back: its entry {mark.seq} is not the one on record"
    if mark.file.differs(found.file):
        return "the ledger was copied here, or moved to another disk"
    return None


def mark_path(ledger: Path) -> Path:
    """Return where the mark of the ledger at `ledger` is."""
    return ledger.with_name(ledger.name + ".mark")


class MarkFile:
    """A mark on disk: whole at each `write`, and moved on in place after each commit."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None

    def read(self) -> Mark | None:
        """Return the mark, or None when there is none that can be read; raises `OSError`."""
        try:
            raw = self._path.read_bytes()
        except FileNotFoundError:
            return None
        try:
            mark = _decode(raw[:_LIVE_AT])
        except (msgspec.MsgspecError, ValueError):
            return None
        try:
            live = _LIVE.decode(raw[_LIVE_AT:].rstrip(b"\0"))
            seq, digest = live.seq, bytes.fromhex(live.hash)
        except (msgspec.MsgspecError, ValueError):
            return mark  # Torn by a power cut: where it ended before is true as well.
        if live.epoch != mark.epoch or seq < mark.seq:
            return mark
        return Mark(epoch=mark.epoch, file=mark.file, seq=seq, hash=digest, reason=mark.reason)

    def write(self, mark: Mark) -> None:
        """Put a mark down so that it outlasts a power cut; raises `OSError`."""
        self.close()
        unfinished = self._path.with_name(self._path.name + ".part")
        descriptor = os.open(unfinished, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            os.write(descriptor, _encode(mark).ljust(_LIVE_AT, b"\0"))
            os.fsync(descriptor)
            unfinished.replace(self._path)
            sync_directory(self._path.parent)
        except BaseException:
            os.close(descriptor)
            raise
        self._descriptor = descriptor

    def move(self, epoch: str, seq: int, digest: bytes) -> None:
        """Note that the ledger has come to entry `seq`, which is durable already.

        This is not waited for: after a power cut the mark may be behind the ledger, and
        never ahead of it.
        """
        if self._descriptor is None:
            return
        live = chain.canonical(_Live(epoch=epoch, seq=seq, hash=digest.hex()))
        with contextlib.suppress(OSError):  # A mark that is behind raises no false alarm.
            os.pwrite(self._descriptor, live.ljust(_LIVE_BYTES, b"\0"), _LIVE_AT)

    def close(self) -> None:
        """Let go of the file; closing twice is harmless."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


class _Live(msgspec.Struct):
    epoch: str
    seq: int
    hash: str


class _Mark(msgspec.Struct):
    epoch: str
    inode: int | None
    generation: int | None
    seq: int
    hash: str
    reason: str | None


_LIVE = msgspec.json.Decoder(_Live)
_MARK = msgspec.json.Decoder(_Mark)


def _encode(mark: Mark) -> bytes:
    reason = None if mark.reason is None else mark.reason[:1_000]
    return chain.canonical(
        _Mark(
            epoch=mark.epoch,
            inode=mark.file.inode,
            generation=mark.file.generation,
            seq=mark.seq,
            hash=mark.hash.hex(),
            reason=reason,
        )
    )


def _decode(raw: bytes) -> Mark:
    read = _MARK.decode(raw.rstrip(b"\0"))
    return Mark(
        epoch=read.epoch,
        file=FileId(inode=read.inode, generation=read.generation),
        seq=read.seq,
        hash=bytes.fromhex(read.hash),
        reason=read.reason,
    )


def _generation(descriptor: int) -> int | None:
    room = bytearray(8)
    try:
        fcntl.ioctl(descriptor, _GET_GENERATION, room)
    except OSError:
        return None
    return int.from_bytes(room[:4], "little")
