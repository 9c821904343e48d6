"""What the frame path costs next to the model alone: `qcnode bench`.

Ours is the station as it runs on a line: header checks, decoding, the model with its
preparation inside the graph, the checks of its answer, the verdict, the action, the record
in a journal on disk. The reference does the least that gives a score: it decodes, no finer
than the model needs, resizes and calls ONNX Runtime, in a loop that checks nothing and keeps
nothing. Both judge the same pictures with the same graph in one process.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np

from qcmodels.bank import IMAGE, SIZE
from qcnode.ahead import Ahead
from qcnode.bench.heavy import HeavyModel
from qcnode.bench.measure import Result, in_turn, speed_ratio
from qcnode.bench.outage import outage_result
from qcnode.bench.start import start_results
from qcnode.books.journal import Journal
from qcnode.books.pictures import PictureStore
from qcnode.cameras.studio import Defect, DefectKind, Studio
from qcnode.domain import Action, Frame, Limits, Trigger, Verdict
from qcnode.errors import LineUnavailableError, ModelError
from qcnode.health import HealthBoard
from qcnode.picture import decode_picture, encode_jpeg, unpack_picture
from qcnode.runtime.onnx import OnnxModel, open_session
from qcnode.station import Station

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import onnxruntime as ort
    from numpy.typing import NDArray

    from qcnode.domain import Disposition, Passage
    from qcnode.ports import Model

WIDTH, HEIGHT, QUALITY = 1920, 1080, 85
"""A camera's picture, as most peers measure with."""
_PICTURES = 8
# The name says grey, but it is the bit for a quarter of the size; RGB is a bit of its own.
_QUARTER = cv2.IMREAD_REDUCED_GRAYSCALE_4 | cv2.IMREAD_COLOR_RGB
_FAR_NS = 3_600 * 10**9


@dataclass(frozen=True, slots=True, kw_only=True)
class FramesSize:
    """How much is done in each round."""

    rounds: int = 7
    frames: int = 100
    heavy_frames: int = 30
    parade: int = 300

    @classmethod
    def small(cls, rounds: int) -> FramesSize:
        """Return enough to see that it works."""
        return cls(rounds=rounds, frames=8, heavy_frames=3, parade=20)


def frames_results(folder: Path, release: Path, size: FramesSize) -> Iterator[Result]:
    """Measure the frame path with the model in `release`; journals are written in `folder`.

    Raises `ManifestError` or `ModelError` for a release that does not load.
    """
    light = OnnxModel(release)
    raw = _Raw(open_session((release / light.manifest.model).read_bytes()), light)
    pictures = _pictures()
    with _on_cores(1):
        yield _pipeline(folder, light, raw, pictures, size)
        yield _latency(folder, light, raw, pictures, size)
        yield _raw_frames(folder, light, raw, pictures, size)
    with _on_cores(2) as cores:
        if cores > 1:
            yield _two_cores(folder, pictures, size)
    yield from start_results(release, pictures[0], rounds=size.rounds)
    asked = _pictures(range(_PICTURES, _PICTURES + 2), flaw=True)
    yield outage_result(folder, release, [*pictures, *asked], rounds=size.rounds, parts=size.parade)


def _pipeline(
    folder: Path, model: OnnxModel, raw: _Raw, pictures: Sequence[bytes], size: FramesSize
) -> Result:
    def ours(_round: int) -> float:
        return _run_station(folder, model, _JpegCamera(pictures, model.side), size.frames)[0]

    def reference(_round: int) -> float:
        start = time.perf_counter()
        for number in range(size.frames):
            raw.judge(pictures[number % len(pictures)])
        return time.perf_counter() - start

    ours(-1)
    pairs = list(in_turn(size.rounds, ours, reference))
    best_ms = 1_000 * min(mine for mine, _theirs in pairs) / size.frames
    return Result(
        name="pipeline on one core over decode + resize + session.run",
        values=speed_ratio(pairs),
        aim=0.95,
        note=f"best round {best_ms:.1f} ms a picture of {WIDTH}x{HEIGHT}",
    )


