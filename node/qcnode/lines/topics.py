"""Where a node speaks and listens at the broker: `{prefix}/{site}/{area}/{line}/{node}/...`.

Pure. A node's name is its user name, client id and certificate name at the broker, so
one access rule keeps every node to its own branch.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from qcnode.errors import SettingsError

_NAME = re.compile(r"[a-z0-9-]{1,32}")
_PREFIX = re.compile(r"[a-z0-9-]{1,32}(/[a-z0-9-]{1,32})*")


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeTopics:
    """The topics of one node; raises `SettingsError` for a name that is none."""

    site: str
    area: str
    line: str
    node: str
    prefix: str = "qc/v1"

    def __post_init__(self) -> None:
        if not _PREFIX.fullmatch(self.prefix):
            raise SettingsError(
                f"mqtt.prefix = {self.prefix!r}: use a-z, 0-9 and '-', parts divided by '/'"
            )
        for level in ("site", "area", "line", "node"):
            if not _NAME.fullmatch(name := getattr(self, level)):
                raise SettingsError(
                    f"node.{level} = {name!r}: use 1 to 32 of a-z, 0-9 and '-' for MQTT"
                )

    @property
    def root(self) -> str:
        """The node's own branch."""
        return f"{self.prefix}/{self.site}/{self.area}/{self.line}/{self.node}"

    @property
    def usage(self) -> str:
        """Where ledger batches go out."""
        return f"{self.root}/meter/usage"

    @property
    def ack(self) -> str:
        """Where the billing server's receipts come in."""
        return f"{self.root}/meter/ack"

    @property
    def state(self) -> str:
        """Whether the node is there; retained, and the will."""
        return f"{self.root}/state"

    @property
    def heartbeat(self) -> str:
        """Every half second."""
        return f"{self.root}/hb"

    @property
    def alarms(self) -> str:
        """All that is not well now; retained."""
        return f"{self.root}/alarms"

    @property
    def total(self) -> str:
        """What was spent so far; retained."""
        return f"{self.root}/meter/total"

    def event(self, kind: str) -> str:
        """Return where events of a kind go: verdict, disposition, escalation or alarm."""
        return f"{self.root}/ev/{kind}"

    @property
    def commands(self) -> str:
        """All commands to this node, for a subscription."""
        return f"{self.root}/cmd/+"

    def reply(self, command: str) -> str:
        """Return where a command is answered."""
        return f"{self.root}/cmd/{command}/reply"

    def command_of(self, topic: str) -> str | None:
        """Return which command a topic carries; None is none of ours."""
        stem, _, name = topic.rpartition("/")
        return name if stem == f"{self.root}/cmd" else None
