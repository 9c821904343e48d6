"""Google's generateContent.

The model stands in the path, thoughts are counted beside the answer and shown as parts of
it, and a question that is blocked has no candidate at all.
"""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any

from qcbridge.providers.http import HttpProvider
from qcbridge.providers.usage import GEMINI_GENERATE

if TYPE_CHECKING:
    from collections.abc import Mapping

    from qcbridge.prompts import Prompt


class GeminiProvider(HttpProvider):
    """A model that is asked to generate content."""

    shape = GEMINI_GENERATE
    version = "/v1beta"

    def path(self, model: str) -> str:
        """Return where content is generated; the model stands in it."""
        return f"/models/{model}:generateContent"

    def headers(self, key: str | None) -> Mapping[str, str]:
        """Return the key."""
        # Never as ?key=, which ends up in the logs of everything between.
        return {} if key is None else {"x-goog-api-key": key}

    def body(self, prompt: Prompt) -> dict[str, Any]:
        """Return the question as one content with its instruction beside it."""
        parts: list[dict[str, Any]] = [{"text": prompt.user}]
        if prompt.jpeg:
            data = base64.b64encode(prompt.jpeg).decode()
            parts.append({"inlineData": {"mimeType": "image/jpeg", "data": data}})
        wanted: dict[str, Any] = {"candidateCount": 1, "maxOutputTokens": self.output_tokens_max}
        if self.answer_format != "text":
            wanted["responseMimeType"] = "application/json"
        if self.answer_format == "json_schema":
            wanted["responseJsonSchema"] = prompt.schema
        return {
            "systemInstruction": {"parts": [{"text": prompt.system}]},
            "contents": [{"role": "user", "parts": parts}],
            "generationConfig": wanted,
        }

    def words(self, answer: Any) -> str | None:
        """Return the text parts of the candidate, without its thoughts."""
        if (answer.get("promptFeedback") or {}).get("blockReason"):
            raise self.refused()
        candidate = answer["candidates"][0]
        finish = candidate.get("finishReason", "STOP")
        if finish == "MAX_TOKENS":
            raise self.cut_off()
        if finish != "STOP":
            raise self.refused()
        parts = candidate["content"]["parts"]
        return "".join(part["text"] for part in parts if not part.get("thought")) or None
