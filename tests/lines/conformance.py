"""The edge-node assertions of the Sparkplug 3.0 specification, checked by looking on.

What a node does on its connection is told to a `Checker`, which keeps the assertions that
do not hold, by their ids, and those that were put to the test at all. It reads nothing of
the node's mind: a captured conversation is enough.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from qcnode.lines.sparkplug import BadMetric, DataType, Metric, Payload, decode

REBIRTH, BD_SEQ = "Node Control/Rebirth", "bdSeq"
WITH_WILL = 0x04
MESSAGE = {
    "NBIRTH": "nbirth",
    "DBIRTH": "dbirth",
    "NDATA": "ndata",
    "DDATA": "ddata",
    "DDEATH": "ddeath",
}


@dataclass(frozen=True, kw_only=True)
class Connected:
    """What a node says when it connects. `expiry_s` None: MQTT 3.1.1, which has none."""

    will_topic: str | None
    will_payload: bytes
    will_qos: int
    will_retain: bool
    clean: bool
    expiry_s: int | None


@dataclass
class Checker:
    """One edge node, watched over all its sessions. `host` is the one it is to wait for."""

    group: str
    node: str
    host: str | None = None
    broken: list[tuple[str, str]] = field(default_factory=list)
    checked: Counter = field(default_factory=Counter)
    _last_bd_seq: int | None = None
    _bd_seq: int | None = None
    _session: bool = False
    _first: bool = True
    _subscribed: set = field(default_factory=set)
    _host_online: bool = False
    _born: set = field(default_factory=set)
    _node_born: bool = False
    _died: bool = False
    _seq: int | None = None
    _names: dict = field(default_factory=dict)
    _aliases: dict = field(default_factory=dict)
    _last_at: dict = field(default_factory=dict)

    def ids(self):
        """Return the ids of the assertions that do not hold."""
        return {assertion for assertion, _words in self.broken}

    # -- what is seen ---------------------------------------------------------------------

    def connected(self, said: Connected):
        flow = "message-flow-edge-node-birth-publish-will-message"
        version = "311" if said.expiry_s is None else "50"
        clean = said.clean and not said.expiry_s
        self._holds(f"principles-persistence-clean-session-{version}", clean, "session kept")
        self._session, self._first, self._node_born, self._died = True, True, False, False
        self._subscribed, self._host_online, self._seq = set(), False, None
        self._born, self._names, self._aliases = set(), {}, {}
        for name in (flow, "payloads-ndeath-will-message"):
            self._holds(name, said.will_topic is not None, "no will")
        if said.will_topic is None:
            return
        for name in (f"{flow}-topic", "topics-ndeath-topic"):
            self._holds(name, said.will_topic == self._topic("NDEATH"), said.will_topic)
        for name in (f"{flow}-qos", "payloads-ndeath-will-message-qos"):
            self._holds(name, said.will_qos == 1, f"QoS {said.will_qos}")
        for name in (f"{flow}-will-retained", "payloads-ndeath-will-message-retain"):
            self._holds(name, not said.will_retain, "retained")
        will = self._read(f"{flow}-payload", said.will_payload)
        if will is None:
            return
        self._check_death(will)
        self._bd_seq = next((m.value for m in will.good if m.name == BD_SEQ), None)
        if self._last_bd_seq is not None:
            rises = self._bd_seq == (self._last_bd_seq + 1) % 256
            self._holds(f"{flow}-payload-bdSeq", rises, f"{self._last_bd_seq}, {self._bd_seq}")
            self._holds("topics-nbirth-bdseq-increment", rises, f"{self._bd_seq}")
        self._last_bd_seq = self._bd_seq

    def subscribed(self, topic, *, qos):
        wanted = {
            self._topic("NCMD"): "message-flow-edge-node-ncmd-subscribe",
            f"{self._topic('DCMD')}/+": "message-flow-device-dcmd-subscribe",
            f"{self._topic('DCMD')}/#": "message-flow-device-dcmd-subscribe",
        }.get(topic)
        if wanted is not None:
            self._holds(wanted, qos == 1, f"{topic} at QoS {qos}")
            self._subscribed.add(wanted)

    def host_says(self, *, online):
        self._host_online = online

    def disconnected(self, reason):
        """The node leaves on purpose; `reason` is MQTT 5's, None in 3.1.1."""
        if self._node_born:
            self._holds(
                "operational-behavior-edge-node-intentional-disconnect-ndeath",
                self._died,
                "left without an NDEATH",
            )
            if reason is not None:
                self._holds(
                    "payloads-ndeath-will-message-publisher-disconnect-mqtt50",
                    reason == WITH_WILL,
                    f"reason {reason}",
                )
        self._session = False

    def published(self, topic, raw, *, qos, retain):
        parts = topic.split("/")
        if parts[0] != "spBv1.0":
            return
        kind = parts[2] if len(parts) in (4, 5) else "?"
        right = len(parts) == (5 if kind.startswith("D") else 4) and kind in (*MESSAGE, "NDEATH")
        self._holds("topic-structure", right, topic)
        if not right:
            return
        mine = parts[1] == self.group and parts[3] == self.node
        self._holds("topic-structure-namespace-valid-edge-node-id", mine, topic)
        self._holds("message-flow-edge-node-birth-publish-connect", self._session, "not connected")
        in_order = not self._first or kind == "NBIRTH"
        self._holds("principles-birth-certificates-order", in_order, kind)
        self._first = False
        payload = self._read(f"payloads-{kind.lower()}", raw)
        if payload is None:
            return
        if kind == "NDEATH":
            self._check_death(payload)
            same = [m.value for m in payload.good] == [self._bd_seq]
            self._holds("payloads-ndeath-bdseq", same, "not the will's bdSeq")
            self._died = True
            return
        self._check_frame(kind, payload, qos, retain)
        device = parts[4] if len(parts) == 5 else None
        if kind == "NBIRTH":
            self._check_node_birth(payload)
        elif kind == "DBIRTH":
            self._check_device_birth(device, payload)
        elif kind == "DDEATH":
            self._holds("operational-behavior-device-ddeath", device in self._born, f"{device}")
            self._born.discard(device)
        else:
            self._check_data(kind, device, payload)

    # -- what must hold -------------------------------------------------------------------

    def _check_death(self, payload: Payload):
        for name in ("payloads-ndeath-seq", "topics-ndeath-seq"):
            self._holds(name, payload.seq is None, "a death has no seq")
        alone = [m.name for m in payload.good] == [BD_SEQ] and len(payload.metrics) == 1
        self._holds("topics-ndeath-payload", alone, "more or less than bdSeq")
        if alone:
            kind = payload.good[0].type
            name = "message-flow-edge-node-birth-publish-will-message-payload-bdSeq"
            self._holds(name, kind is DataType.INT64, f"bdSeq is {kind}")

    def _check_frame(self, kind, payload, qos, retain):
        low = MESSAGE[kind]
        self._holds(f"topics-{low}-mqtt", qos == 0 and not retain, f"QoS {qos}, retain {retain}")
        if kind != "DDEATH":
            self._holds(f"payloads-{low}-qos", qos == 0, f"QoS {qos}")
            self._holds(f"payloads-{low}-retain", not retain, "retained")
        self._holds(f"payloads-{low}-timestamp", payload.at_ms is not None, "no timestamp")
        self._holds("payloads-sequence-num-always-included", payload.seq is not None, "no seq")
        if kind == "NBIRTH":
            for name in ("topics-nbirth-seq-num", "payloads-nbirth-seq"):
                self._holds(name, payload.seq == 0, f"seq {payload.seq}")
        else:
            expected = None if self._seq is None else (self._seq + 1) % 256
            words = f"{kind} with seq {payload.seq}, not {expected}"
            for name in (f"payloads-{low}-seq-inc", "payloads-sequence-num-incrementing"):
                self._holds(name, payload.seq == expected, words)
        self._seq = payload.seq

    def _check_node_birth(self, payload):
        wait = "message-flow-edge-node-birth-publish-phid-wait-online"
        if self.host is not None:
            self._holds(wait, self._host_online, "born before its host is online")
        listens = "message-flow-edge-node-ncmd-subscribe"
        self._holds(listens, listens in self._subscribed, "born before it listens")
        self._born, self._names, self._aliases, self._last_at = set(), {}, {}, {}
        self._node_born, self._died = True, False
        found = {m.name: m for m in payload.good}
        number = found.get(BD_SEQ)
        for name in ("topics-nbirth-bdseq-included", "payloads-nbirth-bdseq"):
            self._holds(name, number is not None, "no bdSeq")
        if number is not None:
            for name in (
                "topics-nbirth-bdseq-matching",
                "payloads-nbirth-bdseq-repeat",
                "operational-behavior-data-commands-rebirth-action-3",
            ):
                self._holds(name, number.value == self._bd_seq, f"{number.value}")
        rebirth = found.get(REBIRTH)
        stem = "operational-behavior-data-commands-rebirth"
        for name in (f"{stem}-name", "topics-nbirth-rebirth-metric", "payloads-nbirth-rebirth-req"):
            self._holds(name, rebirth is not None, "no Rebirth")
        if rebirth is not None:
            self._holds(f"{stem}-name-aliases", rebirth.alias is None, "it has an alias")
            self._holds(f"{stem}-datatype", rebirth.type is DataType.BOOLEAN, f"{rebirth.type}")
            self._holds(f"{stem}-value", rebirth.value is False, f"{rebirth.value}")
        self._check_metrics_of_birth("nbirth", None, payload)

    def _check_device_birth(self, device, payload):
        after = "message-flow-device-birth-publish-nbirth-wait"
        for name in (after, "payloads-dbirth-order"):
            self._holds(name, self._node_born and not self._died, f"{device} before its node")
        self._born.add(device)
        self._aliases = {a: whose for a, whose in self._aliases.items() if whose[0] != device}
        self._check_metrics_of_birth("dbirth", device, payload)

    def _check_metrics_of_birth(self, low, device, payload):
        for metric in payload.metrics:
            bad = isinstance(metric, BadMetric)
            words = f"{metric.name}: {metric.problem}" if bad else f"{metric.name}"
            self._holds(f"operational-behavior-data-publish-{low}-values", not bad, words)
            if bad:
                continue
            whole = metric.name is not None and metric.type is not None
            self._holds(f"topics-{low}-metrics", whole, words)
            self._holds("payloads-metric-datatype-req", metric.type is not None, words)
            self._holds("payloads-name-requirement", bool(metric.name), words)
            self._holds("payloads-name-birth-data-requirement", metric.at_ms is not None, words)
            if metric.alias is not None:
                alone = metric.alias not in self._aliases
                self._holds("payloads-alias-uniqueness", alone, words)
                self._holds("payloads-alias-birth-requirement", bool(metric.name), words)
                self._aliases[metric.alias] = (device, metric.name)
            self._names[device, metric.name] = metric

    def _check_data(self, kind, device, payload):
        low = MESSAGE[kind]
        born = self._node_born and not self._died
        known = born and (device is None or device in self._born)
        self._holds(f"payloads-{low}-order", known, f"{device} before its birth")
        birth = "nbirth" if kind == "NDATA" else "dbirth"
        for metric in payload.metrics:
            if not isinstance(metric, Metric):
                self._holds(f"payloads-{low}", False, f"{metric.problem}")
                continue
            self._check_datum(birth, device, metric)

    def _check_datum(self, birth, device, metric):
        key = self._aliases.get(metric.alias) if metric.name is None else (device, metric.name)
        words = f"{metric.name or metric.alias}"
        here = key is not None and key[0] == device and key in self._names
        self._holds(f"operational-behavior-data-publish-{birth}", here, f"{words} is in no birth")
        self._holds("payloads-name-birth-data-requirement", metric.at_ms is not None, words)
        self._holds("payloads-metric-datatype-not-req", metric.type is None, f"{words} has a type")
        if not here:
            return
        aliased = self._names[key].alias is not None
        shown = metric.name is None if aliased else metric.alias is None
        self._holds("payloads-alias-data-cmd-requirement", shown, words)
        if not metric.historical and metric.at_ms is not None:
            order = f"operational-behavior-data-publish-{birth}-order"
            self._holds(order, metric.at_ms >= self._last_at.get(key, 0), f"{words} goes back")
            self._last_at[key] = metric.at_ms

    # -- keeping count --------------------------------------------------------------------

    def _read(self, assertion, raw):
        try:
            payload = decode(raw)
        except ValueError as error:
            self._holds(assertion, False, f"unreadable: {error}")
            return None
        self._holds(assertion, True, "")
        return payload

    def _holds(self, assertion, holds, words):
        self.checked[f"tck-id-{assertion}"] += 1
        if not holds:
            self.broken.append((f"tck-id-{assertion}", words))

    def _topic(self, kind):
        return f"spBv1.0/{self.group}/{kind}/{self.node}"
