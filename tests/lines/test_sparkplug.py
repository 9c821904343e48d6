"""The payload codec: what is written is read back, and nothing that comes in can break it."""

import json
import math
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcnode.lines.sparkplug import BadMetric, DataType, Metric, Payload, decode, encode, typed

AT = 1_790_000_000_123
VALUES = {
    DataType.INT32: st.integers(-(2**31), 2**31 - 1),
    DataType.INT64: st.integers(-(2**63), 2**63 - 1),
    DataType.DATETIME: st.integers(0, 2**53),
    DataType.FLOAT: st.floats(width=32, allow_nan=False, allow_infinity=False),
    DataType.DOUBLE: st.floats(allow_nan=False, allow_infinity=False),
    DataType.BOOLEAN: st.booleans(),
    DataType.STRING: st.text(max_size=40),
}
STAMPS = st.integers(0, 2**63 - 1)


@st.composite
def metrics(draw):
    kind = draw(st.sampled_from(list(DataType)))
    return Metric(
        name=draw(st.one_of(st.none(), st.text(max_size=20))),
        alias=draw(st.integers(0, 2**63 - 1)),
        at_ms=draw(STAMPS),
        type=kind,
        value=draw(st.one_of(st.none(), VALUES[kind])),
        historical=draw(st.booleans()),
    )


@given(st.lists(metrics(), max_size=8), STAMPS, st.one_of(st.none(), st.integers(0, 255)))
def test_what_a_birth_says_is_read_back(said, at_ms, seq):
    assert decode(encode(said, at_ms=at_ms, seq=seq)) == Payload(
        at_ms=at_ms, seq=seq, metrics=tuple(said)
    )


@given(metrics())
def test_what_a_data_message_says_is_read_back_once_the_type_is_known(said):
    (heard,) = decode(encode([said], at_ms=AT, seq=0, types=False)).good

    assert heard.type is None
    assert typed(heard.value, said.type) == said.value


@given(st.binary(max_size=200))
def test_random_bytes_are_read_or_refused_and_never_more(raw):
    try:
        payload = decode(raw)
    except ValueError:
        return
    assert isinstance(payload, Payload)


@given(st.lists(metrics(), min_size=1, max_size=4), st.data())
def test_a_payload_with_a_wrong_byte_is_read_or_refused_and_never_more(said, data):
    raw = bytearray(encode(said, at_ms=AT, seq=1))
    raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    try:
        decode(bytes(raw))
    except ValueError:
        return


def metric_bytes(*fields):
    """Write a metric field by field: (number, wire type, bytes)."""
    body = b"".join(bytes([number << 3 | wire]) + raw for number, wire, raw in fields)
    return b"\x12" + bytes([len(body)]) + body


NAME = (1, 2, b"\x01a")


@pytest.mark.parametrize(
    "wrong",
    [
        metric_bytes(NAME),  # no value, and not null
        metric_bytes(NAME, (10, 0, b"\x01"), (15, 2, b"\x01x")),  # two values
        metric_bytes((10, 0, b"\x01")),  # nobody's
        metric_bytes(NAME, (4, 0, b"\x02"), (10, 0, b"\x01")),  # Int16: read unlike by hosts
        metric_bytes(NAME, (4, 0, b"\x0b"), (10, 0, b"\x01")),  # Boolean in an integer's field
        metric_bytes(NAME, (15, 2, b"\x01\xff")),  # bad UTF-8
        metric_bytes(NAME, (16, 2, b"\x00")),  # a template's field is no value here
        metric_bytes(NAME, (4, 0, b"\x03"), (11, 0, b"\xff\xff\xff\xff\xff\x01")),  # 41 bits
        metric_bytes((1, 2, b"\x01\xff"), (10, 0, b"\x01")),
    ],
)
def test_a_metric_that_makes_no_sense_leaves_the_others_alone(wrong):
    good = encode([Metric(name="ok", at_ms=AT, type=DataType.INT32, value=-5)], at_ms=AT, seq=3)

    payload = decode(wrong + good)

    assert isinstance(payload.metrics[0], BadMetric)
    assert [metric.value for metric in payload.good] == [-5]
    assert payload.seq == 3


