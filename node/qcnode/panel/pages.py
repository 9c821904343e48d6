"""The pages: shells in a frame of their own language, which the live stream fills.

A shell holds no figure, so a page that lost the node has nothing old to show. Which pages
there are, and whom they are for, is one table; the frame shows it to everybody, and says of
a page that is not theirs who may open it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request, Response

from qcnode.panel.access import Right, least_role, needs, who_asks
from qcnode.panel.screen import screen_of
from qcnode.panel.words import languages

if TYPE_CHECKING:
    from starlette.templating import Jinja2Templates

    from qcnode.panel.sources import About


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """One page of the panel; its template and its words go by its name."""

    name: str
    path: str
    right: Right


PAGES = (
    Page(name="live", path="/", right=Right.VIEW),
    Page(name="review", path="/review", right=Right.REVIEW),
    Page(name="alarms", path="/alarms", right=Right.VIEW),
    Page(name="trends", path="/trends", right=Right.VIEW),
    Page(name="health", path="/health", right=Right.VIEW),
    Page(name="models", path="/models", right=Right.MODELS),
    Page(name="spend", path="/spend", right=Right.SPEND),
    Page(name="audit", path="/audit", right=Right.AUDIT),
    Page(name="station", path="/station", right=Right.VIEW),
    Page(name="wall", path="/wall", right=Right.VIEW),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shells:
    """Fills the templates with what is the same on every page."""

    templates: Jinja2Templates
    about: About
    build: str
    reference: bool

    def page(self, request: Request, template: str, *, code: int = 200, **more: Any) -> Response:
        """Return the page of this name as the screen that asks wants it."""
        screen, who = screen_of(request), who_asks(request)
        say = languages()[screen.language]
        values = {
            "about": self.about,
            "build": self.build,
            "page": template,
            "pages": PAGES,
            "screen": screen,
            "who": who,
            "say": say,
            "reference": self.reference,
            "languages": languages(),
            "least_role": least_role,
        }
        return self.templates.TemplateResponse(
            request, f"{template}.html", values | more, status_code=code
        )


def router(shells: Shells) -> APIRouter:
    """Return the pages that are nothing but a shell."""
    routes = APIRouter()
    for page in PAGES:
        if page.name != "station":
            routes.add_api_route(
                page.path,
                _shell(shells, page.name),
                name=page.name,
                dependencies=[needs(page.right)],
                include_in_schema=False,
            )
    return routes


def _shell(shells: Shells, name: str) -> Any:
    async def shell(request: Request) -> Response:
        return shells.page(request, name)

    return shell
