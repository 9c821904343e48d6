"""Anthropic's Messages API.

The system text stands outside the messages, cached tokens stand beside the input and not
within it, and every answer is asked for with the most tokens that it may take.
"""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any, Final

from qcbridge.providers.http import HttpProvider
from qcbridge.providers.usage import ANTHROPIC_MESSAGES

if TYPE_CHECKING:
    from collections.abc import Mapping

    from qcbridge.prompts import Prompt

API_VERSION: Final = "2023-06-01"
_CUT_OFF: Final = frozenset({"max_tokens", "model_context_window_exceeded"})


class AnthropicProvider(HttpProvider):
    """A model that is asked for a message."""

    shape = ANTHROPIC_MESSAGES

    def path(self, model: str) -> str:  # noqa: ARG002  # the model stands in the body
        """Return where messages are asked for."""
        return "/messages"

    def headers(self, key: str | None) -> Mapping[str, str]:
        """Return the protocol's version and the key."""
        version = {"anthropic-version": API_VERSION}
        return version if key is None else version | {"x-api-key": key}

    def body(self, prompt: Prompt) -> dict[str, Any]:
        """Return the question as one message with its system text beside it."""
        content: list[dict[str, Any]] = [{"type": "text", "text": prompt.user}]
        if prompt.jpeg:
            source = {
                "type": "base64",
                "media_type": "image/jpeg",
                "data": base64.b64encode(prompt.jpeg).decode(),
            }
            content.insert(0, {"type": "image", "source": source})
        body: dict[str, Any] = {
            "model": self.model,
            "system": prompt.system,
            "messages": [{"role": "user", "content": content}],
            "max_tokens": self.output_tokens_max,
        }
        if self.answer_format == "json_schema":
            form = {"type": "json_schema", "schema": prompt.schema}
            body["output_config"] = {"format": form}
        return body

    def words(self, answer: Any) -> str | None:
        """Return the text blocks of the message."""
        if answer["stop_reason"] in _CUT_OFF:
            raise self.cut_off()
        if answer["stop_reason"] == "refusal":
            raise self.refused()
        said = [block["text"] for block in answer["content"] if block["type"] == "text"]
        return "".join(said) or None
