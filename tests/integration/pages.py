"""A page of docs in, its commands and statements in order out, under a test's own names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

__all__ = ["steps"]

DOCS = Path(__file__).parents[2] / "docs"
_BLOCK = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
_COMMENT = re.compile(r"\s+# .*$")


def steps(page: str, names: Mapping[str, str]) -> list[str]:
    """Return each command of a page's blocks, and each statement of those in SQL, with ``names`` replaced.

    Blocks in another language (JSON, YAML, Python) are none of it.
    """
    found = []
    for indent, language, body in _BLOCK.findall((DOCS / page).read_text()):
        text = "\n".join(line.removeprefix(indent) for line in body.splitlines())
        for before, after in names.items():
            text = re.sub(before, lambda _match, after=after: after, text)  # type: ignore[misc]
        if language == "sql":
            found += [part.strip() + ";" for part in text.split(";\n") if part.strip().rstrip(";")]
        elif not language:
            found += [_COMMENT.sub("", line) for line in text.splitlines() if line.strip()]
    return [re.sub(r";+$", ";", step) for step in found]
