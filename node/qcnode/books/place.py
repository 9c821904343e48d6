"""Where a ledger may live: on a disk of this machine, which keeps what it was told to keep.

SQLite's write-ahead log needs memory shared by all who have the file open, and its
promises need a file system that locks and syncs as it says. Network and user-space file
systems do neither dependably, so a ledger there is refused before it is made.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from qcnode.errors import LedgerUnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable

_MOUNTS: Final = Path("/proc/self/mountinfo")
_NETWORK: Final = (
    "9p acfs afs auristorfs beegfs ceph cifs coda drvfs fuse fuseblk gfs2 glusterfs gpfs lustre"
    " ncpfs nfs nfs4 ocfs2 orangefs prl_fs pvfs2 smb3 smbfs vboxsf virtiofs vmhgfs"
)
_ELSEWHERE: Final = frozenset(_NETWORK.split())
_INODES_MADE_UP: Final = frozenset({"exfat", "msdos", "vfat"})
"""File systems that number their files anew at each mount."""
_ESCAPE = re.compile(r"\\([0-7]{3})")
_TYPE_AFTER: Final = " - "


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """What a folder lies on."""

    kind: str
    """The file system's type, as the kernel calls it; empty when nobody says."""

    @property
    def keeps_inodes(self) -> bool:
        """Say whether a file's inode number is the same after the next mount."""
        return self.kind not in _INODES_MADE_UP


def check_place(folder: Path, *, read_mounts: Callable[[], str] | None = None) -> Place:
    """Return what `folder` lies on; raises `LedgerUnavailableError` for another machine's disk.

    Where the kernel tells no mounts (it is no Linux), any place is taken.
    """
    place = Place(kind=_kind_of(folder.resolve(), (read_mounts or _read_mounts)()))
    if place.kind in _ELSEWHERE or place.kind.startswith("fuse."):
        raise LedgerUnavailableError(
            f"{folder}: lies on a network or user-space file system ({place.kind}), which cannot"
            " keep a ledger: put the node's home on a local disk"
        )
    return place


def _kind_of(folder: Path, mounts: str) -> str:
    kind, depth = "", -1
    for line in mounts.splitlines():
        left, found, right = line.partition(_TYPE_AFTER)
        fields = left.split(" ")
        if not found or len(fields) < 6:  # noqa: PLR2004  # proc(5): the mount point is the fifth
            continue
        point = Path(_ESCAPE.sub(lambda octal: chr(int(octal[1], 8)), fields[4]))
        # The deepest mount holds the folder; of several at one point, the last covers the rest.
        if len(point.parts) >= depth and folder.is_relative_to(point):
            kind, depth = right.split(" ")[0], len(point.parts)
    return kind


def _read_mounts() -> str:
    try:
        return _MOUNTS.read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return ""
