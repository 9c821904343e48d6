"""What the panel says, by language: one file of sentences each, all with the same keys.

A language is one file in `languages/`, and nothing else names it. A key that is missing is
a mistake in the program and raises at once; that no language lacks one is tested.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

_FOLDER = Path(__file__).parent / "languages"
DEFAULT = "en"


class Words:
    """The sentences of one language."""

    def __init__(self, language: str, sentences: dict[str, str]) -> None:
        self.language = language
        self.sentences = sentences

    def __call__(self, key: str, **values: object) -> str:
        """Return the sentence with its values put in."""
        return self.sentences[key].format(**values)

    def __contains__(self, key: str) -> bool:
        return key in self.sentences

    def count(self, key: str, count: int) -> str:
        """Return the sentence for this many of something."""
        return self(f"{key}.one" if count == 1 else f"{key}.many", count=count)


@cache
def languages() -> dict[str, Words]:
    """Return every language there is, the default one first."""
    paths = sorted(_FOLDER.glob("*.json"), key=lambda path: (path.stem != DEFAULT, path.stem))
    return {path.stem: Words(path.stem, json.loads(path.read_text("utf-8"))) for path in paths}
