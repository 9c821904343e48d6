"""The edge node on a real broker, watched by a checker of the specification's assertions."""

import asyncio
import contextlib
import time
from datetime import UTC, datetime, timedelta

import pytest
from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from qcnode.books.journal import Journal
from qcnode.books.pictures import PictureStore
from qcnode.domain import Action, Inspection, Verdict
from qcnode.health import HealthBoard
from qcnode.lines import tags
from qcnode.lines.edge import REBIRTH, EdgeNode, Tag
from qcnode.lines.mqtt import Broker
from qcnode.lines.sparkplug import DataType, Metric, decode, encode
from qcnode.lines.sparkplug_node import BdSeqFile, SparkplugNode
from tests.lines.conformance import Checker
from tests.lines.tap import Tap

pytestmark = pytest.mark.mosquitto
WAIT_S = 20
NCMD = "spBv1.0/plant/NCMD/node1"
STATE = "spBv1.0/STATE/scada"


def now():
    return datetime.now(UTC)


def now_ms():
    return time.time_ns() // 1_000_000


async def until(condition):
    """Wait until a condition holds."""
    async with asyncio.timeout(WAIT_S):
        while not condition():  # noqa: ASYNC110  # what is waited for sets no event
            await asyncio.sleep(0.02)


def inspection(seq, *, at=None):
    return Inspection(
        id=f"I{seq}",
        trigger_seq=seq,
        part_id=f"P{seq}",
        verdict=Verdict.OK if seq % 2 else Verdict.NOT_OK,
        action=Action.ACCEPT if seq % 2 else Action.REJECT,
        score=seq / 8,
        model="m@1",
        captured_at=at or now(),
        latency_us=9_000 + seq,
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


class Rig:
    """An edge node behind a tap, and a host beside it."""

    def __init__(self, broker_port, journal, home, *, host=None):
        self.broker_port, self.journal = broker_port, journal
        self.checker = Checker("plant", "node1", host=host)
        self.edge = EdgeNode(
            group="plant",
            node="node1",
            tags=[*tags.NODE_TAGS, Tag(name="Set", type=DataType.INT32, writable=True)],
            devices={tags.CAMERA: tags.CAMERA_TAGS},
            host=host,
        )
        self.home, self.ready, self.writes = home, True, []
        self.sees = True
        self.health = HealthBoard(now)

    def node(self, port):
        async def wrote(write):
            self.writes.append(write)

        return SparkplugNode(
            Broker(host="127.0.0.1", port=port, client_id="node1-spb"),
            self.edge,
            bd_seq=BdSeqFile(self.home / "bdseq"),
            journal=self.journal,
            values=lambda: {
                None: {"Status/Ready": self.ready},
                tags.CAMERA: tags.counters(self.journal.counts()),
            },
            wrote=wrote,
            health=self.health,
            now_ms=now_ms,
            jitter=lambda: 0.0,
            here=lambda: {tags.CAMERA: self.sees},
        )


@contextlib.asynccontextmanager
async def running(node):
    task = asyncio.create_task(node.run())
    try:
        yield task
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


class Host:
    """A Sparkplug host on the same broker."""

    def __init__(self, port):
        self.heard = []
        self._client = Client(
            CallbackAPIVersion.VERSION2, client_id="scada", protocol=MQTTProtocolVersion.MQTTv5
        )
        self._client.on_connect = lambda client, *_: client.subscribe("spBv1.0/#", 1)
        self._client.on_message = lambda _c, _u, message: self.heard.append(message)
        self._client.connect("127.0.0.1", port)
        self._client.loop_start()

    def close(self):
        self._client.disconnect()
        self._client.loop_stop()

    def kinds(self):
        return [
            message.topic.split("/")[2] for message in self.heard if "STATE" not in message.topic
        ]

    def data(self):
        """Return the part ids that were told, and whether as historical."""
        names, told = {}, []
        for message in self.heard:
            for metric in decode(message.payload).good if "STATE" not in message.topic else ():
                if metric.name and metric.alias is not None:
                    names[metric.alias] = metric.name
                if "DDATA" in message.topic and names.get(metric.alias) == "Verdict/Part Id":
                    told.append((metric.value, metric.historical))
        return told

    def send(self, topic, payload, *, retain=False):
        self._client.publish(topic, payload, 1 if "STATE" in topic else 0, retain)

    def state(self, *, online):
        said = f'{{"online": {str(online).lower()}, "timestamp": {now_ms()}}}'
        self.send(STATE, said, retain=True)


@contextlib.contextmanager
def host_on(port):
    host = Host(port)
    try:
        yield host
    finally:
        host.close()


REBIRTH_NOW = encode(
    [Metric(name=REBIRTH, at_ms=1, type=DataType.BOOLEAN, value=True)], at_ms=1, seq=None
)


async def test_a_camera_that_is_lost_dies_once_and_is_born_again(mosquitto, journal, tmp_path):
    rig = Rig(mosquitto.port, journal, tmp_path)
    with host_on(mosquitto.port) as host:
        async with Tap(mosquitto.port, rig.checker) as tap, running(rig.node(tap.port)):
            await until(lambda: "DBIRTH" in host.kinds())
            rig.sees = False
            await until(lambda: "DDEATH" in host.kinds())
            rig.sees = True
            await until(lambda: host.kinds().count("DBIRTH") == 2)

    assert host.kinds().count("DDEATH") == 1
    assert rig.checker.broken == []


async def test_a_node_on_a_real_broker_keeps_every_assertion_checked(mosquitto, journal, tmp_path):
    rig = Rig(mosquitto.port, journal, tmp_path)
    with host_on(mosquitto.port) as host:
        async with Tap(mosquitto.port, rig.checker) as tap:
            async with running(rig.node(tap.port)):
                await until(lambda: "DBIRTH" in host.kinds())
                for seq in range(1, 6):
                    journal.append(inspection(seq))
                await until(lambda: len(host.data()) == 5)
                host.send(NCMD, REBIRTH_NOW)
                await until(lambda: host.kinds().count("NBIRTH") == 2)
                tap.cut()  # The broker publishes the will.
                await until(lambda: host.kinds().count("NBIRTH") == 3)
                rig.ready = False
                await until(lambda: host.kinds()[-1] == "NDATA")
            await until(lambda: host.kinds().count("NDEATH") >= 2)
        births = [decode(m.payload) for m in host.heard if "NBIRTH" in m.topic]

    assert rig.checker.broken == []
    assert len(rig.checker.checked) >= 50, sorted(rig.checker.checked)
    numbers = [next(m.value for m in b.good if m.name == "bdSeq") for b in births]
    assert numbers == [0, 0, 1]  # a rebirth keeps the session's number
    assert [part for part, _ in host.data()] == ["P1", "P2", "P3", "P4", "P5"]


async def test_parts_from_before_the_birth_are_told_once_and_as_historical(
    mosquitto, journal, tmp_path
):
    rig = Rig(mosquitto.port, journal, tmp_path)
    long_ago = now() - timedelta(days=2)
    journal.append(inspection(1, at=long_ago))
    for seq in (2, 3):
        journal.append(inspection(seq, at=now() - timedelta(minutes=5)))
    with host_on(mosquitto.port) as host:
        async with running(rig.node(mosquitto.port)):
            await until(lambda: len(host.data()) == 2)
            journal.append(inspection(4))
            await until(lambda: len(host.data()) == 3)
            await until(lambda: journal.cursor("sparkplug") >= 4)
        async with running(rig.node(mosquitto.port)):
            await until(lambda: host.kinds().count("DBIRTH") == 2)
            journal.append(inspection(5))
            await until(lambda: len(host.data()) == 4)

    assert host.data() == [("P2", True), ("P3", True), ("P4", False), ("P5", False)]


async def test_a_node_waits_for_its_primary_host_and_leaves_with_it(mosquitto, journal, tmp_path):
    rig = Rig(mosquitto.port, journal, tmp_path, host="scada")
    with host_on(mosquitto.port) as host:
        host.state(online=False)
        async with Tap(mosquitto.port, rig.checker) as tap, running(rig.node(tap.port)):
            await until(lambda: rig.checker.checked.total() > 0)
            host.state(online=True)
            await until(lambda: "DBIRTH" in host.kinds())
            host.state(online=False)
            await until(lambda: "NDEATH" in host.kinds())
            host.state(online=True)
            await until(lambda: host.kinds().count("NBIRTH") == 2)

    assert host.kinds()[:2] == ["NBIRTH", "DBIRTH"]
    assert rig.checker.broken == []


async def test_what_a_host_writes_comes_to_the_command_path_and_rubbish_does_not(
    mosquitto, journal, tmp_path
):
    rig = Rig(mosquitto.port, journal, tmp_path)
    with host_on(mosquitto.port) as host:
        async with running(rig.node(mosquitto.port)) as task:
            await until(lambda: "DBIRTH" in host.kinds())
            for rubbish in (b"", b"\xff" * 50, b"\x12\x02\x0a\xff", b"\x00" * 3_000_000):
                host.send(NCMD, rubbish)
            said = Metric(name="Set", at_ms=1, type=DataType.INT32, value=-7)
            host.send(NCMD, encode([said], at_ms=1, seq=None), retain=True)
            said = Metric(name="Set", at_ms=1, type=DataType.INT32, value=9)
            host.send(NCMD, encode([said], at_ms=1, seq=None))
            await until(lambda: rig.writes)
            assert not task.done()

    assert [(write.name, write.value) for write in rig.writes] == [("Set", 9)]


async def test_a_broker_that_is_killed_is_found_again_with_the_next_number(
    mosquitto, journal, tmp_path
):
    rig = Rig(mosquitto.port, journal, tmp_path)
    async with running(rig.node(mosquitto.port)):
        await until(lambda: rig.edge.ready)
        mosquitto.kill()
        await until(lambda: not rig.edge.ready)
        journal.append(inspection(1))
        mosquitto.start(empty=True)
        with host_on(mosquitto.port) as host:
            await until(lambda: "DBIRTH" in host.kinds() or rig.edge.ready)
            host.send(NCMD, REBIRTH_NOW)
            await until(lambda: "NBIRTH" in host.kinds())
            birth = next(decode(m.payload) for m in host.heard if "NBIRTH" in m.topic)

    assert next(m.value for m in birth.good if m.name == "bdSeq") == int(
        (tmp_path / "bdseq").read_text()
    )
    assert int((tmp_path / "bdseq").read_text()) >= 1


@pytest.mark.parametrize("damage", ["", "x", "300"])
def test_a_damaged_number_file_begins_anew(tmp_path, damage):
    path = tmp_path / "bdseq"
    path.write_text(damage)

    assert [BdSeqFile(path).next() for _ in range(2)] in ([0, 1], [45, 46])


def test_the_number_goes_round(tmp_path):
    (tmp_path / "bdseq").write_text("254")

    assert [BdSeqFile(tmp_path / "bdseq").next() for _ in range(3)] == [255, 0, 1]


# -- a node that does it wrong -------------------------------------------------------------

WRONG = {
    "the will is sent at QoS 0": "message-flow-edge-node-birth-publish-will-message-qos",
    "the session is kept": "principles-persistence-clean-session-50",
    "commands are heard at QoS 0": "message-flow-edge-node-ncmd-subscribe",
    "data comes before the birth": "principles-birth-certificates-order",
    "the birth begins with seq 1": "topics-nbirth-seq-num",
    "the birth is retained": "topics-nbirth-mqtt",
    "Rebirth has an alias": "operational-behavior-data-commands-rebirth-name-aliases",
    "bdSeq is not the will's": "topics-nbirth-bdseq-matching",
    "bdSeq does not rise": "message-flow-edge-node-birth-publish-will-message-payload-bdSeq",
    "two metrics have one alias": "payloads-alias-uniqueness",
    "a metric has no timestamp": "payloads-name-birth-data-requirement",
    "seq has a gap": "payloads-sequence-num-incrementing",
    "data has names": "payloads-alias-data-cmd-requirement",
    "data has types": "payloads-metric-datatype-not-req",
    "data is in no birth": "operational-behavior-data-publish-nbirth",
    "data goes back in time": "operational-behavior-data-publish-nbirth-order",
    "a device speaks unborn": "payloads-ddata-order",
    "it leaves without a death": "operational-behavior-edge-node-intentional-disconnect-ndeath",
    "it leaves with reason 0": "payloads-ndeath-will-message-publisher-disconnect-mqtt50",
}


async def test_a_node_that_does_it_wrong_is_found_out(mosquitto):
    checker = Checker("plant", "node1")
    async with Tap(mosquitto.port, checker) as tap:
        for session in range(2):
            await asyncio.to_thread(_do_it_wrong, tap.port, session)
        await until(lambda: "tck-id-" + WRONG["it leaves with reason 0"] in checker.ids())

    missed = {
        what for what, assertion in WRONG.items() if f"tck-id-{assertion}" not in checker.ids()
    }
    assert missed == set()


def _do_it_wrong(port, session):
    """Be a node that breaks as many rules as fit in a short life."""

    def metric(name, value, **more):
        kind = DataType.BOOLEAN if isinstance(value, bool) else DataType.INT64
        return Metric(**{"name": name, "at_ms": 10, "type": kind, "value": value, **more})

    client = Client(
        CallbackAPIVersion.VERSION2, client_id="wrong", protocol=MQTTProtocolVersion.MQTTv5
    )
    stem = "spBv1.0/plant"
    client.will_set(f"{stem}/NDEATH/node1", encode([metric("bdSeq", 5)], at_ms=1, seq=None), 0)
    keep = Properties(PacketTypes.CONNECT)
    keep.SessionExpiryInterval = 60
    client.connect("127.0.0.1", port, clean_start=True, properties=keep)
    client.loop_start()
    deadline = time.monotonic() + WAIT_S
    while not client.is_connected() and time.monotonic() < deadline:
        time.sleep(0.01)
    client.subscribe(f"{stem}/NCMD/node1", 0)
    data = [metric(None, 1, alias=2)]
    birth = [
        metric("bdSeq", 6),
        metric("Node Control/Rebirth", False, alias=1),
        metric("a", 1, alias=2),
        metric("b", 1, alias=2),
        metric("c", 1, alias=3, at_ms=None),
    ]
    said = [
        ("NDATA/node1", encode(data, at_ms=1, seq=0, types=False), False),
        ("NBIRTH/node1", encode(birth, at_ms=1, seq=1), True),
        ("NDATA/node1", encode(data, at_ms=1, seq=2 + session, types=True), False),
        ("NDATA/node1", encode([metric("a", 2, at_ms=9)], at_ms=1, seq=9), False),
        ("NDATA/node1", encode([metric(None, 2, alias=77)], at_ms=1, seq=10), False),
        ("NDATA/node1", encode([metric("b", 2, at_ms=9)], at_ms=1, seq=11), False),
        ("NDATA/node1", encode([metric("b", 2, at_ms=8)], at_ms=1, seq=12), False),
        ("DDATA/node1/cam1", encode(data, at_ms=1, seq=13, types=False), False),
    ]
    for topic, payload, retain in said:
        client.publish(f"{stem}/{topic}", payload, 0, retain)
    client.publish("done", b"", 1).wait_for_publish(WAIT_S)
    client.disconnect()
    client.loop_stop()
