"""Every way to get a foreign model's pictures or answers wrong, tried on every export.

`python -m tests.models.mismatches` prints how many are caught of each kind, and whether the
same models are taken in when nothing wrong is said: `make prove-import`.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qcnode.errors import ModelError
from qcnode.runtime.foreign import Wanted, read_foreign, read_golden, understand
from tests.models.exports import EXPORTS, IMAGENET

if TYPE_CHECKING:
    from collections.abc import Iterator

    from qcnode.runtime.foreign import Foreign, Golden, Match
    from tests.models.exports import Trained


class Exported:
    """An export on disk, read once."""

    def __init__(self, trained: Trained, folder: Path) -> None:
        self.trained = trained
        self.file, folder = trained.write(folder)
        self.golden: tuple[Golden, ...] = read_golden(folder)
        self.foreign: Foreign = read_foreign(self.file, Wanted(**trained.asks))

    def understand(self, said: dict[str, Any]) -> Match:
        """Take the model in with what was trained, but for what is `said`."""
        truth = dict(self.trained.truth)
        if {"mean", "std"} & said.keys():
            truth.pop("norm")
        wanted = Wanted(**{**truth, **said})
        foreign = self.foreign
        if "classes" in said:
            foreign = replace(foreign, classes=said["classes"])
        return understand(foreign, self.golden, wanted)


def wrong_things(trained: Trained) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each mismatch that this export can suffer."""
    truth = trained.truth
    yield "BGR for RGB", {"colour": "bgr" if truth["colour"] == "rgb" else "rgb"}
    yield "kernel", {"kernel": "cubic" if truth["kernel"] == "linear" else "linear"}
    yield "kernel", {"kernel": "nearest", "antialias": False}
    yield "antialias", {"antialias": not truth["antialias"]}
    for norm in ("imagenet", "signed", "unit"):
        if norm != truth["norm"]:
            yield "mean and std", {"norm": norm}
    if truth["norm"] == "imagenet":
        mean, std = (tuple(255 * value for value in row) for row in IMAGENET)
        yield "mean and std", {"mean": mean[::-1], "std": std[::-1]}
        yield "mean and std", {"mean": mean, "std": (57.0, 57.0, 57.0)}
    for fit in ("stretch", "letterbox", "crop"):
        if fit != truth["fit"]:
            yield "letterbox and crop", {"fit": fit}
    yield "bytes for floats", {"norm": "unit" if truth["norm"] == "raw" else "raw"}
    yield "direction", {"higher": "good" if truth["higher"] == "defective" else "defective"}
    if "classes" in truth:
        yield "class swap", {"classes": truth["classes"][::-1]}
    elif trained.kind in ("ultralytics-detect", "ultralytics-segment"):
        yield "class swap", {"classes": ("good", "dent")}


def main() -> None:
    """Print the table; exit code 1 where one slips through or a good one is refused."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    tried: Counter[str] = Counter()
    caught: Counter[str] = Counter()
    worst = 0.0
    slipped: list[str] = []
    with tempfile.TemporaryDirectory() as place:
        for name, seed in ((name, seed) for seed in range(options.seeds) for name in EXPORTS):
            exported = Exported(EXPORTS[name](seed), Path(place) / f"{name}-{seed}")
            good = ["as trained", "nothing said"] if seed == 0 else ["as trained"]
            for how in good:
                tried[how] += 1
                try:
                    match = _take(exported, free=how == "nothing said")
                except ModelError as error:
                    slipped.append(f"{name} {seed}, {how}: refused: {error}")
                else:
                    caught[how] += 1
                    worst = max(worst, match.difference)
            for kind, said in wrong_things(exported.trained):
                tried[kind] += 1
                try:
                    exported.understand(said)
                except ModelError:
                    caught[kind] += 1
                else:
                    slipped.append(f"{name} {seed}, {kind} {said}: taken in")
            print(f"{name} {seed} done", file=sys.stderr, flush=True)  # noqa: T201
    _print(options, tried, caught, worst, slipped)
    sys.exit(1 if slipped else 0)


def _take(exported: Exported, *, free: bool) -> Match:
    if not free:
        return exported.understand({})
    return understand(exported.foreign, exported.golden, Wanted(**exported.trained.asks))


def _print(
    options: argparse.Namespace,
    tried: Counter[str],
    caught: Counter[str],
    worst: float,
    slipped: list[str],
) -> None:
    say = functools.partial(print, flush=True)
    if options.json:
        rows = {kind: [caught[kind], tried[kind]] for kind in tried}
        say(json.dumps({"kinds": rows, "largest_difference": worst, "slipped": slipped}))
        return
    for kind in tried:
        what = "taken in" if kind in ("as trained", "nothing said") else "caught"
        say(f"{kind:<20} {what:<9} {caught[kind]:>4} of {tried[kind]}")
    say(f"largest difference of a good one: {worst:.1e}")
    for line in slipped:
        say(f"SLIPPED {line}")


if __name__ == "__main__":
    main()
