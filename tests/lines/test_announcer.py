"""What the node says over a real broker, and what it takes from it."""

import asyncio
import contextlib
import json
import secrets
import signal
import time
from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from qcnode.books.command_log import CommandLog
from qcnode.books.journal import Journal
from qcnode.books.pictures import PictureStore
from qcnode.domain import (
    Action,
    Decider,
    Disposition,
    Escalation,
    Fault,
    FaultKind,
    Finding,
    Inspection,
    Ruling,
    Verdict,
)
from qcnode.errors import LineUnavailableError, RulingError
from qcnode.health import HealthBoard
from qcnode.lines import announcer, asyncapi
from qcnode.lines.announcer import About, Announcer
from qcnode.lines.commands import CommandPath
from qcnode.lines.messages import Alarms, Heartbeat, Reply, State, Totals, VerdictEvent
from qcnode.lines.mqtt import Broker, MqttChannel
from qcnode.lines.topics import NodeTopics

WAIT_S = 30
TOPICS = NodeTopics(site="s", area="a", line="l", node="n1")


def now():
    return datetime.now(UTC)


def new_id():
    return secrets.token_hex(8)


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
        verdict=Verdict.NOT_DECIDABLE,
        action=Action.DIVERT,
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


@pytest.fixture
def book(tmp_path):
    log = CommandLog(tmp_path / "commands.db")
    yield log
    log.close()


class Rig:
    """A node's voice, without the node."""

    def __init__(self, journal, book, *, actors=None):
        self.journal, self.health, self.settled = journal, HealthBoard(now), []
        self.ready, self.spent = True, 0
        self.stopped, self.ruled_slowly = [], asyncio.Event()
        self.commands = CommandPath(
            book=book,
            handlers={
                "ping": self.ping,
                "refresh": self.ping,
                "rule": self.rule,
                "kill": self.kill,
            },
            actors=actors,
            now=now,
        )
        self.announcer = Announcer(
            TOPICS,
            about=About(node="n1", boot_id="b1", sw_version="0", model="m@1"),
            journal=journal,
            health=self.health,
            ready=lambda: self.ready,
            running=lambda: True,
            pending_ms=lambda: 3,
            totals=self.totals,
            commands=self.commands,
            now=now,
            new_id=new_id,
            monotonic_s=time.monotonic,
            jitter=lambda: 0.0,
        )

    def totals(self):
        return Totals(
            epoch="e",
            last_seq=self.spent,
            acked_seq=0,
            input_tokens=self.spent,
            output_tokens=0,
            cost_pico={"USD": self.spent},
            held_pico={},
            ts=now().isoformat(),
        )

    async def ping(self, _command):
        return "here"

    async def kill(self, command):
        self.stopped.append((command.scope, command.actor))
        return f"{command.scope} is stopped"

    async def rule(self, command):
        if command.escalation_id == "slow":
            await self.ruled_slowly.wait()
        if command.escalation_id == "gone":
            raise RulingError("gone: this part is not waiting")
        self.settled.append((command.escalation_id, command.finding, command.actor))
        return "ruled"

    @contextlib.asynccontextmanager
    async def on(self, port):
        channel = MqttChannel(
            Broker(host="127.0.0.1", port=port),
            TOPICS,
            read_receipt=lambda _: pytest.fail("no batch was sent"),
            new_id=new_id,
            timeout_s=5.0,
            passenger=self.announcer,
        )
        task = asyncio.create_task(self.announcer.run(channel))
        try:
            yield channel
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            await channel.close()


class Watcher:
    """Somebody who watches the line, with a session that outlasts connections."""

    def __init__(self, port, *topics, client_id="watcher"):
        self.heard, self._topics = [], topics or (f"{TOPICS.root}/#",)
        self._client = Client(
            CallbackAPIVersion.VERSION2, client_id=client_id, protocol=MQTTProtocolVersion.MQTTv5
        )
        self._client.reconnect_delay_set(1, 1)
        self._client.on_connect = lambda client, *_: client.subscribe(
            [(topic, 1) for topic in self._topics]
        )
        self._client.on_message = lambda _c, _u, message: self.heard.append(message)
        keep = Properties(PacketTypes.CONNECT)
        keep.SessionExpiryInterval = 3600
        self._client.connect("127.0.0.1", port, clean_start=False, properties=keep)
        self._client.loop_start()

    def on(self, topic, kind=None):
        payloads = [m.payload for m in list(self.heard) if m.topic == topic]
        return [msgspec.json.decode(p, type=kind) if kind else json.loads(p) for p in payloads]

    def ids(self, kind="verdict"):
        return [event["id"] for event in self.on(TOPICS.event(kind))]

    def send(self, name, payload, *, root=TOPICS.root, retain=False, about=None):
        self._client.publish(f"{root}/cmd/{name}", payload, 1, retain, about)

    def close(self):
        self._client.disconnect()
        self._client.loop_stop()


