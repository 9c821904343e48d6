"""What asking an agent was worth: errors with it and without it, and the tokens it took.

Pure. Truth comes from outside (rework, a customer, a world that is rendered), never from the
node. A part that nobody ruled on counts as what the node alone would have made of it, so
that with and without are said of the same parts and nothing is gained by leaving one open.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from qcnode.domain import Action

if TYPE_CHECKING:
    from collections.abc import Iterable

    from qcnode.books.repricing import Asked

ADJUSTMENT: Final = "process adjustment"
"""The function on whose account questions about the process are asked, not about a part."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Weighed:
    """One part of known truth: what the node alone would have done, and what was done.

    `one_limit` is what a single limit, the best on the calibration parts, would have done.
    """

    defective: bool
    alone: Action
    done: Action
    ruled: bool = False
    one_limit: Action | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Worth:
    """How many of the same parts were wrong, by who decided.

    `if_right` is what would be left, had every ruling on these parts been right. `avoided`
    are parts the node alone had wrong and the agent right, `made` the reverse.
    """

    parts: int
    ruled: int
    alone: int
    with_agent: int
    if_right: int
    avoided: int
    made: int
    one_limit: int | None


def weigh(parts: Iterable[Weighed]) -> Worth:
    """Count the errors of both ways."""
    counts: Counter[str] = Counter()
    one_limit: int | None = 0
    for part in parts:
        alone, done = is_wrong(part.alone, part.defective), is_wrong(part.done, part.defective)
        counts["parts"] += 1
        counts["ruled"] += part.ruled
        counts["alone"] += alone
        counts["with_agent"] += done
        counts["if_right"] += alone and not part.ruled
        counts["avoided"] += alone and not done
        counts["made"] += done and not alone
        if part.one_limit is None:
            one_limit = None
        elif one_limit is not None:
            one_limit += is_wrong(part.one_limit, part.defective)
    return Worth(
        parts=counts["parts"],
        ruled=counts["ruled"],
        alone=counts["alone"],
        with_agent=counts["with_agent"],
        if_right=counts["if_right"],
        avoided=counts["avoided"],
        made=counts["made"],
        one_limit=one_limit,
    )


def is_wrong(action: Action, defective: bool) -> bool:  # noqa: FBT001  # the two sides of one truth
    """Say whether a part went the wrong way; a diverted one has gone no way yet."""
    return action is (Action.ACCEPT if defective else Action.REJECT)


def tokens_by_stream(asked: Iterable[Asked]) -> dict[str, int]:
    """Return the tokens of requests by what they were for: picture, analysis, adjustment."""
    streams = {"image": 0, "analysis": 0, "adjustment": 0}
    for one in asked:
        total = one.usage.input_tokens + one.usage.output_tokens
        if one.attempt.centre.function == ADJUSTMENT:
            streams["adjustment"] += total
        else:
            streams["image"] += one.usage.image
            streams["analysis"] += total - one.usage.image
    return streams
