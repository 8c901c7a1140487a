"""docs/openapi.yaml: its operations, and whether an answer is one that it describes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import requests
import yaml

Schema = dict[str, Any]
METHODS = ("get", "post", "delete")


@cache
def document() -> Schema:
    text = (Path(__file__).resolve().parents[2] / "docs" / "openapi.yaml").read_text(encoding="utf-8")
    found: Schema = yaml.safe_load(text)
    return found


def resolved(node: Schema) -> Schema:
    """What a node refers to, with its own keys over it; a node without $ref is itself."""
    if "$ref" not in node:
        return node
    found: Any = document()
    for key in node["$ref"].removeprefix("#/").split("/"):
        found = found[key]
    return {**resolved(found), **{key: value for key, value in node.items() if key != "$ref"}}


@dataclass(frozen=True)
class Operation:
    """One method of one path of the document, and of the path's aliases."""

    id: str
    method: str
    paths: tuple[str, ...]
    spec: Schema

    @property
    def statuses(self) -> set[int]:
        return {int(status) for status in self.spec["responses"]}

    @property
    def body(self) -> Schema:
        """The schema of its request; empty where it has none that is JSON."""
        content = self.spec.get("requestBody", {}).get("content", {})
        return resolved(content["application/json"]["schema"]) if "application/json" in content else {}

    def faults(self, answer: requests.Response) -> list[str]:
        """What the document does not say of an answer; empty where it describes it."""
        if answer.status_code not in self.statuses:
            return [f"status {answer.status_code} is not one of {sorted(self.statuses)}: {answer.text[:200]}"]
        content = resolved(self.spec["responses"][str(answer.status_code)])["content"]
        media = answer.headers["Content-Type"].split(";")[0]
        if media not in content:
            return [f"content type {media} is not one of {sorted(content)}"]
        value = answer.json() if media == "application/json" else answer.text
        return [f"{e.json_path}: {e.message[:300]}" for e in validator(content[media]["schema"]).iter_errors(value)]


@cache
def operations() -> list[Operation]:
    return [
        Operation(item[method]["operationId"], method.upper(), (path, *item.get("x-aliases", ())), item[method])
        for path, item in document()["paths"].items()
        for method in METHODS
        if method in item
    ]


def validator(schema: Schema) -> Any:
    """Of JSON Schema 2020-12, which is that of OpenAPI 3.1; `schema` may refer to the document's parts."""
    from jsonschema import Draft202012Validator

    return Draft202012Validator({**schema, "components": document()["components"]})
