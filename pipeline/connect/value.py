"""The router's options and a table's columns in, the expression of a record's value out.

The payload alone, expanded or not, or a struct of the payload and of columns beside it, with or without a schema.
"""

from __future__ import annotations

from collections.abc import Callable

from pipeline.connect.adjustment import change_topic
from pipeline.connect.converters import Converter
from pipeline.connect.expansion import Expansion, quoted
from pipeline.connect.routing import Placement
from pipeline.connect.row import PLACEMENT, Row, of_variable
from pipeline.connect.schema import Schema, schema_text

__all__ = ["value_of"]

_PAYLOAD = "table.field.event.payload"
_PLAIN = Converter("json")
_CACHED_HEADS = 1000


def value_of(row: Row, by: str) -> str:
    """Return the expression of a record's value; ``by`` is the expression of what the topic is named by."""
    options = row.options
    kind = row.type(options.payload, _PAYLOAD)
    writer = options.value.of_structs
    if writer and (inside := row.placed("envelope")):
        value = _struct(row, by, inside, writer)
    elif writer and options.expansion and kind.string:
        value = _expanded(row, options.expansion, writer)
    elif options.value.kind in {"bytes", "binary"} and kind.payload and not options.value.delegate:
        value = row.use(options.payload, "payload", _PAYLOAD)  # text passes through as its bytes
    else:
        value = row.converted(options.value, options.payload, _PAYLOAD)
    return _or_tombstone(row, value) if options.tombstone_on_empty else value


def _or_tombstone(row: Row, value: str) -> str:
    """Return nothing for a payload that is NULL, or a text that is empty: bytes are never empty to Debezium."""
    options = row.options
    kind = row.type(options.payload, _PAYLOAD)
    name = row.variable(options.payload)
    if not kind.string:
        return f"(None if {name} is None else {value})"
    row.scope["blank"] = _blank
    return f"(None if {name} is None or blank({of_variable(kind.string, name)}) else {value})"


def _expanded(row: Row, expansion: Expansion, writer: Converter) -> str:
    """Return the expression of an expanded payload."""
    text = row.use(row.options.payload, "string", _PAYLOAD)
    if not writer.schemas:
        row.scope["expand"] = expansion.encode
        return f"(b'null' if {text} is None else expand({text}))"
    row.scope |= {"typed": _typed(row, expansion), "schema": _schema}
    return f"b'{{\"schema\":' + schema((made := typed({text}))[0]) + b',\"payload\":' + made[1] + b'}}'"


def _struct(row: Row, by: str, inside: list[Placement], writer: Converter) -> str:
    """Return the expression of a payload with columns beside it."""
    options = row.options
    expansion = options.expansion if row.type(options.payload, _PAYLOAD).string else None
    made = ""
    if expansion is None:
        payload = row.converted(_PLAIN, options.payload, _PAYLOAD)
    elif writer.schemas:
        row.scope["typed"] = _typed(row, expansion)
        made = f", (made := typed({row.use(options.payload, 'string', _PAYLOAD)}))[0]"
        payload = "made[1]"
    else:
        payload = _expanded(row, expansion, _PLAIN)
    parts = {placed.alias: row.converted(_PLAIN, placed.column, PLACEMENT) for placed in inside}
    body = " + ".join(
        f"{('{' if not number else ',').encode() + quoted(name) + b':'!r} + {part}"
        for number, (name, part) in enumerate({"payload": payload, **parts}.items())
    )
    if not writer.schemas:
        return f"{body} + b'}}'"
    row.scope["head"] = _heads(row, inside)
    version = "None"
    if options.schema_version:
        version = row.use(options.schema_version, "number", "table.field.event.schema.version")
    return f"head({by}, {version}{made}) + {body} + b'}}}}'"


def _typed(row: Row, expansion: Expansion) -> Callable[[bytes | str | None], tuple[Schema, bytes]]:
    """Return what gives the schema and the JSON of a payload's text."""
    name = row.options.payload
    plain = row.schema(name)

    def typed(text: bytes | str | None) -> tuple[Schema, bytes]:
        if text is None:
            return plain, b"null"
        schema, made = expansion.typed(name, text.encode() if isinstance(text, str) else text)
        return schema or plain, made

    return typed


def _heads(row: Row, inside: list[Placement]) -> Callable[..., bytes]:
    """Return what gives a struct's schema, by what the row is routed by, its version and its payload's own schema."""
    options = row.options
    first = options.schema_names(change_topic(options.topic_prefix, options.delimiter, row.table))
    fields = tuple((placed.alias, row.schema(placed.column)) for placed in inside)
    plain = row.schema(row.options.payload)
    known: dict[tuple[object, ...], bytes] = {}

    def head(by: bytes | str | None, version: int | None, payload: Schema = plain) -> bytes:
        found = known.get((by, version, payload))
        if found is None:
            routed = by.decode(errors="replace") if isinstance(by, bytes) else by
            name = f"{first}.{routed}.Value"
            schema = Schema("struct", False, name, version, fields=(("payload", payload), *fields))
            found = b'{"schema":' + _schema(schema) + b',"payload":'
            if len(known) >= _CACHED_HEADS:
                known.clear()
            known[by, version, payload] = found
        return found

    return head


def _blank(text: str | bytes) -> bool:
    """Tell whether Java's trim leaves nothing."""
    data = text.encode() if isinstance(text, str) else text
    return not data.strip(bytes(range(33)))


def _schema(schema: Schema) -> bytes:
    return schema_text(schema).encode(errors="replace")
