"""Which way to teach suits this product: every candidate is tried, the best is taken.

With enough labelled defects, by how well it tells these from good parts, none of them
seen in teaching. Without, by how well it tells good parts from the same parts with
made-up defects: that ranks candidates on one product and is no estimate of accuracy.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from qcmodels.evaluate import auroc
from qcmodels.families import gaussian, labelled, memory
from qcmodels.families.contract import SCORE, TAUGHT, Features
from qcmodels.folds import draw_folds, fold_numbers
from qcnode.errors import DatasetError
from qcnode.manifest import FamilyTrial
from qcnode.runtime.onnx import open_session

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from qcmodels.families.contract import Fit, FitConfig

FAMILIES: Final[dict[str, Fit]] = {
    "gaussian": gaussian.fit,
    "memory": memory.fit,
    "labelled": labelled.fit,
}
LEARNS_LABELS: Final = frozenset({"labelled"})
BY_LABELS: Final = "held-out labels"
BY_SYNTHETIC: Final = "synthetic defects"
_DIGITS: Final = 4
_FOLDS: Final = 10


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FoldScores:
    """Scores of parts by models taught without them, and the folds they were in."""

    good: NDArray[np.float64]
    good_folds: tuple[int, ...]
    defects: NDArray[np.float64]
    defect_folds: tuple[int, ...]
    extra: NDArray[np.float64]


def check_family(name: str) -> None:
    """Raise `DatasetError` where there is no such family."""
    if name not in FAMILIES:
        raise DatasetError(f"--family {name}: no such family: name one of {', '.join(FAMILIES)}")


def candidates(*, defects: int, family: str | None) -> tuple[str, ...]:
    """Return the families to try with this many labelled defects."""
    if family is not None:
        return (family,)
    return tuple(
        name for name in FAMILIES if name not in LEARNS_LABELS or defects >= labelled.DEFECTS_MIN
    )


def by_labels(defects: int) -> bool:
    """Say whether there are enough labelled defects to choose by."""
    return defects >= labelled.DEFECTS_MIN


def try_families(
    features: Mapping[str, Features],
    synthetic: Mapping[str, Sequence[tuple[int, NDArray[np.float32]]]],
    *,
    family: str | None,
    config: FitConfig,
    progress: Callable[[int, int], None],
) -> tuple[tuple[FamilyTrial, FoldScores], ...]:
    """Return all candidates, the best first; of equals the one that stands first here.

    `synthetic` gives, for each kind of features, the number of a good picture and the
    features of that picture with a defect drawn on it.
    """
    first = next(iter(features.values()))
    measured = by_labels(len(first.defects))
    names = candidates(defects=len(first.defects), family=family)
    pairs = [(name, kind) for kind in features for name in names]
    tried = []
    for number, (name, kind) in enumerate(pairs):
        scores = fold_scores(
            FAMILIES[name],
            features[kind],
            config=config,
            extra=synthetic.get(kind, ()),
            progress=_part(progress, number, len(pairs)),
        )
        trial = FamilyTrial(
            family=name,
            features=kind,
            auroc=round(auroc(scores.good, scores.defects if measured else scores.extra), _DIGITS),
            by=BY_LABELS if measured else BY_SYNTHETIC,
        )
        tried.append((trial, scores))
    return tuple(sorted(tried, key=lambda pair: -pair[0].auroc))


def fold_scores(
    fit: Fit,
    features: Features,
    *,
    config: FitConfig,
    extra: Sequence[tuple[int, NDArray[np.float32]]] = (),
    progress: Callable[[int, int], None],
) -> FoldScores:
    """Score every part by a model taught without its fold.

    `extra` are further pictures, each by the model that scores the good part of its number.
    """
    count = len(features.good)
    folds = draw_folds(count, _FOLDS, seed=config.seed)
    defect_folds = draw_folds(len(features.defects), len(folds), seed=config.seed)
    good, defects = np.zeros(count), np.zeros(len(features.defects))
    more = np.zeros(len(extra))

    def judge_fold(number: int) -> None:
        held = folds[number]
        bad = defect_folds[number] if number < len(defect_folds) else held[:0]
        head = fit(
            Features(
                good=np.delete(features.good, held, axis=0),
                defects=np.delete(features.defects, bad, axis=0),
            ),
            config,
        )
        session = open_session(head.SerializeToString())

        def score(picture: NDArray[np.float32]) -> float:
            return float(session.run([SCORE], {TAUGHT: picture[np.newaxis]})[0])

        good[held] = [score(picture) for picture in features.good[held]]
        defects[bad] = [score(picture) for picture in features.defects[bad]]
        mine = set(held.tolist())
        for index, (part, picture) in enumerate(extra):
            if part in mine:
                more[index] = score(picture)

    with ThreadPoolExecutor(config.threads) as pool:
        for done, _ in enumerate(pool.map(judge_fold, range(len(folds))), start=1):
            progress(done, len(folds))
    return FoldScores(
        good=good,
        good_folds=fold_numbers(folds),
        defects=defects,
        defect_folds=fold_numbers(defect_folds),
        extra=more,
    )


def _part(
    progress: Callable[[int, int], None], number: int, parts: int
) -> Callable[[int, int], None]:
    return lambda done, total: progress(number * total + done, parts * total)
