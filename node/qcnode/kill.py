"""The kill switch: a file for each thing that is stopped, in one folder of the node's home.

The files are the truth, so the switch works with broker, cloud and database down and
survives a restart: `touch kill/all` is enough. A thread looks every 20 ms, and whoever asks
`stopped` reads memory; should that thread not have run for 50 ms, the asker looks itself,
so no answer is older than that. What the node cannot understand stops everything.

Stopping takes nobody's leave. Clearing takes two people, and a file that just vanishes is
put back: who stopped, asked and cleared is in `kill/.record`, one line each.
"""

from __future__ import annotations

import json
import os
import re
import threading
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote, unquote

import structlog

from qcnode.errors import KillSwitchError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

log = structlog.get_logger()

ALL: Final = "all"
LINE: Final = "line"
FOLDER: Final = "kill"
LOOK_S: Final = 0.02
STALE_NS: Final = 50_000_000
ASKED_FOR: Final = timedelta(minutes=15)
"""How long the first person's word waits for the second."""
RECORD: Final = ".record"
_ASKED: Final = ".asked-"
_SCOPE: Final = re.compile(r"all|line|(?:agent|provider):[^\x00-\x1f\x7f]{1,60}")
_BYTES_MAX: Final = 4_096
_REASON_MAX: Final = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class Stop:
    """One thing that is stopped; `asked_by` is who wants it to run again, if anybody."""

    scope: str
    who: str
    reason: str
    at: str
    asked_by: str | None = None


def agent_scope(who: str) -> str:
    """Return the scope of an agent by the name its rulings bear: `agent:<model>`."""
    return who if who.startswith("agent:") else f"agent:{who}"


def provider_scope(name: str | None) -> str:
    """Return the scope of a provider; one that is not known has none that can be set."""
    return f"provider:{name or ''}"


def check_scope(scope: str) -> str:
    """Return the scope, or raise `KillSwitchError` when there is no such one."""
    if not _SCOPE.fullmatch(scope) or len(quote(scope, safe=":")) > 200:  # noqa: PLR2004  # a file's name
        raise KillSwitchError(
            f"{scope!r:.80}: no such scope; there are all, line, agent:NAME and provider:NAME"
        )
    return scope


def stop(folder: Path, scope: str, *, who: str, reason: str, now: datetime) -> None:
    """Stop something. A disk that takes no words still takes the file.

    Raises `KillSwitchError` when there is no such scope or the file cannot be made.
    """
    path = _path(folder, check_scope(scope))
    said = {"who": who, "reason": reason[:_REASON_MAX], "at": _stamp(now)}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise KillSwitchError(f"{path}: cannot be made ({error.strerror})") from error
    with os.fdopen(descriptor, "wb") as file, suppress(OSError):
        if not os.fstat(descriptor).st_size:
            file.write(json.dumps(said, ensure_ascii=False).encode())
    _unask(folder, scope)
    _note(folder, {"what": "stopped", "scope": scope, **said})


def clear(folder: Path, scope: str, *, who: str, reason: str, now: datetime) -> bool:
    """Ask for something to run again, and say whether it does: the second person decides.

    The word of the first is good for 15 minutes. Raises `KillSwitchError` when nothing is
    stopped under this name, nobody is named, or the two are one.
    """
    path, who = _path(folder, check_scope(scope)), who.strip()
    if not who or len(reason.strip()) < 3:  # noqa: PLR2004  # "ok" is no reason
        raise KillSwitchError("clearing a stop takes a name and a reason")
    if not path.exists():
        raise KillSwitchError(f"{scope}: nothing is stopped under this name")
    asked = _asked(folder, scope, now)
    said = {"scope": scope, "who": who, "reason": reason[:_REASON_MAX], "at": _stamp(now)}
    try:
        if asked is None:
            _note(folder, {"what": "asked", **said}, must=True)
            _asked_path(folder, scope).write_text(json.dumps(said, ensure_ascii=False))
            return False
        if str(asked["who"]).casefold() == who.casefold():
            raise KillSwitchError(f"{scope}: {who} asked already; a second person clears it")
        # What is not on record is not cleared.
        _note(folder, {"what": "cleared", **said, "first": asked["who"]}, must=True)
        path.unlink(missing_ok=True)
    except OSError as error:
        raise KillSwitchError(f"{path}: cannot be cleared ({error.strerror})") from error
    _unask(folder, scope)
    return True


