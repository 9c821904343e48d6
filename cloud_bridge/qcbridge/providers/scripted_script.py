"""What the scripted provider answers: decided by a seed and the part, before anything is sent.

It takes its time and fails as providers do, each way at its own rate. It can look at no
picture: its findings come from the virtual line's own record of what each part is, and
are wrong as often as it is told to be.
"""

from __future__ import annotations

import json
import math
import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from qcbridge.evidence import image_tokens
from qcbridge.providers.scripted_books import World
from qcbridge.providers.scripted_process import advise
from qcnode.domain import Finding
from qcnode.errors import SettingsError
from qcnode.lines.world import GOOD, UNKNOWN

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

MODEL: Final = "scripted-provider"
NAME: Final = "scripted provider"
PROSE: Final = "I had a good look at this part, and all in all it seems fine to me!"
CACHE_BLOCK_TOKENS: Final = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class ScriptedSettings:
    """How the scripted provider behaves; the rates are shares of all requests.

    `latency_ms` is the median of a log-normal and `latency_spread` its sigma.
    `accuracy` is how often a finding agrees with the truth in `world`. `model` is the one
    model that there is. With `obey`, a file of JSON lines (`part_id`, `says`), it is the worst
    that can be asked: what is written on a part is what it answers, word for word. It can
    read no picture, so the file says what is written.
    """

    world: Path
    log: Path
    api_key: str = field(repr=False)
    port: int = 0
    model: str = MODEL
    accuracy: float = 0.95
    latency_ms: float = 300.0
    latency_spread: float = 0.3
    error_rate: float = 0.0
    limit_rate: float = 0.0
    timeout_rate: float = 0.0
    reset_rate: float = 0.0
    prose_rate: float = 0.0
    hang_s: float = 600.0
    seed: int = 1
    obey: Path | None = None

    def __post_init__(self) -> None:
        for name in ("accuracy", *_FATES):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise SettingsError(
                    f"{NAME}: {name} = {getattr(self, name)}: a share is from 0 to 1"
                )
        if sum(getattr(self, name) for name in _FATES) > 1.0:
            raise SettingsError(f"{NAME}: the rates of {', '.join(_FATES)} sum to more than 1")
        if not (self.latency_ms > 0 and self.latency_spread >= 0 and self.hang_s > 0):
            raise SettingsError(
                f"{NAME}: latency-ms and hang-s are more than 0, latency-spread is >= 0"
            )
        if not self.api_key:
            raise SettingsError(f"{NAME}: no API key; set QCNODE_PROVIDER_API_KEY")


