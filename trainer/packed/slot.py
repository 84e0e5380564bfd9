"""A trial in a pack: its place in the store, its generators, and the micro-batch that it brings to the next pass.

Invariant: what is drawn ahead for a slot can be taken back, as where its data and generators stood before is kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from trainer.progress import MicroBatch
from trainer.randomness import Randomness
from trainer.recipe import LoraRecipe

Batch = dict[str, torch.Tensor]


@dataclass(slots=True, eq=False)
class Slot:
    """A trial in a pack.

    Args:
        row: of the store; the pack changes it when another slot is given back.
    """

    recipe: LoraRecipe
    row: int
    random: Randomness
    batches: Iterator[Batch] = field(init=False)
    ahead: Fed | Passed | None = None
    dropout: float = field(init=False)
    _behind: tuple[dict[str, Any], Any] = field(init=False)

    def __post_init__(self) -> None:
        self.batches = self.recipe.batches()
        self.dropout = float(self.recipe.cfg.model.get("lora_dropout", 0.0))  # every pass asks, and the GPU waits

    def fetch(self, longest: int) -> None:
        """Draw the next micro-batch, before the numbers of the last are known: a GPU is still busy with them."""
        self._behind = self.recipe.loader_state(), self.random.now
        try:
            with self.random.own():
                batch = next(self.batches)
            if batch["tokens"].shape[1] > longest:
                raise ValueError(
                    f"a row of {batch['tokens'].shape[1]} tokens is longer than the model's max_seq_len ({longest})"
                )
            self.ahead = Fed(self, batch, self.recipe.label_tokens(batch))
        except Exception as error:
            self.ahead = Passed(self, None, error)

    def where(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """The loader and the generators as they stood before the micro-batch that is drawn ahead."""
        if self.ahead is None:
            return self.recipe.loader_state(), self.random.to_checkpoint(self.random.now)
        loader, random = self._behind
        return loader, self.random.to_checkpoint(random)


@dataclass(frozen=True, slots=True)
class Passed:
    """What one pass came to for one slot: where it stands, or why it cannot go on."""

    slot: Slot
    batch: MicroBatch | None
    error: Exception | None = None


@dataclass(slots=True)
class Fed:
    """A slot with the micro-batch that it brings to this pass."""

    slot: Slot
    batch: Batch
    labels: int

    @property
    def tokens(self) -> int:
        return self.batch["tokens"].numel()
