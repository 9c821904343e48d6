"""What every provider keeps to, whatever its protocol: recorded answers, and the script's."""

import base64
import json
from typing import ClassVar

import httpx2
import numpy as np
import pytest
from pydantic import SecretStr

from qcbridge.meter import Meter
from qcbridge.prompts import Prompt, ruling_schema
from qcbridge.providers.anthropic import AnthropicProvider
from qcbridge.providers.gemini import GeminiProvider
from qcbridge.providers.openai_chat import OpenAIChatProvider
from qcbridge.providers.protocols import PROTOCOLS
from qcbridge.transport import Metered, MeteringTransport
from qcnode.books.chain import fact_of
from qcnode.books.ledger import SqliteLedger
from qcnode.errors import ProviderRefusedError, ProviderUnavailableError
from qcnode.health import HealthBoard
from qcnode.money import Attempt, Indeterminate, NotBilled, Settled, TokenUsage
from qcnode.picture import encode_jpeg
from tests.bridge.metering import NOW
from tests.bridge.priced import book, prices
from tests.loopback import loopback
from tests.scripted import KEY, scripted_provider

WORST = TokenUsage(text=4_000, image=1_000, output=300)
JPEG = encode_jpeg(np.full((60, 90, 3), 90, np.uint8))
PROMPT = Prompt(
    system="You are an inspector.",
    user='{"part_id": "P-1"}',
    jpeg=JPEG,
    schema=ruling_schema(("dent",)),
)
MODEL = "scripted-provider"


def openai(said="the answer", *, finish="stop", refusal=None, usage=None, **details):
    """A chat completion as OpenAI documents it: cached and image tokens within the prompt."""
    message = {"role": "assistant", "content": said, "refusal": refusal}
    counted = {
        "prompt_tokens": 1_000,
        "completion_tokens": 120,
        "total_tokens": 1_120,
        "prompt_tokens_details": {"cached_tokens": 256, "text_tokens": 400, "image_tokens": 600}
        | details,
        "completion_tokens_details": {"reasoning_tokens": 70},
    }
    return {
        "id": "r-1",
        "object": "chat.completion",
        "model": "served-1",
        "choices": [{"index": 0, "message": message, "finish_reason": finish}],
        "usage": counted if usage is None else usage,
    }


def anthropic(said="the answer", *, finish="end_turn", usage=None):
    """A message as Anthropic documents it: cached tokens beside the input, thinking within."""
    counted = {
        "input_tokens": 744,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 256,
        "output_tokens": 120,
        "output_tokens_details": {"thinking_tokens": 70},
    }
    return {
        "id": "r-1",
        "type": "message",
        "role": "assistant",
        "model": "served-1",
        "content": [
            {"type": "thinking", "thinking": "hm", "signature": "s"},
            *([] if said is None else [{"type": "text", "text": said}]),
        ],
        "stop_reason": finish,
        "usage": counted if usage is None else usage,
    }


def gemini(said="the answer", *, finish="STOP", usage=None, **more):
    """A generated content as Google documents it: thoughts beside the answer, zeros left out."""
    counted = {
        "promptTokenCount": 1_000,
        "cachedContentTokenCount": 256,
        "candidatesTokenCount": 50,
        "thoughtsTokenCount": 70,
        "totalTokenCount": 1_120,
        "promptTokensDetails": [
            {"modality": "TEXT", "tokenCount": 400},
            {"modality": "IMAGE", "tokenCount": 600},
        ],
    }
    parts = [{"text": "hm", "thought": True}, *([] if said is None else [{"text": said}])]
    return {
        "candidates": [
            {"index": 0, "content": {"role": "model", "parts": parts}, "finishReason": finish}
        ],
        "usageMetadata": counted if usage is None else usage,
        "modelVersion": "served-1",
        "responseId": "r-1",
    } | more


class OpenAI:
    """How the protocol looks on the wire."""

    provider = OpenAIChatProvider
    path = "/v1/chat/completions"
    key = ("authorization", f"Bearer {KEY}")
    answer = staticmethod(openai)
    # 256 of 1,000 were cached, and so may up to 256 of the 600 of the picture be.
    usage = TokenUsage(text=144, image=344, unknown=256, cache_read=256, output=50, reasoning=70)
    cut = openai("half a", finish="length")
    refused = openai(None, refusal="I will not look at this")
    filtered = openai("", finish="content_filter")
    without = openai() | {"usage": None}
    negative = openai(usage={"prompt_tokens": -5, "completion_tokens": 1})

    @staticmethod
    def sent(body):
        text, image = body["messages"][1]["content"]
        schema = body["response_format"]["json_schema"]["schema"]
        return text["text"], image["image_url"]["url"].partition(",")[2], body["max_tokens"], schema


