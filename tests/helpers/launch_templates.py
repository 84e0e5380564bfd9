"""What a W&B server makes of a Launch queue's template at a push."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sweep.queues.launch.section import LaunchQueue
from sweep.queues.launch.template import VARIABLE


def fill_in(template: Any, values: Mapping[str, Any]) -> Any:
    """The configuration with its template variables replaced by values; a value that consists of one variable only gets
    the type of its value."""
    if isinstance(template, Mapping):
        return {key: fill_in(value, values) for key, value in template.items()}
    if isinstance(template, list):
        return [fill_in(value, values) for value in template]
    if not isinstance(template, str):
        return template
    if whole := VARIABLE.fullmatch(template):
        return values[whole[1]]
    return VARIABLE.sub(lambda match: str(values[match[1]]), template)


def values_of(queue: LaunchQueue) -> dict[str, Any]:
    """The values of the template variables at a push: the configured ones, otherwise the defaults."""
    defaults = {name: entry["schema"].get("default") for name, entry in queue.template_variables.items()}
    return {**defaults, **queue.variables}
