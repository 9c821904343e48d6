"""The Modbus TCP server a PLC reads results from, by the handshake of `handshake.py`.

`RegisterServer` is the server itself: nothing outside the register map can be read or
written, no other function is answered than reading and writing holding registers, and what
the PLC writes is checked bit by bit: a write that is refused changes nothing. Modbus knows
neither users nor secrets, so the network it is on is its only fence.

`ModbusResults` shows results of a line that is driven otherwise: they are read from the
journal as they become durable; one older than `STALE_S` is of no use to a gate and is not
shown. `plc.PlcLine` is the line itself on the same server.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from typing import TYPE_CHECKING, Any, Final, Protocol

from pymodbus.constants import ExcCodes
from pymodbus.server import ModbusTcpServer
from pymodbus.simulator import DataType, SimData, SimDevice

from qcnode.domain import Action, Disposition, Fault, FaultKind, Inspection, Verdict
from qcnode.errors import JournalUnavailableError, LineUnavailableError
from qcnode.lines.handshake import Handshake, Result

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from concurrent.futures import Future
    from datetime import datetime

    from qcnode.domain import JournalRecord
    from qcnode.health import HealthBoard
    from qcnode.lines.handshake import NodeStatus, Shown
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
DISPOSITIONS: Final = {
    None: 0,
    Disposition.RELEASE: 1,
    Disposition.SCRAP: 2,
    Disposition.REWORK: 3,
}


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


class RegisterServer:
    """Serves the register map on `host` and `port`, and keeps one handshake.

    `wrote` is told, in the server's loop, every register the PLC writes as it then stands.
    `put`, `shown` and `plc_silent` may be called by any thread.
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        registers: RegisterMap,
        status: Callable[[], NodeStatus],
        config_checksum: int,
        monotonic_s: Callable[[], float],
        wrote: Callable[[Mapping[str, int]], None] = lambda _inputs: None,
    ) -> None:
        self._host = host
        self._port = port
        self._registers = registers
        self._status = status
        self._config_checksum = (config_checksum ^ registers.checksum) & WORD
        self._monotonic_s = monotonic_s
        self._wrote = wrote
        self._lock = threading.Lock()
        self._handshake = Handshake()
        self._beats = 0
        self._reads = 0
        self._plc_seen_s = -PLC_SILENT_S
        self._words = {
            register.address + word: 0
            for register in registers.inputs()
            for word in range(register.size)
        }
        self._known_bits = {
            register.address: sum(1 << bit.bit for bit in register.bits)
            for register in registers.inputs()
            if register.bits
        }

    async def run(self, listening: Callable[[], None]) -> None:
        """Serve until cancelled; raises `LineUnavailableError` where it cannot listen."""
        server = ModbusTcpServer(self._device(), address=(self._host, self._port))
        try:
            await server.serve_forever(background=True)
        except (OSError, RuntimeError) as error:
            raise LineUnavailableError(
                f"Modbus cannot listen on {self._host}:{self._port} ({error}): set modbus.port"
            ) from error
        try:
            listening()
            while True:
                if self._status().running:
                    self._beats = (self._beats + 1) & WORD
                await asyncio.sleep(BEAT_S)
        finally:
            await server.shutdown()  # type: ignore[no-untyped-call]  # as pymodbus has it

    def put(self, result: Result) -> bool:
        """Hand a result to the PLC; False: it was too slow, and this one is lost."""
        with self._lock:
            return self._handshake.put(result)

    def shown(self) -> Shown:
        """Return what the PLC reads of the handshake now."""
        with self._lock:
            return self._handshake.shown()

    def clear(self) -> None:
        """Take back every result that was not shown yet."""
        with self._lock:
            self._handshake.clear()

    def plc_silent(self) -> bool:
        """Say whether PlcHeartbeat has stood for a second."""
        return self._monotonic_s() - self._plc_seen_s >= PLC_SILENT_S

    @property
    def reads(self) -> int:
        """How often the node's own registers were read so far."""
        return self._reads

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
        self._reads += 1
        return None

    def _write(self, address: int, values: list[int]) -> ExcCodes | None:
        wanted = dict(enumerate(values, start=address))
        if not wanted.keys() <= self._words.keys():
            return ExcCodes.ILLEGAL_ADDRESS
        for register in self._registers.inputs():
            own = [register.address + word for word in range(register.size)]
            # One half of a number is another number.
            if any(at in wanted for at in own) and not all(at in wanted for at in own):
                return ExcCodes.ILLEGAL_ADDRESS
        for at, value in wanted.items():
            if at in self._known_bits and value & ~self._known_bits[at]:
                return ExcCodes.ILLEGAL_VALUE
        beat = self._registers["PlcHeartbeat"].address
        if wanted.get(beat, self._words[beat]) != self._words[beat]:
            self._plc_seen_s = self._monotonic_s()
        self._words.update(wanted)
        inputs = self._inputs()
        with self._lock:
            self._handshake.said(
                ack=self._asks(inputs, "ResultsAck"),
                buffering=self._asks(inputs, "BufferEnable"),
                reset=self._asks(inputs, "ResetFault"),
            )
        self._wrote(inputs)
        return None

    def _inputs(self) -> dict[str, int]:
        """Return what the PLC wrote, by name."""
        found = {}
        for register in self._registers.inputs():
            value = self._words[register.address]
            if register.size > 1:
                value = value << 16 | self._words[register.address + 1]
            found[register.name] = value
        return found

    def _asks(self, inputs: Mapping[str, int], name: str) -> bool:
        bit = next(bit.bit for bit in self._registers["Control"].bits if bit.name == name)
        return bool(inputs["Control"] >> bit & 1)

    def _values(self) -> dict[int, int]:
        """Return every output register as it is now, by address."""
        shown, status = self.shown(), self._status()
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
            "Disposition": 0 if result is None else DISPOSITIONS[result.disposition],
        }
        flags: dict[str, Any] = {
            "TriggerReady": error == 0,
            "Inspecting": status.inspecting,
            "InspectionComplete": shown.toggle,
            "ResultsValid": shown.valid,
            "ResultsBufferOverrun": shown.overrun,
            "JobPass": result is not None and result.action is Action.ACCEPT,
            "Fault": error != 0,
            "PlcSilent": self.plc_silent(),
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


class ModbusResults:
    """Serves the register map with the journal's results until cancelled."""

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
        self._where = f"{host}:{port}"
        self._journal = journal
        self._health = health
        self._now = now
        self._news = asyncio.Event()
        self._server = RegisterServer(
            host,
            port,
            registers=registers,
            status=status,
            config_checksum=config_checksum,
            monotonic_s=monotonic_s,
        )

    async def run(self) -> None:
        """Serve until this task is cancelled; an address in use is tried again."""
        loop = asyncio.get_running_loop()

        def wake() -> None:
            # The journal's thread may outlive this loop.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(self._news.set)

        self._journal.add_listener(wake)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._take_results())
            while True:
                try:
                    await self._server.run(self._tell_listening)
                except LineUnavailableError as error:
                    self._health.report(COMPONENT, ok=False, words=str(error))
                    await asyncio.sleep(RETRY_S)

    def _tell_listening(self) -> None:
        self._health.report(COMPONENT, ok=True, words=f"listens on {self._where}")

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
            self._server.put(_result(record))


def _result(record: Inspection | Fault) -> Result:
    if isinstance(record, Inspection):
        return Result(
            seq=record.trigger_seq,
            verdict=record.verdict,
            action=record.action,
            latency_us=record.latency_us,
        )
    return Result(seq=record.trigger_seq, verdict=record.late_verdict, action=None, latency_us=0)
