"""A PLC on the other end of a real TCP connection."""

import asyncio
import contextlib
import socket
import time
from datetime import UTC, datetime, timedelta

import pytest

pytest.importorskip("pymodbus", reason="pymodbus is missing: pip install 'qcnode[modbus]'")

from pymodbus.client import AsyncModbusTcpClient

from qcnode.books.journal import Journal
from qcnode.books.pictures import PictureStore
from qcnode.domain import Action, Fault, FaultKind, Inspection, Verdict
from qcnode.errors import SettingsError
from qcnode.health import HealthBoard
from qcnode.lines import registers as register_map
from qcnode.lines.handshake import NodeStatus
from qcnode.lines.modbus import ModbusResults

MAP = register_map.shipped()
ACK, BUFFER, RESET = 1, 2, 4
WAIT_S = 30


def now():
    return datetime.now(UTC)


def inspection(seq, *, at=None, action=Action.ACCEPT):
    return Inspection(
        id=f"I{seq}",
        trigger_seq=seq,
        part_id=f"P{seq}",
        verdict=Verdict.OK,
        action=action,
        score=0.5,
        model="m@1",
        captured_at=at or now(),
        latency_us=9_300,
    )


@pytest.fixture
def journal(tmp_path):
    book = Journal(
        tmp_path / "journal.db",
        pictures=PictureStore(tmp_path / "pictures", pictures_max=1, heat_full=1.0),
        health=HealthBoard(now),
    )
    yield book
    book.close()


class Plc:
    """A PLC that polls, and scans its handshake once a call."""

    def __init__(self, client):
        self.client, self.control, self.taken = client, BUFFER, []

    async def read(self):
        """Return every output by name, bits among them."""
        answer = await self.client.read_holding_registers(100, count=14)
        assert not answer.isError(), answer
        values = {}
        for register in MAP.outputs():
            at = register.address - 100
            values[register.name] = answer.registers[at]
            if register.size == 2:
                values[register.name] = answer.registers[at] << 16 | answer.registers[at + 1]
            for bit in register.bits:
                values[bit.name] = bool(answer.registers[at] >> bit.bit & 1)
        return values

    async def write(self, control):
        self.control = control
        answer = await self.client.write_register(0, control)
        assert not answer.isError(), answer

    async def scan(self):
        shown = await self.read()
        if shown["ResultsValid"] and not self.control & ACK:
            self.taken.append((shown["ResultNo"], shown["PartSeq"]))
            await self.write(self.control | ACK)
        elif not shown["ResultsValid"] and self.control & ACK:
            await self.write(self.control & ~ACK)
        return shown

    async def until(self, holds):
        async with asyncio.timeout(WAIT_S):
            while not holds(shown := await self.read()):  # noqa: ASYNC110  # what is waited for sets no event
                await asyncio.sleep(0.01)
        return shown


class Rig:
    def __init__(self, journal, port):
        self.status = NodeStatus(ready=True, running=True, inspecting=False)
        self.health, self.port = HealthBoard(now), port
        self.server = ModbusResults(
            "127.0.0.1",
            port,
            registers=MAP,
            journal=journal,
            status=lambda: self.status,
            config_checksum=7,
            health=self.health,
            now=now,
            monotonic_s=time.monotonic,
        )

    @contextlib.asynccontextmanager
    async def plc(self):
        task = asyncio.create_task(self.server.run())
        client = AsyncModbusTcpClient("127.0.0.1", port=self.port)
        try:
            async with asyncio.timeout(WAIT_S):
                while not self.health.all():  # noqa: ASYNC110  # what is waited for sets no event
                    await asyncio.sleep(0.01)
            assert await client.connect()
            plc = Plc(client)
            await plc.write(BUFFER)
            yield plc
        finally:
            client.close()
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


@pytest.fixture
def rig(journal, free_port):
    return Rig(journal, free_port())


