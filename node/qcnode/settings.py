"""What this node is to do: one frozen object from one TOML file.

Every key has a default that is safe, so an empty file makes a node that judges
parts of the virtual line and asks nobody. Secrets are never in the file: they come
from `QCNODE_*` variables, or from a file named by the same variable with `_FILE`.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator

from qcnode.domain import Action, AgentLevel, Disposition
from qcnode.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

Name = Annotated[str, Field(pattern=r"^[a-z0-9-]{1,32}$")]
Port = Annotated[int, Field(ge=0, le=65535)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class NodeSettings(_Section):
    """Who this node is, and where it keeps its books."""

    name: Name = "node1"
    tenant: Name = "tenant"
    site: Name = "site"
    area: Name = "area"
    line: Name = "line1"
    home: Path = Field(default=Path("qcnode-home"), strict=False)


class PanelSettings(_Section):
    """The operator panel and the service routes; port 0 takes any free one."""

    host: str = "127.0.0.1"
    port: Port = 8080
    public_hosts: tuple[str, ...] = Field(default=(), strict=False)
    """Names under which browsers reach the panel, beside the loopback names."""


class LineSettings(_Section):
    """The belt. The virtual line is the one there is so far."""

    kind: Literal["virtual"] = "virtual"
    failsafe: Action = Field(default=Action.DIVERT, strict=False)
    parts: Count | None = None
    """How many parts to send before the belt stands; without it, it runs until stopped."""
    period_ms: Positive = 100.0
    speed_mm_per_s: Positive = 500.0
    gate_mm: Positive = 250.0
    guard_ms: Positive = 30.0
    seed: int = 20261122

    @field_validator("failsafe")
    @classmethod
    def _never_accept(cls, value: Action) -> Action:
        if value is Action.ACCEPT:
            raise ValueError("a part without evidence is never accepted; use DIVERT or REJECT")
        return value


class CameraSettings(_Section):
    """Where pictures come from: rendered parts, a folder, or a device, file or URL."""

    kind: Literal["rendered", "folder", "opencv"] = "rendered"
    source: str | None = None
    shuffle: bool = False
    """Whether a folder's pictures come in a random order, the same for the same line.seed."""
    timeout_ms: Positive = 100.0
    defect_rate: Annotated[float, Field(ge=0, le=1)] = 0.2


class ModelSettings(_Section):
    """The released model that judges, and the CPU threads it may take."""

    dir: Path = Field(default=Path("model"), strict=False)
    threads: Count = 1


class AgentSettings(_Section):
    """Whether undecided parts go to an agent, and how far its word reaches."""

    enabled: bool = False
    level: AgentLevel = Field(default=AgentLevel.L2, strict=False)
    product: str = "the part"
    defect_classes: tuple[str, ...] = Field(default=(), strict=False)
    workers: Count = 4
    waiting_max: Count = 50
    attempts_max: Annotated[int, Field(ge=1, le=5)] = 2
    ruling_timeout_s: Positive = 900.0
    on_timeout: Disposition = Field(default=Disposition.REWORK, strict=False)


class ProviderSettings(_Section):
    """An OpenAI-compatible chat-completions endpoint and its price book."""

    name: str = "scripted"
    base_url: str = "http://127.0.0.1:8090/v1"
    model: str = "scripted-provider"
    prices: Path | None = Field(default=None, strict=False)
    """Price file; without it the books shipped with the package are searched."""
    timeout_s: Positive = 10.0
    output_tokens_max: Count = 300
    image_side_max_px: Annotated[int, Field(ge=64, le=4096)] = 448


class BudgetSettings(_Section):
    """The most that may be spent a day (UTC), in millionths of the currency."""

    currency: Annotated[str, Field(pattern=r"^[A-Z]{3}$")] = "USD"
    per_day_micro: Annotated[int, Field(ge=0)] | None = None


class MeteringSettings(_Section):
    """How ledger entries reach the billing server."""

    channel: Literal["none", "http", "mqtt"] = "none"
    url: str = "http://127.0.0.1:8081"
    receipt_timeout_s: Positive = 10.0


class MqttSettings(_Section):
    """The broker, when the metering channel is `mqtt`."""

    host: str = "127.0.0.1"
    port: Port = 1883
    prefix: Annotated[str, Field(pattern=r"^[a-z0-9-]+(/[a-z0-9-]+)*$")] = "qc/v1"
    username: str | None = None
    ca_file: Path | None = Field(default=None, strict=False)
    cert_file: Path | None = Field(default=None, strict=False)
    key_file: Path | None = Field(default=None, strict=False)


class Secrets(_Section):
    """What must not stand in the file; shown nowhere."""

    provider_api_key: SecretStr | None = None
    billing_token: SecretStr | None = None
    panel_token: SecretStr | None = None
    mqtt_password: SecretStr | None = None


class Settings(_Section):
    """All of it."""

    node: NodeSettings = NodeSettings()
    panel: PanelSettings = PanelSettings()
    line: LineSettings = LineSettings()
    camera: CameraSettings = CameraSettings()
    model: ModelSettings = ModelSettings()
    agent: AgentSettings = AgentSettings()
    provider: ProviderSettings = ProviderSettings()
    budget: BudgetSettings = BudgetSettings()
    metering: MeteringSettings = MeteringSettings()
    mqtt: MqttSettings = MqttSettings()
    secrets: Secrets = Secrets()


