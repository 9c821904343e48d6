"""What the folder of device configurations says of itself: every file, every parameter. Pure.

A file that takes parameters is a template with `@{name}` in it. A parameter has a type and
bounds, and none of the types can hold a line's end, a quote or a secret: secrets are named
in the files (`!secret`, a path) and never stand in them. Needs PyYAML (extra `modbus`).
"""

from __future__ import annotations

import ast
import difflib
import ipaddress
import math
import operator
import re
import tomllib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, TypeAlias

import msgspec
import yaml

from qcnode.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

MANIFEST: Final = "manifest.yaml"
BUILT_IN: Final = ("version", "digest")
GPIO_MAX: Final = 39

Value: TypeAlias = str | int | float
Values: TypeAlias = "Mapping[str, Value]"
Kind: TypeAlias = Literal[
    "registers",
    "ignition",
    "node-red",
    "mosquitto",
    "c++",
    "esphome",
    "esphome-part",
    "esphome-secrets",
    "st",
    "camera",
    "light",
    "sysctl",
    "netplan",
    "chrony",
    "udev",
]
Id: TypeAlias = Annotated[str, msgspec.Meta(pattern="^[a-z0-9-]{1,48}$")]


class Parameter(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One value of a site; `low` and `high` are allowed themselves."""

    type: Literal[
        "name",
        "host",
        "address",
        "network",
        "path",
        "prefix",
        "pin",
        "choice",
        "hex",
        "integer",
        "number",
    ]
    default: Value
    words: str
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()


class Artefact(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One file: what it is, who loads it, and what it must match.

    `needs` are files it loads itself. `to` is where it is put, without it it goes nowhere on
    its own. `reported` is the topic where the device says what it was flashed with.
    """

    id: Id
    kind: Kind
    version: Annotated[int, msgspec.Meta(ge=1)]
    path: str
    sha256: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
    loaded_by: str
    must_match: str
    validation: str
    apply: str = ""
    readback: str = ""
    to: str | None = None
    mode: Annotated[str, msgspec.Meta(pattern="^0[0-7]{3}$")] = "0644"
    needs: tuple[Id, ...] = ()
    reported: str | None = None
    rules: tuple[str, ...] = ()


class Manifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Every file of the folder."""

    version: Literal[2]
    parameters: dict[str, Parameter]
    artefacts: tuple[Artefact, ...]

    def __getitem__(self, artefact_id: str) -> Artefact:
        """Return the artefact of this id; raises `SettingsError` for one that is not there."""
        for one in self.artefacts:
            if one.id == artefact_id:
                return one
        known = [one.id for one in self.artefacts]
        raise SettingsError(f"{artefact_id!r} is not in {MANIFEST}{_meant(artefact_id, known)}")

    def with_needs(self, artefact: Artefact) -> tuple[Artefact, ...]:
        """Return the artefact and all that it loads."""
        return (artefact, *(self[one] for one in artefact.needs))

    def defaults(self) -> dict[str, Value]:
        """Return every parameter's default."""
        return {name: one.default for name, one in self.parameters.items()}


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of a folder; raises `SettingsError` for one that is none."""
    path = folder / MANIFEST
    try:
        manifest = msgspec.convert(yaml.safe_load(path.read_text("utf-8")), Manifest)
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read ({error.strerror})") from error
    except (yaml.YAMLError, UnicodeDecodeError, msgspec.ValidationError) as error:
        words = " ".join(str(error).split())
        raise SettingsError(f"{path}: is no manifest: {words}") from error
    ids = [one.id for one in manifest.artefacts]
    paths = [one.path for one in manifest.artefacts]
    if len(set(ids)) != len(ids) or len(set(paths)) != len(paths):
        raise SettingsError(f"{path}: an id or a path stands there twice")
    for one in manifest.artefacts:
        manifest.with_needs(one)
        for rule in one.rules:
            _Rule(rule, manifest.defaults())
    for name, parameter in manifest.parameters.items():
        if problem := wrong(parameter, parameter.default):
            raise SettingsError(f"{path}: the default of {name} {problem}")
    return manifest


def read_values(path: Path | None, manifest: Manifest) -> dict[str, Value]:
    """Return every parameter of a site: the defaults, and what the TOML file says instead."""
    values = manifest.defaults()
    if path is None:
        return values
    try:
        said = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read ({error.strerror})") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: is no TOML: {error}") from error
    for name, value in said.items():
        parameter = manifest.parameters.get(name)
        if parameter is None:
            known = _meant(name, manifest.parameters)
            raise SettingsError(
                f"{path}: {name} is no parameter{known}; secrets belong to the device, not here"
            )
        if problem := wrong(parameter, value):
            raise SettingsError(f"{path}: {name} {problem}")
        values[name] = value
    return values


def broken_rule(artefact: Artefact, values: Values) -> str | None:
    """Return the first rule between parameters that these values break."""
    return next((rule for rule in artefact.rules if not _Rule(rule, values).holds()), None)


def wrong(parameter: Parameter, value: object) -> str | None:
    """Say what is wrong with a value; None is right."""
    if parameter.type in ("integer", "number"):
        return _wrong_number(parameter, value)
    if not isinstance(value, str):
        return f"must be text in quotes, not {value!r}"
    if parameter.type == "choice":
        if value in parameter.choices:
            return None
        return f"is one of {', '.join(parameter.choices)}, not {value!r}"
    return None if TYPES[parameter.type](value) else f"is no {parameter.type}: {value!r}"


def _wrong_number(parameter: Parameter, value: object) -> str | None:
    whole = parameter.type == "integer"
    if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
        return f"must be {'a whole number' if whole else 'a number'}, not {value!r}"
    low = -math.inf if parameter.low is None else parameter.low
    high = math.inf if parameter.high is None else parameter.high
    if not math.isfinite(value) or not low <= value <= high:
        return f"must be from {low:g} to {high:g}, not {value!r}"
    return None


def _matches(pattern: str) -> Callable[[str], bool]:
    compiled = re.compile(pattern)
    return lambda value: compiled.fullmatch(value) is not None


def _is_address(value: str) -> bool:
    try:
        ipaddress.IPv4Address(value)
    except ValueError:
        return False
    return True


def _is_network(value: str) -> bool:
    try:
        ipaddress.IPv4Network(value)
    except ValueError:
        return False
    return "/" in value


def _is_pin(value: str) -> bool:
    found = re.fullmatch(r"GPIO([0-9]{1,2})", value)
    return found is not None and int(found[1]) <= GPIO_MAX


TYPES: Final[dict[str, Callable[[str], bool]]] = {
    "name": _matches(r"[a-z0-9-]{1,32}"),
    "host": _matches(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?"),
    "address": _is_address,
    "network": _is_network,
    "path": _matches(r"(/[A-Za-z0-9_-][A-Za-z0-9._-]*)+"),
    "prefix": _matches(r"[a-z0-9-]{1,32}(/[a-z0-9-]{1,32})*"),
    "pin": _is_pin,
    "hex": _matches(r"[0-9a-f]{4}"),
}


def _meant(name: str, known: Any) -> str:
    near = difflib.get_close_matches(name, list(known), n=1)
    return f": did you mean {near[0]}?" if near else ""


# -- rules between parameters ---------------------------------------------------------------

_SUMS: Final[dict[type[ast.operator], Callable[[float, float], float]]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


@dataclass(frozen=True, slots=True)
class _Rule:
    """`left < right`, of parameters, numbers and + - * /; raises `SettingsError` for others."""

    text: str
    values: Values

    def __post_init__(self) -> None:
        self.holds()

    def holds(self) -> bool:
        try:
            body = ast.parse(self.text, mode="eval").body
        except SyntaxError as error:
            raise SettingsError(f"{MANIFEST}: {self.text!r} is no rule") from error
        if not (
            isinstance(body, ast.Compare) and len(body.ops) == 1 and isinstance(body.ops[0], ast.Lt)
        ):
            raise SettingsError(f"{MANIFEST}: the rule {self.text!r} must be `left < right`")
        return self._number(body.left) < self._number(body.comparators[0])

    def _number(self, node: ast.expr) -> float:
        if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
            return float(node.value)
        if isinstance(node, ast.Name) and isinstance(self.values.get(node.id), int | float):
            return float(self.values[node.id])
        if isinstance(node, ast.BinOp) and type(node.op) in _SUMS:
            return _SUMS[type(node.op)](self._number(node.left), self._number(node.right))
        raise SettingsError(
            f"{MANIFEST}: {ast.unparse(node)} in the rule {self.text!r} is no number"
        )
