"""Loads a finished adapter into a model, or merges it into its base for programs that know no LoRA.

Invariants: the loaded tensors equal the saved ones bit by bit. torchtune writes PEFT's format and cannot read it.
Therefore torchtune's conversion is applied to the index of every element, and then inverted. Merging does not change
the base that a worker keeps.
"""

from __future__ import annotations

from pathlib import Path

import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file
from torchtune import config, training
from torchtune.modules.peft import get_merged_lora_ckpt

from trainer.recipe import LoraRecipe

PEFT_FILE = "adapter_model.safetensors"
OWN_FILE = "adapter_model.pt"


def load_adapter(recipe: LoraRecipe, directory: Path, scratch: Path) -> None:
    """Load the adapter that `LoraRecipe.save_adapter` wrote into a model.

    Args:
        directory: the adapter's.
        scratch: a directory for temporary files.

    Raises:
        FileNotFoundError: the directory holds no adapter.
        ValueError: the adapter has other layers or shapes than the model.
    """
    own = directory / OWN_FILE
    if own.exists():
        tensors = torch.load(own, map_location="cpu", weights_only=True)
    else:
        if not (directory / PEFT_FILE).exists():
            raise FileNotFoundError(f"{directory} has neither {PEFT_FILE} nor {OWN_FILE}")
        tensors = _from_peft(recipe, load_file(directory / PEFT_FILE), scratch)
    if _shapes(tensors) != _shapes(recipe.adapter()):
        raise ValueError(f"the adapter in {directory} has other layers or shapes than this trial's configuration")
    recipe.model.load_state_dict(tensors, strict=False)


def save_merged(recipe: LoraRecipe, to: Path) -> list[str]:
    """Write base and adapter as one checkpoint in the base's format; returns the names of its weight files."""
    state = {name: value.detach().to("cpu", copy=True) for name, value in recipe.model.state_dict().items()}
    model = recipe.cfg.model
    merged = get_merged_lora_ckpt(state, rank=int(model.lora_rank), alpha=float(model.lora_alpha))
    checkpointer = config.instantiate(OmegaConf.merge(recipe.cfg.checkpointer, {"output_dir": str(to)}))
    checkpointer.load_checkpoint()  # so that it knows which file holds which tensor
    checkpointer.save_checkpoint({training.MODEL_KEY: merged}, epoch=0, intermediate_checkpoint=False)
    for path in (to / "epoch_0").iterdir():
        path.rename(to / path.name)
    (to / "epoch_0").rmdir()
    return sorted(path.name for path in to.iterdir() if path.suffix in (".safetensors", ".bin", ".pt"))


def _from_peft(recipe: LoraRecipe, peft: dict[str, torch.Tensor], scratch: Path) -> dict[str, torch.Tensor]:
    """Tensors in PEFT's layout as tensors in torchtune's, by torchtune's names."""
    indices, first = {}, 0
    for name, value in recipe.adapter().items():
        indices[name] = torch.arange(first, first + value.numel()).reshape(value.shape)
        first += value.numel()
    recipe.save_adapter(scratch / "indices", indices)
    peft_indices = load_file(scratch / "indices" / PEFT_FILE)
    if _shapes(peft_indices) != _shapes(peft):
        raise ValueError("the adapter has other layers or another rank than its trial's configuration")
    flat = torch.empty(first, dtype=next(iter(peft.values())).dtype)
    for name, positions in peft_indices.items():
        flat[positions.reshape(-1)] = peft[name].reshape(-1)
    return {name: flat[positions.reshape(-1)].reshape(positions.shape) for name, positions in indices.items()}


def _shapes(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in tensors.items()}
