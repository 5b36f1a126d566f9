"""A name in, as Debezium adjusts it out: of a schema or a field for Avro, and of the topic of a table's changes.

Its rules go by UTF-16, as Java's: a letter beyond the first plane is two characters.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterable
from string import ascii_letters, digits

__all__ = ["Adjust", "as_it_is", "change_topic", "field_names", "original", "schema_names"]

Adjust = Callable[[str], str]


def as_it_is(name: str) -> str:
    """Return the name."""
    return name


def field_names(mode: str) -> Adjust:
    """Return what ``field.name.adjustment.mode`` does: none, avro, avro_unicode."""
    return as_it_is if mode == "none" else lambda name: _adjusted(name, mode, digits)


def original(name: str, columns: Iterable[str], adjust: Adjust) -> str:
    """Return which of a table's columns is called ``name`` once names are adjusted; ``name`` where none is."""
    return next((column for column in columns if adjust(column) == name), name)


def schema_names(mode: str) -> Adjust:
    """Return what ``schema.name.adjustment.mode`` does: none, avro, avro_unicode."""
    return as_it_is if mode == "none" else lambda name: _adjusted(name, mode, f"{digits}.")


def change_topic(prefix: str, delimiter: str, table: str) -> str:
    """Return the topic that Debezium gives the changes of "schema.table": its schemas are named by it."""
    schema, _, name = table.partition(".")
    return re.sub(r"[^\w.-]", "_", delimiter.join(filter(None, (prefix, schema, name))), flags=re.ASCII)


def _adjusted(name: str, mode: str, later: str) -> str:
    """Replace what may not stand in a name; ``later`` may from its second character on."""
    allowed = ascii_letters if mode == "avro_unicode" else f"{ascii_letters}_"
    made: list[str] = []
    for (unit,) in struct.iter_unpack(">H", name.encode("utf-16-be", "surrogatepass")):
        character = chr(unit)
        if character in allowed or (made and character in later):
            made.append(character)
        elif mode == "avro_unicode":
            text = f"{unit:x}"
            made.append(f"_u{'00' if len(text) < 3 else ''}{text}")  # of 3 digits no zero goes before
        else:
            made.append(f"_{character}" if not made and character.isdecimal() else "_")
    return "".join(made)
