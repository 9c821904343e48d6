"""Which programs of real services are installed on this machine."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

PROGRAM_FOLDERS = os.pathsep.join(
    [os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin", "/sbin"]
)


def find_program(*names: str) -> Path | None:
    """Return the first of these programs that is installed, `sbin` folders included."""
    for name in names:
        if found := shutil.which(name, path=PROGRAM_FOLDERS):
            return Path(found)
    return None


def find_postgres() -> Path | None:
    """Return the folder of PostgreSQL's server programs, the newest version's first."""
    versions = Path("/usr/lib/postgresql").glob("*/bin/initdb")
    newest = sorted(versions, key=lambda path: int(path.parts[-3].split(".")[0]), reverse=True)
    found = newest[0] if newest else find_program("initdb")
    return found.parent if found else None