@pytest.mark.parametrize(
    "raw",
    [
        b"\x08",  # ends within a number
        b"\x08" + b"\xff" * 11,  # more than 64 bits
        b"\x12\x05\x00",  # ends beyond the payload
        b"\x0b",  # a group, which is no more
        b"\x00\x01",  # field 0
        b"\x12\x00" * 10_001,  # more metrics than anybody sends
    ],
)
def test_a_broken_frame_is_refused(raw):
    with pytest.raises(ValueError, match=r"\w"):
        decode(raw)


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (DataType.INT32, 2**31),
        (DataType.INT64, -(2**63) - 1),
        (DataType.INT32, True),
        (DataType.BOOLEAN, 1),
        (DataType.STRING, 5),
        (DataType.DOUBLE, "1.0"),
        (None, 1),
    ],
)
def test_a_value_of_another_type_is_never_written(kind, value):
    with pytest.raises(ValueError, match=r"is no|no type"):
        encode([Metric(name="a", at_ms=AT, type=kind, value=value)], at_ms=AT, seq=0)


@pytest.mark.parametrize(
    ("value", "kind", "expected"),
    [
        (2**32 - 5, DataType.INT32, -5),
        (2**64 - 5, DataType.INT32, -5),  # as some write it, over 64 bits
        (7, DataType.DOUBLE, 7.0),
        (None, DataType.BOOLEAN, None),
    ],
)
def test_a_value_from_the_wire_becomes_one_of_its_type(value, kind, expected):
    assert typed(value, kind) == expected


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (1, DataType.BOOLEAN),
        ("true", DataType.BOOLEAN),
        (math.nan, DataType.DOUBLE),
        (math.inf, DataType.FLOAT),
        (1.5, DataType.INT32),
        (True, DataType.INT64),
        (2**40, DataType.INT32),
        (5, DataType.STRING),
    ],
)
def test_a_value_is_not_taken_for_what_it_is_not(value, kind):
    with pytest.raises(ValueError, match=r"is no|no place"):
        typed(value, kind)


# -- an implementation that is not ours ---------------------------------------------------

FOREIGN = Path(__file__).parent / "sparkplug_payload"
READ = """
const {get} = require('sparkplug-payload'); const spb = get('spBv1.0');
const plain = (key, value) => value && value.toNumber ? value.toString() : value;
const raw = Buffer.from(require('fs').readFileSync(0, 'utf8'), 'hex');
console.log(JSON.stringify(spb.decodePayload(raw), plain));
"""


@pytest.fixture(scope="module")
def foreign():
    """Decode with npm's sparkplug-payload."""
    node = shutil.which("node")
    if node is None or not (FOREIGN / "node_modules" / "sparkplug-payload").is_dir():
        pytest.skip(f"npm's sparkplug-payload is missing: npm ci --ignore-scripts in {FOREIGN}")

    def read(raw):
        done = subprocess.run(
            [node, "-e", READ],
            input=raw.hex(),
            capture_output=True,
            text=True,
            check=True,
            cwd=FOREIGN,
            timeout=60,
        )
        return json.loads(done.stdout)

    return read


SAMPLES = [
    ("Status/Ready", DataType.BOOLEAN, True, True),
    ("Status/Off", DataType.BOOLEAN, False, False),
    ("Verdict/Last", DataType.STRING, "NOT_OK - größer", "NOT_OK - größer"),
    ("Verdict/Score", DataType.FLOAT, 0.5, 0.5),
    ("Cost/Total", DataType.DOUBLE, 12.345678901, 12.345678901),
    ("Down", DataType.INT32, -5, -5),
    ("Least", DataType.INT32, -(2**31), -(2**31)),
    ("Up", DataType.INT64, 2**40 + 7, str(2**40 + 7)),
    ("Budget/Period End", DataType.DATETIME, AT, str(AT)),
    ("Nothing", DataType.STRING, None, None),
]


def test_a_birth_is_read_alike_by_an_implementation_that_is_not_ours(foreign):
    said = [
        Metric(name=name, alias=number, at_ms=AT, type=kind, value=value, labels=(("unit", "mm"),))
        for number, (name, kind, value, _read) in enumerate(SAMPLES)
    ]

    heard = foreign(encode(said, at_ms=AT, seq=255))

    assert heard["seq"] in (255, "255")
    assert str(heard["timestamp"]) == str(AT)
    assert [
        (metric["name"], metric["value"], str(metric["timestamp"])) for metric in heard["metrics"]
    ] == [(name, read, str(AT)) for name, _kind, _value, read in SAMPLES]
    assert heard["metrics"][0]["properties"]["unit"]["value"] == "mm"
