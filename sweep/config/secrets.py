"""Refuses secrets that a configuration would write in clear into the room, W&B or a queue.

The torchtune configuration and the section `evaluate` keep `${oc.env:NAME}` as text until the worker reads the
variable (`trainer.environment`). All other sections are frozen with their values, so they must hold no secret.

Invariant: no message of this module contains the value that it refuses.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

from sweep.config.overrides import RESOLUTION_ERRORS, resolution_error
from sweep.config.resolvers import environment_stays
from sweep.errors import ConfigError
from trainer.environment import references, texts

# Sections whose references stay references when they are frozen.
REFERRING = ("recipe", "evaluate", "space", "derive", "given")
_SECRET_VARIABLE = re.compile(
    r"(?i)(?:^|_)(?:token|api_?key|secret|password|passwd|credentials?|private_?key|access_?key)(?:_|$)"
)
_SECRET_KEYS = {
    "access_token",
    "api_key",
    "apikey",
    "auth_token",
    "hf_token",
    "passwd",
    "password",
    "secret",
    "token",
    "use_auth_token",
}
# Settings of W&B's client with which a configuration could have its key sent elsewhere, or read over its shoulder.
_WANDB_CONNECTION = re.compile(
    r"base_url|app_url|prox(?:y|ies)|ssl|header|identity_token|credentials|access_key|executable"
)
_INDICES = re.compile(r"(\[\d+\])+$")
_NAME = re.compile(r"\$\{oc\.env:(\w+)")


def check_sections(cfg: DictConfig) -> None:
    """Refuse a composition in which a section that is frozen with its values refers to a secret.

    Raises:
        ConfigError: with the key, and where the secret belongs.
    """
    for section in cfg:
        if section in REFERRING or OmegaConf.is_missing(cfg, section):
            continue
        try:
            if not OmegaConf.is_config(cfg[section]):
                continue
            with environment_stays():
                plain = OmegaConf.to_container(cfg[section], resolve=True, throw_on_missing=False)
        except RESOLUTION_ERRORS as error:
            raise resolution_error(error, str(section)) from error
        for key, text in references(plain, str(section)):
            if secret := next(filter(_SECRET_VARIABLE.search, _NAME.findall(text)), None):
                raise ConfigError(
                    f"{key} refers to {secret}, whose value would be written into the room; leave the key out, and "
                    "let the processes that need the variable have it in their environment"
                )


def check_environment(section: str, env: Mapping[str, Any]) -> None:
    """Refuse environment variables of workers whose names are those of secrets.

    Raises:
        ConfigError: with the key, and how a worker gets the secret.
    """
    for name in filter(_SECRET_VARIABLE.search, map(str, env)):
        raise ConfigError(
            f"{section}.{name} would be written into the room; leave it out: workers on this machine and on SLURM "
            "inherit the environment of `sweep run`, and Launch jobs get secrets from their queue"
        )


def check_torchtune(config: Mapping[str, Any]) -> None:
    """Refuse a resolved torchtune configuration that holds a secret as a literal text.

    Raises:
        ConfigError: with the key, and how to refer to an environment variable.
    """
    for key, name, text in _named_texts(config, ""):
        if name.lower() in _SECRET_KEYS and not any(references(text)):
            raise ConfigError(
                f"{key} holds a secret, which would be written into the room and W&B; write "
                f"${{oc.env:{name.upper()}}}, and set that variable where trials run"
            )


def check_wandb(arguments: Mapping[str, Any], section: str) -> None:
    """Refuse a secret among the arguments of `wandb.init`, which its client reads by itself, and what connects it.

    The client would send the user's key to whatever server a configuration names.

    Raises:
        ConfigError: with the key, and where the client reads it.
    """
    for key, name, _ in _named_texts(arguments, section):
        if name.lower() in _SECRET_KEYS:
            raise ConfigError(
                f"{key} would be written into the room; leave it out: the client of W&B reads WANDB_API_KEY or ~/.netrc"
            )
    settings = arguments.get("settings")
    for key in settings if isinstance(settings, Mapping) else ():
        if _WANDB_CONNECTION.search(str(key).lower()):
            raise ConfigError(
                f"{section}.settings.{key} is not allowed: it decides where W&B's client sends your key; leave it out, "
                f"and set WANDB_{str(key).removeprefix('x_').upper()} in the environment of `sweep`"
            )


def _named_texts(value: Any, at: str) -> Iterator[tuple[str, str, str]]:
    """Every text that is not empty, with its dotted key and the last name in that key."""
    for key, text in texts(value, at):
        if text:
            yield key, _INDICES.sub("", key).rpartition(".")[2], text
