"""A Sparkplug B edge node as a state machine: what happened goes in, what to send comes out.

Pure: no connection, no clock, no disk. One session goes `connect` (gives the will),
`connected` (what to subscribe to), `granted`, then births as soon as the primary host is
online, if one is waited for. Between them and the end, `report` turns changed values into
data messages, `took` turns what came in into births, writes for the command path, or the
end of the session. A rebirth that is asked for too often is owed until `tick` pays it, and
while it is owed no data is sent.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Final, TypeAlias

from qcnode.lines.sparkplug import BadMetric, DataType, Metric, Value, decode, encode, typed

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

NAMESPACE: Final = "spBv1.0"
REBIRTH: Final = "Node Control/Rebirth"
BD_SEQ: Final = "bdSeq"
NUMBERS: Final = 256
"""Both counters of a session go from 0 to 255 and round."""
REBIRTH_EVERY_MS: Final = 1_000
STATE_BYTES_MAX: Final = 4_096


@dataclass(frozen=True, slots=True, kw_only=True)
class Tag:
    """A metric that is in every birth of its node or device."""

    name: str
    type: DataType
    writable: bool = False
    labels: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Publication:
    """A message to send; Sparkplug retains none of an edge node's."""

    topic: str
    payload: bytes
    qos: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Write:
    """A host wants a value changed; the command path decides. `device` None is the node."""

    device: str | None
    name: str
    value: Value


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """Something that came in and changes nothing, and why."""

    topic: str
    why: str


@dataclass(frozen=True, slots=True)
class Leave:
    """End the connection and make another: the primary host is gone."""


Outcome: TypeAlias = Publication | Write | Refusal | Leave


class _Stage(Enum):
    OUT = "out"
    CONNECTED = "connected"
    WAITING = "waiting"
    BORN = "born"


@dataclass(slots=True)
class _Entity:
    """The node or a device: its tags and what they are now."""

    name: str | None
    tags: dict[str, Tag]
    aliases: dict[str, int]
    values: dict[str, tuple[Value, int]] = field(default_factory=dict)
    here: bool = True


