"""Two Avro schemas in, what breaks between them out: which field, which rule, what to do.

The registry decides whether a schema may be registered; this explains its verdict in terms of fields, and says which
versions a mode compares with. Rules: "Schema Resolution" of the Avro specification.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = ["MODES", "Break", "breaks", "explain", "is_transitive"]

MODES = ("NONE", "BACKWARD", "BACKWARD_TRANSITIVE", "FORWARD", "FORWARD_TRANSITIVE", "FULL", "FULL_TRANSITIVE")

Json = Any  # a JSON value: typed more narrowly it says nothing more

_PROMOTIONS = {
    "int": {"long", "float", "double"},
    "long": {"float", "double"},
    "float": {"double"},
    "string": {"bytes"},
    "bytes": {"string"},
}


@dataclass(frozen=True, slots=True)
class Break:
    """One reason why ``reader`` cannot read what was written; ``field`` is a dotted path."""

    field: str
    rule: str
    remedy: str

    def __str__(self) -> str:
        return f"field {self.field}: {self.rule}; {self.remedy}" if self.field else f"{self.rule}; {self.remedy}"


def is_transitive(mode: str) -> bool:
    """Tell whether a mode compares with all versions, not with the latest one alone."""
    return mode.endswith("_TRANSITIVE")


def explain(mode: str, new: Json, old: Json) -> list[str]:
    """Return what breaks a mode between a new schema and a registered one, as sentences."""
    found = []
    if mode.startswith(("BACKWARD", "FULL")):
        found += [f"new code cannot read what is stored: {item}" for item in breaks(new, old)]
    if mode.startswith(("FORWARD", "FULL")):
        found += [f"running consumers cannot read what is new: {item}" for item in breaks(old, new)]
    return found


def breaks(reader: Json, writer: Json) -> list[Break]:
    """Return why ``reader`` cannot read what ``writer`` wrote; nothing where it can."""
    found: list[Break] = []
    _Comparison(_named(reader), _named(writer), found).types("", reader, writer)
    return found


class _Comparison:
    def __init__(self, reader_names: dict[str, Json], writer_names: dict[str, Json], found: list[Break]) -> None:
        self._reader_names = reader_names
        self._writer_names = writer_names
        self._found = found
        self._seen: set[tuple[str, str]] = set()

    def types(self, path: str, reader: Json, writer: Json) -> None:
        reader, writer = self._reader_names.get(_text(reader), reader), self._writer_names.get(_text(writer), writer)
        if isinstance(writer, list):
            for branch in writer:
                self._branch(path, reader, branch, optional="null" in writer)
        elif isinstance(reader, list):
            if not any(self._fits(branch, writer) for branch in reader):
                self._no_match(path, reader, writer)
        elif _kind(reader) != _kind(writer):
            if _kind(reader) not in _PROMOTIONS.get(_kind(writer), ()):
                self._no_match(path, reader, writer)
        else:
            self._same_kind(path, reader, writer)

    def _branch(self, path: str, reader: Json, branch: Json, *, optional: bool) -> None:
        options = reader if isinstance(reader, list) else [reader]
        if any(self._fits(option, branch) for option in options):
            return
        if branch == "null" and optional:
            self._add(path, "it could be null and no longer can", "keep it optional (X | None)")
        elif len(options) == 1 or branch == "null":
            self._no_match(path, reader, branch)
        else:
            # of several records the one that is meant is that of the same name: say what is wrong inside it
            same = [option for option in options if _short(self._of_reader(option)) == _short(self._of_writer(branch))]
            if same and _kind(self._of_reader(same[0])) == _kind(self._of_writer(branch)):
                self.types(path, same[0], branch)
            else:
                self._no_match(path, reader, branch)

    def _same_kind(self, path: str, reader: Json, writer: Json) -> None:
        kind = _kind(reader)
        if kind in {"record", "enum", "fixed"} and _short(reader) != _short(writer):
            self._add(path, f"its type was {_short(writer)} and is {_short(reader)}", "keep the type's name")
        elif kind == "record":
            self._records(path, reader, writer)
        elif kind == "enum":
            gone = [symbol for symbol in writer["symbols"] if symbol not in reader["symbols"]]
            if gone and "default" not in reader:
                self._add(path, f"its symbols lack {', '.join(gone)}", "keep every symbol")
        elif kind == "array":
            self.types(f"{path}[]", reader["items"], writer["items"])
        elif kind == "map":
            self.types(f"{path}{{}}", reader["values"], writer["values"])
        elif kind == "fixed" and reader["size"] != writer["size"]:
            self._add(path, f"its size was {writer['size']} and is {reader['size']}", "keep the size")
        elif isinstance(reader, dict) and isinstance(writer, dict):
            self._logical(path, reader, writer)

    def _logical(self, path: str, reader: Json, writer: Json) -> None:
        if reader.get("logicalType") == writer.get("logicalType") == "decimal":
            digits = [(schema.get("precision"), schema.get("scale", 0)) for schema in (writer, reader)]
            if digits[0] != digits[1]:
                rule = f"its (digits, decimal places) were {digits[0]} and are {digits[1]}"
                self._add(path, rule, "keep max_digits and decimal_places")

    def _records(self, path: str, reader: Json, writer: Json) -> None:
        pair = (_short(reader), _short(writer))
        if path and pair in self._seen:
            return
        self._seen.add(pair)
        written = {field["name"]: field for field in writer["fields"]}
        for field in reader["fields"]:
            where = f"{path}.{field['name']}" if path else field["name"]
            old = next((written[name] for name in (field["name"], *field.get("aliases", ())) if name in written), None)
            if old is not None:
                self.types(where, field["type"], old["type"])
            elif "default" not in field:
                self._add(
                    where, "what is read lacks it, and it has no default", "give it a default, e.g. X | None = None"
                )

    def _fits(self, reader: Json, writer: Json) -> bool:
        found: list[Break] = []
        trial = _Comparison(self._reader_names, self._writer_names, found)
        trial._seen = set(self._seen)
        trial.types("", reader, writer)
        return not found

    def _no_match(self, path: str, reader: Json, writer: Json) -> None:
        remedy = "keep the type, or add a new field beside it"
        self._add(path, f"its type was {_label(writer)} and is {_label(reader)}", remedy)

    def _add(self, path: str, rule: str, remedy: str) -> None:
        self._found.append(Break(path, rule, remedy))

    def _of_reader(self, schema: Json) -> Json:
        return self._reader_names.get(_text(schema), schema)

    def _of_writer(self, schema: Json) -> Json:
        return self._writer_names.get(_text(schema), schema)


def _named(schema: Json) -> dict[str, Json]:
    """Return every named type of a schema, by its full and by its short name."""
    found: dict[str, Json] = {}

    def walk(node: Json) -> None:
        if isinstance(node, list):
            for inner in node:
                walk(inner)
        elif isinstance(node, dict):
            if "name" in node and node.get("type") in {"record", "enum", "fixed"}:
                found[node["name"]] = node
                found.setdefault(_short(node), node)
                if "namespace" in node:
                    found[f"{node['namespace']}.{node['name']}"] = node
            for field in node.get("fields", ()):
                walk(field["type"])
            walk([node[key] for key in ("items", "values") if key in node])
            if isinstance(node.get("type"), dict | list):
                walk(node["type"])

    walk(schema)
    return found


def _text(schema: Json) -> str:
    return schema if isinstance(schema, str) else ""


def _kind(schema: Json) -> str:
    if isinstance(schema, dict):
        inner = schema["type"]
        return inner if isinstance(inner, str) else _kind(inner)
    return str(schema)


def _short(schema: Json) -> str:
    return str(schema.get("name", "")).rpartition(".")[2] if isinstance(schema, dict) else ""


def _label(schema: Json) -> str:
    if isinstance(schema, list):
        return " | ".join(_label(branch) for branch in schema)
    if isinstance(schema, dict):
        return str(schema.get("logicalType") or _short(schema) or schema["type"])
    return str(schema)
