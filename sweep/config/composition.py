"""Hydra's composition of the shipped groups and a person's own directory of groups.

Invariants: a file of a group is read by `yaml_files`, of the program and of a person alike. The person's directory
reaches Hydra as a path and never as a word of its grammar, so that any character may stand in it. Nothing of this
module's state outlives a call.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextvars import ContextVar
from functools import cache
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.config_source import ConfigLoadError, ConfigResult
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig, OmegaConf

from sweep.config.yaml_files import parse_yaml, read_text_file
from sweep.errors import ConfigError

_SCHEME = "groups"
_own_directory: ContextVar[Path | None] = ContextVar("own_directory", default=None)


def compose_files(words: Sequence[str], own: Path | None) -> DictConfig:
    """The composition of `config.yaml` with these overrides.

    Args:
        own: a directory with further groups; None: there is none.

    Raises:
        ConfigError: a file cannot be read. HydraException: a group, an option or a key that does not exist. Hydra also
            raises ValueError, TypeError, AttributeError, KeyError and AssertionError for words that it does not expect.
    """
    from sweep.resources import conf_dir

    _register()
    token = _own_directory.set(own)
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(conf_dir()), version_base="1.3", job_name="sweep"):
            return compose("config", overrides=list(words))
    finally:
        _own_directory.reset(token)


class _Groups(FileConfigSource):
    """A directory whose files are read by `yaml_files`."""

    @staticmethod
    def scheme() -> str:
        return _SCHEME

    def load_config(self, config_path: str) -> ConfigResult:
        """The file of a group.

        Raises:
            ConfigError: it cannot be read.
        """
        path = Path(os.path.realpath(Path(self.path, self._normalize_file_name(config_path))))
        if not path.exists():
            raise ConfigLoadError(f"Config not found : {path}")
        text = read_text_file(path)
        try:
            header = self._get_header_dict(text[:512])
        except ValueError as error:
            raise ConfigError(f"{path}, line 1: {error}; its header is `# @package NAME`") from error
        config = parse_yaml(text, str(path))
        if not isinstance(config, DictConfig):
            raise ConfigError(f"{path} holds a list and no YAML mapping")
        _check_defaults(config, path)
        return ConfigResult(
            config=config,
            path=f"{_SCHEME}://{self.path}",
            provider=self.provider,
            header=header,
        )

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        """The options of a group; none if the directory may not be read."""
        try:
            return super().list(config_path, results_filter)
        except OSError as error:
            raise ConfigError(f"{error.filename} cannot be read: {(error.strerror or str(error)).lower()}") from error


def _check_defaults(config: DictConfig, path: Path) -> None:
    """Refuse a list of defaults that Hydra cannot read, by the name of its file.

    Raises:
        ConfigError: with the entry, and what is allowed.
    """
    defaults = config._get_node("defaults")
    if defaults is None:
        return
    entries = OmegaConf.to_container(defaults) if OmegaConf.is_list(defaults) else None
    if not isinstance(entries, list):
        raise ConfigError(f"{path}: defaults={defaults} must be a list of groups, such as [override /space: lora]")
    for entry in entries:
        names = list(entry.values()) if isinstance(entry, dict) else [entry]
        options = names[0] if len(names) == 1 and isinstance(names[0], list) and isinstance(entry, dict) else names
        allowed = isinstance(entry, dict) and names == [None]
        if not allowed and not (len(names) == 1 and all(isinstance(option, str) for option in options)):
            raise ConfigError(f"{path}: {entry} in its defaults must be a name, or one group with its option")


class _SearchPath(SearchPathPlugin):
    """Has the shipped groups read as a person's own, and adds the latter."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        for place in search_path.get_path():
            if place.provider == "main":
                place.path = f"{_SCHEME}://{place.path}"
        if (own := _own_directory.get()) is not None:
            search_path.append("--config-dir", f"{_SCHEME}://{own}")


@cache
def _register() -> None:
    Plugins.instance().register(_Groups)
    Plugins.instance().register(_SearchPath)


__all__ = ["HydraException", "compose_files"]
