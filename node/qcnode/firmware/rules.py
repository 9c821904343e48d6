"""What must hold in each kind of file, whatever its own parser would also accept. Pure.

Each function takes a finished file and says what is wrong, or None. They are strict on
purpose: a key that no file of ours uses is refused, because nobody has looked at what it
does.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec
import yaml

from qcnode.cameras.features import FeatureFile

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

# -- ESPHome --------------------------------------------------------------------------------

REFUSED_PARTS: Final = ("wifi", "api", "web_server", "captive_portal", "bluetooth_proxy")
NEEDED_PARTS: Final = ("esphome", "esp32", "ethernet", "mqtt", "ota", "logger")
OFF: Final = "ALWAYS_OFF"


class _Tagged(str):
    """A value behind a tag of ESPHome, such as !secret."""

    __slots__ = ("tag",)
    tag: str


class _Loader(yaml.SafeLoader):  # type: ignore[misc]  # PyYAML has no types
    """YAML as ESPHome writes it, and each key once."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:  # noqa: FBT001, FBT002  # the library's own shape
        """Refuse a key that stands there twice: one of the two would silently win."""
        keys = [key.value for key, _value in node.value]
        for key, count in Counter(map(str, keys)).items():
            if count > 1:
                raise yaml.constructor.ConstructorError(
                    None, None, f"{key} stands there twice", node.start_mark
                )
        made: dict[Any, Any] = super().construct_mapping(node, deep=deep)
        return made


def _tagged(loader: Any, suffix: str, node: Any) -> _Tagged:
    value = _Tagged(loader.construct_scalar(node))
    value.tag = suffix
    return value


_Loader.add_multi_constructor("!", _tagged)


def _load(text: str) -> Any:
    return yaml.load(text, Loader=_Loader)  # noqa: S506  # a SafeLoader that knows three tags


def yaml_mapping(text: str) -> str | None:
    """Say whether a text is YAML with keys."""
    try:
        return None if isinstance(_load(text), dict) else "it holds no keys"
    except yaml.YAMLError as error:
        return _words(error)


def secret_names(text: str) -> set[str]:
    """Return the names of a file of secrets."""
    found = yaml.safe_load(text)
    return set(found) if isinstance(found, dict) else set()


def secrets_example(text: str) -> str | None:
    """An example names every secret and holds none."""
    if problem := yaml_mapping(text):
        return problem
    full = [name for name, value in yaml.safe_load(text).items() if value != "..."]
    return f"{full[0]} must be '...': this file is only an example" if full else None


def esphome(files: Mapping[str, str], main: str, secrets: set[str]) -> str | None:
    """Say what is wrong with a device, given all files it is made of."""
    try:
        device = _with_packages(files, main)
    except (yaml.YAMLError, KeyError) as error:
        return _words(error)
    return next(_esphome(device, files, PurePosixPath(main).parent, secrets), None)


def _with_packages(files: Mapping[str, str], main: str) -> dict[str, Any]:
    device: dict[str, Any] | Any = _load(files[main])
    if not isinstance(device, dict):
        raise KeyError(f"{main} holds no keys")
    for part in (device.get("packages") or {}).values():
        path = str(PurePosixPath(main).parent / part)
        if path not in files:
            raise KeyError(f"{path} is not among what it needs")
        device = _merged(_load(files[path]), device)
    return device


