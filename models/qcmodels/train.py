"""Teaching: from a folder of good parts to a released model.

All good parts teach. The limits come from the same parts, each scored by a model that was
taught without it. A node can do this by itself; it takes no torch and no network.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import numpy as np

from qcmodels.bank import GRID, IMAGE, SIZE
from qcmodels.calibrate import (
    PICTURES_MAX,
    TOKENS_PER_ESCALATION,
    calibrate,
    normal_marks,
    normal_pictures,
)
from qcmodels.choose import (
    FAMILIES,
    LEARNS_LABELS,
    by_labels,
    check_family,
    try_families,
)
from qcmodels.data import as_kept, digest_of, find_copies, open_dataset, read_sample, require_train
from qcmodels.families.contract import HEAT, SCORE, Features, FitConfig, compose_model
from qcmodels.release import check_target, list_files, write_release
from qcmodels.sources import KINDS, Describer, build_source
from qcmodels.suspects import LEFT_OUT_FROM, find_suspects
from qcmodels.synthetic import draw_defects
from qcnode.errors import DatasetError
from qcnode.manifest import (
    GoldenFrame,
    ModelManifest,
    ModelOutputs,
    PictureInput,
    TaughtFrom,
    digest_scores,
)
from qcnode.picture import JPEG_MAGIC, encode_png, seen_at
from qcnode.runtime.onnx import open_session

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime
    from pathlib import Path
    from typing import TypeAlias

    import onnxruntime as ort
    from numpy.typing import NDArray

    from qcmodels.choose import FoldScores
    from qcmodels.data import Dataset, Sample
    from qcnode.manifest import FamilyTrial
    from qcnode.runtime.onnx import OnnxModel

    Progress: TypeAlias = Callable[[str, int, int], None]

GOOD_MIN: Final = 10
GOOD_MAX: Final = 1_000
"""Good pictures that are taught; of more, so many are drawn, for memory and time."""
MODEL_FILE: Final = "model.onnx"
GOLDEN_TOLERANCE: Final = 1e-3
_GOLDEN_EACH: Final = 2
_DRAWN_ON: Final = 40
"""Good pictures that get synthetic defects, ten each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TeachConfig:
    """What is asked of the limits, and the seed of all random choices.

    `alpha` bounds the share of good parts rejected, `escape_alpha` that of defective parts
    passed. No more than `pass_share` of the good parts pass unasked, whatever else is earned.
    `prevalence` is the share of defective parts the risk table is reckoned for. With
    `ask_share` the limits are chosen from that table instead of earned. `family`
    None means that the best one is chosen; `normals_only` leaves labelled defects aside.
    """

    seed: int = 0
    alpha: float = 0.05
    escape_alpha: float = 0.1
    pass_share: float = 0.9
    prevalence: float = 0.02
    ask_share: float | None = None
    family: str | None = None
    normals_only: bool = False


