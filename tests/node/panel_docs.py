"""Writes what the docs say of alarms and roles from the code that holds: `make panel-docs`."""

from qcnode.panel import access, alarms
from tests.conftest import ROOT
from tests.node.panel_fakes import FakeNode


def write() -> None:
    (ROOT / "docs" / "alarms.md").write_text(alarms.page())
    (ROOT / "docs" / "panel" / "roles.md").write_text(access.table(FakeNode().panel()))


if __name__ == "__main__":
    write()
