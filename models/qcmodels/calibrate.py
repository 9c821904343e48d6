"""What limits follow from the scores of parts, and what is to be known of their pictures.

A score counts only from a model that was taught without its part: a part the model was
taught on looks better to it than its like.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from qcnode.certify import (
    EarnedLimit,
    earn_escape_limit,
    earn_reject_limit,
    settle_limits,
)
from qcnode.errors import CertificateError
from qcnode.manifest import LimitPromise, MarkNorm, MarkRow, PictureNorm, RiskRow
from qcnode.marks import PICTURES_MAX as MARKED_MAX
from qcnode.marks import Marks
from qcnode.sight import Outline, look

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

_ESCALATION_RATES: Final = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.4)
_CANDIDATES: Final = 200
_NO_ERROR: Final = 1e-9
_NARROWEST: Final = 1e-6
TOKENS_PER_ESCALATION: Final = 1_500
"""What a question with one crop of 448 pixels comes to with the shipped prompt, all told."""
PICTURES_MAX: Final = 64
"""How many good pictures say how good parts look: more make no wider a norm."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """The limits of a model, and what asking about more parts would buy."""

    accept_below: LimitPromise
    reject_from: LimitPromise
    risk_coverage: tuple[RiskRow, ...]


def calibrate(
    good: Sequence[float],
    defects: Sequence[float],
    *,
    alpha: float,
    escape_alpha: float,
    pass_share: float,
    prevalence: float,
    folds: Sequence[int] | None = None,
    defect_folds: Sequence[int] | None = None,
    nested: bool = False,
    tokens_per_escalation: int = TOKENS_PER_ESCALATION,
    ask_share: float | None = None,
) -> Calibration:
    """Return the limits these scores support, each from a model not taught on that part.

    Without `folds` that is the released model. With them the released model was taught on
    all parts, and `good[i]` is from one taught without the fold `folds[i]`; likewise for
    defects. `nested` says that by the family's make, teaching on more good parts never
    raises the score of another. With `ask_share` the limits are not earned but chosen: those
    of the least error among all that ask about this share of the parts at most.
    """
    table = risk_coverage(
        good, defects, prevalence=prevalence, tokens_per_escalation=tokens_per_escalation
    )
    if ask_share is not None:
        accept_below, reject_from = _limits_that_ask(ask_share, good, defects, prevalence)
        return Calibration(accept_below=accept_below, reject_from=reject_from, risk_coverage=table)
    accept, reject = settle_limits(
        good,
        earn_reject_limit(good, alpha=alpha, folds=folds, nested=nested),
        earn_escape_limit(defects, alpha=escape_alpha, folds=defect_folds),
        pass_share=pass_share,
    )
    return Calibration(
        accept_below=_promise(accept),
        reject_from=_promise(reject),
        risk_coverage=table,
    )


def normal_pictures(pictures: Iterable[NDArray[np.uint8]]) -> PictureNorm | None:
    """Return how these pictures of good parts look; None where they differ in size."""
    seen = list(itertools.islice(pictures, PICTURES_MAX))
    if len({picture.shape for picture in seen}) != 1:
        return None
    looks = [look(picture) for picture in seen]
    outline = Outline.of([one.small for one in looks])
    return PictureNorm(
        brightness=tuple(one.brightness for one in looks),
        focus=tuple(one.focus for one in looks),
        shift=tuple(outline.shift(one.small) for one in looks),
        outline=outline.encoded(),
    )


def normal_marks(pictures: Iterable[NDArray[np.uint8]]) -> MarkNorm | None:
    """Return what these good parts bear; None where they are too few or differ in size.

    They come whole, and as the node keeps pictures: as JPEG.
    """
    marks = Marks.of(itertools.islice(pictures, MARKED_MAX))
    if marks is None:
        return None
    reference, rows = marks.encoded()
    return MarkNorm(
        reference=reference,
        usual=tuple(MarkRow(side_px=side, limit=limit, most=most) for side, limit, most in rows),
    )


def risk_coverage(
    good: Sequence[float],
    defects: Sequence[float],
    *,
    prevalence: float,
    tokens_per_escalation: int = TOKENS_PER_ESCALATION,
) -> tuple[RiskRow, ...]:
    """Return, for each share of parts asked about, the limits that leave the least error.

    Empty without defects: what is unknown is not estimated.
    """
    if not good or not defects:
        return ()
    ok, bad = np.sort(np.asarray(good)), np.sort(np.asarray(defects))
    limits = _candidates(good, defects)
    ok_below = np.searchsorted(ok, limits) / ok.size
    bad_below = np.searchsorted(bad, limits) / bad.size
    # Rows are the pass limit, columns the reject limit.
    escapes = prevalence * bad_below[:, np.newaxis]
    false_rejects = (1 - prevalence) * (1 - ok_below)[np.newaxis, :]
    asked = prevalence * (bad_below[np.newaxis, :] - bad_below[:, np.newaxis])
    asked = asked + (1 - prevalence) * (ok_below[np.newaxis, :] - ok_below[:, np.newaxis])
    ordered = np.triu(np.ones_like(asked, dtype=bool))
    rows: list[RiskRow] = []
    for most in _ESCALATION_RATES:
        allowed = ordered & (asked <= most + 1e-12)
        risk = np.where(allowed, escapes + false_rejects, np.inf)
        # Of limits that leave as little error, those that ask about the least.
        best = np.where(risk <= risk.min() + 1e-12, asked, np.inf)
        low, high = np.unravel_index(int(best.argmin()), risk.shape)
        rate, left = float(asked[low, high]), float(risk[low, high])
        rows.append(
            RiskRow(
                accept_below=float(limits[low]),
                reject_from=float(limits[high]),
                escalation_rate=rate,
                risk=left,
                tokens_per_1000=round(1000 * rate * tokens_per_escalation),
                asked_per_error=_asked_per_error(rows[-1], rate, left) if rows else None,
            )
        )
    return tuple(rows)


def _limits_that_ask(
    share: float, good: Sequence[float], defects: Sequence[float], prevalence: float
) -> tuple[LimitPromise, LimitPromise]:
    """Return the pass and the reject limit with the least error at this share of questions.

    By the distributions behind the scores, as a kernel sees them: limits fitted to the few
    defects there are would fit no others.
    """
    if not good or not defects:
        raise CertificateError(
            "limits that ask about a chosen share are found by labelled defects: put some into"
            " train/<kind>"
        )
    limits = _candidates(good, defects)
    ok_below, bad_below = _smoothed(good, limits), _smoothed(defects, limits)
    # Rows are the pass limit, columns the reject limit.
    asked = prevalence * (bad_below[np.newaxis, :] - bad_below[:, np.newaxis])
    asked = asked + (1 - prevalence) * (ok_below[np.newaxis, :] - ok_below[:, np.newaxis])
    wrong = prevalence * bad_below[:, np.newaxis] + (1 - prevalence) * (1 - ok_below)
    # Nobody to ask means one limit, however close two scores lie.
    allowed = np.triu(asked <= share + _NO_ERROR) if share else np.eye(limits.size, dtype=bool)
    best = np.where(allowed, wrong, np.inf)
    low, high = np.unravel_index(int(best.argmin()), best.shape)
    reason = (
        f"of the limits that ask about {share:.1%} of parts at most, {prevalence:.0%} of them"
        f" defective, those of the least error; they ask about {float(asked[low, high]):.1%}"
    )

    def promise(value: float, n: int) -> LimitPromise:
        return LimitPromise(
            value=value, alpha=None, alpha_95=None, n=n, needed=0, guarantee=None, reason=reason
        )

    return promise(float(limits[low]), len(defects)), promise(float(limits[high]), len(good))


def _candidates(good: Sequence[float], defects: Sequence[float]) -> NDArray[np.float64]:
    """Return the scores at which a limit may lie, and one above them all."""
    every = np.unique(np.concatenate([np.asarray(good), np.asarray(defects)]))
    if every.size > _CANDIDATES:
        every = np.unique(np.quantile(every, np.linspace(0, 1, _CANDIDATES), method="nearest"))
    return np.append(every, np.nextafter(every[-1], np.inf))


def _smoothed(scores: Sequence[float], limits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return which share of parts like these scores below each limit, by a logistic kernel.

    It is as wide as Silverman's rule has it, on the logarithm of scores that have one:
    distances spread over powers of ten.
    """
    values, at = np.asarray(scores, dtype=np.float64), limits
    if values.min() > 0 and limits[0] > 0:
        values, at = np.log(values), np.log(limits)
    quartiles = np.quantile(values, [0.25, 0.75])
    spread = min(float(values.std()), float(quartiles[1] - quartiles[0]) / 1.349)
    width = max(0.9 * spread * values.size**-0.2, _NARROWEST)
    away = (at[:, np.newaxis] - values[np.newaxis, :]) * (np.pi / np.sqrt(3) / width)
    shares: NDArray[np.float64] = (0.5 * (1 + np.tanh(away / 2))).mean(axis=1)
    shares[-1] = 1.0
    return shares


def _asked_per_error(before: RiskRow, rate: float, risk: float) -> float | None:
    avoided = before.risk - risk
    return (rate - before.escalation_rate) / avoided if avoided > _NO_ERROR else None


def _promise(limit: EarnedLimit) -> LimitPromise:
    return LimitPromise(
        value=limit.value,
        alpha=limit.alpha,
        alpha_95=limit.alpha_95,
        n=limit.n,
        needed=limit.needed,
        guarantee=limit.guarantee,
        reason=limit.reason,
    )
