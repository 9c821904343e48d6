"""A provider in this process: it answers, bills, fails and lies, and keeps its own books.

Whether it bills is decided when a request arrives, whatever becomes of the node that sent
it. Its books say what it would put on its invoice, by attempt.
"""

import asyncio
import json
from dataclasses import dataclass

import httpx2

from tests.sim.loop import PROCESS

FATES = {
    # what happens: (how it shows, whether the provider bills it)
    "refused": (httpx2.ConnectError, False),
    "limited": (429, False),
    "turned away": (401, False),
    "error": (500, False),
    "error, billed": (500, True),
    "reset, billed": (httpx2.ReadError, True),
    "hangs, billed": (None, True),
    "no usage": ("absent", True),
    "negative usage": ("negative", True),
    "absurd usage": ("absurd", True),
    "usage is text": ("text", True),
    "usage does not add up": ("sum", True),
    "no JSON": ("prose", True),
    "two answers in one": ("twice", True),
    "picture not told apart": ("blind", True),
    "more than it may": ("over", True),
}


@dataclass(frozen=True, slots=True)
class Billed:
    """A line of the provider's own books; `told` says whether its answer said the same."""

    input_tokens: int
    output_tokens: int
    told: bool


class Provider:
    """The provider's side; `transport` is a way there for whoever asks."""

    def __init__(self, world):
        self.world = world
        self.billed = {}
        self.answers = {}
        """By idempotency key: what was answered, to be said again and not billed again."""

    def transport(self):
        return _Way(self)

    def arrive(self, request, attempt, reply):
        """Decide what becomes of a request, and when its answer leaves."""
        world = self.world
        chance = world.chance("provider")
        key = request.headers["Idempotency-Key"]
        fate = world.faults.fate()
        shows, bills = FATES.get(fate, ("good", True))
        delay = chance.uniform(0.2, 4.0)
        if fate is None and world.faults.happens("same answer again") and key in self.answers:
            world.note("provider", "answers again what it answered", attempt)
            self._reply_later(delay, reply, 200, self.answers[key])
            return
        body, used = self._answer(request, chance, shows)
        if bills:
            told = shows in ("good", "blind", "over")
            self.billed[attempt] = Billed(*used, told)
        world.note("provider", fate or "answers", attempt, *(used if bills else ()))
        if isinstance(shows, int):
            self._reply_later(delay, reply, shows, b"{}")
        elif shows is None:
            pass  # It never answers.
        elif not isinstance(shows, str):
            world.later(delay, _fail, reply, shows("as simulated", request=request))
        else:
            if shows == "good":
                self.answers[key] = body
            self._reply_later(delay, reply, 200, body)

    def _reply_later(self, delay, reply, status, body):
        if self.world.faults.happens("slow provider"):
            delay += self.world.chance("provider").uniform(5, 40)
        self.world.later(delay, _answer, reply, httpx2.Response(status, content=body))

    def _answer(self, request, chance, shows):
        asked = json.loads(request.content)
        picture, cached = chance.randint(1, 3), chance.choice((0, 0, 40))
        used = (chance.randint(60, 900), chance.randint(20, 200))
        if shows == "over":
            used = (used[0] + 50_000, used[1])
        usage = {
            "prompt_tokens": used[0],
            "completion_tokens": used[1],
            "total_tokens": sum(used),
            "prompt_tokens_details": {"image_tokens": picture, "cached_tokens": cached},
        }
        if shows == "blind":
            del usage["prompt_tokens_details"]
        elif shows == "negative":
            usage |= {"completion_tokens": -used[1], "total_tokens": used[0] - used[1]}
        elif shows == "absurd":
            usage |= {"prompt_tokens": 10**15, "total_tokens": 10**15 + used[1]}
        elif shows == "text":
            usage["prompt_tokens"] = str(used[0])
        elif shows == "sum":
            usage["total_tokens"] += 1
        answer = {
            "id": f"r{chance.getrandbits(40):x}",
            "model": asked["model"],
            "choices": [{"message": {"content": self._ruling(asked)}, "finish_reason": "stop"}],
            "usage": usage,
        }
        if shows == "absent":
            del answer["usage"]
        body = json.dumps(answer).encode()
        if shows == "twice":
            body += body
        elif shows == "prose":
            body = b"<html>come back later</html>"
        return body, used

    def _ruling(self, asked):
        text = asked["messages"][1]["content"][0]["text"]
        part = next(word for word in text.replace('"', " ").split() if word.startswith("P-"))
        return json.dumps(
            {
                "part_id": part.strip(".,"),
                "finding": "good",
                "defect_class": None,
                "location": None,
                "confidence": 0.8,
                "reason": "nothing to be seen",
            }
        )


class _Way(httpx2.AsyncBaseTransport):
    """One node's connection to the provider."""

    def __init__(self, provider):
        self._provider = provider

    async def handle_async_request(self, request):
        world, process = self._provider.world, PROCESS.get()
        reply = asyncio.get_running_loop().create_future()
        if process.dead:
            return await reply  # Nothing leaves a dead machine.
        attempt = request.headers["X-QC-Attempt"]
        world.oracle.request_leaves(process.name, attempt)
        world.later(
            world.chance("provider").uniform(0.01, 0.2),
            self._provider.arrive,
            request,
            attempt,
            reply,
        )
        return await reply


def _answer(reply, response):
    if not reply.done():
        reply.set_result(response)


def _fail(reply, error):
    if not reply.done():
        reply.set_exception(error)
