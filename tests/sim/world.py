"""One simulated factory and its billing, from start to rest, all from one seed.

What is real: on the node its ledger with keeper, mark, archives, ballast and budgets, the
meter, the metering transport, the agent with its provider's client, both channels, outbox,
inbox and the pin of the server's key; on the server the intake, the store, its witness and
keys, and what the MQTT consumer does with a message; SQLite itself under both.

What is modelled: time, threads, the disk below SQLite, the wire, paho, the broker and the
provider. The server keeps its books in SQLite, not in PostgreSQL, and a batch over HTTP
goes to its intake without uvicorn and FastAPI. Line, camera, desk and panel are left out.

The seed decides which kinds of fault there are, when each falls and what it hits. One
thread does everything in an order that depends on nothing else, so a run that fails fails
again in the same way: its digest is of every step, every write to a disk and every entry.
"""

import asyncio
import hashlib
import shutil
import tempfile
from contextlib import ExitStack
from contextvars import copy_context
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random

from tests.sim.broker import Broker, simulated_broker
from tests.sim.disk import Disk
from tests.sim.faults import Faults
from tests.sim.loop import StalledError, VirtualLoop
from tests.sim.node import Node
from tests.sim.oracle import Oracle
from tests.sim.provider import Provider
from tests.sim.quiet import quiet
from tests.sim.server import Server, simulated_consumer
from tests.sim.threads import simulated_threads

START = datetime(2026, 11, 20, 21, 30, tzinfo=UTC)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
STEPS_MAX = 400_000
LENGTHS_S = (*[900.0] * 14, *[3_600.0] * 9, *[14_400.0] * 2)
"""Midnight comes after two and a half hours, and every hundredth seed lives a whole day."""
DAY_S = 86_400.0
REST_S = 7_200.0
"""By then everything must have come to rest after the last fault."""
LOOK_S = 5.0
BACKUP_RATE = 0.2


@dataclass(frozen=True, slots=True)
class Run:
    """What a run came to: the digest of all that happened, and what was found wrong."""

    seed: int
    digest: str
    failure: str | None
    virtual_s: float
    steps: int
    entries: int
    crashes: int
    fallen: dict[str, int]
    """How often each kind of fault fell."""


