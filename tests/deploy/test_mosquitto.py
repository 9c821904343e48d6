"""The broker configuration in `deploy/mosquitto`, started and probed as shipped."""

import ssl
import subprocess
import threading
from signal import SIGKILL

import paho.mqtt.client as paho
import pytest

from qcnode.books.outbox import BATCH_BYTES_MAX

pytestmark = pytest.mark.mosquitto

SUCCESS, NO_SUBSCRIBER = 0x00, 0x10
NOT_AUTHORISED, SESSION_TAKEN_OVER, TOO_LARGE = 0x87, 0x8E, 0x95
CUT_OFF = 0x80  # paho's word for a connection that ended without a reason
USAGE = "qc/v1/plant/hall/line-a/node-a/meter/usage"
RECEIPT = "qc/v1/plant/hall/line-a/node-a/meter/ack"


@pytest.fixture
def broker(install_broker):
    broker = install_broker(
        "loopback", **{"node-a": "word-a", "node-b": "word-b", "billing": "word-c"}
    )
    broker.start()
    return broker


@pytest.fixture
def node(broker, talker):
    node = talker("node-a", "word-a")
    assert node.connect(broker.port) == SUCCESS
    return node


@pytest.fixture
def billing(broker, talker):
    billing = talker("billing", "word-c")
    assert billing.connect(broker.port) == SUCCESS
    billing.subscribe("qc/v1/+/+/+/+/meter/usage")
    return billing


@pytest.mark.parametrize(("name", "password"), [("node-a", None), ("node-a", "word-b"), ("x", "x")])
def test_nobody_gets_in_without_the_right_password(broker, talker, name, password):
    assert talker(name, password).connect(broker.port) == NOT_AUTHORISED


def test_an_entry_goes_to_the_billing_server_and_its_receipt_comes_back(node, billing):
    node.subscribe(RECEIPT)

    assert node.publish(USAGE, b"entry 1") == SUCCESS
    assert billing.hear() == (USAGE, b"entry 1")
    assert billing.publish(RECEIPT, b"receipt 1") == SUCCESS
    assert node.hear() == (RECEIPT, b"receipt 1")


def test_the_largest_batch_of_entries_gets_through(node, billing):
    batch = bytes(BATCH_BYTES_MAX)

    assert node.publish(USAGE, batch) == SUCCESS
    assert billing.hear() == (USAGE, batch)


@pytest.mark.parametrize(
    "topic",
    [
        "qc/v1/plant/hall/line-a/node-b/meter/usage",  # another node's bill
        RECEIPT,  # its own receipt
        "qc/v1/plant/hall/line-a/node-a/cmd/mode",  # its own orders
        "somewhere/else",
    ],
)
def test_a_node_is_told_that_it_may_not_publish_there(node, topic):
    assert node.publish(topic) == NOT_AUTHORISED


@pytest.mark.parametrize(
    "topic",
    [
        "state",
        "hb",
        "alarms",
        "ev/verdict",
        "ev/disposition",
        "meter/usage",
        "meter/total",
        "cfg/reported",
        "cmd/mode/reply",
        "dev/gate/state",
    ],
)
def test_a_node_may_say_what_nodes_say(node, topic):
    assert node.publish(f"qc/v1/plant/hall/line-a/node-a/{topic}") in (SUCCESS, NO_SUBSCRIBER)


@pytest.mark.parametrize(
    ("topic", "answer"),
    [
        ("spBv1.0/plant:hall/NBIRTH/node-a", SUCCESS),
        ("spBv1.0/plant:hall/NDEATH/node-a", SUCCESS),
        ("spBv1.0/plant:hall/DDATA/node-a/camera", SUCCESS),
        ("spBv1.0/plant:hall/NBIRTH/node-b", NOT_AUTHORISED),  # another node's birth
        ("spBv1.0/plant:hall/DDEATH/node-b/camera", NOT_AUTHORISED),
        ("spBv1.0/plant:hall/NCMD/node-a", NOT_AUTHORISED),  # its own orders
        ("spBv1.0/STATE/scada", NOT_AUTHORISED),  # the host's word
    ],
)
def test_an_edge_node_speaks_sparkplug_as_itself_alone(node, topic, answer):
    assert node.publish(topic) in ({SUCCESS: (SUCCESS, NO_SUBSCRIBER)}.get(answer, (answer,)))


def test_the_plants_system_gives_commands_and_says_nothing_for_a_node(install_broker, talker):
    broker = install_broker("loopback", **{"node-a": "word-a", "scada": "word-s"})
    broker.start()
    node, scada = talker("node-a", "word-a"), talker("scada", "word-s")
    assert (node.connect(broker.port), scada.connect(broker.port)) == (SUCCESS, SUCCESS)
    command = "qc/v1/plant/hall/line-a/node-a/cmd/rule"
    node.subscribe("qc/v1/plant/hall/line-a/node-a/cmd/+")

    assert scada.publish(command, b"rule") == SUCCESS
    assert node.hear() == (command, b"rule")
    assert scada.publish("spBv1.0/STATE/scada") in (SUCCESS, NO_SUBSCRIBER)
    for forged in (USAGE, RECEIPT, f"{command}/reply", "spBv1.0/plant:hall/NDATA/node-a"):
        assert scada.publish(forged) == NOT_AUTHORISED


def test_the_billing_server_sees_no_verdicts(node, billing):
    billing.subscribe("qc/v1/#")

    node.publish("qc/v1/plant/hall/line-a/node-a/ev/verdict", b"verdict")
    node.publish(USAGE, b"entry")

    assert billing.hear() == (USAGE, b"entry")


