"""The edge node's session, message by message, without a broker."""

import json
import random

import pytest

from qcnode.lines.edge import (
    NUMBERS,
    REBIRTH,
    REBIRTH_EVERY_MS,
    EdgeNode,
    Leave,
    Publication,
    Refusal,
    Tag,
    Write,
)
from qcnode.lines.sparkplug import DataType, Metric, decode, encode
from tests.lines.conformance import Checker, Connected

AT = 1_790_000_000_000
TAGS = [
    Tag(name="Status/Ready", type=DataType.BOOLEAN),
    Tag(name="Node Control/Mode", type=DataType.INT32, writable=True),
]
CAMERA = [
    Tag(name="Verdict/Last", type=DataType.STRING),
    Tag(name="Device Control/Threshold Fail", type=DataType.FLOAT, writable=True),
]
NCMD, DCMD = "spBv1.0/plant/NCMD/node1", "spBv1.0/plant/DCMD/node1/cam1"
STATE = "spBv1.0/STATE/scada"


def make_edge(**options):
    return EdgeNode(group="plant", node="node1", tags=TAGS, devices={"cam1": CAMERA}, **options)


def born(**options):
    edge = make_edge(**options)
    edge.connect(3, now_ms=AT)
    edge.connected()
    return edge, edge.granted(now_ms=AT)


def command(*metrics):
    return encode(metrics, at_ms=AT, seq=None)


def ask_rebirth(edge, now_ms):
    said = Metric(name=REBIRTH, at_ms=AT, type=DataType.BOOLEAN, value=True)
    return edge.took(NCMD, command(said), retained=False, now_ms=now_ms)


def kinds(outcomes):
    return [outcome.topic.split("/")[2] for outcome in outcomes]


def state(at_ms, *, online=True, **more):
    return json.dumps({"online": online, "timestamp": at_ms, **more}).encode()


def test_the_will_is_the_death_with_the_number_of_the_birth():
    edge = make_edge()
    will = edge.connect(255, now_ms=AT)
    edge.connected()
    (birth, _device) = edge.granted(now_ms=AT)

    death = decode(will.payload)
    assert (will.topic, will.qos, death.seq) == ("spBv1.0/plant/NDEATH/node1", 1, None)
    assert [(m.name, m.value) for m in death.good] == [("bdSeq", 255)]
    assert ("bdSeq", 255) in [(m.name, m.value) for m in decode(birth.payload).good]


def test_a_birth_has_every_metric_by_name_and_rebirth_without_an_alias():
    _edge, (birth, device) = born()

    node = {metric.name: metric for metric in decode(birth.payload).good}
    assert list(node) == ["bdSeq", REBIRTH, "Status/Ready", "Node Control/Mode"]
    assert (node[REBIRTH].alias, node[REBIRTH].value) == (None, False)
    assert [metric.name for metric in decode(device.payload).good] == [t.name for t in CAMERA]
    assert (decode(birth.payload).seq, decode(device.payload).seq) == (0, 1)


def test_only_what_changed_is_sent_by_alias_and_without_a_type():
    edge, _births = born()
    first = edge.report("cam1", {"Verdict/Last": "OK"}, at_ms=AT + 5, now_ms=AT + 6)

    (metric,) = decode(first[0].payload).good

    assert (metric.name, metric.type, metric.value, metric.at_ms) == (None, None, "OK", AT + 5)
    assert edge.report("cam1", {"Verdict/Last": "OK"}, at_ms=AT + 7, now_ms=AT + 8) == []


def test_sequence_numbers_go_round_and_every_message_has_the_next():
    edge, births = born()
    sent = list(births)
    for number in range(600):
        sent += edge.report("cam1", {"Verdict/Last": str(number)}, at_ms=AT, now_ms=AT)

    assert [decode(out.payload).seq for out in sent] == [n % NUMBERS for n in range(602)]


def test_what_was_reported_before_the_birth_is_told_by_the_birth():
    edge = make_edge()
    assert edge.report(None, {"Status/Ready": True}, at_ms=AT, now_ms=AT) == []
    edge.connect(0, now_ms=AT)
    edge.connected()

    (birth, _device) = edge.granted(now_ms=AT + 50)

    metric = next(m for m in decode(birth.payload).good if m.name == "Status/Ready")
    assert (metric.value, metric.at_ms) == (True, AT)


