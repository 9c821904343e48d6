"""What this node is to do: one frozen object from one TOML file.

Every key has a default that is safe, so an empty file makes a node that judges
parts of the virtual line and asks nobody. Secrets are never in the file: they come
from `QCNODE_*` variables, or from a file named by the same variable with `_FILE`.
"""

from __future__ import annotations

import difflib
import functools
import os
import re
import tomllib
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)

from qcnode.books.budgets import Budget, Unit, Window, zone_of
from qcnode.domain import Action, AgentLevel, Disposition
from qcnode.errors import SettingsError
from qcnode.money import CostCentre
from qcnode.runtime.swap import ChangeRule

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

PICO_PER_MICRO = 1_000_000
NO_LIMIT = 2**63 - 1

Name = Annotated[str, Field(pattern=r"^[a-z0-9-]{1,32}$")]
Port = Annotated[int, Field(ge=0, le=65535)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
Role = Literal["viewer", "operator", "engineer", "billing"]
Account = Annotated[str, Field(max_length=64, pattern=r"^[^\x00-\x1f\x7f]*$")]


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
    timezone: str = "UTC"
    """Where days, weeks and months of the budgets begin at midnight."""

    @field_validator("timezone")
    @classmethod
    def _is_one(cls, value: str) -> str:
        zone_of(value)
        return value


class PanelSettings(_Section):
    """The operator panel and the service routes; port 0 takes any free one."""

    host: str = "127.0.0.1"
    port: Port = 8080
    public_hosts: tuple[str, ...] = Field(default=(), strict=False)
    """Names under which browsers reach the panel, beside the loopback names."""


class LineSettings(_Section):
    """The belt: the virtual line, or that of a PLC that polls the registers of [modbus].

    Lengths and speed are those of the real belt; of a PLC's, `pulses_per_mm` is its encoder's.
    """

    kind: Literal["virtual", "modbus"] = "virtual"
    failsafe: Action = Field(default=Action.DIVERT, strict=False)
    parts: Count | None = None
    """How many parts to send before the belt stands; without it, it runs until stopped."""
    period_ms: Positive = 100.0
    speed_mm_per_s: Positive = 500.0
    gate_mm: Positive = 250.0
    guard_ms: Positive = 30.0
    pulses_per_mm: Positive = 20.0
    seed: int = 20261122

    @field_validator("failsafe")
    @classmethod
    def _never_accept(cls, value: Action) -> Action:
        if value is Action.ACCEPT:
            raise ValueError("a part without evidence is never accepted; use DIVERT or REJECT")
        return value


class CameraSettings(_Section):
    """Where pictures come from: rendered parts, a folder, a device, file or URL, or GigE Vision.

    `features` is a rendered file of firmware_configs/cameras, for a GigE camera alone.
    """

    kind: Literal["rendered", "folder", "opencv", "gige"] = "rendered"
    source: str | None = None
    features: Path | None = Field(default=None, strict=False)
    shuffle: bool = False
    """Whether a folder's pictures come in a random order, the same for the same line.seed."""
    timeout_ms: Positive = 100.0
    defect_rate: Annotated[float, Field(ge=0, le=1)] = 0.2


class ModelSettings(_Section):
    """The released model that judges, and the CPU threads it may take."""

    dir: Path = Field(default=Path("model"), strict=False)
    threads: Count = 1
    trusted_keys: tuple[str, ...] = Field(default=(), strict=False)
    """Public keys, one of which must have signed a model; without any, all are taken."""


class ChangeSettings(_Section):
    """How a new model proves itself on the running line before it decides alone.

    Counted in parts that both models judged; `docs/how-to/change-models.md` says more.
    """

    shadow_parts: Count = 200
    canary_share: Annotated[float, Field(gt=0, le=1)] = 0.1
    canary_parts: Count = 100
    watched_parts: Count = 500

    def rule(self) -> ChangeRule:
        """Return it as the slot knows it."""
        return ChangeRule(**self.model_dump())


class AgentSettings(_Section):
    """Whether undecided parts go to an agent, and how far its word reaches."""

    enabled: bool = False
    level: AgentLevel = Field(default=AgentLevel.L2, strict=False)
    product: str = "the part"
    defect_classes: tuple[str, ...] = Field(default=(), strict=False)
    workers: Count = 4
    waiting_max: Count = 50
    per_minute_max: Positive | None = None
    """The most parts it is asked about in a minute, whatever the limits ask; others wait for
    people."""
    attempts_max: Annotated[int, Field(ge=1, le=5)] = 2
    ruling_timeout_s: Positive = 900.0
    on_timeout: Disposition = Field(default=Disposition.REWORK, strict=False)
    golden: bool = True
    """Whether a good part and the heat are shown beside the part, for no more tokens."""
    mask: tuple[Annotated[tuple[float, float, float, float], Field(strict=False)], ...] = Field(
        default=(), strict=False
    )
    """Areas of the frame that never leave: left, top, width and height as shares of it."""
    mask_codes: bool = True
    steps_max: Annotated[int, Field(ge=1, le=8)] = 1
    """Requests in one review; with more than one the agent may use tools before it rules."""
    review_tokens_max: Count | None = None
    settled: Literal["off", "exact", "alike"] = "exact"
    """Whether a part on which a person has ruled is asked about again: not the very same picture
    ("exact"), nor one that looks the same as a defective part ("alike")."""

    @field_validator("mask")
    @classmethod
    def _are_areas(
        cls, value: tuple[tuple[float, float, float, float], ...]
    ) -> tuple[tuple[float, float, float, float], ...]:
        for left, top, width, height in value:
            if min(left, top) < 0 or min(width, height) <= 0 or max(left + width, top + height) > 1:
                raise ValueError("an area is left, top, width and height, shares of the frame")
        return value


class AuthoritySettings(_Section):
    """How far agent.level may reach: the policy pack, and what auditors vouched for.

    Without a pack the one that ships counts. What `policy` and `attestations` name must be
    signed, by these keys; docs/how-to/authority.md says how.
    """

    policy: Path | None = Field(default=None, strict=False)
    policy_key: str | None = None
    attestations: Annotated[tuple[Path, ...], Field(strict=False)] = ()
    auditor_key: str | None = None

    @field_validator("attestations", mode="before")
    @classmethod
    def _are_paths(cls, value: Any) -> Any:
        # Strict settings take no text for a path within a tuple.
        return tuple(map(Path, value)) if isinstance(value, list) else value

    @model_validator(mode="after")
    def _have_keys(self) -> AuthoritySettings:
        if self.policy is not None and self.policy_key is None:
            raise ValueError("policy_key is missing: whose signature counts under the policy")
        if self.attestations and self.auditor_key is None:
            raise ValueError("auditor_key is missing: whose signature counts under attestations")
        return self


class DriftSettings(_Section):
    """When parts and pictures count as no longer those of the certificate.

    `false_alarm` is the chance that it is ever revoked for nothing. As many as
    `defects_most` of the parts may be defective without that being taken for drift.
    """

    enabled: bool = True
    false_alarm: Annotated[float, Field(gt=0, le=0.5)] = 0.01
    defects_most: Annotated[float, Field(ge=0, lt=1)] = 0.3


class AuditSettings(_Section):
    """Which share of the parts that would pass a person checks, drawn at random.

    With a `target` nothing passes unasked until the checks show, with 95 % confidence,
    that no more than this share of passed parts is defective.
    """

    enabled: bool = False
    share: Annotated[float, Field(gt=0, le=1)] = 0.02
    target: Annotated[float, Field(gt=0, lt=1)] | None = None


class ProviderSettings(_Section):
    """Whom undecided parts are put to: an endpoint, its price book, and what it may be sent.

    `preset` names a table of `presets.toml`, whose values stand where this one says nothing.
    A `module` of the operator's own speaks what none of the protocols does. Beyond this
    machine nothing is sent to it before region, entity, filing and data_classes say that
    it may be: silence allows nothing.
    """

    preset: str | None = None
    name: str = "scripted"
    protocol: Literal["openai", "anthropic", "gemini"] = "openai"
    module: Path | None = Field(default=None, strict=False)
    """A Python file with a class `Provider`; docs/how-to/add-a-provider.md says more."""
    base_url: str = "http://127.0.0.1:8090/v1"
    model: str = "scripted-provider"
    api_key_file: Path | None = Field(default=None, strict=False)
    api_key: SecretStr | None = None
    """Read from api_key_file, or from the environment; never in the file."""
    ca_file: Path | None = Field(default=None, strict=False)
    """The authority behind its certificate, where it is not a public one."""
    prices: Path | None = Field(default=None, strict=False)
    """Price file, or the name of a book that ships; without it the scripted provider's."""
    prices_key: str | None = None
    """The public key that must have signed the price file; without it any is taken."""
    timeout_s: Positive = 10.0
    output_tokens_max: Count = 300
    image_side_max_px: Annotated[int, Field(ge=64, le=4096)] = 448
    image_tokens: str = "patch28"
    """By which formula it counts a picture; `qcbridge/evidence.py` has them."""
    answer_format: Literal["json_schema", "json_object", "text"] = "json_schema"
    max_tokens_key: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    region: Account = ""
    """Where it works on the data."""
    entity: Account = ""
    """The company that answers for it."""
    filing: Account = ""
    """The number under which its service is filed, or "none"."""
    data_classes: Annotated[tuple[Account, ...], Field(strict=False)] = ()
    """What it may be sent, in the words of egress.data_class."""
    allowed_until: date | None = None
    """The last day on which it may be sent anything; without it, until that is changed."""

    @model_validator(mode="before")
    @classmethod
    def _on_its_preset(cls, value: Any) -> Any:
        if not isinstance(value, dict) or not isinstance(value.get("preset"), str):
            return value
        known = presets()
        if value["preset"] not in known:
            raise ValueError(f"no preset {value['preset']!r}; there are: {', '.join(known)}")
        return known[value["preset"]] | value


class EgressSettings(_Section):
    """What may leave this machine: nothing, as long as no region is named."""

    regions: Annotated[tuple[Account, ...], Field(strict=False)] = ()
    """Where pictures of this line may go."""
    data_class: Annotated[str, Field(pattern=r"^[a-z0-9-]{1,32}$")] = "part-image"
    """What pictures of this line are; only providers that may be sent this get them."""


class RoutingSettings(_Section):
    """Which of several providers is asked; with one, it is that one.

    `accuracy_floor` is what a provider must have proved on this line, with 95 % confidence,
    to count as good enough. `trial_share` of the questions go to one that has yet to prove
    it. With `error_cost_micro`, what a wrong ruling costs in millionths of the prices'
    currency, a second opinion is asked where it is worth its price; without it, none is.
    """

    accuracy_floor: Annotated[float, Field(ge=0, lt=1)] = 0.8
    trial_share: Annotated[float, Field(ge=0, le=1)] = 0.1
    error_cost_micro: Annotated[int, Field(ge=0, le=10**12)] | None = None
    recheck_audits: bool = False
    """Whether audited parts are put to the agent too, once people have ruled on them."""
    recheck_within_h: Annotated[float, Field(gt=0, le=720)] = 24.0
    """How long such a question may wait for the hours in which it is cheapest."""


class CostCentreSettings(_Section):
    """On whose account this node spends; with node.line it goes on record with each request."""

    department: Account = ""
    application: Account = ""
    function: Account = ""
    product: Account = ""
    agent: Account = ""


class ScopeSettings(CostCentreSettings):
    """Whose spending a budget counts; what is left out is anybody's."""

    line: Account = ""


class BudgetSettings(_Section):
    """The most that may be spent in one window, in node.timezone.

    Money is given in millionths of the currency, tokens and calls in whole numbers. The
    limit of a shared budget is the billing server's to lend, and its own, if given, is
    the most that may be taken of it.
    """

    name: Name
    unit: Unit = "money"
    currency: Annotated[str, Field(pattern=r"^[A-Z]{3}$")] | None = None
    limit_micro: Annotated[int, Field(ge=0, le=NO_LIMIT // PICO_PER_MICRO)] | None = None
    limit: Annotated[int, Field(ge=0, le=NO_LIMIT)] | None = None
    window: Window = "day"
    scope: ScopeSettings = ScopeSettings()
    shared: bool = False

    @model_validator(mode="after")
    def _says_how_much(self) -> BudgetSettings:
        if self.unit == "money":
            if self.currency is None:
                raise ValueError('a budget of money needs a currency, as in currency = "USD"')
            if self.limit is not None:
                raise ValueError("money is limited by limit_micro, in millionths of the currency")
        elif self.currency is not None or self.limit_micro is not None:
            raise ValueError(f"a budget of {self.unit} has no currency, and limit in whole numbers")
        if self.limit_micro is None and self.limit is None and not self.shared:
            name = "limit_micro" if self.unit == "money" else "limit"
            raise ValueError(f"{name} is missing: a budget that is not shared says how much")
        return self

    def budget(self, zone: str) -> Budget:
        """Return it as the books know it."""
        limit = NO_LIMIT if self.limit is None else self.limit
        if self.limit_micro is not None:
            limit = self.limit_micro * PICO_PER_MICRO
        return Budget(
            name=self.name,
            limit=limit,
            unit=self.unit,
            currency=self.currency,
            window=self.window,
            zone=zone,
            scope=CostCentre(**self.scope.model_dump()),
            shared=self.shared,
        )


class MeteringSettings(_Section):
    """How ledger entries reach the billing server, and how old prices may be.

    Older than `prices_age_max_days` since somebody checked them, prices are stale: then
    nothing is asked ("deny"), or only as much as a budget of calls allows ("calls").
    """

    channel: Literal["none", "http", "mqtt"] = "none"
    url: str = "http://127.0.0.1:8081"
    fallback_url: str | None = None
    """Where batches go over HTTP while the broker brings no receipts; without it they wait."""
    fallback_after_s: Positive = 30.0
    receipt_timeout_s: Positive = 10.0
    server_key: str | None = None
    """The billing server's public key; with it, receipts count only with its signature."""
    prices_age_max_days: Count = 100
    stale_prices: Literal["deny", "calls"] = "deny"


class MqttSettings(_Section):
    """The broker: for metering when its channel is `mqtt`, and for what is said of the line.

    `events` says verdicts, rulings, alarms and state; with `commands` the node also listens.
    `actors` names who may act in which roles; without any, the broker's access rules decide.
    """

    host: str = "127.0.0.1"
    port: Port = 1883
    prefix: Annotated[str, Field(pattern=r"^[a-z0-9-]+(/[a-z0-9-]+)*$")] = "qc/v1"
    username: str | None = None
    ca_file: Path | None = Field(default=None, strict=False)
    cert_file: Path | None = Field(default=None, strict=False)
    key_file: Path | None = Field(default=None, strict=False)
    events: bool = False
    commands: bool = False
    actors: dict[str, Annotated[tuple[Role, ...], Field(strict=False)]] | None = None


class SparkplugSettings(_Section):
    """The node as a Sparkplug B edge node at the broker of [mqtt], as a user of its own.

    `group` is site:area unless said otherwise, `edge_node` its user name, or the node's name
    where it has none. With a `primary_host` nothing is said while that one is offline.
    """

    enabled: bool = False
    group: Account | None = None
    edge_node: Account | None = None
    primary_host: Account | None = None
    username: str | None = None
    cert_file: Path | None = Field(default=None, strict=False)
    key_file: Path | None = Field(default=None, strict=False)


class ModbusSettings(_Section):
    """Results to a PLC by Modbus TCP, which has no users: keep it on the machine's network."""

    enabled: bool = False
    host: str = "127.0.0.1"
    port: Port = 502


class Secrets(_Section):
    """What must not stand in the file; shown nowhere."""

    node_key: SecretStr | None = None
    """What the node signs with, as PEM; without it `node.key` in its home, made there."""
    provider_api_key: SecretStr | None = None
    billing_token: SecretStr | None = None
    panel_token: SecretStr | None = None
    mqtt_password: SecretStr | None = None
    sparkplug_password: SecretStr | None = None


class Settings(_Section):
    """All of it."""

    node: NodeSettings = NodeSettings()
    panel: PanelSettings = PanelSettings()
    line: LineSettings = LineSettings()
    camera: CameraSettings = CameraSettings()
    model: ModelSettings = ModelSettings()
    change: ChangeSettings = ChangeSettings()
    drift: DriftSettings = DriftSettings()
    audit: AuditSettings = AuditSettings()
    agent: AgentSettings = AgentSettings()
    authority: AuthoritySettings = AuthoritySettings()
    provider: Annotated[tuple[ProviderSettings, ...], Field(strict=False, min_length=1)] = (
        ProviderSettings(),
    )
    routing: RoutingSettings = RoutingSettings()
    egress: EgressSettings = EgressSettings()
    cost_centre: CostCentreSettings = CostCentreSettings()
    budget: Annotated[tuple[BudgetSettings, ...], Field(strict=False)] = ()
    metering: MeteringSettings = MeteringSettings()
    mqtt: MqttSettings = MqttSettings()
    sparkplug: SparkplugSettings = SparkplugSettings()
    modbus: ModbusSettings = ModbusSettings()
    secrets: Secrets = Secrets()

    @field_validator("provider", mode="before")
    @classmethod
    def _is_one_of_several(cls, value: Any) -> Any:
        return (value,) if isinstance(value, dict | ProviderSettings) else value

    @field_validator("budget", mode="before")
    @classmethod
    def _are_several(cls, value: Any) -> Any:
        if isinstance(value, dict):
            raise ValueError(  # noqa: TRY004  # pydantic takes no other kind for a wrong value
                "budgets are written as [[budget]], each with a name, a limit and a window"
            )
        return value

    @model_validator(mode="after")
    def _agree(self) -> Settings:
        names = [budget.name for budget in self.budget]
        for number, name in enumerate(names):
            if name in names[:number]:
                raise ValueError(
                    f"budget.{number}.name = {name!r}: there is one of this name already"
                )
        asked = [(one.name, one.model) for one in self.provider]
        for number, one in enumerate(asked):
            if one in asked[:number]:
                raise ValueError(
                    f"provider.{number}.model = {one[1]!r}: {one[0]} has this model already"
                )
        if self.metering.stale_prices == "calls" and not any(
            budget.unit == "calls" and budget.covers(self.centre()) for budget in self.budgets()
        ):
            raise ValueError(
                'metering.stale_prices = "calls" needs a [[budget]] with unit = "calls" that'
                " counts what this node spends"
            )
        return self

    def key_of(self, provider: ProviderSettings) -> SecretStr | None:
        """Return the key of a provider; the variable's is the first one's, and wins."""
        first = self.secrets.provider_api_key if provider is self.provider[0] else None
        return first or provider.api_key

    def centre(self) -> CostCentre:
        """Return on whose account this node spends."""
        return CostCentre(line=self.node.line, **self.cost_centre.model_dump())

    def budgets(self) -> tuple[Budget, ...]:
        """Return the budgets as the books know them."""
        return tuple(budget.budget(self.node.timezone) for budget in self.budget)


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
    _take_variables(raw, environ)
    _refuse_keys(raw, path, text)
    try:
        settings = Settings.model_validate({**raw, "secrets": read_secrets(environ)})
    except ValidationError as error:
        raise SettingsError(_first_problem(path, text, error)) from error
    return _with_keys(_absolute(settings, path.resolve().parent))


@functools.cache
def presets() -> dict[str, dict[str, Any]]:
    """Return the values that ship for the vendors and servers people use, by name."""
    return tomllib.loads(Path(__file__).with_name("presets.toml").read_text(encoding="utf-8"))


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


def _take_variables(raw: dict[str, Any], environ: Mapping[str, str]) -> None:
    """Lay the variables over the first provider of the file."""
    found = {
        key: environ[variable]
        for variable, key in _PROVIDER_VARIABLES.items()
        if environ.get(variable)
    }
    written = raw.get("provider", {})
    if isinstance(written, dict):
        raw["provider"] = written | found
    elif isinstance(written, list) and written and isinstance(written[0], dict):
        raw["provider"] = [written[0] | found, *written[1:]]


def _refuse_keys(raw: dict[str, Any], path: Path, text: str) -> None:
    written = raw.get("provider")
    for number, one in enumerate(written if isinstance(written, list) else [written]):
        if isinstance(one, dict) and "api_key" in one:
            line = _line_of(text, ("provider", str(number), "api_key")) or _line_of(
                text, ("provider", "api_key")
            )
            raise SettingsError(
                f"{path}, line {line}: a key does not belong in this file; put it in a file that"
                " only this user can read, and name that in api_key_file"
            )


def _with_keys(settings: Settings) -> Settings:
    """Read the keys that the settings name files for."""
    several = []
    for one in settings.provider:
        key = None
        if one.api_key_file is not None:
            try:
                key = one.api_key_file.read_text(encoding="utf-8").strip()
            except (OSError, UnicodeDecodeError) as error:
                raise SettingsError(
                    f"provider.api_key_file = {str(one.api_key_file)!r}: cannot be read: {error}"
                ) from error
        several.append(one.model_copy(update={"api_key": SecretStr(key)}) if key else one)
    return settings.model_copy(update={"provider": tuple(several)})


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
            "camera": settings.camera.model_copy(
                update={"source": source, "features": under(settings.camera.features)}
            ),
            "authority": settings.authority.model_copy(
                update={
                    "policy": under(settings.authority.policy),
                    "attestations": tuple(
                        folder / path.expanduser() for path in settings.authority.attestations
                    ),
                }
            ),
            "provider": tuple(
                one.model_copy(
                    update={
                        name: under(getattr(one, name))
                        for name in ("prices", "module", "api_key_file", "ca_file")
                    }
                )
                for one in settings.provider
            ),
            "mqtt": settings.mqtt.model_copy(
                update={
                    "ca_file": under(settings.mqtt.ca_file),
                    "cert_file": under(settings.mqtt.cert_file),
                    "key_file": under(settings.mqtt.key_file),
                }
            ),
            "sparkplug": settings.sparkplug.model_copy(
                update={
                    "cert_file": under(settings.sparkplug.cert_file),
                    "key_file": under(settings.sparkplug.key_file),
                }
            ),
        }
    )


def _first_problem(path: Path, text: str, error: ValidationError) -> str:
    problem = error.errors(include_url=False)[0]
    words = problem["msg"].removeprefix("Value error, ")
    # What is wrong between sections begins with the key to look at.
    first, _, rest = words.partition(" ")
    place = tuple(str(step) for step in problem["loc"]) or tuple(first.split("."))
    line = _line_of(text, place)
    where = f"{path}, line {line}" if line else f"{path} (or a QCNODE_ variable)"
    key = ".".join(step for step in place if not step.isdecimal())
    if problem["type"] == "extra_forbidden":
        return f"{where}: unknown key {key}{_did_you_mean(place)}"
    if not problem["loc"]:
        return f"{where}: {key} {rest}"
    if not isinstance(problem["input"], str | int | float | bool):  # A whole table.
        return f"{where}: {key}: {words}"
    return f"{where}: {key} = {problem['input']!r}: {words}"


def _did_you_mean(place: tuple[str, ...]) -> str:
    known: Any = Settings
    for step in place[:-1]:
        # A table of which there are several is known by its number.
        known = get_args(known)[0] if step.isdecimal() else known.model_fields[step].annotation
    close = difflib.get_close_matches(place[-1], list(known.model_fields), n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else f"; known: {', '.join(known.model_fields)}"


def _line_of(text: str, place: tuple[str, ...]) -> int | None:
    """Return the line (from 1) of the longest part of `place` that stands in `text`."""
    lines = dict(_lines_of_keys(text))
    # A table that could be several is numbered here also where the file has it once.
    once = tuple(step for step in place if not step.isdecimal())
    for length in range(len(place), 0, -1):
        for known in (place[:length], once[:length]):
            if known in lines:
                return lines[known]
    return None


def _lines_of_keys(text: str) -> Iterator[tuple[tuple[str, ...], int]]:
    # tomllib tells no positions. Tables and bare keys, which is how this file is
    # written, are found by their lines; anything fancier falls back to its table.
    table: tuple[str, ...] = ()
    several: dict[str, int] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if header := re.match(r"\s*\[\[\s*([\w\-]+)\s*\]\]", line):
            several[header[1]] = several.get(header[1], -1) + 1
            table = (header[1], str(several[header[1]]))
            yield table, number
        elif header := re.match(r"\s*\[\s*([\w.\-]+)\s*\]", line):
            first, *rest = header[1].split(".")
            table = (first, *([str(several[first])] if first in several else []), *rest)
            yield table, number
        elif key := re.match(r"\s*([\w.\-]+)\s*=", line):
            yield (*table, *key[1].split(".")), number
