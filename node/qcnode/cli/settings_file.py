"""Writes keys into a configuration that people also write by hand.

Pure: text in, text out. Comments, order and everything else stay as they are. What is
written is only as good as the reader finds it, so whoever calls this reads it back before
the file is replaced.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

from qcnode.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from datetime import date

    Value = str | bool | date | tuple[str, ...]

_HEADER = re.compile(r"\s*\[")
_KEY = re.compile(r"\s*([\w\-]+)\s*=")


def with_keys(
    text: str, table: str, values: Mapping[str, Value], *, without: Collection[str] = ()
) -> str:
    """Return `text` with these keys in a table, and none of `without` but those.

    Raises `SettingsError` where there are several tables of that name.
    """
    lines = text.splitlines()
    if any(re.match(rf"\s*\[\[\s*{table}\s*\]\]", line) for line in lines):
        raise SettingsError(f"there are several [[{table}]]: write these by hand")
    start = next(
        (number for number, line in enumerate(lines) if re.match(rf"\s*\[\s*{table}\s*\]", line)),
        None,
    )
    if start is None:
        lines += ["", f"[{table}]"]
        start = len(lines) - 1
    end = next(
        (number for number in range(start + 1, len(lines)) if _HEADER.match(lines[number])),
        len(lines),
    )
    gone = {*values, *without}
    kept = [
        line
        for line in lines[start + 1 : end]
        if (found := _KEY.match(line)) is None or found[1] not in gone
    ]
    new = [f"{name} = {_written(value)}" for name, value in values.items()]
    return "\n".join([*lines[: start + 1], *new, *kept, *lines[end:]]) + "\n"


def _written(value: Value) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, tuple):
        return f"[{', '.join(_written(one) for one in value)}]"
    return value.isoformat()
