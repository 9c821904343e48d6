"""The AsyncAPI 3 file of a node's topics, made of the types that read and write them. Pure.

`python -m qcnode.lines.asyncapi > docs/asyncapi.yaml` writes it anew; a test says when it
no longer is what the types say.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import msgspec

from qcnode.lines import messages
from qcnode.lines.announcer import DAY_S, HEARTBEAT_LIFE_S
from qcnode.lines.messages import COMMAND_LIFE_MAX_S, COMMANDS

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT: Final = "{prefix}/{site}/{area}/{line}/{node}"
LEVELS: Final = {
    "prefix": "mqtt.prefix, qc/v1 unless said otherwise",
    "site": "node.site",
    "area": "node.area",
    "line": "node.line",
    "node": "node.name, which is the user name and the client id too",
}
SCHEMA: Final = "#/components/schemas/{name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Channel:
    """One topic; `sent` is by the node, otherwise it listens there."""

    name: str
    topic: str
    message: type[msgspec.Struct]
    qos: int
    retain: bool
    life_s: int | None
    sent: bool = True


def _channels() -> Iterator[_Channel]:
    def out(
        name: str,
        topic: str,
        message: type[msgspec.Struct],
        life_s: int | None = None,
        *,
        qos: int = 1,
        retain: bool = False,
    ) -> _Channel:
        return _Channel(
            name=name, topic=topic, message=message, qos=qos, retain=retain, life_s=life_s
        )

    yield out("state", "state", messages.State, retain=True)
    yield out("heartbeat", "hb", messages.Heartbeat, HEARTBEAT_LIFE_S, qos=0)
    yield out("verdict", "ev/verdict", messages.VerdictEvent, DAY_S)
    yield out("escalation", "ev/escalation", messages.EscalationEvent, DAY_S)
    yield out("disposition", "ev/disposition", messages.DispositionEvent, 7 * DAY_S)
    yield out("alarm", "ev/alarm", messages.Alarm, 7 * DAY_S)
    yield out("alarms", "alarms", messages.Alarms, retain=True)
    yield out("total", "meter/total", messages.Totals, retain=True)
    for name, (kind, _roles) in COMMANDS.items():
        yield _Channel(
            name=name,
            topic=f"cmd/{name}",
            message=kind,
            qos=1,
            retain=False,
            life_s=COMMAND_LIFE_MAX_S,
            sent=False,
        )
        yield out(f"{name}Reply", f"cmd/{name}/reply", messages.Reply)


def document() -> dict[str, Any]:
    """Return the whole file as plain values."""
    channels = list(_channels())
    kinds = list({channel.message: None for channel in channels})
    _refs, schemas = msgspec.json.schema_components(kinds, ref_template=SCHEMA)
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "qcnode at the broker",
            "version": "1",
            "description": (
                "What a node says and hears over MQTT. MQTT 5; events may come more than once and"
                " are known by their id. Ledger batches (meter/usage) and their receipts are"
                " CloudEvents between node and billing server, and not described here."
            ),
        },
        "defaultContentType": "application/json",
        "channels": {channel.name: _channel(channel) for channel in channels},
        "operations": {
            channel.name: _operation(channel)
            for channel in channels
            if not channel.name.endswith("Reply")
        },
        "components": {
            "messages": {
                kind.__name__: {"payload": {"$ref": SCHEMA.format(name=kind.__name__)}}
                for kind in kinds
            },
            "schemas": {name: schemas[name] for name in sorted(schemas)},
        },
    }


def _channel(channel: _Channel) -> dict[str, Any]:
    kind = channel.message.__name__
    return {
        "address": f"{ROOT}/{channel.topic}",
        "messages": {kind: {"$ref": f"#/components/messages/{kind}"}},
        "parameters": {name: {"description": words} for name, words in LEVELS.items()},
    }


def _operation(channel: _Channel) -> dict[str, Any]:
    binding: dict[str, Any] = {"qos": channel.qos, "retain": channel.retain}
    if channel.life_s is not None:
        binding["messageExpiryInterval"] = channel.life_s
    said: dict[str, Any] = {
        "action": "send" if channel.sent else "receive",
        "channel": {"$ref": f"#/channels/{channel.name}"},
        "summary": (channel.message.__doc__ or "").split("\n")[0],
        "bindings": {"mqtt": binding},
    }
    if not channel.sent:
        roles = ", ".join(COMMANDS[channel.name][1])
        said["description"] = f"Roles that may: {roles}. A retained one is refused."
        said["reply"] = {"channel": {"$ref": f"#/channels/{channel.name}Reply"}}
    return said


def to_yaml(value: Any, indent: int = 0) -> str:
    """Write plain values as YAML; strings always in quotes, so none is read as something else."""
    pad = "  " * indent
    if isinstance(value, dict) and value:
        lines = []
        for key, item in value.items():
            name = key if key.isidentifier() else json.dumps(key)
            lines.append(f"{pad}{name}:{_item(item, indent)}")
        return "\n".join(lines)
    if isinstance(value, list | tuple) and value:
        return "\n".join(f"{pad}-{_item(item, indent)}" for item in value)
    return pad + json.dumps(value, ensure_ascii=False)


def _item(item: Any, indent: int) -> str:
    if isinstance(item, dict | list | tuple) and item:
        return "\n" + to_yaml(item, indent + 1)
    return " " + json.dumps(item, ensure_ascii=False)


def text() -> str:
    """Return the file as it stands in docs/."""
    head = "# Made by `python -m qcnode.lines.asyncapi`; not to be changed by hand.\n"
    return head + to_yaml(document()) + "\n"


if __name__ == "__main__":
    sys.stdout.write(text())
