"""Shifts side by side, as a person reads them: a table, a picture, and what is not real in it."""

from __future__ import annotations

from typing import Any, Final

import typer

PICO: Final = 10**12
BARS: Final = " ▁▂▃▄▅▆▇█"


def print_scenario(summary: dict[str, Any]) -> None:
    """Print what `run_scenario` returned."""
    runs, nobody = summary["runs"], summary["runs"][0]
    typer.echo(
        f"{summary['hours']} hours of belt time, {summary['parts']} parts, the same drift and the"
        f" same parts each time (seed {summary['seed']})\n"
    )
    _row("adjusted by", [run["adjusted_by"] for run in runs])
    _row("defects made", [f"{run['defects']}{_change(run, nobody)}" for run in runs])
    _row("escapes at the gate", [run["escapes"] for run in runs])
    _row("false rejects there", [run["false_rejects"] for run in runs])
    _row("parts asked about", [run["asked"] for run in runs])
    for stream in ("image", "analysis", "adjustment"):
        _row(f"tokens: {stream}", [run["tokens"][stream] for run in runs])
    _row("tokens an hour", [run["tokens_per_hour"] for run in runs])
    _row("money", [_money(run["cost_pico"]) for run in runs])
    _row("adjustments made", [_stages(run, "ordered") for run in runs])
    _row("held for a person", [_stages(run, "held") for run in runs])
    typer.echo("\nshare of defective parts, hour by hour (each a quarter of an hour)")
    top = max(max(run["defects_by_quarter"]) for run in runs)
    for run in runs:
        typer.echo(f"  {run['adjusted_by']:<9}{_picture(run['defects_by_quarter'], top)}")
    typer.echo(f"  {'':<9}full height: {top / nobody['parts_by_quarter']:.0%}")
    for run in runs:
        _tell_turns(run)
    published = summary["published"]
    typer.echo(
        f"\nThe published case: {published['defects_percent']} % defects at"
        f" {published['tokens_per_hour']:,} tokens an hour ({published['who']}). This is not it:"
    )
    for words in summary["said"]:
        typer.echo(f"- {words}")
    typer.echo(f"\nlook into it: qcnode ledger show --home {summary['home']}/agent")


def _row(name: str, values: list[Any]) -> None:
    typer.echo(f"{name:<21}" + "".join(f"{value:>18}" for value in values))


def _change(run: dict[str, Any], nobody: dict[str, Any]) -> str:
    if run is nobody or not nobody["defects"]:
        return ""
    return f" ({run['defects'] / nobody['defects'] - 1.0:+.0%})"


def _stages(run: dict[str, Any], stage: str) -> int:
    return sum(change["stage"] == stage for change in run["adjustments"])


def _money(pico: dict[str, int]) -> str:
    return ", ".join(f"{value / PICO:.4f} {name}" for name, value in pico.items()) or "nothing"


def _picture(counts: list[int], top: int) -> str:
    steps = len(BARS) - 1
    bars = [BARS[-(-count * steps // max(1, top))] for count in counts]
    hour = max(1, len(bars) // 8)
    return "|".join("".join(bars[at : at + hour]) for at in range(0, len(bars), hour))


def _tell_turns(run: dict[str, Any]) -> None:
    made = [change for change in run["adjustments"] if change["stage"] == "ordered"]
    revoked = run["certificate_revoked"]
    if not made and revoked is None:
        return
    typer.echo(f"\n{run['adjusted_by']}")
    for change in made:
        turn = "" if change["after"] is None else f" {change['before']:g} -> {change['after']:g}"
        typer.echo(
            f"  after {change['after_parts']:>5}  {change['knob']}{turn}: {change['reason']}"
        )
    if revoked is not None:
        typer.echo(
            f"  after {revoked['after_parts']:>5}  certificate revoked ({revoked['reason']}):"
            " more parts are asked about, and what is proposed waits for a person"
        )
