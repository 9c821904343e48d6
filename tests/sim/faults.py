"""What goes wrong in a simulated world: which kinds there are, when each falls, and how.

A kind either is asked about each time there is an occasion for it (`RATES`, and the fates
of a request at the provider), or falls by itself somewhere in the run (`EVENTS`). The seed
chooses the kinds of a run first, so that some runs have few and each falls often.
"""

from collections import Counter
from dataclasses import dataclass

from tests.sim.disk import FULL, IOERR_FSYNC, IOERR_WRITE, OK
from tests.sim.node import BALLAST_BYTES, Node
from tests.sim.provider import FATES

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
FATE_RATE = 0.3
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
KINDS = (*RATES, *EVENTS, *FATES)
SHARES = (0.15, 0.4, 0.7)
"""How many of the kinds a run has."""

LASTS_S = (2.0, 30.0, 300.0, 1_800.0)
STALL_MAX_S = 60.0
SERVER_DISK_MAX_S = 30.0
"""The server asks its database again each second, and each time costs."""
JUMPS_S = (-86_400, -3_600, -1, 1, 3_600, 86_400)
START_AGAIN_S = 20.0
BROKER_AGAIN_S = 60.0
WRITES_MAX = 60
DISK_ERROR_RATE = 0.3
PAGE = 4_096


@dataclass(frozen=True, slots=True)
class Blow:
    """One event: what it is, whom it may hit, how long it lasts, whether the power goes."""

    kind: str
    node: Node
    for_s: float
    power: bool


