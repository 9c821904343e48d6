"""Builds the belt a node works at, from its settings: one made of time, or a PLC's."""

from __future__ import annotations

import time
import zlib
from typing import TYPE_CHECKING

from qcnode.errors import SettingsError
from qcnode.lines.virtual import Belt, VirtualLine
from qcnode.wiring.eyes import WORLD
from qcnode.wiring.machine import now

if TYPE_CHECKING:
    from collections.abc import Callable

    from qcnode.books.journal import Journal
    from qcnode.health import HealthBoard
    from qcnode.lines.plc import PlcLine
    from qcnode.lines.virtual import PartSource
    from qcnode.settings import Settings
    from qcnode.telling import Telling

COUNT = "line.count"
"""The file of the home with how a PLC's count of parts and the node's hang together."""

RECENT = 200


def build_line(
    settings: Settings,
    *,
    parts: PartSource,
    journal: Journal,
    health: HealthBoard,
    telling: Telling,
    model: str,
    new_id: Callable[[], str],
) -> VirtualLine | PlcLine:
    """Build the line in the settings; `telling` knows how the node is."""
    if settings.line.kind == "modbus":
        return _plc(
            settings, journal=journal, health=health, telling=telling, model=model, new_id=new_id
        )
    return VirtualLine(
        parts=parts,
        belt=belt_of(settings),
        world=settings.node.home / WORLD,
        count=settings.line.parts,
        seed=settings.line.seed,
        now=now,
        new_id=new_id,
    )


def belt_of(settings: Settings) -> Belt:
    """Return how the belt runs."""
    line = settings.line
    return Belt(
        period_ms=line.period_ms,
        speed_mm_per_s=line.speed_mm_per_s,
        gate_mm=line.gate_mm,
        guard_ms=line.guard_ms,
        pulses_per_mm=line.pulses_per_mm,
    )


def _plc(
    settings: Settings,
    *,
    journal: Journal,
    health: HealthBoard,
    telling: Telling,
    model: str,
    new_id: Callable[[], str],
) -> PlcLine:
    try:
        # pymodbus and PyYAML are an extra.
        from qcnode.lines.plc import PlcLine, Way  # noqa: PLC0415
        from qcnode.lines.registers import shipped  # noqa: PLC0415
    except ImportError as error:
        raise SettingsError(
            f"line.kind = \"modbus\" needs {error.name}: pip install 'qcnode[modbus]'"
        ) from error
    belt = belt_of(settings)
    try:
        way = Way(
            gate_pulses=belt.gate_pulses,
            guard_pulses=belt.guard_pulses,
            pulses_per_s=belt.pulses_per_s,
        )
    except ValueError as error:
        raise SettingsError(f"line.gate_mm, guard_ms, speed_mm_per_s: {error}") from error

    def counted() -> int:
        return max((one.trigger_seq for one in journal.recent(RECENT)), default=0)

    return PlcLine(
        settings.modbus.host,
        settings.modbus.port,
        registers=shipped(),
        way=way,
        memory=settings.node.home / COUNT,
        counted=counted,
        status=telling.status,
        config_checksum=zlib.crc32(model.encode()),
        health=health,
        now=now,
        new_id=new_id,
        clock_ns=time.monotonic_ns,
    )