def teach(
    dataset: Path,
    out: Path,
    *,
    config: TeachConfig,
    now: datetime,
    progress: Progress,
    threads: int = 1,
) -> OnnxModel:
    """Teach on the pictures in `dataset` and release the model at `out`."""
    check_target(out)
    if config.family is not None:
        check_family(config.family)
    data = open_dataset(dataset)
    if config.normals_only:
        data = replace(data, train_defects=())
    require_train(data, good_min=GOOD_MIN)
    study = _Study(data, config=config, progress=progress, threads=threads)
    tried = study.try_families()
    best, scores = tried[0]

    head = FAMILIES[best.family](study.features(best.features), study.config)
    model = compose_model(build_source(best.features), head)
    content = model.SerializeToString(deterministic=True)
    judged = _judge(open_session(content, threads=threads), study, progress)
    # A family that learns nothing from labels has never seen a defect, so the model in
    # service gives their scores; one that learns has seen them all.
    learns = best.family in LEARNS_LABELS
    good = scores.good.tolist()
    defects = scores.defects.tolist() if learns else judged.defects
    limits = calibrate(
        good,
        defects,
        alpha=config.alpha,
        escape_alpha=config.escape_alpha,
        pass_share=config.pass_share,
        prevalence=config.prevalence,
        folds=scores.good_folds,
        defect_folds=scores.defect_folds if learns else None,
        ask_share=config.ask_share,
    )

    contents = {MODEL_FILE: content, **judged.golden_pictures}
    height, width = study.sizes.pop() if len(study.sizes) == 1 else (None, None)
    manifest = ModelManifest(
        schema_version=2,
        name=data.name,
        created_at=now,
        family=best.family,
        trials=tuple(trial for trial, _ in tried),
        model=MODEL_FILE,
        input=PictureInput(
            name=IMAGE, layout="uint8 RGB HWC", height=height, width=width, side=SIZE
        ),
        outputs=ModelOutputs(score=SCORE, heat=HEAT, heat_rows=GRID, heat_columns=GRID),
        labels=data.labels,
        accept_below=limits.accept_below,
        reject_from=limits.reject_from,
        prevalence=config.prevalence,
        tokens_per_escalation=TOKENS_PER_ESCALATION,
        risk_coverage=limits.risk_coverage,
        taught_from=study.taught_from(),
        good_scores=tuple(sorted(good)),
        defect_scores=tuple(sorted(defects)),
        calibration_sha256=digest_scores(good, defects),
        pictures=normal_pictures(
            read_sample(sample, side=SIZE).pixels for sample in study.some_good(PICTURES_MAX)
        ),
        marks=normal_marks(as_kept(sample) for sample in study.some_good(PICTURES_MAX)),
        golden=judged.golden,
        golden_tolerance=GOLDEN_TOLERANCE,
        files=list_files(contents),
    )
    return write_release(out, manifest, contents)


class _Study:
    """The pictures of a data set, described; which of them teach, and what suits them."""

    def __init__(
        self, data: Dataset, *, config: TeachConfig, progress: Progress, threads: int
    ) -> None:
        self._data = data
        self._family = config.family
        self.config = FitConfig(seed=config.seed, threads=threads)
        self._progress = progress
        self._describe = Describer(threads=threads)
        self.sizes: set[tuple[int, int]] = set()
        copies = set(find_copies((*data.train_good, *data.train_defects)))
        good = [sample for sample in data.train_good if sample not in copies]
        _require_different(good, data)
        drawn = np.random.default_rng(config.seed).permutation(len(good))[:GOOD_MAX]
        good = [good[number] for number in sorted(drawn)]
        parts = self._described(good, "teach: good parts")
        suspects = find_suspects(
            parts[KINDS[0]],
            config=self.config,
            progress=lambda done, total: progress("teach: suspects", done, total),
        )
        self._suspects = tuple(good[number] for number in suspects)
        out = set(suspects if len(good) >= LEFT_OUT_FROM else ())
        kept = [number for number in range(len(good)) if number not in out]
        self.good: tuple[Sample, ...] = tuple(good[number] for number in kept)
        self.defects: tuple[Sample, ...] = data.train_defects
        self._good = {name: part[kept] for name, part in parts.items()}
        self._defects = self._described(self.defects, "teach: labelled defects")

    def features(self, kind: str) -> Features:
        """Return the features of one kind."""
        return Features(good=self._good[kind], defects=self._defects[kind])

    def try_families(self) -> tuple[tuple[FamilyTrial, FoldScores], ...]:
        """Return the families tried, best first, and the scores by fold of each."""
        return try_families(
            {kind: self.features(kind) for kind in KINDS},
            {} if by_labels(len(self.defects)) else self._synthetic(),
            family=self._family,
            config=self.config,
            progress=lambda done, total: self._progress("teach: families", done, total),
        )

    def some_good(self, count: int) -> list[Sample]:
        """Return good parts drawn at random."""
        drawn = np.random.default_rng(self.config.seed).permutation(len(self.good))
        return [self.good[number] for number in drawn[:count]]

    def taught_from(self) -> TaughtFrom:
        """Return what the manifest says of these pictures."""
        data = self._data
        kept = set(self.good)
        return TaughtFrom(
            name=data.name,
            sha256=digest_of((*data.train_good, *data.train_defects), data.root),
            taught=len(self.good),
            calibrated=len(self.good),
            defects=len(self.defects),
            seed=self.config.seed,
            suspects=self._paths(self._suspects),
            left_out=self._paths([one for one in data.train_good if one not in kept]),
        )

    def _paths(self, samples: Sequence[Sample]) -> tuple[str, ...]:
        return tuple(one.path.relative_to(self._data.root).as_posix() for one in samples)

    def _described(self, samples: Sequence[Sample], stage: str) -> dict[str, NDArray[np.float32]]:
        rows: dict[str, list[NDArray[np.float32]]] = {name: [] for name in KINDS}
        for done, sample in enumerate(samples, start=1):
            seen = read_sample(sample, side=SIZE)
            self.sizes.add(seen.size)
            for name, part in self._describe(seen.pixels).items():
                rows[name].append(part)
            self._progress(stage, done, len(samples))
        if not samples:
            return {name: part[:0] for name, part in self._good.items()}
        return {name: np.stack(parts) for name, parts in rows.items()}

    def _synthetic(self) -> dict[str, list[tuple[int, NDArray[np.float32]]]]:
        """Return features of good pictures with made-up defects, and whose they are."""
        random = np.random.default_rng(self.config.seed)
        drawn = random.permutation(len(self.good))[:_DRAWN_ON]
        rows: dict[str, list[tuple[int, NDArray[np.float32]]]] = {name: [] for name in KINDS}
        for done, number in enumerate(drawn, start=1):
            good = read_sample(self.good[number], side=SIZE)
            for picture in draw_defects(good.pixels, random):
                for name, part in self._describe(picture).items():
                    rows[name].append((int(number), part))
            self._progress("teach: synthetic defects", done, len(drawn))
        return rows


