"""What asking about a few parts is worth: `make prove-asking`; figures for docs/learning.md.

Each seed is one `qcnode demo` on recorded parts, as a person runs it: teach, line, desk, the
scripted provider over HTTP, ledger, bill. Which parts are asked about follows from limits
chosen on the pictures that were taught from. What models.md says an adjudicator can do on
this set stands beside it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

REFERENCE = {0.0: 10.6, 0.01: 10.2, 0.02: 9.7, 0.05: 8.3, 0.10: 6.5, 0.20: 4.1}
"""Total error in percent on solar_mono with perfect answers to the x most ambiguous parts."""


def main() -> None:
    """Print one JSON object a seed, and the medians in words."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/solar_mono"))
    parser.add_argument("--ask-share", type=float, default=0.05)
    parser.add_argument("--accuracy", type=float, default=0.95)
    parser.add_argument("--parts", type=int, default=420)
    parser.add_argument("--seeds", nargs="+", type=int, default=(0, 1, 2))
    options = parser.parse_args()
    rows = []
    for seed in options.seeds:
        with tempfile.TemporaryDirectory() as home:
            rows.append(measure(options, seed, Path(home)))
        print(json.dumps(rows[-1]), flush=True)  # noqa: T201  # this is what it is for
    for line in in_words(rows, options.ask_share):
        print(line)  # noqa: T201  # likewise


def measure(options: argparse.Namespace, seed: int, home: Path) -> dict[str, float | None]:
    """Run the demo once and return shares in percent."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "qcnode.cli.app", "demo", "--json"),
            *("--data", options.data, "--home", home, "--parts", str(options.parts)),
            *("--ask-share", str(options.ask_share), "--accuracy", str(options.accuracy)),
            *("--seed", str(seed)),
        ],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    said = json.loads(done.stdout)
    agent = said["agent"]
    parts = agent["parts"]
    percent = {
        name: round(100 * agent[key] / parts, 2)
        for name, key in (
            ("alone", "wrong_alone"),
            ("one_limit", "wrong_alone_at_one_limit"),
            ("with_agent", "wrong_with_agent"),
            ("if_right", "wrong_if_every_ruling_were_right"),
        )
    }
    tokens = sum(agent["tokens"].values())
    each = (agent["cost_pico_per_error_avoided"] or {}).get("USD")
    naive = agent["naive"] or {}
    # What the dice would give on average: few answers are asked for, and luck shows.
    wrong = 100 * (1 - options.accuracy) * agent["ruled"] / parts
    return percent | {
        "expected": round(percent["if_right"] + wrong, 2),
        "seed": seed,
        "parts": parts,
        "faults": said["faults"],
        "undecided": said["not_decidable"],
        "ruled": agent["ruled"],
        "avoided": agent["errors_avoided"],
        "made": agent["errors_made"],
        "tokens": tokens,
        "image_tokens": agent["tokens"]["image"],
        "tokens_per_1000": agent["tokens_per_1000_parts"],
        "usd_micro": said["cost_pico"].get("USD", 0) // 10**6,
        "usd_micro_per_error": None if each is None else each // 10**6,
        "naive_share_saved": naive.get("share_saved"),
        "naive_tokens_for_every_part": naive.get("tokens_for_every_part"),
        "bill_agrees": said["billing"]["matches"],
    }


def in_words(rows: list[dict[str, float | None]], share: float) -> list[str]:
    """Return medians, and the reference's figures beside them."""

    def middle(name: str) -> float:
        return statistics.median(value for row in rows if (value := row[name]) is not None)

    def drop(name: str) -> float:
        return statistics.median((row["alone"] or 0) - (row[name] or 0) for row in rows)

    lines = [
        f"node alone {middle('alone')} % wrong; medians with the agent, and the drop in points:",
        *(
            f"  {words:<34}{middle(name):>6} %  {drop(name):.2f}"
            for name, words in (
                ("with_agent", "as it went"),
                ("expected", "as the dice fall on average"),
                ("if_right", "had every ruling been right"),
            )
        ),
    ]
    if share in REFERENCE:
        lines.append(
            f"reference, every answer right: {REFERENCE[0.0]} -> {REFERENCE[share]} %,"
            f" {REFERENCE[0.0] - REFERENCE[share]:.1f} points"
        )
    return lines


if __name__ == "__main__":
    main()
