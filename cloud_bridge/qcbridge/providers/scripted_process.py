"""What the scripted provider answers when it is asked about the process: a rule, and no model.

It knows nothing but what the question tells it. The class that has risen furthest beyond its
normal hour, and beyond chance, names the knob by the table that the rule adviser has.
How often it follows this rule is its stated accuracy; else it says something else.
"""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any, Final

from qcnode.adviser import CURES

if TYPE_CHECKING:
    import random
    from collections.abc import Mapping

BEYOND_CHANCE: Final = 2.5
"""How many standard deviations a count must lie above the one expected."""
STEP_SHARE: Final = 0.5


def advise(told: Mapping[str, Any], *, right: bool, dice: random.Random, name: str) -> str:
    """Answer a question; raises `LookupError`, `TypeError` or `ValueError` for what is none."""
    knob, side, why = _by_rule(told)
    if not right:
        wrong = [(other, turn) for other in told["knobs"] for turn in (-1, 1)]
        knob, side = dice.choice([one for one in wrong if one != (knob, side)])
        why = "wrong on purpose"
    delta = None if knob == "none" else side * STEP_SHARE * told["knobs"][knob]["step_max"]
    return json.dumps(
        {
            "question_id": told["question_id"],
            "adjust": knob,
            "delta": delta,
            "confidence": round(dice.uniform(0.8, 0.99), 2),
            "reason": f"The {name} follows a rule and is no LLM: {why}.",
        }
    )


def _by_rule(told: Mapping[str, Any]) -> tuple[str, int, str]:
    """Return the knob and the side to turn it to, or `none`, and why."""
    risen = []
    for kind, counts in told["classes"].items():
        for cure in CURES.get(kind, ()):
            knob = told["knobs"][cure.knob.value]
            goes_to = knob["now"] + cure.side * STEP_SHARE * knob["step_max"]
            if knob["low"] <= goes_to <= knob["high"]:
                span = _span(knob["parts_since_turned"], told["parts"])
                beyond, words = _beyond(counts, told["parts"], span)
                risen.append((beyond, cure.knob.value, cure.side, f"{kind} {words}"))
                break
    beyond, name, side, why = max(risen, default=(0.0, "none", 0, ""))
    if beyond < BEYOND_CHANCE:
        return "none", 0, "nothing has risen beyond chance that a knob could be turned against"
    return name, side, why


def _span(since_turned: int | None, parts: Mapping[str, int]) -> str:
    """Return what to count: not what was made before the knob was turned."""
    whole = since_turned is None or since_turned >= parts["last_hour"]
    return "last_hour" if whole else "last_look"


def _beyond(counts: Mapping[str, int], parts: Mapping[str, int], span: str) -> tuple[float, str]:
    """Return how far beyond chance a class has risen, in standard deviations, and in words."""
    expected = (counts["normal_hour"] + 0.5) * parts[span] / (parts["normal_hour"] + 1.0)
    beyond = (counts[span] - expected) / math.sqrt(expected + 1.0)
    words = f"{counts[span]} in {parts[span]} parts, normally"
    return beyond, f"{words} {counts['normal_hour']} in {parts['normal_hour']}"
