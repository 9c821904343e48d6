"""The meter: what an attempt may cost, does cost and may have cost, on record in that order.

It stands between everybody who asks a provider and the ledger. Money is put aside
before a request is prepared, its intent is durable before its bytes leave, and whatever
becomes of it is recorded after. Of all that was put aside, nothing is left standing when
its request has ended or was never sent: a hold stays only where nobody knows what was
billed, and an outcome that the ledger does not take is kept and tried again.
"""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

import structlog

from qcbridge.prices import STANDARD, Terms
from qcnode.errors import LedgerUnavailableError, ProviderRefusedError, UnpricedError
from qcnode.money import Intent, NotBilled, Reserved

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from concurrent.futures import Future

    from qcbridge.prices import PriceBook
    from qcnode.health import HealthBoard
    from qcnode.money import Attempt, Cost, LedgerEntry, LedgerFact, TokenUsage
    from qcnode.ports import Ledger

log = structlog.get_logger()

COMPONENT: Final = "ledger"
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_UNRECORDED_MAX: Final = 1_000


def _sure() -> timedelta:
    return timedelta(0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rating:
    """What an answer costs, and by which instant; `other` is what a doubtful clock may mean."""

    cost: Cost | None
    other: Cost | None
    rated_at_us: int


class Meter:
    """Puts attempts on record in `ledger`, at the prices of `prices`.

    `clock_uncertainty` says by how much `now` may be wrong, either way.
    """

    def __init__(
        self,
        *,
        ledger: Ledger,
        prices: PriceBook,
        health: HealthBoard,
        now: Callable[[], datetime],
        answer_timeout_s: float = 120.0,
        record_timeout_s: float = 10.0,
        clock_uncertainty: Callable[[], timedelta] = _sure,
    ) -> None:
        self._ledger = ledger
        self._prices = prices
        self._health = health
        self._now = now
        self.answer_timeout_s = answer_timeout_s
        self._record_timeout_s = record_timeout_s
        self._clock_uncertainty = clock_uncertainty
        self._aside: set[str] = set()
        """Attempts reserved for whose intent has not been handed in."""
        self._unrecorded: deque[LedgerFact] = deque()

    def now(self) -> datetime:
        """Return the wall clock's time."""
        return self._now()

    def worst_case(
        self,
        worst: TokenUsage,
        provider: str,
        model: str,
        *,
        region: str = "",
        within_s: float = 0.0,
    ) -> Cost:
        """Return the most that so many tokens cost if they are sent within so many seconds.

        Raises `UnpricedError` when the book does not say.
        """
        now, doubt = self._now(), self._clock_uncertainty()
        answered_by = now + timedelta(seconds=within_s + self.answer_timeout_s)
        return self._prices.worst_case(
            worst, provider, model, now - doubt, answered_by + doubt, terms=_terms(region)
        )

    @asynccontextmanager
    async def reserved(
        self, attempt: Attempt, worst: TokenUsage, *, within_s: float
    ) -> AsyncIterator[None]:
        """Put money aside while a request is prepared, and give it back if none is sent.

        Raises `UnpricedError`, `BudgetExceededError` or `LedgerUnavailableError` before
        anything is done for the attempt.
        """
        hold = self._hold(attempt, worst, within_s=within_s)
        await self._record_what_was_left()
        await self._put(Reserved(attempt=attempt, worst=worst, hold=hold), attempt.id, aside=False)
        self._aside.add(attempt.id)
        try:
            yield
        except (asyncio.CancelledError, GeneratorExit):
            # Whoever cancelled waits for no disk.
            if self._take_aside(attempt.id):
                self.hand_in(_not_sent(attempt.id, "nobody waited for it"))
            raise
        except BaseException as error:
            if self._take_aside(attempt.id):
                await self.conclude(_not_sent(attempt.id, f"given up ({type(error).__name__})"))
            raise
        if self._take_aside(attempt.id):
            await self.conclude(_not_sent(attempt.id, "there was nothing to send"))

    async def intend(
        self,
        attempt: Attempt,
        worst: TokenUsage,
        *,
        request_sha256: str,
        request_bytes: int,
        image_sha256: str | None,
    ) -> Cost:
        """Have the intent of a request on disk, and return what it holds.

        Raises `LedgerUnavailableError`, `BudgetExceededError`, `UnpricedError`, or
        `ProviderRefusedError` for an attempt that is on record already.
        """
        hold = self._hold(attempt, worst)
        await self._record_what_was_left()
        intent = Intent(
            attempt=attempt,
            worst=worst,
            hold=hold,
            request_sha256=request_sha256,
            request_bytes=request_bytes,
            image_sha256=image_sha256,
        )
        await self._put(intent, attempt.id, aside=self._take_aside(attempt.id))
        return hold

    def rate(
        self,
        usage: TokenUsage,
        attempt: Attempt,
        *,
        started_at: datetime,
        ended_at: datetime,
        took: timedelta,
    ) -> Rating:
        """Price what was used, by the instant that counts for this provider.

        `started_at` and `ended_at` are the wall clock's word, `took` the monotonic clock's
        for what lies between. Where the two differ the wall clock was set meanwhile, and
        is wrong by as much at one of the ends.
        """
        prices, provider, model = self._prices, attempt.provider, attempt.model
        terms = _terms(attempt.region)
        doubt = self._clock_uncertainty() + abs(ended_at - started_at - took)
        try:
            rated_at = prices.rated_at(
                provider, model, started=started_at, completed=ended_at, terms=terms
            )
            cost = prices.price(usage, provider, model, rated_at, terms=terms)
        except UnpricedError as error:
            log.warning("an answer has no price", attempt=attempt.id, error=str(error))
            return Rating(cost=None, other=None, rated_at_us=to_us(ended_at))
        other = None
        with suppress(UnpricedError):  # The other side of a change; this side's price stands.
            costs = prices.around(usage, provider, model, rated_at, doubt, terms=terms)
            other = max(costs[1:], key=_pico, default=None)
        if other is not None:
            log.warning("prices changed within the clock's doubt", attempt=attempt.id)
        return Rating(cost=cost, other=other, rated_at_us=to_us(rated_at))

    async def conclude(self, outcome: LedgerFact) -> None:
        """Record an outcome, and wait until it is durable or known not to be."""
        await self._seen(self.hand_in(outcome))

    def hand_in(self, outcome: LedgerFact) -> Future[LedgerEntry]:
        """Put an outcome in line for the ledger; one that fails is kept for later."""
        recorded = self._ledger.submit(outcome)

        def keep(done: Future[LedgerEntry]) -> None:
            error = done.exception()
            if error is None:
                return
            log.error("an outcome was not taken on record", error=str(error))
            if isinstance(error, LedgerUnavailableError):
                if len(self._unrecorded) < _UNRECORDED_MAX:
                    self._unrecorded.append(outcome)
                self._health.report(COMPONENT, ok=False, words=str(error))

        recorded.add_done_callback(keep)
        return recorded

    def clear(self) -> bool:
        """Hand in again what the ledger did not take, and say whether there was nothing.

        Until it is on record its hold stands, and could keep anybody from asking again.
        """
        if not self._unrecorded:
            return True
        for outcome in self._left():
            self.hand_in(outcome)
        return False

    def _hold(self, attempt: Attempt, worst: TokenUsage, *, within_s: float = 0.0) -> Cost:
        return self.worst_case(
            worst, attempt.provider, attempt.model, region=attempt.region, within_s=within_s
        )

    async def _record_what_was_left(self) -> None:
        """Try again the outcomes that the ledger did not take, before more is spent."""
        # All of them before anything is waited for, or whoever is cancelled takes some along.
        for recorded in [self.hand_in(outcome) for outcome in self._left()]:
            await self._seen(recorded)

    def _left(self) -> list[LedgerFact]:
        left: list[LedgerFact] = []
        while self._unrecorded:
            left.append(self._unrecorded.popleft())
        return left

    def _take_aside(self, attempt_id: str) -> bool:
        """Say whether money stands aside for an attempt, and answer for it from here on."""
        if attempt_id not in self._aside:
            return False
        self._aside.discard(attempt_id)
        return True

    async def _put(self, fact: Reserved | Intent, attempt_id: str, *, aside: bool) -> None:
        """Have a hold on disk, or leave none: `aside` says that one stands there already."""
        recorded = self._ledger.submit(fact)
        try:
            await self._durable(recorded)
        except BaseException as error:
            self._take_back(recorded, attempt_id, aside=aside, why=type(error).__name__)
            if isinstance(error, TimeoutError):
                words = f"the disk took no entry in {self._record_timeout_s:g} s: check the disk"
                self._health.report(COMPONENT, ok=False, words=words)
                raise LedgerUnavailableError(words) from error
            if isinstance(error, LedgerUnavailableError):
                self._health.report(COMPONENT, ok=False, words=str(error))
            if isinstance(error, ValueError):
                raise ProviderRefusedError(
                    f"{error}: each request is an attempt of its own"
                ) from error
            raise
        self._health.report(COMPONENT, ok=True, words="entries are recorded")

    def _take_back(
        self, recorded: Future[LedgerEntry], attempt_id: str, *, aside: bool, why: str
    ) -> None:
        """Give the hold of a request that is not sent back, unless it never came to be."""

        def void(done: Future[LedgerEntry]) -> None:
            on_record = not done.cancelled() and done.exception() is None
            if on_record or aside:
                self.hand_in(_not_sent(attempt_id, f"no intent on record in time ({why})"))

        recorded.cancel()
        recorded.add_done_callback(void)

    async def _seen(self, recorded: Future[LedgerEntry]) -> None:
        try:
            await self._durable(recorded)
        except (LedgerUnavailableError, TimeoutError, ValueError):
            return  # Kept by `hand_in`, and said; the answer is worth having all the same.

    async def _durable(self, recorded: Future[LedgerEntry]) -> None:
        # Shielded: a caller that goes away must not take a record back halfway.
        # Not wait_for: on Python 3.11 it can swallow a cancellation.
        async with asyncio.timeout(self._record_timeout_s):
            await asyncio.shield(asyncio.wrap_future(recorded))


def to_us(at: datetime) -> int:
    """Return an instant as the books write it."""
    return (at - _EPOCH) // timedelta(microseconds=1)


def _terms(region: str) -> Terms:
    return Terms(region=region) if region else STANDARD


def _pico(cost: Cost) -> int:
    return cost.pico


def _not_sent(attempt_id: str, why: str) -> NotBilled:
    return NotBilled(attempt_id=attempt_id, reason=f"not sent: {why}", http_status=None)