@contextlib.contextmanager
def watching(port, *topics):
    watcher = Watcher(port, *topics)
    try:
        yield watcher
    finally:
        watcher.close()


def command(command_id="c1", *, life_s=20, age_s=0, **more):
    begun = int(time.time()) - age_s
    said = {"id": command_id, "iat": begun, "exp": begun + life_s, "actor": "anna"}
    return json.dumps({**said, "role": "operator", **more}).encode()


RULE = {"escalation_id": "E1", "finding": "defective"}


@pytest.mark.mosquitto
async def test_everything_a_line_watcher_needs_is_said(mosquitto, journal, book):
    rig = Rig(journal, book)
    with watching(mosquitto.port) as watcher:
        async with rig.on(mosquitto.port):
            journal.append(inspection(1))
            journal.append(
                Fault(
                    id="F2",
                    trigger_seq=258,
                    part_id="P2",
                    kind=FaultKind.LATE,
                    reason="too late",
                    at=now(),
                    late_verdict=Verdict.OK,
                )
            )
            journal.append(
                Escalation(
                    id="E1",
                    inspection_id="I1",
                    part_id="P1",
                    reason="between the limits",
                    score=0.5,
                    opened_at=now(),
                    expires_at=now() + timedelta(minutes=15),
                )
            )
            journal.append(
                Ruling(
                    id="R1",
                    escalation_id="E1",
                    part_id="P1",
                    by=Decider.AGENT,
                    who="agent",
                    finding=Finding.DEFECTIVE,
                    disposition=Disposition.SCRAP,
                    binding=True,
                    reason="a crack",
                    defect_class="crack",
                    confidence=0.9,
                    at=now(),
                )
            )
            await until(lambda: watcher.ids("disposition"))
            await until(lambda: len(watcher.ids()) == 2)
            rig.health.report("camera", ok=False, words="no picture came", needed=True)
            rig.ready, rig.spent = False, 7
            await until(lambda: watcher.on(TOPICS.alarms, Alarms)[-1].active)
            rig.health.report("camera", ok=True, words="delivers pictures", needed=True)
            await until(lambda: len(watcher.ids("alarm")) == 2)
            await until(lambda: len(watcher.on(TOPICS.heartbeat)) >= 3)
        await until(lambda: not watcher.on(TOPICS.state, State)[-1].online)

    judged, fault = watcher.on(TOPICS.event("verdict"), VerdictEvent)
    assert (judged.verdict, judged.action, judged.fault) == ("NOT_DECIDABLE", "DIVERT", None)
    assert (fault.fault, fault.verdict, fault.action, fault.part.tag) == ("late", "OK", None, 2)
    assert watcher.on(TOPICS.event("disposition"))[0]["disposition"] == "SCRAP"
    assert [event["active"] for event in watcher.on(TOPICS.event("alarm"))] == [True, False]
    states = watcher.on(TOPICS.state, State)
    assert [state.packml_state for state in states if state.online][:1] == ["Execute"]
    assert "Held" in [state.packml_state for state in states]
    assert states[-1].reason == "the node was stopped"
    assert watcher.on(TOPICS.total, Totals)[-1].cost_pico == {"USD": 7}
    beats = watcher.on(TOPICS.heartbeat, Heartbeat)
    assert [beat.seq for beat in beats] == list(range(beats[0].seq, beats[0].seq + len(beats)))
    assert len({message.topic for message in watcher.heard}) == 8


@pytest.mark.mosquitto
async def test_a_broker_killed_and_wiped_loses_no_verdict_and_repeats_them_as_they_were(
    mosquitto, journal, book
):
    rig = Rig(journal, book)
    expected = [f"I{seq}" for seq in range(1, 301)]
    with watching(mosquitto.port, TOPICS.event("verdict")) as watcher:
        async with rig.on(mosquitto.port):
            for seq in range(1, 301):
                journal.append(inspection(seq))
                await asyncio.sleep(0.01)
                if seq in (70, 200):
                    mosquitto.kill()
                if seq in (110, 230):
                    mosquitto.start(empty=seq == 230)
            await until(lambda: set(watcher.ids()) == set(expected))

    told = list(dict.fromkeys(watcher.ids()))
    assert sorted(told, key=lambda name: int(name[1:])) == expected
    bodies = {json.dumps(event, sort_keys=True) for event in watcher.on(TOPICS.event("verdict"))}
    assert len(bodies) == len(expected)  # said twice, an event is the same to the byte


