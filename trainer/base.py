"""What a warm worker keeps between trials: the frozen base, the tokenizer and the data sets.

Invariants: a trial built on a kept base has the very numbers of one built alone: its model is instantiated in
full, so that the adapter's random draws are torchtune's, and only then are the frozen parameters exchanged for
the kept ones. Kept parameters never train, so trials cannot disturb each other. One base is kept at a time.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from typing import Any, TypeVar

import torch
from omegaconf import DictConfig, ListConfig, OmegaConf
from torch import nn
from torchtune import config, modules, training
from torchtune.config._utils import _get_component_from_path
from torchtune.data import padded_collate_packed
from torchtune.datasets import ConcatDataset
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
    """Frozen parameters by name, tokenizer and data sets of the last configuration, each under its own key."""

    _kept: dict[str, tuple[str, Any]] = field(default_factory=dict)

    def get(self, kind: str, key: Any, make: Callable[[], T]) -> T:
        """The kept value of this kind where its key is the same; otherwise the old one is dropped, then made anew."""
        text = json.dumps(_plain(key), sort_keys=True, default=str)
        if self._kept.get(kind, ("",))[0] != text:
            self._kept.pop(kind, None)
            self._kept[kind] = (text, make())
        value: T = self._kept[kind][1]
        return value

    def drop(self, kind: str) -> bool:
        """Let go of the kept value of this kind; whether there was one."""
        return self._kept.pop(kind, None) is not None

    def clear(self) -> None:
        self._kept.clear()


def build_model(cfg: DictConfig, cache: Cache, device: torch.device, dtype: torch.dtype, scratch: str) -> nn.Module:
    """A LoRA model as torchtune's single-device recipe makes it, on the kept base.

    Args:
        scratch: a directory outside the checkpoint's own, which torchtune's checkpointers demand.

    Raises:
        FileNotFoundError: the base is not where the configuration says.
    """
    common_utils._use_low_cpu_ram = cfg.get("low_cpu_ram", False)
    with training.set_default_dtype(dtype), device:
        model: nn.Module = config.instantiate(cfg.model)
    adapter = get_adapter_params(model)
    set_trainable_params(model, adapter)
    if cfg.get("compile"):
        _compile_without_limit()
        training.compile_model(model)
    if cfg.get("enable_activation_checkpointing"):
        training.set_activation_checkpointing(model, auto_wrap_policy={modules.TransformerSelfAttentionLayer})

    base_model = {k: v for k, v in cfg.model.items() if k not in LORA_KEYS}
    base_files = {k: v for k, v in cfg.checkpointer.items() if k not in ("output_dir", "recipe_checkpoint")}
    key = [base_model, base_files, str(device), str(dtype), sorted(_frozen(model))]
    # the first model loads the base; every later one takes the very same parameters over
    _share(model, cache.get("base", key, lambda: _load_base(cfg, model, scratch)))
    for module in model.modules():
        if initialize := getattr(module, "initialize_dora_magnitude", None):
            initialize()
    training.validate_expected_param_dtype(adapter.items(), dtype=dtype)
    return model


def build_dataset(dataset: DictConfig | ListConfig, cfg: DictConfig, cache: Cache, kind: str) -> Any:
    """A map-style data set with its tokenizer, kept between trials; `kind` tells training data from validation data."""
    tokenizer = build_tokenizer(cfg, cache)

    def make() -> Any:
        if isinstance(dataset, ListConfig):
            return ConcatDataset(datasets=[config.instantiate(one, tokenizer) for one in dataset])
        return config.instantiate(dataset, tokenizer)

    return cache.get(kind, [cfg.tokenizer, dataset], make)


def build_tokenizer(cfg: DictConfig, cache: Cache) -> Any:
    """The tokenizer of a configuration, kept between trials."""
    return cache.get("tokenizer", cfg.tokenizer, lambda: config.instantiate(cfg.tokenizer))


def build_collate(
    cfg: DictConfig, dataset: DictConfig | ListConfig, built: Any, ignore_index: int, tokenizer: Any
) -> Callable[[list[Any]], Any]:
    """The function that makes a batch of samples of a data set, given its configuration and the built object.

    Raises:
        ValueError: `collate_fn` pads on the left, which is for inference.
    """
    name = cfg.get("collate_fn", "torchtune.data.padded_collate_sft")
    if "left_pad_sequence" in name:
        raise ValueError(f"collate_fn={name} pads on the left, which is for inference; use padded_collate_sft")
    packed = built if isinstance(dataset, ListConfig) else dataset
    if getattr(packed, "packed", False):
        return padded_collate_packed  # type: ignore[no-any-return]
    return partial(_get_component_from_path(name), padding_idx=tokenizer.pad_id, ignore_idx=ignore_index)


def _compile_without_limit() -> None:
    """Have every trial of this process compiled: torch's limit is meant for one model that it compiles in vain.

    Each rank or alpha is a shape of its own, so that after three or four of them trials would be eager without a word.
    What was compiled is kept for those of the same shapes to come, in some 15 MiB of the host's memory each.
    """
    limits: Any = import_module("torch._dynamo.config")
    limits.cache_size_limit = limits.accumulated_cache_size_limit = 2**31  # by the names that torch 2.6 has too


def _load_base(cfg: DictConfig, model: nn.Module, scratch: str) -> dict[str, nn.Parameter]:
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
