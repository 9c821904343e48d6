"""What Ignition and Node-RED import is what a running node says, name by name.

The files are filled in for the node that runs here, behind a real broker; every topic the
flow listens to must be heard, and every tag the import refers to must be in a birth
certificate with its type.
"""

import json
import socket
import time

import pytest

from qcnode.firmware.made import IGNITION_TYPES
from qcnode.firmware.manifest import read_manifest
from qcnode.firmware.render import render
from qcnode.lines.sparkplug import decode
from tests.lines.test_announcer import Watcher
from tests.node.test_service import Service, clean_environ

pytestmark = pytest.mark.mosquitto
WAIT_S = 60
SITE = {"site": "plant", "area": "hall", "line": "line9", "node": "qc9", "edge_node": "qc9-spb"}
ROOT = "qc/v1/plant/hall/line9/qc9"


@pytest.fixture
def imported(repository):
    """Return an import file as a person's tool gets it."""
    folder = repository / "firmware_configs"
    manifest = read_manifest(folder)
    values = {**manifest.defaults(), **SITE}
    return lambda name: json.loads(render(folder, manifest, manifest[name], values).main)


@pytest.fixture
def service(tmp_path, doubtful_model, free_port, mosquitto):
    port = free_port()
    # Somebody else has the PLC's port, which is an alarm.
    taken = socket.create_server(("127.0.0.1", 0))
    config = tmp_path / "node.toml"
    config.write_text(
        f"""
[node]
name = "qc9"
site = "plant"
area = "hall"
line = "line9"
home = "home"
[model]
dir = "{doubtful_model}"
[panel]
port = {port}
[line]
period_ms = 40.0
gate_mm = 400.0
[mqtt]
port = {mosquitto.port}
events = true
commands = true
[sparkplug]
enabled = true
username = "qc9-spb"
[modbus]
enabled = true
port = {taken.getsockname()[1]}
"""
    )
    service = Service(config, port, log=tmp_path / "node.log", environ=clean_environ())
    yield service
    service.kill()
    taken.close()


def until(holds, why):
    deadline = time.monotonic() + WAIT_S
    while not holds():
        assert time.monotonic() < deadline, why()
        time.sleep(0.05)


def references(tag, found=None):
    """Return every tag of an import by the path it refers to."""
    found = {} if found is None else found
    if tag["tagType"] == "Folder":
        names = [one["name"] for one in tag["tags"]]
        assert len(set(names)) == len(names), f"{tag['name']}: two of one name"
        for one in tag["tags"]:
            references(one, found)
    else:
        assert tag["valueSource"] == "reference"
        found[tag["sourceTagPath"]] = tag["dataType"]
    return found


def born(watcher):
    """Return every tag of the births, by the path under which MQTT Engine shows it."""
    found = {}
    for message in list(watcher.heard):
        if "BIRTH" in message.topic:
            group, _kind, *who = message.topic.split("/")[1:]
            for metric in decode(message.payload).good:
                path = "/".join(["[MQTT Engine]Edge Nodes", group, *who, metric.name])
                found[path] = IGNITION_TYPES[metric.type]
    return found


def test_everything_that_is_imported_is_said_by_a_running_node(service, imported, mosquitto):
    flow = imported("scada-node-red")
    listens = {node["topic"] for node in flow if node["type"] == "mqtt in"}
    asks = next(node["topic"] for node in flow if node["type"] == "mqtt out")
    tags = references(imported("scada-ignition"))
    watcher = Watcher(mosquitto.port, f"{ROOT}/#", "spBv1.0/#")

    def heard():
        return {message.topic for message in list(watcher.heard)}

    try:
        service.until_ready()
        until(lambda: watcher.on(f"{ROOT}/ev/escalation"), service.logs)
        now = int(time.time())
        who = {"iat": now, "exp": now + 20, "actor": "node-red"}
        # As the flow's own function writes it, and a ruling, so that there is a disposition.
        watcher.send("ping", json.dumps({"id": "p1", "role": "viewer", **who}).encode(), root=ROOT)
        opened = watcher.on(f"{ROOT}/ev/escalation")[-1]["id"]
        ruling = {"id": "r1", "role": "operator", "escalation_id": opened, "finding": "good"}
        watcher.send("rule", json.dumps({**ruling, **who}).encode(), root=ROOT)
        until(lambda: listens <= heard(), lambda: f"never heard: {listens - heard()}")
        until(lambda: set(tags) <= set(born(watcher)), lambda: set(tags) - set(born(watcher)))
    finally:
        watcher.close()

    assert asks == f"{ROOT}/cmd/ping"
    assert watcher.on(f"{ROOT}/cmd/ping/reply")[-1]["status"] == "applied"
    assert tags == {path: born(watcher)[path] for path in tags}
    assert len(tags) > 20


def test_the_flow_is_whole(imported):
    flow = imported("scada-node-red")
    by_id = {node["id"]: node for node in flow}

    assert len(by_id) == len(flow)
    for node in flow:
        for port in node.get("wires", ()):
            assert set(port) <= set(by_id)
        if "z" in node:
            assert by_id[node["z"]]["type"] == "tab"
        if node["type"].startswith("mqtt "):
            assert by_id[node["broker"]]["type"] == "mqtt-broker"
    assert by_id[by_id["qc-broker"]["tls"]]["type"] == "tls-config"
    assert not any("credentials" in node or "password" in node for node in flow)
