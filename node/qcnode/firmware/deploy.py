"""Putting device configurations where they belong, seeing that they stay so, and taking them back.

A push writes below a root (`/`, or a folder that stands for a machine), reads back, and is
on record. It is refused when somebody else changed what stands there, when it would go back to
an older version, and when the same version has other content than last time. What a person has
to do afterwards (restart, import, flash) is named and left to that person.
"""

from __future__ import annotations

import difflib
import os
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Final

import msgspec

from qcnode.errors import SettingsError
from qcnode.firmware.render import fill
from qcnode.firmware.store import Push

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from qcnode.firmware.manifest import Manifest, Values
    from qcnode.firmware.render import Rendered
    from qcnode.firmware.store import Store

FILE_BYTES_MAX: Final = 4 << 20
_Files = dict[str, bytes | None]


class Health(StrEnum):
    """How one deployed artefact is."""

    OK = "ok"
    BEHIND = "behind"
    """As it was pushed, and the manifest has a newer one."""
    WAITING = "waiting"
    """Pushed; the device still says that it runs what it ran before."""
    SILENT = "silent"
    """Pushed; the device has not said what it runs."""
    DRIFT = "DRIFT"
    """Somebody else changed it."""
    MISSING = "MISSING"
    HALF = "HALF"
    """A push or rollback was cut short: push again, or roll back."""


WRONG: Final = (Health.DRIFT, Health.MISSING, Health.HALF)


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployed:
    """What there is to say about one artefact below one root."""

    artefact: str
    root: str
    version: int
    digest: str
    health: Health
    words: str


def targets(rendered: Rendered, values: Values, root: Path) -> _Files:
    """Return the whole path of each file below `root`, and what is to stand there."""
    artefact = rendered.artefact
    if artefact.to is None:
        raise SettingsError(
            f"{artefact.id}: goes nowhere on its own: see loaded_by in the manifest"
        )
    main = PurePosixPath(fill(artefact.id, artefact.to, values))
    base = PurePosixPath(artefact.path).parent
    found: _Files = {}
    for path, raw in rendered.files.items():
        beside = os.path.relpath(path, base)
        found[_below(root, main if path == artefact.path else main.parent / beside)] = raw
    return found


def differences(wanted: Mapping[str, bytes | None]) -> list[str]:
    """Return what would change on the target, as a unified diff."""
    lines: list[str] = []
    for path, raw in wanted.items():
        here = _read(path)
        if here != raw:
            lines += difflib.unified_diff(
                (here or b"").decode(errors="replace").splitlines(),
                (raw or b"").decode().splitlines(),
                fromfile=path if here is not None else f"{path} (not there)",
                tofile=f"{path} (rendered)",
                lineterm="",
            )
    return lines


def push(
    store: Store,
    rendered: Rendered,
    values: Values,
    *,
    root: Path,
    who: str,
    now: datetime,
    take_over: bool = False,
) -> Push | None:
    """Put one artefact in its place; None: it stands there already.

    With `take_over` what somebody else left there is replaced, and kept in the history.
    """
    artefact, wanted = rendered.artefact, targets(rendered, values, root)
    last = store.last(artefact.id, str(root))
    here = {path: _read(path) for path in {**(last.files if last else {}), **wanted}}
    _refuse_older(store.history(artefact.id), last, rendered)
    same = last is not None and last.done and last.digest == rendered.digest
    if same and here == {**(last.files if last else {}), **wanted}:
        return None
    if not take_over:
        _refuse_drift(artefact.id, last, here, wanted)
    stale = dict.fromkeys(set(last.files if last else {}) - set(wanted), None)
    reported = artefact.reported and fill(artefact.id, artefact.reported, values)
    return _carry_out(
        store,
        Push(
            revision=0,
            artefact=artefact.id,
            root=str(root),
            version=artefact.version,
            sources=rendered.sources,
            digest=rendered.digest,
            reported=reported,
            files={**wanted, **stale},
            before=here,
            undoes=None,
            who=who,
            at=now.isoformat(),
            done=False,
        ),
        mode=int(artefact.mode, 8),
    )


def roll_back(
    store: Store,
    manifest: Manifest,
    artefact_id: str,
    *,
    root: Path,
    who: str,
    now: datetime,
    take_over: bool = False,
) -> Push:
    """Put back what stood there before the last push that was not taken back yet."""
    history = [one for one in store.history(artefact_id) if one.root == str(root)]
    undone = {one.undoes for one in history if one.done}
    standing = [one for one in history if one.undoes is None and one.revision not in undone]
    if not standing:
        raise SettingsError(f"{artefact_id}: there is nothing below {root} to take back")
    last, previous = standing[-1], standing[-2] if len(standing) > 1 else None
    here = {path: _read(path) for path in last.files}
    # One that was cut short may be anything between before and after.
    if history[-1].done and not take_over and here != dict(history[-1].files):
        path = next(path for path in here if here[path] != history[-1].files.get(path))
        raise SettingsError(
            f"{artefact_id}: somebody changed {path} since: look at `diff`, then --take-over"
        )
    modes = {one.id: one.mode for one in manifest.artefacts}
    return _carry_out(
        store,
        Push(
            revision=0,
            artefact=artefact_id,
            root=str(root),
            version=previous.version if previous else 0,
            sources=previous.sources if previous else "",
            digest=previous.digest if previous else "",
            reported=previous.reported if previous else None,
            files=_stood_before(last, previous),
            before=here,
            undoes=last.revision,
            who=who,
            at=now.isoformat(),
            done=False,
        ),
        mode=int(modes.get(artefact_id, "0644"), 8),
    )