class EdgeNode:
    """One edge node and its devices. `host` is the primary host that it waits for, if any."""

    def __init__(
        self,
        *,
        group: str,
        node: str,
        tags: Sequence[Tag],
        devices: Mapping[str, Sequence[Tag]],
        host: str | None = None,
    ) -> None:
        for name in (group, node, *devices):
            if not name or any(letter in name for letter in "/+#"):
                raise ValueError(f"{name!r} is no Sparkplug name: leave '/', '+' and '#' out")
        self._group = group
        self._node = node
        self._host = host
        alias = 0
        self._entities: dict[str | None, _Entity] = {}
        self._by_alias: dict[int, tuple[str | None, str]] = {}
        for entity, own in ((None, tags), *devices.items()):
            aliases = {}
            for tag in own:
                aliases[tag.name] = alias
                self._by_alias[alias] = (entity, tag.name)
                alias += 1
            self._entities[entity] = _Entity(entity, {tag.name: tag for tag in own}, aliases)
        self._stage = _Stage.OUT
        self._bd_seq = 0
        self._seq = 0
        self._host_at_ms: int | None = None
        self._host_online = False
        self._born_at_ms: int | None = None
        self._owed = False

    @property
    def ready(self) -> bool:
        """Whether data may be sent: births are out, and none is owed."""
        return self._stage is _Stage.BORN and not self._owed

    # -- the session ----------------------------------------------------------------------

    def connect(self, bd_seq: int, *, now_ms: int) -> Publication:
        """Begin a session and return its will; `bd_seq` is one more than the last session's."""
        self._stage, self._bd_seq, self._owed = _Stage.OUT, bd_seq, False
        self._host_online, self._host_at_ms = False, None
        return self._death(now_ms)

    def connected(self) -> tuple[str, ...]:
        """Return what to subscribe to, at QoS 1."""
        self._stage = _Stage.CONNECTED
        topics = [self._topic("NCMD"), f"{self._topic('DCMD')}/+"]
        if self._host is not None:
            topics.append(f"{NAMESPACE}/STATE/{self._host}")
        return tuple(topics)

    def granted(self, *, now_ms: int) -> list[Outcome]:
        """The subscriptions stand: births follow, unless the primary host is waited for."""
        self._stage = _Stage.WAITING
        if self._host is None or self._host_online:
            return self._births(now_ms)
        return []

    def lost(self) -> None:
        """The connection is gone; the broker publishes the will."""
        self._stage = _Stage.OUT

    def leave(self, *, now_ms: int) -> list[Publication]:
        """Return what to send before a disconnect on purpose."""
        told = self._stage is _Stage.BORN
        self._stage = _Stage.OUT
        return [self._death(now_ms)] if told else []

    def tick(self, *, now_ms: int) -> list[Outcome]:
        """Pay a rebirth that was owed."""
        if self._owed and self._stage is _Stage.BORN and self._may_rebirth(now_ms):
            return self._births(now_ms)
        return []

    # -- what comes in --------------------------------------------------------------------

    def took(self, topic: str, payload: bytes, *, retained: bool, now_ms: int) -> list[Outcome]:
        """Weigh a message from outside; nothing that comes in raises."""
        if self._host is not None and topic == f"{NAMESPACE}/STATE/{self._host}":
            return self._took_state(topic, payload, now_ms)
        entity = self._addressee(topic)
        if entity is None:
            return [Refusal(topic=topic, why="it is for somebody else")]
        if retained:
            return [Refusal(topic=topic, why="a retained command is an old one")]
        try:
            commands = decode(payload)
        except ValueError as error:
            return [Refusal(topic=topic, why=f"no Sparkplug payload: {error}")]
        outcomes: list[Outcome] = []
        for metric in commands.metrics:
            outcomes += self._took_metric(topic, entity, metric, now_ms)
        return outcomes

    def _took_metric(
        self, topic: str, entity: _Entity, metric: Metric | BadMetric, now_ms: int
    ) -> list[Outcome]:
        if entity.name is None and isinstance(metric, Metric) and metric.name == REBIRTH:
            if metric.value is not True:
                return [Refusal(topic=topic, why=f"{REBIRTH} means something only when true")]
            return self._rebirth(now_ms)
        try:
            return [self._write(entity, metric)]
        except ValueError as error:
            who = metric.alias if metric.name is None else metric.name
            return [Refusal(topic=topic, why=f"metric {who!r:.80}: {error}")]

    def _write(self, entity: _Entity, metric: Metric | BadMetric) -> Write:
        """Return what a host wants written, or raise `ValueError` saying why it is not."""
        if isinstance(metric, BadMetric):
            raise ValueError(metric.problem)  # noqa: TRY004  # a wrong value from outside
        name = metric.name
        if name is None and metric.alias is not None:
            whose, known = self._by_alias.get(metric.alias, (entity.name, None))
            name = known if whose == entity.name else None
        tag = None if name is None else entity.tags.get(name)
        if tag is None:
            raise ValueError("unknown")
        if not tag.writable:
            raise ValueError("it cannot be written")
        value = typed(metric.value, tag.type)
        if value is None:
            raise ValueError("null is no command")
        return Write(device=entity.name, name=tag.name, value=value)

    def _took_state(self, topic: str, payload: bytes, now_ms: int) -> list[Outcome]:
        if not payload:  # A retained STATE was cleared: nothing is known, nothing changes.
            return []
        state = _read_state(payload)
        if state is None:
            return [Refusal(topic=topic, why="no STATE of Sparkplug 3")]
        online, at_ms = state
        if self._host_at_ms is not None and at_ms < self._host_at_ms:
            return [Refusal(topic=topic, why="an older STATE than the last one")]
        self._host_at_ms, self._host_online = at_ms, online
        if online and self._stage is _Stage.WAITING:
            return self._births(now_ms)
        if not online and self._stage is _Stage.BORN:
            return [*self.leave(now_ms=now_ms), Leave()]
        return []

    def _rebirth(self, now_ms: int) -> list[Outcome]:
        if self._stage is not _Stage.BORN:
            return []
        if not self._may_rebirth(now_ms):
            self._owed = True
            return []
        return self._births(now_ms)

    def _may_rebirth(self, now_ms: int) -> bool:
        # A wall clock that was set back must not put a rebirth off.
        since = None if self._born_at_ms is None else now_ms - self._born_at_ms
        return since is None or since < 0 or since >= REBIRTH_EVERY_MS

    # -- what goes out --------------------------------------------------------------------

    def report(
        self,
        device: str | None,
        values: Mapping[str, Value],
        *,
        at_ms: int,
        now_ms: int,
        historical: bool = False,
    ) -> list[Publication]:
        """Note values and return the data message that tells what changed.

        Before the births nothing is sent: they will tell. Historical values are sent whether
        they changed or not, and are not what is now.
        """
        entity = self._entities[device]
        metrics = []
        for name, value in values.items():
            tag = entity.tags[name]
            if not historical:
                known = entity.values.get(name)
                entity.values[name] = (value, at_ms)
                if known is not None and known[0] == value:
                    continue
            metrics.append(
                Metric(
                    alias=entity.aliases[name],
                    at_ms=at_ms,
                    type=tag.type,
                    value=value,
                    historical=historical,
                )
            )
        if not metrics or not self.ready or not entity.here:
            return []
        kind = "NDATA" if device is None else "DDATA"
        return [self._numbered(self._topic(kind, device), metrics, now_ms=now_ms, types=False)]

    def device_lost(self, device: str, *, now_ms: int) -> list[Publication]:
        """A device cannot be reached: its death, once."""
        entity = self._entities[device]
        was, entity.here = entity.here, False
        if not was or not self.ready:
            return []
        return [self._numbered(self._topic("DDEATH", device), [], now_ms=now_ms)]

    def device_back(self, device: str, *, now_ms: int) -> list[Publication]:
        """A device can be reached again: its birth, once."""
        entity = self._entities[device]
        was, entity.here = entity.here, True
        if was or not self.ready:
            return []
        return [self._birth(entity, now_ms)]

    def _births(self, now_ms: int) -> list[Outcome]:
        self._stage, self._owed, self._born_at_ms = _Stage.BORN, False, now_ms
        self._seq = 0
        return [self._birth(entity, now_ms) for entity in self._entities.values() if entity.here]

    def _birth(self, entity: _Entity, now_ms: int) -> Publication:
        metrics = []
        if entity.name is None:
            metrics = [
                Metric(name=BD_SEQ, at_ms=now_ms, type=DataType.INT64, value=self._bd_seq),
                Metric(name=REBIRTH, at_ms=now_ms, type=DataType.BOOLEAN, value=False),
            ]
        for name, tag in entity.tags.items():
            value, at_ms = entity.values.get(name, (None, now_ms))
            metrics.append(
                Metric(
                    name=name,
                    alias=entity.aliases[name],
                    at_ms=at_ms,
                    type=tag.type,
                    value=value,
                    labels=tag.labels,
                )
            )
        kind = "NBIRTH" if entity.name is None else "DBIRTH"
        return self._numbered(self._topic(kind, entity.name), metrics, now_ms=now_ms)

    def _numbered(
        self, topic: str, metrics: Sequence[Metric], *, now_ms: int, types: bool = True
    ) -> Publication:
        payload = encode(metrics, at_ms=now_ms, seq=self._seq, types=types)
        self._seq = (self._seq + 1) % NUMBERS
        return Publication(topic=topic, payload=payload)

    def _death(self, now_ms: int) -> Publication:
        number = Metric(name=BD_SEQ, at_ms=now_ms, type=DataType.INT64, value=self._bd_seq)
        return Publication(
            topic=self._topic("NDEATH"),
            payload=encode([number], at_ms=now_ms, seq=None),
            qos=1,
        )

    def _topic(self, kind: str, device: str | None = None) -> str:
        topic = f"{NAMESPACE}/{self._group}/{kind}/{self._node}"
        return topic if device is None else f"{topic}/{device}"

    def _addressee(self, topic: str) -> _Entity | None:
        if topic == self._topic("NCMD"):
            return self._entities[None]
        stem, _, device = topic.rpartition("/")
        return self._entities.get(device) if stem == self._topic("DCMD") else None


def _read_state(payload: bytes) -> tuple[bool, int] | None:
    """Read a host's STATE as (online, timestamp); keys of later versions are left alone."""
    if len(payload) > STATE_BYTES_MAX:
        return None
    try:
        state = json.loads(payload)
    except (ValueError, RecursionError):
        return None
    if not isinstance(state, dict):
        return None
    online, at_ms = state.get("online"), state.get("timestamp")
    if not isinstance(online, bool) or not isinstance(at_ms, int) or isinstance(at_ms, bool):
        return None
    return online, at_ms
