"""Policy packs and attestations: signed TOML files, read whole or refused.

Beside `pack.toml` lies `pack.toml.sig`, a signed note over the digest of its bytes. A pack
counts up: an older version than the one last used here is refused, also after a restart.
The pack that ships is vouched for by the package it came in.
"""

from __future__ import annotations

import hashlib
import math
import re
import tomllib
from datetime import datetime
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Final

from qcnode.authority import LEVEL_OF, RANK, AgentAction, Attestation, Bounds, Envelope, Pack
from qcnode.books.seals import Checkpoint, PublicKey, SigningKey
from qcnode.domain import AgentLevel
from qcnode.errors import PolicyError, SealError

if TYPE_CHECKING:
    from pathlib import Path

ORIGIN_OF: Final = {"pack": "qcnode/policy", "attestation": "qcnode/attestation"}
FORMAT: Final = 1
BYTES_MAX: Final = 65_536
_NAME: Final = re.compile(r"[a-z0-9-]{1,32}")
_PICO_PER_MICRO: Final = 1_000_000


def built_in() -> Pack:
    """Return the pack that ships."""
    data = files("qcnode").joinpath("policies/built-in.toml").read_bytes()
    return parse_pack(data, source="the built-in policy pack")


def open_pack(path: Path, key: PublicKey) -> Pack:
    """Read a pack that `key` signed; raises `PolicyError`."""
    return parse_pack(_signed(path, key, "pack"), source=str(path))


def open_attestation(path: Path, key: PublicKey) -> Attestation:
    """Read an attestation that `key` signed; raises `PolicyError`."""
    return parse_attestation(_signed(path, key, "attestation"), source=str(path))


def sign_file(path: Path, key: SigningKey) -> Path:
    """Sign a pack or an attestation, whichever it is, once it reads well."""
    data = read_file(path)
    kind = kind_of(data, source=str(path))
    note = path.with_name(path.name + ".sig")
    unfinished = note.with_name(note.name + ".part")
    try:
        unfinished.write_text(key.sign(_checkpoint(data, kind)), encoding="utf-8")
        unfinished.replace(note)
    except OSError as error:
        raise PolicyError(f"{note}: cannot be written ({error.strerror})") from error
    return note


def kind_of(data: bytes, *, source: str) -> str:
    """Say whether this is a `pack` or an `attestation`; raises `PolicyError` if neither."""
    if "agent" in _toml(data, source):
        parse_attestation(data, source=source)
        return "attestation"
    parse_pack(data, source=source)
    return "pack"


def refuse_older(pack: Pack, home: Path) -> None:
    """Refuse a pack that is older than the newest of its name that was in use here."""
    mark = home / f"policy-{pack.name}.version"
    try:
        version, digest = _mark(mark)
        if pack.version < version:
            raise PolicyError(
                f"policy pack {pack.name}: version {pack.version} is older than {version}, which"
                " was in use here: count its version up"
            )
        if pack.version == version and pack.digest != digest:
            raise PolicyError(
                f"policy pack {pack.name}: another one had version {version} here: count its"
                " version up"
            )
        unfinished = mark.with_name(mark.name + ".part")
        unfinished.write_text(f"{pack.version} {pack.digest}\n", encoding="utf-8")
        unfinished.replace(mark)
    except OSError as error:
        raise PolicyError(f"{mark}: cannot be read or written ({error.strerror})") from error


def parse_pack(data: bytes, *, source: str) -> Pack:
    """Read a pack's bytes, whoever signed them; raises `PolicyError`."""
    table = _Table(_toml(data, source), source)
    table.want_format()
    levels = {
        action: _level(table, name, value)
        for name, value in table.sub("levels").items()
        for action in [_action(table, name)]
    }
    inside = _Table(table.sub("envelope"), source)
    envelope = Envelope(
        part_types=tuple(inside.texts("part_types")),
        confidence_floor=inside.number("confidence_floor", 0.0, 1.0),
        quota_per_hour=int(inside.number("quota_per_hour", 0, 1_000_000, whole=True)),
        cost_pico_max={
            currency: int(_within(source, currency, value, 0, 10**12, whole=True) * _PICO_PER_MICRO)
            for currency, value in inside.sub("cost_micro_max").items()
        },
        recheck_share=inside.number("recheck_share", 0.0, 1.0),
        trial_share=inside.number("trial_share", 0.0, 1.0),
        overrule_node=inside.switch("overrule_node"),
    )
    inside.want_no_more()
    bounds = {}
    for knob, value in table.sub("bounds").items():
        of = _Table(value if isinstance(value, dict) else {}, f"{source}: bounds.{knob}")
        bounds[knob] = Bounds(
            low=of.number("low", -math.inf, math.inf),
            high=of.number("high", -math.inf, math.inf),
            step_max=of.number("step_max", 0.0, math.inf),
        )
        of.want_no_more()
        if bounds[knob].low > bounds[knob].high:
            raise PolicyError(f"{source}: bounds.{knob}: low is above high")
    pack = Pack(
        name=_name(table),
        version=int(table.number("version", 1, 10**9, whole=True)),
        digest=hashlib.sha256(data).hexdigest(),
        levels=levels,
        envelope=envelope,
        bounds=bounds,
    )
    table.want_no_more()
    return pack


