"""How each vendor counts the tokens of a request, read into classes that share none.

Pure. Every reader takes the vendor's usage block as it was decoded and asserts the parts
against the vendor's own totals. What is absent, negative, no whole number or does not
add up raises `ValueError`, because then the words do not mean what they are taken to
mean and a price on them would be a wrong bill. Nothing is ever clamped to fit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from qcnode.money import TokenUsage

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageShape:
    """Where a vendor's answer says what was used and which answer it is, and how to read it."""

    read: Callable[[Any], TokenUsage]
    block: str = "usage"
    response_id: str = "id"
    model: str = "model"


# -- OpenAI's chat completions, and everybody who speaks them ------------------------------

_CACHE_READ: Final = (
    ("prompt_tokens_details", "cached_tokens"),  # OpenAI, DashScope, Zhipu, Volcengine, xAI
    (None, "prompt_cache_hit_tokens"),  # DeepSeek
    (None, "cached_tokens"),  # Moonshot
    (None, "num_cached_tokens"),  # Mistral
)
_CACHE_WRITE: Final = (
    ("prompt_tokens_details", "cache_write_tokens"),  # OpenAI, OpenRouter
    ("prompt_tokens_details", "cache_creation_input_tokens"),  # DashScope
    ("prompt_tokens_details", "cache_creation_tokens"),  # LiteLLM
)
_REASONING: Final = (
    ("completion_tokens_details", "reasoning_tokens"),
    (None, "reasoning_tokens"),  # xAI's earlier form
)
_NEVER_SENT: Final = ("audio_tokens", "video_tokens")


def openai_usage(raw: Any) -> TokenUsage:
    """Read a chat-completions usage block; cached and image tokens stand within the input.

    Reasoning stands within the output, except at vendors whose own total says that it
    stands beside it.
    """
    raw = _object(raw, "usage")
    details = _block(raw, "prompt_tokens_details")
    input_tokens = _count(raw, "prompt_tokens")
    answered = _count(raw, "completion_tokens")
    reasoning = _same(raw, _REASONING, "reasoning") or 0
    output_tokens = answered
    if (total := _optional(raw, "total_tokens")) is not None:
        if total == input_tokens + answered + reasoning:
            output_tokens = answered + reasoning
        elif total != input_tokens + answered:
            raise ValueError(f"total_tokens {total} is not {input_tokens} + {answered}")
    for name in _NEVER_SENT:
        if _optional(details, name):
            raise ValueError(f"{details[name]} {name} of a request that held none")
    cache_read = _same(raw, _CACHE_READ, "cached") or 0
    cache_write = _same(raw, _CACHE_WRITE, "cache write") or 0
    _check_miss(raw, input_tokens, cache_read)
    _check_borrowed(raw, cache_read=cache_read, cache_write=cache_write)
    written_1h = _written_for_an_hour(_block(details, "cache_creation"), cache_write)
    text, image = _optional(details, "text_tokens"), _optional(details, "image_tokens")
    if text is not None and image is None and text == input_tokens:
        image = 0
    if text is not None and image is not None and text + image != input_tokens:
        raise ValueError(f"{text} text and {image} image tokens are not {input_tokens}")
    usage = TokenUsage.divide(
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        image=image,
        cache_read=cache_read,
        cache_write=cache_write - written_1h,
        cache_write_1h=written_1h,
        reasoning=reasoning,
    )
    if text is None or image is None or cache_write:
        return usage
    return _tell_apart(
        usage, {"text": text, "image": image}, _cached_by_kind(details), cache_read=cache_read
    )


def _check_miss(raw: Mapping[str, Any], input_tokens: int, cache_read: int) -> None:
    miss = _optional(raw, "prompt_cache_miss_tokens")
    if miss is not None and miss + cache_read != input_tokens:
        raise ValueError(f"{cache_read} cached and {miss} missed tokens are not {input_tokens}")


def _check_borrowed(raw: Mapping[str, Any], *, cache_read: int, cache_write: int) -> None:
    """Refuse Anthropic's words in this shape, unless this shape's own words say the same.

    Some gateways count what they name within the prompt and some beside it.
    """
    for name, known in (
        ("cache_read_input_tokens", cache_read),
        ("cache_creation_input_tokens", cache_write),
    ):
        said = _optional(raw, name)
        if said not in (None, 0, known):
            raise ValueError(f"{name} {said}: within prompt_tokens or beside, it does not say")


def _cached_by_kind(details: Mapping[str, Any]) -> dict[str, int] | None:
    """Return how the cached tokens divide, where the vendor says it in OpenAI's words."""
    block = _block(details, "cached_tokens_details")
    if "text_tokens" not in block:
        return None
    return {
        "text": _count(block, "text_tokens"),
        "image": _count(block, "image_tokens", absent=0),
    }


# -- Anthropic's messages ------------------------------------------------------------------


def anthropic_usage(raw: Any) -> TokenUsage:
    """Read a Messages usage block; what was read from or written to a cache is beside the input.

    Text and picture have one price and are not told apart. Thinking is within the output.
    """
    raw = _object(raw, "usage")
    written = _count(raw, "cache_creation_input_tokens", absent=0)
    creation = _block(raw, "cache_creation")
    if raw.get("cache_creation_input_tokens") is None and creation:
        written = _count(creation, "ephemeral_5m_input_tokens", absent=0) + _count(
            creation, "ephemeral_1h_input_tokens", absent=0
        )
    written_1h = _written_for_an_hour(creation, written)
    read = _count(raw, "cache_read_input_tokens", absent=0)
    return TokenUsage.divide(
        input_tokens=_count(raw, "input_tokens") + read + written,
        output_tokens=_count(raw, "output_tokens"),
        image=None,
        cache_read=read,
        cache_write=written - written_1h,
        cache_write_1h=written_1h,
        reasoning=_count(_block(raw, "output_tokens_details"), "thinking_tokens", absent=0),
    )


