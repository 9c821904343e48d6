"""`qcnode provider`: whom undecided parts are put to, and one question to try it.

Exit code 1 means that there was no ruling; wrong use or settings end with 2.
"""

from __future__ import annotations

import json
import logging
import os
import tomllib
from dataclasses import asdict
from datetime import datetime  # noqa: TC003  # Typer reads annotations while the program runs
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qcnode.errors import SettingsError

if TYPE_CHECKING:
    from qcnode.question import Answered, Request
    from qcnode.settings import ProviderSettings

group = typer.Typer(
    name="provider",
    help="Choose whom undecided parts are put to, say what it may be sent, and try it.",
    no_args_is_help=True,
)
ConfigOpt = Annotated[
    Path, typer.Option("--config", help="The node's TOML file; `qcnode init` writes one.")
]
JsonOpt = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]

KEPT = frozenset({"timeout_s", "output_tokens_max", "image_side_max_px"})
"""What of [provider] is the line's own and stays when another provider is used."""

_KEY_VARIABLES = ("QCNODE_PROVIDER_API_KEY", "QCNODE_PROVIDER_API_KEY_FILE")


def register(app: typer.Typer) -> None:
    """Add these commands to the program."""
    app.add_typer(group)


@group.command()
def presets(*, as_json: JsonOpt = False) -> None:
    """List the vendors and servers whose settings ship."""
    from qcnode.settings import presets as shipped

    known = shipped()
    if as_json:
        typer.echo(json.dumps({"presets": known}))
        return
    for name, values in known.items():
        model = values.get("model", "name one with --model")
        typer.echo(f"{name:<12} {values['base_url']:<58} {model}")


@group.command()
def use(
    preset: Annotated[str, typer.Argument(help="One of `qcnode provider presets`.")],
    *,
    key_file: Annotated[Path | None, typer.Option(help="A file with nothing but the key.")] = None,
    model: Annotated[str | None, typer.Option(help="Another model than the preset's.")] = None,
    base_url: Annotated[str | None, typer.Option(help="Another address.")] = None,
    prices: Annotated[
        str | None, typer.Option(help="A price file, or the name of a book that ships.")
    ] = None,
    allow: Annotated[
        list[str] | None,
        typer.Option(help="What it may be sent, as in part-image; without it, nothing."),
    ] = None,
    filing: Annotated[
        str, typer.Option(help="The number its service is filed under, where there is one.")
    ] = "none",
    until: Annotated[
        datetime | None, typer.Option(formats=["%Y-%m-%d"], help="The last day of that leave.")
    ] = None,
    config: ConfigOpt = Path("node.toml"),
) -> None:
    """Write a provider into the configuration, with what it may be sent, and switch the agent on.

    A provider beyond this machine needs --allow: what is not allowed is not sent.
    """
    from qcnode.settings import presets as shipped

    if preset not in shipped():
        raise SettingsError(f"{preset}: no such preset; there are: {', '.join(shipped())}")
    given = {
        "preset": preset,
        "model": model,
        "base_url": base_url,
        "prices": prices and _from_here(prices, config),
        "api_key_file": key_file and _key_file(key_file, config),
    }
    values: dict[str, Any] = {name: value for name, value in given.items() if value}
    values |= {"data_classes": tuple(allow or ()), "filing": filing}
    if until is not None:
        values["allowed_until"] = until.date()
    one = _write(config, values)
    typer.echo(f"{config}: {one.model} by {one.name} at {one.base_url}")
    typer.echo(f"may be sent: {_permit_words(one)}")
    typer.echo(f"next: qcnode provider try PICTURE --config {config}")


@group.command(name="try")
def try_(
    picture: Annotated[Path, typer.Argument(help="A picture of a part.")],
    *,
    part_id: Annotated[str, typer.Option(help="What the part is called.")] = "try-1",
    model: Annotated[
        str | None, typer.Option(help="Of several providers, the one with this model.")
    ] = None,
    config: ConfigOpt = Path("node.toml"),
    as_json: JsonOpt = False,
) -> None:
    """Ask one metered question, and print the ruling, its tokens, its cost and its entry.

    It costs what it costs: it goes to the provider, into the node's ledger and onto the bill.
    Stop the node first, which alone may write its ledger.
    """
    from qcnode.logs import configure_logs
    from qcnode.question import ask_once
    from qcnode.settings import load_settings

    configure_logs(level=logging.WARNING)  # What happened is told below.
    answered = ask_once(load_settings(config), picture, part_id=part_id, model=model)
    if as_json:
        typer.echo(json.dumps(_as_json(answered)))
    else:
        for line in _lines(answered):
            typer.echo(line)
    if answered.opinion is None:
        raise typer.Exit(1)