def _latency(
    folder: Path, model: OnnxModel, raw: _Raw, pictures: Sequence[bytes], size: FramesSize
) -> Result:
    """Compare the middle time from trigger to action with the middle of the bare sum."""
    ratios: list[float] = []
    for _round in range(size.rounds):
        _, latencies_us = _run_station(
            folder, model, _JpegCamera(pictures, model.side), size.frames, spaced=True
        )
        bare: list[float] = []
        for number in range(size.frames):
            start = time.perf_counter()
            raw.judge(pictures[number % len(pictures)])
            bare.append(1e6 * (time.perf_counter() - start))
        ratios.append(statistics.median(latencies_us) / statistics.median(bare))
    return Result(
        name="middle time from trigger to action over decode + resize + session.run",
        values=tuple(ratios),
        aim=1.05,
        at_least=False,
    )


def _raw_frames(
    folder: Path, model: OnnxModel, raw: _Raw, pictures: Sequence[bytes], size: FramesSize
) -> Result:
    """Compare the pipeline fed with pixels, as cameras without JPEG give them, with the model."""
    frames = [_resized(decode_picture(one, name="bench"), SIZE, SIZE) for one in pictures]

    def ours(_round: int) -> float:
        return _run_station(folder, model, _PixelCamera(frames), size.frames)[0]

    def reference(_round: int) -> float:
        start = time.perf_counter()
        for number in range(size.frames):
            raw.score(frames[number % len(frames)])
        return time.perf_counter() - start

    return Result(
        name=f"pipeline on raw frames of {SIZE}x{SIZE} over session.run, one core",
        values=speed_ratio(list(in_turn(size.rounds, ours, reference))),
        aim=0.93,
    )


def _two_cores(folder: Path, pictures: Sequence[bytes], size: FramesSize) -> Result:
    model = HeavyModel()
    frame = _resized(decode_picture(pictures[0], name="bench"), SIZE, SIZE)

    def ours(_round: int) -> float:
        return _run_station(folder, model, _JpegCamera(pictures, model.side), size.heavy_frames)[0]

    def reference(_round: int) -> float:
        start = time.perf_counter()
        for _number in range(size.heavy_frames):
            model.score(frame)
        return time.perf_counter() - start

    pairs = list(in_turn(size.rounds, ours, reference))
    alone_ms = 1_000 * min(theirs for _mine, theirs in pairs) / size.heavy_frames
    return Result(
        name="pipeline on two cores over session.run, a model above 20 ms",
        values=speed_ratio(pairs),
        aim=0.97,
        note=f"the model alone takes {alone_ms:.1f} ms",
    )


def _run_station(
    folder: Path,
    model: Model,
    camera: _JpegCamera | _PixelCamera,
    frames: int,
    *,
    spaced: bool = False,
) -> tuple[float, tuple[int, ...]]:
    """Judge so many pictures; return the seconds, and each one's microseconds to the action."""
    with tempfile.TemporaryDirectory(dir=folder) as home:
        health = HealthBoard(_now)
        store = PictureStore(Path(home) / "pictures", pictures_max=100, heat_full=None)
        journal = Journal(Path(home) / "journal.db", pictures=store, health=health)
        ids = count()
        belt = _Belt(frames, spaced=spaced)
        journal.add_listener(belt.go_on)
        try:
            ahead = Ahead(belt, camera)
            station = Station(
                camera=ahead,
                model=model,
                limits=_LIMITS,
                failsafe=Action.DIVERT,
                line=ahead,
                journal=journal,
                health=health,
                now=_now,
                new_id=lambda: f"{next(ids):026d}",
                clock_ns=time.monotonic_ns,
            )
            start = time.perf_counter()
            station.run()
            seconds = time.perf_counter() - start
            if station.outcomes() != {Verdict.OK: frames}:
                raise ModelError(
                    f"{model.version}: {frames} pictures came out as "
                    f"{station.outcomes()}: measure with a release that takes any size"
                )
        finally:
            journal.close()
        return seconds, station.latencies_us()


_LIMITS = Limits(accept_below=1e9, reject_from=1e9)
"""Every part passes: what is kept of doubtful parts depends on the product, not on us."""


