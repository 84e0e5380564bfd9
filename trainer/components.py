"""Decides which code a torchtune configuration may name.

Invariants: no code outside the allow-list is imported for a configuration, wherever in it a name stands. A name may not
lead out of its package: `torchtune.utils._device.os.system` has an allowed prefix, but is refused, since it goes
through a private module and the standard library. The check imports nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

ALLOWED = ("torchtune.", "torch.optim.", "torch.nn.", "torchao.", "bitsandbytes.")
# Keys besides `_component_` whose value torchtune imports.
NAMING_KEYS = ("collate_fn", "prompt_template")
# No public path of an allowed package has one of these names behind its prefix.
PACKAGES = frozenset({*sys.stdlib_module_names, *(prefix.split(".")[0] for prefix in ALLOWED), "numpy", "omegaconf"})

# Older configurations name modules that torchtune 0.6.1 no longer has.
MOVED = {"torchtune.utils.metric_logging.": "torchtune.training.metric_logging."}


class ComponentError(Exception):
    """A configuration names code outside the allow-list."""


def components(config: Any, at: str = "") -> Iterator[tuple[str, str]]:
    """Every key with its dotted path in a configuration that names code.

    Args:
        config: nested mappings and sequences.
        at: the key of `config` itself.
    """
    if isinstance(config, Mapping):
        for key, value in config.items():
            path = f"{at}.{key}" if at else str(key)
            if key == "_component_" or (key in NAMING_KEYS and isinstance(value, str)):
                yield path, str(value)
            else:
                yield from components(value, path)
    elif isinstance(config, Sequence) and not isinstance(config, str):
        for index, value in enumerate(config):
            yield from components(value, f"{at}[{index}]")


def check_components(config: Any, extra: Sequence[str] = ()) -> None:
    """Refuse a configuration that names code outside the allow-list.

    Args:
        extra: further allowed prefixes.

    Raises:
        ComponentError: a name is not allowed. It gives the key, its value and the allowed prefixes.
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
    """The dotted path that torchtune 0.6.1 has for a component that older configurations name differently."""
    for old, new in MOVED.items():
        if path.startswith(old):
            return new + path.removeprefix(old)
    return path
