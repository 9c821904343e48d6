"""Limits with guarantees, from scores of parts the model never saw.

Pure arithmetic. Scores are such that higher is less like a good part. A limit is a
split-conformal quantile: it holds for any model, as long as the parts to come are like
the parts it was calibrated on (exchangeable), on average over calibration sets. What
the data cannot support is refused, and the refusal says how many more parts it takes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from qcnode.errors import CertificateError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_BISECTIONS: Final = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class EarnedLimit:
    """A limit, and what may be promised of it.

    `value` is None when the data support none, `alpha` when the limit carries no
    guarantee. `n` counts the parts it comes from, `needed` how many more it takes.
    """

    value: float | None
    alpha: float | None
    n: int
    needed: int
    guarantee: str | None
    reason: str


def earn_reject_limit(good: Sequence[float], *, alpha: float) -> EarnedLimit:
    """Return the score from which a part is rejected, so that few good ones are.

    P(a good part is rejected) <= alpha. It is the ceil((n + 1)(1 - alpha))-th smallest
    good score, exclusive: a part that scores like that one is not rejected.
    """
    _check_share(alpha, "alpha")
    scores = _sorted_scores(good)
    n = len(scores)
    index = math.ceil(_exact((n + 1) * (1.0 - alpha)))
    if index > n:
        needed = parts_needed(alpha) - n
        return EarnedLimit(
            value=None,
            alpha=None,
            n=n,
            needed=needed,
            guarantee=None,
            reason=f"{needed} more good parts needed: {n} calibrated, alpha {alpha:g} takes "
            f"{parts_needed(alpha)}; nothing is rejected unasked",
        )
    return EarnedLimit(
        value=math.nextafter(scores[index - 1], math.inf),
        alpha=alpha,
        n=n,
        needed=0,
        guarantee=f"P(good part rejected) <= {alpha:g}",
        reason=f"conformal quantile {index} of {n} good parts held out from teaching",
    )


def earn_escape_limit(defects: Sequence[float], *, alpha: float) -> EarnedLimit:
    """Return the score below which a part may pass, so that few defective ones do.

    P(a defective part passes) <= alpha. It is the floor(alpha (n + 1))-th smallest score of
    real defects: a part that scores like that one does not pass.
    """
    _check_share(alpha, "alpha")
    scores = _sorted_scores(defects)
    n = len(scores)
    index = math.floor(_exact(alpha * (n + 1)))
    if index < 1:
        needed = parts_needed(alpha) - n
        return EarnedLimit(
            value=None,
            alpha=None,
            n=n,
            needed=needed,
            guarantee=None,
            reason=f"no escape guarantee yet: {needed} more defects needed ({n} labelled, "
            f"alpha {alpha:g} takes {parts_needed(alpha)})",
        )
    return EarnedLimit(
        value=scores[index - 1],
        alpha=alpha,
        n=n,
        needed=0,
        guarantee=f"P(defective part passed) <= {alpha:g}",
        reason=f"conformal quantile {index} of {n} labelled defects",
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


def p_value(calibration: Sequence[float], score: float) -> float:
    """Return how likely a good part is to score this high: uniform or larger for good parts."""
    at_least = sum(1 for other in calibration if other >= score)
    return (1 + at_least) / (len(calibration) + 1)


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
