"""Small trials that differ in all that may differ within a pack, alone and packed; and how far their numbers differ."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from tests.conftest import embedded_config
from trainer.base import Cache
from trainer.contract import Step
from trainer.packed.pack import Pack
from trainer.packed.slot import Slot
from trainer.recipe import LoraRecipe

TOLERANCE = 1e-5
Change = dict[str, Any]
# ranks, rates, schedules, accumulations, decay, clipping, dropout, seeds, batch shapes and data, each differing
TRIALS: tuple[Change, ...] = (
    {"model__lora_rank": 4, "optimizer__lr": 1e-3, "seed": 1},
    {"model__lora_rank": 16, "model__lora_alpha": 8, "gradient_accumulation_steps": 3, "clip_grad_norm": None},
    {"model__lora_dropout": 0.1, "gradient_accumulation_steps": 2, "seed": 3, "epochs": 2, "optimizer__lr": 2e-3},
    {"batch_size": 2, "optimizer__weight_decay": 0.3, "clip_grad_norm": 0.1, "optimizer__lr": 1e-3},
    {"dataset__train_on_input": True, "lr_scheduler__num_warmup_steps": 1, "optimizer__lr": 1e-3},
)


def make(cache: Cache, scratch: Path, change: Change) -> LoraRecipe:
    return LoraRecipe(OmegaConf.create(embedded_config(**change)), cache, scratch / "scratch")


def alone(cache: Cache, scratch: Path, change: Change) -> list[Step]:
    return [batch.step for batch in make(cache, scratch, change).train() if batch.step]


def drive(pack: Pack, steps: dict[Slot, list[Step]], rounds: int | None = None) -> None:
    """Train until so many passes are over, or every slot is; a slot at its end is given back."""
    while pack.slots and rounds != 0:
        rounds = None if rounds is None else rounds - 1
        for result in pack.step():
            assert result.error is None, result.error
            assert result.progress is not None
            steps.setdefault(result.slot, []).extend([result.progress.step] if result.progress.step else [])
            if result.progress.position == result.progress.total:
                pack.remove(result.slot)


def worst(ours: Sequence[Step], theirs: Sequence[Step]) -> float:
    """The largest relative difference of a loss or a grad_norm; all else must be equal."""
    assert [(s.step, s.tokens, s.lr) for s in ours] == [(s.step, s.tokens, s.lr) for s in theirs]
    assert len(ours) > 0
    pairs = [(a.loss, b.loss) for a, b in zip(ours, theirs, strict=True)]
    pairs += [(a.grad_norm, b.grad_norm) for a, b in zip(ours, theirs, strict=True)]
    return max(abs(a - b) / abs(b) for a, b in pairs)
