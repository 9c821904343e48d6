import base64
import json

import httpx2
import pytest
from pydantic import SecretStr

from qcbridge.prompts import Prompt, ruling_schema
from qcbridge.providers.openai_chat import OpenAIChatProvider, completions_url
from qcbridge.providers.usage import OPENAI_CHAT
from qcbridge.transport import ATTEMPT, Metered
from qcnode.errors import ProviderRefusedError, ProviderUnavailableError, SettingsError
from qcnode.money import Attempt, TokenUsage

KEY = "sk-very-secret"
PROMPT = Prompt(
    system="You are an inspector.",
    user='{"part_id": "P-1"}',
    jpeg=b"\xff\xd8jpeg",
    schema=ruling_schema(("scratch",)),
)
METERED = Metered(
    attempt=Attempt(id="a-1", escalation_id="e-1", number=1, provider="some", model="vlm-1"),
    worst=TokenUsage(text=1000, output=300),
    image_sha256="00",
    shape=OPENAI_CHAT,
)
USAGE = {"prompt_tokens": 900, "completion_tokens": 50, "total_tokens": 950}


def completion(**changes):
    message = {"role": "assistant", "content": "the answer"}
    return {
        "id": "r-1",
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": USAGE,
    } | changes


class Endpoint:
    """Stands for the provider's server, and keeps what it was asked."""

    def __init__(self, answer):
        self.answer = answer
        self.asked = []

    async def __call__(self, request):
        self.asked.append(request)
        if isinstance(self.answer, Exception):
            raise self.answer
        if isinstance(self.answer, httpx2.Response):
            return self.answer
        return httpx2.Response(200, json=self.answer)


async def ask(answer, *, base_url="https://api.example.com/v1"):
    endpoint = Endpoint(answer)
    provider = OpenAIChatProvider(
        name="some",
        model="vlm-1",
        base_url=base_url,
        api_key=SecretStr(KEY),
        transport=httpx2.MockTransport(endpoint),
        timeout_s=5,
        output_tokens_max=300,
    )
    try:
        return endpoint, await provider.complete(PROMPT, METERED)
    finally:
        await provider.close()
        await provider.close()
        assert len(endpoint.asked) == 1  # whatever came of it, it was not asked again


async def test_one_question_goes_out_as_one_chat_completion():
    endpoint, answer = await ask(completion())

    (request,) = endpoint.asked
    sent = json.loads(request.content)
    assert str(request.url) == "https://api.example.com/v1/chat/completions"
    assert request.headers["Authorization"] == f"Bearer {KEY}"
    assert request.extensions[ATTEMPT] is METERED
    assert sent["model"] == "vlm-1"
    assert sent["max_tokens"] == 300
    assert sent["response_format"]["json_schema"]["strict"] is True
    assert sent["response_format"]["json_schema"]["schema"] == PROMPT.schema
    system, user = sent["messages"]
    assert system == {"role": "system", "content": PROMPT.system}
    text, image = user["content"]
    assert text["text"] == PROMPT.user
    kind, _, data = image["image_url"]["url"].partition(",")
    assert (kind, base64.b64decode(data)) == ("data:image/jpeg;base64", PROMPT.jpeg)
    assert answer.text == "the answer"
    assert sent["stream"] is False
    assert answer.usage == TokenUsage(unknown=900, output=50)  # A picture was sent.


@pytest.mark.parametrize(
    ("base_url", "url"),
    [
        ("https://api.example.com", "https://api.example.com/v1/chat/completions"),
        ("https://api.example.com/", "https://api.example.com/v1/chat/completions"),
        ("https://api.example.com/v1/", "https://api.example.com/v1/chat/completions"),
        ("https://x.example/paas/v4", "https://x.example/paas/v4/chat/completions"),
        ("https://x.example/v1/chat/completions", "https://x.example/v1/chat/completions"),
        ("http://127.0.0.1:8090", "http://127.0.0.1:8090/v1/chat/completions"),
        ("http://localhost:8090/v1", "http://localhost:8090/v1/chat/completions"),
        ("http://[::1]:8090/v1", "http://[::1]:8090/v1/chat/completions"),
    ],
)
def test_a_base_address_may_stop_before_or_after_its_version(base_url, url):
    assert completions_url(base_url) == url


