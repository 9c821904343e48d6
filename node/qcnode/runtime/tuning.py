"""Which engine runs a model on this machine: measured once, and proven at every load.

`tune` takes turns between the engines there are and keeps the fastest one whose answers on
the golden frames are those of FP32 on the CPU, to the tolerance of the release: its limits
were earned on these scores and on no others. What came of it is written beside the models.
`open_tuned` uses it while machine and runtime are those of the measurement, and says so when
it does not.
"""

from __future__ import annotations

import json
import platform
import statistics
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import onnxruntime as ort
import structlog

from qcnode.errors import ModelError
from qcnode.manifest import load_manifest
from qcnode.picture import read_bytes, unpack_picture
from qcnode.runtime.onnx import OnnxModel
from qcnode.runtime.session import CPU, ENGINES, engines_here

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

    from qcnode.runtime.session import Engine

log = structlog.get_logger()

TUNED_NAME: Final = "tuned.json"
ROUNDS: Final = 7
ROUND_S: Final = 0.25
NS_PER_S: Final = 1_000_000_000
_GAIN_MIN: Final = 1.05
"""Below this a difference is the machine's mood."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """How one engine did; `why_not` says why it may not decide."""

    engine: str
    ms: float | None
    low: float | None
    median: float | None
    high: float | None
    """How many times faster than the CPU, in alternating rounds."""
    why_not: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuning:
    """What was measured of one model on one machine, and the engine that follows."""

    model: str
    machine: str
    threads: int
    engine: str
    trials: tuple[Trial, ...]


def machine() -> str:
    """Name what a measurement holds for: processor, runtime and its providers."""
    providers = ",".join(sorted(ort.get_available_providers()))
    return f"{_processor()}; onnxruntime {ort.__version__}; {providers}"


def tune(folder: Path, *, threads: int, clock_ns: Callable[[], int]) -> Tuning:
    """Measure the release in `folder` on every engine there is; takes some seconds for each."""
    reference = OnnxModel(folder, threads=threads)
    paths = [folder / golden.path for golden in reference.manifest.golden]
    pictures = [
        unpack_picture(read_bytes(path), name=str(path), side=reference.side).pixels
        for path in paths
    ]
    runners: dict[str, OnnxModel] = {CPU.name: reference}
    why_not: dict[str, str] = {}
    for engine in engines_here():
        if engine is CPU:
            continue
        try:
            # Its golden frames are judged as it is loaded: one that is off ends here.
            runners[engine.name] = OnnxModel(folder, threads=threads, engine=engine)
        except ModelError as error:
            why_not[engine.name] = str(error)
    times: dict[str, list[float]] = {name: [] for name in runners}
    for _ in range(ROUNDS):
        for name, model in runners.items():
            times[name].append(_round(model, pictures, clock_ns))
    trials = [_trial(name, times, None) for name in runners]
    trials += [_trial(name, {}, why) for name, why in why_not.items()]
    best = max(trials, key=lambda trial: trial.median or 0.0)
    fast = best.median is not None and best.median >= _GAIN_MIN
    return Tuning(
        model=reference.version,
        machine=machine(),
        threads=threads,
        engine=best.engine if fast else CPU.name,
        trials=tuple(trials),
    )


def keep(folder: Path, tuning: Tuning) -> Path:
    """Write a measurement into `folder`, beside those of other models; return where."""
    path = folder / TUNED_NAME
    known = {one["model"]: one for one in _read(path)}
    known[tuning.model] = asdict(tuning)
    unfinished = path.with_name(f".{TUNED_NAME}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        unfinished.write_text(json.dumps(list(known.values()), indent=1))
        unfinished.replace(path)
    except OSError as error:
        raise ModelError(f"{path}: cannot be written ({error.strerror})") from error
    return path


def chosen(folder: Path, version: str, *, threads: int) -> Engine:
    """Return the engine measured for this model here; the CPU where there is none."""
    for one in _read(folder / TUNED_NAME):
        if one.get("model") != version:
            continue
        if one.get("machine") != machine() or one.get("threads") != threads:
            log.warning(
                "the choice of engine was made for another machine or runtime: CPU it is",
                model=version,
                fix="qcnode doctor --tune",
            )
            return CPU
        return next((engine for engine in ENGINES if engine.name == one.get("engine")), CPU)
    return CPU


def open_tuned(
    release: Path, tuned: Path, *, threads: int, warn: Callable[[str], None]
) -> OnnxModel:
    """Load a release on the engine chosen for it, or on the CPU, saying why."""
    version = load_manifest(release).version
    engine = chosen(tuned, version, threads=threads)
    if engine is not CPU:
        try:
            return OnnxModel(release, threads=threads, engine=engine)
        except ModelError as error:
            warn(f"engine {engine.name} is not used for {version}, the CPU is: {error}")
    return OnnxModel(release, threads=threads)


def _round(
    model: OnnxModel, pictures: list[NDArray[np.uint8]], clock_ns: Callable[[], int]
) -> float:
    """Return the median time of one picture, in ms."""
    ends = clock_ns() + int(ROUND_S * NS_PER_S)
    times: list[int] = []
    while clock_ns() < ends or len(times) < len(pictures):
        for pixels in pictures:
            began = clock_ns()
            model.answer(pixels, "a golden frame")
            times.append(clock_ns() - began)
    return statistics.median(times) / 1e6


def _trial(name: str, times: dict[str, list[float]], why_not: str | None) -> Trial:
    if why_not is not None:
        return Trial(engine=name, ms=None, low=None, median=None, high=None, why_not=why_not)
    ratios = [cpu / own for cpu, own in zip(times[CPU.name], times[name], strict=True)]
    return Trial(
        engine=name,
        ms=statistics.median(times[name]),
        low=min(ratios),
        median=statistics.median(ratios),
        high=max(ratios),
        why_not=None,
    )


def _read(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(known, list) and all(isinstance(one, dict) for one in known):
            return known
    except (OSError, ValueError):
        pass
    log.warning("unreadable, so the CPU it is", file=str(path), fix="qcnode doctor --tune")
    return []


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
