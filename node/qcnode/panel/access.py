"""Who may do what at the panel: roles, rights, and the one way a route asks for a right.

Every route names exactly one right, and nothing else decides who may use it; so the
table of roles and actions is read off the routes and cannot be out of date.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from typing import TYPE_CHECKING, Any

from fastapi import Depends, FastAPI, Request
from fastapi.routing import RouteContext, iter_route_contexts

from qcnode.errors import AccessError

if TYPE_CHECKING:
    from collections.abc import Callable

WHO = "qcnode.who"
"""Key in the scope: the `Who` that asks."""


class Role(StrEnum):
    """What a person is at this station; a viewer is whoever has not signed in."""

    VIEWER = "viewer"
    OPERATOR = "operator"
    SUPERVISOR = "supervisor"
    ENGINEER = "engineer"
    ADMIN = "admin"
    AUDITOR = "auditor"


class Right(StrEnum):
    """One kind of action."""

    VIEW = "view"
    HELP = "help"
    REVIEW = "review"
    ACKNOWLEDGE = "acknowledge"
    STOP = "stop"
    CLEAR = "clear"
    SHELVE = "shelve"
    LEARN = "learn"
    SPEND = "spend"
    MODELS = "models"
    METRICS = "metrics"
    MAINTAIN = "maintain"
    AUDIT = "audit"
    USERS = "users"


_VIEWER = frozenset({Right.VIEW, Right.HELP})
_OPERATOR = _VIEWER | {Right.REVIEW, Right.ACKNOWLEDGE, Right.STOP}
_SUPERVISOR = _OPERATOR | {Right.CLEAR, Right.SHELVE, Right.LEARN, Right.SPEND}
_ENGINEER = _SUPERVISOR | {Right.MODELS, Right.METRICS, Right.MAINTAIN}
GRANTS: dict[Role, frozenset[Right]] = {
    Role.VIEWER: _VIEWER,
    Role.OPERATOR: _OPERATOR,
    Role.SUPERVISOR: _SUPERVISOR,
    Role.ENGINEER: _ENGINEER,
    Role.ADMIN: _ENGINEER | {Right.AUDIT, Right.USERS},
    # Reads everything and changes nothing.
    Role.AUDITOR: _VIEWER | {Right.SPEND, Right.MODELS, Right.METRICS, Right.AUDIT},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Who:
    """Whoever asks. `key` names their session for as long as it lasts; None without one."""

    name: str
    role: Role
    rights: frozenset[Right]
    key: str | None = None


NOBODY = Who(name="", role=Role.VIEWER, rights=GRANTS[Role.VIEWER])


def least_role(right: Right) -> Role:
    """Return the first role that has this right, which is whom to call."""
    return next(role for role in Role if right in GRANTS[role])


def who_asks(request: Request) -> Who:
    """Return who asks, as the guard found out."""
    who = request.scope[WHO]
    assert isinstance(who, Who)  # noqa: S101  # the guard stands before every route
    return who


_RIGHT_OF: dict[Callable[..., Any], Right] = {}


@cache
def needs(right: Right) -> Any:
    """Return the dependency of a route that is for those with this right."""

    def check(request: Request) -> None:
        if right not in who_asks(request).rights:
            raise AccessError(f"needs {least_role(right)}")

    _RIGHT_OF[check] = right
    return Depends(check)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One action there is, and the right it needs; None where it asks for none, or for several."""

    method: str
    path: str
    right: Right | None


def rules(app: FastAPI) -> list[Rule]:
    """Return the rule of every route there is but the pages' own files and the live stream."""
    return sorted(
        (
            Rule(method=method, path=one.path or "", right=_right_of(one))
            for one in iter_route_contexts(app.routes)
            for method in one.methods or ()
        ),
        key=lambda rule: (rule.path, rule.method),
    )


def _right_of(route: RouteContext) -> Right | None:
    asked = [
        right
        for one in route.dependencies
        if one.dependency is not None and (right := _RIGHT_OF.get(one.dependency)) is not None
    ]
    return asked[0] if len(asked) == 1 else None


def table(app: FastAPI) -> str:
    """Write who may do what as docs/panel/roles.md has it."""
    every = list(Role)
    lines = [
        "# Who may do what",
        "",
        "Written from the routes by `make panel-docs`; a test compares the two, and another one",
        "tries every role on every route. Whoever has not signed in is a viewer.",
        "",
        f"| action | right | {' | '.join(every)} |",
        f"|---|---|{'---|' * len(every)}",
    ]
    lines += [
        f"| `{one.method} {one.path}` | {one.right} | "
        + " | ".join("yes" if one.right in GRANTS[role] else "" for role in every)
        + " |"
        for one in rules(app)
    ]
    return "\n".join(lines) + "\n"
