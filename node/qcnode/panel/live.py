"""The live stream: one WebSocket per tab, the newest part and what changed beside it.

The line is never touched: the hub looks at the last part a few times a second, and
only while somebody watches. A message is made once per part and the same bytes go to
everybody. A slow tab is sent less, never later: at most two pictures are on their
way to it, and what it missed in the meantime is not made up for. Who sits before a tab
is asked anew each time, so a session that ends leaves the tab a viewer's, picture and all.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from typing import TYPE_CHECKING, Any

import structlog
from fastapi import APIRouter, WebSocket, WebSocketDisconnect

from qcnode.panel import pictures, view
from qcnode.panel.access import NOBODY, WHO
from qcnode.panel.screen import words_for
from qcnode.panel.state import seen_by, self_words

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from concurrent.futures import Executor

    from qcnode.panel.access import Who
    from qcnode.panel.accounts import Accounts
    from qcnode.panel.sources import About, LiveView
    from qcnode.panel.words import Words

log = structlog.get_logger()

LOOK_S = 0.04
"""How often the line's last part is looked at; it bounds pictures to 25 a second."""
STATE_S = 0.5
"""How often figures are read; a browser gives the node up after five times that."""
IN_FLIGHT_MAX = 2
VIEWERS_MAX = 32
SEND_MAX_S = 10.0
TRY_AGAIN_LATER = 1013


class Viewer:
    """One tab: who sits before it, what it was sent, and what of that it has painted."""

    def __init__(self, who: Who, say: Words) -> None:
        self.who = who
        self.say = say
        self.told: view.Json = {}
        self.visible = False
        self.news = asyncio.Event()
        self.sent_seq = 0
        self.state_rev = 0
        self._unpainted: deque[int] = deque()

    def may_take(self) -> bool:
        """Say whether another picture may go on its way."""
        return self.visible and len(self._unpainted) < IN_FLIGHT_MAX

    def sent(self, seq: int) -> None:
        """Note a picture on its way."""
        self.sent_seq = seq
        self._unpainted.append(seq)

    def painted(self, seq: int) -> None:
        """Note that the tab painted this picture, or a later one instead."""
        while self._unpainted and self._unpainted[0] <= seq:
            self._unpainted.popleft()

    def shown(self, *, visible: bool) -> None:
        """Note that the tab came to the front, or left it; what was on its way is forgotten."""
        self.visible = visible
        self._unpainted.clear()


