"""What `qcnode teach` comes to on recorded parts: `make bench-teach`; figures for docs/models.md.

Every line is one teach and one evaluation. `dirty` puts as many test defects among the good
parts as make one in ten, and evaluates on the others.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

from qcmodels.evaluate import evaluate
from qcmodels.train import TeachConfig, teach

SETS = ("paper", "circuit_board", "solar_mono")


def quiet(*_: object) -> None:
    """Nobody watches."""


def make_dirty(data: Path, folder: Path, *, seed: int) -> Path:
    """Return a copy of `data`, by links, with one in ten of train/good defective."""
    drawn = random.Random(seed)
    good = sorted((data / "train" / "good").iterdir())
    defects = sorted(
        path
        for kind in sorted((data / "test").iterdir())
        if kind.name != "good"
        for path in kind.iterdir()
    )
    moved = set(drawn.sample(defects, max(round(len(good) / 9), 1)))
    for path in (*good, *sorted((data / "test").glob("*/*"))):
        where = path.relative_to(data)
        if path in moved:
            where = Path("train", "good", f"dirty_{path.parent.name}_{path.name}")
        (folder / where).parent.mkdir(parents=True, exist_ok=True)
        (folder / where).symlink_to(path)
    return folder


def measure(data: Path, out: Path, *, kind: str, seed: int, threads: int) -> dict[str, object]:
    """Teach and evaluate once."""
    root = data
    if kind == "dirty":
        root = make_dirty(data, out / "data", seed=seed)
    start, cpu = time.monotonic(), time.process_time()
    model = teach(
        root,
        out / "model",
        config=TeachConfig(seed=seed, normals_only=kind != "labels"),
        now=datetime.now(UTC),
        progress=quiet,
        threads=threads,
    )
    wall_s, cpu_s = time.monotonic() - start, time.process_time() - cpu
    result = evaluate(
        model, root, now=lambda: datetime.now(UTC), clock_ns=time.perf_counter_ns, progress=quiet
    )
    taught = model.manifest.taught_from
    return {
        "set": data.name,
        "kind": kind,
        "seed": seed,
        "family": model.manifest.family,
        "features": model.manifest.trials[0].features,
        "trials": {f"{one.family}, {one.features}": one.auroc for one in model.manifest.trials},
        "image_auroc": round(result.image_auroc, 4),
        "recall_at_1": round(result.recall_at_1, 3),
        "recall_at_5": round(result.recall_at_5, 3),
        "pixel_auroc": result.pixel_auroc and round(result.pixel_auroc, 4),
        "au_pro": result.au_pro and round(result.au_pro, 4),
        "false_reject_rate": round(result.false_reject_rate, 4),
        "escape_rate": round(result.escape_rate, 4),
        "asked_of_good": round(result.escalation_rate_good, 4),
        "suspects": len(taught.suspects),
        "suspects_dirty": sum("dirty_" in path for path in taught.suspects),
        "left_out": len(taught.left_out),
        "wall_s": round(wall_s, 1),
        "cpu_s": round(cpu_s, 1),
        "ms_per_frame": round(result.ms_per_frame, 2),
        "bytes": (out / "model" / "model.onnx").stat().st_size,
    }


def main() -> None:
    """Print one JSON object a line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--sets", nargs="+", default=SETS)
    parser.add_argument("--kinds", nargs="+", default=("normals", "labels", "dirty"))
    parser.add_argument("--seeds", nargs="+", type=int, default=(0, 1, 2))
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    for name in options.sets:
        for kind in options.kinds:
            for seed in options.seeds:
                with tempfile.TemporaryDirectory() as out:
                    row = measure(
                        (options.data / name).resolve(),
                        Path(out),
                        kind=kind,
                        seed=seed,
                        threads=options.threads,
                    )
                print(json.dumps(row), flush=True)  # noqa: T201  # this is what it is for


if __name__ == "__main__":
    main()
