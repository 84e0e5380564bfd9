"""Which code a torchtune configuration may name.

Invariants: nothing outside the allow-list is imported for a configuration, wherever in it a name stands. A name
does not lead out of its package either: `torchtune.utils._device.os.system` begins well, but private parts, modules
of the standard library and other packages are refused on the way. Nothing is imported to find that out.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

ALLOWED = ("torchtune.", "torch.optim.", "torch.nn.", "torchao.", "bitsandbytes.")
# Keys besides `_component_` whose text torchtune imports.
NAMING_KEYS = ("collate_fn", "prompt_template")
# Names that no public path of an allowed package has behind its prefix.
PACKAGES = frozenset({*sys.stdlib_module_names, *(prefix.split(".")[0] for prefix in ALLOWED), "numpy", "omegaconf"})

# Older texts name modules that torchtune 0.6.1 no longer has.
MOVED = {"torchtune.utils.metric_logging.": "torchtune.training.metric_logging."}


class ComponentError(Exception):
    """A configuration names code outside the allow-list."""


def components(config: Any, at: str = "") -> Iterator[tuple[str, str]]:
    """Every `(key, dotted path)` of a plain configuration that names code."""
    if isinstance(config, Mapping):
        for key, value in config.items():
            where = f"{at}.{key}" if at else str(key)
            if key == "_component_" or (key in NAMING_KEYS and isinstance(value, str)):
                yield where, str(value)
            else:
                yield from components(value, where)
    elif isinstance(config, Sequence) and not isinstance(config, str):
        for index, value in enumerate(config):
            yield from components(value, f"{at}[{index}]")


def check_components(config: Any, extra: Sequence[str] = ()) -> None:
    """Refuse a configuration that names code outside the allow-list.

    Raises:
        ComponentError: with the key, its value and the allowed prefixes, or the part that leads elsewhere.
    """
    for key, path in components(config):
        check_path(key, path, extra)


def check_path(key: str, path: str, extra: Sequence[str] = ()) -> None:
    """Refuse one dotted path outside the allow-list; see `check_components`."""
    allowed = (*ALLOWED, *extra)
    prefix = max(filter(path.startswith, allowed), key=len, default=None)
    if prefix is None:
        raise ComponentError(
            f"{key}={path} is not among the allowed components ({', '.join(allowed)}); "
            "add its prefix to recipe.components if you trust it"
        )
    if hidden := [part for part in path.removeprefix(prefix).split(".") if part[:1] == "_" or part in PACKAGES]:
        raise ComponentError(
            f"{key}={path} leads through {hidden[0]}, which is private or another package; "
            "name the component by its public path, or add this path to recipe.components if you trust it"
        )


def current_path(path: str) -> str:
    """The dotted path under which torchtune 0.6.1 has a component that older texts name differently."""
    for old, new in MOVED.items():
        if path.startswith(old):
            return new + path.removeprefix(old)
    return path
