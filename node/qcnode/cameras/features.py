"""The features a camera is set to, in order: a rendered file of firmware_configs/cameras.

Needs PyYAML, which the extra `modbus` brings.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final, Literal

import msgspec
import yaml

from qcnode.errors import SettingsError

if TYPE_CHECKING:
    from pathlib import Path

SOURCE: Final = "TriggerSource"
SOFTWARE: Final = "Software"


class Feature(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One write."""

    name: Annotated[str, msgspec.Meta(pattern="^[A-Za-z][A-Za-z0-9_]{0,63}$")] = msgspec.field(
        name="set"
    )
    to: str | int | float | bool


class FeatureFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All writes, in order."""

    version: Literal[1]
    features: Annotated[tuple[Feature, ...], msgspec.Meta(max_length=200)]


def read_features(path: Path) -> tuple[tuple[str, str], ...]:
    """Read a rendered file; raises `SettingsError` naming it."""
    try:
        raw = yaml.safe_load(path.read_text("utf-8"))
        file = msgspec.convert(raw, FeatureFile)
    except (OSError, UnicodeDecodeError, yaml.YAMLError, msgspec.ValidationError) as error:
        words = " ".join(str(error).split())
        raise SettingsError(f"camera.features: {path} is no list of features ({words})") from error
    return tuple((one.name, _written(one.to)) for one in file.features)


def trigger_of(features: tuple[tuple[str, str], ...]) -> str:
    """Return what fires the camera: the last source the file names, or our own trigger."""
    return next((value for name, value in reversed(features) if name == SOURCE), SOFTWARE)


def _written(value: str | float) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
