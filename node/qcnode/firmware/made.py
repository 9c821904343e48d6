"""The device configurations that are made of something else, so that they cannot go stale.

`python -m qcnode.firmware.made` in the root of the checkout writes them anew: the registers
of a PLC, the tags of Ignition and the flow of Node-RED from the names the node really uses,
the broker's files from `deploy/mosquitto`. It then writes the digest of every file into
`manifest.yaml`; a test says when one of them no longer holds. `version` is a person's to raise.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from qcnode.firmware.manifest import MANIFEST, read_manifest
from qcnode.lines import asyncapi, registers, tags
from qcnode.lines.edge import REBIRTH, Tag
from qcnode.lines.sparkplug import DataType
from qcnode.lines.topics import NodeTopics

if TYPE_CHECKING:
    from collections.abc import Sequence

CONFIGS: Final = "firmware_configs"
BROKER: Final = "deploy/mosquitto"
_REGISTERS: Final = "node/qcnode/lines/registers.yaml"
PATHS: Final = {
    **{
        f"plc/{name}": _REGISTERS
        for name in ("modbus.csv", "GVL_QC.st", "s7_db.scl", "logix_tags.csv")
    },
    "scada/ignition-tags.json": "node/qcnode/lines/tags.py",
    "scada/node-red-flow.json": "node/qcnode/lines/asyncapi.py",
    "brokers/mosquitto/mosquitto.conf": f"{BROKER}/mosquitto.conf",
    "brokers/mosquitto/acl": f"{BROKER}/acl",
    "brokers/mosquitto/tls.conf": f"{BROKER}/listeners/tls.conf",
}
"""Each of them, and what it is made of."""

ROOT: Final = "@{prefix}/@{site}/@{area}/@{line}/@{node}"


def texts(checkout: Path) -> dict[str, str]:
    """Return every one by its path in the folder; raises `OSError` where a source is missing."""
    plc = registers.rendered(registers.shipped())
    return {
        **{path.removeprefix(f"{CONFIGS}/"): text for path, text in plc.items()},
        "scada/ignition-tags.json": _json(ignition()),
        "scada/node-red-flow.json": _json(node_red()),
        "brokers/mosquitto/mosquitto.conf": _broker(checkout / BROKER / "mosquitto.conf"),
        "brokers/mosquitto/acl": _broker(checkout / BROKER / "acl") + _DEVICES,
        "brokers/mosquitto/tls.conf": _broker(checkout / BROKER / "listeners" / "tls.conf"),
    }


def _json(value: Any) -> str:
    return json.dumps(value, indent=2) + "\n"


# -- Ignition -------------------------------------------------------------------------------

IGNITION_TYPES: Final = {
    DataType.BOOLEAN: "Boolean",
    DataType.STRING: "String",
    DataType.INT32: "Int4",
    DataType.INT64: "Int8",
    DataType.FLOAT: "Float4",
    DataType.DOUBLE: "Float8",
    DataType.DATETIME: "DateTime",
}
EDGE_NODE: Final = "[MQTT Engine]Edge Nodes/@{site}:@{area}/@{edge_node}"


def ignition() -> dict[str, Any]:
    """Return the node's tags as references to what MQTT Engine shows of them."""
    rebirth = Tag(name=REBIRTH, type=DataType.BOOLEAN, writable=True)
    found = _folder("@{node}", EDGE_NODE, (*tags.NODE_TAGS, rebirth))
    found["tags"].append(_folder(tags.CAMERA, f"{EDGE_NODE}/{tags.CAMERA}", tags.CAMERA_TAGS))
    return found


def _folder(name: str, source: str, which: Sequence[Tag]) -> dict[str, Any]:
    groups: dict[str, list[dict[str, Any]]] = {}
    for tag in which:
        group, _, leaf = tag.name.rpartition("/")
        groups.setdefault(group, []).append(_reference(leaf, f"{source}/{tag.name}", tag.type))
    folders = [
        {"name": group, "tagType": "Folder", "tags": leaves} for group, leaves in groups.items()
    ]
    return {"name": name, "tagType": "Folder", "tags": folders}


def _reference(name: str, source: str, type_: DataType) -> dict[str, Any]:
    return {
        "name": name,
        "tagType": "AtomicTag",
        "valueSource": "reference",
        "dataType": IGNITION_TYPES[type_],
        "sourceTagPath": source,
    }


# -- Node-RED -------------------------------------------------------------------------------

_STEP: Final = 60
PING: Final = """const now = Math.floor(Date.now() / 1000);
msg.payload = {id: 'node-red-' + Date.now(), iat: now, exp: now + 20,
    actor: 'node-red', role: 'viewer'};
return msg;"""