def _write(config: Path, values: dict[str, Any]) -> ProviderSettings:
    """Put a provider into the file, once the whole of it has been read back as settings."""
    from qcbridge.egress import Permit
    from qcnode.cli.settings_file import with_keys
    from qcnode.settings import ProviderSettings, load_settings
    from qcnode.wiring.agents import check_provider

    try:
        text = config.read_text(encoding="utf-8")
        written = tomllib.loads(text)
    except FileNotFoundError:
        raise SettingsError(f"{config}: no such file; `qcnode init {config}` writes one") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SettingsError(f"{config}: cannot be read: {error}") from error
    text = with_keys(text, "provider", values, without=ProviderSettings.model_fields.keys() - KEPT)
    text = with_keys(text, "agent", {"enabled": True})
    beside = config.with_name(f".{config.name}.new")
    keys = {name: os.environ[name] for name in _KEY_VARIABLES if name in os.environ}
    try:
        beside.write_text(text, encoding="utf-8")
        one = load_settings(beside, keys).provider[0]
        if not Permit.of(one).stays_here:
            if not one.data_classes:
                raise SettingsError(
                    f"{one.name}: nothing is sent to it unless you say what may be:"
                    " --allow part-image"
                )
            regions = written.get("egress", {}).get("regions", [])
            text = with_keys(text, "egress", {"regions": (*{*regions, one.region},)})
            beside.write_text(text, encoding="utf-8")
        settings = load_settings(beside, keys)
        check_provider(settings, settings.provider[0])
        beside.replace(config)
    except OSError as error:
        raise SettingsError(f"{config}: cannot be written: {error.strerror}") from error
    finally:
        beside.unlink(missing_ok=True)
    return settings.provider[0]


def _key_file(key_file: Path, config: Path) -> str:
    try:
        mode = key_file.stat().st_mode
    except OSError as error:
        raise SettingsError(f"{key_file}: cannot be read: {error.strerror}") from error
    if mode & 0o077:
        raise SettingsError(f"{key_file}: others can read this key: chmod 600 {key_file}")
    return _from_here(str(key_file), config)


def _from_here(path: str, config: Path) -> str:
    """Return a path as the file says it, where it is one: from the file's own folder."""
    found = Path(path)
    if not found.exists():
        return path  # The name of a book.
    here, folder = found.resolve(), config.resolve().parent
    return str(here.relative_to(folder) if here.is_relative_to(folder) else here)


def _permit_words(one: ProviderSettings) -> str:
    from qcbridge.egress import Permit

    return Permit.of(one).words()


def _lines(answered: Answered) -> list[str]:
    from qcnode.money import format_pico

    one, opinion = answered.provider, answered.opinion
    if opinion is None:
        lines = [f"no ruling  {answered.why}"]
    else:
        kind = f" ({opinion.defect_class})" if opinion.defect_class else ""
        sure = "" if opinion.confidence is None else f", confidence {opinion.confidence:.2f}"
        lines = [f"ruling     {opinion.finding}{kind}{sure}: {opinion.reason}"]
    lines.append(f"asked      {one.model} by {one.name} at {one.base_url}")
    lines.append(f"sent       {answered.permit.words()}")
    for request in answered.requests:
        lines.append(f"tokens     {_tokens_words(request)}")
        cost, hold = _cost(request), request.intent.hold
        held = f"{format_pico(hold.pico)} {hold.currency} put aside before it"
        paid = "not known" if cost is None else f"{format_pico(cost['pico'])} {cost['currency']}"
        lines.append(f"cost       {paid}; {held}")
        lines.append(
            f"ledger     entry {request.seq}, {request.state}: `qcnode ledger show` has the rest"
        )
    if not answered.requests:
        lines.append("ledger     nothing left, and nothing is owed")
    return lines


def _tokens_words(request: Request) -> str:
    tokens = _tokens(request)
    if tokens is None:
        return "not told"
    return ", ".join(f"{name} {count}" for name, count in tokens.items() if count)


def _tokens(request: Request) -> dict[str, int] | None:
    from qcnode.money import Settled

    return asdict(request.outcome.usage) if isinstance(request.outcome, Settled) else None


def _cost(request: Request) -> dict[str, Any] | None:
    from qcnode.money import NotBilled, Settled

    outcome = request.outcome
    if isinstance(outcome, Settled) and outcome.cost is not None:
        return {"currency": outcome.cost.currency, "pico": outcome.cost.pico}
    if isinstance(outcome, NotBilled):
        return {"currency": request.intent.hold.currency, "pico": 0}
    return None


def _as_json(answered: Answered) -> dict[str, Any]:
    one, opinion = answered.provider, answered.opinion
    return {
        "ruling": None if opinion is None else asdict(opinion),
        "why": answered.why,
        "provider": one.name,
        "model": one.model,
        "base_url": one.base_url,
        "egress": answered.permit.words(),
        "epoch": answered.epoch,
        "requests": [
            {
                "seq": request.seq,
                "attempt": request.intent.attempt.id,
                "state": request.state,
                "tokens": _tokens(request),
                "cost": _cost(request),
                "hold": {
                    "currency": request.intent.hold.currency,
                    "pico": request.intent.hold.pico,
                },
            }
            for request in answered.requests
        ],
    }
