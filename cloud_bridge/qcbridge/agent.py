"""The agent: a reviewer that asks a provider, within its budget and its time.

Each request is an attempt with an id of its own, and its money is put aside before
anything is done for it. Asking again happens here and nowhere else, only where it may
help, and never beyond what the budget covers with all that is still held. Whatever is
not exactly a ruling on the part in question is an error, and a person rules.

By default a part is asked about once. With more steps the agent may look closer before it
rules; each step is a whole question of its own, with what was learnt so far as data in it.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

import structlog

from qcbridge.breaker import Breaker
from qcbridge.packing import Packing, Shown, Views, open_views, pack
from qcbridge.prompts import (
    USER_BYTES_MAX,
    Prompt,
    Style,
    build_prompt,
    parse_ruling,
    parse_step,
    ruling_schema,
    step_schema,
    system_text,
)
from qcbridge.redact import NOTHING_HIDDEN, Redaction
from qcbridge.tools import RESULT_BYTES_MAX, Tool, Toolbox, ToolRequest
from qcbridge.transport import Metered
from qcnode.domain import Opinion
from qcnode.errors import (
    PictureError,
    ProviderRefusedError,
    ProviderUnavailableError,
    UnpricedError,
)
from qcnode.money import Attempt, CostCentre, TokenUsage, WorstCase

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence
    from typing import Any

    from qcbridge.meter import Meter
    from qcbridge.providers.base import Provider
    from qcbridge.tools import Step
    from qcnode.domain import Escalation
    from qcnode.health import HealthBoard
    from qcnode.money import Cost
    from qcnode.ports import Stops

log = structlog.get_logger()

_T = TypeVar("_T")

COMPONENT = "provider"
FAILURES_MAX = 5
PAUSE_S = 30.0
RETRY_PAUSE_S = 0.5
STOP_LOOK_S = 0.05
"""How long after people stop the agent a request of its may still be under way."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Means:
    """What an agent is shown of a part, and what it may do before it rules.

    With `golden`, which returns the picture of a good part, the same place of it and the heat
    are shown beside the part. `redaction` says what is hidden of any picture. With more than
    one step a review may use the tools of the box in up to `steps_max` requests, and none is
    made that could bring it beyond `tokens_max`.
    """

    golden: Callable[[], bytes | None] | None = None
    whole: bool = False
    """Whether the whole frame is shown as it is, to compare with."""
    redaction: Redaction = NOTHING_HIDDEN
    toolbox: Toolbox = field(default_factory=Toolbox)
    steps_max: int = 1
    tokens_max: int | None = None

    @property
    def packing(self) -> Packing:
        """How parts are shown."""
        if self.whole:
            return Packing.FRAME
        return Packing.CROP if self.golden is None else Packing.CROP_GOLDEN

    def style(self) -> Style:
        """Return what has to be said of it in every question."""
        tools: tuple[Tool, ...] = ()
        if self.steps_max > 1:
            tools = self.toolbox.offered(golden=self.golden is not None)
        return Style(
            panels=self.golden is not None or bool(tools),
            hidden=bool(self.redaction.areas),
            tools=tools,
        )


