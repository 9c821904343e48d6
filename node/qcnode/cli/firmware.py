"""The commands for device configurations."""

from __future__ import annotations

import getpass
import json
import os
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qcnode.errors import SettingsError

if TYPE_CHECKING:
    from qcnode.firmware.manifest import Manifest
    from qcnode.firmware.render import Rendered
    from qcnode.firmware.reported import Reader

firmware = typer.Typer(help="Device configurations.", no_args_is_help=True)

IdsArg = Annotated[
    list[str] | None, typer.Argument(help="Ids of manifest.yaml; without: all that go somewhere.")
]
ConfigsOpt = Annotated[Path, typer.Option("--configs", help="The folder with manifest.yaml.")]
ValuesOpt = Annotated[
    Path | None, typer.Option("--values", help="A TOML file: parameter = value. No secrets.")
]
RootOpt = Annotated[
    Path, typer.Option("--root", help="/ for this machine, or a folder that stands for one.")
]
HomeOpt = Annotated[Path, typer.Option("--home", help="Where the history is kept.")]
WhoOpt = Annotated[str, typer.Option("--who", help="Who does this, for the history.")]
TakeOverOpt = Annotated[
    bool, typer.Option("--take-over", help="Replace what somebody else left there; it is kept.")
]
JsonOpt = Annotated[bool, typer.Option("--json", help="One object.")]
CONFIGS = Path("firmware_configs")
HOME = Path("qcnode-home")


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    app.add_typer(firmware, name="firmware")


@firmware.callback()
def _group() -> None:
    """Device configurations: check, fill in, compare, put in place, watch, take back."""


@firmware.command()
def validate(
    folder: Annotated[Path, typer.Argument(help="The folder with manifest.yaml.")] = CONFIGS,
    *,
    only: Annotated[
        list[str] | None, typer.Option("--only", help="An id; may be repeated.")
    ] = None,
    as_json: JsonOpt = False,
) -> None:
    """Check every file as whatever loads it would. Exit code 1 when one is wrong.

    A file that its own program could not look at is marked `ok?` with what is missing.
    """
    _needed()
    from qcnode.firmware.checks import validate as check

    checked = check(folder, only or ())
    wrong = [one for one in checked if one.problem is not None]
    if as_json:
        typer.echo(json.dumps({"files": [asdict(one) for one in checked], "ok": not wrong}))
    else:
        for one in checked:
            mark = "WRONG" if one.problem else "ok?" if one.unchecked else "ok"
            typer.echo(f"{mark:<7}{one.path}  {one.problem or one.unchecked or ''}".rstrip())
    if wrong:
        raise typer.Exit(1)


@firmware.command()
def render(
    out: Annotated[Path, typer.Option("--out", help="A folder outside of --configs.")],
    ids: IdsArg = None,
    *,
    values: ValuesOpt = None,
    configs: ConfigsOpt = CONFIGS,
    as_json: JsonOpt = False,
) -> None:
    """Fill in a site's values and write the files into a folder.

    No secret is in them. `secrets.yaml`, which a person puts beside ESPHome's files, is left
    out of version control by the .gitignore that is written with them.
    """
    _needed()
    from qcnode.firmware.checks import write_files

    if out.resolve().is_relative_to(configs.resolve()):
        raise SettingsError(f"--out {out}: lies in {configs}, which holds templates only")
    _manifest, _values, rendered = _rendered(configs, values, ids)
    out.mkdir(parents=True, exist_ok=True)
    (out / ".gitignore").write_text("secrets.yaml\n", "utf-8")
    for one in rendered:
        write_files(out, one)
    _say(
        as_json,
        {
            one.artefact.id: {"version": one.artefact.version, "sha256": one.digest}
            for one in rendered
        },
        [
            f"{one.artefact.id:<24}version {one.artefact.version}  {one.digest[:12]}"
            for one in rendered
        ],
    )


@firmware.command()
def diff(
    root: RootOpt,
    ids: IdsArg = None,
    *,
    values: ValuesOpt = None,
    configs: ConfigsOpt = CONFIGS,
    as_json: JsonOpt = False,
) -> None:
    """Show what a push would change below a root. Exit code 1 when there is something."""
    _needed()
    from qcnode.firmware.deploy import differences, targets

    _manifest, known, rendered = _rendered(configs, values, ids)
    found = {one.artefact.id: differences(targets(one, known, root)) for one in rendered}
    changed = {artefact: lines for artefact, lines in found.items() if lines}
    _say(as_json, changed, [line for lines in changed.values() for line in lines])
    if changed:
        raise typer.Exit(1)