def stops_in(folder: Path, now: datetime) -> tuple[Stop, ...]:
    """Return what is stopped, as the folder says."""
    found = []
    for name in _names(folder):
        scope = _scope_of(name)
        said = _read(folder / name)
        asked = _asked(folder, scope, now)
        found.append(
            Stop(
                scope=scope,
                who=str(said.get("who", "")),
                reason=str(said.get("reason", "")),
                at=str(said.get("at", "")),
                asked_by=None if asked is None else str(asked["who"]),
            )
        )
    return tuple(found)


def record_of(folder: Path) -> list[dict[str, Any]]:
    """Return what was stopped, asked and cleared, oldest first."""
    rows = []
    with suppress(OSError):
        for line in (folder / RECORD).read_text("utf-8", "replace").splitlines():
            with suppress(ValueError):
                rows.append(json.loads(line))
    return rows


class KillSwitch:
    """What is stopped now; any thread may ask. `start` gives it a thread to look with."""

    def __init__(
        self, folder: Path, *, clock_ns: Callable[[], int], now: Callable[[], datetime]
    ) -> None:
        self.folder = folder
        self._clock_ns = clock_ns
        self._now = now
        self._lock = threading.Lock()
        self._files: frozenset[str] = frozenset()
        self._new: frozenset[str] = frozenset()
        self._gone: frozenset[str] = frozenset()
        self._active: frozenset[str] = frozenset()
        self._unwritten: set[str] = set()
        """Stopped from within while the disk took no file; until the node ends."""
        self._listeners: list[Callable[[], None]] = []
        self._changed = False
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="kill", daemon=True)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise KillSwitchError(
                f"{folder}: there is no place for a kill switch ({error.strerror})"
            ) from error
        self._looked_ns = clock_ns()
        self.look()

    def start(self) -> None:
        """Look every 20 ms from now on."""
        self._thread.start()

    def close(self) -> None:
        """Look no more. Closing twice is harmless."""
        self._ending.set()
        if self._thread.ident is not None:
            self._thread.join(1.0)

    def stopped(self, *scopes: str) -> bool:
        """Say whether any of these is stopped; `all` stops each."""
        if self._clock_ns() - self._looked_ns > STALE_NS:
            self._look()
        active = self._active
        return bool(active) and (ALL in active or not active.isdisjoint(scopes))

    def add_listener(self, listener: Callable[[], None]) -> None:
        """Have `listener` called, in the switch's own thread, after each change."""
        self._listeners.append(listener)

    def stops(self) -> tuple[Stop, ...]:
        """Return what is stopped, by whom and why; reads the folder when anything is."""
        if not self._active:
            return ()
        known: tuple[Stop, ...] = ()
        with suppress(OSError):
            known = stops_in(self.folder, self._now())
        named = {one.scope for one in known}
        more = [
            Stop(scope=scope, who="", reason="the disk took no file", at="")
            for scope in sorted(self._active - named)
        ]
        return (*known, *more)

    def stop(self, scope: str, *, who: str, reason: str) -> None:
        """Stop something from within the node, at once, also where the disk takes no file."""
        with self._lock:
            self._unwritten.add(check_scope(scope))
            self._active = self._active | {scope}
            self._changed = True
        try:
            stop(self.folder, scope, who=who, reason=reason, now=self._now())
        except KillSwitchError as error:
            log.critical("stopped, and only until the node ends", scope=scope, why=str(error))
            return
        with self._lock:
            self._unwritten.discard(scope)
        self.look()

    def clear(self, scope: str, *, who: str, reason: str) -> bool:
        """Ask for something to run again, and say whether it does; see `clear`."""
        done = clear(self.folder, scope, who=who, reason=reason, now=self._now())
        self.look()
        return done

    def look(self) -> None:
        """Look now, put on record what is new, and put back what just vanished."""
        self._look()
        for name in self._new:
            self._note_new(name)
        for name in self._gone:
            if _last_word(self.folder, _scope_of(name)) == "cleared":
                log.warning("cleared", scope=_scope_of(name))
                self._forget(name)
            else:
                log.warning("a stop vanished without two people's word", scope=_scope_of(name))
                with suppress(OSError):
                    (self.folder / name).touch()

    def _watch(self) -> None:
        while not self._ending.wait(LOOK_S):
            self.look()
            if self._changed:
                self._changed = False
                for listener in self._listeners:
                    listener()

    def _look(self) -> None:
        """Read the folder and nothing else: a disk that hangs must not hold up a stop."""
        with self._lock:
            looked_ns = self._clock_ns()
            try:
                files = frozenset(_names(self.folder))
            except OSError as error:
                # A switch that cannot be read is taken for pressed.
                log.critical("the kill switch cannot be read, all is stopped", why=str(error))
                files = self._files | {ALL}
            self._new |= files - self._files
            self._gone = self._files - files
            # What vanished stays stopped until it is known that two people cleared it.
            self._files |= files
            self._publish()
            self._looked_ns = looked_ns

    def _publish(self) -> None:
        active = frozenset(_scope_of(name) for name in self._files) | self._unwritten
        self._changed = self._changed or active != self._active
        self._active = active

    def _forget(self, name: str) -> None:
        with self._lock:
            self._files -= {name}
            self._publish()

    def _note_new(self, name: str) -> None:
        """Put a file that somebody made by hand on record."""
        with self._lock:
            self._new -= {name}
        scope = _scope_of(name)
        log.warning("stopped", scope=scope, file=name)
        if _last_word(self.folder, scope) != "stopped":
            said = {"scope": scope, "who": "", "reason": f"the file {name}"}
            _note(self.folder, {"what": "stopped", **said, "at": _stamp(self._now())})