class Anthropic:
    provider = AnthropicProvider
    path = "/v1/messages"
    key = ("x-api-key", KEY)
    answer = staticmethod(anthropic)
    usage = TokenUsage(unknown=744, cache_read=256, output=50, reasoning=70)
    cut = anthropic("half a", finish="max_tokens")
    refused = anthropic(None, finish="refusal")
    filtered = anthropic("no", finish="refusal")
    without: ClassVar = {name: value for name, value in anthropic().items() if name != "usage"}
    negative = anthropic(usage={"input_tokens": -5, "output_tokens": 1})

    @staticmethod
    def sent(body):
        image, text = body["messages"][0]["content"]
        schema = body["output_config"]["format"]["schema"]
        return text["text"], image["source"]["data"], body["max_tokens"], schema


class Gemini:
    provider = GeminiProvider
    path = f"/v1beta/models/{MODEL}:generateContent"
    key = ("x-goog-api-key", KEY)
    answer = staticmethod(gemini)
    usage = TokenUsage(text=144, image=344, unknown=256, cache_read=256, output=50, reasoning=70)
    cut = gemini("half a", finish="MAX_TOKENS")
    # Even what was blocked at the door says what was read.
    refused: ClassVar = {
        "promptFeedback": {"blockReason": "SAFETY"},
        "usageMetadata": {"promptTokenCount": 1_000, "totalTokenCount": 1_000},
    }
    filtered = gemini(None, finish="SAFETY")
    without: ClassVar = {name: value for name, value in gemini().items() if name != "usageMetadata"}
    negative = gemini(usage={"promptTokenCount": -5, "totalTokenCount": 1})

    @staticmethod
    def sent(body):
        text, image = body["contents"][0]["parts"]
        wanted = body["generationConfig"]
        return (
            text["text"],
            image["inlineData"]["data"],
            wanted["maxOutputTokens"],
            wanted["responseJsonSchema"],
        )


WIRES = {"openai": OpenAI, "anthropic": Anthropic, "gemini": Gemini}


@pytest.fixture(params=WIRES)
def wire(request):
    return WIRES[request.param]


class Bench:
    """A provider over the metering transport and a ledger on disk."""

    def __init__(self, wire, folder, base_url, **changes):
        self.ledger = SqliteLedger(
            folder / "ledger.db", now_us=lambda: 1_793_000_000_000_000, new_epoch=lambda: "e" * 32
        )
        meter = Meter(
            ledger=self.ledger,
            prices=book(prices("some", MODEL)),
            health=HealthBoard(lambda: NOW),
            now=lambda: NOW,
            answer_timeout_s=10.0,
        )
        transport = MeteringTransport(
            httpx2.AsyncHTTPTransport(), meter=meter, monotonic_s=lambda: 0.0
        )
        self.provider = wire.provider(
            **{
                "name": "some",
                "model": MODEL,
                "base_url": base_url,
                "api_key": SecretStr(KEY),
                "transport": transport,
                "timeout_s": 10.0,
                "output_tokens_max": 300,
            }
            | changes
        )

    async def ask(self, prompt=PROMPT, attempt_id="a-1"):
        attempt = Attempt(
            id=attempt_id, escalation_id="e-1", number=1, provider="some", model=MODEL
        )
        metered = Metered(
            attempt=attempt, worst=WORST, image_sha256=None, shape=self.provider.shape
        )
        return await self.provider.complete(prompt, metered)

    def outcome(self):
        return fact_of(self.ledger.read(0, 100)[-1])

    async def close(self):
        await self.provider.close()
        await self.provider.close()
        self.ledger.close()


@pytest.fixture
def asking(wire, tmp_path):
    """Ask a real server that gives one recorded answer, and return all that came of it."""

    async def asking(answer, *, status=200, prompt=PROMPT, **changes):
        with loopback(lambda _: (status, answer)) as server:
            bench = Bench(wire, tmp_path, server.base_url, **changes)
            try:
                completion, error = await bench.ask(prompt), None
            except (ProviderRefusedError, ProviderUnavailableError) as raised:
                completion, error = None, raised
            outcome = bench.outcome()
            await bench.close()
        (seen,) = server.asked  # whatever came of it, it was not asked again
        return seen, completion, error, outcome

    return asking


def test_every_protocol_that_ships_is_held_to_this():
    assert {name: wire.provider for name, wire in WIRES.items()} == PROTOCOLS


async def test_a_question_goes_out_as_the_vendor_documents_it(wire, asking):
    seen, completion, error, outcome = await asking(wire.answer())

    assert error is None
    text, picture, most, schema = wire.sent(seen.body)
    name, value = wire.key
    assert (seen.path, seen.headers[name]) == (wire.path, value)
    assert (text, base64.b64decode(picture), most) == (PROMPT.user, JPEG, 300)
    assert schema == PROMPT.schema
    assert PROMPT.system in json.dumps(seen.body)
    assert KEY not in seen.path + json.dumps(seen.body)
    assert completion.text == "the answer"
    assert completion.usage == wire.usage == outcome.usage
    assert (outcome.response_id, outcome.model_served) == ("r-1", "served-1")


async def test_tokens_are_counted_into_classes_that_add_up_to_the_vendors_total(wire, asking):
    _, _, _, outcome = await asking(wire.answer())

    assert isinstance(outcome, Settled)
    assert (outcome.usage.input_tokens, outcome.usage.output_tokens) == (1_000, 120)
    assert json.loads(outcome.raw_usage)


