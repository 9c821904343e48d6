"""The metering transport: every request to a provider is on record before its bytes leave.

It stands under every client of every provider, and a request that does not say which
attempt it is goes nowhere. First its worst case is recorded as an intent, then it is
sent, and what comes of it is recorded after. An answer that states a believable count of
tokens settles it, a refusal before any work is not billed, and everything else, be it a
time-out, a reset, a server error, an answer without usage or a caller that went away, is
indeterminate and held at its worst case. Nothing is retried and no redirect followed.
"""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Final

import httpx2
import structlog

from qcbridge.answers import bounded, read_answer
from qcbridge.meter import to_us
from qcnode.errors import (
    EgressDeniedError,
    LedgerUnavailableError,
    ProviderRefusedError,
    ProviderUnavailableError,
)
from qcnode.money import Indeterminate, NotBilled, Settled

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from qcbridge.answers import Answer
    from qcbridge.meter import Meter
    from qcbridge.providers.usage import UsageShape
    from qcnode.money import Attempt, Cost, Outcomes, TokenUsage

log = structlog.get_logger()

ATTEMPT: Final = "qcnode.attempt"
"""The request extension that holds its `Metered`."""

NOT_BILLED: Final = frozenset({301, 307, 308, 401, 402, 403, 404, 429})
"""Answers of a server that did no work: sent elsewhere, or turned away at the door."""