@pytest.mark.parametrize(
    "base_url",
    [
        "http://api.example.com/v1",
        "http://127.0.0.1.example.com/v1",
        "http://localhost.example.com/v1",
        "http://10.0.0.7/v1",
        "ftp://api.example.com",
        "api.example.com/v1",
        "https://",
        "",
        "https://me:sk-very-secret@api.example.com/v1",
        "https://api.example.com/v1?key=sk-very-secret",
        "https://exa mple.com:x/v1",
    ],
)
def test_no_picture_goes_to_an_address_that_is_unsafe_or_none(base_url):
    with pytest.raises(SettingsError, match="base_url") as refused:
        completions_url(base_url)
    assert "\n" not in str(refused.value)
    assert KEY not in str(refused.value)


@pytest.mark.parametrize(
    ("status", "error", "words"),
    [
        (400, ProviderRefusedError, "settings"),
        (401, ProviderRefusedError, "QCNODE_PROVIDER_API_KEY"),
        (402, ProviderRefusedError, "balance"),
        (404, ProviderRefusedError, "model"),
        (302, ProviderRefusedError, "base_url"),
        (204, ProviderRefusedError, "HTTP 204"),
        (408, ProviderUnavailableError, "HTTP 408"),
        (429, ProviderUnavailableError, "HTTP 429"),
        (500, ProviderUnavailableError, "HTTP 500"),
        (503, ProviderUnavailableError, "HTTP 503"),
    ],
)
async def test_a_status_says_whether_asking_again_may_help(status, error, words):
    body = {"error": {"message": f"bad key {KEY}\nsecond line"}}
    elsewhere = {"location": "https://elsewhere.example/v1"}
    with pytest.raises(error, match=words) as raised:
        await ask(httpx2.Response(status, json=body, headers=elsewhere))
    assert "\n" not in str(raised.value)
    assert KEY not in str(raised.value)


@pytest.mark.parametrize(
    "trouble",
    [
        httpx2.ConnectError("refused"),
        httpx2.ReadTimeout("slow"),
        httpx2.ReadError("reset"),
        httpx2.RemoteProtocolError("cut off"),
    ],
)
async def test_a_provider_that_is_not_there_is_unavailable(trouble):
    with pytest.raises(ProviderUnavailableError, match=r"some at https://api\.example\.com"):
        await ask(trouble)


def saying(content, finish="stop"):
    return completion(choices=[{"message": {"content": content}, "finish_reason": finish}])


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (httpx2.Response(200, text="<html>a captive portal</html>"), "no chat completion"),
        (httpx2.Response(200, json=[]), "no chat completion"),
        (httpx2.Response(200, json={"choices": []}), "no chat completion"),
        (httpx2.Response(200, json={"choices": [{"message": "hello"}]}), "no chat completion"),
        (httpx2.Response(200, text="[" * 100_000), "no chat completion"),
        (saying(None), "without words"),
        (saying([{"type": "text", "text": "hello"}]), "without words"),
        (saying("half a", finish="length"), "output_tokens_max"),
    ],
)
async def test_an_answer_that_is_none_is_refused(answer, words):
    with pytest.raises(ProviderRefusedError, match=words):
        await ask(answer)


async def test_a_ruling_counts_even_when_its_tokens_cannot_be_believed():
    _, answer = await ask(completion(usage={"prompt_tokens": -5}))

    assert (answer.text, answer.usage) == ("the answer", None)


def test_the_worst_case_bounds_text_by_its_bytes_and_the_picture_by_its_formula():
    provider = OpenAIChatProvider(
        name="some",
        model="vlm-1",
        base_url="https://api.example.com",
        api_key=None,
        transport=httpx2.MockTransport(Endpoint(completion())),
        timeout_s=5,
        output_tokens_max=300,
    )

    worst = provider.worst(text_bytes=1000, width=448, height=448)

    assert worst.image == 256
    assert worst.input_tokens >= 1000 + 256
    assert worst.output_tokens == 300
