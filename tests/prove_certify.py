"""Whether limits keep what they promise, over many random splits: run by `make prove-certify`.

A promise speaks of all calibration sets, so one test says little. Here each limit is earned
a thousand times from random parts and tried on the others, real scores (from models never
taught on them) and made-up ones. How often a limit that holds is exceeded is known exactly,
for scores without ties, and that is what the counts are held against:

- kept 1: the mean over splits is at most alpha, but for three standard errors of that mean;
- kept 2: no more splits lie above alpha than chance allows (once in a thousand runs more);
- kept 3: likewise above the share that one calibration set keeps to with 95 % confidence.

Baselines that people type or guess stand beside it, and controls that have to fail.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from qcmodels.data import open_dataset
from qcmodels.train import TeachConfig, teach
from qcnode.certify import (
    earn_escape_limit,
    earn_reject_limit,
    parts_needed,
    settle_limits,
)
from qcnode.domain import Frame
from qcnode.picture import read_picture

if TYPE_CHECKING:
    from qcnode.runtime.onnx import OnnxModel

Scores = NDArray[np.float64]
Draw = Callable[[np.random.Generator, int], tuple[Scores, Scores]]
"""Calibration scores, this many, and others to try a limit on."""

SPLITS = 1_000
FRESH = 2_000
"""How many made-up parts each limit is tried on."""
ONCE_IN = 0.001
FOLDS = 5
NOW = datetime(2026, 11, 22, tzinfo=UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One promise over many splits: what was seen, what was stated, and whether it was kept."""

    name: str
    alpha: float
    n: int
    splits: int
    mean: float
    above_alpha: float
    above_alpha_stated: float | None
    above_95: float | None
    above_95_stated: float | None
    kept: bool


# -- scores ------------------------------------------------------------------------------


def from_pool(pool: Scores) -> Draw:
    """Split a pool of scores at random."""

    def draw(rng: np.random.Generator, n: int) -> tuple[Scores, Scores]:
        mixed = rng.permutation(pool)
        return mixed[:n], mixed[n:]

    return draw


def from_law(law: Callable[[np.random.Generator, int], Scores]) -> Draw:
    """Draw everything anew each time."""

    def draw(rng: np.random.Generator, n: int) -> tuple[Scores, Scores]:
        return law(rng, n), law(rng, FRESH)

    return draw