async def run_cycles(rig, journal, count):
    async with rig.plc() as plc, asyncio.timeout(600):
        seq = 0
        while len(plc.taken) < count:
            waiting = seq - len(plc.taken)
            if seq < count and waiting < 5:
                seq += 1
                journal.append(inspection(seq))
            await plc.scan()
        shown = await plc.read()
    assert [number for number, _seq in plc.taken] == [n % 32_768 for n in range(count)]
    assert [part for _number, part in plc.taken] == list(range(1, count + 1))
    assert (shown["ResultsBufferOverrun"], shown["LostResults"]) == (False, 0)


async def test_results_are_handed_over_in_order_and_once(rig, journal):
    await run_cycles(rig, journal, 500)


@pytest.mark.long
async def test_ten_thousand_handshakes_skip_and_repeat_no_result(rig, journal):
    await run_cycles(rig, journal, 10_000)


async def test_a_result_is_what_the_map_says(rig, journal):
    async with rig.plc() as plc:
        journal.append(inspection(70_000, action=Action.REJECT))
        shown = await plc.until(lambda s: s["ResultsValid"])

    assert (shown["Verdict"], shown["Action"], shown["JobPass"]) == (1, 2, False)
    assert (shown["Tag"], shown["PartSeq"], shown["ProcTimeMs"]) == (70_000 % 256, 70_000, 9)
    assert (shown["ErrorCode"], shown["TriggerReady"]) == (0, True)


async def test_a_fault_is_shown_as_the_gates_default_and_one_of_the_last_run_is_not(rig, journal):
    async with rig.plc() as plc:
        for seq, kind in ((1, FaultKind.INTERRUPTED), (2, FaultKind.LATE)):
            journal.append(
                Fault(
                    id=f"F{seq}",
                    trigger_seq=seq,
                    part_id=f"P{seq}",
                    kind=kind,
                    reason="why",
                    at=now(),
                    late_verdict=Verdict.OK,
                )
            )
        shown = await plc.until(lambda s: s["ResultsValid"])

    assert (shown["PartSeq"], shown["ResultNo"]) == (2, 0)
    assert (shown["Verdict"], shown["Action"], shown["JobPass"]) == (1, 0, False)


async def test_a_plc_that_does_not_take_results_sees_the_overrun_until_it_says_so(rig, journal):
    async with rig.plc() as plc:
        for seq in range(1, 21):
            journal.append(inspection(seq))
        shown = await plc.until(lambda s: s["LostResults"] == 9)
        assert (shown["ResultsBufferOverrun"], shown["BuffersLeft"]) == (True, 0)
        await plc.write(BUFFER | RESET)
        assert not (await plc.read())["ResultsBufferOverrun"]
        while len(plc.taken) < 11:
            await plc.scan()

    assert plc.taken == [(n, n + 1) for n in range(11)]


async def test_a_part_that_has_gone_is_not_shown(rig, journal):
    journal.append(inspection(1, at=now() - timedelta(seconds=10)))
    async with rig.plc() as plc:
        journal.append(inspection(2))
        shown = await plc.until(lambda s: s["ResultsValid"])

    assert (shown["PartSeq"], shown["ResultNo"]) == (2, 0)


async def test_the_heartbeat_counts_only_while_the_line_runs(rig):
    async with rig.plc() as plc:
        first = (await plc.read())["Heartbeat"]
        await plc.until(lambda s: s["Heartbeat"] > first + 1)
        rig.status = NodeStatus(ready=False, running=False, inspecting=False)
        await asyncio.sleep(0.6)
        stands = await plc.read()
        await asyncio.sleep(1.1)
        assert (await plc.read())["Heartbeat"] == stands["Heartbeat"]
        assert (stands["ErrorCode"], stands["Fault"], stands["TriggerReady"]) == (2, True, False)


async def test_a_plc_that_stands_still_is_shown_as_silent(rig):
    async with rig.plc() as plc:
        assert (await plc.read())["PlcSilent"]
        await plc.client.write_register(1, 5)
        assert not (await plc.read())["PlcSilent"]
        await plc.until(lambda s: s["PlcSilent"])