@pytest.mark.mosquitto
async def test_events_wait_for_somebody_to_listen_and_outlast_a_restart(mosquitto, journal, book):
    for seq in range(1, 41):
        journal.append(inspection(seq, at=now() - timedelta(days=2 if seq <= 10 else 0)))
    async with Rig(journal, book).on(mosquitto.port) as channel:
        await channel.linked()
        await asyncio.sleep(0.3)  # said to nobody: the broker answers so, and the mark stands
    assert journal.cursor("mqtt verdict") == 0

    with watching(mosquitto.port, TOPICS.event("verdict")) as watcher:
        async with Rig(journal, book).on(mosquitto.port):
            await until(lambda: len(watcher.ids()) == 30)

    assert watcher.ids() == [f"I{seq}" for seq in range(11, 41)]  # those of this day, in order


@pytest.mark.mosquitto
async def test_a_node_that_dies_is_shown_as_gone_by_its_will(mosquitto, journal, book):
    rig = Rig(journal, book)
    with watching(mosquitto.port, TOPICS.state) as watcher:
        async with rig.on(mosquitto.port) as channel:
            await until(lambda: watcher.on(TOPICS.state))
            link = await channel.linked()
            link._client.socket().close()
            await until(lambda: any(not s.online for s in watcher.on(TOPICS.state, State)))
            await until(lambda: watcher.on(TOPICS.state, State)[-1].online)

    gone = next(s for s in watcher.on(TOPICS.state, State) if not s.online)
    assert gone.reason == "the connection was lost"


@pytest.mark.mosquitto
async def test_a_broker_that_hangs_is_given_up_and_found_again(
    mosquitto, journal, book, monkeypatch
):
    monkeypatch.setattr(announcer, "SAID_S", 0.5)
    rig = Rig(journal, book)
    with watching(mosquitto.port, TOPICS.event("verdict")) as watcher:
        async with rig.on(mosquitto.port):
            journal.append(inspection(1))
            await until(watcher.ids)
            mosquitto._process.send_signal(signal.SIGSTOP)
            journal.append(inspection(2))
            await until(lambda: any(not health.ok for health in rig.health.all()))
            mosquitto._process.send_signal(signal.SIGCONT)
            await until(lambda: "I2" in watcher.ids())

    assert list(dict.fromkeys(watcher.ids())) == ["I1", "I2"]


@pytest.mark.mosquitto
async def test_a_command_is_done_once_answered_and_on_record(mosquitto, journal, book):
    rig = Rig(journal, book)
    about = Properties(PacketTypes.PUBLISH)
    about.CorrelationData = b"mine"
    about.ResponseTopic = f"{TOPICS.root}/meter/usage"  # an answer never goes into the books
    with watching(mosquitto.port) as watcher:
        async with rig.on(mosquitto.port):
            await until(lambda: watcher.on(TOPICS.state))
            rule = command(**RULE)
            for _ in range(3):
                watcher.send("rule", rule, about=about)
            await until(lambda: len(watcher.on(TOPICS.reply("rule"))) == 3)

    replies = watcher.on(TOPICS.reply("rule"), Reply)
    assert {(reply.id, reply.status, reply.reason) for reply in replies} == {
        ("c1", "applied", "ruled")
    }
    assert rig.settled == [("E1", "defective", "anna")]
    assert [(row.actor, row.status) for row in book.all()] == [("anna", "applied")]
    answer = next(m for m in watcher.heard if m.topic == TOPICS.reply("rule"))
    assert answer.properties.CorrelationData == b"mine"
    assert not watcher.on(TOPICS.usage)