class Faults:
    """All that goes wrong in one world, until it is calm; `fallen` counts it."""

    def __init__(self, world, plan, *, without=()):
        share = plan.choice(SHARES)
        chosen = [kind for kind in KINDS if plan.random() < share]
        self.kinds = tuple(kind for kind in chosen if kind not in without)
        self.fallen = Counter()
        self.calm = False
        self.crashes = 0
        self.cut_off = set()
        self._world = world
        self._countdowns = {}
        """By machine: how many writes it has left to live, and whether the power goes then."""
        self._bad_disks = {}

    def happens(self, kind):
        """Say whether something goes wrong this time."""
        if self.calm or kind not in self.kinds:
            return False
        falls = self._world.chance(kind).random() < RATES[kind]
        self.fallen[kind] += falls
        return falls

    def fate(self):
        """Choose what becomes of a request; None is an answer as it should be."""
        possible = [fate for fate in FATES if fate in self.kinds]
        chance = self._world.chance("fate")
        if self.calm or not possible or chance.random() > FATE_RATE:
            return None
        fate = chance.choice(possible)
        self.fallen[fate] += 1
        return fate

    async def strike(self):
        """Let one event of those that this run has fall on somebody."""
        world, chance = self._world, self._world.chance("events")
        possible = [kind for kind in EVENTS if kind in self.kinds]
        if not possible:
            return
        blow = Blow(
            kind=chance.choice(possible),
            node=chance.choice(world.nodes),
            for_s=chance.choice(LASTS_S),
            power=chance.random() < 0.5,
        )
        world.note("world", blow.kind, blow.node.name, blow.for_s)
        if await _WAYS[blow.kind](self, blow) is not False:
            self.fallen[blow.kind] += 1

    def end(self):
        """From here on nothing goes wrong any more, and what is broken is mended."""
        world = self._world
        self.calm = True
        self.cut_off.clear()
        self._countdowns.clear()
        self._bad_disks.clear()
        if not world.broker.up:
            world.broker.start()
        if not world.server.up:
            self._start_server()

    def before_write(self, who):
        """Return what a disk asks before each write: what goes wrong with it, if anything."""

        def before(what, _name):
            if who in self._countdowns:
                self._countdowns[who][0] -= 1
                if self._countdowns[who][0] <= 0:
                    self._crash(who, power=self._countdowns.pop(who)[1])
            fault = self._bad_disks.get(who)
            if fault == "full" and what in ("write", "make") and not self._has_room(who, what):
                return FULL
            if (
                fault == "fails"
                and what in ("write", "sync")
                and self._world.chance("disk fails").random() < DISK_ERROR_RATE
            ):
                self._world.note(who, "disk error", what)
                return IOERR_FSYNC if what == "sync" else IOERR_WRITE
            return OK

        return before

    def crash_server(self, *, power):
        """End the server where it stands; it is started again some time later."""
        world = self._world
        if world.server.up:
            self.crashes += 1
            world.server.die(power=power)
            again_s = world.chance("events").expovariate(1 / START_AGAIN_S)
            world.later(again_s, self._start_server)

    # -- each kind of event; False when there was nothing to hit ----------------------------

    async def _end_node(self, blow):
        return self._crash(blow.node.name, power=blow.kind == "node loses power")

    async def _let_node_die(self, blow):
        writes = self._world.chance("events").randint(1, WRITES_MAX)
        self._countdowns[blow.node.name] = [writes, blow.power]

    async def _stop_node(self, blow):
        if not blow.node.up:
            return False
        await blow.node.stop()
        again_s = self._world.chance("events").expovariate(1 / START_AGAIN_S)
        self._world.later(again_s, _start_node, blow.node)
        return True

    async def _end_server(self, blow):
        self.crash_server(power=blow.kind == "server loses power")

    async def _let_server_die(self, blow):
        writes = self._world.chance("events").randint(1, WRITES_MAX)
        self._countdowns["server"] = [writes, blow.power]

    async def _restore_server(self, _blow):
        world = self._world
        if not world.backups:
            return False
        self.crash_server(power=False)
        world.server.image = world.chance("events").choice(world.backups)
        world.oracle.server_restored()
        return True

    async def _end_broker(self, _blow):
        world = self._world
        if not world.broker.up:
            return False
        world.broker.kill()
        again_s = world.chance("events").expovariate(1 / BROKER_AGAIN_S)
        world.later(again_s, self._start_broker)
        return True

    async def _cut_off(self, blow):
        names = (blow.node.name, f"{blow.node.name}/http", "server")
        who = self._world.chance("events").choice(names)
        self.cut_off.add(who)
        self._world.later(blow.for_s, self._rejoin, who)

    async def _move_clock(self, blow):
        chance = self._world.chance("events")
        who = chance.choice((blow.node.name, "server"))
        self._world.move_clock(who, chance.choice(JUMPS_S))

    async def _stall_disk(self, blow):
        if blow.node.process is None:
            return False
        blow.node.process.stalled_until = self._world.loop.time() + min(blow.for_s, STALL_MAX_S)
        return True

    async def _break_disk(self, blow):
        who, for_s = blow.node.name, blow.for_s
        if blow.kind.startswith("server"):
            who, for_s = "server", min(blow.for_s, SERVER_DISK_MAX_S)
        self._bad_disks[who] = "full" if blow.kind.endswith("full") else "fails"
        blow.node.room = BALLAST_BYTES // PAGE
        self._world.later(for_s, self._bad_disks.pop, who, None)

    async def _put_back(self, blow):
        """Lay an older ledger down, or a copy; the node starts from it."""
        node = blow.node
        if not node.backups or not node.up:
            return False
        self._crash(node.name, power=False)
        if blow.kind == "ledger copied":
            node.copy_ledger()
            return True
        older = self._world.chance("events").choice(node.backups)
        return node.lay_down(older, whole=blow.kind == "home put back")

    # -- what follows from them ------------------------------------------------------------

    def _crash(self, who, *, power):
        """End a machine; say whether it was running."""
        world = self._world
        if who == "server":
            self.crash_server(power=power)
            return True
        node = next(node for node in world.nodes if node.name == who)
        if node.process is None or node.process.dead:
            return False
        self.crashes += 1
        was_up = node.up
        node.die(power=power)
        if was_up:  # One that dies while it starts is started again by whoever did.
            again_s = world.chance("events").expovariate(1 / START_AGAIN_S)
            world.later(again_s, _start_node, node)
        return True

    def _has_room(self, who, what):
        """Say whether a full disk takes a write all the same: where the ballast was."""
        node = next((node for node in self._world.nodes if node.name == who), None)
        if node is None or what == "make" or "ledger.db.ballast" in node.disk.files.names:
            return False
        node.room -= 1
        return node.room >= 0

    def _start_server(self):
        world = self._world
        if not world.server.up:
            world.server.bury()
            world.server.start()
            world.oracle.server_opened()

    def _start_broker(self):
        broker = self._world.broker
        if not broker.up:
            broker.start()
            broker.bring_again()

    def _rejoin(self, who):
        self.cut_off.discard(who)
        self._world.broker.bring_again()


def _start_node(node):
    if not node.up:
        node.start()


_WAYS = {
    "node killed": Faults._end_node,
    "node loses power": Faults._end_node,
    "node dies at a write": Faults._let_node_die,
    "node stopped": Faults._stop_node,
    "server killed": Faults._end_server,
    "server loses power": Faults._end_server,
    "server dies at a write": Faults._let_server_die,
    "server restored": Faults._restore_server,
    "broker killed": Faults._end_broker,
    "cut off": Faults._cut_off,
    "clock jumps": Faults._move_clock,
    "node disk full": Faults._break_disk,
    "node disk fails": Faults._break_disk,
    "node disk stalls": Faults._stall_disk,
    "server disk full": Faults._break_disk,
    "server disk fails": Faults._break_disk,
    **dict.fromkeys(PUT_BACK, Faults._put_back),
}