def test_historical_values_are_marked_and_change_nothing_that_is():
    edge, _births = born()
    edge.report("cam1", {"Verdict/Last": "OK"}, at_ms=AT + 9, now_ms=AT + 9)

    (sent,) = edge.report(
        "cam1", {"Verdict/Last": "NOT_OK"}, at_ms=AT - 9, now_ms=AT + 9, historical=True
    )

    (metric,) = decode(sent.payload).good
    assert (metric.historical, metric.value) == (True, "NOT_OK")
    assert edge.report("cam1", {"Verdict/Last": "OK"}, at_ms=AT + 10, now_ms=AT + 10) == []


def test_a_rebirth_is_given_once_a_second_however_often_it_is_asked_for():
    edge, _births = born()
    assert kinds(ask_rebirth(edge, AT + REBIRTH_EVERY_MS)) == ["NBIRTH", "DBIRTH"]

    storm = [out for n in range(500) for out in ask_rebirth(edge, AT + REBIRTH_EVERY_MS + n)]

    assert storm == []
    # While one is owed no data is sent, and then the birth tells it.
    assert edge.report("cam1", {"Verdict/Last": "OK"}, at_ms=AT, now_ms=AT + 1_600) == []
    assert edge.tick(now_ms=AT + 1_999) == []
    assert kinds(edge.tick(now_ms=AT + 2_000)) == ["NBIRTH", "DBIRTH"]
    assert edge.tick(now_ms=AT + 9_000) == []


def test_a_clock_that_was_set_back_does_not_put_a_rebirth_off():
    edge, _births = born()

    assert kinds(ask_rebirth(edge, AT - 86_400_000)) == ["NBIRTH", "DBIRTH"]


def test_a_write_by_name_or_alias_is_handed_on_with_its_type():
    edge, (_node, device) = born()
    alias = next(m.alias for m in decode(device.payload).good if "Threshold" in m.name)
    by_alias = Metric(alias=alias, at_ms=AT, type=DataType.FLOAT, value=0.5)
    by_name = Metric(name="Node Control/Mode", at_ms=AT, type=DataType.INT32, value=2)

    assert edge.took(DCMD, command(by_alias), retained=False, now_ms=AT) == [
        Write(device="cam1", name="Device Control/Threshold Fail", value=0.5)
    ]
    assert edge.took(NCMD, command(by_name), retained=False, now_ms=AT) == [
        Write(device=None, name="Node Control/Mode", value=2)
    ]


@pytest.mark.parametrize(
    ("topic", "payload", "retained", "why"),
    [
        (NCMD, b"\xff", False, "no Sparkplug payload"),
        (NCMD, b"\x12\x03\x0a\x01a", False, "0 values"),
        (
            NCMD,
            command(Metric(name="Gate/Fire", at_ms=AT, type=DataType.BOOLEAN, value=True)),
            False,
            "unknown",
        ),
        (
            NCMD,
            command(Metric(name="Status/Ready", at_ms=AT, type=DataType.BOOLEAN, value=True)),
            False,
            "cannot be written",
        ),
        (
            NCMD,
            command(Metric(name="Node Control/Mode", at_ms=AT, type=DataType.STRING, value="x")),
            False,
            "is no INT32",
        ),
        (
            NCMD,
            command(Metric(name="Node Control/Mode", at_ms=AT, type=DataType.INT32, value=None)),
            False,
            "null",
        ),
        (
            NCMD,
            command(Metric(name=REBIRTH, at_ms=AT, type=DataType.BOOLEAN, value=False)),
            False,
            "only when true",
        ),
        (
            NCMD,
            command(Metric(name=REBIRTH, at_ms=AT, type=DataType.BOOLEAN, value=True)),
            True,
            "retained",
        ),
        ("spBv1.0/plant/NCMD/other", b"", False, "somebody else"),
        ("spBv1.0/plant/DCMD/node1/cam9", b"", False, "somebody else"),
        ("spBv1.0/plant/DCMD/node1/cam1", b"\x12\x04\x10\x00\x50\x01", False, "unknown"),
    ],
)
def test_what_makes_no_sense_is_refused_with_a_reason(topic, payload, retained, why):
    edge, _births = born()

    (refusal,) = edge.took(topic, payload, retained=retained, now_ms=AT + 5_000)

    assert isinstance(refusal, Refusal)
    assert why in refusal.why


