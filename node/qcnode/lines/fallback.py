"""Two ways to the billing server: the first as long as it lives, the second meanwhile.

Both carry the same bytes and the server knows each entry by its seq, so a batch that
went both ways is stored once. When the first way has brought no receipt for a stated
time, batches go the second one; now and then one of them goes the first way as well, and
its receipt brings everything back. The health board says each change once, also to the
log.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

from qcnode.errors import LineUnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable

    from qcnode.health import HealthBoard
    from qcnode.money import Receipt
    from qcnode.ports import Channel

COMPONENT = "metering way"
PATIENCE_S = 30.0
LOOK_AGAIN_S = 60.0


class FallbackChannel:
    """Sends by `first`, and by `second` once `first` gave no receipt for `patience_s`.

    While `second` carries the batches, one in `look_again_s` also goes to `first`.
    """

    def __init__(
        self,
        first: Channel,
        second: Channel,
        *,
        health: HealthBoard,
        monotonic_s: Callable[[], float],
        patience_s: float = PATIENCE_S,
        look_again_s: float = LOOK_AGAIN_S,
    ) -> None:
        self.name = f"{first.name}, then {second.name}"
        self._first = first
        self._second = second
        self._health = health
        self._monotonic_s = monotonic_s
        self._patience_s = patience_s
        self._look_again_s = look_again_s
        self._silent_since: float | None = None
        self._fell_back = False
        self._look_at = 0.0
        self._looking: asyncio.Task[None] | None = None

    async def send(self, batch: bytes) -> Receipt:
        """Deliver one CloudEvent and return the server's receipt for it."""
        if not self._fell_back:
            try:
                receipt = await self._first.send(batch)
            except LineUnavailableError as error:
                self._note_silence(error)
                if not self._fell_back:
                    raise
            else:
                self._silent_since = None
                return receipt
        self._look_at_first(batch)
        return await self._second.send(batch)

    async def close(self) -> None:
        """Leave both; closing twice is harmless."""
        looking, self._looking = self._looking, None
        if looking is not None:
            looking.cancel()
            await asyncio.wait({looking})
        await self._first.close()
        await self._second.close()

    def _note_silence(self, error: LineUnavailableError) -> None:
        now = self._monotonic_s()
        if self._silent_since is None:
            self._silent_since = now
        if self._fell_back or now - self._silent_since < self._patience_s:
            return
        self._fell_back, self._look_at = True, now + self._look_again_s
        self._health.report(
            COMPONENT, ok=False, words=f"by {self._second.name}, {self._first.name} is out: {error}"
        )

    def _look_at_first(self, batch: bytes) -> None:
        """Let a batch go the first way too, when it is time and none is on that way."""
        now = self._monotonic_s()
        if now < self._look_at or (self._looking is not None and not self._looking.done()):
            return
        self._look_at = now + self._look_again_s
        self._looking = asyncio.create_task(self._look(batch))

    async def _look(self, batch: bytes) -> None:
        with contextlib.suppress(LineUnavailableError):
            await self._first.send(batch)
            self._fell_back, self._silent_since = False, None
            self._health.report(COMPONENT, ok=True, words=f"by {self._first.name}")
