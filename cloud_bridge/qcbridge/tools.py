"""What an agent may ask for before it answers: a closed list, each with bounded arguments.

A request for a tool is an answer in our own schema and nothing a provider runs. What it
asks for is read here exactly or refused, and what it gets are data: pictures of the same
part, counts, earlier cases, and one word on what became of a proposal.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from qcbridge.closed import check_keys, number_in, object_in, plain, short, words_in
from qcbridge.packing import beside
from qcnode.domain import Box
from qcnode.errors import JournalUnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from qcbridge.evidence import ImageTokens
    from qcbridge.packing import Shown, Views
    from qcbridge.settled import Settled
    from qcnode.domain import Escalation
    from qcnode.ports import Proposals

REGION_SIDE_MIN_PX: Final = 16
_SIDES: Final = ("left", "top", "width", "height")
CASES_SHOWN: Final = 3
WORDS_MAX: Final = 120
RESULT_BYTES_MAX: Final = 1_536
"""No result is longer, so the worst case of a step is known before it comes."""


class Tool(StrEnum):
    """What may be asked for."""

    ZOOM = "zoom"
    COMPARE = "compare"
    CASES = "settled_cases"
    COUNTERS = "counters"
    PROPOSE = "propose"


USES: Final[Mapping[Tool, int]] = MappingProxyType(
    {Tool.ZOOM: 2, Tool.COMPARE: 1, Tool.CASES: 1, Tool.COUNTERS: 1, Tool.PROPOSE: 1}
)
"""How often each may be used in one review."""

WORDS: Final[Mapping[Tool, str]] = MappingProxyType(
    {
        Tool.ZOOM: "shows a region of the whole picture larger, beside what you see now",
        Tool.COMPARE: "shows a region of the whole picture beside the same region of a good part",
        Tool.CASES: "tells what people found of the settled parts that look most like this one",
        Tool.COUNTERS: "tells how the parts of the last hour came out",
        Tool.PROPOSE: (
            "proposes a value for a setting of the process; what becomes of it others decide"
        ),
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Toolbox:
    """What tools there are. Zoom needs nothing, compare a golden picture, the rest these."""

    settled: Settled | None = None
    counters: Callable[[], Mapping[str, int]] | None = None
    """The parts of the last hour by what became of them."""
    proposals: Proposals | None = None
    uses: Mapping[Tool, int] = field(default_factory=lambda: USES)

    def offers(self) -> Mapping[str, tuple[float, float]]:
        """Return the settings of the process for which values may be proposed just now."""
        return {} if self.proposals is None else self.proposals.offers()

    def offered(self, *, golden: bool) -> tuple[Tool, ...]:
        """Return the tools that can be asked for at all."""
        there = {
            Tool.ZOOM: True,
            Tool.COMPARE: golden,
            Tool.CASES: self.settled is not None,
            Tool.COUNTERS: self.counters is not None,
            Tool.PROPOSE: bool(self.offers()),
        }
        return tuple(tool for tool in Tool if there[tool] and self.uses.get(tool, 0))

    def step(
        self, tools: Sequence[Tool], done: Sequence[tuple[Tool, Mapping[str, Any]]], *, left: int
    ) -> Step:
        """Say where a review stands after what it was given so far."""
        used, offers = Counter(tool for tool, _ in done), self.offers()
        return Step(
            left=left,
            uses={
                tool: max(0, self.uses[tool] - used[tool])
                for tool in tools
                if tool is not Tool.PROPOSE or offers
            },
            offers=offers,
            results=tuple(said for _, said in done),
        )

    def use(
        self,
        request: ToolRequest,
        *,
        escalation: Escalation,
        views: Views,
        who: str,
        side_max_px: int,
        count: ImageTokens,
    ) -> Result:
        """Do what was asked for; what comes of it is data, and bounded."""
        said: dict[str, Any] = {"tool": request.tool}
        shown = None
        if request.region is not None:
            panels = _panels(request, views, views.evidence(escalation.box))
            shown = beside(views, request.region, panels, side_max_px=side_max_px, count=count)
            region = request.region
            said["region"] = [region.left, region.top, region.width, region.height]
        elif request.tool is Tool.CASES:
            said["cases"] = self._cases(escalation, views)
        elif request.tool is Tool.COUNTERS and self.counters is not None:
            said["last_hour"] = dict(self.counters())
        elif request.tool is Tool.PROPOSE and self.proposals is not None:
            said |= {"knob": request.knob, "value": request.value}
            said["became"] = self.proposals.propose(
                who=who,
                knob=request.knob,
                value=request.value,
                reason=request.reason,
                escalation_id=escalation.id,
            )
        if len(json.dumps(said, ensure_ascii=False).encode()) > RESULT_BYTES_MAX:
            said = {"tool": request.tool, "too_long": True}
        return Result(said=said, shown=shown)

    def _cases(self, escalation: Escalation, views: Views) -> list[dict[str, Any]]:
        if self.settled is None:
            return []
        try:
            found = self.settled.nearest(escalation, views, CASES_SHOWN)
        except JournalUnavailableError:
            return []
        return [
            {
                "finding": case.finding,
                "defect_class": case.defect_class,
                "reason": plain(case.reason, WORDS_MAX),
            }
            for case in found
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """Where a review of several steps stands: what may still be asked, and what came of it."""

    left: int
    uses: Mapping[Tool, int]
    offers: Mapping[str, tuple[float, float]]
    results: tuple[Mapping[str, Any], ...] = ()

    @property
    def tools(self) -> tuple[Tool, ...]:
        """The tools that may be asked for now."""
        return tuple(tool for tool, uses in self.uses.items() if uses) if self.left else ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What a tool gave: data for the next question, and another picture where it shows one."""

    said: dict[str, Any]
    shown: Shown | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolRequest:
    """One tool that is asked for, with its arguments as they were checked."""

    tool: Tool
    region: Box | None = None
    knob: str = ""
    value: float = 0.0
    reason: str = ""