class NeverStopped:
    """A kill switch that nobody can press, for tools that run no line."""

    def stopped(self, *_scopes: str) -> bool:
        """Say no."""
        return False

    def add_listener(self, _listener: Callable[[], None]) -> None:
        """Do nothing: nothing ever changes."""


def _names(folder: Path) -> list[str]:
    return sorted(name for name in os.listdir(folder) if not name.startswith("."))  # noqa: PTH208  # 50 times a second


def _scope_of(name: str) -> str:
    scope = unquote(name)
    return scope if _SCOPE.fullmatch(scope) else ALL


def _path(folder: Path, scope: str) -> Path:
    return folder / quote(scope, safe=":")


def _asked_path(folder: Path, scope: str) -> Path:
    return folder / (_ASKED + quote(scope, safe=":"))


def _asked(folder: Path, scope: str, now: datetime) -> dict[str, Any] | None:
    said = _read(_asked_path(folder, scope))
    try:
        at = datetime.fromisoformat(str(said["at"]))
        return said if at <= now < at + ASKED_FOR and said["who"] else None
    except (KeyError, ValueError, TypeError):
        return None


def _unask(folder: Path, scope: str) -> None:
    with suppress(OSError):
        _asked_path(folder, scope).unlink(missing_ok=True)


def _read(path: Path) -> dict[str, Any]:
    """Return what a file says; whatever cannot be read says nothing, and stops all the same."""
    try:
        with path.open("rb") as file:
            said = json.loads(file.read(_BYTES_MAX))
    except (OSError, ValueError):
        return {}
    return said if isinstance(said, dict) else {}


def _note(folder: Path, said: dict[str, Any], *, must: bool = False) -> None:
    line = json.dumps(said, ensure_ascii=False).encode() + b"\n"
    try:
        descriptor = os.open(
            folder / RECORD, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644
        )
        try:
            os.write(descriptor, line)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if must:
            raise
        log.error("a stop is not on record", why=str(error))  # noqa: TRY400  # one line is enough


def _last_word(folder: Path, scope: str) -> str:
    said = [row for row in record_of(folder) if row.get("scope") == scope]
    words = [str(row.get("what")) for row in said if row.get("what") in ("stopped", "cleared")]
    return words[-1] if words else ""


def _stamp(now: datetime) -> str:
    return now.astimezone(UTC).isoformat(timespec="milliseconds")