@pytest.mark.parametrize(
    ("kind", "words"),
    [("cut", "output_tokens_max"), ("refused", "will not say"), ("filtered", "will not say")],
)
async def test_an_answer_cut_off_or_refused_is_no_ruling_and_is_paid_all_the_same(
    wire, asking, kind, words
):
    _, _, error, outcome = await asking(getattr(wire, kind))

    assert isinstance(error, ProviderRefusedError)
    assert words in str(error)
    assert isinstance(outcome, Settled)
    assert outcome.usage.input_tokens == 1_000


@pytest.mark.parametrize("kind", ["without", "negative"])
async def test_words_count_where_usage_is_absent_or_absurd_and_the_hold_stays(wire, asking, kind):
    _, completion, _, outcome = await asking(getattr(wire, kind))

    assert (completion.text, completion.usage) == ("the answer", None)
    assert isinstance(outcome, Indeterminate)
    assert outcome.hold.pico > 0


@pytest.mark.parametrize(
    ("status", "error", "ends_as"),
    [
        (400, ProviderRefusedError, Indeterminate),
        (401, ProviderRefusedError, NotBilled),
        (429, ProviderUnavailableError, NotBilled),
        (500, ProviderUnavailableError, Indeterminate),
        (529, ProviderUnavailableError, Indeterminate),
    ],
)
async def test_a_status_says_whether_asking_again_may_help(asking, status, error, ends_as):
    body = {"error": {"message": f"bad key {KEY}\nsecond line"}}
    _, _, raised, outcome = await asking(body, status=status)

    assert isinstance(raised, error)
    assert isinstance(outcome, ends_as)
    assert "\n" not in str(raised)
    assert KEY not in str(raised)


@pytest.mark.parametrize(
    "answer", [b"<html>a captive portal</html>", [], {"nothing": "of it"}, b"[" * 100_000]
)
async def test_what_is_no_answer_of_the_protocol_is_refused(asking, answer):
    _, _, error, outcome = await asking(answer)

    assert isinstance(error, ProviderRefusedError)
    assert "base_url" in str(error)
    assert isinstance(outcome, Indeterminate)


async def test_an_answer_without_words_is_refused(wire, asking):
    _, _, error, _ = await asking(wire.answer(None))

    assert isinstance(error, ProviderRefusedError)
    assert "without words" in str(error)


async def test_a_question_without_a_picture_sends_none(wire, asking):
    prompt = Prompt(system="s", user='{"question_id": "q"}', jpeg=b"", schema=PROMPT.schema)
    seen, completion, _, _ = await asking(wire.answer(), prompt=prompt)

    assert completion.text == "the answer"
    assert not {"image_url", "image", "inlineData"} & set(_names(seen.body))


@pytest.mark.parametrize("answer_format", ["json_object", "text"])
async def test_an_endpoint_that_knows_no_schema_is_sent_none(wire, asking, answer_format):
    seen, completion, _, _ = await asking(wire.answer(), answer_format=answer_format)

    assert completion.text == "the answer"
    assert "defect_class" not in json.dumps(seen.body)
    if wire is not Anthropic:
        assert (
            "json_object" in json.dumps(seen.body) or "responseMimeType" in json.dumps(seen.body)
        ) == (answer_format == "json_object")


def _names(value):
    if isinstance(value, dict):
        for name, inner in value.items():
            yield name
            yield from _names(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _names(inner)


async def test_the_scripted_provider_speaks_every_protocol(wire, tmp_path):
    with scripted_provider(tmp_path) as script:
        script.parts(P_1="dent")
        bench = Bench(wire, tmp_path, script.base_url)
        first = await bench.ask()
        second = await bench.ask(attempt_id="a-2")
        outcome = bench.outcome()
        await bench.close()
        rows = script.requests()

    ruling = json.loads(first.text)
    assert (ruling["finding"], ruling["defect_class"]) == ("defective", "dent")
    assert first.usage.input_tokens == second.usage.input_tokens > first.usage.output_tokens > 0
    assert isinstance(outcome, Settled)
    # Both books have the same words on it.
    assert [row["attempt"] for row in rows] == ["a-1", "a-2"]
    assert json.loads(outcome.raw_usage) == rows[-1]["usage"]


@pytest.mark.parametrize(
    ("trouble", "error", "ends_as"),
    [
        ({"error_rate": 1.0}, ProviderUnavailableError, Indeterminate),
        ({"limit_rate": 1.0}, ProviderUnavailableError, NotBilled),
        ({"reset_rate": 1.0}, ProviderUnavailableError, Indeterminate),
        ({"api_key": "another"}, ProviderRefusedError, NotBilled),
        ({"model": "another"}, ProviderRefusedError, Indeterminate),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
async def test_the_scripts_faults_are_the_ones_a_provider_has(
    wire, tmp_path, trouble, error, ends_as
):
    with scripted_provider(tmp_path, **trouble) as script:
        bench = Bench(wire, tmp_path, script.base_url)
        with pytest.raises(error):
            await bench.ask()
        outcome = bench.outcome()
        await bench.close()

    assert isinstance(outcome, ends_as)