def _stood_before(last: Push, previous: Push | None) -> _Files:
    """Return what a rollback of `last` puts back: what we put there before, or what we found."""
    known = previous.files if previous else {}
    return {path: known.get(path, last.before[path]) for path in last.files}


def status(
    store: Store, manifest: Manifest, said: Mapping[str, bytes] | None = None
) -> list[Deployed]:
    """Compare everything that was pushed with what is there.

    `said` is what devices report, by topic; without it they were not asked.
    """
    return [
        Deployed(
            artefact=last.artefact,
            root=last.root,
            version=last.version,
            digest=last.digest,
            health=health,
            words=words,
        )
        for last in store.latest()
        for health, words in [_health(last, store, manifest, said)]
    ]


def _health(
    last: Push, store: Store, manifest: Manifest, said: Mapping[str, bytes] | None
) -> tuple[Health, str]:
    if not last.done:
        return Health.HALF, "a push was cut short: push it again, or roll it back"
    for path, raw in last.files.items():
        here = _read(path)
        if here is None and raw is not None:
            return Health.MISSING, f"{path} is not there any more"
        if here != raw:
            return Health.DRIFT, f"{path} was changed by somebody else"
    if not last.digest:
        return Health.OK, "as it was before the first push"
    if last.reported is not None and said is not None:
        health, words = _as_reported(last, store, said.get(last.reported))
    elif last.reported is not None:
        health, words = Health.OK, "the files are; the device was not asked (--mqtt)"
    else:
        health, words = Health.OK, ""
    newer = max((one.version for one in manifest.artefacts if one.id == last.artefact), default=0)
    if health is Health.OK and newer > last.version:
        return Health.BEHIND, f"version {newer} is there to be pushed"
    return health, words


class _Report(msgspec.Struct, frozen=True):
    id: str
    version: int
    sha256: str


def _as_reported(last: Push, store: Store, raw: bytes | None) -> tuple[Health, str]:
    if not raw:
        return Health.SILENT, f"nothing is said at {last.reported}"
    try:
        report = msgspec.json.decode(raw, type=_Report)
    except (msgspec.DecodeError, msgspec.ValidationError):
        return Health.DRIFT, f"what is said at {last.reported} cannot be read"
    if report.sha256 == last.digest:
        return Health.OK, ""
    if report.sha256 in {one.digest for one in store.history(last.artefact)}:
        return Health.WAITING, f"the device still runs version {report.version}: flash it"
    return Health.DRIFT, f"the device runs {report.sha256[:12]}, which nobody pushed from here"


# -- the target -----------------------------------------------------------------------------


def _refuse_older(history: Sequence[Push], last: Push | None, rendered: Rendered) -> None:
    artefact = rendered.artefact
    if last is not None and artefact.version < last.version:
        raise SettingsError(
            f"{artefact.id}: version {last.version} stands there, and this is {artefact.version}:"
            " to go back, use `rollback`"
        )
    same = [one for one in history if one.undoes is None and one.version == artefact.version]
    if any(one.sources != rendered.sources for one in same):
        raise SettingsError(
            f"{artefact.id}: version {artefact.version} was pushed before with other content: two"
            " versions of one number; raise it in manifest.yaml"
        )


def _refuse_drift(artefact_id: str, last: Push | None, here: _Files, wanted: _Files) -> None:
    for path, now in here.items():
        if last is None:
            if now is not None and now != wanted[path]:
                raise SettingsError(
                    f"{artefact_id}: {path} is there and nobody pushed it from here: look at"
                    " `diff`, then --take-over"
                )
        elif last.done and path in last.files and now != last.files[path]:
            raise SettingsError(
                f"{artefact_id}: somebody changed {path} since revision {last.revision}: look at"
                " `diff`, then --take-over"
            )
        elif path not in last.files and now is not None and now != wanted[path]:
            raise SettingsError(
                f"{artefact_id}: {path} is there and nobody pushed it from here: look at"
                " `diff`, then --take-over"
            )


def _carry_out(store: Store, wanted: Push, *, mode: int) -> Push:
    begun = store.begin(wanted)
    for path, raw in begun.files.items():
        _write(Path(path), raw, mode=mode)
    for path, raw in begun.files.items():
        if _read(path) != raw:
            raise SettingsError(f"{path}: was written and reads back as something else")
    store.finish(begun)
    return begun


def _below(root: Path, path: PurePosixPath) -> str:
    """Return a path below the root; a link on the way that leads out of it is refused."""
    full = root / str(path).lstrip("/")
    if not full.parent.resolve().is_relative_to(root.resolve()) or full.is_symlink():
        raise SettingsError(f"{full}: a link stands there, or leads out of {root}: take it away")
    return str(full)


def _read(path: str) -> bytes | None:
    try:
        with Path(path).open("rb") as file:
            return file.read(FILE_BYTES_MAX)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read ({error.strerror})") from error


def _write(path: Path, raw: bytes | None, *, mode: int) -> None:
    """Put a file there whole or not at all; None takes it away."""
    try:
        if raw is None:
            path.unlink(missing_ok=True)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_name(f".{path.name}.qcnode")
        fresh.unlink(missing_ok=True)
        with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            os.fchmod(file.fileno(), mode)
            file.write(raw)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)
    except OSError as error:
        raise SettingsError(f"{path}: cannot be written ({error.strerror})") from error


def chosen(manifest: Manifest, ids: Sequence[str]) -> list[str]:
    """Return the ids asked for, or all that go somewhere."""
    for one in ids:
        manifest[one]
    return list(ids) or [one.id for one in manifest.artefacts if one.to is not None]
