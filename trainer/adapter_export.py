"""Writes an adapter in PEFT format, as torchtune's checkpointer does.

Invariants: nothing but the adapter's files remains, no copies of the base's. Whatever `safe_serialization` says, PEFT's
file is one of safetensors: the other kind is a pickle, which no reader of a room opens.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torchtune import config, training
from torchtune.modules.peft import get_lora_module_names


def write_adapter(cfg: DictConfig, adapter: dict[str, torch.Tensor], scratch: Path, to: Path) -> bool:
    """Write an adapter into the directory `to`.

    Args:
        cfg: the torchtune configuration of its trial.
        adapter: its tensors by torchtune's names, on the CPU.
        scratch: a directory for files that are deleted again.

    Returns:
        False if torchtune has no PEFT format for this model; the directory then holds torchtune's own `.pt` file.
    """
    model = cfg.model
    names = get_lora_module_names(
        list(model.lora_attn_modules), model.apply_lora_to_mlp, model.get("apply_lora_to_output", False)
    )
    adapter_config: dict[str, Any] = {
        "r": model.lora_rank,
        "lora_alpha": model.lora_alpha,
        "target_modules": names,
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
    }
    if any("magnitude" in name for name in adapter):
        adapter_config["use_dora"] = True
    own: dict[str, Any] = {"output_dir": str(scratch)}
    if "safe_serialization" in cfg.checkpointer:
        own["safe_serialization"] = True
    checkpointer = config.instantiate(OmegaConf.merge(cfg.checkpointer, own))
    if getattr(checkpointer, "repo_id", "") is None:
        checkpointer.repo_id = str(Path(cfg.checkpointer.checkpoint_dir).resolve())
    state = {training.ADAPTER_KEY: adapter, training.ADAPTER_CONFIG: adapter_config}
    checkpointer.save_checkpoint(state, epoch=0, intermediate_checkpoint=False, adapter_only=True)
    return _move_adapter(scratch / "epoch_0", to)


def _move_adapter(source: Path, to: Path) -> bool:
    """Move the adapter's files from torchtune's output, and delete the rest; False if they are not in PEFT format."""
    to.mkdir(parents=True, exist_ok=True)
    peft = (source / "adapter_model.safetensors").exists() and (source / "adapter_config.json").exists()
    for name in ("adapter_model.safetensors", "adapter_config.json") if peft else ("adapter_model.pt",):
        shutil.move(source / name, to / name)
    shutil.rmtree(source)
    return peft
