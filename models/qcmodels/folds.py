"""Folds: which parts are held out together, so each is scored by a model taught without it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


def draw_folds(count: int, folds: int, *, seed: int) -> tuple[NDArray[np.intp], ...]:
    """Return the numbers 0 to `count` - 1 in folds of equal size, drawn at random.

    At random, because files in the order of their names may be in the order of their
    making. Never more folds than parts, and none is empty.
    """
    order = np.random.default_rng(seed).permutation(count)
    return tuple(np.sort(part) for part in np.array_split(order, max(min(folds, count), 1)))


def fold_numbers(folds: tuple[NDArray[np.intp], ...]) -> tuple[int, ...]:
    """Return the fold of each part, in the order of the parts."""
    numbers = np.zeros(sum(len(part) for part in folds), int)
    for number, part in enumerate(folds):
        numbers[part] = number
    return tuple(int(number) for number in numbers)
