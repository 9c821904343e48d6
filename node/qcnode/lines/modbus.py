"""The Modbus TCP server a PLC reads results from, by the handshake of `handshake.py`.

Nothing outside the register map can be read or written, no other function is answered than
reading and writing holding registers, and what the PLC writes is checked bit by bit: a
write that is refused changes nothing. Modbus knows neither users nor secrets, so the
network it is on is its only fence. Results are read from the journal as they become
durable; one older than `STALE_S` is of no use to a gate and is not shown.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

from pymodbus.constants import ExcCodes
from pymodbus.server import ModbusTcpServer
from pymodbus.simulator import DataType, SimData, SimDevice

from qcnode.domain import Action, Fault, FaultKind, Inspection, Verdict
from qcnode.errors import JournalUnavailableError, LineUnavailableError
from qcnode.lines.handshake import Handshake, Result

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future
    from datetime import datetime

    from qcnode.domain import JournalRecord
    from qcnode.health import HealthBoard
    from qcnode.lines.registers import RegisterMap

COMPONENT = "modbus"
READER = "modbus"
READ, WRITE_ONE, WRITE_MANY = 3, 6, 16
BEAT_S: Final = 0.5
PLC_SILENT_S: Final = 1.0
STALE_S: Final = 2.0
READ_MAX: Final = 200
RETRY_S: Final = 5.0
WORD: Final = 0xFFFF
TAGS: Final = 256
VERDICTS: Final = {
    None: 0,
    Verdict.OK: 1,
    Verdict.NOT_OK: 2,
    Verdict.NOT_DECIDABLE: 3,
    Verdict.UNDEFINED: 4,
}
ACTIONS: Final = {None: 0, Action.ACCEPT: 1, Action.REJECT: 2, Action.DIVERT: 3}


class ResultSource(Protocol):
    """A journal, as far as it is read here."""

    def read(self, after_seq: int, limit: int) -> list[tuple[int, JournalRecord]]:
        """Return up to `limit` records beyond `after_seq` with their seq, in order."""

    def cursor(self, reader: str) -> int:
        """Return how far `reader` has come; 0 at the beginning."""

    def advance(self, reader: str, seq: int) -> Future[bool]:
        """Note that `reader` has dealt with everything up to `seq`."""

    def add_listener(self, listener: Callable[[], None]) -> None:
        """Have `listener` called, from another thread, after each group is durable."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeStatus:
    """How the node is, as the PLC is shown it."""

    ready: bool
    running: bool
    inspecting: bool


