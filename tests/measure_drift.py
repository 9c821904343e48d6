"""After how many parts drift is noticed, and how often it is for nothing: `make prove-certify`.

A model is taught on pictures of good parts. Others, never taught, come down a line, first
as they are and then through a lamp that fades, a lens that slips, a camera that moves. The
watch is the node's own, at its own settings. What is reported is how many parts it took
from the change to the alarm, what it named as the cause, and what became of good parts
meanwhile: with the certificate revoked, and had nobody looked.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
from numpy.typing import NDArray

from qcmodels.calibrate import normal_pictures
from qcmodels.data import open_dataset
from qcmodels.train import TeachConfig, teach
from qcnode.cameras.virtual import RenderedParts, write_dataset
from qcnode.domain import Frame, Prediction, Verdict
from qcnode.drift import DriftWatch
from qcnode.picture import read_picture
from qcnode.policy import judge, widened
from qcnode.sight import Look, Outline, look

if TYPE_CHECKING:
    from qcnode.runtime.onnx import OnnxModel

Picture = NDArray[np.uint8]
Fault = Callable[[Picture, int], Picture]
"""What the camera sees of a part, so many parts after the change."""

NOW = datetime(2026, 11, 22, tzinfo=UTC)
QUIET = 300
LATEST = 100
FALSE_ALARM = 0.01
DEFECTS_MOST = 0.3
MADE_UP_DEFECTS = 0.15


def _blur(picture: Picture, sigma: float) -> Picture:
    return picture if sigma < 0.2 else cv2.GaussianBlur(picture, (0, 0), sigma).astype(np.uint8)


def _dim(picture: Picture, share: float) -> Picture:
    return (picture * share).astype(np.uint8)


def _move(picture: Picture, share: float) -> Picture:
    by = round(share * picture.shape[1])  # Whole pixels: between them lies blur.
    moved = cv2.copyMakeBorder(picture, 0, 0, by, 0, cv2.BORDER_REPLICATE)
    return np.ascontiguousarray(moved[:, : picture.shape[1]]).astype(np.uint8)


FAULTS: dict[str, Fault] = {
    "lamp fades 0.5 % a part": lambda picture, since: _dim(picture, 0.995**since),
    "lamp at 70 %": lambda picture, _: _dim(picture, 0.7),
    "focus slips 0.02 px a part": lambda picture, since: _blur(picture, 0.02 * since),
    "blur of 1.5 px": lambda picture, _: _blur(picture, 1.5),
    "camera creeps 0.1 % a part": lambda picture, since: _move(picture, 0.001 * since),
    "camera moved by 5 %": lambda picture, _: _move(picture, 0.05),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Delay:
    """One fault over several runs; `missed` were not noticed within so many parts."""

    line: str
    fault: str
    runs: int
    least: int
    median: float
    most: int
    missed: int
    causes: dict[str, int]
    rejected_before: float
    """Good parts rejected between the change and the alarm, as a share of them."""
    rejected_after: float
    """Good parts rejected from the alarm on."""
    rejected_unwatched: float
    """Good parts rejected over the same stretch, had the limits stayed."""
    escaped_quiet: float
    """Defects that pass as the line is."""
    escaped_unwatched: float
    """Defects that pass at the end of the stretch, had the limits stayed."""


class Line:
    """Good parts that come down a line, and the model that judges them."""

    def __init__(
        self, name: str, model: OnnxModel, pictures: list[Picture], defects: list[Picture]
    ) -> None:
        self.name = name
        self._defects = defects
        self._model = model
        self._pictures = pictures
        self._seen = [(self.score(picture), look(picture)) for picture in pictures]

    def score(self, picture: Picture) -> float:
        """Judge a picture."""
        frame = Frame(id="f", part_id="p", camera="c", name="n", captured_at=NOW, pixels=picture)
        return self._model.predict(frame).score

    def watch(self, seed: int) -> DriftWatch:
        """Return a watch as the node has it."""
        manifest = self._model.manifest
        return DriftWatch(
            manifest.good_scores,
            manifest.pictures,
            defects_most=DEFECTS_MOST,
            false_alarm=FALSE_ALARM,
            coin=random.Random(seed).random,
        )

    def quiet(self, seed: int, parts: int) -> tuple[DriftWatch, int | None, str]:
        """Let parts come as they are, and say when the watch raised an alarm over nothing."""
        watch, rng = self.watch(seed), np.random.default_rng(seed)
        for number in range(1, parts + 1):
            score, seen = self._seen[int(rng.integers(len(self._seen)))]
            if alarm := watch.take(score, _marked(seen, number)):
                return watch, number, alarm.words
        return watch, None, ""

    def delay(self, fault: str, *, runs: int) -> Delay:
        """Change the line after a quiet time, several times over."""
        change = FAULTS[fault]
        limits, good = self._model.limits, self._model.manifest.good_scores
        delays: list[int] = []
        causes: dict[str, int] = {}
        rejected = {"before": [0, 0], "after": [0, 0], "unwatched": [0, 0]}
        for seed in range(runs):
            watch, early, _ = self.quiet(seed, QUIET)
            if early is not None:
                continue
            rng, alarm = np.random.default_rng(1_000 + seed), None
            for since in range(1, LATEST + 1):
                picture = change(self._pictures[int(rng.integers(len(self._pictures)))], since)
                prediction = Prediction(score=self.score(picture), model="m")
                force = (
                    limits
                    if alarm is None
                    else widened(limits, good, picture_at_fault=alarm.picture_at_fault)
                )
                _count(rejected["before" if alarm is None else "after"], judge(prediction, force))
                _count(rejected["unwatched"], judge(prediction, limits))
                if alarm is None:
                    alarm = watch.take(prediction.score, look(picture))
                    if alarm is not None:
                        delays.append(since)
                        cause = _cause(alarm.words)
                        causes[cause] = causes.get(cause, 0) + 1
        return Delay(
            line=self.name,
            fault=fault,
            runs=runs,
            least=min(delays, default=0),
            median=statistics.median(delays) if delays else 0,
            most=max(delays, default=0),
            missed=runs - len(delays),
            causes=causes,
            rejected_before=_share(rejected["before"]),
            rejected_after=_share(rejected["after"]),
            rejected_unwatched=_share(rejected["unwatched"]),
            escaped_quiet=self._escaped(lambda picture, _: picture),
            escaped_unwatched=self._escaped(change),
        )

    def _escaped(self, change: Fault) -> float:
        passed = [
            judge(
                Prediction(score=self.score(change(picture, LATEST)), model="m"), self._model.limits
            )
            is Verdict.OK
            for picture in self._defects
        ]
        return sum(passed) / len(passed)


def _marked(seen: Look, number: int) -> Look:
    # Parts are drawn again and again here, and the same one twice is no frozen camera.
    return Look(brightness=seen.brightness, focus=seen.focus, small=seen.small, mark=-number)


def _count(tally: list[int], verdict: Verdict) -> None:
    tally[0] += verdict is Verdict.NOT_OK
    tally[1] += 1


def _share(tally: list[int]) -> float:
    return tally[0] / tally[1] if tally[1] else 0.0


def _cause(words: str) -> str:
    for cause in ("darker", "brighter", "out of focus", "sharper", "out of place", "frozen"):
        if cause in words:
            return cause
    return words.split(";", maxsplit=1)[0]


def made_up(moved: float, *, quiet: int, runs: int) -> dict[str, float | int]:
    """Move the scores of good parts by so many standard deviations, with no picture to see."""
    delays, early = [], 0
    for seed in range(runs):
        rng = np.random.default_rng(seed)
        watch = DriftWatch(
            rng.normal(0, 1, 60).tolist(),
            None,
            defects_most=DEFECTS_MOST,
            false_alarm=FALSE_ALARM,
            coin=random.Random(seed).random,
        )
        for number in range(quiet + 2_000):
            defective = rng.random() < MADE_UP_DEFECTS
            by = moved if number >= quiet else 0.0
            score = rng.normal(4, 1) if defective else rng.normal(by, 1)
            if watch.take(float(score), None):
                early += number < quiet
                delays += [number - quiet + 1] if number >= quiet else []
                break
    return {
        "moved": moved,
        "quiet": quiet,
        "runs": runs,
        "early": early,
        "least": min(delays, default=0),
        "median": statistics.median(delays) if delays else 0,
        "most": max(delays, default=0),
        "missed": runs - early - len(delays),
    }


def by_pictures(name: str, pictures: list[Picture], *, runs: int) -> list[dict[str, object]]:
    """Change the line and let nothing but the pictures be watched: no model is needed."""
    norm = normal_pictures(pictures[:64])
    others = pictures[64:]
    seen = [look(picture) for picture in others]
    rows: list[dict[str, object]] = []
    for fault, change in FAULTS.items():
        delays, causes, early = [], set(), 0
        for seed in range(runs):
            rng = np.random.default_rng(seed)
            watch = DriftWatch(
                [], norm, defects_most=DEFECTS_MOST, false_alarm=FALSE_ALARM, coin=rng.random
            )
            early += any(
                watch.take(None, _marked(seen[int(rng.integers(len(seen)))], number))
                for number in range(QUIET)
            )
            for since in range(1, LATEST + 1):
                picture = change(others[int(rng.integers(len(others)))], since)
                if alarm := watch.take(None, look(picture)):
                    delays.append(since)
                    causes.add(_cause(alarm.words))
                    break
        rows.append(
            {
                "line": name,
                "fault": fault,
                "runs": runs,
                "early": early,
                "least": min(delays, default=0),
                "median": statistics.median(delays) if delays else 0,
                "most": max(delays, default=0),
                "missed": runs - len(delays),
                "causes": sorted(causes),
            }
        )
    return rows


def good_pictures(dataset: Path) -> list[Picture]:
    """Return good pictures of a recorded set in an order drawn once."""
    paths = [sample.path for sample in open_dataset(dataset).train_good]
    random.Random(20261122).shuffle(paths)
    return [read_picture(path) for path in paths]


def rendered_pictures(count: int) -> list[Picture]:
    """Return good parts of the virtual line."""
    rendered = RenderedParts(seed=77, defect_share=0.0)
    return [rendered.render(seq).pixels for seq in range(1, count + 1)]


def cost_of_a_look(rounds: int = 300) -> dict[str, float]:
    """Time the look at a picture of 640x480 and its place, in milliseconds."""
    picture = np.random.default_rng(0).integers(0, 255, (480, 640, 3)).astype(np.uint8)
    outline = Outline.of([look(picture).small])
    took = []
    for _ in range(rounds):
        began = time.perf_counter_ns()
        outline.shift(look(picture).small)
        took.append((time.perf_counter_ns() - began) / 1e6)
    return {"min": min(took), "median": statistics.median(took), "max": max(took)}


def rendered_line(work: Path, *, parts: int) -> Line:
    """The virtual line's own parts."""
    write_dataset(work / "rendered", seed=20261122, good=160, defects=12, progress=lambda *_: None)
    model = _teach(work / "rendered", work / "rendered-model")
    spoilt = RenderedParts(seed=78, defect_share=1.0)
    return Line(
        "virtual line",
        model,
        rendered_pictures(parts),
        [spoilt.render(seq).pixels for seq in range(1, 61)],
    )


