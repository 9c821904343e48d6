"""The running node tells the line's story over real brokers, also when it or they are killed."""

import json
import sqlite3
import time

import pytest
from pymodbus.client import ModbusTcpClient

from qcnode.lines.sparkplug import decode
from tests.lines.test_announcer import Watcher
from tests.node.test_service import Service, clean_environ

pytestmark = pytest.mark.mosquitto
WAIT_S = 60
PARTS = 100
ROOT = "qc/v1/site/area/line1/node1"


def until(holds, why):
    deadline = time.monotonic() + WAIT_S
    while not holds():
        assert time.monotonic() < deadline, why()
        time.sleep(0.05)


@pytest.fixture
def serve(tmp_path, doubtful_model, free_port, mosquitto):
    """Start the service with everything it can tell over one broker."""
    started, port, plc_port = [], free_port(), free_port()
    config = tmp_path / "node.toml"
    config.write_text(
        f"""
[node]
home = "home"
[model]
dir = "{doubtful_model}"
[panel]
port = {port}
[line]
period_ms = 40.0
gate_mm = 400.0
parts = {PARTS}
[mqtt]
port = {mosquitto.port}
events = true
commands = true
actors = {{ anna = ["operator"] }}
[sparkplug]
enabled = true
[modbus]
enabled = true
port = {plc_port}
"""
    )

    def serve():
        started.append(Service(config, port, log=tmp_path / "node.log", environ=clean_environ()))
        return started[-1]

    serve.plc_port = plc_port
    yield serve
    for service in started:
        service.kill()


def outcomes(home):
    with sqlite3.connect(home / "journal.db") as db:
        rows = db.execute("SELECT id FROM record WHERE kind IN ('inspection', 'fault')")
        return {row[0] for row in rows}


def parts_sent(home):
    """Return how many parts have been before the camera, by the line's own record."""
    return (home / "world.log").read_text().count("trigger ")


def test_every_part_of_the_line_is_told_through_kills_of_node_and_broker(
    serve, mosquitto, tmp_path
):
    watcher = Watcher(mosquitto.port, f"{ROOT}/#", "spBv1.0/#")
    verdicts, home = f"{ROOT}/ev/verdict", tmp_path / "home"

    def told():
        return {event["id"] for event in watcher.on(verdicts)}

    try:
        service = serve()
        service.until_ready()
        until(lambda: len(watcher.on(verdicts)) > 30, service.logs)
        service.kill()
        before = parts_sent(home)
        service = serve()
        service.until_ready()
        until(lambda: len(watcher.on(verdicts)) > 60, service.logs)
        mosquitto.kill()
        time.sleep(1.0)  # parts that come while nobody can be told
        mosquitto.start(empty=True)
        until(lambda: service.metric("qcnode_parts_total") is not None, service.logs)
        until(lambda: parts_sent(home) == before + PARTS, service.logs)
        until(lambda: told() == outcomes(home), service.logs)
        rule_on_one(watcher, service)
        shown = read_as_plc(serve.plc_port)
        assert service.stop() == 0
        until(lambda: not watcher.on(f"{ROOT}/state")[-1]["online"], service.logs)
    finally:
        watcher.close()

    assert len(told()) == before + PARTS
    assert shown["ResultsBufferOverrun"]  # no PLC has taken any
    assert shown["PartSeq"] >= before  # and the first of this run's is still shown
    assert watcher.on(f"{ROOT}/meter/total")[-1]["last_seq"] >= 0
    births = [m for m in watcher.heard if m.topic == "spBv1.0/site:area/NBIRTH/node1"]
    assert births
    assert all(decode(birth.payload).good for birth in births)
    assert any("/DDATA/" in message.topic for message in watcher.heard)


def read_as_plc(port):
    """Return the node's registers as a PLC reads them."""
    with ModbusTcpClient("127.0.0.1", port=port) as client:
        answer = client.read_holding_registers(100, count=13)
    low, high = answer.registers[7], answer.registers[6]
    return {"ResultsBufferOverrun": bool(answer.registers[0] & 16), "PartSeq": high << 16 | low}


def rule_on_one(watcher, service):
    """Settle a part by a command, as a SCADA system would."""
    opened = watcher.on(f"{ROOT}/ev/escalation")[-1]
    begun = int(time.time())
    said = {
        "id": "rule-1",
        "iat": begun,
        "exp": begun + 20,
        "actor": "anna",
        "role": "operator",
        "escalation_id": opened["id"],
        "finding": "defective",
    }
    watcher.send("rule", json.dumps(said).encode(), root=ROOT)
    until(lambda: watcher.on(f"{ROOT}/cmd/rule/reply"), service.logs)
    assert watcher.on(f"{ROOT}/cmd/rule/reply")[0]["status"] == "applied"
    until(
        lambda: any(
            event["escalation_id"] == opened["id"] and event["who"] == "anna@mqtt"
            for event in watcher.on(f"{ROOT}/ev/disposition")
        ),
        service.logs,
    )
