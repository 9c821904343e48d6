"""The metering transport: every request to a provider is on record before its bytes leave.

It stands under every client of every provider, and a request that does not say which
attempt it is goes nowhere. First its worst case is priced and recorded as an intent;
what comes of it is recorded after. An answer with a believable count of tokens settles
it, a refusal before any work is not billed, and everything else, be it a time-out, a
reset, a server error, an answer without usage or a caller that went away, is
indeterminate and held at its worst case. Nothing is retried and no redirect followed.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections import deque
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

import httpx2
import structlog

from qcnode.errors import (
    LedgerUnavailableError,
    ProviderRefusedError,
    ProviderUnavailableError,
    UnpricedError,
)
from qcnode.money import Cost, Indeterminate, Intent, NotBilled, Settled

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future

    from qcbridge.prices import PriceBook
    from qcnode.health import HealthBoard
    from qcnode.money import Attempt, LedgerEntry, LedgerFact, TokenUsage
    from qcnode.ports import Ledger

log = structlog.get_logger()

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
ATTEMPT: Final = "qcnode.attempt"
"""The request extension that holds its `Metered`."""

COMPONENT: Final = "ledger"
NOT_BILLED: Final = frozenset({301, 307, 308, 401, 402, 403, 404, 429})
"""Answers of a server that did no work: sent elsewhere, or turned away at the door."""

TOKENS_MAX: Final = 10_000_000
"""No request holds so many; with the bound on prices, every cost fits 64 bits."""

ANSWER_BYTES_MAX: Final = 4 * 1024 * 1024
RAW_USAGE_CHARS_MAX: Final = 8_192
_NAME_CHARS_MAX: Final = 200
_UNRECORDED_MAX: Final = 1_000
_NEVER_SENT: Final = (
    httpx2.ConnectError,
    httpx2.ConnectTimeout,
    httpx2.PoolTimeout,
    httpx2.ProxyError,
    httpx2.UnsupportedProtocol,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Metered:
    """What a request must carry to be sent: which attempt it is, and the most it can use.

    `usage_from` reads the provider's usage block and raises `ValueError` when it
    cannot be believed.
    """

    attempt: Attempt
    worst: TokenUsage
    image_sha256: str | None
    usage_from: Callable[[Any], TokenUsage]


class MeteringTransport(httpx2.AsyncBaseTransport):
    """Sends requests through `inner`, each between its intent and its outcome in the ledger.

    An answer is handed on even when its outcome cannot be recorded: its tokens are
    spent already, the intent on record holds their worst case, and without the answer
    they would be spent again. The outcome is kept and tried again before the next
    request, which is not sent while the ledger does not take it.
    """

    def __init__(
        self,
        inner: httpx2.AsyncBaseTransport,
        *,
        ledger: Ledger,
        prices: PriceBook,
        health: HealthBoard,
        now: Callable[[], datetime],
        monotonic_s: Callable[[], float],
        answer_timeout_s: float = 120.0,
        record_timeout_s: float = 10.0,
    ) -> None:
        self._inner = inner
        self._ledger = ledger
        self._prices = prices
        self._health = health
        self._now = now
        self._monotonic_s = monotonic_s
        self._answer_timeout_s = answer_timeout_s
        self._record_timeout_s = record_timeout_s
        self._unrecorded: deque[LedgerFact] = deque()

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Record, send, read and record again.

        Raises `LedgerUnavailableError`, `BudgetExceededError` or `UnpricedError` before
        anything has left; `ProviderUnavailableError` when no whole answer came in time,
        and `ProviderRefusedError` for an answer that is none (a redirect, too large).
        """
        metered = request.extensions.get(ATTEMPT)
        if not isinstance(metered, Metered):
            raise LedgerUnavailableError(
                f"{request.method} {request.url.host}: this request does not say which attempt"
                f" it is, so it is not sent: give it extensions[{ATTEMPT!r}]"
            )
        body = await request.aread()
        request.headers["Idempotency-Key"] = metered.attempt.escalation_id
        request.headers["X-QC-Attempt"] = metered.attempt.id
        # Packed, a small answer can unpack to gigabytes.
        request.headers["Accept-Encoding"] = "identity"
        hold = self._hold(metered)
        await self._record_what_was_left()
        await self._intend(metered, hold, body)
        return await self._send(request, metered, hold)

    async def aclose(self) -> None:
        """Let go of connections; closing twice is harmless."""
        await self._inner.aclose()

    def _hold(self, metered: Metered) -> Cost:
        now = self._now()
        return self._prices.worst_case(
            metered.worst,
            metered.attempt.provider,
            metered.attempt.model,
            now,
            now + timedelta(seconds=self._answer_timeout_s),
        )

    async def _intend(self, metered: Metered, hold: Cost, body: bytes) -> None:
        attempt_id = metered.attempt.id
        recorded = self._ledger.submit(
            Intent(
                attempt=metered.attempt,
                worst=metered.worst,
                hold=hold,
                request_sha256=hashlib.sha256(body).hexdigest(),
                request_bytes=len(body),
                image_sha256=metered.image_sha256,
            )
        )
        try:
            await self._durable(recorded)
        except asyncio.CancelledError:
            self._take_back(recorded, attempt_id)
            raise
        except TimeoutError as error:
            self._take_back(recorded, attempt_id)
            words = f"the disk took no entry in {self._record_timeout_s:g} s: check the disk"
            self._health.report(COMPONENT, ok=False, words=words)
            raise LedgerUnavailableError(words) from error
        except LedgerUnavailableError as error:
            self._health.report(COMPONENT, ok=False, words=str(error))
            raise
        except ValueError as error:
            raise ProviderRefusedError(f"{error}: each request is an attempt of its own") from error
        self._health.report(COMPONENT, ok=True, words="entries are recorded")

    async def _send(self, request: httpx2.Request, metered: Metered, hold: Cost) -> httpx2.Response:
        """Send what is on record as an intent, and record what comes of it."""
        attempt = metered.attempt
        started_s = self._monotonic_s()
        try:
            async with asyncio.timeout(self._answer_timeout_s):
                status, headers, body = await self._exchange(request)
            took_ms = round((self._monotonic_s() - started_s) * 1000)
            outcome = self._outcome(metered, hold, status, body, took_ms)
        except _NEVER_SENT as error:
            said = _said(error)
            await self._conclude(
                NotBilled(attempt_id=attempt.id, reason=f"not sent: {said}", http_status=None)
            )
            raise ProviderUnavailableError(
                f"{attempt.provider} at {request.url.host} cannot be reached: {said}"
            ) from error
        except TimeoutError as error:
            await self._conclude(_unknown(attempt, hold, "no whole answer in time"))
            raise ProviderUnavailableError(
                f"{attempt.provider} at {request.url.host} did not answer"
                f" within {self._answer_timeout_s:g} s"
            ) from error
        except (httpx2.HTTPError, httpx2.StreamError) as error:
            said = _said(error)
            await self._conclude(_unknown(attempt, hold, said))
            raise ProviderUnavailableError(
                f"{attempt.provider} at {request.url.host} gave no whole answer: {said}"
            ) from error
        except ProviderRefusedError as error:
            await self._conclude(_unknown(attempt, hold, str(error)))
            raise
        except BaseException as error:
            # Nobody waits for the answer any more, but the provider may have billed it.
            reason = f"nobody waited for the answer ({type(error).__name__})"
            self._hand_in(_unknown(attempt, hold, reason))
            raise
        await self._conclude(outcome)
        if httpx2.codes.is_redirect(status):
            raise ProviderRefusedError(
                f"{attempt.provider} at {request.url.host} sends us elsewhere (HTTP {status}):"
                " set its base_url to the address it names; no redirect is followed"
            )
        return httpx2.Response(status, headers=headers, content=body, request=request)

    async def _exchange(self, request: httpx2.Request) -> tuple[int, list[tuple[str, str]], bytes]:
        response = await self._inner.handle_async_request(request)
        try:
            body = bytearray()
            async for chunk in response.aiter_bytes():
                body += chunk
                if len(body) > ANSWER_BYTES_MAX:
                    raise ProviderRefusedError(
                        f"an answer of more than {ANSWER_BYTES_MAX} bytes is none"
                    )
        finally:
            await response.aclose()
        # The body is whole and unpacked here, so what said how it travelled is untrue now.
        travelled = {"content-encoding", "content-length", "transfer-encoding"}
        headers = [
            (name, value)
            for name, value in response.headers.multi_items()
            if name.lower() not in travelled
        ]
        return response.status_code, headers, bytes(body)

    def _outcome(
        self, metered: Metered, hold: Cost, status: int, body: bytes, took_ms: int
    ) -> LedgerFact:
        attempt = metered.attempt
        if status in NOT_BILLED:
            return NotBilled(attempt_id=attempt.id, reason=f"HTTP {status}", http_status=status)
        if not httpx2.codes.is_success(status):
            return _unknown(attempt, hold, f"HTTP {status}")
        try:
            answer = json.loads(body)
            block = answer["usage"]
            raw_usage = json.dumps(block, ensure_ascii=False)
            raw_usage.encode()  # Half of a surrogate pair is JSON, and no text.
            usage = metered.usage_from(block)
            _believable(usage, raw_usage)
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            return _unknown(attempt, hold, f"no usage to believe: {error!r:.200}")
        rated_at = self._now()
        return Settled(
            attempt_id=attempt.id,
            usage=usage,
            cost=self._cost(usage, attempt, rated_at),
            started_at_us=_to_us(rated_at) - took_ms * 1_000,
            rated_at_us=_to_us(rated_at),
            raw_usage=raw_usage,
            response_id=_name(answer.get("id")),
            model_served=_name(answer.get("model")),
            http_status=status,
            duration_ms=took_ms,
        )

    def _cost(self, usage: TokenUsage, attempt: Attempt, rated_at: datetime) -> Cost | None:
        try:
            return self._prices.price(usage, attempt.provider, attempt.model, rated_at)
        except UnpricedError as error:
            log.warning("an answer has no price", attempt=attempt.id, error=str(error))
            return None

    async def _conclude(self, outcome: LedgerFact) -> None:
        """Record an outcome, and wait until it is durable or known not to be."""
        recorded = self._hand_in(outcome)
        try:
            await self._durable(recorded)
        except (LedgerUnavailableError, TimeoutError, ValueError):
            return  # Kept by `_hand_in`, and said; the answer is worth having all the same.

    def _hand_in(self, outcome: LedgerFact) -> Future[LedgerEntry]:
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

    async def _record_what_was_left(self) -> None:
        """Try again the outcomes that the ledger did not take, before more is spent."""
        for _ in range(len(self._unrecorded)):
            await self._conclude(self._unrecorded.popleft())

    def _take_back(self, intent: Future[LedgerEntry], attempt_id: str) -> None:
        """Give the hold of an unsent request back, unless it never came to be."""
        if intent.cancel():
            return

        def void(done: Future[LedgerEntry]) -> None:
            if done.exception() is None:
                reason = "not sent: nobody waited for its record"
                self._hand_in(NotBilled(attempt_id=attempt_id, reason=reason, http_status=None))

        intent.add_done_callback(void)

    async def _durable(self, recorded: Future[LedgerEntry]) -> None:
        # Shielded: a caller that goes away must not take a record back halfway.
        # Not wait_for: on Python 3.11 it can swallow a cancellation.
        async with asyncio.timeout(self._record_timeout_s):
            await asyncio.shield(asyncio.wrap_future(recorded))


def _believable(usage: TokenUsage, raw_usage: str) -> None:
    if usage.input_tokens == 0:
        raise ValueError("no input tokens, though something was sent")
    if max(usage.input_tokens, usage.output_tokens) > TOKENS_MAX:
        raise ValueError(f"more than {TOKENS_MAX} tokens")
    if len(raw_usage) > RAW_USAGE_CHARS_MAX:
        raise ValueError(f"a usage block of {len(raw_usage)} characters")


def _unknown(attempt: Attempt, hold: Cost, reason: str) -> Indeterminate:
    return Indeterminate(attempt_id=attempt.id, reason=reason, hold=hold)


def _to_us(at: datetime) -> int:
    return (at - _EPOCH) // timedelta(microseconds=1)


def _name(value: Any) -> str | None:
    if not isinstance(value, str):
        return None
    return value.encode(errors="replace").decode()[:_NAME_CHARS_MAX]


def _said(error: Exception) -> str:
    return f"{type(error).__name__} {error}".strip()[:_NAME_CHARS_MAX]
