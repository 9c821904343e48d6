"""Pictures among the good ones that look like defects: somebody put them there by mistake.

Every part is scored by a family `gaussian` taught without it. Those far above the rest are
named, for a person to look at. Where there are many pictures they are left out as well:
defects that were taught as good are not found later. Where there are few, each shows
something of how good parts vary, and leaving out an unusual good one costs more than
leaving in a bad one, so they are named only.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

import numpy as np

from qcmodels.choose import fold_scores
from qcmodels.families import gaussian
from qcmodels.families.contract import Features

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from qcmodels.families.contract import FitConfig

LEFT_OUT_FROM: Final = 50
"""Good pictures from which suspects are left out."""
_FAR: Final = 3.0
_FAR_AMONG_FEW: Final = 3.5
"""Robust standard deviations of the logarithm of the score."""
_ROUNDS: Final = 2
"""Bad ones that taught hide others like them, so those left are looked at again."""


def find_suspects(
    good: NDArray[np.float32], *, config: FitConfig, progress: Callable[[int, int], None]
) -> tuple[int, ...]:
    """Return the numbers of pictures that look unlike the other good ones."""
    many = len(good) >= LEFT_OUT_FROM
    rounds, far = (_ROUNDS, _FAR) if many else (1, _FAR_AMONG_FEW)
    kept = np.ones(len(good), bool)
    for turn in range(rounds):
        rest = np.flatnonzero(kept)
        scores = fold_scores(
            gaussian.fit,
            Features(good=good[rest], defects=good[:0]),
            config=replace(config, seed=config.seed + turn),
            progress=_turn(progress, turn, rounds),
        )
        found = rest[_distance(scores.good) > far]
        if not found.size:
            break
        kept[found] = False
    return tuple(int(number) for number in np.flatnonzero(~kept))


def _turn(
    progress: Callable[[int, int], None], turn: int, rounds: int
) -> Callable[[int, int], None]:
    return lambda done, total: progress(turn * total + done, rounds * total)


def _distance(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return how many robust standard deviations each score lies above the usual one."""
    logs = np.log(np.maximum(scores, 1e-9))
    middle = np.median(logs)
    spread = 1.4826 * np.median(np.abs(logs - middle))
    return np.asarray((logs - middle) / max(float(spread), 1e-9))
