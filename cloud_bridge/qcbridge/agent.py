"""The agent: a reviewer that asks a provider, within its budget and its time.

Each request is an attempt with an id of its own; asking again happens here and nowhere
else, only where it may help, and never beyond what the ledger lets through. Whatever
is not exactly a ruling on the part in question is an error, and a person rules.
"""

from __future__ import annotations

import asyncio
import json
from datetime import timedelta
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
from qcnode.money import Attempt

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime

    from qcbridge.prices import PriceBook
    from qcbridge.providers.base import Completion, Provider
    from qcnode.domain import Escalation, Opinion
    from qcnode.health import HealthBoard

log = structlog.get_logger()

COMPONENT = "provider"
FAILURES_MAX = 5
PAUSE_S = 30.0
RETRY_PAUSE_S = 0.5


class Agent:
    """Asks `provider` about one part at a time; many reviews may run at once.

    The transport under the provider bounds the time of each attempt. `review_timeout_s`
    bounds all of them together, with the pauses and the waiting for the ledger.
    """

    def __init__(
        self,
        *,
        provider: Provider,
        product: str,
        defect_classes: Sequence[str],
        image_side_max_px: int,
        attempts_max: int,
        review_timeout_s: float,
        prices: PriceBook,
        health: HealthBoard,
        new_id: Callable[[], str],
        now: Callable[[], datetime],
        monotonic_s: Callable[[], float],
        retry_pause_s: float = RETRY_PAUSE_S,
    ) -> None:
        self._provider = provider
        self._product = product
        self._defect_classes = tuple(defect_classes)
        self._image_side_max_px = image_side_max_px
        self._attempts_max = attempts_max
        self._review_timeout_s = review_timeout_s
        self._prices = prices
        self._health = health
        self._new_id = new_id
        self._now = now
        self._retry_pause_s = retry_pause_s
        self._breaker = Breaker(failures_max=FAILURES_MAX, pause_s=PAUSE_S, monotonic_s=monotonic_s)
        health.report(COMPONENT, ok=True, words=f"{provider.name} has not been asked yet")

    async def review(self, escalation: Escalation, picture: bytes, heat: bytes | None) -> Opinion:
        """Ask about one part, again where that may help, and return what was answered."""
        try:
            # Unpacking a large picture takes longer than the loop may stand still.
            shown = await asyncio.to_thread(
                show, picture, heat, escalation.box, side_max_px=self._image_side_max_px
            )
        except PictureError as error:
            raise ProviderRefusedError(f"nothing to show the agent: {error}") from error
        prompt = build_prompt(escalation, shown, self._product, self._defect_classes)
        with self._breaker.passage():
            try:
                async with asyncio.timeout(self._review_timeout_s):
                    return await self._ask(escalation, prompt, shown)
            except TimeoutError as error:
                words = f"{self._provider.name} gave no ruling in {self._review_timeout_s:g} s"
                self._note_failure(words)
                raise ProviderUnavailableError(words) from error

    def reachable(self) -> bool:
        """Say whether asking makes sense just now; False after repeated failures, for a while."""
        return self._breaker.admits()

    def cost_pico_max(self) -> int | None:
        """Return what a review costs if every attempt of it uses all it may."""
        worst = self._provider.worst(
            text_bytes=USER_BYTES_MAX
            + _text_bytes(
                system_text(self._product, self._defect_classes),
                json.dumps(ruling_schema(self._defect_classes)),
            ),
            width=self._image_side_max_px,
            height=self._image_side_max_px,
        )
        now = self._now()
        try:
            cost = self._prices.worst_case(
                worst,
                self._provider.name,
                self._provider.model,
                now,
                now + timedelta(seconds=self._review_timeout_s),
            )
        except UnpricedError:
            return None
        return cost.pico * self._attempts_max

    async def close(self) -> None:
        """Let go of connections; closing twice is harmless."""
        await self._provider.close()

    async def _ask(self, escalation: Escalation, prompt: Prompt, shown: Shown) -> Opinion:
        for number in range(1, self._attempts_max):
            try:
                return await self._ask_once(escalation, prompt, shown, number)
            except ProviderUnavailableError:
                if self._breaker.is_open:
                    raise
            await asyncio.sleep(self._retry_pause_s)
        return await self._ask_once(escalation, prompt, shown, self._attempts_max)

    async def _ask_once(
        self, escalation: Escalation, prompt: Prompt, shown: Shown, number: int
    ) -> Opinion:
        attempt = Attempt(
            id=self._new_id(),
            escalation_id=escalation.id,
            number=number,
            provider=self._provider.name,
            model=self._provider.model,
        )
        try:
            completion = await self._complete(attempt, prompt, shown)
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

    async def _complete(self, attempt: Attempt, prompt: Prompt, shown: Shown) -> Completion:
        metered = Metered(
            attempt=attempt,
            worst=self._provider.worst(
                text_bytes=_text_bytes(prompt.system, prompt.user, json.dumps(prompt.schema)),
                width=shown.width,
                height=shown.height,
            ),
            image_sha256=shown.sha256,
            usage_from=self._provider.usage_from,
        )
        return await self._provider.complete(prompt, metered)

    def _note_failure(self, words: str) -> None:
        self._breaker.failed()
        if self._breaker.is_open:
            self._health.report(COMPONENT, ok=False, words=words)


def _text_bytes(*texts: str) -> int:
    return sum(len(text.encode()) for text in texts)
