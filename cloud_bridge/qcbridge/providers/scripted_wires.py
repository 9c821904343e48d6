"""How the scripted provider is spoken to: the three protocols that vendors use.

Each wire says where questions come in, where the key stands in their head, what a body
asks, and what an answer looks like with its usage counted as that vendor counts it.
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

import cv2
import numpy as np

from qcbridge.providers.scripted_script import NAME, Question

if TYPE_CHECKING:
    from collections.abc import Mapping

    from qcbridge.providers.scripted_script import Reply, Used

_JPEG: Final = "data:image/jpeg;base64,"


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A body's parts, wherever they stood; `picture` is base64."""

    system: str
    user: str
    picture: str | None
    schema: Any


class Wire(Protocol):
    """One protocol."""

    route: str
    """Where its questions come in; `{model}` where that stands in the path."""

    def key(self, headers: Mapping[str, str]) -> str:
        """Return the key that a request shows."""

    def asked(self, body: Any) -> Asked:
        """Take a body apart; whatever it raises means that it is no question."""

    def usage(self, used: Used) -> dict[str, Any]:
        """Write tokens as this protocol's vendor counts them."""

    def answer(self, reply: Reply, *, model: str, at_s: int) -> dict[str, Any]:
        """Write an answer with its usage."""

    def error(self, status: int, kind: str, message: str) -> dict[str, Any]:
        """Write an error."""


def question(wire: Wire, body: Any, *, model: str | None, known: str) -> Question:
    """Read a question; raises `ValueError` for what is none as qcnode asks it."""
    asked_for = model or (body.get("model") if isinstance(body, dict) else None)
    if asked_for != known:
        raise ValueError(f"the one model here is {known}")
    try:
        asked = wire.asked(body)
        kinds = _kinds(asked.schema or {})
        case = dict(json.loads(asked.user))
        size = (0, 0) if asked.picture is None else _size(asked.picture)
    except (LookupError, TypeError, AttributeError, ValueError, cv2.error) as error:
        raise ValueError(f"not a question as qcnode asks it ({type(error).__name__})") from error
    if size is None:
        raise ValueError("the picture cannot be decoded")
    spoken = "" if asked.schema is None else json.dumps(asked.schema)
    return Question(
        case=case,
        defect_classes=tuple(kind for kind in kinds if kind),
        system=asked.system,
        text_length=len(asked.system) + len(asked.user) + len(spoken),
        width=size[0],
        height=size[1],
    )


def _kinds(schema: Mapping[str, Any]) -> list[Any]:
    """Return the kinds of defect in the form of an answer, be it of one step or of several."""
    ruling = schema.get("properties", {}).get("ruling", schema)
    ruling = ruling.get("anyOf", [ruling])[0]
    return list(ruling.get("properties", {}).get("defect_class", {}).get("enum", []))


def _size(picture: str) -> tuple[int, int] | None:
    encoded = base64.b64decode(picture, validate=True)
    pixels = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_GRAYSCALE)
    return None if pixels is None else (pixels.shape[1], pixels.shape[0])


class OpenAIChat:
    """OpenAI's chat completions."""

    route = "/v1/chat/completions"

    def key(self, headers: Mapping[str, str]) -> str:
        """Return the bearer's key."""
        return headers.get("authorization", "").removeprefix("Bearer ")

    def asked(self, body: Any) -> Asked:
        """Take two messages apart."""
        system, user = (message["content"] for message in body["messages"])
        wanted = (body.get("response_format") or {}).get("json_schema")
        url = user[1]["image_url"]["url"] if len(user) > 1 else None
        return Asked(
            system=system,
            user=user[0]["text"],
            picture=None if url is None else url.removeprefix(_JPEG),
            schema=None if wanted is None else wanted["schema"],
        )

    def usage(self, used: Used) -> dict[str, Any]:
        """Count cached tokens within the prompt."""
        prompt = used.text + used.image
        return {
            "prompt_tokens": prompt,
            "completion_tokens": used.completion,
            "total_tokens": prompt + used.completion,
            "prompt_tokens_details": {
                "text_tokens": used.text,
                "image_tokens": used.image,
                "cached_tokens": used.cached,
                "cached_tokens_details": {"text_tokens": used.cached, "image_tokens": 0},
            },
            "completion_tokens_details": {"reasoning_tokens": 0},
        }

    def answer(self, reply: Reply, *, model: str, at_s: int) -> dict[str, Any]:
        """Write a chat completion."""
        message = {"role": "assistant", "content": reply.said, "refusal": None}
        return {
            "id": reply.response_id,
            "object": "chat.completion",
            "created": at_s,
            "model": model,
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
            "usage": reply.used and self.usage(reply.used),
        }

    def error(self, status: int, kind: str, message: str) -> dict[str, Any]:  # noqa: ARG002
        """Write an error object."""
        return {"error": {"type": kind, "message": message}}


