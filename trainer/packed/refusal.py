"""Decides which trials can be in no pack, and why.

Invariant: a trial that is not refused has the same numbers in a pack as alone, up to rounding.
"""

from __future__ import annotations

from typing import Any

import torch
from omegaconf import ListConfig
from torch import nn
from torchtune.modules.loss import CEWithChunkedOutputLoss

from trainer.packed.model import unpackable_model
from trainer.recipe import LoraRecipe


def unpackable_reason(recipe: LoraRecipe) -> str | None:
    """Why a trial cannot be in any pack, as half a sentence; None if it can."""
    cfg = recipe.cfg
    for flag in ("enable_activation_checkpointing", "enable_activation_offloading"):
        if cfg.get(flag):
            return f"{flag} is set"
    if reason := unpackable_model(recipe.model):
        return reason
    loss: Any = recipe.loss
    plain = isinstance(loss, nn.CrossEntropyLoss) and loss.reduction == "mean" and not loss.label_smoothing
    if not (type(loss) is CEWithChunkedOutputLoss or (plain and loss.weight is None)):
        return f"its loss is {type(loss).__name__}"
    if reason := _unpackable_optimizer(recipe.optimizer):
        return reason
    datasets = cfg.dataset if isinstance(cfg.dataset, ListConfig) else [cfg.dataset]  # torchtune concatenates several
    if any(dataset.get("packed") for dataset in datasets):
        return "its data set is packed by torchtune"
    if "padded_collate_sft" not in cfg.get("collate_fn", "padded_collate_sft"):
        return f"its collate_fn is {cfg.collate_fn}"
    return None


def _unpackable_optimizer(optimizer: torch.optim.Optimizer) -> str | None:
    if type(optimizer) is not torch.optim.AdamW:
        return f"its optimizer is {type(optimizer).__name__}, not AdamW"
    if len(optimizer.param_groups) != 1:
        return "its optimizer has several groups"
    for option in ("amsgrad", "maximize", "capturable", "differentiable"):
        if optimizer.param_groups[0].get(option):
            return f"its AdamW has {option}"
    return None
