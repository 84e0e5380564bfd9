"""Decides which code a torchtune configuration may name.

There are two checks, because the controller has no torchtune. `check_components` reads the dotted paths alone and
imports nothing. `load_components` runs in the process that builds the components: it looks every path up as torchtune
does, and trusts an object by the module that *defines* it. So an alias such as
`torchtune.modules.early_exit_loss.np.load`, which begins with an allowed prefix, is refused.

Invariants: no object is built from a configuration before both checks have accepted all of its components, wherever in
it a name stands. What may be built is a closed list of modules (`BUILDERS`) and the prefixes that the user trusts
(`recipe.components`). A configuration is checked as plain values: it has no interpolation that could name other code
later.
"""

from __future__ import annotations

import functools
import inspect
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module
from types import ModuleType
from typing import Any

from trainer.working_directory import module_places

ALLOWED = ("torchtune.", "torch.optim.", "torch.nn.", "torchao.", "bitsandbytes.")
# Keys besides `_component_` whose value torchtune imports.
NAMING_KEYS = ("collate_fn", "prompt_template")
# Components that the trainer replaces by its own and never builds.
UNUSED = ("metric_logger", "profiler", "quantizer")
# No public path of an allowed package has one of these names behind its prefix.
PACKAGES = frozenset({*sys.stdlib_module_names, *(prefix.split(".")[0] for prefix in ALLOWED), "numpy", "omegaconf"})

# Older configurations name modules that torchtune 0.6.1 no longer has.
MOVED = {
    "torchtune.utils.metric_logging.": "torchtune.training.metric_logging.",
    "torchtune.utils.FullModel": "torchtune.training.FullModel",  # the checkpointers
    "torchtune.utils.setup_torch_profiler": "torchtune.training.setup_torch_profiler",
    "torchtune.utils.padded_collate_sft": "torchtune.data.padded_collate_sft",
    "torchtune.modules.get_cosine_schedule_with_warmup": (
        "torchtune.training.lr_schedulers.get_cosine_schedule_with_warmup"
    ),
    "torchtune.modules.tokenizers.": "torchtune.modules.transforms.tokenizers.",
    "torchao.prototype.low_bit_optim.": "torchao.optim.",
}

_PREFIX = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*\.?")


class ComponentError(Exception):
    """A configuration names code that cannot be used."""


class UntrustedError(ComponentError):
    """A configuration names code that is not trusted, on whatever machine."""


@dataclass(frozen=True, slots=True)
class Builder:
    """Objects that may be built: those that a module, or a module below it, defines.

    Args:
        module: the dotted name of the module.
        kinds: `class`, `function` or both.
        base: the dotted path of the class that a class must inherit from; empty: of any class.
    """

    module: str
    kinds: tuple[str, ...] = ("class",)
    base: str = ""

    def covers(self, thing: Any) -> bool:
        """Whether this entry allows an object."""
        if not _within(str(thing.__module__), self.module):
            return False
        if inspect.isclass(thing):
            return "class" in self.kinds and (not self.base or issubclass(thing, look_up(self.base)))
        return inspect.isfunction(thing) and "function" in self.kinds


_BOTH = ("class", "function")
BUILDERS = (
    Builder("torchtune.models", _BOTH),
    Builder("torchtune.datasets", _BOTH),
    Builder("torchtune.data._collate", ("function",)),
    Builder("torchtune.data"),
    Builder("torchtune.modules"),
    Builder("torchtune.rlhf.loss"),
    Builder("torchtune.training.checkpointing._checkpointer"),
    Builder("torchtune.training.lr_schedulers", ("function",)),
    Builder("torchtune.training.metric_logging"),
    Builder("torchtune.training._profiler", _BOTH),
    Builder("torchtune.training.quantization"),
    Builder("torch.optim", base="torch.optim.Optimizer"),
    Builder("torch.optim.lr_scheduler"),
    Builder("torch.nn.modules", base="torch.nn.Module"),
    Builder("torchao", base="torch.optim.Optimizer"),
    Builder("bitsandbytes.optim", base="torch.optim.Optimizer"),
)


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
    """Refuse a configuration whose dotted paths lead outside the allow-list. Imports nothing.

    Args:
        extra: further allowed prefixes.

    Raises:
        UntrustedError: a path or a prefix is not allowed. It gives the key, its value and the allowed prefixes.
    """
    check_prefixes(extra)
    for key, path in components(config):
        check_path(key, path, extra)
    _check_remote_code(config)


def check_prefixes(extra: Iterable[str]) -> None:
    """Refuse a prefix that is no name of a module or component; an empty one would allow all code.

    Raises:
        UntrustedError: with the prefix.
    """
    for prefix in extra:
        if not isinstance(prefix, str) or not _PREFIX.fullmatch(prefix):
            raise UntrustedError(
                f"recipe.components has {prefix!r}, which is no dotted name; write the name of a module or of a "
                "component that you trust, e.g. my_package.data"
            )


def check_path(key: str, path: str, extra: Sequence[str] = ()) -> None:
    """Refuse one dotted path outside the allow-list; see `check_components`."""
    trusted = [prefix.rstrip(".") for prefix in extra]
    if path in trusted:
        return
    prefixes = (*ALLOWED, *(f"{prefix}." for prefix in trusted))
    prefix = max(filter(path.startswith, prefixes), key=len, default=None)
    if prefix is None:
        raise UntrustedError(
            f"{key}={path} is not among the allowed components ({', '.join(prefixes)}); "
            "add its module to recipe.components if you trust it"
        )
    if hidden := [part for part in path.removeprefix(prefix).split(".") if part[:1] == "_" or part in PACKAGES]:
        raise UntrustedError(
            f"{key}={path} leads through {hidden[0]}, which is private or another package; "
            "name the component by its public path, or add this path to recipe.components if you trust it"
        )


