"""Template variables of a queue's configuration: `{{name}}`, checked against their schemas."""

from __future__ import annotations

import re
from typing import Any

from tests.standin.model import Json, Queue

PLACE = re.compile(r"\{\{\s*([\w-]+)\s*\}\}")
KINDS: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
}


class WrongValue(ValueError):
    """A value that the queue's schema does not allow, or one that is missing."""


def schemas(queue: Queue) -> dict[str, Json]:
    """By name; a schema may stand for itself or under `schema`."""
    return {name: given.get("schema", given) for name, given in queue.template_variables.items()}


def resolved(queue: Queue, values: Json) -> Json:
    """The queue's resource arguments with all variables filled in."""
    wanted = schemas(queue)
    if unknown := sorted(set(values) - set(wanted)):
        raise WrongValue(f"no such template variable: {', '.join(unknown)}")
    known = {name: _value(name, schema, values) for name, schema in wanted.items()}
    found: Json = _fill(queue.config.get("resource_args") or {}, known)
    return found


def _value(name: str, schema: Json, values: Json) -> Any:
    if name not in values:
        if "default" not in schema:
            raise WrongValue(f"template variable {name} has no value and no default")
        return schema["default"]
    value = values[name]
    if not isinstance(value, KINDS[schema.get("type", "string")]):
        raise WrongValue(f"template variable {name}: {value!r} is no {schema['type']}")
    if "enum" in schema and value not in schema["enum"]:
        raise WrongValue(f"template variable {name}: {value!r} is none of {schema['enum']}")
    if not schema.get("minimum", value) <= value <= schema.get("maximum", value):
        raise WrongValue(f"template variable {name}: {value!r} is out of bounds")
    return value


def _fill(part: Any, values: Json) -> Any:
    if isinstance(part, dict):
        return {_fill(key, values): _fill(value, values) for key, value in part.items()}
    if isinstance(part, list):
        return [_fill(value, values) for value in part]
    if not isinstance(part, str):
        return part
    whole = PLACE.fullmatch(part)
    if whole and whole[1] in values:
        return values[whole[1]]
    return PLACE.sub(lambda found: str(values.get(found[1], found[0])), part)