class Agent:
    """Asks `provider` about one part at a time; many reviews may run at once.

    `centre`, `level` and `region` go on record with every attempt. The transport under the
    provider bounds the time of each attempt. `review_timeout_s` bounds all of them
    together, with the pauses and the waiting for the ledger.

    Where `stops` says that people have stopped it, nothing leaves and what is under way is
    cut off.
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
        means: Means | None = None,
        stops: Stops | None = None,
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
        self._means = Means() if means is None else means
        self._stops = stops
        self._who = f"agent:{provider.model}"
        self._scopes = ("line", f"provider:{provider.name}", self._who)
        self._breaker = Breaker(failures_max=FAILURES_MAX, pause_s=PAUSE_S, monotonic_s=monotonic_s)
        self._style = self._means.style()
        self._worst = self._bound()
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
        return not self._stopped() and self._meter.clear() and self._breaker.admits()

    def worst(self) -> WorstCase | None:
        """Return the worst case of one attempt; None when it has no price and is never made."""
        try:
            return WorstCase(usage=self._worst, hold=self._hold(self._worst))
        except UnpricedError:
            return None

    async def close(self) -> None:
        """Let go of connections; closing twice is harmless."""
        await self._provider.close()

    async def _ask(self, escalation: Escalation, picture: bytes, heat: bytes | None) -> Opinion:
        """Ask until there is an opinion, with money put aside before each attempt."""
        review = _Review(escalation=escalation, picture=picture, heat=heat)
        while True:
            self._check_stops()
            review.attempts += 1
            attempt = self._attempt(escalation, review.attempts)
            worst = self._worst if review.question is None else review.question.worst
            answer: Opinion | ToolRequest | None = None
            async with self._meter.reserved(attempt, worst, within_s=self._review_timeout_s):
                if review.question is None:
                    review.question = await self._prepare(review)
                try:
                    answer = await self._unless_stopped(self._ask_once(review, attempt))
                except ProviderUnavailableError:
                    review.failures += 1
                    if review.failures >= self._attempts_max or self._breaker.is_open:
                        raise
            if isinstance(answer, Opinion):
                return answer
            if answer is None:
                await asyncio.sleep(self._retry_pause_s)
            elif answer.tool is Tool.PROPOSE:
                self._use(review, answer)  # Whoever takes proposals lives in this thread.
            else:
                await asyncio.to_thread(self._use, review, answer)

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

    async def _prepare(self, review: _Review) -> _Question:
        try:
            # Unpacking a large picture takes longer than the loop may stand still.
            return await asyncio.to_thread(self._question, review)
        except PictureError as error:
            raise ProviderRefusedError(f"nothing to show the agent: {error}") from error

    def _question(self, review: _Review) -> _Question:
        means = self._means
        if review.views is None:
            review.views = open_views(
                review.picture,
                review.heat,
                golden=None if means.golden is None else means.golden(),
                redaction=means.redaction,
            )
        if review.shown is None:
            review.shown = pack(
                review.views,
                review.escalation.box,
                means.packing,
                side_max_px=self._image_side_max_px,
                count=self._image_tokens,
            )
        shown = review.shown
        prompt, step = self._prompt(review, shown, left=means.steps_max - len(review.results) - 1)
        worst = self._worst_of(prompt, shown)
        most = means.tokens_max
        if most is not None:
            used, one = review.tokens, _total(worst)
            if used + one > most:
                raise ProviderRefusedError(
                    f"a request may use {one} tokens, and of {most} for a review {used} are used:"
                    " raise agent.review_tokens_max; a person rules on this part"
                )
            if step is not None and step.left and used + one + _total(self._worst) > most:
                prompt, step = self._prompt(review, shown, left=0)
        return _Question(prompt=prompt, shown=shown, worst=worst, step=step)

    def _prompt(self, review: _Review, shown: Shown, *, left: int) -> tuple[Prompt, Step | None]:
        step = None
        if self._style.tools:
            step = self._means.toolbox.step(self._style.tools, review.results, left=left)
        prompt = build_prompt(
            review.escalation,
            shown,
            self._product,
            self._defect_classes,
            style=self._style,
            step=step,
        )
        return prompt, step

    async def _ask_once(self, review: _Review, attempt: Attempt) -> Opinion | ToolRequest:
        question, escalation = review.question, review.escalation
        assert question is not None  # noqa: S101  # prepared by whoever calls
        review.tokens += _total(question.worst)
        review.costs.append(self._hold(question.worst))
        metered = Metered(
            attempt=attempt,
            worst=question.worst,
            image_sha256=question.shown.sha256,
            shape=self._provider.shape,
            step=len(review.results) + 1,
        )
        try:
            completion = await self._provider.complete(question.prompt, metered)
            if completion.usage is not None:
                review.tokens += _total(completion.usage) - _total(question.worst)
                review.costs[-1] = self._cost(completion.usage, attempt) or review.costs[-1]
            answer = self._read(completion.text, escalation, question)
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
            said=answer.finding if isinstance(answer, Opinion) else answer.tool,
            usage=completion.usage,
            # What the whole picture would have been, by the provider's formula.
            image_tokens_uncut=self._image_tokens(shown.picture_width, shown.picture_height),
        )
        if isinstance(answer, Opinion):
            return replace(answer, provider=self._provider.name, spent=review.spent())
        return answer

    def _read(
        self, text: str, escalation: Escalation, question: _Question
    ) -> Opinion | ToolRequest:
        if question.step is None:
            return parse_ruling(
                text, escalation, defect_classes=self._defect_classes, who=self._who
            )
        shown = question.shown
        return parse_step(
            text,
            escalation,
            defect_classes=self._defect_classes,
            who=self._who,
            step=question.step,
            size=(shown.picture_width, shown.picture_height),
        )

    def _use(self, review: _Review, request: ToolRequest) -> None:
        """Do what was asked for, and have it in the next question."""
        assert review.views is not None  # noqa: S101  # asked about already
        result = self._means.toolbox.use(
            request,
            escalation=review.escalation,
            views=review.views,
            who=self._who,
            side_max_px=self._image_side_max_px,
            count=self._image_tokens,
        )
        review.results.append((request.tool, result.said))
        review.shown = result.shown or review.shown
        review.question = None

    def _image_tokens(self, width: int, height: int) -> int:
        return self._provider.worst(text_bytes=0, width=width, height=height).image

    def _worst_of(self, prompt: Prompt, shown: Shown) -> TokenUsage:
        return self._provider.worst(
            text_bytes=_text_bytes(prompt.system, prompt.user, json.dumps(prompt.schema)),
            width=shown.width,
            height=shown.height,
        )

    def _bound(self) -> TokenUsage:
        """Return the most that any request of any review can use."""
        tools, classes = self._style.tools, self._defect_classes
        schema, user = ruling_schema(classes), USER_BYTES_MAX
        if tools:
            schema = step_schema(classes, tools, tuple(self._means.toolbox.offers()))
            user += RESULT_BYTES_MAX * self._means.steps_max
        return self._provider.worst(
            text_bytes=user
            + _text_bytes(system_text(self._product, classes, self._style), json.dumps(schema)),
            width=self._image_side_max_px,
            height=self._image_side_max_px,
        )

    def _hold(self, worst: TokenUsage) -> Cost:
        return self._meter.worst_case(
            worst,
            self._provider.name,
            self._provider.model,
            region=self._region,
            within_s=self._review_timeout_s,
        )

    def _cost(self, usage: TokenUsage, attempt: Attempt) -> Cost | None:
        now = self._meter.now()
        rating = self._meter.rate(usage, attempt, started_at=now, ended_at=now, took=timedelta(0))
        return rating.cost

    def _stopped(self) -> bool:
        return self._stops is not None and self._stops.stopped(*self._scopes)

    def _check_stops(self) -> None:
        if self._stopped():
            raise ProviderUnavailableError(f"{self._who} is stopped; parts wait for people")

    async def _unless_stopped(self, asking: Coroutine[Any, Any, _T]) -> _T:
        """Wait for an answer, and no longer when people stop whoever asks."""
        if self._stops is None:
            return await asking
        task = asyncio.create_task(asking)
        try:
            while not task.done():
                await asyncio.wait({task}, timeout=STOP_LOOK_S)
                if not task.done():
                    self._check_stops()
            return task.result()
        finally:
            if not task.done():
                task.cancel()
                await asyncio.wait({task})

    def _note_failure(self, words: str) -> None:
        self._breaker.failed()
        if self._breaker.is_open:
            self._health.report(COMPONENT, ok=False, words=words)


@dataclass(slots=True, kw_only=True)
class _Review:
    """How far the asking about a part has come."""

    escalation: Escalation
    picture: bytes
    heat: bytes | None
    attempts: int = 0
    failures: int = 0
    tokens: int = 0
    """Used so far; an attempt of which nobody knows counts as its worst case."""
    costs: list[Cost] = field(default_factory=list)
    """Of each attempt: what its answer cost, or the most it can have cost."""
    views: Views | None = None
    shown: Shown | None = None
    question: _Question | None = None
    results: list[tuple[Tool, dict[str, Any]]] = field(default_factory=list)

    def spent(self) -> tuple[str, int] | None:
        """Return what the review cost at most: currency and pico-units."""
        currencies = {cost.currency for cost in self.costs}
        if len(currencies) != 1:
            return None
        return currencies.pop(), sum(cost.pico for cost in self.costs)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Question:
    """What is asked about a part, what is shown of it, and the most an answer uses."""

    prompt: Prompt
    shown: Shown
    worst: TokenUsage
    step: Step | None


def _total(usage: TokenUsage) -> int:
    return usage.input_tokens + usage.output_tokens


def _text_bytes(*texts: str) -> int:
    return sum(len(text.encode()) for text in texts)
