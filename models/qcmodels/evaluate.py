"""How a released model does on pictures it has never seen, against what it promised.

The limits judged by are the manifest's own: nothing is chosen on the test pictures, so
these are the rates a line would have had.
"""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import cv2
import numpy as np

from qcmodels.data import open_dataset, read_mask, read_sample, require_test
from qcnode.certify import lower_bound, upper_bound
from qcnode.domain import Limits, Prediction, Verdict
from qcnode.errors import DatasetError
from qcnode.policy import judge

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime
    from pathlib import Path

    from numpy.typing import NDArray

    from qcmodels.data import Sample
    from qcmodels.train import Progress
    from qcnode.manifest import LimitPromise
    from qcnode.runtime.onnx import OnnxModel

_HEAT_BINS: Final = 1 << 16
PRO_FALSE_MAX: Final = 0.3
"""Share of good pixels marked, up to which the overlap with defects is averaged (AU-PRO)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Coverage:
    """One row of the manifest's risk table, and what it came to on the test parts.

    `coverage` is the share of parts decided without asking, `risk` the share of these
    decided wrongly, at the prevalence of the table.
    """

    accept_below: float
    reject_from: float
    coverage: float
    risk: float
    false_reject_rate: float
    escape_rate: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Guarantee:
    """One guarantee, whether it was given, and the rate seen with its 95 % interval.

    `kept` is False only where the test parts contradict the promise: the lower bound of
    the rate lies above alpha. None where nothing was promised.
    """

    holds: bool
    limit: float | None
    alpha: float | None
    n: int
    needed: int
    guarantee: str | None
    reason: str
    observed: float
    observed_low: float
    observed_high: float
    kept: bool | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """Both guarantees of a model."""

    false_reject: Guarantee
    escape: Guarantee


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """The figures of one model on one data set; rates are shares of 1."""

    family: str
    model: str
    dataset: str
    n: int
    n_good: int
    n_defective: int
    image_auroc: float
    pixel_auroc: float | None
    au_pro: float | None
    recall_at_1: float
    recall_at_5: float
    false_reject_rate: float
    escape_rate: float
    escalation_rate: float
    escalation_rate_good: float
    escalation_rate_at_prevalence: float
    prevalence: float
    verdicts: dict[str, int]
    auroc_by_defect: dict[str, float]
    certificate: Certificate
    risk_coverage: tuple[Coverage, ...]
    ms_per_frame: float
    """Median wall time of one judgement, without reading the picture."""


def evaluate(
    model: OnnxModel,
    dataset: Path,
    *,
    now: Callable[[], datetime],
    clock_ns: Callable[[], int],
    progress: Progress,
) -> Evaluation:
    """Judge the test pictures of `dataset` with `model`."""
    data = open_dataset(dataset)
    require_test(data)
    samples = (*data.test_good, *data.test_defects)
    scores: list[float] = []
    durations: list[int] = []
    pixels = _PixelCount()
    for sample in samples:
        seen = read_sample(sample, side=model.side)
        frame = seen.frame(str(sample.path), now())
        start = clock_ns()
        prediction = model.predict(frame)
        durations.append(clock_ns() - start)
        scores.append(prediction.score)
        if prediction.heat is not None:
            pixels.add(sample, prediction.heat, seen.size)
        progress("evaluate", len(scores), len(samples))

    split = len(data.test_good)
    good, bad = np.array(scores[:split]), np.array(scores[split:])
    rates = _rates(good, bad, model.limits)
    manifest = model.manifest
    prevalence = manifest.prevalence
    escapes = round(rates.escape * bad.size)
    rejects = round(rates.false_reject * good.size)
    return Evaluation(
        family=manifest.family,
        model=model.version,
        dataset=data.name,
        n=len(samples),
        n_good=int(good.size),
        n_defective=int(bad.size),
        image_auroc=auroc(good, bad),
        pixel_auroc=pixels.auroc(),
        au_pro=pixels.au_pro(),
        recall_at_1=recall_at(good, bad, false_rejects=0.01),
        recall_at_5=recall_at(good, bad, false_rejects=0.05),
        false_reject_rate=rates.false_reject,
        escape_rate=rates.escape,
        escalation_rate=(rates.asked_good * good.size + rates.asked_bad * bad.size) / len(samples),
        escalation_rate_good=rates.asked_good,
        escalation_rate_at_prevalence=(1 - prevalence) * rates.asked_good
        + prevalence * rates.asked_bad,
        prevalence=prevalence,
        verdicts=_count_verdicts(scores, model),
        auroc_by_defect={
            kind: auroc(good, bad[[sample.label == kind for sample in data.test_defects]])
            for kind, _ in itertools.groupby(data.test_defects, key=lambda item: item.label)
        },
        certificate=Certificate(
            false_reject=_guarantee(manifest.reject_from, rejects, int(good.size)),
            escape=_guarantee(manifest.accept_below, escapes, int(bad.size)),
        ),
        risk_coverage=tuple(
            _coverage(good, bad, row.accept_below, row.reject_from, prevalence)
            for row in manifest.risk_coverage
        ),
        ms_per_frame=float(np.median(durations)) / 1e6,
    )


def auroc(good: NDArray[np.float64], bad: NDArray[np.float64]) -> float:
    """Return the chance that a defective part scores above a good one; a tie counts half."""
    ordered = np.sort(good)
    below = np.searchsorted(ordered, bad, side="left")
    up_to = np.searchsorted(ordered, bad, side="right")
    return float((below + up_to).sum() / 2 / good.size / bad.size)


def recall_at(
    good: NDArray[np.float64], bad: NDArray[np.float64], *, false_rejects: float
) -> float:
    """Return the share of defects found where at most this share of good parts is rejected."""
    allowed = int(false_rejects * good.size + 1e-9)
    limit = np.sort(good)[good.size - 1 - allowed]
    return float((bad > limit).mean())


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rates:
    false_reject: float
    escape: float
    asked_good: float
    asked_bad: float


def _rates(good: NDArray[np.float64], bad: NDArray[np.float64], limits: Limits) -> _Rates:
    low = -np.inf if limits.accept_below is None else limits.accept_below
    high = np.inf if limits.reject_from is None else limits.reject_from
    return _Rates(
        false_reject=float((good >= high).mean()),
        escape=float((bad < low).mean()),
        asked_good=float(((good >= low) & (good < high)).mean()),
        asked_bad=float(((bad >= low) & (bad < high)).mean()),
    )


def _coverage(
    good: NDArray[np.float64],
    bad: NDArray[np.float64],
    accept_below: float,
    reject_from: float,
    prevalence: float,
) -> Coverage:
    rates = _rates(good, bad, Limits(accept_below=accept_below, reject_from=reject_from))
    decided = 1 - (1 - prevalence) * rates.asked_good - prevalence * rates.asked_bad
    wrong = (1 - prevalence) * rates.false_reject + prevalence * rates.escape
    return Coverage(
        accept_below=accept_below,
        reject_from=reject_from,
        coverage=decided,
        risk=wrong / decided if decided > 0 else 0.0,
        false_reject_rate=rates.false_reject,
        escape_rate=rates.escape,
    )


def _count_verdicts(scores: Sequence[float], model: OnnxModel) -> dict[str, int]:
    counts = Counter(
        judge(Prediction(score=score, model=model.version), model.limits) for score in scores
    )
    return {verdict.value: counts[verdict] for verdict in Verdict}


def _guarantee(promise: LimitPromise, failures: int, n: int) -> Guarantee:
    low = lower_bound(failures, n, confidence=0.975)
    return Guarantee(
        holds=promise.guarantee is not None,
        limit=promise.value,
        alpha=promise.alpha,
        n=promise.n,
        needed=promise.needed,
        guarantee=promise.guarantee,
        reason=promise.reason,
        observed=failures / n,
        observed_low=low,
        observed_high=upper_bound(failures, n, confidence=0.975),
        kept=None if promise.alpha is None else low <= promise.alpha,
    )


class _PixelCount:
    """Scores of pixels on and off the defects, counted in bins of the map's value.

    Memory does not grow with the pictures. A defective picture without a mask is left
    out, a good one is all background.
    """

    def __init__(self) -> None:
        self._off = np.zeros(_HEAT_BINS, np.int64)
        self._on = np.zeros(_HEAT_BINS, np.int64)
        self._regions = np.zeros(_HEAT_BINS)
        self._region_count = 0

    def add(self, sample: Sample, heat: NDArray[np.float32], shape: tuple[int, ...]) -> None:
        """Count the pixels of one picture."""
        height, width = shape
        if sample.label == "good":
            mask = np.zeros((height, width), bool)
        elif sample.mask is not None:
            mask = read_mask(sample.mask)
        else:
            return
        if mask.shape != (height, width):
            raise DatasetError(
                f"{sample.mask}: mask of {mask.shape[1]}x{mask.shape[0]} pixels for a picture of "
                f"{width}x{height}: mark the defect on the picture itself"
            )
        full = cv2.resize(heat, (width, height), interpolation=cv2.INTER_LINEAR)
        # x / (1 + x) keeps the order of the values and has no upper end to overflow.
        bins = (full / (1 + full) * (_HEAT_BINS - 1)).astype(np.int64)
        self._on += np.bincount(bins[mask], minlength=_HEAT_BINS)
        self._off += np.bincount(bins[~mask], minlength=_HEAT_BINS)
        count, regions = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)
        sizes = np.bincount(regions.ravel(), minlength=count)
        # Every region weighs the same, however many pixels it has.
        self._regions += np.bincount(
            bins[mask], weights=1.0 / sizes[regions[mask]], minlength=_HEAT_BINS
        )
        self._region_count += count - 1

    def auroc(self) -> float | None:
        """Return the chance that a pixel on a defect lies above one off it."""
        on, off = int(self._on.sum()), int(self._off.sum())
        if not on or not off:
            return None
        below = np.cumsum(self._off) - self._off / 2
        return float((self._on * below).sum() / on / off)

    def au_pro(self) -> float | None:
        """Return the mean share of a defect that is marked, over limits of the map.

        The area under it against the share of good pixels marked, up to PRO_FALSE_MAX of
        these, as a share of that area at best (Bergmann et al. 2021).
        """
        off = int(self._off.sum())
        if not self._region_count or not off:
            return None
        false = np.concatenate([[0.0], np.cumsum(self._off[::-1]) / off])
        overlap = np.concatenate([[0.0], np.cumsum(self._regions[::-1]) / self._region_count])
        inside = int(np.searchsorted(false, PRO_FALSE_MAX, side="right"))
        end = np.interp(PRO_FALSE_MAX, false, overlap)
        x = np.append(false[:inside], PRO_FALSE_MAX)
        y = np.append(overlap[:inside], end)
        return float(np.trapezoid(y, x) / PRO_FALSE_MAX)
