"""The root of a Merkle tree over entry hashes, as RFC 6962 has it.

Pure. One hash stands for a stretch of a ledger, whatever its length: who has the
entries can work it out again, and nobody can find other entries that give it. Memory
grows with the logarithm of the number of leaves.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field


@dataclass(slots=True)
class MerkleTree:
    """Takes leaves in order and knows the root over those it has had so far."""

    size: int = 0
    _peaks: list[bytes] = field(default_factory=list)
    """The roots of the full subtrees, the largest first; their sizes are the bits of `size`."""

    def add(self, leaf: bytes) -> None:
        """Add the next leaf."""
        node = hashlib.sha256(b"\x00" + leaf).digest()
        size = self.size
        while size & 1:
            node = _parent(self._peaks.pop(), node)
            size >>= 1
        self._peaks.append(node)
        self.size += 1

    def root(self) -> bytes:
        """Return the tree's hash; of no leaves it is the hash of nothing."""
        if not self._peaks:
            return hashlib.sha256(b"").digest()
        root = self._peaks[-1]
        for peak in reversed(self._peaks[:-1]):
            root = _parent(peak, root)
        return root


def _parent(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\x01" + left + right).digest()
