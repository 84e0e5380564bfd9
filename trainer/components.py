"""Which code a torchtune configuration may name.

Invariant: nothing outside the allow-list is imported for a `_component_`, wherever in the configuration it stands.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

ALLOWED = ("torchtune.", "torch.optim.", "torch.nn.", "torchao.", "bitsandbytes.", "trainer.")

# Older texts name modules that torchtune 0.6.1 no longer has.
MOVED = {"torchtune.utils.metric_logging.": "torchtune.training.metric_logging."}


class ComponentError(Exception):
    """A configuration names code outside the allow-list."""


def components(config: Any, at: str = "") -> Iterator[tuple[str, str]]:
    """Every `(key, dotted path)` of a plain configuration that names code."""
    if isinstance(config, Mapping):
        for key, value in config.items():
            where = f"{at}.{key}" if at else str(key)
            if key == "_component_" or (key == "collate_fn" and isinstance(value, str)):
                yield where, str(value)
            else:
                yield from components(value, where)
    elif isinstance(config, Sequence) and not isinstance(config, str):
        for index, value in enumerate(config):
            yield from components(value, f"{at}[{index}]")


def check_components(config: Any, extra: Sequence[str] = ()) -> None:
    """Refuse a configuration that names code outside the allow-list.

    Raises:
        ComponentError: with the key, its value and the allowed prefixes.
    """
    allowed = (*ALLOWED, *extra)
    for key, path in components(config):
        if not path.startswith(allowed):
            raise ComponentError(
                f"{key}={path} is not among the allowed components ({', '.join(allowed)}); "
                "add its prefix to recipe.components if you trust it"
            )


def current_path(path: str) -> str:
    """The dotted path under which torchtune 0.6.1 has a component that older texts name differently."""
    for old, new in MOVED.items():
        if path.startswith(old):
            return new + path.removeprefix(old)
    return path
