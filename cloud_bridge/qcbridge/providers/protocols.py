"""The protocols that providers are asked in: those that ship, and modules of the operator's own.

A module is code that runs with all the node's rights, so settings name it by its file
and nothing is searched for. It says how its protocol is spoken; the request itself still
goes through the metering transport, which puts it on record before its bytes leave.
"""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Final

from qcbridge.providers.anthropic import AnthropicProvider
from qcbridge.providers.gemini import GeminiProvider
from qcbridge.providers.http import HttpProvider
from qcbridge.providers.openai_chat import OpenAIChatProvider
from qcnode.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

PROTOCOLS: Final[Mapping[str, type[HttpProvider]]] = {
    "openai": OpenAIChatProvider,
    "anthropic": AnthropicProvider,
    "gemini": GeminiProvider,
}

_FAILS: Final = (
    *(ImportError, SyntaxError, NameError, AttributeError),
    *(TypeError, ValueError, LookupError, OSError),
)
"""What a module that is not right raises as it is read."""


def provider_class(protocol: str, module: Path | None) -> type[HttpProvider]:
    """Return what speaks a protocol; raises `SettingsError` for a module that does not."""
    return PROTOCOLS[protocol] if module is None else _class_in(module)


def _class_in(path: Path) -> type[HttpProvider]:
    said = f"provider.module = {str(path)!r}"
    spec = importlib.util.spec_from_file_location(f"qcnode_provider_{path.stem}", path)
    if spec is None or spec.loader is None or not path.is_file():
        raise SettingsError(f"{said}: no such Python file")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except _FAILS as error:
        raise SettingsError(f"{said}: it fails as it is read: {error!r:.200}") from error
    found = getattr(module, "Provider", None)
    if not (isinstance(found, type) and issubclass(found, HttpProvider)):
        raise SettingsError(
            f"{said}: give it a class Provider that builds on"
            " qcbridge.providers.http.HttpProvider; docs/how-to/add-a-provider.md shows one"
        )
    if missing := [
        name
        for name in ("shape", "path", "body", "words")
        if getattr(found, name, None) is getattr(HttpProvider, name, None)
    ]:
        raise SettingsError(f"{said}: its Provider does not say {', '.join(missing)}")
    return found
