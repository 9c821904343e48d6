"""Whether a node that is taught again with what was ruled on asks less: `make prove-learning`.

On recorded parts: a node taught on some of them judges others as they come, asks about the
doubtful ones (scripted provider, 95 % right), the rulings are exported as labels, and a
second model is taught on both. Both judge the test parts, which neither has met. Labels
are the provider's word, wrong ones among them: nobody corrected it.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from qcnode.books.ledger import SqliteLedger

FIRST_SHARE = 0.25
"""Of the pictures to teach from, what the first model gets; the others come as parts."""


def main() -> None:
    """Print one JSON object for each draw of who teaches first."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/solar_mono"))
    parser.add_argument("--accuracy", type=float, default=0.95)
    parser.add_argument("--seeds", nargs="+", type=int, default=(0, 1, 2))
    options = parser.parse_args()
    for seed in options.seeds:
        with tempfile.TemporaryDirectory() as folder:
            row = measure(options.data.resolve(), Path(folder), seed, options.accuracy)
        print(json.dumps(row), flush=True)  # noqa: T201  # this is what it is for


def measure(data: Path, folder: Path, seed: int, accuracy: float) -> dict[str, Any]:
    """Go round once."""
    first, line = folder / data.name, folder / "line" / data.name
    parts = lay_out(data, first, line, seed)
    before = taught(first, folder / "before")
    home = folder / "home"
    shutil.copytree(folder / "before", home / "model")
    run = qcnode(
        *("demo", "--data", line, "--home", home, "--parts", parts),
        *("--accuracy", accuracy, "--seed", seed),
    )
    labels = folder / "labelled" / data.name
    labels.parent.mkdir()
    said = qcnode(
        *("labels", "export", "--home", as_ruled(home), "--out", labels),
        *("--with", first, "--test-share", 0),
    )
    after = taught(labels, folder / "after")
    return {
        "seed": seed,
        "parts": parts,
        # Parts too late for their gate are nobody's to ask about: of a busy machine many.
        "late": run["faults"],
        "escalated": run["escalated"],
        "labels": said["train"],
        "left_out": said["left_out"],
        "before": before | judged(folder / "before", first),
        "after": after | judged(folder / "after", first),
    }


def lay_out(data: Path, first: Path, line: Path, seed: int) -> int:
    """Link what the first model is taught from, and the others as parts of a line."""
    drawn = random.Random(seed)
    parts = 0
    for kind in sorted((data / "train").iterdir()):
        pictures = sorted(kind.iterdir())
        drawn.shuffle(pictures)
        teach = round(len(pictures) * FIRST_SHARE)
        for number, path in enumerate(pictures):
            if number < teach:
                link(path, first / "train" / kind.name)
                link(path, line / "train" / kind.name)
            else:
                link(path, line / "test" / kind.name)
                parts += 1
    for path in sorted((data / "test").glob("*/*")):
        link(path, first / "test" / path.parent.name)
    return parts


def link(path: Path, folder: Path) -> None:
    """Link a picture into a folder, under its own name."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / path.name).symlink_to(path)


def as_ruled(home: Path) -> Path:
    """Return the home as it would be had nobody found out what the parts were."""
    copy = home.with_name("as-ruled")
    copy.mkdir()
    (copy / "pictures").symlink_to(home / "pictures")
    shutil.copyfile(home / "journal.db", copy / "journal.db")
    SqliteLedger(
        copy / "ledger.db", now_us=lambda: 0, new_epoch=lambda: "0" * 32, budgets=()
    ).close()
    return copy


def taught(data: Path, out: Path) -> dict[str, Any]:
    """Teach, and say how."""
    said = qcnode("teach", data, "--out", out)
    return {"family": said["family"], "defects": said["taught_from"]["defects"]}


def judged(model: Path, data: Path) -> dict[str, float]:
    """Judge the test parts: what is asked about, and what is wrong without being asked about."""
    said = qcnode("evaluate", model, data)
    wrong = (
        said["false_reject_rate"] * said["n_good"] + said["escape_rate"] * said["n_defective"]
    ) / said["n"]
    return {
        "auroc": round(said["image_auroc"], 4),
        "asked": round(said["escalation_rate"], 4),
        "asked_of_good": round(said["escalation_rate_good"], 4),
        "wrong_unasked": round(wrong, 4),
        "false_rejects": round(said["false_reject_rate"], 4),
        "escapes": round(said["escape_rate"], 4),
    }


def qcnode(*words: object) -> dict[str, Any]:
    """Run a command and return what it says."""
    done = subprocess.run(
        [sys.executable, "-m", "qcnode.cli.app", *map(str, words), "--json"],
        check=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    said: dict[str, Any] = json.loads(done.stdout)
    return said


if __name__ == "__main__":
    main()