LAWS: dict[str, tuple[Draw, Draw]] = {
    "normal": (
        from_law(lambda rng, n: rng.normal(0, 1, n)),
        from_law(lambda rng, n: rng.normal(3, 1, n)),
    ),
    "heavy tails": (
        from_law(lambda rng, n: rng.standard_t(1.5, n)),
        from_law(lambda rng, n: 6 + rng.standard_t(1.5, n)),
    ),
    "whole numbers": (
        from_law(lambda rng, n: rng.poisson(2, n).astype(float)),
        from_law(lambda rng, n: rng.poisson(9, n).astype(float)),
    ),
    "two values": (
        from_law(lambda rng, n: (rng.random(n) < 0.04).astype(float)),
        from_law(lambda rng, n: (rng.random(n) < 0.9).astype(float)),
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """Scores of a recorded set: of good parts and defects never taught, and of taught parts."""

    good: Scores
    defects: Scores
    taught: Scores


def recorded(dataset: Path, work: Path) -> Recorded:
    """Teach on half of the good pictures and score all others."""
    data = open_dataset(dataset)
    drawn = list(data.train_good)
    random.Random(20261122).shuffle(drawn)
    half = len(drawn) // 2
    _, judge = _taught_on([sample.path for sample in drawn[:half]], work / dataset.name)
    return Recorded(
        good=judge([*(one.path for one in drawn[half:]), *(one.path for one in data.test_good)]),
        defects=judge([one.path for one in (*data.train_defects, *data.test_defects)]),
        taught=judge([one.path for one in drawn[:half]]),
    )


def _taught_on(
    pictures: list[Path], folder: Path
) -> tuple[OnnxModel, Callable[[list[Path]], Scores]]:
    into = folder / "data" / "train" / "good"
    into.mkdir(parents=True)
    for number, path in enumerate(pictures):
        shutil.copy(path, into / f"{number:04d}{path.suffix}")
    model = teach(
        folder / "data",
        folder / "model",
        # Promises hold for any family; of this one limits from folds are the least sure.
        config=TeachConfig(family="gaussian"),
        now=NOW,
        progress=lambda *_: None,
    )

    def judge(paths: list[Path]) -> Scores:
        found = []
        for path in paths:
            frame = Frame(
                id="f",
                part_id="p",
                camera="c",
                name=str(path),
                captured_at=NOW,
                pixels=read_picture(path),
            )
            found.append(model.predict(frame).score)
        return np.array(found)

    return model, judge


# -- promises ----------------------------------------------------------------------------


def reject_cell(name: str, draw: Draw, *, alpha: float, n: int, splits: int, seed: int) -> Cell:
    """Try the reject limit on good parts."""
    rng = np.random.default_rng(seed)
    rates, bounds, size = [], [], 0
    for _ in range(splits):
        calibration, others = draw(rng, n)
        limit = earn_reject_limit(calibration.tolist(), alpha=alpha)
        rates.append(float((others >= limit.value).mean()))
        bounds.append(limit.alpha_95)
        size = others.size
    index = math.ceil(round((n + 1) * (1 - alpha), 9))
    return _cell(name, rates, bounds[0], alpha=alpha, n=n, size=size, above=n + 1 - index)


def escape_cell(name: str, draw: Draw, *, alpha: float, n: int, splits: int, seed: int) -> Cell:
    """Try the pass limit on defects."""
    rng = np.random.default_rng(seed)
    rates, bounds, size = [], [], 0
    for _ in range(splits):
        calibration, others = draw(rng, n)
        limit = earn_escape_limit(calibration.tolist(), alpha=alpha)
        rates.append(float((others < limit.value).mean()))
        bounds.append(limit.alpha_95)
        size = others.size
    index = math.floor(round(alpha * (n + 1), 9))
    return _cell(name, rates, bounds[0], alpha=alpha, n=n, size=size, above=index)


def settled_cells(
    name: str, good: Draw, defects: Draw, *, n: int, n_defects: int, splits: int, seed: int
) -> tuple[Cell, Cell]:
    """Try both limits as a release carries them, settled with each other."""
    rng = np.random.default_rng(seed)
    rejects, escapes = [], []
    for _ in range(splits):
        ours, others = good(rng, n)
        bad, other_bad = defects(rng, n_defects)
        accept, reject = settle_limits(
            ours.tolist(),
            earn_reject_limit(ours.tolist(), alpha=0.05),
            earn_escape_limit(bad.tolist(), alpha=0.1),
            pass_share=0.9,
        )
        rejects.append(float((others >= reject.value).mean()))
        escapes.append(float((other_bad < accept.value).mean()))
    return (
        _plain(f"{name}, settled reject", rejects, alpha=0.05, n=n),
        _plain(f"{name}, settled pass", escapes, alpha=0.1, n=n_defects),
    )


def _plain(name: str, rates: list[float], *, alpha: float, n: int) -> Cell:
    """Hold the mean alone against alpha: how far splits spread is not stated of these."""
    error = float(np.std(rates)) / math.sqrt(len(rates))
    mean = float(np.mean(rates))
    return Cell(
        name=name,
        alpha=alpha,
        n=n,
        splits=len(rates),
        mean=mean,
        above_alpha=float(np.mean(np.array(rates) > alpha + 1e-12)),
        above_alpha_stated=None,
        above_95=None,
        above_95_stated=None,
        kept=mean <= alpha + 3 * error,
    )


def _cell(
    name: str,
    rates: list[float],
    bound: float | None,
    *,
    alpha: float,
    n: int,
    size: int,
    above: int,
) -> Cell:
    """Hold splits against the law of their counts: `above` of n + 1 ranks are beyond the limit."""
    splits = len(rates)
    a, b = above, n + 1 - above
    expected = a / (a + b)
    variance = expected * (1 - expected) * (a + b + size) / (a + b + 1) / size
    stated = _share_above(alpha, size, a, b)
    stated_95 = _share_above(bound, size, a, b) if bound is not None else 0.0
    seen = np.array(rates)
    above_alpha = int((seen > alpha + 1e-12).sum())
    above_95 = int((seen > bound + 1e-12).sum()) if bound is not None else 0
    mean = float(seen.mean())
    return Cell(
        name=name,
        alpha=alpha,
        n=n,
        splits=splits,
        mean=mean,
        above_alpha=above_alpha / splits,
        above_alpha_stated=stated,
        above_95=above_95 / splits,
        above_95_stated=stated_95,
        kept=mean <= alpha + 3 * math.sqrt(variance / splits)
        and above_alpha <= _most(splits, stated)
        and above_95 <= _most(splits, stated_95),
    )


def _share_above(limit: float, size: int, a: int, b: int) -> float:
    """Return P(more than `limit` of `size` parts lie beyond), when their share is Beta(a, b)."""
    most = math.floor(limit * size + 1e-9)
    upto = math.fsum(
        math.exp(
            math.lgamma(size + 1)
            - math.lgamma(count + 1)
            - math.lgamma(size - count + 1)
            + math.lgamma(count + a)
            + math.lgamma(size - count + b)
            - math.lgamma(size + a + b)
            + math.lgamma(a + b)
            - math.lgamma(a)
            - math.lgamma(b)
        )
        for count in range(min(most, size) + 1)
    )
    return max(0.0, 1.0 - upto)


def _most(splits: int, share: float) -> int:
    """Return the count of splits that a true share exceeds no more than once in a thousand."""
    if share <= 0:
        return 0
    upto, count = 0.0, -1
    while upto < 1 - ONCE_IN and count < splits:
        count += 1
        upto += math.exp(
            math.lgamma(splits + 1)
            - math.lgamma(count + 1)
            - math.lgamma(splits - count + 1)
            + count * math.log(share)
            + (splits - count) * math.log1p(-min(share, 1 - 1e-15))
        )
    return count


def refusals() -> tuple[int, int]:
    """Return how many under-sampled cases there are, and how many were refused as they should."""
    cases = refused = 0
    for alpha in (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5):
        for n in range(parts_needed(alpha)):
            for earn in (earn_reject_limit, earn_escape_limit):
                limit = earn(range(n), alpha=alpha)
                cases += 1
                refused += (
                    limit.value is None
                    and limit.guarantee is None
                    and limit.needed == parts_needed(alpha) - n
                    and f"{limit.needed} more" in limit.reason
                )
    return cases, refused


# -- cross-conformal ---------------------------------------------------------------------


Learner = Callable[[Scores], Callable[[Scores], Scores]]
"""From points to how unlike them others are."""


def nearest(taught: Scores) -> Callable[[Scores], Scores]:
    """Keep all points: more of them never raise a score."""

    def score(points: Scores) -> Scores:
        apart = points[:, np.newaxis, :] - taught[np.newaxis, :, :]
        return (apart**2).sum(axis=2).min(axis=1)

    return score


def gaussian(taught: Scores) -> Callable[[Scores], Scores]:
    """Fit a mean and a shrunk covariance, as the Gaussian family does at each position."""
    middle = taught.mean(axis=0)
    spread = np.cov(taught.T) + 0.01 * np.eye(taught.shape[1])
    inverse = np.linalg.inv(spread)

    def score(points: Scores) -> Scores:
        away = points - middle
        return np.einsum("ni,ij,nj->n", away, inverse, away)

    return score


def growing(taught: Scores) -> Callable[[Scores], Scores]:
    """Break the condition: the more points, the higher every score."""
    return lambda points: np.abs(points).sum(axis=1) * len(taught)


def cross_cell(
    name: str, learner: Learner, *, n: int, splits: int, seed: int
) -> tuple[Cell, float]:
    """Try a limit from folds on a model taught on all, and count raised scores."""
    rng = np.random.default_rng(seed)
    folds = np.arange(n) % FOLDS
    rates, raised = [], []
    for _ in range(splits):
        points, fresh = rng.normal(size=(n, 4)), rng.normal(size=(400, 4))
        scores, without = np.empty(n), []
        for fold in range(FOLDS):
            judge = learner(points[folds != fold])
            scores[folds == fold] = judge(points[folds == fold])
            without.append(judge(fresh))
        limit = earn_reject_limit(
            scores.tolist(), alpha=0.05, folds=folds.tolist(), nested=learner is nearest
        )
        served = learner(points)(fresh)
        rates.append(float((served >= limit.value).mean()))
        raised.append(float((served[np.newaxis, :] > np.array(without)).mean()))
    return _plain(name, rates, alpha=0.05, n=n), float(np.mean(raised))


@dataclass(frozen=True, slots=True, kw_only=True)
class CrossRecorded:
    """What the limit of a release came to on the test parts of a recorded set."""

    dataset: str
    family: str
    n: int
    guarantee: str | None
    rejected: int
    good: int


def cross_recorded(dataset: Path, work: Path) -> CrossRecorded:
    """Teach on all good pictures, as a release is, and try its limit on the test ones."""
    data = open_dataset(dataset)
    model, judge = _taught_on(
        [sample.path for sample in data.train_good], work / f"{dataset.name}-all"
    )
    promise = model.manifest.reject_from
    assert promise.value is not None
    served = judge([sample.path for sample in data.test_good])
    return CrossRecorded(
        dataset=dataset.name,
        family=model.manifest.family,
        n=promise.n,
        guarantee=promise.guarantee,
        rejected=int((served >= promise.value).sum()),
        good=served.size,
    )


# -- what people do instead --------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Baseline:
    """What one way to set a limit came to, over splits."""

    dataset: str
    rule: str
    rejected: float
    rejected_95: float
    """What one split in twenty exceeds."""
    above_5_percent: float
    escaped: float
    asked: float


def baselines(name: str, found: Recorded, *, n: int, n_defects: int, splits: int) -> list[Baseline]:
    """Try each rule on the same splits."""
    rng = np.random.default_rng(5)
    good, bad = from_pool(found.good), from_pool(found.defects)
    rows: dict[str, list[tuple[float, float, float]]] = {}
    for _ in range(splits):
        ours, others = good(rng, n)
        defects, other_defects = bad(rng, n_defects)
        for rule, limit in _typed(ours, defects, found.taught).items():
            rows.setdefault(rule, []).append(
                (float((others >= limit).mean()), float((other_defects < limit).mean()), 0.0)
            )
        accept, reject = settle_limits(
            ours.tolist(),
            earn_reject_limit(ours.tolist(), alpha=0.05),
            earn_escape_limit(defects.tolist(), alpha=0.1),
            pass_share=0.9,
        )
        low, high = min(accept.value, reject.value), max(accept.value, reject.value)
        rows.setdefault("earned: reject 5 %, escape 10 %", []).append(
            (
                float((others >= high).mean()),
                float((other_defects < low).mean()),
                float(((others >= low) & (others < high)).mean()),
            )
        )
    return [
        Baseline(
            dataset=name,
            rule=rule,
            rejected=float(np.mean([row[0] for row in seen])),
            rejected_95=float(np.quantile([row[0] for row in seen], 0.95)),
            above_5_percent=float(np.mean([row[0] > 0.05 for row in seen])),
            escaped=float(np.mean([row[1] for row in seen])),
            asked=float(np.mean([row[2] for row in seen])),
        )
        for rule, seen in rows.items()
    ]


def _typed(good: Scores, defects: Scores, taught: Scores) -> dict[str, float]:
    both = np.concatenate([good, defects])
    return {
        "typed: 0.5 of the range": float((both.min() + both.max()) / 2),
        "mean + 3 sigma of good": float(good.mean() + 3 * good.std()),
        "95th percentile of good": float(np.quantile(good, 0.95)),
        "F1-adaptive": _best_f1(good, defects),
        "earned on taught parts": float(earn_reject_limit(taught.tolist(), alpha=0.05).value or 0),
    }


def _best_f1(good: Scores, defects: Scores) -> float:
    limits = np.unique(np.concatenate([good, defects]))
    hits = (defects[np.newaxis, :] >= limits[:, np.newaxis]).sum(axis=1)
    false = (good[np.newaxis, :] >= limits[:, np.newaxis]).sum(axis=1)
    return float(limits[(2 * hits / (2 * hits + false + defects.size - hits)).argmax()])


def taught_control(*, splits: int) -> Cell:
    """Earn the limit on the very parts the model was taught on: this has to fail."""
    rng = np.random.default_rng(6)
    rates = []
    for _ in range(splits):
        points, fresh = rng.normal(size=(60, 12)), rng.normal(size=(400, 12))
        judge = gaussian(points)
        limit = earn_reject_limit(judge(points).tolist(), alpha=0.05)
        rates.append(float((judge(fresh) >= limit.value).mean()))
    return _plain("limit earned on taught parts", rates, alpha=0.05, n=60)


def typed_control(name: str, good: Draw, defects: Draw, *, splits: int) -> Cell:
    """Take the middle of the range, as one types 0.5, for a pass limit: this has to fail."""
    rng = np.random.default_rng(6)
    rates = []
    for _ in range(splits):
        ours, _ = good(rng, 60)
        bad, others = defects(rng, 40)
        rates.append(float((others < _typed(ours, bad, ours)["typed: 0.5 of the range"]).mean()))
    return _plain(f"{name}, limit typed as 0.5 of the range", rates, alpha=0.1, n=40)


# -- all of it ---------------------------------------------------------------------------


def promises(pools: dict[str, Recorded], *, splits: int) -> list[Cell]:
    """Try the promises on every pool, at several alphas and sizes."""
    cells = []
    every: dict[str, tuple[Draw, Draw]] = {
        **{name: (from_pool(one.good), from_pool(one.defects)) for name, one in pools.items()},
        **LAWS,
    }
    for seed, (name, (good, defects)) in enumerate(every.items()):
        for alpha, n in ((0.05, 19), (0.05, 60), (0.05, 120), (0.01, 99)):
            cells.append(
                reject_cell(f"{name}, reject", good, alpha=alpha, n=n, splits=splits, seed=seed)
            )
        for alpha, n in ((0.1, 9), (0.1, 40), (0.05, 72), (0.01, 99)):
            cells.append(
                escape_cell(f"{name}, pass", defects, alpha=alpha, n=n, splits=splits, seed=seed)
            )
        cells += settled_cells(name, good, defects, n=60, n_defects=40, splits=splits, seed=seed)
    return cells


def main() -> int:
    """Print the figures as one JSON object; exit code 1 means that a promise was not kept."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--splits", type=int, default=SPLITS)
    asked = parser.parse_args()
    began = time.monotonic()
    sets = [asked.data / name for name in ("paper", "solar_mono") if (asked.data / name).is_dir()]
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        pools = {dataset.name: recorded(dataset, work) for dataset in sets}
        print(f"scored after {time.monotonic() - began:.0f} s", file=sys.stderr)  # noqa: T201  # a script that prints is what this is
        cells = promises(pools, splits=asked.splits)
        print(f"split after {time.monotonic() - began:.0f} s", file=sys.stderr)  # noqa: T201  # a script that prints is what this is
        crossed = {
            name: cross_cell(name, learner, n=60, splits=asked.splits, seed=9)
            for name, learner in (("nearest of all points", nearest), ("Gaussian", gaussian))
        }
        broken, _ = cross_cell("condition broken", growing, n=60, splits=asked.splits, seed=9)
        crossed_recorded = [cross_recorded(dataset, work) for dataset in sets]
    controls = [
        broken,
        taught_control(splits=asked.splits),
        typed_control("heavy tails", *LAWS["heavy tails"], splits=asked.splits),
        *(
            typed_control(name, from_pool(one.good), from_pool(one.defects), splits=asked.splits)
            for name, one in pools.items()
        ),
    ]
    cases, refused = refusals()
    said = {
        "splits": asked.splits,
        "promises": [asdict(cell) for cell in cells],
        "cross": [{**asdict(cell), "raised": raised} for cell, raised in crossed.values()],
        "cross_recorded": [asdict(one) for one in crossed_recorded],
        "controls": [asdict(cell) for cell in controls],
        "baselines": [
            asdict(row)
            for name, one in pools.items()
            for row in baselines(name, one, n=60, n_defects=40, splits=asked.splits)
        ],
        "undersampled": {"cases": cases, "refused": refused},
        "seconds": round(time.monotonic() - began),
    }
    print(json.dumps(said, indent=1))  # noqa: T201  # a script that prints is what this is
    kept = (
        all(cell.kept for cell in cells)
        and all(cell.kept for cell, _ in crossed.values())
        and not any(cell.kept for cell in controls)
        and refused == cases
    )
    print("kept" if kept else "NOT KEPT", file=sys.stderr)  # noqa: T201  # a script that prints is what this is
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
