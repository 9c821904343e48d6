"""Which good parts teach, which calibrate, and what limits follow from the latter.

No part does both: a part the model was taught on looks better to it than its like. The
split is drawn at random, because files in the order of their names may be in the order of
their making, and calibration parts must be like the parts to come.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from qcnode.certify import (
    EarnedLimit,
    earn_escape_limit,
    earn_reject_limit,
    parts_needed,
    settle_limits,
)
from qcnode.manifest import LimitPromise, RiskRow

if TYPE_CHECKING:
    from collections.abc import Sequence

    from qcmodels.data import Sample

CALIBRATION_SHARE: Final = 0.3
_CALIBRATION_MOST: Final = 0.5
_ESCALATION_RATES: Final = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.4)
_CANDIDATES: Final = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """The good parts of a data set: those that teach and those that calibrate."""

    teach: tuple[Sample, ...]
    calibrate: tuple[Sample, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """The limits of a model, and what asking about more parts would buy."""

    accept_below: LimitPromise
    reject_from: LimitPromise
    risk_coverage: tuple[RiskRow, ...]


def split_good(samples: Sequence[Sample], *, seed: int, alpha: float) -> Split:
    """Hold back three in ten, or up to half where `alpha` can only be earned that way."""
    drawn = list(samples)
    random.Random(seed).shuffle(drawn)  # noqa: S311  # repeatable, guards nothing
    held = max(round(CALIBRATION_SHARE * len(drawn)), 1)
    wanted = parts_needed(alpha)
    if held < wanted <= _CALIBRATION_MOST * len(drawn):
        held = wanted
    return Split(teach=tuple(drawn[held:]), calibrate=tuple(drawn[:held]))


def good_parts_needed(*, calibrated: int) -> int:
    """Return how many good parts it takes for `split_good` to hold this many back."""
    return math.ceil(calibrated / _CALIBRATION_MOST)


def calibrate(
    good: Sequence[float],
    defects: Sequence[float],
    *,
    alpha: float,
    escape_alpha: float,
    pass_share: float,
    prevalence: float,
) -> Calibration:
    """Return the limits these scores support, none of them seen in teaching."""
    accept, reject = settle_limits(
        good,
        earn_reject_limit(good, alpha=alpha),
        earn_escape_limit(defects, alpha=escape_alpha),
        pass_share=pass_share,
    )
    return Calibration(
        accept_below=_promise(accept),
        reject_from=_promise(reject),
        risk_coverage=risk_coverage(good, defects, prevalence=prevalence),
    )


def risk_coverage(
    good: Sequence[float], defects: Sequence[float], *, prevalence: float
) -> tuple[RiskRow, ...]:
    """Return, for each share of parts asked about, the limits that leave the least error.

    Empty without defects: what is unknown is not estimated.
    """
    if not good or not defects:
        return ()
    ok, bad = np.sort(np.asarray(good)), np.sort(np.asarray(defects))
    every = np.unique(np.concatenate([ok, bad]))
    if every.size > _CANDIDATES:
        every = np.unique(np.quantile(every, np.linspace(0, 1, _CANDIDATES), method="nearest"))
    limits = np.append(every, np.nextafter(every[-1], np.inf))
    ok_below = np.searchsorted(ok, limits) / ok.size
    bad_below = np.searchsorted(bad, limits) / bad.size
    # Rows are the pass limit, columns the reject limit.
    escapes = prevalence * bad_below[:, np.newaxis]
    false_rejects = (1 - prevalence) * (1 - ok_below)[np.newaxis, :]
    asked = prevalence * (bad_below[np.newaxis, :] - bad_below[:, np.newaxis])
    asked = asked + (1 - prevalence) * (ok_below[np.newaxis, :] - ok_below[:, np.newaxis])
    ordered = np.triu(np.ones_like(asked, dtype=bool))
    rows = []
    for most in _ESCALATION_RATES:
        allowed = ordered & (asked <= most + 1e-12)
        risk = np.where(allowed, escapes + false_rejects, np.inf)
        low, high = np.unravel_index(int(risk.argmin()), risk.shape)
        rows.append(
            RiskRow(
                accept_below=float(limits[low]),
                reject_from=float(limits[high]),
                escalation_rate=float(asked[low, high]),
                risk=float(risk[low, high]),
            )
        )
    return tuple(rows)


def _promise(limit: EarnedLimit) -> LimitPromise:
    return LimitPromise(
        value=limit.value,
        alpha=limit.alpha,
        n=limit.n,
        needed=limit.needed,
        guarantee=limit.guarantee,
        reason=limit.reason,
    )
