"""The metering transport against a server on loopback that misbehaves in every way we know."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import struct
from concurrent.futures import Future
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import httpx2
import pytest

from qcbridge import transport as metering
from qcbridge.meter import Meter
from qcbridge.providers.usage import OPENAI_CHAT
from qcbridge.transport import Metered, MeteringTransport
from qcnode.books import chain
from qcnode.books.ledger import Budget, SqliteLedger
from qcnode.errors import (
    BudgetExceededError,
    LedgerUnavailableError,
    ProviderRefusedError,
    ProviderUnavailableError,
    UnpricedError,
)
from qcnode.health import HealthBoard
from qcnode.money import Attempt, Indeterminate, Intent, NotBilled, Settled, TokenUsage
from tests.bridge.priced import book

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
NOW_US = int(NOW.timestamp() * 1_000_000)
WORST = TokenUsage.divide(input_tokens=2_000, output_tokens=300, image=800)
HOLD = 2_000 * 350_000 + 300 * 1_200_000
USAGE = {
    "prompt_tokens": 1_000,
    "completion_tokens": 100,
    "prompt_tokens_details": {"text_tokens": 1_000},
}
COST = 1_000 * 300_000 + 100 * 1_200_000


def metered(attempt_id: str = "a1", model: str = "scripted-provider", **changes) -> Metered:
    values = {
        "attempt": Attempt(
            id=attempt_id, escalation_id="e1", number=1, provider="scripted", model=model
        ),
        "worst": WORST,
        "image_sha256": "1" * 64,
        "shape": OPENAI_CHAT,
    }
    return Metered(**values | changes)


def http(status: int, body: bytes | dict, *headers: str, length: int | None = None) -> bytes:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = [
        f"HTTP/1.1 {status} Whatever",
        f"Content-Length: {len(raw) if length is None else length}",
        *headers,
    ]
    return "\r\n".join([*head, "", ""]).encode() + raw


def answer(**changes) -> dict:
    return {"id": "resp-1", "model": "served-1", "usage": USAGE, "choices": []} | changes


class Provider:
    """A raw server: it reads a request, and then does what the test says."""

    def __init__(self) -> None:
        self.requests: list[bytes] = []
        self.arrived = asyncio.Event()
        self.misbehave: Callable[[asyncio.StreamWriter], Awaitable[None]] | None = None
        self.port = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            head = await reader.readuntil(b"\r\n\r\n")
            length = next(
                int(line.split(b":")[1])
                for line in head.split(b"\r\n")
                if line.lower().startswith(b"content-length")
            )
            self.requests.append(head + await reader.readexactly(length))
            self.arrived.set()
            await self.misbehave(writer)
        writer.close()

    def says(self, *raw: bytes) -> None:
        async def say(writer: asyncio.StreamWriter) -> None:
            writer.writelines(raw)
            await writer.drain()

        self.misbehave = say

    def hangs(self) -> None:
        async def hang(_writer: asyncio.StreamWriter) -> None:
            await asyncio.Event().wait()

        self.misbehave = hang

    def resets_after(self, raw: bytes) -> None:
        async def reset(writer: asyncio.StreamWriter) -> None:
            writer.write(raw)
            await writer.drain()
            sock = writer.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()

        self.misbehave = reset


@pytest.fixture
async def provider() -> AsyncIterator[Provider]:
    raw = Provider()
    serving: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        serving.add(task)
        try:
            await raw.serve(reader, writer)
        except asyncio.CancelledError:
            writer.close()  # Python 3.11 reports a cancelled handler as an error.
        finally:
            serving.discard(task)

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    raw.port = server.sockets[0].getsockname()[1]
    yield raw
    server.close()
    for task in tuple(serving):
        task.cancel()
    if serving:
        await asyncio.wait(tuple(serving), timeout=5)
    await server.wait_closed()


@pytest.fixture
def health():
    return HealthBoard(now=lambda: NOW)


@pytest.fixture
def ledger(tmp_path):
    books = SqliteLedger(
        tmp_path / "ledger.db",
        now_us=lambda: NOW_US,
        new_epoch=lambda: "e" * 32,
        budgets=(Budget(name="day", currency="USD", limit=10 * HOLD),),
    )
    yield books
    books.close()


@pytest.fixture
async def ask(provider, ledger, health):
    clients = []

    async def post(carried: Metered | None = None, *, port: int | None = None, **how):
        timeout = how.pop("timeout", 5.0)
        meter = Meter(
            ledger=how.pop("ledger", ledger),
            prices=book(),
            health=health,
            now=lambda: NOW,
            **how,
        )
        transport = MeteringTransport(
            httpx2.AsyncHTTPTransport(), meter=meter, monotonic_s=lambda: 0.0
        )
        client = httpx2.AsyncClient(transport=transport, timeout=timeout, trust_env=False)
        clients.append(client)
        return await client.post(
            f"http://127.0.0.1:{port or provider.port}/v1/chat/completions",
            content=b'{"model": "m"}',
            extensions={"qcnode.attempt": carried} if carried else {},
            follow_redirects=True,
        )

    yield post
    for client in clients:
        await client.aclose()


def facts(ledger: SqliteLedger) -> list:
    return [chain.fact_of(entry) for entry in ledger.read(0, 100)]


async def test_the_intent_is_on_disk_before_the_provider_sees_a_byte(ask, provider, ledger):
    on_disk = []
    provider.says(http(200, answer()))
    say = provider.misbehave

    async def look_first(writer):
        on_disk.extend(facts(ledger))
        await say(writer)

    provider.misbehave = look_first
    await ask(metered())
    (intent,) = on_disk
    assert isinstance(intent, Intent)
    assert (intent.hold.pico, intent.request_bytes) == (HOLD, 14)


async def test_an_answer_settles_with_the_providers_own_count(ask, provider, ledger):
    provider.says(http(200, answer()))
    response = await ask(metered())
    assert response.json()["id"] == "resp-1"
    outcome = facts(ledger)[1]
    assert isinstance(outcome, Settled)
    assert outcome.cost.pico == COST
    assert json.loads(outcome.raw_usage) == USAGE
    assert (outcome.response_id, outcome.model_served) == ("resp-1", "served-1")


async def test_the_request_names_its_escalation_and_its_attempt(ask, provider):
    provider.says(http(200, answer()))
    await ask(metered("a7"))
    head = provider.requests[0].lower()
    assert b"idempotency-key: e1\r\n" in head
    assert b"x-qc-attempt: a7\r\n" in head


async def test_a_request_that_is_no_attempt_is_not_sent(ask, provider, ledger):
    with pytest.raises(LedgerUnavailableError, match="which attempt"):
        await ask(None)
    assert provider.requests == []
    assert facts(ledger) == []


async def test_a_model_without_a_price_is_not_asked(ask, provider, ledger):
    with pytest.raises(UnpricedError, match="another-model"):
        await ask(metered(model="another-model"))
    assert provider.requests == []
    assert facts(ledger) == []


async def test_what_does_not_fit_the_budget_is_not_sent(ask, provider, ledger):
    provider.says(http(200, answer()))
    huge = TokenUsage(text=20_001, output=3_000)
    with pytest.raises(BudgetExceededError):
        await ask(metered(worst=huge))
    assert provider.requests == []
    assert facts(ledger) == []


async def test_without_a_ledger_nothing_is_sent_and_the_board_says_so(
    ask, provider, ledger, health
):
    ledger.close()
    with pytest.raises(LedgerUnavailableError):
        await ask(metered())
    assert provider.requests == []
    assert [(one.component, one.ok) for one in health.all()] == [("ledger", False)]


async def test_the_same_attempt_is_not_sent_twice(ask, provider, ledger):
    provider.says(http(200, answer()))
    await ask(metered())
    with pytest.raises(ProviderRefusedError, match="a1"):
        await ask(metered())
    assert len(provider.requests) == 1
    assert len(facts(ledger)) == 2


async def test_a_refused_connection_is_not_billed(ask, ledger, free_port):
    with pytest.raises(ProviderUnavailableError, match="cannot be reached"):
        await ask(metered(), port=free_port())
    assert isinstance(facts(ledger)[1], NotBilled)
    assert ledger.totals().held_pico == {}


@pytest.mark.parametrize("status", [401, 402, 403, 404, 429])
async def test_being_turned_away_is_not_billed(ask, provider, ledger, status):
    provider.says(http(status, {"error": "no"}))
    assert (await ask(metered())).status_code == status
    outcome = facts(ledger)[1]
    assert isinstance(outcome, NotBilled)
    assert outcome.http_status == status


UNBELIEVABLE = {
    "server error": http(500, {"error": "oops"}),
    "server error with usage": http(503, answer()),
    "a request it did not like": http(400, {"error": "content filter"}),
    "prose": http(200, b"This part looks fine to me!"),
    "no usage": http(200, {"id": "resp-1"}),
    "usage is null": http(200, answer(usage=None)),
    "negative": http(200, answer(usage={"prompt_tokens": -5, "completion_tokens": 1})),
    "absurd": http(200, answer(usage={"prompt_tokens": 10**9, "completion_tokens": 1})),
    "nothing at all": http(200, answer(usage={"prompt_tokens": 0, "completion_tokens": 0})),
    "more cached than sent": http(
        200, answer(usage={"prompt_tokens": 5, "completion_tokens": 1, "cached_tokens": 6})
    ),
    "half a surrogate": http(200, b'{"usage": {"prompt_tokens": 5, "x": "\\ud800"}}'),
    "a usage block without end": http(200, answer(usage=USAGE | {"x": "y" * 10_000})),
    "a list": http(200, b"[1, 2]"),
    "deep": http(200, b"[" * 100_000),
}


@pytest.mark.parametrize("name", UNBELIEVABLE)
async def test_an_answer_without_a_believable_count_is_held_and_handed_on(
    ask, provider, ledger, name
):
    provider.says(UNBELIEVABLE[name])
    response = await ask(metered())
    assert response.status_code in (200, 400, 500, 503)
    outcome = facts(ledger)[1]
    assert isinstance(outcome, Indeterminate)
    assert ledger.totals().held_pico == {"USD": HOLD}


async def test_used_tokens_that_have_no_price_are_unpriced_and_not_free(ask, provider, ledger):
    untold = {"prompt_tokens": 10, "completion_tokens": 1}  # of text or of the picture?
    provider.says(http(200, answer(usage=untold)))
    await ask(metered())
    assert facts(ledger)[1].cost is None
    assert ledger.totals().unpriced == 1


@pytest.mark.parametrize(
    "cut",
    [
        b"",
        b"HTTP/1.1 200 OK\r\nContent-Le",
        http(200, answer(), length=4_000),
    ],
    ids=["before the answer", "in its head", "in its body"],
)
@pytest.mark.parametrize("gently", [True, False], ids=["closed", "reset"])
async def test_a_connection_that_ends_too_early_is_indeterminate(
    ask, provider, ledger, cut, gently
):
    if gently:
        provider.says(cut)
    else:
        provider.resets_after(cut)
    with pytest.raises(ProviderUnavailableError):
        await ask(metered())
    assert isinstance(facts(ledger)[1], Indeterminate)


async def test_a_provider_that_hangs_is_indeterminate_after_the_clients_patience(
    ask, provider, ledger
):
    provider.hangs()
    with pytest.raises(ProviderUnavailableError, match="ReadTimeout"):
        await ask(metered(), timeout=0.1)
    assert isinstance(facts(ledger)[1], Indeterminate)


async def test_a_byte_now_and_then_does_not_outlast_the_deadline(ask, provider, ledger):
    async def trickle(writer):
        writer.write(http(200, b"", length=1_000_000))
        while True:
            writer.write(b"x")
            await writer.drain()
            await asyncio.sleep(0.01)

    provider.misbehave = trickle
    with pytest.raises(ProviderUnavailableError, match="did not answer"):
        await ask(metered(), answer_timeout_s=0.2)
    assert isinstance(facts(ledger)[1], Indeterminate)


async def test_an_answer_without_end_is_cut_off_and_held(ask, provider, ledger, monkeypatch):
    monkeypatch.setattr(metering, "ANSWER_BYTES_MAX", 1_000)
    provider.says(http(200, b"x" * 5_000))
    with pytest.raises(ProviderRefusedError, match="more than 1000 bytes"):
        await ask(metered())
    assert isinstance(facts(ledger)[1], Indeterminate)


async def test_a_second_answer_on_the_same_wire_counts_once(ask, provider, ledger):
    provider.says(http(200, answer()), http(200, answer(id="resp-2")))
    assert (await ask(metered())).json()["id"] == "resp-1"
    assert [type(fact) for fact in facts(ledger)] == [Intent, Settled]


async def test_a_redirect_is_not_followed_even_by_a_client_that_would(ask, provider, ledger):
    provider.says(http(307, b"", f"Location: http://127.0.0.1:{provider.port}/elsewhere"))
    with pytest.raises(ProviderRefusedError, match="base_url"):
        await ask(metered())
    assert len(provider.requests) == 1
    assert isinstance(facts(ledger)[1], NotBilled)


async def test_a_packed_answer_is_unpacked_once(ask, provider, ledger):
    import gzip  # noqa: PLC0415  # here alone

    packed = gzip.compress(json.dumps(answer()).encode())
    provider.says(http(200, packed, "Content-Encoding: gzip"))
    assert (await ask(metered())).json()["id"] == "resp-1"
    assert isinstance(facts(ledger)[1], Settled)


async def test_a_caller_that_goes_away_leaves_the_attempt_held(ask, provider, ledger):
    provider.hangs()
    asking = asyncio.create_task(ask(metered()))
    await asyncio.wait_for(provider.arrived.wait(), 10)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    ledger.close()  # Writes what waits; the outcome needs nobody to wait for it.
    assert ledger.totals().indeterminate == 1
    assert ledger.totals().open == 0


class SlowLedger:
    """A ledger whose disk answers when the test says so."""

    def __init__(self, ledger: SqliteLedger) -> None:
        self._ledger = ledger
        self.waiting: list[tuple[object, Future]] = []
        self.asked = asyncio.Event()
        self.slow = True

    def submit(self, fact) -> Future:
        if not self.slow:
            return self._ledger.submit(fact)
        future: Future = Future()
        future.set_running_or_notify_cancel()
        self.waiting.append((fact, future))
        self.asked.set()
        return future

    def answer(self) -> None:
        self.slow = False
        for fact, future in self.waiting:
            future.set_result(self._ledger.submit(fact).result(10))


async def test_a_caller_that_goes_away_before_the_intent_is_durable_holds_nothing(
    ask, provider, ledger
):
    slow = SlowLedger(ledger)
    asking = asyncio.create_task(ask(metered(), ledger=slow))
    await asyncio.wait_for(slow.asked.wait(), 10)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    slow.answer()
    ledger.close()
    totals = ledger.totals()
    assert (totals.attempts, totals.not_billed, totals.held_pico) == (1, 1, {})
    assert provider.requests == []


async def test_a_disk_that_does_not_answer_stops_the_request_and_not_the_node(
    ask, provider, ledger
):
    with pytest.raises(LedgerUnavailableError, match="took no entry"):
        await ask(metered(), ledger=SlowLedger(ledger), record_timeout_s=0.05)
    assert provider.requests == []


class ForgetfulLedger:
    """A ledger that takes intents and, as long as it is told to, no outcomes."""

    def __init__(self, ledger: SqliteLedger) -> None:
        self._ledger = ledger
        self.forgets = True

    def submit(self, fact) -> Future:
        if isinstance(fact, Intent) or not self.forgets:
            return self._ledger.submit(fact)
        failed: Future = Future()
        failed.set_exception(LedgerUnavailableError("the disk is full"))
        return failed


async def test_an_answer_whose_outcome_is_not_recorded_is_handed_on_and_recorded_later(
    provider, ledger, health
):
    provider.says(http(200, answer()))
    forgetful = ForgetfulLedger(ledger)
    meter = Meter(ledger=forgetful, prices=book(), health=health, now=lambda: NOW)
    transport = MeteringTransport(httpx2.AsyncHTTPTransport(), meter=meter, monotonic_s=lambda: 0.0)
    async with httpx2.AsyncClient(transport=transport, trust_env=False) as client:

        async def post(attempt_id: str) -> httpx2.Response:
            return await client.post(
                f"http://127.0.0.1:{provider.port}/",
                content=b"{}",
                extensions={"qcnode.attempt": metered(attempt_id)},
            )

        assert (await post("a1")).json()["id"] == "resp-1"
        assert ledger.totals().held_pico == {"USD": HOLD}
        assert [(one.component, one.ok) for one in health.all()] == [("ledger", False)]
        forgetful.forgets = False
        await post("a2")
    assert (ledger.totals().settled, ledger.totals().open) == (2, 0)
    assert [(one.component, one.ok) for one in health.all()] == [("ledger", True)]
