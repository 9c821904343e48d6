"""Builds what stands between an agent and the line: kill switch, policy pack, attestations."""

from __future__ import annotations

import secrets
import time
from typing import TYPE_CHECKING

from qcnode.books.arming import read_arming
from qcnode.books.merits import Merits
from qcnode.books.policy_file import built_in, open_attestation, open_pack, refuse_older
from qcnode.books.seals import PublicKey
from qcnode.errors import SealError, SettingsError
from qcnode.kill import FOLDER, KillSwitch
from qcnode.warrant import Warrant
from qcnode.wiring.machine import now

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from qcnode.authority import Attestation, Pack
    from qcnode.books.journal import Journal
    from qcnode.domain import Limits
    from qcnode.health import HealthBoard
    from qcnode.ports import Stops
    from qcnode.settings import Settings

COMPONENT = "kill"


def build_kill_switch(home: Path, *, health: HealthBoard) -> KillSwitch:
    """Return the node's kill switch, which tells the board what is stopped."""
    switch = KillSwitch(home / FOLDER, clock_ns=time.monotonic_ns, now=now)

    def tell() -> None:
        stops = switch.stops()
        words = "; ".join(
            f"{one.scope} stopped{f' by {one.who}' if one.who else ''}"
            f"{f': {one.reason}' if one.reason else ''}"
            for one in stops
        )
        health.report(COMPONENT, ok=not stops, words=words or "nothing is stopped")

    switch.add_listener(tell)
    tell()
    return switch


def pack_of(settings: Settings) -> Pack:
    """Return the policy pack in the settings, or the one that ships."""
    ours = settings.authority
    if ours.policy is None:
        return built_in()
    return open_pack(ours.policy, _key(ours.policy_key, "authority.policy_key"))


def attestations_of(settings: Settings) -> tuple[Attestation, ...]:
    """Return the attestations in the settings, each with its signature checked."""
    ours = settings.authority
    if not ours.attestations:
        return ()
    key = _key(ours.auditor_key, "authority.auditor_key")
    return tuple(open_attestation(path, key) for path in ours.attestations)


def build_warrant(
    settings: Settings,
    *,
    home: Path,
    journal: Journal,
    limits: Callable[[], Limits],
    stops: Stops,
    certified: Callable[[], bool],
    health: HealthBoard,
) -> Warrant:
    """Return what says how far the agents' word reaches."""
    pack = pack_of(settings)
    if settings.authority.policy is not None:
        refuse_older(pack, home)
    return Warrant(
        pack=pack,
        wanted=settings.agent.level,
        attestations=attestations_of(settings),
        part_type=settings.agent.product,
        secret=secrets.token_bytes(32),
        stops=stops,
        merits=Merits(journal, limits=limits),
        certified=certified,
        health=health,
        now=now,
        arming=lambda: read_arming(home),
    )


def _key(text: str | None, name: str) -> PublicKey:
    try:
        return PublicKey.parse(text or "")
    except SealError as error:
        raise SettingsError(f"{name}: {error}") from error
