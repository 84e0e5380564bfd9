"""The resource configuration of a Launch queue, its template variables, and which values of the section fit together.

Invariant: pure. `{{name}}` is a template variable of W&B, which the server fills in at a push. The agent fills in
`${name}`, from the job and from its own environment; nothing here handles that.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from sweep.errors import ConfigError, unknown_key

if TYPE_CHECKING:
    from sweep.queues.launch.section import LaunchQueue

VARIABLE = re.compile(r"\{\{\s*([^{}\s]+)\s*\}\}")
# The Python types of the values of a template variable, by the type's name in a JSON schema.
TYPES: dict[str, type | tuple[type, ...]] = {"string": str, "integer": int, "number": (int, float)}


def check_launch(queue: LaunchQueue) -> None:
    """Refuse a section whose values do not fit each other.

    Raises:
        ConfigError: with the key, its value and what to do.
    """
    if queue.workers is None:
        raise ConfigError("queue.workers=null: say how many Launch jobs may be open at once, e.g. queue.workers=4")
    if queue.job and queue.docker_image:
        raise ConfigError(
            "queue.job and queue.docker_image are both set; a push takes one of them: set the other to null"
        )
    if queue.docker_image and queue.resource == "local-process":
        raise ConfigError(
            f"queue.docker_image={queue.docker_image}, but local-process runs no image; set queue.job or "
            "queue.resource=local-container"
        )
    if queue.room and queue.channel == "wandb":
        raise ConfigError(
            f"queue.room={queue.room}, but with queue.channel=wandb no room is shared; set queue.channel=room, or "
            "queue.room=null"
        )
    if queue.variables and queue.resource_args:
        raise ConfigError(
            "queue.variables and queue.resource_args are both set; Launch uses only one of them at a push: leave one "
            "empty"
        )
    _check_schemas(queue)
    for name, value in queue.variables.items():
        check_value(queue, name, value)


def variables_in(template: Any) -> Iterator[str]:
    """The names of the template variables in a resource configuration, once for each occurrence."""
    if isinstance(template, str):
        yield from VARIABLE.findall(template)
    elif isinstance(template, Mapping):
        for value in template.values():
            yield from variables_in(value)
    elif isinstance(template, list):
        for value in template:
            yield from variables_in(value)


def check_value(queue: LaunchQueue, name: str, value: Any) -> None:
    """Refuse a value that the schema of its variable does not allow.

    Raises:
        ConfigError: the queue has no such variable, or another type, or it is out of range.
    """
    where = f"queue.variables.{name}={value}"
    if name not in queue.template_variables:
        raise unknown_key("queue.variables", name, queue.template_variables)
    schema = queue.template_variables[name]["schema"]
    if isinstance(value, bool) or not isinstance(value, TYPES[schema["type"]]):
        raise ConfigError(f"{where} must be of type {schema['type']}")
    if "enum" in schema and value not in schema["enum"]:
        raise ConfigError(f"{where} is not allowed; it must be one of {', '.join(map(str, schema['enum']))}")
    if value < schema.get("minimum", value) or value > schema.get("maximum", value):
        bounds = f"{schema.get('minimum', '-inf')} to {schema.get('maximum', 'inf')}"
        raise ConfigError(f"{where} is out of range; it must be in {bounds}")


def _check_schemas(queue: LaunchQueue) -> None:
    used = set(variables_in(queue.template))
    for name, entry in queue.template_variables.items():
        where = f"queue.template_variables.{name}"
        schema = entry.get("schema") if isinstance(entry, Mapping) else None
        if not isinstance(schema, Mapping) or str(schema.get("type")) not in TYPES:
            raise ConfigError(f"{where} needs a schema with a type: {{schema: {{type: {' or '.join(TYPES)}}}}}")
        if name not in used:
            raise ConfigError(f"{where} does not occur in queue.template; write {{{{{name}}}}} at its place there")
        if schema.get("default") is not None:
            check_value(queue, name, schema["default"])
        elif name not in queue.variables:
            raise ConfigError(f"{where} has no default; give it one, or set queue.variables.{name}")
    if missing := sorted(used - set(queue.template_variables)):
        raise ConfigError(f"queue.template uses {{{{{missing[0]}}}}}, which has no entry in queue.template_variables")