@firmware.command()
def push(
    root: RootOpt,
    ids: IdsArg = None,
    *,
    values: ValuesOpt = None,
    configs: ConfigsOpt = CONFIGS,
    home: HomeOpt = HOME,
    who: WhoOpt = "",
    take_over: TakeOverOpt = False,
    as_json: JsonOpt = False,
) -> None:
    """Put files below a root, read them back, and keep what stood there before.

    Refused: a file somebody else changed, an older version, one version with two contents.
    """
    _needed()
    from qcnode.firmware.deploy import push as put
    from qcnode.firmware.store import open_store

    _manifest, known, rendered = _rendered(configs, values, ids)
    done: dict[str, Any] = {}
    lines: list[str] = []
    with open_store(home) as store:
        for one in rendered:
            made = put(
                store,
                one,
                known,
                root=root.resolve(),
                who=_who(who),
                now=datetime.now(UTC),
                take_over=take_over,
            )
            artefact = one.artefact
            done[artefact.id] = None if made is None else made.revision
            lines.append(
                f"{artefact.id:<24}stands there already"
                if made is None
                else f"{artefact.id:<24}revision {made.revision}, then: {artefact.apply}"
            )
    _say(as_json, done, lines)


@firmware.command()
def status(
    *,
    configs: ConfigsOpt = CONFIGS,
    home: HomeOpt = HOME,
    mqtt: Annotated[
        str | None, typer.Option("--mqtt", help="HOST:PORT: ask devices what they run.")
    ] = None,
    user: Annotated[
        str, typer.Option("--user", help="At the broker; its password: QCNODE_MQTT_PASSWORD.")
    ] = "monitor",
    ca: Annotated[Path | None, typer.Option("--ca", help="The broker's authority.")] = None,
    cert: Annotated[Path | None, typer.Option("--cert", help="Our certificate.")] = None,
    key: Annotated[Path | None, typer.Option("--key", help="Its key.")] = None,
    as_json: JsonOpt = False,
) -> None:
    """Compare what was pushed with what is there. Exit code 1 and an ALARM line on drift."""
    _needed()
    from qcnode.firmware.deploy import WRONG
    from qcnode.firmware.deploy import status as compare
    from qcnode.firmware.manifest import read_manifest
    from qcnode.firmware.reported import read_reports
    from qcnode.firmware.store import open_store

    manifest = read_manifest(configs)
    with open_store(home) as store:
        said = None
        if mqtt is not None:
            topics = [one.reported for one in store.latest() if one.reported is not None]
            said = read_reports(_reader(mqtt, user, ca, cert, key), topics)
        found = compare(store, manifest, said)
    wrong = [one for one in found if one.health in WRONG]
    _say(
        as_json,
        {"artefacts": [asdict(one) for one in found], "ok": not wrong},
        [
            f"{one.health.value:<9}{one.artefact:<24}version {one.version}  {one.words}".rstrip()
            for one in found
        ],
    )
    for one in wrong:
        typer.echo(f"ALARM firmware {one.health.value}: {one.artefact}: {one.words}", err=True)
    if wrong:
        raise typer.Exit(1)


@firmware.command()
def rollback(
    artefact: Annotated[str, typer.Argument(help="The id of what is taken back.")],
    root: RootOpt,
    *,
    configs: ConfigsOpt = CONFIGS,
    home: HomeOpt = HOME,
    who: WhoOpt = "",
    take_over: TakeOverOpt = False,
    as_json: JsonOpt = False,
) -> None:
    """Put back what stood there before the last push; again, what stood before that one."""
    _needed()
    from qcnode.firmware.deploy import roll_back
    from qcnode.firmware.manifest import read_manifest
    from qcnode.firmware.store import open_store

    manifest = read_manifest(configs)
    with open_store(home) as store:
        made = roll_back(
            store,
            manifest,
            artefact,
            root=root.resolve(),
            who=_who(who),
            now=datetime.now(UTC),
            take_over=take_over,
        )
    now = f"version {made.version}" if made.version else "what was there before the first push"
    _say(
        as_json,
        {"revision": made.revision, "undoes": made.undoes, "version": made.version},
        [f"{artefact}: revision {made.revision} puts back {now}"],
    )


def _needed() -> None:
    try:
        import yaml  # noqa: F401
    except ImportError as error:
        raise SettingsError(f"firmware needs {error.name}: pip install 'qcnode[modbus]'") from error


def _rendered(
    configs: Path, values: Path | None, ids: list[str] | None
) -> tuple[Manifest, dict[str, Any], list[Rendered]]:
    from qcnode.firmware.deploy import chosen
    from qcnode.firmware.manifest import read_manifest, read_values
    from qcnode.firmware.render import render as fill_in

    manifest = read_manifest(configs)
    known = read_values(values, manifest)
    wanted = chosen(manifest, ids or [])
    return manifest, known, [fill_in(configs, manifest, manifest[one], known) for one in wanted]


def _who(said: str) -> str:
    return said or getpass.getuser()


def _reader(where: str, user: str, ca: Path | None, cert: Path | None, key: Path | None) -> Reader:
    from qcnode.firmware.reported import Reader

    host, _, port = where.rpartition(":")
    if not host or not port.isdigit():
        raise SettingsError(f"--mqtt {where}: is not HOST:PORT")
    password = os.environ.get("QCNODE_MQTT_PASSWORD")
    return Reader(
        host=host,
        port=int(port),
        username=user if password is not None else None,
        password=password,
        ca_file=ca,
        cert_file=cert,
        key_file=key,
    )


def _say(as_json: bool, said: Any, lines: list[str]) -> None:  # noqa: FBT001  # of every command
    if as_json:
        typer.echo(json.dumps(said))
    else:
        for line in lines:
            typer.echo(line)
