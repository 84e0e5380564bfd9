"""What a worker keeps between trials, above all the frozen base, and how a trial's model is built on it.

Invariants: a trial built on a kept base has exactly the numbers of one built alone. Its model is instantiated in full,
so that torchtune draws the adapter's random numbers; only then are the frozen parameters replaced by the kept ones.
Kept parameters never train, so that no trial changes another. One base is kept at a time.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, TypeVar

import torch
from omegaconf import DictConfig, ListConfig, OmegaConf
from torch import nn
from torchtune import config, modules, training
from torchtune.modules import common_utils
from torchtune.modules.peft import (
    get_adapter_params,
    set_trainable_params,
    validate_missing_and_unexpected_for_lora,
)

T = TypeVar("T")
LORA_KEYS = (
    "lora_rank",
    "lora_alpha",
    "lora_dropout",
    "lora_attn_modules",
    "apply_lora_to_mlp",
    "apply_lora_to_output",
)


@dataclass(slots=True)
class Cache:
    """Frozen parameters by name, tokenizer and data sets: the last value of each kind, with its key."""

    _kept: dict[str, tuple[str, Any]] = field(default_factory=dict)

    def get(self, kind: str, key: Any, make: Callable[[], T]) -> T:
        """The kept value of this kind if its key is the same; else drop the old value, then make a new one.

        Args:
            kind: for example "base" or "tokenizer".
            key: a configuration, or a list of such; compared as JSON.
            make: makes the value.
        """
        text = json.dumps(_plain(key), sort_keys=True, default=str)
        if self._kept.get(kind, ("",))[0] != text:
            self._kept.pop(kind, None)
            self._kept[kind] = (text, make())
        value: T = self._kept[kind][1]
        return value

    def drop(self, kind: str) -> bool:
        """Drop the kept value of this kind; returns whether there was one."""
        return self._kept.pop(kind, None) is not None

    def clear(self) -> None:
        """Drop all values."""
        self._kept.clear()


def build_model(cfg: DictConfig, cache: Cache, device: torch.device, dtype: torch.dtype, scratch: str) -> nn.Module:
    """A LoRA model as torchtune's single-device recipe builds it, on the kept base.

    Args:
        scratch: a directory other than the checkpoint's, which torchtune's checkpointers require.

    Raises:
        FileNotFoundError: the configuration names a base that does not exist.
    """
    model = instantiate_model(cfg, device, dtype)
    if cfg.get("compile"):
        _compile_without_limit()
        training.compile_model(model)
    if cfg.get("enable_activation_checkpointing"):
        training.set_activation_checkpointing(model, auto_wrap_policy={modules.TransformerSelfAttentionLayer})

    base_model = {k: v for k, v in cfg.model.items() if k not in LORA_KEYS}
    base_files = {k: v for k, v in cfg.checkpointer.items() if k not in ("output_dir", "recipe_checkpoint")}
    key = [base_model, base_files, str(device), str(dtype), sorted(_frozen(model))]
    # the first model loads the base; every later one gets the same parameter objects
    _share(model, cache.get("base", key, lambda: load_base(cfg, model, scratch)))
    for module in model.modules():
        if initialize := getattr(module, "initialize_dora_magnitude", None):
            initialize()
    training.validate_expected_param_dtype(get_adapter_params(model).items(), dtype=dtype)
    return model


def instantiate_model(cfg: DictConfig, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """A LoRA model without the weights of its base, of which only the adapter trains."""
    common_utils._use_low_cpu_ram = cfg.get("low_cpu_ram", False)
    with training.set_default_dtype(dtype), device:
        model: nn.Module = config.instantiate(cfg.model)
    set_trainable_params(model, get_adapter_params(model))
    return model


def _compile_without_limit() -> None:
    """Remove torch's limit of compilations, so that every trial of this process is compiled.

    The limit protects from a model that is compiled again and again. Each rank or alpha is a shape of its own: after
    three or four of them, further trials would silently run without compilation. A compiled model is kept for later
    trials of the same shapes, in about 15 MiB of the host's memory.
    """
    limits: Any = import_module("torch._dynamo.config")
    limits.cache_size_limit = limits.accumulated_cache_size_limit = 2**31  # torch 2.6 has these names too


def load_base(cfg: DictConfig, model: nn.Module, scratch: str) -> dict[str, nn.Parameter]:
    """Load the base's weights into a model, by its checkpointer; returns the frozen parameters by name."""
    checkpointer = config.instantiate(OmegaConf.merge(cfg.checkpointer, {"output_dir": scratch}))
    state = checkpointer.load_checkpoint()[training.MODEL_KEY]
    missing, unexpected = model.load_state_dict(state, strict=False)
    validate_missing_and_unexpected_for_lora(
        lora_attn_modules=list(cfg.model.lora_attn_modules),
        apply_lora_to_mlp=cfg.model.apply_lora_to_mlp,
        apply_lora_to_output=cfg.model.get("apply_lora_to_output", False),
        base_missing=missing,
        base_unexpected=unexpected,
    )
    return _frozen(model)


def _frozen(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if not p.requires_grad}


def _share(model: nn.Module, frozen: dict[str, nn.Parameter]) -> None:
    for name, parameter in frozen.items():
        owner, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(owner), leaf, parameter)


def _plain(value: Any) -> Any:
    if isinstance(value, DictConfig | ListConfig):
        return OmegaConf.to_container(value, resolve=True)
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value
