"""A finished adapter, back in a model: as it was trained, or merged into its base for programs that know no LoRA.

Invariants: what is loaded is bit by bit what was saved. torchtune can write PEFT's form and cannot read it; so its own
conversion is inverted, by sending every element's index through it. Merging leaves the base that a worker keeps as it
is.
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
    """Give a model the adapter that `LoraRecipe.save_adapter` wrote.

    Args:
        scratch: a directory for files that are soon useless.

    Raises:
        FileNotFoundError: the directory holds none. ValueError: it is one of another shape.
    """
    own = directory / OWN_FILE
    if own.exists():
        found = torch.load(own, map_location="cpu", weights_only=True)
    else:
        if not (directory / PEFT_FILE).exists():
            raise FileNotFoundError(f"{directory} holds no adapter")
        found = _from_peft(recipe, load_file(directory / PEFT_FILE), scratch)
    wanted = recipe.adapter()
    if {name: value.shape for name, value in found.items()} != {name: value.shape for name, value in wanted.items()}:
        raise ValueError(f"the adapter in {directory} is none of this configuration's")
    recipe.model.load_state_dict(found, strict=False)


def save_merged(recipe: LoraRecipe, to: Path) -> list[str]:
    """Write base and adapter as one checkpoint in the base's own format; the names of its weights' files."""
    state = {name: value.detach().to("cpu", copy=True) for name, value in recipe.model.state_dict().items()}
    model = recipe.cfg.model
    merged = get_merged_lora_ckpt(state, rank=int(model.lora_rank), alpha=float(model.lora_alpha))
    checkpointer = config.instantiate(OmegaConf.merge(recipe.cfg.checkpointer, {"output_dir": str(to)}))
    checkpointer.load_checkpoint()  # it learns the names of the files' tensors
    checkpointer.save_checkpoint({training.MODEL_KEY: merged}, epoch=0, intermediate_checkpoint=False)
    for path in (to / "epoch_0").iterdir():
        path.rename(to / path.name)
    (to / "epoch_0").rmdir()
    return sorted(path.name for path in to.iterdir() if path.suffix in (".safetensors", ".bin", ".pt"))


def _from_peft(recipe: LoraRecipe, peft: dict[str, torch.Tensor], scratch: Path) -> dict[str, torch.Tensor]:
    own = recipe.adapter()
    marked, first = {}, 0
    for name, value in own.items():
        marked[name] = torch.arange(first, first + value.numel()).reshape(value.shape)
        first += value.numel()
    recipe.save_adapter(scratch / "marked", marked)
    where = load_file(scratch / "marked" / PEFT_FILE)
    if {name: value.shape for name, value in where.items()} != {name: value.shape for name, value in peft.items()}:
        raise ValueError("the adapter has other layers or another rank than its configuration says")
    flat = torch.empty(first, dtype=next(iter(peft.values())).dtype)
    for name, places in where.items():
        flat[places.reshape(-1)] = peft[name].reshape(-1)
    return {name: flat[places.reshape(-1)].reshape(places.shape) for name, places in marked.items()}