def node_red() -> list[dict[str, Any]]:
    """Return a flow that hears all a node says, and pings it."""
    heard = [
        (channel, f"{ROOT}/{topic}") for channel, topic in _spoken() if "/cmd/" not in f"/{topic}"
    ]
    flow: list[dict[str, Any]] = [
        {"id": "qc-tab", "type": "tab", "label": "qcnode @{node}", "disabled": False},
        {
            "id": "qc-tls",
            "type": "tls-config",
            "name": "qcnode",
            "ca": "@{node_red_certs}/ca.crt",
            "cert": "@{node_red_certs}/scada.crt",
            "key": "@{node_red_certs}/scada.key",
            "servername": "",
            "verifyservercert": True,
        },
        {
            "id": "qc-broker",
            "type": "mqtt-broker",
            "name": "qcnode",
            "broker": "@{broker_host}",
            "port": "@{broker_port}",
            "tls": "qc-tls",
            "usetls": True,
            "clientid": "scada",
            "protocolVersion": "5",
            "keepalive": "30",
            "cleansession": True,
            "autoUnsubscribe": True,
        },
    ]
    for row, (name, topic) in enumerate(heard):
        flow += [
            _in(name, topic, row),
            _debug(name, row),
        ]
    row = len(heard)
    flow += [
        {
            "id": "qc-ask",
            "type": "inject",
            "z": "qc-tab",
            "name": "ping",
            "props": [{"p": "payload"}],
            "payloadType": "date",
            "x": 120,
            "y": _STEP * (row + 1),
            "wires": [["qc-ping"]],
        },
        {
            "id": "qc-ping",
            "type": "function",
            "z": "qc-tab",
            "name": "a command, 20 s long",
            "func": PING,
            "outputs": 1,
            "x": 320,
            "y": _STEP * (row + 1),
            "wires": [["qc-out"]],
        },
        {
            "id": "qc-out",
            "type": "mqtt out",
            "z": "qc-tab",
            "name": "ping",
            "topic": f"{ROOT}/cmd/ping",
            "qos": "1",
            "retain": "false",
            "broker": "qc-broker",
            "x": 520,
            "y": _STEP * (row + 1),
            "wires": [],
        },
        _in("reply", f"{ROOT}/cmd/ping/reply", row + 1),
        _debug("reply", row + 1),
    ]
    return flow


def _in(name: str, topic: str, row: int) -> dict[str, Any]:
    return {
        "id": f"qc-in-{name}",
        "type": "mqtt in",
        "z": "qc-tab",
        "name": name,
        "topic": topic,
        "qos": "1",
        "datatype": "json",
        "broker": "qc-broker",
        "nl": False,
        "rap": True,
        "rh": 0,
        "inputs": 0,
        "x": 120,
        "y": _STEP * (row + 1),
        "wires": [[f"qc-see-{name}"]],
    }


def _debug(name: str, row: int) -> dict[str, Any]:
    return {
        "id": f"qc-see-{name}",
        "type": "debug",
        "z": "qc-tab",
        "name": name,
        "active": name != "heartbeat",
        "tosidebar": True,
        "complete": "payload",
        "targetType": "msg",
        "x": 360,
        "y": _STEP * (row + 1),
        "wires": [],
    }


def _spoken() -> list[tuple[str, str]]:
    """Return what a node says by the AsyncAPI file's own names, and the topic below its root."""
    document = asyncapi.document()
    return [
        (name, str(document["channels"][name]["address"]).removeprefix(f"{asyncapi.ROOT}/"))
        for name, operation in document["operations"].items()
        if operation["action"] == "send"
    ]


# -- Mosquitto ------------------------------------------------------------------------------


_PREFIX: Final = NodeTopics(site="s", area="a", line="l", node="n").prefix


def _broker(source: Path) -> str:
    text = source.read_text("utf-8")
    head = f"# Made of {BROKER}; not to be changed by hand.\n"
    for before, after in (
        ("/etc/mosquitto/qcnode", "@{broker_dir}"),
        ("/var/lib/mosquitto/", "@{broker_data}/"),
        ("listener 8883", "listener @{broker_port}"),
        (f"{_PREFIX}/", "@{prefix}/"),
    ):
        text = text.replace(before, after)
    return head + text


_HEARD: Final = ("hb", "state", "ev/verdict")
_DEVICES: Final = (
    "\n# ---- Devices at the line write below their own name and hear their node.\n"
    + "".join(
        f"user @{{{device}}}\ntopic readwrite {ROOT}/dev/@{{{device}}}/#\n"
        + "".join(f"topic read {ROOT}/{topic}\n" for topic in _HEARD)
        for device in ("gate_device", "trigger_device", "light_device")
    )
)


def with_digests(folder: Path, text: str) -> str:
    """Return the manifest's text with the digest of every file as it is now."""
    for artefact in read_manifest(folder).artefacts:
        digest = hashlib.sha256((folder / artefact.path).read_bytes()).hexdigest()
        entry = re.compile(rf"(- id: {artefact.id}\n(?:    .*\n)*?    sha256: \")[0-9a-f]{{64}}\"")
        text = entry.sub(rf'\g<1>{digest}"', text)
    return text


def main() -> None:
    """Write every made file of the checkout this is run in, and the digests."""
    registers.main()
    folder = Path(CONFIGS)
    for path, text in texts(Path()).items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text, "utf-8")
    manifest = folder / MANIFEST
    manifest.write_text(with_digests(folder, manifest.read_text("utf-8")), "utf-8")


if __name__ == "__main__":
    main()
