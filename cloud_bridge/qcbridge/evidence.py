"""What a picture costs in tokens before it is sent, by each provider's formula, and its best size.

Pure. The counts size a reservation and tell what a way of showing would cost; only the
provider's own count settles. Formulas are the vendors' words of 2026, some of which the
vendors themselves call ambiguous: what was returned says how far they are off.
"""

from __future__ import annotations

import math
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Final, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

ImageTokens: TypeAlias = "Callable[[int, int], int]"
"""From width and height in pixels to tokens."""

DETAIL_LOSS_MAX: Final = 1 / 16
"""The share of its side that a picture may lose where that pays: nothing visible goes with it."""

SIDE_MIN_PX: Final = 28
"""The least side of a picture that is shown: one patch, below which providers refuse."""


def _patches(width: int, height: int, *, side_px: int) -> int:
    return math.ceil(width / side_px) * math.ceil(height / side_px)


def _openai_tiles(width: int, height: int, *, base: int, tile: int) -> int:
    """Count 512 px tiles of a picture fitted into 2,048 px, its short side into 768."""
    shrink = min(1.0, 2048 / max(width, height), 768 / min(width, height))
    across, down = (math.ceil(round(side * shrink, 6) / 512) for side in (width, height))
    return base + tile * across * down


def _fixed(_width: int, _height: int, *, tokens: int) -> int:
    return tokens


def _openai_patches(
    width: int, height: int, *, cap: int, percent: int = 100, side_max_px: int | None = None
) -> int:
    """Count 32 px patches of a picture shrunk until they are no more than `cap`."""
    across, down = float(width), float(height)
    if side_max_px is not None:
        shrink = min(1.0, side_max_px / max(width, height))
        across, down = across * shrink, down * shrink
    if _of_32(across) * _of_32(down) > cap:
        shrink = math.sqrt(cap * 32 * 32 / (across * down))
        columns, rows = across * shrink / 32, down * shrink / 32
        # Shrunk on, until one side is whole patches.
        whole = min(max(1, math.floor(side)) / side for side in (columns, rows))
        across, down = across * shrink * whole, down * shrink * whole
    return (min(cap, _of_32(across) * _of_32(down)) * percent + 50) // 100


def _of_32(side: float) -> int:
    return max(1, math.ceil(round(side / 32, 6)))


@lru_cache(maxsize=4096)
def _anthropic(width: int, height: int, *, side_max_px: int, cap: int) -> int:
    """Count 28 px patches of a picture shrunk by as little as makes them fit `cap`."""
    columns, rows = math.ceil(width / 28), math.ceil(height / 28)
    if max(width, height) <= side_max_px and columns * rows <= cap:
        return columns * rows
    # The scale that fits is one at which a side is whole patches, or the longest allowed.
    scales = [side_max_px / max(width, height)]
    for side, most in ((width, columns), (height, rows)):
        scales += [28 * patches / side for patches in range(1, most + 1)]
    longest = scales[0]
    best, tokens = 0.0, 1
    for scale in scales:
        across, down = (math.ceil(round(side * scale / 28, 6)) for side in (width, height))
        if best < scale <= longest and across * down <= cap:
            best, tokens = scale, across * down
    return max(1, tokens)


def _qwen(width: int, height: int, *, side_px: int, tokens_min: int, tokens_max: int) -> int:
    """Count patches after each side was rounded to whole ones, within the limits."""
    across, down = (max(1, round(side / side_px)) for side in (width, height))
    if across * down > tokens_max:
        shrink = math.sqrt(width * height / tokens_max) / side_px
        across, down = (max(1, math.floor(side / shrink / side_px)) for side in (width, height))
    elif across * down < tokens_min:
        grow = math.sqrt(tokens_min / (width * height)) * side_px
        across, down = (math.ceil(side * grow / side_px) for side in (width, height))
    return across * down


_TILES: Final = {  # base and tile: 4o, 4.1 and 4.5; 4o-mini; 5; o1 and o3
    "openai-tiles-4o": (85, 170),
    "openai-tiles-4o-mini": (2833, 5667),
    "openai-tiles-5": (70, 140),
    "openai-tiles-o": (75, 150),
}

_QWEN_MOST: Final = {"tokens_min": 4, "tokens_max": 16_384}

FORMULAS: Final[Mapping[str, ImageTokens]] = {
    "patch28": partial(_patches, side_px=28),
    "patch32": partial(_patches, side_px=32),
    **{name: partial(_openai_tiles, base=base, tile=tile) for name, (base, tile) in _TILES.items()},
    **{f"{name}-low": partial(_fixed, tokens=base) for name, (base, _) in _TILES.items()},
    "openai-patches-mini": partial(_openai_patches, cap=1536, percent=162),  # 4.1-mini, 5-mini
    "openai-patches-nano": partial(_openai_patches, cap=1536, percent=246),  # 4.1-nano, 5-nano
    "openai-patches-o4-mini": partial(_openai_patches, cap=1536, percent=172),
    "openai-54-high": partial(_openai_patches, cap=2_500, side_max_px=2048),  # 5.4 and 5.5
    "openai-54-original": partial(_openai_patches, cap=10_000, side_max_px=6000),
    "openai-56": partial(_patches, side_px=32),  # 5.6 and later, which shrink nothing
    "anthropic": partial(_anthropic, side_max_px=1568, cap=1568),
    "anthropic-hires": partial(_anthropic, side_max_px=2576, cap=4784),  # 4.7 and later
    "gemini3-low": partial(_fixed, tokens=280),
    "gemini3-medium": partial(_fixed, tokens=560),
    "gemini3-high": partial(_fixed, tokens=1120),  # what is asked for by default
    "gemini3-ultra": partial(_fixed, tokens=2240),
    "gemini25": partial(_fixed, tokens=256 + 2048),  # the most, with pan and scan
    "gemini25-medium": partial(_fixed, tokens=256),
    "gemini25-low": partial(_fixed, tokens=64),
    "qwen25vl": partial(_qwen, side_px=28, **_QWEN_MOST),
    "qwen3vl": partial(_qwen, side_px=32, **_QWEN_MOST),
}
"""By name. `patch28` and `patch32` are bounds for endpoints of which nothing better is known."""


def image_tokens(width: int, height: int, *, formula: str) -> int:
    """Return the tokens of a picture by a provider's published formula; of none, none."""
    return FORMULAS[formula](width, height) if width and height else 0


def cheapest_size(width: int, height: int, count: ImageTokens) -> tuple[int, int]:
    """Return the size, hardly smaller than this one, at which a token buys the most pixels.

    Never larger than asked, never dearer, and no side is smaller by more than
    `DETAIL_LOSS_MAX`. Of sizes that are as good it is the largest.
    """
    longer, shorter = max(width, height), min(width, height)
    best, tokens = (width, height), count(width, height)
    for long in range(longer - 1, math.ceil(longer * (1 - DETAIL_LOSS_MAX)) - 1, -1):
        short = round(shorter * long / longer)
        if short < min(shorter, SIDE_MIN_PX):
            break
        size = (long, short) if width >= height else (short, long)
        cost = count(*size)
        if cost * best[0] * best[1] < tokens * size[0] * size[1]:
            best, tokens = size, cost
    return best
