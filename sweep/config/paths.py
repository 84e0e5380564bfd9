"""Anchors the relative paths of a torchtune configuration at the directory of a sweep's first command.

A sweep may be resumed, and its export trained, from any directory. torchtune and `datasets` take a relative path from
the directory of their own process; so it is made absolute before a configuration leaves this program.

Which values are paths follows from torchtune's signatures (`PATHS`), and for data from the rules of
`datasets.load_dataset`: `data_files` are names in the repository of a data set on the Hub, names in `data_dir` if there
is one, and paths on this machine for the formats that `datasets` reads itself (`source: json`).

Invariants: an absolute path, a URL and a name on the Hub stay as they are. Nothing is anchored twice.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sweep.errors import ConfigError
from trainer.environment import MissingVariableError, reference, reveal

# Parameters of torchtune's components and recipes that take the path of a file or a directory.
PATHS = frozenset(
    {
        "checkpoint_dir",
        "output_dir",
        "log_dir",
        "image_dir",
        "cache_dir",
        "merges_file",
        "merges_path",
        "vocab_path",
        "special_tokens_path",
        "tokenizer_path",
        "tokenizer_json_path",
        "tokenizer_config_json_path",
        "generation_config_path",
        "include_path",
    }
)
# Those that are a path in one section only; elsewhere they may be a name of another kind.
PATHS_IN = {"tokenizer": frozenset({"path"})}
# Parameters of `datasets.load_dataset`; what they mean depends on the source.
DATA = ("source", "data_dir", "data_files")
# The formats that `datasets` reads without a repository (`datasets.packaged_modules`).
FORMATS = frozenset(
    {
        "arrow",
        "audiofolder",
        "conll",
        "csv",
        "eval",
        "fasta",
        "fastq",
        "genbank",
        "harbor",
        "hdf5",
        "iceberg",
        "imagefolder",
        "json",
        "lance",
        "meshfolder",
        "mmcif",
        "niftifolder",
        "pandas",
        "parquet",
        "pdb",
        "pdffolder",
        "text",
        "tsfile",
        "videofolder",
        "vortex",
        "webdataset",
        "xml",
    }
)

_VARIABLE = re.compile(r"\$([^\W\d]\w*)")
_BY_SYNTAX = re.compile(r"(\.{1,2}|~[^/]*)(/|$)")


def anchored(config: Any, directory: str, at: str = "") -> Any:
    """Resolved plain values with all relative paths made absolute.

    Args:
        config: a torchtune configuration, or a part of one.
        directory: an absolute path; empty: nothing is changed.
        at: the dotted key of `config` itself.

    Raises:
        ConfigError: a path names an environment variable that is not set, or `~` without a home directory.
    """
    if not directory:
        return config
    if isinstance(config, list):
        return [anchored(item, directory, _join(at, index)) for index, item in enumerate(config)]
    if not isinstance(config, Mapping):
        return config
    section = at.rpartition(".")[2]
    changed = {key: anchored(value, directory, _join(at, key)) for key, value in config.items()}
    for key, value in config.items():
        if isinstance(value, str) and (key in PATHS or key in PATHS_IN.get(section, ())):
            changed[key] = _path(value, directory, _join(at, key))
    return changed | _data(config, directory, at)


def anchored_keys(config: Mapping[str, Any], directory: str) -> dict[str, Any]:
    """The dotted keys of a resolved configuration whose values `anchored` changes, with the changed values."""
    return dict(_differences(config, anchored(config, directory)))


def unescaped(pattern: str) -> str:
    """The name of the one file that a pattern without wildcards means, as it is on the disk."""
    return re.sub(r"\[([*?[])\]", r"\1", pattern)


def _differences(old: Any, new: Any, at: str = "") -> Iterator[tuple[str, Any]]:
    if old == new:
        return
    is_datasets = isinstance(old, list) and any(isinstance(item, Mapping) for item in old)
    if isinstance(old, Mapping) and at.rpartition(".")[2] not in DATA:
        for key in old:
            yield from _differences(old[key], new[key], _join(at, key))
    elif is_datasets and at.rpartition(".")[2] not in DATA:
        for index, (before, after) in enumerate(zip(old, new, strict=True)):
            yield from _differences(before, after, _join(at, index))
    else:
        yield at, new


def _data(config: Mapping[str, Any], directory: str, at: str) -> dict[str, Any]:
    """The changed parameters of `datasets.load_dataset` among the values of a section."""
    source, own = config.get("source"), config.get("data_dir")
    changed: dict[str, Any] = {}
    if isinstance(source, str) and source in FORMATS:
        if isinstance(own, str) and own:
            changed["data_dir"] = _path(own, directory, _join(at, "data_dir"))
        elif config.get("data_files") is not None:
            changed["data_files"] = _files(config["data_files"], directory, _join(at, "data_files"))
    elif isinstance(source, str) and source:
        by_syntax = _BY_SYNTAX.match(source) or _VARIABLE.search(source)
        if by_syntax or Path(_joined(directory, source)).is_dir():
            changed["source"] = _path(source, directory, _join(at, "source"))
    elif source is None:  # a component of the user's own: only what is there can be told from another kind of name
        for key in ("data_dir", "data_files"):
            if key in config and _exists(config[key], directory):
                changed[key] = _files(config[key], directory, _join(at, key))
    return changed


def _exists(value: Any, directory: str) -> bool:
    """Whether texts, or those in lists and mappings, name what is there."""
    if isinstance(value, Mapping):
        return all(_exists(item, directory) for item in value.values())
    if isinstance(value, list):
        return all(_exists(item, directory) for item in value)
    return isinstance(value, str) and value != "" and Path(_joined(directory, value)).exists()


def _files(value: Any, directory: str, at: str) -> Any:
    """Patterns of files, as one text, a list, or lists by split."""
    if isinstance(value, Mapping):
        return {key: item if key == "split" else _files(item, directory, _join(at, key)) for key, item in value.items()}
    if isinstance(value, list):
        return [_files(item, directory, at) for item in value]
    return _pattern(value, directory, at) if isinstance(value, str) else value


def _pattern(text: str, directory: str, at: str) -> str:
    """One pattern of files, absolute.

    `datasets` takes `*`, `?` and `[` for wildcards. They are escaped in the directory, and in the name of a file that
    exists as it is written.
    """
    if not text or "://" in text or "::" in text:
        return text
    literal = _joined(directory, _expanded(text))
    return glob.escape(literal) if Path(literal).is_file() else _path(text, glob.escape(directory), at)


def _path(text: str, directory: str, at: str) -> str:
    """One path, absolute. `~` is expanded, and `$NAME` becomes a reference to the variable."""
    if not text or "://" in text or text.startswith(f"{directory.rstrip('/')}/"):
        return text
    if Path(_joined(directory, text)).exists():  # as it is written, with every character
        return _joined(directory, text)
    path = _expanded(text)
    if path == text and re.match(r"~(/|$)", text):
        raise ConfigError(f"{at}={text}: there is no home directory that ~ could mean; set HOME, or write the path")
    path = _VARIABLE.sub(lambda match: _variable(match[1], text, at), path)
    try:
        absolute = str(reveal(path)).startswith("/")
    except MissingVariableError:  # of other machines only
        absolute = path.startswith("${")
    return path if absolute else _joined(directory, path)


def _expanded(text: str) -> str:
    """A path whose `~` or `~user` is replaced; as it is if there is no such directory."""
    return os.path.expanduser(text)  # noqa: PTH111 - that of pathlib raises, and drops what it takes for needless


def _variable(name: str, text: str, at: str) -> str:
    if name not in os.environ:
        raise ConfigError(
            f"{at}={text}: the environment variable {name} is not set; set it, or write the path without it"
        )
    return reference(name)


def _joined(directory: str, path: str) -> str:
    """A path in a directory, without `.` parts; `..` stays, since a link may precede it."""
    parts = [part for part in path.split("/") if part not in ("", ".")]
    return path if path.startswith("/") else "/".join([directory.rstrip("/"), *parts])


def _join(at: str, key: object) -> str:
    return f"{at}.{key}" if at else str(key)
