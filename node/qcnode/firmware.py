"""The device configurations of a checkout, checked against their manifest, one by one.

Each file stands in `manifest.yaml` with its digest and its kind, and its kind says how it
is really loaded: generated files are made anew and compared, C++ goes through a compiler.
What stands in the folder and not in the manifest is wrong too. Needs PyYAML, which the
extra `modbus` brings.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Final, Literal

import msgspec
import yaml

from qcnode.errors import SettingsError
from qcnode.lines.registers import FOLDER, rendered, shipped

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

MANIFEST: Final = "manifest.yaml"
PLAIN: Final = ("README.md", MANIFEST)
COMPILE_S: Final = 60


class Artefact(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One file: what it is, who loads it, and what it must match."""

    id: Annotated[str, msgspec.Meta(pattern="^[a-z0-9-]{1,48}$")]
    kind: Literal["registers", "c++"]
    path: str
    sha256: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
    loaded_by: str
    must_match: str


class Manifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Every file of the folder."""

    version: Literal[1]
    artefacts: tuple[Artefact, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """What came of one file; without a `problem` it is right."""

    id: str
    path: str
    problem: str | None


def validate(folder: Path) -> list[Checked]:
    """Check every file of the folder; raises `SettingsError` where the manifest is none."""
    manifest = _read(folder / MANIFEST)
    checked = [
        Checked(id=one.id, path=one.path, problem=_problem(folder, one))
        for one in manifest.artefacts
    ]
    known = {one.path for one in manifest.artefacts}
    if len(known) != len(checked) or len({one.id for one in checked}) != len(checked):
        raise SettingsError(f"{folder / MANIFEST}: an id or a path stands there twice")
    for file in sorted(folder.rglob("*")):
        path = file.relative_to(folder).as_posix()
        if file.is_file() and path not in known and file.name not in PLAIN:
            problem = f"it is not in {MANIFEST}: put it there, or take it away"
            checked.append(Checked(id="-", path=path, problem=problem))
    return checked


def _read(path: Path) -> Manifest:
    try:
        return msgspec.convert(yaml.safe_load(path.read_text("utf-8")), Manifest)
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read ({error.strerror})") from error
    except (yaml.YAMLError, UnicodeDecodeError, msgspec.ValidationError) as error:
        words = " ".join(str(error).split())
        raise SettingsError(f"{path}: is no manifest: {words}") from error


def _problem(folder: Path, artefact: Artefact) -> str | None:
    path = folder / artefact.path
    if not path.resolve().is_relative_to(folder.resolve()):
        return "its path leads out of the folder"
    try:
        raw = path.read_bytes()
    except OSError as error:
        return f"it cannot be read ({error.strerror})"
    if problem := CHECKS[artefact.kind](path, raw, artefact):
        return problem
    digest = hashlib.sha256(raw).hexdigest()
    if digest != artefact.sha256:
        return f"it has changed: if that was meant, write sha256: {digest} into {MANIFEST}"
    return None


def _check_registers(_path: Path, raw: bytes, artefact: Artefact) -> str | None:
    made = rendered(shipped()).get(f"{FOLDER.split('/')[0]}/{artefact.path}")
    if made is None:
        return "nothing of this name is made of registers.yaml"
    if made.encode() != raw:
        return "it is not what registers.yaml says: run `python -m qcnode.lines.registers`"
    return None


def _check_cpp(path: Path, _raw: bytes, _artefact: Artefact) -> str | None:
    compiler = shutil.which("g++")
    if compiler is None:
        return "it could not be checked: g++ is missing (apt-get install g++)"
    flags = ("-std=c++11", "-Wall", "-Wextra", "-Wconversion", "-Werror", "-fsyntax-only")
    done = subprocess.run(  # noqa: S603  # the compiler, on a file of the checkout
        [compiler, *flags, "-x", "c++", "-"],
        # A header is there to be included.
        input=f'#include "{path.resolve()}"\n',
        capture_output=True,
        text=True,
        check=False,
        timeout=COMPILE_S,
    )
    if done.returncode == 0:
        return None
    first = next((line for line in done.stderr.splitlines() if "error" in line), "")
    return f"it does not compile: {first.partition('error: ')[2] or first}"


CHECKS: Final[dict[str, Callable[[Path, bytes, Artefact], str | None]]] = {
    "registers": _check_registers,
    "c++": _check_cpp,
}
