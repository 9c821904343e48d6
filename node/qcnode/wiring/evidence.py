"""Builds what an agent is shown and what it may do before it rules, from the settings."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from qcbridge.agent import Means
from qcbridge.redact import Redaction
from qcbridge.settled import Settled, SettledFirst
from qcbridge.tools import Toolbox
from qcnode.ids import first_id

if TYPE_CHECKING:
    from collections.abc import Callable

    from qcnode.books.journal import Journal
    from qcnode.ports import Proposals, Reviewer
    from qcnode.settings import Settings

HOUR_MS = 3_600_000


def means_of(
    settings: Settings,
    *,
    journal: Journal,
    golden: Callable[[], bytes | None] | None,
    proposals: Proposals | None = None,
) -> Means:
    """Build an agent's means; `golden` returns the picture of the best good part known."""
    agent = settings.agent

    def last_hour() -> dict[str, int]:
        return journal.came_out_since(first_id(time.time_ns() // 1_000_000 - HOUR_MS))

    return Means(
        golden=golden if agent.golden else None,
        redaction=Redaction(areas=agent.mask, codes=agent.mask_codes),
        toolbox=Toolbox(settled=Settled(journal), counters=last_hour, proposals=proposals),
        steps_max=agent.steps_max,
        tokens_max=agent.review_tokens_max,
    )


def settled_first(settings: Settings, reviewer: Reviewer, *, journal: Journal) -> Reviewer:
    """Let parts on which people have ruled be answered from what they said, if that is set."""
    settled = settings.agent.settled
    if settled == "off":
        return reviewer
    return SettledFirst(reviewer, Settled(journal), alike=settled == "alike")