# What happens to a request, by the setting that says how often, and whether a real
# provider would bill it: hanging and cut-off requests were worked on before they were lost.
_FATES: Final[Mapping[str, tuple[str, bool]]] = {
    "error_rate": ("error_500", False),
    "limit_rate": ("limited_429", False),
    "timeout_rate": ("hung", True),
    "reset_rate": ("reset", True),
    "prose_rate": ("prose", True),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What was asked, in whatever protocol; without a picture its sides are 0."""

    case: Mapping[str, Any]
    defect_classes: tuple[str, ...]
    system: str
    text_length: int
    width: int
    height: int

    @property
    def part_id(self) -> str:
        """The part in question, or what else the question is called."""
        return str(self.case.get("part_id", self.case.get("question_id", "")))

    @property
    def told(self) -> Mapping[str, Any] | None:
        """What a question about the process tells; None is a question about a part."""
        return self.case if "question_id" in self.case else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Used:
    """The tokens of one request; cached ones are text, and within it."""

    text: int
    image: int
    cached: int
    completion: int
    told: Mapping[str, Any] | None = None
    """What a question about the process tells; None is a question about a part."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What one request gets, decided before anything of it is sent."""

    outcome: str
    billed: bool
    said: str
    used: Used | None
    latency_s: float
    response_id: str


class Script:
    """Decides, from the seed and the part, what a request gets; the order does not matter."""

    def __init__(self, settings: ScriptedSettings) -> None:
        self._settings = settings
        self._world = World(settings.world)
        self._written = {} if settings.obey is None else _written_in(settings.obey)
        self._asked: dict[str, int] = {}
        self._prefixes: set[str] = set()

    def reply(self, question: Question) -> Reply:
        """Throw the dice for this request: the n-th about its part."""
        settings, part_id = self._settings, question.part_id
        times = self._asked[part_id] = self._asked.get(part_id, 0) + 1
        dice = random.Random(f"{settings.seed}:{part_id}:{times}")  # noqa: S311  # a script
        outcome, billed = self._fate(dice.random())
        said = PROSE if outcome == "prose" else self._answer(question, dice)
        median = math.log(settings.latency_ms)
        return Reply(
            outcome=outcome,
            billed=billed,
            said=said,
            used=self._used(question, said) if billed else None,
            latency_s=dice.lognormvariate(median, settings.latency_spread) / 1000,
            response_id=f"scripted-{dice.getrandbits(64):016x}",
        )

    def _fate(self, at: float) -> tuple[str, bool]:
        for name, fate in _FATES.items():
            at -= getattr(self._settings, name)
            if at < 0:
                return fate
        return "answered", True

    def _answer(self, question: Question, dice: random.Random) -> str:
        right = dice.random() < self._settings.accuracy
        if question.told is not None:
            return advise(question.told, right=right, dice=dice, name=NAME)
        written = self._written.get(question.part_id)
        if written is not None:
            return written
        truth = self._world.truth(question.part_id)
        sure = round(dice.uniform(0.8, 0.99), 2)
        if truth in (None, UNKNOWN):
            return _ruling(question, Finding.UNSURE, confidence=0.0, reason="nothing of this part")
        if (truth == GOOD) == right:
            return _ruling(question, Finding.GOOD, confidence=sure, reason="no defect")
        # A finding that is wrong on purpose names any kind.
        kind = next(iter(question.defect_classes), None) if truth == GOOD else truth
        kind = kind if kind in question.defect_classes else None
        reason = f"a defect ({kind})" if kind else "a defect"
        return _ruling(question, Finding.DEFECTIVE, kind=kind, confidence=sure, reason=reason)

    def _used(self, question: Question, said: str) -> Used:
        # From its second use on, the same opening is cached, in whole blocks. It is text, and
        # as every kind of token is told apart here, nothing of a bill is left to guesses.
        cached = 0
        if question.system in self._prefixes:
            cached = _tokens(len(question.system)) // CACHE_BLOCK_TOKENS * CACHE_BLOCK_TOKENS
        self._prefixes.add(question.system)
        return Used(
            text=_tokens(question.text_length),
            image=image_tokens(question.width, question.height, formula="patch28"),
            cached=cached,
            completion=_tokens(len(said)),
        )


def _written_in(path: Path) -> dict[str, str]:
    try:
        rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
        return {str(row["part_id"]): str(row["says"]) for row in rows}
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise SettingsError(
            f"{path}: no list of what is written on parts ({type(error).__name__}): give JSON"
            " lines with part_id and says"
        ) from error


def _ruling(
    question: Question,
    finding: Finding,
    *,
    confidence: float,
    reason: str,
    kind: str | None = None,
) -> str:
    part = {"part_id": question.part_id}
    ruling = {
        "finding": finding.value,
        "defect_class": kind,
        "location": "within the crop" if finding is Finding.DEFECTIVE else None,
        "confidence": confidence,
        "reason": f"The {NAME} was told of {reason}.",
    }
    if "steps_left" in question.case:  # It needs no closer look to know what it was told.
        return json.dumps(part | {"ruling": ruling, "request": None})
    return json.dumps(part | ruling)


def _tokens(characters: int) -> int:
    return math.ceil(characters / 4)
