"""Tokens fall into classes that share none, whatever a provider lumps together."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcnode.money import TokenUsage

COUNT = st.integers(0, 10_000)


def test_totals_without_a_picture_are_text():
    usage = TokenUsage.divide(input_tokens=90, output_tokens=8, image=0, reasoning=5)
    assert usage == TokenUsage(text=90, output=3, reasoning=5)


def test_a_picture_nobody_told_apart_is_unknown():
    usage = TokenUsage.divide(input_tokens=90, output_tokens=8, image=None, cache_read=30)
    assert usage == TokenUsage(unknown=60, cache_read=30, output=8)


def test_a_picture_told_apart_is_known():
    usage = TokenUsage.divide(input_tokens=90, output_tokens=8, image=70)
    assert usage == TokenUsage(text=20, image=70, output=8)


def test_how_much_of_a_picture_was_cached_stays_unknown():
    # 30 of 90 were cached: of the 70 of the picture at least 40 were not, and of the text
    # nothing need be left.
    usage = TokenUsage.divide(input_tokens=90, output_tokens=8, image=70, cache_read=30)
    assert usage == TokenUsage(image=40, unknown=20, cache_read=30, output=8)


@given(
    text=COUNT, image=COUNT, read=COUNT, write=COUNT, write_1h=COUNT, output=COUNT, reasoning=COUNT
)
def test_b1_the_classes_always_add_up_to_the_providers_totals(
    *, text, image, read, write, write_1h, output, reasoning
):
    total = text + image + read + write + write_1h
    usage = TokenUsage.divide(
        input_tokens=total,
        output_tokens=output + reasoning,
        image=image,
        cache_read=read,
        cache_write=write,
        cache_write_1h=write_1h,
        reasoning=reasoning,
    )
    assert (usage.input_tokens, usage.output_tokens) == (total, output + reasoning)
    assert usage.unknown <= read + write + write_1h
    assert usage.image <= image
    assert usage.text <= text + image + read + write + write_1h - image


@pytest.mark.parametrize(
    "parts",
    [
        {"input_tokens": 9, "output_tokens": 1, "image": 0, "cache_read": 10},
        {"input_tokens": 9, "output_tokens": 1, "image": 10},
        {"input_tokens": 9, "output_tokens": 1, "image": 0, "reasoning": 2},
        {"input_tokens": 9, "output_tokens": 1, "image": 0, "cache_read": 5, "cache_write": 5},
        {"input_tokens": 9, "output_tokens": 1, "image": 0, "cache_read": -1},
        {"input_tokens": -1, "output_tokens": 1, "image": None},
    ],
)
def test_b1_parts_that_are_more_than_the_whole_are_an_error_and_never_made_to_fit(parts):
    with pytest.raises(ValueError, match="tokens"):
        TokenUsage.divide(**parts)
