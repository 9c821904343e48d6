"""What a screen is: its size, theme, language and whether people wear gloves.

It is this browser's own and says nothing about anybody, so a cookie keeps it and whoever
stands there may change it. Whatever does not read as a screen is the default one.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal
from urllib.parse import parse_qs, urlencode

from starlette.datastructures import Headers

from qcnode.panel.guard import cookie_of
from qcnode.panel.words import DEFAULT, languages

if TYPE_CHECKING:
    from starlette.requests import HTTPConnection

    from qcnode.panel.words import Words

COOKIE = "qcnode_screen"
INCH_MIN, INCH_MAX = 5.0, 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Screen:
    """One screen. `inch` is its diagonal, 0 when nobody said."""

    language: str = DEFAULT
    theme: Literal["dark", "light"] = "dark"
    inch: float = 0.0
    gloves: bool = False

    def cookie(self) -> str:
        """Write the screen as its cookie has it."""
        return urlencode({name: str(value) for name, value in asdict(self).items()})


def read_screen(values: dict[str, str]) -> Screen:
    """Read what a form or a cookie says, and take the default for what it does not."""
    try:
        inch = float(values.get("inch", "0") or "0")
    except ValueError:
        inch = 0.0
    return Screen(
        language=language if (language := values.get("language")) in languages() else DEFAULT,
        theme="light" if values.get("theme") == "light" else "dark",
        inch=inch if INCH_MIN <= inch <= INCH_MAX else 0.0,
        gloves=values.get("gloves") in ("True", "on"),
    )


def screen_of(connection: HTTPConnection) -> Screen:
    """Return the screen this comes from."""
    said = parse_qs(cookie_of(Headers(scope=connection.scope), COOKIE))
    return read_screen({name: values[0] for name, values in said.items()})


def words_for(connection: HTTPConnection) -> Words:
    """Return the sentences in the language of this screen."""
    return languages()[screen_of(connection).language]
