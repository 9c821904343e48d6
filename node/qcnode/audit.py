"""How many defective parts pass, from a random share of them that a person looks at.

Pure. Which part is looked at depends on a secret and the part's name, and on nothing that
is known of the part: whoever knows its score, or made it, cannot tell. The share of
defective ones among those looked at has an exact interval (Clopper-Pearson), whatever the
model is. It holds at any one look; who looks every hour and acts on the best hour has less.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass, replace
from typing import Final

from qcnode.certify import lower_bound, upper_bound

CONFIDENCE: Final = 0.95
_WHOLE: Final = 1 << 64


@dataclass(frozen=True, slots=True)
class AuditDraw:
    """Draws `share` of the parts, each for itself."""

    secret: bytes
    share: float

    def drawn(self, part_id: str) -> bool:
        """Say whether a person looks at this part."""
        mark = hmac.digest(self.secret, part_id.encode(), hashlib.sha256)
        return int.from_bytes(mark[:8]) < self.share * _WHOLE


@dataclass(frozen=True, slots=True, kw_only=True)
class Audit:
    """What people found of the drawn parts; an `unanswered` one counts for nothing."""

    checked: int = 0
    defective: int = 0
    unanswered: int = 0

    def answered(self, *, defective: bool) -> Audit:
        """Return it with one part more that a person ruled on."""
        return replace(self, checked=self.checked + 1, defective=self.defective + int(defective))

    @property
    def interval(self) -> tuple[float, float]:
        """The share of passed parts that are defective, with 95 % confidence on both sides."""
        if not self.checked:
            return 0.0, 1.0
        beside = 1.0 - (1.0 - CONFIDENCE) / 2.0
        return (
            lower_bound(self.defective, self.checked, confidence=beside),
            upper_bound(self.defective, self.checked, confidence=beside),
        )

    @property
    def at_most(self) -> float:
        """The share of passed parts that are defective, at most, with 95 % confidence."""
        if not self.checked:
            return 1.0
        return upper_bound(self.defective, self.checked, confidence=CONFIDENCE)

    def needed(self, target: float) -> int:
        """Return how many more parts, all good, bring `at_most` to `target` or below."""
        more = 0
        # Clean parts needed grow no faster than this, so doubling and halving finds them.
        while replace(self, checked=self.checked + more).at_most > target:
            more = 2 * more or 1
        low = more // 2
        while low < more:
            middle = (low + more) // 2
            if replace(self, checked=self.checked + middle).at_most > target:
                low = middle + 1
            else:
                more = middle
        return more

    def words(self, target: float | None) -> str:
        """Say how it stands, and what the target still takes."""
        seen = f"{self.defective} of {self.checked} checked passes were defective"
        left = f", {self.unanswered} unanswered" if self.unanswered else ""
        low, high = self.interval
        told = (
            f"{seen}{left}: {low:.2%} to {high:.2%} of passes are, at most {self.at_most:.2%}"
            f" ({CONFIDENCE:.0%})"
        )
        if target is None:
            return told
        if self.at_most <= target:
            return f"{told}; target {target:.2%} is met"
        return (
            f"{told}; nothing passes unasked until it is {target:.2%}:"
            f" {self.needed(target)} more clean parts"
        )