def test_a_will_cannot_speak_for_another_node(broker, node, talker):
    node.subscribe("qc/v1/plant/hall/line-a/node-a/dev/#")
    thief = talker("node-b", "word-b")
    thief.client.will_set("qc/v1/plant/hall/line-a/node-a/dev/gate/state", b"forged", qos=1)
    thief.connect(broker.port)
    thief.client.socket().close()  # no goodbye, so the will is due
    assert talker("node-b", "word-b").connect(broker.port) == SUCCESS

    node.publish("qc/v1/plant/hall/line-a/node-a/dev/gate/state", b"true")

    assert node.hear()[1] == b"true"


def test_a_borrowed_client_id_ends_nobody_elses_session(broker, node, billing, talker):
    thief = talker("node-b", "word-b")
    thief.client._client_id = b"node-a"

    assert thief.connect(broker.port) == SUCCESS

    assert node.publish(USAGE, b"still here") == SUCCESS
    assert billing.hear()[1] == b"still here"
    assert node.gone.empty()


def test_a_message_over_the_size_bound_ends_the_connection(node, billing):
    node.client.publish(USAGE, bytes(1_100_000), qos=1)

    # The broker says why and hangs up; a client that is still writing may only see the latter.
    assert node.gone.get(timeout=20).value in (TOO_LARGE, CUT_OFF)
    assert billing.heard.empty()


def test_what_was_queued_for_an_absent_billing_server_survives_kill_9(broker, node, talker):
    absent = talker("billing", "word-c")
    absent.connect(broker.port, session_s=3600)
    absent.subscribe("qc/v1/+/+/+/+/meter/usage")
    absent.leave()
    entries = [f"entry {seq:04}".encode() for seq in range(1200)]  # over the default limit of 1000
    for entry in entries:
        assert node.publish(USAGE, entry) == SUCCESS
    written_to_disk(broker.database, entries[-1])

    broker.stop(SIGKILL)
    broker.start()

    back = talker("billing", "word-c")
    assert back.connect(broker.port, session_s=3600) == SUCCESS
    assert back.session_present
    assert [back.hear()[1] for _ in entries] == entries


def written_to_disk(database, entry):
    """Wait until the broker has written `entry`, which its PUBACK does not promise."""
    pause = threading.Event()
    for _ in range(400):
        if database.exists() and entry in database.read_bytes():
            return
        pause.wait(0.05)
    pytest.fail(f"{entry!r} was acknowledged but never written to {database}")


@pytest.fixture
def certificates(tmp_path, repository):
    def make(authority, *arguments):
        script = repository / "deploy" / "mosquitto" / "make-certs.sh"
        return subprocess.run(
            [script, tmp_path / authority, *arguments], capture_output=True, text=True, check=False
        )

    return make


@pytest.fixture
def tls_broker(install_broker, certificates):
    broker = install_broker("tls")
    for authority in ("etc/certs", "other"):
        certificates(authority, "ca")
        certificates(authority, "server", "localhost", "127.0.0.1")
        certificates(authority, "client", "node-a")
        certificates(authority, "client", "node-b")
    broker.start()
    return broker


def with_certificate(talker, folder, name="node-a", authority=None):
    context = ssl.create_default_context(cafile=(authority or folder) / "ca.crt")
    context.verify_flags |= ssl.VERIFY_X509_STRICT  # the default from Python 3.13 on
    if name:
        context.load_cert_chain(folder / f"{name}.crt", folder / f"{name}.key")
    one = talker("whatever")
    one.client.tls_set_context(context)
    return one


def test_the_name_in_the_certificate_is_who_a_node_is(tls_broker, talker):
    node = with_certificate(talker, tls_broker.home / "etc" / "certs")

    assert node.connect(tls_broker.port) == SUCCESS
    assert node.publish(USAGE) in (SUCCESS, NO_SUBSCRIBER)
    assert node.publish(USAGE.replace("node-a", "node-b")) == NOT_AUTHORISED

    same_client_id = with_certificate(talker, tls_broker.home / "etc" / "certs", name="node-b")
    assert same_client_id.connect(tls_broker.port) == SUCCESS
    assert node.publish(USAGE) in (SUCCESS, NO_SUBSCRIBER)
    assert node.gone.empty()


def test_without_a_certificate_of_our_authority_nobody_is_heard(tls_broker, talker):
    ours, other = tls_broker.home / "etc" / "certs", tls_broker.home / "other"
    stranger = with_certificate(talker, other, authority=ours)
    nameless = with_certificate(talker, ours, name=None)
    for one in (stranger, nameless):
        connected = threading.Event()
        one.client.on_connect = lambda *_, connected=connected: connected.set()
        one.client.on_disconnect = lambda *_, one=one: one.gone.put(None)
        try:
            one.client.connect("127.0.0.1", tls_broker.port)
        except (ssl.SSLError, ConnectionError):
            continue
        while one.client.loop(timeout=1.0) == paho.MQTT_ERR_SUCCESS:
            assert not connected.is_set()
        assert not connected.is_set()


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("client", "Node A"), "'Node A' is no user name"),
        (("client", "ca"), "'ca' names a file of the authority"),
        (("server", "bad/name"), "'bad/name' is no host name"),
        (("client", "node-a"), "run 'make-certs.sh"),
        (("frobnicate",), "make-certs.sh DIR ca"),
    ],
)
def test_what_cannot_be_certified_is_named_in_one_line(certificates, arguments, complaint):
    done = certificates("certs", *arguments)

    assert done.returncode == 2
    assert complaint in done.stderr


def test_an_authority_is_never_overwritten(certificates):
    assert certificates("certs", "ca").returncode == 0

    again = certificates("certs", "ca")

    assert again.returncode == 2
    assert "move it away first" in again.stderr