def _merged(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    both = dict(under)
    for key, value in over.items():
        mine = both.get(key)
        if isinstance(mine, dict) and isinstance(value, dict):
            both[key] = _merged(mine, value)
        elif isinstance(mine, list) and isinstance(value, list):
            both[key] = mine + value
        else:
            both[key] = value
    return both


def _esphome(
    device: dict[str, Any], files: Mapping[str, str], folder: PurePosixPath, secrets: set[str]
) -> Iterator[str]:
    for part in REFUSED_PARTS:
        if part in device:
            yield f"{part}: a device at the line is wired, and has no second way in"
    missing = [part for part in NEEDED_PARTS if not isinstance(device.get(part), dict | list)]
    if missing:
        yield f"{missing[0]}: is missing"
        return
    yield from _mqtt(device["mqtt"])
    for output in device.get("switch") or ():
        yield from _output(output)
    for pin, count in Counter(map(str, _pins(device))).items():
        if count > 1:
            yield f"{pin}: is used {count} times"
    for name in sorted(_secrets(device) - secrets):
        yield f"!secret {name}: is not in secrets.example.yaml"
    for include in device["esphome"].get("includes") or ():
        if str(folder / include) not in files:
            yield f"esphome.includes: {include} is not among what it needs"


def _mqtt(mqtt: dict[str, Any]) -> Iterator[str]:
    if mqtt.get("reboot_timeout") != "0s":
        yield "mqtt.reboot_timeout: must be 0s, or a broker that is away restarts the device"
    if mqtt.get("discovery") is not False:
        yield "mqtt.discovery: must be false"
    for message in ("birth_message", "will_message"):
        if not (mqtt.get(message) or {}).get("retain"):
            yield f"mqtt.{message}: must be retained, or nobody knows whether the device is there"
    for secret in ("certificate_authority", "client_certificate", "client_certificate_key"):
        if getattr(mqtt.get(secret), "tag", None) != "secret":
            yield f"mqtt.{secret}: must be !secret"


def _output(output: dict[str, Any]) -> Iterator[str]:
    if output.get("platform") == "gpio" and output.get("restore_mode") != OFF:
        yield f"switch {output.get('id')}: restore_mode must be {OFF}: without power, divert"
    if output.get("inverted") or isinstance(output.get("pin"), dict):
        yield f"switch {output.get('id')}: inverted, so it would be on without power"


def _pins(value: Any, key: str = "") -> Iterator[str]:
    if isinstance(value, dict):
        for name, item in value.items():
            yield from _pins(item, str(name))
    elif isinstance(value, list):
        for item in value:
            yield from _pins(item, key)
    elif key == "pin" or key.endswith("_pin") or key.startswith("pin_"):
        yield str(value)


def _secrets(value: Any) -> set[str]:
    if isinstance(value, dict):
        return set().union(*map(_secrets, value.values())) if value else set()
    if isinstance(value, list):
        return set().union(*map(_secrets, value)) if value else set()
    return {str(value)} if getattr(value, "tag", None) == "secret" else set()


# -- structured text ------------------------------------------------------------------------

_COMMENT: Final = re.compile(r"\(\*.*?\*\)", re.DOTALL)
_PAIRS: Final = (
    ("FUNCTION_BLOCK", "END_FUNCTION_BLOCK"),
    ("IF", "END_IF"),
    ("FOR", "END_FOR"),
    ("CASE", "END_CASE"),
    ("WHILE", "END_WHILE"),
    ("STRUCT", "END_STRUCT"),
    ("TYPE", "END_TYPE"),
)
# Words that some vendor knows and IEC 61131-3 does not.
_DIALECT: Final = ("AND_THEN", "OR_ELSE", "POINTER", "REFERENCE", "CONTINUE", "__NEW", "METHOD")


def structured_text(text: str) -> str | None:
    """Blocks that end, and no vendor's own words."""
    bare = _COMMENT.sub(" ", text)
    if "(*" in bare or "*)" in bare:
        return "a comment does not end"
    words = Counter(re.findall(r"[A-Za-z_]+", bare))
    for begin, end in _PAIRS:
        if words[begin] != words[end]:
            return f"{words[begin]} {begin} and {words[end]} {end}"
    begun = sum(words[word] for word in ("VAR", "VAR_INPUT", "VAR_OUTPUT", "VAR_GLOBAL"))
    if begun != words["END_VAR"]:
        return f"{begun} VAR and {words['END_VAR']} END_VAR"
    for word in _DIALECT:
        if words[word]:
            return f"{word} is not known to every IEC 61131-3 tool"
    return None


# -- cameras and lights ---------------------------------------------------------------------


AGAIN: Final = ("TriggerMode",)
NEVER: Final = ("UserSetSave", "AcquisitionStart", "DeviceReset", "TLParamsLocked")


def camera(text: str) -> str | None:
    """Say what is wrong with a list of features: it leaves no trigger to who was there before."""
    try:
        file = msgspec.convert(_load(text), FeatureFile)
    except (yaml.YAMLError, msgspec.ValidationError) as error:
        return _words(error)
    return next(_camera(file), None)


def _camera(file: FeatureFile) -> Iterator[str]:
    names = [one.name for one in file.features]
    if not names:
        yield "it sets nothing"
        return
    for name, count in Counter(names).items():
        if name in NEVER:
            yield f"{name}: is not for a file: nothing is saved in a camera, or started, by it"
        if count > 1 and name not in AGAIN:
            yield f"{name}: is set {count} times"
    for name in ("TriggerSelector", "TriggerMode", "TriggerSource"):
        if name not in names:
            yield f"{name}: must be set: a client before us may have left anything"
    if names[0] != "TriggerSelector" or names[-1] != "TriggerMode":
        yield "TriggerSelector must come first and TriggerMode last: the rest depends on them"
    if file.features[-1].to not in ("On", "Off"):
        yield "TriggerMode: must be 'On' or 'Off', in quotes"


_LIGHT: Final = (
    re.compile(r"TT0"),
    re.compile(r"GR"),
    re.compile(r"GT[01]"),
    re.compile(r"ST[0-8]"),
    re.compile(r"RS[1-8],(100|[1-9]?[0-9])"),
    re.compile(r"RT[1-8],[0-9]{1,6}us,[0-9]{1,6}us,[0-9]{1,3}"),
)


def light(text: str) -> str | None:
    """Commands of a Gardasoft RT controller that set a flash and keep nothing."""
    for number, line in _lines(text):
        if not any(command.fullmatch(line) for command in _LIGHT):
            return f"line {number}: {line!r} is no command this file may give"
    return None


# -- the host -------------------------------------------------------------------------------

PROC: Final = Path("/proc/sys")


def sysctl(text: str) -> str | None:
    """Keys that this kernel knows, each once, with a whole number."""
    seen: set[str] = set()
    for number, line in _lines(text):
        found = re.fullmatch(r"([a-z0-9_.-]+) = ([0-9]{1,12})", line)
        if found is None:
            return f"line {number}: {line!r} is not `key = number`"
        key = found[1]
        if key in seen:
            return f"line {number}: {key} stands there twice"
        seen.add(key)
        # A network card of the site is not here; the kernel's default has the same keys.
        here = re.sub(r"^(net\.ipv[46]\.conf)\.[^.]+\.", r"\1.default.", key)
        there = (PROC / here.replace(".", "/")).exists() or key in _NET_CORE
        if (PROC / "kernel").exists() and not there:
            return f"line {number}: this kernel knows no {key}"
    return None


# Not to be seen from within a network namespace.
_NET_CORE: Final = ("net.core.rmem_max", "net.core.rmem_default", "net.core.netdev_max_backlog")


class _Ethernet(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="kebab"):
    dhcp4: bool
    dhcp6: bool
    link_local: tuple[str, ...]
    addresses: tuple[Annotated[str, msgspec.Meta(pattern=r"^[0-9.]{7,15}/[0-9]{1,2}$")], ...]
    mtu: Annotated[int, msgspec.Meta(ge=1280, le=9216)]
    optional: bool


class _Network(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    version: Annotated[int, msgspec.Meta(ge=2, le=2)]
    ethernets: Annotated[dict[str, _Ethernet], msgspec.Meta(min_length=1)]


class _Netplan(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    network: _Network


def netplan(text: str) -> str | None:
    """One card with a fixed address, and no key that we do not use."""
    try:
        msgspec.convert(_load(text), _Netplan)
    except (yaml.YAMLError, msgspec.ValidationError) as error:
        return _words(error)
    return None


_CHRONY: Final = (
    re.compile(r"server [A-Za-z0-9.-]+ iburst"),
    re.compile(r"makestep [0-9.]+ [0-9]+"),
    re.compile(r"local stratum ([1-9]|1[0-5])"),
    re.compile(r"allow [0-9.]+/[0-9]{1,2}"),
)


def chrony(text: str) -> str | None:
    """The directives we use, each once."""
    seen: set[str] = set()
    for number, line in _lines(text):
        if not any(directive.fullmatch(line) for directive in _CHRONY):
            return f"line {number}: {line!r} is no directive we use"
        word = line.split()[0]
        if word in seen:
            return f"line {number}: {word} stands there twice"
        seen.add(word)
    return None


_UDEV: Final = re.compile(r'([A-Z]+)(\{[A-Za-z0-9_]+\})?(==|!=|\+=|=)"([^"]*)"')
_UDEV_MATCH: Final = ("ACTION", "SUBSYSTEM", "KERNEL", "ATTR")
_UDEV_SET: Final = ("RUN", "MODE", "GROUP", "OWNER", "SYMLINK")


def udev(text: str) -> str | None:
    """Rules that first match and then set, and run nothing but a program by its path."""
    for number, line in _lines(text):
        setting = False
        for part in line.split(", "):
            found = _UDEV.fullmatch(part)
            if found is None:
                return f'line {number}: {part!r} is not KEY=="value"'
            key, sign, value = found[1], found[3], found[4]
            matches = sign in ("==", "!=")
            if key not in (_UDEV_MATCH if matches else _UDEV_SET):
                return f"line {number}: {key}{sign} is no key we use"
            if matches and setting:
                return f"line {number}: {key} is matched after something was set"
            if key == "RUN" and not value.startswith("/"):
                return f"line {number}: RUN needs the whole path of a program"
            setting = setting or not matches
        if not setting:
            return f"line {number}: nothing is set"
    return None


# -- what is generated ----------------------------------------------------------------------

_BROKER: Final = frozenset(
    (
        "allow_anonymous",
        "acl_file",
        "allow_zero_length_clientid",
        "persistence",
        "persistence_location",
        "persistence_file",
        "autosave_interval",
        "autosave_on_changes",
        "max_queued_messages",
        "max_queued_bytes",
        "max_inflight_messages",
        "queue_qos0_messages",
        "max_packet_size",
        "max_keepalive",
        "persistent_client_expiration",
        "sys_interval",
        "log_dest",
        "log_type",
        "log_timestamp_format",
        "connection_messages",
        "include_dir",
        "listener",
        "cafile",
        "certfile",
        "keyfile",
        "require_certificate",
        "use_identity_as_username",
        "tls_version",
        "use_username_as_clientid",
        "user",
        "topic",
        "pattern",
    )
)


def mosquitto(text: str) -> str | None:
    """Options and access rules that we use."""
    for number, line in _lines(text):
        if line.split()[0] not in _BROKER:
            return f"line {number}: {line.split()[0]} is no option we use"
    return None


def json_list_or_mapping(text: str) -> str | None:
    """Anything that is JSON at all."""
    try:
        return None if isinstance(json.loads(text), dict | list) else "it holds no tags"
    except ValueError as error:
        return f"is no JSON: {error}"


def _lines(text: str) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip() and not line.lstrip().startswith("#"):
            yield number, line.strip()


def _words(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
