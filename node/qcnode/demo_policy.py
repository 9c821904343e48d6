"""The demo's own policy, signed by nobody but the demo.

A policy pack and an attestation, each with a key made on the spot, so that the scripted
provider may decide alone where nobody stands to confirm it. Only the demo uses them: the
pack that ships lets an agent do less, and an auditor's key is not made on the node.
"""

from __future__ import annotations

import hashlib
from datetime import timedelta
from typing import TYPE_CHECKING

from qcnode.books.policy_file import sign_file
from qcnode.books.seals import SigningKey
from qcnode.settings import AuthoritySettings

if TYPE_CHECKING:
    from datetime import datetime
    from pathlib import Path

WORDS = (
    "the demo's own: L3, also against the node, and no blind re-checks, as nobody stands here;"
    " its auditor is made up"
)
_PACK = """\
format = 1
name = "demo"
version = 1

[levels]

[envelope]
confidence_floor = 0.0
quota_per_hour = 1_000_000
recheck_share = 0.0
trial_share = 0.0
overrule_node = true

[envelope.cost_micro_max]
USD = 100_000
"""
_ATTESTATION = """\
format = 1
agent = "agent:{model}"
provider = "{provider}"
policy = "{policy}"
level = "L3"
start = "L3"
right_at_least = {right}
begins = {begins}
ends = {ends}
by = "the demo, which is no auditor"
"""
_LASTS = timedelta(days=1)


def write_policy(
    folder: Path, *, provider: str, model: str, right: float, now: datetime
) -> AuthoritySettings:
    """Write and sign both, and return the settings under which they count."""
    folder.mkdir(parents=True, exist_ok=True)
    key = SigningKey.open(folder / "demo.key", name="qcnode-demo")
    pack, attestation = folder / "pack.toml", folder / "attestation.toml"
    pack.write_text(_PACK, encoding="utf-8")
    attestation.write_text(
        _ATTESTATION.format(
            model=model,
            provider=provider,
            policy=hashlib.sha256(_PACK.encode()).hexdigest(),
            right=right,
            begins=now.isoformat(),
            ends=(now + _LASTS).isoformat(),
        ),
        encoding="utf-8",
    )
    for path in (pack, attestation):
        sign_file(path, key)
    public = str(key.public)
    return AuthoritySettings(
        policy=pack, policy_key=public, attestations=(attestation,), auditor_key=public
    )
