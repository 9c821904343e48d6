"""Templates and values in, finished files and their digest out. Pure, but for reading.

What is rendered holds no secret: a template or a result that looks as if it held one is
refused, so rendered files may be looked at, compared and kept in history.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Final

from qcnode.errors import SettingsError
from qcnode.firmware.manifest import BUILT_IN, broken_rule

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from qcnode.firmware.manifest import Artefact, Manifest, Values

BYTES_MAX: Final = 1 << 20
_HOLE: Final = re.compile(r"@\{([a-z0-9_]*)\}")
_NO_HOLE: Final = re.compile(r"@\{(?![a-z0-9_]+\})")
_PEM: Final = re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----")
_TOLD: Final = re.compile(
    r"""(?ix) ["']? \b [a-z_]* (password|passwd|passphrase|secret|token|api_?key|psk) [a-z_]* ["']?
    \s* [:=] \s* (?P<what> [^\s#,}]+ )"""
)
_KEYS: Final = re.compile(r"\b(sk-[A-Za-z0-9_-]{16,}|ghp_[A-Za-z0-9]{20,}|AKIA[0-9A-Z]{16})\b")
_NONE: Final = ('""', "''", '"..."', "null", "none", "true", "false", "!secret", "!include")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rendered:
    """One artefact with all that it loads, by path in the folder of device configurations."""

    artefact: Artefact
    files: Mapping[str, bytes]
    sources: str
    """A digest of the templates: what a version stands for."""
    digest: str
    """A digest of the finished files: what a device is compared by."""

    @property
    def main(self) -> bytes:
        """Return the artefact's own file."""
        return self.files[self.artefact.path]


def render(folder: Path, manifest: Manifest, artefact: Artefact, values: Values) -> Rendered:
    """Return the finished files; raises `SettingsError` naming the file and what is wrong."""
    if rule := broken_rule(artefact, values):
        raise SettingsError(f"{artefact.id}: these values break the rule {rule}")
    parts = manifest.with_needs(artefact)
    texts = {part.path: read(folder, part.path) for part in parts}
    sources = hashlib.sha256()
    for path in sorted(texts):
        sources.update(path.encode() + b"\0" + texts[path].encode() + b"\0")
    known = {**values, "version": artefact.version, "digest": ""}
    blank = {path: fill(path, text, known) for path, text in texts.items()}
    digest = _digest(blank)
    done = {path: fill(path, text, {**known, "digest": digest}) for path, text in texts.items()}
    for path, text in done.items():
        if what := secret_in(text):
            raise SettingsError(f"{path}: looks as if a secret stood there ({what})")
    return Rendered(
        artefact=artefact,
        files={path: text.encode() for path, text in done.items()},
        sources=sources.hexdigest(),
        digest=digest,
    )


def read(folder: Path, path: str) -> str:
    """Read a template; raises `SettingsError`."""
    full = folder / path
    if PurePosixPath(path).is_absolute() or not full.resolve().is_relative_to(folder.resolve()):
        raise SettingsError(f"{path}: its path leads out of the folder")
    try:
        raw = full.read_bytes()
        if len(raw) > BYTES_MAX:
            raise SettingsError(f"{path}: is larger than {BYTES_MAX >> 20} MiB")
        return raw.decode("utf-8")
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise SettingsError(f"{path}: is no text in UTF-8") from error


def holes(text: str) -> set[str]:
    """Return the parameters a template asks for, without those every file has."""
    return {found[1] for found in _HOLE.finditer(text)} - set(BUILT_IN)


def fill(path: str, text: str, values: Values) -> str:
    """Put the values in; raises `SettingsError` for a hole that is none of them."""
    if broken := _NO_HOLE.search(text):
        line = text.count("\n", 0, broken.start()) + 1
        raise SettingsError(f"{path}:{line}: '@{{' begins a parameter and none follows")
    for name in sorted(holes(text)):
        if name not in values:
            raise SettingsError(f"{path}: @{{{name}}} is no parameter of manifest.yaml")
    return _HOLE.sub(lambda found: str(values[found[1]]), text)


def secret_in(text: str) -> str | None:
    """Say what in a text looks like a secret; None: nothing does."""
    if _PEM.search(text):
        return "a private key"
    if found := _KEYS.search(text):
        return f"{found[0][:6]}..."
    for found in _TOLD.finditer(text):
        what = found["what"]
        if not what.startswith(("/", "@{", *_NONE)) and what.strip("\"'"):
            return f"{found[0].split(':')[0].split('=')[0].strip()} has a value"
    return None


def _digest(files: Mapping[str, str]) -> str:
    total = hashlib.sha256()
    for path in sorted(files):
        total.update(path.encode() + b"\0" + files[path].encode() + b"\0")
    return total.hexdigest()
