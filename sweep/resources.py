"""Where the files that travel with the program lie, in a checkout and in an installed wheel.

Invariant: nothing heavy is imported; torchtune is located, not loaded.
"""

from __future__ import annotations

import importlib.util
from functools import cache
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


@cache
def conf_dir() -> Path:
    """The shipped Hydra configuration."""
    installed = _PACKAGE / "_conf"
    return installed if installed.is_dir() else _PACKAGE.parent / "conf"


@cache
def launch_queues_dir() -> Path:
    """The shipped queue configurations: Hydra's group `queue`."""
    installed = _PACKAGE / "_launch_queues"
    return installed if installed.is_dir() else _PACKAGE.parent / "launch_queues"


@cache
def trainer_dir() -> Path:
    """The package that runs on the nodes."""
    return _found("trainer")


@cache
def embedded_dir() -> Path:
    """The embedded base, tokenizer and data."""
    return trainer_dir() / "embedded"


@cache
def torchtune_recipes() -> Path:
    """torchtune's own configurations, as `tune ls` names them below this directory."""
    return _found("torchtune").parent / "recipes" / "configs"


def _found(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    assert spec is not None and spec.origin is not None, f"{package} is not installed"
    return Path(spec.origin).parent
