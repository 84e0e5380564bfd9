"""Paths of the files that are shipped with the program, in a checkout and in an installed wheel.

Invariant: imports nothing heavy; torchtune is located but not imported.
"""

from __future__ import annotations

import importlib.util
from functools import cache
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


@cache
def conf_dir() -> Path:
    """The directory of the shipped Hydra configuration."""
    installed = _PACKAGE / "_conf"
    return installed if installed.is_dir() else _PACKAGE.parent / "conf"


@cache
def launch_queues_dir() -> Path:
    """The directory of the shipped queue configurations, which are Hydra's group `queue`."""
    installed = _PACKAGE / "_launch_queues"
    return installed if installed.is_dir() else _PACKAGE.parent / "launch_queues"


@cache
def trainer_dir() -> Path:
    """The directory of the package that runs on the workers' nodes."""
    return _package_dir("trainer")


@cache
def embedded_dir() -> Path:
    """The directory of the embedded base model, tokenizer and data set."""
    return trainer_dir() / "embedded"


@cache
def torchtune_recipes() -> Path:
    """The directory of torchtune's own configurations; `tune ls` prints their paths relative to it."""
    return _package_dir("torchtune").parent / "recipes" / "configs"


def _package_dir(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    assert spec is not None and spec.origin is not None, f"{package} is not installed"
    return Path(spec.origin).parent
