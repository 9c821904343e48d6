"""Every device configuration checked against its manifest, and as whatever loads it would.

Each file is filled in with its defaults and looked at by its kind: generated files are made
anew and compared, C++ is compiled, ESPHome's and structured text's own parsers are run, and
what has no parser of its own here meets a strict one of ours. A parser that is not on this
machine is named with the file it could not look at; our own rules hold all the same. What
stands in the folder and not in the manifest is wrong too.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from qcnode.errors import SettingsError
from qcnode.firmware import made, rules
from qcnode.firmware.manifest import MANIFEST, Artefact, Manifest, read_manifest
from qcnode.firmware.render import Rendered, holes, read, render, secret_in

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

PLAIN: Final = ("README.md", MANIFEST)
TOOL_S: Final = 120
WORDS_MAX: Final = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """What came of one file; without a `problem` it is right, as far as it was looked at."""

    id: str
    path: str
    problem: str | None
    unchecked: str | None = None


class _ToolMissingError(Exception):
    """The program that loads this kind of file is not here."""


def validate(folder: Path, only: Sequence[str] = ()) -> list[Checked]:
    """Check every file of the folder; raises `SettingsError` where the manifest is none.

    With `only` these artefacts are looked at, and nothing is said of what else lies there.
    """
    manifest = read_manifest(folder)
    if only:
        return [_checked(folder, manifest, manifest[one]) for one in only]
    checked = [_checked(folder, manifest, one) for one in manifest.artefacts]
    known = {one.path for one in manifest.artefacts}
    for file in sorted(folder.rglob("*")):
        path = file.relative_to(folder).as_posix()
        if file.is_file() and path not in known and file.name not in PLAIN:
            problem = f"it is not in {MANIFEST}: put it there, or take it away"
            checked.append(Checked(id="-", path=path, problem=problem))
    asked = {name for one in manifest.artefacts for name in _holes(folder, one)}
    for name in sorted(set(manifest.parameters) - asked):
        if not any(name in rule for one in manifest.artefacts for rule in one.rules):
            problem = f"no file asks for the parameter {name}"
            checked.append(Checked(id="-", path=MANIFEST, problem=problem))
    return checked


def _holes(folder: Path, artefact: Artefact) -> set[str]:
    try:
        return holes(read(folder, artefact.path) + (artefact.to or "") + (artefact.reported or ""))
    except SettingsError:
        return set()


def _checked(folder: Path, manifest: Manifest, artefact: Artefact) -> Checked:
    problem, unchecked = None, None
    try:
        problem = _problem(folder, manifest, artefact)
    except _ToolMissingError as missing:
        unchecked = str(missing)
    except SettingsError as error:
        problem = str(error).removeprefix(f"{artefact.path}: ")
    if problem is None:
        digest = hashlib.sha256((folder / artefact.path).read_bytes()).hexdigest()
        if digest != artefact.sha256:
            problem = (
                f"it has changed: if that was meant, raise its version in {MANIFEST} and run"
                " `python -m qcnode.firmware.made`"
            )
    return Checked(id=artefact.id, path=artefact.path, problem=problem, unchecked=unchecked)


def _problem(folder: Path, manifest: Manifest, artefact: Artefact) -> str | None:
    text = read(folder, artefact.path)
    if what := secret_in(text):
        return f"looks as if a secret stood there ({what})"
    if artefact.path in made.PATHS and (problem := _as_made(folder, artefact, text)):
        return problem
    rendered = render(folder, manifest, artefact, manifest.defaults())
    return CHECKS[artefact.kind](folder, rendered)


def _as_made(folder: Path, artefact: Artefact, text: str) -> str | None:
    try:
        wanted = made.texts(folder.parent)[artefact.path]
    except OSError as error:
        raise _ToolMissingError(f"{error.filename} is not there to compare it with") from error
    if wanted != text:
        return (
            f"it is not what {made.PATHS[artefact.path]} says:"
            " run `python -m qcnode.firmware.made` in the root of the checkout"
        )
    return None


# -- by kind --------------------------------------------------------------------------------


def _by_rule(rule: Callable[[str], str | None]) -> Callable[[Path, Rendered], str | None]:
    return lambda _folder, rendered: rule(rendered.main.decode())


def _check_cpp(folder: Path, rendered: Rendered) -> str | None:
    flags = ("-std=c++11", "-Wall", "-Wextra", "-Wconversion", "-Werror", "-fsyntax-only")
    # A header is there to be included.
    source = f'#include "{(folder / rendered.artefact.path).resolve()}"\n'
    compiler = shutil.which("g++")
    if compiler is None:
        raise _ToolMissingError("g++ is not here: apt-get install g++")
    done = _run([compiler, *flags, "-x", "c++", "-"], folder, stdin=source)
    if done.returncode == 0:
        return None
    first = next((line for line in done.stderr.splitlines() if "error" in line), "")
    return f"it does not compile: {first.partition('error: ')[2] or first}"


def _check_esphome(folder: Path, rendered: Rendered) -> str | None:
    files = {path: raw.decode() for path, raw in rendered.files.items()}
    secrets = rules.secret_names(read(folder, "esphome/secrets.example.yaml"))
    if problem := rules.esphome(files, rendered.artefact.path, secrets):
        return problem
    program = _tool("esphome", folder)
    with tempfile.TemporaryDirectory(prefix="qcnode-firmware-") as name:
        home = Path(name)
        write_files(home, rendered)
        main = home / rendered.artefact.path
        example = "".join(f'{secret}: "filled-in"\n' for secret in sorted(secrets))
        (main.parent / "secrets.yaml").write_text(example, "utf-8")
        done = _run([program, "config", main.name], main.parent)
    return None if done.returncode == 0 else _said("esphome", done.stdout, after="Failed config")


def _check_st(folder: Path, rendered: Rendered) -> str | None:
    if problem := rules.structured_text(rendered.main.decode()):
        return problem
    program = _tool("blark", folder)
    with tempfile.TemporaryDirectory(prefix="qcnode-firmware-") as name:
        file = Path(name) / Path(rendered.artefact.path).name
        file.write_bytes(rendered.main)
        done = _run([program, "parse", str(file)], Path(name))
    return None if done.returncode == 0 else _said("blark", done.stdout + done.stderr)


def _check_registers(folder: Path, rendered: Rendered) -> str | None:
    return _check_st(folder, rendered) if rendered.artefact.path.endswith(".st") else None


def _check_netplan(_folder: Path, rendered: Rendered) -> str | None:
    if problem := rules.netplan(rendered.main.decode()):
        return problem
    program = shutil.which("netplan")
    if program is None:
        return None  # Our own rules know every key that stands there.
    with tempfile.TemporaryDirectory(prefix="qcnode-firmware-") as name:
        file = Path(name) / "etc" / "netplan" / "60-qcnode.yaml"
        file.parent.mkdir(parents=True)
        file.write_bytes(rendered.main)
        file.chmod(0o600)
        done = _run([program, "generate", "--root-dir", name], Path(name))
    return None if done.returncode == 0 else _said("netplan", done.stderr)


def _check_chrony(_folder: Path, rendered: Rendered) -> str | None:
    if problem := rules.chrony(rendered.main.decode()):
        return problem
    program = shutil.which("chronyd", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if program is None:
        return None
    with tempfile.TemporaryDirectory(prefix="qcnode-firmware-") as name:
        file = Path(name) / "chrony.conf"
        file.write_bytes(rendered.main)
        done = _run([program, "-p", "-f", str(file)], Path(name))
    return None if done.returncode == 0 else _said("chronyd", done.stderr)


CHECKS: Final[dict[str, Callable[[Path, Rendered], str | None]]] = {
    "c++": _check_cpp,
    "esphome": _check_esphome,
    "esphome-part": _by_rule(rules.yaml_mapping),
    "esphome-secrets": _by_rule(rules.secrets_example),
    "st": _check_st,
    "camera": _by_rule(rules.camera),
    "light": _by_rule(rules.light),
    "sysctl": _by_rule(rules.sysctl),
    "netplan": _check_netplan,
    "chrony": _check_chrony,
    "udev": _by_rule(rules.udev),
    "registers": _check_registers,
    "ignition": _by_rule(rules.json_list_or_mapping),
    "node-red": _by_rule(rules.json_list_or_mapping),
    "mosquitto": _by_rule(rules.mosquitto),
}


def write_files(home: Path, rendered: Rendered) -> None:
    """Write what was rendered below `home`, each file where it stands in the folder."""
    for path, raw in rendered.files.items():
        file = home / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(raw)


def _tool(name: str, folder: Path) -> str:
    here = folder.resolve().parent / "build" / name / "bin" / name
    found = str(here) if here.exists() else shutil.which(name)
    if found is None:
        raise _ToolMissingError(f"{name} did not look at it: make firmware-env")
    return found


def _run(
    command: Sequence[str], cwd: Path, *, stdin: str | None = None
) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(  # noqa: S603  # named programs, on files of the checkout
            list(command),
            cwd=cwd,
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            text=True,
            check=False,
            timeout=TOOL_S,
            env={**os.environ, "NO_COLOR": "1", "PYTHONWARNINGS": "ignore"},
        )
    except subprocess.TimeoutExpired as error:
        raise SettingsError(f"{command[0]} did not end within {TOOL_S} s") from error


def _said(program: str, out: str, *, after: str = "") -> str:
    words = " ".join((out.partition(after)[2] or out).split())
    return f"{program} refuses it: {words[:WORDS_MAX]}"