@pytest.mark.mosquitto
async def test_a_stop_waits_behind_no_other_command(mosquitto, journal, book):
    rig = Rig(journal, book)
    with watching(mosquitto.port) as watcher:
        async with rig.on(mosquitto.port):
            await until(lambda: watcher.on(TOPICS.state))
            watcher.send("rule", command("c1", **{**RULE, "escalation_id": "slow"}))
            await until(book.all)
            watcher.send("kill", command("c2", scope="provider:p"))
            await until(lambda: watcher.on(TOPICS.reply("kill")))
            assert rig.stopped == [("provider:p", "anna")]
            assert not watcher.on(TOPICS.reply("rule"))
            rig.ruled_slowly.set()
            await until(lambda: watcher.on(TOPICS.reply("rule")))
    (reply,) = watcher.on(TOPICS.reply("kill"), Reply)
    assert (reply.status, reply.reason) == ("applied", "provider:p is stopped")
    assert {(row.name, row.status) for row in book.all()} == {
        ("rule", "applied"),
        ("kill", "applied"),
    }


@pytest.mark.mosquitto
async def test_a_retained_command_is_refused_now_and_never_seen_later(mosquitto, journal, book):
    with watching(mosquitto.port) as watcher:
        watcher.send("rule", command("before", **RULE), retain=True)
        await until(lambda: watcher.on(f"{TOPICS.root}/cmd/rule"))
        rig = Rig(journal, book)
        async with rig.on(mosquitto.port):
            await until(lambda: watcher.on(TOPICS.state))
            watcher.send("rule", command("now", **RULE), retain=True)
            await until(lambda: watcher.on(TOPICS.reply("rule")))

    (reply,) = watcher.on(TOPICS.reply("rule"), Reply)
    assert (reply.status, rig.settled) == ("rejected", [])
    assert "retained" in reply.reason


@pytest.mark.mosquitto
async def test_rubbish_on_the_command_topics_stops_nothing(mosquitto, journal, book):
    rig = Rig(journal, book)
    with watching(mosquitto.port) as watcher:
        async with rig.on(mosquitto.port):
            await until(lambda: watcher.on(TOPICS.heartbeat))
            for rubbish in (b"", b"\xff\xfe", b"[" * 8_000, b"x" * 3_000_000, b"null", b"{}"):
                watcher.send("rule", rubbish)
            watcher.send("self-destruct", command())
            beats = len(watcher.on(TOPICS.heartbeat))
            watcher.send("ping", command("p1"))
            await until(lambda: watcher.on(TOPICS.reply("ping")))
            await until(lambda: len(watcher.on(TOPICS.heartbeat)) > beats + 1)
            journal.append(inspection(1))
            await until(watcher.ids)

    assert {row.status for row in book.all() if row.name == "rule"} == {"rejected"}
    assert rig.settled == []


class ForgetfulBroker:
    """Acknowledges everything, and its connection can be cut."""

    def __init__(self):
        self.links, self.lost = [], False

    async def linked(self):
        self.links.append([])
        self.lost = False
        return self

    async def drop(self, _link):
        self.lost = True

    def check(self):
        if self.lost:
            raise LineUnavailableError("cut")

    async def say(self, topic, payload, **_how):
        self.check()
        if topic == TOPICS.event("verdict"):
            self.links[-1].append(json.loads(payload)["id"])
        return 0


@pytest.mark.parametrize(("later_s", "again"), [(1.0, ["I1", "I2", "I3"]), (6.0, [])])
async def test_what_a_broker_may_have_forgotten_is_said_once_more(journal, book, later_s, again):
    rig, broker, ahead_s = Rig(journal, book), ForgetfulBroker(), [0.0]
    rig.announcer._monotonic_s = lambda: time.monotonic() + ahead_s[0]
    task = asyncio.create_task(rig.announcer.run(broker))
    try:
        for seq in (1, 2, 3):
            journal.append(inspection(seq))
        await until(lambda: broker.links and broker.links[0] == ["I1", "I2", "I3"])
        ahead_s[0] = later_s
        if not again:
            await until(lambda: journal.cursor("mqtt verdict") == 3)
        broker.lost = True
        await until(lambda: len(broker.links) == 2)
        journal.append(inspection(4))
        await until(lambda: broker.links[1][-1:] == ["I4"])
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    assert broker.links[1] == [*again, "I4"]


