"""Everything the screens show but the picture, as sections, in every language in use.

One look at the node serves all screens. A section that needs a right is None for whoever
has it not; that is decided here, on the node, and never in the browser.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from qcnode.panel import view
from qcnode.panel.access import Right
from qcnode.panel.decisions import tag_of
from qcnode.panel.stops import stop_name, stop_words

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from datetime import datetime, timedelta

    from qcnode.health import HealthBoard
    from qcnode.panel.access import Who
    from qcnode.panel.alarmdesk import AlarmDesk
    from qcnode.panel.books import Books, Reading
    from qcnode.panel.decisions import Decisions
    from qcnode.panel.sources import About, LiveView
    from qcnode.panel.stops import SwitchView
    from qcnode.panel.words import Words

RIGHT_OF = {
    "waiting": Right.REVIEW,
    "settled": Right.REVIEW,
    "bars": Right.REVIEW,
    "money": Right.SPEND,
}
"""Sections that are not for everybody."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sections:
    """Makes the sections of the state."""

    build: str
    about: About
    books: Books
    health: HealthBoard
    station_live: Callable[[], LiveView | None]
    decisions: Decisions
    alarms: AlarmDesk
    look_first: float
    now: Callable[[], datetime]
    switch: SwitchView | None = None

    async def all(self, languages: Iterable[Words]) -> dict[str, view.Json]:
        """Return every section in each of these languages."""
        reading, at = await self.books.read(), self.now()
        return {say.language: self._in(say, reading, at) for say in languages}

    async def waiting(self, say: Words) -> view.Json:
        """Return the waiting parts alone."""
        return self._waiting(say, await self.books.read(), self.now())

    def _in(self, say: Words, reading: Reading, at: datetime) -> view.Json:
        about = self.about
        return {
            "build": self.build,
            "about": view.about_words(say, about),
            "pulse": view.pulse(say, at, about, self.station_live()),
            "counters": view.counters(reading.counts),
            "strip": view.strip(say, reading.recent),
            "queue": view.queue(say, reading.waiting, now=at),
            "waiting": self._waiting(say, reading, at),
            "settled": view.settled(say, reading.settled, about),
            "money": view.money(
                say,
                reading.totals,
                about,
                outlooks=reading.outlooks,
                confirmed=reading.confirmed,
                now=at,
            ),
            "bars": view.bars(say, reading.outlooks, about, now=at),
            "health": view.health(say, self.health.all(), about, now=at),
            "wall": view.wall(
                say,
                reading.counts,
                reading.recent,
                running=all(one.ok for one in self.health.all() if one.needed),
                called=self.alarms.called_for(),
            ),
            "alarms": self.alarms.strip(say),
            "stops": self._stops(say),
        }

    def _stops(self, say: Words) -> view.Json:
        """Return what is stopped, and what could be; empty where there is no switch."""
        if self.switch is None:
            return {"active": [], "scopes": []}
        about = self.about
        scopes = ["all", "line"]
        if about.provider_model is not None:
            scopes += [f"agent:{about.provider_model}", f"provider:{about.provider}"]
        return {
            "active": stop_words(say, self.switch.stops()),
            "scopes": [{"scope": one, "name": stop_name(say, one)} for one in scopes],
        }

    def _waiting(self, say: Words, reading: Reading, at: datetime) -> view.Json:
        return view.waiting(
            say,
            reading.waiting,
            self.about,
            kept=reading.kept,
            leases=self.decisions.leases(),
            pending=self.decisions.pending(),
            look_first=self.look_first,
            now=at,
        )


def seen_by(who: Who, sections: view.Json) -> view.Json:
    """Return the sections as this person may see them."""
    return {
        name: None if (right := RIGHT_OF.get(name)) and right not in who.rights else value
        for name, value in sections.items()
    }


def self_words(say: Words, who: Who, idle_left: timedelta | None) -> view.Json:
    """Return what a screen is told of whoever stands before it."""
    return {
        "name": who.name,
        "role": who.role.value,
        "role_word": say(f"role.{who.role}"),
        "rights": sorted(who.rights),
        "tag": tag_of(who),
        "idle_soon": idle_left is not None and idle_left.total_seconds() < IDLE_SOON_S,
    }


IDLE_SOON_S = 30