def _require_different(good: Sequence[Sample], data: Dataset) -> None:
    if len(good) == 1:
        raise DatasetError(
            f"{data.root}: all {len(data.train_good)} pictures in train/good are identical: "
            "teach from pictures of many parts"
        )
    if len(good) < GOOD_MIN:
        raise DatasetError(
            f"{data.root}: {len(good)} pictures in train/good that are no copies of others, at "
            f"least {GOOD_MIN} are needed: add {GOOD_MIN - len(good)}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Judged:
    """What the finished model says of defects, and of the pictures it will be proven by."""

    defects: list[float]
    golden: tuple[GoldenFrame, ...]
    golden_pictures: dict[str, bytes]


def _judge(session: ort.InferenceSession, study: _Study, progress: Progress) -> _Judged:
    defects: list[float] = []
    golden: list[GoldenFrame] = []
    pictures: dict[str, bytes] = {}
    samples = (*study.some_good(_GOLDEN_EACH), *study.defects)
    for done, sample in enumerate(samples, start=1):
        seen = read_sample(sample, side=SIZE)
        score, heat = session.run([SCORE, HEAT], {IMAGE: seen_at(seen.pixels, SIZE)})
        if done > _GOLDEN_EACH:
            defects.append(float(score))
        if done <= 2 * _GOLDEN_EACH:
            # A JPEG stays as it is, so that its decoder here is proven, too.
            jpeg = seen.encoded.startswith(JPEG_MAGIC)
            path = f"golden/{len(golden)}.{'jpg' if jpeg else 'png'}"
            pictures[path] = seen.encoded if jpeg else encode_png(seen.whole())
            golden.append(
                GoldenFrame(
                    path=path,
                    label=sample.label,
                    score=float(score),
                    heat_max=float(heat.max()),
                )
            )
        progress("calibrate: defects", done, len(samples))
    return _Judged(defects=defects, golden=tuple(golden), golden_pictures=pictures)