class ModbusResults:
    """Serves the register map on `host` and `port` until cancelled."""

    def __init__(
        self,
        host: str,
        port: int,
        *,
        registers: RegisterMap,
        journal: ResultSource,
        status: Callable[[], NodeStatus],
        config_checksum: int,
        health: HealthBoard,
        now: Callable[[], datetime],
        monotonic_s: Callable[[], float],
    ) -> None:
        self._host = host
        self._port = port
        self._registers = registers
        self._journal = journal
        self._status = status
        self._config_checksum = (config_checksum ^ registers.checksum) & WORD
        self._health = health
        self._now = now
        self._monotonic_s = monotonic_s
        self._handshake = Handshake()
        self._news = asyncio.Event()
        self._beats = 0
        self._inputs = dict.fromkeys((register.name for register in registers.inputs()), 0)
        self._plc_seen_s = -PLC_SILENT_S
        self._known_bits = {
            register.address: sum(1 << bit.bit for bit in register.bits)
            for register in registers.inputs()
            if register.bits
        }

    async def run(self) -> None:
        """Serve until this task is cancelled; an address in use is tried again."""
        loop = asyncio.get_running_loop()

        def wake() -> None:
            # The journal's thread may outlive this loop.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(self._news.set)

        self._journal.add_listener(wake)
        while True:
            try:
                await self._serve()
            except LineUnavailableError as error:
                self._health.report(COMPONENT, ok=False, words=str(error))
                await asyncio.sleep(RETRY_S)

    async def _serve(self) -> None:
        server = ModbusTcpServer(self._device(), address=(self._host, self._port))
        try:
            await server.serve_forever(background=True)
        except (OSError, RuntimeError) as error:
            raise LineUnavailableError(
                f"Modbus cannot listen on {self._host}:{self._port} ({error}): set modbus.port"
            ) from error
        self._health.report(COMPONENT, ok=True, words=f"listens on {self._host}:{self._port}")
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._beat())
                await self._take_results()
        finally:
            await server.shutdown()  # type: ignore[no-untyped-call]  # as pymodbus has it

    async def _beat(self) -> None:
        while True:
            if self._status().running:
                self._beats = (self._beats + 1) & WORD
            await asyncio.sleep(BEAT_S)

    async def _take_results(self) -> None:
        """Put each part's result before the PLC as soon as it is on record."""
        mark = await asyncio.to_thread(self._journal.cursor, READER)
        while True:
            self._news.clear()
            try:
                records = await asyncio.to_thread(self._journal.read, mark, READ_MAX)
            except JournalUnavailableError:
                records = []  # The journal says so itself, and will be read again.
            for seq, record in records:
                mark = seq
                if isinstance(record, Inspection | Fault):
                    self._put(record)
            if records:
                with contextlib.suppress(JournalUnavailableError):
                    self._journal.advance(READER, mark)
                continue
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(BEAT_S):
                    await self._news.wait()

    def _put(self, record: Inspection | Fault) -> None:
        if isinstance(record, Fault) and record.kind is FaultKind.INTERRUPTED:
            return  # Found out at the next start: the part has long met the gate's default.
        at = record.captured_at if isinstance(record, Inspection) else record.at
        if (self._now() - at).total_seconds() <= STALE_S:
            self._handshake.put(_result(record))

    # -- registers --------------------------------------------------------------------------

    def _device(self) -> SimDevice:
        blocks = [
            SimData(register.address, count=register.size, values=0, datatype=DataType.REGISTERS)
            for register in self._registers.registers
        ]
        return SimDevice(0, simdata=blocks, action=self._act)

    async def _act(  # noqa: PLR0917  # as pymodbus calls it
        self,
        function: int,
        start: int,
        address: int,
        count: int,
        registers: list[int],
        written: list[int] | list[bool] | None,
    ) -> ExcCodes | None:
        """Answer one request: None lets it through, on registers that are true by then."""
        if written is not None and function in (WRITE_ONE, WRITE_MANY):
            return self._write(address, [int(value) for value in written])
        if function not in (READ, WRITE_ONE, WRITE_MANY):
            return ExcCodes.ILLEGAL_FUNCTION
        for at, value in self._values().items():
            if address <= at < address + count:
                registers[at - start] = value
        return None

    def _write(self, address: int, values: list[int]) -> ExcCodes | None:
        wanted = dict(enumerate(values, start=address))
        names = {register.address: register.name for register in self._registers.inputs()}
        if not wanted.keys() <= names.keys():
            return ExcCodes.ILLEGAL_ADDRESS
        for at, value in wanted.items():
            if at in self._known_bits and value & ~self._known_bits[at]:
                return ExcCodes.ILLEGAL_VALUE
        for at, value in wanted.items():
            if names[at] == "PlcHeartbeat" and value != self._inputs["PlcHeartbeat"]:
                self._plc_seen_s = self._monotonic_s()
            self._inputs[names[at]] = value
        self._handshake.said(
            ack=self._asks("ResultsAck"),
            buffering=self._asks("BufferEnable"),
            reset=self._asks("ResetFault"),
        )
        return None

    def _asks(self, name: str) -> bool:
        bit = next(bit.bit for bit in self._registers["Control"].bits if bit.name == name)
        return bool(self._inputs["Control"] >> bit & 1)

    def _values(self) -> dict[int, int]:
        """Return every output register as it is now, by address."""
        shown, status = self._handshake.shown(), self._status()
        result = shown.result
        error = 0 if status.ready and status.running else 1 if status.running else 2
        values: dict[str, int] = {
            "Heartbeat": self._beats,
            "ResultNo": shown.number,
            "Verdict": 0 if result is None else VERDICTS[result.verdict],
            "Action": 0 if result is None else ACTIONS[result.action],
            "Tag": 0 if result is None else result.seq % TAGS,
            "PartSeq": 0 if result is None else result.seq % (1 << 32),
            "ProcTimeMs": 0 if result is None else min(WORD, result.latency_us // 1000),
            "BuffersLeft": shown.buffers_left,
            "LostResults": shown.lost & WORD,
            "ErrorCode": error,
            "ConfigChecksum": self._config_checksum,
        }
        flags: dict[str, Any] = {
            "TriggerReady": error == 0,
            "Inspecting": status.inspecting,
            "InspectionComplete": shown.toggle,
            "ResultsValid": shown.valid,
            "ResultsBufferOverrun": shown.overrun,
            "JobPass": result is not None and result.action is Action.ACCEPT,
            "Fault": error != 0,
            "PlcSilent": self._monotonic_s() - self._plc_seen_s >= PLC_SILENT_S,
        }
        found: dict[int, int] = {}
        for register in self._registers.outputs():
            if register.bits:
                found[register.address] = sum(
                    1 << bit.bit for bit in register.bits if flags[bit.name]
                )
            elif register.size == 1:
                found[register.address] = values[register.name]
            else:
                found[register.address] = values[register.name] >> 16
                found[register.address + 1] = values[register.name] & WORD
        return found


def _result(record: Inspection | Fault) -> Result:
    if isinstance(record, Inspection):
        return Result(
            seq=record.trigger_seq,
            verdict=record.verdict,
            action=record.action,
            latency_us=record.latency_us,
        )
    return Result(seq=record.trigger_seq, verdict=record.late_verdict, action=None, latency_us=0)
