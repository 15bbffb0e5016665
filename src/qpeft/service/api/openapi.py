"""The description of the API (OpenAPI 3.1), made from the table of routes and the types of messages.py."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Sequence
from typing import Any

import msgspec

import qpeft
from qpeft.service.api.routes import QUERY, Route

PROBLEM = {
    "type": "object",
    "required": ["type", "title", "status", "detail"],
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string", "description": "what was wrong, the bound and the hint"},
        "code": {"type": "string"},
        "value": {},
        "bound": {},
        "hint": {"type": "string"},
    },
}


OPEN = (
    ("/healthz", "The process lives", "Needs no key, and asks nobody else."),
    ("/readyz", "Jobs can be stored and run", "Needs no key. 503 names what is missing: the database, space on the disk, workers."),
    ("/metrics", "Prometheus metrics", "Needs no key, and holds no user's data. Summed over the API processes of one server."),
)


def document(routes: Sequence[Route]) -> bytes:
    """The description as indented JSON."""
    return _document(tuple(routes))


@functools.lru_cache(maxsize=2)
def _document(routes: tuple[Route, ...]) -> bytes:
    bodies = [route.takes for route in routes if route.takes is not None]
    schemas, components = msgspec.json.schema_components(bodies, ref_template="#/components/schemas/{name}")
    by_type = dict(zip(bodies, schemas, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, by_type)
    for path, summary, words in OPEN:
        responses = {"200": {"description": "yes"}, "503": {"description": "no, and why"}}
        paths[path] = {"get": {"summary": summary, "description": words, "security": [], "responses": responses}}
    description = {
        "openapi": "3.1.0",
        "info": {
            "title": "qpeft quantum task service",
            "version": qpeft.__version__,
            "description": (
                "Jobs go queued -> running -> succeeded | failed | cancelled | expired, with `cancelling` between. "
                "Send an Idempotency-Key with every submission: the same body again gets the first answer, another body 409."
            ),
        },
        "security": [{"key": []}],
        "paths": paths,
        "components": {
            "schemas": {**components, "Problem": PROBLEM},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }
    return msgspec.json.format(msgspec.json.encode(_dedented(description), order="deterministic"), indent=2) + b"\n"


def _dedented(value: Any) -> Any:
    """The same JSON with descriptions without the indentation of docstrings, which Python keeps before 3.13."""
    if isinstance(value, dict):
        return {
            name: inspect.cleandoc(part) if name == "description" and isinstance(part, str) else _dedented(part)
            for name, part in value.items()
        }
    return [_dedented(part) for part in value] if isinstance(value, list) else value


def _operation(route: Route, by_type: dict[type[msgspec.Struct], dict[str, Any]]) -> dict[str, Any]:
    parameters: list[dict[str, Any]] = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in re.findall(r"{(\w+)}", route.path)
    ]
    for name in route.query:
        schema = dict(QUERY[name])
        words = schema.pop("description")
        parameters.append({"name": name.removeprefix("task_"), "in": "query", "description": words, "schema": schema})
    if route.scope == "submit" and route.takes is not None:
        parameters.append({"name": "Idempotency-Key", "in": "header", "schema": {"type": "string", "maxLength": 128}})
    problem = {
        "description": "refused",
        "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}},
    }
    content: dict[str, Any] = {} if route.status == 204 else {"content": {route.gives: {}}}
    operation: dict[str, Any] = {
        "summary": route.summary,
        "description": f"Scope `{route.scope}`. {(route.handler.__doc__ or '').strip()}".strip(),
        "parameters": parameters,
        "responses": {str(route.status): {"description": "done", **content}, "4XX": problem, "5XX": problem},
    }
    if route.takes is not None:
        schema = by_type[route.takes]
        forms = {form: {"schema": schema} if form != "application/octet-stream" else {} for form in route.body}
        operation["requestBody"] = {"required": True, "content": forms}
    return operation
