"""What may leave this machine, and for where: nothing that nobody has allowed.

Pure. A provider gets a picture only when the operator has said of it where it works on
the data, which company answers for it, under which number it is filed, and what it may
be sent, and when the line lets such pictures go to that region. What is not said is not
allowed. Who is on this machine itself is asked without leave, because nothing leaves.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import httpx2

from qcbridge.providers.http import is_loopback

if TYPE_CHECKING:
    from datetime import date

    from qcnode.settings import EgressSettings, ProviderSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class Permit:
    """What the operator has said of a provider; empty is not said."""

    provider: str
    base_url: str
    region: str = ""
    entity: str = ""
    filing: str = ""
    data_classes: tuple[str, ...] = ()
    until: date | None = None

    @classmethod
    def of(cls, provider: ProviderSettings) -> Permit:
        """Return what the settings say."""
        return cls(
            provider=provider.name,
            base_url=provider.base_url,
            region=provider.region,
            entity=provider.entity,
            filing=provider.filing,
            data_classes=provider.data_classes,
            until=provider.allowed_until,
        )

    @property
    def stays_here(self) -> bool:
        """Whether the provider is on this machine."""
        return is_loopback(httpx2.URL(self.base_url).host)

    def words(self) -> str:
        """Say it in one line, as it goes on record with each call."""
        if self.stays_here:
            return "on this machine: nothing leaves"
        until = "until changed" if self.until is None else f"until {self.until}"
        return (
            f"{', '.join(self.data_classes) or 'nothing'} to {self.entity or 'nobody named'}"
            f" in {self.region or 'no region'}, filing {self.filing or 'not stated'}, {until}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class EgressRule:
    """What the line's pictures are, and the regions they may go to."""

    regions: frozenset[str] = frozenset()
    data_class: str = "part-image"

    @classmethod
    def of(cls, egress: EgressSettings) -> EgressRule:
        """Return what the settings say."""
        return cls(regions=frozenset(egress.regions), data_class=egress.data_class)


def refusal(permit: Permit, rule: EgressRule, *, today: date) -> str | None:
    """Say why nothing may be sent to a provider, and what would allow it; None where it may."""
    if permit.stays_here:
        return None
    for name in ("region", "entity", "filing"):
        if not getattr(permit, name):
            none = ', or "none"' if name == "filing" else ""
            return _no(permit, f"its {name} is not stated: set provider.{name}{none}")
    if rule.data_class not in permit.data_classes:
        return _no(
            permit,
            f"it may not be sent {rule.data_class}: name it in provider.data_classes if it may",
        )
    if permit.region not in rule.regions:
        return _no(
            permit,
            f"nothing may go to region {permit.region!r}: name it in egress.regions if it may",
        )
    if permit.until is not None and today > permit.until:
        return _no(permit, f"its leave ended on {permit.until}: renew provider.allowed_until")
    return None


def same_origin(base_url: str, url: httpx2.URL) -> bool:
    """Say whether a request goes to the provider's own scheme, host and port."""
    own = httpx2.URL(base_url)
    return (own.scheme, own.host, _port(own)) == (url.scheme, url.host, _port(url))


def _port(url: httpx2.URL) -> int:
    return url.port or (443 if url.scheme == "https" else 80)


def _no(permit: Permit, why: str) -> str:
    return f"nothing is sent to {permit.provider}: {why}"