class World:
    """Everything around the code under test, and the seed that moves it.

    `without` leaves kinds of fault out; `trace` is told in words of all that happens.
    """

    def __init__(self, seed, *, without=(), trace=None):
        self.seed = seed
        self.error = None
        self._chances = {}
        self._trace = trace
        self._digest = hashlib.sha256()
        self._offsets = {}
        plan = self.chance("plan")
        self.faults = Faults(self, plan, without=without)
        length_s = plan.choice(LENGTHS_S)
        self.length_s = length_s if seed % 100 else DAY_S
        self._pause_s = self.length_s / plan.randint(4, 24)
        self.parts_per_s = plan.choice((5, 10, 24)) / self.length_s
        self.ledgers = []
        self.disks = []
        self.backups = []
        """Of the server's books, as they were on disk now and then."""
        self.loop = VirtualLoop(steps_max=STEPS_MAX, on_step=self._note_step)
        self.oracle = Oracle(self)
        self.broker = Broker(self)
        self.provider = Provider(self)
        self.server = Server(self)
        self.nodes = [Node(self, f"node{number}") for number in range(1, plan.choice((2, 2, 3)))]

    def run(self):
        """Live once, and say what came of it; `error` is then what was raised, if anything."""
        with ExitStack() as stack:
            for simulated in (quiet, simulated_threads, simulated_broker, simulated_consumer):
                stack.enter_context(simulated())
            self.folder = Path(tempfile.mkdtemp(prefix="qcsim"))
            stack.callback(shutil.rmtree, self.folder)
            self._context = copy_context()
            try:
                self.loop.run_until_complete(self._live())
            except Exception as error:  # noqa: BLE001  # it is what was found
                self.error = error
            ended_s, steps = self.loop.time(), self.loop.steps
            self._let_go()
        return Run(
            seed=self.seed,
            digest=self._digest.hexdigest(),
            failure=None if self.error is None else self._in_words(self.error),
            virtual_s=ended_s,
            steps=steps,
            entries=self.oracle.commits,
            crashes=self.faults.crashes,
            fallen=dict(self.faults.fallen),
        )

    # -- what the parts of the world ask ---------------------------------------------------

    def chance(self, name):
        """Return the source of chance for one matter, so that the others do not disturb it."""
        if name not in self._chances:
            self._chances[name] = Random(f"{self.seed}/{name}")
        return self._chances[name]

    def later(self, delay, callback, *args):
        """Let something happen whoever is dead by then."""
        return self.loop.call_later(delay, callback, *args, context=self._context)

    def now(self, who):
        """Return what the wall clock of `who` shows."""
        return START + timedelta(seconds=self.loop.time() + self._offsets.get(who, 0.0))

    def now_us(self, who):
        return (self.now(who) - EPOCH) // timedelta(microseconds=1)

    def move_clock(self, who, jump_s):
        self._offsets[who] = self._offsets.get(who, 0.0) + jump_s

    def note(self, *words):
        """Add to the record of all that happened."""
        line = f"{self.loop.time():.6f} {' '.join(str(word) for word in words)}"
        line = line.replace(str(self.folder), "")  # It has another name in each run.
        self._digest.update(line.encode())
        if self._trace is not None:
            self._trace(line)

    def disk_for(self, who, folder):
        """Return a disk for a folder, with what the seed has for it."""
        disk = Disk(folder, before=self.faults.before_write(who), log=self._note_write)
        self.disks.append(disk)
        return disk

    def _note_step(self, process):
        who = "world" if process is None else process.name
        self._digest.update(f"{self.loop.time()!r}{who}".encode())

    def _note_write(self, what, name, more):
        # Of what is written the place and the length: SQLite puts chance of its own into it.
        size = (more.offset, more.data and len(more.data)) if what == "write" else more
        self._digest.update(f"{what}{name}{size}".encode())

    def _in_words(self, error):
        return f"{type(error).__name__}: {error}".replace(str(self.folder), "")

    # -- how it goes -----------------------------------------------------------------------

    async def _live(self):
        """Go from start to rest, stop every node, start it again, and come to rest again."""
        self.server.start()
        for node in self.nodes:
            node.start()
        chance = self.chance("events")
        while self.loop.time() < self.length_s:
            await asyncio.sleep(chance.expovariate(1 / self._pause_s))
            if chance.random() < BACKUP_RATE and self.server.up:
                self.backups.append(self.server.backup())
            for node in self.nodes:
                if node.up and chance.random() < BACKUP_RATE:
                    node.backups.append(node.backup())
            await self.faults.strike()
        self.note("world", "calm")
        self.faults.end()
        await self._rest()
        for node in self.nodes:
            await node.stop()
            if not node.up:
                node.start()
        await self._rest()

    async def _rest(self):
        """Wait until nothing is left to do, and no longer than it may take; then check it all."""
        deadline = self.loop.time() + REST_S
        await self._mind()
        while not self._at_rest():
            await asyncio.sleep(LOOK_S)
            await self._mind()
            if self.loop.time() > deadline:
                raise StalledError(f"no rest after {REST_S:.0f} s: {self._why_no_rest()}")
        self.oracle.check_end(self.nodes)

    async def _mind(self):
        """Do what the node asks people for: start it again when its ledger has forked."""
        for node in self.nodes:
            if node.up:
                node.process.context.run(node.agent.reachable)  # As the desk and the panel ask.
            if node.up and node.forked():
                self.note("world", "starts again", node.name)
                await node.stop()
                if not node.up:
                    node.start()

    def _at_rest(self):
        if not self.server.up or not all(node.up for node in self.nodes):
            return False
        if any(node.asking for node in self.nodes):
            return False
        totals = [node.ledger.totals() for node in self.nodes]
        return not any(one.open or one.reserved for one in totals) and self.oracle.delivered()

    def _why_no_rest(self):
        return "; ".join(
            f"{node.name} up {node.up} asking {node.asking} "
            + ", ".join(f"{one.component}: {one.words}" for one in node.health.all() if not one.ok)
            for node in self.nodes
        )

    def _let_go(self):
        """Leave nothing behind: no file open, no task half done."""
        self.loop.afterlife = True
        for process, ledger in self.ledgers:
            process.context.run(ledger.close)
        self.loop.bury()
        self.server.bury()
        for disk in self.disks:
            disk.close()
