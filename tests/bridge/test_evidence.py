from functools import partial

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from qcbridge.evidence import (
    DETAIL_LOSS_MAX,
    FORMULAS,
    SIDE_MIN_PX,
    cheapest_size,
    image_tokens,
)

FRAMES = [(4096, 3000), (2448, 2048), (1024, 1024), (512, 512)]
PUBLISHED = {
    "openai-tiles-4o": (1105, 765, 765, 255),
    "openai-patches-mini": (2406, 2381, 1659, 415),
    "openai-56": (12032, 4928, 1024, 256),
    "anthropic": (1564, 1548, 1369, 361),
    "anthropic-hires": (4779, 4725, 1369, 361),
    "gemini3-high": (1120, 1120, 1120, 1120),
    "gemini3-low": (280, 280, 280, 280),
    "qwen25vl": (15622, 6351, 1369, 324),
}


@pytest.mark.parametrize(
    ("formula", "size", "tokens"),
    [
        (formula, size, tokens)
        for formula, row in PUBLISHED.items()
        for size, tokens in zip(FRAMES, row, strict=True)
    ],
)
def test_a_picture_has_the_tokens_that_are_published_for_its_size(formula, size, tokens):
    assert image_tokens(*size, formula=formula) == tokens


@pytest.mark.parametrize(
    ("width", "height", "formula", "tokens"),
    [
        (512, 512, "patch28", 361),
        (449, 1, "patch28", 17),
        (4096, 3000, "patch32", 12032),
        (1, 1, "qwen25vl", 4),  # grown to the least it takes
        (100, 10_000, "anthropic", 56),  # shrunk until its long side is 1,568
        (4096, 3000, "openai-tiles-5-low", 70),
        (4096, 3000, "openai-tiles-5", 70 + 6 * 140),
        (2048, 1500, "openai-54-original", 64 * 47),
        (0, 0, "gemini3-high", 0),  # no picture
    ],
)
def test_bounds_and_least_sizes_are_those_of_the_formula(width, height, formula, tokens):
    assert image_tokens(width, height, formula=formula) == tokens


SIDES = st.integers(1, 5000)
CAPS = {
    "anthropic": 1568,
    "anthropic-hires": 4784,
    "openai-patches-mini": 2488,
    "openai-54-high": 2500,
    "qwen25vl": 16_384,
}


@given(width=SIDES, height=SIDES, formula=st.sampled_from(sorted(FORMULAS)))
@example(width=5000, height=1, formula="qwen25vl")
@example(width=1, height=5000, formula="anthropic")
def test_every_picture_has_some_tokens_and_no_more_than_its_provider_s_cap(width, height, formula):
    tokens = image_tokens(width, height, formula=formula)

    assert 1 <= tokens <= CAPS.get(formula, tokens)


@given(
    width=st.integers(SIDE_MIN_PX, 1200),
    height=st.integers(SIDE_MIN_PX, 1200),
    formula=st.sampled_from(sorted(FORMULAS)),
)
@example(width=449, height=449, formula="patch28")
@example(width=28, height=1200, formula="openai-tiles-4o")
def test_the_cheapest_size_is_never_larger_dearer_or_much_smaller_than_asked(
    width, height, formula
):
    across, down = cheapest_size(width, height, FORMULAS[formula])

    assert SIDE_MIN_PX <= across <= width
    assert SIDE_MIN_PX <= down <= height
    assert FORMULAS[formula](across, down) <= FORMULAS[formula](width, height)
    assert max(across, down) >= max(width, height) * (1 - DETAIL_LOSS_MAX)


@pytest.mark.parametrize(
    ("asked", "formula", "cheapest"),
    [
        ((449, 449), "patch28", (448, 448)),  # 289 tokens for a pixel more, or 256
        ((520, 520), "openai-tiles-4o", (512, 512)),  # four tiles, or one
        ((448, 336), "patch28", (448, 336)),
        ((500, 300), "gemini3-high", (500, 300)),  # a fixed price: nothing is gained by less
    ],
)
def test_a_pixel_that_costs_a_row_of_patches_is_left_away(asked, formula, cheapest):
    assert cheapest_size(*asked, partial(image_tokens, formula=formula)) == cheapest