def load_components(config: Any, extra: Sequence[str] = ()) -> None:
    """Refuse a configuration that names an object outside the allow-list, or one that does not exist.

    Imports the modules of the components, and builds nothing.

    Args:
        config: plain values, with all interpolations resolved.
        extra: further allowed prefixes.

    Raises:
        UntrustedError: an object is not trusted; with the key, its value and the module that defines the object.
        ComponentError: an object does not exist here; with the key, its value and what is missing.
    """
    check_components(config, extra)
    for key, path in components(config):
        current = current_path(path)
        try:
            thing = look_up(current)
        except ComponentError as error:
            if key.split(".")[0] not in UNUSED:
                raise ComponentError(f"{key}={path} cannot be used: {error}") from error
        else:
            _check_definition(key, current, thing, extra)


def load_function(key: str, path: str, extra: Sequence[str]) -> Any:
    """The object of the user's own code that a key names.

    Raises:
        UntrustedError: its path or its definition is not trusted. ComponentError: it does not exist here.
    """
    check_prefixes(extra)
    check_path(key, path, extra)
    try:
        thing = look_up(path)
    except ComponentError as error:
        raise ComponentError(f"{key}={path} cannot be used: {error}") from error
    _check_definition(key, path, thing, extra)
    return thing


def current_path(path: str) -> str:
    """The dotted path that torchtune 0.6.1 has for a component that older configurations name differently."""
    for old, new in MOVED.items():
        if path.startswith(old):
            return new + path.removeprefix(old)
    return path


def check_function(key: str, path: str, function: Any, extra: Sequence[str]) -> None:
    """Refuse an object of the user's own code by the module that defines it; its path was checked.

    Raises:
        UntrustedError: another module defines it, and neither that nor this very path is trusted.
    """
    _check_definition(key, path, function, extra)


def _check_definition(key: str, path: str, thing: Any, extra: Sequence[str]) -> None:
    trusted = [prefix.rstrip(".") for prefix in extra]
    if path in trusted:  # the user names this very object
        return
    while isinstance(thing, functools.partial):  # torchtune's builders for quantised bases, for example
        thing = thing.func
    module = str(getattr(thing, "__module__", None) or type(thing).__module__)
    if any(_within(module, prefix) for prefix in trusted):
        return
    plain = (inspect.isclass(thing) or inspect.isfunction(thing)) and "." not in thing.__qualname__
    if not (plain and any(builder.covers(thing) for builder in BUILDERS)):
        raise UntrustedError(
            f"{key}={path} is {_kind(thing)} that {module} defines, and no component that a recipe may build; "
            "add this path to recipe.components if you trust it"
        )


def _check_remote_code(config: Any, at: str = "") -> None:
    """Refuse a data set that runs a script of its repository, as `datasets` did before its version 4, or unpickles."""
    items = config.items() if isinstance(config, Mapping) else enumerate(config) if isinstance(config, list) else ()
    for key, value in items:
        path = f"{at}.{key}" if at else str(key)
        if key == "trust_remote_code" and value not in (False, None):
            raise UntrustedError(
                f"{path}={value} would run code of a data set's repository; remove the key, and convert the data "
                "to JSON or Parquet if they need it"
            )
        if key in ("source", "path") and value == "pandas":
            raise UntrustedError(
                f"{path}=pandas would read data frames as pickles, which are code; convert the data to JSON or Parquet"
            )
        _check_remote_code(value, path)


def look_up(path: str) -> Any:
    """The object at a dotted path, by torchtune's rule: attributes first, then modules. Imports what it must.

    Raises:
        ComponentError: there is none. Says which part is missing.
    """
    parts = path.split(".")
    if not all(parts):
        raise ComponentError("it is no dotted path")
    thing: Any = _module(parts[0])
    for index, part in enumerate(parts[1:], 1):
        before = ".".join(parts[:index])
        try:
            thing = getattr(thing, part)
        except AttributeError as error:
            if not isinstance(thing, ModuleType):
                raise ComponentError(f"{before} has no {part}") from error
            names = [name for name in dir(thing) if not name.startswith("_")]
            thing = _module(f"{before}.{part}", get_close_matches(part, names, n=1))
    return thing


def _module(name: str, near: Sequence[str] = ()) -> ModuleType:
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        parent, _, part = name.rpartition(".")
        if error.name != name:
            raise ComponentError(f"{name} needs the package {error.name}, which is not installed") from error
        if not parent:
            raise ComponentError(
                f"there is no module {name}: it was looked for {module_places()}; install it, or put it into the "
                "directory in which the sweep was started"
            ) from error
        raise ComponentError(f"{parent} has no {part}{f'; did you mean {near[0]}?' if near else ''}") from error
    except Exception as error:  # the module is the user's own, or its package is broken
        raise ComponentError(f"{name} cannot be imported ({type(error).__name__}: {error})") from error


def _within(module: str, prefix: str) -> bool:
    return module == prefix or module.startswith(f"{prefix}.")


def _kind(thing: Any) -> str:
    return "a class" if inspect.isclass(thing) else "a function" if callable(thing) else "a value"
