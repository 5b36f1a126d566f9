"""A payload's JSON text in, what the Event Router's expansion and JsonConverter without schemas make of it out.

Never fails: what cannot be expanded becomes a JSON string, as in Debezium. Where Debezium's task would end, because one
field has several types or an array stands at the top, the document stays as it is.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any  # JSON

__all__ = ["Expansion", "quoted"]

_ABSENT = object()
_ESCAPED = re.compile(r"\\(?:u[0-9a-f]{4}|.)|[\U00010000-\U0010ffff]")


class _NotUniform(ValueError):
    """An array that Debezium refuses to expand."""


@dataclass(frozen=True, slots=True)
class Expansion:
    """``keep_null`` and ``keep_empty``: fields that are null, or an empty array, stay instead of being left out."""

    keep_null: bool = False
    keep_empty: bool = False

    def encode(self, text: bytes) -> bytes:
        """Return the value of a record."""
        try:
            if text[:1] not in {b"{", b"["}:
                return quoted(text)
            document, _ = _DECODER.raw_decode(text.decode())
            return _dump(self._value(document))
        except (ValueError, RecursionError):
            return quoted(text)

    def _value(self, node: Any) -> Any:
        """Return what is left of a node, or _ABSENT. Raises _NotUniform."""
        if node is None:
            return None if self.keep_null else _ABSENT
        if isinstance(node, dict):
            fields = {name: self._value(value) for name, value in node.items()}
            return {name: value for name, value in fields.items() if value is not _ABSENT}
        if isinstance(node, list):
            return self._array(node) if node else [] if self.keep_empty else _ABSENT
        return node

    def _array(self, nodes: list[Any]) -> list[Any]:
        """Return an array whose elements are of one kind; objects get each other's fields, as null."""
        kinds = {_kind(node) for node in nodes if node is not None}
        if len(kinds) > 1 or (not kinds and not self.keep_null):
            raise _NotUniform
        made = [None if node is None else self._value(node) for node in nodes]
        if made and next((node for node in made if node is not None), None) is _ABSENT:
            raise _NotUniform
        made = [[] if node is _ABSENT else node for node in made]
        if kinds == {"object"}:
            names = dict.fromkeys(name for node in made if node is not None for name in node)
            return [None if node is None else {name: node.get(name) for name in names} for node in made]
        return made


def quoted(text: bytes) -> bytes:
    """Return a JSON string."""
    return _dump(text.decode(errors="replace"))


def _dump(value: Any) -> bytes:
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return _ESCAPED.sub(_as_jackson, text).encode(errors="replace")


def _as_jackson(found: re.Match[str]) -> str:
    """Write what Jackson escapes as it does: hex in capitals, pairs of surrogates beyond the first plane."""
    text = found[0]
    if text[0] == "\\":
        return f"\\u{text[2:].upper()}" if text[1] == "u" else text
    pair = text.encode("utf-16-be").hex().upper()
    return f"\\u{pair[:4]}\\u{pair[4:]}"


def _kind(node: Any) -> str:
    if isinstance(node, dict):
        return "object"
    if isinstance(node, bool | list | str):
        return type(node).__name__
    if isinstance(node, int):
        return "int" if -(2**31) <= node < 2**31 else "long" if -(2**63) <= node < 2**63 else "double"
    return "double"


def _refuse(constant: str) -> None:
    raise ValueError(constant)


_DECODER = json.JSONDecoder(parse_constant=_refuse)
