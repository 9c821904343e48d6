"""One picture ahead: the next part's is taken while this part's is judged.

`Ahead` stands between a station and its line and camera and is both to it. A thread of
its own fetches triggers and takes their pictures, at most one part ahead. So a camera is
asked as soon as the part is in front of it and not when the model has time, decoding
and judging use two cores, and what the station sees is as before: the same triggers in
the same order, and the picture, or the error, that belongs to each.
"""

from __future__ import annotations

import threading
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from qcnode.errors import CameraError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from qcnode.domain import Action, Disposition, Frame, Passage, Trigger
    from qcnode.ports import Camera, Line

GRAB_S = 10.0
"""Cameras have shorter patience of their own; this only bounds the wait for one without."""
IDLE_S = 1.0
FETCH_S = 2.0
"""How long a part may still be fetched after `stop`, to be put on record."""


@dataclass(slots=True, eq=False)
class _Sight:
    """A part, and its picture as soon as there is one."""

    trigger: Trigger
    frame: Future[Frame] = field(default_factory=Future)


class Ahead:
    """A line and a camera that work one part ahead of who asks them."""

    def __init__(self, line: Line, camera: Camera) -> None:
        self._line = line
        self._camera = camera
        self._news = threading.Condition()
        self._next: _Sight | None = None
        self._in_hand: _Sight | None = None
        self._stopping = False
        self._over = False
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="ahead", daemon=True)

    # -- the line --------------------------------------------------------------

    def last_trigger(self) -> int:
        """Return the line's own count of triggers."""
        return self._line.last_trigger()

    def triggers(self) -> Iterator[Trigger]:
        """Yield each part as it passes the camera; may be called once."""
        self._thread.start()
        while (sight := self._fetch()) is not None:
            self._in_hand = sight
            yield sight.trigger
        if self._failure is not None:
            raise self._failure

    def act(self, trigger: Trigger, action: Action) -> bool:
        """Set the part's action at the line."""
        return self._line.act(trigger, action)

    def passages(self) -> Sequence[Passage]:
        """Return what the gate did since the last call."""
        return self._line.passages()

    def dispose(self, part_id: str, disposition: Disposition) -> None:
        """Tell the line what becomes of a diverted part."""
        self._line.dispose(part_id, disposition)

    def stop(self) -> None:
        """Stop the line; what it has triggered is still yielded."""
        self._line.stop()
        with self._news:
            self._stopping = True
            self._news.notify_all()

    # -- the camera ------------------------------------------------------------

    def grab(self, trigger: Trigger) -> Frame:
        """Return the picture of the part in hand, or raise what the camera raised."""
        sight = self._in_hand
        if sight is None or sight.trigger is not trigger:
            raise CameraError(f"no picture was taken of part {trigger.part_id}: it is not in hand")
        try:
            return sight.frame.result(GRAB_S)
        except TimeoutError as error:
            raise CameraError(
                f"the camera has not answered for {GRAB_S:.0f} s: restart it, check its cable"
            ) from error

    def close(self) -> None:
        """Let go of the camera."""
        self._camera.close()

    # -- the thread ------------------------------------------------------------

    def _fetch(self) -> _Sight | None:
        with self._news:
            while self._next is None and not self._over:
                self._news.wait(IDLE_S)
            sight, self._next = self._next, None
            self._news.notify_all()
        return sight

    def _run(self) -> None:
        try:
            for trigger in self._line.triggers():
                sight = _Sight(trigger)
                if not self._offer(sight):
                    break
                self._take(sight)
        except Exception as error:  # noqa: BLE001  # the top of this thread; `triggers` raises it
            self._failure = error
        finally:
            with self._news:
                self._over = True
                self._news.notify_all()

    def _offer(self, sight: _Sight) -> bool:
        """Put a part where it is fetched, once the last one was; False if nobody comes."""
        with self._news:
            while self._next is not None:
                patience_s = FETCH_S if self._stopping else IDLE_S
                if not self._news.wait(patience_s) and self._stopping:
                    return False
            self._next = sight
            self._news.notify_all()
        return True

    def _take(self, sight: _Sight) -> None:
        try:
            sight.frame.set_result(self._camera.grab(sight.trigger))
        except Exception as error:  # noqa: BLE001  # raised again where the picture is wanted
            sight.frame.set_exception(error)
