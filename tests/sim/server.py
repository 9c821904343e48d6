"""The billing server in the simulation: the real intake, books and MQTT consumer.

Its books are SQLite on a simulated disk. The consumer's own code takes each message and
answers it; only its thread and paho are left out, so a database that is away is asked
again by the simulation's clock.
"""

import asyncio
import contextlib
import functools
import sqlite3
import tempfile
from collections import deque
from pathlib import Path
from types import SimpleNamespace

import httpx2
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

import qcbridge.billing.consumer as consumer_module
from qcbridge.billing.engine import Database, StoreUnavailableError
from qcbridge.billing.intake import Intake
from qcbridge.billing.keys import NodeKeys
from qcbridge.billing.offers import BatchRefusedError
from qcbridge.billing.reports import Reports
from qcbridge.billing.store import BillingStore
from qcbridge.billing.witness import KEY_NAME, Witness
from qcnode.books import batch as batches
from qcnode.books.seals import SigningKey
from qcnode.ids import IdMaker
from tests.sim.disk import restore
from tests.sim.loop import PROCESS, Process
from tests.sim.threads import Instead

BOOKS = "billing.db"


class Server:
    """Its incarnations, one after the other, and what is left of the last one."""

    def __init__(self, world):
        self.world = world
        self.up = False
        self.image = {BOOKS: template()}
        self.lives = 0
        self.process = None
        self.key = SigningKey(KEY_NAME, Ed25519PrivateKey.from_private_bytes(bytes(31) + b"s"))

    def start(self):
        """Boot from what is on disk."""
        world = self.world
        self.lives += 1
        self.folder = world.folder / f"server-{self.lives}"
        restore(self.folder, self.image)
        self.disk = world.disk_for("server", self.folder)
        self.process = Process("server", world.loop, latency=lambda: 0.001)
        self.process.world = world
        self.database = Database(f"sqlite:///{self.folder / BOOKS}")

        def now():
            return world.now("server")

        ids = world.chance("server ids")
        self.store = BillingStore(
            self.database,
            now=now,
            witness=Witness(self.key),
            new_id=IdMaker(lambda: world.now_us("server") // 1000, ids.getrandbits),
        )
        if self.lives == 1:
            register = NodeKeys(self.database, now=now)
            for node in world.nodes:
                register.add("t", node.name, node.key.public, by="simulation", from_us=0)
        self._look = sqlite3.connect(self.folder / BOOKS, isolation_level=None)
        self.reports = Reports(self.database)
        self.intake = Intake(self.store)
        self.consumer = self.process.context.run(self._make_consumer)
        self.waiting = deque()
        self.up = True
        world.note("server", "up")
        world.broker.bring_again()

    def _make_consumer(self):
        consumer = consumer_module.MqttConsumer(
            consumer_module.Broker(host="broker", port=1883), self.intake
        )
        consumer._stopping = _NeverStopping()
        return consumer

    def die(self, *, power):
        """End between two steps or in the middle of a write; what is on disk then is left."""
        if not self.up:
            return
        self.world.note("server", "loses power" if power else "is killed")
        self.image = (
            self.disk.after_power_cut(self.world.chance("disk"))
            if power
            else self.disk.after_kill()
        )
        self.process.dead = True
        self.disk.dead = True
        self.up = False

    def stored(self):
        """Return how far the books go, and with which hash, by node and epoch."""
        rows = self._look.execute("SELECT node, epoch, acked_seq, head_hash FROM ledger")
        return {(node, epoch): (seq, head) for node, epoch, seq, head in rows}

    def backup(self):
        """Return its books as they are on disk now."""
        return self.disk.after_kill()

    def bury(self):
        """Let go of what the last incarnation holds."""
        if self.process is not None:
            self._look.close()
            self.database.close()

    # -- what comes in ---------------------------------------------------------------------

    def deliver(self, message):
        if self.up:
            self.waiting.append(message)
            if len(self.waiting) == 1:
                self._next()

    def _next(self):
        self.process.later(self.world.chance("server").expovariate(200), self._handle)

    def _handle(self):
        """Take the first message; while the database is away, nothing else is taken."""
        delivery = consumer_module._Delivery(self.waiting[0], self.consumer._connection)
        try:
            self.consumer._handle(delivery)
        except _AwayError:
            self.process.later(consumer_module.RETRY_S, self._handle)
            return
        self.waiting.popleft()
        if self.waiting:
            self._next()

    def post(self, batch, node):
        """Take a batch over HTTP; return status and answer."""
        try:
            receipt = self.intake.take(batch, via="http", node=node)
        except StoreUnavailableError:
            return 503, b""
        except BatchRefusedError:
            return 400, b""
        self.world.oracle.receipt_made(receipt, node)
        return 200, batches.encode_receipt(receipt)


class ServerClient:
    """What the consumer needs of paho's client."""

    def __init__(self, *_args, **_kwargs):
        self.process = PROCESS.get()
        self.world = self.process.world

    def reconnect_delay_set(self, *_):
        pass

    def max_queued_messages_set(self, *_):
        pass

    def publish(self, topic, payload, qos, properties):
        assert qos == 1
        world = self.world
        receipt = batches.decode_receipt(payload)
        node = topic.split("/")[-3]
        if self.process.dead:
            return SimpleNamespace(rc=0)
        world.oracle.receipt_made(receipt, node)
        if world.faults.happens("server dies before its receipt"):
            world.faults.crash_server(power=world.chance("server").random() < 0.5)
        elif world.broker.reachable(self.process) and not world.faults.happens("receipt lost"):
            world.later(0.002, world.broker.publish, topic, payload, properties)
        return SimpleNamespace(rc=0)

    def ack(self, mid, qos):
        assert qos == 1
        if not self.process.dead:
            self.world.broker.acknowledge(mid)


class HttpWay(httpx2.AsyncBaseTransport):
    """The way of one node's batches over HTTP."""

    def __init__(self, world, node):
        self._world = world
        self._node = node

    async def handle_async_request(self, request):
        world, process = self._world, PROCESS.get()
        batch = await request.aread()
        await asyncio.sleep(world.chance("http").uniform(0.005, 0.2))
        if process.dead:
            await asyncio.get_running_loop().create_future()
        if not world.server.up or f"{self._node}/http" in world.faults.cut_off:
            raise httpx2.ConnectError("nobody listens", request=request)
        status, answer = world.server.post(batch, self._node)
        await asyncio.sleep(world.chance("http").uniform(0.005, 0.2))
        if not world.server.up or world.faults.happens("receipt lost"):
            raise httpx2.ReadError("cut off", request=request)
        return httpx2.Response(status, content=answer, request=request)


class _AwayError(Exception):
    """The consumer would wait for its database."""


class _NeverStopping:
    def is_set(self):
        return False

    def wait(self, _seconds):
        raise _AwayError


@functools.cache
def template():
    """Return the file of a billing database without entries, made once."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / BOOKS
        database = Database(f"sqlite:///{path}")
        database.migrate()
        database.close()
        return path.read_bytes()


@contextlib.contextmanager
def simulated_consumer():
    """Let consumers made here speak to the simulation's broker."""
    before = consumer_module.mqtt
    consumer_module.mqtt = Instead(before, Client=ServerClient)
    try:
        yield
    finally:
        consumer_module.mqtt = before
