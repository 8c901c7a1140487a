"""Writes docs/http-api.md, the HTTP endpoints, from docs/openapi.yaml.

http_reference.py write    writes it
http_reference.py check    one line if it is not what it would be
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any

import yaml

import written_page

DOCS = written_page.ROOT / "docs"
PAGE = DOCS / "http-api.md"
Node = dict[str, Any]
_METHODS = ("get", "post", "delete")
_INTRODUCTION = """# HTTP endpoints

{description}
The same for programs: [openapi.yaml](openapi.yaml) (OpenAPI {openapi}), from which `cmake/http_reference.py` writes this page; `make lint` compares.
A test calls every operation of it on a running server. [Serving](serving.md) explains, [Security](security.md) says which key may do what.
"""


def page() -> str:
    """The whole page."""
    return "\n".join(_Reference(yaml.safe_load((DOCS / "openapi.yaml").read_text(encoding="utf-8"))).lines())


class _Reference:
    """The page of one document."""

    def __init__(self, document: Node) -> None:
        self.document = document

    def lines(self) -> Iterator[str]:
        info = self.document["info"]
        yield _INTRODUCTION.format(description=info["description"], openapi=self.document["openapi"])
        for tag in self.document["tags"]:
            yield f"## {tag['name']}\n\n{tag['description']}\n"
            for path, item in self.document["paths"].items():
                for method in _METHODS:
                    if tag["name"] in item.get(method, {}).get("tags", ()):
                        yield from self._operation(method, path, item)
        yield from self._errors()
        yield "## Objects\n"
        for name, schema in self.document["components"]["schemas"].items():
            if "properties" in schema:
                yield f"### {name}\n"
                yield from self._fields(schema)

    def _operation(self, method: str, path: str, item: Node) -> Iterator[str]:
        operation = item[method]
        yield f"### {method.upper()} {path}\n"
        aliases = item.get("x-aliases", ())
        also = f" Also {', '.join(f'`{alias}`' for alias in aliases)}." if aliases else ""
        yield f"{operation['summary']} {operation.get('description', '')}".rstrip() + also + "\n"
        if parameters := operation.get("parameters"):
            yield "| parameter | type | what |\n|---|---|---|"
            for of in parameters:
                yield f"| `{of['name']}`, in the {of['in']} | {self._type(of['schema'])} | {of['description']} |"
            yield ""
        for media, content in operation.get("requestBody", {}).get("content", {}).items():
            yield f"Body, `{media}`:{self._shape(content['schema'])}\n"
            if "$ref" not in content["schema"]:
                yield from self._fields(content["schema"])
        if metrics := operation.get("x-metrics"):
            yield "| metric | type | what |\n|---|---|---|"
            yield from (f"| `{name}` | {of['type']} | {of['description']} |" for name, of in metrics.items())
            yield ""
        good = operation["responses"]["200"]
        kinds = ", ".join(f"`{media}`{self._shape(of['schema'])}" for media, of in good["content"].items())
        yield f"Answer, {kinds}: {good['description']}.\n"
        if "$ref" not in (schema := next(iter(good["content"].values()))["schema"]) and "properties" in schema:
            yield from self._fields(schema)
        errors = [
            f"{status} [{self._name(of)}](#errors)" for status, of in operation["responses"].items() if status != "200"
        ]
        yield f"Errors: {', '.join(errors)}.\n"

    def _errors(self) -> Iterator[str]:
        yield "## Errors\n\nEach is an [Error](#error).\n\n| error | when |\n|---|---|"
        for name, of in self.document["components"]["responses"].items():
            headers = "".join(
                f" Header `{header}`: {of['headers'][header]['description']}" for header in of.get("headers", ())
            )
            yield f"| {name} | {of['description']}.{headers} |"
        yield ""

    def _fields(self, schema: Node) -> Iterator[str]:
        for part in schema.get("allOf", ()):
            yield f"All of{self._shape(part)}, and:\n"
        if text := schema.get("description"):
            yield f"{text}\n"
        yield "| field | type | what |\n|---|---|---|"
        for name, of in schema.get("properties", {}).items():
            needed = ", needed" if name in schema.get("required", ()) and "additionalProperties" not in schema else ""
            text = of.get("description") or self._resolved(of).get("description", "")
            yield f"| `{name}`{needed} | {self._type(of)} | {text.replace('|', chr(92) + '|')} |"
        yield ""

    def _shape(self, schema: Node) -> str:
        """A link to the object that a schema is, or nothing."""
        if "oneOf" in schema:
            return " or".join(self._shape(part) for part in schema["oneOf"] if "$ref" in part)
        name = self._name(schema)
        return f" [{name}](#{name.lower()})" if name and "properties" in self._resolved(schema) else ""

    def _type(self, schema: Node) -> str:
        """A type in words, with its bounds."""
        if shape := self._shape(schema):
            return shape.strip()
        of = self._resolved(schema)
        if "const" in of:
            return f"`{_json(of['const'])}`"
        if "enum" in of:
            return ", ".join(f"`{_json(value)}`" for value in of["enum"])
        if parts := of.get("anyOf") or of.get("oneOf"):
            return " or ".join(self._type(part) for part in parts)
        kinds = of.get("type", "any")
        text = kinds if isinstance(kinds, str) else " or ".join(kinds)
        if "items" in of:
            text += f" of {self._type(of['items'])}"
        elif "properties" in of:
            text += " of " + ", ".join(f"`{name}`" for name in of["properties"])
        return text + "".join(f", {word} {_json(of[key])}" for key, word in _BOUNDS.items() if key in of)

    def _resolved(self, node: Node) -> Node:
        if "$ref" not in node:
            return node
        found: Any = self.document
        for key in node["$ref"].removeprefix("#/").split("/"):
            found = found[key]
        return {**self._resolved(found), **{key: value for key, value in node.items() if key != "$ref"}}

    @staticmethod
    def _name(schema: Node) -> str:
        return str(schema.get("$ref", "")).rpartition("/")[2]


_BOUNDS = {
    "minimum": "at least",
    "maximum": "at most",
    "minLength": "characters at least",
    "maxLength": "characters at most",
    "minItems": "entries at least",
    "maxItems": "entries at most",
    "default": "default",
}


def _json(value: object) -> str:
    """A value as a request has it; a text without its quotes, if there is any of it."""
    return value if isinstance(value, str) and value else json.dumps(value)


def main() -> int:
    """Runs the command; returns its exit code."""
    return written_page.run(PAGE, page(), "docs/openapi.yaml says", "http_reference.py")


if __name__ == "__main__":
    sys.exit(main())
