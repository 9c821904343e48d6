"""An agent with a provider whose answers a test writes, and the questions put to it."""

from __future__ import annotations

import asyncio
import itertools
import json
from concurrent.futures import Future
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx2
import numpy as np
from pydantic import SecretStr

from qcbridge.agent import Agent
from qcbridge.meter import Meter
from qcbridge.prices import PriceBook
from qcbridge.providers.base import Completion, worst_usage
from qcbridge.providers.openai_chat import OpenAIChatProvider
from qcbridge.providers.usage import OPENAI_CHAT
from qcbridge.transport import MeteringTransport
from qcnode.books.ledger import SqliteLedger
from qcnode.domain import Escalation
from qcnode.health import HealthBoard
from qcnode.picture import encode_png
from tests.scripted import KEY, scripted_provider

NOW = datetime(2026, 11, 2, 9, tzinfo=UTC)
PICTURE = encode_png(np.full((300, 400, 3), 90, np.uint8))


def make_escalation(part_id="P-1", box=None):
    return Escalation(
        id=f"e-{part_id}",
        inspection_id=f"i-{part_id}",
        part_id=part_id,
        reason="between the limits",
        score=0.5,
        opened_at=NOW,
        expires_at=NOW + timedelta(hours=1),
        box=box,
    )


def answer(part_id="P-1", finding="good", **more):
    return json.dumps(
        {
            "part_id": part_id,
            "finding": finding,
            "defect_class": None,
            "location": None,
            "confidence": 0.8,
            "reason": "nothing to be seen",
        }
        | more
    )


class Clock:
    def __init__(self):
        self.at_s = 0.0

    def __call__(self):
        return self.at_s


class ListProvider:
    """A provider that gives the next of its answers, or raises it, or waits for ever."""

    name = "scripted"
    model = "scripted-provider"
    shape = OPENAI_CHAT

    def __init__(self, *answers):
        self.answers = list(answers)
        self.asked = []
        self.waits = asyncio.Event()

    def worst(self, *, text_bytes, width, height):
        return worst_usage(
            text_bytes=text_bytes, image_tokens=width * height // 784, output_tokens_max=300
        )

    async def complete(self, prompt, metered):
        self.asked.append((prompt, metered))
        given = self.answers.pop(0)
        if given is None:
            self.waits.set()
            await asyncio.Event().wait()
        if isinstance(given, Exception):
            raise given
        return Completion(text=given, usage=None)

    async def close(self):
        pass


class Notebook:
    """A ledger that takes everything down, at once."""

    def __init__(self):
        self.facts = []

    def submit(self, fact):
        self.facts.append(fact)
        done = Future()
        done.set_result(None)
        return done


def make_agent(provider, *, clock=None, meter=None, **changes):
    ids = itertools.count(1)
    health = HealthBoard(lambda: NOW)
    agent = Agent(
        **{
            "provider": provider,
            "meter": meter or make_meter(Notebook(), HealthBoard(lambda: NOW)),
            "product": "a cap",
            "defect_classes": ("scratch", "dent"),
            "image_side_max_px": 448,
            "attempts_max": 2,
            "review_timeout_s": 30.0,
            "health": health,
            "new_id": lambda: f"a-{next(ids)}",
            "monotonic_s": clock or Clock(),
            "retry_pause_s": 0.0,
        }
        | changes
    )
    return agent, health


def make_meter(ledger, health, **changes):
    return Meter(
        **{"ledger": ledger, "prices": PriceBook.load(), "health": health, "now": lambda: NOW}
        | changes
    )


async def ask(agent, part_id="P-1", picture=PICTURE, heat=None):
    return await agent.review(make_escalation(part_id), picture, heat)


@dataclass(frozen=True)
class Bridge:
    agent: Agent
    ledger: SqliteLedger
    provider: Any
    health: HealthBoard


@asynccontextmanager
async def bridge(tmp_path, *, budget=None, answer_timeout_s=10.0, agent=None, **behaviour):
    async with AsyncExitStack() as stack:
        scripted = stack.enter_context(scripted_provider(tmp_path, **behaviour))
        ledger = SqliteLedger(
            tmp_path / "ledger.db",
            now_us=lambda: int(NOW.timestamp() * 1e6),
            new_epoch=lambda: "e" * 32,
            budgets=() if budget is None else (budget,),
        )
        stack.callback(ledger.close)
        meter = make_meter(ledger, HealthBoard(lambda: NOW), answer_timeout_s=answer_timeout_s)
        transport = MeteringTransport(
            httpx2.AsyncHTTPTransport(), meter=meter, monotonic_s=lambda: 0.0
        )
        client = OpenAIChatProvider(
            name="scripted",
            model="scripted-provider",
            base_url=scripted.base_url,
            api_key=SecretStr(KEY),
            transport=transport,
            timeout_s=answer_timeout_s,
            output_tokens_max=300,
        )
        made, health = make_agent(client, meter=meter, **(agent or {}))
        stack.push_async_callback(made.close)
        yield Bridge(made, ledger, scripted, health)
