"""Answers in a closed form: one JSON object and nothing else, and words that are only words.

Pure. What is not exactly the object asked for raises `ValueError` with the reason, and
whoever asked says what follows from it. Nothing is repaired.
"""

from __future__ import annotations

import json
import math
import re
import sys
import unicodedata
from typing import TYPE_CHECKING, Any, Final, NoReturn

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

ANSWER_MAX: Final = 4096

# People read these words on a screen that could make a link of them.
_LINK: Final = re.compile(
    r"://|www\.|\]\(|\b(?:https?|javascript|mailto):|\bdata:\w+/|</?[a-z!]", re.IGNORECASE
)


def read_object(text: str, keys: Collection[str]) -> dict[str, Any]:
    """Read the one JSON object that `text` is; it has exactly these keys, each once."""
    if len(text) > ANSWER_MAX:
        raise ValueError(f"{len(text)} characters, where at most {ANSWER_MAX} can be an answer")
    try:
        answer = json.loads(text, object_pairs_hook=_once_each, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not the JSON object asked for: {short(str(error))}") from None
    check_keys(object_in(answer), keys)
    return dict(answer)


def check_keys(value: Mapping[str, Any], keys: Collection[str]) -> None:
    """Raise `ValueError` unless an object has exactly these keys."""
    extra, missing = sorted(value.keys() - set(keys)), sorted(set(keys) - value.keys())
    if extra or missing:
        raise ValueError(f"not the fields asked for (extra {short(extra)}, missing {missing})")


def object_in(value: Any) -> dict[str, Any]:
    """Return a JSON object."""
    if not isinstance(value, dict):
        raise ValueError(f"JSON, but no object: {short(value)}")  # noqa: TRY004  # an answer's, no caller's
    return value


def share_in(value: Any) -> float:
    """Return a number from 0 to 1."""
    if not 0.0 <= _number_in(value) <= 1.0:
        raise ValueError(f"not between 0 and 1: {short(value)}")
    return float(value)


def number_in(value: Any) -> float:
    """Return a finite number."""
    if not math.isfinite(_number_in(value)):
        raise ValueError(f"no finite number: {short(value)}")
    return float(value)


def _number_in(value: Any) -> int | float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"no number: {short(value)}")  # noqa: TRY004  # an answer's, no caller's
    # No float holds a whole number beyond this, and nothing that is asked for is so large.
    return value if abs(value) < sys.float_info.max else math.inf


def words_in(value: Any) -> str:
    """Return words as they may be shown to people; a link or markup is none."""
    if not isinstance(value, str):
        raise ValueError(f"no text: {short(value)}")  # noqa: TRY004  # an answer's, no caller's
    said = plain(value, ANSWER_MAX)
    if _LINK.search(said):
        raise ValueError(f"a link or markup in its words: {short(value)}")
    return said


def plain(text: str, length_max: int) -> str:
    """Keep what can be read: no control, direction, private or broken characters, one line."""
    kept = "".join(
        " " if character.isspace() else character
        for character in text
        if character.isspace() or unicodedata.category(character)[0] != "C"
    )
    kept = " ".join(kept.split())
    return kept if len(kept) <= length_max else kept[: length_max - 1] + "…"


def short(value: Any) -> str:
    """Return a value as it is shown in one line."""
    return repr(plain(value if isinstance(value, str) else repr(value), 60))


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # The last of two equal keys would win silently, and which one is meant is anybody's guess.
    if len(dict(pairs)) != len(pairs):
        raise ValueError("a key stands twice")
    return dict(pairs)


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number")
