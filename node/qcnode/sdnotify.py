"""What the service tells the supervisor that started it: ready, alive, stopping.

This is systemd's notification protocol: one datagram to the socket named in
`NOTIFY_SOCKET`. Started any other way there is no such name, and then everything
here does nothing at all. A supervisor that cannot be told is never a reason to stop
inspecting parts, so trouble is logged once and swallowed.
"""

from __future__ import annotations

import asyncio
import os
import socket
from typing import TYPE_CHECKING

import structlog

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

log = structlog.get_logger()

SEND_TIMEOUT_S = 1.0


class Supervisor:
    """The process that started this one, if it wants to hear from it."""

    def __init__(self, environ: Mapping[str, str], *, pid: int | None = None) -> None:
        self._address = _address(environ.get("NOTIFY_SOCKET", ""))
        self._told_of_trouble = False
        self.watchdog_every_s = _watchdog_every_s(environ, os.getpid() if pid is None else pid)

    def ready(self, words: str = "") -> None:
        """Say that parts can be judged from now on."""
        self._tell("READY=1", words)

    def alive(self) -> None:
        """Put the watchdog off for one more interval."""
        self._tell("WATCHDOG=1")

    def status(self, words: str) -> None:
        """Say in one line how things stand, for whoever asks the supervisor."""
        self._tell("", words)

    def stopping(self, words: str = "") -> None:
        """Say that the end is meant and under way."""
        self._tell("STOPPING=1", words)

    def _tell(self, state: str, words: str = "") -> None:
        if self._address is None:
            return
        line = " ".join(words.split())  # A line break would start another field.
        message = "\n".join(part for part in (state, f"STATUS={line}" if line else "") if part)
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as out:
                out.settimeout(SEND_TIMEOUT_S)
                out.connect(self._address)
                out.sendall(message.encode())
        except OSError as error:
            if not self._told_of_trouble:
                log.warning("supervisor cannot be told", error=str(error))
            self._told_of_trouble = True
        else:
            self._told_of_trouble = False


async def feed_watchdog(
    supervisor: Supervisor,
    *,
    alive: Callable[[], bool],
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> None:
    """Tell the supervisor that all is alive, twice an interval, until cancelled.

    `alive` speaks for the threads this task cannot vouch for. While it says no,
    nothing is sent, and the supervisor starts the service afresh.
    """
    if supervisor.watchdog_every_s is None:
        return
    while True:
        if alive():
            supervisor.alive()
        await sleep(supervisor.watchdog_every_s)


def _address(name: str) -> str | None:
    """Return the socket's address; `@` stands for the abstract namespace's zero byte."""
    if name.startswith("@"):
        return "\0" + name[1:]
    return name if name.startswith("/") else None


def _watchdog_every_s(environ: Mapping[str, str], pid: int) -> float | None:
    """Return half the watchdog's interval, if there is one and it is meant for `pid`."""
    if environ.get("WATCHDOG_PID", str(pid)) != str(pid):
        return None
    try:
        interval_us = int(environ.get("WATCHDOG_USEC", ""))
    except ValueError:
        return None
    return interval_us / 2_000_000 if interval_us > 0 else None
