"""Any endpoint that speaks OpenAI's chat-completions protocol.

Endpoints differ in two things that settings say: how firmly they can be held to the
answer's form, and what they call the most tokens of an answer.
"""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any

from qcbridge.providers.http import HttpProvider, endpoint
from qcbridge.providers.usage import OPENAI_CHAT

if TYPE_CHECKING:
    from qcbridge.prompts import Prompt

_PATH = "/chat/completions"


class OpenAIChatProvider(HttpProvider):
    """A model that is asked for a chat completion."""

    shape = OPENAI_CHAT

    def path(self, model: str) -> str:  # noqa: ARG002  # the model stands in the body
        """Return where completions are asked for."""
        return _PATH

    def body(self, prompt: Prompt) -> dict[str, Any]:
        """Return the question as a chat of two messages."""
        content: list[dict[str, Any]] = [{"type": "text", "text": prompt.user}]
        if prompt.jpeg:
            picture = base64.b64encode(prompt.jpeg).decode()
            url = {"url": f"data:image/jpeg;base64,{picture}"}
            content.append({"type": "image_url", "image_url": url})
        body: dict[str, Any] = {
            "model": self.model,
            "messages": [
                {"role": "system", "content": prompt.system},
                {"role": "user", "content": content},
            ],
            self.max_tokens_key: self.output_tokens_max,
            "stream": False,  # A stream may end before it says what was used.
        }
        if self.answer_format == "json_schema":
            schema = {"name": "ruling", "strict": True, "schema": prompt.schema}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        elif self.answer_format == "json_object":
            body["response_format"] = {"type": "json_object"}
        return body

    def words(self, answer: Any) -> str | None:
        """Return what the first choice says."""
        choice = answer["choices"][0]
        if choice.get("finish_reason") == "length":
            raise self.cut_off()
        if choice.get("finish_reason") == "content_filter" or choice["message"].get("refusal"):
            raise self.refused()
        words: str | None = choice["message"]["content"]
        return words


def completions_url(base_url: str) -> str:
    """Return where completions are asked for; raises `SettingsError` for an unsafe address."""
    return endpoint(base_url, version=HttpProvider.version, path=_PATH)