ANSWER_BYTES_MAX: Final = 4 * 1024 * 1024
_EVENT_STREAM: Final = "text/event-stream"
_REQUEST_IDS: Final = (
    "x-request-id",  # OpenAI, DashScope, Zhipu, Moonshot, Mistral, xAI
    "request-id",  # Anthropic
    "x-ds-trace-id",  # DeepSeek
    "apim-request-id",  # Azure
    "x-amzn-requestid",  # Bedrock
)
"""What vendors call the id of a request in their answer's head; their support asks for it."""

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

    `shape` says where its answer states what was used.
    """

    attempt: Attempt
    worst: TokenUsage
    image_sha256: str | None
    shape: UsageShape
    step: int = 1
    """Which question about the part it is; a later one is no repetition of the first."""

    @property
    def idempotency_key(self) -> str:
        """Say which question this is, the same for all attempts at it."""
        asked = self.attempt.escalation_id
        return asked if self.step == 1 else f"{asked}-{self.step}"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sent:
    """A request on its way, and what is known of it before its answer."""

    metered: Metered
    hold: Cost
    started_at: datetime
    started_s: float


class MeteringTransport(httpx2.AsyncBaseTransport):
    """Sends requests through `inner`, each between its intent and its outcome on record.

    An answer is handed on even when its outcome cannot be recorded: its tokens are
    spent already, the intent on record holds their worst case, and without the answer
    they would be spent again. The meter keeps the outcome and tries it again before the
    next request, which is not sent while the ledger does not take it.
    """

    def __init__(
        self,
        inner: httpx2.AsyncBaseTransport,
        *,
        meter: Meter,
        monotonic_s: Callable[[], float],
        forbids: Callable[[httpx2.URL], str | None] = lambda _: None,
    ) -> None:
        self._inner = inner
        self._meter = meter
        self._monotonic_s = monotonic_s
        self._forbids = forbids
        """Says why nothing may be sent to an address just now."""

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Record, send, read and record again.

        Raises `LedgerUnavailableError`, `BudgetExceededError` or `UnpricedError` before
        anything has left, as `EgressDeniedError` where nothing may be sent there;
        `ProviderUnavailableError` when no whole answer came in time,
        and `ProviderRefusedError` for an answer that is none (a redirect, too large).
        """
        metered = request.extensions.get(ATTEMPT)
        if not isinstance(metered, Metered):
            raise LedgerUnavailableError(
                f"{request.method} {request.url.host}: this request does not say which attempt"
                f" it is, so it is not sent: give it extensions[{ATTEMPT!r}]"
            )
        if words := self._forbids(request.url):
            raise EgressDeniedError(words)
        body = await request.aread()
        request.headers["Idempotency-Key"] = metered.idempotency_key
        request.headers["X-QC-Attempt"] = metered.attempt.id
        # Packed, a small answer can unpack to gigabytes.
        request.headers["Accept-Encoding"] = "identity"
        # What a server says beyond its answer would be read as the answer to the next question.
        request.headers["Connection"] = "close"
        hold = await self._meter.intend(
            metered.attempt,
            metered.worst,
            request_sha256=hashlib.sha256(body).hexdigest(),
            request_bytes=len(body),
            image_sha256=metered.image_sha256,
        )
        sent = _Sent(
            metered=metered,
            hold=hold,
            started_at=self._meter.now(),
            started_s=self._monotonic_s(),
        )
        return await self._send(request, sent)

    async def aclose(self) -> None:
        """Let go of connections; closing twice is harmless."""
        await self._inner.aclose()

    async def _send(self, request: httpx2.Request, sent: _Sent) -> httpx2.Response:
        """Send what is on record as an intent, and record what comes of it."""
        attempt, meter = sent.metered.attempt, self._meter
        try:
            async with asyncio.timeout(meter.answer_timeout_s):
                response = await self._exchange(request)
            outcome = self._outcome(sent, response)
        except _NEVER_SENT as error:
            said = _said(error)
            await meter.conclude(
                NotBilled(attempt_id=attempt.id, reason=f"not sent: {said}", http_status=None)
            )
            raise ProviderUnavailableError(
                f"{attempt.provider} at {request.url.host} cannot be reached: {said}"
            ) from error
        except TimeoutError as error:
            await meter.conclude(_unknown(sent, "no whole answer in time"))
            raise ProviderUnavailableError(
                f"{attempt.provider} at {request.url.host} did not answer"
                f" within {meter.answer_timeout_s:g} s"
            ) from error
        except (httpx2.HTTPError, httpx2.StreamError) as error:
            said = _said(error)
            await meter.conclude(_unknown(sent, said))
            raise ProviderUnavailableError(
                f"{attempt.provider} at {request.url.host} gave no whole answer: {said}"
            ) from error
        except ProviderRefusedError as error:
            await meter.conclude(_unknown(sent, str(error)))
            raise
        except BaseException as error:
            # Nobody waits for the answer any more, but the provider may have billed it.
            reason = f"nobody waited for the answer ({type(error).__name__})"
            meter.hand_in(_unknown(sent, reason))
            raise
        await meter.conclude(outcome)
        if httpx2.codes.is_redirect(response.status_code):
            raise ProviderRefusedError(
                f"{attempt.provider} at {request.url.host} sends us elsewhere"
                f" (HTTP {response.status_code}):"
                " set its base_url to the address it names; no redirect is followed"
            )
        return response

    async def _exchange(self, request: httpx2.Request) -> httpx2.Response:
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
        return httpx2.Response(
            response.status_code, headers=headers, content=bytes(body), request=request
        )

    def _outcome(self, sent: _Sent, response: httpx2.Response) -> Outcomes:
        """Say what an answer, whole and read, means for the money."""
        status, attempt = response.status_code, sent.metered.attempt
        request_id = _request_id(response.headers)
        if status >= httpx2.codes.INTERNAL_SERVER_ERROR:
            return _unknown(sent, f"HTTP {status}", request_id)
        try:
            answer = _stated(sent, response)
        except ValueError as error:
            if status in NOT_BILLED:
                return NotBilled(attempt_id=attempt.id, reason=f"HTTP {status}", http_status=status)
            if not httpx2.codes.is_success(status):
                return _unknown(sent, f"HTTP {status}", request_id)
            return _unknown(sent, f"no usage to believe: {error!s:.200}", request_id)
        # Whatever the status says: a refusal that states what it used was not for nothing.
        took_s = self._monotonic_s() - sent.started_s
        rating = self._meter.rate(
            answer.usage,
            attempt,
            started_at=sent.started_at,
            ended_at=self._meter.now(),
            took=timedelta(seconds=took_s),
        )
        if rating.cost is not None and rating.cost.pico > sent.hold.pico:
            # It is a debt, and settled as one: the provider's count is what it bills.
            log.warning("an answer cost more than was held for it", attempt=attempt.id)
        return Settled(
            attempt_id=attempt.id,
            usage=answer.usage,
            cost=rating.cost,
            started_at_us=to_us(sent.started_at),
            rated_at_us=rating.rated_at_us,
            raw_usage=answer.raw_usage,
            response_id=answer.response_id,
            model_served=answer.model_served,
            http_status=status,
            duration_ms=round(took_s * 1000),
            request_id=request_id,
            stated_cost=answer.stated_cost,
            other_cost=rating.other,
        )


def _stated(sent: _Sent, response: httpx2.Response) -> Answer:
    if response.headers.get("content-type", "").startswith(_EVENT_STREAM):
        raise ValueError("a stream of events, which nobody asked for")
    return read_answer(response.content, sent.metered.shape)


def _unknown(sent: _Sent, reason: str, request_id: str | None = None) -> Indeterminate:
    return Indeterminate(
        attempt_id=sent.metered.attempt.id, reason=reason, hold=sent.hold, request_id=request_id
    )


def _request_id(headers: httpx2.Headers) -> str | None:
    return next((bounded(headers[name]) for name in _REQUEST_IDS if headers.get(name)), None)


def _said(error: Exception) -> str:
    return bounded(f"{type(error).__name__} {error}".strip())
