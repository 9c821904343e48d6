"""Agents of pydantic-ai on the metering transport; skipped where the extra is not installed."""

import json

import httpx2
import pytest
from pydantic import SecretStr

from qcbridge.meter import Meter
from qcbridge.pydantic_model import Steps, cause, metered_model
from qcbridge.transport import MeteringTransport
from qcnode.books.budgets import Budget
from qcnode.books.chain import fact_of
from qcnode.books.ledger import SqliteLedger
from qcnode.errors import BudgetExceededError, ProviderUnavailableError
from qcnode.health import HealthBoard
from qcnode.money import Attempt, Indeterminate, Intent, Settled
from tests.bridge.metering import NOW, USAGE
from tests.bridge.priced import book
from tests.loopback import loopback
from tests.scripted import KEY

pydantic_ai = pytest.importorskip("pydantic_ai", reason="needs the extra `agents`")


def answering(seen):
    """Call a tool first, and say the answer once its result is there."""
    if any(message["role"] == "tool" for message in seen.body["messages"]):
        message, finish = {"role": "assistant", "content": "a dent"}, "stop"
    else:
        call = {"id": "c-1", "type": "function", "function": {"name": "zoom", "arguments": "{}"}}
        message = {"role": "assistant", "content": None, "tool_calls": [call]}
        finish = "tool_calls"
    choice = {"index": 0, "message": message, "finish_reason": finish}
    return 200, {
        "id": "r-1",
        "object": "chat.completion",
        "created": 1,
        "model": "m-1",
        "choices": [choice],
        "usage": USAGE,
    }


class Rig:
    def __init__(self, folder, base_url, *, budgets=()):
        self.ledger = SqliteLedger(
            folder / "ledger.db",
            now_us=lambda: int(NOW.timestamp() * 1_000_000),
            new_epoch=lambda: "e" * 32,
            budgets=budgets,
        )
        meter = Meter(
            ledger=self.ledger,
            prices=book(),
            health=HealthBoard(lambda: NOW),
            now=lambda: NOW,
            answer_timeout_s=10.0,
        )
        self.steps = Steps(
            MeteringTransport(httpx2.AsyncHTTPTransport(), meter=meter, monotonic_s=lambda: 0.0),
            meter=meter,
            attempt=lambda number: Attempt(
                id=f"a{number}",
                escalation_id="e-1",
                number=number,
                provider="scripted",
                model="scripted-provider",
            ),
            output_tokens_max=300,
        )
        model = metered_model(
            "scripted-provider",
            base_url=f"{base_url}/v1",
            api_key=SecretStr(KEY),
            steps=self.steps,
            timeout_s=10.0,
        )
        self.agent = pydantic_ai.Agent(model)
        self.agent.tool_plain(zoom)

    def facts(self, kind):
        facts = [fact_of(entry) for entry in self.ledger.read(0, 100)]
        return [fact for fact in facts if isinstance(fact, kind)]

    async def close(self):
        await self.steps.aclose()
        self.ledger.close()


def zoom() -> str:
    """Look closer."""
    return "a bright line"


async def test_every_step_of_a_run_is_an_attempt_of_its_own(tmp_path):
    with loopback(answering) as server:
        rig = Rig(tmp_path, server.base_url)
        result = await rig.agent.run("What is wrong with this part?")
        intents, ends = rig.facts(Intent), rig.facts(Settled)
        await rig.close()

    assert result.output == "a dent"
    assert [seen.body["max_completion_tokens"] for seen in server.asked] == [300, 300]
    assert [intent.attempt.number for intent in intents] == [1, 2]
    assert [end.usage.input_tokens for end in ends] == [USAGE["prompt_tokens"]] * 2
    for intent, seen in zip(intents, server.asked, strict=True):
        assert seen.headers["x-qc-attempt"] == intent.attempt.id
        assert intent.worst.text >= len(json.dumps(seen.body["messages"]))


async def test_the_client_repeats_nothing(tmp_path):
    with loopback(lambda _: (500, {"error": {"message": "no"}})) as server:
        rig = Rig(tmp_path, server.base_url)
        with pytest.raises(pydantic_ai.exceptions.ModelHTTPError):
            await rig.agent.run("What is wrong with this part?")
        ends = rig.facts(Indeterminate)
        await rig.close()

    assert len(server.asked) == len(ends) == 1


async def test_a_run_ends_where_the_budget_does(tmp_path):
    one_call = Budget(name="calls", limit=1, unit="calls")
    with loopback(answering) as server:
        rig = Rig(tmp_path, server.base_url, budgets=(one_call,))
        with pytest.raises(Exception) as raised:  # noqa: PT011  # the library's own, over ours
            await rig.agent.run("What is wrong with this part?")
        await rig.close()

    assert isinstance(cause(raised.value), BudgetExceededError)
    assert len(server.asked) == 1


async def test_nobody_there_is_said_in_our_words(tmp_path):
    with loopback(answering) as server:
        gone = server.base_url
    rig = Rig(tmp_path, gone)
    with pytest.raises(Exception) as raised:  # noqa: PT011  # the library's own, over ours
        await rig.agent.run("What is wrong with this part?")
    await rig.close()

    assert isinstance(cause(raised.value), ProviderUnavailableError)