def _written_for_an_hour(creation: Mapping[str, Any], written: int) -> int:
    """Return how many of the tokens written to a cache live there for an hour.

    Without a division all are of the five minutes that are every vendor's default.
    """
    if not creation:
        return 0
    minutes = _count(creation, "ephemeral_5m_input_tokens", absent=0)
    hour = _count(creation, "ephemeral_1h_input_tokens", absent=0)
    if minutes + hour != written:
        raise ValueError(f"{minutes} and {hour} tokens of two caches are not {written}")
    return hour


# -- Google's generateContent --------------------------------------------------------------

_KINDS: Final = {"TEXT": "text", "IMAGE": "image"}


def gemini_usage(raw: Any) -> TokenUsage:
    """Read a usageMetadata block; cached tokens are within the prompt, thoughts beside the answer.

    A count that is not there is zero: zeros are left out on this wire.
    """
    raw = _object(raw, "usageMetadata")
    prompt = _count(raw, "promptTokenCount", absent=0)
    tools = _count(raw, "toolUsePromptTokenCount", absent=0)
    cached = _count(raw, "cachedContentTokenCount", absent=0)
    thoughts = _count(raw, "thoughtsTokenCount", absent=0)
    answered = _count(raw, "candidatesTokenCount", absent=0)
    total = _count(raw, "totalTokenCount")
    if total != prompt + tools + answered + thoughts:
        raise ValueError(
            f"totalTokenCount {total} is not {prompt} + {tools} + {answered} + {thoughts}"
        )
    kinds = _by_modality(raw, "promptTokensDetails", prompt)
    usage = TokenUsage.divide(
        input_tokens=prompt,
        output_tokens=answered + thoughts,
        image=None if kinds is None else kinds["image"],
        cache_read=cached,
        reasoning=thoughts,
    )
    if kinds is not None:
        cached_kinds = _by_modality(raw, "cacheTokensDetails", cached)
        usage = _tell_apart(usage, kinds, cached_kinds, cache_read=cached)
    return usage + TokenUsage(unknown=tools)


def _by_modality(raw: Mapping[str, Any], name: str, whole: int) -> dict[str, int] | None:
    """Return the text and image tokens of a list of modalities, or None where there is none."""
    if not raw.get(name):
        return None
    rows = raw[name]
    if not isinstance(rows, list):
        raise ValueError(f"{name} is no list")  # noqa: TRY004  # what it is matters to nobody
    counts = dict.fromkeys(_KINDS.values(), 0)
    for row in rows:
        tokens = _count(_object(row, name), "tokenCount", absent=0)
        kind = _KINDS.get(row.get("modality"))
        if kind is not None:
            counts[kind] += tokens
        elif tokens:
            raise ValueError(f"{name}: {tokens} tokens of {row.get('modality')!r:.40}")
    if sum(counts.values()) != whole:
        raise ValueError(f"{name}: {counts} do not add up to {whole}")
    return counts


OPENAI_CHAT: Final = UsageShape(read=openai_usage)
ANTHROPIC_MESSAGES: Final = UsageShape(read=anthropic_usage)
GEMINI_GENERATE: Final = UsageShape(
    read=gemini_usage, block="usageMetadata", response_id="responseId", model="modelVersion"
)


# -- common to all -------------------------------------------------------------------------


def _tell_apart(
    usage: TokenUsage,
    kinds: Mapping[str, int],
    cached: Mapping[str, int] | None,
    *,
    cache_read: int,
) -> TokenUsage:
    """Leave nothing unknown where the vendor says which kind of token was cached."""
    if cached is None:
        return usage
    if sum(cached.values()) != cache_read:
        raise ValueError(f"cached tokens by kind, {dict(cached)}, are not {cache_read}")
    for kind, tokens in cached.items():
        if tokens > kinds[kind]:
            raise ValueError(f"{tokens} cached {kind} tokens of {kinds[kind]} sent")
    return TokenUsage(
        text=kinds["text"] - cached["text"],
        image=kinds["image"] - cached["image"],
        cache_read=usage.cache_read,
        output=usage.output,
        reasoning=usage.reasoning,
    )


def _same(
    raw: Mapping[str, Any], places: Sequence[tuple[str | None, str]], what: str
) -> int | None:
    """Return the one count that stands in any of these places; two that differ are none."""
    said = {
        _count(block, name)
        for outer, name in places
        for block in (raw if outer is None else _block(raw, outer),)
        if block.get(name) is not None
    }
    if len(said) > 1:
        raise ValueError(f"more than one count of {what} tokens: {sorted(said)}")
    return said.pop() if said else None


def _object(value: Any, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"no {name} block")  # noqa: TRY004  # what it is matters to nobody
    return value


def _block(raw: Mapping[str, Any], name: str) -> dict[str, Any]:
    value = raw.get(name)
    return {} if value is None else _object(value, name)


def _optional(raw: Mapping[str, Any], name: str) -> int | None:
    return None if raw.get(name) is None else _count(raw, name)


def _count(raw: Mapping[str, Any], name: str, *, absent: int | None = None) -> int:
    value = raw.get(name)
    if value is None and absent is not None:
        return absent
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"{name} is no count of tokens: {value!r:.40}")
    return value