class AnthropicMessages:
    """Anthropic's messages."""

    route = "/v1/messages"

    def key(self, headers: Mapping[str, str]) -> str:
        """Return the key of its own header."""
        return headers.get("x-api-key", "")

    def asked(self, body: Any) -> Asked:
        """Take one message apart, and the system text beside it."""
        (message,) = body["messages"]
        blocks = {block["type"]: block for block in message["content"]}
        picture = blocks.get("image")
        form = (body.get("output_config") or {}).get("format")
        return Asked(
            system=body["system"],
            user=blocks["text"]["text"],
            picture=None if picture is None else picture["source"]["data"],
            schema=None if form is None else form["schema"],
        )

    def usage(self, used: Used) -> dict[str, Any]:
        """Count cached tokens beside the input."""
        return {
            "input_tokens": used.text + used.image - used.cached,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": used.cached,
            "output_tokens": used.completion,
        }

    def answer(self, reply: Reply, *, model: str, at_s: int) -> dict[str, Any]:  # noqa: ARG002
        """Write a message."""
        return {
            "id": reply.response_id,
            "type": "message",
            "role": "assistant",
            "model": model,
            "content": [{"type": "text", "text": reply.said}],
            "stop_reason": "end_turn",
            "stop_sequence": None,
            "usage": reply.used and self.usage(reply.used),
        }

    def error(self, status: int, kind: str, message: str) -> dict[str, Any]:  # noqa: ARG002
        """Write an error of a type."""
        return {"type": "error", "error": {"type": kind, "message": message}}


class GeminiGenerate:
    """Google's generateContent."""

    route = "/v1beta/models/{model}:generateContent"

    def key(self, headers: Mapping[str, str]) -> str:
        """Return the key of its own header."""
        return headers.get("x-goog-api-key", "")

    def asked(self, body: Any) -> Asked:
        """Take one content apart, and the instruction beside it."""
        (content,) = body["contents"]
        text, *pictures = content["parts"]
        return Asked(
            system=body["systemInstruction"]["parts"][0]["text"],
            user=text["text"],
            picture=pictures[0]["inlineData"]["data"] if pictures else None,
            schema=body["generationConfig"].get("responseJsonSchema"),
        )

    def usage(self, used: Used) -> dict[str, Any]:
        """Count cached tokens within the prompt, and leave zeros out."""
        prompt = used.text + used.image
        counts: dict[str, Any] = {
            "promptTokenCount": prompt,
            "candidatesTokenCount": used.completion,
            "totalTokenCount": prompt + used.completion,
            "promptTokensDetails": [
                {"modality": kind, "tokenCount": tokens}
                for kind, tokens in (("TEXT", used.text), ("IMAGE", used.image))
                if tokens
            ],
        }
        if used.cached:
            counts["cachedContentTokenCount"] = used.cached
            counts["cacheTokensDetails"] = [{"modality": "TEXT", "tokenCount": used.cached}]
        return counts

    def answer(self, reply: Reply, *, model: str, at_s: int) -> dict[str, Any]:  # noqa: ARG002
        """Write one candidate."""
        content = {"role": "model", "parts": [{"text": reply.said}]}
        return {
            "candidates": [{"index": 0, "content": content, "finishReason": "STOP"}],
            "usageMetadata": reply.used and self.usage(reply.used),
            "modelVersion": model,
            "responseId": reply.response_id,
        }

    def error(self, status: int, kind: str, message: str) -> dict[str, Any]:
        """Write an error with its status."""
        return {"error": {"code": status, "status": kind.upper(), "message": message}}


WIRES: Final[tuple[Wire, ...]] = (OpenAIChat(), AnthropicMessages(), GeminiGenerate())


def described(words: str) -> str:
    """Return what an error says, with the name of who says it."""
    return f"{NAME}: {words}"
