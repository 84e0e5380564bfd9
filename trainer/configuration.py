"""Turns the resolved configuration of a specification into one from which components are built.

Invariant: this is the only way from a specification to a `DictConfig`. What it returns has no interpolation, so that
torchtune, which resolves a configuration once more, can name no other code than was checked here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf

from trainer.components import components, current_path, load_components
from trainer.contract import TrialSpec
from trainer.environment import check_plain, reveal


def current_config(spec: TrialSpec) -> DictConfig:
    """The configuration of a specification; see `trusted_config`."""
    return trusted_config(spec.config, spec.components)


def trusted_config(config: Mapping[str, Any], extra: Sequence[str] = ()) -> DictConfig:
    """A resolved configuration whose components may be built.

    References to environment variables are replaced by their values, and old names of components by today's.

    Args:
        extra: further allowed prefixes of components.

    Raises:
        ComponentError: it names code that is not trusted, or that does not exist.
        MissingVariableError: an environment variable is not set.
        InterpolationLeftError: it has an interpolation.
    """
    check_plain(config)
    plain = reveal(config)
    check_plain(plain)  # a variable may hold such a text too
    load_components(plain, extra)
    cfg: DictConfig = OmegaConf.create(plain)
    for key, path in components(plain):
        if current_path(path) != path:
            OmegaConf.update(cfg, key, current_path(path))
    return cfg
