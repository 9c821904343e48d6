"""A node in the simulation: the real ledger, meter, transport, agent, channels and outbox.

Only the line, the camera and the desk are left out: escalations come by themselves, in
bursts, and what becomes of each is of no interest here but for its money.
"""

import asyncio
import hashlib
from dataclasses import dataclass
from datetime import timedelta

import httpx2
import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from qcbridge.agent import Agent
from qcbridge.meter import Meter
from qcbridge.prices import PriceBook
from qcbridge.providers.openai_chat import OpenAIChatProvider
from qcbridge.transport import MeteringTransport
from qcnode.books import batch
from qcnode.books.archive import ArchivedLedger, archived_ledgers
from qcnode.books.budgets import Budget
from qcnode.books.inbox import Inbox
from qcnode.books.ledger import SqliteLedger
from qcnode.books.mark import FileId
from qcnode.books.outbox import Outbox
from qcnode.books.pin import ServerKey
from qcnode.books.seals import SigningKey
from qcnode.domain import Escalation
from qcnode.errors import QcError
from qcnode.health import HealthBoard
from qcnode.ids import IdMaker
from qcnode.lines.fallback import FallbackChannel
from qcnode.lines.http import HttpChannel
from qcnode.lines.mqtt import Broker, MqttChannel
from qcnode.lines.topics import NodeTopics
from qcnode.picture import encode_png
from tests.sim.disk import restore
from tests.sim.loop import Process
from tests.sim.oracle import Books
from tests.sim.server import HttpWay

PICTURE = encode_png(np.full((32, 32, 3), 90, np.uint8))
PRICES = PriceBook.load()
ANSWER_TIMEOUT_S = 15.0
REVIEWS_MAX = 6
START_AGAIN_S = 20.0
BALLAST_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Backup:
    """A node's home as it was on disk, and which books were in it, with how many entries."""

    books: Books
    entries: int
    files: dict[str, bytes]


