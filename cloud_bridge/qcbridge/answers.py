"""What a provider's answer says was used, word for word.

Pure. The usage block is cut out of the body as it was received and never written anew,
so that order, repeated keys, large numbers and spaces are evidence too. What cannot be
read in one way only cannot be believed.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NoReturn

if TYPE_CHECKING:
    from collections.abc import Iterator

    from qcbridge.providers.usage import UsageShape
    from qcnode.money import TokenUsage

TOKENS_MAX: Final = 10_000_000
"""No request holds so many; with the bound on prices, every cost fits 64 bits."""

RAW_USAGE_CHARS_MAX: Final = 8_192
_NAME_CHARS_MAX: Final = 200
_COSTS: Final = ("cost", "total_cost", "cost_in_usd_ticks", "estimated_cost")
_SPACE: Final = re.compile(r"[ \t\n\r]*")
_VALUE: Final = json.JSONDecoder()


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What was used, as the provider says it, and which answer of whose it is.

    `stated_cost` is the text of the cost that it names itself, in a unit nobody vouches for.
    """

    usage: TokenUsage
    raw_usage: str
    stated_cost: str | None
    response_id: str | None
    model_served: str | None


def read_answer(body: bytes, shape: UsageShape) -> Answer:
    """Read what an answer says of itself; raises `ValueError` when it cannot be believed."""
    try:
        text = body.decode(json.detect_encoding(body))
        members = dict(_members_once(text, shape.block))
        raw_usage = members[shape.block]
        if len(raw_usage) > RAW_USAGE_CHARS_MAX:
            raise ValueError(f"a usage block of {len(raw_usage)} characters")
        usage = shape.read(_UNAMBIGUOUS.decode(raw_usage))
    except KeyError as error:
        raise ValueError(f"no {error.args[0]} block") from error
    except RecursionError as error:
        raise ValueError("JSON too deep to be an answer") from error
    except (LookupError, TypeError, AttributeError) as error:  # A shape of somebody's own.
        raise ValueError(f"a {shape.block} block it cannot read: {error!r:.100}") from error
    if usage.input_tokens == 0:
        raise ValueError("no input tokens, though something was sent")
    if max(usage.input_tokens, usage.output_tokens) > TOKENS_MAX:
        raise ValueError(f"more than {TOKENS_MAX} tokens")
    return Answer(
        usage=usage,
        raw_usage=raw_usage,
        stated_cost=_stated_cost(raw_usage),
        response_id=_name(members.get(shape.response_id)),
        model_served=_name(members.get(shape.model)),
    )


def bounded(name: str) -> str:
    """Return a name as it can be kept: short, and with no half of a character."""
    return name.encode(errors="replace").decode()[:_NAME_CHARS_MAX]


def _members_once(text: str, wanted: str) -> Iterator[tuple[str, str]]:
    """Yield key and verbatim value of an object; `wanted` twice in two ways is no answer."""
    seen: str | None = None
    for key, value in _members(text):
        if key == wanted:
            if seen not in (None, value):
                raise ValueError(f"two {wanted} blocks")
            seen = value
        yield key, value


def _members(text: str) -> Iterator[tuple[str, str]]:
    """Yield key and verbatim value of the JSON object that `text` is, in its order."""
    at = _skip(text, 0)
    if not text.startswith("{", at):
        raise ValueError("no JSON object")
    at = _skip(text, at + 1)
    more = not text.startswith("}", at)
    while more:
        key, at = _VALUE.raw_decode(text, at)
        at = _skip(text, at)
        if not isinstance(key, str) or not text.startswith(":", at):
            raise ValueError(f"no JSON object: no key before character {at}")
        start = _skip(text, at + 1)
        _, at = _VALUE.raw_decode(text, start)
        yield key, text[start:at]
        at = _skip(text, at)
        more = text.startswith(",", at)
        if more:
            at = _skip(text, at + 1)
    if not text.startswith("}", at) or _skip(text, at + 1) != len(text):
        raise ValueError(f"no JSON object: it does not end at character {at}")


def _skip(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    return at if found is None else found.end()


def _agreeing(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    read = dict(pairs)
    for key, value in pairs:
        if read[key] != value:
            raise ValueError(f"{key!r:.40} stands twice and differs")
    return read


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number")


_UNAMBIGUOUS: Final = json.JSONDecoder(object_pairs_hook=_agreeing, parse_constant=_no_constant)


def _stated_cost(raw_usage: str) -> str | None:
    stated = dict(_members(raw_usage))
    for name in _COSTS:
        value = stated.get(name)
        if value is not None and value != "null":
            inside = value[1:-1] if value.startswith('"') else value
            return inside if 0 < len(inside) <= _NAME_CHARS_MAX else None
    return None


def _name(value: str | None) -> str | None:
    """Return the text in a JSON string, if it says anything."""
    decoded = None if value is None else _VALUE.decode(value)
    return bounded(decoded) if isinstance(decoded, str) and decoded else None
