"""One question to a provider, asked by hand: metered and on record like any other.

It goes through the node's own ledger, prices, budgets and rules of what may leave, so
that what it shows is what the node will do. The ledger has one writer: a node that runs
keeps this out.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from qcbridge.egress import Permit
from qcnode.books import chain
from qcnode.books.ballast import BALLAST_BYTES
from qcnode.books.ledger import SqliteLedger
from qcnode.books.mark import FileId
from qcnode.domain import Escalation
from qcnode.errors import QcError, SettingsError
from qcnode.health import HealthBoard
from qcnode.ids import IdMaker
from qcnode.money import Indeterminate, Intent, NotBilled, Settled
from qcnode.wiring.agents import build_agent
from qcnode.wiring.billing import node_key
from qcnode.wiring.machine import new_epoch, now, now_us

if TYPE_CHECKING:
    from pathlib import Path

    from qcnode.domain import Opinion
    from qcnode.money import Outcomes
    from qcnode.settings import ProviderSettings, Settings

CLOSE_S = 5.0
ENTRIES_MAX = 1_000
"""More than the attempts of one question come to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One request as the ledger has it."""

    seq: int
    intent: Intent
    outcome: Outcomes | None

    @property
    def state(self) -> str:
        """How it stands."""
        return "open" if self.outcome is None else chain.KIND_OF[type(self.outcome)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """What came of a question; `opinion` is None where there was no ruling, for `why`."""

    provider: ProviderSettings
    permit: Permit
    epoch: str
    opinion: Opinion | None
    why: str | None
    requests: tuple[Request, ...]


def ask_once(settings: Settings, picture: Path, *, part_id: str, model: str | None) -> Answered:
    """Put a picture to the first provider, or to the one with this model.

    Raises `SettingsError` for what cannot be asked at all, and what keeps the ledger shut.
    """
    one = next((one for one in settings.provider if model in (None, one.model)), None)
    if one is None:
        known = ", ".join(one.model for one in settings.provider)
        raise SettingsError(f"--model {model}: no [provider] has it; there are: {known}")
    try:
        pixels = picture.read_bytes()
    except OSError as error:
        raise SettingsError(f"{picture}: cannot be read: {error.strerror}") from error
    key = settings.key_of(one)
    alone = settings.model_copy(
        update={
            "provider": (one.model_copy(update={"api_key": key}),),
            "agent": settings.agent.model_copy(update={"enabled": True}),
        }
    )
    home = settings.node.home
    home.mkdir(parents=True, exist_ok=True)
    ledger = SqliteLedger(
        home / "ledger.db",
        now_us=now_us,
        new_epoch=new_epoch,
        budgets=settings.budgets(),
        key=node_key(settings),
        identify=FileId.of,
        ballast_bytes=BALLAST_BYTES,
        health=HealthBoard(now),
    )
    try:
        before = ledger.totals().entries
        opinion, why = asyncio.run(_ask(alone, ledger, pixels, part_id=part_id))
        return Answered(
            provider=one,
            permit=Permit.of(one),
            epoch=ledger.epoch,
            opinion=opinion,
            why=why,
            requests=_requests(ledger, before),
        )
    finally:
        ledger.close()


async def _ask(
    settings: Settings, ledger: SqliteLedger, picture: bytes, *, part_id: str
) -> tuple[Opinion | None, str | None]:
    new_id = IdMaker(lambda: time.time_ns() // 1_000_000)
    agent = build_agent(settings, ledger=ledger, health=HealthBoard(now), new_id=new_id)
    if agent is None:
        raise SettingsError("agent.enabled = false: nobody is asked")
    at = now()
    escalation = Escalation(
        id=f"try-{new_id()}",
        inspection_id="",
        part_id=part_id,
        reason="asked by hand",
        score=None,
        opened_at=at,
        expires_at=at + timedelta(hours=1),
    )
    try:
        return await agent.review(escalation, picture, None), None
    except QcError as error:
        return None, str(error)
    finally:
        async with asyncio.timeout(CLOSE_S):
            await agent.close()


def _requests(ledger: SqliteLedger, after: int) -> tuple[Request, ...]:
    """Return the requests that left, in order, with what became of each."""
    intents: dict[str, tuple[int, Intent]] = {}
    outcomes: dict[str, Outcomes] = {}
    for entry in ledger.read(after, ENTRIES_MAX):
        fact = chain.fact_of(entry)
        if isinstance(fact, Intent):
            intents[fact.attempt.id] = entry.seq, fact
        elif isinstance(fact, Settled | NotBilled | Indeterminate):
            outcomes[fact.attempt_id] = fact
    return tuple(
        Request(seq=seq, intent=intent, outcome=outcomes.get(name))
        for name, (seq, intent) in intents.items()
    )