def recorded_line(dataset: Path, work: Path) -> Line:
    """Recorded parts: half of the good ones to teach, the others of the same folder to come."""
    data_set = open_dataset(dataset)
    drawn = [sample.path for sample in data_set.train_good]
    random.Random(20261122).shuffle(drawn)
    half = len(drawn) // 2
    into = work / dataset.name / "train" / "good"
    into.mkdir(parents=True)
    for number, path in enumerate(drawn[:half]):
        shutil.copy(path, into / f"{number:04d}{path.suffix}")
    model = _teach(work / dataset.name, work / f"{dataset.name}-model")
    return Line(
        dataset.name,
        model,
        [read_picture(path) for path in drawn[half:]],
        [read_picture(sample.path) for sample in data_set.train_defects[:60]],
    )


def _teach(data: Path, out: Path) -> OnnxModel:
    config = TeachConfig(family="gaussian")
    return teach(data, out, config=config, now=NOW, progress=lambda *_: None)


def main() -> int:
    """Print the figures as one JSON object."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--quiet-runs", type=int, default=100)
    parser.add_argument("--quiet-parts", type=int, default=3_000)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        lines = [rendered_line(work, parts=200)]
        lines += [
            recorded_line(asked.data / name, work)
            for name in ("solar_mono",)
            if (asked.data / name).is_dir()
        ]
        for line in lines:
            print(line.name, "is taught", file=sys.stderr)  # noqa: T201  # as below
        said = {
            "false_alarm": FALSE_ALARM,
            "look_ms": cost_of_a_look(),
            "by_pictures": [
                *by_pictures("virtual line", rendered_pictures(200), runs=asked.runs),
                *(
                    row
                    for name in ("paper", "solar_mono")
                    if (asked.data / name).is_dir()
                    for row in by_pictures(name, good_pictures(asked.data / name), runs=asked.runs)
                ),
            ],
            "quiet": [
                {
                    "line": line.name,
                    "watched": line.watch(0).watches(),
                    "runs": asked.quiet_runs,
                    "parts": asked.quiet_parts,
                    "alarms": [
                        f"{after}: {words}"
                        for _, after, words in (
                            line.quiet(seed, asked.quiet_parts) for seed in range(asked.quiet_runs)
                        )
                        if after is not None
                    ],
                }
                for line in lines
            ],
            "made_up": [
                made_up(moved, quiet=quiet, runs=30)
                for moved in (0.5, 1.0, 2.0, 4.0)
                for quiet in (300, 3_000)
            ],
            "delays": [
                asdict(line.delay(fault, runs=asked.runs)) for line in lines for fault in FAULTS
            ],
        }
    print(json.dumps(said, indent=1))  # noqa: T201  # a script that prints is what this is
    return 0


if __name__ == "__main__":
    sys.exit(main())