class _Belt:
    """Parts that come one upon the other, or each when the last is on record; a gate far away."""

    def __init__(self, parts: int, *, spaced: bool) -> None:
        self._parts = parts
        self._come = 0
        self._spaced = spaced
        self._free = threading.Event()

    def last_trigger(self) -> int:
        return self._come

    def triggers(self) -> Iterator[Trigger]:
        while self._come < self._parts:
            self._come += 1
            self._free.clear()
            at_ns = time.monotonic_ns()
            yield Trigger(
                seq=self._come,
                part_id=str(self._come),
                position=self._come,
                at_ns=at_ns,
                deadline_ns=at_ns + _FAR_NS,
            )
            if self._spaced:
                self._free.wait(_FAR_NS / 1e9)

    def act(self, _trigger: Trigger, _action: Action) -> bool:
        return True

    def passages(self) -> Sequence[Passage]:
        return ()

    def go_on(self) -> None:
        """Let the next part come, where they are spaced."""
        self._free.set()

    def dispose(self, _part_id: str, _disposition: Disposition) -> None:
        raise LineUnavailableError("nothing is disposed of here")

    def stop(self) -> None:
        self._parts = self._come


class _JpegCamera:
    """Gives JPEG bytes, as network cameras do, unpacked as the folder camera unpacks them."""

    def __init__(self, pictures: Sequence[bytes], side: int | None) -> None:
        self._pictures = pictures
        self._side = side

    def grab(self, trigger: Trigger) -> Frame:
        encoded = self._pictures[trigger.seq % len(self._pictures)]
        unpacked = unpack_picture(encoded, name="bench", side=self._side)
        return _frame(trigger, unpacked.pixels, encoded, size=unpacked.size)

    def close(self) -> None:
        """Nothing is held."""


class _PixelCamera:
    """Gives pixels, as industrial cameras do."""

    def __init__(self, frames: Sequence[NDArray[np.uint8]]) -> None:
        self._frames = frames

    def grab(self, trigger: Trigger) -> Frame:
        return _frame(trigger, self._frames[trigger.seq % len(self._frames)], None)

    def close(self) -> None:
        """Nothing is held."""


def _frame(
    trigger: Trigger,
    pixels: NDArray[np.uint8],
    encoded: bytes | None,
    *,
    size: tuple[int, int] | None = None,
) -> Frame:
    return Frame(
        id=trigger.part_id,
        part_id=trigger.part_id,
        camera="bench",
        name="bench",
        captured_at=_now(),
        pixels=pixels,
        encoded=encoded,
        size=size,
    )


class _Raw:
    """The model with nothing around it."""

    def __init__(self, session: ort.InferenceSession, model: OnnxModel) -> None:
        self._session = session
        self._outputs = [model.manifest.outputs.score, model.manifest.outputs.heat]

    def judge(self, encoded: bytes) -> None:
        data = np.frombuffer(encoded, np.uint8)
        pixels = cv2.imdecode(data, _QUARTER)
        self.score(_resized(np.asarray(pixels, np.uint8), SIZE, SIZE))

    def score(self, pixels: NDArray[np.uint8]) -> None:
        self._session.run(self._outputs, {IMAGE: pixels})


@contextmanager
def _on_cores(most: int) -> Iterator[int]:
    """Run on so many cores at the most, threads started meanwhile included."""
    before = os.sched_getaffinity(0)
    cores = sorted(before)[-most:]
    os.sched_setaffinity(0, cores)
    try:
        yield len(cores)
    finally:
        os.sched_setaffinity(0, before)


def write_parts(folder: Path, *, good: int) -> None:
    """Write rendered good parts to teach on; a model of mixed sizes takes pictures of any."""
    place = folder / "train" / "good"
    place.mkdir(parents=True)
    small = _resized(Studio().render(np.random.default_rng(999), None).pixels, SIZE, SIZE)
    (place / "small.jpg").write_bytes(encode_jpeg(small, quality=QUALITY))
    for number, picture in enumerate(_pictures(range(1_000, 1_000 + good))):
        (place / f"{number:03d}.jpg").write_bytes(picture)


def _pictures(seeds: range = range(_PICTURES), *, flaw: bool = False) -> list[bytes]:
    """Render good parts, or parts that no model takes for good."""
    studio = Studio()
    defect = Defect(kind=DefectKind.STAIN, severity=1.0) if flaw else None
    return [
        encode_jpeg(
            _resized(studio.render(np.random.default_rng(seed), defect).pixels, WIDTH, HEIGHT),
            quality=QUALITY,
        )
        for seed in seeds
    ]


def _resized(pixels: NDArray[np.uint8], width: int, height: int) -> NDArray[np.uint8]:
    return np.asarray(cv2.resize(pixels, (width, height)), np.uint8)


def _now() -> datetime:
    return datetime.now(UTC)