# -- the command path, without a broker ----------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "status", "why"),
    [
        (RULE, "applied", "ruled"),
        ({**RULE, "escalation_id": "gone"}, "rejected", "not waiting"),
        ({**RULE, "age_s": 60}, "expired", "out of its time"),
        ({**RULE, "age_s": -60}, "expired", "out of its time"),
        ({**RULE, "life_s": 31}, "rejected", "at most 30 s"),
        ({**RULE, "life_s": 0}, "rejected", "at most 30 s"),
        ({**RULE, "role": "viewer"}, "rejected", "the role viewer may not"),
        ({**RULE, "role": "engineer"}, "rejected", "does not have the role engineer"),
        ({**RULE, "actor": "bob"}, "rejected", "bob does not have the role"),
        ({**RULE, "role": "root"}, "rejected", "cannot be read"),
        ({}, "rejected", "cannot be read"),
        ({**RULE, "fire": True}, "rejected", "cannot be read"),
        ({**RULE, "command_id": "x" * 65}, "rejected", "cannot be read"),
        ({**RULE, "actor": "a b"}, "rejected", "cannot be read"),
        (b"\xff", "rejected", "cannot be read"),
        (b"[" * 5_000, "rejected", "cannot be read"),
        (b" " * 8_193, "rejected", "longer than"),
    ],
)
async def test_a_command_is_weighed_and_recorded_whatever_it_is(journal, book, said, status, why):
    rig = Rig(journal, book, actors={"anna": ("operator",)})
    payload = said if isinstance(said, bytes) else command(**said)

    reply = await rig.commands.take("rule", payload, retained=False, way="test")

    assert (reply.status, why in reply.reason) == (status, True), reply
    assert len(book.all()) == 1
    assert book.all()[0].status == status
    assert bool(rig.settled) == (status == "applied")


async def test_a_stop_is_done_also_where_nothing_can_be_put_on_record(journal, book):
    rig = Rig(journal, book)
    book.close()

    payload = command("c1", scope="line")
    reply = await rig.commands.take("kill", payload, retained=False, way="test")

    assert (reply.status, rig.stopped) == ("applied", [("line", "anna")])
    refused = await rig.commands.take("ping", command("c2"), retained=False, way="test")
    assert refused.status == "rejected"


@pytest.mark.parametrize(
    ("said", "retained", "why"),
    [
        ({"role": "viewer"}, False, "may not"),
        ({"age_s": 60}, False, "out of its time"),
        ({}, True, "retained"),
        ({"scope": ""}, False, "cannot be read"),
    ],
)
async def test_a_stop_that_may_not_be_is_refused_and_on_record(journal, book, said, retained, why):
    rig = Rig(journal, book)
    reply = await rig.commands.take("kill", command(**said), retained=retained, way="test")
    assert (reply.status in ("rejected", "expired"), why in reply.reason) == (True, True), reply
    assert rig.stopped == []
    assert len(book.all()) == 1


async def test_an_id_that_another_command_had_is_refused(journal, book):
    rig = Rig(journal, book)
    await rig.commands.take("rule", command(**RULE), retained=False, way="test")

    other = command(**{**RULE, "finding": "good"})
    reply = await rig.commands.take("rule", other, retained=False, way="test")

    assert (reply.status, len(rig.settled)) == ("rejected", 1)
    assert "another command had this id" in reply.reason


async def test_a_command_begun_before_a_restart_is_not_done_again(journal, book):
    rig, payload = Rig(journal, book), command(**RULE)
    book.begin(
        command_id="c1",
        at="then",
        name="rule",
        actor="anna",
        role="operator",
        way="test",
        body=payload.decode(),
    )

    reply = await rig.commands.take("rule", payload, retained=False, way="test")

    assert (reply.status, rig.settled) == ("rejected", [])
    assert "look before repeating" in reply.reason


async def test_what_cannot_be_put_on_record_is_not_done(journal, book):
    rig = Rig(journal, book)
    book.close()

    reply = await rig.commands.take("rule", command(**RULE), retained=False, way="test")

    assert (reply.status, rig.settled) == ("rejected", [])


# -- the papers ----------------------------------------------------------------------------------


def test_the_asyncapi_file_is_what_the_types_say(repository):
    made = "run `python -m qcnode.lines.asyncapi > docs/asyncapi.yaml`"
    assert (repository / "docs" / "asyncapi.yaml").read_text("utf-8") == asyncapi.text(), made


def test_every_reference_in_the_asyncapi_file_leads_somewhere():
    document = asyncapi.document()

    def references(value):
        if isinstance(value, dict):
            if "$ref" in value:
                yield value["$ref"]
            for item in value.values():
                yield from references(item)
        elif isinstance(value, list | tuple):
            for item in value:
                yield from references(item)

    found = list(references(document))
    assert len(found) > 20
    for reference in found:
        place = document
        for step in reference.removeprefix("#/").split("/"):
            place = place[step]
