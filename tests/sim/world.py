"""One simulated factory and all that goes wrong in it, from one seed.

Nodes, a broker, a provider and a billing server live an hour or more of virtual time
under faults, then the faults stop and everything has to come to rest. The seed decides
which kinds of fault there are, when each falls and what it hits, so a run that fails fails
again in the same way, step by step.
"""

import hashlib
import shutil
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random

from tests.sim.broker import Broker, simulated_broker
from tests.sim.disk import FULL, Disk, IOERR_FSYNC, IOERR_WRITE, OK
from tests.sim.loop import PROCESS, StalledError, VirtualLoop
from tests.sim.node import Node
from tests.sim.oracle import Oracle
from tests.sim.provider import FATES, Provider
from tests.sim.quiet import quiet
from tests.sim.server import Server, simulated_consumer
from tests.sim.threads import simulated_threads

START = datetime(2026, 11, 20, 21, 30, tzinfo=UTC)
STEPS_MAX = 400_000
LENGTHS_S = (*[900.0] * 11, *[3_600.0] * 10, *[14_400.0] * 3, 86_400.0)
"""Midnight comes after two and a half hours."""
REST_S = 7_200.0
"""By then everything must have come to rest after the last fault."""

RATES = {
    # what may happen each time there is an occasion: how often it does
    "duplicate": 0.1,
    "reorder": 0.2,
    "delay": 0.05,
    "lost": 0.1,
    "lost after ack": 0.15,
    "link lost": 0.05,
    "receipt lost": 0.15,
    "server dies before its receipt": 0.05,
    "slow provider": 0.1,
    "same answer again": 0.5,
}
PUT_BACK = ("ledger put back", "home put back", "ledger copied")
EVENTS = (
    "node killed",
    "node loses power",
    "node dies at a write",
    "node stopped",
    "server killed",
    "server loses power",
    "server dies at a write",
    "server restored",
    "broker killed",
    "cut off",
    "clock jumps",
    "node disk full",
    "node disk fails",
    "node disk stalls",
    "server disk full",
    "server disk fails",
    *PUT_BACK,
)
FATE_RATE = 0.3
KINDS = (*RATES, *EVENTS, *FATES)


@dataclass(frozen=True, slots=True)
class Run:
    """What a run came to: the digest of all that happened, and what was found wrong."""

    seed: int
    digest: str
    failure: BaseException | None
    virtual_s: float
    steps: int
    entries: int
    crashes: int
    kinds: tuple[str, ...]


