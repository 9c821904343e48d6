"""Limits with guarantees, from scores of parts the model never saw.

Pure arithmetic. Scores are such that higher is less like a good part. A limit is a
conformal quantile: it holds for any model, as long as the parts to come are like
the parts it was calibrated on (exchangeable), on average over calibration sets; beside
it stands how far one calibration set may be off. What the data cannot support is
refused, and the refusal says how many more parts it takes. docs/guarantees.md has the
statements in full, their sources, and what came of them on recorded parts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from qcnode.errors import CertificateError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

CONFIDENCE: Final = 0.95
"""Of the bounds that hold for one calibration set, and not only on average over them."""
_BISECTIONS: Final = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class EarnedLimit:
    """A limit, and what may be promised of it.

    `value` is None when the data support none, `alpha` when the limit carries no
    guarantee. `n` counts the parts it comes from, `needed` how many more it takes.
    `alpha_95` is the share that this one calibration set keeps to with 95 % confidence;
    None where no such bound is known.
    """

    value: float | None
    alpha: float | None
    alpha_95: float | None
    n: int
    needed: int
    guarantee: str | None
    reason: str


def earn_reject_limit(
    good: Sequence[float],
    *,
    alpha: float,
    folds: Sequence[int] | None = None,
    nested: bool = False,
) -> EarnedLimit:
    """Return the score from which a part is rejected, so that few good ones are.

    P(a good part is rejected) <= alpha. It is the ceil((n + 1)(1 - alpha))-th smallest
    good score, exclusive: a part that scores like that one is not rejected.

    Without `folds` no part behind `good` was taught (split conformal). With them the
    model in service was taught on all, and `good[i]` comes from one taught without the
    fold `folds[i]` (cross-conformal). The promise is the same if models are `nested`: by
    their make, teaching on more good parts never raises the score of another, as where
    all parts are kept and the nearest counts. Of other models alpha is what comes of it,
    and what is proved is the bound of a vote of the folds' models; the promise says both.
    """
    _check_share(alpha, "alpha")
    scores = _sorted_scores(good)
    n = len(scores)
    count = _count_folds(folds, n)
    index = math.ceil(_exact((n + 1) * (1.0 - alpha)))
    if index > n:
        needed = parts_needed(alpha) - n
        return _refused(
            n,
            needed,
            f"{needed} more good parts needed: {n} calibrated, alpha {alpha:g} takes "
            f"{parts_needed(alpha)}; nothing is rejected unasked",
        )
    promise = f"P(good part rejected) <= {alpha:g}"
    value = math.nextafter(scores[index - 1], math.inf)
    if count is None:
        return EarnedLimit(
            value=value,
            alpha=alpha,
            # The share is Beta(n + 1 - index, index) over calibration sets, whose quantile
            # is the same number as this bound.
            alpha_95=upper_bound(n - index, n, confidence=CONFIDENCE),
            n=n,
            needed=0,
            guarantee=promise,
            reason=f"conformal quantile {index} of {n} good parts held out from teaching",
        )
    return EarnedLimit(
        value=value,
        alpha=alpha,
        alpha_95=None,
        n=n,
        needed=0,
        guarantee=promise if nested else _about(promise, n, count, n - index),
        reason=f"cross-conformal quantile {index} of {n} good parts, each scored by a model "
        f"taught without its fold of {count}",
    )


def earn_escape_limit(
    defects: Sequence[float], *, alpha: float, folds: Sequence[int] | None = None
) -> EarnedLimit:
    """Return the score below which a part may pass, so that few defective ones do.

    P(a defective part passes) <= alpha, by conformal risk control: the largest limit
    at which (defects below it + 1) / (n + 1) <= alpha, which is the floor(alpha (n + 1))-th
    smallest score of real defects. A part that scores like that one does not pass.
    `folds` are as for the reject limit, for models that were taught on defects too and
    are not nested.
    """
    _check_share(alpha, "alpha")
    scores = _sorted_scores(defects)
    n = len(scores)
    count = _count_folds(folds, n)
    index = math.floor(_exact(alpha * (n + 1)))
    if index < 1:
        needed = parts_needed(alpha) - n
        return _refused(
            n,
            needed,
            f"no escape guarantee yet: {needed} more defects needed ({n} labelled, "
            f"alpha {alpha:g} takes {parts_needed(alpha)})",
        )
    promise = f"P(defective part passed) <= {alpha:g}"
    if count is None:
        return EarnedLimit(
            value=scores[index - 1],
            alpha=alpha,
            alpha_95=upper_bound(index - 1, n, confidence=CONFIDENCE),
            n=n,
            needed=0,
            guarantee=promise,
            reason=f"conformal quantile {index} of {n} labelled defects",
        )
    return EarnedLimit(
        value=scores[index - 1],
        alpha=alpha,
        alpha_95=None,
        n=n,
        needed=0,
        guarantee=_about(promise, n, count, index - 1),
        reason=f"cross-conformal quantile {index} of {n} labelled defects, each scored by a "
        f"model taught without its fold of {count}",
    )


def settle_limits(
    good: Sequence[float], reject: EarnedLimit, escape: EarnedLimit, *, pass_share: float
) -> tuple[EarnedLimit, EarnedLimit]:
    """Return the pass and the reject limit, from what was earned; either may only get stricter.

    No more than `pass_share` of the good parts pass unasked, however far defects are
    away: the known ones are not all there are. Where none were earned from, that share
    alone sets the limit and promises nothing. Where known defects score above the reject
    limit, it moves up to them, so good parts far from any defect are asked about and not
    thrown away.
    """
    _check_share(pass_share, "pass_share")
    scores = _sorted_scores(good)
    if not scores:
        raise CertificateError("no good part to calibrate on: add pictures to train/good")
    index = min(max(math.floor(_exact(pass_share * (len(scores) + 1))), 1), len(scores))
    share = scores[index - 1]
    share_text = f"the {pass_share:.0%} quantile of {len(scores)} good parts"
    if escape.value is None:
        value = share
        reason = (
            f"{escape.reason}; passes below {share_text} on the audit route: let a person check "
            "a random share of what passed"
        )
    elif share < escape.value:
        value, reason = share, f"{share_text}, stricter than the {escape.reason}"
    else:
        value, reason = escape.value, escape.reason
    if reject.value is not None and reject.value < value:
        value, reason = reject.value, f"{reason}; lowered to the reject limit"
    if reject.value is not None and escape.value is not None and reject.value < escape.value:
        reject = replace(
            reject, value=escape.value, reason=f"{reject.reason}; raised to the {escape.reason}"
        )
    return replace(escape, value=value, reason=reason), reject


def upper_bound(failures: int, n: int, *, confidence: float = 0.95) -> float:
    """Return the Clopper-Pearson upper bound of a share, with `failures` seen among `n`."""
    _check_counts(failures, n, confidence)
    if failures == n:
        return 1.0
    return _bisect(lambda share: _tail_up_to(failures, n, share) > 1.0 - confidence)


def lower_bound(failures: int, n: int, *, confidence: float = 0.95) -> float:
    """Return the Clopper-Pearson lower bound of a share, with `failures` seen among `n`."""
    _check_counts(failures, n, confidence)
    if failures == 0:
        return 0.0
    return 1.0 - upper_bound(n - failures, n, confidence=confidence)


def parts_needed(alpha: float) -> int:
    """Return the fewest parts from which a limit at `alpha` can be earned: 1 / alpha - 1."""
    _check_share(alpha, "alpha")
    return math.ceil(_exact(1.0 / alpha - 1.0))


def _refused(n: int, needed: int, reason: str) -> EarnedLimit:
    return EarnedLimit(
        value=None, alpha=None, alpha_95=None, n=n, needed=needed, guarantee=None, reason=reason
    )


def _about(promise: str, n: int, folds: int, beyond: int) -> str:
    """Say what is proved of models taught without a fold each, and hoped of one taught on all.

    A part that `beyond` of n others outdo, each judged by the model taught without it, has
    a mean p-value over folds of (folds + beyond) / (n + folds) at most, and twice a mean of
    p-values is one. Where each fold is one part that says nothing, and the jackknife+ does.
    """
    proved = 2 * (folds + beyond) / (n + folds)
    if folds == n:
        proved = 2 * (beyond + 1) / (n + 1)
    return (
        f"{promise.replace('<=', 'about')}; proved is <= {min(proved, 1.0):.2g} for a vote of"
        f" the {folds} models taught without a fold each"
    )


def _count_folds(folds: Sequence[int] | None, n: int) -> int | None:
    if folds is None or n == 0:
        return None
    count = len(set(folds))
    if len(folds) != n or count < 2:  # noqa: PLR2004  # of one fold, nobody was taught without it
        raise CertificateError(
            f"{n} scores in {count} folds by {len(folds)} numbers: give each score its fold, of two"
            " or more"
        )
    return count


def _tail_up_to(failures: int, n: int, share: float) -> float:
    if share <= 0.0:
        return 1.0
    if share >= 1.0:
        return 0.0
    log_p, log_q = math.log(share), math.log1p(-share)
    return math.fsum(
        math.exp(
            math.lgamma(n + 1)
            - math.lgamma(k + 1)
            - math.lgamma(n - k + 1)
            + k * log_p
            + (n - k) * log_q
        )
        for k in range(failures + 1)
    )


def _bisect(below: Callable[[float], bool]) -> float:
    low, high = 0.0, 1.0
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2.0
        low, high = (middle, high) if below(middle) else (low, middle)
    return high


def _exact(value: float) -> float:
    # 20 * (1 - 0.05) must count as 19 and not as a hair above it.
    nearest = round(value)
    return float(nearest) if math.isclose(value, nearest, rel_tol=1e-9, abs_tol=1e-9) else value


def _sorted_scores(scores: Sequence[float]) -> list[float]:
    if not all(math.isfinite(score) for score in scores):
        raise CertificateError("a score to calibrate on is not a finite number: teach again")
    return sorted(scores)


def _check_share(share: float, name: str) -> None:
    if not 0.0 < share < 1.0:
        raise CertificateError(f"{name} must lie between 0 and 1, not {share:g}")


def _check_counts(failures: int, n: int, confidence: float) -> None:
    _check_share(confidence, "confidence")
    if n < 1 or not 0 <= failures <= n:
        raise CertificateError(f"{failures} of {n} is no count of parts")
