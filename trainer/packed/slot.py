"""A trial in a pack: its row of the adapter store, its random generators, and its prefetched micro-batch.

Invariant: a prefetch can be undone, since the state of the data and of the generators before it is kept.
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
        row: its row of the adapter store; the pack changes it when another slot is removed.
        random: the trial's own generators.
        batches: the trial's micro-batches, each with `tokens` and `labels` of shape [b, s], on the CPU.
        prefetched: the micro-batch of the next pass, or why there is none; None: nothing has been drawn yet.
        dropout: the probability with which an adapter's input is dropped.
    """

    recipe: LoraRecipe
    row: int
    random: Randomness
    batches: Iterator[Batch] = field(init=False)
    prefetched: SlotBatch | SlotResult | None = None
    dropout: float = field(init=False)
    _state_before: tuple[dict[str, Any], Any] = field(init=False)

    def __post_init__(self) -> None:
        self.batches = self.recipe.batches()
        # read once: each pass needs it, and reading the configuration would keep the GPU waiting
        self.dropout = float(self.recipe.cfg.model.get("lora_dropout", 0.0))

    def prefetch(self, max_length: int) -> None:
        """Draw the next micro-batch. The loss of the last one may still be unknown while a GPU computes it.

        Args:
            max_length: a row with more tokens becomes the slot's error.
        """
        self._state_before = self.recipe.loader_state(), self.random.now
        try:
            with self.random.own():
                batch = next(self.batches)
            if batch["tokens"].shape[1] > max_length:
                raise ValueError(
                    f"a row has {batch['tokens'].shape[1]} tokens, more than the model's max_seq_len={max_length}; "
                    "lower tokenizer.max_seq_len"
                )
            self.prefetched = SlotBatch(self, batch, self.recipe.label_tokens(batch))
        except Exception as error:
            self.prefetched = SlotResult(self, None, error)

    def data_state(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """The state of the data loader and of the generators before the prefetched micro-batch, for a checkpoint."""
        if self.prefetched is None:
            return self.recipe.loader_state(), self.random.to_checkpoint(self.random.now)
        loader, random = self._state_before
        return loader, self.random.to_checkpoint(random)


@dataclass(frozen=True, slots=True)
class SlotResult:
    """The result of one pass for one slot: its progress, or the error for which it cannot continue."""

    slot: Slot
    progress: MicroBatch | None
    error: Exception | None = None


@dataclass(slots=True)
class SlotBatch:
    """A slot with its micro-batch for one pass.

    Args:
        labels: label tokens of the micro-batch.
    """

    slot: Slot
    batch: Batch
    labels: int

    @property
    def tokens(self) -> int:
        """Tokens of the micro-batch, padding included."""
        return self.batch["tokens"].numel()
