"""What is published about specs: the JSON Schema and the reference page, both made from the models. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, Final

from pydantic import TypeAdapter

from sluiceway.common.specs.models import API_VERSION, KINDS, Document

SCHEMA_FILE: Final = "schema/sluiceway-v1.json"
REFERENCE_FILE: Final = "spec-reference.md"


def documents() -> dict[str, str]:
    """The generated files by their path in the docs folder."""
    return {SCHEMA_FILE: schema_text(), REFERENCE_FILE: reference_text()}


def json_schema(kind: str | None = None) -> dict[str, Any]:
    """The JSON Schema (2020-12) of one kind's documents, or of any kind's."""
    built: dict[str, Any] = (
        TypeAdapter[Any](Document).json_schema() if kind is None else KINDS[kind].model_json_schema()
    )
    for name in KINDS:
        model = built if name == kind else built["$defs"].get(name)
        if model is not None:
            model["required"] = ["kind", *model["required"]]
    title = f"Sluiceway {kind or 'specs'} ({API_VERSION})"
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **built, "title": title}


def schema_text(kind: str | None = None) -> str:
    """The schema as a file."""
    return json.dumps(json_schema(kind), indent=2) + "\n"


def reference_text() -> str:
    """The reference page in Markdown."""
    schema = json_schema()
    lines = [
        "# Spec reference",
        "",
        "Generated from the models by `sluiceway schema --write-docs docs`; a test holds it current.",
        "For an introduction see [specs.md](specs.md).",
        "",
        f"Every document has `apiVersion: {API_VERSION}`, `kind`, `metadata` and `spec`.",
        "",
        "## metadata",
        "",
        *_table(schema, schema["$defs"]["Metadata"], ""),
    ]
    for kind in KINDS:
        envelope = schema["$defs"][kind]
        spec = _target(schema, envelope["properties"]["spec"])
        lines += ["", f"## {kind}", "", f"{envelope['description']}", "", *_table(schema, spec, "")]
    return "\n".join(lines) + "\n"


def _table(schema: Mapping[str, Any], model: Mapping[str, Any], prefix: str) -> list[str]:
    return ["| field | type | default | meaning |", "| --- | --- | --- | --- |", *_rows(schema, model, prefix)]


def _rows(schema: Mapping[str, Any], model: Mapping[str, Any], prefix: str) -> Iterator[str]:
    for name, written in model["properties"].items():
        target = _target(schema, written)
        default = "**required**" if name in model.get("required", []) else _default(written)
        told = written.get("description") or target.get("description") or ""
        cells = [f"`{prefix}{name}`", _type(schema, target), default, " ".join(str(told).split())]
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
        if "properties" in target:
            yield from _rows(schema, target, f"{prefix}{name}.")


def _target(schema: Mapping[str, Any], written: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a field's schema refers to, without the choice of null."""
    for option in written.get("anyOf", []):
        if option.get("type") != "null":
            return _target(schema, option)
    if "$ref" in written:
        target: Mapping[str, Any] = schema["$defs"][written["$ref"].rpartition("/")[2]]
        return target
    return written


def _default(written: Mapping[str, Any]) -> str:
    default = written.get("default")
    if default is None:
        return ""
    return "see below" if isinstance(default, dict) and default else f"`{json.dumps(default)}`"


def _type(schema: Mapping[str, Any], target: Mapping[str, Any]) -> str:
    if "enum" in target:
        return " or ".join(f"`{json.dumps(option)}`" for option in target["enum"])
    if "const" in target:
        return f"`{json.dumps(target['const'])}`"
    match target.get("type"):
        case "array":
            return f"list of {_type(schema, _target(schema, target['items']))}"
        case "object" if "properties" not in target:
            return "mapping of text to text"
        case "object":
            return "mapping"
        case "integer" | "number" as kind:
            return f"{'whole number' if kind == 'integer' else 'number'}{_bounds(target)}"
        case "boolean":
            return "`true` or `false`"
        case _:
            return "text"


def _bounds(target: Mapping[str, Any]) -> str:
    words = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    return "".join(f", {sign} {target[key]:g}" for key, sign in words.items() if key in target)
