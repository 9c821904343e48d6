"""Teaching: from a folder of good parts to a released model.

The bank describes the pictures, the family learns from most of them, the rest set the
limits. A node can do this by itself; it takes no torch and no network.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from qcmodels.bank import FEATURES, GRID, IMAGE, build_bank
from qcmodels.calibrate import calibrate, split_good
from qcmodels.data import Dataset, digest_of, open_dataset, read_sample, require_train
from qcmodels.families import gaussian
from qcmodels.release import check_target, list_files, write_release
from qcnode.manifest import GoldenFrame, ModelManifest, ModelOutputs, PictureInput, TaughtFrom
from qcnode.picture import encode_png
from qcnode.runtime.onnx import open_session

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from datetime import datetime
    from pathlib import Path
    from typing import TypeAlias

    import numpy as np
    import onnxruntime as ort
    from numpy.typing import NDArray

    from qcmodels.data import Sample
    from qcnode.runtime.onnx import OnnxModel

    Progress: TypeAlias = Callable[[str, int, int], None]

GOOD_MIN: Final = 10
MODEL_FILE: Final = "model.onnx"
GOLDEN_TOLERANCE: Final = 1e-3
_GOLDEN_EACH: Final = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class TeachConfig:
    """What is asked of the limits, and the seed of the one random choice.

    `alpha` bounds the share of good parts rejected, `escape_alpha` that of defective parts
    passed. No more than `pass_share` of the good parts pass unasked, whatever else is earned.
    `prevalence` is the share of defective parts the risk table is reckoned for.
    """

    seed: int = 0
    alpha: float = 0.05
    escape_alpha: float = 0.1
    pass_share: float = 0.9
    prevalence: float = 0.02


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
    data = open_dataset(dataset)
    require_train(data, good_min=GOOD_MIN)
    split = split_good(data.train_good, seed=config.seed, alpha=config.alpha)

    bank = build_bank()
    sizes: set[tuple[int, int]] = set()
    describe = open_session(bank.SerializeToString(), threads=threads)
    taught = gaussian.fit(_features(describe, split.teach, sizes, progress))
    model = gaussian.compose_model(bank, taught).SerializeToString(deterministic=True)

    judge = open_session(model, threads=threads)
    good = _judge(judge, split.calibrate, sizes, progress, "calibrate: good parts")
    bad = _judge(judge, data.train_defects, sizes, progress, "calibrate: defects")
    limits = calibrate(
        [item.score for item in good],
        [item.score for item in bad],
        alpha=config.alpha,
        escape_alpha=config.escape_alpha,
        pass_share=config.pass_share,
        prevalence=config.prevalence,
    )

    golden: list[GoldenFrame] = []
    contents = {MODEL_FILE: model}
    for item in (*good[:_GOLDEN_EACH], *bad[:_GOLDEN_EACH]):
        path = f"golden/{len(golden)}.png"
        contents[path] = encode_png(read_sample(item.sample))
        golden.append(
            GoldenFrame(
                path=path, label=item.sample.label, score=item.score, heat_max=item.heat_max
            )
        )
    height, width = sizes.pop() if len(sizes) == 1 else (None, None)
    manifest = ModelManifest(
        schema_version=1,
        name=data.name,
        created_at=now,
        family=gaussian.FAMILY,
        model=MODEL_FILE,
        input=PictureInput(name=IMAGE, layout="uint8 RGB HWC", height=height, width=width),
        outputs=ModelOutputs(
            score=gaussian.SCORE, heat=gaussian.HEAT, heat_rows=GRID, heat_columns=GRID
        ),
        labels=data.labels,
        accept_below=limits.accept_below,
        reject_from=limits.reject_from,
        prevalence=config.prevalence,
        risk_coverage=limits.risk_coverage,
        taught_from=_taught_from(data, split.teach, split.calibrate, config.seed),
        good_scores=tuple(sorted(item.score for item in good)),
        golden=tuple(golden),
        golden_tolerance=GOLDEN_TOLERANCE,
        files=list_files(contents),
    )
    return write_release(out, manifest, contents)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Judged:
    sample: Sample
    score: float
    heat_max: float


def _features(
    session: ort.InferenceSession,
    samples: Sequence[Sample],
    sizes: set[tuple[int, int]],
    progress: Progress,
) -> Iterator[NDArray[np.float32]]:
    for done, sample in enumerate(samples, start=1):
        pixels = read_sample(sample)
        sizes.add((pixels.shape[0], pixels.shape[1]))
        yield session.run([FEATURES], {IMAGE: pixels})[0]
        progress("teach: good parts", done, len(samples))


def _judge(
    session: ort.InferenceSession,
    samples: Sequence[Sample],
    sizes: set[tuple[int, int]],
    progress: Progress,
    stage: str,
) -> list[_Judged]:
    judged: list[_Judged] = []
    for sample in samples:
        pixels = read_sample(sample)
        sizes.add((pixels.shape[0], pixels.shape[1]))
        score, heat = session.run([gaussian.SCORE, gaussian.HEAT], {IMAGE: pixels})
        judged.append(_Judged(sample=sample, score=float(score), heat_max=float(heat.max())))
        progress(stage, len(judged), len(samples))
    return judged


def _taught_from(
    data: Dataset, taught: Sequence[Sample], calibrated: Sequence[Sample], seed: int
) -> TaughtFrom:
    return TaughtFrom(
        name=data.name,
        sha256=digest_of((*data.train_good, *data.train_defects), data.root),
        taught=len(taught),
        calibrated=len(calibrated),
        defects=len(data.train_defects),
        seed=seed,
    )
