"""What a provider's answer says of itself is kept word for word, or not believed at all."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcbridge.answers import RAW_USAGE_CHARS_MAX, TOKENS_MAX, read_answer
from qcbridge.providers.usage import ANTHROPIC_MESSAGES, GEMINI_GENERATE, OPENAI_CHAT
from qcnode.money import TokenUsage


def body(usage: str, *, before: str = '"id": "r-1", "model": "m-1"', after: str = "") -> bytes:
    return f'{{{before}, "usage": {usage}{after}}}'.encode()


PLAIN = '{"prompt_tokens": 9, "completion_tokens": 2}'


def test_the_block_is_kept_as_it_was_received():
    raw = (
        '{ "completion_tokens" :2,\n\t"prompt_tokens": 9,"prompt_tokens": 9,'
        ' "cost": 1.50e-3, "big": 123456789012345678901234567890, "word": "\\u00fc\\ud800/\\/" }'
    )

    answer = read_answer(body(raw, after=' , "choices": [{"usage": 1}]'), OPENAI_CHAT)

    assert answer.raw_usage == raw
    assert answer.usage == TokenUsage(unknown=9, output=2)
    assert (answer.response_id, answer.model_served) == ("r-1", "m-1")


@given(
    block=st.dictionaries(
        st.text().filter(lambda key: not key.startswith(("prompt", "completion", "total"))),
        st.none() | st.booleans() | st.text() | st.integers() | st.lists(st.integers()),
        max_size=6,
    ),
    indent=st.none() | st.integers(0, 3),
    ascii_only=st.booleans(),
)
def test_whatever_stands_around_the_counts_is_kept_to_the_character(block, indent, ascii_only):
    names = ("cached_tokens", "num_cached_tokens", "reasoning_tokens", "cache_read_input_tokens")
    block = {key: value for key, value in block.items() if key not in names}
    block |= {"prompt_tokens": 9, "completion_tokens": 2}
    block.pop("cache_creation_input_tokens", None)
    raw = json.dumps(block, indent=indent, ensure_ascii=ascii_only)

    assert read_answer(body(raw), OPENAI_CHAT).raw_usage == raw


def test_each_vendor_has_its_own_place_for_it():
    gemini = (
        b'{"candidates": [], "usageMetadata": {"promptTokenCount":5,"totalTokenCount":5},'
        b' "modelVersion": "g-2", "responseId": "x7"}'
    )
    answer = read_answer(gemini, GEMINI_GENERATE)
    assert (answer.raw_usage, answer.usage) == (
        '{"promptTokenCount":5,"totalTokenCount":5}',
        TokenUsage(unknown=5),
    )
    assert (answer.response_id, answer.model_served) == ("x7", "g-2")

    anthropic = b'{"id": "msg_1", "usage": {"input_tokens": 5, "output_tokens": 1}, "model": "c"}'
    assert read_answer(anthropic, ANTHROPIC_MESSAGES).response_id == "msg_1"


@pytest.mark.parametrize(
    ("stated", "kept"),
    [
        ('"cost": 0.000140', "0.000140"),
        ('"cost": 1.4E-4', "1.4E-4"),
        ('"cost": 0', "0"),
        ('"cost": "0.0021 credits"', "0.0021 credits"),
        ('"cost": {"input": 0.1,  "total": 0.30}', '{"input": 0.1,  "total": 0.30}'),
        ('"total_cost": 3', "3"),
        ('"cost_in_usd_ticks": 232856000', "232856000"),
        ('"estimated_cost": 0.25', "0.25"),
        ('"cost": 0.5, "total_cost": 9', "0.5"),
        ('"cost": null, "total_cost": 9', "9"),
        ('"cost": null', None),
        ('"cost": ""', None),
        ('"cost": "' + "9" * 500 + '"', None),  # it still stands in the block
        ('"is_byok": false', None),
    ],
)
def test_a12_a_stated_cost_is_kept_as_the_text_it_is_and_counts_for_nothing(stated, kept):
    raw = f'{{"prompt_tokens": 9, "completion_tokens": 2, {stated}}}'

    answer = read_answer(body(raw), OPENAI_CHAT)

    assert answer.stated_cost == kept
    assert answer.usage == TokenUsage(unknown=9, output=2)
    assert stated in answer.raw_usage


UNBELIEVABLE = {
    "nothing": b"",
    "prose": b"This part looks fine to me!",
    "a list": b"[1, 2]",
    "no block": b'{"id": "r-1"}',
    "null": body("null"),
    "two blocks that differ": body(PLAIN, after=f', "usage": {PLAIN.replace("9", "8")}'),
    "one count twice, and another": body(PLAIN.replace("{", '{"prompt_tokens": 8, ')),
    "negative": body('{"prompt_tokens": -9, "completion_tokens": 2}'),
    "a fraction": body('{"prompt_tokens": 9.0, "completion_tokens": 2}'),
    "an exponent": body('{"prompt_tokens": 9e1, "completion_tokens": 2}'),
    "text": body('{"prompt_tokens": "9", "completion_tokens": 2}'),
    "true": body('{"prompt_tokens": true, "completion_tokens": 2}'),
    "not a number": body('{"prompt_tokens": 9, "completion_tokens": 2, "x": NaN}'),
    "infinite": body('{"prompt_tokens": Infinity, "completion_tokens": 2}'),
    "nothing was used": body('{"prompt_tokens": 0, "completion_tokens": 0}'),
    "absurd": body(f'{{"prompt_tokens": {TOKENS_MAX + 1}, "completion_tokens": 2}}'),
    "beyond all numbers": body(f'{{"prompt_tokens": {"9" * 5000}, "completion_tokens": 2}}'),
    "long": body(PLAIN.replace("{", f'{{"x": "{"y" * RAW_USAGE_CHARS_MAX}", ')),
    "deep": b'{"a": ' + b"[" * 100_000,
    "cut off in the block": body(PLAIN)[:-10],
    "cut off after it": body(PLAIN)[:-1],
    "with something after it": body(PLAIN) + b"{}",
    "with a comma too many": body(PLAIN, after=","),
    "without a colon": b'{"usage" {}}',
    "with a number for a key": b'{1: 2, "usage": {}}',
    "events": b'data: {"usage": {"prompt_tokens": 9, "completion_tokens": 2}}\n\n',
    "no text": b"\xff\xfe\xfd",
}


@pytest.mark.parametrize("name", UNBELIEVABLE)
def test_what_can_be_read_in_more_ways_than_one_is_not_believed(name):
    with pytest.raises(ValueError, match=r".") as refused:
        read_answer(UNBELIEVABLE[name], OPENAI_CHAT)
    assert len(str(refused.value)) < 300


@pytest.mark.parametrize("first", ["null", '""', "7", '["r-1"]', "{}"])
def test_an_answer_without_a_name_has_none_and_not_an_empty_one(first):
    answer = read_answer(body(PLAIN, before=f'"id": {first}, "model": {first}'), OPENAI_CHAT)

    assert (answer.response_id, answer.model_served) == (None, None)


def test_a_name_is_kept_short_and_whole():
    long, broken = '"' + "n" * 1_000 + '"', '"m\\ud800"'

    answer = read_answer(body(PLAIN, before=f'"id": {long}, "model": {broken}'), OPENAI_CHAT)

    assert answer.response_id == "n" * 200
    assert answer.model_served == "m?"


def test_a_body_that_begins_with_its_byte_order_is_read_all_the_same():
    answer = read_answer(b"\xef\xbb\xbf" + body(PLAIN), OPENAI_CHAT)

    assert answer.raw_usage == PLAIN
