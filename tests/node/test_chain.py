"""The bytes that are hashed: written one way, read for good."""

import hashlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcnode.books import chain
from qcnode.errors import LedgerCorruptError
from qcnode.money import Cost, Indeterminate, Intent, NotBilled, Settled, TokenUsage

EPOCH = "0123456789abcdef0123456789abcdef"

V1 = {
    "intent": {
        "attempt": {
            "id": "a1",
            "escalation_id": "e1",
            "number": 1,
            "provider": "scripted",
            "model": "m",
        },
        "worst": {
            "input_tokens": 90,
            "output_tokens": 10,
            "cache_read_tokens": 0,
            "image_tokens": 70,
            "reasoning_tokens": 0,
        },
        "hold": {"currency": "USD", "pico": 100, "rows": ["r"]},
        "request_sha256": "0" * 64,
        "request_bytes": 5,
        "image_sha256": None,
    },
    "settled": {
        "attempt_id": "a1",
        "usage": {
            "input_tokens": 90,
            "output_tokens": 8,
            "cache_read_tokens": 30,
            "image_tokens": 70,
            "reasoning_tokens": 5,
        },
        "cost": {"currency": "USD", "pico": 60, "rows": ["r"]},
        "rated_at_us": 1_795_000_001_500_000,
        "raw_usage": "{}",
        "response_id": "r",
        "model_served": None,
        "http_status": 200,
        "duration_ms": 1_500,
    },
    "not_billed": {"attempt_id": "a1", "reason": "HTTP 429", "http_status": 429},
    "indeterminate": {
        "attempt_id": "a1",
        "reason": "time-out",
        "hold": {"currency": "USD", "pico": 100, "rows": []},
    },
}


def v1_body(kind: str) -> bytes:
    """Write a body as version 1 did: by Python's own `json`."""
    return json.dumps(
        {"kind": kind, "at_us": 7, "fact": V1[kind]},
        sort_keys=True,
        separators=(",", ":"),
        ensure_ascii=False,
    ).encode()


@pytest.mark.parametrize("kind", V1)
def test_a_body_of_version_1_is_read_for_good(kind):
    body = v1_body(kind)
    read_kind, at_us, fact = chain.read_body(3, body)
    assert (read_kind, at_us) == (kind, 7)
    assert type(fact) is chain.KINDS[kind]
    assert chain.is_canonical(3, body)
    if isinstance(fact, Intent):
        assert fact.worst == TokenUsage(text=20, image=70, output=10)
        assert fact.attempt.centre.line == ""
    if isinstance(fact, Settled):
        assert fact.usage == TokenUsage(image=40, unknown=20, cache_read=30, output=3, reasoning=5)
        assert fact.started_at_us == 1_795_000_000_000_000


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
BIG = st.integers(-(2**63), 2**63 - 1)
FACTS = st.one_of(
    st.builds(NotBilled, attempt_id=TEXT, reason=TEXT, http_status=st.none() | BIG),
    st.builds(
        Indeterminate,
        attempt_id=TEXT,
        reason=TEXT,
        hold=st.builds(Cost, currency=TEXT, pico=BIG, rows=st.lists(TEXT).map(tuple)),
    ),
)


@given(fact=FACTS, at_us=BIG)
def test_what_is_written_is_read_back_and_is_canonical_json(fact, at_us):
    entry = chain.make_entry(fact, epoch=EPOCH, seq=1, at_us=at_us, prev_hash=b"\0" * 32)
    assert chain.fact_of(entry) == fact
    assert chain.is_canonical(1, entry.body)
    # What an auditor has is a JSON reader: keys sorted, nothing between, each once.
    plain = json.loads(entry.body)
    again = json.dumps(plain, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert again.encode() == entry.body


def test_the_hash_is_the_one_that_is_documented():
    body = b'{"a":1}'
    expected = hashlib.sha256(
        b"\x00" + b"\0\0\0\0\0\0\0\x05" + b"\0\0\0\x07" + body + b"\x11" * 32
    ).digest()
    assert chain.entry_hash(5, body, b"\x11" * 32) == expected


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"{}", "no fact"),
        (b"not json", "no fact"),
        (b'{"at_us":1,"fact":{},"kind":"settled","v":2}', "no fact"),
        (b'{"at_us":1,"fact":{},"kind":"gift","v":2}', "no fact"),
        (b'{"at_us":1.5,"fact":{},"kind":"not_billed","v":2}', "no fact"),
        (b'{"at_us":1,"fact":{},"kind":"not_billed","v":3}', "newer qcnode"),
        (b'{"at_us":1,"fact":{},"kind":"reserved"}', "no fact"),  # Version 1 knew none.
        (b"[" * 100_000, "no fact"),
    ],
)
def test_a_body_that_is_no_fact_is_named_by_its_seq(body, words):
    with pytest.raises(LedgerCorruptError, match=rf"^entry 9: .*{words}"):
        chain.read_body(9, body)


@pytest.mark.parametrize(
    "change",
    [
        lambda body: body.replace(b":", b": ", 1),
        lambda body: body.replace(b'"http_status":null', b'"http_status":null,"http_status":null'),
        lambda body: body.replace(b'"reason"', b'"more":1,"reason"'),
        lambda body: body.replace(b"HTTP", b"HT\\u0054P"),
    ],
)
def test_the_same_fact_written_another_way_is_not_canonical(change):
    fact = NotBilled(attempt_id="a", reason="HTTP", http_status=None)
    body = chain.body_of(fact, kind="not_billed", at_us=1)
    assert change(body) != body
    assert not chain.is_canonical(1, change(body))
