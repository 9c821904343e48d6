"""What every provider of rulings is to the bridge: a question in, an answer and its usage out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from qcnode.money import TokenUsage

if TYPE_CHECKING:
    from qcbridge.prompts import Prompt
    from qcbridge.providers.usage import UsageShape
    from qcbridge.transport import Metered

FRAMING_TOKENS_MAX: Final = 64
"""More than any chat format known adds around two messages, a picture and a schema."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """What a provider answered, and what it says it used."""

    text: str
    usage: TokenUsage | None
    """None when its count cannot be read; the ledger then holds the attempt's worst case."""


class Provider(Protocol):
    """Answers a prompt once. Retrying, and what it may cost, are the caller's decision."""

    name: str
    model: str

    @property
    def shape(self) -> UsageShape:
        """Where this provider's answers say what was used."""

    def worst(self, *, text_bytes: int, width: int, height: int) -> TokenUsage:
        """Return the most one request can use, with this much text and this picture."""

    async def complete(self, prompt: Prompt, metered: Metered) -> Completion:
        """Send one request, which the metering transport puts on record before its bytes go.

        Raises `ProviderUnavailableError` where asking again may help, and
        `ProviderRefusedError` where it will not.
        """

    async def close(self) -> None:
        """Let go of connections; closing twice is harmless."""


def worst_usage(*, text_bytes: int, image_tokens: int, output_tokens_max: int) -> TokenUsage:
    """Return a bound that holds whatever the tokenizer: no token is shorter than one byte."""
    return TokenUsage(
        text=text_bytes + FRAMING_TOKENS_MAX, image=image_tokens, output=output_tokens_max
    )
