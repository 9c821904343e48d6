"""A meter, its transport and its ledger without a network, for tests of what is recorded."""

import itertools
import json
from concurrent.futures import Future
from datetime import UTC, datetime, timedelta

import httpx2
import numpy as np

from qcbridge.agent import Agent
from qcbridge.meter import Meter
from qcbridge.providers.openai_chat import OpenAIChatProvider
from qcbridge.providers.usage import OPENAI_CHAT
from qcbridge.transport import ATTEMPT, Metered, MeteringTransport
from qcnode.books import chain
from qcnode.books.ledger import SqliteLedger
from qcnode.domain import Escalation
from qcnode.health import HealthBoard
from qcnode.money import Attempt, CostCentre, Outcome, TokenUsage
from qcnode.picture import encode_png
from tests.bridge.priced import book

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
WORST = TokenUsage(text=1_200, image=800, output=300)
HOLD = 2_000 * 350_000 + 300 * 1_200_000
USAGE = {
    "prompt_tokens": 1_000,
    "completion_tokens": 100,
    "total_tokens": 1_100,
    "prompt_tokens_details": {"text_tokens": 400, "image_tokens": 600},
}
COST = 400 * 300_000 + 600 * 350_000 + 100 * 1_200_000


PATIENCE_S = 20
OUTCOME = Outcome(
    escalation_id="e-P-1",
    centre=CostCentre(line="l1"),
    ruled="GOOD",
    truth="DEFECTIVE",
    node_alone="DIVERT",
    source="operator",
)
PICTURE = encode_png(np.full((300, 400, 3), 90, np.uint8))
OPINION = json.dumps(
    {
        "part_id": "P-1",
        "finding": "good",
        "defect_class": None,
        "location": None,
        "confidence": 0.8,
        "reason": "nothing to be seen",
    }
)


def escalation(part_id="P-1"):
    return Escalation(
        id=f"e-{part_id}",
        inspection_id=f"i-{part_id}",
        part_id=part_id,
        reason="between the limits",
        score=0.5,
        opened_at=NOW,
        expires_at=NOW + timedelta(hours=1),
    )


class Clock:
    """A wall clock and a monotonic one, which agree until one of them is set."""

    def __init__(self, at=NOW):
        self.at = at
        self.s = 0.0

    def now(self):
        return self.at

    def monotonic_s(self):
        return self.s

    def pass_time(self, seconds):
        self.at += timedelta(seconds=seconds)
        self.s += seconds

    def set_wall(self, by_s):
        self.at += timedelta(seconds=by_s)


class Endpoint:
    """Stands for the provider's server: it keeps what it was asked, and does as the test says.

    `answer` is a status, bytes, a usage block, a response, an error to raise, or a coroutine
    function of the request that returns one of these.
    """

    def __init__(self, answer=None):
        self.answer = USAGE if answer is None else answer
        self.asked = []

    async def __call__(self, request):
        self.asked.append(request)
        answer = self.answer
        if callable(answer):
            answer = await answer(request)
        if isinstance(answer, BaseException):
            raise answer
        if isinstance(answer, httpx2.Response):
            return answer
        if isinstance(answer, int):
            return httpx2.Response(answer, json={"error": "no"})
        if isinstance(answer, bytes):
            return httpx2.Response(200, content=answer)
        return httpx2.Response(200, json={"id": "r-1", "model": "m-1", "usage": answer})


def attempt(attempt_id="a1", **changes):
    return Attempt(
        **{
            "id": attempt_id,
            "escalation_id": "e1",
            "number": 1,
            "provider": "scripted",
            "model": "scripted-provider",
        }
        | changes
    )


class Rig:
    """One ledger on disk, one meter, one transport, one client."""

    def __init__(self, folder, *, answer=None, prices=None, budgets=(), clock=None, **meter):
        self.clock = clock or Clock()
        self.endpoint = Endpoint(answer)
        self.ids = itertools.count(1)
        folder.mkdir(exist_ok=True)
        self.path = folder / "ledger.db"
        self.ledger = SqliteLedger(
            self.path,
            now_us=lambda: int(self.clock.at.timestamp() * 1_000_000),
            new_epoch=lambda: "e" * 32,
            budgets=budgets,
        )
        self.faulty = FaultyLedger(self.ledger)
        self.meter = Meter(
            ledger=self.faulty,
            prices=prices or book(),
            health=HealthBoard(self.clock.now),
            now=self.clock.now,
            **meter,
        )
        self.transport = MeteringTransport(
            httpx2.MockTransport(self.endpoint),
            meter=self.meter,
            monotonic_s=self.clock.monotonic_s,
        )
        self.client = httpx2.AsyncClient(transport=self.transport, trust_env=False)

    async def ask(self, attempt_id="a1", *, worst=WORST, shape=OPENAI_CHAT, body=b"{}", **changes):
        return await self.client.post(
            "https://provider.example/v1/chat/completions",
            content=body,
            extensions={
                ATTEMPT: Metered(
                    attempt=attempt(attempt_id, **changes),
                    worst=worst,
                    image_sha256=None,
                    shape=shape,
                )
            },
        )

    def agent(self, **changes):
        """Return an agent that asks the endpoint through the transport."""
        provider = OpenAIChatProvider(
            name=changes.pop("provider_name", "scripted"),
            model="scripted-provider",
            base_url="https://provider.example",
            api_key=None,
            transport=self.transport,
            timeout_s=5.0,
            output_tokens_max=300,
        )
        return Agent(
            **{
                "provider": provider,
                "meter": self.meter,
                "product": "a cap",
                "defect_classes": ("scratch", "dent"),
                "image_side_max_px": 448,
                "attempts_max": 2,
                "review_timeout_s": 30.0,
                "health": HealthBoard(self.clock.now),
                "new_id": lambda: f"a{next(self.ids)}",
                "monotonic_s": self.clock.monotonic_s,
                "retry_pause_s": 0.0,
            }
            | changes
        )

    def settle(self):
        """Wait until all that was handed in is on record, and what followed from it too."""
        for _ in range(3):
            self.ledger.submit(OUTCOME).result(PATIENCE_S)

    def facts(self):
        """Return what is on record, but for what `settle` put there."""
        facts = [chain.fact_of(entry) for entry in self.ledger.read(0, 10_000)]
        return [fact for fact in facts if fact != OUTCOME]

    def outcome(self):
        return self.facts()[-1]

    async def close(self):
        await self.client.aclose()
        self.ledger.close()


class FaultyLedger:
    """The ledger, with a switch for each fact that is submitted: taken, or lost for now."""

    def __init__(self, ledger):
        self._ledger = ledger
        self.fails = lambda _fact: None
        """Says which error a fact meets, if any."""

    def submit(self, fact):
        error = self.fails(fact)
        if error is None:
            return self._ledger.submit(fact)
        failed = Future()
        failed.set_exception(error)
        return failed


def response(usage=None, *, status=200, headers=None, said=OPINION, finish="stop", **more):
    """Return a chat completion; `said` is what the model answered."""
    choice = {"index": 0, "message": {"content": said}, "finish_reason": finish}
    answer = {"id": "r-1", "model": "m-1", "choices": [choice]}
    answer |= {"usage": USAGE if usage is None else usage}
    return httpx2.Response(status, headers=headers, content=json.dumps(answer | more).encode())