class World:
    """Everything around the code under test, and the seed that moves it."""

    def __init__(self, seed, *, without=(), trace=None):
        self.seed = seed
        self._chances = {}
        self._trace = trace
        self._digest = hashlib.sha256()
        plan = self.chance("plan")
        share = plan.choice((0.15, 0.4, 0.7))
        chosen = [kind for kind in KINDS if plan.random() < share]
        self.kinds = tuple(kind for kind in chosen if kind not in without)
        self.length_s = plan.choice(LENGTHS_S)
        events = plan.randint(4, 24)
        self._pause_s = self.length_s / events
        self.parts_per_s = plan.choice((8, 16, 30)) / self.length_s
        self.calm = False
        self.cut_off = set()
        self.crashes = 0
        self._offsets = {}
        self._countdowns = {}
        self._disks = {}
        self.ledgers = []
        self.disks = []
        self.backups = []
        self.loop = VirtualLoop(steps_max=STEPS_MAX)
        self.oracle = Oracle(self)
        self.broker = Broker(self)
        self.provider = Provider(self)
        self.server = Server(self)
        self.nodes = [Node(self, f"node{number}") for number in range(1, plan.choice((2, 2, 3)))]

    # -- what the parts of the world ask --------------------------------------------------

    def chance(self, name):
        """Return the source of chance for one matter, so that the others do not disturb it."""
        if name not in self._chances:
            self._chances[name] = Random(f"{self.seed}/{name}")
        return self._chances[name]

    def happens(self, kind):
        """Say whether something goes wrong this time."""
        if self.calm or kind not in self.kinds:
            return False
        return self.chance(kind).random() < RATES[kind]

    def fate(self, fates):
        """Choose what becomes of a request; None is an answer as it should be."""
        possible = [fate for fate in fates if fate in self.kinds]
        chance = self.chance("fate")
        if self.calm or not possible or chance.random() > FATE_RATE:
            return None
        return chance.choice(possible)

    def later(self, delay, callback, *args):
        """Let something happen whoever is dead by then."""
        context = self._context
        return self.loop.call_later(delay, callback, *args, context=context)

    def now(self, who):
        """Return what the wall clock of `who` shows."""
        return START + timedelta(seconds=self.loop.time() + self._offsets.get(who, 0.0))

    def now_us(self, who):
        return (self.now(who) - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)

    def note(self, *words):
        """Add to the record of all that happened."""
        line = f"{self.loop.time():.6f} {' '.join(str(word) for word in words)}"
        self._digest.update(line.encode())
        if self._trace is not None:
            self._trace(line)

    def disk_for(self, who, folder):
        """Return a disk for a folder, with what the seed has for it."""
        self.disks.append(Disk(folder, before=self._disk_fault(who)))
        return self.disks[-1]

    def _disk_fault(self, who):
        """Return what a disk asks before each write: what goes wrong with it, if anything."""

        def before(what, _name):
            if who in self._countdowns:
                self._countdowns[who][0] -= 1
                if self._countdowns[who][0] <= 0:
                    power = self._countdowns.pop(who)[1]
                    self._crash(who, power=power)
            fault = self._disks.get(who)
            if fault == "full" and what in ("write", "make") and not self._has_room(who, what):
                return FULL
            if fault == "fails" and what in ("write", "sync"):
                chance = self.chance("disk fails")
                if chance.random() < 0.3:
                    self.note(who, "disk error", what)
                    return IOERR_FSYNC if what == "sync" else IOERR_WRITE
            return OK

        return before

    def _has_room(self, who, what):
        """Say whether a full disk takes a write all the same: where the ballast was."""
        node = next((node for node in self.nodes if node.name == who), None)
        if node is None or what == "make" or "ledger.db.ballast" in node.disk.files.names:
            return False
        node.room -= 1
        return node.room >= 0

    # -- how it goes ------------------------------------------------------------------------

    async def live(self):
        """Run from start to rest."""
        self.server.start()
        for node in self.nodes:
            node.start()
        chance = self.chance("events")
        events = [kind for kind in EVENTS if kind in self.kinds]
        while self.loop.time() < self.length_s:
            await _sleep(chance.expovariate(1 / self._pause_s))
            if chance.random() < 0.2 and self.server.up:
                self.backups.append((dict(self.oracle.promised), self.server.backup()))
            for node in self.nodes:
                if node.up and chance.random() < 0.2:
                    node.backups.append(node.backup())
            if events:
                await self._do(chance.choice(events))
        self._become_calm()
        await self._rest()
        self.oracle.check_end(self.nodes)
        for node in self.nodes:
            await node.stop()
            self._start_node(node)
        await self._rest()
        self.oracle.check_end(self.nodes)

    async def _rest(self):
        """Wait until nothing is left to do, and no longer than it may take."""
        deadline = self.loop.time() + REST_S
        await self._mind()
        while not self._at_rest():
            await _sleep(5.0)
            await self._mind()
            if self.loop.time() > deadline:
                raise StalledError(f"no rest after {REST_S:.0f} s: {self._why_no_rest()}")

    async def _mind(self):
        """Do what the node asks people for: start it again when its ledger has forked."""
        for node in self.nodes:
            if node.up:
                node.process.context.run(node.agent.reachable)  # As the desk and the panel ask.
            if node.up and node.forked():
                self.note("world", "starts again", node.name)
                await node.stop()
                self._start_node(node)

    def _become_calm(self):
        self.note("world", "calm")
        self.calm = True
        self.cut_off.clear()
        self._countdowns.clear()
        self._disks.clear()
        if not self.broker.up:
            self.broker.start()
        if not self.server.up:
            self._start_server()

    def _at_rest(self):
        if not self.server.up or not all(node.up for node in self.nodes):
            return False
        return all(node.asking == 0 for node in self.nodes) and self.oracle.delivered()

    def _why_no_rest(self):
        return "; ".join(
            f"{node.name} up {node.up} asking {node.asking} "
            + ", ".join(f"{one.component}: {one.words}" for one in node.health.all() if not one.ok)
            for node in self.nodes
        )

    # -- what goes wrong -------------------------------------------------------------------

    async def _do(self, kind):
        chance = self.chance("events")
        node = chance.choice(self.nodes)
        for_s = chance.choice((2.0, 30.0, 300.0, 1_800.0))
        power = chance.random() < 0.5
        self.note("world", kind, node.name, for_s)
        if kind in ("node killed", "node loses power"):
            self._crash(node.name, power=kind.endswith("power"))
        elif kind == "node dies at a write":
            self._countdowns[node.name] = [chance.randint(1, 60), power]
        elif kind == "node stopped" and node.up:
            await node.stop()
            self.later(chance.expovariate(1 / 20), self._start_node, node)
        elif kind in ("server killed", "server loses power"):
            self.crash_server(power=kind.endswith("power"))
        elif kind == "server dies at a write":
            self._countdowns["server"] = [chance.randint(1, 60), power]
        elif kind == "server restored" and self.backups:
            self.crash_server(power=False)
            _promised, self.server.image = chance.choice(self.backups)
            self.oracle.server_restored()
        elif kind == "broker killed" and self.broker.up:
            self.broker.kill()
            self.later(chance.expovariate(1 / 60), self._start_broker)
        elif kind == "cut off":
            who = chance.choice((node.name, f"{node.name}/http", "server"))
            self.cut_off.add(who)
            self.later(for_s, self._rejoin, who)
        elif kind == "clock jumps":
            who = chance.choice((node.name, "server"))
            jump = chance.choice((-86_400, -3_600, -1, 1, 3_600, 86_400))
            self._offsets[who] = self._offsets.get(who, 0.0) + jump
        elif kind == "node disk stalls" and node.process is not None:
            node.process.stalled_until = self.loop.time() + min(for_s, 60.0)
        elif kind in PUT_BACK:
            self._put_back(kind, node)
        elif "disk" in kind:
            who = "server" if kind.startswith("server") else node.name
            self._disks[who] = "full" if kind.endswith("full") else "fails"
            self.later(for_s, self._disks.pop, who, None)

    def _put_back(self, kind, node):
        """Lay an older ledger down, or a copy; the node starts from it."""
        if not node.backups or not node.up:
            return
        self._crash(node.name, power=False)
        if kind == "ledger copied":
            node.copy_ledger()
        else:
            older = self.chance("events").choice(node.backups)
            node.lay_down(older, whole=kind == "home put back")

    def _crash(self, who, *, power):
        if who == "server":
            self.crash_server(power=power)
            return
        node = next(node for node in self.nodes if node.name == who)
        if node.process is not None and not node.process.dead:
            self.crashes += 1
            was_up = node.up
            node.die(power=power)
            if was_up:  # One that dies while it starts is started again by whoever did.
                self.later(self.chance("events").expovariate(1 / 20), self._start_node, node)

    def crash_server(self, *, power):
        if self.server.up:
            self.crashes += 1
            self.server.die(power=power)
            self.later(self.chance("events").expovariate(1 / 20), self._start_server)

    def _start_node(self, node):
        if not node.up:
            node.start()

    def _start_server(self):
        if not self.server.up:
            self.server.bury()
            self.server.start()
            self.oracle.server_opened()

    def _start_broker(self):
        if not self.broker.up:
            self.broker.start()
            self.broker.bring_again()

    def _rejoin(self, who):
        self.cut_off.discard(who)
        self.broker.bring_again()

    # -- the run ------------------------------------------------------------------------------

    def run(self):
        """Live once, and say what came of it."""
        failure = None
        with ExitStack() as stack:
            for simulated in (quiet, simulated_threads, simulated_broker, simulated_consumer):
                stack.enter_context(simulated())
            self.folder = Path(tempfile.mkdtemp(prefix="qcsim", dir=_fast_folder()))
            stack.callback(shutil.rmtree, self.folder)
            from contextvars import copy_context

            self._context = copy_context()
            try:
                self.loop.run_until_complete(self.live())
            except (AssertionError, Exception) as error:  # noqa: BLE001  # it is what was found
                failure = error
            finally:
                self.ended_s = self.loop.time()
                self._let_go()
        return Run(
            seed=self.seed,
            digest=self._digest.hexdigest(),
            failure=failure,
            virtual_s=self.ended_s,
            steps=self.loop.steps,
            entries=self.oracle.commits,
            crashes=self.crashes,
            kinds=self.kinds,
        )

    def _let_go(self):
        """Leave nothing behind: no file open, no task half done."""
        self.loop.afterlife = True
        for process, ledger in self.ledgers:
            process.context.run(ledger.close)
        stuck = self.loop.bury()
        for t in stuck: print("STUCK", t)
        self.server.bury()
        for disk in self.disks:
            disk.close()


async def _sleep(seconds):
    import asyncio

    await asyncio.sleep(seconds)


def _fast_folder():
    return "/dev/shm" if Path("/dev/shm").is_dir() else None
