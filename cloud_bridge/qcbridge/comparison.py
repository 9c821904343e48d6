"""Escalations shown in other ways: what each way costs in tokens, by each provider's formula.

Pure, over parts that were put to somebody. Tokens of pictures are by the formula, those
of words four characters each, as long as nobody has asked: how far that is off stands in
what was returned, for every picture that can be made again to the byte.
"""

from __future__ import annotations

import json
import math
import statistics
from collections import defaultdict
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from qcbridge.evidence import FORMULAS, cheapest_size
from qcbridge.packing import Packing, beside, open_views, pack, panels, sheet
from qcbridge.prompts import PLAIN, Style, build_prompt

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from qcbridge.packing import Shown
    from qcbridge.prompts import Prompt
    from qcbridge.redact import Redaction
    from qcnode.domain import Escalation, Finding
    from qcnode.money import TokenUsage

CHARACTERS_PER_TOKEN: Final = 4


class Way(StrEnum):
    """How parts are shown: as a naive prompt does, and the ways of `Packing`, and many at once."""

    FRAME = "frame"
    CROP = "crop"
    CROP_GOLDEN = "crop+golden"
    SHEET = "sheet"
    """Several parts on one picture in one request; asked nobody so far."""


PACKINGS: Final = {
    Way.FRAME: Packing.FRAME,
    Way.CROP: Packing.CROP,
    Way.CROP_GOLDEN: Packing.CROP_GOLDEN,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A part that was put to somebody; `truth` is what it really is, where that is known."""

    escalation: Escalation
    picture: bytes
    heat: bytes | None
    truth: Finding | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Asking:
    """What is the same for all parts: the product's words, a good part, what is hidden."""

    product: str
    defect_classes: tuple[str, ...]
    golden: bytes | None
    redaction: Redaction
    side_max_px: int
    sheet_parts: int = 4
    output_tokens: int = 60
    """What an answer has, where nobody has asked."""


@dataclass(slots=True, kw_only=True)
class Row:
    """All parts in one way, counted by one formula."""

    way: Way
    formula: str
    image: list[float] = field(default_factory=list)
    """Tokens of the picture, for each part."""
    text: int = 0
    output: int = 0

    @property
    def parts(self) -> int:
        """How many parts were shown."""
        return len(self.image)

    @property
    def total(self) -> int:
        """Tokens of all requests, answers included."""
        return math.ceil(sum(self.image)) + self.text + self.output

    def spread(self) -> tuple[float, float, float]:
        """Return least, middle and most picture tokens of a part."""
        return min(self.image), statistics.median(self.image), max(self.image)


def compare(cases: Iterable[Case], asking: Asking, formulas: Sequence[str]) -> list[Row]:
    """Show every part in every way, and count by every formula. Raises `PictureError`."""
    rows = {(way, formula): Row(way=way, formula=formula) for formula in formulas for way in Way}
    waiting: list[tuple[NDArray[np.uint8], Prompt]] = []
    for case in cases:
        views = open_views(
            case.picture, case.heat, golden=asking.golden, redaction=asking.redaction
        )
        box = views.evidence(case.escalation.box)
        seen = {way: panels(views, box, PACKINGS[way]) for way in (Way.CROP, Way.CROP_GOLDEN)}
        for formula in formulas:
            count = FORMULAS[formula]
            for way, pictures in seen.items():
                shown = beside(views, box, pictures, side_max_px=asking.side_max_px, count=count)
                prompt = _prompt(case, shown, asking, style_of(way, asking.redaction))
                _add(rows[way, formula], count(shown.width, shown.height), prompt, asking)
                if way is Way.CROP:
                    # A naive prompt is taken to say as little as the shortest of ours.
                    naive = _prompt(case, shown, asking, PLAIN)
            _add(rows[Way.FRAME, formula], count(*views.size), naive, asking)
        waiting.append((seen[Way.CROP][0][1], naive))
        if len(waiting) == asking.sheet_parts:
            _lay(waiting, asking, rows)
            waiting = []
    if waiting:
        _lay(waiting, asking, rows)
    return list(rows.values())


def _add(row: Row, image: float, prompt: Prompt, asking: Asking) -> None:
    row.image.append(image)
    row.text += text_tokens(prompt)
    row.output += asking.output_tokens


def text_tokens(prompt: Prompt) -> int:
    """Return about how many tokens the words of a question have."""
    return _tokens(len(prompt.system) + len(prompt.user) + len(json.dumps(prompt.schema)))


def style_of(way: Way, redaction: Redaction) -> Style:
    """Return what a question of this way says of its pictures."""
    return Style(panels=way is Way.CROP_GOLDEN, hidden=bool(redaction.areas))


def _prompt(case: Case, shown: Shown, asking: Asking, style: Style) -> Prompt:
    return build_prompt(case.escalation, shown, asking.product, asking.defect_classes, style=style)


def _lay(
    waiting: Sequence[tuple[NDArray[np.uint8], Prompt]],
    asking: Asking,
    rows: dict[tuple[Way, str], Row],
) -> None:
    laid = sheet([crop for crop, _ in waiting], side_max_px=asking.side_max_px)
    first = waiting[0][1]
    stays = len(first.system) + len(json.dumps(first.schema))
    text = _tokens(stays + sum(len(prompt.user) for _, prompt in waiting))
    for (way, formula), row in rows.items():
        if way is Way.SHEET:
            count = FORMULAS[formula]
            tokens = count(*cheapest_size(laid.shape[1], laid.shape[0], count))
            row.image += [tokens / len(waiting)] * len(waiting)
            row.text += text
            row.output += asking.output_tokens * len(waiting)


def _tokens(characters: int) -> int:
    return math.ceil(characters / CHARACTERS_PER_TOKEN)


# -- held against what was returned --------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Returned:
    """One request that was answered, as the ledger has it."""

    escalation_id: str
    provider: str
    model: str
    image_sha256: str | None
    usage: TokenUsage


@dataclass(slots=True, kw_only=True)
class Estimate:
    """How far the estimates for a provider's model were off, over requests made again exactly.

    Errors are shares of what was returned, more than 0 where the estimate was too high.
    Pictures have their own only where the provider tells their tokens apart.
    """

    provider: str
    model: str
    formula: str
    image: list[float] = field(default_factory=list)
    whole: list[float] = field(default_factory=list)
    other: int = 0
    """Requests whose picture would be another now: the settings have changed since."""


def check(
    cases: Iterable[Case],
    returned: Iterable[Returned],
    asking: Asking,
    formulas: dict[tuple[str, str], str],
) -> list[Estimate]:
    """Hold estimates against usage; `formulas` are those of each provider and model asked."""
    answers = defaultdict(list)
    for one in returned:
        if (one.provider, one.model) in formulas:
            answers[one.escalation_id].append(one)
    found: dict[tuple[str, str], Estimate] = {}
    way = Way.CROP if asking.golden is None else Way.CROP_GOLDEN
    for case in cases:
        for one in answers.get(case.escalation.id, ()):
            model = (one.provider, one.model)
            formula = formulas[model]
            estimate = found.setdefault(
                model, Estimate(provider=one.provider, model=one.model, formula=formula)
            )
            count = FORMULAS[formula]
            views = open_views(
                case.picture, case.heat, golden=asking.golden, redaction=asking.redaction
            )
            shown = pack(
                views,
                case.escalation.box,
                PACKINGS[way],
                side_max_px=asking.side_max_px,
                count=count,
            )
            if shown.sha256 != one.image_sha256:
                estimate.other += 1
                continue
            prompt = _prompt(case, shown, asking, style_of(way, asking.redaction))
            image = count(shown.width, shown.height)
            if one.usage.image and not one.usage.unknown:
                estimate.image.append(image / one.usage.image - 1)
            estimate.whole.append((image + text_tokens(prompt)) / one.usage.input_tokens - 1)
    return list(found.values())
