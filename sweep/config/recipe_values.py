"""What the keys of a torchtune recipe take: whole numbers, numbers, switches and names.

The base configuration, its overrides, each value of the space and the derived values are checked before anything
starts. torchtune reads these values without a check of its own, or fails late and in other words.

Invariants: torchtune is not imported. Only keys are known here that the LoRA recipe reads itself, or that every LoRA
model and optimizer has. All other arguments of components are checked against their signatures by the process that can
import them (`trainer.build_check`). A reference to an environment variable is not checked here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sweep.config.space import Choice, Domain, Interval, Parameter, Space, label
from sweep.errors import ConfigError
from trainer.environment import references

LARGEST_SEED = 2**32 - 1  # numpy's
ATTENTION_MODULES = ("q_proj", "k_proj", "v_proj", "output_proj")
_DEVICE = re.compile(r"(cpu|cuda|mps|xpu|npu|hpu)(:\d+)?")


@dataclass(frozen=True, slots=True)
class Number:
    """A number between two bounds, both included unless `above` is set.

    Args:
        whole: it has no fraction, and is no `1.0` either.
        above: the lower bound itself is excluded.
        empty: null is allowed too.
        text: so is a text that holds a number, which the recipe reads with `float`.
    """

    low: float
    high: float = math.inf
    whole: bool = False
    above: bool = False
    empty: bool = False
    text: bool = False

    def __str__(self) -> str:
        kind = "a whole number" if self.whole else "a number"
        if self.high < math.inf:
            bounds = f"from {self.low:.17g} to {self.high:.17g}"
        else:
            bounds = f"above {self.low:.17g}" if self.above else f"of at least {self.low:.17g}"
        return f"{kind} {bounds}{' or null' if self.empty else ''}"

    def accepts(self, value: Any) -> bool:
        """Whether a value is such a number."""
        if value is None:
            return self.empty
        if self.text and isinstance(value, str) and _is_number(value):
            value = float(value)
        if isinstance(value, bool) or not isinstance(value, int if self.whole else int | float):
            return False
        return self.low <= value <= self.high and not (self.above and value == self.low)

    def hint(self, value: Any) -> str:
        """What to do about a value of another kind; empty if that is plain."""
        if isinstance(value, str):
            return "it is text: remove its quotes" if _is_number(value) else ""
        if self.whole and isinstance(value, float) and value.is_integer():
            return f"write {int(value)}"
        return ""


@dataclass(frozen=True, slots=True)
class Switch:
    """True or false."""

    empty: bool = False

    def __str__(self) -> str:
        return f"true or false{' or null' if self.empty else ''}"

    def accepts(self, value: Any) -> bool:
        """Whether a value is true or false."""
        return isinstance(value, bool) or (value is None and self.empty)

    def hint(self, value: Any) -> str:
        """What to do about a value of another kind; empty if that is plain."""
        return "it is text: remove its quotes" if str(value).lower() in ("true", "false") else ""


@dataclass(frozen=True, slots=True)
class Name:
    """One of several names."""

    names: tuple[str, ...]

    def __str__(self) -> str:
        return f"{', '.join(self.names[:-1])} or {self.names[-1]}"

    def accepts(self, value: Any) -> bool:
        """Whether a value is one of the names."""
        return value in self.names

    def hint(self, value: Any) -> str:
        """The name that was probably meant."""
        other = {"float32": "fp32", "bfloat16": "bf16", "float64": "fp64", "float": "fp32"}.get(str(value))
        return f"write {other}" if other in self.names else ""


@dataclass(frozen=True, slots=True)
class Device:
    """The name of a device, such as `cuda` or `cuda:1`."""

    def __str__(self) -> str:
        return "cpu, cuda, mps, xpu, npu or hpu, or one with a number such as cuda:1"

    def accepts(self, value: Any) -> bool:
        """Whether a value is such a name."""
        return isinstance(value, str) and _DEVICE.fullmatch(value) is not None

    def hint(self, value: Any) -> str:
        """The name that was probably meant."""
        return "write cuda" if str(value).lower() in ("gpu", "nvidia", "auto") else ""


@dataclass(frozen=True, slots=True)
class Names:
    """A list of at least one of several names, none of them twice."""

    names: tuple[str, ...]

    def __str__(self) -> str:
        return f"a list of at least one of {', '.join(self.names)}"

    def accepts(self, value: Any) -> bool:
        """Whether a value is such a list."""
        if not isinstance(value, list | tuple) or not value:
            return False
        return all(name in self.names for name in value) and len({*value}) == len(value)

    def hint(self, value: Any) -> str:
        """The name that was probably meant."""
        return "torchtune's name of o_proj is output_proj" if isinstance(value, list) and "o_proj" in value else ""


Kind = Number | Switch | Name | Device | Names

_WHOLE = Number(1, whole=True)
_SWITCH = Switch()
KINDS: Mapping[str, Kind] = {
    "batch_size": _WHOLE,
    "batch_size_val": Number(1, whole=True, empty=True),
    "gradient_accumulation_steps": _WHOLE,
    "epochs": _WHOLE,
    "max_steps_per_epoch": Number(1, whole=True, empty=True),
    "seed": Number(0, LARGEST_SEED, whole=True, empty=True),
    "log_every_n_steps": Number(1, whole=True, empty=True),
    "clip_grad_norm": Number(0, above=True, empty=True, text=True),
    "dtype": Name(("bf16", "fp32", "fp64")),
    "device": Device(),
    "shuffle": _SWITCH,
    "compile": Switch(empty=True),
    "resume_from_checkpoint": Switch(empty=True),
    "save_adapter_weights_only": Switch(empty=True),
    "enable_activation_checkpointing": Switch(empty=True),
    "enable_activation_offloading": Switch(empty=True),
    "low_cpu_ram": Switch(empty=True),
    "log_peak_memory_stats": Switch(empty=True),
    "model.lora_rank": _WHOLE,
    "model.lora_alpha": Number(0, above=True),
    "model.lora_dropout": Number(0, 1),
    "model.lora_attn_modules": Names(ATTENTION_MODULES),
    "model.apply_lora_to_mlp": _SWITCH,
    "model.apply_lora_to_output": _SWITCH,
    "model.use_dora": _SWITCH,
    "model.quantize_base": _SWITCH,
    "optimizer.lr": Number(0),
    "optimizer.weight_decay": Number(0),
}


def check_base(base: Mapping[str, Any], changes: Mapping[str, Any], file: str) -> None:
    """Refuse a resolved base configuration with a value that the recipe cannot take.

    Args:
        changes: the dotted keys that `recipe.overrides` changed.
        file: the user's file, for the error text.

    Raises:
        ConfigError: with the key, the value, what is allowed, and where to correct it.
    """
    for key, value in known_values(base):
        if KINDS[key].accepts(value):
            continue
        changed, hint = key in changes, KINDS[key].hint(value)
        where = f"recipe.overrides.{key}={_shown(value)}" if changed else f"{file}: {key}={_shown(value)}"
        remedy = f"correct it there, or set recipe.overrides.{key}" if not changed else "" if hint else "correct it"
        raise ConfigError("; ".join(filter(None, [f"{where} must be {KINDS[key]}", hint, remedy])))


def check_space(space: Space) -> None:
    """Refuse a space that would propose a value that the recipe cannot take.

    Raises:
        ConfigError: with the key, the domain, and what is allowed.
    """
    for parameter in space:
        kind = KINDS.get(parameter.key)
        if kind is not None:
            _check_domain(parameter, parameter.domain, kind)


def check_derived(values: Mapping[str, Any], params: Mapping[str, Any]) -> None:
    """Refuse derived values that the recipe cannot take.

    Args:
        values: the derived keys of a trial with their values.
        params: the trial's own parameters, for the error text.

    Raises:
        ConfigError: with the key, the value, what is allowed, and the parameters that it was derived from.
    """
    for key, value in values.items():
        kind = KINDS.get(key)
        if kind is not None and not kind.accepts(value):
            given = ", ".join(f"{name}={_shown(param)}" for name, param in params.items())
            raise ConfigError(
                f"derive.{key} gives {_shown(value)} for {given}, and must be {kind}; correct its formula, e.g. with "
                "${int:…}"
            )


def corners(space: Space, most: int) -> Iterator[dict[str, Any]]:
    """Parameters of trials at the corners of a space.

    First come the trials with all low ends and with all high ends. Then each other value of a choice follows, with all
    other parameters at their low ends, until there are `most`.
    """
    yield from (_corner(space, _low), _corner(space, _high))
    count = 2
    for parameter in space:
        values = parameter.domain.values if isinstance(parameter.domain, Choice) else ()
        for value in values[1:-1]:
            if count >= most:
                return
            count += 1
            yield _corner(space, _low, (parameter.key, value))


def known_values(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The keys of `KINDS` that a resolved configuration has, with their values, without references to variables."""
    for key in KINDS:
        section, _, name = key.rpartition(".")
        holder = config.get(section) if section else config
        if isinstance(holder, Mapping) and name in holder and not any(references(holder[name])):
            yield key, holder[name]