@pytest.mark.parametrize(
    ("address", "values", "code"),
    [
        (100, [1], 2),  # the node's own
        (14, [1, 1], 2),  # runs out of the inputs
        (3, [1], 2),  # half a number
        (4, [1, 0, 1], 2),  # and the other half
        (50, [0], 2),
        (65_535, [0], 2),
        (0, [8], 3),  # a bit that is none
        (0, [0x8000, 1], 3),
    ],
)
async def test_a_write_outside_the_map_is_refused_and_changes_nothing(rig, address, values, code):
    async with rig.plc() as plc:
        before = await plc.read()
        answer = await plc.client.write_registers(address, values)
        after = await plc.read()
        inputs = await plc.client.read_holding_registers(0, count=2)

    assert answer.exception_code == code
    assert inputs.registers == [BUFFER, 0]
    assert {**after, "Heartbeat": 0} == {**before, "Heartbeat": 0}


async def test_other_functions_and_addresses_are_refused(rig):
    async with rig.plc() as plc:
        answers = [
            await plc.client.read_coils(0, count=1),
            await plc.client.write_coil(0, True),
            await plc.client.read_input_registers(100, count=1),
            await plc.client.read_holding_registers(114, count=1),
            await plc.client.read_holding_registers(99, count=5),
            await plc.client.mask_write_register(address=0, and_mask=0, or_mask=1),
        ]

    assert all(answer.isError() for answer in answers), answers


async def test_random_bytes_do_not_end_the_server(rig):
    async with rig.plc() as plc:
        for rubbish in (
            b"\xff" * 300,
            b"\x00" * 20,
            b"GET / HTTP/1.1\r\n\r\n",
            b"\x00\x01" * 5_000,
        ):
            with socket.create_connection(("127.0.0.1", rig.port), timeout=5) as other:
                other.sendall(rubbish)
        await asyncio.sleep(0.05)
        assert (await plc.read())["ErrorCode"] == 0


async def test_a_port_in_use_is_said_and_tried_again(journal, free_port):
    port = free_port()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))
        taken.listen()
        rig = Rig(journal, port)
        task = asyncio.create_task(rig.server.run())
        async with asyncio.timeout(WAIT_S):
            while not rig.health.all():  # noqa: ASYNC110  # what is waited for sets no event
                await asyncio.sleep(0.01)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    assert "set modbus.port" in rig.health.all()[0].words


# -- the map ---------------------------------------------------------------------------------


def test_the_files_for_plc_tools_are_what_the_map_says(repository):
    made = "run `python -m qcnode.lines.registers`"
    for path, text in register_map.rendered(MAP).items():
        assert (repository / path).read_text("utf-8") == text, made
    guide = (repository / register_map.GUIDE).read_text("utf-8")
    assert register_map.in_guide(guide, MAP) == guide, made


def test_the_checksum_changes_with_the_map():
    text = (register_map.files("qcnode.lines") / "registers.yaml").read_text()

    assert register_map.read_map(text).checksum != register_map.read_map(text + "#").checksum


@pytest.mark.parametrize(
    ("before", "after", "why"),
    [
        ("address: 1\n", "address: 0\n", "overlap"),
        ("address: 108", "address: 107", "overlap"),
        ("name: Verdict", "name: Action", "two of the name"),
        ("name: Verdict", "name: verdict", "name, address"),
        ("type: u32", "type: float", "name, address"),
        ("bit: 1,", "bit: 0,", "name, address"),
        ("bit: 1,", "bit: 16,", "name, address"),
    ],
)
def test_a_map_that_cannot_be_is_refused(before, after, why):
    text = (register_map.files("qcnode.lines") / "registers.yaml").read_text()
    with pytest.raises(SettingsError, match=why):
        register_map.read_map(text.replace(before, after, 1))
