"""A broker that loses, repeats, delays and reorders, and a stand-in for paho in front of it.

The node's own `MqttChannel` talks to `Client` here as it would to paho's. What the billing
server subscribed to is kept for it while it is away, as by a persistent session, until it
acknowledges or the broker is killed, which forgets everything, acknowledged or not.
"""

import contextlib
import itertools
from types import SimpleNamespace

import qcnode.lines.mqtt as mqtt_module
from tests.sim.loop import PROCESS

ACCEPTED = SimpleNamespace(value=0)
GRANTED = SimpleNamespace(value=1)
NO_SUBSCRIBERS = SimpleNamespace(value=0x10)
UNSPECIFIED = SimpleNamespace(value=0x80)
NOT_CONNECTED = 4
USAGE = "/meter/usage"


class Broker:
    """What stands between the nodes and the server; `world` says what goes wrong."""

    def __init__(self, world):
        self.world = world
        self.up = True
        self.clients = []
        self.kept = []
        """For the server: what it has not acknowledged."""
        self.mids = itertools.count(1)
        self.link = 1
        """Which connection of the server this is: each brings what is not acknowledged once."""

    def kill(self):
        """End it, and with it all it holds in memory."""
        self.world.note("broker", "killed", len(self.kept))
        self.up = False
        self.kept.clear()
        for client in tuple(self.clients):
            client.lose()

    def start(self):
        self.up = True
        self.world.note("broker", "started")

    def reachable(self, process):
        return self.up and process.name not in self.world.faults.cut_off

    def publish(self, topic, payload, properties):
        """Take a message in; say whether anybody subscribed to it."""
        message = SimpleNamespace(
            topic=topic,
            payload=payload,
            properties=properties,
            qos=1,
            mid=next(self.mids),
            link=0,
        )
        if topic.endswith(USAGE):
            self.kept.append(message)
            for copy in range(1 + self.world.faults.happens("duplicate")):
                self.world.later(self._delay(copy), self._hand_over, message, self.link, copy)
            return True
        found = [client for client in self.clients if topic in client.topics]
        for client in found:
            for copy in range(1 + self.world.faults.happens("duplicate")):
                self.world.later(self._delay(copy), client.take, message)
        return bool(found)

    def bring_again(self):
        """Bring the server all it has not acknowledged: the connection to it is a new one."""
        self.link += 1
        for message in tuple(self.kept):
            self.world.later(self._delay(0), self._hand_over, message, self.link, 0)

    def acknowledge(self, mid):
        self.kept = [message for message in self.kept if message.mid != mid]

    def _hand_over(self, message, link, copy):
        if not self.up or "server" in self.world.faults.cut_off or message not in self.kept:
            return
        if link == self.link and (copy or message.link != link):
            message.link = link
            self.world.server.deliver(message)

    def _delay(self, copy):
        delay = self.world.chance("delay").expovariate(50)
        if copy or self.world.faults.happens("reorder"):
            delay += self.world.chance("delay").uniform(0, 5)
        if self.world.faults.happens("delay"):
            delay += self.world.chance("delay").uniform(5, 600)
        return delay


class Client:
    """What `MqttChannel` needs of paho's client, over the simulated broker."""

    def __init__(self, *_args, client_id, **_kwargs):
        self.process = PROCESS.get()
        self.broker = self.process.broker
        self.world = self.broker.world
        self.client_id = client_id
        self.topics = set()
        self.linked = False
        self.mids = itertools.count(1)
        self.connect_timeout = 5.0
        self.on_connect = self.on_subscribe = self.on_publish = None
        self.on_disconnect = self.on_message = None

    def username_pw_set(self, *_):
        pass

    def tls_set_context(self, *_):
        pass

    def connect(self, *_args, **_kwargs):
        if not self.broker.reachable(self.process):
            raise ConnectionRefusedError("nobody listens")

    def loop_start(self):
        if not self.broker.reachable(self.process):
            self._say(self.on_disconnect, None, UNSPECIFIED, None)
            return
        # Another client of this id is thrown out, as one that is left of a dead node.
        for client in tuple(self.broker.clients):
            if client.client_id == self.client_id:
                client.lose()
        self.linked = True
        self.broker.clients.append(self)
        self._say(self.on_connect, None, ACCEPTED, None)

    def loop_stop(self):
        pass

    def socket(self):
        return None

    def subscribe(self, topic, qos):
        assert qos == 1
        if not self.linked:
            return NOT_CONNECTED, None
        self.topics.add(topic)
        mid = next(self.mids)
        self._say(self.on_subscribe, mid, [GRANTED], None)
        return 0, mid

    def publish(self, topic, payload, qos, properties):
        assert qos == 1
        mid = next(self.mids)
        if not self.linked or self.process.dead:
            return SimpleNamespace(rc=NOT_CONNECTED, mid=mid)
        if not self.broker.reachable(self.process) or self.world.faults.happens("link lost"):
            # Whether it got there nobody here will know.
            if self.broker.up and self.world.chance("link").random() < 0.5:
                self.world.later(0.01, self.broker.publish, topic, payload, properties)
            self.world.later(0.02, self.lose)
            return SimpleNamespace(rc=0, mid=mid)
        if self.world.faults.happens("lost after ack"):
            self.world.note("broker", "acknowledged and lost", self.client_id)
            self._say(self.on_publish, mid, ACCEPTED, None)
            return SimpleNamespace(rc=0, mid=mid)
        self.world.later(0.005, self._arrive, mid, topic, payload, properties)
        return SimpleNamespace(rc=0, mid=mid)

    def disconnect(self):
        self.lose()

    def lose(self):
        """End the connection, and tell the client so unless it is dead."""
        if self.linked:
            self.linked = False
            self.broker.clients.remove(self)
            self._say(self.on_disconnect, None, UNSPECIFIED, None)

    def take(self, message):
        if (
            self.linked
            and self.broker.reachable(self.process)
            and not self.world.faults.happens("lost")
        ):
            self.on_message_of(message)

    def on_message_of(self, message):
        self._say(self.on_message, message)

    def _arrive(self, mid, topic, payload, properties):
        if not self.broker.up:
            return
        found = self.broker.publish(topic, payload, properties)
        if self.linked:
            self._say(self.on_publish, mid, ACCEPTED if found else NO_SUBSCRIBERS, None)

    def _say(self, callback, *heard):
        self.process.later(self.world.chance("link").expovariate(100), callback, self, None, *heard)


@contextlib.contextmanager
def simulated_broker():
    """Let MQTT channels made here speak to the simulation's broker."""
    before = mqtt_module.Client
    mqtt_module.Client = Client
    try:
        yield
    finally:
        mqtt_module.Client = before