def request_schemas(tools: Sequence[Tool], knobs: Sequence[str]) -> list[dict[str, Any]]:
    """Return the closed shape of a request for each of these tools."""
    return [
        _closed({"tool": {"type": "string", "enum": [tool]}} | _arguments(tool, knobs))
        for tool in tools
    ]


def read_request(
    said: Any,
    *,
    tools: Sequence[Tool],
    offers: Mapping[str, tuple[float, float]],
    size: tuple[int, int],
) -> ToolRequest:
    """Read a request exactly, or raise `ValueError`; `size` is that of the whole picture."""
    request = object_in(said)
    name = request.get("tool")
    tool = next((tool for tool in tools if tool == name and isinstance(name, str)), None)
    if tool is None:
        raise ValueError(f"no such tool to be had: {short(name)}")
    check_keys(request, ("tool", *_arguments(tool, ())))
    if tool in (Tool.ZOOM, Tool.COMPARE):
        return ToolRequest(tool=tool, region=_region(request["region"], size))
    if tool is Tool.PROPOSE:
        return _proposal(request, offers)
    return ToolRequest(tool=tool)


def _proposal(request: Mapping[str, Any], offers: Mapping[str, tuple[float, float]]) -> ToolRequest:
    knob = request["knob"]
    if not isinstance(knob, str) or knob not in offers:
        raise ValueError(f"no such setting: {short(knob)}")
    value, (least, most) = number_in(request["value"]), offers[knob]
    if not least <= value <= most:
        raise ValueError(f"{knob} is to be from {least:g} to {most:g}, not {value:g}")
    reason = plain(words_in(request["reason"]), WORDS_MAX)
    return ToolRequest(tool=Tool.PROPOSE, knob=knob, value=value, reason=reason)


def _region(said: Any, size: tuple[int, int]) -> Box:
    region = object_in(said)
    check_keys(region, _SIDES)
    left, top, width, height = (region[name] for name in _SIDES)
    for value in (left, top, width, height):
        if isinstance(value, bool) or not isinstance(value, int):
            raise ValueError(f"no whole pixels: {short(value)}")  # noqa: TRY004  # an answer's, no caller's
    if min(width, height) < REGION_SIDE_MIN_PX or min(left, top) < 0:
        raise ValueError(f"no region of at least {REGION_SIDE_MIN_PX} pixels: {short(region)}")
    if left + width > size[0] or top + height > size[1]:
        raise ValueError(f"a region outside the picture: {short(region)}")
    return Box(left=left, top=top, width=width, height=height)


def _panels(
    request: ToolRequest, views: Views, evidence: Box
) -> list[tuple[str, NDArray[np.uint8]]]:
    """Return the region beside what was seen before, or beside a good part's."""
    region = request.region
    assert region is not None  # noqa: S101  # checked by whoever calls
    if request.tool is Tool.ZOOM:
        return [("zoom", views.part(region)), ("part", views.part(evidence))]
    good = views.good(region)
    panels = [("zoom", views.part(region))]
    return panels if good is None else [*panels, ("golden", good)]


def _arguments(tool: Tool, knobs: Sequence[str]) -> dict[str, Any]:
    if tool in (Tool.ZOOM, Tool.COMPARE):
        sides = {name: {"type": "integer"} for name in _SIDES}
        return {"region": _closed(sides)}
    if tool is Tool.PROPOSE:
        return {
            "knob": {"type": "string", "enum": list(knobs)},
            "value": {"type": "number"},
            "reason": {"type": "string"},
        }
    return {}


def _closed(properties: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }
