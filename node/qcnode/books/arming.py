"""Two people's word that agents at L4 may act on the process for a while: one small file.

The first person asks, another one arms within 15 minutes, for at most a shift. Whoever
finds no file, or one that cannot be read, finds nothing armed. Each step is a line of
`arming.log` beside it, written before it counts.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from qcnode.authority import Arming
from qcnode.errors import PolicyError

if TYPE_CHECKING:
    from pathlib import Path

ARMED_MAX: Final = timedelta(hours=8)
ASKED_FOR: Final = timedelta(minutes=15)
FILE: Final = "armed.json"
LOG: Final = "arming.log"
_REASON_MIN: Final = 3


def arm(home: Path, *, who: str, reason: str, span: timedelta, now: datetime) -> Arming | None:
    """Ask, or as the second person arm, for so long; None waits for the second.

    The shorter of the two spans counts. Raises `PolicyError`.
    """
    who = who.strip()
    if not who or len(reason.strip()) < _REASON_MIN:
        raise PolicyError("arming takes a name and a reason")
    if not timedelta(0) < span <= ARMED_MAX:
        raise PolicyError(f"arming is for at most {ARMED_MAX // timedelta(hours=1)} hours")
    asked = _asked(home, now)
    if asked is None:
        said = {"asked_by": who, "span_s": span.total_seconds(), "at": now.isoformat()}
        _write(home, said, {"what": "asked", "who": who, "reason": reason, "at": now.isoformat()})
        return None
    if str(asked["asked_by"]).casefold() == who.casefold():
        raise PolicyError(f"{who} asked already; a second person arms it")
    until = now + min(span, timedelta(seconds=float(asked["span_s"])))
    armed = Arming(first=str(asked["asked_by"]), second=who, until=until)
    said = {"first": armed.first, "second": armed.second, "until": until.isoformat()}
    _write(home, said, {"what": "armed", **said, "reason": reason, "at": now.isoformat()})
    return armed


def disarm(home: Path, *, who: str, now: datetime) -> None:
    """End it at once; one person is enough."""
    _write(home, {}, {"what": "disarmed", "who": who, "at": now.isoformat()})


def read_arming(home: Path) -> Arming | None:
    """Return what was armed last; its time may be over."""
    said = _read(home)
    with suppress(KeyError, ValueError, TypeError):
        until = datetime.fromisoformat(str(said["until"])).astimezone(UTC)
        return Arming(first=str(said["first"]), second=str(said["second"]), until=until)
    return None


def _asked(home: Path, now: datetime) -> dict[str, Any] | None:
    said = _read(home)
    with suppress(KeyError, ValueError, TypeError):
        at = datetime.fromisoformat(str(said["at"]))
        if said["asked_by"] and float(said["span_s"]) > 0 and at <= now < at + ASKED_FOR:
            return said
    return None


def _read(home: Path) -> dict[str, Any]:
    try:
        said = json.loads((home / FILE).read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return said if isinstance(said, dict) else {}


def _write(home: Path, said: dict[str, Any], row: dict[str, Any]) -> None:
    path = home / FILE
    unfinished = path.with_name(path.name + ".part")
    try:
        with (home / LOG).open("a", encoding="utf-8") as log:
            log.write(json.dumps(row, ensure_ascii=False) + "\n")
            log.flush()
            os.fsync(log.fileno())
        unfinished.write_text(json.dumps(said, ensure_ascii=False), encoding="utf-8")
        unfinished.replace(path)
    except OSError as error:
        raise PolicyError(f"{path}: cannot be written ({error.strerror})") from error