def test_births_wait_for_the_primary_host():
    edge = make_edge(host="scada")
    edge.connect(0, now_ms=AT)
    assert STATE in edge.connected()
    assert edge.granted(now_ms=AT) == []
    assert not edge.ready

    more = state(AT, online=True, bd_seq=4, client_id="x")
    assert kinds(edge.took(STATE, more, retained=True, now_ms=AT)) == ["NBIRTH", "DBIRTH"]


def test_an_offline_host_ends_the_session_and_an_older_word_of_it_does_not():
    edge = make_edge(host="scada")
    edge.connect(0, now_ms=AT)
    edge.connected()
    edge.granted(now_ms=AT)
    edge.took(STATE, state(AT), retained=True, now_ms=AT)

    (old,) = edge.took(STATE, state(AT - 1, online=False), retained=False, now_ms=AT)
    assert isinstance(old, Refusal)
    assert edge.ready
    death, leave = edge.took(STATE, state(AT, online=False), retained=False, now_ms=AT + 1)
    assert (kinds([death]), leave) == (["NDEATH"], Leave())
    assert not edge.ready


@pytest.mark.parametrize(
    "payload",
    [
        b"ONLINE",
        b"[]",
        b'{"online": "true", "timestamp": 1}',
        b'{"online": true, "timestamp": true}',
        b"[" * 100_000,
        b'{"online": true, "timestamp": 1, "x": "' + b"y" * 5_000 + b'"}',
        b"\xff\xfe",
    ],
)
def test_a_state_that_is_none_starts_nothing(payload):
    edge = make_edge(host="scada")
    edge.connect(0, now_ms=AT)
    edge.connected()
    edge.granted(now_ms=AT)

    (refusal,) = edge.took(STATE, payload, retained=False, now_ms=AT)

    assert isinstance(refusal, Refusal)
    assert edge.took(STATE, b"", retained=True, now_ms=AT) == []
    assert not edge.ready


def test_a_lost_device_dies_once_and_is_born_again():
    edge, _births = born()

    (death,) = edge.device_lost("cam1", now_ms=AT)
    assert kinds([death]) == ["DDEATH"]
    assert decode(death.payload).seq == 2
    assert edge.device_lost("cam1", now_ms=AT) == []
    assert edge.report("cam1", {"Verdict/Last": "OK"}, at_ms=AT, now_ms=AT) == []
    assert kinds(ask_rebirth(edge, AT + 5_000)) == ["NBIRTH"]
    assert kinds(edge.device_back("cam1", now_ms=AT)) == ["DBIRTH"]


@pytest.mark.parametrize("name", ["", "a/b", "a+", "#"])
def test_names_that_would_break_the_topics_are_refused(name):
    with pytest.raises(ValueError, match="no Sparkplug name"):
        EdgeNode(group="plant", node=name, tags=[], devices={})


def test_random_lives_of_a_node_break_no_rule_of_the_specification():
    for seed in range(60):
        chance = random.Random(seed)
        host = chance.choice([None, "scada"])
        edge, checker, now = make_edge(host=host), Checker("plant", "node1"), AT
        for bd_seq in range(4):
            will = edge.connect(bd_seq, now_ms=now)
            checker.connected(
                Connected(
                    will_topic=will.topic,
                    will_payload=will.payload,
                    will_qos=will.qos,
                    will_retain=False,
                    clean=True,
                    expiry_s=0,
                )
            )
            for topic in edge.connected():
                checker.subscribed(topic, qos=1)
            live(edge, checker, chance, now, host)
            now += 60_000
            edge.lost()
        assert checker.broken == []
        assert checker.checked


def live(edge, checker, chance, now, host):
    """Do random things in one session, and show the checker what went out."""
    outs = edge.granted(now_ms=now)
    for _ in range(chance.randrange(40)):
        now += chance.randrange(700)
        what = chance.randrange(6)
        if what == 0:
            outs += ask_rebirth(edge, now)
        elif what == 1:
            outs += edge.tick(now_ms=now)
        elif what == 2:
            outs += edge.device_lost("cam1", now_ms=now)
        elif what == 3:
            outs += edge.device_back("cam1", now_ms=now)
        elif what == 4 and host:
            outs += edge.took(
                STATE, state(now, online=chance.random() < 0.8), retained=False, now_ms=now
            )
        else:
            values = {"Verdict/Last": chance.choice(["OK", "NOT_OK"])}
            outs += edge.report("cam1", values, at_ms=now, now_ms=now)
    for out in outs:
        if isinstance(out, Publication):
            checker.published(out.topic, out.payload, qos=out.qos, retain=False)
