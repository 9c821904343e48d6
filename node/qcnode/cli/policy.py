"""`qcnode policy`: look into policy packs and attestations, check them, sign them.

Exit code 1 means that the answer is no: the file, or its signature, does not hold.
"""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

import typer

from qcnode.authority import LEVEL_OF
from qcnode.books.arming import arm, disarm
from qcnode.books.policy_file import (
    built_in,
    kind_of,
    open_attestation,
    open_pack,
    parse_attestation,
    parse_pack,
    read_file,
    sign_file,
)
from qcnode.books.seals import PublicKey, SigningKey
from qcnode.errors import PolicyError

_NO = 1
FileArgument = Annotated[Path, typer.Argument(help="A policy pack or an attestation.")]


def register(app: typer.Typer) -> None:
    """Add this group of commands to the program."""
    group = typer.Typer(
        help="Policy packs and attestations: how far agents' word reaches.", no_args_is_help=True
    )
    group.command("show")(show)
    group.command("check")(check)
    group.command("sign")(sign)
    group.command("arm")(arming)
    app.add_typer(group, name="policy")


def show(
    file: Annotated[
        Path | None, typer.Argument(help="A pack or an attestation; without it what ships.")
    ] = None,
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Print a pack or an attestation as a node reads it, whoever signed it."""
    said = _read(file)
    if as_json:
        typer.echo(json.dumps(said))
        return
    for key, value in said.items():
        if isinstance(value, dict):
            typer.echo(f"{key}:")
            for name, one in value.items():
                typer.echo(f"  {name:<18}{one}")
        else:
            typer.echo(f"{key:<20}{value}")


def check(
    file: FileArgument,
    *,
    key: Annotated[str, typer.Option("--key", help="Who must have signed it, NAME+ID+KEY.")],
) -> None:
    """Say whether a pack or an attestation reads well and is signed by this key."""
    public = PublicKey.parse(key)
    try:
        kind = kind_of(read_file(file), source=str(file))
        if kind == "pack":
            pack = open_pack(file, public)
            words = f"pack {pack.name}, version {pack.version}, digest {pack.digest}"
        else:
            one = open_attestation(file, public)
            state = "in force" if one.begins <= datetime.now(UTC) < one.ends else "not in force"
            words = f"attestation of {one.agent} at {one.provider} to {one.ends}, {state}"
    except PolicyError as error:
        typer.echo(str(error), err=True)
        sys.exit(_NO)
    typer.echo(f"{file}: {words}; signed by {public.name}")


def sign(
    file: FileArgument,
    *,
    key: Annotated[Path, typer.Option("--key", help="The private key; made when missing.")],
    name: Annotated[str, typer.Option(help="Who signs; part of the public key.")] = "policy",
) -> None:
    """Sign a pack or an attestation, and print the public key that checks it.

    What does not read well is not signed.
    """
    signing = SigningKey.open(key, name=name)
    path = sign_file(file, signing)
    kind = kind_of(read_file(file), source=str(file))
    setting = "authority.policy_key" if kind == "pack" else "authority.auditor_key"
    typer.echo(f"{path}: signed; nodes check it with {setting} =")
    typer.echo(str(signing.public))


def arming(
    *,
    by: Annotated[str, typer.Option("--by", help="Who you are; goes on record.")],
    home: Annotated[Path, typer.Option(help="The node's home.")],
    reason: Annotated[str, typer.Option(help="Why; goes on record.")] = "",
    minutes: Annotated[int, typer.Option(min=1, max=480, help="For how long at most.")] = 60,
    off: Annotated[bool, typer.Option("--off", help="End it at once; one person may.")] = False,
) -> None:
    """Let agents at L4 act on the process for a while: one person asks, a second one arms."""
    now = datetime.now(UTC)
    if not home.is_dir():
        raise PolicyError(f"{home}: no such home of a node")
    if off:
        disarm(home, who=by, now=now)
        typer.echo("not armed")
        return
    armed = arm(home, who=by, reason=reason, span=timedelta(minutes=minutes), now=now)
    if armed is None:
        typer.echo("not armed yet: a second person arms it with the same command, in 15 minutes")
        raise typer.Exit(_NO)
    typer.echo(f"armed by {armed.first} and {armed.second} until {armed.until:%Y-%m-%d %H:%M} UTC")


def _read(file: Path | None) -> dict[str, Any]:
    if file is not None:
        data, source = read_file(file), str(file)
        if kind_of(data, source=source) == "attestation":
            one = parse_attestation(data, source=source)
            return {
                "agent": one.agent,
                "provider": one.provider,
                "policy": one.policy,
                "level": one.level.value,
                "start": one.start.value,
                "right_at_least": one.right_at_least,
                "begins": one.begins.isoformat(),
                "ends": one.ends.isoformat(),
                "by": one.by,
            }
        pack = parse_pack(data, source=source)
    else:
        pack = built_in()
    envelope = pack.envelope
    return {
        "name": pack.name,
        "version": pack.version,
        "digest": pack.digest,
        "levels": {action.value: pack.needs(action).value for action in LEVEL_OF},
        "envelope": {
            "part_types": list(envelope.part_types),
            "confidence_floor": envelope.confidence_floor,
            "quota_per_hour": envelope.quota_per_hour,
            "recheck_share": envelope.recheck_share,
            "trial_share": envelope.trial_share,
            "overrule_node": envelope.overrule_node,
            "cost_pico_max": dict(envelope.cost_pico_max),
        },
        "bounds": {
            knob: {"low": one.low, "high": one.high, "step_max": one.step_max}
            for knob, one in pack.bounds.items()
        },
    }
