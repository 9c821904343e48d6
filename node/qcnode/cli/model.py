"""The commands around the model of a node: change it on the running line, and sign releases."""

from __future__ import annotations

import getpass
import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from qcnode.errors import ModelError

ConfigOpt = Annotated[Path, typer.Option("--config", help="The node's settings.")]
JsonOpt = Annotated[bool, typer.Option("--json", help="One object on standard output.")]
WhoOpt = Annotated[
    str | None, typer.Option("--by", help="Who asks, for the record; without it your login.")
]

commands = typer.Typer(
    name="model",
    help="Change the model of a running node, and sign releases.",
    no_args_is_help=True,
)


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    app.add_typer(commands)


@commands.command()
def load(
    folder: Annotated[Path, typer.Argument(help="A release made by `teach` or `import`.")],
    *,
    config: ConfigOpt = Path("node.toml"),
    allow_older: Annotated[
        bool, typer.Option(help="Take an older release this once, on record.")
    ] = False,
    who: WhoOpt = None,
) -> None:
    """Ask the running node to take a model in, beside the one in service.

    It is tried out in a process of its own, then judges in the shadow, then decides a share
    of the parts, and is sent back by itself if it does not hold what the old one does.
    """
    from qcnode.manifest import load_manifest
    from qcnode.runtime.changes import Ask, ask

    version = load_manifest(folder).version
    ask(
        _models(config),
        Ask(do="load", folder=str(folder.resolve()), older=allow_older, who=who or _login()),
    )
    typer.echo(f"{version} is asked for; how it goes: qcnode model status --config {config}")


@commands.command()
def rollback(*, config: ConfigOpt = Path("node.toml"), who: WhoOpt = None) -> None:
    """Call the change under way off, or without one, put the model before in service at once."""
    from qcnode.runtime.changes import Ask, ask

    ask(_models(config), Ask(do="rollback", who=who or _login()))
    typer.echo(f"asked for; how it goes: qcnode model status --config {config}")


@commands.command()
def status(*, config: ConfigOpt = Path("node.toml"), as_json: JsonOpt = False) -> None:
    """Say which model is in service, how a change is going, and what happened before."""
    from qcnode.runtime.changes import STATUS_NAME

    path = _models(config) / STATUS_NAME
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: nothing to show ({error}): has this node run?") from error
    if as_json:
        typer.echo(json.dumps(said))
        return
    for line in _describe(said):
        typer.echo(line)


@commands.command()
def sign(
    folder: Annotated[Path, typer.Argument(help="The release to vouch for.")],
    *,
    key: Annotated[Path, typer.Option(help="An Ed25519 key in PEM; made if there is none.")],
    name: Annotated[str, typer.Option(help="Whose key that is, such as acme/quality.")],
    number: Annotated[
        int | None, typer.Option("--release", min=1, help="The number of this release of its name.")
    ] = None,
) -> None:
    """Vouch for a release, and print the public key that nodes must trust.

    A number goes into the manifest before it is signed. A node takes no lower one back.
    """
    from qcnode.books.seals import SigningKey
    from qcnode.manifest import (
        FILE_NAME,
        SEAL_NAME,
        dump_manifest,
        read_release,
        words_to_seal,
    )

    release = read_release(folder)
    text = release.text
    if number is not None:
        text = dump_manifest(replace(release.manifest, release=number))
    signer = SigningKey.open(key, name=name)
    others = [] if text != release.text else [one for one in release.seals if one[0] != name]
    seals = [*others, (name, signer.seal(words_to_seal(text)))]
    try:
        _write(folder / FILE_NAME, text)
        _write(folder / SEAL_NAME, "".join(f"{who} {seal}\n" for who, seal in seals).encode())
    except OSError as error:
        raise ModelError(f"{folder}: cannot be written ({error.strerror})") from error
    typer.echo(f"signed by {name}; a node that trusts it has in its settings")
    typer.echo(f'[model]\ntrusted_keys = ["{signer.public}"]')


def _models(config: Path) -> Path:
    from qcnode.settings import load_settings
    from qcnode.wiring.eyes import MODELS

    return load_settings(config).node.home / MODELS


def _login() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"


def _describe(said: dict[str, Any]) -> list[str]:
    lines = [f"in service  {said['in_service']}"]
    change = said["change"]
    if change is not None:
        lines.append(
            f"{change['stage']:<12}{change['new']}: {change['parts']} of {change['of']} parts,"
            f" {change['agreeing']:.1%} judged alike, {change['slower']:.2f} times the time"
        )
        lines += [f"{'':<12}{what}: {n}" for what, n in change["disagreements"].items()]
    if said["last"] is not None and not said["last"]["ok"]:
        lines.append(f"refused     {said['last']['words']}")
    lines += [
        f"{step['at'][:19]}  {step['what']:<22} {step['model']}  {step['words']}"
        for step in said["steps"]
    ]
    return lines


def _write(path: Path, data: bytes) -> None:
    unfinished = path.with_name(f".{path.name}.part")
    unfinished.write_bytes(data)
    unfinished.replace(path)
