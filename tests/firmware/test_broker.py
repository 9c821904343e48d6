"""Mosquitto started on the rendered files: TLS, certificates, and what each device may do."""

import socket
import ssl
import subprocess

import pytest

from qcnode.firmware.manifest import read_manifest
from qcnode.firmware.render import render
from tests.deploy.conftest import Broker, talker

__all__ = ["talker"]  # a fixture
pytestmark = pytest.mark.mosquitto

SUCCESS, NO_SUBSCRIBER, NOT_AUTHORISED = 0x00, 0x10, 0x87
ROOT = "qc/v1/site/area/line1/node1"


@pytest.fixture
def certs(repository, tmp_path):
    """Certificates of a site, made as the guide says."""
    home = tmp_path / "etc" / "certs"
    make = repository / "deploy" / "mosquitto" / "make-certs.sh"
    for words in (
        ["ca"],
        ["server", "localhost", "127.0.0.1"],
        *(["client", name] for name in ("node1", "node1-gate", "node1-light")),
    ):
        subprocess.run([make, home, *words], check=True, capture_output=True, timeout=60)
    return home


@pytest.fixture
def broker(repository, certs, tmp_path, free_port, program):
    """Mosquitto on what `qcnode firmware render` writes."""
    folder = repository / "firmware_configs"
    manifest = read_manifest(folder)
    etc, port = certs.parent, free_port()
    (tmp_path / "data").mkdir()
    values = {
        **manifest.defaults(),
        "broker_dir": str(etc),
        "broker_data": str(tmp_path / "data"),
        "broker_port": port,
    }
    (etc / "listeners").mkdir()
    for name, file in (
        ("broker-conf", "mosquitto.conf"),
        ("broker-acl", "acl"),
        ("broker-tls", "listeners/tls.conf"),
    ):
        (etc / file).write_bytes(render(folder, manifest, manifest[name], values).main)
    # Started by root the broker becomes the user `mosquitto`, who may not see this folder.
    with (etc / "mosquitto.conf").open("a") as conf:
        conf.write(f"\nuser {tmp_path.owner()}\n")
    broker = Broker(program=program("mosquitto"), home=tmp_path, port=port)
    broker.start()
    yield broker
    broker.stop()


@pytest.fixture
def connect(broker, certs, talker):
    """Somebody with a certificate, on the line."""

    def connect(name):
        who = talker(name)
        who.client.tls_set(
            ca_certs=str(certs / "ca.crt"),
            certfile=str(certs / f"{name}.crt"),
            keyfile=str(certs / f"{name}.key"),
        )
        assert who.connect(broker.port) == SUCCESS
        return who

    return connect


def test_a_gate_hears_its_node_and_says_what_it_runs(connect):
    node, gate = connect("node1"), connect("node1-gate")
    gate.subscribe(f"{ROOT}/ev/verdict")

    assert node.publish(f"{ROOT}/ev/verdict", b"{}") == SUCCESS
    assert gate.hear() == (f"{ROOT}/ev/verdict", b"{}")
    assert gate.publish(f"{ROOT}/dev/node1-gate/config") in (SUCCESS, NO_SUBSCRIBER)


@pytest.mark.parametrize(
    "topic",
    [
        f"{ROOT}/ev/verdict",  # the node's word
        f"{ROOT}/hb",
        f"{ROOT}/dev/node1-light/config",  # another device's
        f"{ROOT}/cmd/rule",
        "qc/v1/site/area/line1/node2/dev/node1-gate/config",
    ],
)
def test_a_gate_cannot_speak_for_another(connect, topic):
    assert connect("node1-gate").publish(topic) == NOT_AUTHORISED


def test_nobody_gets_in_without_a_certificate(broker, certs):
    stranger = ssl.create_default_context(cafile=certs / "ca.crt")
    with (
        socket.create_connection(("127.0.0.1", broker.port), timeout=20) as line,
        pytest.raises(ssl.SSLError, match="certificate required"),
        stranger.wrap_socket(line, server_hostname="localhost") as wrapped,
    ):
        wrapped.recv(1)