def parse_attestation(data: bytes, *, source: str) -> Attestation:
    """Read an attestation's bytes, whoever signed them; raises `PolicyError`."""
    table = _Table(_toml(data, source), source)
    table.want_format()
    attestation = Attestation(
        agent=table.text("agent"),
        provider=table.text("provider"),
        policy=table.text("policy"),
        level=_level(table, "level", table.take("level")),
        start=_level(table, "start", table.take("start", "L2")),
        right_at_least=table.number("right_at_least", 0.0, 1.0, default=0.0),
        begins=table.instant("begins"),
        ends=table.instant("ends"),
        by=table.text("by"),
    )
    table.want_no_more()
    if attestation.begins >= attestation.ends:
        raise PolicyError(f"{source}: it ends before it begins")
    if RANK[attestation.start] > RANK[attestation.level]:
        raise PolicyError(f"{source}: it starts above the level it attests")
    return attestation


class _Table:
    """One table of a file, of which every key is taken once and none is left over."""

    def __init__(self, raw: dict[str, Any], source: str) -> None:
        self._raw = dict(raw)
        self.source = source

    def take(self, key: str, default: Any = None) -> Any:
        value = self._raw.pop(key, default)
        if value is None:
            raise PolicyError(f"{self.source}: {key} is missing")
        return value

    def text(self, key: str) -> str:
        value = self.take(key)
        if not isinstance(value, str) or not 0 < len(value) <= 200:  # noqa: PLR2004  # a line
            raise PolicyError(f"{self.source}: {key} must be a text of at most 200 characters")
        return value

    def texts(self, key: str) -> list[str]:
        value = self.take(key, [])
        if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
            raise PolicyError(f"{self.source}: {key} must be a list of texts")
        return value

    def number(
        self,
        key: str,
        low: float,
        high: float,
        *,
        whole: bool = False,
        default: float | None = None,
    ) -> float:
        return _within(self.source, key, self.take(key, default), low, high, whole=whole)

    def switch(self, key: str) -> bool:
        value = self.take(key)
        if not isinstance(value, bool):
            raise PolicyError(f"{self.source}: {key} must be true or false")
        return value

    def instant(self, key: str) -> datetime:
        value = self.take(key)
        if not isinstance(value, datetime) or value.tzinfo is None:
            raise PolicyError(f"{self.source}: {key} must be an instant, as 2026-11-22T00:00:00Z")
        return value

    def sub(self, key: str) -> dict[str, Any]:
        value = self.take(key, {})
        if not isinstance(value, dict):
            raise PolicyError(f"{self.source}: {key} must be a table")
        return value

    def want_format(self) -> None:
        if self.take("format") != FORMAT:
            raise PolicyError(f"{self.source}: this qcnode reads format = {FORMAT}")

    def want_no_more(self) -> None:
        if self._raw:
            raise PolicyError(f"{self.source}: there is no key {min(self._raw)!r:.80}")


def _within(
    source: str, key: str, value: object, low: float, high: float, *, whole: bool = False
) -> float:
    fits = isinstance(value, int) if whole else isinstance(value, int | float)
    if not fits or isinstance(value, bool) or not low <= value <= high:  # type: ignore[operator]
        kind = "a whole number" if whole else "a number"
        raise PolicyError(f"{source}: {key} must be {kind} from {low:g} to {high:g}")
    return value  # type: ignore[return-value]


def _name(table: _Table) -> str:
    name = table.text("name")
    if not _NAME.fullmatch(name):
        raise PolicyError(f"{table.source}: name must be of a-z, 0-9 and '-', at most 32")
    return name


def _action(table: _Table, name: str) -> AgentAction:
    try:
        action = AgentAction(name)
    except ValueError:
        action = AgentAction.RESTART
    if action not in LEVEL_OF:
        raise PolicyError(f"{table.source}: levels.{name}: there is no such action to grant")
    return action


def _level(table: _Table, name: str, value: object) -> AgentLevel:
    try:
        level = AgentLevel(str(value))
    except ValueError:
        raise PolicyError(f"{table.source}: {name} must be L1, L2, L3 or L4") from None
    if name in LEVEL_OF and RANK[level] < RANK[LEVEL_OF[AgentAction(name)]]:
        least = LEVEL_OF[AgentAction(name)]
        raise PolicyError(f"{table.source}: levels.{name} is never less than {least}")
    return level


def _signed(path: Path, key: PublicKey, kind: str) -> bytes:
    data, note = read_file(path), path.with_name(path.name + ".sig")
    if not note.exists():
        raise PolicyError(f"{path}: not signed; `qcnode policy sign` writes the signature")
    try:
        signed = key.check(read_file(note).decode("utf-8"))
    except (SealError, UnicodeDecodeError) as error:
        raise PolicyError(f"{note}: not a signature of {key.name} ({error})") from error
    if signed != _checkpoint(data, kind):
        raise PolicyError(f"{path}: not the {kind} that {key.name} signed: it was changed")
    return data


def _checkpoint(data: bytes, kind: str) -> Checkpoint:
    return Checkpoint(
        origin=ORIGIN_OF[kind], size=len(data), head_hash=hashlib.sha256(data).digest()
    )


def read_file(path: Path) -> bytes:
    """Return the bytes of a pack or an attestation; raises `PolicyError`."""
    try:
        with path.open("rb") as file:
            data = file.read(BYTES_MAX + 1)
    except OSError as error:
        raise PolicyError(f"{path}: cannot be read ({error.strerror})") from error
    if len(data) > BYTES_MAX:
        raise PolicyError(f"{path}: longer than {BYTES_MAX} bytes")
    return data


def _toml(data: bytes, source: str) -> dict[str, Any]:
    try:
        return tomllib.loads(data.decode("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise PolicyError(f"{source}: not TOML: {error}") from error


def _mark(path: Path) -> tuple[int, str]:
    try:
        version, _, digest = path.read_text(encoding="utf-8").strip().partition(" ")
        return int(version), digest
    except FileNotFoundError:
        return 0, ""
    except ValueError:
        raise PolicyError(f"{path}: not a version and a digest; restore it from a backup") from None
