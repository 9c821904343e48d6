"""The releases of one node: its own copies, which of them judges, and how that came to be.

Whatever is to judge is first copied into the node's home, from one reading proven by its
digests, so that nobody can change or remove it afterwards. `log.jsonl` beside the copies has
every step with its reason; it is only ever added to, and all state is read from it. What
holds here:

- With trusted keys set, nothing judges that none of them has signed.
- A release older than one that was in service under the same name does not judge, unless a
  person allows it for that one time, on record.
- What cannot be taken leaves in place what was there.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

import structlog

from qcnode.errors import ManifestError, ModelError, QcError, SealError
from qcnode.manifest import FILE_NAME, SEAL_NAME, read_release, words_to_seal
from qcnode.runtime.cage import CAGE, try_release

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime

    from qcnode.manifest import Release
    from qcnode.runtime.cage import Cage
    from qcnode.runtime.onnx import OnnxModel

log = structlog.get_logger()

LOG_NAME: Final = "log.jsonl"
IN_SERVICE: Final = "in service"
TRIED: Final = "tried out"
_KEPT_MAX: Final = 3
_LINE_MAX: Final = 4096


class Voucher(Protocol):
    """A public key that may have signed a release."""

    name: str

    def check_seal(self, words: bytes, seal: str | None) -> None:
        """Raise `SealError` unless `seal` is this key's signature under `words`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """The node's own copy of a release."""

    folder: Path
    sha256: str
    model: str
    name: str
    release: int


class Releases:
    """The copies and their log, in `folder`; any thread may ask."""

    def __init__(
        self,
        folder: Path,
        *,
        trusted: Sequence[Voucher],
        load: Callable[[Path], OnnxModel],
        now: Callable[[], datetime],
        threads: int = 1,
        cage: Cage = CAGE,
    ) -> None:
        self._folder = folder
        self._trusted = tuple(trusted)
        self._load = load
        self._now = now
        self._threads = threads
        self._cage = cage
        self._lock = threading.Lock()
        self._configured: str | None = None
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._log = _read_log(folder / LOG_NAME)
        except OSError as error:
            raise ModelError(f"{folder}: models cannot be kept here ({error.strerror})") from error

    # -- taking a release in ---------------------------------------------------------

    def first(self, configured: Path) -> tuple[Kept, OnnxModel]:
        """Return the model to begin with: the last in service, or the configured one.

        The settings win once the configured folder holds another release than when that
        one took over. What cannot be used is said, and the other is taken.
        """
        last = self._last_in_service()
        errors: list[QcError] = []
        chosen: list[Kept] = []
        try:
            wanted = self.keep(configured)
            self._configured = wanted.sha256
            chosen.append(wanted)
        except QcError as error:
            errors.append(error)
        if last is not None:
            kept, was_configured = last
            first = not chosen or was_configured == chosen[0].sha256
            chosen = [one for one in chosen if one.sha256 != kept.sha256]
            chosen.insert(0 if first else len(chosen), kept)
        for kept in chosen:
            try:
                if last is None or kept.sha256 != last[0].sha256:
                    self.check_order(kept)
                model = self.open(kept)
            except QcError as error:
                errors.append(error)
                continue
            for why in errors:
                log.error("this model is not used", why=str(why), instead=kept.model)
            if last is None or last[0].sha256 != kept.sha256:
                self.record(IN_SERVICE, kept, "when the node started")
            return kept, model
        raise errors[0]

    def keep(self, source: Path) -> Kept:
        """Copy a release into the node's home, signed by a trusted key if there are any."""
        release = read_release(source)
        self._check_seal(release, source)
        kept = Kept(
            folder=self._folder / release.sha256[:16],
            sha256=release.sha256,
            model=release.manifest.version,
            name=release.manifest.name,
            release=release.manifest.release,
        )
        if not kept.folder.exists():
            self._write(release, kept.folder)
        return kept

    def check_order(self, kept: Kept) -> None:
        """Raise `ManifestError` for a release older than one that was in service before."""
        newest = self.newest(kept.name)
        if kept.release < newest:
            raise ManifestError(
                f"{kept.model}: release {kept.release} of {kept.name}, and {newest} was in service"
                " here: load it with --allow-older if you mean it"
            )

    def newest(self, name: str) -> int:
        """Return the highest release of this name that was ever in service; 0 is unnumbered."""
        with self._lock:
            return max(
                (
                    entry["release"]
                    for entry in self._log
                    if entry["what"] == IN_SERVICE and entry["name"] == name
                ),
                default=0,
            )

    def open(self, kept: Kept) -> OnnxModel:
        """Load a copy, tried out in a child process once before; raises `QcError`."""
        with self._lock:
            tried = any(
                entry["what"] == TRIED and entry["sha256"] == kept.sha256 for entry in self._log
            )
        if not tried:
            try_release(kept.folder, threads=self._threads, cage=self._cage)
            self.record(TRIED, kept, "in a process of its own")
        return self._load(kept.folder)

    # -- the log -----------------------------------------------------------------------

    def record(self, what: str, kept: Kept, words: str) -> None:
        """Add a step to the log; it is on disk when this returns."""
        entry = {
            "at": self._now().isoformat(),
            "what": what,
            "model": kept.model,
            "name": kept.name,
            "release": kept.release,
            "sha256": kept.sha256,
            "configured": self._configured,
            "words": words[:_LINE_MAX],
        }
        line = (json.dumps(entry) + "\n").encode()
        with self._lock:
            try:
                flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
                handle = os.open(self._folder / LOG_NAME, flags, 0o600)
                with os.fdopen(handle, "wb") as file:
                    file.write(line)
                    file.flush()
                    os.fsync(handle)
            except OSError as error:
                raise ModelError(
                    f"{self._folder / LOG_NAME}: cannot be written ({error.strerror}):"
                    " without a record no model is changed"
                ) from error
            self._log.append(entry)

    def steps(self) -> tuple[dict[str, Any], ...]:
        """Return the log, oldest first."""
        with self._lock:
            return tuple(self._log)

    def before(self, sha256: str) -> Kept | None:
        """Return the release that was in service before this one, if its copy is still here."""
        served = [entry for entry in self.steps() if entry["what"] == IN_SERVICE]
        for entry in reversed(served):
            if entry["sha256"] != sha256:
                kept = self._kept(entry)
                if kept.folder.exists():
                    return kept
        return None

    def forget_others(self, *keep: Kept) -> None:
        """Remove copies beyond those given and the last few that were in service."""
        wanted = {one.sha256[:16] for one in keep}
        for entry in reversed(self.steps()):
            if len(wanted) >= _KEPT_MAX:
                break
            if entry["what"] == IN_SERVICE:
                wanted.add(entry["sha256"][:16])
        for folder in self._folder.iterdir():
            if folder.is_dir() and folder.name not in wanted:
                shutil.rmtree(folder, ignore_errors=True)

    def _last_in_service(self) -> tuple[Kept, str | None] | None:
        for entry in reversed(self._log):
            if entry["what"] == IN_SERVICE:
                return self._kept(entry), entry["configured"]
        return None

    def _kept(self, entry: dict[str, Any]) -> Kept:
        return Kept(
            folder=self._folder / entry["sha256"][:16],
            sha256=entry["sha256"],
            model=entry["model"],
            name=entry["name"],
            release=entry["release"],
        )

    def _check_seal(self, release: Release, source: Path) -> None:
        if not self._trusted:
            return
        words = words_to_seal(release.text)
        for key in self._trusted:
            for name, seal in release.seals:
                if name != key.name:
                    continue
                try:
                    key.check_seal(words, seal)
                except SealError:
                    continue
                return
        names = ", ".join(key.name for key in self._trusted)
        raise ManifestError(
            f"{source / SEAL_NAME}: no signature of {names}: sign it with `qcnode model sign`"
        )

    def _write(self, release: Release, folder: Path) -> None:
        made = Path(tempfile.mkdtemp(prefix=".taking-", dir=self._folder))
        seals = "".join(f"{name} {seal}\n" for name, seal in release.seals).encode()
        try:
            contents = {**release.contents, FILE_NAME: release.text}
            for path, data in (contents | ({SEAL_NAME: seals} if seals else {})).items():
                target = made / path
                target.parent.mkdir(parents=True, exist_ok=True)
                with target.open("wb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
            made.rename(folder)
        except OSError as error:
            raise ModelError(
                f"{folder}: the model cannot be copied here ({error.strerror}): make room"
            ) from error
        finally:
            shutil.rmtree(made, ignore_errors=True)


def _read_log(path: Path) -> list[dict[str, Any]]:
    """Read what is whole: a last line that was cut off by a crash is dropped for good."""
    if not path.exists():
        return []
    data = path.read_bytes()
    whole = data.rfind(b"\n") + 1
    if whole < len(data):
        with path.open("r+b") as file:
            file.truncate(whole)
    entries = []
    for number, line in enumerate(data[:whole].splitlines(), start=1):
        try:
            entry = json.loads(line)
            entry["what"], entry["sha256"], entry["name"], entry["model"]
            entry["release"] + 0
        except (ValueError, TypeError, KeyError) as error:
            raise ModelError(
                f"{path}, line {number}: unreadable: restore the file, it says what was in service"
            ) from error
        entries.append(entry)
    return entries
