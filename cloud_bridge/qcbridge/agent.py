"""The agent: a reviewer that asks a provider, within its budget and its time.

Each request is an attempt with an id of its own, and its money is put aside before
anything is done for it. Asking again happens here and nowhere else, only where it may
help, and never beyond what the budget covers with all that is still held. Whatever is
not exactly a ruling on the part in question is an error, and a person rules.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog

from qcbridge.breaker import Breaker
from qcbridge.evidence import Shown, show
from qcbridge.prompts import (
    USER_BYTES_MAX,
    Prompt,
    build_prompt,
    parse_ruling,
    ruling_schema,
    system_text,
)
from qcbridge.transport import Metered
from qcnode.errors import (
    PictureError,
    ProviderRefusedError,
    ProviderUnavailableError,
    UnpricedError,
)
from qcnode.money import Attempt, CostCentre, TokenUsage, WorstCase

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from qcbridge.meter import Meter
    from qcbridge.providers.base import Provider
    from qcnode.domain import Escalation, Opinion
    from qcnode.health import HealthBoard

log = structlog.get_logger()

COMPONENT = "provider"
FAILURES_MAX = 5
PAUSE_S = 30.0
RETRY_PAUSE_S = 0.5


class Agent:
    """Asks `provider` about one part at a time; many reviews may run at once.

    `centre`, `level` and `region` go on record with every attempt. The transport under the
    provider bounds the time of each attempt. `review_timeout_s` bounds all of them
    together, with the pauses and the waiting for the ledger.
    """

    def __init__(
        self,
        *,
        provider: Provider,
        meter: Meter,
        product: str,
        defect_classes: Sequence[str],
        image_side_max_px: int,
        attempts_max: int,
        review_timeout_s: float,
        health: HealthBoard,
        new_id: Callable[[], str],
        monotonic_s: Callable[[], float],
        retry_pause_s: float = RETRY_PAUSE_S,
        centre: CostCentre | None = None,
        level: str = "",
        region: str = "",
    ) -> None:
        self._provider = provider
        self._meter = meter
        self._product = product
        self._defect_classes = tuple(defect_classes)
        self._image_side_max_px = image_side_max_px
        self._attempts_max = attempts_max
        self._review_timeout_s = review_timeout_s
        self._health = health
        self._new_id = new_id
        self._retry_pause_s = retry_pause_s
        self.centre = CostCentre() if centre is None else centre
        self._level = level
        self._region = region
        self._breaker = Breaker(failures_max=FAILURES_MAX, pause_s=PAUSE_S, monotonic_s=monotonic_s)
        self._worst = provider.worst(
            text_bytes=USER_BYTES_MAX
            + _text_bytes(
                system_text(product, self._defect_classes),
                json.dumps(ruling_schema(self._defect_classes)),
            ),
            width=image_side_max_px,
            height=image_side_max_px,
        )
        health.report(COMPONENT, ok=True, words=f"{provider.name} has not been asked yet")

    async def review(self, escalation: Escalation, picture: bytes, heat: bytes | None) -> Opinion:
        """Ask about one part, again where that may help, and return what was answered."""
        with self._breaker.passage():
            try:
                async with asyncio.timeout(self._review_timeout_s):
                    return await self._ask(escalation, picture, heat)
            except TimeoutError as error:
                words = f"{self._provider.name} gave no ruling in {self._review_timeout_s:g} s"
                self._note_failure(words)
                raise ProviderUnavailableError(words) from error

    def reachable(self) -> bool:
        """Say whether asking makes sense just now; False after repeated failures, for a while."""
        return self._meter.clear() and self._breaker.admits()

    def worst(self) -> WorstCase | None:
        """Return the worst case of one attempt; None when it has no price and is never made."""
        try:
            hold = self._meter.worst_case(
                self._worst,
                self._provider.name,
                self._provider.model,
                region=self._region,
                within_s=self._review_timeout_s,
            )
        except UnpricedError:
            return None
        return WorstCase(usage=self._worst, hold=hold)

    async def close(self) -> None:
        """Let go of connections; closing twice is harmless."""
        await self._provider.close()

    async def _ask(self, escalation: Escalation, picture: bytes, heat: bytes | None) -> Opinion:
        """Ask until there is an opinion, with money put aside before each attempt."""
        question: _Question | None = None
        number = 0
        while True:
            number += 1
            attempt = self._attempt(escalation, number)
            worst = self._worst if question is None else question.worst
            async with self._meter.reserved(attempt, worst, within_s=self._review_timeout_s):
                if question is None:
                    question = await self._prepare(escalation, picture, heat)
                try:
                    return await self._ask_once(escalation, attempt, question)
                except ProviderUnavailableError:
                    if number >= self._attempts_max or self._breaker.is_open:
                        raise
            await asyncio.sleep(self._retry_pause_s)

    def _attempt(self, escalation: Escalation, number: int) -> Attempt:
        return Attempt(
            id=self._new_id(),
            escalation_id=escalation.id,
            number=number,
            provider=self._provider.name,
            model=self._provider.model,
            centre=self.centre,
            level=self._level,
            region=self._region,
        )

    async def _prepare(
        self, escalation: Escalation, picture: bytes, heat: bytes | None
    ) -> _Question:
        try:
            # Unpacking a large picture takes longer than the loop may stand still.
            shown = await asyncio.to_thread(
                show, picture, heat, escalation.box, side_max_px=self._image_side_max_px
            )
        except PictureError as error:
            raise ProviderRefusedError(f"nothing to show the agent: {error}") from error
        prompt = build_prompt(escalation, shown, self._product, self._defect_classes)
        worst = self._provider.worst(
            text_bytes=_text_bytes(prompt.system, prompt.user, json.dumps(prompt.schema)),
            width=shown.width,
            height=shown.height,
        )
        return _Question(prompt=prompt, shown=shown, worst=worst)

    async def _ask_once(
        self, escalation: Escalation, attempt: Attempt, question: _Question
    ) -> Opinion:
        metered = Metered(
            attempt=attempt,
            worst=question.worst,
            image_sha256=question.shown.sha256,
            shape=self._provider.shape,
        )
        try:
            completion = await self._provider.complete(question.prompt, metered)
            opinion = parse_ruling(
                completion.text,
                escalation,
                defect_classes=self._defect_classes,
                who=f"agent:{self._provider.model}",
            )
        except (ProviderUnavailableError, ProviderRefusedError) as error:
            self._note_failure(str(error))
            raise
        self._breaker.succeeded()
        self._health.report(COMPONENT, ok=True, words=f"{self._provider.name} answers")
        shown = question.shown
        log.info(
            "agent answered",
            escalation=escalation.id,
            attempt=attempt.id,
            finding=opinion.finding,
            usage=completion.usage,
            # What the whole picture would have been, by the provider's formula.
            image_tokens_uncut=self._provider.worst(
                text_bytes=0, width=shown.picture_width, height=shown.picture_height
            ).image,
        )
        return opinion

    def _note_failure(self, words: str) -> None:
        self._breaker.failed()
        if self._breaker.is_open:
            self._health.report(COMPONENT, ok=False, words=words)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Question:
    """What is asked about a part, what is shown of it, and the most an answer uses."""

    prompt: Prompt
    shown: Shown
    worst: TokenUsage


def _text_bytes(*texts: str) -> int:
    return sum(len(text.encode()) for text in texts)