class Node:
    """Its incarnations, one after the other, and what is left of the last one."""

    def __init__(self, world, name):
        self.world = world
        self.name = name
        self.image = {}
        self.lives = 0
        self.up = False
        self.asking = 0
        self.parts = 0
        self.process = None
        self.ledger = None
        self.archives = []
        self.file = 1
        """What the file system calls the ledger's file."""
        self.may_begin_anew = False
        self.room = 0
        """How many writes fit where the ballast was, on a disk that is full."""
        self.backups = []
        chance = world.chance(f"{name} budgets")
        self.budgets = (
            Budget(name="money", limit=chance.choice((6, 20, 200)) * 10**9, currency="USD"),
            Budget(name="calls", limit=chance.choice((10, 50, 200)), unit="calls", window="hour"),
        )
        secret = hashlib.sha256(f"{world.seed}/{name}".encode()).digest()
        self.key = SigningKey(f"t/{name}", Ed25519PrivateKey.from_private_bytes(secret))

    # -- life and death ---------------------------------------------------------------------

    def start(self):
        """Boot from what is on disk, and again later if that does not work."""
        world = self.world
        self.lives += 1
        self.folder = world.folder / f"{self.name}-{self.lives}"
        restore(self.folder, self.image)
        self.disk = world.disk_for(self.name, self.folder)
        self.process = process = _NodeProcess(self)
        try:
            process.context.run(self._build)
        except QcError as error:
            world.note(self.name, "does not start", type(error).__name__)
            if not process.dead:
                self.image = self.disk.after_kill()
            process.dead = self.disk.dead = True
            world.later(START_AGAIN_S, self.start)
            return
        if process.dead:
            world.later(START_AGAIN_S, self.start)
            return
        self.up = True
        world.note(self.name, "up")
        world.oracle.node_opened(self)
        for outbox in (self.outbox, *self.outboxes):
            process.start(outbox.run())
        process.start(self._work())

    def die(self, *, power):
        """End between two steps or in the middle of a write; what is on disk then is left."""
        if self.process is None or self.process.dead:
            return
        self.world.note(self.name, "loses power" if power else "is killed")
        self.image = (
            self.disk.after_power_cut(self.world.chance("disk"))
            if power
            else self.disk.after_kill()
        )
        self._gone()

    async def stop(self):
        """End as by SIGTERM: what is under way is given up, the books are closed."""
        process = self.process
        self.up = False
        self.asking = REVIEWS_MAX
        for task in process.tasks:
            task.cancel()
        await asyncio.wait(process.tasks)
        if not process.dead:
            await process.start(self.channel.close())
        if not process.dead:
            process.context.run(self._close_books)
        if not process.dead:
            self.world.note(self.name, "has stopped")
            self.image = self.disk.after_kill()
            self._gone()

    def backup(self):
        """Return everything as it is on disk now, and which books that is up to which entry."""
        return Backup(
            books=self.world.oracle.books[self.name][-1],
            entries=self.ledger.last_seq(),
            files=self.disk.after_kill(),
        )

    def copy_ledger(self):
        """Put a copy of the ledger in its place, as after a move to another disk."""
        self.file += 1
        self.may_begin_anew = True

    def lay_down(self, backup, *, whole):
        """Put an older ledger in place of the one there is; the whole home, or it alone.

        One of an epoch that is over is not, and False is returned.
        """
        files = backup.files
        if backup.books.epoch != self.ledger.epoch:
            return False
        if not whole:
            aside = ("ledger.db.mark", "ledger.db.ballast", "billing.pub")
            files = {name: content for name, content in files.items() if name not in aside}
            files |= {name: self.image[name] for name in aside if name in self.image}
        self.image = files
        self.may_begin_anew = True
        self.world.oracle.node_put_back(self, backup)
        return True

    def _gone(self):
        self.process.dead = True
        self.disk.dead = True
        self.up = False
        self.asking = 0

    # -- what it is made of -----------------------------------------------------------------

    def _build(self):
        world, process = self.world, self.process
        chance = world.chance(f"{self.name} ids")
        self.ledger = None
        self.archives = []

        def now():
            return world.now(self.name)

        def monotonic_s():
            return world.loop.time()

        new_id = IdMaker(lambda: world.now_us(self.name) // 1000, chance.getrandbits)
        self.health = health = HealthBoard(now)
        self.ledger = ledger = SqliteLedger(
            self.folder / "ledger.db",
            now_us=lambda: world.now_us(self.name),
            new_epoch=lambda: f"{chance.getrandbits(128):032x}",
            budgets=self.budgets,
            key=self.key,
            identify=lambda _path: FileId(inode=self.file, generation=self.file),
            ballast_bytes=BALLAST_BYTES,
            health=health,
        )
        world.ledgers.append((process, ledger))
        meter = Meter(
            ledger=ledger,
            prices=PRICES,
            health=health,
            now=now,
            answer_timeout_s=ANSWER_TIMEOUT_S,
        )
        transport = MeteringTransport(
            world.provider.transport(), meter=meter, monotonic_s=monotonic_s
        )
        self.agent = Agent(
            provider=OpenAIChatProvider(
                name="scripted",
                model="scripted-provider",
                base_url="http://127.0.0.1/v1",
                api_key=None,
                transport=transport,
                timeout_s=ANSWER_TIMEOUT_S,
                output_tokens_max=300,
            ),
            product="a cap",
            defect_classes=("scratch",),
            image_side_max_px=448,
            attempts_max=2,
            review_timeout_s=40.0,
            meter=meter,
            health=health,
            new_id=new_id,
            monotonic_s=monotonic_s,
        )
        self.channel = FallbackChannel(
            MqttChannel(
                Broker(host="broker", port=1883),
                NodeTopics(site="s", area="a", line="l", node=self.name),
                read_receipt=batch.decode_receipt,
                new_id=new_id,
            ),
            HttpChannel(
                httpx2.AsyncClient(transport=HttpWay(world, self.name), trust_env=False),
                "http://127.0.0.1",
                token=None,
                read_receipt=batch.decode_receipt,
            ),
            health=health,
            monotonic_s=monotonic_s,
        )
        server_key = ServerKey(self.folder / "billing.pub")
        self.outbox = self._outbox(
            ledger, health, server_key, inbox=Inbox(ledger), on_fork=ledger.forked
        )
        for path in archived_ledgers(self.folder):
            archive = ArchivedLedger(path, now_us=lambda: world.now_us(self.name), key=self.key)
            world.ledgers.append((process, archive))
            self.archives.append(archive)
        self.outboxes = [
            self._outbox(archive, health, server_key, component=f"billing of {archive.path.name}")
            for archive in self.archives
        ]

    def _outbox(self, ledger, health, server_key, **more):
        return Outbox(
            ledger,
            self.channel,
            tenant="t",
            node=self.name,
            health=health,
            now=lambda: self.world.now(self.name),
            jitter=self.world.chance(f"{self.name} jitter").random,
            node_key=self.key.public,
            server_key=server_key,
            **more,
        )

    def _close_books(self):
        for archive in self.archives:
            archive.close()
        self.ledger.close()

    def forked(self):
        """Say whether the node waits for a person to start it anew."""
        return any(
            state.component == "epoch" and not state.ok and "restart" in state.words
            for state in self.health.all()
        )

    # -- what it does ------------------------------------------------------------------------

    async def _work(self):
        """Let parts come that somebody has to be asked about, until the world is calm."""
        chance = self.world.chance(f"{self.name} parts")
        while not self.world.faults.calm:
            await asyncio.sleep(chance.expovariate(self.world.parts_per_s))
            for _ in range(chance.choice((1, 1, 1, 2, 5))):
                if self.asking < REVIEWS_MAX and not self.world.faults.calm:
                    self.asking += 1
                    self.parts += 1
                    self.process.start(self._ask(f"P-{self.name}-{self.parts:05d}"))

    async def _ask(self, part):
        process, now = self.process, self.world.now(self.name)
        escalation = Escalation(
            id=f"e-{part}",
            inspection_id=f"i-{part}",
            part_id=part,
            reason="between the limits",
            score=0.5,
            opened_at=now,
            expires_at=now + timedelta(hours=1),
        )
        try:
            if self.agent.reachable():
                await self.agent.review(escalation, PICTURE, None)
        except QcError as error:
            self.world.note(self.name, "no ruling", type(error).__name__, error)
        finally:
            if not process.dead:
                self.asking -= 1


class _NodeProcess(Process):
    """The node's process, with the thread that writes its ledger."""

    def __init__(self, node):
        world = node.world
        super().__init__(
            node.name, world.loop, latency=lambda: world.chance("threads").expovariate(500)
        )
        self.node = node
        self.world = world
        self.broker = world.broker
        self.writers = []
        self.tasks = []
        self.stalled_until = 0.0

    def start(self, coro):
        task = super().start(coro)
        self.tasks = [task, *(one for one in self.tasks if not one.done())]
        return task

    def disk_latency(self):
        wait = self.world.chance("disk latency").expovariate(200)
        return max(wait, self.stalled_until - self.loop.time())

    def stalled(self):
        return self.stalled_until > self.loop.time()

    def wrote(self):
        """The thread has committed, or tried to."""
        if not self.dead and not self.loop.afterlife and self.node.ledger is not None:
            self.world.oracle.node_wrote(self.node)