class LiveHub:
    """Knows the newest part and the newest state, and wakes the tabs that lack them."""

    def __init__(
        self,
        *,
        station_live: Callable[[], LiveView | None],
        about: About,
        accounts: Accounts,
        state: Callable[[list[Words]], Awaitable[dict[str, view.Json]]],
        threads: Executor,
        slow: Executor,
    ) -> None:
        self._slow = slow
        self._station_live = station_live
        self._about = about
        self._accounts = accounts
        self._state = state
        self._threads = threads
        self._viewers: set[Viewer] = set()
        self._watched = asyncio.Event()
        self._stale = asyncio.Event()
        self._newest: bytes | None = None
        self._newest_seq = 0
        self._newest_id: str | None = None
        self._sections: dict[str, view.Json] = {}
        self._section_revs: dict[str, dict[str, int]] = {}
        self._rev = 0

    async def run(self) -> None:
        """Follow line and books until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._follow_line())
            tasks.create_task(self._follow_state())

    def viewers(self) -> int:
        """Return how many tabs are open."""
        return len(self._viewers)

    def poke(self) -> None:
        """Have the state read now, because something was just decided."""
        self._stale.set()

    async def serve(self, socket: WebSocket) -> None:
        """Serve one tab until it goes away."""
        await socket.accept()
        if len(self._viewers) >= VIEWERS_MAX:
            await socket.close(TRY_AGAIN_LATER, "too many open panels")
            return
        viewer = Viewer(socket.scope[WHO], words_for(socket))
        self._viewers.add(viewer)
        self._watched.set()
        self._stale.set()
        viewer.news.set()
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._send(socket, viewer))
                tasks.create_task(self._receive(socket, viewer))
        except* (WebSocketDisconnect, TimeoutError):
            pass  # Gone, or as good as gone; a tab comes back by itself.
        finally:
            self._viewers.discard(viewer)
            if not self._viewers:
                self._forget()

    async def _send(self, socket: WebSocket, viewer: Viewer) -> None:
        while True:
            await viewer.news.wait()
            viewer.news.clear()
            async with asyncio.timeout(SEND_MAX_S):
                since, language = viewer.state_rev, viewer.say.language
                if since < self._rev and language in self._sections:
                    viewer.state_rev = self._rev
                    await socket.send_text(self._delta(viewer, since))
                newest, seq = self._newest, self._newest_seq
                if newest is not None and viewer.sent_seq < seq and viewer.may_take():
                    viewer.sent(seq)
                    await socket.send_bytes(newest)

    async def _receive(self, socket: WebSocket, viewer: Viewer) -> None:
        while True:
            try:
                self._note(viewer, json.loads(await socket.receive_text()))
            except (ValueError, KeyError, TypeError, RecursionError):
                await socket.close(1008, "not a message of the panel")
                raise WebSocketDisconnect(1008) from None
            viewer.news.set()

    async def _follow_line(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._watched.wait()
            live = self._station_live()
            if (
                live is not None
                and live.inspection.id != self._newest_id
                and any(viewer.may_take() for viewer in self._viewers)
            ):
                seq = self._newest_seq + 1
                self._newest = await loop.run_in_executor(self._threads, self._pack, live, seq)
                self._newest_seq, self._newest_id = seq, live.inspection.id
                self._wake()
            await asyncio.sleep(LOOK_S)

    def _pack(self, live: LiveView, seq: int) -> bytes:
        limits = self._about.limits
        if live.prediction is not None and live.prediction.limits is not None:
            limits = live.prediction.limits  # Of the model that judged this part.
        header: dict[str, Any] = {
            "seq": seq,
            "part": view.part(live, limits, zone=self._about.zone),
        }
        pixels = None if live.frame is None else pictures.shown(live.frame)
        return pictures.pack(header, pixels=pixels, prediction=live.prediction, limits=limits)

    async def _follow_state(self) -> None:
        while True:
            await self._watched.wait()
            self._stale.clear()
            used = {viewer.say.language: viewer.say for viewer in self._viewers}
            state = await self._state(list(used.values()))
            rev = self._rev + 1
            for language, sections in state.items():
                news = view.changed(self._sections.get(language, {}), sections)
                if news:
                    self._rev = rev
                    self._section_revs.setdefault(language, {}).update(dict.fromkeys(news, rev))
            self._sections = state
            self._look_who()
            self._wake()
            try:
                async with asyncio.timeout(STATE_S):
                    await self._stale.wait()
            except TimeoutError:
                continue

    def _look_who(self) -> None:
        """See whose tabs these are by now; one that changed hands is told everything anew."""
        for viewer in self._viewers:
            if viewer.who.key is not None:
                who = self._accounts.who_by_key(viewer.who.key) or NOBODY
                if who.role != viewer.who.role:
                    viewer.who, viewer.state_rev = who, 0
            told = self._self_words(viewer)
            if told != viewer.told:
                viewer.told, viewer.state_rev = told, min(viewer.state_rev, self._rev - 1)

    def _self_words(self, viewer: Viewer) -> view.Json:
        key = viewer.who.key
        left = None if key is None else self._accounts.idle_left(key)
        return self_words(viewer.say, viewer.who, left)

    def _delta(self, viewer: Viewer, since: int) -> str:
        language = viewer.say.language
        revs = self._section_revs[language]
        news = {
            name: value for name, value in self._sections[language].items() if revs[name] > since
        }
        viewer.told = self._self_words(viewer)
        sections = {"who": viewer.told, **seen_by(viewer.who, news)}
        return json.dumps(
            {"rev": self._rev, "sections": sections}, ensure_ascii=False, allow_nan=False
        )

    def _note(self, viewer: Viewer, said: dict[str, Any]) -> None:
        kind = said["type"]
        if kind == "painted":
            viewer.painted(int(said["seq"]))
        elif kind == "shown":
            viewer.shown(visible=bool(said["visible"]))
        elif kind == "touched":
            self._touched(viewer)
        else:
            raise ValueError(kind)

    def _touched(self, viewer: Viewer) -> None:
        """Note that somebody is there, now and then on disk."""
        key = viewer.who.key
        if key is not None and self._accounts.touch(key):
            keeping = asyncio.get_running_loop().run_in_executor(
                self._slow, self._accounts.keep_seen, key
            )
            keeping.add_done_callback(_tell_unkept)

    def _forget(self) -> None:
        """Rest until somebody watches again; what was known then is old by that time."""
        self._watched.clear()
        self._newest = self._newest_id = None
        self._sections = {}
        self._section_revs = {}

    def _wake(self) -> None:
        for viewer in self._viewers:
            viewer.news.set()


def _tell_unkept(keeping: asyncio.Future[None]) -> None:
    if not keeping.cancelled() and (error := keeping.exception()) is not None:
        log.warning("session not kept", reason=str(error))


def router(hub: LiveHub) -> APIRouter:
    """Return the one route of the live stream."""
    routes = APIRouter()

    @routes.websocket("/ws")
    async def live(socket: WebSocket) -> None:
        await hub.serve(socket)

    return routes