_PROVIDER_VARIABLES = {
    "QCNODE_PROVIDER_NAME": "name",
    "QCNODE_PROVIDER_BASE_URL": "base_url",
    "QCNODE_PROVIDER_MODEL": "model",
    "QCNODE_PROVIDER_PRICES": "prices",
}


def load_settings(path: Path, environ: Mapping[str, str] = os.environ) -> Settings:
    """Read `path`; relative paths in it count from its folder.

    `QCNODE_PROVIDER_*` variables win over the file. Raises `SettingsError` with file,
    line, key and what would be right.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise SettingsError(f"{path}: no such file; `qcnode init {path}` writes one") from None
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: cannot be read: {error}") from error
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"{path}: not TOML: {error}") from error
    if "secrets" in raw:
        line = _line_of(text, ("secrets",))
        raise SettingsError(
            f"{path}, line {line}: secrets do not belong in this file;"
            " set QCNODE_PROVIDER_API_KEY, QCNODE_BILLING_TOKEN, QCNODE_PANEL_TOKEN or"
            " QCNODE_MQTT_PASSWORD, or the same with _FILE"
        )
    provider = raw.setdefault("provider", {})
    for variable, key in _PROVIDER_VARIABLES.items():
        if environ.get(variable):
            provider[key] = environ[variable]
    try:
        settings = Settings.model_validate({**raw, "secrets": read_secrets(environ)})
    except ValidationError as error:
        raise SettingsError(_first_problem(path, text, error)) from error
    return _absolute(settings, path.resolve().parent)


def read_secrets(environ: Mapping[str, str] = os.environ) -> Secrets:
    """Take each secret from its variable or from the file its `_FILE` variable names."""
    found: dict[str, SecretStr] = {}
    for field in Secrets.model_fields:
        variable = f"QCNODE_{field.upper()}"
        value = environ.get(variable)
        file = environ.get(f"{variable}_FILE")
        if value is None and file:
            try:
                value = Path(file).read_text(encoding="utf-8").strip()
            except (OSError, UnicodeDecodeError) as error:
                raise SettingsError(f"{variable}_FILE={file}: cannot be read: {error}") from error
        if value:
            found[field] = SecretStr(value)
    return Secrets(**found)


def _absolute(settings: Settings, folder: Path) -> Settings:
    def under(path: Path | None) -> Path | None:
        return None if path is None else folder / path.expanduser()

    source = settings.camera.source
    if settings.camera.kind == "folder" and source is not None:
        source = str(folder / Path(source).expanduser())
    return settings.model_copy(
        update={
            "node": settings.node.model_copy(update={"home": under(settings.node.home)}),
            "model": settings.model.model_copy(update={"dir": under(settings.model.dir)}),
            "camera": settings.camera.model_copy(update={"source": source}),
            "provider": settings.provider.model_copy(
                update={"prices": under(settings.provider.prices)}
            ),
            "mqtt": settings.mqtt.model_copy(
                update={
                    "ca_file": under(settings.mqtt.ca_file),
                    "cert_file": under(settings.mqtt.cert_file),
                    "key_file": under(settings.mqtt.key_file),
                }
            ),
        }
    )


def _first_problem(path: Path, text: str, error: ValidationError) -> str:
    problem = error.errors(include_url=False)[0]
    place = tuple(str(step) for step in problem["loc"])
    line = _line_of(text, place)
    where = f"{path}, line {line}" if line else f"{path} (or a QCNODE_ variable)"
    key = ".".join(place)
    if problem["type"] == "extra_forbidden":
        return f"{where}: unknown key {key}{_did_you_mean(place)}"
    return f"{where}: {key} = {problem['input']!r}: {problem['msg']}"


def _did_you_mean(place: tuple[str, ...]) -> str:
    known: Any = Settings
    for step in place[:-1]:
        known = known.model_fields[step].annotation
    close = difflib.get_close_matches(place[-1], list(known.model_fields), n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else f"; known: {', '.join(known.model_fields)}"


def _line_of(text: str, place: tuple[str, ...]) -> int | None:
    """Return the line (from 1) of the longest part of `place` that stands in `text`."""
    lines = dict(_lines_of_keys(text))
    for length in range(len(place), 0, -1):
        if place[:length] in lines:
            return lines[place[:length]]
    return None


def _lines_of_keys(text: str) -> Iterator[tuple[tuple[str, ...], int]]:
    # tomllib tells no positions. Tables and bare keys, which is how this file is
    # written, are found by their lines; anything fancier falls back to its table.
    table: tuple[str, ...] = ()
    for number, line in enumerate(text.splitlines(), start=1):
        if header := re.match(r"\s*\[\s*([\w.\-]+)\s*\]", line):
            table = tuple(header[1].split("."))
            yield table, number
        elif key := re.match(r"\s*([\w.\-]+)\s*=", line):
            yield (*table, *key[1].split(".")), number