def _check_domain(parameter: Parameter, domain: Domain, kind: Kind) -> None:
    key = parameter.key
    if isinstance(domain, Choice):
        for value in domain.values:
            if not kind.accepts(value) and not any(references(value)):
                hint = kind.hint(value) or "correct the choice"
                raise ConfigError(f"space.{key}: {label(value)} of {domain} must be {kind}; {hint}")
        return
    if isinstance(kind, Number) and _within(domain, kind):
        return
    remedy = "choose other ends"
    if isinstance(kind, Number) and kind.whole and not domain.integer:
        remedy = f"write int({domain})" if domain.step is None and not domain.log else "write int(interval(…))"
    raise ConfigError(f"space.{key}: {domain} proposes values that are not allowed, as {key} must be {kind}; {remedy}")


def _within(domain: Interval, kind: Number) -> bool:
    if kind.whole and not domain.integer:
        return False
    return kind.low <= domain.low and domain.high <= kind.high and not (kind.above and domain.low == kind.low)


def _corner(space: Space, end: Any, given: tuple[str, Any] | None = None) -> dict[str, Any]:
    params: dict[str, Any] = {}
    for parameter in space:
        if parameter.exists(params):
            params[parameter.key] = given[1] if given and given[0] == parameter.key else end(parameter.domain)
    return params


def _low(domain: Domain) -> Any:
    return domain.values[0] if isinstance(domain, Choice) else _number(domain, domain.low)


def _high(domain: Domain) -> Any:
    return domain.values[-1] if isinstance(domain, Choice) else _number(domain, domain.high)


def _number(domain: Interval, value: float) -> int | float:
    return int(value) if domain.integer else float(value)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _shown(value: Any) -> str:
    return repr(value) if isinstance(value, str) else label(value)
